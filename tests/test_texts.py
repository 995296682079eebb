"""The words of videos: spoken where somebody speaks, and on the screen; their seconds, and where they are from."""
import csv
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

pytest.importorskip('av', reason='PyAV is not installed: pip install "hiccap[video]"')

from conftest import heard_in_blocks
from hiccap.clips import DataError
from hiccap.extraction import ExtractionError, extract, read_record
from hiccap.media import SoundBlock, SoundSampling
from hiccap.run_data import read_clips
from hiccap.run_videos import extracted_clips
from hiccap.runs import Clips
from hiccap.screen_text import ScreenText, join_lines, same_line
from hiccap.speech_text import (
    LONGEST, SpeechText, VoiceEncoder, sound_pieces, speech_pieces, voice_spans, whisper_model)
from hiccap.synthetic_videos import write_video
from hiccap.text import get_tokenizer
from hiccap.video_clips import TextSource, cut_clips, make_text_source, video_texts
from hiccap.video_encoders import RATE, Track, VideoEncoder, encode_video


def needs(extra, *packages):
    "Skip where packages of an extra are missing"
    lacking = [o for o in packages if importlib.util.find_spec(o) is None]
    reason = f'not installed: {", ".join(lacking)}; pip install "hiccap[{extra}]"'
    return pytest.mark.skipif(bool(lacking), reason=reason)


def voice(seconds, f0=110, syllable=.18, seed=0):
    "A buzz through changing formants, which sounds like a voice"
    from scipy.signal import lfilter
    rng, n, step = np.random.default_rng(seed), int(seconds*RATE), 80
    t = np.arange(n)/RATE
    pitch = f0*(1 + .25*np.sin(2*np.pi*.7*t) + .02*np.sin(2*np.pi*5*t))
    buzz = np.diff(lfilter([1], [1, -.95], np.diff(np.floor(np.cumsum(pitch)/RATE), prepend=0)), prepend=0)
    vowels = np.array([(730, 1090, 2440, 3400), (270, 2290, 3010, 3600), (300, 870, 2240, 3300),
                       (530, 1840, 2480, 3500), (570, 840, 2410, 3300)])
    path, out, state = vowels[rng.integers(5, size=int(seconds/syllable) + 2)], np.zeros(n), [np.zeros(2)]*4
    for k in range(0, n, step):
        i, part = divmod(k/RATE/syllable, 1)
        y = buzz[k:k + step]
        for j, (f, width) in enumerate(zip(path[int(i)]*(1 - part) + path[int(i) + 1]*part, (80, 90, 120, 150))):
            r = np.exp(-np.pi*width/RATE)
            y, state[j] = lfilter([1], [1, -2*r*np.cos(2*np.pi*f/RATE), r*r], y, zi=state[j])
        out[k:k + step] = y*(.15 + .85*np.sin(np.pi*part)**2)
    return .4*out/np.abs(out).max()


def speech_at(*spans, seconds):
    "Silence with voices"
    x = np.random.default_rng(0).normal(0, 1e-4, round(seconds*RATE))
    for start, end in spans: x[round(start*RATE):round(end*RATE)] += voice(end - start)
    return x


class Ticks:
    "A recogniser that hears a word in every half second, and keeps what it heard"
    details = dict(weights='1')
    def __init__(self): self.heard = []

    def words(self, samples):
        self.heard.append(samples)
        return [(k/2, k/2 + .5, f' w{k}') for k in range(int(2*len(samples)/RATE))]


class Given(VideoEncoder):
    "Voices at given times"
    name, version, width, request = 'voice', '1', 1, SoundSampling(RATE)
    def __init__(self, track): self.track = track
    def push(self, block): pass
    def finish(self): return self.track


def voices(likely, start=0.):
    at = start + np.arange(len(likely))[:, None]*.032 + [0, .032]
    return Track(np.array(likely, np.float32)[:, None], at.astype(np.float32), 'voice', '1')


