"""Imports without the garbage collector, and what they leave is never looked at again.

Importing torch, transformers and TRL makes 900,000 objects that stay. Python looks through them again and again while
they are made, and once more whenever it is asked to collect, as accelerate does before the first step: together a
third of what the imports themselves take.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected_imports() -> Iterator[None]:
    """Collect nothing in a block of imports, and set what is there after it apart from what is collected."""
    gc.collect()  # what an earlier stage has left is not kept
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
