"""The files that hold tables: which rows and lines are read of each, and what a person is told where it is damaged.

Messages are compared whole, without the folder's name: they name the clip, the file, the line and what to do.
"""
import gzip
import json
import os
import time
import tracemalloc
import zipfile

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from hiccap.clips import DataError
from hiccap.tables import Repeated, csv_rows, json_entries, lines_error, open_table, readable, text_of

COMPLETE = 'Check that it is complete'
AGAIN = 'changed while it was read. Read it again when it is complete'
CUT = 'If it was cut short, copy it again'
MARKS = 'If the marks belong to the text, say so: --raw-quotes, or raw_quotes=True'
UNEQUAL = 'Quote texts that hold a comma; if the file was cut short, copy it again'
SAVE = 'open the file in a spreadsheet program and save it, or save the values as CSV'
ALIKE = '(the lines look like rows of their own)'


@pytest.fixture
def put(tmp_path):
    "Write a file: its path"
    def write(name, content):
        if isinstance(content, str): content = content.encode()
        (tmp_path/name).write_bytes(gzip.compress(content) if name.endswith('.gz') else content)
        return tmp_path/name
    return write


@pytest.fixture
def told(tmp_path):
    "The message of a `DataError`, or of the one that a call raises, without the folder's name"
    def message(f, *args, **kwargs):
        if isinstance(f, DataError): return str(f).replace(f'{tmp_path}{os.sep}', '')
        with pytest.raises(DataError) as e: f(*args, **kwargs)
        return message(e.value)
    return message


def rows(path, **kwargs): return [(r.at, r.values) for r in open_table(path, **kwargs)]


def texts(path, **kwargs): return [r.values['text'] for r in open_table(path, **kwargs)]


def text(path):
    with text_of(path) as f: return f.read()


# What goes wrong with any file

def test_a_file_that_is_missing_or_no_file(tmp_path, told):
    assert told(rows, tmp_path/'t.csv') == 'file t.csv: no such file. Check the path'
    assert told(rows, tmp_path/'t.json') == 'file t.json: no such file. Check the path'
    (tmp_path/'folder.csv').mkdir()
    found = told(rows, tmp_path/'folder.csv')
    assert found.startswith('file folder.csv: cannot be read (') and found.endswith(f'). {COMPLETE}')


def test_an_error_without_a_message_is_told_by_its_name(put, told):
    path = put('t.csv', 'id')
    def fails():
        with readable(path): raise EOFError
    assert told(fails) == f'file t.csv: cannot be read (EOFError). {COMPLETE}'


def test_a_compressed_file_that_is_cut_short(put, told):
    path = put('t.csv.gz', 'id,text\n' + ''.join(f'a_{n},so it goes\n' for n in range(99)))
    assert len(texts(path)) == 99
    path.write_bytes(path.read_bytes()[:-20])
    assert told(rows, path).startswith('file t.csv.gz: cannot be read (')


def test_json_that_is_nested_too_deeply(put, told):
    assert told(rows, put('t.json', '['*100_000)) == f'file t.json: nested too deeply. {COMPLETE}'
    (at, e), = rows(put('t.jsonl', '{"a": ' + '['*100_000))
    assert at == 'line 1' and 'not valid JSON' in str(e)


@pytest.mark.parametrize('change, later, changed', [
    ('id,text', 60, True),         # other content of the same size
    ('id,text', -3600, False),     # a time stamp from before, which the file system wrote late
    ('id,text,funny', None, True), # more content, the time stamp set back
    (None, None, False)])
def test_a_file_that_changes_while_it_is_read(put, told, change, later, changed):
    path = put('t.csv', 'ID,TEXT')
    def read():
        with text_of(path) as f:
            before = os.stat(path).st_mtime_ns
            if change is not None: path.write_text(change)
            now = before if later is None else time.time_ns() + later*10**9
            os.utime(path, ns=(now, now))
            return f.read()
    if changed: assert told(read) == f'file t.csv: {AGAIN}'
    else: assert read() == 'ID,TEXT'


# Encodings

@pytest.mark.parametrize('ending', ['.csv', '.csv.gz'])
@pytest.mark.parametrize('line, byte, near, seen', [
    ('v_2,it\u2019s late,1', '92', 'v_2', '\u2019'), ('  v_2 ;caf\u00e9', 'e9', 'v_2', '\u00e9'),
    ('v\u00e9_2\tlate', 'e9', 'v\u00e9_2', '\u00e9'), ('x'*60 + '\u00e9\u00e8', 'e9', 'x'*40, '\u00e9')])
