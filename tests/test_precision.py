"""Which number format `--precision auto` takes, that a run keeps it, and what its folder says of it."""
import json
import re
from collections import Counter
from contextlib import ExitStack

import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import TINY_NETWORK
from hiccap import precision, run_folders
from hiccap.learner import DevicePrecision
from hiccap.precision import BFLOAT16_INSTRUCTIONS, cpu_instructions, fast_precision, training_device
from hiccap.pretraining_runs import PretrainRun, pretrain_run, write_example
from hiccap.run_data import read_splits
from hiccap.runs import Run
from hiccap.search import Search
from hiccap.training import build_model, run_learner, train_run

FAST, SLOW = ('bfloat16', 'the CPU has avx512_bf16'), ('float32', 'the CPU is of another kind')
SMALL = Run.flat(data='synthetic', synthetic=dict(n=60, scale=.1), epochs=2, bs=16, lr=.01, encoder_lr=.01, threads=1,
                 checkpoint_every=0, config=TINY_NETWORK, simple_models=(), precision='auto')


def silent(line): pass


def machine(monkeypatch, answer):
    "Train on a machine for which `fast_precision` gives this answer"
    monkeypatch.setattr(run_folders, 'fast_precision', lambda: answer)


def stop_at(text):
    def write(line):
        if text in line: raise KeyboardInterrupt
    return write


def results(out): return [(out/o).read_bytes() for o in ('history.csv', 'probabilities.csv', 'model/model.safetensors')]


def report(out):
    "The lines of a report, without those that have seconds"
    return [o for o in (out/'report.md').read_text().splitlines() if not re.search(r'\d s\b|clips a second', o)]


@pytest.fixture(scope='module')
def named(tmp_path_factory):
    "The folders of runs that name a precision"
    folder = tmp_path_factory.mktemp('named')
    for o in ('float32', 'bfloat16'): train_run(SMALL.but(precision=o), folder/o, write=silent)
    return {o: folder/o for o in ('float32', 'bfloat16')}


@pytest.mark.parametrize('has,onednn,want', [
    (('amx_bf16', 'avx512_bf16'), True, 'bfloat16'), (('avx512_bf16',), True, 'bfloat16'),
    (('amx_bf16',), True, 'bfloat16'), (('avx512_bf16',), False, 'float32'),
    (('avx512_f', 'avx512_vnni'), True, 'float32'), ((), True, 'float32'), (None, True, 'float32')])
def test_bfloat16_is_fast_on_a_cpu_with_instructions_and_a_library_that_uses_them(monkeypatch, has, onednn, want):
    known = *BFLOAT16_INSTRUCTIONS, 'avx512_f', 'avx512_vnni'
    monkeypatch.setattr(precision, 'cpu_instructions', lambda: None if has is None else {k: k in has for k in known})
    monkeypatch.setattr(precision, 'uses_onednn', lambda: onednn)
    found, why = fast_precision('cpu')
    assert found == want
    assert (found == 'bfloat16') == any(why == f'the CPU has {k}' for k in has or ())


def test_an_older_pytorch_that_does_not_tell_and_one_without_onednn_take_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, 'get_capabilities', raising=False)
    assert cpu_instructions() is None and fast_precision('cpu')[0] == 'float32'
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    assert not precision.uses_onednn()


@pytest.mark.parametrize('has', [True, False])
def test_a_gpu_is_asked_whether_it_computes_in_bfloat16_and_not_whether_it_can_imitate_it(monkeypatch, has):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'a GPU')
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: including_emulation or has)
    assert training_device() == 'cuda'
    assert fast_precision() == (('bfloat16', 'a GPU computes in it') if has else ('float32', 'a GPU has no bfloat16'))


