"""Operating points, and the thresholds that are chosen for them: by definition, on every way to cut a few rows."""
import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from scipy.special import expit

from hiccap.baselines import validation_score
from hiccap.metrics import (UNSURE, Thresholds, _counts_at, _video_samples, best_threshold, choose_thresholds,
                            count_scores, criterion_of, merits, steady_threshold)
from hiccap.operating_points import GOALS, operating_point
from hiccap.tasks import IGNORE, Task

FUNNY, MOOD, SCORE = Task('funny'), Task('mood', 3), Task('score', kind='regression')
seeds = st.integers(0, 2**32 - 1)
pytestmark = pytest.mark.filterwarnings('error::RuntimeWarning')  # nothing divides by zero


def clips(n, seed, shift=0.):
    "Probabilities of class 1, and labels that are drawn from them, or from ones that are `shift` higher as logits"
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)*2.8
    return expit(z), (rng.random(n) < expit(z + shift)).astype(int)


def two(p):
    "Probabilities of both classes"
    return np.stack([1 - np.asarray(p, float), p], 1)


# operating points

POINTS = st.one_of(
    st.sampled_from(['macro_f1', 'f1', 'accuracy']),
    st.builds('{}={}'.format, st.sampled_from(['precision', 'recall']), st.floats(.01, 1).map(lambda v: round(v, 3))),
    st.builds('cost={}:{}'.format, st.integers(1, 20), st.sampled_from([.5, 1, 2.5, 7])))


@given(POINTS)
def test_an_operating_point_is_read_back(text):
    point = operating_point(text)
    assert operating_point(str(point)) == point and point.goal in GOALS and point.description
    assert point.score in ('macro_f1', 'f1', 'accuracy', 'precision', 'recall')


@pytest.mark.parametrize('text, message', [
    ('presicion=0.9', "unknown operating point 'presicion=0.9'. Did you mean 'precision'"),
    ('auroc', 'unknown operating point'), ('', 'unknown operating point'), (.9, 'unknown operating point'),
    ('precision', 'takes a number above 0 and at most 1'), ('precision=90', 'takes a number above 0 and at most 1'),
    ('recall=0', 'takes a number'), ('recall=nan', 'takes a number'), ('f1=1', 'takes no value'),
    ('cost=5', 'takes two positive numbers'), ('cost=5:-1', 'takes two positive numbers'),
    ('cost=5:1:1', 'takes two positive numbers'), ('cost=inf:1', 'takes two positive numbers')])
def test_an_operating_point_that_cannot_be_read_is_an_error(text, message):
    with pytest.raises(ValueError, match='operating point') as e: operating_point(text)
    assert message in str(e.value)
    with pytest.raises(ValueError, match='operating point'): choose_thresholds({}, {}, [], score=text)


def at_every_threshold(p, y):
    "Confusion matrix of each way to cut the rows, by definition"
    cuts = [0, *np.unique(p), 2]
    return [np.array([[((y == i) & ((p >= c) == j)).sum() for j in (0, 1)] for i in (0, 1)]) for c in cuts]


@settings(deadline=None)
@given(seeds, POINTS, st.integers(2, 40), st.booleans())
def test_the_chosen_threshold_is_the_best_on_its_own_data(seed, text, n, tied):
    p, y = clips(n, seed)
    assume(0 < y.sum() < n)
    p = p.round(1) if tied else p
    threshold, missed = best_threshold(p, y, text)
    counts = np.array([[((y == i) & ((p >= threshold) == j)).sum() for j in (0, 1)] for i in (0, 1)])
    (_, alarms), (lost, hit) = counts
    every, point = at_every_threshold(p, y), operating_point(text)
    def precision(m): return m[1][1]/(m[0][1] + m[1][1]) if m[0][1] + m[1][1] else 0
    def recall(m): return m[1][1]/m[1].sum()
    if point.goal == 'cost':
        a, b = point.costs
        assert a*lost + b*alarms == min(a*m[1][0] + b*m[0][1] for m in every)
    elif point.least is None:
        s = [count_scores(m)[point.goal] for m in [counts, *every]]
        s = [o[1] if np.ndim(o) else o for o in s]
        assert s[0] == pytest.approx(max(s[1:]))
    else:
        bound, free = (precision, recall) if point.goal == 'precision' else (recall, precision)
        enough = [m for m in every if bound(m) >= point.least - 1e-9]
        if enough:
            assert missed is None and bound(counts) >= point.least - 1e-9
            assert free(counts) == pytest.approx(max(map(free, enough)))
        else:
            assert missed == pytest.approx(max(map(bound, every))) == pytest.approx(bound(counts))
    assert point.goal != 'recall' or missed is None  # a recall of 1 is always there


