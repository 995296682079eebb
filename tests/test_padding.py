"""Padding: what goes in comes out under the mask, on either side, and every epoch holds every clip once."""
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from hiccap.clips import Clip, DataError
from hiccap.padding import (LengthSampler, batch_modalities, batch_size, collate, collate_targets, describe_batch,
                            lengths_in, pad, padding_share)
from hiccap.tasks import IGNORE, Task

proof = pytest.mark.proof
lengths = st.lists(st.integers(0, 9), min_size=1, max_size=8)


@proof
@given(lengths, st.sampled_from(['left', 'right']), st.integers(0, 4), st.booleans())
def test_rows_come_back_from_under_their_mask(ns, side, more, vectors):
    rows = [torch.arange(1, 1 + n*(3 if vectors else 1)).reshape((n, 3) if vectors else (n,)).float() for n in ns]
    x, mask = pad([r if len(r) else None for r in rows], side, max(ns) + more)
    assert mask.dtype == torch.bool and mask.shape == (len(ns), max(ns) + more)
    for row, xi, mi in zip(rows, x, mask):
        if len(row): assert torch.equal(xi[mi], row) and not xi[~mi].any()
        else: assert not mi.any()
        edge = mi if side == 'right' else mi.flip(0)
        assert edge[:len(row)].all() and not edge[len(row):].any()


@proof
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.integers(0, 5), st.integers(-1, 1), st.booleans()),
                min_size=1, max_size=6), st.sampled_from(['left', 'right']), st.integers(0, 2))
def test_a_batch_says_what_each_clip_has(sizes, side, more):
    "Values, masks and segments of each clip are found at the same positions, on either side"
    clips = [
        Clip(f'c{i}', text=list(range(1, t + 1)), video=torch.arange(v*4.).view(v, 4) + 1,
             audio=torch.full((a, 3), 3.0), labels={} if y < 0 else {'t': y},
             segments=list(range(2, t + 2)) if has and t else None)
        for i, (t, v, a, y, has) in enumerate(sizes)
    ]
    longest = [max(s[k] for s in sizes) for k in range(3)]
    lengths = {m: n + more for m, n in zip(('text', 'video', 'audio'), longest)} if more else None
    inputs, targets = collate(clips, [Task('t')], side, lengths)
    for (m, k), width in zip((('text', 0), ('video', 1), ('audio', 2)), ((), (4,), (3,))):
        mask = inputs[f'{m}_mask']
        assert mask.dtype == torch.bool and mask.sum(1).tolist() == [s[k] for s in sizes]
        assert inputs[m].shape == mask.shape + (width if longest[k] or m == 'text' else (0,))
        assert mask.shape == (len(sizes), longest[k] + more) and not inputs[m][~mask].any()
        for c, x, real in zip(clips, inputs[m], mask):
            if getattr(c, m) is not None: assert torch.equal(x[real], getattr(c, m))
    assert ('text_segments' in inputs) == any(c.segments is not None for c in clips)
    if 'text_segments' in inputs:
        x, mask = inputs['text_segments'], inputs['text_mask']
        assert x.dtype == torch.int64 and x.shape == mask.shape and not x[~mask].any()
        for c, row, real in zip(clips, x, mask):
            if c.text is not None:
                assert row[real].tolist() == (len(c.text)*[0] if c.segments is None else c.segments.tolist())
    assert targets['t'].dtype == torch.int64 and targets['t'].tolist() == [IGNORE if s[3] < 0 else s[3] for s in sizes]


def test_rows_of_nothing():
    for x, mask in (pad([]), pad([], length=0)): assert x.shape == mask.shape == (0, 0)
    x, mask = pad([None, None], length=3)
    assert x.dtype == torch.int64 and x.shape == (2, 3) and not x.any() and not mask.any()
    assert pad([None])[0].shape == (1, 0)


