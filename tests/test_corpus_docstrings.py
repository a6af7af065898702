"""`builtin:python-docstrings`: the labelled set inside every CPython."""

import inspect  # noqa: F401 (which `ast` loads where it reads a docstring)
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from distmeta.config import load_config
from distmeta.corpus import docstrings
from distmeta.corpus.builtin import content_of
from distmeta.corpus.docstrings import Docstring, python_docstrings
from distmeta.errors import UserError
from tests.preparing import prepare_small, segments

SOURCE = "builtin:python-docstrings"
LIBRARY = {
    "pathlib.py": '''
"""Of the module itself nothing is taken: this line is a docstring too."""
import no_such_module_of_all
print("what is imported would say this")
def join(): "Join the parts of a pathlib path as this system writes them."
class Path:
    """A path, and
    how it is joined.

    A second paragraph, which is not taken."""
    async def walk(self):
        """Walk through the folders below this one, top down, and yield what is in each."""
if True:
    try:
        def inner(): "This one stands within a condition, as some functions do for a platform."
    except Exception:
        def other(): "This one stands where something was not to be had before it."
def short(): "Too short a text."
def long(): "'''
    + "word " * 81
    + """"
def none(): return "no docstring at all, though it is a text"
""",
    "email/message.py": 'def read(): "Return the Message that an email holds, with all of its headers."\n',
    "email/_private.py": 'def hidden(): "What is private to a package is no module for users to know."\n',
    "email/policy.py": 'def shared(): "A text of two modules, which cannot be told from each other."\n',
    "json/tool.py": 'def shared(): "A text of two Modules - which cannot be told from each other"\n',
    "distutils/core.py": 'def setup(): "What some distributions of Python leave out is left out everywhere."\n',
    "unittest/test/it.py": 'def test(): "Tests are no modules of the library, where a Python comes with them."\n',
    "site-packages/other.py": 'def other(): "What was installed later is no part of the standard library."\n',
}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small standard library in place of Python's own, of which single texts of a module are taken."""
    for name, source in LIBRARY.items():
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / name).write_text(source)
    monkeypatch.setattr(docstrings, "library", lambda: tmp_path / "lib")
    monkeypatch.setattr(docstrings, "FEWEST", 1)
    monkeypatch.setattr("distmeta.corpus.builtin.python_docstrings", python_docstrings.__wrapped__)
    return tmp_path / "lib"


@pytest.mark.filterwarnings("error")
def test_this_python_s_docstrings_are_a_labelled_set(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of CPython 3.11.7: 3,750 texts of 122 modules, and about as many of every version that is asked for.

    Nothing is said and no module of the library is loaded where they are gathered: no window, no browser, no warning.
    """
    python_docstrings.cache_clear()
    before = set(sys.modules)
    rows = python_docstrings()
    assert set(sys.modules) <= before
    assert capfd.readouterr() == ("", "")
    counts = Counter(row.label for row in rows)
    assert 100 <= len(counts) <= 150
    assert 3000 <= len(rows) <= 5000
    assert min(counts.values()) >= 10
    assert {"pathlib", "email.message", "statistics", "zipfile"} <= counts.keys()
    assert not any(re.search(rf"\b{re.escape(row.label)}\b", row.text, re.IGNORECASE) for row in rows)
    manifest = prepare_small(tmp_path / "corpus", [SOURCE], tasks={"label_column": "label"})
    assert manifest.rows.kept == manifest.rows.read == len(rows)
    assert sum(parts.count for parts in manifest.classes.values()) == len(counts)


def test_which_texts_are_taken(library: Path) -> None:
    assert python_docstrings.__wrapped__() == (
        Docstring("Return the module that an module holds, with all of its headers.", "email.message"),
        Docstring("Join the parts of a module path as this system writes them.", "pathlib"),
        Docstring("A path, and how it is joined.", "pathlib"),
        Docstring("Walk through the folders below this one, top down, and yield what is in each.", "pathlib"),
        Docstring("This one stands within a condition, as some functions do for a platform.", "pathlib"),
        Docstring("This one stands where something was not to be had before it.", "pathlib"),
    )


def test_modules_with_few_texts_are_left_out(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docstrings, "FEWEST", 5)
    assert {row.label for row in python_docstrings.__wrapped__()} == {"pathlib"}
    monkeypatch.setattr(docstrings, "FEWEST", 6)
    assert python_docstrings.__wrapped__() == ()


def test_another_python_gives_another_corpus(library: Path) -> None:
    before = content_of("python-docstrings")
    file = library / "pathlib.py"
    file.write_text(file.read_text() + "# a comment changes nothing\n")
    assert content_of("python-docstrings") == before
    file.write_text(file.read_text() + 'def fresh(): "A function that only a later version of Python has."\n')
    assert content_of("python-docstrings") != before


def test_a_python_without_its_source_files_is_told(library: Path, tmp_path: Path) -> None:
    for file in library.rglob("*.py"):
        file.unlink()
    with pytest.raises(UserError, match=r"python-docstrings: the source files of Python's standard library are not in"):
        prepare_small(tmp_path / "corpus", [SOURCE], tasks={"label_column": "label"})


def test_columns_that_it_does_not_have_are_named(tmp_path: Path) -> None:
    for tasks, missing in (
        ({"label_column": "module"}, "no column 'module'; its columns are 'text', 'label'"),
        ({"label_column": "label", "text_column": "words"}, "no column 'words'; its columns are 'text', 'label'"),
        ({"label_column": "label", "text_pair_column": "pair"}, "no column 'pair'; its columns are 'text', 'label'"),
    ):
        with pytest.raises(UserError, match=missing):
            prepare_small(tmp_path / "corpus", [SOURCE], tasks=tasks)


def test_without_labels_it_is_plain_text(library: Path, tmp_path: Path) -> None:
    manifest = prepare_small(tmp_path / "corpus", [SOURCE], splits=())
    assert manifest.rows.kept == len(python_docstrings.__wrapped__())
    assert len(segments(tmp_path / "corpus", manifest)) > 0


def test_what_is_not_built_in_is_told_before_anything_starts() -> None:
    line = r"^corpus.sources: builtin:python-dosc: Python has builtin:python-docs and builtin:python-docstrings in it"
    with pytest.raises(UserError, match=line):
        load_config(None, ["corpus.sources=[builtin:python-dosc]"])
