"""Whether a checkpoint's weights and tokenizer, and a task, fit each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from quantlab.network import checkpoint
from quantlab.tasks.batching import Tokenized
from quantlab.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CAPITALS = 0.01  # of a vocabulary's words: an uncased vocabulary has fewer words with capitals


def check_fit(
    skeleton: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, folder: Path
) -> None:
    """Raises ValueError if the tokenizer's ids or the task's length exceed the model's embeddings."""
    vocabulary = skeleton.config.vocab_size
    if len(tokenizer) > vocabulary:
        raise ValueError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model only {vocabulary}")
    most = min(token_limit(skeleton), tokenizer.model_max_length)
    if task.max_length > most:
        raise ValueError(f"task.max_length={task.max_length}, but the model takes at most {most} tokens")


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


def require_whole(folder: Path, model: PreTrainedModel, missing: set[str]) -> None:
    """Raises ValueError if tensors are missing. Fine-tuning helps only if all of them are the head's."""
    if lost := checkpoint.encoder_tensors(missing, model):
        raise ValueError(f"{folder} lacks {', '.join(lost[:8])}: the encoder is not whole")
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
