"""Makes a trial's plan: observes activations in the network that the config calibrates in, then plans."""

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

DIAGNOSED_BATCHES = 32  # at most so many of the calibration batches are diagnosed


class PlanSettings(Protocol):
    """The settings that decide a plan. A trial's config has them."""

    @property
    def method(self) -> Method: ...
    @property
    def bits(self) -> Bits: ...
    @property
    def calibration(self) -> Calibration: ...


def make_plan(
    settings: PlanSettings, material: Material, sites: Sequence[Site], fp32: Sketches
) -> tuple[QuantPlan, Sketches]:
    """Returns the plan, and the sites' sketches that its ranges come from.

    ``fp32`` are the sketches of the FP32 network, by site.
    """
    weights, sketches = weights_and_sketches(settings, material, sites, fp32)
    return settings.method.plan(sites, sketches, weights, settings.bits, settings.calibration), sketches


def weights_and_sketches(
    settings: PlanSettings, material: Material, sites: Sequence[Site], fp32: Sketches
) -> tuple[tuple[WeightQuant, ...], Sketches]:
    """Returns the weights' part of the plan, and the sites' sketches.

    The sketches are ``fp32``, those of the FP32 network, unless the method clips weights or
    ``calibration.through`` asks for a quantized network: then the sites are observed in that one.
    """
    weights = plan_weights(material.model, settings.method, settings.bits, settings.calibration)
    with calibration_network(settings, material, weights) as network:
        return weights, fp32 if network == "fp32" else observed_sketches(settings, material, sites)


@contextmanager
def calibration_network(
    settings: PlanSettings, material: Material, weights: Sequence[WeightQuant]
) -> Iterator[str]:
    """Gives the model the weights that activations are calibrated with, until the exit.

    They are quantized as ``calibration.through`` asks, or clipped by the method, or the FP32 weights. Yields
    the network's name, which ``sites.csv`` shows.
    """
    if settings.calibration.through != "fp32":
        with quantized_weights(material.model, weights):
            earlier = settings.calibration.through == "quantized"
            yield "quantized weights, earlier sites quantized" if earlier else "quantized weights"
        return
    limits = settings.method.weight_limits(material.model, settings.bits)
    with clipped_weights(material.model, limits):
        yield "clipped weights" if limits else "fp32"


def diagnose(
    settings: PlanSettings, material: Material, sites: Sequence[Site], plan: QuantPlan, sketches: Sketches
) -> pd.DataFrame:
    """Returns the table of a plan's tensors (:func:`quantlab.evaluation.diagnosis.site_table`).

    Sites are measured in the network that calibrated them.
    """
    batches = material.calibration_batches(settings.calibration)[:DIAGNOSED_BATCHES]
    through = settings.calibration.through == "quantized"
    with calibration_network(settings, material, plan.weights) as network:
        sqnr = site_sqnr_db(material.model, plan, sites, batches, through)
    return site_table(material.model, plan, sketches, sqnr, network)


def observed_sketches(settings: PlanSettings, material: Material, sites: Sequence[Site]) -> dict[str, Sketch]:
    """Observes the sites in the model as it is. Returns their sketches.

    With ``calibration.through=quantized`` each site is quantized before the next one is observed.
    """
    calibration = settings.calibration

    def requantize(site: Site, sketch: Sketch) -> TensorFunction | None:
        spec = settings.method.site_spec(site, settings.bits)
        return quantizer(plan_site(site, spec, sketch, calibration), material.model.device) if spec else None

    through: Requantize | None = requantize if calibration.through == "quantized" else None
    batches = material.calibration_batches(calibration)
    return observe(material.model, sites, batches, calibration.counts_padding, through)
