"""Searches from end to end on tiny models: the answer, its files, and how an interrupted search continues."""

import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra.utils import instantiate
from processes import Python
from searches import PLANTED, ROWS, MakeLab, SearchLab

from quantlab.methods.per_site import PerSite
from quantlab.searching import worker as worker_module
from quantlab.searching.evaluate import evaluate_candidate
from quantlab.searching.search_run import measure_sensitivity, run_search
from quantlab.searching.setup import prepared_model
from quantlab.searching.site_scores import SCORES
from quantlab.searching.space import Choices
from quantlab.storage.memo import Memo

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # mlflow's

FILES = {"best.json", "front.csv", "candidates.csv", "method.yaml", "map.png", "progress.png"}
GROUPED = "search.group_by=layer_role"
COLUMNS = {"number", "cost", "metric", "drop_points", "rows", "complete", "feasible", "origin"}


@dataclass
class Finished:
    """What a search wrote, printed and returned, and the candidates that it evaluated."""

    folder: Path
    said: str
    cost: float | None
    evaluated: list[Choices]

    @property
    def best(self) -> dict:  # type: ignore[type-arg]
        return json.loads((self.folder / "best.json").read_text())

    @property
    def wide(self) -> set[str]:
        return {name for name, choice in self.best["answer"]["sites"].items() if choice == "fp16"}

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / f"{name}.csv")


class Searching:
    """Runs searches in this process in a new folder, and records which candidates are evaluated."""

    def __init__(
        self, lab: SearchLab, folder: Path, patch: pytest.MonkeyPatch, said: pytest.CaptureFixture[str]
    ):
        self.lab, self.folder, self.said = lab, folder / "searches" / "tiny", said
        self.evaluated: list[Choices] = []
        self.interrupt_at: int | None = None
        patch.chdir(folder)
        patch.setattr(worker_module, "evaluate_candidate", self.evaluate)

    def evaluate(self, runner: object, chosen: Choices, *more: object) -> object:
        self.evaluated.append(chosen)
        if len(self.evaluated) == self.interrupt_at:
            raise KeyboardInterrupt
        return evaluate_candidate(runner, chosen, *more)  # type: ignore[arg-type]

    def __call__(self, *more: str) -> Finished:
        self.evaluated.clear()
        self.said.readouterr()
        cost = run_search(self.lab.config(*more), self.folder, Memo())
        return Finished(self.folder, " ".join(self.said.readouterr().out.split()), cost, list(self.evaluated))


