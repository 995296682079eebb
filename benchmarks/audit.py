"""Speed and memory of the audit on a synthetic manifest: `python benchmarks/audit.py [--clips 100000]`.

Writes a manifest of clips with text and labels in each format, audits it in a process of its own, and prints seconds
and megabytes as shares of the limits for 100,000 clips: 60 s and 1,000 MB (peak resident memory, imports included).
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ALLOWED_S, ALLOWED_MB = 60, 1000
TYPES = ('mature', 'gory', 'slapstick', 'sarcasm')
CHILD = '''import resource, sys, time
from hiccap.audit import audit
t = time.perf_counter()
a = audit(sys.argv[1])
seconds, mb = time.perf_counter() - t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
print(seconds, mb, len(a.findings), a.summary['clips'])'''


def released(n, rng):
    "Records as released, of about the real lengths"
    vocab = np.array([f'w{i}' for i in range(20_000)])
    for i in range(n):
        w = (20_000*rng.random(int(rng.integers(40, 215)))**3).astype(int)
        y = int(rng.integers(2))
        id = f'v{i//4}_{i % 4}'
        yield id, dict(IMDBid=id, label=y, y=[1 - y, y], words=['[CLS]', *vocab[w].tolist(), '[SEP]'],
                       indexes=[101, *(w + 1000).tolist(), 102],
                       **{t: [0, 1] if y and (y := 1) and rng.random() < 0.5 else [1, 0] for t in TYPES[1:]},
                       mature=[1 - y, y])


def write(path, n):
    rng = np.random.default_rng(0)
    with open(path, 'w', encoding='utf-8') as f:
        if path.suffix == '.json':
            f.write('{')
            [f.write((', ' if i else '') + json.dumps(id) + ': ' + json.dumps(r))
             for i, (id, r) in enumerate(released(n, rng))]
            f.write('}')
        elif path.suffix == '.csv':
            f.write('id,text,label\n')
            [f.write(f"{id},{' '.join(r['words'][1:-1])},{r['label']}\n") for id, r in released(n, rng)]
        else:
            for id, r in released(n, rng):
                f.write(json.dumps(dict(id=id, text=' '.join(r['words'][1:-1]), label=r['label'])) + '\n')


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--clips', type=int, default=100_000)
    p.add_argument('--kinds', nargs='+', default=['json', 'csv', 'jsonl'])
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.kinds:
            path = Path(folder)/f'manifest.{kind}'
            write(path, args.clips)
            size = path.stat().st_size/1e6
            out = subprocess.run(
                [sys.executable, '-c', CHILD, str(path)], capture_output=True, text=True, check=True).stdout.split()
            s, mb, share = float(out[0]), float(out[1]), args.clips/100_000
            print(f'{kind:<6} {args.clips:,} clips, {size:,.0f} MB: {s:.1f} s, {s/(ALLOWED_S*share):.2f} of what is'
                  f' allowed; {mb:,.0f} MB, {mb/ALLOWED_MB:.2f} of what is allowed; {out[2]} findings')
            path.unlink()


if __name__ == '__main__': main()
