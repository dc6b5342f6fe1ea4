"""What MLflow is told fits what MLflow takes, whatever users named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import properties

from quantlab.tracking import mlflow_limits
from quantlab.tracking.download import run_folder_name

odd = st.text(st.sampled_from("ab_/.+~@[]%'\"é资 \n\0"), max_size=12) | st.text(max_size=300)


@properties
@given(st.lists(odd, unique=True, max_size=8))
def test_names_are_ones_that_mlflow_takes_and_stay_apart(names: list[str]) -> None:
    from mlflow.utils.validation import _validate_param_name

    fit = mlflow_limits.valid_names({name: index for index, name in enumerate(names)})
    assert list(fit.values()) == list(range(len(names)))
    for name in fit:
        _validate_param_name(name)
        assert len(name) <= 250


@pytest.mark.parametrize(
    ("name", "fit"),
    [
        ("bits.weights", "bits.weights"),
        ("++bits.weights", "bits.weights"),
        ("+sweeps", "sweeps"),
        ("recipe@model.recipe", "recipe_model.recipe"),
        ("a/b", "a/b"),
        ("/a//../b", "_/a/_/_../b"),
    ],
)
def test_names_say_what_they_said(name: str, fit: str) -> None:
    assert list(mlflow_limits.valid_names({name: 0})) == [fit]


def test_names_that_become_equal_are_told_apart() -> None:
    first, second, third = mlflow_limits.valid_names({"a@b": 0, "a%b": 0, "ab": 0})
    assert first.startswith("a_b-") and second.startswith("a_b-") and first != second and third == "ab"


@properties
@given(st.text(max_size=400))
def test_texts_can_be_stored(text: str) -> None:
    cut = mlflow_limits.valid_run_name(text)
    assert len(cut) <= 250 and "\0" not in cut
    assert cut == text or len(text) > 250 or "\0" in text
    folder = run_folder_name(text)
    assert (
        0 < len(folder) <= 100
        and len(folder.encode()) <= 200
        and "/" not in folder
        and folder not in (".", "..")
    )


def test_a_surrogate_is_no_text_for_a_database() -> None:
    assert mlflow_limits.cut("caf\udce9") == "caf?"


@pytest.mark.parametrize(
    ("metrics", "params", "requests"), [(0, 0, 1), (800, 100, 1), (801, 0, 2), (1, 250, 3)]
)
def test_no_request_has_more_than_mlflow_takes(metrics: int, params: int, requests: int) -> None:
    sent = list(mlflow_limits.batches(metrics=range(metrics), params=range(params), tags=range(3)))
    assert len(sent) == requests and all(sum(map(len, batch.values())) <= 1000 for batch in sent)
    assert all(len(batch["params"]) <= 100 for batch in sent)
    assert [value for batch in sent for value in batch["metrics"]] == list(range(metrics))
    assert [value for batch in sent for value in batch["params"]] == list(range(params))
