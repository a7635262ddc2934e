"""Memory that is kept for the next iteration: faster training on a CPU, with the same results.

Each iteration asks for the same large tensors again. The system's allocator gives them back to the system when they are
freed, and gets every page of them anew, filled with zeros, in the next iteration. Kept, and in pages of 2 MiB instead
of 4 KiB, they cost neither the system's time nor that of looking pages up (docs/benchmarks.md).
"""

import ctypes
import mmap
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # numbers of mallopt's settings (malloc.h)
_NEVER = -1  # as a threshold: the heap is never shortened
_RESERVE = 2**31  # bytes of addresses for the heap to grow into, without memory; a quick start's tensors take less


def keep_freed_memory() -> bool:
    """Keep freed tensors' memory, and let the system use large pages for it. For the whole process, until its end.

    Returns:
        whether the C library does; False, and nothing has changed, where it is not glibc.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    # Every tensor in the heap, whatever its size; and a heap that does not shrink.
    if not (libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, _NEVER)):
        return False
    # The heap grows once, so that one call tells the system about all of it. Pages come when they are written to.
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if start := libc.malloc(_RESERVE):
        libc.free(start)
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (start + _RESERVE) // mmap.PAGESIZE * mmap.PAGESIZE
        libc.madvise(first, end - first, mmap.MADV_HUGEPAGE)  # if it may; else pages stay small
    return True
