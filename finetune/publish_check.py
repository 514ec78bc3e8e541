"""Downloads what was published and compares it: a process of its own, which has nothing but the name of the place.

`python -m finetune.publish_check` reads a CheckJob from standard input and writes a CheckResult to standard output.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from evaluation.files import sha256_of_file
from evaluation.quiet import quiet_libraries
from finetune.errors import DataError, MachineError, ProofFailed, UserError
from finetune.publish_manifest import MANIFEST_FILE, Manifest, check_files, load_manifest
from finetune.published import fetch_published, find_base
from finetune.push_targets import parse_target

_LIMIT_SECONDS = 3600


class CheckJob(BaseModel):
    """What is to be downloaded, and what it has to be."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    target: str
    commit: str | None
    manifest_sha256: str
    """Of publish.json, which holds the hashes of everything else."""
    base: Path | None
    """Folder of the base, if one was named."""
    cache: Path


class CheckResult(BaseModel):
    """What was found."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    files: int = 0
    answers: int = 0
    """Answers that were asked for again and are the same."""
    not_asked: str | None = None
    """Why the answers were not asked for."""
    wrong: str | None = None
    """What is not as it was published."""
    unreachable: str | None = None
    """Why it could not be downloaded."""


def check_in_fresh_process(job: CheckJob) -> CheckResult:
    """Let another process download and compare.

    Raises:
        ProofFailed: what is there is not what was sent.
        MachineError: it could not be downloaded.
    """
    command = [sys.executable, "-m", "finetune.publish_check"]
    try:
        done = subprocess.run(
            command, input=job.model_dump_json(), capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        what = f"published, and not compared: downloading it again took more than {_LIMIT_SECONDS // 60} minutes"
        raise MachineError(what, where=job.target, hint="the same command compares it again") from error
    try:
        result = CheckResult.model_validate_json(done.stdout)
    except ValidationError as error:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        what = f"published, and the process that compares it ended: {last}"
        raise MachineError(what, where=job.target, hint="the same command compares it again") from error
    return judged(result, job)


def judged(result: CheckResult, job: CheckJob) -> CheckResult:
    """Return a result that is good.

    Raises:
        ProofFailed: what is there is not what was sent.
        MachineError: it could not be downloaded.
    """
    where = f"{job.target}@{job.commit}" if job.commit else job.target
    if result.unreachable is not None:
        what = f"published, and it cannot be downloaded to be compared: {result.unreachable}"
        raise MachineError(what, where=where, hint="the same command compares it again")
    if result.wrong is not None:
        what = f"published, and what is downloaded is not what was sent: {result.wrong}"
        raise ProofFailed(what, where=where, hint="delete it there, then push again")
    return result


def check_published(job: CheckJob) -> CheckResult:
    """Download into a folder of its own and compare hashes, then answers."""
    with tempfile.TemporaryDirectory(prefix="finetune-check-") as place:
        folder = Path(place)
        try:
            fetch_published(parse_target(job.target), job.commit, folder)
        except MachineError as error:
            return CheckResult(unreachable=str(error))
        except DataError as error:
            return CheckResult(wrong=str(error))
        try:
            if sha256_of_file(folder / MANIFEST_FILE) != job.manifest_sha256:
                return CheckResult(wrong=f"{MANIFEST_FILE} has other bytes")
            manifest = load_manifest(folder)
            check_files(folder, manifest)
            count = len(manifest.files) + 1
            return CheckResult(files=count).model_copy(update=_ask(folder, manifest, job))
        except FileNotFoundError:
            return CheckResult(wrong=f"{MANIFEST_FILE} is missing")
        except UserError as error:
            return CheckResult(wrong=error.what)


def _ask(folder: Path, manifest: Manifest, job: CheckJob) -> dict[str, object]:
    """Ask for the answers again, where that can be done here."""
    base = None
    if not manifest.answers:
        return {"not_asked": f"{MANIFEST_FILE} holds none"}
    if "adapter" in manifest.parts:
        base = find_base(manifest.base, job.base, job.cache)
        if base is None:
            return {"not_asked": f"the base {manifest.base.model} is not in the cache; --base names its folder"}
    elif "merged" not in manifest.parts:
        return {"not_asked": "a GGUF file alone is not loaded by transformers and peft"}
    # torch takes seconds to import, and hashes need none of it.
    from finetune.plain_answers import wrong_answers

    wrong = wrong_answers(folder, manifest, base)
    if wrong:
        raise ProofFailed(f"{len(wrong)} of {len(manifest.answers)} answers differ; {wrong[0]}")
    return {"answers": len(manifest.answers)}


def _main(read: Callable[[], str], write: Callable[[str], object]) -> None:
    quiet_libraries()
    write(check_published(CheckJob.model_validate_json(read())).model_dump_json())


if __name__ == "__main__":
    _main(sys.stdin.read, sys.stdout.write)
