"""Whether a checkpoint's weights and processor, and a task, fit each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from quantlab.network import checkpoint
from quantlab.network.checkpoint_files import PREPROCESSOR
from quantlab.network.processors import Processor
from quantlab.tasks.batching import Tokenized
from quantlab.tasks.heads import AUTO_CLASSES, TOKENS, auto_class, has_head
from quantlab.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

INTERPOLATING = (
    "dinov2",
    "dinov2_with_registers",
)  # their tables of positions fit themselves to an image
CAPITALS = 0.01  # of a vocabulary's words: an uncased vocabulary has fewer words with capitals


def check_head(config: PretrainedConfig, task: Task, folder: Path) -> None:
    """Raises ValueError if the checkpoint's architecture answers another kind of question than the task's."""
    if not has_head(config, task.head):
        raise ValueError(
            f"{folder}: {config.model_type} cannot answer {task.head}, which task {task.name} asks for"
        )
    named = next(iter(config.architectures or ()), None)
    classes = {head: auto_class(head)._model_mapping.get(type(config), None) for head in AUTO_CLASSES}
    answers = [head for head, network in classes.items() if network and network.__name__ == named]
    if answers and answers != [task.head]:
        hint = "; quantlab finetune trains a head on it" if task.head != TOKENS else ""
        raise ValueError(
            f"{folder}: {named} answers {answers[0]}, and task {task.name} asks for {task.head}{hint}"
        )
    if task.head == TOKENS and getattr(config, "is_decoder", None) is False:
        raise ValueError(f"{folder}: {named} is no decoder, and task {task.name} asks for {TOKENS}")


def check_fit(skeleton: PreTrainedModel, processor: Processor, task: Task, folder: Path) -> None:
    """Raises ValueError if the tokenizer's ids or the task's length exceed the model's embeddings, or the
    image processor's size does not fit the model's positions."""
    from transformers import PreTrainedTokenizerBase

    if not isinstance(processor, PreTrainedTokenizerBase):
        check_image_size(skeleton.config, processor, folder)
        return
    vocabulary = skeleton.config.vocab_size
    if len(processor) > vocabulary:
        raise ValueError(f"{folder}: the tokenizer has {len(processor)} tokens, the model only {vocabulary}")
    most = min(token_limit(skeleton), processor.model_max_length)
    if task.max_length > most:
        raise ValueError(
            f"task.{task.length_key}={task.max_length}, but the model takes at most {most} tokens"
        )


def check_image_size(config: PretrainedConfig, processor: Processor, folder: Path) -> None:
    """Raises ValueError if the processor makes images of another size than the model's.

    DINOv2 interpolates its table of positions, so it takes any whole number of patches.
    """
    height, width = made_size(processor)
    if config.model_type in INTERPOLATING:
        if height % config.patch_size or width % config.patch_size:
            raise ValueError(
                f"{folder}: {PREPROCESSOR} makes images of {height} x {width} pixels, which is no whole "
                f"number of the model's patches of {config.patch_size}"
            )
        return
    size = config.image_size
    asked = (size, size) if isinstance(size, int) else tuple(size)
    if (height, width) != asked:
        raise ValueError(
            f"{folder}: {PREPROCESSOR} makes images of {height} x {width} pixels, the model takes "
            f"{asked[0]} x {asked[1]}"
        )


def made_size(processor: Processor) -> tuple[int, int]:
    """Height and width of the images that a processor makes: what it crops to, or else what it scales to.

    Raises ValueError if it makes images of several sizes.
    """
    crops = getattr(processor, "do_center_crop", False) and getattr(processor, "crop_size", None)
    size = processor.crop_size if crops else processor.size
    if not size or size.get("height") is None or size.get("width") is None:
        raise ValueError(
            f"the image processor makes images of several sizes (size {dict(size or {})}, no centre crop): "
            "give it a crop_size, so that they fit in one batch"
        )
    return int(size["height"]), int(size["width"])


def check_token_types(rows: Tokenized, skeleton: PreTrainedModel, folder: Path) -> None:
    """Raises ValueError if the tokenizer marks the second text of a pair with a type that the model lacks."""
    types, marked = (
        _embedding(skeleton, "token_type_embeddings"),
        (row.get("token_type_ids") for row in rows.rows),
    )
    most = max((max(ids) for ids in marked if ids), default=0)
    if types is not None and most >= types.num_embeddings:
        raise ValueError(
            f"{folder}: the tokenizer gives the second text of a pair token type {most}, but the model has "
            f"type_vocab_size={types.num_embeddings}: leave token_type_ids out of model_input_names in "
            f"tokenizer_config.json, or take a task of single texts"
        )


def token_limit(skeleton: PreTrainedModel) -> int:
    """How many tokens a text may have. RoBERTa's positions start after the padding's: of 66, 64 are left."""
    positions = _embedding(skeleton, "position_embeddings")
    if positions is None:
        return int(skeleton.config.max_position_embeddings)
    return positions.num_embeddings - (0 if positions.padding_idx is None else positions.padding_idx + 1)


def processor_tags(skeleton: PreTrainedModel, processor: Processor) -> dict[str, str]:
    """The tag ``tokenizer_mismatch`` if a tokenizer contradicts its vocabulary or the model."""
    from transformers import PreTrainedTokenizerBase

    return tokenizer_tags(skeleton, processor) if isinstance(processor, PreTrainedTokenizerBase) else {}


def tokenizer_tags(skeleton: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The tag ``tokenizer_mismatch`` if the tokenizer contradicts its vocabulary or the model."""
    mismatches = [*_case_mismatch(tokenizer)]
    positions = _embedding(skeleton, "position_embeddings")
    if positions is not None and positions.padding_idx not in (None, tokenizer.pad_token_id):
        token = tokenizer.convert_ids_to_tokens(positions.padding_idx)
        mismatches.append(
            f"it pads with id {tokenizer.pad_token_id}, the model takes {positions.padding_idx} "
            f"({token}) for padding"
        )
    return {"tokenizer_mismatch": "; ".join(mismatches)} if mismatches else {}


