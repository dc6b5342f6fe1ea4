"""Turns layers that only some architectures have into those that everything here knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def conv1d_to_linear(model: PreTrainedModel) -> PreTrainedModel:
    """Replaces GPT-2's ``Conv1D``, whose weight is (inputs, outputs), by Linears with the transposed weight.

    In place; returns the same model. Values are copied as they are, so every product sums the same terms.
    Hooks before a ``Conv1D`` are its Linear's. A model without ``Conv1D`` stays as it is.
    """
    from transformers.pytorch_utils import Conv1D

    for path, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            parent, _, name = path.rpartition(".")
            linear = _linear(module.weight, module.bias).train(module.training)
            linear._forward_pre_hooks.update(module._forward_pre_hooks)
            linear._forward_pre_hooks_with_kwargs.update(module._forward_pre_hooks_with_kwargs)
            setattr(model.get_submodule(parent), name, linear)
    return model


def _linear(weight: nn.Parameter, bias: nn.Parameter) -> nn.Linear:
    inputs, outputs = weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.weight = nn.Parameter(weight.detach().t().contiguous(), requires_grad=weight.requires_grad)
    linear.bias = bias
    return linear
