"""Clips that are parts of videos: their features are those of the video within their seconds, and nothing else."""
import numpy as np
import pytest
from hypothesis import given, strategies as st

from hiccap.cli import audit, train
from hiccap.clips import DataError
from hiccap.cuts import covered, seconds_of
from hiccap.manifest import read_manifest
from hiccap.readers import read_table


@given(st.lists(st.floats(.0625, 3), max_size=30), st.floats(0, 40), st.floats(.01, 40))
def test_what_is_covered_is_what_shares_time_with_the_clip(steps, start, length):
    ends = np.cumsum(np.array(steps, float))
    times = np.stack([np.concatenate([[0.], ends[:-1]]), ends], 1) if len(ends) else np.zeros((0, 2))
    a, b = covered(times, start, start + length)
    inside = {i for i, (s, e) in enumerate(times) if min(e, start + length) - max(s, start) > 0}
    assert set(range(a, b)) == inside


@given(st.integers(0, 99*3600), st.sampled_from([0, .25, .5]))
def test_clock_times_are_seconds(whole, part):
    h, m, s = whole//3600, whole//60 % 60, whole % 60
    assert seconds_of(f'{h}:{m:02d}:{s + part:05.2f}') == seconds_of(str(whole + part)) == whole + part


@pytest.fixture
def parts(tmp_path):
    "Twelve videos of ten seconds with a row a second, and a table of their parts: what is loud is labelled"
    folder, rng, rows = tmp_path/'sound', np.random.default_rng(0), []
    folder.mkdir()
    for v in range(12):
        loud = rng.integers(0, 2, 5)
        np.save(folder/f'v{v}.npy', np.repeat(loud, 2)[:, None].astype(np.float32)*np.ones((1, 3), np.float32)
                + rng.normal(0, .1, (10, 3)).astype(np.float32))
        np.save(folder/f'v{v}_times.npy', np.stack([np.arange(10), np.arange(1, 11)], 1).astype(np.float32))
        rows += [f'v{v}_{k},v{v},{2*k},00:00:{2*k + 2:02d},{("quiet", "loud")[y]}' for k, y in enumerate(loud)]
    path = tmp_path/'parts.csv'
    path.write_text('\n'.join(['id,video,from,to,label', *rows]))
    return path, folder


READ = dict(labels=['label'], group='video', seconds=('from', 'to'))


def test_each_part_has_its_seconds_of_the_video(parts):
    path, folder = parts
    ds = read_table(path, 'minilm', features=[f'sound={folder}'], **READ)
    assert ds.modalities[-1] == 'sound' and len(ds) == 60 and len(set(ds.groups)) == 12
    for i in (0, 7, 59):
        clip, k = ds[i], i % 5
        whole = np.load(folder/f'{ds.groups[i]}.npy')
        assert np.array_equal(clip.sound.numpy(), whole[2*k:2*k + 2])
        assert clip.seconds['sound'].tolist() == [[2*k, 2*k + 1], [2*k + 1, 2*k + 2]]
    assert ds.lengths('sound').tolist() == [2]*60


def test_a_part_beyond_the_end_has_no_features_and_is_listed(parts):
    path, folder = parts
    path.write_text(path.read_text().replace('v0_4,v0,8,00:00:10', 'v0_4,v0,18,00:00:20'))
    ds = read_table(path, 'minilm', features=[f'sound={folder}'], **READ)
    assert ds.absent('sound') == ['v0_4'] and any('1 clip has no sound in their seconds: v0_4' in o for o in ds.notes)


@pytest.mark.parametrize('old, new, says', [
    ('v0_1,v0,2,', 'v0_1,v0,soon,', "'soon', which is not a time"),
    ('v0_1,v0,2,', 'v0_1,v0,,', 'no place in its video'),
    ('v0_1,v0,2,', 'v0_1,v0,9,', 'ends after it begins'), ('id,video,from', 'id,video,form', "'from'")])
def test_bad_seconds_name_the_clip(parts, old, new, says):
    path, folder = parts
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=says) as e: read_table(path, 'minilm', features=[f'sound={folder}'], **READ)
    if 'form' not in new:
        assert e.value.clip == 'v0_1' and e.value.at == 'line 3'
        found = read_manifest(path, labels=['label'], group='video', seconds=('from', 'to'), features=folder)[
            0].findings()
        assert any(f.code == 'field-kind' and f.clips == ['v0_1'] for f in found)


def test_features_that_do_not_say_their_seconds_cannot_be_cut(parts):
    path, folder = parts
    for o in folder.glob('*_times.npy'): o.unlink()
    with pytest.raises(DataError, match='do not say their seconds'):
        read_table(path, 'minilm', features=[f'sound={folder}'], **READ)


def test_the_command_learns_from_parts_of_videos(parts, tmp_path, capsys):
    path, folder = parts
    how = ['--labels', 'label:quiet,loud', '--group', 'video', '--seconds', 'from', 'to']
    assert not train([str(path), *how, '--features', f'sound={folder}', '--tokenizer', 'minilm', '--out',
                      str(tmp_path/'run'), '--epochs', '3', '--bs', '4', '--simple-models', 'frozen'])
    assert 'sound' in (tmp_path/'run/report.md').read_text()
    assert audit([str(path), *how, '--features', f'sound={folder}', '--fail-on', 'error']) == 0
    assert train([str(path), '--labels', 'label', '--seconds', 'from', '--out', str(tmp_path/'x')]) == 2
    assert 'seconds names two columns' in capsys.readouterr().err
