"""What a lock says, and that a recipe written into a run is the recipe that was run."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from importlib.metadata import requires
from pathlib import Path
from typing import NoReturn

import pytest
import yaml
from pydantic import JsonValue
from report_inputs import audit, inputs
from smallest_recipe import write_smallest
from tiny_model import write_tiny_base

import finetune
from evaluation.files import write_model
from finetune.bases import ResolvedBase, resolve_base
from finetune.machine import INSTRUCTIONS, PACKAGES, UNDECISIVE, all_versions, describe_environment, settle_dtypes
from finetune.recipe import Base, Recipe
from finetune.recipe_file import load_recipe, shipped_recipes
from finetune.recipe_written import spell_out
from finetune.run_directory import RunDirectory
from finetune.run_lock import Lock
from finetune.run_locking import _commit, _machine_of_training, build_lock, lock_inputs, lock_machine, recipe_hash
from finetune.training_records import TrainingSummary


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ResolvedBase:
    folder = write_tiny_base(tmp_path_factory.mktemp("locking") / "base")
    return resolve_base(Base(model=str(folder)), folder.parent, print)


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("icd10-quickstart").recipe


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_that_a_run_wrote_is_the_one_that_it_ran(name: str, tmp_path: Path) -> None:
    check_read_again(load_recipe(name).recipe, tmp_path)


@pytest.mark.parametrize("kept", [{}, {"leakage": {"on_overlap": "set_aside"}}, {"augmentation": {"case": 0.1}}])
def test_so_is_one_without_validation_rows(kept: dict[str, JsonValue], tmp_path: Path) -> None:
    smallest = write_smallest(tmp_path)
    document = yaml.safe_load(smallest.read_text(encoding="utf-8"))
    document["data"] |= kept
    smallest.write_text(yaml.safe_dump(document), encoding="utf-8")
    recipe = load_recipe(str(smallest)).recipe
    assert recipe.data.validation is None
    check_read_again(recipe, tmp_path)


def check_read_again(recipe: Recipe, folder: Path) -> None:
    ran = settle_dtypes(recipe, bfloat16=True)
    file = folder / "recipe.yaml"
    file.write_text(spell_out(ran), encoding="utf-8")
    assert recipe_hash(settle_dtypes(load_recipe(str(file)).recipe, bfloat16=False)) == recipe_hash(ran)
    file.write_text(spell_out(Recipe.model_validate_json(ran.model_dump_json())), encoding="utf-8")
    assert recipe_hash(load_recipe(str(file)).recipe) == recipe_hash(ran)


def test_a_lock_is_the_same_every_time_and_sorted(base: ResolvedBase, recipe: Recipe, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    locks = [build_lock(recipe, base, sources, run) for sources in ({"b": "2", "a": "1"}, {"a": "1", "b": "2"})]
    texts = {lock.model_dump_json() for lock in locks}
    assert len(texts) == 1
    lock = json.loads(texts.pop())
    for mapping in (lock["sources"], lock["versions"], lock["inputs"]["base_files"], lock["inputs"]["row_templates"]):
        assert list(mapping) == sorted(mapping)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(lock["inputs"]["base_files"])
    assert (lock["machine"], lock["inputs"]["rows"]) == (None, None), "nothing was prepared or trained yet"
    assert Lock.model_validate_json(locks[0].model_dump_json()) == locks[0]


def test_rows_and_machine_are_those_of_the_finished_stages(base: ResolvedBase, recipe: Recipe, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    found = audit()
    twice = found.model_copy(update={"sources": (*found.sources, *found.sources)})
    write_model(run.data / "audit.json", twice)
    summary: TrainingSummary = dataclasses.replace(inputs()).training
    write_model(run.training / "summary.json", summary.model_copy(update={"devices": 2}))
    write_model(run.environment, describe_environment())
    lock = build_lock(recipe, base, {}, run)
    assert lock.inputs is not None
    assert lock.inputs.rows == {account.source: 2 * account.rows for account in found.sources}
    assert lock.machine == lock_machine(describe_environment(), 2)


def test_every_part_of_the_tokenizer_and_the_template_has_a_say(base: ResolvedBase, recipe: Recipe) -> None:
    before = lock_inputs(recipe, base)
    settings = base.folder / "chat_template.jinja"
    text = settings.read_text(encoding="utf-8")
    try:
        settings.write_text(text + " ", encoding="utf-8")
        after = lock_inputs(recipe, base)
    finally:
        settings.write_text(text, encoding="utf-8")
    assert after.chat_template_sha256 != before.chat_template_sha256
    assert after.tokenizer_sha256 == before.tokenizer_sha256
    assert lock_inputs(recipe, base) == before


def test_every_package_with_a_say_is_in_a_lock() -> None:
    found = all_versions()
    assert set(PACKAGES) <= set(found)
    assert not UNDECISIVE & set(found)
    stated = [line for line in requires("finetune-recipes") or [] if "extra ==" not in line]
    assert len(found) == len(stated) - len(UNDECISIVE) + 1
    assert list(found) == sorted(found)


def test_instructions_are_flags_and_torchs_choice() -> None:
    first, *flags = describe_environment().instructions
    assert first.isupper()
    assert set(flags) <= set(INSTRUCTIONS)


def test_an_installed_program_has_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(finetune, "__file__", str(tmp_path / "site-packages" / "finetune" / "__init__.py"))
    assert _commit() is None


def test_a_checkout_has_its_commit_where_git_answers_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    monkeypatch.setattr(finetune, "__file__", str(tmp_path / "finetune" / "__init__.py"))
    assert _commit() is None
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    assert re.fullmatch("[0-9a-f]{40}", _commit() or "")
    (tmp_path / "environment").mkdir()
    with monkeypatch.context() as installed:  # below somebody's checkout, which is another program
        installed.setattr(finetune, "__file__", str(tmp_path / "environment" / "finetune" / "__init__.py"))
        assert _commit() is None

    def without_end(command: list[str], timeout: float, **_: object) -> NoReturn:
        assert timeout <= 10
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", without_end)
    assert _commit() is None


def test_a_machine_is_known_once_something_was_trained_on_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert _machine_of_training(run) is None
    run.environment.write_text("{}")
    assert _machine_of_training(run) is None
    run.environment.unlink()
    run.training.mkdir()
    (run.training / "summary.json").write_text("{}")
    assert _machine_of_training(run) is None
