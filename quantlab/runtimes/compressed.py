"""Decoders in the format of compressed-tensors, which vLLM loads: weights of Linears in integers.

Source: the package's own readers, ``compressed_tensors/compressors`` of version 0.20. ``int-quantized`` holds
signed bytes and has grids for the Linears' inputs; ``pack-quantized`` packs the bits and has none. Integers
of asymmetric grids are shifted by half the grid, zero points too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantlab.engines.insert import quantized_weights
from quantlab.network.changed_attention import change_of
from quantlab.network.readers import readers
from quantlab.network.sites import Site
from quantlab.plan.fit import check_fits
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant, WeightQuant
from quantlab.quant.grid import BYTE_BITS, Grid

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT = "compressed-tensors"
WEIGHTS = "model.safetensors"
INT, PACKED, MIXED = "int-quantized", "pack-quantized", "mixed-precision"
WORD = 32  # bits


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A Linear's quantizers: of its weight, and of its input unless that stays in float."""

    weight: WeightQuant
    activation: ActivationQuant | None

    @property
    def format(self) -> str:
        return PACKED if self.activation is None else INT

    def to_json(self) -> dict[str, Any]:
        """The scheme in a ``config.json``, without the Linears that have it."""
        weight, activation = self.weight, self.activation
        strategy = "tensor" if weight.axis is None else "channel" if weight.group is None else "group"
        inputs = None
        if activation is not None:
            dynamic = activation.grid.per_token
            inputs = _arguments(activation.grid, "token" if dynamic else "tensor", dynamic, None)
        return {
            "format": self.format,
            "weights": _arguments(weight.grid, strategy, False, weight.group),
            "input_activations": inputs,
            "output_activations": None,
        }

    def tensors(self, value: Tensor) -> dict[str, Tensor]:
        """What stands for a Linear's weight and its input's grid, by the names that the format has for it."""
        weight, half = self.weight, _half(self.weight.grid)
        scale, zero_point = weight.parameters(value)
        rows = (1,) if weight.axis is None else (len(value), -1)
        integers = (weight.rounded(value) - half).to(torch.int8)
        zeros = (zero_point.reshape(rows) - half).to(torch.int8)
        tensors = {"weight_scale": scale.reshape(rows)}
        if self.activation is None:
            bits = weight.grid.bits
            tensors["weight_packed"] = packed(integers, bits)
            tensors["weight_shape"] = torch.tensor(value.shape)
            zeros = zeros if weight.axis is None else packed(zeros.T, bits).T.contiguous()
        else:
            tensors["weight"] = integers
        if weight.grid.unsigned:
            tensors["weight_zero_point"] = zeros
        if self.activation is not None and self.activation.grid.ranged:
            scale, zero_point = self.activation.parameters()
            tensors["input_scale"] = scale
            if self.activation.grid.unsigned:
                tensors["input_zero_point"] = (zero_point - _half(self.activation.grid)).to(torch.int8)
        return tensors


def write_compressed(model: PreTrainedModel, plan: QuantPlan, folder: Path) -> dict[str, Scheme]:
    """Writes ``config.json`` and ``model.safetensors`` into a folder. Returns the Linears' schemes.

    Other parameters are stored in FP32, with the values that the plan gives them: embeddings, norms, and a
    head that is the embedding. Raises ValueError, before anything is written, for what the format cannot say.
    """
    from safetensors.torch import save_file

    schemes = schemes_of(model, plan)
    stored = {f"{path}.weight" for path in schemes}
    tensors: dict[str, Tensor] = {}
    for path, scheme in schemes.items():
        name = f"{path}.weight"
        parts = scheme.tensors(plan.edited(name, model.get_parameter(name).data.cpu()))
        tensors.update({f"{path}.{part}": value.contiguous() for part, value in parts.items()})
    with quantized_weights(model, plan):
        for name, value in [*model.named_parameters(), *_buffers(model)]:
            if name not in stored:
                tensors[name] = value.detach().cpu().clone().contiguous()
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = quantization_config(model, schemes)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return schemes


def schemes_of(model: PreTrainedModel, plan: QuantPlan) -> dict[str, Scheme]:
    """Every quantized Linear's scheme, by path. Raises ValueError for what the format cannot say."""
    check_sayable(plan)
    if (change := change_of(model.config)) is not None:
        raise ValueError(
            f"{FORMAT} is read by programs that compute plain attention: this network's is {change.kind}"
        )
    check_fits(model, plan)
    if _has_conv1d(model):
        raise ValueError(f"{FORMAT} has Linears only: {type(model).__name__} has Conv1D")
    weights = {item.parameter: item for item in plan.weights}
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linears = {
        path: weights[f"{path}.weight"]
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in shared and f"{path}.weight" in weights
    }
    linears = {path: weight for path, weight in linears.items() if weight.grid.in_bytes}
    inputs = {item.site: item for item in plan.activations}
    read = readers(model, [Site(name=item.site, channels=0, made_at=item.tap) for item in plan.activations])
    unread = [site for site in inputs if site not in read.values()]
    if unread:
        raise ValueError(f"{FORMAT} quantizes inputs of Linears only: {_unsayable(unread, inputs)}")
    alone = [site for path, site in read.items() if path not in linears]
    if alone:
        raise ValueError(
            f"{FORMAT} quantizes the input of a Linear only with its weight, of its own and in up to 8 bits: "
            f"{_unsayable(alone, inputs)}"
        )
    schemes = {
        path: Scheme(weight=weight, activation=inputs.get(read.get(path, "")))
        for path, weight in linears.items()
    }
    if not schemes:
        raise ValueError(f"{FORMAT} has nothing to store: the plan quantizes no weight of a Linear")
    return schemes


