"""Modality schedules hide only what is there and never all of it; damage is the clip's own, and more damage leaves
less of the same."""
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from hiccap.clips import MODALITIES, Clip, ClipDataset
from hiccap.learner import ClipDL, clip_dls, hiccap_learner
from hiccap.modalities import (ModalityDropout, ModalitySchedule, OneModality, ShowModalities, TimeMasks,
                               lengths_in, modality_schedule, present_in, show, show_runs)
from hiccap import robustness
from hiccap.robustness import KINDS, SUBSETS, corrupted, corruption_scores, only, subset_scores
from hiccap.encoders import FeaturesConfig, TokensConfig
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.padding import collate
from hiccap.pretext import Contrastive, Matching, PretextStream
from hiccap.pretraining import pretraining_learner
from hiccap.mixture import Mixture
from hiccap.streams import Stream
from hiccap.tasks import Task

TASKS = [Task('a'), Task('b', 3)]
CONFIG = HICCAPConfig.tiny(
    text=TokensConfig(
        dict(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)),
    video=FeaturesConfig(4, 8, 1),
    audio=FeaturesConfig(3, 8, 1),
    dropout=0.0,
    attention_dropout=0.0,
    state_dropout=0.0,
    head_dropout=0.0,
)
lengths = st.lists(st.tuples(*[st.integers(0, 5)]*3), min_size=1, max_size=5)


