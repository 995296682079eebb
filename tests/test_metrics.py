"""Scores: equal to scikit-learn's where that defines them, otherwise to a loop; what is undefined is NaN."""
import json
import warnings
from inspect import signature

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from sklearn import metrics as sk

from scipy import stats

from hiccap import metrics as module
from hiccap.metrics import (CRITERIA, HEADLINE, OF_CLIPS, RANKING, SCORE_NAMES, Thresholds, baseline_counts,
                            best_trivial, choose_thresholds, compare_scores, count_scores, evaluate, interval_text,
                            mean_scores, score_bounds, score_task, score_text, score_with_interval)
from hiccap.baselines import tfidf_baseline
from hiccap.statistics import jackknife_interval, score_interval
from hiccap.tasks import IGNORE, Task

NAN = float('nan')
pytestmark = pytest.mark.filterwarnings('error::RuntimeWarning')  # nothing divides by zero, and no mean is of nothing


def same(a, b): return a == pytest.approx(b, abs=1e-6, nan_ok=True)


@st.composite
def answers(draw, classes=st.integers(2, 4), rows=st.integers(1, 25), unlabelled=True):
    "A task, (N, C) probabilities with many ties, and targets; any class may be missing"
    C, n = draw(classes), draw(rows)
    raw = (np.array(draw(st.lists(st.lists(st.integers(0, 3), min_size=C, max_size=C), min_size=n, max_size=n)), float)
           + 0.125)
    y = draw(st.lists(st.integers(-1 if unlabelled else 0, C - 1), min_size=n, max_size=n))
    return Task('t', C), raw/raw.sum(1, keepdims=True), np.array([IGNORE if o < 0 else o for o in y])


def one_by_sklearn(name, p, y, said):
    "A headline score of probabilities or predicted classes on labelled rows, by scikit-learn; NaN where it has none"
    C = p.shape[1]
    if name in RANKING:
        f = dict(auroc=sk.roc_auc_score, average_precision=sk.average_precision_score)[name]
        each = [f(y == c, p[:, c]) if 0 < (y == c).sum() < len(y) else NAN for c in range(C)]
        return each[1] if C == 2 else np.mean([o for o in each if o == o] or [NAN])
    if name == 'accuracy': return sk.accuracy_score(y, said)
    if name == 'weighted_f1': return sk.f1_score(y, said, average='weighted', zero_division=0)
    f = dict(precision=sk.precision_score, recall=sk.recall_score, f1=sk.f1_score)[name.removeprefix('macro_')]
    each = f(y, said, labels=range(C), average=None, zero_division=np.nan)
    return np.mean([o for o in each if o == o] or [NAN]) if name.startswith('macro_') else each[1]


def by_sklearn(p, y, C):
    "The headline scores of probabilities on labelled rows, and the confusion"
    said = (p[:, 1] >= .5).astype(int) if C == 2 else p.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return ({k: one_by_sklearn(k, p, y, said) for k in HEADLINE[C == 2]},
                sk.confusion_matrix(y, said, labels=range(C)))


@given(answers())
def test_scores_are_those_of_scikit_learn(case):
    task, p, y = case
    s = evaluate(dict(t=p), dict(t=y), [task], n_boot=20)
    k = y != IGNORE
    if not k.any():
        assert s.unmeasured == dict(t='no labelled row') and not s.tasks and not s.overall
        return
    want, confusion = by_sklearn(p[k], y[k], task.n_classes)
    got = s.tasks['t']
    assert list(got.scores) == list(want)
    for name, v in want.items(): assert same(got.scores[name], v), name
    assert got.confusion == confusion.tolist() and got.support == confusion.sum(1).tolist() and got.n == k.sum()
    for i, c in enumerate(task.class_names): assert got.classes[c]['rows'] == confusion[i].sum()


@given(answers(unlabelled=False), st.data())
def test_count_scores_of_weighted_rows_are_those_of_scikit_learn(case, data):
    "A row of weight 2 counts twice, one of weight 0 not at all"
    task, p, y = case
    w = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(y), max_size=len(y))))
    if not w.any(): return
    said = p.argmax(1)
    counts = np.zeros((task.n_classes,)*2)
    np.add.at(counts, (y, said), w)
    got, labels = count_scores(counts), range(task.n_classes)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        P, R, F, n = sk.precision_recall_fscore_support(y, said, labels=labels, sample_weight=w, zero_division=np.nan)
    for k, v in dict(precision=P, recall=R, f1=F).items():
        assert same(got[k], v) and same(got[f'macro_{k}'], np.nanmean(v) if not np.isnan(v).all() else NAN), k
    assert same(got['accuracy'], sk.accuracy_score(y, said, sample_weight=w))
    want = sk.f1_score(y, said, labels=labels, average='weighted', sample_weight=w, zero_division=0)
    assert same(got['weighted_f1'], want)


@given(answers(unlabelled=False))
def test_trivial_baselines_are_the_scores_of_answering_so(case):
    task, _, y = case
    C, n = task.n_classes, len(y)
    found = evaluate(dict(t=np.full((n, C), 1/C)), dict(t=y), [task], n_boot=0).tasks['t'].baselines
    names = [f'always {c}'
             for c in (task.class_names if C == 2 else [task.class_names[int(np.bincount(y, minlength=C).argmax())]])]
    assert list(found) == [*names, 'prior']
    for i, c in enumerate(task.class_names):
        if f'always {c}' not in found: continue
        acting = evaluate(dict(t=np.eye(C)[np.full(n, i)]), dict(t=y), [task], n_boot=0).tasks['t'].scores
        for k, v in acting.items(): assert same(found[f'always {c}'][k], v), (c, k)


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 0]))
def test_intervals_of_trivial_baselines_are_those_of_a_loop_over_videos(seed, C):
    "The baseline answers anew for the clips that are left: the prior, the mean and the median change with them"
    rng = np.random.default_rng(seed)
    g = np.sort(rng.integers(0, 8, 60))
    y = rng.choice(C, 60, p={2: [.4, .6], 3: [.8, .1, .1]}[C]) if C else rng.normal(size=60)
    task = Task('t', C) if C else Task('t', kind='regression', scale=(-3, 3))
    def scored(k, **kw): return score_task(task, np.full((len(y[k]), max(C, 1)), .5), y[k], y[k], g[k], **kw)
    whole = scored(slice(None))
    assert list(whole.baseline_intervals) == list(whole.baselines) != []
    for name, of in whole.baseline_intervals.items():
        for k, (low, high) in of.items():
            if low != low: continue
            samples = [scored(g != v, n_boot=0).baselines[name][k] for v in np.unique(g)]
            expected, why = score_interval(whole.baselines[name][k], samples, score_bounds(k))
            assert not why and same(low, expected[0]) and same(high, expected[1])
    known = dict.fromkeys(k for of in whole.baseline_intervals.values() for k, (low, _) in of.items() if low == low)
    assert set(known) >= ({'accuracy'} if C else {'mae'})


