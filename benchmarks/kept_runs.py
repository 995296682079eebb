"""Scores of the predictions that several runs kept, and differences between two models over all of them. The studies
compute their tables from these. A run is model -> task name -> `KeptPredictions`, as `read_probabilities` gives it."""
import json
from pathlib import Path

import numpy as np

from hiccap.metrics import RANKING, compare_scores, evaluate
from hiccap.predictions import read_probabilities
from hiccap.statistics import mean_interval
from hiccap.tasks import Task


def runs_of(folder, name, stream=None):
    "What all models predicted in each run of a kind: those called `name.0`, `name.1`, …; of one stream of a mixture"
    about = json.loads((Path(folder)/'about.json').read_text())
    return [read_probabilities(Path(folder)/o, stream) for o in about if o.rpartition('.')[0] == name]


def tasks_of(run):
    "The tasks of a run"
    return [Task(k, v.probs.shape[1]) for k, v in next(iter(run.values())).items()]


def scores(runs, model, task, score):
    "A number for each run"
    found = []
    for r in runs:
        kept = r[model][task.name]
        probs, truth, predicted = ({task.name: getattr(kept, o)} for o in ('probs', 'truth', 'predicted'))
        t = evaluate(probs, truth, [task], predicted=predicted, n_boot=0).tasks[task.name]
        found.append(t.scores[score])
    return found


def _side(runs, model, score):
    "What a score of a model is computed from: a dict for each run"
    what = 'probs' if score in RANKING else 'predicted'
    return [{k: getattr(v, what) for k, v in r[model].items()} for r in runs]


def difference(runs, a, b, score, tasks=None, overlap=0.):
    """Mean score of model `a` less that of `b` over tasks and runs, with its 95% interval: that over videos (jackknife)
    and that over runs (Student) added in quadrature; where each run scores other videos, that over runs alone. If these
    were all drawn from the same videos, `overlap` is the number of test clips per training clip (Nadeau and Bengio)"""
    tasks, first = tasks or tasks_of(runs[0]), runs[0][a]
    each = np.mean([np.subtract(scores(runs, a, t, score), scores(runs, b, t, score)) for t in tasks], 0)
    others = any(r[a][tasks[0].name].clips != first[tasks[0].name].clips for r in runs)  # runs have videos of their own
    noise = np.nan_to_num(mean_interval(each, overlap*others)[1])  # one run, or equal differences, have no spread
    if others: return dict(difference=each.mean(), low=each.mean() - noise, high=each.mean() + noise)
    truth, videos = {t.name: first[t.name].truth for t in tasks}, first[tasks[0].name].videos
    if any(r[m][t.name].clips != first[t.name].clips for r in runs for m in (a, b) for t in tasks):
        raise ValueError(f"{a} and {b} did not predict the same clips in the same order")
    found = compare_scores(_side(runs, a, score), _side(runs, b, score), truth, tasks, videos, score).values()
    point, low, high = (float(np.mean([o[k] for o in found])) for k in ('difference', 'low', 'high'))
    if abs(each.mean() - point) > 1e-6: raise ValueError(f"two ways give {each.mean()} and {point}")
    return dict(difference=point, low=point - np.hypot(point - low, noise), high=point + np.hypot(high - point, noise))


def with_interval(d):
    "A difference as text; a dash where there are too few clips of a class for an interval"
    return f"{d['difference']:+.3f} " + (f"({d['low']:+.3f} to {d['high']:+.3f})" if d['low'] == d['low'] else '(–)')
