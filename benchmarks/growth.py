"""How costs grow: `OMP_NUM_THREADS=2 python benchmarks/growth.py [--only clips length ...] [--out growth.json]`.

Seconds against the number of packed clips (opening them, the order of an epoch, reading an epoch), and seconds and
megabytes of a training step against the tokens of a text, the clips of a batch, the modalities, the tasks and the
streams of a mixture. Each cost is measured several times, the sizes in turn, and the smallest is kept, which other load
of the machine affects least. Prints the exponent of each cost: the slope of a line through the logarithms, over all
sizes and over the two largest. What the arithmetic says is next to it: text grows faster than its length, because
attention compares every two tokens, and modalities attend to each other. `--quick` takes few small sizes.
"""
import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
from packing import synthetic
from sampling import mixture
from steps import MINILM, machine, timed, unheard
from torch.profiler import ProfilerActivity, profile

from hiccap.clips import Clip
from hiccap.losses import MultiTaskLoss
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.packing import open_packed, pack
from hiccap.padding import LengthSampler, collate
from hiccap.tasks import Task

SIZES = dict(clips=(1000, 10_000, 100_000, 1_000_000), length=(32, 64, 128, 256, 512), batch=(1, 4, 16, 64),
             modalities=(1, 2, 4, 8), tasks=(1, 4, 16, 64), streams=(1, 4, 16, 64))
QUICK = dict(clips=(50, 200), length=(8, 32), batch=(1, 4), modalities=(1, 3), tasks=(1, 4), streams=(1, 4))
# the exponent that the arithmetic allows for the largest sizes
ALLOWED = dict(clips=1, length=2, batch=1, modalities=2, tasks=1, streams=1)


def exponent(sizes, costs):
    "The slope of a line through the logarithms"
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(costs, 1e-9)), 1)[0])


def live_mb(f):
    "The most memory that the tensors of a call hold at once, in megabytes; on the CPU"
    with unheard(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found: f()
    held = np.cumsum([e.nbytes() for e in found.profiler.kineto_results.events() if e.name() == '[memory]'] or [0])
    return max(float(held.max()), 1.)/2**20


def packed_costs(folder, n, reads):
    "name -> function without arguments, and how often its cost is counted, of `n` packed clips"
    pack(synthetic(n), folder/str(n))
    ds = open_packed(folder/str(n))
    rows = np.random.default_rng(0).integers(0, n, min(reads, n))
    def read():
        for i in rows: ds[int(i)]
    read()  # warm files
    lengths = ds.total_lengths()
    return {'opening': (lambda: open_packed(folder/str(n)), 1),
            'order of an epoch': (lambda: LengthSampler(lengths, 32, 0, True).order(0), 1),
            'reading an epoch': (read, n/len(rows))}


def clips_of(rng, n, tokens, modalities, tasks):
    "Clips with a text of so many tokens, or with so many modalities of vectors"
    def values():
        if tokens: return dict(text=rng.integers(5, 30_000, tokens))
        return {f'm{i}': rng.normal(size=(24, 32)).astype(np.float32) for i in range(modalities)}
    return [Clip(f'c{i}', labels={t.name: int(rng.integers(2)) for t in tasks}, **values()) for i in range(n)]


def step_of(n=8, tokens=0, modalities=2, tasks=1, quick=False):
    "A training step of a network on one batch"
    tasks, rng = [Task(f't{i}') for i in range(tasks)], np.random.default_rng(0)
    small = dict(kind='tokens', config=dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                            intermediate_size=64))
    encoders = (dict(text=small if quick else MINILM) if tokens else {f'm{i}': 32 for i in range(modalities)})
    width = 32 if quick else 384 if tokens else 128
    config = HICCAPConfig.from_dict(dict(modalities=encoders, width=width, heads=4, head_widths=(width,)))
    model, loss = HICCAP(config, tasks, seed=0).train(), MultiTaskLoss(tasks)
    inputs, targets = collate(clips_of(rng, n, tokens, modalities, tasks), tasks)
    def step(): loss(model(inputs), targets).backward()
    step()  # gradients are there from now on
    return step


def ways(kind, n, folder, quick):
    "name of a cost -> function, and how often its cost is counted"
    if kind == 'clips': return packed_costs(folder, n, 50 if quick else 5000)
    if kind == 'streams':
        mix = mixture('uniform', n, 1000, 2*n)
        return {'composing a batch': (mix.next, 1)}
    given = dict(length=dict(tokens=n), batch=dict(n=n, tokens=8 if quick else 128), modalities=dict(modalities=n),
                 tasks=dict(tasks=n))[kind]
    return {'training step': (step_of(**given, quick=quick), 1)}


def measured(kind, sizes, times, folder, quick):
    "name of a cost -> sizes, seconds, megabytes and exponents"
    made = {n: ways(kind, n, folder, quick) for n in sizes}
    names, found = list(made[sizes[0]]), {}
    seconds = {k: {n: [] for n in sizes} for k in names}
    for _ in range(times):
        for n in sizes:
            for k in names: seconds[k][n].append(timed(made[n][k][0])*made[n][k][1])
    for k in names:
        cost = [min(seconds[k][n]) for n in sizes]
        found[k] = dict(sizes=list(sizes), seconds=cost, exponent=exponent(sizes, cost),
                        last_exponent=exponent(sizes[-2:], cost[-2:]), allowed=ALLOWED[kind])
        if k == 'training step':
            held = [live_mb(made[n][k][0]) for n in sizes]
            found[k] |= dict(mb=held, memory_exponent=exponent(sizes, held))
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', nargs='+', choices=SIZES, default=list(SIZES))
    p.add_argument('--times', type=int, default=7)
    p.add_argument('--out', help='JSON file to write')
    p.add_argument('--quick', action='store_true', help='few small sizes')
    a = p.parse_args()
    sizes, found = QUICK if a.quick else SIZES, {}
    if a.quick: a.times = 2
    for kind in a.only:
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = measured(kind, sizes[kind], a.times, Path(folder), a.quick)
        for k, o in found[kind].items():
            more = f", of memory {o['memory_exponent']:.2f}" if 'mb' in o else ''
            costs = ', '.join(f'{n:,}: {1e3*s:.2f} ms' for n, s in zip(o['sizes'], o['seconds']))
            print(f"{kind:<11}{k:<18} exponent {o['exponent']:.2f}, of the two largest {o['last_exponent']:.2f}"
                  f" (allowed: {o['allowed']}){more}: {costs}", flush=True)
    r = dict(machine=machine(), quick=a.quick, times=a.times, growth=found)
    if a.out: Path(a.out).write_text(json.dumps(r, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__': main()
