"""The hub, from a server on this machine that answers as huggingface.co does; nothing leaves it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from reading_hub import COMMIT, Hub, serving

from finetune.bases import resolve_base
from finetune.errors import DataError, MachineError
from finetune.hub import choose_split_files, fetch_dataset_files, fetch_model, resolve_revision
from finetune.recipe import Base
from finetune.recipe_data import Source
from finetune.rows import read_rows, resolve_source


@pytest.fixture
def endpoint() -> Iterator[str]:
    """Run the server and return its address."""
    with serving() as address:
        yield address


def test_a_branch_is_resolved_and_a_commit_is_taken_as_it_is(endpoint: str) -> None:
    assert resolve_revision("org/good", "main", "model", endpoint=endpoint) == COMMIT
    assert resolve_revision("org/rows", None, "dataset", endpoint=endpoint) == COMMIT
    assert resolve_revision("org/good", "a" * 40, "model", endpoint="http://127.0.0.1:9") == "a" * 40


def test_of_a_model_only_safetensors_and_text_are_fetched_and_only_once(endpoint: str, tmp_path: Path) -> None:
    folder, files = fetch_model("org/good", COMMIT, tmp_path, endpoint=endpoint)
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.model"}
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    asked = len(Hub.requests)
    assert fetch_model("org/good", COMMIT, tmp_path, endpoint=endpoint) == (folder, files)
    assert len(Hub.requests) == asked


def test_a_model_with_pickled_weights_alone_is_refused_before_it_is_fetched(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pickled \(pytorch_model\.bin\)[\s\S]*convert"):
        fetch_model("org/pickled", COMMIT, tmp_path, endpoint=endpoint)
    assert not any("/resolve/" in path for path in Hub.requests)


@pytest.mark.parametrize(
    ("repo", "kind", "message"),
    [
        ("org/gated", MachineError, r"accept the licence on https://huggingface\.co/org/gated"),
        ("org/absent", DataError, "no such repository"),
        ("org/old", DataError, "no such revision"),
        ("org/broken", MachineError, "the hub answered: .*500"),
        ("../etc", DataError, "no such repository"),
    ],
)
def test_what_the_hub_refuses_comes_with_advice(repo: str, kind: type[Exception], message: str, endpoint: str) -> None:
    with pytest.raises(kind, match=message):
        resolve_revision(repo, "main", "model", endpoint=endpoint)


def test_a_hub_that_cannot_be_reached_is_the_machines_matter(tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9"
    with pytest.raises(MachineError, match="cannot be reached"):
        resolve_revision("org/good", "main", "model", endpoint=closed)
    with pytest.raises(MachineError, match="cannot be reached"):
        fetch_model("org/good", COMMIT, tmp_path, endpoint=closed)


def test_the_files_of_a_split_and_no_others_are_fetched_once(endpoint: str, tmp_path: Path) -> None:
    folder = fetch_dataset_files("org/rows", COMMIT, "train", tmp_path, endpoint=endpoint)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jsonl"))
    assert names == ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]
    asked = len(Hub.requests)
    assert fetch_dataset_files("org/rows", COMMIT, "train", tmp_path, endpoint=endpoint) == folder
    assert len(Hub.requests) == asked
    with pytest.raises(DataError, match="no file for the split 'dev'"):
        fetch_dataset_files("org/rows", COMMIT, "dev", tmp_path, endpoint=endpoint)


def test_once_fetched_a_base_and_a_source_at_a_commit_need_no_network(endpoint: str, tmp_path: Path) -> None:
    fetch_model("org/good", COMMIT, tmp_path, endpoint=endpoint)
    for split in ("train", "test"):
        fetch_dataset_files("org/rows", COMMIT, split, tmp_path, endpoint=endpoint)
    resolved = resolve_base(Base(model="org/good", revision=COMMIT), tmp_path, print)
    assert resolved.identity == f"org/good@{COMMIT}"
    several = Source(source="hub:org/rows", rows="text", revision=COMMIT)
    found = resolve_source(several, tmp_path, print)
    assert [row.file for row in read_rows(several, found.path)] == [
        f"hub:org/rows/data/train-0000{number}-of-00002.jsonl" for number in (0, 1)
    ]
    one = Source(source="hub:org/rows", rows="text", revision=COMMIT, split="test")
    found = resolve_source(one, tmp_path, print)
    assert [row.file for row in read_rows(one, found.path)] == ["hub:org/rows"]


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["all.csv", "README.md"], "train", ["all.csv"]),
        (["train.csv", "test.csv"], "test", ["test.csv"]),
        (["set_train.jsonl", "set_test.jsonl"], "train", ["set_train.jsonl"]),
        (["train_sft-0.parquet", "train_gen-0.parquet"], "train_sft", ["train_sft-0.parquet"]),
        (["train/0.json", "test/0.json", "dataset_infos.json"], "train", ["train/0.json"]),
        (["train.py", "train.csv"], "train", ["train.csv"]),
    ],
)
def test_files_are_chosen_by_the_split_in_their_path(names: list[str], split: str, expected: list[str]) -> None:
    assert choose_split_files(names, split, "org/rows") == expected


@pytest.mark.parametrize(
    "names",
    [
        ["en/train.csv", "de/train.csv"],
        ["train.csv", "train.jsonl"],
        ["a.csv", "b.csv"],
        ["constrain.csv", "b.csv"],
    ],
)
def test_an_unclear_choice_is_refused_with_the_files_there_are(names: list[str]) -> None:
    with pytest.raises(DataError, match=names[0]):
        choose_split_files(names, "train", "org/rows")
