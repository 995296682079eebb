"""Windows and segments: windows cover clips and are what a clip of these seconds is, segments are runs of frames, and
their scores are those of scikit-learn and of every possible matching. The commands find a span that is known."""
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.special import softmax
from sklearn.metrics import average_precision_score

from hiccap.cli import train
from hiccap.clip_places import Place
from hiccap.clips import Clip, ClipDataset, DataError
from hiccap.inference import Trained, load_run
from hiccap.metrics import Thresholds
from hiccap.moments import Speller, clip_inputs, kept_logits
from hiccap.prediction_records import prediction_records, prediction_schema, read_prediction_records
from hiccap.review_page import clip_details
from hiccap.runs import Run
from hiccap.segment_scores import (FRAME, OVERLAPS, ScoredVideo, by_windows, frame_average_precision, intersection,
                                   is_within, joined, matched, overlaps, random_segments, segment_f1, segment_scores,
                                   trivial_segments)
from hiccap.segments import labelled_videos, scored_videos, text_times, window_notes, with_segments
from hiccap.statistics import MIN_CLASS_VIDEOS, score_interval
from hiccap.synthetic import synthetic_tokenizer
from hiccap.tasks import Task
from hiccap.windows import (Windows, WindowScores, cut_clip, known_times, parse_windows, positions_within,
                            score_windows, segments_of, time_range, yes_or_no)
from test_moments import both_kinds

LOUD = Task('loud')
lengths = st.floats(.25, 8)
windows = st.tuples(lengths, st.floats(.05, 1)).map(lambda o: Windows(o[0], o[0]*o[1]))
spans = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=5).map(
    lambda o: joined([(a/4, (a + n)/4) for a, n in o]))


# ---- windows

@given(windows, st.floats(0, 100), st.floats(0, 60))
def test_windows_cover_the_clip_in_order_and_have_one_length(w, start, seconds):
    end = start + seconds
    found = w.spans(start, end)
    assert found[0, 0] == start and found[-1, 1] == end
    if end - start <= w.length: assert len(found) == 1
    else:
        np.testing.assert_allclose(found[:, 1] - found[:, 0], w.length, atol=1e-9)
        steps = np.diff(found[:, 0])
        np.testing.assert_allclose(steps[:-1], w.step, atol=1e-9)
        assert 0 < steps[-1] <= w.step + 1e-6
        assert (found[1:, 0] <= found[:-1, 1] + 1e-9).all()  # no second between two windows


@given(windows, st.lists(st.tuples(st.floats(0, 30), st.sampled_from([0, .04, .5, 3])), min_size=1, max_size=20))
def test_every_position_is_in_a_window_and_only_where_it_shares_time(w, starts):
    times = np.array([(a, a + n) for a, n in starts])
    cut = w.spans(*time_range(dict(face=times)))
    has = np.stack([positions_within(times, a, b, k == len(cut) - 1) for k, (a, b) in enumerate(cut)])
    assert has.any(0).all()
    for row, (a, b) in zip(has, cut):
        shared = np.minimum(times[:, 1], b) - np.maximum(times[:, 0], a)
        assert row[shared > 1e-9].all() and not row[shared < -1e-9].any()
    assert positions_within(times, *time_range(dict(face=times)), True).all()


@pytest.mark.parametrize('text, says', [('x', "'x'"), ('4/', "'4/'"), ('4/1/1', "'4/1/1'"), ('0', 'above 0'),
                                        ('-4', 'above 0'),
                                        ('4/0', 'above 0'), ('4/-1', 'above 0'), ('inf', 'above 0'), ('nan', 'above 0'),
                                        ('1/1.5', 'leave seconds out')])
def test_impossible_windows_say_what_to_write(text, says):
    with pytest.raises(ValueError, match=says) as e: parse_windows(text)
    assert '4/1' in str(e.value) or 'at most the length' in str(e.value)


def test_four_seconds_are_four_every_second_by_default():
    assert parse_windows('4') == parse_windows('4/1') == parse_windows(Windows(4, 1)) == Windows(4)
    with pytest.raises(ValueError, match='give a step of at least'): Windows(1, 1e-4).spans(0, 10)


# ---- their probabilities

def timed_clip(seed=0, id='film', n=8, words=6):
    "A clip of a text and of vectors, a position each half second"
    g = torch.Generator().manual_seed(seed)
    times = torch.arange(float(n))[:, None]*.5 + torch.tensor([0, .5])
    return Clip(id, text=torch.randint(104, 200, (words,), generator=g), face=torch.randn(n, 3, generator=g),
                face_seconds=times)


