"""The checks of `tools/` find each fault that they are for, and pass a page without one."""
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1]/'tools'
if not TOOLS.exists(): pytest.skip('the tools are in a checkout only', allow_module_level=True)


def tool(name):
    "A program of `tools/` as a module"
    spec = importlib.util.spec_from_file_location(name, TOOLS/f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


style, repo, pages, readme, mutants = map(tool, ('check_style', 'check_repo', 'pages', 'readme', 'mutants'))


def code(source, shown=None):
    "A code cell, with an output where something is shown"
    outputs = [dict(output_type='execute_result', data={'text/plain': [shown]}, metadata={})] if shown else []
    return dict(cell_type='code', id='c', metadata={}, source=[source], outputs=outputs)


def noisy(text):
    "A code cell that printed something on standard error"
    return code('double(2)', '4') | dict(outputs=[dict(output_type='stream', name='stderr', text=[text])])


def prose(source): return dict(cell_type='markdown', id='m', metadata={}, source=[source])


EXPORT = '#| export\ndef double(x): return 2*x'
GOOD = [prose('# Doubling\n\n> Twice a number.'), code(EXPORT), code('double(2)', '4')]
DEFECTS = {
    'is over 120 characters': [*GOOD, code('x = 1' + ' + 1'*40, '41')],
    'an exported cell of 51 lines': [*GOOD, code('#| export\ndef f():\n' + '\n'.join(['    a = 1']*49), '1')],
    'the fourth export in a row': [*GOOD, *[code(EXPORT)]*4, code('double(2)', '4')],
    '1 of 5 examples show something': [*GOOD, *[code('double(3)')]*4],
    "'whom': write": [*GOOD, prose('The modality whom it asks.')],
    "'mended': write": [*GOOD, code('# mended\ndouble(2)', '4')],
    "an output holds 'findfont:'": [*GOOD, noisy("findfont: Font family ['STIX'] not found.")],
    "an output holds '100%|####| 103/103 [00:00<00:00, 5081.61it/s": [*GOOD, noisy(
        'Loading weights: 100%|####| 103/103 [00:00<00:00, 5081.61it/s]')],
    "'three minutes': a duration": [*GOOD, prose('The run takes three minutes.')],
}


def written(folder, cells, name='00_doubling.ipynb'):
    "A notebook of these cells"
    path = folder/name
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)), encoding='utf-8')
    return path


def test_style_passes_a_good_notebook(tmp_path, capsys):
    assert style.main([written(tmp_path, GOOD)]) == 0
    assert '0 to correct; 1 of 1 examples show something' in capsys.readouterr().out


@pytest.mark.parametrize('defect', DEFECTS)
def test_style_finds(defect, tmp_path, capsys):
    assert style.main([written(tmp_path, DEFECTS[defect])]) == 1
    out = capsys.readouterr().out
    assert defect in out and '1 to correct' in out


@pytest.mark.parametrize('text,defect', [('x = 1' + ' + 1'*40, 'line 1 is over 120'), ('# mended', "'mended'")])
def test_style_reads_programs(text, defect, tmp_path, capsys):
    path = tmp_path/'program.py'
    path.write_text(text)
    assert style.main([path]) == 1 and defect in capsys.readouterr().out


@pytest.mark.parametrize('text', ['It took 14 minutes.', 'ready in a minute', 'half an hour', 'after a few seconds',
                                  'a two-hour run', 'A run takes hours.', 'It takes seconds to import.', '0.5 seconds'])
def test_style_finds_durations(text, tmp_path):
    assert len(list(style.durations(text))) == 1
    for name, status in (('PAGE.md', 1), ('README.md', 0)):
        (tmp_path/name).write_text(text)
        assert style.main([tmp_path/name]) == status


@pytest.mark.parametrize('text', ['a second segment', 'a span of seconds', 'hours of video',
                                  'minutes between two checkpoints', 'two clips a second'])
def test_style_passes_what_is_not_a_duration(text):
    assert not list(style.durations(text))


