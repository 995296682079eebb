"""Temperatures, calibration errors, and the guarantees of pass, review and block."""
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings, strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from hiccap.calibration import (BINS, calibrated_predictions, calibration_errors, compare_calibration, off_by_chance,
                                reliability_bins, task_calibration)
from hiccap.decisions import (CHOICES, GRID, STARTS, Decisions, TaskDecision, block_threshold, decisions_of,
                              fit_decisions, loss_p_value, pass_threshold, review_curve, videos_needed)
from hiccap.metrics import Thresholds, choose_thresholds, merits, steady_threshold
from hiccap.tasks import IGNORE, Task
from hiccap.temperatures import (TEMPERATURES, Temperatures, fit_temperature, fit_temperatures, log_slopes, logits_of,
                                 temperature_error, tempered)

FUNNY, MOOD = Task('funny'), Task('mood', 3)
seeds = st.integers(0, 2**32 - 1)
temperatures = st.floats(.1, 50)


def rows(n, C, seed, sharp=1.):
    "Probabilities, and labels that are drawn from other ones"
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, C))*2
    p = np.exp(z - z.max(1, keepdims=True))
    y = (rng.random((n, 1)) > (p/p.sum(1, keepdims=True)).cumsum(1)).sum(1).clip(0, C - 1)
    q = np.exp(sharp*(z - z.max(1, keepdims=True)))
    return q/q.sum(1, keepdims=True), y


# temperature

@given(seeds, st.integers(2, 5), temperatures)
def test_tempering_keeps_the_order_of_classes_and_gives_probabilities(seed, C, T):
    p, _ = rows(20, C, seed)
    q = tempered(p, T)
    assert np.allclose(q.sum(1), 1) and (q >= 0).all() and (q.argsort(1) == p.argsort(1)).all()


@given(seeds, temperatures)
def test_tempering_keeps_the_order_of_clips_of_two_classes(seed, T):
    p, y = rows(40, 2, seed)
    q = tempered(p, T)
    assert (np.diff(q[p[:, 1].argsort(), 1]) >= 0).all()
    assume(0 < y.sum() < 40 and q[:, 1].max() < 1 - 1e-12)  # no two clips became equal by rounding
    for score in (roc_auc_score, average_precision_score):
        assert np.isclose(score(y, q[:, 1]), score(y, p[:, 1]))


@given(seeds, st.integers(2, 5), temperatures, st.randoms(use_true_random=False))
def test_tempering_does_not_depend_on_the_order_of_classes(seed, C, T, random):
    p, y = rows(30, C, seed)
    order = random.sample(range(C), C)
    assert np.allclose(tempered(p[:, order], T), tempered(p, T)[:, order])
    place = np.argsort(order)  # where each class went
    assert fit_temperature(p[:, order], place[y])[0] == pytest.approx(fit_temperature(p, y)[0], rel=1e-6)


@given(seeds, st.floats(.5, 5), st.floats(.5, 5))
def test_two_temperatures_are_their_product(seed, a, b):
    p, _ = rows(10, 3, seed)
    assert np.allclose(tempered(tempered(p, a), b), tempered(p, a*b), atol=1e-9)


@settings(deadline=None, max_examples=15)
@given(seeds, st.integers(2, 4), st.floats(.3, 4))
def test_the_fitted_temperature_has_the_highest_likelihood(seed, C, sharp):
    p, y = rows(60, C, seed, sharp)
    T, why = fit_temperature(p, y)
    assume(not why)
    def loss(t): return log_loss(y, tempered(p, t), labels=range(C))
    assert all(loss(T) <= loss(T*f) + 1e-12 for f in (.5, .9, .99, 1.01, 1.1, 2))
    best = minimize_scalar(lambda o: loss(np.exp(o)), bounds=np.log(TEMPERATURES), method='bounded').x
    assert T == pytest.approx(np.exp(best), rel=1e-3)


@given(seeds, st.floats(.5, 3))
def test_a_sharper_network_has_a_temperature_that_undoes_it(seed, sharp):
    p, y = rows(80, 3, seed)
    T, why = fit_temperature(p, y)
    assume(not why and .05 < T < 20)
    assert fit_temperature(tempered(p, 1/sharp), y)[0] == pytest.approx(T*sharp, rel=1e-4)


