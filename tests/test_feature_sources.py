"""Features of any modality from any kind of source: the same arrays give the same clips, whatever holds them; what is
wrong is named before anything is trained, by the audit too; and a network keeps how its features are standardised."""
import copy
import csv
import json
import re
import shutil
from importlib.util import find_spec

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings, strategies as st
from pyarrow import feather, parquet
from safetensors.numpy import save_file

from hiccap.checkpoints import load_model, save_model
from hiccap.clips import Clip, ClipDataset, DataError
from hiccap.column_statistics import ColumnStatistics
from hiccap.digests import SETTLED, one_look
from hiccap.encoders import FeaturesConfig
from hiccap.export import export_onnx, OnnxModel
from hiccap.features import FeatureFolder, feature_columns, open_features
from hiccap.inference import load_run
from hiccap.mean_pooling import mean_pooled
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.padding import collate
from hiccap.run_data import feature_folder, read_splits
from hiccap.run_folders import data_digests, source_digests
from hiccap.runs import Clips, Network, Run, Training
from hiccap.sources import parse_sources, source_texts
from hiccap.tasks import Task
from hiccap.training import build_model

IDS = [f'vid{v:02d}_{k}' for v in range(10) for k in range(2)]
NETWORK = dict(width=16, heads=2, head_widths=[16])
FEW = settings(max_examples=max(6, settings.default.max_examples//4))
needs_h5py = pytest.mark.skipif(find_spec('h5py') is None, reason='h5py is not installed')


# each kind of source: a function that writes arrays (name -> array) and returns its path

def npy(folder, arrays):
    folder.mkdir(parents=True, exist_ok=True)
    for k, x in arrays.items(): np.save(folder/f'{k}.npy', x)
    return folder

def npz(folder, arrays):
    folder.mkdir(parents=True, exist_ok=True)
    for k, x in arrays.items(): np.savez(folder/f'{k}.npz', x)
    return folder

def pt(folder, arrays):
    folder.mkdir(parents=True, exist_ok=True)
    for n, (k, x) in enumerate(arrays.items()):
        x = torch.from_numpy(x)
        torch.save(x if n % 2 else dict(values=x), folder/f'{k}.pt')
    return folder

def safe(folder, arrays):
    folder.mkdir(parents=True, exist_ok=True)
    for k, x in arrays.items(): save_file(dict(x=x), folder/f'{k}.safetensors')
    return folder

def one_npz(folder, arrays):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder/'all.npz', **arrays)
    return folder/'all.npz'

def one_safe(folder, arrays):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(arrays, folder/'all.safetensors')
    return folder/'all.safetensors'

def one_h5(folder, arrays):
    import h5py
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder/'all.h5', 'w') as f:
        for k, x in arrays.items(): f[k] = x
    return folder/'all.h5'

def one_parquet(folder, arrays):
    folder.mkdir(parents=True, exist_ok=True)
    rows = {k: x for k, x in arrays.items() if not k.endswith('_times')}
    columns = dict(id=list(rows), values=[x.tolist() for x in rows.values()])
    if len(rows) < len(arrays): columns['times'] = [arrays[f'{k}_times'].tolist() for k in rows]
    kinds = dict(values=pa.list_(pa.list_(pa.from_numpy_dtype(next(iter(rows.values())).dtype))))
    table = pa.table({k: pa.array(v, kinds.get(k)) for k, v in columns.items()})
    parquet.write_table(table, folder/'all.parquet')
    return folder/'all.parquet'

def one_feather(folder, arrays):
    path = one_parquet(folder, arrays)
    feather.write_feather(parquet.read_table(path), folder/'all.feather')
    return folder/'all.feather'

FOLDERS = dict(npy=npy, npz=npz, pt=pt, safetensors=safe)
FILES = dict(one_npz=one_npz, one_safetensors=one_safe, hdf5=one_h5, parquet=one_parquet, feather=one_feather)
KINDS = [pytest.param(f, id=k, marks=needs_h5py if k == 'hdf5' else ()) for k, f in {**FOLDERS, **FILES}.items()]
SINGLE = [pytest.param(f, id=k, marks=needs_h5py if k == 'hdf5' else ()) for k, f in FILES.items()]


def arrays_of(ids=IDS, width=3, seed=0, rows=lambda n: 1 + n % 4):
    rng = np.random.default_rng(seed)
    return {id: rng.normal(size=(rows(n), width)).astype(np.float32) for n, id in enumerate(ids)}


