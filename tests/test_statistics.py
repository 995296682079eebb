"""Statistics: equal to scipy's and scikit-learn's where they have them, otherwise to a loop or a simulation."""
import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from sklearn import metrics as sk

from hiccap.statistics import (MAX_SHARE, MIN_CLASS_VIDEOS, MIN_MISSED_VIDEOS, MIN_VIDEOS, MIN_VIDEOS_DIFFERENCE, holm,
                               intraclass_correlation, jackknife_interval, leave_out_weights, mean_interval, nanmean,
                               paired, rank_scores, ratio, score_interval, too_few_videos)

NAN = float('nan')
pytestmark = pytest.mark.filterwarnings('error::RuntimeWarning')


def same(a, b): return a == pytest.approx(b, rel=1e-6, abs=1e-9, nan_ok=True)


# What is undefined

def test_ratio_and_mean_are_undefined_without_a_warning():
    assert same(ratio([[1, 2], [0, 3]], [2, 0]), np.array([[.5, NAN], [0, NAN]]))
    assert np.isnan(ratio(1, -1)) and ratio(3, 4) == .75
    assert same(nanmean(np.array([[1, NAN, 4], [NAN]*3, [0, 0, 3]])).tolist(), [2.5, NAN, 1])


# Ranking scores

rows = st.integers(1, 20).flatmap(lambda n: st.tuples(
    st.lists(st.integers(0, 4), min_size=n, max_size=n), st.lists(st.booleans(), min_size=n, max_size=n),
    st.lists(st.lists(st.sampled_from([0, 0, 1, 2, .5]), min_size=n, max_size=n), min_size=1, max_size=3)))

@given(rows)
def test_ranking_scores_of_weighted_rows_are_those_of_scikit_learn(case):
    "Ties, weights of zero and fractions, and samples of one class"
    x, y, w = (np.array(o) for o in case)
    auroc, ap = rank_scores(x.astype(float), y, w)
    for r in range(len(w)):
        k = w[r] > 0
        both = 0 < y[k].sum() < k.sum()
        kw = dict(sample_weight=w[r][k])
        assert same(auroc[r], sk.roc_auc_score(y[k], x[k], **kw) if both else NAN)
        assert same(ap[r], sk.average_precision_score(y[k], x[k], **kw) if both else NAN)


# Samples of videos

videos = st.lists(st.integers(0, 6), min_size=1, max_size=20)

@given(videos, st.integers(2, 9), st.integers(0, 99))
def test_each_sample_leaves_out_whole_videos_and_each_video_is_left_out_once(groups, n, seed):
    w, names = leave_out_weights(groups, n, seed), np.unique(groups)
    assert w.shape == (min(n, len(names)), len(groups)) and w.dtype == np.float32 and set(w.ravel()) <= {0., 1.}
    first = np.stack([w[:, np.array(groups) == g][:, 0] for g in names], 1)
    for g, out in zip(names, first.T): assert (w[:, np.array(groups) == g] == out[:, None]).all()
    out = 1 - first
    assert (out.sum(0) == 1).all() and np.ptp(out.sum(1)) <= 1 and (out.sum(1) >= 1).all()


def test_blocks_are_drawn_from_the_seed():
    a, b, c = (leave_out_weights(np.arange(50), 7, s) for s in (0, 0, 1))
    assert (a == b).all() and (a != c).any()
    assert (leave_out_weights(np.arange(7), 7, 0) == leave_out_weights(np.arange(7), 1000, 1)).all()
    for n in (1, 0, -1):
        with pytest.raises(ValueError, match=f'at least 2 samples, got {n}'): leave_out_weights([1, 2], n)


# Intervals over videos

