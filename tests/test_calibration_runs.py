"""Calibration, operating points and decisions as a user types them: runs, predictions, evaluations and exports."""
import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from conftest import TINY_NETWORK
from hiccap.clips import DataError, as_numpy
from hiccap.cli import calibrate, evaluate, predict, train
from hiccap.decisions import decisions_of
from hiccap.inference import DECISIONS, load_run
from hiccap.operating_points import operating_point
from hiccap.run_data import read_splits
from hiccap.runs import Run
from hiccap.synthetic import synthetic_clips, write_synthetic
from hiccap.temperatures import Temperatures, fit_temperatures, tempered

SHAPE = {**TINY_NETWORK, 'head_dropout': .3,
         'text': dict(kind='tokens', config=dict(TINY_NETWORK['text']['config'], vocab_size=512))}
NET = ['--set', *(f'{k}={json.dumps(v)}' for k, v in SHAPE.items()), '--threads', '1', '--epochs', '2', '--lr', '.01',
       '--standardise', 'none']
ASKED = '--block-precision', '.4', '--pass-recall-loss', '.3', '--confidence', '.7'


def typed(command, *args, capsys):
    "Exit status, output and errors of a command"
    capsys.readouterr()
    return command(list(map(str, args))), *capsys.readouterr()


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Clips to train on, and others of other videos, on which decisions are found"
    folder = tmp_path_factory.mktemp('data')
    for name, n, seed in (('seen', 120, 0), ('new', 160, 5)):
        write_synthetic(synthetic_clips(n=n, seed=seed, scale=.1), folder/name)
    return folder


def options(data, out, *more):
    seen = data/'seen'
    return list(map(str, [seen/'clips.csv', '--features', seen/'features', '--tokenizer', seen/'tokenizer', '--labels',
                          'said', 'heard', '--out', out, *more, *NET]))


@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'run'
    assert train(options(data, out, '--operating-point', 'precision=0.99')) == 0
    return out


@pytest.fixture
def copied(run, tmp_path): return shutil.copytree(run, tmp_path/'run')


def new(data): return data/'new'/'clips.csv', '--features', data/'new'/'features'


def metrics_of(run): return json.loads((run/'metrics.json').read_text())


def test_a_run_fits_temperatures_on_its_validation_clips_and_keeps_them(run, data):
    trained, metrics = load_run(run), metrics_of(run)
    _, valid, test = read_splits(trained.run.clips, trained.tokenizer)[0]
    raw, probs = trained.mean_probabilities(valid)
    fitted = fit_temperatures(raw, as_numpy(valid.labels), trained.tasks, groups=valid.groups)
    assert metrics['temperatures'] == [pytest.approx(fitted.values, rel=1e-3)]
    assert metrics['temperature_errors'] == [pytest.approx(fitted.errors, rel=1e-2)] and fitted.errors
    assert trained.temperatures == [Temperatures(metrics['temperatures'][0], 'validation data of run',
                                                 errors=metrics['temperature_errors'][0])]
    for k, t in metrics['temperatures'][0].items(): assert np.allclose(probs[k], tempered(raw[k], t))
    kept = pd.read_csv(run/'probabilities.csv')
    of = kept[(kept.model == 'network') & (kept.task == 'said')]
    assert of['clip'].tolist() == test.ids
    raw, probs = trained.mean_probabilities(test)
    assert np.allclose(of[['p0', 'p1']], probs['said'], atol=1e-5)
    assert np.allclose(of[['raw0', 'raw1']], raw['said'], atol=1e-5)
    assert ((of.p1 >= metrics['thresholds'][0]['said']) == (of.predicted == 1)).all()
    table = pd.read_csv(run/'predictions.csv')
    assert np.allclose(table[table.task == 'said'].probability, of.p1, atol=1e-6)


def test_every_model_is_calibrated_on_the_same_clips(run):
    metrics = metrics_of(run)
    assert set(metrics['calibration']) == {'network', *metrics['simple'][0]}
    kept = pd.read_csv(run/'probabilities.csv')
    for model, c in metrics['calibration'].items():
        for task, t in c['temperatures'][0].items():
            of = kept[(kept.model == model) & (kept.task == task)]
            assert np.allclose(of[['p0', 'p1']], tempered(of[['raw0', 'raw1']].to_numpy(), t), atol=1e-6)
            known = of.dropna(subset='truth')
            assert c['after'][task]['scores']['brier'] == pytest.approx(((known.p1 - known.truth)**2).mean(), abs=1e-6)
            assert c['before'][task]['scores']['brier'] == pytest.approx(((known.raw1 - known.truth)**2).mean(),
                                                                         abs=1e-6)


