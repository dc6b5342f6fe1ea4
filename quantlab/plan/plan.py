"""The quantization plan: which tensor is quantized on which grid, with which range, in which basis.

A plan is immutable, hashable and stored as JSON, its arrays beside it. It names modules and parameters, so it
suffices to rebuild the quantized model from the FP32 one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from quantlab.network.taps import tap_of
from quantlab.plan.edits import EDITS, Edit
from quantlab.plan.packing import packed, unpacked, unpacked_kind
from quantlab.plan.quantizers import ActivationQuant, WeightQuant
from quantlab.quant.basis import KINDS as BASES
from quantlab.quant.basis import Basis
from quantlab.quant.grid import Grid
from quantlab.quant.grids import GRIDS
from quantlab.quant.split import SPLITS
from quantlab.storage.files import digest, write_whole

VERSION = 2
JSON, ARRAYS = "plan.json", "plan.safetensors"


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


def _activation(item: Mapping[str, Any]) -> ActivationQuant:
    values = {"split": None, **item}
    split = None if values["split"] is None else unpacked_kind(values["split"], SPLITS)
    return ActivationQuant(
        **{**values, "tap": tap_of(**values["tap"]), "grid": _grid(values["grid"]), "split": split}
    )


def _grid(data: Mapping[str, Any]) -> Grid:
    """A grid; version 1 has no kinds, and only a float grid has a format."""
    return unpacked_kind({"kind": "float" if "format" in data else "affine", **data}, GRIDS)
