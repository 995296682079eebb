"""Do the tests fail when the code is wrong? `python tools/mutate.py [--module NAME] [--limit N --seed S] [--workers N]`

Takes one mutant after another (a module with one change, see `tools/mutants.py`), and sees whether a test of the module
fails. Everything runs in temporary copies of the package and its tests. The status is 1 where less than `--least` of a
module's mutants are killed, where a planted bug survives, or where a mutant that is listed as a survivor is killed.
"""
import argparse
import ast
import importlib
import json
import multiprocessing
import os
import queue
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from mutants import LIST, PACKAGE, read_list, sample

ROOT = Path(__file__).resolve().parents[1]
BROKEN, MEMORY = 99, 8 << 30  # exit status where the module cannot be imported; bytes that a mutant may allocate
ENDS = 'killed', 'timed out', 'survived', 'broken', 'accepted'


class Order:
    "A pytest plugin: tests in a given order, and a report of what each took and which failed"
    def __init__(self, order): self.order, self.failed, self.seconds = order, '', Counter()
    def pytest_collection_modifyitems(self, items):
        items.sort(key=lambda o: self.order.get(o.nodeid, len(self.order)))
    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        if report.failed: self.failed = report.nodeid


def in_child(folder, name, tests, order, cpu):
    "In a process of its own: import the module, then run its tests; the exit status says how it ended"
    os.setsid()
    os.chdir(folder)
    log = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for fd in (1, 2): os.dup2(log, fd)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    if cpu: resource.setrlimit(resource.RLIMIT_CPU, (int(cpu) + 1,)*2)
    os.environ['PYTHONPATH'] = folder
    sys.path.insert(0, folder)
    multiprocessing.set_start_method('fork', force=True)  # of what the tests start, as under pytest by itself
    try: importlib.import_module(name)
    except BaseException:
        traceback.print_exc()
        os._exit(BROKEN)
    plugin = Order(order)
    status = pytest.main(['-x', '-q', '-p', 'no:cacheprovider', *(f'tests/{t}' for t in tests)], plugins=[plugin])
    report = dict(failed=plugin.failed, seconds=plugin.seconds, cpu=time.process_time())
    Path('report.json').write_text(json.dumps(report))
    sys.stdout.flush()
    os._exit(int(status))


def libraries(root):
    "What the package and its tests import from elsewhere"
    paths = [p for part in (PACKAGE, 'tests') for p in (root/part).glob('*.py')]
    body = [o for p in paths for o in ast.parse(p.read_text(encoding='utf-8')).body]
    body = [o for t in body for o in (t.body if isinstance(t, ast.With) else [t])]
    names = {a.name for o in body if isinstance(o, ast.Import) for a in o.names}
    names |= {o.module for o in body if isinstance(o, ast.ImportFrom) and not o.level}
    return sorted(o for o in names if o.split('.')[0] != PACKAGE)


class Runner:
    "Copies of the package, one for each worker, and what is known about its tests"
    def __init__(self, root, home, workers, timeout):
        self.folders, self.stamps = queue.Queue(), iter(range(10**9, 2*10**9))
        self.sources = {p.stem: p.read_text(encoding='utf-8') for p in (root/PACKAGE).glob('*.py')}
        self.kills, self.seconds, self.timeout, self.limits = Counter(), {}, timeout, {}
        for folder in (home/f'{i}' for i in range(workers)):
            for part in (PACKAGE, 'tests'):
                shutil.copytree(root/part, folder/part, ignore=shutil.ignore_patterns('__pycache__', '.*'))
            self.folders.put(folder)
        self.ctx = multiprocessing.get_context('forkserver')  # imports the libraries once, not for each mutant
        self.ctx.set_forkserver_preload(['__main__', *libraries(root)])

    def write(self, path, text):
        "Write a module with a time of its own, by which Python knows whether its compiled form is still right"
        path.write_text(text, encoding='utf-8')
        os.utime(path, (next(self.stamps),)*2)

    def run(self, m, cpu=None, wall=None):
        "(exit status, None after `wall` seconds; report; log) of a mutant; tests that killed before come first"
        folder = self.folders.get()
        ranked = sorted(self.seconds, key=lambda t: (-self.kills[t], self.seconds[t]))
        self.write(path := folder/PACKAGE/f'{m.module}.py', m.source)
        (folder/'report.json').write_text('{}')
        args = str(folder), f'{PACKAGE}.{m.module}', m.tests, {t: i for i, t in enumerate(ranked)}, cpu
        p = self.ctx.Process(target=in_child, args=args)
        p.start()
        p.join(wall)
        status = p.exitcode
        try: os.killpg(p.pid, signal.SIGKILL)  # also what the tests started
        except ProcessLookupError: p.kill()
        p.join()
        self.write(path, self.sources[m.module])
        report, log = json.loads((folder/'report.json').read_text()), (folder/'log').read_text(errors='replace')
        self.folders.put(folder)
        return status, report, log

    def prepare(self, m):
        """Run a mutant's tests on the code as it is, which sets its limits: CPU seconds, and far more by the clock, as
        machines are busy. Raises `RuntimeError` where a test fails"""
        if (m.module, m.tests) in self.limits: return
        begin = time.monotonic()
        status, report, log = self.run(m._replace(source=ast.unparse(ast.parse(self.sources[m.module]))))
        if status != 0:
            raise RuntimeError(f'{m.module}: its tests fail without any change (status {status})\n{log[-4000:]}')
        self.seconds |= report['seconds']
        self.limits[m.module, m.tests] = self.timeout or 10 + 3*report['cpu'], 120 + 10*(time.monotonic() - begin)

    def judge(self, m):
        "A mutant, how it ended, and by which test"
        status, report, _ = self.run(m, *self.limits[m.module, m.tests])
        if status in (None, -signal.SIGXCPU, -signal.SIGKILL): return m, 'timed out', ''
        if status == 0: return m, 'survived', ''
        if status == BROKEN or status == 2 and not report.get('seconds'): return m, 'broken', ''  # an import failed
        self.kills[killer := report.get('failed', '')] += 1
        return m, 'killed', killer


