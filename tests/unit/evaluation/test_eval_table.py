from __future__ import annotations

from evaluation.table import Table


def test_markdown_escapes_cells() -> None:
    assert Table(("a", "b"), (("1|2", "3"),)).markdown() == "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |"
