"""Plots of a sweep: what they draw, the tables behind them, and what they refuse."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from faked import answers, changed, crossed, faked
from hydra.utils import instantiate
from matplotlib.figure import Figure

from quantlab.results import plots
from quantlab.results.table import Results
from quantlab.sweeping import views
from quantlab.sweeping.quoting import in_hydra
from quantlab.sweeping.views import Curve, Dots, Effects, View

GRID = crossed(
    placement=["all", "gemm"], calibration=["minmax", "percentile", "mse"], calibration_samples=["1", "64"]
)
FACTORS = ("placement", "calibration", "calibration.samples")
START = {"bits.symmetric": True, "bits.estimator": "minmax", "calibration.samples": 8}  # as in YAML
END = {"bits.symmetric": False, "bits.estimator": "mse", "calibration.samples": 1}
ENDS = [
    dict(zip(START, values, strict=True))
    for values in product(*zip(START.values(), END.values(), strict=True))
]
CUBE = [{name: in_hydra(value) for name, value in row.items()} for row in ENDS]
GAINS = {"symmetric=false": 0.3, "estimator=mse": 0.0, "samples=1": 0.1}


def factorial(failed: Sequence[int] = ()) -> Results:
    """``gemm`` brings 0.2, ``percentile`` 0.1, ``mse`` 0.15, and ``mse`` on one sample takes 0.1."""
    gain = {"gemm": 0.2, "percentile": 0.1, "mse": 0.15}
    accuracies = [
        0.5 + sum(gain.get(value, 0) for value in row.values()) - 0.1 * ({"mse", "1"} <= {*row.values()})
        for row in GRID
    ]
    return faked(GRID, answers(accuracies), failed, block="grid")


def cube(failed: Sequence[int] = ()) -> Results:
    """From 50 % to 90 %: every change gains what GAINS says, whatever else is set."""
    made = [[row[name] == END[name] for name in END] for row in ENDS]
    accuracies = 0.5 + np.array(made) @ np.array(list(GAINS.values()))
    return faked(CUBE, answers(accuracies.tolist(), noise=0.02), failed, block="cube")


def without_intervals(results: Results) -> Results:
    table = results.table.rename(columns=lambda name: name.replace("accuracy", "pearson"))
    return replace(results, primary="pearson", table=table, correct=None)


def perplexities(rows: list[dict[str, str]], factors: Sequence[float]) -> Results:
    """A row's perplexity is 100 times its factor, over 400 windows that differ alike in all rows."""
    windows = np.random.default_rng(0).normal(0, 0.5, 400)
    noise = np.random.default_rng(1).normal(0, 0.01, (len(rows), 400))
    logs = np.log(100 * np.array(factors))[:, None] + (windows - windows.mean()) + noise
    logs += (np.log(100 * np.array(factors)) - logs.mean(axis=1))[:, None]
    results = faked(rows, answers([0.5] * len(rows)), block="cube")
    table = results.table.loc[:, ~results.table.columns.str.startswith("accuracy")]
    return replace(
        results, primary="perplexity", table=table.assign(perplexity=np.exp(logs.mean(axis=1))), correct=-logs
    )


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that a view saves, by file."""
    found: dict[str, Figure] = {}
    save = plots.save_figure

    def keeping(figure: Figure, title: str, file: Path) -> Path:
        found[file.name] = figure
        return save(figure, title, file)

    monkeypatch.setattr(plots, "save_figure", keeping)
    return found


@pytest.mark.parametrize("change", [lambda results: results, without_intervals], ids=["intervals", "none"])
@pytest.mark.parametrize(
    ("view", "results", "names"),
    [
        (Curve(x="calibration.samples"), factorial(), {"curve_calibration.samples.png"}),
        (Dots(), factorial(failed=[3]), {"dots.png"}),
        (
            Effects(block="grid", factors=FACTORS),
            factorial(),
            {
                "main_effects.csv",
                "main_effects.md",
                "main_effects.png",
                "interactions.csv",
                "interactions.png",
            },
        ),
        (
            Effects(block="grid", factors=FACTORS[:1]),
            factorial(),
            {"main_effects.csv", "main_effects.md", "main_effects.png", "interactions.csv"},
        ),
        (views.Path(block="cube", start=START, end=END), cube(), {"path.csv", "path.md", "path.png"}),
    ],
    ids=["curve", "dots", "effects", "one factor", "path"],
)
def test_files(view: View, results: Results, names: set[str], change: Any, tmp_path: Path) -> None:
    files = view.draw(change(results), tmp_path)
    assert {file.name for file in files} == names == {file.name for file in tmp_path.iterdir()}
    for file in files:
        if file.suffix == ".png":
            image = matplotlib.image.imread(file)
            assert min(image.shape[:2]) > 300
            assert image[..., :3].std() > 0.05
        else:
            assert "nan" not in file.read_text().lower()


def test_curve(figures: dict[str, Figure], tmp_path: Path) -> None:
    rows = [{"method": "fp32"}, *crossed(method_k=["16", "2", "1"], bits_symmetric=["true", "false"])]
    results = faked(rows, answers([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), failed={5})
    Curve(x="method.k").draw(results, tmp_path)
    axes = figures["curve_method.k.png"].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("method.k", "accuracy (%)")
    lines = {line.get_label(): line for line in axes.lines}
    assert lines.keys() == {"symmetric=true", "symmetric=false", "FP32"}
    np.testing.assert_allclose(lines["symmetric=false"].get_ydata(), [40, 60, 80])
    np.testing.assert_allclose(lines["symmetric=true"].get_ydata(), [np.nan, 70, 90])
    np.testing.assert_allclose(lines["symmetric=true"].get_xdata(), [1, 2, 16], atol=0.2)
    assert lines["FP32"].get_ydata() == [100, 100]
    assert lines["symmetric=true"].get_xdata()[1] != lines["symmetric=false"].get_xdata()[1]
    assert [text.get_text() for text in axes.texts] == ["failed"]
    low, high = results.shown().loc[[6], ["low", "high"]].to_numpy()[0]
    segments = axes.collections[1].get_segments()
    np.testing.assert_allclose(segments[0][:, 1], [low, high])


def test_curve_without_other_settings_is_one_line(figures: dict[str, Figure], tmp_path: Path) -> None:
    Curve(x="method.k").draw(faked(crossed(method_k=["1", "2"]), answers([0.5, 0.7])), tmp_path)
    assert [line.get_label() for line in figures["curve_method.k.png"].axes[0].lines] == ["accuracy", "FP32"]


def test_many_lines_look_different() -> None:
    assert len({style[:2] for style in plots.STYLES}) == len(plots.STYLES) >= 56


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["16", "2", "1"], {"1": 1, "2": 2, "16": 16}),
        (["0", "0.5", "1"], {"0": 0, "0.5": 0.5, "1": 1}),
        (["1", "8", "64", "512"], {"1": 0, "8": 1, "64": 2, "512": 3}),
        (["1", "60"], {"1": 0, "60": 1}),
        (["99.0", "99.9", "99.999"], {"99.0": 0, "99.9": 1, "99.999": 3}),
        (["99.9", "99.99", "100"], {"99.9": 1, "99.99": 2, "100": 3}),
        (["64", "100"], {"64": 64, "100": 100}),
        (["mse", "minmax", "mse"], {"mse": 0, "minmax": 1}),
        (["16", "fp16"], {"16": 0, "fp16": 1}),
        (["8"], {"8": 8}),
    ],
)
def test_positions(values: list[str], expected: dict[str, float]) -> None:
    found = plots.axis_positions(values)
    assert found == expected
    assert list(found) == list(expected)


def test_dots(figures: dict[str, Figure], tmp_path: Path) -> None:
    results = factorial(failed=[1, 4])
    Dots().draw(results, tmp_path)
    axes = figures["dots.png"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == results.table["name"].tolist()
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), 100 * results.table["accuracy"])
    assert axes.yaxis_inverted()
    failed = [text for text in axes.texts if text.get_text() == "failed"]
    assert [text.get_position()[1] for text in failed] == [1, 4]


@pytest.mark.parametrize("references", [[0.9, 0.9, 0.9], [0.9, 0.8, 0.9]])
def test_dots_of_several_checkpoints_have_a_reference_each(
    references: list[float], figures: dict[str, Figure], tmp_path: Path
) -> None:
    rows = faked([{"seed": str(i)} for i in range(3)], answers([0.5] * 3))
    Dots().draw(changed(rows, accuracy_fp32=references), tmp_path)
    axes = figures["dots.png"].axes[0]
    alike = len(set(references)) == 1
    assert [text.get_text() for text in axes.texts] == (["FP32"] if alike else [])
    expected = [90, 90] if alike else [90, 80, 90]
    np.testing.assert_allclose(axes.lines[-1].get_xdata(), expected)


@pytest.mark.parametrize(("rows", "height", "font"), [(1, 1.39, 8), (80, 16.4, 8), (300, 18, 3.6)])
def test_dots_stay_apart(
    rows: int, height: float, font: float, figures: dict[str, Figure], tmp_path: Path
) -> None:
    Dots().draw(faked([{"seed": str(i)} for i in range(rows)], answers([0.5] * rows, examples=20)), tmp_path)
    figure = figures["dots.png"]
    assert figure.get_figheight() == pytest.approx(height)
    assert figure.axes[0].get_yticklabels()[0].get_fontsize() == pytest.approx(font)


def test_main_effects(tmp_path: Path) -> None:
    Effects(block="grid", factors=FACTORS).draw(factorial(), tmp_path)
    table = pd.read_csv(tmp_path / "main_effects.csv", dtype={"level": str}).set_index(["factor", "level"])
    effects = table["effect_points"]
    assert effects["placement"].to_dict() == pytest.approx({"all": -10, "gemm": 10})
    assert effects["calibration"].to_dict() == pytest.approx(
        {"minmax": -20 / 3, "percentile": 10 / 3, "mse": 10 / 3}
    )
    assert effects["calibration.samples"].to_dict() == pytest.approx({"1": -5 / 3, "64": 5 / 3})
    np.testing.assert_allclose(table["mean_percent"] - effects, 500 / 12 + 25)
    assert table["range_points"]["placement"].tolist() == pytest.approx([20, 20])
    assert (table["effect_points_ci95_low"] < effects).all()
    assert (table["effect_points_ci95_high"] > effects).all()


def test_interactions(tmp_path: Path) -> None:
    Effects(block="grid", factors=FACTORS).draw(factorial(), tmp_path)
    table = pd.read_csv(tmp_path / "interactions.csv", dtype=str)
    first = table.iloc[0]
    assert (first["factor_a"], first["factor_b"]) == ("calibration", "calibration.samples")
    assert (first["level_a"], first["level_b"]) in {("mse", "1"), ("mse", "64")}
    assert abs(float(first["effect_points"])) == pytest.approx(10 / 3)
    main = pd.read_csv(tmp_path / "main_effects.csv").groupby("factor")["variance_share"].first()
    assert main.sum() + table["variance_share"].astype(float).sum() == pytest.approx(
        1
    )  # nothing of a higher order
    report = (tmp_path / "main_effects.md").read_text()
    assert "| calibration × samples " in report
    assert (
        report.index("| placement ")
        < report.index("| calibration × samples ")
        < report.index("| higher orders ")
    )


def test_effects_of_part_of_the_factors(tmp_path: Path) -> None:
    """Other overrides may vary, as long as they do so equally for each combination of the factors' levels."""
    Effects(block="grid", factors=FACTORS[:2]).draw(factorial(), tmp_path)
    table = pd.read_csv(tmp_path / "main_effects.csv").set_index("level")
    assert table["effect_points"]["gemm"] == pytest.approx(10)


