"""The rows that all contenders train on, and the same rows in the form that each of them reads.

Every peer gets text already in the form of the model's chat template, so that all of them train on the same tokens
with the same labels: those of the answer and its end.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from evaluation.tokenizer import load_tokenizer

SHORT, MEDIAN, LONG = 60, 480, 2400
"""10 %, 50 % and 90 % of the lengths of made rows' answers, in characters: 33, 142 and 620 tokens or so."""
LONGEST = 3000
MADE_ROWS = 64
STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])


@dataclass(frozen=True)
class Row:
    """A question and its answer."""

    question: str
    answer: str

    def messages(self) -> dict[str, object]:
        """Return the row in OpenAI's chat format."""
        turns = (("user", self.question), ("assistant", self.answer))
        return {"messages": [{"role": role, "content": content} for role, content in turns]}


@dataclass(frozen=True)
class RenderedRow:
    """A row as the model sees it."""

    prompt: str
    answer: str
    """With the token that ends it."""
    plain_answer: str
    """Without it."""
    tokens: int
    trained_tokens: int


def read_rows(path: Path) -> list[Row]:
    """Read JSON lines of `messages` with one question and one answer each.

    Raises:
        ValueError: a line has other turns.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        turns = json.loads(line)["messages"]
        if [turn["role"] for turn in turns] != ["user", "assistant"]:
            raise ValueError(f"{path}:{number}: a row must have one user turn and one assistant turn")
        rows.append(Row(turns[0]["content"], turns[1]["content"]))
    return rows


def make_rows(count: int = MADE_ROWS, modules: Path = STANDARD_LIBRARY) -> list[Row]:
    """Make rows of the documentation strings of modules: of Python's own, which whoever repeats this has as well.

    Their lengths are the quantiles of a log-normal distribution, so that they are as skewed as real answers are.
    """
    found = sorted(_documentation(modules), key=lambda row: hashlib.sha256(row.answer.encode()).hexdigest())
    spread = math.log(LONG / SHORT) / (2 * NormalDist().inv_cdf(0.9))
    lengths = NormalDist(math.log(MEDIAN), spread)
    rows = []
    for index in range(count):
        wanted = min(LONGEST, math.exp(lengths.inv_cdf((index + 0.5) / count)))
        rows.append(found.pop(min(range(len(found)), key=lambda at: abs(len(found[at].answer) - wanted))))
    return sorted(rows, key=lambda row: hashlib.sha256(row.question.encode()).hexdigest())


def _documentation(modules: Path) -> Iterator[Row]:
    seen = set()
    for path in sorted(modules.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            text = ast.get_docstring(node)
            if text and len(text) <= LONGEST and text not in seen:
                seen.add(text)
                yield Row(f"What does `{path.stem}.{node.name}` do in Python?", text)


def render_rows(rows: Sequence[Row], model: Path) -> list[RenderedRow]:
    """Render rows through the model's chat template."""
    tokenizer = load_tokenizer(model)
    rendered = []
    for row in rows:
        turns = [{"role": "user", "content": row.question}]
        prompt = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        answer = row.answer + str(tokenizer.eos_token)
        lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (prompt, answer)]
        rendered.append(RenderedRow(prompt, answer, row.answer, sum(lengths), lengths[1]))
    return rendered


@dataclass(frozen=True)
class RowFiles:
    """The same rows in the form of each contender."""

    folder: Path

    @property
    def messages(self) -> Path:
        """Chat messages, for our own command."""
        return self.folder / "rows.messages.jsonl"

    @property
    def held_out(self) -> Path:
        """Two more rows that nobody trains on: our recipes must hold some out, LitGPT looks at some first."""
        return self.folder / "held_out.messages.jsonl"

    @property
    def texts(self) -> Path:
        """Prompt and completion, for TRL and the bare loop; alone in its folder, which is a data set to TRL."""
        return self.folder / "prompt_completion" / "rows.jsonl"

    @property
    def litgpt(self) -> Path:
        """A folder of train.json and val.json."""
        return self.folder / "litgpt"

    @property
    def llamafactory(self) -> Path:
        """A folder with dataset_info.json, whose data set is called `rows`."""
        return self.folder / "llamafactory"


HELD_OUT = (
    Row("Which number comes after four?", "Five comes after four."),
    Row("Which letter comes before C?", "B comes before C."),
)


def write_rows(rows: Sequence[Row], model: Path, max_tokens: int, folder: Path) -> tuple[RowFiles, list[RenderedRow]]:
    """Write the rows in every form, without those of more than `max_tokens`; returns them as the model sees them."""
    seen = render_rows([*rows, *HELD_OUT], model)
    kept = [(row, text) for row, text in zip(rows, seen, strict=False) if text.tokens <= max_tokens]
    files, rendered = RowFiles(folder), [text for _, text in kept]
    for place in (files.litgpt, files.llamafactory, files.texts.parent):
        place.mkdir(parents=True, exist_ok=True)
    write_messages(files.messages, [row for row, _ in kept])
    write_messages(files.held_out, HELD_OUT)
    _write_lines(files.texts, [{"prompt": text.prompt, "completion": text.answer} for text in rendered])
    # LitGPT adds the token that ends an answer, and takes it off where it is there already.
    _write_instructions(files.litgpt / "train.json", [(row.prompt, row.plain_answer) for row in rendered])
    _write_instructions(files.litgpt / "val.json", [(row.prompt, row.plain_answer) for row in seen[len(rows) :]])
    _write_instructions(files.llamafactory / "rows.json", [(row.prompt, row.answer) for row in rendered])
    information = {"rows": {"file_name": "rows.json", "columns": {"prompt": "instruction", "response": "output"}}}
    (files.llamafactory / "dataset_info.json").write_text(json.dumps(information), encoding="utf-8")
    return files, rendered


def write_messages(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as JSON lines of messages."""
    _write_lines(path, [row.messages() for row in rows])


def _write_lines(path: Path, lines: Sequence[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _write_instructions(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    path.write_text(
        json.dumps([{"instruction": prompt, "output": answer} for prompt, answer in rows]), encoding="utf-8"
    )
