"""Synthetic clips: a seed gives the same clips, modalities hold the answers, a perfect model gets the best scores."""
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, strategies as st

from hiccap.clips import MODALITIES
from hiccap.features import FeatureFolder
from hiccap.readers import read_table
from hiccap.splits import split_by_video
from hiccap.metrics import evaluate
from hiccap.synthetic import (CARRIERS, SYNTHETIC_TASKS, VOCABULARY, best_possible, best_scores, decode,
                              synthetic_clips, two_runs, write_synthetic)
from hiccap.tasks import IGNORE

share = st.floats(0, 1)
synthetic = st.builds(lambda noise, **kw: synthetic_clips(noise=noise, video=12, audio=14, **kw), n=st.integers(1, 60),
                      seed=st.integers(0, 2**32), noise=st.floats(0, 0.5), missing=share, unlabelled=share,
                      scale=st.floats(0.001, 0.1), strength=st.sampled_from([0.01, 1.0, 4.0, 1e4]),
                      per_video=st.integers(1, 5))


@given(synthetic)
def test_every_answer_is_in_its_carriers_and_nowhere_else(ds):
    found = [decode(c) for c in ds]
    for k, carriers in CARRIERS.items():
        there = np.all([ds.lengths(m) > 0 for m in carriers], 0)
        assert [f[k] for f in found] == [int(y) if here else None for y, here in zip(ds.truth[k], there)]
        assert np.array_equal(ds.readable(k), there)
        p = ds.oracle[k]
        assert p.shape == (len(ds), 2) and np.allclose(p.sum(1), 1) and (p[~there] == .5).all()
        assert np.allclose(p[there, ds.truth[k][there]], 1 - ds.noise[k])
    for c in ds:
        if c.text is not None:
            assert (c.text[0] == 101 and c.text[-1] == 102 and len(c.text) > 2 and c.text[1:-1].min() > 102
                    and c.text.max() < VOCABULARY)
        assert all(y in (0, 1) for y in c.labels.values())


@given(st.integers(1, 60), st.integers(0, 2**32), st.floats(0, .5), share, share, st.integers(1, 5))
def test_the_seed_decides_and_what_is_taken_away_changes_nothing_else(n, seed, noise, missing, unlabelled, per_video):
    def clips(**kw):
        return synthetic_clips(
            **{
                **dict(n=n, seed=seed, noise=noise, missing=missing, unlabelled=unlabelled, per_video=per_video,
                       scale=0.02, video=12, audio=14),
                **kw,
            }
        )
    ds, again, whole = clips(), clips(), clips(missing=0, unlabelled=0)
    assert ds.ids == again.ids and len(set(ds.ids)) == n and all(ds.groups.count(g) <= per_video for g in ds.groups)
    for a, b, w in zip(ds, again, whole):
        assert a.labels == b.labels and a.labels.items() <= w.labels.items() and len(w.labels) == len(SYNTHETIC_TASKS)
        for m in MODALITIES:
            x, y, z = (getattr(o, m) for o in (a, b, w))
            assert (x is None and y is None) or torch.equal(x, y)
            assert x is None or torch.equal(x, z)
    if n > 30: assert any(not torch.equal(a.video, b.video) for a, b in zip(whole, clips(missing=0, seed=seed + 1)))


@given(st.integers(0, 2**32), st.floats(0, .5), share)
def test_the_oracle_scores_what_is_best_possible(seed, noise, missing):
    ds = synthetic_clips(400, seed, noise=noise, missing=missing, unlabelled=.1, scale=.01, video=10, audio=12)
    scores = evaluate(ds.oracle, {k: y.numpy() for k, y in ds.labels.items()}, ds.tasks, n_boot=0).tasks
    for k, best in ds.best().items():
        known = ds.labels[k].numpy() != IGNORE
        p = ds.oracle[k][known].max(1)
        assert abs(best['accuracy'] - p.mean()) < 1e-9
        assert abs(scores[k].scores['accuracy']*len(p) - p.sum()) <= 5*np.sqrt((p*(1 - p)).sum()) + 1e-6
        assert .5 <= best['accuracy'] == best['macro_f1'] <= best['auroc'] + 1e-9 and best['auroc'] <= 1
        q = np.prod([1 - missing]*len(CARRIERS[k]))
        assert (abs(best['accuracy'] - best_possible(noise, missing)[k]['accuracy'])
                <= 5 * np.sqrt(q * (1 - q) / len(p)) * (0.5 - noise) + 1e-9)


