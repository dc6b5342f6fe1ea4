"""How many bits each kind of tensor gets, and how weights find their ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from quantlab.config.checks import freeze, one_of, whole
from quantlab.network.sites import matching
from quantlab.network.widths import is_norm
from quantlab.quant.grid import AffineGrid, Grid, grid_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Precision = int | str

GROUPS = (16, 32, 64, 128, 256)  # usual numbers of inputs that share a range
WEIGHTED = (nn.Linear, nn.Embedding, nn.Conv2d)


@dataclass(frozen=True)
class Rule:
    """All sites and parameters whose name matches the glob get these bits."""

    match: str
    bits: Precision


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Precisions are numbers of bits (2 to 16, and 32 for untouched) or ``fp16``, ``bf16``, ``fp32``.

    ``embeddings`` None: as ``weights``. ``norms``: weights of LayerNorm and RMSNorm, per tensor as in
    Bondarenko's code.
    ``symmetric`` is about activations; weights are symmetric unless ``weight_symmetric`` is false. ``rules``
    override the rest by name (a site like ``*.ffn.sum`` or a parameter like ``*.layer.0.*weight``), the last
    match wins. A weight that an embedding shares with the head is one tensor: it counts as an embedding, and
    a rule for either of its names is a rule for both. ``weight_group``: each row of a Linear has a range for
    every so many inputs, instead of the ranges of ``weight_granularity``. ``embedding_granularity``: ``row``
    is a range for each token; None: as ``weight_granularity``.
    """

    weights: Precision = 8
    activations: Precision = 8
    embeddings: Precision | None = None
    norms: Precision = 32
    symmetric: bool = False
    weight_symmetric: bool = True
    weight_granularity: str = "tensor"
    weight_estimator: str = "minmax"
    weight_group: int | None = None
    embedding_granularity: str | None = None
    rules: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        freeze(self)
        for field in ("symmetric", "weight_symmetric"):
            one_of(f"bits.{field}", getattr(self, field), (True, False))
        one_of("bits.weight_granularity", self.weight_granularity, ("tensor", "channel"))
        one_of("bits.weight_estimator", self.weight_estimator, ("minmax", "mse"))
        if self.weight_group is not None:
            whole("bits.weight_group", self.weight_group, 1)
        if self.embedding_granularity is not None:
            one_of("bits.embedding_granularity", self.embedding_granularity, ("tensor", "channel", "row"))
        object.__setattr__(self, "rules", tuple(_rule(rule) for rule in self.rules))
        precisions = {"weights": self.weights, "activations": self.activations, "norms": self.norms}
        if self.embeddings is not None:
            precisions["embeddings"] = self.embeddings
        precisions |= {f"rules[{rule.match}]": rule.bits for rule in self.rules}
        for name, precision in precisions.items():
            _check_precision(f"bits.{name}", precision)

    def activation_grid(self, site: str) -> Grid | None:
        """The grid of a site's tensor; None where it stays as it is."""
        return grid_of(self._ruled(site, self.activations), self.symmetric)

    def weight_grid(self, parameter: str, module: nn.Module) -> Grid | None:
        """The grid of a module's weight; None where it stays as it is."""
        return grid_of(self._ruled(parameter, self._by_kind(module)), self.weight_symmetric)

    def weight_axis(self, module: nn.Module, tied: bool = False) -> int | None:
        """The dimension of a weight whose slices have ranges of their own: its output channels; None per
        tensor.

        ``tied``: a Linear shares the embedding's weight. Its output channels are the embedding's rows.
        """
        if is_norm(module):
            return None
        if not isinstance(module, nn.Embedding):
            grouped = isinstance(module, nn.Linear) and self.weight_group is not None
            return 0 if grouped or self.weight_granularity == "channel" else None
        granularity = self.embedding_granularity or self.weight_granularity
        return {"tensor": None, "channel": 0 if tied else 1, "row": 0}[granularity]

    def group_of(self, module: nn.Module) -> int | None:
        """How many inputs of a module's weight share a range; None: those of :meth:`weight_axis` do."""
        return self.weight_group if isinstance(module, nn.Linear) else None

    def check_groups(self, modules: Mapping[str, nn.Module]) -> None:
        """Raises ValueError if the groups of inputs do not divide the inputs of a Linear that is
        quantized."""
        for name, module in modules.items():
            group, grid = self.group_of(module), self.weight_grid(name, module)
            if group is None or not isinstance(module, nn.Linear) or not isinstance(grid, AffineGrid):
                continue
            if module.in_features % group:
                fitting = [size for size in GROUPS if module.in_features % size == 0]
                raise ValueError(
                    f"bits.weight_group must divide the inputs of every Linear: {name} has "
                    f"{module.in_features}, got {group}; of the usual sizes {fitting or 'none'} fit"
                )

    def with_tied(self, tied: Mapping[str, str]) -> Bits:
        """Bits whose rules for a tied weight's other names (:func:`tied_weights`) match its own name too."""
        rules: list[Rule] = []
        for rule in self.rules:
            own = {name for other, name in tied.items() if fnmatchcase(other, rule.match)}
            rules += [rule, *(Rule(match=name, bits=rule.bits) for name in sorted(own))]
        return replace(self, rules=tuple(rules))

    def check_rules(self, names: Sequence[str]) -> None:
        """Raises ValueError where a rule matches none of the model's sites and parameters."""
        matching([rule.match for rule in self.rules], names, "bits.rules")

    def check_kinds(self, modules: Sequence[nn.Module]) -> None:
        """Raises ValueError where a precision is asked for a kind of weight that the model does not have."""
        for name, precision, kind, present in (
            ("norms", self.norms, "LayerNorm or RMSNorm", any(map(is_norm, modules))),
            ("embeddings", self.embeddings, "Embedding", any(isinstance(m, nn.Embedding) for m in modules)),
        ):
            asked = precision is not None and grid_of(precision, symmetric=True) is not None
            if asked and not present:
                raise ValueError(f"bits.{name} is {precision}, but the model has no {kind}")

    def _ruled(self, name: str, precision: Precision) -> Precision:
        for rule in self.rules:
            if fnmatchcase(name, rule.match):
                precision = rule.bits
        return precision

    def _by_kind(self, module: nn.Module) -> Precision:
        if is_norm(module):
            return self.norms
        if isinstance(module, nn.Embedding) and self.embeddings is not None:
            return self.embeddings
        return self.weights