def with_times(arrays):
    out = dict(arrays)
    for k, x in arrays.items():
        at = np.arange(len(x), dtype=np.float32)
        out[f'{k}_times'] = np.stack([at/2, at/2 + .5], 1)
    return out


def write_table(path, ids=IDS, **columns):
    columns = columns or dict(funny=[i % 2 for i in range(len(ids))])
    with open(path, 'w', newline='') as f:
        w = csv.writer(f)
        w.writerow(['id', *columns])
        for i, id in enumerate(ids): w.writerow([id, *(v[i] for v in columns.values())])
    return path


def train(typed, table, out, *args):
    return typed('train', table, '--labels', 'funny', '--epochs', 1, '--threads', 1, '--out', out, *args, '--set',
                 *(f'{k}={json.dumps(v)}' for k, v in NETWORK.items()))


# the syntax

@pytest.mark.parametrize('value, same', [
    ('features', ('features',)), (['a', 'face=b/'], ('a', 'face=b/')), (None, ()),
    (dict(face='openface/', video='i3d:rgb+flow'), ('face=openface/', 'video=i3d:rgb+flow'))])
def test_a_setting_in_any_form_is_the_same_run(value, same, tmp_path):
    assert Clips(features=value).features == same
    run = Run.from_dict(dict(clips=dict(data='c.csv', features=value)))
    (tmp_path/'run.yaml').write_text(run.to_yaml())
    assert Run.from_yaml(tmp_path/'run.yaml') == run
    assert Run.from_config(json.loads(json.dumps(dict(run=run.to_dict(defaults=True)))), 'config.json') == run


def test_a_yaml_file_and_a_configuration_of_earlier_versions_load(tmp_path):
    (tmp_path/'run.yaml').write_text('data: c.csv\nfeatures: {face: openface/, video: "i3d:rgb+flow"}\n')
    assert Run.from_yaml(tmp_path/'run.yaml').clips.features == ('face=openface/', 'video=i3d:rgb+flow')
    for old in ('features', None):
        run = Run.from_config(dict(run=dict(clips=dict(data='c.csv', features=old))), 'config.json')
        assert run.clips.features == ((old,) if old else ())


@pytest.mark.parametrize('value, says', [
    (['a', 'b'], 'both given without a modality'), (['face=a', 'face=b'], 'two sources of face'),
    (['my face=a'], "'my face' in 'my face=a' cannot name a modality"), (['face='], 'write face=PATH'),
    (3, 'must be a folder'),
    (dict(face=['a']), 'must be the name of a modality and a path'),
    (['face=a:x+x'], "the part 'x' twice")])
def test_sources_that_mean_nothing(value, says):
    with pytest.raises(ValueError, match=says): Clips(features=value)


@given(st.dictionaries(st.from_regex('[A-Za-z][A-Za-z0-9_]{0,5}', fullmatch=True),
                       st.tuples(st.sampled_from(['a/b', './x', 'f.h5', 'C:/i3d']),
                                 st.lists(st.sampled_from(['rgb', 'flow', 'x-1']), max_size=3, unique=True)),
                       min_size=1, max_size=4), st.sampled_from([None, 'base']))
def test_sources_are_read_back(named, base):
    texts = [f'{m}={path}' + (f":{'+'.join(parts)}" if parts else '') for m, (path, parts) in named.items()]
    got, found = parse_sources([*texts, *([base] if base else [])])
    assert got == base
    assert {m: (o.path, o.parts) for m, o in found.items()} == {
        m: (path, tuple(parts) or ('',)) for m, (path, parts) in named.items()}
    assert source_texts(texts) == tuple(texts) == source_texts({m: t.partition('=')[2] for m, t in zip(named, texts)})


# the same arrays give the same clips

@pytest.mark.parametrize('write', KINDS)
@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from(['f4', 'f8', 'i4']), st.booleans(), st.integers(0, 99))
@FEW
def test_the_same_arrays_give_the_same_clips(tmp_path_factory, write, n, width, dtype, timed, seed):
    ids = IDS[:n]
    arrays = {k: (x*100).astype(dtype) for k, x in arrays_of(ids, width, seed).items()}
    tmp_path = tmp_path_factory.mktemp('kinds')
    path = write(tmp_path/'a', with_times(arrays) if timed else arrays)
    columns, notes = feature_columns(f'face={path}', ids)
    ds = ClipDataset(ids, columns, {}, [])
    assert ds.lengths('face').tolist() == [len(arrays[o]) for o in ids]
    for clip in ds:
        assert clip.face.dtype == torch.float32
        assert torch.equal(clip.face, torch.from_numpy(arrays[clip.id].astype(np.float32)))
        assert ('face' in clip.seconds) == timed
        if timed: assert torch.equal(clip.seconds['face'][:, 0], torch.arange(len(clip.face))/2)
    said = {'f4': 0, 'f8': 'are float64, rounded to float32', 'i4': 'hold whole numbers, read as float32'}[dtype]
    assert [o for o in notes if 'face arrays' in o] == ([f'{n} face arrays {said}'] if said else [])


