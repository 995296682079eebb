"""Trackers: what they wrote is read back, they change nothing, and a resumed run continues in the same place."""
import json
import struct

import pandas as pd
import pytest
from fastai.callback.core import Callback

from conftest import TINY_NETWORK
import hiccap.tracking as module
from hiccap.runs import Run
from hiccap.run_data import read_splits
from hiccap.training import build_model, run_learner, train_run
from hiccap.tracking import check_trackers, tracked

SMALL = dict(data='synthetic', synthetic=dict(n=48, scale=.1), epochs=2, threads=1, bs=8, config=TINY_NETWORK)


def scalars(folder):
    "What TensorBoard shows: tag -> step -> value"
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    e = accumulator.EventAccumulator(str(folder), size_guidance=dict(scalars=0)); e.Reload()
    out = {}
    for k in e.Tags()['scalars']:
        seen = [(o.step, o.value) for o in e.Scalars(k)]
        assert len(dict(seen)) == len(seen), f'{k} was written twice for a step'
        out[k] = dict(seen)
    return out


def logged(file):
    "Rows of history in an offline file of Weights & Biases (records in blocks, as in LevelDB): step -> key -> value"
    from wandb.proto.wandb_internal_pb2 import Record
    data, at, part, rows = file.read_bytes(), 7, b'', {}
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7: at += left; continue
        size, kind = struct.unpack('<HB', data[at + 4:at + 7])
        part += data[at + 7:at + 7 + size]; at += 7 + size
        if kind not in (1, 4): continue
        record = Record.FromString(part); part = b''
        if record.HasField('history'):
            d = {(o.key or '.'.join(o.nested_key)): json.loads(o.value_json) for o in record.history.item}
            rows.setdefault(d.get('_step', record.history.step.num), {}).update(d)
    return rows


def check(history, read, of_step, losses=('loss', 'loss_said', 'loss_order')):
    "Each step's losses and each epoch's scores are those of history.csv"
    steps, passes = history[history.kind == 'step'], history[history.kind == 'epoch']
    for k in losses:
        for _, r in steps.iterrows():
            if r[k] == r[k]: assert read(k, of_step(r.step)) == pytest.approx(r[k], rel=1e-5), (k, r.step)
    for _, r in passes.iterrows():
        for k in [c for c in history if c == 'valid_loss' or c.endswith('macro_f1')]:
            if r[k] == r[k]: assert read(k, of_step(r.step - 1)) == pytest.approx(r[k], rel=1e-5), (k, r.step)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    for k in ('WANDB_CACHE_DIR', 'WANDB_CONFIG_DIR', 'WANDB_DATA_DIR'): monkeypatch.setenv(k, str(tmp_path/k))


def stop_at(text):
    def write(line):
        if text in line: raise KeyboardInterrupt
    return write


def test_a_batch_is_on_disk_when_it_is_done(tmp_path):
    "A checkpoint may be written after any batch, and a kill may follow"
    class Look(Callback):
        order, run_valid, seen = 900, False, 0
        def after_batch(self):
            self.seen += 1
            assert list(scalars(tmp_path/'tensorboard')['loss']) == list(range(1, self.seen + 1))
    run = Run.from_dict({**SMALL, 'epochs': 1}); train, valid, _ = read_splits(run.clips, None)[0]
    learn = run_learner(run.training, train, valid, build_model(run.network, train), tmp_path, lambda s: None)
    look = Look()
    learn.add_cb(look)
    with tracked(learn, ['tensorboard'], tmp_path): learn.fit(1)
    assert look.seen == len(learn.dls.train)


def test_both_hold_what_the_history_says_and_change_nothing(tmp_path, offline):
    "One run without trackers; one with both, interrupted in its last epoch and resumed"
    wandb = pytest.importorskip('wandb')
    with pytest.raises(KeyboardInterrupt):
        train_run(Run.from_dict({**SMALL, 'checkpoint_every': 0, 'track': ['tensorboard', 'wandb']}), tmp_path / 'run',
                  write=stop_at('epoch 2/2'))
    assert wandb.run is None  # closed, so that another may begin
    train_run(
        Run.from_dict({**SMALL, 'track': ['tensorboard', 'wandb']}), tmp_path / 'run', write=lambda s: None, resume=True
    )
    train_run(Run.from_dict(SMALL), tmp_path/'plain', write=lambda s: None)
    for f in ('history.csv', 'predictions.csv', 'model/model.safetensors'):
        assert (tmp_path/'run'/f).read_bytes() == (tmp_path/'plain'/f).read_bytes(), f
    history, events = pd.read_csv(tmp_path/'run'/'history.csv'), scalars(tmp_path/'run'/'tensorboard')
    check(history, lambda k, i: events[k][i], lambda s: s + 1)
    assert len(events['loss']) == (history.kind == 'step').sum() and 'lr_0' in events
    files = sorted((tmp_path/'run'/'wandb').glob('offline-run-*/*.wandb'))
    # one id, whatever the number of folders
    assert len({f.name for f in files}) == 1 and (tmp_path/'run'/'wandb'/'id').read_text() in files[0].name
    rows = {}
    for f in files:
        for s, d in logged(f).items(): rows.setdefault(s, {}).update(d)
    check(history, lambda k, i: rows[i][k], lambda s: s)
    assert 0 < rows[0]['train_samples_per_sec'] and 'tensorboard --logdir' in (tmp_path/'run'/'report.md').read_text()


def test_tensorboard_of_each_fold(tmp_path):
    train_run(Run.from_dict({**SMALL, 'epochs': 1, 'folds': 2, 'track': ['tensorboard']}), tmp_path / 'run',
              write=lambda s: None)
    history = pd.read_csv(tmp_path/'run'/'history.csv')
    for i in (1, 2):
        events = scalars(tmp_path/'run'/'tensorboard'/f'fold_{i}')
        check(history[history.fold == i], lambda k, s: events[k][s], lambda s: s + 1)


def test_what_is_missing_is_said_before_anything_starts(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='among tensorboard, wandb'): Run.flat(track=('tensorbord',))
    for k in ('WANDB_MODE', 'WANDB_API_KEY'): monkeypatch.delenv(k, raising=False)
    monkeypatch.setenv('HOME', str(tmp_path))
    with pytest.raises(ValueError, match='WANDB_MODE=offline'): check_trackers(['wandb'])
    monkeypatch.setattr(module, 'find_spec', lambda name: None)
    for name in ('tensorboard', 'wandb'):
        with pytest.raises(ValueError, match=f'pip install {name}'):
            train_run(Run.from_dict({**SMALL, 'track': [name]}), tmp_path/'run', write=lambda s: None)
    assert not (tmp_path/'run').exists() and not (tmp_path/'.run.part').exists()
