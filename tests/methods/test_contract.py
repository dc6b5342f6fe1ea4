"""What holds for every method: each YAML in conf/method is tried here, a new one as soon as it is there."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tiny import ALL, GEMM, logits, padded, plan_of, sites_of, tiny_model
from transformers import PreTrainedModel

from quantlab.calibration.estimators import (
    Calibration,
    MinMax,
    Mse,
    Percentile,
    PublishedPercentile,
    RunningMinMax,
)
from quantlab.calibration.probe import observe
from quantlab.cli.conf_dir import CONF
from quantlab.engines.insert import insert
from quantlab.methods.bits import Bits
from quantlab.methods.method import Method, plan_weights
from quantlab.network.sites import Placement, Site
from quantlab.plan.plan import QuantPlan
from quantlab.quant.sketch import Sketch
from quantlab.quant.sqnr import sqnr_db

YAMLS = sorted((Path(CONF) / "method").glob("*.yaml"))  # of a preset over several slots, its method
MIN_MAX = MinMax()
OTHERS = (RunningMinMax(), Percentile(), PublishedPercentile())
W8A8 = Bits()

methods = pytest.mark.parametrize("yaml", YAMLS, ids=lambda path: path.stem)
placements = pytest.mark.parametrize("placement", [ALL, GEMM], ids=["all", "gemm"])


def build(yaml: Path) -> Method:
    config = OmegaConf.load(yaml)
    method = instantiate(config.get("method", config), _convert_="all")
    assert isinstance(method, Method)
    return method


def sketches_of(model: PreTrainedModel, sites: list[Site]) -> dict[str, Sketch]:
    return observe(model, sites, [padded(), padded(seed=1)])


def planned(
    method: Method, placement: Placement = ALL, bits: Bits = W8A8, calibration: Calibration = MIN_MAX
) -> QuantPlan:
    model = tiny_model()
    sites = sites_of(model, placement)
    weights = plan_weights(model, method, bits, calibration)
    return plan_of(method, sites, sketches_of(model, sites), weights, bits, calibration)


def test_yamls_are_found() -> None:
    assert {"fp32", "uniform", "mixed_precision", "peg"} <= {path.stem for path in YAMLS}


@methods
def test_builds_hashable_and_equal(yaml: Path) -> None:
    assert build(yaml) == build(yaml)
    assert hash(build(yaml)) == hash(build(yaml))


@methods
def test_fits_every_site_of_the_default_placement(yaml: Path) -> None:
    build(yaml).check(sites_of(tiny_model(), ALL))


@methods
@pytest.mark.parametrize(
    "placement, calibration",
    [
        (ALL, MIN_MAX),
        (GEMM, MIN_MAX),
        (ALL, Mse()),
        *(pytest.param(ALL, calibration, marks=pytest.mark.slow) for calibration in OTHERS),
    ],
    ids=lambda value: getattr(value, "at", type(value).__name__),
)
def test_plans_existing_sites_and_runs(yaml: Path, placement: Placement, calibration: Calibration) -> None:
    model = tiny_model()
    sites = {site.name: site for site in sites_of(model, placement)}
    plan = planned(build(yaml), placement, calibration=calibration)
    names = [item.site for item in plan.activations]
    assert names == [name for name in sites if name in set(names)]  # in order, each once
    for item in plan.activations:
        assert item.tap == sites[item.site].tap
        assert len(item.groups) in (0, sites[item.site].channels)
    parameters = dict(model.named_parameters())
    assert all(item.parameter in parameters for item in plan.weights)
    with insert(model, plan) as inserted:
        assert logits(model, padded()).isfinite().all()
    assert set(inserted.calls.values()) <= {1}
    assert inserted.calls.keys() == set(names)


@methods
@placements
def test_deterministic(yaml: Path, placement: Placement) -> None:
    plans = {planned(build(yaml), placement).fingerprint for _ in range(2)}
    assert len(plans) == 1


@methods
@pytest.mark.parametrize("symmetric", [True, False])
def test_many_bits_are_nearly_fp32(yaml: Path, symmetric: bool) -> None:
    model, batch = tiny_model(), padded()  # one of the batches that calibrate: nothing is clipped
    reference = logits(model, batch)
    decibels = {}
    for bits in (16, 4):
        plan = planned(build(yaml), bits=Bits(weights=bits, activations=bits, symmetric=symmetric))
        with insert(model, plan):
            decibels[bits] = sqnr_db(reference, logits(model, batch))
    assert decibels[16] > 55
    assert decibels[4] < 40 or plan == QuantPlan()


@methods
def test_inputs_are_not_changed(yaml: Path) -> None:
    method, model, calibration = build(yaml), tiny_model(), Percentile(percentile=99)
    sites = sites_of(model)
    sketches, again, before = sketches_of(model, sites), sketches_of(model, sites), tiny_model().state_dict()
    plan_of(method, sites, sketches, plan_weights(model, method, W8A8, calibration), W8A8, calibration)
    assert sites == sites_of(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, sketch in sketches.items():
        for kept in ("min", "max", "moment_sums", "histogram"):
            assert torch.equal(getattr(sketch, kept), getattr(again[name], kept))


@methods
def test_a_site_that_was_never_seen(yaml: Path) -> None:
    method, sites = build(yaml), sites_of(tiny_model())
    sketches = {site.name: Sketch(channels=site.channels) for site in sites}
    ranged = [site.name for site in sites if (spec := method.site_spec(site, W8A8)) and spec.grid.ranged]
    if not ranged:
        plan_of(method, sites, sketches, (), W8A8, MinMax())  # nothing needs a range
        return
    with pytest.raises(ValueError, match=f"site {ranged[0]} was never seen in calibration: it has no range"):
        plan_of(method, sites, sketches, (), W8A8, MinMax())
