"""A command in a process of its own: how long it took and the most memory it held, with its output in a file."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOKED_EVERY = 0.2
"""Seconds between two looks at whether it has ended."""


@dataclass(frozen=True)
class Limits:
    """When a command is stopped."""

    seconds: float = 3600.0
    memory_left: int = 2**30
    """Bytes that the machine must have available: below, the kernel would choose whom to kill."""


@dataclass(frozen=True)
class Measured:
    """What a command took."""

    seconds: float
    peak_bytes: int
    """Most resident memory of one process of its tree, as the kernel counts it (`ru_maxrss`)."""
    exit_code: int
    stopped: str | None = None
    """Why it was stopped from outside."""

    def failure(self, log: Path) -> str | None:
        """Say why it failed, with the line of its log that tells; none where it did not."""
        if self.stopped:
            return self.stopped
        return f"exit code {self.exit_code}: {last_line(log)}" if self.exit_code else None


def run_measured(
    command: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path, limits: Limits | None = None
) -> Measured:
    """Run a command to its end, or until it passes a limit; its output, of both kinds, is in `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=dict(environment), start_new_session=True
        )
    try:
        return _wait(process, began, limits or Limits())
    except BaseException:
        _kill_group(process.pid)
        raise


def _wait(process: subprocess.Popen[bytes], began: float, limits: Limits) -> Measured:
    stopped = None
    while True:
        # wait4 and not Popen.wait: it tells the memory of this one child, where getrusage has the largest of all.
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        seconds = time.perf_counter() - began
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            _kill_group(process.pid)  # what it left running
            return Measured(seconds, usage.ru_maxrss * 1024, process.returncode, stopped)
        if stopped is None:
            stopped = _passed_limit(seconds, limits)
            if stopped:
                _kill_group(process.pid)
        time.sleep(LOOKED_EVERY)


def _passed_limit(seconds: float, limits: Limits) -> str | None:
    if seconds > limits.seconds:
        return f"stopped after {limits.seconds:,.0f} s"
    if psutil.virtual_memory().available < limits.memory_left:
        return f"stopped: the machine had less than {limits.memory_left / 2**30:.1f} GiB of memory left"
    return None


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return  # nothing of it is left


def last_line(log: Path) -> str:
    """Return the last line of a log that speaks of an error, or else its last that is not empty, shortened."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return [*lines, *errors][-1][-300:] if lines else "no output"