def answers_of(model):
    def answer(ds):
        out = [model(clip_batch(o, model)) for o in ds]
        return {t.name: np.concatenate([o[t.name].numpy() if t.is_regression else softmax(o[t.name].double().numpy(), 1)
                                        for o in out]) for t in model.tasks}
    return torch.inference_mode()(answer)


def clip_batch(clip, model): return clip_inputs(clip, model)


@pytest.mark.parametrize('word_times', [False, True])
def test_a_window_is_the_clip_whose_other_positions_are_hidden(word_times):
    model, clip = both_kinds(), timed_clip()
    more = dict(text=np.array([[np.nan]*2, [0, 1], [1, 2], [1, 2], [2.5, 3.5], [np.nan]*2])) if word_times else {}
    times = known_times(clip, more)
    found, = score_windows([(clip, times)], Windows(1, .5), answers_of(model), model.tasks)
    assert found.uncut == (() if word_times else ('text',)) and len(found.spans) == 7
    for k, (a, b) in enumerate(found.spans):
        keep = {m: positions_within(times[m], a, b, k == 6)[None] if m in times else np.ones((1, 6), bool)
                for m in ('text', 'face')}
        if word_times: assert keep['text'][0, [0, 5]].all() == keep['text'][0, 1:5].any()
        hidden = kept_logits(model, clip_inputs(clip, model), keep)
        for t in model.tasks:
            expected = hidden[t.name][0] if t.is_regression else softmax(hidden[t.name][0])
            np.testing.assert_allclose(found.probs[t.name][k], expected, atol=1e-5)


def test_a_window_of_the_whole_clip_has_its_own_probability():
    model = both_kinds()
    clips = [timed_clip(k, f'film{k}', 3 + k) for k in range(4)]
    expected = answers_of(model)(ClipDataset.from_clips(clips, ()))
    for w in (Windows(60), Windows(8.5, .1)):
        found = list(score_windows([(o, known_times(o)) for o in clips], w, answers_of(model), model.tasks))
        assert [o.clip for o in found] == [o.id for o in clips] and [len(o.spans) for o in found] == [1]*4
        for k, o in enumerate(found):
            assert o.spans.tolist() == [[0, (3 + k)/2]]
            for t in model.tasks:
                np.testing.assert_allclose(o.probs[t.name][0], expected[t.name][k], atol=1e-6)
                np.testing.assert_allclose(o.whole[t.name], expected[t.name][k], atol=1e-6)
            if expected['a'][k, 1] >= .5: assert o.segments('a') == segments_of([0, (3 + k)/2], o.probs['a'][:, 1], .5)
            else: assert o.segments('a') == []
            assert [t.name for t in yes_or_no(o.tasks)] == ['a']
            with pytest.raises(ValueError, match='not yes or no'): o.segments('b')


def test_clips_are_predicted_together_and_stay_in_order(monkeypatch):
    monkeypatch.setattr('hiccap.windows.WINDOWS_AT_ONCE', 10)
    model, sizes = both_kinds(), []
    def answer(ds):
        sizes.append(len(ds))
        return answers_of(model)(ds)
    clips = [timed_clip(k, f'film{k}', 3 + 2*k) for k in range(5)]
    found = list(score_windows([(o, known_times(o)) for o in clips], Windows(1, .5), answer, model.tasks))
    assert len(sizes) > 1 and sum(sizes) == sum(len(o.spans) + 1 for o in found)
    for clip, o in zip(clips, found):
        alone, = score_windows([(clip, known_times(clip))], Windows(1, .5), answer, model.tasks)
        assert o.clip == clip.id and o.spans[-1, 1] == clip.face_seconds[-1, 1]
        for k in 'abn': np.testing.assert_allclose(o.probs[k], alone.probs[k], atol=1e-6)


def test_a_gap_in_the_features_is_a_clip_without_them():
    model, clip = both_kinds(), timed_clip(n=4)
    clip.face_seconds = clip.face_seconds + torch.tensor([0, 0, 10, 10])[:, None]
    clip = cut_clip(clip, dict(text=np.zeros(6, bool)), 'silent')
    found, = score_windows([(clip, known_times(clip))], Windows(2), answers_of(model), model.tasks)
    empty = answers_of(model)(ClipDataset.from_clips([Clip('none', text=None, face=None)], ()))
    gap = [k for k, (a, b) in enumerate(found.spans) if a >= 1 and b <= 11]
    assert gap and 0 not in gap
    for t in model.tasks:
        np.testing.assert_allclose(found.probs[t.name][gap], np.repeat(empty[t.name], len(gap), 0), atol=1e-6)
        assert not np.allclose(found.probs[t.name][0], empty[t.name][0], atol=1e-6)


