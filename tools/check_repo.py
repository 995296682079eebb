"""Faults that a reviewer would otherwise have to look for: `python tools/check_repo.py` fails where

- a notebook mixes imports with other code (the documentation build executes every cell that imports),
- a cell was saved with an error, or shows a plot and was saved without its picture,
- a tracked file names a path of one machine,
- the package imports a library that settings.ini does not require,
- a function of the package imports a library that warns in notebooks, outside `with quiet_imports()`.
"""
import ast
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRIVATE = re.compile(r'(?<![\w.])/(?:work|home|root|Users|tmp)/[\w.]+')
PACKAGES = dict(sklearn='scikit-learn', yaml='pyyaml')  # import -> the package's name, where they differ
LOUD = {'accelerate', 'datasets', 'fastai', 'transformers'}  # what they import warns in a notebook without ipywidgets
REQUIRED, OPTIONAL = ('requirements',), tuple(f'{o}requirements' for o in ('', 'export_', 'video_', 'dev_'))


def is_import(statement):
    "Whether a statement imports, also `with quiet_imports(): import fastai.basics`"
    if isinstance(statement, ast.With): return all(map(is_import, statement.body))
    return isinstance(statement, (ast.Import, ast.ImportFrom))


def mixed_imports(source):
    "Whether a cell has import statements next to other statements"
    try: body = ast.parse(re.sub(r'^[%!].*$', '', source, flags=re.M)).body
    except SyntaxError: return False
    imports = list(map(is_import, body))
    return any(imports) and not all(imports)


def cell_problems(cell):
    "What is wrong with a code cell"
    source, outputs = ''.join(cell['source']), cell.get('outputs', [])
    if mixed_imports(source): yield 'mixes imports with other code; give imports a cell of their own'
    if any(o.get('output_type') == 'error' for o in outputs): yield 'was saved with an error'
    pictures = any('image/png' in o.get('data', {}) for o in outputs)
    if re.search(r'^plt\.show\(\)', source, re.M) and '#| hide' not in source and not pictures:
        yield 'shows a plot and was saved without it; run it without MPLBACKEND'


def notebook_problems(name, text):
    "A line for each fault of a notebook, and its text without pictures"
    nb, found = json.loads(text), []
    for n, cell in enumerate(nb['cells']):
        if cell['cell_type'] != 'code': continue
        found += [f'{name}: cell {n} {o}' for o in cell_problems(cell)]
        for out in cell.get('outputs', []): out.get('data', {}).pop('image/png', None)
    return found, json.dumps(nb)


def imported(path):
    "Libraries that a module imports: name -> whether at its top"
    tree, found = ast.parse(path.read_text(encoding='utf-8')), {}
    for o in ast.walk(tree):
        if isinstance(o, ast.Import): names = [a.name for a in o.names]
        elif isinstance(o, ast.ImportFrom) and not o.level: names = [o.module]
        else: continue
        for name in names:
            top = name.split('.')[0]
            found[top] = found.get(top, False) or o in tree.body
    return {k: v for k, v in found.items() if k not in sys.stdlib_module_names}


def undeclared(folder, settings):
    "Imports of the package that settings.ini does not require; inside a function an extra is enough"
    parser = ConfigParser(delimiters=['='])
    parser.read_string(settings)
    cfg = parser['DEFAULT']
    declared = {k: {re.split(r'[<>=!\[]', o)[0].lower() for o in cfg.get(k, '').split()} for k in OPTIONAL}
    for path in sorted(folder.glob('*.py')):
        for name, at_top in imported(path).items():
            keys = REQUIRED if at_top else OPTIONAL
            known = {folder.name} | {o for k in keys for o in declared[k]}
            if PACKAGES.get(name, name) not in known: yield f'{path.name}: imports {name}, not among the {keys[0]}'


def loud(folder):
    "Imports inside functions whose warnings a user of a notebook would see"
    for path in sorted(folder.glob('*.py')):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        quiet = {o for w in ast.walk(tree) if isinstance(w, ast.With) and 'quiet_imports' in ast.unparse(w.items[0])
                 for o in ast.walk(w)}
        inside = {o for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for o in ast.walk(f)}
        for o in inside - quiet:
            if isinstance(o, ast.Import): names = {a.name.split('.')[0] for a in o.names}
            elif isinstance(o, ast.ImportFrom) and not o.level: names = {o.module.split('.')[0]}
            else: continue
            if names & LOUD: yield f'{path.name} line {o.lineno}: put the import into `with quiet_imports()`'


def problems():
    "A line for each thing to fix"
    listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split('\n')):
        path = ROOT/name
        if not path.exists(): continue
        try: text = path.read_text(encoding='utf-8')
        except UnicodeDecodeError: continue
        if path.suffix == '.ipynb':
            found, text = notebook_problems(name, text)
            yield from found
        for m in PRIVATE.finditer(text): yield f'{name}: names the path {m.group(0)}'
    yield from loud(ROOT/'hiccap')
    yield from undeclared(ROOT/'hiccap', (ROOT/'settings.ini').read_text(encoding='utf-8'))


if __name__ == '__main__':
    found = list(problems())
    print('\n'.join(found) if found else 'notebooks, paths and requirements are in order')
    sys.exit(bool(found))
