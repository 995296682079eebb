"""Identity is content: with one label, text or feature file changed, nothing is taken for what it was before."""
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st

from conftest import TINY_NETWORK
from hiccap import digests
from hiccap.clips import DataError
from hiccap.comparison import columns_of, is_done, read_finished, run_grid
from hiccap.digests import KEPT, SETTLED, file_digest, file_digests, one_look
from hiccap.features import FeatureFolder
from hiccap.frozen import TextCache
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.packed import verify
from hiccap.packing import pack
from hiccap.run_data import read_clips, tokenizer_for
from hiccap.run_folders import changed_data, holds_work, partial_folder, source_digests, started_run
from hiccap.runs import Run
from hiccap.synthetic import synthetic_clips, write_synthetic
from hiccap.tasks import Task
from hiccap.training import TrainRecipe, train_run

ALL = ['label', 'text', 'feature']
SAID = dict(label='labels', text='content of text', feature='content of audio')


@pytest.fixture
def data(tmp_path):
    write_synthetic(synthetic_clips(n=40, scale=.1), tmp_path/'data')
    return tmp_path/'data'


def run_of(data, **settings):
    return Run.flat(**{**dict(
        data=str(data/'clips.csv'), features=str(data/'features'), tokenizer=str(data/'tokenizer'), labels=['said'],
        config={**TINY_NETWORK, 'text': {**TINY_NETWORK['text'], 'config': {
            **TINY_NETWORK['text']['config'], 'vocab_size': 3000}}},
        epochs=1, threads=1, simple_models=['words'], test_share=.3, valid_share=.3), **settings})


def change(data, what, part=None):
    "Change one label, one text or one feature file, nothing else: not a length, not a name"
    table = pd.read_csv(data/'clips.csv', dtype=str, keep_default_na=False)
    rows = range(len(table)) if part is None else [i for i, o in enumerate(table.id) if o in part]
    if what == 'label':
        row = next(i for i in rows if table.said[i] != '')
        table.loc[row, 'said'] = '1' if table.said[row] == '0' else '0'
    if what == 'text':
        row = next(i for i in rows if len(set(table.text[i].split())) > 1)
        words = table.text[row].split()
        table.loc[row, 'text'] = ' '.join(words[1:] + words[:1])
        assert table.text[row].split() != words
    if what == 'feature':
        path = next(p for i in rows if (p := data/'features'/f'{table.id[i]}_vggish.npy').exists())
        x, stat = np.load(path), path.stat()
        np.save(path, x + 1)
        assert path.stat().st_size == stat.st_size
    else: table.to_csv(data/'clips.csv', index=False)


def listing(folder): return {p: file_digest(p) for p in sorted(folder.rglob('*')) if p.is_file()}


def silent(line): pass


@pytest.mark.parametrize('what', ALL)
def test_a_finished_run_says_that_its_data_changed_and_does_nothing(data, tmp_path, what):
    run, out, lines = run_of(data), tmp_path/'run', []
    train_run(run, out, write=silent)
    assert train_run(run, out, write=lines.append, resume=True) is None and 'nothing left to do' in lines[0]
    before = listing(out)
    change(data, what)
    for again in (lambda: train_run(run, out, write=silent, resume=True), lambda: is_done(out, run),
                  lambda: run_grid({'run': run}, tmp_path, write=silent)):
        with pytest.raises(ValueError, match=f'{SAID[what]}.* of the .* clips .* --overwrite'): again()
    assert listing(out) == before
    assert not is_done(out, run, overwrite=True)


def test_a_table_that_was_written_again_with_the_same_content_is_the_same(data, tmp_path):
    run, out = run_of(data), tmp_path/'run'
    train_run(run, out, write=silent)
    table = pd.read_csv(data/'clips.csv', dtype=str, keep_default_na=False)
    table.assign(note='new').to_csv(data/'clips.csv', index=False)
    for p in (data/'features').glob('*.npy'): os.utime(p)
    assert source_digests(run)['data'] != file_digest(data/'oracle.csv').hex()
    assert is_done(out, run) and train_run(run, out, write=silent, resume=True) is None


@pytest.mark.parametrize('what', ALL)
def test_an_interrupted_run_is_not_resumed_on_other_data(data, tmp_path, what):
    run, out = run_of(data, epochs=2, checkpoint_every=0), tmp_path/'run'
    def stop(line):
        if 'epoch 1/2' in line: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train_run(run, out, write=stop)
    change(data, what)
    with pytest.raises(ValueError, match=f'{SAID[what]}.* of the .* clips'):
        train_run(run, out, write=silent, resume=True)
    if what == 'label':
        change(data, what) # back to what it was: the run continues
        assert train_run(run, out, write=silent, resume=True) is not None