def weighted_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Modules whose weight can be quantized, by the weight's name: Linear, Embedding, Conv2d and norms.

    A tied weight is there once, under the embedding's name.
    """
    tied = tied_weights(model)
    return {name: module for name, module in _all_weighted(model).items() if name not in tied}


def tied_weights(model: PreTrainedModel) -> dict[str, str]:
    """The names of tied weights that are not planned, each with the name that is: the embedding's, or else
    the first."""
    modules, own, tied = _all_weighted(model), dict[int, str](), dict[str, str]()
    for name in sorted(modules, key=lambda name: not isinstance(modules[name], nn.Embedding)):
        kept = own.setdefault(id(modules[name].weight), name)
        if kept != name:
            tied[name] = kept
    return tied


def _all_weighted(model: PreTrainedModel) -> dict[str, nn.Module]:
    return {
        f"{path}.weight": module
        for path, module in model.named_modules()
        if isinstance(module, WEIGHTED) or is_norm(module)
    }


def weight_of(module: nn.Module) -> Tensor:
    """A module's weight."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.data


def _rule(rule: Any) -> Rule:
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, Mapping) or set(rule) != {"match", "bits"}:
        raise ValueError(f"a rule is {{match: <glob>, bits: <precision>}}, got {rule!r}")
    return Rule(match=str(rule["match"]), bits=rule["bits"])


def _check_precision(field: str, precision: Precision) -> None:
    try:
        grid_of(precision, symmetric=True)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None
