"""What the comparison of packed rows is made of; the measuring itself needs a GPU (tests/gpu/test_cuda_varlen.py)."""

from __future__ import annotations

import statistics

import pytest
import torch

from benchmarks.packed_attention import HEADER, ROWS, Measured, Row, document_lengths, line, main


@pytest.mark.parametrize("tokens", ROWS)
def test_documents_fill_a_row_and_are_of_skewed_lengths(tokens: int) -> None:
    lengths = document_lengths(tokens)
    assert sum(lengths) == tokens
    assert lengths == document_lengths(tokens)
    assert max(lengths) > 2 * statistics.median(lengths)


@pytest.mark.parametrize("measured", [Measured(0.5, 10**9, repeats=False), None])
def test_a_line_has_the_columns_of_the_table(measured: Measured | None) -> None:
    row = Row((5, 3), {}, torch.ones(1))
    written = line(row, "varlen", measured, Measured(1.0, 2 * 10**9, repeats=True))
    assert written.count("|") == HEADER.splitlines()[0].count("|")
    if measured:
        assert written == "| 8 | 2 | 5 | varlen | 16 | 2.00 | 1.00 | no |"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_says_that_it_needs_cuda() -> None:
    with pytest.raises(SystemExit, match="needs CUDA"):
        main()
