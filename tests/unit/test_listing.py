"""What `finetune list runs` says of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.listing import list_runs
from finetune.records import StageTime
from finetune.run_directory import OUTPUTS, RunDirectory


def write_run(folder: Path, *, prepared: bool) -> None:
    folder.mkdir(parents=True)
    (folder / "recipe.lock.json").write_text("{}")
    if prepared:
        run = RunDirectory(folder)
        for name in OUTPUTS["prepare"]:
            (folder / name).mkdir()
        run.finish("prepare", {}, StageTime(stage="prepare", seconds=1, peak_memory_bytes=1))


def test_runs_are_listed_with_their_finished_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "begun", prepared=False)
    write_run(tmp_path / "prepared", prepared=True)
    (tmp_path / "something else").mkdir()
    list_runs(tmp_path)
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [(name, rest.strip()) for name, rest in lines] == [
        ("begun", "nothing finished yet"),
        ("prepared", "prepare"),
    ]


def test_a_folder_without_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list_runs(tmp_path / "absent")
    assert capsys.readouterr().out.replace("\n", "").startswith("no runs in")
