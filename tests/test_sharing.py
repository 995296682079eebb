"""A run that is saved for other people: the same predictions in a new process, nothing that could be executed, no path
or clip of the one who trained it, and a folder that was changed, or comes from a newer version, is refused."""
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

import hiccap.sharing
from conftest import TINY_NETWORK
from hiccap.basics import seal
from hiccap.cli import predict, train
from hiccap.file_index import INDEX, check_index, write_index
from hiccap.inference import load_run
from hiccap.model_cards import model_card, not_shown_better, public_name
from hiccap.runs import Run
from hiccap.seen import SEEN, VIDEOS, read_records, shared_records
from hiccap.sharing import CARD, Trained, find_pretrained, public_recipe, public_run
from hiccap.synthetic import synthetic_clips, write_synthetic

SHAPE = {**TINY_NETWORK, 'text': dict(kind='tokens', config=dict(TINY_NETWORK['text']['config'], vocab_size=512))}
NET = ['--set', *(f'{k}={json.dumps(v)}' for k, v in SHAPE.items()), '--threads', '1', '--epochs', '1']
KINDS = 'one', 'folds', 'numbers'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('private data')/'synthetic'
    write_synthetic(synthetic_clips(n=90, scale=.1), folder)
    rows = (folder/'clips.csv').read_text().splitlines()
    lines = [f'{rows[0]},stars', *(f'{o},{i % 5 - 2}' for i, o in enumerate(rows[1:]))]
    (folder/'clips.csv').write_text('\n'.join(lines) + '\n')
    return folder


@pytest.fixture(scope='module')
def runs(data, tmp_path_factory):
    "Three runs: one network that was calibrated, three folds, and a task of numbers"
    at = tmp_path_factory.mktemp('private runs')
    more = dict(one=['--labels', 'said', 'together'], folds=['--labels', 'said', '--folds', '3'],
                numbers=['--labels', 'said', 'stars:regression:-2..2'])
    for kind, args in more.items():
        args = [data/'clips.csv', '--features', data/'features', '--tokenizer', data/'tokenizer', '--out', at/kind,
                *args, *NET]
        assert train(list(map(str, args))) == 0
    clips = synthetic_clips(n=200, scale=.1, seed=7)
    load_run(at/'one').calibrate(clips, .55, .5, .6, data=data/'other clips.csv')
    return at


@pytest.fixture(scope='module')
def shared(runs, tmp_path_factory):
    at = tmp_path_factory.mktemp('shared')
    for kind in KINDS: load_run(runs/kind).save_pretrained(at/kind)
    return at


def files_of(folder): return sorted(p for p in folder.rglob('*') if p.is_file())


PREDICT = """
import sys
from hiccap.sharing import Trained
data, *folders = sys.argv[1:]
for folder in folders:
    trained = Trained.from_pretrained(folder)
    trained.predict(data + '/clips.csv', features=data + '/features').to_csv(folder + '.csv', index=False)
    probs = trained.answer(trained.read(data + '/clips.csv', data + '/features', labelled=False))[0]
    with open(folder + '.bin', 'wb') as f:
        for k, p in probs.items(): f.write(p.tobytes())
    decided = trained.decide(probs) or {}
    with open(folder + '.txt', 'w') as f: print({k: v.tolist() for k, v in decided.items()}, file=f)
"""


def test_a_new_process_predicts_the_same_bytes(runs, shared, data):
    folders = [at/kind for at in (runs, shared) for kind in KINDS]
    subprocess.run([sys.executable, '-W', 'error::UserWarning:hiccap', '-c', PREDICT, data, *folders], check=True)
    for kind in KINDS:
        for end in ('csv', 'bin', 'txt'):
            before, after = ((at/f'{kind}.{end}').read_bytes() for at in (runs, shared))
            assert before == after, (kind, end)
    assert 'review' in (shared/'one.txt').read_text() and (shared/'numbers.bin').stat().st_size > 1000
    assert len({p.read_bytes() for p in shared.glob('*.bin')}) == 3


