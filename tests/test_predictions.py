"""Kept predictions are read as they were made: of which clip, for which task, to the last digit of a float32."""
import gzip
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from hiccap.clips import Clip, ClipDataset
from hiccap.predictions import PROBABILITIES, probability_table, read_probabilities, write_probabilities
from hiccap.tasks import IGNORE, Task

TASKS = Task('few', 2), Task('many', 12), Task('rated', kind='regression'), Task('p1', 3)
IDS = 'nan', 'NA', '007', '1e5', 'a b', 'None', 'b,"c"', 'v_1', 'v_2', 'Ünï', '-', 'inf'


def clips_of(labels, ids=IDS, tasks=TASKS):
    "Clips with labels, one dict each; two clips a video"
    ds = ClipDataset.from_clips([Clip(o, text=[5], labels=y) for o, y in zip(ids, labels)], tasks)
    ds.groups = [f'0{i//2}' for i in range(len(ds))]
    return ds


def model_of(ds, rng, raw=False):
    "Predictions as a model has them: float32 probabilities, class numbers, and numbers of any size"
    def probs(t):
        if t.is_regression: return (rng.standard_normal((len(ds), 1))*10.**rng.integers(-6, 7)).astype(np.float32)
        return rng.dirichlet(np.full(t.n_classes, .1), len(ds)).astype(np.float32)
    p = {t.name: probs(t) for t in ds.tasks}
    predicted = {t.name: p[t.name][:, 0] if t.is_regression else rng.integers(0, t.n_classes, len(ds))
                 for t in ds.tasks}
    return SimpleNamespace(probs=p, predicted=predicted, raw={t.name: probs(t) for t in ds.tasks} if raw else None)


def same(kept, m, ds, task):
    "Whether what was kept for a task is what a model predicted"
    assert kept.clips == ds.ids and kept.videos == ds.groups
    assert kept.probs.dtype == np.float64 and kept.probs.shape == m.probs[task.name].shape
    assert (kept.probs.astype(np.float32) == m.probs[task.name]).all()
    assert (kept.predicted.astype(m.predicted[task.name].dtype) == m.predicted[task.name]).all()
    kind = 'f' if task.is_regression else 'i'
    assert kept.truth.dtype.kind == kept.predicted.dtype.kind == kind
    truth = ds.targets(task).numpy()
    assert np.array_equal(kept.truth.astype(truth.dtype), truth, equal_nan=task.is_regression)


LABELS = st.fixed_dictionaries({}, optional=dict(
    few=st.integers(0, 1), many=st.integers(0, 11), rated=st.floats(-1e3, 1e3, width=32), p1=st.integers(0, 2)))

@given(st.lists(LABELS, min_size=1, max_size=len(IDS)), st.integers(0, 999), st.permutations(TASKS))
@settings(max_examples=25)
def test_what_is_written_is_read_again(tmp_path_factory, labels, seed, tasks):
    folder, rng = tmp_path_factory.mktemp('run'), np.random.default_rng(seed)
    ds = clips_of(labels, tasks=tasks)
    models = {k: model_of(ds, rng, raw=k == 'network') for k in ('words', 'network', '007')}
    write_probabilities(folder, probability_table(models, ds))
    kept = read_probabilities(folder)
    assert list(kept) == list(models)
    for name, m in models.items():
        assert list(kept[name]) == [t.name for t in ds.tasks]
        for t in ds.tasks: same(kept[name][t.name], m, ds, t)


def test_one_clip_of_two_models_is_read_again_in_their_order(tmp_path):
    ds, rng = clips_of([dict(few=1, rated=.1)]), np.random.default_rng(0)
    models = dict(b=model_of(ds, rng), a=model_of(ds, rng))
    write_probabilities(tmp_path, probability_table(models, ds))
    kept = read_probabilities(tmp_path)
    assert [(m, list(kept[m])) for m in kept] == [(m, [t.name for t in TASKS]) for m in ('b', 'a')]
    for name, m in models.items():
        for t in TASKS: same(kept[name][t.name], m, ds, t)


def test_an_unknown_label_is_missing_and_no_class():
    ds = clips_of([dict(few=0, rated=0.), {}, dict(few=1, rated=2.5)])
    table = probability_table(dict(m=model_of(ds, np.random.default_rng(0))), ds)
    truth = {t: part.truth.tolist() for t, part in table.groupby('task')}
    assert truth['few'][::2] == [0, 1] and truth['rated'][::2] == [0., 2.5]
    assert truth['few'][1] is pd.NA and truth['rated'][1] is pd.NA and all(o is pd.NA for o in truth['many'])
    assert table.predicted.notna().all()
    assert all(type(o) is (float if t == 'rated' else int) for t, o in zip(table.task, table.predicted))
    assert IGNORE not in table.truth.dropna().tolist()


