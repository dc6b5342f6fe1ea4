"""Penalties on activations and weights: their formulas, their gradients, and what they do to an outlier."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from families import CASES, CONFIGS, batch_of, model_of
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tiny import padded, state, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from quantlab.network.architecture import all_sites, skeleton_of
from quantlab.network.conversion import conv1d_to_linear
from quantlab.network.models import Recipe
from quantlab.network.taps import tapped
from quantlab.plan.plan import QuantPlan
from quantlab.tasks.batching import Batch
from quantlab.tasks.heads import CLASSES, TOKENS, auto_class
from quantlab.training.kurtosis import Kurtosis, kurtosis, weight_penalty
from quantlab.training.penalties import matrices, mean_over_sites
from quantlab.training.quanttune import QuantTune, deviation
from quantlab.training.training import Plain

PLANTED = "bert.encoder.layer.0.output.dense"  # 0.ffn.out
BATCH = padded()
GPT2_LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
LABELS = torch.arange(len(BATCH)) % 2


def quanttune(weight: float = 1.0, quantile: float = 0.99, **settings: Any) -> QuantTune:
    return QuantTune(recipe=Recipe(), weight=weight, quantile=quantile, **settings)


def of_activations(weight: float = 1.0, **settings: Any) -> Kurtosis:
    return Kurtosis(recipe=Recipe(), of_weights=0.0, of_activations=weight, target=1.8, **settings)


def of_weights(weight: float = 1.0, target: float = 1.8) -> Kurtosis:
    return Kurtosis(recipe=Recipe(), of_weights=weight, of_activations=0.0, target=target)


def losses(training: Plain, model: PreTrainedModel, batch: Batch = BATCH) -> tuple[Tensor, Tensor]:
    """The task's loss and the training's penalty."""
    with training.course(model, all_sites(model), QuantPlan()) as course:
        loss = nn.functional.cross_entropy(model(**batch.inputs).logits, LABELS)
        return loss, torch.zeros(()) if course.penalty is None else course.penalty()


values = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60)


@given(values, st.floats(0.01, 0.99))
def test_deviation_is_numpys(numbers: list[float], quantile: float) -> None:
    x = np.array(numbers)
    q, largest = np.quantile(abs(x), quantile), abs(x).max()
    wanted = (largest - q) / q if q > 1e-6 * largest else 0.0
    if q > 1e-6 * largest or q == 0:
        found = deviation(torch.tensor(numbers, dtype=torch.float64), quantile)
        assert float(found) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@given(st.integers(0, 1000), st.floats(2.1, 30), st.floats(1e-6, 1e6))
def test_kurtosis_is_scipys(seed: int, freedom: float, scale: float) -> None:
    x = scale * (np.random.default_rng(seed).standard_t(freedom, (7, 9)) + 3)
    assert float(kurtosis(torch.from_numpy(x))) == pytest.approx(stats.kurtosis(x, None, fisher=False))


def test_weight_penalty_is_over_the_matrices_of_linears() -> None:
    model = tiny_model()
    found = [
        (stats.kurtosis(module.weight.numpy(), None, fisher=False) - 1.9) ** 2
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    assert len(found) == 14
    assert float(weight_penalty(model, 1.9)) == pytest.approx(np.mean(found), rel=1e-5)
    assert float(losses(of_weights(0.5, 1.9), model)[1]) == pytest.approx(0.5 * np.mean(found), rel=1e-5)


def test_gpt2_has_matrices_too() -> None:
    """As transformers builds it, before its Conv1D become Linears; the head's is the embedding's."""
    kind, settings, _ = CONFIGS["gpt2"]
    model = auto_class(TOKENS).from_config(kind(**settings)).requires_grad_(False)
    wanted = [f"transformer.h.{i}.{name}.weight" for i in (0, 1) for name in GPT2_LINEARS]
    assert list(matrices(model)) == wanted
    before = weight_penalty(model, 1.8)
    assert float(weight_penalty(conv1d_to_linear(model), 1.8)) == pytest.approx(float(before), rel=1e-5)


def test_penalties_are_means_over_the_sites() -> None:
    model, seen = tiny_model(), []
    sites = [site for site in all_sites(model) if site.name in ("0.ffn.out", "1.layer.out", "1.attn.probs")]

    def look(x: Tensor) -> Tensor:
        seen.append(float(x.abs().max()))
        return x

    with tapped(model, {site.tap: look for site in sites[:1]}), torch.inference_mode():
        model(**BATCH.inputs)
    globs = tuple(site.name for site in sites)
    each = [float(losses(of_activations(sites=(name,)), model)[1]) for name in globs]
    assert float(losses(of_activations(2.0, sites=globs), model)[1]) == pytest.approx(2 * np.mean(each))
    each = [float(losses(quanttune(sites=(name,)), model)[1]) for name in globs]
    assert float(losses(quanttune(0.1, sites=globs), model)[1]) == pytest.approx(0.1 * np.mean(each))


def test_gradients_are_those_of_finite_differences() -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_t(3, (5, 8))).requires_grad_()
    assert torch.autograd.gradcheck(kurtosis, (x,))
    q = np.quantile(x.detach().abs(), 0.9)
    deviation(x, 0.9).backward()  # q is a constant: the largest element alone has a gradient
    top = x.detach().abs() == x.detach().abs().max()
    torch.testing.assert_close(x.grad, torch.where(top, x.detach().sign() / q, 0.0))


@pytest.mark.parametrize("training", [of_activations(), of_weights()], ids=["activations", "weights"])
def test_gradients_reach_the_weights(training: Plain) -> None:
    """In a whole network, against central differences in float64."""
    model = tiny_model().double().requires_grad_()
    losses(training, model)[1].backward()
    for name in (
        "bert.encoder.layer.0.output.dense.weight",
        "bert.encoder.layer.1.intermediate.dense.weight",
    ):
        weight, step = model.get_parameter(name), 1e-5
        assert weight.grad is not None
        shifted = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[2, 3] += sign * step
            shifted.append(float(losses(training, model)[1].detach()))
            with torch.no_grad():
                weight[2, 3] -= sign * step
        slope = (shifted[0] - shifted[1]) / (2 * step)
        assert float(weight.grad[2, 3]) == pytest.approx(slope, rel=1e-5)


def constant(value: float) -> Tensor:
    return torch.full((30, 7), value, requires_grad=True)


def lone() -> Tensor:
    x = torch.zeros(30, 7)
    x[3, 3] = 1e30
    return x.requires_grad_()


@pytest.mark.parametrize("x", [constant(0.0), constant(0.1), constant(-3e4), constant(1e-30), lone()])
@pytest.mark.parametrize("statistic", [kurtosis, lambda x: deviation(x, 0.99)], ids=["kurtosis", "deviation"])
def test_constant_tensors_have_finite_gradients(x: Tensor, statistic: Callable[[Tensor], Tensor]) -> None:
    x.grad = None
    number = statistic(x) + 0 * x.sum()
    number.backward()
    assert number.isfinite() and x.grad is not None and x.grad.isfinite().all()
    if x.unique().numel() == 1:
        assert 0 <= number < 1.1 and x.grad.abs().max() < 1e-3


@pytest.mark.parametrize("training", [quanttune(), of_activations()], ids=["quanttune", "kurtosis"])
def test_padding_changes_no_penalty(training: Plain) -> None:
    model = tiny_model()
    found = [float(losses(training, model, padded(length=width))[1]) for width in (9, 16)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("name, head", CASES)
def test_every_family_trains(name: str, head: str) -> None:
    """In training mode under BF16: the answers are plain's to the bit, penalties and gradients are finite, in
    FP32, and reach the first layer."""
    model = model_of(name, head)
    inputs, _ = batch_of(head)
    config = skeleton_of(model.config, head)
    before = state(model)
    model.requires_grad_().train()
    try:
        for training in (Plain(recipe=Recipe()), quanttune(), of_activations(), of_weights()):
            training.check(config, all_sites(config))
            torch.manual_seed(0)
            with (
                torch.autocast("cpu", torch.bfloat16),
                training.course(model, all_sites(model), QuantPlan()) as course,
            ):
                answers = model(**inputs).logits
                if course.penalty is None:
                    plain = answers
                    continue
                penalty = course.penalty()
            assert torch.equal(answers, plain)
            assert penalty.dtype == torch.float32 and penalty.isfinite() and penalty > 0
            penalty.backward()
            gradients = [value.grad for value in model.parameters() if value.grad is not None]
            assert len(gradients) >= 8 and all(gradient.isfinite().all() for gradient in gradients)
            model.zero_grad()
    finally:
        model.requires_grad_(False).eval()
    assert state(model) == before


@pytest.mark.parametrize(
    "training", [quanttune(0.0), of_activations(0.0), of_weights(0.0)], ids=["quanttune", "x", "w"]
)
def test_weight_zero_is_plain(training: Plain) -> None:
    model = tiny_model().train()
    torch.manual_seed(0)
    plain, _ = losses(Plain(recipe=Recipe()), model)
    torch.manual_seed(0)
    loss, penalty = losses(training, model)
    assert torch.equal(loss + penalty, plain)


def trained(training: Plain, measure: Callable[[PreTrainedModel], float]) -> tuple[float, float]:
    """A planted outlier's measure before and after some steps."""
    model = tiny_model().requires_grad_()
    planted = model.get_parameter(f"{PLANTED}.weight").data
    planted[3, 5] = 40 * planted.std()
    before = measure(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        sum(losses(training, model), torch.zeros(())).backward()
        optimizer.step()
    return before, measure(model)


def largest(model: PreTrainedModel) -> float:
    return float(losses(quanttune(sites=("0.ffn.out",)), model)[1].detach())


def tails(model: PreTrainedModel) -> float:
    return float(losses(of_activations(sites=("0.ffn.out",)), model)[1].detach())


def matrix_tails(model: PreTrainedModel) -> float:
    return float(kurtosis(model.get_parameter(f"{PLANTED}.weight").detach()))


@pytest.mark.parametrize(
    "make, measure",
    [(quanttune, largest), (of_activations, tails), (of_weights, matrix_tails)],
    ids=["quanttune", "activations", "weights"],
)
def test_a_planted_outlier_shrinks(
    make: Callable[..., Plain], measure: Callable[[PreTrainedModel], float]
) -> None:
    before, after = trained(make(1.0), measure)
    _, plain = trained(make(0.0), measure)
    assert after < 0.7 * before and after < 0.8 * plain


def test_a_penalty_is_given_once() -> None:
    model = tiny_model().requires_grad_()
    site = next(site for site in all_sites(model) if site.name == "0.layer.out")
    with mean_over_sites(model, [site], kurtosis) as mean:
        with torch.no_grad():
            model(**BATCH.inputs)
        with pytest.raises(RuntimeError, match="a forward pass with gradients"):
            mean()
        model(**BATCH.inputs)
        mean().backward()
        with pytest.raises(RuntimeError, match="a forward pass with gradients"):
            mean()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: quanttune(-0.1), "training.weight must be at least 0, got -0.1"),
        (lambda: quanttune(float("nan")), "training.weight must be a finite number, got nan"),
        (lambda: quanttune("1"), "training.weight must be a finite number, got '1'"),  # type: ignore[arg-type]
        (lambda: quanttune(quantile=1.0), "training.quantile must be between 0 and 1, got 1.0"),
        (lambda: of_activations(-1), "training.of_activations must be at least 0, got -1"),
        (lambda: of_weights(-1e-9), "training.of_weights must be at least 0, got -1e-09"),
        (lambda: of_weights(1.0, 0.9), "training.target must be at least 1, got 0.9"),
    ],
)
def test_bad_settings(make: Callable[[], Plain], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize("make", [quanttune, of_activations], ids=["quanttune", "kurtosis"])
@pytest.mark.parametrize(
    "name, head, glob, message",
    [
        ("bert", CLASSES, "*.ffn.outs", "matches nothing (did you mean '*.ffn.out'"),
        ("bert", CLASSES, "0.attn.in", "matches nothing (did you mean"),  # only read there
        ("llama", TOKENS, "*.ffn.sum", "in a pre-norm block it is the layer's output: ask for *.layer.out"),
    ],
)
def test_globs_that_match_nothing(
    make: Callable[..., Plain], name: str, head: str, glob: str, message: str
) -> None:
    skeleton = skeleton_of(model_of(name, head).config, head)
    with pytest.raises(ValueError, match="training.sites") as caught:
        make(sites=[glob]).check(skeleton, all_sites(skeleton))
    assert message in str(caught.value)