def killed_at_the_start(run, out):
    "What is left of a run that is killed before its first checkpoint"
    def stop(line):
        if 'epoch 1/' in line: raise AssertionError('it has trained')
        if 'clips in training' in line:
            shutil.copytree(partial_folder(out), out.parent/'left')
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train_run(run, out, write=stop)
    (out.parent/'left').rename(partial_folder(out))
    assert not holds_work(partial_folder(out))


def test_a_run_that_was_killed_before_its_first_checkpoint_is_not_resumed_on_other_data(data, tmp_path):
    run, out, lines = run_of(data), tmp_path/'run', []
    killed_at_the_start(run, out)
    change(data, 'label')
    with pytest.raises(ValueError, match='labels of the .* clips are not what it was .* --overwrite'):
        train_run(run, out, write=silent, resume=True)
    change(data, 'label')  # back to what it was
    assert train_run(run, out, write=lines.append, resume=True) is not None
    assert 'Resuming' in lines[0]


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_with_other_settings(data, tmp_path):
    run, out, lines = run_of(data), tmp_path/'run', []
    killed_at_the_start(run, out)
    assert started_run(out, run.but(lr=.1), False, True) == {} == started_run(out, run, False, False)
    assert started_run(out, run, False, True)['data']
    out.mkdir()
    (out/'metrics.json').write_text('{}')
    assert started_run(out, run, False, True) == {}  # finished before


def test_a_start_lists_the_features_once_and_looks_at_each_file_once(data, tmp_path, monkeypatch):
    run, features, scandir, stats = run_of(data), data/'features', os.scandir, digests._stats
    for p in features.iterdir(): os.utime(p, ns=(1, 1))
    listed, looked, written = [], [], []
    def list_folder(path='.'):
        if str(path) == str(features): listed.append(path)
        return scandir(path)
    def look(folder, names):
        looked.extend(names)
        return stats(folder, names)
    later = time.time_ns() + 2*SETTLED
    monkeypatch.setattr(digests.time, 'time_ns', lambda: later)  # so that time stamps are trusted
    monkeypatch.setattr(os, 'scandir', list_folder)
    monkeypatch.setattr(digests, '_stats', look)
    write = digests._write_kept
    monkeypatch.setattr(digests, '_write_kept', lambda path, *rows: (written.append(path), write(path, *rows)))
    class Read(TrainRecipe):
        def train(self): raise KeyboardInterrupt
    def start():
        for some in (listed, looked, written): some.clear()
        with pytest.raises(KeyboardInterrupt): Read(run, tmp_path/'run', write=silent)()
        return len(listed), max(Counter(looked).values()), len(set(looked)), len(written)
    n = len(list(features.glob('*.npy')))
    assert start() == (1, 2, n, 1)  # a new file is looked at before and after it is read
    assert start() == (1, 1, n, 0)
    train_run(run, tmp_path/'done', write=silent)
    listed.clear()
    assert train_run(run, tmp_path/'done', write=silent, resume=True) is None and len(listed) == 1


@pytest.mark.parametrize('what', ALL)
@pytest.mark.parametrize('other', [dict(seed=1), dict(split_seed=1), dict(lr=1e-4)])
def test_runs_on_other_data_are_not_compared(data, tmp_path, what, other):
    base = run_of(data)
    train_run(base, tmp_path/'a', write=silent)
    change(data, what)
    train_run(base.but(**other), tmp_path/'b', write=silent)
    with pytest.raises(ValueError, match='data are not the same') as e:
        columns_of([read_finished(tmp_path/o) for o in 'ab'])
    assert SAID[what] in str(e.value) or 'split_seed' in other


@pytest.mark.parametrize('what', ALL)
def test_a_search_is_not_continued_on_other_data(data, tmp_path, what, monkeypatch):
    pytest.importorskip('optuna')
    import hiccap.search as module
    monkeypatch.setattr(module, 'run_trial', lambda *args, **kwargs: module.Outcome(.5, 1, 1, False))
    settings = {k: v for k, v in run_of(data).to_flat().items()}
    search = module.Search(settings, {'lr': dict(low=1e-4, high=1e-2, log=True)})
    module.run_search(search, tmp_path/'search', 1, write=silent)
    change(data, what, _parts(run_of(data))[0])
    with pytest.raises(ValueError, match='clips are not those that the search'):
        module.run_search(search, tmp_path/'search', 2, write=silent)


def _parts(run):
    from hiccap.run_data import read_splits
    (train, valid, test), = read_splits(run.clips, tokenizer_for(run.network), run.network)
    return train.ids, valid.ids, test.ids


def _read(data):
    run = run_of(data)
    features = FeatureFolder(data/'features', widths=dict(video=None, audio=None))
    return read_clips(run.clips, run.clips.data, tokenizer_for(run.network), features=features)