@given(seeds, st.integers(2, 4), temperatures)
def test_slopes_are_those_of_the_probabilities(seed, C, T):
    p, _ = rows(10, C, seed)
    step = 1e-5
    by_difference = (tempered(p, T*np.exp(step)) - tempered(p, T*np.exp(-step)))/(2*step)
    assert np.allclose(log_slopes(tempered(p, T)), by_difference, atol=1e-7)


@settings(deadline=None)
@given(seeds, st.integers(2, 3), st.integers(2, 5))
def test_copies_of_a_clip_in_its_video_add_nothing_to_what_is_known(seed, C, copies):
    p, y = rows(60, C, seed, 2.)
    T, why = fit_temperature(p, y)
    assume(not why)
    error, again = temperature_error(p, y, T), (np.repeat(p, copies, 0), np.repeat(y, copies))
    assert temperature_error(*again, T, np.repeat(np.arange(60), copies)) == pytest.approx(error)
    assert temperature_error(*again, T) == pytest.approx(error/np.sqrt(copies))


def test_the_error_of_a_temperature_is_how_much_it_varies():
    found = []
    for seed in range(200):
        p, y = rows(300, 2, seed, 2.)
        T = fit_temperature(p, y)[0]
        found.append((np.log(T), temperature_error(p, y, T)))
    logs, errors = np.array(found).T
    assert np.std(logs) == pytest.approx(errors.mean(), rel=.15)
    assert np.mean(abs(logs - np.log(2)) < 1.96*errors) > .9


def test_the_intervals_of_bins_know_that_the_temperature_is_fitted_to_few_clips():
    "Where a temperature is all that is wrong, 95% of the bins are on the diagonal but for chance"
    near, alone = [], []
    for seed in range(30):
        (p, y), (q, labels) = (rows(n, 2, [seed, n], 3.) for n in (60, 3000))
        T = fit_temperature(p, y)[0]
        bins = reliability_bins(tempered(q, T), labels, np.arange(3000), 0, error=temperature_error(p, y, T))
        for o in bins:
            half = 1.96*np.sqrt(o['share']*(1 - o['share'])/o['clips'])
            if o['clips'] < 50: continue
            o |= dict(low=o['share'] - half, high=o['share'] + half)
            near.append(off_by_chance(o))
            alone.append(off_by_chance(o | dict(margin=0.)))
    assert np.mean(near) > .9 > .75 > np.mean(alone) and len(near) > 300


def test_a_temperature_that_is_open_has_no_error():
    p, y = rows(20, 2, 0)
    assert np.isnan(temperature_error(p, y, 1.)) and np.isnan(temperature_error(p, y, TEMPERATURES[1]))
    separated = np.where(np.arange(2) == y[:, None], .6, .4)
    assert fit_temperatures(dict(funny=separated), dict(funny=y), [FUNNY]).errors == {}
    bins = reliability_bins(p, y, np.arange(20), 50)
    assert all(o['margin'] == 0 for o in bins) and off_by_chance(dict(low=np.nan)) is None


def test_folds_are_as_sure_as_one_of_them():
    p, y = rows(300, 2, 1)
    groups = np.arange(300)
    def bins(*errors):
        folds = [Temperatures(dict(funny=2.), errors=dict(funny=e) if e else {}) for e in errors]
        return compare_calibration(dict(funny=p), dict(funny=p), dict(funny=y), [FUNNY], groups, folds, 0)
    one, two, none = bins(.2), bins(.2, .2), bins(None)
    margins = [[o['margin'] for o in c.after['funny'].bins] for c in (one, two)]
    assert margins[0] == pytest.approx(margins[1])
    assert all(o['margin'] == 0 for o in [*one.before['funny'].bins, *none.after['funny'].bins])
    assert one.temperature_text('funny') == '2.00 (1.35–2.96)' and none.temperature_text('funny') == '2.00'