def test_style_counts_over_all_notebooks():
    assert list(style.totals(10, 5, style.LOCAL_IMPORTS - 1)) == []
    assert '4 of 10 examples' in next(style.totals(10, 4, 0))
    assert 'imports inside functions' in next(style.totals(10, 5, style.LOCAL_IMPORTS))
    tree = style.parsed('def f():\n    import json\n    return json\n')
    assert style.local_imports(tree) == [2]


@pytest.mark.parametrize('cell,defect', [
    (code('import json\njson.dumps(1)', '1'), 'mixes imports'),
    (dict(code('1/0'), outputs=[dict(output_type='error')]), 'saved with an error'),
    (code('plt.plot([1, 2])\nplt.show()'), 'without MPLBACKEND'),
    (code('import json'), None),
    (dict(code('plt.show()'), outputs=[dict(output_type='display_data', data={'image/png': 'x'})]), None)])
def test_repo_finds_in_a_cell(cell, defect):
    found = list(repo.cell_problems(cell))
    assert len(found) == (defect is not None) and all(defect in o for o in found)


def test_repo_finds_undeclared_imports(tmp_path):
    package = tmp_path/'lib'
    package.mkdir()
    (package/'a.py').write_text('import numpy, json\nfrom .b import c\nimport scipy\n'
                                'def f():\n    import onnx, sklearn\n')
    settings = '[DEFAULT]\nrequirements = numpy>=2 scikit-learn\nexport_requirements = onnx[extra]>=1\n'
    assert list(repo.undeclared(package, settings)) == ['a.py: imports scipy, not among the requirements']
    late = settings.replace('numpy>=2', 'scipy')
    assert list(repo.undeclared(package, late)) == ['a.py: imports numpy, not among the requirements']


def test_repo_finds_imports_that_warn(tmp_path):
    source = 'from transformers import A\ndef f():\n    from transformers import A\n    import json\n'
    (tmp_path/'a.py').write_text(source)
    (tmp_path/'b.py').write_text('def f():\n    with quiet_imports(): import datasets\n')
    assert list(repo.loud(tmp_path)) == ['a.py line 3: put the import into `with quiet_imports()`']


def test_repo_finds_private_paths():
    assert repo.PRIVATE.search('see /' + 'home/me/data') and not repo.PRIVATE.search('see ../shared/home/me')


def test_sidebar_and_links_follow_the_numbers(tmp_path, capsys):
    written(tmp_path, [prose('See [tripling](10_tripling.ipynb#why).')])
    written(tmp_path, GOOD, '11_tripling.ipynb')
    assert pages.main(True, tmp_path) == 1           # no sidebar yet, and a link to an old number
    assert '00_doubling.ipynb is stale' in capsys.readouterr().out
    assert pages.main(False, tmp_path) == 0 and pages.main(True, tmp_path) == 0
    assert '](11_tripling.ipynb#why)' in (tmp_path/'00_doubling.ipynb').read_text()
    lines = (tmp_path/'sidebar.yml').read_text().split('\n')
    assert [o.strip(' -') for o in lines if 'section' in o] == ['section: Basics', 'section: Data']
    written(tmp_path, GOOD, '12_halving.ipynb')
    assert pages.main(True, tmp_path) == 1           # a notebook that the sidebar lacks
    written(tmp_path, [prose('[lost](40_lost.ipynb)')], '12_halving.ipynb')
    pages.main(False, tmp_path)
    assert pages.main(True, tmp_path) == 1           # a link that leads nowhere
    assert 'a link to 40_lost.ipynb, which is not a notebook' in capsys.readouterr().out


def test_a_link_with_a_capital_letter_is_the_title_of_its_page(tmp_path, capsys):
    def front(text): written(tmp_path, [prose('# Start'), prose(text)], 'index.ipynb')
    written(tmp_path, [prose('# More `doubling`\n\n> Twice.')], '00_doubling.ipynb')
    front('[More doubling](00_doubling.ipynb), [how it doubles](00_doubling.ipynb#why), [`double`](00_doubling.ipynb)')
    assert pages.main(False, tmp_path) == 0 and pages.main(True, tmp_path) == 0
    front('| read | [Doubling](00_doubling.ipynb) |')
    for check in (True, False): assert pages.main(check, tmp_path) == 1
    assert "index.ipynb: [Doubling](00_doubling.ipynb): write 'More `doubling`'" in capsys.readouterr().out


