"""Regression tasks: a number is read, learnt, scored, compared and exported as a class is."""
import csv
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from fastai.basics import DataLoaders
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from sklearn.metrics import mean_absolute_error, r2_score

from hiccap.affinity import batch_affinity
from hiccap.callbacks import KeepBest, lower_is_better
from hiccap.checkpoints import load_model, save_model
from hiccap.cli import compare, evaluate as run_evaluate, export, predict, train
from hiccap.clips import Clip, ClipDataset, DataError
from hiccap.comparison import compare_runs, task_score
from hiccap.diagnosis import diagnose
from hiccap.encoders import FeaturesConfig
from hiccap.feedback import MixtureFeedback
from hiccap.inference import load_run
from hiccap.labels import declared_labels
from hiccap.learner import ClipDL, MeanScore, clip_dls, hiccap_learner
from hiccap.losses import DELTA, MultiTaskLoss, regression_loss
from hiccap.mean_pooling import mean_pooled
from hiccap.metrics import compare_scores, criterion_of, evaluate
from hiccap.mixture import Mixture
from hiccap.mixture_loader import MixtureDL
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.nan_detector import NanDetector
from hiccap.number_scores import number_score_names, number_scores
from hiccap.packed import open_packed
from hiccap.packing import pack
from hiccap.padding import IGNORE, collate, collate_targets  # IGNORE: where scripts of earlier versions find it
from hiccap.policies import POLICIES
from hiccap.pretraining_runs import PretrainRun, read_streams
from hiccap.readers import read_table
from hiccap.runs import SMALL_NETWORK, Run
from hiccap.splits import split_by_video, standardised_parts
from hiccap.statistics import score_interval
from hiccap.streams import Stream
from hiccap.synthetic import best_possible, synthetic_clips
from hiccap.tasks import COMIC_MISCHIEF, Task, is_labelled
from hiccap.training import train_run
from hiccap.weighting import WEIGHTINGS, Weigh, weighting

NAN = float('nan')
MOOD = Task('mood', kind='regression')
RATED = Task('rated', kind='regression', scale=(-3, 3))
FUNNY = Task('funny')
SMALL = dict(text=FeaturesConfig(4, 6, 1), video=FeaturesConfig(3, 6, 1), audio=FeaturesConfig(2, 6, 1), width=8,
             heads=2, head_widths=(8,), dropout=0., state_dropout=0., head_dropout=0.)
numbers = st.floats(-50, 50, width=32)


def network(tasks, seed=0, **kw): return HICCAP(HICCAPConfig(**{**SMALL, **kw}), tasks, seed=seed)


def clips(n, seed=0, tasks=(FUNNY, RATED), known=.7, prefix='v'):
    "Clips whose labels follow from their text, some of them unknown"
    rng, out = np.random.default_rng(seed), []
    for i in range(n):
        x = rng.normal(size=(rng.integers(1, 4), 4)).astype(np.float32)
        value = float(np.clip(x.mean(0)[0], -3, 3))
        every = {t.name: value if t.is_regression else int(value > 0) for t in tasks}
        labels = {k: v for k, v in every.items() if rng.random() < known or i < 4}
        out.append(Clip(f'{prefix}{i//2}_{i % 2}', text=torch.tensor(x), labels=labels))
    return ClipDataset.from_clips(out, tasks)


# tasks

@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.sampled_from([None, (-3, 3), (0., 100.)]),
       st.sampled_from(['huber', 'mse']))
def test_a_task_survives_json_and_yaml(mean, deviation, scale, loss):
    t = Task('a b', kind='regression', scale=scale, loss=loss, mean=mean, deviation=deviation)
    assert Task(**json.loads(json.dumps(t.to_dict()))) == t == eval(repr(t))
    assert Task(**yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(t.to_dict()))))) == t


def test_a_task_of_an_earlier_version_is_a_classification():
    "And a classification task is written as that version reads it"
    earlier = dict(name='gory', n_classes=2, class_weights=None, classes=None)
    assert Task(**earlier) == Task('gory') and Task('gory').to_dict() == earlier
    assert [t.kind for t in COMIC_MISCHIEF] == ['classification']*5


