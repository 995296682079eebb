"""A run as sections: flat and sectioned settings are one run, and folders of the version before sections still work."""
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, strategies as st

from conftest import TINY_NETWORK
import hiccap.cli
from hiccap.comparison import expand, read_finished
from hiccap.inference import load_run
from hiccap.pretraining_runs import PretrainRun
from hiccap.resuming import load_state, save_state
from hiccap.run_folders import is_same_data, is_same_run, partial_folder
from hiccap.runs import EARLIER, Clips, Network, Run, Training, flatten, read_yaml, set_field
from hiccap.search import Search
from hiccap.training import train_run

# a run as the previous version wrote it to YAML and to config.json
FLAT = dict(
    data='synthetic',
    config=TINY_NETWORK,
    synthetic=dict(n=100, scale=.1),
    epochs=2,
    bs=8,
    modalities=dict(name='dropout', p=.2),
    checkpoint_every=0,
    threads=1,
)
# the same run today, with the defaults of then
THEN = {**EARLIER, **FLAT, 'config': TINY_NETWORK | dict(head_dropout=.3), 'linear_part': 0}
MIXTURE = """
streams:
- {name: labels, data: few.csv, labels: [said], own_numbering: true}
- {name: matching, data: clips.csv, features: features, pretext: matching, share: 0.25}
policy: {name: dynamic_difficulty, k: 20}
steps: 5
encoder: minilm
epochs: 3
seed: 2
"""
SECTIONED = """
streams:
- name: labels
  clips: {data: few.csv, labels: [said], own_numbering: true}
- name: matching
  clips: {data: clips.csv, features: features}
  pretext: matching
  share: 0.25
policy: {name: dynamic_difficulty, k: 20}
steps: 5
network: {encoder: minilm}
training: {epochs: 3, seed: 2}
"""


@pytest.mark.parametrize('text, key, lines', [
    ('data: a.csv\nepochs: 3\ndata: b.csv\n', 'data', (1, 3)),
    ('training:\n  lr: 0.1\n  bs: 8\n  "lr": 0.2\n', 'lr', (2, 4)),
    ('config: {width: 8, heads: 4,\n  width: 16}\n', 'width', (1, 2)),
    ('streams:\n- {name: a, data: b}\n- name: c\n  name: d\n', 'name', (3, 4)),
    ('runs:\n  1: {lr: 0.1}\n  01: {lr: 0.2}\n', '1', (2, 3)),
])
def test_a_key_that_yaml_has_twice_is_an_error_with_both_lines(tmp_path, text, key, lines):
    path = tmp_path/'run.yaml'
    path.write_text(text)
    assert yaml.safe_load(text)  # in silence
    with pytest.raises(ValueError) as e: read_yaml(path)
    assert str(e.value) == f'{path}: {key} is there twice, in line {lines[0]} and in line {lines[1]}: write it once'


def test_merged_yaml_and_equal_keys_of_two_mappings_are_read(tmp_path):
    path = tmp_path/'run.yaml'
    path.write_text('a: &a {lr: 1, bs: 2}\nb:\n  <<: *a\n  lr: 3\nc:\n  <<: [*a]\n  bs: 4\n')
    assert read_yaml(path) == dict(a=dict(lr=1, bs=2), b=dict(lr=3, bs=2), c=dict(lr=1, bs=4))


def test_flat_yaml_is_sectioned_yaml(tmp_path):
    run = Run.flat(**FLAT)
    (tmp_path/'flat.yaml').write_text(yaml.safe_dump(FLAT, sort_keys=False))
    (tmp_path/'sections.yaml').write_text(run.to_yaml())
    assert list(yaml.safe_load(run.to_yaml())) == ['clips', 'network', 'training']
    assert Run.from_yaml(tmp_path/'flat.yaml') == Run.from_yaml(tmp_path/'sections.yaml') == run
    mixed = dict(data='synthetic', network=dict(config=FLAT['config']))
    assert Run.from_dict(mixed) == Run(Clips('synthetic'), Network(config=FLAT['config']))
    assert PretrainRun.from_dict(yaml.safe_load(MIXTURE)) == PretrainRun.from_dict(yaml.safe_load(SECTIONED))


VALUES = dict(
    data=st.text(min_size=1, max_size=4), labels=st.lists(st.text(max_size=3), max_size=2), context=st.integers(0, 5),
    max_length=st.none() | st.integers(3, 9), valid_share=st.floats(.1, .9), own_numbering=st.booleans(),
    encoder=st.none() | st.text(min_size=1, max_size=4), config=st.dictionaries(st.sampled_from('ab'), st.integers()),
    epochs=st.integers(1, 9), lr=st.floats(0, 1), regularizer=st.sampled_from(['none', 'norm']),
    weighting=st.sampled_from(['sum', 'dwa']), track=st.lists(st.sampled_from(['tensorboard', 'wandb']), max_size=2))

