"""Checkpoints part by part: what a state holds, when one is written, which are kept, and what is refused.
`test_resume.py` breaks whole fits and programs; these are the small tests that name the part."""
import json
import os
import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.basics import Callback, DataLoaders, Metric
from fastai.callback.training import GradientAccumulation
from torch import nn

import hiccap.resuming as module
from hiccap.callbacks import KeepBest, StepRecorder
from hiccap.checkpoints import CheckpointError
from hiccap.clips import Clip, ClipDataset
from hiccap.distributed import processes
from hiccap.generators import random_state
from hiccap.learner import HICCAPLearner, clip_dls, hiccap_learner, score_metrics
from hiccap.losses import MultiTaskLoss
from hiccap.resuming import (STATE, TENSORS, Checkpoint, learner_state, load_learner_state, load_state, save_state,
                             state_from_main)
from hiccap.states import write_sealed
from hiccap.tasks import Task

TASKS = Task('loud'), Task('said')
STEPS, EPOCHS = 3, 2


def clips(n, seed, start):
    rng = np.random.default_rng(seed)
    return ClipDataset.from_clips([
        Clip(f'v{start + i}_0', video=rng.normal(size=(2, 3)), labels=dict(loud=i % 2, said=int(rng.integers(2))))
        for i in range(n)], TASKS)


DATA = clips(12, 0, 0), clips(4, 1, 50)


class Net(nn.Module):
    def __init__(self, hidden=4, dropout=.3):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.body = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Dropout(dropout), nn.BatchNorm1d(hidden))
            self.heads = nn.ModuleDict({t.name: nn.Linear(hidden, 2) for t in TASKS})

    def forward(self, inputs):
        x = self.body(inputs['video'].mean(1))
        return {k: head(x) for k, head in self.heads.items()}


class GrowingLoss(MultiTaskLoss):
    "A loss with a state: it grows from call to call"
    def __init__(self):
        super().__init__(TASKS)
        self.register_buffer('calls', torch.zeros(()))
    def forward(self, logits, targets):
        self.calls += self.training
        return super().forward(logits, targets)*(1 + self.calls/10)


class Sums(Metric):
    "A metric with numbers, tensors in a list, and what no checkpoint can hold"
    name = 'sums'
    def reset(self): self.n, self.parts_of, self.odd, self.f = 0, [torch.zeros(1), torch.zeros(1)], [1, print], print
    def accumulate(self, learn):
        self.n += 1
        self.parts_of[0] = self.parts_of[0] + learn.loss.detach()
    @property
    def value(self): return self.parts_of[0].item() + self.n


class Counted(Callback):
    "A callback with a state"
    order = 70
    def before_fit(self): self.total = 0.
    def after_batch(self):
        if self.training: self.total += self.learn.loss.item()
    def state_dict(self): return dict(total=self.total)
    def load_state_dict(self, state): self.total = state['total']


class OneWay(Callback):
    "A callback that gives a state and takes none, so it has none"
    def state_dict(self): raise AssertionError('its state was asked for')


class Killed(BaseException): pass


class KillAt(Callback):
    "Ends a fit after so many batches of training and validation, or before an epoch"
    order = 2000
    def __init__(self, batches, epoch=None): self.left, self.stop = batches, epoch
    def before_epoch(self):
        if self.epoch == self.stop: raise Killed()
    def after_batch(self):
        self.left -= 1
        if not self.left: raise Killed()


def learner(*cbs, net=None, data=DATA, loss=None, metrics=None, seed=3):
    dls = clip_dls(*data, bs=4, device='cpu', seed=1)
    learn = hiccap_learner(dls, net or Net(), GrowingLoss() if loss is None else loss, seed=seed, cbs=[Counted(), *cbs],
                           metrics=[*score_metrics(TASKS)[:1], Sums()] if metrics is None else metrics)
    learn.recorder.train_metrics, learn.recorder.add_time = True, False
    return learn


def fit(learn, saved, epochs=EPOCHS):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, .05, cbs=saved)
    return learn


def checkpoint(folder, every=1, resume=True, **kw): return Checkpoint(folder, every, resume=resume, **{
    **dict(write=lambda line: None), **kw})


