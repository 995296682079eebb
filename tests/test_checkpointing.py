"""Gradient checkpointing: less is kept for the backward pass, and nothing else changes."""
import math

import pytest
import torch
from torch import nn

from conftest import TINY_NETWORK
from hiccap.clips import ClipDataset
from hiccap.diagnosis import diagnose
from hiccap.losses import MultiTaskLoss
from hiccap.padding import collate
from hiccap.run_data import read_splits
from hiccap.runs import Network, Run
from hiccap.training import build_model, train_run

SMALL = Run.flat(data='synthetic', synthetic=dict(n=60, scale=.3), epochs=2, bs=16, lr=.01, encoder_lr=.01, threads=1,
                 checkpoint_every=0, config=TINY_NETWORK, simple_models=())
CHECKPOINTED = SMALL.but(gradient_checkpointing=True)


def silent(line): pass


@pytest.fixture(scope='module')
def train(): return read_splits(SMALL.clips, None)[0][0]


def models(train): return [build_model(o.network, train, 0).train() for o in (SMALL, CHECKPOINTED)]


@pytest.mark.parametrize('half', [False, True])
def test_gradients_are_the_same_to_the_bit_and_less_is_kept(train, half):
    inputs, targets = collate([train[i] for i in range(8)], train.tasks)
    found = []
    for model in models(train):
        kept = {}
        def note(x):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x
        torch.manual_seed(0)
        with torch.autocast('cpu', torch.bfloat16, enabled=half):
            with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x): logits = model(inputs)
        loss = MultiTaskLoss(train.tasks)({k: v.float() for k, v in logits.items()}, targets)
        loss.backward()
        found.append((loss, {k: p.grad for k, p in model.named_parameters()}, sum(kept.values())))
    (a, grads, n), (b, again, m) = found
    assert torch.equal(a, b) and m < .8*n
    assert all(x is again[k] is None or torch.equal(x, again[k]) for k, x in grads.items())
    assert any(x is not None and x.any() for k, x in grads.items() if 'backbone' in k)


class Bad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, back):
        ctx.back = back
        return x.clone() if back else x*math.nan
    @staticmethod
    def backward(ctx, grad): return grad*math.nan if ctx.back else grad, None


class Breaker(nn.Module):
    def __init__(self, inner, back):
        super().__init__()
        self.inner, self.back = inner, back
    def forward(self, x): return Bad.apply(self.inner(x), self.back)


@pytest.mark.parametrize('back', [False, True])
def test_what_breaks_inside_a_layer_is_found_there(train, back):
    inputs, targets = collate([train[i] for i in range(8)], train.tasks)
    found = []
    for model in models(train):
        layer = model.encoders['text'].backbone.encoder.layer[0]
        layer.intermediate.dense = Breaker(layer.intermediate.dense, back)
        found.append(diagnose(model, inputs, targets, MultiTaskLoss(train.tasks)))
    assert [o.where for o in found] == ['backward' if back else 'forward']*2
    assert found[0].name == found[1].name and 'intermediate' in found[0].name
    assert layer.gradient_checkpointing  # of the second, as it was


def test_a_run_resumes_with_or_without_it_and_ends_alike(tmp_path):
    def results(name):
        return [(tmp_path/name/o).read_bytes() for o in ('history.csv', 'probabilities.csv', 'model/model.safetensors')]
    def stop(line):
        if 'epoch 2/2' in line: raise KeyboardInterrupt
    train_run(SMALL, tmp_path/'usual', write=silent)
    with pytest.raises(KeyboardInterrupt): train_run(CHECKPOINTED, tmp_path/'cut', write=stop)
    train_run(SMALL, tmp_path/'cut', write=silent, resume=True)
    train_run(CHECKPOINTED, tmp_path/'whole', write=silent)
    assert results('usual') == results('cut') == results('whole')


def test_a_network_without_an_encoder_to_checkpoint_is_refused(train):
    features = {k: v for k, v in TINY_NETWORK.items() if k != 'text'}
    with pytest.raises(ValueError, match='nothing to'):
        Network(freeze_text=True, gradient_checkpointing=True)
    without = ClipDataset(train.ids, {m: c for m, c in train.columns.items() if m != 'text'},
                          {k: v.numpy() for k, v in train.labels.items()}, train.tasks, train.groups)
    with pytest.raises(ValueError, match='without a text encoder cannot recompute'):
        build_model(Network(config=features, gradient_checkpointing=True), without)