def scores_at(cuts, p, y, point, w=1.):
    "(S, K) scores at thresholds of samples, in which the rows count `w` (S, N): labels `y`, or their probabilities"
    yes, w = p >= np.array(cuts)[:, None], np.broadcast_to(w, (np.shape(w) or (1, len(p))))
    counts = [(w*of) @ said.T for of in (1 - y, y) for said in (~yes, yes)]
    return np.nan_to_num(merits(np.stack(counts, -1).reshape(len(w), -1, 2, 2), point)[..., 0])


@settings(max_examples=20)
@given(seeds, st.sampled_from(['macro_f1', 'f1', 'accuracy', 'cost=5:1']), st.integers(3, 50), st.booleans(),
       st.sampled_from([0., -2., 2.]))
def test_the_steady_threshold_is_one_that_the_rows_cannot_tell_from_the_best(seed, point, n, tied, shift):
    "Also where the probabilities are wrong, and expect most of a threshold that the labels show to be worse"
    p, y = clips(n, seed, shift)
    assume(0 < y.sum() < n)
    p = p.round(1) if tied else p
    cuts = [0, *((a + b)/2 for a, b in itertools.pairwise(np.unique(p))), 2]
    found, expected = scores_at(cuts, p, y, point)[0], scores_at(cuts, p, p, point)[0]
    drawn = scores_at(cuts, p, y, point, np.random.default_rng(1).multinomial(n, np.full(n, 1/n), 1000))
    error = (drawn[:, [found.argmax()]] - drawn).std(0)
    worse, t = found.max() - found, np.searchsorted(np.unique(p), steady_threshold(p, y, point))
    assert worse[t] <= 1.3*UNSURE*error[t] + 1e-9  # other samples give other standard errors
    better = expected > expected[t] + 1e-9  # left out because of the labels
    assert (worse > .75*UNSURE*error)[better].all()


def test_a_threshold_that_the_rows_show_to_be_worse_is_not_taken():
    "All clips above 0.8 are positive and no other is, while the probabilities expect far more positives"
    p = np.linspace(.02, .98, 97)
    y = (p > .805).astype(int)
    for point in ('macro_f1', 'f1', 'accuracy', 'cost=1:1'):
        low = scores_at([.3, .5, .805], p, p, point)[0]
        assert low[:2].max() > low[2]  # what would be taken by the expected score alone
        assert steady_threshold(p, y, point) == pytest.approx(.8, abs=.05)


def test_thresholds_are_compared_on_the_same_rows():
    """Labels that are wrong at either threshold say nothing about their difference. `k` of 97 rows between two
    thresholds have a standard error of about the root of `k`, so up to 4 are within two standard errors"""
    p = np.linspace(.02, .98, 97)
    y = (p > .605).astype(int)
    far = np.flatnonzero((p < .3) | (p > .8))[::3]
    y[far] = 1 - y[far]
    assert best_threshold(p, y, 'accuracy')[0] == pytest.approx(.605)
    assert steady_threshold(p, y, 'accuracy') == pytest.approx(.565, abs=.021)  # 0.5 is expected to be the best


def test_the_steady_threshold_of_few_rows_is_what_the_probabilities_expect():
    p, y = np.array([.1, .2, .3, .45, .6, .7, .8, .9]), np.array([0, 1, 0, 0, 1, 1, 0, 1])
    expected = scores_at(np.linspace(.05, .95, 91), p, p, 'macro_f1').max()
    found = steady_threshold(p, y, 'macro_f1')
    assert scores_at([found], p, p, 'macro_f1')[0, 0] == pytest.approx(expected)


@pytest.mark.parametrize('p, threshold', [([.1, .5, .7], .6), ([.3, .5, .9], .4)])
def test_of_steady_thresholds_with_the_same_expected_score_the_nearest_to_a_half_is_taken(p, threshold):
    "A clip of probability 0.5 is as likely right on either side"
    assert steady_threshold(np.array(p), np.array([0, 0, 1]), 'accuracy') == pytest.approx(threshold)