def test_the_command_takes_a_shared_folder(shared, runs, data, tmp_path):
    for at in (shared, runs):
        args = at/'one', data/'clips.csv', '--features', data/'features', '--out', tmp_path/f'{at.name}.csv'
        assert predict(list(map(str, args))) == 0
    one, other = (tmp_path/f'{at.name}.csv' for at in (shared, runs))
    assert one.read_bytes() == other.read_bytes() and b'decision' in one.read_bytes()


@pytest.mark.parametrize('kind', KINDS)
def test_nothing_in_it_can_be_executed(shared, kind):
    for path in files_of(shared/kind):
        first = path.read_bytes()[:2]
        assert first not in (b'PK', b'\x80\x02', b'\x80\x04', b'\x80\x05', b'#!'), path
        if path.suffix == '.json': json.loads(path.read_text(encoding='utf-8'))
        elif path.suffix == '.safetensors':
            with safe_open(path, 'pt') as f: assert len(f.keys())
        else: assert path.name == CARD and yaml.safe_load(path.read_text().split('---')[1])['library_name'] == 'hiccap'
    assert set(check_index(shared/kind)) == {p.relative_to(shared/kind).as_posix() for p in files_of(shared/kind)
                                             if p.name not in (INDEX, CARD)}


@pytest.mark.parametrize('kind', KINDS)
def test_no_path_and_no_clip_of_the_author_is_in_it(shared, runs, data, kind):
    ids = [o.split(',')[0] for o in (data/'clips.csv').read_text().splitlines()[1:]]
    private = [str(data), str(runs), data.parent.name, runs.name, str(Path.home()), os.getcwd()]
    for path in files_of(shared/kind):
        if path.suffix == '.safetensors' or path.name == 'tokenizer.json': continue
        text = path.read_text(encoding='utf-8')
        assert not [o for o in private if o in text], path
        assert not [o for o in ids if f'"{o}"' in text or f'`{o}`' in text], path
    assert not (shared/kind/VIDEOS).exists() and not list((shared/kind).rglob('*.csv'))
    assert 'clips.csv' in (shared/kind/CARD).read_text()
    text = (shared/kind/SEEN).read_text()  # what it has seen, without a name or a key that is the same in other runs
    own, other = (read_records(at/kind) for at in (runs, shared))
    for a, b in zip(own, other, strict=True):
        assert len(a['parts']) == len(b['parts']) > 5 and len(a['keys']) == len(b['keys']) > 50
        assert not [o for o in (*a['parts'], *a['keys'], Path(a['data']).name) if o in text]
        for k in ('parts', 'keys'): assert list(b[k]) == sorted(b[k])  # their order says nothing
    assert f'`{SEEN}` has salted digests' in (shared/kind/CARD).read_text()


def test_two_runs_on_the_same_clips_cannot_be_compared(shared):
    digests = [{k for r in read_records(shared/kind) for of in (r['parts'], r['keys']) for k in of} for kind in KINDS]
    assert all(digests) and len(set().union(*digests)) == sum(map(len, digests))


def test_networks_and_tokenizers_lose_the_path_that_they_are_from(shared, tmp_path):
    trained = load_run(shared/'folds')
    for model in trained.models:
        text = replace(model.config.text, weights='/mnt/me/minilm')
        model.config = replace(model.config, modalities={**model.config.modalities, 'text': text})
        model.tokenizer_name = '/mnt/me/words'
    trained.tokenizer.name_or_path = '/mnt/me/words'
    before = trained.predict(synthetic_clips(n=4, scale=.1)).to_csv()
    folder = trained.save_pretrained(tmp_path/'mine')
    for path in files_of(folder): assert b'/mnt/me' not in path.read_bytes(), path
    again = load_run(folder)
    assert again.models[0].config.text.weights == 'minilm' and again.models[0].tokenizer_name == 'words'
    assert again.predict(synthetic_clips(n=4, scale=.1)).to_csv() == before
    assert trained.models[0].config.text.weights == '/mnt/me/minilm'


def test_the_decisions_name_the_file_that_they_are_from(shared):
    assert load_run(shared/'one').decisions.source.endswith(' clips of other clips.csv')


@pytest.fixture
def copy(shared, tmp_path): return Path(shutil.copytree(shared/'one', tmp_path/'copy'))


