"""No video is in two parts of a split, every class is in each as its share says, and a split stays what it was."""
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hiccap.basics import digest
from hiccap.clips import Clip, ClipDataset, DataError
from hiccap.run_data import read_clips, read_splits
from hiccap.runs import Clips, Network, Training
from hiccap.splits import (
    assign_videos, check_classes, check_scored, class_counts, folds_by_video, label_kinds, split_by_video,
    standardised_parts, with_tasks)
from hiccap.synthetic import synthetic_tokenizer
from hiccap.tasks import Task

YES, MOOD, RATED = Task('yes'), Task('mood', 3), Task('rated', kind='regression')


def clips_of(labels, tasks=(YES,), videos=None, name='clips.csv'):
    "Clips with labels, one dict each; one clip a video, or the videos that are given"
    ds = ClipDataset.from_clips([Clip(f'c{i}', text=[5], labels=y) for i, y in enumerate(labels)], tasks, name=name)
    ds.groups = [f'v{i}' for i in range(len(ds))] if videos is None else [f'v{v}' for v in videos]
    return ds


def counted_in(part, ds, kind, n):
    "How many clips of a kind are in each of `n` parts"
    return np.bincount(part[kind], minlength=n).tolist()


# which clips are alike

@given(st.lists(st.one_of(st.none(), st.integers(0, 2)), max_size=30))
def test_the_kinds_of_a_classification_task_are_its_classes(y):
    ds = clips_of([{} if o is None else dict(mood=o) for o in y], (MOOD,))
    kinds = label_kinds(ds, MOOD)
    assert [k.tolist() for k in kinds] == [[o == c for o in y] for c in range(3)]


@given(st.lists(st.one_of(st.none(), st.integers(-9, 9)), max_size=40))
def test_the_kinds_of_a_regression_task_are_the_low_the_middle_and_the_high_labels(y):
    ds = clips_of([{} if o is None else dict(rated=float(o)) for o in y], (RATED,))
    kinds = np.array(label_kinds(ds, RATED)).reshape(3, len(y))
    assert kinds.sum(0).tolist() == [o is not None for o in y]  # each labelled clip is of one kind
    kind = [int(np.argmax(k)) for k in kinds.T]
    known = sorted((o, k) for o, k in zip(y, kind) if o is not None)
    assert [k for _, k in known] == sorted(k for _, k in known)  # a higher label is not of a lower kind


@pytest.mark.parametrize('n', [3, 9, 30, 31, 32])
def test_a_third_of_the_numbers_is_of_each_kind(n):
    y = np.random.default_rng(n).permutation(n)/7
    ds = clips_of([dict(rated=o) for o in y] + [{}]*5, (RATED,))
    sizes = [k.sum() for k in label_kinds(ds, RATED)]
    assert sum(sizes) == n and max(sizes) - min(sizes) <= 1


# the parts

@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2), st.integers(-1, 1)), min_size=12, max_size=80),
       st.integers(0, 99), st.integers(2, 4))
def test_folds_share_no_video_and_test_every_clip_once(rows, seed, n):
    tasks = Task('a', 3), Task('b')
    clips = [Clip(f'v{v}_{i}', labels={'a': a} | ({'b': b} if b >= 0 else {})) for i, (v, a, b) in enumerate(rows)]
    ds = ClipDataset.from_clips(clips, tasks)
    if len(set(ds.groups)) < n:
        with pytest.raises(DataError): folds_by_video(ds, n, seed)
        return
    try: folds = folds_by_video(ds, n, seed)
    except DataError: return  # one video outweighs the rest
    assert sorted(i for _, t in folds for i in t.ids) == sorted(ds.ids)
    for train, test in folds:
        assert not set(train.groups) & set(test.groups) and len(train) + len(test) == len(ds)
    again = folds_by_video(ds, n, seed)
    assert [t.ids for _, t in again] == [t.ids for _, t in folds]


@given(st.integers(0, 999), st.integers(0, 2), st.sampled_from([.15, .2, .5]), st.floats(.25, .75))
def test_labels_that_follow_from_others_are_spread_over_the_parts(draw, seed, share, positive):
    "Videos of one clip, three labels, and one that is yes where the first two differ"
    y = (np.random.default_rng(draw).random((3, 240)) < positive).astype(int)
    names = 'a', 'b', 'c', 'differ'
    labels = [dict(zip(names, (a, b, c, a ^ b))) for a, b, c in y.T.tolist()]
    ds = ClipDataset.from_clips([Clip(f'v{i}', labels=o) for i, o in enumerate(labels)], [Task(k) for k in names])
    rest, part = split_by_video(ds, share, seed)
    assert abs(len(part)/len(ds) - share) < .05
    for k in names:
        for c in (0, 1):
            whole, found = (int((o.targets(Task(k)) == c).sum()) for o in (ds, part))
            assert .5*share*whole < found < 2*share*whole


