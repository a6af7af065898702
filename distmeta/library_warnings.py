"""What libraries warn of where they are kept quiet: a warning is somebody's last word."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

JUDGED = ("LOAD REPORT", "both are absent from the checkpoint")
"""Parts of warnings of transformers about weights that are missing, of which `distmeta.models.fit` makes faults."""


@contextmanager
def warnings_of_transformers() -> Iterator[list[str]]:
    """While it is entered, what transformers warns of goes into the list instead of being kept quiet, a line each."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if not any(part in text for part in JUDGED):
                said.append(" ".join(text.split()))

    logger, listener = logging.getLogger("transformers"), Listener(logging.WARNING)
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [listener], False
    logger.setLevel(logging.WARNING)
    try:
        yield said
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
