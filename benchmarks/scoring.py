"""Scoring a choice beside lm-evaluation-harness: `python -m benchmarks.scoring`.

Both get the same folder of weights, the same prompts and options as token ids, and give the log-likelihood of every
option after every prompt. HFLM gets them through `_loglikelihood_tokens`, so that nothing but its scoring is timed; it
runs at each of several batch sizes, and the quickest counts. Every measurement is a process of its own, one after
another; loading is not counted. HFLM lives in a virtual environment with the same torch and transformers, which is made
once in the cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TypedDict

from benchmarks.prepare_scale import BASE
from benchmarks.spread import machine_line, spread, table
from evaluation.conversation import Conversation
from evaluation.rendering import Renderer
from evaluation.task import Sample
from evaluation.task_file import load_task
from evaluation.tokenizer import load_tokenizer
from finetune.bases import resolve_base
from finetune.cache import default_cache
from finetune.console import Reporter
from finetune.pipeline import run_recipe
from finetune.recipe_file import load_recipe

PEER = (
    "torch==2.13.0",
    "transformers==5.23.0",
    "accelerate==1.15.0",
    "datasets==5.2.0",
    "peft==0.21.2",
    "lm-eval==0.4.13",
)
"""All in one call of pip, so that it cannot choose another torch."""
DTYPES = ("float32", "bfloat16")
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Work:
    """Prompts, and options that are the same for all of them."""

    name: str
    prompts: tuple[Conversation, ...]
    options: tuple[str, ...]

    def write(self, file: Path, renderer: Renderer) -> None:
        """Write the requests as text and as token ids."""
        answers = [renderer.answer(self.prompts[0], option) for option in self.options]
        requests = {
            "prompts": [prompt.model_dump(mode="json") for prompt in self.prompts],
            "options": self.options,
            "prompt_ids": [renderer.prompt(prompt) for prompt in self.prompts],
            "answer_ids": answers,
        }
        file.write_text(json.dumps(requests), encoding="utf-8")


class Answer(TypedDict):
    """What a measured process says."""

    seconds: float
    scores: list[list[float]]


def works(rows: int, folder: Path) -> list[Work]:
    """Take held-out rows of the quick start with its chapters, and short questions with four short answers."""
    run = run_recipe(load_recipe("icd10-quickstart", []), folder / "run", default_cache(), Reporter(), "prepare")
    chapters = load_task(str(run.data / "held_out.task.yaml"))
    facts = load_task("plain_facts")
    return [
        Work(f"{len(chapters.task.options)} chapters", _prompts(chapters.samples[:rows]), chapters.task.options),
        Work("4 short answers", _prompts(facts.samples), tuple(sample.reference for sample in facts.samples[:4])),
    ]


def _prompts(samples: Sequence[Sample]) -> tuple[Conversation, ...]:
    return tuple(sample.prompt for sample in samples)


def peer_python(cache: Path) -> str:
    """Return the Python of the environment of lm-eval, which is made if it is not there."""
    folder = cache / "peers" / "lm-eval"
    mark = folder / "requirements.txt"
    if not mark.exists() or mark.read_text(encoding="utf-8") != "\n".join(PEER):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", "--no-compile", *PEER], check=True)
        mark.write_text("\n".join(PEER), encoding="utf-8")
    return str(folder / "bin" / "python")


def ask(python: str, script: str, *arguments: str) -> Answer:
    """Run one measured process and read what it says.

    Raises:
        CalledProcessError: it failed.
    """
    command = [python, str(HERE / script), *arguments]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    answer: Answer = json.loads(said.splitlines()[-1])
    return answer


def largest_difference(ours: Answer, peers: Answer) -> float:
    """Return how far two answers are apart at most, in nats for a whole option."""
    pairs = zip(chain.from_iterable(ours["scores"]), chain.from_iterable(peers["scores"]), strict=True)
    return max(abs(one - other) for one, other in pairs)


def main() -> None:
    """Measure and print a table for each type."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16, help="held-out rows of the quick start; the questions are 40")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 64], help="of HFLM")
    given = parser.parse_args()
    cache = default_cache()
    base = resolve_base(BASE, cache, print).folder
    python = peer_python(cache)
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="scoring-") as name:
        folder = Path(name)
        for work in works(given.rows, folder):
            requests = folder / "requests.json"
            work.write(requests, Renderer(load_tokenizer(base)))
            exact: Answer = {"seconds": 0.0, "scores": []}
            for dtype in DTYPES:
                ours: list[Answer] = []
                peers: dict[int, list[Answer]] = {size: [] for size in given.batch_sizes}
                for _ in range(given.rounds):
                    ours.append(ask(sys.executable, "scoring_ours.py", str(base), str(requests), dtype))
                    for size, answers in peers.items():
                        answers.append(ask(python, "scoring_peer.py", str(base), str(requests), dtype, str(size)))
                exact = ours[0] if dtype == DTYPES[0] else exact
                rows.append(_row(work, dtype, ours, peers, exact))
    heads = ["task", "rows", "type", "n", "ours, s", "HFLM, s (batch size)", "times as fast"]
    heads += ["largest difference, nats", "ours / HFLM from our float32"]
    print(table(heads, rows))
    print(f"\n{machine_line('torch', 'transformers')} {_version(python)}")


def _row(work: Work, dtype: str, ours: Sequence[Answer], peers: dict[int, list[Answer]], exact: Answer) -> list[str]:
    best = min(peers, key=lambda size: median(answer["seconds"] for answer in peers[size]))
    pairs = list(zip(ours, peers[best], strict=True))
    return [
        work.name,
        str(len(work.prompts)),
        dtype,
        str(len(ours)),
        spread([answer["seconds"] for answer in ours]),
        f"{spread([answer['seconds'] for answer in peers[best]])} ({best})",
        spread([peer["seconds"] / own["seconds"] for own, peer in pairs]),
        f"{max(largest_difference(own, peer) for own, peer in pairs):.1e}",
        f"{largest_difference(ours[0], exact):.1e} / {largest_difference(peers[best][0], exact):.1e}",
    ]


def _version(python: str) -> str:
    said = subprocess.run([python, "-m", "pip", "show", "lm-eval"], check=True, capture_output=True, text=True).stdout
    return next(line for line in said.splitlines() if line.startswith("Version")).replace("Version:", "lm-eval==0.4.13")


if __name__ == "__main__":
    main()
