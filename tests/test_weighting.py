"""Weightings: an absent task is absent, scale and order change nothing that they should not, and a resumed run
continues bit for bit."""
import gc
import json
import math
import sys
import weakref
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.basics import Callback, CancelFitException, CancelStepException, CancelTrainException, DataLoaders
from fastai.callback.training import GradientAccumulation
from hypothesis import given, settings, strategies as st

import hiccap.gradient_weighting as module
from hiccap.states import optimizer_state
from hiccap.callbacks import AddRegularizer, ClipGradients
from hiccap.clips import Clip, ClipDataset
from hiccap.learner import ClipDL, hiccap_learner
from hiccap.losses import MultiTaskLoss, Regularizer
from hiccap.encoders import FeaturesConfig
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.tasks import Task
from hiccap.weighting import (COMPARED_AT, WEIGHTINGS, DynamicWeightAverage, FAMO, IMTLL, PlainSum, Uncertainty,
                              Weigh, Weighting, graph_leaves, weighting)

NAMES = 'abcd'
SLOW = 'cagrad', 'nash_mtl'  # through a general solver
DRAWN = 'random', 'pcgrad', 'graddrop'
GRADIENTS = [k for k, c in WEIGHTINGS.items() if c.gradients]
FAST = [k for k in WEIGHTINGS if k not in SLOW]

pytest.importorskip('cvxpy')
pytest.importorskip('quadprog')


def made(name, names=NAMES, **kw):
    return weighting(name, **(dict(tasks={n: .5 + i for i, n in enumerate(names)}) if name == 'fixed' else {}), **kw)


def kept(w): return {k: getattr(w, k) for k in w.kept if isinstance(getattr(w, k), dict)}


def without(w, absent):
    "A weighting that never knew the absent tasks"
    w = deepcopy(w)
    for d in kept(w).values():
        for n in absent: d.pop(n, None)
    return w


def world(seed, scales, n=6):
    "For each step losses and gradients of every task, as large as their scale"
    rng = np.random.default_rng(seed)
    while True:
        yield ({k: float(s * rng.uniform(0.2, 2)) for k, s in zip(NAMES, scales)},
               {k: torch.tensor(s * rng.normal(size=n), dtype=torch.float32) for k, s in zip(NAMES, scales)})


def take(w, losses, grads, present):
    "One step; the gradient and the weights"
    g, told = w.aggregate({n: losses[n] for n in present}, torch.stack([grads[n] for n in present]))
    w.step({n: .9*losses[n] for n in present} if w.look_back else None)
    return g, told


patterns = st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True), min_size=1, max_size=5)
scales = st.lists(st.integers(-6, 4).map(lambda e: 10.**e), min_size=4, max_size=4)
seeds = st.integers(0, 2**32 - 1)
fewer = settings(max_examples=max(5, settings().max_examples//4))  # of each weighting


def absent_is_absent(name, pattern, scale, seed):
    w, steps = made(name), world(seed, scale)
    for i, present in enumerate(pattern):
        losses, grads = next(steps)
        before, ignorant = deepcopy(kept(w)), without(w, set(NAMES) - set(present))
        g, told = take(w, losses, grads, present)
        assert set(told) == set(present) and all(map(math.isfinite, told.values())) and torch.isfinite(g).all()
        for k, d in kept(w).items():
            for n in set(NAMES) - set(present): assert d.get(n) == before[k].get(n), (k, n)
        other, said = take(ignorant, losses, grads, present)
        assert torch.equal(g, other) and told == said
        if i % 2: w.end_epoch()


@given(patterns, scales, seeds)
def test_absent_tasks_have_no_influence(pattern, scale, seed):
    for name in FAST: absent_is_absent(name, pattern, scale, seed)


@pytest.mark.parametrize('scale', [[1., 1., 1., 1.], [1e-6, 1e4, 1., 1e2], [1e4, 1e4, 1e-6, 1e-6]])
@pytest.mark.parametrize('name', SLOW)
def test_absent_tasks_have_no_influence_on_solvers(name, scale):
    absent_is_absent(name, ['ab', 'bcd', 'd', 'abcd', 'ac'], scale, 7)


def in_another_order(name, order, scale, seed):
    a, b, steps = made(name), made(name), world(seed, scale)
    for _ in range(2):
        losses, grads = next(steps)
        (g, u), (h, v) = take(a, losses, grads, NAMES), take(b, losses, grads, order)
        assert torch.equal(g, h) and u == v and list(v) == list(order)
    assert a.state_dict() == b.state_dict()


@given(st.permutations(NAMES), scales, seeds)
def test_the_order_of_tasks_changes_no_bit(order, scale, seed):
    for name in FAST: in_another_order(name, order, scale, seed)


@pytest.mark.parametrize('name', SLOW)
def test_the_order_of_tasks_changes_no_bit_of_solvers(name): in_another_order(name, 'cadb', [1., 10., .1, 1.], 5)


@given(st.permutations(NAMES), seeds)
@pytest.mark.parametrize('name', [k for k in FAST if k not in DRAWN + ('fixed',)])
def test_renaming_tasks_renames_weights(name, order, seed):
    "Where nothing is drawn, a task's name is only a name"
    a, b, new = made(name), made(name), dict(zip(NAMES, order))
    for _, (losses, grads) in zip(range(3), world(seed, [1., 2., .5, 1.], 12)):
        (g, u), (h, v) = take(a, losses, grads, NAMES), take(
            b, {new[n]: losses[n] for n in NAMES}, {new[n]: grads[n] for n in NAMES}, NAMES)
        near = dict(rel=1e-3, abs=.02 if name == 'mgda' else 1e-6)  # MGDA's solver stops at a thousandth
        for n in NAMES: assert u[n] == pytest.approx(v[new[n]], **near)
        a.end_epoch(); b.end_epoch()


def continues(name, pattern, cut, seed, scale=(1., 5., .2, 1.)):
    whole, first, steps = made(name), made(name), world(seed, scale)
    rows = [next(steps) for _ in pattern]
    for i, (row, present) in enumerate(zip(rows, pattern)):
        if i == cut:
            first, old = made(name), first
            first.load_state_dict(json.loads(json.dumps(old.state_dict())))
        (g, u), (h, v) = take(whole, *row, present), take(first, *row, present)
        assert torch.equal(g, h) and u == v
        if i % 2: whole.end_epoch(); first.end_epoch()
    assert whole.state_dict() == first.state_dict()


@given(patterns, st.integers(0, 5), seeds)
def test_a_state_continues_bit_for_bit(pattern, cut, seed):
    for name in FAST: continues(name, pattern, cut, seed)


@pytest.mark.parametrize('name', SLOW)
def test_a_state_of_solvers_continues_bit_for_bit(name): continues(name, ['abc', 'ab', 'abcd', 'c', 'bcd'], 2, 3)


def test_a_state_of_other_arguments_is_refused():
    with pytest.raises(ValueError, match='lr=0.1'): Uncertainty().load_state_dict(Uncertainty(lr=.1).state_dict())
    with pytest.raises(ValueError, match="weighting='PlainSum'"): Uncertainty().load_state_dict(PlainSum().state_dict())


def test_every_weighting_keeps_all_it_learns():
    "What differs between two objects of a kind after some steps is in the state"
    for name in WEIGHTINGS:
        w, fresh, steps = made(name), made(name), world(1, [1., 2., .5, 1.])
        for present in ('abc', 'ab', 'abcd'): take(w, *next(steps), present); w.end_epoch()
        take(w, *next(steps), 'abc')
        changed = {k for k in vars(w) if k != 'solvers' and getattr(w, k) != getattr(fresh, k)}
        assert changed <= set(w.state_dict()), name


# -- what is learnt, against PyTorch's own autograd and Adam ----------------------------------------------------------

class ByAutograd:
    "Numbers of tasks that PyTorch learns by Adam from a loss that is written down as in the paper"
    def __init__(self, loss, names, first, lr, weight_decay=0.):
        self.loss, self.x = loss, torch.tensor([first]*len(names), dtype=torch.float64, requires_grad=True)
        self.opt = torch.optim.Adam([self.x], lr=lr, weight_decay=weight_decay)

    def step(self, *args):
        self.opt.zero_grad()
        self.loss(self.x, *args).backward()
        self.opt.step()


def entropy(p): return -(p*p.log()).sum()


@given(st.lists(st.lists(st.floats(.01, 5), min_size=3, max_size=3), min_size=1, max_size=8), st.floats(0, 3))
def test_learnt_weights_are_those_of_the_losses_in_their_docstrings(steps, tau):
    cases = [(weighting('uncertainty', lr=.1), lambda s, l: (torch.exp(-s)*l + s/2).sum(), lambda s: torch.exp(-s)),
             (weighting('imtl_l', lr=.1), lambda s, l: (torch.exp(s)*l - s).sum(), torch.exp),
             (weighting('learned', lr=.1, entropy=tau),
              lambda v, l: v.softmax(0)@l - tau*entropy(v.softmax(0)), lambda v: 3*v.softmax(0))]
    for w, loss, weights_of in cases:
        theirs = ByAutograd(loss, 'abc', 0., .1)
        for losses in steps:
            got = list(w.weigh(dict(zip('abc', losses))).values())
            np.testing.assert_allclose(got, weights_of(theirs.x).detach(), rtol=1e-5)
            w.step()
            theirs.step(torch.tensor(losses, dtype=torch.float64))


def gradnorm_loss(w, norms, rate, alpha):
    "The loss of algorithm 1 of Chen et al. (2018), whose target is a constant"
    lengths = w*norms
    return (lengths - (lengths.mean()*rate**alpha).detach()).abs().sum()


@given(st.integers(2, 4), st.integers(2, 7), seeds, st.sampled_from([0., .5, 1.5]), st.booleans())
def test_gradnorm_is_algorithm_1_of_its_paper(k, steps, seed, alpha, known):
    "The rates are relative to the losses at the start: the first ones seen, or those that are given"
    names, rng = NAMES[:k], np.random.default_rng(seed)
    initial = {n: float(rng.uniform(.2, 3)) for n in names} if known else None
    ours = weighting('gradnorm', alpha=alpha, initial=initial, lr=.05)
    theirs, first = ByAutograd(gradnorm_loss, names, 1., .05), None
    for _ in range(steps):
        losses, rows = rng.uniform(.2, 3, k), [[torch.tensor(g)] for g in rng.normal(size=(k, 5))]
        first = losses if first is None else first
        got = ours.weigh(dict(zip(names, losses)), module.gramian(rows))
        np.testing.assert_allclose(list(got.values()), theirs.x.detach(), rtol=1e-6)
        rate = losses/(np.array(list(initial.values())) if known else first)
        ours.step()
        theirs.step(torch.tensor([float(r[0].norm()) for r in rows]), torch.tensor(rate/rate.mean()), alpha)
        with torch.no_grad():
            theirs.x.clamp_(min=ours.least)
            theirs.x *= k/theirs.x.sum()
    assert ours.start_losses == dict(zip(names, initial.values() if known else first))


@given(st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True), min_size=2, max_size=6), seeds)
def test_gradnorm_keeps_the_first_loss_of_each_task_and_the_sum_of_weights(pattern, seed):
    w, first, sum_of = weighting('gradnorm', lr=.3, initial=dict(b=.7)), dict(b=.7), dict.fromkeys(NAMES, 1.)
    for present, (losses, grads) in zip(pattern, world(seed, [1., 2., .5, 1.])):
        before = sum(sum_of[n] for n in present)
        _, weight = take(w, losses, grads, present)
        assert {n: sum_of[n] for n in present} == pytest.approx(weight)
        for n in present: first.setdefault(n, losses[n])
        sum_of.update(w.values)
        assert sum(sum_of[n] for n in present) == pytest.approx(before)
        assert w.start_losses == {n: v for n, v in first.items() if n in w.start_losses}
        assert set(present) <= set(w.start_losses)


