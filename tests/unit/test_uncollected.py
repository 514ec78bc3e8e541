"""Imports are left to themselves, and garbage made later is still collected."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from finetune.uncollected import uncollected_imports


class Cycle:
    """Collected only by the collector."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_nothing_is_collected_inside_and_all_of_it_is_set_apart() -> None:
    with uncollected_imports():
        assert not gc.isenabled()
        kept = [Cycle() for _ in range(10)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(kept)


def test_garbage_from_before_is_not_kept_and_later_garbage_is_collected() -> None:
    before = weakref.ref(Cycle())
    with uncollected_imports():
        pass
    assert before() is None
    later = weakref.ref(Cycle())
    gc.collect()
    assert later() is None


def test_a_failed_import_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), uncollected_imports():
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with uncollected_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
