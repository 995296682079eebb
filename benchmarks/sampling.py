"""What sampling costs: `python benchmarks/sampling.py`.

Composes batches of 32 from 10 streams of 1,000,000 clips, under a policy with fixed shares and under one that follows
losses, next to independent draws with numpy and PyTorch. One run, medians, and ratios within it.
"""
import argparse
import statistics
import time
import tracemalloc

import numpy as np
import torch

from hiccap.policies import DynamicDifficulty
from hiccap.mixture import Mixture, Stream
from hiccap.tasks import Task


class Numbers:
    "Clips that are nothing but their number"
    def __init__(self, n, name): self.n, self.tasks, self.ids = n, (Task(name),), range(n)
    def __len__(self): return self.n


def streams(k, n): return [Stream(f's{i}', Numbers(n, f't{i}'), labelled=False) for i in range(k)]


def median_us(step, n):
    times = []
    for _ in range(n):
        t = time.perf_counter()
        step()
        times.append(time.perf_counter() - t)
    return 1e6*statistics.median(times), 1e6*max(times)


def mixture(policy, k, n, bs):
    mix = Mixture(streams(k, n), policy, bs=bs)
    mix.next()                                                                 # the first passes are shuffled here
    if mix.policy.feedback: mix.update({m: 1. + i for i, m in enumerate(mix.names)})
    return mix


def with_losses(mix):
    "One batch and its feedback, which is not counted"
    spent, taken = [], 0
    def step():
        nonlocal taken
        t = time.perf_counter()
        plan = mix.next()
        spent.append(time.perf_counter() - t)
        mix.update({m: 1. + i/(1 + plan.step/500) for i, (m, q) in enumerate(zip(mix.names, plan.quotas)) if q})
    return step, spent


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--streams', type=int, default=10)
    p.add_argument('--clips', type=int, default=1_000_000)
    p.add_argument('--bs', type=int, default=32)
    p.add_argument('--batches', type=int, default=3000)
    a = p.parse_args()

    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    mix = mixture('uniform', a.streams, a.clips, a.bs)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f'memory a stream of {a.clips:,} clips: {(held - before)/a.streams/1e6:.1f} MB held,'
          f' {(peak - before)/a.streams/1e6:.1f} MB at the peak (target: 20 MB)')
    s, seed = mix.streams[0], iter(range(10**6))
    print(f'shuffle of one pass: {median_us(lambda: s.order(1, next(seed)), 9)[0]/1e3:.1f} ms')

    ours, worst = median_us(mix.next, a.batches)
    print(
        f'a batch of {a.bs} from {a.streams} streams, uniform: {ours:.0f} us median, {worst:.0f} us worst (target: 200'
        ' us median)')
    step, spent = with_losses(mixture(DynamicDifficulty(k=50, floor=.02), a.streams, a.clips, a.bs))
    for _ in range(a.batches): step()
    print(f'the same, dynamic difficulty: {1e6*statistics.median(spent):.0f} us median, {1e6*max(spent):.0f} us worst')

    rng = np.random.default_rng(0)
    plain = median_us(lambda: (rng.choice(a.streams, a.bs), rng.integers(a.clips, size=a.bs)), a.batches)[0]
    print(
        f'independent draws with numpy (no passes, no quotas, no state): {plain:.0f} us; ours is {ours/plain:.1f} times'
        ' that')
    w = torch.ones(a.streams*a.clips)
    t = time.perf_counter()
    it = iter(torch.utils.data.WeightedRandomSampler(w, 16*a.bs))
    n = len(list(it))
    torch_us = 1e6*(time.perf_counter() - t)*a.bs/n
    print(
        f'torch WeightedRandomSampler over all {a.streams*a.clips:,} clips, drawn 16 batches at a time: {torch_us:.0f}'
        f' us a batch; ours is {ours/torch_us:.3f} times that')


if __name__ == '__main__': main()