def test_features_without_seconds_are_refused_and_texts_are_kept_whole_and_said():
    face = torch.zeros(4, 3)
    with pytest.raises(DataError, match='do not say their seconds') as e:
        known_times(Clip('a', face=face), file='t.csv')
    assert e.value.clip == 'a' and 'a_times.npy' in str(e.value) and '--without face' in str(e.value)
    model, clips = both_kinds(), [timed_clip(), Clip('words', text=[110, 111])]
    found = list(score_windows([(o, known_times(o)) for o in clips], Windows(1), answers_of(model), model.tasks))
    assert found[1].frames('a')[1].shape == (0, 2) and found[1].segments('a') == []
    notes = window_notes(found)
    assert any('text is whole in every window of 1 clip' in o for o in notes)
    assert any('1 clip has nothing with seconds, and so no windows: words' in o for o in notes)
    assert any('no segments of b, n' in o for o in notes)
    trained = Trained(Path('run'), Run(), [model], model.tasks, None, Thresholds({}, 'fixed'))
    for nothing in (clips[1], Clip('none', text=None, face=None)):
        ds = ClipDataset.from_clips([nothing], model.tasks)
        with pytest.raises(DataError, match='nothing has seconds'): trained.segment_clips(ds, '1', {})


def test_a_text_longer_than_the_network_reads_is_cut_and_said():
    clip = timed_clip(words=9)
    asked = []
    def answer(ds):
        asked.extend(len(o.text) for o in ds)
        return dict(loud=np.full((len(ds), 2), .5))
    found, = score_windows([(clip, known_times(clip))], Windows(2), answer, [LOUD], dict(text=4))
    assert set(asked) == {4} and found.shortened == ('text',) and any('longer than' in o for o in window_notes([found]))
    part = cut_clip(clip, {}, 'p', dict(text=4))
    assert part.text.tolist() == clip.text[[0, 1, 2, 8]].tolist()


# ---- segments

scores = st.lists(st.integers(0, 8), max_size=30).map(lambda o: np.array(o)/8)


@given(scores, st.integers(0, 9).map(lambda o: o/8), st.integers(0, 99))
def test_segments_are_the_longest_runs_that_reach_the_threshold(p, threshold, seed):
    edges = np.cumsum(np.random.default_rng(seed).random(len(p) + 1) + .01)
    found = segments_of(edges, p, threshold)
    for a, b in zip(found, found[1:]): assert a.end < b.start
    inside = np.zeros(len(p), bool)
    for o in found:
        rows = (edges[:-1] >= o.start) & (edges[1:] <= o.end)
        assert o.start in edges and o.end in edges and o.end > o.start and not inside[rows].any()
        assert o.peak == p[rows].max() >= threshold
        inside |= rows
    assert (inside == (p >= threshold)).all()
    covered = sum(o.end - o.start for o in segments_of(edges, p, threshold - .125))
    assert covered >= sum(o.end - o.start for o in found) - 1e-9


@given(windows, st.floats(0, 30), st.integers(0, 999))
def test_a_frame_has_the_mean_of_the_windows_over_it(w, seconds, seed):
    cut = w.spans(3, 3 + seconds + .1)
    p = np.random.default_rng(seed).random(len(cut))
    found = WindowScores('c', cut, dict(loud=np.stack([1 - p, p], 1)), {}, (LOUD,))
    edges, mean = found.frames('loud')
    assert edges[0] == pytest.approx(3) and edges[-1] == pytest.approx(3.1 + seconds) and (np.diff(edges) > 0).all()
    for a, b, row in zip(edges, edges[1:], mean):
        over = (cut[:, 0] < (a + b)/2) & (cut[:, 1] > (a + b)/2)
        if b - a > 1e-5: assert row[1] == pytest.approx(p[over].mean())
    if (p > .5).all(): assert len(found.segments('loud', .5)) == 1
    assert found.segments('loud', 1.1) == []


# ---- scores