@pytest.mark.parametrize('parts', [2, 3, 5])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_clips_and_classes_are_spread_evenly(parts, seed):
    "Sixty videos of two clips; one in six of them is of a class, and a quarter of the clips has no label of another"
    videos = np.repeat(np.arange(60), 2)
    labels = [dict(yes=int(v % 6 == 0)) | (dict(mood=int(v % 3)) if v % 4 else {}) for v in videos]
    ds = clips_of(labels, (YES, MOOD), videos)
    part = assign_videos(ds, np.full(parts, 1/parts), seed)
    assert part.tolist() == np.repeat(part[::2], 2).tolist()
    size = counted_in(part, ds, np.ones(120, bool), parts)
    assert sum(size) == 120 and max(size) - min(size) <= 4
    yes = counted_in(part, ds, label_kinds(ds, YES)[1], parts)
    assert sum(yes) == 20 and max(yes) - min(yes) <= 2  # one video
    for kind in label_kinds(ds, MOOD):
        found = counted_in(part, ds, kind, parts)
        assert sum(found) == 30 and max(found) - min(found) <= 4


@pytest.mark.parametrize('seed', range(4))
def test_a_rare_class_counts_as_much_as_all_clips(seed):
    "Ten of four hundred clips are positive, and each of five folds tests two of them"
    ds = clips_of([dict(yes=int(i % 40 == 7)) for i in range(400)])
    for _, test in folds_by_video(ds, 5, seed):
        assert (test.targets('yes') == 1).sum() == 2 and len(test) == 80


