"""What packing gives: `python benchmarks/packing.py [--clips 1000000] [--files 2000] [--out packing.json]`.

Packs synthetic clips (short texts, small features), opens them in a new process, and reads them at random and in order
on one core, from a warm cache; and reads some as a folder of .npy files, for the ratio.

Limits for 1,000,000 clips: 1 s and 200 MB to open; at least 5,000 random clips a second.
"""
import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import torch

from hiccap.clips import ClipDataset, TensorColumn
from hiccap.features import FeatureColumn, FeatureFolder
from hiccap.packing import open_packed, pack
from hiccap.tasks import Task

ALLOWED = dict(open_s=1, open_mb=200, clips_a_second=5000)
OPENING = '''import json, sys, time
from hiccap.clips import MODALITIES
from hiccap.packing import open_packed
def mb(): return sum(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(('RssAnon', 'RssFile')))/1024
before, t = mb(), time.perf_counter()
ds = open_packed(sys.argv[1])
opened = time.perf_counter() - t
mb_open = mb() - before
t = time.perf_counter()
first = ds[len(ds)//2]
clip = time.perf_counter() - t
t = time.perf_counter()
n = sum(ds.lengths(m) for m in MODALITIES)
print(json.dumps(dict(open_s=opened, open_mb=mb_open, first_clip_s=clip, lengths_s=time.perf_counter() - t,
                      with_lengths_mb=mb() - before)))'''


class Drawn:
    "A column of synthetic values: the same for a clip each time"
    def __init__(self, n, longest, width, seed):
        self.lengths, self.width = np.random.default_rng(seed).integers(1, longest + 1, n), width
        self.pool = (torch.randn(4096, width, generator=torch.Generator().manual_seed(seed)) if width
                     else torch.randint(5, 30_000, (4096,), generator=torch.Generator().manual_seed(seed)))
    def __getitem__(self, i):
        n = int(self.lengths[i])
        a = i*37 % (4096 - n)
        return self.pool[a:a + n]


def synthetic(n, video=8, audio=4):
    ids, y = [f'v{i//5:06d}_{i % 5}' for i in range(n)], np.random.default_rng(0).integers(0, 2, (2, n))
    return ClipDataset(ids, dict(text=Drawn(n, 24, None, 1), video=Drawn(n, 3, video, 2), audio=Drawn(n, 3, audio, 3)),
                       dict(said=y[0], seen=y[1]), [Task('said'), Task('seen')], name='synthetic')


def speed(ds, rows, times=3):
    "Clips a second, the median of some passes over rows; the first pass warms the cache"
    found = []
    for _ in range(times + 1):
        t = time.perf_counter()
        for i in rows: ds[i]
        found.append(len(rows)/(time.perf_counter() - t))
    return statistics.median(found[1:])


def against_files(folder, n):
    "Clips a second from a folder of .npy files and packed, of the released features' widths"
    rng, ids = np.random.default_rng(4), [f'c{i}_0' for i in range(n)]
    (folder/'files').mkdir()
    for i in ids:
        v, a = int(rng.integers(2, 9)), int(rng.integers(4, 20))
        for part, shape in (('rgb', (v, 1024)), ('flow', (v, 1024)), ('vggish', (a, 128))):
            np.save(folder/'files'/f'{i}_{part}.npy', rng.normal(size=shape).astype(np.float32))
    f = FeatureFolder(folder/'files')
    source = ClipDataset(
        ids,
        dict(text=TensorColumn([torch.arange(1, 40)] * n), **{m: FeatureColumn(f, m, ids) for m in ('video', 'audio')}),
        {}, [])
    pack(source, folder/'whole')
    pack(source, folder/'half', half=True)
    order = rng.permutation(n)
    def size(at): return sum(p.stat().st_size for p in at.iterdir())
    files = speed(source, order)
    out = dict(files=files, size_files=size(folder/'files'))
    for k in ('whole', 'half'): out |= {k: speed(open_packed(folder/k), order), f'size_{k}': size(folder/k)}
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--clips', type=int, default=1_000_000)
    p.add_argument('--files', type=int, default=2000, help='clips of the folder of .npy files')
    p.add_argument('--reads', type=int, default=20_000)
    p.add_argument('--out', help='JSON file to write')
    a = p.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix='packing-'))
    try: r = measure(folder, a)
    finally: shutil.rmtree(folder)
    if a.out: Path(a.out).write_text(json.dumps(r, indent=1) + '\n')


def measure(folder, a):
    source, t = synthetic(a.clips), time.perf_counter()
    pack(source, folder/'packed')
    packing = time.perf_counter() - t
    size = sum(o.stat().st_size for o in (folder/'packed').iterdir())
    runs = [
        json.loads(
            subprocess.run(
                [sys.executable, '-c', OPENING, str(folder / 'packed')], capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(3)
    ]
    opening = {k: statistics.median(o[k] for o in runs) for k in runs[0]}
    ds, rng = open_packed(folder/'packed'), np.random.default_rng(5)
    rows = rng.integers(0, len(ds), a.reads)
    random, in_order, memory = speed(ds, rows), speed(ds, range(min(a.reads, len(ds)))), speed(source, rows)
    files = against_files(folder, a.files)
    r = dict(machine=f'{platform.machine()}, {os.cpu_count()} cores, one used', clips=a.clips, bytes=size,
             packed_a_second=a.clips / packing, **opening, random_a_second=random, in_order_a_second=in_order,
             planted_a_second=memory, against_files=files, allowed=ALLOWED)
    print(f"{a.clips:,} clips, {size/1e6:,.0f} MB in {len(list((folder/'packed').glob('shard-*')))} shards; packed at"
          f" {r['packed_a_second']:,.0f} clips a second")
    print(
        f"open: {r['open_s']:.2f} s, {r['open_s']/ALLOWED['open_s']:.2f} of what is allowed; {r['open_mb']:.0f} MB more"
        f" memory, {r['open_mb']/ALLOWED['open_mb']:.2f} of what is allowed ({r['with_lengths_mb']:.0f} MB with all"
        f" lengths, after {1e3*r['lengths_s']:.0f} ms)")
    print(f"random clips: {random:,.0f} a second, {random/ALLOWED['clips_a_second']:.1f} times what is asked; in order"
          f" {in_order:,.0f}; the source, in memory, {memory:,.0f} ({random/memory:.2f} of it)")
    print(
        f"{a.files:,} clips 1,024 and 128 wide: {files['whole']/files['files']:.1f} times a folder of .npy files"
        f" ({files['files']:,.0f} a second), in half precision {files['half']/files['files']:.1f} times;"
        f" {files['size_whole']/files['size_files']:.2f} and {files['size_half']/files['size_files']:.2f} of its size")
    return r


if __name__ == '__main__': main()
