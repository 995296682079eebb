"""The linear part of a network: it is what its linear models say, it is fitted on training and validation clips alone,
it changes nothing in training, and it travels with the network."""
import json

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.special import log_softmax, softmax

from hiccap import baselines
from hiccap.baselines import DEEP_ALONE, fit_linear
from hiccap.checkpoints import init_from, load_model, save_model
from hiccap.clips import ClipDataset
from hiccap.linear_fit import (PRIOR_STRENGTH, _scaled, fit_linear_part, part_scales, part_weights, prior_weights,
                               word_values)
from hiccap.linear_part import word_rows
from hiccap.model import HICCAP
from hiccap.network_config import HICCAPConfig
from hiccap.predictions import NETWORK
from hiccap.run_data import read_splits
from hiccap.runs import Run
from hiccap.synthetic import synthetic_clips
from hiccap.tasks import IGNORE, Task
from hiccap.temperatures import fit_temperature
from hiccap.training import FoldRecipe, build_model, predict_test, run_learner, train_run
from test_any_modalities import network, with_linear_part
from test_training import SMALL, of_two_tasks, silent, with_labels

COMIC, NUMBER = Task('comic', 2), Task('n', kind='regression')
KINDS = (('text', 0), ('face', 3))


@pytest.fixture(scope='module')
def parts(): return [of_two_tasks(o) for o in read_splits(SMALL.clips, None)[0]]


