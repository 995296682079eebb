"""The network: equal to the original, unchanged by padding, defined for absent modalities, finite at any score; and the
contract of its public names."""
import ast
import copy
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from upstream_reference import Reference, parity_folder, parity_recipe

import hiccap
from hiccap.checkpoints import load_upstream
from hiccap.clips import MODALITIES, Clip
from hiccap.losses import MultiTaskLoss
from hiccap.attention import PackedRows, attend
from hiccap.encoders import FeaturesConfig, TokenEncoder, TokensConfig
from hiccap.model import HICCAP, HICCAPConfig, VARIANTS, masked_softmax
from hiccap.padding import collate
from hiccap.tasks import COMIC_MISCHIEF, IGNORE, Task

proof = pytest.mark.proof
needs_parity = pytest.mark.skipif(
    parity_folder() is None, reason='no ../shared/parity beside the checkout, and HICCAP_PARITY names none')
TASKS = Task('a'), Task('b', 3, class_weights=(1., 2., .5)), Task('c')
VOCAB, VIDEO, AUDIO, UNKNOWN = 50, 6, 4, 3
BERT = dict(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=24, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
CALM = dict(dropout=0., attention_dropout=0., state_dropout=0., head_dropout=0.)


def small(**kw):
    "The default configuration, tiny and without dropout"
    return HICCAPConfig.tiny(
        **{**dict(text=TokensConfig(BERT), video=FeaturesConfig(VIDEO, 8, 2), audio=FeaturesConfig(AUDIO, 8, 1)),
           **CALM, **kw}
    )


NETWORKS = dict(hierarchical={}, gated=dict(fusion='parallel', combiner='gmu'))

@pytest.fixture(scope='module', params=NETWORKS)
def model(request): return HICCAP(small(**NETWORKS[request.param]), TASKS, seed=0)


# Clips, and the ways of laying a batch of them out

def clip(n, g, id='c', unknown=False):
    "A clip of `n` tokens, frames and seconds; one of length 0 it lacks"
    text = torch.full((n[0],), UNKNOWN) if unknown else torch.randint(1, VOCAB, (n[0],), generator=g)
    x = dict(text=text, video=torch.randn(n[1], VIDEO, generator=g), audio=torch.randn(n[2], AUDIO, generator=g))
    return Clip(id, **{m: v if len(v) else None for m, v in x.items()})


def lay_out(clips, places, lengths, fill):
    "Inputs with clip i's real positions of modality m at `places[m][i]` of `lengths[m]`, and `fill` elsewhere"
    out = {}
    for m, width in zip(MODALITIES, (None, VIDEO, AUDIO)):
        shape = (len(clips), lengths[m]) + (() if width is None else (width,))
        x, mask = (
            torch.full(shape, fill) if width else torch.full(shape, int(fill) if np.isfinite(fill) else 7)
        ), torch.zeros(shape[:2], dtype=torch.bool)
        for i, c in enumerate(clips):
            if (v := getattr(c, m)) is None: continue
            at = torch.as_tensor(places[m][i], dtype=torch.long)
            x[i, at], mask[i, at] = v, True
        out[m], out[f'{m}_mask'] = x, mask
    return out


sizes = st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))

@st.composite
def layouts(draw):
    "Clips, and their batch twice: padded on the right, and with more padding of other values, on the left or anywhere"
    ns = draw(st.lists(sizes, min_size=1, max_size=4))
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    clips = [clip(n, g, f'c{i}', draw(st.booleans()) if i == 0 else False) for i, n in enumerate(ns)]
    longest = {m: max(n[k] for n in ns) for k, m in enumerate(MODALITIES)}
    tight = lay_out(clips, {m: [range(n[k]) for n in ns] for k, m in enumerate(MODALITIES)}, longest, 0.)
    more = {m: longest[m] + draw(st.integers(0, 6)) for m in MODALITIES}
    kind = draw(st.sampled_from(['left', 'holes']))
    def places(n, L):
        if kind == 'left': return range(L - n, L)
        return sorted(draw(st.permutations(range(L)))[:n])
    loose = lay_out(clips, {m: [places(n[k], more[m]) for n in ns] for k, m in enumerate(MODALITIES)}, more,
                    draw(st.sampled_from([0., -3e3, 49., float('nan'), float('inf')])))
    return clips, tight, loose



