"""One run of a contender: its command, what its log says, and the loss of what it trained."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measured_process import Limits, run_measured
from benchmarks.peer_commands import Place
from benchmarks.peer_contenders import Contender, environment_of
from benchmarks.peer_logs import Training, UnreadableLog, parse_litgpt, parse_loop, parse_transformers, read_our_run
from benchmarks.peer_rows import RenderedRow
from benchmarks.peer_table import Machine, Outcome


class CommandFailed(Exception):
    """A command beside the contenders themselves ended badly; says which and its last line."""


@dataclass(frozen=True)
class Runner:
    """Runs contenders in one place on the same rows."""

    place: Place
    rows: Sequence[RenderedRow]
    limits: Limits
    logs: Path

    def run(self, contender: Contender, number: int, scored: bool) -> Outcome:
        """Run a contender once, for round `number`; where it fails, the outcome says why."""
        shutil.rmtree(self.place.work, ignore_errors=True)
        self.place.work.mkdir(parents=True)
        log = self.logs / f"{contender.name}-{number}.log"
        environment = environment_of(contender, self.place)
        measured = run_measured(contender.command(self.place), log, environment, self.place.work, self.limits)
        failure = measured.failure(log)
        outcome = Outcome(contender.name, number, measured.seconds, measured.peak_bytes, failure=failure)
        if failure is None:
            try:
                training = self._training(contender, log)
            except UnreadableLog as error:
                return dataclasses.replace(outcome, failure=str(error))
            given = sum(row.tokens for row in self.rows)
            # Not more than the rows have, which a template's last line break after each answer would be.
            tokens = min(training.tokens or given, given)
            outcome = dataclasses.replace(outcome, training=training, tokens=tokens)
            if scored:
                outcome = self._scored(outcome, contender, environment)
        shutil.rmtree(self.place.work)
        return outcome

    def _training(self, contender: Contender, log: Path) -> Training:
        if contender.peer == "ours":
            return read_our_run(self.place.work / "run")
        parse = {"loop": parse_loop, "litgpt": parse_litgpt}.get(contender.peer, parse_transformers)
        return parse(log.read_text(encoding="utf-8", errors="replace"))

    def _scored(self, outcome: Outcome, contender: Contender, environment: dict[str, str]) -> Outcome:
        try:
            return dataclasses.replace(outcome, loss_after=self._loss_after(contender, environment))
        except CommandFailed as error:
            return dataclasses.replace(outcome, failure=f"what it trained cannot be scored: {error}")

    def _loss_after(self, contender: Contender, environment: dict[str, str]) -> float:
        """Score what was trained; LitGPT's merged weights get transformers' names first."""
        work = self.place.work
        if contender.adapter:
            trained = ["--adapter", str(work / contender.adapter)]
        else:
            folders = (str(work / "out" / "final"), str(work / "renamed"))
            command = [self.place.installed("litgpt", "litgpt"), "convert_from_litgpt", *folders]
            _output_of(command, environment)
            trained = ["--weights", str(work / "renamed" / "model.pth")]
        place = self.place
        return run_own("benchmarks.adapter_loss", str(place.model), str(place.rows.texts), *trained)["loss"]


def measure_machine(model: Path) -> Machine:
    """Measure what bounds all contenders, at the sizes of a model."""
    found = run_own("benchmarks.matrix_rate", str(model))
    return Machine(found["rate"], int(found["parameters"]), int(found["threads"]))


def run_own(module: str, *arguments: str) -> dict[str, float]:
    """Run one of our modules, which prints JSON last, in a process of its own.

    What this process held would count among the memory of every contender that it starts.

    Raises:
        CommandFailed: the module failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", module, *arguments]
    found: dict[str, float] = json.loads(_output_of(command, environment).splitlines()[-1])
    return found


def _output_of(command: Sequence[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise CommandFailed(f"{Path(command[0]).name} {command[1]} {command[2]}: {last}")
    return done.stdout
