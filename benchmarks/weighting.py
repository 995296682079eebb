"""What a weighting costs a step: `python benchmarks/weighting.py` prints ratios, step with / step of the plain sum, from one run.

Steps with and without are taken in turn, so that whatever else the machine does strikes both, and the medians are compared.
`--quick` takes few steps of the tiny network only; `--json FILE` writes the numbers; `--device cuda` measures on a GPU.
"""
import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from fastai.basics import DataLoaders, Learner, OptimWrapper
from fastai.learner import noop

from hiccap.data import Clip
from hiccap.losses import MultiTaskLoss
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.padding import collate
from hiccap.tasks import COMIC_MISCHIEF
from hiccap.weighting import PLACES, WEIGHTINGS, Weigh, weighting

TASKS = COMIC_MISCHIEF[1:]  # the four types


class One:
    "One batch, as often as asked"
    def __init__(self, batch): self.batch = batch
    def __len__(self): return 1
    def __iter__(self): return iter([self.batch])


def batch_of(rng, tokens, device, vocab=30522):
    clips = [Clip(f'c{i}', text=rng.integers(5, vocab, tokens), video=rng.normal(size=(24, 1024)), audio=rng.normal(size=(40, 128)),
                  labels={t.name: int(rng.integers(2)) for t in TASKS}) for i in range(8)]
    return tuple({k: v.to(device) for k, v in d.items()} for d in collate(clips, TASKS))


class Stepper:
    "A learner in the middle of a fit, that takes one step when asked and says how long it took"
    def __init__(self, config, batch, cbs, device):
        dl, model = One(batch), HICCAP(config, TASKS, pretrained=False, seed=0).to(device)
        learn = self.learn = Learner(DataLoaders(dl, dl), model, MultiTaskLoss(TASKS), partial(OptimWrapper, opt=torch.optim.AdamW, fused=True), lr=1e-5, cbs=cbs)
        learn.remove_cbs([o for o in learn.cbs if type(o).__name__ == 'ProgressCallback'])
        learn.logger, learn.n_epoch, learn.epoch, learn.dl, learn.n_iter = noop, 1, 0, dl, 10**6
        learn.create_opt()
        learn.opt.set_hypers(lr=1e-5)
        self.batch, self.device = batch, device
        for event in ('before_fit', 'before_epoch', 'before_train'): learn(event)

    def step(self):
        if self.device.type == 'cuda': torch.cuda.synchronize()
        start = time.perf_counter()
        self.learn.one_batch(0, self.batch)
        if self.device.type == 'cuda': torch.cuda.synchronize()
        return time.perf_counter() - start


def ways():
    "(label, weighting) of each name, and of each place where gradients are compared"
    for name, cls in WEIGHTINGS.items():
        kw = dict(tasks={t.name: 1. for t in TASKS}) if name == 'fixed' else {}
        for at in PLACES if cls.gradients else (None,):
            try: yield name if at is None else f'{name} at {at}', weighting(name, **kw, **({} if at is None else dict(at=at)))
            except ImportError as e: print(f'  {name} left out: {e}')


def measure(size, config, tokens, steps, device):
    "Medians of steps taken in turn by the plain sum and by each weighting"
    batch, out = batch_of(np.random.default_rng(0), tokens, device), []
    print(f'{size}: 8 clips of {tokens} tokens, {len(TASKS)} tasks, {steps} steps each, {device}')
    for label, w in ways():
        pair = [Stepper(config, batch, cbs, device) for cbs in ([], [Weigh(w)])]
        for o in pair: o.step(); o.step()
        times = [], []
        for i in range(steps):
            for which in ((0, 1), (1, 0))[i % 2]: times[which].append(pair[which].step())
        plain, spread = statistics.median(times[0]), sorted(b/a for a, b in zip(*times))
        row = dict(size=size, weighting=label, ratio=statistics.median(times[1])/plain, low=spread[len(spread)//4], high=spread[3*len(spread)//4], plain_ms=1e3*plain, steps=steps)
        out.append(row)
        print(f"  {label:<30} ratio {row['ratio']:.3f}   middle half of single ratios {row['low']:.3f} to {row['high']:.3f}   plain {row['plain_ms']:.1f} ms", flush=True)
    return out


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--quick', action='store_true', help='few steps of the tiny network only')
    ap.add_argument('--device', default='cpu')
    ap.add_argument('--steps', type=int, default=None, help='steps of each; 60 tiny and 10 wide by default')
    ap.add_argument('--json', default=None, help='file that the numbers are written to')
    a = ap.parse_args()
    device = torch.device(a.device)
    found = measure('tiny', HICCAPConfig.tiny(), 32, a.steps or (3 if a.quick else 60), device)
    wide = dict(kind='tokens', config=dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536))
    if not a.quick: found += measure('realistic, MiniLM-sized text encoder', HICCAPConfig(text=wide, width=384), 128, a.steps or 10, device)
    if a.json: Path(a.json).write_text(json.dumps(dict(torch=torch.__version__, device=str(device), threads=torch.get_num_threads(), rows=found), indent=1) + '\n')