@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=60))
def test_frame_precision_is_that_of_scikit_learn(rows):
    s, y = np.array([o for o, _ in rows])/5, np.array([o for _, o in rows])
    found, = frame_average_precision(s, y)
    if 0 < y.sum() < len(y): assert found == pytest.approx(average_precision_score(y, s))
    else: assert np.isnan(found)


overlapping = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 8)), max_size=5).map(
    lambda o: np.array([(a/4, (a + n)/4) for a, n in o]).reshape(-1, 2))


@given(overlapping, overlapping, st.sampled_from(OVERLAPS))
def test_as_many_pairs_as_any_matching_has(found, true, least):
    fits = overlaps(found, true) >= least - 1e-9
    small, large = (fits, fits.T) if len(fits) <= len(fits.T) else (fits.T, fits)
    n = max((sum(small[i, j] for i, j in enumerate(order)) for order in
             itertools.permutations(range(len(large.T if small is fits else fits)), len(small))), default=0)
    assert matched(found, true, least) == n
    assert matched([[0, 1.75], [2, 4]], [[0, 4]], .3) == 1  # no overlap is needed for two to fit one


@given(st.lists(st.tuples(spans, spans), min_size=1, max_size=4), st.sampled_from(OVERLAPS), st.randoms())
def test_f1_depends_on_no_order_and_is_one_for_the_truth(videos, least, random):
    found, true = map(list, zip(*videos))
    f1 = segment_f1(found, true, least)
    assert np.isnan(f1) == (not any(map(len, [*found, *true]))) and (np.isnan(f1) or 0 <= f1 <= 1)
    order = random.sample(range(len(videos)), len(videos))
    turned = [[o[::-1] for o in (side[k] for k in order)] for side in (found, true)]
    np.testing.assert_equal(segment_f1(*turned, least), f1)
    np.testing.assert_equal(segment_f1(true, found, least), f1)
    if any(map(len, true)): assert segment_f1(true, true, least) == 1


@given(spans, spans)
def test_parts_of_spans_are_the_seconds_that_both_have(a, b):
    at = np.arange(0, 20, .25) + .125
    both = intersection(a, b)
    assert (is_within(at, both) == (is_within(at, a) & is_within(at, b))).all()
    assert (both[1:, 0] >= both[:-1, 1]).all()
    assert (is_within(at, joined([*a, *b])) == (is_within(at, a) | is_within(at, b))).all()


def known_video(name, scores, labelled, true, whole=.6):
    edges = np.arange(len(scores) + 1.)
    return ScoredVideo(name, edges, np.array(scores, float), whole, joined(labelled), joined(true))


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=2, max_size=5))
def test_what_says_the_truth_is_perfect_and_nothing_is_scored_without_a_label(truths):
    truths = [*truths, [True, False]*3]
    videos = [known_video(f'v{i}', [.9 if y else .1 for y in o], [(0, 6)], [(k, k + 1) for k, y in enumerate(o) if y])
              for i, o in enumerate(truths)]
    table, _ = segment_scores(videos, .5, np.random.default_rng(0), 2)
    assert (table[table.found_by == 'windows'].value == 1).all()
    cut = [ScoredVideo(o.video, o.edges, np.where(np.arange(6) < 3, o.scores, .99), o.whole,
                       joined([(0, 3)]), o.true) for o in videos]  # wrong where nothing is labelled
    if any(len(o.true) for o in cut) and any(len(o.at) > o.is_yes.sum() for o in cut):
        table, _ = segment_scores(cut, .5, np.random.default_rng(0), 2)
        assert (table[table.found_by == 'windows'].value == 1).all()


def test_baselines_by_hand():
    videos = [known_video('a', [.9, .1, .1, .1], [(0, 4)], [(0, 1)], .7), known_video('b', [.1]*4, [(0, 4)], [], .3)]
    ways = trivial_segments(videos, .5, np.random.default_rng(0), 3)
    assert [o.tolist() for o in ways['all yes'][0].segments] == [[[0, 4]]]*2
    assert [o.tolist() for o in ways['whole clip'][0].segments] == [[[0, 4]], []]
    assert [o.tolist() for o in ways['whole clip'][0].frames] == [[.7]*8, [.3]*8]
    for o in ways['random']:
        assert sum(b - a for s in o.segments for a, b in s) == pytest.approx(1)
    table, notes = segment_scores(videos, .5, np.random.default_rng(0))
    value = table.set_index(['found_by', 'score']).value
    assert value['windows', 'average_precision'] == 1 and value['windows', 'f1_0.7'] == 1
    assert value['all yes', 'average_precision'] == pytest.approx(1/8)
    assert value['whole clip', 'average_precision'] == pytest.approx(1/4)
    assert value['all yes', 'f1_0.3'] == 0 and 'no intervals: 1 video has seconds with yes' in notes[0]
    again, _ = segment_scores(videos, .5, np.random.default_rng(0))
    pd.testing.assert_frame_equal(table, again)
    assert len(videos[0].at) == 4/FRAME


