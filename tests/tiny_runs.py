"""Whole runs on the tiny model: its base, rows, a recipe, and the command line as a function or as a process."""

from __future__ import annotations

import io
import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import yaml
from tiny_model import write_tiny_base

import evaluation.cli
import finetune.cli
from evaluation.quiet import QUIET_LOGGERS
from finetune.run_directory import RunDirectory

WORDS = ("fever", "cough", "eye", "ear", "skin", "clause", "patient", "antibiotic", "chapter", "service", "terms")
LABELS = ("red", "green", "blue")

HUNG_SECONDS = 1_800  # of a process; a busy machine makes one slow, and slow is not wrong

PROMISED = (
    "recipe.yaml",
    "recipe.lock.json",
    "environment.json",
    "data/train.arrow",
    "data/validation.arrow",
    "data/held_out.jsonl",
    "data/held_out.task.yaml",
    "data/audit.json",
    "data/set_aside.jsonl",
    "training/metrics.jsonl",
    "training/summary.json",
    "adapter/adapter_model.safetensors",
    "adapter/adapter_config.json",
    "adapter/tokenizer.json",
    "adapter/chat_template.jinja",
    "merged/model.safetensors",
    "merged/config.json",
    "merged/tokenizer.json",
    "merged/merge.json",
    "evaluation/base/held_out.json",
    "evaluation/adapter/held_out.json",
    "evaluation/merged/held_out.json",
    "report.html",
    "report.md",
    "report.json",
)
"""Files of every finished run with validation rows."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it said."""

    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Workplace:
    """A folder with a tiny base, rows and a recipe."""

    folder: Path
    recipe: Path

    @property
    def base(self) -> Path:
        """The base model's folder."""
        return self.folder / "base"

    @property
    def cache(self) -> Path:
        """A cache folder of its own."""
        return self.folder / "cache"

    def run(self, *arguments: str, out: Path | None = None, command: str = "run") -> Outcome:
        """Run a command on the recipe, in this process."""
        return finetune_command(*self.arguments(*arguments, out=out, command=command))

    def arguments(self, *arguments: str, out: Path | None = None, command: str = "run") -> list[str]:
        """Spell out the arguments of a command on the recipe."""
        folder = out or self.folder / "run"
        return [command, str(self.recipe), "--out", str(folder), "--cache", str(self.cache), *arguments]


def write_classification(folder: Path, rows: int = 60) -> Workplace:
    """Write a classification of words: QLoRA in fp32, a few steps, answers of a few tokens."""
    order = random.Random(0)
    lines = ["text,label,kind"]
    for i in range(rows):
        first = order.choice(WORDS)
        lines.append(f"{first} {order.choice(WORDS)} {i},{LABELS[WORDS.index(first) % 3]},{i % 20}")
    return _write(folder, "rows.csv", "\n".join(lines) + "\n", "classification")


def write_instructions(folder: Path, rows: int = 40) -> Workplace:
    """Write instructions with open answers, and no 4-bit base."""
    lines = ["instruction,input,output"]
    lines += [f"Which word is it? {i},{WORDS[i % 11]},It is {WORDS[i % 11]} {i % 7}." for i in range(rows)]
    return _write(folder, "rows.csv", "\n".join(lines) + "\n", "alpaca", quantized=False)


def write_texts(folder: Path, rows: int = 40) -> Workplace:
    """Write plain texts, and no 4-bit base."""
    lines = ["text", *(f"The {WORDS[i % 11]} of the {WORDS[i % 7]} is {i}." for i in range(rows))]
    return _write(folder, "rows.csv", "\n".join(lines) + "\n", "text", quantized=False)


def _write(folder: Path, name: str, text: str, rows: str, *, quantized: bool = True) -> Workplace:
    write_tiny_base(folder / "base")
    (folder / name).write_text(text, encoding="utf-8")
    recipe = {
        "version": 1,
        "name": "tiny",
        "base": {"model": str(folder / "base"), "dtype": "float32"},
        **({"quantization": {"kind": "nf4"}} if quantized else {}),
        "adapter": {"kind": "lora", "rank": 4},
        "data": {
            "train": [{"source": str(folder / name), "rows": rows}],
            "validation": {"fraction": 0.2},
            "held_out": {"fraction": 0.2},
            "max_tokens": 128,
        },
        "training": {"tokens_per_step": 512, "learning_rate": 0.02, "validations": 2},
        "merge": {"dtype": "float32", "minimum_gain_kept": 0.0},
        "evaluation": {"max_new_tokens": 4},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return Workplace(folder, folder / "tiny.yaml")


def finetune_command(*arguments: str) -> Outcome:
    """Run `finetune` in this process, with what it prints and how it ends."""
    return _command(finetune.cli.main, arguments)


def evaluation_command(*arguments: str) -> Outcome:
    """Run `evaluation` in this process, with what it prints and how it ends."""
    return _command(evaluation.cli.main, arguments)


def finetune_process(*arguments: str, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run `finetune` in a process of its own."""
    done = subprocess.run(
        process_command(*arguments),
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=HUNG_SECONDS,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def process_command(*arguments: str) -> list[str]:
    """Spell out the command line of `finetune` in a process of its own."""
    return [sys.executable, "-m", "finetune.cli", *arguments]


def left_over(folder: Path) -> list[str]:
    """Name what an interrupted writer left anywhere below a folder."""
    return [path.name for path in folder.rglob(".staging-*")]


def broken_promises(run: RunDirectory) -> list[str]:
    """Name the finished stages whose outputs are not what their markers say."""
    found = []
    for path in sorted((run.folder / "stages").glob("*.json")):
        marker = run.marker(path.stem)  # type: ignore[arg-type]
        if marker is not None and (why := run.why_stale(path.stem, marker.inputs)):  # type: ignore[arg-type]
            found.append(f"{path.stem}: {why}")
    return found


def _command(main: object, arguments: tuple[str, ...]) -> Outcome:
    stdout, stderr = io.StringIO(), io.StringIO()
    with _restored(), redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            main(arguments)  # type: ignore[operator]
            status = 0
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return Outcome(status, stdout.getvalue(), stderr.getvalue())


@contextmanager
def _restored() -> Iterator[None]:
    """Put back what a command changes in its process: environment, log levels and warning filters."""
    environment = dict(os.environ)
    levels = {name: logging.getLogger(name).level for name in QUIET_LOGGERS}
    with warnings.catch_warnings():
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(environment)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def hear_ctrl_c() -> None:
    """Undo what a shell does to its background jobs, of which pytest may be one: they do not hear Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
