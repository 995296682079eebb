"""Calibration curves: they keep the order of clips, are the best ones, are chosen only where they are better, and a
run that has them predicts, explains, exports and travels as one with temperatures does."""
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.special import expit, softmax

from hiccap.calibration import compare_calibration, off_by_chance, reliability_bins
from hiccap.cli import export, predict
from hiccap.export import OnnxModel
from hiccap.inference import load_run
from hiccap.moments import versions_of
from hiccap.padding import collate
from hiccap.sharing import Trained
from hiccap.tasks import IGNORE, Task
from hiccap.temperatures import (CURVE_FROM, ERRORS_AT, FLATTEST, Temperatures, are_right_errors, calibrated,
                                 curve_errors, curve_gain, fit_calibration, fit_curve, fit_temperature,
                                 fit_temperatures, is_curve, is_right_curve, log_odds_errors, logits_of, on_curve,
                                 on_pieces, tempered, value_text)
from test_calibration_runs import data, new, run, typed

__all__ = 'data', 'run'
FUNNY, slope = Task('funny'), st.floats(FLATTEST, 5)
# of this version, and of earlier ones
curves = st.sampled_from([14, 6]).flatmap(lambda n: st.tuples(st.floats(.1, 10), st.floats(-3, 3), *[slope]*n))
EARLIER = 1.5, .4, .3, .5, 1., 1., 1.6, 2.
BENT = 1.5, .4, *np.repeat(EARLIER[2:], (3, 2, 2, 2, 2, 3)).tolist()  # the same curve
STRAIGHT = (1.,)*14


def bent_clips(n, seed, curve=BENT):
    "Probabilities of a network whose log-odds are on a curve, and labels"
    rng = np.random.default_rng(seed)
    x = 3*rng.normal(size=n)
    p = np.stack([expit(-x), expit(x)], 1)
    return p, (rng.random(n) < tempered(p, curve)[:, 1]).astype(int)


@given(st.lists(st.floats(-90, 90), min_size=1, max_size=30))
def test_the_parts_of_a_way_add_up(xs):
    x = np.array(xs)
    np.testing.assert_allclose(sum(on_pieces(x)), x, atol=1e-9)
    for o in on_pieces(x): assert (np.sign(o)*np.sign(x) >= 0).all()


def test_a_curve_of_an_earlier_version_is_the_one_that_it_was():
    x = np.linspace(-9, 9, 181)
    np.testing.assert_allclose(on_curve(x, EARLIER), on_curve(x, BENT), atol=1e-12)
    assert on_curve(np.array([-6., 6.]), EARLIER) == pytest.approx([.4 - .3*2 - .5 - 1, .4 + 1 + 1.6 + 2.*2])


@given(curves, st.lists(st.floats(-80, 80), min_size=2, max_size=30))
def test_a_curve_keeps_the_order_of_clips(curve, xs):
    x = np.sort(np.array(xs))
    g = on_curve(x, curve)
    assert (np.diff(g) >= 0).all() and (np.diff(g)[np.diff(x) > 1e-6] > 0).all()
    p = np.stack([expit(-x), expit(x)], 1)
    q = tempered(p, curve)
    assert np.isfinite(q).all() and np.allclose(q.sum(1), 1)
    near = np.abs(g) < 30  # beyond, a probability cannot hold what its logit says
    near &= np.abs(x) < 30
    np.testing.assert_allclose((logits_of(q)@[-1, 1])[near], g[near], rtol=1e-5, atol=1e-5)


@given(curves, st.integers(0, 99))
def test_arrays_and_tensors_are_on_the_same_curve(curve, seed):
    z = np.random.default_rng(seed).normal(size=(7, 2))*4
    found = calibrated(torch.tensor(z), curve)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), calibrated(z, curve), atol=1e-9)
    shifted = calibrated(z + 5., curve)  # logits are known up to a constant
    np.testing.assert_allclose(softmax(shifted, 1), softmax(calibrated(z, curve), 1), atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999), st.integers(20, 300))
def test_the_fitted_curve_is_the_most_probable_one(seed, n):
    p, y = bent_clips(n, seed)
    T = fit_temperature(p, y)[0]
    x, rng = (logits_of(p)@[-1, 1])/T, np.random.default_rng(seed)
    def loss(w):
        slopes = w[1:]
        prior = .1*w[0]**2 + .1*(slopes.mean() - 1)**2 + .5*(np.diff(slopes)**2).sum()
        g = on_curve(x, (1., *w))
        return np.logaddexp(0, g).sum() - y@g + prior/2
    found = np.array(fit_curve(p, y, T)[1:])
    assert (found[1:] >= FLATTEST).all()
    for step in (.3, .03):
        for _ in range(10):
            other = found + step*rng.normal(size=15)
            other[1:] = np.maximum(other[1:], FLATTEST)
            assert loss(found) <= loss(other) + 1e-5


