"""The C library's allocator, set for services that move output in chunks of 128 KiB and batches of a MiB."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

KEPT_BYTES: Final = 16 * 1024 * 1024
"""Freed memory at the heap's end that is kept for the next buffers."""
MAPPED_FROM_BYTES: Final = 4 * 1024 * 1024
"""From this size on a buffer is the kernel's again as soon as it is freed."""

# malloc.h of glibc
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_freed_memory() -> None:
    """Have glibc not give every freed buffer back to the kernel: the next one would fault its pages in again.

    Other C libraries are left as they are.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