@given(arrays.arrays(np.float32, 6, elements=st.one_of(numbers, st.just(NAN))))
def test_whether_a_number_is_a_label_is_the_same_for_tensors_and_arrays(y):
    want = ~np.isnan(y)
    assert (is_labelled(y) == want).all() and (is_labelled(torch.tensor(y)).numpy() == want).all()
    assert [bool(is_labelled(v)) for v in y.tolist()] == want.tolist()
    assert is_labelled(np.float32([IGNORE])).all() and not is_labelled(np.array([IGNORE])).any()


# labels

def table(path, values, header='sentiment'):
    rows = [f'v{i}_0,some words,{v}' for i, v in enumerate(values)]
    path.write_text('\n'.join([f'id,text,{header}', *rows]) + '\n')
    return path


@pytest.fixture(scope='module')
def words(tmp_path_factory):
    "A tokenizer of a few words"
    folder = tmp_path_factory.mktemp('tokenizer')
    known = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', 'good', 'fun', 'nice', 'bad', 'sad', 'grim', 'the', 'a', 'of', 'some']
    (folder/'vocab.txt').write_text('\n'.join([*known, 'words']) + '\n')
    (folder/'tokenizer_config.json').write_text(
        json.dumps(dict(tokenizer_class='BertTokenizer', do_lower_case=True, model_max_length=64)))
    return str(folder)


def test_numbers_of_a_table_are_read_as_they_are(tmp_path, words):
    path = table(tmp_path/'t.csv', ['-1.25', '3', '', 'NaN', '.5'])
    ds = read_table(path, words, ['sentiment:regression:-3..3'])
    assert ds.tasks == (Task('sentiment', kind='regression', scale=(-3, 3)),)
    np.testing.assert_array_equal(ds.targets('sentiment').numpy(), np.float32([-1.25, 3, NAN, NAN, .5]))
    assert [c.labels for c in ds] == [dict(sentiment=-1.25), dict(sentiment=3.), {}, {}, dict(sentiment=.5)]
    # a later table has the task of the first, and no declaration
    later = read_table(table(tmp_path/'u.csv', ['2.5', '1']), words, tasks=ds.tasks)
    assert later.tasks == ds.tasks and later.targets('sentiment').tolist() == [2.5, 1.]


@pytest.mark.parametrize('value, why', [('inf', 'is infinite'), ('-Infinity', 'is infinite'), ('good', 'is not a num'),
                                        ('3.5', 'is not from -3 to 3'), ('1e999', 'is infinite'), ('#REF!', 'is not')])
def test_a_label_that_cannot_be_names_clip_file_line_and_fix(tmp_path, words, value, why):
    path = table(tmp_path/'t.csv', ['0', value])
    with pytest.raises(DataError) as e: read_table(path, words, ['sentiment:regression:-3..3'])
    for part in ("clip 'v1_0'", str(path), 'line 3', repr(value), why, 'Write a number'): assert part in str(e.value)


def test_many_numbers_without_a_declaration_are_an_error_that_names_regression(tmp_path, words):
    path = table(tmp_path/'t.csv', [str(i/7) for i in range(30)])
    with pytest.raises(DataError, match="declare that: --labels 'sentiment:regression'"):
        read_table(path, words, ['sentiment'])
    with pytest.raises(DataError, match='given to a classification task'):
        read_table(path, words, classes=dict(sentiment=dict(scale=[-3, 3])))


def test_a_run_keeps_the_declaration(tmp_path):
    run = Run.flat(data='t.csv', tasks=dict(sentiment=dict(kind='regression', scale=[-3, 3])), labels=['funny'])
    (tmp_path/'run.yaml').write_text(run.to_yaml())
    again = Run.from_yaml(tmp_path/'run.yaml')
    assert again == run
    assert declared_labels(list(again.clips.labels), None, again.clips.tasks) == {
        'funny': None, 'sentiment': Task('sentiment', kind='regression', scale=(-3, 3))}


def test_a_packed_folder_keeps_numbers_and_refuses_classes(tmp_path):
    ds = clips(9)
    back = open_packed(pack(ds, tmp_path/'packed'))
    for t in ds.tasks: np.testing.assert_array_equal(back.targets(t).numpy(), ds.targets(t).numpy())
    assert back.tasks == ds.tasks and [c.labels for c in back] == [c.labels for c in ds]
    narrow = Task('rated', kind='regression', scale=(-.01, .01))
    for task, why in ((Task('rated', 3), 'packed for regression'), (narrow, 'is not from -0.01 to 0.01'),
                      (Task('funny', kind='regression'), 'packed for classification')):
        with pytest.raises(DataError, match=why): back.answering([task])
    assert back.answering([RATED.standardised([1., 2.])]).tasks[0].mean == 1.5


