"""What a person sees of a run where there is no terminal."""

from __future__ import annotations

import io

from rich.console import Console

from finetune.console import PLAIN_LINES, Reporter


def reporter() -> tuple[Reporter, io.StringIO]:
    file = io.StringIO()
    return Reporter(Console(file=file, width=100)), file


def test_a_sentence_is_printed_as_it_is() -> None:
    ours, file = reporter()
    ours.say("train: [bold]not markup[/] " + "x" * 200)
    assert file.getvalue() == "train: [bold]not markup[/] " + "x" * 200 + "\n"


def test_training_leaves_a_line_for_every_tenth_of_its_steps() -> None:
    ours, file = reporter()
    with ours.training(100) as bar:
        for step in range(1, 101):
            bar.update(step, 1 / step, 1234.5, 0.5 if step > 50 else None)
    lines = [line for line in file.getvalue().splitlines() if "step" in line]
    assert len(lines) == PLAIN_LINES
    assert lines[0].strip() == "step 10/100  loss 0.100  1234 tokens/s"
    assert lines[-1].endswith("validation 0.500")


def test_a_few_steps_leave_a_line_each() -> None:
    ours, file = reporter()
    with ours.training(3) as bar:
        for step in (1, 2, 3):
            bar.update(step, 1.0, 10.0, None)
    assert [line.split()[1] for line in file.getvalue().splitlines() if "step" in line] == ["1/3", "2/3", "3/3"]


def test_a_bar_advances_by_what_is_done() -> None:
    ours, file = reporter()
    with ours.bar("score base", 4) as advance:
        advance(1)
        advance(3)
    assert "Traceback" not in file.getvalue()