@given(st.lists(st.integers(0, 20), min_size=2, max_size=12), st.sampled_from([(0, 1), (-1, 1), (2, 7)]))
def test_the_jackknife_of_a_mean_is_student_on_the_scale_of_the_logit(x, bounds):
    a, b = bounds
    x = a + (b - a)*np.array(x)/20
    mean, left = x.mean(), (x.sum() - x)/(len(x) - 1)
    (low, high), why = jackknife_interval(mean, left, bounds)
    if not (np.ptp(x) > 0 and a < mean < b):
        assert np.isnan([low, high]).all() and why.startswith('it is the same')
        return
    assert why == '' and a < low < mean < high < b
    u = (mean - a)/(b - a)
    half = stats.t.ppf(.975, len(x) - 1)*stats.sem(x)/(b - a)/(u*(1 - u))
    for end, sign in ((low, -1), (high, 1)):
        v = (end - a)/(b - a)
        assert np.log(v/(1 - v)) == pytest.approx(np.log(u/(1 - u)) + sign*half, rel=1e-5, abs=1e-6) or v in (0, 1)
    again = jackknife_interval(a + b - mean, a + b - left, bounds)[0]  # the other way round
    assert same(again, (a + b - high, a + b - low))
    if bounds == (0, 1): assert jackknife_interval(mean, left) == ((low, high), '')  # the bounds by default


def test_no_spread_and_undefined_samples_have_no_interval():
    for value, left, bounds, why in (
            (1., [1., 1., 1.], (0, 1), 'the same whichever'), (.5, [.5]*4, (0, 1), 'the same whichever'),
            (.1 + .2, [.3]*4, (0, 1), 'the same whichever'), (0., [0., 0.], (-1, 1), 'the same whichever'),
            (1., [1., .9, 1.], (0, 1), 'the same whichever'),
            (.5, [.4, NAN, .6, NAN], (0, 1), 'undefined for 2 of 4 samples'),
            (NAN, [.4, .6], (0, 1), 'it is undefined')):
        found, reason = jackknife_interval(value, left, bounds)
        assert np.isnan(found).all() and why in reason
    assert np.isfinite(jackknife_interval(0., [-.1, .1], (-1, 1))[0]).all()


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=12), st.integers(-3, 0))
def test_without_a_bound_an_interval_is_student_and_with_one_bound_student_of_the_logarithm(x, least):
    "The jackknife error of a mean is its standard error, so scipy has the interval. Turned round, it is the same"
    x = np.array(x)/7
    mean, left, inf = x.mean(), (x.sum() - x)/(len(x) - 1), np.inf
    ends, why = score_interval(mean, left, (-inf, inf))
    if np.ptp(x) == 0:
        for bounds in ((-inf, inf), (least, inf), (-inf, 9)):
            ends, why = score_interval(mean, left, bounds)
            assert np.isnan(ends).all() and why.startswith('it is the same')
        return
    assert why == '' and same(ends, stats.t.interval(.95, len(x) - 1, mean, stats.sem(x)))
    above, half = mean - least, ends[1] - mean
    if 0 < above < half/12: return  # beyond, rounding decides how far the lower end is from the bound
    ends, why = score_interval(mean, left, (least, inf))
    if above <= 0:
        assert np.isnan(ends).all() and why.startswith('it is the same')
        return
    assert why == '' and same(np.log((np.array(ends) - least)/above), np.array([-half, half])/above)
    turned, why = score_interval(-mean, -left, (-inf, -least))
    assert why == '' and same(turned, (-ends[1], -ends[0]))


def test_an_undefined_score_without_bounds_has_no_interval():
    for bounds in ((0, np.inf), (-np.inf, 1), (-np.inf, np.inf)):
        for value, left, why in ((NAN, [.4, .6], 'it is undefined'),
                                 (.5, [.4, NAN, .6, NAN], 'it is undefined for 2 of 4 samples that leave out a video')):
            found, reason = score_interval(value, left, bounds)
            assert np.isnan(found).all() and reason == why
    assert score_interval(.5, [.4, .6], (0, 1)) == jackknife_interval(.5, [.4, .6])
    assert score_interval(.5, [.4, .6]) == jackknife_interval(.5, [.4, .6])  # the bounds by default


