"""Write README.md from nbs/index.ipynb, without Quarto: `python tools/readme.py`.

With `--check` it fails where it would change a file.

Markdown cells are taken as they are; code cells that are not hidden become fenced blocks, their text outputs indented
blocks, and their pictures files in nbs/images/. A cell with a picture must say what it shows: `#| fig-alt: ...`.
"""
import base64
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 'nbs/images'


def linked(text):
    "Links to pictures and notebooks as they are seen from the root of the repository"
    return re.sub(r'\]\((\w+\.ipynb)', r'](nbs/\1', re.sub(r'\]\(images/', f']({IMAGES}/', text))


def alt_text(directives, cell):
    "What a cell's picture shows; ends the program where the cell does not say it"
    found = [d.partition(':')[2].strip(' "') for d in directives if d.startswith('fig-alt:')]
    if not found or not found[0]:
        sys.exit(f"index.ipynb: cell {cell.get('id')} shows a picture; say what it shows, as in '#| fig-alt: A curve'")
    return found[0]


def cell_markdown(cell, n):
    "Markdown of a cell, and the pictures it needs: file name -> bytes, numbered from `n`"
    source, pictures = ''.join(cell['source']), {}
    directives = re.findall(r'^#\|\s*(.+)$', source, re.M)
    if 'hide' in directives or any(d.startswith('default_exp') for d in directives): return '', {}
    if cell['cell_type'] != 'code': return linked(source), {}
    code = re.sub(r'^#\|.*\n?', '', source, flags=re.M)
    parts = [] if any(re.match(r'echo:\s*false', d) for d in directives) else [f'```python\n{code.strip()}\n```']
    for out in cell['outputs']:
        data = out.get('data', {})
        if 'image/png' in data:
            name = f'index_{n + len(pictures)}.png'
            pictures[name] = base64.b64decode(data['image/png'])
            parts.append(f'![{alt_text(directives, cell)}]({IMAGES}/{name})')
        elif 'text/markdown' in data: parts.append(''.join(data['text/markdown']))
        else:
            text = ''.join(out.get('text') or data.get('text/plain', ''))
            parts.append('\n'.join('    ' + line for line in text.rstrip().splitlines()))
    return '\n\n'.join(parts), pictures


def main(check):
    "Write or check README.md and its pictures; the exit status"
    cells = json.loads((ROOT/'nbs/index.ipynb').read_text(encoding='utf-8'))['cells']
    parts, files = ['<!-- Written from nbs/index.ipynb by tools/readme.py: edit the notebook. -->'], {}
    for cell in cells:
        text, pictures = cell_markdown(cell, len(files))
        if text.strip(): parts.append(text.strip())
        files |= {ROOT/IMAGES/k: v for k, v in pictures.items()}
    files[ROOT/'README.md'] = ('\n\n'.join(parts) + '\n').encode()
    stale = [p for p, data in files.items() if not p.exists() or p.read_bytes() != data]
    orphans = [p for p in (ROOT/IMAGES).glob('index_*.png') if p not in files]
    if check:
        for p in stale:
            print(f'{p.relative_to(ROOT)} is stale: run python tools/readme.py', file=sys.stderr)
        for p in orphans: print(f'{p.relative_to(ROOT)} is shown nowhere: run python tools/readme.py', file=sys.stderr)
        return int(bool(stale or orphans))
    for p in orphans: p.unlink()
    for p in stale:
        p.parent.mkdir(exist_ok=True)
        p.write_bytes(files[p])
        print(f'wrote {p.relative_to(ROOT)}')
    return 0


if __name__ == '__main__': sys.exit(main('--check' in sys.argv[1:]))
