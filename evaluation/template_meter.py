"""What one rendering of a chat template may spend: processor time, and what it makes in memory.

Every operation of a template whose result can be larger than what it was given, and every round of a loop, is counted
here (`template_operations`, `template_syntax`). Time is that of this thread, so that a busy machine refuses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

SECONDS = 0.5
"""Processor time of one rendering."""
LONGEST_TEXT = 10**7
"""Characters of a rendered conversation, and of any text on the way to it."""
MOST_ITEMS = 10**6
"""Items of a list with all lists in it."""
DEEPEST = 100
"""Lists within lists: deeper ones overflow the stack of C code that walks them."""
MOST_BYTES = 10**8
"""Memory made in one rendering, whether it is still in use or not."""
LARGEST_BITS = 4096
"""Size of a whole number."""

_TICKS = 16  # between two looks at the clock: the dearest operation between them takes about 10 ms
_BYTES_PER_ITEM = 60
_DEAR = 10**5  # characters that are read in about the time of a tick

Value = TypeVar("Value")


class TemplateExceedsError(Exception):
    """A template uses more than it may, or something that it may not."""


class Meter:
    """What is left to one rendering; not for several threads at once."""

    def __init__(self) -> None:
        """Begin with everything left."""
        self.start()

    def start(self) -> None:
        """Begin a new rendering."""
        self._ticks = _TICKS
        self._bytes = MOST_BYTES
        self._until = time.thread_time() + SECONDS

    def tick(self, characters: int = 0) -> None:
        """Count one operation that reads this many characters."""
        self._ticks -= 1 + characters // _DEAR
        if self._ticks < 0:
            self._ticks = _TICKS
            if time.thread_time() > self._until:
                raise TemplateExceedsError(f"it runs for more than {SECONDS:g} seconds")

    def passed(self, value: Value, characters: int = 0) -> Value:
        """Count one operation, and return its result."""
        self.tick(characters)
        return value

    def made(self, value: Value) -> Value:
        """Count a value that an operation made, and return it."""
        if isinstance(value, str):
            self._text(value)
            return value
        self.tick()
        if isinstance(value, (list, tuple, dict)):
            items, _ = weigh(value)
            self._charge(_BYTES_PER_ITEM * items)
        elif isinstance(value, int):
            allow_bits(value.bit_length())
        return value

    def metered(self, values: Iterable[Value]) -> Iterator[Value]:
        """Count values as they are taken."""
        for value in values:
            yield self.made(value)

    def allow(self, characters: int) -> None:
        """Refuse a text of so many characters, before it is made."""
        if characters > LONGEST_TEXT:
            raise TemplateExceedsError(f"it makes a text of more than {LONGEST_TEXT} characters")
        self.tick(characters)

    def written(self, value: object) -> str:
        """Write a value as text, as `{{ value }}` does."""
        if isinstance(value, str):
            return self.made(value)
        self.allow(text_size(value))
        return self.made(str(value))

    def _text(self, value: str) -> None:
        # What `tick`, `allow` and `_charge` do, in one call: nearly all that templates make is text.
        size = len(value)
        if size > LONGEST_TEXT:
            self.allow(size)
        self._ticks -= 2 + size // _DEAR
        if self._ticks < 0:
            self.tick()
        self._bytes -= size if value.isascii() else 4 * size
        if self._bytes < 0:
            self._charge(0)

    def _charge(self, size: int) -> None:
        self._bytes -= size
        if self._bytes < 0:
            raise TemplateExceedsError(f"it makes more than {MOST_BYTES} bytes")


def weigh(value: object) -> tuple[int, int]:
    """Count the items and the characters in a value with everything in it, what is in it twice being counted twice.

    Raises:
        TemplateExceedsError: more than MOST_ITEMS, LONGEST_TEXT, or DEEPEST; it is found in about as many steps.
    """
    items = characters = 0
    level: list[object] = [value]
    for _ in range(DEEPEST):
        deeper: list[object] = []
        for one in level:
            if isinstance(one, str):
                characters += len(one)
            elif isinstance(one, dict):
                items += 2 * len(one)
                inside: Iterable[object] = (*one.keys(), *one.values()) if items <= MOST_ITEMS else ()
                deeper.extend(inside)
            elif isinstance(one, (list, tuple)):
                items += len(one)
                deeper.extend(one if items <= MOST_ITEMS else ())
            if items > MOST_ITEMS or characters > LONGEST_TEXT:
                raise TemplateExceedsError(
                    f"it makes a list of more than {MOST_ITEMS} items or {LONGEST_TEXT} characters"
                )
        if not deeper:
            return items, characters
        level = deeper
    raise TemplateExceedsError(f"it makes lists within lists, more than {DEEPEST} deep")


def text_size(value: object) -> int:
    """Return how many characters a value takes at most when it is written; a text in a list may be escaped."""
    if isinstance(value, str):
        return len(value)
    items, characters = weigh(value)
    return 10 * characters + 30 * items + 100


def allow_bits(bits: int) -> None:
    """Refuse a whole number of so many bits.

    Raises:
        TemplateExceedsError: more than LARGEST_BITS.
    """
    if bits > LARGEST_BITS:
        raise TemplateExceedsError(f"it makes a number of more than {LARGEST_BITS} bits")
