"""What a reviewer would otherwise have to look for: `python tools/check_repo.py` fails where a notebook mixes imports with
other code (the documentation build executes every cell that imports), or a tracked file names a path of one machine.
"""
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRIVATE = re.compile(r'(?<![\w.])/(?:work|home|root|Users|tmp)/[\w.]+')


def mixed_imports(source):
    "Whether a cell has import statements beside other statements"
    try: body = ast.parse(re.sub(r'^[%!].*$', '', source, flags=re.M)).body
    except SyntaxError: return False
    imports = [isinstance(o, (ast.Import, ast.ImportFrom)) for o in body]
    return any(imports) and not all(imports)


def problems():
    "A line for each thing to mend"
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\n')
    for name in filter(None, tracked):
        path = ROOT/name
        if not path.exists(): continue
        try: text = path.read_text(encoding='utf-8')
        except UnicodeDecodeError: continue
        if path.suffix == '.ipynb':
            nb = json.loads(text)
            for n, cell in enumerate(nb['cells']):
                if cell['cell_type'] == 'code' and mixed_imports(''.join(cell['source'])):
                    yield f'{name}: cell {n} mixes imports with other code; give imports a cell of their own'
                for out in cell.get('outputs', []):
                    if out.get('output_type') == 'error': yield f'{name}: cell {n} was saved with an error'
                    out.get('data', {}).pop('image/png', None)
            text = json.dumps(nb)
        for m in PRIVATE.finditer(text): yield f'{name}: names the path {m.group(0)}'


if __name__ == '__main__':
    found = list(problems())
    print('\n'.join(found) if found else 'notebooks and paths are in order')
    sys.exit(bool(found))
