"""Padding: what goes in comes out under the mask, on either side, and every epoch holds every clip once."""
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from hiccap.clips import Clip
from hiccap.padding import LengthSampler, collate, pad, padding_share
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
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.integers(0, 5), st.integers(-1, 1)), min_size=1,
                max_size=6), st.sampled_from(['left', 'right']))
def test_a_batch_says_what_each_clip_has(sizes, side):
    clips = [
        Clip(f'c{i}', text=list(range(1, t + 1)), video=torch.full((v, 4), 2.0), audio=torch.full((a, 3), 3.0),
             labels={} if y < 0 else {'t': y}, segments=[0] * t if t else None)
        for i, (t, v, a, y) in enumerate(sizes)
    ]
    inputs, targets = collate(clips, [Task('t')], side)
    for m, k in (('text', 0), ('video', 1), ('audio', 2)):
        assert inputs[f'{m}_mask'].sum(1).tolist() == [s[k] for s in sizes]
        assert inputs[m].shape[:2] == inputs[f'{m}_mask'].shape
        assert not inputs[m][~inputs[f'{m}_mask']].any()
    assert targets['t'].tolist() == [IGNORE if s[3] < 0 else s[3] for s in sizes]


@given(st.lists(st.integers(0, 500), min_size=1, max_size=300), st.integers(1, 16), st.integers(0, 5),
       st.integers(1, 20))
def test_every_epoch_holds_every_clip_once_and_is_a_function_of_the_seed(ls, bs, seed, pool):
    sampler = LengthSampler(ls, bs, seed, pool=pool)
    for epoch in range(3):
        order = sampler.order(epoch)
        assert sorted(order) == list(range(len(ls)))
        assert np.array_equal(order, LengthSampler(ls, bs, seed, pool=pool).order(epoch))
    if len(ls) > 20*bs and len(set(ls)) > 1:
        assert (padding_share(np.array(ls) + 1, sampler.order(0), bs)
                <= padding_share(np.array(ls) + 1, np.arange(len(ls)), bs) + 0.2)
