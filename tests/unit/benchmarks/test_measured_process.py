"""A measured command: its exit code, its memory and what stops it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.measured_process import Limits, Measured, run_measured

HOLD = "held = bytearray(300 * 2**20); held[::4096] = b'x' * len(held[::4096])"


def run_python(code: str, folder: Path, limits: Limits | None = None) -> Measured:
    return run_measured([sys.executable, "-c", code], folder / "logs" / "log", os.environ, folder, limits)


def test_a_failure_says_the_code_and_the_last_line_of_the_log(tmp_path: Path) -> None:
    measured = run_python("import sys; print('first'); print('the reason', file=sys.stderr); sys.exit(3)", tmp_path)
    assert measured.failure(tmp_path / "logs" / "log") == "exit code 3: the reason"
    assert run_python("print('well')", tmp_path).failure(tmp_path / "logs" / "log") is None


@pytest.mark.parametrize(
    "code", [HOLD, f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}], check=True)"]
)
def test_the_memory_of_the_process_and_of_what_it_starts_is_seen(tmp_path: Path, code: str) -> None:
    # This process holds more than the child, so that a count of all that it ever started would show.
    assert 300 * 2**20 < run_python(code, tmp_path).peak_bytes < 1.5 * 300 * 2**20 + _own_peak()


def _own_peak() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def test_a_small_command_after_a_large_one_is_small(tmp_path: Path) -> None:
    large, small = run_python(HOLD, tmp_path), run_python("", tmp_path)
    assert large.peak_bytes - small.peak_bytes > 0 or _own_peak() > large.peak_bytes


def test_a_command_is_stopped_with_what_it_started(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    began = time.perf_counter()
    measured = run_python(code, tmp_path, Limits(seconds=0.5))
    assert time.perf_counter() - began < 20
    assert measured.failure(tmp_path / "logs" / "log") == "stopped after 0 s"


def test_a_command_is_stopped_where_the_machine_runs_out_of_memory(tmp_path: Path) -> None:
    measured = run_python("import time; time.sleep(60)", tmp_path, Limits(memory_left=2**60))
    assert "memory left" in (measured.stopped or "")
