"""`finetune rerun` and `finetune diff` on runs of the tiny model: what is refused, what repeats, what is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from tiny_model import write_tiny_base
from tiny_runs import Outcome, Workplace, finetune_command, write_classification
from transformers import set_seed

from finetune import adapter, rerunning, upstream_models
from finetune.run_directory import RunDirectory
from finetune.run_lock import load_lock


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A workplace whose data are prepared, which is as far as most refusals need."""
    place = write_classification(tmp_path_factory.mktemp("rerun"))
    assert place.run(command="prepare").status == 0
    return place


@pytest.fixture
def place(made: Workplace) -> Workplace:
    """The same workplace, put back after the test."""
    kept = made.folder.with_name("kept")
    shutil.copytree(made.folder, kept)
    yield made  # type: ignore[misc]
    shutil.rmtree(made.folder)
    kept.rename(made.folder)


def rerun(place: Workplace, *options: str) -> Outcome:
    return finetune_command("rerun", str(place.folder / "run"), "--cache", str(place.cache), *options)


def flat(outcome: Outcome) -> str:
    return " ".join(outcome.stderr.split())


def test_prepared_data_repeat(place: Workplace) -> None:
    outcome = rerun(place, "--locked")
    assert outcome.status == 0, outcome.stderr
    assert "bit-identical" in outcome.stderr
    first, again = (load_lock(RunDirectory(place.folder / name)) for name in ("run", "run-again"))
    assert first == again


def edit_rows(place: Workplace) -> None:
    file = place.folder / "rows.csv"
    file.write_text(file.read_text().replace("fever", "fewer", 1))


def other_weights(place: Workplace) -> None:
    write_tiny_base(place.base, seed=1)


def other_chat_template(place: Workplace) -> None:
    file = place.base / "chat_template.jinja"
    file.write_text(file.read_text() + "{# another #}")


def other_tokenizer(place: Workplace) -> None:
    file = place.base / "tokenizer.json"
    document = json.loads(file.read_text())
    document["model"]["merges"] = document["model"]["merges"][:-1]
    file.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (edit_rows, ["rows of "]),
        (other_weights, ["base model.safetensors"]),
        (other_chat_template, ["base chat_template.jinja", "chat template"]),
        (other_tokenizer, ["base tokenizer.json", "tokenizer"]),
    ],
)
def test_what_goes_in_is_refused_by_name_before_anything_is_made(
    place: Workplace, change: Callable[[Workplace], None], named: list[str]
) -> None:
    change(place)
    outcome = rerun(place, "--locked", "--other-machine")
    assert outcome.status == 3, outcome.stderr
    said = flat(outcome)
    assert "not what went into the run" in said
    changed = said.partition("not what went into the run: ")[2].partition(" → ")[0]
    assert len(changed.split(", ")) == len(named), changed
    assert all(name in changed for name in named), changed
    assert not (place.folder / "run-again").exists()


def test_another_row_template_is_refused_by_name(tmp_path: Path) -> None:
    place = write_classification(tmp_path)
    template = tmp_path / "mine.yaml"
    source = Path(__file__).parents[2] / "data_templates" / "classification.yaml"
    template.write_text(source.read_text().replace("name: classification", "name: mine"))
    place.recipe.write_text(place.recipe.read_text().replace("rows: classification", f"rows: {template}"))
    made = place.run(command="prepare")
    assert made.status == 0, made.stderr
    text = template.read_text()
    template.write_text(text.replace("description:", "description: another,", 1))
    assert template.read_text() != text
    outcome = rerun(place, "--locked")
    assert outcome.status == 3, outcome.stderr
    assert f"row template {template}" in flat(outcome)


def test_other_packages_are_said_first_and_need_a_word(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    here = rerunning.all_versions()
    monkeypatch.setattr(rerunning, "all_versions", lambda: here | {"torch": "9.9"})
    refused = rerun(place, "--locked")
    assert refused.status == 6, refused.stderr
    assert f"torch: {here['torch']} → 9.9" in flat(refused)
    assert "--other-machine" in flat(refused)
    assert not (place.folder / "run-again").exists()
    told = rerun(place, "--locked", "--other-machine")
    assert told.status == 0, told.stderr
    assert told.stderr.index("9.9") < told.stderr.index("prepare: ")


def test_another_program_is_a_difference(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerunning, "source_hash", lambda: "0" * 64)
    assert "not where the run was made: source of this program" in flat(rerun(place, "--locked"))


def test_without_a_lock_to_hold_it_to_other_rows_are_told_and_end_as_not_repeated(place: Workplace) -> None:
    edit_rows(place)
    outcome = rerun(place)
    assert outcome.status == 7, outcome.stderr
    assert "what goes in: rows of " in flat(outcome)
    assert "not repeated" in flat(outcome)
    assert "first data/" in flat(outcome)


def test_a_lock_from_before_is_read_by_runs_and_refused_here_with_what_to_do(place: Workplace) -> None:
    file = place.folder / "run" / "recipe.lock.json"
    document = json.loads(file.read_text())
    for key in ("inputs", "machine", "program"):
        del document[key]
    file.write_text(json.dumps(document))
    assert place.run(command="prepare").status == 0
    outcome = rerun(place, "--locked")
    assert outcome.status == 3
    assert "from before runs could be repeated" in flat(outcome)
    assert "finetune run" in flat(outcome)


def test_a_recipe_that_was_edited_in_the_run_is_refused(place: Workplace) -> None:
    file = place.folder / "run" / "recipe.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 1"))
    outcome = rerun(place, "--locked")
    assert (outcome.status, "not the one that was run" in flat(outcome)) == (3, True)


