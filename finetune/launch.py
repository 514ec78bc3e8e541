"""Starts the training stage: in this process on one device, through torchrun on several.

`accelerate launch --cpu --num_processes 2` silently starts one process (accelerate 1.15), so torchrun is started
directly and the number of processes is checked by each of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Literal, NoReturn

from evaluation.files import STAGING_PREFIX, write_text
from finetune.console import Reporter
from finetune.errors import DataError, MachineError, Problem, RecipeError, TrainingStopped, UserError
from finetune.process_ends import how_ended
from finetune.signals import Interrupted, Signals
from finetune.training_job import TrainingJob
from finetune.uncollected import uncollected_imports

JOB_FILE = f"{STAGING_PREFIX}training-job.json"
ERROR_FILE = f"{STAGING_PREFIX}training-error.json"
UNDER_WAY_FILE = f"{STAGING_PREFIX}training-under-way"
"""There once the first step has begun: what a signal then has to wait for."""
STOP_FILE = f"{STAGING_PREFIX}training-stop"
"""Asks the processes to end after the step they are in."""


def count_devices(wanted: int | Literal["all"]) -> int:
    """Return how many processes to start: all GPUs, or the number asked for (processes, on a CPU).

    Raises:
        MachineError: more GPUs are asked for than there are.
    """
    import torch

    available = torch.cuda.device_count()
    if wanted == "all":
        return max(1, available)
    if 0 < available < wanted:
        raise MachineError(
            f"{wanted} GPUs are asked for and {available} are here",
            where="training.devices",
            hint="use --devices all",
        )
    return wanted


def launch_training(job: TrainingJob, reporter: Reporter, signals: Signals) -> None:
    """Train in as many processes as the job asks for, and pass on what stopped them.

    Raises:
        TrainingStopped: a guard stopped the run, or a process died.
        Interrupted: a signal was heard; what was learned is in a checkpoint.
    """
    if job.devices == 1:
        # TRL and transformers' trainer take seconds to import, and a finished run does without them.
        with uncollected_imports():
            from finetune.training import train

        train(job, reporter, signals)
        return
    files = [job.run_folder / name for name in (JOB_FILE, ERROR_FILE, UNDER_WAY_FILE, STOP_FILE)]
    job_file, error_file, under_way, stop_file = files
    for file in files:
        file.unlink(missing_ok=True)
    write_text(job_file, job.model_dump_json())

    def pass_on() -> bool:
        if under_way.exists():
            stop_file.touch()
        return under_way.exists()

    signals.finish_first(pass_on)
    try:
        finished = subprocess.run(
            [sys.executable, "-m", "finetune.training_launcher", str(job_file)],
            check=False,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C comes to this process alone, which passes it on
        )
        if finished.returncode != 0 or error_file.exists():
            _end(job, finished.returncode, signals)
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _end(job: TrainingJob, status: int, signals: Signals) -> NoReturn:
    file = job.run_folder / ERROR_FILE
    if not file.exists():
        if signals.asked():
            signals.end()  # whoever ended this process has ended the others as well
        raise TrainingStopped(f"a training process died: torchrun {how_ended(status)}", where="training.devices")
    said = json.loads(file.read_text(encoding="utf-8"))
    if said["kind"] == Interrupted.__name__:
        signals.end(said["what"])
    raise _what_stopped(said)


def _what_stopped(said: dict[str, str]) -> UserError:
    if said["kind"] == RecipeError.__name__:
        return RecipeError([Problem("training.devices", said["what"])])
    kinds = {kind.__name__: kind for kind in (DataError, MachineError, TrainingStopped)}
    return kinds.get(said["kind"], TrainingStopped)(said["what"], where=said["where"], hint=said["hint"])
