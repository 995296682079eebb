"""On which clips linear models should be tuned: on the validation clips alone, or on held-out training clips too.

    python benchmarks/held_out.py --data ../shared/data --out nbs/results/what_works/held_out.json

No clip that is scored here is scored in a table of the project: synthetic draws from 100 on, and dialogues of MELD's
training split, of which some are trained on and others are scored. Every model is fitted as in a run, on the same clips
in both ways.
"""
import argparse, json, tempfile
from pathlib import Path
import numpy as np
import pandas as pd
from sklearn.metrics import f1_score, log_loss, roc_auc_score
from what_works import MELD, modal_clips, some_groups
from hiccap import baselines
from hiccap.baselines import baseline_predictions
from hiccap.clips import as_numpy
from hiccap.run_data import read_splits, tokenizer_for
from hiccap.runs import Clips, Network, Run, Training
from hiccap.tasks import is_labelled

WAYS = {'validation clips': 0, 'and training clips': baselines.FEW}


def synthetic_run(folder, kind, draw):
    "Three modalities of vectors"
    made = modal_clips(folder, kind, draw)
    clips = Clips(str(made/'train.csv'), test=str(made/'test.csv'), labels=('label:0,1',), group='video',
                  features=tuple(f'{m}={made/m}' for m in 'abc'))
    return Run(clips, Network(), Training(seed=draw))


def meld_run(folder, data, n, draw, n_test=1200):
    "About n utterances to train on, and others to score"
    table = pd.read_csv(data/'meld'/'train.csv', dtype=str, keep_default_na=False)
    test = some_groups(table, 'Dialogue_ID', n_test, 1000 + draw)
    train = some_groups(table[~table.Dialogue_ID.isin(test.Dialogue_ID)], 'Dialogue_ID', n, draw)
    for part, rows in dict(train=train, test=test).items(): rows.to_csv(folder/f'{part}.csv', index=False)
    return Run(Clips(str(folder/'train.csv'), test=str(folder/'test.csv'), context=2, **MELD),
               Network(encoder='minilm'), Training(seed=draw))


def scores(found, test, task):
    "Scores of one task"
    y = as_numpy(test.labels)[task.name]
    k = is_labelled(y)
    p, v, y = found.probs[task.name][k], found.predicted[task.name][k], y[k]
    classes = range(task.n_classes)
    with_two = [c for c in classes if 0 < (y == c).sum() < len(y)]
    return dict(log_loss=log_loss(y, p, labels=classes),
                auroc=np.mean([roc_auc_score(y == c, p[:, c]) for c in with_two]),
                macro_f1=f1_score(y, v, average='macro', labels=[c for c in classes if (y == c).any()]),
                weighted_f1=f1_score(y, v, average='weighted'))


def tried(run, models, about):
    "Scores of the simple models of a run, for both ways"
    tokenizer = tokenizer_for(run.network, run.clips.data, run.clips.features)
    (parts,), rows = read_splits(run.clips, tokenizer, run.network, training=run.training), []
    for way, few in WAYS.items():
        baselines.FEW = few
        for name, found in baseline_predictions(*parts, tokenizer, models=models).items():
            if name == baselines.CONSTANT: continue
            rows += [dict(about, tuned_on=way, model=name, task=t.name, **scores(found, parts[2], t))
                     for t in parts[2].tasks]
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, required=True, help='folder of meld/')
    p.add_argument('--out', type=Path, required=True, help='JSON file to write')
    p.add_argument('--draws', type=int, default=12, help='synthetic draws of each kind; half as many of MELD')
    args = p.parse_args()
    rows = []
    for draw in range(100, 100 + args.draws):
        for kind in ('dominant', 'noise'):
            with tempfile.TemporaryDirectory() as tmp:
                rows += tried(synthetic_run(Path(tmp), kind, draw), ('late_fusion',), dict(clips=kind, draw=draw))
        for n in (100, 250, 700) if draw < 100 + args.draws//2 else ():
            with tempfile.TemporaryDirectory() as tmp:
                about = dict(clips=f'{n} utterances', draw=draw)
                rows += tried(meld_run(Path(tmp), args.data, n, draw), ('words',), about)
        print(f'draw {draw}', flush=True)
    rows = [{k: round(v, 5) if isinstance(v, float) else v for k, v in o.items()} for o in rows]
    args.out.write_text(json.dumps(dict(runs=rows), indent=0))
    table = pd.DataFrame(rows)
    print(table.groupby(['clips', 'task', 'tuned_on'])[['log_loss', 'auroc', 'macro_f1', 'weighted_f1']].mean())


if __name__ == '__main__': main()
