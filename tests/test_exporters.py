"""Prediction records in the formats of Label Studio and FiftyOne, as their documentation describes them."""
import json
import sys
import types
import xml.etree.ElementTree as ET
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, strategies as st

from hiccap.basics import digest
from hiccap.exporters import (fiftyone_samples, file_frames, label_studio_config, label_studio_tasks, moment_label,
                              segment_label, span_frames, to_fiftyone)

RATES = st.sampled_from([10., 24000/1001, 25., 30000/1001, 60.])
NAMES = st.text(st.characters(codec='utf-8', exclude_categories=['Cc', 'Cs']), min_size=1, max_size=8)


@given(start=st.floats(0, 1e6), length=st.floats(0, 1e5), rate=RATES)
def test_frames_are_those_that_are_shown_during_the_span(start, length, rate):
    first, last = span_frames(start, start + length, rate)
    shown = 1000/rate  # frame n is shown from (n - 1)*shown to n*shown
    assert 1 <= first <= last
    assert (first - 1)*shown <= start + .01 and last*shown >= start + length - .01
    assert first*shown >= start - .01 and (length < .01 or (last - 1)*shown <= start + length + .01)


@given(n=st.integers(0, 10_000), k=st.integers(1, 500), rate=RATES)
def test_a_span_of_whole_frames_has_exactly_these(n, k, rate):
    assert span_frames(n*1000/rate, (n + k)*1000/rate, rate) == (n + 1, n + k)


def answer(classes, chosen, moments=None):
    p = [.1]*len(classes)
    p[chosen] = 1 - .1*(len(classes) - 1)
    return {'classes': classes, 'probabilities': p, 'class': classes[chosen], 'threshold': .5, 'decision': None,
            'explained': classes[chosen] if moments else None, 'without_top_moments': None, 'moments': moments}


def number(value, moments=None): return dict(value=value, without_top_moments=None, moments=moments)


def moment(modality, start, end, contribution, words=None):
    return dict(modality=modality, first=0, end=1, start_ms=start, end_ms=end, words=words, contribution=contribution)


def record(clip, file, start=0, end=4000, **tasks):
    return dict(schema='hiccap.prediction/1', clip=clip, video=clip, file=file, file_digest=None, start_ms=start,
                end_ms=end, model='feed', recipe=None, modalities={}, tasks=tasks)


def check_label_studio(tasks, config):
    "What the documentation of Label Studio asks of tasks with predictions, and of results of these controls"
    json.dumps(tasks, allow_nan=False)
    root = ET.fromstring(config)
    controls = {o.get('name'): o for o in root.iter() if o.get('toName')}
    ids = [o['id'] for t in tasks for p in t['predictions'] for o in p['result']]
    assert len(set(ids)) == len(ids)
    video = root.find('Video')
    for t in tasks:
        assert set(t) == {'data', 'predictions'} and video.get('value') == '$video' and t['data']['video']
        assert video.get('frameRate') == '$fps' and t['data']['fps'] > 0
        for p in t['predictions']:
            assert p['model_version'] and 0 <= p.get('score', 0) <= 1
            for o in p['result']:
                control = controls[o['from_name']]
                assert o['to_name'] == control.get('toName') == video.get('name')
                assert o['type'] == control.tag.lower() and 0 <= o.get('score', 0) <= 1
                check_value(o['value'], control)


def check_value(value, control):
    offered = {o.get('value') for o in control}
    if control.tag == 'Number': assert set(value) == {'number'} and isinstance(value['number'], float)
    elif control.tag == 'Choices': assert set(value) == {'choices'} and set(value['choices']) <= offered
    else:
        assert control.tag == 'TimelineLabels' and set(value) == {'ranges', 'timelinelabels'}
        assert len(value['ranges']) == 1 and set(value['timelinelabels']) <= offered
        assert 1 <= value['ranges'][0]['start'] <= value['ranges'][0]['end']


MOMENTS = st.lists(st.builds(
    moment, st.sampled_from(['text', 'video']), st.one_of(st.none(), st.integers(0, 3000)), st.just(4000),
    st.floats(-3, 3), st.one_of(st.none(), NAMES)), max_size=4)


