"""Records: one text each, with its label and its second text where there are any. How they are counted and cleaned."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Reason = Literal[
    "invalid_utf8",
    "nul_byte",
    "too_long",
    "empty",
    "truncated",
    "not_json",
    "not_an_object",
    "not_text",
    "wrong_number_of_fields",
    "stray_quote",
    "missing_text",
    "missing_pair",
    "missing_label",
    "repeat",
]
"""Why a record was dropped."""


class Record(NamedTuple):
    """A record as it was read. `number` is its line, or its row in a format without lines; both count from 1."""

    number: int
    text: str | None
    pair: str | None = None
    label: str | None = None


class Dropped(NamedTuple):
    """A record that could not be read."""

    number: int
    reason: Reason


Records = Iterator[Record | Dropped]


@dataclass(frozen=True, slots=True)
class RecordSettings:
    """What a record is and how it is cleaned."""

    record: str
    normalize: str
    split_sentences: bool
    max_record_bytes: int
    text_column: str
    pair_column: str | None
    label_column: str | None
    max_sentence_words: int = 100

    @property
    def columns(self) -> list[str]:
        """The columns that a file has to have."""
        return [name for name in (self.text_column, self.pair_column, self.label_column) if name is not None]


@dataclass(slots=True)
class Tally:
    """What became of the records of one piece of a source. `read` is `kept` and all of `dropped`."""

    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def clean_records(records: Records, settings: RecordSettings, tally: Tally) -> Iterator[Record]:
    """Yield the records that are good, cleaned, and count every one in `tally`."""
    for record in records:
        tally.read += 1
        cleaned = record if isinstance(record, Dropped) else _clean(record, settings)
        if isinstance(cleaned, Dropped):
            tally.dropped[cleaned.reason] = tally.dropped.get(cleaned.reason, 0) + 1
        else:
            tally.kept += 1
            yield cleaned


def _clean(record: Record, settings: RecordSettings) -> Record | Dropped:
    number, text, pair, label = record
    if text is None:
        return Dropped(number, "missing_text")
    if settings.label_column is not None and not label:
        return Dropped(number, "missing_label")
    if settings.pair_column is not None and not (pair and pair.strip()):
        return Dropped(number, "missing_pair")
    fields = (text, pair or "", label or "")
    if any("\0" in value for value in fields):
        return Dropped(number, "nul_byte")
    try:
        size = sum(len(value.encode()) for value in fields)
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON can spell it
        return Dropped(number, "invalid_utf8")
    if size > settings.max_record_bytes:
        return Dropped(number, "too_long")
    text = _clean_text(text, settings.normalize)
    if not text:
        return Dropped(number, "empty")
    return Record(number, text, pair and _clean_text(pair, settings.normalize), label)


def _clean_text(text: str, normalize: str) -> str:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if normalize != "none" and not text.isascii():
        text = unicodedata.normalize(normalize, text)  # type: ignore[arg-type]
    return text.strip()
