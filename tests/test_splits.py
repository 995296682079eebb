"""No video is in two parts of a split, every class is in each as its share says, and a split stays what it was."""
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hiccap.basics import digest
from hiccap.clips import Clip, ClipDataset, DataError
from hiccap.run_data import read_splits
from hiccap.runs import Clips, Network
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
def test_clips_and_classes_are_spread_exactly_where_they_can_be(parts, seed):
    "Sixty videos of two clips; one in ten of them is of a class, and a quarter of the clips has no label of another"
    videos = np.repeat(np.arange(60), 2)
    labels = [dict(yes=int(v % 6 == 0)) | (dict(mood=int(v % 3)) if v % 4 else {}) for v in videos]
    ds = clips_of(labels, (YES, MOOD), videos)
    part = assign_videos(ds, np.full(parts, 1/parts), seed)
    assert part.tolist() == np.repeat(part[::2], 2).tolist()
    assert counted_in(part, ds, np.ones(120, bool), parts) == [120//parts]*parts
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
        low, middle, high = (k.sum() for k in label_kinds(ds, RATED))
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
    (0, 2, ''), (1, 2, ''), (0, 'shares', ''), (1, 'shares', ''), (0, 5, ''), (1, 5, ''), (2, 5, '')])
def test_a_split_is_the_same_in_every_version(seed, parts, found):
    "Scores of runs of several versions are compared, so their test clips must be the same"
    n = np.arange(90)
    videos = (n*n + 3*n)//7 % 31
    labels = [dict(yes=int(i % 5 == v % 3)) | (dict(mood=int(i*v % 3)) if i % 4 else {}) | dict(rated=float(i*i % 37))
              for i, v in zip(n, videos)]
    ds = clips_of(labels, (YES, MOOD, RATED), videos)
    weights = np.array([.7, .2, .1]) if parts == 'shares' else np.full(parts, 1/parts)
    assert digest(bytes(assign_videos(ds, weights, seed).tolist())) == found


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
    for monitor in ('macro_f1', 'yes_f1', 'valid_loss'): assert check_classes((train, valid, valid), monitor=monitor) == []
    with pytest.raises(DataError, match="label of task 'mood', so mood_macro_f1"):
        check_classes((train, valid, valid), monitor='mood_macro_f1')


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


def test_test_clips_without_any_label_are_refused():
    for tests in ([TWO], [NONE, ONE], [ONE, NONE], [FLAT]): check_scored(tests)
    for tests in ([NONE], [NONE, NONE], [BLANK]):
        with pytest.raises(DataError, match='stream 1: no test clip has a label') as e: check_scored(tests, 'stream 1: ')
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
    with pytest.raises(ValueError, match='all training labels are 2'): standardised_parts([(numbers(2, 2), valid, test)])


def test_what_has_no_regression_task_stays_and_another_task_does_not_change():
    mixed = clips_of([dict(yes=0, rated=0.), dict(yes=1, rated=2.)], (YES, RATED))
    (a, b), (c,) = standardised_parts([(mixed, TWO), (TWO,)])
    assert b is TWO and c is TWO
    assert a.tasks == with_tasks(mixed, [YES, RATED.standardised([0., 2.])]).tasks and mixed.tasks[1] == RATED
    (_, valid), = standardised_parts([(TWO, SLOPE)])  # no training clip has this task
    assert valid.tasks == (RATED,) or list(valid.tasks) == [RATED]


# what the first weights have seen

def table_of(path, part=lambda v: ''):
    rows = [f'v{v}_{k},w{v} w{k},{(v + k) % 2},{part(v)}' for v in range(20) for k in range(2)]
    path.write_text('\n'.join(['id,text,funny,part', *rows]) + '\n')
    return str(path)


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
    clips = dict(data=table_of(tmp_path/'clips.csv', lambda v: named[of[f'v{v}']]), labels=('funny',))
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
    def read(): return read_splits(Clips(**clips), synthetic_tokenizer(), Network(init=str(tmp_path/'run/model')))
    if way in ('a column and a share', 'folds') or way != 'the earlier split' and held != 'none':
        with pytest.raises(DataError, match='learnt from'): read()
        return
    (train, valid, test), = read()
    assert {seen[g] for g in valid.groups} == {1} and {seen[g] for g in test.groups} == {2}