def test_gradnorm_weighs_no_task_below_the_least_weight():
    w = weighting('gradnorm', lr=5., least=.1)
    losses, grads = next(world(0, [1., 1., 1., 1.]))
    take(w, losses, {**grads, 'a': 1e3*grads['a']}, 'ab')
    assert w.values['a'] == pytest.approx(.1*2/(6 + .1)) and w.values['b'] == pytest.approx(6*2/(6 + .1))


def test_a_weight_of_zero_or_below_is_raised_before_the_weights_get_their_sum():
    w = weighting('gradnorm', lr=1.5)
    take(w, *next(world(0, [1., 1., 1., 1.])), 'ab')
    assert min(w.values.values()) > 0 and sum(w.values.values()) == pytest.approx(2)


@given(st.lists(st.floats(1.1, 5), min_size=3, max_size=3), st.lists(st.floats(1.1, 5), min_size=3, max_size=3),
       st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_famo_sees_losses_above_their_floors_and_stch_above_their_ideals(before, after, low):
    a, b = weighting('famo', floors=dict(zip('abc', low)), lr=.1), weighting('famo', lr=.1)
    c, d = weighting('stch', ideal=dict(zip('abc', low))), weighting('stch')
    losses = dict(zip('abc', before))
    above = {n: l - o for (n, l), o in zip(losses.items(), low)}
    for _ in range(2):
        assert a.weigh(losses) == pytest.approx(b.weigh(above))
        a.step(dict(zip('abc', after)))
        b.step({n: l - o for n, l, o in zip('abc', after, low)})
    assert a.values == pytest.approx(b.values) and c.weigh(losses) == pytest.approx(d.weigh(above))


def test_famo_decays_what_it_learns():
    "With losses that do not change only the decay is left"
    w, theirs = weighting('famo', lr=.1, decay=.5), ByAutograd(lambda x: 0*x.sum(), 'ab', 0., .1, .5)
    w.values = dict(a=2., b=-1.)
    theirs.x.data = torch.tensor([2., -1.], dtype=torch.float64)
    for _ in range(3):
        w.weigh(dict(a=1., b=1.))
        w.step(dict(a=1., b=1.))
        theirs.step()
    assert list(w.values.values()) == pytest.approx(theirs.x.tolist(), abs=1e-6) and 0 < w.values['a'] < 2


@given(st.lists(st.dictionaries(st.sampled_from('abc'), st.floats(.1, 5), min_size=1), min_size=1, max_size=4))
def test_a_step_learns_from_the_mean_over_the_batches_that_a_task_was_in(batches):
    "Accumulated batches are one step of one batch with the mean losses; each task counts where it is present"
    many, imtl = weighting('imtl_l', lr=.1), weighting('imtl_l', lr=.1)
    for b in batches: many.weigh(b)
    mean = {n: np.mean([b[n] for b in batches if n in b]) for n in 'abc' if any(n in b for b in batches)}
    imtl.weigh(mean)
    many.step()
    imtl.step()
    assert many.values == pytest.approx(imtl.values, abs=1e-6) and not many.pending
    famo, other = weighting('famo', lr=.1), weighting('famo', lr=.1)
    for b in batches: famo.weigh(b)
    other.weigh(mean)
    for w in (famo, other): w.step(dict.fromkeys(mean, 1.))
    assert famo.values == pytest.approx(other.values, abs=1e-6)


@given(st.lists(st.lists(st.floats(.1, 5), min_size=1, max_size=3), min_size=1, max_size=4), st.floats(.5, 4))
def test_dwa_is_the_ratio_of_the_last_two_epochs(epochs, temperature):
    w = weighting('dwa', temperature=temperature)
    for losses in epochs:
        for l in losses:
            w.weigh(dict(a=l, b=1.))
            w.step()
        w.end_epoch()
    means = [np.mean(l) for l in epochs[-2:]]
    ratio = means[1]/means[0] if len(means) == 2 else 1.
    e = np.exp(np.array([ratio, 1.])/temperature)
    assert list(w.weigh(dict(a=1., b=1.)).values()) == pytest.approx(list(2*e/e.sum()), rel=1e-5)


def test_no_weight_overflows():
    "Losses and learnt numbers far beyond what an exponential can hold"
    w = weighting('stch', mu=1e-4)
    assert w.weigh(dict(a=1e4, b=1.)) == dict(a=.5, b=0.)
    w = weighting('learned')
    w.values = dict(a=5000., b=0.)
    assert w.weigh(dict(a=1., b=1.)) == dict(a=2., b=0.)


def test_random_weights_have_the_sum_k_and_differ_by_seed_and_draw():
    one, two = weighting('random', seed=1), weighting('random', seed=2)
    a, b, c = one.weigh(dict(x=1., y=1.)), one.weigh(dict(x=1., y=1.)), two.weigh(dict(x=1., y=1.))
    assert a != b and a != c and all(sum(o.values()) == pytest.approx(2) for o in (a, b, c))
    assert weighting('random', seed=1).weigh(dict(x=1., y=1.)) == a


@pytest.mark.parametrize('name', [k for k in FAST if k in DRAWN])
def test_draws_leave_pytorchs_generators_alone_and_differ(name):
    w, J, seen = weighting(name, seed=3), rows(40, 3, seed=5).float(), []
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    for _ in range(6): seen.append(tuple(w.aggregate(dict(a=1., b=1., c=1.), J)[0].tolist()))
    assert torch.equal(torch.rand(3), want) and len(set(seen)) > 1 and w.draws == 6


@pytest.mark.parametrize('device', [None, 'cpu'])
def test_a_draw_on_a_cpu_seeds_no_other_device(monkeypatch, device):
    seeds, read = [], []
    monkeypatch.setattr(torch.cuda, 'manual_seed', seeds.append)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)  # GPUs that the draw has nothing to do with
    monkeypatch.setattr(torch.cuda, 'get_rng_state', read.append)
    with weighting('pcgrad', seed=3).seeded(device): drawn = torch.rand(1)
    assert not seeds and not read
    generator = torch.Generator().manual_seed(int(np.random.default_rng([3, 0]).integers(2**62)))
    assert torch.equal(drawn, torch.rand(1, generator=generator))


