"""Feedback: a policy learns the loss of each stream's own rows, in training and validation, and of nothing else."""
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.basics import Callback, CancelBatchException, CancelStepException, DataLoaders
from fastai.callback import schedule  # noqa: F401
from fastai.callback.progress import ProgressCallback
from fastai.learner import noop
from hypothesis import given, strategies as st

from hiccap.callbacks import ProgressLines
from hiccap.clips import Clip, ClipDataset
from hiccap.feedback import MixtureFeedback, mean_over_processes
from hiccap.learner import ClipDL, HICCAPLearner
from hiccap.losses import MultiTaskLoss
from hiccap.mixture import Mixture
from hiccap.mixture_loader import MixtureDL
from hiccap.nan_detector import NanDetector
from hiccap.policies import Policy
from hiccap.streams import Stream
from hiccap.tasks import IGNORE, Task

TASKS = Task('x'), Task('y', 3)


def clips(name, n, seed=0, known=.7):
    "Clips that have labels of some tasks"
    rng = np.random.default_rng([seed, n])
    labels = [{t.name: int(rng.integers(t.n_classes)) for t in TASKS if i < 2 or rng.random() < known}
              for i in range(n)]
    return ClipDataset.from_clips([Clip(f'{name}{i}_0', text=[int(rng.integers(1, 50))], labels=d)
                                   for i, d in enumerate(labels)], TASKS)


class Net(torch.nn.Module):
    "Logits of each task from the first token"
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tables = torch.nn.ModuleDict({t.name: torch.nn.Embedding(50, t.n_classes) for t in TASKS})
    def forward(self, x): return {n: e(x['text'][:, 0]) for n, e in self.tables.items()}


class Listener(Policy):
    "Keeps what it is told"
    config, feedback = {}, 'train'
    def __init__(self, feedback='train', p=None): self.feedback, self.p = feedback, p
    def start(self): self.heard = []
    def shares(self, step): return np.ones(len(self.names)) if self.p is None else np.array(self.p(step), float)
    def update(self, losses, step): self.heard.append((step, losses))


class Watch(Callback):
    "Each training batch: its plan, predictions, targets and the rows drawn so far"
    order, run_valid = 94, False
    def __init__(self): self.seen = []
    def after_loss(self):
        dl = self.learn.dls.train
        self.seen.append((dl.plan(self.learn.iter), {k: v.detach().clone() for k, v in self.pred.items()}, self.yb[0],
                          dict(dl.mixture.seen)))


VALID = clips('v', 23, 5)
SHARED = dict(a=TASKS, b=TASKS[:1])
APART = dict(a=TASKS[:1], b=TASKS[1:])
THREE = dict(a=TASKS, b=TASKS, c=TASKS[1:])


def mixture(tasks=SHARED, p=None, bs=6, known=.7, **kw):
    streams = [Stream(n, clips(n, 12 + 9*i, i, known), t) for i, (n, t) in enumerate(tasks.items())]
    return Mixture(streams, p or Listener(), bs=bs, **{**dict(lag=0), **kw})


def learner(mix, cbs=(), steps=8, feedback=None, valid=VALID, path='.', **kw):
    dls = DataLoaders(MixtureDL(mix, steps=steps, device='cpu'), ClipDL(valid, 10, tasks=mix.tasks, device='cpu'))
    feedback = feedback or MixtureFeedback(**kw)
    learn = HICCAPLearner(dls, Net(), MultiTaskLoss(mix.tasks), lr=.05, cbs=[feedback, *cbs], path=path)
    learn.logger = noop
    learn.remove_cb(learn.progress)
    return learn, feedback


def own_losses(mix, plan, pred, y):
    "The loss of each stream over its own labelled rows, by definition"
    out = {}
    for i, s in enumerate(mix.streams):
        for t in s.tasks:
            at = (torch.as_tensor(plan.stream) == i) & (y[t.name] != IGNORE)
            if at.any(): out.setdefault(s.name, {})[t.name] = float(F.cross_entropy(pred[t.name][at], y[t.name][at]))
    return out


