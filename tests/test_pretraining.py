"""Property tests of pretext tasks: which clips are exchanged, which answers are expected, and that the rest of a batch
is not touched."""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, strategies as st
from hiccap.clips import Clip, ClipDataset, MODALITIES
from hiccap.model import HICCAP, HICCAPConfig, PAIRS
from hiccap.padding import collate
from hiccap.mixture import Mixture
from hiccap.mixture_loader import MixtureDL
from hiccap.pretext import (Contrastive, Matching, PrepareRows, PretextStream, draw_donors, eligible, nt_xent,
                            pair_targets)
from hiccap.pretraining import PretrainingLoss, StreamsDL
from hiccap.pretraining_model import PretrainingModel
from hiccap.streams import Stream
from hiccap.tasks import IGNORE, Task

seeds = st.integers(0, 2**32 - 1)
pairs = st.lists(st.sampled_from(list(PAIRS)), min_size=1, unique=True)

def a_clip(i, rng, video=None, lacks=()):
    x = dict(text=torch.from_numpy(rng.integers(1, 50, int(rng.integers(1, 5)))),
             video=torch.from_numpy(rng.standard_normal((int(rng.integers(1, 4)), 6)).astype(np.float32)),
             audio=torch.from_numpy(rng.standard_normal((int(rng.integers(1, 6)), 4)).astype(np.float32)))
    return Clip(f'v{i if video is None else video}_{i}', *(None if m in lacks else x[m] for m in MODALITIES),
                {'t': int(rng.integers(2))})

