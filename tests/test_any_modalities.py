"""Networks of one to five modalities, by any names: padding says nothing, absence is a value, numbers stay finite, only
what is there learns; and what was packed, saved, exported or damaged is still the same."""
import copy
import json

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings, strategies as st

from hiccap.baselines import WORDS, baseline_predictions
from hiccap.checkpoints import load_model, save_model
from hiccap.clips import Clip, ClipDataset, DataError, check_modality, modality_order
from hiccap.encoders import FeaturesConfig, TokensConfig
from hiccap.linear_part import WordsSource
from hiccap.losses import MultiTaskLoss
from hiccap.modalities import MODALITY_SCHEDULES, ModalityDropout, OneModality, ShowModalities, modality_schedule
from hiccap.manifest import read_manifest
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.network_config import pair_members, pairs_of
from hiccap.packing import open_packed, pack
from hiccap.padding import batch_modalities, collate
from hiccap.pretext import Contrastive, Matching, PretextStream
from hiccap.readers import read_table
from hiccap.robustness import corrupted, only, subsets_of
from hiccap.tasks import Task

proof = pytest.mark.proof
TASKS = Task('a'), Task('b', 3)
VOCAB = 20
BERT = dict(vocab_size=VOCAB, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=24, hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
CALM = dict(dropout=0., attention_dropout=0., state_dropout=0., head_dropout=0.)
NAMES = 'text', 'video', 'audio', 'face', 'sound', 'on_screen', 'pose2', 'X'
FEW = settings(max_examples=max(6, settings.default.max_examples//4))


def with_linear_part(model, seed=2):
    "The network with a linear part of random numbers, switched on"
    g = torch.Generator().manual_seed(seed)
    for name, o in model.linear_part.named_buffers(): o.copy_(torch.randn(o.shape, generator=g))
    for source in model.linear_part.sources.values():
        if isinstance(source, WordsSource): source.rarity.abs_()
    model.linear_part.see()
    return model


def network(kinds, fusion='hierarchical', combiner='concat', late_fusion=False, linear_part=0):
    "A tiny network without dropout for pairs (modality, width); a width of 0 is tokens"
    encoders = {m: FeaturesConfig(w, 4, w % 3) if w else TokensConfig(BERT) for m, w in kinds}
    config = HICCAPConfig(modalities=encoders, width=8, heads=2, head_widths=(8,), fusion=fusion, combiner=combiner,
                          late_fusion=late_fusion, linear_part=linear_part, **CALM)
    model = HICCAP(config, TASKS, seed=0)
    if late_fusion:  # heads start at zero; from there nothing below them would matter
        for h in model.heads.values(): torch.nn.init.normal_(h[-1].weight, generator=torch.Generator().manual_seed(1))
    return with_linear_part(model) if linear_part else model


modality_sets = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 5)), min_size=1, max_size=5,
                         unique_by=lambda o: o[0]).map(tuple)
designs = st.sampled_from([(*parts, late, linear) for parts in (('hierarchical', 'concat'), ('parallel', 'gmu'))
                           for late, linear in ((False, 0), (True, 0), (False, 64), (True, 64))])


def values(n, width, g):
    "`n` tokens or vectors; None for none"
    if not n: return None
    return torch.randn(n, width, generator=g) if width else torch.randint(1, VOCAB, (n,), generator=g)


@st.composite
def cases(draw, kinds=modality_sets):
    "Kinds of modalities, and one to four clips of them, each of which may lack any"
    kinds = draw(kinds)
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    clips = [Clip(f'c{i}', **{m: values(draw(st.integers(0, 4)), w, g) for m, w in kinds})
             for i in range(draw(st.integers(1, 4)))]
    if ('text', 0) in kinds and draw(st.booleans()):  # the end of some texts is context
        for c in clips:
            n = 0 if c.text is None else len(c.text)
            if n: c.segments = (torch.arange(n) >= draw(st.integers(0, n))).long()
    return kinds, clips


def inputs_of(kinds, clips):
    "Their batch, of the network's modalities alone"
    x, _ = collate(clips, TASKS, modalities=tuple(m for m, _ in kinds))
    return {k: v for k, v in x.items() if any(k in (m, f'{m}_mask', f'{m}_segments') for m, _ in kinds)}