# batches and losses

def test_targets_are_floats_with_nan():
    y = collate_targets([Clip('a', labels=dict(rated=-1)), Clip('b')], [RATED, FUNNY])
    assert y['rated'].dtype == torch.float32 and y['funny'].dtype == torch.int64
    assert y['rated'][0] == -1 and y['rated'].isnan().tolist() == [False, True] and y['funny'].tolist() == [IGNORE]*2


def by_hand(x, y, deviation, loss):
    "The mean loss of rows, one at a time"
    found = []
    for a, b in zip(x, y):
        if np.isnan(b): continue
        e = abs(a - b)/deviation
        found.append(e**2 if loss == 'mse' or e <= DELTA else 2*DELTA*e - DELTA**2)
    return np.mean(found)


@given(st.data(), st.integers(1, 7), st.floats(.1, 20), st.sampled_from(['huber', 'mse']))
def test_a_loss_is_its_equation_over_labelled_rows(draw, n, deviation, loss):
    x = draw.draw(arrays.arrays(np.float32, n, elements=numbers))
    y = draw.draw(arrays.arrays(np.float32, n, elements=st.one_of(numbers, st.just(NAN))))
    t = Task('mood', kind='regression', loss=loss, deviation=deviation)
    pred = torch.tensor(x)[:, None].requires_grad_()
    fn = MultiTaskLoss([t])
    total = fn(dict(mood=pred), dict(mood=torch.tensor(y)))
    total.backward()
    assert torch.isfinite(pred.grad).all() and (pred.grad[:, 0][torch.tensor(np.isnan(y))] == 0).all()
    if np.isnan(y).all():
        assert total == 0 and not fn.per_task
        return
    assert fn.per_task['mood'].item() == pytest.approx(by_hand(x, y, deviation, loss), rel=1e-4, abs=1e-5)
    rows = MultiTaskLoss([t], reduction='none')(dict(mood=pred), dict(mood=torch.tensor(y)))
    assert rows.sum().item()/(~np.isnan(y)).sum() == pytest.approx(total.item(), rel=1e-5, abs=1e-6)


@given(st.integers(-1000, 1000), st.integers(-8, 8), st.sampled_from(['huber', 'mse']))
def test_a_loss_does_not_depend_on_the_unit_of_the_labels(shift, power, loss):
    "Units for which float32 is exact"
    y, x = torch.tensor([-1., 0, .5, 3, NAN]), torch.tensor([[0.], [1], [1], [-2], [5]])
    def of(scale, offset):
        t = Task('mood', kind='regression', loss=loss).standardised(y*scale + offset)
        return regression_loss(x*scale + offset, y*scale + offset, t).item()
    factor = 2.**power
    assert of(factor, shift*factor) == pytest.approx(of(1., 0.), rel=1e-4)


# the network

@pytest.mark.parametrize('kw', [{}, dict(head='upstream'), dict(head_widths=())])
def test_an_untrained_network_begins_at_the_mean_in_the_label_unit(kw):
    year = Task('year', kind='regression', mean=1990., deviation=.5)
    net = network([FUNNY, year], **kw).eval()
    inputs, _ = collate(list(clips(6)), [])
    out = net(inputs)
    assert {k: tuple(v.shape) for k, v in out.items()} == dict(funny=(6, 2), year=(6, 1))
    assert (out['year'] - 1990).abs().max() < 5
    plain = network([FUNNY, Task('year', kind='regression')], **kw).eval()(inputs)
    assert torch.allclose(plain['year']*.5 + 1990, out['year']) and torch.equal(plain['funny'], out['funny'])
    with torch.autocast('cpu', torch.bfloat16): half = net(inputs)['year']
    assert half.dtype == torch.float32 and torch.isfinite(half).all()
    assert len(set(half.flatten().tolist())) > 1  # bfloat16 has no number between 1984 and 1992


