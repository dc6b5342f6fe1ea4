"""Attention in one pass against torch's operators."""

import math
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quantlab.kernels import native
from quantlab.kernels.attend import attend
from quantlab.kernels.snapper import Snapper
from quantlab.network.attention import TAPS, CountedQuantizer, attention
from quantlab.quant.grid import AffineGrid

LOWEST = torch.finfo(torch.float32).min


@pytest.fixture(autouse=True, scope="module")
def built() -> None:
    if native.library() is None:
        (pytest.fail if shutil.which("cc") else pytest.skip)("the kernels are not built")


def random(seed: int, batch: int, heads: int, tokens: int, width: int) -> Tensor:
    """As a Linear's output is seen by attention: (batch, heads, tokens, width), tokens first in memory."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, tokens, heads * width, generator=generator)
        .view(batch, tokens, heads, width)
        .transpose(1, 2)
    )


def on(bits: int, lo: float, hi: float, heads: int = 1) -> Snapper:
    """A grid for all heads, or one for each, the later the wider."""
    spread = torch.linspace(1, 1.5, heads)
    scale, zero_point = AffineGrid(bits=bits, symmetric=lo < 0).parameters(lo * spread, hi * spread)
    if heads > 1:
        scale, zero_point = scale[:, None, None], zero_point[:, None, None]
    return AffineGrid(bits=bits, symmetric=lo < 0).snapper(scale, zero_point)


def operators(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, *grids: Snapper | None
) -> tuple[Tensor, Tensor]:
    """Context (batch, tokens, heads, width) and probabilities, in float64 but for the grids' own
    arithmetic."""
    scores = query.double() @ key.double().transpose(2, 3) * scaling
    scores = scores if grids[0] is None else grids[0](scores.float()).double()
    probs = (scores if mask is None else scores + mask).softmax(-1)
    probs = probs if grids[1] is None else grids[1](probs.float()).double()
    return (probs @ value.double()).transpose(1, 2), probs


@given(
    seed=st.integers(0, 99),
    batch=st.integers(1, 3),
    heads=st.sampled_from([1, 3]),
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    width=st.sampled_from([16, 32, 64]),
    masked=st.booleans(),
    threads=st.sampled_from([1, 2]),
)
def test_without_grids_it_is_attention(
    seed: int, batch: int, heads: int, queries: int, keys: int, width: int, masked: bool, threads: int
) -> None:
    query, key, value = (
        random(seed + n, batch, heads, size, width) for n, size in enumerate((queries, keys, keys))
    )
    mask = torch.where(torch.rand(batch, 1, queries, keys) < 0.3, LOWEST, 0.0) if masked else None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        context = attend(query, key, value, mask, width**-0.5, None, None)
    finally:
        torch.set_num_threads(before)
    expected, _ = operators(query, key, value, mask, width**-0.5, None, None)
    assert context is not None and context.shape == (batch, queries, heads, width)
    torch.testing.assert_close(context.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("each", [1, 4], ids=["one grid", "a grid a head"])
@pytest.mark.parametrize("which", ["scores", "probs", "both"])
@pytest.mark.parametrize("bits", [4, 8])
def test_scores_and_probabilities_are_on_their_grids(bits: int, which: str, each: int) -> None:
    """All but values that lie, up to rounding, in the middle between two steps get to the same step."""
    query, key, value = (random(seed, 2, 4, 37, 32) for seed in range(3))
    mask = torch.zeros(2, 1, 37, 37)
    mask[0, :, :, 20:] = LOWEST
    scores = on(bits, -3, 3, each) if which != "probs" else None
    probs = on(bits, 0, 1, each) if which != "scores" else None
    context = attend(query, key, value, mask, 32**-0.5, scores, probs)
    expected, _ = operators(query, key, value, mask, 32**-0.5, scores, probs)
    assert context is not None
    rows_off = ((context - expected).abs() > 1e-5).any(-1).double().mean().item()
    assert rows_off < 0.02


def test_one_hot_values_show_the_probabilities() -> None:
    """With the identity for values context is the probabilities themselves: all on their grid, masked ones
    zero."""
    query, key = random(0, 1, 1, 5, 16), random(1, 1, 1, 16, 16)
    mask = torch.zeros(1, 1, 5, 16)
    mask[..., 9:] = LOWEST
    context = attend(query, key, torch.eye(16)[None, None], mask, 1.0, None, on(8, 0, 1))
    assert context is not None
    steps = context * 255
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert (context[:, :, :, 9:] == 0).all() and (context.sum(-1) - 1).abs().max() < 9 / 255


@pytest.mark.parametrize("worst", [math.nan, math.inf])
@pytest.mark.parametrize("grids", [False, True])
def test_what_is_not_finite_stays_so_in_its_row(worst: float, grids: bool) -> None:
    query, key, value = (random(seed, 1, 2, 6, 16) for seed in range(3))
    query[0, 1, 3, 0] = worst
    context = attend(query, key, value, None, 1.0, None, on(8, 0, 1) if grids else None)
    assert context is not None
    assert context[0, 3, 1].isnan().all() and context.isnan().sum() == 16


def test_a_row_that_is_all_masked_is_uniform() -> None:
    query, key, value = (random(seed, 1, 1, 4, 16) for seed in range(3))
    context = attend(query, key, value, torch.full((1, 1, 4, 4), LOWEST), 1.0, None, None)
    assert context is not None
    torch.testing.assert_close(context[0, :, 0], value[0, 0].mean(0).expand(4, 16))


SIZES = {"query": (2, 4, 5, 16), "key": (2, 4, 7, 16), "value": (2, 4, 7, 16), "mask": (2, 1, 5, 7)}
STRANGE = {
    "2 key heads for 4 query heads": {"key": (2, 2, 7, 16), "value": (2, 2, 7, 16)},
    "3 values for 7 keys": {"value": (2, 4, 3, 16)},
    "narrower keys": {"key": (2, 4, 7, 8)},
    "wider values": {"value": (2, 4, 7, 32)},
    "another batch": {"key": (1, 4, 7, 16), "value": (1, 4, 7, 16), "mask": (1, 1, 5, 7)},
    "a mask for fewer keys": {"mask": (2, 1, 5, 3)},
    "a mask for fewer queries": {"mask": (2, 1, 3, 7)},
    "a mask for each head": {"mask": (2, 4, 5, 7)},
    "a mask of another batch": {"mask": (3, 1, 5, 7)},
    "a mask without heads": {"mask": (5, 7)},
}


@pytest.mark.parametrize("what", STRANGE)
def test_shapes_that_do_not_agree_are_left_to_torch(what: str) -> None:
    """torch raises, or broadcasts; C would read foreign memory."""
    sizes = SIZES | STRANGE[what]
    query, key, value = (random(0, *sizes[name]) for name in ("query", "key", "value"))
    mask = torch.zeros(sizes["mask"])
    assert attend(query, key, value, mask, 1.0, None, on(8, 0, 1)) is None
    taps = {"probs": CountedQuantizer("s", on(8, 0, 1), {"s": 0})}
    module = torch.nn.Module().eval()
    setattr(module, TAPS, taps)
    if what in ("another batch", "a mask for each head", "a mask without heads"):
        assert attention(module, query, key, value, mask)[0].shape == (2, 5, 4, 16)
    elif what == "wider values":
        assert attention(module, query, key, value, mask)[0].shape == (2, 5, 4, 32)
    else:
        with pytest.raises(RuntimeError, match="size"):
            attention(module, query, key, value, mask)


@pytest.mark.parametrize("scale", [(2, 1, 1), (4,), (1, 4), (4, 1)], ids=str)
def test_grids_that_are_none_a_head_are_left_to_torch(scale: tuple[int, ...]) -> None:
    query, key, value = (random(seed, 1, 4, 4, 16) for seed in range(3))
    grid = AffineGrid(bits=8, symmetric=True).snapper(torch.rand(scale) + 0.1, torch.zeros(scale))
    assert attend(query, key, value, None, 1.0, grid, None) is None


@pytest.mark.parametrize("what", ["width", "layout", "dtype", "mask", "gradient"])
def test_what_it_does_not_take_is_left_to_torch(what: str) -> None:
    query, key, value = (random(seed, 1, 2, 4, 24 if what == "width" else 16) for seed in range(3))
    mask = torch.zeros(1, 1, 4, 4)
    if what == "layout":
        query = query.contiguous()
    elif what == "dtype":
        query = query.double()
    elif what == "mask":
        mask = mask.bool()
    elif what == "gradient":
        value.requires_grad_(True)
    assert attend(query, key, value, mask, 1.0, None, None) is None
