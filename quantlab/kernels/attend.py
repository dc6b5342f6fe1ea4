"""Attention with quantized scores and probabilities in one pass: the scores stay in the processor's cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from quantlab.kernels import native
from quantlab.kernels.snapper import Snapper

WIDTH_MULTIPLE = 16  # a head's width must be a multiple: kernels.c makes so many columns together


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    scores_on: Snapper | None,
    probs_on: Snapper | None,
) -> Tensor | None:
    """Softmax attention with quantized scores and probabilities, in ``kernels.c``.

    Computes ``P(softmax(S(scaling q k^T) + mask)) v``, where S and P are the quantizers ``scores_on`` and
    ``probs_on``, or the identity for None. The query is (batch, heads, tokens, width), key and value are
    (batch, kv_heads, tokens, width): each of their heads serves ``heads / kv_heads`` heads of the query that
    follow one another. The mask is (batch, 1, queries, keys) and added to the scores. Keys that it closes to
    some queries in a row up to the last key, as a causal mask does, cost nothing.

    Returns (batch, tokens, heads, width), equal to torch's operators up to the order of sums, or None if
    ``kernels.c`` does not take the tensors or grids. Raises MemoryError if there is no scratch memory.
    """
    if not _fit(query, key, value, mask, (scores_on, probs_on)):
        return None
    batch, heads, queries, width = query.shape
    kv_heads, keys = key.shape[1:3]
    if mask is not None:
        mask = mask.expand(batch, 1, queries, keys)
    tensors = [query, key, value]
    given = tensors if mask is None else [*tensors, mask]
    if not native.takes(*given) or any(x.stride(3) != 1 for x in given):
        return None
    library = native.library()
    assert library is not None
    context = torch.empty(batch, queries, heads, width)
    strides = torch.tensor([x.stride()[:3] for x in tensors])  # (3, 3), int64
    mask_strides = torch.tensor([0, 0] if mask is None else [mask.stride(0), mask.stride(2)])
    grids = [None if snapper is None else snapper.per_head(heads) for snapper in (scores_on, probs_on)]
    failed = library.attend(
        *(x.data_ptr() for x in tensors),
        native.address(mask),
        context.data_ptr(),
        batch,
        heads,
        kv_heads,
        queries,
        keys,
        width,
        strides.data_ptr(),
        mask_strides.data_ptr(),
        scaling,
        *map(native.address, grids),
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError(f"no memory for attention over {keys} tokens")
    return context


def _fit(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, grids: Sequence[Snapper | None]
) -> bool:
    """Whether all shapes agree. ``kernels.c`` does not check: it reads batch, heads and width from the query,
    their heads and the number of keys from the key."""
    if query.ndim != 4 or key.ndim != 4 or query.shape[3] % WIDTH_MULTIPLE:
        return False
    batch, heads, queries, width = query.shape
    kv_heads, keys = key.shape[1:3]
    if 0 in (*query.shape, kv_heads, keys) or heads % kv_heads:
        return False
    if key.shape != (batch, kv_heads, keys, width) or value.shape != key.shape:
        return False
    if mask is not None and (
        mask.ndim != 4
        or any(n not in (1, m) for n, m in zip(mask.shape, (batch, 1, queries, keys), strict=True))
    ):
        return False
    return all(snapper is None or snapper.fits_heads(heads) for snapper in grids)