# ---- the command

def table(results):
    "Rows of Markdown, one a module, and the share that each module has killed"
    counts, shares = {}, {}
    for m, how in results: counts.setdefault(m.module, Counter())[how] += 1
    lines = [f"| module | mutants | {' | '.join(ENDS)} | share |", '|---'*(3 + len(ENDS)) + '|']
    for module, n in sorted(counts.items()):
        dead = n['killed'] + n['timed out']
        shares[module] = dead/max(dead + n['survived'], 1) if n['survived'] else 1.
        lines.append(f"| {module} | {n.total()} | {' | '.join(str(n[o]) for o in ENDS)} | {shares[module]:.1%} |")
    return '\n'.join(lines), shares


def main(a):
    "Run the mutants, print a line each, what survives and a table; the exit status"
    mutants, accepted = read_list(a.root, a.module)
    mutants, results = sample(mutants, 0 if a.planted else a.limit, a.seed), []
    if not mutants: raise ValueError(f"no mutants of {', '.join(a.module or ['any module'])} in {LIST}")
    os.environ |= dict(OMP_NUM_THREADS='1', MPLBACKEND='agg', HYPOTHESIS_PROFILE='ci')
    with tempfile.TemporaryDirectory() as home, ThreadPoolExecutor(a.workers) as pool:
        runner = Runner(a.root, Path(home), a.workers, a.timeout)
        for m in mutants: runner.prepare(m)
        for i, (m, how, killer) in enumerate(pool.map(runner.judge, mutants), 1):
            if how == 'survived' and (m.module, m.what) in accepted: how = 'accepted'
            print(f"[{i}/{len(mutants)}] {m.module}: {how}{f' by {killer}' if killer else ''}: {m.what}", flush=True)
            results.append((m, how))
    survived, (lines, shares) = [m for m, how in results if how == 'survived'], table(results)
    if survived: print('\n' + yaml.safe_dump([dict(module=m.module, change=m.what) for m in survived], width=1000))
    stale = [m for m, how in results if how != 'accepted' and (m.module, m.what) in accepted]
    for m in stale: print(f'{LIST}: a survivor is killed; remove it there: {m.module}: {m.what}')
    print(f'\n{lines}')
    return int(min(shares.values()) < a.least or bool(stale) or any(m.planted for m in survived))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--module', action='append', help='only this module; may be given several times')
    p.add_argument('--limit', type=int, help='at most so many generated mutants a module, and all planted bugs')
    p.add_argument('--seed', type=int, default=0, help='of the sample')
    p.add_argument('--planted', action='store_true', help='only planted bugs')
    p.add_argument('--workers', type=int, default=1, help='mutants at a time')
    p.add_argument('--least', type=float, default=.9, help='share of the mutants of a module that must be killed')
    p.add_argument('--timeout', type=float, help='CPU seconds a mutant; by default 10 + 3 times the unchanged code')
    p.add_argument('--root', type=Path, default=ROOT, help='the checkout')
    sys.exit(main(p.parse_args()))
