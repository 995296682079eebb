"""Sampling: quotas follow shares, every epoch holds every clip once, and a run depends on its seed and configuration
only, however it is read, stopped or divided."""
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from hiccap.clips import Clip
from hiccap.policies import (POLICIES, Curriculum, DynamicDifficulty, DynamicStopAndGo, Fixed, Policy, bound_shares,
                             policy)
from hiccap.mixture import Mixture, check_same_mixture
from hiccap.mixture_loader import MixtureDL, PlannedClips, steps_of
from hiccap.quotas import NEAR, ROW, apportion, repay_debts
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
    rng, r = np.random.default_rng(seed), [0]*n
    for _ in range(60):
        due = [int(v) for v in np.floor(rng.dirichlet(np.full(n, spread))*bs*ROW)]
        due[0] += bs*ROW - sum(due)
        if due[0] < 0: continue
        quota, used, new = apportion(due, r, bs)
        assert sum(quota) == bs and min(quota) >= 0 and sum(used) == bs*ROW and min(used) >= 0
        assert new == [a + u - q*ROW for a, u, q in zip(r, used, quota)] and max(map(abs, new)) < ROW
        r = new


class Adversary(Policy):
    "Gives all to the streams that have got least of what they were given; evenly where `late` is None"
    config = {}
    def __init__(self, seed): self.rng, self.given, self.late = np.random.default_rng(seed), [], None
    def shares(self, step):
        n = len(self.names)
        behind = np.arange(n) if self.late is None else np.flatnonzero(self.late >= -1e-9)
        if self.late is not None and self.rng.random() < .1: behind = behind[:1 + int(self.rng.integers(len(behind)))]
        self.given.append(np.isin(np.arange(n), behind)/len(behind))
        return self.given[-1]


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 99))
def test_an_adversary_cannot_push_a_stream_far_away_and_debts_are_paid_back(n, bs, seed):
    "No rule stays within one row if shares go to the streams that have least: rows are postponed, and paid back"
    def make(): return Mixture([Stream(f's{i}', Numbers(50, f't{i}')) for i in range(n)], Adversary(seed), bs, 0)
    mix, wished, followed, postponed = make(), np.zeros(n), np.zeros(n), False
    for t in range(80 + 4*n):
        mix.policy.late = followed - list(mix.seen.values()) if t < 80 else None
        plan = mix.next()
        wished += mix.policy.given[-1]*bs
        followed += np.array(plan.shares)*bs
        got, debt = np.array(list(mix.seen.values())), np.array(list(mix.debt.values()))
        assert max(map(abs, mix._next['residual'])) < ROW and sum(mix._next['residual']) == 0
        assert np.abs(followed - got).max() < 1 + 1e-9 and np.abs(wished - followed - debt).max() < 1e-6
        assert np.abs(debt).max() < 2 and sum(mix.debt.values()) == pytest.approx(0, abs=1e-9)
        if not debt.any() or postponed: continue
        postponed, second = True, make()
        second.load_state_dict(json.loads(json.dumps(mix.state_dict())))
        assert second.debt == mix.debt and second.state_dict() == mix.state_dict()
    if n >= 5 and bs == 1: assert postponed  # the adversary got so far
    assert not debt.any() and np.abs(wished - got).max() < 1 + 1e-9


@st.composite
def rows_and_debts(draw):
    "Rows due to some streams, and debts with the sum 0"
    n = draw(st.integers(2, 6))
    debt = draw(st.lists(st.integers(-2*ROW, 2*ROW), min_size=n - 1, max_size=n - 1))
    return draw(st.lists(st.integers(0, 3*ROW), min_size=n, max_size=n)), [*debt, -sum(debt)]


@given(rows_and_debts())
def test_repaying_makes_every_debt_smaller_and_takes_from_nobody_what_is_due(rows):
    due, debt = rows
    was = list(due), list(debt)
    out = repay_debts(due, debt)
    assert (due, debt) == was and sum(out) == sum(due) and min(out) >= 0
    for d, o, now in zip(due, debt, out):
        left = o + d - now
        assert abs(left) <= abs(o) and left*o >= 0  # no debt becomes a credit
    if all(d + o >= 0 for d, o in zip(due, debt)): assert out == [d + o for d, o in zip(due, debt)]