def targets_for(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = {t.name: torch.randint(0, t.n_classes, (n,), generator=g) for t in TASKS}
    y['b'][0] = IGNORE
    return y


def learn(model, inputs, packed=True, seed=0):
    "Logits, loss and gradients (None where a parameter has none)"
    model.packed = packed
    try:
        model.zero_grad(set_to_none=True)
        logits = model(inputs)
        loss = MultiTaskLoss(TASKS)(logits, targets_for(len(inputs['text']), seed))
        loss.backward()
        return {k: v.detach() for k, v in logits.items()}, loss.item(), {k: p.grad for k, p in model.named_parameters()}
    finally: model.packed = True


def close(a, b, tol=2e-5):
    "Equal up to rounding, measured by the largest number of the two"
    a, b = a.double(), b.double()
    assert a.shape == b.shape and a.isfinite().all() and b.isfinite().all()
    assert not a.numel() or (a - b).abs().max() <= tol*max(1., a.abs().max()), (a - b).abs().max()


def same(one, other, tol=2e-5, grad_tol=1e-4):
    "Two results of `learn` are the same; a gradient that is missing counts as zero"
    for k in one[0]: close(one[0][k], other[0][k], tol)
    assert one[1] == pytest.approx(other[1], abs=tol, rel=tol)
    for k, g in one[2].items():
        h = other[2][k]
        if g is None and h is None: continue
        close(torch.zeros_like(h) if g is None else g, torch.zeros_like(g) if h is None else h, grad_tol)


# Parity

def outputs(model, inputs):
    "What `outputs.npz` holds, of our network"
    x = {k: torch.as_tensor(v) for k, v in inputs.items()}
    with torch.no_grad():
        out = {k: v.softmax(1) for k, v in model(x).items()} | model.encode(x)
        if model.projector is not None: out |= {f'{m}_projection': v for m, v in model.project(x).items()}
    return {k: v.numpy() for k, v in out.items()}


def agree(ours, theirs):
    assert set(ours) == set(theirs)
    for k in ours: assert ours[k].shape == theirs[k].shape and np.abs(ours[k] - theirs[k]).max() < 1e-5, k


@needs_parity
@pytest.mark.parametrize('variant', VARIANTS)
def test_every_variant_equals_the_stored_outputs(variant):
    recipe, stored = parity_recipe(), np.load(parity_folder()/'outputs.npz')
    want = {k.split('/')[1]: stored[k] for k in stored if k.startswith(variant + '/')}
    weights, inputs = recipe.weights(variant), recipe.inputs()
    net = load_upstream(weights, variant, recipe.TEXT_CONFIG, verbose=False)
    agree(outputs(net, inputs), want)
    if variant in ('multi_task', 'contrastive'):  # the reference of the next test
        agree(Reference(weights, variant)(inputs), want)
    if variant == 'binary':
        net.packed = False
        agree(outputs(net, inputs), want)


# no clip fills the batch
DRAWS = [dict(seed=1, text_len=20, text=(20, 1, 6), video=(4, 9, 1), audio=(2, 13, 7), video_len=9, audio_len=13),
         dict(seed=2, text_len=33, text=(5, 12), video=(3, 8), audio=(6, 1), video_len=11, audio_len=10)]

@needs_parity
@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize(
    'salt', ['again', 'and again'] if os.environ.get('HYPOTHESIS_PROFILE') == 'nightly' else ['again'])
def test_other_weights_and_lengths_equal_the_network_as_described(variant, salt):
    recipe = parity_recipe()
    weights = recipe.weights(variant, salt)
    net, reference = load_upstream(weights, variant, recipe.TEXT_CONFIG, verbose=False), Reference(weights, variant)
    for draw in DRAWS: agree(outputs(net, recipe.inputs(**draw)), reference(recipe.inputs(**draw)))


# Contract

def test_contract_tasks_are_the_five():
    assert [t.name for t in COMIC_MISCHIEF] == ['binary', 'mature', 'gory', 'slapstick', 'sarcasm'] and isinstance(
        COMIC_MISCHIEF, tuple)


def test_contract_from_clips_to_loss():
    g = torch.Generator().manual_seed(0)
    clips = [
        Clip('a', text=[5, 6, 7], video=torch.randn(4, 1024, generator=g), audio=torch.randn(2, 128, generator=g),
             labels=dict(binary=1, gory=0)),
        Clip('b', text=[8], labels=dict(binary=0)),
    ]
    inputs, targets = collate(clips, tasks=COMIC_MISCHIEF)
    net = HICCAP(HICCAPConfig.tiny(), tasks=COMIC_MISCHIEF)
    logits, pooled = net(inputs), net.encode(inputs)
    assert {k: tuple(v.shape) for k, v in logits.items()} == {t.name: (2, 2) for t in COMIC_MISCHIEF}
    assert {k: tuple(v.shape) for k, v in pooled.items()} == {m: (2, 16) for m in ('text', 'video', 'audio')}
    loss = MultiTaskLoss(COMIC_MISCHIEF)
    value = loss(logits, targets)
    assert value.shape == () and set(loss.per_task) == {'binary', 'gory'}
    value.backward()


def test_contract_the_default_network_is_full_width():
    c = HICCAPConfig()
    assert (c.width, c.heads, c.video, c.audio) == (768, 12, FeaturesConfig(1024), FeaturesConfig(128))
    with torch.device('meta'): net = HICCAP(c, COMIC_MISCHIEF, pretrained=False)
    assert net.encoders['text'].backbone.config.hidden_size == 768 and net.heads['task_gory'][0].in_features == 3*768


@pytest.mark.parametrize('variant', VARIANTS)
def test_contract_upstream_variants(variant):
    tiny = HICCAPConfig.tiny()
    net = HICCAP(HICCAPConfig.upstream(variant, text=tiny.text, video=tiny.video, audio=tiny.audio, width=16, heads=2),
                 TASKS if variant in ('binary', 'multi_task') else ()).eval()
    inputs = collate(
        [Clip('a', [4, 5], torch.ones(2, 1024), torch.ones(3, 128)),
         Clip('b', [4], torch.ones(1, 1024), torch.ones(1, 128))],
        (),
    )[0]
    out = net(inputs)
    if variant == 'matching':
        assert {k: tuple(v.shape) for k, v in out.items()} == dict(
            text_audio=(2, 2), video_audio=(2, 2), video_text=(2, 2))
    elif variant == 'contrastive':
        assert {k: tuple(v.shape) for k, v in net.project(inputs).items()} == {m: (2, 400) for m in MODALITIES}
    else: assert list(out) == ['a', 'b', 'c']
    assert net.config.dropout == (0.2 if variant in ('binary', 'multi_task') else 0.1) and (
        net.config.state_dropout, net.config.attention_dropout, net.config.head_dropout) == (0.3, 0.1, 0.3)
    if variant != 'contrastive':
        with pytest.raises(ValueError, match='projection'): net.project(inputs)


def test_heavy_packages_are_imported_where_they_are_used():
    "So that `--help` answers at once"
    for name in ('model', 'checkpoints', 'losses', 'metrics'):
        top = [o for o in ast.parse((Path(hiccap.__file__).parent / f'{name}.py').read_text()).body
               if isinstance(o, (ast.Import, ast.ImportFrom))]
        names = {a.name.split('.')[0] for o in top if isinstance(o, ast.Import) for a in o.names} | {
            (o.module or '').split('.')[0] for o in top if isinstance(o, ast.ImportFrom)}
        assert names and not names & {'transformers', 'fastai', 'pandas', 'matplotlib', 'sklearn', 'safetensors'}, name


# Invariant 1: padding says nothing

@proof
@given(layouts(), st.booleans(), st.booleans(), st.booleans())
def test_padding_says_nothing(model, batch, training, packed, other_packed):
    _, tight, loose = batch
    model.train(training)
    same(learn(model, tight, packed), learn(model, loose, other_packed))


@proof
@given(layouts())
def test_batch_mates_say_nothing(model, batch):
    clips, tight, loose = batch
    model.eval()
    with torch.no_grad():
        together = model(loose)
        for i, c in enumerate(clips):
            alone = model(collate([c], ())[0])
            for k in together: close(together[k][i:i+1], alone[k])


@proof
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=3),
    st.sampled_from(['left', 'right']),
       st.integers(0, 5), st.booleans(), st.integers(0, 9))