def test_how_many_videos_are_too_few():
    "At each limit there are enough, and one less is not"
    def clips(*n): return np.repeat(np.arange(len(n)), n)
    assert not too_few_videos(clips(*[2]*MIN_VIDEOS))
    assert too_few_videos(clips(*[2]*(MIN_VIDEOS - 1))) == f'{MIN_VIDEOS - 1} videos, and an interval needs at least 5'
    assert too_few_videos(clips(7)) == '1 video, and an interval needs at least 5'
    n = MIN_VIDEOS_DIFFERENCE
    assert too_few_videos(clips(*[1]*(n - 1)), least=n) and not too_few_videos(clips(*[1]*n), least=n)
    assert not too_few_videos(clips(5, 1, 1, 1, 1, 1)) and MAX_SHARE == .5
    assert too_few_videos(clips(6, 1, 1, 1, 1, 1)).startswith('one video has 6 of 11 clips')
    g = clips(*[3]*30)
    for k, enough in ((MIN_CLASS_VIDEOS, True), (MIN_CLASS_VIDEOS - 1, False), (0, False)):
        y = (g < k).astype(int)
        found = too_few_videos(g, y, ('no', 'yes'))
        assert found == ('' if enough else f"class 'yes' is in {k} videos, and an interval needs at least 3")
        assert not too_few_videos(g)  # a score that is not about classes
    for k, enough in ((MIN_MISSED_VIDEOS, True), (MIN_MISSED_VIDEOS - 1, False)):
        y = (g < k).astype(int)
        missed, hit = (y == 0), (y == 0) | (np.arange(len(g)) == 1)
        for hits, fine in (((), True), ((hit,), True), ((missed,), enough), ((hit, missed), enough),
                           ((missed, hit), enough)):
            found = too_few_videos(g, y, ('no', 'yes'), hits)
            assert (found == '') == fine and (fine or "no clip of class 'yes' is predicted correctly" in found)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=15))
def test_the_correlation_of_a_videos_rows_is_that_of_an_analysis_of_variance(rows):
    g, x = np.array([f'v{o[0]}' for o in rows]), np.array([o[1:] for o in rows], float)
    parts, N = [x[g == v] for v in np.unique(g)], len(g)
    one, both = intraclass_correlation(x[:, 0], g), intraclass_correlation(x, g)
    if len(parts) in (1, N): assert one == both == 0.; return
    between = sum(len(p)*(p.mean(0) - x.mean(0))**2 for p in parts)/(len(parts) - 1)
    within = sum(((p - p.mean(0))**2).sum(0) for p in parts)/(N - len(parts))
    n = (N - sum(len(p)**2 for p in parts)/N)/(len(parts) - 1)  # rows of a video, weighted as Donner has it
    for got, b, w in ((one, between[0], within[0]), (both, between.sum(), within.sum())):
        assert same(got, (b - w)/(b + (n - 1)*w) if b + w else 0.)
    if within[0]:
        F = stats.f_oneway(*[p[:, 0] for p in parts]).statistic
        assert same(one, (F - 1)/(F - 1 + n))


def test_the_correlation_of_a_videos_rows_by_hand():
    for x, g, want in (([1, 1, 2, 2], 'aabb', 1.), ([0, 1, 0, 1], 'aabb', -1.), ([0, 1, 2]*2, 'aaabbb', -.5),
                       ([3, 3, 3, 3], 'aabb', 0.), ([1, 2], 'aa', 0.), ([1, 2], 'ab', 0.)):
        found = intraclass_correlation(x, list(g))
        assert found == want and type(found) is float


# Seeds

seeds = st.integers(2, 8).flatmap(lambda n: st.tuples(
    *[st.lists(st.integers(0, 1000).map(lambda v: v/1000), min_size=n, max_size=n)]*2))

@given(seeds)
def test_a_paired_difference_is_that_of_scipy(ab):
    a, b = map(np.array, ab)
    mean, half, p = paired(a, b)
    assert same(mean, (a - b).mean())
    if len(set(np.round(a - b, 9))) == 1: assert np.isnan([half, p]).all(); return
    assert same(p, stats.ttest_rel(a, b).pvalue)
    assert same((mean - half, mean + half), stats.ttest_rel(a, b).confidence_interval(.95))
    assert same(mean_interval(a - b), (mean, half))


