"""Feature files that no id matches, files with rows and columns swapped, and classes that a training part lacks.

Each is found before anything is trained, by the commands that a user types, and by the audit too.
"""
import csv
import json
import shutil
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import hiccap.cli
import hiccap.splits
from hiccap.clips import Clip, ClipDataset, DataError
from hiccap.features import FeatureFolder, feature_columns, name_difference, pair_names, transposed, transposed_files
from hiccap.pretraining_runs import PretrainRun, read_streams
from hiccap.run_data import read_splits, tokenizer_for
from hiccap.runs import Clips, Network, Run, Training
from hiccap.search import Search, run_search
from hiccap.splits import check_classes, check_scored
from hiccap.synthetic import WORDS, synthetic_tokenizer
from hiccap.tasks import Task

from conftest import TINY_NETWORK

WIDTHS = dict(rgb=16, flow=16, vggish=8)
FEW = settings(max_examples=60)
IDS = [f'vid{v:02d}_{k}' for v in range(8) for k in range(3)]


def write_table(path, ids=IDS, **columns):
    "A table of clips with a text each; `funny` alternates unless it is given"
    columns = {'funny': [i % 2 for i in range(len(ids))], **columns}
    with open(path, 'w', newline='', encoding='utf-8') as f:
        w = csv.writer(f)
        w.writerow(['id', 'text', *columns])
        for i, id in enumerate(ids):
            w.writerow([id, ' '.join(WORDS[(i + k) % 97] for k in range(5)), *(v[i] for v in columns.values())])
    return path


def write_features(folder, ids=IDS, parts=WIDTHS, change=lambda x: x, length=None, seed=0):
    "Feature files, all of one length or each of its own, and changed on the way"
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i, id in enumerate(ids):
        n = length or 3 + i % 5
        for part in parts:
            np.save(folder/f'{id}_{part}.npy', change(rng.normal(size=(n, WIDTHS[part])).astype(np.float32)))
    return folder


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tokenizer')/'tokenizer'
    synthetic_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def command(typed, tokenizer, tmp_path):
    "Type a command with the options of these tests: its status, output and errors"
    def run(name, table, features=None, *args):
        features = features if isinstance(features, list) or features is None else [features]
        given = [] if features is None else ['--features', *features]
        if name == 'audit': return typed('audit', table, *given, '--labels', 'funny', *args)
        given += ['--tokenizer', tokenizer, '--labels', 'funny', *args]
        if name == 'pack': return typed('pack', table, tmp_path/'packed', *given)
        network = {k: v for k, v in TINY_NETWORK.items() if k not in ('video', 'audio')}
        return typed('train', table, *given, '--epochs', 1, '--out', tmp_path/'run', '--set',
                     *(f'{k}={json.dumps(v)}' for k, v in network.items()))
    return run


def refused(command, table, features, *parts):
    "Training, packing and the audit refuse the files, with all parts of the message; nothing is trained"
    for name in ('train', 'pack'):
        status, out, err = command(name, table, features)
        assert status == 2 and err.count('\n') == 1 and 'epoch' not in out, err
        for part in parts: assert part in err, (name, part, err)
    status, out, err = command('audit', table, features, '--fail-on', 'error')
    assert status == 1, (out, err)
    errors = ' '.join(o for o in out.splitlines() if o.startswith('error'))
    for part in parts: assert part in out, (part, out)
    return errors


# files that no id matches

def number(id): return id.replace('vid', '').replace('_', '1')
def swapcase(id): return id.replace('vid', 'VID')