# -- Gramians, and the ends of aggregators ----------------------------------------------------------------------------

@given(st.integers(1, 4), st.lists(st.integers(1, 4), min_size=1, max_size=3), seeds)
def test_the_gramian_is_over_all_pieces_of_a_gradient(k, sizes, seed):
    rng = np.random.default_rng(seed)
    pieces = [[torch.tensor(rng.normal(size=n)) for n in sizes] for _ in range(k)]
    whole = torch.stack([torch.cat(p) for p in pieces])
    np.testing.assert_allclose(module.gramian(pieces), whole@whole.T)


@given(st.permutations('abc'), seeds)
def test_a_gramian_in_any_order_of_tasks_is_read_as_that_of_its_tasks(order, seed):
    "Lengths that GradNorm learns from are those of the right task, square roots of the diagonal"
    lengths, w = dict(a=1., b=2., c=30.), weighting('gradnorm')
    J = torch.tensor(np.random.default_rng(seed).normal(size=(3, 6)))
    J *= torch.tensor([lengths[n] for n in order])[:, None]/J.norm(dim=1, keepdim=True)
    told = w.weigh({n: lengths[n] for n in order}, module.gramian([[r] for r in J]))
    assert list(told) == list(order) and set(w.pending[0]) == set('abc')
    for n, (loss, norm) in w.pending[0].items(): assert (loss, norm) == (lengths[n], pytest.approx(lengths[n]))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=3), seeds)
def test_combining_weighs_each_piece_of_each_task(sizes, seed):
    rng = np.random.default_rng(seed)
    pieces = [[torch.tensor(rng.normal(size=n)) for n in sizes] for _ in 'cab']
    w = dict(a=1., b=-2., c=.5)
    got, told = PlainSum().combine(list('cab'), pieces, w)
    for p, g in enumerate(got): np.testing.assert_allclose(g, .5*pieces[0][p] + pieces[1][p] - 2*pieces[2][p])
    assert told == w


def test_combining_adds_in_the_order_of_names():
    "In floating point another order is another sum"
    large = dict(a=1e16, b=1., c=-1e16)
    sums = [float(PlainSum().combine(list(o), [[torch.tensor([large[n]], dtype=torch.float64)] for n in o],
                                     dict.fromkeys('abc', 1.))[0][0]) for o in permutations('abc')]
    assert sums == [1e16 + 1. - 1e16]*6


def test_graddrop_tells_the_share_of_numbers_that_each_task_kept():
    "Of tasks in any order; of a number that a task does not have nothing can be kept"
    J = torch.tensor([[1., 2., 0., -3.], [1., 1., 1., 1.], [0., 0., 0., 0.]])
    for order in ('abc', 'cba', 'bca'):
        w = weighting('graddrop', seed=2)
        g, told = w.aggregate({n: 1. for n in order}, J[['abc'.index(n) for n in order]])
        signs = g.sign()
        for n in order:
            mine = J['abc'.index(n)]
            n_mine = int((mine != 0).sum())
            assert told[n] == (float(((mine.sign() == signs) & (mine != 0)).sum())/n_mine if n_mine else 0.)


@pytest.mark.parametrize('name,kw,other', [('mgda', dict(max_iters=1, epsilon=.5), {}), ('cagrad', dict(c=.1), {}),
                                           ('aligned_mtl', dict(scale='rmse'), dict(scale='median'))])
