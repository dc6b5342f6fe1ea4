"""Where a model comes from: a checkpoint folder, the hub, or quantlab's own fine-tuning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from quantlab.config.checks import at_least, folder_name, one_of, whole
from quantlab.network import checkpoint, checkpoint_files
from quantlab.network.architecture import site_tags, skeleton_of
from quantlab.network.changed_attention import attention_tags
from quantlab.network.checkpoint_sources import CheckpointSource, Pretrained, origin_tags
from quantlab.network.compatibility import check_fit, check_head, processor_tags, require_whole
from quantlab.network.labels import label_columns
from quantlab.network.processors import Processor, read_processor
from quantlab.storage.files import cache_dir, digest
from quantlab.tasks.examples import Examples
from quantlab.tasks.heads import TOKENS
from quantlab.tasks.task import Splits, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True, eq=False)
class ResolvedCheckpoint:
    """A checkpoint that exists and fits its task. Its weights have not been read."""

    folder: Path  # of config.json, weights and tokenizer
    fingerprint: str  # SHA-256 of these files: the checkpoint's part of every key
    head: str  # one of quantlab.tasks.heads
    skeleton: PreTrainedModel  # its modules, on the meta device
    processor: Processor  # turns the task's texts or images into the network's inputs
    label_columns: tuple[int, ...]  # logits[:, label_columns] are in the order of the task's labels
    tags: dict[str, str]  # label_order (matched, assumed, regression; none for next tokens), checkpoint, ...


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """A model with its weights, ready to run, and what identifies it."""

    model: PreTrainedModel  # FP32, eval mode, eager attention or a changed one, on its device, no gradients
    folder: Path  # of the checkpoint
    head: str  # one of quantlab.tasks.heads
    processor: Processor  # turns the task's texts or images into the network's inputs
    fingerprint: str  # SHA-256 of the checkpoint's files
    label_columns: tuple[int, ...]  # logits[:, label_columns] are in the order of the task's labels
    tags: dict[str, str]  # label_order (matched, assumed, regression), checkpoint, device


@dataclass(frozen=True, kw_only=True)
class ModelSpec(ABC):
    """A model's YAML keys, and how they become a loaded model. A subclass names the checkpoint's folder."""

    device: str = "auto"  # auto: a GPU if there is one

    def __post_init__(self) -> None:
        one_of("device", self.device, DEVICES)

    @abstractmethod
    def folder(self, task: Task, splits: Callable[[], Splits]) -> Path:
        """The folder of config.json, weights and tokenizer; ``splits`` loads the task's data.

        Raises OSError if the files do not exist and cannot be fetched.
        """

    def title(self, folder: Path) -> str:
        """The checkpoint's name in tags."""
        return str(folder)

    def torch_device(self) -> torch.device:
        """The device to run on. Raises ValueError for ``cuda`` without a GPU."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is cuda, but torch sees no GPU here; use auto or cpu")
        return torch.device("cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu")

    def resolve(self, task: Task, splits: Callable[[], Splits]) -> ResolvedCheckpoint:
        """Finds the checkpoint and checks that it fits the task, once for all steps of a trial.

        ``splits`` loads the task's data, which is part of a fine-tuned model's name. Raises ValueError or
        OSError that names the wrong device, file, tensor or label.
        """
        self.torch_device()
        folder = self.folder(task, splits)
        config = checkpoint.read_config(folder)
        check_head(config, task, folder)
        columns, order = label_columns(config, task, lambda: splits().classes)
        processor, skeleton = read_processor(folder, task.head), skeleton_of(config, task.head)
        check_fit(skeleton, processor, task, folder)
        require_whole(folder, skeleton, checkpoint.missing_tensors(folder, skeleton), task.head)
        return ResolvedCheckpoint(
            folder=folder,
            fingerprint=checkpoint_files.fingerprint(folder),
            head=task.head,
            skeleton=skeleton,
            processor=processor,
            label_columns=columns,
            tags={
                **({"label_order": order} if order else {}),
                "checkpoint": self.title(folder),
                **origin_tags(folder),
                **attention_tags(config),
                **site_tags(skeleton),
                **processor_tags(skeleton, processor),
            },
        )

    def load(self, resolved: ResolvedCheckpoint) -> LoadedModel:
        """Reads the weights. Raises ValueError or OSError that names the wrong file or tensor."""
        device, folder = self.torch_device(), resolved.folder
        model, missing = checkpoint.read_model(folder, resolved.head)
        require_whole(folder, model, missing, resolved.head)
        model.requires_grad_(False).eval().to(device)  # type: ignore[no-untyped-call]
        return LoadedModel(
            model=model,
            folder=folder,
            head=resolved.head,
            processor=resolved.processor,
            fingerprint=resolved.fingerprint,
            label_columns=resolved.label_columns,
            tags={**resolved.tags, "device": str(device)},
        )


@dataclass(frozen=True, kw_only=True)
class Checkpoint(ModelSpec):
    """A checkpoint that has the task's head: a folder, a GGUF file, or a name on the Hugging Face Hub."""

    path: str
    revision: str | None = None  # a commit, tag or branch on the hub

    def __post_init__(self) -> None:
        super().__post_init__()
        checkpoint_files.require_path(self.path)

    def folder(self, task: Task, splits: Callable[[], Splits]) -> Path:
        """The folder itself, the hub's files in its local cache, or a GGUF file's conversion."""
        return Pretrained(path=self.path, revision=self.revision).folder()

    def title(self, folder: Path) -> str:
        """The path or name, and the revision if there is one."""
        return f"{self.path}@{self.revision}" if self.revision else self.path


