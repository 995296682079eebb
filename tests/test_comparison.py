"""Comparisons: what may be compared, what varies between runs, and when a difference is called better or worse."""
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import assume, given, settings, strategies as st
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score

import hiccap.comparison as module
from hiccap.comparison import (Finished, columns_of, compare_columns, compare_runs, expand, is_done, read_finished,
                               run_grid, task_score, write_example_runs)
from hiccap.pretraining_runs import PretrainRun
from hiccap.runs import EARLIER, EARLIER_HEADS, Clips, Run, default_of
from hiccap.statistics import jackknife_interval, mean_interval

TASKS = 'funny', 'mean'
NO_STEP = dict(steps=1, curve=[], seconds=1.)


def finished(values, seed=0, split_seed=0, clips='abcd', split=None, train=80, classes=None, **other):
    "A run with these scores (task -> macro F1) on these clips"
    config = {k: default_of(f) for k, f in Run.settings().items() if k not in ('seed', 'split_seed')} | other
    truth = {('', c, t): (classes or {}).get(c, 'no') for c in clips for t in values}
    trivial = {'always no': {t: dict(macro_f1=.4) for t in values}}
    name = f"{other.get('lr')}, {split_seed}, {seed}"
    return Finished(Path(name), config, seed, (split_seed,), split or f'{split_seed}{clips}', truth,
                    {t: dict(macro_f1=v, auroc=None) for t, v in values.items()}, trivial, sizes=[[train, 10, 10]],
                    **NO_STEP)


def column(lr, scores, **other):
    "Runs of one column on one split, by their seeds: scores of the task `funny`"
    return [finished(dict(funny=v), seed, lr=lr, **other) for seed, v in enumerate(scores)]


def resplit(lr, scores, train=80):
    "Runs of one column, each on a split of its own"
    return [finished(dict(funny=v), 0, i, f'{i}xyz', lr=lr, train=train) for i, v in enumerate(scores)]


def compared(*columns, **kw):
    return compare_columns(columns_of([r for c in columns for r in c]), **kw)


# --- grids

seed_lists = st.none() | st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True)

@given(seed_lists, seed_lists, st.lists(st.sampled_from([.1, .2, .3]), max_size=3, unique=True), st.booleans())
def test_a_grid_has_every_combination_once(seeds, split_seeds, lrs, pretraining):
    base = dict(streams=[dict(name=n, data=n, labels=['x']) for n in 'ab']) if pretraining else dict(data='clips.csv')
    d = base | {k: v for k, v in dict(seeds=seeds, split_seeds=split_seeds).items() if v is not None}
    if lrs: d['grid'] = dict(lr=lrs)
    runs = expand(d, 'file')
    def split(r): return tuple(s.clips.split_seed for s in r.streams) if pretraining else r.clips.split_seed
    found = [(r.training.lr, split(r), r.training.seed) for r in runs.values()]
    splits = [(s, s) if pretraining else s for s in split_seeds or [0]]
    assert found == list(itertools.product(lrs or [None], splits, seeds or [0]))
    for name, r in runs.items():
        words = dict(o.split('=') for o in name.split(', ') if o)
        assert set(words) == {k for k, v in dict(lr=lrs, split_seed=split_seeds, seed=seeds).items() if v}
        assert words.get('seed', '0') == str(r.training.seed) and words.get('lr', 'None') == str(r.training.lr)


@pytest.mark.parametrize('d, message', [
    (dict(grid=dict(split_seed=[0, 1])), r"grid over split_seed is written 'split_seeds: \[0, 1\]'"),
    (dict(grid={'clips.split_seed': [0, 1]}), 'split_seeds'),
    (dict(grid={'training.seed': [0, 1]}), "'seeds"),
    (dict(split_seeds=[0], split_seed=1), 'has split_seed and split_seeds'),
    (dict(split_seeds=[0], clips=dict(split_seed=1)), 'has split_seed and split_seeds'),
    (dict(seeds=[0], seed=0), 'has seed and seeds'),
    (dict(split_seeds=2), 'split_seeds must be a list of whole numbers, got 2'),
    (dict(seeds=[True]), 'seeds must be a list'),
    (dict(seeds=[0, '1']), "seeds must be a list of whole numbers, got .0, '1'."),
    (dict(seeds=[]), 'seeds must be a list'),
    (dict(seeds=[1, 1]), 'twice'),
    (dict(seeds=[-1]), 'seed must be at least 0'),
    (dict(grid=dict(lr=[])), 'list of values'),
])
def test_contradicting_grids_are_refused(d, message):
    with pytest.raises(ValueError, match=message): expand(dict(data='clips.csv') | d, 'file')


def test_a_stream_with_a_split_of_its_own_is_refused_next_to_split_seeds():
    for own in (dict(split_seed=1), dict(clips=dict(data='a', split_seed=1))):
        stream = dict(name='a', data='a', labels=['x'], **own)
        if 'clips' in own: del stream['data']
        with pytest.raises(ValueError, match='split_seed'): expand(dict(streams=[stream], split_seeds=[0]), 'file')


# --- which runs may be compared

OTHER = dict(str='other', int=7, float=.3, tuple=('x',), dict=dict(a=1), bool=True)

@pytest.mark.parametrize('name', [k for k in Clips.__dataclass_fields__ if k != 'split_seed'])
def test_other_data_are_refused(name):
    of = Clips.__dataclass_fields__[name].type
    runs = [*column(.1, [.5]), *column(.2, [.6])]
    runs[1].config[name] = OTHER[getattr(of, '__name__', 'str')]  # a union of types takes a text
    with pytest.raises(ValueError, match=f'differ in their data: {name} is'): columns_of(runs)


@pytest.mark.parametrize('name', ['epochs', 'bs', 'passes', 'steps'])
def test_another_budget_is_refused(name):
    with pytest.raises(ValueError, match=f'differ in their budget: {name} is 3 there and'):
        columns_of([*column(.1, [.5]), *column(.2, [.6], **{name: 3})])


def test_the_budget_is_what_decides_how_much_is_trained():
    assert set(Run.settings('budget')) == {'recipe', 'epochs', 'bs'}
    assert set(PretrainRun.settings('budget')) == {'recipe', 'epochs', 'bs', 'passes', 'steps'}


def test_other_tasks_and_streams_are_refused():
    with pytest.raises(ValueError, match='compare runs of the same tasks'):
        columns_of([finished(dict(funny=.5), lr=1), finished(dict(mean=.5), lr=2)])
    def mixture(*streams, **kw): return finished(dict(funny=.5), streams=streams, **kw)
    a, b = (dict(name='a', clips=dict(data=d)) for d in 'ab')
    with pytest.raises(ValueError, match='streams of labelled clips are not the same'):
        columns_of([mixture(a, lr=1), mixture(b, lr=2)])
    pretext = dict(name='p', clips=dict(data='p'), pretext='matching')
    assert len(columns_of([mixture(a), mixture(a, pretext)])) == 2