def test_the_report_has_the_calibration_and_what_was_not_reached(run):
    report, metrics = (run/'report.md').read_text(), metrics_of(run)
    assert '## Calibration' in report and '![reliability diagram](reliability.png)' in report
    assert (run/'reliability.png').is_file()
    section = report.partition('## Calibration')[2].partition('\n## ')[0]
    for model in metrics['calibration']: assert f'| said | {model} |' in section
    assert '### Operating point `precision=0.99`' in report
    assert metrics['scores']['thresholds']['score'] == 'precision=0.99'
    # class frequencies never reach it, and the report says so
    assert '*class frequencies: said: no threshold reaches precision=0.99' in report


def test_the_settings_of_earlier_versions_mean_the_same(run, data, tmp_path, capsys):
    assert Run.from_dict(dict(threshold_score='f1')) == Run.from_dict(dict(training=dict(operating_point='f1')))
    old = tmp_path/'old.yaml'
    d = yaml.safe_load(load_run(run).run.to_yaml())
    assert d['training'].pop('operating_point') == 'precision=0.99'
    d['training']['threshold_score'] = 'accuracy'
    old.write_text(yaml.safe_dump(d))
    assert Run.from_yaml(old).training.operating_point == 'accuracy'
    status, _, err = typed(train, *options(data, tmp_path/'no'), '--operating-point', 'recall=2', capsys=capsys)
    assert status == 2 and err.startswith("error: operating point 'recall=2': recall takes a number above 0")
    status, _, err = typed(train, *options(data, tmp_path/'no'), '--threshold-score', 'auroc', capsys=capsys)
    assert status == 2 and "unknown operating point 'auroc'" in err and not (tmp_path/'no').exists()


def test_a_run_of_an_earlier_version_predicts_as_before(copied, data, capsys):
    trained = load_run(copied)
    ds = trained.read(*new(data)[::2], labelled=False)
    raw, probs = trained.mean_probabilities(ds)
    config, metrics = json.loads((copied/'config.json').read_text()), metrics_of(copied)
    config['run']['training']['threshold_score'] = 'f1'
    del config['run']['training']['operating_point'], metrics['temperatures'], metrics['calibration']
    (copied/'config.json').write_text(json.dumps(config))
    (copied/'metrics.json').write_text(json.dumps(metrics))
    earlier = load_run(copied)
    assert earlier.temperatures == [] and earlier.run.training.operating_point == 'f1'
    got, predicted = earlier.answer(ds)
    for k in raw:
        assert (got[k] == raw[k]).all() and not np.allclose(got[k], probs[k])
        assert (predicted[k] == (raw[k][:, 1] >= metrics['thresholds'][0][k])).all()
    status, out, _ = typed(evaluate, copied, *new(data), '--out', copied.parent/'scored', capsys=capsys)
    assert status == 0 and 'of an earlier version and has no temperatures' in (
        copied.parent/'scored'/'report.md').read_text()


@pytest.mark.parametrize('change', [
    dict(temperatures=[]), dict(temperatures=[dict(said=1.)]), dict(temperatures=[dict(said=1., heard=-1.)]),
    dict(temperatures=3), dict(temperatures=[dict(said='a', heard=1.)]), dict(temperature_errors=[]),
    dict(temperature_errors=[dict(said=-1.)]), dict(temperature_errors=[dict(other=1.)])])
def test_damaged_temperatures_are_refused(copied, change):
    (copied/'metrics.json').write_text(json.dumps(metrics_of(copied) | change))
    with pytest.raises(ValueError, match='no temperatures that a run wrote'): load_run(copied)


def test_an_evaluation_says_how_true_the_probabilities_are(run, data, tmp_path, capsys):
    assert typed(evaluate, run, *new(data), '--own-numbering', '--out', tmp_path/'scored', capsys=capsys)[0] == 0
    found = json.loads((tmp_path/'scored'/'metrics.json').read_text())['calibration']
    trained = load_run(run)
    ds = trained.read(*new(data)[::2])
    for side, probs in zip(('before', 'after'), trained.mean_probabilities(ds)):
        y = ds.targets('said').numpy()
        p, y = probs['said'][y >= 0, 1], y[y >= 0]
        assert found[side]['said']['scores']['brier'] == pytest.approx(((p - y)**2).mean(), abs=1e-6)
    assert (tmp_path/'scored'/'reliability.png').is_file()
    assert '| heard | network |' in (tmp_path/'scored'/'report.md').read_text()


