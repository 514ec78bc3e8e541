"""From a file of rows to token ids and labels, beside the tokenizer alone: `python -m benchmarks.preparing`.

On one core, over the same rows, in turn, each in a process of its own that has gone over them once before:

- `encode_batch` of the rendered texts, 2,000 at a time, by the tokenizer as transformers loads it: its own rate.
- The path from JSONL to token ids and labels: read the lines, make conversations of them, render, tokenize, mask, and
  write the examples to the disk.
- The same, with what every run does to each row beside that: the search for secrets, and the keys that it is drawn and
  split by.

Then the whole data stage on all cores, with its proofs (repeats, leaks between the parts, masks in a second way,
languages), at several numbers of rows, with the most memory that it takes.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from benchmarks.prepare_scale import BASE, recipe_for, words_of, write_rows
from benchmarks.spread import machine_line, spread, table
from evaluation.rendering import Renderer
from evaluation.tokenizer import load_tokenizer
from finetune.bases import resolve_base
from finetune.cache import default_cache
from finetune.prepare_chunks import ROWS_A_CHUNK, write_outcomes
from finetune.prepare_examples import RenderSettings, render_rows, train_settings
from finetune.prepare_rows import RowSettings, convert_rows
from finetune.recipe_data import Source
from finetune.row_store import StoredRow
from finetune.row_templates import RowUnusable, load_row_template, to_conversation
from finetune.rows import BadRow, Row, read_rows
from finetune.uncollected import uncollected_imports
from finetune.workers import chunked

Way = Literal["encode", "path", "searched"]
WAYS: dict[Way, str] = {
    "encode": "`encode_batch` alone",
    "path": "JSONL to token ids and labels",
    "searched": "the same with secrets and keys",
}
MOST_MEMORY = re.compile(r"most memory: ([\d,]+) MiB, workers together ([\d,]+) MiB")
ROWS_A_SECOND = re.compile(r"rows in [\d.,]+ s: ([\d,]+) rows/s, ([\d,]+) tokens")


@dataclass(frozen=True)
class Measured:
    """What one process took."""

    seconds: float
    """Of processors."""
    tokens: int


class Rows:
    """The rows, and ways to go over them."""

    def __init__(self, source: Source, renderer: Renderer, settings: RenderSettings, folder: Path) -> None:
        """Take the source, and where examples are written."""
        self.source, self.renderer, self.settings, self.folder = source, renderer, settings, folder
        self.rows = RowSettings(load_row_template(source.rows), dict(source.columns), None, None)

    def to_examples(self) -> int:
        """Go from the file to examples on the disk; return their tokens."""
        return sum(self._written(i, list(self._plain(rows))) for i, rows in enumerate(self._chunks()))

    def to_examples_searched(self) -> int:
        """Do the same with what every run does to each row."""
        return sum(self._written(i, convert_rows(self.rows, rows).rows) for i, rows in enumerate(self._chunks()))

    def texts(self) -> list[list[str]]:
        """Return the texts that the tokenizer is given, in the same chunks."""
        found: list[list[str]] = []
        for rows in self._chunks():
            chats = [row.parsed() for row in self._plain(rows)]
            found.append([self.renderer.chat_text(chat.messages, ask=False) for chat in chats])
        return found

    def _chunks(self) -> Iterator[list[Row | BadRow]]:
        return chunked(read_rows(self.source, Path(self.source.source)), ROWS_A_CHUNK)

    def _plain(self, rows: Sequence[Row | BadRow]) -> Iterator[StoredRow]:
        for row in rows:
            if isinstance(row, BadRow):
                continue
            try:
                conversation = to_conversation(self.rows.template, row.values, self.rows.columns)
            except RowUnusable:
                continue
            yield StoredRow(row.file, row.line, "", "", conversation.model_dump_json(exclude_defaults=True))

    def _written(self, number: int, rows: Sequence[StoredRow]) -> int:
        outcomes = render_rows(self.renderer, self.settings, rows)
        write_outcomes(self.folder / f"{number}.arrow", outcomes)
        return sum(len(outcome.example.input_ids) for outcome in outcomes if outcome.example)


def measured(way: Way, file: Path, base: Path, folder: Path) -> Measured:
    """Go over the rows in one way, twice, and measure the second."""
    with uncollected_imports():  # as a run imports the data stage
        renderer = Renderer(load_tokenizer(base))
    recipe = recipe_for(file)
    path = Rows(recipe.data.train[0], renderer, train_settings(recipe), folder)
    work: Callable[[], int]
    match way:
        case "encode":
            work = functools.partial(encoded, path.texts(), base)
        case "path":
            work = path.to_examples
        case "searched":
            work = path.to_examples_searched
    work()
    began = time.process_time()
    tokens = work()
    return Measured(time.process_time() - began, tokens)


def encoded(texts: Sequence[list[str]], base: Path) -> int:
    """Tokenize texts as anyone would who has only the tokenizer; return their tokens."""
    backend = plain_backend(base)
    return sum(len(one.ids) for some in texts for one in backend.encode_batch(some, add_special_tokens=False))


@functools.cache
def plain_backend(base: Path) -> Tokenizer:
    """Load the tokenizer as transformers does."""
    backend: Tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True).backend_tokenizer
    return backend


def compare(file: Path, base: Path, folder: Path, rounds: int) -> str:
    """Measure the three on one core and return a table."""
    rates: dict[Way, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, found in rates.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                of_it = alone.submit(measured, way, file, base, folder).result()
            found.append(of_it.tokens / of_it.seconds)
    rows = [
        [name, str(rounds), spread(rates[way], 0), spread(shares(rates[way], rates["encode"]), 0)]
        for way, name in WAYS.items()
    ]
    return table(["on one core", "n", "tokens per second of it", "% of `encode_batch`"], rows)


def shares(rates: Sequence[float], alone: Sequence[float]) -> list[float]:
    """Return percentages, round by round."""
    return [100 * rate / whole for rate, whole in zip(rates, alone, strict=True)]


def whole_stage(counts: Sequence[int], base: Path) -> str:
    """Run the data stage in processes of their own and return a table."""
    rows = []
    for count in counts:
        command = [
            sys.executable,
            "-m",
            "benchmarks.prepare_scale",
            "--once",
            "--rows",
            str(count),
            "--base",
            str(base),
        ]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        own, workers = _found(MOST_MEMORY, said)
        rate, tokens = _found(ROWS_A_SECOND, said)
        rows.append([f"{count:,}", rate, tokens, own, workers])
    return table(["rows", "rows a second", "tokens", "most memory, MiB", "its workers together, MiB"], rows)


def _found(pattern: re.Pattern[str], text: str) -> tuple[str, str]:
    match = pattern.search(text)
    assert match, text
    first, second = match.groups()
    return first, second


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000, help="of the comparison on one core")
    parser.add_argument("--stage-rows", type=int, nargs="*", default=[10_000, 100_000], help="of the whole data stage")
    given = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core for all three; the data stage does the same
    base = resolve_base(BASE, default_cache(), print).folder
    with tempfile.TemporaryDirectory(prefix="preparing-") as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", given.rows, words_of(base), seed=0)
        print(compare(folder / "rows.jsonl", base, folder, given.rounds))
    print()
    print(whole_stage(given.stage_rows, base))
    print(f"\n{machine_line('tokenizers', 'pyarrow', 'jinja2')}")


if __name__ == "__main__":
    main()
