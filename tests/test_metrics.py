"""Scores: equal to scikit-learn's where that defines them, otherwise to a loop; what is undefined is NaN."""
import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given, strategies as st
from sklearn import metrics as sk

from hiccap.statistics import rank_scores, resample_weights
from hiccap.metrics import (HEADLINE, Thresholds, baseline_counts, choose_thresholds, compare_scores, count_scores,
                            evaluate)
from hiccap.baselines import tfidf_baseline
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


def by_sklearn(p, y, C):
    "The headline scores of probabilities on labelled rows, by scikit-learn; NaN where it has none"
    said = (p[:, 1] >= .5).astype(int) if C == 2 else p.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        P, R, F, _ = sk.precision_recall_fscore_support(y, said, labels=range(C), zero_division=np.nan)
        ranks = {}
        for name, f in dict(auroc=sk.roc_auc_score, average_precision=sk.average_precision_score).items():
            each = [f(y == c, p[:, c]) if 0 < (y == c).sum() < len(y) else NAN for c in range(C)]
            ranks[name] = each[1] if C == 2 else np.mean([o for o in each if o == o] or [NAN])
        mean = {f'macro_{k}': np.mean([o for o in v if o == o] or [NAN])
                for k, v in dict(precision=P, recall=R, f1=F).items()}
        both = dict(accuracy=sk.accuracy_score(y, said),
                    weighted_f1=sk.f1_score(y, said, average='weighted', zero_division=0), **mean, **ranks)
        if C == 2: both |= dict(precision=P[1], recall=R[1], f1=F[1])
    return {k: both[k] for k in HEADLINE[C == 2]}, sk.confusion_matrix(y, said, labels=range(C))


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


@given(answers(unlabelled=False), st.integers(0, 99))
def test_resampled_scores_are_those_of_the_resampled_rows(case, seed):
    "A row that is drawn twice counts twice, ties and all"
    task, p, y = case
    w = resample_weights(np.arange(len(y)), 4, seed)
    for r in range(4):
        rows = np.repeat(np.arange(len(y)), w[r].astype(int))
        for c in range(task.n_classes):
            a, ap = rank_scores(p[:, c], y == c, w[r:r+1])
            pos = (y == c)[rows]
            assert same(a[0], sk.roc_auc_score(pos, p[rows, c]) if 0 < pos.sum() < len(pos) else NAN)
            assert same(ap[0], sk.average_precision_score(pos, p[rows, c]) if 0 < pos.sum() < len(pos) else NAN)


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
    for lo, hi in s.overall_intervals.values(): assert 0 <= lo <= hi <= 1


# Thresholds

@given(answers(classes=st.just(2)))
# F1 is 2/3 from .6 and from .1
@example((Task('t'), np.array([[.1, .9], [.7, .3], [.8, .2], [.9, .1]]), np.array([1, 0, 0, 1])))
def test_thresholds_maximise_f1(case):
    task, p, y = case
    th = choose_thresholds(dict(t=p), dict(t=y), [task], 'these rows')
    k = y != IGNORE
    p, y = p[k], y[k]
    if not 0 < y.sum() < len(y):
        assert th.values == dict(t=.5) and len(th.notes) == 1 and 'these rows' in th.notes[0]
        return
    def f1(cut): return sk.f1_score(y, p[:, 1] >= cut, zero_division=0)
    cuts = np.concatenate([np.unique(p[:, 1]), [2.]])
    best = max(f1(c) for c in cuts)
    assert same(f1(th.values['t']), best) and th.source == 'these rows'
    assert same(sk.f1_score(y, th.predict(dict(t=p))['t'], zero_division=0), best)
    middles = [(a + b)/2 for a, b in zip(cuts[:-2], cuts[1:-1])] + [cuts[0]]
    assert same(abs(th.values['t'] - .5), min(abs(m - .5) for m in middles if same(f1(m), best)))


def test_a_threshold_between_neighbouring_floats_holds_in_their_precision():
    "Saturated probabilities, as networks give them in float32"
    a = np.float32(.3)
    for _ in range(50):
        b = np.nextafter(a, np.float32(1))
        p = np.array([[1 - a, a], [1 - b, b]], np.float32)
        th = choose_thresholds(dict(t=p), dict(t=[0, 1]), [Task('t')])
        assert th.predict(dict(t=p))['t'].tolist() == [0, 1] == th.predict(dict(t=torch.tensor(p)))['t'].tolist()
        a = b


# The bootstrap

@given(answers(unlabelled=False, rows=st.integers(2, 25)), st.integers(0, 9))
def test_intervals_depend_on_the_seed_alone(case, seed):
    task, p, y = case
    groups = np.arange(len(y))//2
    a, b, c = (evaluate(dict(t=p), dict(t=y), [task], groups=g, n_boot=30, seed=seed).tasks['t']
               for g in (groups, groups, [f'video {g}' for g in groups]))
    assert str(a.intervals) == str(b.intervals)
    for (lo, hi), v in ((a.intervals[k], a.scores[k]) for k in a.scores): assert lo != lo or 0 <= lo <= hi <= 1
    assert set(c.intervals) == set(a.intervals)