def test_decisions_from_labelled_clips_to_predictions(copied, data, capsys):
    run = copied
    status, out, _ = typed(predict, run, *new(data), capsys=capsys)
    assert status == 0 and out.splitlines()[0] == 'clip,task,probability,predicted'
    status, _, err = typed(calibrate, run, *new(data), '--own-numbering', capsys=capsys)
    assert status == 2 and 'needs at least 59 videos' in err and not (run/DECISIONS).exists()
    status, out, _ = typed(calibrate, run, *new(data), '--own-numbering', *ASKED, capsys=capsys)
    assert status == 0 and (run/'decisions.png').is_file() and '| said |' in out
    kept = decisions_of(json.loads((run/DECISIONS).read_text()), DECISIONS)
    assert (kept.block_precision, kept.pass_recall_loss, kept.confidence) == (.4, .3, .7)
    status, out, _ = typed(predict, run, *new(data), capsys=capsys)
    table = pd.read_csv(io.StringIO(out))
    assert status == 0 and list(table) == ['clip', 'task', 'probability', 'predicted', 'decision']
    assert any(t.block_from is not None for t in kept.tasks.values())
    for name, t in kept.tasks.items():
        of = table[table.task == name]
        high = np.inf if t.block_from is None else t.block_from
        want = np.where(of.probability < t.pass_below, 'pass', np.where(of.probability >= high, 'block', 'review'))
        near = np.minimum(abs(of.probability - t.pass_below), abs(of.probability - high)) < 1e-6
        assert ((of.decision == want) | near).all()
    assert len(set(table.decision)) > 1
    assert typed(evaluate, run, *new(data), '--own-numbering', '--out', run.parent/'scored', capsys=capsys)[0] == 0
    assert 'decision' in pd.read_csv(run.parent/'scored'/'predictions.csv')


def test_what_decisions_are_not_found_on(copied, data, capsys):
    run = copied
    seen = data/'seen'/'clips.csv', '--features', data/'seen'/'features'
    trained = load_run(run)
    whole = trained.read(*seen[::2])
    train_clips = read_splits(trained.run.clips, trained.tokenizer)[0][0]
    with pytest.raises(DataError, match='no clip is new'): trained.calibrate(train_clips, data=str(seen[0]))
    # clips that were trained on, or that chose the epoch and the temperatures, are left out
    found = trained.calibrate(whole, .3, .6, .5, data=str(seen[0]), save=False)
    assert found.tasks['said'].videos == len(set(trained.unseen(whole, str(seen[0])).groups))
    assert not (run/DECISIONS).exists() and trained.decisions is found
    assert load_run(run).decisions is None
    assert typed(calibrate, run, *new(data), '--own-numbering', *ASKED, capsys=capsys)[0] == 0
    status, _, err = typed(calibrate, run, *new(data), '--own-numbering', *ASKED, capsys=capsys)
    assert status == 2 and '--overwrite replaces it' in err
    again = typed(calibrate, run, *new(data), '--own-numbering', *ASKED, '--overwrite', capsys=capsys)
    assert again[0] == 0
    d = json.loads((run/DECISIONS).read_text())
    for bad, message in ((dict(d, tasks={}) | dict(extra=1), 'holds no decisions'),
                         (dict(d, tasks=dict(other=d['tasks']['said'])), "decides on 'other'")):
        (run/DECISIONS).write_text(json.dumps(bad))
        status, _, err = typed(predict, run, *new(data), capsys=capsys)
        assert status == 2 and message in err


def test_folds_have_a_temperature_each_and_their_probabilities_are_averaged(data, tmp_path):
    assert train(options(data, tmp_path/'folds', '--folds', '2', '--epochs', '1')) == 0
    trained = load_run(tmp_path/'folds')
    first, second = trained.temperatures
    assert first.values != second.values and set(first.values) == {'said', 'heard'}
    ds = trained.read(*new(data)[::2], labelled=False)
    probs, models = trained.answer(ds)[0], list(zip(trained.models, trained.temperatures))
    each = []
    for model, t in models:
        trained.models, trained.temperatures = [model], [t]
        raw, calibrated = trained.mean_probabilities(ds)
        assert np.allclose(calibrated['said'], tempered(raw['said'], t.values['said']))
        each.append(calibrated['said'])
    assert np.allclose(probs['said'], np.mean(each, 0))


def test_the_operating_point_of_a_run_is_an_object_when_it_is_needed():
    assert Run.flat(operating_point='cost=5:1.0').training.operating_point == 'cost=5:1'
    assert operating_point(Run().training.operating_point).goal == 'macro_f1'
