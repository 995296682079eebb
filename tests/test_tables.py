"""Any table is read once and read right: the same answer from training and audit, with the line of what is wrong."""
import csv
import gzip
import importlib.util
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st

from hiccap.audit import audit
from hiccap.clips import DataError, video_of
from hiccap.labels import declared_labels, read_labels, usual_spelling
from hiccap.readers import read_table
from hiccap.real_data import shared_data
from hiccap.run_data import read_clips, read_splits
from hiccap.runs import Clips
from hiccap.tables import open_table
from hiccap.tasks import IGNORE, Task

READING = {'record-kind', 'id-bad', 'id-twice', 'id-field', 'field-kind', 'field-twice', 'label-invalid',
           'group-missing', 'split-invalid', 'no-clips'}
BODY = 'id\ttext\tfunny\n' + ''.join(f'v{n//3}_{n}\tso it goes {n}\t{n % 2}\n' for n in range(12))


def tokens(text, second=None, **kwargs): return {'input_ids': [1, *map(len, text.split()), 2]}


def read(path, labels=('funny',), **kwargs): return read_table(path, tokens, list(labels), max_length=99, **kwargs)


def write(path, text, encoding='utf-8'):
    path.write_bytes(text.encode(encoding))
    return path


def refusal(f, *args, **kwargs):
    "The `DataError` that a call raises"
    with pytest.raises(DataError) as e: f(*args, **kwargs)
    return e.value


def line(path, n, new):
    "A table of BODY with another line `n`, the header being line 1"
    lines = BODY.split('\n')
    lines[n - 1] = new
    return write(path, '\n'.join(lines))


# Places, fixes, and what is kept

def test_errors_say_where_and_how_to_correct_them(tmp_path):
    two = '{"id": "a", "text": "x", "funny": 1}\n{"id": "b", "text": "x", "funny": 0}\n'
    e = refusal(read, write(tmp_path/'lines.json', two))
    assert e.at == 'line 2' and 'Name it .jsonl' in e.fix
    e = refusal(read, write(tmp_path/'cut.jsonl', two + '{"id'))
    assert e.at == 'line 3' and 'Correct the line; if the file was cut short' in e.fix
    e = refusal(read, write(tmp_path/'far.csv', BODY.replace('\t', ',').replace('so it goes 5', 'caf\u00e9'), 'cp1252'))
    assert 'byte 0xe9 near ' in str(e) and e.at == 'line 7'
    long = 'x'*60
    e = refusal(read, write(tmp_path/'long.csv', f'id,text,funny\n{long},caf\u00e9,1\n', 'cp1252'))
    assert f"near '{long[:40]}'," in str(e)


@pytest.mark.parametrize('ending', ['csv', 'tsv', 'jsonl'])
def test_line_ends_within_a_text_are_kept(tmp_path, ending):
    text = 'first\r\nsecond\rthird\nfourth'
    frame = pd.DataFrame(dict(id=['a_1', 'b_1'], text=[text, 'x'], funny=[0, 1]))
    path = tmp_path/f't.{ending}'
    if ending == 'jsonl': frame.to_json(path, orient='records', lines=True)
    else: frame.to_csv(path, index=False, sep=dict(csv=',', tsv='\t')[ending])
    assert next(iter(open_table(path))).values['text'] == text


# Quotation marks

@pytest.mark.parametrize('stray', [
    {4: 'v0_2\t"so it goes\t0', 9: 'v2_7\t"it is\t1'},  # closed by the next one, which is followed by text
    {4: 'v0_2\t"so it goes\t0'},                         # never closed
    {4: 'v0_2\t"so it goes\t0', 9: 'v2_7\tso it is"\t1'},  # closed before a tab
    {4: 'v0_2\t"so" it goes\t0'},                        # followed by text on its own line
])
def test_a_stray_quotation_mark_is_an_error_of_its_line_or_text(tmp_path, stray):
    lines = BODY.split('\n')
    for n, new in stray.items(): lines[n - 1] = new
    path = write(tmp_path/'clips.tsv', '\n'.join(lines))
    e = refusal(read, path)
    assert e.at == 'line 4' and '--raw-quotes' in e.fix
    assert refusal(audit, path, labels=['funny']).at == 'line 4'
    ds = read(path, raw_quotes=True)
    assert len(ds) == 12 and len(audit(path, labels=['funny'], raw_quotes=True).balance) > 0


@pytest.mark.parametrize('name, sep', [('clips.csv', ','), ('clips.tsv', '\t')])
def test_texts_that_spreadsheets_quote_are_read_back(tmp_path, name, sep):
    texts = ['one,\ntwo', 'a "word"', '"', 'tab\tin', 'x'*200_000, "it's", 'line\n1,2,3\n4', '  ']
    with open(tmp_path/name, 'w', newline='', encoding='utf-8') as f:
        w = csv.writer(f, delimiter=sep)
        w.writerows([['id', 'text', 'y'], *([f'a_{n}', t, n % 2] for n, t in enumerate(texts))])
    assert [r.values['text'] for r in open_table(tmp_path/name)] == texts


def test_lines_of_numbers_within_a_text_are_not_rows(tmp_path):
    path = write(tmp_path/'t.csv', 'id,text,y\na_1,"x, y\nz, w",0\na_2,no,1\n')
    assert [r.values['text'] for r in open_table(path)] == ['x, y\nz, w', 'no']


@given(st.lists(st.text(st.characters(codec='utf-8', exclude_characters='\0'), max_size=20), min_size=1, max_size=6),
       st.sampled_from(['.csv', '.tsv', '.csv.gz', '.jsonl', '.json']))
