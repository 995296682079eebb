"""Digests of files say what the files contain now, whatever is kept of them, and whichever process wrote it."""
import errno
import hashlib
import os
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hiccap import digests
from hiccap.clips import DataError
from hiccap.digests import (
    KEPT, SETTLED, FolderDigests, default_cache, file_digest, file_digests, folder_digests, one_look)


@pytest.fixture
def later(monkeypatch):
    "The clock is so late that the time stamps of files that are written now are trusted"
    then = time.time_ns() + 5*SETTLED
    monkeypatch.setattr(digests.time, 'time_ns', lambda: then)


@pytest.fixture
def read(monkeypatch):
    "The names of the files that were read, as they are read"
    names, plain = [], digests.file_digest
    monkeypatch.setattr(digests, 'file_digest', lambda path: (names.append(Path(path).name), plain(path))[1])
    return names


def files(folder, *names):
    "Files in a folder, each with its name as content"
    folder.mkdir(parents=True, exist_ok=True)
    for o in names: (folder/o).write_bytes(o.encode())
    return list(names)


def right(folder, names):
    "Whether the digests of files are those of their contents now"
    return [bytes(o) for o in file_digests(folder, names)] == [file_digest(folder/o) for o in names]


# one file

@pytest.mark.parametrize('size', [0, 1, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, (2 << 20) + 1])
def test_a_digest_is_of_the_whole_content_and_nothing_else(size, tmp_path):
    data = np.random.default_rng(size).bytes(size)
    (tmp_path/'a').write_bytes(data)
    found = file_digest(tmp_path/'a')
    assert found == hashlib.blake2b(data, digest_size=16).digest()  # finished runs of any version have such digests
    (tmp_path/'other name').write_bytes(data)
    os.utime(tmp_path/'other name', ns=(1, 1))
    assert file_digest(tmp_path/'other name') == found
    for k in {0, size//2, size - 1} if size else ():
        (tmp_path/'a').write_bytes(data[:k] + bytes([data[k] ^ 1]) + data[k + 1:])
        assert file_digest(tmp_path/'a') != found
    (tmp_path/'a').write_bytes(data + b'\0')
    assert file_digest(tmp_path/'a') != found


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(DataError, match='no such file'): file_digest(tmp_path/'none')
    with pytest.raises(DataError, match='cannot be read'): file_digest(tmp_path)
    with pytest.raises(DataError, match='no such file'): file_digests(tmp_path, ['none'])


# files of a folder

@given(asked=st.lists(st.integers(0, 199), max_size=300), first=st.lists(st.integers(0, 199), max_size=80))
@settings(max_examples=8)
def test_digests_come_in_the_order_of_the_names_however_many_and_how_often(tmp_path_factory, asked, first):
    folder = tmp_path_factory.mktemp('files')
    names = files(folder, *(f'{n}.npy' for n in range(200)))
    content = [file_digest(folder/o) for o in names]
    several = FolderDigests(folder)
    for some in (first, asked, range(200)):
        found = several.of([names[n] for n in some])
        assert found.shape == (len(some), 16) and found.dtype == np.uint8
        assert [bytes(o) for o in found] == [content[n] for n in some]


@pytest.mark.parametrize('ask', [file_digests, lambda folder, names, *n: FolderDigests(folder).of(names, *n)])
def test_as_many_threads_read_as_are_asked_for_and_one_for_each_core_by_default(ask, tmp_path, monkeypatch):
    names, plain = files(tmp_path, *'abcd'), digests.file_digest
    together = threading.Barrier(4, timeout=5)  # passed by four threads at a time, an error otherwise
    def reads(path):
        together.wait()
        return plain(path)
    monkeypatch.setattr(digests, 'file_digest', reads)
    monkeypatch.setattr(digests.os, 'cpu_count', lambda: 4)
    content = [plain(tmp_path/o) for o in names]
    assert [bytes(o) for o in ask(tmp_path, names)] == content
    monkeypatch.setattr(digests.os, 'cpu_count', lambda: 1)
    assert [bytes(o) for o in ask(tmp_path, names, 4)] == content
    threads = set()
    def reads_slowly(path):
        threads.add(threading.get_ident())
        time.sleep(.01)
        return plain(path)
    monkeypatch.setattr(digests, 'file_digest', reads_slowly)
    monkeypatch.setattr(digests.os, 'cpu_count', lambda: 4)
    assert [bytes(o) for o in ask(tmp_path, names, 1)] == content and len(threads) == 1


@pytest.mark.parametrize('stamp', [0, 1])
def test_a_file_of_an_image_without_time_stamps_is_read(stamp, tmp_path, monkeypatch, later, read):
    names = files(tmp_path, 'a', 'b')
    (tmp_path/'a').write_bytes(b'x'*stamp)  # a size that is the time stamp
    monkeypatch.setattr(digests, '_stats', lambda folder, names: np.full((len(names), 3), stamp))
    assert right(tmp_path, names) and sorted(read) == names


# what is kept

def test_what_is_kept_is_read_again_only_where_a_file_is_new_or_changed(tmp_path, later, read):
    names = files(tmp_path, *'abc')
    first = file_digests(tmp_path, names)
    assert sorted(read) == names
    kept = (tmp_path/KEPT).stat()
    assert (file_digests(tmp_path, names) == first).all() and sorted(read) == names
    assert (tmp_path/KEPT).stat() == kept or (tmp_path/KEPT).stat().st_ino == kept.st_ino  # not written again
    read.clear()
    (tmp_path/'b').write_bytes(b'B')
    files(tmp_path, 'd')
    assert right(tmp_path, [*'abcd']) and sorted(read) == ['b', 'd']


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
        then = time.time_ns() + 5*SETTLED  # so that what is kept is used
        with pytest.MonkeyPatch.context() as m:
            m.setattr('hiccap.digests.time.time_ns', lambda: then)
            with one_look():
                half = file_digests(folder, there[::2], 1)
                found = file_digests(folder, there, 1)
            assert [bytes(d) for d in found] == [file_digest(folder/o) for o in there]
            assert (half == found[::2]).all()


def test_two_files_of_one_size_and_time_stamp_that_change_places_are_found(tmp_path, later):
    for n in range(2): np.save(tmp_path/f'a_{n}.npy', np.full(4, n))
    names = ['a_0.npy', 'a_1.npy']
    for o in names: os.utime(tmp_path/o, ns=(1, 1))
    first = file_digests(tmp_path, names)
    assert (tmp_path/KEPT).exists() and (file_digests(tmp_path, names) == first).all()
    (tmp_path/'a_0.npy').rename(tmp_path/'x')
    (tmp_path/'a_1.npy').rename(tmp_path/'a_0.npy')
    (tmp_path/'x').rename(tmp_path/'a_1.npy')
    assert (file_digests(tmp_path, names) == first[::-1]).all()


def test_a_file_that_was_just_written_is_read_again(tmp_path, monkeypatch, read):
    names = files(tmp_path, 'a_0.npy', 'a_1.npy')
    for _ in range(2): file_digests(tmp_path, names)
    assert sorted(read) == sorted(names*2)  # another of the same tick would have the same time stamp
    then = time.time_ns() + 2*SETTLED
    monkeypatch.setattr(digests.time, 'time_ns', lambda: then)
    for _ in range(2): file_digests(tmp_path, names)
    assert sorted(read) == sorted(names*3)


@pytest.mark.parametrize('ahead', [0, 10**15, -10**15])
def test_the_later_time_stamp_decides_when_a_file_is_trusted(ahead, tmp_path, monkeypatch, read):
    names = files(tmp_path, 'a', 'b')
    assert SETTLED >= 2e9  # the clock of a FAT file system ticks every two seconds
    written = (tmp_path/'a').stat().st_ctime_ns
    os.utime(tmp_path/'a', ns=(1, written + ahead))
    last = max(max(o.stat().st_ctime_ns, o.stat().st_mtime_ns) for o in (tmp_path/'a', tmp_path/'b'))
    now = last + SETTLED
    monkeypatch.setattr(digests.time, 'time_ns', lambda: now)
    for _ in range(2): file_digests(tmp_path, ['a'] if ahead > 0 else names)
    late = {'a'} if ahead > 0 else {'a', 'b'}
    assert set(read) == late and read.count('a') + read.count('b') > len(late)  # one of them is read again
    now += 1
    for _ in range(2): file_digests(tmp_path, names)
    read.clear()
    assert right(tmp_path, names) and not read


def test_a_file_that_changes_while_it_is_read_is_refused_and_not_kept(tmp_path, monkeypatch, later):
    plain, names = digests.file_digest, files(tmp_path, *'abcdef')
    def rewritten(path):
        found = plain(path)
        if Path(path).name == 'e':
            Path(path).write_bytes(b'E')  # of the same size
            os.utime(path, ns=(1, 1))
        return found
    monkeypatch.setattr(digests, 'file_digest', rewritten)
    with pytest.raises(DataError, match='e.* changed while it was read') as e: file_digests(tmp_path, names)
    assert Path(e.value.file) == tmp_path/'e'
    monkeypatch.setattr(digests, 'file_digest', plain)
    assert right(tmp_path, names)


# a damaged file of digests

def kept_of(folder, names):
    "The arrays of a file of digests that has the sizes and time stamps of files, and digests that are wrong"
    return dict(names=np.frombuffer('\0'.join(names).encode(), np.uint8), stat=digests._stats(folder, names),
                digests=np.zeros((len(names), 16), np.uint8))


class Opens:
    "Written with pickle, it creates a file when it is read"
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), 'w')


