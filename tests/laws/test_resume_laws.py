"""Straight = resumed: a training that is stopped after any step and gone on with ends in the same bytes."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import write_tiny_base
from tiny_training import StopAfter, going_on, silent, stop_after, tiny_examples, tiny_job, tiny_recipe

from evaluation.files import staged_folder
from evaluation.rendering import Example
from finetune.adapter import adapter_hash
from finetune.checkpoint_state import read_weights
from finetune.checkpoints import (
    MANIFEST,
    MadeFrom,
    checkpoint_to_go_on_from,
    checkpoints,
    discard_finished,
    new_checkpoint,
    read_progress,
)
from finetune.errors import DataError
from finetune.recipe import Recipe
from finetune.training import train
from finetune.training_job import TrainingJob
from finetune.training_records import StepMetrics, TrainingSummary

EXAMPLES = tiny_examples(24)
VALIDATION = tiny_examples(6, seed=1)
MIXED = [*tiny_examples(18, seed=2), *tiny_examples(9, seed=3) * 2]
"""Two sources, the rows of the smaller one standing twice, as mixing makes them."""
INPUTS = MadeFrom(decisive={"base": "b", "prepared examples": "e"}, origins={"rows.csv": "r", "alpaca": "a"})

DROPOUT = {"dropout": 0.3}
ACCUMULATED = {"tokens_per_micro_batch": 60}
"""Of a step of 160 tokens: three micro-batches."""
KINDS: dict[str, dict[str, object]] = {
    "lora": {},
    "layers of our own, accumulation": {"training": ACCUMULATED},
    "layers of our own, qlora in bfloat16, packed, two epochs": {
        "base": {"dtype": "bfloat16"},
        "quantization": {"kind": "nf4"},
        "training": ACCUMULATED | {"batches": "packed", "epochs": 2, "gradient_checkpointing": True},
    },
    "lora, dropout": {"adapter": DROPOUT},
    "lora, dropout, accumulation": {"adapter": DROPOUT, "training": ACCUMULATED},
    "lora, packed, two epochs": {"adapter": DROPOUT, "training": ACCUMULATED | {"batches": "packed", "epochs": 2}},
    "dora, dropout": {"adapter": DROPOUT | {"variant": "dora"}, "training": ACCUMULATED},
    "rslora, weight decay, linear": {
        "adapter": DROPOUT | {"variant": "rslora"},
        "training": {"weight_decay": 0.1, "schedule": "linear"},
    },
    "qlora, dropout, accumulation": {
        "adapter": DROPOUT,
        "quantization": {"kind": "nf4"},
        "training": ACCUMULATED,
    },
    "bfloat16 base": {"base": {"dtype": "bfloat16"}, "adapter": DROPOUT},
    "gradient checkpointing": {"adapter": DROPOUT, "training": {"gradient_checkpointing": True}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


def job_of(
    folder: Path, recipe: Recipe, examples: list[Example] = EXAMPLES, validation: list[Example] | None = None
) -> TrainingJob:
    return tiny_job(folder, recipe, examples, validation).model_copy(update={"made_from": INPUTS})


def summary(job: TrainingJob) -> TrainingSummary:
    return TrainingSummary.model_validate_json((job.run.training / "summary.json").read_bytes())


def steps(job: TrainingJob) -> list[StepMetrics]:
    lines = (job.run.training / "metrics.jsonl").read_text().splitlines()
    return [StepMetrics.model_validate_json(line) for line in lines]


def without_seconds(job: TrainingJob) -> list[StepMetrics]:
    return [step.model_copy(update={"seconds": 0.0}) for step in steps(job)]


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_after_every_step_ends_in_the_same_bytes(base: Path, tmp_path: Path, kind: str) -> None:
    recipe = tiny_recipe(base, **KINDS[kind])
    straight = job_of(tmp_path / "straight", recipe)
    train(straight, silent())
    count = summary(straight).steps
    assert count >= 3
    resumed = job_of(tmp_path / "resumed", recipe)
    for _ in range(count - 1):
        torch.manual_seed(random.randrange(1000))  # whatever a fresh process has in its generators
        stop_after(going_on(resumed), 1)
    train(going_on(resumed), silent())
    assert adapter_hash(resumed.run.adapter) == adapter_hash(straight.run.adapter)
    assert without_seconds(resumed) == without_seconds(straight)
    assert summary(resumed).resumed_after == tuple(range(1, count))
    told = {"seconds": 0.0, "tokens_per_second": 0.0, "peak_memory_bytes": 0, "resumed_after": ()}
    assert summary(resumed).model_copy(update=told) == summary(straight).model_copy(update=told)
    assert summary(resumed).seconds == steps(resumed)[-1].seconds
    seconds = [step.seconds for step in steps(resumed)]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_best_adapter_so_far_is_not_lost(base: Path, tmp_path: Path, at: int, keep: str) -> None:
    settings = {"validations": 4, "learning_rate": 0.3, "keep": keep, "tokens_per_step": 64}  # it gets worse again
    recipe = tiny_recipe(base, adapter=DROPOUT, training=settings)
    straight = job_of(tmp_path / "straight", recipe, validation=VALIDATION)
    train(straight, silent())
    resumed = job_of(tmp_path / "resumed", recipe, validation=VALIDATION)
    stop_after(resumed, at)
    train(going_on(resumed), silent())
    assert summary(straight).kept_step < summary(straight).steps or keep == "last"
    assert summary(resumed).kept_step == summary(straight).kept_step
    assert adapter_hash(resumed.run.adapter) == adapter_hash(straight.run.adapter)
    assert without_seconds(resumed) == without_seconds(straight)


def test_early_stopping_counts_what_came_before(base: Path, tmp_path: Path) -> None:
    settings = {"validations": 8, "learning_rate": 0.5, "early_stopping": {"patience": 2}, "tokens_per_step": 60}
    recipe = tiny_recipe(base, training=settings)
    straight = job_of(tmp_path / "straight", recipe, validation=VALIDATION)
    train(straight, silent())
    ended = summary(straight).steps
    assert ended < steps_of_plan(straight)
    resumed = job_of(tmp_path / "resumed", recipe, validation=VALIDATION)
    stop_after(resumed, ended - 1)
    train(going_on(resumed), silent())
    assert summary(resumed).steps == ended
    assert adapter_hash(resumed.run.adapter) == adapter_hash(straight.run.adapter)


def steps_of_plan(job: TrainingJob) -> int:
    from finetune.batches import plan_batches

    lengths = [len(example.input_ids) for example in EXAMPLES]
    training = job.recipe.training
    return plan_batches(lengths, training.tokens_per_step, None, 1, training.epochs, job.recipe.seed).steps


def test_mixed_sources_over_two_epochs(base: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(base, adapter=DROPOUT, training=ACCUMULATED | {"epochs": 2})
    straight = job_of(tmp_path / "straight", recipe, MIXED)
    train(straight, silent())
    for at in (1, summary(straight).steps // 2, summary(straight).steps - 1):
        resumed = job_of(tmp_path / f"resumed {at}", recipe, MIXED)
        stop_after(resumed, at)
        train(going_on(resumed), silent())
        assert adapter_hash(resumed.run.adapter) == adapter_hash(straight.run.adapter)
        assert summary(resumed).tokens == summary(straight).tokens


def test_a_stop_at_the_last_step_finishes(base: Path, tmp_path: Path) -> None:
    job = job_of(tmp_path / "run", tiny_recipe(base))
    train(job, silent())
    again = job_of(tmp_path / "again", job.recipe)
    train(again, silent(), StopAfter(summary(job).steps))
    assert adapter_hash(again.run.adapter) == adapter_hash(job.run.adapter)


def test_checkpoints_come_by_steps_and_two_are_kept(base: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(base, training={"checkpoints": {"every_steps": 1}})
    job = job_of(tmp_path / "run", recipe)
    train(job, silent())
    last = summary(job).steps - 1  # after the last step the adapter is written
    assert [read_progress(folder).step for folder in checkpoints(job.run.checkpoints)] == [last - 1, last]
    sparse = job_of(tmp_path / "sparse", tiny_recipe(base, training={"checkpoints": {"every_steps": 2}}))
    train(sparse, silent())
    assert {read_progress(folder).step % 2 for folder in checkpoints(sparse.run.checkpoints)} == {0}
    assert adapter_hash(sparse.run.adapter) == adapter_hash(job.run.adapter)


def test_checkpoints_come_by_minutes(base: Path, tmp_path: Path) -> None:
    quick = job_of(tmp_path / "quick", tiny_recipe(base, training={"checkpoints": {"every_minutes": 1e-9}}))
    train(quick, silent())
    assert len(checkpoints(quick.run.checkpoints)) == 2
    default = job_of(tmp_path / "default", tiny_recipe(base))
    train(default, silent())
    assert not default.run.checkpoints.exists(), "a short training writes none"


# ------------------------------------------------------------------ what is refused


@pytest.fixture(scope="module")
def stopped(base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """A training that was stopped after its third step, with a checkpoint of the second."""
    recipe = tiny_recipe(
        base, adapter=DROPOUT, training={"checkpoints": {"every_steps": 1}, "validations": 4, "tokens_per_step": 64}
    )
    job = job_of(tmp_path_factory.mktemp("stopped") / "run", recipe, validation=VALIDATION)
    stop_after(job, 3)
    assert len(checkpoints(job.run.checkpoints)) == 2
    return job


@pytest.fixture
def copied(stopped: TrainingJob, tmp_path: Path) -> TrainingJob:
    shutil.copytree(stopped.run_folder, tmp_path / "run")
    return stopped.model_copy(update={"run_folder": tmp_path / "run"})


FILES = ("best.safetensors", "manifest.json", "metrics.jsonl", "optimizer.json", "optimizer.safetensors")
FILES += ("random-0.json", "random-0.safetensors", "state.json", "weights.safetensors")


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    match how:
        case "missing":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
        case "truncated":
            file.write_bytes(content[:-1])
        case "longer":
            file.write_bytes(content + b" ")
        case "link":
            elsewhere = file.parent.parent.parent / f"elsewhere-{file.name}"
            file.rename(elsewhere)
            file.symlink_to(elsewhere)
        case _:
            place = random.Random(file.name).randrange(len(content))
            flipped = bytes([content[place] ^ 1])
            file.write_bytes(content[:place] + flipped + content[place + 1 :])


HOW = ("missing", "empty", "truncated", "longer", "link", "flipped")


def test_every_file_of_a_checkpoint_is_damaged_here(stopped: TrainingJob) -> None:
    newest = checkpoints(stopped.run.checkpoints)[-1]
    assert tuple(sorted(path.name for path in newest.iterdir())) == FILES


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(copied: TrainingJob, name: str, how: str) -> None:
    before, newest = checkpoints(copied.run.checkpoints)
    damage(newest / name, how)
    said: list[str] = []
    taken = checkpoint_to_go_on_from(copied.run, INPUTS, 1, said.append)
    if name == MANIFEST and how == "longer":
        assert taken == newest  # a space after the JSON changes nothing that it says
        return
    assert taken == before
    assert name in said[0] or name == MANIFEST
    assert "damaged" in said[0]
    if how in {"truncated", "empty", "longer"} and name != MANIFEST:
        assert "bytes, and" in said[0]
    assert "going on after step 2" in said[1]
    assert checkpoints(copied.run.checkpoints) == [before]


def test_a_checkpoint_that_does_not_read_back_removes_no_other(
    copied: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that says yes and keeps something else."""
    parent = copied.run.checkpoints
    before = checkpoints(parent)

    @contextmanager
    def lying(folder: Path) -> Iterator[Path]:
        with staged_folder(folder) as staging:
            yield staging
        damage(folder / "state.json", "flipped")

    monkeypatch.setattr("finetune.checkpoints.staged_folder", lying)
    with pytest.raises(DataError, match=r"state\.json"), new_checkpoint(parent, 9) as folder:
        (folder / "state.json").write_text("{}")
    assert set(before) < set(checkpoints(parent))