def test_padding_by_collate_says_nothing(model, ns, side, more, segments, seed):
    g = torch.Generator().manual_seed(seed)
    clips = [clip(n, g, f'c{i}') for i, n in enumerate(ns)]
    if segments:
        for c in clips:
            if c.text is not None: c.segments = (torch.arange(len(c.text)) >= len(c.text)//2).long()
    model.eval()
    base, _ = collate(clips, ())
    padded, _ = collate(clips, (), side, {m: base[m].shape[1] + more for m in MODALITIES})
    same(learn(model, base), learn(model, padded, packed=False))


def test_words_in_another_order_or_segment_say_something(model):
    g = torch.Generator().manual_seed(0)
    c = clip((5, 3, 3), g)
    model.eval()
    base = model(collate([c], ())[0])['a']
    turned = model(collate([Clip('t', c.text.flip(0), c.video, c.audio)], ())[0])['a']
    captions = model(collate([Clip('t', c.text, c.video, c.audio, segments=[0, 0, 1, 1, 1])], ())[0])['a']
    played = model(collate([Clip('t', c.text, c.video.flip(0), c.audio)], ())[0])['a']
    for other in (turned, captions, played): assert (other - base).abs().max() > 1e-4


KINDS = dict(bert={}, roberta=dict(pad_token_id=1, type_vocab_size=1), distilbert={}, electra={},
             albert=dict(embedding_size=8), mpnet={}, gpt2={})

@pytest.mark.parametrize('kind', KINDS)
def test_any_text_encoder_reads_each_text_as_if_alone(kind):
    "Also with more tokens than the encoder has positions, padding anywhere, its own position numbers, and segments"
    size = dict(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=34, bos_token_id=0, eos_token_id=2, **KINDS[kind])
    net = TokenEncoder(TokensConfig({'model_type': kind, **size}), 8, 0., 0.).eval()
    g = torch.Generator().manual_seed(0)
    ids, mask = torch.randint(3, VOCAB, (4, 30), generator=g), torch.rand(4, 30, generator=g) < .7
    mask[0], mask[3] = True, False
    segments = (torch.arange(30) > 12).long().expand(4, 30)
    for packed in (True, False):
        with torch.no_grad():
            states, rows = net(ids, mask, packed, segments)
            states, shown = rows.unpack(states), rows.mask
            assert torch.equal(shown.sum(1), mask.sum(1))
            for i in range(3):
                alone, _ = net(ids[i : i + 1, mask[i]], torch.ones(1, int(mask[i].sum()), dtype=torch.bool), packed,
                               segments[i : i + 1, mask[i]])
                close(states[i][shown[i]], alone)
    backbone = copy.deepcopy(net.backbone)
    if hasattr(backbone, 'set_attn_implementation'): backbone.set_attn_implementation('eager')
    n = int(mask[1].sum())
    with torch.no_grad():
        plain = net.project(backbone(ids[1:2, mask[1]], attention_mask=torch.ones(1, n).long()).last_hidden_state[0])
    with torch.no_grad(): states, rows = net(ids, mask)
    close(rows.unpack(states)[1][:n], plain)  # as transformers, which counts positions by its own rule


def test_a_text_of_the_greatest_length_and_one_more():
    # RoFormer counts positions itself, padding included
    for kind, longest in (('bert', 12), ('roberta', 10), ('roformer', 12)):
        net = HICCAP(
            small(
                text=TokensConfig(
                    {**BERT, 'model_type': kind, 'max_position_embeddings': 12,
                     **dict(roberta=dict(pad_token_id=1), roformer=dict(embedding_size=16)).get(kind, {})}
                )
            ),
            TASKS,
        ).eval()
        assert net.encoders['text'].max_length == longest
        for n in (longest, longest + 1):
            inputs = collate([Clip('a', torch.full((n,), 5)), Clip('b', [4])], (), lengths=dict(text=20))[0]
            if n == longest:
                for packed in (True, False):
                    net.packed = packed
                    assert all(v.isfinite().all() for v in net(inputs).values())
            else:
                with pytest.raises(ValueError, match=f'text of row 0 has {n} tokens; its encoder takes {longest}'):
                    net(inputs)


def test_an_encoder_may_have_no_greatest_length():
    net = HICCAP(
        small(
            text=TokensConfig(
                dict(model_type='xlnet', vocab_size=VOCAB, d_model=16, n_layer=1, n_head=2, d_head=8, d_inner=32))
        ),
        TASKS,
        seed=0,
    ).eval()
    assert net.encoders['text'].max_length is None and net(collate([Clip('a', [4]*40)], ())[0])['a'].isfinite().all()


@proof
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_rows_come_back_with_zeros_at_padding(masks, packed, wide):
    mask = torch.tensor(masks)
    x = (torch.arange(1.0, 1 + mask.numel() * 3).reshape(*mask.shape, 3) if wide
         else torch.arange(1.0, 1 + mask.numel()).reshape(mask.shape))
    rows = PackedRows(mask, packed)
    assert torch.equal(rows.unpack(rows.pack(x)), torch.where(mask[..., None] if wide else mask, x, 0.))
    assert len(rows.pack(x)) == (mask.sum() if packed else mask.numel())
    assert torch.equal((everything := PackedRows(mask, packed, padding=True)).unpack(everything.pack(x)), x)


# Invariant 2: absence is a value

@pytest.mark.parametrize('there', list(itertools.product((True, False), repeat=3)))
@pytest.mark.parametrize('as_none', [True, False])
def test_every_subset_of_modalities(model, there, as_none):
    "A clip with some modalities, in a batch where others have them and in one where nobody has"
    model.train()
    g = torch.Generator().manual_seed(1)
    some, full = clip([n*t for n, t in zip((4, 3, 2), there)], g, 'some'), clip((4, 3, 2), g, 'full')
    clips = [some] if as_none else [some, full]
    logits, loss, grads = learn(model, collate(clips, ())[0])
    assert np.isfinite(loss) and all(v.isfinite().all() for v in logits.values())
    assert all(g.isfinite().all() for g in grads.values() if g is not None)
    def learns(start): return any(n.startswith(start) and g is not None and g.abs().max() > 0 for n, g in grads.items())
    for m, t in zip(MODALITIES, there):
        assert learns(f'absent.{m}') == (not t)
        assert learns(f'encoders.{m}.') == (t or not as_none)


def test_an_absent_modality_is_not_a_silent_one(model):
    model.eval()
    g = torch.Generator().manual_seed(0)
    c = clip((4, 3, 2), g)
    absent, zeros = (model(collate([Clip('x', c.text, v, c.audio)], ())[0])['a'] for v in (None, torch.zeros(3, VIDEO)))
    assert (absent - zeros).abs().max() > 1e-3
    moved = copy.deepcopy(model)
    with torch.no_grad(): moved.absent['video'].add_(1.)
    assert (moved(collate([Clip('x', c.text, None, c.audio)], ())[0])['a'] - absent).abs().max() > 1e-4
    close(moved(collate([c], ())[0])['a'], model(collate([c], ())[0])['a'])


# Invariant 3: finite in, finite out

@pytest.fixture(scope='module', params=NETWORKS)
def loud(request):
    "(dtype, where, size) -> the network with attention or pooling scores of that size, and those scores measured"
    made = {}
    def get(dtype, where, size):
        if (key := (dtype, where, size)) in made: return made[key]
        net = HICCAP(small(**NETWORKS[request.param]), TASKS, seed=0)
        with torch.no_grad():
            for n, p in net.named_parameters():
                if where in ('pooling', 'both') and n.startswith('pools.') and n.endswith('.v'):
                    p.mul_(size/p.abs().sum())
                if where in ('pooling', 'both') and n.startswith('pools.') and n.endswith('.u.weight'): p.mul_(8.)
                if where in ('attention', 'both') and 'fusion' in n and ('query.weight' in n or 'key.weight' in n):
                    p.mul_((size/1.5)**.5)
                if where in ('attention', 'both') and 'backbone' in n and ('query.weight' in n or 'key.weight' in n):
                    p.mul_((size*20)**.5)
        return made.setdefault(key, net.to(dtype))
    return get


DTYPES = torch.float32, torch.bfloat16, torch.float16

def rounding(dtype, where, size):
    """How far apart outputs and gradients may be by rounding alone; None if a rounded score decides between positions.

    In float64 rounding is never the reason, so equality is tested at every score; only the pooling's scores are float32
    there too."""
    if dtype == torch.float64: return (1e-6, 1e-6) if where == 'attention' else (1e-6*size, 5e-6*size)
    if dtype == torch.float32: return (2e-5, 1e-4) if size == 1 else (2e-4, 1e-3) if size == 100 else None
    return (16*torch.finfo(dtype).eps, 64*torch.finfo(dtype).eps) if size == 1 else None


@proof
@given(layouts(), st.sampled_from([*DTYPES, torch.float64]), st.sampled_from(['pooling', 'attention', 'both']),
    st.sampled_from([1., 100., 1e4]),
       st.booleans(), st.booleans(), st.booleans())
def test_finite_in_finite_out(loud, batch, dtype, where, size, training, packed, other_packed):
    "Any subset of modalities, any length and mask, any padding: finite, and equal as far as the precision tells"
    net, (_, tight, loose) = loud(dtype, where, size).train(training), batch
    results = learn(net, tight, packed), learn(net, loose, other_packed)
    for logits, loss, grads in results:
        assert all(v.isfinite().all() for v in logits.values()) and np.isfinite(loss)
        for n, p in grads.items(): assert p is None or p.isfinite().all(), n
    if tol := rounding(dtype, where, size): same(*results, *tol)


def test_the_scores_of_that_test_are_as_large_as_it_says(loud):
    g = torch.Generator().manual_seed(0)
    inputs, _ = collate([clip((5, 5, 5), g, f'c{i}') for i in range(4)], ())
    net, seen = loud(torch.float32, 'both', 1e4).eval(), {}
    x, rows = net.pack_states(net.encode_unimodal(inputs))
    pooled = max(net.pools[m].scores(h).abs().max().item() for m, h in net.fusion(x, rows).items())
    b = net.fusion.branches['text']; b = b.attentions[0] if hasattr(b, 'attentions') else b.attention
    q, k = b.query(x['text']).unflatten(-1, (2, 8)), b.key(x['video']).unflatten(-1, (2, 8))
    seen = dict(pooling=pooled, attention=torch.einsum('nhd,mhd->hnm', q, k).abs().max().item()/8**.5)
    bert = net.encoders['text'].backbone
    h = bert.embeddings(input_ids=inputs['text'])
    a = bert.encoder.layer[0].attention.self
    q, k = (o(h).unflatten(-1, (2, 8)).transpose(1, 2) for o in (a.query, a.key))
    seen['text encoder'] = (q @ k.transpose(-1, -2)).abs().max().item()/8**.5
    assert all(2e3 < s < 6e4 for s in seen.values()), seen


@proof
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8), st.data(), st.sampled_from(DTYPES))
def test_masked_softmax_is_the_softmax_of_what_is_real(scores, data, dtype):
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores))))
    s = torch.tensor(scores, dtype=dtype, requires_grad=True)
    dirty = torch.where(mask, s, data.draw(st.sampled_from([float('nan'), float('inf'), 1e4])))
    w = masked_softmax(dirty[None], mask[None])[0]
    want = np.zeros(len(scores))
    if mask.any():
        x = s.detach().double().numpy()[mask.numpy()]
        e = np.exp(x - x.max())
        want[mask.numpy()] = e/e.sum()
    assert np.abs(w.detach().numpy() - want).max() < 1e-5
    (w*torch.arange(len(scores))).sum().backward()
    assert s.grad.isfinite().all() and (s.grad[~mask] == 0).all()