def test_the_prior_is_what_guessing_gives():
    "The expected confusion of guessing, against ten thousand guesses of a large sample"
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [500, 300, 200])
    guesses = rng.choice(3, (200, 1000), p=[.5, .3, .2])
    cells = np.stack([np.bincount(y*3 + g, minlength=9).reshape(3, 3) for g in guesses])
    assert np.allclose(cells.mean(0), baseline_counts([500, 300, 200])['prior'], atol=4)
    found = evaluate(dict(t=np.full((1000, 3), 1/3)), dict(t=y), [Task('t', 3)], n_boot=0).tasks['t'].baselines['prior']
    measured = count_scores(cells)
    for k in ('macro_f1', 'weighted_f1', 'macro_precision', 'macro_recall', 'accuracy'):
        assert abs(found[k] - measured[k].mean()) < .005, k
    assert same(found['auroc'], .5) and same(found['average_precision'], 1/3)


# Overall

@given(st.integers(1, 12), st.integers(1, 4), st.data())
def test_exact_match_and_hamming_are_those_of_a_loop(n, n_tasks, data):
    tasks = [Task(f't{j}', 2 + j % 2) for j in range(n_tasks)]
    draw = lambda lo, hi: np.array(data.draw(st.lists(st.integers(lo, hi), min_size=n, max_size=n)))
    targets = {t.name: np.where((y := draw(-1, t.n_classes - 1)) < 0, IGNORE, y) for t in tasks}
    predicted = {t.name: draw(0, t.n_classes - 1) for t in tasks}
    s = evaluate({t.name: np.full((n, t.n_classes), 1 / t.n_classes) for t in tasks}, targets, tasks,
                 predicted=predicted, n_boot=10)
    exact, hits, labels = [], 0, 0
    for i in range(n):
        known = [t.name for t in tasks if targets[t.name][i] != IGNORE]
        if not known: continue
        right = [targets[k][i] == predicted[k][i] for k in known]
        exact.append(all(right)); hits += sum(right); labels += len(right)
    if not labels:
        assert s.overall == {} and s.n_rows == 0 and len(s.unmeasured) == n_tasks
        return
    assert (same(s.overall['exact_match'], np.mean(exact)) and same(s.overall['hamming'], hits / labels)
            and s.n_rows == len(exact))
    assert same(s.overall['mean_macro_f1'], np.mean([o.scores['macro_f1'] for o in s.tasks.values()]))
    assert list(s.overall_intervals) == ['exact_match', 'hamming']


# Thresholds

SK = dict(f1=lambda y, v: sk.f1_score(y, v, zero_division=0), accuracy=sk.accuracy_score,
          macro_f1=lambda y, v: sk.f1_score(y, v, average='macro', zero_division=0, labels=[0, 1]))

@given(answers(classes=st.just(2)), st.sampled_from(CRITERIA))
# F1 is 2/3 from .6 and from .1
@example((Task('t'), np.array([[.1, .9], [.7, .3], [.8, .2], [.9, .1]]), np.array([1, 0, 0, 1])), 'f1')
@example((Task('t'), np.array([[0., 1.], [.7, .3], [.8, .2], [.9, .1]]), np.array([0, 0, 1, 0])), 'accuracy')
def test_thresholds_maximise_their_score(case, score):
    task, p, y = case
    th = choose_thresholds(dict(t=p), dict(t=y), [task], 'these rows', score)
    k = y != IGNORE
    p, y = p[k], y[k]
    assert th.score == score
    if not 0 < y.sum() < len(y):
        assert th.values == dict(t=.5) and len(th.notes) == 1 and 'these rows' in th.notes[0]
        return
    def scored(cut): return SK[score](y, p[:, 1] >= cut)
    cuts = np.concatenate([np.unique(p[:, 1]), [2.]])
    best = max(scored(c) for c in cuts)
    assert same(scored(th.values['t']), best) and th.source == 'these rows'
    assert same(SK[score](y, th.predict(dict(t=p))['t']), best)
    above = max((cuts[-2] + 1)/2, np.nextafter(cuts[-2], 2))
    middles = [(a + b)/2 for a, b in zip(cuts[:-2], cuts[1:-1])] + [cuts[0], above]
    assert same(abs(th.values['t'] - .5), min(abs(m - .5) for m in middles if same(scored(m), best)))


def test_a_threshold_between_neighbouring_floats_holds_in_their_precision():
    "Saturated probabilities, as networks give them in float32"
    a = np.float32(.3)
    for _ in range(50):
        b = np.nextafter(a, np.float32(1))
        p = np.array([[1 - a, a], [1 - b, b]], np.float32)
        th = choose_thresholds(dict(t=p), dict(t=[0, 1]), [Task('t')])
        assert th.predict(dict(t=p))['t'].tolist() == [0, 1] == th.predict(dict(t=torch.tensor(p)))['t'].tolist()
        a = b


# Intervals

def by_jackknife(score, rows, videos, bounds=(0, 1)):
    "Student's interval on the scale of the logit, written out: `score` of the rows of all videos but one, in a loop"
    whole = score(rows)
    left = np.array([score(rows[videos != v]) for v in np.unique(videos)])
    n, (a, b) = len(left), bounds
    x, error = (whole - a)/(b - a), ((n - 1)/n*((left - whole)**2).sum())**.5/(b - a)
    if not (error > 1e-9 and 0 < x < 1): return NAN, NAN
    half, at = stats.t.ppf(.975, n - 1)*error/(x*(1 - x)), np.log(x/(1 - x))
    return tuple(a + (b - a)/(1 + np.exp(-(at + o))) for o in (-half, half))


def drawn(seed, C=2, videos=8, clips=3, unlabelled=0., skill=1.):
    "Probabilities of two models, the second worse, targets, and videos of uneven size, in mixed order"
    rng = np.random.default_rng(seed)
    g = rng.permutation(np.repeat(np.arange(videos), rng.integers(1, 2*clips, videos)))
    y = rng.integers(0, C, len(g))
    x = skill*np.eye(C)[y] + rng.normal(size=(videos, C))[g]*.5 + rng.normal(size=(len(g), C))
    p, q = (np.exp(o)/np.exp(o).sum(1, keepdims=True) for o in (x, x + rng.normal(size=x.shape)))
    return p, q, np.where(rng.random(len(g)) < unlabelled, IGNORE, y), np.array([f'v{o}' for o in g])


def enough(y, said, g, score, least=5):
    "Whether there are enough videos for an interval, from the definition of the limits"
    names, rows = np.unique(g, return_counts=True)
    if len(names) < least or rows.max() > len(g)/2: return False
    if score in OF_CLIPS: return True
    for c in said['classes']:
        n = len(set(g[y == c]))
        hit = score in RANKING or all((v[y == c] == c).any() for v in said['models'])
        if n < 3 or not hit and n < 20: return False
    return True


few_examples = settings(max_examples=12, deadline=None)  # each scores every sample with scikit-learn

