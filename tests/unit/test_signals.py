"""Real signals to real processes: when they end, with which code, and what a second one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny_runs import hear_ctrl_c

from evaluation.interruption import HEARD
from finetune import signals
from finetune.signals import GO_ON, Interrupted, Signals

BEGIN = """
import signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from finetune import signals
from finetune.signals import Interrupted, Signals
signals.LONGEST_END = 0.5
heard = Signals()
def begun(): print("begun", flush=True)
try:
    with heard.listening():
"""
END = """
except Interrupted as interrupted:
    print(interrupted.what, flush=True)
    sys.exit(interrupted.exit_code)
print("done", flush=True)
"""
AT_ONCE = "        begun(); time.sleep(60)"
A_STEP = """
        heard.finish_first()
        begun()
        while not heard.asked(): time.sleep(0.01)
        print("step finished", flush=True)
        time.sleep(float(sys.argv[1]))
        heard.end("saved")
"""
A_FINISHED_STAGE = """
        heard.finish_first()
        begun()
        while not heard.asked(): time.sleep(0.01)
        heard.may_end()
        print("next stage", flush=True)
"""
A_DOWNLOAD = """
        with ThreadPoolExecutor() as pool:
            pool.submit(time.sleep, 60)
            begun()
            time.sleep(60)
"""
NOTHING_TO_WAIT_FOR = """
        heard.finish_first(lambda: False)
        begun()
        time.sleep(60)
"""
A_FINALIZER = """
        class Finalized:
            def __del__(self):
                begun()
                time.sleep(1)
        Finalized()
        time.sleep(60)
"""
ANOTHER_FAULT_IN_ONE = """
        class Finalized:
            def __del__(self): raise ValueError("of its own")
        begun()
        Finalized()
