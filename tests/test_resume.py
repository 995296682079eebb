"""A killed fit resumes and ends like one that was not killed:
fits interrupted after every step, programs ended by SIGKILL, damaged files, full disks."""
import errno
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.training import GradientAccumulation
from fastai.callback.core import Callback
from fastcore.foundation import L
from hypothesis import given, settings, strategies as st
from torch import nn

from conftest import TINY_NETWORK
import hiccap.policies
import hiccap.states
import hiccap.cli
from hiccap.callbacks import AddRegularizer, ClipGradients, KeepBest, StepRecorder
from hiccap.nan_detector import NanDetector
from hiccap.basics import whole_folder
from hiccap.checkpoints import CheckpointError
from hiccap.clips import Clip, ClipDataset
from hiccap.runs import Run
from hiccap.run_folders import partial_folder
from hiccap.training import train_run
from hiccap.inference import load_run
from hiccap.learner import HICCAPLearner, clip_dls, hiccap_learner
from hiccap.losses import MultiTaskLoss, Regularizer
from hiccap.modalities import ShowModalities
from hiccap.resuming import STATE, TENSORS, Checkpoint, load_state, save_state
from hiccap.mixture import Mixture, MixtureDL, Stream
from hiccap.feedback import MixtureFeedback
from hiccap.tasks import Task
from hiccap.weighting import WEIGHTINGS, Weigh

pytestmark = pytest.mark.hard
NIGHTLY = os.environ.get('HYPOTHESIS_PROFILE') == 'nightly'
TASKS = [Task('loud'), Task('said')]


# ---- fits that are broken off after every checkpoint

def clips(n, seed, start=0):
    rng = np.random.default_rng(seed)
    def one(i):
        y = rng.integers(2, size=2)
        return Clip(f'v{start + i}_0', text=rng.integers(5, 30, rng.integers(2, 6)).tolist(),
                    video=rng.normal(size=(3, 4)).astype(np.float32) + y[0],
                    labels=dict(loud=int(y[0]), said=int(y[1])))
    return ClipDataset.from_clips([one(i) for i in range(n)], TASKS)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.body, self.norm, self.heads = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3)),
                                                nn.BatchNorm1d(8),
                                                nn.ModuleDict({t.name: nn.Linear(8, 2) for t in TASKS}))

    def forward(self, inputs):
        real = inputs['video_mask'][..., None]
        x = self.norm(self.body((inputs['video']*real).sum(1)/real.sum(1).clamp(min=1)))
        return {k: head(x) for k, head in self.heads.items()}


class Killed(BaseException): pass

class Once(Checkpoint):
    "A kill right after a checkpoint"
    def save(self, batch=0):
        Checkpoint.save(self, batch)
        raise Killed()

class Spoil(Callback):
    "Infinite gradients in two steps that follow each other, where `NanDetector` can see them"
    order, run_valid = 60, False
    def before_step(self):
        if self.learn.train_iter in (5, 6): next(self.learn.model.parameters()).grad[0] = math.inf


TRAIN, VALID = clips(14, 0), clips(7, 1, 100)

def plain(workers=0, cbs=(), **kwargs):
    dls = clip_dls(TRAIN, VALID, bs=4, device='cpu', num_workers=workers)
    cbs = [ClipGradients(0.5), NanDetector('rollback', folder=None, keep_every=3), KeepBest('valid_loss'),
           StepRecorder(), *cbs]
    return hiccap_learner(dls, Net(), MultiTaskLoss(TASKS), lr=.05, seed=3, cbs=cbs, **kwargs)

def with_train_metrics():
    learn = plain()
    learn.recorder.train_metrics = True
    return learn

def mixed():
    "Two streams whose shares follow their losses"
    streams = [Stream('a', clips(9, 2), TASKS[:1]), Stream('b', clips(13, 3, 50), TASKS[1:])]
    mix = Mixture(
        streams, hiccap.policies.policy('dynamic_difficulty', k=2, relative='start', smooth=0.3), bs=6, lag=2, seed=1)
    from fastai.basics import DataLoaders
    dls = clip_dls(TRAIN, VALID, bs=4, device='cpu')
    return hiccap_learner(
        DataLoaders(MixtureDL(mix, steps=4, device='cpu'), dls.valid, device='cpu'), Net(), MultiTaskLoss(TASKS),
        lr=0.05, seed=3,
        cbs=[ClipGradients(0.5), NanDetector(folder=None), KeepBest('valid_loss'), StepRecorder(), MixtureFeedback()])

