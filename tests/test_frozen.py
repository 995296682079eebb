"""Frozen text: results with the cache and without are equal; states are found by encoder and text alone; nothing
damaged is used."""
import pickle
import tempfile

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from hiccap.clips import Clip, ClipDataset, DataError
from hiccap.frozen import TextCache, encoder_digest, text_digest
from hiccap.losses import MultiTaskLoss
from hiccap.encoders import FeaturesConfig
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.padding import collate
from hiccap.tasks import Task

TASKS = Task('gory'), Task('mood', 3, classes=('sad', 'glad', 'mad'))
BERT = dict(
    kind='tokens',
    config=dict(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                max_position_embeddings=64),
)


def network(seed=0, width=16, **kw):
    model = HICCAP(
        HICCAPConfig.tiny(video=FeaturesConfig(8, 6, 2), audio=FeaturesConfig(4, 6, 1), text=BERT, width=width, **kw),
        TASKS, seed=seed)
    model.encoders['text'].freeze()
    return model


# with and without a projection after the encoder, and with means of text and captions apart
NETWORKS = {w: network(width=w, late_fusion=w == 12) for w in (16, 8, 12)}


@st.composite
def clip_sets(draw):
    "A few clips of which some say nothing, or the same, or have captions; some lack pictures, sounds or labels"
    rng, clips = np.random.default_rng(draw(st.integers(0, 2**32))), []
    for i in range(draw(st.integers(1, 6))):
        n = draw(st.sampled_from([0, 1, 2, 7, 40]))
        text = (list(clips[0].text) if clips and clips[0].text is not None and draw(st.booleans())
                else rng.integers(0, 60, n))
        seg = rng.integers(0, 2, len(text)) if draw(st.booleans()) and len(text) else None
        video, audio = (rng.normal(size=(draw(st.integers(0, 4)), w)) for w in (8, 4))
        clips.append(
            Clip(f'c{i}', torch.as_tensor(np.asarray(text)), video, audio,
                 {t.name: int(rng.integers(t.n_classes)) for t in TASKS if draw(st.booleans())}, seg)
        )
    return ClipDataset.from_clips(clips, TASKS)


def step(model, clips, seed):
    "Loss and gradients of a training step with dropout"
    torch.manual_seed(seed)
    model.train().zero_grad(set_to_none=True)
    inputs, targets = collate(clips, TASKS)
    loss = MultiTaskLoss(TASKS)(model(inputs), targets)
    if loss.requires_grad: loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@given(clip_sets(), st.sampled_from([16, 8, 12]), st.integers(0, 9))
def test_with_the_cache_and_without_are_the_same(ds, width, seed):
    model = NETWORKS[width]
    with tempfile.TemporaryDirectory() as folder:
        compare(model, ds, TextCache(model.encoders['text'], folder, file_bytes=4000).dataset(ds), seed)


def compare(model, ds, kept, seed):
    assert ('segments' in kept.columns) == ('segments' in ds.columns)
    assert (kept.lengths('text') == ds.lengths('text')).all()
    (loss, grads), (loss_kept, grads_kept) = (step(model, [o[i] for i in range(len(ds))], seed) for o in (ds, kept))
    assert torch.allclose(loss, loss_kept, atol=1e-5, equal_nan=True)
    assert set(grads) == set(grads_kept) and not any('backbone' in n for n in grads)
    if grads:
        assert torch.allclose(
            *(torch.cat([g[n].flatten() for n in grads]) for g in (grads, grads_kept)), atol=2e-5, rtol=1e-3)


@given(st.data())
def test_one_weight_or_one_token_makes_another_key(data):
    encoder = NETWORKS[16].encoders['text']
    before, params = encoder_digest(encoder), list(encoder.backbone.parameters())
    p = data.draw(st.sampled_from(params)).data.view(-1)
    i = data.draw(st.integers(0, len(p) - 1))
    was = p[i].clone()
    p[i] = torch.nextafter(was, torch.tensor(torch.inf))
    assert encoder_digest(encoder) != before
    p[i] = was
    assert encoder_digest(encoder) == before
    ids, seg = (torch.tensor(data.draw(st.lists(st.integers(0, k), min_size=5, max_size=5))) for k in (59, 1))
    at, other = data.draw(st.integers(0, 4)), ids.clone()
    other[at] = (other[at] + 1) % 60
    flipped = seg.clone()
    flipped[at] = 1 - flipped[at]
    assert (
        len(
            {text_digest(ids, seg), text_digest(other, seg), text_digest(ids, flipped), text_digest(ids[:-1], seg[:-1])}
        )
        == 4
    )


