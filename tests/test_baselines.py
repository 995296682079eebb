"""Simple models read what the network reads and learn from training clips only. They are tuned on validation clips and
on training clips that are held out in turn."""
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, log_loss

from hiccap import baselines
from hiccap.baselines import (
    CONSTANT, FROZEN, FROZEN_TEXTLESS, LATE_FUSION, WORDS, baseline_predictions, clip_features, criterion_of,
    fit_linear, held_out, standardised, tuned_linear, tuned_models, validation_score, word_counts)
from hiccap.clips import Clip, ClipDataset
from hiccap.encoders import TokenEncoder, TokensConfig
from hiccap.metrics import choose_thresholds, steady_threshold
from hiccap.records import words_of
from hiccap.synthetic import synthetic_clips
from hiccap.tasks import IGNORE, Task
from hiccap.temperatures import fit_temperatures

FUNNY = Task('funny')
VOCABULARY = '[CLS] [SEP] [UNK] you are here no film i u ! ? 😀 😢 not bad'.split()
ID = {w: i for i, w in enumerate(VOCABULARY)}


class Tokenizer:
    "Whole words, as much of a `transformers` tokenizer as is used"
    all_special_ids, unk_token_id = [0, 1, 2], 2
    def decode(self, ids): return ' '.join(VOCABULARY[i] for i in ids)


def text_clip(name, text, second=None, y=0, **more):
    "A clip of words, with captions or context"
    first, rest = (['[CLS]', *text.split(), '[SEP]'], [] if second is None else [*second.split(), '[SEP]'])
    ids = torch.tensor([ID.get(w, 2) for w in first + rest])
    return Clip(name, text=ids, segments=torch.tensor([0]*len(first) + [1]*len(rest)), labels=dict(funny=y), **more)


def three_parts(make, n=(60, 30, 30), task=FUNNY):
    "Training, validation and test clips; `make` gets a name, a label and a generator"
    rng, parts = np.random.default_rng(0), []
    for k, size in enumerate(n):
        clips = [make(f'v{k}{i}', i % 2, rng) for i in range(size)]
        parts.append(ClipDataset.from_clips(clips, [task]))
    return parts


def synthetic_parts(sizes=(60, 30, 30), seed=2):
    "Synthetic clips with two of their tasks, one in words and one in video"
    ds = synthetic_clips(sum(sizes), scale=.1, seed=seed)
    ds = ClipDataset(ds.ids, ds.columns, {k: v.numpy() for k, v in ds.labels.items()}, ds.tasks[:2], ds.groups)
    ends = np.cumsum((0, *sizes))
    return [ds.subset(range(a, b)) for a, b in zip(ends, ends[1:])]


def accuracy(found, test, task='funny'): return (found.predicted[task] == test.targets(task).numpy()).mean()


def same(a, b):
    "Whether two `Predictions` are bit-identical, with all that was chosen"
    assert a.thresholds == b.thresholds and a.chosen == b.chosen and set(a.probs) == set(b.probs)
    for k in a.probs:
        assert a.probs[k].tobytes() == b.probs[k].tobytes() and a.predicted[k].tobytes() == b.predicted[k].tobytes()


@pytest.mark.parametrize('no, yes', ['?!', 'iu', '😢😀'])
def test_words_find_a_signal_in_one_character_only(no, yes):
    parts = three_parts(lambda k, y, rng: text_clip(k, f"{rng.choice(['you', 'film'])} are here {(no, yes)[y]}", y=y))
    assert accuracy(baseline_predictions(*parts, Tokenizer(), models=['words'])[WORDS], parts[2]) == 1


def test_words_count_what_the_vocabulary_lacks():
    parts = three_parts(lambda k, y, rng: text_clip(k, 'you are here' + y*' 🦆', y=y))
    assert accuracy(baseline_predictions(*parts, Tokenizer(), models=['words'])[WORDS], parts[2]) == 1
    assert words_of(parts[0], Tokenizer())[0][:2] == ['you are here']*2  # an audit leaves it out


def test_words_find_the_order_of_two():
    parts = three_parts(lambda k, y, rng: text_clip(k, ('not bad', 'bad not')[y], y=y))
    assert accuracy(baseline_predictions(*parts, Tokenizer(), models=['words'])[WORDS], parts[2]) == 1


