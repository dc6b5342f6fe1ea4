"""What holds for every transform: each YAML in conf/transform is tried here as soon as it is there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from families import CASES, answers, batch_of, model_of
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tiny import GEMM, sites_of
from torch import nn
from transformers import PreTrainedModel

from quantlab.calibration.estimators import Calibration, MinMax
from quantlab.calibration.probe import Probe, observe
from quantlab.cli.conf_dir import CONF
from quantlab.methods.bits import Bits
from quantlab.methods.method import plan_site, weight_planners
from quantlab.methods.uniform import Uniform
from quantlab.network.sites import Placement
from quantlab.network.taps import tapped
from quantlab.plan.plan import SiteTransform
from quantlab.tasks.batching import Batch
from quantlab.transforms.transform import Transform

CHOICES = {path.stem: path for path in sorted((Path(CONF) / "transform").glob("*.yaml"))}
QUICK = {"rows": 8, "iterations": 3, "steps": 4}  # instead of what a choice of these would take
READ_TWICE = ("deberta-v2 shared",)  # its Linears read the relative positions too, which have no basis
FAST = ("bert", "llama", "vit")  # the other families are slow tests


def build(yaml: Path, **settings: object) -> Transform:
    config = OmegaConf.load(yaml)
    quick = {key: value for key, value in QUICK.items() if key in config}
    transform = instantiate(config, **{**quick, **settings}, _convert_="all")
    assert isinstance(transform, Transform)
    return transform


def probe_of(
    model: PreTrainedModel,
    head: str,
    placement: Placement = GEMM,
    bits: Bits | None = None,
    calibration: Calibration | None = None,
) -> Probe:
    """What the slots may ask about a tiny network on one batch."""
    chosen, ranging = bits or Bits(), calibration or MinMax()
    sites, batches = sites_of(model, placement), [Batch(inputs=batch_of(head)[0], indices=np.arange(2))]

    def quantizer_of(site, sketch):  # type: ignore[no-untyped-def]
        spec = Uniform().site_spec(site, chosen)
        return plan_site(site, spec, sketch, ranging) if spec else None

    return Probe(
        model=model,
        sites=sites,
        batches=batches,
        count_padding=False,
        sketches=observe(model, sites, batches),
        weight_planners=weight_planners(model, Uniform(), chosen, ranging),
        plan_site=quantizer_of,
    )


@contextmanager
def in_bases(model: PreTrainedModel, probe: Probe, transforms: Sequence[SiteTransform]) -> Iterator[None]:
    """Gives the model transformed operands and the weights that read them, as the papers do."""
    taps = {site.name: site.tap for site in probe.sites}
    kept = {name: value.data for name, value in model.named_parameters()}
    gained = []
    for item in transforms:
        for name in item.weights:
            linear = model.get_submodule(name.removesuffix(".weight"))
            shift = item.basis.shift
            if shift is not None:
                gain = linear.weight.data @ shift.tensor.to(linear.weight)
                if linear.bias is None:
                    gained.append(linear)
                linear.bias = nn.Parameter(
                    gain if linear.bias is None else linear.bias + gain, requires_grad=False
                )
            linear.weight.data = item.basis.weight(linear.weight.data)
    try:
        with tapped(model, {taps[item.site]: item.basis.forward for item in transforms}):
            yield
    finally:
        for linear in gained:
            linear.bias = None
        for name, value in kept.items():
            model.get_parameter(name).data = value


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in dict.fromkeys(name for name, _ in CASES if name not in READ_TWICE)
    ],
)
def test_the_function_is_kept(name: str) -> None:
    """float64 logits in the bases of every transform equal the network's own, with quantization off."""
    head = next(head for other, head in CASES if other == name)
    model = model_of(name, head)
    probe = probe_of(model, head)
    if not probe.norms:  # no operand of this family is what a norm makes
        with pytest.raises(ValueError, match="no norm makes"):
            build(CHOICES["outlier_suppression"]).bases(probe)
    asked = [choice for choice in CHOICES if probe.norms or choice != "outlier_suppression"]
    found = {choice: build(CHOICES[choice]).bases(probe) for choice in asked}
    model.double()
    try:
        with torch.inference_mode():
            expected = answers(model, head)
        for choice, bases in found.items():
            with in_bases(model, probe, bases):
                torch.testing.assert_close(answers(model, head), expected, rtol=0, atol=1e-10, msg=choice)
        torch.testing.assert_close(answers(model, head), expected, rtol=0, atol=0)
    finally:
        model.float()
        model_of.cache_clear()
    assert {choice for choice, bases in found.items() if not bases} <= {"none", "awq", "learned"}
