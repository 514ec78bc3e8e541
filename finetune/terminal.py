"""Reads what a person types, with history and completion; the only module that speaks to prompt_toolkit."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import InMemoryHistory


class LineReader(Protocol):
    """Where lines come from."""

    def read(self) -> str | None:
        """Return the next line, or none at the end."""


class TerminalReader:
    """A person at a terminal; what was typed is remembered until the end and written nowhere."""

    def __init__(self, words: Sequence[str]) -> None:
        """Take the words that the Tab key completes."""
        self._session: PromptSession[str] = PromptSession(
            history=InMemoryHistory(),
            completer=WordCompleter(list(words), sentence=True),
            complete_while_typing=False,
        )

    def read(self) -> str | None:
        """Return the next line; none for Ctrl-D.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        try:
            return self._session.prompt("> ")
        except EOFError:
            return None


class PipeReader:
    """The lines of standard input."""

    def read(self) -> str | None:
        """Return the next line; none at the end."""
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None
