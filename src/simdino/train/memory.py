"""How the C library treats memory that a step frees."""

from __future__ import annotations

import ctypes
import sys

TRIM, TOP_PAD, MMAP = -1, -2, -3  # mallopt's numbers, malloc.h


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step instead of giving it back to the system, which clears it page by
    page before every use: 5 to 10 % of a step on a CPU (docs/log.md, memory that is given back). Other C libraries are
    left as they are."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP, 32 * 2**20)  # the largest that glibc takes
        mallopt(TRIM, 2**31 - 1)
        mallopt(TOP_PAD, 64 * 2**20)
