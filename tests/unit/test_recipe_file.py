"""Loading a recipe: values, names, overrides, and what every kind of mistake is answered with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import JsonValue
from smallest_recipe import SMALLEST, write_smallest

from finetune.errors import Problem, RecipeError
from finetune.recipe_file import LoadedRecipe, find_recipe, load_recipe, shipped_recipes
from finetune.recipe_yaml import MAX_BYTES, parse_plain_scalar

SHIPPED = (
    "bank-intents",
    "icd10-lora",
    "icd10-quickstart",
    "legal-plain-english",
    "legal-topics-zh",
    "llama3.1-8b-qlora-chat",
    "llama3.2-1b-lora-chat",
    "medical-qa",
    "medical-qa-small",
    "plain-english-small",
    "research-answers",
)
DAMAGED = ("legal-plain-english", "icd10-quickstart", "llama3.1-8b-qlora-chat", "medical-qa")
"""Between them they have every section."""


@pytest.fixture
def smallest(tmp_path: Path) -> Path:
    return write_smallest(tmp_path)


def problems(path_or_name: str, *overrides: str) -> tuple[Problem, ...]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path_or_name, overrides)
    return caught.value.problems


def test_the_list_of_shipped_recipes_is_complete() -> None:
    assert shipped_recipes() == SHIPPED
    folder = Path(__file__).parents[2] / "recipes"
    assert {path.stem for path in folder.iterdir() if path.is_file()} == {*SHIPPED, "__init__"}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_loads_under_its_own_name(name: str) -> None:
    loaded = load_recipe(name)
    assert loaded.recipe.name == name
    assert loaded.file.name == f"{name}.yaml"
    assert loaded.recipe.description
    assert loaded.file.read_text(encoding="utf-8") == loaded.text


def test_keeps_the_text_the_overrides_and_the_document(smallest: Path) -> None:
    loaded = load_recipe(str(smallest), ["seed=3", "training.epochs=2"])
    assert loaded.text == SMALLEST
    assert loaded.overrides == ("seed=3", "training.epochs=2")
    assert loaded.document["seed"] == 3
    assert loaded.document["training"] == {"epochs": 2}
    assert "merge" not in loaded.document
    assert (loaded.recipe.seed, loaded.recipe.training.epochs) == (3, 2)


def test_reads_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "windows.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + SMALLEST.replace("\n", "\r\n").encode())
    assert load_recipe(str(file)).recipe.name == "smallest"


def test_imports_nothing_heavy() -> None:
    code = "import sys, finetune.recipe_file as f; f.load_recipe('icd10-quickstart'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {
        "torch",
        "transformers",
        "peft",
        "trl",
        "datasets",
        "numpy",
        "scipy",
        "sklearn",
        "rich",
    }
    assert not heavy & {module.partition(".")[0] for module in done.stdout.split()}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("icd10-quikstart", "did you mean 'icd10-quickstart'? shipped: bank-intents, icd10-lora, "),
        ("zzz", "shipped: bank-intents, icd10-lora, icd10-quickstart, "),
        ("", "shipped: "),
    ],
)
def test_unknown_names_are_answered_with_the_list(name: str, hint: str) -> None:
    with pytest.raises(RecipeError, match="no shipped recipe") as caught:
        find_recipe(name)
    assert caught.value.problems[0].hint.startswith(hint)


def test_files_that_cannot_be_read(smallest: Path, tmp_path: Path) -> None:
    assert "did you mean 'smallest.yaml'?" in str(problems(str(tmp_path / "smalest.yaml"))[0])
    assert "no such file" in str(problems(str(tmp_path / "no" / "folder.yaml"))[0])
    assert "is not a file" in str(problems(f"{tmp_path}/")[0])
    assert "cannot be read" in str(problems("a/" + "b" * 5000)[0])
    smallest.write_text("#" * (MAX_BYTES + 1), encoding="utf-8")
    assert "larger than 1 MB" in str(problems(str(smallest))[0])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("True", "True"),
        ("yes", "yes"),
        ("off", "off"),
        ("~", None),
        ("null", None),
        ("Null", "Null"),
        ("", None),
        ("2e-4", 2e-4),
        ("2.0e-4", 2e-4),
        (".5", 0.5),
        ("1.", 1.0),
        ("-7", -7),
        ("010", 10),
        ("0o10", "0o10"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2026-04-01", "2026-04-01"),
        ("1.0.0", "1.0.0"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_plain_scalar(text)
    assert (type(parsed), parsed) == (type(value), value)


@pytest.mark.parametrize("text", [".inf", "-.INF", ".nan", ".NaN", "1e999", "9" * 31])
def test_numbers_that_no_json_holds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"number|digits"):
        parse_plain_scalar(text)


OVERRIDES: tuple[tuple[str, Callable[[LoadedRecipe], object], object], ...] = (
    ("seed=7", lambda r: r.recipe.seed, 7),
    ("base.model=a=b/c", lambda r: r.recipe.base.model, "a=b/c"),
    ("base.revision=null", lambda r: r.recipe.base.revision, None),
    ("data.train.0.source=x.csv", lambda r: r.recipe.data.train[0].source, "x.csv"),
    ("data.train.0.columns.output=answer", lambda r: r.recipe.data.train[0].columns, {"output": "answer"}),
    ("data.train=[{source: a.csv, rows: text}]", lambda r: r.recipe.data.train[0].rows, "text"),
    ("adapter.targets=[q_proj, v_proj]", lambda r: r.recipe.adapter.targets, ("q_proj", "v_proj")),
    ("merge.dtype=float32", lambda r: r.recipe.merge.dtype, "float32"),
    ("data.validation={fraction: 0.1, by: id}", lambda r: r.recipe.data.validation is not None, True),
    ("training.learning_rate=1e-4", lambda r: r.recipe.training.learning_rate, 1e-4),
    ("description=", lambda r: r.recipe.description, ""),
    ('description="yes: it is"', lambda r: r.recipe.description, "yes: it is"),
    (" seed =3", lambda r: r.recipe.seed, 3),
)


@pytest.mark.parametrize(("override", "read", "expected"), OVERRIDES)
def test_set_edits_the_document(
    smallest: Path, override: str, read: Callable[[LoadedRecipe], object], expected: object
) -> None:
    assert read(load_recipe(str(smallest), [override])) == expected


def test_null_takes_a_section_out() -> None:
    loaded = load_recipe("icd10-quickstart", ["quantization=null"])
    assert loaded.recipe.quantization is None
    assert "quantization" not in loaded.document


def test_the_last_of_two_overrides_wins(smallest: Path) -> None:
    assert load_recipe(str(smallest), ["seed=1", "seed=2"]).recipe.seed == 2


@pytest.mark.parametrize(
    ("override", "place", "says"),
    [
        ("seed", "--set seed", "is not a key with a value"),
        ("=3", "--set ", "is not a key with a value"),
        ("sed=3", "--set sed", "sed: unknown key (did you mean 'seed'?)"),
        ("trainin.epochs=3", "--set trainin.epochs", "trainin: unknown key (did you mean 'training'?)"),
        ("training.epoch=3", "--set training.epoch", "training.epoch: unknown key (did you mean 'epochs'?)"),
        (
            "training.epoch=null",
            "--set training.epoch",
            "training.epoch: unknown key (did you mean 'epochs'?)",
        ),
        ("epochs=3", "--set epochs", "epochs: unknown key (`epochs` belongs in `training`)"),
        ("training.seed=3", "--set training.seed", "it belongs at the top level"),
        ("seed.x=3", "--set seed.x", "seed: is a single value: it has no keys"),
        ("data.train.1.rows=x", "--set data.train.1.rows", "data.train: has no item 1 (items 0 to 0)"),
        ("data.train.rows=x", "--set data.train.rows", "data.train: has no item rows"),
        ("data.train.0=null", "--set data.train.0", "a list item cannot be taken out"),
        (
            "evaluation.tasks.0=x",
            "--set evaluation.tasks.0",
            "write the whole list: --set evaluation.tasks=[…]",
        ),
        ("seed=[", "--set seed", "not YAML"),
        ("seed=x", "--set seed", 'seed: "x" is text (write a whole number of at least 0'),
        ("seed=!!int 3", "--set seed", "seed: the YAML tag !!int is not accepted"),
        ("training={epochs: &a 3}", "--set training", "training.epochs: the anchor &a is not accepted"),
        (
            "quantization.double_quant=false",
            "--set quantization.double_quant",
            "quantization.kind: is missing",
        ),
    ],
)
def test_overrides_that_lead_nowhere(smallest: Path, override: str, place: str, says: str) -> None:
    found = problems(str(smallest), override)
    assert len(found) == 1
    assert found[0].where == place
    assert says in str(found[0])


def test_problems_of_the_file_come_first_in_its_order(smallest: Path) -> None:
    smallest.write_text(SMALLEST.replace("alpaca", "3").replace("version: 1", "version: 2"), encoding="utf-8")
    found = problems(str(smallest), "sed=1", "base.dtype=x")
    assert [problem.where for problem in found] == [
        f"{smallest}:1",
        f"{smallest}:7",
        "--set base.dtype",
        "--set sed",
    ]


@pytest.mark.parametrize("override", ["base.revision=hf_abcdefghijklmnopqrstuv", "hf_abcdefghijklmnopqrstuv=1"])
def test_secrets_in_overrides_are_refused_and_not_repeated(smallest: Path, override: str) -> None:
    found = problems(str(smallest), override)
    assert any(problem.what == "this looks like a secret" for problem in found)
    assert "abcdefgh" not in str(RecipeError(found))


def test_rule_problems_carry_the_line_of_their_key(smallest: Path) -> None:
    smallest.write_text(SMALLEST + "training:\n  epochs: 1\n  validations: 3\n", encoding="utf-8")
    (problem,) = problems(str(smallest))
    assert problem.where == f"{smallest}:11"


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("training.learning_rate", '"2e-4"', "write 2.0e-4"),
        ("training.epochs", "'3'", "write 3"),
        ("training.gradient_checkpointing", "yes", "write true"),
        ("training.gradient_checkpointing", "No", "write false"),
        ("training.gradient_checkpointing", "maybe", "write true or false"),
        ("training.gradient_checkpointing", "1", "write true or false"),
        ("training.epochs", "ten", "write a whole number of at least 1"),
        ("training.epochs", ".", "write a whole number of at least 1"),
        ("training.weight_decay", '".inf"', "write a number of at least 0"),
        ("training.weight_decay", "true", "write a number of at least 0"),
        ("training.learning_rate", "0", "write a number above 0 and at most 1"),
        ("adapter.targets", "q_proj", "write [q_proj]"),
        (
            "adapter.targets",
            "[]",
            "write all-linear or a list of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, ",
        ),
        (
            "adapter.targets",
            "[[q_proj]]",
            "write one of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
        ),
        ("evaluation.tasks", "held_out", "write a list: [held_out]"),
        ("data.train", "rows.jsonl", "write a list, each item after `- `"),
        ("data.train.0.columns", "[]", "write names and texts"),
        ("data.train.0.limit", '" 1_500 "', "write 1500"),
        ("base.dtype", "bf16", "did you mean 'bfloat16'?"),
        ("base.dtype", "16", "write one of auto, bfloat16, float16, float32"),
        ("base.model", "{a: b}", "write a text"),
        ("name", "2026", 'write "2026"'),
    ],
)
def test_wrong_values_are_answered_with_right_ones(smallest: Path, key: str, value: str, hint: str) -> None:
    (problem,) = problems(str(smallest), f"{key}={value}")
    assert problem.hint.startswith(hint)


# Each key of each shipped recipe is damaged in each of the ways below. To know the lines, the recipe is first
# written out with one key to a line.

Path_ = tuple[str | int, ...]
Line = tuple[Path_, str]


def written_out(value: JsonValue, path: Path_ = (), indent: int = 0) -> list[Line]:
    """One line for each key and list item, with its path."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    lines: list[Line] = []
    for key, child in entries:
        at = (*path, key)
        head = " " * indent + (f"{key}:" if isinstance(key, str) else "-")
        if isinstance(child, (dict, list)):
            lines += [(at, head), *written_out(child, at, indent + 2)]
        else:
            lines.append((at, f"{head} {_scalar(child)}"))
    return lines


