"""Records: one text each, with its label and its second text where there are any. How they are counted and cleaned."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import regex

Reason = Literal[
    "invalid_utf8",
    "undecodable",
    "nul_byte",
    "truncated",
    "not_json",
    "not_an_object",
    "not_text",
    "unknown_class",
    "wrong_number_of_fields",
    "stray_quote",
    "too_long",
    "empty",
    "header_again",
    "missing_text",
    "missing_pair",
    "missing_label",
    "repeat",
]
"""Why a record was dropped."""

LOSSES = frozenset[Reason](
    {
        "invalid_utf8",
        "undecodable",
        "nul_byte",
        "truncated",
        "not_json",
        "not_an_object",
        "not_text",
        "unknown_class",
        "wrong_number_of_fields",
        "stray_quote",
    }
)
"""The rule for what is lost and what is only left out.

A record is *lost* where something stands in its place that cannot be read as what its file is: bytes of no text, JSON
that is none, a list where a text should be, a row that is not as wide as the header. So is all that stands in a file
that cannot be read, or behind the place where a stream breaks. A source with a loss is refused, unless
`corpus.accept_losses` is set. All other reasons are ordinary cleaning of records that were read well.
"""

PLACES = 5
"""So many places are kept of each reason, of each file."""
EMPTY = "empty: it has no records"
"""The note on a file in which there is nothing."""
LABELS = 1000
"""Labels of dropped records are kept up to this number, of each piece of a file."""
UNDECODED = "\udcff"
"""Stands for bytes that could not be decoded, where a text is not read by lines."""
_SEEN = regex.compile(r"[^\s\p{Cf}\p{Variation_Selector}]")


class Record(NamedTuple):
    """A record as it was read. `number` is its line, or its row in a format without lines; both count from 1."""

    number: int
    text: str | None
    pair: str | None = None
    label: str | None = None
    absent: str = ""
    """What stands where a value is None: of the text, the label, the second text the first that is."""
    part: int = 0
    """Of a line that is read in parts, how many came before this one."""


class Dropped(NamedTuple):
    """A record that could not be read."""

    number: int
    reason: Reason
    detail: str = ""
    """What stood there."""
    line: str | None = None
    """Its line as far as it can be shown, for who can tell the label in it."""
    label: str | None = None
    """Its label, where that could be read."""


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

    def of_text(self, column: str | None) -> "RecordSettings":
        """Return the same for a source whose texts stand in another column; None: they don't."""
        return self if column is None else replace(self, text_column=column)

    @property
    def too_long(self) -> str:
        """What is said of a record that is too long."""
        return f"longer than corpus.max_record_bytes, {self.max_record_bytes}"


@dataclass(slots=True)
class Tally:
    """What became of the records of one piece of a source. `read` is `kept` and all of `dropped`."""

    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)
    """Of each reason, where the first ones stood, and what stood there."""
    dropped_labels: dict[str, int] = field(default_factory=dict)
    """Records dropped by their label, where that could be read."""
    problems: list[str] = field(default_factory=list)
    """What was wrong with the file as a whole: something in it is lost."""
    notes: list[str] = field(default_factory=list)
    """What else is worth knowing of the file: nothing is lost by it."""
    unit: Literal["line", "row"] = "row"
    """What the numbers of records count."""

    def drop(self, record: Dropped) -> None:
        """Count a record that is not kept."""
        reason = record.reason
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        places = self.places.setdefault(reason, [])
        if len(places) < PLACES:
            places.append(f"{self.unit} {record.number}" + (f": {printable(record.detail)}" if record.detail else ""))
        label = printable(record.label or "")
        if not is_blank(label) and (label in self.dropped_labels or len(self.dropped_labels) < LABELS):
            self.dropped_labels[label] = self.dropped_labels.get(label, 0) + 1


def printable(text: str) -> str:
    """Return a text with half characters, which no file takes, spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def shown(text: str) -> str:
    """Return a text in quotes as a message shows it: in one line, and not more than a glance takes in."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def is_blank(text: str | None) -> bool:
    """Whether there is nothing to be seen in a text: no character, or blanks, zero-width ones among them."""
    return not text or not text.strip() or not (text.isascii() or _SEEN.search(text))


def clean_records(records: Records, settings: RecordSettings, tally: Tally) -> Iterator[Record]:
    """Yield the records that are good, cleaned, and count every one in `tally`."""
    for record in records:
        tally.read += 1
        cleaned = record if isinstance(record, Dropped) else _clean(record, settings)
        if isinstance(cleaned, Dropped):
            tally.drop(cleaned)
        else:
            tally.kept += 1
            yield cleaned


def _clean(record: Record, settings: RecordSettings) -> Record | Dropped:
    number, text, pair, label, absent, part = record

    def dropped(reason: Reason, detail: str = "") -> Dropped:
        return Dropped(number, reason, detail, label=label)

    if text is None:
        return dropped("missing_text", absent)
    if settings.label_column is not None and is_blank(label):
        return dropped("missing_label", absent or f"{settings.label_column!r} is empty")
    if settings.pair_column is not None and is_blank(pair):
        return dropped("missing_pair", absent or f"{settings.pair_column!r} is empty")
    fields = (text, pair or "", label or "")
    if any("\0" in value for value in fields):
        return dropped("nul_byte", "a character that is zero")
    try:
        size = sum(len(value.encode()) for value in fields)
    except UnicodeEncodeError as error:  # half of a surrogate pair, as JSON can spell it
        half = error.object[error.start]
        return dropped("invalid_utf8", f"{half!r} is no character" if half != UNDECODED else "a byte that is not text")
    if size > settings.max_record_bytes:
        return dropped("too_long", settings.too_long)
    text = _clean_text(text, settings.normalize)
    if is_blank(text):
        return dropped("empty")
    return Record(number, text, pair and _clean_text(pair, settings.normalize), label, part=part)


def _clean_text(text: str, normalize: str) -> str:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if normalize != "none" and not text.isascii():
        text = unicodedata.normalize(normalize, text)  # type: ignore[arg-type]
    return text.strip()
