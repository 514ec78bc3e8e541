"""A server as a child process: started, waited for, and ended with everything it started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from evaluation.screen import printable
from finetune.errors import MachineError
from finetune.machine import end_with_parent

LAST_LINES = 15
"""Of what a server wrote before it failed."""
POLITE_SECONDS = 15.0
"""A server has so long to end by itself."""
BETWEEN_LOOKS = 0.2
"""Seconds."""
LONGEST_START = 3600.0
"""Seconds until a server answers; loading and compiling a large model from a slow disk is slow, and not for ever."""

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(BaseException):
    """Somebody asked this process to end; not an error, so that nothing takes it for one."""

    def __init__(self, number: int) -> None:
        """Take the signal."""
        super().__init__()
        self.number = number


@dataclass
class ServerProcess:
    """A running child and the last lines it wrote."""

    child: subprocess.Popen[str]
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    shown: bool = False
    """Whether its lines are passed on as well; while it starts they are kept only."""

    def follow(self) -> None:
        """Read what the child writes until it ends."""
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.lines.append(line.rstrip())
            if self.shown:
                sys.stderr.write(printable(line))
                sys.stderr.flush()

    def failure(self, what: str) -> MachineError:
        """Say how the child failed, with the end of what it wrote."""
        return MachineError(
            what, where="server", hint="it wrote last:\n    " + "\n    ".join(self.lines or ["nothing"])
        )


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Iterator[ServerProcess]:
    """Start a server in a folder, and end it with the block; SIGTERM and SIGHUP end the block as Ctrl-C does.

    Raises:
        Ended: inside the block, when this process is asked to end.
    """
    with _asked_to_end():
        child = subprocess.Popen(
            command,
            env=os.environ | environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C comes to this process alone, and what the child starts ends with it
            preexec_fn=end_with_parent,  # no thread is running yet
        )
        server = ServerProcess(child)
        reader = threading.Thread(target=server.follow, daemon=True)
        reader.start()
        try:
            yield server
        finally:
            _end(child)
            reader.join(timeout=1)
            assert child.stdout is not None
            child.stdout.close()


def wait_until_ready(server: ServerProcess, url: str) -> None:
    """Wait until a server on this machine answers; no proxy that the environment names stands in between.

    Raises:
        MachineError: it ended before, or it took too long.
    """
    opener, began = build_opener(ProxyHandler({})), time.monotonic()
    while time.monotonic() - began < LONGEST_START:
        if server.child.poll() is not None:
            time.sleep(BETWEEN_LOOKS)  # its last lines are on their way
            raise server.failure(f"the server ended with status {server.child.returncode} before it answered")
        with suppress(URLError, OSError), opener.open(url, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(BETWEEN_LOOKS)
    raise server.failure(f"the server runs and did not answer within {LONGEST_START:.0f} seconds at {url}")


def free_port() -> int:
    """Return a port of this machine's own address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_free(host: str, port: int) -> None:
    """Check that nobody listens there already.

    Raises:
        MachineError: somebody does, or this machine has no such address.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            where, hint = f"{host}:{port}", "name another: --port, --host"
            raise MachineError(f"the address cannot be used: {error.strerror}", where=where, hint=hint) from error


def _end(child: subprocess.Popen[str]) -> None:
    """End a child and all that it started: politely, then not."""
    held = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING_SIGNALS}
    try:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(POLITE_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)


@contextmanager
def _asked_to_end() -> Iterator[None]:
    def end(number: int, _: FrameType | None) -> None:
        raise Ended(number)

    heard = [one for one in ENDING_SIGNALS if signal.getsignal(one) != signal.SIG_IGN]  # nohup is obeyed
    held = {number: signal.signal(number, end) for number in heard}
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