def test_random_segments_keep_their_lengths_and_go_where_there_is_time():
    rng, ranges = np.random.default_rng(0), [(0, 2), (10, 40), (5, 5.5)]
    n = np.zeros(3)
    for _ in range(300):
        found = random_segments([1.5], ranges, rng)
        (v, (a, b)), = [(v, o) for v, of in enumerate(found) for o in of]
        assert b - a == pytest.approx(1.5) and ranges[v][0] <= a and b <= ranges[v][1] + 1e-9
        n[v] += 1
    assert n[2] == 0 and n[1] > 250  # by the time that there is for their start


def test_intervals_are_by_video():
    rng, videos = np.random.default_rng(3), []
    for i in range(24):
        y = rng.random(8) < .4
        videos.append(known_video(f'v{i}', .4*y + .6*rng.random(8), [(0, 8)], [(k, k + 1) for k in np.flatnonzero(y)]))
    table, notes = segment_scores(videos, .5, np.random.default_rng(0))
    own = table[table.found_by == 'windows'].set_index('score')
    assert (own.low < own.value).all() and (own.value < own.high).all() and not notes
    frames = [by_windows([o], .5).frames[0] for o in videos]
    def precision(rows): return average_precision_score(np.concatenate([videos[k].is_yes for k in rows]),
                                                        np.concatenate([frames[k] for k in rows]))
    left = [precision([j for j in range(24) if j != k]) for k in range(24)]
    expected, _ = score_interval(precision(range(24)), left)
    np.testing.assert_allclose((own.low.average_precision, own.high.average_precision), expected, atol=1e-6)
    few, _ = segment_scores(videos[:6], .5, np.random.default_rng(0))
    assert few[few.found_by == 'windows'].low.notna().all() and few.gain_low.isna().all()  # too few for a difference
    empty = [known_video(f'w{i}', rng.random(8), [(0, 8)], []) for i in range(22)]
    rare, why = segment_scores([*videos[:MIN_CLASS_VIDEOS - 1], *empty], .5, np.random.default_rng(0))
    assert rare.low.isna().all() and rare.gain_low.isna().all() and why[0].startswith('no intervals: ')


# ---- videos that are labelled in parts

def write_videos(folder, n, seed, noise=.2, some=(0, 2, 4, 6, 8)):
    "Videos of ten seconds, a row each second, and a table that labels every two of them: what is loud"
    rng, rows, loud = np.random.default_rng(seed), [], {}
    (folder/'sound').mkdir(parents=True)
    for v in range(n):
        name = f'film{seed}{v:02d}'
        loud[name] = rng.integers(0, 2, 5)
        x = np.repeat(loud[name], 2)[:, None] + rng.normal(0, noise, (10, 3))
        np.save(folder/f'sound/{name}.npy', x.astype('f4'))
        np.save(folder/f'sound/{name}_times.npy', (np.arange(10)[:, None] + [0, 1]).astype('f4'))
        rows += [f"{name}_{a//2},{name},{a},{a + 2},{('quiet', 'loud')[loud[name][a//2]]}" for a in some]
    (folder/'parts.csv').write_text('\n'.join(['id,video,start,end,label', *rows]))
    return loud


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run that learned from parts of videos; new parts; and one loud span in each of some whole videos"
    folder = tmp_path_factory.mktemp('windows')
    for name, n, seed in (('seen', 30, 0), ('new', 24, 1)): write_videos(folder/name, n, seed)
    rng = np.random.default_rng(2)
    (folder/'whole/sound').mkdir(parents=True)
    rows = []
    for v in range(6):
        at = int(rng.integers(0, 27))
        x = rng.normal(0, .2, (30, 3))
        x[at:at + 3] += 1
        np.save(folder/f'whole/sound/w{v}.npy', x.astype('f4'))
        np.save(folder/f'whole/sound/w{v}_times.npy', (np.arange(30)[:, None] + [0, 1]).astype('f4'))
        rows.append((f'w{v}', at))
    (folder/'whole/clips.csv').write_text('\n'.join(['id', *(o for o, _ in rows)]))
    sound = dict(kind='features', width=3, hidden=8, layers=1)
    settings = Run.flat(config=dict(width=16, heads=2, head_widths=[16], modalities=dict(sound=sound))).network.config
    said = ['--set', *(f'{k}={json.dumps(v)}' for k, v in settings.items())]
    status = train([str(o) for o in (
        folder/'seen/parts.csv', '--labels', 'label:quiet,loud', '--group', 'video', '--seconds', 'start', 'end',
        '--features', f"sound={folder/'seen/sound'}", '--epochs', '8', '--bs', '8', '--lr', '.01', '--threads', '1',
        '--simple-models', 'frozen', *said, '--out', folder/'run')])
    assert status == 0
    return folder, dict(rows)


