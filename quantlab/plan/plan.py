"""The quantization plan: which tensor is quantized on which grid with which range.

A plan is immutable, hashable and stored as JSON. It names modules and parameters, so it suffices to rebuild
the quantized model from the FP32 one.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from quantlab.network.taps import Tap, tap_of
from quantlab.quant.grid import AffineGrid, FloatGrid, Grid
from quantlab.storage.files import digest

Ranges = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ActivationQuant:
    """A quantized site: its grid, and the ranges ``lo`` and ``hi``, which are empty for a float grid.

    ``groups`` holds every channel's index into the ranges; empty: all channels share one range.
    """

    site: str
    tap: Tap
    grid: Grid
    lo: Ranges = ()
    hi: Ranges = ()
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WeightQuant:
    """A quantized parameter, with one range (``axis`` None) or one for each slice along ``axis``."""

    parameter: str
    grid: Grid
    axis: int | None
    lo: Ranges = ()
    hi: Ranges = ()


@dataclass(frozen=True, kw_only=True)
class QuantPlan:
    """The quantization of a whole model. The empty plan is FP32."""

    activations: tuple[ActivationQuant, ...] = ()
    weights: tuple[WeightQuant, ...] = ()

    def to_json(self) -> str:
        """The plan as JSON; :meth:`from_json` reads back an equal plan."""
        data = {
            "activations": [{**asdict(item), "tap": item.tap.to_json()} for item in self.activations],
            "weights": [asdict(item) for item in self.weights],
        }
        return json.dumps({"version": 1, **data}, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "QuantPlan":
        """The plan in a JSON text. Raises ValueError on another version, and on missing or unknown fields."""
        data = json.loads(text)
        if not isinstance(data, dict) or data.pop("version", None) != 1:
            raise ValueError("not a quantlab plan of version 1")
        try:
            activations = tuple(
                ActivationQuant(
                    **{**_common(item), "tap": tap_of(**item["tap"]), "groups": tuple(item["groups"])}
                )
                for item in data.pop("activations")
            )
            weights = tuple(WeightQuant(**_common(item)) for item in data.pop("weights"))
            return cls(activations=activations, weights=weights, **data)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a quantlab plan: {error}") from error

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the plan's JSON."""
        return digest([self.to_json()])


def weight_ranges(weight: WeightQuant, ndim: int) -> tuple[Tensor, Tensor]:
    """``lo`` and ``hi`` shaped to broadcast against a parameter of ``ndim`` dimensions."""
    shape = [1] * ndim
    if weight.axis is not None:
        shape[weight.axis] = -1
    return torch.tensor(weight.lo).reshape(shape), torch.tensor(weight.hi).reshape(shape)


def _common(item: dict[str, Any]) -> dict[str, Any]:
    grid = item["grid"]
    return {
        **item,
        "grid": FloatGrid(**grid) if "format" in grid else AffineGrid(**grid),
        "lo": tuple(item["lo"]),
        "hi": tuple(item["hi"]),
    }