def test_the_arguments_of_aggregators_reach_torchjd(name, kw, other):
    import torchjd.aggregation as jd
    theirs = dict(mgda=lambda: jd.MGDA(.5, 1), cagrad=lambda: jd.CAGrad(.1),
                  aligned_mtl=lambda: jd.AlignedMTL(scale_mode='rmse'))[name]()
    J = 3*rows(8, 3, seed=6)
    J[0] *= 4
    one = dict(a=1., b=1., c=1.)
    g = weighting(name, **kw).aggregate(one, J)[0]
    scale = float((J*J).sum().sqrt())  # torchjd's rules see gradients of this length, and keep their direction
    torch.testing.assert_close(g, theirs(J/scale)*scale, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(g, weighting(name, **other).aggregate(one, J)[0], rtol=1e-2)


def test_nash_mtl_limits_the_length_and_takes_unit_gradients_where_there_is_one_task():
    J = rows(8, 3, seed=1)
    one, free, short = dict(a=1., b=1., c=1.), weighting('nash_mtl', max_norm=math.inf), weighting('nash_mtl')
    g, h = free.aggregate(one, 100*J)[0], short.aggregate(one, 100*J)[0]
    assert float(g.norm()) == pytest.approx(math.sqrt(3), rel=2e-2) and float(h.norm()) == pytest.approx(1)
    torch.testing.assert_close(h, g/g.norm())
    half = weighting('nash_mtl', max_norm=5.).aggregate(one, 100*J)[0]
    torch.testing.assert_close(half, g)  # shorter than the limit: as it is
    g = weighting('nash_mtl', max_norm=math.inf).aggregate(dict(a=1.), 7*J[:1])[0]
    torch.testing.assert_close(g, J[0]/J[0].norm())


def test_nash_mtl_solves_every_so_often_and_for_a_task_that_is_new():
    w, solved, one = weighting('nash_mtl', every=3), [], dict(a=1., b=1.)
    known = w.alpha
    w.alpha = lambda names, gram: solved.append(len(names)) or known(names, gram)
    for i in range(5): w.aggregate(one, rows(6, 2, seed=i))
    assert solved == [2, 2] and w.count == 5
    w.aggregate(dict(one, c=1.), rows(6, 3))
    assert solved == [2, 2, 3] and set(w.last) == set('abc')


def test_nash_mtl_starts_from_its_last_solution():
    w, starts = weighting('nash_mtl'), []
    w.aggregate(dict(a=1., b=1.), rows(6, 2))
    last, solver = dict(w.last), w.solvers[2]
    solver_call = solver.forward
    solver.forward = lambda m: starts.append(solver.prvs_alpha.tolist()) or solver_call(m)
    w.aggregate(dict(b=1., a=1.), rows(6, 2, seed=1))
    assert starts == [[last['a'], last['b']]] and last['a'] != 1
    w.last.update(a=.25, b=4.)  # as from a state, which the solver has not seen
    w.aggregate(dict(b=1., a=1.), rows(6, 2, seed=1))
    assert starts[1:] == [[.25, 4.]]


@pytest.mark.parametrize('bad', [math.inf, math.nan, 0., -1.])
def test_nash_mtl_keeps_its_last_solution_where_the_solver_finds_none(bad):
    w = weighting('nash_mtl')
    w.last, w.alpha = dict(a=.5, b=2.), lambda names, gram: np.array([1., bad])
    w.weigh(dict(a=1., b=1.), np.eye(2))
    assert w.last == dict(a=.5, b=2.)
    w.alpha = lambda names, gram: np.array([1., 3.])
    w.weigh(dict(a=1., b=1.), np.eye(2))
    assert w.last == dict(a=1., b=3.)


# -- a state, and a rollback ------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', FAST)
def test_a_state_holds_batches_whose_step_is_not_taken_yet(name):
    a, b, steps = made(name), made(name), world(3, [1., 2., .5, 1.])
    take(a, *next(steps), 'abc')
    losses, grads = next(steps)
    a.aggregate({n: losses[n] for n in 'ab'}, torch.stack([grads[n] for n in 'ab']))
    state = json.loads(json.dumps(a.state_dict()))
    b.load_state_dict(state)
    assert [dict(p) for p in b.pending] == a.pending and len(a.pending) == 1
    for w in (a, b): w.step(dict(a=1., b=1.))
    assert a.state_dict() == b.state_dict()


@fewer
@given(st.integers(1, 3), st.integers(1, 3), st.booleans(), seeds)
@pytest.mark.parametrize('name', FAST)
def test_a_rollback_unlearns_and_repeats_no_draw(name, before, after, pending, seed):
    "What was learnt is that of the state, no batch waits for a step, and no random number comes twice"
    cb, steps = Weigh(made(name)), world(seed, [1., 2., .5, 1.])
    w = cb.weighting
    for _ in range(before): take(w, *next(steps), 'abc')
    if pending:
        losses, grads = next(steps)
        w.aggregate(losses, torch.stack(list(grads.values())))
    learnt, state, draws = deepcopy(kept(w)), deepcopy(cb.rollback_state()), w.draws
    w.skip()
    for _ in range(after): take(w, *next(steps), 'abd')
    cb.roll_back_to(state)
    assert kept(w) == learnt and w.pending == []
    assert w.draws == (draws + after if name in DRAWN else 0)


def test_random_weights_after_a_rollback_are_new_ones():
    cb, seen = Weigh('random'), []
    def draw(): seen.append(tuple(cb.weighting.weigh(dict(a=1., b=1.)).values()))
    draw()
    state = cb.rollback_state()
    for _ in range(3): draw()
    cb.roll_back_to(state)
    for _ in range(3): draw()
    assert len(set(seen)) == len(seen) == 7


# -- against torchjd --------------------------------------------------------------------------------------------------

def rows(n=4, k=3, seed=0): return torch.tensor(np.random.default_rng(seed).normal(size=(k, n)))


@pytest.mark.parametrize('name,theirs,kw',
                         [('mgda', 'MGDA', {}), ('upgrad', 'UPGrad', {}), ('cagrad', 'CAGrad', dict(c=.5)),
                          ('aligned_mtl', 'AlignedMTL', {}), ('imtl_g', 'IMTLG', {}),
                          ('nash_mtl', 'NashMTL', dict(n_tasks=3))])
@pytest.mark.parametrize('seed', range(3))
def test_aggregators_are_torchjds(name, theirs, kw, seed):
    import torchjd.aggregation as jd
    J = rows(8, seed=seed)
    g, _ = weighting(name).aggregate(dict(a=1., b=1., c=1.), J)
    torch.testing.assert_close(g, getattr(jd, theirs)(**kw)(J), rtol=2e-2 if name == 'nash_mtl' else 2e-3, atol=2e-3)


def test_pcgrad_and_graddrop_are_torchjds():
    import torchjd.aggregation as jd
    for name, theirs in (('pcgrad', jd.PCGrad), ('graddrop', jd.GradDrop)):
        w, J = weighting(name, seed=4), rows(8).float()
        g, _ = w.aggregate(dict(a=1., b=1., c=1.), J)
        with torch.random.fork_rng():
            torch.manual_seed(int(np.random.default_rng([4, 0]).integers(2**62)))
            torch.testing.assert_close(g, theirs()(J))


@pytest.mark.parametrize('scale', [1e-6, 1e4])
@pytest.mark.parametrize('name', [k for k in GRADIENTS if k not in ('gradnorm', 'graddrop', 'nash_mtl')])
def test_aggregators_follow_the_scale(name, scale):
    "torchjd's own return the mean, or nothing, for gradients below 0.01"
    losses, J = dict(a=1., b=1., c=1.), rows(8, seed=2)
    torch.testing.assert_close(weighting(name).aggregate(losses, scale * J)[0],
                               scale * weighting(name).aggregate(losses, J)[0], rtol=1e-5, atol=0)


def test_tasks_of_very_different_scale_keep_their_projections():
    "The gradient of one task is a million or more times as long"
    J, far, losses = rows(8, seed=1), torch.tensor([[1e9], [1.], [1.]], dtype=torch.float64), dict(a=1., b=1., c=1.)
    g, _ = weighting('imtl_g').aggregate(losses, far*J)
    p = (J/J.norm(dim=1, keepdim=True))@g
    torch.testing.assert_close(p, p.mean().expand(3), rtol=1e-4, atol=0)
    J[0] *= 1e6
    g, _ = weighting('upgrad').aggregate(losses, J)
    assert ((J/J.norm(dim=1, keepdim=True))@g >= -1e-2).all()


def test_imtl_g_moves_nowhere_where_no_direction_serves_all_tasks():
    "Gradients that point against each other have no combination with equal projections and weights of sum 1"
    for J in ([[1., 0.], [-1., 0.]], [[2., 0.], [-5., 0.]], [[1., 2.], [-1., -2.]]):
        g, w = weighting('imtl_g').aggregate(dict(a=1., b=1.), torch.tensor(J, dtype=torch.float64))
        assert not g.any() and w == dict(a=0., b=0.)


@pytest.mark.parametrize('name', [k for k in GRADIENTS if k not in ('gradnorm', 'graddrop')])
def test_a_task_without_a_gradient_has_no_vote(name):
    "With a row of zeros MGDA and CAGrad would return nothing at all"
    J = rows(8)
    g, w = weighting(name).aggregate(dict(a=1., b=1., c=1.), J)
    h, v = weighting(name).aggregate(dict(a=1., b=1., c=1., d=1.), torch.cat([J, torch.zeros(1, 8)]))
    # a larger matrix product rounds otherwise
    torch.testing.assert_close(g, h, rtol=1e-3 if name == 'nash_mtl' else 1e-8, atol=1e-12)
    assert v['d'] == 0
    assert not weighting(name).aggregate(dict(a=1., b=1.), torch.zeros(2, 8))[0].any()


def test_famo_is_torchjds():
    from torchjd.scalarization import FAMO as Theirs
    ours, theirs, rng = FAMO(), Theirs(3), np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.uniform(.1, 3, (2, 3))
        x = torch.tensor(a, dtype=torch.float32, requires_grad=True)
        theirs(x).backward(); theirs.update(torch.tensor(b, dtype=torch.float32))
        w = ours.weigh(dict(zip('abc', a))); ours.step(dict(zip('abc', b)))
        np.testing.assert_allclose(list(w.values()), x.grad, rtol=1e-4)


@pytest.mark.parametrize('name,theirs',
                         [('geometric_mean', lambda s: s.GeometricMean()), ('stch', lambda s: s.STCH(mu=.1))])
def test_loss_weightings_are_torchjds(name, theirs):
    import torchjd.scalarization as s
    x = torch.tensor([.5, 1.5, .1], dtype=torch.float64, requires_grad=True)
    theirs(s)(x).backward()
    np.testing.assert_allclose(list(weighting(name).weigh(dict(zip('abc', x.tolist()))).values()), x.grad, rtol=1e-6)


def test_imtl_l_and_dwa_are_torchjds():
    import torchjd.scalarization as s
    ours, theirs = IMTLL(lr=.1), s.IMTLL(2)
    opt = torch.optim.Adam(theirs.parameters(), lr=.1)
    for _ in range(20):
        x = torch.tensor([.5, 3.], requires_grad=True)
        opt.zero_grad(); theirs(x).backward(); opt.step()
        w = ours.weigh(dict(a=.5, b=3.)); ours.step()
        np.testing.assert_allclose(list(w.values()), x.grad, rtol=1e-4)
    ours, theirs, rng = DynamicWeightAverage(), s.DWA(), np.random.default_rng(0)
    for i in range(12):
        x = torch.tensor(rng.uniform(.1, 3, 2), requires_grad=True)
        theirs(x).backward(); w = ours.weigh(dict(zip('ab', x.tolist()))); ours.step()
        np.testing.assert_allclose(list(w.values()), x.grad, rtol=1e-6)
        if i % 3 == 2: theirs.step(); ours.end_epoch()


# -- what is said before training -------------------------------------------------------------------------------------

@pytest.mark.parametrize('name,lacks,command',
                         [('pcgrad', 'torchjd', r'pip install "torchjd>=0\.18,<0\.19"'),
                          ('upgrad', 'quadprog', r'pip install "torchjd\[quadprog-projector\]'),
                          ('cagrad', 'cvxpy', r'pip install "torchjd\[cagrad\]'),
                          ('nash_mtl', 'ecos', r'pip install "torchjd\[nash-mtl\]')])
def test_a_missing_extra_is_named_with_its_command(monkeypatch, name, lacks, command):
    monkeypatch.setattr(module, 'find_spec', lambda m: None if m == lacks else True)
    with pytest.raises(ImportError, match=command): weighting(name)


def test_loss_weightings_need_no_torchjd(monkeypatch):
    for m in [m for m in sys.modules if m.startswith('torchjd')] + ['torchjd']:
        monkeypatch.setitem(sys.modules, m, None)
    monkeypatch.setattr(module, 'find_spec', lambda m: None)
    for name in WEIGHTINGS:
        if name in GRADIENTS and name != 'gradnorm': continue
        w, steps = made(name), world(1, [1., 2., .5, 1.])
        take(w, *next(steps), 'abc')


AT = dict(at='representation')
DEFAULTS = dict(
    sum=dict(weighting='PlainSum'), fixed=dict(weighting='FixedWeights', tasks={}),
    learned=dict(weighting='LearnedWeights', lr=.025, entropy=1.), uncertainty=dict(weighting='Uncertainty', lr=.025),
    dwa=dict(weighting='DynamicWeightAverage', temperature=2., eps=1e-8),
    gradnorm=dict(weighting='GradNorm', alpha=1.5, lr=.025, initial={}, least=1e-3, **AT),
    famo=dict(weighting='FAMO', lr=.025, decay=1e-3, floors={}, eps=1e-8), imtl_l=dict(weighting='IMTLL', lr=.025),
    stch=dict(weighting='STCH', mu=.1, ideal={}), geometric_mean=dict(weighting='GeometricMean', eps=1e-8),
    random=dict(weighting='RandomWeights', seed=0), pcgrad=dict(weighting='PCGrad', seed=0, **AT),
    cagrad=dict(weighting='CAGrad', c=.5, **AT), mgda=dict(weighting='MGDA', epsilon=1e-3, max_iters=100, **AT),
    upgrad=dict(weighting='UPGrad', **AT), graddrop=dict(weighting='GradDrop', seed=0, **AT),
    imtl_g=dict(weighting='IMTLG', **AT), aligned_mtl=dict(weighting='AlignedMTL', scale='min', **AT),
    nash_mtl=dict(weighting='NashMTL', max_norm=1., every=1, iters=20, **AT))

def test_a_weighting_of_an_earlier_run_has_the_arguments_that_it_had():
    "A saved state is of the same weighting by its arguments, so their defaults stay"
    assert {k: weighting(k).config for k in WEIGHTINGS} == DEFAULTS
    assert all(len({weighting(k), weighting(k)}) == 2 for k in WEIGHTINGS)  # each learns by itself: no two are the same


@pytest.mark.parametrize('name, kw, says', [
    ('fixed', dict(tasks=dict(a=1., b=-1.)), "weight of task 'b' is -1.0: weights are finite and at least 0"),
    ('fixed', dict(tasks=dict(a=math.inf)), "weight of task 'a' is inf"),
    ('dwa', dict(temperature=0.), 'temperature must be above 0 and finite, got 0.0'),
    ('dwa', dict(temperature=math.inf), 'temperature must be above 0 and finite, got inf'),
    ('dwa', dict(eps=0.), 'eps must be above 0'), ('geometric_mean', dict(eps=0.), 'eps must be above 0'),
    ('stch', dict(mu=0.), 'mu must be above 0'), ('uncertainty', dict(lr=-.1), 'lr must be at least 0 and finite'),
    ('learned', dict(lr=-.1), 'lr must be at least 0'), ('learned', dict(entropy=-.1), 'entropy must be at least 0'),
    ('famo', dict(lr=math.nan), 'lr must be at least 0'), ('famo', dict(decay=-.1), 'decay must be at least 0'),
    ('famo', dict(eps=0.), 'eps must be above 0'), ('gradnorm', dict(lr=-.1), 'lr must be at least 0'),
    ('gradnorm', dict(alpha=-.1), 'alpha must be at least 0'), ('gradnorm', dict(least=0.), 'least must be above 0'),
    ('gradnorm', dict(initial=dict(a=0.)), "the initial loss of task 'a' must be above 0"),
    ('mgda', dict(epsilon=0.), 'epsilon must be above 0'), ('mgda', dict(max_iters=0), 'max_iters must be above 0'),
    ('cagrad', dict(c=-.1), 'c must be at least 0'), ('nash_mtl', dict(every=0), 'every must be above 0'),
    ('nash_mtl', dict(iters=0), 'iters must be above 0'), ('nash_mtl', dict(max_norm=0.), 'max_norm must be above 0'),
    ('aligned_mtl', dict(scale='max'), "scale='max': it must be one of min, median, rmse"),
    *((k, dict(at='heads'), "at='heads': gradients are compared at one of representation, parameters")
      for k in GRADIENTS)])
def test_arguments_that_make_no_weighting_are_refused(name, kw, says):
    with pytest.raises(ValueError, match=says): weighting(name, **kw)


def test_arguments_at_their_limits_make_one():
    for name, kw in (('fixed', dict(tasks=dict(a=0.))), ('uncertainty', dict(lr=0.)), ('learned', dict(entropy=0.)),
                     ('famo', dict(decay=0.)), ('gradnorm', dict(alpha=0., initial=dict(a=1e-9))),
                     ('cagrad', dict(c=0.)), ('nash_mtl', dict(max_norm=math.inf, iters=1)),
                     ('mgda', dict(max_iters=1)), *((k, dict(at='parameters')) for k in GRADIENTS)):
        assert weighting(name, **kw).config.items() >= kw.items()


def test_losses_and_gradients_that_cannot_be_weighed_are_refused_by_name():
    two, gram = dict(b=1., a=2.), np.eye(2)
    with pytest.raises(ValueError, match="task 'a'"): weighting('sum').weigh(dict(two, a=math.nan))
    with pytest.raises(ValueError, match='MGDA looks at gradients: pass their inner products'):
        weighting('mgda').weigh(two)
    for i, n in enumerate(two):
        bad = gram.copy()
        bad[i, i] = math.inf
        with pytest.raises(ValueError, match=f"gradient of task '{n}' is not finite"): weighting('mgda').weigh(two, bad)
    for n in two:
        with pytest.raises(ValueError, match=f"the loss of task '{n}' is -1.0: a geometric mean"):
            weighting('geometric_mean').weigh(two | {n: -1.})
        with pytest.raises(ValueError, match=f"the loss of task '{n}' is below its floor by 0.5"):
            weighting('famo', floors={n: two[n] + .5}).weigh(two)
    w = weighting('famo', floors=two)  # at the floor
    assert sum(w.weigh(two).values()) == pytest.approx(1)
    with pytest.raises(ValueError, match='FAMO learns from the losses after the step: pass them'): w.step()
    assert sum(weighting('geometric_mean').weigh(dict(a=0., b=1.)).values()) > 0
    with pytest.raises(ValueError, match="unknown task 'c'"): weighting('stch', ideal=dict(c=1.)).check(list('ab'))
    weighting('stch', ideal=dict(b=1.)).check(list('ab'))
    with pytest.raises(ValueError, match="no weight for task 'b'"): weighting('fixed', tasks=dict(a=1.)).weigh(two)
    assert weighting('fixed', tasks=dict(a=3., b=.5, c=1.)).weigh(two) == dict(b=.5, a=3.)  # c is not in this batch
    for k in WEIGHTINGS: assert made(k).weigh({}) == {}


def test_an_aggregator_that_finds_no_weights_is_an_error():
    w = weighting('mgda')
    w.solve = lambda names, gram: np.array([1., math.nan])
    with pytest.raises(ValueError, match=r'MGDA found no weights for gradients with the inner products \[\[1.0, 0.0\]'):
        w.weigh(dict(a=1., b=1.), np.eye(2))


# -- in a learner -----------------------------------------------------------------------------------------------------

TASKS = tuple(Task(n, 2) for n in ('gory', 'mature', 'sarcasm'))


def clips(n=24, sparse=2, seed=0):
    rng, out = np.random.default_rng(seed), []
    for i in range(n):
        y = rng.integers(0, 2, 3)
        video = rng.normal(size=(3, 8)); video[:, :3] += 2*(2*y - 1)
        labels = {t.name: int(k) for t, k in zip(TASKS, y) if t.name != 'sarcasm' or i//8 % sparse}
        out.append(
            Clip(f'c{i}', text=rng.normal(size=(4, 6)), video=video, audio=rng.normal(size=(2, 5)), labels=labels))
    return ClipDataset.from_clips(out, TASKS)


DATA = clips()
CONFIG = HICCAPConfig.tiny(
    dropout=0.3, **{m: FeaturesConfig(n, 8, 0) for m, n in dict(text=6, video=8, audio=5).items()})


class Blocks(ClipDL):
    "Clips in their order: the third task is present every other batch"
    def get_idxs(self): self.rows = np.arange(len(self.dataset)); return self.rows.tolist()


def learner(cbs, cls=ClipDL, bs=8, seed=0, **kw):
    dls = DataLoaders(cls(DATA, bs, shuffle=True, seed=1), ClipDL(DATA.subset(range(8)), 8), device='cpu')
    learn = hiccap_learner(dls, HICCAP(CONFIG, TASKS, seed=seed), lr=1e-2, cbs=cbs, metrics=[], **kw)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ == 'ProgressCallback'])
    return learn