@pytest.mark.parametrize('other, message', [
    (dict(clips='abce'), 'have one split_seed, but other clips'),
    (dict(split='relabelled'), 'have one split_seed, but other clips'),
    (dict(classes=dict(b='yes'), split='s'), 'have one split_seed'),
    (dict(classes=dict(b='yes'), split_seed=1, clips='bxyz'), "clip 'b' has funny 'yes' in .*, and 'no' in"),
    (dict(split_seed=1, clips='wxyz', train=90), 'different numbers of clips, 110 and 100'),
])
def test_files_that_changed_between_two_runs_are_refused(other, message):
    with pytest.raises(ValueError, match=message): columns_of([*column(.1, [.5]), *column(.1, [.6], **other)])
    with pytest.raises(ValueError, match=message): columns_of([*column(.1, [.5]), *column(.2, [.6], **other)])


@pytest.mark.parametrize('sources, changed', [
    (dict(clips='1', video='3'), 'video'), (dict(clips='0', video='3'), 'clips, video'), (dict(clips='1'), 'video'),
    (dict(clips='1', video='2', audio='4'), 'audio'), (dict(clips='1', video='2'), None), ({}, None)])
def test_files_of_two_splits_have_the_same_contents(sources, changed):
    "Splits share no list of clips to compare, so the files do; runs of earlier versions did not keep their digests"
    runs = resplit(.1, [.5, .6])
    runs[0].sources, runs[1].sources = dict(clips='1', video='2'), sources
    for some in (runs, runs[::-1]):
        if changed is None: assert len(columns_of(some)) == 1
        else:
            with pytest.raises(ValueError, match=f'trained on other contents of {changed}: '): columns_of(some)
    same_split = column(.1, [.5, .6])  # here the clips themselves are compared: the files may hold others besides
    same_split[0].sources, same_split[1].sources = dict(clips='1', video='2'), sources
    assert len(columns_of(same_split)) == 1


def test_a_run_that_is_there_twice_is_refused():
    with pytest.raises(ValueError, match='give each once'): columns_of([*column(.1, [.5]), *column(.1, [.6])])
    # a file of validation and one of test clips: another split seed changes nothing
    same = [finished(dict(funny=.5), 0, s, split='files') for s in (0, 1)]
    with pytest.raises(ValueError, match='same run with the same seed'): columns_of(same)


def test_columns_have_the_same_seeds():
    both, one = column(.1, [.5, .6]), column(.2, [.5])
    for runs in (both + one, one + both):
        with pytest.raises(ValueError, match='^lr=0.2 has no run with split_seed 0 and seed 1.*run the missing'):
            columns_of(runs)
    with pytest.raises(ValueError, match='lr=0.1 has no run with split_seed 1 and seed 0'):
        columns_of(resplit(.1, [.5]) + resplit(.2, [.6, .7]))


@settings(max_examples=15)
@given(st.permutations(range(6)))
def test_the_order_of_folders_changes_nothing_but_the_order(order):
    runs = [*column(.1, [.5, .6, .7]), *column(.2, [.4, .7, .6])]
    a, b = compared(runs), compared([runs[i] for i in order])
    assert {(r['task'], r['column'], str(r['values'])) for r in a.rows} == {
        (r['task'], r['column'], str(r['values'])) for r in b.rows}


# --- what varies

score = st.floats(0, 1, width=16)
scores = st.lists(score, min_size=2, max_size=6)

@given(scores, st.data())
def test_runs_of_one_split_have_a_paired_t_test(a, data):
    b = data.draw(st.lists(score, min_size=len(a), max_size=len(a)))
    assume(np.ptp(np.subtract(b, a)) > 1e-6)
    c = compared(column(.1, a), column(.2, b))
    row = c.row('funny', 'lr=0.2')
    expected = stats.ttest_rel(b, a)
    np.testing.assert_allclose([row['difference'], row['p']], [np.mean(b) - np.mean(a), expected.pvalue], atol=1e-9)
    low, high = expected.confidence_interval()
    np.testing.assert_allclose(row['difference_half'], (high - low)/2, rtol=1e-6)
    assert c.overlap == 0 and 'training seeds' in c.varies() and '4 test clips' in c.varies()
    assert 'splits of' not in c.varies()


@given(scores, st.integers(20, 200), st.data())
def test_resplits_have_the_correction_of_nadeau_and_bengio(a, train, data):
    b = data.draw(st.lists(score, min_size=len(a), max_size=len(a)))
    d, J = np.subtract(b, a), len(a)
    assume(np.ptp(d) > 1e-6 and np.ptp(b) > 1e-6)
    c = compared(resplit(.1, a, train), resplit(.2, b, train))
    row, error = c.row('funny', 'lr=0.2'), np.sqrt(d.var(ddof=1)*(1/J + 10/train))
    np.testing.assert_allclose(row['difference_half'], stats.t.ppf(.975, J - 1)*error, rtol=1e-6)
    np.testing.assert_allclose(row['p'], 2*stats.t.sf(abs(d.mean())/error, J - 1), rtol=1e-6)
    np.testing.assert_allclose(row['half'], stats.t.ppf(.975, J - 1)*np.std(b, ddof=1)*np.sqrt(1/J + 10/train))
    assert f'{J} splits of the same clips' in c.varies() and f'{10/train:.3f} (Nadeau and Bengio' in c.varies()
    assert 'training seeds' not in c.varies()


def test_the_largest_test_share_of_all_runs_counts():
    a, b = resplit(.1, [.5, .6]), resplit(.2, [.6, .8])
    for runs in (a, b): runs[1].sizes = [[70, 20, 10], [50, 25, 25]]
    assert compared(a, b).overlap == 25/50


def crossed(lr, table, clips=None):
    "Runs of a column: a row of scores for each split, a number for each seed"
    return [finished(dict(funny=v), seed, split, clips or f'{split}xyz', f'split {split}', lr=lr)
            for split, row in enumerate(table) for seed, v in enumerate(row)]

@given(st.lists(st.lists(score, min_size=3, max_size=3), min_size=2, max_size=4), st.booleans())
def test_seeds_of_several_splits_are_averaged_first(table, same_clips):
    base = [[.5, .5, .5]]*len(table)
    clips = 'abcd' if same_clips else None
    c = compared(crossed(.1, base, clips), crossed(.2, table, clips))
    row = c.row('funny', 'lr=0.2')
    np.testing.assert_allclose(row['values'], np.mean(table, 1))
    assert (c.overlap == 0) == same_clips and '3 seeds averaged on each' in c.varies()
    assert ('draws of the training clips' in c.varies()) == same_clips


