"""Trainings that change attention: how they begin, what they leave, and a trial of it."""

from pathlib import Path

import pytest
import torch
from conftest import MakeModel
from labs import Lab
from safetensors.torch import load_file
from tiny import logits, padded, tiny_model

from quantlab.network.changed_attention import GATES, KEY
from quantlab.network.models import Recipe
from quantlab.training.clipped_softmax import ClippedSoftmax
from quantlab.training.gated_attention import GatedAttention
from quantlab.training.training import Plain

CLIPPED = {"alpha": 4.0, "length": 128, "zeta": 1.0}
GATED = {"pi_init": 0.5, "scale": 2.0}


def started(training: Plain) -> torch.Tensor:
    model = tiny_model()
    training.check(model, [])
    training.start(model)
    with pytest.raises(ValueError, match="already: training=plain trains it further"):
        training.check(model, [])
    with pytest.raises(ValueError, match="already: training=plain trains it further"):
        training.start(model)
    return logits(model, padded())


def test_they_begin_as_the_papers_do() -> None:
    plain, recipe = logits(tiny_model(), padded()), Recipe()
    assert torch.equal(started(GatedAttention(recipe=recipe, **GATED)), plain)
    assert torch.equal(started(ClippedSoftmax(recipe=recipe, alpha=0.0, length=128, zeta=1.0)), plain)
    assert not torch.equal(started(ClippedSoftmax(recipe=recipe, **CLIPPED)), plain)
    assert ClippedSoftmax(recipe=recipe, **CLIPPED).change().gamma == -0.03125
    narrow = GatedAttention(recipe=recipe, pi_init=0.25, scale=1.0)
    model = tiny_model()
    narrow.start(model)
    gate = model.get_submodule(f"{GATES}.1")
    torch.testing.assert_close(gate(torch.randn(2, 5, 32)), torch.full((2, 5, 4), 0.25))


@pytest.mark.parametrize(
    ("training", "setting", "message"),
    [
        (ClippedSoftmax, {"alpha": -1}, r"training\.alpha must be at least 0, got -1"),
        (ClippedSoftmax, {"length": 0}, r"training\.length"),
        (ClippedSoftmax, {"zeta": 0.5}, r"training\.zeta must be at least 1, got 0\.5"),
        (GatedAttention, {"pi_init": 1.0}, r"training\.pi_init must be between 0 and 1, got 1\.0"),
        (GatedAttention, {"scale": 0}, r"training\.scale must be above 0, got 0"),
    ],
)
def test_bad_settings(training: type[Plain], setting: dict[str, float], message: str) -> None:
    plain = CLIPPED if training is ClippedSoftmax else GATED
    with pytest.raises(ValueError, match=message):
        training(recipe=Recipe(), **{**plain, **setting})


@pytest.mark.parametrize("training", ["gated_attention", "clipped_softmax"])
def test_a_trial_trains_it_and_quantizes_it(
    training: str, make_model: MakeModel, tiny_glue: Path, own_cache: Path
) -> None:
    """Its gates have learned, the engines agree, and a second trial finds it."""
    lab = Lab(
        (
            "model=hf",
            f"model.path={make_model(layers=1, initializer_range=0.5)}",
            "task=qnli",
            f"task.data_dir={tiny_glue}",
            "task.max_length=32",
            "evaluation.limit=48",
            "evaluation.order=file",
            "calibration.samples=8",
            "profile=off",
            "tracking=off",
            f"training={training}",
            "training.recipe.learning_rate=1e-3",
            *(["training.length=32", "training.alpha=2"] if training == "clipped_softmax" else []),
        )
    )
    results = [lab.trial(f"engine={engine}") for engine in ("simulated", "integer")]
    (folder,) = [path for path in (own_cache / "trained").iterdir() if path.is_dir()]
    tensors = load_file(folder / "model.safetensors")
    gates = [value for name, value in tensors.items() if name.startswith(GATES)]
    assert KEY in (folder / "config.json").read_text()
    assert len(gates) == (2 if training == "gated_attention" else 0)
    assert all(value.any() for value in gates)
    one, other = (result.logits for result in results)
    assert abs(one - other).max() < 0.05 * abs(one).max()
    assert results[0].tags["attention"].startswith("gated" if gates else "clipped_softmax, gamma -0.0625")