def plain(x):
    "Numbers and names alone, to compare by their text"
    if isinstance(x, torch.Tensor): return x.tolist()
    if isinstance(x, dict): return {k: plain(v) for k, v in x.items()}
    if hasattr(x, 'item') and not isinstance(x, (list, tuple)): return x.item()
    return x if isinstance(x, (str, int, float, type(None))) else list(map(plain, x))


def outcome(learn):
    "All that a fit leaves"
    r = learn.recorder
    return str(plain(dict(
        weights=learn.model.state_dict(), optimizer=learn.opt.state_dict()['state'], loss=learn.loss_func.state_dict(),
        lrs=r.lrs, iters=r.iters, losses=r.losses, values=r.values, hps=r.hps, smooth=learn.smooth_loss,
        fits=learn.fits, share=learn.pct_train, step=learn.train_iter, total=learn.counted.total,
        loader=learn.dls.train.state_dict())))


@pytest.fixture(scope='module')
def whole(tmp_path_factory): return outcome(fit(learner(), checkpoint(tmp_path_factory.mktemp('w')/'c')))


@pytest.mark.parametrize('batches,step', [(1, 1), (2, 2), (3, 2), (4, 2), (None, 3), (5, 4), (6, 5), (7, 5)])
def test_a_fit_that_ends_after_any_batch_resumes_as_if_it_had_not(tmp_path, whole, batches, step):
    "An epoch has 3 steps and a validation of one batch, and the checkpoint of its last step comes after these"
    killer = KillAt(batches) if batches else KillAt(99, epoch=1)
    with pytest.raises(Killed): fit(learner(killer), checkpoint(tmp_path/'c'))
    lines, saw = [], []
    class Look(Callback):
        order = 1001  # after the checkpoint was loaded
        def before_fit(self): saw.append((self.learn.resumed_at, self.learn.first_epoch, self.learn.epoch))
    again = fit(learner(Look(), OneWay()), checkpoint(tmp_path/'c', write=lines.append))
    assert outcome(again) == whole
    at = 0 if step < STEPS else 1
    assert lines == [f'resuming after step {step}, in epoch {at + 1} of {EPOCHS}']
    assert saw == [(pytest.approx(step/(STEPS*EPOCHS)), at, at)]


def test_a_finished_fit_is_not_trained_again(tmp_path, whole):
    fit(learner(), checkpoint(tmp_path/'c'))
    lines, trained = [], []
    class Look(Callback):
        def before_batch(self): trained.append(self.learn.train_iter)
        def after_fit(self): lines.append(self.learn.epoch)
    assert outcome(fit(learner(Look()), checkpoint(tmp_path/'c', write=lines.append))) == whole
    assert lines == [f'all {EPOCHS} epochs are done', EPOCHS - 1] and not trained


class NotedScales(Callback):
    "Notes the loss scale after each step"
    def before_fit(self): self.found = {}
    def after_batch(self):
        if self.training: self.found[self.train_iter] = self.learn.scaler.get_scale()


@pytest.mark.parametrize('batches', [2, 4, 6])
def test_the_scale_of_half_precision_is_part_of_a_state(tmp_path, batches):
    def half(*cbs):
        "A scale that grows at every second step"
        return learner(NotedScales(), *cbs).to_fp16(init_scale=2.**10, growth_interval=2)
    want = fit(half(), checkpoint(tmp_path/'w')).noted_scales.found
    assert list(want) == list(range(1, 7)) and len(set(want.values())) > 2
    with pytest.raises(Killed): fit(half(KillAt(batches)), checkpoint(tmp_path/'c'))
    again = fit(half(), checkpoint(tmp_path/'c')).noted_scales.found
    assert 0 < len(again) < 6 and all(want[n] == v for n, v in again.items())


def test_what_a_state_holds(tmp_path):
    kept = []
    class Keep(Callback):
        order = 999
        def after_batch(self):
            if self.learn.training and self.learn.train_iter == 2: kept.append(learner_state(self.learn, 2))
        def after_epoch(self): kept.append(learner_state(self.learn))
    learn = fit(learner(Keep(), loss=MultiTaskLoss(TASKS)), [])
    assert [s['at'] for s in kept] == [
        dict(epoch=0, batch=2, epochs=2, step=2, share=pytest.approx(2/6), fits=1),
        dict(epoch=1, batch=0, epochs=2, step=3, share=pytest.approx(.5), fits=1),
        dict(epoch=2, batch=0, epochs=2, step=6, share=pytest.approx(1.), fits=1)]
    assert isinstance(kept[0]['random'], dict)  # a list if there are several processes
    assert kept[0]['loss'] == {} and kept[0]['scaler'] is None and list(kept[0]['callbacks']) == ['counted']
    learn.loss_func = lambda logits, targets: 0.  # not a module
    assert learner_state(learn)['loss'] == {}
    assert kept[0]['recorder']['losses'] is not None


