"""Bad recipes, each beside the exact message that its author reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe_file import load_recipe

FOLDER = Path(__file__).parent / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_every_recipe_has_its_message_and_every_message_its_recipe() -> None:
    assert len(NAMES) == 33
    assert sorted(path.stem for path in FOLDER.glob("*.txt")) == NAMES
    assert {path.suffix for path in FOLDER.iterdir()} == {".yaml", ".txt"}


@pytest.mark.parametrize("name", NAMES)
def test_says_exactly_what_is_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    with pytest.raises(RecipeError) as caught:
        load_recipe(f"{name}.yaml")
    assert str(caught.value) + "\n" == (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def test_five_planted_mistakes_are_five_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    with pytest.raises(RecipeError) as caught:
        load_recipe("five_mistakes.yaml")
    assert [problem.where.partition(":")[2] for problem in caught.value.problems] == [
        "7",
        "13",
        "15",
        "16",
        "17",
    ]
    assert all(problem.hint for problem in caught.value.problems)


@pytest.mark.parametrize("name", NAMES)
def test_repeats_no_secret_and_names_no_class(name: str) -> None:
    message = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    for word in (
        "abcdefghijklmnop",
        "me:secret",
        "pydantic",
        "Input should",
        "HeldOutFraction",
        "tuple[",
        "constrained",
    ):
        assert word not in message
