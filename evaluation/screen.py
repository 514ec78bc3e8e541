"""The console of everything that is printed: what rows, names, models and errors hold cannot steer the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Escape sequences begin with one of these (ECMA-48, 5.2 and 5.3); tabs and line ends are left."""


def printable(text: str) -> str:
    """Replace control characters, so that a text cannot move the cursor, hide anything or rename the window."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


class PrintableConsole(Console):
    """A console of rich on which only rich itself writes control characters."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, with the control characters of the texts replaced."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