UNLIKE = {  # id of the table, name of the files, what the message says
    'extension of the id': (lambda o: o + '.mp4', str, 'the id has the extension .mp4, the file name has not'),
    'extension of the file': (str, lambda o: o + '.wav', 'the file name has the extension .wav, the id has not'),
    'two extensions': (lambda o: o + '.MKV', lambda o: o + '.wav', 'the id has the extension .MKV and the file name'),
    'case': (swapcase, str, 'upper and lower case differ'),
    'blank at the end': (lambda o: o, lambda o: o + ' ', 'one has blanks at its ends'),
    'blank within': (str, lambda o: o.replace('vid', 'vid '), 'one has blanks'),
    'Unicode form': (lambda o: unicodedata.normalize('NFC', 'é' + o), lambda o: unicodedata.normalize('NFD', 'é' + o),
                     'their Unicode form differs, NFC in the id and NFD in the file name'),
    'dash': (lambda o: o.replace('_', '-'), str, 'they differ in -, _ and blanks'),
    'leading zeros': (lambda o: o.replace('vid0', 'vid'), str, 'their leading zeros differ'),
    'decimal': (lambda o: number(o) + '.0', number, 'one is written as a decimal number'),
    'prefix of the file': (str, lambda o: 'train_' + o, "the file name has 'train_' in front"),
    'prefix of the id': (lambda o: 'youtube_' + o, str, "the id has 'youtube_' in front"),
    'ending of the file': (str, lambda o: o + '_16k', "the file name has '_16k' behind"),
    'two at once': (lambda o: swapcase(o) + '.mp4', str, 'the id has the extension .mp4'),
    'nothing alike': (str, lambda o: 'x' + o[::-1] + 'y', 'the two names differ'),
}


@pytest.mark.parametrize('how', UNLIKE)
def test_ids_that_differ_from_all_file_names(how, tmp_path, command):
    of_table, of_file, says = UNLIKE[how]
    table = write_table(tmp_path/'clips.csv', [of_table(o) for o in IDS])
    features = write_features(tmp_path/'features', [of_file(o) for o in IDS])
    errors = refused(command, table, features, 'none of the video files belongs to a clip', says)
    assert 'features-names' in errors
    err = command('train', table, features)[2]
    assert f"clip {of_table(IDS[0])!r}" in err or how == 'nothing alike', err
    assert '_rgb.npy' in err and ('24 of 24 clips' in err) == (how != 'nothing alike'), err


@pytest.mark.parametrize('parts', [('vggish',), ('rgb', 'flow')])
def test_one_modality_may_match_and_the_other_not(parts, tmp_path, command):
    "The files of one modality have right names; the other has none of its own"
    other = [o for o in WIDTHS if o not in parts]
    features = write_features(tmp_path/'features', parts=other)
    write_features(features, [o + '.mp4' for o in IDS], parts)
    what = 'audio' if parts == ('vggish',) else 'video'
    refused(command, write_table(tmp_path/'clips.csv'), features, f'none of the {what} files belongs to a clip')


def test_a_modality_that_no_clip_has_whole(tmp_path, command):
    features = write_features(tmp_path/'features', parts=[o for o in WIDTHS if o != 'rgb'])
    refused(command, write_table(tmp_path/'clips.csv'), features, 'no clip has all of video', 'no rgb')
    write_features(tmp_path/'features', [IDS[0] + 'x'], ['rgb'])
    refused(command, tmp_path/'clips.csv', features, 'no clip has all of video', 'no rgb')


def test_rgb_is_the_video_where_no_clip_at_all_has_flow(tmp_path, command):
    table = write_table(tmp_path/'clips.csv')
    features = write_features(tmp_path/'features', parts=['rgb', 'vggish'])
    status, out, err = command('train', table, features)
    note = 'features has no <id>_flow.npy of any clip, so video is <id>_rgb.npy alone'
    assert status == 0 and note in out, err
    assert note in command('audit', table, features)[1]
    shutil.rmtree(tmp_path/'run')
    features = write_features(tmp_path/'features', IDS[:1], ['flow'])
    assert command('pack', table, features)[0] == 0
    shutil.rmtree(tmp_path/'packed')
    refused(command, table, [features, 'video=rgb+flo'], 'no clip has all of video', 'no flo')


