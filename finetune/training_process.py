"""One of several training processes, started by torchrun: `python -m finetune.training_process JOB.json`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from evaluation.files import write_text
from evaluation.interruption import HEARD
from evaluation.quiet import quiet_libraries
from finetune.console import Reporter
from finetune.disk_faults import TellingDiskFaults
from finetune.errors import TrainingStopped, UserError
from finetune.launch import ERROR_FILE, STOP_FILE, UNDER_WAY_FILE
from finetune.machine import end_with_parent
from finetune.signals import Interrupted
from finetune.training_job import TrainingJob

PATIENCE = 2.0
"""Seconds from a SIGTERM until the file must be there that says that this process may finish its step."""


@dataclass(frozen=True)
class StopFile:
    """A file by which the process that hears signals asks the ones that train to end."""

    run_folder: Path

    def finish_first(self) -> None:
        """Say that steps are under way."""
        (self.run_folder / UNDER_WAY_FILE).touch()

    def asked(self) -> bool:
        """Look for the file."""
        return (self.run_folder / STOP_FILE).exists()

    def end(self, what: str) -> NoReturn:
        """End, as `Stop` says."""
        raise Interrupted(signal.SIGTERM, what)


def main(arguments: list[str]) -> int:
    """Train this process's share; what stops it is written beside the job for the launcher to pass on."""
    end_with_parent()
    job = TrainingJob.model_validate_json(Path(arguments[0]).read_bytes())
    stop = StopFile(job.run_folder)
    _end_unless_asked(stop)
    quiet_libraries()
    from finetune.training import train  # its threads are to begin with the signals blocked

    try:
        with TellingDiskFaults("train", job.run_folder):
            train(job, Reporter(), stop)
    except Interrupted as interrupted:
        if os.environ["RANK"] == "0":
            _write(job, type(interrupted).__name__, interrupted.what)
        return 0  # torchrun would end the others, of which the first still writes
    except UserError as error:
        return _note(job, error)
    except RuntimeError as error:  # torch's own: no memory left, or another process that is gone
        if (job.run_folder / ERROR_FILE).exists():
            return TrainingStopped.exit_code  # the process that is gone has said why
        first = str(error).strip().partition("\n")[0]
        return _note(job, TrainingStopped(f"a training process failed: {first}", where="training.devices"))
    return 0


def _end_unless_asked(stop: StopFile) -> None:
    """Let SIGTERM end this process, also while it waits inside a library, unless its step is to be finished first.

    torchrun ends the others with it when one has died; whoever ends a whole group of processes sends it as well.
    """
    for number in HEARD:
        signal.signal(number, signal.SIG_DFL)  # ignored by the launcher, and inherited
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)

    def hear() -> None:
        while True:
            if signal.sigwait(HEARD) == signal.SIGTERM:
                time.sleep(PATIENCE if not stop.asked() else 0)
                if not stop.asked():
                    os._exit(128 + signal.SIGTERM)

    threading.Thread(target=hear, daemon=True).start()


def _note(job: TrainingJob, error: UserError) -> int:
    _write(job, type(error).__name__, error.what, error.where, error.hint)
    return error.exit_code


def _write(job: TrainingJob, kind: str, what: str, where: str = "", hint: str = "") -> None:
    said = {"kind": kind, "what": what, "where": where, "hint": hint}
    write_text(job.run_folder / ERROR_FILE, json.dumps(said))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
