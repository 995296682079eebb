"""Every public name says what it is, and every parameter what it takes."""
import importlib
import inspect
import pkgutil
import re

import pytest
from fastcore.docments import docments

import hiccap

MODULES = [m.name for m in pkgutil.iter_modules(hiccap.__path__) if not m.name.startswith('_')]


def undocumented(f):
    "Parameters of `f` without a comment on their line; a line of several shares its comment"
    if not inspect.isclass(f) and not inspect.isfunction(f): return []
    if inspect.isclass(f) and '__init__' not in vars(f): return []
    source = ''.join(
        inspect.getsource(o) for o in (f.__mro__ if inspect.isclass(f) else [f]) if o.__module__.startswith('hiccap'))
    return [
        k
        for k, v in docments(f).items()
        if not v
        and k not in ('self', 'cls', 'return', 'args', 'kwargs', 'kw')
        and not re.search(rf'(?m)^\s+(\*?\w+, )*\*{{0,2}}{k}\b[^#\n]*#', source)
    ]


@pytest.mark.parametrize('module', MODULES)
def test_public_names_are_documented(module):
    mod, missing = importlib.import_module(f'hiccap.{module}'), []
    assert mod.__doc__
    for name in mod.__all__:
        o = getattr(mod, name)
        if not callable(o) or not getattr(o, '__module__', '').startswith('hiccap'): continue
        if not o.__doc__: missing.append((name, 'docstring'))
        missing += [(name, p) for p in undocumented(o)]
    assert not missing
