from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import FakeModel

from evaluation.cli import main
from evaluation.errors import DataError
from evaluation.model import ModelSpec

YAML = 'version: 1\nname: quiz\nkind: choose\nsamples: quiz.jsonl\noptions: ["blue", "green"]\n'


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # Tables are as wide as the terminal.
    monkeypatch.setenv("COLUMNS", "300")
    rows = [
        {
            "id": asked,
            "prompt": {"messages": [{"role": "user", "content": asked}]},
            "reference": right,
        }
        for asked, right in (("sky?", "blue"), ("grass?", "green"))
    ]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "quiz.yaml").write_text(YAML)
    for name, answer in (("base", "blue"), ("tuned", "green")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.txt").write_text(answer)

    def load(spec: ModelSpec) -> FakeModel:
        answer = ((spec.adapter or spec.path) / "weights.txt").read_text()
        return FakeModel({"sky?": answer, "grass?": answer})

    monkeypatch.setattr("evaluation.inference.load_language_model", load)
    return tmp_path


def evaluation(*arguments: str) -> int:
    """Run the command and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    code = ended.value.code
    assert isinstance(code, int)
    return code


def test_run_writes_and_prints_results(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluation("run", "--model", "base", "--task", "quiz.yaml", "--out", "out") == 0
    printed = capsys.readouterr().out
    assert "choice_accuracy" in printed
    assert "0.500 [" in printed
    identity = json.loads((work / "out/base/quiz.json").read_text())["identity"]
    assert len(identity["model_sha256"]) == 64
    assert (identity["contender"], identity["dtype"], identity["quantization"]) == ("base", "bfloat16", None)


def test_adapter_quantization_name_and_limit_are_recorded(work: Path) -> None:
    options = ["--adapter", "tuned", "--quantization", "nf4", "--dtype", "float32", "--limit", "1"]
    common = ["run", "--model", "base", "--task", "quiz.yaml", "--out", "out"]
    assert evaluation(*common, *options, "--name", "mine") == 0
    result = json.loads((work / "out/mine/quiz.json").read_text())
    assert result["identity"]["adapter_sha256"]
    assert result["identity"]["quantization"].startswith("nf4")
    assert result["metrics"]["exact_match"]["n"] == 1
    assert evaluation(*common, "--adapter", "tuned") == 0
    assert (work / "out/tuned/quiz.json").exists()


@pytest.mark.parametrize("markdown", [False, True])
def test_compare_prints_scores_and_differences(work: Path, capsys: pytest.CaptureFixture[str], markdown: bool) -> None:
    for model in ("base", "tuned"):
        assert evaluation("run", "--model", model, "--task", "quiz.yaml", "--out", "out") == 0
    capsys.readouterr()
    extra = ["--markdown", "--task", "quiz"] if markdown else []
    assert evaluation("compare", "out", "tuned", "base", *extra) == 0
    printed = capsys.readouterr().out
    assert "tuned minus base" in printed
    assert "undecided" in printed
    assert ("| --- |" in printed) == markdown


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "--model", "base", "--task", "plain_fact", "--out", "o"], 2, "did you mean 'plain_facts'?"),
        (["run", "--model", "nowhere", "--task", "quiz.yaml", "--out", "o"], 3, "nowhere: there is no such"),
        (["run", "--model", "base", "--adapter", "x", "--task", "quiz.yaml", "--out", "o"], 3, "x: there is"),
        (["run", "--model", "base", "--task", "quiz.yaml", "--out", "o", "--name", "a/b"], 2, "--name"),
        (
            ["run", "--model", "base", "--task", "quiz.yaml", "--task", "quiz.yaml", "--out", "o"],
            2,
            "two tasks",
        ),
        (["compare", "out", "tuned", "base"], 3, "it holds results of: nobody"),
        (["compare", "out", "tuned", "base", "--task", "[quiz]"], 3, "'[quiz]' cannot name"),
    ],
)
def test_problems_end_with_their_code_and_one_screen(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert evaluation(*arguments) == code
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("first", [True, False])
def test_the_traceback_can_be_asked_for(work: Path, first: bool) -> None:
    arguments = ["compare", "out", "tuned", "base"]
    with pytest.raises(DataError):
        main(["--traceback", *arguments] if first else [*arguments, "--traceback"])


def test_tasks_lists_the_bundled_ones(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluation("tasks") == 0
    assert "plain_facts" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "compare", "tasks"])
def test_help_has_an_example(work: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert evaluation(command, "--help") == 0
    assert f"evaluation {command}" in capsys.readouterr().out.split("Example")[1]


def test_wrong_usage_is_exit_code_two(work: Path) -> None:
    assert evaluation("run", "--model", "base") == 2


def test_importing_the_command_line_is_light() -> None:
    heavy = ["torch", "transformers", "peft", "sklearn", "scipy", "nltk", "numpy", "pandas"]
    script = f"import sys, evaluation.cli; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
