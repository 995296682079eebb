"""From a command to its first step: `OMP_NUM_THREADS=2 python benchmarks/start.py [--times 3] [--out F.json]`.

Seconds, processor seconds and memory of four commands, each in a process of its own: help; training on texts with
MiniLM, and on features, until the first batch is there; and prediction with features. Next to them what PyTorch and
fastai take to be imported. The commands are run in turn, once for warm files and then `--times` times; medians are
printed. The aim is 6 s and, for help, 0.5 s. `--quick` takes few clips and one time.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from commands import features_of, machine_of, text_table, watched

IMPORTS = 'import torch, fastai.callback.schedule'


def prepared(folder, n):
    "name -> arguments of `watched`, of the commands that are measured"
    table, features = text_table(folder, n), features_of(folder, n)
    silent = folder/'silent.csv'
    rows = [o.rsplit(',', 1) for o in table.read_text(encoding='utf-8').splitlines()]
    silent.write_text(''.join(f"{','.join(a.split(',')[:2])},{y}\n" for a, y in rows), encoding='utf-8')
    on_features = ['train', silent, '--labels', 'funny', '--features', f'sound={features}']
    watched('end', *on_features, '--out', folder/'trained', '--epochs', 1, '--simple-models', 'words')
    return {'training on texts, MiniLM':
            ('first_step', 'train', table, '--labels', 'funny', '--encoder', 'minilm', '--out', folder/'text'),
            'training on features': ('first_step', *on_features, '--out', folder/'run'),
            'prediction on features':
            ('end', 'predict', folder/'trained', silent, '--features', f'sound={features}', '--out', folder/'p.csv',
             '--overwrite')}


def plain(code, *args):
    "Seconds of a Python process"
    start = time.perf_counter()
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code, *args], check=True, stdout=subprocess.DEVNULL)
    return dict(seconds=time.perf_counter() - start)


def measured(n, times, warm=1):
    "name -> medians, without the first times, which warm the files"
    with tempfile.TemporaryDirectory() as folder:
        ways = {k: lambda v=v: watched(*v) for k, v in prepared(Path(folder), n).items()}
        ways |= {'help': lambda: plain('from hiccap.cli import train; train(["--help"])'),
                 'import of PyTorch and fastai': lambda: plain(IMPORTS)}
        found = {k: [] for k in ways}
        for i in range(warm + times):
            for k, f in ways.items():
                o = f()
                if i >= warm: found[k].append(o)
    keep = 'seconds', 'processor_seconds', 'mb', 'peak_mb'
    return {k: {n: statistics.median(o[n] for o in v) for n in keep if n in v[0]} for k, v in found.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--clips', type=int, default=690)
    p.add_argument('--times', type=int, default=3)
    p.add_argument('--out', help='JSON file to write')
    p.add_argument('--quick', action='store_true', help='few clips, one time')
    a = p.parse_args()
    if a.quick: a.clips, a.times = 40, 1
    r = dict(machine=machine_of(), clips=a.clips, times=a.times, commands=measured(a.clips, a.times, warm=not a.quick))
    base = r['commands']['import of PyTorch and fastai']['seconds']
    for k, o in r['commands'].items():
        more = f", {o['processor_seconds']:.1f} s of processors, {o['peak_mb']:.0f} MB" if 'mb' in o else ''
        print(f"{k:<30} {o['seconds']:.2f} s ({o['seconds']/base:.2f} of importing PyTorch and fastai){more}")
    if a.out: Path(a.out).write_text(json.dumps(r, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__': main()