@pytest.mark.parametrize('dtype', DTYPES)
def test_pooling_scores_are_summed_in_full_precision(loud, dtype):
    pool = loud(dtype, 'pooling', 1e4).pools['video']
    h = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    s = pool.scores(h)
    want = (torch.tanh(pool.u(h)).double()*pool.v.double()).sum(-1)
    assert s.dtype == torch.float32 and (s - want).abs().max() < 1e-6*want.abs().max() and want.abs().max() > 1e3


def test_a_fully_masked_row_is_unmasked():
    q, k, v = torch.randn(3, 2, 1, 4, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]]).bool()
    out = attend(q.requires_grad_(), k, v, mask)
    close(out[1], attend(q[1:], k[1:], v[1:], torch.ones(1, 4).bool())[0])
    close(out[0], attend(q[:1], k[:1, :, ::2], v[:1, :, ::2], torch.ones(1, 2).bool())[0])
    assert torch.autograd.grad(out.sum(), q)[0].isfinite().all()


@pytest.mark.parametrize('dtype', DTYPES)
def test_lower_precision_gives_the_same_answer_roughly(model, dtype):
    g = torch.Generator().manual_seed(0)
    inputs, _ = collate([clip((5, 4, 3), g, 'a'), clip((2, 0, 1), g, 'b')], ())
    low = copy.deepcopy(model).eval().to(dtype)(inputs)
    for k, v in model.eval()(inputs).items(): close(v, low[k], 1e-6 if dtype == torch.float32 else .05)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_mixed_precision_takes_every_subset(model, dtype):
    g = torch.Generator().manual_seed(0)
    for ns in itertools.product((0, 3), repeat=3):
        for clips in ([clip(ns, g)], [clip(ns, g), clip((2, 2, 2), g, 'd')]):
            inputs, _ = collate(clips, ())
            with torch.autocast('cpu', dtype): logits, loss, grads = learn(model.train(), inputs)
            assert (np.isfinite(loss) and all(v.isfinite().all() for v in logits.values())
                    and all(p is None or p.isfinite().all() for p in grads.values()))
            for k, v in model.eval()(inputs).items(): close(v.detach(), logits[k], .1)


