from __future__ import annotations

from pathlib import Path

import pytest
from fakes import FakeModel, identity, ignore_progress, loaded_task

from evaluation.errors import DataError
from evaluation.files import sha256_of_file
from evaluation.result_files import list_contenders, list_tasks, load_result, write_result
from evaluation.runner import Scored, score


def scored() -> Scored:
    loaded = loaded_task("generate", [("sky?", "blue"), ("sea?", "blue")])
    return score(FakeModel({"sky?": "blue", "sea?": "red"}), loaded, identity("tuned"), ignore_progress)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    one = scored()
    write_result(tmp_path, one.result, one.outputs)
    return tmp_path


def test_what_is_written_is_read(folder: Path) -> None:
    one = scored()
    written = write_result(folder, one.result, one.outputs)
    assert load_result(folder, "tuned", "quiz") == (written, one.outputs)
    assert sorted(path.name for path in (folder / "tuned").iterdir()) == ["quiz.json", "quiz.samples.jsonl"]
    assert list_contenders(folder) == ["tuned"]
    assert list_tasks(folder, "tuned") == ["quiz"]


def test_missing_results_name_the_nearest(folder: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'tuned'"):
        load_result(folder, "tune", "quiz")
    with pytest.raises(DataError, match="did you mean 'quiz'"):
        load_result(folder, "tuned", "quizz")
    with pytest.raises(DataError, match="holds no results"):
        load_result(folder / "tuned", "tuned", "quiz")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a\nb"])
def test_names_that_lead_elsewhere_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot name a result"):
        load_result(folder, name, "quiz")


def test_changed_outputs_are_refused(folder: Path) -> None:
    samples = folder / "tuned" / "quiz.samples.jsonl"
    samples.write_text(samples.read_text().replace("red", "blue"))
    with pytest.raises(DataError, match=r"samples\.jsonl: not the outputs"):
        load_result(folder, "tuned", "quiz")
    samples.unlink()
    with pytest.raises(DataError, match="not the outputs"):
        load_result(folder, "tuned", "quiz")


@pytest.mark.parametrize("text", ["{}", "{", '{"task": 1}'])
def test_a_damaged_result_is_refused(folder: Path, text: str) -> None:
    (folder / "tuned" / "quiz.json").write_text(text)
    with pytest.raises(DataError, match=r"quiz\.json: not a result"):
        load_result(folder, "tuned", "quiz")


def test_a_result_under_another_name_is_refused(folder: Path) -> None:
    (folder / "tuned").rename(folder / "base")
    with pytest.raises(DataError, match="holds tuned's result"):
        load_result(folder, "base", "quiz")


def test_outputs_of_another_format_are_refused(folder: Path) -> None:
    samples = folder / "tuned" / "quiz.samples.jsonl"
    before = sha256_of_file(samples)
    samples.write_text('{"sample": 1}\n')
    result = folder / "tuned" / "quiz.json"
    result.write_text(result.read_text().replace(before, sha256_of_file(samples)))
    with pytest.raises(DataError, match=r"samples\.jsonl:1: not an output: `"):
        load_result(folder, "tuned", "quiz")