def loosened(draw, kinds, inputs):
    "The same batch with more padding of other values, between and around the real positions"
    out = {}
    for m, w in kinds:
        x, mask = inputs[m], inputs[f'{m}_mask']
        L = mask.shape[1] + draw(st.integers(0, 4))
        fill = draw(st.sampled_from([0., -3e3, float('nan'), float('inf')]))
        shape = (len(mask), L, w) if w else (len(mask), L)
        y, real = torch.full(shape, fill if w else 7), torch.zeros(shape[:2], dtype=torch.bool)
        if not w: y = y.long()
        second = torch.ones(shape[:2], dtype=torch.long)
        for i, n in enumerate(mask.sum(1).tolist()):
            at = torch.tensor(sorted(draw(st.permutations(range(L)))[:n]), dtype=torch.long)
            if n: y[i, at], real[i, at] = x[i][mask[i]], True
            if n and f'{m}_segments' in inputs: second[i, at] = inputs[f'{m}_segments'][i][mask[i]]
        out[m], out[f'{m}_mask'] = y, real
        if f'{m}_segments' in inputs: out[f'{m}_segments'] = second
    return out


def learnt(model, inputs, packed=True):
    "Logits, and the gradient of each parameter that has one"
    n = len(next(iter(inputs.values())))
    targets = {t.name: torch.arange(n) % t.n_classes for t in TASKS}
    model.packed = packed
    model.zero_grad(set_to_none=True)
    logits = model(inputs)
    MultiTaskLoss(TASKS)(logits, targets).backward()
    model.packed = True
    return ({k: v.detach() for k, v in logits.items()},
            {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None})


def close(a, b, tol=5e-5):
    assert set(a) == set(b)
    for k in a:
        assert a[k].isfinite().all() and b[k].isfinite().all(), k
        assert (a[k] - b[k]).abs().max() <= tol*max(1., a[k].abs().max()), (k, (a[k] - b[k]).abs().max())


@proof
@given(st.data(), cases(), designs, st.booleans())
def test_padding_says_nothing(data, case, design, packed):
    kinds, clips = case
    model, x = network(kinds, *design), inputs_of(kinds, clips)
    expected, grads = learnt(model, x)
    got, more = learnt(model, loosened(data.draw, kinds, x), packed)
    close(expected, got)
    zero = {k: torch.zeros_like(p) for k, p in model.named_parameters()}
    close(zero | grads, zero | more, 2e-4)


@proof
@given(st.data(), cases(), designs, st.booleans())
def test_padding_says_nothing_in_bfloat16(data, case, design, packed):
    "Apart from rounding: padding here is thousands, infinite or not a number"
    kinds, clips = case
    model, x = network(kinds, *design), inputs_of(kinds, clips)
    with torch.autocast('cpu', torch.bfloat16):
        expected, grads = learnt(model, x)
        got, more = learnt(model, loosened(data.draw, kinds, x), packed)
    close({k: v.float() for k, v in expected.items()}, {k: v.float() for k, v in got.items()}, .03)
    zero = {k: torch.zeros_like(p) for k, p in model.named_parameters()}
    close(zero | grads, zero | more, .05)


@proof
@given(st.data(), cases(st.just((('text', 0), ('face', 3)))), st.booleans())
def test_late_fusion_reads_captions_apart_whatever_the_padding(data, case, packed):
    kinds, clips = case
    model, x = network(kinds, late_fusion=True), inputs_of(kinds, clips)
    expected, grads = learnt(model, x)
    got, more = learnt(model, loosened(data.draw, kinds, x), packed)
    close(expected, got)
    zero = {k: torch.zeros_like(p) for k, p in model.named_parameters()}
    close(zero | grads, zero | more, 2e-4)
    with torch.no_grad():
        states, rows = model.encode_packed(x)
        means, padded = model.means(states, rows, x), rows['text'].unpack(states['text'])
    names = model.late_means.names
    for i, c in enumerate(clips):
        found = dict(zip(names, means[i].split(model.config.width)))
        n = 0 if c.text is None else len(c.text)
        second = torch.zeros(n, dtype=torch.bool) if c.segments is None or not n else c.segments > 0
        if second.any(): assert torch.allclose(found['second text'], padded[i, :n][second].mean(0), atol=1e-5)
        else: assert torch.equal(found['second text'], model.late_means.no_second.detach())
        if n and not second.all(): assert torch.allclose(found['text'], padded[i, :n][~second].mean(0), atol=1e-5)
        if not n: assert torch.allclose(found['text'], model.absent['text'].detach())