KINDS = dict(
    plain=plain,
    train_metrics=with_train_metrics,
    mixture=mixed,
    rollback=lambda: plain(cbs=[Spoil()]),
    accumulated=lambda: plain(cbs=[GradientAccumulation(8)]),
    bf16=lambda: plain().to_bf16(),
    fp16=lambda: plain().to_fp16(init_scale=2.0**10, growth_interval=3),
    penalty=lambda: plain(cbs=[AddRegularizer(Regularizer('norm', 0.1))]),
    modalities=lambda: plain(cbs=[ShowModalities('dropout', 3)]),
    time_masks=lambda: plain(cbs=[ShowModalities('time_masks', 3)]),
    **{n: lambda n=n: plain(cbs=[Weigh(n, representation=['norm'])])
       for n in (list(WEIGHTINGS) if NIGHTLY else ('dwa', 'famo', 'graddrop'))}
)

def fit(learn, saved, epochs=3):
    with warnings.catch_warnings(), learn.no_bar(), learn.no_logging():
        warnings.simplefilter('ignore')
        learn.fit_one_cycle(epochs, .05, cbs=saved)
    return learn

def outcome(learn):
    "Whatever a fit leaves, to compare; NaN is made text, since it equals nothing"
    r, cb = learn.recorder, {o.name: o for o in learn.cbs}
    more = {
        k: cb[k].state_dict()
        for k in ('clip_gradients', 'keep_best', 'nan_detector', 'step_recorder', 'mixture_feedback', 'weigh',
                  'show_modalities')
        if k in cb
    }
    torch.set_printoptions(precision=17)
    return str(
        _numbers(
            dict(weights=learn.model.state_dict(), moments=learn.opt.state_dict(), losses=r.losses, lrs=r.lrs,
                 iters=r.iters, values=r.values, hps=r.hps, fits=learn.fits, loader=learn.dls.train.state_dict(),
                 **more)
        )
    )

def _numbers(x):
    "With NumPy's numbers as Python's, which have the same bits"
    if isinstance(x, dict): return {k: _numbers(v) for k, v in x.items()}
    if isinstance(x, (list, tuple, L)): return list(map(_numbers, x))
    return x.item() if isinstance(x, np.generic) else x

@pytest.mark.parametrize('kind', KINDS)
def test_a_fit_broken_off_after_every_step_is_the_fit_that_was_not(tmp_path, kind):
    want, steps = outcome(fit(KINDS[kind](), Checkpoint(tmp_path/'whole', every=1, write=lambda o: None))), []
    for _ in range(100):
        learn = KINDS[kind]()
        try: fit(learn, Once(tmp_path/'cut', every=1, resume=True, write=steps.append))
        except Killed: continue
        break
    assert outcome(learn) == want
    assert len(steps) >= (5 if kind == 'accumulated' else 12)  # each line is one resumption


@pytest.mark.parametrize('workers', [0, 2])
def test_workers_and_distances_change_nothing(tmp_path, workers):
    want = outcome(fit(plain(), Checkpoint(tmp_path/'whole', every=100)))
    for every in (1, 3):
        with pytest.raises(Killed):
            learn = plain(2 - workers)
            learn.add_cb(KillAt(6))
            fit(learn, Checkpoint(tmp_path/f'{every}', every=every))
        learn = plain(workers); learn.add_cb(KillAt(math.inf))
        assert outcome(fit(learn, Checkpoint(tmp_path/f'{every}', every=every, resume=True))) == want

class KillAt(Callback):
    "A kill in the middle of a step"
    order = 45
    def __init__(self, step): self.step = step
    def after_loss(self):
        if self.learn.training and self.learn.train_iter == self.step: raise Killed()