def quiet(learn, n=1):
    with learn.no_logging(): learn.fit(n)
    return learn


def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


named = {t.name: .5 + i for i, t in enumerate(TASKS)}
ALL = [(k, {}) for k in WEIGHTINGS] + [(k, dict(at='parameters')) for k in ('gradnorm', 'pcgrad', 'graddrop')]


def callback(name, kw): return Weigh(weighting(name, **(dict(tasks=named) if name == 'fixed' else {}), **kw))


@pytest.mark.parametrize('name,kw', ALL)
def test_a_run_continued_is_the_run_that_was_not_interrupted(name, kw):
    "With dropout, the optimizer's moments, and a task away every other batch"
    whole = callback(name, kw); a = quiet(learner([whole, ClipGradients(1.)], Blocks))
    half, opt, state = deepcopy(a.model.state_dict()), deepcopy(optimizer_state(a.opt)), json.dumps(whole.state_dict())
    quiet(a)
    second = callback(name, kw); c = learner([second, ClipGradients(1.)], Blocks, seed=9)
    c.create_opt()
    c.model.load_state_dict(half)
    c.opt.opt.load_state_dict(opt)
    second.load_state_dict(json.loads(state))
    c.fits = 1
    quiet(c)
    assert torch.equal(weights(a), weights(c)) and torch.isfinite(weights(a)).all()
    assert second.state_dict() == whole.state_dict()
    assert [len(r['loss']) for r in whole.records] == [2, 3, 2]*2 and whole.failed == 0
    assert second.n_steps == whole.n_steps == 6


