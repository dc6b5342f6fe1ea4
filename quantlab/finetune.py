"""``python -m quantlab.finetune model=minilm task=docmatch``: trains a classifier once, for every later trial.

The result lies in the cache folder under a key of all that decides its weights: the base checkpoint, the train split,
the labels, the recipe. The same seed on the same machine gives the same weights.
"""

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import hydra
import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_linear_schedule_with_warmup

from quantlab import checkpoint
from quantlab.batching import Batch, Tokenized, by_length, on_device, tokenize
from quantlab.cache import published
from quantlab.conf_dir import CONF
from quantlab.evaluation import predict
from quantlab.models import FineTuned, ModelSpec, Recipe, check_fit
from quantlab.tasks import metrics
from quantlab.tasks.base import Splits, Task

POOL = (
    50  # batches whose rows are sorted by length together: long enough for little padding, short enough to stay random
)
MAX_GRAD_NORM = 1.0
EVALUATION_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """What ``conf/finetune.yaml`` builds."""

    model: ModelSpec
    task: Task

    def run(self, console: Console) -> Path:
        """Trains and stores the model unless it is there, and returns its folder."""
        if not isinstance(self.model, FineTuned):
            raise ValueError(
                "this model is a checkpoint already; train with model=minilm, or with model=bert_base and "
                "model.base.path=<folder or hub name>"
            )
        target = self.model.target(self.task)
        if target.is_dir():
            console.print(f"already there: {target}", soft_wrap=True)
            return target
        with published(target) as scratch:  # made first, so that a read-only cache fails before hours of training
            scores = finetune(self.model, self.task, scratch)
        console.print(", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        console.print(f"stored in {target}", soft_wrap=True)
        return target


def finetune(spec: FineTuned, task: Task, folder: Path) -> dict[str, float]:
    """Trains on the train split, writes model, tokenizer and recipe.json into ``folder``; the evaluation's metrics."""
    device, base, data = spec.torch_device(), spec.base.folder(), task.load()
    tokenizer = checkpoint.read_tokenizer(base)
    check_fit(checkpoint.read_config(base), tokenizer, task, base)
    rows = tokenize(data.train, tokenizer, task.max_length)
    with torch.random.fork_rng():  # the caller's random state is its own
        torch.manual_seed(spec.recipe.seed)
        model = with_head(base, task)
        model.to(device)  # type: ignore[arg-type]
        train(model, tokenizer, rows, spec.recipe)
    scores = evaluate(model, tokenizer, task, data)
    with checkpoint.quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    write_card(folder, spec, task, data, scores)
    return scores


def with_head(base: Path, task: Task) -> PreTrainedModel:
    """The encoder with a new head for the task. Raises ValueError where tensors of the encoder itself are missing."""
    names = dict(enumerate(task.labels or ("score",)))
    kind = "regression" if task.regression else "single_label_classification"
    ids = {name: index for index, name in names.items()}
    model, missing = checkpoint.read_model(
        base, num_labels=task.num_labels, id2label=names, label2id=ids, problem_type=kind
    )
    encoder = f"{model.base_model_prefix}."
    lost = sorted(name for name in missing if name.startswith(encoder) and ".pooler." not in name)
    if lost:
        raise ValueError(f"{base} lacks {', '.join(lost[:8])}: the encoder is not whole")
    return model


def train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Tokenized, recipe: Recipe) -> None:
    """Trains in place by the recipe. Raises FloatingPointError where the loss is no longer finite."""
    steps = recipe.epochs * sum(1 for _ in shuffled(rows, tokenizer, recipe, 0))
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate, fused=True)
    warmup = round(recipe.warmup_fraction * steps)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, steps)  # type: ignore[no-untyped-call]
    model.train()
    with progress() as bar:
        shown = bar.add_task("fine-tuning", total=steps, loss=float("nan"), rate=recipe.learning_rate)
        for epoch in range(recipe.epochs):
            for batch, labels in shuffled(rows, tokenizer, recipe, epoch):
                loss = step(model, batch, labels, recipe.bf16)
                optimizer.step()
                schedule.step()
                bar.update(shown, advance=1, loss=loss, rate=schedule.get_last_lr()[0])
    model.eval()  # type: ignore[no-untyped-call]


def step(model: PreTrainedModel, batch: Batch, labels: np.ndarray, bf16: bool) -> float:
    """Leaves the batch's clipped gradients in the model and returns its loss."""
    wanted = torch.from_numpy(labels).to(model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16 and bf16_is_fast(model.device)):
        logits = model(**on_device(batch, model.device)).logits
    loss = loss_of(logits.float(), wanted)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss became {loss.item()}: lower the learning rate")
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    return loss.item()


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with class indices, mean squared error with scores. Shapes (N, C) and (N,)."""
    if labels.is_floating_point():
        return functional.mse_loss(logits[:, 0], labels)
    return functional.cross_entropy(logits, labels)


def shuffled(
    rows: Tokenized, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, epoch: int
) -> Iterator[tuple[Batch, np.ndarray]]:
    """An epoch's batches in random order, each of rows of like length, with their labels."""
    generator = np.random.default_rng([recipe.seed, epoch])
    order = generator.permutation(len(rows))
    for pool in np.split(order, range(POOL * recipe.batch_size, len(order), POOL * recipe.batch_size)):
        part = Tokenized(
            rows=tuple(rows.rows[row] for row in pool), labels=rows.labels[pool], max_length=rows.max_length
        )
        batches = by_length(part, tokenizer, recipe.batch_size)
        for chosen in generator.permutation(len(batches)):
            yield batches[chosen], part.labels[batches[chosen].indices]


def parameter_groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; biases and normalisation weights do not."""
    parameters = list(model.parameters())
    return [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": weight_decay},
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    ]


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the hardware multiplies in BF16 itself rather than in emulation."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())


def evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, data: Splits) -> dict[str, float]:
    """The task's metrics and the loss on its evaluation split, in FP32."""
    batches = by_length(tokenize(data.evaluation, tokenizer, task.max_length), tokenizer, EVALUATION_BATCH)
    logits = predict(model, batches, range(task.num_labels), "evaluating").logits
    labels = data.evaluation.labels
    return metrics.compute(task.metrics, logits, labels) | {"loss": metrics.loss(logits, labels, task.regression)}


def write_card(folder: Path, spec: FineTuned, task: Task, data: Splits, scores: dict[str, float]) -> None:
    """recipe.json: how this model was made, and how well it does."""
    card = {
        "task": task.name,
        "labels": task.labels,
        "max_length": task.max_length,
        "recipe": asdict(spec.recipe),
        "fingerprints": {"train": data.train.fingerprint, "evaluation": data.evaluation.fingerprint},
        "evaluation": scores,
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy", "scipy")}
        | {"python": platform.python_version()},
    }
    (folder / "recipe.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def progress() -> Progress:
    """A bar with the loss and the learning rate."""
    numbers = TextColumn("loss {task.fields[loss]:.3f}, rate {task.fields[rate]:.1e}")
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), numbers, TimeRemainingColumn())


@hydra.main(version_base="1.3", config_path=CONF, config_name="finetune")
def main(settings: DictConfig) -> None:
    config: FineTuning = instantiate(settings)
    config.run(Console())


if __name__ == "__main__":
    main()
