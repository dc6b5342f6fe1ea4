"""Puts tensors on one grid, fast: what can be computed beforehand is done once."""

import torch
from torch import Tensor

from quantlab.kernels import native

MIDDLE = 128  # signed integers travel as unsigned bytes, shifted by this


class Snapper:
    """``AffineGrid.snap`` for one scale and zero point, which broadcast against the tensors: the same bits.

    The zero point is folded into the bounds. On a CPU one pass over memory does it all
    (:mod:`quantlab.kernels.native`). In torch a single range becomes plain numbers: clamping to them is three
    times as fast as to one-element tensors. ``overwrite`` allows that pass to put the values where the tensor
    was.
    """

    def __init__(self, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int, overwrite: bool = False):
        self.scale, self.overwrite = scale, overwrite
        self.q_min, self.q_max = q_min, q_max
        self.terms = (scale.reciprocal(), q_min - zero_point, q_max - zero_point, scale)
        self.numbers = [term.item() for term in self.terms] if scale.numel() == 1 else None
        self._per_head: Tensor | None = None
        self.byte_zero_point = (zero_point + (MIDDLE if q_min < 0 else 0)).int()
        self._channels = scale.numel() if self._is_one_grid_a_channel() else None

    def __call__(self, x: Tensor) -> Tensor:
        """The grid's value nearest to every element."""
        if self._is_native(x):
            values, _ = self._native(x, values=True, integers=False)
            assert values is not None
            return values
        inverse, lower, upper, step = self.numbers or self.terms
        return (x * inverse).round_().clamp_(lower, upper).mul_(step)  # type: ignore[arg-type]

    def integers(self, x: Tensor, values: bool) -> tuple[Tensor | None, Tensor | None]:
        """The values if they are asked for, and the integers as bytes (of a grid of up to 8 bits): the values
        are ``scale (bytes - byte_zero_point)``. No integers where ``x`` holds NaN, which no byte stands
        for."""
        if self._is_native(x):
            return self._native(x, values, integers=True)
        inverse, lower, upper, step = self.numbers or self.terms
        whole = (x * inverse).round_().clamp_(lower, upper)  # type: ignore[arg-type]
        integers = None if whole.isnan().any() else (whole + self.byte_zero_point).to(torch.uint8)
        return whole * step if values else None, integers

    def per_head(self, heads: int) -> Tensor:
        """Reciprocal of the scale, bounds and scale of each of the heads, shape (heads, 4), FP32."""
        if self._per_head is None:
            self._per_head = torch.stack([term.float().flatten().expand(heads) for term in self.terms], dim=1)
        return self._per_head

    def fits_heads(self, heads: int) -> bool:
        """Whether there is one grid for all heads, or one for each: what broadcasts so against (batch, heads,
        ...)."""
        return self.numbers is not None or all(term.shape == (heads, 1, 1) for term in self.terms)

    def _is_native(self, x: Tensor) -> bool:
        if self.numbers is None and (self._channels is None or x.ndim == 0 or x.shape[-1] != self._channels):
            return False  # torch broadcasts, or raises
        return native.takes(x)

    def _is_one_grid_a_channel(self) -> bool:
        """Whether every term holds one number a channel, as ``kernels.c`` reads them."""
        shapes = {term.shape for term in (*self.terms, self.byte_zero_point)}
        return (
            len(shapes) == 1
            and self.scale.ndim == 1
            and all(
                term.dtype == torch.float32 and term.device.type == "cpu" and term.is_contiguous()
                for term in self.terms
            )
            and self.byte_zero_point.is_contiguous()
        )

    def _native(self, x: Tensor, values: bool, integers: bool) -> tuple[Tensor | None, Tensor | None]:
        library, x = native.library(), x.contiguous()
        assert library is not None
        snapped = (x if self.overwrite else torch.empty_like(x)) if values else None
        bytes_ = torch.empty(x.shape, dtype=torch.uint8) if integers else None
        to = [x.data_ptr(), native.address(snapped), native.address(bytes_)]
        if self.numbers is not None:
            nan = library.snap(
                *to, x.numel(), *self.numbers, self.byte_zero_point.item(), torch.get_num_threads()
            )
        else:
            channels = [term.data_ptr() for term in (*self.terms, self.byte_zero_point)]
            size = (x.numel() // x.shape[-1], x.shape[-1])
            nan = library.snap_channels(*to, *size, *channels, torch.get_num_threads())
        return snapped, None if nan else bytes_