@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 9999))
def test_fixed_shares_give_the_rows_whose_last_batch_comes_first(n, bs, seed):
    "And after every batch each stream is within a row of the rows due so far"
    p = np.random.default_rng(seed).dirichlet(np.ones(n))
    due = [int(v) for v in p*bs*ROW]
    due[0] += bs*ROW - sum(due)
    got, r, was = np.zeros(n, int), [0]*n, list(due)
    for t in range(1, 40):
        have = [a + d for a, d in zip(r, due)]
        quota, used, new = apportion(due, r, bs)
        assert due == was == used
        whole = [max(0, (h + NEAR)//ROW) for h in have]
        last = [-(-((w + 1)*ROW - NEAR - h)//d) if d else math.inf for w, h, d in zip(whole, have, due)]
        assert all(q - w in (0, 1) for q, w in zip(quota, whole))
        given = [b for b, q, w in zip(last, quota, whole) if q > w]
        left = [b for b, q, w, h in zip(last, quota, whole, have) if q == w and h >= w*ROW + NEAR]
        assert max(given, default=0) <= min(left, default=math.inf)
        got, r = got + quota, new
        assert all(abs(t*d - g*ROW) < ROW for d, g in zip(due, got.tolist()))


@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.integers(1, 4), st.integers(1, 20))
def test_a_stream_that_is_due_whole_rows_gets_these_in_every_batch(others, k, bs):
    "Whatever else is in the batch, and though shares are not exact"
    mix = Mixture([Stream(f's{i}', Numbers(9, f't{i}')) for i in range(len(others) + 1)],
                  Fixed((k*sum(others)/bs, *map(float, others))), k + bs, 0)
    assert {mix.next().quotas[0] for _ in range(30)} == {k}


@st.composite
def states_of_quotas(draw):
    "Rows due and residuals that moving shares can lead to: often next to a whole row, or to none"
    n, rows, to_those_behind = draw(st.integers(1, 8)), draw(st.integers(1, 4)), draw(st.booleans())
    part = st.one_of(st.integers(1 - ROW, ROW - 1), st.sampled_from([1 - ROW, -1, 0, 1, NEAR, ROW - NEAR, ROW - 1]))
    r = [0]
    while len(r) < n: r += [v := draw(part), -v]
    weights = draw(st.lists(st.one_of(st.just(0), st.integers(1, 1000)), min_size=len(r), max_size=len(r)))
    if to_those_behind: weights = [w if a > 0 else 0 for w, a in zip(weights, r)]
    due = [rows*ROW*w//max(sum(weights), 1) for w in weights]
    due[0] += rows*ROW - sum(due)
    return due, r, rows


@given(states_of_quotas())
def test_whatever_is_due_every_stream_stays_within_a_row_and_least_is_postponed(state):
    due, r, rows = state
    have = [a + d for a, d in zip(r, due)]
    quota, used, new = apportion(due, r, rows)
    assert sum(quota) == rows and sum(used) == rows*ROW and min(quota) >= 0 and min(used) >= 0
    assert new == [h + u - d - q*ROW for h, u, d, q in zip(have, used, due, quota)]
    assert max(map(abs, new)) < ROW and sum(new) == 0
    owed = [max(0, h//ROW) for h in have]
    costs = sorted(c for h, w in zip(have, owed) for c in [h - w*ROW + 1, *[ROW]*(w - 1)][:w])
    assert sum(max(0, d - u) for d, u in zip(due, used)) == sum(costs[:max(0, sum(owed) - rows)])


def test_the_row_that_is_postponed_is_the_one_that_costs_least():
    "Three streams are due a row and a part of one, and the batch has two rows; what is cut is credited to one ahead"
    part = ROW//16
    due, r = [ROW, 8*part, 8*part, 0, 0], [4*part, 12*part, 10*part, -13*part, -13*part]
    quota, used, _ = apportion(due, r, 2)
    assert quota == [1, 1, 0, 0, 0] and used == [ROW, 8*part, 6*part - 1, 2*part + 1, 0]


def test_rows_next_to_due_are_not_postponed_for_what_does_not_count():
    "Two streams are short of a row by the smallest part, and one row is to be given: one waits, and nothing is moved"
    due, r = [ROW//2, ROW//2, 0], [ROW//2 - 9, ROW//2 - 9, 18 - ROW]
    quota, used, new = apportion(due, r, 1)
    assert sorted(quota) == [0, 0, 1] and used == due and max(map(abs, new)) < ROW


def test_states_of_earlier_runs_count_rows_in_these_parts(): assert (ROW, NEAR) == (2**40, 2**20)


@pytest.mark.parametrize('late, first', [(0, 0), (1, 1)])
def test_the_last_batch_of_a_row_is_counted_to_the_smallest_part(late, first):
    "The first stream must have its row in the next batch, or one part later, as the second, which is due more of it"
    due, r = [ROW//2, ROW//4, ROW//4], [-NEAR - late, ROW//4 + 1, NEAR + late - ROW//4 - 1]
    assert apportion(due, r, 1)[0] == [int(i == first) for i in range(3)]


@given(st.lists(st.floats(0, 5), min_size=1, max_size=12).filter(lambda p: sum(p) > 0), st.floats(0, 1),
       st.floats(0, 1))
def test_bounded_shares_keep_their_bounds(p, low, high):
    low, high = low/len(p), 1/len(p) + high*(1 - 1/len(p))
    s = bound_shares(p, low, high)
    assert s.sum() == pytest.approx(1) and s.min() >= low - 1e-7 and s.max() <= high + 1e-7
    for i in range(len(p)):
        for j in range(len(p)):
            if p[i] < p[j]: assert s[i] <= s[j] + 1e-9
            if min(p[i], p[j]) > 1e-6 and all(low + 1e-6 < s[k] < high - 1e-6 for k in (i, j)):
                assert s[i]*p[j] == pytest.approx(s[j]*p[i], rel=1e-3)


def test_bounds_that_fit_but_for_rounding_make_shares():
    for low, high in ((.5*(1 + 9e-10), 1.), (0., .5*(1 - 9e-10))):
        assert bound_shares((1., 2.), low, high).sum() == pytest.approx(1, abs=1e-12)
    for low, high in ((.5*(1 + 1.5e-9), 1.), (0., .5*(1 - 1.5e-9))):
        with pytest.raises(ValueError, match='no 2 shares'): bound_shares((1., 2.), low, high)


# --- each policy, as its docstring has it ----------------------------------------------------------------------

def bound(p, sizes=(90, 40, 10), bs=10):
    "A policy that serves streams of these sizes, called a, b, c, …"
    p = policy(p) if isinstance(p, str) else p
    p.bind([Stream(n, Numbers(k, n)) for n, k in zip('abcdef', sizes)], bs)
    return p


def shares_of(p, step=0):
    s = np.asarray(p.shares(step), float)
    return (s/s.sum()).tolist()


def streams_of(p, steps):
    "Which streams take part in each step, as letters"
    return [''.join(n for n, s in zip('abcdef', p.shares(i)) if s) for i in range(steps)]


DEFAULTS = dict(
    uniform=dict(policy='Uniform'), proportional=dict(policy='Proportional'), fixed=dict(policy='Fixed', weights=()),
    temperature=dict(policy='Temperature', tau=2.), round_robin=dict(policy='RoundRobin', every=1),
    one_at_a_time=dict(policy='OneAtATime', steps=None, passes=1.),
    curriculum=dict(policy='Curriculum', stages=None, steps=None, reverse=False, window=50, threshold=.01),
    dynamic_difficulty=dict(policy='DynamicDifficulty', k=50, relative='raw', smooth=0., floor=0., cap=1., power=1.),
    stop_and_go=dict(policy='DynamicStopAndGo', threshold=.001, patience=2, restart=.005, gap=4, base='uniform'))

def test_a_policy_of_an_earlier_run_has_the_arguments_that_it_had():
    "A saved state is of the same policy by its arguments, so their defaults stay"
    later = DEFAULTS | dict(reverse_curriculum=dict(DEFAULTS['curriculum'], policy='ReverseCurriculum', reverse=True))
    assert {k: policy(k).config for k in POLICIES} == later
    for k in POLICIES:
        assert len({policy(k), policy(k)}) == 2  # each learns by itself, so that no two are the same
        if k != 'fixed': assert np.sum(bound(k).shares(3)) == pytest.approx(1)


@pytest.mark.parametrize('name, kw, says', [
    ('temperature', dict(tau=0.), 'tau must be above 0, got 0.0'),
    ('fixed', dict(weights=(1., 0., 1.)), "share of stream 'b' is 0.0: shares must be above 0 and finite"),
    ('fixed', dict(weights=(1., -1., 1.)), "share of stream 'b' is -1.0"),
    ('fixed', dict(weights=(1., 1., math.inf)), "share of stream 'c' is inf"),
    ('fixed', dict(weights=(1., 1.)), '2 shares for 3 streams: give one for each of a, b, c'),
    ('fixed', dict(weights=dict(a=1., b=1.)), "no share for stream 'c'"),
    ('fixed', dict(weights=dict(a=1., b=1., c=1., d=1.)), "a share for 'd', which is not a stream"),
    ('round_robin', dict(every=0), 'every must be at least 1, got 0'),
    ('one_at_a_time', dict(steps=(2, 0, 1)), r'each stream needs at least 1 batch, got \[2, 0, 1\]'),
    ('curriculum', dict(stages=('a', ())), 'a stage of the curriculum is empty'),
    ('curriculum', dict(stages=('a', ('b', 'd'))), "a stage names 'd', which is not a stream"),
    ('curriculum', dict(stages=('a', 'b')), "stream 'c' is in no stage"),
    ('curriculum', dict(window=0), 'window must be at least 1, got 0'),
    ('curriculum', dict(steps=(1, 0)), r'each stage needs at least 1 batch, got \[1, 0\]'),
    ('dynamic_difficulty', dict(k=0), 'k must be at least 1, got 0'),
    ('dynamic_difficulty', dict(relative='begin'), "relative must be raw, start or chance, got 'begin'"),
    ('dynamic_difficulty', dict(smooth=1.), 'smooth must be at least 0 and below 1, got 1.0'),
    ('dynamic_difficulty', dict(smooth=-.1), 'smooth must be at least 0'),
    ('dynamic_difficulty', dict(floor=.34), 'no 3 shares of at least 0.34 and at most 1 have the sum 1'),
    ('dynamic_difficulty', dict(cap=.33), 'no 3 shares of at least 0 and at most 0.33 have the sum 1'),
    ('stop_and_go', dict(base='even'), "base must be uniform or proportional, got 'even'"),
    ('stop_and_go', dict(patience=0), 'patience and gap must be at least 1, got 0 and 4'),
    ('stop_and_go', dict(gap=0), 'patience and gap must be at least 1, got 2 and 0'),
    ('stop_and_go', dict(threshold=-.1), 'threshold and restart must be at least 0, got -0.1 and 0.005'),
    ('stop_and_go', dict(restart=-.1), 'threshold and restart must be at least 0')])
def test_arguments_that_make_no_policy_are_refused(name, kw, says):
    with pytest.raises(ValueError, match=says): bound(policy(name, **kw))


@pytest.mark.parametrize('name, kw', [
    ('temperature', dict(tau=.1)), ('fixed', dict(weights=(1e-9, 1., 1e9))), ('round_robin', dict(every=1)),
    ('one_at_a_time', dict(steps=1)), ('curriculum', dict(window=1)), ('curriculum', dict(steps=1)),
    ('dynamic_difficulty', dict(k=1, smooth=.99, floor=1/3)), ('dynamic_difficulty', dict(cap=1/3)),
    ('stop_and_go', dict(patience=1, gap=1, threshold=0., restart=0.))])
def test_arguments_at_their_limits_make_one(name, kw):
    assert bound(policy(name, **kw)).shares(1).sum() == pytest.approx(1)


def test_shares_that_stay():
    assert shares_of(bound('uniform')) == pytest.approx([1/3]*3)
    assert shares_of(bound('proportional')) == pytest.approx([9/14, 4/14, 1/14])
    assert shares_of(bound('temperature')) == pytest.approx([3/6, 2/6, 1/6])  # square roots of 90, 40 and 10
    assert shares_of(bound(policy('temperature', tau=1.))) == pytest.approx([9/14, 4/14, 1/14])
    assert shares_of(bound(policy('temperature', tau=1e9))) == pytest.approx([1/3]*3)
    assert shares_of(bound(Fixed((4., 1., 3.)))) == bound(Fixed((4., 1., 3.))).shares(0).tolist() == [.5, .125, .375]
    assert shares_of(bound(Fixed(dict(c=3., a=4., b=1.)))) == [.5, .125, .375]


def test_streams_in_turn():
    assert streams_of(bound('round_robin'), 5) == list('abcab')
    assert streams_of(bound(policy('round_robin', every=2)), 8) == list('aabbccaa')
    assert streams_of(bound(policy('one_at_a_time', steps=(2, 1, 3))), 9) == list('aabcccaab')
    assert streams_of(bound('one_at_a_time', (25, 10, 1)), 8) == list('aaabcaaa')
    assert streams_of(bound(policy('one_at_a_time', passes=2.), (25, 10, 1)), 9) == list('aaaaabbca')
    assert streams_of(bound(policy('curriculum', steps=2)), 6) == ['a', 'a', 'ab', 'ab', 'abc', 'abc']
    assert streams_of(bound(policy('curriculum', steps=(1, 3))), 6) == ['a', 'ab', 'ab', 'ab', 'abc', 'abc']
    assert streams_of(bound(policy('reverse_curriculum', steps=1)), 3) == ['c', 'bc', 'abc']
    stages = ('b', ('a', 'c'))
    assert streams_of(bound(policy('curriculum', stages=stages, steps=1)), 3) == ['b', 'ac', 'ac']
    assert streams_of(bound(policy('reverse_curriculum', stages=stages, steps=1)), 3) == ['ac', 'b', 'b']


def stages_of(p, losses):
    "Streams of each step, where `losses` gives stream -> loss by step for those that take part"
    out = []
    for i in range(len(losses)):
        out += streams_of(p, 1)
        p.update({n: {'x': losses[i]} for n in out[-1]}, i)
    return out


@given(st.integers(1, 4), st.lists(st.sampled_from(['a', 'b', 'ab', 'ac', 'abc']), min_size=1, max_size=5))
def test_a_stage_is_judged_by_its_own_steps(window, stages):
    "A constant loss has converged when two windows are full: of this stage, not of an earlier one"
    stages = [tuple(s) for s in (*stages, 'abc')]
    p = bound(Curriculum(stages=stages, window=window))
    got = stages_of(p, [1.]*(2*window*len(stages)))
    assert got == [''.join(s) for s in stages for _ in range(2*window)]


def test_a_stage_ends_when_all_its_streams_have_converged():
    "`threshold` is the fall, as a fraction, of the mean of one window below that of the window before"
    for last, ends in ((1.2, True), (1., True), (.95, True), (.85, False)):
        p = bound(Curriculum(window=2, threshold=.1))
        assert (stages_of(p, [1., 1., last, last, last])[-1] == 'ab') == ends
    p = bound(Curriculum(stages=(('a', 'b'), ('a', 'b', 'c')), window=1, threshold=.1))
    for i, b in enumerate((1., .5, .25, .25)):
        assert p.stage == 0
        p.update(dict(a=dict(x=1.), b=dict(x=b, y=b)), i)
    assert p.stage == 1
    # a window moves: what fell long ago does not count
    p = bound(Curriculum(window=2, threshold=.1))
    assert stages_of(p, [9., 9., 1., 1., 1., 1., 1.]) == ['a']*6 + ['ab']
    p.update(dict(a=dict(x=1.)), 9)
    assert p.recent['a'] == [1., 1.] and p.recent['c'] == []  # of this stage alone


some_losses = st.one_of(st.just(0.), st.floats(.01, 4))
history = st.lists(
    st.dictionaries(st.sampled_from('abc'), st.dictionaries(st.sampled_from('xy'), some_losses, min_size=1)),
    max_size=9)


@given(history, st.integers(1, 3), st.sampled_from(['raw', 'start']), st.sampled_from([0., .25, .8]),
       st.sampled_from([0., .2]), st.sampled_from([.5, 1.]), st.sampled_from([.5, 1., 2.]))
def test_dynamic_difficulty_is_the_mean_of_the_last_losses(steps, k, relative, smooth, floor, cap, power):
    "By its definition, from all losses that a task ever had"
    p, want = bound(DynamicDifficulty(k, relative, smooth, floor, cap, power)), np.ones(3)/3
    seen = {n: {} for n in 'abc'}
    for i, losses in enumerate(steps):
        for n, d in losses.items():
            for t, v in d.items(): seen[n].setdefault(t, []).append(v)
        if losses and all(seen.values()):
            tasks = [list(d.values()) for d in seen.values()]
            if relative == 'start' and any(any(v[-k:]) and not any(v[:k]) for d in tasks for v in d):
                with pytest.raises(ValueError, match='was 0 in its first'): p.update(losses, i)
                return
            start = lambda v: np.mean(v[:k]) if relative == 'start' and any(v[:k]) else 1.
            d = np.array([np.mean([np.mean(v[-k:])/start(v) for v in d]) for d in tasks])**power
            want = smooth*want + (1 - smooth)*bound_shares(d if d.any() else np.ones(3), floor, cap)
        p.update(losses, i)
        assert p.shares(i) == pytest.approx(want, abs=1e-6)


def test_difficulty_relative_to_the_start():
    "The start is the mean of the first `k` losses, whatever comes later"
    p = bound(DynamicDifficulty(2, 'start'), (9, 9))
    for i, a in enumerate((4., 2., 9., 3., 3.)): p.update(dict(a=dict(x=a), b=dict(x=1.)), i)
    assert p.difficulty('a') == 1. and p.shares(5).tolist() == [.5, .5]


def test_difficulty_relative_to_guessing():
    class Of(Numbers):
        def __init__(self, n, task):
            super().__init__(n)
            self.tasks, self.labels = (task,), {task.name: np.zeros(n)}
    p = DynamicDifficulty(1, 'chance')
    p.bind([Stream('a', Of(5, Task('x', 2))), Stream('b', Of(5, Task('y', 8)))], 4)
    p.update(dict(a=dict(x=1.), b=dict(y=1.)), 0)
    assert p.shares(1) == pytest.approx([.75, .25])  # log 8 = 3 log 2
    with pytest.raises(ValueError, match='chance is known for a task'): p.check(dict(a={'': 1.}))
    p.check(dict(a=dict(x=0.), b=dict(y=9.)))
    with pytest.raises(ValueError, match="loss of task 'y' in stream 'b' is -0.5"): p.check(dict(b=dict(y=-.5)))
    drawn = SimpleNamespace(name='a', n=3, tasks=[SimpleNamespace(name='x', chance=None)])
    policy('dynamic_difficulty').bind([drawn], 4)
    with pytest.raises(ValueError, match="loss of guessing on task 'x' depends on the batch"): p.bind([drawn], 4)


def validated(p, losses, n='b'):
    "Whether a stream takes part after each of its validation losses"
    return [p.update({n: dict(x=v)}, i) or p.going[n] for i, v in enumerate(losses)]


def test_stop_and_go_by_example():
    p = lambda **kw: bound(DynamicStopAndGo(**{**dict(patience=2, threshold=.1, restart=.2), **kw}))
    # the better of the last two must be a tenth below the best before them
    assert validated(p(), [1., .8, .8, .8]) == [True, True, True, False]
    assert validated(p(), [1., .95, .95]) == [True, True, False]
    assert validated(p(), [1., .5, 1.2, .9]) == [True, True, True, False]
    assert validated(p(patience=1), [1., .95]) == [True, False]
    assert validated(p(patience=3), [1., 1., 1., 1.]) == [True, True, True, False]
    # it goes again a fifth above the best ever, and is judged anew from there
    assert validated(p(patience=1), [1., .5, .5, .59, .61, .5, .5]) == [True, True, False, False, True, True, False]
    assert validated(p(patience=1), [1., 1., 1.3, 1.3, 1.1, 1.3]) == [True, False, True, False, False, True]


def test_stopped_streams_take_part_now_and_then():
    p = bound(DynamicStopAndGo(gap=3))
    p.going.update(b=False)
    assert streams_of(p, 5) == ['abc', 'ac', 'ac', 'abc', 'ac']
    p.going.update(a=False, c=False)
    assert streams_of(p, 3) == ['abc']*3
    assert shares_of(p, 1) == pytest.approx([1/3]*3)
    p = bound(DynamicStopAndGo(base='proportional'))
    p.going.update(b=False)
    assert shares_of(p, 1) == pytest.approx([.9, 0, .1]) and shares_of(p, 4) == pytest.approx([9/14, 4/14, 1/14])


LEARNERS = st.sampled_from([
    lambda: Curriculum(window=1), lambda: Curriculum(window=2, stages=('a', 'b', tuple('ab'), tuple('abc'))),
    lambda: DynamicDifficulty(2, 'start', .5, .05, .8, 2.), lambda: DynamicDifficulty(3, 'raw', power=.5),
    lambda: DynamicStopAndGo(patience=1, gap=3, threshold=.05, restart=.02)])


@given(LEARNERS, st.lists(st.lists(st.sampled_from([.5, .9, 1., 1.01, 1.1]), min_size=3, max_size=3), min_size=2,
                          max_size=20), st.integers(0, 19))
def test_a_policys_state_is_all_that_it_knows(make, losses, cut):
    "Through JSON, at any step, and what comes after does not change the state that was taken"
    whole, state = bound(make()), None
    told = [dict(zip('abc', ({'x': v} for v in row))) for row in losses]
    second = bound(make())
    for i, row in enumerate(told):
        if i == min(cut, len(told) - 1):
            taken = whole.state_dict()
            state = json.dumps(taken)
            second.load_state_dict(json.loads(state))
        whole.update(row, i)
        if state: second.update(row, i)
        for step in (0, 1, 2): assert not state or shares_of(whole, step) == shares_of(second, step)
    assert json.dumps(taken) == state and json.dumps(whole.state_dict()) == json.dumps(second.state_dict())


# --- each stream ------------------------------------------------------------------------------------------------

@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 50)), max_size=9))
def test_a_draw_is_a_piece_of_the_endless_sequence_of_its_seed(n, draws):
    "In whatever order pieces are drawn, and whatever seeds were asked for before"
    s = Stream('a', Numbers(n, 'a'))
    for seed, start, rows in draws:
        start = start*n//2
        whole = np.concatenate([Stream('a', Numbers(n, 'a')).order(k, seed) for k in range((start + rows)//n + 1)])
        assert s.draw(start, rows, seed).tolist() == whole[start:start + rows].tolist()


def test_an_order_depends_on_seed_name_and_epoch_alone():
    "It is written down here, since a run of an earlier version continues with it"
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    orders = {(name, seed, k): tuple(Stream(name, Numbers(40, name)).order(k, seed))
              for name in 'ab' for seed in (0, 1) for k in (0, 1)}
    assert len(set(orders.values())) == 8 and np.random.get_state()[1].tolist() == before
    assert Stream('a', Numbers(8, 'a')).order(0, 0).tolist() == [7, 1, 0, 3, 6, 5, 2, 4]
    assert Stream('a', Numbers(8, 'a')).order(2, 5).tolist() == [7, 1, 4, 0, 6, 3, 5, 2]


def test_a_stream_needs_a_label_of_each_task_unless_targets_are_made():
    data = Numbers(4, 'x')
    data.labels = dict(x=np.array([IGNORE, 1, IGNORE, IGNORE]))
    Stream('a', data)  # one is enough
    data.labels = dict(x=np.full(4, IGNORE))
    with pytest.raises(ValueError, match="no clip has a label of task 'x'"): Stream('a', data)
    with pytest.raises(ValueError, match="no clip has a label of task 'other'"): Stream('a', data, [Task('other')])
    assert Stream('a', data, [Task('other')], labelled=False).tasks == (Task('other'),)


class Named(Numbers):
    "Clips with these ids and labels of a task `x`"
    ids = None
    def __init__(self, ids, labels, n_classes):
        super().__init__(len(labels), 'x')
        self.ids, self.labels, self.tasks = list(ids), dict(x=np.array(labels)), (Task('x', n_classes),)


def test_a_fingerprint_changes_with_all_that_a_run_depends_on():
    def of(ids='pqr', labels=(0, 1, 2), classes=3, name='a', **kw):
        return Stream(name, Named(ids, labels, classes), **kw)
    prints = [of(), of('qpr'), of('pqs'), of(['p', 'qr', '']), of(labels=(0, 2, 1)), of(labels=(0, 1, 1)),
              of(labels=(0, 1, IGNORE)), of(classes=4), of(name='b'), of('pqrs', (0, 1, 2, 2))]
    assert len({json.dumps(s.fingerprint()) for s in prints}) == len(prints)
    one = of()
    one.fingerprint()['size'] = 99
    assert one.fingerprint() == of().fingerprint()
    assert of(labelled=False).fingerprint() == of(labels=(2, 2, 2), labelled=False).fingerprint()


# --- each mixture -----------------------------------------------------------------------------------------------

class Listener(Policy):
    "Keeps what it is told, and between which steps"
    config, feedback = {}, 'train'
    def __init__(self, feedback='train', p=None): self.feedback, self.p = feedback, p
    def start(self): self.heard = []
    def shares(self, step):
        self.heard.append(('shares', step))
        return np.ones(len(self.names)) if self.p is None else self.p
    def update(self, losses, step): self.heard.append(('update', step, losses))


@given(st.integers(0, 5), st.integers(1, 15))
def test_the_losses_of_a_step_count_from_the_step_after_the_lag(lag, steps):
    mix = Mixture([Stream('a', Numbers(9, 'a')), Stream('b', Numbers(9, 'b'))], Listener(), bs=4, lag=lag)
    mix.policy.start()
    for t in range(steps):
        mix.next()
        mix.update(dict(a=float(t), b=10. + t))
    want = []
    for t in range(steps):
        s = t - 1 - lag
        if s >= 0: want.append(('update', s, dict(a={'': float(s)}, b={'': 10. + s})))
        want.append(('shares', t))
    assert mix.policy.heard == want
    assert len(mix._losses) <= lag + 1 and len(mix._quotas) <= lag + 1 and not mix._before  # no more than it needs


@given(st.integers(0, 3), st.sets(st.integers(0, 9)))
def test_validation_losses_count_like_those_of_training(lag, when):
    mix = Mixture([Stream('a', Numbers(9, 'a')), Stream('b', Numbers(9, 'b'))], Listener('valid'), bs=4, lag=lag)
    mix.policy.start()
    for t in range(12):
        mix.next()
        mix.update(dict(a=1., b=1.))
        if t in when: mix.update(dict(b=float(t)), kind='valid')
    heard = [e for e in mix.policy.heard if e[0] == 'update']
    assert heard == [('update', t, dict(b={'': float(t)})) for t in sorted(when) if t + 1 + lag < 12]


def test_a_mixture_keeps_a_policy_of_its_own():
    p = DynamicDifficulty(k=1)
    one, two = (Mixture([Stream('a', Numbers(9, 'a')), Stream('b', Numbers(9, 'b'))], p, bs=4, lag=0) for _ in 'ab')
    one.next()
    one.update(dict(a=1., b=3.))
    assert one.next().shares == pytest.approx((.25, .75)) and two.next().shares == (.5, .5) and not hasattr(p, 'last')


def test_shares_with_a_least_quota_are_bounded_and_not_shifted():
    mix = Mixture([Stream(n, Numbers(9, n)) for n in 'abc'], Fixed((6., 3., 1.)), bs=20, min_quota=4)
    assert mix.next().shares == pytest.approx((.8*2/3, .8/3, .2)) == tuple(bound_shares((6, 3, 1), .2))
    assert min(mix.next().quotas) == 4


@given(st.lists(st.sampled_from([0., .1, .3, 1.]), min_size=2, max_size=7).filter(any), st.integers(1, 9),
       st.integers(1, 20))
def test_a_stream_without_a_share_gets_nothing_and_the_others_all(p, bs, steps):
    mix = Mixture([Stream(f's{i}', Numbers(9, f't{i}')) for i in range(len(p))], Listener(None, np.array(p)), bs, 0)
    for _ in range(steps):
        plan = mix.next()
        assert plan.shares == pytest.approx(np.array(p)/sum(p)) and sum(plan.quotas) == bs
        assert all(s == 0 and q == 0 for s, q, w in zip(plan.shares, plan.quotas, p) if w == 0)
    assert sum(mix._next['residual']) == 0 and max(map(abs, mix._next['residual'])) < ROW


def test_other_seeds_draw_other_rows():
    a, b, c = (run(Mixture([Stream('a', Numbers(90, 'a'))], bs=8, seed=s), 3) for s in (0, 1, 1))
    assert rows(a) != rows(b) == rows(c)


def test_losses_by_task_reach_the_stream_that_draws_the_task():
    mix = Mixture([Stream('a', Numbers(9, 'x')), Stream('b', Numbers(9, 'y'))], Listener(), bs=4, lag=0)
    mix.next()
    mix.update(dict(y=2., x=1.))
    assert mix._losses[0, 'train'] == dict(a=dict(x=1.), b=dict(y=2.))
    mix = Mixture([Stream('a', Numbers(9, 'x')), Stream('b', Numbers(9, 'x'))], Listener(), bs=4, lag=0)
    mix.next()
    with pytest.raises(ValueError, match="task 'x' is drawn by the streams a, b"): mix.update(dict(x=1.))


def test_losses_of_another_step_and_of_streams_that_were_not_drawn_are_refused():
    mix = Mixture([Stream('a', Numbers(9, 'x')), Stream('b', Numbers(9, 'y'))], 'round_robin', bs=4, lag=1)
    for _ in range(4): mix.next()
    for step in (-1, 1, 4):
        with pytest.raises(ValueError, match=f'step {step} is none of the last 2'): mix.update(dict(a=1.), step)
    with pytest.raises(ValueError, match="no loss of stream 'b', which had 4 rows in step 3"): mix.update({})
    with pytest.raises(ValueError, match="a loss of stream 'a', which had no row in step 3"):
        mix.update(dict(a=1., b=1.))
    mix.update(dict(b=None))
    mix.update(dict(a=1.), 2)
    with pytest.raises(ValueError, match='kind must be'): mix.update(dict(b=1.), kind='test')


def test_losses_can_be_given_after_resuming_and_are_checked_as_before():
    mix, second = two(), two()
    run(mix, 4)
    plan = mix.next()
    second.load_state_dict(json.loads(json.dumps(mix.state_dict())))
    with pytest.raises(ValueError, match=f"no loss of stream 'b', which had {plan.quotas[1]} rows in step 4"):
        second.update(dict(a=1.))
    for m in (mix, second): m.update(dict(a=1., b=2.))
    assert rows(run(mix, 5)) == rows(run(second, 5)) and mix.state_dict() == second.state_dict()


def test_negative_losses_are_refused_when_they_are_given():
    mix = two()
    mix.next()
    with pytest.raises(ValueError, match="loss of task '' in stream 'b' is -1.0"): mix.update(dict(a=1., b=-1.))
    mix.update(dict(a=1., b=1.))


def test_losses_may_not_come_after_the_plan_that_needs_them():
    mix = two(policy=Listener('valid'), lag=1)
    mix.next()
    mix.compose()
    mix.update(dict(a=1.), kind='valid')  # the plan of step 2 is not made yet
    mix = two(policy=Listener('valid'), lag=1)
    mix.next()
    mix.compose()
    mix.compose()
    with pytest.raises(RuntimeError, match='the plan of step 2 was made before the losses of step 0'):
        mix.update(dict(a=1.), kind='valid')


def test_rows_seen_and_owed_are_those_of_the_batches_used():
    mix = two(policy='uniform', lag=4)
    for _ in range(3): mix.next()
    before = mix.seen, mix.debt, mix.state_dict()
    for _ in range(3): mix.compose()
    assert (mix.seen, mix.debt, mix.state_dict()) == before and sum(mix.seen.values()) == 12


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


class Stored(Numbers):
    "Clips that are the same objects whenever they are read, with the labels of two tasks and texts of two lengths"
    def __init__(self, n, name):
        super().__init__(n, name)
        self.clips = [Clip(f'{name}_{i}', text=[1 + i]*(1 + i % 2), labels={'a': 0, 'b': 1}) for i in range(n)]
    def __getitem__(self, i): return self.clips[i]
    @property
    def ids(self): return [c.id for c in self.clips]


def stored(labelled=True, bs=4, **kw):
    return Mixture([Stream('a', Stored(9, 'a')), Stream('b', Stored(20, 'b'), labelled=labelled)], bs=bs, **kw)


@pytest.mark.parametrize('labelled', [True, False])
def test_rows_have_the_targets_of_their_stream_only_and_clips_stay_as_they_are(labelled):
    mix = stored(labelled)
    dl = MixtureDL(mix, steps=6, device='cpu')
    for i, (x, y) in enumerate(dl):
        of = np.array(dl.batch_streams(i))
        assert y['a'].tolist() == np.where(of == 'a', 0, IGNORE).tolist()
        assert y['b'].tolist() == np.where((of == 'b') & labelled, 1, IGNORE).tolist()
    assert all(c.labels == {'a': 0, 'b': 1} for s in mix.streams for c in s.dataset.clips)


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('pad_to', [None, dict(text=5)])
def test_rows_are_padded_as_asked(side, pad_to):
    dl = MixtureDL(stored(bs=8), steps=2, side=side, pad_to=pad_to, device='cpu')
    for x, _ in dl:
        mask = x['text_mask']
        assert mask.shape[1] == (5 if pad_to else 2) and not mask.all()
        assert mask[:, -1 if side == 'left' else 0].all()


def mark(inputs, targets, plan, rng):
    "A pretext task that gives a row what it takes from the batch, and a random number"
    inputs['sum'] = inputs['text'].sum().expand(len(plan.index)).clone()
    inputs['noise'] = torch.from_numpy(rng.random(len(plan.index)))
    inputs['step'] = torch.full((len(plan.index),), plan.step)
    return inputs, targets


@pytest.mark.parametrize('transform', [None, mark])
@pytest.mark.parametrize('world', [2, 4])
def test_processes_share_what_one_would_have_made(transform, world):
    "Also where a transform looks at all rows of a batch and draws: the same draws in every process"
    whole = list(MixtureDL(stored(bs=8), steps=3, transform=transform, device='cpu'))
    dls = [MixtureDL(stored(bs=8), steps=3, transform=transform, device='cpu', rank=r, world_size=world)
           for r in range(world)]
    for i, batches in enumerate(zip(*dls)):
        for r, (dl, (x, y)) in enumerate(zip(dls, batches)):
            assert len(dl) == 3 and dl.n == 24//world and dl.batch_rows(i) == 8
            own = slice(r, None, world)
            for got, want in ((x, whole[i][0]), (y, whole[i][1])):
                assert got.keys() == want.keys()
                for k in got:
                    n = min(got[k].shape[-1], want[k].shape[-1]) if got[k].ndim > 1 else None
                    assert torch.equal(got[k][..., :n], want[k][own][..., :n]), k
            ids = [dls[0].mixture.streams[s].dataset.ids[j] for s, j in
                   zip(dl.whole_plan(i).stream, dl.whole_plan(i).index)]
            assert dl.batch_ids(i) == ids[own] and [o[0] for o in ids[own]] == dl.batch_streams(i)


def test_a_transform_draws_anew_in_each_step_and_for_each_seed():
    noise = [[x['noise'].tolist() for x, _ in MixtureDL(stored(seed=s), steps=3, transform=mark, device='cpu')]
             for s in (0, 0, 1)]
    assert noise[0] == noise[1] != noise[2] and len({str(v) for n in noise[1:] for v in n}) == 6
    steps = [x['step'][0].item() for x, _ in MixtureDL(stored(), steps=3, transform=mark, device='cpu')]
    assert steps == [0, 1, 2]


def test_looking_at_a_batch_uses_none():
    dl, other = MixtureDL(stored(), steps=3, device='cpu'), MixtureDL(stored(), steps=3, device='cpu')
    seen = dl.one_batch()
    assert dl.mixture.step == 0 and dl.mixture.state_dict() == other.mixture.state_dict()
    it = iter(dl)
    first = next(it)[0]['text']
    assert torch.equal(first, seen[0]['text']) and torch.equal(first, next(iter(other))[0]['text'])
    dl.one_batch()
    assert dl.mixture.step == 1
    dl = MixtureDL(stored(), steps=3, device='cpu')
    for _ in range(2): dl.mixture.compose()  # made ahead and not used
    for _ in range(2): assert torch.equal(dl.one_batch()[0]['text'], first)
    assert dl.mixture.next().step == 0


def test_an_epoch_begins_where_its_mixture_is():
    mix = stored()
    dl = MixtureDL(mix, steps=3, device='cpu')
    mix.next()
    assert (len(dl), dl.done) == (3, 0) and len(ids_of(dl)) == 3 and dl.epoch_start == 1 and mix.step == 4


def test_plans_are_kept_for_a_while_and_counted_as_the_training_loop_counts():
    dl = MixtureDL(stored(), steps=6, device='cpu')
    dl.keep, dl.first = 2, 10
    for _ in range(2):
        start = dl.mixture.step
        for i, _ in enumerate(dl, 10):
            assert dl.plan(i).step == start + i - 10
            if i > 10: assert dl.plan(i - 1).step == start + i - 11
            if i > 11:
                with pytest.raises(IndexError, match=f'no plan of batch {i - 2} is kept'): dl.plan(i - 2)


def test_an_epoch_that_is_broken_off_is_over_and_what_was_read_ahead_is_read_again():
    "Without feedback, with plans made ahead by workers or by hand"
    whole = MixtureDL(stored(), steps=5, device='cpu')
    want = [dl_ids for _ in range(2) for dl_ids in ids_of(whole)]
    dl = MixtureDL(stored(), steps=5, device='cpu')
    got = ids_of(dl, 2)
    dl.mixture.compose()
    dl.mixture.compose()
    assert len(dl) == 5 and got + ids_of(dl) == want[:7] and dl.epoch_start == 2
    second = MixtureDL(stored(), steps=5, device='cpu')
    ids_of(second)
    ids_of(second, 3)
    third = MixtureDL(stored(), steps=5, device='cpu')
    third.load_state_dict(second.state_dict())
    assert (third.epoch_start, third.done, len(third)) == (5, 3, 2) and ids_of(third) == want[8:]
    assert (third.epoch_start, third.done, len(third)) == (5, 0, 5)
    ids_of(third)
    assert third.epoch_start == 10
    whole.load_state_dict(whole.state_dict())
    assert whole.done == 0 and len(whole) == 5  # at the end of an epoch nothing is left of it


def ids_of(dl, stop=None):
    out = []
    for i, _ in enumerate(dl):
        out.append(dl.batch_ids(i))
        if i + 1 == stop: break
    return out


@pytest.mark.parametrize('p', ['uniform', Fixed((1., 5.)), 'round_robin', policy('curriculum', steps=7)])
@pytest.mark.parametrize('passes', [1., 2.5])
@pytest.mark.parametrize('least', [0, 3])
def test_the_steps_of_an_epoch_are_just_enough_for_the_largest_stream(p, passes, least):
    make = lambda: Mixture([Stream('a', Numbers(9, 'a')), Stream('b', Numbers(83, 'b'))], p, bs=8, min_quota=least)
    n, mix = steps_of(make(), passes), make()
    due = np.cumsum([mix.next().shares[1]*8 for _ in range(n)])
    assert due[-1] >= passes*83 - 1e-6 > due[-2] and n == MixtureDL(make(), passes=passes, device='cpu').steps


def test_more_reading_ahead_than_the_lag_is_refused():
    mix = lambda lag, p='dynamic_difficulty': stored(policy=p, lag=lag)
    with pytest.raises(ValueError, match='2 workers read 6 batches ahead, and the mixture\'s lag is 5'):
        MixtureDL(mix(5), steps=2, num_workers=2, prefetch_factor=3, device='cpu')
    MixtureDL(mix(6), steps=2, num_workers=2, prefetch_factor=3, device='cpu')
    MixtureDL(mix(0, 'uniform'), steps=2, num_workers=2, prefetch_factor=3, device='cpu')
    with pytest.raises(ValueError, match='a batch of 4 cannot be shared by 3'):
        MixtureDL(stored(), steps=2, rank=0, world_size=3, device='cpu')


def test_a_loader_without_arguments_is_the_plainest():
    dl, rows = MixtureDL(stored()), PlannedClips(stored().streams, ())
    found = {k: getattr(dl, k) for k in ('prefetch_factor', 'side', 'pad_to', 'transform', 'device', 'rank',
                                         'world_size', 'keep', 'first', 'epoch_start', 'done')}
    assert found == dict(prefetch_factor=2, side='right', pad_to=None, transform=None, device=None, rank=0,
                         world_size=1, keep=1024, first=0, epoch_start=0, done=0)
    assert dl.fake_l.num_workers == 0 and dl.steps == steps_of(stored()) == steps_of(stored(), 1.) == 10
    assert (rows.seed, rows.side, rows.pad_to, rows.transform, rows.rank, rows.world_size) == (
        0, 'right', None, None, 0, 1)


def test_another_loader_of_a_mixture_differs_in_what_is_told():
    class Other(MixtureDL): "A loader of a kind of its own"
    told = dict(mixture=stored(bs=8), steps=3, prefetch_factor=5, side='left', pad_to=dict(text=5), transform=mark,
                device=torch.device('cpu'), rank=1, world_size=2, timeout=7)
    def arguments(o): return {k: getattr(o, k) for k in told}
    dl = MixtureDL(num_workers=1, **told)
    for other in (dl.new(), dl.new(cls=Other), dl.new(bs=3, shuffle=True, drop_last=True, n=1, indexed=True)):
        assert arguments(other) == told and other.fake_l.num_workers == 1 and (other.n, other.bs) == (12, 4)
    assert type(dl.new()) is MixtureDL and type(dl.new(cls=Other)) is Other
    for kw in (dict(steps=4), dict(side='right'), dict(mixture=stored(bs=2)), dict(rank=0), dict(transform=None)):
        assert arguments(dl.new(**kw)) == told | kw


def test_a_loader_that_cannot_be_is_refused():
    for kw, says in ((dict(steps=0), 'an epoch needs at least 1 step, got 0'),
                     (dict(steps=2, rank=2, world_size=2), 'rank must be 0 to 1, got 2'),
                     (dict(steps=2, rank=-1, world_size=2), 'rank must be 0 to 1, got -1')):
        with pytest.raises(ValueError, match=says): MixtureDL(stored(), **kw)
    dl, state = MixtureDL(stored(), steps=4), MixtureDL(stored(), steps=3).state_dict()
    with pytest.raises(ValueError, match='the state has epochs of 3 steps, this loader of 4: make it with steps=3'):
        dl.load_state_dict(state)
    wide, narrow = Stored(3, 'a'), Stored(3, 'b')
    for data, k in ((wide, 4), (narrow, 3)):
        for c in data.clips: c.video = np.zeros((1, k))
    with pytest.raises(ValueError, match='video'):
        MixtureDL(Mixture([Stream('a', wide), Stream('b', narrow)], bs=2), steps=1)


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
    S = SimpleNamespace
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


def three(**kw): return Mixture([Stream(n, Numbers(9, n)) for n in 'abc'], **kw)


def test_the_numbers_of_a_mixture_are_checked():
    mix = three()
    assert (mix.bs, mix.min_quota, mix.seed, mix.lag) == (32, 0, 0, 8) and type(mix.policy) is POLICIES['uniform']
    for kw, says in ((dict(bs=0), 'bs must be a whole number of at least 1, got 0'),
                     (dict(bs=8.), 'bs must be a whole number of at least 1, got 8.0'),
                     (dict(lag=-1), 'lag must be a whole number of at least 0, got -1'),
                     (dict(seed=-1), 'seed must be a whole number of at least 0, got -1'),
                     (dict(min_quota=-1), 'min_quota must be a whole number of at least 0, got -1'),
                     (dict(bs=2), 'a batch of 2 is smaller than the 3 streams: raise bs to 3 or more'),
                     (dict(bs=5, min_quota=2), '3 streams of at least 2 rows do not fit a batch of 5: raise bs to 6')):
        with pytest.raises(ValueError, match=says): three(**kw)
    assert three(bs=3).next().quotas == (1, 1, 1) == three(bs=3, min_quota=1).next().quotas
    assert sum(three(bs=1, min_quota=0, seed=0, lag=0).next().quotas) == 1
    with pytest.raises(ValueError, match='at least one stream'): Mixture([])
    with pytest.raises(ValueError, match="two streams are called 'b'"):
        Mixture([Stream(n, Numbers(9, n)) for n in 'bab'])
    with pytest.raises(TypeError, match='a name in POLICIES or a Policy, got int'): three(policy=3)


def test_streams_may_share_a_task_but_not_its_name_alone():
    def named(*classes): return [Stream(n, Named('pq', (0, 1), k)) for n, k in zip('ab', classes)]
    assert [t.name for t in Mixture(named(3, 3), bs=4).tasks] == ['x']
    with pytest.raises(ValueError, match="task 'x' is .* in stream 'b' and .* in 'a': give one of them another name"):
        Mixture(named(3, 4), bs=4)


def test_a_batch_is_used_after_its_plan_is_made():
    mix = two(policy='uniform')
    mix.rewind()
    with pytest.raises(RuntimeError, match='no plan of step 0 was made: call compose first'): mix.use()
    mix.next()
    with pytest.raises(RuntimeError, match='no plan of step 1 was made'): mix.use()
    assert mix.step == 1


def test_numbers_of_numpy_are_those_of_python_in_a_state():
    def state(whole, part):
        mix = two(policy=Fixed((part(1), part(2))), bs=whole(4), seed=whole(3), lag=whole(2), min_quota=whole(1))
        run(mix, 5)
        return mix.state_dict()
    assert json.loads(json.dumps(state(np.int64, np.float64))) == state(int, float)


def test_the_first_difference_of_two_mixtures_is_named():
    was = two().config()
    def changed(**kw): return was | dict(streams=[was['streams'][0], was['streams'][1] | kw])
    made = changed(labels='Matching negatives=2')
    for old, new, says in (
            (None, was, 'not a state of a mixture'), ({}, was, 'not a state of a mixture'),
            (was, was | dict(streams=was['streams'][::-1]), 'another mixture, of the streams a, b; here are b, a'),
            (was, changed(tasks=[['b', 3]]), r"stream 'b' was drawn for the tasks \[\['b', 2\]\] when"),
            (was, changed(labels='other'), "labels of stream 'b' have changed since"),
            (made, was, "stream 'b' had targets from Matching negatives=2 when the state was saved, here from"),
            (was, made, "stream 'b' had targets from .*, here from Matching negatives=2: give it the same pretext")):
        with pytest.raises(ValueError, match=says): check_same_mixture(old, new)
    for o in (was, made): check_same_mixture(o, json.loads(json.dumps(o)))


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
