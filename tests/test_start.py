"""What a command imports before it does its work: nothing that the work does not need."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import TINY_NETWORK
from hiccap.cli import train

sys.path.insert(0, str(Path(__file__).parents[1]/'benchmarks'))
from commands import features_of, text_table, watched

# what fastai with the Hugging Face Hub, the optimizers of PyTorch, and the text encoders of transformers bring
OTHERS = '''
import json, sys, torch
import fastai.callback.schedule, tqdm.auto, accelerate, safetensors.torch
from huggingface_hub import HfApi, snapshot_download
found = [sorted(sys.modules)]
weight = torch.nn.Parameter(torch.ones(3))
weight.sum().backward()
torch.optim.AdamW([weight]).step()
found.append(sorted(sys.modules))
from transformers import AutoModel, AutoTokenizer, BertModel, BertTokenizerFast
found.append(sorted(sys.modules))
print(json.dumps(found))
'''
NEEDLESS = {'torchvision', 'datasets', 'onnx', 'onnxruntime', 'optuna', 'av', 'spacy', 'ray', 'h5py', 'IPython'}


def packages(modules): return {m.split('.')[0] for m in modules} - set(sys.stdlib_module_names) - {'hiccap'}


@pytest.fixture(scope='module')
def others():
    "Packages that are there after imports, after a step of an optimizer, and after those of text encoders"
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', OTHERS], capture_output=True, text=True, check=True)
    return [packages(o) for o in json.loads(out.stdout)]


@pytest.fixture(scope='module')
def features_only(tmp_path_factory):
    "A table without texts, and options that read features for it"
    folder = tmp_path_factory.mktemp('clips')
    table, path = text_table(folder, 24), folder/'silent.csv'
    rows = [o.split(',') for o in table.read_text().splitlines()]
    path.write_text(''.join(f'{id},{video},{label}\n' for id, video, _, label in rows))
    return [path, '--labels', 'funny', '--features', f'sound={features_of(folder, 24, 5)}', '--set', 'width=16',
            'heads=2', 'head_widths=[16]']


def test_a_training_on_features_imports_only_what_fastai_and_the_optimizer_do(others, features_only, tmp_path):
    modules = watched('first_step', 'train', *features_only, '--out', tmp_path/'run')['modules']
    assert 'hiccap.training' in modules and packages(modules) - others[1] == set()
    assert NEEDLESS & packages(modules) <= others[1] and 'torchvision' not in packages(modules)
    assert not any(m.startswith(('transformers.models', 'hiccap.moments')) for m in modules)


def test_a_training_on_texts_imports_only_what_text_encoders_do_besides(others, tmp_path):
    path = tmp_path/'run.yaml'
    path.write_text(yaml.safe_dump(dict(data='synthetic', synthetic=dict(n=60, scale=.1), bs=8, config=TINY_NETWORK)))
    modules = watched('first_step', 'train', '--run', path, '--out', tmp_path/'run')['modules']
    assert 'transformers.models.bert.modeling_bert' in modules and packages(modules) - others[2] == set()


def test_a_prediction_needs_no_optimizer_and_no_compiler(others, features_only, tmp_path):
    assert train([*map(str, features_only), '--out', str(tmp_path/'run'), '--epochs', '1', '--bs', '8']) == 0
    modules = watched('end', 'predict', tmp_path/'run', *features_only[:1], *features_only[3:5], '--out',
                      tmp_path/'predictions.csv')['modules']
    assert packages(modules) - others[0] == set()
    assert not [m for m in modules if m.startswith(('torch._dynamo', 'torch._inductor', 'transformers.models'))]


@pytest.mark.parametrize('how', ['first_step', 'phases'])
def test_a_watched_run_says_how_much_memory_it_held(features_only, tmp_path, how):
    more = [] if how == 'first_step' else ['--epochs', '1', '--bs', '8']
    notes = watched(how, 'train', *features_only, *more, '--out', tmp_path/'run')
    assert 0 < notes['mb'] <= notes['peak_mb'] + 1 and notes['processor_seconds'] > 0 < notes['seconds']
    if how == 'first_step':
        assert notes['imported']['seconds'] < notes['seconds'] and not (tmp_path/'run').exists()
        return
    assert {'network', 'training', 'linear part', 'simple models'} <= {o['phase'] for o in notes['phases']}
    assert all(o['before_mb'] <= o['peak_mb'] <= notes['whole_peak_mb'] for o in notes['phases'])