class Count(MultiTaskLoss):
    "How often the losses of the tasks are computed in training"
    n = 0
    def task_losses(self, *batch):
        self.n += torch.is_grad_enabled()
        return super().task_losses(*batch)


class Mark:
    "Lives as long as the node of a graph that holds it"


class Held(Callback):
    "Whether the losses have a graph before and after the backward pass, and marks in these graphs"
    order, run_valid = 96, False
    def before_fit(self): self.graphs, self.marks = [], []
    def has_graph(self): return any(v.requires_grad for v in self.loss_func.losses.values())
    def after_loss(self):
        self.graphs.append(self.has_graph())
        for v in self.loss_func.losses.values():
            mark = v.grad_fn.metadata['mark'] = Mark()
            self.marks.append(weakref.ref(mark))
    def after_backward(self): self.graphs.append(self.has_graph())


@pytest.mark.parametrize('name', [None, 'sum', 'uncertainty', 'mgda', 'gradnorm', 'graddrop'])
@pytest.mark.parametrize('accumulate', [False, True])
def test_losses_are_computed_once_and_no_graph_outlives_its_step(name, accumulate):
    loss, held = Count(TASKS), Held()
    cbs = [held, *([Weigh(name)] if name else []), *([GradientAccumulation(16)] if accumulate else [])]
    learn = quiet(learner(cbs, loss_func=loss), 2)
    assert loss.n == 6 and held.graphs == [True, False]*6
    assert not any(v.requires_grad for v in loss.losses.values()) and loss.losses.keys() == loss.per_task.keys()
    learn.loss = learn.loss_grad = learn.pred = None  # what fastai itself keeps of the last batch
    gc.collect()
    assert len(held.marks) >= 12 and not any(mark() for mark in held.marks)


class Gradients(Callback):
    "Gradients of the first step, before the optimizer has them"
    order, found = 95, None
    def before_step(self):
        self.found = self.found or {
            n: p.grad.clone() for n, p in self.learn.model.named_parameters() if p.grad is not None}


def gradients(cbs, **kw):
    keep = Gradients(); quiet(learner([*cbs, keep], **kw))
    return keep.found


def close(a, b, tol=1e-4):
    assert a.keys() == b.keys()
    for n in b: assert (a[n] - b[n]).norm() <= tol*(b[n].norm() + 1e-2), n


class Batch(Callback):
    "The first batch, and the generator's state before it"
    order, kept = 1, None
    def before_batch(self):
        if self.training and self.kept is None: self.kept = self.xb[0], self.yb[0], torch.get_rng_state()


@pytest.mark.parametrize('name,theirs',
                         [('mgda', 'MGDA'), ('upgrad', 'UPGrad'), ('aligned_mtl', 'AlignedMTL'), ('imtl_g', 'IMTLG')])
@pytest.mark.parametrize('at', COMPARED_AT)
def test_gradients_are_those_of_torchjd(name, theirs, at):
    "Against `torchjd.autojac.mtl_backward` in the parameters, and a matrix of gradients at the pooled vectors by hand"
    import torchjd.aggregation as jd
    from torchjd.autojac import jac_to_grad, mtl_backward
    batch = Batch(); got = gradients([Weigh(weighting(name, at=at)), batch])
    inputs, targets, rng = batch.kept
    model, loss = HICCAP(CONFIG, TASKS, seed=0).train(), MultiTaskLoss(TASKS)
    rule = getattr(jd, theirs)()
    with torch.random.fork_rng():
        torch.set_rng_state(rng)
        pooled = model.encode(inputs); losses = loss.task_losses(model.classify(pooled), targets)
    heads = [list(h.parameters()) for h in model.heads.values()]
    shared = [p for n, p in model.named_parameters() if not n.startswith('heads.')]
    z = list(pooled.values())
    if at == 'parameters':
        used = [
            p
            for p, g in zip(
                shared, torch.autograd.grad(sum(losses.values()), shared, retain_graph=True, allow_unused=True))
            if g is not None
        ]
        mtl_backward(list(losses.values()), features=z, tasks_params=heads, shared_params=used, parallel_chunk_size=1)
        jac_to_grad(used, rule)
    else:
        J = torch.stack(
            [torch.cat([g.flatten() for g in torch.autograd.grad(l, z, retain_graph=True)]) for l in losses.values()])
        g = rule(100*J)/100  # torchjd takes short gradients for none
        for l, ps in zip(losses.values(), heads):
            for p, d in zip(ps, torch.autograd.grad(l, ps, retain_graph=True)): p.grad = d
        torch.autograd.backward(z, [o.view_as(t) for o, t in zip(g.split([t.numel() for t in z]), z)], inputs=shared)
    want = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    close(got, want, 5e-3 if name in ('upgrad', 'mgda') else 1e-3)


@pytest.mark.parametrize('kw', [{}, dict(loss_func=MultiTaskLoss(TASKS, dict(gory=.1, sarcasm=3.)))])
def test_the_sum_is_training_without_a_weighting(kw):
    "Bit for bit, whatever weights the loss function has"
    assert torch.equal(weights(quiet(learner([], **kw), 2)), weights(quiet(learner([Weigh('sum')], **kw), 2)))
    one = Weigh(weighting('fixed', tasks=dict.fromkeys(named, 1.)))
    assert torch.equal(weights(quiet(learner([], **kw), 2)), weights(quiet(learner([one], **kw), 2)))


def test_fixed_weights_are_the_loss_functions_own():
    a = quiet(learner([Weigh(weighting('fixed', tasks=named))], Blocks))
    b = quiet(learner([], Blocks, loss_func=MultiTaskLoss(TASKS, named)))
    assert torch.equal(weights(a), weights(b))
    assert a.recorder.values[-1][0] != b.recorder.values[-1][0]  # but the loss that is told is the plain one


def test_a_task_that_the_loss_weights_by_0_has_no_vote():
    w = Weigh('mgda'); quiet(learner([w], loss_func=MultiTaskLoss(TASKS, dict(gory=0.))))
    assert all(set(r['loss']) <= {'mature', 'sarcasm'} for r in w.records)


@pytest.mark.parametrize('name', ['uncertainty', 'gradnorm', 'famo', 'mgda', 'graddrop'])
def test_accumulated_batches_are_one_step(name):
    w = callback(name, {}); quiet(learner([w, GradientAccumulation(8)], bs=4))
    assert w.n_steps == 3 and [r['step'] for r in w.records] == [0, 0, 1, 1, 2, 2]
    if hasattr(w.weighting, 'moments'): assert w.weighting.moments['gory'][2] == 3
    assert not w.weighting.pending and not w.batches


@dataclass(eq=False)
class Opposite(Weighting):
    "Against every task: what a step does with the weights it is given"
    def weights(self, names, losses, gram): return -np.ones(len(names))


def test_weights_reach_the_gradient():
    a, b = gradients([Weigh(Opposite())]), gradients([])
    close(a, {n: -g for n, g in b.items()})


def test_several_processes_are_refused(monkeypatch):
    "By all but the sum and fixed weights; `test_distributed.py` has two real ones"
    monkeypatch.setattr('hiccap.weighting.world_size', lambda: 2)
    with pytest.raises(ValueError, match='one process'): quiet(learner([Weigh('uncertainty')]))
    quiet(learner([Weigh('sum')]))


def test_hooks_do_not_stay():
    learn = quiet(learner([Weigh('mgda')]))
    assert not any(m._forward_hooks for m in learn.model.modules())
    learn.get_preds()
    learn.validate()
    class GiveUp(Callback):
        def after_pred(self): raise CancelFitException()
    learn = quiet(learner([Weigh('mgda'), GiveUp()]))  # in the middle of a batch
    assert not any(m._forward_hooks for m in learn.model.modules())


def test_single_tasks_and_frozen_encoders():
    "Where nothing is shared, every aggregator is the plain sum"
    learn, plain = learner([Weigh('mgda')]), learner([])
    for l in (learn, plain):
        for n, p in l.model.named_parameters(): p.requires_grad_(n.startswith('heads.'))
    assert torch.equal(weights(quiet(learn)), weights(quiet(plain)))


# -- when the loop hands over, and what it gets back ------------------------------------------------------------------

class Handed(Callback):
    "Just after `Weigh` (3): the loss that is differentiated, the loss that is logged, and each task's own"
    order, run_valid = 3.5, False
    def __init__(self, own=None): self.own, self.seen = own or {}, []
    def after_loss(self):
        losses = {n: self.own.get(n, 1.)*float(l) for n, l in self.loss_func.losses.items() if self.own.get(n, 1.)}
        self.seen.append((float(self.learn.loss_grad), float(self.learn.loss), losses))