def loaded_anew():
    "As in another process: each loads a recogniser once"
    from hiccap import video_clips
    video_clips._loaded.cache_clear()


def table(folder): return list(csv.DictReader((Path(folder)/'clips.csv').open(newline='')))


probabilities = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 400)), min_size=1, max_size=12).map(
    lambda runs: [p for p, n in runs for _ in range(n)])


@given(probabilities, st.floats(0, 9))
def test_spans_and_pieces_of_voices(likely, start):
    track = voices(likely, start)
    spans = voice_spans(track)
    pieces = speech_pieces(spans, track)
    first, last = float(track.seconds[0, 0]), float(track.seconds[-1, 1])
    for some in (spans, pieces):
        assert all(first <= a < b <= last for a, b in some)
        assert all(b <= c + 1e-6 for (_, b), (c, _) in zip(some, some[1:]))
    assert all(b - a <= LONGEST + 1e-6 for a, b in pieces)
    middle = track.seconds.mean(1)
    for a, b in spans: # a span is in pieces, from end to end, and somebody surely speaks in it
        part = (middle >= a) & (middle < b)
        assert all(any(c <= o < d for c, d in pieces) for o in middle[part])
        assert track.values[part, 0].max() >= .5
    if len(likely) < 25: return
    p, inside = np.array(likely), np.array([any(a <= o < b for a, b in spans) for o in middle])
    loud = np.convolve(p >= .5, np.ones(8), 'same') >= 8  # in the middle of a quarter of a second
    assert inside[loud].all()
    quiet = np.convolve(p >= .35, np.ones(25), 'same') == 0  # nobody within 0.4 s
    assert not inside[quiet].any()


@settings(max_examples=40)
@given(st.lists(st.floats(.1, 4), min_size=1, max_size=6), st.lists(st.integers(100, 50_000), min_size=1, max_size=5),
       st.floats(0, 3))
def test_pieces_of_sound_are_those_samples(lengths, sizes, start):
    ends = np.cumsum(lengths)
    pieces = [(start + a, start + b) for a, b in zip([0, *ends[:-1]], ends)][::2]
    x, blocks, k = np.arange(round(sum(lengths)*RATE), dtype=np.float32), [], 0
    while k < len(x):
        n = sizes[len(blocks) % len(sizes)]
        blocks.append(SoundBlock(x[k:k + n], start + k/RATE, None))
        k += n
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('hiccap.speech_text.decode', lambda *args: iter(blocks))
        found = list(sound_pieces('a.mp4', pieces))
    assert len(found) == len(pieces)
    for (a, b), (at, samples) in zip(pieces, found):
        assert at == pytest.approx(a, abs=1e-4) and abs(len(samples) - (b - a)*RATE) <= 1.5
        assert (np.diff(samples) == 1).all() and abs(samples[0] - (a - start)*RATE) <= 1.5


def test_words_are_where_somebody_speaks(tmp_path):
    likely = np.zeros(1000)
    likely[100:200] = likely[600:640] = .9       # 3.2 to 6.4 s and 19.2 to 20.48 s
    path, model = write_video(tmp_path/'a.mkv', samples=np.zeros(32*RATE), sound_start=1.5), Ticks()
    read = SpeechText(model, Given(voices(likely, 1.5)))
    words = read(path)
    spans = [(1.5 + 3., 1.5 + 6.6), (1.5 + 19., 1.5 + 20.68)]
    assert words and all(any(a <= (s + e)/2 < b for a, b in spans) for s, e, _ in words)
    for a, b in spans: assert sum(a <= (s + e)/2 < b for s, e, _ in words) >= 2*(b - a) - 2
    assert len(model.heard) == 1 and abs(len(model.heard[0])/RATE - (spans[1][1] - spans[0][0])) < .01
    assert all(o == o.strip() for _, _, o in words)
    assert SpeechText(model, Given(voices(0*likely, 1.5)))(path) == [] and len(model.heard) == 1
    silent = write_video(tmp_path/'b.mp4', np.zeros((5, 16, 16, 3), np.uint8), np.arange(5)/5)
    assert SpeechText(model, Given(voices([])))(silent) == []