@proof
@given(cases(), designs)
def test_any_subset_is_finite_and_only_what_is_there_learns(case, design):
    kinds, clips = case
    model, x = network(kinds, *design), inputs_of(kinds, clips)
    logits, grads = learnt(model, x)
    assert all(v.isfinite().all() for v in (*logits.values(), *grads.values()))
    for m, _ in kinds:
        has = x[f'{m}_mask'].any(1)
        moves = any(g.abs().max() > 0 for k, g in grads.items() if k.startswith(f'encoders.{m}.'))
        assert moves <= bool(has.any()), f'{m} is nowhere and its encoder learns'
        if f'absent.{m}' in grads and has.all(): assert not grads[f'absent.{m}'].abs().max()


@proof
@given(cases(), designs)
def test_a_clip_alone_is_the_clip_in_a_batch(case, design):
    kinds, clips = case
    model = network(kinds, *design).eval()
    with torch.no_grad():
        together = model(inputs_of(kinds, clips))
        for i, c in enumerate(clips):
            alone = model(inputs_of(kinds, [c]))
            close(alone, {k: v[i:i + 1] for k, v in together.items()})
    model.train()


@proof
@given(cases())
def test_a_modality_that_no_clip_of_a_batch_has_may_be_left_out(case):
    kinds, clips = case
    model, x = network(kinds), inputs_of(kinds, clips)
    nowhere = [m for m, _ in kinds if not x[f'{m}_mask'].any()]
    left = {k: v for k, v in x.items() if not any(k in (m, f'{m}_mask') for m in nowhere)}
    if not left:
        with pytest.raises(ValueError, match="none of the network's modalities"): model(left)
    else:
        with torch.no_grad(): close(model(x), model(left), 0.)


@proof
@given(cases(), st.sampled_from([torch.bfloat16, torch.float16]), st.sampled_from([1., 1000.]))
@FEW
def test_numbers_stay_finite_in_half_precision_and_at_huge_scores(case, dtype, scale):
    kinds, clips = case
    model = copy.deepcopy(network(kinds)).eval()
    with torch.no_grad():
        for k, p in model.named_parameters():
            if k.endswith('query.weight') or (k.startswith('pools.') and k.endswith('.v')): p.mul_(scale)
        pooled = model.to(dtype).encode(inputs_of(kinds, clips))
    assert all(v.isfinite().all() for v in pooled.values())


@pytest.mark.parametrize('n', [1, 2, 3, 5])
def test_a_network_has_parts_for_its_modalities_alone(n, tmp_path):
    kinds = tuple(zip(('face', 'text', 'sound', 'X', 'audio')[:n], (3, 0, 2, 4, 1)))
    model = network(kinds)
    assert model.modalities == modality_order(m for m, _ in kinds)
    assert list(model.encoders) == list(model.pools) == list(model.modalities)
    assert set(model.absent) == set(model.encoders)
    assert len(model.fusion.branches) == (n if n > 1 else 0)
    assert model.combiner.width == 8*n
    g = torch.Generator().manual_seed(0)
    clips = [Clip(f'c{i}', **{m: values(3, w, g) for m, w in kinds}) for i in range(3)]
    save_model(model, tmp_path/'model')
    again, x = load_model(tmp_path/'model'), inputs_of(kinds, clips)
    assert again.config == model.config
    with torch.no_grad(): close(model.eval()(x), again(x), 0.)
    model.train()


@given(modality_sets)
def test_a_configuration_is_read_back(kinds):
    c = network(kinds).config
    assert HICCAPConfig.from_dict(c.to_dict()) == c
    assert set(c.concatenated) == set(c.modalities) == set(c.contexts)
    assert all(set(o) == set(c.modalities) - {m} for m, o in c.contexts.items())
    assert {frozenset(pair_members(p)) for p in c.pairs} == {frozenset(ab) for ab in c.pairs.values()}
    assert len(c.pairs) == len(kinds)*(len(kinds) - 1)//2