def test_any_texts_come_back_with_their_lines(tmp_path_factory, texts, ending):
    path = tmp_path_factory.mktemp('t')/f't{ending}'
    rows = [dict(id=f'a_{n}', text=t, y=n % 2) for n, t in enumerate(texts)]
    if 'json' in ending:
        body = json.dumps(rows, ensure_ascii=False) if ending == '.json' else '\n'.join(
            json.dumps(r, ensure_ascii=False) for r in rows)
        write(path, body)
    else:
        opener = gzip.open if ending.endswith('.gz') else open
        with opener(path, 'wt', newline='', encoding='utf-8') as f:
            w = csv.writer(f, delimiter='\t' if 'tsv' in ending else ',', quoting=csv.QUOTE_ALL)
            w.writerows([list(rows[0]), *(list(r.values()) for r in rows)])
    found = list(open_table(path))
    assert [r.values['text'] for r in found] == texts
    if 'json' not in ending:
        ends = np.cumsum([1, *(1 + t.count('\n') + t.replace('\r\n', '').count('\r') for t in texts[:-1])])
        if not any('\r' in t for t in texts): assert [r.at for r in found] == [f'line {n + 1}' for n in ends]


@pytest.mark.parametrize('closing', ['left, then",no', 'left",no', 'a, b, c",yes'])
def test_a_mark_that_opens_in_one_row_and_closes_in_another(tmp_path, closing):
    "Of ids without a number it cannot be told; a note counts the rows with line breaks then"
    for ids, refused in ((['v0_0', 'v0_1', 'v1_0', 'v1_1'], True), (['anna', 'bob', 'cleo', 'dan'], False)):
        rows = [f'{ids[0]},so,yes', f'{ids[1]},"he said,yes', f'{ids[2]},{closing}', f'{ids[3]},on,no']
        path = write(tmp_path/'t.csv', '\n'.join(['id,text,funny', *rows, '']))
        if refused: assert refusal(read, path).at == refusal(audit, path, labels=['funny']).at == 'line 3'
        else:
            try: notes = read(path).notes
            except DataError as e: assert e.at == 'line 3'
            else:
                assert any('line breaks, the first in line 3' in o for o in notes)
                assert 'table-note' in {f.code for f in audit(path, labels=['funny']).findings}


def test_a_header_in_the_middle_is_no_clip(tmp_path):
    path = write(tmp_path/'t.tsv', BODY + BODY)
    assert refusal(read, path).at == 'line 14' and 'repeats the header' in str(refusal(read, path))
    assert any(
        'line 14' in json.dumps(f.evidence) for f in audit(path, labels=['funny']).findings if f.code == 'record-kind')


# Lines and encodings

@pytest.mark.parametrize('odd', ['\x85', '\u2028', '\u2029', '\x0b', '\x0c', '\x1c'])
@pytest.mark.parametrize('ending', ['csv', 'tsv', 'jsonl'])
def test_only_a_newline_ends_a_line(tmp_path, odd, ending):
    rows = [dict(id=f'a_{n}', text=f'one{odd}two', y=n % 2) for n in range(4)]
    path = tmp_path/f't.{ending}'
    if ending == 'jsonl': write(path, ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows))
    else: pd.DataFrame(rows).to_csv(path, index=False, sep=',' if ending == 'csv' else '\t')
    assert [r.values['text'] for r in open_table(path)] == [f'one{odd}two']*4


@pytest.mark.parametrize('spoil, at, said', [
    (lambda b: b.decode().encode('utf-16'), 'line 1', 'UTF-16'),
    (lambda b: b.decode().encode('utf-16-le'), 'line 1', 'UTF-16'),
    (lambda b: b.replace(b'goes 4', 'g\u2019s'.encode('cp1252')), 'line 6', "near 'v1_4'"),
    (lambda b: b.replace(b'goes 7', 'caf\xe9'.encode('latin-1')), 'line 9', "near 'v2_7'"),
])
def test_an_encoding_error_names_line_clip_and_fix(tmp_path, spoil, at, said):
    for name in ('clips.tsv', 'clips.tsv.gz'):
        body = spoil(BODY.encode())
        (tmp_path/name).write_bytes(gzip.compress(body) if name.endswith('gz') else body)
        for e in (refusal(read, tmp_path/name), refusal(audit, tmp_path/name, labels=['funny'])):
            assert e.at == at and said in str(e) and 'UTF-8' in e.fix and name in str(e)


@pytest.mark.parametrize('name, content, said', [
    ('list.jsonl', '[{"id": "a"}]', 'Name it .json'),
    ('cut.jsonl', '{"id": "a", "text": "x", "funny": 1}\n{"id', 'line 2'), ('cut.tsv.gz', None, 'cannot be read'),
    ('two.csv', 'id,text,funny,funny\na,b,0,1\n', "two columns are named 'funny'"),
    ('head.csv', 'id,text,funny\n', 'no clip'), ('none.csv', '', 'no line of column names'),
    ('semi.csv', 'id;text;funny\na;b;0\n', "separated by ';'"), ('x.docx', 'x', 'no reader for .docx'),
    ('short.csv', 'id,text,funny\na_1,b,0\na_2,b\n', 'line 3'), ('long.csv', 'id,text,funny\na_1,b,c,0\n', 'line 2'),
    ('named.json', '{"clips": [{"id": "a", "text": "x", "funny": 1}]}', "the name 'clips' holds a list of 1 records"),
    ('later.json', '{"v": {"text": "x", "funny": 1}, "w": [1]}', "clip 'w'"),
    ('lines.json', '{"id": "a", "text": "x", "funny": 1}\n\n{"id": "b", "text": "x", "funny": 0}\n', 'Name it .jsonl'),
    ('clips.json', '{"a": {"text": "x", "funny": 1}}\n{"b": {"text": "x", "funny": 0}}\n', 'name it .jsonl'),
    ('list.jsonl', '{"id": "a", "text": "x", "funny": 1}\n["b"]\n', 'line 2: the record is a list'),
    ('page.xls', '\ufeff <html><table><tr><td>id</td></tr></table>', 'is HTML or XML, not an Excel file'),
    ('text.xlsx', 'id,text,funny\na,b,0\n', 'is text, not an Excel file'),
    ('title.csv', 'Clips of May,,\nid,text,funny\na,b,1\n', "If 'Clips of May' is a title, delete its line"),
])
def test_what_cannot_be_read_is_refused_by_both(tmp_path, name, content, said):
    path = tmp_path/name
    path.write_bytes(gzip.compress(BODY.encode())[:-20] if content is None else content.encode())
    e = refusal(read_clips, Clips(str(path), labels='funny', max_length=9), path, tokens)
    assert said in str(e) and name in str(e)
    try: found = {f.code for f in audit(path, labels=['funny']).findings if f.severity == 'error'}
    except DataError as e: assert said in str(e)
    else: assert found & READING


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = write(tmp_path/'clips.tsv', BODY)
    rows = iter(open_table(path))
    next(rows)
    with open(path, 'a') as f: f.write('v9_1\tlate\t1\n')
    assert 'changed while' in str(refusal(list, rows))


