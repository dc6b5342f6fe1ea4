"""Forward passes that start at a later layer, from the outputs recorded in an earlier pass."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from quantlab.network.architecture import family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The transformer layers, in order."""
    return list(model.get_submodule(family_of(model).layers).children())


def first_layer(site: str, layers: int) -> int:
    """The first layer whose output a site's quantization changes: -1 for the embeddings, ``layers`` for the
    head."""
    scope = site.split(".", 1)[0]
    return int(scope) if scope.isdigit() else {"embed": -1, "final": layers, "head": layers}[scope]


@contextmanager
def recorded(model: PreTrainedModel, outputs: dict[int, Any]) -> Iterator[None]:
    """Writes what each layer returns into ``outputs``, by the layer's number, until the exit."""

    def keep(index: int, output: Any) -> None:
        outputs[index] = output

    handles = [
        layer.register_forward_hook(lambda _, __, output, index=index: keep(index, output))
        for index, layer in enumerate(layers_of(model))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def resumed(model: PreTrainedModel, last: int, output: Any) -> Iterator[None]:
    """Skips the layers 0 to ``last`` until the exit: each returns ``output``, what ``last`` returned.

    Hooks of these layers do not run: they have changed ``output`` already, and others' ranges are not for it.
    """
    skipped = layers_of(model)[: last + 1]
    hooks = [(layer, layer._forward_hooks) for layer in skipped]
    try:
        for layer in skipped:
            vars(layer)["forward"] = lambda *_, **__: output
            layer._forward_hooks = OrderedDict()
        yield
    finally:
        for layer, own in hooks:
            vars(layer).pop("forward", None)
            layer._forward_hooks = own