def some_clips(n, rng, per_video=2, gaps=.2):
    return [a_clip(i, rng, i//per_video, [m for m in MODALITIES if rng.random() < gaps]) for i in range(n)]
def data(n, seed=0, gaps=.2):
    return ClipDataset.from_clips(some_clips(n, np.random.default_rng(seed), gaps=gaps), [Task('t')])
def config(**kw):
    return HICCAPConfig(
        text=dict(
            kind='tokens',
            config=dict(
                vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16),
        ),
        video=dict(kind='features', width=6, hidden=8, layers=1),
        audio=dict(kind='features', width=4, hidden=8, layers=1),
        width=16,
        heads=2,
        head_widths=(16,),
        **{**dict(matching=True, projection=8), **kw}
    )
def equal(a, b): return all(torch.equal(p[k], q[k]) for p, q in zip(a, b) for k in {*p, *q})

@given(st.integers(1, 14), st.integers(1, 4), st.booleans(), st.floats(.01, .99), pairs, seeds)
def test_a_row_is_lent_one_modality_by_another_video(n, per_video, same_video, share, asked, seed):
    rng = np.random.default_rng(seed)
    clips = rng.integers(0, n, n)
    groups = clips//per_video  # a clip may stand twice
    may, present = eligible(clips, groups, same_video), rng.random((n, 3)) < .7
    donors = draw_donors(may, present, share, asked, np.random.default_rng(seed))
    changed = donors != np.arange(n)[:, None]
    assert changed.sum(1).max() <= 1 and changed.sum() <= round(share*n)
    for i, m in zip(*np.nonzero(changed)):
        assert (present[i, m] and present[donors[i, m], m] and clips[i] != clips[donors[i, m]]
                and (same_video or groups[i] != groups[donors[i, m]]))
        assert any(pair_targets(donors, present, p)[i] == 0 for p in asked)  # an exchange changes a pair that is asked
    for p in asked:
        y, (a, b) = pair_targets(donors, present, p), map(MODALITIES.index, PAIRS[p])
        assert ((y == IGNORE) == ~(present[:, a] & present[:, b])).all() and (
            (y == 0) == ((changed[:, a] | changed[:, b]) & (y != IGNORE))).all()
    assert (draw_donors(may, present, share, asked, np.random.default_rng(seed)) == donors).all()

@given(st.integers(2, 8), st.sampled_from(['left', 'right']), seeds)
def test_an_exchange_before_fusion_is_the_batch_of_the_composed_clips(n, side, seed):
    rng = np.random.default_rng(seed)
    clips = some_clips(n, rng, 1)
    task = Matching(share=.9)
    x, y = collate(clips, task.tasks, side)
    before = {k: v.clone() for k, v in x.items()}
    rows = np.sort(rng.permutation(n)[:rng.integers(1, n + 1)])
    task.prepare(x, y, rows, rows, rows, 0, np.random.default_rng(seed))
    present = np.stack([before[f'{m}_mask'].any(1).numpy() for m in MODALITIES], 1)
    donors = draw_donors(eligible(rows, rows), present[rows], .9, task.pairs, np.random.default_rng(seed))
    take = np.repeat(np.arange(n)[:, None], 3, 1)
    take[rows] = rows[donors]
    composed = [
        Clip(c.id, *(getattr(clips[take[i, j]], m) for j, m in enumerate(MODALITIES))) for i, c in enumerate(clips)]
    assert equal((x,), (collate(composed, (), side, {m: before[f'{m}_mask'].shape[1] for m in MODALITIES})[0],))
    for p in task.pairs: assert (y[p][np.setdiff1d(np.arange(n), rows)] == IGNORE).all()

def points(n, rng, dtype=torch.float64):
    z = F.normalize(torch.from_numpy(rng.standard_normal((n, 3, 4))).to(dtype), dim=2)
    z[torch.from_numpy(rng.random((n, 3)) < .2)] = 0
    return z, torch.from_numpy(
        np.where(rng.random(n) < 0.2, IGNORE, (rng.integers(0, 2, n) << 32) | rng.integers(0, 4, n)))

def by_hand(z, y, asked, tau):
    means = []
    for a, b in (map(MODALITIES.index, PAIRS[p]) for p in asked):
        at, found = [i for i in range(len(z)) if y[i] != IGNORE and z[i, a].any() and z[i, b].any()], []
        for i in at:
            for m, o in ((a, b), (b, a)):
                others = [z[j, k] for j in at for k in (a, b) if y[j] >> 32 == y[i] >> 32 and y[j] != y[i]]
                if others:
                    found.append(
                        float(torch.logsumexp(torch.stack([z[i, m] @ v for v in [*others, z[i, o]]]) / tau, 0)
                              - z[i, m] @ z[i, o] / tau)
                    )
        if found: means.append(np.mean(found))
    return np.mean(means) if means else None

@given(st.integers(1, 10), pairs, st.floats(.02, 10), seeds)
def test_nt_xent_is_its_equation_whatever_the_order(n, asked, tau, seed):
    rng = np.random.default_rng(seed)
    z, y = points(n, rng)
    want, got = by_hand(z, y, asked, tau), nt_xent(z, y, asked, tau)
    if want is None:
        assert got is None
        return
    assert abs(got.item() - want) < 1e-4*(1 + want)
    o = torch.from_numpy(rng.permutation(n))
    assert abs(nt_xent(z[o], y[o], asked, tau).item() - got.item()) < 1e-5*(1 + want)
    more = torch.cat([z, z[:1]]), torch.cat([y, torch.tensor([IGNORE])])
    assert abs(nt_xent(*more, asked, tau).item() - got.item()) < 1e-6*(1 + want)

@given(st.integers(1, 8), st.floats(1e-4, 1e4), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), seeds)
def test_nt_xent_is_finite_with_its_gradient(n, tau, dtype, seed):
    z, y = points(n, np.random.default_rng(seed), dtype)
    z.requires_grad_()
    if (l := nt_xent(z, y, temperature=tau)) is None: return
    l.backward()
    assert l.isfinite() and z.grad.isfinite().all() and l >= 0

asked = st.lists(
    st.sampled_from(
        [Matching(), Matching(negatives='after'), Matching(same_video=True), Contrastive(),
         Contrastive(same_video=True), None]
    ),
    min_size=1,
    max_size=4,
)
def streams(kinds, sizes, seed=0):
    named = [(f's{i}', data(n, seed + i)) for i, n in enumerate(sizes)]
    kinds = [Contrastive(c.pairs, name=f'c{i}') if isinstance(c, Contrastive) else c for i, c in enumerate(kinds)]
    return [Stream(name, ds) if c is None else PretextStream(name, ds, c) for (name, ds), c in zip(named, kinds)]

@given(asked, st.data(), seeds)
def test_rows_have_targets_of_their_own_stream_and_a_resumed_run_the_same_batches(kinds, draw, seed):
    sizes = [draw.draw(st.integers(3, 9)) for _ in kinds]
    bs, stop = draw.draw(st.integers(len(kinds), 9)), draw.draw(st.integers(0, 4))
    def loader():
        m = Mixture(streams(kinds, sizes), draw_policy, bs=bs, seed=seed)
        return m, MixtureDL(m, 5, transform=PrepareRows(m.streams))
    draw_policy = draw.draw(st.sampled_from(['uniform', 'proportional', 'round_robin', 'temperature']))
    m, dl = loader()
    whole, state = [], None
    for i, b in enumerate(dl):
        whole.append(b)
        own = dl.plan(i).stream
        for j, s in enumerate(m.streams):
            for t in m.tasks:
                if t not in s.tasks: assert (b[1][t.name][own == j] == IGNORE).all()
        if i == stop: state = json.loads(json.dumps(dl.state_dict()))
    m2, dl2 = loader()
    dl2.load_state_dict(state)
    if stop == 4: return
    rest = list(dl2)
    assert len(rest) == 4 - stop and all(equal(a, b) for a, b in zip(whole[stop + 1:], rest))

@given(asked, st.data(), seeds)
def test_the_network_answers_any_batch_with_finite_numbers_and_gradients(kinds, draw, seed):
    ss = streams(kinds, [draw.draw(st.integers(3, 6)) for _ in kinds])
    m = Mixture(ss, 'uniform', bs=draw.draw(st.integers(len(kinds), 8)), seed=seed)
    x, y = MixtureDL(m, 1, transform=PrepareRows(ss)).one_batch()
    contrast = [s.pretext for s in ss if isinstance(s, PretextStream) and isinstance(s.pretext, Contrastive)]
    model = PretrainingModel(HICCAP(config(), [Task('t')], seed=0), m.tasks,
                             draw.draw(st.sampled_from(['before', 'after'])), [c.name for c in contrast])
    out = model(x)
    loss = PretrainingLoss(m.tasks, contrast)
    l = loss(out, y)
    l.backward()
    assert (l.isfinite() and all(v.isfinite().all() for v in out.values())
            and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None))
    with_targets = {t.name for t in m.tasks if (y[t.name] != IGNORE).any()}
    assert set(loss.per_task) <= with_targets and with_targets - set(loss.per_task) <= {c.name for c in contrast}

