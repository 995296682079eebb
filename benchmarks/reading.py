"""Speed of reading a table and of digests: `python benchmarks/reading.py [--clips 100000] [--features 100000]`.

Reads a table as training does, without its tokenizer; and digests a folder of feature files for the first and the
second time, next to a plain reading of the same bytes. Each part is a process of its own. With PYTHONPATH set to
another checkout, the first part measures that one (`--only table`).
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TABLE = '''import sys, time
from hiccap.readers import read_table
ids = {'input_ids': [1, 2]}
t = time.perf_counter()
ds = read_table(sys.argv[1], lambda text, second=None, **kw: ids, ['funny'], group='video', max_length=9)
print(time.perf_counter() - t, len(ds))'''

PLAIN = '''import os, sys, time
t, n = time.perf_counter(), 0
with os.scandir(sys.argv[1]) as entries: names = [e.path for e in entries if e.name.endswith('.npy')]
for p in names:
    with open(p, 'rb', buffering=0) as f:
        while block := f.read(1 << 20): n += len(block)
print(time.perf_counter() - t, n)'''

DIGESTS = '''import os, sys, time
from hiccap.digests import file_digests
with os.scandir(sys.argv[1]) as entries: names = [e.name for e in entries if e.name.endswith('.npy')]
t = time.perf_counter()
found = file_digests(sys.argv[1], names)
print(time.perf_counter() - t, len(found))'''


def child(code, *args):
    "Seconds and a number, as a process of its own prints them"
    out = subprocess.run([sys.executable, '-c', code, *map(str, args)], check=True, capture_output=True, text=True)
    seconds, n = out.stdout.split()[-2:]
    return float(seconds), int(n)


def write_table(path, n):
    rng, words = np.random.default_rng(0), np.array([f'word{i}' for i in range(5000)])
    with open(path, 'w', encoding='utf-8') as f:
        if path.suffix == '.csv': f.write('id,video,text,funny\n')
        for i in range(n):
            text = ' '.join(words[rng.integers(0, 5000, int(rng.integers(5, 60)))])
            r = dict(id=f'v{i//5}_{i % 5}', video=f'v{i//5}', text=text, funny=int(rng.integers(2)))
            row = f"{r['id']},{r['video']},\"{text}\",{r['funny']}"
            f.write((row if path.suffix == '.csv' else json.dumps(r)) + '\n')


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--clips', type=int, default=100_000)
    p.add_argument('--features', type=int, default=100_000)
    p.add_argument('--only', choices=('table', 'digests'))
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for kind in ('csv', 'jsonl') if args.only != 'digests' else ():
            write_table(folder/f't.{kind}', args.clips)
            seconds = min(child(TABLE, folder/f't.{kind}')[0] for _ in range(3))
            print(f'{kind}: {args.clips:,} rows in {seconds:.2f} s, the fastest of three')
        if args.only == 'table': return
        (folder/'features').mkdir()
        x = np.random.default_rng(0).normal(size=(30, 128)).astype(np.float32)
        for i in range(args.features): np.save(folder/'features'/f'v{i//5}_{i % 5}_vggish.npy', x + i)
        child(PLAIN, folder/'features')
        plain, n = child(PLAIN, folder/'features')
        first, second = (child(DIGESTS, folder/'features')[0] for _ in range(2))
        print(f'{args.features:,} files, {n/1e6:,.0f} MB: read in {plain:.2f} s; digests {first:.2f} s'
              f' ({first/plain:.2f} times), the second start {second:.2f} s')


if __name__ == '__main__': main()
