"""Searches: what cannot be searched is said first, test clips are not touched, and an interruption changes nothing."""
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, strategies as st

import hiccap.cli as cli
import hiccap.search as module
from hiccap.comparison import expand
from hiccap.search import Outcome, Search, best_trial, distributions, plot_trials, run_search

optuna = pytest.importorskip('optuna')

NET = dict(
    width=16,
    heads=2,
    head_widths=[16],
    text=dict(
        kind='tokens',
        config=dict(vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)),
    video=dict(kind='features', width=32, hidden=8, layers=1),
    audio=dict(kind='features', width=16, hidden=8, layers=1),
)
BASE = dict(data='synthetic', synthetic=dict(n=60, scale=.1), config=NET, epochs=2, threads=1)
SPACE = {'lr': dict(low=1e-5, high=1e-1, log=True), 'bs': [8, 16], 'config.width': dict(low=8, high=16, step=8)}


@pytest.fixture
def quick(monkeypatch):
    "Trials whose score is known, and no training: the best rate is 0.01"
    ran = []
    def run_trial(run, train, valid, trial, write=None):
        ran.append(run)
        score = -abs(np.log10(run.training.lr) + 2) + .01*run.network.config['width']
        if run.training.lr < 3e-5: raise RuntimeError('too slow')
        for i in range(run.training.epochs):
            trial.report(score + i, i)
            if i + 1 < run.training.epochs and trial.should_prune(): return Outcome(score + i, i + 1, i + 1, True)
        return Outcome(score + run.training.epochs - 1, run.training.epochs, run.training.epochs, False)
    monkeypatch.setattr(module, 'run_trial', run_trial)
    return ran


def test_same_seed_same_trials_and_another_seed_others(quick, tmp_path):
    a, b = (run_search(Search(BASE, SPACE), tmp_path/n, 12, write=lambda s: None) for n in 'ab')
    pd.testing.assert_frame_equal(a, b)
    c = run_search(Search({**BASE, 'seed': 1}, SPACE), tmp_path/'c', 2, write=lambda s: None)
    assert not np.allclose(a.lr[:2], c.lr[:2]) and a.lr.nunique() == 12
    best = best_trial(a)
    assert best.score == a.score[a.state == 'complete'].max() and a.best_so_far.iloc[-1] == best.score


class Killed(BaseException): pass


def test_an_interrupted_search_is_the_one_that_was_not(quick, tmp_path, monkeypatch):
    "Killed in its second trial, and again in its twelfth, where the sampler draws by what was found"
    whole = run_search(Search(BASE, SPACE), tmp_path/'whole', 13, write=lambda s: None)
    plain, n, said = module.run_trial, [], []
    def dies(*args, **kw):
        n.append(0)
        if len(n) in (2, 13): raise Killed
        return plain(*args, **kw)
    monkeypatch.setattr(module, 'run_trial', dies)
    for _ in range(2):
        with pytest.raises(Killed): run_search(Search(BASE, SPACE), tmp_path/'cut', 13, write=lambda s: None)
    rest = run_search(Search(BASE, SPACE), tmp_path/'cut', 13, write=said.append)
    pd.testing.assert_frame_equal(rest, whole)
    assert (said[0] == '11 trials were done before'
            and (tmp_path / 'cut' / 'trials.csv').read_text() == (tmp_path / 'whole' / 'trials.csv').read_text())
    assert (tmp_path/'cut'/'best.yaml').read_text() == (tmp_path/'whole'/'best.yaml').read_text()


def test_failures_are_recorded_and_end_nothing(quick, tmp_path):
    table = run_search(Search(BASE, {'lr': [1e-5, 1e-2]}), tmp_path/'s', 4, write=lambda s: None)
    assert set(table.state) == {'failed', 'complete'} and set(table.error[table.state == 'failed']) == {
        'RuntimeError: too slow'}
    assert 'too slow' in (tmp_path/'s'/'report.md').read_text() and pd.isna(table.score[table.state == 'failed']).all()
    alone = run_search(Search(BASE, {'lr': [1e-5]}), tmp_path/'none', 2, write=lambda s: None)
    assert (best_trial(alone) is None and not (tmp_path / 'none' / 'best.yaml').exists()
            and 'No trial was completed' in (tmp_path / 'none' / 'report.md').read_text())


def test_lower_is_better_for_a_loss(monkeypatch, tmp_path):
    monkeypatch.setattr(module, 'run_trial', lambda run, *a, **k: Outcome(run.training.lr, 1, 1, False))
    table = run_search(Search({**BASE, 'monitor': 'valid_loss'}, {'lr': dict(low=0.001, high=1.0)}), tmp_path / 's', 3,
                       write=lambda s: None)
    assert best_trial(table, lower=True).lr == table.lr.min() == table.best_so_far.iloc[-1]
    assert yaml.safe_load((tmp_path/'s'/'best.yaml').read_text())['training']['lr'] == table.lr.min()


def test_trials_never_see_the_test_clips(tmp_path, monkeypatch):
    real = module.read_splits
    class Untouchable:
        def __getattr__(self, name): raise AssertionError(f'the test clips were asked for {name}')
        def __len__(self): raise AssertionError('the test clips were counted')
        def __getitem__(self, i): raise AssertionError('a test clip was read')
    monkeypatch.setattr(module, 'read_splits', lambda *a, **k: [(t, v, Untouchable()) for t, v, _ in real(*a, **k)])
    table = run_search(Search({**BASE, 'epochs': 1}, {'lr': [.001]}), tmp_path/'s', 1, write=lambda s: None)
    assert table.state.tolist() == ['complete'], table.error.tolist()