@st.composite
def some_records(draw):
    tasks = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    kinds = [draw(st.one_of(st.none(), st.lists(NAMES, min_size=2, max_size=4, unique=True))) for _ in tasks]
    def one(i):
        found = {}
        for name, classes in zip(tasks, kinds):
            moments = [m if m['start_ms'] is not None else m | dict(end_ms=None) for m in draw(MOMENTS)]
            found[name] = number(draw(st.floats(-5, 5)), moments) if classes is None else \
                answer(classes, draw(st.integers(0, len(classes) - 1)), moments)
        r = record(f'clip {i}', draw(st.sampled_from(['a.mp4', 'b "ü".mp4'])), i*1000, i*1000 + 900)
        return r | dict(tasks=found)
    return [one(i) for i in range(draw(st.integers(1, 4)))]


@given(some_records())
def test_every_result_has_a_control_and_every_label_is_offered(records):
    tasks, config = label_studio_tasks(records), label_studio_config(records)
    check_label_studio(tasks, config)
    assert sorted(c for t in tasks for c in t['data']['clips']) == sorted(r['clip'] for r in records)
    assert len(tasks) == len({r['file'] for r in records})
    assert json.dumps(tasks) == json.dumps(label_studio_tasks(records))


@given(some_records())
def test_nothing_is_lost(records):
    "Each moment is on the timeline or listed, each answer too, but the first of two classes in a window"
    for t in label_studio_tasks(records, most=99):
        of = [r for r in records if r['clip'] in t['data']['clips']]
        moments = [m for r in of for a in r['tasks'].values() for m in a['moments']]
        results = [o for p in t['predictions'] for o in p['result']]
        marked = [o for o in results if o['type'] == 'timelinelabels'
                  and o['value']['timelinelabels'][0].startswith('moment ')
                  and not o['meta']['text'][0].startswith('clip ')]
        listed = t['data'].get('moments_without_seconds', [])
        assert len(marked) + len(listed) == len(moments)
        assert sum(m['start_ms'] is None for m in moments) == len(listed)
        answers = [a for r in of for a in r['tasks'].values()]
        silent = [a for a in answers if len(of) > 1 and 'value' not in a and len(a['classes']) == 2
                  and a['class'] == a['classes'][0]]
        assert len(results) - len(marked) + len(t['data'].get('numbers', [])) == len(answers) - len(silent)


def test_the_largest_moments_are_marked_and_carry_their_sign():
    moments = [moment('video', 0, 1000, .1), moment('text', 1000, 2000, -.9, 'oh <b>no</b>'),
               moment('audio', 2000, 3000, .5)]
    task = label_studio_tasks([record('a', 'a.mp4', funny=answer(['no', 'yes'], 1, moments))], most=2)[0]
    marked = [o for o in task['predictions'][0]['result'] if o['type'] == 'timelinelabels']
    assert [o['value']['timelinelabels'] for o in marked] == [['moment against funny: yes'], ['moment for funny: yes']]
    assert [o['value']['ranges'] for o in marked] == [[dict(start=26, end=50)], [dict(start=51, end=75)]]
    assert marked[0]['meta']['text'] == ['text, contribution -0.9', 'oh <b>no</b>']
    assert moment_label('mood', number(1.), moments[1]) == 'moment for less: mood'


def test_the_least_certain_video_is_first():
    records = [record('a', 'a.mp4', funny=answer(['no', 'yes'], 1), kind=answer(['x', 'y', 'z'], 0)),
               record('b', 'b.mp4', funny=answer(['no', 'yes'], 0)), record('c', 'c.mp4', mood=number(2.))]
    assert [t['predictions'][0].get('score') for t in label_studio_tasks(records)] == [.8, .9, None]
    windows = [record('d', 'd.mp4', funny=answer(['no', 'yes'], 0)), record('e', 'd.mp4', funny=answer(list('xyz'), 0))]
    assert label_studio_tasks(windows)[0]['predictions'][0]['score'] == .8


def test_an_address_is_what_a_browser_can_load():
    records = [record('a', 'Videos/ü "1" #2.mp4', funny=answer(['no', 'yes'], 1))]
    assert label_studio_tasks(records)[0]['data']['video'] == '/data/local-files/?d=Videos/%C3%BC%20%221%22%20%232.mp4'
    found = label_studio_tasks(records, lambda path: 's3://b/' + path)[0]['data']['video']
    assert found == 's3://b/' + records[0]['file']


