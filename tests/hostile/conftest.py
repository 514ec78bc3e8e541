"""The tests on hostile input have a table of their own in docs/guarantees.md."""

from __future__ import annotations

import pytest
from figures import HOSTILE, Figures


@pytest.fixture(scope="session")
def figures(figures: Figures) -> Figures:
    """Return what the tests of this folder report to."""
    return figures.of(HOSTILE)