def test_a_state_of_before_the_first_step_is_whole(tmp_path):
    "As the checkpoint of a fit whose first epoch was cancelled"
    kept = []
    class Keep(Callback):
        order = 999
        def before_epoch(self): kept.append(learner_state(self.learn, 0))
    fit(learner(Keep()), [], 1)
    again = load_state(save_state(tmp_path/'s', kept[0]))
    assert again['recorder']['losses'] is None
    class Load(Callback):
        order = 999
        def before_epoch(self): load_learner_state(self.learn, again)
    assert fit(learner(Load()), [], 1).recorder.losses


# ---- when a checkpoint is written, and which are kept

class Spy(Checkpoint):
    "Notes the checkpoints that are due, and writes none"
    def save(self, batch=0):
        self.notes = [*getattr(self, 'notes', []), (self.learn.train_iter, batch)]
        self.last, self.pending = self.clock(), False


class Ticks(Callback):
    "Moves a clock by so many seconds a step, and so many a validation"
    order = 0
    def __init__(self, step, validation): self.step, self.validation, self.now = step, validation, 0.
    def after_batch(self): self.now += self.step*self.training
    def after_validate(self): self.now += self.validation


@pytest.mark.parametrize('every,want', [
    (1, [(1, 1), (2, 2), (3, 0), (4, 1), (5, 2), (6, 0)]), (2, [(2, 2), (3, 0), (4, 1), (6, 0)]),
    (4, [(3, 0), (4, 1), (6, 0)]), (100, [(3, 0), (6, 0)])])
def test_checkpoints_come_every_so_many_steps_and_after_each_epoch(tmp_path, every, want):
    saved = Spy(tmp_path, every, write=lambda o: None)
    fit(learner(), saved)
    assert saved.notes == want


@pytest.mark.parametrize('step,validation,minutes,want', [
    (0, 0, 10., [(6, 0)]),                                  # a fit that is short
    (60, 0, 2., [(2, 2), (4, 1), (6, 0)]),                  # exactly two minutes are enough
    (59.9, 0, 2., [(3, 0), (6, 0)]),                        # a little less is not: due in the last step of an epoch
    (0, 120, 2., [(3, 0), (6, 0)]),                         # a long validation
    (1, 0, 0., [(1, 1), (2, 2), (3, 0), (4, 1), (5, 2), (6, 0)])])
def test_checkpoints_come_every_so_many_minutes_and_at_the_end(tmp_path, step, validation, minutes, want):
    ticks = Ticks(step, validation)
    saved = Spy(tmp_path, minutes=minutes, write=lambda o: None, clock=lambda: ticks.now)
    fit(learner(ticks), saved)
    assert saved.notes == want


def test_no_checkpoint_while_gradients_accumulate(tmp_path):
    saved = Spy(tmp_path, 1, write=lambda o: None)
    fit(learner(GradientAccumulation(8)), saved)  # a step of two batches, of which there are three in an epoch
    assert saved.notes == [(2, 2), (4, 1), (6, 0)]


def at_step(folder, n, keep=2, **kw):
    "A checkpoint that is about to be written after step `n`"
    saved = checkpoint(folder, keep=keep, clock=lambda: 7., **kw)
    saved.learn, saved.began = SimpleNamespace(train_iter=n), 5.
    return saved


@pytest.mark.parametrize('keep,want', [(1, [8]), (2, [4, 8]), (3, [3, 4, 8]), (9, [1, 3, 4, 8])])
def test_later_checkpoints_are_of_an_earlier_attempt_and_go(tmp_path, keep, want):
    "Resumed from step 4 since 9 and 12 were damaged: they must not be found by the next resumption"
    for n in (1, 3, 4, 9, 12): save_state(tmp_path/f'{n:08d}', dict(step=n))
    saved = at_step(tmp_path, 8, keep)
    saved.write_state(dict(step=8))
    assert [n for n, _ in saved.saved()] == want
    assert saved.newest()['step'] == 8


