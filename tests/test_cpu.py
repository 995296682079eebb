"""Dropout and attention for training on a CPU: any lengths, heads and pieces of work, against PyTorch's operations."""
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hiccap.cpu as cpu
import hiccap.attention as attention
from hiccap.cpu import Dropout, attend_spans, draw_kept, pack_mask, quick_dropout, unpack_mask
from hiccap.attention import PackedRows, attend_rows
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.tasks import Task

proof = pytest.mark.proof
sizes = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5)


def spans_of(sizes):
    a, c = ([0, *torch.tensor([o[i] for o in sizes]).cumsum(0).tolist()] for i in (0, 1))
    return list(zip(a, a[1:], c, c[1:]))


@proof
@given(sizes, st.integers(0, 2**31))
def test_clips_may_attend_to_the_same_positions(sizes, seed):
    g = torch.Generator().manual_seed(seed)
    ends, shared, n = [0], [], 12
    for a, _ in sizes:
        c, d = sorted(torch.randint(0, n + 1, (2,), generator=g).tolist())
        shared.append((ends[-1], ends[-1] + a, c, d)); ends.append(ends[-1] + a)
    q, k, v = (torch.randn(m, 2, 3, generator=g, dtype=torch.float64, requires_grad=True) for m in (ends[-1], n, n))
    count = 2*sum((b - a)*(d - c) for a, b, c, d in shared)
    found, want = attend_spans(q, k, v, shared), plain(q, k, v, shared, torch.ones(count, dtype=torch.float64), 3**-.5)
    torch.testing.assert_close(found, want)
    for o, e in zip(torch.autograd.grad(found.pow(2).sum(), (q, k, v)),
            torch.autograd.grad(want.pow(2).sum(), (q, k, v))):
        torch.testing.assert_close(o, e)


def plain(q, k, v, spans, kept, scale):
    "Clip after clip, head after head; `kept`: a multiplier for each score, in the order of clips and heads"
    out, at = q*0 + k.sum()*0 + v.sum()*0, 0
    for a, b, c, d in spans:
        for h in range(q.shape[1]):
            n = (b - a)*(d - c)
            if n:
                w = torch.softmax(q[a:b, h] @ k[c:d, h].T*scale, -1)*kept[at:at + n].view(b - a, d - c)
                out = out.index_put((torch.arange(a, b), torch.tensor(h)), w @ v[c:d, h])
            at += n
    return out


@proof
@given(sizes, st.integers(1, 4), st.sampled_from([0., .1, .5, .9]), st.sampled_from([1, 5, 40, 2**19]), st.booleans(),
    st.integers(0, 2**31))
def test_attention_is_what_its_parts_are(sizes, heads, p, scratch, strided, seed):
    g, spans = torch.Generator().manual_seed(seed), spans_of(sizes)
    def drawn(n):
        return (torch.randn(n, 3, heads, generator=g, dtype=torch.float64).transpose(1, 2) if strided
                else torch.randn(n, heads, 3, generator=g, dtype=torch.float64)).requires_grad_()
    q, k, v = drawn(spans[-1][1]), drawn(spans[-1][3]), drawn(spans[-1][3])
    weights = torch.randn(q.shape, generator=g, dtype=torch.float64)
    kept_scratch, cpu.SCRATCH = cpu.SCRATCH, scratch
    try:
        torch.manual_seed(seed)
        found = attend_spans(q, k, v, spans, p)
        gradients = torch.autograd.grad((found*weights).sum(), (q, k, v))
    finally: cpu.SCRATCH = kept_scratch
    torch.manual_seed(seed)
    keep, up = draw_kept(heads*sum((b - a)*(d - c) for a, b, c, d in spans), p)
    want = plain(q, k, v, spans, keep*up, 3**-.5)
    torch.testing.assert_close(found, want)
    for o, e in zip(gradients, torch.autograd.grad((want*weights).sum(), (q, k, v))): torch.testing.assert_close(o, e)


@proof
@given(st.integers(0, 3000), st.floats(0, .999), st.integers(0, 2**31))
def test_any_number_is_kept_with_the_probability_that_was_asked(n, p, seed):
    kept, up = draw_kept(n, p, torch.Generator().manual_seed(seed))
    assert kept.shape == (n,) and kept.dtype == torch.uint8 and not n or kept.max() <= 1
    assert abs(1/up - (1 - p)) <= 2**-17 + 1e-12
    assert abs(kept.sum().item() - n*(1 - p)) <= 6*math.sqrt(n*p*(1 - p)) + 3
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try: assert torch.equal(kept, draw_kept(n, p, torch.Generator().manual_seed(seed))[0])
    finally: torch.set_num_threads(before)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=3), st.integers(0, 2**31))