@pytest.mark.parametrize('export', [label_studio_tasks, label_studio_config, fiftyone_samples])
def test_a_clip_without_a_video_is_an_error_that_names_it(export):
    with pytest.raises(ValueError, match="clip 'b' names no video file"):
        export([record(clip, file, funny=answer(['no', 'yes'], 1)) for clip, file in (('a', 'a.mp4'), ('b', None))])


@pytest.mark.parametrize('export', [label_studio_tasks, lambda records: fiftyone_samples(records, 25)])
def test_several_clips_of_a_video_must_say_where_they_are(export):
    records = [record(i, 'a.mp4', None, None, funny=answer(['no', 'yes'], 1)) for i in 'ab']
    with pytest.raises(ValueError, match="clip 'a' is one of 2 of a.mp4"): export(records)
    export(records[:1])


# ---- segments that windows found

@st.composite
def segments_of(draw, most=3):
    "Segments of a clip in order, apart from each other"
    at = np.cumsum([draw(st.integers(1, 700)) for _ in range(2*draw(st.integers(0, most)))]).tolist()
    return [dict(start_ms=a, end_ms=b, peak=draw(st.floats(0, 1))) for a, b in zip(at[::2], at[1::2])]


@st.composite
def segmented_records(draw):
    "Records in which windows were asked for: segments of tasks with two classes, one at least, and None for the others"
    out, name, classes = [], draw(NAMES), draw(st.lists(NAMES, min_size=2, max_size=2, unique=True))
    for r in draw(some_records()):
        tasks = r['tasks'] | {name: answer(classes, draw(st.integers(0, 1)), [])}
        def found(a): return draw(segments_of()) if len(a.get('classes', ())) == 2 else None
        out.append(r | dict(tasks={k: a | dict(segments=found(a)) for k, a in tasks.items()}))
    return out


def without_segments(records):
    return [r | dict(tasks={k: {n: v for n, v in a.items() if n != 'segments'} for k, a in r['tasks'].items()})
            for r in records]


def times(first, last, rate):
    "The seconds at which the first and the last frame are half over"
    return (first - .5)/rate, (last - .5)/rate


def check_times(first, last, rate, segment):
    "A segment begins during its first frame and ends during its last, to rounding"
    for t, ms in zip(times(first, last, rate), (segment['start_ms'], segment['end_ms'])):
        assert abs(t - ms/1000) <= .5/rate + 1e-5


@given(records=segmented_records(), fps=RATES)
def test_every_segment_is_a_result_of_label_studio_once(records, fps):
    tasks = label_studio_tasks(records, fps=fps)
    check_label_studio(tasks, label_studio_config(records))
    for t in tasks:
        of = [r for r in records if r['clip'] in t['data']['clips']]
        results = [o for o in t['predictions'][0]['result'] if 'score' in o]
        expected = [(r, task, a, s) for r in of for task, a in r['tasks'].items() for s in a['segments'] or ()]
        assert len(results) == len(expected)
        for o, (r, task, a, s) in zip(results, expected):
            span, = o['value']['ranges']
            assert o['value']['timelinelabels'] == [segment_label(task, a)] and o['score'] == s['peak']
            assert a['classes'][1] in segment_label(task, a) and task in segment_label(task, a)
            check_times(span['start'], span['end'], fps, s)
            note, = o['meta']['text']
            begin = f"clip {r['clip']}, "
            start, end = (float(v) for v in note[len(begin):].partition(' s,')[0].split(' to '))
            assert note.startswith(begin) and (start, end) == (s['start_ms']/1000, s['end_ms']/1000)


