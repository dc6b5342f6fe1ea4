"""``python -m quantlab.outliers`` from end to end on tiny models: its files, its MLflow run, its errors."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import MakeModel
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException, InstantiationException
from searches import PLANTED, MakeLab

from quantlab import outliers
from quantlab.analysis import analysis_run as running
from quantlab.analysis.outliers_config import Outliers
from quantlab.storage.memo import Memo

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # mlflow's

ALWAYS = {
    "layers",
    "sites",
    "channels",
    "tokens",
    "token_channels",
    "massive",
    "positions",
    "weights",
    "attribution",
    "accumulation",
    "protection",
    "propagation",
    "recursion",
}
SMALL = (
    "task=qnli",
    "task.max_length=32",
    "evaluation.limit=16",
    "evaluation.batch_size=8",
    "calibration.samples=8",
    "search.sensitivity_rows=4",
    "search.group_by=layer",
    "search.max_drop=100",
    "profile=off",
    "tracking=off",
    "outliers.draws=2",
    "outliers.random_draws=0",
    "outliers.clip=[]",
)


@dataclass(frozen=True)
class Written:
    """What an analysis wrote and printed."""

    folder: Path
    said: str

    @property
    def summary(self) -> dict:  # type: ignore[type-arg]
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        return json.loads((self.folder / "summary.json").read_text(), parse_constant=refuse)

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        return {path.stem: pd.read_csv(path, na_values=[""]) for path in self.folder.glob("*.csv")}


Analyse = Callable[..., Written]


@pytest.fixture
def analyse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Analyse:
    """Runs the command in this process in a new folder; later overrides win."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(outliers, "MEMO", Memo())

    def run(*overrides: str) -> Written:
        merged = {override.split("=", 1)[0]: override for override in overrides}
        monkeypatch.setattr(sys, "argv", ["quantlab.outliers", *merged.values()])
        GlobalHydra.instance().clear()
        capsys.readouterr()
        outliers.main()
        said = capsys.readouterr().out
        return Written(Path(said.splitlines()[-1]), said)

    return run


@pytest.fixture
def small(tiny_bert: Path, tiny_glue: Path) -> tuple[str, ...]:
    return (*SMALL, "model=hf", f"model.path={tiny_bert}", f"task.data_dir={tiny_glue}")


def test_a_collapse_is_explained_and_recorded(analyse: Analyse, make_lab: MakeLab, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracked = ("tracking=sqlite", f"tracking.uri={uri}", "outliers.name=why", "bits.symmetric=false")
    done = analyse(
        *make_lab().overrides,
        *tracked,
        "search.sites=['*.ffn.*']",
        "outliers.clip=[2]",
        "outliers.random_draws=2",
        "outliers.draws=2",
    )
    assert re.fullmatch(r"why-[0-9a-f]{8}", done.folder.name)
    assert done.folder.parent == tmp_path / "multirun" / "outliers"
    tables, summary = done.tables, done.summary
    assert tables.keys() == ALWAYS | {"clipping"}
    assert set(tables["attribution"]["site"][:2]) == set(PLANTED)
    assert tables["protection"]["protected"][3] == " ".join(tables["attribution"]["site"][:2])
    assert list(tables["attribution"].columns) == [
        "site",
        "layer",
        "role",
        "sqnr_db",
        "logit_error",
        "first_order",
        "kl",
        "in_beyond_6_sigma",
        "due_to_beyond_6_sigma",
        "in_dominant_channels",
        "due_to_dominant_channels",
        "error_power",
    ]
    assert summary.keys() == {"tags", "findings", "metrics", "command"}
    assert len(summary["findings"]) >= 5 and all(
        sentence in " ".join(done.said.split()) for sentence in summary["findings"]
    )
    assert (
        summary["command"].startswith("python -m quantlab.outliers ")
        and "outliers.name=why" in summary["command"]
    )
    assert summary["tags"].keys() >= {
        "checkpoint",
        "checkpoint_fingerprint",
        "data_fingerprint",
        "task",
        "rows",
        "seed",
        "git_commit",
    }
    assert summary["metrics"]["outlier_weights"] >= len(tables["weights"]) > 0
    assert summary["metrics"]["kurtosis_max"] == pytest.approx(tables["layers"]["kurtosis"].max())
    newest = max(done.folder.glob("*.*"), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name == "summary.json"

    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("quantlab").experiment_id])  # type: ignore[union-attr]
    assert run.info.status == "FINISHED" and run.info.run_name == "outliers why"
    assert run.data.metrics == pytest.approx(summary["metrics"])
    assert run.data.tags["findings"] == "\n".join(summary["findings"])
    assert run.data.params["outliers.clip"] == "[2]" and run.data.params["search.group_by"] == "site"
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert artifacts >= {f"{name}.csv" for name in tables} | {"summary.json", "attribution.png"}


OTHERS = [pytest.param(family, marks=pytest.mark.slow) for family in ("roberta", "distilbert", "electra")]


@pytest.mark.parametrize("family", ["bert", *OTHERS])
def test_every_architecture(analyse: Analyse, make_model: MakeModel, tiny_glue: Path, family: str) -> None:
    """Without clipping and random draws, with the sites of a layer in one variable."""
    settings = (*SMALL, "model=hf", f"model.path={make_model(family)}", f"task.data_dir={tiny_glue}")
    done = analyse(*settings)
    tables, summary = done.tables, done.summary
    assert tables.keys() == ALWAYS
    assert list(tables["layers"]["depth"]) == [0, 1, 2] and len(tables["attribution"]) == 4
    assert set(tables["protection"]["kind"]) <= {"reference", "top"}
    drawn = tables["token_channels"]
    assert drawn["channel"].nunique() == 16 and drawn["position"].is_monotonic_increasing
    widths = tables["channels"].groupby("depth")["channel"].nunique()
    assert list(widths) == [32] * (2 if family == "electra" else 3)
    site = drawn["site"].iloc[0]
    wide = tables["sites"][
        tables["sites"]["site"].str.match(r"^(embed|\d)\.")
        & ~tables["sites"]["site"].str.contains(
            r"scores|probs|ffn.mid|attn.in$" + (r"|embed.(?:sum|out)" if family == "electra" else "")
        )
    ]
    assert site == wide.loc[wide["kurtosis"].idxmax(), "site"]
    assert summary["tags"]["rows"] == "16" and summary["findings"]


