"""Callbacks: a NaN is found where it was put, a skipped step has no effect, a rollback leads to an earlier state."""
import copy
import json
import math
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.basics import Callback, CancelStepException, DataLoaders, Learner, OptimWrapper
from fastai.callback.fp16 import AMPMode
from fastai.callback.training import GradientAccumulation
from fastai.learner import noop
from hypothesis import assume, example, given, settings, strategies as st
from torch import nn

from hiccap.generators import random_state
from hiccap.replay import REPLAY, REPLAY_BATCH, REPLAY_WEIGHTS, ReplayError, load_bundle, replay, write_bundle
from hiccap.diagnosis import diagnose
from hiccap.callbacks import (AddRegularizer, ClipGradients, KeepBest, ProgressLines, StepInfo, StepRecorder,
                              callback_order, global_norm, lower_is_better)
from hiccap.checkpoints import CheckpointError
from hiccap.learner import HICCAPLearner
from hiccap.learner import DevicePrecision
from hiccap.nan_detector import NanDetector, NonFiniteError
from hiccap.basics import seal
from hiccap.losses import MultiTaskLoss, Regularizer
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.tasks import Task

TASKS = Task('loud'), Task('said')
N, D = 6, 4

fewer = settings(max_examples=max(5, settings().max_examples//4))  # of whole runs


class Bad(torch.autograd.Function):
    "`value` in some rows, of the output or of the gradient"
    @staticmethod
    def forward(ctx, h, rows, value, back):
        ctx.rows, ctx.value, ctx.back = rows, value, back
        h = h.clone()
        if not back: h[rows] = value
        return h

    @staticmethod
    def backward(ctx, g):
        g = g.clone()
        if ctx.back: g[ctx.rows] = ctx.value
        return g, None, None, None


class Breaker(nn.Module):
    "Breaks what passes through it, while `on`"
    def __init__(self, rows, value, back):
        super().__init__()
        self.args, self.on = (rows, value, back), True
    def forward(self, h): return Bad.apply(h, *self.args) if self.on else h


class Between(nn.Module):
    "Breaks what passes between two children, in its own code"
    def __init__(self, a, b, breaker):
        super().__init__()
        self.a, self.b, self.args = a, b, breaker.args
    def forward(self, h): return self.b(Bad.apply(self.a(h), *self.args))


class Residual(nn.Module):
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, h): return h + self.f(h)


class Net(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.first, self.body, self.loud, self.said = nn.Linear(D, D), body, nn.Linear(D, 2), nn.Linear(D, 2)
    def forward(self, inputs):
        if 'on' in inputs:  # the batch decides whether the network breaks
            for m in self.modules():
                if isinstance(m, Breaker): m.on = bool(inputs['on'])
        h = self.body(self.first(inputs['x']))
        return dict(loud=self.loud(h), said=self.said(h))


LEAVES = dict(linear=lambda: nn.Linear(D, D), tanh=nn.Tanh, gelu=nn.GELU, layer=lambda: nn.LayerNorm(D),
              batch=lambda: nn.BatchNorm1d(D), dropout=lambda: nn.Dropout(0.3), same=nn.Identity)
shapes = st.recursive(st.sampled_from(sorted(LEAVES)), lambda inner: st.tuples(st.just('residual'), inner)
                      | st.tuples(st.just('sequence'), st.lists(inner, min_size=1, max_size=3)), max_leaves=6)


def build(shape):
    if isinstance(shape, str): return LEAVES[shape]()
    kind, inner = shape
    return Residual(build(inner)) if kind == 'residual' else nn.Sequential(*map(build, inner))


def plant(model, at, breaker, between):
    "Put `breaker` after one of the modules; the qualified name that must be found"
    places = [(m, k) for m in model.body.modules() for k in m._modules] or [(model, 'body')]
    parent, key = places[at % len(places)]
    old = parent._modules[key]
    new = Between(old, nn.Identity(), breaker) if between else nn.Sequential(old, breaker)
    parent._modules[key] = new
    return next(k for k, m in model.named_modules() if m is (new if between else breaker))


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=g)
    return dict(x=x), dict(loud=(x[:, 0] > 0).long(), said=(x[:, 1] > 0).long())


rows_of = st.sets(st.integers(0, N - 1), min_size=1, max_size=N).map(sorted)
faults = st.tuples(st.lists(shapes, min_size=1, max_size=3), st.integers(0, 50), rows_of,
                   st.sampled_from([math.nan, math.inf, -math.inf]), st.booleans(), st.booleans(), st.integers(0, 999))


def planted(fault):
    shape, at, rows, value, back, between, seed = fault
    torch.manual_seed(seed)
    model = Net(build(('sequence', shape)))
    return model, plant(model, at, Breaker(rows, value, back), between), rows, value, back


@given(faults)
# an input that a module returns unchanged is both what it received and what it passed on
@example((['same'], 0, [0], math.nan, True, True, 0))
def test_a_planted_fault_is_found_where_it_was_planted(fault):
    model, name, rows, value, back = planted(fault)
    x, y = batch()
    if math.isinf(value) and not back:  # an infinity may be squashed on its way
        with torch.random.fork_rng():
            assume(not all(bool(torch.isfinite(o).all()) for o in copy.deepcopy(model)(x).values()))
    state, weights = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    f = diagnose(model, x, y, MultiTaskLoss(TASKS))
    assert (f.where, f.name, f.rows) == ('backward' if back else 'forward', name, tuple(rows))
    assert not any(o.nonfinite for o in f.inputs) and any(o.nonfinite for o in f.outputs)
    assert torch.equal(state, torch.get_rng_state()) and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    with tempfile.TemporaryDirectory() as d:
        write_bundle(Path(d)/'b', f, model, x, y, MultiTaskLoss(TASKS))
        other = planted((*fault[:-1], fault[-1] + 1))[0]
        assert replay(Path(d)/'b', other) == f == load_bundle(Path(d)/'b').finding


@given(st.lists(shapes, min_size=1, max_size=3), st.integers(0, 999), st.integers(0, 999))
def test_a_weight_is_named_before_what_it_spoils_and_a_healthy_network_is_not_accused(shape, seed, at):
    torch.manual_seed(seed)
    model = Net(build(('sequence', shape)))
    x, y = batch(seed)
    assert diagnose(model, x, y, MultiTaskLoss(TASKS)) is None
    name, p = list(model.named_parameters())[at % len(list(model.parameters()))]
    p.data.view(-1)[at % p.numel()] = math.nan
    f = diagnose(model, x, y, MultiTaskLoss(TASKS))
    assert (f.where, f.name) == ('weight', name)


class Loader:
    device, dataset = torch.device('cpu'), None
    def __init__(self, n=6, seed=0, at=()):
        self.batches = [({**x, 'on': torch.tensor(i in at)}, y) for i in range(n) for x, y in [batch(seed + i)]]
    def __len__(self): return len(self.batches)
    def __iter__(self): return iter(self.batches)
    def batch_ids(self, i): return [f'b{i}_{r}' for r in range(N)]


class Spy(Callback):
    "Weights, buffers and optimizer state before and after each step"
    order = 99
    def __init__(self, model): self.net, self.before, self.after, self.taken = model, [], [], []
    def state(self):
        opt = {(i, k): v.clone() for i, s in self.opt.opt.state_dict()['state'].items() for k, v in s.items()}
        return {k: v.clone() for k, v in self.net.state_dict().items()}, opt
    def before_batch(self):
        if self.training: self.before.append(self.state()); self.taken.append(False)
    def before_step(self): self.taken[-1] = True
    def after_batch(self):
        if self.training: self.after.append(self.state())


def same(a, b):
    return all(a[i].keys() == b[i].keys() and all(torch.equal(a[i][k], b[i][k]) for k in a[i]) for i in (0, 1))


half = st.booleans() # whether matrix products are in bfloat16


def learner(cbs, rows=(1,), back=False, seed=0, at=(), dl=None, half=False):
    torch.manual_seed(seed)
    model = Net(nn.Sequential(nn.BatchNorm1d(D), nn.Dropout(.2), Breaker(list(rows), math.nan, back), nn.Tanh()))
    spy = Spy(model)
    learn = Learner(DataLoaders(dl or Loader(at=at), Loader(1, 9)), model, MultiTaskLoss(TASKS),
                    partial(OptimWrapper, opt=torch.optim.AdamW), lr=0.01,
                    cbs=[*cbs, spy, *([DevicePrecision(AMPMode.BF16)] if half else [])])
    learn.logger = noop
    learn.remove_cb(learn.progress)
    return learn, spy


@fewer
@given(st.sets(st.integers(0, 5), min_size=1, max_size=3), rows_of, st.booleans(), st.integers(0, 99), half)
def test_a_skipped_step_leaves_nothing_behind(at, rows, back, seed, half):
    cbs = [find := NanDetector('skip', folder=None), ClipGradients(1e9)]
    learn, spy = learner(cbs, rows, back, seed, at, half=half)
    learn.fit(1)
    assert find.counts['skipped'] == len(at) and [o.batch for o in find.findings] == sorted(at)
    for f in find.findings:
        assert f.name == 'body.2' and f.clips_concerned == tuple(f'b{f.batch}_{r}' for r in rows)
        assert f.precision == ('bfloat16' if half else None)
    for i, (a, b) in enumerate(zip(spy.before, spy.after)):
        assert same(a, b) == (i in at) and spy.taken[i] == (i not in at)
    assert math.isfinite(learn.recorder.values[0][0])


@fewer
@given(st.integers(1, 5), st.integers(1, 4), st.booleans(), st.integers(0, 99), half)
def test_a_rollback_leads_to_a_good_state_that_was_seen(at, every, back, seed, half):
    cbs = [find := NanDetector('rollback', folder=None, keep_every=every)]
    learn, spy = learner(cbs, (0,), back, seed, {at}, half=half)
    learn.fit(1)
    assert find.counts['rolled_back'] == 1
    assert same(spy.after[at], spy.before[(at - 1)//every*every])
    if (at - 1)//every*every: assert not same(spy.after[at], spy.before[0])
    assert [round(o, 9) for o in learn.recorder.lrs] == [.01]*(at + 1) + [.005]*(5 - at)


@fewer
@given(st.integers(0, 5), st.booleans(), st.integers(0, 99), half)
def test_a_run_that_stops_leaves_the_state_before_the_step(at, back, seed, half):
    learn, spy = learner([NanDetector(folder=None)], (2,), back, seed, {at}, half=half)
    with pytest.raises(NonFiniteError) as e: learn.fit(1)
    assert (e.value.finding.step, e.value.finding.batch) == (at, at) and same(spy.before[at], spy.state())
    assert all(p.grad is None for p in learn.model.parameters())


@fewer
@given(st.integers(0, 5), st.sampled_from([1, 2, 3]), st.booleans(), half)
def test_with_accumulation_the_batch_that_failed_is_named_and_its_whole_step_left_out(at, per, back, half):
    cbs = [find := NanDetector('skip', folder=None), GradientAccumulation(per*N)]
    learn, spy = learner(cbs, (3,), back, 0, {at}, half=half)
    learn.fit(1)
    assert [(f.step, f.batch, f.clips_concerned) for f in find.findings] == [(at//per, at, (f'b{at}_3',))]
    last = at//per*per + per - 1
    for a, b in ((spy.before[last], spy.after[last]),):
        assert all(torch.equal(a[0][k], b[0][k]) for k in a[0] if 'running' not in k and 'tracked' not in k)


@given(st.lists(st.lists(st.floats(-2.**100, 2.**100, width=32), min_size=1, max_size=6), min_size=1, max_size=5),
       st.floats(1e-3, 1e3))
def test_clipping_keeps_the_direction_and_the_limit(values, limit):
    params = [nn.Parameter(torch.zeros(len(v))) for v in values]
    for p, v in zip(params, values): p.grad = torch.tensor(v)
    was = torch.cat([p.grad.double() for p in params])
    cb = ClipGradients(limit)
    cb.learn = SimpleNamespace(opt=SimpleNamespace(param_lists=[params]), step_info=StepInfo())
    cb.before_step()
    now, true = torch.cat([p.grad.double() for p in params]), float(was.norm())
    assert cb.norms == [pytest.approx(true, rel=1e-5, abs=1e-37)] and global_norm([p.grad for p in params]) <= limit * (
        1 + 1e-6)
    if true <= limit*(1 - 1e-6): assert torch.equal(was, now)
    elif true > limit*(1 + 1e-6):
        assert torch.allclose(now, was*(limit/true), rtol=1e-5, atol=1e-37) and cb.share_clipped == 1


@pytest.mark.parametrize('limit', [.01, 1e9])
def test_in_bfloat16_weights_gradients_and_moments_are_float32_and_clipped_alike(limit):
    class Seen(Callback):
        order = 95  # after `ClipGradients`
        def before_step(self): self.norms.append(global_norm([p.grad for p in self.model.parameters()]))
        def after_pred(self): self.kinds.add(self.model.first(self.xb[0]['x']).dtype)
    def fit(half):
        learn, _ = learner([clip := ClipGradients(limit), seen := Seen()], half=half)
        seen.norms, seen.kinds = [], set()
        learn.fit(1)
        moments = [o for s in learn.opt.opt.state_dict()['state'].values() for o in s.values()]
        assert all(o.dtype == torch.float32 for o in [*learn.model.parameters(), *moments])
        return clip, seen, learn
    clip, seen, learn = fit(True)
    full, seen_full, learn_full = fit(False)
    assert seen.kinds == {torch.bfloat16} and seen_full.kinds == {torch.float32}
    assert clip.norms == pytest.approx(full.norms, rel=.05) and clip.norms != full.norms
    assert all(o <= limit for o in seen.norms)
    assert seen.norms == pytest.approx([min(o, limit) for o in clip.norms], rel=1e-5)
    weights, whole = (torch.cat([p.flatten() for p in o.model.parameters()]) for o in (learn, learn_full))
    assert torch.allclose(weights, whole, atol=.05) and not torch.equal(weights, whole)
    assert not torch.equal(weights, weights.bfloat16().float())  # more digits than bfloat16 has


@given(st.lists(st.sampled_from([math.nan, None, -1., 0., .5, .5, 1., math.inf]), min_size=1, max_size=8),
       st.sampled_from(['lower', 'higher']))
def test_the_best_epoch_is_the_first_of_the_best_and_never_nan(scores, better):
    model, keep = nn.Linear(1, 1), KeepBest('score', better)
    recorder = SimpleNamespace(metric_names=['epoch', 'train_loss', 'score'], values=[])
    keep.learn = SimpleNamespace(model=model, recorder=recorder, epoch=0)
    keep.before_fit()
    for keep.learn.epoch, s in enumerate(scores):
        model.weight.data.fill_(keep.learn.epoch)
        recorder.values.append([0., s])
        keep.after_epoch()
    known = [(s, i) for i, s in enumerate(scores) if s is not None and not math.isnan(s)]
    if not known:
        with pytest.warns(UserWarning, match='no best one'): keep.after_fit()
        assert model.weight.item() == len(scores) - 1 and keep.best is None
        return
    keep.after_fit()
    best = (min if better == 'lower' else max)(s for s, _ in known)
    assert keep.best == best and model.weight.item() == keep.best_epoch == next(i for s, i in known if s == best)


@given(st.sampled_from([REPLAY, REPLAY_WEIGHTS, REPLAY_BATCH]), st.floats(0, 1, exclude_max=True), st.integers(1, 255),
       st.booleans())
def test_a_damaged_bundle_is_refused_by_name(name, where, flip, cut):
    with tempfile.TemporaryDirectory() as d:
        model, (x, y) = Net(Breaker([0], math.nan, False)), batch()
        write_bundle(Path(d)/'b', diagnose(model, x, y, MultiTaskLoss(TASKS)), model, x, y, MultiTaskLoss(TASKS))
        path = Path(d)/'b'/name
        data = bytearray(path.read_bytes())
        if name == REPLAY: was = json.loads(data)
        at = int(where*len(data))
        if cut: data = data[:at]
        else: data[at] ^= flip
        path.write_bytes(data)
        try: spec = load_bundle(Path(d)/'b').spec
        except ReplayError as e: assert name in str(e)
        else: assert name == REPLAY and spec == was  # it was white space that changed


@pytest.mark.parametrize('a, b', [(b'"Breaker"', b'"Braeker"'), (b'"step": null', b'"step": 1234'),
                                  (b'"format": 1', b'"format": 2')])
def test_a_bundle_that_says_something_else_than_was_written_is_refused(tmp_path, a, b):
    model, (x, y) = Net(Breaker([0], math.nan, False)), batch()
    write_bundle(tmp_path/'b', diagnose(model, x, y, MultiTaskLoss(TASKS)), model, x, y, MultiTaskLoss(TASKS))
    path = tmp_path/'b'/REPLAY
    assert a in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(a, b))
    with pytest.raises(ReplayError, match=REPLAY): load_bundle(tmp_path/'b')


@given(st.sampled_from(['finding', 'inputs', 'targets', 'random', 'versions', 'checksums', 'format']),
       st.sampled_from([None, 3, 'x', [], {}, [[1]], {'tensor': 'no'}, {'dict': 3}]))
def test_a_bundle_of_another_make_is_refused_whatever_its_checksum_says(field, value):
    with tempfile.TemporaryDirectory() as d:
        model, (x, y) = Net(Breaker([0], math.nan, False)), batch()
        write_bundle(Path(d)/'b', diagnose(model, x, y, MultiTaskLoss(TASKS)), model, x, y, MultiTaskLoss(TASKS))
        path = Path(d)/'b'/REPLAY
        s = {**{k: v for k, v in json.loads(path.read_text()).items() if k != 'checksum'}, field: value}
        path.write_text(json.dumps(seal(s)))
        if field == 'versions': load_bundle(Path(d)/'b')
        else:
            with pytest.raises(ReplayError): load_bundle(Path(d)/'b')


@fewer
@given(st.integers(0, 99), st.lists(st.booleans(), min_size=4, max_size=4))
def test_a_task_without_labels_is_empty_in_the_record_and_a_nan_is_not(seed, labelled):
    dl = Loader(4, seed, {3})
    dl.batches = [
        (x, {**y, 'said': y['said'] if on else y['said'] * 0 - 100}) for (x, y), on in zip(dl.batches, labelled)]
    learn, _ = learner([rec := StepRecorder(), NanDetector('skip', folder=None)], dl=dl)
    learn.fit(1)
    with tempfile.TemporaryDirectory() as d:
        lines = [o.split(',') for o in rec.to_csv(Path(d)/'h.csv').read_text().splitlines()]
    rows = [dict(zip(lines[0], o)) for o in lines[1:]]
    assert [o['kind'] for o in rows] == ['step']*4 + ['epoch'] and [o['stepped'] for o in rows[:4]] == ['1']*3 + ['0']
    for o, on in zip(rows, labelled): assert (o.get('loss_said', '') != '') == on
    assert rows[3]['loss'] == 'nan' == rows[3]['grad_norm'] and math.isfinite(float(rows[4]['train_loss']))
    again = StepRecorder()
    again.load_state_dict(json.loads(json.dumps(rec.state_dict())))
    assert again.columns() == rec.columns() and again.n_steps == 4


@fewer
@given(st.integers(0, 99))
def test_watching_changes_nothing(seed):
    ends = []
    for cbs in ((), (NanDetector('rollback', folder=None, keep_every=2), ClipGradients(math.inf), StepRecorder())):
        learn, spy = learner(cbs, seed=seed)
        state = random_state()['torch']
        learn.fit(2)
        ends.append((spy.state(), random_state()['torch']))
    assert same(ends[0][0], ends[1][0]) and torch.equal(ends[0][1], ends[1][1]) and not torch.equal(state, ends[0][1])


def test_all_callbacks_share_one_reading_of_a_step():
    read = []
    class Counted(StepInfo):
        def read(self, params):
            known = self.norm is not None
            super().read(params)
            read.append(known)
    class Share(Callback):
        order = 93  # after all others have made theirs
        def before_fit(self): self.learn.step_info = Counted()
    learn, _ = learner([NanDetector(folder=None), clip := ClipGradients(1e9), rec := StepRecorder(), Share()])
    learn.fit(1)
    assert read == [False, True]*6  # the detector reads, clipping finds it read
    assert clip.norms == rec.history('step').grad_norm.tolist()


def test_the_order_of_callbacks_is_that_of_the_learner():
    learn, _ = learner([StepRecorder(), NanDetector(folder=None), ClipGradients(), KeepBest()])
    table = callback_order(learn)
    assert table.callback.tolist() == [type(cb).__name__ for cb in learn.cbs.sorted('order')]
    assert table.callback.tolist()[-2:] == ['StepRecorder', 'Spy'] and table.order.is_monotonic_increasing
    assert callback_order([ClipGradients, NanDetector]).callback.tolist() == ['NanDetector', 'ClipGradients']


# -- failures in a row -------------------------------------------------------------------------------------------------

@fewer
@given(st.sets(st.integers(0, 9), max_size=7), st.integers(0, 3), st.sampled_from(['skip', 'rollback']))
@example({1, 3, 5}, 1, 'skip')  # never two in a row
def test_only_failures_without_a_good_step_between_them_are_in_a_row(at, most, action):
    "A run raises at the first failure of a row that is longer than `max_in_a_row`, and at no other"
    if action == 'rollback': at = at - {0}  # before the first good step there is nothing to return to
    last = next((i for i in range(10) if all(j in at for j in range(i - most, i + 1))), None)
    learn, spy = learner([find := NanDetector(action, folder=None, max_in_a_row=most)], dl=Loader(10, at=at))
    if last is None:
        learn.fit(1)
        assert find.counts['skipped' if action == 'skip' else 'rolled_back'] == len(at)
    else:
        with pytest.raises(NonFiniteError, match=f'{most + 1} failures in a row'): learn.fit(1)
        assert [f.batch for f in find.findings] == [i for i in sorted(at) if i <= last]


def test_accumulated_batches_of_one_step_are_one_failure():
    learn, _ = learner([find := NanDetector('skip', folder=None, max_in_a_row=2), GradientAccumulation(2*N)],
                       dl=Loader(8, at=range(4)))
    learn.fit(1)
    assert find.counts['skipped'] == 2


def test_each_rollback_lowers_the_rate_once_more():
    learn, _ = learner([NanDetector('rollback', folder=None, lower=.5)], dl=Loader(8, at=(2, 5)))
    learn.fit(1)
    assert learn.recorder.lrs == pytest.approx([.01]*3 + [.005]*3 + [.0025]*2)


# -- the penalty -------------------------------------------------------------------------------------------------------

class Grads(Callback):
    "What is differentiated and logged, and gradients before any callback of the step has changed them"
    order, run_valid = 8, False
    def __init__(self): self.losses, self.grads = [], []
    def after_loss(self): self.losses.append((float(self.learn.loss_grad), float(self.learn.loss)))
    def before_step(self): self.grads.append([p.grad.clone() for p in self.learn.model.parameters()])


class Plain(nn.Module):
    "A network without chance"
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.loud, self.said = nn.Linear(D, 2), nn.Linear(D, 2)
    def forward(self, x): return dict(loud=self.loud(x['x']), said=self.said(x['x']))


def plain(cbs, n=4, cls=Learner, lr=.01, **kw):
    learn = cls(DataLoaders(Loader(n), Loader(2, 9)), Plain(), MultiTaskLoss(TASKS),
                partial(OptimWrapper, opt=torch.optim.SGD), lr=lr, cbs=cbs, **kw)
    learn.logger = noop
    learn.remove_cb(learn.progress)
    return learn


@pytest.mark.parametrize('per', [1, 2])
def test_a_penalty_is_differentiated_and_not_logged_whatever_is_accumulated(per):
    "The gradient of a step is that of the mean loss of its batches and of one penalty"
    reg, rec = Regularizer('norm', .3), StepRecorder()
    cbs = [GradientAccumulation(per*N)] if per > 1 else []
    add = AddRegularizer(reg)
    learn = plain([add, rec, keep := Grads(), *cbs])
    learn.fit(1)
    net, loss = Plain(), MultiTaskLoss(TASKS)
    batches = Loader(4).batches
    mean = sum(loss(net({'x': x['x']}), y) for x, y in batches[:per])/per
    want = torch.autograd.grad(mean + reg.penalty(net), list(net.parameters()))
    for a, b in zip(keep.grads[0], want): torch.testing.assert_close(a, b)
    penalty = float(reg.penalty(net))
    for i in range(per):
        one = float(loss(net({'x': batches[i][0]['x']}), batches[i][1]))
        assert keep.losses[i] == pytest.approx(((one + penalty)/per, one))
    steps = rec.history('step')
    assert steps.penalty[:per].tolist() == pytest.approx([penalty]*per)
    assert steps.loss.tolist() == pytest.approx([l for _, l in keep.losses])
    assert not add.value.requires_grad  # no graph outlives its step


# -- norms, and what is known of a step --------------------------------------------------------------------------------

@given(st.lists(st.lists(st.floats(-2.**127, 2.**127, width=32), max_size=5), max_size=4))
def test_a_norm_is_that_of_all_values_also_where_squares_overflow(values):
    true = math.sqrt(math.fsum(v**2 for t in values for v in t))
    assert global_norm([torch.tensor(v) for v in values]) == pytest.approx(true, rel=1e-5, abs=1e-18)


def test_norms_of_half_precision_and_of_sparse_gradients():
    assert global_norm([torch.full((10_000,), 60000.).half()]) == pytest.approx(6e6, rel=1e-2)
    for dtype in (torch.float16, torch.bfloat16):
        assert global_norm([torch.ones(3, dtype=dtype), torch.ones(4)]) == pytest.approx(7**.5, rel=1e-6)
    sparse = torch.sparse_coo_tensor([[0, 0, 2]], [3., 1., 3.], (5,))
    assert global_norm([sparse, torch.zeros(2)]) == 5 and global_norm([]) == 0
    assert math.isinf(global_norm([torch.tensor([1., math.inf])]))
    assert math.isnan(global_norm([torch.tensor([1., math.nan])]))


values = st.sampled_from([0., 1., 3., math.nan, math.inf])


@given(st.lists(values, max_size=3), st.lists(values, max_size=3))
def test_a_step_is_finite_if_its_gradients_and_all_that_is_watched_are(grads, watched):
    "Read once for a batch; what is watched of it is forgotten with the step, not with the batch"
    params = [nn.Parameter(torch.zeros(1)) for _ in grads] + [nn.Parameter(torch.zeros(1))]
    for p, g in zip(params, grads): p.grad = torch.tensor([g])
    info = StepInfo()
    assert info.norm is None and info.finite is None
    for w in watched: info.watch([torch.tensor(w)])
    info.new_batch()
    info.read(params)
    assert info.finite == all(map(math.isfinite, grads + watched))
    assert info.norm == pytest.approx(math.sqrt(sum(g*g for g in grads)), nan_ok=True)
    was = info.norm
    for p in params: p.grad = torch.ones(1)
    info.read(params)
    assert info.norm == was or math.isnan(was)
    info.new_step()
    assert info.norm is None and info.watched == []
    info.read(params)
    assert info.finite and info.norm == pytest.approx(math.sqrt(len(params)))


def test_a_gradient_whose_square_overflows_is_finite_and_clipped():
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.full((2,), 1e30)
    info = StepInfo()
    info.read([p])
    assert info.finite and info.norm == pytest.approx(2**.5*1e30)


class SkipSteps(Callback):
    "Skip steps before or after their gradients are read, which `ClipGradients` (91) does"
    run_valid = False
    def __init__(self, at, order): self.at, self.order = at, order
    def before_step(self):
        if self.learn.iter in self.at: raise CancelStepException()


@pytest.mark.parametrize('order', [80, 95])
def test_a_norm_is_kept_for_each_step_once(order):
    "NaN where a step was skipped before anybody read its gradients; it is a step that was not clipped"
    learn = plain([clip := ClipGradients(1e-3), rec := StepRecorder(), SkipSteps({1, 3}, order)], 5)
    learn.fit(1)
    assert [math.isnan(o) for o in clip.norms] == [i in (1, 3) and order < 91 for i in range(5)]
    assert clip.share_clipped == (.6 if order < 91 else 1.)
    again = ClipGradients(1e-3)
    again.load_state_dict(json.loads(json.dumps(clip.state_dict())))
    assert repr(again.norms) == repr(clip.norms)
    steps = rec.history('step')
    assert steps.stepped.tolist() == [1, 0, 1, 0, 1] and steps.step.tolist() == list(range(5)) and rec.n_steps == 5
    known = [i for i in range(5) if not math.isnan(clip.norms[i])]
    assert steps.grad_norm[known].tolist() == [clip.norms[i] for i in known]
    assert steps.grad_norm.isna().tolist() == [i not in known for i in range(5)]


def test_the_share_that_is_clipped_counts_neither_small_nor_infinite_norms():
    clip = ClipGradients(2.)
    assert math.isnan(clip.share_clipped)
    clip.norms = [1., 2., 3., math.inf, math.nan]
    assert clip.share_clipped == .2


def test_a_gradient_that_is_not_finite_is_not_clipped():
    class Infinite(Callback):
        order, run_valid = 50, False
        def before_step(self): next(self.learn.model.parameters()).grad.fill_(math.inf)
    learn = plain([Infinite(), clip := ClipGradients(1e-9), keep := Grads()], 1)
    keep.order = 93
    learn.fit(1)
    assert clip.norms == [math.inf] and torch.isinf(keep.grads[0][0]).all() and keep.grads[0][1].abs().max() > 1e-6


def test_a_search_for_a_learning_rate_is_no_part_of_a_history(tmp_path):
    from fastai.callback import schedule  # noqa: F401
    cbs = [ClipGradients(1.), StepRecorder(), KeepBest()]
    learn = plain(cbs, 3, HICCAPLearner, path=tmp_path)
    learn.fit(1)
    before = [json.dumps(o.state_dict()) for o in cbs[:2]], cbs[2].scores
    learn.lr_find(num_it=4, show_plot=False)
    assert ([json.dumps(o.state_dict()) for o in cbs[:2]], cbs[2].scores) == before


# -- validations in and after a fit ------------------------------------------------------------------------------------

class Validations(Callback):
    "After each epoch, validations and predictions that are no part of the fit"
    order = 70
    def after_epoch(self):
        if hasattr(self.learn, 'validating') or hasattr(self.learn, 'gather_preds'): return
        self.learn.validate(dl=Loader(1, 77))
        self.learn.get_preds(dl=Loader(1, 78))


def test_a_validation_by_itself_changes_nothing_that_is_kept_of_a_fit():
    "In the middle of a fit and after it: scores, the best weights, a lowered learning rate"
    ends = []
    for more in ([], [Validations()]):
        cbs = [StepRecorder(), KeepBest(), NanDetector('rollback', folder=None)]
        torch.manual_seed(0)
        net = Net(Breaker([0], math.nan, False))
        learn = HICCAPLearner(DataLoaders(Loader(4, at=(1,)), Loader(2, 9)), net, MultiTaskLoss(TASKS),
                              partial(OptimWrapper, opt=torch.optim.SGD), lr=.01, cbs=[*cbs, *more])
        learn.logger = noop
        learn.remove_cb(learn.progress)
        learn.fit(3)
        if more:
            learn.validate()
            learn.get_preds(dl=Loader(1, 78))
        ends.append((cbs[0].table, cbs[1].best, cbs[1].best_epoch, cbs[1].scores, cbs[2].counts, cbs[2].seen.factor))
    assert str(ends[0]) == str(ends[1]) and ends[0][5] == .125 and len(ends[0][3]) == 3


# -- the best epoch ----------------------------------------------------------------------------------------------------

class GivenScores(Callback):
    "The validation losses of the epochs, whatever the network does"
    order = 51  # after the recorder (50)
    def __init__(self, scores): self.scores, self.after = list(scores), []
    def after_epoch(self):
        self.learn.recorder.values[-1] = [1., self.scores.pop(0)]
        self.after.append({k: v.clone() for k, v in self.learn.model.state_dict().items()})


def same_weights(a, b): return all(torch.equal(a[k], b[k]) for k in b)


def test_the_best_of_a_fit_is_saved_resumed_and_restored():
    whole = plain([one := KeepBest(), kept := GivenScores([3., 1., 2., 4.])], 1, lr=.5)
    whole.fit(4)
    assert one.best_epoch == 1 and same_weights(whole.model.state_dict(), kept.after[1])
    first = plain([two := KeepBest(restore=False), kept := GivenScores([3., 1.])], 1, lr=.5)
    first.fit(2)
    state = two.state_dict()
    second = plain([three := KeepBest(reset=False), more := GivenScores([2., 4.])], 1, lr=.1)
    three.load_state_dict(state)
    second.fit(2)
    assert (three.best, three.best_epoch, three.scores) == (1., 1, [3., 1., 2., 4.])
    assert same_weights(second.model.state_dict(), kept.after[1]) and state['scores'] == [3., 1.]
    assert not same_weights(second.model.state_dict(), more.after[1])


def test_a_new_fit_forgets_the_best_of_the_last_one_and_weights_stay_where_that_is_asked_for():
    learn = plain([keep := KeepBest(), kept := GivenScores([1., 3., 2.])], 1, lr=.5)
    learn.fit(1)
    learn.fit(2)
    assert (keep.best, keep.best_epoch, keep.scores) == (2., 1, [3., 2.])
    assert same_weights(learn.model.state_dict(), kept.after[2])
    learn = plain([keep := KeepBest(restore=False), kept := GivenScores([1., 2.])], 1, lr=.5)
    learn.fit(2)
    assert same_weights(learn.model.state_dict(), kept.after[1]) and same_weights(keep.weights, kept.after[0])


def test_what_is_better_follows_from_the_name_unless_it_is_given():
    assert [lower_is_better(n) for n in ('valid_loss', 'error_rate', 'macro f1')] == [True, True, False]
    names = ('valid_loss', 'error_rate', 'macro f1')
    assert [KeepBest(n).better for n in names] == ['lower', 'lower', 'higher']
    assert KeepBest('valid_loss', 'higher').better == 'higher'
    with pytest.raises(ValueError, match="better must be 'lower' or 'higher'"): KeepBest(better='most')


def test_a_folder_that_holds_something_is_replaced_only_if_that_is_asked_for(tmp_path):
    "By the fit that wrote it and one that resumes it, or with overwrite=True"
    keep = KeepBest(folder=tmp_path/'model')
    net = HICCAP(HICCAPConfig.tiny(text=4, video=4, audio=4), TASKS, seed=0)
    keep.learn = SimpleNamespace(model=net, epoch=0, recorder=SimpleNamespace(
        metric_names=['epoch', 'valid_loss'], values=[[3.]]))
    def epoch(cb, score):
        cb.learn = keep.learn
        cb.learn.recorder.values.append([score])
        cb.before_fit()
        cb.before_epoch()
        cb.after_epoch()
    epoch(keep, 3.)
    epoch(keep, 2.)
    assert (tmp_path/'model'/'config.json').exists() and keep.best == 2.
    with pytest.raises(CheckpointError, match='holds something already'): epoch(KeepBest(folder=tmp_path/'model'), 1.)
    epoch(KeepBest(folder=tmp_path/'model', overwrite=True), 1.)
    resumed = KeepBest(folder=tmp_path/'model', reset=False)
    resumed.load_state_dict(keep.state_dict())
    epoch(resumed, 1.)
    assert resumed.best == 1.


# -- the history of steps ----------------------------------------------------------------------------------------------

def test_the_history_has_every_groups_rate_and_every_tasks_loss():
    learn = plain([rec := StepRecorder(), ClipGradients(math.inf)], 3,
                  splitter=lambda m: [list(m.loud.parameters()), list(m.said.parameters())])
    learn.fit(2, lr=slice(.02, .04))
    steps, epochs = rec.history('step'), rec.history('epoch')
    assert steps.lr_0.tolist() == [.02]*6 and steps.lr_1.tolist() == [.04]*6 and steps.stepped.eq(1).all()
    assert np.allclose(steps.loss_loud + steps.loss_said, steps.loss)
    assert steps.epoch.tolist() == [0]*3 + [1]*3 and steps.batch.tolist() == [0, 1, 2]*2
    assert epochs.step.tolist() == [3, 6] and len(steps) == 6
    assert epochs.valid_loss.tolist() == pytest.approx([v[1] for v in learn.recorder.values])


def test_a_history_is_whole_at_any_moment_and_a_state_is_a_copy():
    states = []
    class Look(Callback):
        order, run_valid = 99, False
        def after_batch(self): states.append(json.dumps(rec.state_dict()))
    learn = plain([rec := StepRecorder(), Look()], 3)
    learn.fit(1)
    for i, s in enumerate(map(json.loads, states)):
        assert s['n_steps'] == i + 1 and [r['step'] for r in s['table']] == list(range(i + 1))
    state = rec.state_dict()
    learn.fit(1)
    assert len(state['table']) == 4 and len(rec.table) == 8 and not rec.pending
    other = StepRecorder()
    other.load_state_dict(state)
    learn = plain([other], 2)
    learn.fit(1)
    assert other.history('step').step.tolist() == [0, 1, 2, 3, 4] and len(state['table']) == 4


# -- lines instead of a bar --------------------------------------------------------------------------------------------

def test_lines_come_at_intervals_and_tell_the_time_that_is_left():
    "A clock of the batches: ten seconds each, of which two epochs of four and a validation of two take part"
    lines, clock = [], SimpleNamespace(now=0.)
    class Tick(Callback):
        order = 0
        def after_batch(self): clock.now += 10 if self.training else 0
    cb = ProgressLines(20., lines=True, write=lines.append, clock=lambda: clock.now)
    learn = plain([cb, Tick()])
    learn.logger = print
    learn.fit(2)
    parts = [o.split('  ') for o in lines]
    assert [p[0] for p in parts] == ['epoch 1/2']*3 + ['epoch 2/2']*3
    assert [p[1] for p in parts if p[1].startswith('batch')] == ['batch 2/4', 'batch 4/4']*2
    assert [p[-1] for p in parts] == [f'left 0:0{t//60}:{t%60:02}' for t in (60, 40, 40, 20, 0, 0)]
    assert learn.logger is print and cb.told is None  # what was there before
    scores = dict(s.rsplit(' ', 1) for s in parts[2][1:3])
    assert scores.keys() == {'train_loss', 'valid_loss'}


def test_hours_minutes_and_seconds():
    cb = ProgressLines(clock=lambda: 3*3600. + 5*60 + 7)
    cb.started, cb.learn = 0., SimpleNamespace(iter=0, n_iter=2, training=True, epoch=0, n_epoch=1)
    assert cb.left() == '3:05:07'  # half is done
    cb.learn.resumed_at = .25
    assert cb.left() == '6:10:14'  # of which half was done before this process began


def test_epochs_before_a_share_of_the_fit_are_never_the_best():
    learn = plain([keep := KeepBest(after=.5), kept := GivenScores([1., 2., 4., 3.])], 1, lr=.5)
    learn.fit(4)
    assert (keep.best, keep.best_epoch, keep.scores) == (3., 3, [1., 2., 4., 3.])
    assert same_weights(learn.model.state_dict(), kept.after[3])
    with pytest.raises(ValueError, match='below 1'): KeepBest(after=1.)
