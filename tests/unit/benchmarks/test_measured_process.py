"""A measured command: its exit code, its memory and what stops it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measured_process import Limits, Measured, last_line, run_measured

HOLD = "held = bytearray(300 * 2**20); held[::4096] = b'x' * len(held[::4096])"


def run_python(code: str, folder: Path, limits: Limits | None = None) -> Measured:
    return run_measured([sys.executable, "-c", code], folder / "logs" / "log", os.environ, folder, limits)


def test_a_failure_says_the_code_and_the_last_line_of_the_log(tmp_path: Path) -> None:
    measured = run_python("import sys; print('first'); print('the reason', file=sys.stderr); sys.exit(3)", tmp_path)
    assert measured.failure(tmp_path / "logs" / "log") == "exit code 3: the reason"
    assert run_python("print('well')", tmp_path).failure(tmp_path / "logs" / "log") is None


def test_the_line_that_speaks_of_an_error_is_the_reason(tmp_path: Path) -> None:
    run_python("print('ValueError: the reason\\nmore about it'); raise SystemExit(1)", tmp_path)
    assert last_line(tmp_path / "logs" / "log") == "ValueError: the reason"


def test_the_memory_of_one_command_and_of_what_it_starts_is_seen(tmp_path: Path) -> None:
    # Measured from a process that is small itself: the kernel counts what a process held before it became a command.
    within = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}], check=True)"
    code = (
        "import json, os, pathlib, sys; from benchmarks.measured_process import run_measured\n"
        "here = pathlib.Path.cwd()\n"
        f"codes = {[HOLD, within, '']!r}\n"
        "runs = [run_measured([sys.executable, '-c', code], here / 'log', os.environ, here) for code in codes]\n"
        "print(json.dumps([run.peak_bytes for run in runs]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    own, started, small_after_large = json.loads(done.stdout)
    assert 300 * 2**20 < own < 400 * 2**20
    assert 300 * 2**20 < started < 400 * 2**20
    assert small_after_large < 100 * 2**20


def test_a_command_is_stopped_with_what_it_started(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    began = time.perf_counter()
    measured = run_python(code, tmp_path, Limits(seconds=0.5))
    assert time.perf_counter() - began < 20
    assert measured.failure(tmp_path / "logs" / "log") == "stopped after 0 s"


def test_a_command_is_stopped_where_the_machine_runs_out_of_memory(tmp_path: Path) -> None:
    measured = run_python("import time; time.sleep(60)", tmp_path, Limits(memory_left=2**60))
    assert "memory left" in (measured.stopped or "")