# Labels

@pytest.mark.parametrize('missing', ['N/A', 'NA', 'nan', 'NULL', 'None', '', ' ', '#N/A', None, float('nan'), pd.NA,
                                     pd.NaT])
def test_a_missing_label_is_missing_in_every_spelling(tmp_path, missing):
    values = ['yes', 'no', missing, 'no', 'yes', missing]
    found = read_labels(dict(funny=values), [f'a_{n}' for n in range(6)])
    assert found.numbers == dict(funny=[1, 0, IGNORE, 0, 1, IGNORE]) and not found.problems
    if isinstance(missing, str) and missing.strip():
        assert any(repr(missing) in o and 'a_2, a_5' in o for o in found.notes)


@pytest.mark.parametrize('column, dtype', [
    ('funny', 'Int64'), ('funny', 'boolean'), ('text', 'string'), ('funny', 'Float64'), ('funny', 'category'),
    ('funny', 'object')])
def test_pandas_missing_values_of_every_type(tmp_path, column, dtype):
    frame = pd.DataFrame(dict(id=['a_1', 'a_2', 'b_1', 'b_2'], text=['so', 'it', 'goes', 'on'], funny=[0, 1, 1, 0]))
    frame[column] = frame[column].astype(dtype)
    frame.loc[2, column] = None if dtype == 'object' else pd.NA
    frame.to_parquet(tmp_path/'t.parquet')
    ds = read(tmp_path/'t.parquet')
    assert ds.targets('funny').tolist() == ([0, 1, 1, 0] if column == 'text' else [0, 1, IGNORE, 0])
    assert ds.absent('text') == (['b_1'] if column == 'text' else [])
    assert not any(
        f.severity == 'error' and f.code in READING for f in audit(tmp_path / 't.parquet', labels=['funny']).findings)


def test_a_missing_id_is_an_error_of_its_row(tmp_path):
    frame = pd.DataFrame(dict(id=pd.array(['a_1', None, 'a_3'], 'string'), text=['so', 'it', 'goes'], funny=[0, 1, 0]))
    frame.to_parquet(tmp_path/'t.parquet')
    assert refusal(read, tmp_path/'t.parquet').at == 'row 2'
    frame.set_index('id').to_parquet(tmp_path/'index.parquet')  # ids in the index of the frame
    assert refusal(read, tmp_path/'index.parquet').at == 'row 2'
    frame.dropna().set_index('id').to_parquet(tmp_path/'index.parquet')
    assert read(tmp_path/'index.parquet').ids == ['a_1', 'a_3']


def test_a_spreadsheet_is_read_with_its_lines(tmp_path):
    pytest.importorskip('openpyxl')
    frame = pd.DataFrame(dict(id=[1, 2, 3, 4], text=['so', 'it', None, 'goes'], funny=[1, 0, None, 1]))
    frame.to_excel(tmp_path/'t.xlsx', index=False)
    ds = read(tmp_path/'t.xlsx')
    assert ds.ids == ['1', '2', '3', '4'] and ds.targets('funny').tolist() == [1, 0, IGNORE, 1]
    assert ds.absent('text') == ['3']
    frame.assign(funny=[1, 0, 'perhaps', 1]).to_excel(tmp_path/'t.xlsx', index=False)
    assert refusal(read, tmp_path/'t.xlsx').at == 'line 4'
    (tmp_path/'cut.xlsx').write_bytes((tmp_path/'t.xlsx').read_bytes()[:2000])
    assert 'cannot be read' in str(refusal(read, tmp_path/'cut.xlsx'))


def test_a_spreadsheet_says_what_a_csv_says(tmp_path):
    pytest.importorskip('openpyxl')
    frame = pd.DataFrame(dict(id=['a_1', 'a_2', 'NA', 'b_1'], text=['NA', 'None', 'null', 'so'],
                              funny=['yes', 'no', 'N/A', 'no']))
    frame.to_excel(tmp_path/'t.xlsx', index=False)
    frame.to_csv(tmp_path/'t.csv', index=False)
    a, b = read(tmp_path/'t.xlsx'), read(tmp_path/'t.csv')
    assert a.ids == b.ids and a.notes == b.notes and a.absent('text') == b.absent('text') == []
    assert a.targets('funny').tolist() == b.targets('funny').tolist() == [1, 0, IGNORE, 0]
    frame.set_axis(['id', 'text', 'text'], axis=1).to_excel(tmp_path/'twice.xlsx', index=False)
    assert "two columns are named 'text'" in str(refusal(read, tmp_path/'twice.xlsx'))
    with pd.ExcelWriter(tmp_path/'two.xlsx') as w:
        for name in ('first', 'second'): frame.to_excel(w, sheet_name=name, index=False)
    assert '2 sheets' in str(refusal(read, tmp_path/'two.xlsx'))
    frame.assign(funny=pd.Timestamp('2024-01-02')).to_excel(tmp_path/'date.xlsx', index=False)
    assert 'is not a class' in str(refusal(read, tmp_path/'date.xlsx'))


