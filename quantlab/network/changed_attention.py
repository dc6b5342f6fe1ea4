"""Attention that can do nothing without outliers: clipped softmax and gated attention.

Source: Bondarenko et al. 2023, arXiv 2306.12929. A checkpoint with such attention says so in its config.json,
under :data:`KEY`. transformers and other programs do not know this key: they compute plain attention with
its weights, which is another network.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from quantlab.config.checks import above, at_least, nearest
from quantlab.network.attention import CLIP, NAME
from quantlab.network.attention_layers import attention_layers
from quantlab.network.gate import Gate
from quantlab.network.rerouting import OWN_ATTENTION, check_reroutable, reroute

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

KEY = "quantlab_attention"  # of config.json
GATES = "quantlab_gates"  # attribute of a model: its gates by the number of their layer


@dataclass(frozen=True, kw_only=True)
class ChangedAttention(ABC):
    """How a network's attention differs from that of its architecture."""

    kind: ClassVar[str]  # its name in config.json

    @abstractmethod
    def check(self, model: PreTrainedModel) -> None:
        """Raises ValueError if this network cannot have such attention. The model may be on the meta
        device."""

    @abstractmethod
    def shapes(self, model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
        """The tensors that it adds to a network, by their names in a checkpoint."""

    @abstractmethod
    def _change(self, model: PreTrainedModel) -> None:
        """Changes every layer's attention."""

    @abstractmethod
    def installed(self, model: PreTrainedModel) -> bool:
        """Whether the network's attention is changed so."""

    def check_start(self, model: PreTrainedModel) -> None:
        """Raises ValueError if this network cannot get such attention: its own may be changed already."""
        self.check(model)
        if (before := change_of(model.config)) is not None:
            raise ValueError(
                f"the attention of this {type(model).__name__} is {before.kind} already: "
                "training=plain trains it further"
            )

    def install(self, model: PreTrainedModel) -> None:
        """Changes the network's attention for good, and its config, which ``save_pretrained`` writes.

        Raises ValueError if it cannot.
        """
        self.check(model)
        setattr(model.config, KEY, {"kind": self.kind, **asdict(self)})
        self._change(model)


@dataclass(frozen=True, kw_only=True)
class Clipped(ChangedAttention):
    """Clipped softmax: ``clip((zeta - gamma) softmax(x) + gamma, 0, 1)``.

    A head reaches probabilities of exactly 0, and of exactly 1 if ``zeta`` is above 1, from finite scores.
    ``gamma`` is a constant of the network, whatever the length of a text: as in the paper, and so neither
    padding nor a cache changes an answer.
    """

    kind: ClassVar[str] = "clipped_softmax"

    gamma: float  # at most 0: what is masked stays at 0
    zeta: float  # at least 1

    def __post_init__(self) -> None:
        _require_numbers(self)
        at_least(f"{self.kind}: zeta", self.zeta, 1)
        if self.gamma > 0:
            raise ValueError(f"{self.kind}: gamma must be at most 0, got {self.gamma}")

    def check(self, model: PreTrainedModel) -> None:
        for layer in attention_layers(model):
            if layer.function is None:
                raise ValueError(
                    f"{type(model).__name__} computes attention by itself: clipped softmax does not reach it"
                )
            check_reroutable(model, model.get_submodule(layer.function))

    def shapes(self, model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
        return {}

    def installed(self, model: PreTrainedModel) -> bool:
        return any(CLIP in vars(module) for module in model.modules())

    def clip(self, probs: Tensor) -> Tensor:
        """Probabilities, (batch, heads, queries, keys), after the softmax."""
        return ((self.zeta - self.gamma) * probs + self.gamma).clamp(0, 1)

    def _change(self, model: PreTrainedModel) -> None:
        for layer in attention_layers(model):
            assert layer.function is not None
            module = model.get_submodule(layer.function)
            reroute(model, module)
            vars(module)[CLIP] = self.clip
            if type(module).__name__ not in OWN_ATTENTION:
                module.register_forward_pre_hook(_require_rerouted)


@dataclass(frozen=True, kw_only=True)
class Gated(ChangedAttention):
    """Gated attention: what head h brings is multiplied by ``scale * sigmoid(w_h x_h + b_h)``.

    ``x_h`` is the h-th of as many equal parts of the layer's input as it has heads. ``w`` and ``b`` are
    parameters in FP32, of every layer. With ``scale`` 2, w = 0 and b = 0 the gates are 1: plain attention.
    """

    kind: ClassVar[str] = "gated"

    scale: float = 2.0

    def __post_init__(self) -> None:
        _require_numbers(self)
        above(f"{self.kind}: scale", self.scale, 0)

    def check(self, model: PreTrainedModel) -> None:
        heads, width = _gate_shape(model)
        if width * heads != model.config.hidden_size:
            raise ValueError(
                f"gated attention splits the {model.config.hidden_size} channels of a layer's input into "
                f"equal parts: {type(model).__name__} has {heads} heads"
            )
        attention_layers(model)

    def shapes(self, model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
        heads, width = _gate_shape(model)
        names = [f"{GATES}.{layer.number}" for layer in attention_layers(model)]
        return {
            **{f"{name}.weight": (heads, width) for name in names},
            **{f"{name}.bias": (heads,) for name in names},
        }

    def installed(self, model: PreTrainedModel) -> bool:
        return hasattr(model, GATES)

    def _change(self, model: PreTrainedModel) -> None:
        gates = nn.ModuleDict()
        for layer in attention_layers(model):
            gates[layer.number] = gate = Gate(*_gate_shape(model), self.scale).to(model.device)
            attention, out = model.get_submodule(layer.attention), model.get_submodule(layer.out)
            attention.register_forward_pre_hook(gate.read, with_kwargs=True)
            out.register_forward_pre_hook(gate.multiply)
        # Names inside layers are changed where transformers saves and loads: not those of the model itself.
        model.add_module(GATES, gates)


KINDS: Mapping[str, type[ChangedAttention]] = {kind.kind: kind for kind in (Clipped, Gated)}


def change_of(config: PretrainedConfig) -> ChangedAttention | None:
    """How a config's attention differs from its architecture's; None if it does not."""
    return change_from(getattr(config, KEY, None))


def attention_tags(config: PretrainedConfig) -> dict[str, str]:
    """The tag ``attention`` of a network whose attention is changed: its kind and settings."""
    change = change_of(config)
    if change is None:
        return {}
    return {"attention": ", ".join([change.kind, *(f"{name} {x}" for name, x in asdict(change).items())])}


def change_from(content: object) -> ChangedAttention | None:
    """What stands under :data:`KEY` in a config.json. Raises ValueError for what this version does not
    know."""
    if content is None:
        return None
    if not isinstance(content, Mapping):
        raise ValueError(f"{KEY} must be an object with a kind and its settings, got {content!r}")
    kind = str(content.get("kind"))
    if kind not in KINDS:
        raise ValueError(
            f"{KEY}: this version of quantlab knows the kinds {', '.join(KINDS)}; got {kind!r}"
            f"{nearest(kind, KINDS)}"
        )
    settings = {name: value for name, value in content.items() if name != "kind"}
    known = [field.name for field in fields(KINDS[kind])]
    if settings.keys() != set(known):
        raise ValueError(
            f"{KEY}: {kind} has {', '.join(known)}; got {', '.join(map(str, settings)) or 'nothing'}"
        )
    return KINDS[kind](**settings)


def check_installed(model: PreTrainedModel) -> None:
    """Raises ValueError if a network was loaded without the attention that its config asks for."""
    change = change_of(model.config)
    if change is not None and not change.installed(model):
        raise ValueError(
            f"the checkpoint's attention is {change.kind}, and this {type(model).__name__} computes plain "
            "attention: transformers does not know the change, quantlab.network.checkpoint.read_model does"
        )


def _gate_shape(model: PreTrainedModel) -> tuple[int, int]:
    heads = int(model.config.num_attention_heads)
    return heads, int(model.config.hidden_size) // heads


def _require_rerouted(module: nn.Module, _: object) -> None:
    """Hook before attention. Raises RuntimeError if another function than quantlab's computes it."""
    if module.config._attn_implementation != NAME:  # type: ignore[union-attr]
        raise RuntimeError(
            f"this network has clipped softmax, which attention {module.config._attn_implementation!r} "  # type: ignore[union-attr]
            f"does not compute: it takes {NAME!r}"
        )


def _require_numbers(change: ChangedAttention) -> None:
    for name, value in asdict(change).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{change.kind}: {name} must be a finite number, got {value!r}")