@given(cases())
@FEW
def test_packing_keeps_every_modality_and_its_seconds(tmp_path_factory, case):
    kinds, clips = case
    for c in clips:
        for m in c.modalities:
            if (x := getattr(c, m)) is not None:
                at = torch.arange(len(x))
                setattr(c, f'{m}_seconds', torch.stack([at/2, at/2 + .5], 1))
    ds = ClipDataset.from_clips(clips, [])
    back = open_packed(pack(ds, tmp_path_factory.mktemp('p')/'packed', write=lambda o: None))
    assert back.modalities == ds.modalities and back.summary() == ds.summary()
    for a, b in zip(ds, back):
        for m in ds.modalities:
            x, y = getattr(a, m), getattr(b, m)
            assert (x is None) == (y is None) and (x is None or torch.equal(x, y))
        assert a.seconds.keys() == b.seconds.keys()
        assert all(torch.equal(a.seconds[m], b.seconds[m]) for m in a.seconds)


@given(st.data(), modality_sets, st.sampled_from(sorted(MODALITY_SCHEDULES)), st.integers(0, 7))
def test_schedules_show_some_of_what_is_there(data, kinds, name, step):
    names = modality_order(m for m, _ in kinds)
    present = np.array(data.draw(st.lists(st.lists(st.booleans(), min_size=len(names), max_size=len(names)),
                                          min_size=1, max_size=5)))
    shown = modality_schedule(name).shown(present, step, np.random.default_rng(0), names)
    assert not (shown & ~present).any() and (shown.any(1) == present.any(1)).all()


def clips_of_two(n=6):
    g = torch.Generator().manual_seed(0)
    return ClipDataset.from_clips(
        [Clip(f'v{i}', face=values(2, 3, g), sound=values(3, 2, g), labels=dict(a=i % 2)) for i in range(n)], TASKS[:1])


def test_pretext_tasks_ask_about_the_pairs_that_there_are():
    ds = clips_of_two()
    assert list(pairs_of(ds.modalities)) == ['face+sound']
    PretextStream('m', ds, Matching(pairs=('face+sound',)))
    with pytest.raises(ValueError, match=r"give pairs that occur, of face\+sound"): PretextStream('m', ds, Matching())
    with pytest.raises(ValueError, match='not a pair of modalities'): Contrastive(pairs=('face_sound',))


def test_damage_follows_the_names():
    ds = clips_of_two()
    assert subsets_of(ds.modalities) == (('face',), ('sound',), ('face', 'sound'))
    assert len(subsets_of('abcde')) == 5 + 5 + 1
    assert only(ds, ['face']).modalities == ('face',)
    assert corrupted(ds, 'sound', 'drop', 1.).absent('sound') == list(ds.ids)
    noisy = corrupted(ds, 'face', 'noise', .5)
    assert torch.equal(noisy[0].sound, ds[0].sound) and not torch.equal(noisy[0].face, ds[0].face)
    with pytest.raises(ValueError, match="'nose' is not a modality here"): only(ds, ['nose'])


@pytest.mark.parametrize('name', ['id', 'labels', 'segments', 'face_mask', 'text_seconds', 'train', 'items', '2d', '',
                                  'on screen', 'a.b', 'é'])
def test_names_that_mean_something_else_are_refused(name):
    with pytest.raises(ValueError, match='cannot name a modality'): check_modality(name)
    with pytest.raises(ValueError, match='cannot name a modality'): HICCAPConfig(modalities={name: 3})


@pytest.mark.parametrize('make, says', [
    (lambda: HICCAPConfig(modalities={}), 'needs a modality'),
    (lambda: HICCAPConfig(modalities=['face']), 'must be a dict'),
    (lambda: HICCAPConfig(modalities=dict(face='minilm', sound=-1)), 'sound: .*at least 1'),
    (lambda: HICCAPConfig(modalities=dict(face=dict(kind='features'))), 'face: An encoder of features .* width: 35'),
    (lambda: HICCAPConfig(video=dict(kind='features', hidden=3)), 'video: An encoder of features needs their width'),
    (lambda: HICCAPConfig(video=dict(kind='features', width=3, layers='2')), 'video: Not the sizes'),
    (lambda: HICCAPConfig(text=dict(kind='tokens', config='bert')), 'text: config must be a dict'),
    (lambda: HICCAPConfig(modalities=dict(face=3), contexts=dict(face=('text',))), 'all other modalities'),
    (lambda: HICCAPConfig(modalites=dict(face=3)), "did you mean 'modalities'"),
    (lambda: ModalityDropout({'a face': .1}), 'cannot name'), (lambda: OneModality(()), 'must name')])
def test_bad_configurations(make, says):
    with pytest.raises(ValueError, match=says): make()