@pytest.mark.parametrize('write', KINDS)
def test_parts_are_added_in_every_kind(write, tmp_path):
    rgb, flow = arrays_of(IDS[:3], seed=1), arrays_of(IDS[:3], seed=2)
    if write in (one_parquet, one_feather):
        table = pa.table(dict(id=IDS[:3], rgb=[x.tolist() for x in rgb.values()],
                              flow=[x.tolist() for x in flow.values()]))
        path = tmp_path/'all.parquet'
        parquet.write_table(table, path)
    else: path = write(tmp_path/'a', {f'{k}_{p}': x for p, d in dict(rgb=rgb, flow=flow).items() for k, x in d.items()})
    columns, _ = feature_columns(f'video={path}:rgb+flow', IDS[:4])
    assert columns['video'].lengths.tolist() == [1, 2, 3, 0]
    for i, id in enumerate(IDS[:3]): assert np.allclose(columns['video'][i], rgb[id] + flow[id])


def test_one_vector_a_clip_and_a_batch_of_one(tmp_path):
    npy(tmp_path/'a', dict(a=np.ones(3, np.float32), b=np.ones((1, 2, 3), np.float16)))
    columns, notes = feature_columns(f'face={tmp_path}/a', ['a', 'b'])
    assert columns['face'].lengths.tolist() == [1, 2] and columns['face'][1].shape == (2, 3)
    assert notes == ['1 face arrays are float16, read as float32',
                     '1 face arrays have a batch dimension of 1 in front, which is dropped',
                     '1 face arrays are one vector a clip, read as one row']


def test_an_array_of_several_is_chosen_by_its_name(tmp_path):
    x = np.ones((2, 3), np.float32)
    np.savez(tmp_path/'a.npz', face=x, other=np.zeros((9, 9)), face_times=[[0, 1], [1, 2]])
    folder, = open_features(f'face={tmp_path}', {}).folders
    assert torch.equal(folder.load('a', 'face'), torch.from_numpy(x)) and folder.seconds('a', 'face').shape == (2, 2)
    with pytest.raises(DataError, match='holds the arrays face, other. Name one of them sound'):
        open_features(f'sound={tmp_path}', {}).folders[0].load('a', 'sound')


# what is refused

@pytest.mark.parametrize('bad, says', [
    (np.ones((2, 2, 3), np.float32), 'two dimensions'), (np.ones((2, 3), bool), 'dtype bool'),
    (np.array([{}, None]), 'Python objects'), (np.ones((2, 4), np.float32), '4 columns where face has 3'),
    (np.full((2, 3), np.nan, np.float32), 'NaN or infinite'), (np.full((2, 3), 1e300), 'too large for float32')])
@pytest.mark.parametrize('kind', ['npy', 'npz', 'one_npz'])
def test_arrays_that_cannot_be_used(bad, says, kind, tmp_path, typed):
    arrays = {**arrays_of(), IDS[3]: bad}
    if kind == 'npy': path = npy(tmp_path/'a', arrays)
    else: path = dict(npz=npz, one_npz=one_npz)[kind](tmp_path/'a', arrays)
    table = write_table(tmp_path/'t.csv')
    status, out, err = train(typed, table, tmp_path/'run', '--features', f'face={path}')
    assert status == 2 and says in err and IDS[3] in err and str(tmp_path/'a') in err, err
    status, out, err = typed('audit', table, '--labels', 'funny', '--features', f'face={path}', '--fail-on', 'error')
    assert status == 1 and any(o.startswith('error') and 'features' in o for o in out.splitlines()), out


