"""Moments: hidden spans are spans that the clip does not have, contributions find evidence that is known, and words,
seconds and clips without anything are as they should be."""
import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.special import softmax

from conftest import TINY_NETWORK
from hiccap.cli import train
from hiccap.clips import Clip, ClipDataset, DataError
from hiccap.encoders import FeaturesConfig, TokensConfig
from hiccap.faithfulness import (EVIDENCE_TASKS, EVIDENCE_WIDTHS, MEASURES, ORDERS, SHARES, Faithfulness, clip_curves,
                                 curve_measures, evidence_clips, evidence_found, measure_faithfulness, versions_along)
from hiccap.inference import load_run
from hiccap.learner import clip_dls, hiccap_learner
from hiccap.metrics import Thresholds
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.moments import (MOST_SPANS, Speller, check_explainable, clip_inputs, explain_versions, kept_logits,
                            log_odds, mean_log_probabilities, spans_of, versions_of)
from hiccap.modalities import ShowModalities
from hiccap.padding import collate
from hiccap.synthetic import FIRST_WORD, synthetic_clips, synthetic_tokenizer, text_of, write_synthetic
from hiccap.statistics import MIN_VIDEOS, MIN_VIDEOS_DIFFERENCE
from hiccap.tasks import Task
from test_any_modalities import TASKS, cases, designs, modality_sets, network, values

FIXED = Thresholds({}, 'fixed')
NUMBER = Task('n', kind='regression')


def cut(clip, keep):
    "The clip with only the positions of `keep`, modality -> (L,) bool"
    has = {m: x for m, k in keep.items() if (x := getattr(clip, m, None)) is not None and k.any()}
    more = dict(segments=clip.segments[keep['text']]) if clip.segments is not None and 'text' in has else {}
    return Clip('cut', **{m: x[torch.as_tensor(keep[m])] for m, x in has.items()}, **more)


def outputs(model, clip):
    "What the network says of a clip on its own"
    with torch.inference_mode(): return model.eval()(collate([clip], (), modalities=model.modalities)[0])


WITH_CAPTIONS = cases(st.just((('text', 0), ('face', 3))))


@given(st.data(), cases() | WITH_CAPTIONS, designs)
def test_hidden_positions_are_positions_that_the_clip_does_not_have(data, case, design):
    kinds, clips = case
    model, clip, R = network(kinds, *design).eval(), clips[0], 3
    lengths = {m: 0 if (x := getattr(clip, m, None)) is None else len(x) for m, _ in kinds}
    keep = {m: np.array(data.draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=R, max_size=R)),
                        bool).reshape(R, n) for m, n in lengths.items()}
    found = kept_logits(model, clip_inputs(clip, model), keep)
    for r in range(R):
        expected = outputs(model, cut(clip, {m: k[r] for m, k in keep.items()}))
        for t in TASKS: np.testing.assert_allclose(found[t.name][r], expected[t.name][0], atol=1e-5, rtol=1e-5)


@given(cases(), designs)
def test_a_removed_span_is_cut_out_and_a_kept_one_is_all_that_is_left(case, design):
    kinds, clips = case
    model, clip = network(kinds, *design).eval(), clips[0]
    v = versions_of(clip, [model])
    e = explain_versions(v, FIXED)
    def odds(keep, t):
        z = outputs(model, cut(clip, keep))[t.name].double().numpy()
        return log_odds(np.log(softmax(z, 1)), e.explained[t.name])[0]
    whole = {m: np.ones(len(getattr(clip, m)), bool) for m in e.spans}
    none = {m: ~k for m, k in whole.items()}
    for t in TASKS:
        expected = softmax(outputs(model, clip)[t.name][0].double())
        np.testing.assert_allclose(e.probabilities[t.name], expected, atol=1e-6)
        for m, spans in e.spans.items():
            for (a, b), value in zip(spans.positions, e.contributions[t.name][m]):
                one = np.zeros(len(whole[m]), bool)
                one[a:b] = True
                removed, alone = {**whole, m: ~one}, {**none, m: one}
                by_cutting = (odds(whole, t) - odds(removed, t) + odds(alone, t) - odds(none, t))/2
                assert abs(by_cutting - value) < 2e-5


