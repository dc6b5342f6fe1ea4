"""The training loop: it goes on where it was killed, takes several batches a step, and says what is wrong."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_finetune import qnli
from torch import Tensor
from transformers import PreTrainedModel

from quantlab.network import checkpoint
from quantlab.network.models import Recipe
from quantlab.network.processors import read_tokenizer
from quantlab.tasks.batching import Batch
from quantlab.tasks.heads import CLASSES
from quantlab.training import recipe as loop
from quantlab.training.losses import Loss, loss_for
from quantlab.training.training import Course

RECIPE = Recipe(epochs=1, batch_size=8, learning_rate=1e-3, bf16=False)
LOSS = loss_for(CLASSES, (0, 1))


class Killed(BaseException):
    pass


def trained(
    folder: Path,
    glue: Path,
    recipe: Recipe = RECIPE,
    course: Course | None = None,
    state: Path | None = None,
    loss: Loss = LOSS,
) -> tuple[PreTrainedModel, loop.History]:
    model, _ = checkpoint.read_network(folder)
    tokenizer = read_tokenizer(folder)
    rows = qnli(glue).load().train.encode(tokenizer, 32)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        history = loop.train(model, tokenizer, rows, recipe, loss, course, state)
    return model, history


def equal(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_run_that_is_killed_goes_on_to_the_same_weights(
    tiny_bert: Path, tiny_glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, left, learned = tmp_path / "state", [5], torch.nn.Parameter(torch.zeros(2))
    groups = [{"params": [learned], "lr": 0.1}]
    penalty = lambda: (learned - 1).square().sum()  # noqa: E731
    whole, history = trained(tiny_bert, tiny_glue, course=Course(groups=groups, penalty=penalty))
    wanted = learned.detach().clone()
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)

    def kill() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    learned.data.zero_()
    course = Course(groups=groups, penalty=penalty, after_step=kill)
    with pytest.raises(Killed):
        trained(tiny_bert, tiny_glue, course=course, state=state)
    learned.data.fill_(7.0)
    rest, found = trained(tiny_bert, tiny_glue, course=Course(groups=groups, penalty=penalty), state=state)
    assert equal(whole, rest) and torch.equal(learned.detach(), wanted)
    assert found == history


def test_a_step_may_take_several_batches(tiny_bert: Path, tiny_glue: Path) -> None:
    _, history = trained(tiny_bert, tiny_glue)
    _, fewer = trained(tiny_bert, tiny_glue, replace(RECIPE, accumulation=3))
    assert len(fewer) == -(-len(history) // 3)


def test_the_loss_of_a_step_is_the_mean_of_its_batches(tiny_bert: Path, tiny_glue: Path) -> None:
    still = replace(RECIPE, dropout=False, learning_rate=1e-30)
    _, history = trained(tiny_bert, tiny_glue, still)
    _, again = trained(tiny_bert, tiny_glue, replace(still, accumulation=4))
    np.testing.assert_allclose(again[0]["loss"], np.mean([each["loss"] for each in history[:4]]), rtol=1e-6)


def test_bf16_is_refused_where_the_hardware_has_none(
    tiny_bert: Path, tiny_glue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "bf16_is_fast", lambda _: False)
    with pytest.raises(ValueError, match="bf16=true, but this hardware"):
        trained(tiny_bert, tiny_glue, replace(RECIPE, bf16=True))
    trained(tiny_bert, tiny_glue, replace(RECIPE, bf16="auto"))


def with_endless_gradients(logits: Tensor, batch: Batch, labels: np.ndarray) -> Tensor:
    return (logits * 0).sum().sqrt()  # 0, with an infinite slope


def test_a_gradient_that_is_not_finite_ends_the_training_before_its_step(
    tiny_bert: Path, tiny_glue: Path, tmp_path: Path
) -> None:
    """The loss is finite, so nothing else would say that the next weights are NaN."""
    state = tmp_path / "state"
    with pytest.raises(FloatingPointError, match="the gradient became nan at step 1 of"):
        trained(tiny_bert, tiny_glue, state=state, loss=with_endless_gradients)
    kept = torch.load(state, weights_only=True)["model"]
    model, _ = checkpoint.read_network(tiny_bert)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def to_the_first_class(logits: Tensor, batch: Batch, labels: np.ndarray) -> Tensor:
    return (logits[:, 1] - logits[:, 0]).mean()


def test_a_constant_classifier_is_said_early(
    tiny_bert: Path,
    tiny_glue: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(loop, "WATCHED", 16)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    state = tmp_path / "state"
    failure = pytest.raises(ValueError, match="training did not work: the last 16")
    with caplog.at_level(logging.WARNING), failure:
        trained(
            tiny_bert, tiny_glue, replace(RECIPE, learning_rate=1e-2), state=state, loss=to_the_first_class
        )
    assert not state.exists()
    said = [record.getMessage() for record in caplog.records if "all got class" in record.getMessage()]
    assert len(said) == 1 and "lower learning rate" in said[0]
    assert loop.constant_answer([(0, 0)] * 16) is None  # the labels are all that class, too