@pytest.mark.parametrize('write', KINDS)
def test_damaged_files(write, tmp_path):
    path = write(tmp_path/'a', arrays_of(IDS[:2]))
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    files[0].write_bytes(files[0].read_bytes()[:len(files[0].read_bytes())//2])
    with pytest.raises(DataError, match='not a readable|cut short'):
        columns, _ = feature_columns(f'face={path}', IDS[:2])
        for i in range(2): columns['face'][i]


@pytest.mark.parametrize('args, says', [
    (['face=nowhere/'], 'no such folder of features'), (['face=nowhere.h5'], 'no such file|needs the package'),
    (['id=faces/'], "'id' cannot name a modality"), (['a b=faces/'], "'a b' in 'a b=faces/' cannot name"),
    (['face=faces/', 'face=other/'], 'two sources of face'), (['faces', 'other'], 'both given without a modality'),
    (['face=faces/:au'], 'no array of face in it'), (['faces'], 'name the modality')])
def test_sources_that_are_wrong_end_a_command_in_one_line(args, says, tmp_path, typed, monkeypatch):
    monkeypatch.chdir(tmp_path)
    npy(tmp_path/'faces', arrays_of())
    npy(tmp_path/'other', arrays_of())
    table = write_table(tmp_path/'t.csv')
    status, out, err = train(typed, table, tmp_path/'run', '--features', *args)
    assert status == 2 and re.search(says, err) and err.count('\n') == 1, err
    status, out, err = typed('audit', table, '--labels', 'funny', '--features', *args, '--fail-on', 'error')
    assert status in (1, 2) and re.search(says, out + err), (out, err)


@pytest.mark.parametrize('write', KINDS)
@pytest.mark.parametrize('of, says', [(lambda o: o.upper(), 'upper and lower case differ'),
                                      (lambda o: f'{o}.mp4', 'has the extension .mp4')])
def test_ids_that_match_nothing(write, of, says, tmp_path):
    path = write(tmp_path/'a', arrays_of())
    with pytest.raises(DataError, match='none of the face (files|arrays) belongs to a clip') as e:
        feature_columns(f'face={path}', [of(o) for o in IDS])
    assert says in str(e.value) and 'vid00_0' in str(e.value)
    if not path.is_dir(): assert 'file name' not in str(e.value)
    _, notes = feature_columns(f'face={path}', [of(IDS[0]), *IDS[1:]])
    assert any('1 of them would have a file' in o and says in o for o in notes), notes


def test_the_seconds_of_an_array_that_is_lost_are_not_taken_for_it(tmp_path):
    path = npy(tmp_path/'a', arrays_of())
    np.save(path/f'{IDS[0]}_times.npy', np.zeros((3, 2)))
    (path/f'{IDS[0]}.npy').unlink()
    _, notes = feature_columns(f'face={path}', IDS)
    assert any(IDS[0] in o for o in notes) and not any('would have a file' in o for o in notes), notes


# times

@pytest.mark.parametrize('bad, says', [
    (np.zeros(2, np.float32), 'start times of face without the ends'),
    (np.zeros((3, 2), np.float32), r'times of shape \(3, 2\) for 2 rows of face in vid01_0'),
    (np.float32([[0, 1], [3, 2]]), 'in row 1 run from 3 to 2')])
def test_times_that_cannot_be_used(bad, says, tmp_path, typed):
    arrays = with_times(arrays_of(rows=lambda n: 2))
    arrays[f'{IDS[2]}_times'] = bad
    path, table = npy(tmp_path/'a', arrays), write_table(tmp_path/'t.csv')
    status, out, err = train(typed, table, tmp_path/'run', '--features', f'face={path}')
    assert status == 2 and re.search(says, err) and f'{IDS[2]}_times.npy' in err, err
    status, out, err = typed('audit', table, '--labels', 'funny', '--features', f'face={path}', '--fail-on', 'error')
    assert status == 1 and 'features-times' in out, out


def test_times_of_parts_must_agree(tmp_path):
    x, at = np.ones((2, 3), np.float32), np.float32([[0, 1], [1, 2]])
    npy(tmp_path/'a', dict(a_rgb=x, a_flow=x, a_rgb_times=at, a_flow_times=at))
    source = f'video={tmp_path}/a:rgb+flow'
    assert open_features(source, {}).folders[0].seconds('a', 'video').tolist() == at.tolist()
    np.save(tmp_path/'a'/'a_flow_times.npy', at + 1)
    columns, _ = feature_columns(source, ['a'])
    with pytest.raises(DataError, match='different times'): columns['video_seconds'][0]


# NaN

@given(st.lists(st.lists(st.sampled_from([1., 2., np.nan, np.inf, -np.inf]), min_size=2, max_size=2), min_size=1,
                max_size=5))
def test_wrong_values_are_filled_with_the_mean_of_their_column(tmp_path_factory, rows):
    path, x = tmp_path_factory.mktemp('fill'), np.float32(rows)
    np.save(path/'a.npy', x)
    columns, notes = feature_columns(open_features(f'face={path}', {}, 'fill'), ['a'])
    got, good = columns['face'][0].numpy(), np.isfinite(x)
    assert np.array_equal(got[good], x[good])
    for j in range(2):
        mean = x[good[:, j], j].mean() if good[:, j].any() else 0
        assert np.allclose(got[~good[:, j], j], mean)
    n = (~good).sum()
    says = (f'{n} values of face in 1 clip are NaN, infinite or too large for float32, and are filled with the mean of'
            ' their column in the clip')
    assert notes == ([says] if n else [])


def test_filling_is_a_choice_that_the_run_keeps(tmp_path, typed):
    arrays = arrays_of()
    arrays[IDS[5]][0, 1] = np.nan
    path, table = npy(tmp_path/'a', arrays), write_table(tmp_path/'t.csv')
    assert train(typed, table, tmp_path/'run', '--features', f'face={path}')[0] == 2
    status, out, err = train(typed, table, tmp_path/'run', '--features', f'face={path}', '--non-finite', 'fill')
    assert status == 0 and '1 values of face in 1 clip are NaN' in out, err
    assert load_run(tmp_path/'run').run.clips.non_finite == 'fill'
    status, out, err = typed('predict', tmp_path/'run', table, '--features', f'face={path}')
    assert status == 0 and out.count('\n') == 21 and '1 values of face in 1 clip' in err, err
    audit = ['audit', table, '--labels', 'funny', '--features', f'face={path}', '--fail-on', 'error']
    assert typed(*audit)[0] == 1
    status, out, err = typed(*audit, '--non-finite', 'fill')
    assert status == 0 and '1 values of face in 1 clip are NaN' in out


# what values look like

def test_training_and_the_audit_say_the_same_of_values(tmp_path, typed):
    rng = np.random.default_rng(0)
    arrays = {id: np.pad(rng.normal(0, [1, 1, 1, 9000, 0], (2, 5)), ((0, n % 2), (0, 0))).astype(np.float32)
              for n, id in enumerate(IDS)}
    path, table = npy(tmp_path/'a', arrays), write_table(tmp_path/'t.csv')
    status, out, err = train(typed, table, tmp_path/'run', '--features', f'face={path}')
    assert status == 0, err
    notes = json.loads((tmp_path/'run'/'metrics.json').read_text())['notes']
    typed('audit', table, '--labels', 'funny', '--features', f'face={path}', '--out', tmp_path/'audit')
    found = {f['code']: f['what'] for f in json.loads((tmp_path/'audit'/'audit.json').read_text())['findings']}
    codes = 'features-padded', 'features-scale', 'features-constant-columns'
    assert all(found[k] in notes for k in codes), (found, notes)
    assert found[codes[0]].startswith('10 of 20 clips with face end in rows of zeros (10 of 50 rows)')
    assert 'column 3 is' in found[codes[1]] and found[codes[2]].startswith('1 of 5 columns of face')
    status, out, err = train(typed, table, tmp_path/'even', '--features', f'face={path}', '--standardise', 'face')
    assert status == 0 and 'rows of zeros' in out and 'differ in scale' not in out, out


def test_good_features_give_no_note(tmp_path):
    rng = np.random.default_rng(0)
    s = ColumnStatistics()
    for _ in range(20): s.add(rng.normal(0, [1, 500], (4, 2)))
    assert s.value_notes('face') == []


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.floats(-1e6, 1e6), st.integers(0, 99))
def test_statistics_of_a_stream_are_those_of_all_rows(lengths, mean, seed):
    rng, s = np.random.default_rng(seed), ColumnStatistics()
    clips = [rng.normal(mean, [1, 0, 7], (n, 3)) for n in lengths]
    for x in clips: s.add(x)
    if not sum(lengths): return
    whole = np.concatenate(clips)
    assert s.rows == len(whole) and s.clips == np.count_nonzero(lengths)
    assert np.allclose(s.mean, whole.mean(0)) and np.allclose(s.deviation, whole.std(0), rtol=1e-6, atol=1e-9)
    assert s.scaling()[1][1] == 1 and s.scaling()[0].dtype == np.float32


# standardisation

def two_kinds(n=12, loc=1e4, seed=0):
    g = torch.Generator().manual_seed(seed)
    clips = [Clip(f'v{i}', face=torch.randn(1 + i % 3, 3, generator=g)*torch.tensor([1., 1e-3, 0]) + loc,
                  sound=torch.randn(2, 2, generator=g), labels=dict(a=i % 2)) for i in range(n)]
    return ClipDataset.from_clips(clips, [Task('a')])


def test_a_network_standardises_by_its_training_clips_alone():
    ds = two_kinds()
    train = ds.subset(range(6))
    model = build_model(Network(config=NETWORK, standardise=('face',)), train, verbose=False)
    scale, x = model.encoders['face'].standardise, torch.cat([train[i].face for i in range(6)])
    assert torch.allclose(scale.mean, x.double().mean(0).float())
    deviation = x.double().std(0, correction=0).float()
    assert scale.deviation[2] == 1 and torch.allclose(scale.deviation[:2], deviation[:2], rtol=1e-4)
    assert model.encoders['sound'].standardise is None
    other = build_model(Network(config=NETWORK, standardise=('face',)), ds.subset(range(6, 12)), verbose=False)
    assert not torch.equal(other.encoders['face'].standardise.mean, scale.mean)
    y = scale(x)
    assert torch.allclose(y[:, 0].std(correction=0), torch.tensor(1.), atol=1e-3) and not y[:, 2].any()


def test_what_is_standardised_in_the_network_is_standardised_everywhere(tmp_path):
    ds = two_kinds()
    model = build_model(Network(config=NETWORK, standardise=('face',)), ds, verbose=False).eval()
    plain = build_model(Network(config=NETWORK, standardise='none'), ds, verbose=False).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if 'standardise' not in k})
    scaled = ClipDataset.from_clips([Clip(c.id, face=model.encoders['face'].standardise(c.face), sound=c.sound,
                                          labels=c.labels) for c in ds], ds.tasks)
    x, y = (collate(list(o), o.tasks, modalities=('face', 'sound'))[0] for o in (ds, scaled))
    names = [f'{m}{k}' for m in ('face', 'sound') for k in ('', '_mask')]
    x, y = ({k: o[k] for k in names} for o in (x, y))
    with torch.no_grad():
        want = plain(y)['a']
        assert torch.allclose(model(x)['a'], want, atol=1e-5)
        save_model(model, tmp_path/'model')
        assert torch.equal(load_model(tmp_path/'model')(x)['a'], model(x)['a'])
        half = copy.deepcopy(model).bfloat16()
        assert half.encoders['face'].standardise.mean.dtype == torch.float32
        assert (half(x)['a'].float() - want).abs().max() < .1
        pooled = mean_pooled(model).eval()
        assert torch.equal(pooled.encoders['face'].standardise.mean, model.encoders['face'].standardise.mean)
    if find_spec('onnxruntime') is None: pytest.skip('onnxruntime is not installed')
    export_onnx([model], tmp_path/'model.onnx')
    assert np.allclose(OnnxModel(tmp_path/'model.onnx')(x)['a'], want, atol=1e-4)