def test_a_resumed_fit_clears_away_what_the_damaged_attempt_had_written(tmp_path, whole):
    fit(learner(), checkpoint(tmp_path/'c', keep=9))
    for n in (5, 6): (tmp_path/'c'/f'{n:08d}'/TENSORS).write_bytes(b'damaged')
    lines = []
    with pytest.raises(Killed):
        fit(learner(KillAt(1)), checkpoint(tmp_path/'c', write=lines.append, keep=9))
    for n, line in zip((6, 5), lines):
        assert f'{n:08d}/{TENSORS} does not agree' in line and 'before it is used' in line
    assert lines[2:] == ['resuming after step 4, in epoch 2 of 2']
    assert [n for n, _ in checkpoint(tmp_path/'c').saved()] == [1, 2, 3, 4, 5]
    assert outcome(fit(learner(), checkpoint(tmp_path/'c'))) == whole


def test_a_checkpoint_that_someone_else_deletes_ends_no_fit(tmp_path):
    class Racing(Checkpoint):
        def saved(self): return [(1, self.folder/'00000001'), *super().saved()]
    saved = Racing(tmp_path, 1, keep=1)
    saved.learn, saved.began = SimpleNamespace(train_iter=2), saved.clock()
    saved.write_state({})
    assert [n for n, _ in Checkpoint.saved(saved)] == [2]


def test_only_folders_that_are_numbers_are_checkpoints(tmp_path):
    assert Checkpoint(tmp_path/'none').saved() == []
    for n in ('00000002', '100000000', '99999999', '1', 'best', '00000003x'): (tmp_path/n).mkdir()
    (tmp_path/'00000004').write_text('a file')
    assert [n for n, _ in Checkpoint(tmp_path).saved()] == [2, 99999999, 100000000]


def test_training_time_goes_on_where_it_ended(tmp_path):
    ticks = Ticks(10., 0.)
    saved = checkpoint(tmp_path/'c', clock=lambda: ticks.now)
    with pytest.raises(Killed): fit(learner(ticks, KillAt(2)), saved)
    assert saved.seconds == 20 and load_state(tmp_path/'c'/'00000002')['seconds'] == 20
    ticks = Ticks(10., 0.)
    ticks.now = 1000.
    saved = checkpoint(tmp_path/'c', clock=lambda: ticks.now)
    fit(learner(ticks), saved)
    assert saved.seconds == 60 and load_state(tmp_path/'c'/'00000006')['seconds'] == 60
    fit(learner(ticks), checkpoint(tmp_path/'d', clock=lambda: ticks.now))
    again = checkpoint(tmp_path/'c', clock=lambda: ticks.now)
    fit(learner(ticks), again)
    assert again.seconds == 60  # finished: nothing is added


def test_a_second_fit_with_one_checkpoint_starts_anew(tmp_path):
    ticks = Ticks(10., 0.)
    saved = Spy(tmp_path, minutes=100., resume=True, write=lambda o: None, clock=lambda: ticks.now)
    fit(learner(ticks), saved)
    saved.earlier, saved.pending, saved.mid_epoch = 50., True, dict(at={})
    learn = learner(ticks)
    learn.resumed_at = .7
    fit(learn, saved)
    assert saved.notes == [(6, 0), (6, 0)] and learn.resumed_at == 0 and saved.seconds == 60


def test_a_validation_neither_resumes_nor_saves(tmp_path):
    learn, saved = learner(), checkpoint(tmp_path)
    fit(learn, saved)
    learn.add_cb(saved)
    for p in learn.model.parameters(): p.data.fill_(.5)
    before = saved.saved()
    learn.validate()
    assert all((p == .5).all() for p in learn.model.parameters()) and saved.saved() == before


# ---- settings and refusals

def test_what_a_checkpoint_is_by_default(tmp_path, capsys):
    saved = Checkpoint(str(tmp_path))
    assert (saved.every, saved.minutes, saved.keep, saved.resume) == (None, 10., 2, False)
    saved.write('a line') # printed, by whatever other libraries have put in the place of `print`
    assert capsys.readouterr().out == 'a line\n'
    assert (saved.folder, saved.mid_epoch, saved.earlier, saved.pending) == (tmp_path, None, 0., False)
    assert all(Checkpoint.order > o.order for o in (KeepBest, StepRecorder, Counted))
    for every, minutes, keep in ((0, 10., 2), (-1, 10., 2), (None, -.1, 2), (1, 10., 0), (None, 10., -1)):
        with pytest.raises(ValueError, match=f'got {every}, {minutes}, {keep}'):
            Checkpoint(tmp_path, every, minutes, keep)
    for every, minutes, keep in ((1, 10., 1), (None, 0., 1), (None, .5, 9)): Checkpoint(tmp_path, every, minutes, keep)