def test_kept_digests_are_used_at_all(tmp_path, later):
    names = files(tmp_path, *'abc')
    with open(tmp_path/KEPT, 'wb') as f: np.savez(f, **kept_of(tmp_path, names))
    assert not file_digests(tmp_path, names).any()  # so the next tests would find the use of what is damaged


@pytest.mark.parametrize('what', [
    'empty', 'text', 'pickle', 'one array', 'a folder', 'without names', 'without stat', 'without digests', 'objects',
    'short digests', 'long digests', 'few digests', 'narrow stat', 'wide stat', 'few stat', 'few names', 'no text'])
def test_a_file_of_digests_that_is_not_one_is_not_used(what, tmp_path, later):
    names, path = files(tmp_path, *'abc'), tmp_path/KEPT
    kept, mark = kept_of(tmp_path, names), tmp_path/'was run'
    stat, found = kept['stat'], kept['digests']
    wrong = {'short digests': dict(digests=found[:, 1:]), 'long digests': dict(digests=np.zeros((3, 17), np.uint8)),
             'few digests': dict(digests=found[1:]), 'narrow stat': dict(stat=stat[:, :2]),
             'wide stat': dict(stat=np.zeros((3, 4), np.int64)), 'few stat': dict(stat=stat[1:]),
             'few names': dict(names=kept['names'][:3]), 'no text': dict(names=kept['names'].astype(float)),
             'objects': dict(names=np.array([Opens(mark)], object))}
    if what == 'empty': path.write_bytes(b'')
    elif what == 'text': path.write_text('digests')
    elif what == 'pickle': path.write_bytes(pickle.dumps(Opens(mark)))
    elif what == 'a folder': path.mkdir()
    else:
        with open(path, 'wb') as f:
            if what == 'one array': np.save(f, found)
            else: np.savez(f, **{k: v for k, v in (kept | wrong.get(what, {})).items() if what != f'without {k}'})
    assert right(tmp_path, names) and not mark.exists()
    assert path.is_dir() if what == 'a folder' else digests._read_kept(path)[0] == names  # and written anew


