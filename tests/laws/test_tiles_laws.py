"""Tiles of the processor compute what torch does, as exactly as bfloat16 allows, and look at nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from evaluation.token_loss import labelled_nll
from finetune.elementwise import Tiles
from finetune.elementwise_library import NotCompiled, load_elementwise

ROUNDING = 2**-8
"""Half the distance of two neighbours in bfloat16, relative: results are rounded once, and so are the probabilities."""


@pytest.fixture(scope="module")
def tiles() -> Tiles:
    try:
        found = load_elementwise(compiled=True).tiles
    except NotCompiled as why:
        pytest.skip(str(why))
    if found is None:
        pytest.skip("this processor has no tiles of bfloat16 (AMX)")
    return found


@dataclass(frozen=True)
class Drawn:
    """Queries, keys, values and a gradient of what is heard."""

    q: Tensor
    k: Tensor
    v: Tensor
    slope: Tensor

    @staticmethod
    def of(documents: int, heads: tuple[int, int], length: int, width: int, *, size: float = 1.0) -> Drawn:
        draw = torch.Generator().manual_seed(length + width)
        keyed, per_key = heads

        def one(count: int, times: float) -> Tensor:
            return (times * torch.randn(count, length, width, generator=draw)).bfloat16()

        queries, keys = documents * keyed * per_key, documents * keyed
        return Drawn(one(queries, size * width**-0.5), one(keys, 1), one(keys, 1), one(queries, 1))

    def exact(self) -> list[Tensor]:
        """Compute by torch in fp64 what is heard, the normalizer, and the gradients of queries, keys and values."""
        q, k, v = (part.double().requires_grad_() for part in (self.q, self.k, self.v))
        per_key = len(q) // len(k)
        future = torch.ones(q.shape[1], q.shape[1]).triu(1).bool()
        scores = (q @ k.repeat_interleave(per_key, 0).mT).masked_fill(future, float("-inf"))
        heard = scores.softmax(-1) @ v.repeat_interleave(per_key, 0)
        heard.backward(self.slope.double())
        assert q.grad is not None
        assert k.grad is not None
        assert v.grad is not None
        return [heard.detach(), scores.logsumexp(-1).detach(), q.grad, k.grad, v.grad]

    def tiled(self, tiles: Tiles) -> list[Tensor]:
        heard, normalizer = tiles.attend(self.q, self.k, self.v)
        return [heard, normalizer, *tiles.attend_backward(self.slope, self.q, self.k, self.v, normalizer)]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("length", [32, 64, 96, 128, 160, 608])
@pytest.mark.parametrize(
    ("documents", "heads", "width"), [(1, (3, 3), 64), (3, (1, 1), 32), (2, (2, 1), 128), (1, (1, 4), 96)], ids=str
)
def test_it_is_attention(tiles: Tiles, documents: int, heads: tuple[int, int], length: int, width: int) -> None:
    drawn = Drawn.of(documents, heads, length, width)
    heard, normalizer, *gradients = (
        relative(one, other) for one, other in zip(drawn.tiled(tiles), drawn.exact(), strict=True)
    )
    assert heard <= ROUNDING
    assert normalizer <= 1e-6
    assert max(gradients) <= ROUNDING


def test_large_scores_are_no_trouble(tiles: Tiles) -> None:
    """Of which the exponential is beyond all numbers, and most probabilities are 0."""
    drawn = Drawn.of(1, (1, 2), 160, 64, size=100)
    found, expected = drawn.tiled(tiles), drawn.exact()
    assert float(expected[1].max()) > 89  # the logarithm of the largest fp32
    assert relative(found[0], expected[0]) <= ROUNDING
    assert relative(found[1], expected[1]) <= 1e-6
    assert relative(found[3], expected[3]) <= 0.02  # p has few neighbours of 1, and ds is what is left


def test_scores_beyond_all_measure_are_no_trouble(tiles: Tiles) -> None:
    """Differences of 10¹⁶, of which a rest after whole powers of 2 is a large number itself."""
    drawn = Drawn.of(1, (1, 1), 32, 32)
    drawn.q[..., 0], drawn.k[..., 0] = 1e8, torch.linspace(-1e8, 1e8, 32).bfloat16()
    assert all(one.isfinite().all() for one in drawn.tiled(tiles))


def test_no_token_hears_a_later_one(tiles: Tiles) -> None:
    drawn = Drawn.of(1, (1, 2), 160, 64)
    before, _ = tiles.attend(drawn.q, drawn.k, drawn.v)
    k, v = drawn.k.clone(), drawn.v.clone()
    k[:, 75:], v[:, 75:] = 7, -7
    after, _ = tiles.attend(drawn.q, k, v)
    assert torch.equal(before[:, :75], after[:, :75])
    assert not torch.equal(before[:, 75:], after[:, 75:])


def test_documents_are_apart(tiles: Tiles) -> None:
    """Each alone comes to the same bits as all together."""
    drawn = Drawn.of(3, (2, 3), 96, 64)
    together = drawn.tiled(tiles)
    for i in range(3):
        alone = Drawn(*(part.chunk(3)[i].contiguous() for part in (drawn.q, drawn.k, drawn.v, drawn.slope)))
        assert all(
            torch.equal(one, all_[i]) for one, all_ in zip(alone.tiled(tiles), map(thirds, together), strict=True)
        )


def thirds(x: Tensor) -> tuple[Tensor, ...]:
    return x.chunk(3)


def test_threads_and_what_lay_in_memory_change_no_bit(tiles: Tiles) -> None:
    drawn, threads = Drawn.of(1, (3, 3), 224, 64), torch.get_num_threads()
    expected = drawn.tiled(tiles)
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            left = [torch.full((numbers,), float("nan")) for numbers in (64 * 240, 9 * 64 * 240, 3 * 32 * 240)]
            del left
            assert all(torch.equal(one, other) for one, other in zip(drawn.tiled(tiles), expected, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("part", ["q", "k", "v", "slope"])
def test_what_is_no_number_is_not_swallowed(tiles: Tiles, part: str) -> None:
    drawn = Drawn.of(1, (1, 1), 64, 32)
    getattr(drawn, part)[0, 40, 3] = float("nan")
    heard, _, *gradients = drawn.tiled(tiles)
    assert (
        heard[:, :32].isfinite().all()
    )  # of the block of 32 it is in, a value that weighs 0 still counts as no number
    assert part == "slope" or heard[:, 40:].isnan().any()
    assert any(gradient.isnan().any() for gradient in gradients)


def test_products_of_torch_go_on_as_before(tiles: Tiles) -> None:
    """Shapes of tiles belong to the thread; the libraries set them for each of their products."""
    drawn = Drawn.of(1, (1, 1), 64, 64)
    x, words = drawn.q[0], torch.arange(64)
    product, losses = x @ x.T, labelled_nll(x, drawn.k[0], words)
    for _ in range(3):
        drawn.tiled(tiles)
        assert torch.equal(x @ x.T, product)
        assert torch.equal(labelled_nll(x, drawn.k[0], words), losses)


# ------------------------------------------------------------------ the products of adapters

SIZES = [(32, 32, 2), (64, 96, 6), (1024, 576, 48), (96, 160, 100), (32, 1536, 16), (64, 64, 34)]
"""Tokens, inputs, ranks."""


@dataclass(frozen=True)
class Low:
    """Tokens with room or something else behind them, and the first factor of an adapter with zeros behind it."""

    x_TW: Tensor
    a_SW: Tensor
    inputs: int

    @staticmethod
    def of(tokens: int, inputs: int, ranks: int, beyond: int = 0) -> Low:
        draw = torch.Generator().manual_seed(tokens + inputs + ranks)
        a = torch.zeros(ranks, inputs + ranks + beyond)
        a[:, :inputs] = torch.randn(ranks, inputs, generator=draw) * inputs**-0.5
        return Low(torch.randn(tokens, a.shape[1], generator=draw).bfloat16(), a.bfloat16(), inputs)

    @property
    def behind_TS(self) -> Tensor:
        return self.x_TW[:, self.inputs :][:, : len(self.a_SW)]

    @property
    def x_TI(self) -> Tensor:
        return self.x_TW[:, : self.inputs]

    @property
    def a_SI(self) -> Tensor:
        return self.a_SW[:, : self.inputs]


@pytest.mark.parametrize("beyond", [0, 16])
@pytest.mark.parametrize(("tokens", "inputs", "ranks"), SIZES)
def test_tokens_are_projected_and_written_behind(
    tiles: Tiles, tokens: int, inputs: int, ranks: int, beyond: int
) -> None:
    low = Low.of(tokens, inputs, ranks, beyond)
    x_TW, expected = low.x_TW.clone(), low.x_TI.double() @ low.a_SI.double().T
    found = tiles.project_low(low.x_TW, low.a_SW, inputs)
    assert relative(found, expected) <= ROUNDING
    assert torch.equal(found, low.behind_TS)
    x_TW[:, inputs:][:, :ranks] = found
    assert torch.equal(x_TW, low.x_TW)


@pytest.mark.parametrize("beyond", [0, 16])
@pytest.mark.parametrize(("tokens", "inputs", "ranks"), SIZES)
def test_what_is_behind_is_projected_back_and_added(
    tiles: Tiles, tokens: int, inputs: int, ranks: int, beyond: int
) -> None:
    low = Low.of(tokens, inputs, ranks, beyond)
    expected = low.x_TI.double() + low.behind_TS.double() @ low.a_SI.double()
    assert relative(tiles.add_low_rank(low.x_TW, low.a_SW, inputs), expected) <= ROUNDING


@pytest.mark.parametrize(("tokens", "inputs", "ranks"), SIZES)
@pytest.mark.parametrize("across", [False, True])
def test_gradients_of_factors_are_exact(tiles: Tiles, tokens: int, inputs: int, ranks: int, across: bool) -> None:
    """Of parts of wider rows, in fp32."""
    low = Low.of(tokens, inputs, ranks)
    of_low = low.x_TW[:, inputs:]
    expected = 0.5 * of_low.double().T @ low.x_TI.double()
    found = tiles.factor_gradient(of_low, low.x_TI, 0.5, across=across)
    assert found.is_contiguous()
    assert relative(found.T if across else found, expected) <= 1e-6


# ------------------------------------------------------------------ the loss

HEADS = [
    (32, 32, 256),
    (33, 64, 1),
    (7, 96, 31),
    (100, 64, 1003),
    (700, 576, 512),
    (64, 2048, 300),
    (33, 8192, 70),
    (1, 32, 257),
]
"""Tokens, numbers of each, words."""


def head_of(tokens: int, numbers: int, words: int, *, size: float = 2.0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(tokens + numbers + words)
    hidden_ND = size * torch.randn(tokens, numbers, generator=draw)
    return hidden_ND.bfloat16(), (torch.randn(words, numbers, generator=draw) * numbers**-0.5).bfloat16()


@pytest.mark.parametrize(("tokens", "numbers", "words"), HEADS)
@pytest.mark.parametrize("size", [0.0, 2.0, 200.0])
def test_expected_row_is_that_of_the_softmax(tiles: Tiles, tokens: int, numbers: int, words: int, size: float) -> None:
    """The row as exactly as its weights are rounded, the normalizer in fp32."""
    hidden_ND, head_VD = head_of(tokens, numbers, words, size=size)
    logits_NV = hidden_ND.double() @ head_VD.double().T
    mean_ND, normalizer_N = tiles.expect(hidden_ND, head_VD)
    assert relative(mean_ND, logits_NV.softmax(-1) @ head_VD.double()) <= ROUNDING
    assert float((normalizer_N - logits_NV.logsumexp(-1)).abs().max()) <= 2e-6 * max(1, float(logits_NV.abs().max()))


def test_loss_and_gradient_are_those_of_all_logits(tiles: Tiles) -> None:
    hidden_ND, head_VD = head_of(100, 64, 1003)
    words_N = torch.arange(100) * 7 % 1003
    own_ND, exact_ND = hidden_ND.clone().requires_grad_(), hidden_ND.double().requires_grad_()
    found_N = labelled_nll(own_ND, head_VD, words_N, tiles.expect)
    exact_N = functional.cross_entropy(exact_ND @ head_VD.double().T, words_N, reduction="none")
    found_N.sum().backward()
    exact_N.sum().backward()
    assert own_ND.grad is not None
    assert exact_ND.grad is not None
    assert relative(found_N, exact_N) <= 1e-6
    assert relative(own_ND.grad, exact_ND.grad) <= ROUNDING


def test_a_token_has_its_loss_whoever_is_beside_it_and_however_many_compute(tiles: Tiles) -> None:
    hidden_ND, head_VD = head_of(700, 576, 1003)
    together = tiles.expect(hidden_ND, head_VD)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(map(torch.equal, tiles.expect(hidden_ND, head_VD), together))
    finally:
        torch.set_num_threads(threads)
    alone = tiles.expect(hidden_ND[650:], head_VD)
    assert all(torch.equal(one, all_[650:]) for one, all_ in zip(alone, together, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_token_that_is_no_number_has_no_loss_and_leaves_the_others_theirs(tiles: Tiles, value: float) -> None:
    hidden_ND, head_VD = head_of(64, 32, 300)
    before = tiles.expect(hidden_ND, head_VD)
    hidden_ND[5, 3] = value
    mean_ND, normalizer_N = tiles.expect(hidden_ND, head_VD)
    assert not normalizer_N[5].isfinite()
    assert not mean_ND[5].isfinite().any()
    others = torch.arange(64) != 5
    assert torch.equal(mean_ND[others], before[0][others])
    assert torch.equal(normalizer_N[others], before[1][others])