@few_examples
@given(st.integers(0, 10**6), st.integers(2, 4), st.sampled_from([0., .3]))
def test_intervals_are_those_of_a_loop_over_videos(seed, C, unlabelled):
    p, _, y, g = drawn(seed, C, videos=7, unlabelled=unlabelled)
    k = y != IGNORE
    said = (p[:, 1] >= .5).astype(int) if C == 2 else p.argmax(1)
    s = evaluate(dict(t=p), dict(t=y), [Task('t', C)], groups=g).tasks['t']
    assert list(s.intervals) == list(s.scores)
    for name, found in s.intervals.items():
        if not enough(y[k], dict(classes=range(C), models=[said[k]]), g[k], name):
            assert np.isnan(found).all() and any(o.startswith('no interval') for o in s.notes), name
            continue
        want = by_jackknife(lambda r, name=name: one_by_sklearn(name, p[r], y[r], said[r]), np.flatnonzero(k), g[k])
        assert same(found, want), name
        if found[0] == found[0]: assert 0 < found[0] < s.scores[name] < found[1] < 1


@few_examples
@given(st.integers(0, 10**6), st.integers(4, 9))
def test_intervals_over_all_tasks_are_those_of_a_loop_over_videos(seed, videos):
    rng, tasks = np.random.default_rng(seed), [Task('a'), Task('b', 3)]
    g = np.repeat(np.arange(videos), rng.integers(1, 4, videos))
    y, v = ({t.name: rng.integers(0, t.n_classes, len(g)) for t in tasks} for _ in range(2))
    y = {k: np.where(rng.random(len(g)) < .3, IGNORE, o) for k, o in y.items()}
    probs = {t.name: np.full((len(g), t.n_classes), 1/t.n_classes) for t in tasks}
    s = evaluate(probs, y, tasks, predicted=v, groups=g)
    known, right = (np.stack(o, 1) for o in ([y[k] != IGNORE for k in y], [y[k] == v[k] for k in y]))
    rows = np.flatnonzero(known.any(1))
    scores = dict(exact_match=lambda i: (right | ~known)[i].all(1).mean(),
                  hamming=lambda i: right[i].sum()/known[i].sum())
    names, n = np.unique(g[rows], return_counts=True)
    assert s.n_groups == len(names) and s.n_rows == len(rows) and list(s.overall_intervals) == list(scores)
    for k, score in scores.items():
        if len(names) < 5 or n.max() > len(rows)/2: assert np.isnan(s.overall_intervals[k]).all() and s.notes
        else: assert same(s.overall_intervals[k], by_jackknife(score, rows, g[rows]))


def test_intervals_of_a_partly_labelled_task_are_those_of_its_labelled_rows():
    "With the videos of these rows, wherever they are among the others"
    tasks, rng = [Task('a'), Task('b', 3), Task('c')], np.random.default_rng(0)
    p, _, y, g = zip(*(drawn(i, t.n_classes, videos=30) for i, t in enumerate(tasks)))
    n = min(map(len, y))
    probs, targets, g = {t.name: o[:n] for t, o in zip(tasks, p)}, {t.name: o[:n] for t, o in zip(tasks, y)}, g[0][:n]
    for t in tasks: targets[t.name] = np.where(rng.random(n) < .4, IGNORE, targets[t.name])
    together = evaluate(probs, targets, tasks, groups=g)
    for t in tasks:
        k = targets[t.name] != IGNORE
        alone = evaluate({t.name: probs[t.name][k]}, {t.name: targets[t.name][k]}, [t], groups=g[k]).tasks[t.name]
        assert together.tasks[t.name].intervals == alone.intervals and alone.notes == together.tasks[t.name].notes
        assert np.isfinite(alone.intervals['macro_f1']).all()
    shuffled = rng.permutation(n)
    wrong = evaluate(probs, targets, tasks, groups=g[shuffled])
    assert wrong.tasks['a'].intervals['auroc'] != together.tasks['a'].intervals['auroc']


@few_examples
@given(st.integers(0, 10**6))
def test_intervals_do_not_depend_on_names_or_order(seed):
    p, _, y, g = drawn(seed, videos=9)
    order = np.random.default_rng(seed).permutation(len(y))
    rename = {v: f'other {i}' for i, v in enumerate(np.random.default_rng(seed).permutation(np.unique(g)))}
    first, *others = (evaluate(dict(t=p[o]), dict(t=y[o]), [Task('t')], groups=videos[o], seed=i).tasks['t']
                      for i, (o, videos) in enumerate([
                          (np.arange(len(y)), g), (order, g), (np.arange(len(y)), np.array([rename[v] for v in g]))]))
    for other in others:
        for k, v in first.intervals.items(): assert same(v, other.intervals[k]), k
        assert other.scores.keys() == first.scores.keys()


def test_blocks_of_videos_where_there_are_more_videos_than_samples():
    "Another seed draws other blocks; the interval stays about as wide"
    p, _, y, g = drawn(0, videos=300)
    def interval(**kw): return evaluate(dict(t=p), dict(t=y), [Task('t')], groups=g, **kw).tasks['t'].intervals['auroc']
    whole, blocks, again, other = interval(), interval(n_boot=30), interval(n_boot=30), interval(n_boot=30, seed=1)
    assert blocks == again != other and whole == interval(seed=1) == interval(n_boot=300)
    assert .6 < (blocks[1] - blocks[0])/(whole[1] - whole[0]) < 1.7
    with pytest.raises(ValueError, match='at least 2 samples, got 1; give 0'): interval(n_boot=1)


def test_samples_are_scored_in_parts_where_they_do_not_fit():
    rng, n = np.random.default_rng(0), 9000
    right = rng.random(n) < .8
    y = rng.integers(0, 2, n)
    s = evaluate(dict(t=np.eye(2)[np.where(right, y, 1 - y)]), dict(t=y), [Task('t')], n_boot=1000).tasks['t']
    assert same(s.scores['accuracy'], right.mean())
    low, high = s.intervals['accuracy']
    assert abs((high - low)/(2*1.96*(right.var()/n)**.5) - 1) < .1


def few(y, said, g, **kw):
    s = evaluate(dict(t=np.eye(2)[said]*.8 + .1), dict(t=y), [Task('t', classes=('calm', 'gory'))], groups=g, **kw)
    return s.tasks['t'], s


def test_too_few_videos_have_no_interval_and_are_counted():
    y = np.tile([0, 1], 10)
    said, g = np.where(np.arange(20) % 7 == 0, 1 - y, y), np.repeat(np.arange(5), 4)
    assert np.isfinite(list(few(y, said, g)[0].intervals.values())).all() and few(y, said, g)[1].all_notes() == []
    s, whole = few(y, said, np.minimum(g, 3))
    note = 'no interval: 4 videos, and an interval needs at least 5'
    assert np.isnan(list(s.intervals.values())).all() and s.notes == [note] and whole.notes == (note,)
    assert whole.all_notes() == [f't, all tasks: {note}']
    assert note in whole._repr_markdown_() and whole.markdown().count(note) == 2
    assert '| f1 | **0.857** | – |' in whole.markdown() and '| exact_match | 0.850 | – |' in whole.markdown()
    assert whole.to_dict()['overall_notes'] == [note] and whole.to_dict()['tasks']['t']['notes'] == [note]
    assert few(y, said, np.minimum(g, 3), n_boot=0)[1].all_notes() == []  # none was asked for