@given(cases(modality_sets.filter(lambda kinds: any(w == 0 for _, w in kinds))), st.booleans())
def test_special_tokens_stay_as_long_as_their_text_has_a_word(case, late):
    kinds, clips = case
    v = versions_of(clips[0], [network(kinds, late_fusion=late).eval()], None, Speller(Special()))
    S = sum(map(len, v.spans.values()))
    keep = v.kept(np.concatenate([np.ones((1, S), bool), np.zeros((1, S), bool), ~np.eye(S, dtype=bool)]))
    for m, spans in v.spans.items():
        in_span = np.zeros(keep[m].shape[1], bool)
        for a, b in spans.positions: in_span[a:b] = True
        ids = getattr(clips[0], m)
        words = [i for i in ids.tolist() if i > 3] if ids.ndim == 1 else []
        if words: assert (in_span == (ids.numpy() > 3)).all() and len(spans) == len(words)
        else: assert in_span.all()
        assert keep[m][0].all() and not keep[m][1].any()
        assert (keep[m][2:, ~in_span] == keep[m][2:, in_span].any(1, keepdims=True)).all()


class Special:
    "A tokenizer whose ids up to 3 are special tokens"
    all_special_ids, unk_token_id = [0, 1, 2, 3], None
    def get_vocab(self): return {}
    def convert_ids_to_tokens(self, ids): return [f'w{i}' for i in ids]
    def convert_tokens_to_string(self, pieces): return ''.join(pieces)


@given(st.integers(1, 400), st.floats(.01, 3), st.floats(.05, 5), st.integers(1, 80), st.integers(0, 99))
def test_spans_of_seconds_cover_all_positions_once_in_order(n, step, seconds, most, seed):
    rng = np.random.default_rng(seed)
    start = np.cumsum(rng.random(n)*step) + rng.random()*50
    spans = spans_of(torch.zeros(n, 2), np.stack([start, start + rng.random(n)], 1), None, seconds, most)
    assert [i for a, b in spans.positions for i in range(a, b)] == list(range(n))
    assert len(spans) <= most
    for (a, b), (x, y) in zip(spans.positions, spans.seconds):
        assert x == start[a:b].min() and y >= start[b - 1]
    even = spans_of(torch.zeros(n, 2), None, None, seconds, most)
    assert [i for a, b in even.positions for i in range(a, b)] == list(range(n)) and len(even) == min(n, most)
    sizes = [b - a for a, b in even.positions]
    assert max(sizes) - min(sizes) <= 1


def test_word_pieces_are_one_span_and_keep_their_seconds():
    tokenizer = synthetic_tokenizer()
    ids = torch.tensor(tokenizer('the silly dog', 'a king')['input_ids'])
    times = np.arange(len(ids))[:, None]*.5 + [0, .4]
    found = spans_of(ids, times, Speller(tokenizer))
    assert found.words == ['the', 'silly', 'dog', '[UNK]', 'king']
    assert found.positions == [(1, 2), (2, 3), (3, 4), (5, 6), (6, 7)]
    np.testing.assert_allclose(found.seconds, times[[1, 2, 3, 5, 6]])
    long = torch.tensor(tokenizer(' '.join(['the silly dog']*100))['input_ids'])
    found = spans_of(long, None, Speller(tokenizer))
    assert len(found) == MOST_SPANS and found.words[0] == 'the silly dog the silly'
    assert found.positions[0][0] == 1 and found.positions[-1][1] == len(long) - 1


@pytest.mark.parametrize('pieces, words', [
    (['<s>', '▁fun', 'ny', '▁dog', '</s>'], ['funny', 'dog']),
    (['<s>', 'ĠA', 'bout', 'Ġdog', '</s>'], ['About', 'dog']),
    (['<s>', 'play', '##ing', '.', '</s>'], ['playing', '.'])])
def test_words_of_other_vocabularies(pieces, words):
    class Tokenizer:
        all_special_ids, unk_token_id = [0, len(pieces) - 1], None
        def get_vocab(self): return {w: i for i, w in enumerate(pieces)}
        def convert_ids_to_tokens(self, ids): return [pieces[i] for i in ids]
        def convert_tokens_to_string(self, o): return ''.join(o).replace('##', '').strip('▁Ġ')
    assert [w for _, w in Speller(Tokenizer()).words(range(len(pieces)))] == words


