"""Memory on a CPU."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Has this process keep the memory of freed tensors for the next ones; does nothing without glibc.

    By default much of it may go back to the system after a pass, and each of its pages is asked for again in the next
    (https://man7.org/linux/man-pages/man3/mallopt.3.html).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 2**30)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
