"""Reads a checkpoint's config and weights. Code in a checkpoint is never run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.utils import logging

from quantlab.config.checks import refuse_pointer
from quantlab.network.changed_attention import KEY, change_from
from quantlab.network.checkpoint_files import (
    ADAPTERS,
    CONFIG,
    NAMED,
    clear_errors,
    weight_files,
)
from quantlab.network.conversion import conv1d_to_linear
from quantlab.network.stored import stored_shapes
from quantlab.network.stored_attention import change_as_stored, checked_gates
from quantlab.tasks.heads import CLASSES, auto_class

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

SILENT = 50  # the level CRITICAL
# Tensors that may be left over, since no answer depends on them: buffers of old versions, a pooler that the
# head does not use, and the heads of pretraining and other tasks.
HARMLESS = re.compile(
    r"^(\w+\.)?(embeddings\.(position_ids|token_type_ids)$|pooler\.dense\.|cls\.(predictions|seq_relationship)\.|lm_head\."
    r"|generator_(predictions|lm_head)\.|discriminator_predictions\.|vocab_(transform|layer_norm|projector)\.|qa_outputs\.)"
)


def read_config(folder: Path) -> PretrainedConfig:
    """A checkpoint's config, read before its weights.

    Raises FileNotFoundError if there is none, and ValueError if it is broken or describes a model that
    quantlab cannot load.
    """
    from transformers import AutoConfig

    path = folder / CONFIG
    if adapters := [name for name in ADAPTERS if (folder / name).exists()]:
        raise ValueError(
            f"{folder} holds an adapter ({adapters[0]}), which would be left out: merge it into the "
            f"weights first, with merge_and_unload of peft"
        )
    if not path.is_file():
        inside = ", ".join(sorted(inner.parent.name for inner in folder.glob(f"*/{CONFIG}"))[:NAMED])
        hint = f"; these folders in it have one: {inside}" if inside else ""
        raise FileNotFoundError(f"{folder} holds no config.json: it is no Hugging Face checkpoint{hint}")
    refuse_pointer(path)
    with clear_errors(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected a JSON object, got {type(content).__name__}")
        _require_supported(content)
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    return config


def missing_tensors(folder: Path, skeleton: PreTrainedModel) -> set[str]:
    """Names of the model's tensors that the weight files lack. Reads names and shapes, no weights.

    Raises ValueError on unreadable files, on tensors of another shape, on tensors that no module takes, and
    if the model cannot have the attention that its config asks for, or its gates are not whole.
    """
    files, network = weight_files(folder), cast("Any", type(skeleton))
    shapes = dict(stored_shapes(files))
    with clear_errors(folder / CONFIG):
        gates = checked_gates(skeleton, shapes)
    blanks = {name: torch.empty(()).expand(shape) for name, shape in shapes.items() if name not in gates}
    with quiet(), clear_errors(files[0]), torch.random.fork_rng([]):
        model, info = network.from_pretrained(
            None,
            config=skeleton.config,
            state_dict=blanks,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        _require_fitting(model, info)
    missing: set[str] = info["missing_keys"]
    return missing


def encoder_tensors(names: Iterable[str], model: PreTrainedModel) -> list[str]:
    """The tensors of a classifier that belong to its encoder. A pooler belongs to the head."""
    return sorted(
        name for name in names if name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in name
    )


def read_model(folder: Path, head: str = CLASSES) -> tuple[PreTrainedModel, set[str]]:
    """:func:`read_network` with Linears in place of GPT-2's Conv1D: the model that is observed and quantized.

    transformers cannot read it back once it is saved.
    """
    model, missing = read_network(folder, head)
    return conv1d_to_linear(model), missing


def read_network(folder: Path, head: str = CLASSES, **config: Any) -> tuple[PreTrainedModel, set[str]]:
    """A network in FP32 as transformers builds it, and the names of the tensors that its weight files lack.

    Its attention is changed as its config.json says (:mod:`quantlab.network.changed_attention`).

    ``config`` overrides keys of its config; a head that thereby gets another size begins anew. Raises
    ValueError on unreadable files, on tensors of another shape or that no module takes, on NaN and infinity,
    and on pickled code (torch's weights-only loader refuses it).
    """
    files = weight_files(folder)
    with quiet(), clear_errors(files[0]):
        model, info = auto_class(head).from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            ignore_mismatched_sizes=True,  # reported below, with names and shapes
            output_loading_info=True,
            weights_only=True,
            trust_remote_code=False,
            local_files_only=True,
            **config,
        )
        if config:
            encoder = f"{model.base_model_prefix}."
            info["mismatched_keys"] = [
                each for each in info["mismatched_keys"] if each[0].startswith(encoder)
            ]
        info["unexpected_keys"] -= change_as_stored(model, files)
        _require_fitting(model, info)
        _require_finite(model, info["missing_keys"])
    return model, info["missing_keys"]


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' loading reports and progress bars; this module raises what matters as errors."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(SILENT)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _require_supported(content: Mapping[str, Any]) -> None:
    """Raises ValueError if transformers would build another network than config.json describes."""
    if "quantization_config" in content:
        raise ValueError("the checkpoint is quantized already; quantlab starts from floating-point weights")
    if (named := content.get("transformers_weights")) is not None:
        raise ValueError(
            f"transformers_weights names its weight file {named!r}: call it model.safetensors instead"
        )
    if (kind := content.get("position_embedding_type", "absolute")) != "absolute":
        raise ValueError(
            f"position_embedding_type is {kind!r}: transformers computes absolute positions only"
        )
    if pruned := content.get("pruned_heads"):
        raise ValueError(
            f"pruned_heads lists heads of layers {', '.join(pruned)}: transformers loads whole layers only"
        )
    change_from(content.get(KEY))


def _require_fitting(model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Raises ValueError on tensors without a module, of another shape, or that cannot be converted."""
    if strangers := sorted(name for name in info["unexpected_keys"] if not HARMLESS.match(name)):
        raise ValueError(_why_not_taken(strangers, model, info["missing_keys"]))
    problems = [
        f"{name} has shape {list(stored)}, config.json asks for {list(asked)}"
        for name, stored, asked in sorted(info["mismatched_keys"])
    ]
    problems += [str(message) for message in info["error_msgs"]]
    if problems:
        raise ValueError("; ".join(problems[:NAMED]))


def _why_not_taken(strangers: Sequence[str], model: PreTrainedModel, missing: set[str]) -> str:
    """Why no module takes the tensors ``strangers``: a prefix, another family, or a wrong config.json."""
    from transformers import CONFIG_MAPPING

    config, own, names = model.config, f"{model.base_model_prefix}.", model.state_dict()
    known = {*names, *(name.removeprefix(own) for name in names)}
    prefixes = Counter(prefix for name in strangers if (prefix := _prefix(name, known)))
    prefix = prefixes.most_common(1)[0][0] if prefixes else ""
    if prefix and prefix.split(".")[-2] not in CONFIG_MAPPING:
        return f"its tensors' names begin with {prefix} ({strangers[0]}): save the model without the wrapper"
    listed = ", ".join(strangers[:NAMED]) + (
        f" and {len(strangers) - NAMED} more" if len(strangers) > NAMED else ""
    )
    if prefix or missing.issuperset(name for name in names if name.startswith(own)):
        return f"it holds the weights of another family than config.json's {config.model_type}: {listed}"
    return (
        f"{config.model_type} with {config.num_hidden_layers} layers, as config.json describes it, "
        f"has no {listed}"
    )


def _prefix(name: str, known: set[str]) -> str:
    """The part of ``name`` before the longest known name, for example ``module.``; empty if there is none."""
    parts = name.split(".")
    starts = range(1, len(parts) - 1)
    return next((".".join(parts[:start]) + "." for start in starts if ".".join(parts[start:]) in known), "")


def _require_finite(model: PreTrainedModel, missing: set[str]) -> None:
    """Raises ValueError if a tensor that was read holds NaN or infinity."""
    tensors = ((name, tensor) for name, tensor in model.state_dict().items() if name not in missing)
    if wrong := [name for name, tensor in tensors if not torch.isfinite(tensor).all()]:
        raise ValueError("; ".join(f"{name} holds NaN or infinity" for name in wrong[:NAMED]))