def test_every_changed_file_is_refused_by_its_name(copy):
    for name in [*check_index(copy), INDEX]:
        path, whole = copy/name, (copy/name).read_bytes()
        for changed in (whole[:-3], whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]):
            path.write_bytes(changed)
            with pytest.raises(ValueError, match=path.name): Trained.from_pretrained(copy)
        path.unlink()
        with pytest.raises(ValueError, match=f'lacks {name}'): Trained.from_pretrained(copy)
        path.write_bytes(whole)
    (copy/CARD).write_text('# Mine')
    assert Trained.from_pretrained(copy).decisions is not None


def test_a_folder_that_was_saved_by_an_earlier_version_may_lack_an_index(copy, data):
    "It does not say that it has one; then nothing can be checked"
    config = {k: v for k, v in json.loads((copy/'config.json').read_text()).items() if k != 'index'}
    (copy/'config.json').write_text(json.dumps(config))
    (copy/INDEX).unlink()
    assert Trained.from_pretrained(copy).decisions is not None


def test_a_file_that_was_added_is_refused(copy):
    (copy/'tokenizer'/'special_tokens_map.json').write_text('{}')
    with pytest.raises(ValueError, match='tokenizer/special_tokens_map.json'): load_run(copy)
    (copy/'tokenizer'/'special_tokens_map.json').unlink()
    (copy/'model'/'code.py').write_text('1/0')
    with pytest.raises(ValueError, match='model/code.py'): load_run(copy)


def test_a_tokenizer_with_code_is_not_run_even_where_the_digests_agree(copy, monkeypatch):
    asked = []
    monkeypatch.setattr('builtins.input', lambda *args: asked.append(args) or 'y')  # as a person might answer
    at = copy/'tokenizer'/'tokenizer_config.json'
    at.write_text(json.dumps(json.loads(at.read_text()) | dict(
        tokenizer_class='Mine', auto_map=dict(AutoTokenizer=[None, 'evil/code--code.Mine']))))
    write_index(copy)
    with pytest.raises(ValueError, match='code of its own, which is not executed'): load_run(copy)
    assert not asked


def test_a_newer_format_says_what_to_do(copy):
    d = json.loads((copy/INDEX).read_text())
    newer = {k: v for k, v in d.items() if k != 'checksum'} | dict(format=2, hiccap='9.1')
    (copy/INDEX).write_text(json.dumps(seal(newer)))
    with pytest.raises(ValueError, match='hiccap 9.1 in format 2.*pip install --upgrade hiccap'): load_run(copy)


def test_an_index_cannot_name_a_file_outside_or_one_that_runs_code(copy):
    files = json.loads((copy/INDEX).read_text())['files']
    for name, what in (('../secret.json', 'lacks'), ('model/code.py', 'may run code'), ('/etc/a.json', 'lacks')):
        (copy/INDEX).write_text(json.dumps(seal(dict(format=1, hiccap='0', files=files | {name: '0'*64}))))
        with pytest.raises(ValueError, match=what): load_run(copy)


def test_a_name_that_cannot_be_reached_says_which_folder_to_use(shared, data, tmp_path, typed, monkeypatch):
    monkeypatch.setattr(hiccap.sharing.constants, 'HF_HUB_CACHE', str(tmp_path))
    status, _, err = typed('predict', 'owner/comedy', data/'clips.csv')
    assert status == 2 and 'HF_HUB_OFFLINE=1' in err and 'hf download owner/comedy --local-dir' in err, err
    cached = tmp_path/'models--owner--comedy'/'snapshots'
    shutil.copytree(shared/'one', cached/'abc')
    (cached/'cut').mkdir()
    (cached/'cut'/INDEX).write_text('{')
    status, _, err = typed('predict', 'owner/comedy', data/'clips.csv')
    assert status == 2 and str(cached/'abc') in err and str(cached/'cut') not in err, err
    for name in ('comedy', './owner/comedy', 'a/b/c', str(tmp_path/'none')):
        status, _, err = typed('predict', name, data/'clips.csv')
        assert status == 2 and 'does not exist' in err and 'Hub' not in err