@pytest.mark.parametrize('answer', [FAST, SLOW])
def test_a_run_takes_what_the_machine_is_fast_in_and_says_so(tmp_path, monkeypatch, named, answer):
    machine(monkeypatch, answer)
    lines = []
    train_run(SMALL, tmp_path/'run', write=lines.append)
    assert results(tmp_path/'run') == results(named[answer[0]])
    config = json.loads((tmp_path/'run'/'config.json').read_text())
    assert config['used']['precision'] == answer[0] and config['precision_reason'] == answer[1]
    assert Run.from_config(config, 'config.json') == SMALL  # what was asked for
    assert f'Precision: {answer[0]}, because {answer[1]}' in lines
    text = '\n'.join(report(tmp_path/'run'))
    assert f'Trained in {answer[0]}, which `precision: auto` took because {answer[1]}.' in text


def test_the_two_precisions_differ_and_a_named_one_is_no_choice_to_report(named):
    assert results(named['float32']) != results(named['bfloat16'])
    for o in named.values():
        config = json.loads((o/'config.json').read_text())
        assert 'precision' not in config['used'] and 'precision_reason' not in config
        assert 'precision: auto' not in (o/'report.md').read_text()


@pytest.mark.parametrize('first,then', [(FAST, SLOW), (SLOW, FAST)])
def test_a_resumed_run_keeps_the_precision_that_it_began_with(tmp_path, monkeypatch, named, first, then):
    machine(monkeypatch, first)
    train_run(SMALL, tmp_path/'whole', write=silent)
    with pytest.raises(KeyboardInterrupt): train_run(SMALL, tmp_path/'cut', write=stop_at('epoch 2/2'))
    machine(monkeypatch, then)
    lines = []
    train_run(SMALL, tmp_path/'cut', write=lines.append, resume=True)
    assert any(o.startswith('resuming after step') for o in lines)
    assert f'Precision: {first[0]}, as when the run began: {first[1]}' in lines
    assert results(tmp_path/'cut') == results(named[first[0]])
    assert report(tmp_path/'cut') == report(tmp_path/'whole')


def test_a_run_in_auto_is_not_resumed_as_one_that_names_a_precision(tmp_path, monkeypatch):
    machine(monkeypatch, FAST)
    with pytest.raises(KeyboardInterrupt): train_run(SMALL, tmp_path/'cut', write=stop_at('epoch 2/2'))
    with pytest.raises(ValueError, match="has precision 'auto', this one 'bfloat16'"):
        train_run(SMALL.but(precision='bfloat16'), tmp_path/'cut', write=silent, resume=True)


def test_pretraining_takes_and_keeps_a_precision_too(tmp_path, monkeypatch):
    run = PretrainRun.from_yaml(write_example(tmp_path/'data', n=150)).but(
        epochs=2, checkpoint_every=0, simple_models=(),
        **{'config.width': 16, 'config.heads': 2, 'config.head_widths': [16]})
    pretrain_run(run.but(precision='bfloat16'), tmp_path/'named', write=silent)
    machine(monkeypatch, FAST)
    with pytest.raises(KeyboardInterrupt):
        pretrain_run(run.but(precision='auto'), tmp_path/'run', write=stop_at('epoch 2/2'))
    machine(monkeypatch, SLOW)
    pretrain_run(run.but(precision='auto'), tmp_path/'run', write=silent, resume=True)
    for name in ('history.csv', 'shares.csv', 'predictions.csv', 'model/model.safetensors'):
        assert (tmp_path/'run'/name).read_bytes() == (tmp_path/'named'/name).read_bytes()
    assert FAST[1] in (tmp_path/'run'/'report.md').read_text()


def test_a_learner_in_auto_asks_about_the_device_of_its_batches(tmp_path, monkeypatch):
    train, valid, _ = read_splits(SMALL.clips, None)[0]
    model, asked = build_model(SMALL.network, train, 0), []
    for answer in (FAST, SLOW):
        monkeypatch.setattr('hiccap.training.fast_precision', lambda device: asked.append(device) or answer)
        learn = run_learner(SMALL.training, train, valid, model, tmp_path, silent)
        assert any(isinstance(cb, DevicePrecision) for cb in learn.cbs) == (answer is FAST)
    assert asked == [torch.device(learn.dls.device).type]*2