def test_a_saved_network_predicts_the_same_numbers(tmp_path):
    tasks = (FUNNY, Task('rated', kind='regression', scale=(-3, 3), mean=.4, deviation=1.7, loss='mse'))
    net, (inputs, _) = network(tasks).eval(), collate(list(clips(5)), [])
    save_model(net, tmp_path/'model')
    back = load_model(tmp_path/'model')
    assert back.tasks == tasks and torch.equal(back(inputs)['rated'], net(inputs)['rated'])
    means = mean_pooled(net, 1).eval()(inputs)
    assert means['rated'].shape == (5, 1) and (means['rated'] - .4).abs().max() < 20


def learner(ds, valid, tasks=None, cbs=(), **kw):
    dls = clip_dls(ds, valid, 8, tasks, device='cpu')
    return hiccap_learner(dls, network(dls.train.clip_tasks), cbs=list(cbs), **kw)


def test_missing_numbers_are_no_defect():
    "Neither to the watch over numbers nor to a diagnosis, which shows what the loss got"
    ds, valid = clips(24, known=.5), clips(12, 1, prefix='w')
    learn = learner(ds, valid, cbs=[NanDetector('raise')])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert not any(learn.nan_detector.counts.values())
    inputs, y = collate(list(ds), ds.tasks)
    assert y['rated'].isnan().any()
    assert diagnose(learn.model.train(), inputs, y, learn.loss_func) is None
    class Broken(MultiTaskLoss):
        def task_losses(self, logits, targets):
            return {k: v*NAN for k, v in super().task_losses(logits, targets).items()}
    found = diagnose(learn.model, inputs, y, Broken(ds.tasks))
    assert found.where == 'loss' and found.inputs
    assert all(o.nonfinite == 0 for o in found.inputs)  # the missing targets are not shown as the cause


# scores

@given(st.data(), st.integers(3, 30))
def test_scores_are_those_of_other_libraries(draw, n):
    p, y = (draw.draw(arrays.arrays(np.float64, n, elements=st.floats(-3, 3).map(lambda v: round(v, 2))))
            for _ in range(2))
    found = {k: v[0] for k, v in number_scores(p, y, np.ones((1, n)), RATED).items()}
    assert list(found) == list(number_score_names(RATED))
    assert found['mae'] == pytest.approx(mean_absolute_error(y, p))
    if np.ptp(y) > 0: assert found['r2'] == pytest.approx(r2_score(y, p))
    else: assert np.isnan(found['r2'])
    if np.ptp(y) > 0 and np.ptp(p) > 0: assert found['pearson'] == pytest.approx(stats.pearsonr(p, y)[0], abs=1e-9)
    else: assert np.isnan(found['pearson'])
    assert found['acc2'] == np.mean((p >= 0) == (y >= 0)) and found['acc7'] == np.mean(np.round(p) == np.round(y))
    k = y != 0
    if k.any(): assert found['acc2_nonzero'] == np.mean((p[k] > 0) == (y[k] > 0))
    else: assert np.isnan(found['acc2_nonzero'])


@given(st.integers(0, 1000), st.sampled_from([(0, np.inf), (-np.inf, 1), (-np.inf, np.inf), (-1, 1)]))
def test_an_interval_holds_its_score_within_its_bounds(seed, bounds):
    rng = np.random.default_rng(seed)
    value = rng.uniform(.2, .8)
    samples = value + rng.normal(0, .02, 12)
    (low, high), why = score_interval(value, samples, bounds)
    assert why == '' and bounds[0] < low < value < high < bounds[1]
    turned = score_interval(-value, -samples, (-bounds[1], -bounds[0]))[0]
    assert turned == pytest.approx((-high, -low))


def test_labels_without_a_number_change_no_score():
    rng = np.random.default_rng(0)
    y, p, videos = rng.normal(size=60), rng.normal(size=60), np.arange(60)//2
    more = np.append(y, [NAN]*4)
    a = evaluate(dict(mood=p[:, None]), dict(mood=y), [MOOD], groups=videos)
    b = evaluate(dict(mood=np.append(p, [9.]*4)[:, None]), dict(mood=more), [MOOD], groups=np.append(videos, [77]*4))
    assert a.tasks['mood'].scores == b.tasks['mood'].scores and a.tasks['mood'].intervals == b.tasks['mood'].intervals
    assert a.overall == dict(mean_pearson=a.tasks['mood'].scores['pearson'])
    empty = evaluate(dict(mood=p[:, None]), dict(mood=y*NAN), [MOOD])
    assert empty.unmeasured == dict(mood='no labelled row') and empty.overall == {}
    for wrong, why in ((dict(mood=y*np.inf), 'is not a finite number'), (dict(mood=y[1:]), 'shape')):
        with pytest.raises(ValueError, match=why): evaluate(dict(mood=p[:, None]), wrong, [MOOD])
    with pytest.raises(ValueError, match='not finite in row 0'):
        evaluate(dict(mood=p[:, None]*NAN), dict(mood=y), [MOOD])