def test_a_modality_without_files_is_absent(tmp_path, command):
    features = write_features(tmp_path/'features', parts=['vggish'])
    status, out, err = command('pack', write_table(tmp_path/'clips.csv'), features)
    assert status == 0 and '24 clips have no video' in err, err
    assert command('audit', tmp_path/'clips.csv', features, '--fail-on', 'error')[0] == 0


@pytest.mark.parametrize('how', [o for o in UNLIKE if o not in ('nothing alike', 'two at once')])
def test_some_clips_whose_files_are_named_differently_are_counted(how, tmp_path, command):
    of_table, of_file, says = UNLIKE[how]
    ids = [of_table(o) for o in IDS]
    features = write_features(tmp_path/'features', [ids[0], *(of_file(o) for o in IDS[1:5]), *ids[5:]])
    write_table(tmp_path/'clips.csv', ids)
    _, notes = feature_columns(FeatureFolder(features, widths={}), ids)
    assert sum('4 of them would have a file' in o and says in o for o in notes) == 2, notes
    out = command('audit', tmp_path/'clips.csv', features)[1]
    assert '4 clips without video whose file is named differently' in out and says in out, out


def test_clips_without_a_file_of_any_name_get_no_advice(tmp_path):
    features = write_features(tmp_path/'features', IDS[5:])
    _, notes = feature_columns(FeatureFolder(features, widths={}), IDS)
    assert len(notes) == 2 and all(o.startswith('5 clips have no') for o in notes), notes


NAMES = st.lists(st.text('aBé01-_ .', min_size=1, max_size=6), min_size=1, max_size=8, unique=True)


@FEW
@given(NAMES, NAMES)
def test_a_name_is_paired_once_and_its_difference_is_said(ids, stems):
    lost, free = [o for o in ids if o not in stems], [o for o in stems if o not in ids]
    pairs = pair_names(lost, free)
    assert len(set(pairs.values())) == len(pairs) and set(pairs) <= set(lost) and set(pairs.values()) <= set(free)
    for id, stem in pairs.items(): assert name_difference(id, stem) != 'the two names differ', (id, stem)


@FEW
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=30, unique=True), st.sampled_from(sorted(UNLIKE)))
def test_every_name_finds_its_own_file(numbers, how):
    of_table, of_file, _ = UNLIKE[how]
    ids = [f'vid{n:07d}_{n % 7}' for n in numbers]
    pairs = pair_names([of_table(o) for o in ids], [of_file(o) for o in ids])
    if how != 'nothing alike': assert pairs == {of_table(o): of_file(o) for o in ids}


# rows and columns swapped

SWAPPED = {  # parts that are swapped, and the length that all files have
    'all parts': (('rgb', 'flow', 'vggish'), None),
    'video': (('rgb', 'flow'), None),
    'flow only': (('flow',), None),
    'audio': (('vggish',), None),
}


@pytest.mark.parametrize('how', SWAPPED)
def test_files_that_are_transposed(how, tmp_path, command):
    parts, length = SWAPPED[how]
    features = write_features(tmp_path/'features', length=length)
    write_features(features, parts=parts, length=length, change=np.transpose)
    n = WIDTHS[parts[0]]
    errors = refused(command, write_table(tmp_path/'clips.csv'), features, f'{IDS[0]}_{parts[0]}.npy',
                     f'shape ({n}, 3)', f'({n}, 4)', f'expected (3, {n})', 'x.T')
    assert 'features-transposed' in errors and '24 clips' in errors


def test_some_files_that_are_transposed(tmp_path, command):
    features = write_features(tmp_path/'features')
    write_features(features, IDS[6:9], change=np.transpose)
    errors = refused(command, write_table(tmp_path/'clips.csv'), features, f'{IDS[6]}_rgb.npy', 'x.T')
    assert '3 clips with features whose rows and columns look swapped' in errors
    with pytest.raises(DataError, match='3 of 24 such files'): feature_columns(FeatureFolder(features, widths={}), IDS)


