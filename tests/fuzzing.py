"""Damaged files for every reader: `python tests/fuzzing.py FOLDER COUNT [SEED]` makes COUNT of them, reads each in a
folder of its own, and writes the results to FOLDER/found.jsonl.

A reader may give what it read or an error of the library's own that names the file. It may not crash, hang, take a
gigabyte, run code from a file, or touch a file outside the folder; those are in `found.jsonl` as `bad`.
"""
import copy
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
import warnings
import zipfile
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import pandas as pd
import torch
import yaml

from hiccap import checkpoints, comparison, pretraining_runs, resuming, run_folders, runs
from hiccap.diagnosis import Diagnosis
from hiccap.replay import load_bundle, replay, write_bundle
from hiccap.basics import file_sha, seal
from hiccap.checkpoints import FORMAT, CheckpointError, init_from, load_model, read_weights, saved_config, save_model
from hiccap.clips import ClipDataset
from hiccap.features import FeatureFolder
from hiccap.readers import read_comic_mischief, read_table
from hiccap.runs import Run
from hiccap.inference import load_run
from hiccap.losses import MultiTaskLoss
from hiccap.model import HICCAP, HICCAPConfig
from hiccap.padding import collate
from hiccap.pretraining_runs import PretrainRun
from hiccap.resuming import Checkpoint, load_state, save_state
from hiccap.synthetic import synthetic_clips
from hiccap.tasks import Task

GIGABYTE, SECONDS = 1 << 30, 10


class Words:
    "A tokenizer of hashes"
    model_max_length = 12
    def __call__(self, text, second=None, truncation=None, max_length=None, verbose=None):
        a, b = text.split(), (second or '').split()
        ids = [1, *(2 + sum(map(ord, w)) % 90 for w in a), 3, *(2 + sum(map(ord, w)) % 90 for w in b)][:max_length]
        return dict(input_ids=ids, token_type_ids=[0]*len(ids))


# ---- what is sound

def record(i):
    words = ['who', 'laughs', f'{i}']
    return dict(IMDBid=f'tt{i}_0', words=words, cap_words=['a', 'door'], indexes=[101, 7, 8, i + 9, 102],
                caps_index=[101, 11, 12, 102], mature=[1, 0], gory=[0, 1], slapstick=[0, 1], sarcasm=[1, 0],
                combination=[1, 0, 0, 0])

def rows():
    return pd.DataFrame(
        [dict(id=f'v{i}_0', text=f'who laughs, "{i}" times', funny=str(i % 2), kind='abc'[i % 3], group=f'g{i//2}')
         for i in range(8)]
    )

def tiny(): return HICCAP(HICCAPConfig.tiny(), [Task('funny')], seed=0)

def write_sound(home):
    "Every kind of file, kind -> folder"
    home.mkdir()
    real = {f'tt{i}_0': record(i) for i in range(5)}
    def place(kind): (home/kind).mkdir(); return home/kind
    (place('released')/'data.json').write_text(json.dumps(real))
    rows().to_csv(place('csv')/'data.csv', index=False); rows().to_csv(place('tsv')/'data.tsv', sep='\t', index=False)
    rows().to_json(place('jsonl')/'data.jsonl', orient='records', lines=True)
    rows().to_parquet(place('parquet')/'data.parquet')
    at = place('npy')
    for i in range(2):
        for part, w in (('rgb', 6), ('flow', 6), ('vggish', 4)):
            np.save(at/f'v{i}_{part}.npy', np.ones((3 + i, w), np.float32)*i)
    save_state(
        home / 'state',
        dict(weights=dict(a=torch.arange(6.0).reshape(2, 3), b=torch.tensor(1)), names=['x', ('y', 2)],
             random=resuming.random_state(), n=np.float64(0.5), deep=dict(a=[dict(b=(1, [2]))])),
    )
    save_state(place('checkpoints')/'00000001', dict(step=1))
    save_state(home/'checkpoints'/'00000002', dict(step=2, x=torch.ones(3)))
    model = tiny(); save_model(model, home/'model')
    inputs, targets = collate([synthetic_clips(n=6, scale=.1)[i] for i in range(2)], [Task('said')])
    net = torch.nn.Linear(3, 2)
    write_bundle(
        home / 'bundle', Diagnosis('forward', 'body', rows=(0,), clips=('a', 'b')), net, (torch.ones(2, 3),), (), None)
    torch.save(model.state_dict(), place('weights')/'weights.pth')
    (place('yaml') / 'run.yaml').write_text(
        Run.flat(data='clips.csv', labels=('funny',), epochs=3, config=dict(width=16)).to_yaml()
        + 'seeds: [0, 1]\ngrid: {lr: [.001, .01]}\n')
    (place('mixture') / 'mixture.yaml').write_text(
        'streams:\n- {name: a, data: synthetic, synthetic: {n: 30}}\n- {name: b, data: synthetic, pretext: contrastive,'
        ' temperature: .2}\npolicy: {name: dynamic_difficulty, k: 3}\nepochs: 2\n')
    run = place('run'); save_model(model, run/'model')
    (run / 'config.json').write_text(
        json.dumps(dict(run=Run.flat(data='clips.csv', labels=('funny',)).to_dict(), versions={}, tasks=[], data={})))
    (run / 'metrics.json').write_text(
        json.dumps(
            dict(thresholds=[dict(funny=0.5)], scores={}, seconds=dict(total=1.0, training=[1.0]),
                 kept=[dict(epoch=0, score=0.5, monitor='macro_f1')], clips=[dict(training=5)])
        )
    )
    return {p.name: p for p in home.iterdir()}


