"""Scores of a finished run on clips that it has seen: found by content, said first, left out if asked for. As a user
types it, on files."""
import csv
import json
import shutil
from copy import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from conftest import TINY_NETWORK
from hiccap.cli import evaluate, pack, pretrain, train
from hiccap.clips import Clip, ClipDataset, as_numpy
from hiccap.inference import load_run, write_evaluation
from hiccap.metrics import evaluate as scores_of
from hiccap.run_data import read_splits
from hiccap.runs import Clips
from hiccap.seen import (HOW, UNKNOWN, VIDEOS, clip_keys, folder_of_weights, part_by_content, part_by_video,
                         parts_from_weights, read_records, seen_clips, shared_records, write_records)
from hiccap.splits import folds_by_video, split_by_video
from hiccap.synthetic import synthetic_clips, write_synthetic
from hiccap.tasks import Task

SHAPE = {**TINY_NETWORK, 'text': dict(kind='tokens', config=dict(TINY_NETWORK['text']['config'], vocab_size=512))}
NET = ['--set', *(f'{k}={json.dumps(v)}' for k, v in SHAPE.items()), '--threads', '1', '--epochs', '1']
FEW = settings(max_examples=max(6, settings.default.max_examples//4))


def rows_of(path):
    with path.open(newline='') as f: return list(csv.DictReader(f))


def write_rows(path, rows):
    with path.open('w', newline='') as f:
        out = csv.DictWriter(f, list(rows[0]))
        out.writeheader()
        out.writerows(rows)
    return path


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')/'synthetic'
    write_synthetic(synthetic_clips(n=90, scale=.1), folder)
    return folder


def train_on(data, out, *more):
    args = [data/'clips.csv', '--features', data/'features', '--tokenizer', data/'tokenizer', '--out', out]
    assert train(list(map(str, [*args, '--labels', 'said', 'together', *more, *NET]))) == 0
    return out


@pytest.fixture(scope='module')
def run(data, tmp_path_factory): return train_on(data, tmp_path_factory.mktemp('runs')/'run')


@pytest.fixture(scope='module')
def parts(run):
    "clip id -> 0, 1 or 2, by the split of the run itself"
    trained = load_run(run)
    whole = read_splits(trained.run.clips, trained.tokenizer)[0]
    return {i: k for k, ds in enumerate(whole) for i in ds.ids}


def score(capsys, run, path, *args):
    "The exit status of hiccap_evaluate, the lines that it prints, and its errors"
    capsys.readouterr()
    if '--features' not in args and path.is_file(): args = *args, '--without', 'video', 'audio'
    status = evaluate(list(map(str, [run, path, *args])))
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


def expected(parts, n=None):
    count = [sum(v == k for v in parts.values()) for k in range(3)]
    return (f'WARNING: {count[0] + count[1]} of {n or len(parts)} clips are not new to the run ({count[0]} trained on,'
            f' {count[1]} used to choose the epoch and the thresholds), so these scores are optimistic')


def test_a_run_scored_on_its_training_file_says_so_first(run, data, parts, tmp_path, capsys):
    features = '--features', data/'features'
    status, out, err = score(capsys, run, data/'clips.csv', *features)
    assert status == 0 and out[0] == expected(parts) and len(out) > 10, err
    status, out, err = score(capsys, run, data/'clips.csv', *features, '--out', tmp_path/'scored')
    assert status == 0 and out[0] == expected(parts)
    report = (tmp_path/'scored'/'report.md').read_text().split('\n\n')
    assert report[1] == f'**{expected(parts)}.**'
    metrics = json.loads((tmp_path/'scored'/'metrics.json').read_text())
    count = np.bincount(list(parts.values())).tolist()
    assert next(iter(metrics)) == 'seen' and metrics['seen'] == dict(
        checked=True, clips=90, trained_on=count[0], chose_epoch=count[1], same_video=0, new=count[2],
        sentence=expected(parts))


def test_a_user_who_asks_for_unseen_clips_gets_the_test_clips_of_the_run(run, data, parts, tmp_path, capsys):
    args = '--features', data/'features', '--only-unseen', '--out', tmp_path/'scored'
    status, out, err = score(capsys, run, data/'clips.csv', *args)
    test = {i for i, k in parts.items() if k == 2}
    assert status == 0 and out[0] == f'{90 - len(test)} of 90 clips left out, which the run has seen', err
    assert out[1].startswith(f'None of {len(test)} clips was trained on')
    assert {o['clip'] for o in rows_of(tmp_path/'scored'/'predictions.csv')} == test
    metrics = json.loads((tmp_path/'scored'/'metrics.json').read_text())
    before = json.loads((run/'metrics.json').read_text())
    for task, s in before['scores']['tasks'].items():
        assert metrics['scores']['tasks'][task]['scores'] == pytest.approx(s['scores'], nan_ok=True, abs=1e-5)
    assert metrics['seen']['new'] == metrics['seen']['clips'] == len(test) and out[0] in metrics['notes']
    assert out[0] in (tmp_path/'scored'/'report.md').read_text()


def altered(rows, how):
    "The rows of a table, changed in a way that leaves the clips what they are"
    if how == 'other ids': return [r | dict(id=f'x{i}_{i % 3}') for i, r in enumerate(rows)]
    if how == 'other order': return rows[::-1]
    if how == 'other labels': return [r | dict(said='01'[r['said'] == '0']) if r['said'] else r for r in rows]
    return rows


@pytest.mark.parametrize('how', ['another name', 'other ids', 'other order', 'other labels', 'no features', 'packed'])
def test_a_copy_of_the_training_file_is_found(run, data, parts, tmp_path, capsys, how):
    rows = rows_of(data/'clips.csv')
    path, features = write_rows(tmp_path/'new.csv', altered(rows, how)), ['--features', data/'features']
    if how in ('no features', 'other ids'): features = []  # features are named by the ids
    if how == 'packed':
        args = [path, tmp_path/'packed', *features, '--tokenizer', data/'tokenizer', '--labels', 'said', 'together']
        assert pack(list(map(str, args))) == 0
        path, features = tmp_path/'packed', []
    numbered = ['--own-numbering'] if how == 'other ids' else []
    status, out, err = score(capsys, run, path, *features, *numbered)
    assert status == 0, err
    short = {r['id'] for r in rows if len(r['text'].split()) < 10}
    found, seen = int(out[0].split()[1]), {i for i, k in parts.items() if k < 2}
    # without its features a clip without a long text is found by the name of its video, but not under another name
    if features or how == 'packed': assert out[0] == expected(parts)
    elif how == 'no features': assert out[0].startswith('WARNING') and found == len(seen)
    else: assert out[0].startswith('WARNING') and found >= len(seen - short) > 40


def test_new_clips_are_new_and_other_scenes_of_a_video_are_not(run, data, parts, tmp_path, capsys):
    rows = rows_of(data/'clips.csv')
    fresh = [r | dict(text='so it goes ' + r['text'][::-1]) for r in rows[:30]]
    other = write_rows(tmp_path/'other.csv', [r | dict(id=f'other{i}_1') for i, r in enumerate(fresh)])
    status, out, _ = score(capsys, run, other)
    none = 'None of 30 clips was trained on or chose the epoch'
    assert status == 0 and out[0] == none + ', nor was another clip of their videos'
    learnt = next(i for i, k in parts.items() if k == 0).rpartition('_')[0]
    scenes = write_rows(tmp_path/'scenes.csv', [
        r | dict(id=f'{learnt}_{i + 500}' if i < 10 else f'other{i}_1') for i, r in enumerate(fresh)])
    status, out, _ = score(capsys, run, scenes)
    assert status == 0 and out[0].startswith('WARNING: 10 of 30 clips are not new to the run (10 of videos with other')
    status, out, _ = score(capsys, run, scenes, '--only-unseen')
    assert status == 0 and out[0] == '10 of 30 clips left out, which the run has seen'
    status, out, _ = score(capsys, run, scenes, '--own-numbering')
    assert status == 0 and out[0] == none


def test_only_clips_with_a_label_count(run, data, parts, tmp_path, capsys):
    rows = [r | dict(said='', together='') if i % 3 else r for i, r in enumerate(rows_of(data/'clips.csv'))]
    status, out, _ = score(capsys, run, write_rows(tmp_path/'new.csv', rows), '--features', data/'features')
    assert status == 0 and out[0] == expected({r['id']: parts[r['id']] for r in rows[::3]})
    rows = [r | dict(said='', together='') for r in rows]
    status, out, err = score(capsys, run, write_rows(tmp_path/'none.csv', rows))
    assert status == 2 and not out and 'no row has a label' in err and 'said, together' in err


@pytest.mark.parametrize('damage', ['gone', 'cut', 'other', 'list'])
def test_a_run_without_a_record_says_that_it_cannot_be_checked(run, data, tmp_path, capsys, damage):
    old = shutil.copytree(run, tmp_path/'old')
    path = old/VIDEOS
    if damage == 'gone': path.unlink()
    if damage == 'cut': path.write_text(path.read_text()[:100])
    if damage == 'other': path.write_text('{"streams": [{"parts": 3}]}')
    if damage == 'list': path.write_text('[]')
    status, out, _ = score(capsys, old, data/'clips.csv', '--out', tmp_path/'scored')
    assert status == 0 and out[0].startswith('It cannot be checked whether the run was trained on these clips')
    assert 'cannot be checked' in (tmp_path/'scored'/'report.md').read_text().split('\n\n')[1]
    assert json.loads((tmp_path/'scored'/'metrics.json').read_text())['seen'] == dict(checked=False, sentence=out[0])
    status, out, err = score(capsys, old, data/'clips.csv', '--only-unseen')
    assert status == 2 and not out and 'cannot be checked' in err.splitlines()[-1]


def test_nothing_is_left_to_score(run, data, parts, tmp_path, capsys):
    rows = [r for r in rows_of(data/'clips.csv') if parts[r['id']] == 0]
    status, out, err = score(capsys, run, write_rows(tmp_path/'new.csv', rows), '--only-unseen', '--out', tmp_path/'s')
    assert status == 2 and 'no clip is new' in err.splitlines()[-1] and not (tmp_path/'s').exists()


def test_every_clip_of_a_cross_validation_was_trained_on_or_chose(data, tmp_path, capsys):
    status, out, _ = score(capsys, train_on(data, tmp_path/'folds', '--folds', '3'), data/'clips.csv')
    assert status == 0 and out[0].startswith('WARNING: 90 of 90 clips are not new to the run (')


def test_an_evaluation_from_python_says_it_too(run, data, parts, tmp_path):
    trained = load_run(run)
    ds = trained.read(data/'clips.csv', data/'features')
    probs, predicted = trained.answer(ds)
    scores = scores_of(probs, as_numpy(ds.labels), trained.tasks, trained.thresholds, predicted, ds.groups)
    write_evaluation(tmp_path/'scored', 'copy.csv', trained, ds, probs, predicted, scores)
    assert (tmp_path/'scored'/'report.md').read_text().split('\n\n')[1] == f'**{expected(parts)}.**'


def test_intervals_of_an_evaluation_are_over_videos(run, data, tmp_path, capsys):
    "Each clip three times in its video says no more than once"
    rows = rows_of(data/'clips.csv')
    once = score(capsys, run, data/'clips.csv', '--out', tmp_path/'once')
    more = write_rows(tmp_path/'more.csv', [dict(o, id=f"{o['id']}{k}") for o in rows for k in range(3)])
    assert once[0] == score(capsys, run, more, '--out', tmp_path/'again')[0] == 0
    a, b = (json.loads((tmp_path/o/'metrics.json').read_text())['scores']['tasks'] for o in ('once', 'again'))
    for task in ('said', 'together'):
        for k in ('auroc', 'accuracy'):
            assert a[task]['intervals_95'][k] == pytest.approx(b[task]['intervals_95'][k], abs=1e-6), (task, k)


# ---- training further

def test_weights_of_a_run_are_not_scored_on_what_they_learnt_from(run, data, parts, tmp_path, capsys):
    "Not under another name either"
    rows = [r | dict(id=f'x{i}_0') for i, r in enumerate(rows_of(data/'clips.csv'))]
    copy = write_rows(tmp_path/'copy.csv', rows)
    others = [r | dict(id=f'y{i}_0', text='and ' + r['text']) for i, r in enumerate(rows)]
    more = write_rows(tmp_path/'more.csv', others)
    args = ['--tokenizer', data/'tokenizer', '--labels', 'said', '--init', run/'model', '--epochs', 1, '--threads', 1]
    assert train(list(map(str, [more, *args, '--test', copy, '--out', tmp_path/'no']))) == 2
    assert f'the weights in {run} learnt from' in capsys.readouterr().err and not (tmp_path/'no').exists()
    assert train(list(map(str, [data/'clips.csv', *args, '--split-seed', 7, '--out', tmp_path/'tuned']))) == 0
    scored = {o['clip'] for o in rows_of(tmp_path/'tuned'/'predictions.csv')}
    assert scored == {i for i, k in parts.items() if k == 2}
    records = read_records(tmp_path/'tuned')  # those of the first run come after its own
    assert len(records) == 2 and records[1:] == read_records(run)
    assert train(list(map(str, [copy, *args, '--folds', 2, '--out', tmp_path/'folds']))) == 2
    assert 'so folds would score what was learnt from' in capsys.readouterr().err


def test_what_pretraining_learnt_from_is_not_new_to_a_run(data, tmp_path, capsys, monkeypatch):
    "A run that starts from pretrained weights has seen the clips of the pretraining too"
    monkeypatch.chdir(tmp_path)
    rows = rows_of(data/'clips.csv')
    own = write_rows(tmp_path/'own.csv', [r | dict(id=f'own{i}_0', text='and then ' + r['text'])
                                          for i, r in enumerate(rows[:40])])
    (tmp_path/'mixture.yaml').write_text(
        f"streams:\n- {{name: match, data: {data/'clips.csv'}, features: {data/'features'}, pretext: matching}}\n"
        f"tokenizer: {data/'tokenizer'}\nconfig: {json.dumps(SHAPE)}\nepochs: 1\nsteps: 2\nbs: 8\nthreads: 1\n")
    assert pretrain(['mixture.yaml', '--out', 'before']) == 0
    assert train(['own.csv', '--labels', 'said', '--init', 'before/model', '--epochs', '1', '--threads', '1',
                  '--out', 'tuned']) == 0
    status, out, err = score(capsys, 'tuned', data/'clips.csv', '--features', data/'features')
    assert status == 0, err
    known = read_records('before')[0]['parts']
    groups = [r['id'].rpartition('_')[0] for r in rows if r['said']]
    seen = sum(known[g] < 2 for g in groups)
    assert out[0].startswith(f'WARNING: {seen} of {len(groups)} clips are not new to the run (')


# ---- the record

texts = st.none() | st.lists(st.integers(0, 3), min_size=1, max_size=14)
vectors = st.none() | st.integers(1, 3).flatmap(lambda n: st.lists(st.integers(0, 1), min_size=n, max_size=n))

def clip(id, text, video):
    return Clip(id, None if text is None else torch.tensor(text),
                None if video is None else torch.tensor(video)[:, None].float())

def same(a, b, id_a, id_b):
    "Whether two clips are the same, by the rule itself"
    if a[1] == b[1] and len(set(a[1] or ())) > 1: return True  # a video that changes, whatever the text
    if (a[0] is None) != (b[0] is None): return False
    if a[0] is not None and len(a[0]) >= 10: return a[0] == b[0]
    if a[0] is not None: return a[0] == b[0] and (id_a == id_b or None is not a[1] == b[1])
    return None is not a[1] == b[1]


@given(st.lists(st.tuples(texts, vectors), min_size=1, max_size=6), st.tuples(texts, vectors), st.booleans())
def test_clips_are_the_same_by_the_rule(before, one, renamed):
    known = ClipDataset.from_clips([clip(f'a{i}_0', *c) for i, c in enumerate(before)], [Task('funny')])
    id = 'b_0' if renamed else 'a0_0'
    other = ClipDataset.from_clips([clip(id, *one)], [Task('funny')])
    keys = {k for o in clip_keys(known) for k in o}
    assert bool(keys & set(clip_keys(other)[0])) == any(same(c, one, f'a{i}_0', id) for i, c in enumerate(before))


def test_a_video_with_another_text_or_without_one_is_the_same_video():
    rng = np.random.default_rng(0)
    seen, heard = torch.from_numpy(rng.normal(size=(5, 3))), torch.from_numpy(rng.normal(size=(7, 2)))
    silence, utterance = torch.zeros(7, 2), torch.from_numpy(rng.normal(size=(1, 3)))
    known = clip_keys(ClipDataset.from_clips([Clip('a_1', torch.arange(12), seen, heard)], [Task('funny')]))[0]
    def same(*clips):
        keys = [set(o) for o in clip_keys(ClipDataset.from_clips(list(clips), [Task('funny')]))]
        return [bool(set(known) & o) for o in keys], bool(keys[0] & keys[-1])
    others = heard[:, :1].expand(-1, 3)
    found, _ = same(Clip('b_1', None, seen, heard), Clip('c_1', torch.arange(20), seen),
                    Clip('d_1', torch.arange(3), None, heard), Clip('e_1', torch.arange(20), others))
    assert found == [True, True, True, False]
    one, other = torch.arange(12, 24), torch.arange(24, 40)
    assert not same(Clip('b_1', one, None, silence), Clip('c_1', other, None, silence))[1]
    assert same(Clip('b_1', one, utterance), Clip('c_1', other, utterance))[1]


def test_a_second_text_does_not_hide_a_clip():
    "Captions or context depend on the rows before, so they do not count"
    text, more = torch.arange(12), torch.arange(20, 25)
    alone = Clip('a_1', text)
    with_more = Clip('b_1', torch.cat([text, more]), segments=torch.tensor([0]*12 + [1]*5))
    keys = clip_keys(ClipDataset.from_clips([alone, with_more], [Task('funny')]))
    assert keys[0] == keys[1] != ()


def test_how_values_are_stored_does_not_count():
    ids, vectors = np.arange(12), np.ones((3, 2))
    def keys(*columns): return [clip_keys(ClipDataset(['a_1'], {m: [v]}, {}, []))[0] for m, v in columns]
    a, b = keys(('text', torch.tensor(ids, dtype=torch.int32)), ('text', ids))
    c, d = keys(('video', torch.tensor(vectors)), ('video', vectors.astype(np.float32)))
    assert a == b and c == d and len({*a, *c}) == 2


@FEW
@given(st.integers(0, 99), st.integers(2, 4))
def test_the_first_part_of_a_clip_counts(tmp_path_factory, seed, folds):
    folder, whole = tmp_path_factory.mktemp('record'), synthetic_clips(n=40, scale=.1, seed=seed)
    splits = [(*split_by_video(rest, .3, seed), test) for rest, test in folds_by_video(whole, folds, seed)]
    write_records(folder, [(Clips('clips.csv'), splits)])
    records, want = read_records(folder), {}
    for train_, valid, test in splits:
        for k, ds in enumerate((train_, valid, test)):
            for i in ds.ids: want[i] = min(k, want.get(i, UNKNOWN))
    by_video = [want[i] for i in whole.ids]
    assert part_by_video(records, whole).tolist() == by_video
    assert part_by_content(records, whole).tolist() == [
        k if keys else UNKNOWN for k, keys in zip(by_video, clip_keys(whole))]
    assert parts_from_weights(records, whole) == {g: want[i] for i, g in zip(whole.ids, whole.groups)}
    # and in the record that is shared, also of another file with some of the clips and some of the videos
    shared, own = shared_records(records, f'{seed:x}'), whole.subset(range(0, 40, 3))
    mixed = ClipDataset([f'x{i}' for i in own.ids], own.columns, {}, [],
                        [g if k % 2 else f'x{g}' for k, g in enumerate(own.groups)])
    for find in (part_by_content, part_by_video):
        for ds in (whole, mixed): assert find(shared, ds).tolist() == find(records, ds).tolist()
    assert parts_from_weights(shared, mixed) == parts_from_weights(records, mixed)


def test_clips_that_a_run_tested_are_new_and_copies_under_other_names_are_not(tmp_path):
    rest, test = next(iter(folds_by_video(synthetic_clips(n=60, scale=.1, seed=1), 4, 1)))
    train, valid = split_by_video(rest, .3, 1)
    write_records(tmp_path, [(Clips('clips.csv'), [(train, valid, test)])])
    records = read_records(tmp_path)
    for ds, how in ((train, 'trained_on'), (valid, 'chose_epoch'), (test, 'new')):
        n = seen_clips(records, ds).counts()
        assert n[how] + n['same_video']*(how != 'new') == len(ds) and n[how]
    copied = copy(train)
    copied.groups = [f'other {g}' for g in train.groups]
    known = {g for g, keys in zip(copied.groups, clip_keys(train)) if keys}
    assert parts_from_weights(records, copied) == dict.fromkeys(known, 0) != {}


def test_names_are_compared_only_where_they_mean_the_same_video():
    ds = synthetic_clips(n=20, scale=.1)
    def record(data, own): return dict(data=data, own_numbering=own, parts={ds.groups[0]: 0})
    seen = [(part_by_video([record(*r)], ds, *c) < UNKNOWN).any() for r, c in [
        (('a.csv', False), ('b.csv', False)), (('a.csv', True), ('b.csv', False)), (('a.csv', False), ('b.csv', True)),
        (('a.csv', True), ('a.csv', True))]]
    assert seen == [True, False, False, True]
    hidden = shared_records([record('a.csv', True), record('a.csv', False)], 'ab')
    assert [len(r['parts']) for r in hidden] == [0, 1] and part_by_video(hidden[1:], ds, 'b.csv').min() == 0
    assert part_by_video(hidden, ds, 'a.csv', True).min() == UNKNOWN  # the path of the file is not shared
    assert str(seen_clips([record('a.csv', True)], ds, 'b.csv')) == (
        'None of 20 clips was trained on or chose the epoch')
    old = seen_clips([record('a.csv', False)], ds)  # an earlier version recorded videos only
    assert old.counts()['same_video'] == sum(g == ds.groups[0] for g in ds.groups) and set(HOW) < set(old.counts())


def test_weights_are_found_by_their_folder(tmp_path):
    for name in ('run', 'run/model', 'run/model/fold_1', 'bare/model'): (tmp_path/name).mkdir(parents=True)
    (tmp_path/'run'/VIDEOS).write_text('{}')
    (tmp_path/VIDEOS).write_text('{}')
    model = tmp_path/'run'/'model'
    assert folder_of_weights(model) == folder_of_weights(model/'fold_1') == tmp_path/'run'
    assert folder_of_weights(tmp_path/'bare'/'model') is folder_of_weights(None) is None
