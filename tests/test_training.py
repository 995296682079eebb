"""From a trained network to what a run reports: nothing is chosen on test clips, and all models are scored alike."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score

from hiccap import baselines, training
from hiccap.baselines import (CONSTANT, DEEP_ALONE, FINE_TUNED, FROZEN, FROZEN_TEXTLESS, LATE_FUSION, WORDS,
                              Predictions)
from hiccap.checkpoints import save_model
from hiccap.clips import Clip, ClipDataset, as_numpy
from hiccap.encoders import TokensConfig, text_backbone
from hiccap.mean_pooling import MeanPooled
from hiccap.inference import load_run
from hiccap.metrics import Thresholds, choose_thresholds, compare_scores, evaluate
from hiccap.predictions import NETWORK, PROBABILITIES, read_probabilities
from hiccap.reports import comparison_rows, comparison_section, headline, headline_markdown
from hiccap.run_data import read_splits
from hiccap.runs import EARLIER_HEADS, RECIPE_SIZES, RECIPES, SIZES, Network, Run
from hiccap.tasks import IGNORE, Task
from hiccap.temperatures import fit_temperatures
from hiccap.training import (
    HEAD_DROPOUT,
    Fold, FoldRecipe, Predicted, build_model, compare_folds, fit_run, models_of_folds, predict_test, prediction_table,
    probabilities, run_learner, score_folds, starting_encoder, table_of, train_run, without_labels)

BERT = dict(vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
FEATURES = dict(kind='features', hidden=8, layers=1)
SMALL = Run.flat(
    data='synthetic', synthetic=dict(n=140, scale=.1), epochs=1, bs=16, lr=.01, encoder_lr=.01, threads=1,
    config=dict(text=dict(kind='tokens', config=BERT), width=16, heads=2, head_widths=[16],
                video=dict(FEATURES, width=32), audio=dict(FEATURES, width=16)))


def of_two_tasks(ds):
    "The same clips with two tasks"
    return ClipDataset(ds.ids, ds.columns, {k: v.numpy() for k, v in ds.labels.items()}, ds.tasks[:2], ds.groups)


@pytest.fixture(scope='module')
def parts(): return [of_two_tasks(o) for o in read_splits(SMALL.clips, None)[0]]


def with_labels(ds, change):
    "The same clips with other labels"
    return ClipDataset(ds.ids, ds.columns, {k: change(v.numpy()) for k, v in ds.labels.items()}, ds.tasks, ds.groups)


def permuted(y): return np.random.default_rng(0).permutation(y)
def bits(d): return {k: v.tobytes() for k, v in d.items()}


def decided(fold):
    "All that a fold chose and predicted, to the bit"
    return {k: (bits(p.probs), bits(p.predicted), p.thresholds, p.temperatures, getattr(p, 'chosen', None))
            for k, p in fold.models().items()}


def silent(line): pass


class Poisoned(dict):
    "Labels that nobody may read"
    def __getitem__(self, k): raise AssertionError('a label of a test clip was read')
    get = values = items = __iter__ = keys = __getitem__


@pytest.fixture(scope='module')
def fold(parts, tmp_path_factory):
    run = SMALL.but(simple_models='full')
    return FoldRecipe(run, parts, 1, tmp_path_factory.mktemp('fold'), log=silent)()


@pytest.mark.parametrize('labels', ['permuted', 'unknown', 'poisoned'])
def test_nothing_is_chosen_on_test_clips(parts, fold, tmp_path, labels):
    train, valid, test = parts
    test = with_labels(test, permuted if labels == 'permuted' else lambda y: np.full_like(y, IGNORE))
    if labels == 'poisoned': test.labels = Poisoned()
    run = SMALL.but(simple_models='full')
    again = FoldRecipe(run, (train, valid, test), 1, tmp_path, log=silent)()
    assert decided(again) == decided(fold) and again.best == fold.best
    assert list(fold.models()) == [NETWORK, DEEP_ALONE, FINE_TUNED, WORDS, LATE_FUSION, FROZEN_TEXTLESS, CONSTANT]


def test_labels_of_validation_clips_do_choose(parts, fold, tmp_path):
    "The test above would say nothing if no label decided anything"
    train, valid, test = parts
    run = SMALL.but(simple_models=('words', 'late_fusion', 'fine_tuned'))
    again = FoldRecipe(run, (train, with_labels(valid, permuted), test), 1, tmp_path, log=silent)()
    for name in (NETWORK, WORDS, LATE_FUSION, FINE_TUNED):
        for what in ('thresholds', 'temperatures'):
            assert getattr(again.models()[name], what) != getattr(fold.models()[name], what)


@pytest.fixture(scope='module')
def learn(parts, tmp_path_factory):
    model = build_model(SMALL.network, parts[0], 0)
    learn = run_learner(SMALL.training, *parts[:2], model, tmp_path_factory.mktemp('learn'), silent)
    fit_run(learn, SMALL.training)
    return learn


def test_a_run_with_time_masks_keeps_no_epoch_from_before_them(parts, tmp_path):
    model = build_model(SMALL.network, parts[0], 0)
    def after(modalities):
        training = replace(SMALL.training, modalities=modalities)
        return run_learner(training, *parts[:2], model, tmp_path, silent).keep_best.after
    assert after(dict(name='time_masks', after=.2)) == .6 and after('subsets') == after('all') == 0


@pytest.mark.parametrize('score', ['macro_f1', 'f1', 'accuracy', 'precision=0.6', 'recall=0.9', 'cost=5:1'])
def test_thresholds_of_the_network_are_those_of_validation_clips(parts, learn, score):
    found = predict_test(learn, parts, network=SMALL.network,
                         training=replace(SMALL.training, operating_point=score, simple_models=()))
    (p, y), (p_test, y_test) = (probabilities(learn, o) for o in parts[1:])
    fitted = fit_temperatures(p, y, parts[1].tasks, groups=parts[1].groups)
    assert found.temperatures == fitted != fit_temperatures(p_test, y_test, parts[1].tasks, groups=parts[2].groups)
    how = dict(score=score, steady=True, groups=parts[1].groups)
    assert found.thresholds == choose_thresholds(fitted.apply(p), y, parts[1].tasks, **how)
    other = dict(score=score, steady=True, groups=parts[2].groups)
    assert found.thresholds != choose_thresholds(fitted.apply(p_test), y_test, parts[1].tasks, **other)
    assert bits(found.predicted) == bits(found.thresholds.predict(found.probs))
    assert bits(found.raw) == bits(p_test) and bits(found.probs) == bits(fitted.apply(p_test))
    assert found.simple[CONSTANT].thresholds.score == score and found.simple[CONSTANT].temperatures.values
    assert found.sizes == dict(zip(('training', 'validation', 'test'), map(len, parts)))


def test_simple_models_are_tuned_by_the_score_of_the_run(parts, learn, monkeypatch):
    asked = []
    def spy(train, valid, test, tokenizer, encoder, score, models):
        asked.append((train, valid, score, models))
        assert all((y == IGNORE).all() for y in test.labels.values())
        return {}
    monkeypatch.setattr(training, 'baseline_predictions', spy)
    t = replace(SMALL.training, operating_point='accuracy', simple_models=('words',))
    predict_test(learn, parts, training=t)
    assert asked == [(parts[0], parts[1], 'accuracy', ('words',))]


def test_clips_without_labels_are_the_same_clips(parts):
    ds = without_labels(parts[2])
    for k in ('ids', 'groups', 'tasks', 'columns'): assert getattr(ds, k) == getattr(parts[2], k)
    assert all((y == IGNORE).all() for y in ds.labels.values())


# scoring

TASKS = Task('funny', classes=('no', 'yes')), Task('mood', 3, classes=('sad', 'calm', 'glad'))


def made_up(number, n=120):
    "Random predictions of a network and of two simple models for clips of thirty videos"
    rng = np.random.default_rng(number)
    labels = {t.name: np.where(rng.random(n) < .1, IGNORE, rng.integers(0, t.n_classes, n)) for t in TASKS}
    test = ClipDataset([f'film{number}{i//4}_{i % 4}' for i in range(n)], {}, labels, TASKS)
    def model(sharp, cut):
        probs = {t.name: np.exp(sharp*(labels[t.name][:, None] == np.arange(t.n_classes))
                                + rng.normal(size=(n, t.n_classes))) for t in TASKS}
        probs = {k: p/p.sum(1, keepdims=True) for k, p in probs.items()}
        thresholds = Thresholds(dict(funny=cut), 'validation data', (), 'macro_f1')
        return Predictions(probs, thresholds.predict(probs), thresholds)
    network, simple = model(1.5, .3 + .2*number), {WORDS: model(.7, .6), CONSTANT: model(0, .5)}
    return Predicted(test, network.probs, network.predicted, network.thresholds, simple, {})


FOLDS = made_up(0), made_up(1)


def joined(name, task):
    "Labels and predicted classes of the labelled clips of both folds"
    y, v = (np.concatenate(o) for o in zip(*((f.test.targets(task).numpy(), f.models()[name].predicted[task])
                                             for f in FOLDS)))
    return y[y != IGNORE], v[y != IGNORE]


@pytest.mark.parametrize('name', [NETWORK, WORDS, CONSTANT])
def test_all_models_are_scored_alike_with_intervals(name):
    scores, others = score_folds(FOLDS, n_boot=200)
    s = {NETWORK: scores, **others}[name]
    assert list(others) == [WORDS, CONSTANT] and s.n_groups == 60
    for t in TASKS:
        y, v = joined(name, t.name)
        assert np.isclose(s.tasks[t.name].scores['macro_f1'], f1_score(y, v, average='macro'))
        assert s.tasks[t.name].n == len(y)
        low, high = s.tasks[t.name].intervals['macro_f1']
        assert low < s.tasks[t.name].scores['macro_f1'] < high
    one = score_folds(FOLDS[:1], n_boot=200)
    groups, y = FOLDS[0].test.groups, as_numpy(FOLDS[0].test.labels)
    p = FOLDS[0].models()[name]
    alone = evaluate(p.probs, y, TASKS, p.thresholds, p.predicted, groups, 200)
    assert json.dumps({NETWORK: one[0], **one[1]}[name].to_dict()) == json.dumps(alone.to_dict())  # NaN equals NaN


@pytest.mark.parametrize('score', ['macro_f1', 'f1', 'accuracy'])
def test_differences_are_paired_by_video(score):
    found, f = compare_folds(FOLDS[:1], score, 200), FOLDS[0]
    y = as_numpy(f.test.labels)
    scores, others = score_folds(FOLDS[:1], n_boot=0)
    for name in (WORDS, CONSTANT):
        for t in TASKS:
            d, k = found[name][t.name], 'macro_f1' if score == 'f1' and t.n_classes > 2 else score
            expected = compare_scores(f.predicted, f.simple[name].predicted, y, [t], f.test.groups, k, 200)[t.name]
            assert {i: d[i] for i in expected} == expected and d['score'] == k
            assert np.isclose(d['difference'],
                              scores.tasks[t.name].scores[k] - others[name].tasks[t.name].scores[k])
            by_row = compare_scores(f.predicted, f.simple[name].predicted, y, [t], None, k, 200)[t.name]
            assert (by_row['low'], by_row['high']) != (d['low'], d['high'])


def test_differences_of_several_folds():
    found, (scores, others) = compare_folds(FOLDS, n_boot=50), score_folds(FOLDS, n_boot=0)
    for name, of in found.items():
        for t, d in of.items():
            a, b = (o.tasks[t].scores['macro_f1'] for o in (scores, others[name]))
            assert np.isclose(d['difference'], a - b)


def test_a_model_that_some_fold_lacks_is_not_scored():
    first, second = made_up(0), made_up(1)
    del second.simple[WORDS]
    assert list(models_of_folds([first, second])) == [NETWORK, CONSTANT]


def test_thresholds_of_several_folds_are_those_of_each():
    a, b = (replace(o, thresholds=replace(o.thresholds, notes=(n,))) for o, n in zip(FOLDS, ('one', 'two')))
    found = score_folds([a, b], n_boot=0)[0].thresholds
    assert (found.values, found.notes, found.score) == ({}, ('one', 'two'), 'macro_f1')
    assert 'each fold' in found.source and score_folds([a], n_boot=0)[0].thresholds == a.thresholds


def test_the_table_of_predictions():
    ids, truth = ['a', 'b'], dict(funny=[1, IGNORE], mood=[2, 0])
    probs = dict(funny=np.array([[.4, .6], [.9, .1]]), mood=np.array([[.2, .5, .3], [.7, .2, .1]]))
    table = prediction_table(ids, probs, dict(funny=[0, 0], mood=[1, 0]), TASKS, truth)
    assert table.values.tolist() == [
        ['a', 'funny', .6, 'no', 'yes'], ['a', 'mood', .5, 'calm', 'glad'],
        ['b', 'funny', .1, 'no', ''], ['b', 'mood', .7, 'sad', 'sad']]
    f = FOLDS[0]
    table = table_of(f)
    assert table[table.task == 'funny'].probability.tolist() == f.probs['funny'][:, 1].round(6).tolist()


def test_reports_show_every_model_with_interval_and_difference():
    scores, others = score_folds(FOLDS, n_boot=100)
    differences = compare_folds(FOLDS, n_boot=100)
    rows = comparison_rows(scores, others, differences)
    assert [(r['task'], r['model']) for r in rows] == [(t.name, m) for t in TASKS for m in (NETWORK, WORDS, CONSTANT)]
    for r in rows:
        s = {NETWORK: scores, **others}[r['model']].tasks[r['task']]
        assert (r['score'], r['value'], r['interval']) == ('macro_f1', s.scores['macro_f1'], s.intervals['macro_f1'])
        if r['model'] != NETWORK: assert r['difference'] == differences[r['model']][r['task']]['difference']
    text = comparison_section(rows)[1]
    d = differences[WORDS]['mood']
    assert f"{d['difference']:+.3f} ({d['low']:+.3f} – {d['high']:+.3f})" in text
    table = headline(scores, others)
    assert CONSTANT not in table[0] and table[0]['intervals'] == {WORDS: others[WORDS].tasks['funny'].intervals['f1']}
    low, high = table[0]['intervals'][WORDS]
    assert f'{table[0][WORDS]:.2f} ({low:.2f}–{high:.2f})' in headline_markdown(table)


# what a run writes

@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')/'run'
    run = SMALL.but(folds=2, synthetic=dict(n=100, scale=.1), simple_models=('words',), operating_point='accuracy')
    result = train_run(run, folder, write=silent)
    return folder, result


def test_probabilities_of_all_models_are_kept(finished):
    folder, result = finished
    kept = read_probabilities(folder)
    assert list(kept) == [NETWORK, DEEP_ALONE, WORDS, CONSTANT]
    for name, of in kept.items():
        for t, p in of.items():
            parts = [(f.models()[name], f.test) for f in result.folds]
            assert np.allclose(p.probs, np.concatenate([m.probs[t] for m, _ in parts]), rtol=1e-8)
            assert p.predicted.tolist() == np.concatenate([m.predicted[t] for m, _ in parts]).tolist()
            assert p.truth.tolist() == np.concatenate([o.targets(t).numpy() for _, o in parts]).tolist()
            assert p.clips == sum((o.ids for _, o in parts), []) and p.videos == sum((o.groups for _, o in parts), [])
    table = pd.read_csv(folder/PROBABILITIES)
    assert table.columns.tolist()[:6] == ['model', 'clip', 'video', 'task', 'truth', 'predicted']
    assert set(table.fold) == {1, 2}
    raw = table[(table.model == NETWORK) & (table.task == 'said')][['raw0', 'raw1']].to_numpy(np.float32)
    assert (raw == np.concatenate([f.raw['said'] for f in result.folds])).all()


def test_kept_predictions_give_the_reported_scores_and_differences(finished):
    folder, result = finished
    metrics, kept = json.loads((folder/'metrics.json').read_text()), read_probabilities(folder)
    network, words = kept[NETWORK]['said'], kept[WORDS]['said']
    found = compare_scores(dict(said=network.predicted), dict(said=words.predicted), dict(said=network.truth),
                           [Task('said')], network.videos, 'accuracy')['said']
    d = metrics['differences'][WORDS]['said']
    for k in ('difference', 'low', 'high'): assert d[k] == pytest.approx(found[k])
    assert d['score'] == 'accuracy'
    assert set(metrics['beside']) == {DEEP_ALONE, WORDS, CONSTANT, 'best possible'} and len(metrics['simple']) == 2
    for chosen, f in zip(metrics['simple'], result.folds): assert chosen[WORDS] == f.simple[WORDS].chosen
    report = (folder/'report.md').read_text()
    assert f"{d['difference']:+.3f} ({d['low']:+.3f} – {d['high']:+.3f})" in report


def test_a_fold_that_an_earlier_version_finished_is_read(fold, parts):
    state = fold.state()
    plain = {'TF-IDF + logistic regression': [fold.probs, fold.predicted]}
    old = {k: v for k, v in state.items() if k != 'simple'} | dict(plain=plain)
    read = Fold.from_state(old, parts[2])
    assert list(read.simple) == list(plain) and read.simple[next(iter(plain))].probs is fold.probs
    again = Fold.from_state(state, parts[2])
    assert decided(again) == decided(fold)


# the text encoder of the frozen features

def test_the_encoder_as_training_starts(parts, tmp_path):
    assert starting_encoder(SMALL.network, parts[0]) is None
    torch.manual_seed(5)
    text_backbone(TokensConfig(BERT)).save_pretrained(tmp_path/'bert')
    config = {k: v for k, v in SMALL.network.config.items() if k != 'text'}
    named = replace(SMALL.network, config=config, encoder=str(tmp_path/'bert'))
    weights = replace(SMALL.network, config=config | dict(text=dict(kind='tokens', weights=str(tmp_path/'bert'))))
    save_model(build_model(named, parts[0], 7), tmp_path/'model')
    init = replace(SMALL.network, init=str(tmp_path/'model'))
    expected = text_backbone(TokensConfig(weights=str(tmp_path/'bert'))).state_dict()
    for network in (named, weights, init):
        encoder = starting_encoder(network, parts[0])
        assert not encoder.training
        for k, v in encoder.backbone.state_dict().items(): assert torch.equal(v, expected[k])
    other = replace(SMALL.network, init=str(tmp_path/'model'), config=SMALL.network.config | dict(
        text=dict(kind='tokens', config=BERT | dict(num_hidden_layers=2))))
    assert starting_encoder(other, parts[0]) is None  # a layer of it is random


def test_frozen_features_are_those_before_training(parts, tmp_path):
    torch.manual_seed(5)
    text_backbone(TokensConfig(BERT)).save_pretrained(tmp_path/'bert')
    config = {k: v for k, v in SMALL.network.config.items() if k != 'text'}
    run = SMALL.but(encoder=str(tmp_path/'bert'), config=config, simple_models=('frozen',))
    one, two = (FoldRecipe(run.but(epochs=n), parts, 1, tmp_path/str(n), log=silent)() for n in (1, 2))
    assert bits(one.probs) != bits(two.probs) and bits(one.simple[FROZEN].probs) == bits(two.simple[FROZEN].probs)


# the fine-tuned simple model

def test_the_simple_model_is_trained_as_the_network(parts, tmp_path, monkeypatch):
    asked = []
    def spy(t, train, valid, model, *args):
        words = model.encoders['text'].backbone.get_input_embeddings().weight.detach().clone()
        asked.append((t, train, valid, type(model), words))
        return run_learner(t, train, valid, model, *args)
    monkeypatch.setattr(training, 'run_learner', spy)
    run = SMALL.but(simple_models=('fine_tuned',), affinity=2, weighting='gradnorm')
    found = FoldRecipe(run, parts, 1, tmp_path, log=silent)()
    (t, *network), (t2, *simple) = asked
    assert t2 == replace(t, affinity=0) and network[:2] == simple[:2] and simple[2] is MeanPooled
    assert torch.equal(network[3], simple[3]) and found.simple[FINE_TUNED].chosen['said']['epoch'] == 0


def test_a_run_that_is_killed_in_its_simple_model_resumes(tmp_path):
    run = SMALL.but(epochs=2, checkpoint_every=0, simple_models=('fine_tuned',), synthetic=dict(n=60, scale=.1))
    train_run(run, tmp_path/'whole', write=silent)
    seen = []
    def stop(line):
        seen.append(line)
        if FINE_TUNED in ''.join(seen) and 'epoch 2/2' in line: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train_run(run, tmp_path/'cut', write=stop)
    lines = []
    train_run(run, tmp_path/'cut', write=lines.append, resume=True)
    assert any('epochs are done' in o for o in lines)              # the network
    assert any('after step' in o and 'epoch 2' in o for o in lines) # the simple model
    for name in (PROBABILITIES, 'history.csv', 'model/model.safetensors'):
        assert (tmp_path/'cut'/name).read_bytes() == (tmp_path/'whole'/name).read_bytes()


def test_a_resumed_run_keeps_the_recipe_that_it_began_with(tmp_path, monkeypatch):
    run = SMALL.but(epochs=None, bs=None, lr=None, encoder_lr=None, checkpoint_every=0, simple_models=(),
                    synthetic=dict(n=60, scale=.1))
    recipe = dict(epochs=2, bs=32, lr=1e-3, encoder_lr=1e-3)
    monkeypatch.setitem(RECIPES, 'small', recipe)
    def stop(line):
        if 'epoch 1/2' in line: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train_run(run, tmp_path/'run', write=stop)
    monkeypatch.setitem(RECIPES, 'small', recipe | dict(epochs=3, bs=16))  # that of another version
    train_run(run, tmp_path/'run', write=silent, resume=True)
    assert json.loads((tmp_path/'run'/'config.json').read_text())['used'] == recipe | dict(size='small')
    assert pd.read_csv(tmp_path/'run'/'history.csv').epoch.nunique() == 2


def test_a_run_whose_validation_has_no_score_is_finished(tmp_path, monkeypatch):
    "One validation clip with a number has no correlation, so no epoch is the best"
    monkeypatch.setattr(baselines, 'FEW', 0)  # training clips have no say, or there would be one
    run = SMALL.but(epochs=1, synthetic=dict(n=24, scale=.1, per_video=1, level=.5), valid_share=.1)
    with pytest.warns(UserWarning, match='no best one'): train_run(run, tmp_path/'run', write=silent)
    metrics = json.loads((tmp_path/'run'/'metrics.json').read_text())
    assert metrics['clips'][0]['validation'] == 2 and metrics['kept'][0]['score'] is None
    assert metrics['simple'][0][WORDS]['level']['validation'] is None


def test_a_frozen_encoder_is_not_fine_tuned(tmp_path):
    with pytest.raises(ValueError, match='leave one of the two out'):
        train_run(SMALL.but(freeze_text=True, simple_models=('fine_tuned',)), tmp_path/'run', write=silent)


def test_a_run_has_one_hidden_layer_and_standardised_features_unless_it_starts_from_other_weights(tmp_path):
    rng = np.random.default_rng(0)
    clips = [Clip(f'v{i}_0', face=(rng.normal(size=(3, 5))*40 + 7).astype('float32'), labels=dict(a=i % 2))
             for i in range(8)]
    ds = ClipDataset.from_clips(clips, [Task('a')])
    small = dict(width=16, heads=2, modalities=dict(face=dict(kind='features', width=5, hidden=4, layers=1)))
    model = build_model(Network(config=small), ds, verbose=False)
    assert (model.config.head_widths, model.config.head_dropout) == ((16,), HEAD_DROPOUT)
    found = torch.cat([model.encoders['face'].standardise(c.face) for c in ds])
    assert found.mean().abs() < .01 and abs(found.std() - 1) < .05
    as_before = build_model(Network(config=small | EARLIER_HEADS, standardise='none'), ds, verbose=False)
    assert as_before.config.head_widths == (200, 40) and as_before.encoders['face'].standardise is None
    save_model(as_before, tmp_path/'model')
    again = build_model(Network(init=str(tmp_path/'model')), ds, verbose=False)
    assert again.config.head_widths == (200, 40) and again.encoders['face'].standardise is None


def vectors(n):
    "Clips of two modalities of vectors"
    rng = np.random.default_rng(0)
    return ClipDataset.from_clips([Clip(f'c{i}', face=rng.normal(size=(3, 4)).astype(np.float32),
                                        sound=rng.normal(size=(2, 5)).astype(np.float32), labels=dict(y=i%2))
                                   for i in range(n)], [Task('y')])


def shape(model): return model.config.width, {m: (e.hidden, e.layers) for m, e in model.config.modalities.items()}


def test_the_size_of_a_network_of_vectors_follows_from_the_number_of_clips():
    few, many = vectors(10), vectors(1000)
    assert shape(build_model(Network(), few)) == (96, dict(face=(64, 1), sound=(64, 1)))
    assert shape(build_model(Network(), many)) == (192, dict(face=(128, 1), sound=(128, 1)))
    assert shape(build_model(Network(), [few, vectors(990)]))[0] == 192  # several data sets count together
    assert shape(build_model(Network(size='medium'), few)) == shape(build_model(Network(), many))
    given = dict(width=24, modalities=dict(face=dict(kind='features', width=4, hidden=5, layers=2)))
    assert shape(build_model(Network(config=given), few)) == (24, dict(face=(5, 2), sound=(64, 1)))
    assert shape(build_model(Network(config=dict(heads=64)), few))[0] == 768  # 96 cannot be divided by it


def test_a_network_that_reads_text_has_the_size_of_its_encoder(parts):
    config = {k: v for k, v in SMALL.network.config.items() if k not in ('width', 'video', 'audio')}
    few = build_model(replace(SMALL.network, config=config), parts[0])
    assert few.config.width == 768 and few.config.video.hidden == 512


@pytest.mark.parametrize('begun', ['small', None])
def test_a_resumed_run_keeps_the_size_that_it_began_with(tmp_path, monkeypatch, begun):
    "A run of an earlier version does not say which it has: all had the large one"
    ds = vectors(60)
    (tmp_path/'face').mkdir()
    for i, id in enumerate(ds.ids): np.save(tmp_path/'face'/f'{id}.npy', ds.columns['face'][i].numpy())
    pd.DataFrame(dict(id=ds.ids, y=ds.targets('y').numpy())).to_csv(tmp_path/'clips.csv', index=False)
    run = Run.flat(data=str(tmp_path/'clips.csv'), labels=('y',), features=(f"face={tmp_path/'face'}",), epochs=2,
                   threads=1, simple_models=(), bs=16, lr=1e-3, encoder_lr=1e-3, checkpoint_every=0)
    def stop(line):
        if 'epoch 1/2' in line: raise KeyboardInterrupt
    monkeypatch.setitem(SIZES, 'large', dict(width=48, hidden=8, layers=2))
    first = run if begun else run.but(size='large')
    with pytest.raises(KeyboardInterrupt): train_run(first, tmp_path/'run', write=stop)
    config, = tmp_path.glob('*run*/config.json')
    kept = json.loads(config.read_text())
    assert kept['used']['size'] == (begun or 'large')
    if not begun: del kept['used']['size'], kept['run']['network']['size']
    config.write_text(json.dumps(kept))
    monkeypatch.setitem(RECIPE_SIZES, 'small', 10)  # those of another version
    train_run(first, tmp_path/'run', write=silent, resume=True)
    assert load_run(tmp_path/'run').models[0].config.width == (96 if begun else 48)
