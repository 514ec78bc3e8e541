"""Shows answers while they are written: one below the other, or two side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from evaluation.screen import printable
from finetune.streaming import Answer

Streams = Mapping[str, Iterator[Answer]]
"""Name of a voice → its answer, growing."""

SPARE_CELLS = 8
"""Left free on the right: terminals disagree on the width of joined emoji, and a line that wraps spoils the drawing."""


class Screen(Protocol):
    """Where answers are shown."""

    def show(self, streams: Streams) -> dict[str, Answer]:
        """Show every answer to its end, and return them by voice."""


class PlainScreen:
    """Writes each answer as it comes, one voice after the other."""

    def __init__(self, console: Console) -> None:
        """Write to a console."""
        self._console = console

    def show(self, streams: Streams) -> dict[str, Answer]:
        """Write the answers; with the voice's name above where there are several."""
        answers = {}
        for name, stream in streams.items():
            if len(streams) > 1:
                self._write(f"[{name}]\n")
            answers[name] = self._write_through(stream)
        return answers

    def _write_through(self, stream: Iterator[Answer]) -> Answer:
        last = Answer("", 0, None)
        try:
            for answer in stream:
                self._write(printable(answer.text[len(last.text) :]))
                last = answer
        finally:
            self._write("\n")
        return last

    def _write(self, text: str) -> None:
        self._console.print(Text(text), end="", soft_wrap=True)


class ColumnScreen:
    """Shows two or more voices side by side, a token of each at a time."""

    def __init__(self, console: Console) -> None:
        """Draw on a console that is a terminal."""
        self._console = console
        self._one = PlainScreen(console)

    def show(self, streams: Streams) -> dict[str, Answer]:
        """Draw the answers as they grow; one voice alone is written as plain lines."""
        if len(streams) == 1:
            return self._one.show(streams)
        answers = {name: Answer("", 0, None) for name in streams}
        open_streams = dict(streams)
        width = max(self._console.width - SPARE_CELLS, 2 * len(streams))
        with Live(console=self._console, refresh_per_second=12, get_renderable=lambda: _columns(answers, width)):
            while open_streams:
                for name, stream in list(open_streams.items()):
                    answer = next(stream, None)
                    if answer is None:
                        del open_streams[name]
                    else:
                        answers[name] = answer
        return answers


def _columns(answers: Mapping[str, Answer], width: int) -> Table:
    table = Table(*(Column(Text(name), ratio=1, overflow="fold") for name in answers), width=width, box=box.SIMPLE_HEAD)
    table.add_row(*(Text(printable(answer.text)) for answer in answers.values()))
    return table