# ---- how each is read

def check(ds):
    ds.check(); ds.summary(); collate([ds[i] for i in range(min(len(ds), 3))], ds.tasks)

def table(at, file):
    for kw in (dict(labels=['funny', 'kind'], group='group'), dict(labels=['funny'], context=1)):
        check(read_table(file, Words(), **kw))

def read_npy(at, file):
    for widths in (dict(video=6, audio=4), dict(video=None, audio=None)):
        check(
            ClipDataset(
                ['v0', 'v1'],
                {
                    m: (
                        __import__('hiccap.data').data.FeatureColumn(
                            FeatureFolder(at, widths=dict(widths)), m, ['v0', 'v1'])
                    )
                    for m in ('video', 'audio')
                },
                {},
                [],
            )
        )

def read_run_folder(at, file):
    run_folders.interrupted_run(at)
    run_folders.is_finished(at, Run.flat(data='clips.csv', labels=('funny',)), True)
    load_run(at)

def read_bundle(at, file):
    b = load_bundle(at); str(b.finding); b.run(torch.nn.Linear(3, 2))

def read_yaml(at, file): comparison.expand(runs.read_yaml(file), file)

READERS = dict(released=lambda at, f: check(read_comic_mischief(f)), csv=table, tsv=table, jsonl=table, parquet=table,
               npy=read_npy, state=lambda at, f: load_state(at),
               checkpoints=lambda at, f: Checkpoint(at, write=lambda o: None).newest(),
               model=lambda at, f: (saved_config(at), load_model(at), init_from(tiny(), at, verbose=False)),
               bundle=read_bundle, weights=lambda at, f: (read_weights(f), init_from(tiny(), f, verbose=False)),
               yaml=read_yaml, mixture=lambda at, f: PretrainRun.from_yaml(f), run=read_run_folder)


# ---- how they are damaged

ODD = [None, True, False, -1, 0, 1, 2**31, 2**63, 10**30, -(2**63), 0.5, 1e308, float('nan'), float('inf'),
       -float('inf'), '', 'nan', '\x00', 'é\u2028', '../../outside', '/outside', '..\\x', 'a' * 5000, [], {}, [[]],
       [{}], {'': None}, [None], [1, 'a'], '!!python/object/apply:os.system ["touch /outside"]', '1e9999', 10**9,
       4096 * 10**6]

def nested(depth, kind): return ('['*depth + ']'*depth) if kind else ('{"a":'*depth + '1' + '}'*depth)

def spots(x, path=()):
    "Paths to everything in nested lists and dicts"
    yield path
    for k, v in (x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()):
        yield from spots(v, (*path, k))

def changed(d, rng):
    "A nested value with one thing in it another: replaced, left out, said twice, renamed or wrapped"
    d = copy.deepcopy(d)
    path = rng.choice([p for p in spots(d) if p] or [()])
    if not path: return rng.choice(ODD)
    at = d
    for k in path[:-1]: at = at[k]
    k, how = path[-1], rng.randrange(6)
    if how < 3: at[k] = copy.deepcopy(rng.choice(ODD))
    elif how == 3: at.pop(k)
    elif how == 4 and isinstance(at, dict): at[str(rng.choice(ODD))] = at.pop(k)
    else: at[k] = [at[k], at[k]] if rng.random() < .5 else {'x': at[k]}
    return d