def test_unequal_and_mixed_splits_are_refused():
    unequal = [crossed(lr, [[.5, .6], [.7]]) for lr in (.1, .2)]
    with pytest.raises(ValueError, match='the same number of seeds'): compared(*unequal)
    def mixed(lr): return [finished(dict(funny=.5), 0, i, c, lr=lr) for i, c in enumerate(['abcd', 'abcd', 'wxyz'])]
    with pytest.raises(ValueError, match='some splits have the same test clips'): compared(mixed(.1), mixed(.2))


def test_nothing_says_real_and_each_difference_says_where_it_holds():
    for c in (compared(column(.1, [.5, .51, .52]), column(.2, [.7, .711, .719])),
              compared(resplit(.1, [.5, .51, .52]), resplit(.2, [.7, .711, .719]))):
        text = c.markdown()
        assert '**better**' in c.difference_table() and 'real' not in text and 'significant' not in text
        assert ('on these test clips, over training seeds' in text) != ('over splits of these clips' in text)


# --- better and worse

@given(st.lists(st.lists(score, min_size=3, max_size=3), min_size=2, max_size=5))
def test_p_values_are_those_of_holm_over_all_tasks_and_columns(table):
    "By the definition of the correction, not by its algorithm"
    def runs(lr, values):
        return [finished(dict(funny=v, mean=values[-1 - s]), s, lr=lr) for s, v in enumerate(values)]
    c = compared(*(runs(lr + 1, v) for lr, v in enumerate(table)))
    rows = [r for r in c.rows if 'p' in r]
    assert len(rows) == 3*(len(table) - 1)
    tested = sorted(r['p'] for r in rows if r['p'] == r['p'])
    for r in rows:
        if not r['p'] == r['p']:
            assert not r['corrected'] == r['corrected']
            continue
        smaller = [min(1., (len(tested) - i)*p) for i, p in enumerate(tested) if p <= r['p']]
        np.testing.assert_allclose(r['corrected'], max(smaller), rtol=1e-9)
    below = [r for r in rows if r['corrected'] < .05]
    text = c.difference_table()
    assert text.count('**better**') == sum(r['difference'] > 0 for r in below)
    assert text.count('**worse**') == sum(r['difference'] < 0 for r in below)


def test_many_equal_columns_rarely_differ():
    "Among columns with no difference, a table calls one better or worse in one of twenty, uncorrected in a quarter"
    rng, found = np.random.default_rng(0), []
    columns = columns_of([r for lr in range(8) for r in column(lr, [0]*5)])
    for _ in range(200):
        for r in (r for c in columns.values() for r in c.values()): r.scores = dict(funny=dict(macro_f1=rng.normal()))
        found.append('**' in compare_columns(columns).difference_table())
    assert .01 < np.mean(found) < .08


@given(st.integers(2, 6), st.floats(.01, .3))
def test_equal_differences_have_no_test(n, shift):
    "With no spread between pairs, nothing can be said, however large the difference"
    a = [.25 + .01*i for i in range(n)]
    c = compared(column(.1, a), column(.2, [v + shift for v in a]))
    row, text = c.row('funny', 'lr=0.2'), c.difference_table()
    assert np.isnan(row['p']) and np.isnan(row['corrected'])
    assert f'{shift:+.3f} in every pair: no test' in text and '**' not in text and 'nan' not in c.markdown()


def test_a_difference_without_spread_is_not_counted_as_a_test():
    a = [.5, .52, .51]
    b, same = column(.2, [.6, .625, .605]), column(.3, [v + .1 for v in a])
    alone, beside = (compared(column(.1, a), b, *more) for more in ([], [same]))
    assert alone.row('funny', 'lr=0.2')['corrected'] == beside.row('funny', 'lr=0.2')['corrected']


@given(st.lists(st.tuples(score, score), min_size=2, max_size=5))
def test_the_other_base_turns_the_signs(pairs):
    a, b = zip(*pairs)
    one, two = (compared(column(.1, a), column(.2, b), base=f'lr={base}') for base in (.1, .2))
    x, y = one.row('funny', 'lr=0.2'), two.row('funny', 'lr=0.1')
    assert x['difference'] == -y['difference']
    np.testing.assert_equal([x['p'], x['difference_half']], [y['p'], y['difference_half']])


def test_the_mean_of_the_tasks_is_a_row_of_its_own():
    "Also where a task is called mean"
    runs = [[finished(dict(funny=.5 + lr + .01*s, mean=.4 + .02*s*lr), s, lr=lr) for s in range(3)] for lr in (.1, .2)]
    c = compared(*runs)
    assert c.tasks == ['funny', 'mean', 'mean of tasks']
    for name in c.columns:
        rows = {t: c.row(t, name)['values'] for t in c.tasks}
        np.testing.assert_allclose(rows['mean of tasks'], np.add(rows['funny'], rows['mean'])/2)
    assert compared(column(.1, [.5]), column(.2, [.6])).tasks == ['funny']


def test_one_run_a_column_has_neither_interval_nor_test():
    c = compared(column(.1, [.5]), column(.2, [.6]))
    text = c.markdown()
    assert 'neither an interval over runs nor a test' in text and '±' not in text and '**b' not in text
    assert '| lr=0.2 | +0.100 |' in text and 'Differences of one run each' in text


def test_unknown_scores_and_columns():
    runs = [column(.1, [.5]), column(.2, [.6])]
    with pytest.raises(ValueError, match="no score 'f2'. "): compared(*runs, score='f2')
    with pytest.raises(ValueError, match="no column 'lr=0.3'. Did you mean"): compared(*runs, base='lr=0.3')
    with pytest.raises(ValueError, match=r"auroc of task 'funny' is not defined in 0.1, 0, 0"):
        compared(*runs, score='auroc')
    with pytest.raises(ValueError, match='no run to compare'): columns_of([])


# --- tables

def test_the_tables_show_the_numbers():
    c = compared(column(.1, [.5, .52, .51]), column(.2, [.7, .705, .73]))
    half = stats.t.ppf(.975, 2)*np.std([.7, .705, .73], ddof=1)/3**.5
    lines = c.score_table().splitlines()
    assert lines[3] == f'| **lr=0.2** | {np.mean([.7, .705, .73]):.3f} ± {half:.3f} |'
    assert lines[-1] == '| always no | 0.400 |'  # the same in every run
    row = c.row('funny', 'lr=0.2')
    assert f"+0.202 ± {row['difference_half']:.3f}, p {row['corrected']:.3f} **better**" in c.difference_table()
    certain = compared(column(.1, [.5, .5, .5, .5]), column(.2, [.8, .8001, .7999, .8]))
    assert 'p < 0.001 **better**' in certain.difference_table()