def test_a_class_in_two_videos_has_no_interval_but_accuracy_has():
    y = np.tile([0, 0, 0, 1], 6)
    g = np.repeat(np.arange(6), 4)
    said = np.where(np.arange(24) % 5 == 0, 1 - y, y)
    for videos, holds in ((3, True), (2, False)):
        labels = np.where(g < videos, y, 0)
        s, _ = few(labels, said, g)
        assert np.isfinite(s.intervals['accuracy']).all()
        assert all(np.isfinite(s.intervals[k]).all() == holds for k in ('auroc', 'macro_f1', 'average_precision'))
        prior = s.baseline_intervals['prior']
        assert np.isfinite(prior['f1']).all() == holds and np.isfinite(prior['accuracy']).all()
        missing = "class 'gory' is in 2 videos, and an interval needs at least 3"
        assert any(missing in o and 'accuracy' not in o for o in s.notes) != holds


def test_a_class_that_is_always_missed_has_no_interval_below_20_videos():
    for videos, holds in ((20, True), (19, False)):
        g = np.repeat(np.arange(25), 4)
        y = np.tile([0, 0, 0, 1], 25)*(g < videos)
        said = (np.arange(100) % 9 == 0)*(1 - y)  # sometimes wrong of class 0, always of class 1
        s, _ = few(y, said, g)
        assert np.isfinite(s.intervals['macro_f1']).all() == holds and np.isfinite(s.intervals['auroc']).all()
        missing = "no clip of class 'gory' is predicted correctly, and an interval needs one, or the class in at least"
        assert any(missing in o for o in s.notes) != holds


def test_one_video_with_most_clips_has_no_interval():
    for large, holds in ((20, True), (21, False)):
        g = np.array([0]*large + [*range(1, 6)]*4)
        y = np.arange(len(g)) % 2
        s, _ = few(y, np.where(np.arange(len(g)) % 7 == 0, 1 - y, y), g)
        assert np.isfinite(s.intervals['accuracy']).all() == holds
        note = 'no interval: one video has 21 of 41 clips, and an interval needs at most 50% in one'
        assert s.notes == ([] if holds else [note])


def test_a_score_that_rests_on_one_video_has_no_interval_and_the_samples_are_counted():
    "Precision of class 1 where it is predicted in one video only: without that video it is undefined"
    g = np.repeat(np.arange(6), 4)
    y = np.where(g == 0, 0, np.tile([0, 1, 1, 0], 6))
    s, _ = few(y, np.where(g == 2, np.tile([0, 1, 0, 1], 6), 0), g)
    assert np.isnan(s.intervals['precision']).all() and s.scores['precision'] == .5
    assert 'no interval for precision: it is undefined for 1 of 6 samples that leave out a video' in s.notes
    assert np.isfinite(s.intervals['accuracy']).all()


def test_a_score_without_spread_has_no_interval():
    y, g = np.tile([0, 1], 12), np.repeat(np.arange(6), 4)
    s, whole = few(y, y, g)
    assert set(s.scores.values()) == {1.} and np.isnan(list(s.intervals.values())).all()
    assert s.notes == ['no interval: it is the same whichever video is left out'] == list(whole.notes)


def coverage(n_sims, grouped, seed=0, videos=40, clips=4):
    "Share of samples whose interval holds the true accuracy, 0.7, where clips of a video are right or wrong together"
    rng, hold = np.random.default_rng(seed), 0
    for i in range(n_sims):
        right = np.repeat(rng.random(videos) < .7, clips)
        y = rng.integers(0, 2, videos*clips)
        v = np.where(right, y, 1 - y)
        s = evaluate(dict(t=np.eye(2)[v]), dict(t=y), [Task('t')],
                     groups=np.repeat(np.arange(videos), clips) if grouped else None, n_boot=200, seed=i)
        lo, hi = s.tasks['t'].intervals['accuracy']
        assert same(s.overall_intervals['hamming'], (lo, hi))
        hold += lo <= .7 <= hi
    return hold/n_sims


def test_intervals_hold_the_truth_as_often_as_they_say_if_videos_are_told():
    assert .88 <= coverage(150, True) <= .99
    assert coverage(150, False) < .75  # clips of a video counted as independent


@pytest.mark.parametrize('videos', [5, 10])
def test_intervals_hold_the_truth_with_few_videos(videos):
    "AUROC and macro F1 where labels and errors of a video are alike; the percentile bootstrap holds 0.75 to 0.9"
    rng, held, n = np.random.default_rng(1), [], 200
    def draw(videos):
        g = np.repeat(np.arange(videos), 4)
        y = (rng.normal(size=videos)[g]*.7 + rng.logistic(size=len(g)) > 0).astype(int)
        x = 1.2*y - .6 + .5*rng.normal(size=videos)[g] + rng.normal(size=len(g))
        return 1/(1 + np.exp(-x)), y, g
    x, y, _ = draw(50_000)
    truth = dict(auroc=sk.roc_auc_score(y, x), macro_f1=sk.f1_score(y, x >= .5, average='macro'))
    for _ in range(n):
        x, y, g = draw(videos)
        found = evaluate(dict(t=np.stack([1 - x, x], 1)), dict(t=y), [Task('t')], groups=g).tasks['t'].intervals
        held.append([NAN if np.isnan(found[k][0]) else found[k][0] <= v <= found[k][1] for k, v in truth.items()])
    assert (np.isfinite(held).mean(0) > .8).all() and (np.nanmean(held, 0) >= .92).all()


def test_intervals_narrow_with_the_root_of_the_number_of_videos():
    rng = np.random.default_rng(0)
    def width(n):
        y = rng.integers(0, 2, n); v = np.where(rng.random(n) < .8, y, 1 - y)
        lo, hi = evaluate(dict(t=np.eye(2)[v]), dict(t=y), [Task('t')], n_boot=400).tasks['t'].intervals['accuracy']
        return hi - lo
    assert 1.6 < width(150)/width(600) < 2.5
    assert abs(width(400)/(2*1.96*(.16/400)**.5) - 1) < .15


# What is undefined, empty or wrong

def test_one_class_alone():
    for y in (0, 1):
        s = evaluate(dict(t=[[.2, .8], [.6, .4]]), dict(t=[y, y]), [Task('t')], n_boot=20)
        o = s.tasks['t']
        assert (np.isnan(o.scores['auroc']) and np.isnan(o.scores['average_precision']) and o.scores['accuracy'] == 0.5
                and o.notes)
        assert (all(np.isnan(b['auroc']) and np.isnan(b['average_precision']) for b in o.baselines.values())
                and np.isnan(o.intervals['auroc']).all())
        assert np.isnan(o.scores['recall']) == (y == 0) and len(s.table()) == 7 and '–' in s.markdown()