def test_a_word_of_the_context_is_not_that_word_of_the_text():
    def make(k, y, rng): return text_clip(k, *(('film here', 'no here') if y else ('no here', 'film here')), y=y)
    parts = three_parts(make)
    assert accuracy(baseline_predictions(*parts, Tokenizer(), models=['words'])[WORDS], parts[2]) == 1
    assert words_of(parts[0], Tokenizer())[1][:2] == ['film here', 'no here']


def test_a_missing_context_counts_too():
    parts = three_parts(lambda k, y, rng: text_clip(k, 'you are here', 'film' if y else None, y=y))
    assert accuracy(baseline_predictions(*parts, Tokenizer(), models=['words'])[WORDS], parts[2]) == 1
    a, b = word_counts([['', 'a', 'b', 'c'], ['']])
    assert a[0].nnz == 1 and (a[0] != b[0]).nnz == 0 and not any((a[0] @ a[i].T).nnz for i in (1, 2, 3))


def test_words_without_a_tokenizer_are_ids_of_any_length():
    parts = three_parts(lambda k, y, rng: Clip(k, text=torch.tensor([7, 4 + y, 9]), labels=dict(funny=y)))
    assert accuracy(baseline_predictions(*parts, models=['words'])[WORDS], parts[2]) == 1


@pytest.mark.parametrize('modality', ['video', 'audio'])
@pytest.mark.parametrize('signal', ['mean', 'spread', 'absence'])
def test_a_signal_in_features_only(modality, signal):
    def make(k, y, rng):
        x = rng.normal(size=(12, 3)).astype(np.float32)
        if signal == 'mean': x[:, 0] += 3*y
        if signal == 'spread': x[:, 1] *= 1 + 4*y
        return text_clip(k, f"{rng.choice(['you', 'film'])} here", y=y,
                         **{modality: None if signal == 'absence' and y else torch.tensor(x)})
    parts = three_parts(make)
    found = baseline_predictions(*parts, Tokenizer())
    assert accuracy(found[WORDS], parts[2]) > .95 and accuracy(found[FROZEN_TEXTLESS], parts[2]) > .95


def test_words_keep_their_signal_next_to_features_of_noise():
    def make(k, y, rng):
        words = [*rng.choice('you are here film i u not bad'.split(), 12), 'no' if y else 'film']
        noise = rng.normal(size=(3, 4)).astype(np.float32)
        return text_clip(k, ' '.join(rng.permutation(words)), y=y, video=torch.tensor(noise))
    parts = three_parts(make, (100, 40, 60))
    found = baseline_predictions(*parts, Tokenizer(), models=['words'])[WORDS]
    assert accuracy(found, parts[2]) > .93 and found.chosen['funny']['features'] == .2