@needs('speech', 'silero_vad', 'onnxruntime')
def test_voices_are_found_where_they_are(tmp_path):
    path = write_video(tmp_path/'a.mp4', samples=speech_at((2., 4.5), (7., 9.), seconds=11))
    (track,), _ = encode_video(path, VoiceEncoder())
    found = voice_spans(track)
    assert len(found) == 2
    np.testing.assert_allclose(found, [(2, 4.5), (7, 9)], atol=.5)
    noise = np.random.default_rng(0).normal(0, .1, 4*RATE)
    tone = .3*np.sin(2*np.pi*300*np.arange(4*RATE)/RATE)
    for x in (noise, tone, np.zeros(4*RATE)):
        (track,), _ = encode_video(write_video(tmp_path/'b.mp4', samples=x), VoiceEncoder())
        assert len(track) == pytest.approx(125, abs=3) and voice_spans(track) == []


@needs('speech', 'silero_vad', 'onnxruntime')
@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5*RATE), st.integers(300, 40_000))
def test_blocks_do_not_show_in_voices(n, block):
    x, encoder = np.random.default_rng(n).normal(0, .1, n).astype(np.float32), VoiceEncoder()
    a, b = (heard_in_blocks(encoder, x, size) for size in (n, block))
    assert a.values.tobytes() == b.values.tobytes() and a.seconds.tobytes() == b.seconds.tobytes()
    assert len(a) == -(-n//512)


@needs('speech', 'silero_vad', 'onnxruntime')
def test_voices_are_those_of_the_package():
    import torch
    threads = torch.get_num_threads()
    from silero_vad import load_silero_vad
    torch.set_num_threads(threads)
    x = speech_at((.5, 3.), seconds=3.5).astype(np.float32)
    encoder = VoiceEncoder()
    encoder.start()
    encoder.push(SoundBlock(x, 0., encoder.request))
    want = load_silero_vad(sequence=True).audio_forward(x)
    np.testing.assert_allclose(encoder.finish().values[:, 0], want, atol=1e-4)


@pytest.fixture(scope='module')
def whisper(tmp_path_factory):
    "A tiny random Whisper of transformers, with a tokenizer of bytes, saved as a download would be"
    import torch
    import transformers as tf
    folder = tmp_path_factory.mktemp('whisper')
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [o for o in range(256) if o not in plain]
    letters = {**{o: chr(o) for o in plain}, **{o: chr(256 + k) for k, o in enumerate(others)}}
    vocabulary = {letter: k for k, letter in enumerate(letters.values())}
    end = '<|endoftext|>'
    tokenizer = tf.WhisperTokenizerFast(vocab=vocabulary, merges=[], unk_token=end, bos_token=end, eos_token=end)
    special = ['startoftranscript', 'en', 'translate', 'transcribe', 'startoflm', 'startofprev', 'nocaptions',
               'notimestamps']
    tokenizer.add_special_tokens(dict(additional_special_tokens=[f'<|{o}|>' for o in special]))
    stamps = [tf.AddedToken(f'<|{k*.02:.2f}|>', special=False, normalized=False) for k in range(1501)]
    tokenizer.add_tokens(stamps)
    ids = {o: tokenizer.convert_tokens_to_ids(f'<|{o}|>') for o in ('endoftext', *special)}
    sizes = dict(d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                 encoder_ffn_dim=16, decoder_ffn_dim=16)
    config = tf.WhisperConfig(
        vocab_size=len(tokenizer), pad_token_id=ids['endoftext'], bos_token_id=ids['endoftext'],
        eos_token_id=ids['endoftext'], decoder_start_token_id=ids['startoftranscript'], **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tf.WhisperForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tf.WhisperFeatureExtractor().save_pretrained(folder)
    (folder/'generation_config.json').write_text(json.dumps(dict(
        alignment_heads=[[0, 0]], begin_suppress_tokens=[ids['endoftext']], bos_token_id=ids['endoftext'],
        decoder_start_token_id=ids['startoftranscript'], eos_token_id=ids['endoftext'], is_multilingual=False,
        max_initial_timestamp_index=50, max_length=40, no_timestamps_token_id=ids['notimestamps'],
        pad_token_id=ids['endoftext'], prev_sot_token_id=ids['startofprev'])))
    return folder


@needs('speech', 'silero_vad', 'onnxruntime')
def test_whisper_of_transformers(whisper, tmp_path):
    talk = write_video(tmp_path/'talk.mp4', np.zeros((40, 16, 16, 3), np.uint8), np.arange(40)/4,
                       speech_at((3., 6.), seconds=10))
    still = write_video(tmp_path/'still.mp4', np.zeros((8, 16, 16, 3), np.uint8), np.arange(8)/4, np.zeros(2*RATE))
    model = whisper_model(str(whisper))
    assert model.words(np.zeros(2*RATE, np.float32)), 'the model invents no words, so nothing is tested'
    done = extract([talk, still], tmp_path/'out', [], text=['sidecar', f'whisper:{whisper}'])
    rows = {o['id']: o for o in table(tmp_path/'out')}
    assert list(done.failures) == [str(still)] and 'has nothing for sidecar, whisper' in done.failures[str(still)]
    assert rows['talk']['text_source'] == 'whisper' and rows['talk']['text']
    words = json.loads((tmp_path/'out/text/talk_words.json').read_text())
    assert words and all(2.3 <= a <= b <= 6.7 for a, b, _ in words)
    assert ' '.join(o[2] for o in words) == rows['talk']['text']
    assert make_text_source(f'whisper:{whisper}').read(talk) == [tuple(o) for o in words]
    kept = json.loads((tmp_path/'out/extraction.json').read_text())['settings']
    assert kept['readers']['whisper']['by'] == 'transformers' and len(kept['readers']['whisper']['weights']) == 16
    assert '| whisper | 1 |' in (tmp_path/'out/report.md').read_text()
    (tmp_path/'talk.srt').write_text('1\n00:00:00,500 --> 00:00:01,500\nwritten words\n')
    assert video_texts(talk, ['sidecar', f'whisper:{whisper}'])['text'] == ('sidecar', [(.5, 1.5, 'written words')])


@needs('speech', 'silero_vad', 'onnxruntime')
def test_other_weights_of_a_recogniser_are_refused(whisper, tmp_path):
    import shutil
    from safetensors.torch import load_file, save_file
    shutil.copytree(whisper, tmp_path/'whisper')
    path = write_video(tmp_path/'talk.mp4', samples=speech_at((.5, 1.5), seconds=2))
    def run():
        loaded_anew()
        return extract(path, tmp_path/'out', [], text=[f"whisper:{tmp_path/'whisper'}"])
    assert run().extracted == 1
    weights = load_file(tmp_path/'whisper/model.safetensors')
    name = next(k for k in weights if k.endswith('layer_norm.bias'))
    save_file({**weights, name: weights[name] + 1}, tmp_path/'whisper/model.safetensors', metadata=dict(format='pt'))
    with pytest.raises(ExtractionError, match='readers.whisper.weights was'): run()
    loaded_anew()


@needs('speech', 'faster_whisper', 'silero_vad', 'onnxruntime')
def test_whisper_of_ctranslate2(whisper, tmp_path):
    from ctranslate2.converters import TransformersConverter
    files = ['tokenizer.json', 'preprocessor_config.json']
    TransformersConverter(str(whisper), copy_files=files).convert(str(tmp_path/'whisper'))
    model, x = whisper_model(str(tmp_path/'whisper')), voice(3.).astype(np.float32)
    words = model.words(x)
    assert words == model.words(x) and all(0 <= a <= b <= 30 for a, b, _ in words)
    assert model.details['by'] == 'faster-whisper' and len(model.details['weights']) == 16
    (tmp_path/'whisper/vocabulary.json').write_text((tmp_path/'whisper/vocabulary.json').read_text() + ' ')
    assert whisper_model(str(tmp_path/'whisper')).details != model.details


def test_what_is_not_a_recogniser_is_refused(whisper, tmp_path):
    import shutil
    with pytest.raises(ValueError, match='is not a folder'): whisper_model(str(tmp_path/'gone'))
    (tmp_path/'empty').mkdir()
    with pytest.raises(ValueError, match='empty cannot be loaded.*openai/whisper-base'):
        whisper_model(str(tmp_path/'empty'))
    shutil.copytree(whisper, tmp_path/'unaligned')
    at = tmp_path/'unaligned/generation_config.json'
    at.write_text(json.dumps({k: v for k, v in json.loads(at.read_text()).items() if k != 'alignment_heads'}))
    with pytest.raises(ValueError, match='no alignment_heads'): whisper_model(str(tmp_path/'unaligned'))
    with pytest.raises(ValueError, match='write whisper: and a folder'): make_text_source('whisper:')


@given(st.lists(st.lists(st.sampled_from(['the cat', 'falls off', 'NEWS 24', 'a dog']), unique=True, max_size=3),
                max_size=8), st.randoms())
def test_lines_last_from_their_first_to_their_last_picture(shown, random):
    def misread(text): return text.replace('a', '@') if random.random() < .3 else text
    readings = [(float(k), [(o, .95 if o == m else .7) for m in lines for o in [misread(m)]])
                for k, lines in enumerate(shown)]
    found = join_lines(readings, 1.)
    assert [o[0] for o in found] == sorted(o[0] for o in found)
    for text in ('the cat', 'falls off', 'NEWS 24', 'a dog'):
        on = [text in lines for lines in shown]
        edges = np.flatnonzero(np.diff([0, *on, 0])).reshape(-1, 2).tolist()
        assert [[a, b] for a, b, o in found if same_line(o, text)] == edges
    for a, b, text in found:  # spelled right if it was read right once
        right = [o for k in range(int(a), int(b)) for o, score in readings[k][1] if same_line(o, text) and score > .9]
        assert not right or text == right[0]


def screen_with(text):
    "A picture with a line of text"
    from PIL import Image, ImageDraw, ImageFont
    image = Image.new('RGB', (320, 180), (30, 60, 90))
    ImageDraw.Draw(image).text((20, 140), text, fill='white', font=ImageFont.load_default(22))
    return np.asarray(image)


@needs('ocr', 'rapidocr', 'onnxruntime')
def test_text_on_the_screen_is_a_column_of_its_own(tmp_path):
    pictures = [screen_with(o) for o in ['', 'a cat on a shelf', 'a cat on a shelf', '', 'it falls off']]
    cues = [(.2, .8, 'subtitle')]
    path = write_video(tmp_path/'a.mp4', pictures, range(5), captions=cues, fps=1)
    write_video(tmp_path/'b.mp4', pictures[:1], [0], fps=1)
    done = extract(tmp_path/'*.mp4', tmp_path/'out', ['picture'], text=['ocr', 'sidecar', 'embedded'], window=3)
    assert not done.failures
    rows = {o['id']: o for o in table(tmp_path/'out')}
    assert [rows[o]['text'] for o in ('a_1', 'a_2', 'b')] == ['subtitle', '', '']
    assert [rows[o]['text_source'] for o in ('a_1', 'a_2', 'b')] == ['embedded', '', '']
    assert [rows[o]['screen'] for o in ('a_1', 'a_2', 'b')] == ['a cat on a shelf', 'it falls off', '']
    lines = [json.loads((tmp_path/f'out/screen/a_{k}_words.json').read_text()) for k in (1, 2)]
    assert [o[:2] for o in lines[0] + lines[1]] == [[1, 3], [4, 5]]
    assert not (tmp_path/'out/screen/b_words.json').exists()
    assert read_record(tmp_path/'out/videos/b.json')['clips'][0]['screen'] == ''
    assert json.loads((tmp_path/'out/extraction.json').read_text())['settings']['readers']['ocr']['by'] == 'rapidocr'
    with pytest.raises(ExtractionError, match='text was'): extract(path, tmp_path/'out', ['picture'])


def test_the_reader_gets_blue_first_and_its_lines_are_sorted():
    class Reader(ScreenText):
        def __init__(self): self.seen = []
        def reader(self, x):
            self.seen.append(x)
            boxes = np.array([[[0, top]]*4 for top in (50, 5, 20)])
            return SimpleNamespace(boxes=boxes, txts=('low', ' high ', 'unsure'), scores=(.9, .8, .3))
    reader, picture = Reader(), np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert reader.lines(picture) == [('high', .8), ('low', .9)]
    assert reader.seen[0].tolist() == [[[2, 1, 0], [5, 4, 3]], [[8, 7, 6], [11, 10, 9]]]
    reader.reader = lambda x: SimpleNamespace(boxes=None, txts=None, scores=None)
    assert reader.lines(picture) == []


def test_sources_are_tried_in_order_and_each_column_has_its_own():
    asked = []
    def source(name, words, column='text'):
        def read(path):
            asked.append(name)
            return words
        return TextSource(name, read, column)
    a, b, c = source('a', []), source('b', [(0., 1., 'words')]), source('c', [(0., 1., 'other')])
    s, t = source('s', [], 'screen'), source('t', [(1., 2., 'sign')], 'screen')
    assert video_texts('v', [a, s, b, c, t]) == dict(text=('b', b.read('v')), screen=('t', t.read('v')))
    assert asked[:4] == ['a', 's', 'b', 't']
    assert video_texts('v', [a]) == dict(text=('', []))
    clips = cut_clips('v', [0, 1.2, 3], [], 'b', b.read('v'), t.read('v'))
    assert [(o.text, o.source, o.screen) for o in clips] == [('words', 'b', []), ('', '', [(1., 2., 'sign')])]


def test_a_column_that_is_called_screen_is_refused(tmp_path):
    write_video(tmp_path/'a.mp4', np.zeros((5, 16, 16, 3), np.uint8), np.arange(5)/5)
    (tmp_path/'list.csv').write_text('path,screen\na.mp4,yes\n')
    with pytest.raises(ValueError, match="'screen' would get another meaning"):
        extract(tmp_path/'list.csv', tmp_path/'out', ['picture'])


@needs('ocr', 'rapidocr', 'onnxruntime')
def test_text_on_the_screen_of_videos_in_a_table_is_a_modality(tmp_path, monkeypatch):
    monkeypatch.setenv('HICCAP_CACHE', str(tmp_path/'cache'))
    for name, words in dict(a='a cat on a shelf', b='', c='it falls off').items():
        write_video(tmp_path/f'{name}.mp4', [screen_with(words)]*2, range(2), fps=1)
    (tmp_path/'clips.csv').write_text('id,path,funny\na,a.mp4,1\nb,b.mp4,0\nc,c.mp4,1\n')
    clips = Clips(str(tmp_path/'clips.csv'), labels=('funny',), video_column='path', texts=('seen=screen',),
                  extraction=dict(name='offline', text='ocr'))
    clips = extracted_clips(clips, log=lambda line: None)
    ds = read_clips(clips, clips.data, get_tokenizer('minilm'))
    assert [get_tokenizer('minilm').decode(c.seen, skip_special_tokens=True) if c.seen is not None else ''
            for c in ds] == ['a cat on a shelf', '', 'it falls off']
    with pytest.raises(DataError, match="no column 'scren'"):
        read_clips(replace(clips, texts=('seen=scren',)), clips.data, get_tokenizer('minilm'))
