"""Where the time of a fit goes: measured exactly, without changing the fit, and added up over interruptions."""
import json

import numpy as np
import pytest
import torch
from fastai.callback.training import GradientAccumulation
from fastai.callback.core import Callback
from torch import nn

from conftest import TINY_NETWORK
from hiccap.callbacks import PHASES, ClipGradients, HostClock, StepRecorder, TimeSpent
from hiccap.clips import Clip, ClipDataset
from hiccap.learner import clip_dls, hiccap_learner
from hiccap.losses import MultiTaskLoss
from hiccap.reports import time_section
from hiccap.resuming import Checkpoint
from hiccap.runs import Run
from hiccap.tasks import Task
from hiccap.training import train_run
from test_resume import Killed, Once

TASKS = [Task('loud')]
BS, EPOCHS = 4, 3


def clips(n, start=0):
    rng = np.random.default_rng(start)
    return ClipDataset.from_clips([Clip(f'v{start + i}_0', video=rng.normal(size=(3, 4)).astype(np.float32),
                                        labels=dict(loud=i % 2)) for i in range(n)], TASKS)


TRAIN, VALID = clips(14), clips(7, 100)  # 4 batches and 2


class Clock(HostClock):
    "A clock that stands still unless something takes time"
    now = 0.
    def mark(self): return self.now


class Slow(torch.autograd.Function):
    "Takes 4 s in the backward pass"
    @staticmethod
    def forward(ctx, x, clock):
        ctx.clock = clock
        return x.clone()
    @staticmethod
    def backward(ctx, grad):
        ctx.clock.now += 4
        return grad, None


class Net(nn.Module):
    "Takes 2 s in the forward pass"
    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.head = nn.Sequential(nn.Linear(4, 8), nn.Dropout(.3), nn.Linear(8, 2))
    def forward(self, inputs):
        self.clock.now += 2
        return dict(loud=Slow.apply(self.head(inputs['video'].mean(1)), self.clock))


class Others(Callback):
    "Take 8 s before a step, and 100 s after a batch and an epoch"
    order = 50
    def __init__(self, clock): self.clock = clock
    def before_step(self): self.clock.now += 8
    def after_batch(self): self.clock.now += 100*self.training
    def after_epoch(self): self.clock.now += 100


def learner(cbs=(), measured=True, clock=None):
    clock = clock or Clock()
    dls = clip_dls(TRAIN, VALID, bs=BS, device='cpu')
    for dl in (dls.train, dls.valid):
        def create(rows, make=dl.create_batch):
            clock.now += 1
            return make(rows)
        dl.create_batch = create
    cbs = [*([TimeSpent(clock)] if measured else []), ClipGradients(.5), StepRecorder(), Others(clock), *cbs]
    return hiccap_learner(dls, Net(clock), MultiTaskLoss(TASKS), seed=3, cbs=cbs)


def fit(learn, saved=None, epochs=EPOCHS):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, .05, cbs=saved)
    return learn


STEPS = 4*EPOCHS
WHOLE = dict(clips=14*EPOCHS, seconds=dict(data=1.*STEPS, forward=2.*STEPS, backward=4.*STEPS, optimizer=8.*STEPS,
                                           validation=(1. + 2.)*2*EPOCHS))


def test_each_phase_gets_its_own_time_and_what_comes_after_a_batch_counts_to_none():
    assert fit(learner()).time_spent.state_dict() == WHOLE


def test_measuring_changes_nothing():
    with_it, without = fit(learner()), fit(learner(measured=False))
    for a, b in zip(with_it.model.parameters(), without.model.parameters()): assert torch.equal(a, b)
    assert with_it.recorder.values == without.recorder.values


def test_batches_of_one_step_have_their_own_passes_and_one_optimizer():
    learn = fit(learner(cbs=[GradientAccumulation(2*BS)]))
    assert learn.step_recorder.n_steps == 4  # of 42 clips, each of at least 8
    assert learn.time_spent.seconds == WHOLE['seconds'] | dict(optimizer=8.*4)
    assert learn.time_spent.clips == WHOLE['clips']