@pytest.mark.parametrize('name,kw', [(k, kw) for k, kw in ALL if k not in SLOW])
def test_the_value_that_is_differentiated_is_the_loss(name, kw, own=None):
    """Σ wᵢLᵢ, or the plain sum where gradients are combined: `NanDetector` and the loss scaler see a loss.
    What is logged stays the sum"""
    w, handed = callback(name, kw), Handed(own)
    quiet(learner([w, handed], loss_func=MultiTaskLoss(TASKS, own)))
    for (value, logged, losses), record in zip(handed.seen, w.records, strict=True):
        assert record['loss'] == pytest.approx(losses) and record['loss'].keys() == record['weight'].keys()
        assert logged == pytest.approx(sum(losses.values()))
        told = dict.fromkeys(losses, 1.) if w.weighting.gradients else record['weight']
        assert value == pytest.approx(sum(told[n]*losses[n] for n in losses), rel=1e-5)


@pytest.mark.parametrize('own', [dict(gory=.25, sarcasm=3.), dict(gory=0.)])
@pytest.mark.parametrize('name', ['sum', 'uncertainty', 'imtl_g', 'graddrop'])
def test_the_loss_that_is_differentiated_has_the_loss_functions_own_weights(name, own):
    test_the_value_that_is_differentiated_is_the_loss(name, {}, own)


@dataclass(eq=False)
class Known(Weighting):
    "Weights that are known beforehand, of the gradients or of the losses"
    tasks: dict|None = None
    at: str = 'parameters'
    gradients = True
    def weights(self, names, losses, gram): return np.array([self.tasks[n] for n in names])


class KnownWithoutHeads(Known): weighs_heads = False


class Net(torch.nn.Module):
    "All tasks share `all`, the first two share `two`, and each has its own head"
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.all, self.two = torch.nn.Linear(8, 4), torch.nn.Linear(4, 4)
        self.heads = torch.nn.ModuleDict({t.name: torch.nn.Linear(4, 2) for t in TASKS})
    def forward(self, x):
        h = self.all(x['video'].mean(1))
        return {n: head(h if n == 'sarcasm' else self.two(h)) for n, head in self.heads.items()}


class Trunk(Net):
    "All tasks read `all`, and share nothing after it"
    def forward(self, x):
        h = self.all(x['video'].mean(1))
        return {n: head(h) for n, head in self.heads.items()}


class Twice(Trunk):
    "`two` comes before `all` and again in a head"
    def __init__(self):
        super().__init__()
        self.two = torch.nn.Linear(8, 8)
    def forward(self, x):
        x = self.two(x['video'].mean(1))
        h = self.all(x)
        return {n: head(h) + (self.two(x)[:, :2] if n == 'gory' else 0) for n, head in self.heads.items()}


class Both(Net):
    "A part whose output is not a tensor"
    def __init__(self):
        super().__init__()
        self.part = torch.nn.Identity()
    def forward(self, x): return super().forward(self.part(x))


def net_learner(cbs, net=Net):
    dls = DataLoaders(ClipDL(DATA, 8, shuffle=True, seed=1), ClipDL(DATA.subset(range(8)), 8), device='cpu')
    learn = hiccap_learner(dls, net(), MultiTaskLoss(TASKS), lr=1e-2, cbs=cbs, metrics=[])
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ == 'ProgressCallback'])
    return learn


class Scaler:
    "A loss scale that `Weigh` has to leave as it is"
    def is_enabled(self): return True
    def get_scale(self): return 1024.


@pytest.mark.parametrize('scaled', [False, True])
@pytest.mark.parametrize('cls', [Known, KnownWithoutHeads])
def test_what_two_tasks_share_is_weighed_and_heads_as_the_rule_says(cls, scaled):
    "Against the gradient of each task by itself, in what all share, what two share, and each head"
    batch, keep, lengths = Batch(), Gradients(), []
    rule = cls(named)
    weigh = rule.weights
    rule.weights = lambda names, losses, gram: lengths.append(np.diag(gram)) or weigh(names, losses, gram)
    learn = net_learner([Weigh(rule), batch, keep])
    if scaled: learn.scaler = Scaler()
    quiet(learn)
    net, (inputs, targets, _) = Net(), batch.kept
    losses = MultiTaskLoss(TASKS).task_losses(net(inputs), targets)
    want, shared = {}, dict.fromkeys(losses, 0.)
    for n, l in losses.items():
        for k, p in net.named_parameters():
            g, = torch.autograd.grad(l, p, retain_graph=True, allow_unused=True)
            if g is None: continue
            own = k.startswith('heads.')
            want[k] = want.get(k, 0) + g*(1. if own and not rule.weighs_heads else named[n])
            if not own: shared[n] += float((g*g).sum())
    close(keep.found, want, 1e-5)
    np.testing.assert_allclose(lengths[0], [shared[n] for n in sorted(shared)], rtol=1e-4)


def net_gradients(weigh, net=Net):
    keep = Gradients()
    quiet(net_learner([weigh, keep], net))
    return keep.found


@pytest.mark.parametrize('cls', [Known, KnownWithoutHeads])
def test_a_representation_that_is_named_is_weighed_like_the_parameters_before_it(cls):
    want = net_gradients(Weigh(cls(named)), Trunk)
    for names in ('all', ['all']):
        cb = Weigh(cls(named, at='representation'), names)
        close(net_gradients(cb, Trunk), want, 1e-5)
        assert cb.checked and not cb.hooks and not cb.outputs
        assert cb.shared_modules() == [cb.learn.model.all]


def test_a_task_that_a_loss_function_does_not_weight_counts_once():
    cb = Weigh()
    for own, want in ((dict(weights=dict(a=0., b=.5)), dict(b=1., c=3.)), (dict(weights=None), dict(a=1., b=2., c=3.)),
                      ({}, dict(a=1., b=2., c=3.))):
        cb.learn = SimpleNamespace(loss_func=SimpleNamespace(**own))
        assert cb.own_weighted(dict(a=1., b=2., c=3.)) == want


def test_each_node_of_a_graph_is_searched_once():
    "Of a number that is doubled sixty times there are 2**60 ways to its leaf"
    p, q = (torch.ones(1, requires_grad=True) for _ in 'pq')
    x = shared = p*2
    for _ in range(60): x = x + x
    y = x*q + torch.ones(1)
    assert graph_leaves([y.grad_fn, None]) == ({id(p): p, id(q): q}, set())
    assert graph_leaves([y.grad_fn], [shared.grad_fn]) == ({id(q): q}, {shared.grad_fn})
    assert graph_leaves([q.grad_fn]) == ({}, set())


@pytest.mark.parametrize('net, names, says', [
    (Net, None, r"a Net has no poolings: name the modules whose outputs all heads read, Weigh\(..., representation="),
    (Net, ['al'], "the network has no module 'al'. Did you mean 'all'"),
    (Net, 'all', "parameter 'two.weight' is shared by tasks 'gory' and 'mature' after the representation"),
    (Net, ['all', 'two'], 'parts of the representation are computed from one another'),
    (Twice, 'all', "parameter 'two.weight' is used before and after the representation"),
    (Both, ['part'], 'representation: a Identity gives a dict; name modules whose output is a tensor')])
def test_a_representation_that_tasks_do_not_share_is_refused(net, names, says):
    with pytest.raises((ValueError, TypeError), match=says): quiet(net_learner([Weigh('mgda', names)], net))


def test_the_representation_of_a_network_is_what_its_heads_read():
    cb = Weigh('mgda')
    learn = learner([cb])
    assert cb.shared_modules() == list(learn.model.pools.values()) and len(cb.shared_modules()) == 3
    outer = torch.nn.Module()
    for name in ('network', '_orig_mod'):  # in pretraining, and compiled
        setattr(outer, name, learn.model)
        cb.learn = SimpleNamespace(model=outer)
        assert cb.shared_modules() == list(learn.model.pools.values())
        delattr(outer, name)
    learn.model.combiner = torch.nn.Linear(2, 2)
    cb.learn = learn
    assert cb.shared_modules() == [learn.model.combiner]


def test_late_fusion_is_part_of_the_representation():
    cb = Weigh('mgda')
    learn = net_learner([cb], lambda: HICCAP(replace(CONFIG, late_fusion=True), TASKS, seed=0))
    assert cb.shared_modules() == [*learn.model.pools.values(), learn.model.late_means]
    before = learn.model.late['task_gory'].weight.detach().clone()
    quiet(learn)  # `check_graph` refuses a representation past which a parameter is reached by two tasks
    assert not torch.equal(before, learn.model.late['task_gory'].weight) and not cb.failed


