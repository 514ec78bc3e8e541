"""The guide to domain data shows what the programs say: its practice files are written, and looked at again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_runs import finetune_command

PAGE = Path(__file__).parents[2] / "docs" / "domain-data.md"


@pytest.fixture(scope="module")
def practice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the program on the page writes."""
    folder = tmp_path_factory.mktemp("practice")
    [program] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("name", ["fragen", "messages"])
def test_what_init_says_and_writes_is_on_the_page(name: str, practice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(practice)
    monkeypatch.setenv("COLUMNS", "200")
    said = finetune_command("init", f"{name}.csv")
    assert said.status == 0, said.stderr
    lines = _lines(said.stdout.partition("the first row")[0])
    assert len(lines) >= 5
    assert lines <= _lines(PAGE.read_text(encoding="utf-8"))


def test_the_recipe_on_the_page_is_the_one_that_init_writes(practice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(practice)
    assert finetune_command("init", "fragen.csv", "--out", "written.yaml").status == 0
    shown = next(block for block in _blocks("yaml") if "guessed from" in block)
    assert _lines(shown) <= _lines(Path("written.yaml").read_text(encoding="utf-8"))


def test_the_template_on_the_page_is_accepted(practice: Path) -> None:
    from finetune.row_templates import load_row_template

    [template] = [block for block in _blocks("yaml") if block.startswith("name: mietrecht")]
    file = practice / "mietrecht.yaml"
    file.write_text(template, encoding="utf-8")
    assert set(load_row_template(str(file)).columns) == {"question", "answer", "date"}


def test_every_bundled_template_stands_in_the_table() -> None:
    from finetune.row_templates import list_row_templates, load_row_template

    text = PAGE.read_text(encoding="utf-8")
    for name in list_row_templates():
        columns = load_row_template(name).columns.items()
        shown = ", ".join(column if form.required else f"[{column}]" for column, form in columns)
        [row] = re.findall(rf"^\| [^|]* \| `{name}` \| ([^|]*) \|$", text, re.MULTILINE)
        assert sorted(row.split(", ")) == sorted(shown.split(", "))


def test_every_yaml_on_the_page_is_yaml() -> None:
    blocks = _blocks("yaml")
    assert len(blocks) >= 6
    for block in blocks:
        assert yaml.safe_load(block)


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def _lines(text: str) -> set[str]:
    return {line.rstrip() for line in text.splitlines() if line.strip()}
