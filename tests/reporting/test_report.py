"""The report's sentences, table, refusals and files."""

import json
import re
from html import unescape
from pathlib import Path

import html5lib
import numpy as np
import pandas as pd
import pytest
import yaml
from made import EVIL, FP32, LABELS, REFERENCE, ROWS, logits, losing, sweep, trial
from scipy import stats

from quantlab.report import main
from quantlab.reporting.comparing import compared_trials, pair_matrix, repeats
from quantlab.reporting.content import page_content
from quantlab.reporting.outlier_analysis import analysis_of
from quantlab.reporting.page import render
from quantlab.reporting.pareto import front, pareto
from quantlab.reporting.plain_content import side_by_side_content
from quantlab.reporting.recommendation import recommend
from quantlab.reporting.search_content import search_content
from quantlab.reporting.sources import from_folders, studies_from_folders
from quantlab.reporting.writing import write_report, write_sweep
from quantlab.results.reading import MixedTrialsError
from quantlab.tasks.sampling import held_out
from quantlab.tasks.scores import SCORES

MB_8 = 8 * 2**20


def told(folder: Path, limit: float = 0.5) -> tuple[str, str]:
    study = from_folders([folder])
    found = recommend(study, compared_trials(study), limit)
    return found.deploy, found.worst


def test_the_smallest_within_the_limit_is_recommended_and_the_worst_is_named(tmp_path: Path) -> None:
    deploy, worst = told(sweep(tmp_path, ROWS))
    assert deploy.startswith("Deploy good k=4: it loses 0.25 points of accuracy (95 % interval −0.")
    assert "4.0 times less than FP32; its speed was not measured" in deploy
    assert (
        worst.startswith("bad k=2 failed worst: it loses 40.00 points")
        and "alarm constant_prediction says" in worst
    )


HALF = {"holdout": 0.5, "seed": "${oc.decode:'3'}"}
HELD_OUT = held_out(LABELS, 0.5, seed=3)


def wrong_on(rows: np.ndarray, count: int) -> np.ndarray:
    """FP32's answers but for so many that become wrong, all of them among these rows."""
    answers = FP32.copy()
    lost = np.flatnonzero(rows & (FP32 == LABELS))[:count]
    answers[lost] = 1 - answers[lost]
    return logits(answers)


def test_what_is_recommended_is_measured_on_rows_that_did_not_choose_it(tmp_path: Path) -> None:
    folder = sweep(
        tmp_path,
        [
            REFERENCE,
            {"name": "lucky", "given": wrong_on(HELD_OUT, 1)},
            {"name": "fair", "given": wrong_on(~HELD_OUT, 1)},
            {"name": "bad", "given": wrong_on(np.ones(400, bool), 100)},
        ],
        evaluation=HALF,
    )
    deploy, worst = told(folder, limit=0.6)
    assert (
        deploy.startswith("Deploy lucky: it loses 0.50 points") and "within the limit of 0.6 points" in deploy
    )
    assert "measured on 200 rows, chosen on 200 others" in deploy and "measured on 200 rows" in worst
    study = from_folders([folder])
    lost = HELD_OUT & (wrong_on(np.ones(400, bool), 100).argmax(axis=1) != FP32)
    assert (
        f"bad failed worst: it loses {lost.sum() / 2:.2f} points"
        in recommend(study, compared_trials(study), 0.6).worst
    )


def test_rows_that_did_not_choose_a_trial_may_not_bear_it_out(tmp_path: Path) -> None:
    folder = sweep(
        tmp_path,
        [
            REFERENCE,
            {"name": "lucky", "given": wrong_on(HELD_OUT, 20)},
            {"name": "bad", "given": wrong_on(~HELD_OUT, 30)},
        ],
        evaluation=HALF,
    )
    deploy, _ = told(folder)
    assert deploy.startswith(
        "Deploy none of these yet: lucky, within the limit of 0.5 points on the rows that chose it"
    )
    assert "loses 10.00 points" in deploy
    study = from_folders([folder])
    assert not recommend(study, compared_trials(study), 0.5).within