def bytes_changed(b, rng):
    b, how = bytearray(b), rng.randrange(7)
    i = rng.randrange(max(len(b), 1))
    if how == 0:
        for _ in range(rng.choice([1, 1, 2, 20])):
            if b: b[rng.randrange(len(b))] ^= 1 << rng.randrange(8)
    elif how == 1: del b[i:]
    elif how == 2: b[i:i] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 8, 300])))
    elif how == 3:
        b = (bytearray() if rng.random() < 0.3
             else bytearray(rng.choice([b'\0' * 100, b'PK\x03\x04', b'\xff\xfe', b'null', b'[]', b'{}', b'0', b'"'])))
    elif how == 4: j = rng.randrange(max(len(b), 1)); b[i:i] = b[min(i, j):max(i, j)]
    elif how == 5: b[i:i + 8] = struct.pack('<q', rng.choice([-1, 2**62, 2**31, 0, 2**40]))
    else: del b[i:i + rng.choice([1, 4, 100])]
    return bytes(b)

def swapped(b, rng):
    "A file of another kind under this name"
    class Attack:
        def __reduce__(self): return os.system, ('touch ' + str(MARK),)
    out = io.BytesIO()
    how = rng.randrange(7)
    if how == 0: pickle.dump(Attack(), out)
    elif how == 1: torch.save(dict(a=Attack()), out)
    elif how == 2: np.save(out, np.array([Attack()], object), allow_pickle=True)
    elif how == 3:  # a bomb
        with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z:
            z.writestr('a.npy', b'\x93NUMPY\x01\x00v\x00'
                       + b"{'descr': '<f4', 'fortran_order': False, 'shape': (200000000, 8), }".ljust(117) + b'\n'
                       + bytes(10**7))
            z.writestr('../../outside', 'x')
    elif how == 4: np.save(out, np.zeros(2, [('a', 'f4')]))
    elif how == 5: out.write(nested(rng.choice([50, 3000, 200000]), rng.random() < .5).encode())
    else: pd.DataFrame(dict(id=['a']*1000, text=['x'*1000]*1000)).to_parquet(out)
    return out.getvalue()

def npy_changed(b, rng):
    "A header that says something else of the same values"
    shape = rng.choice(
        ['(3, 6)', '(2**40, 6)', '(1099511627776, 6)', '(-1, 6)', '(3,)', '()', '(0, 6)', '(4611686018427387904, 4)',
         '(3, 6, 1)', '(3, 4611686018427387904)', '(3.0, 6)', "('a', 6)", '(True, 6)']
    )
    kind = rng.choice(
        ["'<f4'", "'<f4'", "'|O'", "'<f8'", "'>f4'", "'<i4'", "'<U9999999'", "'<c8'", "'|V1000000000'",
         "[('a', '<f4')]", "'<M8[s]'", 'None', "'<f2'"]
    )
    head = f"{{'descr': {kind}, 'fortran_order': {rng.choice(['False', 'True', '1'])}, 'shape': {shape}, }}".encode()
    version = rng.choice([b'\x01\x00', b'\x02\x00', b'\x03\x00', b'\x09\x00'])
    size = struct.pack('<H', len(head) + 1) if version == b'\x01\x00' else struct.pack('<I', len(head) + 1)
    return b'\x93NUMPY' + version + size + head + b'\n' + b[128:]

def safetensors_changed(b, rng):
    "Another header over the same values"
    n = struct.unpack('<Q', b[:8])[0]
    d = changed(json.loads(b[8:8 + n]), rng)
    head = json.dumps(d).encode()
    return struct.pack('<Q', rng.choice([len(head)]*4 + [2**62, 0])) + head + b[8 + n:]

