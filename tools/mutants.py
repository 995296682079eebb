"""Mutants: modules of the package with one change each, for `tools/mutate.py`.

They come from the syntax tree of the modules that tests/mutations.yaml names, and from the bugs planted there.
"""
import ast
import hashlib
import os
import re
from collections import Counter
from typing import NamedTuple

import yaml

PACKAGE, LIST = 'hiccap', 'tests/mutations.yaml'

# What is not changed: annotations, which do nothing at run time; texts of errors and messages, which decide no number;
# and what is drawn or written for a person to look at, which the notebooks show. Docstrings have nothing to change.
ANNOTATIONS, TEXTS = {'annotation', 'returns', 'type_params'}, (ast.Raise, ast.JoinedStr)
SHOWN = re.compile(r'__repr__|__str__|_repr_\w+_|_?plot\w*|_?show\w*|\w*markdown\w*')

PAIRS = [(ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.In, ast.NotIn), (ast.Is, ast.IsNot),
         (ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.BitAnd, ast.BitOr), (ast.LShift, ast.RShift)]
OPERATORS = {a: b for x, y in PAIRS for a, b in ((x, y), (y, x))} | {
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitXor: ast.BitAnd}
OPPOSITES = [('min', 'max'), ('sum', 'mean'), ('any', 'all'), ('argmin', 'argmax'), ('amin', 'amax'), ('floor', 'ceil')]
NAMES = {a: b for x, y in OPPOSITES for a, b in ((x, y), (y, x))}
ORDERED = ast.Sub, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult, ast.BitOr  # the order of operands matters


class Mutant(NamedTuple):
    "One change of one module"
    module: str
    what: str             # the change, which identifies it: function, code before and after
    source: str           # of the whole module
    tests: tuple          # files in tests/
    planted: bool = False # whether the list has it


# ---- mutants from the syntax tree

def places(owner, where=''):
    "(owner, field, position in a list or None, node, function) of each node that may be changed"
    if isinstance(owner, TEXTS): return
    if isinstance(owner, (ast.FunctionDef, ast.ClassDef)):
        if SHOWN.fullmatch(owner.name): return
        where = f'{where}.{owner.name}'.strip('.')
    for field, value in ast.iter_fields(owner):
        for i, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if field in ANNOTATIONS or not isinstance(node, ast.AST): continue
            yield owner, field, i, node, where
            yield from places(node, where)


def constants(value):
    "Other values for a constant: the neighbours of an integer, twice a float"
    if isinstance(value, bool): return [not value]
    if isinstance(value, int): return [value + 1] + [value - 1]*(value > 0)
    return [2*value or 1.] if isinstance(value, float) else []


def swapped(node):
    "A returned value with its operands in the other order, or None"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ORDERED): return ast.BinOp(node.right, node.op, node.left)
    if isinstance(node, ast.Tuple) and len(node.elts) > 1: return ast.Tuple(node.elts[::-1], ast.Load())


def is_removable(node):
    "Whether a statement is a call, or sets an attribute or an entry, or adds to something"
    if isinstance(node, ast.Expr): return isinstance(node.value, ast.Call)
    targets = [o for t in getattr(node, 'targets', ()) for o in getattr(t, 'elts', [t])]
    return isinstance(node, ast.AugAssign) or any(isinstance(o, (ast.Attribute, ast.Subscript)) for o in targets)


