"""What the callbacks cost a healthy step: `python benchmarks/callbacks.py` prints ratios, step with / step without, from one run.

Steps with and without are taken in turn, so that whatever else the machine does strikes both, and the medians are compared.
`--quick` takes few steps of the tiny network only; `--device cuda` measures on a GPU.
"""
import argparse
import statistics
import time
from functools import partial

import numpy as np
import torch
from fastai.basics import DataLoaders, Learner, OptimWrapper
from fastai.learner import noop

from hiccap.callbacks import ClipGradients, NanDetector, StepRecorder
from hiccap.data import Clip
from hiccap.losses import MultiTaskLoss
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.padding import collate
from hiccap.tasks import COMIC_MISCHIEF

SETS = {'clipping': lambda: [ClipGradients()],
        'detector': lambda: [NanDetector(folder=None)],
        'detector, rollback': lambda: [NanDetector('rollback', folder=None)],
        'detector and clipping': lambda: [NanDetector(folder=None), ClipGradients()],
        'detector, clipping, recorder': lambda: [NanDetector(folder=None), ClipGradients(), StepRecorder()]}


class One:
    "One batch, as often as asked"
    dataset = None
    def __init__(self, batch, device): self.batch, self.device, self.n = batch, device, 1
    def __len__(self): return self.n
    def __iter__(self): return iter([self.batch]*self.n)
    def batch_ids(self, i): return [f'clip{r}' for r in range(8)]


def batch_of(rng, tokens, device, vocab):
    clips = [Clip(f'c{i}', text=rng.integers(5, vocab, tokens), video=rng.normal(size=(24, 1024)), audio=rng.normal(size=(40, 128)),
                  labels={t.name: int(rng.integers(2)) for t in COMIC_MISCHIEF}) for i in range(8)]
    inputs, targets = collate(clips, COMIC_MISCHIEF)
    return {k: v.to(device) for k, v in inputs.items()}, {k: v.to(device) for k, v in targets.items()}


class Stepper:
    "A learner in the middle of a fit, that takes one step when asked and says how long it took"
    def __init__(self, model, batch, cbs, device):
        dl = One(batch, device)
        self.learn = Learner(DataLoaders(dl, dl), model, MultiTaskLoss(COMIC_MISCHIEF), partial(OptimWrapper, opt=torch.optim.AdamW, fused=True), lr=1e-5, cbs=cbs)
        learn = self.learn.remove_cbs([o for o in self.learn.cbs if type(o).__name__ == 'ProgressCallback'])
        learn.logger = noop
        learn.create_opt()
        learn.opt.set_hypers(lr=1e-5)
        learn.n_epoch, learn.epoch, learn.dl, learn.n_iter, self.batch, self.device = 1, 0, dl, 10**6, batch, device
        for event in ('before_fit', 'before_epoch', 'before_train'): learn(event)

    def step(self):
        if self.device.type == 'cuda': torch.cuda.synchronize()
        start = time.perf_counter()
        self.learn.one_batch(0, self.batch)
        if self.device.type == 'cuda': torch.cuda.synchronize()
        return time.perf_counter() - start


def measure(name, config, tokens, steps, device, vocab):
    "Medians of steps taken in turn by a learner without callbacks and one for each set"
    batch = batch_of(np.random.default_rng(0), tokens, device, vocab)
    print(f'{name}: 8 clips of {tokens} tokens, {steps} steps each, {device}')
    for label, cbs in SETS.items():
        pair = [Stepper(HICCAP(config, COMIC_MISCHIEF, seed=0).to(device), batch, o, device) for o in ([], cbs())]
        for o in pair: o.step(); o.step()
        times = [], []
        for i in range(steps):
            for which in ((0, 1), (1, 0))[i % 2]: times[which].append(pair[which].step())
        ratio, without = statistics.median(times[1])/statistics.median(times[0]), statistics.median(times[0])
        spread = sorted(b/a for a, b in zip(*times))
        print(f'  {label:<30} ratio {ratio:.4f}   middle half of single ratios {spread[len(spread)//4]:.3f} to {spread[3*len(spread)//4]:.3f}   without {1e3*without:.1f} ms')


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--quick', action='store_true', help='few steps of the tiny network only')
    ap.add_argument('--device', default='cpu')
    ap.add_argument('--steps', type=int, default=None, help='steps of each learner; 200 tiny and 20 wide by default')
    a = ap.parse_args()
    device = torch.device(a.device)
    measure('tiny', HICCAPConfig.tiny(), 32, a.steps or (10 if a.quick else 200), device, 30522)
    wide = dict(kind='tokens', config=dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536))
    if not a.quick: measure('realistic, MiniLM-sized text encoder', HICCAPConfig(text=wide, width=384), 128, a.steps or 20, device, 30522)
