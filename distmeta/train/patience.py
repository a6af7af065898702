"""Waits for a storage that fails for a while, and says so."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from distmeta.errors import UserError, first_line

logger = logging.getLogger(__name__)

FIRST, LONGEST = 1.0, 30.0
"""Seconds between two attempts, doubled each time."""

REPEAT = 120.0
"""Seconds after which a wait is told again."""

Result = TypeVar("Result")


def patiently(work: Callable[[], Result], what: str, limit: float) -> Result:
    """Returns what `work` does, which is tried again while the storage fails, a full disk included.

    Raises:
        OSError, UserError: that of the last attempt, `limit` seconds after the first.
    """
    began, pause, told = time.monotonic(), FIRST, 0.0
    while True:
        try:
            return work()
        except (OSError, UserError) as error:
            now = time.monotonic()
            if now - began >= limit:
                raise
            if not told or now - told >= REPEAT:
                told = now
                logger.warning(
                    "%s: %s; trying again since %.0f s, for %.0f s at the most (train.wait_for_storage)",
                    what,
                    first_line(error),
                    now - began,
                    limit,
                )
        time.sleep(min(pause, limit))
        pause = min(2 * pause, LONGEST)