def test_the_folder_of_the_best_weights_is_gone_on_with(tmp_path):
    "If the fit is resumed, without overwrite; a folder that existed before the fit is not its own"
    from hiccap.checkpoints import load_model, save_model
    from hiccap.model import HICCAP, HICCAPConfig
    def start(saved, keep, stop=math.inf):
        net = HICCAP(
            HICCAPConfig.from_dict(
                dict(text=dict(kind='features', width=4, hidden=4, layers=1),
                     video=dict(kind='features', width=4, hidden=4, layers=1),
                     audio=dict(kind='features', width=4, hidden=4, layers=1), width=8, heads=2, head_widths=[8])
            ),
            TASKS,
            seed=0,
        )
        video = [
            ClipDataset.from_clips([Clip(o.ids[i], video=o[i].video, labels=o[i].labels) for i in range(len(o))], TASKS)
            for o in (TRAIN, VALID)]
        learn = hiccap_learner(clip_dls(*video, bs=4, device='cpu'), net, MultiTaskLoss(TASKS), lr=0.05, seed=3,
                               cbs=[KeepBest('valid_loss', folder=keep), KillAt(stop)])
        return fit(learn, Checkpoint(saved, every=1, resume=True, write=lambda o: None))
    with pytest.raises(Killed): start(tmp_path/'c', tmp_path/'best', 6)
    assert (tmp_path/'best').exists()
    learn = start(tmp_path/'c', tmp_path/'best')
    best = load_model(tmp_path/'best').state_dict()
    assert all(torch.equal(v, best[k]) for k, v in learn.model.state_dict().items())
    save_model(learn.model, tmp_path/'other')
    with pytest.raises(CheckpointError, match='holds something already'): start(tmp_path/'d', tmp_path/'other')


def test_only_so_many_stay_and_minutes_count(tmp_path):
    now = [0.]
    class Ticking(Callback):
        order, run_valid = 0, False
        def after_batch(self): now[0] += 30
    learn = plain(cbs=[Ticking()])
    fit(learn, Checkpoint(tmp_path/'a', minutes=1.5, keep=3, clock=lambda: now[0]))
    assert [n for n, _ in Checkpoint(tmp_path/'a').saved()] == [6, 9, 12]      # every third step, and the last
    fit(plain(), Checkpoint(tmp_path/'b', minutes=10))
    assert [n for n, _ in Checkpoint(tmp_path/'b').saved()] == [12]            # none but the last, where a fit is short


# ---- what is on disk

leaves = st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(), st.text(max_size=5),
                   st.lists(st.floats(width=32), max_size=4).map(torch.tensor),
                   st.integers(0, 5).map(lambda n: torch.arange(n).reshape(n, 1)),
                   st.floats(width=32).map(torch.tensor), st.lists(st.floats(), max_size=3).map(np.array),
                   st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3).map(lambda o: np.array(o, np.uint32)))
states = st.dictionaries(
    st.text(max_size=5) | st.integers(),
    st.recursive(leaves, lambda o: st.lists(o, max_size=3) | st.lists(o, max_size=3).map(tuple)
                 | st.dictionaries(st.text(max_size=3) | st.integers(), o, max_size=3), max_leaves=8),
    max_size=4,
)

def same(a, b):
    if isinstance(a, torch.Tensor):
        return (isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape
                and a.numpy().tobytes() == b.numpy().tobytes())
    if isinstance(a, np.ndarray): return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, dict): return type(b) is dict and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a and b != b) and str(a) == str(b)