def test_another_seed_gives_another_interval():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, 60), rng.random(60)
    a, b = (evaluate(dict(t=np.stack([1 - p, p], 1)), dict(t=y), [Task('t')], n_boot=50, seed=s).tasks['t'].intervals
            for s in (0, 1))
    assert a['auroc'] != b['auroc']


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(0, 99))
def test_a_resample_draws_whole_videos_with_replacement(groups, seed):
    groups, w = np.array(groups), resample_weights(np.array(groups), 30, seed)
    names = np.unique(groups)
    drawn = np.stack([w[:, groups == g][:, 0] for g in names], 1)
    assert (drawn.sum(1) == len(names)).all() and w.dtype == np.float32 and (w == np.round(w)).all()
    for g, d in zip(names, drawn.T): assert (w[:, groups == g] == d[:, None]).all()


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
        assert s.overall_intervals['hamming'] == (lo, hi)
        hold += lo <= .7 <= hi
    return hold/n_sims


def test_intervals_hold_the_truth_as_often_as_they_say_if_videos_are_told():
    assert .88 <= coverage(150, True) <= .99
    assert coverage(150, False) < .75  # clips of a video counted as independent


def test_intervals_narrow_with_the_root_of_the_number_of_videos():
    rng = np.random.default_rng(0)
    def width(n):
        y = rng.integers(0, 2, n); v = np.where(rng.random(n) < .8, y, 1 - y)
        lo, hi = evaluate(dict(t=np.eye(2)[v]), dict(t=y), [Task('t')], n_boot=400).tasks['t'].intervals['accuracy']
        return hi - lo
    assert 1.6 < width(150)/width(600) < 2.5
    assert abs(width(400) - 2*1.96*(.16/400)**.5) < .02


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
    assert s.tasks['t'].intervals['accuracy'] == (1., 1.)
    json.dumps(s.to_dict()), s.table(), s.markdown()


def test_no_rows_and_no_resamples():
    none = evaluate(dict(t=np.zeros((0, 2))), dict(t=np.zeros(0, int)), [Task('t')])
    assert (none.unmeasured == dict(t='no labelled row') and none.n_rows == none.n_groups == 0
            and len(none.table()) == 0 and 'not measured' in none.markdown())
    json.dumps(none.to_dict())
    y = np.array([0, 1, 1, 0])
    s = evaluate(dict(t=np.eye(2)[y]), dict(t=y), [Task('t')], n_boot=0)
    assert (s.tasks['t'].intervals == {} == s.overall_intervals and s.tasks['t'].scores['f1'] == 1
            and s.table().low.isna().all() and '– – –' in s.markdown())
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
    (dict(probs=dict(t=[[1., 0.]]*2, s=[[1., 0.]]), targets=dict(t=[0, 1], s=[0]), tasks=[Task('t'), Task('s')]),
     "different numbers of rows: {'t': 2, 's': 1}"),
])
def test_what_does_not_fit_is_named(change, message):
    evaluate(**GOOD, n_boot=2)
    with pytest.raises(ValueError, match=message): evaluate(**{**GOOD, **change}, n_boot=2)
    if not set(change) & {'groups', 'predicted'} and len(change) == 1 and change.get('tasks') != []:
        with pytest.raises(ValueError, match=message): choose_thresholds(**{**GOOD, **change})


def test_torch_tensors_are_taken():
    s = evaluate(dict(t=torch.tensor(GOOD['probs']['t'])), dict(t=torch.tensor([0, 1])), GOOD['tasks'], n_boot=3)
    assert s.tasks['t'].scores['f1'] == 1


# Differences

@given(answers(unlabelled=True), st.integers(0, 9))
def test_a_difference_is_the_difference(case, seed):
    task, p, y = case
    a, b, k = p.argmax(1), (p.argmax(1) + 1) % task.n_classes, y != IGNORE
    d = compare_scores(dict(t=a), dict(t=b), dict(t=y), [task], n_boot=20, seed=seed)['t']
    if not k.any(): assert all(np.isnan(v) for v in d.values()); return
    assert same(d['difference'], *[by_labels(y[k], a[k]) - by_labels(y[k], b[k])]) and d['low'] <= d['high']
    back = compare_scores(dict(t=b), dict(t=a), dict(t=y), [task], n_boot=20, seed=seed)['t']
    assert (
        same(back['difference'], -d['difference']) and same(back['low'], -d['high']) and same(back['high'], -d['low']))


def by_labels(y, v): return sk.f1_score(y, v, labels=np.union1d(y, v), average='macro', zero_division=0)


def test_a_difference_without_resamples_or_with_wrong_classes():
    d = compare_scores(dict(t=[0, 1]), dict(t=[0, 0]), dict(t=[0, 1]), [Task('t')], n_boot=0)['t']
    assert d['difference'] > 0 and np.isnan(d['low'])
    with pytest.raises(ValueError, match='predicted class 5'):
        compare_scores(dict(t=[0, 5]), dict(t=[0, 0]), dict(t=[0, 1]), [Task('t')])


def test_the_plain_model_learns_words_and_copes_with_one_class():
    train, tasks = ['good film', 'bad film', 'good', 'bad', 'so'], [Task('a'), Task('b', 3), Task('c')]
    targets = dict(a=[1, 0, 1, 0, IGNORE], b=[2, 0, 2, 0, IGNORE], c=[1, IGNORE, 1, 1, 1])
    P = tfidf_baseline(train, targets, ['good', 'bad'], tasks)
    assert (P['a'][0, 1] > 0.5 > P['a'][1, 1] and (P['b'][:, 1] == 0).all() and P['b'].argmax(1).tolist() == [2, 0]
            and (P['c'] == [0, 1]).all())
    for p in P.values(): assert np.allclose(p.sum(1), 1)
    with pytest.raises(ValueError, match="task 'a' has no labelled training text"):
        tfidf_baseline(train, dict(a=[IGNORE]*5), ['good'], tasks[:1])
    with pytest.raises(ValueError, match='5 training texts, but 1 targets'):
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