def test_a_mask_is_the_same_after_it_was_packed(shape, seed):
    keep = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < .5).to(torch.uint8)
    bits = pack_mask(keep)
    assert torch.equal(unpack_mask(bits, keep.shape), keep) and bits.nbytes == -(-keep.numel()//8)


def test_dropout_keeps_a_bit_for_each_number():
    kept, x = [], torch.randn(300, 301, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda o: kept.append(o) or o, lambda o: o): y = Dropout(.4)(x)
    assert [o.untyped_storage().nbytes() for o in kept] == [-(-x.numel()//8)]
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0] > 0, y != 0)


def test_scores_of_any_size_give_finite_gradients():
    q = torch.tensor([[[1e4]], [[-1e4]], [[0.]]]).requires_grad_()
    attend_spans(q, q*1e4, q, [(0, 3, 0, 3)], .5).sum().backward()
    assert q.grad.isfinite().all()


def test_the_kept_mask_is_what_the_gradient_used():
    drop, x = Dropout(.4), torch.randn(70_000, dtype=torch.float64, requires_grad=True)
    y = drop(x)
    y.backward(torch.ones_like(y))
    assert torch.equal(x.grad != 0, y != 0)
    torch.testing.assert_close(x.grad*x, y)
    z = torch.randn(70_000, dtype=torch.float64, requires_grad=True)
    g, = torch.autograd.grad(drop(z).pow(2).sum(), z, create_graph=True)  # may be differentiated twice, as PyTorch's
    assert torch.autograd.grad(g.sum(), z)[0].unique().numel() == 2


@pytest.mark.parametrize('inner', [nn.Dropout(0.), nn.Dropout(1.), nn.Dropout(.3, inplace=True)],
    ids=['none', 'all', 'inplace'])
def test_what_it_does_not_do_better_is_left_to_pytorch(inner):
    x, usual = torch.ones(70_000), nn.Dropout(inner.p, inner.inplace)
    torch.manual_seed(1)
    want = usual(x.clone())
    torch.manual_seed(1)
    assert torch.equal(quick_dropout(inner)(x.clone()), want)
    assert type(inner) is Dropout


@pytest.mark.parametrize('mixed', [False, True])
def test_a_network_trains_through_it(monkeypatch, mixed):
    "A step whose rows are long enough, with the network's own dropout; the encoder of `transformers` too"
    torch.manual_seed(0)
    text = dict(
        kind='tokens',
        config=dict(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    net = HICCAP(HICCAPConfig.tiny(text=text), [Task('binary')], seed=0).train()
    assert not [k for k, m in net.named_modules() if type(m) is nn.Dropout]
    mask = torch.arange(120) < torch.tensor([120, 100])[:, None]
    x = dict(text=torch.randint(5, 50, (2, 120)), text_mask=mask, video=torch.randn(2, 120, 1024), video_mask=mask,
             audio=torch.randn(2, 120, 128), audio_mask=mask)
    calls = []
    def counted(*a, **kw): calls.append(a[3]); return attend_spans(*a, **kw)
    monkeypatch.setattr(attention, 'attend_spans', counted)
    with torch.autocast('cpu', torch.bfloat16, enabled=mixed): loss = net(x)['binary'].float().sum()
    loss.backward()
    # BERT's layer, and two attentions of each modality
    assert len(calls) == 7 and calls[0] == [(0, 120, 0, 120), (120, 220, 120, 220)]
    unused = set(map(id, net.absent.values()))
    assert all(p.grad.isfinite().all() and p.grad.any() for k, p in net.named_parameters()
               if id(p) not in unused and 'key.bias' not in k)


@proof
@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(0, 2**31))
def test_rows_go_either_way_to_the_same_answer(lengths, seed):
    g = torch.Generator().manual_seed(seed)
    # real positions anywhere
    mask = torch.rand(len(lengths), 41, generator=g).argsort(1).argsort(1) < torch.tensor(lengths)[:, None]
    rows, n = PackedRows(mask), int(mask.sum())
    q, k, v = (torch.randn(n, 2, 4, generator=g) for _ in range(3))
    kept, attention.WORTH_SLICING = attention.WORTH_SLICING, 1
    try:
        if n: assert attention._spans(q, rows, k, rows)
        torch.testing.assert_close(
            attend_rows(q, rows, k, v, rows, 1e-9), attend_rows(q, rows, k, v, rows, 0.0), rtol=1e-4, atol=1e-5)
    finally: attention.WORTH_SLICING = kept


@pytest.mark.parametrize('mixed', [False, True])
@pytest.mark.parametrize('p', [0., .3])
def test_attention_in_bfloat16_computes_in_float32_and_keeps_no_scores(p, mixed):
    g = torch.Generator().manual_seed(0)
    q, k, v = ((torch.randn(300, 2, 8, generator=g)*3).bfloat16().requires_grad_() for _ in range(3))
    spans, kept = [(0, 100, 0, 100), (100, 300, 100, 300)], {}
    def note(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x
    torch.manual_seed(1)
    with torch.autocast('cpu', torch.bfloat16, enabled=mixed):
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x): out = attend_spans(q, k, v, spans, p)
    torch.manual_seed(1)
    full = [o.detach().float().requires_grad_() for o in (q, k, v)]
    want = attend_spans(*full, spans, p)
    assert out.dtype == torch.bfloat16 and torch.equal(out, want.bfloat16())  # rounded once, at the end
    scores = 2*(100**2 + 200**2)
    assert sum(kept.values()) == scores/8 + 4*2*q.numel()  # a bit of the mask for each score; q, k, v and the output
    grad = torch.randn(out.shape, generator=g).bfloat16()
    for a, b in zip(torch.autograd.grad(out, (q, k, v), grad), torch.autograd.grad(want, full, grad.float())):
        assert a.dtype == torch.bfloat16 and (a.float() - b).norm() < .01*b.norm()


@pytest.mark.parametrize('dtype,way', [(torch.float32, True), (torch.bfloat16, True), (torch.float16, False)])
def test_long_rows_under_mixed_precision_take_the_way_without_scores(dtype, way):
    mask = torch.ones(2, 120, dtype=torch.bool)
    rows = PackedRows(mask)
    q = torch.randn(240, 2, 8).to(dtype)
    with torch.autocast('cpu', torch.bfloat16): found = attention._spans(q, rows, q, rows)
    assert (found == [(0, 120, 0, 120), (120, 240, 120, 240)]) == way