@pytest.mark.parametrize('p, says', [(.0499, 'p 0.050 **{}**'), (.05, 'p 0.050'), (.001, 'p 0.001 **{}**'),
                                     (.0009, 'p < 0.001 **{}**')])
def test_a_difference_is_called_better_or_worse_below_five_percent(p, says):
    for d, sign in ((.1, 'better'), (-.1, 'worse')):
        row = dict(difference=d, difference_half=.25, corrected=p, values=[.5, .6])
        assert module._difference(row) == f'{d:+.3f} ± 0.250, {says.format(sign)}'
        assert module._difference(row | dict(values=[.5])) == f'{d:+.3f}'
        assert module._difference(row | dict(values=[.5], low=-.5, high=.25)) == f'{d:+.3f}; videos -0.500 to +0.250'


def test_baselines_of_resplits_have_the_wider_interval():
    runs = resplit(.1, [.5, .6, .7])
    for r, v in zip(runs, (.1, .2, .3)): r.references = {'TF-IDF': dict(funny=dict(macro_f1=v))}
    half = stats.t.ppf(.975, 2)*.1*np.sqrt(1/3 + 10/80)
    assert f'| TF-IDF | 0.200 ± {half:.3f} |' in compared(runs).score_table()
    del runs[1].references['TF-IDF']
    assert '| TF-IDF | – |' in compared(runs).score_table()


@given(st.lists(st.lists(score, min_size=1, max_size=4), min_size=1, max_size=4), score)
def test_the_cost_of_a_target_is_at_its_first_epoch(curves, target):
    runs = column(.1, [.5]*len(curves))
    for r, curve in zip(runs, curves):
        r.curve, r.steps, r.seconds = [(10*(i + 1), v) for i, v in enumerate(curve)], 100, 50.
    first = [next((10*(i + 1) for i, v in enumerate(curve) if v >= target), None) for curve in curves]
    line = compared(runs, target=target).costs().splitlines()[-1]
    shown = cells(line)
    assert len(shown) == 6
    got = shown[-2:]
    reached = [o for o in first if o is not None]
    if not reached: assert got == ['not reached']*2
    elif len(reached) < len(first): assert got == [f'{len(reached)} of {len(first)} runs']*2
    else: assert got == [f'{np.mean(reached):.0f}', f'{np.mean(reached)*.5:.1f}']


def test_columns_are_named_by_the_settings_in_which_they_differ():
    rule = dict(name='gradnorm', alpha=1.5)
    runs = [finished(dict(funny=.5), lr=.1, weighting=w, bs=8) for w in (None, 'sum', rule)]
    assert list(columns_of(runs)) == ['weighting=default', 'weighting=sum', 'weighting=gradnorm alpha=1.5']
    both = [finished(dict(funny=.5), lr=lr, k=k) for lr in (.1, .2) for k in (True, [1, 2])]
    assert list(columns_of(both)) == [f'lr={lr}, k={k}' for lr in (.1, .2) for k in ('true', '[1, 2]')]
    turned = [finished(dict(funny=.5), s, weighting=dict(list(rule.items())[::o])) for s, o in enumerate((1, -1))]
    assert list(columns_of(turned)) == ['run']  # the order of arguments is none


def cells(line): return [o.strip() for o in line.strip('|').split('|')]


def test_costs_are_means_over_runs_with_their_intervals():
    runs = column(.1, [.5, .6])
    for r, seconds in zip(runs, (40., 60.)): r.steps, r.seconds = 100, seconds
    half = mean_interval([40., 60.])[1]
    head, _, line = compared(runs).costs().splitlines()
    assert cells(head) == ['', 'steps', 'seconds', 'ms a step']
    assert cells(line) == ['run', '100', f'50 ± {half:.3f}', f'500 ± {10*half:.3f}']
    for r in runs: r.steps = 0
    assert cells(compared(runs).costs().splitlines()[-1])[1:] == ['0', f'50 ± {half:.3f}', f'50000 ± {1000*half:.3f}']
    head = compared(runs, target=.8125).costs().splitlines()[0]
    assert cells(head)[-2:] == ['steps to 0.8125', 'seconds to 0.8125']


def test_simple_models_have_a_mean_over_tasks_where_all_have_a_score():
    runs = [finished(dict(funny=.5, mean=.7), s, lr=.1) for s in range(2)]
    for r, v in zip(runs, (.1, .3)): r.references = {'TF-IDF': {t: dict(macro_f1=v + .2*(t == 'mean')) for t in TASKS}}
    half = mean_interval([.1, .3])[1]
    line = compared(runs).score_table().splitlines()[-1]
    assert cells(line) == ['TF-IDF', *(f'{m:.3f} ± {half:.3f}' for m in (.2, .4, .3))]
    del runs[0].references['TF-IDF']['mean']
    assert cells(compared(runs).score_table().splitlines()[-1]) == ['TF-IDF', f'0.200 ± {half:.3f}', '–', '–']


def test_a_score_that_a_task_does_not_have():
    numbers, classes = dict(pearson=.5, mae=1.), dict(macro_f1=.5, f1=.5)
    assert task_score(numbers, 'weighted_f1') == task_score(numbers, 'pearson') == 'pearson'
    assert task_score(numbers, 'mae') == 'mae' and task_score(classes, 'f1') == 'f1'
    for own, score in ((numbers, 'mea'), (classes, 'weighted_f1'), (classes, 'mae'), (numbers, 'brier')):
        with pytest.raises(ValueError, match=f"no score '{score}'"): task_score(own, score)


def test_another_tokenizer_makes_other_tokens_of_the_same_text():
    runs = [*column(.1, [.5]), *column(.2, [.6])]
    for r, text in zip(runs, 'ab'):
        r.data = {'test': {'clips': 'c', 'videos': 'v', 'labels': 'l', 'classes': 'k', 'content of text': text}}
        r.text = text,
    assert len(columns_of(runs)) == 2
    runs[1].text = runs[0].text
    with pytest.raises(ValueError, match='have one split_seed, but other .*text of the test clips'): columns_of(runs)
    runs[1].text = 'b',
    runs[1].data['test']['content of video'] = 'x'
    with pytest.raises(ValueError, match='have one split_seed, but other .*video of the test clips'): columns_of(runs)