# What upstream did otherwise

def test_each_projection_is_computed_once(model):
    "Of X, of what the first step gave, and of each context"
    seen, hooks = {}, []
    for n, m in model.named_modules():
        if isinstance(m, torch.nn.Linear):
            hooks.append(m.register_forward_hook(lambda *a, n=n: seen.__setitem__(n, seen.get(n, 0) + 1)))
    model.eval()(collate([clip((3, 2, 2), torch.Generator().manual_seed(0))], ())[0])
    for h in hooks: h.remove()
    assert seen and all(c == (2 if '.attention.' in n and n.startswith('fusion') else 1) for n, c in seen.items())


def test_default_heads_bend_and_the_originals_do_not():
    x = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    for head, straight in (('mlp', False), ('upstream', True)):
        h = HICCAP(small(head=head), TASKS[:1], seed=0).eval().heads['task_a']
        middle = (h(x.mean(0, keepdim=True)) - h(x).mean(0)).abs().max()
        assert (middle < 1e-5) == straight


# Invariant 4, as the network has it: the head of an absent task learns nothing

@proof
@given(st.lists(sizes, min_size=1, max_size=3), st.data())
def test_an_absent_task_teaches_no_head(model, ns, data):
    model.train()
    g = torch.Generator().manual_seed(0)
    inputs, _ = collate([clip(n, g, f'c{i}') for i, n in enumerate(ns)], ())
    known = {
        t.name: data.draw(st.lists(st.booleans(), min_size=len(ns), max_size=len(ns)), label=t.name) for t in TASKS}
    targets = {
        t.name: torch.tensor([i % t.n_classes if k else IGNORE for i, k in enumerate(known[t.name])]) for t in TASKS}
    model.zero_grad(set_to_none=True)
    loss = MultiTaskLoss(TASKS)
    loss(model(inputs), targets).backward()
    assert set(loss.per_task) == {k for k, v in known.items() if any(v)}
    for t in TASKS:
        grads = [p.grad for p in model.heads[f'task_{t.name}'].parameters()]
        if any(known[t.name]): assert any(o is not None and o.abs().max() > 0 for o in grads)
        elif any(map(any, known.values())): assert all(o is None for o in grads)
        else: assert all(o is None or not o.any() for o in grads)


