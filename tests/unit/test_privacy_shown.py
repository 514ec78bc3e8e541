"""What is shown of rows holds no personal data where a recipe looks for it, whatever is done to the rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from report_inputs import choose_task, with_tasks

from finetune.privacy_shown import ShownTexts
from finetune.recipe_data import Privacy
from finetune.report import build_report, write_report

MAIL = "anna.muster@example.org"


def test_a_value_has_the_same_placeholder_in_each_text() -> None:
    shown = ShownTexts(Privacy(action="report"))
    assert shown.texts([f"write to {MAIL}", "", f"{MAIL} and b@example.org"]) == [
        "write to [EMAIL_1]",
        "",
        "[EMAIL_1] and [EMAIL_2]",
    ]
    assert ShownTexts(None).texts([MAIL]) == [MAIL]


@pytest.mark.parametrize("privacy", [None, Privacy(action="report"), Privacy(action="replace")])
def test_no_personal_data_is_in_a_report(tmp_path: Path, privacy: Privacy | None) -> None:
    task = choose_task()
    outputs = {
        name: tuple(
            one.model_copy(update={"prompt": f"from {MAIL}", "reference": f"to {MAIL}", "generated": f"cc {MAIL}"})
            for one in given
        )
        for name, given in task.outputs.items()
    }
    inputs = with_tasks(replace(task, outputs=outputs))
    inputs = replace(inputs, recipe=inputs.recipe.model_copy(update={"privacy": privacy}))
    write_report(build_report(inputs), tmp_path)
    for file in ("report.html", "report.md", "report.json"):
        assert ("example.org" in (tmp_path / file).read_text(encoding="utf-8")) == (privacy is None), file