def require_whole(folder: Path, model: PreTrainedModel, missing: set[str], head: str) -> None:
    """Raises ValueError if tensors are missing. Fine-tuning helps only if all of them are a classifier's
    head."""
    if lost := checkpoint.encoder_tensors(missing, model):
        raise ValueError(f"{folder} lacks {', '.join(lost[:8])}: the encoder is not whole")
    if missing and head == TOKENS:
        raise ValueError(f"{folder} lacks {', '.join(sorted(missing)[:8])}: the head is not whole")
    if missing:
        raise ValueError(
            f"{folder} lacks {', '.join(sorted(missing)[:8])}: its head was never trained for a task; "
            f"`python -m quantlab.finetune` trains one"
        )


def _embedding(skeleton: PreTrainedModel, name: str) -> nn.Embedding | None:
    named = (module for path, module in skeleton.named_modules() if path.endswith(f"embeddings.{name}"))
    return next((module for module in named if isinstance(module, nn.Embedding)), None)


def _case_mismatch(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """A sentence if the tokenizer and its vocabulary disagree on capitals."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    lowers = normalizer is not None and normalizer.normalize_str("A") == "a"
    pieces = (
        piece.removeprefix("##") for piece in tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)
    )
    words = [piece for piece in pieces if piece.isascii() and piece.isalpha()]
    capitals = sum(word != word.lower() for word in words)
    if lowers and capitals > CAPITALS * len(words):
        yield (
            f"it lower-cases texts, but {capitals:,} of {len(words):,} words of its vocabulary have capitals"
        )
    if not lowers and words and not capitals:
        yield f"it keeps capitals, but none of {len(words):,} words of its vocabulary has one"
