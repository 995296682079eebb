"""Identity is content: with one label, text or feature file changed, nothing is taken for what it was before."""
import os
import shutil
import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import TINY_NETWORK
from hiccap import digests
from hiccap.clips import DataError
from hiccap.comparison import columns_of, is_done, read_finished, run_grid
from hiccap.digests import KEPT, SETTLED, file_digest
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


def test_what_an_earlier_version_did_not_record_is_not_compared():
    was = dict(training=dict(clips='a', videos='b', labels='c', text='d'))
    now = dict(training=was['training'] | {'classes': 'e', 'content of text': 'f'})
    assert changed_data(was, now) == {} and changed_data(now, now) == {}
    assert changed_data(was, dict(training=now['training'] | dict(labels='x'))) == dict(training=['labels'])
    other = dict(training=now['training'] | {'content of text': 'x'})
    assert changed_data(now, other) == dict(training=['content of text'])
