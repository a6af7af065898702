"""The metrics file of a run: one JSON object a line, one line an outer step."""

import json
import os
import zlib
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from distmeta.errors import UserError


class MetricsFile:
    """Appends to a metrics file. One process writes it; any number may read it meanwhile.

    A run that goes on after an interruption calls `truncate_after` with the outer step of its checkpoint before it
    appends, so that each step stands in the file once and in order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes a row, which has at least `outer_step`, so that readers see it at once.

        `outer_step` comes first and floats are kept to the last bit. A value that is None is left out. A number (or a
        list with a number) that is not finite is left out too, and its key is listed under `not_finite`.
        """
        kept: dict[str, Any] = {"outer_step": row["outer_step"]}
        not_finite = []
        for key, value in row.items():
            if value is None:
                continue
            if _is_finite(value):
                kept[key] = value
            else:
                not_finite.append(key)
        if not_finite:
            kept["not_finite"] = not_finite
        line = json.dumps(kept, ensure_ascii=False) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode())

    def truncate_after(self, outer_step: int) -> int:
        """Drops the rows of later steps and what a crash left half-written; returns the last step kept, 0 where none
        is.

        The file is cut in place by one call, which either happens or does not.
        """
        if not self.path.exists():
            return 0
        keep, last = 0, -1
        for end, row in _rows(self.path.read_bytes()):
            if not last < row["outer_step"] <= outer_step:
                break
            keep, last = end, row["outer_step"]
        os.truncate(self.path, keep)
        return max(last, 0)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, in order. A last line that is still being written is left out.

    Raises UserError where a whole line is not a row.
    """
    data = path.read_bytes()
    rows = list(_rows(data))
    whole_lines = data.count(b"\n")
    if len(rows) < whole_lines:
        raise UserError(
            f"{path}: line {len(rows) + 1} is not a metrics row; cut the file there, or resume the run, which does"
        )
    return [row for _, row in rows]


class MetricsTail:
    """Follows a metrics file while another process writes it, to drive a progress bar.

    After a resume the writer cuts the file back and goes on. The tail notices, and returns the rows that were written
    anew, with the outer steps of those that they replace, but none that was kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._last_line = b""
        # A checksum a line, four bytes a step: what tells, after a cut, the lines that were seen from new ones.
        self._seen = array("I")

    def new(self) -> list[dict[str, Any]]:
        """The whole rows that were written since the last call; none while there is no file."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            if self._was_cut(file):
                self._go_back(file)
            file.seek(self._offset)
            data = file.read()
        rows = []
        start = 0
        for end, row in _rows(data):
            self._see(data[start:end])
            start = end
            rows.append(row)
        return rows

    def _see(self, line: bytes) -> None:
        self._seen.append(zlib.crc32(line))
        self._offset += len(line)
        self._last_line = line

    def _was_cut(self, file: BinaryIO) -> bool:
        """Whether the last line seen no longer stands where it stood."""
        file.seek(self._offset - len(self._last_line))
        return file.read(len(self._last_line)) != self._last_line

    def _go_back(self, file: BinaryIO) -> None:
        """To the end of the lines that were seen and still stand."""
        seen, self._seen = self._seen, array("I")
        self._offset, self._last_line = 0, b""
        file.seek(0)
        for line, checksum in zip(file, seen, strict=False):
            if zlib.crc32(line) != checksum:
                break
            self._see(line)


def _is_finite(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _rows(data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields each row and where its line ends, up to the first line that is not whole or not a row."""
    end = 0
    for line in data.splitlines(keepends=True):
        end += len(line)
        if not line.endswith(b"\n"):
            return
        try:
            row = json.loads(line)
        except ValueError:
            return
        if not isinstance(row, dict) or "outer_step" not in row:
            return
        yield end, row
