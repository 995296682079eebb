"""What predictions cost: `OMP_NUM_THREADS=2 python benchmarks/prediction.py [--clips 400] [--out prediction.json]`.

MiniLM is trained for an epoch on texts of common words, and predicts others: in float32, in bfloat16, by ONNX, and by
ONNX with weights and products in int8 (dynamic quantisation), with batches in the order of length and as they come.
The ways take their batches in turn, so that other load of the machine affects all. Prints clips a second and the
latency of one clip as ratios to float32, and the price: the largest and the mean difference of a probability, the share
of classes that change, and the difference of the macro F1. Then a network of video, sound and subtitles predicts video
files, with the seconds of each part: decoding and features, reading, network. `--quick` takes few clips.
"""
import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from commands import text_table, watched
from sklearn.metrics import f1_score
from steps import machine, timed

from hiccap.export import OnnxModel, export_onnx
from hiccap.inference import load_run
from hiccap.padding import collate
from hiccap.synthetic_videos import write_synthetic_videos

FLOAT = 'float32'


def trained_on_texts(folder, n, epochs, more=()):
    "A run of MiniLM"
    table = text_table(folder, n)
    watched('end', 'train', table, '--labels', 'funny', '--encoder', 'minilm', '--epochs', epochs, '--simple-models',
            'words', '--linear-part', 0, '--out', folder/'run', *more)
    return load_run(folder/'run')


def int8(path, folder):
    "An exported network with weights in int8 and products of int8"
    from onnxruntime.quantization import QuantType, quantize_dynamic
    quantize_dynamic(path, folder/'int8.onnx', weight_type=QuantType.QInt8)
    return OnnxModel(folder/'int8.onnx', torch.get_num_threads())


def runners(trained, folder):
    "name -> function of the inputs of a batch that returns the logits (B, 2) of the task"
    model, task = trained.models[0].eval(), trained.tasks[0].name
    export_onnx(model, folder/'net.onnx')
    exported, small = OnnxModel(folder/'net.onnx', torch.get_num_threads()), int8(folder/'net.onnx', folder)
    def half(x):
        with torch.autocast('cpu', torch.bfloat16): return model(x)[task].float()
    return {FLOAT: lambda x: model(x)[task], 'bfloat16': half, 'onnx': lambda x: torch.as_tensor(exported(x)[task]),
            'onnx, int8': lambda x: torch.as_tensor(small(x)[task])}


def batches_of(ds, order, bs):
    "Inputs of the clips in an order"
    return [collate([ds[int(i)] for i in rows], ds.tasks)[0] for rows in np.split(order, range(bs, len(order), bs))]


def in_turn(ways, batches, singles):
    "name -> seconds of each batch, and of each single clip"
    found = {k: ([], []) for k in ways}
    for f in ways.values(): f(batches[0])
    for x, one in zip(batches, singles):
        for k, f in ways.items():
            found[k][0].append(timed(lambda: f(x)))
            found[k][1].append(timed(lambda: f(one)))
    return found


def price(f, batches, order, labels, exact=None):
    "How far the probabilities of a way are from those of float32, and its macro F1"
    p = torch.cat([f(x).softmax(1)[:, 1] for x in batches]).numpy()
    y = labels[order]
    out = dict(macro_f1=float(f1_score(y, p > .5, average='macro')))
    if exact is not None:
        off = np.abs(p - exact)
        out |= dict(largest=float(off.max()), mean=float(off.mean()), changed=float(((p > .5) != (exact > .5)).mean()))
    return p, out


@torch.inference_mode()
def measured(trained, ds, folder, bs):
    "name -> speed, latency and price of each way"
    ways, n = runners(trained, folder), len(ds)
    lengths = ds.lengths('text')
    order, labels = lengths.argsort(kind='stable')[::-1].copy(), ds.labels[trained.tasks[0].name].numpy()
    batches = batches_of(ds, order, bs)
    singles = batches_of(ds, order[::bs], 1)
    times, out = in_turn(ways, batches, singles), {}
    exact, out[FLOAT] = price(ways[FLOAT], batches, order, labels)
    for k in ways:
        if k != FLOAT: out[k] = price(ways[k], batches, order, labels, exact)[1]
        each, alone = times[k]
        out[k] |= dict(clips_a_second=n/sum(each), one_clip_ms=1e3*statistics.median(alone),
                       ratio=sum(times[FLOAT][0])/sum(each),
                       latency_ratio=statistics.median(alone)/statistics.median(times[FLOAT][1]))
    mixed = batches_of(ds, np.random.default_rng(0).permutation(n), bs)
    pairs = [(timed(lambda: ways[FLOAT](a)), timed(lambda: ways[FLOAT](b))) for a, b in zip(batches, mixed)]
    sorted_s, mixed_s = map(sum, zip(*pairs))
    padded = {k: float(np.mean([1 - o['text_mask'].float().mean() for o in x]))
              for k, x in (('by length', batches), ('as they come', mixed))}
    return out, dict(ratio=mixed_s/sorted_s, padding=padded)


