"""Weightings: an absent task is absent, scale and order change nothing that they should not, and a resumed run
continues bit for bit."""
import gc
import json
import math
import sys
import weakref
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from fastai.basics import Callback, DataLoaders
from fastai.callback.training import GradientAccumulation
from hypothesis import given, strategies as st

import hiccap.gradient_weighting as module
from hiccap.states import optimizer_state
from hiccap.callbacks import ClipGradients
from hiccap.clips import Clip, ClipDataset
from hiccap.learner import ClipDL, hiccap_learner
from hiccap.losses import MultiTaskLoss
from hiccap.encoders import FeaturesConfig
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.tasks import Task
from hiccap.weighting import (COMPARED_AT, WEIGHTINGS, DynamicWeightAverage, FAMO, IMTLL, PlainSum, Uncertainty,
                              Weigh, Weighting, weighting)

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
        # MGDA's solver stops at a thousandth
        for n in NAMES: assert u[n] == pytest.approx(v[new[n]], rel=1e-3, abs=.02)
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
    learn.get_preds(); learn.validate()


def test_single_tasks_and_frozen_encoders():
    "Where nothing is shared, every aggregator is the plain sum"
    learn, plain = learner([Weigh('mgda')]), learner([])
    for l in (learn, plain):
        for n, p in l.model.named_parameters(): p.requires_grad_(n.startswith('heads.'))
    assert torch.equal(weights(quiet(learn)), weights(quiet(plain)))
