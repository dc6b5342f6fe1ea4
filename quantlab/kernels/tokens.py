"""Integers with a scale for each token, and quantizing every token on its own grid in ``kernels.c``."""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.kernels import native
from quantlab.kernels.snapper import MIDDLE


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenIntegers:
    """A tensor quantized token by token: its values are ``scale (integers - zero_point)``.

    The integers are unsigned for symmetric grids too, as the kernels take them.
    """

    integers: Tensor  # uint8, (..., channels)
    scale: Tensor  # FP32, (..., 1)
    zero_point: Tensor  # whole numbers in FP32, (..., 1), between 0 and 255


def snap_tokens(
    x: Tensor, q_max: int, symmetric: bool, values: bool, integers: bool, overwrite: bool = False
) -> tuple[Tensor | None, TokenIntegers | None]:
    """Quantizes every token of a tensor that the kernels take; each result is None unless asked for.

    ``q_max`` is the largest integer of the grid, at most 255 with ``integers``, which are None if ``x`` holds
    NaN. The values go to ``x`` if ``overwrite`` is set.
    """
    library, x = native.library(), x.contiguous()
    assert library is not None
    snapped = (x if overwrite else torch.empty_like(x)) if values else None
    bytes_ = torch.empty(x.shape, dtype=torch.uint8) if integers else None
    scale, zero_point = x.new_empty((*x.shape[:-1], 1)), x.new_empty((*x.shape[:-1], 1))
    to = [native.address(one) for one in (snapped, bytes_, scale, zero_point)]
    shift = MIDDLE if symmetric else 0
    size = (scale.numel(), x.shape[-1])
    nan = library.snap_tokens(x.data_ptr(), *to, *size, q_max, symmetric, shift, torch.get_num_threads())
    if bytes_ is None or nan:
        return snapped, None
    return snapped, TokenIntegers(integers=bytes_, scale=scale, zero_point=zero_point)
