"""Task affinity: measuring changes nothing, an absent task is absent, and the groupings are the best there are."""
import itertools
import json

import numpy as np
import pytest
import torch
from fastai.basics import DataLoaders
from fastai.callback.training import GradientAccumulation
from hypothesis import given, settings, strategies as st
from scipy import stats
from torch import nn

from conftest import TINY_NETWORK
from hiccap.affinity import (MOST_TASKS, Affinity, MeasureAffinity, _relative, batch_affinity, groupings, plot_affinity,
                             task_affinity)
from hiccap.generators import random_state
from hiccap.states import optimizer_state
from hiccap.runs import Run
from hiccap.training import train_run
from hiccap.learner import hiccap_learner
from hiccap.losses import MultiTaskLoss
from hiccap.resuming import Checkpoint
from hiccap.tasks import IGNORE, Task
from hiccap.weighting import Weigh

NAMES = 'abc'
TASKS = [Task(k) for k in NAMES]


class Net(nn.Module):
    "A trunk with BatchNorm and dropout, and a head a task"
    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.trunk = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(.3))
            self.heads = nn.ModuleDict({k: nn.Linear(8, 2) for k in NAMES})

    def forward(self, x): h = self.trunk(x); return {k: head(h) for k, head in self.heads.items()}


def batch(present, seed=0, rows=6):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 5, generator=g), {
        k: torch.randint(2, (rows,), generator=g) if k in present else torch.full((rows,), IGNORE) for k in NAMES}


class Loader(list):
    "Batches as they are, in the same order each pass"
    clip_tasks, device, bs, dataset, done = TASKS, torch.device('cpu'), 6, range(24), 0
    def state_dict(self): return {}
    def load_state_dict(self, s): pass


def learner(batches, *cbs, **kw):
    learn = hiccap_learner(
        DataLoaders(Loader(batches), Loader(batches[:1])), Net(), MultiTaskLoss(TASKS), cbs=cbs, metrics=[], **kw)
    for cb in list(learn.cbs):
        if cb.name in ('progress',): learn.remove_cb(cb)
    return learn


def flat(x):
    if isinstance(x, torch.Tensor): return [x.double().flatten()]
    if isinstance(x, dict): return [v for k in sorted(x, key=str) for v in flat(x[k])]
    if isinstance(x, (list, tuple)): return [v for o in x for v in flat(o)]
    return [torch.tensor([float(x)])] if isinstance(x, (int, float)) else []


def everything(learn):
    "Weights, buffers, optimizer, and the generators after a fit"
    return torch.cat(flat([learn.model.state_dict(), optimizer_state(learn.opt)]))


def fit(learn, n=2):
    with learn.no_logging(): learn.fit(n, 1e-2)
    return learn


@settings(max_examples=6)
@given(st.lists(st.sets(st.sampled_from(NAMES)), min_size=1, max_size=5), st.integers(1, 3),
       st.sampled_from([None, .1, 10.]), st.booleans(), st.sampled_from([None, 'upgrad', 'famo']))
def test_training_is_the_same_with_and_without(present, every, rate, accumulate, weighting):
    batches = [batch(p, i) for i, p in enumerate(present)]
    more = lambda: [*([GradientAccumulation(12)] if accumulate else []),
                    *([Weigh(weighting, ['trunk'])] if weighting else [])]
    drawn = []
    class Draws(nn.Module):  # the generators' state inside the fit, where dropout comes from
        def forward(self, x): drawn[-1].append(torch.get_rng_state()); return x
    def run(*cbs):
        drawn.append([]); learn = learner(batches, *more(), *cbs); learn.model.trunk.append(Draws())
        return fit(learn)
    watch = MeasureAffinity(every, rate)
    before = random_state(); with_it, without = run(watch), run()
    assert torch.equal(everything(with_it), everything(without))
    assert torch.equal(drawn[0][-1], drawn[1][-1])
    assert all(torch.equal(a, b) for a, b in zip(with_it.recorder.losses, without.recorder.losses))
    assert torch.equal(random_state()['torch'], before['torch']) and str(random_state()['python']) == str(
        before['python'])
    n = len(range(0, 2*len(present), every))
    assert len(watch.affinity.steps) == n and watch.affinity.steps == tuple(range(0, 2*len(present), every))
    for s, v in zip(watch.affinity.steps, watch.affinity.values):
        here = np.array([k in present[s % len(present)] for k in NAMES])
        assert (np.isfinite(v) == np.outer(here, here)).all()