@dataclass(frozen=True, kw_only=True)
class Embedded(ModelSpec):
    """A checkpoint that has the task's head and comes with an extra of quantlab."""

    name: str  # as its YAML file is named
    source: CheckpointSource

    def folder(self, task: Task, splits: Callable[[], Splits]) -> Path:
        """The source's folder."""
        return self.source.folder()

    def title(self, folder: Path) -> str:
        """The name."""
        return self.name


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained: AdamW with linear warm-up, then linear decay to zero."""

    epochs: int = 1
    learning_rate: float = 2e-4  # after warm-up
    batch_size: int = 32
    warmup_fraction: float = 0.1  # of all steps
    weight_decay: float = 0.01
    seed: int = 0
    bf16: bool | str = "auto"  # autocast; auto: if the hardware has it. Weights and optimizer stay FP32
    rows: int | None = None  # of the training split, drawn with the seed; None: all
    accumulation: int = 1  # batches whose mean gradient makes a step
    dropout: bool = True  # as the checkpoint's config has it

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation"):
            whole(name, getattr(self, name), 1)
        if self.rows is not None:
            whole("rows", self.rows, 1)
        whole("seed", self.seed, 0)
        for name in ("learning_rate", "warmup_fraction", "weight_decay"):
            at_least(name, getattr(self, name), 0)
        if self.learning_rate == 0:
            raise ValueError("learning_rate must be above 0, got 0")
        if self.warmup_fraction > 1:
            raise ValueError(f"warmup_fraction must be at most 1, got {self.warmup_fraction}")
        one_of("bf16", self.bf16, ("auto", True, False))
        one_of("dropout", self.dropout, (True, False))

    def examples(self, train: Examples) -> Examples:
        """The rows that are trained on. Raises ValueError if there are fewer than ``rows``."""
        if self.rows is None:
            return train
        if self.rows > len(train):
            raise ValueError(f"recipe.rows is {self.rows:,}, but the training split has {len(train):,} rows")
        return train.take(np.random.default_rng(self.seed).permutation(len(train))[: self.rows])


@dataclass(frozen=True, kw_only=True)
class FineTuned(ModelSpec):
    """A classifier that ``python -m quantlab.finetune`` trains once and stores under the cache folder."""

    name: str  # as its YAML file is named
    base: CheckpointSource
    recipe: Recipe

    def __post_init__(self) -> None:
        super().__post_init__()
        folder_name("model.name", self.name)

    def folder(self, task: Task, splits: Callable[[], Splits]) -> Path:
        """Its folder in the cache.

        Raises FileNotFoundError with the command that trains it if the folder does not exist.
        """
        target = self.target(task, splits(), self.base.folder())
        if not target.is_dir():
            raise FileNotFoundError(
                f"{self.name} is not fine-tuned on {task.name} yet: run python -m quantlab.finetune "
                f"model={self.name} task={task.name}, with this command's other model. and task. settings"
            )
        return target

    def target(self, task: Task, splits: Splits, base: Path) -> Path:
        """Its folder in the cache, named by all that decides its weights; ``base`` is the encoder's
        folder. Raises ValueError for a task of next tokens, which nothing here learns."""
        if task.head == TOKENS:
            raise ValueError(
                f"task {task.name} asks for next tokens: a decoder answers it as it is, with model=hf or "
                "smollm2"
            )
        content = (checkpoint_files.fingerprint(base), splits.train.fingerprint, *task.classes(splits))
        settings = (repr(sorted(asdict(self.recipe).items())), str(task.max_length))
        return cache_dir() / "finetuned" / f"{self.name}-{task.name}-{digest([*content, *settings])[:16]}"
