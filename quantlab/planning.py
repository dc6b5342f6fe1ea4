"""From what calibration saw to a trial's plan: which network the ranges are seen in, and whose weights are clipped."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from quantlab.calibration import Calibration, Requantize, observe
from quantlab.material import Material
from quantlab.methods.base import Method, plan_site, plan_weights
from quantlab.methods.bits import Bits
from quantlab.placement.attention import Function
from quantlab.placement.insert import clipped_weights, quantized_weights, quantizer
from quantlab.placement.plan import QuantPlan, WeightQuant
from quantlab.placement.sites import Site
from quantlab.quant.sketch import Sketch

Sketches = Mapping[str, Sketch]


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
    """The weights' plan and the sites' sketches: those of the FP32 network (``fp32``) unless the config asks for the
    network as it will run, or the method clips weights."""
    weights = plan_weights(material.model, settings.method, settings.bits, settings.calibration)
    if settings.calibration.through != "fp32":
        return weights, sketches_as_run(settings, material, sites, weights)
    limits = settings.method.weight_limits(material.model, settings.bits)
    if not limits:
        return weights, fp32
    with clipped_weights(material.model, limits):
        return weights, sketches_as_run(settings, material, sites, ())


def sketches_as_run(
    settings: Settings, material: Material, sites: Sequence[Site], weights: Sequence[WeightQuant]
) -> dict[str, Sketch]:
    """Sketches of the sites in the network with quantized weights, and with earlier sites quantized where so set."""
    calibration = settings.calibration

    def requantize(site: Site, sketch: Sketch) -> Function | None:
        spec = settings.method.site_spec(site, settings.bits)
        return quantizer(plan_site(site, spec, sketch, calibration), material.model.device) if spec else None

    through: Requantize | None = requantize if calibration.through == "quantized" else None
    with quantized_weights(material.model, weights):
        batches = material.calibration_batches(calibration)
        return observe(material.model, sites, batches, calibration.counts_padding, through)