def check_sayable(plan: QuantPlan) -> None:
    """Raises ValueError for what the format cannot say, whatever the model is."""
    if plan.transforms:
        sites = ", ".join(item.site for item in plan.transforms[:3])
        raise ValueError(f"{FORMAT} has no change of basis, as at {sites}: transform=none")
    for item in plan.activations:
        if item.split is not None:
            raise ValueError(f"{FORMAT} has no splits, as at {item.site}: split=none")
        if item.groups:
            raise ValueError(f"{FORMAT} has no groups of channels, as {item.site} has: method=uniform")
        if item.grid.bits > BYTE_BITS or not (item.grid.in_bytes or item.grid.per_token):
            raise ValueError(
                f"{FORMAT} has integers of up to 8 bits for activations: {item.site} is {item.grid}"
            )
    for weight in plan.weights:
        if weight.wide:
            raise ValueError(f"{FORMAT} has no columns in FP16, as {weight.parameter} has: split=none")
        if weight.grid.in_bytes and weight.axis not in (None, 0):
            raise ValueError(
                f"{FORMAT} has ranges for outputs and groups of inputs, not as {weight.parameter}"
            )


def quantization_config(model: nn.Module, schemes: Mapping[str, Scheme]) -> dict[str, Any]:
    """The entry of ``config.json`` that names each scheme's Linears, and those that have none."""
    groups: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for path, scheme in schemes.items():
        data = scheme.to_json()
        groups.setdefault(json.dumps(data, sort_keys=True), (data, []))[1].append(path)
    formats = sorted({scheme.format for scheme in schemes.values()})
    linears = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {
        "quant_method": FORMAT,
        "quantization_status": "compressed",
        "format": formats[0] if len(formats) == 1 else MIXED,
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": [path for path in linears if path not in schemes],
        "config_groups": {
            f"group_{number}": {**data, "targets": ["Linear"] if len(groups) == 1 else paths}
            for number, (data, paths) in enumerate(groups.values())
        },
    }


def packed(integers: Tensor, bits: int) -> Tensor:
    """Signed integers of so many bits, packed along the rows: (rows, n) -> (rows, ceil(n bits / 32)), int32.

    Each is shifted by half its grid to begin at zero. The first takes the lowest bits. One may lie across two
    words.
    """
    shifted = integers.long() + (1 << bits - 1)
    stream = (shifted.unsqueeze(-1) >> torch.arange(bits)) & 1
    flat = nn.functional.pad(stream.flatten(-2), (0, -stream.shape[-2] * bits % WORD))
    words = (flat.reshape(*flat.shape[:-1], -1, WORD) << torch.arange(WORD)).sum(-1)
    return torch.where(words >= 1 << WORD - 1, words - (1 << WORD), words).to(torch.int32)


def _half(grid: Grid) -> int:
    return 1 << grid.bits - 1 if grid.unsigned else 0


def _arguments(grid: Grid, strategy: str, dynamic: bool, group: int | None) -> dict[str, Any]:
    return {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": not grid.unsigned,
        "strategy": strategy,
        "group_size": group,
        "dynamic": dynamic,
    }


def _unsayable(sites: Sequence[str], inputs: Mapping[str, ActivationQuant]) -> str:
    """The sites, and the setting that keeps them in FP32."""
    roles = dict.fromkeys("*." + site.partition(".")[2] if site[0].isdigit() else site for site in sites)
    rules = ", ".join(f"{{match: '{role}', bits: fp32}}" for role in roles)
    named = f"{', '.join(sites[:3])}{', ...' if len(sites) > 3 else ''}"
    return f"not {named} ({inputs[sites[0]].grid}). Keep them in float: bits.rules=[{rules}]"


def _has_conv1d(model: PreTrainedModel) -> bool:
    """Whether the checkpoint has transposed weights of GPT-2's Conv1D, which are Linears here."""
    with torch.device("meta"):
        own = type(model)(model.config)
    return any(type(module).__name__ == "Conv1D" for module in own.modules())


def _buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The buffers that a checkpoint holds."""
    held = model.state_dict().keys()
    return [(name, value) for name, value in model.named_buffers() if name in held]