def test_a_pruned_trial_ends_early(tmp_path):
    "After three trials at a good rate, one at a hopeless rate is stopped"
    class Given:
        def __init__(self): self.told = []
        def report(self, s, i): self.told.append((i, s))
        def should_prune(self): return self.told[-1][0] == 1
    from hiccap.runs import Run
    from hiccap.run_data import read_splits
    run = Run.from_dict({**BASE, 'epochs': 4}); train, valid, _ = read_splits(run.clips, None)[0]
    given = Given(); out = module.run_trial(run, train, valid, given)
    assert (out.pruned, out.passes, [i for i, _ in given.told]) == (True, 2, [0, 1]) and out.score == max(
        s for _, s in given.told)


def test_another_search_and_other_clips_are_refused(quick, tmp_path):
    run_search(Search(BASE, SPACE), tmp_path/'s', 1, write=lambda s: None)
    for base, space, said in (
        ({**BASE, 'wd': .5}, SPACE, 'its wd is None, here it is 0.5'),
        (BASE, {**SPACE, 'bs': [8]}, r'its bs is \[8, 16\]'),
    ):
        with pytest.raises(FileExistsError, match=said): run_search(Search(base, space), tmp_path/'s', 1)
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'thesis.txt').write_text('x')
    with pytest.raises(FileExistsError, match='no search'): run_search(Search(BASE, SPACE), tmp_path/'mine', 1)
    asked = tmp_path/'s'/'search.json'; asked.write_text(asked.read_text().replace('"clips": "', '"clips": "x'))
    with pytest.raises(ValueError, match='not those that the search'): run_search(Search(BASE, SPACE), tmp_path/'s', 2)


def test_optuna_missing_is_said_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match='pip install optuna'): run_search(Search(BASE, SPACE), tmp_path/'s', 1)
    assert not (tmp_path/'s').exists()


@given(st.floats(1e-6, 1), st.floats(1e-6, 1), st.booleans())
def test_a_range_is_taken_or_refused_by_its_bounds(low, high, log):
    spec = dict(low=low, high=high, log=log)
    if low < high:
        assert (d := distributions(Search(BASE, {'lr': spec}))['lr']).low == low and d.high == high and d.log == log
    else:
        with pytest.raises(ValueError, match='low must be below high'): Search(BASE, {'lr': spec})


def test_one_process_at_a_time(quick, tmp_path):
    pytest.importorskip('fcntl')
    (tmp_path/'s').mkdir()
    holder = subprocess.Popen(
        [
            sys.executable,
            '-c',
            (f"import fcntl, time; f = open({str(tmp_path/'s'/'.lock')!r}, 'w'); fcntl.lockf(f, fcntl.LOCK_EX);"
             " print(1, flush=True); time.sleep(60)"),
        ],
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    try:
        with pytest.raises(FileExistsError, match='another process'): run_search(Search(BASE, SPACE), tmp_path/'s', 1)
    finally: holder.kill(); holder.wait()
    assert len(run_search(Search(BASE, SPACE), tmp_path/'s', 1, write=lambda s: None)) == 1


def test_choices_keep_their_types(quick, tmp_path):
    choices = {'config.text': [dict(kind='tokens', config=dict(vocab_size=200)), dict(kind='features')],
               'max_length': [None, 8], 'lr': [0.01, 0.02]}
    search = Search(BASE, choices); words = distributions(search)
    for k, spec in choices.items():
        for v, w in zip(spec, words[k].choices): assert module._values(search, {k: w}) == {k: v}


def test_the_picture_is_the_table():
    from matplotlib.figure import Figure
    t = pd.DataFrame(
        dict(trial=range(4), state=['complete', 'pruned', 'failed', 'complete'], score=[0.5, 0.1, np.nan, 0.6],
             best_so_far=[0.5, 0.5, 0.5, 0.6])
    )
    ax = plot_trials(t, 'macro_f1', Figure().subplots())
    assert [c.get_offsets().tolist() for c in ax.collections] == [[[1, 0.5], [4, 0.6]], [[2, 0.1]]] and ax.lines[
        0].get_ydata().tolist() == [0.5, 0.5, 0.5, 0.6]
    assert ax.lines[1].get_xdata() == [3, 3]


def typed(*args, **kw):
    return [sys.executable, '-W', 'ignore', '-c', 'import sys; from hiccap.cli import search; sys.exit(search())',
            *map(str, args)], dict(text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}, **kw)


def test_the_whole_program(tmp_path, capsys):
    "Typed, killed in its second trial, typed again; the best is a file that hiccap_run takes"
    file = tmp_path/'funny.yaml'; file.write_text(yaml.safe_dump({**BASE, 'search': SPACE}))
    command, kw = typed(file, '--out', tmp_path/'out', '--trials', 2)
    p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=kw['env'])
    while p.poll() is None and not (tmp_path/'out'/'trials.csv').exists(): time.sleep(.1)
    time.sleep(.3); p.send_signal(signal.SIGKILL); p.wait()
    done = subprocess.run(command, capture_output=True, **kw)
    assert done.returncode == 0 and 'were done before' in done.stdout and 'best.yaml' in done.stdout, done.stderr
    table = pd.read_csv(tmp_path/'out'/'trials.csv')
    assert len(table) == 2 and set(table.state) <= {'complete', 'pruned'}
    assert len(expand(yaml.safe_load((tmp_path/'out'/'best.yaml').read_text()), 'best.yaml')) == 5
    file.write_text(yaml.safe_dump({**BASE, 'search': {'lrr': [1]}}))
    assert cli.search([str(file), '--out', str(tmp_path/'other')]) == 2 and not (tmp_path/'other').exists()
    said = capsys.readouterr(); assert said.out == '' and "did you mean 'lr'" in said.err and said.err.count('\n') == 1