def near(a, b):
    assert a.keys() == b.keys(), (a, b)
    for n in a: assert a[n] == pytest.approx(b[n], rel=1e-5), n


@pytest.mark.parametrize('tasks', [SHARED, APART, THREE], ids=['shared', 'apart', 'three'])
@pytest.mark.parametrize('known', [1., .3])
@pytest.mark.parametrize('p', [None, lambda i: [i % 3 != 1, i % 3 != 0, 1][:2] if i % 5 else [1, 0]],
                         ids=['even', 'moving'])
def test_a_policy_learns_the_loss_of_each_streams_own_rows(tasks, known, p):
    "Also where two streams have a task, where a stream has no row or no labelled one"
    if len(tasks) == 3 and p: p = lambda i: [i % 2, i % 3, 1]
    mix, watch = mixture(tasks, Listener(p=p), bs=4, known=known), Watch()
    learn, feedback = learner(mix, [watch])
    learn.fit(2)
    mix.compose()
    want = [own_losses(mix, *o[:3]) for o in watch.seen]
    assert [step for step, _ in mix.policy.heard] == list(range(16))
    for (_, got), losses in zip(mix.policy.heard, want): near(got, losses)
    for r, (plan, *_, seen), losses in zip(feedback.records, watch.seen, want, strict=True):
        assert (r['step'], r['share'], r['quota']) == (plan.step, list(plan.shares), list(plan.quotas))
        assert r['seen'] == [seen[n] for n in mix.names]
        mean = [np.mean(list(losses[n].values())) if n in losses else None for n in mix.names]
        assert [v is None for v in r['loss']] == [v is None for v in mean]
        assert [v for v in r['loss'] if v is not None] == pytest.approx([v for v in mean if v is not None], rel=1e-5)
    if known < 1: assert any(len(d) < len(tasks) for d in want)


@pytest.mark.parametrize('tasks', [SHARED, APART, THREE], ids=['shared', 'apart', 'three'])
def test_the_loss_of_a_stream_counts_its_own_labelled_rows(tasks):
    "What a mean over several processes is weighed by"
    counted = []
    class Count(Callback):
        order, run_valid = 94, False
        def after_loss(self):
            plan, y = self.dls.train.plan(self.iter), self.yb[0]
            for i, s in enumerate(mix.streams):
                at = torch.as_tensor(plan.stream == i)
                want = {t.name: int((y[t.name][at] != IGNORE).sum()) for t in s.tasks}
                got = feedback.losses_of_stream(i, plan.stream)
                counted.append({n: int(k) for n, (_, k) in got.items()} == {n: k for n, k in want.items() if k})
    mix = mixture(tasks, known=.4)
    learn, feedback = learner(mix, [Count()])
    learn.fit(1)
    assert all(counted) and len(counted) == 8*len(tasks)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 4)), min_size=1, max_size=3))
def test_a_mean_over_processes_is_over_rows(found):
    "In one process the means stay, and without a row there is none"
    losses, rows = zip(*found)
    got = mean_over_processes(losses, rows)
    assert [v is None for v in got] == [n == 0 for n in rows]
    assert [v for v in got if v is not None] == pytest.approx([l for l, n in found if n])


class CountedLoss(MultiTaskLoss):
    "Counts how often it is computed"
    calls = 0
    def task_losses(self, logits, targets):
        self.calls += 1
        return super().task_losses(logits, targets)


@pytest.mark.parametrize('tasks, more', [(APART, 0), (SHARED, 8*2)], ids=['apart', 'shared'])
def test_losses_are_computed_again_only_where_streams_share_a_task(tasks, more):
    "Each of 8 steps and 3 batches of validation computes them once; streams that share a task, once more each"
    learn, _ = learner(mixture(tasks, known=1.))
    learn.loss_func = CountedLoss(TASKS)
    learn.fit(1)
    assert learn.loss_func.calls == 8 + 3 + more


