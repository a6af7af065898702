"""JSON: objects one a line, or one after the other, or in a list that may stand inside one object."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from distmeta.corpus.kinds import HEAD
from distmeta.corpus.records import Dropped, Reason, Record, Records, RecordSettings, Tally
from distmeta.corpus.streams import BrokenStream
from distmeta.corpus.text_files import Lines

_NAN = object()
_CONSTANTS = {"NaN": _NAN, "Infinity": "inf", "-Infinity": "-inf"}


class _Twice(dict[str, Any]):
    """An object in which a key stands twice, with values that differ; `key` is one of these."""

    key: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    twice = [key for key, each in pairs if each != value[key]]
    if twice:
        value = _Twice(value)
        value.key = twice[0]
    return value


_DECODER = json.JSONDecoder(
    parse_int=str, parse_float=str, parse_constant=_CONSTANTS.__getitem__, object_pairs_hook=_object
)
"""Numbers stay as they are spelled: as a label, 7 and "7" are the same name and 1e3 is not 1000. NaN is no name."""


def lacks(missing: Iterable[str], present: Iterable[str]) -> str:
    """Return what is said of a file without columns that are needed."""
    return f"has no column {', '.join(map(repr, missing))}; its columns are {', '.join(map(repr, present)) or 'none'}"


def is_by_lines(head: bytes, text_column: str) -> bool:
    """Whether a file that begins so holds one JSON value a line."""
    text = head[:HEAD].decode(errors="replace").lstrip("\ufeff \t\r\n")
    *lines, last = text.split("\n")
    lines = [line for line in [*lines, *([last] if len(head) <= HEAD else [])] if line.strip()][:50]
    values = list(map(_whole, lines))
    objects = [value for value in values if isinstance(value, dict)]
    if len(lines) == len(objects) == 1:
        return text_column in objects[0] or not any(map(_is_list_of_objects, objects[0].values()))
    lists = [value for value in values if isinstance(value, list) and not _is_list_of_objects(value)]
    begins_values = text[:1] in ("[", "{") or any(line.strip() in ("[", "{") for line in lines)
    return not begins_values or 2 * len(objects) >= max(len(lines), 1) or len(lists) > 1


def _whole(line: str) -> Any:
    try:
        return _DECODER.decode(line)
    except (ValueError, RecursionError):
        return None


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


class Rows:
    """Makes records of JSON values, and knows which columns it has met."""

    def __init__(self, settings: RecordSettings, tally: Tally) -> None:
        self._columns = (settings.text_column, settings.pair_column, settings.label_column)
        self._needed, self._tally = settings.columns, tally
        self._met = Counter[str]()
        label = re.escape(json.dumps(settings.label_column, ensure_ascii=False))
        self._label = re.compile(rf'{label}\s*:\s*("(?:[^"\\]|\\.)*"|[\w.+-]+)') if settings.label_column else None

    def record(self, number: int, value: object) -> Record | Dropped:
        """Return the record in a value."""
        if not isinstance(value, dict):
            return Dropped(number, "not_an_object", _what(value))
        if isinstance(value, _Twice) and value.key in self._needed:
            return Dropped(number, "not_text", f"{value.key!r} stands twice in it")
        self._met.update(value.keys())
        values: list[str | None] = []
        absent: list[str] = []
        wrong = ""
        for name in self._columns:
            each = None if name is None else value.get(name)
            if isinstance(each, dict | list):
                wrong = wrong or f"{name!r} is {_what(each)}"
            absent.append("")
            if name is not None and (each is None or each is _NAN):
                absent[-1] = f"{name!r} is {_what(each)}" if name in value else f"no {name!r}"
            each = None if each is _NAN else each
            values.append(("false", "true")[each] if isinstance(each, bool) else each)
        if wrong:
            return Dropped(number, "not_text", wrong, label=values[2] if isinstance(values[2], str) else None)
        text, pair, label = values
        return Record(number, text, pair, label, absent[0] or absent[2] or absent[1])

    def label_in(self, text: str | None) -> str | None:
        """Return the label in a text that is not JSON, as far as it can be told."""
        found = self._label.search(text) if self._label and text else None
        value = _whole(found[1]) if found else None
        return value if isinstance(value, str) else None

    def finish(self) -> None:
        """Tell the tally which columns no value had."""
        if self._met and (missing := [name for name in self._needed if name not in self._met]):
            self._tally.problems.append(lacks(missing, list(self._met)[:30]))


def _what(value: object) -> str:
    if value is None or value is _NAN:
        return "null" if value is None else "NaN"
    return {dict: "an object", _Twice: "an object", list: "a list", bool: "a truth value", str: "a string or a number"}[
        type(value)
    ]


def read_json_lines(lines: Lines, settings: RecordSettings, tally: Tally) -> Records:
    """Yield the records of JSON lines."""
    rows = Rows(settings, tally)
    for line in lines:
        if isinstance(line, Dropped):
            yield line._replace(label=rows.label_in(line.line))
            continue
        number, text = line
        if not text.strip():
            yield Dropped(number, "empty")
            continue
        try:
            value = _DECODER.decode(text)
        except ValueError as error:
            yield Dropped(number, "not_json", _explain(error), label=rows.label_in(text))
        except RecursionError:
            yield Dropped(number, "not_json", "nested too deeply")
        else:
            yield rows.record(number, value)
    rows.finish()


def _explain(error: ValueError) -> str:
    return f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)


def read_json_values(text: Iterator[str], settings: RecordSettings, tally: Tally) -> Records:
    """Yield the records of JSON objects in a list, of the only list of objects in an object, or one after the other.

    Their number is their place among them. One that cannot be read is dropped, and reading goes on with the next one
    that can be found. Where a list does not end the tally is told.
    """
    values = _Values(text, settings.max_record_bytes)
    rows = Rows(settings, tally)
    number = 0
    indent: str | None = None
    try:
        wrapper = values.enter(settings.text_column)
        is_list = wrapper is not None
        while char := values.peek():
            if char == "," or (char == "[" and not is_list and values.is_list_of_objects()):
                is_list = is_list or char == "["  # a list behind a list, of files put together
                values.skip()
            elif char == "]" and is_list:
                values.skip()
                is_list = False
                if wrapper:
                    values.leave(wrapper)
                    wrapper = None
            else:
                number += 1
                own = values.before if char == "{" and not values.before.strip() else indent
                record = _next_record(values, rows, number, own)
                if isinstance(record, Record):
                    indent = own
                yield record
        if values.broken is not None:
            tally.problems.append(f"{values.broken} after row {number}")
        elif is_list:
            tally.problems.append(f"its list does not end: cut short after row {number} (line {values.line})")
    except _Unreadable as error:
        tally.problems.append(f"cannot be read after row {number} (line {values.line}): {error.detail}")
    rows.finish()


def _next_record(values: "_Values", rows: Rows, number: int, indent: str | None) -> Record | Dropped:
    line = values.line
    try:
        value = values.value()
        if (char := values.peek()) and char not in ',]{["':
            raise _Unreadable("not_json", f"{char!r} stands behind it")
        return rows.record(number, value)
    except _Unreadable as error:
        passed = values.find_next(indent)
        return Dropped(number, error.reason, f"line {line}: {error.detail}", label=rows.label_in(passed))


class _Unreadable(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason: Reason = reason
        self.detail = detail


_NO_SPACE = re.compile(r"[^\s\ufeff]")
_KEY = re.compile(r'\s*,?\s*(?=")')
_COLON = re.compile(r"\s*:\s*")
_LIST_BEGINS = re.compile(r"\[\s*(\S)|[^\[]")
_LIST_OF_OBJECTS = re.compile(r"\[\s*(?=\{)")


class _Values:
    """A reader of JSON values in a stream, which holds no more than the longest may take and one chunk."""

    def __init__(self, chunks: Iterator[str], longest: int) -> None:
        self.line = 1
        self.before = ""
        """What stands before the place in its line, of which not more than the beginning is kept."""
        self.broken: Exception | None = None
        """What has ended the stream before its end."""
        self._chunks, self._longest = chunks, longest
        self._text = ""
        self._position = 0

    def peek(self) -> str:
        """Return the next character that is no white space, without passing it; nothing at the end."""
        while not (found := _NO_SPACE.search(self._text, self._position)):
            self._go_to(len(self._text))
            if not self._more():
                return ""
        self._go_to(found.start())
        return found[0]

    def skip(self) -> None:
        """Pass a character."""
        self._go_to(self._position + 1)

    def value(self) -> Any:
        """Return the value that begins here and pass it. Raises _Unreadable, without passing anything."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except RecursionError:
                raise _Unreadable("not_json", "nested too deeply") from None
            except json.JSONDecodeError as error:
                held = len(self._text) - self._position
                is_inside = error.pos >= len(self._text) or error.msg.startswith("Unterminated")
                if held > self._longest:
                    raise self._too_long() if is_inside else _Unreadable("not_json", error.msg) from None
                if not self._more(held):
                    is_cut = is_inside and self.broken is not None
                    raise _Unreadable("truncated" if is_cut else "not_json", error.msg) from None
                continue
            if end == len(self._text) and not isinstance(value, dict | list) and self._more():
                continue  # a number may go on
            if end - self._position > self._longest:
                raise self._too_long()
            self._go_to(end)
            return value

    def _too_long(self) -> _Unreadable:
        return _Unreadable("too_long", f"longer than corpus.max_record_bytes, {self._longest}")

    def find_next(self, indent: str | None) -> str:
        """Go from a value that cannot be read to where the next one seems to begin; return some of what was passed.

        Objects of one list begin behind the same white space, if they begin on lines of their own.
        """
        before = r",\s*|\n[ \t]*" if indent is None else rf"\n{indent}"
        pattern = re.compile(rf"(?:{before})(?=\{{)")
        passed = self._text[self._position : self._position + 10_000]
        start = self._position
        while not (found := pattern.search(self._text, start)):
            # What is found could begin at the end of what is held.
            self._go_to(max(self._position, len(self._text) - 1000))
            if not self._more():
                self._go_to(len(self._text))
                return passed
            start = self._position
        self._go_to(found.end())
        return passed

    def is_list_of_objects(self) -> bool:
        """Whether what begins here is one, or a list without anything in it."""
        while not (found := _LIST_BEGINS.match(self._text, self._position)) and self._more():
            pass
        return found is not None and found[1] in ("{", "]")

    def enter(self, text_column: str) -> str | None:
        """Go into the list at the beginning; return the key that it stands under, or nothing of one that stands alone.

        None, and going nowhere, where there is no such list.
        """
        char = self.peek()
        if char == "[":
            self.skip()
            return ""
        position = self._position + 1
        try:
            while char == "{" and (match := _KEY.match(self._text, position)):
                key, position = _DECODER.raw_decode(self._text, match.end())
                colon = _COLON.match(self._text, position)
                if colon is None or key == text_column:
                    return None
                if inside := _LIST_OF_OBJECTS.match(self._text, colon.end()):
                    self._go_to(inside.end())
                    return str(key)
                _, position = _DECODER.raw_decode(self._text, colon.end())
        except (ValueError, RecursionError):
            pass  # its reader will say what is wrong
        return None

    def leave(self, wrapper: str) -> None:
        """Pass what stands behind the list under the key `wrapper`. Raises _Unreadable where there is another one."""
        while (char := self.peek()) and char != "}":
            if char in ",:":
                self.skip()
            elif not self.is_list_of_objects():
                self.value()
            else:
                raise _Unreadable("not_json", f"it has another list of objects than {wrapper!r}: give one alone")
        self.skip()

    def _more(self, at_least: int = 1) -> bool:
        """Take in more of the stream; whether there was any."""
        taken = [self._text[self._position :]]
        size = 0
        try:
            for chunk in self._chunks:
                taken.append(chunk)
                size += len(chunk)
                if size >= at_least:
                    break
        except (BrokenStream, OSError) as error:
            self.broken = error
        if size:
            self._text, self._position = "".join(taken), 0
        return size > 0

    def _go_to(self, position: int) -> None:
        passed = self._text[self._position : position]
        self.line += passed.count("\n")
        _, line_break, behind = passed.rpartition("\n")
        self.before = (behind if line_break else self.before + behind)[:200]
        self._position = min(position, len(self._text))