def test_a_difference_is_that_of_the_scores():
    rng = np.random.default_rng(0)
    y, videos = rng.normal(size=90), np.arange(90)//3
    a, b = y + rng.normal(size=90), y + 2*rng.normal(size=90)
    for k in number_score_names(RATED):
        if k not in number_score_names(MOOD): continue
        found = compare_scores(dict(mood=a), dict(mood=b), dict(mood=y), [MOOD], videos, k)['mood']
        one, other = (number_scores(v, y, np.ones((1, 90)), MOOD)[k][0] for v in (a, b))
        assert found['difference'] == pytest.approx(one - other) and found['low'] < one - other < found['high']
    assert [criterion_of(MOOD, k) for k in ('f1', 'macro_f1', 'mae')] == ['pearson', 'pearson', 'mae']


def epoch(metric, rows):
    "The value of a metric after batches of (predictions, targets)"
    metric.reset()
    for pred, y in rows: metric.accumulate(SimpleNamespace(pred=pred, y=y))
    return metric.value


def test_the_score_of_an_epoch_is_undefined_if_one_task_is():
    "A task without a label is left out of the mean; constant predictions are not"
    classes = dict(funny=torch.tensor([[1., 0], [0, 1], [0, 1]])), dict(funny=torch.tensor([0, 1, 1]))
    def batch(p, y):
        return [(classes[0] | dict(rated=torch.tensor(p)[:, None]), classes[1] | dict(rated=torch.tensor(y)))]
    mean = MeanScore([FUNNY, RATED])
    assert mean.name == 'mean_score' and MeanScore([RATED]).name == 'pearson' and MeanScore([FUNNY]).name == 'macro_f1'
    assert epoch(mean, batch([0., 1, 2], [0., 1, 2])) == pytest.approx(1.)
    assert epoch(mean, batch([0., 1, 2], [2., 1, 0])) == pytest.approx(0.)
    assert epoch(mean, batch([0., 1, 2], [NAN]*3)) == 1.
    assert np.isnan(epoch(mean, batch([1., 1, 1], [0., 1, 2])))
    keep = KeepBest('mean_score')
    assert not keep.is_better(NAN) and keep.is_better(-1.)
    assert [lower_is_better(o) for o in ('rated_mae', 'mae', 'pearson', 'rated_pearson')] == [True, True, False, False]


# several tasks

def mixture(policy, seed=0, **kw):
    "A stream of classes, one of numbers"
    a = clips(20, seed, (FUNNY,), prefix='a')
    (b, *_), = standardised_parts([(clips(20, seed + 1, (RATED,), prefix='b'),)*3])
    streams = [Stream('classes', a), Stream('numbers', b)]
    return Mixture(streams, policy, bs=8, **kw), {'classes': clips(6, 5, (FUNNY,), prefix='c'),
                                                  'numbers': clips(6, 6, (RATED,), prefix='d')}


def two_steps(mix, valid, cbs=()):
    "Two steps in an epoch each, with a validation after each"
    both = ClipDataset.from_clips([c for ds in valid.values() for c in ds], mix.tasks)
    loaders = MixtureDL(mix, steps=2, device='cpu'), ClipDL(both, 6, tasks=mix.tasks, device='cpu')
    dls = DataLoaders(*loaders, device='cpu')
    learn = hiccap_learner(dls, network(mix.tasks), cbs=[MixtureFeedback(), *cbs], lr=1e-2)
    before = [p.detach().clone() for p in learn.model.parameters()]
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, learn.model.parameters()))
    return learn


