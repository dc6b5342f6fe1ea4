"""Makes a trial's plan: asks each slot in turn, and observes activations in the network so far."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pandas as pd

from quantlab.calibration.probe import Probe, Requantize, narrow_view, observe
from quantlab.engines.insert import edited_weights, quantized_weights, quantizer
from quantlab.evaluation.diagnosis import site_sqnr_db, site_table
from quantlab.methods.method import NO_SPLITS, Splits, plan_site, plan_weights, weight_planners
from quantlab.network.attention import TensorFunction
from quantlab.network.sites import Site
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant
from quantlab.quant.sketch import Sketch
from quantlab.splits.split import SplitMethod
from quantlab.trial.learned_plan import learned_plan
from quantlab.trial.material import Material
from quantlab.trial.slots import PlanSettings

Sketches = Mapping[str, Sketch]

DIAGNOSED_BATCHES = 32  # at most so many of the calibration batches are diagnosed


def trial_plan(
    settings: PlanSettings, material: Material, sites: Sequence[Site], fp32: Sketches
) -> tuple[QuantPlan, Sketches]:
    """:func:`make_plan`, unless the checkpoint was trained through the plan of these settings and sites, and
    brings it along."""
    learned = learned_plan(material.loaded.folder, settings, sites)
    if learned is None:
        return make_plan(settings, material, sites, fp32)
    based = [site for site in sites if site.name in learned.site_bases]
    return learned, {**fp32, **_sketches_again(settings, material, based, learned, NO_SPLITS, "fp32")}


def make_plan(
    settings: PlanSettings, material: Material, sites: Sequence[Site], fp32: Sketches
) -> tuple[QuantPlan, Sketches]:
    """Returns the plan, and the sites' sketches that its ranges come from.

    ``fp32`` are the sketches of the FP32 network, by site.
    """
    plan, sketches, splits = plan_of_weights(settings, material, sites, fp32)
    activations = settings.method.activations(sites, sketches, settings.bits, settings.calibration, splits)
    return replace(plan, activations=activations), sketches


def plan_of_weights(
    settings: PlanSettings, material: Material, sites: Sequence[Site], fp32: Sketches
) -> tuple[QuantPlan, Sketches, Splits]:
    """Returns the plan without its activations, the sites' sketches, in the plan's bases, and their splits.

    The sketches are ``fp32``, those of the FP32 network, where that is the network that calibrates. They are
    of what the narrow grids see.
    """
    probe = probe_of(settings, material, sites, fp32)
    plan = QuantPlan(
        edits=settings.method.edits(material.model, settings.bits), transforms=settings.transform.bases(probe)
    )
    splits = splits_of(settings, material, probe, plan)
    wide = {
        f"{path}.weight": split.columns
        for site, split in splits.items()
        for path in probe.readers[site]
        if split.columns
    }
    weights = plan_weights(material.model, settings.method, settings.bits, settings.calibration, plan, wide)
    if splits:
        probe = probe_of(settings, material, sites, fp32, splits)
    plan = settings.calibration.clipped(probe, replace(plan, weights=weights))
    plan = settings.rounding.round(probe, plan)
    with calibration_network(settings, material, plan) as network:
        changed = plan.site_bases.keys() | splits.keys()
        again = sites if network != "fp32" else [site for site in sites if site.name in changed]
        found = _sketches_again(settings, material, again, plan, splits, network)
        return plan, {**fp32, **found}, splits


def _sketches_again(
    settings: PlanSettings,
    material: Material,
    sites: Sequence[Site],
    plan: QuantPlan,
    splits: Splits,
    network: str,
) -> dict[str, Sketch]:
    """:func:`observed_sketches`; of the FP32 network once for all trials with these bases and splits."""
    if not sites:
        return {}
    if network != "fp32":
        return observed_sketches(settings, material, sites, plan, splits)
    views = ((site.name, plan.site_bases.get(site.name), splits.get(site.name)) for site in sites)
    key = (settings.calibration.observation_key, *views)
    make = partial(observed_sketches, settings, material, sites, plan, splits)
    return material.observed.get("sketches", key, make)


def splits_of(settings: PlanSettings, material: Material, probe: Probe, plan: QuantPlan) -> Splits:
    """Returns what the split keeps wide, by site. It sees the sites in the plan's bases."""
    if type(settings.split) is SplitMethod:
        return {}
    based = [site for site in probe.sites if site.name in plan.site_bases]
    found = observed_sketches(settings, material, based, plan) if based else {}
    return settings.split.splits(probe, {**probe.sketches, **found})


