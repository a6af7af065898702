"""The plain loop with three length buckets a support or query set, where it has sentences enough."""

from peers.by_hand import make_loop
from peers.work import Contestant, Work


def make(work: Work) -> Contestant | None:
    """The loop with at most three batches a set."""
    return make_loop(work, 3)
