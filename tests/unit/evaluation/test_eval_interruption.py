"""Ctrl-C and SIGTERM in `evaluation`: real signals to a real process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import hear_ctrl_c

from evaluation.interruption import Interrupted, listening

PROGRAM = """
import sys, time
from pathlib import Path
from evaluation import cli
from evaluation.files import staged_file

@cli.app.command()
def wait(seconds: float) -> None:
    with staged_file(Path("result.json")) as staging:
        try:
            staging.touch()
            print("begun", flush=True)
            time.sleep(60)
        finally:
            print("ending", flush=True)
            time.sleep(seconds)

cli.main(["wait", sys.argv[1]])
"""


def started(place: Path, seconds: float) -> subprocess.Popen[str]:
    """Start a command that takes so long to end, and wait until it is in the middle of writing."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(seconds)],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_with_one_line_and_its_own_code(number: int, tmp_path: Path) -> None:
    process = started(tmp_path, 0)
    process.send_signal(number)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert said.splitlines()[1:] == [
        "error: interrupted; results that are finished are whole, and nothing is left half-written"
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_second_ctrl_c_ends_it_at_once_and_a_second_sigterm_does_not(
    number: int, status: int, tmp_path: Path
) -> None:
    process = started(tmp_path, 0.3)
    assert process.stdout is not None
    process.send_signal(number)
    assert process.stdout.readline() == "ending\n"
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == status


def test_afterwards_signals_are_heard_as_before(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted) as interrupted, listening():
        signal.raise_signal(signal.SIGTERM)
    assert interrupted.value.exit_code == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert not issubclass(Interrupted, Exception)


def test_what_nohup_ignores_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