def test_weights_of_another_model_are_named(copied: TrainingJob) -> None:
    folder = checkpoints(copied.run.checkpoints)[-1]
    like = load_file(folder / "weights.safetensors")
    first = min(like)
    assert read_weights(folder, "weights", like).keys() == like.keys()
    for wrong, named in (
        ({name: tensor for name, tensor in like.items() if name != first}, first),
        (like | {"another": like[first]}, "another"),
        (like | {first: like[first].double()}, "float64"),
    ):
        with pytest.raises(DataError, match="does not fit this model") as refused:
            read_weights(folder, "weights", wrong)
        assert named in str(refused.value)


def test_training_goes_on_from_the_one_before(copied: TrainingJob, base: Path, tmp_path: Path) -> None:
    straight = job_of(tmp_path / "straight", copied.recipe, validation=VALIDATION)
    train(straight, silent())
    damage(checkpoints(copied.run.checkpoints)[-1] / "optimizer.safetensors", "flipped")
    train(going_on(copied), silent())
    assert adapter_hash(copied.run.adapter) == adapter_hash(straight.run.adapter)


def test_damage_everywhere_is_refused_and_nothing_is_removed(copied: TrainingJob) -> None:
    for folder in checkpoints(copied.run.checkpoints):
        damage(folder / "weights.safetensors", "truncated")
    with pytest.raises(DataError, match="no checkpoint is whole") as refused:
        going_on(copied)
    assert "step-00000003/weights.safetensors" in str(refused.value)
    assert "--restart" in refused.value.hint
    assert len(checkpoints(copied.run.checkpoints)) == 2


