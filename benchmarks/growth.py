"""How time and memory of training grow with rows, length, rank and model size: `python -m benchmarks.growth`.

Each point is `finetune train` in a fresh process, from a recipe that differs in one quantity. Writes a table and one
picture a quantity.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from benchmarks.growth_chart import Panel, Series, growth_chart
from benchmarks.measured_process import run_measured
from benchmarks.peer_commands import our_recipe
from benchmarks.peer_rows import HELD_OUT, Row, RowFiles, make_rows, write_messages
from benchmarks.peers import DEFAULT_BASE
from evaluation.tokenizer import load_tokenizer
from finetune.bases import resolve_base
from finetune.cache import default_cache
from finetune.training_records import TrainingSummary

LONG_TOKENS = 8192
"""Tokens of answers that every point but those over the rows trains on."""
STEP_TOKENS = 2048
ROWS = (16, 32, 64, 128, 256)
LENGTHS = (64, 128, 256, 512, 1024)
RANKS = (4, 16, 64, 256)
MODELS = ("40M", "135M", "360M", "1.7B")


@dataclass(frozen=True)
class Point:
    """One measured training."""

    quantity: str
    value: float
    tokens: int
    training_seconds: float
    other_seconds: float
    """Of the command, before and after training: start-up, preparing, loading, writing."""
    peak_bytes: int


@dataclass(frozen=True)
class Setting:
    """What one point trains."""

    rows: Sequence[Row]
    model: Path
    rank: int = 16


def measure(quantity: str, value: float, setting: Setting, scratch: Path) -> Point:
    """Run our command once.

    Raises:
        RuntimeError: it failed.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    files, recipe, log = RowFiles(scratch), scratch / "recipe.yaml", scratch / "log"
    write_messages(files.messages, setting.rows)
    write_messages(files.held_out, HELD_OUT)
    recipe.write_text(json.dumps(our_recipe(setting.model, files, nf4=False)), encoding="utf-8")
    changes = (
        f"adapter.rank={setting.rank}",
        f"adapter.alpha={2 * setting.rank}",
        f"data.max_tokens={STEP_TOKENS}",
        f"training.tokens_per_step={STEP_TOKENS}",
    )
    folders = ("--out", str(scratch / "run"), "--cache", str(scratch / "cache"))
    command = [sys.executable, "-m", "finetune.cli", "train", str(recipe), *folders]
    command += [text for change in changes for text in ("--set", change)]
    measured = run_measured(command, log, {**os.environ, "PYTHONPATH": _root()}, scratch)
    failure = measured.failure(log)
    if failure:
        raise RuntimeError(f"{quantity} {value:,.6g}: {failure}")
    summary = TrainingSummary.model_validate_json((scratch / "run" / "training" / "summary.json").read_bytes())
    rest = measured.seconds - summary.seconds
    return Point(quantity, value, summary.tokens, summary.seconds, rest, measured.peak_bytes)


def rows_of_length(tokens: int, model: Path) -> list[Row]:
    """Make rows whose answers have so many tokens each, and 8,192 together, from Python's documentation strings."""
    tokenizer = load_tokenizer(model)
    ids: list[int] = []
    for row in cycle(make_rows(256)):
        if len(ids) >= LONG_TOKENS:
            break
        ids += tokenizer(row.answer, add_special_tokens=False)["input_ids"]
    starts = range(0, LONG_TOKENS, tokens)
    return [
        Row(f"Part {number} of the documentation?", str(tokenizer.decode(ids[start : start + tokens])))
        for number, start in enumerate(starts, 1)
    ]


def over_rows(model: Path, scratch: Path) -> Iterator[Point]:
    """More rows of the same kind."""
    for count in ROWS:
        yield measure("rows", count, Setting(make_rows(count), model), scratch)


def over_length(model: Path, scratch: Path) -> Iterator[Point]:
    """The same tokens in longer rows."""
    for length in LENGTHS:
        yield measure("tokens of an answer", length, Setting(rows_of_length(length, model), model), scratch)


def over_rank(model: Path, scratch: Path) -> Iterator[Point]:
    """The same rows with a larger adapter."""
    rows = rows_of_length(256, model)
    for rank in RANKS:
        yield measure("rank", rank, Setting(rows, model, rank), scratch)


def over_model(model: Path, scratch: Path) -> Iterator[Point]:
    """The same rows with larger models, of random weights in SmolLM2's shapes."""
    rows = rows_of_length(256, model)
    for name in MODELS:
        base = scratch.with_name(f"base-{name}")
        command = [sys.executable, "-m", "benchmarks.growth_models", str(base), name, str(model)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": _root()})
        millions = float(name[:-1]) * (1000 if name.endswith("B") else 1)
        yield measure("million parameters", millions, Setting(rows, base), scratch)
        shutil.rmtree(base)


QUANTITIES: dict[str, Callable[[Path, Path], Iterator[Point]]] = {
    "rows": over_rows,
    "length": over_length,
    "rank": over_rank,
    "model": over_model,
}


def draw(points: Sequence[Point]) -> str:
    """Draw seconds and memory of one quantity."""
    training = Series("training", [(one.value, one.training_seconds) for one in points])
    other = Series("the rest of the command", [(one.value, one.other_seconds) for one in points])
    memory = Series("peak", [(one.value, one.peak_bytes / 1e9) for one in points])
    panels = (Panel("seconds", (training, other)), Panel("peak memory, GB", (memory,)))
    return growth_chart(points[0].quantity, panels)


def table(points: Sequence[Point]) -> str:
    """Write a Markdown table of all points."""
    lines = ["| over | | tokens | training, s | tokens/s | the rest, s | peak, GB |", "|---|--:|--:|--:|--:|--:|--:|"]
    lines += [
        f"| {one.quantity} | {one.value:,.6g} | {one.tokens:,} | {one.training_seconds:,.1f}"
        f" | {one.tokens / one.training_seconds:,.0f} | {one.other_seconds:,.1f} | {one.peak_bytes / 1e9:.2f} |"
        for one in points
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure each quantity and draw it as soon as it is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--over", default=",".join(QUANTITIES), help="default: %(default)s")
    parser.add_argument("--model", type=Path, help="folder of a LLaMA; SmolLM2 135M if not given")
    parser.add_argument("--images", type=Path, default=Path("docs/images"), help="default: %(default)s")
    given = parser.parse_args()
    model = given.model.resolve() if given.model else resolve_base(DEFAULT_BASE, default_cache(), print).folder
    measured: list[Point] = []
    with tempfile.TemporaryDirectory(prefix="growth-") as scratch:
        for name in given.over.split(","):
            points = []
            for point in QUANTITIES[name](model, Path(scratch) / "run"):
                points.append(point)
                print(f"{name} {point.value:,.6g}: {point.training_seconds:,.1f} s", file=sys.stderr, flush=True)
            measured += points
            picture = given.images / f"growth-{name}.svg"
            picture.write_text(draw(points), encoding="utf-8")
    print(table(measured))


def _root() -> str:
    return str(Path(__file__).parents[1])


if __name__ == "__main__":
    main()
