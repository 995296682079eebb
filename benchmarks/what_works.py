"""Which model predicts real clips best: all runs of the study "What works on real data".

    python benchmarks/what_works.py --data ../shared/data --out what_works --jobs 2

It writes the subsets and the synthetic clips, trains every run that is not finished (`--only meld` for some), each as
`hiccap_train` would with its defaults, and with `--keep nbs/results/what_works` it keeps the probabilities of all
models for all test clips. The study computes every figure from these. A run that is kept there, with the same settings,
is not trained again, so the work can be done in parts and on several machines.
"""
import argparse, gzip, io, json
from pathlib import Path
import numpy as np
import pandas as pd
from hiccap.comparison import run_grid
from hiccap.predictions import NETWORK
from hiccap.runs import Clips, Network, Run, Training

SEEDS = range(5)
LABELS = 'Sentiment:negative,neutral,positive', 'Emotion:anger,disgust,fear,joy,neutral,sadness,surprise'
MELD = dict(own_numbering=True, labels=LABELS, text='Utterance', id=('Dialogue_ID', 'Utterance_ID'),
            group='Dialogue_ID')
TYPES = 'mature', 'gory', 'slapstick', 'sarcasm'
WIDTHS = dict(a=32, b=24, c=16)              # columns of the synthetic modalities
KNOWN = dict(dominant=dict(a=2.5, b=.8, c=.8), noise=dict(a=1.5, b=0., c=0.)) # log-odds for a deviation of each
SHOWN = dict(dominant=('a', 'bc', 'ab', 'ac', 'abc'), noise=('a', 'ab', 'abc'))
FEW_MODELS = NETWORK, 'network without its linear part', 'late fusion of single modalities'


def some_groups(table, group, n, draw):
    "Whole groups of a table, in random order, until there are n rows"
    names = np.random.default_rng([draw, n]).permutation(table[group].unique())
    sizes = table[group].value_counts()[names].cumsum()
    return table[table[group].isin(names[:int((sizes < n).sum()) + 1])]


def meld_subset(data, out, n, draw):
    "A table of about n utterances of MELD's training dialogues"
    path = out/f'meld_{n}_{draw}.csv'
    table = pd.read_csv(data/'meld'/'train.csv', dtype=str, keep_default_na=False)
    some_groups(table, 'Dialogue_ID', n, draw).to_csv(path, index=False)
    return path


def sentence(words):
    "The text that was cut into pieces of words, in lower case: one of the two vocabularies has no capitals"
    return ' '.join(o for o in words if o not in ('[CLS]', '[SEP]')).replace(' ##', '').lower()


def comic_table(data):
    """The comic-mischief clips with their words only: without token ids, of which there are two kinds, and without
    captions, which one kind of clips has; both say something about the label"""
    clips = json.loads((data/'comic_mischief_val.json').read_text())
    rows = [dict(id=id, video=id.rpartition('_')[0] if '_' in id[-4:] else id.rpartition('.')[0],
                 text=sentence(o['words']), comic=o['label'], **{t: o[t].index(1) for t in TYPES})
            for id, o in clips.items()]
    table = pd.DataFrame(rows)
    assert table.video.nunique() == 109
    return table


def comic_run(data, out, seed, n=None):
    "Five folds of all comic-mischief clips; or about n to train on, and those of the other videos to score"
    table, how = comic_table(data), dict(labels=('comic', *TYPES), group='video')
    if n is None:
        table.to_csv(out/'comic.csv', index=False)
        return text_run(seed, data=out/'comic.csv', folds=5, **how)
    train, path = some_groups(table, 'video', n, seed), out/f'comic_{n}_{seed}'
    path.mkdir(exist_ok=True)
    train.to_csv(path/'train.csv', index=False)
    table[~table.video.isin(train.video)].to_csv(path/'test.csv', index=False)
    return text_run(seed, data=path/'train.csv', test=path/'test.csv', **how)


