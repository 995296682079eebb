"""Property tests of pretext tasks: which clips are exchanged, which answers are expected, and that the rest of a batch
is not touched."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from hiccap import training
from hiccap.clips import Clip, ClipDataset, MODALITIES
from hiccap.model import HICCAP, HICCAPConfig, PAIRS
from hiccap.padding import collate
from hiccap.losses import MultiTaskLoss
from hiccap.mixture import Mixture
from hiccap.mixture_loader import MixtureDL
from hiccap.pretext import (Contrastive, Matching, PrepareRows, PretextStream, draw_donors, eligible, nt_xent,
                            pair_targets)
from hiccap.pretraining import ChosenRight, PretrainingLoss, StreamsDL, TaskLosses, pretraining_learner
from hiccap.pretraining_model import PretrainingModel
from hiccap.predictions import NETWORK, read_probabilities
from hiccap.pretraining_runs import PretrainRun, pretrain_run, write_example
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

# ---- several pretext streams in one batch

def a_batch(ss, bs=12, seed=0):
    "The first batch of a mixture of these streams, and its plan"
    m = Mixture(ss, bs=bs, seed=seed)
    dl = MixtureDL(m, 1, transform=PrepareRows(ss))
    return *next(iter(dl)), dl.plan(0), m

@given(st.lists(st.sampled_from(['before', 'after']), min_size=1, max_size=3), seeds)
def test_each_matching_stream_has_its_own_exchanges_and_answers(negatives, seed):
    "Every exchange that a target speaks of is in the batch, of every stream, and stays within its stream"
    ss = [PretextStream(f's{i}', data(6, seed + i, gaps=0.), Matching(negatives=n)) for i, n in enumerate(negatives)]
    x, y, plan, _ = a_batch(ss, 12, seed)
    source = x.get('pooled_from', torch.arange(12)[:, None].repeat(1, 3)).numpy()
    assert ('pooled_from' in x) == ('after' in negatives)
    assert (plan.stream[source] == plan.stream[:, None]).all()
    moved = source != np.arange(12)[:, None]
    for i, n in enumerate(negatives):
        own = plan.stream == i
        assert moved[own].any() == (n == 'after')
        for p in PAIRS if n == 'after' else ():
            a, b = map(MODALITIES.index, PAIRS[p])
            assert ((source[own, a] == source[own, b]) == (y[p][own] == 1).numpy()).all()
        if n == 'before':
            clips = [ss[i].dataset[k] for k in plan.index[own]]
            there = collate(clips, (), lengths={m: x[m].shape[1] for m in MODALITIES})[0]
            kept = [(x[m][own] == there[m]).flatten(1).all(1) for m in MODALITIES]
            for p in PAIRS:
                a, b = map(MODALITIES.index, PAIRS[p])
                assert ((kept[a] & kept[b]) == (y[p][own] == 1)).all()

def test_heads_of_pairs_read_the_vectors_of_the_exchange():
    "After fusion, of two streams, next to rows of a contrast that are not fused"
    after = Matching(negatives='after')
    ss = [PretextStream('a', data(6, 0, 0.), after), PretextStream('c', data(6, 1), Contrastive()),
          PretextStream('b', data(6, 2, 0.), after)]
    x, y, plan, m = a_batch(ss)
    model = PretrainingModel(HICCAP(config(), [Task('t')], seed=0), m.tasks, contrasts=['contrastive']).eval()
    out, rest = model(x), np.flatnonzero(plan.stream != 1)
    for i in rest:
        parts = {}
        for k, mod in enumerate(MODALITIES):
            j = x['pooled_from'][i, k].item()
            alone = {n: v[j:j + 1] for n, v in x.items() if n not in ('pooled_from', 'contrast')}
            parts[mod] = model.network.fuse(model.network.encode_unimodal(alone))[mod]
        for p, head in model.network.pairs.items():
            want = head(torch.cat([parts[mod] for mod in PAIRS[p]], 1))[0]
            assert torch.allclose(out[p][i], want, atol=1e-5)
    assert (x['pooled_from'].numpy() != np.arange(12)[:, None]).any(1)[plan.stream == 0].any()
    assert (x['pooled_from'].numpy() != np.arange(12)[:, None]).any(1)[plan.stream == 2].any()

@pytest.mark.parametrize('contrast', ['before', 'after'])
def test_labelled_rows_get_late_fusion_next_to_other_rows(contrast):
    ss = [Stream('labels', data(6, 3)), PretextStream('matching', data(6, 4), Matching()),
          PretextStream('contrast', data(6, 5), Contrastive())]
    x, y, plan, m = a_batch(ss)
    x['text_segments'] = (torch.rand(x['text'].shape, generator=torch.Generator().manual_seed(0)) < .5).long()
    network = HICCAP(config(late_fusion=True), [Task('t')], seed=0)
    for h in network.heads.values(): torch.nn.init.normal_(h[-1].weight)
    model = PretrainingModel(network, m.tasks, contrast=contrast, contrasts=['contrastive']).eval()
    rows = torch.as_tensor(plan.stream == 0)
    alone = {k: v[rows] for k, v in x.items() if k not in ('pooled_from', 'contrast')}
    assert rows.sum() > 1 and torch.allclose(model(x)['t'][rows], network.eval()(alone)['t'], atol=1e-5)

def test_contrastive_streams_take_part_together_and_do_not_compare_their_clips():
    ss = [PretextStream(f's{i}', data(8, 5, 0.), Contrastive()) for i in range(2)]  # the same clips in both
    x, y, plan, m = a_batch(ss, 8)
    assert x['contrast'].all() and (y['contrastive'] >> 32).tolist() == plan.stream.tolist()
    z = F.normalize(torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0)), dim=2)
    apart = [nt_xent(z[plan.stream == i], y['contrastive'][plan.stream == i]) for i in range(2)]
    assert nt_xent(z, y['contrastive']).item() == pytest.approx(sum(apart).item()/2, rel=1e-5)

# ---- losses, scores and validation

def test_the_loss_weighs_every_task_and_passes_its_arguments_on():
    task = Contrastive(pairs='video_text', temperature=.5)
    m = Mixture([Stream('l', data(6)), PretextStream('c', data(6, 1, 0.), task)], bs=8)
    x, y = MixtureDL(m, 1, transform=PrepareRows(m.streams)).one_batch()
    model = PretrainingModel(HICCAP(config(), [Task('t')], seed=0), m.tasks, contrasts=['contrastive'])
    out, weights = model(x), dict(t=2., contrastive=3.)
    loss = PretrainingLoss(m.tasks, [task], weights, .2)
    labels = MultiTaskLoss([Task('t')], label_smoothing=.2)(out, y)
    contrast = nt_xent(out['contrastive'], y['contrastive'], task.pairs, .5)
    assert loss(out, y).item() == pytest.approx((2*labels + 3*contrast).item(), rel=1e-5)
    assert list(loss.per_task) == [t.name for t in m.tasks]

def test_the_loss_of_an_epoch_weighs_rows_and_not_batches():
    metric, loss = TaskLosses(), MultiTaskLoss([Task('a'), Task('b')], dict(b=3.))
    metric.reset()
    assert metric.value is None
    rng, rows = torch.Generator().manual_seed(0), []
    for n, known in ((5, 'ab'), (1, 'a'), (3, 'b')):
        pred = {k: torch.randn(n, 2, generator=rng) for k in 'ab'}
        y = {k: torch.zeros(n).long() if k in known else torch.full((n,), IGNORE) for k in 'ab'}
        loss(pred, y)
        metric.accumulate(SimpleNamespace(loss_func=loss, y=y))
        rows.append((pred, y))
    a, b = (F.cross_entropy(*(torch.cat([r[i][k] for r in rows]) for i in (0, 1)), ignore_index=IGNORE) for k in 'ab')
    assert metric.value == pytest.approx((a + 3*b).item(), rel=1e-5)
    metric.reset()
    assert metric.value is None

def test_the_score_of_contrast_counts_choices_over_all_batches():
    metric = ChosenRight(Contrastive(pairs=('text_audio', 'video_text'), name='c'))
    metric.reset()
    assert metric.name == 'c_accuracy' and np.isnan(metric.value) and np.isnan(metric.chance)
    z = torch.eye(3)[:, None].repeat(1, 3, 1)
    wrong, audio = z[:2].clone(), MODALITIES.index('audio')
    wrong[:, audio] = wrong[:, audio].roll(1, 0)  # no text finds its audio
    metric.accumulate(SimpleNamespace(pred=dict(c=z), y=dict(c=torch.arange(3))))              # 12 of 12, one of 5
    metric.accumulate(SimpleNamespace(pred=dict(c=wrong), y=dict(c=torch.tensor([4, 5]))))  # 4 of 8, one of 3
    metric.accumulate(SimpleNamespace(pred=dict(c=z[:1]), y=dict(c=torch.zeros(1).long())))    # no choice
    metric.accumulate(SimpleNamespace(pred={}, y={}))                                          # not in this batch
    assert metric.value == pytest.approx(16/20) and metric.chance == pytest.approx((12/5 + 8/3)/20)
    metric.reset()
    assert np.isnan(metric.value)

def test_validation_draws_are_those_of_no_training_step_and_differ_between_batches():
    ss = [PretextStream('m', data(8, 3, 0.), Matching())]
    tasks = Mixture(ss, bs=4).tasks
    check = StreamsDL(ss, tasks, 4, 7)
    assert [p.step >> 40 for p in check.plans] == [1, 1] and len({p.step for p in check.plans}) == 2
    asked = [tuple(y['text_audio'].tolist()) for seed in range(6) for _, y in StreamsDL(ss, tasks, 4, seed)]
    assert len(set(asked[::2])) > 1 and asked[::2] != asked[1::2]

@pytest.mark.parametrize('world', [1, 2])
def test_a_batch_of_a_validation_names_its_clips(world):
    ss = [Stream('l', data(7, 2, 0.)), PretextStream('m', data(6, 4, 0.), Matching())]
    tasks = Mixture(ss, bs=4).tasks
    for rank in range(world):
        dl = StreamsDL(ss, tasks, 4, rank=rank, world_size=world)
        again, other = dl.new(), dl.new(bs=2, num_workers=0)
        assert len(dl) == 4 and len(other) == 7 and [dl.batch_rows(i) for i in range(4)] == [4, 3, 4, 2]
        for i, (batch, same) in enumerate(zip(dl, again)):
            assert equal(batch, same) and len(batch[1]['t']) == len(dl.batch_ids(i))
            clips = {c.id: c for c in (ss[i//2].dataset[j] for j in range(ss[i//2].n))}
            for id, y in zip(dl.batch_ids(i), batch[1]['t'].tolist()):
                assert y == (clips[id].labels['t'] if i < 2 else IGNORE)
        plain = dl.new(ss[0].dataset)
        assert (plain.bs, plain.rank, plain.world_size) == (4, rank, world)
    read = [i for r in range(world) for k in range(4)
            for i in StreamsDL(ss, tasks, 4, rank=r, world_size=world).batch_ids(k)]
    assert sorted(read) == sorted([*ss[0].dataset.ids, *ss[1].dataset.ids])

def test_labelled_validation_rows_have_similar_lengths():
    "Pretext rows do not, as the other rows of their batch are their negatives"
    ds = data(40, 6, .3)
    for s in (Stream('l', ds), PretextStream('m', ds, Matching())):
        lengths = sum(ds.lengths(m) for m in MODALITIES)
        n = [lengths[i] for p in StreamsDL([s], s.tasks, 5).plans for i in p.index]
        assert (sorted(n, reverse=True) == n) == s.labelled

# ---- the learner

def network(tasks=(Task('t'),)): return HICCAP(config(), tasks, seed=0)
def elsewhere(n, seed):
    "Clips of other videos"
    return ClipDataset.from_clips(
        [a_clip(100 + i, r, 50 + i//2) for r in [np.random.default_rng(seed)] for i in range(n)], [Task('t')])

def test_a_learner_is_made_of_what_it_is_given(tmp_path):
    ss = [Stream('l', data(8)), PretextStream('c', data(8, 1), Contrastive(negatives='after', temperature=.3))]
    m = Mixture(ss, bs=4, seed=5)
    learn = pretraining_learner(m, network(), dict(c=elsewhere(6, 2)), steps=3, weights=dict(t=.5), label_smoothing=.1,
                                device='cpu', path=tmp_path, seed=9)
    assert learn.model.contrast == 'after' and learn.model.contrasts == ('contrastive',) and learn.seed == 9
    assert learn.loss_func.weights == dict(t=.5, contrastive=1.)
    assert learn.loss_func.with_classes.label_smoothing == .1
    assert learn.loss_func.contrastive['contrastive'].temperature == .3
    assert len(learn.dls.train) == 3 and learn.dls.valid.seed == 5 and learn.dls.valid.bs == 4
    (valid,) = learn.dls.valid.streams
    assert valid.pretext == ss[1].pretext and valid.name == 'c' and type(learn.recorder.loss) is TaskLosses
    assert [type(o) for o in learn.metrics][-1] is ChosenRight and learn.network is learn.model.network
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert np.isfinite(learn.recorder.values[0][1]) and m.step == 3

CONTRAST = PretextStream('c', data(8, 1), Contrastive())

@pytest.mark.parametrize('ss,valid,message', [
    ([CONTRAST], {}, 'no validation clips: give a data set for one or more of c'),
    ([CONTRAST], dict(d=elsewhere(4, 0)), "validation clips for 'd', which is not a stream"),
    ([CONTRAST], dict(c=data(4, 1)), "stream 'c': .* videos are in training and validation"),
    ([CONTRAST, PretextStream('d', data(8, 1), Contrastive(temperature=.5))], dict(c=elsewhere(4, 0)),
     "two contrastive streams have the task 'contrastive' with different arguments"),
    ([CONTRAST, PretextStream('d', data(8, 1), Contrastive(name='other', negatives='after'))], dict(c=elsewhere(4, 0)),
     'disagree on negatives')])
def test_a_learner_that_cannot_be_made_says_why(ss, valid, message):
    with pytest.raises(ValueError, match=message): pretraining_learner(Mixture(ss, bs=4), network(()), valid)

def test_names_that_moved_are_still_found():
    from hiccap import modalities, pretext, pretraining, robustness
    for name in pretext.__all__:
        if name != 'present_in': assert getattr(pretraining, name) is getattr(pretext, name)
    assert pretraining.PretrainingModel is PretrainingModel and modalities.present_in is pretext.present_in
    moved = [o for o in robustness.__all__ if o != 'subsets_of']
    for name in moved: assert getattr(modalities, name) is getattr(robustness, name)


# a run

def test_a_run_chooses_thresholds_and_differences_by_its_operating_point_and_keeps_all_models(tmp_path, monkeypatch):
    points, real = [], training.calibrated_predictions
    monkeypatch.setattr(training, 'calibrated_predictions', lambda *args, **kwargs: points.append(args[4]) or real(
        *args, **kwargs))
    run = PretrainRun.from_yaml(write_example(tmp_path/'example', n=240)).but(epochs=1, operating_point='accuracy')
    result = pretrain_run(run, tmp_path/'out')
    metrics, labelled = json.loads((tmp_path/'out/metrics.json').read_text()), [s for s in run.streams if not s.pretext]
    assert result.differences.keys() == {s.name for s in labelled} == metrics['thresholds'].keys()
    for name, models in result.differences.items():
        assert models and all(d['score'] == 'accuracy' for of in models.values() for d in of.values())
        kept = read_probabilities(tmp_path/'out', name)
        assert {NETWORK, *models} <= kept.keys()
    assert points == ['accuracy']*len(labelled)