def test_without_a_split_it_says_that_the_rows_flatter(tmp_path: Path) -> None:
    assert "measured on the 400 rows that chose it, which flatters it" in told(sweep(tmp_path, ROWS))[0]
    alone = from_folders([trial(tmp_path / "one", wrong=1)])
    assert (
        "measured on 400 rows;" in recommend(alone, compared_trials(alone), 0.5).deploy
    )  # there is nothing to choose from


def test_no_interval_contradicts_the_verdict_beside_it(tmp_path: Path) -> None:
    folder = sweep(tmp_path, [{"name": str(wrong), "wrong": wrong} for wrong in range(5, 16)])
    for row in compared_trials(from_folders([folder])):
        assert row.comparison is not None
        assert (row.verdict == "worse") == (row.comparison.high < 0)


@pytest.mark.parametrize(
    "limit, bound", [(0.3, "though not with its whole interval"), (5.0, "5 points with its whole interval.")]
)
def test_it_says_whether_the_interval_is_within_the_limit(tmp_path: Path, limit: float, bound: str) -> None:
    assert bound in told(sweep(tmp_path, ROWS), limit)[0]


def test_where_none_is_within_the_limit_the_closest_is_named(tmp_path: Path) -> None:
    deploy, _ = told(sweep(tmp_path, ROWS), 0.1)
    assert deploy.startswith("Deploy none of these") and "the closest, good k=4, loses 0.25 points" in deploy


def test_a_simulated_latency_never_recommends(tmp_path: Path) -> None:
    fast = {"latency_p50_ms": 1.0, "speedup_vs_fp32": 9.0, "speedup_ci95_low": 8.0, "speedup_ci95_high": 10.0}
    slow = {**fast, "speedup_vs_fp32": 2.0}
    folder = sweep(
        tmp_path,
        [
            REFERENCE,
            {"name": "simulated", "wrong": 1, "tags": {"engine": "simulated"}, **fast},
            {"name": "measured", "wrong": 1, **slow},
        ],
    )
    deploy, _ = told(folder)
    assert deploy.startswith("Deploy measured") and "2.00 times FP32's speed" in deploy


def test_smaller_wins_over_better(tmp_path: Path) -> None:
    folder = sweep(
        tmp_path, [{"name": "large", "wrong": 0}, {"name": "small", "wrong": 1, "size_bytes": 5e5}]
    )
    assert told(folder)[0].startswith("Deploy small")


def test_sizes_that_differ_by_ranges_only_are_one_size(tmp_path: Path) -> None:
    folder = sweep(
        tmp_path, [{"name": "better", "wrong": 0}, {"name": "bytes", "wrong": 1, "size_bytes": 0.999e6}]
    )
    assert told(folder)[0].startswith("Deploy better")


def test_one_class_is_never_recommended(tmp_path: Path) -> None:
    folder = sweep(tmp_path, [{"name": "one class", "wrong": 0, "alarms": ["majority_accuracy"]}])
    assert told(folder)[0].startswith("Deploy none of these: no quantized trial answers better")


def test_rows_agree_with_scipy_and_bonferroni(tmp_path: Path) -> None:
    found = compared_trials(from_folders([sweep(tmp_path, ROWS)]))
    shy = [
        stats.binomtest(0, wrong, 0.5).pvalue for wrong in (1, 40, 160)
    ]  # exact McNemar: only losses differ
    wald = [2 * stats.norm.sf(wrong / np.sqrt(wrong + 1 - wrong**2 / 402)) for wrong in (1, 40, 160)]
    assert np.isnan(found[0].p) and found[0].verdict == "the reference"
    assert [row.p for row in found[1:]] == pytest.approx(np.minimum(3 * np.maximum(shy, wald), 1), rel=1e-6)
    assert [row.verdict.split(" with")[0] for row in found[1:]] == ["not distinguishable", "worse", "worse"]


def test_the_levels_that_outliers_leave_are_a_finding(tmp_path: Path) -> None:
    study = from_folders([sweep(tmp_path, ROWS)])
    (section,) = (part for part in page_content(study, None, 0.5).values["sections"] if part.id == "errors")
    (table,) = section.tables
    assert [row[:4] for row in table.rows] == [
        ["0.ffn.out", "activation", "5 of 255", "98.7"],
        ["0.attn.out", "activation", "200 of 255", "0.0"],
    ]
    assert "Of bad k=2, the trial that lost most" in table.caption


