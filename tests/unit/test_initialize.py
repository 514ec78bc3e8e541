"""`finetune init`: what is guessed from files of many shapes, and that the recipe says so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from finetune.errors import DataError, RecipeError
from finetune.initialize import check_text, draft_recipe, init_recipe, recipe_name
from finetune.initialize_choices import choose_fractions
from finetune.initialize_survey import tokens_of
from finetune.initialize_text import SMALL_BASE, Draft, recipe_text, scalar
from finetune.recipe import Recipe
from finetune.recipe_data import HeldOutFraction, HeldOutSource
from finetune.recipe_file import load_recipe
from finetune.splits import split_by_fraction

ROWS = 60
Values = Mapping[str, object]


def sentence(row: int, about: str = "matter") -> str:
    return f"This is what somebody wrote about the {about} number {row * 7919 % 1000} on day {row}."


def spread(row: int, *classes: object) -> object:
    return classes[row % len(classes)]


def turns(row: int, role: str, content: str, user: str, assistant: str) -> list[object]:
    return [{role: user, content: sentence(row)}, {role: assistant, content: sentence(row, "answer")}]


# What a row looks like, and the template and columns that it should be read with.
SHAPES: dict[str, tuple[object, str, dict[str, str]]] = {
    "alpaca": (lambda i: {"instruction": sentence(i), "input": "", "output": sentence(i, "answer")}, "alpaca", {}),
    "prompt and response": (
        lambda i: {"prompt": sentence(i), "response": sentence(i, "answer")},
        "alpaca",
        {"instruction": "prompt", "output": "response"},
    ),
    "classes in alpaca": (
        lambda i: {"instruction": "Which colour?", "input": sentence(i), "output": spread(i, "red", "green")},
        "classification",
        {"text": "input", "label": "output"},
    ),
    "classes in alpaca without input": (
        lambda i: {"instruction": sentence(i), "output": spread(i, "red", "green")},
        "classification",
        {"text": "instruction", "label": "output"},
    ),
    "question and answer": (lambda i: {"question": sentence(i), "answer": sentence(i)}, "question_answering", {}),
    "German question and answer": (
        lambda i: {"Frage": sentence(i), "Antwort": sentence(i)},
        "question_answering",
        {"question": "Frage", "answer": "Antwort"},
    ),
    "French question and answer": (
        lambda i: {"Question": sentence(i), "Réponse": sentence(i)},
        "question_answering",
        {"question": "Question", "answer": "Réponse"},
    ),
    "Spanish question and answer": (
        lambda i: {"pregunta": sentence(i), "respuesta": sentence(i)},
        "question_answering",
        {"question": "pregunta", "answer": "respuesta"},
    ),
    "Chinese question and answer with context": (
        lambda i: {"问题": sentence(i), "答案": sentence(i), "上下文": sentence(i)},
        "question_answering",
        {"question": "问题", "answer": "答案", "context": "上下文"},
    ),
    "words in names": (
        lambda i: {"user_question": sentence(i), "expert-answer": sentence(i)},
        "question_answering",
        {"question": "user_question", "answer": "expert-answer"},
    ),
    "text and label": (lambda i: {"text": sentence(i), "label": spread(i, "a", "b", "c")}, "classification", {}),
    "text and many labels in numbers": (lambda i: {"text": sentence(i), "label": i % 30}, "classification", {}),
    "German text and class": (
        lambda i: {"Nachricht": sentence(i), "Klasse": spread(i, "Konto", "Karte")},
        "classification",
        {"text": "Nachricht", "label": "Klasse"},
    ),
    "Chinese text and label": (
        lambda i: {"文本": sentence(i), "标签": spread(i, "婚姻", "合同")},
        "classification",
        {"text": "文本", "label": "标签"},
    ),
    "classes where names say nothing": (
        lambda i: {"a": sentence(i), "b": spread(i, "yes", "no"), "id": i},
        "classification",
        {"text": "a", "label": "b"},
    ),
    "text and a class without a name": (
        lambda i: {"text": sentence(i), "b": spread(i, "yes", "no")},
        "classification",
        {"label": "b"},
    ),
    "sentiment": (
        lambda i: {"review": sentence(i), "sentiment": spread(i, "positive", "negative")},
        "sentiment",
        {"text": "review"},
    ),
    "stars": (
        lambda i: {"review": sentence(i), "stars": i % 5},
        "sentiment",
        {"text": "review", "sentiment": "stars"},
    ),
    "prompt and completion": (
        lambda i: {"prompt": sentence(i), "completion": sentence(i)},
        "prompt_completion",
        {},
    ),
    "summaries": (
        lambda i: {"article": sentence(i), "highlights": sentence(i)},
        "summarization",
        {"document": "article", "summary": "highlights"},
    ),
    "languages": (lambda i: {"de": sentence(i), "en": sentence(i)}, "translation", {"source": "de", "target": "en"}),
    "source and target": (lambda i: {"source": sentence(i), "target": sentence(i)}, "translation", {}),
    "entities": (
        lambda i: {"text": sentence(i), "entities": [{"text": "somebody", "label": "WHO"}]},
        "ner",
        {},
    ),
    "code": (
        lambda i: {"task": sentence(i), "code": f"print({i})\n", "language": "Python"},
        "code",
        {"program": "code", "language": "language"},
    ),
    "messages": (lambda i: {"messages": turns(i, "role", "content", "user", "assistant")}, "messages", {}),
    "messages called otherwise": (
        lambda i: {"chat": turns(i, "role", "content", "user", "assistant"), "id": i},
        "messages",
        {"messages": "chat"},
    ),
    "messages under the name of the other form": (
        lambda i: {"conversations": turns(i, "role", "content", "user", "assistant")},
        "messages",
        {"messages": "conversations"},
    ),
    "turns from human and gpt": (
        lambda i: {"conversations": turns(i, "from", "value", "human", "gpt")},
        "sharegpt",
        {},
    ),
    "persona": (
        lambda i: {"persona": ["I am a pilot."], "dialogue": turns(i, "role", "content", "user", "assistant")},
        "persona",
        {},
    ),
    "texts": (lambda i: {"text": sentence(i)}, "text", {}),
    "texts with a source and a date": (
        lambda i: {"content": sentence(i), "url": f"page-{i}", "date": "2020-01-01", "lang": spread(i, "en", "de")},
        "text",
        {"text": "content"},
    ),
}


def write_rows(path: Path, rows: Sequence[Values]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def drafted(path: Path, rows: Sequence[Values], template: str | None = None) -> Draft:
    return draft_recipe(write_rows(path, rows), SMALL_BASE, "rows", template)


def written(path: Path, rows: Sequence[Values], template: str | None = None) -> Recipe:
    out = path.with_name("out.yaml")
    init_recipe(write_rows(path, rows), out, None, None, True, template)
    return load_recipe(str(out)).recipe


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_template_and_columns_are_guessed(shape: tuple[object, str, dict[str, str]], tmp_path: Path) -> None:
    row, template, columns = shape
    assert callable(row)
    draft = drafted(tmp_path / "rows.jsonl", [row(i) for i in range(ROWS)])
    assert draft.rows == template
    assert draft.guess.renamed() == {name: own for name, own in columns.items() if name != own}
    assert draft.test is None
    check_text(recipe_text(draft), tmp_path / "out.yaml")


def test_three_texts_without_telling_names_are_not_guessed(tmp_path: Path) -> None:
    rows = [{"a": sentence(i), "b": sentence(i, "b"), "c": sentence(i, "c")} for i in range(ROWS)]
    with pytest.raises(DataError) as error:
        drafted(tmp_path / "rows.jsonl", rows)
    for part in ("'a'", "'b'", "'c'", "text, 60 different", "alpaca: instruction, [input], output", "--rows"):
        assert part in str(error.value)
    assert error.value.where.endswith("rows.jsonl")


def test_a_named_template_is_taken_instead_of_the_guess(tmp_path: Path) -> None:
    rows = [{"text": sentence(i), "label": spread(i, "good", "bad")} for i in range(ROWS)]
    assert written(tmp_path / "rows.jsonl", rows).data.train[0].rows == "classification"
    source = written(tmp_path / "rows.jsonl", rows, "sentiment").data.train[0]
    assert (source.rows, source.columns) == ("sentiment", {"sentiment": "label"})
    with pytest.raises(DataError, match="no row template fits"):
        drafted(tmp_path / "rows.jsonl", rows, "messages")


def test_a_label_that_never_repeats_is_no_label(tmp_path: Path) -> None:
    rows = [{"text": sentence(i), "label": f"row {i}"} for i in range(ROWS)]
    assert drafted(tmp_path / "rows.jsonl", rows).rows != "classification"


def test_rows_split_by_the_column_of_their_group(tmp_path: Path) -> None:
    rows = [{"question": sentence(i), "answer": sentence(i), "patient_id": i % 25} for i in range(ROWS)]
    data = written(tmp_path / "rows.jsonl", rows).data
    assert isinstance(data.held_out, HeldOutFraction)
    assert data.validation is not None
    assert data.held_out.by == data.validation.by == "patient_id"


@pytest.mark.parametrize(
    "column",
    [
        pytest.param(lambda i: {"patient": f"p{i}"}, id="every value differs"),
        pytest.param(lambda i: {"patient": f"p{i % 3}"}, id="few values"),
        pytest.param(lambda i: {"patient": f"p{i % 25}"} if i % 2 else {}, id="half the rows have none"),
        pytest.param(lambda i: {"colour": f"c{i % 25}"}, id="another name"),
    ],
)
def test_rows_are_not_split_by_what_is_no_group(column: object, tmp_path: Path) -> None:
    assert callable(column)
    rows = [{"question": sentence(i), "answer": sentence(i), **column(i)} for i in range(ROWS)]
    assert drafted(tmp_path / "rows.jsonl", rows).group is None


def test_a_column_called_group_needs_no_repetition(tmp_path: Path) -> None:
    rows = [{"question": sentence(i), "answer": sentence(i), "group": f"g{i}"} for i in range(ROWS)]
    assert drafted(tmp_path / "rows.jsonl", rows).group == "group"


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("law.train.jsonl", "law.test.jsonl"),
        ("train.jsonl", "test.jsonl"),
        ("train-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"),
        ("Training.jsonl", "Test.jsonl"),
        ("my_train.jsonl", "my_dev.jsonl"),
    ],
)
def test_the_test_file_beside_it_is_held_out(train: str, test: str, tmp_path: Path) -> None:
    rows = [{"question": sentence(i), "answer": sentence(i, "answer")} for i in range(ROWS)]
    write_rows(tmp_path / test, rows[:5])
    data = written(tmp_path / train, rows[3:]).data
    assert isinstance(data.held_out, HeldOutSource)
    assert data.held_out.source.endswith(test)
    assert data.held_out.rows == "question_answering"
    text = (tmp_path / "out.yaml").read_text(encoding="utf-8")
    assert "Of the 5 test rows read, 2 prompts and 2 answers stand word for word" in text


@pytest.mark.parametrize("name", ["restrain.jsonl", "cases.jsonl", "test.jsonl"])
def test_other_names_have_no_test_file(name: str, tmp_path: Path) -> None:
    rows = [{"question": sentence(i), "answer": sentence(i)} for i in range(ROWS)]
    for other in ("restest.jsonl", "test.jsonl"):
        write_rows(tmp_path / other, rows)
    assert drafted(tmp_path / name, rows).test is None


def test_a_test_file_of_another_shape_is_not_held_out(tmp_path: Path) -> None:
    rows = [{"question": sentence(i), "answer": sentence(i)} for i in range(ROWS)]
    write_rows(tmp_path / "test.jsonl", [{"question": "Why?"}])
    assert drafted(tmp_path / "train.jsonl", rows).test is None


def test_shared_classes_are_no_leak(tmp_path: Path) -> None:
    rows = [{"text": sentence(i), "label": spread(i, "a class with a long name", "another class")} for i in range(ROWS)]
    write_rows(tmp_path / "test.jsonl", rows[:4])
    test = drafted(tmp_path / "train.jsonl", rows[4:]).test
    assert test is not None
    assert (test.shared_prompts, test.shared_answers) == (0, 0)


def test_long_texts_are_split_and_long_answers_set_aside(tmp_path: Path) -> None:
    long = "word " * 3000
    data = written(tmp_path / "rows.jsonl", [{"text": f"{i} {long}"} for i in range(ROWS)]).data
    assert (data.max_tokens, data.overflow) == (2048, "split")
    rows = [{"question": sentence(i), "answer": long if i == 0 else "Yes."} for i in range(200)]
    data = written(tmp_path / "rows.jsonl", rows).data
    assert (data.max_tokens, data.overflow) == (128, "drop")


def test_a_first_try_on_a_cpu_generates_no_longer_than_answers_are(tmp_path: Path) -> None:
    answers = ["Yes.", "word " * 200, "word " * 3000]
    for answer, tokens in zip(answers, (64, 512, 256), strict=True):
        rows = [{"question": sentence(i), "answer": answer} for i in range(ROWS)]
        recipe = written(tmp_path / "rows.jsonl", rows)
        assert recipe.evaluation.max_new_tokens == min(tokens, 256)
        assert (recipe.base.dtype, recipe.merge.dtype) == ("float32", "float32")
    classes = [{"text": sentence(i), "label": spread(i, "a", "b")} for i in range(ROWS)]
    for rows in (classes, [{"text": sentence(i)} for i in range(ROWS)]):
        assert written(tmp_path / "rows.jsonl", rows).evaluation.max_new_tokens is None


def test_lengths_are_estimated_with_a_margin(tmp_path: Path) -> None:
    rows = [{"question": sentence(i), "answer": "word " * 60} for i in range(ROWS)]
    draft = drafted(tmp_path / "rows.jsonl", rows)
    assert draft.lengths.max_tokens >= 1.5 * max(draft.survey.tokens)


def test_chinese_takes_more_tokens_a_character_than_english() -> None:
    assert tokens_of("这个合同有效吗") >= 1.76 * 7
    assert tokens_of("Is this contract valid?") <= 8
    assert tokens_of("") == 0


def test_fractions_leave_rows_on_every_side() -> None:
    for rows in range(15, 60):
        groups = [f"group {i}" for i in range(rows)]
        found = choose_fractions(groups, own_test_file=False, where="rows")
        assert 0 < found.held_out <= 0.4
    assert choose_fractions(groups, own_test_file=True, where="rows").held_out == 0
    with pytest.raises(DataError, match="2 usable rows with 2 different"):
        choose_fractions(groups[:2], own_test_file=False, where="rows")


def test_a_group_that_would_leave_nothing_to_train_on_is_an_error() -> None:
    inside = split_by_fraction([f"group {i}" for i in range(100)], 0.1, "held_out")
    with pytest.raises(DataError, match="20 usable rows with 1 different questions or groups"):
        choose_fractions([f"group {min(inside)}"] * 20, own_test_file=False, where="rows")


def test_few_rows_have_no_validation_and_no_key_that_needs_it(tmp_path: Path) -> None:
    write_rows(tmp_path / "test.jsonl", [{"question": sentence(1), "answer": sentence(2)}])
    rows = [{"question": sentence(i), "answer": sentence(i)} for i in range(5)]
    assert written(tmp_path / "train.jsonl", rows).data.validation is None


def test_a_recipe_that_is_there_is_kept(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": sentence(i)} for i in range(ROWS)])
    out = tmp_path / "rows.yaml"
    out.write_text("mine")
    with pytest.raises(DataError, match="there is a file already"):
        init_recipe(file, out, None, None, False)
    assert out.read_text() == "mine"
    init_recipe(file, out, None, None, True)
    assert load_recipe(str(out)).recipe.name == "rows"


def test_a_hub_base_has_a_revision_and_a_local_one_none(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": sentence(i)} for i in range(ROWS)])
    out = tmp_path / "out.yaml"
    init_recipe(file, out, "meta-llama/Llama-3.2-1B", None, True)
    recipe = load_recipe(str(out)).recipe
    assert (recipe.base.revision, recipe.training.tokens_per_step) == ("main", 8192)
    init_recipe(file, out, str(tmp_path), None, True)
    assert load_recipe(str(out)).recipe.base.revision is None


def test_a_base_that_recipes_refuse_leaves_no_file(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": sentence(i)} for i in range(ROWS)])
    out = tmp_path / "out.yaml"
    with pytest.raises(RecipeError, match="pickle") as error:
        init_recipe(file, out, "model.bin", None, False)
    assert str(error.value).startswith(str(out))
    assert not out.exists()


def test_what_was_guessed_is_printed_with_the_first_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"Frage": f"Warum {i}? " * 100, "Antwort": "[bold]" + sentence(i)} for i in range(ROWS)]
    rows.append({"Frage": "", "Antwort": "x"})
    written(tmp_path / "Meine Fragen.jsonl", rows)
    said = capsys.readouterr().out
    assert "61 rows, 60 of them usable" in said
    assert 'question ← "Frage": guessed from its name' in said
    assert "1 row cannot be used" in said
    assert "assistant: [bold]This is" in said
    [user] = [line for line in said.splitlines() if line.startswith("  user: ")]
    assert user.endswith(" …")
    assert len(user) < 220
    assert f"finetune run {tmp_path / 'out.yaml'}" in said


def test_unusable_rows_are_an_error_with_the_first_reason(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "narrator", "content": sentence(i)}]} for i in range(ROWS)]
    with pytest.raises(DataError, match="none of 60 rows can be used as messages: 60 × unknown_role"):
        drafted(tmp_path / "rows.jsonl", rows)


@pytest.mark.parametrize("text", ["", "\n\n", "not json\n"])
def test_a_file_without_rows_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match="no rows could be read"):
        draft_recipe(path, SMALL_BASE, "rows", None)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        draft_recipe(tmp_path / "absent.csv", SMALL_BASE, "rows", None)


@pytest.mark.parametrize(
    "name", ["true", "1e3", "010", "a: b", "a #b", '"', "\\", "- a", "{x}", "a\nb", "\u2028", " a ", "é问", "~"]
)
def test_any_column_name_is_written_so_that_it_is_read_back(name: str, tmp_path: Path) -> None:
    rows = [{"text": sentence(i), name: spread(i, "yes", "no")} for i in range(ROWS)]
    assert written(tmp_path / "rows.jsonl", rows).data.train[0].columns == {"label": name}


def test_plain_words_are_written_without_quotes() -> None:
    assert scalar("my_column") == "my_column"
    assert scalar("no") == '"no"'


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Bank Intents.train.csv.gz", "bank-intents"),
        ("train.jsonl", "my-rows"),
        ("train-00000-of-00001.parquet", "my-rows"),
        ("Fälle.tsv", "falle"),
        ("数据.csv", "my-rows"),
    ],
)
def test_runs_are_named_after_the_file(file: str, name: str) -> None:
    assert recipe_name(Path(file)) == name


def test_torch_is_not_imported(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": sentence(i)} for i in range(ROWS)])
    program = (
        "import sys; from finetune.cli import main\n"
        "try: main(['init', 'rows.jsonl'])\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers', 'tokenizers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "rows.yaml").is_file()
