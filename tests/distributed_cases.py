"""What `tests/test_distributed.py` does in one process and in two.
Started by `accelerate launch`, it does every case and writes the results, a file for each process."""
import json
import math
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import torch
import yaml
from fastai.basics import DataLoaders
from fastai.callback.core import Callback
from fastcore.foundation import L
from fastai.callback.training import GradientAccumulation
from torch import nn

import hiccap.cli
import hiccap.runs
import hiccap.training
from hiccap.callbacks import AddRegularizer, ClipGradients, KeepBest, StepRecorder
from hiccap.nan_detector import NanDetector, NonFiniteError
from hiccap.clips import Clip, ClipDataset
from hiccap.learner import ClipDL, clip_dls, hiccap_learner
from hiccap.losses import MultiTaskLoss, Regularizer
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.modalities import ShowModalities
from hiccap.pretraining import Contrastive, Matching, PretextStream, pretraining_learner
from hiccap.distributed import broadcast_object, is_main, on_main, processes, rank, world_size
from hiccap.resuming import Checkpoint
from hiccap.policies import policy
from hiccap.mixture import Mixture, MixtureDL, Stream
from hiccap.feedback import MixtureFeedback
from hiccap.synthetic import synthetic_clips
from hiccap.tasks import Task
from hiccap.weighting import FixedWeights, Weigh

TASKS = [Task('loud', class_weights=(1., 3.)), Task('said'), Task('rare')]
SMALL = dict(
    text=dict(
        kind='tokens',
        config=dict(vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    ),
    width=16,
    heads=2,
    head_widths=[16],
    video=dict(kind='features', width=32, hidden=8, layers=1),
    audio=dict(kind='features', width=16, hidden=8, layers=1),
    dropout=0.0,
    attention_dropout=0.0,
    state_dropout=0.0,
    head_dropout=0.0,
)


def clips(n, seed, start=0, bad=()):
    "Clips whose labels are mostly missing, `rare` in all but a few, and some without a modality"
    rng = np.random.default_rng(seed)
    def one(i):
        y, known = rng.integers(2, size=3), rng.random(3) < (.8, .4, .15)
        video = rng.normal(size=(int(rng.integers(1, 5)), 4)).astype(np.float32) + y[0]
        if i in bad: video[0, 0] = 1e30
        labels = {t.name: int(v) for t, v, k in zip(TASKS, y, known) if k or i < 2}
        return Clip(f'v{start + i}_0', text=rng.integers(5, 30, rng.integers(2, 9)).tolist(),
                    video=video if i in bad or rng.random() < 0.8 else None, labels=labels)
    return ClipDataset.from_clips([one(i) for i in range(n)], TASKS)


class Net(nn.Module):
    def __init__(self, dropout=0.):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1 + rank())  # the main process's are everyone's
            self.body, self.absent, self.heads = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(dropout)),
                                                  nn.Parameter(torch.randn(8)),
                                                  nn.ModuleDict({t.name: nn.Linear(8, 2) for t in TASKS}))

    def forward(self, inputs):
        has = inputs['video_mask'].any(1)
        x = self.absent.expand(len(has), 8)
        if has.any():  # if not, some weights have no gradient
            h = self.body((inputs['video']*inputs['video_mask'][..., None]).sum(1)[has])
            x = x.masked_scatter(has[:, None].expand(-1, 8), h)
        return {k: head(x) for k, head in self.heads.items()}


class Squared(nn.Module):
    def forward(self, x): return x*x

def learner(cbs=(), n=13, bs=4, dropout=0., workers=0, bad=(), **kwargs):
    dls = clip_dls(clips(n, 0, bad=bad), clips(7, 1, 100), bs=bs, device='cpu', num_workers=workers)
    net = Net(dropout)
    if bad: net.body.insert(0, Squared())
    return hiccap_learner(dls, net, MultiTaskLoss(TASKS, dict(said=0.5), 0.1), lr=0.05, seed=3,
                          cbs=[ClipGradients(0.5), StepRecorder(), *cbs], **kwargs)

def fit(learn, epochs=2, cbs=()):
    with warnings.catch_warnings(), learn.no_bar(), learn.no_logging():
        warnings.simplefilter('ignore')
        learn.fit_one_cycle(epochs, .05, cbs=cbs)
    return learn

def scores_of(learn):
    with learn.no_bar(): return learn.get_preds()

def plain(x):
    if isinstance(x, dict): return {str(k): plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple, L)): return [plain(v) for v in x]
    if isinstance(x, torch.Tensor): return x.tolist()
    if isinstance(x, np.generic): x = x.item()
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x