def clips(ns, seed=0, segments=False):
    "Clips of so many tokens, frames and seconds; of none they lack it"
    rng = np.random.default_rng(seed)
    def one(i, n):
        x = dict(text=rng.integers(5, 50, n[0]).tolist() if n[0] else None,
                 video=rng.normal(size=(n[1], 4)).astype(np.float32) if n[1] else None,
                 audio=rng.normal(size=(n[2], 3)).astype(np.float32) if n[2] else None)
        return Clip(f'v{i}_0', **x, labels=dict(a=int(rng.integers(2)), b=int(rng.integers(3))),
                    segments=[0] * (n[0] // 2) + [1] * (n[0] - n[0] // 2) if segments and n[0] else None)
    return ClipDataset.from_clips([one(i, n) for i, n in enumerate(ns)], TASKS)


def schedules():
    p = st.floats(0, .99)
    return st.one_of(
        st.builds(lambda p: ('dropout', dict(p=p)), p),
        st.builds(lambda d: ('dropout', dict(p=d)), st.dictionaries(st.sampled_from(MODALITIES), p)),
        st.just(('subsets', {})),
        st.just(('all', {})),
        st.builds(lambda o, e: ('one_at_a_time', dict(order=o, every=e)),
                  st.lists(st.sampled_from(MODALITIES), min_size=1, max_size=4), st.integers(1, 3)),
    )


@given(schedules(), st.lists(st.tuples(*[st.booleans()]*3), max_size=6), st.integers(0, 9), st.integers(0, 9))
def test_a_schedule_hides_only_what_is_there_and_never_all_of_it(made, rows, step, seed):
    name, kw = made
    present = np.array(rows, bool).reshape(-1, 3)
    one, two = (modality_schedule(name, **kw).shown(present, step, np.random.default_rng(seed)) for _ in range(2))
    assert one.dtype == bool and one.shape == present.shape and (one == two).all()
    assert not (one & ~present).any() and (one.any(1) == present.any(1)).all()
    if name == 'one_at_a_time' and step % kw['every'] == 0: assert (one.sum(1) <= 1).all()
    if name == 'all' or name == 'one_at_a_time' and step % kw['every']: assert (one == present).all()


@given(st.lists(st.tuples(*[st.integers(0, 7)]*3), min_size=1, max_size=6), st.sampled_from(['left', 'right']),
       st.integers(0, 99))
def test_time_masks_hide_runs_of_what_is_there(ns, side, seed):
    inputs = collate(list(clips(ns, seed)), (), side=side, modalities=MODALITIES)[0]
    lengths = lengths_in(inputs)
    assert (lengths == np.array(ns)).all()
    made, rng = TimeMasks(p=1., after=.5), np.random.default_rng(seed)
    assert made.runs(lengths, .49, rng) is None
    runs = made.runs(lengths, .5, np.random.default_rng(seed))
    assert (runs == made.runs(lengths, 1., np.random.default_rng(seed))).all()
    out = show_runs(inputs, runs)
    for j, m in enumerate(MODALITIES):
        for i, (first, end, inside) in enumerate(runs[:, j].tolist()):
            real, shown = inputs[f'{m}_mask'][i], out[f'{m}_mask'][i]
            assert not (shown & ~real).any() and 0 <= first <= end <= ns[i][j]
            wanted = np.array([(first <= k < end) == bool(inside) for k in range(ns[i][j])], bool)
            if m == 'text' and len(wanted) > 2: wanted[[0, -1]] = wanted[1:-1].any()
            assert (shown[real].numpy() == wanted).all()


@pytest.fixture(scope='module')
def net(): return HICCAP(CONFIG, TASKS, seed=0).eval()


@given(lengths, st.data(), st.integers(0, 9))
def test_hidden_is_absent(net, ns, data, seed):
    "Outputs and gradients of the vectors of absence too"
    shown = [data.draw(st.tuples(*[st.booleans()]*3)) for _ in ns]
    whole = clips(ns, seed)
    inputs = show(collate(list(whole), ())[0], shown)
    gone = collate(
        [Clip(c.id, **{m: getattr(c, m) if k else None for m, k in zip(MODALITIES, row)})
         for c, row in zip(whole, shown)],
        (),
    )[0]
    assert (present_in(inputs) == present_in(gone)).all()
    results = []
    for x in (inputs, gone):
        net.zero_grad()
        out = net(x)
        sum(o.square().sum() for o in out.values()).backward()
        results.append(([o.detach() for o in out.values()], [p.grad.clone() for p in net.absent.values()]))
    for a, b in zip(sum(results[0], []), sum(results[1], [])): torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@given(lengths, st.sampled_from(SUBSETS), st.booleans())
def test_only_some_modalities(ns, modalities, segments):
    ds = clips(ns, segments=segments)
    some = only(ds, modalities)
    for c, o in zip(ds, some):
        for m in MODALITIES:
            assert (getattr(o, m) is None if m not in modalities or getattr(c, m) is None
                    else torch.equal(getattr(o, m), getattr(c, m)))
        assert (
            o.labels == c.labels
            and o.id == c.id
            and (o.segments is None if 'text' not in modalities or c.text is None
                 else (o.segments is None) == (c.segments is None))
        )
    for m in MODALITIES:
        assert (some.lengths(m) == [0 if getattr(o, m) is None else len(getattr(o, m)) for o in some]).all()


@given(lengths, st.sampled_from(KINDS), st.sampled_from(SUBSETS), st.floats(0, 1), st.floats(0, 1), st.integers(0, 9),
       st.booleans())
def test_damage_is_the_clips_own_and_more_contains_less(ns, kind, modalities, a, b, seed, segments):
    ds = clips(ns, segments=segments)
    less, more = (corrupted(ds, modalities, kind, x, seed) for x in sorted((a, b)))
    turned = corrupted(ds.subset(range(len(ds))), modalities, kind, max(a, b), seed)
    for i, c in enumerate(ds):
        for m in MODALITIES:
            x, l, o = getattr(c, m), getattr(less[i], m), getattr(more[i], m)
            if x is None or m not in modalities:
                assert (l is None) == (x is None) and (x is None or torch.equal(l, x))
                continue
            if kind == 'drop':
                kept = [[] if v is None else [next(j for j in range(len(x)) if torch.equal(x[j], r)) for r in v]
                        for v in (l, o)]
                if len({tuple(np.atleast_1d(r.numpy())) for r in x}) == len(x):
                    assert set(kept[1]) <= set(kept[0]) and kept[0] == sorted(kept[0])
            else:
                assert o.shape == x.shape and o.dtype == x.dtype
                if m == 'text':
                    assert set(o.tolist()) <= {t for d in ds for t in ([] if d.text is None else d.text.tolist())}
            again = getattr(turned[i], m)
            assert (again is None) == (o is None) and (o is None or torch.equal(again, o))
        if more[i].text is not None and segments: assert len(more[i].segments) == len(more[i].text)
    for m in MODALITIES:
        assert (more.lengths(m) == [0 if getattr(o, m) is None else len(getattr(o, m)) for o in more]).all()


@given(lengths, st.sampled_from(KINDS))
def test_no_damage_and_all_of_it(ns, kind):
    ds = clips(ns)
    for c, o, lost in zip(ds, corrupted(ds, MODALITIES, kind, 0.), corrupted(ds, MODALITIES, 'drop', 1.)):
        assert all((getattr(o, m) is None) == (getattr(c, m) is None)
                   and (getattr(c, m) is None or torch.equal(getattr(o, m), getattr(c, m))) and getattr(lost, m) is None
                   for m in MODALITIES)


def test_noise_has_the_size_of_what_it_replaces():
    ds = clips([(0, 400, 0)]*3)
    loud = ClipDataset.from_clips([Clip(c.id, video=c.video*torch.tensor([1., 10., 0., 100.])) for c in ds], [])
    x = torch.cat([c.video for c in corrupted(loud, 'video', 'noise', 1.)])
    assert torch.allclose(x.std(0), torch.tensor([1., 10., 0., 100.]), rtol=.1) and x[:, 2].eq(0).all()


FULL = [(3, 4, 2)]*6

def test_rows_of_pretext_tasks_stay_whole():
    ds = clips(FULL*4, 1)
    seen = []
    streams = [Stream('labels', ds, TASKS), PretextStream('matching', ds, Matching()),
               PretextStream('contrast', ds, Contrastive())]
    class See(ShowModalities):
        def before_batch(self):
            rows = self.pretext_rows()
            ShowModalities.before_batch(self)
            seen.append((rows.numpy(), present_in(self.xb[0])))
    net = HICCAP(HICCAPConfig.from_dict({**CONFIG.to_dict(), 'matching': True, 'projection': 8}), TASKS, seed=0)
    learn = pretraining_learner(Mixture(streams, 'uniform', bs=9, seed=0), net,
                                dict.fromkeys(('labels', 'matching', 'contrast'), other_videos()), steps=6, seed=0,
                                cbs=[See(OneModality())], metrics=[])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    for rows, present in seen: assert rows.sum() == 6 and present[rows].all() and (present[~rows].sum(1) == 1).all()


def test_a_network_to_which_absence_is_no_value_is_refused():
    ds = clips(FULL*2)
    def fit(schedule):
        learn = hiccap_learner(
            clip_dls(ds, other_videos(), 4, device='cpu'),
            HICCAP(HICCAPConfig.from_dict({**CONFIG.to_dict(), 'absent': 'as_given'}), TASKS, seed=0),
            cbs=[ShowModalities(schedule)])
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    with pytest.raises(ValueError, match="absent='learned'"): fit(ModalityDropout(.5))
    fit(ModalitySchedule())


def other_videos():
    ds = clips(FULL, 5)
    return ClipDataset(['w' + o for o in ds.ids], ds.columns, {k: y.numpy() for k, y in ds.labels.items()}, ds.tasks)


def test_intervals_by_subset_are_over_videos(monkeypatch):
    ds, groups = clips([(3, 4, 2)]*20, 3), []
    ds = ClipDataset([f'v{i//4}_{i}' for i in range(20)], ds.columns, {k: y.numpy() for k, y in ds.labels.items()},
                     ds.tasks)
    def answer(d): return {t.name: np.full((len(d), t.n_outputs), 1/t.n_outputs) for t in TASKS}
    real = robustness.evaluate
    monkeypatch.setattr(robustness, 'evaluate', lambda *args, **kwargs: groups.append(kwargs['groups']) or real(
        *args, **kwargs))
    subset_scores(answer, ds, subsets=[('text',)])
    corruption_scores(answer, ds, amounts=(0.,), kinds=('drop',))
    assert len(groups) > 1 and all(o == ds.groups for o in groups) and len(set(ds.groups)) == 5


def test_scores_by_subset_and_damage_are_those_of_the_changed_clips():
    ds = clips([(3, 4, 2)]*40, 3)
    net = HICCAP(CONFIG, TASKS, seed=1).eval()
    def answer(d):
        dl = ClipDL(d, 7, device='cpu')
        with torch.no_grad(): out = [net(x) for x, _ in dl]
        o = np.argsort(dl.rows, kind='stable')
        return {k: torch.cat([r[k] for r in out]).softmax(1).numpy()[o] for k in out[0]}
    from hiccap.metrics import evaluate
    table = subset_scores(answer, ds, n_boot=10).set_index(['shown', 'task'])
    want = evaluate(answer(only(ds, ('video',))), {k: y.numpy() for k, y in ds.labels.items()}, TASKS, n_boot=0)
    for t in TASKS:
        assert (table.loc[('video', t.name), 'score'] == want.tasks[t.name].scores['auroc']
                and table.loc[('video', t.name), 'trivial'] == 0.5)
    assert len(table) == 7 * 3 and table.loc[('video', 'mean'), 'score'] == pytest.approx(
        np.mean([table.loc[('video', t.name), 'score'] for t in TASKS]))
    curve = (corruption_scores(answer, ds, amounts=(0.0, 1.0), kinds=('drop',)) .query("task == 'a'")
             .set_index(['damaged', 'amount']) .score)
    assert (curve['text', 0.0] == curve['audio', 0.0] == table.loc[(' + '.join(MODALITIES), 'a'), 'score']
            and curve['text', 1.0] == table.loc[('video + audio', 'a'), 'score'])