@given(records=segmented_records(), rate=RATES)
def test_every_segment_is_a_detection_of_fiftyone_once(records, rate):
    samples = fiftyone_samples(records, rate, frame_counts={'a.mp4': 99_999, 'b "ü".mp4': 99_999})
    names = list(dict.fromkeys(k for s in fiftyone_samples(without_segments(records), rate) for k in s))
    for sample in samples:
        of = [r for r in records if r['file'] == sample['filepath']]
        fields = {k: v for k, v in sample.items() if k.endswith('_segments') and k not in names}
        looked = [k for k, a in of[0]['tasks'].items() if a['segments'] is not None]
        assert len(fields) == len(looked)
        for field, task in zip(fields.values(), looked):
            expected = [(r['clip'], r['tasks'][task], s) for r in of for s in r['tasks'][task]['segments']]
            assert field['_cls'] == 'TemporalDetections' and len(field['detections']) == len(expected)
            for o, (clip, a, s) in zip(field['detections'], expected):
                assert (o['clip'], o['label'], o['confidence']) == (clip, a['classes'][1], s['peak'])
                assert (o['start_s'], o['end_s']) == (s['start_ms']/1000, s['end_ms']/1000)
                check_times(*o['support'], rate, s)


@given(records=segmented_records())
def test_segments_change_nothing_else(records):
    plain = without_segments(records)
    for with_them, without in zip(label_studio_tasks(records), label_studio_tasks(plain), strict=True):
        prediction = with_them['predictions'][0]
        prediction['result'] = [o for o in prediction['result'] if 'score' not in o]
        assert with_them == without
    counts = {'a.mp4': 99_999, 'b "ü".mp4': 99_999}
    samples = [fiftyone_samples(o, 25, frame_counts=counts) for o in (records, plain)]
    for with_them, without in zip(*samples, strict=True):
        assert {k: v for k, v in with_them.items() if k in without} == without


def test_records_without_segments_are_exported_as_before():
    "The digests are those of the version that knew no segments"
    moments = [moment('video', 0, 1000, .1), moment('text', 1000, 2000, -.9, 'oh'),
               moment('text', None, None, .2, 'ha')]
    records = [record('a', 'a.mp4', funny=answer(['no', 'yes'], 1, moments), mood=number(2., moments[:1])),
               *(record(f'b{i}', 'b.mp4', 1000*i, 1000*i + 900, funny=answer(['no', 'yes'], i), mood=number(i - .5))
                 for i in range(2))]
    samples = fiftyone_samples(records, 25, frame_counts={'a.mp4': 100, 'b.mp4': 49})
    found = [json.dumps(o).encode() for o in (label_studio_tasks(records), label_studio_config(records), samples)]
    assert [digest(o) for o in found] == ['117e767f7a817cd1', '50e69ddd0ccbc7bb', 'fb7316e87790932c']


class Label:
    def __init__(self, **kwargs): self.given = kwargs


class Classification(Label):
    def __init__(self, label=None, confidence=None, logits=None): super().__init__(label=label, confidence=confidence)


class TemporalDetection(Label):  # FiftyOne: `support` is [first, last], inclusive and from 1; labels take own fields
    def __init__(self, label=None, support=None, confidence=None, **kwargs):
        assert isinstance(support, list) and len(support) == 2 and 1 <= support[0] <= support[1]
        assert confidence is None or 0 <= confidence <= 1
        super().__init__(label=label, support=support, confidence=confidence, **kwargs)


class TemporalDetections(Label):
    def __init__(self, detections=None):
        assert all(isinstance(o, TemporalDetection) for o in detections)
        super().__init__(detections=detections)


class Sample(Label):
    def __init__(self, filepath, tags=None, metadata=None, **kwargs):
        assert not [k for k in kwargs if not k.isidentifier() or k.startswith('_')]
        super().__init__(filepath=filepath, **kwargs)


@pytest.fixture
def fiftyone(monkeypatch):
    "The constructors that the documentation of FiftyOne describes"
    found = types.ModuleType('fiftyone')
    for cls in (Classification, TemporalDetection, TemporalDetections, Sample): setattr(found, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, 'fiftyone', found)


def plain_of(o):
    if isinstance(o, list): return [plain_of(v) for v in o]
    if not isinstance(o, Label): return o
    name = {} if isinstance(o, Sample) else dict(_cls=type(o).__name__)
    return name | {k: plain_of(v) for k, v in o.given.items() if v is not None}


