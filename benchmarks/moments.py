"""Seconds to explain one clip, and how many times one prediction that is: `OMP_NUM_THREADS=2 python
benchmarks/moments.py`. A clip of a minute: 150 words, 60 rows of video, 62 of audio. The networks are the default one
(BERT-base, 768 wide) and one with MiniLM (384 wide), with random weights, each in float32 and in bfloat16; `--quick`
takes a tiny one."""
import argparse
import itertools
import json
import statistics

import numpy as np
import torch
from steps import MINILM, machine, timed

from hiccap.clips import Clip
from hiccap.metrics import Thresholds
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.moments import clip_inputs, explain_versions, versions_of
from hiccap.precision import mixed_precision
from hiccap.tasks import COMIC_MISCHIEF


def networks(quick):
    "name -> configuration"
    if quick: return dict(tiny=HICCAPConfig.tiny())
    return {'default': HICCAPConfig(), 'MiniLM, 384 wide': HICCAPConfig(text=MINILM, width=384)}


def clip_of(seconds, rng):
    "A clip with two and a half words a second, video each second, and audio each 0.96 s"
    T, V, A = int(2.5*seconds), int(seconds), int(seconds/.96)
    times = {m: np.arange(n)[:, None]*step + [0, step] for m, n, step in
             (('text', T, .4), ('video', V, 1.), ('audio', A, .96))}
    return Clip('minute', text=rng.integers(999, 30000, T), video=rng.normal(size=(V, 1024)),
                audio=rng.normal(size=(A, 128)), **{f'{m}_seconds': o for m, o in times.items()})


@torch.inference_mode()
def measure(model, precision, clip, repeats):
    "Seconds of a prediction and of an explanation in a number format, the median of some"
    inputs, half = clip_inputs(clip, model), Thresholds({}, 'fixed')
    versions = versions_of(clip, [model], precision=precision)
    def explain(): return explain_versions(versions, half)
    def predict():
        with mixed_precision(precision): return model(inputs)
    predict()
    one = statistics.median(timed(predict) for _ in range(3*repeats))
    whole = statistics.median(timed(explain) for _ in range(repeats))
    spans = {m: len(o) for m, o in versions.spans.items()}
    return dict(spans=spans, versions=2 + 2*sum(spans.values()), prediction_seconds=one, explanation_seconds=whole,
                ratio=whole/one)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--quick', action='store_true', help='a tiny network')
    parser.add_argument('--seconds', type=float, default=60., help='length of the clip (default: 60)')
    parser.add_argument('--repeats', type=int, default=3, help='explanations of which the median is taken (default: 3)')
    parser.add_argument('--out', help='JSON file to write')
    args = parser.parse_args()
    clip, out = clip_of(args.seconds, np.random.default_rng(0)), dict(machine=machine(), networks={})
    models = {k: HICCAP(c, COMIC_MISCHIEF, pretrained=False, seed=0).eval() for k, c in networks(args.quick).items()}
    for (name, model), precision in itertools.product(models.items(), ('float32', 'bfloat16')):
        if precision != 'float32': name = f'{name}, {precision}'
        r = out['networks'][name] = measure(model, precision, clip, args.repeats)
        print(f"{name:26} {r['explanation_seconds']:7.2f} s to explain a clip of {args.seconds:g} s in {r['versions']}"
              f" versions, {r['ratio']:.0f} times a prediction ({1e3*r['prediction_seconds']:.0f} ms)")
    if args.out:
        with open(args.out, 'w') as f: json.dump(out, f, indent=1)


if __name__ == '__main__': main()