@pytest.mark.parametrize('name', POLICIES)
def test_every_policy_mixes_numbers_and_classes(name):
    kw = dict(fixed=dict(weights=dict(classes=1, numbers=2))).get(name, {})
    mix, valid = mixture(POLICIES[name](**kw))
    learn = two_steps(mix, valid)
    records = learn.mixture_feedback.records
    assert len(records) == 4
    for r in records:
        assert all((loss is None or np.isfinite(loss)) and (q > 0 or loss is None)
                   for q, loss in zip(r['quota'], r['loss']))
    drawn = {n for r in records for n, q in zip(mix.names, r['quota']) if q}
    assert drawn and all(np.isfinite(list(v['loss'].values())).all() for v in learn.mixture_feedback.valid)


@pytest.mark.parametrize('name', WEIGHTINGS)
def test_every_weighting_combines_numbers_and_classes(name):
    if name in ('cagrad', 'nash_mtl'): pytest.importorskip('cvxpy')
    if name == 'upgrad': pytest.importorskip('quadprog')
    kw = dict(tasks=dict(funny=1., rated=2.)) if name == 'fixed' else {}
    ds, valid = clips(24, known=.8), clips(12, 1, prefix='w')
    (ds, valid, _), = standardised_parts([(ds, valid, valid)])
    learn = learner(ds, valid, cbs=[Weigh(weighting(name, **kw))], lr=1e-2)
    learn.dls.train.n = 16  # two batches
    with warnings.catch_warnings(), learn.no_bar(), learn.no_logging():
        warnings.simplefilter('ignore')
        learn.fit(1)
    history = learn.weigh.history()
    assert set(history.task) == {'funny', 'rated'} and np.isfinite(history.loss).all() and not learn.weigh.failed
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())


@pytest.mark.parametrize('name', [k for k in WEIGHTINGS if k not in ('cagrad', 'nash_mtl', 'upgrad')])
def test_an_absent_number_has_no_loss_gradient_or_weight(name):
    kw = dict(tasks=dict(funny=1., rated=2.)) if name == 'fixed' else {}
    only = ClipDataset.from_clips([Clip(c.id, c.text, labels=dict(funny=i % 2)) for i, c in enumerate(clips(8))],
                                  (FUNNY, RATED))
    inputs, y = collate(list(only), only.tasks)
    net, loss = network(only.tasks), MultiTaskLoss(only.tasks)
    loss(net(inputs), y).backward()
    assert list(loss.per_task) == ['funny']
    assert all(p.grad is None or not p.grad.any() for p in net.heads['task_rated'].parameters())
    w = weighting(name, **kw).weigh({'funny': .5}, np.eye(1)) if WEIGHTINGS[name].gradients else weighting(
        name, **kw).weigh({'funny': .5})
    assert list(w) == ['funny']


def test_affinity_is_measured_between_a_number_and_a_class():
    ds = clips(16, known=1.)
    inputs, y = collate(list(ds), ds.tasks)
    found = batch_affinity(network(ds.tasks), MultiTaskLoss(ds.tasks), (inputs,), (y,), 1e-3)
    assert found.shape == (2, 2) and np.isfinite(found).all()
    assert (found.diagonal() > 0).all()  # a step helps its own task


def test_streams_that_share_a_number_share_its_unit(tmp_path, words):
    rng = np.random.default_rng(0)
    for name, mean in (('one', 0), ('two', 10)):
        table(tmp_path/f'{name}.csv', (mean + rng.normal(size=24)).round(3))
    streams = [dict(name=n, data=str(tmp_path/f'{n}.csv'), labels=['sentiment:regression'], own_numbering=True)
               for n in ('one', 'two')]
    run = PretrainRun.from_dict(dict(streams=streams, network=dict(tokenizer=words, config=SMALL_NETWORK), steps=2))
    parts = read_streams(run, words)
    train_labels = np.concatenate([p[0].targets('sentiment').numpy() for p in parts.values()])
    tasks = {ds.tasks[0] for p in parts.values() for ds in p}
    assert len(tasks) == 1
    t, = tasks
    assert (t.mean, t.deviation) == pytest.approx((train_labels.mean(), train_labels.std()), rel=1e-5)


# known best scores

