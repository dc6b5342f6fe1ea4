"""Mixed precision: the kept sites in their format, the rest uniform."""

import pytest
from tiny import ALL, GEMM, padded, plan_of, sites_of, tiny_model

from quantlab.calibration.estimators import MinMax
from quantlab.calibration.probe import observe
from quantlab.methods.bits import Bits
from quantlab.methods.mixed_precision import MixedPrecision
from quantlab.methods.uniform import Uniform
from quantlab.plan.quantizers import ActivationQuant
from quantlab.quant.grid import AffineGrid, FloatGrid, Grid

KEEP = ("*.ffn.in", "1.ffn.sum")
KEPT = {"0.ffn.in", "1.ffn.in", "1.ffn.sum"}


def planned(method: MixedPrecision | Uniform, bits: Bits) -> dict[str, ActivationQuant]:
    model = tiny_model()
    sites = sites_of(model)
    plan = plan_of(method, sites, observe(model, sites, [padded()]), (), bits, MinMax())
    return {item.site: item for item in plan.activations}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "format, grid",
    [
        ("fp16", FloatGrid(format="fp16")),
        ("bf16", FloatGrid(format="bf16")),
        ("int16", AffineGrid(bits=16, symmetric=True)),
        ("fp32", None),
    ],
)
def test_kept_sites_have_the_format_and_the_rest_is_uniform(
    format: str, grid: Grid | None, symmetric: bool
) -> None:
    bits = Bits(symmetric=symmetric)
    if isinstance(grid, AffineGrid):
        grid = AffineGrid(bits=grid.bits, symmetric=symmetric)
    mixed, uniform = planned(MixedPrecision(keep=KEEP, format=format), bits), planned(Uniform(), bits)
    assert {name for name in uniform if mixed.get(name) != uniform[name]} == KEPT
    if grid is None:
        assert not KEPT & mixed.keys()
    else:
        assert all(mixed[name].grid == grid for name in KEPT)


def test_float_formats_have_no_ranges_and_integers_have() -> None:
    floats, integers = (
        planned(MixedPrecision(keep=KEEP, format=f), Bits())["0.ffn.in"] for f in ("fp16", "int16")
    )
    assert (floats.lo, floats.hi, floats.groups) == ((), (), ())
    uniform = planned(Uniform(), Bits())["0.ffn.in"]
    assert (integers.lo, integers.hi) == (uniform.lo, uniform.hi)


def test_keeping_overrides_rules() -> None:
    bits = Bits(rules=({"match": "*.ffn.in", "bits": 4},))
    assert planned(MixedPrecision(keep=KEEP), bits)["0.ffn.in"].grid == FloatGrid(format="fp16")


@pytest.mark.parametrize(
    "placement, keep, message",
    [
        (ALL, ("*.ffn.sum", "*.ffn.y"), r"method.keep: '\*.ffn.y' matches nothing"),
        (ALL, ("*.attn.sums",), r"method.keep: '\*.attn.sums' matches nothing \(did you mean '\*.attn.sum'"),
        (GEMM, ("*.ffn.sum",), r"method.keep: '\*.ffn.sum' matches nothing"),
    ],
)
def test_unmatched_sites(placement: object, keep: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixedPrecision(keep=keep).check(sites_of(tiny_model(), placement))  # type: ignore[arg-type]


def test_bad_format() -> None:
    with pytest.raises(ValueError, match=r"method.format must be one of .*; got 'float16' \(did you mean"):
        MixedPrecision(keep=KEEP, format="float16")


def test_lists_of_yaml_become_hashable() -> None:
    assert hash(MixedPrecision(keep=list(KEEP))) == hash(MixedPrecision(keep=KEEP))  # type: ignore[arg-type]