def test_probabilities_of_0_and_1_stay_finite():
    p, y = np.array([[0., 1], [1, 0], [0, 1], [.3, .7]]), np.array([1, 0, 0, 1])
    T, why = fit_temperature(p, y)
    q = tempered(p, T)
    assert 1 < T < TEMPERATURES[1] and not why and np.isfinite(logits_of(q)).all()
    assert 0 < q[2, 0] and np.isfinite(calibration_errors(q, y, np.ones((1, 4)))['log_loss']).all()
    assert np.isfinite(calibration_errors(p, y, np.ones((1, 4)))['log_loss']).all()
    assert (tempered(p, 1.) == p).all()


@pytest.mark.parametrize('n', [4, 50, 1000])
def test_separated_clips_give_a_bounded_temperature_and_a_note(n):
    "The mean probability of the true class is about what n + 1 of n + 2 clips would be"
    y = np.arange(n) % 2
    p = np.where(np.arange(2) == y[:, None], .6, .4)
    T, why = fit_temperature(p, y)
    assert f'all {n} clips are predicted correctly' in why and T > TEMPERATURES[0]
    assert tempered(p, T)[np.arange(n), y].mean() == pytest.approx((n + 1)/(n + 2), rel=1e-6)


def test_a_temperature_beyond_the_bounds_is_the_bound_and_said():
    p, y = rows(200, 2, 0)
    assert fit_temperature(p, 1 - y) == (TEMPERATURES[1], fit_temperature(p, 1 - y)[1])
    assert 'say nothing' in fit_temperature(p, 1 - y)[1]
    flat = tempered(p, 1e5)
    T, why = fit_temperature(flat, y)
    assert T == TEMPERATURES[0] and 'below the lowest' in why


def test_what_leaves_the_temperature_open_is_said():
    p, _ = rows(6, 2, 0)
    for y in (np.zeros(6, int), np.ones(6, int)):
        found = fit_temperatures(dict(funny=p), dict(funny=y), [FUNNY])
        assert found.values == dict(funny=1.) and 'fewer than two classes' in found.notes[0]
    none = fit_temperatures(dict(funny=p), dict(funny=np.full(6, IGNORE)), [FUNNY], 'the validation clips')
    assert none.values == dict(funny=1.) and none.notes == (
        'funny: the validation clips: 0 labelled clips of fewer than two classes, so the temperature stays 1',)
    same = fit_temperatures(dict(funny=np.full((6, 2), .5)), dict(funny=[0, 1]*3), [FUNNY])
    assert same.values == dict(funny=1.) and 'same probability' in same.notes[0]


def test_regression_tasks_are_left_as_they_are_and_said():
    tasks, p = (FUNNY, Task('score', kind='regression')), rows(20, 2, 0)[0]
    probs = dict(funny=p, score=np.arange(20.)[:, None])
    y = dict(funny=np.arange(20) % 2, score=np.arange(20.))
    found = calibrated_predictions(probs, y, probs, tasks)
    assert list(found.temperatures.values) == ['funny'] and 'regression task' in found.temperatures.notes[-1]
    assert (found.probs['score'] == probs['score']).all() and (found.predicted['score'] == np.arange(20)).all()
    c = compare_calibration(found.raw, found.probs, y, tasks, np.arange(20), [found.temperatures], 20)
    assert list(c.before) == list(c.after) == ['funny'] and found.temperatures.notes[-1] in c.all_notes()


@given(seeds, st.sampled_from(['macro_f1', 'f1', 'accuracy']), st.floats(.3, 10))
def test_scores_at_chosen_thresholds_do_not_change(seed, score, T):
    "A temperature moves the threshold and the probabilities together"
    p, y = rows(60, 2, seed)
    assume(0 < y.sum() < 60)
    y[:5] = IGNORE
    after = Temperatures(dict(funny=T)).apply(dict(funny=p))
    assume(len(np.unique(after['funny'][:, 1])) == len(np.unique(p[:, 1])))  # none became equal by rounding
    reached = []
    for probs in (dict(funny=p), after):
        predicted = choose_thresholds(probs, dict(funny=y), [FUNNY], score=score).predict(probs)['funny']
        counts = np.zeros((2, 2))
        np.add.at(counts, (y[5:], predicted[5:]), 1)
        reached.append(merits(counts, score)[0])
    assert reached[0] == reached[1]