@pytest.mark.parametrize('seed', range(4))
def test_low_and_high_numbers_are_in_every_fold(seed):
    y = np.random.default_rng(seed).permutation(60)
    ds = clips_of([dict(rated=float(o)) for o in y], (RATED,))
    for _, test in folds_by_video(ds, 5, seed):
        found = test.targets('rated').numpy()
        assert [((found//20) == k).sum() for k in range(3)] == [4, 4, 4]


@pytest.mark.parametrize('share', [.1, .25, .5])
def test_a_share_is_of_the_clips_and_not_of_the_videos(share):
    "One video of a hundred clips is larger than the second part, and goes to the first"
    videos = [0]*100 + [*range(1, 101)]
    rest, part = split_by_video(clips_of([{}]*200, (), videos), share)
    assert len(part) == round(200*share) and ('v0' in part.groups) == (share == .5 and 'v0' not in rest.groups)


def test_seed_0_takes_the_largest_video_first_and_other_seeds_shuffle():
    "Three videos of 60, 30 and 10 clips fill the parts exactly if the largest is assigned first, in whatever order"
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        videos = np.repeat(order, np.array([60, 30, 10])[order])
        part = assign_videos(clips_of([{}]*100, (), videos), np.array([.6, .4]), 0)
        assert [part[videos == v].tolist() for v in range(3)] == [[0]*60, [1]*30, [1]*10]
    ds = clips_of([{}]*30, ())
    assert len({tuple(split_by_video(ds, .5, seed)[1].ids) for seed in range(5)}) == 5


@pytest.mark.parametrize('seed, parts, found', [
    (0, 2, '57a33a1a5f1ee802'), (1, 2, '9f1ead2b3d12e5ec'),
    (0, 'shares', '3fdf7918568634ad'), (1, 'shares', '3bbe98398a74f17c'),
    (0, 5, '3ce8e60bbbacea0a'), (1, 5, '955a89392069277a'), (2, 5, '76d19c5ebb967572')])
def test_a_split_is_the_same_in_every_version(seed, parts, found):
    "Scores of runs of several versions are compared, so their test clips must be the same"
    n = np.arange(90)
    videos = (n*n + 3*n)//7 % 31
    labels = [dict(yes=int(i % 5 == v % 3)) | (dict(mood=int(i*v % 3)) if i % 4 else {}) | dict(rated=float(i*i % 37))
              for i, v in zip(n, videos)]
    ds = clips_of(labels, (YES, MOOD, RATED), videos)
    weights = np.array([.7, .2, .1]) if parts == 'shares' else np.full(parts, 1/parts)
    assert digest(bytes(assign_videos(ds, weights, seed).tolist())) == found


@pytest.mark.parametrize('n, every, share, seed, found', [
    (40, 3, .3, 0, '072a54facc34ae77'), (90, 2, .1, 0, '04e86fca397353d8'), (40, 2, .1, 0, '8d70df4948fdd408'),
    (40, 2, .2, 0, '694bcb93d944ce26'), (240, 3, .3, 0, '027729b5fb2fc2f9'),
    (23, 10, .3, 0, 'b79d42b6afae174b'), (41, 2, .25, 0, 'fea909b6272fdbd7'), (62, 3, .2, 0, 'ab61e8bb4c63ec9e')])
def test_a_split_of_labels_that_follow_from_others_is_the_same_in_every_version(n, every, share, seed, found):
    "Of some of these, the part that is filled last would have half of a class too many"
    i = np.arange(n)
    a, b, c = ((i*i*p + i*q)//7 % every == 0 for p, q in ((3, 1), (1, 5), (2, 3)))
    names = 'a', 'b', 'c', 'differ'
    labels = [dict(zip(names, map(int, o))) for o in zip(a, b, c, a ^ b)]
    part = assign_videos(clips_of(labels, [Task(k) for k in names]), np.array([1 - share, share]), seed)
    assert digest(bytes(part.tolist())) == found


def test_by_default_a_fifth_is_held_out_largest_videos_first():
    ds = clips_of([dict(yes=int(i % 4 == 0)) for i in range(60)], videos=[i*i % 41 for i in range(60)])
    def ids(parts): return [o.ids for o in parts]
    assert ids(split_by_video(ds)) == ids(split_by_video(ds, .2, 0)) != ids(split_by_video(ds, .2, 1))
    assert list(map(ids, folds_by_video(ds))) == list(map(ids, folds_by_video(ds, 5, 0)))
    assert list(map(ids, folds_by_video(ds))) != list(map(ids, folds_by_video(ds, 5, 1)))


def test_a_class_without_a_clip_and_a_task_without_a_label_change_nothing():
    labels = [dict(yes=i % 2) for i in range(40)]
    plain = clips_of(labels)
    for more in ((YES, MOOD), (YES, RATED), (Task('yes', 4),)):
        ds = clips_of(labels, more)
        for seed in range(2): assert split_by_video(ds, .2, seed)[1].ids == split_by_video(plain, .2, seed)[1].ids


@given(st.sampled_from([0., 1., -.1, 1.5, float('nan')]), st.integers(-2, 1))
@settings(max_examples=8)
def test_impossible_parts_are_refused(share, n):
    ds = clips_of([dict(yes=i % 2) for i in range(9)])
    with pytest.raises(ValueError, match='between 0 and 1'): split_by_video(ds, share)
    with pytest.raises(ValueError, match='at least 2 folds'): folds_by_video(ds, n)


def test_too_few_videos_are_refused_and_just_enough_are_not():
    ds = clips_of([dict(yes=i % 2) for i in range(12)], videos=[i % 3 for i in range(12)])
    with pytest.raises(DataError, match='3 videos cannot fill 4 parts') as e: folds_by_video(ds, 4)
    assert e.value.file == 'clips.csv'
    assert [len(test) for _, test in folds_by_video(ds, 3)] == [4, 4, 4]
    one = clips_of([dict(yes=1)]*3, videos=[0]*3, name='')
    with pytest.raises(DataError, match='1 videos cannot fill 2 parts') as e: split_by_video(one)
    assert e.value.file is None
    many = Task('many', 4)
    two = clips_of([dict(mood=0), dict(mood=2)], (MOOD,))
    with pytest.raises(DataError, match="'mood' has 3 classes and there are 2 videos"): folds_by_video(two, 3)
    for n, says in ((3, "'many' has 4 classes and there are 3 videos"), (4, '4 videos cannot fill 5 parts')):
        ds = clips_of([dict(many=i) for i in range(n)], (many,))
        with pytest.raises(DataError, match=says): folds_by_video(ds, 5)


# what can be learnt and scored

def test_labelled_clips_of_each_class_are_counted():
    ds = clips_of([dict(yes=0), dict(yes=0, rated=1.), dict(rated=1.), {}], (YES, MOOD, RATED))
    assert {k: v.tolist() for k, v in class_counts(ds).items()} == dict(yes=[2, 0], mood=[0, 0, 0], rated=[2])


NONE, ONE, TWO = clips_of([{}]), clips_of([dict(yes=1)]), clips_of([dict(yes=1), dict(yes=0)])
FLAT, SLOPE = (clips_of([dict(rated=o) for o in y], (RATED,)) for y in ((2., 2.), (2., 3.)))
BLANK = clips_of([{}], (RATED,))

@pytest.mark.parametrize('parts, says', [
    ((TWO, TWO, TWO), None), ((TWO, ONE, NONE), None), ((SLOPE, SLOPE, BLANK), None), ((SLOPE, SLOPE, FLAT), None),
    ((NONE, TWO, TWO), "no training clip has a label of task 'yes', so it cannot be learnt"),
    ((TWO, NONE, TWO), "no validation clip has a label of task 'yes', so macro_f1.* is not defined. "),
    ((BLANK, SLOPE, SLOPE), "no training clip has a label of task 'rated', so it cannot be learnt"),
    ((FLAT, SLOPE, SLOPE), "all training clips have the same label of regression task 'rated'"),
    ((SLOPE, FLAT, SLOPE), "no validation clip has a label of task 'rated', .*, or all have the same number"),
    ((SLOPE, BLANK, SLOPE), "no validation clip has a label of task 'rated', .*, or all have the same number")])
def test_parts_that_a_network_cannot_learn_or_choose_by_are_refused(parts, says):
    if says is None: assert check_classes(parts) == []
    else:
        with pytest.raises(DataError, match=says) as e: check_classes(parts, where='fold 2: ')
        assert e.value.file == 'clips.csv' and 'fold 2: ' in str(e.value)
        if parts[0] in (TWO, SLOPE): assert check_classes(parts, monitor='train_loss') == []


def test_only_the_task_that_chooses_the_epoch_needs_a_label_to_choose_by():
    both = YES, MOOD
    train = clips_of([dict(yes=y, mood=m) for y, m in ((0, 0), (1, 1), (1, 2))], both)
    valid = clips_of([dict(yes=0), dict(yes=1)], both)
    for monitor in ('macro_f1', 'yes_f1', 'valid_loss'):
        assert check_classes((train, valid, valid), monitor=monitor) == []
    with pytest.raises(DataError, match="label of task 'mood', so mood_macro_f1"):
        check_classes((train, valid, valid), monitor='mood_macro_f1')
    longer = YES, Task('yes_no')
    train, valid = (clips_of([{k: y for k in names} for y in (0, 1)], longer) for names in (('yes', 'yes_no'), ['yes']))
    assert check_classes((train, valid, valid), monitor='yes_f1') == []
    with pytest.raises(DataError, match="label of task 'yes_no', so yes_no_f1"):
        check_classes((train, valid, valid), monitor='yes_no_f1')
    train, valid = (clips_of(o, (YES, RATED)) for o in ([dict(yes=0, rated=1.), dict(rated=2.)], [{}, {}]))
    with pytest.raises(DataError, match="'yes' or task 'rated', .* or all have the same number"):
        check_classes((train, valid, valid))


COUNTS = st.lists(st.integers(0, 3), min_size=3, max_size=3)


@settings(max_examples=60)
@given(COUNTS, COUNTS, COUNTS, st.booleans())
def test_a_class_is_reported_exactly_where_training_lacks_it(train, valid, test, balanced):
    def of(video, counts):
        clips = [Clip(f'{video}_{c}_{i}', text=[5], labels=dict(t=c)) for c, n in enumerate(counts) for i in range(n)]
        return ClipDataset.from_clips([*clips, Clip(f'{video}_x', text=[5])], [Task('t', 3)])
    parts = [of(v, o) for v, o in zip('abc', (train, valid, test))]
    lacks = [c for c in range(3) if not train[c]]
    if not any(train) or not any(valid) or (lacks and balanced):
        with pytest.raises(DataError): check_classes(parts, balanced)
        return
    notes = check_classes(parts, balanced)
    assert len(notes) == len(lacks)
    for c, note in zip(lacks, notes): assert f"class '{c}', and {test[c]} test" in note


def test_a_class_that_training_lacks_is_an_error_only_for_balanced_weights():
    note, = check_classes((ONE, TWO, TWO), where='fold 2: ')
    assert note == (
        "fold 2: no training clip of task 'yes' is of class 'no', and 1 test clip is: never seen in"
        ' training but in test')
    with pytest.raises(DataError, match="class_weights='balanced' has no weight") as e:
        check_classes((ONE, TWO, TWO), True)
    assert e.value.file == 'clips.csv'


def test_test_clips_without_any_label_are_refused():
    for tests in ([TWO], [NONE, ONE], [ONE, NONE], [FLAT]): check_scored(tests)
    for tests in ([NONE], [NONE, NONE], [BLANK]):
        with pytest.raises(DataError, match='stream 1: no test clip has a label') as e:
            check_scored(tests, 'stream 1: ')
        assert e.value.file == 'clips.csv'


# what comes from training labels only

def numbers(*y): return clips_of([{} if o is None else dict(rated=float(o)) for o in y], (RATED,))

def test_the_scale_of_a_regression_task_is_that_of_the_training_labels():
    train, more, valid, test = numbers(1, 3, None), numbers(5, 7), numbers(90, 91), numbers(-70, None)
    (parts,) = standardised_parts([(train, valid, test)])
    assert [(o.tasks[0].mean, o.tasks[0].deviation) for o in parts] == [(2., 1.)]*3
    assert [o.ids for o in parts] == [o.ids for o in (train, valid, test)]
    for new, old in zip(parts, (train, valid, test)):
        assert np.array_equal(new.targets('rated'), old.targets('rated'), equal_nan=True)
        assert old.tasks[0] == RATED  # what was given stays as it was
    both = standardised_parts([(train, valid, test), (more, test, valid)])  # two data sets with one task
    assert {(o.tasks[0].mean, o.tasks[0].deviation) for parts in both for o in parts} == {(4., 5**.5)}
    with pytest.raises(ValueError, match='all training labels are 2'):
        standardised_parts([(numbers(2, 2), valid, test)])


def test_what_has_no_regression_task_stays_and_another_task_does_not_change():
    mixed = clips_of([dict(yes=0, rated=0.), dict(yes=1, rated=2.)], (YES, RATED))
    (a, b), (c,) = standardised_parts([(mixed, TWO), (TWO,)])
    assert b is TWO and c is TWO
    assert a.tasks == with_tasks(mixed, [YES, RATED.standardised([0., 2.])]).tasks and mixed.tasks[1] == RATED
    (_, valid), = standardised_parts([(TWO, SLOPE)])  # no training clip has this task
    assert list(valid.tasks) == [RATED]


# the parts of a run

def table_of(path, part=lambda v: '', videos=range(20), funny=lambda v, k: (v + k) % 2):
    "A table of two clips a video, with a label, a number, and a column of parts"
    rows = [f'v{v}_{k},w{v} w{k},{funny(v, k)},{v + k/2},{part(v)}' for v in videos for k in range(2)]
    path.write_text('\n'.join(['id,text,funny,rated,part', *rows]) + '\n')
    return str(path)


def read(data, network=Network(), tasks=('funny',), parts=None, labelled=True, training=Training(), **clips):
    return read_splits(Clips(data, labels=tasks, **clips), synthetic_tokenizer(), network, labelled, parts, training)


def of_video(*names): return [f'v{n}' for n in names for _ in range(2)]


def test_shares_of_the_videos_are_held_out(tmp_path):
    table, whole = table_of(tmp_path/'clips.csv'), of_video(*range(20))
    parts, = read(table, test_share=.2, valid_share=.25)
    assert [len(o) for o in parts] == [24, 8, 8]  # the validation share is of what is left
    assert sorted(g for o in parts for g in o.groups) == sorted(whole)
    assert all(len(set(o.groups)) == len(o)/2 for o in parts)
    def ids(**settings): return [o.ids for o in read(table, **settings)[0]]
    base = ids(test_share=.2, valid_share=.25)
    assert ids(test_share=.2, valid_share=.25) == base and ids(test_share=.2, valid_share=.25, split_seed=3) != base
    rest, test = split_by_video(read_clips(Clips(table, labels=('funny',)), table, synthetic_tokenizer()), .2, 3)
    assert ids(test_share=.2, split_seed=3)[2] == test.ids
    assert ids(test_share=.2, valid_share=.5, split_seed=3)[:2] == [o.ids for o in split_by_video(rest, .5, 3)]


def test_folds_test_every_clip_once_and_choose_by_others(tmp_path):
    folds = read(table_of(tmp_path/'clips.csv'), folds=4, valid_share=.2)
    assert sorted(g for *_, test in folds for g in test.groups) == sorted(of_video(*range(20)))
    for parts in folds:
        assert sum(map(len, parts)) == 40 and len(set().union(*(o.groups for o in parts))) == 20
        assert [len(o) for o in parts] == [24, 6, 10]
        assert all(len(set(o.groups)) == len(o)/2 for o in parts)
    other = read(table_of(tmp_path/'clips.csv'), folds=4, valid_share=.2, split_seed=5)
    assert [o.ids for _, _, o in other] != [o.ids for _, _, o in folds]


@pytest.mark.parametrize('given', ['valid', 'test', 'both'])
def test_files_of_held_out_clips_are_used_as_they_are(given, tmp_path):
    table = table_of(tmp_path/'clips.csv')
    files = {k: table_of(tmp_path/f'{k}.csv', videos=v) for k, v in (('valid', [30, 31]), ('test', [40, 41, 42]))
             if given in (k, 'both')}
    (train, valid, test), = read(table, test_share=.2, valid_share=.25, **files)
    if 'valid' in files: assert valid.groups == of_video(30, 31)
    if 'test' in files: assert test.groups == of_video(40, 41, 42)
    kept = [g for o in (train, *(o for k, o in (('valid', valid), ('test', test)) if k not in files)) for g in o.groups]
    assert sorted(kept) == sorted(of_video(*range(20)))  # nothing of the table is lost, and nothing is there twice
    assert len(train) == dict(valid=32, test=30, both=40)[given]


def test_a_video_in_two_files_is_refused_unless_they_number_their_videos_on_their_own(tmp_path):
    table, other, more = (table_of(tmp_path/f'{k}.csv', videos=v) for k, v in (
        ('clips', range(20)), ('other', [19, 30]), ('more', [30, 31])))
    new = table_of(tmp_path/'new.csv', videos=[50])
    for files in (dict(valid=other), dict(test=other), dict(valid=new, test=other), dict(valid=other, test=new)):
        with pytest.raises(DataError, match="1 video of clips.csv is in it too, the first 'v19'"): read(table, **files)
        (_, valid, test), = read(table, **files, own_numbering=True)
        for k, ds in (('valid', valid), ('test', test)):
            if k in files: assert all(g.split(': ')[1].startswith('v') for g in ds.groups)
    with pytest.raises(DataError, match="1 video of other.csv is in it too, the first 'v30'"):
        read(table_of(tmp_path/'some.csv', videos=range(9)), valid=other, test=more)


NAMED = {'train': range(12), 'valid': range(12, 16), 'test': range(16, 20)}

@pytest.mark.parametrize('without', [(), ('valid',), ('test',), ('valid', 'test')])
def test_a_column_of_parts_is_followed_and_what_it_does_not_name_is_held_out(without, tmp_path):
    def part(v): return next(k for k, videos in NAMED.items() if v in videos)
    table = table_of(tmp_path/'clips.csv', lambda v: 'train' if part(v) in without else part(v))
    parts, = read(table, split='part', test_share=.25, valid_share=.25)
    assert sorted(g for o in parts for g in o.groups) == sorted(of_video(*range(20)))
    assert all(len(set(o.groups)) == len(o)/2 for o in parts)
    for k, ds in zip(NAMED, parts):
        if k not in ('train', *without): assert ds.groups == of_video(*NAMED[k])
    sizes = {(): [24, 8, 8], ('valid',): [24, 8, 8], ('test',): [24, 8, 8], ('valid', 'test'): [22, 8, 10]}[without]
    assert [len(o) for o in parts] == sizes
    if without:
        other, = read(table, split='part', test_share=.25, valid_share=.25, split_seed=4)
        assert [o.ids for o in other] != [o.ids for o in parts]


def test_a_column_that_tears_a_video_apart_or_names_no_training_clip_is_refused(tmp_path):
    table = table_of(tmp_path/'clips.csv', lambda v: ['train', 'valid', 'test'][v % 3])
    for a, b in (('train', 'valid'), ('train', 'test'), ('valid', 'test')):
        v = ['train', 'valid', 'test'].index(a)
        text = (tmp_path/'clips.csv').read_text().replace(f'v{v}_1,w{v} w1,{(v + 1) % 2},{v + .5},{a}',
                                                          f'v{v}_1,w{v} w1,{(v + 1) % 2},{v + .5},{b}')
        (tmp_path/'torn.csv').write_text(text)
        with pytest.raises(DataError, match=f"video 'v{v}' has clips in two parts of column 'part', as have 0") as e:
            read(str(tmp_path/'torn.csv'), split='part')
        assert f'v{v}_1' in str(e.value)
    table = table_of(tmp_path/'clips.csv', lambda v: ['valid', 'test'][v % 2])
    with pytest.raises(DataError, match='names no clip for training'): read(table, split='part')


def test_parts_that_are_decided_are_followed_and_a_new_video_is_for_training(tmp_path):
    table = table_of(tmp_path/'clips.csv')
    decided = {f'v{v}': 2 if v < 4 else 1 if v < 7 else 0 for v in range(15)}
    (train, valid, test), = read(table, parts=decided)
    assert [o.groups for o in (train, valid, test)] == [of_video(*o) for o in (range(7, 20), range(4, 7), range(4))]
    own = table_of(tmp_path/'own.csv', videos=[30])
    for k, where in (('valid', 1), ('test', 2)):
        found, = read(table, parts=decided, **{k: own})
        assert found[where].groups == of_video(30) and found[0].ids == train.ids
        assert found[3 - where].ids == (valid, test)[2 - where].ids


def test_numbers_are_scaled_and_classes_are_missed_fold_by_fold(tmp_path):
    table = table_of(tmp_path/'clips.csv', funny=lambda v, k: int(v == 3))  # one video is funny
    folds = read(table, tasks=('funny', 'rated:regression'), folds=4)
    for parts in folds:
        (mean,), (deviation,) = ({getattr(o.tasks[1], k) for o in parts} for k in ('mean', 'deviation'))
        y = parts[0].targets('rated').numpy()
        assert mean == pytest.approx(y.mean()) and deviation == pytest.approx(y.std())
    assert len({parts[0].tasks[1].mean for parts in folds}) > 1
    notes = [o for o in folds[0][0].notes if 'no training clip' in o]
    lacking = [i for i, (train, _, _) in enumerate(folds, 1) if 'v3' not in train.groups]
    assert [o.split(':')[0] for o in notes] == [f'fold {i} of 4' for i in lacking] and lacking
    with pytest.raises(DataError, match="fold . of 4: .*class_weights='balanced' has no weight"):
        read(table, folds=4, training=Training(class_weights='balanced'))
    unchecked = read(table, tasks=('funny', 'rated:regression'), folds=4, training=None)
    assert [[o.ids for o in parts] for parts in unchecked] == [[o.ids for o in parts] for parts in folds]
    assert not any('no training clip' in o for o in unchecked[0][0].notes)


def test_clips_that_nothing_can_be_scored_or_chosen_by_are_refused_unless_they_are_read_without_labels(tmp_path):
    table = table_of(tmp_path/'clips.csv')
    none = table_of(tmp_path/'none.csv', videos=[30], funny=lambda v, k: '')
    with pytest.raises(DataError, match='no test clip has a label of funny'): read(table, test=none)
    with pytest.raises(DataError, match='so macro_f1, which chooses'): read(table, valid=none)
    with pytest.raises(DataError, match='no validation clip has a label'):
        read(table, valid=none, training=Training(monitor='funny_macro_f1'))
    read(table, valid=none, training=Training(monitor='train_loss'))
    parts, = read(table, valid=none, test=table_of(tmp_path/'new.csv', videos=[40]), labelled=False)
    assert not any(o.tasks for o in parts)
    for ds in read_splits(Clips(table, labels=('funny',)), synthetic_tokenizer())[0]:  # by default with labels
        assert [o.name for o in ds.tasks] == ['funny']


def test_a_note_says_which_fold_it_is_about_where_there_are_several(tmp_path):
    "One video is funny"
    table = table_of(tmp_path/'clips.csv', lambda v: 'test' if v < 5 else 'train', funny=lambda v, k: int(v == 3))
    for start, settings in (('fold . of 2: ', dict(folds=2)), ('', dict(split='part'))):
        (train, *_), *_ = read(table, **settings)
        note, = (o for o in train.notes if 'no training clip' in o)
        assert re.match(start + 'no training clip', note)


def test_the_clips_whose_videos_could_be_extracted_keep_their_parts(tmp_path, monkeypatch):
    "Rows of the table are lost before clips of all parts"
    order = ['train', 'valid', 'test']
    table = table_of(tmp_path/'clips.csv', lambda v: order[v % 3])
    ids = [f'v{v}_{k}' for v in range(20) for k in range(2)]
    lost = {'v0_0', 'v1_1', 'v5_0', 'v5_1', 'v6_0', 'v19_1'}
    found = dict(text={o: 'words' for o in ids if o not in lost})
    monkeypatch.setattr('hiccap.run_data.extracted_words', lambda clips: (found, ['no sound']))
    parts, = read(table, split='part', video_column='rated')
    for k, ds in enumerate(parts): assert ds.ids == [o for o in ids if int(o[1:-2]) % 3 == k and o not in lost]
    note, = (o for o in parts[0].notes if 'left out' in o)
    assert '6 clips are left out' in note and all(o in note for o in (*lost, 'no sound'))
    found['text'] |= {o: 'words' for o in lost}
    parts, = read(table, split='part', video_column='rated')
    assert sum(map(len, parts)) == 40 and not any('left out' in o for o in parts[0].notes)


# what the first weights have seen

@pytest.mark.parametrize('held', ['valid', 'test', 'none'])
@pytest.mark.parametrize('way', ['a column', 'a column and a share', 'files', 'the earlier split', 'folds'])
def test_no_clip_is_scored_or_chosen_by_that_the_first_weights_were_trained_on(way, held, tmp_path):
    "Videos 0 to 9 are for training, 10 to 14 for validation and the rest for test; the weights have seen one of them"
    named = 'train', 'valid', 'test'
    of = {f'v{v}': min(max(v//5 - 1, 0), 2) for v in range(20)}
    seen = of | (dict(v10=0) if held == 'valid' else dict(v19=0) if held == 'test' else {})
    (tmp_path/'run/model').mkdir(parents=True)
    record = dict(data='elsewhere.csv', own_numbering=False, parts=seen, keys={})
    (tmp_path/'run/videos.json').write_text(json.dumps(dict(streams=[record])))
    clips = dict(data=table_of(tmp_path/'clips.csv', lambda v: named[of[f'v{v}']]))
    if way == 'a column': clips |= dict(split='part')
    elif way == 'a column and a share':
        clips |= dict(data=table_of(tmp_path/'clips.csv', lambda v: 'valid' if of[f'v{v}'] == 1 else 'train'),
                      split='part', test_share=.5)
    elif way == 'folds': clips |= dict(folds=4)
    elif way == 'files':
        whole = (tmp_path/'clips.csv').read_text().splitlines()
        for k in named:
            rows = [o for o in whole[1:] if o.endswith(k)]
            (tmp_path/f'{k}.csv').write_text('\n'.join([whole[0], *rows]) + '\n')
        clips |= dict(data=str(tmp_path/'train.csv'), valid=str(tmp_path/'valid.csv'), test=str(tmp_path/'test.csv'))
    network = Network(init=str(tmp_path/'run/model'))
    if way in ('a column and a share', 'folds') or way != 'the earlier split' and held != 'none':
        with pytest.raises(DataError, match='learnt from'): read(network=network, **clips)
        return
    (train, valid, test), = read(network=network, **clips)
    assert {seen[g] for g in valid.groups} == {1} and {seen[g] for g in test.groups} == {2}


@pytest.mark.parametrize('lacks, use, other', [(1, 'choosing', 'valid'), (2, 'scoring', 'test')])
def test_weights_whose_run_held_nothing_out_need_clips_of_other_videos(lacks, use, other, tmp_path):
    (tmp_path/'run/model').mkdir(parents=True)
    seen = {f'v{v}': v % 3 if v % 3 != lacks else 0 for v in range(20)}
    record = dict(data='elsewhere.csv', own_numbering=False, parts=seen, keys={})
    (tmp_path/'run/videos.json').write_text(json.dumps(dict(streams=[record])))
    table, network = table_of(tmp_path/'clips.csv'), Network(init=str(tmp_path/'run/model'))
    with pytest.raises(DataError, match=f'held none of its videos out for {use}'): read(table, network)
    parts, = read(table, network, **{other: table_of(tmp_path/'new.csv', videos=[30])})
    assert parts[lacks].groups == of_video(30)
    assert {seen[g] for g in parts[3 - lacks].groups} == {3 - lacks} and {seen[g] for g in parts[0].groups} == {0}


def test_synthetic_clips_have_the_labels_that_are_asked_for():
    some = read_clips(Clips('synthetic', labels=('seen', 'said'), synthetic=dict(n=20)), 'synthetic', None)
    whole = read_clips(Clips('synthetic', synthetic=dict(n=20)), 'synthetic', None)
    assert [t.name for t in some.tasks] == ['seen', 'said'] and len(whole.tasks) == 5
    assert some.targets('seen').tolist() == whole.targets('seen').tolist()
    assert set(some.best()) == set(some.oracle) == {'said', 'seen'} and some.subset([0, 1]).tasks == some.tasks
    assert some.best()['said'] == whole.best()['said']
    level = read_clips(Clips('synthetic', labels=('said',), synthetic=dict(n=20, level=.5)), 'synthetic', None)
    assert list(level.best()) == ['said']
    with pytest.raises(DataError, match="no task 'sad'. The tasks are said, seen"):
        read_clips(Clips('synthetic', labels=('sad',), synthetic=dict(n=20)), 'synthetic', None)