def tiny_encoder():
    torch.manual_seed(0)
    bert = dict(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    return TokenEncoder(TokensConfig(bert), 16, 0., 0.).eval()


def test_frozen_features_of_each_segment():
    def make(k, y, rng): return text_clip(k, 'film here', ('no', 'you')[y], y=y)
    parts = three_parts(make, (20, 10, 10))
    found = baseline_predictions(*parts, Tokenizer(), tiny_encoder(), models=['frozen'])
    assert list(found) == [FROZEN, CONSTANT] and accuracy(found[FROZEN], parts[2]) == 1
    x, = clip_features(parts[:1], tiny_encoder())
    assert list(x) == ['text', 'second text']
    c, encoder = parts[0][1], tiny_encoder()
    states, _ = encoder(c.text[None], torch.ones(1, len(c.text), dtype=torch.bool), segments=c.segments[None])
    for k, name in enumerate(x):
        assert np.allclose(x[name][1], states[c.segments == k].mean(0).detach(), atol=1e-5)


def test_which_models_there_are():
    parts = synthetic_parts((30, 15, 15))
    assert list(baseline_predictions(*parts)) == [WORDS, FROZEN_TEXTLESS, CONSTANT]
    assert list(baseline_predictions(*parts, models=())) == [CONSTANT]
    vectors = three_parts(lambda k, y, rng: Clip(k, text=torch.randn(3, 4) + 3*y, labels=dict(funny=y)))
    found = baseline_predictions(*vectors)
    assert list(found) == [FROZEN, CONSTANT] and accuracy(found[FROZEN], vectors[2]) > .9
    silent = three_parts(lambda k, y, rng: Clip(k, labels=dict(funny=y)))
    assert list(baseline_predictions(*silent)) == [CONSTANT]


class Poisoned(dict):
    "Labels that nobody may read"
    def __getitem__(self, k): raise AssertionError('a label of a test clip was read')
    get = values = items = __iter__ = keys = __getitem__


def test_no_label_of_a_test_clip_is_read():
    train, valid, test = synthetic_parts()
    before = baseline_predictions(train, valid, test)
    test.labels = Poisoned()
    after = baseline_predictions(train, valid, test)
    for name in before: same(before[name], after[name])


@pytest.mark.parametrize('part', ['training', 'validation'])
def test_labels_of_training_and_validation_clips_are_read(part):
    "The spy above would say nothing if no label decided anything"
    parts = synthetic_parts()
    before = baseline_predictions(*parts)
    y = parts[part == 'validation'].labels['said']
    y[y != IGNORE] = torch.tensor(np.random.default_rng(0).permutation(y[y != IGNORE].numpy()))
    after = baseline_predictions(*parts)
    for name in (WORDS, FROZEN_TEXTLESS):
        assert (before[name].chosen, before[name].thresholds) != (after[name].chosen, after[name].thresholds)


def features(n, seed, classes=2, rare=.15):
    "Features with some evidence, and clips with rare classes"
    rng, task = np.random.default_rng(seed), Task('funny', classes)
    y = rng.choice(classes, n, p=[1 - rare*(classes - 1)] + [rare]*(classes - 1))
    x = rng.normal(size=(n, 12))
    x[:, :classes] += 1.3*np.eye(classes)[y]
    y[rng.random(n) < .1] = IGNORE
    return x, ClipDataset([f's{seed}v{i}' for i in range(n)], {}, dict(funny=y), [task])


def known(y, *others): return [o[y != IGNORE] for o in (y, *others)]


def by_hand(X, y, Z, y_held, fold, C, w, classes):
    "Labels and probabilities of the clips that a setting is chosen on, by scikit-learn alone"
    def model(rows): return LogisticRegression(C=C, class_weight=w, max_iter=1000).fit(X[rows], y[rows])
    p, labelled = np.zeros((len(X), classes)), y != IGNORE
    for f in [] if fold is None else range(5): p[fold == f] = model(labelled & (fold != f)).predict_proba(X[fold == f])
    p = np.concatenate([p, model(labelled).predict_proba(Z)])
    return known(y_held, p)


@pytest.mark.parametrize('few', [0, 800])
@pytest.mark.parametrize('score', ['macro_f1', 'f1', 'accuracy'])
@pytest.mark.parametrize('classes', [2, 3])
@pytest.mark.parametrize('seed', [0, 10])
def test_settings_are_those_that_are_best_on_held_out_clips(few, score, classes, seed, monkeypatch):
    monkeypatch.setattr(baselines, 'FEW', few)
    (X, train), (V, valid), (T, test) = (features(100, seed + i, classes) for i in range(3))
    found = tuned_linear([({}, (X, V, T))], train, valid, score, (1., .01, 10.))
    y, held, best = train.targets('funny').numpy(), held_out(train, valid), None
    assert (held.folds['funny'] is None) == (few == 0)
    for w in (None, 'balanced'):
        for C in (1., .01, 10.):
            truth, p = by_hand(X, y, V, held.labels['funny'], held.folds['funny'], C, w, classes)
            cuts = np.r_[0, np.unique(p[:, 1]), 2] if classes == 2 else [None]
            values = [score_of(truth, p.argmax(1) if c is None else (p[:, 1] >= c).astype(int), score, classes)
                      for c in cuts]
            key = round(max(values), 9), -log_loss(truth, p, labels=range(classes))
            if best is None or key > best[0]: best = key, C, w
    assert (found.chosen['funny']['C'], found.chosen['funny']['class_weight']) == best[1:]
    assert np.isclose(found.chosen['funny']['validation'], best[0][0])
    # learnt from the labelled training clips only
    y, X = known(y, X)
    model = LogisticRegression(C=best[1], class_weight=best[2], max_iter=1000).fit(X, y)
    assert np.allclose(found.raw['funny'], model.predict_proba(T))


labels_of_videos = st.lists(st.tuples(st.integers(0, 6), st.sampled_from([IGNORE, 0, 1, 2])), min_size=1, max_size=40)


@given(labels_of_videos, st.sampled_from([0, 3, 800]), st.booleans())
def test_the_training_clips_that_have_a_say(rows, few, numbers):
    task = Task('mood', kind='regression') if numbers else Task('mood', 3)
    videos, y = (list(o) for o in zip(*rows))
    y = np.where(np.array(y) == IGNORE, np.nan, y) if numbers else np.array(y)
    train = ClipDataset([f'c{i}' for i in range(len(y))], {}, dict(mood=y), [task], [f'v{o}' for o in videos])
    valid = ClipDataset(['a', 'b', 'c'], {}, dict(mood=np.array([0, 1, 2.]) if numbers else [0, 1, 2]), [task])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, 'FEW', few)
        held = held_out(train, valid)
    fold, labels = held.folds['mood'], held.labels['mood']
    assert labels[len(y):].tolist() == [0, 1, 2] and held.groups == [*train.groups, *valid.groups]
    say = labels[:len(y)] == labels[:len(y)] if numbers else labels[:len(y)] != IGNORE
    assert (fold is None) == (not say.any()) and (labels[:len(y)][say] == y[say]).all()
    if few <= 3: assert fold is None
    elif fold is not None:
        assert all(len({int(fold[i]) for i in range(len(y)) if videos[i] == v}) == 1 for v in set(videos))
        for i in range(len(y)):
            others = y[fold != fold[i]]
            expected = y[i] == y[i] and (~np.isnan(others)).any() if numbers else y[i] != IGNORE and y[i] in others
            assert say[i] == expected


