"""The text in a file: uncompressed, as UTF-8 whatever it was encoded in, in lines or paragraphs, in bounded memory."""

import codecs
import re
import unicodedata
from collections.abc import Generator, Iterator
from pathlib import PurePosixPath

from distmeta.corpus.kinds import HEAD, compression_of, compression_of_name, guess_encoding, marked_encoding, what_it_is
from distmeta.corpus.pieces import Piece
from distmeta.corpus.records import UNDECODED, Dropped, Reason, Record, Records, RecordSettings, Tally, shown
from distmeta.corpus.streams import BrokenStream, read_bytes, read_plain

BYTE_ORDER_MARK = codecs.BOM_UTF8
BAD_LINES = 50
"""So many lines that are not UTF-8 are kept, to guess what they are."""
BAD_BYTES = 1000
"""So much is kept of each of them (bytes)."""

_ESCAPED_BYTE = re.compile(rb"\\udc(?!ff)([89a-f][0-9a-f])")
"""A byte that is not UTF-8 as `printable` spells it, but the mark of what is lost in characters."""

Lines = Iterator[tuple[int, str] | Dropped]

_MARK = "distmeta.mark"
codecs.register_error(_MARK, lambda error: (UNDECODED, error.end))  # type: ignore[attr-defined]


class RefusedFile(Exception):
    """A file cannot give records at all. The message says why."""


