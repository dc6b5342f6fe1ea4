"""The quantization plan: which tensor is quantized on which grid, with which range, in which basis.

A plan is immutable, hashable and stored as JSON, its arrays beside it. It names modules and parameters, so it
suffices to rebuild the quantized model from the FP32 one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantlab.kernels.snapper import Snapper
from quantlab.network.taps import Tap, tap_of
from quantlab.plan.edits import EDITS, Edit
from quantlab.plan.packing import packed, unpacked, unpacked_kind
from quantlab.quant.basis import KINDS as BASES
from quantlab.quant.basis import Basis
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.quant.grid import AffineGrid, Grid
from quantlab.quant.grids import GRIDS
from quantlab.quant.split import FP16, SPLITS, Split, Static
from quantlab.storage.files import digest, write_whole

VERSION = 2
JSON, ARRAYS = "plan.json", "plan.safetensors"

Ranges = tuple[float, ...] | FrozenTensor


@dataclass(frozen=True, kw_only=True)
class ActivationQuant:
    """The quantizer of a site: its grid, and the ranges ``lo`` and ``hi`` of a grid that needs them.

    ``groups`` holds every channel's index into the ranges; empty: all channels share one range. ``split``
    keeps part of the tensor wide beside the grid. ``group_bits`` are each group's bits, instead of the
    grid's.
    """

    site: str
    tap: Tap
    grid: Grid
    lo: tuple[float, ...] = ()
    hi: tuple[float, ...] = ()
    groups: tuple[int, ...] = ()
    split: Split | None = None
    group_bits: tuple[int, ...] = ()

    def grids(self) -> list[AffineGrid]:
        """The grid of each range, or one for all. Raises TypeError for a grid without ranges."""
        grid = _affine(self.grid)
        return [replace(grid, bits=bits) for bits in self.group_bits] or [grid]

    def parameters(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each range, shape (ranges,). Raises TypeError for a grid without ranges."""
        grids, lo, hi = self.grids(), torch.tensor(self.lo), torch.tensor(self.hi)
        if len(grids) == 1:
            return grids[0].parameters(lo, hi)
        found = [grid.parameters(lo[i : i + 1], hi[i : i + 1]) for i, grid in enumerate(grids)]
        scale, zero_point = zip(*found, strict=True)
        return torch.cat(scale), torch.cat(zero_point)

    def function(self, device: torch.device, overwrite: bool = False) -> Callable[[Tensor], Tensor]:
        """Quantizes and dequantizes the site's tensor; in place if ``overwrite`` is set and the grid can."""
        if self.split is None:
            return self.narrow_function(device, overwrite)
        static: Static | None = None
        if self.grid.ranged:
            scale, zero_point = self.parameters()
            static = _affine(self.grid), scale.to(device), zero_point.to(device)
        return self.split.function(self.narrow_function(device, overwrite), static)

    def narrow_function(self, device: torch.device, overwrite: bool = False) -> Callable[[Tensor], Tensor]:
        """:meth:`function` without the split."""
        if not self.grid.ranged:
            return self.grid.function(None, None, overwrite)
        scale, zero_point = self.parameters()
        if self.groups:
            groups = torch.tensor(self.groups)
            after = [1] * (-1 - self.tap.axis)  # the dimensions after the channels'
            scale, zero_point = (one[groups].reshape(-1, *after) for one in (scale, zero_point))
        if self.group_bits:
            ends = [torch.tensor([(g.q_min, g.q_max) for g in self.grids()])[groups, i] for i in (0, 1)]
            q_min, q_max = (end.reshape(scale.shape).to(device, scale.dtype) for end in ends)
            return Snapper(scale.to(device), zero_point.to(device), q_min, q_max, overwrite)
        return self.grid.function(scale.to(device), zero_point.to(device), overwrite)


