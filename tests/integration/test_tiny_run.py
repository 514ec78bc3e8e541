"""Whole runs of the tiny model through the command line: what is written, what is skipped, how each error ends."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import (
    PROMISED,
    Outcome,
    Workplace,
    broken_promises,
    evaluation_command,
    finetune_command,
    finetune_process,
    left_over,
    write_classification,
    write_instructions,
    write_texts,
)

from evaluation.result_files import load_result
from finetune.recipe_file import shipped_recipes
from finetune.row_templates import list_row_templates
from finetune.run_directory import STAGES, RunDirectory

SCREEN = 24
"""Lines of a terminal."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return write_classification(tmp_path_factory.mktemp("classification"))


@pytest.fixture(scope="module")
def first(place: Workplace) -> Outcome:
    """The whole run."""
    return place.run()


@pytest.fixture
def finished(place: Workplace, first: Outcome, tmp_path: Path) -> RunDirectory:
    """A copy of the finished run, to be changed at will."""
    assert first.status == 0, first.stderr
    shutil.copytree(place.folder / "run", tmp_path / "run")
    return RunDirectory(tmp_path / "run")


@pytest.fixture(scope="module")
def instructed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, Outcome]:
    """A run without a 4-bit base, on open answers."""
    workplace = write_instructions(tmp_path_factory.mktemp("instructions"))
    return workplace, workplace.run()


def ran(outcome: Outcome) -> dict[str, str]:
    """Tell of each stage why it ran, or that it was skipped."""
    said = [line.partition(": ") for line in outcome.stderr.splitlines()]
    return {stage: why for stage, _, why in said if stage in STAGES and not why.startswith("done in")}


def test_a_run_writes_everything_it_promises(place: Workplace, first: Outcome) -> None:
    assert first.status == 0, first.stderr
    missing = [name for name in PROMISED if not (place.folder / "run" / name).is_file()]
    assert missing == []
    assert list(ran(first)) == list(STAGES)
    assert left_over(place.folder) == []
    assert broken_promises(RunDirectory(place.folder / "run")) == []


def test_a_run_says_little_and_nothing_of_the_libraries(first: Outcome) -> None:
    assert "Traceback" not in first.stderr
    assert "Warning" not in first.stderr
    assert first.stdout == ""
    assert len(first.stderr.splitlines()) < 60