def test_any_damaged_byte_and_any_missing_end_leave_the_digests_right(tmp_path, later):
    names = files(tmp_path, *'abc')
    assert right(tmp_path, names)
    whole, content = (tmp_path/KEPT).read_bytes(), [file_digest(tmp_path/o) for o in names]
    damaged = [whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1:] for i in range(0, len(whole), 3)]
    for data in [*damaged, *(whole[:i] for i in range(0, len(whole), 19))]:
        (tmp_path/KEPT).write_bytes(data)
        assert [bytes(o) for o in FolderDigests(tmp_path).of(names, 1)] == content


# where they are kept

@pytest.mark.parametrize('own, user, found', [
    ('/own', '/user', '/own'), ('/own', None, '/own'), (None, '/user', '/user/hiccap'), ('', '/user', '/user/hiccap'),
    (None, None, '/me/.cache/hiccap'), ('', '', '/me/.cache/hiccap')])
def test_the_default_cache_is_that_of_the_environment(own, user, found, monkeypatch):
    monkeypatch.setattr(Path, 'home', lambda: Path('/me'))
    for k, v in dict(HICCAP_CACHE=own, XDG_CACHE_HOME=user).items():
        if v is None: monkeypatch.delenv(k, raising=False)
        else: monkeypatch.setenv(k, v)
    assert default_cache() == Path(found)