@given(st.lists(st.integers(1, 8), max_size=6), st.integers(1, 4))
def test_rows_of_words_are_those_of_the_words_and_pairs(ids, padding):
    n, x = 64, torch.tensor([[*ids, *[0]*padding]])
    rows, real, second = word_rows(x, torch.arange(x.shape[1])[None] < len(ids), None, n)
    assert real.sum() == len(ids) + max(len(ids) - 1, 0) and not second[real].any()
    whole = {i: word_rows(torch.tensor([[i]]), torch.ones(1, 1, dtype=torch.bool), None, n)[0].item() for i in set(ids)}
    assert rows[0, :len(ids)].tolist() == [whole[i] for i in ids]
    assert (rows < n//2).all()


def test_the_values_of_a_text_have_the_length_one_and_rare_words_count_more():
    clips = synthetic_clips(n=60, seed=0, scale=.1)
    model = HICCAP(HICCAPConfig.tiny(linear_part=256, video=32, audio=16), clips.tasks, seed=0)
    fit_linear_part(model.linear_part, clips, clips, dict(zeros(clips)))
    values, has = word_values(model.linear_part.sources['text'], clips, 'text'), clips.lengths('text') > 0
    one = model.linear_part.sources['text'].values(*first_text(clips))[1]
    np.testing.assert_allclose(one.square().sum(), 1, rtol=1e-5)
    assert not values[~has].nnz and (values[has].getnnz(1) > 0).all()
    rarity = model.linear_part.sources['text'].rarity
    seen = np.asarray((values > 0).sum(0)).flatten()
    often, seldom = seen.argmax(), np.where(seen == seen[seen > 0].min())[0][0]
    assert rarity[often] < rarity[seldom] and not rarity[seen == 0].any()


def first_text(clips):
    "The ids and the mask of the first text"
    ids = clips.columns['text'][int(clips.lengths('text').nonzero()[0][0])][None]
    return ids, torch.ones_like(ids, dtype=torch.bool)


def zeros(ds):
    "Outputs that know nothing"
    for t in ds.tasks: yield t.name, np.full((len(ds), t.n_outputs), 1/t.n_outputs if t.n_outputs > 1 else 0.)


@given(st.integers(0, 40), st.integers(1, 3), st.integers(0, 99))
def test_weights_are_the_best_ones(n, sources, seed):
    rng = np.random.default_rng(seed)
    z, y = 2*rng.standard_normal((sources + 1, n, 3)), rng.integers(0, 3, n)
    task, prior = Task('mood', 3), prior_weights(sources)
    def loss(w):
        q = log_softmax(np.tensordot(w, log_softmax(z, 2), 1), 1)
        return -q[np.arange(n), y].sum() + PRIOR_STRENGTH/2*((w - prior)**2).sum()
    w = part_weights(z, y, task)
    assert (w >= 0).all()
    for _ in range(10): assert loss(w) <= loss(np.maximum(w + rng.normal(0, .05, len(w)), 0)) + 1e-6
    known = np.where(rng.random(n) < .5, y, IGNORE)
    np.testing.assert_allclose(part_weights(z, known, task), part_weights(z[:, known >= 0], known[known >= 0], task))
    if not n: assert w.tolist() == prior.tolist()


@given(st.integers(1, 3), st.lists(st.floats(.2, 8.), min_size=4, max_size=4), st.integers(0, 99))
def test_how_sure_a_part_is_of_itself_changes_nothing(sources, factors, seed):
    rng, task, factors = np.random.default_rng(seed), Task('mood', 3), np.array(factors[:sources + 1])[:, None, None]
    y = rng.integers(0, 3, 60)
    z = rng.standard_normal((sources + 1, 60, 3)) + np.eye(3)[y]  # each part knows something, none is always right
    scales, other = (part_scales(o[0], y, o[1:], y)[:, None, None] for o in (z, factors*z))
    np.testing.assert_allclose(other*factors, scales, rtol=1e-6)
    np.testing.assert_allclose(part_weights(other*factors*z, y, task), part_weights(scales*z, y, task), atol=1e-3)


def test_parts_are_weighed_on_validation_clips_and_scaled_on_all_that_are_held_out():
    rng, task = np.random.default_rng(0), Task('comic', 2)
    y, y_held, z = rng.integers(0, 2, 30), rng.integers(0, 2, 50), rng.standard_normal((3, 50, 2))
    scales, found = _scaled(task, z[0, :30], z[1:], y, y_held)
    np.testing.assert_allclose(scales, part_scales(z[0, :30], y, z[1:], y_held))
    np.testing.assert_allclose(found, scales[:, None, None]*np.stack([z[0, :30], *z[1:, 20:]]))
    numbers, same = _scaled(NUMBER, z[0, :30, :1], z[1:, :, :1], y.astype(float), y_held.astype(float))
    assert numbers.tolist() == [1, 1, 1] and np.array_equal(same, np.stack([z[0, :30, :1], *z[1:, 20:, :1]]))


def test_the_linear_models_with_their_scales_are_calibrated():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((3, 500)), rng.integers(0, 2, 500)
    z = np.stack([0*x, 5*(x + 2*y - 1)], 2)  # of the deep part and of two linear models, all far too sure
    scales = part_scales(z[0], y, z[1:], y)[:, None, None]
    for own in (z[0]*scales[0], (scales*z)[1:].sum(0)):
        assert fit_temperature(softmax(own, 1), y)[0] == pytest.approx(1, abs=1e-6)


@given(st.integers(0, 40), st.integers(1, 3), st.sampled_from([1., 100.]), st.integers(0, 99))
def test_weights_of_numbers_do_not_depend_on_the_unit(n, sources, unit, seed):
    rng = np.random.default_rng(seed)
    y = rng.standard_normal(n)
    z = np.stack([y + k*rng.standard_normal(n) for k in range(1, sources + 2)])[..., None]
    w = part_weights(z, y, NUMBER)
    assert (w >= 0).all() and w.shape == (sources + 1,)
    np.testing.assert_allclose(part_weights(unit*z + 7, unit*y + 7, NUMBER, 7.), w, atol=1e-6)


@pytest.mark.parametrize('classes', [[0, 1, 2], [0, 2], [1]])
def test_weights_of_linear_models_are_their_predictions(classes):
    rng = np.random.default_rng(0)
    X, Z, y = rng.standard_normal((40, 5)), rng.standard_normal((9, 5)), rng.choice(classes, 40)
    model, task = fit_linear(X, y, Task('mood', 3)), Task('mood', 3)
    p, q = model(Z), softmax(Z @ model.weight + model.level, 1)
    unseen = [c for c in range(task.n_classes) if c not in classes]
    assert not p[:, unseen].any() and ((0 < q[:, unseen]) & (q[:, unseen] < .25)).all()
    np.testing.assert_allclose(q[:, classes]/q[:, classes].sum(1, keepdims=True), p[:, classes], atol=1e-9)
    number = fit_linear(X, X @ rng.standard_normal(5) + 3, NUMBER)
    np.testing.assert_allclose(Z @ number.weight + number.level, number(Z), atol=1e-9)


@pytest.fixture(scope='module')
def folds(parts, tmp_path_factory):
    "A run with the linear part, and one without"
    return [FoldRecipe(SMALL.but(linear_part=n), parts, 1, tmp_path_factory.mktemp('fold'), log=silent)()
            for n in (2**10, 0)]


def test_training_is_the_same_with_and_without(folds):
    wide, plain = folds
    assert wide.best == plain.best and plain.linear is None and DEEP_ALONE not in plain.models()
    for k, p in plain.probs.items():
        assert np.array_equal(wide.simple[DEEP_ALONE].probs[k], p) and not np.array_equal(wide.probs[k], p)
    assert set(wide.linear) == set(plain.probs) and all(o['deep'] >= 0 for o in wide.linear.values())
    assert list(wide.models())[:2] == [NETWORK, DEEP_ALONE]


def test_no_label_of_a_test_clip_decides_anything(parts, folds, tmp_path):
    train, valid, test = parts
    unknown = with_labels(test, lambda y: np.full_like(y, IGNORE))
    again = FoldRecipe(SMALL.but(linear_part=2**10), (train, valid, unknown), 1, tmp_path, log=silent)()
    assert again.linear == folds[0].linear
    for k, p in folds[0].probs.items(): assert np.array_equal(again.probs[k], p)


def test_labels_of_validation_clips_do_decide(parts, monkeypatch):
    "The test above would say nothing if no label decided anything"
    train, valid, _ = parts
    unknown = with_labels(valid, lambda y: np.full_like(y, IGNORE))
    model = build_model(SMALL.network, train, 0)
    known = fit_linear_part(model.linear_part, train, valid, dict(zeros(valid)))
    without = fit_linear_part(model.linear_part, train, unknown, dict(zeros(valid)))
    assert known != without
    assert all(o['deep'] == 0 and o['text']['weight'] == pytest.approx(1) for o in without.values())
    monkeypatch.setattr(baselines, 'FEW', 0)  # training clips have no say either
    without = fit_linear_part(model.linear_part, train, unknown, dict(zeros(valid)))
    kinds = {t.name: t.is_regression for t in train.tasks}
    assert all(o['text']['scale'] == pytest.approx(1 if kinds[k] else 3**-.5) for k, o in without.items())


def test_the_linear_part_travels_with_the_network(tmp_path):
    model = with_linear_part(network(KINDS, linear_part=64))
    save_model(model, tmp_path/'model')
    loaded = load_model(tmp_path/'model')
    assert loaded.linear_part.fitted
    for (k, a), b in zip(model.linear_part.state_dict().items(), loaded.linear_part.state_dict().values()):
        assert torch.equal(a, b), k


def test_a_new_training_takes_no_linear_part(tmp_path):
    save_model(with_linear_part(network(KINDS, linear_part=64)), tmp_path/'model')
    for size in (64, 128, 0):
        model = HICCAP(network(KINDS, linear_part=size).config, [COMIC], seed=0)
        report = init_from(model, tmp_path/'model', verbose=False)
        assert not [k for k in (*report.missing, *report.matched, *report.mismatched) if k.startswith('linear_part')]
        assert size == 0 or not model.linear_part.fitted


def test_a_run_of_an_earlier_version_has_none():
    config = dict(run=dict(data='synthetic', recipe='auto'))
    assert Run.from_config(config, 'config.json').network.linear_part == 0
    now = dict(run=Run.flat(data='synthetic').to_dict(defaults=True))
    assert Run.from_config(now, 'config.json').network.linear_part == 2**16


def test_an_odd_table_is_refused():
    with pytest.raises(ValueError, match='even number of rows'): HICCAPConfig(linear_part=7)


def test_no_pair_reaches_from_a_text_into_its_context():
    ids, mask = torch.tensor([[5, 6, 7, 8]]), torch.ones(1, 4, dtype=torch.bool)
    rows, real, second = word_rows(ids, mask, torch.tensor([[0, 0, 1, 1]]), 64)
    assert real.sum() == 4 + 2 and second[real].sum() == 3
    assert (rows[second] >= 32).all() and (rows[~second & real] < 32).all()


def test_a_clip_that_lacks_a_modality_adds_the_same_numbers():
    part = with_linear_part(network(KINDS, linear_part=64)).linear_part
    mask, some = torch.tensor([[True, True], [False, False]]), torch.ones(2, 1, dtype=torch.bool)
    read = dict(text=(torch.tensor([[5], [6]]), some, None), face=(torch.randn(2, 2, 3), mask, None))
    alone = dict(text=read['text'], face=(torch.zeros(2, 0, 3), torch.zeros(2, 0, dtype=torch.bool), None))
    deep = {k: torch.zeros(2, n) for k, n in part.outputs.items()}
    with_face, without = part(read, deep), part(alone, deep)
    for k in deep:
        torch.testing.assert_close(with_face[k][1], without[k][1])
        assert not torch.allclose(with_face[k][0], without[k][0])


def test_predicting_twice_gives_the_same(parts, tmp_path):
    run = SMALL.but(linear_part=2**10, simple_models=())
    learn = run_learner(run.training, *parts[:2], build_model(run.network, parts[0], 0), tmp_path, silent)
    first, second = (predict_test(learn, parts, network=run.network, training=run.training) for _ in range(2))
    assert first.linear == second.linear
    for k in first.probs: assert np.array_equal(first.probs[k], second.probs[k])


@pytest.mark.parametrize('how', [dict(freeze_text=True), dict(precision='bfloat16'), dict(folds=2)])
def test_runs_of_other_kinds_say_what_each_part_counts(tmp_path, how):
    run = SMALL.but(linear_part=2**10, **how)
    train_run(run, tmp_path/'run', write=silent)
    report = (tmp_path/'run/report.md').read_text()
    assert '### Deep and linear part' in report and DEEP_ALONE in report
    found = json.loads((tmp_path/'run/metrics.json').read_text())['linear_part']
    assert len(found) == (2 if 'folds' in how else 1)
    assert found[0]['said'].keys() == {'deep', 'deep_scale', 'text', 'video', 'audio'}


def test_clips_of_one_modality_have_one_linear_model(parts, tmp_path):
    train, valid, _ = ((ClipDataset(o.ids, {'audio': o.columns['audio']}, {k: v.numpy() for k, v in o.labels.items()},
                                    o.tasks, o.groups)) for o in parts)
    model = build_model(SMALL.but(config={}).network, train, 0)
    report = fit_linear_part(model.linear_part, train, valid, dict(zeros(valid)))
    assert all(set(o) == {'deep', 'deep_scale', 'audio'} for o in report.values())
