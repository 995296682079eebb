"""Two processes on a CPU, started as a user starts them, give what one gives:
losses, weights, scores, shares, files, and errors."""
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pd = pytest.importorskip('pandas')
import distributed_cases as cases

pytestmark = pytest.mark.hard
TOLERANCE = 1e-5
CASES = Path(cases.__file__)


def launch(*args, timeout=300):
    "`accelerate launch` of two processes; on a CPU its flag is the same"
    at = Path(sys.executable).with_name('accelerate')
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg',
           'PYTHONPATH': os.pathsep.join([str(CASES.parents[1]), os.environ.get('PYTHONPATH', '')]),
           'ACCELERATE_USE_CPU': 'true'}
    return subprocess.run(
        [sys.executable, at, 'launch', '--multi_gpu', '--num_machines', '1', '--num_processes', '2',
         '--main_process_port', '0', *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=env,
    )


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "Every case, by two processes: folder, what each of them found, and what was said"
    folder = tmp_path_factory.mktemp('two')
    done = launch(CASES, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, *(json.loads((folder/f'{r}.json').read_text()) for r in range(2)), done


def differences(a, b, where=''):
    "Where two nested values differ by more than the tolerance"
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys(): yield f'{where}: {sorted(a.keys() ^ b.keys())}'
        for k in a.keys() & b.keys(): yield from differences(a[k], b[k], f'{where}.{k}')
    elif isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b): yield f'{where}: {len(a)} and {len(b)} values'
        for i, o in enumerate(zip(a, b)): yield from differences(*o, f'{where}[{i}]')
    elif isinstance(a, (int, float)) and isinstance(b, (int, float)) and not isinstance(a, bool):
        if not (a != a and b != b) and not math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield f'{where}: {a} and {b}'
    elif a != b: yield f'{where}: {a!r} and {b!r}'

def timeless(o):
    "Without what fastai writes of the clock"
    if isinstance(o, dict) and 'values' in o:
        return {**o, 'values': [[v for v in row if not isinstance(v, str)] for row in o['values']]}
    return o


@pytest.mark.parametrize('case', [f.__name__ for f in cases.EQUAL])
def test_two_processes_give_what_one_gives(case, two, tmp_path):
    _, first, second, _ = two
    want = timeless(json.loads(json.dumps(getattr(cases, case)(tmp_path))))
    for got in (first, second):
        found = list(differences(want, timeless(got[case])))
        assert not found, found[:8]


def test_shares_are_the_same_to_the_row(two, tmp_path):
    for case in ('a_mixture', 'pretraining'):
        want = getattr(cases, case)(tmp_path)['shares']
        assert len({tuple(share) for share, _, _ in want}) > 2
        for got in two[1:3]:
            assert [quota for _, quota, _ in got[case]['shares']] == json.loads(
                json.dumps([quota for _, quota, _ in want]))


def test_a_number_that_is_not_finite_is_the_same_finding_everywhere(two, tmp_path):
    want = cases.an_infinite_clip(tmp_path)
    assert want['where'] == 'forward' and want['clip'] == ['v7_0'] and len(want['bundles']) == 1 and want['same']
    # the clip that one of the two has read, and one bundle of it
    for got in two[1:3]: assert got['an_infinite_clip'] == want


def test_both_resume_from_one_checkpoint(two):
    for got in two[1:3]:
        assert all(got['resumed']['same'].values()) and got['resumed']['alone']
        assert [o for o in got['resumed']['said'] if o.startswith('resuming')] == [
            'resuming after step 2, in epoch 1 of 3', 'resuming after step 9, in epoch 3 of 3']


def test_another_number_of_processes_resumes_and_says_so(two):
    said, learn = [], cases.learner(dropout=.3)
    folder = two[0]/'resumed'/'cut'
    shutil.rmtree(sorted(folder.iterdir())[-1])  # that of the finished fit
    cases.fit(learn, 3, cases.Checkpoint(folder, every=100, resume=True, write=said.append))
    assert any('the state is of 2 processes, here there is 1' in o for o in said), said


def test_what_cannot_be_as_in_one_process_is_refused(two):
    for got in two[1:3]:
        said = got['refusals']
        expected = dict(BatchNorm="norm is a BatchNorm1d", loader='deals its rows out to 1 processes, and there are 2',
                        weighting='one process only', after="negatives='after'", inputs='with_input')
        for name, says in expected.items():
            assert says in said[name], (name, said)


def test_the_commands_write_one_set_of_files(two, tmp_path):
    folder, first, second, done = two
    want = cases.commands(tmp_path)
    assert (
        want == first['commands'] == second['commands'] == {'train': 0, 'again': 2, 'resume': 0, 'other': 2,
                                                            'pretrain': 0, 'one cannot read': 2}
    )
    written = dict(train=('history.csv', 'predictions.csv'), pretrain=('history.csv', 'predictions.csv', 'shares.csv'))
    for kind, tables in written.items():
        one, two_ = tmp_path/f'{kind}_1', folder/'commands'/f'{kind}_2'
        assert sorted(str(p.relative_to(one)) for p in one.rglob('*')) == sorted(
            str(p.relative_to(two_)) for p in two_.rglob('*'))
        for name in tables:
            a, b = (pd.read_csv(o/name) for o in (one, two_))
            assert list(a) == list(b) and len(a) == len(b)
            for k in a:
                if a[k].dtype.kind in 'fi': np.testing.assert_allclose(a[k], b[k], rtol=TOLERANCE, atol=TOLERANCE)
                else: assert list(a[k].fillna('')) == list(b[k].fillna(''))
    assert sorted(p.name for p in (folder/'commands').iterdir()) == ['mixture', 'pretrain_2', 'run.yaml', 'train_2']
    assert done.stdout.count('epochs of') == 2  # one line of each command
    assert (done.stdout.count('Report, plots and model') == 1
            and done.stdout.count('Report, plots, predictions and model') == 1)
    errors = [o for o in done.stderr.splitlines() if 'error: ' in o]
    assert len(errors) == 3 and 'process 1: error: epochs must be at least 1' in errors[-1], errors


def test_a_process_that_fails_ends_all(tmp_path):
    "While the other waits for its rows"
    code = ('import sys, torch\nfrom hiccap.distributed import gather_rows, processes, rank\n'
            'with processes():\n'
            '    gather_rows(dict(a=torch.ones(1, 1)), 2)\n'
            '    if rank() == 1: sys.exit("row 7 cannot be read")\n'
            '    gather_rows(dict(a=torch.ones(1, 1)), 2)\n')
    (tmp_path/'p.py').write_text(code)
    import socket
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = {**os.environ, 'PYTHONPATH': str(CASES.parents[1]), 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2',
           'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1'}
    begin = time.monotonic()
    both = [
        subprocess.Popen([sys.executable, '-W', 'ignore', tmp_path / 'p.py'], stderr=subprocess.PIPE, text=True,
                         env={**env, 'RANK': str(r), 'LOCAL_RANK': str(r)})
        for r in range(2)
    ]
    said = [p.communicate(timeout=120)[1] for p in both]
    assert (all(p.returncode for p in both) and 'row 7 cannot be read' in said[1]
            and 'OtherProcessError: another process has ended' in said[0]), said