def variants(owner, field, node):
    "What may be in the place of a node; None removes it"
    kind, plain = type(node), (ast.Name, ast.Attribute, ast.Call, ast.NamedExpr)
    if kind in OPERATORS: yield OPERATORS[kind]()
    if kind is ast.Constant: yield from map(ast.Constant, constants(node.value))
    if kind is ast.UnaryOp: yield node.operand  # not, - and ~
    if kind is ast.Name and node.id in NAMES and node.id != 'sum': yield ast.Name(NAMES[node.id], node.ctx)
    if kind is ast.Attribute and node.attr in NAMES: yield ast.Attribute(node.value, NAMES[node.attr], node.ctx)
    if kind is ast.IfExp and isinstance(node.test, plain): yield ast.IfExp(node.test, node.orelse, node.body)
    if isinstance(owner, ast.Slice) or kind is ast.keyword and node.arg and isinstance(owner, ast.Call): yield None
    if isinstance(owner, ast.Return) and (new := swapped(node)): yield new
    if isinstance(node, ast.stmt) and is_removable(node): yield ast.Pass()
    if isinstance(owner, (ast.If, ast.comprehension)) and field in ('test', 'ifs') and kind in plain:
        yield ast.UnaryOp(ast.Not(), node)


def described(before, after, where):
    "A name for a change: the function, and the code before and after with some of its line"
    a, b = next((x.strip(), y.strip()) for x, y in zip(before.split('\n'), after.split('\n')) if x != y)
    start = max(0, len(os.path.commonprefix([a, b])) - 30)
    end = max(0, len(os.path.commonprefix([a[::-1], b[::-1]])) - 15)
    return f"{where or 'module'}: {a[start:len(a) - end]} -> {b[start:len(b) - end]}"


def generated(module, text, tests):
    "The mutants of a module, each under a name of its own"
    statements, seen = ast.parse(text).body, Counter()
    parts = list(map(ast.unparse, statements))
    for n, statement in enumerate(statements):
        for owner, field, i, node, where in list(places(top := ast.Module([statement], []))):
            old = getattr(owner, field)
            for new in variants(owner, field, node):
                setattr(owner, field, new if i is None else old[:i] + [new]*(new is not None) + old[i + 1:])
                after = ast.unparse(ast.fix_missing_locations(top))
                setattr(owner, field, old)
                if after == parts[n]: continue
                what = described(parts[n], after, where)
                seen[what] += 1
                yield Mutant(module, what + f' ({seen[what]})'*(seen[what] > 1),
                             '\n\n'.join([*parts[:n], after, *parts[n + 1:]]), tests)


# ---- the list of planted bugs and of survivors that are accepted

def planted(entry, text, tests):
    "A planted bug; raises `ValueError` unless the code that it replaces occurs exactly once"
    if (n := text.count(entry['before'])) != 1:
        raise ValueError(f"{LIST}: {entry['why']!r}: `before` occurs {n} times in {entry['module']}.py, not once")
    source = text.replace(entry['before'], entry['after'])
    return Mutant(entry['module'], f"planted: {entry['why']}", source, tests, True)


def read_list(root, only=None):
    "The mutants of some or all modules, and the (module, change) of each that may survive; stale: `ValueError`"
    d, found = yaml.safe_load((root/LIST).read_text(encoding='utf-8')), []
    def text(module): return (root/PACKAGE/f'{module}.py').read_text(encoding='utf-8')
    def chosen(k): return [o for o in d.get(k) or () if not only or o['module'] in only]
    for module, tests in d['modules'].items():
        if not only or module in only: found += generated(module, text(module), tuple(tests))
    for o in chosen('planted'):
        found.append(planted(o, text(o['module']), tuple(o.get('tests') or d['modules'][o['module']])))
    accepted = {(o['module'], o['change']) for o in chosen('survivors') if o['reason']}
    if lost := sorted(accepted - {(m.module, m.what) for m in found}):
        raise ValueError(f"{LIST}: survivor {lost[0]} is not a mutant any more; correct or remove it")
    return found, accepted


def sample(mutants, limit, seed):
    "At most `limit` generated mutants of each module, drawn by what they are, and all planted bugs"
    def key(m): return hashlib.sha256(f'{seed} {m.module} {m.what}'.encode()).digest()
    chosen, counts = [], Counter()
    for m in sorted(mutants, key=key):
        if m.planted or limit is None or counts[m.module] < limit: chosen.append(m)
        counts[m.module] += not m.planted
    return sorted(chosen, key=lambda m: m.module)
