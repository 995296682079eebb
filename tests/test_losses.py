"""Losses: the same as a plain loop over labelled rows, whatever is missing; and regularizers that do what they say."""
import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from hiccap.losses import (REGULARIZERS, MultiTaskLoss, Regularizer, balanced_weights, check_batch,
                           check_per_task, loss_number)
from hiccap.tasks import IGNORE, Task

TASKS = Task('a'), Task('b', 3, class_weights=(1., 2., .5)), Task('c', 4)
proof = pytest.mark.proof
floats = st.floats(-1e4, 1e4, width=16)


@st.composite
def batches(draw, tasks=TASKS, values=floats):
    "Logits and targets in which any row, and any task, may lack its label"
    n = draw(st.integers(1, 5))
    logits = {
        t.name: torch.tensor(
            draw(st.lists(st.lists(values, min_size=t.n_classes, max_size=t.n_classes), min_size=n, max_size=n)))
        for t in tasks
    }
    targets = {
        t.name: torch.tensor(
            draw(st.lists(st.one_of(st.just(IGNORE), st.integers(0, t.n_classes - 1)), min_size=n, max_size=n)))
        for t in tasks
    }
    return logits, targets


def plain(x, y, weights=None, smoothing=0.):
    "Weighted mean of -log softmax over labelled rows, one number at a time, None without one; and the rows' own losses"
    total, mass, rows = 0., 0., []
    for row, k in zip(x.double().tolist(), y.tolist()):
        if k == IGNORE: rows.append(0.); continue
        top = max(row)
        z = top + math.log(sum(math.exp(v - top) for v in row))
        w = weights or [1.]*len(row)
        own = (1 - smoothing)*w[k]*(z - row[k]) + smoothing/len(row)*sum(w[c]*(z - v) for c, v in enumerate(row))
        total, mass = total + own, mass + w[k]
        rows.append(own)
    return (total/mass if mass else None), rows


@proof
@given(batches(), st.lists(st.floats(0, 3), min_size=3, max_size=3), st.sampled_from([0., .2]))
def test_the_loss_is_that_of_a_plain_loop(batch, weights, smoothing):
    logits, targets = batch
    loss = MultiTaskLoss(TASKS, dict(zip('abc', weights)), smoothing)
    value, want = loss(logits, targets).item(), 0.
    for t, w in zip(TASKS, weights):
        own, _ = plain(logits[t.name], targets[t.name], t.class_weights, smoothing)
        assert (own is None) == (t.name not in loss.per_task)
        if own is None: continue
        assert loss.per_task[t.name].item() == pytest.approx(own, rel=1e-4, abs=1e-4)
        want += w*own
    assert value == pytest.approx(want, rel=1e-4, abs=1e-4)


@proof
@given(batches())
def test_reduction_none_is_a_loss_a_row(batch):
    logits, targets = batch
    rows = MultiTaskLoss(TASKS, reduction='none')(logits, targets)
    want = sum(np.array(plain(logits[t.name], targets[t.name], t.class_weights)[1]) for t in TASKS)
    assert rows.shape == (len(want),) and np.allclose(rows, want, rtol=1e-4, atol=1e-4)
    nobody = {k: torch.full_like(y, IGNORE) for k, y in targets.items()}
    assert MultiTaskLoss(TASKS, reduction='none')(logits, nobody).shape == (len(want),)
    assert MultiTaskLoss(TASKS)(logits, nobody).shape == ()
    alone = MultiTaskLoss(TASKS[:1])(dict(a=logits['a'].requires_grad_()), nobody)
    assert alone.item() == 0 and alone.requires_grad


