"""The least, the middle and the greatest of a few measurements, and the versions that they belong to."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from statistics import median


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Write least / middle / greatest."""
    return " / ".join(f"{value:,.{digits}f}" for value in (min(values), median(values), max(values)))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown; all columns but the first are numbers."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))


def machine_line(*packages: str) -> str:
    """Name processors, load and versions, for the line under a table."""
    said = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} processors, load {os.getloadavg()[0]:.1f}; {', '.join(said)}."