def came_of(learn):
    "Losses, scores, weights, moments and how often each weight took part"
    r, cb, state = learn.recorder, {o.name: o for o in learn.cbs}, learn.opt.opt.state_dict()['state']
    probs, targets = scores_of(learn)
    feedback = cb.get('mixture_feedback')
    return plain(
        dict(losses=torch.stack(r.losses), values=[v for v in r.values], weights=dict(learn.model.state_dict()),
             moments=state, history=cb['step_recorder'].table, norms=cb['clip_gradients'].norms, probs=probs,
             targets=targets,
             shares=[[o['share'], o['quota'], o['loss']] for o in feedback.records] if feedback else [],
             valid=feedback.valid if feedback else [])
    )


def a_fit(folder): return came_of(fit(learner()))
def a_fit_with_workers(folder): return came_of(fit(learner(workers=1)))
def a_fit_with_penalty(folder): return came_of(fit(learner([AddRegularizer(Regularizer('norm', .1))])))
def an_accumulated_fit(folder): return came_of(fit(learner([GradientAccumulation(8)])))
def fixed_weights(folder): return came_of(fit(learner([Weigh(FixedWeights(dict(loud=1., said=2., rare=.5)))])))
def hidden_modalities(folder): return came_of(fit(learner([ShowModalities('subsets', 5)])))
def the_best_epoch(folder): return came_of(fit(learner([KeepBest('valid_loss')]), 3))
def batches_smaller_than_the_processes(folder): return came_of(fit(learner(n=4, bs=1)))
def a_batch_of_odd_size(folder): return came_of(fit(learner(n=13, bs=5)))


def a_mixture(folder):
    streams = [Stream('a', clips(9, 2), TASKS[:1]), Stream('b', clips(13, 3, 50), TASKS[:2])]
    mix = Mixture(streams, policy('dynamic_difficulty', k=2, relative='start', smooth=.3), bs=6, lag=2, seed=1)
    train = MixtureDL(mix, steps=8, device='cpu', rank=rank(), world_size=world_size())
    dls = DataLoaders(train, clip_dls(clips(13, 0), clips(7, 1, 100), bs=4, device='cpu').valid, device='cpu')
    with torch.random.fork_rng(): net = Net()
    learn = hiccap_learner(
        dls, net, MultiTaskLoss(TASKS[:2]), lr=0.05, seed=3, cbs=[ClipGradients(0.5), StepRecorder(), MixtureFeedback()]
    )
    return came_of(fit(learn))


