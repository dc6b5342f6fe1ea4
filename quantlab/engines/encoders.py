"""Quantizers of sites whose results carry their integers for the Linears that read them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlab.engines.encodings import (
    ByGroup,
    ByToken,
    Groups,
    Integers,
    TwoGrids,
    WithWideColumns,
    channels_by_group,
)
from quantlab.engines.wide import note_wide
from quantlab.kernels.products import GeluProduct, IntegerTensor
from quantlab.kernels.snapper import MIDDLE, Snapper
from quantlab.quant.basis import Basis
from quantlab.quant.dynamic import DynamicGrid
from quantlab.quant.grid import AffineGrid
from quantlab.quant.split import Rest, WideColumns
from quantlab.quant.splits import residual_integers

ENCODING = "_quantlab_encoding"


@dataclass
class Encoding:
    """The integers of a quantized tensor, and the quantizer that made them.

    ``integers`` is None until a Linear asks for them.
    """

    encoder: Encoder
    integers: Integers | None

    def of(self, y: Tensor) -> Integers | None:
        """The integers of the tensor ``y`` that has this encoding; None if it holds NaN."""
        if self.integers is None:
            self.integers = self.encoder.encode(y)
        return self.integers


class Encoder(ABC):
    """Quantizes a site and attaches the encoding to the result, so that q, k and v encode it once.

    With ``values`` false the result keeps the input's values: only integer products read it. With a ``basis``
    the integers are of the tensor in that basis, and the values in the network's.
    """

    wanted = True  # whether integers are computed with the values

    def __init__(self, values: bool, basis: Basis | None):
        self.values, self.basis = values, basis

    def __call__(self, x: Tensor) -> Tensor:
        if (encoding := getattr(x, ENCODING, None)) is not None and encoding.encoder is self:
            return x
        based = x if self.basis is None else self.basis.forward(x)
        values = self.values or not self.wanted
        snapped, integers = self.quantize(based, values, self.wanted)
        if self.wanted and integers is None and snapped is None:  # x holds NaN, which must stay NaN
            snapped, _ = self.quantize(based, True, False)
        y = x.detach() if snapped is None else self._back(snapped)
        if integers is not None or not self.wanted:
            setattr(y, ENCODING, Encoding(self, integers))
        return y

    @abstractmethod
    def quantize(self, x: Tensor, values: bool, integers: bool) -> tuple[Tensor | None, Integers | None]:
        """The quantized values of a tensor in the basis, and its integers, each None unless asked for.

        The integers are None if ``x`` holds NaN, too.
        """

    def encode(self, y: Tensor) -> Integers | None:
        """The integers of a tensor that this quantizer made without them; None if it holds NaN."""
        self.wanted = True
        return self.quantize(y if self.basis is None else self.basis.forward(y), False, True)[1]

    def _back(self, snapped: Tensor) -> Tensor:
        return snapped if self.basis is None else self.basis.back(snapped)


class EncodingQuantizer(Encoder):
    """The encoder of a static integer grid.

    ``groups`` gives each channel's group. A group has its own scale and zero point, and its own integer
    product. The integers are computed with the values once a Linear has asked for them (``wanted``), and on
    request before that.
    """

    def __init__(self, snapper: Snapper, groups: Groups, values: bool, basis: Basis | None = None):
        super().__init__(values, basis)
        self.snapper, self.groups = snapper, groups
        self.wanted = not values  # set by the first Linear that asks for integers
        self.channels = [channels.to(snapper.scale.device) for channels in channels_by_group(groups)]
        firsts = [int(channels[0]) for channels in self.channels] or [0]
        self.scales = [snapper.scale.flatten()[first].item() for first in firsts]
        self.zero_points = [int(snapper.byte_zero_point.flatten()[first]) for first in firsts]

    def quantize(self, x: Tensor, values: bool, integers: bool) -> tuple[Tensor | None, Integers | None]:
        if not integers:
            return self.snapper(x), None
        snapped, found = self.snapper.integers(x, values)
        if found is None:
            return snapped, None
        parts = [found.index_select(-1, channels) for channels in self.channels] or [found]
        return snapped, ByGroup(
            parts=[
                IntegerTensor(integers=part, scale=scale, zero_point=zero_point)
                for part, scale, zero_point in zip(parts, self.scales, self.zero_points, strict=True)
            ],
            groups=self.groups,
        )

    def gelu(self, multiply: GeluProduct, x: IntegerTensor, bias: Tensor | None) -> Tensor:
        """GELU of a product, quantized by this quantizer. The result has integers only: its values are
        NaN."""
        onto = multiply.gelu(x, bias, self.snapper)
        # One NaN, expanded to the shape, takes no memory and shows if a consumer ignores the encoding.
        y = torch.full((), torch.nan).expand(onto.integers.shape)
        setattr(y, ENCODING, Encoding(self, ByGroup(parts=[onto])))
        return y


class TokenEncoder(Encoder):
    """The encoder of a grid for each token."""

    def __init__(self, grid: DynamicGrid, values: bool, basis: Basis | None, overwrite: bool):
        super().__init__(values, basis)
        self.grid, self.overwrite = grid, overwrite

    def quantize(self, x: Tensor, values: bool, integers: bool) -> tuple[Tensor | None, Integers | None]:
        snapped, tokens = self.grid.quantize(x, values, integers, self.overwrite)
        if tokens is None:
            return snapped, None
        return snapped, ByToken(tokens=tokens, symmetric=self.grid.symmetric, middle=self.grid.middle)


class WideEncoder(Encoder):
    """The encoder of another one's grid with wide columns beside it."""

    def __init__(self, narrow: Encoder, split: WideColumns):
        super().__init__(narrow.values, narrow.basis)
        self.narrow, self.split = narrow, split

    def __call__(self, x: Tensor) -> Tensor:
        y = super().__call__(x)
        integers = getattr(y, ENCODING).integers if hasattr(y, ENCODING) else None
        if self.split.by_batch and isinstance(integers, WithWideColumns):
            note_wide(y, integers.columns, integers.values)
        return y

    def quantize(self, x: Tensor, values: bool, integers: bool) -> tuple[Tensor | None, Integers | None]:
        wide = self.split.wide(x)
        if not len(wide):
            return self.narrow.quantize(x, values, integers)
        kept = self.split.keep(x.index_select(-1, wide))
        snapped, found = self.narrow.quantize(x.index_fill(-1, wide, 0), values, integers)
        if snapped is not None:
            snapped = snapped.index_copy(-1, wide, kept)
        return snapped, found and WithWideColumns(narrow=found, columns=wide, values=kept)