def test_a_byte_that_is_not_utf_8(put, told, ending, line, byte, near, seen):
    path = put(f't{ending}', f'id,text,y\nv_1,fine,0\n{line}\nv_3,fine,0\n'.encode('cp1252'))
    assert told(rows, path) == (
        f'file t{ending}, line 3: is not UTF-8: byte 0x{byte} near {near!r}, {seen!r} in Windows-1252.'
        ' Save it as UTF-8, which spreadsheets call "CSV UTF-8"')


def test_a_file_that_was_not_utf_8_and_is_now_has_changed(put, told):
    path = put('t.csv', 'id,text\na,caf\u00e9'.encode('cp1252'))
    def corrected():
        with text_of(path) as f:
            put('t.csv', 'id,text\na,cafe')
            return f.read()
    assert told(corrected) == f'file t.csv: {AGAIN}'


@pytest.mark.parametrize('content', [
    *('\ufeff\u4e8c\u4e09'.encode(o) for o in ('utf-16-le', 'utf-16-be')),  # known by its mark, as no byte is 0
    *('id,text'.encode(o) for o in ('utf-16-le', 'utf-16-be'))])           # known by its zeros
def test_utf_16_is_known_by_its_mark_or_its_zeros(put, told, content):
    assert told(rows, put('t.csv', content)) == (
        'file t.csv, line 1: is not UTF-8 but UTF-16, or no text.'
        ' Save it as UTF-8, which spreadsheets call "CSV UTF-8"')


def test_utf_8_has_a_mark_or_none_and_keeps_its_line_ends(put):
    for mark in (b'', b'\xef\xbb\xbf'):
        path = put('t.csv', mark + 'id,text\r\na,"caf\u00e9\r\ncr\u00e8me\rbr\u00fbl\u00e9e\n"\r\n'.encode())
        assert rows(path) == [('line 2', dict(id='a', text='caf\u00e9\r\ncr\u00e8me\rbr\u00fbl\u00e9e\n'))]
    late = 'x'*500 + '\0'  # a zero that does not show another encoding
    assert text(put('late.csv', late)) == late


# CSV and TSV

def test_lines_of_rows_and_what_is_wrong_with_them(put, told):
    path = put('t.csv', 'id,text,y\na_1,"one,\ntwo",0\n\na_2,so\nid,text,y\na_3,"three\n\nfour",1\na_4,b,c,1\n')
    table = open_table(path)
    (_, good), (_, short), (_, header), (_, last), (_, long) = found = [(r.at, r.values) for r in table]
    assert [at for at, _ in found] == ['line 2', 'line 5', 'line 6', 'line 7', 'line 10']
    assert good == dict(id='a_1', text='one,\ntwo', y='0') and last == dict(id='a_3', text='three\n\nfour', y='1')
    assert told(short) == f"clip 'a_2', file t.csv, line 5: 2 fields where the header has 3. {UNEQUAL}"
    assert told(long) == f"clip 'a_4', file t.csv, line 10: 4 fields where the header has 3. {UNEQUAL}"
    assert told(header) == "clip 'id', file t.csv, line 6: repeats the header. Leave the line out"
    assert table.notes == ['2 rows have a cell with line breaks, the first in line 2: if a quotation mark was meant as'
                           ' text, rows are lost in it']
    assert [at for at, _ in list(csv_rows(path, ','))[1:]] == [at for at, _ in found]  # without notes, by default


def test_rows_of_one_line_make_no_note(put):
    table = open_table(put('t.tsv', 'id\ttext\ty\na_1\t"so ""it"" goes"\t0\n'))
    assert [r.values['text'] for r in table] == ['so "it" goes'] and table.notes == []


def test_a_line_for_excel_above_the_names(put, told):
    for sep in ',;':
        assert told(rows, put('t.csv', f'SEP={sep}\nid,text,y\na,so,0\n')) == (
            'file t.csv, line 1: begins with a line for Excel, not with the names of the columns.'
            ' Leave the first line out')
    assert rows(put('t.csv', 'sep=a,text,y\na,so,0\n')) == [('line 2', {'sep=a': 'a', 'text': 'so', 'y': '0'})]
    assert told(rows, put('t.csv', '\nid,text\n')) == f'file t.csv, line 1: no line of column names. {COMPLETE}'