def _scalar(value: JsonValue) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def block_length(lines: list[Line], position: int) -> int:
    path = lines[position][0]
    return sum(at[: len(path)] == path for at, _ in lines)


def without_letter(key: str, position: int) -> str:
    return key[:position] + key[position + 1 :]


def misspellings(key: str) -> set[str]:
    middle = len(key) // 2
    lost = {without_letter(key, position) for position in (0, middle, len(key) - 1)}
    swapped = {key[:i] + key[i + 1] + key[i] + key[i + 2 :] for i in range(len(key) - 1)}
    return {*lost, *swapped, f"{key}x"} - {key}


@pytest.mark.parametrize("name", DAMAGED)
def test_every_damage_to_every_key_is_found_at_its_line(name: str, tmp_path: Path) -> None:
    lines = written_out(dict(load_recipe(name).document))
    file = tmp_path / f"{name}.yaml"
    damages = 0

    def found_after(changed: list[str]) -> tuple[Problem, ...]:
        file.write_text("\n".join(changed) + "\n", encoding="utf-8")
        return problems(str(file))

    texts = [text for _, text in lines]
    file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    assert load_recipe(str(file)).recipe == load_recipe(name).recipe
    for position, (path, text) in enumerate(lines):
        key = path[-1]
        if isinstance(key, int):
            continue
        before, after = texts[:position], texts[position + 1 :]
        where = f"{file}:{position + 1}"
        for misspelt in misspellings(key):
            found = found_after([*before, text.replace(f"{key}:", f"{misspelt}:", 1), *after])
            at_line = [problem for problem in found if problem.where == where]
            assert any(f"{misspelt}: unknown key" in p.what and key in p.hint for p in at_line), found
            damages += 1
        length = block_length(lines, position)
        rest = texts[position + length :]
        head = text[: text.index(":") + 1]
        for wrong in ("[[[]]]", "{zzz: 1}"):
            found = found_after([*before, f"{head} {wrong}", *rest])
            assert any(p.where == where and p.hint for p in found), found
            damages += 1
        found = found_after(
            [*before, *texts[position : position + length], *texts[position : position + length], *rest]
        )
        second = position + length + 1
        what = f"written twice, on line {position + 1} and on line {second}"
        assert any(p.where == f"{file}:{second}" and what in p.what and p.hint for p in found), found
        damages += 1
    assert damages > 200


@pytest.mark.parametrize("name", SHIPPED)
def test_every_key_in_the_wrong_section_is_sent_home(name: str, tmp_path: Path) -> None:
    lines = written_out(dict(load_recipe(name).document))
    file = tmp_path / f"{name}.yaml"
    for path, text in lines:
        key = path[-1]
        if len(path) != 2 or ": " not in text or key in ("kind", "limit"):
            continue
        if [at[0] for at, _ in lines if len(at) == 2].count(path[0]) == 1:
            continue  # without it, its section is empty, which is what the recipe is refused for
        texts = [line for at, line in lines if at != path]
        file.write_text("\n".join([*texts, text.strip()]) + "\n", encoding="utf-8")
        (problem,) = (p for p in problems(str(file)) if p.where == f"{file}:{len(lines)}")
        assert str(path[0]) in problem.hint
