"""An exported network gives the run's predictions: every subset of modalities, other lengths, folds, the original's
quirks; and no file is left half written."""
import itertools
import json
import sys

import numpy as np
import pytest
import torch

from hiccap.clips import Clip
from hiccap.export import ExportError, OnnxModel, export_onnx, largest_difference, mean_logits
from hiccap.metrics import Thresholds
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.padding import collate
from hiccap.tasks import Task
from test_any_modalities import with_linear_part

for package in ('onnx', 'onnxscript', 'onnxruntime'): pytest.importorskip(package)
TASKS = Task('gory'), Task('mood', 3, classes=('sad', 'glad', 'mad'))
BERT = dict(
    kind='tokens',
    config=dict(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                max_position_embeddings=64),
)
DEEP = dict(kind='features', width=8, hidden=6, layers=2)


def network(seed=0, **kw):
    return HICCAP(HICCAPConfig.tiny(**{**dict(video=DEEP, audio=DEEP | dict(width=4, layers=1), text=BERT), **kw}),
                  TASKS, seed=seed).eval()


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "Two folds of a network with a linear part, and their file"
    models = [with_linear_part(network(i, linear_part=64), i) for i in range(2)]
    path = tmp_path_factory.mktemp('onnx')/'folds.onnx'
    export_onnx(models, path, Thresholds(dict(gory=.4), 'validation data'))
    return models, OnnxModel(path), path


def clips(rng, there, n, longest=63):
    "Clips with the modalities that are there, of any length"
    def some(w): return rng.normal(size=(rng.integers(1, 70), w))
    return [
        Clip(f'c{i}', rng.integers(0, 60, rng.integers(1, longest)) if there[0] else None,
             some(8) if there[1] else None, some(4) if there[2] else None)
        for i in range(n)
    ]


@pytest.mark.parametrize('there', itertools.product((True, False), repeat=3))
def test_every_subset_of_modalities(exported, there):
    models, onnx, _ = exported
    rng = np.random.default_rng(sum(2**i for i, o in enumerate(there) if o))
    for n in (1, 2, 7):
        mixed = clips(rng, there, n) + ([Clip('none')] if n == 7 else [])
        for side in ('left', 'right'):
            inputs, _ = collate(mixed, TASKS, side)
            with torch.inference_mode(): expected = mean_logits([m(inputs) for m in models])
            got = onnx(inputs)
            for k, v in expected.items(): np.testing.assert_allclose(got[k], v.numpy(), atol=1e-4)
            probs, predicted = onnx.answer(inputs)
            with torch.inference_mode(): mean = sum(m(inputs)['gory'].softmax(1) for m in models)/2
            np.testing.assert_allclose(probs['gory'], mean.numpy(), atol=1e-4)
            assert (predicted['gory'] == (probs['gory'][:, 1] >= .4)).all()


def test_what_the_file_says_of_itself(exported):
    import onnx as package
    models, onnx, path = exported
    said = json.loads({p.key: p.value for p in package.load(path).metadata_props}['hiccap'])
    assert ([t['name'] for t in said['tasks']] == ['gory', 'mood'] and said['thresholds']['values'] == dict(gory=0.4)
            and said['networks'] == 2 and said['longest']['text'] == 64)
    assert onnx.tasks == list(TASKS)
    package.checker.check_model(package.load(path))
    assert [o.name for o in path.parent.iterdir()] == ['folds.onnx']


def test_the_original_with_all_it_does_otherwise(tmp_path):
    model = HICCAP(
        HICCAPConfig.upstream('multi_task', text=BERT, video=DEEP, audio=DEEP | dict(width=4), width=16, heads=2),
        TASKS, seed=0).eval()
    assert export_onnx(model, tmp_path/'upstream.onnx') < 1e-4


@pytest.mark.parametrize('kind, part', [('bert', {}), ('roberta', {}), ('roberta', dict(linear_part=64))])
def test_late_fusion_reads_captions_apart_also_where_the_encoder_does_not(tmp_path, kind, part):
    text = dict(BERT, config=BERT['config'] | dict(
        model_type=kind, max_position_embeddings=66, pad_token_id=1, type_vocab_size=2 if kind == 'bert' else 1))
    model = network(text=text, late_fusion=not part, **part)
    if part: with_linear_part(model)
    else:
        for h in model.heads.values(): torch.nn.init.normal_(h[-1].weight)
    assert export_onnx(model, tmp_path/'late.onnx') < 1e-4
    onnx, plain = OnnxModel(tmp_path/'late.onnx'), [Clip('a', [5, 6, 7, 8, 9]), Clip('b', [4])]
    captioned = [Clip('a', [5, 6, 7, 8, 9], segments=[0, 0, 1, 1, 1]), Clip('b', [4])]
    got, without = (onnx(collate(c, TASKS)[0])['gory'] for c in (captioned, plain))
    with torch.inference_mode(): expected = model(collate(captioned, TASKS, 'left')[0])['gory']
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-4)
    assert np.abs(got - without)[0].max() > 1e-3


def test_text_as_vectors(tmp_path):
    assert export_onnx(network(text=dict(kind='features', width=5, layers=0)), tmp_path/'vectors.onnx') < 1e-4
    with pytest.raises(FileExistsError, match='overwrite'): export_onnx(network(), tmp_path/'vectors.onnx')


def test_an_export_that_differs_is_none(exported, tmp_path, monkeypatch):
    models, onnx, path = exported
    assert largest_difference(models, onnx) < 1e-4 < largest_difference([network(2), network(1)], onnx)
    monkeypatch.setattr('hiccap.export._program', lambda *_: Other(path))
    with pytest.raises(ExportError, match='differs from the trained one'):
        export_onnx([network(2), network(1)], tmp_path/'wrong.onnx')
    assert not list(tmp_path.iterdir())


class Other:
    "A program that was made of other networks"
    def __init__(self, path):
        from onnxscript import ir
        self.model = ir.load(path)
    def save(self, to, external_data):
        from onnxscript import ir
        ir.save(self.model, to)


def test_packages_that_are_missing_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(ImportError, match=r'exporting needs the package onnxscript: pip install "hiccap\[export\]"'):
        export_onnx(network(), tmp_path/'a.onnx')
