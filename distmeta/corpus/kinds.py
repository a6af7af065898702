"""What a file is, told by its first bytes and not its name: its compression and encoding, or what else it may be."""

import codecs
import re
from collections.abc import Sequence
from contextlib import suppress

HEAD = 65_536
"""About as many bytes of a file are looked at."""

COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
"""The endings of compressed files that are read."""

_MAGIC = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "bzip2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\0"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
}
_FIRST_BYTES = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ\0", "zstd": b"\x28\xb5\x2f\xfd"}

_MARKS = [
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]

_UNPACK = "unpack it"
_SAVE = "save it as CSV, JSON lines or Parquet"
_CONTAINERS: list[tuple[bytes, str, str]] = [
    (rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", "a zip archive or a document such as .xlsx", f"{_UNPACK}, or {_SAVE}"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (rb"Rar!\x1a\x07", "a rar archive", _UNPACK),
    (rb"(?s:.{257})ustar", "a tar archive", _UNPACK),
    (rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18", "lz4", _UNPACK),
    (rb"\x1f[\x9d\xa0]", "data of `compress` (.Z)", _UNPACK),
    (rb"LZIP[\0\x01]", "lzip", _UNPACK),
    (rb"\x89LZO\0", "lzop", _UNPACK),
    (rb"\xff\x06\0\0sNaPpY", "snappy", _UNPACK),
    (rb"\x5d\0\0[\0-\xff]{2}\xff\xff", "lzma of the old kind", "pack it as .xz"),
    (rb"PAR1", "Parquet", "say format: parquet, or end its name in .parquet"),
    (rb"PARE", "encrypted Parquet", _SAVE),
    (
        rb"ARROW1\0\0|\xff{4}[\0-\xff]{4}\x10\0\0\0",
        "an Arrow file",
        f"name the folder that `save_to_disk` has written, or {_SAVE}",
    ),
    (rb"FEA1", "Feather", _SAVE),
    (rb"ORC", "ORC", _SAVE),
    (rb"Obj\x01", "Avro", _SAVE),
    (rb"SQLite format 3\0", "an SQLite database", _SAVE),
    (rb"\x89HDF\r\n\x1a\n", "HDF5", _SAVE),
    (rb"\x93NUMPY", "a NumPy array", _SAVE),
    (rb"\x80[\x02-\x05][\x95}\](c]", "a Python pickle", _SAVE),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document such as .xls", _SAVE),
    (rb"%PDF-", "a PDF document", "take its text out"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a", "a picture", "leave it out"),
    (rb"\x7fELF", "a program", "leave it out"),
]
_CONTAINER = [(re.compile(pattern), what, remedy) for pattern, what, remedy in _CONTAINERS]
_CONTROL = re.compile(rb"[\0-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
"""Bytes that stand in no text in any encoding that builds on ASCII."""
_LFS = b"version https://git-lfs.github.com/spec/"
_HTML = re.compile(rb"\s*<(?:!doctype html|html)", re.IGNORECASE)


def compression_of(head: bytes, name: str) -> str | None:
    """Return how a file is compressed, by its first bytes; its name decides where hardly a byte is left of it."""
    for kind, magic in _MAGIC.items():
        if magic.match(head):
            return kind
    by_name = compression_of_name(name)
    is_cut = bool(head) and by_name is not None and len(head) < 12 and _begins_alike(head, _FIRST_BYTES[by_name])
    return by_name if is_cut else None


def compression_of_name(name: str) -> str | None:
    """Return the compression that a file's ending claims."""
    return next((kind for ending, kind in COMPRESSIONS.items() if name.lower().endswith(ending)), None)


def _begins_alike(one: bytes, other: bytes) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def marked_encoding(head: bytes) -> str | None:
    """Return the encoding that a byte-order mark tells; None without one."""
    return next((encoding for mark, encoding in _MARKS if head.startswith(mark)), None)


def what_it_is(head: bytes, format: str = "text", encoding_is_set: bool = False) -> tuple[str, str] | None:
    """Return what a file is that holds no text to be read as `format`, and what to do with it; None for text.

    `head` is its beginning, uncompressed. With its encoding set, bytes that look odd in UTF-8 mean nothing.
    """
    if head.startswith(_LFS):
        return "a git-lfs pointer, not the file itself", "get the file by `git lfs pull`"
    if format != "text" and _HTML.match(head):
        return "an HTML page", "get the file itself"
    if marked_encoding(head) is not None:
        return None
    head = head[:HEAD]
    control = len(_CONTROL.findall(head))
    if control:
        for pattern, what, remedy in _CONTAINER:
            if pattern.match(head):
                return what, remedy
        for kind, magic in _MAGIC.items():
            if magic.match(head):
                return kind, _UNPACK
    if encoding_is_set:
        return None
    if control:
        if encoding := _unmarked_encoding(head):
            return f"{encoding.upper()} without a mark", f"set its encoding: {encoding}"
        if control * 20 > len(head):
            return "binary data", "leave it out"
    if b"\x1b$" in head:
        return "ISO-2022-JP or the like", "set its encoding, such as iso2022_jp"
    return None


def _unmarked_encoding(head: bytes) -> str | None:
    """Return which of UTF-16 and UTF-32 a head without a mark is: what it decodes to can be printed and has blanks."""
    if head.count(b"\0") * 400 < len(head):
        return None
    for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(head)
        except UnicodeDecodeError:
            continue
        blanks = sum(map(text.count, "\n\r\t "))
        if blanks * 200 > len(text) and sum(each.isprintable() for each in text) + blanks >= len(text):
            return encoding
    return None


_ASCII = b"Some words, 1234"


def guess_encoding(lines: Sequence[bytes]) -> str | None:
    """Return what encoding lines that are not UTF-8 seem to have, by Python's name; None where there is no telling."""
    from chardet import EncodingEra, detect

    sample = b"\n".join(lines)
    texts: dict[str, str] = {}
    for era in (EncodingEra.ALL, EncodingEra.MODERN_WEB):
        name = detect(sample, encoding_era=era, no_match_encoding="utf-8")["encoding"]
        try:
            if _ASCII.decode(name or "utf-8") == _ASCII.decode():  # or line breaks would have been found elsewhere
                texts[codecs.lookup(name or "utf-8").name] = sample.decode(name or "utf-8")
        except (LookupError, UnicodeDecodeError):
            continue
    if not texts:
        return None
    likely, common = next(iter(texts)), list(texts)[-1]
    # Where an encoding that is more common reads the same, it is that one: cp1252 for iso8859-1.
    with suppress(UnicodeDecodeError):
        if sample.decode("cp1252") == texts[likely]:
            return "cp1252"
    return common if texts[common] == texts[likely] else likely
