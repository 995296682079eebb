"""The commands as a user types them: real processes, real files, exit statuses, one line for a mistake, nothing
overwritten."""
import csv
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, strategies as st

import hiccap.cli
from hiccap.basics import markdown_table, without_tags
from hiccap.reports import write_sections
from hiccap.synthetic import synthetic_clips, write_synthetic

BERT = dict(
    kind='tokens',
    config=dict(vocab_size=512, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
NET = ['--set', 'width=16', 'heads=2', 'head_widths=[16]', 'text=' + json.dumps(BERT),
       'video={"kind":"features","width":32,"hidden":8,"layers":1}',
       'audio={"kind":"features","width":16,"hidden":8,"layers":1}']


def run(command, *args, cwd=None):
    "The console script of the installed package, or the function it names where the package is on the path only"
    script = Path(sys.executable).with_name(f'hiccap_{command}')
    start = ([str(script)] if script.exists()
             else [sys.executable, '-c', f'import sys; from hiccap.cli import {command}; sys.exit({command}())'])
    done = subprocess.run(
        [*start, *map(str, args)], capture_output=True, text=True, cwd=cwd, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope='module')
def synthetic(tmp_path_factory):
    folder = tmp_path_factory.mktemp('synthetic')/'data'
    write_synthetic(synthetic_clips(n=96, scale=.1), folder)
    return folder


@pytest.fixture(scope='module')
def trained(synthetic, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'run'
    status, text, err = run('train', synthetic / 'clips.csv', '--features', synthetic / 'features', '--tokenizer',
                            synthetic / 'tokenizer', '--labels', 'said', 'together', '--epochs', 1, '--folds', 2,
                            '--out', out, *NET)
    assert status == 0, err
    return out


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}


def test_a_run_leaves_what_the_design_names(trained):
    files = tree(trained)
    assert {'config.json', 'metrics.json', 'history.csv', 'report.md', 'model/fold_1/model.safetensors',
            'model/fold_2/config.json'} <= set(files)
    report = files['report.md'].decode()
    for picture in (n for n in files if n.endswith('.png')):
        assert f']({picture})' in report and files[picture][:4] == b'\x89PNG'
    metrics = json.loads(files['metrics.json'])
    for task in ('said', 'together'):
        t = metrics['scores']['tasks'][task]
        assert {'always no', 'always yes', 'prior'} == set(t['baselines']) and all(
            lo <= hi for lo, hi in t['intervals_95'].values() if lo is not None)
        assert t['rows'] == sum(t['support'].values()) == sum(map(sum, t['confusion']))
    answers = list(csv.DictReader((trained/'predictions.csv').open()))
    assert (sorted(o['clip'] for o in answers if o['task'] == 'said') == sorted({o['clip'] for o in answers})
            and len(answers) == 2 * 96)


def test_predictions_are_a_table_for_every_clip(trained, synthetic):
    status, out, err = run('predict', trained, synthetic/'clips.csv', '--features', synthetic/'features')
    assert status == 0, err
    rows = list(csv.DictReader(out.splitlines()))
    assert (len(rows) == 2 * 96 and {o['predicted'] for o in rows} <= {'no', 'yes'}
            and all(0 <= float(o['probability']) <= 1 for o in rows))


def test_predicting_does_not_need_labels_and_writes_no_file_twice(trained, synthetic, tmp_path):
    bare = tmp_path/'new.csv'
    bare.write_text('id,text\nx_1,you and the kitchen\nx_2,\n')
    out = tmp_path/'answers.csv'
    status, text, err = run('predict', trained, bare, '--without', 'video', 'audio', '--out', out)
    assert status == 0 and 'x_2' in err, err            # the clip without text is listed
    before = out.read_bytes()
    status, text, err = run('predict', trained, bare, '--without', 'video', 'audio', '--out', out)
    assert status == 2 and '--overwrite' in err and out.read_bytes() == before


def test_nothing_is_overwritten_unless_asked(trained, synthetic):
    before = tree(trained)
    status, out, err = run('train', synthetic / 'clips.csv', '--labels', 'said', '--tokenizer', synthetic / 'tokenizer',
                           '--out', trained, *NET)
    assert status == 2 and '--overwrite' in err and err.count('\n') == 1 and tree(trained) == before


def bad(synthetic, tmp_path, what):
    "A copy of the table or features with one defect; the arguments that read it"
    table, features = tmp_path/'clips.csv', tmp_path/'features'
    features.mkdir()
    rows = list(csv.reader((synthetic/'clips.csv').open()))
    have = {p.name: np.load(p) for p in sorted((synthetic/'features').iterdir())}
    first = next(n for n in have if n.endswith('_rgb.npy'))
    clip, x = first.removesuffix('_rgb.npy'), have[first]
    row = next(r for r in rows if r[0] == clip)
    if what == 'no id': row[0] = ''
    if what == 'twice': rows.append(row)
    if what == 'slash': row[0] = '../up'
    if what == 'label': row[2] = 'perhaps'
    if what == 'width': have[first] = x[:, :-1]
    if what == 'rank': have[first] = x[0]
    if what == 'nan': have[first] = np.where(np.arange(x.size).reshape(x.shape) == 3, np.nan, x).astype(np.float32)
    if what == 'length': have[first] = np.concatenate([x, x])
    with table.open('w', newline='') as f: csv.writer(f).writerows(rows)
    for name, value in have.items(): np.save(features/name, value)
    if what == 'objects': np.save(features/first, np.array([{}, 1], dtype=object), allow_pickle=True)
    if what == 'cut': (features/first).write_bytes((synthetic/'features'/first).read_bytes()[:200])
    return clip, first, [table, '--features', features, '--labels', 'said', '--tokenizer', synthetic/'tokenizer', *NET]


DEFECTS = ['no id', 'twice', 'slash', 'label', 'width', 'rank', 'nan', 'length', 'objects', 'cut']

@pytest.mark.parametrize('what', DEFECTS)
def test_bad_input_is_one_line_that_names_the_clip_or_file_before_anything_is_written(
    synthetic, tmp_path, what, capsys):
    from hiccap.cli import train
    clip, name, args = bad(synthetic, tmp_path, what)
    assert train([*map(str, args), '--out', str(tmp_path/'run'), '--epochs', '1']) == 2
    err = capsys.readouterr().err
    assert err.startswith('error: ') and err.count('\n') == 1 and not (tmp_path/'run').exists(), err
    assert ((clip in err or 'clips.csv' in err) if what in ('no id', 'twice', 'slash', 'label')
            else name.split('_rgb')[0] in err), err


def test_a_longest_text_that_the_encoder_cannot_take_is_told_before_training(synthetic, tmp_path, capsys):
    from hiccap.cli import train
    args = [synthetic / 'clips.csv', '--features', synthetic / 'features', '--labels', 'said', '--tokenizer',
            synthetic / 'tokenizer', *NET, '--max-length', 9999, '--out', tmp_path / 'run', '--epochs', 1]
    assert train([*map(str, args)]) == 2
    err = capsys.readouterr().err
    assert ('max_length is 9999, but the text encoder takes 512 tokens' in err and err.count('\n') == 1
            and not (tmp_path / 'run').exists()), err


def test_a_json_cut_in_half_and_a_task_without_labels(tmp_path, synthetic, capsys):
    from hiccap.cli import train
    (tmp_path/'half.json').write_text('{"a.1": {"IMDBid": "a.1", "label": 1')
    assert (
        train(
            [str(tmp_path / 'half.json'), '--tokenizer', str(synthetic / 'tokenizer'), '--out', str(tmp_path / 'run')])
        == 2
    )
    assert 'half.json' in capsys.readouterr().err
    (tmp_path/'bare.csv').write_text('id,text,funny\n' + ''.join(f'v{i}_1,the kitchen,\n' for i in range(9)))
    assert (
        train(
            [str(tmp_path / 'bare.csv'), '--labels', 'funny', '--tokenizer', str(synthetic / 'tokenizer'), '--out',
             str(tmp_path / 'run')]
        )
        == 2
    )
    assert "'funny' holds no label" in capsys.readouterr().err and not (tmp_path/'run').exists()


def test_a_damaged_model_is_named(trained, synthetic, tmp_path):
    import shutil
    copy = tmp_path/'copy'
    shutil.copytree(trained, copy)
    weights = copy/'model'/'fold_2'/'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-100])
    status, out, err = run('predict', copy, synthetic/'clips.csv')
    assert status == 2 and 'fold_2' in err and err.count('\n') == 1


def test_one_label_alone_is_trained_and_answered(synthetic, tmp_path):
    from hiccap.cli import predict, train
    table = [str(synthetic/'clips.csv')]
    assert (
        train(
            [*table, '--labels', 'said', '--tokenizer', str(synthetic / 'tokenizer'), '--epochs', '1', '--out',
             str(tmp_path / 'one'), *NET]
        )
        == 0
    )
    assert predict([str(tmp_path/'one'), *table, '--out', str(tmp_path/'answers.csv')]) == 0
    assert len((tmp_path/'answers.csv').read_text().splitlines()) == 1 + 96


def test_a_run_is_not_replaced_by_what_fails_or_by_an_evaluation(trained, synthetic, capsys):
    from hiccap.cli import evaluate, train
    before, table = tree(trained), str(synthetic/'clips.csv')
    assert (
        train(
            [table, '--labels', 'said', '--tokenizer', str(synthetic / 'tokenizer'), '--init',
             str(synthetic / 'nothing'), '--out', str(trained), '--overwrite', *NET]
        )
        == 2
    )
    assert (
        evaluate([str(trained), table, '--features', str(synthetic / 'features'), '--out', str(trained), '--overwrite'])
        == 2)
    assert ('no evaluation' in capsys.readouterr().err and tree(trained) == before
            and [p.name for p in trained.parent.iterdir()] == [trained.name])


@pytest.fixture(scope='module')
def mixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp('mixture')
    status, text, err = run('pretrain', '--example', 'synthetic', cwd=folder)
    assert status == 0 and 'hiccap_pretrain synthetic/mixture.yaml' in text, err
    return folder


def test_pretraining_reports_what_each_stream_gave_and_training_starts_from_it(mixture):
    status, text, err = run('pretrain', 'synthetic/mixture.yaml', '--epochs', 1, '--out', 'pretrained', cwd=mixture)
    assert status == 0 and all(o in text for o in ('matching', 'contrast', 'together', 'policy DynamicDifficulty')), err
    files, shares = tree(mixture/'pretrained'), list(csv.DictReader((mixture/'pretrained'/'shares.csv').open()))
    report = files['report.md'].decode()
    for picture in (n for n in files if n.endswith('.png')):
        assert f']({picture})' in report and files[picture][:4] == b'\x89PNG'
    drawn = {o['stream']: int(o['seen']) for o in shares}
    assert {o['stream']: o['drawn'] for o in json.loads(files['metrics.json'])['contributions']} == drawn
    for name, n in drawn.items():
        assert sum(int(o['quota']) for o in shares if o['stream'] == name) == n and f'| {n} |' in report
    status, text, err = run('train', 'synthetic/few.csv', '--features', 'synthetic/features', '--labels', 'said',
                            '--init', 'pretrained/model', '--epochs', 1, '--threads', 1, '--out', 'tuned', cwd=mixture)
    assert status == 0 and 'matched' in text, err
    scored = {o['clip'] for o in csv.DictReader((mixture/'tuned'/'predictions.csv').open())}
    learnt = {g for s in json.loads(files['videos.json'])['streams'] for g, part in s['parts'].items() if part == 0}
    assert scored and not {c.split('_')[0] for c in scored} & learnt


@pytest.mark.parametrize('old, new, said', [
    ('pretext: matching', 'pretext: macthing',
     "streams[1] ('matching'): no pretext task 'macthing'. Did you mean 'matching'"),
    ('labels: [said, seen, together]', 'lables: [said]',
     "streams[0] ('labels') has no field 'lables'. Did you mean 'labels'"),
    ('labels: [said, seen, together]', 'labels: [sed]', "stream 'labels'"),
    ('few.csv', 'fewer.csv', "stream 'labels'"),
    ('k: 20', 'k: 0', 'k must be at least 1'),
    ('name: dynamic_difficulty', 'name: dynamic', "no policy 'dynamic'"),
    ('bs: 32', 'bs: 2', 'smaller than the 3 streams'),
    ('epochs: 4', 'epoch: 4', "Did you mean 'epochs'"),
    ('streams:', 'streams: [', 'YAML')])
def test_a_wrong_mixture_is_one_line_before_anything_is_written(mixture, tmp_path, monkeypatch, capsys, old, new, said):
    text = (mixture/'synthetic'/'mixture.yaml').read_text()
    assert old in text
    path = tmp_path/'wrong.yaml'; path.write_text(text.replace(old, new, 1))
    from hiccap.cli import pretrain  # in this process: a new one takes seconds to start
    monkeypatch.chdir(mixture)
    status, err = pretrain([str(path), '--out', str(tmp_path/'out')]), capsys.readouterr().err
    assert (status == 2 and err.startswith('error: ') and said in err and err.count('\n') == 1
            and not (tmp_path / 'out').exists()), err


GRID = """data: {data}
features: {features}
labels: [said, seen]
tokenizer: {tokenizer}
config: {config}
epochs: 1
threads: 1
weighting: sum
modalities: {{name: dropout, p: 0.2}}
seeds: [0, 1]
"""

def test_names_of_other_models_are_printed_whole_above_their_scores_and_intervals(monkeypatch, capsys):
    names = ['words + logistic regression', 'network without its linear part', 'best possible']
    row = dict(task='funny', score='f1', value=.5, low=.4, high=.6, trivial=.3, trivial_interval=(.25, .35))
    row |= dict(zip(names, (.1, .2, .9))) | dict(intervals=dict.fromkeys(names[1:], (.125, .755)))
    monkeypatch.setattr('hiccap.reports.headline', lambda scores, others: [row])
    hiccap.cli._show_scores(SimpleNamespace(all_notes=list), dict.fromkeys(names))
    first, second, values, below, said = capsys.readouterr().out.strip('\n').split('\n')
    for name, (top, bottom) in zip(names, (('words + logistic', 'regression'), ('network without', 'its linear part'),
                                           ('best possible', ''))):
        end = values.index(f'{row[name]:.3f}') + 5
        assert first[:end].endswith(top) and second[:end].strip().endswith(bottom)
        assert below[:end].endswith('0.12–0.76') == (name != names[0])
    for value, interval, head in (('0.500', '0.40–0.60', 'model'), ('0.300', '0.25–0.35', 'trivial')):
        end = values.index(value) + 5
        assert first[:end].endswith(head) and below[:end].endswith(interval)
    assert '95% interval' in said


def test_a_table_without_intervals_has_a_line_for_each_score(monkeypatch, capsys):
    row = dict(task='funny', score='f1', value=.5, low=np.nan, high=np.nan, trivial=.3, trivial_interval=None, words=.1,
               intervals=dict(words=(None, None)))
    monkeypatch.setattr('hiccap.reports.headline', lambda scores, others: [row])
    hiccap.cli._show_scores(SimpleNamespace(all_notes=list), dict(words=None))
    assert len(capsys.readouterr().out.strip('\n').split('\n')) == 2


def test_one_word_changed_is_a_new_column_of_the_table(synthetic, tmp_path):
    "As the README has it: a file is copied, a word is changed, both are run and compared"
    config = json.dumps({k: json.loads(v) for k, _, v in (o.partition('=') for o in NET[1:])})
    text = GRID.format(
        data=synthetic / 'clips.csv', features=synthetic / 'features', tokenizer=synthetic / 'tokenizer', config=config)
    (tmp_path/'plain.yaml').write_text(text)
    (tmp_path/'other.yaml').write_text(text.replace('weighting: sum', 'weighting: gradnorm'))
    for name in ('plain', 'other'):
        status, out, err = run('run', f'{name}.yaml', '--jobs', 2, cwd=tmp_path)
        assert status == 0 and '2 of 2 runs are done' in out, err
    status, out, err = run('compare', 'plain', 'other', '--score', 'auroc', '--out', 'compared', cwd=tmp_path)
    assert status == 0 and all(
        o in out for o in ('weighting=sum', 'weighting=gradnorm', 'words + logistic', 'frozen features', 'said', 'seen',
                           'mean')
    ), err
    assert {p.name for p in (tmp_path/'compared').iterdir()} == {'comparison.md', 'comparison.json', 'comparison.png'}
    assert ('weights.png' in (tmp_path / 'other' / 'seed=0' / 'report.md').read_text()
            and not (tmp_path / 'plain' / 'seed=0' / 'weights.png').exists())
    before = tree(tmp_path/'plain')
    status, out, err = run('run', 'plain.yaml', cwd=tmp_path)
    assert status == 0 and out.count('done before') == 2 and tree(tmp_path/'plain') == before
    (tmp_path/'plain.yaml').write_text(text.replace('epochs: 1', 'epochs: 2'))
    status, out, err = run('run', 'plain.yaml', cwd=tmp_path)
    assert (status == 2 and 'has epochs 1, this one 2' in err and err.count('\n') == 1
            and tree(tmp_path / 'plain') == before)


@pytest.mark.parametrize('old, new, said', [
    ('weighting: sum', 'weighting: gradnrom', "Did you mean 'gradnorm'"),
    ('weighting: sum', 'weighing: sum', "did you mean 'weighting'"),
    ('name: dropout', 'name: dropuot', "Did you mean 'dropout'"),
    ('p: 0.2', 'p: 1.2', 'below 1'),
    ('seeds: [0, 1]', 'seeds: 2', 'list of whole numbers'),
    ('epochs: 1', 'grid: {monitr: [a]}', "did you mean 'monitor'"),
    ('labels:', 'labels: [', 'YAML')])
def test_a_wrong_file_of_runs_is_one_line_before_anything_is_written(synthetic, tmp_path, capsys, old, new, said):
    from hiccap.cli import run as hiccap_run
    text = GRID.format(
        data=synthetic / 'clips.csv', features=synthetic / 'features', tokenizer=synthetic / 'tokenizer', config='{}')
    assert old in text
    path = tmp_path/'wrong.yaml'; path.write_text(text.replace(old, new, 1))
    status, err = hiccap_run([str(path), '--out', str(tmp_path/'out')]), capsys.readouterr().err
    assert (status == 2 and err.startswith('error: ') and said in err and err.count('\n') == 1
            and not (tmp_path / 'out').exists()), err


def test_an_evaluation_with_modalities_away_and_damaged(trained, synthetic, tmp_path):
    status, out, err = run('evaluate', trained, synthetic / 'clips.csv', '--features', synthetic / 'features',
                           '--robustness', '--out', tmp_path / 'scored')
    assert status == 0, err
    with open(synthetic/'clips.csv', encoding='utf-8') as f:
        n = sum(bool(o['said'] or o['together']) for o in csv.DictReader(f))  # clips with a label are scored
    assert out.startswith(f'WARNING: {n} of {n} clips are not new to the run (')  # in two folds, each is in training
    files = tree(tmp_path/'scored'); report = files['report.md'].decode()
    for picture in (n for n in files if n.endswith('.png')):
        assert f']({picture})' in report and files[picture][:4] == b'\x89PNG'
    subsets = list(csv.DictReader((tmp_path/'scored'/'subsets.csv').open()))
    whole = {t: v['scores']['auroc'] for t, v in json.loads(files['metrics.json'])['scores']['tasks'].items()}
    assert len({o['shown'] for o in subsets}) == 7 and {
        o['task']: float(o['score']) for o in subsets if o['shown'] == 'text + video + audio' and o['task'] != 'mean'
    } == pytest.approx(whole)
    assert {(o['kind'], o['damaged']) for o in csv.DictReader((tmp_path / 'scored' / 'corruption.csv').open())} == {
        (k, d) for k in ('drop', 'noise') for d in ('text', 'video', 'audio', 'text + video + audio')}


@pytest.mark.parametrize('command, args, said', [
    ('train', ['clips.csv', '--feature', 'x', '--epoch', '1'], 'did you mean --features, --epochs?'),
    ('train', ['clips.csv', '--widow', '3'],
     'unrecognized arguments: --widow 3; hiccap_train --help lists all options'),
    ('train', ['texts.csv', '--labels', 'funny', '--encoder', 'minilm', '--set', 'video={"kind": "features"}'],
     "error: video: An encoder of features needs their width, and {'kind': 'features'} has none. Add the number"),
    ('train', ['--set', 'width=48', 'clips.csv'],
     "'clips.csv' is not name=value; clips and folders come before the options"),
    ('train', ['--resume', '--out', 'nowhere'], 'nowhere holds no interrupted run'),
    ('predict', ['nowhere', 'clips.csv'], 'the folder nowhere does not exist'),
    ('train', ['texts.csv', '--labels', 'funny', '--features', 'wrong', '--encoder', 'minilm'],
     'wrong: no file in it is named as features are; it holds audio, video. Name the files of a clip <id>_rgb.npy'),
    ('train', ['texts.csv', '--labels', 'funny', '--features', 'nothing', '--encoder', 'minilm'], 'it is empty'),
    ('train', ['silent.csv', '--labels', 'funny', '--encoder', 'minilm'],
     'silent.csv: no training clip has text, video, audio or another modality'),
    ('train', ['texts.csv', '--labels', 'funny', '--features', 'uneven', '--encoder', 'minilm'],
     '8 columns where v0_0_rgb.npy has 12, and the two are added'),
], ids=['misspelt', 'short-option', 'no-width', 'after-a-list', 'resume-nothing', 'no-folder', 'misnamed',
        'empty-folder', 'silent', 'uneven-parts'])
def test_what_a_hurried_person_does_wrong_is_one_line(tmp_path, monkeypatch, capsys, command, args, said):
    from hiccap import cli
    monkeypatch.chdir(tmp_path)
    for name, text in (('texts', 'so it goes'), ('silent', '')):
        Path(f'{name}.csv').write_text('id,text,funny\n' + ''.join(f'v{i}_0,{text},{i % 2}\n' for i in range(24)))
    for o in ('wrong/audio', 'wrong/video', 'nothing', 'uneven'): Path(o).mkdir(parents=True)
    for part, width in (('rgb', 12), ('flow', 8)): np.save(f'uneven/v0_0_{part}.npy', np.zeros((3, width), np.float32))
    before = tree(tmp_path)
    try: status = getattr(cli, command)(args)
    except SystemExit as e: status = e.code
    err = capsys.readouterr().err
    assert status == 2 and said in err and len(err.splitlines()) == 1, err
    assert tree(tmp_path) == before


def test_clips_without_a_video_file_are_not_exported_and_nothing_is_written(trained, synthetic, tmp_path):
    args = trained, synthetic/'clips.csv', '--features', synthetic/'features', '--json', tmp_path/'out.jsonl'
    for option in '--label-studio', '--fiftyone':
        status, text, err = run('predict', *args, option, tmp_path/'out.json')
        assert status == 2 and 'names no video file' in err and not text and not list(tmp_path.iterdir())


@given(st.text('<>ab/!`\n |', max_size=12))
def test_no_name_in_a_report_is_read_as_html(name):
    text = without_tags(name)
    assert html.unescape(text) == html.unescape(name) and without_tags(text) == text
    outside = re.sub(r'```.*?```|`[^`]*`', ' ', text, flags=re.DOTALL)
    assert not re.search('<[A-Za-z/!?]', outside)
    table = markdown_table(['class', 'p'], [['<b>bad</b>', '< 0.5']])
    assert '<b' not in table and '| &lt;b>bad&lt;/b> | < 0.5 |' in table


def test_a_class_name_is_shown_as_it_is_in_a_report(tmp_path):
    write_sections(tmp_path/'report.md', [['# A run', 'classes: <b onclick=x>bad</b>, `hiccap_train <b>`']])
    assert (tmp_path/'report.md').read_text() == (
        '# A run\n\nclasses: &lt;b onclick=x>bad&lt;/b>, `hiccap_train <b>`\n')
