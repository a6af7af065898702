"""When the C library gives the memory of freed tensors back to the system."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


@contextmanager
def freed_at_once() -> Iterator[None]:
    """While it is entered, for all of the process; does nothing without glibc.

    What makes and drops copies of weights, one tensor at a time, leaves holes that the next ones do not fill: a worker
    came to hold twice what its tensors need. Outside, where the same sizes come again and again, pages that are given
    back would have to be asked for again: there the bounds are those up to which glibc raises its own
    (https://man7.org/linux/man-pages/man3/mallopt.3.html).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, 2**19)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, 2**25)
        mallopt(_TRIM_THRESHOLD, 2**26)
