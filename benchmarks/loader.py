"""Batches a second with no network: `OMP_NUM_THREADS=2 python benchmarks/loader.py [--clips 2000] [--out loader.json]`.

The same clips (text, video of 1,024 and audio of 128 columns) from a folder of .npy files, packed, and in memory. Each
loader goes through the clips in turn with a training step of a network that consumes them, frozen text as vectors, so
that other load of the machine affects all. Prints the ratio of each loader to the network (the aim is 10), and how many
functions of Python a clip calls, which no load changes. From a warm cache. `--quick` takes few clips.
"""
import argparse
import cProfile
import json
import pstats
import statistics
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from steps import machine, timed

from hiccap.clips import ClipDataset, TensorColumn
from hiccap.features import FeatureColumn, FeatureFolder
from hiccap.learner import ClipDL
from hiccap.losses import MultiTaskLoss
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.packing import open_packed, pack
from hiccap.tasks import Task

TASKS = [Task(o) for o in ('funny', 'gory')]
WIDTHS = dict(video=1024, audio=128)
LENGTHS = dict(video=(2, 9), audio=(4, 20))


def sources(folder, n, hidden=384):
    "name -> `ClipDataset` of the same clips"
    rng, ids, files = np.random.default_rng(0), [f'v{i//3}_{i % 3}' for i in range(n)], folder/'files'
    files.mkdir()
    for i in ids:
        v, a = (int(rng.integers(*LENGTHS[m])) for m in WIDTHS)
        for part, shape in (('rgb', (v, 1024)), ('flow', (v, 1024)), ('vggish', (a, 128))):
            np.save(files/f'{i}_{part}.npy', rng.normal(size=shape).astype(np.float32))
    text = [torch.from_numpy(rng.normal(size=(int(k), hidden)).astype(np.float32)) for k in rng.integers(5, 60, n)]
    labels = {t.name: rng.integers(0, 2, n) for t in TASKS}
    found = FeatureFolder(files)
    columns = dict(text=TensorColumn(text), **{m: FeatureColumn(found, m, ids) for m in WIDTHS})
    folder_ds = ClipDataset(ids, columns, labels, TASKS)
    pack(folder_ds, folder/'packed')
    held = dict(text=columns['text'], **{m: TensorColumn([columns[m][i] for i in range(n)]) for m in WIDTHS})
    return {'folder of .npy files': folder_ds, 'packed': open_packed(folder/'packed'),
            'in memory': ClipDataset(ids, held, labels, TASKS)}


class Network:
    "A training step of a network that reads the three modalities"
    def __init__(self, width, hidden=384):
        config = HICCAPConfig(text=hidden, video=1024, audio=128, width=width, heads=4, head_widths=(width,))
        self.model, self.loss = HICCAP(config, TASKS, seed=0).train(), MultiTaskLoss(TASKS)
        self.opt = torch.optim.AdamW(self.model.parameters(), fused=True)

    def step(self, batch):
        inputs, targets = batch
        self.loss(self.model(inputs), targets).backward()
        self.opt.step()
        self.opt.zero_grad()


def calls(dl, clips):
    "Functions that a pass over a loader calls, for each clip"
    profile = cProfile.Profile()
    profile.enable()
    for _ in dl: pass
    profile.disable()
    return pstats.Stats(profile).total_calls/clips


def measured(folder, n, bs, rounds, width):
    "Batches a second of each loader and of the network"
    sets = sources(folder, n)
    dls = {k: ClipDL(ds, bs, shuffle=True, device='cpu') for k, ds in sets.items()}
    batches, net = list(islice(dls['in memory'], 8)), Network(width)
    def through(dl):
        for _ in dl: pass
    def network():
        for b in batches: net.step(b)
    size = {k: -(-n//bs) for k in dls} | dict(network=len(batches))
    ways = {k: (lambda dl=dl: through(dl)) for k, dl in dls.items()} | dict(network=network)
    found = {k: [] for k in ways}
    for i in range(rounds + 1):
        for k, f in ways.items():
            seconds = timed(f)
            if i: found[k].append(size[k]/seconds)
    out = {k: dict(batches_a_second=statistics.median(v), low=min(v), high=max(v)) for k, v in found.items()}
    for k, dl in dls.items():
        ratios = [a/b for a, b in zip(found[k], found['network'])]
        out[k] |= dict(ratio=statistics.median(ratios), calls_a_clip=calls(dl, n))
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--clips', type=int, default=2000)
    p.add_argument('--bs', type=int, default=32)
    p.add_argument('--rounds', type=int, default=7)
    p.add_argument('--width', type=int, default=384, help='of the network')
    p.add_argument('--out', help='JSON file to write')
    p.add_argument('--quick', action='store_true', help='few clips, a small network')
    a = p.parse_args()
    if a.quick: a.clips, a.rounds, a.width = 96, 1, 32
    with tempfile.TemporaryDirectory() as folder: found = measured(Path(folder), a.clips, a.bs, a.rounds, a.width)
    for k, o in found.items():
        more = f", {o['ratio']:.1f} times the network, {o['calls_a_clip']:.0f} calls a clip" if 'ratio' in o else ''
        print(f"{k:<22} {o['batches_a_second']:,.1f} batches a second ({o['low']:,.1f} to {o['high']:,.1f}){more}")
    r = dict(machine=machine(), clips=a.clips, bs=a.bs, rounds=a.rounds, width=a.width, ways=found)
    if a.out: Path(a.out).write_text(json.dumps(r, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__': main()
