"""What holds for every transform: each YAML in conf/transform is tried here as soon as it is there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import CASES, answers, batch_of, model_of
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tiny import GEMM, sites_of
from torch import Tensor, nn
from transformers import PreTrainedModel

from quantlab.calibration.estimators import Calibration, MinMax
from quantlab.calibration.probe import Probe, observe
from quantlab.cli.conf_dir import CONF
from quantlab.engines.insert import insert
from quantlab.methods.bits import Bits
from quantlab.methods.method import Method, plan_site, plan_weights, weight_planners
from quantlab.methods.peg import Peg
from quantlab.methods.uniform import Uniform
from quantlab.network.sites import Placement
from quantlab.network.taps import tapped
from quantlab.plan.plan import QuantPlan, SiteTransform
from quantlab.quant.sqnr import sqnr_db
from quantlab.tasks.batching import Batch
from quantlab.tasks.heads import CLASSES, TOKENS
from quantlab.transforms.permutation import ByRange
from quantlab.transforms.transform import Transform

CHOICES = {path.stem: path for path in sorted((Path(CONF) / "transform").glob("*.yaml"))}
QUICK = {"rows": 8, "iterations": 3, "steps": 4}  # instead of what a choice of these would take
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
        for name in dict.fromkeys(name for name, _ in CASES)
    ],
)
def test_the_function_is_kept(name: str) -> None:
    """float64 logits in the bases of every transform equal the network's own, with quantization off."""
    head = next(head for other, head in CASES if other == name)
    model = model_of(name, head)
    probe = probe_of(model, head)
    chosen = {choice: build(yaml) for choice, yaml in CHOICES.items()}
    if not probe.norms:  # no operand of this family is what a norm makes
        refused = {
            choice for choice, transform in chosen.items() if getattr(transform, "norm_outputs", False)
        }
        for choice in refused:
            with pytest.raises(ValueError, match="no norm makes"):
                chosen[choice].bases(probe)
        chosen = {choice: chosen[choice] for choice in chosen.keys() - refused}
    found = {choice: transform.bases(probe) for choice, transform in chosen.items()}
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


def plan_in(
    model: PreTrainedModel, probe: Probe, transform: Transform, method: Method, bits: Bits
) -> QuantPlan:
    """The plan of a method in a transform's bases."""
    base = QuantPlan(transforms=transform.bases(probe))
    views = {name: basis.forward for name, basis in base.site_bases.items()}
    sketches = observe(model, probe.sites, probe.batches, views=views)
    return replace(
        base,
        activations=method.activations(probe.sites, sketches, bits, MinMax()),
        weights=plan_weights(model, method, bits, MinMax(), base),
    )


def quantized_answers(model: PreTrainedModel, plan: QuantPlan, engine: str = "simulated") -> Tensor:
    with insert(model, plan, engine):
        return answers(model, CLASSES)


NEUTRAL = {
    "none": {},
    "awq": {"steps": 1},
    "hadamard": {"block": 1},
    "learned": {"iterations": 0},
    "power_of_two": {"levels": 0},
}


@pytest.mark.parametrize("choice", NEUTRAL)
def test_a_neutral_transform_is_the_plain_path_to_the_bit(choice: str) -> None:
    model = model_of("bert", CLASSES)
    probe = probe_of(model, CLASSES)
    neutral = plan_in(model, probe, build(CHOICES[choice], **NEUTRAL[choice]), Uniform(), Bits())
    plain = plan_in(model, probe, Transform(), Uniform(), Bits())
    assert neutral == plain
    assert torch.equal(quantized_answers(model, neutral), quantized_answers(model, plain))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("choice", CHOICES)
def test_integer_products_are_the_simulated_ones(choice: str, symmetric: bool) -> None:
    """Every Linear of a layer multiplies integers, in the basis of what it reads."""
    model, bits = model_of("bert", CLASSES), Bits(symmetric=symmetric, weight_granularity="channel")
    plan = plan_in(model, probe_of(model, CLASSES, bits=bits), build(CHOICES[choice]), Uniform(), bits)
    simulated = quantized_answers(model, plan)
    with insert(model, plan, "integer") as inserted:
        torch.testing.assert_close(answers(model, CLASSES), simulated, rtol=1e-3, atol=1e-3)
    layers = {path: ran for path, ran in inserted.linears.items() if ".layer." in path}
    assert layers and all(ran.in_integers for ran in layers.values())
    assert sqnr_db(answers(model, CLASSES), simulated) > 10


