"""How pages and code are written, as far as a program can check it: `python tools/check_style.py [FILE ...]`.

Without names it checks every notebook, `tests`, `benchmarks`, `tools`, setup.py, README.md and CONTRIBUTING.md, and the
totals over all notebooks. It fails for a code line over 120 characters, an exported cell over 50 lines, too few
examples that show a value, four exports in a row without an example, too many imports inside functions, words that
readers of this field do not know, durations in prose (a measured time is computed and shown, or is not there), and
outputs that show progress bars of libraries or a machine without fonts.
"""
import ast
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH, CELL, LOCAL_IMPORTS = 120, 50, 80
PAGES = 'setup.py', 'README.md', 'CONTRIBUTING.md'
SHOWN, SHOWN_EACH = .5, .25  # least share of example cells with an output: of all, and of each notebook

# pattern of a word -> what to write instead
WORDS = {
    r'\bmend(s|ed|ing)?\b': 'fix',
    r'\bgone on with\b|\bgoes? on with\b|\bgoing on with\b|\bgo on with\b': 'resume, continue',
    r'\bgoes on\b': 'continues',
    r'\bsay_going_on\b|\bbegun_in\b|\btake_up\b': 'log_resuming, started_run, load',
    r'\blined[ -_]up\b|\bline_up\b|\blines up\b': 'packed, unpadded',
    r'\bwhom\b': 'attends to, attended to',
    r'\basked by\b|\basks? (?:its|the) (?:first |second |two )?(?:context|others?)\b': 'attends to',
    r'\bverdicts?\b': 'prediction, predicted class',
    r'\bplanted clips\b': 'synthetic clips',
    r'\bfirst_place\b': 'position_offset',
    r'\bshare_from\b': 'broadcast_object',
    r'\bis no [a-z]+\b': 'is not a …',
    r'\bthere is no such\b': 'unknown …',
    r'\bstands? (?:in|beside)\b|\bstanding in\b': 'is in, is next to',
    r'\blies in\b|\blie in\b': 'is in',
    r'\brooms?\b': 'module, notebook',
    r'\btrivial answers?\b': 'trivial baselines',
    r'\bof what is owed\b|\btimetable\b|\bwhole capacities\b': 'rows due',
    r'\b(?:on|of) (?:a|the) processor\b': 'on a CPU',
    r'\bwhat is said of\b': 'predictions',
}
COUNTS = (r'\d[\d.,]*|half an?|a few|few|several|some|one|two|three|four|five|six|seven|eight|nine|ten|twenty|thirty'
          '|forty|fifty|sixty')
UNITS = r'milliseconds?|seconds?|minutes?|hours?'
# `a second` is an ordinal as often as a time; README.md has what its notebook computed
DURATION = re.compile(rf'\b(?:{COUNTS})[ -](?:{UNITS})\b|\ban? (?:minute|hour)\b'
                      r'|\b(?:in|takes?|took) (?:minutes|hours)\b|\btakes? seconds\b', re.I)
NOISE = re.compile(r'findfont:|\d+%\|.*it/s')  # in what a cell printed on standard error
EXEMPT = {'check_style.py', 'test_tools.py'}  # they hold the words in order to find them


def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']
def source(cell): return ''.join(cell['source'])
def directives(text): return re.findall(r'^#\|\s*(\w+)', text, re.M)


def parsed(text):
    "The statements of a cell, magics left out; None where it is not Python"
    try: return ast.parse(re.sub(r'^\s*[%!].*$', '', text, flags=re.M))
    except SyntaxError: return None


def is_import(tree):
    "Whether there are imports alone, also `with quiet_imports(): import fastai.basics`"
    def imports(o):
        if isinstance(o, ast.With): return all(map(imports, o.body))
        return isinstance(o, (ast.Import, ast.ImportFrom))
    return bool(tree.body) and all(map(imports, tree.body))


