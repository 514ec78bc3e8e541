"""The line on personal data in the audit: it tells what was not found from what was not looked for."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from report_inputs import inputs
from rich.console import Console
from tiny_model import build_tokenizer

from finetune.audit_records import Audit
from finetune.audit_table import audit_table
from finetune.console import Reporter
from finetune.prepare import prepare
from finetune.recipe import Recipe
from finetune.report import build_report
from finetune.report_data import data_section
from finetune.run_directory import RunDirectory

TEXT = "call (212) 736-5000 or 0049 30 901820"


def line_on_private(audit: Audit) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(audit_table(audit))
    return next((line.strip() for line in out.getvalue().splitlines() if "personal data" in line), "")


@pytest.mark.parametrize(
    ("counts", "only", "said"),
    [
        ({}, False, ""),
        ({"email": 0, "card": 0}, False, "none found"),
        ({"email": 2, "card": 0}, False, "email 2"),
        ({"phone": 0}, True, "none found (phone numbers in international form only: set privacy.region)"),
        (
            {"phone": 3, "email": 0},
            True,
            "phone 3 (phone numbers in international form only: set privacy.region)",
        ),
    ],
)
def test_line_on_personal_data(counts: dict[str, int], only: bool, said: str) -> None:
    audit = inputs().audit.model_copy(update={"private": counts, "only_international_phones": only})
    assert line_on_private(audit).removeprefix("personal data").strip() == said


def test_report_lists_what_was_not_found_as_well() -> None:
    audit = inputs().audit.model_copy(update={"private": {"iban": 0, "phone": 2}, "only_international_phones": True})
    report = build_report(inputs()).model_copy(update={"audit": audit})
    [table] = [table for table in data_section(report).tables if table.title == "Personal data found"]
    assert [[cell.text for cell in row] for row in table.rows] == [["phone", "2"], ["iban", "0"]]
    assert "privacy.region" in table.note


@pytest.mark.parametrize(
    ("privacy", "counts", "only"),
    [
        (None, {}, False),
        ({"detect": ["email", "phone"]}, {"email": 0, "phone": 60}, True),
        ({"detect": ["email", "phone"], "region": ["US", "CN"]}, {"email": 0, "phone": 120}, False),
        ({"detect": ["email"]}, {"email": 0}, False),
    ],
)
def test_audit_counts_each_kind_that_is_looked_for(
    tmp_path: Path, privacy: dict[str, object] | None, counts: dict[str, int], only: bool
) -> None:
    rows = [{"instruction": f"Case {number}: {TEXT}?", "input": "", "output": f"Yes {number}"} for number in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    build_tokenizer().save_pretrained(tmp_path / "base")
    stated = {
        "version": 1,
        "name": "unit",
        "base": {"model": "./base"},
        "adapter": {"kind": "lora"},
        "data": {
            "train": [{"source": str(tmp_path / "rows.jsonl"), "rows": "alpaca"}],
            "held_out": {"fraction": 0.3},
            "audit": {"maximum_duplicates": 1.0},
            "leakage": {"maximum_share": 1.0, "maximum_near_share": 1.0},
        },
    } | ({"privacy": privacy} if privacy else {})
    silent = Reporter(Console(quiet=True, file=io.StringIO()))
    recipe = Recipe.model_validate_json(json.dumps(stated))
    audit = prepare(recipe, RunDirectory(tmp_path / "run"), tmp_path / "base", tmp_path / "cache", silent)
    assert (audit.private, audit.only_international_phones) == (counts, only)
