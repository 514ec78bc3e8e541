"""What the cache gives back was made from exactly the same: any one input changed, or a byte damaged, is a miss."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from figures import Figures
from rich.console import Console
from tiny_model import build_tokenizer

import finetune
import finetune.cache
import finetune.prepare_chunks
import finetune.prepare_rows
from finetune.cache import code_hash, examples_entry, rows_entry
from finetune.console import Reporter
from finetune.errors import DataError
from finetune.prepare_chunks import Rendering, chunk_key, load_outcomes, render_chunks, renderer_hash
from finetune.prepare_examples import RenderSettings, load_renderer
from finetune.prepare_rows import Collected, RowSettings, collect_source
from finetune.recipe_data import Augmentation, Paraphrase, Privacy, TrainSource
from finetune.row_store import StoredRow
from finetune.row_template_types import Column, TurnsTemplate

SILENT = Reporter(Console(quiet=True, file=io.StringIO()))
ROWS = "ask,hint,say,topic\n" + "".join(f"Which is {i}?,think,It is {i}.,{i % 3}\n" for i in range(8))
TEMPLATE: dict[str, Any] = {
    "name": "asked",
    "description": "A question and its answer.",
    "kind": "chat",
    "columns": {
        "ask": {"doc": "The question."},
        "hint": {"required": False, "doc": "Help."},
        "say": {"doc": "The answer."},
    },
    "turns": [
        {"role": "user", "content": "{{ ask }} {{ hint }}"},
        {"role": "assistant", "content": "{{ say }}"},
    ],
}
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave it to the system when it writes: no power fails here, and waiting for a busy disk takes seconds."""
    monkeypatch.setattr("evaluation.files._sync", lambda _: None)


# ------------------------------------------------------------------ rows


@dataclass(frozen=True)
class Asked:
    """Everything that the rows of a source depend on."""

    folder: Path
    text: bytes = ROWS.encode()
    file: str = "rows.csv"
    template: dict[str, Any] = dataclasses.field(default_factory=lambda: TEMPLATE)
    template_file: str = "asked.yaml"
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    limit: int | None = None
    weight: float | None = None
    sha256: str | None = None
    group: str | None = None
    privacy: Privacy | None = None

    def collect(self) -> Collected:
        """Read the source through the cache."""
        return collect_source(self.source(), self.group, self.privacy, self.folder / "cache", SILENT)

    def source(self) -> TrainSource:
        """Write the files and name them."""
        (self.folder / self.file).write_bytes(self.text)
        (self.folder / self.template_file).write_text(yaml.safe_dump(self.template), encoding="utf-8")
        return TrainSource(
            source=str(self.folder / self.file),
            rows=str(self.folder / self.template_file),
            columns=self.columns,
            limit=self.limit,
            weight=self.weight,
            sha256=self.sha256,
        )

    def entries(self) -> set[str]:
        """Name the entries of the cache."""
        return {path.name for path in (self.folder / "cache" / "rows").glob("[0-9a-f]*")}

    def misses(self) -> bool:
        """Read the source, and tell whether a new entry was made."""
        before = self.entries()
        self.collect()
        return self.entries() != before


TEMPLATE_CHANGES: dict[str, Change] = {
    "name": lambda t: t.update(name="other"),
    "description": lambda t: t.update(description="Another."),
    "kind": lambda t: t.update(kind="plain"),
    "text_column": lambda t: t.update(text_column="ask"),
    "label_column": lambda t: t.update(label_column="say"),
    "columns.doc": lambda t: t["columns"]["ask"].update(doc="What is asked."),
    "columns.required": lambda t: t["columns"]["hint"].update(required=True),
    "columns.type": lambda t: t["columns"]["ask"].update(type="text_or_integer"),
    "turns: a space": lambda t: t["turns"][0].update(content="{{ ask }}  {{ hint }}"),
    "turns: who speaks": lambda t: t["turns"][0].update(role="system"),
    "turns: when": lambda t: t["turns"][0].update(when="hint"),
    "turns: one more": lambda t: t["turns"].insert(0, {"role": "system", "content": "Answer."}),
    "entities": lambda t: (
        t["columns"]["hint"].update(type="entities"),
        t.update(entities={"of": "ask", "text": ["text"], "label": ["label"]}),
    ),
}
FULL = Privacy(detect=("email",))
PRIVACY_CHANGES = {
    "detect": Privacy(detect=("email", "phone")),
    "action": FULL.model_copy(update={"action": "replace"}),
    "region": FULL.model_copy(update={"region": "DE"}),
    "secrets": FULL.model_copy(update={"secrets": "set_aside"}),
}