def test_pairs_are_compared_once_each_and_signed(tmp_path: Path) -> None:
    study = from_folders([sweep(tmp_path, ROWS)])
    pairs = pair_matrix(study, compared_trials(study))
    assert pairs is not None and len(pairs.comparisons) == 6
    assert pairs.comparisons[1, 2].difference == pytest.approx(39 / 400)  # good less poor


def test_trials_that_stopped_keep_their_own_interval_and_meet_no_other(tmp_path: Path) -> None:
    """No test for one look, no pairs and no held-out rows where trials answered different rows."""
    evaluation = {"until": "decided", "max_drop": 1.0, "holdout": 0.5}
    rows = [REFERENCE]
    for name, wrong, keeps, answered in (("good", 1, 1, 200), ("bad", 160, 0, 64)):
        numbers = {"rows_answered": answered, "rows_selected": 400, "keeps": keeps}
        rows.append({"name": name, "wrong": wrong, "config": {"evaluation": evaluation}, **numbers})
    folder = sweep(tmp_path, rows, evaluation=evaluation)
    for number, answered in ((2, 200), (3, 64)):
        file = tmp_path / "trials" / f"{number:064x}" / "answers.parquet"
        table = pd.read_parquet(file)[:answered]
        table.insert(0, "row", np.arange(answered))
        table.to_parquet(file, index=False)

    study = from_folders([folder])
    reference, good, bad = compared_trials(study)
    assert study.examples == "400, answered until a trial's loss is decided"
    assert reference.verdict == "the reference"
    assert good.verdict == "keeps within 1 points with 200 of 400 rows"
    assert bad.verdict == "loses over 1 points with 64 of 400 rows"
    assert good.comparison is not None
    assert good.comparison.low == -good.trial.number_of("accuracy_drop_ci95_high")
    assert pair_matrix(study, [reference, good, bad]) is None
    for limit in (1.0, 1e-6):  # the trials' own limit counts, not the page's
        advice = recommend(study, [reference, good, bad], limit)
        assert advice.chosen is good and advice.within
        assert "estimated from the 200 rows that decided it" in advice.deploy
        assert "Deploy good: it keeps within 1 points with 200 of 400 rows" in advice.deploy
    none = recommend(study, [reference, bad], 100.0)
    assert not none.within and "no quantized trial stays within 1 points of FP32" in none.deploy
    html = render(page_content(study, None, 1.0))
    assert "keeps within 1 points" in html and "200 of 400 rows" in html
    assert "Of a trial that stopped early, accuracy is estimated: FP32's on all rows" in unescape(html)