@pytest.fixture
def searching(
    planted: SearchLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Searching:
    return Searching(planted, tmp_path, monkeypatch, capsys)


def test_a_search_finds_what_was_planted_and_its_second_start_evaluates_nothing(
    searching: Searching, tmp_path: Path
) -> None:
    done = searching("search.trials=6")
    assert {path.name for path in done.folder.iterdir()} >= FILES
    assert all((done.folder / name).stat().st_size > 0 for name in FILES)
    assert done.best["met"] and done.wide == set(PLANTED) and done.cost == done.best["answer"]["cost"] == 2
    assert done.best["answer"]["drop_points"] <= 2
    assert f"best: 2 16-bit sites, {done.best['answer']['metric']:.4f}" in done.said
    assert str(done.folder) in done.said and "method=found/tiny" in done.said

    table = done.table("candidates")
    assert set(table) >= COLUMNS | {"0.ffn.mid", "head.out"}
    names = list(table.columns[-30:])
    assert len(table) == 6 == len(table[names].drop_duplicates())
    assert len(done.evaluated) == len(set(done.evaluated)) == 5  # and the reference
    front = done.table("front")
    assert front["cost"].is_monotonic_increasing and (front["drop_points"].diff().dropna() < 0).all()
    assert set(front["number"]) <= set(table["number"][table["complete"]])

    scores = json.loads((done.folder / "scores" / "costs.json").read_text())["rows"]
    assert scores == {"noise_db": 16, "first_order": 48, "kl": 31 * 16}
    progress = done.table("progress")
    assert len(progress) == len(table) and progress["best_cost"].dropna().is_monotonic_decreasing
    assert progress["best_cost"].iloc[-1] == done.cost
    assert progress["evaluations"].iloc[-1] == pytest.approx(done.best["evaluations"])
    answered = ROWS + sum(scores.values()) + table["rows"][table["origin"] != "reference"].sum()
    assert done.best["rows"] == answered and done.best["evaluations"] == pytest.approx(answered / ROWS)
    assert f"{answered / ROWS:.2f} evaluations of the whole set, 6 candidates" in done.said

    method = (done.folder / "method.yaml").read_text()
    assert (tmp_path / "conf" / "method" / "found" / "tiny.yaml").read_text() == method
    built = instantiate(yaml.safe_load(method), _convert_="all")
    assert isinstance(built, PerSite)
    assert [rule.match for rule in built.rules] == ["*", *PLANTED]

    again = searching("search.trials=6")
    assert not again.evaluated and again.best == done.best
    assert "6 candidates are evaluated" in again.said and "6 candidates evaluated before" in again.said
    assert again.table("candidates").equals(table)

    more = searching("search.trials=8")
    assert len(more.evaluated) == 2 and not set(more.evaluated) & set(done.evaluated)
    assert more.table("candidates")[:6].equals(table)


def test_the_budget_is_kept(searching: Searching) -> None:
    done = searching(GROUPED, "search.budget=6.5", "search.max_drop=0")
    assert done.best["evaluations"] <= 6.5 and "the budget of 6.5 evaluations is spent" in done.said
    assert 1 <= done.best["candidates"] == len(done.table("candidates"))
    assert done.best["evaluations"] > 5.5  # a whole one more would not fit


@pytest.mark.slow
@pytest.mark.parametrize("prune_p", [0, 0.1])
def test_hopeless_candidates_are_given_up_and_no_answer_is_one_of_them(
    searching: Searching, prune_p: float
) -> None:
    done = searching(GROUPED, "search.trials=8", f"search.prune_p={prune_p}")
    table = done.table("candidates")
    given_up = table[~table["complete"]]
    assert (len(given_up) > 0) == (prune_p > 0)
    assert (given_up["rows"] < ROWS).all() and not given_up["feasible"].any()
    assert (table[table["complete"]]["rows"] == ROWS).all()
    assert done.best["answer"]["complete"] and done.wide >= set(PLANTED)


@pytest.mark.slow
def test_a_goal_that_nothing_meets_ends_with_the_closest_plan(searching: Searching) -> None:
    done = searching(
        GROUPED,
        "search.trials=5",
        "search.reference=fp32",
        "search.max_drop=0",
        "bits.weights=2",
        "search.choices=[int2,int4]",
        "search.cost=average_bits",
    )
    assert done.cost is None and not done.best["met"] and done.best["answer"]["drop_points"] > 0
    table = done.table("candidates")
    assert done.best["answer"]["drop_points"] == table["drop_points"][table["complete"]].min()
    assert "goal not met (least bits, at most 0 points below fp32); the closest plan:" in done.said
    assert "best:" not in done.said
    assert "# The goal was not met" in (done.folder / "method.yaml").read_text()


@pytest.mark.slow
def test_an_interrupt_leaves_the_best_and_the_search_goes_on_later(searching: Searching) -> None:
    searching.interrupt_at = 3
    with pytest.raises(KeyboardInterrupt):
        searching(GROUPED, "search.trials=8")
    said, cut = " ".join(searching.said.readouterr().out.split()), list(searching.evaluated)
    left = Finished(searching.folder, said, None, cut)
    assert {path.name for path in left.folder.iterdir()} >= FILES
    assert left.best["met"] and left.best["candidates"] == 3  # the reference and two
    assert "best:" in said and "ended because it was interrupted" in said
    searching.interrupt_at = None
    done = searching(GROUPED, "search.trials=8")
    assert not set(done.evaluated) & set(cut[:2])
    assert done.evaluated[0] == cut[2]  # what was interrupted comes next
    assert len(done.table("candidates")) == 8 and done.best["answer"]["cost"] <= left.best["answer"]["cost"]


@pytest.mark.slow
def test_the_best_accuracy_within_a_cost(searching: Searching) -> None:
    done = searching(GROUPED, "search.mode=accuracy", "search.max_cost=10", "search.trials=6")
    table = done.table("candidates")
    within = table[(table["cost"] <= 10) & table["complete"]]
    assert (table["feasible"] == (table["cost"] <= 10) & table["complete"]).all()
    assert done.best["met"] and done.best["answer"]["metric"] == within["metric"].max()
    assert done.wide >= set(PLANTED) and done.cost is not None and done.cost <= 10


@pytest.mark.slow
def test_the_front_of_cost_and_accuracy(searching: Searching) -> None:
    done = searching(GROUPED, "search.mode=pareto", "search.trials=8", "search.cost=bytes")
    front, table = done.table("front"), done.table("candidates")
    assert table["complete"].all() and len(front) >= 2
    for one in table.itertuples():  # nothing beats the front
        assert ((front["cost"] <= one.cost) & (front["drop_points"] <= one.drop_points)).any()
    for one in front.itertuples():
        assert f" {one.cost:g} bytes a token, {one.metric:.4f}, " in done.said


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides, unit",
    [
        (["search.cost=average_bits", "search.choices=[int4,int8,fp16]"], "bits"),
        (["search.cost=bytes", "search.choices=[int4,int8,fp16]", "search.reference=fp32"], "bytes a token"),
        (["search.decide=bound", "search.max_drop=10", "search.sampler=tpe"], "16-bit sites"),
        (["search.seeded=false", "search.sampler=gp"], "16-bit sites"),
        (["search.sites=['*.ffn.*','1.*']", "search.reuse_mb=0", "engine=simulated"], "16-bit sites"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_other_costs_choices_and_samplers(searching: Searching, overrides: list[str], unit: str) -> None:
    done = searching(GROUPED, "search.trials=5", *overrides)
    table, answer = done.table("candidates"), done.best["answer"]
    assert len(table) == 5 and f"best: {answer['cost']:g} {unit}" in done.said
    assert done.best["met"] and answer["cost"] == table["cost"][table["feasible"]].min()
    if "search.decide=bound" in overrides:
        assert answer["drop_upper95"] <= 10 and (table["feasible"] <= (table["drop_upper95"] <= 10)).all()
    sites = answer["sites"]
    assert set(sites.values()) <= {"int4", "int8", "fp16"} and done.wide >= set(PLANTED)


@pytest.mark.slow
def test_mlflow_has_one_run_of_the_search_and_one_below_it_for_each_candidate(
    searching: Searching, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    tracked = (GROUPED, "search.trials=4", "tracking=sqlite", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    for trials in (4, 4, 5):
        done = searching(*tracked, f"search.trials={trials}")
        client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
        runs = client.search_runs([client.get_experiment_by_name("quantlab").experiment_id])  # type: ignore[union-attr]
        (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
        assert [(run.info.run_name, run.info.status) for run in runs if run.info.status != "FINISHED"] == []
        table = done.table("candidates")
        assert len(children) == len(table) == trials  # the reference is one
        assert sorted(run.data.metrics["cost"] for run in children) == sorted(table["cost"])
    assert parent.data.metrics["best_cost"] == done.cost and parent.data.metrics["goal_met"] == 1
    assert parent.data.params["search.group_by"] == "layer_role" and parent.data.tags["goal"]
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert artifacts >= FILES | {"scores.csv"}


@pytest.mark.slow
def test_an_interrupted_search_tells_mlflow_its_best_so_far(searching: Searching, tmp_path: Path) -> None:
    """The first start ends with everything at its widest; the second finds a better one before Ctrl-C."""
    from mlflow import MlflowClient

    tracked = (GROUPED, "tracking=sqlite", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    first = searching(*tracked, "search.trials=1")
    assert first.cost == 30 and not first.best["met"]
    assert (
        "nothing was decided: everything at its widest is all that was tried: 30 16-bit sites" in first.said
    )
    assert "# Nothing was decided" in (first.folder / "method.yaml").read_text()
    searching.interrupt_at = 5
    with pytest.raises(KeyboardInterrupt):
        searching(*tracked, "search.trials=8")
    best = Finished(searching.folder, "", None, []).best
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    (parent,) = client.search_runs(
        [client.get_experiment_by_name("quantlab").experiment_id],  # type: ignore[union-attr]
        "run_name = 'tiny'",
    )
    assert parent.info.status == "KILLED"
    assert (
        parent.data.metrics["best_cost"] == best["answer"]["cost"] < 30
        and parent.data.metrics["goal_met"] == 1
    )


def test_the_answer_is_measured_on_rows_that_did_not_choose_it(
    searching: Searching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantlab.tasks.sampling.FEWEST", 16)
    half = ROWS // 2
    done = searching(GROUPED, "search.trials=5")
    assert (
        set(done.table("candidates")["rows"]) <= {*range(1, half + 1)} and done.best["answer"]["rows"] == half
    )
    measured = done.best["answer"]["held_out"]
    assert measured["rows"] == half and measured["drop_ci95_low"] <= measured["drop_points"]
    held_out = (
        f"on {half} rows that did not choose it: {measured['metric']:.4f}, "
        f"{measured['drop_points']:.2f} points below"
    )
    assert held_out in done.said and held_out in (done.folder / "method.yaml").read_text()
    answered = done.best["rows"]
    again = searching(GROUPED, "search.trials=5")
    assert again.best == done.best and again.best["rows"] == answered and not again.evaluated

    config = searching.lab.config(GROUPED)
    with prepared_model(config, Memo()) as prepared:
        chosen = prepared.space.chosen(done.best["answer"]["sites"])
        logits = evaluate_candidate(prepared.runner(), chosen, prepared.label_columns, None).logits
        right = logits.argmax(1) == prepared.material.rows.labels
        mask = config.evaluation.held_out(prepared.material.rows.labels)
    assert (right[mask].mean(), right[~mask].mean()) == (measured["metric"], done.best["answer"]["metric"])


def test_sensitivity_writes_its_tables_and_its_picture(
    make_lab: MakeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_lab((1,)).config(GROUPED)
    scores = measure_sensitivity(config, tmp_path / "out", Memo())
    assert {"scores.csv", "scores.png", "correlations.csv"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    table = pd.read_csv(tmp_path / "out" / "scores.csv")
    measured = ["accuracy_drop_points", "accuracy_drop_points_error"]
    assert list(table.columns) == ["variable", "choice", *SCORES, *measured]
    assert len(table) == len(scores.table) and scores.measured == measured[0]
    assert table.set_index("variable")[measured[0]].idxmax() == "1.ffn.*"
    correlations = pd.read_csv(tmp_path / "out" / "correlations.csv").set_index("score")
    assert list(correlations.index) == list(SCORES)
    assert correlations["rows"].to_dict() == {name: scores.rows[name] for name in SCORES}


@pytest.mark.slow
def test_a_killed_search_goes_on_to_the_same_answer_which_a_trial_repeats(
    planted: SearchLab, searching: Searching, python: Python, tmp_path: Path
) -> None:
    """The command line: killed half-way, started again, and the found method run as a trial."""
    more = ("search.trials=6", "search.heartbeat_s=1", GROUPED)
    whole, killed = searching(*more), tmp_path / "killed"
    folder = killed / "multirun" / "searches" / "tiny"
    killed.mkdir()
    search = ("-m", "quantlab.search", *planted.overrides, *more)
    going = python.start(*search, cwd=killed)
    going.says("\n[")
    going.kill()
    assert going.wait() == -signal.SIGKILL
    before = pd.read_csv(folder / "candidates.csv")
    assert 2 <= len(before) < 6
    time.sleep(2.5)  # the silent worker's candidate is free again
    done = python.run(*search, cwd=killed)
    assert done.returncode == 0 and "best: " in done.stdout, done.stderr
    table, best = pd.read_csv(folder / "candidates.csv"), json.loads((folder / "best.json").read_text())
    names = list(table.columns[list(table.columns).index("origin") + 1 :])
    assert len(table) == 6 == len(table[names].drop_duplicates())
    assert table[: len(before)].equals(before)
    assert best["answer"]["sites"] == whole.best["answer"]["sites"]

    trial = [o for o in planted.overrides if not o.startswith("search.")]
    answer = ("method=found/tiny", f"hydra.run.dir={tmp_path}/trial")
    done = python.run("-m", "quantlab.run", *trial, *answer, cwd=killed)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "trial" / "result.json").read_text())
    assert result["metrics"]["accuracy"] == best["answer"]["metric"]