def from_videos(folder, n, seconds):
    "Seconds of each part of a prediction of video files, and how many clips a second in all"
    for name, seed in (('train', 0), ('new', 1)): write_synthetic_videos(folder/name, n, seconds, seed)
    watched('end', 'train', folder/'train'/'clips.csv', '--labels', 'flash', 'beep', '--video-column', 'file',
            '--encoder', 'minilm', '--epochs', 1, '--simple-models', 'words', '--cache', folder/'cache', '--out',
            folder/'videos')
    parts = {}
    def part(name, f):
        out = []
        parts[name] = timed(lambda: out.append(f()))
        return out[0]
    trained = part('reading the run', lambda: load_run(folder/'videos'))
    paths = sorted((folder/'new').glob('*.mp4'))
    clips, failed = part('decoding and features', lambda: trained.locate(paths, cache=folder/'other'))
    if failed: raise RuntimeError(f'could not be extracted: {failed}')
    ds = part('reading clips', lambda: trained.read_located(clips, labelled=False))
    part('network', lambda: trained.answer(ds))
    whole = sum(parts.values())
    return dict(clips=len(ds), seconds_of_video=len(ds)*seconds, seconds=parts, clips_a_second=len(ds)/whole,
                times_real_time=len(ds)*seconds/whole, shares={k: v/whole for k, v in parts.items()})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--clips', type=int, default=400)
    p.add_argument('--bs', type=int, default=32)
    p.add_argument('--epochs', type=int, default=3)
    p.add_argument('--videos', type=int, default=60)
    p.add_argument('--seconds', type=float, default=10., help='of a video')
    p.add_argument('--out', help='JSON file to write')
    p.add_argument('--quick', action='store_true', help='few clips')
    a = p.parse_args()
    if a.quick: a.clips, a.bs, a.epochs, a.videos, a.seconds = 60, 8, 1, 24, 1.
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        trained = trained_on_texts(folder, a.clips, a.epochs, ['--max-length', 16] if a.quick else ())
        (folder/'new').mkdir()
        ds = trained.read(text_table(folder/'new', a.clips, seed=1))
        ways, order = measured(trained, ds, folder, a.bs)
        (folder/'media').mkdir()
        videos = from_videos(folder/'media', a.videos, a.seconds)
    for k, o in ways.items():
        cost = (f", probabilities {o['largest']:.4f} off at most, {o['mean']:.5f} on average, {o['changed']:.1%} of"
                f" classes change, macro F1 {o['macro_f1'] - ways[FLOAT]['macro_f1']:+.3f}" if 'largest' in o
                else f", macro F1 {o['macro_f1']:.3f}")
        print(f"{k:<11} {o['clips_a_second']:.1f} clips/s ({o['ratio']:.2f} of float32), one clip"
              f" {o['one_clip_ms']:.0f} ms ({o['latency_ratio']:.2f}){cost}")
    mixed, sorted_ = (order['padding'][k] for k in ('as they come', 'by length'))
    print(f"batches as they come take {order['ratio']:.2f} of the time of those by length: {mixed:.0%}"
          f" of their positions are padding, {sorted_:.0%} of the others")
    print(f"videos: {videos['clips_a_second']:.2f} clips/s, {videos['times_real_time']:.1f} times real time; "
          + ', '.join(f'{k} {v:.0%}' for k, v in videos['shares'].items()))
    r = dict(machine=machine(), clips=a.clips, bs=a.bs, quick=a.quick, ways=ways, order=order, videos=videos)
    if a.out: Path(a.out).write_text(json.dumps(r, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__': main()
