"""Proves that nothing asks the network: whoever in this process or its children tries is refused, and named.

An audit hook sees every socket that Python opens (https://peps.python.org/pep-0578/), whichever library opens it; a
patched module would miss those that kept the original. What is not Python's own is told by its environment variables.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from evaluation.errors import MachineError

HINT = "fetch once without --offline, which keeps what it fetches, or name local files"

_INHERITED = "FINETUNE_OFFLINE"
"""Set for the processes that this one starts, and read by nobody else."""
_OF_LIBRARIES = {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1", "WANDB_MODE": "offline", "DO_NOT_TRACK": "1"}
"""So that they do not try in the first place; wandb asks from a program of its own, which no hook here sees."""
_SENDING = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_NAMING = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"})
_NAMED = 6


class _Guard:
    """The hook, of which there is one to a process, since none can be taken away again."""

    def __init__(self) -> None:
        self.active = False
        self.installed = False
        self.attempts: list[str] = []

    def hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.active or not event.startswith("socket."):
            return
        target = _target(event, arguments)
        if target is None:
            return
        attempt = f"{_who(sys._getframe(1))} asked for {target}"
        self.attempts.append(attempt)
        raise MachineError(f"--offline: {attempt}", where="network", hint=HINT)


_guard = _Guard()


def is_offline() -> bool:
    """Say whether this process may ask nobody."""
    return _guard.active


@contextmanager
def network_refused() -> Iterator[list[str]]:
    """Refuse every connection but those within this machine, and yield the list of who tried.

    Raises:
        MachineError: somebody tried; at the end also where a library swallowed the refusal.
    """
    kept = {name: os.environ.get(name) for name in (_INHERITED, *_OF_LIBRARIES)}
    attempts: list[str] = []
    _guard.attempts = attempts
    _refuse()
    try:
        yield attempts
    except SystemExit as ending:
        if ending.code not in (None, 0):
            raise
        _report(attempts)
        raise
    else:
        _report(attempts)
    finally:
        _guard.active = False
        for name, value in kept.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def stay_offline() -> None:
    """Refuse connections in a process that was started by one that does."""
    if os.environ.get(_INHERITED):
        _refuse()


def _refuse() -> None:
    os.environ.update({_INHERITED: "1", **_OF_LIBRARIES})
    _guard.active = True
    if not _guard.installed:
        _guard.installed = True
        sys.addaudithook(_guard.hear)


def _report(attempts: list[str]) -> None:
    if attempts:
        raise MachineError(f"--offline: {attempts[0]}, and went on without", where="network", hint=HINT)


def _target(event: str, arguments: tuple[object, ...]) -> str | None:
    """Name where a call leads, if it leads out of this machine."""
    if event in _NAMING:
        return None if _is_here(arguments[0]) else str(arguments[0])
    if event not in _SENDING or not isinstance(arguments[0], socket.socket) or len(arguments) < 2:
        return None
    address = arguments[1]
    if arguments[0].family not in (socket.AF_INET, socket.AF_INET6) or not isinstance(address, tuple):
        return None
    return None if _is_here(address[0]) else f"{address[0]}:{address[1]}"


def _is_here(host: object) -> bool:
    text = host.decode("ascii", "replace") if isinstance(host, bytes | bytearray) else host
    if text is None or text in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(str(text).partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _who(frame: FrameType | None) -> str:
    """Name the packages that are on the stack, from the one that asked to the one that called it."""
    named: dict[str, None] = {}
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package and package not in sys.stdlib_module_names and package != "__main__":
            named[package] = None
        frame = frame.f_back
    return " for ".join(list(named)[:_NAMED]) or "this program"