def test_a_folder_with_checkpoints_is_resumed_on_request_only(tmp_path):
    assert Checkpoint(tmp_path/'new').started() is None and checkpoint(tmp_path/'new').started() is None
    save_state(tmp_path/'c'/'00000003', dict(step=3))
    assert checkpoint(tmp_path/'c').started() == dict(step=3)
    with pytest.raises(CheckpointError, match='has checkpoints of a fit: give resume=True'):
        Checkpoint(tmp_path/'c').started()
    (tmp_path/'c'/'00000003'/STATE).unlink()
    lines = []
    with pytest.raises(CheckpointError, match='none of the 1 checkpoints in .* can be read; delete the folder'):
        checkpoint(tmp_path/'c', write=lines.append).started()
    assert len(lines) == 1 and 'The checkpoint before it is used' in lines[0]


def changed(s, **at): return {**s, 'at': {**s['at'], **at}}

@pytest.mark.parametrize('change,message', [
    (lambda s: changed(s, epochs=7), 'a fit of 7 epochs, this one has 2'),
    (lambda s: {**s, 'callbacks': {}}, 'with other callbacks: counted$'),
    (lambda s: {**s, 'callbacks': {**s['callbacks'], 'more': {}}}, 'with other callbacks: more$'),
    (lambda s: {**s, 'scaler': dict(scale=1.)}, 'of a fit in another precision'),
    (lambda s: {**s, 'weights': {k: v for k, v in s['weights'].items() if k != 'body.0.bias'}},
     'another network: body.0.bias is not as here'),
    (lambda s: {**s, 'weights': {**s['weights'], 'more': torch.ones(1)}}, 'another network: more is not as here'),
    (lambda s: {**s, 'weights': {**s['weights'], 'body.0.bias': torch.ones(5)}}, 'another network: body.0.bias is not'),
    (lambda s: {**s, 'weights': {**s['weights'], 'body.0.bias': s['weights']['body.0.bias'].half()}},
     'another network: body.0.bias is not as here')])
def test_a_state_of_another_fit_is_refused_and_changes_nothing(tmp_path, change, message):
    kept = []
    class Keep(Callback):
        order = 999
        def after_epoch(self): kept.append(save_state(tmp_path/f'{self.epoch}', learner_state(self.learn)))
    learn = fit(learner(Keep()), [])
    state = load_state(kept[0])  # of the first epoch
    before = plain(learn.model.state_dict())
    with pytest.raises(CheckpointError, match=message): load_learner_state(learn, change(state))
    assert plain(learn.model.state_dict()) == before
    load_learner_state(learn, state)
    assert plain(learn.model.state_dict()) != before


class Precision(Callback):
    "A scaler without half precision"
    def before_fit(self): self.learn.scaler = SimpleNamespace(state_dict=dict, load_state_dict=print)

def test_a_state_without_a_scale_is_refused_where_there_is_one(tmp_path):
    fit(learner(), checkpoint(tmp_path/'c'))
    with pytest.raises(CheckpointError, match='in another precision'):
        fit(learner(Precision()), checkpoint(tmp_path/'c'))


def test_other_learners_and_loaders_are_refused(tmp_path):
    good, plain_dl = learner(), DataLoaders(list(range(4)), list(range(4)))
    other = HICCAPLearner(plain_dl, nn.Linear(1, 1), nn.MSELoss())
    for learn, said in ((other, 'got HICCAPLearner and list'),
                        (SimpleNamespace(dls=good.dls), 'got SimpleNamespace and ClipDL')):
        saved = Checkpoint(tmp_path/'c')
        saved.learn = learn
        with pytest.raises(TypeError, match=said): saved.before_fit()


