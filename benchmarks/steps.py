"""What the benchmarks of a training step share: one batch, a learner that takes one step when asked, and two of them timed in turn."""
import statistics
import time
from functools import partial

import torch
from fastai.basics import DataLoaders, Learner, OptimWrapper
from fastai.learner import noop

from hiccap.data import Clip
from hiccap.losses import MultiTaskLoss
from hiccap.model import HICCAPConfig
from hiccap.padding import collate

MINILM = dict(kind='tokens', config=dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536))
SIZES = {'tiny': (HICCAPConfig.tiny(), 32), 'realistic, MiniLM-sized text encoder': (HICCAPConfig(text=MINILM, width=384), 128)}  # network, tokens of a clip


class One:
    "One batch, as often as asked"
    dataset = None
    def __init__(self, batch, device): self.batch, self.device, self.n = batch, device, 1
    def __len__(self): return self.n
    def __iter__(self): return iter([self.batch]*self.n)
    def batch_ids(self, i): return [f'clip{r}' for r in range(8)]


def batch_of(rng, tokens, tasks, device, vocab=30522):
    "8 clips of so many tokens, 24 frames and 40 sounds"
    clips = [Clip(f'c{i}', text=rng.integers(5, vocab, tokens), video=rng.normal(size=(24, 1024)), audio=rng.normal(size=(40, 128)),
                  labels={t.name: int(rng.integers(2)) for t in tasks}) for i in range(8)]
    return tuple({k: v.to(device) for k, v in d.items()} for d in collate(clips, tasks))


class Stepper:
    "A learner in the middle of a fit, that takes one step when asked and says how long it took"
    def __init__(self, model, batch, cbs, tasks, device):
        dl = One(batch, device)
        self.learn = Learner(DataLoaders(dl, dl), model, MultiTaskLoss(tasks), partial(OptimWrapper, opt=torch.optim.AdamW, fused=True), lr=1e-5, cbs=cbs)
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


def in_turn(pair, steps):
    "Two steppers taken in turn, so that whatever else the machine does strikes both: the ratio of medians, the middle half of single ratios, and the first one's median in ms"
    for o in pair: o.step(); o.step()
    times = [], []
    for i in range(steps):
        for which in ((0, 1), (1, 0))[i % 2]: times[which].append(pair[which].step())
    first, spread = statistics.median(times[0]), sorted(b/a for a, b in zip(*times))
    return dict(ratio=statistics.median(times[1])/first, low=spread[len(spread)//4], high=spread[3*len(spread)//4], first_ms=1e3*first)