def test_a_training_reaches_the_best_possible_correlation():
    "Within 0.03 of a model that knows the number behind each label"
    keep = dict(noise=0., scale=.05, video=12, level=.5, missing=0., unlabelled=.1)
    ds = synthetic_clips(1500, **keep)
    assert best_possible(missing=0., level=.5)['level']['pearson'] == pytest.approx(1/1.25**.5)
    rest, test = split_by_video(ds, .3)
    rest, valid = split_by_video(rest, .2)
    def number(part):
        video = {'video': part.columns['video']}
        return ClipDataset(part.ids, video, dict(level=part.targets('level').numpy()), part.tasks[-1:], part.groups)
    (train_part, valid_part, test_part), = standardised_parts([tuple(map(number, (rest, valid, test)))])
    dls = clip_dls(train_part, valid_part, 32, device='cpu')
    config = HICCAPConfig(**{**SMALL, 'video': FeaturesConfig(12, 12, 0)}, fusion='parallel')
    learn = hiccap_learner(dls, HICCAP(config, train_part.tasks, seed=0), lr=1e-2)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(8, 1e-2)
        p, y = learn.get_preds(dl=learn.dls.valid.new(test_part))
    found = evaluate({'level': p['level'].numpy()}, {'level': y['level'].numpy()}, test_part.tasks, n_boot=0)
    best = test.best()['level']['pearson']
    assert best - .03 < found.tasks['level'].scores['pearson'] < best + .03
    assert found.tasks['level'].scores['r2'] > test.best()['level']['r2'] - .06


# a whole program

@pytest.fixture(scope='module')
def finished(tmp_path_factory, words):
    "Two finished runs on a small table with a number and a class, by the command line"
    folder, rng, rows = tmp_path_factory.mktemp('regression'), np.random.default_rng(0), []
    for i in range(120):
        a, b = rng.integers(0, 4, 2)
        text = [*rng.choice(['good', 'fun', 'nice'], a), *rng.choice(['bad', 'sad', 'grim'], b), 'the', 'a', 'of']
        rng.shuffle(text)
        y = '' if rng.random() < .1 else round(float(np.clip(a - b + rng.normal(0, .3), -3, 3)), 2)
        rows.append([f'v{i//3}_{i % 3}', ' '.join(text), y, 'yes' if a > b else 'no'])
    with open(folder/'clips.csv', 'w', newline='') as f:
        csv.writer(f).writerows([['id', 'text', 'mood', 'funny'], *rows])
    config = dict(SMALL_NETWORK, width=16, text=dict(kind='tokens', config=dict(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)))
    settings = dict(clips=dict(data=str(folder/'clips.csv')), network=dict(tokenizer=words, config=config),
                    training=dict(epochs=2, bs=16, lr=.003, encoder_lr=.003, threads=1))
    (folder/'run.yaml').write_text(yaml.safe_dump(settings))
    for seed in (0, 1):
        assert train(['--run', str(folder/'run.yaml'), '--labels', 'funny', 'mood:regression:-3..3', '--seed',
                      str(seed), '--out', str(folder/f'run_{seed}')]) == 0
    return folder


def test_a_run_keeps_the_unit_of_its_training_labels(finished):
    run = load_run(finished/'run_0')
    task = {t.name: t for t in run.tasks}['mood']
    labels = pd.read_csv(finished/'clips.csv').mood.dropna()
    assert task.kind == 'regression' and task.scale == (-3, 3) and abs(task.mean - labels.mean()) < .5
    assert abs(task.deviation - labels.std()) < .3
    kept = json.loads((finished/'run_0'/'config.json').read_text())['tasks']
    assert [Task(**t) for t in kept] == list(run.tasks)
    metrics = json.loads((finished/'run_0'/'metrics.json').read_text())
    assert metrics['kept'][0]['monitor'] == 'mean_score' and 'pearson' in metrics['scores']['tasks']['mood']['scores']
    report = (finished/'run_0'/'report.md').read_text()
    for part in ('Pearson', 'MAE', 'Acc-7', 'numbers.png', 'confusion.png', 'ridge regression'): assert part in report
    assert (finished/'run_0'/'numbers.png').stat().st_size > 1000
    assert 'a number from -3 to 3' in run._repr_markdown_()