def test_seeds_are_repeats(tmp_path: Path) -> None:
    wrong = (4, 8, 12)
    folder = sweep(
        tmp_path,
        [
            {"name": f"a seed={seed}", "settings": {"calibration.seed": str(seed)}, "wrong": lost}
            for seed, lost in enumerate(wrong)
        ],
    )
    study = from_folders([folder])
    (group,) = repeats(study, compared_trials(study))
    values = [0.9 - lost / 400 for lost in wrong]
    assert group.name == "a" and group.over == ("calibration.seed",)
    assert (group.mean, group.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert not [plot for plot in page_content(study, None, 0.5).plots if plot.id.startswith("axis")]


def test_the_front_is_what_nothing_beats() -> None:
    costs = np.array([[-90.0, 5, 1], [-90, 5, 1], [-80, 4, 1], [-80, 6, 1], [-99, 1, 1]])
    assert front(costs, np.ones(5, bool)).tolist() == [False, False, False, False, True]
    assert front(costs, np.arange(5) < 4).tolist() == [
        True,
        True,
        True,
        False,
        False,
    ]  # equal ones beat no one


def test_what_a_table_shows_as_equal_is_equal_on_the_front(tmp_path: Path) -> None:
    fast = {"speedup_vs_fp32": 2.0, "speedup_ci95_low": 1.9, "speedup_ci95_high": 2.1}
    slow = {"speedup_vs_fp32": 1.5, "speedup_ci95_low": 1.4, "speedup_ci95_high": 1.6}
    rows = [
        REFERENCE,
        {"name": "fast", "wrong": 2, **fast},
        {"name": "slow and worse, 96 bytes smaller", "wrong": 4, "size_bytes": 1e6 - 96, **slow},
        {"name": "as fast within its interval", "wrong": 3, **fast, "speedup_vs_fp32": 2.05},
        {"name": "simulated", "wrong": 0, "tags": {"engine": "simulated"}, **fast},
    ]
    study = from_folders([sweep(tmp_path, rows)])
    plot = pareto(study, compared_trials(study))
    assert plot is not None
    assert plot.data["trial"][plot.data["front"]].tolist() == ["FP32", "fast"]


def test_a_missing_answers_file_leaves_the_row(tmp_path: Path) -> None:
    folder = sweep(tmp_path, ROWS)
    (tmp_path / "trials" / f"{3:064x}" / "answers.parquet").unlink()
    row = compared_trials(from_folders([folder]))[2]
    assert row.verdict == "no answers file" and np.isnan(row.p)
    assert row.difference == pytest.approx(-0.1)


def test_nan_logits_are_told_and_not_recommended(tmp_path: Path) -> None:
    given = logits(losing(0)).astype(float)
    given[:7] = np.nan
    folder = sweep(tmp_path, [REFERENCE, {"name": "broken", "given": given}])
    row = compared_trials(from_folders([folder]))[1]
    assert row.verdict == "NaN or infinite logits in 7 of 400 answers"
    assert told(folder)[0].startswith("Deploy none")


@pytest.mark.parametrize(
    "field, change",
    [
        ("checkpoint (tags.reference_fingerprint)", {"tags": {"reference_fingerprint": "c2"}}),
        ("data (tags.data_fingerprint)", {"tags": {"data_fingerprint": "d2"}}),
        ("task (config.task.name)", {"config": {"task": {"name": "rte"}}}),
    ],
)
def test_mixed_trials_are_refused_with_the_field(tmp_path: Path, field: str, change: dict) -> None:
    one, other = trial(tmp_path / "a"), trial(tmp_path / "b", **change)
    with pytest.raises(MixedTrialsError, match=re.escape(f"differ in {field}: ")) as error:
        from_folders([one, other])
    ours, theirs = {"c": ("c1", "c2"), "d": ("d1", "d2"), "t": ("qnli", "rte")}[field[0]]
    assert f"{ours} (" in str(error.value) and f"{theirs} (" in str(error.value)


def test_trial_folders_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    peg = {"method": {"_target_": "quantlab.methods.peg.Peg", "k": 4}}
    study = from_folders([trial(tmp_path / "a"), trial(tmp_path / "b", config=peg)])
    assert [found.name for found in study.trials] == ["a: Uniform", "b: Peg k=4"]


def test_nothing_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep(tmp_path, [{"name": "a", "failed": "OutOfMemoryError: too large\nmore"}])
    assert main([str(folder), "--out", str(tmp_path / "r.html")]) == 1
    assert (
        "none of 1 trials finished" in (error := capsys.readouterr().err)
        and "OutOfMemoryError: too large" in error
    )


def test_what_is_no_folder_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "has neither results.csv" in capsys.readouterr().err
    (tmp_path / "report.html").write_text("kept")
    assert main(["nothing", "--output", str(tmp_path / "report.html")]) == 1  # says what is missing first
    assert "neither a folder nor the id of an MLflow run" in capsys.readouterr().err


def test_a_result_that_is_none(tmp_path: Path) -> None:
    folder = trial(tmp_path / "a")
    (folder / "result.json").write_text("{}")
    with pytest.raises(
        ValueError, match="result.json is not a trial's result: it lacks alarms, config, metrics, tags"
    ):
        from_folders([folder])


def test_other_checkpoints_stand_side_by_side(tmp_path: Path) -> None:
    other = {"tags": {"reference": "models/b", "reference_fingerprint": "c2"}}
    rows = [{"name": "PEG model=a", "wrong": 8}, {"name": "PEG model=b", "wrong": 40, **other}]
    studies = studies_from_folders([sweep(tmp_path, rows)])
    content = side_by_side_content(studies, 0.5)
    overview, trials = content.values["sections"][0].tables
    assert [row[0] for row in overview.rows] == ["qnli on a", "qnli on b"]
    assert trials.rows == [["PEG", "88.00 (\u22122.00)", "80.00 (\u221210.00)"]]
    html5lib.HTMLParser(strict=True).parse(render(content))


def searched(folder: Path, score: str = "accuracy") -> Path:
    folder.mkdir()
    loss = SCORES[score].loss_names
    row = {"number": 1, "cost": 5.0, "metric": 0.8, loss.value: 2.0, "rows": 200, "complete": True}
    row |= {"feasible": True, "origin": "first_order", loss.low: 1.0, loss.high: 3.0}
    for name in ("candidates", "front"):
        pd.DataFrame([row]).to_csv(folder / f"{name}.csv", index=False)
    held_out = {"rows": 100, loss.value: -1.0, loss.low: -2.0, loss.high: 0.5}
    best = {"answer": row | {"held_out": held_out, "sites": {"0.ffn.in": "int8"}}, "hand_made": {"x": 9.0}}
    best |= {"goal": "least sites", "met": True, "candidates": 1, "evaluations": 2.0}
    best |= {"cost_unit": "16-bit sites", "score": score}
    pd.DataFrame({"evaluations": [1, 2], "best_cost": [None, 5.0]}).to_csv(
        folder / "progress.csv", index=False
    )
    (folder / "best.json").write_text(json.dumps(best))
    return folder


def test_a_search_has_a_report_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = searched(tmp_path / "mine")
    for _ in range(2):  # its own report is replaced
        assert main([str(folder)]) == 0
        assert capsys.readouterr().out.strip() == str(folder / "report.html")
    page = (folder / "report.html").read_text()
    html5lib.HTMLParser(strict=True).parse(page)
    assert "The best plan costs 5 16-bit sites and loses 2.00 points (95 % interval +1.00 to +3.00)" in page
    assert "On 100 rows that did not choose it, it gains 1.00 points (95 % interval −0.50 to +2.00)" in page


def test_a_search_of_a_perplexity_has_percent_in_its_report(tmp_path: Path) -> None:
    page = render(search_content(searched(tmp_path / "mine", "perplexity")))
    assert "costs 5 16-bit sites and has 2.00 % more perplexity (95 % interval +1.00 to +3.00)" in page
    assert "loss (%)" in page and "points" not in page.split("</style>")[1].split("<script")[0]


def test_an_output_that_exists_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = sweep(tmp_path, ROWS), tmp_path / "r.md"
    out.write_text("mine")
    command = [str(folder), "--format", "md", "--out", str(out)]
    assert main(command) == 1 and out.read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0 and out.read_text().startswith("| trial")


def test_an_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "no" / "r.md"
    assert main([str(sweep(tmp_path, ROWS)), "--format", "md", "--out", str(out)]) == 1
    assert f"{out} cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "format, start", [("md", b"| trial"), ("tex", b"\\begin{tabular}"), ("png", b"\x89PNG")]
)
def test_tables_for_a_paper(tmp_path: Path, format: str, start: bytes) -> None:
    out = tmp_path / f"r.{format}"
    assert main([str(sweep(tmp_path, ROWS)), "--format", format, "--out", str(out)]) == 0
    assert out.read_bytes().startswith(start) and [path.name for path in tmp_path.glob(".r*")] == []