@proof
@given(batches(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.sampled_from(['mean', 'none']))
def test_any_pattern_of_missing_labels_is_finite_and_teaches_only_the_labelled(batch, dtype, reduction):
    logits, targets = batch
    logits = {k: v.to(dtype).requires_grad_() for k, v in logits.items()}
    loss = MultiTaskLoss(TASKS, reduction=reduction)
    value = loss(logits, targets)
    assert (value.isfinite().all() and value.dtype == torch.float32
            and all(v.isfinite().all() and not v.requires_grad for v in loss.per_task.values()))
    value.sum().backward()
    nobody = all((y == IGNORE).all() for y in targets.values())
    assert nobody == (not loss.per_task) and (not nobody or not value.any())
    for t in TASKS:
        g, known = logits[t.name].grad, targets[t.name] != IGNORE
        if not known.any(): assert g is None or (nobody and not g.any())
        else: assert g.isfinite().all() and not g[~known].any()


@proof
@given(batches())
def test_an_absent_task_has_no_vote(batch):
    "Leaving a task out of the loss, or all of its labels, is the same; its logits may be anything"
    logits, targets = batch
    without = {**targets, 'b': torch.full_like(targets['b'], IGNORE)}
    wild = {**logits, 'b': torch.full_like(logits['b'], torch.nan)}
    others = MultiTaskLoss([TASKS[0], TASKS[2]])
    for x in (logits, wild):
        loss = MultiTaskLoss(TASKS)
        assert (
            loss(x, without).item() == others(logits, targets).item() and loss.per_task.keys() == others.per_task.keys()
        )


numbers = st.floats(-100, 100, width=32)

@proof
@given(st.lists(st.tuples(numbers, st.none() | numbers), min_size=1, max_size=6), st.sampled_from(['mse', 'huber']),
       st.sampled_from([.25, 1., 3.]))
def test_the_loss_of_a_number_is_that_of_a_plain_loop(rows, kind, deviation):
    "In deviations of the labels: the square of the error, which the Huber loss continues by a line from 1 on"
    task, x = Task('mood', kind='regression', loss=kind, deviation=deviation), torch.tensor([[p] for p, _ in rows])
    y, want, slope = torch.tensor([math.nan if l is None else l for _, l in rows]), [], []
    for (p, l), x_l in zip(rows, y.tolist()):
        e = 0. if l is None else (p - x_l)/deviation
        line = kind == 'huber' and abs(e) > 1
        want.append(2*abs(e) - 1 if line else e*e)
        slope.append((math.copysign(2, e) if line else 2*e)/deviation)
    alone, total = MultiTaskLoss(task, reduction='none'), MultiTaskLoss(task)
    assert alone(dict(mood=x), dict(mood=y)).tolist() == pytest.approx(want, rel=1e-4, abs=1e-4)
    x.requires_grad_()
    n = sum(l is not None for _, l in rows)
    loss = total(dict(mood=x), dict(mood=y))
    assert loss.item() == pytest.approx(sum(want)/max(n, 1), rel=1e-4, abs=1e-4)
    loss.backward()
    assert x.grad.flatten().tolist() == pytest.approx([o/max(n, 1) for o in slope], rel=1e-4, abs=1e-4)


def test_rows_without_a_label_do_not_thin_the_mean():
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 0])
    more = dict(a=torch.cat([x, 7*x]))
    assert MultiTaskLoss(TASKS[:1])(more, dict(a=torch.cat([y, torch.full((3,), IGNORE)]))).item() == pytest.approx(
        MultiTaskLoss(TASKS[:1])(dict(a=x), dict(a=y)).item())


def test_class_weights_move_with_the_loss_and_stay_out_of_its_state():
    loss = MultiTaskLoss(TASKS)
    assert not loss.state_dict() and loss.to('meta').class_weights_1.is_meta
    x, y = {t.name: torch.zeros(2, t.n_classes) for t in TASKS}, {t.name: torch.tensor([0, 1]) for t in TASKS}
    assert MultiTaskLoss(TASKS).half()(x, y).isfinite()  # weights in half precision, logits in full


@pytest.mark.parametrize('change, message', [
    (lambda x, y: x.pop('b'), "no logits for task 'b'; there are a, c"),
    (lambda x, y: y.pop('c'), "no targets for task 'c'"),
    (lambda x, y: x.update(b=torch.zeros(2, 2)), r"logits of task 'b' have shape \(2, 2\), expected \(B, 3\)"),
    (lambda x, y: x.update(a=torch.zeros(2)), 'expected'),
    (lambda x, y: y.update(a=torch.zeros(3).long()), r"targets of task 'a' have shape \(3,\) for 2 rows"),
    (lambda x, y: y.update(c=torch.tensor([IGNORE, 4])), "target 4 of task 'c' in row 1 is not in 0..3"),
    (lambda x, y: y.update(c=torch.tensor([-1, 0])), "target -1 of task 'c' in row 0")])