def test_what_cannot_be_padded_is_named():
    rows = [torch.ones(1), torch.ones(3), torch.ones(2)]
    with pytest.raises(ValueError, match='row 1 has 3 positions where 2 fit'): pad(rows, length=2)
    with pytest.raises(ValueError, match="side must be one of right, left, got 'both'"): pad(rows, 'both')
    with pytest.raises(ValueError, match='at least one clip'): collate([], ())


A, B, C = (Clip(o, text=[1, 2], video=torch.ones(2, 4)) for o in 'abc')

@pytest.mark.parametrize('clips,lengths,message', [
    ([A, Clip('x', text=torch.ones(1, 3))], None, "clip 'a': text is tokens where clip 'x' has 3 columns"),
    ([Clip('x', text=torch.ones(1, 3)), A], None, "clip 'x': text is 3 wide where clip 'a' has tokens"),
    ([B, A, Clip('x', video=torch.ones(1, 5))], None, "clip 'a': video is 4 wide where clip 'x' has 5 columns"),
    ([A, *(Clip(str(n), video=torch.ones(1, n)) for n in (1, 2, 3))], None, "clip 'a': video is 4 wide where clip '1'"),
    ([Clip('n'), A, Clip('x', text=[1, 2, 3])], dict(text=2), "clip 'x': 3 positions of text where 2 fit"),
    ([A, Clip('x', text=[1], video=torch.ones(3, 4))], dict(video=2), "clip 'x': 3 positions of video where 2 fit"),
    ([A], dict(face=2), 'lengths names an unknown modality: face')])
def test_what_does_not_fit_in_a_batch_names_the_clip(clips, lengths, message):
    with pytest.raises((DataError, ValueError)) as e: collate(clips, (), lengths=lengths)
    assert message in str(e.value) and isinstance(e.value, DataError) == ('clip' in message)


def test_what_just_fits_is_taken():
    inputs, _ = collate([A, Clip('n'), B], (), lengths=dict(text=2, video=3, audio=1))
    assert {k: tuple(v.shape) for k, v in inputs.items()} == dict(
        text=(3, 2), text_mask=(3, 2), video=(3, 3, 4), video_mask=(3, 3), audio=(3, 1, 0), audio_mask=(3, 1))
    wide = Clip('w', text=torch.ones(2, 3), segments=[1, 0])
    inputs, _ = collate([Clip('n'), wide], (), 'left', dict(text=3))
    assert inputs['text'].shape == (2, 3, 3) and inputs['text_segments'].tolist() == [[0]*3, [0, 1, 0]]


@pytest.mark.parametrize('label', [-1, 3, 7, IGNORE + 1])
def test_a_label_that_is_not_a_class_names_the_clip(label):
    tasks = Task('other'), Task('t', 3)
    good = [Clip(str(i), labels={'t': i}) for i in range(3)]
    assert {k: v.tolist() for k, v in collate_targets(good, tasks).items()} == dict(other=[IGNORE]*3, t=[0, 1, 2])
    assert collate_targets([], tasks)['t'].dtype == torch.int64
    with pytest.raises(DataError, match=f"clip 'x': label {label} of task 't' is not in 0..2"):
        collate_targets([*good, Clip('x', labels={'t': label})], tasks)