def test_a_file_that_is_none_of_the_checkpoint_is_refused(copied: TrainingJob) -> None:
    for folder in checkpoints(copied.run.checkpoints):
        (folder / "optimizer.pt").write_bytes(b"\x80\x04")
    with pytest.raises(DataError, match=r"optimizer\.pt"):
        going_on(copied)


@pytest.mark.parametrize(
    ("decisive", "origins", "named"),
    [
        ({"base": "other"}, {}, "base"),
        ({"prepared examples": "other"}, {"rows.csv": "other"}, r"prepared examples \(rows\.csv\)"),
        ({"prepared examples": "other"}, {"alpaca": "other"}, r"prepared examples \(alpaca\)"),
        ({"training": "new"}, {}, "training"),
    ],
)
def test_changed_inputs_are_refused_by_name(
    copied: TrainingJob, decisive: dict[str, str], origins: dict[str, str], named: str
) -> None:
    changed = MadeFrom(decisive=INPUTS.decisive | decisive, origins=INPUTS.origins | origins)
    with pytest.raises(DataError, match=f"after step 3, and these changed since: {named}\n") as refused:
        checkpoint_to_go_on_from(copied.run, changed, 1, lambda _: None)
    assert "--restart" in refused.value.hint
    assert len(checkpoints(copied.run.checkpoints)) == 2


