"""A process that has the libraries imported and forks commands whose N-th call to the disk fails or kills them."""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SOURCE = Path(__file__).with_name("fault_shim.c")
Kind = Literal["full", "broken", "kill"]
NUMBERS: dict[Kind, int] = {"full": errno.ENOSPC, "broken": errno.EIO, "kill": 0}
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
class Fault:
    """What goes wrong below a folder: from the `at`-th call on a full disk, at it a broken one or a kill."""

    folder: Path
    at: int = 0
    """Counted from 1; 0 counts the calls and fails none."""
    kind: Kind = "full"


@dataclass(frozen=True)
class Ending:
    """How a command ended."""

    status: int
    """Negative for a signal."""
    calls: int
    """Calls to the disk below the folder; none are known of a process that was killed."""
    failed: str
    """The call that failed first."""
    said: str


class FaultyDisk:
    """The side of the test."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        """Speak to a process that has started; what commands say is kept in a folder."""
        self._process = process
        self._said = folder / "said"

    def run(self, arguments: list[str], fault: Fault) -> Ending:
        """Run `finetune` with these arguments to its end, on a disk with this fault."""
        wanted = {
            "arguments": arguments,
            "folder": str(fault.folder),
            "at": fault.at,
            "with": NUMBERS[fault.kind],
            "stays": int(fault.kind == "full"),
            "said": str(self._said),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        return Ending(**told, said=self._said.read_text(encoding="utf-8", errors="replace"))


def missing_compiler() -> str | None:
    """Say why there can be no faulty disk here."""
    if sys.platform != "linux":
        return "calls are caught with LD_PRELOAD, as Linux has it"
    return None if shutil.which("cc") else "there is no C compiler (cc) for the shim"


@contextmanager
def faulty_disk(folder: Path) -> Iterator[FaultyDisk]:
    """Compile the shim, start the process, and end it with the block."""
    shim = folder / "fault_shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(shim), str(SOURCE), "-ldl"], check=True)
    environment = os.environ | {"LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield FaultyDisk(process, folder)
        finally:
            process.kill()


def _serve() -> None:
    from evaluation.quiet import quiet_libraries

    quiet_libraries()
    for name in IMPORTED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    replies = os.fdopen(os.dup(1), "w")  # the children have another standard output
    replies.write("ready\n")
    replies.flush()
    for line in sys.stdin:
        wanted = json.loads(line)
        hears, tells = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(hears)
            _run(wanted, tells)
        os.close(tells)
        with os.fdopen(hears, encoding="utf-8") as pipe:
            told = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        ending = json.loads(told) if told else {"calls": 0, "failed": ""}
        replies.write(json.dumps(ending | {"status": status}) + "\n")
        replies.flush()


def _run(wanted: dict[str, object], tells: int) -> None:
    from finetune.cli import main
    from finetune.machine import end_with_parent

    end_with_parent()
    file = os.open(str(wanted["said"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    shim = ctypes.CDLL(None)  # LD_PRELOAD has put its names among the process's own
    shim.failed_call.restype = ctypes.c_char_p
    shim.arm(str(wanted["folder"]).encode(), wanted["at"], wanted["with"], wanted["stays"])
    status = 0
    try:
        main(wanted["arguments"])  # type: ignore[arg-type]
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException as error:  # noqa: BLE001  # the test wants to see it
        print(f"Traceback: {error!r}", file=sys.stderr)  # noqa: T201
        status = 99
    sys.stderr.flush()
    os.write(tells, json.dumps({"calls": shim.count(), "failed": shim.failed_call().decode()}).encode())
    os._exit(status)


if __name__ == "__main__":
    _serve()