def test_a_search_names_its_precision():
    base = dict(data='clips.csv')
    with pytest.raises(ValueError, match='write float32 or bfloat16'):
        Search(dict(base, precision='auto'), dict(lr=[.1, .2]))
    with pytest.raises(ValueError, match='write float32 or bfloat16'):
        Search(base, dict(precision=['float32', 'auto']))
    Search(base, dict(precision=['float32', 'bfloat16']))


def test_predictions_name_their_precision(capsys):
    from hiccap.cli import predict
    with pytest.raises(SystemExit): predict(['--help'])
    assert re.search(r'--precision \{float32,bfloat16,float16\}', capsys.readouterr().out)


class Conversions(TorchDispatchMode):
    "Count how often each weight of a network's layers is converted to bfloat16"
    def __init__(self, model):
        super().__init__()
        # not the learned vectors of absent modalities, which are data of a batch and not factors of a product
        self.names = {p.data_ptr(): k for k, p in model.named_parameters() if not k.startswith('absent.')}
        self.found = Counter()

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if f is torch.ops.aten._to_copy.default and kwargs.get('dtype') == torch.bfloat16:
            name = self.names.get(args[0].data_ptr())
            if name: self.found[name] += 1
        return f(*args, **kwargs)


class CountConversions(Callback):
    "Those of each training batch, of each validation, and of predictions"
    order = -100
    def begin(self):
        self.mode = Conversions(self.learn.model)
        self.mode.__enter__()
    def end(self, to):
        self.mode.__exit__(None, None, None)
        to.append(self.mode.found)
    def before_fit(self): self.batches, self.validations = [], []
    def before_batch(self):
        if self.learn.training: self.begin()
    def after_batch(self):
        if self.learn.training: self.end(self.batches)
    def before_validate(self): self.begin()
    def after_validate(self): self.end(self.validations)


@pytest.fixture
def learn(tmp_path):
    train, valid, _ = read_splits(SMALL.clips, None)[0]
    run = SMALL.but(precision='bfloat16', bs=4)
    return run_learner(run.training, train, valid, build_model(run.network, train, 0), tmp_path, silent)


def test_a_weight_is_converted_once_for_a_step_and_once_for_all_batches_of_a_validation(learn):
    learn.add_cb(count := CountConversions())
    with learn.no_bar(): learn.fit(2)
    assert len(learn.dls.train) > 2 and len(learn.dls.valid) > 1
    linear = {k for k, _ in learn.model.named_parameters() if 'query.weight' in k}
    for found in (*count.batches, *count.validations):
        assert linear <= set(found) and set(found.values()) == {1}
    assert len(count.batches) == 2*len(learn.dls.train) and len(count.validations) == 2
    with learn.no_bar(): learn.get_preds()
    assert set(count.validations[-1].values()) == {1}


def test_predictions_are_those_of_the_weights_as_they_are_now(learn):
    with learn.no_bar():
        for _ in range(2):  # the second time with other weights
            found = learn.get_preds(act=lambda o: o, reorder=False)[0]
            learn.model.eval()
            with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
                want = [learn.model(x) for x, _ in learn.dls.valid]
            for k, v in found.items(): assert torch.equal(v, torch.cat([o[k] for o in want]).float())
            learn.fit(1, .05)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('error', [ValueError, CancelBatchException])
def test_no_mixed_precision_is_left_behind_by_an_error_in_a_batch(learn, training, error):
    class Fail(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
        def forward(self, x):
            if self.training == training: raise error
            return self.net(x)
    learn.model = Fail(learn.model)
    learn.create_opt()
    with learn.no_bar(), learn.no_logging(), ExitStack() as expected:
        if error is ValueError: expected.enter_context(pytest.raises(ValueError))
        learn.remove_cbs([o for o in learn.cbs if o.name in ('keep_best', 'nan_detector', 'step_recorder')])
        learn.fit(1)
    assert not torch.is_autocast_enabled('cpu')
    x = torch.randn(2, 2)
    assert (x @ x).dtype == torch.float32
