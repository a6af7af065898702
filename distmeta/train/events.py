"""What happens to a run beside its metrics: lost workers and warnings. Light, since Ray's controller loads it too."""

import json
import logging
import time
from pathlib import Path
from typing import Any

from ray.train import UserCallback


def note(path: Path, rank: int, text: str, details: str = "") -> None:
    """Adds an event to the file at `path`."""
    with path.open("a", encoding="utf-8") as file:
        event = {"time": time.time(), "rank": rank, "text": text, "details": details}
        file.write(json.dumps(event, ensure_ascii=False) + "\n")


class NoteLosses(UserCallback):
    """Notes what workers were lost to, for the driver to tell and the user to look up. Runs in Ray's controller."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in worker_exceptions.items():
            details = str(error).strip() or type(error).__name__
            note(self._path, rank, f"worker {rank} was lost ({details.splitlines()[-1]})", details)


class NoteWarnings(logging.Handler):
    """Passes on what a worker has to say, which nobody else would see."""

    def __init__(self, path: Path, rank: int) -> None:
        super().__init__(logging.WARNING)
        self._path, self._rank = path, rank

    def emit(self, record: logging.LogRecord) -> None:
        note(self._path, self._rank, record.getMessage())
