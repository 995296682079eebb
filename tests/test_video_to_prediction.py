"""From video files to predictions, by the commands as a user types them: extraction, training, prediction of new files,
and what a run keeps of how its features were made."""
import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

pytest.importorskip('av', reason='PyAV is not installed: pip install "hiccap[video]"')

import hiccap.cli
from hiccap.extraction import extract
from hiccap.inference import load_run
from hiccap.synthetic_videos import EVENTS, write_synthetic_videos, write_video

PAIR = 'flash_beep'
NETWORK = """
clips: {split_seed: 1}
network:
  encoder: minilm
  standardise: [NAMES]
  config: {width: 64, heads: 4, modalities: {MODALITIES}}
training: {epochs: 12, bs: 16, lr: 0.002}
"""
WIDTHS = dict(picture=128, spectrum=138)


def run_file(path, *names):
    "A YAML file of a small network for these modalities"
    encoders = ', '.join(f'{n}: {{kind: features, width: {WIDTHS[n]}, hidden: 64, layers: 1}}' for n in names)
    path.write_text(NETWORK.replace('NAMES', ', '.join(names)).replace('MODALITIES', encoders))
    return path


def run(command, *args, cwd, status=0):
    "The console script of the installed package, or the function it names where the package is on the path only"
    script = Path(sys.executable).with_name(f'hiccap_{command}')
    start = ([str(script)] if script.exists()
             else [sys.executable, '-c', f'import sys; from hiccap.cli import {command}; sys.exit({command}())'])
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'HICCAP_CACHE': str(Path(cwd)/'cache')}
    done = subprocess.run([*start, *map(str, args)], capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == status, done.stderr[-3000:] + done.stdout[-2000:]
    return done.stdout + done.stderr


def write_table(path, rows, folder='videos', labels=(*EVENTS, PAIR), ids=True):
    "A table of video files and labels, as a user would write it"
    with path.open('w', newline='') as f:
        table = csv.writer(f)
        table.writerow([*(['id'] if ids else []), 'path', *labels])
        for o in rows:
            table.writerow([*([o['id']] if ids else []), f"{folder}/{o['file']}", *(o[k] for k in labels)])
    return path


def probabilities(path, task):
    "clip -> probability of yes"
    return {o['clip']: float(o['probability']) for o in csv.DictReader(path.open()) if o['task'] == task}


def test_from_videos_to_predictions_of_new_videos(tmp_path):
    "Each event is in one stream; whether one of two events happened without the other is in two"
    rows = write_synthetic_videos(tmp_path/'videos', n=200, size=32, seed=0)
    new = write_synthetic_videos(tmp_path/'new', n=60, size=32, seed=1)
    write_table(tmp_path/'clips.csv', rows)
    run('extract', 'clips.csv', '--out', 'features', '--jobs', 2, cwd=tmp_path)
    run_file(tmp_path/'all.yaml', 'picture', 'spectrum')
    run('train', 'features/clips.csv', '--run', 'all.yaml', '--labels', *EVENTS, PAIR, '--features', 'features',
        '--freeze-text', '--out', 'run', cwd=tmp_path)
    said = run('predict', 'run', 'new', '--jobs', 2, '--out', 'answers.csv', cwd=tmp_path)
    assert '60 videos extracted' in said and '240 predictions for 60 clips' in said

    def auroc(file, task):
        found = probabilities(tmp_path/file, task)
        assert list(found) == [o['id'] for o in new]
        return roc_auc_score([o[task] for o in new], list(found.values()))
    whole = {k: auroc('answers.csv', k) for k in (*EVENTS, PAIR)}
    assert all(whole[k] >= .9 for k in EVENTS), whole
    alone = {}
    for name in ('picture', 'spectrum'):
        run_file(tmp_path/f'{name}.yaml', name)
        run('train', 'clips.csv', '--run', f'{name}.yaml', '--labels', PAIR, '--group', 'id', '--features',
            f'{name}=features/{name}', '--out', f'only_{name}', cwd=tmp_path)
        run('predict', f'only_{name}', 'new', '--out', f'{name}.csv', cwd=tmp_path)
        alone[name] = auroc(f'{name}.csv', PAIR)
    assert whole[PAIR] > max(alone.values()) + .1, (whole, alone)


# ---- smaller: twelve clips, one epoch

TINY = ['--encoder', 'minilm', '--freeze-text', '--epochs', '1', '--bs', '4', '--split-seed', '1', '--set', 'width=16',
        'heads=2', 'head_widths=[16]', 'modalities=' + json.dumps(
            {k: dict(kind='features', width=v, hidden=8, layers=1) for k, v in WIDTHS.items()})]


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Videos, tables of them, and a run that was trained on their files"
    folder = tmp_path_factory.mktemp('world')
    rows = write_synthetic_videos(folder/'videos', n=16, seconds=2, size=32, seed=0)
    write_synthetic_videos(folder/'new', n=3, seconds=2, size=32, seed=1)
    (folder/'new/clips.csv').unlink()
    write_table(folder/'clips.csv', rows)
    write_table(folder/'no_ids.csv', rows, ids=False)
    os.environ['HICCAP_CACHE'] = str(folder/'cache')
    yield folder
    del os.environ['HICCAP_CACHE']


def call(command, *args, status=0):
    "A command in this process"
    assert getattr(hiccap.cli, command)(list(map(str, args))) == status


def train(world, out, *args, table='clips.csv', status=0):
    call('train', world/table, '--labels', *EVENTS, '--out', world/out, *args, *TINY, status=status)
    return world/out


@pytest.fixture(scope='module')
def trained(world): return train(world, 'run', '--video-column', 'path')


def answers(path): return [tuple(o.values()) for o in csv.DictReader(path.open())]


def cached(world): return sorted((world/'cache/videos').glob('*/contents/videos/*.json'))


def test_a_column_of_videos_is_what_extraction_by_hand_gives(world, trained):
    call('extract', world/'clips.csv', '--out', world/'by_hand', '--window', 0)
    by_hand = train(world, 'run_by_hand', '--features', world/'by_hand', table='by_hand/clips.csv')
    assert answers(by_hand/'predictions.csv') == answers(trained/'predictions.csv')
    kept = [json.loads((o/'config.json').read_text())['extraction'] for o in (trained, by_hand)]
    assert kept[0] == kept[1] and kept[0]['settings']['text'] == ['sidecar', 'embedded']
    assert [e['version'] for e in kept[0]['settings']['encoders']] == ['1', '1'] and kept[0]['made_with']['av']


def test_what_is_in_the_cache_is_not_extracted_again(world, trained, capsys):
    before = {p: p.stat().st_mtime_ns for p in cached(world)}
    assert len(before) >= 16
    train(world, 'no_ids', '--video-column', 'path', '--jobs', 2, table='no_ids.csv')
    assert answers(world/'no_ids/predictions.csv') == answers(trained/'predictions.csv')
    shutil.copytree(world/'videos', world/'moved')
    renamed = write_table(world/'renamed.csv', [dict(o, id=f'other{k}') for k, o in enumerate(
        csv.DictReader((world/'videos/clips.csv').open()))], 'moved')
    train(world, 'renamed', '--video-column', 'path', table=renamed.name)
    said = [o[1:] for o in answers(world/'renamed/predictions.csv')]
    assert {p: p.stat().st_mtime_ns for p in cached(world)} == before and len(said)
    (world/'renamed.csv').unlink()


def test_new_videos_in_every_form(world, trained, capsys):
    call('extract', world/'new', '--out', world/'new_features', '--window', 0)
    call('predict', trained, world/'new_features/clips.csv', '--features', world/'new_features', '--out', world/'a.csv')
    want = answers(world/'a.csv')
    assert len(want) == 3*len(EVENTS)
    files = sorted((world/'new').glob('*.mp4'))
    (world/'new.csv').write_text('id,path\n' + ''.join(f'{o.stem},new/{o.name}\n' for o in files))
    for n, given in enumerate(([world/'new'], files, [files[0], *files[1:]], [world/'new/*.mp4'], [world/'new.csv'])):
        call('predict', trained, *given, '--out', world/f'b{n}.csv')
        assert answers(world/f'b{n}.csv') == want
    run = load_run(trained)
    found = run.predict(world/'new')
    assert [tuple(map(str, o)) for o in found.values] == want
    assert run.predict(str(files[1])).values.tolist() == found.values[3:6].tolist()
    assert run.predict(files[1:]).values.tolist() == found.values[3:].tolist()


def test_a_video_that_cannot_be_read_is_listed_and_the_others_answered(world, trained, tmp_path, capsys):
    shutil.copytree(world/'new', tmp_path/'new')
    (tmp_path/'new/bad.mp4').write_text('not a video')
    call('predict', trained, tmp_path/'new', '--out', tmp_path/'a.csv', status=1)
    assert len(answers(tmp_path/'a.csv')) == 3*len(EVENTS)
    assert 'bad.mp4 cannot be read' in capsys.readouterr().err
    with pytest.warns(UserWarning, match='bad.mp4 cannot be read'): found = load_run(trained).predict(tmp_path/'new')
    assert len(found) == 3*len(EVENTS)
    (tmp_path/'list.csv').write_text('id,path\nfirst,new/clip_0000.mp4\nlost,new/gone.mp4\n')
    call('predict', trained, tmp_path/'list.csv', '--out', tmp_path/'b.csv', status=1)
    assert {o[0] for o in answers(tmp_path/'b.csv')} == {'first'}
    said = capsys.readouterr().err
    assert 'gone.mp4 does not exist' in said and '1 clip is left out' in said and 'lost' in said
    call('predict', trained, tmp_path/'new/bad.mp4', status=2)
    assert 'no video could be extracted' in capsys.readouterr().err
    call('predict', trained, tmp_path/'new', tmp_path/'list.csv', status=2)
    assert 'list.csv is not a video' in capsys.readouterr().err


def test_rows_whose_video_fails_are_left_out_of_training_and_counted(world, capsys):
    lines = (world/'clips.csv').read_text().splitlines()
    (world/'bad.mp4').write_text('not a video')
    (world/'with_bad.csv').write_text('\n'.join([*lines, 'broken,bad.mp4,1,1,1,0']) + '\n')
    out = train(world, 'with_bad', '--video-column', 'path', table='with_bad.csv')
    notes = json.loads((out/'metrics.json').read_text())['notes']
    assert any('1 clip is left out' in o and 'broken' in o and 'bad.mp4 cannot be read' in o for o in notes)
    sizes = json.loads((out/'metrics.json').read_text())['clips'][0]
    assert sum(sizes.values()) == 16


def test_features_made_in_another_way_are_refused(world, trained, capsys, monkeypatch):
    from hiccap.video_encoders import PictureEncoder
    extract(world/'new', world/'windows', window=30)
    call('predict', trained, world/'windows/clips.csv', '--features', world/'windows', status=2)
    said = capsys.readouterr().err
    assert 'window was 0 and is now 30' in said and str(trained) in said and 'windows' in said
    call('predict', trained, world/'new.csv', '--features', world/'windows')  # its own clips: the encoders are the same
    monkeypatch.setattr(PictureEncoder, 'version', '2')
    extract(world/'new', world/'version', window=0)
    call('predict', trained, world/'version/clips.csv', '--features', world/'version', status=2)
    assert "picture.version was '1' and is now '2'" in capsys.readouterr().err
    call('predict', trained, world/'new', status=2)
    said = capsys.readouterr().err
    assert "picture.version was '1' and is now '2'" in said and 'av ' in said
    monkeypatch.undo()
    for name in ('picture', 'spectrum'): shutil.copytree(world/f'version/{name}', world/f'plain/{name}')
    capsys.readouterr()
    call('predict', trained, world/'new.csv', '--features', f"picture={world/'plain/picture'}",
         f"spectrum={world/'plain/spectrum'}")
    assert 'do not say how they were made' in capsys.readouterr().err


def test_a_table_of_videos_with_a_run_of_windows_is_refused_with_the_command_that_extracts_them(world, capsys):
    call('extract', world/'clips.csv', '--out', world/'second_windows', '--window', 1)
    out = train(world, 'windowed', '--features', world/'second_windows', table='second_windows/clips.csv')
    capsys.readouterr()
    call('evaluate', out, world/'clips.csv', '--video-column', 'path', status=2)
    said = capsys.readouterr().err
    assert 'window was 1.0 and is now 0' in said and 'use these versions' not in said
    command = said.partition('with ')[2].partition(', and give')[0].replace('VIDEOS', str(world/'clips.csv'))
    call(*shlex.split(command.replace('hiccap_', '').replace('FEATURES', str(world/'again'))))
    call('evaluate', out, world/'again/clips.csv', '--features', world/'again')


def test_features_next_to_videos_are_refused_where_they_would_not_be_read(world, trained, capsys):
    for features in (world/'by_hand', f"picture={world/'by_hand/picture'}"):
        capsys.readouterr()
        call('predict', trained, world/'new', '--features', features, status=2)
        assert 'would not be read: leave --features out' in capsys.readouterr().err


def test_options_of_a_table_are_refused_with_videos_and_misspelt_settings_named(world, trained, capsys):
    for args, says in ((['--text', 'words'], 'text says how a table is read'), (['--id', 'name'], 'id says'),
                       (['--group', 'show'], 'group says'), (['--video-column', 'path'], 'video_column says')):
        capsys.readouterr()
        call('predict', trained, world/'new', *args, status=2)
        said = capsys.readouterr().err
        assert says in said and said.count('\n') == 1, said
    run = load_run(trained)
    with pytest.raises(ValueError, match="has no 'txt'; did you mean 'text'"):
        run.predict(world/'clips.csv', txt='words')


def test_records_say_that_a_video_has_changed_since_its_features_were_extracted(world, trained, tmp_path, capsys):
    shutil.copytree(world/'new', tmp_path/'videos')
    call('extract', tmp_path/'videos', '--out', tmp_path/'features', '--window', 0)
    args = trained, tmp_path/'features/clips.csv', '--features', tmp_path/'features', '--json'
    capsys.readouterr()
    call('predict', *args, tmp_path/'before.jsonl')
    assert 'WARNING' not in capsys.readouterr().err
    first, second, *_ = sorted((tmp_path/'videos').glob('*.mp4'))
    shutil.copy(second, first)
    second.unlink()
    call('predict', *args, tmp_path/'after.jsonl')
    said = capsys.readouterr().err
    assert 'WARNING: 2 video files changed or went away' in said and str(first) in said and str(second) in said
    assert (tmp_path/'after.jsonl').read_text() == (tmp_path/'before.jsonl').read_text()
    with pytest.warns(UserWarning, match='2 video files changed or went away'):
        load_run(trained).records(args[1], args[3])


def test_a_run_without_a_recipe_works_as_before_and_refuses_videos(world, trained, capsys):
    for name in ('picture', 'spectrum'):
        shutil.copytree(world/f'by_hand/{name}', world/f'copied/{name}', dirs_exist_ok=True)
    table = world/'copied.csv'
    shutil.copy(world/'by_hand/clips.csv', table)
    sources = [f"{n}={world/'copied'/n}" for n in ('picture', 'spectrum')]
    out = train(world, 'no_recipe', '--features', *sources, '--group', 'video', table='copied.csv')
    assert 'extraction' not in json.loads((out/'config.json').read_text())
    assert answers(out/'predictions.csv') == answers(trained/'predictions.csv')
    capsys.readouterr()
    call('predict', out, world/'new', status=2)
    said = capsys.readouterr().err
    assert 'does not say how its features were extracted' in said and said.count('\n') == 1
    call('predict', out, table, '--features', *sources)
    call('predict', out, world/'by_hand/clips.csv', '--features', world/'by_hand')


def test_an_unfinished_folder_is_refused_with_the_command_that_finishes_it(world, tmp_path, capsys):
    shutil.copytree(world/'new', tmp_path/'my videos')
    (tmp_path/'my videos/a.mp4').write_text('not a video')
    call('extract', tmp_path/'my videos', '--out', tmp_path/'features', '--audio', '--window', 1, '--strict', status=1)
    for table, features in ((tmp_path/'features/clips.csv', tmp_path/'features'),
                            (world/'clips.csv', f"picture={tmp_path/'features/picture'}")):
        capsys.readouterr()
        call('train', table, '--labels', 'flash', '--features', features, '--out', tmp_path/'run', *TINY, status=2)
        said = capsys.readouterr().err
        assert 'is not complete, as the extraction was stopped' in said and 'Finish it: hiccap_extract' in said
    command = said.partition('Finish it: ')[2].strip()
    call('extract', *shlex.split(command)[1:], status=1)
    rows = csv.DictReader((tmp_path/'features/clips.csv').open())
    assert [o['id'] for o in rows][:2] == ['clip_0000_1', 'clip_0000_2']
    assert not (tmp_path/'features/spectrum').exists()


def test_mistakes_in_a_table_are_said_before_anything_is_extracted(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('HICCAP_CACHE', str(tmp_path/'cache'))
    shutil.copy(world/'clips.csv', tmp_path/'clips.csv')
    (tmp_path/'empty.csv').write_text('id,path,flash\na,videos/clip_0000.mp4,1\nb,,0\n')
    (tmp_path/'twice.csv').write_text('path,flash\nx/a.mp4,1\ny/a.mp4,0\n')
    for args, says in (
            (['clips.csv', '--labels', 'flash', '--video-column', 'paths'], "Did you mean 'path'? "),
            (['clips.csv', '--labels', 'flsh', '--video-column', 'path'], "no column 'flsh'"),
            (['empty.csv', '--labels', 'flash', '--video-column', 'path'], "line 3: column 'path' is empty"),
            (['twice.csv', '--labels', 'flash', '--video-column', 'path'], 'x/a.mp4 and '),
            (['clips.csv', '--labels', 'flash', '--extraction', 'wheels'], 'video_column names none'),
            (['clips.csv', '--labels', 'flash', '--video-column', 'path', '--extraction', 'ofline'], "'ofline'"),
            (['clips.csv', '--labels', 'flash', '--video-column', 'path', '--extraction', 'offline', 'vidoe=picture'],
             "extraction has no 'vidoe'; did you mean 'video'?"),
            (['clips.csv', '--labels', 'flash', '--video-column', 'path', '--features', 'f'], 'leave one of them out')):
        capsys.readouterr()
        call('train', tmp_path/args[0], *args[1:], '--out', tmp_path/'run', *TINY, status=2)
        said = capsys.readouterr().err
        assert says in said and said.count('\n') == 1 and '?.' not in said, said
    assert not (tmp_path/'cache/videos').exists() and not (tmp_path/'run').exists()


def test_parts_of_videos_are_cut_from_features_that_are_extracted_once(world, tmp_path, monkeypatch):
    monkeypatch.setenv('HICCAP_CACHE', str(tmp_path/'cache'))
    with (tmp_path/'parts.csv').open('w') as f:
        f.write('id,path,from,to,text,flash\n')
        for k in range(8):
            for part in range(2):
                f.write(f"c{k}_{part},{world}/videos/clip_{k:04d}.mp4,{part},{part + 1},hello,{(k + part) % 2}\n")
    call('train', tmp_path/'parts.csv', '--labels', 'flash', '--video-column', 'path', '--seconds', 'from', 'to',
         '--out', tmp_path/'run', *TINY)
    folder, = (p for p in (tmp_path/'cache/videos').glob('*/*') if p.name != 'contents')
    assert len(list(folder.glob('videos/*.json'))) == 8
    run = load_run(tmp_path/'run')
    ds = run.read(tmp_path/'parts.csv')
    whole = np.load(folder/'picture/clip_0002.npy')
    assert ds.ids[4:6] == ['c2_0', 'c2_1'] and ds.groups[4] == ds.groups[5] != ds.groups[6]
    assert all((ds[4 + k].picture.numpy() == whole[k:k + 1]).all() for k in range(2)) and len(whole) == 2


def test_text_of_the_table_is_read_where_there_is_a_column(world, tmp_path):
    lines = list(csv.DictReader((world/'clips.csv').open()))
    with (tmp_path/'texts.csv').open('w', newline='') as f:
        table = csv.DictWriter(f, ['id', 'path', 'text', 'flash'])
        table.writeheader()
        for o in lines: table.writerow(dict(id=o['id'], path=world/o['path'], text='one word', flash=o['flash']))
    call('train', tmp_path/'texts.csv', '--labels', 'flash', '--video-column', 'path', '--out', tmp_path/'run', *TINY)
    run = load_run(tmp_path/'run')
    given = run.read(tmp_path/'texts.csv')
    assert {run.tokenizer.decode(c.text, skip_special_tokens=True) for c in given} == {'one word'}
    found = load_run(world/'run').read(world/'clips.csv')
    spoken = extract(world/'videos/clip_0003.mp4', tmp_path/'one') and list(csv.DictReader(
        (tmp_path/'one/clips.csv').open()))[0]['text']
    assert run.tokenizer.decode(found[3].text, skip_special_tokens=True) == spoken


def test_a_finished_run_notices_a_video_that_changed(world, trained, capsys):
    path = world/'videos/clip_0005.mp4'
    before = path.read_bytes()
    train(world, 'run', '--video-column', 'path', '--resume')
    assert 'finished: nothing left to do' in capsys.readouterr().out
    try:
        path.write_bytes((world/'videos/clip_0006.mp4').read_bytes())
        train(world, 'run', '--video-column', 'path', '--resume', status=2)
        assert 'are not what they were when the run' in capsys.readouterr().err
    finally: path.write_bytes(before)


def test_silent_videos_have_no_sound_and_no_empty_modality(tmp_path, monkeypatch):
    monkeypatch.setenv('HICCAP_CACHE', str(tmp_path/'cache'))
    rng, at = np.random.default_rng(0), np.arange(10)/5
    (tmp_path/'clips.csv').write_text('path,y\n' + ''.join(f'v{k}.mp4,{k % 2}\n' for k in range(8)))
    for k in range(8): write_video(tmp_path/f'v{k}.mp4', rng.integers(0, 256, (10, 32, 32, 3), np.uint8), at)
    call('train', tmp_path/'clips.csv', '--labels', 'y', '--video-column', 'path', '--epochs', 1, '--out',
         tmp_path/'run', '--set', 'width=16', 'heads=2')
    run = load_run(tmp_path/'run')
    assert run.modalities == ('picture',) and run.extraction['modalities'] == dict(picture='picture')
    assert run.extraction['settings']['text'] == [] and len(run.predict(tmp_path/'v1.mp4')) == 1


def tiny_model(folder, seed):
    "A random image model, saved as a download would be"
    import torch
    import transformers as tf
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = tf.ViTModel(tf.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                         intermediate_size=16, image_size=32, patch_size=16))
    model.save_pretrained(folder)
    tf.ViTImageProcessor(size=dict(height=32, width=32)).save_pretrained(folder)


def test_weights_of_the_user_are_found_again_and_others_are_refused(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HICCAP_CACHE', str(tmp_path/'cache'))
    tiny_model('weights/vit', 0)
    call('train', world/'clips.csv', '--labels', 'flash', '--video-column', 'path', '--extraction', 'offline',
         'video=hf:weights/vit', 'audio=', 'text=', '--epochs', 1, '--split-seed', 1, '--out', 'run',
         '--set', 'width=16', 'heads=2')
    kept = json.loads((tmp_path/'run/config.json').read_text())['extraction']
    assert kept['modalities'] == dict(vit='vit') and kept['settings']['encoders'][0]['weights']
    (tmp_path/'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path/'elsewhere')
    assert len(load_run(tmp_path/'run').predict(world/'new')) == 3
    shutil.rmtree(tmp_path/'weights/vit')
    tiny_model(tmp_path/'weights/vit', 1)
    capsys.readouterr()
    call('predict', tmp_path/'run', world/'new', status=2)
    assert 'vit.version was' in capsys.readouterr().err


def test_a_run_whose_features_were_computed_on_a_card(world, tmp_path, monkeypatch, capsys):
    "Without a card, prediction says how to do without; such features are noted, and not taken for the same"
    import torch
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HICCAP_CACHE', str(tmp_path/'cache'))
    tiny_model('vit', 0)
    with monkeypatch.context() as card:
        card.setattr('hiccap.encoder_weights.find_device', lambda device: torch.device('cpu'))
        call('train', world/'clips.csv', '--labels', 'flash', '--video-column', 'path', '--extraction', 'offline',
             'video=hf:vit', 'audio=', 'text=', 'device=cuda:1', '--epochs', 1, '--split-seed', 1, '--out', 'run',
             '--set', 'width=16', 'heads=2')
        call('predict', 'run', world/'new', '--out', 'card.csv')
    kept = json.loads((tmp_path/'run/config.json').read_text())['extraction']
    assert kept['settings']['encoders'][0]['device'] == 'cuda'
    assert kept['names'] == [f'hf:{tmp_path.resolve()}/vit@device=cuda']
    if torch.cuda.is_available(): pytest.skip('this machine has a card')
    capsys.readouterr()
    call('predict', 'run', world/'new', status=2)
    said = capsys.readouterr().err
    assert 'no device cuda' in said and 'differ in the last digits' in said.splitlines()[-1]
    by_hand = shlex.split(said.partition('extract them with ')[2].partition(', and give')[0])
    call('extract', *[dict(VIDEOS=world/'new', FEATURES='features').get(o, o) for o in by_hand[1:]])
    capsys.readouterr()
    call('predict', 'run', 'features/clips.csv', '--features', 'features', '--out', 'cpu.csv')
    assert "vit.device was 'cuda' and is now 'cpu'" in capsys.readouterr().err
    assert answers(tmp_path/'cpu.csv') == answers(tmp_path/'card.csv')  # the card was a CPU


def test_a_run_waits_for_another_that_extracts_the_same_videos(world, trained, capsys):
    pytest.importorskip('fcntl', reason='this system has no locks')
    for folder in {p.parent for p in (world/'cache/videos').glob('*/*/extraction.json')}: (folder/'.lock').touch()
    code = ("import fcntl, sys, time\nheld = [open(o, 'w') for o in sys.argv[1:]]\n"
            "for o in held: fcntl.lockf(o, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(3)")
    locks = [str(o) for o in (world/'cache/videos').glob('*/*/.lock')]
    other = subprocess.Popen([sys.executable, '-c', code, *locks], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == 'held\n'
    train(world, 'waited', '--video-column', 'path')
    said = capsys.readouterr().out
    assert said.count('is being written by another process') == 1 and '16 clips in' in said
    assert answers(world/'waited/predictions.csv') == answers(trained/'predictions.csv')
    other.wait()


def test_packing_a_table_of_videos(world, trained, tmp_path):
    from hiccap.packing import open_packed
    call('pack', world/'clips.csv', tmp_path/'packed', '--labels', 'flash', '--video-column', 'path', '--encoder',
         'minilm')
    packed, read = open_packed(tmp_path/'packed'), load_run(trained).read(world/'clips.csv')
    assert packed.ids == read.ids
    for m in ('picture', 'spectrum', 'text'): assert (getattr(packed[3], m) == getattr(read[3], m)).all()
