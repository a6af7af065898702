"""Pieces: what one reader reads."""

from dataclasses import asdict, dataclass
from typing import Any

from distmeta.corpus.kinds import compression_of_name

PIECE_BYTES = 16_000_000
PIECE_ROWS = 50_000
UNKNOWN = "unknown"
"""The format of a file whose ending no reader knows: it is lost."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one reader reads: a file, or a range of one that can be cut.

    `start` and `end` are bytes of text and JSON lines, row groups of Parquet, and rows of a Hugging Face dataset; `end`
    is None for all of a file.
    """

    name: str
    """The source's name in rows and messages: the same wherever its folder lies."""
    root: str
    """What the file system is found by."""
    path: str
    format: str
    size: int
    """Bytes of the whole file as it is stored; 0 where they are not known."""
    encoding: str | None = None
    """As the configuration says; None: UTF-8, or what a mark says."""
    start: int = 0
    end: int | None = None
    first_record: int = 1
    columns: tuple[str, ...] | None = None
    hub_config: str | None = None
    hub_split: str = "train"
    text_column: str | None = None
    """Where its source has one of its own; None: that of its data set."""

    @property
    def text_bytes(self) -> int:
        """About how many bytes of text there are to read."""
        if self.end is not None:
            return min(self.size, PIECE_BYTES)
        return self.size * (3 if compression_of_name(self.path) else 1)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its file."""
        return self.start == 0 and self.end is None

    def identity(self) -> dict[str, Any]:
        """All but the place where it lies."""
        return {key: value for key, value in asdict(self).items() if key not in ("root", "path", "size")}
