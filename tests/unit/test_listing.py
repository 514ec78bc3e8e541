"""What `finetune list` says of templates and of a folder of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.chat_templates import list_chat_templates
from finetune.listing import list_runs, list_templates
from finetune.records import StageTime
from finetune.row_templates import list_row_templates, load_row_template
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


def test_every_template_is_listed_with_its_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    list_templates()
    text = capsys.readouterr().out
    rows, chats = text.split("Chat templates:")
    assert max(len(line) for line in text.splitlines()) <= 100
    blocks = dict(block.strip().split("  ", 1) for block in rows.split("\n\n")[1:] if block.strip())
    assert sorted(blocks) == list_row_templates()
    for name, block in blocks.items():
        template = load_row_template(name)
        assert " ".join(block.split()).startswith(template.description)
        for column, spec in template.columns.items():
            need = "required" if spec.required else "optional"
            assert f"{column} {need} {spec.doc.split()[0]}" in " ".join(block.split())
    for name in list_chat_templates():
        assert f"\n{name} " in chats