def test_absent_is_not_zero_and_counts_say_so():
    a = task_affinity(Net(), MultiTaskLoss(TASKS), [batch('ab', 0), batch('bc', 1), batch('b', 2), batch('', 3)])
    assert a.counts.tolist() == [[1, 1, 0], [1, 3, 1], [0, 1, 1]]
    assert np.isnan(a.mean[0, 2]) and np.isnan(a.mean[2, 0]) and np.isfinite(a.mean[1, 2])
    assert np.isnan(a.half[0, 1]) and np.isfinite(a.half[1, 1])
    bb = a.values[:, 1, 1][~np.isnan(a.values[:, 1, 1])]
    interval = stats.t.interval(.95, len(bb) - 1, loc=bb.mean(), scale=stats.sem(bb))
    assert np.allclose((a.mean[1, 1] - a.half[1, 1], a.mean[1, 1] + a.half[1, 1]), interval)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([.01, .1]))
def test_it_is_the_papers_equation(seed, rate):
    "Against a step taken by hand, in evaluation, on a copy"
    net, loss, (x, y) = Net(seed).eval(), MultiTaskLoss(TASKS), batch(NAMES, seed)
    z = batch_affinity(net, loss, (x,), (y,), rate=rate)
    first = loss.task_losses(net(x), y)
    for i, a in enumerate(NAMES):
        other = Net(seed).eval()
        loss.task_losses(other(x), y)[a].backward()
        with torch.no_grad():
            for p in other.trunk.parameters(): p -= rate*p.grad  # heads stay
            after = loss.task_losses(other(x), y)
        for j, b in enumerate(NAMES): assert abs(z[i, j] - (1 - float(after[b])/float(first[b]))) < 1e-4


def test_heads_are_not_stepped_and_the_mask_is_the_same():
    net, loss, (x, y) = Net(), MultiTaskLoss(TASKS), batch(NAMES)
    z = batch_affinity(net, loss, (x,), (y,), rate=1e-12)
    assert np.abs(z).max() < 1e-5  # a step of no length changes nothing: with another dropout mask after it, it would
    for p in net.trunk.parameters(): p.requires_grad_(False)
    with pytest.raises(ValueError, match='share no parameter'): batch_affinity(net, loss, (x,), (y,))


def test_non_finite_numbers_give_no_entry_and_weights_come_back_after_an_error():
    net, loss, (x, y) = Net(), MultiTaskLoss(TASKS), batch(NAMES)
    was = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad(): net.heads['a'].bias.fill_(float('nan'))
    assert np.isnan(batch_affinity(net, loss, (x,), (y,))).all()
    assert (np.isnan(_relative(0.0, 0.0)) and np.isnan(_relative(0.0, 1.0)) and np.isnan(_relative(1.0, float('inf')))
            and _relative(2.0, 1.0) == 0.5)
    with torch.no_grad(): net.heads['a'].bias.copy_(was['heads.a.bias'])
    calls = []
    def explode(*_):
        calls.append(0)
        if len(calls) == 3: raise RuntimeError('no')
    net.trunk.register_forward_hook(explode)
    with pytest.raises(RuntimeError): batch_affinity(net, loss, (x,), (y,), rate=1.)
    assert all(torch.equal(v, was[k]) for k, v in net.state_dict().items())


def brute(m, k):
    "The best total over every set of at most k groups that covers all"
    K = len(m); groups = [[i for i in range(K) if g >> i & 1] for g in range(1, 1 << K)]
    def gain(g, j): return float(np.mean([m[i, j] for i in g if i != j])) if len(g) > 1 else 0.
    best = -np.inf
    for n in range(1, k + 1):
        for chosen in itertools.combinations(groups, n):
            if set().union(*chosen) == set(range(K)):
                best = max(best, sum(max(gain(g, j) for g in chosen if j in g) for j in range(K)))
    return best


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 10**6))
def test_groupings_are_the_best(K, k, seed):
    m = np.random.default_rng(seed).normal(size=(K, K)).round(2)
    g = groupings(m, k)
    assert len(g.groups) <= k and set().union(*g.groups) == set(map(str, range(K)))
    assert g.total == pytest.approx(brute(m, k), abs=1e-9)
    for j in range(K):
        members = [int(i) for i in g.groups[g.served[str(j)]]]
        assert j in members and g.gain[str(j)] == pytest.approx(
            np.mean([m[i, j] for i in members if i != j]) if len(members) > 1 else 0.0)
    assert groupings(m, K + 3).total == groupings(m, K).total


