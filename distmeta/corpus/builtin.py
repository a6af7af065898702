"""The embedded corpus: the documentation of the Python language that ships inside every CPython."""

import re
from collections.abc import Iterator
from pydoc_data.topics import topics

_UNDERLINE = re.compile(r"^[*=\-~^\"+#.]{3,}$", re.MULTILINE)
_MARKUP = re.compile(r"(?<![\w*])(\*{1,2})(?=\S)([^*\n]+?)(?<=\S)\1(?![\w*])|``([^`]+)``|`([^`<]+?)(?: <[^>]*>)?`_?")
_NO_PROSE = re.compile(
    r"::=|>>>|^ +(?:def|class|import|from|async|@)\b"  # code
    r"|^ *\[\d+\]\s*$|^\s*[|+][-=| ]",  # numbers of footnotes, tables
    re.MULTILINE,
)


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