@given(st.fixed_dictionaries({}, optional=VALUES))
def test_any_run_comes_back_from_each_form(values):
    run = Run.flat(**values)
    for d in (run.to_dict(), run.to_flat(), run.to_flat(defaults=True), yaml.safe_load(run.to_yaml()),
              json.loads(json.dumps(run.to_dict()))):
        assert Run.from_dict(d) == run
    assert flatten(Run, run.to_dict()) == run.to_flat()
    assert Run().but(**values) == run and is_same_run(
        dict(run=json.loads(json.dumps(run.to_flat(defaults=True)))), run, '', False)


@pytest.mark.parametrize('d, message', [
    (dict(training=dict(epoch=3)), "training has no field 'epoch'. Did you mean 'epochs'"),
    (dict(network=dict(lr=.1)), 'lr is not a field of network: write it in training'),
    (dict(trainig=dict(lr=.1)), "did you mean 'training'"),
    (dict(lr=.1, training=dict(lr=.1)), 'gives lr twice'),
    (dict(clips='clips.csv'), 'clips is a section'),
    (dict(training=dict(epochs=0)), 'epochs must be at least 1'),
])
def test_a_wrong_setting_is_named_with_the_nearest_of_all_sections(d, message):
    with pytest.raises(ValueError, match=f'^run.yaml.*{message}'): Run.from_dict(d, 'run.yaml')


def test_grids_and_searches_take_flat_and_dotted_names():
    for keys in (('lr', 'config.width'), ('training.lr', 'network.config.width')):
        runs = expand({**FLAT, 'grid': {keys[0]: [.1, .2], keys[1]: [8]}}, 'file')
        assert list(runs) == ['lr=0.1, width=8', 'lr=0.2, width=8']
        assert [(r.training.lr, r.network.config['width']) for r in runs.values()] == [(.1, 8), (.2, 8)]
        for base in (FLAT, Run.flat(**FLAT).to_dict()):
            search = Search(base, {keys[0]: dict(low=.1, high=.2), keys[1]: [8]})
            assert search.run({keys[0]: .1, keys[1]: 8}) == runs['lr=0.1, width=8']
    sectioned = Run.flat(**FLAT).to_dict()
    assert expand({**sectioned, 'seeds': [3]}, 'file')['seed=3'].training.seed == 3
    refused = [dict(seeds=[1], training=dict(seed=2)), dict(grid={'training.seed': [1]}), dict(grid={'clips.lr': [1]})]
    for wrong in refused:
        with pytest.raises(ValueError): expand({**{k: v for k, v in FLAT.items() if k not in wrong}, **wrong}, 'file')
    assert set_field(dict(policy='uniform'), 'policy.k', 3) == dict(policy=dict(name='uniform', k=3))
    with pytest.raises(ValueError, match='decides what is judged'): Search(FLAT, {'clips.test_share': [.1, .2]})


def make_old(folder, kind='run'):
    """Rewrite what changed in a folder: flat settings, none that version 0.1.0 did not have, no temperatures, and the
    old name of predicted classes in finished folds"""
    path = Path(folder)/'config.json'
    config = json.loads(path.read_text())
    assert 'training' in config[kind]
    flat = {**Run.flat().to_flat(defaults=True), **EARLIER}  # defaults were left out
    flat = {k: v for k, v in flatten(Run, config[kind]).items()
            if v != flat.get(k) and k not in ('operating_point', 'split_seed', 'standardise', 'linear_part')}
    flat['config'].pop('head_dropout')
    path.write_text(json.dumps({**config, kind: flat, 'versions': config['versions'] | dict(hiccap='0.1.0')}))
    if (metrics := Path(folder)/'metrics.json').is_file():
        kept = {k: v for k, v in json.loads(metrics.read_text()).items() if k not in ('temperatures', 'calibration')}
        metrics.write_text(json.dumps(kept))
    for finished in Path(folder).glob('checkpoints/*/finished'):
        state = load_state(finished)
        state['verdicts'] = state.pop('predicted')  # the key of earlier versions
        for o in (state, *state['simple'].values()): del o['temperatures'], o['raw']
        save_state(finished, state)


def stop_at(text):
    def write(line):
        if text in line: raise KeyboardInterrupt()
    return write


@pytest.fixture(scope='module')
def old(tmp_path_factory):
    "A finished run of the previous version"
    out = tmp_path_factory.mktemp('old')/'run'
    train_run(Run.flat(**THEN, threshold_score='f1'), out, write=lambda line: None)
    make_old(out)
    return out