class RestEncoder(Encoder):
    """The encoder of a narrow grid and a coarse one for the rest."""

    def __init__(
        self,
        grid: AffineGrid,
        scale: Tensor,
        zero_point: Tensor,
        split: Rest,
        values: bool,
        basis: Basis | None,
    ):
        super().__init__(values, basis)
        self.grid, self.scale, self.zero_point, self.split = grid, scale, zero_point, split

    def quantize(self, x: Tensor, values: bool, integers: bool) -> tuple[Tensor | None, Integers | None]:
        exponent = self.split.exponent
        q, rest = residual_integers(x, self.grid, self.scale, self.zero_point, exponent, self.split.bits)
        snapped = (rest * 2.0**exponent + (q - self.zero_point)) * self.scale if values else None
        if not integers or q.isnan().any():
            return snapped, None
        shift, step = 0 if self.grid.unsigned else MIDDLE, self.scale.item()
        narrow = IntegerTensor(
            integers=q.add_(shift).to(torch.uint8), scale=step, zero_point=int(self.zero_point) + shift
        )
        if not rest.any():
            return snapped, TwoGrids(narrow=narrow, rest=None)
        coarse = rest.add_(MIDDLE).to(torch.uint8)
        return snapped, TwoGrids(
            narrow=narrow, rest=IntegerTensor(integers=coarse, scale=step * 2.0**exponent, zero_point=MIDDLE)
        )
