"""The alternatives of transform, split and rounding that a search decides among: ``search.slots``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException, MissingConfigException
from hydra.utils import instantiate

from quantlab.config.checks import nearest
from quantlab.sweeping.quoting import in_hydra
from quantlab.sweeping.run_config import SLOTS, RunConfig

OWN = "own"  # the name of the alternative that changes nothing

Settings = tuple[tuple[str, Any], ...]  # of one alternative: what one types after quantlab run
C = TypeVar("C", bound=RunConfig)


@dataclass(frozen=True)
class Alternative:
    """What replaces the trial's own transform, split and rounding; nothing for :data:`OWN`."""

    settings: Settings
    components: tuple[tuple[str, Any], ...]  # by slot

    @property
    def name(self) -> str:
        return name_of(self.settings)

    def applied(self, config: C) -> C:
        """The config with this alternative."""
        return replace(config, **dict(self.components))


def frozen_settings(slots: Any) -> tuple[Settings, ...]:
    """``search.slots`` in a form that can be hashed. Raises ValueError for what is no list of mappings, for a
    name that is neither a slot nor a setting of one, and for an alternative that is there twice."""
    if not isinstance(slots, Sequence) or isinstance(slots, str) or not slots:
        raise ValueError(f"search.slots must be a list of at least one alternative, got {slots!r}")
    found: list[Settings] = []
    for one in slots:
        pairs = isinstance(one, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in one)
        if not isinstance(one, Mapping) and not pairs:
            raise ValueError(
                f"search.slots must list mappings such as {{transform: hadamard}} or {{}}, got {one!r}"
            )
        found.append(tuple(_checked(dict(one))))
        if found[-1] in found[:-1]:
            raise ValueError(f"search.slots has {name_of(found[-1])} twice")
    return tuple(found)


def overrides_of(settings: Settings) -> tuple[str, ...]:
    """An alternative as one types it: ``transform=smoothquant``, ``transform.alpha=0.75``."""
    return tuple(f"{key}={in_hydra(value)}" for key, value in settings)


def name_of(settings: Settings) -> str:
    """The name that tables have: ``transform=smoothquant transform.alpha=0.75``."""
    return " ".join(overrides_of(settings)) or OWN


def alternatives_of(slots: Sequence[Settings], config: RunConfig) -> tuple[Alternative, ...]:
    """Builds each alternative's components. A setting without its slot's choice changes the trial's own.

    Choices are Hydra's, those of ``--config-dir`` included, so that this runs where Hydra composes. Raises
    ValueError for a choice or a setting that does not exist, with the nearest name, or if one is refused.
    """
    return tuple(Alternative(settings, tuple(_components(settings, config))) for settings in slots)


def _checked(one: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The settings: slots' choices first, in the slots' order."""
    for key in one:
        slot = str(key).partition(".")[0]
        if slot not in SLOTS:
            names = ", ".join(SLOTS)
            raise ValueError(
                f"search.slots: there is no slot {slot!r}{nearest(slot, SLOTS)}; it decides among {names}"
            )
    for key in sorted(one, key=lambda key: (list(SLOTS).index(key.partition(".")[0]), "." in key)):
        value = one[key]
        if "." not in key and not isinstance(value, str):
            raise ValueError(f"search.slots: {key} must be the name of a choice, got {value!r}")
        yield key, tuple(value) if isinstance(value, list) else value


def _components(settings: Settings, config: RunConfig) -> Iterator[tuple[str, Any]]:
    for slot in SLOTS:
        more = {key.partition(".")[2]: value for key, value in settings if key.startswith(f"{slot}.")}
        choice = dict(settings).get(slot)
        if choice is None and not more:
            continue
        component = getattr(config, slot) if choice is None else _chosen(slot, choice)
        named = f"{slot}={choice}" if choice else f"the trial's {slot}, {type(component).__name__},"
        known = [field.name for field in fields(component)] if is_dataclass(component) else []
        for name in more:
            if name not in known:
                raise ValueError(f"search.slots: {named} has no setting {slot}.{name}{nearest(name, known)}")
        try:
            yield slot, replace(component, **more)
        except ValueError as error:
            raise ValueError(f"search.slots: {error}") from None


def _chosen(slot: str, choice: str) -> Any:
    """The component that a choice of a config group builds."""
    assert GlobalHydra.instance().is_initialized(), "choices of search.slots are read where Hydra composes"
    try:
        return instantiate(compose("search", [f"{slot}={choice}"])[slot], _convert_="all")
    except MissingConfigException as error:
        allowed = list(error.options or ())
        raise ValueError(
            f"search.slots: there is no {slot}={choice}{nearest(choice, allowed)}; {slot} is one of "
            f"{', '.join(allowed)}"
        ) from None
    except InstantiationException as error:
        raise ValueError(f"search.slots: {error.__cause__ or error}") from None