def test_everything_is_escaped_and_the_html_conforms(tmp_path: Path) -> None:
    tags = dict.fromkeys(("reference", "engine", "runtime"), EVIL)
    evil = {"name": EVIL, "wrong": 3, "alarms": [EVIL], "settings": {"method.k": EVIL}, "tags": tags}
    page = write_sweep(sweep(tmp_path, [*ROWS, evil], f"name,message\n{EVIL},x\n", EVIL)).read_text()
    html5lib.HTMLParser(strict=True).parse(page)
    assert EVIL not in page and "&lt;script&gt;alert(1)" in page
    assert page.count("<script") == 3  # the figures, plotly and our own


def test_a_result_that_a_power_failure_emptied_is_a_trial_that_failed(tmp_path: Path) -> None:
    folder = sweep(tmp_path, ROWS)
    (tmp_path / "trials" / f"{3:064x}" / "result.json").write_text("")
    trials = from_folders([folder]).trials
    assert [trial.summary is None for trial in trials] == [False, False, True, False] and "whole" in trials[
        2
    ].error


def test_every_plot_is_one_that_plotly_takes(tmp_path: Path) -> None:
    from plotly.graph_objects import Figure

    study = from_folders([sweep(tmp_path, ROWS)])
    plots = page_content(study, None, 0.5).plots
    assert {"pareto", "kurtosis", "energy", "noise"} <= {plot.id for plot in plots}
    for plot in plots:
        Figure(data=plot.traces, layout=plot.layout)
        assert len(plot.data), plot.id