@pytest.mark.parametrize('C', [2, 3])
def test_a_single_row(C):
    s = evaluate(dict(t=np.eye(C)[[1]]), dict(t=[1]), [Task('t', C)])
    assert (s.tasks['t'].scores['accuracy'] == 1 and s.overall == dict(exact_match=1.0, hamming=1.0, mean_macro_f1=1.0)
            and s.n_rows == s.n_groups == 1)
    note = 'no interval: 1 video, and an interval needs at least 5'
    assert np.isnan(s.tasks['t'].intervals['accuracy']).all() and note in s.tasks['t'].notes and s.notes == (note,)
    assert all(np.isnan(o).all() for o in s.overall_intervals.values())
    json.dumps(s.to_dict()), s.table(), s.markdown()


def test_no_rows_and_no_resamples():
    none = evaluate(dict(t=np.zeros((0, 2))), dict(t=np.zeros(0, int)), [Task('t')])
    assert (none.unmeasured == dict(t='no labelled row') and none.n_rows == none.n_groups == 0
            and len(none.table()) == 0 and 'not measured' in none.markdown())
    json.dumps(none.to_dict())
    y = np.array([0, 1, 1, 0])
    s = evaluate(dict(t=np.eye(2)[y]), dict(t=y), [Task('t')], n_boot=0)
    assert (s.tasks['t'].intervals == {} == s.overall_intervals and s.tasks['t'].scores['f1'] == 1
            and s.table().low.isna().all() and '| f1 | **1.000** | – |' in s.markdown() and s.all_notes() == [])
    import matplotlib
    matplotlib.use('agg')
    s.plot('f1'), s.plot_confusion('t')
    with pytest.raises(ValueError, match="has no 'weighted_f1'; it has f1"): s.plot('weighted_f1')


def test_others_stand_beside_even_where_they_measured_less():
    y = np.array([0, 1, 1, 0])
    full = evaluate(
        dict(a=np.eye(2)[y], b=np.eye(2)[y]), dict(a=y, b=y), [Task('a'), Task('b', classes=('calm', 'gory'))], n_boot=5
    )
    part = evaluate(dict(a=np.full((4, 2), .5)), dict(a=y), [Task('a')], n_boot=5)
    t = full.table(dict(plain=part)).set_index(['task', 'score'])
    assert (t.loc[('a', 'recall'), 'plain'] == 1 and np.isnan(t.loc[('b', 'recall'), 'plain'])
            and t.loc[('b', 'accuracy'), 'always no'] == 0.5)
    text = full.markdown(dict(plain=part))
    assert 'always calm' in text and '| plain |' in text
    full.tasks['a'].baselines.clear()
    assert full.table()['value'].notna().all() and full.markdown() and full.plot('f1')


GOOD = dict(probs=dict(t=[[.9, .1], [.2, .8]]), targets=dict(t=[0, 1]), tasks=[Task('t')])

@pytest.mark.parametrize('change, message', [
    (dict(probs=dict(t=[[.9, .1], [NAN, .8]])), "'t' are not finite in row 1"),
    (dict(probs=dict(t=[[.9, .1], [np.inf, .8]])), 'not finite in row 1'),
    (dict(probs=dict(t=[[.9, .1], [-2.3, 4.]])), 'row 1 of task .t. holds .* take the softmax'),
    (dict(probs=dict(t=[[.9, .1]])), r'have shape \(1, 2\), expected \(2, 2\)'),
    (dict(probs=dict(t=[[.9, .1, 0]]*2)), r'expected \(2, 2\)'),
    (dict(probs={}), "no probabilities for task 't'; there are none"),
    (dict(targets=dict(s=[0, 1])), "no targets for task 't'; there are s"),
    (dict(targets=dict(t=[0, 2])), "target 2 of task 't' in row 1 is out of range"),
    (dict(targets=dict(t=[0, -1])), 'target -1'),
    (dict(tasks=[]), 'no task was given'),
    (dict(groups=[1]), '1 groups for 2 rows'),
    (dict(predicted=dict(t=[0])), 'predicted classes of task'),
    (dict(predicted=dict(t=[0, 2])), 'predicted class 2 of task .t. in row 1 is not a class'),
    (dict(predicted=dict(t=[0, -1])), 'predicted class -1'),
    (dict(predicted=dict(s=[0, 1])), "no predicted classes for task 't'; there are s"),
    (dict(predicted=dict(t=[1, 2]), targets=dict(t=[IGNORE, 0])), 'predicted class 2 of task .t. in row 1 is not a'),
    (dict(probs=dict(t=[[.9, .1], [-1.5e-6, 1.]])), 'row 1 of task .t. holds .* take the softmax'),
    (dict(probs=dict(t=[[0., 1 + 1.5e-6], [.2, .8]])), 'row 0 of task .t. holds .* take the softmax'),
    (dict(probs=dict(t=[[1., 0.]]*2, s=[[1., 0.]]), targets=dict(t=[0, 1], s=[0]), tasks=[Task('t'), Task('s')]),
     "different numbers of rows: {'t': 2, 's': 1}"),
])
def test_what_does_not_fit_is_named(change, message):
    evaluate(**GOOD, n_boot=2)
    with pytest.raises(ValueError, match=message): evaluate(**{**GOOD, **change}, n_boot=2)
    if not set(change) & {'groups', 'predicted'} and len(change) == 1 and change.get('tasks') != []:
        with pytest.raises(ValueError, match=message): choose_thresholds(**{**GOOD, **change})


def test_probabilities_may_be_off_by_rounding():
    s = evaluate(**{**GOOD, 'probs': dict(t=[[1 + .9e-6, -.9e-6], [0, 1.]])}, n_boot=0)
    assert s.tasks['t'].scores['accuracy'] == 1


def test_what_is_predicted_of_a_row_without_a_label_does_not_matter():
    "A class that does not exist, or a number that is not finite"
    number = Task('n', kind='regression')
    targets, probs = dict(t=[0, IGNORE, 1], n=[1., NAN, 2.]), dict(t=[[.9, .1], [.9, .1], [.2, .8]], n=[[0.]]*3)
    predicted = dict(t=[0, 7, 1], n=[1., np.inf, 4.])
    s = evaluate(probs, targets, [Task('t'), number], predicted=predicted, n_boot=0)
    assert s.tasks['t'].scores['accuracy'] == 1 and s.tasks['n'].scores['mae'] == 1 and s.n_rows == 2
    assert s.overall['exact_match'] == 1
    with pytest.raises(ValueError, match="predictions of task 'n' are not finite in row 2"):
        evaluate(probs, targets, [Task('t'), number], predicted=dict(t=[0, 0, 1], n=[1., 2., NAN]))
    with pytest.raises(ValueError, match="predictions of task 'n' are not finite in row 1"):
        evaluate(probs | dict(n=[[0.], [NAN], [0.]]), targets, [number])