def both_kinds(seed=0, tasks=(Task('a'), Task('b', 3), NUMBER)):
    "A network of text and vectors for a task of two classes, one of three, and a number"
    bert = dict(vocab_size=200, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config = HICCAPConfig(modalities=dict(text=TokensConfig(bert), face=FeaturesConfig(3, 4, 1)), width=8, heads=2,
                          head_widths=(8,))
    return HICCAP(config, tasks, seed=seed).eval()


def some_clip(seed=0, n=6):
    g = torch.Generator().manual_seed(seed)
    return Clip('c', text=torch.randint(104, 200, (n,), generator=g), face=values(n, 3, g))


def test_folds_temperatures_and_kinds_of_tasks():
    models, temperatures = [both_kinds(0), both_kinds(1)], [dict(a=2., b=.5), dict(a=1., b=3.)]
    clip = some_clip()
    e = explain_versions(versions_of(clip, models, temperatures), FIXED, attention=True)
    z = [outputs(o, clip) for o in models]
    for k in 'ab':
        p = np.mean([softmax(o[k][0].double().numpy()/t[k]) for o, t in zip(z, temperatures)], 0)
        np.testing.assert_allclose(e.probabilities[k], p, atol=1e-6)
    np.testing.assert_allclose(e.probabilities['n'], np.mean([o['n'][0] for o in z], 0), atol=1e-6)
    assert e.explained == dict(a=1, b=int(e.probabilities['b'].argmax()), n=None)
    assert e.predicted['n'] == e.probabilities['n'][0]
    for m in ('text', 'face'): assert abs(e.attention[m].sum() - 1) < 1e-6
    assert [o.contribution for o in e.moments('n')] == sorted(e.all_contributions('n'), key=lambda v: -abs(v))
    with pytest.raises(ValueError, match='choice of task'): explain_versions(versions_of(clip, models), FIXED, 'c')


def test_the_top_moments_are_those_for_the_predicted_class():
    model, found = both_kinds(2), 0
    for seed in range(6):
        v = versions_of(some_clip(seed), [model])
        e = explain_versions(v, Thresholds(dict(a=.5), 'fixed'))
        for t in ('a', 'b', 'n'):
            signed = e.all_contributions(t)*e.side(t)
            top = [i for i in np.argsort(-signed)[:3] if signed[i] > 0]
            keep = np.ones((1, len(signed)), bool)
            keep[0, top] = False
            out = v.answers(keep)[t][0]
            np.testing.assert_allclose(e.without_top[t], out if t == 'n' else np.exp(out), atol=1e-6)
            found += e.side(t) == -1
    assert found  # some clip is predicted as 0 of `a`


def test_a_clip_without_any_modality_has_the_prior_and_says_so():
    model = both_kinds()
    e = explain_versions(versions_of(Clip('empty', text=None, face=None), [model]), FIXED, attention=True)
    prior = explain_versions(versions_of(some_clip(), [model]), FIXED).prior
    for t in ('a', 'b', 'n'):
        assert e.moments(t) == [] and e.contributions[t] == {}
        for p in (e.probabilities, e.without_top, e.prior): np.testing.assert_allclose(p[t], prior[t], atol=1e-6)
    assert 'its prediction is the prior' in repr(e) and 'its prediction is the prior' in e._repr_html_()
    with pytest.raises(ValueError, match='nothing to plot'): e.plot('a')


def test_log_odds_are_finite_where_probabilities_are_0_and_1():
    log_p = mean_log_probabilities([np.array([[0., 900.]]), np.array([[0., 800.]])], [1., 1.])
    for c, sign in ((1, 1), (0, -1)): assert log_odds(log_p, c) == pytest.approx(sign*(800 + np.log(2)))


def test_what_has_no_moments():
    for quirk in ('soft_mask', 'read_padding', 'recur_padding', 'pool_padding'):
        model = HICCAP(HICCAPConfig.tiny(modalities=dict(face=3), **{quirk: True}), [Task('a')])
        with pytest.raises(ValueError, match=quirk): check_explainable(model)
    with pytest.raises(ValueError, match='this network reads text, face'):
        versions = versions_of(Clip('c', sound=torch.zeros(3, 2)), [both_kinds()])
        explain_versions(versions, FIXED)
    with pytest.raises(ValueError, match='above 0 seconds'): versions_of(some_clip(), [both_kinds()], seconds=0)


def test_markup_in_words_and_ids_is_escaped():
    class Markup(Special):
        def convert_ids_to_tokens(self, ids): return ['<script>']*len(ids)
    e = explain_versions(versions_of(some_clip(), [both_kinds()], None, Speller(Markup())), FIXED)
    e.clip = '<b>"x"</b>'
    page = e._repr_html_()
    assert '<script>' not in page and '<b>' not in page and '&lt;script&gt;' in page


# Evidence that is known


def trained_on_evidence(n=2000, epochs=12, width=32):
    "A network of the evidence tasks, with random time masks in the second half of its training"
    bert = dict(vocab_size=FIRST_WORD + 100, hidden_size=width, num_hidden_layers=1, num_attention_heads=2,
                intermediate_size=2*width, hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
    calm = dict(dropout=0., attention_dropout=0., state_dropout=0., head_dropout=0.)
    encoders = dict(text=TokensConfig(bert), **{m: FeaturesConfig(w, width//2, 1) for m, w in EVIDENCE_WIDTHS.items()})
    model = HICCAP(HICCAPConfig(modalities=encoders, width=width, heads=2, head_widths=(width,), **calm),
                   EVIDENCE_TASKS, seed=0)
    train, valid = (ClipDataset.from_clips([o.clip for o in evidence_clips(size, seed, 6)], EVIDENCE_TASKS)
                    for size, seed in ((n, 1), (64, 2)))
    learn = hiccap_learner(clip_dls(train, valid, 64, device='cpu'), model, metrics=[],
                           cbs=[ShowModalities('time_masks', 0)])
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 3e-3)
    return model.eval()


@pytest.fixture(scope='module')
def evidence_network(): return trained_on_evidence()


def explain_evidence(model, clip, **kwargs):
    half = Thresholds({t.name: .5 for t in EVIDENCE_TASKS}, 'fixed')
    return explain_versions(versions_of(clip, [model], None, Speller(synthetic_tokenizer())), half, **kwargs)


def test_the_evidence_is_the_first_moment(evidence_network):
    "Once, twice, in two modalities of which each alone says nothing, and where it speaks against the label"
    found = pd.DataFrame([evidence_found(explain_evidence(evidence_network, o.clip), o)
                          for o in evidence_clips(150, 3, 6)]).mean()
    assert set(found.index) == {'once', 'twice', 'together', 'weighed', 'together, both', 'weighed, stronger',
                                'weighed, against it'}
    assert (found >= .95).all(), found


def test_contributions_beat_chance_and_attention_on_evidence(evidence_network):
    ds = ClipDataset.from_clips([o.clip for o in evidence_clips(40, 4, 6)], EVIDENCE_TASKS)
    half, speller = Thresholds({t.name: .5 for t in EVIDENCE_TASKS}, 'fixed'), Speller(synthetic_tokenizer())
    def measure(seed): return measure_faithfulness(
        ds, lambda clip: versions_of(clip, [evidence_network], None, speller), half, 30, 3, seed)
    found, again, other = measure(0), measure(0), measure(1)
    assert found.ids == again.ids != other.ids and len(found.ids) == 30 and found.of == 40
    table = found.table()
    pd.testing.assert_frame_equal(table, again.table())
    gains = table[(table.task == 'all') & (table.order != 'contributions')]
    assert len(gains) == 8 and (gains.gain_low > 0).all(), gains


def test_intervals_of_faithfulness_are_over_videos_and_need_enough():
    rng = np.random.default_rng(0)
    def measured(videos, copies=1):
        curves = {o: np.repeat(rng.random((videos, 2, len(SHARES))), copies, 0) for o in ORDERS}
        ids = [f'v{i}_{k}' for i in range(videos) for k in range(copies)]
        return Faithfulness(ids, [o.split('_')[0] for o in ids], (Task('said'),), dict(said=curves), 0, len(ids), 2)
    few, some = measured(MIN_VIDEOS - 1).table(), measured(MIN_VIDEOS_DIFFERENCE - 1).table()
    assert few.low.isna().all() and some.low.notna().all() and some.gain_low.isna().all()
    one = measured(MIN_VIDEOS_DIFFERENCE)
    three = Faithfulness([f'{i}{k}' for i in one.ids for k in range(3)], list(np.repeat(one.groups, 3)), one.tasks,
                         {t: {o: np.repeat(v, 3, 0) for o, v in c.items()} for t, c in one.curves.items()}, 0, 60, 2)
    names = ['low', 'high', 'gain_low', 'gain_high']
    np.testing.assert_allclose(one.table()[names], three.table()[names]) # copies in one video say nothing new
    assert one.table().gain_low.notna().sum() == 2*len(MEASURES)


def test_curves_are_those_of_clips_that_are_cut(evidence_network):
    one = evidence_clips(1, 9, 5)[0]
    v = versions_of(one.clip, [evidence_network], None, Speller(synthetic_tokenizer()))
    curves = clip_curves(v, Thresholds({}, 'fixed'), np.random.default_rng(0), 2)
    e = explain_versions(v, Thresholds({}, 'fixed'))
    for t in EVIDENCE_TASKS:
        k, S = t.name, len(e.all_contributions(t.name))
        c, removed, added = e.predicted[k], *curves[k]['contributions']
        top = np.argsort(-e.side(k)*e.all_contributions(k), kind='stable')
        for p, share in enumerate(SHARES):
            keep = np.ones((1, S), bool)
            keep[0, top[:int(np.ceil(share*S - 1e-9))]] = False
            for versions, value in ((keep, removed[p]), (~keep, added[p])):
                kept = {m: o[0] for m, o in v.kept(versions).items()}
                expected = softmax(outputs(evidence_network, cut(one.clip, kept))[k][0].double().numpy())[c]
                assert value == pytest.approx(expected, abs=1e-5)


@given(st.integers(1, 30), st.integers(0, 99))
def test_orders_remove_and_add_the_first_spans(S, seed):
    order = np.random.default_rng(seed).permutation(S)
    removed, added = versions_along(order)
    assert (removed == ~added).all() and removed[0].all() and added[-1].all()
    for row, share in zip(added, SHARES):
        n = int(np.ceil(share*S - 1e-9))
        assert set(np.flatnonzero(row)) == set(order[:n]) and n <= max(1, np.ceil(share*S)) if share else not row.any()


def test_measures_are_the_areas_and_means_that_their_authors_define():
    removed = np.array([.9, .7, .6, .5, .4, .3, .2, .1])
    added = np.array([.1, .5, .6, .65, .7, .8, .85, .9])
    found = curve_measures(np.stack([removed, added])[None])
    assert found['comprehensiveness'] == pytest.approx(.9 - np.mean([.7, .6, .5, .3]))
    assert found['sufficiency'] == pytest.approx(.9 - np.mean([.5, .6, .65, .8]))
    area = sum((b - a)*(x + y)/2 for a, b, x, y in zip(SHARES, SHARES[1:], removed, removed[1:]))
    assert found['deletion'] == pytest.approx(area) and found['insertion'] > found['deletion']


def test_a_number_is_counted_towards_its_side_of_the_prior():
    sides = set()
    for seed in range(8):
        v = versions_of(some_clip(seed), [both_kinds(seed, (NUMBER,))])
        e = explain_versions(v, FIXED)
        curves = clip_curves(v, FIXED, np.random.default_rng(0))['n']
        for order in curves.values():
            assert order[0, 0] == pytest.approx(e.side('n')*e.probabilities['n'][0], abs=1e-5)
            assert order[0, 0] >= order[0, -1] - 1e-6
        sides.add(e.side('n'))
    assert sides == {-1, 1}


def test_clips_without_two_spans_are_counted_and_none_is_an_error():
    model = both_kinds()
    short = [Clip('a1', text=[5]), Clip('b1', text=None, face=torch.ones(1, 3)), some_clip()]
    def measure(clips): return measure_faithfulness(
        ClipDataset.from_clips(clips, model.tasks), lambda clip: versions_of(clip, [model]), FIXED, draws=2)
    found = measure(short)
    assert found.left_out == 2 and found.ids == ['c']
    assert '2 clips with fewer than two spans' in found.section()[1] and found.table().low.isna().all()
    with pytest.raises(DataError, match='no clip has two spans'): measure(short[:2])


# As a user types it


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('moments')
    for name, n, seed in (('seen', 60, 0), ('new', 40, 5)):
        write_synthetic(synthetic_clips(n=n, seed=seed, scale=.1), folder/name)
    at = folder/'seen'
    said = ['--set', *(f'{k}={json.dumps(v)}' for k, v in TINY_NETWORK.items()), '--threads', '1', '--epochs', '1']
    assert train(list(map(str, [at/'clips.csv', '--features', at/'features', '--tokenizer', at/'tokenizer', '--labels',
                                'said', 'heard', '--modalities', 'time_masks', '--out', folder/'run', *said]))) == 0
    return folder


def test_explanations_are_computed_in_the_number_format_of_the_predictions(run, typed, tmp_path, monkeypatch):
    formats, encode = [], HICCAP.fuse_packed
    def listening(self, states, rows):
        formats.append(torch.is_autocast_enabled('cpu') and torch.get_autocast_dtype('cpu'))
        return encode(self, states, rows)
    monkeypatch.setattr(HICCAP, 'fuse_packed', listening)
    new = run/'new'
    for precision, expected in (('bfloat16', torch.bfloat16), ('float32', False)):
        formats.clear()
        out = tmp_path/f'{precision}.jsonl'
        assert typed('predict', run/'run', new/'clips.csv', '--features', new/'features', '--json', out, '--moments',
                     '--precision', precision)[0] == 0
        assert len(formats) > 40 and set(formats) == {expected}  # each clip is explained on its own


def test_moments_in_bfloat16_are_those_of_float32_but_for_rounding(run):
    trained = load_run(run/'run')
    ds = trained.read(run/'new'/'clips.csv', run/'new'/'features').subset(range(6))
    for a, b in zip(trained.explain(ds, precision='bfloat16'), trained.explain(ds)):
        for t in trained.tasks:
            found, right = a.all_contributions(t.name), b.all_contributions(t.name)
            assert np.abs(found - right).max() < .05 and np.any(found != right)


def test_an_evaluation_measures_the_moments_on_as_many_clips_as_asked_for(run, typed, tmp_path):
    args = run/'run', run/'new'/'clips.csv', '--features', run/'new'/'features'
    status, out, err = typed('evaluate', *args, '--moments', '12', '--out', tmp_path/'scored')
    assert status == 0 and 'moments: 12 of 12 clips' in err
    table = pd.read_csv(tmp_path/'scored'/'moments.csv')
    assert set(table.task) == {'said', 'heard', 'all'} and set(table.order) == {'contributions', 'attention', 'random'}
    assert (table.clips == 12).all() and table.value.notna().all()
    report = (tmp_path/'scored'/'report.md').read_text()
    assert 'a sample of 12 clips of 40 clips' in report and '(moments.png)' in report
    assert (tmp_path/'scored'/'moments.png').exists()
    for wrong, what in ((['--moments', '0', '--out', tmp_path/'x'], 'at least 1'),
                        (['--moments'], 'say where with --out')):
        status, _, err = typed('evaluate', *args, *wrong)
        assert status != 0 and what in err
    assert not (tmp_path/'x').exists()


def test_a_run_explains_what_it_predicts(run):
    trained = load_run(run/'run')
    ds = trained.read(run/'new'/'clips.csv', run/'new'/'features')
    predicted = trained.predict(ds.subset(range(4)))
    explained = trained.explain(ds.subset(range(4)), attention=True)
    assert [o.clip for o in explained] == ds.ids[:4]
    for o in explained:
        for t in trained.tasks:
            row = predicted[(predicted['clip'] == o.clip) & (predicted.task == t.name)].iloc[0]
            assert o.probabilities[t.name][1] == pytest.approx(row.probability, abs=1e-5)
            assert t.class_names[o.predicted[t.name]] == row.predicted
            json.dumps([asdict(m) for m in o.moments(t.name)])  # plain numbers
        words = ' '.join(o.spans['text'].words) if 'text' in o.spans else ''
        assert words == text_of(ds[ds.ids.index(o.clip)])
    by_file = trained.explain(run/'new'/'clips.csv', run/'new'/'features', tasks='said')
    assert len(by_file) == len(ds) and list(by_file[0].contributions) == ['said']
