"""The three forms: the same figures, nothing fetched, nothing that a row or an answer says ever acts."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_inputs import choose_task, generate_task, inputs, loss_task, with_tasks

from finetune.audit_records import LeakCount, LeakedSample, TokenSpan
from finetune.report import ReportInputs, build_report
from finetune.report_data import SHOWN_LEAKS
from finetune.report_html import render_html
from finetune.report_markdown import fenced, plain, render_markdown
from finetune.report_sections import folded_sections
from finetune.report_tables import tasks_tables

ATTACK = '<script>alert(1)</script><img src="https://evil.example/x" onerror=alert(1)>```\n# [x](javascript:1)'


class Reader(HTMLParser):
    """Collects tags with their attributes, and the visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def hostile() -> ReportInputs:
    task = choose_task()
    answers = {
        contender: tuple(
            output.model_copy(
                update={
                    "generated": ATTACK,
                    "prompt": ATTACK,
                    "reference": ATTACK,
                    "sample": f"{ATTACK}{index}",
                }
            )
            for index, output in enumerate(outputs)
        )
        for contender, outputs in task.outputs.items()
    }
    account = inputs().audit.sources[0].model_copy(update={"source": ATTACK})
    audit = inputs().audit.model_copy(
        update={
            "labels": {ATTACK: 3},
            "set_aside_by_reason": {ATTACK: 1},
            "sources": (account,),
            "mask_preview": ((TokenSpan(text=ATTACK, trained=True), TokenSpan(text=ATTACK, trained=False)),),
            "leaked": (LeakedSample(task=ATTACK, sample=ATTACK, train=ATTACK, kind="exact", part="both"),),
            "leaks": (LeakCount(task=ATTACK, samples=3, exact=1),),
            "languages": {ATTACK: 1},
            "private": {ATTACK: 1},
            "copies": {ATTACK: 1},
            "turns": {ATTACK: 1},
        }
    )
    recipe = inputs().recipe.model_copy(update={"description": ATTACK})
    task = replace(task, outputs=answers, description=ATTACK)
    return replace(inputs(), recipe=recipe, audit=audit, tasks=(task,))


def variants() -> dict[str, ReportInputs]:
    plain_audit = inputs().audit.model_copy(
        update={
            "validation": None,
            "labels": None,
            "leaked": (),
            "leaks": (LeakCount(task="held_out", samples=300),),
            "repeated": 12,
            "private": {"email": 3},
            "copies": {"case": 4},
            "set_aside_by_reason": {},
            "truncated": 7,
        }
    )
    training_only = tuple(step for step in inputs().steps if step.validation_loss is None)
    return {
        "classification": inputs(),
        "writing, two tasks": with_tasks(generate_task(0.3, 0.3), generate_task(0.5, 0.4, task="plain_facts")),
        "loss": with_tasks(loss_task(900.0, 3.0, 1.0)),
        "no validation": replace(inputs(), audit=plain_audit, steps=training_only),
        "no steps": replace(inputs(), steps=()),
        "no outputs": with_tasks(replace(choose_task(), outputs={}, differences=())),
        "hostile": hostile(),
    }


VARIANTS = variants()


@pytest.mark.parametrize("name", VARIANTS)
def test_page_and_markdown_show_every_cell_of_every_table(name):
    report = build_report(VARIANTS[name])
    page = "".join(read(render_html(report)).text).replace("\u00a0", " ")
    markdown = render_markdown(report)
    tables = [
        *tasks_tables(report),
        *(table for section in folded_sections(report) for table in section.tables),
    ]
    assert len(tables) > 5
    for table in tables:
        for cell in (cell for row in table.rows for cell in row):
            for text in filter(None, (cell.text, cell.detail)):
                assert text in page
                assert plain(text) in markdown


@pytest.mark.parametrize("name", VARIANTS)
def test_page_markdown_and_json_carry_the_same_verdict(name):
    report = build_report(VARIANTS[name])
    page = "".join(read(render_html(report)).text).replace("\u00a0", " ")
    for part in (report.verdict.finding, report.verdict.evidence, *(r[1:] for r in report.verdict.remarks)):
        assert part in page
    assert plain(report.verdict.sentence()) in render_markdown(report)
    assert report.verdict.finding in report.model_dump_json()


