"""`finetune init` on real domain data and on files of six more shapes: recipes that load, and that run."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from tiny_model import write_tiny_base
from tiny_runs import Outcome, finetune_command

from finetune.initialize import init_recipe
from finetune.recipe_data import HeldOutSource
from finetune.recipe_file import load_recipe

SHARED = Path(__file__).parents[3] / "shared" / "data"
ROWS = 80
WORDS = ("fever", "cough", "eye", "ear", "skin", "clause", "patient", "antibiotic", "chapter", "service", "terms")
SHARED_TEMPLATES = {
    "customer_service/banking77": "classification",
    "legal/construction_faq": "alpaca",
    "legal/plain_english": "alpaca",
    "legal_zh/consultation_topic": "classification",
    "legal_zh/lawbench": "alpaca",
    "medical/medquad": "alpaca",
    "medical/pubmedqa": "classification",
}


def said(row: int, word: str) -> str:
    return (
        f"{word} {WORDS[row % 11]} of the {WORDS[row * 7 % 11]} is {row * 37 % 101} and {WORDS[row * row % 11]} {row}"
    )


def semicolons(folder: Path) -> Path:
    path = folder / "fragen.csv"
    lines = ["Nr;Frage;Antwort", *(f'{i};"Was; {said(i, "Fieber")}?";{said(i, "Ärztlich")}' for i in range(ROWS))]
    path.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    return path


def tool_calls(folder: Path) -> Path:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
    path = folder / "chats.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(ROWS):
            call = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": f'{{"row": {i}}}'}}
            messages = [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": said(i, "Look up")},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": str(i)},
                {"role": "assistant", "content": said(i, "It is")},
            ]
            if i % 2:
                messages = [*messages[:2], messages[-1]]
            file.write(json.dumps({"messages": messages, "tools": [tool]}) + "\n")
    return path


def parquet(folder: Path) -> Path:
    path = folder / "train-00000-of-00001.parquet"
    for file, first in ((path, 0), (folder / "test-00000-of-00001.parquet", ROWS)):
        numbers = range(first, first + ROWS)
        table = pyarrow.table({"text": [said(i, "x") for i in numbers], "label": [i % 4 for i in numbers]})
        pyarrow.parquet.write_table(table, file)
    return path


def conversations(folder: Path) -> Path:
    path = folder / "sharegpt.json"
    turns = [
        [{"from": "human", "value": said(i, "Say")}, {"from": "gpt", "value": said(i, "Well")}] for i in range(ROWS)
    ]
    path.write_text(json.dumps([{"id": str(i), "conversations": listed} for i, listed in enumerate(turns)]))
    return path


def translations(folder: Path) -> Path:
    path = folder / "pairs.tsv.gz"
    lines = ["id\tde\ten", *(f"{i}\t{said(i, 'Satz')}\t{said(i, 'Sentence')}" for i in range(ROWS))]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def corpus(folder: Path) -> Path:
    path = folder / "corpus.jsonl"
    texts = (". ".join(said(i * 31 + part, "The") for part in range(1 + i % 9)) for i in range(ROWS))
    path.write_text("".join(json.dumps({"body": text, "url": f"page/{i}"}) + "\n" for i, text in enumerate(texts)))
    return path


OWN: dict[str, tuple[Callable[[Path], Path], str, dict[str, str]]] = {
    "semicolons in German": (semicolons, "question_answering", {"question": "Frage", "answer": "Antwort"}),
    "messages with tools": (tool_calls, "messages", {}),
    "parquet with numbers": (parquet, "classification", {}),
    "turns in a JSON list": (conversations, "sharegpt", {}),
    "compressed translations": (translations, "translation", {"source": "de", "target": "en"}),
    "plain texts": (corpus, "text", {"text": "body"}),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


def shared_file(name: str) -> Path:
    path = SHARED / f"{name}.train.jsonl"
    if not path.is_file():
        pytest.skip("the shared data is not here")
    return path


def first_rows(file: Path, folder: Path, rows: int) -> Path:
    """Copy the first rows of a file and of its test file."""
    for path in (file, file.with_name(file.name.replace(".train.", ".test."))):
        with path.open(encoding="utf-8") as lines:
            (folder / path.name).write_text("".join(line for line, _ in zip(lines, range(rows), strict=False)))
    return folder / file.name


def run(recipe: Path, base: Path, folder: Path) -> Outcome:
    settings = {
        "base.model": base,
        "base.sha256": "null",
        "base.dtype": "float32",
        "data.train.0.limit": 16,
        "data.held_out.limit": 10,
        # The tiny vocabulary takes some three times the tokens of a real one.
        "data.max_tokens": 6144,
        "training.tokens_per_step": 6144,
        "training.epochs": 1,
        "merge.dtype": "float32",
        "merge.minimum_gain_kept": 0.0,
        "evaluation.max_new_tokens": 2,
    }
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return finetune_command("run", str(recipe), "--out", str(folder / "run"), "--cache", str(folder / "cache"), *given)


@pytest.mark.parametrize(("name", "template"), SHARED_TEMPLATES.items())
def test_domain_data_is_understood(name: str, template: str, tmp_path: Path) -> None:
    file = first_rows(shared_file(name), tmp_path, 300)
    init_recipe(file, tmp_path / "recipe.yaml", None, None, False)
    data = load_recipe(str(tmp_path / "recipe.yaml")).recipe.data
    assert data.train[0].rows == template
    assert isinstance(data.held_out, HeldOutSource)
    assert data.validation is not None
    assert data.validation.by == "group"
    if template == "classification":
        assert data.train[0].columns == {"text": "input", "label": "output"}


@pytest.mark.parametrize(("write", "template", "columns"), OWN.values(), ids=OWN.keys())
def test_files_of_other_shapes_are_understood(
    write: Callable[[Path], Path], template: str, columns: dict[str, str], tmp_path: Path
) -> None:
    init_recipe(write(tmp_path), tmp_path / "recipe.yaml", None, None, False)
    recipe = load_recipe(str(tmp_path / "recipe.yaml")).recipe
    assert (recipe.data.train[0].rows, recipe.data.train[0].columns) == (template, columns)
    # The embedded base's own template says nothing of tools.
    assert recipe.base.chat_template == ("chatml" if write is tool_calls else None)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED_TEMPLATES)
def test_recipes_of_domain_data_run(name: str, base: Path, tmp_path: Path) -> None:
    file = shared_file(name)
    init_recipe(file, tmp_path / "recipe.yaml", None, None, False)
    done = run(tmp_path / "recipe.yaml", base, tmp_path)
    assert done.status == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "write",
    [pytest.param(write, id=name) for name, (write, *_) in OWN.items()],
)
def test_recipes_of_other_shapes_run(write: Callable[[Path], Path], base: Path, tmp_path: Path) -> None:
    init_recipe(write(tmp_path), tmp_path / "recipe.yaml", None, None, False)
    done = run(tmp_path / "recipe.yaml", base, tmp_path)
    assert done.status == 0, done.stderr
