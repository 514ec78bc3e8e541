"""Every command that README and docs show is one that the programs accept."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
import typer.core
from architecture.packages import ROOT

import evaluation.cli
import finetune.cli
from finetune.recipe_file import shipped_recipes

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^ *```(?:bash|sh|console|shell)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
PROGRAMS = {"finetune": finetune.cli.app, "evaluation": evaluation.cli.app}
SET_UP = ("pip install -e . && finetune run icd10-quickstart", "pip install -e '.[test]' && pytest")


@dataclass(frozen=True)
class Shown:
    """A command line on a page."""

    page: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.name}: {' '.join(self.words)}"


def shown_in(page: Path) -> list[Shown]:
    found = []
    for block in FENCE.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||[|;]", line.removeprefix("$ ")):
                words = shlex.split(part.partition(">")[0], comments=True)
                if words and words[0] in PROGRAMS:
                    found.append(Shown(page, tuple(words)))
    return found


SHOWN = [shown for page in PAGES for shown in shown_in(page)]


def test_pages_show_commands() -> None:
    assert len(SHOWN) >= 3
    assert {shown.words[0] for shown in SHOWN} == set(PROGRAMS)


@pytest.mark.parametrize("command", SET_UP)
def test_the_readme_has_the_two_commands_of_the_set_up(command: str) -> None:
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("shown", SHOWN, ids=str)
def test_command_is_accepted(shown: Shown) -> None:
    group = typer.main.get_command(PROGRAMS[shown.words[0]])
    arguments = [word for word in shown.words[1:] if word != "--traceback"]
    if not arguments or arguments == ["--help"]:
        return
    command, name, rest = group, "", arguments
    while isinstance(command, typer.core.TyperGroup):
        name, *rest = rest
        assert name in command.commands, f"{name}: {sorted(command.commands)}"
        command = command.commands[name]
    if "--help" in rest:
        return
    command.make_context(name, rest, resilient_parsing=False)


TAKES_A_RECIPE = {"run", "prepare", "train", "merge", "evaluate", "report", "check", "show", "plan", "preview"}


@pytest.mark.parametrize("shown", [shown for shown in SHOWN if shown.words[0] == "finetune"], ids=str)
def test_recipe_is_shipped_or_the_reader_s_own(shown: Shown) -> None:
    words = [word for word in shown.words[2:3] if not word.startswith("-")]
    if not words or shown.words[1] not in TAKES_A_RECIPE:
        return
    assert words[0] in shipped_recipes() or words[0].endswith(".yaml")
