"""The embedded labelled set: which module of Python's standard library does a docstring belong to?

It is read from the source files of the library and no module is imported, so that none of its code runs: no window, no
browser, no output, whatever the platform. It is the same wherever the same version of Python has its whole library;
what is written in C has no source there and is no part of it.
"""

import ast
import re
import sys
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from distmeta.corpus.words import near_key

SHORTEST, LONGEST = 25, 400
"""A text has so many characters."""
FEWEST = 10
"""Modules with fewer texts are left out."""

APART = {"distutils", "ensurepip", "idlelib", "lib2to3", "msilib", "test", "tkinter", "turtle", "turtledemo", "venv"}
"""What some distributions of Python leave out, or put into packages of their own, so that it is not everywhere."""
_TESTS = {"test", "tests"}
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Docstring(NamedTuple):
    """The first paragraph of a docstring, and the module that it is from, such as `email.message`."""

    text: str
    label: str


@lru_cache(maxsize=1)
def python_docstrings() -> tuple[Docstring, ...]:
    """Return the texts by module, in the order of its source.

    They are first paragraphs of the docstrings of functions, classes and methods, of 25 to 400 characters. The names in
    the module's own are replaced by the word *module*, and texts of several modules (case and punctuation set
    aside) are left out, as are modules with fewer than ten. It is empty where the library has no source files.
    """
    found = dict.fromkeys(row for name, file in _modules() for row in _texts(name, file))
    modules = defaultdict(set)
    for row in found:
        modules[near_key(row.text)].add(row.label)
    rows = [row for row in found if len(modules[near_key(row.text)]) == 1]
    counts = Counter(row.label for row in rows)
    return tuple(row for row in rows if counts[row.label] >= FEWEST)


def library() -> Path:
    """Return the folder of the standard library."""
    return Path(sysconfig.get_path("stdlib"))


def _modules() -> Iterator[tuple[str, Path]]:
    """Yield the names and files of all public modules."""
    folder = library()
    for top in sorted(sys.stdlib_module_names - APART):
        files = [folder / f"{top}.py", *sorted((folder / top).rglob("*.py"))]
        for file in files:
            parts = file.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            if file.is_file() and not any(part.startswith("_") or part in _TESTS for part in parts):
                yield ".".join(parts), file


def _texts(name: str, file: Path) -> Iterator[Docstring]:
    own_names = re.compile(rf"\b({'|'.join(map(re.escape, [name, *name.split('.')]))})\b", re.IGNORECASE)
    for docstring in _docstrings(ast.parse(file.read_bytes())):
        paragraph = " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())
        text = own_names.sub("module", paragraph)
        if SHORTEST <= len(text) <= LONGEST:
            yield Docstring(text, name)


def _docstrings(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _DEFINITIONS) and (docstring := ast.get_docstring(child)):
            yield docstring
        if isinstance(child, ast.stmt | ast.excepthandler):
            yield from _docstrings(child)
