"""What the benchmarks of a training step share.

One batch, a learner that takes one step at a time, and two of them timed in turn.
"""
import os
import statistics
import time
from contextlib import contextmanager
from functools import cache, partial

import torch
from fastai.basics import DataLoaders, Learner, OptimWrapper
from fastai.learner import noop
from watched import memory

from hiccap.clips import Clip
from hiccap.losses import MultiTaskLoss
from hiccap.model import HICCAPConfig
from hiccap.padding import collate

MINILM = dict(
    kind='tokens', config=dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536))
# network, tokens of a clip
SIZES = {'tiny': (HICCAPConfig.tiny(), 32),
         'realistic, MiniLM-sized text encoder': (HICCAPConfig(text=MINILM, width=384), 128)}


class One:
    "One batch, as often as asked"
    dataset = None
    def __init__(self, batch, device): self.batch, self.device, self.n = batch, device, 1
    def __len__(self): return self.n
    def __iter__(self): return iter([self.batch]*self.n)
    def batch_ids(self, i): return [f'clip{r}' for r in range(8)]


def batch_of(rng, tokens, tasks, device, vocab=30522):
    "8 clips of so many tokens, 24 frames and 40 sounds"
    clips = [
        Clip(f'c{i}', text=rng.integers(5, vocab, tokens), video=rng.normal(size=(24, 1024)),
             audio=rng.normal(size=(40, 128)), labels={t.name: int(rng.integers(2)) for t in tasks})
        for i in range(8)
    ]
    return tuple({k: v.to(device) for k, v in d.items()} for d in collate(clips, tasks))


class Stepper:
    "A learner in the middle of a fit, that takes one step when asked and says how long it took"
    def __init__(self, model, batch, cbs, tasks, device):
        dl = One(batch, device)
        self.learn = Learner(DataLoaders(dl, dl), model, MultiTaskLoss(tasks),
                             partial(OptimWrapper, opt=torch.optim.AdamW, fused=True), lr=1e-5, cbs=cbs)
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
    """Two steppers taken in turn, so that other load of the machine affects both.

    Returns the ratio of medians, the middle half of single ratios, and the median of the first in ms"""
    for o in pair:
        o.step()
        o.step()
    times = [], []
    for i in range(steps):
        for which in ((0, 1), (1, 0))[i % 2]: times[which].append(pair[which].step())
    first, spread = statistics.median(times[0]), sorted(b/a for a, b in zip(*times))
    return dict(ratio=statistics.median(times[1]) / first, low=spread[len(spread) // 4],
                high=spread[3 * len(spread) // 4], first_ms=1e3 * first)


def machine():
    "What a figure was measured on"
    import platform
    from pathlib import Path
    cpu = Path('/proc/cpuinfo')
    name = (next((o.split(':')[1].strip() for o in cpu.read_text().splitlines() if o.startswith('model name')), '')
            if cpu.exists() else '')
    flags = cpu.read_text() if cpu.exists() else ''
    return dict(processor=name or platform.processor() or platform.machine(), cores=os.cpu_count(),
                threads=torch.get_num_threads(), torch=torch.__version__,
                bfloat16_in_hardware='avx512_bf16' in flags or 'amx_bf16' in flags)


def peak_memory():
    "The most memory that this process has held, in bytes; what its parent held does not count"
    return int(memory()[1]*2**20)


def matrix_product(n=2048, times=8, dtype=torch.float32):
    "Floating-point operations a second of a square matrix product: the best of several"
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    return max(2*n**3/timed(lambda: a @ b) for _ in range(times))


def timed(f):
    "Seconds that a call takes"
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


KINDS = (
    ('recurrence', ('lstm',)),
    ('attention', ('scaled_dot_product', '_Attention')),
    ('optimizer', ('Optimizer.',)),
    ('embeddings', ('embedding',)),
    ('matrix products', ('addmm', 'aten::mm', 'bmm', 'linear', 'matmul', 'einsum')),
    ('normalisation', ('layer_norm', 'LayerNorm')),
    ('GELU', ('gelu', 'Gelu')),
    ('dropout', ('dropout', 'bernoulli', '_Drop')),
    ('moving data',
     ('copy', 'index', 'cat', 'gather', 'clone', 'zero', 'fill', 'select', 'slice', 'pack_padded', 'pad_packed')),
)


@cache
def _kind(name): return next((k for k, parts in KINDS if any(p in name for p in parts)), None)


@contextmanager
def unheard():
    "Without what native code, such as the profiler's, writes to standard error"
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try: yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def where_time_goes(step):
    """Phase -> kind of operation -> share of a step's time.

    `step` marks its phases by `record_function('forward')` and so on"""
    with unheard(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as prof: step()
    seen = {}

    def known(e):
        """The phase that an event is in, the kind of the outermost operation around it that has one,
        and the node of the backward graph"""
        if e is None: return None, None, None
        if id(e) not in seen:
            phase, kind, node = known(e.cpu_parent)
            if e.name.startswith('autograd::engine'): node = e
            seen[id(e)] = (phase or (e.name if e.name in ('forward', 'backward', 'optimizer') else None),
                           kind or (None if e.name.startswith('autograd') else _kind(e.name)), node)
        return seen[id(e)]
    events, out, made_by = prof.events(), {}, {}
    about = [(e, *known(e)) for e in events]
    for e, phase, kind, node in about:
        if phase == 'forward' and kind and e.sequence_nr >= 0: made_by[e.sequence_nr] = kind
    for e, phase, kind, node in about:
        phase = 'backward' if node is not None else phase  # the backward graph may run in a thread of its own
        if phase is None or e.name in ('forward', 'backward', 'optimizer'): continue
        what = ('optimizer' if phase == 'optimizer'
                else (made_by.get(node.sequence_nr) if node is not None else None) or kind or 'other')
        out.setdefault(phase, {})[what] = out.get(phase, {}).get(what, 0) + e.self_cpu_time_total
    total = sum(v for p in out.values() for v in p.values())
    return {p: {k: v/total for k, v in sorted(d.items(), key=lambda o: -o[1])} for p, d in out.items()}


def released_lengths(path=None):
    "Tokens of each clip of the released validation split, as the original cuts them: at most 500"
    import warnings

    from hiccap.readers import read_comic_mischief, shared_data
    path = path or shared_data('comic_mischief_val.json')
    if not path: raise SystemExit('no comic_mischief_val.json next to the checkout: give --data')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return read_comic_mischief(path, captions=False).lengths('text').clip(2, 500)


def spread_batches(lengths, bs, n, seed=0):
    """`n` batches of an epoch in batches of similar length, spread evenly from the shortest to the longest.

    Their mean length is the epoch's"""
    import numpy as np

    from hiccap.padding import LengthSampler
    order = LengthSampler(lengths, bs, seed).order(0)
    full = order[:len(order)//bs*bs].reshape(-1, bs)
    full = full[np.argsort(lengths[full].sum(1), kind='stable')]
    return [lengths[full[int(i)]] for i in (np.arange(n) + .5)*len(full)/n]


def clips_of(lengths, rng, tasks, vocab=30522, frames=36, sounds=63, hidden=None):
    "Clips of so many tokens, or of vectors in their place, with the longest video and audio that the original takes"
    import numpy as np
    return [
        Clip(f'c{i}',
             text=rng.integers(5, vocab, n) if hidden is None else rng.normal(size=(n, hidden)).astype(np.float32),
             video=rng.normal(size=(frames, 1024)), audio=rng.normal(size=(sounds, 128)),
             labels={t.name: int(rng.integers(t.n_classes)) for t in tasks})
        for i, n in enumerate(lengths)
    ]