def test_what_was_downloaded_is_loaded_without_a_network(shared, data, tmp_path, typed, monkeypatch):
    repo, commit = tmp_path/'models--owner--comedy', 'a1'*20
    shutil.copytree(shared/'one', repo/'snapshots'/commit)
    (repo/'refs').mkdir()
    (repo/'refs'/'main').write_text(commit)
    for how in (dict(), dict(revision=commit), dict(revision='main', local_files_only=True)):
        found = Trained.from_pretrained('owner/comedy', cache_dir=tmp_path, **how)
        assert found.folder == repo/'snapshots'/commit and found.name == 'one'
    with pytest.raises(ValueError, match=f'at revision v2.*downloaded before: .*{commit}'):
        Trained.from_pretrained('owner/comedy', 'v2', cache_dir=tmp_path)
    (repo/'snapshots'/commit/'metrics.json').write_text('{}')
    with pytest.raises(ValueError, match='metrics.json does not agree'):
        Trained.from_pretrained('owner/comedy', cache_dir=tmp_path)


def test_a_name_of_the_hub_is_downloaded_at_one_revision(shared, monkeypatch):
    asked = []
    def download(name, **kwargs):
        asked.append((name, kwargs))
        return str(shared/'folds')
    monkeypatch.setattr(hiccap.sharing, 'snapshot_download', download)
    found = Trained.from_pretrained('owner/comedy', revision='v1', token='t', cache_dir='c', force_download=True,
                                    local_files_only=False)
    assert len(found.models) == 3
    assert asked == [('owner/comedy', dict(revision='v1', token='t', cache_dir='c', force_download=True,
                                           local_files_only=False, library_name='hiccap'))]
    assert find_pretrained(shared/'one') == shared/'one' and len(asked) == 1