@given(st.data())
def test_nothing_damaged_is_used(tmp_path_factory, data):
    model, ds = NETWORKS[16], ClipDataset.from_clips([Clip('a', [5, 6, 7]), Clip('b', [8, 9]), Clip('c', [4]*9)], TASKS)
    at = tmp_path_factory.mktemp('damaged')
    encoder = model.encoders['text']
    kept = TextCache(encoder, at, data.draw(st.sampled_from(['float32', 'float16']))).dataset(ds)
    good = [kept[i].text for i in range(3)]
    file, = at.rglob('*.safetensors')
    precision, raw = file.parent.name.rpartition('-')[2], bytearray(file.read_bytes())
    kind, i = data.draw(st.sampled_from(['bit', 'cut', 'byte'])), data.draw(st.integers(0, len(raw) - 1))
    if kind == 'bit': raw[i] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == 'cut': raw = raw[:i]
    else: raw[i] = data.draw(st.integers(0, 255))
    changed = bytes(raw) != file.read_bytes()
    file.unlink()
    file.write_bytes(raw)
    cache = TextCache(encoder, at, precision)
    again = cache.dataset(ds)
    fixed = [again[i].text for i in range(3)]
    for a, b in zip(good, fixed): assert torch.allclose(a, b, atol=1e-6 if precision == 'float32' else 2e-3)
    if changed and kind == 'cut': assert cache.damaged and str(file) in cache.damaged[0]
    assert not TextCache(encoder, at, precision).dataset(ds)[0].text.isnan().any()


HEADS = {n: {**BERT, 'config': {**BERT['config'], **change}} for n, change in dict(
    same={}, heads=dict(num_attention_heads=4), act=dict(hidden_act='relu'), eps=dict(layer_norm_eps=.1)).items()}

@pytest.mark.parametrize('change', ['heads', 'act', 'eps'])
def test_one_setting_of_the_encoder_makes_another_key_and_other_states(tmp_path, change):
    "The weights are the same, so only the configuration tells the two apart"
    one, other = (HICCAP(HICCAPConfig.tiny(text=HEADS[n], width=16), TASKS, seed=0) for n in ('same', change))
    for p in one.encoders['text'].backbone.parameters(): p.data *= 1 + 19*(p.ndim == 2)  # attention that is not flat
    other.load_state_dict(one.state_dict())
    ds = ClipDataset.from_clips([Clip('a', [5, 6, 7]), Clip('b', [8, 9, 10, 11])], TASKS)
    states = {}
    for n, m in (('one', one), ('other', other)):
        m.encoders['text'].freeze()
        kept = TextCache(m.encoders['text'], tmp_path).dataset(ds)
        inputs, _ = collate([ds[0]], ())
        direct = m.eval().encode_unimodal(inputs)['text'][0] - m.encode_unimodal(collate([kept[0]], ())[0])['text'][0]
        assert direct.abs().max() < 1e-5
        states[n] = kept[0].text
    assert encoder_digest(one.encoders['text']) != encoder_digest(other.encoders['text'])
    assert not torch.allclose(states['one'], states['other'], atol=1e-4) and len(list(tmp_path.iterdir())) == 2


def test_what_does_not_change_the_states_does_not_change_the_key():
    a, b = (HICCAP(HICCAPConfig.tiny(text=BERT, width=w), TASKS, seed=0).encoders['text'] for w in (16, 8))
    b.backbone.load_state_dict(a.backbone.state_dict())  # another network around the same encoder
    b.backbone.config._name_or_path = 'another/folder'
    assert encoder_digest(a) == encoder_digest(b)
    ids = torch.tensor([3, 4])
    assert text_digest(ids) == text_digest(ids, torch.zeros(2).long()) == text_digest(ids.int(), torch.zeros(2).int())


def test_the_type_and_the_names_of_weights_are_part_of_the_key():
    encoder = network().encoders['text']
    for p in encoder.backbone.parameters(): p.data = p.data.half()
    half = encoder_digest(encoder)
    for p in encoder.backbone.parameters(): p.data = p.data.view(torch.bfloat16)  # the same bytes
    assert encoder_digest(encoder) != half