# Shapes, widths and kinds of input

@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2))
def test_feature_widths_of_any_size(video, audio, layers):
    net = HICCAP(
        small(video=FeaturesConfig(video, 4, layers), audio=FeaturesConfig(audio, 4, layers)), TASKS[:1], seed=0)
    inputs, _ = collate(
        [Clip('a', [3, 4], torch.ones(3, video), torch.ones(2, audio)), Clip('b', [3], None, torch.ones(1, audio))], ())
    assert net(inputs)['a'].shape == (2, 2)
    with pytest.raises(ValueError, match='video has shape .* the model takes'):
        net(collate([Clip('a', [3], torch.ones(3, video + 1))], ())[0])


def test_text_as_vectors_and_video_as_tokens():
    net = HICCAP(small(text=FeaturesConfig(12, 8, 1), video=TokensConfig(BERT)), TASKS, seed=0).train()
    g = torch.Generator().manual_seed(0)
    text = torch.randn(4, 12, generator=g)
    inputs, _ = collate([Clip('a', text, None, torch.ones(2, AUDIO)), Clip('b', text[:1])], ())
    inputs |= dict(
        video=torch.tensor([[0, 5, 6, 7], [0, 0, 0, 0]]), video_mask=torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0]]).bool())
    logits = net(inputs)
    close(net.eval()(collate([Clip('b', text[:1])], ())[0])['a'], net(inputs)['a'][1:])
    sum(v.square().sum() for v in net.train()(inputs).values()).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for n, p in net.named_parameters() if n.startswith('encoders'))
    assert logits['b'].shape == (2, 3) and len(net.param_groups()[0]) == len(
        list(net.encoders['video'].backbone.parameters()))