def test_a_class_that_is_never_predicted_or_never_there_is_said():
    tasks = [Task('t', 3, classes=('calm', 'gory', 'sad'))]
    s = evaluate(dict(t=np.eye(3)[[0, 0, 2]]), dict(t=[0, 1, 0]), tasks, n_boot=0).tasks['t']
    assert s.notes == ["no row is of class 'sad': its recall, and its part in AUROC and average precision, are"
                       " undefined", "class 'gory' was never predicted: its precision is undefined"]


def test_the_mean_correlation_is_over_the_regression_tasks():
    tasks = [Task('a', kind='regression'), Task('b', kind='regression'), Task('t')]
    y = np.arange(4.)
    p = dict(a=y, b=np.array([1., 0, 3, 2]))
    s = evaluate({k: v[:, None] for k, v in p.items()} | dict(t=np.eye(2)[[0, 1, 1, 0]]),
                 dict(a=y, b=y, t=[0, 1, 1, 1]), tasks, n_boot=0)
    assert same(s.overall['mean_pearson'], (1 + stats.pearsonr(p['b'], y)[0])/2) and same(s.overall['exact_match'], .75)
    assert same(s.overall['mean_macro_f1'], s.tasks['t'].scores['macro_f1'])
    assert repr(s).endswith(f"mean macro F1 {s.overall['mean_macro_f1']:.3f}, mean Pearson 0.800)")
    numbers = evaluate({k: v[:, None] for k, v in p.items()}, dict(a=y, b=y), tasks[:2], n_boot=0)
    assert numbers.overall == dict(mean_pearson=s.overall['mean_pearson']) and numbers.n_rows == 4


def test_torch_tensors_are_taken():
    s = evaluate(dict(t=torch.tensor(GOOD['probs']['t'])), dict(t=torch.tensor([0, 1])), GOOD['tasks'], n_boot=3)
    assert s.tasks['t'].scores['f1'] == 1


# Differences

@few_examples
@given(st.integers(0, 10**6), st.integers(2, 3), st.sampled_from([0., .3]), st.data())
def test_a_difference_and_its_interval_are_those_of_a_loop_over_videos(seed, C, unlabelled, data):
    score = data.draw(st.sampled_from(HEADLINE[C == 2]))
    p, q, y, g = drawn(seed, C, videos=22, clips=2, unlabelled=unlabelled)
    said, k = [o.argmax(1) for o in (p, q)], y != IGNORE
    a, b = (p, q) if score in RANKING else said
    d = compare_scores(dict(t=a), dict(t=b), dict(t=y), [Task('t', C)], g, score)['t']
    def difference(rows):
        return np.subtract(*[one_by_sklearn(score, o[rows], y[rows], v[rows]) for o, v in zip((p, q), said)])
    rows = np.flatnonzero(k)
    assert same(d['difference'], difference(rows))
    if not enough(y[k], dict(classes=range(C), models=[o[k] for o in said]), g[k], score, 20):
        assert np.isnan([d['low'], d['high']]).all() and d['note'].startswith('no interval')
        return
    assert same((d['low'], d['high']), by_jackknife(difference, rows, g[k], (-1, 1))) and bool(d['note']) == (
        d['low'] != d['low'])
    back = compare_scores(dict(t=b), dict(t=a), dict(t=y), [Task('t', C)], g, score)['t']
    assert same([back[k] for k in ('difference', 'low', 'high')], [-d[k] for k in ('difference', 'high', 'low')])


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 3), st.sampled_from(['macro_f1', 'auroc']))
def test_the_mean_score_of_trainings_and_its_interval_are_those_of_a_loop_over_videos(seed, C, score):
    rng = np.random.default_rng(seed)
    g, y = np.repeat(np.arange(10), 4), rng.integers(0, C, 40)
    p = [(rng.dirichlet(np.ones(C), 40) + .3*np.eye(C)[y])/1.3 for _ in range(3)]
    y[rng.random(40) < .1] = IGNORE
    values = [dict(t=o if score == 'auroc' else o.argmax(1)) for o in p]
    d = mean_scores(values, dict(t=y), [Task('t', C)], g, score)['t']
    def of(keep):
        k = keep & (y != IGNORE)
        return np.mean([one_by_sklearn(score, o[k], y[k], o[k].argmax(1)) for o in p])
    low, high = jackknife_interval(of(g >= 0), [of(g != v) for v in range(10)])[0]
    assert same(d['value'], of(g >= 0)) and (d['note'] or same(d['low'], low) and same(d['high'], high))
    alone = mean_scores(values[:1], dict(t=y), [Task('t', C)], g, score, n_boot=0)['t']
    assert np.isnan(alone['low']) and same(alone['value'], one_by_sklearn(
        score, p[0][y != IGNORE], y[y != IGNORE], p[0][y != IGNORE].argmax(1)))


def test_the_mean_score_needs_as_many_videos_as_one_score():
    y = np.tile([0, 1], 20)
    said = [dict(t=np.where(np.random.default_rng(s).random(40) < .8, y, 1 - y)) for s in range(2)]
    for videos, enough in ((4, False), (5, True)):
        d = mean_scores(said, dict(t=y), [Task('t')], np.arange(40)//(40//videos))['t']
        assert (d['low'] < d['value'] < d['high']) == enough and ('at least 5' in d['note']) != enough
    none = mean_scores(said, dict(t=np.full(40, IGNORE)), [Task('t')])['t']
    assert none['note'] == 'no labelled row' and np.isnan(none['value'])


def test_differences_are_over_videos():
    "Clips of a video that are right or wrong together are not independent"
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(40), 10)
    y = rng.integers(0, 2, 400)
    a, b = (np.where(np.repeat(rng.random(40) < share, 10), y, 1 - y) for share in (.8, .7))
    def width(groups, score='accuracy', to=lambda v: v):
        d = compare_scores(dict(t=to(a)), dict(t=to(b)), dict(t=y), [Task('t')], groups, score)['t']
        return d['high'] - d['low']
    assert 2.5 < width(g)/width(None) < 4  # the root of ten
    assert 2.5 < width(g, 'auroc', lambda v: np.eye(2)[v])/width(None, 'auroc', lambda v: np.eye(2)[v]) < 4
    assert width(None) == width(np.arange(400))


def test_a_difference_needs_twenty_videos():
    for videos, holds in ((20, True), (19, False)):
        p, q, y, g = drawn(3, videos=videos)
        for a, b, score in ((p, q, 'auroc'), (p.argmax(1), q.argmax(1), 'macro_f1')):
            d = compare_scores(dict(t=a), dict(t=b), dict(t=y), [Task('t')], g, score)['t']
            assert np.isfinite([d['low'], d['high']]).all() == holds
            assert d['note'] == ('' if holds else 'no interval: 19 videos, and an interval needs at least 20')