@pytest.mark.parametrize('classes', [2, 3])
def test_no_label_of_a_video_decides_how_its_clips_are_predicted(classes, monkeypatch):
    monkeypatch.setattr(baselines, 'CLASS_WEIGHTS', (None,))
    (X, train), (V, valid), _ = (features(100, i, classes) for i in range(3))
    held = held_out(train, valid)
    def outputs(): return tuned_models([({}, (X, V))], train, held, strengths=(1.,))['funny'].on_held
    before, one = outputs(), held.folds['funny'] == 3
    y = train.labels['funny']
    y[torch.tensor(one) & (y != IGNORE)] = 1
    after = outputs()
    assert np.array_equal(before[:100][one], after[:100][one])
    assert (before[:100][~one] != after[:100][~one]).any(1).all() and (before[100:] != after[100:]).any()


def score_of(y, v, score, classes):
    "A score by its definition; as scikit-learn's, but fast"
    if score == 'accuracy': return (y == v).mean()
    f1 = {c: 2*((y == c) & (v == c)).sum()/((y == c).sum() + (v == c).sum()) for c in np.union1d(y, v)}
    return f1.get(1, 0.) if score == 'f1' and classes == 2 else sum(f1.values())/len(f1)


def test_the_reference_is_that_of_scikit_learn():
    y, v = np.random.default_rng(0).integers(0, 3, (2, 40))
    assert np.isclose(score_of(y, v, 'macro_f1', 3), f1_score(y, v, average='macro'))
    assert np.isclose(score_of(y > 1, v > 1, 'f1', 2), f1_score(y > 1, v > 1))
    assert np.isclose(score_of(y, v, 'accuracy', 3), accuracy_score(y, v))


def test_class_weights_and_penalty_make_a_difference_that_is_chosen():
    "Not always the first setting"
    chosen = set()
    for seed in range(0, 60, 10):
        (X, train), (V, valid), _ = (features(100, seed + i, 3) for i in range(3))
        found = tuned_linear([({}, (X, V, V))], train, valid)
        chosen.add((found.chosen['funny']['C'], found.chosen['funny']['class_weight']))
    assert {w for _, w in chosen} == {None, 'balanced'} and len({C for C, _ in chosen}) > 1


