"""Known answers: outliers planted in a network make W8A8 collapse, and the two remedies bring its answers
back.

``rescaled``: the last LayerNorm's output is 1024 times larger in some channels, and the pooler's columns as
much smaller. Powers of two are exact in FP32, so the function is the same to the bit. (In any other LayerNorm
of a post-norm network it would not be: its output also enters the next residual sum, whose LayerNorm mixes
all channels.)

``residual``: outliers as trained BERTs have them, at x and y: some channels of the FFN's input are near +-300
at every token, the FFN does not read them, the residual sum carries them on, and the next LayerNorm's weights
undo the scale.
"""

from dataclasses import dataclass

import pytest
import torch
from tiny import logits, padded, plan_of, sites_of, tiny_model
from transformers import PreTrainedModel

from quantlab.calibration.estimators import MinMax
from quantlab.calibration.outlier_statistics import by_depth
from quantlab.calibration.probe import observe
from quantlab.engines.insert import insert
from quantlab.methods.bits import Bits
from quantlab.methods.method import Method, plan_weights
from quantlab.methods.mixed_precision import MixedPrecision
from quantlab.methods.peg import Peg
from quantlab.methods.uniform import Uniform
from quantlab.quant.sqnr import sqnr_db

OUTLIERS = list(range(1, 32, 4))  # a quarter of the channels, two in each contiguous group of eight
OTHERS = [channel for channel in range(32) if channel not in OUTLIERS]
LENGTHS = tuple(3 + index % 11 for index in range(96))
ANSWERED, CALIBRATING = padded(LENGTHS, seed=5), padded(LENGTHS[:32], seed=6)
XHY = ("*.ffn.in", "*.ffn.out", "*.ffn.sum")

symmetries = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])


@dataclass(frozen=True)
class Comparison:
    """Quantized against FP32 answers of the same model."""

    sqnr_db: float
    agreement: float


def undecided(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its bias moved so that half of the answers fall into each class."""
    model.classifier.bias.sub_(logits(model, ANSWERED).median(0).values)
    return model


def rescaled() -> PreTrainedModel:
    """Outliers in the last layer's output, function-preserving."""
    model = undecided(tiny_model())
    norm, pooler = model.bert.encoder.layer[-1].output.LayerNorm, model.bert.pooler.dense
    norm.weight[OUTLIERS] *= 1024
    norm.bias[OUTLIERS] *= 1024
    pooler.weight[:, OUTLIERS] /= 1024
    return model


def residual() -> PreTrainedModel:
    """Outliers at x and y of every layer."""
    model = tiny_model()
    for layer in model.bert.encoder.layer:
        norm = layer.attention.output.LayerNorm
        norm.weight[OUTLIERS] *= 10
        norm.bias[OUTLIERS] = torch.tensor([300.0, -300.0]).repeat(4)
        layer.intermediate.dense.weight[:, OUTLIERS] = 0
        layer.output.LayerNorm.weight[OTHERS] *= 150
    return undecided(model)


def compared(model: PreTrainedModel, method: Method, bits: Bits) -> Comparison:
    sites, calibration = sites_of(model), MinMax()
    method.check(sites)
    sketches, weights = observe(model, sites, [CALIBRATING]), plan_weights(model, method, bits, calibration)
    reference = logits(model, ANSWERED)
    with insert(model, plan_of(method, sites, sketches, weights, bits, calibration)):
        quantized = logits(model, ANSWERED)
    agreement = (reference.argmax(-1) == quantized.argmax(-1)).float().mean().item()
    return Comparison(sqnr_db(reference, quantized), agreement)


def collapsed(result: Comparison) -> bool:
    """The noise is as loud as the logits, and the answers are little better than a coin's."""
    return result.sqnr_db < 3 and result.agreement < 0.75


def kept(result: Comparison, least_db: float) -> bool:
    return result.sqnr_db > least_db and result.agreement > 0.85


def test_rescaling_preserves_the_function_to_the_bit() -> None:
    plain, planted = undecided(tiny_model()), rescaled()
    assert torch.equal(logits(planted, ANSWERED), logits(plain, ANSWERED))
    kurtosis = [
        by_depth(observe(model, sites_of(model), [ANSWERED]), ["1.layer.out"])["kurtosis"][0]
        for model in (plain, planted)
    ]
    assert kurtosis[1] > kurtosis[0] + 2


@pytest.mark.parametrize("model", [rescaled, residual])
def test_the_models_have_something_to_lose(model: object) -> None:
    answers = logits(model(), ANSWERED).argmax(-1).float()  # type: ignore[operator]
    assert 0.4 < answers.mean() < 0.6


@symmetries
def test_rescaled(symmetric: bool) -> None:
    # Weights at 16 bits: at 8, the pooler's columns that are 1024 times smaller than the others would be
    # zeros.
    model, bits, planted = rescaled(), Bits(weights=16, symmetric=symmetric), ("1.layer.out",)
    assert kept(compared(undecided(tiny_model()), Uniform(), bits), least_db=15)
    assert collapsed(compared(model, Uniform(), bits))
    assert collapsed(compared(model, Peg(sites=planted, k=4, permute="none"), bits))
    assert kept(compared(model, Peg(sites=planted, k=4), bits), least_db=15)
    for format in ("fp16", "bf16", "int16", "fp32"):
        assert kept(compared(model, MixedPrecision(keep=planted, format=format), bits), least_db=15), format


@symmetries
def test_residual(symmetric: bool) -> None:
    model, bits = residual(), Bits(symmetric=symmetric)
    assert collapsed(compared(model, Uniform(), bits))
    assert collapsed(compared(model, Peg(sites=XHY, k=4, permute="none"), bits))
    assert kept(compared(model, Peg(sites=XHY, k=4), bits), least_db=10)
    assert kept(compared(model, MixedPrecision(keep=XHY), bits), least_db=15)


def test_w8a32_says_that_activations_are_the_cause() -> None:
    assert kept(compared(residual(), Uniform(), Bits(activations=32)), least_db=20)
    assert collapsed(compared(residual(), Uniform(), Bits(weights=32, symmetric=True)))
