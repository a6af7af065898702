"""Bytes of files, local or remote, plain or gzip, and the lines in them, all in bounded memory."""

import zlib
from collections.abc import Iterator
from functools import lru_cache

import pyarrow as pa
import pyarrow.fs

CHUNK = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class BrokenStream(Exception):
    """A compressed stream is cut short or damaged. What came before it was good."""

    cut_a_line = False
    """Whether the last line before it is incomplete."""


@lru_cache(maxsize=32)
def filesystem(root: str) -> pa.fs.FileSystem:
    """Return the file system of an address such as s3://bucket/folder, or the local one for a path."""
    return pa.fs.FileSystem.from_uri(root)[0] if "://" in root else pa.fs.LocalFileSystem()


def read_bytes(root: str, path: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Yield the bytes of a file from `start` to `end` in chunks of at most a megabyte."""
    with filesystem(root).open_input_file(path) as file:
        file.seek(start)
        left = file.size() - start if end is None else end - start
        while left > 0 and (chunk := file.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk


def decompress(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the plain bytes of gzip chunks (any number of members), at most a megabyte at a time.

    Raises BrokenStream at the place where the stream is cut or damaged, after everything before it.
    """
    decompressor = zlib.decompressobj(wbits=31)
    for chunk in chunks:
        while chunk:
            if decompressor.eof:
                if not chunk.strip(b"\0"):  # padding behind the last member
                    break
                decompressor = zlib.decompressobj(wbits=31)
            try:
                plain = decompressor.decompress(chunk, CHUNK)
            except zlib.error as error:
                raise BrokenStream(f"damaged gzip ({error})") from error
            if plain:
                yield plain
            chunk = decompressor.unused_data if decompressor.eof else decompressor.unconsumed_tail
    if plain := decompressor.flush():
        yield plain
    if not decompressor.eof:
        raise BrokenStream("truncated gzip")


def split_lines(chunks: Iterator[bytes], longest: int) -> Iterator[bytes | None]:
    """Yield lines without their line break; None for one longer than `longest` bytes, of which no more is held.

    Raises what `chunks` raises, with an incomplete last line before it left out.
    """
    carry, too_long = b"", False
    try:
        for chunk in chunks:
            *lines, rest = chunk.split(b"\n")
            if lines:
                lines[0] = carry + lines[0]
                for line in lines:
                    yield None if too_long or len(line) > longest else line.removesuffix(b"\r")
                    too_long = False
                carry = rest
            else:
                carry += rest
            if len(carry) > longest:
                carry, too_long = b"", True
    except BrokenStream as error:
        error.cut_a_line = bool(carry) or too_long
        raise
    if carry or too_long:
        yield None if too_long else carry.removesuffix(b"\r")
