"""One of several training processes, started by torchrun: `python -m finetune.training_process JOB.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from evaluation.files import write_text
from evaluation.quiet import quiet_libraries
from finetune.console import Reporter
from finetune.disk_faults import TellingDiskFaults
from finetune.errors import TrainingStopped, UserError
from finetune.launch import ERROR_FILE
from finetune.machine import end_with_parent
from finetune.training import train
from finetune.training_job import TrainingJob


def main(arguments: list[str]) -> int:
    """Train this process's share; what stops it is written beside the job for the launcher to pass on."""
    quiet_libraries()
    end_with_parent()
    job = TrainingJob.model_validate_json(Path(arguments[0]).read_bytes())
    try:
        with TellingDiskFaults("train", job.run_folder):
            train(job, Reporter())
    except UserError as error:
        return _note(job, error)
    except RuntimeError as error:  # torch's own: no memory left, or another process that is gone
        if (job.run_folder / ERROR_FILE).exists():
            return TrainingStopped.exit_code  # the process that is gone has said why
        first = str(error).strip().partition("\n")[0]
        return _note(job, TrainingStopped(f"a training process failed: {first}", where="training.devices"))
    return 0


def _note(job: TrainingJob, error: UserError) -> int:
    said = {"kind": type(error).__name__, "what": error.what, "where": error.where, "hint": error.hint}
    write_text(job.run_folder / ERROR_FILE, json.dumps(said))
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