@pytest.mark.parametrize("name", VARIANTS)
def test_the_page_needs_nothing_from_elsewhere(name):
    page = render_html(build_report(VARIANTS[name]))
    reader = read(page)
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"script", "img", "iframe", "object", "embed", "a", "form", "base"}
    for tag, attributes in reader.tags:
        assert "src" not in attributes
        assert not any(attribute.startswith("on") for attribute in attributes)
        if "href" in attributes:
            assert (tag, attributes["href"]) == ("link", "data:,")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "default-src 'none'" in page


def test_what_rows_and_answers_say_stays_text():
    page = render_html(build_report(hostile()))
    assert "<script" not in page
    assert html.escape(ATTACK.splitlines()[0]).replace("&quot;", "&#34;") in page


def test_what_rows_and_answers_say_stays_text_in_markdown():
    markdown = render_markdown(build_report(hostile()))
    outside: list[str] = []
    fence = ""
    for line in markdown.splitlines():
        mark = re.match(r"`{3,}", line)
        if fence:
            fence = "" if line == fence else fence
        elif mark:
            fence = mark[0]
        else:
            outside.append(line)
    assert not fence
    assert not re.search(r"(?<!\\)<(script|img)", "\n".join(outside))
    assert not any(line.startswith("# [") for line in outside)


def test_fences_are_longer_than_what_they_hold():
    assert fenced("a ```` b").startswith("`````text\n")
    assert fenced("a").startswith("```text\n")


def test_right_and_wrong_are_signs_and_words():
    page = render_html(build_report(inputs()))
    assert "✓ right" in page
    assert "✗ wrong" in page


def test_trained_tokens_are_marked_in_both_forms():
    report = build_report(inputs())
    page, markdown = render_html(report), render_markdown(report)
    assert "<mark>Diseases of the respiratory system&lt;|im_end|&gt;</mark>" in page
    assert "⟦Diseases of the respiratory system<|im_end|>⟧" in markdown
    for form in (page, markdown):
        assert "13,112 of 98,304 tokens (13.3 %) of the 1,425 training examples are trained on." in form


def test_an_account_that_does_not_add_up_is_marked():
    account = inputs().audit.sources[0].model_copy(update={"rows": 2105})
    audit = inputs().audit.model_copy(update={"sources": (account,)})
    markdown = render_markdown(build_report(replace(inputs(), audit=audit)))
    assert "✗ off by 1" in markdown
    assert "✓ adds up" in render_markdown(build_report(inputs()))


def test_all_leaks_are_counted_and_the_first_are_listed():
    many = tuple(
        LeakedSample(task="held_out", sample=f"held.jsonl:{n}", train=f"train.jsonl:{n}", kind="exact", part="both")
        for n in range(1, 32)
    )
    leaks = (LeakCount(task="held_out", samples=300, exact=31),)
    audit = inputs().audit.model_copy(update={"leaked": many, "leaks": leaks})
    markdown = render_markdown(build_report(replace(inputs(), audit=audit)))
    assert markdown.count("held.jsonl:") == SHOWN_LEAKS
    assert "31 scored samples found in training rows" in markdown
    assert "20 of 31 listed" in markdown


def test_empty_training_data_has_no_share_of_trained_tokens():
    none = inputs().audit.train.model_copy(update={"tokens": 0, "trained_tokens": 0, "examples": 0})
    report = build_report(replace(inputs(), audit=inputs().audit.model_copy(update={"train": none})))
    assert "0 of 0 tokens (none)" in render_markdown(report)


def test_different_sample_counts_of_the_contenders_are_not_hidden():
    task = choose_task()
    fewer = task.results["tfidf"].metrics["exact_match"].model_copy(update={"n": 280})
    metrics = {**task.results["tfidf"].metrics, "exact_match": fewer}
    results = {**task.results, "tfidf": task.results["tfidf"].model_copy(update={"metrics": metrics})}
    assert "n = 280 to 300" in render_html(build_report(with_tasks(replace(task, results=results))))


def test_every_figure_leaves_with_seed_versions_and_the_command():
    report = build_report(inputs())
    for form in (render_html(report), render_markdown(report)):
        assert "seed 0" in form
        assert "torch 2.13.0" in form
        assert "finetune run recipe" in form
