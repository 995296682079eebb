"""The sidebar and the links to notebooks: `python tools/pages.py` writes both. `--check` fails where it would.

The sidebar has a section for each band of ten numbers. A link to a notebook that has another number now, such as
`[padding](02_padding.ipynb)`, is rewritten by the name after the number. A link whose text starts with a capital letter
names the page, so the text must be the page's title; both fail where it is not.
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BANDS = dict(zip('01234567', ('Basics', 'Data', 'Network', 'Training', 'Several tasks and data sets', 'Runs', 'Use',
                              'Studies')))
NAMED = re.compile(r'\[([A-Z][^\]]*)\]\((?:nbs/)?(\w+)\.ipynb(?:#[^)\s]*)?\)')
LINK = re.compile(r'\]\((nbs/)?(\w+)\.ipynb((?:#[^)\s]*)?)\)')


def numbered(folder):
    "Notebooks with a number, in order"
    return sorted(p for p in folder.glob('*.ipynb') if p.name[0].isdigit())


def sidebar(folder):
    "The text of sidebar.yml"
    lines = ['website:', '  sidebar:', '    contents:', '      - index.ipynb']
    for digit, title in BANDS.items():
        band = [p.name for p in numbered(folder) if p.name[0] == digit]
        if band: lines += [f'      - section: {title}', '        contents:', *(f'          - {name}' for name in band)]
    return '\n'.join(lines) + '\n'


def title(stem): return re.sub(r'^\d+[a-z]*_', '', stem)


def relinked(text, folder):
    "A notebook's text with every link to the notebook's present name, and the links that lead nowhere"
    names, lost = {title(p.stem): p.stem for p in folder.glob('*.ipynb')}, []

    def now(m):
        if m[2] in names.values(): return m[0]
        if title(m[2]) not in names:
            lost.append(f'{m[2]}.ipynb')
            return m[0]
        return f"]({m[1] or ''}{names[title(m[2])]}.ipynb{m[3]})"

    return LINK.sub(now, text), lost


def headings(folder):
    "The title of each notebook, as its heading has it: stem -> title"
    found = {}
    for p in folder.glob('*.ipynb'):
        texts = [''.join(c['source']) for c in json.loads(p.read_text(encoding='utf-8'))['cells']]
        found[p.stem] = next((t.split('\n')[0][2:] for t in texts if t.startswith('# ')), p.stem)
    return found


def misnamed(text, titles):
    "Links that name a page otherwise than its title does"
    def plain(o): return o.replace('`', '').lower()
    for name, stem in NAMED.findall(text):
        if stem in titles and plain(name) != plain(titles[stem]):
            yield f'[{name}]({stem}.ipynb): write {titles[stem]!r}'


def main(check, folder=ROOT/'nbs'):
    "Write or check; the exit status"
    stale, lost = {}, []
    path = folder/'sidebar.yml'
    if not path.exists() or path.read_text(encoding='utf-8') != sidebar(folder): stale[path] = sidebar(folder)
    titles, pages = headings(folder), [*folder.glob('*.ipynb'), *folder.parent.glob('CONTRIBUTING.md')]
    for p in pages:
        old = p.read_text(encoding='utf-8')
        new, dead = relinked(old, folder)
        if new != old: stale[p] = new
        lost += [f'{p.name}: a link to {o}, which is not a notebook' for o in dead]
        lost += [f'{p.name}: {o}' for o in misnamed(new, titles)]
    if not check:
        for p, text in stale.items(): p.write_text(text, encoding='utf-8')
    for p in stale: print(f'{p.name} is stale: run python tools/pages.py' if check else f'wrote {p.name}')
    print(*lost, sep='\n', end='\n' if lost else '')
    return int(bool(lost or (check and stale)))


if __name__ == '__main__': sys.exit(main('--check' in sys.argv[1:]))
