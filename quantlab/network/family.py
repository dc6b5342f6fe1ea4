"""Site tables: how a model family lists its sites, and how the list unfolds over a model of any depth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import nn

from quantlab.config.checks import nearest
from quantlab.network.sites import Site
from quantlab.network.taps import Tap

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Taps:
    """The taps of one role: where its tensor is made, and where a matrix product reads it.

    Module names are relative to the layer, or to the model outside the layers. ``optional``: a model without
    the module has no such site, instead of raising an error.
    """

    made_at: Tap | None = None
    read_at: Tap | None = None
    optional: bool = False


def one_tap(tap: Tap) -> Taps:
    """The taps of a tensor whose one consumer is a matrix product: both are the same."""
    return Taps(made_at=tap, read_at=tap)


@dataclass(frozen=True)
class FeedForward:
    """The module paths of a feed-forward block: a Linear, its activation, and a second Linear.

    Only the activation reads the first Linear, and only the second Linear reads the activation.
    """

    first: str
    activation: str
    second: str


@dataclass(frozen=True, kw_only=True)
class Family:
    """The site table of one model family: the module path of its layers, and the taps of every role before,
    in and after a layer.

    ``heads`` has one table, of whole names as ``head.out``, for each head that the family comes with; the
    first whose modules the model has is its own. ``unreachable``: roles of a layer that exist and that no tap
    reaches, each with the reason.
    """

    layers: str
    embed: Mapping[str, Taps]
    layer: Mapping[str, Taps]
    heads: Sequence[Mapping[str, Taps]]
    feed_forward: FeedForward | None = None  # if named, an engine may fuse its Linear and activation
    unreachable: Mapping[str, str] = field(default_factory=dict)

    def sites(self, model: PreTrainedModel) -> list[Site]:
        """Every site of the model, in the network's order.

        Raises ValueError if a module of the table is missing, or if two sites share a tap.
        """
        modules = dict(model.named_modules())
        depth = sum(1 for _ in modules[self.layers].children())
        tables = [("", "embed", self.embed)]
        tables += [(f"{self.layers}.{index}.", str(index), self.layer) for index in range(depth)]
        tables += [("", "", self._head(modules))]
        sites = [
            site
            for prefix, scope, table in tables
            for role, taps in table.items()
            if (site := _site(f"{scope}.{role}".lstrip("."), taps, prefix, modules, model.config)) is not None
        ]
        _check_distinct((site.made_at, site.name) for site in sites)
        _check_distinct((site.read_at, site.name) for site in sites)
        return sites

    def _head(self, modules: Mapping[str, nn.Module]) -> Mapping[str, Taps]:
        """The table of the model's own head; the last one if it has none of them."""
        own = (head for head in self.heads if all(_exists(taps, modules) for taps in head.values()))
        return next(own, self.heads[-1])


def _exists(taps: Taps, modules: Mapping[str, nn.Module]) -> bool:
    return taps.optional or all(tap.module in modules for tap in (taps.made_at, taps.read_at) if tap)


def _check_distinct(taps: Iterable[tuple[Tap | None, str]]) -> None:
    """Raises ValueError if two sites, given as pairs of tap and name, share a tap."""
    names: dict[Tap, str] = {}
    for tap, name in taps:
        if tap is not None and names.setdefault(tap, name) != name:
            raise ValueError(
                f"the site table names the {tap.at} of {tap.module} twice, as {names[tap]} and as {name}: "
                "only one of them would be quantized"
            )


def _site(
    name: str, taps: Taps, prefix: str, modules: Mapping[str, nn.Module], config: PretrainedConfig
) -> Site | None:
    made_at, read_at = (
        _absolute(tap, prefix, modules, taps.optional) for tap in (taps.made_at, taps.read_at)
    )
    either = made_at or read_at
    if either is None:
        return None
    return Site(
        name=name, channels=either.channels(modules[either.module], config), made_at=made_at, read_at=read_at
    )


def _absolute(tap: Tap | None, prefix: str, modules: Mapping[str, nn.Module], optional: bool) -> Tap | None:
    if tap is None:
        return None
    path = (prefix + tap.module).rstrip(".")  # the layer itself has no name inside it
    if path not in modules:
        if optional:
            return None
        raise ValueError(
            f"the site table names a module {path!r} that this model lacks{nearest(path, modules)}"
        )
    return replace(tap, module=path)
