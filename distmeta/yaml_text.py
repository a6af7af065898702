"""YAML as people write it, read into plain values: a mistake is told with its line, and nothing in it is run."""

import codecs
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from distmeta.errors import UserError

MOST_BYTES = 10_000_000
"""A larger file is no configuration."""
MOST_NODES = 100_000
DEEPEST = 30
LARGEST = 2**63 - 1
"""The largest whole number that libraries take."""


class Loader(yaml.SafeLoader):
    """The 1.2 core schema, and no other tags: `1e-3` is a number, `no` and `007` are not a boolean and a 7."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Refuses brackets that nest too deeply at once: for each one PyYAML looks at all that are open."""
        if self.flow_level >= DEEPEST:
            raise yaml.MarkedYAMLError(problem="it nests too deeply", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(token)


Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9_]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+0123456789."),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _null(text: str) -> None:
    return {"": None, "~": None, "null": None}[text.lower()]


def _int(text: str) -> int:
    if len(text) > 100:
        raise ValueError
    number = int(text.replace("_", ""), 16 if text.lower().startswith("0x") else 10)
    if abs(number) > LARGEST:
        raise ValueError
    return number


def _float(text: str) -> float:
    return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


def _str(text: str) -> str:
    text.encode()  # half a pair of surrogates is no character
    if "\0" in text:
        raise ValueError
    return text


def _scalar(convert: Callable[[str], Any], what: str) -> Callable[[yaml.SafeLoader, yaml.Node], Any]:
    def construct(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
        text = loader.construct_scalar(node)  # type: ignore[arg-type]  # refuses what is no scalar
        try:
            return convert(text)
        except (ValueError, KeyError):
            problem = f"{text[:40]!r} is no {what}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

    return construct


_UNKNOWN = yaml.SafeLoader.yaml_constructors[None]
Loader.yaml_constructors = {
    "tag:yaml.org,2002:bool": _scalar(_bool, "true or false"),
    "tag:yaml.org,2002:null": _scalar(_null, "null"),
    "tag:yaml.org,2002:int": _scalar(_int, "whole number of 64 bits"),
    "tag:yaml.org,2002:float": _scalar(_float, "number"),
    "tag:yaml.org,2002:str": _scalar(_str, "text that a file or a path can hold"),
    "tag:yaml.org,2002:seq": yaml.SafeLoader.construct_yaml_seq,
    "tag:yaml.org,2002:map": yaml.SafeLoader.construct_yaml_map,
    None: _UNKNOWN,
}


def read_yaml(file: Path) -> Any:
    """The value in a YAML file: UTF-8, or UTF-16 that begins with its mark.

    Raises:
        UserError: it cannot be read, or see `parse_yaml`.
    """
    try:
        with file.open("rb") as opened:  # which may be a pipe
            content = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise UserError(f"{file}: is larger than {MOST_BYTES // 1_000_000} MB, and so no configuration")
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{file}: line {line} is no UTF-8 text; save the file as UTF-8") from None
    return parse_yaml(text, str(file))


def parse_yaml(text: str, origin: str) -> Any:
    """The value that a YAML text stands for.

    Raises:
        UserError: the text is no YAML, has a tag of its own, a mapping with the same key twice, a number that is too
            large, or nests too deeply; the line is named.
    """
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node)
        return loader.construct_document(node)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        code = f"{error.character:#06x}"
        raise UserError(f"{origin}: line {line} is not valid YAML: it holds the character {code}") from None
    except yaml.MarkedYAMLError as error:
        where = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{origin}:{where} is not valid YAML: {' '.join(str(error.problem).split())}") from None
    except RecursionError:
        raise UserError(f"{origin}: is not valid YAML: it nests too deeply") from None


def _check(root: yaml.Node) -> None:
    """Refuses keys that stand twice or are no words, and what an alias makes endless."""
    nodes, seen = [(root, 1)], 0
    while nodes:
        node, depth = nodes.pop()
        seen += 1
        if seen > MOST_NODES or depth > DEEPEST:
            problem = "it nests too deeply" if depth > DEEPEST else "it has too many values"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        if isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key.start_mark)
                if key.value in keys:
                    problem = f"the key {key.value[:40]!r} stands twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                keys.add(key.value)
                nodes.append((value, depth + 1))
        elif isinstance(node, yaml.SequenceNode):
            nodes += [(value, depth + 1) for value in node.value]