def test_models_without_statistics_still_load(tmp_path):
    model = HICCAP(HICCAPConfig.tiny(modalities=dict(face=3)), [Task('a')], seed=0)
    assert not any('standardise' in k for k in model.state_dict())
    save_model(model, tmp_path/'model')
    d = json.loads((tmp_path/'model'/'config.json').read_text())
    encoder = d['config']['modalities']['face']
    assert encoder.pop('standardise') is False
    assert HICCAPConfig.from_dict(d['config']).modalities['face'] == FeaturesConfig(3, 8, 1)


def test_a_network_keeps_the_statistics_that_it_starts_from(tmp_path):
    first = build_model(Network(config=NETWORK, standardise=('face',)), two_kinds(), verbose=False)
    save_model(first, tmp_path/'model')
    for names in (('face',), ()):
        again = build_model(Network(init=str(tmp_path/'model'), standardise=names), two_kinds(loc=0, seed=1),
                            verbose=False)
        assert torch.equal(again.encoders['face'].standardise.mean, first.encoders['face'].standardise.mean)
    with pytest.raises(ValueError, match='standardise: no training clip has hand; they have face, sound'):
        build_model(Network(config=NETWORK, standardise=('hand',)), two_kinds(), verbose=False)


def test_each_fold_has_its_own_statistics(tmp_path, typed):
    path, table = npy(tmp_path/'a', arrays_of()), write_table(tmp_path/'t.csv')
    args = ['--features', f'face={path}', '--standardise', 'face', '--folds', 2]
    status, out, err = train(typed, table, tmp_path/'run', *args)
    assert status == 0, err
    trained = load_run(tmp_path/'run')
    for model, (part, _, _) in zip(trained.models, read_splits(trained.run.clips, None, trained.run.network)):
        x = np.concatenate([c.face.numpy() for c in part]).astype(np.float64)
        scale = model.encoders['face'].standardise
        assert np.allclose(scale.mean, x.mean(0), atol=1e-6) and np.allclose(scale.deviation, x.std(0), atol=1e-6)