def test_digests_of_a_folder_that_cannot_be_written_are_kept_in_the_cache(tmp_path, monkeypatch, later, read):
    folders = [tmp_path/o for o in ('data', 'other', 'caf\udce9')]
    for o in folders[:2]: files(o, 'a')
    (folders[1]/'a').write_bytes(b'A')
    monkeypatch.setenv('HICCAP_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(digests.os, 'access', lambda path, mode: False)
    first = [bytes(file_digests(o, ['a'])[0]) for o in folders[:2]]
    assert first == [file_digest(o/'a') for o in folders[:2]]
    assert [p.name for o in folders[:2] for p in o.iterdir()] == ['a', 'a']
    assert len([p for p in (tmp_path/'cache').rglob('*') if p.is_file()]) == 2
    read.clear()
    assert [bytes(file_digests(o, ['a'])[0]) for o in folders[:2]] == first and not read
    try: files(folders[2], 'a')
    except (OSError, UnicodeError): return  # file systems whose names are all Unicode
    assert right(folders[2], ['a'])


@pytest.mark.parametrize('why', ['full disk', 'a file in the place of the cache'])
def test_digests_are_right_where_they_cannot_be_kept(why, tmp_path, monkeypatch, later):
    names = files(tmp_path/'data', *'abc')
    assert right(tmp_path/'data', names[:1])
    before = sorted(tmp_path.rglob('*'))
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, 'No space left on device')
    if why == 'full disk': monkeypatch.setattr(digests.np, 'savez', full)
    else:
        monkeypatch.setenv('HICCAP_CACHE', str(tmp_path/'data'/'a'))
        monkeypatch.setattr(digests.os, 'access', lambda path, mode: False)
    for _ in range(2): assert right(tmp_path/'data', names)
    assert sorted(tmp_path.rglob('*')) == before  # nothing half written
    assert digests._read_kept(tmp_path/'data'/KEPT)[0] == ['a']


def test_names_that_are_not_unicode_are_kept(tmp_path, later, read):
    name = os.fsdecode(b'caf\xe9.npy')  # Latin-1
    try: (tmp_path/name).write_bytes(b'1234')
    except (OSError, UnicodeError): pytest.skip('file names are all Unicode here')
    names = files(tmp_path, 'caf\N{LATIN SMALL LETTER E WITH ACUTE}.npy') + [name]
    assert right(tmp_path, names)
    read.clear()
    assert right(tmp_path, names) and not read


# several processes, and one look