@given(layouts())
def test_states_of_a_frozen_encoder_stand_for_its_tokens(model, batch):
    "What the text encoder made of the tokens before, given in their place, gives the same logits"
    clips, tight, _ = batch
    model.eval()
    with torch.no_grad():
        encoder = model.encoders['text']
        states = [None if c.text is None else encoder(c.text[None], torch.ones(1, len(c.text), dtype=torch.bool))[0]
                  for c in clips]
        again, _ = collate([Clip(c.id, s, c.video, c.audio) for c, s in zip(clips, states)], (), 'left')
        for packed in (True, False):
            model.packed = packed
            for k, v in model(again).items(): close(v, model(tight)[k])
        model.packed = True


@pytest.mark.parametrize('head', ['mlp', 'upstream'])
def test_a_training_batch_of_one(head):
    net = HICCAP(small(head=head, matching=True, projection=5), TASKS, seed=0).train()
    one = collate([clip((3, 2, 1), torch.Generator().manual_seed(0))], ())[0]
    if head == 'mlp':
        logits = net(one)
        assert all(v.shape[0] == 1 and v.isfinite().all() for v in logits.values()) and net.project(one)[
            'text'].shape == (1, 5)
        sum(v.square().sum() for v in logits.values()).backward()
    else:
        for ask in (net, net.project):
            message = "BatchNorm cannot train on a batch of one; .*HICCAPConfig\\(head='mlp'\\)"
            with pytest.raises(ValueError, match=message): ask(one)
        assert net.eval()(one)['a'].shape == (1, 2)