@pytest.mark.parametrize('unmeasured', [0., math.nan])
def test_a_process_without_a_row_has_no_part_in_a_mean(monkeypatch, unmeasured):
    "Each of two processes lacks rows of one task, and both lack those of the last"
    first, second = ([2., unmeasured, 4., unmeasured], [3, 0, 1, 0]), ([unmeasured, 7., 5., unmeasured], [0, 2, 3, 0])
    monkeypatch.setattr('hiccap.feedback.world_size', lambda: 2)
    monkeypatch.setattr(torch.distributed, 'get_backend', lambda: 'gloo')
    sent = []
    for own, other in ((first, second), (second, first)):
        monkeypatch.setattr(torch.distributed, 'all_reduce', lambda x: sent.append(x.clone()))
        mean_over_processes(*other)
        monkeypatch.setattr(torch.distributed, 'all_reduce', lambda x: x.add_(sent[-1]))
        assert mean_over_processes(*own) == [2., 7., (4. + 3*5.)/4, None]


@pytest.mark.parametrize('tasks', [SHARED, APART], ids=['shared', 'apart'])
def test_a_validation_loss_is_the_mean_over_labelled_rows(tasks):
    "Batches of 10, 10 and 3 rows with some labels missing: each row counts once, and each validation by itself"
    mix, weights = mixture(tasks, Listener('valid'), lag=2), []
    class Keep(Callback):
        order = 200
        def after_validate(self): weights.append({k: v.clone() for k, v in self.learn.model.state_dict().items()})
    learn, feedback = learner(mix, [Keep()], steps=4)
    learn.fit(3)
    for _ in range(4): mix.next()
    y = {t.name: torch.as_tensor(VALID.labels[t.name]) for t in TASKS}
    x = torch.tensor([VALID[i].text[0] for i in range(len(VALID))])
    for (step, got), w, kept in zip(mix.policy.heard, weights, feedback.valid, strict=True):
        net = Net()
        net.load_state_dict(w)
        with torch.no_grad(): logits = net(dict(text=x[:, None]))
        loss = {n: float(F.cross_entropy(l, y[n], ignore_index=IGNORE)) for n, l in logits.items()}
        want = {n: {t.name: loss[t.name] for t in ts} for n, ts in tasks.items()}
        near(got, want)
        assert kept['step'] == step and kept['loss'] == pytest.approx(
            {n: np.mean(list(d.values())) for n, d in want.items()})
    assert [step for step, _ in mix.policy.heard] == [3, 7, 11] == [o['step'] for o in feedback.valid]


class MoreValidations(Callback):
    "Validations before and after training besides the one of each epoch, and some that are no part of the fit"
    order = -20  # before fastai turns training on
    def __init__(self, when): self.when = when
    def before_train(self):
        if self.when != 'before': return
        self.learn._do_epoch_validate()
        self.learn.dl = self.dls.train
    def after_train(self):
        if self.when == 'twice': self.learn._do_epoch_validate()
        if self.when != 'apart': return
        self.learn.validate(dl=self.dls.valid.new(VALID.subset([0, 1])))
        self.learn.get_preds()


@pytest.mark.parametrize('when, steps', [('before', [2, 2, 5]), ('twice', [2, 2, 5, 5]), ('apart', [2, 5])])
def test_only_the_first_validation_after_a_step_counts(when, steps):
    "And none before the first step; a validation by itself does not count, in the middle of a fit or after it"
    mix = mixture(APART, Listener('valid'))
    learn, feedback = learner(mix, [MoreValidations(when)], steps=3)
    learn.fit(2)
    assert [o['step'] for o in feedback.valid] == steps
    before = mix.state_dict()
    learn.validate(dl=learn.dls.valid.new(VALID.subset([0, 1])))
    learn.get_preds()
    assert [o['step'] for o in feedback.valid] == steps and mix.state_dict() == before and feedback.sums is None
    mix.compose()
    heard = dict(mix.policy.heard)
    assert [step for step, _ in mix.policy.heard] == [2, 5]
    for o in feedback.valid: near(o['loss'], {n: sum(d.values()) for n, d in heard[o['step']].items()})


