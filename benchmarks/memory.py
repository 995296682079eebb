"""Peak memory of a run and of its phases: `python benchmarks/memory.py [--clips 690] [--folds 5] [--out memory.json]`.

Trains MiniLM for one epoch a fold as `hiccap_train` does, with the simple models of its defaults, as it is, with
`--gradient-checkpointing` and in bfloat16, each in a process of its own. Prints the highest memory of each phase and of
each fold. The aim is 1,500 MB, the same in all folds. `--quick` takes few short clips and two folds. Linux.
"""
import argparse
import json
import tempfile
from pathlib import Path

from commands import machine_of, text_table, watched

WAYS = {'float32': (), 'checkpointing': ('--gradient-checkpointing',), 'bfloat16': ('--precision', 'bfloat16')}


def measured(way, clips, folds, longest):
    "The phases of a run, the highest memory of each fold, and of all"
    with tempfile.TemporaryDirectory() as folder:
        table = text_table(folder, clips)
        notes = watched('phases', 'train', table, '--labels', 'funny', '--encoder', 'minilm', '--epochs', 1, '--folds',
                        folds, '--out', Path(folder)/'run', *(['--max-length', longest] if longest else []), *WAYS[way])
    starts = [i for i, o in enumerate(notes['phases']) if o['phase'] == 'training']
    folds = [notes['phases'][a:b] for a, b in zip(starts, [*starts[1:], None])]
    return dict(imports_mb=notes['phases'][0]['before_mb'], peak_mb=notes['whole_peak_mb'],
                folds_mb=[max(o['peak_mb'] for o in fold) for fold in folds],
                starts_mb=[fold[0]['before_mb'] for fold in folds], phases=notes['phases'])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--clips', type=int, default=690)
    p.add_argument('--folds', type=int, default=5)
    p.add_argument('--ways', nargs='+', choices=WAYS, default=list(WAYS))
    p.add_argument('--out', help='JSON file to write')
    p.add_argument('--quick', action='store_true', help='40 short clips, two folds, as it is')
    a = p.parse_args()
    if a.quick: a.clips, a.folds, a.ways = 40, 2, ['float32']
    found = {way: measured(way, a.clips, a.folds, 20 if a.quick else None) for way in a.ways}
    for way, o in found.items():
        peaks, starts = (', '.join(f'{v:,.0f}' for v in o[k]) for k in ('folds_mb', 'starts_mb'))
        print(f"{way}: peak {o['peak_mb']:,.0f} MB; of the folds {peaks}; when training starts {starts};"
              f" {o['imports_mb']:,.0f} before a network")
        for phase in dict.fromkeys(p['phase'] for p in o['phases']):
            highest = max((p for p in o['phases'] if p['phase'] == phase), key=lambda p: p['peak_mb'])
            print(f"  {phase:<28} {highest['before_mb']:,.0f} MB before, {highest['peak_mb']:,.0f} at the peak")
    r = dict(machine=machine_of(), clips=a.clips, folds=a.folds, ways=found)
    if a.out: Path(a.out).write_text(json.dumps(r, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__': main()