def test_balanced_weights_are_those_of_scikit_learn():
    X, train = features(150, 3)
    y = train.targets('funny').numpy()
    p = fit_linear(X, y, FUNNY, .5, 'balanced')(X)
    model = LogisticRegression(C=.5, class_weight='balanced', max_iter=1000).fit(*known(y, X)[::-1])
    assert np.allclose(p, model.predict_proba(X))
    assert not np.allclose(p, fit_linear(X, y, FUNNY, .5)(X)) and not np.allclose(p, fit_linear(X, y, FUNNY)(X))


@pytest.mark.parametrize('few', [0, 800])
@pytest.mark.parametrize('score', ['macro_f1', 'f1', 'accuracy'])
def test_the_threshold_is_chosen_on_held_out_clips(few, score, monkeypatch):
    monkeypatch.setattr(baselines, 'FEW', few)
    (X, train), (V, valid), _ = (features(100, i) for i in range(3))
    found = tuned_linear([({}, (X, V, V))], train, valid, score)
    held, chosen = held_out(train, valid), found.chosen['funny']
    y, p = by_hand(X, train.targets('funny').numpy(), V, held.labels['funny'], held.folds['funny'], chosen['C'],
                   chosen['class_weight'], 2)
    p = found.temperatures.apply(dict(funny=p))['funny'][:, 1]
    def at(c): return score_of(y, (p >= c).astype(int), score, 2)
    threshold, videos = found.thresholds.values['funny'], np.array(held.groups)[held.labels['funny'] != IGNORE]
    assert threshold == pytest.approx(steady_threshold(p, y, score, videos), abs=1e-6)
    assert found.thresholds.score == score
    assert at(threshold) > max(map(at, [0, *p, 2])) - .1  # what chance allows on 100 clips
    assert (found.predicted['funny'] == (found.probs['funny'][:, 1] >= threshold)).all()


def test_variants_are_chosen_on_held_out_clips():
    (X, train), (V, valid), (T, test) = (features(100, i) for i in range(3))
    noise = [np.random.default_rng(i).normal(size=X.shape) for i in range(3)]
    found = tuned_linear([(dict(kind='noise'), noise), (dict(kind='signal'), (X, V, T))], train, valid)
    assert found.chosen['funny']['kind'] == 'signal'
    same(found, tuned_linear([(dict(kind='signal'), (X, V, T))], train, valid))


def test_without_two_classes_on_validation_the_training_clips_decide():
    (X, train), (V, valid), (T, test) = (features(100, i) for i in range(3))
    valid.labels['funny'][:] = IGNORE
    found = tuned_linear([({}, (X, V, T))], train, valid)
    assert found.thresholds.values['funny'] != .5 and found.chosen['funny']['validation'] > .5
    noise = [np.random.default_rng(i).normal(size=X.shape) for i in range(3)]
    found = tuned_linear([(dict(kind='noise'), noise), (dict(kind='signal'), (X, V, T))], train, valid)
    assert found.chosen['funny']['kind'] == 'signal'


def test_without_two_classes_on_held_out_clips_the_first_setting_is_used(monkeypatch):
    monkeypatch.setattr(baselines, 'FEW', 0)
    (X, train), (V, valid), (T, test) = (features(100, i) for i in range(3))
    for y in (0, IGNORE):
        valid.labels['funny'][:] = y
        found = tuned_linear([({}, (X, V, T))], train, valid)
        assert (found.chosen['funny']['C'], found.chosen['funny']['class_weight']) == (1., None)
        assert found.thresholds.values == dict(funny=.5) and found.thresholds.notes


def test_validation_score_ignores_unlabelled_clips_and_prefers_likelihood_of_equals():
    y, p = np.array([0, 0, 1, 1]), np.array([[.9, .1], [.8, .2], [.3, .7], [.4, .6]])
    sharper = np.array([[.99, .01], [.98, .02], [.03, .97], [.04, .96]])
    assert validation_score(p, y, FUNNY)[0] == validation_score(sharper, y, FUNNY)[0] == 1
    assert validation_score(sharper, y, FUNNY) > validation_score(p, y, FUNNY)
    more = np.r_[p, [[.5, .5]]], np.r_[y, IGNORE]
    assert validation_score(*more, FUNNY) == validation_score(p, y, FUNNY)
    assert criterion_of(Task('a', 3), 'f1') == 'macro_f1' and criterion_of(FUNNY, 'f1') == 'f1'
    assert criterion_of(Task('a', 3), 'accuracy') == 'accuracy'
    with pytest.raises(ValueError, match='unknown operating point'): validation_score(p, y, FUNNY, 'auroc')


