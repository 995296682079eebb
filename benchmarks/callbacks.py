"""What the callbacks cost a step in which nothing fails: `python benchmarks/callbacks.py`.

Prints ratios, step with / step without, from one run. Steps with and without are taken in turn, so that other load of
the machine affects both, and the medians are compared. `--quick` takes few steps of the tiny network only; `--device
cuda` measures on a GPU.
"""
import argparse

import numpy as np
import torch
from steps import SIZES, Stepper, batch_of, in_turn

from hiccap.callbacks import ClipGradients, StepRecorder
from hiccap.nan_detector import NanDetector
from hiccap.model import HICCAP
from hiccap.tasks import COMIC_MISCHIEF

SETS = {'clipping': lambda: [ClipGradients()],
        'detector': lambda: [NanDetector(folder=None)],
        'detector, rollback': lambda: [NanDetector('rollback', folder=None)],
        'detector and clipping': lambda: [NanDetector(folder=None), ClipGradients()],
        'detector, clipping, recorder': lambda: [NanDetector(folder=None), ClipGradients(), StepRecorder()]}


def measure(name, config, tokens, steps, device):
    "Steps taken in turn by a learner without callbacks and one for each set"
    batch = batch_of(np.random.default_rng(0), tokens, COMIC_MISCHIEF, device)
    print(f'{name}: 8 clips of {tokens} tokens, {steps} steps each, {device}')
    for label, cbs in SETS.items():
        r = in_turn(
            [Stepper(HICCAP(config, COMIC_MISCHIEF, seed=0).to(device), batch, o, COMIC_MISCHIEF, device)
             for o in ([], cbs())],
            steps,
        )
        print(f"  {label:<30} ratio {r['ratio']:.4f}   middle half of single ratios {r['low']:.3f} to {r['high']:.3f}  "
              f" without {r['first_ms']:.1f} ms")


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--quick', action='store_true', help='few steps of the tiny network only')
    ap.add_argument('--device', default='cpu')
    ap.add_argument('--steps', type=int, default=None, help='steps of each learner; 200 tiny and 20 wide by default')
    a = ap.parse_args()
    for i, (name, (config, tokens)) in enumerate(SIZES.items()):
        if not (a.quick and i):
            measure(name, config, tokens, a.steps or (20 if i else 10 if a.quick else 200), torch.device(a.device))