def test_what_does_not_fit_is_named(change, message):
    x, y = {t.name: torch.zeros(2, t.n_classes) for t in TASKS}, {t.name: torch.tensor([0, 1]) for t in TASKS}
    change(x, y)
    with pytest.raises(ValueError, match=message): MultiTaskLoss(TASKS)(x, y)


def test_settings_that_cannot_be_are_refused():
    for kw, message in ((dict(weights=dict(z=1.)), 'weights for no task: z'),
                        (dict(weights=dict(a=-1.)), "weight of task 'a'"),
                        (dict(weights=dict(a=math.nan)), "weight of task 'a'"),
                        (dict(weights=dict(b=math.inf)), "weight of task 'b'"),
                        (dict(reduction='sum'), 'reduction must be'), (dict(label_smoothing=1.5), 'label_smoothing'),
                        (dict(label_smoothing=-.1), 'label_smoothing')):
        with pytest.raises(ValueError, match=message): MultiTaskLoss(TASKS, **kw)
    assert MultiTaskLoss(TASKS, dict(b=0.), 1.).weights == dict(a=1., b=0., c=1.)
    fresh = MultiTaskLoss(TASKS)
    assert fresh.losses == fresh.per_task == {} and fresh.label_smoothing == 0.
    with pytest.raises(ValueError, match='no task to learn'): MultiTaskLoss(())({}, {})
    assert check_batch(TASKS[0], dict(a=torch.zeros(1, 2)), dict(a=torch.zeros(1, dtype=torch.long)))[0].shape == (1, 2)


@given(st.lists(st.integers(-1, 2), min_size=1, max_size=30))
def test_balanced_weights_let_each_class_weigh_the_same(labels):
    y = torch.tensor([IGNORE if o < 0 else o for o in labels])
    counts = [labels.count(c) for c in range(3)]
    if 0 in counts:
        with pytest.raises(ValueError, match=f'class {counts.index(0)} has no labelled row'): balanced_weights(y, 3)
        return
    w = balanced_weights(y, 3)
    assert np.allclose(np.multiply(w, counts), sum(counts)/3)  # the same mass each, and 1 on average over the rows
    with pytest.raises(ValueError, match='target 2'): balanced_weights(y, 2)
    wrong = torch.cat([y, torch.tensor([-1])])
    with pytest.raises(ValueError, match='target -1 is not in 0..2'): balanced_weights(wrong, 3)


# Regularizers

def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def learnt(kind, wd=0., lr=.1, start=None):
    "One AdamW step on a fixed batch; the reported loss and the weights after"
    m = start or net()
    opt = torch.optim.AdamW(m.parameters(), lr=lr, weight_decay=wd)
    x, y = torch.ones(2, 3), torch.tensor([0, 1])
    loss = MultiTaskLoss(TASKS[:1])(dict(a=m(x)), dict(a=y))
    if (p := Regularizer(kind, .1).penalty(m)) is not None: loss = loss + p
    loss.backward()
    opt.step()
    return loss.item(), list(m.parameters())


def test_norm_is_a_tenth_of_the_sum_of_norms_and_its_gradient_the_direction():
    m = net()
    with torch.no_grad(): m[2].bias.zero_()
    p = Regularizer('norm', .1).penalty(m)
    assert p.item() == pytest.approx(.1*sum(math.sqrt(sum(v*v for v in w.flatten().tolist())) for w in m.parameters()))
    p.backward()
    for w in m.parameters():
        want = .1*w/w.norm() if w.norm() > 0 else torch.zeros_like(w)
        assert torch.allclose(w.grad, want.detach()) and w.grad.isfinite().all()
    step = 1e-3  # by finite differences
    with torch.no_grad():
        m = m.double()
        w, g = m[0].weight, m[0].weight.grad[1, 2].item()
        up, down = (Regularizer('norm', .1).penalty(shifted(m, d)).item() for d in (step, -step))
    assert (up - down)/(2*step) == pytest.approx(g, rel=1e-3)


def shifted(m, d):
    m = copy.deepcopy(m)
    with torch.no_grad(): m[0].weight[1, 2] += d
    return m


def test_upstream_reports_the_same_number_and_teaches_nothing():
    (none, w0), (up, w1), (norm, w2) = (learnt(k) for k in ('none', 'upstream', 'norm'))
    assert up == pytest.approx(norm) and up > none + .1
    assert all(torch.equal(a, b) for a, b in zip(w0, w1)) and any(not torch.equal(a, b) for a, b in zip(w0, w2))
    assert not Regularizer('upstream').penalty(net()).requires_grad


