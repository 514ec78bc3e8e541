"""From rows to examples: every row is accounted for, groups stay together, limits do not look at the order."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from rich.console import Console
from tiny_model import build_tokenizer

from evaluation.conversation import Conversation
from evaluation.rendering import IGNORE, Example, Renderer
from finetune.console import Reporter
from finetune.errors import DataError
from finetune.prepare import Prepared, all_set_aside, build_task, prepare, prepare_rows, spans_of
from finetune.prepare_examples import refuse_too_long, render_rows
from finetune.prepare_rows import Parts, UsableRow, account, assign, group_columns, read_source
from finetune.recipe import Recipe
from finetune.recipe_data import Data
from finetune.records import Audit
from finetune.run_directory import RunDirectory

Cell = dict[str, str]


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(build_tokenizer())


def silent() -> Reporter:
    return Reporter(Console(quiet=True, file=io.StringIO()))


def write_rows(path: Path, rows: list[Cell]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label", "kind"])
        writer.writeheader()
        writer.writerows(rows)
    return path


def recipe_for(path: Path, **data: object) -> Recipe:
    stated = {
        "train": ({"source": str(path), "rows": "classification"},),
        "held_out": {"fraction": 0.3, "by": "kind"},
        "validation": {"fraction": 0.3, "by": "kind"},
        "max_tokens": 64,
    } | data
    return Recipe.model_validate(
        {
            "version": 1,
            "name": "unit",
            "base": {"model": "./base"},
            "adapter": {"kind": "lora"},
            "data": {key: value for key, value in stated.items() if value is not None},
        }
    )


def prepared_from(path: Path, renderer: Renderer, **data: object) -> Prepared:
    return prepare_rows(recipe_for(path, **data), renderer, path.parent / "cache", silent())


def varied(count: int) -> list[Cell]:
    return [{"text": f"fever {i}", "label": ("red", "blue")[i % 2], "kind": str(i % 17)} for i in range(count)]


# ------------------------------------------------------------------ the account

WORD = st.sampled_from(["fever", "cough", "ear", ""])
ROW = st.fixed_dictionaries(
    {
        "text": st.one_of(WORD, st.integers(0, 30).map(lambda n: "patient skin " * n)),
        "label": st.sampled_from(["red", "blue", ""]),
        "kind": st.sampled_from(["", *map(str, range(9))]),
    }
)


@given(
    rows=st.lists(ROW, min_size=20, max_size=60),
    limit=st.one_of(st.none(), st.integers(1, 30)),
    held_out=st.one_of(st.none(), st.integers(1, 8)),
    overflow=st.sampled_from(["drop", "truncate"]),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_is_accounted_for(
    rows: list[Cell],
    limit: int | None,
    held_out: int | None,
    overflow: str,
    renderer: Renderer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = write_rows(tmp_path_factory.mktemp("law") / "rows.csv", rows)
    source = {"source": str(path), "rows": "classification", "limit": limit}
    share = {"fraction": 0.3, "by": "kind", "limit": held_out}
    try:
        prepared = prepared_from(path, renderer, train=(source,), held_out=share, overflow=overflow, max_tokens=40)
    except DataError as refused:
        event(f"refused: {refused.what.partition(' for ')[0][:20]}")
        return
    event("accounted for")
    parts = Parts(prepared.train.rows, prepared.validation.rows if prepared.validation else [], prepared.held_out.rows)
    set_aside = all_set_aside(prepared)
    (found,) = [account(read, parts, set_aside) for read in prepared.sources]
    assert found.rows == len(rows)
    assert found.rows == found.train + found.validation + found.held_out + found.set_aside + found.over_limit
    assert found.over_limit >= 0
    assert limit is None or found.train <= limit
    assert held_out is None or found.held_out <= held_out
    places = [(row.file, row.line) for row in set_aside]
    assert len(places) == len(set(places)) == found.set_aside, "a row is set aside once"
    assert all(row.reason and row.detail for row in set_aside)
    groups = [{row.group for row in rows_} for rows_ in (parts.train, parts.validation, parts.held_out)]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]


@given(order=st.randoms(use_true_random=False), limit=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_limits_and_splits_do_not_look_at_the_order(
    order: object, limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = varied(80)
    shuffled = list(rows)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    folder = tmp_path_factory.mktemp("order")

    def keys(name: str, given_rows: list[Cell]) -> list[set[str]]:
        path = write_rows(folder / name, given_rows)
        source = {"source": str(path), "rows": "classification", "limit": limit}
        data = recipe_for(path, train=(source,)).data
        parts = assign(data, [read_source(data.train[0], "kind", folder, lambda _: None)], None, seed=3)
        return [{row.key for row in part} for part in (parts.train, parts.validation, parts.held_out)]

    assert keys("a.csv", rows) == keys("b.csv", shuffled)


def test_the_seed_draws_other_rows_and_splits_the_same(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.csv", varied(80))
    data = recipe_for(path, train=({"source": str(path), "rows": "classification", "limit": 10},)).data

    def parts(seed: int) -> list[set[str]]:
        assigned = assign(data, [read_source(data.train[0], "kind", tmp_path, lambda _: None)], None, seed)
        return [{row.key for row in part} for part in (assigned.train, assigned.validation, assigned.held_out)]

    assert parts(0)[0] != parts(1)[0]
    assert parts(0)[1:] == parts(1)[1:]


def test_splits_by_two_columns_are_refused(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path / "rows.csv", validation={"fraction": 0.1, "by": "label"})
    with pytest.raises(DataError, match=r"validation is split by 'label' and held-out rows by 'kind'"):
        group_columns(recipe.data)


def test_a_group_column_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path, renderer: Renderer) -> None:
    path = write_rows(tmp_path / "rows.csv", varied(9))
    by = {"fraction": 0.3, "by": "kinds"}
    with pytest.raises(DataError, match="no column 'kinds'") as caught:
        prepared_from(path, renderer, held_out=by, validation=by)
    assert "kind" in caught.value.hint


def test_a_row_without_a_group_is_set_aside(tmp_path: Path, renderer: Renderer) -> None:
    path = write_rows(tmp_path / "rows.csv", [*varied(60), {"text": "ear", "label": "red", "kind": ""}])
    (row,) = all_set_aside(prepared_from(path, renderer))
    assert (row.reason, row.line) == ("no_group", 62)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([], "there are no rows in it"), ([{"text": "", "label": "", "kind": "1"}] * 3, "none of its 3 rows can be used")],
)
def test_a_source_without_usable_rows_is_refused(tmp_path: Path, rows: list[Cell], expected: str) -> None:
    path = write_rows(tmp_path / "rows.csv", rows)
    with pytest.raises(DataError, match=expected):
        read_source(recipe_for(path).data.train[0], None, tmp_path, lambda _: None)


def test_a_split_that_leaves_nothing_is_refused(tmp_path: Path, renderer: Renderer) -> None:
    path = write_rows(tmp_path / "rows.csv", [{"text": f"ear {i}", "label": "red", "kind": "1"} for i in range(9)])
    with pytest.raises(DataError, match="no rows are left for"):
        prepared_from(path, renderer)


def test_held_out_rows_can_have_a_source_of_their_own(tmp_path: Path, renderer: Renderer) -> None:
    train = write_rows(tmp_path / "rows.csv", varied(40))
    own = write_rows(tmp_path / "own.csv", [{"text": f"ear {i}", "label": "red", "kind": "a"} for i in range(6)])
    held_out = {"source": str(own), "rows": "classification", "limit": 4}
    prepared = prepared_from(train, renderer, held_out=held_out, validation=None)
    assert {row.file for row in prepared.held_out.rows} == {str(own)}
    assert (len(prepared.train.rows), len(prepared.held_out.rows)) == (40, 4)


# ------------------------------------------------------------------ examples that are too long


def usable(renderer_rows: list[str], tmp_path: Path) -> tuple[list[UsableRow], Data]:
    rows = [{"text": text, "label": "red", "kind": str(i)} for i, text in enumerate(renderer_rows)]
    path = write_rows(tmp_path / "long.csv", rows)
    recipe = recipe_for(path, max_tokens=40)
    return read_source(recipe.data.train[0], None, tmp_path, lambda _: None).usable, recipe.data


LONG = ["ear", "patient skin " * 20, "fever"]


def test_long_examples_are_refused_by_name(tmp_path: Path, renderer: Renderer) -> None:
    rows, data = usable(LONG, tmp_path)
    with pytest.raises(DataError, match=r"1 rows are longer than data\.max_tokens") as caught:
        refuse_too_long(data, [render_rows(rows, data, renderer, lambda _: None)])
    assert "long.csv:3" in str(caught.value)
    needed = int(caught.value.hint.partition("data.max_tokens=")[2].partition(",")[0])
    enough = data.model_copy(update={"max_tokens": needed})
    assert len(render_rows(rows, enough, renderer, lambda _: None).rows) == 3, "the hint is what it takes"


def test_many_long_examples_are_named_in_part(tmp_path: Path, renderer: Renderer) -> None:
    rows, data = usable(["patient skin " * 20] * 8, tmp_path)
    halves = [render_rows(part, data, renderer, lambda _: None) for part in (rows[:4], rows[4:])]
    with pytest.raises(DataError, match=r"8 rows are longer(.|\n)*and 3 more"):
        refuse_too_long(data, halves)


def test_long_examples_are_dropped_and_counted(tmp_path: Path, renderer: Renderer) -> None:
    rows, data = usable(LONG, tmp_path)
    rendered = render_rows(rows, data.model_copy(update={"overflow": "drop"}), renderer, lambda _: None)
    assert [row.line for row in rendered.rows] == [2, 4]
    (dropped,) = rendered.set_aside
    assert (dropped.line, dropped.reason) == (3, "too_long")
    assert "40 allowed" in dropped.detail


def test_long_prompts_are_shortened_and_answers_are_whole(tmp_path: Path, renderer: Renderer) -> None:
    rows, data = usable(LONG, tmp_path)
    rendered = render_rows(rows, data.model_copy(update={"overflow": "truncate"}), renderer, lambda _: None)
    assert rendered.truncated == 1
    assert len(rendered.rows) == 3
    example, row = rendered.examples[1], rendered.rows[1]
    assert len(example.input_ids) <= 40
    assert answer_of(example, renderer) == answer_of(rendered.examples[0], renderer)
    shortened = row.conversation.messages[0].content
    assert rows[1].conversation.messages[0].content.startswith(shortened)


def test_an_answer_that_is_too_long_is_never_cut(tmp_path: Path, renderer: Renderer) -> None:
    path = write_rows(tmp_path / "rows.csv", [{"text": "ear", "label": "skin and eye " * 20, "kind": "1"}])
    recipe = recipe_for(path, max_tokens=40, overflow="truncate")
    rows = read_source(recipe.data.train[0], None, tmp_path, lambda _: None).usable
    rendered = render_rows(rows, recipe.data, renderer, lambda _: None)
    assert rendered.rows == []
    assert [row.reason for row in rendered.set_aside] == ["answer_too_long"]


def answer_of(example: Example, renderer: Renderer) -> str:
    return renderer.text([i for i, label in zip(example.input_ids, example.labels, strict=True) if label != IGNORE])


def test_spans_are_the_example_cut_where_training_begins_and_ends(renderer: Renderer) -> None:
    conversation = Conversation.model_validate(
        {"messages": [{"role": r, "content": c} for r, c in (("user", "ear"), ("assistant", "red"))] * 2}
    )
    spans = spans_of(renderer.example(conversation, "assistant"), renderer)
    assert [span.trained for span in spans][:4] == [False, True, False, True]
    assert "red" in spans[1].text
    assert "red" in spans[3].text


# ------------------------------------------------------------------ the stage


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, Audit]:
    folder = tmp_path_factory.mktemp("stage")
    rows = [*varied(90), {"text": "", "label": "red", "kind": "5"}]
    path = write_rows(folder / "rows.csv", rows)
    build_tokenizer().save_pretrained(folder / "base")
    run = RunDirectory(folder / "run")
    return run, prepare(recipe_for(path), run, folder / "base", folder / "cache", silent())


def test_the_audit_is_what_was_written(written: tuple[RunDirectory, Audit]) -> None:
    run, audit = written
    assert Audit.model_validate_json((run.data / "audit.json").read_bytes()) == audit
    lines = (run.data / "train.jsonl").read_text().splitlines()
    assert audit.train.examples == len(lines) > 20
    assert audit.train.shortest <= audit.train.median <= audit.train.percentile_95 <= audit.train.longest
    assert 0 < audit.train.trained_tokens < audit.train.tokens
    assert sum(audit.set_aside_by_reason.values()) == 1
    assert audit.labels
    assert set(audit.labels) == {"red", "blue"}
    assert len(audit.mask_preview) == 5
    assert all(any(span.trained for span in spans) for spans in audit.mask_preview)


def test_rows_on_both_sides_are_found(tmp_path: Path) -> None:
    rows = [{"text": f"fever {i % 30}", "label": "red", "kind": str(i)} for i in range(60)]
    path = write_rows(tmp_path / "rows.csv", rows)
    build_tokenizer().save_pretrained(tmp_path / "base")
    audit = prepare(recipe_for(path), RunDirectory(tmp_path / "run"), tmp_path / "base", tmp_path, silent())
    assert audit.duplicates
    assert {found.held_out for found in audit.duplicates} <= held_out_ids(tmp_path)


def held_out_ids(folder: Path) -> set[str]:
    lines = (folder / "run" / "data" / "held_out.jsonl").read_text().splitlines()
    return {json.loads(line)["id"] for line in lines}


def test_the_task_of_a_classification_is_a_choice(tmp_path: Path, renderer: Renderer) -> None:
    path = write_rows(tmp_path / "rows.csv", varied(60))
    task = build_task(recipe_for(path), prepared_from(path, renderer), renderer)
    assert (task.kind, task.options) == ("choose", ("blue", "red"))
    assert task.max_new_tokens >= 3