def test_each_precision_has_states_of_its_own(tmp_path):
    encoder, ds = network().encoders['text'], ClipDataset.from_clips([Clip('a', [5, 6, 7])], TASKS)
    caches = [TextCache(encoder, tmp_path, p) for p in ('float16', 'float32')]
    half, full = (cache.dataset(ds)[0].text for cache in caches)
    again = [TextCache(encoder, tmp_path, p) for p in ('float16', 'float32')]
    assert all(len(cache.index()) == 1 and not cache.damaged for cache in [*caches, *again])
    alone = TextCache(encoder, tmp_path/'alone').dataset(ds)[0].text
    assert torch.equal(full, alone) and not torch.equal(half, full) and torch.allclose(half, full, atol=2e-3)


def test_an_encoder_that_learns_and_an_unknown_precision_are_refused(tmp_path):
    learns = HICCAP(HICCAPConfig.tiny(text=BERT, width=16), TASKS, seed=0).encoders['text']
    with pytest.raises(ValueError, match='only a frozen text encoder'): TextCache(learns, tmp_path)
    with pytest.raises(ValueError, match="one of float32, float16, got 'int8'"):
        TextCache(network().encoders['text'], tmp_path, 'int8')


def test_segments_are_read_with_the_text_that_they_belong_to(tmp_path):
    "In one batch of texts of several lengths, of which some have segments"
    encoder = network().encoders['text']
    clips = [Clip('a', [5, 6, 7], segments=[0, 1, 1]), Clip('b', [5, 6, 7]), Clip('c', [4]),
             Clip('d', [9]*5, segments=[1]*5)]
    kept = TextCache(encoder, tmp_path).dataset(ClipDataset.from_clips(clips, TASKS))
    for i, c in enumerate(clips):
        alone = TextCache(encoder, tmp_path/c.id).dataset(ClipDataset.from_clips([c], TASKS))
        assert torch.allclose(kept[i].text, alone[0].text, atol=1e-6)
    assert not torch.allclose(kept[0].text, kept[1].text, atol=1e-4)


def test_it_is_computed_once(tmp_path):
    model, ds = network(), ClipDataset.from_clips([Clip(f'c{i}', [i + 1, 7]) for i in range(20)], TASKS)
    said = []
    TextCache(model.encoders['text'], tmp_path, write=said.append, file_bytes=1).dataset(ds.subset(range(12)))
    assert said[-1].startswith('text encoder: 12 of 12')
    said.clear()
    TextCache(model.encoders['text'], tmp_path, write=said.append).dataset(ds.subset(range(8, 20)))
    assert said[-1].startswith('text encoder: 8 of 8')
    said.clear()
    TextCache(model.encoders['text'], tmp_path, write=said.append).dataset(ds)
    assert not said
    TextCache(network(1).encoders['text'], tmp_path, write=said.append).dataset(ds)
    assert said[-1].startswith('text encoder: 20 of 20')


def test_what_cannot_be_encoded_names_the_clip(tmp_path):
    cache = TextCache(network().encoders['text'], tmp_path)
    for text, said in (([60], 'vocabulary has 60'), ([1]*65, '65 tokens'), (np.ones((2, 16)), 'vectors already')):
        with pytest.raises(DataError, match="clip 'odd'") as e:
            cache.dataset(ClipDataset.from_clips([Clip('odd', text)], TASKS, name='set'))
        assert said in str(e.value) and 'set' in str(e.value)
    assert not list(tmp_path.rglob('*.safetensors'))
    upstream = HICCAP(
        HICCAPConfig.upstream(
            'binary', text=BERT, video=FeaturesConfig(8, 6, 1), audio=FeaturesConfig(4, 6, 1), width=12),
        TASKS,
    )
    upstream.encoders['text'].freeze()
    with pytest.raises(ValueError, match='reads padding'): TextCache(upstream.encoders['text'], tmp_path)


def test_another_process_reads_it(tmp_path):
    "A worker gets the data set by pickling or forking; what it opens is its own"
    kept = TextCache(network().encoders['text'], tmp_path).dataset(
        ClipDataset.from_clips([Clip(f'c{i}', [i + 1] * (i + 1)) for i in range(10)], TASKS))
    there = pickle.loads(pickle.dumps(kept.subset(range(5, 10)).columns['text']))
    for i in range(5): assert torch.equal(there[i], kept[i + 5].text)
    sent = pickle.dumps(kept.columns['text'])
    assert not pickle.loads(sent)._open and len(sent) < 2000