def test_a_policy_that_learns_from_validation_needs_clips_of_each_stream():
    only_x = VALID.subset([i for i in range(len(VALID)) if VALID.labels['y'][i] == IGNORE])
    learn, _ = learner(mixture(APART, Listener('valid')), valid=only_x)
    with pytest.raises(ValueError, match="no validation loss of stream 'b': policy Listener"): learn.fit(1)
    learn, feedback = learner(mixture(APART, Listener('train')), valid=only_x)
    learn.fit(1)
    assert feedback.valid[0]['loss'].keys() == {'a'}


class Spoil(Callback):
    "The predictions of one task are NaN in some batches"
    order, run_valid = 1, False
    def __init__(self, at, task='x'): self.at, self.task, self.i = at, task, -1
    def after_pred(self):
        self.i += 1
        if self.i in self.at: self.learn.pred = {**self.pred, self.task: self.pred[self.task]*math.nan}


def test_a_nan_stops_the_run_unless_a_detector_lets_it_continue():
    learn, _ = learner(mixture(APART), [Spoil({1})])
    with pytest.raises(ValueError, match="loss of stream 'a', task 'x' in step 1 is nan"): learn.fit(1)
    mix, watch = mixture(APART), Watch()
    learn, feedback = learner(mix, [Spoil({1, 3}), watch, find := NanDetector('skip', folder=None)], steps=5)
    learn.fit(1)
    mix.compose()
    want = [own_losses(mix, *o[:3]) for o in watch.seen]
    for i in (1, 3): del want[i]['a']
    for (_, got), losses in zip(mix.policy.heard, want, strict=True): near(got, losses)
    assert find.counts['skipped'] == 2 and [r['loss'][0] is None for r in feedback.records] == [
        i in (1, 3) for i in range(5)]


def test_a_batch_that_is_given_up_has_no_loss():
    class GiveUp(Callback):
        order, run_valid = 1, False
        def after_pred(self):
            if self.learn.iter == 2: raise CancelBatchException()
    class Skip(Callback):
        order, run_valid = 1, False
        def before_step(self):
            if self.learn.iter == 3: raise CancelStepException()
    mix = mixture(APART, known=1.)
    learn, feedback = learner(mix, [GiveUp(), Skip()], steps=5)
    learn.fit(1)
    mix.compose()
    assert [(step, sorted(d)) for step, d in mix.policy.heard] == [(i, [] if i == 2 else ['a', 'b']) for i in range(5)]
    assert len(feedback.records) == 5 and feedback.records[2]['loss'] == [None, None]


def test_losses_of_ones_own_are_those_of_their_step():
    mix = mixture(APART, known=1.)
    learn, _ = learner(mix, losses=lambda learn: dict(a=float(learn.iter), y=10. + learn.iter), steps=4)
    learn.fit(1)
    mix.compose()
    assert mix.policy.heard == [(i, dict(a={'': float(i)}, b=dict(y=10. + i))) for i in range(4)]


def test_a_search_for_a_learning_rate_feeds_nothing(tmp_path):
    mix = mixture(APART)
    learn, feedback = learner(mix, path=tmp_path)
    learn.fit(1)
    state, records, valid = mix.state_dict(), list(feedback.records), list(feedback.valid)
    learn.lr_find(num_it=5, show_plot=False)
    assert mix.state_dict() == state and feedback.records == records and feedback.valid == valid


def test_a_search_ends_where_the_loss_is_not_finite(tmp_path):
    mix = mixture(APART)
    learn, feedback = learner(mix, [Spoil({2})], path=tmp_path)
    state = mix.state_dict()
    learn.lr_find(num_it=5, show_plot=False, suggest_funcs=None)
    assert mix.state_dict() == state and feedback.records == [] and learn.iter == 2


