"""Does it help to learn several real tasks together? The runs of the study "What dynamic pretraining does".

    python benchmarks/mixtures.py --data ../shared/data --out mixtures --keep nbs/results/mixtures

Five draws. Each takes whole dialogues of MELD's training part, about 2,000 utterances, and whole videos of comic
mischief, about 200 clips, trains one mixture of sentiment, emotion and comic mischief, and then each of the three
alone, with the same settings and as many rows of it. MELD's development part and the clips of all other videos are
scored. `--keep` writes what the networks and the linear models of words predict for every scored clip. A finished run
is not run again, and an interrupted one is resumed.
"""
import argparse
import json
from pathlib import Path

import pandas as pd
from what_works import LABELS, TYPES, comic_table, keep_table, meld_subset, some_groups

from hiccap.pretraining_runs import PretrainRun, StreamSpec, pretrain_run
from hiccap.runs import Clips, Network, Training

DRAWS, UTTERANCES, CLIPS, EPOCHS, BS = range(5), 2000, 200, 5, 32
TRAINING = dict(epochs=EPOCHS, bs=BS, recipe='medium', simple_models=('words',), threads=1)
STREAMS = 'sentiment', 'emotion', 'comic'


def streams_of(data, out, draw):
    "The three streams of a draw; writes their tables"
    meld = dict(data=str(meld_subset(data, out, UTTERANCES, draw)), test=str(data/'meld'/'dev.csv'), text='Utterance',
                id=('Dialogue_ID', 'Utterance_ID'), group='Dialogue_ID', own_numbering=True, split_seed=draw)
    table, paths = comic_table(data), [out/f'comic_{draw}_{k}.csv' for k in ('train', 'test')]
    train = some_groups(table, 'video', CLIPS, draw)
    for part, path in zip((train, table[~table.video.isin(train.video)]), paths): part.to_csv(path, index=False)
    comic = dict(data=str(paths[0]), test=str(paths[1]), labels=TYPES, text='text', group='video', split_seed=draw)
    clips = [Clips(**meld, labels=(LABELS[0],)), Clips(**meld, labels=(LABELS[1],)), Clips(**comic)]
    return [StreamSpec(n, c) for n, c in zip(STREAMS, clips)]


def run_of(streams, draw, steps=None):
    "A run on streams; of one alone, with so many steps in an epoch"
    policy = dict(name='temperature', tau=2.) if len(streams) > 1 else 'uniform'
    return PretrainRun(streams=streams, policy=policy, steps=steps, network=Network(encoder='minilm'),
                       training=Training(seed=draw, **TRAINING))


def contributions(folder):
    "stream name -> what it contributed to a finished run"
    return {o['stream']: o for o in json.loads((folder/'metrics.json').read_text())['contributions']}


def draw_of(data, out, draw):
    "Train the mixture of a draw and each of its streams alone: name -> folder of the run"
    streams, found = streams_of(data, out, draw), {}
    def trained(name, run):
        found[f'{name}.{draw}'] = folder = out/'runs'/f'{name}.{draw}'
        if not (folder/'metrics.json').is_file(): pretrain_run(run, folder, resume=folder.is_dir())
        return folder
    given = contributions(trained('mixture', run_of(streams, draw)))
    for s in streams:
        trained(s.name, run_of([s], draw, steps=round(given[s.name]['drawn']/EPOCHS/BS)))
    return found


def keep(found, into):
    "Keep what the models of runs predict, and what the streams contributed"
    path = into/'about.json'
    about = json.loads(path.read_text()) if path.is_file() else {}
    for name, folder in found.items():
        table = pd.read_csv(folder/'probabilities.csv', dtype=str, keep_default_na=False)
        keep_table(table, ['model', 'stream', 'clip', 'video', 'task', 'truth', 'predicted'], into/name)
        config = json.loads((folder/'config.json').read_text())
        about[name] = dict(contributions=contributions(folder), versions=config['versions'], training=TRAINING,
                           seconds=json.loads((folder/'metrics.json').read_text())['seconds'])
    path.write_text(json.dumps(dict(sorted(about.items())), indent=1))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, required=True, help='folder of meld/ and comic_mischief_val.json')
    p.add_argument('--out', type=Path, required=True, help='folder for tables and runs')
    p.add_argument('--draws', type=int, nargs='+', default=list(DRAWS))
    p.add_argument('--keep', type=Path, help='folder that gets the predictions')
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for draw in args.draws:
        found = draw_of(args.data, args.out, draw)
        if args.keep: keep(found, args.keep)


if __name__ == '__main__': main()