def asked(negatives='before'):
    "Streams of labels, matching and contrast over synthetic clips, and a network"
    ds = synthetic_clips(n=80, scale=.1)
    videos = list(dict.fromkeys(ds.groups))
    rest, held = (ds.subset([i for i, g in enumerate(ds.groups) if (g in videos[-len(videos) // 4 :]) == last])
                  for last in (False, True))
    few, match, contrast = rest.subset(range(24)), rest, rest.subset(range(5, len(rest)))
    streams = [Stream('labels', few), PretextStream('match', match, Matching(negatives=negatives)),
               PretextStream('contrast', contrast, Contrastive())]
    mix = Mixture(streams, policy('dynamic_difficulty', k=3, relative='start', floor=.1), bs=8, lag=1, seed=1)
    return (mix, HICCAP(HICCAPConfig.from_dict(dict(SMALL, matching=True, projection=8)), ds.tasks, seed=0),
            dict(labels=held, match=held.subset(range(len(held) - 1)), contrast=held))

def pretraining(folder):
    mix, net, valid = asked()
    learn = pretraining_learner(mix, net, valid, steps=8,
                                cbs=[ClipGradients(1.0), StepRecorder(), NanDetector(folder=None)], seed=2,
                                device='cpu', lr=0.01)
    fit(learn)
    r, feedback = learn.recorder, learn.cbs[[o.name for o in learn.cbs].index('mixture_feedback')]
    # a softmax is blind to it: its gradient is rounding, which Adam makes a step of
    weights = {k: v for k, v in learn.model.state_dict().items() if not k.endswith('key.bias')}
    return plain(
        dict(losses=torch.stack(r.losses), values=r.values, weights=weights,
             shares=[[o['share'], o['quota'], o['loss']] for o in feedback.records], valid=feedback.valid)
    )


class Spoil(Callback):
    "Infinite outputs of one process"
    order = 2
    def __init__(self, steps): self.steps = steps
    def after_pred(self):
        if not self.training or self.learn.train_iter not in self.steps: return
        if world_size() == 1 or rank() == 1: self.learn.pred = {k: v*float('inf') for k, v in self.pred.items()}

def spoiled(action):
    learn = learner(
        [found := NanDetector(action, folder=None, keep_every=2), Spoil({1, 5} if action == 'skip' else {2, 5})])
    fit(learn)
    return came_of(learn) | dict(counts=found.counts, n=len(found.findings), history=[])

def a_skipped_step(folder): return spoiled('skip')
def a_step_rolled_back(folder): return spoiled('rollback')

def an_infinite_clip(folder):
    "The clip is named by all processes, whichever read it, and replayed from one bundle"
    learn, said = (
        learner([NanDetector(folder='nan')], bad=[7], path=broadcast_object(0, str(Path(folder) / 'infinite'))), None)
    try: fit(learn)
    except NonFiniteError as e: said = e
    from hiccap.replay import load_bundle
    bundles = sorted(p.name for p in (Path(learn.path)/'nan').iterdir())
    f = said.finding
    clip = [f.clips[r] for r in f.rows]
    return dict(where=f.where, name=f.name, clip=clip, bundles=bundles, same=load_bundle(said.bundle).finding == f)


class Killed(BaseException): pass

class KillAt(Callback):
    order = 1010  # after a checkpoint
    def __init__(self, step): self.step = step
    def after_batch(self):
        if self.learn.training and self.learn.train_iter == self.step: raise Killed()

def resumed(folder):
    "A fit with dropout that is interrupted twice, against the one that was not"
    at, said = Path(broadcast_object(0, str(folder))), []
    whole = fit(learner(dropout=.3), 3, Checkpoint(at/'whole', every=100, write=said.append))
    for stop in (3, 9, math.inf):
        learn = learner([KillAt(stop)], dropout=.3)
        try: fit(learn, 3, Checkpoint(at/'cut', every=2 if stop == 3 else 1, resume=True, write=said.append))
        except Killed: pass
    a, b = came_of(whole), came_of(learn)
    return dict(same={k: a[k] == b[k] for k in a}, said=broadcast_object(0, said), alone=not said or is_main())


def refusals(folder):
    out = {}
    def says(name, f):
        try: f(); out[name] = ''
        except Exception as e: out[name] = str(e)
    class Normed(Net):
        def __init__(self): super().__init__(); self.norm = nn.BatchNorm1d(8)
    batch = learner(); batch.model = Normed()
    says('BatchNorm', lambda: fit(batch))
    says(
        'loader',
        lambda: fit(
            hiccap_learner(
                DataLoaders(*(ClipDL(clips(9, i), 4, device='cpu') for i in range(2))), Net(), MultiTaskLoss(TASKS))
        ),
    )
    says('weighting', lambda: fit(learner([Weigh('dwa')])))
    says('after', lambda: pretraining_learner(*asked('after'), steps=2, device='cpu'))
    says('inputs', lambda: learner().get_preds(with_input=True))
    return out


def commands(folder):
    """The commands and their exit statuses in each process.
    The first clip of one process cannot be read, and the run is another than the one there"""
    home = Path(broadcast_object(0, str(folder)))
    on_main(lambda: write_inputs(home))
    train = lambda *more: hiccap.cli.train(
        ['--run', str(home / 'run.yaml'), '--out', str(home / f'train_{world_size()}'), *more])
    out = dict(train=train(), again=train(), resume=train('--resume'), other=train('--resume', '--seed', '3'))
    out['pretrain'] = hiccap.cli.pretrain(
        [str(home / 'mixture' / 'mixture.yaml'), '--epochs', '2', '--bs', '16', '--out',
         str(home / f'pretrain_{world_size()}')]
    )
    read = hiccap.training.read_splits
    def odd(*args, **kwargs):
        if rank() == world_size() - 1: hiccap.runs.Training(epochs=0)
        return read(*args, **kwargs)
    hiccap.training.read_splits = odd
    out['one cannot read'] = hiccap.cli.train(['--run', str(home/'run.yaml'), '--out', str(home/'never')])
    hiccap.training.read_splits = read
    return out

def write_inputs(home):
    from hiccap.pretraining_runs import PretrainRun, write_example
    run = hiccap.runs.Run.flat(data='synthetic', synthetic=dict(n=100, scale=0.1), epochs=2, bs=8, threads=1,
                               checkpoint_every=0, config=SMALL, folds=2)
    (home/'run.yaml').write_text(run.to_yaml())
    mixture = write_example(home/'mixture', n=150)
    mixture.write_text(PretrainRun.from_yaml(mixture).but(config=SMALL).to_yaml())


EQUAL = [a_fit, a_fit_with_workers, a_fit_with_penalty, an_accumulated_fit, fixed_weights, hidden_modalities,
         the_best_epoch, batches_smaller_than_the_processes, a_batch_of_odd_size, a_mixture, pretraining,
         a_skipped_step, a_step_rolled_back]
OTHER = [an_infinite_clip, resumed, refusals, commands]

if __name__ == '__main__':
    warnings.simplefilter('ignore')
    home, names = Path(sys.argv[1]), sys.argv[2:]
    with processes():
        found = {}
        for f in EQUAL + OTHER:
            if names and f.__name__ not in names: continue
            on_main(lambda: (home/f.__name__).mkdir(exist_ok=True))
            found[f.__name__] = f(home/f.__name__)
        (home/f'{rank()}.json').write_text(json.dumps(found))