def test_baselines_do_not_depend_on_the_unit():
    from hiccap.baselines import clip_features, standardised
    ds = two_kinds(40)
    scaled = ClipDataset.from_clips([Clip(c.id, face=(c.face - 1e4)*1e-7, labels=c.labels) for c in ds], ds.tasks)
    shown = ClipDataset.from_clips([Clip(c.id, face=c.face - 1e4, labels=c.labels) for c in ds], ds.tasks)
    a, b = (standardised(clip_features([o]))[0] for o in (shown, scaled))
    assert np.allclose(a, b, atol=1e-5) and a.any()


# identity

@pytest.mark.parametrize('write', [pytest.param(npy, id='npy'), *SINGLE])
@pytest.mark.parametrize('what', ['values', 'times'])
def test_a_change_of_content_is_seen(write, what, tmp_path):
    arrays = with_times(arrays_of(rows=lambda n: 2))
    path, ids = write(tmp_path/'a', arrays), IDS
    run = Run(Clips(str(write_table(tmp_path/'t.csv')), features=(f'face={path}',), labels=('funny',)))
    def seen():
        with one_look():
            columns, _ = feature_columns(run.clips.features, ids)
            return data_digests([ClipDataset(ids, columns, {}, [])])['training'], source_digests(run)
    before = seen()
    assert seen() == before and set(before[1]) == {'data', 'features of face'}
    name = IDS[4] + ('_times' if what == 'times' else '')
    arrays[name] = arrays[name] + np.float32(.25)
    write(tmp_path/'a', arrays)
    data, sources = seen()
    column = 'face_seconds' if what == 'times' else 'face'
    assert data[f'content of {column}'] != before[0][f'content of {column}'] and sources != before[1]