def probe_of(
    settings: PlanSettings,
    material: Material,
    sites: Sequence[Site],
    fp32: Sketches,
    splits: Splits = NO_SPLITS,
) -> Probe:
    """Returns what the slots may ask about the model."""

    def quantizer_of(site: Site, sketch: Sketch) -> ActivationQuant | None:
        spec = settings.method.site_spec(site, settings.bits)
        return plan_site(site, spec, sketch, settings.calibration, splits.get(site.name)) if spec else None

    calibration = settings.calibration
    return Probe(
        model=material.model,
        sites=sites,
        batches=material.calibration_batches(calibration),
        count_padding=calibration.counts_padding,
        sketches=fp32,
        weight_planners=weight_planners(material.model, settings.method, settings.bits, calibration),
        plan_site=quantizer_of,
    )


@contextmanager
def calibration_network(settings: PlanSettings, material: Material, plan: QuantPlan) -> Iterator[str]:
    """Gives the model the weights that activations are calibrated with, until the exit.

    They are quantized as ``calibration.through`` asks, or edited as the plan asks, or the FP32 weights.
    Yields the network's name, which ``sites.csv`` shows.
    """
    if settings.calibration.through != "fp32":
        with quantized_weights(material.model, plan):
            earlier = settings.calibration.through == "quantized"
            yield "quantized weights, earlier sites quantized" if earlier else "quantized weights"
        return
    with edited_weights(material.model, plan):
        yield "edited weights" if plan.edits else "fp32"


def diagnose(
    settings: PlanSettings, material: Material, sites: Sequence[Site], plan: QuantPlan, sketches: Sketches
) -> pd.DataFrame:
    """Returns the table of a plan's tensors (:func:`quantlab.evaluation.diagnosis.site_table`).

    Sites are measured in the network that calibrated them.
    """
    batches = material.calibration_batches(settings.calibration)[:DIAGNOSED_BATCHES]
    through = settings.calibration.through == "quantized"
    with calibration_network(settings, material, plan) as network:
        sqnr = site_sqnr_db(material.model, plan, sites, batches, through)
    return site_table(material.model, plan, sketches, sqnr, network)


def observed_sketches(
    settings: PlanSettings,
    material: Material,
    sites: Sequence[Site],
    plan: QuantPlan,
    splits: Splits = NO_SPLITS,
) -> dict[str, Sketch]:
    """Observes the sites in the model as it is, each as its narrow grid sees it. Returns their sketches.

    With ``calibration.through=quantized`` each site is quantized before the next one is observed.
    """
    calibration, bases = settings.calibration, plan.site_bases

    def requantize(site: Site, sketch: Sketch) -> TensorFunction | None:
        spec = settings.method.site_spec(site, settings.bits)
        if spec is None:
            return None
        item = plan_site(site, spec, sketch, calibration, splits.get(site.name))
        return quantizer(item, material.model.device, basis=bases.get(site.name))

    through: Requantize | None = requantize if calibration.through == "quantized" else None
    views = {name: narrow_view(bases.get(name), splits.get(name)) for name in bases.keys() | splits.keys()}
    batches = material.calibration_batches(calibration)
    return observe(
        material.model,
        sites,
        batches,
        calibration.counts_padding,
        through,
        views,
        calibration.sees_tokens,
    )