def test_quotation_marks_that_do_not_match(put, told):
    path = put('t.csv', 'id,text,y\na_1,so,0\na_2,"so" it,0\na_3,b,1\n')
    found = told(rows, path)
    assert found.startswith('file t.csv, line 3: quotation marks do not match (') and found.endswith(f'). {MARKS}')
    assert texts(path, raw_quotes=True) == ['so', '"so" it', 'b']
    path = put('t.csv', 'id,text,y\na_1,so,0\na_2,"so,0\nanna,b,1\n')
    found = told(rows, path)
    assert found.startswith('file t.csv, line 3: a quotation mark opens a cell that ends in line 4 (')
    assert found.endswith(f'). {MARKS}') and texts(path, raw_quotes=True) == ['so', '"so', 'b']


# a row of several lines each: its text, or None where the lines look like rows
ROWS = {
    'the next line begins alike': (',', 'a_1,"x\na_22,y",0', None),
    'a later line begins alike': (',', 'a_1,"x\nso it goes\na_2,y",0', None),
    'a line of two cells begins alike': (',', 'a_1,"x\na_2,y\nz",0', None),
    'no line begins alike': (',', 'a_1,"x, y\nz, w\nb 2, v",0', 'x, y\nz, w\nb 2, v'),
    'a line of one cell is not a row': (',', 'a_1,"see\na_2\nand so",0', 'see\na_2\nand so'),
    'the first line is of one cell': (',', '"1\n2, x",so it goes,0', 'so it goes'),
    'as many cells, numbered alike': (',', 'anna,"he said,1\nbob,left",0', None),
    'as many cells without numbers': (',', 'anna,"he said,yes\nbob,left",no', 'he said,yes\nbob,left'),
    'as many cells, numbered otherwise': (',', 'anna,"he said,1\nbob,left",no', 'he said,1\nbob,left'),
    'other numbers of cells': (',', 'anna,"well,1\nbob,so,2,2\ncleo,left",0', 'well,1\nbob,so,2,2\ncleo,left'),
    'as many cells between tabs': ('\t', 'anna\t"he said\tyes\nbob\tleft"\tno', None),
    'fewer cells between tabs': ('\t', 'anna\t"one\ntwo"\tno', 'one\ntwo'),
    'a line between tabs like a row': ('\t', 'anna\t"one\ttwo\nthree"\tno', 'one\ttwo\nthree'),
}


@pytest.mark.parametrize('case', ROWS)
def test_lines_within_a_cell_that_look_like_rows(put, told, case):
    sep, body, expected = ROWS[case]
    path = put('t.csv' if sep == ',' else 't.tsv', sep.join(['id', 'text', 'y']) + f'\n{body}\n')
    if expected is not None: assert texts(path) == [expected]
    else: assert told(rows, path) == (f'file {path.name}, line 2: a quotation mark opens a cell that ends in line'
                                      f' {1 + len(body.splitlines())} {ALIKE}. {MARKS}')


def test_a_text_may_be_longer_than_csv_allows_by_default(put):
    assert texts(put('t.csv', 'id,text\na,' + 'x'*200_000)) == ['x'*200_000]


# JSON

VALUES = st.recursive(st.integers(-999, 99_999) | st.booleans() | st.none() | st.text('a"\\}],\n\u00e9 ', max_size=5),
                      lambda o: st.lists(o, max_size=2) | st.dictionaries(st.text('ab', max_size=2), o, max_size=2),
                      max_leaves=4)
SPACES = st.text(' \n\t\r', max_size=3)


@given(st.lists(st.tuples(VALUES, *[SPACES]*5), max_size=4), st.booleans(), SPACES,
       st.sampled_from([1, 2, 3, 7, 1 << 20]))
def test_entries_come_with_their_lines_whatever_the_window(tmp_path_factory, entries, listed, space, size):
    "Each entry is in the line in which its name begins, or its value in a list"
    body, expected = space + '[{'[not listed] + space, []
    for n, (v, before, colon, after, end, more) in enumerate(entries):
        body += before
        expected.append((f'line {1 + body.count(chr(10))}', None if listed else f'n{n}', v))
        if not listed: body += f'"n{n}"' + colon + ':' + after
        body += json.dumps(v, indent=len(end)) + end + ','*(n + 1 < len(entries)) + more
    path = tmp_path_factory.mktemp('t')/'t.json'
    path.write_bytes((body + ']}'[not listed] + space).encode())
    assert list(json_entries(path, size)) == expected