def test_the_command_finds_the_span_that_is_known(run, typed, tmp_path):
    folder, known = run
    features = ['--features', f"sound={folder/'whole/sound'}"]
    status, out, err = typed('predict', folder/'run', folder/'whole/clips.csv', *features, '--seconds', '--windows',
                             '2/1', '--json', tmp_path/'out.jsonl', '--out', tmp_path/'out.csv', '--html',
                             tmp_path/'page')
    assert status == 0, err
    records = read_prediction_records(tmp_path/'out.jsonl')
    assert [o['clip'] for o in records] == list(known)
    table = pd.read_csv(tmp_path/'out_segments.csv')
    for o in records:
        of, at = o['tasks']['label'], known[o['clip']]
        assert o['windows']['spans'] == [[1000*k, 1000*k + 2000] for k in range(29)] and len(of['windows']) == 29
        first = max(of['segments'], key=lambda s: s['peak'])
        assert first['start_ms'] <= 1000 * at + 1 and first['end_ms'] >= 1000 * (at + 3) - 1, (
            o['clip'], at, of['segments'])
        assert first['end_ms'] - first['start_ms'] <= 5000  # and not much else
        rows = table[table['clip'] == o['clip']]
        assert (1000*rows.start).round().tolist() == [s['start_ms'] for s in of['segments']]
        assert (rows.answer == 'loud').all() and (1000 * rows.end).round().tolist() == [
            s['end_ms'] for s in of['segments']]
    assert 'segments' in (tmp_path/'page/clips/0.js').read_text()
    same = load_run(folder / 'run').segments(
        folder / 'whole/clips.csv', '2/1', [f"sound={folder/'whole/sound'}"], seconds=())
    for o, r in zip(same, records):
        np.testing.assert_allclose(o.probs['label'], r['tasks']['label']['windows'], atol=1e-5)


def test_records_with_windows_follow_the_schema_and_those_without_still_do(run):
    jsonschema = pytest.importorskip('jsonschema', reason='jsonschema is not installed')
    check = jsonschema.Draft202012Validator(prediction_schema()).validate
    clip, model = timed_clip(), both_kinds()
    trained = Trained(Path('run'), Run(), [model], model.tasks, None, Thresholds(dict(a=.4), 'fixed'))
    ds = ClipDataset.from_clips([clip, Clip('words', text=[110])], model.tasks)
    before = prediction_records(trained, ds)
    found = trained.segment_clips(ds, '1/.5', {})
    after = with_segments(before, found, Windows(1, .5))
    for o in (*before, *after): check(json.loads(json.dumps(o)))
    assert after[1]['windows']['spans'] == [] and after[0]['windows']['uncut'] == ['text']
    assert after[0]['tasks']['b']['segments'] is None and after[0]['tasks']['a']['segments'] is not None
    assert 'windows' not in before[0] and clip_details(before[0])['segments'] is None
    assert len(clip_details(after[0])['segments']) == 3
    wrong = json.loads(json.dumps(after[0]))
    wrong['tasks']['a']['segments'] = [dict(start_ms=0, end_ms=1)]
    with pytest.raises(jsonschema.ValidationError): check(wrong)