def changed_template(change: Change) -> dict[str, Any]:
    template = json.loads(json.dumps(TEMPLATE))
    change(template)
    assert template != TEMPLATE
    return template


def with_byte(text: bytes, place: int) -> bytes:
    """Change one letter or digit."""
    return text[:place] + (b"x" if text[place : place + 1] != b"x" else b"y") + text[place + 1 :]


def test_one_input_changed_reads_the_rows_again(
    figures: Figures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(tmp_path, privacy=FULL)
    asked.collect()
    order = random.Random(0)
    start = ROWS.index("\n") + 1
    places = [i for i in range(start, len(ROWS)) if ROWS[i].isalnum()]
    changes = {
        **{f"byte {i}": replace(asked, text=with_byte(asked.text, i)) for i in order.sample(places, 12)},
        "a blank line at the end": replace(asked, text=asked.text + b"\n"),
        "the file's name": replace(asked, file="other.csv"),
        "the mapping of columns": replace(asked, columns={"say": "topic"}),
        "the column of groups": replace(asked, group="topic"),
        "no privacy": replace(asked, privacy=None),
        **{f"privacy.{name}": replace(asked, privacy=value) for name, value in PRIVACY_CHANGES.items()},
        **{f"template: {n}": replace(asked, template=changed_template(c)) for n, c in TEMPLATE_CHANGES.items()},
    }
    failures = [name for name, change in changes.items() if not _misses_or_refuses(change)]
    monkeypatch.setattr(finetune.prepare_rows, "code_hash", lambda: "other code")
    failures += ["code"] * (not asked.misses())
    figures.report("Cache", "rows: one input changed is read again", len(changes) + 1, "inputs", len(failures))
    assert failures == []


def _misses_or_refuses(asked: Asked) -> bool:
    """Tell whether it is a miss, also where the rows made so cannot all be used."""
    before = asked.entries()
    with suppress(DataError):
        asked.collect()
    return asked.entries() != before


def test_the_same_rows_are_not_read_again(figures: Figures, tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    first = asked.collect()
    (tmp_path / "elsewhere").mkdir()
    same = {
        "nothing": asked,
        "the limit": replace(asked, limit=3),
        "the weight": replace(asked, weight=2.0),
        "the hash that is expected": replace(asked, sha256=first.sha256),
        "the place of the template's file": replace(asked, template_file="elsewhere/again.yaml"),
        "the order of the template's keys": replace(asked, template=dict(reversed(TEMPLATE.items()))),
    }
    failures = [name for name, change in same.items() if change.misses()]
    figures.report("Cache", "rows: what decides nothing changed is a hit", len(same), "inputs", len(failures))
    assert failures == []


def test_no_setting_of_a_source_is_forgotten() -> None:
    decides = {"source", "builder", "rows", "columns"}
    by_hash = {"sha256", "revision", "split"}  # they decide which bytes the source has, and these are hashed
    later = {"limit", "weight"}  # they choose among the rows
    assert set(TrainSource.model_fields) == decides | by_hash | later
    assert set(Privacy.model_fields) == set(PRIVACY_CHANGES)
    assert set(TurnsTemplate.model_fields) == {name.split(":")[0].split(".")[0] for name in TEMPLATE_CHANGES}
    assert {f"columns.{name}" for name in Column.model_fields} <= set(TEMPLATE_CHANGES)
    assert {field.name for field in dataclasses.fields(RowSettings)} == {
        "template",
        "columns",
        "group_column",
        "privacy",
    }


def test_the_builder_of_a_source_counts(tmp_path: Path) -> None:
    source = Asked(tmp_path).source()
    settings = RowSettings(Asked(tmp_path).collect().template, {}, None, None)
    built = source.model_copy(update={"builder": "icd10-chapters"})
    assert settings.fingerprint(source, "0") != settings.fingerprint(built, "0")


# ------------------------------------------------------------------ the code


def test_other_code_or_another_library_is_another_key(
    figures: Figures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_it_is = code_hash.__wrapped__()
    assert code_hash.__wrapped__() == as_it_is
    copy = tmp_path / "finetune"
    shutil.copytree(Path(str(finetune.__file__)).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(finetune, "__file__", str(copy / "__init__.py"))
    assert code_hash.__wrapped__() == as_it_is
    failures = []
    for name in ("rows.py", "row_templates.py", "prepare_examples.py"):
        text = (copy / name).read_bytes()
        (copy / name).write_bytes(text + b"#")
        failures += [name] * (code_hash.__wrapped__() == as_it_is)
        (copy / name).write_bytes(text)
    versions = {name: finetune.cache._version(name) for name in finetune.cache.LIBRARIES}
    for name in versions:
        monkeypatch.setattr(finetune.cache, "version", functools.partial(dict.get, versions | {name: "9"}))
        failures += [name] * (code_hash.__wrapped__() == as_it_is)
    cases = 3 + len(versions)
    figures.report("Cache", "other code or another library's version is a miss", cases, "inputs", len(failures))
    assert failures == []


# ------------------------------------------------------------------ examples

AUGMENTED = Augmentation(
    case=0.5, punctuation=0.5, paraphrase=0.5, paraphrases=(Paraphrase(text="a", alternatives=("b",)),)
)
SETTINGS = RenderSettings("assistant", 64, "drop", check_masks=False, augmentation=None, seed=0)
SETTING_CHANGES = {
    "train_on": replace(SETTINGS, train_on="final_assistant"),
    "max_tokens": replace(SETTINGS, max_tokens=63),
    "overflow": replace(SETTINGS, overflow="truncate"),
    "check_masks": replace(SETTINGS, check_masks=True),
    "augmentation": replace(SETTINGS, augmentation=AUGMENTED),
}
AUGMENTATION_CHANGES = {
    "case": {"case": 0.4},
    "punctuation": {"punctuation": 0.4},
    "paraphrase": {"paraphrase": 0.4},
    "paraphrases": {"paraphrases": (Paraphrase(text="a", alternatives=("c",)),)},
}


def stored(count: int = 6) -> list[StoredRow]:
    def conversation(i: int) -> str:
        turns = [{"role": "user", "content": f"Which is {i}?"}, {"role": "assistant", "content": f"It is {i}."}]
        return json.dumps({"messages": turns})

    return [StoredRow("rows.csv", i + 1, f"key {i}", f"group {i}", conversation(i)) for i in range(count)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "base"
    build_tokenizer().save_pretrained(folder)
    return folder


def rendering(folder: Path, cache: Path, settings: RenderSettings = SETTINGS) -> Rendering:
    return Rendering(folder, settings, renderer_hash(load_renderer(folder)), cache)


def is_hit(how: Rendering, rows: list[StoredRow]) -> bool:
    """Render one chunk and tell whether it was in the cache."""
    (chunk,) = render_chunks(how, rows, lambda _: None)
    return chunk.from_cache


def changed_rows(order: random.Random, count: int) -> dict[str, list[StoredRow]]:
    rows = stored()
    found = {"two rows changed places": [rows[1], rows[0], *rows[2:]], "a row less": rows[:-1]}
    for _ in range(count):
        number = order.randrange(len(rows))
        text = rows[number].conversation
        place = order.choice([i for i in range(text.index("Which"), len(text)) if text[i].isdigit() or text[i] in "?."])
        other = replace(rows[number], conversation=text[:place] + "7x"[text[place] == "7"] + text[place + 1 :])
        found[f"character {place} of row {number}"] = [*rows[:number], other, *rows[number + 1 :]]
    return found


TOKENIZER_CHANGES: dict[str, Change] = {
    "two words of the vocabulary": lambda t: t["model"]["vocab"].update(
        {"a": t["model"]["vocab"]["b"], "b": t["model"]["vocab"]["a"]}
    ),
    "a merge less": lambda t: t["model"]["merges"].pop(),
    "a control token that is none": lambda t: t["added_tokens"][3].update(special=False),
    "a control token that takes a space": lambda t: t["added_tokens"][1].update(rstrip=True),
    "the normalizer": lambda t: t.update(normalizer={"type": "Lowercase"}),
    "the space before a text": lambda t: t["pre_tokenizer"].update(add_prefix_space=True),
    "what is put around a text": lambda t: t.update(
        post_processor={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    ),
}
CONFIGURATION_CHANGES: dict[str, Change] = {
    "the end of sequence": lambda c: c.update(eos_token="<|pad|>"),
    "the beginning of sequence": lambda c: c.update(bos_token="<|endoftext|>"),
    "one more control token": lambda c: c.update(extra_special_tokens=["<|more|>"]),
}


def changed_bases(base: Path, folder: Path) -> dict[str, Path]:
    found = {}
    for file, changes in (("tokenizer.json", TOKENIZER_CHANGES), ("tokenizer_config.json", CONFIGURATION_CHANGES)):
        for name, change in changes.items():
            found[name] = shutil.copytree(base, folder / name)
            document = json.loads((base / file).read_text(encoding="utf-8"))
            change(document)
            (found[name] / file).write_text(json.dumps(document), encoding="utf-8")
    found["the chat template"] = shutil.copytree(base, folder / "template")
    template = found["the chat template"] / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8").replace("'\n'", "' '", 1), encoding="utf-8")
    return found


def test_one_input_changed_renders_again(
    figures: Figures, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, cache = stored(), tmp_path / "cache"
    plain = rendering(base, cache)
    assert not is_hit(plain, rows)
    assert is_hit(plain, rows)
    others = changed_rows(random.Random(1), figures.amount(10, 100))
    hits = {name: is_hit(plain, other) for name, other in others.items()}
    hits |= {name: is_hit(rendering(base, cache, other), rows) for name, other in SETTING_CHANGES.items()}
    for name, update in AUGMENTATION_CHANGES.items():
        other = replace(SETTINGS, augmentation=AUGMENTED.model_copy(update=update))
        hits[f"augmentation.{name}"] = is_hit(rendering(base, cache, other), rows)
    augmented = rendering(base, cache, replace(SETTINGS, augmentation=AUGMENTED))
    hits["the seed of copies"] = is_hit(replace(augmented, settings=replace(augmented.settings, seed=1)), rows)
    hits["what copies are drawn by"] = is_hit(augmented, [replace(rows[0], key="other"), *rows[1:]])
    hits |= {name: is_hit(rendering(other, cache), rows) for name, other in changed_bases(base, tmp_path).items()}
    monkeypatch.setattr(finetune.prepare_chunks, "code_hash", lambda: "other code")
    hits["code"] = is_hit(plain, rows)
    failures = [name for name, hit in hits.items() if hit]
    figures.report("Cache", "examples: one input changed is rendered again", len(hits), "inputs", len(failures))
    assert failures == []


def test_the_same_is_not_rendered_again(figures: Figures, tmp_path: Path, base: Path) -> None:
    rows, cache = stored(), tmp_path / "cache"
    is_hit(rendering(base, cache), rows)
    moved = shutil.copytree(base, tmp_path / "moved")
    hits = {
        "nothing": is_hit(rendering(base, cache), rows),
        "the base's folder": is_hit(rendering(moved, cache), rows),
        "the seed, without copies": is_hit(rendering(base, cache, replace(SETTINGS, seed=1)), rows),
        "places, keys and groups, without copies": is_hit(
            rendering(base, cache), [replace(row, file="b", line=9, key="k", group="g") for row in rows]
        ),
    }
    failures = [name for name, hit in hits.items() if not hit]
    figures.report("Cache", "examples: what decides nothing changed is a hit", len(hits), "inputs", len(failures))
    assert failures == []


def test_no_setting_of_rendering_is_forgotten() -> None:
    assert {field.name for field in dataclasses.fields(RenderSettings)} == {*SETTING_CHANGES, "seed"}
    assert set(Augmentation.model_fields) == set(AUGMENTATION_CHANGES)


# ------------------------------------------------------------------ damage

DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "a byte flipped": lambda text, order: _flipped(text, order.randrange(len(text)), 1 << order.randrange(8)),
    "cut off": lambda text, order: text[: order.randrange(len(text))],
    "emptied": lambda text, order: b"",
    "longer": lambda text, order: text + b"\0",
}


def _flipped(text: bytes, place: int, bit: int) -> bytes:
    return text[:place] + bytes([text[place] ^ bit]) + text[place + 1 :]


def survives(files: list[Path], read: Callable[[], object], order: random.Random, times: int) -> tuple[int, list[str]]:
    """Damage one file at a time in each way and read again: it must be made anew, to the byte."""
    whole = {path: path.read_bytes() for path in files}
    as_it_was = read()
    failures, cases = [], 0
    for path in files:
        for name, damage in [*DAMAGES.items(), *[("a byte flipped", DAMAGES["a byte flipped"])] * times]:
            path.write_bytes(damage(whole[path], order))
            failures += [f"{path.name}: {name}"] * (read() != as_it_was or path.read_bytes() != whole[path])
            cases += 1
        path.unlink()
        failures += [f"{path.name}: gone"] * (read() != as_it_was or path.read_bytes() != whole[path])
        for other in [one for one in files if one != path]:
            path.write_bytes(whole[other])
            failures += [f"{path.name}: {other.name}"] * (read() != as_it_was or path.read_bytes() != whole[path])
        extra = path.with_name(f"extra-{path.name}")
        extra.write_bytes(whole[path])
        failures += [f"{path.name}: a copy beside it"] * (read() != as_it_was)
        extra.unlink(missing_ok=True)
        cases += 1 + len(files)
    return cases, failures


def test_damaged_rows_are_read_again(figures: Figures, tmp_path: Path) -> None:
    asked = Asked(tmp_path, text=ROWS.encode() + b"What?,,,\n")

    def read() -> object:
        found = asked.collect()
        return list(found.rows.rows(range(len(found.rows)))), found.set_aside, found.private

    read()
    (key,) = asked.entries()
    files = sorted(rows_entry(tmp_path / "cache", key).iterdir())
    assert [path.name for path in files] == ["rows.arrow", "set_aside.jsonl", "summary.json", "summary.sha256"]
    cases, failures = survives(files, read, random.Random(2), figures.amount(4, 100))
    figures.report("Cache", "rows: a damaged entry is made anew", cases, "damages", len(failures))
    assert failures == []


def test_damaged_examples_are_rendered_again(figures: Figures, tmp_path: Path, base: Path) -> None:
    how, rows = rendering(base, tmp_path / "cache"), stored()

    def read() -> object:
        (chunk,) = render_chunks(how, rows, lambda _: None)
        return chunk.outcomes

    read()
    entry = examples_entry(how.cache, chunk_key(how, rows))
    files = [entry, entry.with_suffix(".sha256")]
    cases, failures = survives(files, read, random.Random(3), figures.amount(8, 200))
    figures.report("Cache", "examples: a damaged entry is made anew", cases, "damages", len(failures))
    assert failures == []


def test_an_entry_in_the_place_of_another_is_not_taken_for_it(tmp_path: Path, base: Path) -> None:
    how, rows = rendering(base, tmp_path / "cache"), stored()
    is_hit(how, rows)
    other = replace(how, settings=SETTING_CHANGES["max_tokens"])
    one, two = (examples_entry(how.cache, chunk_key(each, rows)) for each in (how, other))
    two.parent.mkdir(exist_ok=True)
    for suffix in (".arrow", ".sha256"):
        shutil.copy(one.with_suffix(suffix), two.with_suffix(suffix))
    assert not is_hit(other, rows)
    asked = Asked(tmp_path)
    asked.collect()
    (key,) = asked.entries()
    asked.collect()
    changed = replace(asked, text=asked.text.replace(b"It is 3", b"It is 4"))
    changed.collect()
    (new,) = changed.entries() - {key}
    folder = tmp_path / "cache" / "rows"
    shutil.rmtree(folder / new)
    shutil.copytree(folder / key, folder / new)
    found = changed.collect().rows
    assert [row for row in found.rows(range(len(found))) if "It is 3" in row.conversation] == []


def test_a_leftover_of_a_killed_writer_is_removed(tmp_path: Path, base: Path) -> None:
    asked = Asked(tmp_path)
    asked.collect()
    (key,) = asked.entries()
    shutil.rmtree(rows_entry(tmp_path / "cache", key))
    (tmp_path / "cache" / "rows" / f".staging-0000-{key}").mkdir()
    how, rows = rendering(base, tmp_path / "cache"), stored()
    entry = examples_entry(how.cache, chunk_key(how, rows))
    entry.parent.mkdir(parents=True)
    (entry.parent / f".staging-0000-{entry.name}").write_bytes(b"half")
    asked.collect()
    is_hit(how, rows)
    assert list((tmp_path / "cache").rglob(".staging-*")) == []
    assert load_outcomes(entry)