class TextFile:
    """The text of a piece. Use either `lines` or `characters`, once; then `finish`.

    Raises RefusedFile for what holds no text, and BrokenStream or OSError where nothing of it can be read.
    """

    head: bytes
    """Its beginning, as UTF-8."""

    def __init__(self, piece: Piece, settings: RecordSettings, tally: Tally) -> None:
        self._piece, self._settings, self._tally = piece, settings, tally
        self._encoding = piece.encoding
        self._bad: list[bytes] = []
        self._has_utf8 = False
        self._parts = 0
        chunks = read_bytes(piece.root, piece.path, piece.start, piece.end) if piece.start else self._open()
        self.head, self._chunks = _with_head(chunks)
        if b"\r" in self.head and b"\n" not in self.head:  # line breaks as they were on old Macs
            self._chunks = (chunk.replace(b"\r", b"\n") for chunk in self._chunks)

    def _open(self) -> Iterator[bytes]:
        piece, name = self._piece, PurePosixPath(self._piece.path).name
        head, chunks = _with_head(read_bytes(piece.root, piece.path, 0, piece.end))
        compression, named = compression_of(head, name), compression_of_name(name)
        if compression is not None:
            head, chunks = _with_head(read_plain(piece.root, piece.path, compression))
        claim = f"its name says {named}, but it" if named != compression and named else "it"
        if found := what_it_is(head, piece.format, piece.encoding is not None):
            raise RefusedFile(f"{claim} seems to be {found[0]}: {found[1]}")
        if named != compression and head:
            self._tally.notes.append(f"{claim} is {compression or 'not compressed'}, and was read as that")
        self._encoding = marked_encoding(head) or piece.encoding
        if self._encoding is None or codecs.lookup(self._encoding).name in ("utf-8", "utf-8-sig"):
            self._encoding = None
            return chunks
        if marked_encoding(head) is None and _is_plainly_utf8(head):
            raise RefusedFile(f"its encoding is set to {piece.encoding}, but it is UTF-8: leave `encoding` out")
        return _transcode(chunks, self._encoding)

    def lines(self, cut: bool = False) -> Lines:
        """Yield (line number, text) without line break and mark; tell the tally where reading ends early.

        With `cut`, a line that is too long comes in parts, each with its number.
        """
        number, is_over = self._piece.first_record - 1, True
        longest = self._settings.max_record_bytes
        try:
            for line in split_lines(self._chunks, longest, cut):
                number += is_over
                is_part, is_over = not is_over, not isinstance(line, Part)
                self._parts += (is_part or not is_over) and line is not None
                if line is None:
                    yield Dropped(number, "too_long", self._settings.too_long)
                    continue
                if line.startswith(BYTE_ORDER_MARK):  # of the file, or of one that was appended to it
                    line = line.removeprefix(BYTE_ORDER_MARK)
                if b"\0" in line:
                    yield Dropped(number, "nul_byte", "a byte that is zero", line.decode(errors="backslashreplace"))
                    continue
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    yield self._undecodable(number, line, error)
                    continue
                self._has_utf8 = self._has_utf8 or not text.isascii()
                yield number, text
        except BrokenStream as error:
            self._tally.problems.append(f"{error} after line {number}")
            if error.cut_a_line:
                yield Dropped(number + 1, "truncated", "the stream ends within it")
        except OSError as error:
            self._tally.problems.append(f"cannot be read after line {number}: {error}")

    def characters(self) -> Iterator[str]:
        """Yield the text in chunks, with a lone surrogate for what cannot be decoded. Raises BrokenStream, OSError."""
        decoder = codecs.getincrementaldecoder("utf-8")(_MARK)
        for chunk in self._chunks:
            text = decoder.decode(chunk)
            if UNDECODED in text and self._encoding is None:
                for line in chunk.split(b"\n"):
                    self._keep_bad(line)
            yield text
        yield decoder.decode(b"", final=True)

    def finish(self) -> None:
        """Tell the tally, after reading, of lines in parts, and if the encoding was not what it was taken for."""
        if self._parts:
            self._tally.notes.append(
                f"lines longer than corpus.max_record_bytes, {self._settings.max_record_bytes}, were read in "
                f"{self._parts} parts, each of which is a record"
            )
        if not self._bad:
            return
        guess = guess_encoding(self._bad)
        seems = f"it seems to be {guess}" if guess else "there is no telling what it is"
        if guess:
            before = self._bad[0].decode("ascii", "replace").find("\ufffd")
            seems += f" ({shown(self._bad[0][max(0, before - 15) :].decode(guess, 'replace'))})"
        if self._has_utf8:
            problem = f"is UTF-8 but for some lines; of these {seems}: mend them"
        else:
            name = guess or "NAME"
            problem = f"is not UTF-8; {seems}: set its encoding, as in {{path: ..., encoding: {name}}}"
        self._tally.problems.append(problem)
        labels, self._tally.dropped_labels = self._tally.dropped_labels, {}
        for label, count in labels.items():
            as_guessed = _as_guessed(label, guess)
            self._tally.dropped_labels[as_guessed] = self._tally.dropped_labels.get(as_guessed, 0) + count

    def _undecodable(self, number: int, line: bytes, error: UnicodeDecodeError) -> Dropped:
        if self._encoding is not None:
            before = shown(line[: error.start].decode()[-20:])
            return Dropped(number, "undecodable", f"not {self._encoding} after {before}", line.decode(errors="replace"))
        self._keep_bad(line)
        before = shown(line[: error.start].decode()[-20:])
        detail = f"byte 0x{line[error.start]:02x} after {before}"
        return Dropped(number, "invalid_utf8", detail, line.decode(errors="surrogateescape"))

    def _keep_bad(self, line: bytes) -> None:
        if len(self._bad) >= BAD_LINES:
            return
        try:
            line.decode()
        except UnicodeDecodeError as error:
            start = max(0, error.start - BAD_BYTES // 2)
            self._bad.append(line[start : start + BAD_BYTES])


def _as_guessed(label: str, guess: str | None) -> str:
    """Return a label of a line that is not UTF-8 in the encoding that its file seems to have."""
    escaped = _ESCAPED_BYTE.sub(lambda match: bytes.fromhex(match[1].decode()), label.encode())
    return escaped.decode(guess, "replace") if guess else escaped.decode(errors="backslashreplace")


def _with_head(chunks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Return so much of the beginning that it tells what a file is, and all chunks. An error is raised in its place."""
    head = b""
    broken: Exception | None = None
    try:
        while len(head) <= HEAD and (chunk := next(chunks, None)) is not None:
            head += chunk
    except (BrokenStream, OSError) as error:
        if not head:
            raise
        broken = error

    def whole() -> Iterator[bytes]:
        yield head
        if broken is not None:
            raise broken
        yield from chunks

    return head, whole()


def _is_plainly_utf8(head: bytes) -> bool:
    """Whether bytes hold so many characters of UTF-8 that it is no chance."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return len(head) - len(text) >= 5


def _transcode(chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Yield chunks as UTF-8, with bytes that UTF-8 does not know for what cannot be decoded."""
    decoder = codecs.getincrementaldecoder(encoding)(_MARK)
    try:
        for chunk in chunks:
            yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
    except UnicodeError as error:
        raise BrokenStream(f"cannot be decoded as {encoding} ({error})") from error


class Part(bytes):
    """Bytes of a line that is not over with them."""


def split_lines(chunks: Iterator[bytes], longest: int, cut: bool = False) -> Iterator[bytes | None]:
    """Yield lines without their line break.

    Of one longer than `longest` bytes no more is held: it is None, or, with `cut`, comes in parts of at most that size.
    What stands in ASCII without white space over that length is no text, and None in any case. Raises what `chunks`
    raises, with an incomplete last line before it left out.
    """
    carry: bytes = b""
    too_long = False
    try:
        for chunk in chunks:
            *lines, rest = chunk.split(b"\n")
            if lines:
                lines[0] = carry + lines[0]
                for line in lines:
                    if cut and not too_long and len(line) > longest:
                        line, too_long = yield from _in_parts(line, longest)
                    yield None if too_long or len(line) > longest else line.removesuffix(b"\r")
                    too_long = False
                carry = rest
            else:
                carry += rest
            if len(carry) > longest:
                carry, too_long = (yield from _in_parts(carry, longest)) if cut and not too_long else (b"", True)
    except BrokenStream as error:
        error.cut_a_line = bool(carry) or too_long
        raise
    if carry or too_long:
        yield None if too_long else carry.removesuffix(b"\r")


def _in_parts(line: bytes, longest: int) -> Generator[bytes, None, tuple[bytes, bool]]:
    """Yield parts of a line until its rest is no longer than `longest`; return that, and whether it is no text."""
    start = 0
    while len(line) - start > longest:
        end = _place_to_cut(line, start, start + longest)
        if end == start:
            return b"", True
        yield Part(line[start:end])
        start = end
    return line[start:], False


def _place_to_cut(line: bytes, start: int, end: int) -> int:
    """Return where a line can be cut between two places: behind white space, or in a script without it before a letter.

    The first place is returned where there is none.
    """
    if (space := max(line.rfind(b" ", start, end), line.rfind(b"\t", start, end))) >= start:
        return space + 1
    if line[start:end].isascii():
        return start
    for place in range(end, start, -1):
        following = line[place : place + 4].decode(errors="ignore")[:1]
        if line[place] & 0xC0 != 0x80 and not (following and unicodedata.category(following)[0] == "M"):
            return place
    return start


def read_paragraphs(lines: Lines, settings: RecordSettings) -> Records:
    """Yield paragraphs by the number of their first line. A line that cannot be read spoils its paragraph."""
    start, size, held = 0, 0, list[str]()
    reason: Reason | None = None
    detail = ""

    def paragraph() -> Record | Dropped:
        return Dropped(start, reason, detail) if reason else Record(start, "\n".join(held))

    for line in lines:
        if isinstance(line, Dropped):
            if reason is None:
                where = f"line {line.number}: " if start and start != line.number else ""
                reason, detail = line.reason, f"{where}{line.detail}"
            start = start or line.number
            continue
        number, text = line
        if text.strip():
            start = start or number
            size += len(text)
            if size > settings.max_record_bytes and reason is None:
                reason, detail = "too_long", settings.too_long
            if reason is None:
                held.append(text)
        elif start:
            yield paragraph()
            start, size, held, reason, detail = 0, 0, [], None, ""
    if start:
        yield paragraph()