def test_a_clip_with_a_modality_that_the_network_does_not_read_is_refused():
    model = network((('face', 3), ('sound', 2)))
    x, _ = collate([Clip('a', face=torch.ones(1, 3), hand=torch.ones(1, 2))], [])
    assert batch_modalities(x) == ('text', 'video', 'audio', 'face', 'hand')
    with pytest.raises(ValueError, match='The inputs have hand, and this network reads face, sound'): model(x)
    with pytest.raises(ValueError, match='takes feature vectors'):
        model(collate([Clip('a', face=torch.ones(1, 4))], [])[0])


def test_widths_that_differ_are_refused():
    with pytest.raises(DataError, match='hand has width'):
        ClipDataset.from_clips([Clip('a', hand=torch.ones(1, 2)), Clip('b', hand=torch.ones(1, 3))], [])


def test_a_schedule_that_names_another_modality_is_refused():
    from hiccap.learner import clip_dls, hiccap_learner
    ds = clips_of_two(12)
    model = HICCAP(HICCAPConfig.tiny(modalities=dict(face=3, sound=2)), TASKS[:1], seed=0)
    dls = clip_dls(ds.subset(range(8)), ds.subset(range(8, 12)), 4, device='cpu')
    learn = hiccap_learner(dls, model, cbs=[ShowModalities(ModalityDropout(dict(sond=.5)))])
    with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError, match="Did you mean 'sound'"): learn.fit(1)
    shows = ShowModalities(OneModality())
    learn = hiccap_learner(dls, model, cbs=[shows])
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert set(shows.share_shown) == {'face', 'sound'} and all(0 < v < 1 for v in shows.share_shown.values())


def test_a_second_text_is_a_modality_of_its_own(tmp_path):
    from hiccap.cli import predict, train
    path = tmp_path/'t.csv'
    rows = [f'v{i}_{j},so what,{("EXIT", "SALE")[j]},{("no", "yes")[j]}' for i in range(12) for j in (0, 1)]
    path.write_text('\n'.join(['id,said,ocr,funny', *rows[:-1], rows[-1].replace('SALE', '')]))
    read = read_table(path, 'minilm', ['funny'], 'said', texts=['screen=ocr'])
    assert read.modalities == ('text', 'screen') and read.absent('screen') == ['v11_1']
    assert any('1 clips have no screen: v11_1' in o for o in read.notes)
    with pytest.raises(DataError, match="column 'titles'"):
        read_table(path, 'minilm', ['funny'], 'said', texts=['titles'])
    with pytest.raises(DataError, match='cannot be the label'):
        read_table(path, 'minilm', ['ocr'], 'said', texts=['x=ocr'])
    codes = {f.code for f in read_manifest(path, text='said', labels=['funny'], texts=['screen=ocr'])[0].findings()}
    assert 'field-unknown' not in codes
    bert = dict(kind='tokens', config=BERT | dict(vocab_size=30522, max_position_embeddings=64))
    config = dict(width=16, heads=2, head_widths=[8], modalities=dict(text=bert, screen=bert))
    config_file = tmp_path/'run.yaml'
    config_file.write_text(yaml.safe_dump(dict(
        clips=dict(data=str(path), labels=['funny'], text='said', texts=['screen=ocr']),
        network=dict(tokenizer='minilm', config=config), training=dict(epochs=1, bs=8, seed=1))))
    assert not train(['--run', str(config_file), '--out', str(tmp_path/'run')])
    model = load_model(tmp_path/'run/model')
    assert model.modalities == ('text', 'screen')
    words = json.loads((tmp_path/'run/metrics.json').read_text())
    assert 'words + logistic regression' in json.dumps(words)
    assert not predict([str(tmp_path/'run'), str(path), '--out', str(tmp_path/'answers.csv')])


def test_the_simple_model_of_words_reads_every_text():
    rng = np.random.default_rng(0)
    def part(n):
        y = rng.integers(0, 2, n)
        return ClipDataset.from_clips([Clip(f'p{rng.integers(1e9)}', text=torch.tensor([7, 8]),
                                            screen=torch.tensor([5 + int(o), 9]), labels=dict(a=int(o))) for o in y],
                                      TASKS[:1])
    test = part(40)
    right = baseline_predictions(part(60), part(30), test)[WORDS].predicted['a'] == test.targets('a').numpy()
    assert right.all()
