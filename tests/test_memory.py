"""A training that is over leaves its result in memory, and not its network, optimizer or best weights."""
import ctypes
import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from conftest import TINY_NETWORK
from hiccap import search, training
from hiccap.checkpoints import save_tensors
from hiccap.learner import HICCAPLearner, collected
from hiccap.pretraining_runs import PretrainRun, pretrain_run, write_example
from hiccap.run_data import read_splits
from hiccap.runs import Run

SMALL = Run.flat(data='synthetic', synthetic=dict(n=90, scale=.1), epochs=1, bs=16, lr=.01, encoder_lr=.01, threads=1,
                 config=TINY_NETWORK)


def silent(line): pass


@pytest.fixture
def no_luck():
    "Python does not look for circles of objects by itself, as it may not for a long time"
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def made(monkeypatch):
    "References to all that a fit needs, of every fit"
    found, fit = [], HICCAPLearner.fit
    def watched(self, *args, **kwargs):
        fit(self, *args, **kwargs)
        found.extend(map(weakref.ref, (self, self.model, self.opt, self.opt.opt, self.dls, *self.cbs)))
    monkeypatch.setattr(HICCAPLearner, 'fit', watched)
    return found


def alive(refs): return [type(o).__name__ for r in refs if (o := r()) is not None]


def tensor_bytes():
    "Bytes of all tensors that Python can reach"
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    return sum({o.untyped_storage().data_ptr(): o.untyped_storage().nbytes() for o in tensors}.values())


def test_nothing_of_a_fold_is_alive_when_the_next_one_begins(tmp_path, monkeypatch, made, no_luck):
    sizes, models = [], []
    class Watched(training.FoldRecipe):
        def begin(self):
            assert alive(made) == []
            sizes.append(tensor_bytes())
            return super().begin()
        def read(self):
            super().read()
            models.append(sum(p.numel()*4 for p in self.model.parameters()))
    monkeypatch.setattr(training, 'FoldRecipe', Watched)
    training.train_run(SMALL.but(folds=3, simple_models='full'), tmp_path/'run', write=silent)
    assert len(made) > 3*2*5  # the network and the fine-tuned simple model of three folds
    assert alive(made) == []
    assert len(sizes) == 3 and max(sizes) - min(sizes) < models[0]/10  # the predictions of two folds


def test_scores_are_computed_without_the_state_of_the_fit(tmp_path, monkeypatch):
    left, predict = [], training.trained_predictions
    def watched(learn, *args):
        left.append((dict(learn.opt.opt.state), learn.keep_best.weights))
        return predict(learn, *args)
    monkeypatch.setattr(training, 'trained_predictions', watched)
    training.train_run(SMALL.but(simple_models=('words', 'fine_tuned')), tmp_path/'run', write=silent)
    assert left == [({}, None)]*3  # of the fine-tuned encoder, the deep part and the network


def test_a_trial_of_a_search_leaves_no_learner(made, no_luck):
    class Trial:
        def report(self, value, step): pass
        def should_prune(self): return False
    train, valid, _ = read_splits(SMALL.clips, None)[0]
    out = search.run_trial(SMALL, train, valid, Trial())
    assert out.passes == 1 and made and alive(made) == []


def test_a_pretraining_run_leaves_no_learner(tmp_path, made, no_luck):
    run = PretrainRun.from_yaml(write_example(tmp_path/'data', n=150)).but(
        epochs=1, simple_models=(), **{'config.width': 16, 'config.heads': 2, 'config.head_widths': [16]})
    result = pretrain_run(run, tmp_path/'run', write=silent)
    assert made and alive(made) == [] and len(result.contributions)


def with_c_function(name):
    "A mark of tests that need a function of the C library"
    found = hasattr(ctypes.CDLL(None), name) if sys.platform == 'linux' else False
    return pytest.mark.skipif(not found, reason=f'the C library has no {name}')


def resident():
    "Bytes of this process that are in memory"
    return int(Path('/proc/self/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')


@with_c_function('malloc_trim')
def test_freed_memory_goes_back_to_the_system():
    def allocate():
        pieces, between = [], []
        for _ in range(3000):  # of 64 kB; small tensors that stay are between them
            pieces.append(torch.ones(2**14))
            between.append(torch.ones(16))
        return between, resident()
    before = resident()
    kept, highest = collected(allocate)
    assert highest - before > 150e6 and resident() - before < 50e6 and len(kept) == 3000


def test_tensors_are_written_without_a_copy_unless_they_share_memory(tmp_path, monkeypatch):
    import safetensors.torch
    written, save = [], safetensors.torch.save_file
    def watched(tensors, *args, **kwargs):
        written.append({k: v.data_ptr() for k, v in tensors.items()})
        return save(tensors, *args, **kwargs)
    monkeypatch.setattr(safetensors.torch, 'save_file', watched)
    whole = torch.arange(12.).view(3, 4)
    tensors = dict(a=torch.randn(5, requires_grad=True), tied=whole, tied_too=whole, part=whole[1], turned=whole.T,
                   none=torch.zeros(0, 3), number=torch.tensor(7), row=torch.arange(9.).view(3, 3)[1])
    save_tensors(tensors, tmp_path/'t.safetensors')
    assert all(written[0][k] == tensors[k].data_ptr() for k in ('a', 'tied', 'number'))
    assert len({written[0][k] for k in ('tied', 'tied_too', 'part', 'turned')}) == 4
    found = safetensors.torch.load_file(tmp_path/'t.safetensors')
    assert found.keys() == tensors.keys() and all(torch.equal(found[k], v) for k, v in tensors.items())


@with_c_function('mallopt')
def test_large_arrays_go_back_to_the_system_at_once_with_gradient_checkpointing():
    code = '\n'.join((
        'import sys, torch', 'from conftest import TINY_NETWORK', 'from hiccap.model import HICCAP, HICCAPConfig',
        'from hiccap.tasks import Task', 'from hiccap.training import checkpoint_gradients',
        'from test_memory import resident',
        "model = HICCAP(HICCAPConfig.from_dict(TINY_NETWORK), [Task('funny')])",
        "if sys.argv[1] == 'checkpointing': checkpoint_gradients(model)",
        'torch.ones(2**22)  # once so much was freed, the C library keeps all that is smaller',
        'before, between, pieces = resident(), [], []', 'for _ in range(40):  # of 4 MB',
        '    pieces.append(torch.ones(2**20))', '    between.append(torch.ones(2**14))',
        'pieces.clear()', 'print(resident() - before)'))
    env, found = {k: v for k, v in os.environ.items() if not k.startswith('MALLOC_')}, {}
    for way in ('checkpointing', 'as it is'):
        out = subprocess.run([sys.executable, '-c', code, way], capture_output=True, text=True, check=True,
                             cwd=Path(__file__).parent, env=env)
        found[way] = int(out.stdout)
    assert found['checkpointing'] < 20e6 < 100e6 < found['as it is']