def test_groupings_of_the_most_tasks_and_what_cannot_be():
    m = np.full((MOST_TASKS,)*2, -1.); m[:5, :5] = m[5:, 5:] = 1.
    assert [len(g) for g in groupings(m, 2).groups] == [5, 5]
    for bad, said in ((np.zeros((MOST_TASKS + 1,)*2), 'at most'), (np.zeros((2, 3)), 'row and a column'),
                      (np.array([[0, np.nan], [0, 0]]), "'0' to '1' was not measured")):
        with pytest.raises(ValueError, match=said): groupings(bad, 1)


def test_an_interrupted_measurement_goes_on(tmp_path):
    batches = [batch(NAMES, i) for i in range(4)]
    def trained(folder, stop=None):
        watch = MeasureAffinity(2)
        learn = learner(batches, watch)
        if stop is not None:
            original = watch.before_batch
            def before_batch():
                if watch.seen == stop: raise KeyboardInterrupt
                original()
            watch.before_batch = before_batch
        try: 
            with learn.no_logging():
                learn.fit(3, 1e-2, cbs=Checkpoint(folder, every=1, resume=True, write=lambda s: None))
        except KeyboardInterrupt: pass
        return watch
    whole = trained(tmp_path/'whole'); trained(tmp_path/'cut', 4); rest = trained(tmp_path/'cut')
    assert rest.affinity.steps == whole.affinity.steps == (0, 2, 4, 6, 8, 10)
    assert np.array_equal(rest.affinity.values, whole.affinity.values)


def test_one_task_has_no_affinity():
    loss = MultiTaskLoss(TASKS[:1])
    learn = learner([batch(NAMES)], MeasureAffinity(1)); learn.loss_func = loss
    with pytest.raises(ValueError, match='at least two'): fit(learn)


def test_the_picture_is_the_matrix():
    import matplotlib; matplotlib.use('agg')
    from matplotlib.figure import Figure
    a = task_affinity(Net(), MultiTaskLoss(TASKS), [batch('ab', 0), batch('bc', 1)])
    ax = plot_affinity(a, Figure().subplots())
    assert (np.array_equal(np.ma.filled(ax.images[0].get_array(), np.nan), 100 * a.mean, equal_nan=True)
            and ax.texts[2].get_text() == '–')


SMALL = dict(
    data='synthetic',
    synthetic=dict(n=60, scale=0.1),
    epochs=1,
    threads=1,
    bs=8,
    config=TINY_NETWORK,
)


@pytest.mark.parametrize('folds', [2])
def test_a_run_measures_and_is_otherwise_the_same(tmp_path, folds):
    import pandas as pd
    for n, more in (('with', dict(affinity=2)), ('without', {})):
        train_run(Run.from_dict({**SMALL, 'folds': folds, **more}), tmp_path/n, write=lambda s: None)
    for f in ('predictions.csv', 'history.csv', *(['model/model.safetensors'] if not folds else [])):
        assert (tmp_path/'with'/f).read_bytes() == (tmp_path/'without'/f).read_bytes()
    table = pd.read_csv(tmp_path/'with'/'affinity.csv')
    tasks = [t['name'] for t in json.loads((tmp_path/'with'/'config.json').read_text())['tasks']]
    steps = (pd.read_csv(tmp_path / 'with' / 'history.csv').query("kind == 'step'").groupby('fold').size().tolist()
             if folds else [int((pd.read_csv(tmp_path / 'with' / 'history.csv').kind == 'step').sum())])
    assert (list(dict.fromkeys(table.step_on)) == tasks and len(table) == len(tasks) ** 2
            and table.batches.max() == sum(-(-n // 2) for n in steps))
    report = (tmp_path/'with'/'report.md').read_text()
    assert (
        '## Task affinity' in report
        and '(affinity.png)' in report
        and (tmp_path / 'with' / 'affinity.png').stat().st_size < 100_000
    )
    assert (
        not (tmp_path / 'without' / 'affinity.csv').exists()
        and '## Task affinity' not in (tmp_path / 'without' / 'report.md').read_text()
    )
