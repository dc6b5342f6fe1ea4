"""Plans as plain data: JSON for structure, named arrays beside it, each with its digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from torch import Tensor

from quantlab.network.taps import Tap
from quantlab.quant.frozen_tensor import FrozenTensor

T = TypeVar("T")


def packed(value: Any, name: str, arrays: dict[str, Tensor]) -> Any:
    """A frozen dataclass as plain data. Its arrays go to ``arrays``, under names that begin with ``name``.

    An object whose class has a ``kind`` gets it as a field, so that :func:`unpacked_kind` finds the class.
    """
    if isinstance(value, FrozenTensor):
        arrays[name] = value.tensor
        return {"array": name, "sha256": value.digest}
    if isinstance(value, Tap):
        return value.to_json()
    if isinstance(value, tuple):
        return [packed(item, f"{name}.{index}", arrays) for index, item in enumerate(value)]
    if not hasattr(value, "__dataclass_fields__"):
        return value
    kind = {"kind": value.kind} if hasattr(value, "kind") else {}
    return kind | {
        field.name: packed(getattr(value, field.name), f"{name}.{field.name}", arrays)
        for field in fields(value)
    }


def unpacked(data: Any, arrays: Mapping[str, Tensor]) -> Any:
    """Plain data with its arrays and tuples back in place.

    Raises ValueError for an array that is missing or is not the one whose digest the data has.
    """
    if isinstance(data, list):
        return tuple(unpacked(item, arrays) for item in data)
    if not isinstance(data, Mapping):
        return data
    if data.keys() != {"array", "sha256"}:
        return {name: unpacked(value, arrays) for name, value in data.items()}
    if data["array"] not in arrays:
        raise ValueError(f"the plan's array {data['array']!r} is missing from plan.safetensors")
    found = FrozenTensor(arrays[data["array"]])
    if found.digest != data["sha256"]:
        raise ValueError(f"the plan's array {data['array']!r} is another one than the plan was written with")
    return found


def unpacked_kind(data: Mapping[str, Any], kinds: Mapping[str, type[T]]) -> T:
    """The object of a class that ``kinds`` has under the data's ``kind``.

    Raises KeyError for an unknown kind, and TypeError for missing or unknown fields.
    """
    values = dict(data)
    return kinds[values.pop("kind")](**values)