def test_clips_are_counted_once_for_all_tasks():
    runs = [finished(dict(funny=.5, mean=.6), s, lr=.1) for s in (0, 1)]
    assert 'All runs score the same 4 test clips' in compared(runs).varies()
    assert repr(runs[0]) == "Finished('0.1, 0, 0': 2 tasks, 1 step)"


def test_how_many_seeds_each_split_has_is_said():
    def of(seeds): return compared([finished(dict(funny=.5), s, i, f'{i}xyz') for i in range(2) for s in range(seeds)])
    assert of(1).varies().startswith('2 splits of the same clips. The splits')
    assert of(3).varies().startswith('2 splits of the same clips, 3 seeds averaged on each. ')


def test_what_is_saved_is_what_is_shown(tmp_path):
    c = compared(column(.1, [.5, .6]), column(.2, [.6, .7]))  # no spread: NaN
    c.save(tmp_path/'c')
    kept = json.loads((tmp_path/'c'/'comparison.json').read_text())
    assert kept['rows'][1]['corrected'] is None and kept['rows'][1]['values'] == [.6, .7]
    assert kept['varies'] == c.varies() and kept['base'] == 'lr=0.1' and kept['score'] == 'macro_f1'
    assert kept['overlap'] == 0 and kept['notes'] == c.notes != []
    assert [(o['model'], o['values']) for o in kept['references']] == [('always no', [.4, .4])]
    assert kept['folders'] == {name: [str(r.folder) for r in runs.values()] for name, runs in c.columns.items()}
    assert c.markdown() in (tmp_path/'c'/'comparison.md').read_text()
    before = (tmp_path/'c'/'comparison.md').read_text()
    with pytest.raises(FileExistsError, match='overwrite'): compared(column(.1, [.5, .6])).save(tmp_path/'c')
    assert (tmp_path/'c'/'comparison.md').read_text() == before
    resplits = compared(resplit(.1, [.5, .6]))
    resplits.save(tmp_path/'c', overwrite=True)
    assert json.loads((tmp_path/'c'/'comparison.json').read_text())['overlap'] == 10/80 == resplits.overlap


