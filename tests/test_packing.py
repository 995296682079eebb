"""Packing: what is read is what was packed; a killed packing resumes to the same bytes; damaged files are named."""
import csv
import errno
import json
import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Features
from hypothesis import given, settings, strategies as st

from hiccap import packing
from hiccap.basics import digest
from hiccap.clips import MODALITIES, Clip, ClipDataset, DataError, TensorColumn
from hiccap.features import FeatureColumn, FeatureFolder
from hiccap.splits import split_by_video
from hiccap.learner import ClipDL
from hiccap.packing import MANIFEST, INDEX, as_dataset, open_packed, pack, tokenizer_digest, verify
from hiccap.synthetic import synthetic_clips, write_synthetic
from hiccap.tasks import IGNORE, Task

few = settings(max_examples=max(1, settings().max_examples//2))
quiet = dict(write=lambda line: None)
numbers = st.floats(-1000, 1000, width=32)


@st.composite
def data_sets(draw, least=0):
    "Clips of any modalities and lengths, with any labels and groups"
    n, words, tasks = (draw(st.integers(least, 7)), draw(st.booleans()),
                       [Task('a'), Task('b ü', 3, classes=('x', 'y', 'z'))][: draw(st.integers(0, 2))])
    width = {m: draw(st.integers(1, 3)) for m in MODALITIES}
    seed, held = draw(st.integers(0, 999)), [m for m in MODALITIES if draw(st.booleans())]
    rng = np.random.default_rng(seed)
    def values(m):
        k = draw(st.integers(0, 4))
        if m not in held or not k: return None
        return (rng.integers(0, 2**31, k) if m == 'text' and words
                else rng.normal(size=(k, width[m])).astype(np.float32) * 10 ** draw(st.integers(-6, 3)))
    clips = []
    for i in range(n):
        v = {m: values(m) for m in MODALITIES}
        segments = rng.integers(0, 2, len(v['text'])) if v['text'] is not None and draw(st.booleans()) else None
        clips.append(
            Clip(draw(st.sampled_from(['ä', 'v'])) + f'{i//2}_{i}', **v, segments=segments,
                 labels={t.name: draw(st.integers(0, t.n_classes - 1)) for t in tasks if draw(st.booleans())})
        )
    ds = ClipDataset.from_clips(clips, tasks, [f'g {i//3}' for i in range(n)] if draw(st.booleans()) else None,
                                draw(st.sampled_from(['', 'some'])))
    ds.notes = ['a note'][:draw(st.integers(0, 1))]
    return ds


def same_clip(a, b, half=False):
    assert (a.id, a.labels) == (b.id, b.labels)
    for k in (*MODALITIES, 'segments'):
        x, y = getattr(a, k), getattr(b, k)
        if x is not None and half and x.is_floating_point(): x = x.half().float()
        assert (x is None) == (y is None) and (x is None or (x.dtype == y.dtype and torch.equal(x, y)))


@given(data_sets(), st.integers(1, 8), st.booleans())
def test_what_is_read_is_what_was_packed(tmp_path_factory, ds, clips, half):
    folder = pack(ds, tmp_path_factory.mktemp('p')/'packed', half, shard_clips=clips, **quiet)
    got = open_packed(folder)
    assert len(got) == len(ds) and len(list(folder.glob('shard-*'))) == -(-len(ds)//clips)
    assert (got.ids, got.groups, got.tasks, got.name, got.notes) == (
        ds.ids, ds.groups, ds.tasks, ds.name, ds.notes) and list(got.ids) == ds.ids
    for t in ds.tasks: assert torch.equal(got.targets(t), ds.targets(t))
    for m in MODALITIES:
        assert (got.lengths(m).dtype == np.int64 and (got.lengths(m) == ds.lengths(m)).all()
                and got.absent(m) == ds.absent(m))
    for i in range(len(ds)): same_clip(ds[i], got[i], half)
    for a, b in zip(ds, got, strict=True): same_clip(a, b, half)
    assert got.summary() == ds.summary() and set(got.columns) == set(ds.columns)
    if len(ds): same_clip(ds[-1], pickle.loads(pickle.dumps(got))[-1], half)
    with pytest.raises(IndexError): got[len(ds)]
    got.check()
    verify(folder)
    table = as_dataset(folder)
    assert len(table) == len(ds) and all(table[f'label:{t.name}'][:] == ds.targets(t).tolist() for t in ds.tasks)


@few
@given(data_sets(least=2), st.integers(1, 4), st.data())
def test_subsets_splits_and_batches_are_those_of_the_source(tmp_path_factory, ds, clips, data):
    got = open_packed(pack(ds, tmp_path_factory.mktemp('p')/'packed', shard_clips=clips, **quiet))
    rows = data.draw(st.lists(st.integers(-len(ds), len(ds) - 1), unique_by=lambda i: i % len(ds)))
    pairs = [(ds.subset(rows), got.subset(rows)),
             (ds.subset(rows).subset(range(len(rows) // 2)), got.subset(rows).subset(range(len(rows) // 2)))]
    try: pairs += zip(split_by_video(ds, .4, seed=1), split_by_video(got, .4, seed=1))
    except DataError: pass  # too few videos
    for a, b in pairs:
        assert (b.ids, b.groups) == (a.ids, a.groups) and all((a.lengths(m) == b.lengths(m)).all() for m in MODALITIES)
        assert digest('\0'.join(a.groups).encode()) == digest('\0'.join(b.groups).encode())
        b = pickle.loads(pickle.dumps(b))
        for i in range(len(a)): same_clip(a[i], b[i])
    for shuffle in (False, True):
        loaders = [ClipDL(o, bs=2, shuffle=shuffle, seed=3, device='cpu') for o in (ds, got)]
        for (x, y), (u, v) in zip(*loaders, strict=True):
            assert (list(x) == list(u) and all(torch.equal(x[k], u[k]) for k in x)
                    and all(torch.equal(y[k], v[k]) for k in y))


def logical(digests):
    "Digests without those of the files' contents, which packing changes"
    return {part: {k: v for k, v in d.items() if not k.startswith('content of ')} for part, d in digests.items()}


def test_a_loaders_workers_read_what_it_reads_itself(tmp_path):
    ds = synthetic_clips(n=30, scale=.1)
    got = open_packed(pack(ds, tmp_path/'packed', shard_clips=7, **quiet))
    loaders = [ClipDL(o, bs=4, shuffle=True, device='cpu', num_workers=w) for o, w in ((ds, 0), (got, 2))]
    for (x, _), (u, _) in zip(*loaders, strict=True):
        assert all(torch.equal(x[k], u[k]) for k in x)


@pytest.mark.parametrize('clip, half, said', [
    (Clip('odd', video=torch.full((1, 2), 7e4)), True, 'half precision ends at 65504'),
    (Clip('odd', text=[2**31]), False, 'not a token id of 4 bytes'),
    (Clip('odd', text=[4], segments=[200]), False, 'not a segment of 1 bytes'),
    (Clip('odd', video=torch.ones(1, 3)), False, 'has 3 columns where the clips before have 2 columns'),
    (Clip('odd', text=torch.ones(1, 3)), False, 'has 3 columns where the clips before are tokens')])
def test_what_does_not_fit_is_named_and_nothing_is_left(tmp_path, clip, half, said):
    clips = [Clip('even', text=[5], segments=[0], video=torch.ones(2, 2)), clip]
    ds = ClipDataset([c.id for c in clips],
                     {k: TensorColumn([getattr(c, k) for c in clips]) for k in ('text', 'segments', 'video')}, {}, [])
    with pytest.raises(DataError, match="clip 'odd'") as e: pack(ds, tmp_path/'packed', half, **quiet)
    assert said in str(e.value) and not list(tmp_path.iterdir())


class Slow:
    "A column that takes its time"
    def __init__(self, column, seconds): self.column, self.seconds, self.lengths = column, seconds, column.lengths
    def __getitem__(self, i): time.sleep(self.seconds); return self.column[i]
    def stamps(self, rows): return self.column.stamps(rows)


def slowly(seconds):
    ds = synthetic_clips(n=240, scale=.1)
    return ClipDataset(ds.ids, {**ds.columns, 'audio': Slow(ds.columns['audio'], seconds)},
                       {k: y.numpy() for k, y in ds.labels.items()}, ds.tasks, ds.groups, ds.name)


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}


def killed(folder, shards):
    "Pack in another process, and kill it when so many shards are there"
    p = multiprocessing.get_context('fork').Process(target=lambda: pack(slowly(.004), folder, shard_clips=8, **quiet))
    p.start(); part = folder.with_name(f'.{folder.name}.part')
    while p.is_alive() and len(list(part.glob('shard-*'))) < shards: time.sleep(.002)
    os.kill(p.pid, signal.SIGKILL); p.join()
    assert p.exitcode == -signal.SIGKILL
    return part


def test_a_killed_packing_resumes_and_comes_out_as_one_that_was_not_killed(tmp_path):
    alone = pack(slowly(0), tmp_path/'alone', shard_clips=8, **quiet)
    folder, rng = tmp_path/'packed', np.random.default_rng(os.getpid())
    at = sorted(rng.choice(np.arange(1, 25), 20 if settings().max_examples > 100 else 3, replace=False))
    for shards in at:
        part = killed(folder, shards)
        assert not folder.exists()
        with pytest.raises(DataError, match='not a packed data set|no such folder'): open_packed(part)
        # a shard that has its name is whole
        for p in part.glob('shard-*'): assert p.read_bytes() == (alone/p.name).read_bytes()
    lines, made = [], []
    before = packing._write_shard
    try:
        packing._write_shard = lambda path, *a: (made.append(path.name), before(path, *a))[1]
        pack(slowly(0), folder, shard_clips=8, write=lines.append)
    finally: packing._write_shard = before
    assert (files(folder) == files(alone) and at[-1] - 1 <= 30 - len(made) <= at[-1] + 1
            and lines == [f'{30 - len(made)} of 30 shards were finished before'])
    assert sorted(p.name for p in tmp_path.iterdir()) == ['alone', 'packed']


def test_only_shards_of_the_same_source_are_kept(tmp_path):
    (tmp_path/'f').mkdir()
    ids = [f'c{i}_0' for i in range(6)]
    def write(i, x): np.save(tmp_path/'f'/f'{ids[i]}_vggish.npy', np.full((2, 128), x, np.float32))
    def source():
        f = FeatureFolder(tmp_path/'f')
        return ClipDataset(ids, dict(audio=FeatureColumn(f, 'audio', ids)), {}, [])
    for i in range(6): write(i, i)
    write(5, np.nan)
    with pytest.raises(DataError, match='c5_0'): pack(source(), tmp_path/'packed', shard_clips=2, **quiet)
    part = tmp_path/'.packed.part'
    os.utime(part/'shard-00000.arrow'); before = (part/'shard-00000.arrow').stat().st_mtime_ns
    write(5, 5); write(2, 22)
    pack(source(), tmp_path/'packed', shard_clips=2, **quiet)
    assert [float(c.audio[0, 0]) for c in open_packed(tmp_path/'packed')] == [0, 1, 22, 3, 4, 5]
    assert (tmp_path/'packed'/'shard-00000.arrow').stat().st_mtime_ns == before


def test_a_finished_shard_that_was_damaged_meanwhile_is_packed_again(tmp_path):
    ds = synthetic_clips(n=20, scale=.1)
    alone, broken = pack(ds, tmp_path / 'alone', shard_clips=5, **quiet), TensorColumn(
        [o if i < 16 else torch.ones(9, 9) for i, o in enumerate(ds.columns['audio'].values)])
    with pytest.raises(DataError):
        pack(
            ClipDataset(ds.ids, {**ds.columns, 'audio': broken}, {k: y.numpy() for k, y in ds.labels.items()}, ds.tasks,
                        ds.groups, ds.name),
            tmp_path / 'packed',
            shard_clips=5,
            **quiet
        )
    shard = tmp_path/'.packed.part'/'shard-00001.arrow'
    flip(shard, 700)
    assert files(pack(ds, tmp_path/'packed', shard_clips=5, **quiet)) == files(alone)


def test_a_full_disk_is_explained_and_finished_shards_are_kept(tmp_path, monkeypatch):
    ds, written = synthetic_clips(n=40, scale=.1), []
    alone, write = pack(ds, tmp_path/'alone', shard_clips=10, **quiet), packing.HashedFile.write
    def full(self, b):
        written.append(len(b))
        if sum(written) > sum((alone/f'shard-{k:05d}.arrow').stat().st_size for k in range(2)) + 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, b)
    monkeypatch.setattr(packing.HashedFile, 'write', full)
    with pytest.raises(OSError, match='the disk is full. What is finished is kept in .*packed.part') as e:
        pack(ds, tmp_path/'packed', shard_clips=10, **quiet)
    assert (e.value.errno == errno.ENOSPC and sorted(p.name for p in (tmp_path / '.packed.part').glob('shard-*'))
            == ['shard-00000.arrow', 'shard-00001.arrow'] and not (tmp_path / 'packed').exists())
    monkeypatch.undo()
    lines = []
    assert files(pack(ds, tmp_path / 'packed', shard_clips=10, write=lines.append)) == files(alone) and lines == [
        '2 of 4 shards were finished before']


def test_folders_of_the_previous_version_open(tmp_path, monkeypatch):
    "It wrote the schema of the `datasets` library into the files, by the library's own writer"
    ds = synthetic_clips(n=12, scale=.1)
    pack(ds, tmp_path/'now', shard_clips=5, **quiet)
    before = packing.write_arrow
    def write(path, schema, tables):
        schema = Features.from_arrow_schema(schema).arrow_schema
        assert b'huggingface' in schema.metadata
        return before(path, schema, (t.cast(schema) for t in tables))
    monkeypatch.setattr(packing, 'write_arrow', write)
    pack(ds, tmp_path/'then', shard_clips=5, **quiet)
    now, then = open_packed(tmp_path/'now'), open_packed(tmp_path/'then')
    assert (tmp_path/'now'/INDEX).read_bytes() != (tmp_path/'then'/INDEX).read_bytes()
    for a, b in zip(now, then, strict=True): same_clip(a, b)
    tables = [as_dataset(tmp_path/o) for o in ('now', 'then')]
    assert tables[0].features == tables[1].features and tables[0][:] == tables[1][:]


def flip(path, at, bit=1):
    b = bytearray(path.read_bytes()); b[at] ^= bit; path.write_bytes(b)


@pytest.fixture(scope='module')
def packed(tmp_path_factory):
    return pack(synthetic_clips(n=24, scale=.1), tmp_path_factory.mktemp('whole')/'packed', shard_clips=9, **quiet)


@given(st.sampled_from(['shard-00000.arrow', 'shard-00002.arrow', INDEX, MANIFEST]),
       st.sampled_from(['flip', 'cut', 'longer', 'gone']), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_damaged_file_is_named_with_the_fix(tmp_path_factory, packed, name, how, where, bit):
    folder = tmp_path_factory.mktemp('d')/'packed'
    folder.mkdir()
    for p in packed.iterdir(): os.link(p, folder/p.name)
    was = (packed/name).read_bytes(); at = int(where*len(was))
    (folder/name).unlink()
    if how != 'gone':
        (folder / name).write_bytes(
            dict(cut=was[:at], longer=was + b' ', flip=was[:at] + bytes([was[at] ^ 1 << bit]) + was[at + 1 :])[how])
    if how == 'longer' and name == MANIFEST: return  # a blank at the end of JSON says nothing
    if how == 'flip' and name == MANIFEST:
        try:
            if json.loads((folder/name).read_bytes()) == json.loads(was): return  # white space
        except ValueError: pass
    with pytest.raises(DataError) as e: verify(folder)
    assert str(folder / name) in str(e.value) or (
        name == MANIFEST and str(folder) in str(e.value) and MANIFEST in str(e.value))
    assert 'again' in e.value.fix
    if how == 'flip' and name.startswith('shard'):  # opens; what is read is right, or an error that names the shard
        ds, source = open_packed(folder), open_packed(packed)
        for i in range(len(ds)):
            try: ds[i]
            except DataError as e: assert str(folder/name) in str(e)
    else:
        with pytest.raises(DataError, match='again|hiccap_pack'): open_packed(folder)


def test_an_edited_manifest_is_refused(tmp_path, packed):
    d = json.loads((packed/MANIFEST).read_text())
    for k, v in dict(half=True, name='other', clips=3, tasks=[], columns={}, format=2).items():
        (tmp_path/k).mkdir()
        for p in packed.iterdir(): os.link(p, tmp_path/k/p.name)
        (tmp_path/k/MANIFEST).unlink(); (tmp_path/k/MANIFEST).write_text(json.dumps({**d, k: v}))
        with pytest.raises(DataError, match='manifest.json: was changed'): open_packed(tmp_path/k)


def test_nothing_else_is_replaced(tmp_path, packed):
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'notes.txt').write_text('x')
    ds = synthetic_clips(n=24, scale=.1)
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match='not a packed data set'):
            pack(ds, tmp_path/'mine', overwrite=overwrite, **quiet)
    assert files(tmp_path/'mine') == {'notes.txt': b'x'}
    folder = pack(ds, tmp_path/'packed', **quiet)
    before = files(folder)
    with pytest.raises(FileExistsError, match='already'): pack(ds, folder, half=True, **quiet)
    assert files(folder) == before
    pack(ds, folder, half=True, overwrite=True, **quiet)
    assert open_packed(folder).manifest['half'] and [p.name for p in sorted(tmp_path.iterdir())] == ['mine', 'packed']


@pytest.fixture(scope='module')
def synthetic(tmp_path_factory):
    folder = tmp_path_factory.mktemp('synthetic')/'data'
    write_synthetic(synthetic_clips(n=96, scale=.1), folder)
    return folder


BERT = dict(
    kind='tokens',
    config=dict(vocab_size=512, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
NET = ['--set', 'width=16', 'heads=2', 'head_widths=[16]', 'text=' + json.dumps(BERT)]


def numbers_of(run):
    m = json.loads((run/'metrics.json').read_text())
    return {k: v for k, v in m.items() if k not in ('seconds', 'time')}


def test_training_on_a_packed_folder_gives_what_the_source_gives(synthetic, tmp_path, capsys):
    from hiccap.cli import audit, evaluate, pack as pack_command, predict, train
    table, how = str(synthetic / 'clips.csv'), ['--features', str(synthetic / 'features'), '--tokenizer',
                                                str(synthetic / 'tokenizer'), '--labels', 'said', 'together']
    assert pack_command([table, str(tmp_path/'packed'), *how, '--shard-mb', '.02', '--verify']) == 0
    assert len(list((tmp_path/'packed').glob('shard-*'))) > 2
    assert train([table, *how, '--epochs', '1', '--out', str(tmp_path/'source'), *NET]) == 0
    assert train([str(tmp_path/'packed'), '--epochs', '1', '--out', str(tmp_path/'run'), *NET]) == 0
    assert numbers_of(tmp_path/'run') == numbers_of(tmp_path/'source')
    assert (tmp_path / 'run' / 'model' / 'model.safetensors').read_bytes() == (
        tmp_path / 'source' / 'model' / 'model.safetensors').read_bytes()
    data = [json.loads((tmp_path/o/'config.json').read_text())['data'] for o in ('run', 'source')]
    assert logical(data[0]) == logical(data[1])
    assert (predict([str(tmp_path / 'run'), str(tmp_path / 'packed'), '--out', str(tmp_path / 'a.csv')]) == 0
            and predict([str(tmp_path / 'source'), table, *how[:2], '--out', str(tmp_path / 'b.csv')]) == 0)
    assert (tmp_path/'a.csv').read_bytes() == (tmp_path/'b.csv').read_bytes()
    said = []
    for args in ([tmp_path/'packed'], [table, *how[:2]]):
        capsys.readouterr()
        assert evaluate([*map(str, [tmp_path/'source', *args])]) == 0
        said.append(capsys.readouterr())
    assert said[0].out == said[1].out and 'labelled rows' in said[0].out and 'without video' not in said[0].err
    found = []
    for args in ([str(tmp_path/'packed')], [table, *how[:2], *how[4:]]):
        audit([*args, '--out', str(tmp_path/f'audit{len(found)}')])
        found.append(json.loads((tmp_path/f'audit{len(found)}'/'audit.json').read_text())['summary'])
    assert all(found[0][k] == found[1][k] for k in ('clips', 'videos', 'lengths'))
    assert train([str(tmp_path/'packed'), '--encoder', 'minilm', '--epochs', '1', '--out', str(tmp_path/'other')]) == 2
    err = capsys.readouterr().err
    assert (
        'with another tokenizer than this run has' in err and err.count('\n') == 1 and not (tmp_path / 'other').exists()
    )
    assert (train([str(tmp_path / 'packed'), '--labels', 'sad', '--out', str(tmp_path / 'other'), *NET]) == 2
            and "no task 'sad'" in capsys.readouterr().err)


def test_classes_are_those_of_the_training_file(synthetic, tmp_path):
    from hiccap.runs import Clips, Network
    from hiccap.run_data import read_clips, read_splits, tokenizer_for
    rows = list(csv.DictReader((synthetic/'clips.csv').open()))
    def write(name, some, words):
        with (tmp_path/name).open('w', newline='') as f:
            w = csv.writer(f); w.writerow(['id', 'text', 'mood'])
            w.writerows([o['id'], o['text'] or 'you', words[i % len(words)]] for i, o in enumerate(some))
    write('train.csv', rows[:60], ['calm', 'cross', 'glad']); write('test.csv', rows[64:], ['glad', 'cross'])
    clips = Clips(str(tmp_path/'train.csv'), labels=('mood',))
    tok = tokenizer_for(Network(tokenizer=str(synthetic/'tokenizer')))
    for name in ('train', 'test'):
        pack(read_clips(clips, tmp_path/f'{name}.csv', tok), tmp_path/name, tokenizer=tok, **quiet)
    from dataclasses import replace
    (_, _, a), = read_splits(replace(clips, test=str(tmp_path/'test.csv'), own_numbering=True), tok)
    ((_, _, b),) = read_splits(
        replace(clips, data=str(tmp_path / 'train'), test=str(tmp_path / 'test'), own_numbering=True), tok)
    assert (a.tasks == b.tasks and torch.equal(a.targets('mood'), b.targets('mood'))
            and set(b.targets('mood').tolist()) == {1, 2})


def test_streams_of_pretraining_read_packed_folders(synthetic, tmp_path):
    from hiccap.runs import Clips, Network
    from hiccap.run_data import feature_folder, read_clips, tokenizer_for
    from hiccap.run_folders import data_digests
    from hiccap.pretraining_runs import PretrainRun, read_streams
    clips = Clips(str(synthetic/'clips.csv'), features=str(synthetic/'features'), labels=('said', 'seen'))
    tok = tokenizer_for(Network(tokenizer=str(synthetic/'tokenizer')))
    pack(read_clips(clips, clips.data, tok, features=feature_folder(clips.features, {})), tmp_path/'packed',
         tokenizer=tok, **quiet)
    parts = []
    for data, more in ((str(tmp_path/'packed'), {}), (clips.data, dict(features=clips.features))):
        mixture = PretrainRun.from_dict(
            dict(
                streams=[dict(name='labels', data=data, labels=['said'], **more),
                         dict(name='matching', data=data, pretext='matching', **more)],
                policy='uniform',
            )
        )
        parts.append(
            {n: [({t.name for t in o.tasks}, logical(data_digests([o]))) for o in p]
             for n, p in read_streams(mixture, tok).items()}
        )
    assert parts[0] == parts[1]
    assert tokenizer_for(Network(), str(tmp_path/'packed')).get_vocab() == tok.get_vocab()