@pytest.mark.parametrize('what', ALL)
def test_kept_states_are_those_of_the_text(data, tmp_path, what):
    model = HICCAP(HICCAPConfig(**run_of(data).network.config), tasks=[Task('said')])
    model.encoders['text'].freeze()
    cache = TextCache(model.encoders['text'], tmp_path/'cache')
    states = [cache.dataset(_read(data))]
    change(data, what)
    ds = _read(data)
    states.append(cache.dataset(ds))
    fresh = TextCache(model.encoders['text'], tmp_path/'fresh').dataset(ds)
    differ = 0
    for i in range(len(ds)):
        was, now, want = (o.columns['text'][i] for o in (*states, fresh))
        assert (now is None) == (want is None) and (now is None or torch.allclose(now, want, atol=1e-5))
        differ += was is not None and not torch.equal(was, now)
    assert differ == (what == 'text')


@pytest.mark.parametrize('what', ALL)
def test_packed_clips_are_those_that_were_packed(data, tmp_path, what):
    tok = tokenizer_for(run_of(data).network)
    run = run_of(data).but(data=str(tmp_path/'packed'), features=None)
    pack(_read(data), tmp_path/'packed', tokenizer=tok, write=silent)
    train_run(run, tmp_path/'run', write=silent)
    assert is_done(tmp_path/'run', run)
    change(data, what)
    pack(_read(data), tmp_path/'packed', tokenizer=tok, overwrite=True, write=silent)
    with pytest.raises(ValueError, match='clips are not what'): is_done(tmp_path/'run', run)


