"""Tables of a sweep, and its best trial."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from faked import answers, changed, crossed, faked

from quantlab.results.table import (
    Results,
    concise,
    drop_text,
    latex,
    markdown,
    ordered,
    short_names,
    write_tables,
)
from quantlab.sweeping.terminal_table import table_lines

SETTINGS = crossed(method_k=["1", "2", "16"])
RIGHT = answers([0.5, 0.7, 0.9])


def as_metric(results: Results, metric: str) -> Results:
    """The same with another primary metric, of which no example has a share."""
    table = results.table.rename(columns=lambda name: name.replace("accuracy", metric))
    return replace(results, primary=metric, table=table, correct=None)


def as_regression(results: Results) -> Results:
    results = as_metric(results, "pearson")
    return replace(results, table=results.table.drop(columns="agreement_fp32"))


def test_files(tmp_path: Path) -> None:
    results = faked(SETTINGS, RIGHT, failed={1}, latency_p50_ms=12.34)
    files = write_tables(results, tmp_path)
    assert files == [tmp_path / name for name in ("results.csv", "results.md", "results.tex")]
    assert {*tmp_path.iterdir()} == {*files}
    read = pd.read_csv(files[0], dtype={"method.k": str}, keep_default_na=False, na_values={"accuracy": ""})
    assert list(read) == list(results.table)
    assert read["method.k"].tolist() == ["1", "2", "16"]
    np.testing.assert_array_equal(read["accuracy"], results.table["accuracy"])
    assert read["error"][1] == "OutOfMemoryError: too large\nline 2"


def test_concise_rows() -> None:
    speed = {"speedup_vs_fp32": 2.315, "speedup_ci95_low": 2.2, "speedup_ci95_high": 2.4}
    deployed = {"accuracy_deployed": 0.5, "deployed_latency_p50_ms": 3.14}
    deployed |= {f"deployed_{name}": 3 * value for name, value in speed.items()}
    results = faked(SETTINGS, RIGHT, failed={1}, latency_p50_ms=12.34, **speed, **deployed)
    drop = "drop in points (95 % interval)"
    low, high = (100 * results.metric(f"accuracy_drop_ci95_{end}")[0] for end in ("low", "high"))
    shown = concise(results)
    assert shown.iloc[0].to_dict() == {
        "name": "1",
        "accuracy (%)": "50.00",
        drop: f"+50.00 ({low:+.2f} to {high:+.2f})",
        "same as FP32 (%)": "50.0",
        "speed-up over FP32": "2.31 (2.20 to 2.40)",
        "accuracy (%), deployed": "50.00",
        "speed-up over FP32, deployed": "6.95 (6.60 to 7.20)",
        "size (MB)": "1.0",
        "status": "done",
    }
    failed = {"name": "2", "status": "failed: OutOfMemoryError: too large"}
    assert shown.iloc[1].to_dict() == dict.fromkeys(shown, "") | failed


def test_times_stand_alone_only_where_no_speed_up_was_measured() -> None:
    results = faked(SETTINGS, RIGHT, latency_p50_ms=12.34, deployed_latency_p50_ms=3.14)
    assert {"p50 (ms)", "p50 (ms), deployed"} <= set(concise(results))
    timed = faked([{"method": "fp32"}, {"method": "peg"}], answers([1.0, 1.0]), references=[0])
    timed = changed(timed, speedup_vs_fp32=[math.nan, 2.0], latency_p50_ms=[9.0, 1.0])
    timed = changed(timed, speedup_ci95_low=[math.nan, 1.9], speedup_ci95_high=[math.nan, 2.1])
    assert concise(timed)["speed-up over FP32"].tolist() == ["1", "2.00 (1.90 to 2.10)"]


def test_concise_leaves_out_what_is_empty() -> None:
    assert "p50 (ms)" not in concise(faked(SETTINGS, RIGHT))
    assert "alarms" in concise(changed(faked(SETTINGS, RIGHT), alarms=["", "fp16_overflow", ""]))
    shown = concise(as_regression(faked(SETTINGS, RIGHT)))
    assert "same as FP32 (%)" not in shown
    assert shown["pearson (%)"].tolist() == ["50.00", "70.00", "90.00"]


def test_concise_of_nothing_but_failures() -> None:
    results = faked(SETTINGS, RIGHT, failed={0, 1, 2})
    metrics = [name for name in results.table if name.startswith(("accuracy", "agreement", "size"))]
    bare = replace(results, table=results.table.drop(columns=metrics))
    assert list(concise(bare)) == ["name", "status"]


def test_concise_gives_the_settings_that_names_do_not_tell_apart() -> None:
    results = faked(crossed(method_k=["1", "2"], bits_symmetric=["true", "false"]), answers([0.5] * 4))
    assert not {"k", "symmetric"} & {*concise(results)}
    shown = concise(changed(results, name=["K=1", "K=1", "K=2", "K=2"]))
    assert shown["symmetric"].tolist() == ["true", "false"] * 2
    assert "k" not in shown


def test_verdicts_and_the_rows_that_they_took_stand_in_the_table() -> None:
    results = faked([{"k": "1"}, {"k": "2"}, {"k": "3"}], answers([0.5, 0.9, 1.0]), references={2})
    assert "verdict" not in concise(results)
    decided = changed(results, keeps=[0.0, 1.0, math.nan], rows_answered=[64.0, 448.0, math.nan])
    assert list(concise(decided)["verdict"]) == ["loses", "keeps", ""]
    assert list(concise(decided)["rows"]) == ["64", "448", ""]
    assert "verdict  rows" in next(table_lines(decided, 100))


def test_fp32_has_no_drop() -> None:
    results = faked(
        [{"method": "fp32"}, {"method": "peg"}], answers([1.0, 1.0]), references=[0], size_bytes=4e6
    )
    for found in (results, as_regression(results)):
        drops = concise(found)["drop in points (95 % interval)"]
        assert drops[0] == "" and drops[1].startswith("+0.00")  # FP32's answers and size, but quantized


def test_markdown_escapes_and_aligns() -> None:
    text = markdown(pd.DataFrame({"name": ["a | b", "1 of 2"], "drop": ["+0.50 (-1 to +2)", ""]}))
    lines = text.splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
    assert lines[1].startswith("|:-")
    assert lines[1].endswith("-:|")
    assert "+0.50 (-1 to +2)" in text


def test_markdown_keeps_digits() -> None:
    assert "| 1.0 |" in re.sub(" +", " ", markdown(pd.DataFrame({"size": ["1.0", "10.50"]})))


def test_latex_escapes() -> None:
    text = latex(pd.DataFrame({"same (%)": ["99.0"], "alarms": ["fp16_overflow & 100 % {x}"]}))
    assert r"same (\%) & alarms \\" in text
    assert r"99.0 & fp16\_overflow \& 100 \% \{x\} \\" in text
    assert all(rule in text for rule in (r"\begin{tabular}{rl}", r"\toprule", r"\midrule", r"\bottomrule"))


def test_rows_keep_their_answers() -> None:
    results = faked(SETTINGS, RIGHT, failed={1})
    finished = results.where(~results.failed)
    assert finished.table["method.k"].tolist() == ["1", "16"]
    np.testing.assert_array_equal(finished.scores(), RIGHT[[0, 2]])
    np.testing.assert_allclose(finished.scores().mean(axis=1), finished.table["accuracy"])
    assert as_regression(finished).where(finished.table["number"] == 3).correct is None


@pytest.mark.parametrize("metric", ["matthews_correlation", "pearson"])
def test_a_metric_that_is_no_mean_over_examples(metric: str) -> None:
    results = as_metric(faked(SETTINGS, RIGHT), metric)
    for correct in (None, RIGHT.astype(float)):
        assert replace(results, correct=correct).scores().tolist() == [[0.5], [0.7], [0.9]]


def test_interval_of_the_metric_is_that_of_the_drop() -> None:
    results = faked(SETTINGS, RIGHT)
    scores, table = results.shown(), results.table
    np.testing.assert_allclose(scores["low"], 100 - 100 * table["accuracy_drop_ci95_high"])
    np.testing.assert_allclose(scores["high"], 100 - 100 * table["accuracy_drop_ci95_low"])
    assert ((scores["low"] < scores["value"]) & (scores["value"] < scores["high"])).all()


def test_block() -> None:
    results = changed(faked(SETTINGS, RIGHT), block=["grid", "", "grid"])
    assert results.block("grid").table["number"].tolist() == [1, 3]
    with pytest.raises(ValueError, match="did you mean 'grid'"):
        results.block("gird")


def test_require_finished() -> None:
    faked(SETTINGS, RIGHT).require_finished()
    with pytest.raises(ValueError, match="2 failed: 2, 16"):
        faked(SETTINGS, RIGHT, failed={1, 2}).require_finished()


def test_short_names() -> None:
    assert short_names(["method.k", "bits.symmetric"]) == {"method.k": "k", "bits.symmetric": "symmetric"}
    assert short_names(["a.k", "b.k", "task"]) == {"a.k": "a.k", "b.k": "b.k", "task": "task"}


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        (["16", "2", "1", "2"], ["1", "2", "16"]),
        (["99.9", "100", "1e1"], ["1e1", "99.9", "100"]),
        (["mse", "minmax", "mse"], ["mse", "minmax"]),
        (["16", "fp16", "8"], ["16", "fp16", "8"]),
        (["8", "", "1"], ["8", "", "1"]),
        (["2", "inf", "1"], ["2", "inf", "1"]),
    ],
)
def test_ordered(values: list[str], levels: list[str]) -> None:
    assert ordered(values) == levels


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0.518, -0.1, 1.14), "+0.52 (-0.10 to +1.14)"),
        ((-0.001, -0.001, 0), "+0.00 (+0.00 to +0.00)"),
        ((3, math.nan, math.nan), "+3.00"),
        ((math.nan, math.nan, math.nan), ""),
    ],
)
def test_points(numbers: tuple[float, float, float], text: str) -> None:
    assert drop_text(*numbers) == text