@pytest.mark.parametrize('length', [5, 30])
def test_files_of_one_shape_that_the_network_knows_are_transposed(length, tmp_path, command, tokenizer):
    features = write_features(tmp_path/'features', length=length, change=np.transpose)
    table = write_table(tmp_path/'clips.csv')
    video = dict(kind='features', width=16, hidden=8, layers=1)
    run = Run(Clips(str(table), labels=('funny',), features=str(features)),
              Network(tokenizer=str(tokenizer), config={**TINY_NETWORK, 'video': video}))
    with pytest.raises(DataError, match=r'16 columns are expected; expected \(.*, 16\), which is x.T'):
        read_splits(run.clips, tokenizer_for(run.network), run.network)
    folder = FeatureFolder(features, widths=dict(video=16, audio=8))
    with pytest.raises(DataError, match='x.T'): feature_columns(folder, IDS)


@pytest.mark.parametrize('length,tall', [(5, True), (16, False), (30, False)])
def test_files_of_one_shape_with_more_rows_than_columns_give_a_note(length, tall, tmp_path, command):
    "16 rows of 5 columns may be 5 steps of 16 values"
    features = write_features(tmp_path/'features', parts=('rgb', 'flow'), length=length, change=np.transpose)
    status, out, err = command('pack', write_table(tmp_path/'clips.csv'), features)
    assert status == 0, err
    said = f'all 48 video files have 16 rows and {length} columns: read as 16 steps of {length} values'
    assert (said in err) == tall, err
    assert (said in command('audit', tmp_path/'clips.csv', features)[1]) == tall


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('value, said', [(1e300, 'too large for float32'), (-1e39, 'too large for float32'),
                                         (np.inf, 'NaN or infinite'), (np.nan, 'NaN or infinite')])
def test_values_that_float32_cannot_hold_are_said_by_the_audit_as_by_training(value, said, tmp_path, command):
    features, table = write_features(tmp_path/'features'), write_table(tmp_path/'clips.csv')
    path = features/f'{IDS[6]}_vggish.npy'
    x = np.load(path).astype(np.float64)
    x[2, 1] = value
    np.save(path, x)
    with pytest.raises(DataError) as e: FeatureFolder(features, widths={}).load(IDS[6], 'audio')
    assert f'1 of {x.size} values are {said}, the first in row 2' in e.value.what and e.value.clip == IDS[6]
    status, out, err = command('audit', table, features, '--out', tmp_path/'audit')
    found, = [f for f in json.loads((tmp_path/'audit'/'audit.json').read_text())['findings']
              if f['code'] == 'features-nonfinite']
    assert status == 1 and found['clips'] == [IDS[6]]
    assert [r['detail'] for r in found['evidence']['defects']] == [e.value.what]


def test_a_batch_dimension_in_front(tmp_path, command):
    "One is dropped with a note, more are refused"
    features = write_features(tmp_path/'features', change=lambda x: x[None])
    table = write_table(tmp_path/'clips.csv')
    for name in ('train', 'audit'):
        status, out, err = command(name, table, features)
        assert '48 video arrays have a batch dimension of 1 in front, which is dropped' in out, err
        assert 'features-shape' not in out
    shutil.rmtree(tmp_path/'run')
    features = write_features(tmp_path/'features', change=lambda x: x[None, None])
    for name in ('train', 'pack'):
        status, out, err = command(name, table, features)
        assert status == 2 and 'x[0, 0]' in err and f'{IDS[0]}_rgb.npy' in err, err
    status, out, err = command('audit', table, features, '--out', tmp_path/'audit')
    details = [r['detail'] for f in json.loads((tmp_path/'audit'/'audit.json').read_text())['findings']
               if f['code'] == 'features-shape' for r in f['evidence']['defects']]
    assert status == 1 and len(details) == 72 and all('x[0, 0]' in o for o in details)


