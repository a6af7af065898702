"""What happens to a run beside its metrics: lost workers and warnings. Light, since Ray's controller loads it too."""

import json
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

from distmeta.rundir import RunDirectory


def note(path: Path, rank: int, text: str, details: str = "", *, tell: bool = True) -> None:
    """Adds an event to the file at `path`; `tell`: whether the driver is to say its text when it comes by."""
    with path.open("a", encoding="utf-8") as file:
        event = {"time": time.time(), "rank": rank, "text": text, "details": details, "tell": tell}
        file.write(json.dumps(event, ensure_ascii=False) + "\n")


class EventsTail:
    """Follows the events of a run, of whichever process, while they are noted."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._read: Counter[Path] = Counter()
        """Bytes of each file."""

    def new(self) -> list[dict[str, Any]]:
        """Those that were noted since the last call, in the order of their time."""
        found = []
        for path in self._run.path.glob("events*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._read[path])
                content = file.read()
            whole = content[: content.rfind(b"\n") + 1]  # a last line that is still being written is left for later
            self._read[path] += len(whole)
            found += [json.loads(line) for line in whole.splitlines()]
        return sorted(found, key=lambda event: event["time"])


class NoteWarnings(logging.Handler):
    """Passes on what a worker has to say, which nobody else would see."""

    def __init__(self, path: Path, rank: int) -> None:
        super().__init__(logging.WARNING)
        self._path, self._rank = path, rank

    def emit(self, record: logging.LogRecord) -> None:
        note(self._path, self._rank, record.getMessage())
