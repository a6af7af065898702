"""How the workers of a run are asked to leave a checkpoint and end, to be started again as others or elsewhere.

Ray's controller asks, by a call to each worker's process, in which the training runs in a thread of its own: so nothing
has to be seen by both but the cluster.
"""

import threading

from distmeta.errors import UserError

_asked = threading.Event()


class StartAgain(Exception):
    """What a worker ends by that was asked to: a checkpoint is there, and nothing has failed."""


class StoppedWaiting(UserError):
    """A stop was requested while there were no workers to leave a checkpoint."""


def ask() -> None:
    """Asks the worker of this process."""
    _asked.set()


def is_asked() -> bool:
    """Whether the worker of this process has been asked."""
    return _asked.is_set()