@pytest.mark.parametrize('what', ['lr_finder', 'gather_preds'])
def test_a_probe_of_the_learner_is_not_a_fit(tmp_path, what):
    saved = Checkpoint(tmp_path/'c')
    saved.learn = SimpleNamespace(**{what: 1})
    saved.before_fit()
    assert saved.run is False
    save_state(tmp_path/'c'/'00000003', {})
    saved.before_fit()  # also where there are checkpoints of a fit
    assert not hasattr(saved, 'began')


def test_a_state_that_earlier_versions_wrote_is_read_and_a_later_format_is_refused(tmp_path):
    folder = save_state(tmp_path/'s', dict(a=1, b=torch.arange(3)))
    d = json.loads((folder/STATE).read_text())
    assert d['format'] == 1 and d['versions']['hiccap']
    write_sealed(tmp_path/'t', STATE, dict(format=2, versions={}, state=d['state']), {TENSORS: {}})
    with pytest.raises(CheckpointError, match="has format 2.*this hiccap reads format 1"): load_state(tmp_path/'t')
    for state in ({}, dict(tensor='lost'), dict(value=1, more=2), dict(long=dict(value=1))):
        write_sealed(tmp_path/'u', STATE, dict(format=1, versions={}, **(dict(state=state) if state else {})),
                     {TENSORS: {}})
        if state != dict(value=1, more=2):
            with pytest.raises(CheckpointError, match='does not hold what a state holds'): load_state(tmp_path/'u')


# ---- random numbers and several processes

def test_random_numbers_of_one_process_come_back_and_of_another_number_are_drawn_anew(tmp_path):
    learn, lines = learner(seed=5), []
    learn.fits = 2
    saved = checkpoint(tmp_path, write=lines.append)
    saved.learn = learn
    torch.manual_seed(4)
    state = random_state()
    want = torch.rand(3)
    for random in (state, [state]):
        torch.manual_seed(0)
        saved.load_generators(dict(random=random))
        assert torch.equal(torch.rand(3), want)
    assert not lines
    saved.load_generators(dict(random=[state, state], at=dict(step=9)))
    assert lines == ['the state is of 2 processes, here there is 1: dropout differs from here on']
    # a seed of 62 bits, from the learner's seed, its fits, the step and the process
    assert torch.initial_seed() == int(np.random.default_rng([5, 2, 9, 0]).integers(2**62))


STATES = dict(none=None, one=dict(a=torch.arange(3.), b=[torch.ones(2).long(), 'x'], c=dict(d=1.5)))

def _rank(rank, port, folder):
    "One of two processes; only the first one has the folder's checkpoint, and its clock decides"
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank),
                      WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', ACCELERATE_USE_CPU='true')
    with processes():
        out = {k: plain(state_from_main(s if rank == 0 else None)) for k, s in STATES.items()}
        out['types'] = str(state_from_main(STATES['one'] if rank == 0 else None)['b'][0].dtype)
        lines = []
        saved = Checkpoint(os.path.join(folder, 'c' if rank == 0 else 'lost'), resume=True, write=lines.append,
                           clock=lambda: 600. if rank == 0 else 0.)
        out['started'], saved.last = plain(saved.started_anywhere()), 0.
        out['due'] = saved.is_time()
        saved.log('once')
        out['lines'] = lines
        saved.learn = learner()
        with torch.random.fork_rng(): out['random'] = len(module._random_states(saved.learn.model))
        saved.load_generators(dict(random=[random_state()], at=dict(step=9)))
        out['seed'] = torch.initial_seed()
    with open(os.path.join(folder, f'{rank}.json'), 'w') as f: json.dump(out, f)


def test_two_processes_resume_from_the_first_one_s_disk_and_clock(tmp_path):
    save_state(tmp_path/'c'/'00000003', dict(step=3, x=torch.ones(2)))
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    torch.multiprocessing.start_processes(_rank, (port, str(tmp_path)), 2, start_method='fork')
    a, b = (json.loads((tmp_path/f'{r}.json').read_text()) for r in (0, 1))
    for o in (a, b):
        assert o['none'] is None and o['one'] == plain(STATES['one']) and o['types'] == 'torch.int64'
        assert o['started'] == dict(step=3, x=[1, 1]) and o['due'] is True and o['random'] == 2
    assert a['seed'] != b['seed'] and b['lines'] == [] and a['lines'][0] == 'once'
    seeds = [int(np.random.default_rng([3, 0, 9, r]).integers(2**62)) for r in (0, 1)]
    assert [a['seed'], b['seed']] == seeds
