"""A process that has the libraries imported and forks one child for each command, so that hundreds fit into minutes.

No thread has run in it when it forks, and its children compute on one thread each: a fork in the middle of an OpenMP
pool would hang.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HUNG_SECONDS = 600
IMPORTED = (
    "trl.trainer.sft_trainer",
    "finetune.cli",
    "finetune.pipeline",
    "finetune.prepare",
    "finetune.training",
    "finetune.merging",
    "finetune.contenders",
    "finetune.scoring",
    "finetune.reporting",
    "finetune.row_entities",
)


@dataclass(frozen=True)
class Forked:
    """A command that runs."""

    pid: int
    stderr: Path
    server: ForkServer

    def said(self) -> str:
        """Return what it wrote so far."""
        return self.stderr.read_text(encoding="utf-8", errors="replace")

    def ended(self) -> bool:
        """Look whether it has ended; its status waits to be asked for."""
        return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"

    def send(self, number: int) -> None:
        """Send a signal to it alone."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait until it ends and return its status, negative for a signal."""
        return self.server.status()


class ForkServer:
    """The side of the test; one command at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Speak to a server that has started."""
        self._process = process

    def start(self, arguments: list[str], stderr: Path) -> Forked:
        """Fork a child that runs `finetune` with these arguments."""
        stderr.write_bytes(b"")
        self._say({"arguments": arguments, "stderr": str(stderr)})
        return Forked(int(self._hear()), stderr, self)

    def status(self) -> int:
        """Return the status of the child that runs."""
        self._say({})
        return int(self._hear())

    def run(self, arguments: list[str], stderr: Path) -> int:
        """Run a command to its end."""
        return self.start(arguments, stderr).wait()

    def _say(self, what: dict[str, object]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the fork server ended"
        return line


@contextmanager
def fork_server() -> Iterator[ForkServer]:
    """Start a server, and end it with the block."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield ForkServer(process)
        finally:
            process.kill()


def _serve() -> None:
    import gc
    import importlib

    from evaluation.quiet import quiet_libraries

    quiet_libraries()
    for name in IMPORTED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    replies = os.fdopen(os.dup(1), "w")  # the children have another one
    replies.write("ready\n")
    replies.flush()
    child = 0
    for line in sys.stdin:
        wanted = json.loads(line)
        if wanted:
            child = os.fork()
            if child == 0:
                _run(wanted["arguments"], wanted["stderr"])
            replies.write(f"{child}\n")
        else:
            replies.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        replies.flush()


def _run(arguments: list[str], stderr: str) -> None:
    from finetune.cli import main
    from finetune.machine import end_with_parent

    end_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    file = os.open(stderr, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    status = 0
    try:
        main(arguments)
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    sys.stderr.flush()
    os._exit(status)


def wait_for(child: Forked, *words: str) -> bool:
    """Wait until a command has said one of these, and say whether it did before it ended."""
    began = time.monotonic()
    while not any(word in child.said() for word in words):
        if child.ended():
            return False
        assert time.monotonic() - began < HUNG_SECONDS, child.said()
        time.sleep(0.005)
    return True


if __name__ == "__main__":
    _serve()