@pytest.mark.parametrize('a, b', [
    (['0.0', '1.0', '', '1.0'], ['0', '1', '', '1']), ([0., 1., None, 1.], [0, 1, None, 1]),
    (['True', 'False', '', 'true'], ['1', '0', '', '1']), (['yes', 'no', '', 'YES'], [True, False, None, True]),
    (['y', 'n', '', 'Y '], ['Yes', 'No', 'N/A', ' yes']), (['1', '0', '', '+1'], ['01', '00', '', '1.'])])
def test_one_value_is_one_class_however_it_is_written(a, b):
    ids = ['u', 'v', 'w', 'x']
    for one, other in ((a, b), (b, a)):
        first = read_labels(dict(y=one), ids)
        again = read_labels(dict(y=other), ids, tasks=first.tasks)
        assert not first.problems + again.problems and first.numbers == again.numbers
        alone = read_labels(dict(y=other), ids)
        assert alone.numbers == first.numbers


@pytest.mark.parametrize('values, said', [
    ([-1, 1]*3, "--labels 'funny:-1,1'"), ([1, 2, 3, 4, 5, 1], "--labels 'funny:1,2,3,4,5'"),
    (list(range(0, 60, 2)), 'a scale and not classes'), ([.5, 1, 2, 3.5, 1, 0], 'a scale and not classes'),
    (['a|b', 'a', 'b']*2, "--separator '|'"), (['a;b', 'a', 'b']*2, "--separator ';'"),
    (['a, b', 'a', 'b']*2, "--separator ','"), ([f'text {n}' for n in range(30)], 'are no classes'),
    (['0', '1', 'maybe', '1', '0', '1'], 'while the other labels are numbers'),
    (['n', 'f', 'n']*2, "--labels 'funny:f,n'"), (['t', 'y', 'y']*2, 'mean the same answer'),
    (['0,1', '0,4', '2,5']*2, 'a scale'), (['10%', '40%', '20%']*2, 'a scale'),
    (['1,000', '2,000', '1,500']*2, 'a scale'),
    (['yes', 'no', 'none']*2, 'stand for a missing label'), (['yes', 'no', '-']*2, 'stand for a missing label'),
    (['yes', '?', 'no']*2, 'stand for a missing label'), (['a', 'b', 'Null']*2, 'stand for a missing label'),
    (['yes', 'no', '#REF!']*2, 'error of a spreadsheet')])
def test_what_could_be_read_in_two_ways_is_refused_by_both_with_the_ways(tmp_path, values, said):
    frame = pd.DataFrame(dict(id=[f'v{n//2}_{n}' for n in range(len(values))], text='so it goes', funny=values))
    frame.to_csv(tmp_path/'t.csv', index=False)
    e = refusal(read, tmp_path/'t.csv')
    assert said in str(e)
    found = [f for f in audit(tmp_path/'t.csv', labels=['funny']).findings if f.code == 'label-invalid']
    assert any(e.at in d['detail'] for f in found for d in f.evidence['defects'])


@pytest.mark.parametrize('odd', ['yes\u200b', '\ufeffyes', 'y\u00ades', 'yes\ufe0f', 'yes\u00a0', ' YES'])
def test_invisible_characters_make_no_class(odd):
    assert read_labels(dict(y=['yes', 'no', odd, 'no']), list('uvwx')).numbers == dict(y=[1, 0, 1, 0])


@pytest.mark.parametrize('rows, said', [
    ([dict(id='a_1', text='hi \ud83d there', funny=1)], 'half a character'),
    ([dict(id='a_1', text='hi', funny='\ud83d')], 'half a character'),
    ([dict(id='\ud83d', text='hi', funny=1)], 'half a'),
    ([dict(id='a_1', text='hi', funny=[1, 1])], 'not a one-hot'), ([dict(id=' a_1', text='hi', funny=1)], 'blank')])
def test_json_that_no_other_program_reads_is_an_error_of_its_line(tmp_path, rows, said):
    good = [dict(id=f'b_{n}', text='so', funny=n % 2) for n in range(4)]
    path = write(tmp_path/'t.jsonl', '\n'.join(map(json.dumps, good + rows)))
    e = refusal(read, path)
    assert e.at == 'line 5' and said in str(e)
    assert any(
        'line 5' in json.dumps(f.evidence) for f in audit(path, labels=['funny']).findings if f.severity == 'error')


def test_damage_of_every_kind_is_an_error_of_the_file(tmp_path):
    body = gzip.compress(BODY.encode()*50)
    (tmp_path/'t.tsv.gz').write_bytes(body[:60] + bytes(b ^ 255 for b in body[60:80]) + body[80:])
    write(tmp_path/'t.jsonl', '{"id": "a_1", "text": "x", "funny": ' + '1'*5000 + '}\n')
    write(tmp_path/'t.json', '{"a_1": {"text": "x", "funny": ' + '1'*5000 + '}}')
    for name in ('t.tsv.gz', 't.jsonl', 't.json'):
        with pytest.raises(DataError): read(tmp_path/name)
        try: assert [f for f in audit(tmp_path/name, labels=['funny']).findings if f.severity == 'error']
        except DataError: pass