def test_a_batch_is_described_by_its_numbers():
    clips = [Clip('a', text=[1, 2, 3], labels=dict(t=1, u=2)), Clip('b', text=[4], labels=dict(t=1, u=0)),
             Clip('c', audio=torch.ones(1, 2), labels=dict(u=2)), Clip('d', text=[1, 2], labels=dict(t=0))]
    shown = describe_batch(collate(clips, [Task('t'), Task('u', 3)]), Task('t'))
    (head, rows), (_, labels) = shown.tables
    assert shown.title == 'A batch of 4 clips' and head == [
        'modality', 'shape', 'dtype', 'clips', 'real length', 'padding']
    assert [o[:5] for o in rows] == [['text', '4 × 3', 'int64', 3, '1 to 3'],
                                     ['video', '4 × 0 × 0', 'float32', 0, '–'],
                                     ['audio', '4 × 1 × 2', 'float32', 1, '1']]
    assert [(str(o[5]), o[5].share) for o in rows] == [('50%', .5), ('0%', 0.), ('75%', .75)]
    assert [(*o[:2], o[2].value, o[2].share) for o in labels] == [
        ('t', 'no', 1, .25), ('', 'yes', 2, .5), ('', 'unlabelled', 1, .25),
        ('u', '0', 1, .25), ('', '2', 2, .5), ('', 'unlabelled', 1, .25)]
    whole = describe_batch(({'face': torch.ones(2, 1, 3), 'face_mask': torch.ones(2, 1).bool()},
                            dict(t=torch.tensor([1, 1]))))
    assert str(whole).split('\n')[0] == 'A batch of 2 clips' and 'unlabelled' not in str(whole)
    assert whole.tables[1][1][0][:2] == ['t', '1'] and describe_batch(({}, {})).title == 'A batch of 0 clips'


def test_labels_that_are_numbers_are_described_by_their_range():
    mood, energy = (Task(n, kind='regression') for n in ('mood', 'energy'))
    clips = [Clip(str(y), text=[1], labels={} if y is None else dict(mood=y)) for y in (2., None, -.5, 1.)]
    _, (_, labels) = describe_batch(collate(clips, [mood, energy]), [mood, energy]).tables
    assert [(*o[:2], o[2].value, o[2].share) for o in labels] == [
        ('mood', '-0.5 to 2', 3, .75), ('', 'unlabelled', 1, .25), ('energy', 'unlabelled', 4, 1.)]


@given(st.lists(st.tuples(*[st.integers(0, 5)]*3), min_size=1, max_size=6), st.sampled_from(['left', 'right']))
def test_lengths_are_those_of_the_clips_and_masks_are_enough_to_tell_them(sizes, side):
    clips = [Clip(f'c{i}', text=[1]*t or None, video=torch.ones(v, 2) if v else None,
                  audio=torch.ones(a, 3) if a else None) for i, (t, v, a) in enumerate(sizes)]
    inputs, _ = collate(clips, (), side)
    for part in (inputs, {k: x for k, x in inputs.items() if k.endswith('_mask')}):
        assert lengths_in(part).tolist() == list(map(list, sizes)) and lengths_in(part).dtype == np.int64
        assert lengths_in(part, ('audio', 'face', 'text')).tolist() == [[a, 0, t] for t, _, a in sizes]
        assert batch_size(part) == len(clips) and batch_modalities(part) == ('text', 'video', 'audio')


# ---- the order of an epoch

orders = st.lists(st.integers(0, 500), min_size=1, max_size=200), st.integers(1, 16), st.integers(0, 5)

def batches(order, bs): return [order[i:i + bs] for i in range(0, len(order), bs)]


@given(*orders, st.integers(1, 20))
def test_every_epoch_holds_every_clip_once_and_is_a_function_of_the_seed(ls, bs, seed, pool):
    sampler = LengthSampler(ls, bs, seed, pool=pool)
    for epoch in range(3):
        order = sampler.order(epoch)
        assert sorted(order) == list(range(len(ls))) and len(sampler) == len(ls)
        assert np.array_equal(order, LengthSampler(ls, bs, seed, pool=pool).order(epoch))