def test_a_full_disk_is_not_called_a_network_that_cannot_be_reached(monkeypatch):
    def download(name, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(hiccap.sharing, 'snapshot_download', download)
    with pytest.raises(OSError, match='No space'): find_pretrained('owner/comedy')


class FakeHub:
    told = []

    def __init__(self, token=None, library_name=None): self.told.append(('token', token))

    def create_repo(self, name, private=None, exist_ok=False):
        self.told.append(('create_repo', name, private, exist_ok))
        return type('RepoUrl', (), dict(repo_id=name if '/' in name else f'me/{name}'))

    def create_branch(self, name, branch=None, exist_ok=False): self.told.append(('create_branch', name, branch))

    def upload_folder(self, repo_id, folder_path, commit_message, revision, create_pr, delete_patterns):
        names = [p.relative_to(folder_path).as_posix() for p in files_of(Path(folder_path))]
        self.told.append(('upload_folder', repo_id, revision, create_pr, names, delete_patterns))
        self.told.append((Path(folder_path)/CARD).read_text())
        return 'https://example.org/commit/1'


def test_what_the_hub_is_asked_for(shared, monkeypatch):
    monkeypatch.setattr(hiccap.sharing, 'HfApi', FakeHub)
    FakeHub.told.clear()
    trained = load_run(shared/'folds')
    assert trained.push_to_hub('comedy', private=True, token='t', branch='v2', license='mit').endswith('commit/1')
    token, repo, branch, upload, card = FakeHub.told
    assert token == ('token', 't') and repo == ('create_repo', 'comedy', True, True)
    assert branch == ('create_branch', 'me/comedy', 'v2') and upload[1:4] == ('me/comedy', 'v2', False)
    assert [o for o in upload[4] if o.startswith('model')] == [f'model/fold_{i}/{name}' for i in (1, 2, 3) for name in
                                                              ('config.json', 'model.safetensors')]
    assert {'model/*', 'tokenizer/*', 'decisions.json', SEEN} == set(upload[5]) and SEEN in upload[4]
    assert yaml.safe_load(card.split('---')[1])['license'] == 'mit' and "from_pretrained('comedy')" in card
    FakeHub.told.clear()
    trained.push_to_hub('owner/comedy', branch='v2', create_pr=True)
    assert [o[0] for o in FakeHub.told[:3]] == ['token', 'create_repo', 'upload_folder']
    assert FakeHub.told[2][3] is True
    FakeHub.told.clear()
    trained.push_to_hub('owner/comedy', seen=False)
    assert SEEN not in FakeHub.told[2][4] and SEEN not in FakeHub.told[3]


def test_nothing_is_created_where_the_run_cannot_be_saved(shared, monkeypatch, tmp_path):
    monkeypatch.setattr(hiccap.sharing, 'HfApi', FakeHub)
    FakeHub.told.clear()
    with pytest.raises(FileNotFoundError): load_run(shared/'one').push_to_hub('comedy', card=tmp_path/'none.md')
    assert [o[0] for o in FakeHub.told] == ['token']


def test_a_shared_run_is_shared_again_as_it_is(shared, runs, tmp_path):
    for kind in KINDS:
        again = load_run(shared/kind).save_pretrained(tmp_path/kind)
        for path in files_of(shared/kind):
            assert path.read_bytes() == (again/path.relative_to(shared/kind)).read_bytes()


def test_a_folder_is_replaced_only_if_asked_and_only_if_it_is_a_shared_run(shared, runs, tmp_path):
    trained, folder = load_run(shared/'one'), tmp_path/'mine'
    trained.save_pretrained(folder)
    with pytest.raises(FileExistsError, match='overwrite=True'): trained.save_pretrained(folder)
    load_run(shared/'folds').save_pretrained(folder, overwrite=True)
    assert len(load_run(folder).models) == 3 and not (folder/'decisions.json').exists()
    with pytest.raises(FileExistsError, match='report.md|history.csv'):
        trained.save_pretrained(runs/'one', overwrite=True)
    with pytest.raises(FileExistsError): trained.save_pretrained(runs/'one'/'report.md', overwrite=True)
    trained = load_run(folder)
    trained.save_pretrained(folder, overwrite=True, license='mit')  # over the folder that it was read from
    assert load_run(folder).predict(synthetic_clips(n=4, scale=.1)).shape == (4, 4)


# ---- what it has seen

ASKED = '--block-precision', '.5', '--pass-recall-loss', '.5', '--confidence', '.6'


@pytest.fixture(scope='module')
def others(tmp_path_factory):
    "Labelled clips of other videos, as files"
    folder = tmp_path_factory.mktemp('others')/'synthetic'
    write_synthetic(synthetic_clips(n=200, scale=.1, seed=7), folder)
    rows = (folder/'clips.csv').read_text().splitlines()
    lines = [f'{rows[0]},stars', *(f'other_{o},{i % 5 - 2}' for i, o in enumerate(rows[1:]))]
    (folder/'clips.csv').write_text('\n'.join(lines) + '\n')
    for path in list((folder/'features').iterdir()): path.rename(path.with_name(f'other_{path.name}'))
    return folder


def clips_of(folder): return folder/'clips.csv', '--features', folder/'features'


@pytest.mark.parametrize('kind', KINDS)
def test_a_shared_run_has_seen_what_its_run_has_seen(shared, runs, data, others, kind):
    found = []
    for at in (runs, shared):
        trained = load_run(at/kind)
        for folder in (data, others):
            ds = trained.read(folder/'clips.csv', folder/'features')
            found.append(trained.seen(ds, folder/'clips.csv').counts())
    assert found[:2] == found[2:] and found[0]['trained_on'] > 20 and found[1]['new'] == found[1]['clips'] > 100
    assert found[0]['sentence'].startswith('WARNING') and found[1]['checked']


@pytest.fixture
def uncalibrated(runs, tmp_path):
    "The shared folder of a run without decisions"
    trained = load_run(runs/'one')
    trained.decisions = None
    return trained.save_pretrained(tmp_path/'uncalibrated')


def test_a_shared_run_is_calibrated_on_clips_that_it_has_not_seen(uncalibrated, data, others, typed, tmp_path):
    before = {p.name: p.read_bytes() for p in files_of(uncalibrated)}
    trained = load_run(uncalibrated)
    ds = trained.read(data/'clips.csv', data/'features')
    new = set(trained.unseen(ds, data/'clips.csv').ids)
    rows = (data/'clips.csv').read_text().splitlines()
    (tmp_path/'seen.csv').write_text('\n'.join(o for o in rows if o.split(',')[0] not in new) + '\n')
    args = '--features', data/'features', *ASKED
    status, out, err = typed('calibrate', uncalibrated, tmp_path/'seen.csv', *args)
    assert status == 2 and not out and 'no clip is new' in err.splitlines()[-1], err
    assert {p.name: p.read_bytes() for p in files_of(uncalibrated)} == before

    status, out, err = typed('calibrate', uncalibrated, *clips_of(others), *ASKED)
    assert status == 0 and f'Thresholds: {uncalibrated}/decisions.json' in out, err
    assert 'decisions.json' in check_index(uncalibrated, needed=True)
    again = load_run(uncalibrated)
    assert again.decisions.source.endswith(' clips of clips.csv') and str(others) not in str(again.decisions)
    assert {p.name for p in files_of(uncalibrated)} - set(before) == {'decisions.json', 'decisions.png'}
    assert (uncalibrated/SEEN).read_bytes() == before[SEEN]
    status, out, err = typed('predict', uncalibrated, *clips_of(others))
    assert status == 0 and out.splitlines()[0].endswith(',decision'), err
    onwards = again.save_pretrained(tmp_path/'onwards')  # decisions and record travel
    for name in ('decisions.json', SEEN): assert (onwards/name).read_bytes() == (uncalibrated/name).read_bytes()
    assert 'Blocked clips have a precision' in (onwards/CARD).read_text()
    assert load_run(onwards).unseen(ds, data/'clips.csv').ids == [i for i in ds.ids if i in new]

    status, _, err = typed('calibrate', uncalibrated, *clips_of(others), *ASKED)
    assert status == 2 and '--overwrite replaces it' in err
    assert typed('calibrate', uncalibrated, *clips_of(others), *ASKED, '--overwrite')[0] == 0
    again.save_pretrained(uncalibrated, overwrite=True)  # with its plot, it is still a shared run


def test_a_calibrated_folder_that_was_changed_is_refused(uncalibrated, others):
    trained = load_run(uncalibrated)
    ds = trained.read(others/'clips.csv', others/'features')
    trained.calibrate(ds, .5, .5, .6, others/'clips.csv')
    for name in (SEEN, 'decisions.json', 'metrics.json'):
        path, whole = uncalibrated/name, (uncalibrated/name).read_bytes()
        path.write_bytes(whole.replace(b'0', b'1', 1))
        with pytest.raises(ValueError, match=f'{name} does not agree'): load_run(uncalibrated)
        # nor does a new calibration make it right
        with pytest.raises(ValueError, match=f'{name} does not agree'): trained.calibrate(ds, .5, .5, .6)
        path.unlink()
        with pytest.raises(ValueError, match=f'lacks {name}'): load_run(uncalibrated)
        path.write_bytes(whole)
    load_run(uncalibrated)


@pytest.mark.parametrize('how', ['left out', 'earlier version'])
def test_a_shared_run_without_a_record_says_that_it_cannot_be_checked(runs, data, typed, tmp_path, how):
    folder = load_run(runs/'one').save_pretrained(tmp_path/'unsaid', seen=how != 'left out')
    if how == 'earlier version':
        (folder/SEEN).unlink()
        write_index(folder)
    else: assert SEEN not in (folder/CARD).read_text()
    assert not (folder/SEEN).exists() and load_run(folder).decisions is not None
    status, out, err = typed('evaluate', folder, *clips_of(data))
    assert status == 0 and 'It cannot be checked' in out and 'shared without it' in out
    status, out, err = typed('calibrate', folder, *clips_of(data), '--overwrite')
    assert status == 2 and 'cannot be checked' in err
    assert load_run(load_run(folder).save_pretrained(tmp_path/'again')).seen(synthetic_clips(n=9, scale=.1)).how is None
    check_index(folder)


def test_nothing_is_written_to_the_cache_of_the_hub(uncalibrated, others, tmp_path, typed, monkeypatch):
    repo = tmp_path/'models--owner--comedy'
    shutil.copytree(uncalibrated, repo/'snapshots'/'abc')
    (repo/'refs').mkdir()
    (repo/'refs'/'main').write_text('abc')
    before = {p: p.read_bytes() for p in files_of(repo)}
    monkeypatch.setattr(hiccap.sharing.constants, 'HF_HUB_CACHE', str(tmp_path))
    for name in ('owner/comedy', repo/'snapshots'/'abc'):
        status, out, err = typed('calibrate', name, *clips_of(others), *ASKED)
        assert status == 2 and not out and "from_pretrained('owner/comedy').save_pretrained('FOLDER')" in err, err
    assert {p: p.read_bytes() for p in files_of(repo)} == before


def test_weights_of_a_shared_run_are_not_scored_on_what_they_learnt_from(shared, runs, data, tmp_path, typed):
    args = '--tokenizer', data/'tokenizer', '--labels', 'said', '--epochs', 1, '--threads', 1, '--split-seed', 7
    scored = []
    for at in (runs, shared):
        out = tmp_path/at.name
        status, _, err = typed('train', data/'clips.csv', *args, '--init', at/'one'/'model', '--out', out)
        assert status == 0, err
        scored.append((out/'predictions.csv').read_bytes().splitlines())
        assert read_records(out)[1:] == read_records(at/'one')
    assert [o.split(b',')[0] for o in scored[0]] == [o.split(b',')[0] for o in scored[1]]
    own, learnt = read_records(tmp_path/shared.name)
    again = shared_records([own, learnt], 'ab')
    assert again[1] == learnt and again[0]['salt'] == 'ab'  # a record that is shared stays as it is
    status, _, err = typed('train', data/'clips.csv', *args, '--init', shared/'one'/'model', '--folds', 2, '--out',
                           tmp_path/'no')
    assert status == 2 and 'so folds would score what was learnt from' in err


def test_settings_lose_their_paths_and_nothing_else():
    run = Run.flat(data='/mnt/me/clips.csv', valid='/x/valid.csv', features=('/data/f', 'face=/data/face:a+b'),
                   tokenizer='/mnt/me/tokens', encoder='owner/minilm', cache='/mnt/me/cache', text='utterance',
                   seconds=('start', 'end'), config=dict(video=dict(kind='features', width=3)), folds=0, max_length=99,
                   video_column='file', extraction=dict(name='offline', video='i3d:/mnt/me/i3d'))
    found = public_run(run)
    assert '/mnt' not in str(found) and '/data' not in str(found) and '/x' not in str(found)
    assert found.clips.features == ('./f', 'face=face:a+b') and found.network.encoder == 'owner/minilm'
    before, after = run.to_flat(), found.to_flat()
    changed = {k for k in before if before[k] != after.get(k)}
    assert changed == {'data', 'valid', 'features', 'tokenizer', 'cache', 'extraction'}
    recipe = dict(names=['picture', 'i3d:/mnt/me/i3d', 'hf:/a/b@fps=2'], settings=dict(text=[]), modalities={})
    assert public_recipe(recipe) == recipe | dict(names=['picture', 'i3d:i3d', 'hf:b@fps=2'])
    assert public_name('/') == '/' and public_name('') == ''


def test_a_card_says_what_is_not_shown(shared, runs):
    trained = load_run(shared/'numbers')
    card = model_card(trained)
    assert "stars | Pearson" in card and 'mae' in yaml.safe_load(card.split('---')[1])['metrics']
    unsure = not_shown_better(trained.metrics)
    assert set(unsure) == {'said', 'stars'} and all(f'**{k}**: it is not shown to be better' in card for k in unsure)
    assert 'has not chosen' in card and 'has not chosen' not in model_card(trained, 'mit')
    assert 'no thresholds with a guarantee' in card
    assert 'Blocked clips have a precision' in (shared/'one'/CARD).read_text()
    assert 'in 3 folds' in (shared/'folds'/CARD).read_text()
    trained.metrics, trained.temperatures = {}, []
    assert 'No scores were recorded' in model_card(trained) and 'not calibrated' in model_card(trained)
