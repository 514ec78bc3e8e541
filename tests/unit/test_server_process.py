"""A server is waited for, its failure is told with its last lines, and it never outlives its parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from finetune.errors import MachineError
from finetune.server_process import Ended, require_free, running, wait_until_ready

SERVER = """
import subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *words): pass
below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", below.pid, flush=True)
time.sleep(0.3)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""
PARENT = """
import sys
from pathlib import Path
from finetune.server_process import running, wait_until_ready
with running([sys.executable, "-c", sys.argv[1], sys.argv[2]], {}, Path(".")) as server:
    wait_until_ready(server, "http://127.0.0.1:" + sys.argv[2])
    print(server.child.pid, server.lines[0].split()[1], flush=True)
    server.child.wait()
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def gone(*processes: int) -> bool:
    for _ in range(100):
        if not any(psutil.pid_exists(one) and psutil.Process(one).status() != "zombie" for one in processes):
            return True
        time.sleep(0.05)
    return False


def test_it_is_waited_for_and_ended_with_all_it_started(port: int, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with running([sys.executable, "-c", SERVER, str(port)], {}, tmp_path) as server:
        wait_until_ready(server, f"http://127.0.0.1:{port}/health")
        below = int(server.lines[0].split()[1])
        assert psutil.pid_exists(below)
        with pytest.raises(MachineError, match="cannot be used"):
            require_free("127.0.0.1", port)
    assert gone(server.child.pid, below)
    require_free("127.0.0.1", port)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_server_that_fails_says_its_last_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('one'); print('no such model'); raise SystemExit(3)"]
    with (
        pytest.raises(MachineError, match="status 3 before it answered") as failed,
        running(command, {}, tmp_path) as server,
    ):
        wait_until_ready(server, "http://127.0.0.1:9")
    assert "no such model" in failed.value.hint


def test_a_proxy_does_not_stand_between(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr("finetune.server_process.LONGEST_START", 20.0)
    with running([sys.executable, "-c", SERVER, str(port)], {}, tmp_path) as server:
        wait_until_ready(server, f"http://127.0.0.1:{port}/health")


def test_one_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.server_process.LONGEST_START", 0.5)
    command = [sys.executable, "-c", "import time; print('loading', flush=True); time.sleep(600)"]
    with (
        pytest.raises(MachineError, match="did not answer within") as failed,
        running(command, {}, tmp_path) as server,
    ):
        wait_until_ready(server, "http://127.0.0.1:9")
    assert "loading" in failed.value.hint


def test_one_that_will_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.server_process.POLITE_SECONDS", 0.3)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\n"
    with running([sys.executable, "-c", stubborn + "time.sleep(600)"], {}, tmp_path) as server:
        while not server.lines:
            time.sleep(0.05)
    assert server.child.returncode == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_block(number: int, tmp_path: Path) -> None:
    started = []
    command = [sys.executable, "-c", "import time; time.sleep(600)"]

    def serve_until_ended() -> None:
        with running(command, {}, tmp_path) as server:
            started.append(server.child.pid)
            os.kill(os.getpid(), number)
            time.sleep(5)

    before = signal.signal(number, lambda *_: None)  # a test run in the background ignores some
    try:
        with pytest.raises(Ended):
            serve_until_ended()
    finally:
        signal.signal(number, before)
    assert gone(*started)


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with running([sys.executable, "-c", "import time; time.sleep(600)"], {}, tmp_path):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_whoever_ends_the_parent_leaves_no_server(number: int, port: int) -> None:
    command = [sys.executable, "-c", PARENT, SERVER, str(port)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert parent.stdout is not None
    server, below = map(int, parent.stdout.readline().split())
    parent.send_signal(number)
    parent.wait(30)
    assert gone(server)
    if number == signal.SIGTERM:
        assert gone(below)
    elif psutil.pid_exists(below):
        os.kill(below, signal.SIGKILL)  # what a killed server started is its own to end