def test_labels_in_lists_are_several_labels(tmp_path):
    rows = [dict(id='a_1', text='x', kinds=['gory', 'mature']), dict(id='a_2', text='x', kinds=['gory'])]
    path = write(tmp_path/'t.jsonl', '\n'.join(map(json.dumps, rows)))
    assert {k: v.tolist() for k, v in read(path, ['kinds'], separator=',').labels.items()} == dict(
        gory=[1, 1], mature=[1, 0])


def test_a_column_name_that_is_no_text_is_said(tmp_path):
    for labels in ([True], [2021], ['funny', 3]):
        with pytest.raises(ValueError, match='write it in quotes'): Clips('t.csv', labels=tuple(labels))


@pytest.mark.parametrize('declared, values, numbers', [
    ('funny:-1,1', [-1, 1, '', 1.], [0, 1, IGNORE, 1]), ('funny:1..5', [1, 5, 3, None], [0, 4, 2, IGNORE]),
    ('funny:yes,no', ['Yes', 'no', 'N/A', '1'], [1, 0, IGNORE, 1]),
    ('funny:none,some', ['None', 'some', '', 'none'], [0, 1, IGNORE, 0]),
    ('funny:0..40', [0, 40, 7, 7], [0, 40, 7, 7]), ('funny:b,a', ['A', 'b ', 'a', ''], [1, 0, 1, IGNORE])])
def test_declared_classes_are_read_as_declared(declared, values, numbers):
    found = read_labels(dict(funny=values), list('uvwx'), classes=declared_labels([declared]))
    assert found.numbers == dict(funny=numbers) and not found.problems


def test_a_label_that_was_not_declared_is_an_error_of_its_line(tmp_path):
    path = line(tmp_path/'t.tsv', 5, 'v1_3\tso\t2')
    assert refusal(read, path, ['funny:0,1']).at == 'line 5'
    assert refusal(read_clips, Clips(str(path), tasks=dict(funny=[0, 1]), max_length=9), path, tokens).at == 'line 5'


def test_several_labels_in_a_cell_are_yes_no_tasks(tmp_path):
    path = write(tmp_path/'t.csv', 'id,text,kinds\na_1,x,gory|mature\na_2,x,Gory\nb_1,x,\nb_2,x,gory | sarcasm\n')
    ds = read(path, ['kinds'], separator='|')
    assert {k: v.tolist() for k, v in ds.labels.items()} == dict(
        gory=[1, 1, IGNORE, 1], mature=[1, 0, IGNORE, 0], sarcasm=[0, 0, IGNORE, 1])
    again = read_table(write(tmp_path/'u.csv', 'id,text,kinds\na_1,x,mature\n'), tokens, ['kinds'], tasks=ds.tasks,
                       separator='|', max_length=9)
    assert {k: v.tolist() for k, v in again.labels.items()} == dict(gory=[0], mature=[1], sarcasm=[0])
    write(tmp_path/'w.csv', 'id,text,kinds\na_1,x,mature|rude\n')
    e = refusal(read_table, tmp_path/'w.csv', tokens, ['kinds'], tasks=ds.tasks, separator='|', max_length=9)
    assert e.at == 'line 2' and "'rude'" in str(e)


@pytest.mark.parametrize('labels, said', [
    (['id'], 'cannot be the label'), (['text'], 'cannot be the label'), (['funny', 'funny:no,yes'], None),
    (['fnny'], "Did you mean 'funny'?"), (['funny:yes'], 'declares no classes')])
def test_a_label_column_that_cannot_be_one(tmp_path, labels, said):
    path = write(tmp_path/'t.tsv', BODY)
    if said is None:
        assert read(path, labels).tasks == (Task('funny', classes=('no', 'yes')),)
    else:
        assert said in str(refusal(read, path, labels))
        assert said in str(refusal(audit, path, labels=labels))


# Groups and parts

@pytest.mark.parametrize('ids', [['dia0_utt0', 'dia0_utt1', 'dia1_utt0'], ['v.0', 'v.1', 'w.0'], ['v_0', 'v_1', 'w_0'],
                                 ['f[0]', 'f[1]', 'g[0]'], ['a-clip1', 'a-clip2', 'b-clip1'],
                                 ['Ses01F_impro01_F000', 'Ses01F_impro01_M000', 'Ses01F_impro02_F000']])
def test_ids_of_published_data_sets_tell_the_video(tmp_path, ids):
    a, b, c = map(video_of, ids)
    assert a == b != c
    path = write(tmp_path/'t.csv', 'id,text,funny\n' + ''.join(f'{o},x,{n % 2}\n' for n, o in enumerate(ids)))
    assert not any('WARNING' in o for o in read(path).notes)


@pytest.mark.parametrize('ids', [['anna', 'ben', 'cleo'], ['x1', 'x2', 'x3'], ['2021-01-05-a', '2021-01-05-b', 'c']])
def test_ids_that_tell_no_video_are_a_warning_of_both(tmp_path, ids):
    path = write(tmp_path/'t.csv', 'id,text,funny\n' + ''.join(f'{o},x,{n % 2}\n' for n, o in enumerate(ids)))
    assert any('no two ids name the same video' in o for o in read(path).notes)
    assert 'groups-unknown' in {f.code for f in audit(path, labels=['funny']).findings}
    assert not any('WARNING' in o for o in read(path, group='id').notes)
    assert 'groups-unknown' not in {f.code for f in audit(path, labels=['funny'], group='id').findings}