def test_commands_leave_out_what_decides_nothing(tmp_path: Path) -> None:
    study = from_folders([sweep(tmp_path, ROWS)])
    assert study.trials[0].command == "python -m quantlab.run +sweeps=mine method=peg 'sweep.trials=[]'"
    assert study.command == "python -m quantlab.run -m +sweeps=mine 'a=b c'"


def test_an_analysis_of_trials_that_stopped_answers_all_rows(tmp_path: Path) -> None:
    folder = sweep(tmp_path, ROWS)
    words = [
        "model=hf",
        "task=qnli",
        "evaluation.until=decided",
        "evaluation.limit=9",
        "+evaluation.max_drop=3",
    ]
    for file in tmp_path.rglob("overrides.yaml"):
        file.write_text(yaml.safe_dump(words))
    html = unescape(render(page_content(from_folders([folder]), None, 1.0)))
    assert "python -m quantlab.outliers model=hf task=qnli evaluation.limit=9<" in html


def analysed(root: Path, fingerprint: str = "c1", name: str = "o") -> Path:
    folder = root / "outliers" / name
    folder.mkdir(parents=True)
    pd.DataFrame({"site": ["0.ffn.out"], "sqnr_db": [3.0], "logit_error": [0.1], "kl": [0.2]}).to_csv(
        folder / "attribution.csv", index=False
    )
    pd.DataFrame({"sites": [0, 1, 1], "kind": ["top", "top", "random"], "accuracy": [0.5, 0.8, 0.6]}).to_csv(
        folder / "protection.csv", index=False
    )
    summary = {
        "tags": {"checkpoint_fingerprint": fingerprint},
        "findings": ["It is so."],
        "metrics": {},
        "command": "c",
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_the_analysis_of_the_same_checkpoint_is_found(tmp_path: Path) -> None:
    study = from_folders([sweep(tmp_path, ROWS)])
    assert analysis_of(study, None) is None
    analysed(tmp_path, "c2", "other")
    assert analysis_of(study, None) is None
    mine = analysed(tmp_path)
    analysis = analysis_of(study, None)
    assert analysis is not None and analysis.folder == mine
    assert {"attribution", "protection"} <= {plot.id for plot in page_content(study, analysis, 0.5).plots}


def test_an_analysis_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    study = from_folders([sweep(tmp_path, ROWS)])
    with pytest.raises(ValueError, match="of another checkpoint: checkpoint_fingerprint c2, the trials' c1"):
        analysis_of(study, analysed(tmp_path, "c2"))
    with pytest.raises(ValueError, match="holds no finished analysis"):
        analysis_of(study, tmp_path)


def test_a_run_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["0" * 32, "--tracking-uri", f"sqlite:///{tmp_path}/none.db"]) == 1
    assert "there is no MLflow store" in capsys.readouterr().err


def test_writing_leaves_no_half_file(tmp_path: Path) -> None:
    study = from_folders([sweep(tmp_path, ROWS)])
    write_report(study, None, tmp_path / "r.html", "html", max_drop=0.5)
    assert (tmp_path / "r.html").stat().st_size < MB_8