def test_each_batch_has_a_row_for_each_task_in_the_history():
    w = callback('famo', {})
    assert w.history().columns.tolist() == ['step', 'task', 'loss', 'weight'] and w.history().empty
    quiet(net_learner([w, Break('loss')]), 2)
    h = w.history()
    want = [(r['step'], n, v, r['weight'][n]) for r in w.records for n, v in r['loss'].items()]
    np.testing.assert_equal(h.values.tolist(), [list(o) for o in want])
    assert h.step.unique().tolist() == [0, 1, 2, 3, 4] and set(h.task) == set(named) and len(w.records) == 6
    assert h.weight.isna().sum() == 3 and h[h.loss.isna()].task.tolist() == ['gory']


def test_what_is_kept_of_a_callback_is_a_copy():
    w = Weigh('uncertainty')
    assert Weigh().weighting.config == dict(weighting='PlainSum') and Weigh().representation is None
    quiet(net_learner([w]))
    state = w.state_dict()
    w.records[0]['loss'].clear()
    assert state['records'][0]['loss'] and state.keys() == {'weighting', 'records', 'n_steps', 'blind', 'failed'}
    other = Weigh('uncertainty')
    other.load_state_dict(state | dict(blind=3, failed=2))
    assert (other.no_shared_clip, other.failed, other.n_steps) == (3, 2, 3)
    other.records[0]['loss'].clear()
    assert state['records'][0]['loss']


class CancelSteps(Callback):
    "Steps that another callback skips, before any weighting or optimizer has done anything"
    order, run_valid = 2, False
    def __init__(self, at): self.at, self.i = at, -1
    def before_step(self):
        self.i += 1
        if self.i in self.at: raise CancelStepException()


@pytest.mark.parametrize('at', [{0}, {1, 2}, {2, 5}, set(range(6))], ids=str)
@pytest.mark.parametrize('name,kw', [('uncertainty', {}), ('famo', {}), ('gradnorm', dict(at='parameters'))])
def test_a_skipped_step_is_none_to_the_weighting(name, kw, at):
    w = callback(name, kw)
    quiet(net_learner([w, CancelSteps(at)]), 2)
    assert w.n_steps == 6 - len(at) and not w.batches and not w.weighting.pending and not w.skipped
    assert [m[2] for m in w.weighting.moments.values()] == [6 - len(at)]*3*(len(at) < 6)
    assert [r['step'] for r in w.records] == np.cumsum([0, *(i not in at for i in range(5))]).tolist()


class After(Callback):
    "Around `Weigh`'s look back: the losses that it finds, and whether it leaves the run as it was"
    order, run_valid = 2, False
    def __init__(self, weigh): self.weigh, self.found, self.before = weigh, [], []
    def before_fit(self):
        look = self.weigh.losses_after_step
        def spied():
            state, losses = torch.get_rng_state(), dict(self.loss_func.losses)
            self.found.append(look())
            assert torch.equal(state, torch.get_rng_state()) and self.loss_func.losses == losses
            return self.found[-1]
        self.weigh.losses_after_step = spied


@pytest.mark.parametrize('own', [None, dict(gory=.25, sarcasm=3., mature=0.)])
@pytest.mark.parametrize('accumulate', [False, True])
def test_looking_back_runs_the_same_batches_with_the_same_dropout(accumulate, own):
    "At a learning rate of 0 the losses after a step are those before it"
    w = callback('famo', {})
    look = After(w)
    learn = learner([w, look, *([GradientAccumulation(16)] if accumulate else [])], loss_func=MultiTaskLoss(TASKS, own))
    learn.lr, learn.wd = 0., 0.
    quiet(learn, 2)
    per = 2 if accumulate else 1
    assert len(look.found) == 6//per
    for i, found in enumerate(look.found):
        batches = [r['loss'] for r in w.records[per*i:per*i + per]]
        mean = {n: np.mean([b[n] for b in batches if n in b]) for n in found}
        assert found == pytest.approx(mean, rel=1e-5) and set(found) == {n for b in batches for n in b}
    assert ('mature' in found) == (own is None)


class Stop(Callback):
    "Break the first training epoch off"
    order, run_valid, epochs = 1, False, (0,)
    def after_batch(self):
        if self.training and self.learn.epoch in self.epochs: raise CancelTrainException()


def test_an_epoch_that_was_broken_off_is_none_to_the_weighting():
    w = Weigh('dwa')
    quiet(learner([w, Stop()]), 3)
    assert {n: len(m) for n, m in w.weighting.means.items()} == dict.fromkeys(named, 2) and not w.weighting.sums
    w = Weigh('dwa')
    quiet(learner([w]), 3)
    assert {n: len(m) for n, m in w.weighting.means.items()} == dict.fromkeys(named, 2)
    w = Weigh('dwa')
    quiet(learner([w, stop := Stop()]), 1)
    assert not w.weighting.means and w.weighting.sums and stop.epochs == (0,)


def test_a_search_for_a_learning_rate_teaches_the_weighting_nothing(tmp_path):
    w = Weigh('uncertainty')
    learn = quiet(learner([w], path=tmp_path))
    before = deepcopy(w.state_dict())
    with learn.no_logging(): learn.lr_find(num_it=4, show_plot=False)
    assert w.state_dict() == before and w.n_steps == 3 and len(w.records) == 3


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, g): return torch.full_like(g, math.nan)


class Break(Callback):
    "A loss, or only its gradient, is NaN in one batch"
    order, run_valid = 1, False
    def __init__(self, what, at=1): self.what, self.at, self.i = what, at, -1
    def after_pred(self):
        self.i += 1
        if self.i != self.at: return
        x = self.learn.pred['gory']
        self.learn.pred['gory'] = BadGradient.apply(x) if self.what == 'gradient' else x*math.nan
    def before_step(self):
        if self.i == self.at: raise CancelStepException()


@pytest.mark.parametrize('what,name', [('loss', 'uncertainty'), ('loss', 'famo'), ('gradient', 'gradnorm')])
def test_a_batch_that_is_not_finite_is_counted_and_not_weighed(what, name):
    w = Weigh(weighting(name, **(dict(at='parameters') if name == 'gradnorm' else {})))
    quiet(net_learner([w, Break(what)]))
    assert w.failed == 1 and w.n_steps == 2 and w.state_dict()['failed'] == 1
    assert [math.isnan(sum(r['weight'].values())) for r in w.records] == [False, True, False]
    assert all(m[2] == 2 for m in w.weighting.moments.values())
    other = Weigh(w.weighting)
    other.load_state_dict(w.state_dict())
    assert other.failed == 1


def test_a_fit_begins_without_the_batches_of_one_that_was_broken_off():
    w = Weigh('uncertainty')
    learn = net_learner([w])
    w.weighting.pending = [dict(gory=(50., None))]
    w.batches = ['of an earlier fit']
    quiet(learn)
    assert w.weighting.moments['gory'][2] == 3 and not w.batches
    other = Weigh('uncertainty')
    quiet(net_learner([other]))
    assert other.weighting.values == w.weighting.values


def test_a_weighting_is_used_as_it_is_and_checked_before_training():
    w = Uncertainty()
    assert Weigh(w).weighting is w
    with pytest.raises(ValueError, match="unknown task 'gori'"):
        quiet(learner([Weigh(weighting('fixed', tasks=dict(named, gori=1.)))]))
    with pytest.raises(ValueError, match="no weight for task 'sarcasm'"):
        quiet(learner([Weigh(weighting('fixed', tasks=dict(gory=1., mature=1.)))]))


@pytest.mark.parametrize('overlap', [False, True])
def test_tasks_that_share_no_clip_are_told_of(overlap):
    "At the representation such tasks cannot conflict; one clip that both have is enough, for each two tasks"
    def labels(i):
        if i < 4: return dict(gory=i % 2, **(dict(sarcasm=0) if overlap and not i else {}))
        return dict(mature=i % 2, sarcasm=i % 2, **(dict(gory=1) if overlap and i == 4 else {}))
    rng = np.random.default_rng(0)
    data = ClipDataset.from_clips([Clip(f'c{i}', text=rng.normal(size=(4, 6)), video=rng.normal(size=(3, 8)),
                                        audio=rng.normal(size=(2, 5)), labels=labels(i)) for i in range(8)], TASKS)
    w = Weigh('mgda')
    learn = learner([w])
    learn.dls = DataLoaders(ClipDL(data, 8), ClipDL(data, 8), device='cpu')
    if overlap: quiet(learn, 2)
    else:
        with pytest.warns(UserWarning, match='two tasks share no labelled clip'): quiet(learn, 2)
    assert w.no_shared_clip == w.state_dict()['blind'] == (0 if overlap else 2)


def test_a_weighting_comes_before_a_penalty_and_accumulation():
    "A penalty is not weighed, and accumulation divides the weighted loss"
    penalty, against = AddRegularizer(Regularizer('norm', 2.)), Weigh(Opposite())
    both, plain, with_penalty = gradients([against, penalty]), gradients([]), gradients([penalty])
    close(both, {n: g - 2*plain.get(n, 0) for n, g in with_penalty.items()}, 1e-3)
    assert Weigh.order < AddRegularizer.order < GradientAccumulation.order
