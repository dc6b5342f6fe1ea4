"""Material in memory: a tiny model, a tokenizer with punctuation, and rows of texts, without files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from conftest import SPECIAL, WORDS
from transformers import BertTokenizerFast, PreTrainedModel

from quantlab.calibration.estimators import MinMax
from quantlab.evaluation.answering import Evaluation
from quantlab.network.architecture import all_sites
from quantlab.network.models import LoadedModel
from quantlab.quant.sketch import Sketch
from quantlab.tasks.batching import Batch, by_length
from quantlab.tasks.examples import Texts
from quantlab.tasks.heads import CLASSES
from quantlab.tasks.task import Splits, Task
from quantlab.trial.material import Material, fp32_sketches

PUNCTUATION = (",", "—")
VOCABULARY = (*SPECIAL, *WORDS[: -len(PUNCTUATION)], *PUNCTUATION)  # as many as the models' embeddings
MAX_LENGTH, ROWS, SAMPLES = 25, 30, 20
CALIBRATION = MinMax(samples=SAMPLES, batch_size=8)


@dataclass(frozen=True, kw_only=True)
class Made(Task):
    """A task with given rows."""

    def load(self) -> Splits:
        raise NotImplementedError


def made_tokenizer() -> BertTokenizerFast:
    """A WordPiece tokenizer over :data:`VOCABULARY`."""
    return BertTokenizerFast(vocab={token: index for index, token in enumerate(VOCABULARY)})


def texts(count: int, seed: int = 0) -> Texts:
    """Pairs of texts of different lengths, punctuation among the words."""
    random = np.random.default_rng(seed)

    def pick(least: int, most: int) -> str:
        return " ".join(random.choice(VOCABULARY[len(SPECIAL) :], random.integers(least, most)))

    rows = tuple((pick(2, 6), pick(2, 14)) for _ in range(count))
    return Texts(texts=rows, labels=random.integers(0, 2, count))


def material_of(model: PreTrainedModel) -> Material:
    """The material that an analysis of the FP32 network reads."""
    tokenizer, task = (
        made_tokenizer(),
        Made(name="made", labels=("no", "yes"), metrics=("accuracy",), max_length=25),
    )
    rows = texts(ROWS, seed=1).encode(tokenizer, task.max_length)
    return Material(
        loaded=LoadedModel(
            model=model,
            folder=Path("nowhere"),
            head=CLASSES,
            processor=tokenizer,
            fingerprint="",
            label_columns=(0, 1),
            tags={},
        ),
        task=task,
        train=texts(ROWS),
        rows=rows,
        batches=by_length(rows, tokenizer, 8),
        evaluation=Evaluation(batch_size=8),
        sites=all_sites(model),
        clusters=None,
        data_fingerprint="",
        data_tags={},
        key="",
    )


def seen(material: Material) -> tuple[list[Batch], dict[str, Sketch]]:
    """The calibration batches, and the sketches of the FP32 network's sites on them."""
    return material.calibration_batches(CALIBRATION), fp32_sketches(material, CALIBRATION)


def states(model: PreTrainedModel, batch: Batch) -> list[np.ndarray]:
    """Transformers' own hidden states by depth, (rows, tokens, channels), float64."""
    with torch.inference_mode():
        hidden = model(**batch.inputs, output_hidden_states=True).hidden_states
    return [state.double().numpy() for state in hidden]


def kept(batch: Batch) -> np.ndarray:
    """Mask of the tokens that are not padding, (rows, tokens)."""
    mask: np.ndarray = batch.inputs["attention_mask"].bool().numpy()
    return mask