def test_decoupled_is_the_decay_of_adamw_and_adds_nothing_to_the_loss():
    lr, wd = .1, .3
    none, w0 = learnt('none', 0., lr)
    decoupled, w1 = learnt('decoupled', wd, lr)
    assert decoupled == none and Regularizer('decoupled').penalty(net()) is None
    for before, plain_step, decayed in zip(net().parameters(), w0, w1):
        assert torch.allclose(decayed, plain_step - lr*wd*before, atol=1e-6)


def test_the_kinds():
    assert REGULARIZERS == ('none', 'decoupled', 'norm', 'upstream')
    assert [Regularizer(k).adds for k in REGULARIZERS] == [False, False, True, True]
    assert (Regularizer().kind, Regularizer().strength) == ('decoupled', .1)  # as the released script has it
    with pytest.raises(ValueError, match='must be one of none, decoupled, norm, upstream'): Regularizer('l2')
    m = net().to(torch.bfloat16)
    assert Regularizer('norm').penalty(m).dtype == torch.float32


# The losses of the tasks, kept

def test_losses_keep_their_graph_until_the_backward_pass():
    loss, x = MultiTaskLoss(TASKS[:1]), torch.zeros(2, 2, requires_grad=True)
    y = dict(a=torch.tensor([0, 1]))
    first = loss(dict(a=x), y)
    second = loss(dict(a=2*x), y)
    first.backward()  # of an earlier call: the losses of the later one keep their graph
    assert loss.losses['a'].requires_grad and not loss.per_task['a'].requires_grad
    held = loss.losses['a']
    second.backward()
    assert not loss.losses['a'].requires_grad and loss.losses['a'].equal(held.detach())
    with torch.no_grad(): loss(dict(a=x), y)
    assert not loss.losses['a'].requires_grad


def test_a_loss_with_graphs_is_copied_and_pickled_by_its_values():
    loss = MultiTaskLoss(TASKS)
    x = {t.name: torch.zeros(2, t.n_classes, requires_grad=True) for t in TASKS}
    loss(x, {t.name: torch.tensor([0, 1]) for t in TASKS})
    assert all(v.requires_grad for v in loss.losses.values()) and not loss.state_dict()
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert all(again.losses[k].equal(v) for k, v in loss.per_task.items()) and len(again.losses) == 3
        assert not any(v.requires_grad for v in again.losses.values())


def test_a_loss_that_an_earlier_version_pickled_is_read():
    loss = MultiTaskLoss(TASKS)
    earlier = {k: v for k, v in loss.__dict__.items() if k != 'losses'} | dict(per_task=dict(a=torch.tensor(2.)))
    again = MultiTaskLoss.__new__(MultiTaskLoss)
    again.__setstate__(earlier)
    assert again.losses == again.per_task == dict(a=torch.tensor(2.)) and 'per_task' in earlier
    x, y = {t.name: torch.zeros(2, t.n_classes) for t in TASKS}, {t.name: torch.tensor([0, 1]) for t in TASKS}
    assert again(x, y).item() == loss(x, y).item()


@pytest.mark.parametrize('x', [.5, np.float32(.5), torch.tensor(.5), torch.tensor([.5]), torch.full((1, 1), .5)])
def test_a_loss_is_a_plain_number(x):
    assert type(loss_number(x, 'a')) is float and loss_number(x, 'a') == .5


@pytest.mark.parametrize('x,error,message', [
    (torch.ones(1, requires_grad=True), TypeError, 'the loss of a still has its graph'),
    (torch.ones(2), ValueError, r'the loss of a has shape \(2,\): pass its mean'),
    (torch.ones(0), ValueError, r'the loss of a has shape \(0,\)'),
    (math.nan, ValueError, 'the loss of a is nan'), (torch.tensor(-math.inf), ValueError, 'the loss of a is -inf')])
def test_what_is_not_a_plain_number_is_refused(x, error, message):
    with pytest.raises(error, match=message): loss_number(x, 'a')


def test_a_loss_without_the_losses_of_its_tasks_is_refused():
    check_per_task(MultiTaskLoss(TASKS), 'Weigh')
    with pytest.raises(TypeError, match='Weigh needs the loss of each task, which a Identity does not keep'):
        check_per_task(nn.Identity(), 'Weigh')