def test_the_plot_has_the_points_of_the_table():
    from matplotlib.figure import Figure
    c = compared(column(.1, [.5, .6, .7]), column(.2, [.8, .8, .8]))
    ax = c.plot(Figure().subplots())
    points = [l.get_ydata().tolist() for l in ax.lines if l.get_marker() == '.']
    assert points == [[.5, .6, .7], [.8, .8, .8]]
    bars = [b for b in ax.containers]
    low, high = bars[0][2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose([(low + high)/2, (high - low)/2], [.6, c.rows[0]['half']])
    assert len(bars) == 2 and not bars[1].has_yerr  # no spread, no bar


# --- folders

def write_run(folder, score, seed=0, split_seed=0, clips='abcd', kind='run', version='0.2.0', **settings):
    "The files of a finished run"
    flat = dict(data='clips.csv', labels=['funny'], seed=seed, split_seed=split_seed) | settings
    parts = {p: dict(clips=f'{p}{split_seed}', videos='v', labels='l') for p in ('training', 'validation', 'test')}
    t = dict(tasks=dict(funny=dict(scores=dict(macro_f1=score), baselines={'prior': dict(macro_f1=.3)})))
    plain = {'TF-IDF': dict(tasks=dict(funny=dict(scores=dict(macro_f1=.35))))}
    table = pd.DataFrame([dict(clip=c, task='funny', probability=.5, predicted='no', truth='no') for c in clips])
    metrics = dict(scores=t, beside=plain, seconds=dict(training=[3., 4.]),
                   clips=[dict(training=80, validation=10, test=10)])
    if kind == 'pretraining':
        stream = dict(name='s', data='clips.csv', labels=['funny'], split_seed=split_seed)
        flat = dict(streams=[stream], seed=seed) | settings
        parts = {f's {k}': v for k, v in parts.items()}
        table['stream'] = 's'
        metrics |= dict(scores=dict(s=t), beside=dict(s=plain), seconds=dict(training=7.), clips=dict(s=[80, 10, 10]))
    if version == '0.1.0': flat.pop('split_seed', None)
    else: flat.setdefault('recipe', 'auto')
    folder.mkdir(parents=True)
    config = {kind: flat, 'versions': dict(hiccap=version), 'data': parts, 'tasks': [dict(name='funny')]}
    for name, d in (('config', config), ('metrics', metrics)): (folder/f'{name}.json').write_text(json.dumps(d))
    table.to_csv(folder/'predictions.csv', index=False)
    pd.DataFrame(dict(kind=['step', 'step', 'epoch'], step=[1, 2, 2], macro_f1=[None, None, .6])).to_csv(
        folder/'history.csv', index=False)
    return folder


@pytest.mark.parametrize('kind', ['run', 'pretraining'])
def test_a_folder_is_read_as_it_was_written(tmp_path, kind):
    clips = 'a', 'NA', '1', '01'  # ids are texts
    r = read_finished(write_run(tmp_path/'a', .5, 3, 2, clips, kind=kind, lr=.1))
    assert (r.seeds, r.config['lr'], r.scores) == (((2,), 3), .1, dict(funny=dict(macro_f1=.5)))
    assert r.truth == {('s' if kind == 'pretraining' else '', c, 'funny'): 'no' for c in clips}
    assert (r.seconds, r.steps, r.curve, r.sizes) == (7., 2, [[2, .6]], [[80, 10, 10]])
    assert {k: v['funny']['macro_f1'] for k, v in r.references.items()} == {'prior': .3, 'TF-IDF': .35}
    assert not {'seed', 'workers', 'track'} & set(r.config) and 'split_seed' not in json.dumps(r.config)
    other = read_finished(write_run(tmp_path/'b', .5, 3, 2, kind=kind, lr=.1, workers=2, checkpoint_every=1))
    assert other.config == r.config  # settings that change no result


@pytest.mark.parametrize('kind', ['run', 'pretraining'])
def test_folders_of_splits_are_one_column(tmp_path, kind):
    for lr, split, score in ((.1, 0, .5), (.1, 1, .6), (.2, 0, .55), (.2, 1, .67)):
        write_run(tmp_path/f'{lr} {split}', score, split_seed=split, clips=f'{split}abc', kind=kind, lr=lr)
    c = compare_runs(tmp_path)
    assert list(c.columns) == ['lr=0.1', 'lr=0.2'] and c.overlap == 10/80
    assert c.row('funny', 'lr=0.2')['values'] == [.55, .67]
    assert compare_runs([tmp_path/'0.2 1', tmp_path/'0.1 1'], base='lr=0.1').base == 'lr=0.1'


def test_a_run_of_the_earlier_version_pairs_with_one_of_the_same_split(tmp_path):
    "Version 0.1.0 split with the seed"
    write_run(tmp_path/'old', .5, 3, 3, version='0.1.0', lr=.1)
    then = EARLIER | dict(config=EARLIER_HEADS, threshold_score='f1', lr=.2, linear_part=0)
    write_run(tmp_path/'new', .6, 3, 3, **then)
    assert set(compare_runs(tmp_path).columns) == {'lr=0.1', 'lr=0.2'}
    c = compare_runs([write_run(tmp_path/str(s), .5 + .1*s, s, s, f'{s}abc', version='0.1.0') for s in range(2)])
    assert c.overlap == 10/80 and 'splits of the same clips' in c.varies()
    same = compare_runs([write_run(tmp_path/f'tie {s}', .5 + .1*s, s, s, version='0.1.0') for s in range(2)])
    assert same.overlap == 0 and 'draws of the training clips' in same.varies()


@pytest.mark.parametrize('damage, message', [
    (lambda f: (f/'metrics.json').unlink(), 'holds no finished run: metrics.json is missing'),
    (lambda f: (f/'predictions.csv').unlink(), 'predictions.csv is missing'),
    (lambda f: edit(f/'config.json', lambda d: d.pop('data')), 'does not say which clips were in which part'),
    (lambda f: edit(f/'config.json', lambda d: d['data']['validation'].pop('labels')), 'in which part'),
    (lambda f: edit(f/'config.json', lambda d: d.update(run=None) or d.pop('run')), 'damaged'),
    (lambda f: edit(f/'metrics.json', lambda d: d.pop('beside')), 'damaged'),
    (lambda f: edit(f/'metrics.json', lambda d: d.update(scores={})), 'no labelled stream'),
])
def test_damaged_folders_are_refused(tmp_path, damage, message):
    write_run(tmp_path/'a', .5)
    damage(tmp_path/'a')
    with pytest.raises(ValueError, match=message): compare_runs(tmp_path)


def edit(path, change):
    d = json.loads(path.read_text())
    change(d)
    path.write_text(json.dumps(d))


def test_folders_that_hold_no_run(tmp_path):
    with pytest.raises(ValueError, match='no such folder'): compare_runs(tmp_path/'none')
    with pytest.raises(ValueError, match='holds no run'): compare_runs(tmp_path)
    a = write_run(tmp_path/'a', .5)
    assert list(compare_runs([a, tmp_path, str(a)]).columns) == ['run']  # each folder once


# --- intervals over videos

def videos_run(folder, lr, seed, quality, n_videos=30, shuffled=False, **kw):
    "A finished run whose network is right about a share `quality` of two clips in each video"
    ids, y = [f'v{v}_{i}' for v in range(n_videos) for i in (0, 1)], np.arange(2*n_videos)//3 % 2
    rng = np.random.default_rng([seed, int(1000*lr)])
    predicted = np.where(rng.random(len(y)) < quality, y, 1 - y)
    p = np.clip(.5 + .4*(predicted - .5) + .1*rng.normal(size=len(y)), 0, 1)
    videos = [o.split('_')[0] for o in ids]
    table = pd.DataFrame(dict(clip=ids, video=videos, truth=y, predicted=predicted, p0=1 - p, p1=p))
    f1 = f1_score(y, predicted, average='macro')
    write_run(folder, f1, seed, clips=ids, lr=lr, **kw)
    edit(folder/'metrics.json', lambda d: d['scores']['tasks']['funny']['scores'].update(auroc=roc_auc_score(y, p)))
    rest = dict(model='network', task='funny')
    kept = [table.assign(**rest), table.assign(model='words', task='funny', predicted=0)]
    order = rng.permutation(2*len(table)) if shuffled else range(2*len(table))
    pd.concat(kept, ignore_index=True).iloc[order].to_csv(folder/'probabilities.csv', index=False)
    return table


@pytest.mark.parametrize('score', ['macro_f1', 'auroc'])
def test_the_interval_over_videos_is_of_the_mean_over_runs(tmp_path, score):
    "By the definition: each video is left out once, the scores of the runs are averaged, and then compared"
    def scored(t):
        if score == 'auroc': return roc_auc_score(t.truth, t.p1)
        return f1_score(t.truth, t.predicted, average='macro')
    tables = {lr: [videos_run(tmp_path/f'{lr} {s}', lr, s, q, shuffled=s == 1) for s in range(3)]
              for lr, q in ((.1, .6), (.2, .9))}
    c = compare_runs(tmp_path, score=score)
    row = c.row('funny', 'lr=0.2')
    def difference(v): return np.subtract(*(np.mean([scored(t[t.video != v]) for t in tables[lr]]) for lr in (.2, .1)))
    np.testing.assert_allclose(row['difference'], difference(None), atol=1e-6)
    samples = [difference(v) for v in dict.fromkeys(tables[.1][0].video)]
    (low, high), _ = jackknife_interval(difference(None), samples, (-1, 1))
    np.testing.assert_allclose([row['low'], row['high']], [low, high], atol=1e-5)
    assert f'; videos {low:+.3f} to {high:+.3f}' in c.difference_table() and not c.notes
    assert 'had other videos been drawn' in c.markdown()
    for lr, own in tables.items():
        def mean(v): return np.mean([scored(t[t.video != v]) for t in own])
        (low, high), _ = jackknife_interval(mean(None), [mean(v) for v in dict.fromkeys(own[0].video)])
        row = c.row('funny', f'lr={lr}')
        np.testing.assert_allclose([row['mean_low'], row['mean_high']], [low, high], atol=1e-5)
        half = mean_interval([scored(t) for t in own])[1]
        assert f'| **lr={lr}** | {mean(None):.3f} ± {half:.3f}; videos {low:.2f} to {high:.2f} |' in c.score_table()
    single = compare_runs([tmp_path/'0.1 0', tmp_path/'0.2 0'], score=score)
    assert single.row('funny', 'lr=0.2')['low'] > 0 and '; videos +' in single.difference_table()


def test_simple_models_and_trivial_baselines_have_intervals_over_videos(tmp_path):
    "Simple models from what they predicted; trivial baselines from the first run, as all runs score the same clips"
    tables = [videos_run(tmp_path/str(s), .1, s, .7) for s in range(2)]
    for s, (a, b) in enumerate(((.3, .5), (.3, .5))):
        def add(d):
            own = d['scores']['tasks']['funny']
            own['baselines'] = {'always yes': dict(macro_f1=.4), 'prior': dict(macro_f1=.5)}
            own['baseline_intervals_95'] = {'always yes': dict(macro_f1=[a, b]), 'prior': dict(macro_f1=[None, None])}
            said = dict(scores=dict(macro_f1=f1_score(tables[0].truth, 0*tables[0].truth, average='macro')))
            d['beside'] = {name: dict(tasks=dict(funny=said)) for name in ('words', 'without predictions')}
        edit(tmp_path/str(s)/'metrics.json', add)
    c = compare_runs(tmp_path)
    assert '| always yes | 0.400; videos 0.30 to 0.50 |' in c.score_table() and '| prior | 0.500 |' in c.score_table()
    def score(t): return f1_score(t.truth, 0*t.truth, average='macro')
    left_out = [score(tables[0][tables[0].video != v]) for v in dict.fromkeys(tables[0].video)]
    (low, high), _ = jackknife_interval(score(tables[0]), left_out)
    assert f'| words | {score(tables[0]):.3f}; videos {low:.2f} to {high:.2f} |' in c.score_table()
    assert f'| without predictions | {score(tables[0]):.3f} |' in c.score_table()


def test_streams_that_share_a_task_have_a_column_each(tmp_path):
    "The scores of one were those of the other: both are called by the name of the task"
    right = dict(a=.9, b=.6)
    for lr in (.1, .2):
        folder, tables = tmp_path/str(lr), []
        write_run(folder, .5, kind='pretraining', lr=lr)
        streams = [dict(name=n, data='clips.csv', labels=['funny']) for n in right]
        edit(folder/'config.json', lambda d: d['pretraining'].update(streams=streams))
        edit(folder/'config.json', lambda d: d.update(data={
            f'{n} {part}': dict(clips=n, videos='v', labels='l') for n in right
            for part in ('training', 'validation', 'test')}))
        rng, scores, plain = np.random.default_rng(int(10*lr)), {}, {}
        for n, q in right.items():
            y = np.arange(60)//3 % 2
            said = np.where(rng.random(60) < q, y, 1 - y)
            tables.append(pd.DataFrame(dict(model='network', clip=[f'{n}{i//2}_{i%2}' for i in range(60)],
                                            video=[f'{n}{i//2}' for i in range(60)], task='funny', truth=y,
                                            predicted=said, p0=1 - said, p1=said, stream=n)))
            own = dict(scores=dict(macro_f1=f1_score(y, said, average='macro')))
            scores[n] = dict(tasks=dict(funny=own | dict(baselines=dict(prior=dict(macro_f1=q/2)))))
            plain[n] = dict(words=dict(tasks=dict(funny=dict(scores=dict(macro_f1=q/3)))))
        sizes = dict.fromkeys(right, [8, 1, 1])
        edit(folder/'metrics.json', lambda d: d.update(scores=scores, beside=plain, clips=sizes))
        pd.concat(tables).to_csv(folder/'probabilities.csv', index=False)
        kept = pd.concat(tables).assign(probability=.5)
        columns = ['clip', 'task', 'probability', 'predicted', 'truth', 'stream']
        kept[columns].to_csv(folder/'predictions.csv', index=False)
    c = compare_runs(tmp_path)
    assert c.tasks == ['a: funny', 'b: funny', module.MEAN] and not c.notes
    for n in right:
        row, k = c.row(f'{n}: funny', 'lr=0.2'), kept[kept.stream == n]
        assert row['mean'] == pytest.approx(f1_score(k.truth, k.predicted, average='macro'))
        assert row['mean_low'] < row['mean'] < row['mean_high'] and row['low'] < row['difference'] < row['high']
    lines = {o[0]: o[1:] for o in map(cells, c.score_table().splitlines())}
    assert lines['prior'] == ['0.450', '0.300', '0.375'] and lines['words'] == ['0.300', '0.200', '0.250']


def test_a_simple_model_that_differs_between_columns_has_a_line_in_each():
    runs = column(.1, [.5, .6]) + column(.2, [.6, .8])
    for r in runs:
        scores = dict(words=.25, frozen=r.config['lr'] + .25)
        r.references = {name: dict(funny=dict(macro_f1=v)) for name, v in scores.items()}
    shown = [cells(o) for o in compared(runs).score_table().splitlines()[4:]]
    assert shown == [['words', '0.250'], ['frozen (lr=0.1)', '0.350'], ['frozen (lr=0.2)', '0.450']]


def test_simple_models_of_several_seeds_on_each_split_are_averaged_first():
    runs = [finished(dict(funny=.5), seed, split, f'{split}xyz', lr=.1) for split in range(3) for seed in range(2)]
    for r in runs: r.references = dict(words=dict(funny=dict(macro_f1=.1*r.split_seed[0] + .02*r.seed)))
    half = mean_interval([.01, .11, .21], 10/80)[1]
    assert cells(compared(runs).score_table().splitlines()[-1]) == ['words', f'0.110 ± {half:.3f}']


def test_there_is_no_interval_over_videos_where_there_cannot_be(tmp_path):
    for lr in (.1, .2): videos_run(tmp_path/'few'/str(lr), lr, 0, .7, n_videos=12)
    c = compare_runs(tmp_path/'few')
    assert np.isnan(c.row('funny', 'lr=0.2')['low']) and '; videos' not in c.difference_table()
    assert '12 videos, and an interval needs at least' in c.markdown()
    assert 'funny of lr=0.2 less lr=0.1' in c.notes[0] and 'videos, and an interval' not in ''.join(c.notes[1:])
    for lr in (.1, .2): videos_run(tmp_path/'old'/str(lr), lr, 0, .7)
    (tmp_path/'old'/'0.2'/'probabilities.csv').unlink()
    c = compare_runs(tmp_path/'old')
    assert 'low' not in c.row('funny', 'lr=0.2') and 'No intervals over videos: ' in c.markdown()
    assert str(tmp_path/'old'/'0.2') in c.notes[0]
    alone = compare_runs(tmp_path/'old'/'0.1')
    assert not alone.notes and len(alone.rows) == 1 and '; videos' in alone.score_table()
    assert 'No intervals over videos: ' in compare_runs(tmp_path/'old'/'0.2').notes[0]
    splits = compared(resplit(.1, [.5, .6]), resplit(.2, [.6, .8]))
    assert not splits.notes and 'low' not in splits.row('funny', 'lr=0.2')


# --- running a grid

class Process:
    "A process that ends after some polls"
    def __init__(self, status, polls=2): self.status, self.polls, self.ended, self.killed = status, polls, False, False
    @property
    def returncode(self): return self.status
    def terminate(self): self.killed = True
    def poll(self):
        self.polls -= 1
        if self.polls > 0: return None
        self.ended = True
        return self.status


@pytest.fixture
def processes(monkeypatch):
    "Started processes by the name of their run; a learning rate of 2 fails"
    found, most = {}, []
    def start(name, run, out, overwrite, env):
        (out/f'{name}.log').write_text(f'last words of {name}\n')
        found[name] = Process(int(run.training.lr == 2))
        found[name].env = env
        most.append(sum(not p.ended for p in found.values()))
        return found[name]
    monkeypatch.setattr(module, '_start', start)
    monkeypatch.setattr(module.time, 'sleep', lambda s: None)
    found[''] = most
    return found


@pytest.mark.parametrize('jobs', [1, 2, 9])
def test_every_run_of_a_grid_is_started_once(processes, tmp_path, monkeypatch, jobs):
    monkeypatch.setenv('OMP_NUM_THREADS', '77')
    most, lines = processes.pop(''), []
    runs = expand(dict(data='c.csv', grid=dict(lr=[1, 2, 3]), seeds=[0, 1]), 'file')
    status = run_grid(runs, tmp_path/'out', jobs, write=lines.append)
    assert status == {name: int(name.startswith('lr=2')) for name in runs} and list(processes) == list(runs)
    assert max(most) == min(jobs, 6)
    threads = [p.env.get('OMP_NUM_THREADS') for p in processes.values()]
    if jobs == 1: assert set(threads) == {'77'}
    if jobs > 1: assert set(threads) == {str(max(1, (module.os.cpu_count() or 1)//jobs))}
    failed = next(l for l in lines if 'failed' in l)
    assert 'exit status 1 (last words of lr=2, seed=' in failed and '.log' in failed
    assert sum(l.endswith(': done') for l in lines) == 4


def test_what_a_run_prints_is_in_its_log(tmp_path, monkeypatch):
    "In a process of its own: both streams, after what an earlier start left there"
    (tmp_path/'seed=0.log').write_text('before\n')
    said = [module.sys.executable, '-c', 'import os, sys; print(os.environ["A"]); print("error", file=sys.stderr)']
    monkeypatch.setattr(module, '_command', lambda *args: said)
    run, = expand(dict(data='clips.csv'), 'file').values()
    p = module._start('seed=0', run, tmp_path, False, module.os.environ | dict(A='here'))
    assert p.wait() == 0 and set((tmp_path/'seed=0.log').read_text().split()) == {'before', 'here', 'error'}
    assert (tmp_path/'seed=0.log').read_text().startswith('before') and (tmp_path/'seed=0.yaml').is_file()


def test_a_folder_that_is_not_there_or_empty_holds_no_finished_run(tmp_path, monkeypatch):
    monkeypatch.setattr('hiccap.run_folders.source_digests', lambda run: None)
    run, = expand(dict(data='clips.csv', labels=['funny'], linear_part=0), 'file').values()
    (tmp_path/'empty').mkdir()
    assert not is_done(tmp_path/'none', run) and not is_done(tmp_path/'empty', run)
    write_run(tmp_path/'other', .5, labels=['mean'])
    with pytest.raises(ValueError): is_done(tmp_path/'other', run)
    assert not is_done(tmp_path/'other', run, overwrite=True)


def test_an_interruption_ends_the_processes(processes, tmp_path, monkeypatch):
    processes.pop('')
    def interrupted(seconds): raise KeyboardInterrupt
    monkeypatch.setattr(module.time, 'sleep', interrupted)
    with pytest.raises(KeyboardInterrupt): run_grid(expand(dict(data='c', seeds=[0, 1]), 'file'), tmp_path/'out', 2)
    assert len(processes) == 2 and all(p.killed for p in processes.values())


def test_folders_of_a_grid_are_checked_before_anything_starts(processes, tmp_path, monkeypatch):
    monkeypatch.setattr('hiccap.run_folders.source_digests', lambda run: None)  # the files are what they were
    processes.pop('')
    runs = expand(dict(data='clips.csv', labels=['funny'], linear_part=0, seeds=[0, 1, 2]), 'file')
    write_run(tmp_path/'out'/'seed=0', .5)
    lines = []
    assert run_grid(runs, tmp_path/'out', write=lines.append) == dict.fromkeys(runs, 0)
    assert lines[:2] == ['seed=0: done before', 'seed=1: started'] and 'seed=0: done' not in lines
    assert list(processes) == ['seed=1', 'seed=2']  # the first was finished
    processes.clear()
    write_run(tmp_path/'out'/'seed=2', .5, lr=.7)
    with pytest.raises(ValueError, match='lr'): run_grid(runs, tmp_path/'out')
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'seed=1').mkdir()
    (tmp_path/'mine'/'seed=1'/'thesis.txt').write_text('x')
    with pytest.raises(FileExistsError): run_grid(runs, tmp_path/'mine')
    assert not processes


def test_the_end_of_a_run_is_one_line(tmp_path):
    log = tmp_path/'a.log'
    assert module._ending('a', 0, log) == 'a: done'
    for text, last in (('', ''), ('first\n' + 'x'*300 + '\n\n', 'x'*200)):
        log.write_text(text)
        assert module._ending('a', 3, log) == f'a: failed with exit status 3 ({last}); see {log}'


def test_the_example_runs_are_runs(tmp_path):
    file = write_example_runs(tmp_path/'a.yaml')
    runs = expand(yaml.safe_load(file.read_text()), file)
    assert file == tmp_path/'a.yaml' and [r.training.seed for r in runs.values()] == [0, 1]
    with pytest.raises(FileExistsError, match='give another name'): write_example_runs(file)


def test_a_run_without_a_validation_score_has_no_curve(tmp_path):
    folder = write_run(tmp_path/'a', .5)
    pd.DataFrame(dict(kind=['step', 'epoch'], step=[1, 1])).to_csv(folder/'history.csv', index=False)
    assert (read_finished(folder).steps, read_finished(folder).curve) == (1, [])


def test_a_started_run_can_be_read_again(tmp_path, monkeypatch):
    "Its settings are written next to its folder, and the command names both"
    asked = {}
    monkeypatch.setattr(module.subprocess, 'Popen', lambda command, **kw: asked.setdefault('command', command))
    (name, run), = expand(dict(data='c.csv', lr=.2, seeds=[4], split_seeds=[5]), 'file').items()
    module._start(name, run, tmp_path, True, {})
    assert Run.from_yaml(tmp_path/f'{name}.yaml') == run == Run.from_dict(yaml.safe_load(run.to_yaml()))
    assert asked['command'][-6:] == ['--run', str(tmp_path/f'{name}.yaml'), '--out', str(tmp_path/name), '--resume',
                                     '--overwrite']