def test_a_curve_is_taken_only_where_it_is_better():
    taken = {}
    for name, curve in (('bent', BENT), ('straight', (3., 0., *STRAIGHT))):
        taken[name] = [is_curve(fit_calibration(*bent_clips(2000, s, curve), np.arange(2000)//2)[0]) for s in range(20)]
    assert sum(taken['bent']) >= 19 and sum(taken['straight']) <= 1


def test_few_clips_or_videos_and_more_classes_have_a_temperature():
    p, y = bent_clips(2000, 0)
    few = slice(0, CURVE_FROM - 1)
    assert curve_gain(p[few], y[few], np.arange(CURVE_FROM - 1)) == 0
    assert curve_gain(p, y, np.arange(2000)%9) == 0 < curve_gain(p, y, np.arange(2000)%10)
    three = np.concatenate([p*.9, np.full((2000, 1), .1)], 1)
    assert not is_curve(fit_calibration(three, y, np.arange(2000))[0])
    half = np.where(np.arange(2000) < 700, y, IGNORE)  # clips without a label do not count
    assert not is_curve(fit_temperatures(dict(funny=p), dict(funny=half), [FUNNY]).values['funny'])
    assert is_curve(fit_temperatures(dict(funny=p), dict(funny=y), [FUNNY]).values['funny'])


def test_copies_in_one_video_are_no_evidence_for_a_curve():
    "Parts of the cross-validation are of whole videos"
    p, y = bent_clips(200, 3, (2., 0., *STRAIGHT))
    p, y, video = (np.repeat(o, 10, 0) for o in (p, y, np.arange(200)))
    assert curve_gain(p, y, video) < 0 < curve_gain(p, y, np.arange(2000))
    by_video = curve_errors(p, y, BENT, video), curve_errors(p, y, BENT)
    assert (np.array(by_video[0])[2:-2] > 2*np.array(by_video[1])[2:-2]).all()


def test_the_errors_of_a_curve_are_how_much_it_varies():
    at, found = np.array(ERRORS_AT), []
    for seed in range(150):
        p, y = bent_clips(1000, seed)
        curve = fit_curve(p, y, 1.5)
        wide = np.linspace(-60, 60, 6001)
        places = np.interp(at, on_curve(wide, BENT), wide)  # where the true curve has these values
        found.append((on_curve(places, curve), log_odds_errors(on_curve(places, curve), curve_errors(p, y, curve))))
    values, errors = np.swapaxes(np.array(found), 0, 1)
    inner = slice(1, -1)  # the prior draws the outermost pieces
    # the slopes of a few fits are at their lowest, beside long errors
    assert values.std(0)[inner] == pytest.approx(np.median(errors, axis=0)[inner], rel=.35)


def test_bins_of_a_curve_know_how_sure_it_is():
    near = []
    for seed in range(20):
        (p, y), (q, labels) = bent_clips(900, seed), bent_clips(4000, [seed, 1])
        curve = fit_curve(p, y, 1.5)
        bins = reliability_bins(tempered(q, curve), labels, np.arange(4000), 0, error=curve_errors(p, y, curve))
        for o in bins:
            half = 1.96*np.sqrt(o['share']*(1 - o['share'])/o['clips'])
            if o['clips'] >= 50: near.append(off_by_chance(o | dict(low=o['share'] - half, high=o['share'] + half)))
    assert np.mean(near) > .9 and len(near) > 200


def test_folds_of_both_kinds_have_one_error():
    p, y = bent_clips(1000, 0)
    errors = .1, tuple(.2 for _ in ERRORS_AT)
    folds = [Temperatures(dict(funny=v), errors=dict(funny=e)) for v, e in zip((1.5, BENT), errors)]
    found = compare_calibration(dict(funny=p), dict(funny=tempered(p, BENT)), dict(funny=y), [FUNNY],
                                np.arange(1000), folds, 0)
    assert found.temperature_text('funny') == '1.50 – 1.50, 1 curves' and value_text(BENT) == 'curve from 1.50'
    b = next(b for b in found.after['funny'].bins if .45 < b['probability'] < .55)
    # at log-odds 0 the temperature is sure
    assert b['margin'] == pytest.approx(1.96*.25*np.sqrt(.2**2/2), rel=.1)


def test_what_is_read_from_a_file_is_a_curve_or_refused():
    assert is_right_curve(list(BENT)) and is_right_curve(list(EARLIER)) and are_right_errors([.1]*len(ERRORS_AT))
    for o in ([], [1.]*7, [*BENT, 1.], [0., *BENT[1:]], [*BENT[:3], -1., *BENT[4:]], [*BENT[:7], np.nan], ['a']*8,
              [*EARLIER, 1.], BENT[:-1], [*BENT[:-1], np.nan], ['a']*16):
        assert not is_right_curve(o)
    assert are_right_errors([.1]*9)  # of earlier versions
    for o in ([.1]*8, [.1]*16, [.1]*8 + [0.], [.1]*8 + [np.inf], [None]*9): assert not are_right_errors(o)
    read = Temperatures(dict(funny=list(BENT)), errors=dict(funny=[.1]*9))
    assert read == Temperatures(dict(funny=BENT), errors=dict(funny=(.1,)*9))
    squares = np.arange(-4., 5)**2  # those of earlier versions are at whole numbers
    np.testing.assert_allclose(log_odds_errors(np.array([-9., -2, .5, 3]), tuple(squares)), [16, 4, .5, 9])


@pytest.fixture(scope='module')
def curved(run, tmp_path_factory):
    "A run whose tasks are calibrated by curves, as one with more clips would be"
    out = shutil.copytree(run, tmp_path_factory.mktemp('curved')/'run')
    metrics = json.loads((out/'metrics.json').read_text())
    metrics['temperatures'] = [dict(metrics['temperatures'][0], said=BENT)]
    metrics['temperature_errors'] = [dict(metrics['temperature_errors'][0], said=[.1]*9)]
    (out/'metrics.json').write_text(json.dumps(metrics))
    return out


def test_a_run_with_curves_predicts_explains_and_exports_alike(curved, data, tmp_path, capsys):
    trained = load_run(curved)
    ds = trained.read(str(new(data)[0]), str(data/'new'/'features'))
    raw, probs = trained.mean_probabilities(ds)
    np.testing.assert_allclose(probs['said'], tempered(raw['said'], BENT), atol=1e-9)
    values = [o.values for o in trained.temperatures]
    versions = versions_of(ds[0], trained.models, values)
    every = np.ones((1, sum(len(o) for o in versions.spans.values())), bool)
    np.testing.assert_allclose(np.exp(versions.answers(every)['said'][0]), probs['said'][0], atol=1e-5)
    assert typed(export, curved, tmp_path/'net.onnx', capsys=capsys)[0] == 0
    onnx = OnnxModel(tmp_path/'net.onnx')
    x, _ = collate([ds[i] for i in range(8)], ds.tasks)
    np.testing.assert_allclose(OnnxModel(tmp_path/'net.onnx').answer(x)[0]['said'], probs['said'][:8], atol=1e-5)


def test_a_run_with_curves_travels(curved, data, tmp_path, capsys):
    trained = load_run(curved)
    trained.save_pretrained(tmp_path/'shared')
    back = Trained.from_pretrained(tmp_path/'shared')
    assert [o.values for o in back.temperatures] == [o.values for o in trained.temperatures]
    assert back.temperatures[0].errors['said'] == (.1,)*9
    assert 'curve from 1.50' in (tmp_path/'shared'/'README.md').read_text()
    outs = []
    for folder in (curved, tmp_path/'shared'):
        assert typed(predict, folder, *new(data), '--out', tmp_path/'answers.csv', capsys=capsys)[0] == 0
        outs.append((tmp_path/'answers.csv').read_bytes())
        (tmp_path/'answers.csv').unlink()
    assert outs[0] == outs[1]


def test_a_damaged_curve_is_refused(curved, tmp_path):
    for damage in (BENT[:-1], [-1., *BENT[1:]]):
        out = shutil.copytree(curved, tmp_path/f'run{len(damage)}')
        metrics = json.loads((out/'metrics.json').read_text())
        metrics['temperatures'][0]['said'] = list(damage)
        (out/'metrics.json').write_text(json.dumps(metrics))
        with pytest.raises(ValueError, match='holds no temperatures that a run wrote'): load_run(out)
