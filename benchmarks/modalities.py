"""What a network costs that is built for the modalities of its clips, next to one that also has the encoders of absent
ones: `OMP_NUM_THREADS=2 python benchmarks/modalities.py`. Steps of the two are taken in turn."""
import argparse
import gc
import json

import numpy as np
import torch

from hiccap.clips import Clip
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.padding import collate
from hiccap.tasks import Task
from steps import MINILM, Stepper, in_turn, machine

TASKS = [Task('funny')]


def clips(rng, modalities, n=8):
    "Clips of 64 tokens, 24 frames, 40 sounds and 30 faces, as far as they are asked for"
    values = dict(text=lambda: rng.integers(5, 30522, 64), video=lambda: rng.normal(size=(24, 1024)),
                  audio=lambda: rng.normal(size=(40, 128)), face=lambda: rng.normal(size=(30, 35)))
    return [Clip(f'c{i}', **{m: values[m]() for m in modalities}, labels=dict(funny=int(rng.integers(2))))
            for i in range(n)]


def stepper(config, batch):
    model = HICCAP(config, TASKS, pretrained=False, seed=0)
    size = sum(p.numel() for p in model.parameters())
    return Stepper(model, batch, [], TASKS, torch.device('cpu')), size


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--out', help='JSON file to write')
    args = parser.parse_args()
    whole = dict(text=MINILM, video=1024, audio=128)
    out = dict(machine=machine(), networks={})
    for names in (['text'], ['text', 'audio'], ['video', 'audio'], ['text', 'face']):
        batch = collate(clips(np.random.default_rng(0), names), TASKS)
        encoders = {m: {**whole, 'face': 35}[m] for m in names}
        small, n = stepper(HICCAPConfig(modalities=encoders, width=384), batch)
        large, N = stepper(HICCAPConfig(modalities=whole | encoders, width=384), batch)
        r = in_turn((small, large), args.steps)
        out['networks'][' + '.join(names)] = dict(parameters=n, with_absent_encoders=N, **r)
        print(f"{' + '.join(names):15} {n/1e6:5.1f}M parameters, {N/1e6:5.1f}M with the encoders of absent modalities,"
              f" whose step takes {r['ratio']:.2f} times as long ({r['low']:.2f} to {r['high']:.2f});"
              f" {r['first_ms']:.0f} ms")
        del small, large
        gc.collect()
    if args.out:
        with open(args.out, 'w') as f: json.dump(out, f, indent=1)


if __name__ == '__main__': main()