def test_a_json_file_is_not_held_whole(put):
    path = put('t.json', json.dumps(['x'*1000]*2000))
    tracemalloc.start()
    try:
        assert sum(1 for _ in json_entries(path, 1000)) == 2000
        most = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert most < path.stat().st_size/4


@pytest.mark.parametrize('body, said', [
    ('', "line 1: no valid JSON object: '{' is missing"), ('\n\n 3', "line 3: no valid JSON object: '{' is missing"),
    ('{"a": 1, "b": 2', "line 1: no valid JSON: ',' or '}' is missing after 'b'"),
    ('{"a": 1\n "b": 2}', "line 2: no valid JSON: ',' or '}' is missing after 'a'"),
    ('[{},\n{}\n{}]', "line 3: no valid JSON: ',' or ']' is missing after 'line 2'"),
    ('{"a" 1}', "line 1: no valid JSON: ':' is missing after 'a'"),
    ('{\n1: 2}', "line 2: no valid JSON object: a name is missing"),
    ('{"a": 1,\n}', "line 2: no valid JSON: a name is missing after 'a'"),
    ('{', "line 1: no valid JSON object: a name is missing"),
    ('{"a": 1,\n"b": nope}', "line 2: no valid JSON after 'b' (Expecting value)"),
    ('[{},\n\n{]', "line 3: no valid JSON after 'line 1' (Expecting property name enclosed in double quotes)"),
    ('{"a": 1, "b', "line 1: no valid JSON after 'a' (Unterminated string starting at)"),
])
def test_json_that_is_broken(put, told, body, said):
    path = put('t.json', body)
    for size in (1, 2, 1 << 20): assert told(list, json_entries(path, size)) == f'file t.json, {said}. {CUT}'


def test_a_number_of_too_many_digits(put, told):
    found = told(rows, put('t.json', '{"a": ' + '1'*5000 + '}'))
    assert found.startswith("file t.json, line 1: no valid JSON after 'a' (Exceeds the limit")
    (_, e), = rows(put('t.jsonl', '1'*5000))
    assert told(e).startswith('file t.jsonl, line 1: not valid JSON (Exceeds the limit')


def test_json_without_records_and_with_more_than_one_object(put, told):
    assert rows(put('t.json', ' {}\n')) == rows(put('t.json', '[ ]')) == []
    two = open_table(put('t.json', '{"a": {"text": "x"}}\n{"b": {"text": "x"}}\n'))
    assert next(iter(two)).values == dict(text='x')
    assert told(list, two) == ('file t.json, line 2: no valid JSON: there is more after the object. Keep one object in'
                               ' the file; if each line is an object of its own, name it .jsonl')


def test_records_of_json_have_the_names_of_an_object(put):
    found = list(open_table(put('t.json', '{"a": {"y": 1},\n"b": {}}')))
    assert [tuple(r) for r in found] == [('line 1', 'a', dict(y=1)), ('line 2', 'b', {})]
    found = list(open_table(put('t.json', '[{"y": 1},\n{}]')))
    assert [tuple(r) for r in found] == [('line 1', None, dict(y=1)), ('line 2', None, {})]


def test_names_that_an_object_holds_twice_are_marked(put):
    twice, once = '{"y": 1, "y": 2}', '{"y": 2}'
    for path in (put('t.json', f'[{twice}, {once}]'), put('t.jsonl', f'{twice}\n{once}\n')):
        (_, a), (_, b) = rows(path)
        assert a == b == dict(y=2) and isinstance(a, Repeated) and not isinstance(b, Repeated)


@pytest.mark.parametrize('body', [
    '{"id": "a", "y": 1}\n{"id": "b", "y": 0}\n', '\n{"id": "a"}\n\n{"id": "b"}\nand so on\n'])
def test_an_object_on_each_line_of_a_json_file(put, told, body):
    message = 'file t.json, line 2: holds an object on each line, which is JSONL. Name it .jsonl'
    assert told(rows, put('t.json', body)) == told(lines_error(put('t.json', body))) == message


@pytest.mark.parametrize('body', ['{"a": 1}', '{"a": 1}\n[2]', '[1]\n{"a": 1}', '[1]\n[2]', '{"a": 1,\n"b": 2}'])
def test_lines_of_a_json_file_that_are_not_an_object_each(put, body): assert lines_error(put('t.json', body)) is None