def test_verify_covers_every_file_of_the_folder(data, tmp_path):
    tok = tokenizer_for(run_of(data).network)
    folder = pack(_read(data), tmp_path/'packed', tokenizer=tok, write=silent)
    files = [p for p in sorted(folder.rglob('*')) if p.is_file() and p.name != KEPT]
    assert len(files) > 4 and verify(folder) > 0
    for p in files:
        whole = p.read_bytes()
        p.write_bytes(whole[:len(whole)//2] + bytes([whole[len(whole)//2] ^ 1]) + whole[len(whole)//2 + 1:])
        with pytest.raises(DataError): verify(folder)
        p.write_bytes(whole)
    verify(folder)


@pytest.mark.parametrize('what', ['text', 'feature'])
def test_an_interrupted_packing_is_not_continued_with_other_clips(data, tmp_path, what, monkeypatch):
    import hiccap.packing as module
    plain, n = module._write_shard, []
    def dies(*args):
        n.append(0)
        if len(n) == 2: raise KeyboardInterrupt
        return plain(*args)
    monkeypatch.setattr(module, '_write_shard', dies)
    ds = _read(data)
    with pytest.raises(KeyboardInterrupt): pack(ds, tmp_path/'packed', shard_clips=20, write=silent)
    change(data, what, ds.ids[:20])
    with pytest.raises(ValueError, match='packing of other clips'):
        pack(_read(data), tmp_path/'packed', shard_clips=20, write=silent)


STEPS = st.sampled_from(['write', 'same', 'touch', 'delete', 'spoil'])

@given(st.lists(st.tuples(st.integers(0, 5), STEPS), max_size=12))
def test_kept_digests_never_lie(tmp_path_factory, steps):
    folder, names = tmp_path_factory.mktemp('files'), [f'a_{n}.npy' for n in range(6)]
    old = time.time_ns() - 5*SETTLED
    for n, o in enumerate(names): (folder/o).write_bytes(bytes([n])*4)
    for n, (i, step) in enumerate(steps):
        path = folder/names[i]
        if step == 'write' or not path.exists(): path.write_bytes(bytes([n + 7])*4)
        elif step == 'same': path.write_bytes(path.read_bytes())
        elif step == 'delete': path.unlink()
        elif step == 'spoil' and (folder/KEPT).exists(): (folder/KEPT).write_bytes((folder/KEPT).read_bytes()[:-9])
        if path.exists(): os.utime(path, ns=(old + n, old + n))
        there = [o for o in names if (folder/o).exists()]
        if not there: continue
        later = time.time_ns() + 5*SETTLED  # so that what is kept is used
        with pytest.MonkeyPatch.context() as m:
            m.setattr('hiccap.digests.time.time_ns', lambda: later)
            with one_look():
                half = file_digests(folder, there[::2])
                found = file_digests(folder, there)
            assert [bytes(d) for d in found] == [file_digest(folder/o) for o in there]
            assert (half == found[::2]).all()


def test_two_files_of_one_size_and_time_stamp_that_change_places_are_found(tmp_path, monkeypatch):
    for n in range(2): np.save(tmp_path/f'a_{n}.npy', np.full(4, n))
    names = ['a_0.npy', 'a_1.npy']
    for o in names: os.utime(tmp_path/o, ns=(1, 1))
    later = time.time_ns() + 2*SETTLED
    monkeypatch.setattr('hiccap.digests.time.time_ns', lambda: later)  # so that they are trusted
    first = file_digests(tmp_path, names)
    assert (tmp_path/KEPT).exists() and (file_digests(tmp_path, names) == first).all()
    (tmp_path/'a_0.npy').rename(tmp_path/'x')
    (tmp_path/'a_1.npy').rename(tmp_path/'a_0.npy')
    (tmp_path/'x').rename(tmp_path/'a_1.npy')
    assert (file_digests(tmp_path, names) == first[::-1]).all()


def test_a_file_that_was_just_written_is_read_again(tmp_path, monkeypatch):
    names, read, plain = ['a_0.npy', 'a_1.npy'], [], digests.file_digest
    for o in names: (tmp_path/o).write_bytes(o.encode())
    monkeypatch.setattr(digests, 'file_digest', lambda path: (read.append(Path(path).name), plain(path))[1])
    for _ in range(2): file_digests(tmp_path, names)
    assert sorted(read) == sorted(names*2)  # another of the same tick would have the same time stamp
    later = time.time_ns() + 2*SETTLED
    monkeypatch.setattr(digests.time, 'time_ns', lambda: later)
    for _ in range(2): file_digests(tmp_path, names)
    assert sorted(read) == sorted(names*3)


def test_a_file_that_changes_while_it_is_read_is_refused_and_not_kept(tmp_path, monkeypatch):
    plain, later = digests.file_digest, time.time_ns() + 2*SETTLED
    monkeypatch.setattr(digests.time, 'time_ns', lambda: later)
    for o in 'ab': (tmp_path/o).write_bytes(b'1234')
    def rewritten(path):
        found = plain(path)
        if Path(path).name == 'b':
            Path(path).write_bytes(b'5678')  # of the same size
            os.utime(path, ns=(1, 1))
        return found
    monkeypatch.setattr(digests, 'file_digest', rewritten)
    with pytest.raises(DataError, match='b.* changed while it was read'): file_digests(tmp_path, ['a', 'b'])
    monkeypatch.setattr(digests, 'file_digest', plain)
    assert [bytes(o) for o in file_digests(tmp_path, ['a', 'b'])] == [plain(tmp_path/o) for o in 'ab']


def test_what_one_look_has_read_is_kept_once_even_if_something_fails(tmp_path, monkeypatch):
    write, written, later = digests._write_kept, [], time.time_ns() + 2*SETTLED
    monkeypatch.setattr(digests.time, 'time_ns', lambda: later)
    monkeypatch.setattr(digests, '_write_kept', lambda path, *rows: (written.append(path), write(path, *rows)))
    for o in 'abc': (tmp_path/o).write_bytes(o.encode())
    with pytest.raises(DataError, match='no such file'), one_look():
        file_digests(tmp_path, ['a'])
        with one_look(): file_digests(tmp_path, ['b', 'a', 'b'])
        assert not written
        file_digests(tmp_path, ['none', 'c'])
    assert written == [tmp_path/KEPT] and digests._read_kept(tmp_path/KEPT)[0] == ['a', 'b']
    with one_look(): first = digests.folder_digests(tmp_path)
    assert first.names == {'a': True, 'b': True, 'c': True, KEPT: True}
    assert digests.folder_digests(tmp_path) is not first


def test_digests_of_a_folder_that_cannot_be_written_are_kept_in_the_cache(tmp_path, monkeypatch):
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/'a').write_bytes(b'1234')
    monkeypatch.setenv('HICCAP_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(digests.os, 'access', lambda path, mode: False)
    later = time.time_ns() + 2*SETTLED
    monkeypatch.setattr(digests.time, 'time_ns', lambda: later)
    first = file_digests(tmp_path/'data', ['a'])
    assert [p.name for p in (tmp_path/'data').iterdir()] == ['a'] and len(list((tmp_path/'cache').rglob('*'))) == 2
    monkeypatch.delattr(digests, 'file_digest')  # nothing is read
    assert (file_digests(tmp_path/'data', ['a']) == first).all()


def test_what_an_earlier_version_did_not_record_is_not_compared():
    was = dict(training=dict(clips='a', videos='b', labels='c', text='d'))
    now = dict(training=was['training'] | {'classes': 'e', 'content of text': 'f'})
    assert changed_data(was, now) == {} and changed_data(now, now) == {}
    assert changed_data(was, dict(training=now['training'] | dict(labels='x'))) == dict(training=['labels'])
    other = dict(training=now['training'] | {'content of text': 'x'})
    assert changed_data(now, other) == dict(training=['content of text'])