def modal_clips(out, kind, draw, n=700, n_test=1300):
    "Synthetic clips of three modalities, of which each says a known part of the label: a training and a test table"
    rng, folder = np.random.default_rng([draw, list(KNOWN).index(kind)]), out/f'{kind}_{draw}'
    z, names = rng.standard_normal((n + n_test, 3)), [f'{kind}{draw}-{i}' for i in range(n + n_test)]
    y = rng.random(n + n_test) < 1/(1 + np.exp(-z@list(KNOWN[kind].values())))
    for m, width, level in zip(WIDTHS, WIDTHS.values(), z.T):
        (folder/m).mkdir(parents=True, exist_ok=True)
        direction = rng.standard_normal(width)
        direction /= np.linalg.norm(direction)
        for id, v in zip(names, level):
            x = rng.standard_normal((int(rng.integers(4, 31)), width))
            x[rng.permutation(len(x))[:max(len(x)//3, 2)]] += 2*v*direction
            np.save(folder/m/f'{id}.npy', x.astype(np.float32))
    table = pd.DataFrame(dict(id=names, video=names, label=y.astype(int)))
    table[:n].to_csv(folder/'train.csv', index=False)
    table[n:].to_csv(folder/'test.csv', index=False)
    return folder


def text_run(seed, **clips):
    "A run with the defaults, with the text encoder that a package holds"
    return Run(Clips(**{k: str(v) if isinstance(v, Path) else v for k, v in clips.items()}), Network(encoder='minilm'),
               Training(seed=seed, simple_models=('full',)))


def experiments(data, out, only):
    "name -> run, of all that was asked for; writes the tables"
    dev, found = data/'meld'/'dev.csv', {}
    for s in SEEDS:
        def wanted(name): return not only or name in only or f'{name}.{s}' in only
        if wanted('meld'): found[f'meld.{s}'] = text_run(s, data=data/'meld'/'train.csv', test=dev, context=2, **MELD)
        for n in (100, 250, 700):
            if wanted(f'meld_{n}'):
                found[f'meld_{n}.{s}'] = text_run(s, data=meld_subset(data, out, n, s), test=dev, context=2, **MELD)
        for n in (None, 200):
            if wanted(name := f'comic_{n}' if n else 'comic'): found[f'{name}.{s}'] = comic_run(data, out, s, n)
        for kind, subsets in SHOWN.items():
            if not wanted(kind): continue
            folder = modal_clips(out, kind, s)
            for shown in subsets:
                clips = Clips(str(folder/'train.csv'), test=str(folder/'test.csv'), labels=('label:0,1',),
                              features=tuple(f'{m}={folder/m}' for m in shown), group='video')
                found[f'{kind}_{shown}.{s}'] = Run(clips, Network(), Training(seed=s, simple_models=('full',)))
    return found


def known(into):
    "What is kept in a folder: name -> about a run"
    return json.loads((into/'about.json').read_text()) if into and (into/'about.json').is_file() else {}


def settings(run):
    "What decides the result of a run, but for the folder that its clips are in"
    found = run.to_flat()
    found |= {k: Path(found[k]).name for k in ('data', 'test') if k in found}
    if 'features' in found: found['features'] = [o.partition('=')[0] for o in found['features']]
    return found


def keep_table(table, columns, folder):
    "Write columns of a run's `probabilities.csv`, and its probabilities with four digits each, to a folder"
    numbers = [c for c in table if c[0] == 'p' and c[1:].isdigit()]
    table = table[[*columns, *numbers]].copy()
    for c in numbers: table[c] = [f'{float(v):.4f}' if v else '' for v in table[c]]
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode='wb', mtime=0) as f: f.write(table.to_csv(index=False).encode())
    folder.mkdir(parents=True, exist_ok=True)
    (folder/'probabilities.csv.gz').write_bytes(buffer.getvalue())


def keep(runs, out, into):
    "Keep the probabilities of all models that the study reads, four digits each, and what the runs took, in a folder"
    about = known(into)
    into.mkdir(parents=True, exist_ok=True)
    for name in runs:
        table = pd.read_csv(out/name/'probabilities.csv', dtype=str, keep_default_na=False)
        if name.split('_')[0] in SHOWN: table = table[table.model.isin(FEW_MODELS)]
        keep_table(table, ['model', *(['fold'] if 'fold' in table else []), 'clip', 'video', 'task', 'truth',
                           'predicted'], into/name)
        metrics, config = (json.loads((out/name/f'{k}.json').read_text()) for k in ('metrics', 'config'))
        about[name] = dict(seconds=metrics['seconds'], time=metrics['time'], clips=metrics['clips'],
                           versions=config['versions'], settings=settings(Run.from_dict(config['run'])))
    (into/'about.json').write_text(json.dumps(dict(sorted(about.items())), indent=1))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, required=True, help='folder of meld/ and comic_mischief_val.json')
    p.add_argument('--out', type=Path, required=True, help='folder for tables and runs')
    p.add_argument('--jobs', type=int, default=1, help='runs at once')
    p.add_argument('--only', nargs='+', help='names, such as meld, meld_100, comic, dominant, or comic.0 for one seed')
    p.add_argument('--keep', type=Path, help='folder that gets the probabilities')
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = known(args.keep)
    def is_kept(name, run): return name in kept and kept[name]['settings'] == json.loads(json.dumps(settings(run)))
    runs = {k: v for k, v in experiments(args.data, args.out, args.only).items() if not is_kept(k, v)}
    status = run_grid(runs, args.out/'runs', args.jobs)
    if args.keep: keep([k for k in runs if not status[k]], args.out/'runs', args.keep)
    if failed := [k for k, v in status.items() if v]: raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == '__main__': main()