def test_an_evaluation_scores_segments_next_to_trivial_baselines(run, typed, tmp_path):
    folder, _ = run
    args = folder/'run', folder/'new/parts.csv', '--features', f"sound={folder/'new/sound'}"
    status, out, err = typed('evaluate', *args, '--windows', '2/1', '--out', tmp_path/'scored')
    assert status == 0, err
    value = pd.read_csv(tmp_path/'scored/segment_scores.csv').set_index(['found_by', 'score'])
    assert set(value.index.get_level_values(0)) == {'windows', 'all yes', 'whole clip', 'random'}
    assert value.value['windows', 'average_precision'] > .95 and value.value['windows', 'f1_0.5'] > .9
    share = (pd.read_csv(folder/'new/parts.csv').label == 'loud').mean()
    assert value.value['all yes', 'average_precision'] == pytest.approx(share)
    assert abs(value.value['random', 'average_precision'] - share) < .15
    for o in ('all yes', 'whole clip', 'random'): assert value.gain_low[o, 'average_precision'] > 0
    report = (tmp_path/'scored/report.md').read_text()
    assert '## Segments' in report and 'F1 at IoU 0.5' in report and '| whole clip |' in report
    found = pd.read_csv(tmp_path/'scored/segments.csv')
    assert set(found['clip']) <= {f'film1{v:02d}' for v in range(24)} and (found.start < found.end).all()
    typed('evaluate', *args, '--windows', '2/1', '--out', tmp_path/'again')
    again = (tmp_path/'again/segment_scores.csv').read_text()
    assert (tmp_path/'scored/segment_scores.csv').read_text() == again


@pytest.mark.parametrize('name, more, says', [
    ('predict', ['--windows', '4/0'], 'above 0'),
    ('predict', ['--windows', '4/5', '--out', 'x.csv'], 'leave seconds out'),
    ('predict', ['--windows', '4'], 'give one of them'), ('evaluate', ['--windows', 'x'], 'where with --out'),
    ('evaluate', ['--windows', 'x', '--out', 'scored'], "windows are 'x'")])
def test_options_that_cannot_be(run, typed, tmp_path, monkeypatch, name, more, says):
    monkeypatch.chdir(tmp_path)
    folder, _ = run
    status, _, err = typed(
        name, folder / 'run', folder / 'new/parts.csv', '--features', f"sound={folder/'new/sound'}", *more)
    assert status == 2 and says in err and not list(tmp_path.iterdir())


def test_a_table_of_segments_is_not_replaced(run, typed, tmp_path):
    folder, _ = run
    (tmp_path/'out_segments.csv').write_text('mine')
    status, _, err = typed('predict', folder/'run', folder/'new/parts.csv', '--features', f"sound={folder/'new/sound'}",
                           '--windows', '1', '--out', tmp_path/'out.csv')
    assert status == 2 and 'out_segments.csv exists' in err and (tmp_path/'out_segments.csv').read_text() == 'mine'


@pytest.mark.parametrize('old, new, says', [
    ('film100_4,film100,8,10', 'film100_4,film100,8,18',
     "its label is from 8 to 18 s, and what is known of video 'film100'"),
    ('film100_4,film100,8,10', 'film100_4,film100,28,30', 'its label is from 28 to 30 s'),
    ('film100_4,film100,8,10', 'film100_4,film100,9,8', 'ends after it begins')])
def test_labels_outside_of_their_video_name_the_row(run, typed, tmp_path, old, new, says):
    folder, _ = run
    text = (folder/'new/parts.csv').read_text()
    assert old in text
    (tmp_path/'parts.csv').write_text(text.replace(old, new))
    status, _, err = typed('evaluate', folder/'run', tmp_path/'parts.csv', '--features', f"sound={folder/'new/sound'}",
                           '--windows', '2', '--out', tmp_path/'scored')
    assert status == 2 and says in err and "clip 'film100_4'" in err and not (tmp_path/'scored').exists()


def test_a_table_without_times_has_no_segments_to_score(run, typed, tmp_path):
    folder, known = run
    (tmp_path/'clips.csv').write_text('\n'.join(['id,video,label', *(f'{o},{o},loud' for o in known)]))
    status, _, err = typed('evaluate', folder / 'run', tmp_path / 'clips.csv', '--features',
                           f"sound={folder/'whole/sound'}", '--seconds', '--windows', '2', '--out', tmp_path / 'scored')
    assert status == 2 and "clip 'w0'" in err and 'clips.csv' in err and '--seconds start end' in err