def test_records_that_are_not_objects(put, told):
    path = put('t.json', '{"clips": [{"id": "a"}, {}],\n"b": [{}, 1], "c": [],\n"d": 3, "e": {"y": 1}}')
    (_, a), (_, b), (_, c), (_, d), (_, e) = rows(path)
    assert told(a) == ("file t.json, line 1: the name 'clips' holds a list of 2 records, and each name should be a"
                       " clip. Write the list alone to the file: json.dump(everything['clips'], file)")
    fix = 'Write each clip as one object of named fields'
    assert told(b) == f"clip 'b', file t.json, line 2: the record is a list, not an object. {fix}"
    assert told(c) == f"clip 'c', file t.json, line 2: the record is a list, not an object. {fix}"
    assert told(d) == f"clip 'd', file t.json, line 3: the record is a int, not an object. {fix}"
    assert e == dict(y=1)
    (_, a), = rows(put('t.json', '[\n[{"id": "a"}]]'))
    assert told(a) == f'file t.json, line 2: the record is a list, not an object. {fix}'
    _, (_, a), (_, b) = rows(put('t.jsonl', '{"id": "a"}\n["b"]\n[{}]\n'))
    assert told(a) == f'file t.jsonl, line 2: the record is a list, not an object. {fix}'
    assert told(b) == f'file t.jsonl, line 3: the record is a list, not an object. {fix}'


def test_lines_of_jsonl(put, told):
    for name in ('t.jsonl', 't.jsonl.gz'):
        found = rows(put(name, '\n{"id": "a"}\n  \n{"id": \n[1]\n{"id": "b"}'))
        assert [at for at, _ in found] == ['line 2', 'line 4', 'line 5', 'line 6']
        assert found[0][1] == dict(id='a') and found[3][1] == dict(id='b')
        assert told(found[1][1]) == (f'file {name}, line 4: not valid JSON (Expecting value).'
                                     ' Correct the line; if the file was cut short, copy it again')
    for body in (' [{"id": "a"}]', '[\n{"id": "a"}]'):
        assert told(rows, put('t.jsonl', body)) == ('file t.jsonl, line 1: holds a JSON list, not an object on each'
                                                    ' line. Name it .json, or write each record on a line of its own')


# Columns

def test_endings_in_any_case_and_what_no_reader_reads(put, told):
    assert texts(put('T.CSV', 'id,text\na,so\n')) == texts(put('t.tsv.gz', 'id\ttext\na\tso\n')) == ['so']
    for name, ending in (('t.docx', '.docx'), ('t', 'a name without an ending')):
        assert told(rows, put(name, 'x')) == (
            f'file {name}: no reader for {ending}. Give one of .csv, .tsv, .jsonl, .json, .parquet, .xlsx, .xls,'
            ' .csv.gz, .tsv.gz, .jsonl.gz')


def test_columns_without_a_name_are_not_read(put, told):
    table = open_table(put('t.csv', 'id,,Unnamed: 0,text, \na,b,c,so,d\ne,f\n'))
    (at, good), (_, short) = [(r.at, r.values) for r in table]
    assert (table.columns, at, good) == (['id', 'text'], 'line 2', dict(id='a', text='so'))
    assert table.notes == ['3 columns without a name were not read, the first of them column 2']
    assert told(short).startswith("clip 'e', file t.csv, line 3: 2 fields where the header has 5")
    assert texts(put('t.csv', 'id,,,text\na,b,c,so\n')) == ['so']


@pytest.mark.parametrize('body', ['', ',,\na,b,c\n'])
def test_a_table_without_names(put, told, body):
    assert told(rows, put('t.csv', body)) == f'file t.csv, line 1: no line of column names. {COMPLETE}'


def test_two_columns_of_one_name(put, told, tmp_path):
    said = "line 1: two columns are named 'y'. Give every column a name of its own"
    assert told(rows, put('t.csv', 'id,y,y\na,0,1\n')) == f'file t.csv, {said}'
    pq.write_table(pa.table([pa.array(['a']), pa.array([0]), pa.array([1])], ['id', 'y', 'y']), tmp_path/'t.parquet')
    assert told(rows, tmp_path/'t.parquet') == f'file t.parquet, {said}'


# Parquet