def test_predictions_are_numbers(finished, capsys):
    assert predict([str(finished/'run_0'), str(finished/'clips.csv'), '--out', str(finished/'p.csv')]) == 0
    found = pd.read_csv(finished/'p.csv')
    mood, funny = (found[found.task == k] for k in ('mood', 'funny'))
    assert len(mood) == len(funny) == 120 and mood.probability.isna().all() and funny.probability.notna().all()
    run = load_run(finished/'run_0')
    probs, predicted = run.answer(run.read(finished/'clips.csv', labelled=False))
    assert np.allclose(mood.predicted.astype(float), predicted['mood'], rtol=1e-5) and probs['mood'].shape == (120, 1)


def test_an_evaluation_scores_numbers(finished, capsys):
    assert run_evaluate([str(finished/'run_0'), str(finished/'clips.csv'), '--out', str(finished/'scored')]) == 0
    found = json.loads((finished/'scored'/'metrics.json').read_text())['scores']
    truth, p = pd.read_csv(finished/'clips.csv').mood.to_numpy(), pd.read_csv(finished/'scored'/'predictions.csv')
    mood = p[p.task == 'mood']
    known = ~np.isnan(truth)
    values = mood.predicted.astype(float).to_numpy()
    assert (mood.truth.notna().to_numpy() == known).all()
    assert found['tasks']['mood']['scores']['pearson'] == pytest.approx(np.corrcoef(values[known], truth[known])[0, 1],
                                                                        abs=1e-4)
    assert found['overall']['mean_pearson'] == found['tasks']['mood']['scores']['pearson']


def test_runs_with_numbers_are_compared(finished, capsys):
    c = compare_runs([finished/'run_0', finished/'run_1'])
    assert c.tasks == ['funny', 'mood', 'mean of tasks']
    for r in (finished/'run_0', finished/'run_1'): assert (r/'probabilities.csv').is_file()
    text = c.markdown()
    assert text.startswith('macro_f1 or pearson')
    assert compare([str(finished/'run_0'), str(finished/'run_1'), '--out', str(finished/'compared')]) == 0
    assert (finished/'compared'/'comparison.png').is_file()
    scores = json.loads((finished/'run_0'/'metrics.json').read_text())['scores']['tasks']
    assert [task_score(scores[k]['scores'], 'f1') for k in ('funny', 'mood')] == ['f1', 'pearson']
    with pytest.raises(ValueError, match="no score 'mae'"): compare_runs([finished/'run_0', finished/'run_1'], 'mae')


def test_an_exported_network_gives_the_same_numbers(finished, capsys):
    for package in ('onnx', 'onnxscript', 'onnxruntime'): pytest.importorskip(package)
    from hiccap.export import OnnxModel, mean_logits
    assert export([str(finished/'run_0'), str(finished/'net.onnx')]) == 0
    run = load_run(finished/'run_0')
    ds = run.read(finished/'clips.csv', labelled=False)
    probs, predicted = run.answer(ds)
    onnx = OnnxModel(finished/'net.onnx')
    assert onnx.tasks == list(run.tasks)
    inputs, _ = collate([ds[i] for i in range(20)], [])
    got, classes = onnx.answer(inputs)
    assert np.allclose(got['mood'], probs['mood'][:20], atol=1e-4) and got['mood'].shape == (20, 1)
    assert np.array_equal(classes['funny'], predicted['funny'][:20])
    assert np.allclose(got['funny'], probs['funny'][:20], atol=1e-4)  # calibrated
    raw = run.mean_probabilities(ds)[0]['funny'][:20]
    assert not np.allclose(raw, probs['funny'][:20], atol=1e-3)
    assert np.array_equal(classes['mood'], got['mood'][:, 0])
    other = load_run(finished/'run_1').models[0]
    two = mean_logits([m(inputs) for m in (run.models[0], other)])
    assert torch.allclose(two['mood'], (run.models[0](inputs)['mood'] + other(inputs)['mood'])/2)


def test_a_frozen_encoder_trains_a_number(tmp_path, finished, words):
    run = Run.from_yaml(finished/'run.yaml').but(labels=['mood:regression'], freeze_text=True, epochs=1,
                                                 cache=str(tmp_path/'cache'), init=str(finished/'run_0'/'model'))
    result = train_run(run, tmp_path/'frozen', write=lambda line: None)
    assert result.scores.tasks['mood'].n > 0 and result.folds[0].best['monitor'] == 'pearson'
    assert set(result.others) >= {'class frequencies'}
