"""Dropout and attention with dropout next to PyTorch's: `OMP_NUM_THREADS=2 python benchmarks/cpu.py`.

Prints ratios, this library / PyTorch, of a forward and a backward pass: 12 heads of 64, 8 clips of one length, dropout
of 0.1. The two are called in turn, so that other load of the machine affects both, and the medians are compared.
"""
import argparse
import statistics

import torch
import torch.nn.functional as F
from steps import machine, timed
from torch import nn

from hiccap.cpu import Dropout, attend_spans


def in_turn(ours, theirs, times):
    "Median seconds of each, and the middle half of single ratios"
    found = [], []
    for f in (ours, theirs): f()
    for i in range(times):
        for which in ((0, 1), (1, 0))[i % 2]: found[which].append(timed((ours, theirs)[which]))
    ratios = sorted(a/b for a, b in zip(*found))
    return *map(statistics.median, found), ratios[len(ratios)//4], ratios[3*len(ratios)//4]


def told(label, ours, theirs, times):
    a, b, low, high = in_turn(ours, theirs, times)
    print(
        f'{label:<34} ratio {a/b:.2f}   middle half of single ratios {low:.2f} to {high:.2f}   PyTorch {1e3*b:.1f} ms',
        flush=True)


def attention(tokens, clips=8, heads=12, width=64, p=.1):
    "(ours, PyTorch's): a forward and a backward pass over the same clips"
    q, k, v = (torch.randn(clips*tokens, heads, width, requires_grad=True) for _ in range(3))
    g, spans, mask = (torch.randn(clips * tokens, heads, width),
                      [(tokens * i, tokens * (i + 1)) * 2 for i in range(clips)],
                      torch.ones(clips, 1, 1, tokens, dtype=torch.bool))
    def theirs():
        a = (o.unflatten(0, (clips, tokens)).transpose(1, 2) for o in (q, k, v))
        F.scaled_dot_product_attention(*a, mask, p).transpose(1, 2).flatten(0, 1).backward(g)
    return lambda: attend_spans(q, k, v, spans, p).backward(g), theirs


def dropout(shape, p=.1):
    x, g, ours, theirs = torch.randn(shape, requires_grad=True), torch.randn(shape), Dropout(p), nn.Dropout(p)
    return lambda: ours(x).backward(g), lambda: theirs(x).backward(g)


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--times', type=int, default=15)
    a = ap.parse_args()
    m = machine()
    print(f"{m['processor']}, {m['threads']} threads, PyTorch {m['torch']}")
    for n in (1000, 4000): told(f'dropout of {n} x 768', *dropout((n, 768)), a.times)
    for n in (60, 120, 300, 500): told(f'attention, {n} tokens a clip', *attention(n), a.times)