def test_damaged_outputs_no_run_and_a_used_folder_are_refused(place: Workplace, tmp_path: Path) -> None:
    run = RunDirectory(place.folder / "run")
    outcome = rerun(place, "--locked", "--out", str(run.folder))
    assert (outcome.status, "something in this folder" in flat(outcome)) == (3, True)
    (run.data / "held_out.jsonl").write_text("")
    outcome = rerun(place, "--locked")
    assert (outcome.status, "not as it was finished" in flat(outcome)) == (3, True)
    outcome = finetune_command("rerun", "--locked", str(tmp_path))
    assert (outcome.status, "no finished run" in flat(outcome)) == (3, True)
    outcome = finetune_command("diff", str(tmp_path), str(run.folder))
    assert (outcome.status, "no run in this folder" in flat(outcome)) == (3, True)


def test_nothing_is_trained_where_a_library_is_not_what_it_is_taken_for(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_models, "GGUF_SUPPORTED_ARCHITECTURES", [])
    outcome = place.run(command="train")
    assert outcome.status == 6, outcome.stderr
    assert f"transformers {version('transformers')} breaks an assumption: GGUF files" in flat(outcome)
    assert "loading the base" not in outcome.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A workplace with a finished run."""
    workplace = write_classification(tmp_path_factory.mktemp("whole"))
    assert workplace.run().status == 0
    return workplace


@pytest.mark.slow
def test_a_whole_run_repeats_bit_by_bit(whole: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    outcome = rerun(whole, "--locked", "--out", str(tmp_path / "again"))
    assert outcome.status == 0, outcome.stderr
    assert "bit-identical" in outcome.stderr
    shown = finetune_command("diff", str(whole.folder / "run"), str(tmp_path / "again"))
    assert shown.status == 0, shown.stderr
    for told in ("recipe: the same", "the same adapter, bit by bit", "the same merged model, bit by bit"):
        assert told in shown.stdout
    assert shown.stdout.count("all answers the same") == 5


@pytest.mark.slow
def test_a_repetition_that_comes_out_otherwise_is_told_to_the_tensor(
    whole: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "set_seed", lambda seed: set_seed(seed + 1))  # as another machine's numbers would
    again = tmp_path / "again"
    outcome = rerun(whole, "--locked", "--out", str(again))
    assert outcome.status == 7, outcome.stderr
    said = flat(outcome)
    assert "adapter/adapter_model.safetensors: 28 of 28 tensors differ, first base_model.model." in said
    assert "merged/model.safetensors: " in said
    assert "adapter on held_out: perplexity" in said
    assert "data/" not in said.partition("not repeated")[2]

    found = json.loads(finetune_command("diff", str(whole.folder / "run"), str(again), "--json").stdout)
    assert (found["recipe"], found["lock"], found["rows"]) == ([], [], [])
    assert (found["same_adapter"], found["same_merged"]) == (False, False)
    by_name = {(line["contender"], line["metric"]): line for line in found["scores"]}
    assert by_name["base", "perplexity"]["same_outputs"]
    moved = by_name["adapter", "perplexity"]
    difference = moved["other"]["value"] - moved["one"]["value"]
    assert moved["difference"]["value"] == pytest.approx(difference)
    assert moved["difference"]["low"] <= difference <= moved["difference"]["high"]


@pytest.mark.slow
def test_diff_names_settings_rows_and_outcomes(
    whole: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    other = tmp_path / "other"
    changed = whole.run("--set", "training.learning_rate=0.01", "--set", "data.held_out.fraction=0.3", out=other)
    assert changed.status == 0, changed.stderr
    found = json.loads(finetune_command("diff", str(whole.folder / "run"), str(other), "--json").stdout)
    settings = {line["key"]: (line["one"], line["other"]) for line in found["recipe"]}
    assert settings == {"training.learning_rate": (0.02, 0.01), "data.held_out.fraction": (0.2, 0.3)}
    assert found["lock"] == []
    assert "train.examples" in {line["key"] for line in found["rows"]}
    training = {line["key"]: (line["one"], line["other"]) for line in found["training"]}
    assert training["tokens"][0] != training["tokens"][1]
    assert training["last loss"][0] != training["last loss"][1]
    assert all(line["difference"] is None for line in found["scores"]), "other rows are held out"
    shown = finetune_command("diff", str(whole.folder / "run"), str(other)).stdout
    assert "not the same samples" in shown
    assert "training.learning_rate" in shown