def test_nine_digits_are_written_and_each_row_has_a_number_of_its_own(tmp_path):
    ds, rng = clips_of([dict(few=1)]*2), np.random.default_rng(0)
    models = dict(a=model_of(ds, rng), b=model_of(ds, rng))
    for m in models.values():
        m.probs['few'] = np.array([[1/3, 2/3]]*2)
        m.predicted['rated'] = np.full(2, 1/7)
    table = probability_table(models, ds)
    assert table.index.tolist() == list(range(2*len(TASKS)*len(ds)))
    write_probabilities(tmp_path, table)
    lines = (tmp_path/PROBABILITIES).read_text().splitlines()
    assert len(lines) == 1 + len(table) and lines[1].split(',')[:8] == [
        'a', 'nan', '00', 'few', '1', str(models['a'].predicted['few'][0]), '0.333333333', '0.666666667']
    assert sum(',0.142857143,' in o for o in lines) == 4


def test_probabilities_before_calibration_are_beside_those_after_it(tmp_path):
    ds, rng = clips_of([dict(few=1)]*3), np.random.default_rng(0)
    models = dict(network=model_of(ds, rng, raw=True), words=model_of(ds, rng))
    write_probabilities(tmp_path, probability_table(models, ds))
    table = pd.read_csv(tmp_path/PROBABILITIES, dtype={'clip': str}, keep_default_na=False, na_values=[''])
    numbers = [f'{k}{c}' for k in ('p', 'raw') for c in range(12)]
    assert table.columns.tolist() == ['model', 'clip', 'video', 'task', 'truth', 'predicted', *numbers]
    for t in ds.tasks:
        rows = table[(table.model == 'network') & (table.task == t.name)]
        raw = rows[[f'raw{c}' for c in range(t.n_classes)]].to_numpy(np.float32)
        if not t.is_regression: assert (raw == models['network'].raw[t.name]).all()
        assert rows[[f'raw{c}' for c in range(t.n_classes, 12)]].isna().all(axis=None)  # a number has no such column
        assert rows[[f'p{c}' for c in range(max(1, t.n_classes), 12)]].isna().all(axis=None)
    assert table[table.model == 'words'][numbers[12:]].isna().all(axis=None)


@pytest.fixture
def joined(tmp_path):
    "A folder of two streams or folds with a task each: of one name, or not"
    def write(column, *tasks):
        parts, found = [], []
        for n, task in enumerate(tasks):
            ds = clips_of([{task.name: n}]*2, ids=[f'{n}a', f'{n}b'], tasks=[task])
            m = model_of(ds, np.random.default_rng(n))
            parts.append(probability_table(dict(network=m), ds).assign(**{column: f's{n}'}))
            found.append((ds, m))
        write_probabilities(tmp_path, pd.concat(parts, ignore_index=True))
        return found
    return write


def test_streams_are_read_together_or_one_by_one(joined, tmp_path):
    found = joined('stream', TASKS[0], TASKS[1])
    together = read_probabilities(tmp_path)['network']
    assert list(together) == ['few', 'many']
    for n, (t, (ds, m)) in enumerate(zip(TASKS, found)):
        alone = read_probabilities(tmp_path, f's{n}')['network']
        assert list(alone) == [t.name]
        for kept in (alone, together): same(kept[t.name], m, ds, t)
    with pytest.raises(ValueError, match='no stream \'s2\', only s0, s1'): read_probabilities(tmp_path, 's2')


def test_two_streams_with_a_task_of_one_name_are_not_mixed(joined, tmp_path):
    tasks = TASKS[0], TASKS[0], TASKS[1]
    found = joined('stream', *tasks)
    with pytest.raises(ValueError, match='give one of s0, s1'): read_probabilities(tmp_path)
    for n, (t, (ds, m)) in enumerate(zip(tasks, found)):
        same(read_probabilities(tmp_path, f's{n}')['network'][t.name], m, ds, t)


def test_folds_are_joined_in_their_order(joined, tmp_path):
    found = joined('fold', TASKS[0], TASKS[0])
    kept = read_probabilities(tmp_path)['network']['few']
    assert kept.clips == ['0a', '0b', '1a', '1b'] and kept.truth.tolist() == [0, 0, 1, 1]
    assert (kept.probs.astype(np.float32) == np.concatenate([m.probs['few'] for _, m in found])).all()
    with pytest.raises(ValueError, match='no stream \'s0\', only clips of one run'): read_probabilities(tmp_path, 's0')


def test_the_file_may_be_compressed(joined, tmp_path):
    (ds, m), = joined('fold', TASKS[1])
    path = tmp_path/PROBABILITIES
    (tmp_path/f'{PROBABILITIES}.gz').write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    same(read_probabilities(tmp_path)['network']['many'], m, ds, TASKS[1])


def test_a_run_of_an_earlier_version_has_no_probabilities(tmp_path):
    with pytest.raises(ValueError, match='an earlier version of hiccap wrote it'): read_probabilities(tmp_path)
