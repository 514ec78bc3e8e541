"""SIGINT and SIGTERM end a run where nothing is lost: at once in most stages, after a step in training.

Whoever is heard first decides the exit code. A second Ctrl-C ends the process at once, as a kill would; a second
SIGTERM does not, since `timeout` sends two.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, Protocol

from evaluation.interruption import heard_by

LONGEST_END = 8.0
"""Seconds that a stage may take to end; whatever it waits for then, a download say, is left behind."""
ONE_PRESS = 0.5
"""Seconds in which a second SIGINT is the first one once more, from a wrapper that passes it on."""
FINALIZED = 0.02
"""Seconds in which a finalizer has ended."""
GO_ON = "interrupted; what is finished is kept, and the same command goes on from there"
NOTHING_BY_HALVES = "interrupted; nothing is left half-written, and the same command does it again"


class Interrupted(BaseException):
    """This process was asked to end; not an error, so that nothing takes it for one."""

    def __init__(self, number: int, what: str = GO_ON) -> None:
        """Take the signal, and what it ended, for people."""
        super().__init__(what)
        self.number = number
        self.what = what

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM: what a shell makes of them."""
        return 128 + self.number


class Stop(Protocol):
    """What training asks after each step."""

    def finish_first(self) -> None:
        """Have a signal wait for the end of a step from here on."""

    def asked(self) -> bool:
        """Say whether this process was asked to end."""

    def end(self, what: str) -> NoReturn:
        """End, saying what was ended and what is kept.

        Raises:
            Interrupted: always.
        """


class Signals:
    """Hears the signals of this process; one that does not listen was never asked."""

    def __init__(self, what: str = GO_ON) -> None:
        """Hear nothing yet; `what` is told where nobody says more of what was ended."""
        self._what = what
        self._number: int | None = None
        self._heard_at = 0.0
        self._ask: Callable[[], bool] | None = None
        self._last_resort: threading.Timer | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear SIGINT and SIGTERM in a block; what this process was started to ignore is ignored.

        Raises:
            Interrupted: inside the block, when one is heard and nothing has to be finished first.
        """
        told_unraisable, sys.unraisablehook = sys.unraisablehook, self._raise_later
        try:
            with heard_by(self._hear):
                yield
        finally:
            sys.unraisablehook = told_unraisable
            if self._last_resort is not None:
                self._last_resort.cancel()

    def finish_first(self, ask: Callable[[], bool] = lambda: True) -> None:
        """Have a signal wait from here until `may_end`; `ask` passes it on, and says whether there is what to wait for.

        Raises:
            Interrupted: one was heard before.
        """
        self.may_end()
        self._ask = ask

    def asked(self) -> bool:
        """Say whether one was heard."""
        return self._number is not None

    def may_end(self) -> None:
        """End here if one was heard, and at once when one is heard from here on.

        Raises:
            Interrupted: one was heard.
        """
        self._ask = None
        if self.asked():
            self.end()

    def end(self, what: str | None = None) -> NoReturn:
        """End with the code of what was heard.

        Raises:
            Interrupted: always.
        """
        raise Interrupted(self._number or signal.SIGTERM, what or self._what)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self._number is not None:
            if number == signal.SIGINT and time.monotonic() - self._heard_at > ONE_PRESS:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self._number, self._heard_at = number, time.monotonic()
        if self._ask is not None and self._ask():
            return
        if self._last_resort is None:
            self._last_resort = _later(LONGEST_END, lambda: _leave(128 + number, self._what))
        self.end()

    def _raise_later(self, said: sys.UnraisableHookArgs) -> None:
        """Have a signal that came while a finalizer ran, from which Python lets nothing be raised, come once more."""
        if isinstance(said.exc_value, Interrupted):
            number, self._number = said.exc_value.number, None
            _later(FINALIZED, lambda: os.kill(os.getpid(), number))
        else:
            sys.__unraisablehook__(said)


def _later(seconds: float, call: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()
    return timer


def _leave(status: int, what: str) -> None:
    sys.stderr.write(f"{what}\n")  # whose end flushes it
    os._exit(status)