def test_readme_links_from_the_root():
    text, _ = readme.cell_markdown(prose('[a](12_a.ipynb) ![b](images/b.png) [c](https://x.org/d.ipynb)'), 0)
    assert text == '[a](nbs/12_a.ipynb) ![b](nbs/images/b.png) [c](https://x.org/d.ipynb)'


def picture(source):
    "A code cell that shows a picture of one byte"
    return dict(code(source), outputs=[dict(output_type='display_data', data={'image/png': 'eA=='})])


def test_readme_gives_each_picture_its_own_alt_text():
    text, files = readme.cell_markdown(picture('#| echo: false\n#| fig-alt: Two curves that cross\nplot()'), 3)
    assert text == '![Two curves that cross](nbs/images/index_3.png)' and files == {'index_3.png': b'x'}
    for source in ('plot()', '#| fig-alt:\nplot()'):
        with pytest.raises(SystemExit, match='cell c shows a picture; say what it shows'):
            readme.cell_markdown(picture(source), 0)


# ---- mutants

@pytest.mark.parametrize('line,after', [
    ('x = a and b', ['x = a or b']), ('x = not a', ['x = a']), ('x = -a', ['x = a']), ('x = a <= b', ['x = a < b']),
    ('x = a is None', ['x = a is not None']), ('a.b = c', ['pass']), ('a[b] = c', ['pass']), ('a, b.c = d', ['pass']),
    ('f(a)', ['pass']), ('a = b', []), ('a += b', ['pass', 'a -= b']), ('x = f(a, k=b)', ['x = f(a)']),
    ('x = f(dim=1)', ['x = f()', 'x = f(dim=2)', 'x = f(dim=0)']), ('return a, b', ['return (b, a)']),
    ('return a - b', ['return b - a', 'return a + b']), ('x = max(a)', ['x = min(a)']), ('x = sum(a)', []),
    ('x = a.sum()', ['x = a.mean()']), ('x = a[b:c]', ['x = a[:c]', 'x = a[b:]']), ('x = True', ['x = False']),
    ('x = .5', ['x = 1.0']), ('x = a if b else c', ['x = c if b else a']),
    ('x = a if b < c else d', ['x = a if b <= c else d']), ('x = [a for a in b if c]', ['x = [a for a in b if not c]']),
    ("x = f'{a + 1}'", []), ('raise E(a + 1)', []), ('x: f(1) = a', []), ('"1 + 1"', [])])
def test_what_a_line_may_become(line, after):
    made = list(mutants.generated('m', f'def f(a):\n    {line}\n', ()))
    assert sorted(m.source.split('\n')[1].strip() for m in made) == sorted(after)
    assert len({m.what for m in made}) == len(made) and all(m.what.startswith('f: ') for m in made)
    assert not list(mutants.generated('m', f'def plot_it(a):\n    {line}\n', ()))


def test_changes_that_look_alike_have_names_of_their_own_and_a_sample_depends_on_them_alone():
    made = list(mutants.generated('m', 'def f(a):\n    a.b()\n    a.b()\n    a.c()\n    return 2*a\n', ()))
    assert [m.what for m in made[:3]] == ['f: a.b() -> pass', 'f: a.b() -> pass (2)', 'f: a.c() -> pass']
    some = mutants.sample(made, 3, 1)
    assert len(some) == 3 and mutants.sample(made[::-1], 3, 1) == some
    assert any(mutants.sample(made, 3, seed) != some for seed in range(2, 9))
    bug = mutants.Mutant('m', 'planted: a bug', '', (), True)
    assert bug in mutants.sample([*made, bug], 0, 0) and len(mutants.sample(made, None, 0)) == len(made)