def test_checkpoints_of_a_finished_training_are_removed_and_those_of_another_kept(copied: TrainingJob) -> None:
    discard_finished(copied.run, INPUTS.decisive | {"training": "another"})
    assert len(checkpoints(copied.run.checkpoints)) == 2
    discard_finished(copied.run, INPUTS.decisive)
    assert not copied.run.checkpoints.exists()
    discard_finished(copied.run, INPUTS.decisive)  # there are none, and nothing happens


def test_origins_alone_change_nothing(copied: TrainingJob) -> None:
    renamed = MadeFrom(decisive=INPUTS.decisive, origins={"other.csv": "r"})
    assert checkpoint_to_go_on_from(copied.run, renamed, 1, lambda _: None) is not None


def test_another_number_of_devices_is_refused(copied: TrainingJob) -> None:
    with pytest.raises(DataError, match="on 1 devices, and now has 2"):
        checkpoint_to_go_on_from(copied.run, INPUTS, 2, lambda _: None)


def test_a_checkpoint_of_another_shape_is_refused(copied: TrainingJob, base: Path) -> None:
    other = tiny_recipe(base, adapter=DROPOUT | {"rank": 8}, training={"validations": 4, "tokens_per_step": 64})
    job = going_on(copied).model_copy(update={"recipe": other})
    with pytest.raises(DataError, match="does not fit this model"):
        train(job, silent())


def test_nothing_is_pickled(stopped: TrainingJob) -> None:
    for path in stopped.run.checkpoints.rglob("*"):
        if path.suffix == ".safetensors":
            load_file(path)
        elif path.is_file():
            whole = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
            assert all(json.loads(text) for text in whole)