def local_imports(tree):
    "Lines of imports inside functions"
    inside = [o for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.Lambda)) for o in ast.walk(f)]
    return sorted({o.lineno for o in inside if isinstance(o, (ast.Import, ast.ImportFrom))})


def odd_words(text):
    "Words of ours in a text, with what to write instead; a key that earlier versions wrote is not one"
    text = re.sub(r'.*# .*earlier versions.*', '', text)
    for pattern, better in WORDS.items():
        for m in re.finditer(pattern, text): yield f'{m.group(0)!r}: write {better!r}'


def durations(text):
    "Times that prose states"
    for m in DURATION.finditer(text): yield f'{m.group(0)!r}: a duration in prose; compute it, or leave it out'


def noise(cell):
    "What a cell printed that depends on the machine"
    printed = (''.join(o['text']) for o in cell.get('outputs', ()) if o.get('name') == 'stderr')
    return [m[0] for text in printed for m in NOISE.finditer(text)]


def long_lines(text): return [n for n, line in enumerate(text.split('\n'), 1) if len(line) > WIDTH]


def notebook(path):
    "The problems of a notebook, and its counts: examples, those that show something, imports inside exported functions"
    found, examples, shown, inside, row = [], 0, 0, 0, 0
    for cell in cells(path):
        text, at = source(cell), f"{path.name} cell {cell.get('id')}"
        found += [f'{at}: {w}' for w in odd_words(text)]
        if cell['cell_type'] != 'code':
            found += [f'{at}: {d}' for d in durations(text)]
            continue
        found += [f'{at}: line {n} is over {WIDTH} characters' for n in long_lines(text)]
        found += [f'{at}: an output holds {o!r}' for o in noise(cell)[:1]]
        kinds, tree = directives(text), parsed(text)
        if tree is None or is_import(tree) or 'default_exp' in kinds or 'hide' in kinds: continue
        if 'export' in kinds:
            inside, row = inside + len(local_imports(tree)), row + 1
            if (n := len(text.split('\n'))) > CELL: found.append(f'{at}: an exported cell of {n} lines')
            if row == 4: found.append(f'{at}: the fourth export in a row without an example')
        else: examples, shown, row = examples + 1, shown + bool(cell.get('outputs')), 0
    if examples and shown/examples < SHOWN_EACH:
        found.append(f'{path.name}: {shown} of {examples} examples show something')
    return found, (examples, shown, inside)


def program(path):
    "The problems of a Python file or a Markdown page"
    text = path.read_text(encoding='utf-8')
    long = [f'{path.name}: line {n} is over {WIDTH} characters' for n in long_lines(text) if path.suffix == '.py']
    if path.suffix == '.md' and path.name != 'README.md': long += [f'{path.name}: {d}' for d in durations(text)]
    return long + [f'{path.name}: {w}' for w in odd_words(text) if path.name not in EXEMPT]


def totals(examples, shown, inside):
    "The problems of all notebooks together"
    if shown < SHOWN*examples: yield f'{shown} of {examples} examples show something; at least {SHOWN:.0%} must'
    if inside >= LOCAL_IMPORTS: yield f'{inside} imports inside functions of the package, not below {LOCAL_IMPORTS}'


def main(names):
    "Print what is found; the exit status"
    paths = [Path(o) for o in names] or sorted((ROOT/'nbs').glob('*.ipynb'))
    found, counts = [], [(0, 0, 0)]
    for p in paths:
        if p.suffix != '.ipynb':
            found += program(p)
            continue
        problems, count = notebook(p)
        found, counts = found + problems, counts + [count]
    examples, shown, inside = map(sum, zip(*counts))
    if not names:
        folders = [p for d in ('tests', 'benchmarks', 'tools') for p in sorted((ROOT/d).glob('*.py'))]
        found += [o for p in [*folders, *(ROOT/o for o in PAGES)] for o in program(p)]
        found += totals(examples, shown, inside)
    print(*found, sep='\n')
    print(f'{len(found)} to correct; {shown} of {examples} examples show something; {inside} imports inside functions')
    return int(bool(found))


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