SHAPES = '''
FIRST = [None][0]
def half(x): return x*.5
def named(x, deep=True): return x
def waited(x):
    while x is None: pass
    return x
'''
CASES = '''
from hiccap.shapes import half, named, waited
def test_half(): assert half(4) == 2
def test_named(): assert named(1) == waited(1)
'''
DEEP = 'named: def named(x, deep=True): -> def named(x, deep=False):'
NAMED = SHAPES.split('\n')[3]
BUG = "planted:\n- {module: shapes, before: 'return x', after: 'return 1', why: always one}\n"
ACCEPTED = f"survivors:\n- {{module: shapes, change: '{DEEP}', reason: 'deep is not read'}}\n"


def checkout(folder, source=SHAPES, more='', cases=CASES):
    "A package of one module with its test"
    for part in ('hiccap', 'tests'): (folder/part).mkdir(parents=True)
    (folder/'hiccap'/'__init__.py').write_text('')
    (folder/'hiccap'/'shapes.py').write_text(source)
    (folder/'tests'/'test_shapes.py').write_text(cases)
    (folder/'tests'/'mutations.yaml').write_text('modules:\n  shapes: [test_shapes.py]\n' + more)
    return folder


def mutate(folder, *args):
    "Status and output of the command"
    command = [sys.executable, TOOLS/'mutate.py', '--root', folder, '--workers', '2', '--timeout', '6', *args]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_mutants_are_killed_survive_time_out_and_break(tmp_path):
    status, out = mutate(checkout(tmp_path))
    assert status == 1 and '| shapes | 5 | 2 | 1 | 1 | 1 | 0 | 75.0% |' in out, out
    for line in ('killed by tests/test_shapes.py::test_half: half: return x * 0.5 -> return x / 0.5',
                 'timed out: waited: while x is None: -> while x is not None:', f'survived: {DEEP}',
                 'broken: module: FIRST = [None][0] -> FIRST = [None][1]'):
        assert line in out, out
    assert (tmp_path/'hiccap'/'shapes.py').read_text() == SHAPES
    assert sorted(p.name for p in tmp_path.rglob('*') if p.is_file()) == [
        '__init__.py', 'mutations.yaml', 'shapes.py', 'test_shapes.py']


def test_a_planted_bug_must_be_killed_and_a_survivor_may_be_listed(tmp_path):
    weak, strong = ('from hiccap.shapes import named\ndef test_named(): ' + o
                    for o in ('assert named(1) == 1\n', 'assert named(2) == 2\n'))
    status, out = mutate(checkout(tmp_path/'weak', NAMED, BUG + ACCEPTED, weak), '--least', '0')
    assert status == 1 and 'survived: planted: always one' in out and f'accepted: {DEEP}' in out, out
    status, out = mutate(checkout(tmp_path/'strong', NAMED, BUG + ACCEPTED, strong))
    assert status == 0 and '| shapes | 2 | 1 | 0 | 0 | 0 | 1 | 100.0% |' in out, out
    more = strong + 'def test_defaults(): assert named.__defaults__ == (True,)\n'
    status, out = mutate(checkout(tmp_path/'stale', NAMED, BUG + ACCEPTED, more))
    assert status == 1 and f'a survivor is killed; remove it there: shapes: {DEEP}' in out, out


def test_tests_that_fail_anyhow_prove_nothing(tmp_path):
    status, out = mutate(checkout(tmp_path, NAMED, cases='def test_it(): assert False\n'))
    assert status == 1 and 'shapes: its tests fail without any change (status 1)' in out and 'assert False' in out


@pytest.mark.parametrize('more,message', [
    (BUG, '`before` occurs 2 times in shapes.py'), (BUG.replace("'return x'", "'return y'"), 'occurs 0 times'),
    (ACCEPTED.replace('True', 'None'), 'is not a mutant any more')])
def test_a_list_that_is_out_of_date_is_refused(tmp_path, more, message):
    folder = checkout(tmp_path, NAMED + ('\n' + NAMED)*(more is BUG), more)
    with pytest.raises(ValueError, match=message): mutants.read_list(folder)


def test_the_list_of_this_package_is_up_to_date():
    found, accepted = mutants.read_list(TOOLS.parent)
    assert {m.module for m in found} >= {'padding', 'losses', 'resuming'}
    assert all((TOOLS.parent/'tests'/t.split('::')[0]).exists() for m in found for t in m.tests)
    assert len({(m.module, m.what) for m in found}) == len(found)