def test_the_seed_decides_the_weights_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = HICCAP(small(), TASKS, seed=1), HICCAP(small(), TASKS, seed=1), HICCAP(small(), TASKS, seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert any(not torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters()))


def test_bad_input_is_named(model):
    g = torch.Generator().manual_seed(0)
    inputs, _ = collate([clip((3, 2, 1), g, 'a'), clip((1, 2, 1), g, 'b')], ())
    for change, message in (
            (dict(text=torch.full((2, 3), VOCAB)), 'text of row 0 has the token id 50 at position 0'),
            (dict(text=-torch.ones(2, 3).long()), 'token id -1'),
            (dict(video=torch.ones(2, 2, 9)), 'video has shape'),
            (dict(audio_mask=torch.ones(2, 5).bool()), 'audio_mask'),
            (dict(text=torch.ones(2, 3, 5)), 'text has shape'),
            (dict(audio=torch.ones(3, 1, AUDIO), audio_mask=torch.ones(3, 1).bool()), 'as many rows')):
        with pytest.raises(ValueError, match=message): model({**inputs, **change})
    with pytest.raises(ValueError, match="no 'video'"): model({k: v for k, v in inputs.items() if k != 'video'})
    for kw, message in ((dict(video=FeaturesConfig), 'An encoder is'), (dict(contexts=dict(text='va')), 'contexts'),
            (dict(dropout=float('nan')), 'dropout'), (dict(head_widths=(0,)), 'widths')):
        with pytest.raises(ValueError, match=message): small(**kw)
    for make in (lambda: FeaturesConfig('6'), lambda: FeaturesConfig(6.5), lambda: FeaturesConfig(6, layers=-1),
            lambda: small(video=True)):
        with pytest.raises(ValueError): make()


@given(st.sampled_from(['video', 'text']), st.integers(1, 3), st.booleans(), st.sampled_from(['softmax', 'exp']),
    st.lists(st.integers(1, 9), max_size=3))
def test_a_configuration_survives_json(m, n, flag, pooling, widths):
    c = small(**{m: FeaturesConfig(n, layers=0), 'soft_mask': flag, 'pooling': pooling, 'head_widths': tuple(widths)})
    assert HICCAPConfig.from_dict(json.loads(json.dumps(c.to_dict()))) == c
