"""What happens to a run beside its metrics: lost workers and warnings. Light, since Ray's controller loads it too."""

import json
import logging
import time
from pathlib import Path


def note(path: Path, rank: int, text: str, details: str = "", *, tell: bool = True) -> None:
    """Adds an event to the file at `path`; `tell`: whether the driver is to say its text when it comes by."""
    with path.open("a", encoding="utf-8") as file:
        event = {"time": time.time(), "rank": rank, "text": text, "details": details, "tell": tell}
        file.write(json.dumps(event, ensure_ascii=False) + "\n")


class NoteWarnings(logging.Handler):
    """Passes on what a worker has to say, which nobody else would see."""

    def __init__(self, path: Path, rank: int) -> None:
        super().__init__(logging.WARNING)
        self._path, self._rank = path, rank

    def emit(self, record: logging.LogRecord) -> None:
        note(self._path, self._rank, record.getMessage())
