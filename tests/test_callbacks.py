"""Callbacks: a NaN is found where it was put, a skipped step has no effect, a rollback leads to an earlier state."""
import copy
import json
import math
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fastai.basics import Callback, DataLoaders, Learner, OptimWrapper
from fastai.callback.training import GradientAccumulation
from fastai.learner import noop
from hypothesis import assume, example, given, settings, strategies as st
from torch import nn

from hiccap.generators import random_state
from hiccap.replay import REPLAY, REPLAY_BATCH, REPLAY_WEIGHTS, ReplayError, load_bundle, replay, write_bundle
from hiccap.diagnosis import diagnose
from hiccap.callbacks import ClipGradients, KeepBest, StepInfo, StepRecorder, callback_order, global_norm
from hiccap.nan_detector import NanDetector, NonFiniteError
from hiccap.basics import seal
from hiccap.losses import MultiTaskLoss
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


def learner(cbs, rows=(1,), back=False, seed=0, at=(), dl=None):
    torch.manual_seed(seed)
    model = Net(nn.Sequential(nn.BatchNorm1d(D), nn.Dropout(.2), Breaker(list(rows), math.nan, back), nn.Tanh()))
    spy = Spy(model)
    learn = Learner(DataLoaders(dl or Loader(at=at), Loader(1, 9)), model, MultiTaskLoss(TASKS),
                    partial(OptimWrapper, opt=torch.optim.AdamW), lr=0.01, cbs=[*cbs, spy])
    learn.logger = noop
    learn.remove_cb(learn.progress)
    return learn, spy


@fewer
@given(st.sets(st.integers(0, 5), min_size=1, max_size=3), rows_of, st.booleans(), st.integers(0, 99))
def test_a_skipped_step_leaves_nothing_behind(at, rows, back, seed):
    learn, spy = learner([find := NanDetector('skip', folder=None), ClipGradients(1e9)], rows, back, seed, at)
    learn.fit(1)
    assert find.counts['skipped'] == len(at) and [o.batch for o in find.findings] == sorted(at)
    for f in find.findings: assert f.name == 'body.2' and f.clips_concerned == tuple(f'b{f.batch}_{r}' for r in rows)
    for i, (a, b) in enumerate(zip(spy.before, spy.after)):
        assert same(a, b) == (i in at) and spy.taken[i] == (i not in at)
    assert math.isfinite(learn.recorder.values[0][0])


@fewer
@given(st.integers(1, 5), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_a_rollback_leads_to_a_good_state_that_was_seen(at, every, back, seed):
    learn, spy = learner([find := NanDetector('rollback', folder=None, keep_every=every)], (0,), back, seed, {at})
    learn.fit(1)
    assert find.counts['rolled_back'] == 1
    assert same(spy.after[at], spy.before[(at - 1)//every*every])
    if (at - 1)//every*every: assert not same(spy.after[at], spy.before[0])
    assert [round(o, 9) for o in learn.recorder.lrs] == [.01]*(at + 1) + [.005]*(5 - at)


@fewer
@given(st.integers(0, 5), st.booleans(), st.integers(0, 99))
def test_a_run_that_stops_leaves_the_state_before_the_step(at, back, seed):
    learn, spy = learner([NanDetector(folder=None)], (2,), back, seed, {at})
    with pytest.raises(NonFiniteError) as e: learn.fit(1)
    assert (e.value.finding.step, e.value.finding.batch) == (at, at) and same(spy.before[at], spy.state())
    assert all(p.grad is None for p in learn.model.parameters())


@fewer
@given(st.integers(0, 5), st.sampled_from([1, 2, 3]), st.booleans())
def test_with_accumulation_the_batch_that_failed_is_named_and_its_whole_step_left_out(at, per, back):
    learn, spy = learner([find := NanDetector('skip', folder=None), GradientAccumulation(per*N)], (3,), back, 0, {at})
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