def test_a_fit_broken_off_after_every_step_adds_up_to_the_fit_that_was_not(tmp_path):
    for times in range(100):
        learn = learner()
        try: fit(learn, Once(tmp_path, every=1, resume=True, write=lambda o: None))
        except Killed: continue
        break
    assert times >= STEPS
    found = learn.time_spent.state_dict()
    # what had been done of the validation of an epoch is lost with it, and a validation is done again
    assert found == WHOLE | dict(seconds=WHOLE['seconds'] | dict(validation=found['seconds']['validation']))


def test_a_checkpoint_of_an_earlier_version_has_no_times_and_is_resumed(tmp_path):
    with pytest.raises(Killed): fit(learner(measured=False), Once(tmp_path, every=6, write=lambda o: None))
    learn = fit(learner(), Checkpoint(tmp_path, every=100, resume=True, write=lambda o: None))
    whole = fit(learner(measured=False))
    for a, b in zip(learn.model.parameters(), whole.model.parameters()): assert torch.equal(a, b)
    assert learn.time_spent.clips == WHOLE['clips'] - 14  # those since the first epoch


@pytest.mark.parametrize('probe', ['get_preds', 'validate', 'lr_find'])
def test_predictions_validations_and_a_search_for_a_learning_rate_are_not_part_of_a_fit(probe):
    learn = fit(learner())
    arguments = dict(num_it=20, show_plot=False) if probe == 'lr_find' else {}
    with learn.no_bar(), learn.no_logging(): getattr(learn, probe)(**arguments)
    assert learn.time_spent.state_dict() == WHOLE


def test_a_second_fit_is_measured_anew():
    learn = fit(learner())
    assert fit(learn, epochs=1).time_spent.clips == 14


class Queue(Clock):
    "A device that passes a mark when it is waited for, or two marks later"
    def __init__(self): self.marks, self.waited = 0, 0
    def mark(self):
        self.marks += 1
        return self.marks, self.now
    def passed(self, mark): return mark[0] <= self.marks - 2
    def between(self, a, b):
        self.waited += not self.passed(b)
        return b[1] - a[1]


def test_marks_of_a_device_are_read_when_it_has_passed_them():
    clock = Queue()
    learn = fit(learner(clock=clock))
    assert not clock.waited and learn.time_spent.pending  # nothing waited for the device during the fit
    assert learn.time_spent.state_dict() == WHOLE and clock.waited == 1
    assert not learn.time_spent.pending


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_gpu_is_measured_by_marks_in_its_queue():
    from hiccap.callbacks import GPUClock
    clock = GPUClock()
    a = clock.mark()
    torch.randn(4096, 4096, device='cuda').mm(torch.randn(4096, 4096, device='cuda'))
    b = clock.mark()
    assert clock.between(a, b) > 0 and clock.passed(b)


def test_a_report_has_the_throughput_and_a_line_for_each_phase(tmp_path):
    run = Run.flat(data='synthetic', synthetic=dict(n=60, scale=.1), epochs=2, bs=16, threads=1, config=TINY_NETWORK,
                   simple_models=(), folds=2)
    train_run(run, tmp_path/'run', write=lambda o: None)
    metrics = json.loads((tmp_path/'run'/'metrics.json').read_text())
    for t, seconds, sizes in zip(metrics['time'], metrics['seconds']['training'], metrics['clips']):
        assert t['clips'] == 2*sizes['training'] and list(t['seconds']) == list(PHASES)
        assert all(v > 0 for v in t['seconds'].values()) and sum(t['seconds'].values()) <= seconds
    text = (tmp_path/'run'/'report.md').read_text()
    spent = {k: sum(t['seconds'][k] for t in metrics['time']) for k in PHASES}
    n = sum(t['clips'] for t in metrics['time'])
    assert f"{n/(sum(spent.values()) - spent['validation']):.1f} clips a second" in text
    for k, v in spent.items(): assert f'- {k}: {v:.1f} s (' in text
    assert '- rest: ' in text


def test_a_training_that_was_not_measured_has_no_lines():
    assert time_section([WHOLE, None], 10.) == [] == time_section([dict(WHOLE, clips=0)], 10.)
    lines = time_section([WHOLE, WHOLE], 1e4)[2].splitlines()
    assert lines[1] == f'- forward: {4*STEPS:.1f} s ({4*STEPS/1e4:.0%})' and lines[-1].startswith('- rest: ')