def test_a_feature_folder_is_listed_once(tmp_path, monkeypatch):
    import os
    path = npy(tmp_path/'a', {f'{k}_{p}': x for p in ('face', 'sound') for k, x in arrays_of().items()})
    clips = Clips(str(write_table(tmp_path/'t.csv')), features=(f'face={path}:face', f'sound={path}/:sound'),
                  labels=('funny',))
    listed, before = [], os.scandir
    monkeypatch.setattr('os.scandir', lambda p='.': (listed.append(str(p)), before(p))[1])
    with one_look():
        splits = read_splits(clips, None)
        data_digests(splits[0])
        source_digests(Run(clips))
    assert listed.count(str(path)) == 1, listed


# whole programs

def faces_and_sounds(write, folder):
    return [f'face={write(folder/"face", arrays_of())}', f'sound={write(folder/"sound", arrays_of(IDS[1:], 2, 1))}']


@pytest.mark.parametrize('write', KINDS)
def test_the_commands(write, tmp_path, typed):
    table, sources = write_table(tmp_path/'t.csv'), faces_and_sounds(write, tmp_path)
    status, out, err = typed('audit', table, '--labels', 'funny', '--features', *sources, '--fail-on', 'error')
    assert status == 0 and 'modality-missing' in out, (out, err)
    status, out, err = train(typed, table, tmp_path/'run', '--features', *sources, '--standardise', 'face')
    assert status == 0 and '1 clips have no sound' in out, err
    trained = load_run(tmp_path/'run')
    assert trained.run.clips.features == tuple(sources) and trained.models[0].modalities == ('face', 'sound')
    status, whole, err = typed('predict', tmp_path/'run', table, '--features', *sources)
    assert status == 0 and whole.count('\n') == 21, err
    status, out, err = typed('pack', table, tmp_path/'packed', '--labels', 'funny', '--features', *sources, '--verify')
    assert status == 0, err
    assert typed('predict', tmp_path/'run', tmp_path/'packed')[1] == whole
    if write is npy: return
    other = faces_and_sounds(npy, tmp_path/'npy')
    assert typed('predict', tmp_path/'run', table, '--features', *other)[1] == whole


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    "A run that was trained on faces and sounds"
    from hiccap.training import train_run
    tmp = tmp_path_factory.mktemp('finished')
    sources = faces_and_sounds(npy, tmp)
    run = Run(Clips(str(write_table(tmp/'t.csv')), labels=('funny',), features=sources), Network(config=NETWORK),
              Training(epochs=1, threads=1, bs=8))
    train_run(run, tmp/'run', write=lambda s: None)
    return tmp, sources