ACTS = st.sampled_from(['write', 'start', 'ask', 'save'])

@given(st.lists(st.tuples(ACTS, st.integers(0, 1), st.integers(0, 3)), max_size=14))
@settings(max_examples=30)
def test_what_two_processes_keep_at_once_never_lies(tmp_path_factory, acts):
    folder = tmp_path_factory.mktemp('files')
    names, old = files(folder, *'abcd'), time.time_ns() - 5*SETTLED
    with pytest.MonkeyPatch.context() as m:
        m.setattr('hiccap.digests.time.time_ns', lambda: old + 20*SETTLED)
        processes = [FolderDigests(folder) for _ in range(2)]
        for n, (act, k, i) in enumerate(acts):
            if act == 'write':
                (folder/names[i]).write_bytes(bytes([n]))
                os.utime(folder/names[i], ns=(old, old))
            elif act == 'start': processes[k] = FolderDigests(folder)
            elif act == 'ask': processes[k].of(names[i:], 1)
            else: processes[k].save()
            now = [bytes(o) for o in FolderDigests(folder).of(names, 1)]
            assert now == [file_digest(folder/o) for o in names]


def test_only_what_is_new_is_written(tmp_path, later):
    several = FolderDigests(tmp_path)
    several.save()
    assert not (tmp_path/KEPT).exists()
    several.of(files(tmp_path, 'a', 'b'))
    several.save()
    assert digests._read_kept(tmp_path/KEPT)[0] == ['a', 'b']
    (tmp_path/KEPT).unlink()
    several.of(['b'])
    several.save()
    assert not (tmp_path/KEPT).exists()


def test_what_one_look_has_read_is_kept_once_even_if_something_fails(tmp_path, monkeypatch, later):
    write, written = digests._write_kept, []
    monkeypatch.setattr(digests, '_write_kept', lambda path, *rows: (written.append(path), write(path, *rows)))
    files(tmp_path, *'abc')
    with pytest.raises(DataError, match='no such file'), one_look():
        file_digests(tmp_path, ['a'])
        with one_look(): file_digests(tmp_path, ['b', 'a', 'b'])
        assert not written
        file_digests(tmp_path, ['none', 'c'])
    assert written == [tmp_path/KEPT] and digests._read_kept(tmp_path/KEPT)[0] == ['a', 'b']
    with one_look(): first = folder_digests(tmp_path)
    assert first.names == {'a': True, 'b': True, 'c': True, KEPT: True}
    assert folder_digests(tmp_path) is not first


def test_within_one_look_a_file_is_what_it_was_when_it_was_first_asked_for(tmp_path, later, read):
    names = files(tmp_path, *'abc')
    with one_look():
        first = file_digests(tmp_path, names[:2])
        (tmp_path/'a').write_bytes(b'changed since')
        assert (file_digests(tmp_path, names)[:2] == first).all() and sorted(read) == names
    assert right(tmp_path, names)


def test_within_one_look_a_folder_is_the_same_by_any_of_its_names(tmp_path, monkeypatch, read):
    names = files(tmp_path/'data', *'ab')
    (tmp_path/'link').symlink_to(tmp_path/'data')
    monkeypatch.chdir(tmp_path)
    with one_look():
        assert folder_digests('data') is folder_digests(tmp_path/'link') is folder_digests(tmp_path/'data')
        for o in ('data', 'link', tmp_path/'data'): file_digests(o, names)
        assert sorted(read) == names
        assert folder_digests(tmp_path) is not folder_digests('data')


def test_a_look_is_over_even_if_it_is_interrupted_while_it_is_written(tmp_path, monkeypatch, later):
    names = files(tmp_path, *'ab')
    def interrupted(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(digests, '_write_kept', interrupted)
        with pytest.raises(KeyboardInterrupt), one_look(): file_digests(tmp_path, names)
    (tmp_path/'a').write_bytes(b'A')
    assert right(tmp_path, names)
