"""A trial in one line."""

from quantlab.summary import answer


def test_an_answer_in_one_line() -> None:
    metrics = {"accuracy": 0.5, "accuracy_fp32": 0.75, "accuracy_drop": 0.25, "accuracy_drop_ci95_low": -0.1,
               "accuracy_drop_ci95_high": 0.6}  # fmt: skip
    said = "accuracy 0.5000, FP32 0.7500, drop 0.2500 (95 % interval -0.1000 to 0.6000)"
    assert answer(metrics) == said


def test_a_correlation_that_does_not_exist_can_be_said() -> None:
    metrics = {"pearson": None, "pearson_fp32": 0.9, "pearson_drop": None, "pearson_drop_ci95_low": None,
               "pearson_drop_ci95_high": None}  # fmt: skip
    assert answer(metrics) == "pearson none, FP32 0.9000, drop none (95 % interval none to none)"