def copies(seed):
    "Six clips of the same probability and label in each of 40 videos; the probabilities are too low"
    p, y = clips(40, seed)
    return np.repeat(p**3, 6), np.repeat(y, 6), np.repeat(np.arange(40), 6)


def test_copies_of_a_clip_in_its_video_say_nothing_about_a_threshold():
    changed = 0
    for seed in range(4):
        p, y, video = copies(seed)
        own = steady_threshold(p[::6], y[::6], 'macro_f1')
        assert steady_threshold(p, y, 'macro_f1', video) == own
        changed += steady_threshold(p, y, 'macro_f1') != own
    assert changed > 1


def test_a_sample_has_as_many_videos_as_there_are_and_all_clips_of_each():
    videos = np.array(list('abcabbd'))
    samples = np.array(list(_video_samples(videos, 7)))
    first = [list(videos).index(v) for v in 'abcd']
    assert (samples[:, first].sum(1) == 4).all() and (samples == samples[:, [0, 1, 2, 0, 1, 1, 6]]).all()
    assert len(np.unique(samples, axis=0)) > 20  # of 35
    assert all(o.sum() == 5 for o in _video_samples(None, 5))


def test_steady_thresholds_are_of_labelled_clips_and_their_videos():
    p, y, video = copies(6)
    y = np.where(np.arange(240) % 6 == video % 3, IGNORE, y)
    known = y != IGNORE
    probs, targets = dict(funny=two(p)), dict(funny=y)
    def chosen(**kw): return choose_thresholds(probs, targets, [FUNNY], **kw).values['funny']
    def steady(*groups): return steady_threshold(p[known], y[known], 'macro_f1', *groups)
    assert chosen(steady=True, groups=video) == steady(video[known]) != steady() == chosen(steady=True)
    best = [best_threshold(p[known], y[known], o)[0] for o in ('macro_f1', 'precision=0.6')]
    assert best[0] == chosen() == chosen(groups=video) != steady()
    assert best[1] == chosen(steady=True, score='precision=0.6') == chosen(score='precision=0.6')


def test_rows_are_counted_for_several_samples_at_once():
    p, y = clips(12, 0)
    p, w = p.round(1), np.random.default_rng(0).integers(0, 3, (2, 3, 12))
    cuts = [0, .35, .6, 2]
    by_hand = [[[[[(s*((y == i) & ((p >= c) == j))).sum() for j in (0, 1)] for i in (0, 1)] for c in cuts] for s in a]
               for a in w]
    assert (_counts_at(cuts, p, y, w) == by_hand).all()
    assert (_counts_at(cuts, p, y) == _counts_at(cuts, p, y, np.ones((1, 12)))[0]).all()


# the merits of predictions

COUNTS = np.array([[[5, 1], [2, 4]], [[6, 0], [6, 0]], [[0, 6], [0, 6]]])  # some, none and all rows are predicted yes

@pytest.mark.parametrize('point, first, second', [
    ('cost=2.5:0.5', [-5.5, -15, -3], [0, 0, 0]),
    ('cost=1:4', [-6, -6, -24], [0, 0, 0]),
    ('f1', [8/11, 0, 2/3], [0, 0, 0]),
    ('macro_f1', [(10/13 + 8/11)/2, 1/3, 1/3], [0, 0, 0]),
    ('accuracy', [.75, .5, .5], [0, 0, 0]),
    ('precision=0.8', [2/3, -.8, -.3], [.8, 0, 1]),  # reached exactly, and lacking
    ('precision=0.801', [-.001, -.801, -.301], [2/3, 0, 1]),
    ('recall=0.7', [2/3 - .7, -.7, .5], [.8, 0, 1])])
def test_merits_are_the_score_or_what_is_lacking_and_what_decides_between_equals(point, first, second):
    found = merits(COUNTS, point)
    assert found == pytest.approx(np.stack([first, second], -1), abs=1e-12)
    assert all((merits(c.tolist(), operating_point(point)) == o).all() for c, o in zip(COUNTS, found))


def test_of_thresholds_with_the_same_score_the_one_with_fewer_errors_is_taken():
    "The same recall with a higher precision; where no precision is enough, the same precision with a higher recall"
    p = np.array([.2, .4, .6, .8])
    assert best_threshold(p, np.array([0, 0, 1, 1]), 'precision=0.4') == (pytest.approx(.5), None)
    assert best_threshold(p, np.array([1, 0, 1, 0]), 'precision=0.9') == (pytest.approx(.2), .5)


# choosing