@pytest.mark.parametrize("choice", CHOICES)
def test_the_same_settings_give_the_same_plan(choice: str) -> None:
    """At every thread count; and it survives JSON."""
    model = model_of("bert", CLASSES)
    threads, plans = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            plans.append(plan_in(model, probe_of(model, CLASSES), build(CHOICES[choice]), Uniform(), Bits()))
    finally:
        torch.set_num_threads(threads)
    assert plans[0] == plans[1]
    assert QuantPlan.from_json(plans[0].to_json(), plans[0].arrays) == plans[0]


def test_contiguous_groups_of_sorted_channels_are_peg() -> None:
    model = model_of("bert", CLASSES)
    probe, sites = probe_of(model, CLASSES), ("*.ffn.in",)
    sorted_ = plan_in(
        model, probe, ByRange(sites=sites), Peg(sites=sites, k=4, permute="none"), Bits(symmetric=True)
    )
    peg = plan_in(model, probe, Transform(), Peg(sites=sites, k=4), Bits(symmetric=True))
    torch.testing.assert_close(quantized_answers(model, sorted_), quantized_answers(model, peg))


def test_a_tied_head_keeps_its_own_basis() -> None:
    model = model_of("llama", TOKENS)
    found = {item.site for item in build(CHOICES["smoothquant"]).bases(probe_of(model, TOKENS))}
    assert "0.attn.in" in found and "final.out" not in found


@pytest.mark.parametrize(
    ("choice", "settings", "message"),
    [
        ("smoothquant", {"alpha": 1.2}, r"transform.alpha must be in \[0, 1\], got 1.2"),
        ("smoothquant", {"alpha": True}, r"transform.alpha must be in \[0, 1\], got True"),
        ("hadamard", {"block": 92}, "no Hadamard matrix of size 92 here; the nearest sizes are 88 and 96"),
        ("learned", {"learning_rate": 0}, "transform.learning_rate must be above 0, got 0"),
        ("awq", {"rows": 0}, "transform.rows must be a whole number of at least 1, got 0"),
        ("equalization", {"shift": "yes"}, "transform.shift must be one of True, False; got 'yes'"),
    ],
)
def test_a_bad_setting_is_refused(choice: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InstantiationException, match=message):
        build(CHOICES[choice], **settings)


@pytest.mark.parametrize(
    ("choice", "settings", "message"),
    [
        ("smoothquant", {"sites": ["*.atn.in"]}, r"'\*.atn.in' matches nothing \(did you mean '\*.attn.in'"),
        ("smoothquant", {"sites": "*"}, "must be a list of globs"),
        ("hadamard", {"sites": ["*.attn.probs"]}, r"no weight of its own reads what '\*.attn.probs' matches"),
        ("outlier_suppression", {"sites": ["*.ffn.mid"]}, r"no norm makes, .* what '\*.ffn.mid' matches"),
        ("hadamard", {"block": 12}, "site 0.attn.in: its 32 channels are no multiple"),
    ],
)
def test_a_site_without_a_basis_is_refused(choice: str, settings: dict[str, object], message: str) -> None:
    probe = probe_of(model_of("bert", CLASSES), CLASSES)
    transform = build(CHOICES[choice], **settings)
    with pytest.raises(ValueError, match=message):
        transform.check(probe.sites)
        transform.bases(probe)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("bert", {"block": 12}, r"its 32 channels .* transform.block=12; all .* can have 1, 2, 4, 8, 16$"),
        ("bert", {"block": 32}, r"site 0.ffn.mid: its 48 channels .* transform.block=32"),
        ("bert", {"block": 12, "sites": ["*.ffn.mid"]}, None),
        ("bert", {"block": 32, "norm_outputs": True}, None),
        ("bert", {"block": 12, "norm_outputs": True}, r"its 32 channels"),
        ("bert", {}, None),
        ("llama", {"block": 16}, None),
        ("vit", {"block": 16}, None),
    ],
)
@pytest.mark.parametrize("at", ["operand", "tensor"])
def test_a_rotation_that_does_not_fit_is_refused_before_weights_are_read(
    family: str, settings: dict[str, object], message: str | None, at: str
) -> None:
    head = next(head for name, head in CASES if name == family)
    model, placement = model_of(family, head), Placement(at=at)
    sites, transform = sites_of(model, placement), build(CHOICES["hadamard"], **settings)
    if message:
        with pytest.raises(ValueError, match=message):
            transform.check(sites)
    else:
        transform.check(sites)
        assert transform.bases(probe_of(model, head, placement))