@given(st.lists(st.sampled_from([.5, 1, 1.5, 2.5, 4]), min_size=1, max_size=5), st.integers(0, 99))
def test_parts_put_together_are_the_video(sizes, seed):
    tokenizer, rng = synthetic_tokenizer(), np.random.default_rng(seed)
    ends = np.cumsum(sizes)
    times = np.arange(0, ends[-1], .8)[:, None] + [0, .8]
    face = torch.as_tensor(rng.normal(size=(len(times), 2))).float()
    whole = Clip('film', face=face, face_seconds=times)
    clips, places, words = [], {}, []
    for k, (a, b) in enumerate(zip([0, *ends], ends)):
        keep = (times[:, 0] < b) & (times[:, 1] > a)
        part = cut_clip(whole, dict(face=keep), f'film_{k}')
        words.append(['silly', 'dog', 'king'][k % 3])
        clips.append(
            Clip(part.id, text=tokenizer(words[-1])['input_ids'], face=part.face, face_seconds=part.face_seconds))
        places[part.id] = Place(start=a, end=b)
    order = rng.permutation(len(clips))
    ds = ClipDataset.from_clips([clips[k] for k in order], (), ['film']*len(clips))
    video, = labelled_videos(ds, places, Speller(tokenizer))
    assert torch.equal(video.clip.face, face) and torch.equal(video.clip.face_seconds, torch.as_tensor(times).float())
    assert video.clip.text.tolist() == tokenizer(' '.join(words))['input_ids']
    assert video.times['text'][1:-1].tolist() == [[a, b] for a, b in zip([0, *ends], ends)]
    assert video.seconds.tolist() == [[a, b] for a, b in zip([0, *ends], ends)]
    assert [ds.ids[i] for i in video.rows] == [o.id for o in clips]


def test_a_second_is_yes_if_a_row_says_so_and_unknown_without_a_label():
    places = {'v_1': Place(start=0, end=4), 'v_2': Place(start=2, end=3), 'v_3': Place(start=4, end=6)}
    clips = [
        Clip(k, face=torch.ones(int(o.end - o.start), 2), labels=dict() if k == 'v_3' else dict(loud=int(k == 'v_2')),
             face_seconds=torch.arange(o.start, o.end)[:, None] + torch.tensor([0.0, 1.0]))
        for k, o in places.items()
    ]
    ds = ClipDataset.from_clips(clips, [LOUD], ['v']*3)
    videos = labelled_videos(ds, places)
    found = [
        WindowScores(
            'v', np.array([[0, 6]]), dict(loud=np.array([[0.3, 0.7]])), dict(loud=np.array([0.4, 0.6])), (LOUD,))
    ]
    scored, = scored_videos(videos, found, ds.labels, LOUD)
    assert scored.true.tolist() == [[2, 3]] and scored.labelled.tolist() == [[0, 4]] and scored.whole == .6
    assert scored.is_yes.sum() == 1/FRAME and len(scored.at) == 4/FRAME
    assert by_windows([scored], .5).segments[0].tolist() == [[0, 4]]


def test_words_are_in_the_windows_of_their_captions():
    tokenizer = synthetic_tokenizer()
    ids = tokenizer('the silly dog and king')['input_ids']
    clip = Clip('film', text=ids, face=torch.zeros(8, 3), face_seconds=timed_clip().face_seconds)
    place = Place(cues=dict(text=[(0., 2., 'the silly dog'), (2., 4., 'and king')]))
    times = known_times(clip, text_times(clip, place, Speller(tokenizer)))
    seen = []
    def answer(ds):
        seen.extend(Speller(tokenizer).words(o.text) for o in ds)
        return dict(loud=np.full((len(ds), 2), .5))
    found, = score_windows([(clip, times)], Windows(2), answer, [LOUD])
    said = [' '.join(w for _, w in o) for o in seen]
    assert said[0] == 'the silly dog and king' and said[1] == 'the silly dog' and said[-1] == 'and king'
    assert set(said[2:-1]) == {'the silly dog and king'} and found.uncut == ()
    assert text_times(clip, Place(cues=dict(text=[(0., 2., 'other words')])), Speller(tokenizer)) == {}


def test_a_run_without_a_task_of_two_classes_has_no_segments_to_score():
    clip = Clip('v_1', face=torch.ones(2, 2), face_seconds=[[0., 1.], [1., 2.]])
    ds, places = ClipDataset.from_clips([clip], (), ['v']), {'v_1': Place(start=0, end=2)}
    for tasks in ([Task('mood', 3)], [Task('n', kind='regression')], []):
        with pytest.raises(DataError, match='Leave --windows out'): labelled_videos(ds, places, tasks=tasks)
    assert len(labelled_videos(ds, places, tasks=[Task('mood', 3), LOUD])) == 1