def test_a_finished_run_of_the_previous_version_is_read(old, tmp_path, capsys):
    run = Run.flat(**THEN, threshold_score='f1')
    assert 'epochs' in json.loads((old/'config.json').read_text())['run']
    assert load_run(old).run == run
    assert read_finished(old).config == {
        k: v for k, v in run.to_flat(defaults=True).items() if k not in ('seed', 'split_seed', *Run.settings('free'))}
    lines = []
    assert train_run(run, old, write=lines.append, resume=True) is None and 'nothing left to do' in lines[0]
    assert hiccap.cli.predict([str(old), 'synthetic']) == 0
    assert capsys.readouterr().out.startswith('clip,task,probability,predicted')
    with pytest.raises(ValueError, match='has lr 0.001, this one 0.1'): train_run(run.but(lr=.1), old, resume=True)


@pytest.mark.parametrize('folds, at', [(0, 'epoch 2/2'), (2, 'Fold 2')])
def test_an_interrupted_run_of_the_previous_version_is_resumed(old, tmp_path, folds, at):
    run = Run.flat(**THEN, folds=folds, threshold_score='f1')
    whole = old
    if folds: train_run(run, whole := tmp_path/'whole', write=lambda line: None)
    with pytest.raises(KeyboardInterrupt): train_run(run, tmp_path/'cut', write=stop_at(at))
    make_old(partial_folder(tmp_path/'cut'))
    with pytest.raises(ValueError, match='has epochs 2, this one 3'):
        train_run(run.but(epochs=3), tmp_path/'cut', resume=True)
    assert hiccap.cli.train(['--resume', '--out', str(tmp_path/'cut')]) == 0  # the settings are those in its folder
    assert load_run(tmp_path/'cut').run == run
    for name in ('history.csv', 'predictions.csv'):
        assert (tmp_path/'cut'/name).read_bytes() == (whole/name).read_bytes()


def test_settings_that_version_0_1_0_did_not_have_are_what_it_did():
    "It split with the seed of the training, and chose thresholds by the F1 of the second class"
    def read(cls, d, version):
        return cls.from_config({cls.kind: d, 'versions': dict(hiccap=version)}, 'config.json')
    run = read(Run, {**FLAT, 'seed': 3}, '0.1.0')
    assert (run.clips.split_seed, run.training.seed, run.training.operating_point) == (3, 3, 'f1')
    for text in (MIXTURE, SECTIONED):
        run = read(PretrainRun, yaml.safe_load(text), '0.1.0')
        assert [s.clips.split_seed for s in run.streams] == [2, 2] and run.training.operating_point == 'f1'
    run = read(Run, {**FLAT, 'seed': 3}, '0.2.0')
    assert (run.clips.split_seed, run.training.operating_point) == (0, 'macro_f1')
    odd = dict(versions=dict(hiccap='0.1.0'), data=dict(test=dict(clips='a')))
    with pytest.raises(ValueError, match='version 0.1.0, which splits in another way'):
        is_same_data(odd, dict(test=dict(clips='b')), 'out', False)


def test_the_seed_leaves_the_split_alone(tmp_path):
    "Runs with other seeds score the same clips with other networks; another split seed scores other clips"
    run, found = Run.flat(**FLAT).but(epochs=1, modalities='all'), {}
    for name, new in dict(first={}, seed=dict(seed=1), split=dict(split_seed=1), later=dict(split_seed=2)).items():
        train_run(run.but(**new), tmp_path/name, write=lambda line: None)
        found[name] = [json.loads((tmp_path/name/'config.json').read_text())['data'][k]['clips']
                       for k in ('training', 'validation', 'test')]
    assert found['first'] == found['seed'] and len({str(v) for v in found.values()}) == 3
    histories = [(tmp_path/name/'history.csv').read_text() for name in ('first', 'seed')]
    assert histories[0] != histories[1]


def test_training_settings_that_pretraining_lacks_are_refused():
    d = yaml.safe_load(SECTIONED)
    for section, more in (('training', dict(monitor='auroc')), ('network', dict(freeze_text=True))):
        with pytest.raises(ValueError, match=f"has no field '{next(iter(more))}'"):
            PretrainRun.from_dict({**d, section: {**d[section], **more}})
    with pytest.raises(ValueError, match='monitor is a setting of training runs'):
        PretrainRun(PretrainRun.from_dict(d).streams, training=Training(monitor='auroc'))


@pytest.mark.parametrize('settings, size', [
    (dict(features=['face=face']), 'large'), (dict(features=['face=face'], encoder='minilm'), 'auto'),
    (dict(features=['f'], config=dict(text=dict(kind='tokens', config={}))), 'auto'), (dict(), 'auto'),
    (dict(features=['f'], config=dict(modalities=dict(said=dict(kind='tokens', config={})))), 'auto')])
def test_a_run_that_does_not_say_its_size_had_the_large_one(settings, size):
    config = dict(run=dict(data='clips.csv', labels=['funny'], recipe='auto', **settings))
    assert Run.from_config(config, 'config.json').network.size == size
    config['run']['size'] = 'small'
    assert Run.from_config(config, 'config.json').network.size == 'small'
