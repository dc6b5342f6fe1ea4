"""Messages about bad values: what came, what is allowed, what was probably meant."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from quantlab.config.checks import above, at_least, fitting, folder_name, freeze, nearest, one_of, whole
from quantlab.network.checkpoint_sources import Pretrained
from quantlab.network.models import FineTuned, Recipe
from quantlab.sweeping.sweep import Sweep
from quantlab.tasks.task import Splits
from quantlab.tasks.task import Task as AnyTask


class Task(AnyTask):
    def load(self) -> Splits:
        raise NotImplementedError


@pytest.mark.parametrize(
    "name, allowed, hint",
    [
        ("minmx", ["minmax", "mse", "percentile"], " (did you mean 'minmax'?)"),
        ("qqqq", ["minmax", "mse"], ""),
        ("fp17", ["fp16", "fp32", "bf16"], " (did you mean 'fp16' or 'fp32' or 'bf16'?)"),
        ("", ["a"], ""),
    ],
)
def test_nearest(name: str, allowed: list[str], hint: str) -> None:
    assert nearest(name, allowed) == hint


def test_one_of() -> None:
    one_of("field", "a", ("a", "b"))
    one_of("field", "a", (name for name in ("b", "a")))
    with pytest.raises(
        ValueError, match=r"^field must be one of apple, kiwi; got 'aple' \(did you mean 'apple'\?\)$"
    ):
        one_of("field", "aple", (name for name in ("apple", "kiwi")))
    with pytest.raises(ValueError, match=r"^field must be one of 1, 2; got 3$"):
        one_of("field", 3, (1, 2))


@pytest.mark.parametrize("value", [True, "1", None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("check", [at_least, above])
def test_a_number_is_finite(check: Callable[[str, Any, float], None], value: Any) -> None:
    with pytest.raises(ValueError, match=f"^field must be a finite number, got {value!r}$"):
        check("field", value, 0)


def test_at_least_and_above() -> None:
    for value in (0, 0.5):
        at_least("field", value, 0)
    above("field", 0.5, 0)
    with pytest.raises(ValueError, match=r"^field must be at least 0, got -1$"):
        at_least("field", -1, 0)
    with pytest.raises(ValueError, match=r"^field must be above 0, got 0$"):
        above("field", 0, 0)


@pytest.mark.parametrize(
    "value, most, bound",
    [
        (2, None, None),
        (16, 16, None),
        (17, 16, r"in 2\.\.16"),
        (1, 16, r"in 2\.\.16"),
        (1, None, "of at least 2"),
        (2.0, None, "of at least 2"),
        (True, None, "of at least 2"),
        ("3", None, "of at least 2"),
        (None, None, "of at least 2"),
    ],
)
def test_whole(value: Any, most: int | None, bound: str | None) -> None:
    if bound is None:
        whole("field", value, 2, most)
        return
    with pytest.raises(ValueError, match=f"^field must be a whole number {bound}, got {value!r}$"):
        whole("field", value, 2, most)


@pytest.mark.parametrize("name", ["peg_k", "données", "资料 2", "a=1, b (old)", "v1.2-rc+1"])
def test_a_folder_name(name: str) -> None:
    folder_name("field", name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("ablation/v2", "ablation-v2"),
        ("../../../x", "-..-..-x"),
        ("layer's K", "layer-s K"),
        ("[/x", "-x"),
        (".hidden", "hidden"),
        ("ends. ", "ends"),
        ("a\nb", "a-b"),
        ("50%41", "50-41"),
        ("資" * 40, "資" * 33),
        ("", None),
        (".", None),
        (8, None),
    ],
)
def test_what_is_no_folder_name_says_the_nearest_one(name: Any, near: str | None) -> None:
    with pytest.raises(ValueError, match="^field names a folder: ") as raised:
        folder_name("field", name)
    hint = "" if near is None else f" (did you mean {near!r}?)"
    assert str(raised.value).endswith(f"got {name!r}{hint}")
    assert near is None or fitting(near) == near


@pytest.mark.parametrize("name", ["a/b", "..", "it's", "[x]", ""])
def test_what_becomes_a_path_is_checked(name: str) -> None:
    build: dict[str, Callable[[], object]] = {
        "sweep.name": lambda: Sweep(name=name),
        "task.name": lambda: Task(name=name, labels=("a", "b"), metrics=("accuracy",)),
        "model.name": lambda: FineTuned(name=name, base=Pretrained(path="x"), recipe=Recipe()),
    }
    for field, component in build.items():
        with pytest.raises(ValueError, match=f"^{field} names a folder: "):
            component()


def test_freeze() -> None:
    @dataclass(frozen=True)
    class Component:
        names: Any
        number: int

    component = Component(names=["a", ["b", ("c",)]], number=1)
    freeze(component)
    assert component == Component(names=("a", ("b", ("c",))), number=1)
    assert isinstance(hash(component), int)