@dataclass(frozen=True, kw_only=True)
class WeightQuant:
    """The quantizer of a parameter, with one range (``axis`` None) or one for each slice along ``axis``.

    ``group``: each row has a range for every so many inputs; ``lo`` and ``hi`` are (rows, inputs / group)
    then. ``integers`` stand for the weight, of its shape, in the grid's own numbers; None: each weight is
    rounded to the nearest. The columns ``wide`` stay in FP16.
    """

    parameter: str
    grid: Grid
    axis: int | None
    lo: Ranges = ()
    hi: Ranges = ()
    group: int | None = None
    integers: FrozenTensor | None = None
    wide: tuple[int, ...] = ()

    def parameters(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each range, on the parameter's device; they broadcast against
        :meth:`shaped`.

        Raises TypeError for a grid without ranges.
        """
        lo, hi = weight_ranges(self, value.ndim)
        return _affine(self.grid).parameters(lo.to(value.device), hi.to(value.device))

    def shaped(self, value: Tensor) -> Tensor:
        """The parameter as the ranges see it: with groups as (rows, inputs / group, group)."""
        return value if self.group is None else value.reshape(len(value), -1, self.group)

    def rounded(self, value: Tensor) -> Tensor:
        """The integers that stand for the parameter, as whole numbers in FP32, of its shape."""
        if self.integers is not None:
            return self.integers.tensor.to(value)
        scale, zero_point = self.parameters(value)
        return _affine(self.grid).integers(self.shaped(value), scale, zero_point).reshape(value.shape)

    def snap(self, value: Tensor) -> Tensor:
        """The parameter, quantized and dequantized."""
        if not self.grid.ranged:
            return self.grid.function(None, None, False)(value)
        scale, zero_point = self.parameters(value)
        if self.integers is None:
            snapped = self.grid.function(scale, zero_point, False)(self.shaped(value)).reshape(value.shape)
        else:
            snapped = ((self.shaped(self.rounded(value)) - zero_point) * scale).reshape(value.shape)
        if self.wide:
            snapped[:, list(self.wide)] = FP16.snap(value[:, list(self.wide)])
        return snapped


@dataclass(frozen=True, kw_only=True)
class SiteTransform:
    """The basis in which a site is quantized, and the weights that read the site and are quantized in it."""

    site: str
    basis: Basis
    weights: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class QuantPlan:
    """The quantization of a whole model. The empty plan is FP32.

    Parameters are edited first, then quantized, each in the basis of the site that it reads.
    """

    activations: tuple[ActivationQuant, ...] = ()
    weights: tuple[WeightQuant, ...] = ()
    transforms: tuple[SiteTransform, ...] = ()
    edits: tuple[Edit, ...] = ()

    @cached_property
    def site_bases(self) -> dict[str, Basis]:
        """The basis of each transformed site."""
        return {item.site: item.basis for item in self.transforms}

    @cached_property
    def weight_bases(self) -> dict[str, Basis]:
        """The basis of each parameter that reads a transformed site."""
        return {name: item.basis for item in self.transforms for name in item.weights}

    def edited(self, parameter: str, value: Tensor) -> Tensor:
        """A parameter's value after its edits."""
        for edit in self.edits:
            value = edit(value) if edit.parameter == parameter else value
        return value

    def in_basis(self, parameter: str, value: Tensor) -> Tensor:
        """A parameter's value after its edits, in the basis that it is quantized in."""
        value, basis = self.edited(parameter, value), self.weight_bases.get(parameter)
        return value if basis is None else basis.weight(value)

    def to_json(self) -> str:
        """The plan as JSON, which names its arrays with their digests; :meth:`from_json` reads it back."""
        return self._packed()[0]

    @property
    def arrays(self) -> dict[str, Tensor]:
        """The arrays that the JSON names."""
        return self._packed()[1]

    def _packed(self) -> tuple[str, dict[str, Tensor]]:
        arrays: dict[str, Tensor] = {}
        data = {
            "activations": [packed(item, f"activations.{item.site}", arrays) for item in self.activations],
            "weights": [packed(item, f"weights.{item.parameter}", arrays) for item in self.weights],
            "transforms": [packed(item, f"transforms.{item.site}", arrays) for item in self.transforms],
            "edits": [packed(item, f"edits.{i}", arrays) for i, item in enumerate(self.edits)],
        }
        return json.dumps({"version": VERSION, **data}, sort_keys=True, allow_nan=False), arrays

    @classmethod
    def from_json(cls, text: str, arrays: Mapping[str, Tensor] | None = None) -> QuantPlan:
        """The plan in a JSON text of this version or of version 1, which has no arrays.

        Raises ValueError for another version, missing or unknown fields, and arrays that are not the plan's.
        """
        data = json.loads(text)
        version = data.pop("version", None) if isinstance(data, dict) else None
        if version not in (1, VERSION):
            raise ValueError(f"not a quantlab plan of version 1 or {VERSION}")
        try:
            data = unpacked(data, arrays or {})
            parts: dict[str, Any] = {
                "activations": tuple(map(_activation, data.pop("activations"))),
                "weights": tuple(WeightQuant(**{**x, "grid": _grid(x["grid"])}) for x in data.pop("weights")),
            }
            if version == VERSION:
                parts["transforms"] = tuple(
                    SiteTransform(**{**item, "basis": unpacked_kind(item["basis"], BASES)})
                    for item in data.pop("transforms")
                )
                parts["edits"] = tuple(unpacked_kind(item, EDITS) for item in data.pop("edits"))
            return cls(**parts, **data)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a quantlab plan: {error}") from error

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the plan's JSON, which has the digests of the arrays."""
        return digest([self.to_json()])

    def save(self, folder: Path) -> list[Path]:
        """Writes ``plan.json``, and ``plan.safetensors`` where there are arrays. Returns their paths."""
        from safetensors.torch import save

        text, arrays = self._packed()
        (folder / ARRAYS).unlink(missing_ok=True)
        if arrays:
            write_whole(folder / ARRAYS, save(arrays))
        write_whole(folder / JSON, text)
        return [folder / JSON, *([folder / ARRAYS] if arrays else [])]


def read_plan(file: Path) -> QuantPlan:
    """The plan of a JSON file and of the arrays beside it.

    Raises OSError, or ValueError as :meth:`QuantPlan.from_json` does.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    beside = file.with_suffix(".safetensors")
    try:
        arrays = load_file(beside) if beside.is_file() else {}
    except SafetensorError as error:
        raise ValueError(f"{beside.name} is broken: {error}") from error
    return QuantPlan.from_json(file.read_text(encoding="utf-8"), arrays)


def weight_ranges(weight: WeightQuant, ndim: int) -> tuple[Tensor, Tensor]:
    """``lo`` and ``hi`` shaped to broadcast against a parameter of ``ndim`` dimensions, or its groups."""
    if isinstance(weight.lo, FrozenTensor) and isinstance(weight.hi, FrozenTensor):
        lo, hi = weight.lo.tensor, weight.hi.tensor
    else:
        lo, hi = torch.tensor(tuple(weight.lo)), torch.tensor(tuple(weight.hi))
    if weight.group is not None:
        return lo[..., None], hi[..., None]
    shape = [1] * ndim
    if weight.axis is not None:
        shape[weight.axis] = -1
    return lo.reshape(shape), hi.reshape(shape)


def _affine(grid: Grid) -> AffineGrid:
    if not isinstance(grid, AffineGrid):
        raise TypeError(f"{grid} has no scale and zero point")
    return grid


def _activation(item: Mapping[str, Any]) -> ActivationQuant:
    values = {"split": None, **item}
    split = None if values["split"] is None else unpacked_kind(values["split"], SPLITS)
    return ActivationQuant(
        **{**values, "tap": tap_of(**values["tap"]), "grid": _grid(values["grid"]), "split": split}
    )


def _grid(data: Mapping[str, Any]) -> Grid:
    """A grid; version 1 has no kinds, and only a float grid has a format."""
    return unpacked_kind({"kind": "float" if "format" in data else "affine", **data}, GRIDS)
