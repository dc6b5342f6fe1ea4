"""Fast quantize-dequantize on one fixed grid: what does not depend on the tensor is precomputed."""

import torch
from torch import Tensor

from quantlab.kernels import native

MIDDLE = 128  # signed integers are stored as unsigned bytes, shifted by this


class Snapper:
    """Quantizes and dequantizes with a fixed scale and zero point, equal to ``AffineGrid.snap`` to the bit.

    With ``s`` the scale and ``z`` the zero point it computes ``s clamp(round(x / s), q_min - z, q_max - z)``,
    the same as ``s (clamp(round(x / s) + z, q_min, q_max) - z)`` since z is whole. ``scale`` and
    ``zero_point`` broadcast against the tensors, and so do ``q_min`` and ``q_max`` if they are tensors.

    On a CPU ``kernels.c`` does it in one pass over memory, in place if ``overwrite`` is set. In torch a
    single range becomes Python numbers (``numbers``): clamping to them is three times as fast as to
    one-element tensors.
    """

    def __init__(
        self,
        scale: Tensor,
        zero_point: Tensor,
        q_min: int | Tensor,
        q_max: int | Tensor,
        overwrite: bool = False,
    ):
        self.scale, self.overwrite = scale, overwrite
        self.q_min = int(torch.as_tensor(q_min).min())
        self.q_max = int(torch.as_tensor(q_max).max())
        self.terms = (scale.reciprocal(), q_min - zero_point, q_max - zero_point, scale)
        self.numbers = [term.item() for term in self.terms] if scale.numel() == 1 else None
        self._per_head: Tensor | None = None
        self.byte_zero_point = (zero_point + (MIDDLE if self.q_min < 0 else 0)).int()
        self._channels = scale.numel() if self._is_one_grid_a_channel() else None

    def __call__(self, x: Tensor) -> Tensor:
        """The nearest value of the grid for every element."""
        if self._is_native(x):
            values, _ = self._native(x, values=True, integers=False)
            assert values is not None
            return values
        inverse, lower, upper, step = self.numbers or self.terms
        return (x * inverse).round_().clamp_(lower, upper).mul_(step)  # type: ignore[arg-type]

    def integers(self, x: Tensor, values: bool) -> tuple[Tensor | None, Tensor | None]:
        """The quantized tensor as ``(values, integers)``, for a grid of up to 8 bits.

        ``values`` are FP32, and None unless asked for. ``integers`` are uint8, and the values are
        ``scale (integers - byte_zero_point)``. They are None if ``x`` holds NaN, which no byte represents.
        """
        if self._is_native(x):
            return self._native(x, values, integers=True)
        inverse, lower, upper, step = self.numbers or self.terms
        whole = (x * inverse).round_().clamp_(lower, upper)  # type: ignore[arg-type]
        integers = None if whole.isnan().any() else (whole + self.byte_zero_point).to(torch.uint8)
        return whole * step if values else None, integers

    def per_head(self, heads: int) -> Tensor:
        """1 / scale, lower bound, upper bound and scale for each head, shape (heads, 4), FP32."""
        if self._per_head is None or len(self._per_head) != heads:
            self._per_head = torch.stack([term.float().flatten().expand(heads) for term in self.terms], dim=1)
        return self._per_head

    def fits_heads(self, heads: int) -> bool:
        """Whether there is one grid for all heads, or one for each head of (batch, heads, tokens, tokens)."""
        return self.numbers is not None or all(term.shape == (heads, 1, 1) for term in self.terms)

    def _is_native(self, x: Tensor) -> bool:
        if self.numbers is None and (self._channels is None or x.ndim == 0 or x.shape[-1] != self._channels):
            return False  # left to torch, which broadcasts or raises
        return native.takes(x)

    def _is_one_grid_a_channel(self) -> bool:
        """Whether every term holds one number per channel, contiguous and on the CPU."""
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
        """:meth:`integers` in ``kernels.c``; each result is None unless asked for."""
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