@given(st.integers(3, 20), st.integers(1, 7), seeds)
def test_a_validation_asks_every_clip_once_and_the_same_again(n, bs, seed):
    ss = streams([None, Matching(), Contrastive()], [n, n, n])
    tasks = Mixture(ss, bs=3).tasks
    dl = StreamsDL(ss, tasks, bs, seed)
    a = list(dl)
    assert sorted(i for k in range(len(dl)) for i in dl.batch_ids(k)) == sorted(3*ss[0].dataset.ids)
    assert all(equal(p, q) for p, q in zip(a, list(StreamsDL(ss, tasks, bs, seed))))

@pytest.mark.parametrize('kw, said', [
    (dict(share=0.), 'share'), (dict(pairs=()), 'pairs'), (dict(pairs=('text_audio', 'text_audio')), 'each once'),
    (dict(negatives='x'), 'negatives')])
def test_matching_refuses(kw, said):
    with pytest.raises(ValueError, match=said): Matching(**kw)
@pytest.mark.parametrize('t', [0., -1., float('nan'), float('inf')])
def test_contrast_refuses(t):
    with pytest.raises(ValueError, match='temperature'): Contrastive(temperature=t)

def test_names_that_moved_are_still_found():
    from hiccap import modalities, pretext, pretraining, robustness
    for name in pretext.__all__:
        if name != 'present_in': assert getattr(pretraining, name) is getattr(pretext, name)
    assert pretraining.PretrainingModel is PretrainingModel and modalities.present_in is pretext.present_in
    for name in robustness.__all__: assert getattr(modalities, name) is getattr(robustness, name)
