"""Clips per second and latency of one clip: `OMP_NUM_THREADS=2 python benchmarks/inference.py --out FILE`.

The study reads nbs/results/inference.json. BERT-base width and depth with random weights, text lengths of the released
validation split. float32, bfloat16, compiled and ONNX, each in a process of its own, on the same clips, with the
largest difference from float32. `--quick` takes a tiny network, to see that everything runs.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from steps import clips_of, machine, matrix_product, peak_memory, released_lengths, spread_batches, timed
from training_step import TASKS, config, operations

from hiccap.model import HICCAP
from hiccap.padding import collate

WAYS = ('float32', 'bfloat16', 'compiled', 'onnx')


def runner(way, model, folder):
    "inputs -> logits of the one task"
    name = TASKS[0].name
    if way == 'onnx':
        from hiccap.export import OnnxModel, export_onnx
        export_onnx(model, Path(folder)/'net.onnx')
        net = OnnxModel(Path(folder)/'net.onnx', torch.get_num_threads())
        return lambda x: torch.as_tensor(net(x)[name])
    if way == 'compiled':
        model.packed = False  # a graph for any lengths
        net = torch.compile(model, dynamic=True)
        return lambda x: net(x)[name]
    if way == 'bfloat16':
        def half(x):
            with torch.autocast('cpu', torch.bfloat16): return model(x)[name].float()
        return half
    return lambda x: model(x)[name]


@torch.inference_mode()
def measure(way, quick, data, bs, batches):
    "One way, alone in this process"
    rng = np.random.default_rng(0)
    lengths = [n.clip(2, 40 if quick else 500) for n in spread_batches(released_lengths(data), bs, batches)]
    sets = [clips_of(n, rng, TASKS) for n in lengths]
    model = HICCAP(config(quick), TASKS, seed=0).eval()
    inputs, singles = [collate(o, TASKS)[0] for o in sets], [collate([o[0]], TASKS)[0] for o in sets]
    expected = [model(x)[TASKS[0].name] for x in singles]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run = runner(way, model, folder)
        for x in (inputs[0], inputs[-1], singles[0]): run(x)
        ready = time.perf_counter() - start
        times, alone = [], []
        for x, one in zip(inputs, singles):
            times.append(timed(lambda: run(x)))
            alone.append(timed(lambda: run(one)))
        off = max((run(x) - y).abs().max().item() for x, y in zip(singles, expected))
    n = sum(map(len, sets))
    return dict(clips_a_second=n / sum(times), one_clip_ms=1e3 * statistics.median(alone), ready_seconds=ready,
                difference=off, peak_memory_mb=peak_memory() / 2**20,
                operations_a_second=sum(operations(model, o) / 3 for o in sets) / sum(times), clips=n)


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--quick', action='store_true', help='a tiny network and few clips')
    ap.add_argument('--data', help='the released validation split')
    ap.add_argument('--bs', type=int, default=16)
    ap.add_argument('--batches', type=int, default=6)
    ap.add_argument('--out', help='JSON file to write')
    ap.add_argument('--only', choices=(*WAYS, 'product'), help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.quick: a.bs, a.batches = 4, 2
    if a.only:
        print(
            json.dumps(matrix_product(256 if a.quick else 2048) if a.only == 'product'
                       else measure(a.only, a.quick, a.data, a.bs, a.batches))
        )
        sys.exit()
    r = {}
    for way in ('product', *WAYS):
        cmd = ([sys.executable, __file__, '--only', way, '--bs', str(a.bs), '--batches', str(a.batches)]
               + ['--quick'] * a.quick + (['--data', a.data] if a.data else []))
        try:
            done = subprocess.run(cmd, capture_output=True, text=True, timeout=400)
            r[way] = (json.loads(done.stdout.splitlines()[-1]) if not done.returncode
                      else dict(failed=done.stderr.strip().splitlines()[-1][:300]))
        except subprocess.TimeoutExpired: r[way] = dict(failed='not ready within 400 s')
    r = dict(machine=machine(), quick=a.quick, product_operations_a_second=r.pop('product'), bs=a.bs, ways=r)
    base = r['ways']['float32']
    print(f"{r['machine']['processor']}, {r['machine']['threads']} threads, bfloat16 in hardware:"
          f" {r['machine']['bfloat16_in_hardware']}")
    for way, o in r['ways'].items():
        if 'failed' in o:
            print(f"{way:<9} failed: {o['failed']}")
            continue
        o['ratio'], o['latency_ratio'], o['utilisation'] = (o['clips_a_second'] / base['clips_a_second'],
                                                            o['one_clip_ms'] / base['one_clip_ms'],
                                                            o['operations_a_second'] / r['product_operations_a_second'])
        print(
            f"{way:<9} {o['clips_a_second']:.2f} clips/s ({o['ratio']:.2f} of float32), one clip {o['one_clip_ms']:.0f}"
            f" ms ({o['latency_ratio']:.2f}), ready after {o['ready_seconds']:.0f} s, {o['peak_memory_mb']:.0f} MB,"
            f" {o['difference']:.1e} from float32, utilisation {o['utilisation']:.0%}")
    if a.out:
        with open(a.out, 'w', encoding='utf-8') as f:
            json.dump(r, f, indent=1)
            f.write('\n')