def test_one_wrong_width_keeps_its_message(tmp_path, command):
    features = write_features(tmp_path/'features')
    for part in ('rgb', 'flow'): np.save(features/f'{IDS[4]}_{part}.npy', np.ones((9, 7), np.float32))
    status, out, err = command('train', write_table(tmp_path/'clips.csv'), features)
    assert status == 2 and '7 columns where video has 16. Use one extractor' in err and 'x.T' not in err
    write_features(features, length=5)  # of one length: the number of rows is the same in all files
    for part in ('rgb', 'flow'): np.save(features/f'{IDS[4]}_{part}.npy', np.ones((5, 7), np.float32))
    err = command('train', tmp_path/'clips.csv', features)[2]
    assert '7 columns where video has 16. Use one extractor' in err and 'x.T' not in err


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@FEW
@given(LENGTHS, st.integers(1, 64), st.booleans())
def test_files_of_one_width_are_never_called_transposed(lengths, width, stated):
    assert transposed([(n, width) for n in lengths], width if stated else None) == []


@FEW
@given(LENGTHS, st.integers(1, 64))
def test_transposed_files_are_found(lengths, width):
    shapes = [(width, n) for n in lengths]
    assert transposed(shapes, width) == [i for i, n in enumerate(lengths) if n != width]
    usual = max(lengths.count(n) for n in lengths)
    if len(lengths) - usual > 1 and width not in lengths:
        assert transposed(shapes) == list(range(len(shapes)))
        assert [o[1] for o in transposed_files([(str(i), f'{i}.npy', s) for i, s in enumerate(shapes)])] == [
            f'{i}.npy' for i in range(len(shapes))]


# classes that a training part lacks

RARE = {  # labels of the 24 clips, the class that is rare
    'one of two': (['no']*7 + ['yes'] + ['no']*16, 'yes'),
    'one of three': (['a', 'b']*11 + ['a', 'c'], 'c'),
    'two of one video': ([0]*3 + [1, 1] + [0]*19, '1'),
}


@pytest.mark.parametrize('rare', RARE)
@pytest.mark.parametrize('folds', [2, 3])
def test_a_rare_class_is_found_before_training(rare, folds, tmp_path, command):
    labels, name = RARE[rare]
    table = write_table(tmp_path/'clips.csv', funny=labels)
    status, out, err = command('train', table, None, '--folds', folds, '--class-weights', 'balanced')
    assert status == 2 and 'poch' not in out and not (tmp_path/'run').exists(), out
    shown = {'1': 'yes'}.get(name, name)
    for part in (f'of {folds}: ', "task 'funny'", f'class {shown!r}', 'Use fewer folds', 'set class_weights to none'):
        assert part in err, (part, err)
    (train, _, _), *_ = splits = read_splits(Clips(str(table), labels=('funny',), folds=folds),
                                             synthetic_tokenizer())
    lacking = [i for i, (t, _, _) in enumerate(splits, 1)
               if not (t.targets('funny') == t.tasks[0].class_names.index(shown)).any()]
    notes = [o for o in train.notes if 'no training clip of task' in o]
    assert [int(o.split()[1]) for o in notes] == lacking and lacking, notes
    assert all(f'class {shown!r}' in o for o in notes)
    assert sum('never seen in training but in test' in o for o in notes) >= 1


def test_a_run_without_balanced_weights_reports_the_class(tmp_path, command):
    table = write_table(tmp_path/'clips.csv', funny=RARE['one of two'][0])
    assert command('train', table, None, '--folds', 3)[0] == 0
    notes = json.loads((tmp_path/'run'/'metrics.json').read_text())['notes']
    assert any("no training clip of task 'funny' is of class 'yes', and 1 test clip is: never seen" in o for o in notes)
    assert 'never seen in training but in test' in (tmp_path/'run'/'report.md').read_text()