def sealed_again(at):
    "Checksums that agree with what the files hold now: as one would write them who means harm"
    for head, one in (('config.json', 'weights_checksum'), ('state.json', None), ('replay.json', None)):
        if not (at/head).is_file(): continue
        try: d = json.loads((at/head).read_text())
        except (ValueError, RecursionError): continue
        if not isinstance(d, dict): continue
        if one and one in d and (at/'model.safetensors').is_file(): d[one] = file_sha(at/'model.safetensors')
        if isinstance(d.get('checksums'), dict):
            d['checksums'] = {
                k: file_sha(at / k) if (at / k).is_file() and '/' not in k else v for k, v in d['checksums'].items()}
        d.pop('checksum', None)
        if 'format' in d: (at/head).write_text(json.dumps(seal(json.loads(json.dumps(d)))))

def damage(at, rng):
    "Change one file of a folder; the file, and how"
    files = sorted(p for p in at.rglob('*') if p.is_file())
    file = rng.choice(files)
    b, how = file.read_bytes(), rng.randrange(10)
    if how < 5 and file.suffix in ('.json', '.yaml', '.jsonl', '.csv', '.tsv', '.npy', '.safetensors', '.parquet'):
        told = 'content'
        if file.suffix == '.json': file.write_text(json.dumps(changed(json.loads(b), rng)))
        elif file.suffix == '.yaml':
            file.write_text(
                yaml.dump(changed(yaml.safe_load(b), rng))
                if rng.random() < 0.9
                else rng.choice(
                    ['a: &a [*a, *a]', '!!python/object/apply:os.system ["touch ' + str(MARK) + '"]',
                     'a: &a ["x","x"]\nb: &b [*a,*a]\nc: &c [*b,*b]\n', '? [1]\n: 2', '1: 2', '- 1']
                )
            )
        elif file.suffix == '.npy': file.write_bytes(npy_changed(b, rng))
        elif file.suffix == '.safetensors': file.write_bytes(safetensors_changed(b, rng))
        elif file.suffix == '.jsonl':
            file.write_text(
                '\n'.join(json.dumps(changed(json.loads(o), rng)) if rng.random() < 0.4 else o
                          for o in b.decode().splitlines())
            )
        else:
            f = rows(); c = rng.choice(list(f))
            f[c] = f[c].astype(object)
            f.loc[rng.randrange(len(f)), c] = copy.deepcopy(
                str(rng.choice(ODD)) if file.suffix != '.parquet' or rng.random() < 0.5 else None)
            if rng.random() < .2: f = f.drop(columns=c)
            if rng.random() < .2: f = pd.concat([f, f])
            if file.suffix == '.parquet':
                if rng.random() < .3:
                    f = rows()
                    f[c] = rng.choice(
                        [[b'\xff'] * 8, [[1, 2]] * 8, [{'a': 1}] * 8, pd.date_range('2020', periods=8), [1.5] * 8,
                         [2**62] * 8]
                    )
                f.to_parquet(file)
            else: f.to_csv(file, index=False, sep='\t' if file.suffix == '.tsv' else ',')
        if rng.random() < .7: sealed_again(file.parent)
    elif how < 8:
        told = 'bytes'
        file.write_bytes(bytes_changed(b, rng))
        rng.random() < .5 and sealed_again(file.parent)
    elif how == 8:
        told = 'another kind'
        file.write_bytes(swapped(b, rng))
        rng.random() < .5 and sealed_again(file.parent)
    else:
        told = rng.choice(['gone', 'a folder', 'a link', 'unreadable name'])
        file.unlink()
        if told == 'a folder': file.mkdir()
        if told == 'a link': file.symlink_to(OUTSIDE/'secret')
        if told == 'unreadable name': file.with_name('..' + file.name).write_bytes(b)
    return file, told


# ---- watching

WATCH = dict(at=None, seen=[])
WRITES = {'os.remove', 'os.rename', 'os.mkdir', 'os.rmdir', 'os.link', 'os.symlink', 'os.truncate', 'os.chmod',
          'shutil.rmtree', 'shutil.move', 'shutil.copyfile'}