@pytest.mark.parametrize('index, more', [
    (pd.RangeIndex(2), {}), (pd.RangeIndex(2, name='n'), dict(n=[0, 1])), (pd.RangeIndex(3, 5), {}),
    (pd.Index(['u', 'v']), dict(id=['u', 'v'])), (pd.Index(['u', 'v'], name='clip'), dict(clip=['u', 'v'])),
    (pd.Index(['u', 'v'], name='text'), {}),
    (pd.MultiIndex.from_tuples([('v', 1), ('w', 2)]), dict(level_0=['v', 'w'], level_1=[1, 2])),
    (pd.MultiIndex.from_tuples([('v', 1), ('w', 2)], names=['clip', None]), dict(clip=['v', 'w'], level_1=[1, 2]))])
def test_the_index_of_a_parquet_file(tmp_path, index, more):
    frame = pd.DataFrame(dict(text=['so', 'it']), index=index)
    pq.write_table(pa.Table.from_pandas(frame), path := tmp_path/'t.parquet')
    expected = pd.DataFrame(more | dict(text=['so', 'it'])).to_dict('records')
    assert rows(path) == [('row 1', expected[0]), ('row 2', expected[1])]
    assert open_table(path).columns == [*more, 'text']


@pytest.mark.parametrize('name', ['id', None])
def test_a_column_comes_before_an_index_of_its_name(tmp_path, name):
    pd.DataFrame(dict(id=['p', 'q']), index=pd.Index(['u', 'v'], name=name)).to_parquet(tmp_path/'t.parquet')
    assert rows(tmp_path/'t.parquet') == [('row 1', dict(id='p')), ('row 2', dict(id='q'))]


def test_a_parquet_file_that_is_damaged(put, told):
    found = told(rows, put('t.parquet', 'PAR1' + 'x'*40))
    assert found.startswith('file t.parquet: cannot be read (Arrow') and found.endswith(f'). {COMPLETE}')


@pytest.mark.parametrize('error, said', [
    (ValueError(), f'cannot be read (ValueError: no reason given). {COMPLETE}'),
    (KeyError(), f'cannot be read (KeyError: no reason given). {COMPLETE}'),
    (RuntimeError('first\nsecond'), f'cannot be read (RuntimeError: first). {COMPLETE}'),
    (ImportError('no xlrd'), 'needs a package that is not installed (no xlrd). pip install openpyxl for .xlsx, xlrd for'
                             ' .xls; or save it as CSV')])
def test_what_another_library_says_is_told_in_one_line(put, told, monkeypatch, error, said):
    def fails(*args, **kwargs): raise error
    monkeypatch.setattr(pd, 'read_excel', fails)
    assert told(rows, put('t.xls', b'\xd0\xcf\x11\xe0')) == f'file t.xls: {said}'


# Excel

def sheets(path, *bodies, names=('Clips', 'More'), edit=lambda xml: xml):
    "Write an Excel file with sheets of rows of cells, and edit their XML"
    pytest.importorskip('openpyxl')
    with pd.ExcelWriter(path) as w:
        for name, body in zip(names, bodies): pd.DataFrame(body).to_excel(w, sheet_name=name, index=False, header=False)
    with zipfile.ZipFile(path) as z: parts = {o: z.read(o) for o in z.namelist()}
    with zipfile.ZipFile(path, 'w') as z:
        for name, content in parts.items(): z.writestr(name, edit(content) if 'worksheets/' in name else content)
    return path


def test_rows_of_a_spreadsheet_have_its_lines(tmp_path):
    path = sheets(tmp_path/'t.xlsx', [['id', 2021, 'text'], ['a', .5, 'NA'], [None, ' ', ''], ['b', None, '1'],
                                      ['#N/A', '#N/A', None], ['c', 2, None]], [])
    table = open_table(path)
    assert table.columns == ['id', '2021', 'text'] and table.notes == []
    found = {r.at: r.values for r in table}
    errors = found.pop('line 5')
    assert errors['id'] != errors['id'] and errors['text'] == ''
    assert found == {'line 2': {'id': 'a', '2021': .5, 'text': 'NA'}, 'line 4': {'id': 'b', '2021': '', 'text': '1'},
                     'line 6': {'id': 'c', '2021': 2, 'text': ''}}


def test_a_number_that_names_a_column_of_numbers(tmp_path):
    assert rows(sheets(tmp_path/'t.xlsx', [[2021, 2022.5], [.5, 1], [1, 2]])) == [
        ('line 2', {'2021': .5, '2022.5': 1}), ('line 3', {'2021': 1, '2022.5': 2})]


