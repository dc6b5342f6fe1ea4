"""Error correction: weights and biases that make up for the errors of the layers before, in closed form.

The weights' correction is QEP, arXiv 2504.09629, eq. 9, with its authors' defaults; the biases' is Nagel et
al. 2019, arXiv 1906.04721, section 4.2, with measured means.
"""

import torch
from torch import Tensor


def corrected_weight(
    weight: Tensor, moved: Tensor, gram: Tensor, strength: float = 0.5, damping: float = 1.0
) -> Tensor:
    """``W + a W D (H + lambda mean(diag H) I)^-1``, float64.

    Rows of X are a Linear's original inputs, rows of X^ its inputs in the quantized network. ``gram`` is
    ``H = X^^T X^`` and ``moved`` is ``D = (X - X^)^T X^``, both (channels, channels), float64 and of the same
    rows. ``a = 1`` without damping is the least-squares solution of ``X^ W'^T = X W^T``. Equal inputs leave
    the weight unchanged.
    """
    if not moved.any():
        return weight.double()
    damped = gram.clone()
    damped.diagonal().add_(damping * gram.diagonal().mean())
    gained: Tensor = torch.linalg.solve(damped, (weight.double() @ moved).T).T
    return weight.double() + strength * gained


def bias_correction(weight: Tensor, mean: Tensor, quantized_weight: Tensor, quantized_mean: Tensor) -> Tensor:
    """What the bias gains so that outputs keep their mean: ``E[x] W^T - E[x^] W^^T``, (outputs,), float64.

    ``mean`` and ``quantized_mean`` (channels,) are those of the original and the quantized inputs.
    """
    return weight.double() @ mean.double() - quantized_weight.double() @ quantized_mean.double()