def clips_of(video, *labels, tasks=('funny',)):
    return ClipDataset.from_clips([Clip(f'{video}_{i}', text=[5], labels=o) for i, o in enumerate(labels)],
                                  [Task(o) for o in tasks], name='clips.csv')


def test_parts_without_a_label(tmp_path, command):
    "Found before training: a task without a training label, no validation label to choose by, no test label to score"
    labelled, none = write_table(tmp_path/'a.csv'), write_table(tmp_path/'b.csv', [f'w{o}' for o in IDS], funny=['']*24)
    for part, says in (('valid', 'no validation clip has a label'), ('test', 'no test clip has a label')):
        status, out, err = command('train', labelled, None, f'--{part}', none)
        assert status == 2 and says in err and 'poch' not in out, err
    both = write_table(tmp_path/'c.csv', sad=['1', '0'] + ['']*22)
    parts = read_splits(Clips(str(both), labels=('funny',)), synthetic_tokenizer())[0]
    assert all('sad' not in ds.labels for ds in parts)
    a, b = clips_of('a', dict(x=0), dict(x=1), tasks='xy'), clips_of('b', dict(x=0), dict(x=1, y=1), tasks='xy')
    with pytest.raises(DataError, match="no training clip has a label of task 'y'"): check_classes((a, b, b))
    with pytest.raises(DataError, match='y_macro_f1'): check_classes((b, a, b), monitor='y_macro_f1')
    check_scored([a])
    assert check_classes((b, a, a)) == ["no training clip of task 'y' is of class 'no', and 0 test clips are"]


def test_streams_of_a_pretraining_run(tmp_path, tokenizer):
    "A stream whose training part lacks a class has a note; one without any label of a task is refused by its name"
    table = write_table(tmp_path/'clips.csv', funny=RARE['one of two'][0], sad=['1'] + ['0']*2 + ['']*21)
    def run(label, share):
        streams = [dict(name='s', data=str(table), labels=[label], test_share=share, valid_share=.4)]
        return PretrainRun.from_dict(dict(streams=streams, tokenizer=str(tokenizer), config=TINY_NETWORK))
    for share, lacks in ((.2, False), (.6, True)):  # the larger part gets the video of the rare class
        train, _, test = read_streams(run('funny', share), tokenizer_for(run('funny', share).network))['s']
        assert (not (train.targets('funny') == 1).any()) == lacks
        notes = [o for o in train.notes if "stream 's': no training clip of task 'funny' is of class 'yes'" in o]
        assert len(notes) == lacks
    with pytest.raises(DataError, match="stream 's': no test clip has a label of sad|stream 's': no training clip"):
        read_streams(run('sad', .2), tokenizer_for(run('sad', .2).network))


def test_a_search_refuses_before_its_first_trial(tmp_path, tokenizer):
    table = write_table(tmp_path/'clips.csv', funny=['a', 'b']*11 + ['a', 'c'])
    base = dict(data=str(table), labels=['funny'], tokenizer=str(tokenizer), config=TINY_NETWORK, epochs=1,
                test_share=.6, valid_share=.4)  # the test part gets the video of the rare class
    for more, space in ((dict(class_weights='balanced'), {'lr': [.01]}), ({}, {'class_weights': ['balanced']})):
        found = []
        try: table = run_search(Search({**base, **more}, space), tmp_path/str(len(more)), 1, write=found.append)
        except DataError as e: errors = [str(e)]
        else: errors = list(table.error)
        assert len(errors) == 1 and "is of class 'c'" in errors[0] and "class_weights='balanced'" in errors[0], errors
        assert not any('epoch' in o for o in found)


def test_a_second_array_in_one_file_is_not_ignored(tmp_path):
    from hiccap.features import npy_header
    with open(tmp_path/'a.npy', 'wb') as f:
        np.save(f, np.ones((2, 4), np.float32))
        np.save(f, np.zeros((2, 4), np.float32))
    with pytest.raises(DataError, match='longer than its header says'): npy_header(tmp_path/'a.npy')
