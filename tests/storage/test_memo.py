"""What a process remembers: by key, a few of each kind."""

import pytest

from quantlab.storage.memo import KEPT, Memo


def test_computed_once_for_a_key() -> None:
    memo, calls = Memo(), []
    for key in ("a", "b", "a"):
        assert memo.get("kind", key, lambda key=key: calls.append(key) or key.upper()) == key.upper()  # type: ignore[misc]
    assert calls == ["a", "b"]


def test_kinds_are_apart() -> None:
    memo = Memo()
    assert [memo.get(kind, 1, lambda kind=kind: kind) for kind in ("one", "two", "one")] == [
        "one",
        "two",
        "one",
    ]  # type: ignore[misc]


def test_the_least_recently_used_is_forgotten() -> None:
    memo, made = Memo(), []

    def get(key: int) -> None:
        memo.get("kind", key, lambda: made.append(key))

    for key in (*range(KEPT), 0, KEPT, 0, 1):  # 0 was used again, so KEPT pushes 1 out
        get(key)
    assert made == [*range(KEPT), KEPT, 1]


def test_a_failure_is_not_remembered() -> None:
    memo = Memo()
    with pytest.raises(ZeroDivisionError):
        memo.get("kind", "key", lambda: 1 / 0)
    assert memo.get("kind", "key", lambda: 3) == 3