@pytest.mark.parametrize('name', ['predict', 'evaluate'])
def test_what_the_run_does_not_know_or_lacks_is_said(finished, typed, tmp_path, name):
    tmp, (face, sound) = finished
    table, run = tmp/'t.csv', tmp/'run'
    def says(*args):
        status, out, err = typed(name, run, table, *args)
        assert status == 2 and err.count('\n') == 1, err
        return err
    assert "the run does not know 'hand'; it reads face, sound" in says('--features', face, 'hand' + face[4:], sound)
    lost = says()
    assert 'no clip has face or sound, which the run was trained with' in lost and '--features' in lost
    assert '--without face sound' in lost
    assert 'no clip has sound' in says('--features', face)
    assert 'nothing is left to predict from' in says('--without', 'face', 'sound')
    assert "without: the run does not know 'nose'" in says('--without', 'nose')
    wide = npy(tmp_path/'wide', arrays_of(width=7, rows=lambda n: 2))
    assert '7 columns where face has 3' in says('--features', f'face={wide}', sound)
    status, out, err = typed(name, run, table, '--features', face, '--without', 'sound')
    assert status == 0, err
    hidden = typed(name, run, table, '--features', face, sound, '--without', 'sound')
    assert hidden[1] == out and 'without sound: 19 clips have it, which is not read' in hidden[2]


def test_a_packed_modality_that_the_run_does_not_know(finished, typed, tmp_path):
    tmp, (face, _) = finished
    hand = f'hand{face[4:]}'
    assert typed('pack', tmp/'t.csv', tmp_path/'packed', '--labels', 'funny', '--features', face, hand)[0] == 0
    status, out, err = typed('predict', tmp/'run', tmp_path/'packed', '--without', 'sound')
    assert status == 2 and '20 clips have hand, and the run reads face, sound' in err, err


def test_widths_that_differ_between_training_and_test(tmp_path, typed):
    face, ids = npy(tmp_path/'a', arrays_of()), [f'other{i}_0' for i in range(20)]
    wide = npy(tmp_path/'b', arrays_of(ids, 9))
    table, test = write_table(tmp_path/'t.csv'), write_table(tmp_path/'b.csv', ids)
    assert typed('pack', test, tmp_path/'packed', '--labels', 'funny', '--features', f'face={wide}')[0] == 0
    status, out, err = train(typed, table, tmp_path/'run', '--features', f'face={face}', '--test', tmp_path/'packed')
    assert status == 2 and 'face has 9 columns, and 3 in the training clips' in err, err
    npy(tmp_path/'b', arrays_of(rows=lambda n: 5))
    npy(tmp_path/'b', arrays_of(ids, 9, rows=lambda n: 5))
    status, out, err = train(typed, table, tmp_path/'run', '--features', f'face={wide}', '--test', test)
    assert status == 2 and '9 columns where face has 3' in err, err


def test_texts_need_an_encoder_and_clips_need_a_modality(tmp_path, typed):
    face = npy(tmp_path/'a', arrays_of())
    table = write_table(tmp_path/'t.csv', funny=[i % 2 for i in range(20)], text=['so']*20)
    status, out, err = train(typed, table, tmp_path/'run', '--features', f'face={face}')
    assert status == 2 and IDS[0] in err and 'no text encoder is given' in err and '--encoder minilm' in err, err
    status, out, err = train(typed, table, tmp_path/'run', '--features', f'text={face}', '--encoder', 'minilm')
    assert status == 2 and 'the text is in this file and in the features' in err, err


def test_a_base_folder_and_named_parts(tmp_path):
    x = arrays_of(IDS[:3])
    npy(tmp_path/'f', {f'{k}_{p}': v for p in ('rgb', 'flow', 'vggish', 'au') for k, v in x.items()})
    base = str(tmp_path/'f')
    columns, _ = feature_columns(feature_folder((base, 'face=au', 'video=rgb'), {}), IDS[:3])
    assert set(columns) == {'video', 'audio', 'face'}
    assert all(np.array_equal(columns[m][0], x[IDS[0]]) for m in columns)
    columns, _ = feature_columns(feature_folder((base,), {}), IDS[:3])
    assert set(columns) == {'video', 'audio'} and np.allclose(columns['video'][0], 2*x[IDS[0]])


def test_two_files_of_one_array_are_refused(tmp_path):
    npy(tmp_path/'a', arrays_of(IDS[:2]))
    npz(tmp_path/'a', arrays_of(IDS[:1]))
    with pytest.raises(DataError, match='vid00_0.npy and vid00_0.npz are both there'):
        feature_columns(f'face={tmp_path}/a', IDS[:2])
    assert SETTLED and FeatureFolder(tmp_path/'a', dict(face=('',)), {}).load(IDS[1], 'face') is not None
