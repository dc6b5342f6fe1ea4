"""From what calibration saw to a trial's plan: which network the ranges are seen in, and whose weights are
clipped."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import pandas as pd

from quantlab.calibration.estimators import Calibration
from quantlab.calibration.probe import Requantize, observe
from quantlab.engines.insert import clipped_weights, quantized_weights, quantizer
from quantlab.evaluation.diagnosis import site_sqnr_db, site_table
from quantlab.methods.bits import Bits
from quantlab.methods.method import Method, plan_site, plan_weights
from quantlab.network.attention import TensorFunction
from quantlab.network.sites import Site
from quantlab.plan.plan import QuantPlan, WeightQuant
from quantlab.quant.sketch import Sketch
from quantlab.trial.material import Material

Sketches = Mapping[str, Sketch]

DIAGNOSED_BATCHES = 32  # of the calibration rows, at most


class Settings(Protocol):
    """What decides a plan; a trial's config has it."""

    @property
    def method(self) -> Method: ...
    @property
    def bits(self) -> Bits: ...
    @property
    def calibration(self) -> Calibration: ...


def make_plan(
    settings: Settings, material: Material, sites: Sequence[Site], fp32: Sketches
) -> tuple[QuantPlan, Sketches]:
    """The plan, and the sketches that its ranges come from."""
    weights, sketches = weights_and_sketches(settings, material, sites, fp32)
    return settings.method.plan(sites, sketches, weights, settings.bits, settings.calibration), sketches


def weights_and_sketches(
    settings: Settings, material: Material, sites: Sequence[Site], fp32: Sketches
) -> tuple[tuple[WeightQuant, ...], Sketches]:
    """The weights' plan and the sites' sketches: those of the FP32 network (``fp32``) unless the config asks
    for the network as it will run, or the method clips weights."""
    weights = plan_weights(material.model, settings.method, settings.bits, settings.calibration)
    with network_of_ranges(settings, material, weights) as network:
        return weights, fp32 if network == "fp32" else sketches_as_run(settings, material, sites)


@contextmanager
def network_of_ranges(
    settings: Settings, material: Material, weights: Sequence[WeightQuant]
) -> Iterator[str]:
    """Until the exit the model has the weights with which the ranges of activations are seen: its own, these
    clipped by the method, or quantized ones. Yields the network's name, as ``sites.csv`` has it."""
    if settings.calibration.through != "fp32":
        with quantized_weights(material.model, weights):
            earlier = settings.calibration.through == "quantized"
            yield "quantized weights, earlier sites quantized" if earlier else "quantized weights"
        return
    limits = settings.method.weight_limits(material.model, settings.bits)
    with clipped_weights(material.model, limits):
        yield "clipped weights" if limits else "fp32"


def diagnose(
    settings: Settings, material: Material, sites: Sequence[Site], plan: QuantPlan, sketches: Sketches
) -> pd.DataFrame:
    """The table of a plan's tensors (:func:`quantlab.evaluation.diagnosis.site_table`), each site looked at
    in the network that its range was seen in."""
    batches = material.calibration_batches(settings.calibration)[:DIAGNOSED_BATCHES]
    through = settings.calibration.through == "quantized"
    with network_of_ranges(settings, material, plan.weights) as network:
        sqnr = site_sqnr_db(material.model, plan, sites, batches, through)
    return site_table(material.model, plan, sketches, sqnr, network)


def sketches_as_run(settings: Settings, material: Material, sites: Sequence[Site]) -> dict[str, Sketch]:
    """Sketches of the sites in the model as it is, with earlier sites quantized where so set."""
    calibration = settings.calibration

    def requantize(site: Site, sketch: Sketch) -> TensorFunction | None:
        spec = settings.method.site_spec(site, settings.bits)
        return quantizer(plan_site(site, spec, sketch, calibration), material.model.device) if spec else None

    through: Requantize | None = requantize if calibration.through == "quantized" else None
    batches = material.calibration_batches(calibration)
    return observe(material.model, sites, batches, calibration.counts_padding, through)
