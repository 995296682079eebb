"""Sampling: quotas follow shares, every epoch holds every clip once, and a run depends on its seed and configuration
only, however it is read, stopped or divided."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from hiccap.clips import Clip, ClipDataset
from hiccap.policies import (POLICIES, Curriculum, DynamicDifficulty, DynamicStopAndGo, Fixed, Policy, bound_shares,
                             policy)
from hiccap.mixture import Mixture
from hiccap.mixture_loader import MixtureDL, steps_of
from hiccap.quotas import ROW, apportion, repay_debts
from hiccap.streams import Stream
from hiccap.tasks import IGNORE, Task

pytestmark = pytest.mark.filterwarnings('ignore:This DataLoader will create')  # 4 workers on a machine with fewer cores


class Numbers:
    "Clips that are nothing but their number: what a mixture of any size needs of a data set"
    def __init__(self, n, name='x'):
        self.n, self.name, self.tasks, self.labels = n, name, (Task(name),), {name: np.zeros(n, np.int64)}
    def __len__(self): return self.n
    def __getitem__(self, i): return Clip(f'{self.name}{i}', text=[1 + i], labels={self.name: 0, 'all': 1})
    @property
    def ids(self): return [f'{self.name}{i}' for i in range(self.n)]


def policies(n):
    "Any policy for n streams"
    weights = st.lists(st.floats(.01, 10), min_size=n, max_size=n).map(lambda w: Fixed(tuple(w)))
    difficulty = st.builds(DynamicDifficulty, k=st.integers(1, 5), relative=st.sampled_from(['raw', 'start', 'chance']),
                           smooth=st.sampled_from([0.0, 0.5]), floor=st.sampled_from([0.0, 0.5 / n]),
                           cap=st.sampled_from([1.0, min(1.0, 1.5 / n)]), power=st.sampled_from([1.0, 3.0]))
    stages = st.one_of(st.builds(Curriculum, steps=st.integers(1, 9), reverse=st.booleans()),
                       st.builds(Curriculum, window=st.integers(1, 3), reverse=st.booleans()))
    named = st.sampled_from(
        [k for k in POLICIES
         if k not in ('fixed', 'curriculum', 'reverse_curriculum', 'dynamic_difficulty', 'stop_and_go')]
    ).map(policy)
    return st.one_of(
        named,
        weights,
        difficulty,
        stages,
        st.builds(DynamicStopAndGo, patience=st.integers(1, 2), gap=st.integers(1, 4),
                  base=st.sampled_from(['uniform', 'proportional'])),
    )


@st.composite
def mixtures(draw, most=10_000):
    "A function that makes a random mixture, the same each time"
    n = draw(st.integers(1, 12))
    sizes = [draw(st.one_of(st.integers(1, 20), st.integers(1, most))) for _ in range(n)]
    p, quota = draw(policies(n)), draw(st.integers(0, 3))
    bs, seed, lag = (draw(st.integers(max(1, n * quota), max(1, n * quota) + 40)), draw(st.integers(0, 9)),
                     draw(st.integers(0, 9)))
    return lambda: Mixture([Stream(f's{i}', Numbers(k, f't{i}')) for i, k in enumerate(sizes)], p, bs, quota, seed, lag)


def feed(mix, plan, noise=0):
    "Made-up losses that are a function of the step, given as a run would give them"
    rng = np.random.default_rng([plan.step, noise])
    mix.update(
        {n: {t.name: float(rng.gamma(1.0)) for t in s.tasks} for n, s, q in zip(mix.names, mix.streams, plan.quotas)
         if q},
        plan.step,
    )
    if plan.step % 7 == 6: mix.update({n: float(rng.gamma(1.)) for n in mix.names}, plan.step, 'valid')


def run(mix, steps):
    plans = []
    for _ in range(steps):
        plans.append(mix.next())
        feed(mix, plans[-1])
    return plans


def rows(plans): return [(p.stream.tolist(), p.index.tolist()) for p in plans]


@given(mixtures(), st.integers(1, 60))
def test_quotas_follow_shares_and_epochs_hold_every_clip_once(make, steps):
    mix = make()
    plans = run(mix, steps)
    quotas, shares = np.array([p.quotas for p in plans]), np.array([p.shares for p in plans])
    assert (quotas.sum(1) == mix.bs).all() and np.allclose(shares.sum(1), 1) and (shares >= 0).all()
    assert (quotas >= mix.min_quota).all() and (shares*mix.bs >= mix.min_quota - 1e-9).all()
    assert np.abs(np.cumsum(quotas, 0) - np.cumsum(shares, 0)*mix.bs).max() < 1
    assert sum(mix.debt.values()) == pytest.approx(0, abs=1e-9)
    if mix.policy.constant: assert not any(mix.debt.values()) and np.ptp(shares, 0).max() == 0
    for i, s in enumerate(mix.streams):
        seq = np.concatenate([p.index[p.stream == i] for p in plans])
        assert len(seq) == quotas[:, i].sum() == mix.seen[s.name]
        for k in range(0, len(seq), s.n):
            one = seq[k:k + s.n]
            assert len(set(one.tolist())) == len(one) and one.min() >= 0 and one.max() < s.n
    for p in plans: assert np.bincount(p.stream, minlength=len(mix.streams)).tolist() == list(p.quotas)


@given(mixtures(), st.integers(0, 30), st.integers(0, 9), st.integers(1, 25), st.booleans())
def test_a_run_resumes_in_order_whatever_was_read_ahead(make, stop, ahead, more, same):
    whole, first = run(make(), stop + more), make()
    start = run(first, stop)
    for _ in range(min(ahead, first.lag)): first.compose()
    state = json.loads(json.dumps(first.state_dict()))
    if same:
        second = first
        second.rewind()
    else:
        second = make()
        second.load_state_dict(state)
    assert second.seen == first.seen
    rest = run(second, more)
    assert rows(start) + rows(rest) == rows(whole) and [p.shares for p in rest] == [p.shares for p in whole[stop:]]
    assert first.state_dict()['step'] == (stop + more if same else stop)


@given(mixtures(), st.integers(1, 30), st.integers(0, 9))
def test_the_distance_of_reading_ahead_changes_nothing(make, steps, ahead):
    a, b, plans, made = make(), make(), [], []
    whole = run(a, steps)
    for _ in range(steps):
        while len(made) < min(len(plans) + 1 + min(ahead, b.lag), steps): made.append(b.compose())
        b.use()
        plans.append(made[len(plans)])
        feed(b, plans[-1])
    assert rows(plans) == rows(whole) and a.state_dict() == b.state_dict()


@given(mixtures(), st.integers(1, 15), st.integers(1, 4))
def test_ranks_share_one_global_batch(make, steps, world):
    globals_, ranks = run(make(), steps), [run(make(), steps) for _ in range(world)]
    for i, p in enumerate(globals_):
        parts = [r[i].part(k, world) for k, r in enumerate(ranks)]
        taken = [
            (s, j, k) for k, q in enumerate(parts) for n, (s, j) in enumerate(zip(q.stream.tolist(), q.index.tolist()))]
        assert sorted((s, j) for s, j, _ in taken) == sorted(zip(p.stream.tolist(), p.index.tolist())) and len(
            taken) == len(p.stream)
        assert all(q.shares == p.shares and q.quotas == p.quotas for q in parts)
        for s in range(len(p.quotas)): assert np.ptp([(q.stream == s).sum() for q in parts]) <= 1


@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 99), st.sampled_from([.03, .3, 3.]))
def test_rows_stay_within_one_of_the_rows_due_however_they_move(n, bs, seed, spread):
    rng, r, debt = np.random.default_rng(seed), [0]*n, [0]*n
    for _ in range(60):
        due = [int(v) for v in np.floor(rng.dirichlet(np.full(n, spread))*bs*ROW)]
        due[0] += bs*ROW - sum(due)
        if due[0] < 0: continue
        quota, used, new = apportion(due, r, bs)
        assert sum(quota) == bs and min(quota) >= 0 and sum(used) == bs*ROW and min(used) >= 0
        assert new == [a + u - q*ROW for a, u, q in zip(r, used, quota)] and max(map(abs, new)) < ROW
        r = new


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 99), st.booleans())
def test_an_adversary_cannot_push_a_stream_a_row_away(n, bs, seed, pays):
    "No rule stays within one row if shares go to the streams that have least: rows are postponed, and paid back"
    rng, r, debt, seen = np.random.default_rng(seed), [0]*n, [0]*n, 0
    for _ in range(80):
        behind = [i for i in range(n) if r[i] >= 0] or list(range(n))
        if rng.random() < .1: behind = behind[:1 + int(rng.integers(len(behind)))]
        wish = [bs*ROW//len(behind) if i in behind else 0 for i in range(n)]
        wish[behind[0]] += bs*ROW - sum(wish)
        owed = repay_debts(wish, debt) if pays else wish
        assert sum(owed) == bs*ROW and min(owed) >= 0
        quota, used, new = apportion(owed, r, bs)
        assert sum(quota) == bs and min(quota) >= 0 and sum(used) == bs*ROW and min(used) >= 0
        assert new == [a + u - q*ROW for a, u, q in zip(r, used, quota)] and max(map(abs, new)) < ROW and sum(new) == 0
        r, debt, seen = new, [d + w - u for d, w, u in zip(debt, wish, used)], seen + (used != owed)
    assert sum(debt) == 0
    if pays: assert max(map(abs, debt)) < 2*ROW
    if n >= 5 and bs == 1: assert seen  # the adversary got so far


@given(st.lists(st.floats(0, 5), min_size=1, max_size=12).filter(lambda p: sum(p) > 0), st.floats(0, 1),
       st.floats(0, 1))
def test_bounded_shares_keep_their_bounds(p, low, high):
    low, high = low/len(p), 1/len(p) + high*(1 - 1/len(p))
    s = bound_shares(p, low, high)
    assert s.sum() == pytest.approx(1) and s.min() >= low - 1e-7 and s.max() <= high + 1e-7
    for i in range(len(p)):
        for j in range(len(p)):
            if p[i] < p[j]: assert s[i] <= s[j] + 1e-9


# --- what the systems before this one got wrong -------------------------------------------------------------

def test_the_mean_is_of_a_window_and_not_of_a_lifetime():
    mix = Mixture([Stream('a', Numbers(9, 'a')), Stream('b', Numbers(9, 'b'))], DynamicDifficulty(k=5), bs=4, lag=0)
    for t in range(300):
        mix.next()
        mix.update(dict(a=9. if t < 200 else 1., b=3.))
    assert mix.next().shares == pytest.approx((.25, .75))


@pytest.mark.parametrize('losses', [(50., 80., 900.), (1e-3, 1e-4, 1e-5)])
def test_batches_do_not_grow_with_the_losses(losses):
    mix = Mixture([Stream(n, Numbers(50, n)) for n in 'abc'], DynamicDifficulty(k=2, floor=.05), bs=12, lag=0)
    for _ in range(20):
        p = mix.next()
        mix.update({n: v for n, v, q in zip('abc', losses, p.quotas) if q})
        assert len(p.index) == 12


def test_a_small_stream_does_not_end_the_run_or_raise_at_the_end_of_its_pass():
    mix = Mixture([Stream('small', Numbers(3, 's')), Stream('large', Numbers(1000, 'l'))], 'uniform', bs=8)
    for _ in range(400): mix.next()
    assert mix.seen == dict(small=1600, large=1600)


def test_every_pass_is_shuffled_anew():
    s = Stream('a', Numbers(50, 'a'))
    passes = s.draw(0, 500, 0).reshape(10, 50)
    assert len({tuple(p) for p in passes}) == 10 and not any((p == np.arange(50)).all() for p in passes)


def test_no_graph_is_kept():
    mix = Mixture([Stream('a', Numbers(9, 'a'))], DynamicDifficulty(k=5), bs=4)
    mix.next()
    loss = torch.ones(1, requires_grad=True).sum()
    with pytest.raises(TypeError, match='graph'): mix.update(dict(a=loss))
    mix.update(dict(a=loss.detach()))
    assert type(next(iter(mix.state_dict()['losses'][0][2]['a'].values()))) is float


def test_stop_and_go_never_stops_what_improves_and_goes_again_when_it_worsens():
    p = DynamicStopAndGo()
    p.bind([Stream('a', Numbers(9, 'a')), Stream('b', Numbers(9, 'b'))], 4)
    for i in range(50):
        p.update(dict(a=dict(x=.99**i), b=dict(x=1.)), i)
        assert p.going['a'] and p.going['b'] == (i < 2)
    p.update(dict(b=dict(x=1.004)), 50)
    assert not p.going['b']
    p.update(dict(b=dict(x=1.006)), 51)
    assert p.going['b']
    p.update(dict(b=dict(x=1.006)), 52)
    assert p.going['b']
    p.update(dict(b=dict(x=1.006)), 53)
    assert not p.going['b']


class Counted(Numbers):
    read = 0
    def __getitem__(self, i):
        Counted.read += 1
        return super().__getitem__(i)


def test_each_clip_is_read_once_a_draw():
    dl = MixtureDL(Mixture([Stream('a', Counted(20, 'a')), Stream('b', Counted(30, 'b'))], bs=5), steps=8, device='cpu')
    Counted.read = 0
    for _ in dl: pass
    assert Counted.read == 40


# --- loaders ------------------------------------------------------------------------------------------------

def texts(dl, feedback=True, stop=None):
    "Ids of every batch in order, and that the batch holds these clips"
    out = []
    for i, (x, y) in enumerate(dl):
        ids, names = dl.batch_ids(i), dl.batch_streams(i)
        assert [int(o[1:].split('_')[-1]) + 1 for o in ids] == x['text'][:, 0].tolist()
        for t in dl.clip_tasks:
            assert [v != IGNORE for v in y[t.name].tolist()] == [n == 's' + t.name[1:] for n in names]
        out.append(ids)
        if feedback: feed(dl.mixture, dl.plan(i))
        if stop is not None and i + 1 == stop: break
    return out


class Many(Numbers):
    def __getitem__(self, i): return Clip(f'{self.name}_{i}', text=[1 + i], labels={f't{j}': 0 for j in range(3)})
    @property
    def ids(self): return [f'{self.name}_{i}' for i in range(self.n)]


def loader(p, workers, steps=11, **kw):
    mix = Mixture(
        [Stream(f's{i}', Many(k, f't{i}')) for i, k in enumerate((7, 40, 300))], policy(p), bs=6, seed=3, lag=8)
    return MixtureDL(mix, steps=steps, num_workers=workers, device='cpu', **kw)


@pytest.mark.parametrize('p', ['temperature', 'dynamic_difficulty', 'stop_and_go'])
def test_workers_do_not_change_the_order(p):
    zero = [texts(dl := loader(p, 0)), texts(dl)]
    for workers in (1, 4): assert [texts(dl := loader(p, workers)), texts(dl)] == zero


@pytest.mark.parametrize('p', ['temperature', 'dynamic_difficulty'])
def test_a_loader_resumes_in_the_middle_of_an_epoch_with_other_workers(p):
    whole = texts(dl := loader(p, 0)) + texts(dl)
    for a, b, stop in ((4, 0, 5), (0, 1, 1), (1, 4, 11)):
        start = texts(first := loader(p, a), stop=stop)
        second = loader(p, b)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert len(second) == (11 - stop or 11)
        assert start + texts(second) + (texts(second) if stop < 11 else []) == whole


def test_random_numbers_of_the_run_are_left_alone():
    torch.manual_seed(0)
    a = torch.rand(1)
    for w in (0, 1):
        torch.manual_seed(0)
        list(loader('uniform', w, 3))
        assert torch.rand(1) == a


def test_a_fresh_process_continues(tmp_path):
    code = ("import json,sys; sys.path.insert(0, sys.argv[1]); import test_sampling as t; dl ="
            " t.loader('dynamic_difficulty', 1)\ns = json.load(open(sys.argv[2])); dl.load_state_dict(s);"
            " print(json.dumps(t.texts(dl)))")
    whole = texts(loader('dynamic_difficulty', 0))
    first = loader('dynamic_difficulty', 2)
    start = texts(first, stop=4)
    path = tmp_path/'state.json'
    path.write_text(json.dumps(first.state_dict()))
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, os.path.dirname(__file__), path],
                         capture_output=True, text=True, env={**os.environ, 'PYTHONHASHSEED': '7'})
    assert out.returncode == 0, out.stderr
    assert start + json.loads(out.stdout.splitlines()[-1]) == whole


def _rank(rank, world, port, folder):
    "One of two processes: trains on its rows, with losses that are averaged over both"
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.distributed.init_process_group('gloo', rank=rank, world_size=world)
    from hiccap.feedback import mean_over_processes
    dl, out = loader('dynamic_difficulty', 0, rank=rank, world_size=world), []
    for i, _ in enumerate(dl):
        plan = dl.plan(i)
        rng = np.random.default_rng([plan.step, rank])
        counts = [int((plan.stream == s).sum()) for s in range(3)]
        means = mean_over_processes([float(rng.gamma(1.)) for _ in counts], counts)
        dl.mixture.update({n: m for n, m, q in zip(dl.mixture.names, means, plan.quotas) if q})
        out.append([dl.batch_ids(i), plan.shares, plan.quotas])
    json.dump(out, open(os.path.join(folder, f'{rank}.json'), 'w'))
    torch.distributed.destroy_process_group()


def test_two_processes_agree_and_share_the_rows(tmp_path):
    import socket
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    torch.multiprocessing.start_processes(_rank, (2, port, str(tmp_path)), 2, start_method='fork')
    a, b = (json.loads((tmp_path/f'{r}.json').read_text()) for r in (0, 1))
    for (ia, sa, qa), (ib, sb, qb) in zip(a, b):
        assert sa == sb and qa == qb and len(ia) == len(ib) == 3
    assert len({tuple(s) for _, s, _ in a}) > 1


def test_the_progress_bar_shows_the_shares():
    from types import SimpleNamespace as S
    from hiccap.feedback import MixtureFeedback
    cb, bar = MixtureFeedback(), S(comment='0.5000')
    cb.mixture, cb.records, cb.learn = (S(names=['a', 'b']), [dict(share=[0.25, 0.75])],
                                        S(progress=S(pbar=bar), training=True))
    cb.after_batch()
    assert bar.comment == '0.5000 | a 25% b 75%'


# --- bad input ----------------------------------------------------------------------------------------------

def two(**kw):
    return Mixture([Stream('a', Numbers(9, 'a')), Stream('b', Numbers(20, 'b'))],
                   **{**dict(policy=DynamicDifficulty(k=2), bs=4, lag=1), **kw})


@pytest.mark.parametrize('change, says', [
    (dict(seed=1), 'its seed is 0, here it is 1'), (dict(bs=5), 'its bs is 4'), (dict(lag=2), 'its lag is 1'),
    (dict(min_quota=1), 'min_quota'), (dict(policy='uniform'), 'its policy is')])
def test_a_state_of_another_mixture_is_refused_and_changes_nothing(change, says):
    mix = two()
    run(mix, 5)
    state = mix.state_dict()
    other = two(**change)
    run(other, 3)
    before = other.state_dict()
    with pytest.raises(ValueError, match=says): other.load_state_dict(state)
    assert other.state_dict() == before


@pytest.mark.parametrize('data, says', [
    (Numbers(21, 'b'), 'had 20 clips and has 21'), (Numbers(20, 'B'), 'other clips')])
def test_data_that_changed_is_refused(data, says):
    state = two().state_dict()
    data.tasks, data.labels = (Task('b'),), dict(b=np.zeros(len(data), np.int64))
    with pytest.raises(ValueError, match=f"stream 'b' has changed.*{says}"):
        Mixture([Stream('a', Numbers(9, 'a')), Stream('b', data)], DynamicDifficulty(k=2), bs=4, lag=1).load_state_dict(
            state)


def test_labels_that_changed_are_refused():
    state, data = two().state_dict(), Numbers(20, 'b')
    data.labels['b'][3] = 1
    with pytest.raises(ValueError, match="labels of stream 'b' have changed"):
        Mixture([Stream('a', Numbers(9, 'a')), Stream('b', data)], DynamicDifficulty(k=2), bs=4, lag=1).load_state_dict(
            state)


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), torch.tensor(float('nan'))])
def test_a_loss_that_is_no_number_moves_nothing(bad):
    mix = two()
    run(mix, 3)
    mix.next()
    before = mix.state_dict()
    with pytest.raises(ValueError, match="loss of stream 'b' in step 3"): mix.update(dict(a=1., b=bad))
    assert mix.state_dict() == before


def test_a_late_loss_is_refused():
    mix = two()
    mix.next()
    mix.compose()
    with pytest.raises(RuntimeError, match='was given no losses of step 0'): mix.compose()
    mix.update(dict(a=1., b=1.))
    mix.compose()
    with pytest.raises(ValueError, match='given its train losses already'): mix.update(dict(a=1., b=1.))
    mix = two(policy=DynamicStopAndGo())
    for _ in range(3): mix.next()
    mix.compose()
    mix.compose()
    mix.compose()
    with pytest.raises(RuntimeError, match='raise lag above 1'): mix.update(dict(a=1., b=1.), kind='valid')


class Bad(Policy):
    def __init__(self, p): self.p = p
    def shares(self, step): return self.p


@pytest.mark.parametrize('p', [[1, -.1], [float('nan'), 1], [0, 0], [float('inf'), 1], [1]])
def test_shares_that_are_none_are_refused(p):
    with pytest.raises(ValueError, match='policy Bad gives the shares'): two(policy=Bad(p))


def test_epochs_in_passes():
    s = [Stream('a', Numbers(432, 'a')), Stream('b', Numbers(9989, 'b'))]
    for p in ('uniform', 'proportional', 'round_robin', 'one_at_a_time', Curriculum(steps=5)):
        mix = Mixture(s, p, bs=16)
        n = steps_of(mix, 2)
        plans = [mix.next() for _ in range(n)]
        assert mix.seen['b'] >= 2*9989 - 1 and mix.seen['b'] - plans[-1].quotas[1] < 2*9989
    with pytest.raises(ValueError, match='give the steps'): steps_of(Mixture(s, 'curriculum', bs=16))


class Deaf(Policy):
    def shares(self, step): return np.ones(len(self.names))
    def update(self, losses, step): pass


def test_a_policy_that_learns_and_gets_no_losses_is_an_error_that_says_what_to_do():
    with pytest.raises(TypeError, match="policy Deaf defines update .* Add the class attribute feedback = 'train'"):
        two(policy=Deaf())
    class Hears(Deaf): feedback, config = 'train', {}
    class Misspelt(Deaf): feedback = 'training'
    class Constant(Deaf): feedback, constant = 'valid', True
    two(policy=Hears()).next()
    with pytest.raises(TypeError, match="'training'"): two(policy=Misspelt())
    with pytest.raises(TypeError, match='Remove constant'): two(policy=Constant())
    with pytest.raises(TypeError, match='a subclass of hiccap.policies.Policy'): two(policy=Deaf)
    assert two(policy=Curriculum(steps=3)).policy.feedback is None  # its arguments decide


def test_names_that_moved_are_still_found():
    from hiccap import mixture
    assert mixture.MixtureDL is MixtureDL and mixture.steps_of is steps_of and mixture.Stream is Stream
    assert mixture.apportion is apportion and mixture.ROW == ROW
    with pytest.raises(AttributeError, match='MixtureLoader'): mixture.MixtureLoader