def test_samples_of_fiftyone_are_the_plain_ones(fiftyone):
    moments = [moment('video', 0, 1000, .1), moment('text', None, None, -.9, 'oh')]
    records = [record('a', 'a.mp4', **{'a task': answer(['no', 'yes'], 1, moments), 'mood': number(2.)}),
               record('b_0', 'b.mp4', 0, 1000, funny=answer(['no', 'yes'], 0), mood=number(1.)),
               record('b_1', 'b.mp4', 1000, 2000, funny=answer(['no', 'yes'], 1), mood=number(3.))]
    known = dict(frame_rate={'a.mp4': 10, 'b.mp4': 25}, frame_counts={'a.mp4': 40, 'b.mp4': 49})
    plain = fiftyone_samples(records, **known)
    assert plain_of(to_fiftyone(records, **known)) == plain
    assert plain[0]['hiccap_a_task'] == dict(_cls='Classification', label='yes', confidence=.9)
    assert [o['support'] for o in plain[0]['hiccap_a_task_moments']['detections']] == [[1, 10]]
    assert [o['support'] for o in plain[1]['hiccap_funny_clips']['detections']] == [[1, 25], [26, 49]]
    assert [o['value'] for o in plain[1]['hiccap_mood_clips']['detections']] == [1., 3.]


@given(records=some_records())
def test_a_field_has_one_type_in_all_samples(records):
    kinds, samples = {}, fiftyone_samples(records, 25)
    answers = [k for o in samples for k in o if k.startswith('hiccap_') and not k.endswith('_moments')]
    assert len(answers) == len(samples)*(len(records[0]['tasks']) + 1)
    for sample in samples:
        for k, v in sample.items():
            kind = v['_cls'] if isinstance(v, dict) else type(v).__name__
            assert kinds.setdefault(k, kind) == kind, k


def test_two_tasks_do_not_share_a_field():
    records = [record('a', 'a.mp4', **{'a b': number(1.), 'a_b': number(2.)})]
    assert [v for k, v in fiftyone_samples(records, 25)[0].items() if k.startswith('hiccap_a_b')] == [1., 2.]
    found = answer(['no', 'yes'], 1, [moment('video', 0, 1000, .1)]) | dict(segments=[])
    for name in ('a_segments', 'a_moments', 'model'):  # that of another field
        for tasks in ({'a': found, name: number(3.)}, {name: number(3.), 'a': found}):
            sample = fiftyone_samples([record('a', 'a.mp4', **tasks)], 25, frame_counts={'a.mp4': 50})[0]
            assert len(sample) == 2 + 1 + 3 and sample['hiccap_model'] == 'feed' and 3. in sample.values()


def test_without_fiftyone_an_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'fiftyone', None)
    with pytest.raises(ImportError, match=r'hiccap\[fiftyone\]'): to_fiftyone([])


@pytest.mark.parametrize('ending, codec', [('mp4', 'mpeg4'), ('webm', 'libvpx')])  # the second does not say its frames
def test_frames_are_those_of_the_file_and_a_span_ends_with_it(tmp_path, ending, codec):
    av = pytest.importorskip('av', reason='PyAV is not installed: pip install "hiccap[video]"')
    path = tmp_path/f'a.{ending}'
    with av.open(str(path), 'w') as out:
        stream = out.add_stream(codec, rate=Fraction(30000, 1001))
        stream.width, stream.height, stream.pix_fmt = 32, 32, 'yuv420p'
        for i in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 40*i, np.uint8))
            for p in stream.encode(frame.reformat(format='yuv420p')): out.mux(p)
        for p in stream.encode(): out.mux(p)
    assert file_frames(path) == (pytest.approx(30000/1001, rel=.01), 6)
    spans = [moment('video', 100, 150, 1.), moment('sound', 150, 1000, .9), moment('sound', 1000, 1500, .8)]
    records = [record('a', str(path), funny=answer(['no', 'yes'], 1, spans))]
    for rate in (None, 30000/1001):  # the number of frames is read from the file in both cases
        found = fiftyone_samples(records, rate)[0]['hiccap_funny_moments']['detections']
        assert [o['support'] for o in found] == [[3, 5], [5, 6], [6, 6]]
    (tmp_path/'b.wav').write_bytes(b'')
    with pytest.raises(ValueError, match='b.wav'): file_frames(tmp_path/'b.wav')
    with pytest.warns(UserWarning, match='frames of gone.mp4 is not known'):
        fiftyone_samples([records[0] | dict(file='gone.mp4')], 25)