def test_effects_where_nothing_varies(figures: dict[str, Figure], tmp_path: Path) -> None:
    """All trials collapsed alike: there is no variance to share."""
    Effects(block="grid", factors=FACTORS).draw(
        faked(GRID, answers([0.5] * 12, noise=0), block="grid"), tmp_path
    )
    assert "nothing varies" in figures["main_effects.png"].axes[0].get_title()
    assert "nan" not in (tmp_path / "main_effects.md").read_text()
    assert pd.read_csv(tmp_path / "main_effects.csv")["variance_share"].isna().all()


def test_curve_and_dots_of_nothing_but_failures(figures: dict[str, Figure], tmp_path: Path) -> None:
    results = factorial(failed=range(12))
    for view in (Curve(x="calibration.samples"), Dots()):
        view.draw(results, tmp_path)
    for figure in figures.values():
        assert [text.get_text() for text in figure.axes[0].texts] == ["failed"] * 12


@pytest.mark.parametrize(
    ("results", "view", "message"),
    [
        (factorial([5]), {}, "1 failed: all mse 64"),
        (factorial().where(factorial().table["number"] != 3), {}, r"11 trials of placement \(2 levels\)"),
        (factorial().where(factorial().table["placement"] == "all"), {}, r"placement \(1 levels\)"),
        (factorial(), {"factors": ["placment"]}, "did you mean 'placement'"),
        (factorial(), {"block": "gird"}, "did you mean 'grid'"),
    ],
    ids=["failed", "missing", "one level", "factor", "block"],
)
def test_effects_refuses(results: Results, view: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Effects(**{"block": "grid", "factors": FACTORS, **view}).draw(results, tmp_path)
    assert not list(tmp_path.iterdir())


def test_path(tmp_path: Path) -> None:
    views.Path(block="cube", start=START, end=END, max_drop=2).draw(cube(), tmp_path)
    table = pd.read_csv(tmp_path / "path.csv").set_index("path")
    changes = ["symmetric=false", "samples=1", "estimator=mse"]
    for name, expected in {"shortest": changes[:2], "full": changes, "order-free": changes}.items():
        rows = table.loc[name]
        assert rows["change"].tolist() == expected
        assert rows["step"].tolist() == list(range(1, len(expected) + 1))
        np.testing.assert_allclose(
            rows["gain_points"], [100 * GAINS[change] for change in expected], atol=1e-9
        )
        assert (rows["gain_points_ci95_low"] <= rows["gain_points"]).all()
        assert (rows["gain_points_ci95_high"] >= rows["gain_points"]).all()
    assert table.loc["full", "reached_percent"].tolist() == pytest.approx([80, 90, 90])
    report = (tmp_path / "path.md").read_text()
    assert "All 3 changes lead from 50.00 % to 90.00 %: +40.00 (" in report
    assert (
        "The shortest path to at most 2 points less than all changes makes 2 and reaches 90.00 %; the rest"
        in report
    )
    views.Path(block="cube", start=START, end=END, max_drop=1e-9).draw(cube(), tmp_path)
    assert (
        "400 examples do not show of fewer changes that they reach it." in (tmp_path / "path.md").read_text()
    )
    with pytest.raises(ValueError, match="max_drop must be above 0, got 0"):
        views.Path(block="cube", start=START, end=END, max_drop=0)


def test_path_pins_what_start_and_end_share(tmp_path: Path) -> None:
    """Of a larger block, the trials that agree with both ends."""
    pinned = {"bits.symmetric": False}
    views.Path(block="cube", start=START | pinned, end=END).draw(cube(failed=[0]), tmp_path)
    table = pd.read_csv(tmp_path / "path.csv").set_index("path")
    assert table.loc["full", "change"].tolist() == ["samples=1", "estimator=mse"]
    assert table.loc["full", "reached_percent"].tolist() == pytest.approx([90, 90])


def test_paths_of_a_perplexity_are_in_percent_of_it(figures: dict[str, Figure], tmp_path: Path) -> None:
    """One change halves it, one takes a fifth, one does nothing; the smallest perplexity is the best."""
    shrinks = {"bits.symmetric": 0.5, "bits.estimator": 1.0, "calibration.samples": 0.8}
    factors = [
        np.prod([shrinks[name] if row[name] == END[name] else 1.0 for name in END]).item() for row in ENDS
    ]
    results = perplexities(CUBE, factors)
    views.Path(block="cube", start=START, end=END, max_drop=2).draw(results, tmp_path)
    table = pd.read_csv(tmp_path / "path.csv").set_index("path")
    assert table.loc["full", "change"].tolist() == ["symmetric=false", "samples=1", "estimator=mse"]
    np.testing.assert_allclose(table.loc["full", "reached"], [50, 40, 40])
    np.testing.assert_allclose(table.loc["full", "change_percent"], [-50, -20, 0], atol=1e-9)
    steps = table.loc["full"]
    assert (steps["change_percent_ci95_low"] < steps["change_percent"]).all()
    assert (steps["change_percent"] < steps["change_percent_ci95_high"]).all()
    report = (tmp_path / "path.md").read_text()
    assert "All 3 changes lead from 100.00 to 40.00: -60.00 (-60." in report and "points" not in report
    assert "to at most 2 % more perplexity than all changes makes 2 and reaches 40.00; the rest" in report
    left, right = figures["path.png"].axes
    assert (left.get_xlabel(), right.get_xlabel()) == ("perplexity", "% of perplexity")
    widths = [bar.get_width() for bar in left.containers[0]]
    np.testing.assert_allclose(widths, [-50, -10, 0], atol=1e-9)


def test_effects_on_a_perplexity_are_in_percent_of_it(tmp_path: Path) -> None:
    shrink = {"gemm": 0.25, "percentile": 0.5, "mse": 0.5}
    factors = [np.prod([shrink.get(value, 1.0) for value in row.values()]).item() for row in GRID]
    Effects(block="cube", factors=FACTORS).draw(perplexities(GRID, factors), tmp_path)
    table = pd.read_csv(tmp_path / "main_effects.csv").set_index("level")
    assert table["mean"]["all"] == pytest.approx(4 * table["mean"]["gemm"])
    assert table["effect_percent"][["all", "gemm"]].tolist() == pytest.approx([100, -50])
    assert table["range_percent"]["gemm"] == pytest.approx(300)
    report = (tmp_path / "main_effects.md").read_text()
    assert "effect in % of perplexity" in report and "points" not in report and "geometric mean" in report


@pytest.mark.parametrize(
    ("results", "ends", "message"),
    [
        (cube([3]), {}, "1 failed: true mse 1"),
        (
            cube().where(cube().table["number"] != 2),
            {},
            "each of the 8 mixtures .* has 7 of them in 7 trials",
        ),
        (
            cube(),
            {"start": {"bits.symetric": "true"}, "end": {"bits.symetric": "false"}},
            "mean 'bits.symmetric'",
        ),
        (cube(), {"end": END | {"bits.estimator": "msee"}}, "bits.estimator must be .* mean 'mse'"),
        (cube(), {"block": "cub"}, "did you mean 'cube'"),
    ],
    ids=["failed", "missing", "override", "value", "block"],
)
def test_path_refuses(results: Results, ends: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        views.Path(**{"block": "cube", "start": START, "end": END, **ends}).draw(results, tmp_path)
    assert not list(tmp_path.iterdir())


def test_long_settings_with_signs_of_mathematics_are_drawn(
    figures: dict[str, Figure], tmp_path: Path
) -> None:
    keep = ["$a$" + 40 * '"*.ffn.sum",', r"$\frac$", '["x"]']
    results = faked(crossed(method_keep=keep, bits=["8", "4"]), answers([0.5, 0.6, 0.7, 0.8, 0.9, 0.5]))
    for view in (Dots(), Curve(x="method.keep"), Curve(x="bits")):
        for file in view.draw(replace(results, title="$?"), tmp_path):
            assert matplotlib.image.imread(file).shape[1] < 2000
    labels = [label.get_text() for label in figures["dots.png"].axes[0].get_yticklabels()]
    assert labels[0].startswith(r"\$a\$") and "…" in labels[0] and labels[4] == '["x"] 8'


def test_curve_refuses_an_unknown_override(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x must be one of placement, .*did you mean 'calibration.samples'"):
        Curve(x="calibration.sample").draw(factorial(), tmp_path)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "Effects", "block": "", "factors": []}, "factors must be a list of distinct overrides"),
        (
            {"_target_": "Effects", "block": "", "factors": ["a", "a"]},
            "factors must be a list of distinct overrides",
        ),
        (
            {"_target_": "Effects", "block": "", "factors": "placement"},
            "factors must be a list .* got 'placement'",
        ),
        ({"_target_": "Path", "block": "", "start": {"a": 1}, "end": {"a": 1}}, "not all alike"),
        ({"_target_": "Path", "block": "", "start": {"a": 1}, "end": {"b": 2}}, "the same overrides"),
        (
            {"_target_": "Path", "block": "", "start": 3, "end": {"b": 2}},
            "start must map overrides to values, got 3",
        ),
    ],
)
def test_bad_fields(node: dict[str, Any], message: str) -> None:
    fields = {name: value for name, value in node.items() if name != "_target_"}
    with pytest.raises(ValueError, match=message):
        getattr(views, node["_target_"])(**fields)


@pytest.mark.parametrize(
    ("node", "view"),
    [
        ({"_target_": "Curve", "x": "method.k"}, Curve(x="method.k")),
        ({"_target_": "Dots"}, Dots()),
        ({"_target_": "Effects", "block": "b", "factors": ["x"]}, Effects(block="b", factors=("x",))),
        (
            {
                "_target_": "Path",
                "block": "b",
                "start": {"s": True, "k": 8},
                "end": {"s": None, "k": ["*", 0.5]},
            },
            views.Path(block="b", start=(("s", True), ("k", 8)), end=(("s", None), ("k", ("*", 0.5)))),
        ),
    ],
)
def test_yaml_builds_a_view_that_can_be_hashed(node: dict[str, Any], view: View) -> None:
    built = instantiate(
        node | {"_target_": f"quantlab.sweeping.views.{node['_target_']}", "_convert_": "all"}
    )
    assert built == view
    assert hash(built) == hash(view)
