"""The site table of an architecture that has no file: from what transformers declares, and a traced pass."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from posixpath import commonpath
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from quantlab.network.conversion import conv1d_to_linear
from quantlab.network.family import Family, Taps, one_tap
from quantlab.network.taps import ModuleInput, ModuleOutput, Scores
from quantlab.network.trace import INSIDE, TOKENS, Trace, tiny_inputs, trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROLES = (  # that builders name
    *("attn.in", "attn.query", "attn.key", "attn.value", "attn.scores", "attn.probs", "attn.context"),
    *("attn.out", "attn.sum", "ffn.in", "ffn.gate", "ffn.up", "ffn.mid", "ffn.out", "ffn.sum"),
)
NO_TABLE = "quantlab has no table of this architecture, and its traced pass finds no such tensor"

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError)  # of a network without data

_found: WeakKeyDictionary[PreTrainedModel, Family] = WeakKeyDictionary()


def traced_family(model: PreTrainedModel) -> Family:
    """The sites that one traced pass through the model's skeleton finds. The model itself does not run.

    They are the operand of every group of Linears that read one tensor, what the attention function reads and
    makes, the layers' inputs and outputs, and the head's output. Raises ValueError, with the reason, if the
    architecture does not declare its layers or the pass fails.
    """
    if model not in _found:
        with torch.device("meta"):
            skeleton = conv1d_to_linear(type(model)(copy.deepcopy(model.config)))
        _found[model] = _family(skeleton.train(False))
    return _found[model]


def _family(model: PreTrainedModel) -> Family:
    layers, attention = _declared(model, "hidden_states"), _declared(model, "attentions")
    parents = {path.rpartition(".")[0] for path in layers}
    if len(parents) != 1:
        raise ValueError(f"it has layers in {len(parents)} places{': ' * bool(parents)}{', '.join(parents)}")
    seen, why = _pass(model, attention)
    if any(seen.runs[path] != 1 for path in layers):
        raise ValueError("one pass runs its layers several times")
    found = _Found(model, seen, tuple(attention))
    linears = [path for path in seen.order if path not in attention and seen.runs[path] == 1]
    inner = [path for path in linears if any(_within(path, layer) for layer in layers)]
    before = linears[: linears.index(inner[0])] if inner else []
    after = [path for path in linears if path not in inner and path not in before]
    if not inner or not after:
        raise ValueError(f"no Linear runs once in {'the head' if inner else 'its layers'}")
    *after, head = after
    table = {f"embed.{name}": taps for name, taps in found.by_path(before)}
    table["embed.out"] = Taps(made_at=ModuleInput(layers[0]))
    for index, layer in enumerate(layers):
        own = [path for path in inner if _within(path, layer)]
        table |= {f"{index}.{role}": taps for role, taps in found.in_layer(layer, own)}
        table[f"{index}.layer.out"] = Taps(made_at=ModuleOutput(layer))
    table |= {f"head.{name}": taps for name, taps in found.by_path(after)}
    table |= {f"head.{name}": taps for name, taps in found.by_path([head], head)}
    table["head.out"] = Taps(made_at=ModuleOutput(head))
    roles = {name.partition(".")[2] for name in table}
    reasons = {
        **dict.fromkeys(ROLES, NO_TABLE),
        **({f"attn.{kind.at}": why for kind in INSIDE} if why else {}),
    }
    return Family(
        layers=parents.pop(),
        embed={},
        layer={},
        heads=(table,),
        unreachable={role: reason for role, reason in reasons.items() if role not in roles},
    )


@dataclass(frozen=True)
class _Operand:
    """What the Linears of a group read, and the tap that only they see."""

    tap: ModuleInput
    x: Tensor
    linears: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """Sites of a skeleton, from a trace of it."""

    model: PreTrainedModel
    seen: Trace
    attention: tuple[str, ...]

    def by_path(self, linears: Sequence[str], scope: str = "") -> list[tuple[str, Taps]]:
        """The operands of these Linears, named by the path of the module whose input they are."""
        return [(_name(operand, scope), self._taps(operand)) for operand in self._operands(linears)]

    def in_layer(self, layer: str, linears: Sequence[str]) -> list[tuple[str, Taps]]:
        """The sites of a layer in its order: those inside attention, and operands.

        An operand has its role's name where the order tells it: the first in attention, the first after
        attention, and the two that are left. Others have their module's path.
        """
        operands, roles = self._operands(linears), dict[int, str]()
        places = [self.seen.order.index(operand.linears[0]) for operand in operands]
        inside = [path for path in self.attention if _within(path, layer) and path in self.seen.order]
        table: list[tuple[int, str, Taps]] = []
        if len(inside) == 1:
            (path,) = inside
            at, causal = (
                self.seen.order.index(path),
                bool(getattr(self.model.get_submodule(path), "is_causal", False)),
            )
            table += [(at, role, taps) for role, taps in self._inside(path, causal)]
            own = [n for n, operand in enumerate(operands) if _within(operand.linears[0], path)]
            into = [n for n in own if places[n] < at]
            out = [n for n in own if places[n] > at] or [n for n, place in enumerate(places) if place > at]
            if into and sum(operands[n].x is operands[into[0]].x for n in into) == 1:
                roles[into[0]] = "attn.in"
            if out:
                roles[out[0]] = "attn.context"
            rest = [n for n in range(len(operands)) if n not in roles and n not in own]
            if len(rest) == 2:
                roles |= dict(zip(rest, ("ffn.in", "ffn.mid"), strict=True))
        table += [
            (place, roles.get(n, _name(operand, layer)), self._taps(operand))
            for n, (place, operand) in enumerate(zip(places, operands, strict=True))
        ]
        return [(role, taps) for _, role, taps in sorted(table, key=lambda row: row[0])]

    def _inside(self, path: str, causal: bool) -> Iterator[tuple[str, Taps]]:
        for kind in INSIDE:
            tap = kind(path)
            if isinstance(tap, Scores):
                tap = replace(tap, causal=causal)
            x = self.seen.inside.get(tap)
            if x is None or self.seen.runs[f"{path} {tap.at}"] != 1:
                continue
            if tap.channels(self.model.get_submodule(path), self.model.config) == x.shape[tap.axis]:
                yield f"attn.{tap.at}", Taps(made_at=tap) if kind is Scores else one_tap(tap)

    def _operands(self, linears: Sequence[str]) -> list[_Operand]:
        groups: dict[int, list[str]] = defaultdict(list)
        for path in linears:
            groups[id(self.seen.reads[path])].append(path)
        found = [operand for group in groups.values() for operand in self._split(group)]
        return sorted(found, key=lambda operand: self.seen.order.index(operand.linears[0]))

    def _split(self, readers: list[str]) -> Iterator[_Operand]:
        """One operand, if one module's input is what all of them read, and no other reads it there; else
        several."""
        x = self.seen.reads[readers[0]]
        common = commonpath([path.replace(".", "/") for path in readers]).replace("/", ".")
        others = any(_within(path, common) for path in self.seen.others[id(x)])
        if len(readers) == 1 or (self._is_input(common, x) and not others):
            yield _Operand(ModuleInput(common), x, tuple(readers))
            return
        parts: dict[str, list[str]] = defaultdict(list)
        for path in readers:
            parts[path.removeprefix(f"{common}.").partition(".")[0]].append(path)
        for part in parts.values():
            yield from self._split(part)

    def _is_input(self, path: str, x: Tensor) -> bool:
        if self.seen.reads.get(path) is not x or self.seen.runs[path] != 1:
            return False
        return ModuleInput(path).channels(self.model.get_submodule(path), self.model.config) == x.shape[-1]

    def _taps(self, operand: _Operand) -> Taps:
        """Without another reader, the tensor is quantized where it is made, too."""
        alone = not self.seen.others[id(operand.x)]
        return one_tap(operand.tap) if alone else Taps(read_at=operand.tap)


def _name(operand: _Operand, scope: str) -> str:
    return f"{operand.tap.module.removeprefix(scope)}.in".lstrip(".")


def _within(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}." if module else "")


def _declared(model: PreTrainedModel, name: str) -> list[str]:
    """The modules whose outputs transformers records under this name, as ``hidden_states``."""
    kinds: list[Any] = []
    for module in (model, model.base_model):
        recorded = getattr(module, "_can_record_outputs", None) or {}
        declared = recorded.get(name, ())
        kinds += declared if isinstance(declared, list | tuple) else [declared]
    classes = tuple({getattr(kind, "target_class", kind) for kind in kinds})
    if not classes:
        raise ValueError(f"{type(model).__name__} does not declare its {name} (_can_record_outputs)")
    return [path for path, module in model.named_modules() if isinstance(module, classes)]


def _pass(model: PreTrainedModel, attention: Sequence[str]) -> tuple[Trace, str]:
    """A pass with taps inside attention, or one without and the reason why.

    A mask of tokens is data, which the meta device lacks; most networks take one of scores instead.
    """
    errors: list[str] = []
    mask = torch.zeros(1, 1, TOKENS, TOKENS, device=model.device)
    for tapped in (attention, ()):
        for masks in ({"attention_mask": mask}, {}):
            try:
                inputs = tiny_inputs(model)
                known = {name: value for name, value in masks.items() if name in inputs}
                seen = trace(model, {**inputs, **known}, tapped)
            except FAILURES as error:
                errors.append(str(error).partition("\n")[0])
            else:
                return seen, "" if tapped else errors[0]
    raise ValueError(f"a pass without data fails: {errors[0]}")
