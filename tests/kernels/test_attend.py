"""Attention in one pass against torch's operators."""

import math
import shutil
import time

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


LAYOUTS = {
    "tokens first": lambda x: x,
    "heads first": lambda x: x.contiguous(),
    "a part of a fused projection": lambda x: (
        torch.cat([x, x, x], dim=-1).transpose(1, 2)[..., : x.shape[-1]].transpose(1, 2)
    ),
    "a part of a longer cache": lambda x: torch.cat([x, x * torch.nan], dim=2)[:, :, : x.shape[2]],
}
MASKS = ("none", "random", "causal", "causal of a batch", "padded on the left", "padded on the right", "inf")


def masked(kind: str, seed: int, batch: int, queries: int, keys: int) -> Tensor | None:
    """A mask as transformers makes them; the queries of a causal one are the last tokens."""
    if kind == "none":
        return None
    generator = torch.Generator().manual_seed(seed)
    causal = torch.arange(keys) <= torch.arange(queries)[:, None] + max(0, keys - queries)
    pads = torch.randint(0, keys, (batch, 1, 1), generator=generator)
    open_ = {
        "random": torch.rand(batch, queries, keys, generator=generator) > 0.7,
        "causal": causal[None],
        "causal of a batch": causal.repeat(batch, 1, 1),
        "padded on the left": causal & (torch.arange(keys) >= pads),  # its first rows have no open key
        "padded on the right": causal & (torch.arange(keys) <= pads),
        "inf": causal[None],
    }[kind]
    return torch.where(open_, 0.0, -math.inf if kind == "inf" else LOWEST)[:, None]


@given(
    seed=st.integers(0, 99),
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    width=st.sampled_from([16, 32, 64]),
    mask=st.sampled_from(MASKS),
    layouts=st.tuples(*[st.sampled_from(sorted(LAYOUTS))] * 3),
    threads=st.sampled_from([1, 2]),
)
def test_without_grids_it_is_attention(
    seed: int,
    batch: int,
    kv_heads: int,
    group: int,
    queries: int,
    keys: int,
    width: int,
    mask: str,
    layouts: tuple[str, str, str],
    threads: int,
) -> None:
    sizes = ((group * kv_heads, queries), (kv_heads, keys), (kv_heads, keys))
    query, key, value = (
        LAYOUTS[layout](random(seed + n, batch, *size, width))
        for n, (layout, size) in enumerate(zip(layouts, sizes, strict=True))
    )
    added = masked(mask, seed, batch, queries, keys)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        context = attend(query, key, value, added, width**-0.5, None, None)
    finally:
        torch.set_num_threads(before)
    repeated = (x.repeat_interleave(group, dim=1) for x in (key, value))
    expected, _ = operators(query, *repeated, added, width**-0.5, None, None)
    assert context is not None and context.shape == (batch, queries, group * kv_heads, width)
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


@pytest.mark.parametrize("worst", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_a_causal_mask_hides_only_what_torch_hides(which: str, worst: float) -> None:
    """A masked key that is not finite reaches all queries there: 0 times infinity is NaN."""
    tensors = {name: random(seed, 1, 2, 40, 16) for seed, name in enumerate(("query", "key", "value"))}
    tensors[which][0, 1, 33, 5] = worst
    mask = masked("causal", 0, 1, 40, 40)
    context = attend(*tensors.values(), mask, 0.25, None, None)
    scores = tensors["query"] @ tensors["key"].transpose(2, 3) * 0.25 + mask
    expected = (scores.softmax(-1) @ tensors["value"]).transpose(1, 2)
    torch.testing.assert_close(context, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.slow
def test_what_a_causal_mask_hides_is_not_computed() -> None:
    """Half of the keys, and so about half of the time."""
    query, key, value = (random(seed, 1, 4, 512, 64) for seed in range(3))
    masks = torch.zeros(1, 1, 512, 512), masked("causal", 0, 1, 512, 512)
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(9):
        for which, mask in enumerate(masks):
            start = time.perf_counter()
            attend(query, key, value, mask, 0.125, on(8, -3, 3), on(8, 0, 1))
            seconds[which].append(time.perf_counter() - start)
    assert min(seconds[1]) < 0.85 * min(seconds[0])


def test_a_row_that_is_all_masked_is_uniform() -> None:
    query, key, value = (random(seed, 1, 1, 4, 16) for seed in range(3))
    context = attend(query, key, value, torch.full((1, 1, 4, 4), LOWEST), 1.0, None, None)
    assert context is not None
    torch.testing.assert_close(context[0, :, 0], value[0, 0].mean(0).expand(4, 16))


SIZES = {"query": (2, 4, 5, 16), "key": (2, 4, 7, 16), "value": (2, 4, 7, 16), "mask": (2, 1, 5, 7)}
STRANGE = {
    "3 key heads for 4 query heads": {"key": (2, 3, 7, 16), "value": (2, 3, 7, 16)},
    "2 value heads for 4 key heads": {"value": (2, 2, 7, 16)},
    "no keys": {"key": (2, 4, 0, 16), "value": (2, 4, 0, 16), "mask": (2, 1, 5, 0)},
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
    elif what == "no keys":
        assert not attention(module, query, key, value, mask)[0].any()
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
        query = query.transpose(2, 3).contiguous().transpose(2, 3)
    elif what == "dtype":
        query = query.double()
    elif what == "mask":
        mask = mask.bool()
    elif what == "gradient":
        value.requires_grad_(True)
    assert attend(query, key, value, mask, 1.0, None, None) is None


def test_a_grid_serves_networks_with_more_heads_too() -> None:
    grid = AffineGrid(bits=8, symmetric=True)
    snapper = grid.snapper(*grid.parameters(torch.tensor([-1.0]), torch.tensor([1.0])))
    assert [snapper.per_head(heads).shape for heads in (2, 6, 1)] == [(2, 4), (6, 4), (1, 4)]