@given(states)
@settings(max_examples=300 if NIGHTLY else 25)
def test_a_state_comes_back_as_it_was(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp('s')
    assert same(load_state(save_state(folder/'s', state)), state)
    shutil.rmtree(folder)


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "Two checkpoints of a fit"
    folder = tmp_path_factory.mktemp('two')
    learn = plain(); learn.add_cb(KillAt(6))
    with pytest.raises(Killed): fit(learn, Checkpoint(folder/'c', every=1))
    return folder/'c', {p: p.read_bytes() for p in (folder/'c').rglob('*') if p.is_file()}

@given(st.sampled_from([STATE, TENSORS]), st.floats(0, 1, exclude_max=True), st.integers(0, 255))
@settings(max_examples=1000 if NIGHTLY else 40)
def test_any_byte_changed_and_any_cut_is_told_and_the_one_before_used(two, name, at, mask):
    folder, files = two
    older, newer = (p for _, p in Checkpoint(folder).saved())
    path = newer/name
    for p, b in files.items(): p.write_bytes(b)
    good, data = load_state(newer), bytearray(files[path])
    i = int(at*len(data))
    if mask: data[i] ^= mask
    else: del data[i:]
    path.write_bytes(data)
    lines = []
    found = Checkpoint(folder, write=lines.append).newest()
    if lines: assert len(lines) == 1 and str(path) in lines[0] and same(found, load_state(older))
    else: assert name == STATE and same(found, good)  # a digit's or blank's other spelling says the same


def test_what_another_process_writes_is_left_alone(tmp_path):
    if (pid := os.fork()) == 0:
        with whole_folder(tmp_path/'f') as part:
            (part/'x').write_text('theirs')
            (tmp_path/'begun').touch()
            time.sleep(60)
    try:
        while not (tmp_path/'begun').exists(): time.sleep(.01)
        with pytest.raises(FileExistsError, match='written by another process'):
            with whole_folder(tmp_path/'f'): pass
        assert (tmp_path/'.f.part'/'x').read_text() == 'theirs'
    finally: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
    with whole_folder(tmp_path/'f') as part: (part/'x').write_text('ours')
    assert (tmp_path/'f'/'x').read_text() == 'ours'


# ---- runs

SMALL = Run.flat(
    data='synthetic',
    synthetic=dict(n=100, scale=0.1),
    epochs=2,
    bs=8,
    threads=1,
    checkpoint_every=0,
    config=TINY_NETWORK,
)


NARROW = {'config.width': 16, 'config.heads': 2, 'config.head_widths': [16]}

def result(out, models=('model',)):
    "What a run came to, timings left out"
    out = Path(out)
    assert (not partial_folder(out).exists() and not out.with_name(out.name + '.replaced').exists()
            and not (out / 'checkpoints').exists())
    return {
        n: (out / n).read_bytes()
        for n in ('history.csv', 'predictions.csv', *(f'{m}/model.safetensors' for m in models))
    } | dict(files=sorted(p.name for p in out.iterdir()))

def stop_at(text, error=KeyboardInterrupt):
    def write(line):
        if text in line: raise error()
    return write

@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "A run that nothing interrupts"
    out = tmp_path_factory.mktemp('alone')/'run'
    train_run(SMALL, out, write=lambda o: None)
    return result(out)


def test_finished_folds_are_not_trained_again(tmp_path):
    run, models = SMALL.but(folds=2, epochs=1), ('model/fold_1', 'model/fold_2')
    train_run(run, tmp_path/'whole', write=lambda o: None)
    with pytest.raises(KeyboardInterrupt): train_run(run, tmp_path/'cut', write=stop_at('Fold 2'))
    with pytest.raises(FileExistsError, match='cut.part holds a run that was interrupted'):
        train_run(run, tmp_path/'cut', write=lambda o: None)
    first = partial_folder(tmp_path/'cut')/'model'/'fold_1'/'model.safetensors'
    when, said = first.stat().st_mtime_ns, []
    train_run(run, tmp_path/'cut', write=said.append, resume=True)
    assert ('fold 1 was finished before' in said
            and (tmp_path / 'cut' / 'model' / 'fold_1' / 'model.safetensors').stat().st_mtime_ns == when)
    assert result(tmp_path/'cut', models) == result(tmp_path/'whole', models)
    said = []
    assert train_run(run, tmp_path/'cut', write=said.append, resume=True) is None and 'nothing left to do' in said[0]
    with pytest.raises(ValueError, match="has epochs 1, this one 2"):
        train_run(SMALL.but(folds=2, epochs=2), tmp_path/'cut', resume=True)


def test_another_run_and_other_data_are_told_apart(tmp_path):
    from hiccap.synthetic import synthetic_clips, write_synthetic
    table = write_synthetic(synthetic_clips(n=90, scale=.1), tmp_path/'data')
    run = SMALL.but(data=str(table), synthetic={}, labels=['said'], features=str(tmp_path / 'data' / 'features'),
                  tokenizer=str(tmp_path / 'data' / 'tokenizer'), epochs=2,
                  **{'config.text.config.vocab_size': 512})
    with pytest.raises(KeyboardInterrupt): train_run(run, tmp_path/'run', write=stop_at('epoch 2/2'))
    with pytest.raises(ValueError, match='has seed 0, this one 1'):
        train_run(run.but(seed=1), tmp_path/'run', resume=True)
    text = table.read_text()
    table.write_text(text.replace(text.splitlines()[1].split(',')[0], 'v999_9'))
    with pytest.raises(ValueError, match='clips, .* of the .* clips are not what they were'):
        train_run(run, tmp_path/'run', resume=True)
    table.write_text(text)
    assert hiccap.cli.train(['--out', str(tmp_path/'run'), '--resume']) == 0  # the run is in its folder
    assert load_run(tmp_path/'run').run == run


def test_pretraining_resumes_as_well(tmp_path):
    from hiccap.pretraining_runs import PretrainRun, pretrain_run, write_example
    run = PretrainRun.from_yaml(write_example(tmp_path/'data', n=150))
    run = run.but(epochs=2, checkpoint_every=0, **NARROW)
    pretrain_run(run, tmp_path/'whole', write=lambda o: None)
    with pytest.raises(KeyboardInterrupt): pretrain_run(run, tmp_path/'cut', write=stop_at('epoch 2/2'))
    with pytest.raises(FileExistsError, match='--resume'): pretrain_run(run, tmp_path/'cut')
    with pytest.raises(ValueError, match="has policy .*, this one 'uniform'"):
        pretrain_run(run.but(policy='uniform'), tmp_path/'cut', resume=True)
    said = []
    pretrain_run(run, tmp_path/'cut', write=said.append, resume=True)
    assert any(o.startswith('resuming after step') for o in said)
    for name in ('history.csv', 'shares.csv', 'predictions.csv', 'model/model.safetensors'):
        assert (tmp_path/'cut'/name).read_bytes() == (tmp_path/'whole'/name).read_bytes()
    assert sorted(p.name for p in (tmp_path/'cut').iterdir()) == sorted(p.name for p in (tmp_path/'whole').iterdir())
    assert pretrain_run(run, tmp_path/'cut', write=said.append, resume=True) is None


def test_a_full_disk_stops_a_run_with_what_it_had(tmp_path, alone, monkeypatch):
    write, left = hiccap.states.save_tensors, [9]
    def full(tensors, path):
        left[0] -= 1
        if left[0] < 0:
            Path(path).write_bytes(b'half')
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(tensors, path)
    monkeypatch.setattr(hiccap.states, 'save_tensors', full)
    with pytest.raises(OSError, match='2 earlier ones are whole: free some space, and resume'):
        train_run(SMALL, tmp_path/'run', write=lambda o: None)
    monkeypatch.setattr(hiccap.states, 'save_tensors', write)
    train_run(SMALL, tmp_path/'run', write=lambda o: None, resume=True)
    assert result(tmp_path/'run') == alone


# ---- whole programs

PROGRAM = '''
import json, os, resource, sys
import matplotlib.pyplot, pandas, sklearn.linear_model, sklearn.feature_extraction.text, transformers
import hiccap.callbacks, hiccap.checkpoints, hiccap.cli, hiccap.inference, hiccap.learner, hiccap.metrics
import hiccap.pretraining_runs, hiccap.resuming, hiccap.synthetic, hiccap.training
print('ready', flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if pid := os.fork():
        print(pid, flush=True)
        sys.stdin.readline()
        print(os.waitpid(pid, 0)[1], flush=True)
        continue
    log = os.open(order['log'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1); os.dup2(log, 2)
    if order['limit']: resource.setrlimit(resource.RLIMIT_FSIZE, (order['limit'], order['limit']))
    status = getattr(hiccap.cli, order['command'])(order['args'])
    sys.stdout.flush()
    os._exit(status)
'''

@pytest.fixture(scope='module')
def program(tmp_path_factory):
    """`hiccap_train`, or another command, in a fork of a process that has imported everything.
    Called with arguments, and the seconds after which it is killed.
    Returns whether it was killed, its status and its output"""
    home = tmp_path_factory.mktemp('program')
    (home/'run.yaml').write_text(SMALL.to_yaml())
    parent = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', PROGRAM], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True,
                              env={**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg'})
    assert parent.stdout.readline() == 'ready\n'
    def call(*args, after=None, limit=0, command='train'):
        log = home/'log'; log.write_text('')
        parent.stdin.write(
            json.dumps(
                dict(command=command,
                     args=[*(['--run', str(home / 'run.yaml')] if command == 'train' else []), *map(str, args)],
                     log=str(log), limit=limit)
            )
            + '\n'
        )
        parent.stdin.flush()
        pid = int(parent.stdout.readline())
        if after is not None:
            time.sleep(after)
            os.kill(pid, signal.SIGKILL)  # at most a zombie, since its parent waits to be told
        parent.stdin.write('wait\n'); parent.stdin.flush()
        status = int(parent.stdout.readline())
        return os.WIFSIGNALED(status), status >> 8, log.read_text()
    yield call
    parent.stdin.close(); parent.wait()


KILLS = 20 if NIGHTLY else 3

def kill_at_random(begin, takes, same, kills, rng):
    "Start a run, kill it at random moments and resume it, so many times; each ends as the one that was left alone"
    i = 0
    while kills:
        i += 1
        for _ in range(min(4, kills)):  # of one run, before it is left to finish
            killed, status, said = begin(i, rng.uniform(.1, .7)*takes)
            kills -= killed
            assert killed or status == 0, said
        killed, status, said = begin(i, None)
        assert (killed, status) == (False, 0), said
        # whether a kill falls after a checkpoint is chance; resuming from one is tested above, after every step
        assert same(i)

@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_killed_at_random_moments_it_comes_out_the_same(tmp_path, alone, program, precision):
    def train(name, after=None):
        return program('--out', tmp_path/name, '--resume', '--precision', precision, after=after)
    begin = time.monotonic()
    assert train('run')[:2] == (False, 0)
    want = result(tmp_path/'run')
    assert (want == alone) == (precision == 'float32')
    kill_at_random(lambda i, after: train(f'run{i}', after), time.monotonic() - begin,
                   lambda i: result(tmp_path / f'run{i}') == want, KILLS, random.Random(6))


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_pretraining_killed_at_random_moments_comes_out_the_same(tmp_path, program, precision):
    "With a policy that follows the losses, a pretext task, and a checkpoint after every step"
    from hiccap.pretraining_runs import PretrainRun, write_example
    mixture = write_example(tmp_path/'data', n=150)
    run = PretrainRun.from_yaml(mixture)
    mixture.write_text(run.but(epochs=2, checkpoint_every=0, precision=precision, **NARROW).to_yaml())
    tables = lambda out: result(out) | dict(shares=(out/'shares.csv').read_bytes())
    begin = time.monotonic()
    assert program(mixture, '--out', tmp_path/'run', '--resume', command='pretrain')[:2] == (False, 0)
    want = tables(tmp_path/'run')
    kill_at_random(
        lambda i, after: program(mixture, '--out', tmp_path / f'run{i}', '--resume', after=after, command='pretrain'),
        time.monotonic() - begin, lambda i: tables(tmp_path / f'run{i}') == want, 20 if NIGHTLY else 2,
        random.Random(7))


@pytest.mark.parametrize('kind', ['famo', 'mixture', 'bf16'])
def test_a_fit_killed_at_random_moments_comes_out_the_same(tmp_path, kind):
    "A weighting and a policy that learn, at the level of the library; most kills fall into the writing of a checkpoint"
    def begin(i, after):
        if (pid := os.fork()) == 0:
            try:
                (tmp_path / f'{i}.txt').write_text(
                    outcome(
                        fit(KINDS[kind](), Checkpoint(tmp_path / f'{i}', every=1, resume=True, write=lambda o: None)))
                )
                os._exit(0)
            except BaseException as e: (tmp_path/f'{i}.txt').write_text(repr(e))
            finally: os._exit(1)
        if after is not None: time.sleep(after); os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        return (os.WIFSIGNALED(status), status >> 8,
                (tmp_path / f'{i}.txt').read_text()[:500] if (tmp_path / f'{i}.txt').exists() else '')
    now = time.monotonic()
    assert begin('alone', None)[:2] == (False, 0)
    want = (tmp_path/'alone.txt').read_text()
    kill_at_random(
        begin, time.monotonic() - now, lambda i: (tmp_path / f'{i}.txt').read_text() == want, KILLS, random.Random(8))


def test_a_file_that_may_not_grow_stops_a_run_with_what_it_had(tmp_path, alone, program):
    size = {}
    def write(line):
        if line.startswith('epoch 1/'):
            size.update({p.parent.name: p.stat().st_size for p in partial_folder(tmp_path/'first').rglob(TENSORS)})
            raise KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt): train_run(SMALL, tmp_path/'first', write=write)
    # the best weights come in with the first epoch, and do not fit
    killed, status, said = program('--out', tmp_path/'run', limit=max(size.values()) + 2000)
    assert (killed, status) == (False, 2) and 'free some space, and resume' in said, said
    killed, status, said = program('--out', tmp_path/'run')
    assert status == 2 and '--resume' in said and '--overwrite' in said
    killed, status, said = program('--out', tmp_path/'run', '--resume')
    assert status == 0 and 'resuming after step' in said and result(tmp_path/'run') == alone
