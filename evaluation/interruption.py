"""Ctrl-C and SIGTERM end a command with one line and a code of their own; a second Ctrl-C ends it as a kill would.

A second SIGTERM does not, since `timeout` sends two.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

HEARD = {signal.SIGINT: signal.SIG_DFL, signal.SIGTERM: signal.SIG_IGN}
"""What is heard → what a second one does."""


class Interrupted(BaseException):
    """This process was asked to end; not an error, so that nothing takes it for one."""

    def __init__(self, number: int) -> None:
        """Take the signal."""
        super().__init__("interrupted; results that are finished are whole, and nothing is left half-written")
        self.exit_code = 128 + number
        """130 after Ctrl-C, 143 after SIGTERM: what a shell makes of them."""


@contextmanager
def listening() -> Iterator[None]:
    """Hear SIGINT and SIGTERM in a block; what this process was started to ignore is ignored.

    Raises:
        Interrupted: inside the block, when one is heard.
    """

    def hear(number: int, _: FrameType | None) -> None:
        for one in heard:
            signal.signal(one, HEARD[one])
        raise Interrupted(number)

    with heard_by(hear) as heard:
        yield


@contextmanager
def heard_by(hear: Callable[[int, FrameType | None], None]) -> Iterator[list[signal.Signals]]:
    """Have SIGINT and SIGTERM call `hear` in a block, and yield which of them do: not what is ignored."""
    main = threading.current_thread() is threading.main_thread()  # Python lets no other thread hear
    heard = [number for number in HEARD if main and signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, hear) for number in heard}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
