"""torchrun with an end that a person can read: `python -m finetune.training_launcher JOB.json`.

A process of its own, since torchrun keeps the signal handlers that it sets; and torchrun's own command ends a
failure with a traceback of itself.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from evaluation.files import sweep_staging, write_text
from evaluation.interruption import HEARD
from finetune.errors import TrainingStopped
from finetune.launch import ERROR_FILE
from finetune.machine import end_with_parent
from finetune.training_job import TrainingJob


def main(arguments: list[str]) -> int:
    """Start the processes of a job and wait for them; a killed one is written beside the job for the launcher."""
    end_with_parent()
    for number in HEARD:
        signal.signal(number, signal.SIG_IGN)  # the process that started this one decides, and torchrun would kill
    (job_file,) = arguments
    job = TrainingJob.model_validate_json(Path(job_file).read_bytes())
    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        run(
            parse_args(
                [
                    *("--standalone", "--nproc_per_node", str(job.devices), "--signals-to-handle", "SIGHUP"),
                    *("-m", "finetune.training_process", job_file),
                ]
            )
        )
    except ChildFailedError as error:
        sweep_staging(job.run.stopped)  # one that was writing there may have been ended with the others
        _name_killed(job, error)
        return TrainingStopped.exit_code
    return 0


def _name_killed(job: TrainingJob, error: ChildFailedError) -> None:
    # torchrun ends the others with SIGTERM, so that signal names nobody's own end.
    failures = error.failures.values()
    killed = [one for one in failures if one.exitcode < 0 and one.exitcode != -signal.SIGTERM]
    if killed:
        said = {
            "kind": TrainingStopped.__name__,
            "what": f"training process {killed[0].local_rank} was killed ({signal.Signals(-killed[0].exitcode).name})",
            "where": "training.devices",
            "hint": "most often memory ran out: lower training.tokens_per_micro_batch, or use fewer devices",
        }
        write_text(job.run_folder / ERROR_FILE, json.dumps(said))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