@given(share, st.floats(0, .5), share, share, share)
@example(1., .5, 1., 1., 1.)
@example(.9, .05, 1., 1., 0.)
def test_no_prediction_beats_the_best_scores(q, noise, hi, mid, lo):
    "Whatever shares of the clips with probability 1 - noise, 1/2 and noise are answered yes"
    yes = np.array([q*(1 - noise), 1 - q, q*noise]); no = yes[::-1]; said = np.array([hi, mid, lo])
    tp, fp, tn, fn = (yes*said).sum()/2, (no*said).sum()/2, (no*(1 - said)).sum()/2, (yes*(1 - said)).sum()/2
    best = best_scores(q, noise)
    f1, f0 = 2*tp/max(2*tp + fp + fn, 1e-12), 2*tn/max(2*tn + fp + fn, 1e-12)
    assert tp + tn <= best['accuracy'] + 1e-9 and (f1 + f0)/2 <= best['macro_f1'] + 1e-9 and f1 <= best['f1'] + 1e-9
    # the curve of a model that answers in the oracle's order
    x, y = np.append(0, np.cumsum(no)), np.append(0, np.cumsum(yes))
    assert abs(best['auroc'] - (np.diff(x)*(y[1:] + y[:-1])/2).sum()) < 1e-9


@given(st.lists(st.integers(2, 63), min_size=1, max_size=30), st.integers(0, 2**32))
def test_runs_are_apart_of_one_length_and_inside_the_clip(ns, seed):
    n = np.array(ns)
    for e, l in zip(*(np.split(o, np.cumsum(n)[:-1]) for o in two_runs(n, np.random.default_rng(seed)))):
        assert e.sum() == l.sum() == max(1, len(e)//8) and np.flatnonzero(e).max() < np.flatnonzero(l).min()


def test_rows_without_their_order_say_nothing_about_order():
    "Reversing a clip of one answer gives a clip of the other: rows, lengths and all that ignores order stay"
    ds = synthetic_clips(400, missing=0, scale=.3, video=12)
    for c, y in zip(ds, ds.truth['order']):
        before = decode(c); c.audio = c.audio.flip(0); after = decode(c)
        assert after == {**before, 'order': 1 - before['order']} and before['order'] == y


@given(synthetic, st.integers(0, 9))
def test_a_subset_keeps_its_oracle(ds, seed):
    rows = np.random.default_rng(seed).permutation(len(ds))[:len(ds)//2]
    part = ds.subset(rows)
    for k in ds.truth:
        assert np.array_equal(part.oracle[k], ds.oracle[k][rows]) and np.array_equal(part.truth[k], ds.truth[k][rows])
    if len(set(ds.groups)) > 4:
        a, b = split_by_video(ds, .4, seed)
        assert not set(a.groups) & set(b.groups) and len(a.oracle['said']) + len(b.oracle['said']) == len(ds)


def test_written_clips_read_again():
    pytest.importorskip('transformers')
    ds = synthetic_clips(10, 3, scale=.1, missing=.3, unlabelled=.3, video=1024, audio=128)
    with tempfile.TemporaryDirectory() as d:
        path = write_synthetic(ds, Path(d)/'new')
        again = read_table(path, path.parent/'tokenizer', tasks=SYNTHETIC_TASKS, features=path.parent/'features')
        assert again.groups == ds.groups
        for a, b in zip(ds, again):
            assert (a.id, a.labels) == (b.id, b.labels)
            for m in MODALITIES:
                assert (getattr(a, m) is None and getattr(b, m) is None) or torch.equal(getattr(a, m), getattr(b, m))
        with pytest.raises(FileExistsError, match='new folder'): write_synthetic(ds, path.parent)
        assert FeatureFolder(path.parent/'features').widths == dict(video=1024, audio=128)


@pytest.mark.parametrize('kw,match', [
    (dict(n=0), 'at least 1'), (dict(per_video=0), 'at least 1'), (dict(scale=0), 'scale'),
    (dict(scale=float('nan')), 'scale'), (dict(strength=0), 'strength'), (dict(noise=.6), 'from 0 to 0.5'),
    (dict(missing=-.1), 'missing of text'), (dict(unlabelled=dict(sad=1)), 'names sad'), (dict(video=9), 'above 9'),
    (dict(audio=11), 'above 11')])
def test_numbers_that_cannot_be_are_refused(kw, match):
    with pytest.raises(ValueError, match=match): synthetic_clips(**{**dict(n=3), **kw})
