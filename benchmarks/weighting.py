"""What a weighting costs a step: `python benchmarks/weighting.py`.

Prints ratios, step with / step of the plain sum, from one run. Steps with and without are taken in turn, so that other
load of the machine affects both, and the medians are compared. `--quick` takes few steps of the tiny network only;
`--json FILE` writes the numbers; `--device cuda` measures on a GPU.
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch
from steps import SIZES, Stepper, batch_of, in_turn

from hiccap.model import HICCAP
from hiccap.tasks import COMIC_MISCHIEF
from hiccap.weighting import COMPARED_AT, WEIGHTINGS, Weigh, weighting

TASKS = COMIC_MISCHIEF[1:]  # the four types


def ways():
    "(label, weighting) of each name, and of each place where gradients are compared"
    for name, cls in WEIGHTINGS.items():
        kw = dict(tasks={t.name: 1. for t in TASKS}) if name == 'fixed' else {}
        for at in COMPARED_AT if cls.gradients else (None,):
            try:
                yield name if at is None else f'{name} at {at}', weighting(
                    name, **kw, **({} if at is None else dict(at=at)))
            except ImportError as e: print(f'  {name} left out: {e}')


def measure(size, config, tokens, steps, device):
    "Steps taken in turn by the plain sum and by each weighting"
    batch, out = batch_of(np.random.default_rng(0), tokens, TASKS, device), []
    print(f'{size}: 8 clips of {tokens} tokens, {len(TASKS)} tasks, {steps} steps each, {device}')
    for label, w in ways():
        r = in_turn(
            [Stepper(HICCAP(config, TASKS, pretrained=False, seed=0).to(device), batch, cbs, TASKS, device)
             for cbs in ([], [Weigh(w)])],
            steps,
        )
        out.append(
            dict(size=size, weighting=label, ratio=r['ratio'], low=r['low'], high=r['high'], plain_ms=r['first_ms'],
                 steps=steps)
        )
        print(f"  {label:<30} ratio {r['ratio']:.3f}   middle half of single ratios {r['low']:.3f} to {r['high']:.3f}  "
              f" plain {r['first_ms']:.1f} ms", flush=True)
    return out


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--quick', action='store_true', help='few steps of the tiny network only')
    ap.add_argument('--device', default='cpu')
    ap.add_argument('--steps', type=int, default=None, help='steps of each; 60 tiny and 10 wide by default')
    ap.add_argument('--json', default=None, help='file that the numbers are written to')
    a = ap.parse_args()
    found = []
    for i, (size, (config, tokens)) in enumerate(SIZES.items()):
        if not (a.quick and i):
            found += measure(
                size, config, tokens, a.steps or (10 if i else 3 if a.quick else 60), torch.device(a.device))
    if a.json:
        Path(a.json).write_text(
            json.dumps(
                dict(torch=torch.__version__, device=a.device, threads=torch.get_num_threads(), rows=found), indent=1)
            + '\n'
        )