@pytest.mark.parametrize('J', [1, 2, 5])
@pytest.mark.parametrize('difference', [0, .01, .3])
def test_equal_differences_say_nothing(J, difference):
    "Also where they are equal up to rounding, as .72 - .71 and .71 - .70 are"
    b = np.linspace(.61, .73, J)
    mean, half, p = paired(b + difference, b)
    assert same(mean, difference) and np.isnan([half, p]).all()
    assert np.isnan(mean_interval([.7]*J)[1]) and same(mean_interval([.7]*J)[0], .7)


def test_a_small_spread_is_a_spread():
    _, half, p = paired([.5, .5 + 1e-9, .5], [.4, .4, .4])
    assert 0 < half < 1e-8 and 0 < p < 1e-6


@pytest.mark.parametrize('a, b, message', [
    ([.1, .2, .3], [.1], r'shapes \(3,\) and \(1,\) are not in pairs'),
    ([.1, .2], .1, 'not in pairs'),
    ([[.1, .2]], [[.1, .3]], 'not in pairs'),
    ([], [], 'no number to take the mean of')])
def test_numbers_that_are_not_in_pairs_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message): paired(a, b)


def test_a_mean_of_no_seed_is_refused():
    with pytest.raises(ValueError, match='no number to take the mean of: give one for each seed'): mean_interval([])


@pytest.mark.parametrize('overlap', [-.1, NAN, np.inf])
def test_an_impossible_overlap_is_refused(overlap):
    for f in (lambda: paired([.1, .2], [.1, .3], overlap=overlap), lambda: mean_interval([.1, .2], overlap)):
        with pytest.raises(ValueError, match='overlap is test clips per training clip'): f()


@given(seeds, st.floats(0, 2))
def test_overlap_is_the_correction_of_nadeau_and_bengio(ab, overlap):
    "Their statistic, written out: the mean over the root of (1/J + n_test/n_train) times the variance"
    a, b = map(np.array, ab)
    d, J = a - b, len(a)
    mean, half, p = paired(a, b, overlap=overlap)
    if not half == half: return
    t = d.mean()/np.sqrt((1/J + overlap)*d.var(ddof=1))
    assert same(p, 2*stats.t.sf(abs(t), J - 1)) and same(half, stats.t.ppf(.975, J - 1)*abs(d.mean()/t) if t else half)
    assert same(mean_interval(d, overlap), (mean, half)) and half >= paired(a, b)[1] - 1e-12


def test_overlap_restores_the_level_where_splits_overlap():
    """Two models that are equally good, compared on five random test parts of the same clips. A clip's difference is
    the same in every test part that has it, so the five differences are correlated. Student's test rejects too often"""
    rng, rejected = np.random.default_rng(0), np.zeros(2)
    n, test, sims = 100, 20, 1000
    for _ in range(sims):
        clips = rng.normal(size=n)
        d = np.array([clips[rng.permutation(n)[:test]].mean() for _ in range(5)])
        rejected += [paired(d, 0*d)[2] < .05, paired(d, 0*d, overlap=test/(n - test))[2] < .05]
    plain, corrected = rejected/sims
    assert plain > .1 and .03 < corrected < .07


# Several tests

@given(st.lists(st.floats(0, 1), max_size=8), st.randoms())
def test_holm_is_the_largest_of_what_a_loop_finds(p, random):
    got = holm(p)
    for i, v in enumerate(p):
        # the corrected value of one is the largest factor times p of those that are not above it
        ranks = sorted(range(len(p)), key=lambda j: p[j])
        assert same(got[i], min(1, max((len(p) - k)*p[j] for k, j in enumerate(ranks[:ranks.index(i) + 1]))))
    order = sorted(range(len(p)), key=lambda i: p[i])
    assert all(got[i] <= got[j] for i, j in zip(order, order[1:])) and all(g >= v for g, v in zip(got, p))
    assert holm([NAN, *p])[1:] == got and np.isnan(holm([NAN])[0])


def test_holm_by_hand():
    assert same(holm([.01, .04, .02]), [.03, .04, .04]) and holm([]) == []   # 1*.04 is raised to 2*.02
    assert same(holm([.011, .03, .012]), [.033, .033, .033])                 # 2*.012 and 1*.03 are raised to 3*.011
    assert same(holm([.5, .6]), [1., 1.])