def test_the_report_holds_every_contender(place: Workplace, first: Outcome) -> None:
    report = json.loads((place.folder / "run" / "report.json").read_bytes())
    for name in ("base", "adapter", "merged", "majority", "tfidf"):
        assert f'"{name}"' in json.dumps(report), name
    page = (place.folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "://" not in page.replace("http://www.w3.org", ""), "the page fetches nothing"


def test_nothing_in_a_published_folder_names_this_machine(place: Workplace, first: Outcome) -> None:
    run = RunDirectory(place.folder / "run")
    texts = [p for folder in (run.adapter, run.merged) for p in folder.iterdir() if p.suffix in {".json", ".md"}]
    assert len(texts) > 4
    assert [path.name for path in texts if str(place.folder) in path.read_text(encoding="utf-8")] == []


def test_a_second_run_skips_every_stage(place: Workplace, finished: RunDirectory) -> None:
    again = place.run(out=finished.folder)
    assert again.status == 0
    assert set(ran(again).values()) == {"finished, skipped"}
    assert list(ran(again)) == list(STAGES)


def test_another_learning_rate_keeps_the_data_alone(place: Workplace, finished: RunDirectory) -> None:
    again = place.run("--set", "training.learning_rate=0.01", out=finished.folder, command="train")
    assert again.status == 0, again.stderr
    assert ran(again) == {"prepare": "finished, skipped", "train": "training changed"}
    assert finished.marker("merge") is None, "a merge of the older adapter is not finished"


def test_a_setting_of_the_report_s_own_rows_reruns_only_what_reads_it(place: Workplace, finished: RunDirectory) -> None:
    again = place.run("--set", 'evaluation.contenders=["base"]', out=finished.folder)
    assert again.status == 0, again.stderr
    assert [stage for stage, why in ran(again).items() if why != "finished, skipped"] == ["evaluate", "report"]


def test_a_changed_data_file_is_named(place: Workplace, finished: RunDirectory, tmp_path: Path) -> None:
    changed = tmp_path / "rows.csv"
    changed.write_text((place.folder / "rows.csv").read_text() + "fever cough 99,red,3\n", encoding="utf-8")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(place.recipe.read_text().replace(str(place.folder / "rows.csv"), str(changed)))
    assert Workplace(place.folder, recipe).run(out=finished.folder, command="prepare").status == 0
    with changed.open("a") as file:
        file.write("eye ear 100,blue,4\n")
    again = Workplace(place.folder, recipe).run(out=finished.folder, command="train")
    assert ran(again) == {"prepare": f"{changed} changed", "train": "prepared examples changed"}
    assert [stage for stage in STAGES if finished.marker(stage)] == ["prepare", "train"]


@pytest.mark.parametrize("damage", ["removed", "changed"])
def test_damaged_outputs_are_made_again(place: Workplace, finished: RunDirectory, damage: str) -> None:
    file = finished.folder / "report.md"
    file.unlink() if damage == "removed" else file.write_text("forged")
    again = place.run(out=finished.folder)
    assert again.status == 0
    assert ran(again)["report"] == "report.md is missing or was changed"
    assert "forged" not in file.read_text()


def test_open_answers_are_generated_and_scored(instructed: tuple[Workplace, Outcome]) -> None:
    workplace, outcome = instructed
    assert outcome.status == 0, outcome.stderr
    result, outputs = load_result(workplace.folder / "run" / "evaluation", "adapter", "held_out")
    assert {"token_f1", "rouge_l", "chrf"} <= set(result.metrics)
    assert len(outputs) > 3
    assert not (workplace.folder / "run" / "evaluation" / "tfidf").exists(), "there are no classes to guess"


def test_lora_without_quantization_folds_onto_the_base_itself(instructed: tuple[Workplace, Outcome]) -> None:
    workplace, _ = instructed
    proof = json.loads((workplace.folder / "run" / "merged" / "merge.json").read_bytes())
    assert proof["onto"] == "full_precision"
    assert proof["agreement"] == 1
    assert proof["gain_kept"] == pytest.approx(1, abs=1e-3)


def test_texts_are_scored_by_their_loss(tmp_path: Path) -> None:
    workplace = write_texts(tmp_path)
    outcome = workplace.run()
    assert outcome.status == 0, outcome.stderr
    base, _ = load_result(workplace.folder / "run" / "evaluation", "base", "held_out")
    merged, _ = load_result(workplace.folder / "run" / "evaluation", "merged", "held_out")
    perplexity = next(name for name in base.metrics if "perplexity" in name)
    assert merged.metrics[perplexity].value < base.metrics[perplexity].value


PLAIN_LOADING = """
import json, sys
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, run = sys.argv[1:]
task = [json.loads(line) for line in Path(run, "data/held_out.jsonl").read_text().splitlines()]

def answers(model, tokenizer):
    found = []
    for sample in task:
        messages = sample["prompt"]["messages"]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.eval().generate(**ids, max_new_tokens=4, do_sample=False)
        found.append(tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True))
    return found

adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run + "/adapter")
merged = AutoModelForCausalLM.from_pretrained(run + "/merged")
assert not {"finetune", "evaluation", "trl"} & set(sys.modules)
print(json.dumps({
    "adapter": answers(adapted, AutoTokenizer.from_pretrained(run + "/adapter")),
    "merged": answers(merged, AutoTokenizer.from_pretrained(run + "/merged")),
}))
"""


def test_what_is_published_loads_without_these_packages(instructed: tuple[Workplace, Outcome]) -> None:
    workplace, _ = instructed
    run = workplace.folder / "run"
    command = [sys.executable, "-c", PLAIN_LOADING, str(workplace.base), str(run)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert loaded.returncode == 0, loaded.stderr[-2000:]
    found = json.loads(loaded.stdout.splitlines()[-1])
    for contender in ("adapter", "merged"):
        _, outputs = load_result(run / "evaluation", contender, "held_out")
        recorded = [str(output.generated).strip() for output in outputs]
        assert [answer.strip() for answer in found[contender]] == recorded
    assert found["adapter"] == found["merged"]


# ------------------------------------------------------------------ how errors end


def assert_ends_with(outcome: Outcome, status: int, *parts: str) -> None:
    assert outcome.status == status, outcome.stderr
    said = outcome.stdout + outcome.stderr
    for part in parts:
        assert part in said
    assert "Traceback" not in said
    error = outcome.stderr[outcome.stderr.rfind("error:") :]
    assert len(error.splitlines()) <= SCREEN


def test_a_misspelt_key_ends_with_2(place: Workplace) -> None:
    outcome = finetune_command("run", str(place.recipe), "--set", "training.learning_rat=1")
    assert_ends_with(outcome, 2, "learning_rat", "learning_rate")


def test_a_column_that_is_missing_ends_with_3(place: Workplace, tmp_path: Path) -> None:
    outcome = place.run("--set", "data.train.0.columns.label=lable", out=tmp_path)
    assert_ends_with(outcome, 3, "lable")


def test_no_usable_row_ends_with_3(place: Workplace, tmp_path: Path) -> None:
    empty = tmp_path / "rows.csv"
    empty.write_text("text,label\n")
    assert_ends_with(place.run("--set", f"data.train.0.source={empty}", out=tmp_path / "run"), 3, "no rows")


def test_rows_that_are_too_long_end_with_3(place: Workplace, tmp_path: Path) -> None:
    outcome = place.run("--set", "data.max_tokens=20", out=tmp_path, command="prepare")
    assert_ends_with(outcome, 3, "longer than data.max_tokens (20)", "data.overflow=drop", "more")


def test_a_base_that_is_not_finite_ends_with_4(place: Workplace, tmp_path: Path) -> None:
    outcome = place.run("--set", f"base.model={write_broken_base(place, tmp_path)}", out=tmp_path / "run")
    assert_ends_with(outcome, 4, "the loss is nan at step 1", "no update was made")
    run = RunDirectory(tmp_path / "run")
    assert run.marker("prepare")
    assert not run.marker("train")
    assert not run.adapter.exists()
    assert left_over(run.folder) == []


def test_a_merge_of_nothing_ends_with_5(place: Workplace, finished: RunDirectory) -> None:
    outcome = place.run("--set", "training.learning_rate=1e-6", out=finished.folder)
    assert_ends_with(outcome, 5, "equals the untuned base")
    assert not finished.merged.exists()
    assert not (finished.folder / "report.html").exists(), "a report of another adapter would mislead"


def test_a_limit_on_the_merge_ends_with_5(place: Workplace, finished: RunDirectory) -> None:
    proof = json.loads((finished.merged / "merge.json").read_bytes())
    kept = proof["gain_kept"]
    if not 0 < kept < 1:
        pytest.skip(f"this merge keeps {kept:.1%} of the gain, so no limit can refuse it")
    outcome = place.run("--set", f"merge.minimum_gain_kept={(1 + kept) / 2}", out=finished.folder, command="merge")
    assert_ends_with(outcome, 5, "of the fall in validation loss", "merge.minimum_gain_kept")


def test_a_run_that_is_held_ends_with_6(place: Workplace, tmp_path: Path) -> None:
    with (tmp_path / ".holder").open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert_ends_with(place.run(out=tmp_path), 6, "is working on this run", "--out")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_here_ends_with_6(place: Workplace, tmp_path: Path) -> None:
    arguments = ("run", "--model", str(place.base), "--task", "plain_facts", "--out", str(tmp_path))
    assert_ends_with(evaluation_command(*arguments, "--device", "cuda:0"), 6, "there is no GPU")


def test_a_traceback_is_shown_on_request_only(place: Workplace) -> None:
    arguments = ("run", str(place.recipe), "--set", "seed=many")
    assert "Traceback" not in finetune_process(*arguments).stderr
    shown = finetune_process("--traceback", *arguments)
    assert "Traceback" in shown.stderr
    assert shown.status != 0


def test_a_fault_of_the_program_is_one_screen_as_well(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("finetune.pipeline.run_recipe", broken)
    assert_ends_with(place.run(), 70, "fault of the program", "ZeroDivisionError", "--traceback")


def test_an_interrupted_run_says_how_to_go_on(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("finetune.pipeline.run_recipe", interrupted)
    assert_ends_with(place.run(), 130, "the same command goes on from there")


def write_broken_base(place: Workplace, folder: Path) -> Path:
    """Copy the base with one weight that is not a number."""
    shutil.copytree(place.base, folder / "base")
    file = folder / "base" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    return folder / "base"


# ------------------------------------------------------------------ the other commands


@pytest.fixture
def five_mistakes(tmp_path: Path, place: Workplace) -> Path:
    lines = place.recipe.read_text().splitlines()
    changes = {
        "  rank: 4": "  rnk: 4",
        "  kind: nf4": "  kind: nf5",
        "  max_tokens: 128": "  max_tokens: many",
        "  learning_rate: 0.02": "  learning_rate: 3",
        "  dtype: float32": "  dtype: float23",
    }
    assert sum(line in changes for line in lines) >= len(changes)
    recipe = tmp_path / "mistakes.yaml"
    done: set[str] = set()
    with recipe.open("w") as file:
        for line in lines:
            file.write((changes[line] if line in changes and line not in done else line) + "\n")
            done.add(line)
    return recipe


def test_check_shows_five_mistakes_with_their_lines(five_mistakes: Path) -> None:
    outcome = finetune_command("check", str(five_mistakes))
    assert outcome.status == 2
    said = [line for line in outcome.stdout.splitlines() if line.startswith(str(five_mistakes))]
    assert len(said) == 5, outcome.stdout
    numbers = [int(line.removeprefix(f"{five_mistakes}:").partition(":")[0]) for line in said]
    written = five_mistakes.read_text().splitlines()
    for number, wrong in zip(sorted(numbers), ("float23", "nf5", "rnk", "many", "3"), strict=True):
        assert wrong in written[number - 1]
    for hint in ("float32", "nf4", "rank"):
        assert hint in outcome.stdout


def test_every_shipped_recipe_passes() -> None:
    outcome = finetune_command("check", *shipped_recipes())
    assert outcome.status == 0, outcome.stdout
    assert len(outcome.stdout.splitlines()) == len(shipped_recipes()) >= 6


def test_check_here_looks_at_files_and_tasks(place: Workplace, tmp_path: Path) -> None:
    assert finetune_command("check", "--here", str(place.recipe)).status == 0
    absent = tmp_path / "absent.csv"
    arguments = ("check", "--here", str(place.recipe), "--set", f"data.train.0.source={absent}")
    outcome = finetune_command(*arguments, "--set", "evaluation.tasks=[held_out, absent.yaml]")
    assert outcome.status == 2
    assert f"no file '{absent}'" in outcome.stdout
    assert "no file 'absent.yaml'" in outcome.stdout


def test_check_names_an_unknown_template(place: Workplace) -> None:
    outcome = finetune_command("check", str(place.recipe), "--set", "data.train.0.rows=clasification")
    assert outcome.status == 2
    assert "data.train.0" in outcome.stdout
    assert "classification" in outcome.stdout


def test_show_fills_in_defaults_and_names_the_choices(place: Workplace) -> None:
    outcome = finetune_command("show", str(place.recipe), "--set", "seed=5")
    assert outcome.status == 0
    for part in ("seed: 5", "schedule: cosine", "# On this machine", "attention:", "optimizer:"):
        assert part in outcome.stdout


def test_preview_marks_what_is_trained_on(place: Workplace) -> None:
    outcome = finetune_command("preview", str(place.recipe), "--rows", "2", "--cache", str(place.cache))
    assert outcome.status == 0, outcome.stderr
    assert outcome.stdout.count("⟦") == 3, "two answers and the line that explains the sign"
    for label in outcome.stdout.split("⟦")[1:3]:
        assert label.startswith(("red", "green", "blue"))


def test_list_shows_recipes_templates_and_runs(place: Workplace, first: Outcome) -> None:
    listed = finetune_command("list").stdout
    assert all(name in listed for name in shipped_recipes())
    listed = finetune_command("list", "templates").stdout
    assert all(name in listed for name in list_row_templates())
    assert "prepare, train, merge, evaluate, report" in " ".join(
        finetune_command("list", "runs", "--runs", str(place.folder)).stdout.split()
    )
    assert "no runs in" in finetune_command("list", "runs", "--runs", str(place.base)).stdout


def test_schema_is_json() -> None:
    outcome = finetune_command("schema")
    assert "learning_rate" in outcome.stdout
    assert json.loads(outcome.stdout)["type"] == "object"


def test_help_names_every_command_and_exit_code() -> None:
    outcome = finetune_command("--help")
    assert outcome.status == 0
    commands = ("run", "check", "show", "schema", "preview", "prepare", "train", "merge", "evaluate", "report", "list")
    assert all(command in outcome.stdout for command in commands)
    for meaning in ("2 recipe", "3 data", "4 training stopped", "5 proof failed", "6 this machine"):
        assert meaning in " ".join(outcome.stdout.split())


def test_evaluation_scores_and_compares_on_its_own(place: Workplace, finished: RunDirectory, tmp_path: Path) -> None:
    task = ("--task", str(finished.data / "held_out.task.yaml"), "--out", str(tmp_path / "results"))
    model = ("--model", str(place.base), "--dtype", "float32", "--limit", "6")
    assert evaluation_command("run", *model, *task).status == 0
    adapter = ("--adapter", str(finished.adapter), "--quantization", "nf4")
    scored = evaluation_command("run", *model, *adapter, *task)
    assert scored.status == 0, scored.stderr
    assert "held_out" in scored.stdout
    compared = evaluation_command("compare", str(tmp_path / "results"), "adapter", "base")
    assert compared.status == 0
    assert "adapter minus base" in compared.stdout
    assert "plain_facts" in evaluation_command("tasks").stdout
