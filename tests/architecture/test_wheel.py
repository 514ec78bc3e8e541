"""What is shipped: the packages with their data, and no tests."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from architecture.packages import PACKAGES, ROOT

pytestmark = pytest.mark.slow

SHIPPED_FROM = {
    "recipes": "finetune/recipes",
    "data_templates": "finetune/data_templates",
    "evaluation/tasks": "evaluation/tasks",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Build the wheel from a copy, so that nothing is left beside the sources, and list its files."""
    copy = tmp_path_factory.mktemp("copy")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    names = [name for name in tracked if (ROOT / name).is_file()] or unpacked_names()
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    out = tmp_path_factory.mktemp("wheel")
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", *isolation, "--wheel-dir", str(out), str(copy)]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert built.returncode == 0, built.stderr[-2000:]
    (file,) = out.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        return set(archive.namelist())


def unpacked_names() -> list[str]:
    kept = [*PACKAGES, "recipes", "data_templates", "tests"]
    return ["pyproject.toml", *(p.relative_to(ROOT).as_posix() for k in kept for p in (ROOT / k).rglob("*.*"))]


def test_every_module_is_shipped(wheel: set[str]) -> None:
    expected = {path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert len(expected) > 50
    assert expected <= wheel


@pytest.mark.parametrize(("folder", "inside"), SHIPPED_FROM.items())
def test_every_data_file_is_shipped(wheel: set[str], folder: str, inside: str) -> None:
    kinds = {".py", ".yaml", ".jsonl", ".jinja"}
    names = {path.name for path in (ROOT / folder).iterdir() if path.suffix in kinds}
    assert len(names) > 2
    assert {f"{inside}/{name}" for name in names} <= wheel


def test_the_report_and_the_types_are_shipped(wheel: set[str]) -> None:
    assert {"finetune/report.html.jinja", "finetune/report.css", "finetune/model_card.md.jinja"} <= wheel
    for name in ("elementwise.cpp", "attention.cpp", "head.cpp", "low_rank.cpp", "numbers.h", "vectors.h", "tiles.h"):
        assert f"finetune/{name}" in wheel
    assert "finetune/apache-2.0.txt" in wheel
    assert {"finetune/py.typed", "evaluation/py.typed"} <= wheel


def test_nothing_else_is_shipped(wheel: set[str]) -> None:
    own = {name for name in wheel if not name.partition("/")[0].endswith(".dist-info")}
    assert {name.partition("/")[0] for name in own} == set(PACKAGES)
    kinds = {".py", ".yaml", ".jsonl", ".jinja", ".css", ".txt", ".typed", ".cpp", ".h"}
    assert {Path(name).suffix for name in own} <= kinds


def test_both_commands_are_declared(wheel: set[str]) -> None:
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)
