"""The checks of `tools/` find each fault that they are for, and pass a page without one."""
import importlib.util
import json
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


style, repo, pages, readme = map(tool, ('check_style', 'check_repo', 'pages', 'readme'))


def code(source, shown=None):
    "A code cell, with an output where something is shown"
    outputs = [dict(output_type='execute_result', data={'text/plain': [shown]}, metadata={})] if shown else []
    return dict(cell_type='code', id='c', metadata={}, source=[source], outputs=outputs)


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


def test_readme_links_from_the_root():
    text, _ = readme.cell_markdown(prose('[a](12_a.ipynb) ![b](images/b.png) [c](https://x.org/d.ipynb)'), 0)
    assert text == '[a](nbs/12_a.ipynb) ![b](nbs/images/b.png) [c](https://x.org/d.ipynb)'
