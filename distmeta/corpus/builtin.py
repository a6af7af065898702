"""The embedded corpora: the documentation and the docstrings that ship inside every CPython."""

import re
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics as module
from pydoc_data.topics import topics

from distmeta.corpus.docstrings import library, python_docstrings
from distmeta.corpus.json_rows import lacks
from distmeta.corpus.parts import digest, file_digest
from distmeta.corpus.records import Record, RecordSettings
from distmeta.corpus.text_files import RefusedFile

DOCS = "python-docs"
SIZES = {DOCS: 465_000, "python-docstrings": 260_000}
"""The corpora by name, and about how many bytes of text each has."""

_UNDERLINE = re.compile(r"^[*=\-~^\"+#.]{3,}$", re.MULTILINE)
_MARKUP = re.compile(r"(?<![\w*])(\*{1,2})(?=\S)([^*\n]+?)(?<=\S)\1(?![\w*])|``([^`]+)``|`([^`<]+?)(?: <[^>]*>)?`_?")
_NO_PROSE = re.compile(
    r"::=|>>>|^ +(?:def|class|import|from|async|@)\b"  # code
    r"|^ *\[\d+\]\s*$|^\s*[|+][-=| ]",  # numbers of footnotes, tables
    re.MULTILINE,
)


def content_of(corpus: str) -> str:
    """Return a hash of what an embedded corpus is in this version of Python."""
    return file_digest(Path(module.__file__)) if corpus == DOCS else digest(python_docstrings())


def read_builtin(corpus: str, settings: RecordSettings) -> Iterator[Record]:
    """Yield the records of an embedded corpus, with labels where it has them and they are asked for.

    Raises RefusedFile where docstrings have no such columns, or Python comes without the source files of its library.
    """
    if corpus == DOCS:
        yield from (Record(number, text) for number, text in enumerate(python_docs(), 1))
        return
    rows = python_docstrings()
    if not rows:
        raise RefusedFile(f"the source files of Python's standard library are not in {library()}")
    if missing := [name for name in settings.columns if name not in rows[0]._fields]:
        raise RefusedFile(lacks(missing, rows[0]._fields))
    wanted = settings.text_column, settings.pair_column, settings.label_column
    for number, row in enumerate(rows, 1):
        text, pair, label = (name and getattr(row, name) for name in wanted)
        yield Record(number, text, pair, label)


def python_docs() -> Iterator[str]:
    """Yield the topics by name, as paragraphs set apart by empty lines, without markup, code and tables."""
    for name in sorted(topics):
        yield "\n\n".join(_paragraphs(topics[name]))


def _paragraphs(topic: str) -> Iterator[str]:
    code_expected = False
    for block in re.split(r"\n\s*\n", _UNDERLINE.sub("", topic)):
        indented = block.strip("\n").startswith("   ")
        if (code_expected and indented) or _NO_PROSE.search(block):
            continue
        code_expected = block.rstrip().endswith(":")
        text = _MARKUP.sub(lambda match: match[2] or match[3] or match[4], " ".join(block.split()))
        if text:
            yield text.removeprefix("* ")
