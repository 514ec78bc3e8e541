"""From rows to examples: every row is accounted for, groups stay together, limits do not look at the order."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from rich.console import Console
from tiny_model import build_tokenizer

import finetune.prepare
import finetune.prepare_examples
from evaluation.conversation import Conversation
from evaluation.long_texts import joined, split_example
from evaluation.rendering import IGNORE, Example, Renderer
from evaluation.task import Sample
from finetune.audit_records import Audit, ChangedRow, SetAside
from finetune.console import Reporter
from finetune.errors import DataError
from finetune.example_files import example_at, load_examples
from finetune.prepare import prepare
from finetune.prepare_examples import RenderSettings, render_rows
from finetune.prepare_parts import Parts, RowTable, assign
from finetune.prepare_rows import collect_source
from finetune.prepare_sources import group_columns
from finetune.prepare_task import build_task
from finetune.recipe import Recipe
from finetune.row_store import StoredRow
from finetune.run_directory import RunDirectory
from finetune.spans import spans_of

Cell = dict[str, str]


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(build_tokenizer())


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return folder


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
        "audit": {"maximum_set_aside": 1.0, "maximum_truncated": 1.0, "maximum_duplicates": 1.0},
        "leakage": {"maximum_share": 1.0, "maximum_near_share": 1.0},
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


def prepared_in(folder: Path, path: Path, base: Path, **data: object) -> tuple[Audit, RunDirectory]:
    """Run the stage in a folder of its own."""
    run = RunDirectory(folder / "run")
    return prepare(recipe_for(path, **data), run, base, folder / "cache", silent()), run


def set_aside_of(run: RunDirectory) -> list[SetAside]:
    lines = (run.data / "set_aside.jsonl").read_text(encoding="utf-8").splitlines()
    return [SetAside.model_validate_json(line) for line in lines]


def samples_of(path: Path) -> list[Sample]:
    return [Sample.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


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
    on_overlap=st.sampled_from(["refuse", "set_aside"]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_is_accounted_for(
    rows: list[Cell],
    limit: int | None,
    held_out: int | None,
    overflow: str,
    on_overlap: str,
    base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("law")
    path = write_rows(folder / "rows.csv", rows)
    source = {"source": str(path), "rows": "classification", "limit": limit}
    share = {"fraction": 0.3, "by": "kind", "limit": held_out}
    leakage = {"maximum_share": 1.0, "maximum_near_share": 1.0, "on_overlap": on_overlap}
    stated = {"train": (source,), "held_out": share, "overflow": overflow, "max_tokens": 40, "leakage": leakage}
    try:
        audit, run = prepared_in(folder, path, base, **stated)
    except DataError as refused:
        event(f"refused: {refused.what.partition(' for ')[0][:20]}")
        return
    event("accounted for")
    set_aside = set_aside_of(run)
    (found,) = audit.sources
    assert found.rows == len(rows)
    assert found.rows == found.train + found.validation + found.held_out + found.set_aside + found.over_limit
    assert found.over_limit >= 0
    assert limit is None or found.train <= limit
    assert held_out is None or found.held_out <= held_out
    places = [(row.file, row.line) for row in set_aside]
    assert len(places) == len(set(places)) == found.set_aside, "a row is set aside once"
    assert all(row.reason and row.detail for row in set_aside)
    train, held = samples_of(run.data / "train.jsonl"), samples_of(run.data / "held_out.jsonl")
    assert (len(train), len(held)) == (found.train, found.held_out)
    assert not {row.group for row in train} & {row.group for row in held}


@given(order=st.randoms(use_true_random=False), limit=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_limits_and_splits_do_not_look_at_the_order(
    order: object, limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = varied(80)
    shuffled = list(rows)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    folder = tmp_path_factory.mktemp("order")
    keys = [assigned_keys(write_rows(folder / name, given), 3, limit) for name, given in (("a", rows), ("b", shuffled))]
    assert keys[0] == keys[1]


def assigned_keys(path: Path, seed: int, limit: int | None) -> list[set[str]]:
    """Return the keys of the rows of each purpose."""
    path = path.rename(path.with_suffix(".csv"))
    data = recipe_for(path, train=({"source": str(path), "rows": "classification", "limit": limit},)).data
    table = RowTable([collect_source(data.train[0], "kind", None, path.parent, silent())])
    parts = assign(data, table, seed)
    numbers = (parts.train, parts.validation, parts.held_out)
    return [{row.key for row in table.rows(part.tolist())} for part in numbers]


def test_the_seed_draws_other_rows_and_splits_the_same(tmp_path: Path) -> None:
    write_rows(tmp_path / "a", varied(80))
    write_rows(tmp_path / "b", varied(80))
    first, second = assigned_keys(tmp_path / "a", 0, 10), assigned_keys(tmp_path / "b", 1, 10)
    assert first[0] != second[0]
    assert first[1:] == second[1:]


def test_groups_stay_on_one_side(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.csv", varied(80))
    data = recipe_for(path).data
    table = RowTable([collect_source(data.train[0], "kind", None, tmp_path, silent())])
    parts = assign(data, table, 0)
    groups = [{row.group for row in table.rows(p.tolist())} for p in (parts.train, parts.validation, parts.held_out)]
    assert all(groups)
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]


def test_rows_that_differ_in_spelling_alone_stay_on_one_side(tmp_path: Path) -> None:
    rows = [{"text": text, "label": "red", "kind": ""} for i in range(60) for text in (f"ear {i}", f"  EAR, {i}!")]
    path = write_rows(tmp_path / "rows.csv", rows)
    shares = {"held_out": {"fraction": 0.4}, "validation": None}
    data = recipe_for(path, **shares).data
    table = RowTable([collect_source(data.train[0], None, None, tmp_path, silent())])
    parts = assign(data, table, 0)
    sides = [sorted(number // 2 for number in part.tolist()) for part in (parts.train, parts.held_out)]
    assert all(side[::2] == side[1::2] for side in sides)
    assert all(sides)


def test_splits_by_two_columns_are_refused(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path / "rows.csv", validation={"fraction": 0.1, "by": "label"})
    with pytest.raises(DataError, match=r"validation is split by 'label' and held-out rows by 'kind'"):
        group_columns(recipe.data)


def test_a_group_column_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path, base: Path) -> None:
    path = write_rows(tmp_path / "rows.csv", varied(9))
    by = {"fraction": 0.3, "by": "kinds"}
    with pytest.raises(DataError, match="no column 'kinds'") as caught:
        prepared_in(tmp_path, path, base, held_out=by, validation=by)
    assert "kind" in caught.value.hint


def test_a_row_without_a_group_is_set_aside(tmp_path: Path, base: Path) -> None:
    path = write_rows(tmp_path / "rows.csv", [*varied(60), {"text": "ear", "label": "red", "kind": ""}])
    _, run = prepared_in(tmp_path, path, base)
    (row,) = set_aside_of(run)
    assert (row.reason, row.line) == ("no_group", 62)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "there are no rows in it"),
        ([{"text": "", "label": "", "kind": "1"}] * 3, "none of its 3 rows can be used"),
    ],
)
def test_a_source_without_usable_rows_is_refused(tmp_path: Path, rows: list[Cell], expected: str) -> None:
    path = write_rows(tmp_path / "rows.csv", rows)
    with pytest.raises(DataError, match=expected):
        collect_source(recipe_for(path).data.train[0], None, None, tmp_path, silent())


def test_a_split_that_leaves_nothing_is_refused(tmp_path: Path, base: Path) -> None:
    path = write_rows(tmp_path / "rows.csv", [{"text": f"ear {i}", "label": "red", "kind": "1"} for i in range(9)])
    with pytest.raises(DataError, match="no rows are left for"):
        prepared_in(tmp_path, path, base)


def test_held_out_rows_can_have_a_source_of_their_own(tmp_path: Path, base: Path) -> None:
    train = write_rows(tmp_path / "rows.csv", varied(40))
    own = write_rows(tmp_path / "own.csv", [{"text": f"ear {i}", "label": "red", "kind": "a"} for i in range(6)])
    held_out = {"source": str(own), "rows": "classification", "limit": 4}
    audit, run = prepared_in(tmp_path, train, base, held_out=held_out, validation=None)
    assert all(sample.id.startswith(str(own)) for sample in samples_of(run.data / "held_out.jsonl"))
    assert (audit.train.examples, audit.held_out_samples) == (40, 4)
    assert [account.over_limit for account in audit.sources] == [0, 2]


# ------------------------------------------------------------------ examples that are too long

LONG = ["ear", "patient skin " * 20, "fever"]


def stored(texts: list[str], label: str = "red") -> list[StoredRow]:
    """Make rows of a classification."""
    messages = [[{"role": "user", "content": text}, {"role": "assistant", "content": label}] for text in texts]
    lines = [json.dumps({"messages": given}) for given in messages]
    return [StoredRow("long.csv", number, str(number), "", line) for number, line in enumerate(lines, start=2)]


def render(renderer: Renderer, rows: list[StoredRow], overflow: str, most: int = 40) -> list[object]:
    how = RenderSettings("assistant", most, overflow, True, None, 0)  # type: ignore[arg-type]
    return list(render_rows(renderer, how, rows))


def test_long_examples_are_refused_by_name_with_the_length_that_would_do(tmp_path: Path, base: Path) -> None:
    rows = [*varied(60), {"text": LONG[1], "label": "red", "kind": "1"}]
    path = write_rows(tmp_path / "rows.csv", rows)
    with pytest.raises(DataError, match=r"1 rows are longer than data\.max_tokens") as caught:
        prepared_in(tmp_path, path, base)
    assert "rows.csv:62" in str(caught.value)
    needed = int(caught.value.hint.partition("data.max_tokens=")[2].partition(",")[0])
    audit, run = prepared_in(tmp_path, path, base, max_tokens=needed)
    assert audit.sources[0].set_aside == 0
    assert not run.refused.exists(), "what a refusal left is gone when the stage succeeds"


def test_many_long_examples_are_named_in_part(tmp_path: Path, base: Path) -> None:
    rows = [*varied(60), *({"text": f"{LONG[1]} {i}", "label": "red", "kind": str(i)} for i in range(8))]
    with pytest.raises(DataError, match=r"8 rows are longer(.|\n)*and 3 more"):
        prepared_in(tmp_path, write_rows(tmp_path / "rows.csv", rows), base)


def test_a_refusal_keeps_the_account_of_the_rows_and_leaves_data_alone(tmp_path: Path, base: Path) -> None:
    path = write_rows(tmp_path / "rows.csv", varied(60))
    _, run = prepared_in(tmp_path, path, base)
    before = (run.data / "audit.json").read_bytes()
    write_rows(path, [*varied(60), {"text": LONG[1], "label": "red", "kind": "1"}])
    with pytest.raises(DataError):
        prepared_in(tmp_path, path, base)
    assert (run.data / "audit.json").read_bytes() == before
    assert "too_long" in (run.refused / "set_aside.jsonl").read_text()


def test_long_examples_are_dropped_and_counted(renderer: Renderer) -> None:
    outcomes = render(renderer, stored(LONG), "drop")
    assert [outcome.reason for outcome in outcomes] == ["", "too_long", ""]
    assert "40 allowed" in outcomes[1].detail


def test_no_copy_is_learned_of_a_row_that_is_not_used(tmp_path: Path, base: Path) -> None:
    rows = [{"text": f"is it fever number {i} ?", "label": ("red", "blue")[i % 2], "kind": str(i)} for i in range(60)]
    asked = {"overflow": "drop", "augmentation": {"punctuation": 0.99}}
    path = write_rows(tmp_path / "rows.csv", rows)
    audit, _ = prepared_in(tmp_path, path, base, **asked)
    assert audit.copies["punctuation"] > 20
    # At the median length, some rows are too long of which the copy, a mark shorter, is not.
    audit, run = prepared_in(tmp_path, path, base, **asked, max_tokens=audit.train.median)
    aside = {line.line for line in set_aside_of(run) if line.reason == "too_long"}
    assert aside
    assert sum(audit.copies_left_out.values()) > 0
    learned = load_examples(run.data / "train.arrow")
    assert (
        len(learned) == audit.train.examples == len(samples_of(run.data / "train.jsonl")) + audit.copies["punctuation"]
    )
    assert all(int(sample.id.rpartition(":")[2]) not in aside for sample in samples_of(run.data / "train.jsonl"))


@pytest.mark.parametrize("overflow", ["truncate", "split"])
def test_every_row_that_is_shortened_or_split_is_listed(tmp_path: Path, base: Path, overflow: str) -> None:
    rows = [
        *varied(60),
        {"text": LONG[1], "label": "red", "kind": "1"},
        {"text": LONG[1], "label": "blue", "kind": "2"},
    ]
    path = write_rows(tmp_path / "rows.csv", rows)
    asked: dict[str, object] = {"overflow": overflow}
    if overflow == "split":
        rows = [row | {"text": row["text"] * 4} for row in rows]
        asked["train"] = ({"source": str(write_rows(path, rows)), "rows": "text"},)
    audit, run = prepared_in(tmp_path, path, base, **asked)
    listed = [ChangedRow.model_validate_json(line) for line in (run.data / "shortened.jsonl").read_text().splitlines()]
    assert {row.line for row in listed} == {62, 63}
    assert len(listed) == audit.truncated + audit.split == audit.over_max_tokens
    assert all(row.tokens > 64 and (row.examples > 1) == (overflow == "split") for row in listed)


def test_what_was_shortened_is_checked_as_it_is_learned(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Example] = []
    monkeypatch.setattr(
        finetune.prepare_examples, "check_masks", lambda _, rows, __: checked.extend(r[2] for r in rows)
    )
    how = RenderSettings("assistant", 40, "truncate", True, None, 0)
    outcomes = render_rows(renderer, how, stored(LONG))
    assert checked == [outcome.example for outcome in outcomes]


@pytest.mark.parametrize("action", ["report", "replace"])
def test_a_column_that_splits_is_hashed_where_personal_data_is_replaced(
    tmp_path: Path, base: Path, action: str
) -> None:
    rows = [row | {"kind": f"patient{row['kind']}@example.org"} for row in varied(60)]
    recipe = recipe_for(write_rows(tmp_path / "rows.csv", rows))
    recipe = Recipe.model_validate(recipe.model_dump() | {"privacy": {"action": action}})
    run = RunDirectory(tmp_path / "run")
    prepare(recipe, run, base, tmp_path / "cache", silent())
    files = [path for folder in (run.data, tmp_path / "cache") for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "rows.arrow" for path in files)
    found = [path.name for path in files if b"@example.org" in path.read_bytes()]
    assert (found == []) == (action == "replace")


@pytest.mark.parametrize("action", ["report", "replace"])
def test_no_personal_data_is_shown_in_the_audit(tmp_path: Path, base: Path, action: str) -> None:
    rows = [row | {"text": f"fever ear{i}@example.org"} for i, row in enumerate(varied(60))]
    recipe = recipe_for(write_rows(tmp_path / "rows.csv", rows))
    recipe = Recipe.model_validate(recipe.model_dump() | {"privacy": {"action": action}})
    run = RunDirectory(tmp_path / "run")
    audit = prepare(recipe, run, base, tmp_path / "cache", silent())
    assert audit.private["email"] == 60
    assert len(audit.mask_preview) == 5
    assert all("fever" in "".join(span.text for span in spans) for spans in audit.mask_preview)
    assert "example.org" not in (run.data / "audit.json").read_text()


def test_a_row_that_is_lost_is_noticed(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def losing(*arguments: Any) -> Parts:
        parts = assign(*arguments)
        return replace(parts, train=parts.train[1:])

    monkeypatch.setattr(finetune.prepare, "assign", losing)
    with pytest.raises(AssertionError, match="rows of source 0 are accounted for"):
        prepared_in(tmp_path, write_rows(tmp_path / "rows.csv", varied(60)), base)


def test_long_prompts_are_shortened_and_answers_are_whole(renderer: Renderer) -> None:
    short, long, _ = render(renderer, stored(LONG), "truncate")
    assert len(long.example.input_ids) <= 40
    assert answer_of(long.example, renderer) == answer_of(short.example, renderer)
    shortened = Conversation.model_validate_json(long.shortened)
    assert LONG[1].startswith(shortened.messages[0].content)


def test_an_answer_that_is_too_long_is_never_cut(renderer: Renderer) -> None:
    (outcome,) = render(renderer, stored(["ear"], label="skin and eye " * 20), "truncate")
    assert (outcome.example, outcome.reason) == (None, "answer_too_long")


def test_a_chat_is_never_split(renderer: Renderer) -> None:
    assert [outcome.reason for outcome in render(renderer, stored(LONG), "split")] == ["", "too_long", ""]


@given(length=st.integers(1, 60), most=st.integers(2, 20))
def test_a_text_is_split_with_nothing_lost_and_nothing_learned_twice(length: int, most: int) -> None:
    whole = Example(tuple(range(length)), (IGNORE, *range(1, length)))
    pieces = split_example(whole, most)
    assert all(len(piece.input_ids) <= most for piece in pieces)
    assert joined(pieces) == whole
    learned = [label for piece in pieces for label in piece.labels if label != IGNORE]
    assert learned == list(range(1, length))
    assert all(piece.labels[0] == IGNORE for piece in pieces)


def answer_of(example: Example, renderer: Renderer) -> str:
    return renderer.text(
        tuple(i for i, label in zip(example.input_ids, example.labels, strict=True) if label != IGNORE)
    )


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
def written(tmp_path_factory: pytest.TempPathFactory, base: Path) -> tuple[Audit, RunDirectory]:
    folder = tmp_path_factory.mktemp("stage")
    rows = [*varied(90), {"text": "", "label": "red", "kind": "5"}]
    return prepared_in(folder, write_rows(folder / "rows.csv", rows), base)


def test_the_audit_is_what_was_written(written: tuple[Audit, RunDirectory]) -> None:
    audit, run = written
    assert Audit.model_validate_json((run.data / "audit.json").read_bytes()) == audit
    assert audit.train.examples == len(samples_of(run.data / "train.jsonl")) > 20
    examples = load_examples(run.data / "train.arrow")
    lengths = sorted(len(example_at(examples, i).input_ids) for i in range(len(examples)))
    assert (audit.train.shortest, audit.train.longest, audit.train.tokens) == (lengths[0], lengths[-1], sum(lengths))
    assert audit.train.median <= audit.train.percentile_90 <= audit.train.percentile_95 <= audit.train.percentile_99
    assert 0 < audit.train.trained_tokens < audit.train.tokens
    assert sum(audit.set_aside_by_reason.values()) == 1
    assert audit.labels
    assert set(audit.labels) == {"red", "blue"}
    assert audit.turns == {"user": audit.train.examples, "assistant": audit.train.examples}
    assert audit.masks.examples >= audit.train.examples
    assert len(audit.mask_preview) == 5
    assert all(any(span.trained for span in spans) for spans in audit.mask_preview)


def test_rows_on_both_sides_are_found(tmp_path: Path, base: Path) -> None:
    rows = [{"text": f"fever {i % 30}", "label": "red", "kind": str(i)} for i in range(60)]
    audit, run = prepared_in(tmp_path, write_rows(tmp_path / "rows.csv", rows), base)
    assert audit.leaked
    assert {found.sample for found in audit.leaked} <= {s.id for s in samples_of(run.data / "held_out.jsonl")}
    (count,) = audit.leaks
    assert count.exact == len(audit.leaked)


def test_a_refusal_for_leaks_names_the_first_and_keeps_the_audit(tmp_path: Path, base: Path) -> None:
    rows = [{"text": f"fever {i % 30}", "label": "red", "kind": str(i)} for i in range(60)]
    path = write_rows(tmp_path / "rows.csv", rows)
    audit, run = prepared_in(tmp_path, path, base)
    with pytest.raises(DataError, match=r"a limit does not hold(.|\n)*the first of those samples") as caught:
        prepared_in(tmp_path, path, base, leakage={"maximum_near_share": 1.0})
    first, *_ = audit.leaked
    assert f"{first.sample} in {first.train} (exact)" in str(caught.value)
    kept = Audit.model_validate_json((run.refused / "audit.json").read_bytes())
    assert kept.leaked == audit.leaked


def test_the_task_of_a_classification_is_a_choice(written: tuple[Audit, RunDirectory], renderer: Renderer) -> None:
    _, run = written
    samples = samples_of(run.data / "held_out.jsonl")
    task = build_task(recipe_for(Path("rows.csv")), samples, {"red", "blue"}, renderer)
    assert (task.kind, task.options) == ("choose", ("blue", "red"))


def test_training_rows_alone_are_altered(tmp_path: Path, base: Path) -> None:
    path = write_rows(tmp_path / "rows.csv", [{**row, "text": str(row["text"]).upper()} for row in varied(60)])
    validation = {"validation": {"fraction": 0.3, "by": "kind"}}
    plain, _ = prepared_in(tmp_path / "plain", path, base, **validation)
    altered, _ = prepared_in(tmp_path / "altered", path, base, **validation, augmentation={"case": 0.99})
    assert altered.train.examples > plain.train.examples
    assert altered.copies.keys() == {"case"}
    assert (altered.validation, altered.held_out_samples) == (plain.validation, plain.held_out_samples)