@pytest.mark.slow
def test_another_start_writes_the_folder_again_and_one_that_fails_leaves_no_summary(
    analyse: Analyse, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = analyse(*small)
    contents = {path.name: path.read_bytes() for path in first.folder.glob("*.csv")}
    (first.folder / "attribution.csv").write_text("cut sho")
    again = analyse(*small)
    assert again.folder == first.folder
    assert {path.name: path.read_bytes() for path in again.folder.glob("*.csv")} == contents
    assert analyse(*small, "outliers.draws=3").folder != first.folder
    monkeypatch.setattr(
        running, "attribution_table", lambda prepared: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(CompactHydraException, match="disk full"):
        analyse(*small)
    assert not (first.folder / "summary.json").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        (
            "method=peg",
            "method.k=2",
            "outliers.clip=[1]",
            "outliers.draws=1",
            "calibration.padding=included",
            "outliers.propagation=false",
        ),
        ("outliers.rank_by=first_order", "placement=gemm", "search.group_by=site", "engine=simulated"),
        ("search.sites=['head.*']", "task.metrics=[matthews_correlation,accuracy]"),
        pytest.param(
            (
                "calibration=percentile",
                "calibration.through=quantized_weights",
                "bits.weights=32",
                "search.max_drop=0",
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=" ".join,
)
def test_other_settings(analyse: Analyse, small: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    done = analyse(*small, *overrides)
    assert ("clipping" in done.tables) == ("outliers.clip=[1]" in overrides)
    assert ("propagation" in done.tables) == ("outliers.propagation=false" not in overrides)
    assert done.summary["findings"] and np.isfinite(list(done.summary["metrics"].values())).all()
    assert "sum_kurtosis" in done.said and "logit_error" in done.said and "\x1b" not in done.said


@pytest.mark.parametrize(
    "score, column, ascending",
    [
        ("noise_db", "sqnr_db", True),
        pytest.param("first_order", "first_order", False, marks=pytest.mark.slow),
    ],
)
def test_sites_are_protected_in_the_order_of_the_score_that_is_asked_for(
    analyse: Analyse, make_lab: MakeLab, score: str, column: str, ascending: bool
) -> None:
    alone = ("search.sites=['1.ffn.*']", "search.max_drop=0", "outliers.random_draws=0", "outliers.clip=[]")
    tables = analyse(
        *make_lab((1,)).overrides, *alone, f"outliers.rank_by={score}", "outliers.draws=1"
    ).tables
    ranked = list(tables["attribution"].sort_values(column, ascending=ascending)["site"])
    top = tables["protection"][tables["protection"]["kind"] == "top"][1:]
    assert len(top) and [row.protected.split() for row in top.itertuples()] == [
        ranked[:count] for count in top["sites"]
    ]


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("draws", 0, "outliers.draws must be a whole number of at least 1, got 0"),
        ("random_draws", -1, "outliers.random_draws must be a whole number of at least 0, got -1"),
        ("rank_by", "kurtosis", "outliers.rank_by must be one of noise_db, first_order, kl; got 'kurtosis'"),
        ("clip", [1, 0], "outliers.clip must be a whole number of at least 1, got 0"),
        ("clip", [1.5], "outliers.clip must be a whole number of at least 1, got 1.5"),
        ("clip", "12", "outliers.clip must be a list of numbers of weights, got '12'"),
        ("sigmas", -1, "outliers.sigmas must be at least 0, got -1"),
        ("propagation", "yes", "outliers.propagation must be one of True, False; got 'yes'"),
        ("name", "a/b", "outliers.name names a folder: letters, digits"),
    ],
)
def test_settings_say_what_is_wrong_with_them(name: str, value: object, message: str) -> None:
    right = {
        "name": "a",
        "draws": 1,
        "rank_by": "kl",
        "random_draws": 0,
        "clip": [],
        "propagation": True,
        "sigmas": 6,
    }
    assert Outliers(**right).clip == ()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=re.escape(message)):
        Outliers(**{**right, name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "override, message",
    [
        ("outliers.clip=5", "outliers.clip must be a list of numbers of weights, got 5"),
        ("search.sites=['9.*']", "matches nothing"),
        ("search.sensitivity_rows=97", "search.sensitivity_rows is 97, but the training split has 96 rows"),
        ("calibration.samples=1000", "calibration.samples is 1000, but the training split has 96 rows"),
        ("calibration.through=quantized", "ranges that do not depend on each other"),
        ("model.path=nowhere", "nowhere"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_loaded(
    analyse: Analyse,
    small: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    override: str,
    message: str,
) -> None:
    monkeypatch.setattr(running, "load_material", lambda *_: pytest.fail("loaded"))
    with pytest.raises((CompactHydraException, InstantiationException), match=re.escape(message)):
        analyse(*small, override)
    assert not (tmp_path / "multirun" / "outliers").exists()


def test_clipping_needs_weights_on_grids(
    analyse: Analyse, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "load_material", lambda *_: pytest.fail("loaded"))
    with pytest.raises(CompactHydraException, match="outliers.clip clips weights by the range of their grid"):
        analyse(*small, "bits.weights=fp16", "outliers.clip=[1]")
