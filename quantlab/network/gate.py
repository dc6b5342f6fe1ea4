"""Gates of attention heads: Bondarenko et al. 2023, arXiv 2306.12929."""

from __future__ import annotations

from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """The gates of a layer's heads, each a product of a head's width. They begin with weight and bias 0."""

    def __init__(self, heads: int, width: int, scale: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, width))
        self.bias = nn.Parameter(torch.zeros(heads))
        self.scale = scale
        self.opened: dict[int, Tensor] = {}  # by thread: batches are answered side by side

    def forward(self, x: Tensor) -> Tensor:
        """The layer's input, (..., heads * width), to (..., heads)."""
        logits = (x.reshape(*x.shape[:-1], *self.weight.shape) * self.weight).sum(-1) + self.bias
        return self.scale * torch.sigmoid(logits)

    def read(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Hook before attention: keeps the gates of its input."""
        self.opened[get_ident()] = self(inputs[0] if inputs else named["hidden_states"])

    def multiply(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Hook before the output projection: multiplies the heads by the gates that were kept."""
        context: Tensor = inputs[0]
        heads = context.reshape(*context.shape[:-1], len(self.bias), -1)
        opened = self.opened.pop(get_ident()).reshape(*heads.shape[:-1], 1).to(context.dtype)
        return (heads * opened).flatten(-2), *inputs[1:]
