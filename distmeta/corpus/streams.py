"""Bytes of files, local or remote, plain or compressed, in bounded memory."""

import bz2
import lzma
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.fs

CHUNK = 1 << 20
_ZSTD_CHUNK = 1 << 15
"""Smaller, since pyarrow gives nothing of a chunk within which a stream is broken."""
_XZ_MEMORY = 1 << 29
"""What an xz stream may ask for: more than `xz -9` does (bytes)."""


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


def read_head(root: str, path: str, size: int) -> bytes:
    """Return the first bytes of a file."""
    with filesystem(root).open_input_file(path) as file:
        head: bytes = file.read(size)
        return head


def read_plain(root: str, path: str, kind: str) -> Iterator[bytes]:
    """Yield the plain bytes of a file compressed by gzip, bzip2, xz or zstd, of any number of members.

    Raises BrokenStream at the place where the stream is cut or damaged, after everything before it.
    """
    if kind == "zstd":
        yield from _read_zstd(root, path)
    else:
        yield from _decompress(read_bytes(root, path), kind)


def _new_decompressor(kind: str) -> Any:
    if kind == "gzip":
        return zlib.decompressobj(wbits=31)
    return bz2.BZ2Decompressor() if kind == "bzip2" else lzma.LZMADecompressor(memlimit=_XZ_MEMORY)


def _decompress(chunks: Iterator[bytes], kind: str) -> Iterator[bytes]:
    decompressor = _new_decompressor(kind)
    for chunk in chunks:
        while True:
            if decompressor.eof:
                chunk = chunk.lstrip(b"\0")  # padding behind a member
                if not chunk:
                    break
                decompressor = _new_decompressor(kind)
            try:
                plain = decompressor.decompress(chunk, CHUNK)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
                raise BrokenStream(f"damaged {kind} ({error})") from error
            if plain:
                yield plain
            if decompressor.eof:
                chunk = decompressor.unused_data
            elif kind == "gzip":
                chunk = decompressor.unconsumed_tail
            else:
                chunk = b""
            if not chunk and (decompressor.eof or getattr(decompressor, "needs_input", True)):
                break
    if kind == "gzip" and (plain := decompressor.flush()):
        yield plain
    if not decompressor.eof:
        raise BrokenStream(f"{kind} cut short")


def _read_zstd(root: str, path: str) -> Iterator[bytes]:
    with filesystem(root).open_input_stream(path, compression="zstd") as file:
        while True:
            try:
                chunk = file.read(_ZSTD_CHUNK)
            except OSError as error:
                what = "zstd cut short" if "Truncated" in str(error) else f"damaged zstd ({error})"
                raise BrokenStream(what) from error
            if not chunk:
                return
            yield chunk
