"""Searches: what cannot be searched is said first, test clips are not touched, and an interruption changes nothing."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings, strategies as st

from conftest import TINY_NETWORK
import hiccap.cli as cli
import hiccap.search as module
from hiccap.comparison import expand
from hiccap.run_data import read_splits, tokenizer_for
from hiccap.runs import EARLIER
from hiccap.search import Outcome, Search, best_trial, distributions, plot_trials, run_search
from hiccap.synthetic import synthetic_clips, write_synthetic

optuna = pytest.importorskip('optuna')

BASE = dict(data='synthetic', synthetic=dict(n=60, scale=.1), config=TINY_NETWORK, epochs=2, threads=1)
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
        ({**BASE, 'wd': .5}, SPACE, 'its wd is 0.01, here it is 0.5'),
        (BASE, {**SPACE, 'bs': [8]}, r'its bs is \[8, 16\]'),
    ):
        with pytest.raises(FileExistsError, match=said): run_search(Search(base, space), tmp_path/'s', 1)
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'thesis.txt').write_text('x')
    with pytest.raises(FileExistsError, match='no search'): run_search(Search(BASE, SPACE), tmp_path/'mine', 1)
    asked = tmp_path/'s'/'search.json'; asked.write_text(asked.read_text().replace('"clips": "', '"clips": "x'))
    with pytest.raises(ValueError, match='not those that the search'): run_search(Search(BASE, SPACE), tmp_path/'s', 2)


@pytest.mark.parametrize('seed, message', [
    (0, "its operating_point is 'f1', here it is 'macro_f1'.*resume it with 'operating_point: f1'"),
    (3, 'its split_seed is 3, here it is 0.*any other seed splits in another way now'),
])
def test_a_search_of_the_earlier_version_is_resumed_or_refused_with_a_reason(quick, tmp_path, seed, message):
    base = {**EARLIER, **BASE, 'config': BASE['config'] | dict(head_dropout=.3), 'threshold_score': 'f1',
            'linear_part': 0, **(dict(seed=seed) if seed else {})}
    whole = run_search(Search(base, SPACE), tmp_path/'whole', 3, write=lambda s: None)
    run_search(Search(base, SPACE), tmp_path/'s', 2, write=lambda s: None)
    now = json.loads((tmp_path/'s'/'search.json').read_text())
    new = 'threshold_score', 'standardise', 'linear_part'
    then = {k: v for k, v in base.items() if k not in new} | dict(config=BASE['config'])
    old = dict(run=then, search=now['search'], clips=now['clips'])
    (tmp_path/'s'/'search.json').write_text(json.dumps(old))
    with pytest.raises(FileExistsError, match=message):
        run_search(Search({k: v for k, v in base.items() if k != 'threshold_score'}, SPACE), tmp_path/'s', 3)
    if seed:  # another split than that of the earlier version
        old['clips'] = 'those of version 0.1.0'
        (tmp_path/'s'/'search.json').write_text(json.dumps(old))
        with pytest.raises(ValueError, match='the validation clips are not those .* Version 0.1.0 began it'):
            run_search(Search({**base, 'split_seed': seed}, SPACE), tmp_path/'s', 3)
    else: pd.testing.assert_frame_equal(run_search(Search(base, SPACE), tmp_path/'s', 3, write=lambda s: None), whole)


def write_clips(folder, sizes, seed, tokenizer):
    "A table of clips with videos of these sizes, and the settings of a run on it"
    rng = np.random.default_rng(seed)
    rows = [dict(id=f'v{v}_{i}', text='w1 w2', other=f'w{v % 9}', funny=rng.choice(['yes', 'no']))
            for v, n in enumerate(sizes) for i in range(n)]
    rows[0]['funny'], rows[-1]['funny'] = 'yes', 'no'
    pd.DataFrame(rows).to_csv(folder/'clips.csv', index=False)
    return dict(data=str(folder/'clips.csv'), labels=['funny'], tokenizer=str(tokenizer), config=TINY_NETWORK, epochs=1,
                threads=1)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp('words')
    write_synthetic(synthetic_clips(n=10), folder)
    return folder/'tokenizer'


@settings(max_examples=15)
@given(st.lists(st.integers(1, 4), min_size=12, max_size=25), st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_no_run_of_the_best_settings_tests_what_the_search_has_seen(tokenizer, sizes, seed, split_seed, given_test):
    "For any videos and seeds: the test clips of the best settings are neither training nor validation clips of a trial"
    seen = []
    def run_trial(run, train, valid, trial, write=None):
        seen.extend([set(train.ids) | set(valid.ids), set(train.groups) | set(valid.groups)])
        return Outcome(run.training.lr, 1, 1, False)
    with TemporaryDirectory() as tmp, pytest.MonkeyPatch.context() as m:
        m.setattr(module, 'run_trial', run_trial)
        m.setattr(module, '_write_report', lambda *a: None)
        base = write_clips(Path(tmp), sizes, seed, tokenizer) | dict(seed=seed, split_seed=split_seed)
        if given_test:
            table = pd.read_csv(base['data'])
            table.assign(id='t' + table.id).to_csv(f'{tmp}/test.csv', index=False)
            base['test'] = f'{tmp}/test.csv'
        run_search(Search(base, {'lr': [.1, .2], 'max_length': [8, 9]}), Path(tmp)/'s', 2, write=lambda s: None)
        best = yaml.safe_load((Path(tmp)/'s'/'best.yaml').read_text())
        assert best['clips']['split_seed'] == split_seed
        runs = expand(best, 'best.yaml').values()
        assert [r.training.seed for r in runs] == [seed + i for i in range(5)]
        for r in runs:
            _, _, test = read_splits(r.clips, tokenizer_for(r.network, r.clips.data), r.network)[0]
            assert not set(test.ids) & set().union(*seen) and not set(test.groups) & set().union(*seen)
            assert len(test) and len(seen) == 4


@pytest.mark.parametrize('key', ['split_seed', 'clips.split_seed', 'seed', 'test_share', 'valid_share'])
def test_what_decides_the_split_is_not_searched(key):
    with pytest.raises(ValueError, match='decides what is judged'): Search(BASE, {key: [1, 2]})


def test_several_splits_are_refused():
    with pytest.raises(ValueError, match="'split_seeds', which a search does not take: another split would"):
        Search({**BASE, 'split_seeds': [0, 1]}, SPACE)


@pytest.mark.parametrize('damage, part', [
    (lambda t, parts: t.loc[t.id.isin(parts[1]), 'funny'].replace(dict(yes='no', no='yes')), 'validation'),
    (lambda t, parts: t.loc[t.id.isin(parts[0]), 'funny'].replace(dict(yes='no', no='yes')), 'training'),
    (lambda t, parts: t.loc[t.id.isin(parts[0]), 'text'] + ' w3', 'training'),
    (lambda t, parts: t.loc[t.id.isin(parts[1]), 'text'] + ' w3', 'validation'),
])
def test_a_search_is_not_resumed_on_other_clips(quick, tmp_path, tokenizer, damage, part):
    "The same ids in the same parts, but other labels or another text"
    base = write_clips(tmp_path, [2]*20, 0, tokenizer)
    table = pd.read_csv(base['data'])
    given = [table[table.index.isin(range(a, b))] for a, b in ((0, 20), (20, 30), (30, 40))]
    names = dict(data='clips', valid='valid', test='test')
    for name, t in zip(names.values(), given): t.to_csv(tmp_path/f'{name}.csv', index=False)
    base |= {k: str(tmp_path/f'{name}.csv') for k, name in names.items()}
    run_search(Search(base, {'lr': [.01, .02]}), tmp_path/'s', 1, write=lambda s: None)
    parts = [set(t.id) for t in given]
    changed = damage(table, parts)
    table.loc[changed.index, changed.name] = changed
    for name, t in zip(names.values(), parts): table[table.id.isin(t)].to_csv(tmp_path/f'{name}.csv', index=False)
    with pytest.raises(ValueError, match=f'the {part} clips are not those that the search in .* began with'):
        run_search(Search(base, {'lr': [.01, .02]}), tmp_path/'s', 2)
    assert len(quick) == 1


def test_test_clips_may_change_while_a_search_is_interrupted(quick, tmp_path, tokenizer):
    "No trial has seen them"
    base = write_clips(tmp_path, [2]*20, 0, tokenizer)
    table = pd.read_csv(base['data'])
    for n in (10, 6):
        table.assign(id='t' + table.id)[:n].to_csv(tmp_path/'test.csv', index=False)
        run_search(Search(base | dict(test=str(tmp_path/'test.csv')), {'lr': [.01, .02]}), tmp_path/'s', 2,
                   write=lambda s: None)


@pytest.mark.parametrize('part', ['training', 'validation'])
def test_a_trial_on_other_clips_fails(quick, tmp_path, monkeypatch, part):
    "A setting that may be searched, such as the weights to start from, can change the split"
    real = module.read_splits
    def changed(clips, tokenizer, network, **kwargs):
        (train, valid, test), = real(clips, tokenizer, network, **kwargs)
        if clips.max_length == 8: (train, valid) = ((train.subset(range(5)), valid) if part == 'training'
                                                    else (train, valid.subset(range(5))))
        return [(train, valid, test)]
    monkeypatch.setattr(module, 'read_splits', changed)
    table = run_search(Search(BASE, {'max_length': [8, 9], 'lr': [.01]}), tmp_path/'s', 6, write=lambda s: None)
    failed = table[table.max_length == 8]
    assert set(table.state[table.max_length == 9]) == {'complete'} and set(failed.state) == {'failed'}
    assert all(f'the {part} clips are not those of the other trials' in e for e in failed.error)


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


def test_a_table_that_a_kill_prevented_is_written_by_the_next_call(tmp_path):
    whole = run_search(Search(BASE, SPACE), tmp_path/'s', 1, write=lambda s: None)
    # as a kill after the trial was stored leaves it
    for name in ('trials.csv', 'best.yaml'): (tmp_path/'s'/name).unlink()
    run_search(Search(BASE, SPACE), tmp_path/'s', 1, write=lambda s: None)
    assert len(pd.read_csv(tmp_path/'s'/'trials.csv')) == len(whole) == 1 and (tmp_path/'s'/'best.yaml').is_file()


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