def test_both_models_must_hit_a_class_for_the_interval_of_a_difference():
    p, _, y, g = drawn(0, videos=25)
    keep = (y == 0) | np.isin(g, [f'v{i}' for i in range(10)])
    p, y, g = p[keep], y[keep], g[keep]
    a, never = p.argmax(1), np.where(np.arange(len(y)) % 9 == 0, 1 - y, 0)*(y == 0)
    for one, other in ((a, never), (never, a)):
        d = compare_scores(dict(t=one), dict(t=other), dict(t=y), [Task('t')], g)['t']
        assert np.isnan(d['low']) and "no clip of class 'yes' is predicted correctly" in d['note']
    assert np.isfinite(compare_scores(dict(t=a), dict(t=never), dict(t=y), [Task('t')], g, 'accuracy')['t']['low'])


def test_equal_models_have_a_difference_of_zero_without_an_interval():
    p, _, y, g = drawn(0, videos=30)
    d = compare_scores(dict(t=p), dict(t=p), dict(t=y), [Task('t')], g, 'auroc')['t']
    assert d['difference'] == 0 and np.isnan([d['low'], d['high']]).all()
    assert d['note'] == 'no interval: it is the same whichever video is left out'


def test_a_difference_holds_the_truth_as_often_as_it_says():
    rng, held = np.random.default_rng(0), []
    def draw(videos):
        g = np.repeat(np.arange(videos), 4)
        y = (rng.normal(size=videos)[g]*.7 + rng.logistic(size=len(g)) > 0).astype(int)
        noise = .5*rng.normal(size=videos)[g] + rng.normal(size=len(g))
        both = [s*(y - .5) + noise + e*rng.normal(size=len(g)) for s, e in ((1.5, 0), (1, .5))]
        return [np.stack([-o, o], 1) for o in both], y, g
    def probs(o): return dict(t=1/(1 + np.exp(-o)))
    (a, b), y, _ = draw(50_000)
    truth = sk.roc_auc_score(y, a[:, 1]) - sk.roc_auc_score(y, b[:, 1])
    for _ in range(200):
        (a, b), y, g = draw(20)
        d = compare_scores(probs(a), probs(b), dict(t=y), [Task('t')], g, 'auroc')['t']
        held.append(d['low'] <= truth <= d['high'])
    assert .9 <= np.mean(held) <= .99


def test_a_difference_without_labels_or_samples_or_with_wrong_rows():
    good, bad, y = dict(t=[0, 1]*20), dict(t=[0]*40), dict(t=[0, 1]*20)
    d = compare_scores(good, bad, y, [Task('t')], n_boot=0)['t']
    assert d['difference'] > 0 and np.isnan(d['low']) and d['note'] == ''
    none = compare_scores(good, bad, dict(t=[IGNORE]*40), [Task('t')])['t']
    assert np.isnan([none[k] for k in ('difference', 'low', 'high')]).all() and none['note'] == 'no labelled row'
    probs = dict(t=[[.5, .5]]*40)
    for a, b, kw, message in (
            (dict(t=[0, 5]*20), bad, {}, 'predicted class 5'), (good, dict(t=[0, 5]*20), {}, 'predicted class 5'),
            (good, bad, dict(groups=[1]), '1 groups for 40 rows'), (good, {}, {}, "no predicted classes for task 't'"),
            (good, bad, dict(score='auroc'), r'shape \(40,\), expected \(40, 2\)'),
            (probs, bad, {}, r'shape \(40, 2\)'),
            (good, bad, dict(score='macro_f'), "no score 'macro_f'. Did you mean 'macro_f1'"),
            (good, bad, dict(score='weighted_f1'), "no score 'weighted_f1'"),
            (good, bad, dict(targets=dict(t=[0, 3]*20)), "target 3 of task 't'"),
            (good, bad, dict(targets={}), "no targets for task 't'; there are none")):
        with pytest.raises(ValueError, match=message):
            compare_scores(a, b, **{**dict(targets=y, tasks=[Task('t')]), **kw})


def test_the_plain_model_learns_words_and_copes_with_one_class():
    train, tasks = ['good film', 'bad film', 'good', 'bad', 'so'], [Task('a'), Task('b', 3), Task('c')]
    targets = dict(a=[1, 0, 1, 0, IGNORE], b=[2, 0, 2, 0, IGNORE], c=[1, IGNORE, 1, 1, 1])
    P = tfidf_baseline(train, targets, ['good', 'bad'], tasks)
    assert (P['a'][0, 1] > 0.5 > P['a'][1, 1] and (P['b'][:, 1] == 0).all() and P['b'].argmax(1).tolist() == [2, 0]
            and (P['c'] == [0, 1]).all())
    for p in P.values(): assert np.allclose(p.sum(1), 1)
    with pytest.raises(ValueError, match="task 'a' has no labelled training clip"):
        tfidf_baseline(train, dict(a=[IGNORE]*5), ['good'], tasks[:1])
    with pytest.raises(ValueError, match='5 training clips, but 1 targets'):
        tfidf_baseline(train, dict(a=[1]), ['good'], tasks[:1])


def test_scores_show_themselves_in_a_notebook():
    "One row a task, and no line that runs off a page"
    tasks = [Task(f'task_{i}') for i in range(5)]
    rng = np.random.default_rng(0)
    y = {t.name: rng.integers(0, 2, 60) for t in tasks}
    s = evaluate({k: np.eye(2)[v]*.6 + .2 for k, v in y.items()}, y, tasks, n_boot=20)
    shown = s._repr_markdown_()
    assert all(f'| {t.name} | 60 |' in shown for t in tasks) and max(map(len, shown.split('\n'))) < 120
    assert repr(s) == 'Scores(5 tasks on 60 clips of 60 videos, mean macro F1 1.000)'
    none = evaluate(dict(t=np.zeros((0, 2))), dict(t=np.zeros(0, int)), [Task('t')])
    assert 'not measured' in none._repr_markdown_() and repr(none) == 'Scores(0 tasks on 0 clips of 0 videos)'


# What is kept and shown

def of_two_tasks(**kw):
    "A task of two classes and one of three, with clips of 8 videos, and a third task without a label"
    rng, g = np.random.default_rng(0), np.repeat(np.arange(8), 4)
    tasks = [Task('a', classes=('calm', 'gory')), Task('b', 3), Task('c')]
    y = dict(a=rng.integers(0, 2, 32), b=rng.integers(0, 3, 32), c=np.full(32, IGNORE))
    p = {t.name: rng.dirichlet(np.ones(t.n_classes), 32) for t in tasks}
    for t in tasks[:2]: p[t.name] = (2*p[t.name] + np.eye(t.n_classes)[y[t.name]])/3
    th = Thresholds(dict(a=.4, c=.5), 'validation data', ('c: no clip',), 'f1')
    return evaluate(p, y, tasks, th, groups=g, **kw)