def test_a_prediction_does_not_depend_on_the_other_test_clips():
    "So neither vocabulary nor scale nor what is missing is read from them"
    train, valid, test = synthetic_parts(seed=3)
    whole, few = baseline_predictions(train, valid, test), baseline_predictions(train, valid, test.subset(range(7)))
    for name in whole:
        assert whole[name].chosen == few[name].chosen and whole[name].thresholds == few[name].thresholds
        for k, p in few[name].probs.items(): assert np.allclose(whole[name].probs[k][:7], p, atol=1e-9)


def test_standardised_features():
    rng = np.random.default_rng(0)
    a, b = dict(video=rng.normal(3, 5, (500, 8)), audio=rng.normal(size=(500, 2))), dict(
        video=np.full((2, 8), np.nan), audio=np.full((2, 2), 1.))
    a['video'][:3], a['audio'][:, 1] = np.nan, 7.  # a constant column
    x, z = standardised([a, b])
    assert x.shape == (500, 12) and np.isfinite(x).all() and np.isfinite(z).all()
    assert np.allclose((x[3:, :8]**2).sum(1).mean(), 1) and np.allclose(x[:, :8].mean(0), 0)
    assert (x[:3, :8] == 0).all() and x[:4, 8].tolist() == [1, 1, 1, 0] and (x[:, 10] == 0).all()
    assert (z[:, :8] == 0).all() and z[:, 8].tolist() == [1, 1] and z[:, 11].tolist() == [0, 0]


def test_a_modality_that_only_test_clips_lack_or_have():
    def make(k, y, rng):
        video = None if k.startswith('v2') else torch.tensor(rng.normal(size=(3, 2)).astype(np.float32))
        audio = torch.ones(2, 2) if k.startswith('v2') else None
        return text_clip(k, 'film ' + '?!'[y], y=y, video=video, audio=audio)
    parts = three_parts(make)
    found = baseline_predictions(*parts, Tokenizer())
    assert list(found) == [WORDS, FROZEN_TEXTLESS, CONSTANT] and accuracy(found[WORDS], parts[2]) == 1
    assert all(np.isfinite(p.probs['funny']).all() for p in found.values())
    none = parts[2].subset([0, 1])
    none.columns = {}
    assert all(np.isfinite(p.probs['funny']).all()
               for p in baseline_predictions(*parts[:2], none, Tokenizer(), tiny_encoder()).values())


def test_class_frequencies():
    y = dict(train=[0, 0, 0, 1, IGNORE], valid=[0, 1, 1, 1], test=[0, 0])
    train, valid, test = (ClipDataset([f'{k}{i}' for i in range(len(v))], {}, dict(funny=v), [FUNNY])
                          for k, v in y.items())
    found = baseline_predictions(train, valid, test)[CONSTANT]
    assert (found.raw['funny'] == [.75, .25]).all() and found.predicted['funny'].tolist() == [0, 0]
    frequencies, y_valid = dict(funny=np.tile([.75, .25], (4, 1))), dict(funny=np.array(y['valid']))
    fitted = fit_temperatures(frequencies, y_valid, [FUNNY])
    assert found.temperatures == fitted and (found.probs['funny'] == fitted.apply(frequencies)['funny'][:2]).all()
    assert found.thresholds == choose_thresholds(found.temperatures.apply(frequencies), y_valid, [FUNNY], steady=True)
    three = ClipDataset(['a', 'b', 'c'], {}, dict(mood=[2, 2, 0]), [Task('mood', 3)])
    found = baseline_predictions(three, three, three.subset([0]))[CONSTANT]
    assert np.allclose(found.raw['mood'], [[1/3, 0, 2/3]]) and found.predicted['mood'].tolist() == [2]