def test_a_spreadsheet_of_as_many_rows_as_columns(tmp_path):
    assert rows(sheets(tmp_path/'t.xlsx', [['id', 'text'], ['a', 'so']])) == [('line 2', dict(id='a', text='so'))]
    path = sheets(tmp_path/'t.xlsx', [['id', 'text'], ['a', 'so'], ['b', 'it']])
    assert rows(path) == [('line 2', dict(id='a', text='so')), ('line 3', dict(id='b', text='it'))]


def test_cells_on_two_sheets_or_none(tmp_path, told):
    body, fix = [['id', 'text'], ['a', 'so']], 'Keep one sheet in the file, or save it as CSV'
    two = sheets(tmp_path/'t.xlsx', body, body)
    assert told(rows, two) == f'file t.xlsx: holds 2 sheets with cells: Clips, More. {fix}'
    assert told(rows, sheets(tmp_path/'t.xlsx', [])).startswith('file t.xlsx: holds 0 sheets with cells')
    assert texts(sheets(tmp_path/'t.xlsx', [], body)) == ['so']


@pytest.mark.parametrize('name, content, said', [
    ('t.xls', '\ufeff <html><table><tr><td>id</td></tr></table>',
     'is HTML or XML, not an Excel file. Open it in a spreadsheet program and save it as .xlsx, or as CSV'),
    ('t.xlsx', 'id,my text\r\na\tb,caf\u00e9\n' + 'x'*600,
     'is text, not an Excel file. Name it .csv or .tsv, as its cells are separated')])
def test_what_only_has_the_name_of_an_excel_file(put, told, name, content, said):
    assert told(rows, put(name, content)) == f'file {name}: {said}'


def test_an_empty_file_and_a_damaged_one_are_not_text(put, told):
    for content in (b'', b'PK\x03\x04text'):
        assert told(rows, put('t.xlsx', content)).startswith('file t.xlsx: cannot be read (')


def test_cells_of_an_xls_file_have_values(put, monkeypatch):
    "As xlrd gives them: the format has no formula without one"
    frame = pd.DataFrame([['id', 'text'], ['a', 'so']])
    monkeypatch.setattr(pd, 'read_excel', lambda *args, **kwargs: dict(Clips=frame))
    assert rows(put('t.xls', b'\xd0\xcf\x11\xe0')) == [('line 2', dict(id='a', text='so'))]


def test_formulas_without_values_at_the_end_of_a_sheet(tmp_path):
    "A row of nothing else is read, and the cells beside it are empty"
    body = [['id', 'text', 'y', None, None], ['a', '=1', 0, None, None], ['b', 'so', '=1', None, None],
            ['=2', None, None, None, '=3']]
    for edit in (lambda xml: xml, lambda xml: xml.replace(b'A1:E4', b'A1')):  # some programs write a wrong size
        table = open_table(sheets(tmp_path/'t.xlsx', body, [], edit=edit))
        (a, _), (b, _), (c, last) = found = [(r.at, {k: str(v) for k, v in r.values.items()}) for r in table]
        assert (a, b, c) == ('line 2', 'line 3', 'line 4') and last == dict(id='(formula)', text='', y='')
        assert [o['text'] for _, o in found] == ['(formula)', 'so', ''] and found[1][1]['y'] == '(formula)'
        assert table.notes == [
            f"4 cells of sheet 'Clips' are formulas without a stored value, the first in column 'text', line 2: {SAVE}",
            '2 columns without a name were not read, the first of them column 4']
        unstored = next(iter(open_table(tmp_path/'t.xlsx'))).values['text']
        assert unstored.what == f"a formula without a stored value in sheet 'Clips': {SAVE}"


def test_formulas_with_values_are_their_values(tmp_path):
    "A stored empty text is a value, and an empty cell is not a formula"
    def store(xml):
        assert xml.count(b'<v />') + xml.count(b'<v></v>') + xml.count(b'<v/>') == 2
        for empty in (b'<v />', b'<v></v>', b'<v/>'): xml = xml.replace(empty, b'<v>7</v>')
        return xml
    table = open_table(sheets(tmp_path/'t.xlsx', [['id', 'y'], ['a', '=3+4'], ['=7', None]], edit=store))
    assert [r.values for r in table] == [dict(id='a', y=7), dict(id=7, y='')] and table.notes == []