@given(seeds, temperatures)
def test_the_most_probable_class_does_not_change(seed, T):
    p, y = rows(30, 3, seed)
    probs = dict(mood=p)
    found = [Thresholds({}).predict(o)['mood'] for o in (probs, Temperatures(dict(mood=T)).apply(probs))]
    assert (found[0] == found[1]).all()


def test_nothing_of_the_clips_that_are_predicted_is_fitted():
    (p, y), (q, _) = rows(100, 2, 0), rows(50, 2, 1)
    few = calibrated_predictions(dict(funny=p), dict(funny=y), dict(funny=q[:10]), [FUNNY])
    more = calibrated_predictions(dict(funny=p), dict(funny=y), dict(funny=q), [FUNNY])
    assert few.temperatures == more.temperatures == fit_temperatures(dict(funny=p), dict(funny=y), [FUNNY])
    assert few.thresholds == more.thresholds and (more.probs['funny'][:10] == few.probs['funny']).all()
    assert (few.raw['funny'] == q[:10]).all()


def test_a_least_precision_is_kept_also_by_calibrated_predictions():
    p, y = rows(200, 2, 3)
    found = calibrated_predictions(dict(funny=p), dict(funny=y), dict(funny=p), [FUNNY], 'precision=0.8')
    probs = found.temperatures.apply(dict(funny=p))
    assert found.thresholds == choose_thresholds(probs, dict(funny=y), [FUNNY], score='precision=0.8')
    steady = calibrated_predictions(dict(funny=p), dict(funny=y), dict(funny=p), [FUNNY], groups=np.arange(200)//4)
    assert steady.thresholds.values['funny'] == steady_threshold(probs['funny'][:, 1], y, 'macro_f1', np.arange(200)//4)


# calibration errors

def by_hand(p, y):
    "The plain ECE, bin by bin"
    c, hit = (p[:, 1], y == 1) if p.shape[1] == 2 else (p.max(1), p.argmax(1) == y)
    total = 0
    for b in range(BINS):
        of = (c >= b/BINS) & ((c < (b + 1)/BINS) | (b == BINS - 1))
        if of.any(): total += of.sum()*abs(c[of].mean() - hit[of].mean())
    return total/len(y)


@given(seeds, st.integers(2, 4), st.integers(1, 80))
def test_errors_are_bounded_and_as_defined(seed, C, n):
    p, y = rows(n, C, seed, 3)
    found = {k: float(v[0]) for k, v in calibration_errors(p, y, np.ones((1, n))).items()}
    assert found['ece'] == pytest.approx(by_hand(p, y)) and 0 <= found['ece'] <= 1
    assert 0 <= found['brier'] <= 1 and 0 <= found['rms_error'] <= 1
    assert found['log_loss'] == pytest.approx(log_loss(y, p, labels=range(C)))
    assert found['brier'] == pytest.approx(np.mean([((p[i] - np.eye(C)[y[i]])**2).sum()/2 for i in range(n)]))


@given(st.lists(st.sampled_from([0., 1.]), min_size=1, max_size=30))
def test_perfect_probabilities_have_no_error(c):
    y = np.array(c, int)
    found = calibration_errors(np.stack([1 - y, y], 1), y, np.ones((1, len(y))))
    assert all(v[0] == 0 for v in found.values())
    wrong = calibration_errors(np.stack([y, 1 - y], 1), y, np.ones((1, len(y))))
    assert wrong['ece'][0] == wrong['brier'][0] == 1


def test_a_bin_whose_share_is_its_probability_has_no_error():
    p = np.tile([.25, .75], (8, 1))
    found = calibration_errors(p, np.array([0, 1, 1, 1]*2), np.ones((1, 8)))
    assert found['ece'][0] == found['rms_error'][0] == 0


@given(seeds, st.integers(2, 4))
def test_weights_count_rows(seed, C):
    "A row with the weight 2 counts as two rows, and one with 0 as none"
    p, y = rows(30, C, seed)
    w = np.random.default_rng(seed).integers(0, 3, 30)
    assume(w.sum() > 1)
    a = calibration_errors(p, y, w[None].astype(float))
    at = np.repeat(np.arange(30), w)
    b = calibration_errors(p[at], y[at], np.ones((1, len(at))))
    for k in ('brier', 'log_loss', 'ece'): assert a[k][0] == pytest.approx(b[k][0])


def test_the_debiased_error_is_less_biased_than_the_plain_one():
    found = []
    for seed in range(30):
        p, y = rows(200, 2, seed)  # labels are drawn from these very probabilities
        found.append({k: v[0] for k, v in calibration_errors(p, y, np.ones((1, 200))).items()})
    mean = pd.DataFrame(found).mean()
    assert mean.ece > .04 > mean.rms_error


def test_bins_have_all_clips_and_intervals_over_videos():
    p, y = rows(900, 2, 0)
    videos = np.arange(900)//3
    bins = reliability_bins(p, y, videos)
    assert sum(b['clips'] for b in bins) == 900
    widths = [b['high'] - b['low'] for b in bins if b['low'] == b['low']]
    alike = task_calibration(np.repeat(p, 10, 0), np.repeat(y, 10), np.repeat(videos, 10), 300)
    found = task_calibration(p, y, videos, 300)
    assert widths and all(b['low'] <= b['share'] <= b['high'] for b in bins if b['low'] == b['low'])
    for k in ('brier', 'log_loss', 'ece'):  # ten copies of every clip say no more
        low, high = found.intervals[k]
        assert low < found.scores[k] < high and alike.intervals[k] == pytest.approx(found.intervals[k], rel=1e-5)


def test_calibration_as_plain_values_and_as_a_table():
    (p, y), (q, z) = rows(300, 2, 0, 3), rows(300, 2, 1, 3)
    found = calibrated_predictions(dict(funny=p), dict(funny=y), dict(funny=q), [FUNNY])
    c = compare_calibration(found.raw, found.probs, dict(funny=z), [FUNNY], np.arange(300), [found.temperatures], 50)
    assert c.after['funny'].scores['log_loss'] < c.before['funny'].scores['log_loss']
    d = json.loads(json.dumps(c.to_dict()))
    assert d['temperatures'] == [found.temperatures.values] and d['after']['funny']['clips'] == 300
    low, high = found.temperatures.values['funny']*np.exp(np.array([-1.96, 1.96])*found.temperatures.errors['funny'])
    assert c.temperature_text('funny') == f"{found.temperatures.values['funny']:.2f} ({low:.2f}–{high:.2f})"
    assert d['temperature_errors'] == [found.temperatures.errors]
    two = compare_calibration(found.raw, found.probs, dict(funny=z), [FUNNY], np.arange(300),
                              [Temperatures(dict(funny=1.)), Temperatures(dict(funny=2.))], 0)
    assert two.temperature_text('funny') == '1.00 – 2.00'
    unlabelled = compare_calibration(found.raw, found.probs, dict(funny=np.full(300, IGNORE)), [FUNNY],
                                     np.arange(300), [found.temperatures])
    assert unlabelled.before == unlabelled.after == {}


# pass, review, block

def dependent(videos, seed, per_video=5):
    "Probabilities, classes and videos; clips of one video have much in common"
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(videos), per_video)
    hidden = rng.normal(size=videos)[groups]*2.
    z = rng.normal(size=len(groups))*1.5
    return expit(z), (rng.random(len(z)) < expit(1.5*z + hidden)).astype(int), groups


@given(st.integers(1, 200), st.floats(.01, .6), seeds)
def test_p_values_are_never_below_the_exact_one(n, limit, seed):
    losses = (np.random.default_rng(seed).random(n) < limit/2).astype(float)
    exact = stats.binom.cdf(losses.sum(), n, limit) if losses.mean() < limit else 1.
    assert loss_p_value(losses, limit, True) == pytest.approx(exact)
    assert exact - 1e-12 <= loss_p_value(losses, limit) <= 1
    assert loss_p_value([], limit) == 1
    if losses.mean() < limit: assert loss_p_value(np.append(losses, 1.), limit) >= loss_p_value(losses, limit)


@given(st.integers(2, 80), st.sampled_from([.9, .95, .99]))
def test_what_a_refusal_advises_is_enough(n, confidence):
    "With a loss, then with a precision as the message has it, the thresholds are found"
    p, groups = np.tile([.5, .5], (n, 1)), list(range(n))
    def asked(**kw): return fit_decisions(dict(funny=p), dict(funny=np.ones(n, int)), [Task('funny')], groups,
                                          confidence=confidence, **kw)
    kw = dict(block_precision=.999, pass_recall_loss=.0001)
    for option in ('pass_recall_loss', 'block_precision'):
        with pytest.raises(ValueError, match='needs at least') as e: asked(**kw)
        advice = re.search(r'of ([0-9.]+) \(--([a-z-]+)\)', str(e.value))
        if advice is None or float(advice[1]) in (0, 1): return # so few videos that nothing can be guaranteed
        assert advice[2] == option.replace('_', '-')
        kw[option] = float(advice[1])
    assert asked(**kw).tasks['funny'].pass_below >= 0


@given(st.floats(.01, .5), st.floats(.001, .2))
def test_videos_needed_are_just_enough(limit, level):
    n = videos_needed(limit, level)
    assert loss_p_value(np.zeros(n), limit) <= level*(1 + 1e-6)
    assert n == 1 or loss_p_value(np.zeros(n - 1), limit) > level


@settings(deadline=None, max_examples=25)
@given(seeds, st.floats(.05, .4), st.integers(60, 150))
def test_a_stricter_guarantee_never_decides_more(seed, limit, videos):
    p, y, groups = dependent(videos, seed)
    strict, loose = pass_threshold(p, y, groups, limit/2), pass_threshold(p, y, groups, limit)
    assert strict is None or loose >= strict
    strict, loose = block_threshold(p, y, groups, 1 - limit/2), block_threshold(p, y, groups, 1 - limit)
    assert strict is None or loose <= strict
    # the guarantee holds on the clips themselves
    for low, high in [(pass_threshold(p, y, groups, limit), block_threshold(p, y, groups, 1 - limit))]:
        frame = pd.DataFrame(dict(p=p, y=y, g=groups))
        if low is not None: assert (frame[frame.y == 1].p < low).groupby(frame.g).mean().mean() <= limit
        blocked = frame[frame.p >= high] if high is not None else frame[:0]
        if len(blocked): assert (blocked.y == 0).groupby(blocked.g).mean().mean() <= limit


def held(find, population, true_loss, limit, unit='video', videos=120, n=100):
    "In how many of `n` resamplings by video the true loss is at most the limit, and how often something was found"
    p, y, groups = population
    by_video = np.split(np.arange(len(p)), np.flatnonzero(np.diff(groups)) + 1)
    rng, ok, found = np.random.default_rng(0), 0, 0
    for _ in range(n):
        drawn = [by_video[v] for v in rng.integers(len(by_video), size=videos)]
        at, of = np.concatenate(drawn), np.repeat(np.arange(videos), list(map(len, drawn)))
        t = find(p[at], y[at], of if unit == 'video' else np.arange(len(of)), limit)
        found += t is not None
        ok += t is None or true_loss(t) <= limit
    return int(ok), found


@pytest.fixture(scope='module')
def population(): return dependent(3000, 7)


def mean_loss(bad, relevant, groups): return pd.Series(bad[relevant]).groupby(groups[relevant]).mean().mean()


def test_guarantees_hold_in_95_of_100_resamplings_by_video(population):
    p, y, groups = population
    def lost(t): return mean_loss(p < t, y == 1, groups)
    def wrong(t): return mean_loss(y == 0, p >= t, groups)
    def block(p, y, groups, limit): return block_threshold(p, y, groups, 1 - limit)
    for find, true in ((pass_threshold, lost), (block, wrong)):
        for limit in (.15, .25):
            ok, found = held(find, population, true, limit)
            assert ok >= 95 and (found >= 50 or find is block and limit < .2), (find, limit, ok, found)


def test_clips_as_the_unit_would_break_the_guarantee():
    "The test above would say nothing if any way of counting held"
    p, y, groups = dependent(3000, 7, 1)
    alike = np.repeat(p, 10), np.repeat(y, 10), np.repeat(groups, 10)  # ten copies of a clip are a video
    def lost(t): return mean_loss(alike[0] < t, alike[1] == 1, alike[2])
    by_video, by_clip = (held(pass_threshold, alike, lost, .25, unit) for unit in ('video', 'clip'))
    assert by_clip[1] == 100 and by_clip[0] < 80 and by_video[0] >= 95


def test_levels_of_the_fallback_procedure_sum_to_the_level():
    "The chance of a false threshold where every precision is exactly at the limit"
    rng, false = np.random.default_rng(0), 0
    for _ in range(300):
        p, y = rng.random(80), (rng.random(80) < .8).astype(int)
        false += block_threshold(p, y, np.arange(80), .8, .1) is not None
    assert false <= .1*300 and set(STARTS) < set(GRID)


def test_too_few_videos_is_an_error_with_the_number_needed():
    p, y, groups = dependent(40, 0)
    probs, task = dict(funny=np.stack([1 - p, p], 1)), Task('funny', classes=('no', 'yes'))
    with pytest.raises(ValueError, match="'funny'.*needs at least 59 videos with a clip of class 'yes', and there"):
        fit_decisions(probs, dict(funny=y), [task], groups)
    with pytest.raises(ValueError, match=rf'needs at least {videos_needed(.05, .01)} videos with a labelled clip'):
        fit_decisions(probs, dict(funny=y), [task], groups, .95, .3)
    with pytest.raises(ValueError, match='there are 0'):
        fit_decisions(probs, dict(funny=np.zeros_like(y)), [task], groups)
    for bad in (dict(block_precision=1.), dict(pass_recall_loss=0.), dict(confidence=95)):
        with pytest.raises(ValueError, match=f'{next(iter(bad))} must be between 0 and 1'):
            fit_decisions(probs, dict(funny=y), [task], groups, **bad)
    with pytest.raises(ValueError, match='no task has two classes'): fit_decisions({}, {}, [MOOD], groups)


@settings(deadline=None, max_examples=5)
@given(seeds)
def test_a_decision_is_by_the_two_thresholds(seed):
    p, y, groups = dependent(150, seed)
    probs = dict(funny=np.stack([1 - p, p], 1))
    found = fit_decisions(probs, dict(funny=y), [FUNNY], groups, .7, .2)
    t, decided = found.tasks['funny'], found.decide(probs)['funny']
    top = math.inf if t.block_from is None else t.block_from
    assert t.pass_below <= top and set(decided) <= set(CHOICES)
    assert ((decided == 'pass') == (p < t.pass_below)).all() and ((decided == 'block') == (p >= top)).all()
    assert {c: (decided == c).mean() for c in CHOICES} == pytest.approx(t.shares)
    assert (t.block_from is None) == bool(found.notes)
    read = decisions_of(json.loads(json.dumps(found.to_dict())), 'x')
    assert read.tasks == found.tasks and (read.decide(probs)['funny'] == decided).all()


def test_a_network_so_good_that_nothing_is_left_to_review():
    y = np.repeat([0, 1], 300)
    p = np.where(y == 1, .97, .03) + np.linspace(0, .01, 600)
    found = fit_decisions(dict(funny=np.stack([1 - p, p], 1)), dict(funny=y), [FUNNY], np.arange(600))
    assert found.tasks['funny'].shares == dict(zip(CHOICES, (.5, 0., .5)))


def test_the_review_curve_is_the_share_between_the_thresholds():
    p, y, groups = dependent(200, 3)
    curve = review_curve(p, y, groups, guarantees=(.6, .8, .999))
    low, high = pass_threshold(p, y, groups, .2), block_threshold(p, y, groups, .8)
    between = (p >= min(low, high)) & (p < high) if high is not None else p >= low
    assert curve['review'][1] == pytest.approx(between.mean())
    assert curve['review'][0] <= curve['review'][1] and math.isnan(curve['review'][2])


def test_damaged_decisions_are_refused():
    good = Decisions(dict(funny=TaskDecision(.2, .9, 10, 10, {})), .9, .05, .95).to_dict()
    assert decisions_of(good, 'decisions.json').tasks['funny'].block_from == .9
    for bad in ({}, dict(good, tasks=3), dict(good, extra=1), dict(good, tasks=dict(funny=dict(pass_below=.2))),
                dict(good, tasks=dict(funny=dict(good['tasks']['funny'], pass_below=.95)))):
        with pytest.raises(ValueError, match='decisions.json holds no decisions'): decisions_of(bad, 'decisions.json')