def test_fit_linear_says_what_is_wrong():
    with pytest.raises(ValueError, match='2 training clips, but 1 targets'): fit_linear(np.eye(2), [1], FUNNY)
    with pytest.raises(ValueError, match="'funny' has no labelled training clip"):
        fit_linear(np.eye(2), [IGNORE]*2, FUNNY)
    assert fit_linear(np.eye(2), [1, IGNORE], FUNNY)(np.eye(3, 2)).tolist() == [[0, 1]]*3


def test_settings_are_plain_values():
    "They are written to metrics.json"
    for p in baseline_predictions(*synthetic_parts((30, 15, 15))).values():
        for chosen in asdict(p)['chosen'].values():
            assert all(v is None or isinstance(v, (str, float)) for v in chosen.values())
    assert set(baselines.STRENGTHS) and baselines.CLASS_WEIGHTS == (None, 'balanced')


def linear_parts(kinds=('a', 'b'), n=(200, 80, 200), regression=False):
    "Clips of two modalities, each of which says a part of the label, and noise by a third name"
    rng, parts = np.random.default_rng(0), []
    for part, size in zip(('train', 'valid', 'test'), n):
        z = rng.standard_normal((size, 2))
        y = z.sum(1) if regression else (z.sum(1) + .5*rng.standard_normal(size) > 0).astype(int)
        clips = []
        for i in range(size):
            x = {m: torch.tensor(v + .1*rng.standard_normal((3, 2)), dtype=torch.float32)
                 for m, v in zip('ab', z[i])}
            x = {m: v for m, v in x.items() if m in kinds}
            if 'noise' in kinds: x['noise'] = torch.tensor(rng.standard_normal((3, 40)), dtype=torch.float32)
            clips.append(Clip(f'{part}{i}', labels=dict(y=float(y[i]) if regression else int(y[i])), **x))
        task = Task('y', kind='regression') if regression else Task('y', 2)
        parts.append(ClipDataset.from_clips(clips, [task]))
    return parts


def late(parts): return baseline_predictions(*parts, models=('late_fusion',))[LATE_FUSION]


def test_late_fusion_knows_what_the_modalities_know_together():
    y = linear_parts()[2].targets('y').numpy()
    right = {k: (late(linear_parts(k)).predicted['y'] == y).mean() for k in (('a',), ('b',), ('a', 'b'))}
    assert right['a', 'b'] > max(right['a',], right['b',]) + .08


def test_a_modality_of_noise_says_little_in_late_fusion():
    y = linear_parts()[2].targets('y').numpy()
    kinds = ('a', 'b', 'noise')
    with_noise = (late(linear_parts(kinds)).predicted['y'] == linear_parts(kinds)[2].targets('y').numpy()).mean()
    assert with_noise > (late(linear_parts()).predicted['y'] == y).mean() - .05


def test_late_fusion_adds_numbers_up():
    both, alone = linear_parts(regression=True), linear_parts(('a',), regression=True)
    y = both[2].targets('y').numpy()
    error = [np.mean((late(o).predicted['y'] - y)**2) for o in (both, alone)]
    assert error[0] < .1 < .8 < error[1]


@pytest.mark.parametrize('features', [False, True])
def test_late_fusion_does_not_tune_the_words_again_where_they_read_the_same(features, monkeypatch):
    parts = synthetic_parts()
    def text_alone(ds):
        labels = {k: v.numpy() for k, v in ds.labels.items()}
        return ClipDataset(ds.ids, dict(text=ds.columns['text']), labels, ds.tasks, ds.groups)
    if not features: parts = [text_alone(o) for o in parts]
    fitted, fit = [], baselines.fit_linear
    monkeypatch.setattr(baselines, 'fit_linear', lambda *args: fitted.append(args) or fit(*args))
    found = {}
    for models in (('words',), ('late_fusion',), ('words', 'late_fusion')):
        fitted.clear()
        found[models] = baseline_predictions(*parts, models=models), len(fitted)
    (words, n), (fused, m), (both, k) = found.values()
    assert k == (n + m if features else n) and n == (m if not features else n)
    for name, alone in ((WORDS, words), (LATE_FUSION, fused)):
        for t in both[name].probs: np.testing.assert_array_equal(both[name].probs[t], alone[name].probs[t])