@pytest.mark.parametrize('group', ['nan', 'NA', ' ', ''])
def test_a_group_that_is_missing_is_an_error_of_both(tmp_path, group):
    rows = [f'a_{n},x,{n % 2},{g}\n' for n, g in enumerate(['v', 'w', group, 'v'])]
    path = write(tmp_path/'t.csv', 'id,text,funny,video\n' + ''.join(rows))
    assert refusal(read, path, group='video').at == 'line 4'
    assert 'group-missing' in {f.code for f in audit(path, labels=['funny'], group='video').findings}


@pytest.mark.parametrize('groups, same', [(['Movie1', ' Movie1'], True), (['caf\xe9', 'cafe\u0301'], True),
                                          (['Movie1', 'movie1'], False)])
def test_one_video_in_two_spellings(tmp_path, groups, same):
    rows = [f'a_{n},x,{n % 2},{g}\n' for n, g in enumerate(groups*2)]
    path = write(tmp_path/'t.csv', 'id,text,funny,video\n' + ''.join(rows))
    ds = read(path, group='video')
    assert len(set(ds.groups)) == (1 if same else 2)
    assert any('differ only in case' in o for o in ds.notes) == (not same)
    assert ('groups-unknown' in {f.code for f in audit(path, labels=['funny'], group='video').findings}) == (not same)


def parts_table(path, words, videos=None):
    rows = [f'v{n if videos is None else videos[n]}_{n},x,{n % 2},{w}\n' for n, w in enumerate(words)]
    return write(path, 'id,text,funny,part\n' + ''.join(rows))


@pytest.mark.parametrize('words', [['train']*4 + ['val']*2 + ['test']*2, ['Training']*4 + ['dev']*2 + ['TEST ']*2,
                                   ['trn']*4 + ['validation']*2 + ['eval']*2])
def test_a_split_column_says_which_clips_are_scored(tmp_path, words):
    path = parts_table(tmp_path/'t.csv', words)
    clips = Clips(str(path), labels='funny', split='part', max_length=9)
    (train, valid, test), = read_splits(clips, tokens)
    assert (len(train), valid.ids, test.ids) == (4, ['v4_4', 'v5_5'], ['v6_6', 'v7_7'])


@pytest.mark.parametrize('words, videos, said', [
    (['train']*4 + ['holdout']*2, None, 'line 6'), (['train']*4 + ['']*2, None, 'line 6'),
    (['train']*4 + ['test']*2, [0, 1, 2, 3, 3, 4], "its video 'v3'"), (['test']*6, None, 'no clip for training')])
def test_a_split_column_that_cannot_be_used(tmp_path, words, videos, said):
    path = parts_table(tmp_path/'t.csv', words, videos)
    assert said in str(refusal(read_splits, Clips(str(path), labels='funny', split='part', max_length=9), tokens))
    found = audit(path, labels=['funny'], split='part').findings
    if 'line' in said:
        assert any(said in d['detail'] for f in found if f.code == 'split-invalid' for d in f.evidence['defects'])
    if 'video' in said: assert 'video-shared' in {f.code for f in found}


# One reader

IDS = st.sampled_from(['a_1', 'a_2', 'b_1', 'b_2', 'c_1', 'c_2', 'd_1', '', 'a/b', '7', 'e.1'])
TEXTS = st.sampled_from(['so it goes', '', 'a, b', 'said "no"', 'NA', 'caf\xe9', 'two\nlines'])
LABELS = st.one_of(
    *(
        st.lists(st.sampled_from(o), min_size=8, max_size=8)
        for o in (['0', '1', ''], ['yes', 'No', 'N/A', 'YES '], ['a', 'b', 'A'], ['0', '1', '2', '5'], ['-1', '1'],
                  ['0.0', '1.0', '1'], ['0', '1', 'maybe'], ['a|b', 'a', 'b'], ['0.5', '2', '1'], ['', 'NA'])
    )
)


def formulas(path, stored=(), **columns):
    "A spreadsheet as a script writes it: formulas without values, but for the cells in `stored`, which hold no text"
    frame = pd.DataFrame(dict(id=['a_1', 'a_2', 'b_1'], text=['so', 'it', 'goes'], funny=[0, 1, 0]) | columns)
    frame.to_excel(path, index=False, sheet_name='Clips')
    with zipfile.ZipFile(path) as z: whole = {o: z.read(o) for o in z.namelist()}
    with zipfile.ZipFile(path, 'w') as z:
        for name, content in whole.items():
            for cell in stored: content = content.replace(f'<c r="{cell}"'.encode(), f'<c r="{cell}" t="str"'.encode())
            z.writestr(name, content)
    return path


@pytest.mark.parametrize('columns, said', [
    (dict(text=['so', '=B2&"!"', 'goes']), "line 3: column 'text' holds a formula"),
    (dict(funny=[0, '=1+1', '=0']), "line 3: label '(formula)' of column 'funny': a formula"),
    (dict(id=['a_1', 'a_2', '="b_1"']), "line 4: column 'id' holds a formula"),
    (dict(id=['="a"']*3, text=['="a"']*3, funny=['=1']*3), "line 2: column 'id' holds a formula"),
])
def test_formulas_without_values_are_refused_where_they_are_used(tmp_path, columns, said):
    pytest.importorskip('openpyxl')
    e = str(refusal(read, formulas(tmp_path/'t.xlsx', **columns)))
    assert said in e and "without a stored value in sheet 'Clips': open the file in a spreadsheet program" in e
    found = [f for f in audit(tmp_path/'t.xlsx', labels=['funny']).findings if f.code in READING]
    assert said in ''.join(f"{r['detail']}" for f in found for r in f.evidence['defects'])