"""
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def started(body: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a program and wait until it has begun."""
    command = [sys.executable, "-c", BEGIN + body + END, *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=hear_ctrl_c
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the status of a program and what it said."""
    assert process.stdout is not None
    late = threading.Timer(20, process.kill)
    late.start()
    said = process.stdout.read()  # `communicate` would lose what came with the first line
    late.cancel()
    return process.wait(), said


@BOTH
def test_a_stage_ends_at_once(number: int) -> None:
    process = started(AT_ONCE)
    process.send_signal(number)
    assert ended(process) == (128 + number, f"{GO_ON}\n")


@BOTH
def test_a_step_is_finished_first(number: int) -> None:
    process = started(A_STEP, "0")
    process.send_signal(number)
    assert ended(process) == (128 + number, "step finished\nsaved\n")


@BOTH
def test_after_a_finished_stage_it_ends(number: int) -> None:
    process = started(A_FINISHED_STAGE)
    process.send_signal(number)
    assert ended(process) == (128 + number, f"{GO_ON}\n")


@BOTH
def test_where_there_is_nothing_to_wait_for_it_ends_at_once(number: int) -> None:
    process = started(NOTHING_TO_WAIT_FOR)
    process.send_signal(number)
    assert ended(process) == (128 + number, f"{GO_ON}\n")


@BOTH
def test_a_thread_that_does_not_let_go_is_left_behind(number: int) -> None:
    process = started(A_DOWNLOAD)
    began = time.monotonic()
    process.send_signal(number)
    assert ended(process) == (128 + number, f"{GO_ON}\n")
    assert time.monotonic() - began < 10


def test_a_second_ctrl_c_ends_at_once() -> None:
    process = started(A_STEP, "60")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "step finished\n"
    time.sleep(signals.ONE_PRESS + 0.1)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (-signal.SIGINT, "")


@pytest.mark.parametrize("twice", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)])
def test_one_that_comes_twice_is_heard_once(twice: tuple[int, int]) -> None:
    process = started(A_STEP, "0.3")
    for number in twice:
        process.send_signal(number)  # as `timeout` and others do that pass on what their group has as well
        time.sleep(0.05)
    assert ended(process) == (128 + twice[0], "step finished\nsaved\n")


def test_a_second_sigterm_changes_nothing_however_late() -> None:
    process = started(A_STEP, "1")
    process.send_signal(signal.SIGTERM)
    time.sleep(signals.ONE_PRESS + 0.1)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, "step finished\nsaved\n")


@pytest.mark.parametrize(("seconds", "ends"), [(0.0, False), (signals.ONE_PRESS, False), (0.75, True)])
def test_a_press_lasts_half_a_second(seconds: float, ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, killed = [100.0], list[int]()
    heard = Signals()
    with heard.listening():
        heard.finish_first()
        with monkeypatch.context() as patched:
            patched.setattr(signals.time, "monotonic", lambda: clock[0])
            patched.setattr(signals.os, "kill", lambda process, number: killed.append(number))
            heard._hear(signal.SIGINT, None)
            clock[0] += seconds
            heard._hear(signal.SIGINT, None)
    assert killed == [signal.SIGINT] * ends


def test_who_was_heard_first_decides_the_code() -> None:
    heard = Signals("of a stage")
    with heard.listening():
        heard.finish_first()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    for what, told in ((None, "of a stage"), ("of a step", "of a step")):
        with pytest.raises(Interrupted) as interrupted:
            heard.end(what)
        assert (interrupted.value.exit_code, interrupted.value.what, str(interrupted.value)) == (130, told, told)
    with pytest.raises(Interrupted) as interrupted:
        Signals().end()
    assert (interrupted.value.exit_code, interrupted.value.what) == (143, GO_ON)


def test_who_lives_on_after_an_interruption_is_not_ended_later() -> None:
    program = BEGIN + AT_ONCE + END.replace("sys.exit(interrupted.exit_code)", "time.sleep(1)")
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (0, f"{GO_ON}\ndone\n")


def test_what_nohup_ignores_is_ignored() -> None:
    program = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + BEGIN + A_STEP + END
    command = [sys.executable, "-c", program, "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, "step finished\nsaved\n")


def test_handlers_are_put_back() -> None:
    def hear() -> None:
        with Signals().listening():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    before = [signal.getsignal(number) for number in HEARD]
    with pytest.raises(Interrupted) as interrupted:
        hear()
    assert interrupted.value.exit_code == 143
    assert [signal.getsignal(number) for number in HEARD] == before


def test_one_that_was_heard_while_it_could_wait_ends_before_the_next_step() -> None:
    heard = Signals()
    with heard.listening():
        heard.finish_first()
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard.asked()
        with pytest.raises(Interrupted):
            heard.finish_first()


def test_one_that_does_not_listen_was_never_asked() -> None:
    heard = Signals()
    heard.finish_first()
    heard.may_end()
    assert not heard.asked()


def test_an_interruption_is_not_taken_for_an_error() -> None:
    assert not issubclass(Interrupted, Exception)


def test_a_stop_file_asks_the_processes_that_train(tmp_path: Path) -> None:
    from finetune.launch import STOP_FILE, UNDER_WAY_FILE
    from finetune.training_process import StopFile

    stop = StopFile(tmp_path)
    assert not stop.asked()
    stop.finish_first()
    assert [path.name for path in tmp_path.iterdir()] == [UNDER_WAY_FILE]
    (tmp_path / STOP_FILE).touch()
    assert stop.asked()
    with pytest.raises(Interrupted, match="saved"):
        stop.end("saved")


@BOTH
def test_one_that_comes_while_a_finalizer_runs_ends_all_the_same(number: signal.Signals) -> None:
    """Python prints what a finalizer raises, with a traceback, and goes on."""
    process = started(A_FINALIZER)
    process.send_signal(number)
    assert ended(process) == (128 + number, f"{GO_ON}\n")


def test_what_else_goes_wrong_in_a_finalizer_is_told() -> None:
    status, said = ended(started(ANOTHER_FAULT_IN_ONE))
    assert status == 0
    assert "of its own" in said
