"""Keeps memory that was freed in the process, for the next tensor of that size, and little of what is compiled.

glibc hands every large block back to the system and asks for it again a moment later, page by page: a third of the time
of a training step on a CPU (https://man7.org/linux/man-pages/man3/mallopt.3.html). Other systems' allocators do not.
"""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Numbers of glibc's malloc.h."""
KEPT_BYTES = 2**30
"""Blocks up to this size come from what the process keeps, and so much may lie free before any is handed back."""
STEP_BYTES = 2**26
"""By how much the process grows at a time."""
COMPILED_PRODUCTS = 256
"""oneDNN compiles a product for its shape and keeps half a megabyte of each, by default 1,024 of them; a step of
training needs 40."""


def keep_freed_memory() -> bool:
    """Ask the C library to keep what is freed; says whether it is one that can be asked."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {M_MMAP_THRESHOLD: KEPT_BYTES, M_TRIM_THRESHOLD: KEPT_BYTES, M_TOP_PAD: STEP_BYTES}
    taken = [mallopt(name, value) for name, value in settings.items()]
    return taken == [1] * len(settings)


def return_freed_memory() -> None:
    """Hand back what lies free between blocks that are in use: sizes that change from step to step leave gaps."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def limit_compiled_products() -> None:
    """Have oneDNN keep few of the products that it compiled, so that memory stays flat while lengths change.

    It reads the variable once, before its first product; whoever has set it is obeyed
    (https://uxlfoundation.github.io/oneDNN/dev_guide_primitive_cache.html).
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(COMPILED_PRODUCTS))
