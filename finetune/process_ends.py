"""How a process ended, in words."""

from __future__ import annotations

import signal
from collections.abc import Iterable


def how_ended(status: int) -> str:
    """Say it from an exit status, negative for a signal."""
    return f"was killed ({signal.Signals(-status).name})" if status < 0 else f"ended with status {status}"


def own_end(statuses: Iterable[int | None]) -> int | None:
    """Return the status of the process that ended by itself; the others of its group are ended with SIGTERM."""
    ended = [status for status in statuses if status]
    return next((status for status in ended if status != -signal.SIGTERM), next(iter(ended), None))