def test_formulas_without_values_elsewhere_are_a_note_and_stored_values_are_none(tmp_path):
    pytest.importorskip('openpyxl')
    path = formulas(tmp_path/'t.xlsx', more=['', '=1+1', '=2+2'])
    note = "2 cells of sheet 'Clips' are formulas without a stored value, the first in column 'more', line 3"
    assert [o for o in read(path).notes if o.startswith(note)]
    stored = read(formulas(path, ['B3'], text=['so', '=IF(1,"","x")', 'goes']))
    assert stored.absent('text') == ['a_2'] and 'formula' not in ' '.join(stored.notes)


def test_a_title_above_the_names_of_a_spreadsheet(tmp_path):
    pytest.importorskip('openpyxl')
    rows = [['Clips of May', '', ''], ['id', 'text', 'funny'], ['a', 'so', 1], ['b', 'it', 0]]
    pd.DataFrame(rows).to_excel(tmp_path/'t.xlsx', index=False, header=False)
    for f in (lambda: read(tmp_path/'t.xlsx'), lambda: audit(tmp_path/'t.xlsx', labels=['funny'])):
        assert "If 'Clips of May' is a title, delete its line" in str(refusal(f))


def test_one_hot_lists_of_several_widths_are_refused(tmp_path):
    rows = [dict(id=f'a_{n}', text='so', funny=y) for n, y in enumerate([[1, 0], [0, 1], None, [0, 1, 0], [1, 0]])]
    path = write(tmp_path/'t.jsonl', ''.join(json.dumps(r) + '\n' for r in rows))
    e = refusal(read, path)
    assert (e.clip, e.at) == ('a_3', 'line 4')
    assert "one-hot list of 3 numbers in column 'funny', while clip 'a_0', line 1 has 2" in str(e)
    assert 'label-invalid' in audit(path, labels=['funny']).codes()
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path/'t.parquet')
    assert 'one-hot list of 3 numbers' in str(refusal(read, tmp_path/'t.parquet'))
    frame.iloc[[0, 1, 2, 4]].to_parquet(tmp_path/'t.parquet')
    assert read(tmp_path/'t.parquet').targets('funny').tolist() == [0, 1, IGNORE, 0]


@pytest.mark.parametrize('ending', ['csv', 'jsonl'])
def test_names_of_labels_with_a_comma_between_them(tmp_path, ending):
    frame = pd.DataFrame([dict(id=f'a_{n}', text='so', funny=n % 2, mean=n % 2) for n in range(4)])
    path = tmp_path/f't.{ending}'
    frame.to_csv(path, index=False) if ending == 'csv' else frame.to_json(path, orient='records', lines=True)
    for f in (lambda: read(path, ['funny,mean']), lambda: audit(path, labels=['funny,mean'])):
        assert 'Names are separated by a blank: --labels funny mean' in str(refusal(f))
    assert '--labels' not in str(refusal(read, path, ['funny'], id='id,text'))


def test_the_usual_spelling_of_a_class_is_the_same_in_a_cell_of_one_and_of_several():
    ids, names = list('abcdef'), ['Sad', 'sad', 'sad', 'GLAD', 'glad', 'other']
    assert usual_spelling(names) == dict(sad='sad', glad='GLAD', other='other')
    one = read_labels(dict(mood=names), ids)
    several = read_labels(dict(mood=[f'{o}|x' for o in names]), ids, separator='|')
    assert one.tasks[0].classes == ('GLAD', 'other', 'sad')
    assert [t.name for t in several.tasks] == ['GLAD', 'other', 'sad', 'x']


def test_a_column_of_one_class_is_taken_by_training_and_a_warning_of_the_audit(tmp_path):
    rows = [f'v{n//3}_{n},so it goes {n},1' for n in range(30)]
    path = write(tmp_path/'t.csv', '\n'.join(['id,text,funny', *rows]))
    clips = Clips(str(path), labels='funny', max_length=9)
    assert len(read_splits(clips, tokens)[0][0])
    found = audit(path, labels=['funny']).findings
    assert [f.severity for f in found if f.code == 'class-missing'] == ['warning']
    assert not [f for f in found if f.severity == 'error']


def test_declared_tasks_are_read_by_the_audit_as_by_training(tmp_path):
    path = write(tmp_path/'t.csv', 'id,text,mood\na_1,so,-1\na_2,it,1\nb_1,goes,-1\n')
    assert 'label-invalid' in audit(path, labels=['mood']).codes()
    assert read_clips(Clips(str(path), tasks=dict(mood='-1,1'), max_length=9), path, tokens).tasks[0].classes
    assert 'label-invalid' not in audit(path, classes=dict(mood='-1,1')).codes()
    assert "Did you mean 'mood'?" in str(refusal(audit, path, classes=dict(moods='-1,1')))


@given(st.lists(st.tuples(IDS, TEXTS, st.sampled_from(['g', 'h', 'i', ''])), min_size=1, max_size=8), LABELS,
       st.sampled_from(['csv', 'tsv', 'jsonl', 'json', 'parquet']), st.booleans(), st.integers(0, 12))
def test_training_and_audit_accept_and_refuse_the_same_tables(tmp_path_factory, rows, labels, kind, grouped, cut):
    path = tmp_path_factory.mktemp('t')/f't.{kind}'
    frame = pd.DataFrame([dict(id=i, text=t, funny=y, where=g) for (i, t, g), y in zip(rows, labels)])
    if kind == 'parquet': frame.to_parquet(path)
    elif 'json' in kind: frame.to_json(path, orient='records', lines=kind == 'jsonl')
    else:
        frame.to_csv(path, index=False, sep=',' if kind == 'csv' else '\t')
        if cut < len(rows):  # a row with a cell less
            lines = path.read_text().split('\n')
            if lines[cut + 1].count('"') == 0:
                lines[cut + 1] = lines[cut + 1].rpartition(',' if kind == 'csv' else '\t')[0]
            path.write_text('\n'.join(lines))
    group = 'where' if grouped else None
    try: read_clips(Clips(str(path), labels='funny', group=group, max_length=9), path, tokens)
    except DataError as e: trained = e
    else: trained = None
    try:
        found = [f for f in audit(path, labels=['funny'], group=group).findings
                 if f.code in READING and f.severity == 'error']
    except DataError as e: assert trained is not None and trained.at == e.at
    else:
        assert bool(found) == (trained is not None), (trained, found)
        if trained is not None and trained.at:
            assert any(trained.at in json.dumps(f.evidence) for f in found), (trained, found)