def test_feedback_needs_a_mixture_and_the_loss_of_each_task():
    learn, _ = learner(mixture(APART))
    learn.loss_func = torch.nn.CrossEntropyLoss()
    with pytest.raises(TypeError, match='MixtureFeedback without losses= needs the loss of each task'): learn.fit(1)
    learn, _ = learner(mixture(APART))
    learn.dls = DataLoaders(learn.dls.valid, learn.dls.valid)
    with pytest.raises(TypeError, match='MixtureFeedback needs a MixtureDL as dls.train, got ClipDL'): learn.fit(1)


@pytest.mark.parametrize('show', [True, False])
def test_shares_are_shown_with_the_lines_of_progress(show):
    lines = []
    moving = Listener(p=lambda i: [1, 3] if i < 5 else [3, 1])
    learn, feedback = learner(mixture(APART, moving, bs=8), steps=3, show=show,
                              cbs=[ProgressLines(lines=True, write=lines.append)])
    learn.logger = lambda *args: None
    learn.fit(2)
    assert [o for o in lines if 'shares' in o] == [
        'shares after step 3: a 25% b 75%', 'shares after step 6: a 75% b 25%']*show
    feedback.learn = SimpleNamespace(progress=SimpleNamespace(pbar=(bar := SimpleNamespace(comment=None))))
    for training, shown in ((False, None), (True, ' | a 75% b 25%'*show or None)):
        feedback.learn.training = training
        feedback.after_batch()
        assert bar.comment == shown


def test_what_nothing_was_learnt_from_is_summed_up_as_nothing():
    feedback = MixtureFeedback()
    assert (feedback.losses_of, feedback.show, feedback.records, feedback.valid) == (None, True, [], [])
    assert feedback.order > max(NanDetector.order, ProgressCallback.order)  # what these decide comes first
    feedback.mixture = mixture(APART)
    assert feedback.history().columns.tolist() == ['step', 'stream', 'share', 'quota', 'loss', 'seen']
    c = feedback.contributions()
    assert c.index.tolist() == ['a', 'b'] and c.tasks.tolist() == ['x', 'y'] and c.clips.tolist() == [12, 21]
    assert not c[['drawn', 'passes', 'part', 'steps']].values.any()
    assert c[['first_loss', 'last_loss']].isna().values.all()
    for n in (1, 6):  # one row is all rows too
        feedback.records = [dict(step=0, share=[1., 0.], quota=[n, 0], seen=[n, 0], loss=[.5, None])]
        assert feedback.contributions().part.tolist() == [1., 0.]
    assert feedback.history().loss.isna().tolist() == [False, True]


def test_what_is_recorded_can_be_summed_up_saved_and_restored():
    mix = mixture(APART, Listener(p=lambda i: [1, 3]), bs=8, known=.3)
    learn, feedback = learner(mix, steps=6)
    learn.fit(2)
    h, c = feedback.history(), feedback.contributions()
    assert h.shape == (24, 6) and h[h.stream == 'a'].share.eq(.25).all() and h[h.stream == 'b'].quota.eq(6).all()
    assert h[h.stream == 'a'].seen.tolist() == list(range(2, 26, 2))
    for n in 'ab': assert h[h.stream == n].step.tolist() == list(range(12))
    for i, n in enumerate('ab'):
        losses = [r['loss'][i] for r in feedback.records if r['loss'][i] is not None]
        assert c.loc[n, ['first_loss', 'last_loss', 'steps']].tolist() == [losses[0], losses[-1], len(losses)]
        assert c.drawn[n] == mix.seen[n] == c.passes[n]*mix.streams[i].n
    assert c.part.tolist() == [.25, .75] and c.clips.tolist() == [12, 21] and 0 < c.steps['a'] < 12
    other = MixtureFeedback()
    other.load_state_dict(feedback.state_dict())
    assert other.records == feedback.records and other.valid == feedback.valid and len(other.valid) == 2
    state = feedback.state_dict()
    learn.fit(1)
    assert len(state['records']) == 12 and len(feedback.records) == 18 and len(other.valid) == 2
