"""What a sweep asks: its YAML keys, and the trials that follow."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from quantlab.config.checks import folder_name, one_of
from quantlab.sweeping.quoting import in_hydra
from quantlab.sweeping.views import View

LAYER, DEEPEST = (
    "{layer}",
    "{deepest}",
)  # each layer's number in turn; those of the deepest 1, 2, 3, ... layers

Axes = Mapping[str, Sequence[str]]  # override keys, each with its values as Hydra reads them
Layers = Callable[[Axes], int]  # counts the layers of the model that these axes set


@dataclass(frozen=True, kw_only=True)
class Block:
    """Overrides to cross: a list holds an axis' values, anything else is one value. A value may itself be a
    list."""

    over: tuple[tuple[str, tuple[str, ...]], ...]  # values as JSON, so that a block can be hashed
    name: str = ""

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "Block":
        """From YAML: ``{name: ..., over: {method.k: [2, 3]}}``. Raises ValueError on any other key."""
        for key in content:
            one_of("a key of sweep.trials", key, [field.name for field in fields(cls)])
        over = content.get("over", {})
        if not isinstance(over, Mapping):
            raise ValueError(f"sweep.trials: over must map overrides to values, got {over!r}")
        return cls(
            over=tuple((str(key), _axis(value)) for key, value in over.items()), name=content.get("name", "")
        )


@dataclass(frozen=True, kw_only=True)
class Member:
    """A trial's place in its sweep. The sweep fills it in for each of its trials."""

    number: int
    total: int
    name: str
    key: str
    sweep: str  # the identity of the sweep, the tag that all of its trials have
    parent: str | None  # the id of the sweep's own run
    swept: tuple[str, ...]  # "method.k=4"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep's YAML keys: ``python -m quantlab.run -m +sweeps=<file>``."""

    name: str = "multirun"
    question: str = ""
    trials: tuple[Any, ...] = ()
    views: tuple[View, ...] = ()
    fresh: bool = False  # true: repeat what is there already
    member: Member | None = None

    def __post_init__(self) -> None:
        folder_name("sweep.name", self.name)
        one_of("sweep.fresh", self.fresh, (True, False))
        for view in self.views:
            if not isinstance(view, View):
                raise ValueError(
                    f"sweep.views: each needs a _target_ such as quantlab.sweeping.views.Dots; got {view!r}"
                )
        object.__setattr__(
            self, "trials", tuple(b if isinstance(b, Block) else Block.read(b) for b in self.trials)
        )
        object.__setattr__(self, "views", tuple(self.views))
        if isinstance(self.member, Mapping):
            object.__setattr__(
                self, "member", Member(**{**self.member, "swept": tuple(self.member["swept"])})
            )


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One trial of a sweep, as Hydra overrides by key."""

    block: str
    name: str
    overrides: Mapping[str, str]

    @property
    def settings(self) -> dict[str, str]:
        """The overrides by the setting that each names: what tables, params and run names show."""
        return {setting_of(key): value for key, value in self.overrides.items()}


def setting_of(key: str) -> str:
    """The setting that an override's key names: ``bits.weights`` for ``++bits.weights``, ``a`` for
    ``a@b.c``."""
    return key.lstrip("+~").split("@")[0]


def sweep_rows(sweep: Sweep, asked: Axes, layers: Layers) -> list[SweepRow]:
    """The sweep's trials in order, each once. ``asked`` is what the command line sets; it wins over the file.

    ``layers`` is called if a value speaks of layers. Raises ValueError where that leaves nothing to run, and
    where two overrides of a trial name one setting.
    """
    found: dict[tuple[str, tuple[tuple[str, str], ...]], SweepRow] = {}
    for block in sweep.trials or (Block(over=()),):
        axes = _axes(block, asked, layers)
        _require_distinct(axes)
        for values in itertools.product(*axes.values()):
            overrides = dict(zip(axes, values, strict=True))
            row = SweepRow(block=block.name, name=_name(block.name, overrides, axes), overrides=overrides)
            found.setdefault((block.name, tuple(overrides.items())), row)
    if not found:
        raise ValueError(f"sweep {sweep.name} has no trials")
    return list(found.values())


def varying(found: Sequence[SweepRow]) -> tuple[str, ...]:
    """The settings that tell the rows apart."""
    settings = [row.settings for row in found]
    names = dict.fromkeys(name for row in settings for name in row)
    return tuple(name for name in names if len({row.get(name) for row in settings}) > 1)


def _axes(block: Block, asked: Axes, layers: Layers) -> Axes:
    """A block's axes. What the command line sets replaces the block's axis of that setting, or is one more
    axis."""
    given = {setting_of(key): key for key in asked}
    over = {given.get(setting_of(key), key): values for key, values in block.over}
    plain = {
        key: [in_hydra(json.loads(text)) for text in values]
        for key, values in over.items()
        if not _marked(values)
    }
    added = {key: values for key, values in asked.items() if key in over or len(values) > 1}
    told = {**plain, **added}
    return {
        key: told[key]
        if key in told
        else [text for value in values for text in _texts(value, lambda: layers(told))]
        for key, values in {**over, **added}.items()
    }


def _axis(value: Any) -> tuple[str, ...]:
    return tuple(map(json.dumps, value)) if isinstance(value, list | tuple) else (json.dumps(value),)


def _marked(values: Sequence[str]) -> bool:
    return any(mark in text for mark in (LAYER, DEEPEST) for text in values)


def _require_distinct(axes: Axes) -> None:
    """Raises ValueError where a table could not tell two overrides of a trial apart: ``a@x`` and ``a@y``."""
    by_setting: dict[str, str] = {}
    for key in axes:
        if (other := by_setting.setdefault(setting_of(key), key)) != key:
            raise ValueError(f"{other} and {key} both name {setting_of(key)}: a sweep sets one of them")


def _texts(text: str, layers: Callable[[], int]) -> Iterator[str]:
    """A value as the command line has it; one text for each layer where it speaks of layers."""
    value = json.loads(text)
    if LAYER in text:
        yield from (in_hydra(_filled(value, LAYER, [layer])) for layer in range(layers()))
    elif DEEPEST in text:
        depth = layers()
        yield from (
            in_hydra(_filled(value, DEEPEST, range(depth - count, depth))) for count in range(1, depth + 1)
        )
    else:
        yield in_hydra(value)


def _filled(value: Any, mark: str, numbers: Sequence[int]) -> Any:
    if isinstance(value, list | tuple):
        return [filled for item in value for filled in _copies(item, mark, numbers)]
    if len(numbers) > 1:
        raise ValueError(f"{mark} stands for several layers: use it in a list, got {value!r}")
    return numbers[0] if value == mark else value.replace(mark, str(numbers[0]))


def _copies(item: Any, mark: str, numbers: Sequence[int]) -> list[Any]:
    return [item.replace(mark, str(number)) for number in numbers] if mark in str(item) else [item]


def _name(block: str, overrides: Mapping[str, str], axes: Axes) -> str:
    """``peg k=4 permute=range``; in a named block, the block's name and what varies in it."""
    shown = {setting_of(key): value for key, value in overrides.items() if not block or len(axes[key]) > 1}
    words = [
        value if "." not in name else f"{name.rsplit('.', 1)[1]}={value}" for name, value in shown.items()
    ]
    return " ".join([block, *words] if block else words) or "trial"
