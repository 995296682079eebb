"""What the benchmarks of whole commands share: clips to run them on, and a process that is watched."""
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WORDS = ('a and bad big but cat come did dog fall for fun go good ha happy he her house how i in it joke laugh man me'
         ' my never no not of oh on please run sad say scream she so stop that the there they this to tree was we what'
         ' why you').split()
# tokens of a text of the released validation split: its quantiles, from the shortest to the longest of ten parts
LENGTHS = 2, 25, 52, 80, 105, 128, 148, 166, 184, 207, 299


def text_lengths(n, seed=0):
    "Words of each text, as the released clips have them"
    at = np.random.default_rng(seed).random(n)
    return np.interp(at, np.linspace(0, 1, len(LENGTHS)), LENGTHS).round().astype(int)


def text_table(folder, n, seed=0):
    "A table of texts of common words, three clips of a video, of which half say `ha` more often"
    rng, path = np.random.default_rng(seed), Path(folder)/'clips.csv'
    with open(path, 'w', newline='', encoding='utf-8') as f:
        out = csv.writer(f, lineterminator='\n')
        out.writerow(['id', 'video', 'text', 'funny'])
        for i, length in enumerate(text_lengths(n, seed)):
            funny = int(rng.integers(2))
            words = rng.choice(WORDS, max(1, length - 2)).tolist() + ['ha']*2*funny
            out.writerow([f'v{i//3}_{i % 3}', f'v{i//3}', ' '.join(words), ('no', 'yes')[funny]])
    return path


def features_of(folder, n, width=128, positions=(4, 20), seed=0):
    "A folder of .npy files with vectors of the clips of `text_table`"
    rng, at = np.random.default_rng(seed), Path(folder)/'sound'
    at.mkdir()
    for i in range(n):
        np.save(at/f'v{i//3}_{i % 3}.npy', rng.normal(size=(rng.integers(*positions), width)).astype(np.float32))
    return at


def watched(how, command, *args):
    "The notes of `watched.py` on a command, which must end well"
    with tempfile.TemporaryDirectory() as folder:
        notes, child = Path(folder)/'notes.json', Path(__file__).with_name('watched.py')
        out = subprocess.run([sys.executable, '-W', 'ignore', child, notes, how, command, *map(str, args)],
                             capture_output=True, text=True, env=os.environ | dict(STARTED=str(time.time())))
        if out.returncode: raise RuntimeError(f'hiccap_{command} ended with {out.returncode}:\n{out.stderr[-2000:]}')
        return json.loads(notes.read_text(encoding='utf-8'))


def machine_of():
    "What a figure was measured on"
    cpu = Path('/proc/cpuinfo')
    lines = cpu.read_text(encoding='utf-8').splitlines() if cpu.exists() else []
    name = next((o.split(':')[1].strip() for o in lines if o.startswith('model name')), platform.machine())
    return dict(processor=name, cores=os.cpu_count(), threads=os.environ.get('OMP_NUM_THREADS', 'all'))