def test_everything_that_was_found_is_kept():
    s = of_two_tasks()
    d = s.to_dict()
    assert d['rows'] == 32 and d['videos'] == 8 and d['unmeasured'] == dict(c='no labelled row')
    th = dict(values=dict(a=.4, c=.5), chosen_on='validation data', score='f1', notes=['c: no clip'])
    assert d['thresholds'] == th
    assert d['overall'] == s.overall and d['overall_notes'] == list(s.notes) and list(d['tasks']) == ['a', 'b']
    assert d['overall_intervals_95'] == {k: list(v) for k, v in s.overall_intervals.items()} != {}
    for k, t in s.tasks.items():
        assert d['tasks'][k] == dict(
            rows=t.n, support=dict(zip(t.task.class_names, t.support)), scores=t.scores, baselines=t.baselines,
            baseline_intervals_95={o: {n: list(v) for n, v in of.items()} for o, of in t.baseline_intervals.items()},
            intervals_95={n: list(v) for n, v in t.intervals.items()}, classes=t.classes, confusion=t.confusion,
            notes=t.notes)
        said = np.array(t.confusion)
        for i, c in enumerate(t.classes.values()):
            assert c['rows'] == t.support[i] and same(c['recall'], said[i, i]/said[i].sum())
            assert same(c['precision'], said[i, i]/said[:, i].sum())
            assert same(c['f1'], 2*said[i, i]/(said[i].sum() + said[:, i].sum()))
    np.testing.assert_equal(json.loads(json.dumps(d)), d)  # NaN: precision of a class that is never predicted


def test_a_table_has_a_row_for_each_score():
    s, other = of_two_tasks(), of_two_tasks(n_boot=0)
    t = s.table(dict(plain=other)).set_index(['task', 'score'])
    assert list(t.index) == [(k, n) for k, o in s.tasks.items() for n in o.scores] and list(t.columns) == [
        'rows', 'value', 'low', 'high', 'plain', 'always no', 'always yes', 'prior', 'majority']
    columns = dict(a={'always no': 'always calm', 'always yes': 'always gory', 'prior': 'prior'},
                   b=dict(majority=next(iter(s.tasks['b'].baselines)), prior='prior'))
    for (k, n), row in t.iterrows():
        o = s.tasks[k]
        assert (row['rows'], row['value'], row['plain']) == (32, o.scores[n], o.scores[n])
        assert same((row['low'], row['high']), o.intervals[n])
        for c in ('always no', 'always yes', 'majority', 'prior'):
            assert same(row[c], o.baselines[columns[k][c]][n] if c in columns[k] else NAN)
    assert s.table().columns.tolist() == [c for c in ['task', 'rows', 'score', *t.columns[1:]] if c != 'plain']


def test_an_overview_has_a_row_for_each_task():
    s = of_two_tasks()
    a, b = (s.tasks[k] for k in 'ab')
    head, _, *lines = s.overview().splitlines()
    names = [SCORE_NAMES[k] for k in ('f1', 'macro_f1', 'auroc')]
    def cells(line): return [o.strip() for o in line.strip('|').split('|')]
    assert cells(head) == ['task', 'clips', *names, 'best trivial macro F1']
    for name, o, line in zip('ab', (a, b), lines, strict=True):
        best, v = best_trivial(o, 'macro_f1')
        assert v == max(d['macro_f1'] for d in o.baselines.values()) == o.baselines[best]['macro_f1']
        want = [score_with_interval(o.scores.get(k), o.intervals.get(k)) for k in ('f1', 'macro_f1', 'auroc')]
        assert cells(line) == [name, '32', *want, f'{v:.2f} ({best})']
    for o in a.baselines.values(): o['macro_f1'] = NAN
    assert best_trivial(a, 'macro_f1') is None and cells(s.overview().splitlines()[2])[-1] in ('', '–')
    del s.tasks['a']
    assert cells(s.overview().splitlines()[0]) == ['task', 'clips', *names[1:], 'best trivial macro F1']


def test_the_best_trivial_baseline_has_the_highest_score_or_the_lowest_error():
    s = of_two_tasks(n_boot=0).tasks['b']
    s.baselines.update(early=dict(f1=.2, mae=3.), late=dict(f1=.7, mae=2.), none=dict(f1=NAN, mae=NAN))
    s.baselines = {k: s.baselines[k] for k in ('none', 'late', 'early')}
    assert best_trivial(s, 'f1') == ('late', .7) and best_trivial(s, 'mae') == ('late', 2.)
    s.baselines['zero'] = dict(f1=.1, mae=5.)
    assert best_trivial(s, 'f1') == ('late', .7) and best_trivial(s, 'mae') == ('late', 2.)


def test_a_note_of_several_tasks_is_said_once():
    s = of_two_tasks()
    s.tasks['a'].notes, s.tasks['b'].notes, s.notes = ['one', 'two'], ['two'], ('three', 'one')
    assert s.all_notes() == ['c was not measured: no labelled row', 'a, all tasks: one', 'a, b: two',
                             'all tasks: three', 'c: no clip']


def test_scores_and_intervals_as_text():
    assert [score_text(v) for v in (None, NAN, 0., .1236, 1.)] == ['–', '–', '0.000', '0.124', '1.000']
    for none in (None, (None, None), (NAN, NAN)):
        assert interval_text(none) == '–' and score_with_interval(.1236, none) == '0.124'
    assert score_with_interval(None, None) == '–' and interval_text((.1236, .5)) == '0.124 – 0.500'
    assert score_with_interval(.1236, (.0512, .5)) == '0.12 (0.05–0.50)'


def test_names_of_scores_and_how_many_samples_are_drawn():
    of_classes = dict(f1='F1', macro_f1='macro F1', weighted_f1='weighted F1', auroc='AUROC',
                      exact_match='exact match', hamming='Hamming score', mean_macro_f1='mean macro F1')
    of_numbers = dict(pearson='Pearson', mae='MAE', r2='R²', mean_pearson='mean Pearson', acc7='Acc-7',
                      acc2='Acc-2 (negative or not)', acc2_nonzero='Acc-2 (without 0)')
    of_probabilities = dict(brier='Brier score', log_loss='log loss', ece='ECE', rms_error='debiased RMS error')
    named = of_classes | of_numbers | of_probabilities
    assert named.items() <= SCORE_NAMES.items()
    assert {k for k in SCORE_NAMES if k not in named} == {
        f'acc{n}' for n in (3, 4, 5, 6, 8, 9, 10, 11)}
    for f in (evaluate, score_task, module.measured, mean_scores, compare_scores):
        arguments = signature(f).parameters
        assert (arguments['n_boot'].default, arguments['seed'].default) == (1000, 0)


def test_a_threshold_is_of_class_1_and_other_tasks_take_the_most_probable():
    p = np.array([[.6, .4], [.61, .39], [.2, .8]])
    th = Thresholds(dict(a=.4))
    assert (th.source, th.notes, th.score) == ('fixed', (), None)
    found = th.predict(dict(a=p, b=p, c=np.eye(3)[[2, 0]]))
    assert {k: v.tolist() for k, v in found.items()} == dict(a=[1, 0, 1], b=[0, 0, 1], c=[2, 0])
    assert found['a'].dtype == np.int64


def test_names_of_earlier_versions_are_found():
    assert module.compare is compare_scores and module.tfidf_baseline is tfidf_baseline
    with pytest.raises(AttributeError, match="has no attribute 'score_tasks'"): module.score_tasks