def test_a_released_form_and_a_json_of_records_are_told_apart(tmp_path):
    own = write(tmp_path/'own.json', json.dumps({f'v_{n}': dict(text='so', funny=n % 2) for n in range(4)}))
    assert read(own).ids == [f'v_{n}' for n in range(4)]
    listed = write(tmp_path/'listed.json', json.dumps([dict(name=f'v_{n}', said='so', funny=n % 2) for n in range(4)]))
    assert read(listed, id='name', text='said').ids == [f'v_{n}' for n in range(4)]
    for path, kwargs in ((own, {}), (listed, dict(id='name', text='said'))):
        assert not [f for f in audit(path, labels=['funny'], **kwargs).findings if f.severity == 'error']


def test_a_text_column_is_not_lost_by_its_spelling(tmp_path):
    (tmp_path/'f').mkdir()
    np.save(tmp_path/'f'/'v_0_vggish.npy', np.ones((3, 128), np.float32))
    for name in ('Text', ' text', 'texts'):
        path = write(tmp_path/'t.csv', f'id,{name},funny\nv_0,so,1\nv_1,so,0\n')
        assert "no column 'text'" in str(refusal(read, path, features=tmp_path/'f'))
        assert "no column 'text'" in str(refusal(audit, path, labels=['funny'], features=tmp_path/'f'))
    path = write(tmp_path/'t.csv', 'id,funny\nv_0,1\nv_1,0\n')
    assert any("the column 'text' is not there" in o for o in read(path, features=tmp_path/'f').notes)


def test_a_column_of_the_released_form_in_a_table_is_a_column(tmp_path):
    path = write(tmp_path/'t.csv', 'id,text,funny,words\n' + ''.join(f'v_{n},so,{n % 2},1\n' for n in range(4)))
    assert len(read(path)) == 4
    assert not [f for f in audit(path, labels=['funny']).findings if f.code in READING]
    own = write(
        tmp_path / 'own.json', json.dumps({f'v_{n}': dict(IMDBid=f'v_{n}', text='so', label=n % 2) for n in range(4)}))
    assert not read(own, ['label']).absent('text')


def test_words_of_a_split_mean_the_same_to_both(tmp_path):
    path = parts_table(tmp_path/'t.csv', ['train', 'Train ', 'TRAIN', 'trn', 'dev', 'val', 'test', 'eval'])
    assert set(audit(path, labels=['funny'], split='part').summary['splits']) == {'train', 'validation', 'test'}


# The situations that went wrong

@pytest.fixture(scope='module')
def trials(tmp_path_factory):
    where = shared_data('meld')
    make = where and Path(where).parents[1]/'trials'/'make.py'
    if not make or not make.is_file(): pytest.skip('../shared/trials is not there')
    spec = importlib.util.spec_from_file_location('make_trials', make)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp('trials')
    module.main(folder)
    return folder


def test_stray_quotes(trials):
    path = trials/'stray-quotes'/'clips.tsv'
    assert refusal(read, path, ['funny', 'mean']).at == 'line 9'
    assert refusal(audit, path, labels=['funny', 'mean']).at == 'line 9'
    assert len(read(path, ['funny', 'mean'], raw_quotes=True)) == 60


def test_line_separator(trials): assert len(read(trials/'line-separator'/'clips.jsonl', ['funny', 'mean'])) == 60


def test_nullable(trials):
    ds = read(trials/'nullable'/'clips.parquet', ['funny', 'mean'])
    assert (ds.targets('funny') == IGNORE).sum() == 1 and len(ds) == 60


def test_missing_as_word(trials):
    ds = read(trials/'missing-as-word'/'clips.csv')
    assert ds.tasks == (Task('funny', classes=('no', 'yes')),) and (ds.targets('funny') == IGNORE).sum() == 3
    assert any("3 clips have 'N/A' in column 'funny'" in o for o in ds.notes)


def test_float_labels(trials):
    first = read(trials/'float-labels'/'train.csv')
    new = read(trials/'float-labels'/'new.csv', tasks=first.tasks)
    assert first.tasks == new.tasks == (Task('funny'),)
    known = first.targets('funny') != IGNORE
    assert known.sum() == 59 and (first.targets('funny') == new.targets('funny'))[known].all()


def test_dialogues(trials):
    path = trials/'dialogues'/'clips.csv'
    (train, valid, test), = read_splits(Clips(str(path), labels='funny', max_length=9), tokens)
    assert len({o.partition('_')[0] for ds in (train, valid, test) for o in ds.ids}) == 12
    assert not set(train.groups) & set(test.groups) and set(test.groups) <= {f'dia{n}' for n in range(12)}


def test_audit_disagrees(trials):
    path = trials/'audit-disagrees'/'clips.csv'
    e = refusal(read, path)
    found = [f for f in audit(path, labels=['funny']).findings if f.code == 'label-invalid']
    assert found and any(e.at in d['detail'] for d in found[0].evidence['defects'])
    assert read(path, ['funny:-1,1']).tasks == (Task('funny', classes=('-1', '1')),)
    assert not [f for f in audit(path, labels=['funny:-1,1']).findings if f.code == 'label-invalid']
