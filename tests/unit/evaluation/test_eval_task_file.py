from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.errors import DataError, TaskError
from evaluation.task_file import list_bundled_tasks, load_task, parse_task

CHOOSE = 'version: 1\nname: quiz\nkind: choose\nsamples: quiz.jsonl\noptions: ["yes", "no"]\n'
GENERATE = "version: 1\nname: quiz\nkind: generate\nsamples: quiz.jsonl\n"


def row(name: str, reference: str = "yes", **more: object) -> dict[str, object]:
    prompt = {"messages": [{"role": "user", "content": f"Is it {name}?"}]}
    return {"id": name, "prompt": prompt, "reference": reference, **more}


def write_task(folder: Path, text: str, rows: list[object]) -> str:
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    (folder / "quiz.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "quiz.yaml").write_text(text, encoding="utf-8")
    return str(folder / "quiz.yaml")


@pytest.mark.parametrize("name", list_bundled_tasks())
def test_bundled_task_is_named_like_its_file(name: str) -> None:
    loaded = load_task(name)
    assert loaded.task.name == name
    assert len(loaded.samples) == 40
    assert loaded.task.description


def test_bundled_statements_are_balanced() -> None:
    references = [sample.reference for sample in load_task("plain_statements").samples]
    assert references.count("true") == references.count("false") == 20


def test_unknown_bundled_task_names_the_nearest() -> None:
    with pytest.raises(TaskError, match="did you mean 'plain_facts'"):
        load_task("plain_fact")


def test_task_with_samples_is_loaded(tmp_path: Path) -> None:
    loaded = load_task(write_task(tmp_path, CHOOSE, [row("a"), row("b", "no", group="g")]))
    assert [sample.id for sample in loaded.samples] == ["a", "b"]
    assert loaded.task.options == ("yes", "no")
    assert loaded.file == tmp_path / "quiz.yaml"


def test_limits_take_the_first_samples_and_change_the_hash(tmp_path: Path) -> None:
    rows: list[object] = [row("a"), row("b"), row("c")]
    path = write_task(tmp_path, CHOOSE + "limit: 2\n", rows)
    assert [sample.id for sample in load_task(path).samples] == ["a", "b"]
    assert [sample.id for sample in load_task(path, limit=1).samples] == ["a"]
    assert len(load_task(path, limit=3).samples) == 2
    assert load_task(path).sha256 != load_task(path, limit=1).sha256


def test_hash_follows_what_is_scored_and_nothing_else(tmp_path: Path) -> None:
    first = load_task(write_task(tmp_path, CHOOSE, [row("a")])).sha256
    assert load_task(write_task(tmp_path, CHOOSE + "description: other\n", [row("a")])).sha256 == first
    assert load_task(write_task(tmp_path, CHOOSE, [row("a", "no")])).sha256 != first
    assert load_task(write_task(tmp_path, CHOOSE + "max_new_tokens: 9\n", [row("a")])).sha256 != first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: [", r"t\.yaml:\d+: not accepted YAML"),
        ("", "a mapping of keys"),
        ("- 1\n", "a mapping of keys"),
        (GENERATE + "kind: choose\n", r"t\.yaml:5: .*'kind' stands twice"),
        (GENERATE + "options: &a [x]\nlimit: *a\n", r"t\.yaml:6: .*aliases"),
        (GENERATE + "option: 1\n", r"t\.yaml:5: `option` is not a key .*did you mean 'options'"),
        (
            GENERATE.replace("generate", "generat"),
            r"t\.yaml:3: `kind` cannot be 'generat'; did you mean 'gen",
        ),
        ("version: 1\nkind: generate\nsamples: a\n", "`name` is missing"),
        (GENERATE + "limit: '3'\n", r"t\.yaml:5: `limit` cannot be '3'"),
        (GENERATE + "limit: 0\n", "greater than or equal to 1"),
        (CHOOSE.replace('"yes"', "yes"), "put it in quotes"),
        (CHOOSE.replace(', "no"', ""), r"t\.yaml:5: .*at least two"),
        (CHOOSE.replace('"no"', '"yes"'), "differ from one another"),
        (CHOOSE.replace('"no"', '" "'), "not be blank"),
        (GENERATE + "options: [a, b]\n", "are for `kind: choose`"),
        (CHOOSE.splitlines()[0] + "\nkind: choose\nname: q\nsamples: s\n", r"t\.yaml:2: .*at least two"),
        (GENERATE + "description: !!binary aGk=\n", "not accepted YAML"),
        (GENERATE + "description: !!python/name:os.system\n", "not accepted YAML"),
        (GENERATE + "description: \x00\n", "not accepted YAML"),
        ("[" * 5000, "not accepted YAML"),
    ],
)
def test_bad_task_is_refused(text: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        parse_task(text, "t.yaml")


def test_every_problem_of_a_task_is_listed() -> None:
    with pytest.raises(TaskError) as caught:
        parse_task(GENERATE + "limits: 1\nmax_new_tokens: 0\n", "t.yaml")
    assert "`limits`" in str(caught.value)
    assert "line 6: `max_new_tokens`" in str(caught.value)


def test_a_date_stays_text() -> None:
    assert parse_task(GENERATE + "description: 2020-01-01\n", "t.yaml").description == "2020-01-01"


@pytest.mark.parametrize("name", ["missing.yaml", "folder.yaml", "latin.yaml"])
def test_unreadable_task_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff")
    with pytest.raises(TaskError, match=name):
        load_task(str(tmp_path / name))


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.jsonl", "a/../../x", "C:\\x", "..\\x", '"a\\0b"'])
def test_samples_may_not_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    path = write_task(tmp_path, GENERATE.replace("quiz.jsonl", name), [row("a")])
    with pytest.raises(TaskError, match="may not lead out"):
        load_task(path)


def test_samples_may_not_be_a_link_out_of_the_folder(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret.jsonl").write_text(json.dumps(row("a")))
    (inner / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(TaskError, match="a link out of the folder"):
        load_task(write_task(inner, GENERATE.replace("quiz.jsonl", "link.jsonl"), []))


def test_missing_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no file of samples"):
        load_task(write_task(tmp_path, GENERATE.replace("quiz.jsonl", "quizz.jsonl"), []))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{not json", "quiz.jsonl:2: Invalid JSON"),
        ("[1]", "quiz.jsonl:2"),
        (row("b", refrence="x"), "quiz.jsonl:2: `refrence` is not a key .*did you mean 'reference'"),
        ({"id": "b", "reference": "yes"}, "quiz.jsonl:2: `prompt`"),
        (row("a"), "quiz.jsonl:2: the id 'a' stands on line 1"),
        (row("b", " "), "the reference is empty"),
        (row("b", "maybe"), "'maybe' is not one of the options; accepted: no, yes"),
        ({**row("b"), "prompt": {"messages": []}}, "the prompt has no messages"),
    ],
)
def test_bad_sample_is_refused_with_its_line(tmp_path: Path, bad: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_task(write_task(tmp_path, CHOOSE, [row("a"), bad]))


def test_all_bad_lines_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"quiz.jsonl:1: .*\(14 lines .*the others: 2, 3, .*11, …\)"):
        load_task(write_task(tmp_path, CHOOSE, ["{"] * 14))


def test_a_task_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no samples"):
        load_task(write_task(tmp_path, CHOOSE, [" "]))


def test_plain_text_may_have_no_prompt(tmp_path: Path) -> None:
    text = GENERATE.replace("generate", "token_loss")
    bare = {"id": "a", "prompt": {"messages": [], "layout": "plain"}, "reference": "Once."}
    assert load_task(write_task(tmp_path, text, [bare])).samples[0].prompt.messages == ()
