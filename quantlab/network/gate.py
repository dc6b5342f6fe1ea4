"""Gates of attention heads: Bondarenko et al. 2023, arXiv 2306.12929."""

from __future__ import annotations

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

    def forward(self, x: Tensor) -> Tensor:
        """The layer's input, (..., heads * width), to (..., heads)."""
        logits = (x.reshape(*x.shape[:-1], *self.weight.shape) * self.weight).sum(-1) + self.bias
        return self.scale * torch.sigmoid(logits)

    def read(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Hook before attention: keeps the gates of its input."""
        vars(self)["opened"] = self(inputs[0] if inputs else named["hidden_states"])

    def multiply(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Hook before the output projection: multiplies the heads by the gates that were kept."""
        context: Tensor = inputs[0]
        opened: Tensor = vars(self).pop("opened")
        heads = context.reshape(*context.shape[:-1], len(self.bias), -1)
        opened = opened.reshape(*heads.shape[:-1], 1).to(context.dtype)
        return (heads * opened).flatten(-2), *inputs[1:]
