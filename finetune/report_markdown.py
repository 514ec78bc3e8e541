"""The report as Markdown: the same words and figures as the page, without the charts."""

from __future__ import annotations

import re

from finetune.audit_records import TokenSpan
from finetune.report_contents import Report, SamplePair
from finetune.report_figures import contender_label, legible
from finetune.report_sections import folded_sections, mask_sentence
from finetune.report_tables import OUTCOME_LABELS, Cell, Table, answer_mark, answer_text, tasks_tables

SHOWN_TEXT = 4000
"""Characters shown of one cell or piece of text."""

_ACTIVE = re.compile(r"([\\`*_\[\]<>|#~&])")


def render_markdown(report: Report) -> str:
    """Render CommonMark with tables; rows and answers are fenced or escaped, so none of them acts."""
    blocks = [
        f"# {plain(report.name)}",
        f"**{OUTCOME_LABELS[report.verdict.outcome]}** – {plain(report.verdict.sentence())}",
        plain(report.description),
        _provenance(report),
        "## Scores",
        *(table_block(table) for table in tasks_tables(report)),
        *_samples(report),
        "## What is trained on",
        f"{mask_sentence(report)} In the examples below, ⟦ and ⟧ stand around what is trained on.",
        *(fenced(_mask(example)) for example in report.audit.mask_preview),
    ]
    for section in folded_sections(report):
        blocks += [f"## {section.title}", f"{plain(section.summary)}.", *map(plain, section.sentences)]
        blocks += [table_block(table) for table in section.tables]
    blocks += ["## Recipe", fenced(report.recipe.model_dump_json(indent=2, exclude_none=True))]
    return "\n\n".join(block for block in blocks if block) + "\n"


def plain(text: str) -> str:
    """Return text on one line with every character escaped that Markdown or HTML would act on."""
    return _ACTIVE.sub(r"\\\1", " ".join(legible(text, SHOWN_TEXT).split()))


def coded(text: str) -> str:
    """Return text as code within a line, between more backticks than it has in a row."""
    line = " ".join(legible(text, SHOWN_TEXT).split())
    ticks = "`" * (1 + max((len(run) for run in re.findall(r"`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def fenced(text: str) -> str:
    """Return text in a fence that is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def table_block(table: Table) -> str:
    """Return a table under its title, figures aligned to the right."""
    first = table.rows[0] if table.rows else ()
    rule = [" ---: " if cell.numeric else " --- " for cell in first] or [" --- "] * len(table.columns)
    lines = [
        f"| {' | '.join(plain(column) or ' ' for column in table.columns)} |",
        f"|{'|'.join(rule)}|",
        *(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in table.rows),
    ]
    note = f"\n\n{plain(table.note)}" if table.note else ""
    return f"### {plain(table.title)}\n\n" + "\n".join(lines) + note


def _cell(cell: Cell) -> str:
    detail = f" ({plain(cell.detail)})" if cell.detail else ""
    return f"{plain(cell.text)}{detail}"


def _provenance(report: Report) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in report.environment.versions.items())
    facts = (
        f"Base {report.recipe.base.model}",
        f"seed {report.seed}",
        f"adapter {report.training.adapter_sha256[:12]}",
        versions,
        f"repeat with: {report.command}",
    )
    return " · ".join(plain(fact) for fact in facts if fact)


def _samples(report: Report) -> list[str]:
    if not report.samples:
        return []
    note = f"{len(report.samples)} held-out samples, evenly spread by position and not chosen by result."
    headline = report.tasks[0].headline
    return ["## Side by side", note, *(_pair(pair, headline) for pair in report.samples)]


def _pair(pair: SamplePair, headline: str) -> str:
    blocks = [f"### {plain(pair.sample)}", "Prompt", fenced(pair.prompt), "Reference", fenced(pair.reference)]
    for answer in pair.answers:
        mark = answer_mark(answer, headline)
        blocks.append(f"{contender_label(answer.contender)} **{mark}**" if mark else contender_label(answer.contender))
        blocks.append(fenced(answer_text(answer)))
    return "\n\n".join(blocks)


def _mask(example: tuple[TokenSpan, ...]) -> str:
    shown = ((legible(span.text, SHOWN_TEXT), span.trained) for span in example)
    return "".join(f"⟦{text}⟧" if trained else text for text, trained in shown)
