"""Whatever a file holds, a reader gives what it read or an error of its own that names the file.

112 damaged files, and 1,000 with HYPOTHESIS_PROFILE=nightly."""
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch

pytestmark = pytest.mark.hard

FUZZING = Path(__file__).with_name('fuzzing.py')
COUNT = 1008 if os.environ.get('HYPOTHESIS_PROFILE') == 'nightly' else 112


def test_damaged_files_end_in_an_error_of_our_own_or_in_success(tmp_path):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', FUZZING, tmp_path / 'fuzz', str(COUNT), os.environ.get('FUZZ_SEED', '0')],
        capture_output=True, text=True, timeout=60 + COUNT * 2,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(FUZZING.parents[1]), os.environ.get('PYTHONPATH', '')])})
    found = ([json.loads(o) for o in (tmp_path / 'fuzz' / 'found.jsonl').read_text().splitlines()]
             if (tmp_path / 'fuzz' / 'found.jsonl').exists() else [])
    ended = [o for o in found if o.get('done')]
    # a crash shows as a beginning without an end
    assert done.returncode == 0 and len(ended) == COUNT, (found[-1:], done.stderr[-2000:])
    assert not (bad := [o for o in ended if o['bad']]), (len(bad), bad[:5])
    assert set(Counter(o['kind'] for o in ended).values()) == {COUNT//14}
    refused = Counter(o['kind'] for o in ended if o['said'])
    # the damage is such that readers notice; of two checkpoints the one before is used
    assert all(refused[k] >= 3 for k in {o['kind'] for o in ended} - {'checkpoints'}), refused


# ---- what it has found, one of each

def test_lists_in_a_table_and_a_header_that_is_no_python(tmp_path):
    from hiccap.clips import DataError
    from hiccap.features import npy_header
    from hiccap.readers import read_table
    pd.DataFrame(dict(id=['a'], text=[[1, 2]])).to_parquet(tmp_path/'lists.parquet')
    with pytest.raises(DataError, match="lists.parquet, row 1: column 'text' holds a ndarray"):
        read_table(tmp_path/'lists.parquet', None)
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 6L" + b' '*20 + b'\n'
    (tmp_path/'x.npy').write_bytes(b'\x93NUMPY\x01\x00' + len(head).to_bytes(2, 'little') + head)
    with pytest.raises(DataError, match='x.npy: not a readable'): npy_header(tmp_path/'x.npy')


def test_a_network_that_another_library_refuses_to_build(tmp_path):
    from hiccap.basics import seal
    from hiccap.checkpoints import CheckpointError, load_model, save_model
    from hiccap.model import HICCAP, HICCAPConfig
    from hiccap.tasks import Task
    save_model(HICCAP(HICCAPConfig.tiny(), [Task('funny')], seed=0), tmp_path/'model')
    for change in (dict(vocab_size=.5), dict(hidden_size=10**12)):  # its own type of error; more memory than there is
        d = json.loads((tmp_path/'model'/'config.json').read_text()); d.pop('checksum')
        d['encoders']['text'] |= change
        (tmp_path/'model'/'config.json').write_text(json.dumps(seal(d)))
        with pytest.raises(CheckpointError, match='config.json describes a network that cannot be built here'):
            load_model(tmp_path/'model')


def test_states_and_batches_of_a_bundle_that_are_none(tmp_path):
    from hiccap.generators import random_state
    from hiccap.replay import ReplayError
    from hiccap.diagnosis import Diagnosis
    from hiccap.replay import load_bundle, write_bundle
    net = torch.nn.Linear(3, 2)
    def bundle(name, inputs=(torch.ones(2, 3),), **random):
        return write_bundle(
            tmp_path / name, Diagnosis('forward', 'body'), net, inputs, (), None, random={**random_state(), **random})
    now = random_state()
    with pytest.raises(ReplayError, match='numpy does not hold what a replay bundle'):
        load_bundle(bundle('numpy', numpy=('MT19937', 'odd', 1, 0, 0.)))
    with pytest.raises(ReplayError, match='cannot be run on the batch in it'):
        load_bundle(bundle('batch', inputs=())).run(net)
    assert torch.equal(random_state()['torch'], now['torch']) and random_state()['python'] == now['python']


def test_a_run_folder_and_a_configuration_of_other_kinds(tmp_path):
    from hiccap.runs import Run, read_yaml
    from hiccap.run_folders import interrupted_run
    from hiccap.inference import load_run
    from hiccap.pretraining_runs import PretrainRun
    from fuzzing import write_sound
    at = write_sound(tmp_path/'sound')
    (at['run']/'metrics.json').write_text(json.dumps(dict(thresholds=[1])))
    with pytest.raises(ValueError, match='metrics.json holds no thresholds'): load_run(at['run'])
    (at['run']/'config.json').unlink(); (at['run']/'config.json').mkdir()
    assert interrupted_run(at['run']) is None
    (tmp_path/'deep.yaml').write_text('['*100_000)
    with pytest.raises(ValueError, match='deep.yaml is not readable YAML'): read_yaml(tmp_path/'deep.yaml')
    (tmp_path/'odd.yaml').write_text('config: 3')
    with pytest.raises(ValueError, match='odd.yaml: config must be of type dict'): Run.from_yaml(tmp_path/'odd.yaml')
    (tmp_path/'mixture.yaml').write_text('streams: [{name: a, data: synthetic, pretext: matching, share: half}]')
    with pytest.raises(ValueError, match="mixture.yaml.*'matching' cannot be made with"):
        PretrainRun.from_yaml(tmp_path/'mixture.yaml')