def hook(event, args):
    at = WATCH['at']
    if at is None: return
    forbidden = ('os.system', 'subprocess.Popen', 'os.exec', 'os.posix_spawn', 'os.fork', 'socket.connect',
                 'pickle.find_class')
    if event in forbidden or event.startswith('ctypes.dl'):
        WATCH['seen'].append(f'{event} {str(args)[:100]}')
    if event == 'open':
        path, mode, flags = args
        writes = (isinstance(mode, str) and set(mode) & set('wax+')) or (
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if isinstance(path, (str, bytes, os.PathLike)):
            p = os.path.abspath(os.fsdecode(path))
            if writes and not p.startswith(str(at)) and p != os.devnull: WATCH['seen'].append(f'wrote {p}')
    elif event in WRITES:
        for p in args[:2]:
            if isinstance(p, (str, bytes, os.PathLike)) and not os.path.abspath(os.fsdecode(p)).startswith(str(at)):
                WATCH['seen'].append(f'{event} {p}')

class Slow(BaseException): pass

def alarmed(*_): raise Slow()

def memory(name): return int(next(o for o in open('/proc/self/status') if o.startswith(name)).split()[1])*1024

def is_own(e, at, file):
    "Whether an error is the library's own: raised in its code, of a kind that it documents, and names what it is about"
    own = isinstance(e, (ValueError, FileExistsError, FileNotFoundError)) and not isinstance(
        e, (UnicodeError, json.JSONDecodeError))
    frames = traceback.extract_tb(e.__traceback__)
    return own and f'{os.sep}hiccap{os.sep}' in frames[-1].filename and (at.name in str(e) or file.name in str(e))

def attempt(kind, at, file):
    "None, or what is bad about how a reader took a damaged folder; and what it said"
    try:
        with open('/proc/self/clear_refs', 'w') as f: f.write('5')
    except OSError: pass
    WATCH.update(at=at, seen=[])
    before, begin, said, bad = memory('VmRSS'), time.monotonic(), None, None
    signal.signal(signal.SIGALRM, alarmed); signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings(): warnings.simplefilter('ignore'); READERS[kind](at, file)
    except Slow: bad = f'took more than {SECONDS} s'
    except BaseException as e:
        said = f'{type(e).__name__}: {e}'
        if not is_own(e, at, file):
            bad = (
                'raised '
                + said[:300]
                + ' in '
                + ' < '.join(
                    f'{Path(o.filename).name}:{o.lineno}' for o in reversed(traceback.extract_tb(e.__traceback__)[-4:]))
            )
    finally: signal.alarm(0); WATCH['at'] = None
    if (grown := memory('VmHWM') - before) > GIGABYTE: bad = f'took {grown >> 20} MB'
    if WATCH['seen']: bad = '; '.join(WATCH['seen'][:3])
    if MARK.exists(): MARK.unlink(); bad = 'ran code from the file'
    if sorted(o.name for o in OUTSIDE.iterdir()) != ['secret'] or (OUTSIDE/'secret').read_text() != 'secret':
        bad = 'touched a file outside'
    return bad, said, time.monotonic() - begin


def main(home, count, seed=0):
    global MARK, OUTSIDE
    home = Path(home).resolve(); home.mkdir(exist_ok=True)
    MARK, OUTSIDE = home/'code_ran', home/'outside'
    OUTSIDE.mkdir(); (OUTSIDE/'secret').write_text('secret')
    sound = write_sound(home/'sound')
    for kind, at in sound.items():  # also loads whatever is loaded when first needed
        shutil.copytree(at, home/f'first_{kind}')
        file = next(p for p in sorted((home/f'first_{kind}').rglob('*')) if p.is_file())
        READERS[kind](home/f'first_{kind}', file)
    sys.addaudithook(hook)
    # address space: a reader that asks for more is refused, and does not bring the machine down
    limit = memory('VmSize') + 2*GIGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    kinds = sorted(READERS)
    with open(home/'found.jsonl', 'w') as out:
        for n in range(count):
            rng = random.Random(f'{seed} {n}')
            kind = kinds[n % len(kinds)]
            at = home/f'case_{n:05d}_x'
            shutil.copytree(sound[kind], at)
            file, how = damage(at, rng)
            out.write(json.dumps(dict(n=n, kind=kind, how=how, file=file.name)) + '\n'); out.flush()
            bad, said, took = attempt(kind, at, file)
            out.write(
                json.dumps(
                    dict(n=n, kind=kind, how=how, file=file.name, bad=bad, said=said and said[:400],
                         took=round(took, 3), done=True)
                )
                + '\n'
            )
            out.flush()
            if not bad: shutil.rmtree(at)


if __name__ == '__main__': main(sys.argv[1], int(sys.argv[2]), *map(int, sys.argv[3:4]))
