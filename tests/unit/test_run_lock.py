"""The lock of a run: one error where it is missing or damaged, and one way to find the base again."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.files import write_model
from finetune import run_lock
from finetune.base_hashes import hash_base_files, hash_of_files
from finetune.bases import ResolvedBase
from finetune.errors import DataError
from finetune.recipe import Base
from finetune.run_directory import RunDirectory
from finetune.run_lock import Lock, LockedInputs, check_trained_base, find_run_base, load_lock

COMMIT = "a" * 40


def lock(base: str = f"org/tiny@{COMMIT}", revision: str | None = "main", sha256: str = "b" * 64) -> Lock:
    return Lock(
        recipe_sha256="0" * 64, base=base, base_revision=revision, base_sha256=sha256,
        base_origin="the Hugging Face hub", sources={}, seed=0, versions={"torch": "2.13.0"},
    )  # fmt: skip


def test_a_lock_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_model(run.lock_file, lock())
    assert load_lock(run) == lock()


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"base": "x"}', "\x00", "not JSON"])
def test_a_lock_that_cannot_be_read_is_named_with_what_to_do(text: str | None, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    if text is not None:
        run.lock_file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"recipe\.lock\.json") as caught:
        load_lock(run)
    assert "run" in caught.value.hint
    assert caught.value.what == ("the run has no lock" if text is None else "the run's lock is damaged")


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (Base(model="org/tiny", revision="main"), COMMIT),
        (Base(model="org/tiny", revision="v2"), "v2"),
        (Base(model="org/other", revision="main"), "main"),
        (Base(model="models/tiny"), None),
    ],
)
def test_a_base_is_pinned_to_the_commit_only_where_the_recipe_still_asks_for_the_same(
    base: Base, expected: str | None
) -> None:
    assert lock().pin(base) == base.model_copy(update={"revision": expected})


def test_another_base_than_the_runs_own_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Base] = []

    def resolve(base: Base, cache: Path, announce: object) -> ResolvedBase:
        asked.append(base)
        return ResolvedBase(tmp_path, base.model, (("config.json", "c" * 64),), "the Hugging Face hub")

    monkeypatch.setattr(run_lock, "resolve_base", resolve)
    base = Base(model="org/tiny", revision="main")
    right = resolve(base, tmp_path, print).sha256
    assert find_run_base(base, lock(sha256=right), tmp_path, print).folder == tmp_path
    assert [one.revision for one in asked] == ["main", COMMIT]
    with pytest.raises(DataError, match="not the one that the run was made from"):
        find_run_base(base, lock(), tmp_path, print)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[RunDirectory, Path]:
    """A run whose lock names the files of the base beside it."""
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        (base / name).write_text(name)
    run = RunDirectory(tmp_path / "run")
    files = dict(hash_base_files(base))
    inputs = LockedInputs(
        base_files=files, tokenizer_sha256="", chat_template_sha256="", row_templates={}, task_files={}
    )
    run.adapter.mkdir(parents=True)
    write_model(run.lock_file, lock(sha256=hash_of_files(files.items())).model_copy(update={"inputs": inputs}))
    return run, base


def test_an_adapter_goes_with_the_base_that_it_was_trained_on(trained: tuple[RunDirectory, Path]) -> None:
    run, base = trained
    check_trained_base(run.adapter, base)
    (base / "chat_template.jinja").write_text("another way to speak")
    (base / "tokenizer_config.json").write_text("{}")
    check_trained_base(run.adapter, base)
    for name in ("model.safetensors", "config.json"):
        (base / name).write_text("other")
        with pytest.raises(DataError, match=f"and this base has another {name}") as refused:
            check_trained_base(run.adapter, base)
        assert refused.value.hint == f"name the folder of org/tiny@{COMMIT}"
    (base / "config.json").unlink()
    with pytest.raises(DataError, match=r"another config\.json"):
        check_trained_base(run.adapter, base)


def test_a_lock_without_the_files_knows_the_base_by_one_hash(trained: tuple[RunDirectory, Path]) -> None:
    run, base = trained
    write_model(run.lock_file, load_lock(run).model_copy(update={"inputs": None}))
    check_trained_base(run.adapter, base)
    (base / "model.safetensors").write_text("other")
    with pytest.raises(DataError, match="this base has another"):
        check_trained_base(run.adapter, base)


def test_of_an_adapter_without_a_run_nothing_is_known(trained: tuple[RunDirectory, Path], tmp_path: Path) -> None:
    run, _ = trained
    (tmp_path / "other").mkdir()
    check_trained_base(run.folder / "another", tmp_path / "other")
    run.lock_file.unlink()
    check_trained_base(run.adapter, tmp_path / "other")