@given(*orders)
def test_in_one_pool_no_two_batches_overlap_in_length(ls, bs, seed):
    "Sorted lengths, cut into batches: no order of whole batches wastes less. The short batch is the last"
    order = LengthSampler(ls, bs, seed, pool=len(ls)).order(0).tolist()
    assert sorted(ls[i] for i in order[len(ls)//bs*bs:]) == sorted(ls)[len(ls)//bs*bs:]
    spans = sorted((min(b), max(b)) for b in ([ls[i] for i in o] for o in batches(order, bs)))
    assert all(high <= low for (_, high), (low, _) in zip(spans, spans[1:]))


@given(*orders, st.integers(2, 20))
def test_sorting_within_pools_never_pads_more_than_a_plain_shuffle(ls, bs, seed, pool):
    "Of whole batches. A pool of one batch is a plain shuffle, and both start from the same one"
    ls = np.array(ls[:len(ls)//bs*bs] or [1]*bs) + 1
    plain, pooled = (LengthSampler(ls, bs, seed, pool=n).order(0) for n in (1, pool))
    assert padding_share(ls, pooled, bs) <= padding_share(ls, plain, bs) + 1e-12
    rng = np.random.default_rng([seed, 0])
    assert sorted(map(sorted, batches(plain.tolist(), bs))) == sorted(map(sorted, batches(
        rng.permutation(len(ls)).tolist(), bs)))


def test_similar_lengths_save_most_of_the_padding():
    ls = np.random.default_rng(0).integers(2, 300, 1600)
    plain, pooled, best = (padding_share(ls, LengthSampler(ls, 8, pool=n).order(0), 8) for n in (1, 50, 200))
    assert plain > .35 and pooled < plain/10 and best < .01


def test_batches_are_shuffled_and_differ_between_epochs_and_seeds():
    ls = np.arange(1000)
    order = LengthSampler(ls, 10, pool=100).order(0).reshape(-1, 10)
    assert (np.diff(order, axis=1) == 1).all()               # each batch is a run of lengths
    assert abs(np.corrcoef(order[:, 0], np.arange(100))[0, 1]) < .3  # in no order of lengths
    orders = [LengthSampler(ls, 10, seed).order(epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4


def test_clips_of_equal_length_keep_the_order_of_the_shuffle():
    "A sort that is not stable may give another order on another machine"
    ls = np.random.default_rng(1).integers(0, 5, 600)
    order = LengthSampler(ls, 4, 3, pool=200).order(1).tolist()
    want = sorted(np.random.default_rng([3, 1]).permutation(600).tolist(), key=lambda i: ls[i])
    assert sorted(batches(order, 4)) == sorted(batches(want, 4))


def test_without_shuffling_lengths_fall_and_ties_keep_their_order():
    ls = np.random.default_rng(1).integers(0, 5, 500)
    for epoch in (0, 1):
        assert LengthSampler(ls, 4, shuffle=False).order(epoch).tolist() == sorted(range(500), key=lambda i: -ls[i])


def test_what_a_sampler_is_by_default_and_what_it_continues_from():
    ls = np.random.default_rng(2).integers(0, 99, 400)
    sampler = LengthSampler(ls, 2)
    assert list(sampler) == LengthSampler(ls, 2, seed=0, shuffle=True, pool=50).order(0).tolist()
    sampler.epoch = 2
    assert list(sampler) == sampler.order(2).tolist() and sampler.state_dict() == dict(seed=0, epoch=2)
    again = LengthSampler(ls, 2)
    again.load_state_dict(sampler.state_dict())
    assert again.epoch == 2 and list(again) == list(sampler)
    with pytest.raises(ValueError, match='the state has seed 0, this sampler 1'):
        LengthSampler(ls, 2, 1).load_state_dict(sampler.state_dict())
    for bs, pool in ((0, 1), (1, 0), (-1, 3)):
        with pytest.raises(ValueError, match=f'at least 1, got {bs} and {pool}'): LengthSampler(ls, bs, pool=pool)
    assert list(LengthSampler([3, 1], 1, pool=1)) in ([0, 1], [1, 0])


def test_the_share_of_padding_by_hand():
    assert padding_share([4, 2, 2, 4], [0, 1, 2, 3], 2) == .25 and padding_share([4, 2, 2, 4], [0, 3, 1, 2], 2) == 0
    assert padding_share([3, 1, 2], [2, 0, 1], 2) == pytest.approx(1 - 6/7)  # batches 2, 3 and 1
    assert padding_share([4, 2, 2, 4], [0, 1, 2, 3], 2, length=5) == pytest.approx(.4)