def test_a_least_precision_that_is_exactly_reached_is_reached():
    p, y = [.1, .3, .5, .7, .9], [0, 1, 0, 1, 1]
    probs = dict(funny=two(p))
    for point, unreached, threshold in (('precision=0.75', {}, .2), ('precision=1', {}, .6)):
        found = choose_thresholds(probs, dict(funny=y), [FUNNY], score=point)
        assert found.unreached == unreached and found.notes == ()
        assert found.values == dict(funny=pytest.approx(threshold)) and found.score == point
    for point, said in (('precision=0.75', 3/4), ('precision=0.751', None)):
        found = choose_thresholds(probs, dict(funny=[0, 1, 1, 1, 0]), [FUNNY], score=point)
        assert (found.notes == ()) == (said is not None)
        assert found.unreached == ({} if said else dict(funny=pytest.approx(3/4)))
        assert found.values == dict(funny=pytest.approx(.2))


def test_only_tasks_of_two_classes_have_a_threshold():
    p = two([.1, .4, .8])
    probs = dict(mood=np.full((3, 3), 1/3), score=np.array([[.5], [-1], [2]], np.float32), funny=p)
    targets = dict(mood=[0, 1, 2], score=[1., np.nan, 2], funny=[0, 1, 1])
    found = choose_thresholds(probs, targets, [MOOD, SCORE, FUNNY])
    assert found == Thresholds(dict(funny=.25), 'validation data', (), 'macro_f1', {})
    with pytest.raises(AttributeError): found.values = {}  # they are kept with a run
    predicted = found.predict(probs)
    assert {k: v.tolist() for k, v in predicted.items()} == dict(mood=[0]*3, score=[.5, -1, 2], funny=[0, 1, 1])
    assert predicted['score'].dtype == np.float64
    assert found.predict(dict(funny=two([.25, .2499])))['funny'].tolist() == [1, 0]


def test_a_precision_that_is_not_reached_is_said_with_the_best():
    p, y = np.array([[.2, .8], [.4, .6], [.9, .1]]), np.array([0, 1, 0])
    found = choose_thresholds(dict(funny=p), dict(funny=y), [FUNNY], 'the validation clips', 'precision=0.9')
    assert found.unreached == dict(funny=.5) and found.predict(dict(funny=p))['funny'].tolist() == [1, 1, 0]
    note, = found.notes
    for part in ('funny', 'precision=0.9', 'the validation clips', '0.500', 'Ask for less'): assert part in note
    assert choose_thresholds(dict(funny=p), dict(funny=y), [FUNNY], score='precision=0.5').notes == ()


def test_one_class_leaves_the_threshold_of_every_operating_point():
    for point in ('macro_f1', 'precision=0.9', 'recall=0.9', 'cost=5:1'):
        for y in ([0, 0], [1, 1], [IGNORE, IGNORE]):
            found = choose_thresholds(dict(funny=[[.9, .1], [.2, .8]]), dict(funny=y), [FUNNY], score=point)
            assert found.values == dict(funny=.5) and found.unreached == {} and found.score == point
            n, positive = sum(o != IGNORE for o in y), sum(o == 1 for o in y)
            assert found.notes == (
                f'funny: validation data has {positive} of {n} rows positive, so the threshold stays 0.5',)


def test_how_models_are_compared_at_an_operating_point():
    for point, score in (('precision=0.9', 'recall'), ('recall=0.9', 'precision'), ('cost=5:1', 'macro_f1'),
                         ('f1', 'f1'), ('accuracy', 'accuracy')):
        assert criterion_of(FUNNY, point) == score
        assert criterion_of(MOOD, point) == ('accuracy' if score == 'accuracy' else 'macro_f1')
        assert criterion_of(SCORE, point) == 'pearson'


def test_simple_models_are_tuned_for_the_operating_point():
    "One model is precise, the other finds all; each wins where that is asked for"
    y = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    precise = np.array([.9, .8, .2, .1, .6, .5, .4, .3])
    complete = np.array([.9, .8, .7, .6, .95, .2, .1, .3])
    def value(p, point): return validation_score(two(p), y, FUNNY, point)[0]
    assert value(precise, 'precision=1') == .5 and value(complete, 'precision=1') < 0
    assert value(precise, 'recall=1') == .5 < value(complete, 'recall=1') == .8
    assert value(complete, 'cost=5:1') == -1 > value(precise, 'cost=5:1')
