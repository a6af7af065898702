"""The contestants of the meta-gradient benchmark, one file each, and what they are given alike."""

import importlib
from collections.abc import Callable

from peers.work import Contestant, UnavailableError, Work

CONTESTANTS = {
    "distmeta": "ours",
    "by hand": "by_hand",
    "by hand, bucketed": "by_hand_bucketed",
    "higher": "with_higher",
    "torchopt": "with_torchopt",
    "betty": "with_betty",
}
"""File of each contestant, in the order of the table."""

INSTALL = {"betty": "pip install 'pip<24.1' && pip install 'distmeta[benchmark-betty]'"}
"""How to get what a contestant needs, where it is not the one extra."""


def load(name: str) -> Callable[[Work], Contestant | None]:
    """A contestant's factory, which returns None for work that the contestant is not entered for.

    Raises:
        UnavailableError: the library is not installed.
    """
    try:
        make: Callable[[Work], Contestant | None] = importlib.import_module(f"peers.{CONTESTANTS[name]}").make
    except ModuleNotFoundError as error:
        how = INSTALL.get(name, "pip install 'distmeta[benchmark]'")
        package = str(error.name).split(".")[0]
        raise UnavailableError(f"{name} is left out, {package} is not installed: {how}") from error
    return make


__all__ = ["CONTESTANTS", "Contestant", "UnavailableError", "Work", "load"]
