"""Whatever a file holds, a reader gives what it read or an error of its own that names the file: 112 damaged files, and 1,000 with HYPOTHESIS_PROFILE=nightly."""
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.hard

FUZZING = Path(__file__).with_name('fuzzing.py')
COUNT = 1008 if os.environ.get('HYPOTHESIS_PROFILE') == 'nightly' else 112


def test_damaged_files_end_in_an_error_of_our_own_or_in_success(tmp_path):
    done = subprocess.run([sys.executable, '-W', 'ignore', FUZZING, tmp_path/'fuzz', str(COUNT), os.environ.get('FUZZ_SEED', '0')], capture_output=True, text=True, timeout=60 + COUNT*2,
                          env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(FUZZING.parents[1]), os.environ.get('PYTHONPATH', '')])})
    found = [json.loads(o) for o in (tmp_path/'fuzz'/'found.jsonl').read_text().splitlines()] if (tmp_path/'fuzz'/'found.jsonl').exists() else []
    ended = [o for o in found if o.get('done')]
    assert done.returncode == 0 and len(ended) == COUNT, (found[-1:], done.stderr[-2000:])  # a crash shows as a beginning without an end
    assert not (bad := [o for o in ended if o['bad']]), (len(bad), bad[:5])
    assert set(Counter(o['kind'] for o in ended).values()) == {COUNT//14}
    refused = Counter(o['kind'] for o in ended if o['said'])
    assert all(refused[k] >= 3 for k in {o['kind'] for o in ended} - {'checkpoints'}), refused  # the damage is such that readers notice; of two checkpoints the one before is used
