"""Runs an outlier analysis from its config to its files and its record in the tracker."""

import json
import uuid
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from quantlab.analysis.attribution import attribution_table
from quantlab.analysis.channels import channel_table, layer_table, stream_sites
from quantlab.analysis.findings import findings
from quantlab.analysis.massive import massive_tables
from quantlab.analysis.outliers_config import Outliers, OutliersConfig
from quantlab.analysis.pictures import draw_attribution
from quantlab.analysis.propagation_findings import ALL
from quantlab.analysis.propagation_table import propagation_tables
from quantlab.analysis.remedies import check_clipping, clipping_table, protection_table
from quantlab.analysis.shares import error_shares
from quantlab.analysis.tokens import token_channels, token_table
from quantlab.analysis.weights import outlier_weights, weight_table
from quantlab.calibration.outlier_statistics import by_site
from quantlab.cli.console import plain_console
from quantlab.machine.provenance import machine_tags
from quantlab.network.sites import Site
from quantlab.searching.answer_summary import wrapped
from quantlab.searching.setup import checked_space, prepared_model
from quantlab.storage.files import code_digest, digest, write_whole
from quantlab.storage.memo import Memo
from quantlab.tracking.tracker import RunEntry, RunOutcome
from quantlab.transforms.transform import Transform
from quantlab.trial.config import plain_config
from quantlab.trial.environment import deciding_environment
from quantlab.trial.key import deciding_settings
from quantlab.trial.material import Material, fp32_sketches, load_material, resolve_checkpoint, select_rows
from quantlab.trial.result import plain_data

SHOWN_OF_LAYERS = ["depth", "site", "kurtosis", "sum_kurtosis", "sum_largest", "dominant"]
SHOWN_OF_SITES = ["site", "sqnr_db", "logit_error", "first_order", "kl"]
SUMMARY = "summary.json"  # written last, so a folder that has it is complete
# Settings of search.* that an analysis reads.
SEARCH = (
    "sites",
    "choices",
    "group_by",
    "max_drop",
    "reference",
    "sensitivity_rows",
    "seed",
)


def analyse_outliers(config: OutliersConfig, root: Path, command: str, memo: Memo) -> Path:
    """Writes tables, pictures and ``summary.json`` into a folder under ``root`` and records them; returns the
    folder.

    Raises ValueError or OSError for wrong settings, as far as possible before anything is loaded.
    """
    check_basis(config)
    checked_space(config, memo)
    check_clipping(config, memo)
    rows = select_rows(config.trained, config.task, config.evaluation, memo)
    check_rows(config, len(rows.train))
    fingerprints = {
        "checkpoint_fingerprint": resolve_checkpoint(config.trained, config.task, memo).fingerprint,
        "data_fingerprint": rows.fingerprint,
    }
    asked = digest(
        [
            json.dumps(deciding_settings(plain_config(config)), sort_keys=True, default=str),
            repr(config.outliers),
            repr(config.search),
            *fingerprints.values(),
            code_digest(),
        ]
    )
    folder = root / f"{config.outliers.name}-{asked[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMMARY).unlink(missing_ok=True)
    entry = RunEntry(
        identity=uuid.uuid4().hex, name=f"outliers {config.outliers.name}", params=_params(config), tags={}
    )
    with config.tracking.start(entry, folder) as run:
        tables = {}
        for name, table in _tables(config, memo):
            tables[name] = table
            table.to_csv(folder / f"{name}.csv", index=False)
        pictures = draw_attribution(tables, folder)
        weights = outlier_weights(_material(config, memo).model, config.outliers.sigmas)
        sentences, numbers = findings(tables, config.task.metrics[0]), _metrics(tables, weights)
        tags = _tags(config, memo) | fingerprints
        summary = {"tags": tags, "findings": sentences, "metrics": numbers, "command": command}
        write_whole(folder / SUMMARY, json.dumps(summary, indent=2, allow_nan=False))
        files = (*(f"{name}.csv" for name in tables), *pictures, SUMMARY)
        run.log(RunOutcome(metrics=numbers, tags=tags | {"findings": "\n".join(sentences)}, files=files))
    if run.problem:
        raise ConnectionError(f"the analysis is in {folder}, but was not recorded: {run.problem}")
    _show(tables, sentences, folder)
    return folder


def check_basis(config: OutliersConfig) -> None:
    """Raises ValueError if tensors are quantized in another basis than their own, or in several."""
    config.require_one()
    transform = config.alternatives[0].applied(config).transform
    if type(transform) is not Transform:
        raise ValueError(
            "the analysis compares tensors in the network's own basis, but transform is "
            f"{type(transform).__name__}: take transform=none"
        )


def check_rows(config: OutliersConfig, train: int) -> None:
    """Raises ValueError if the training split has fewer rows than calibration or scores need."""
    for name, rows in (
        ("calibration.samples", config.calibration.samples),
        ("search.sensitivity_rows", config.search.sensitivity_rows),
    ):
        if rows > train:
            raise ValueError(f"{name} is {rows}, but the training split has {train} rows")


def _tables(config: OutliersConfig, memo: Memo) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields each table with its name as soon as it is computed."""
    material = _material(config, memo)
    key = (config.trained, config.task, config.evaluation, *config.calibration.observation_key)
    sketches = memo.get("sketches", key, lambda: fp32_sketches(material, config.calibration))
    batches, calibration = material.calibration_batches(config.calibration), config.calibration
    tokens, stability = token_table(material, batches, sketches)
    layers = layer_table(material, calibration, sketches, config.outliers.draws).assign(
        jaccard_tokens=stability
    )
    sites = by_site(sketches)
    yield "layers", layers
    yield "sites", sites
    yield "channels", channel_table(material, sketches)
    yield "tokens", tokens
    massive, positions = massive_tables(material, batches, sketches)
    yield "massive", massive
    yield "positions", positions
    worst = _worst(material, sites)
    yield "token_channels", token_channels(material, batches[0], worst, sketches[worst.name])
    yield "weights", weight_table(material.model, material.sites, sketches, config.outliers.sigmas)
    with prepared_model(config, memo) as prepared:
        attribution, accumulation = attribution_table(prepared)
        if config.search.group_by == "site":
            attribution = attribution.merge(error_shares(prepared), on="site", how="left")
        yield "attribution", attribution
        yield "accumulation", accumulation
        if config.outliers.propagation:
            propagation, recursion = propagation_tables(prepared)
            yield "propagation", propagation
            yield "recursion", recursion
        ranked = attribution.sort_values(_column(config), ascending=_column(config) == "sqnr_db")["site"]
        yield (
            "protection",
            protection_table(prepared, list(ranked), config.outliers.random_draws, config.search.seed),
        )
    if config.outliers.clip:
        yield "clipping", clipping_table(config, memo)


def _params(config: OutliersConfig) -> dict[str, Any]:
    search = {f"search.{name}": plain_data(getattr(config.search, name)) for name in SEARCH}
    own = {
        f"outliers.{field.name}": plain_data(getattr(config.outliers, field.name))
        for field in fields(Outliers)
    }
    return config.params() | search | own


def _material(config: OutliersConfig, memo: Memo) -> Material:
    return load_material(config.trained, config.task, config.evaluation, memo)


def _column(config: OutliersConfig) -> str:
    return {"noise_db": "sqnr_db"}.get(config.outliers.rank_by, config.outliers.rank_by)


def _worst(material: Material, sites: pd.DataFrame) -> Site:
    """Of the sites as wide as the residual stream, the one with the largest kurtosis."""
    width = stream_sites(material)[-1].channels
    tokens = [
        site
        for site in material.sites
        if site.made_at and site.made_at.axis == -1 and site.name[:4] != "head"
    ]
    by_name = {site.name: site for site in tokens if site.channels == width}
    wide = sites[sites["site"].isin(by_name)]
    return by_name[str(wide["site"].iloc[int(wide["kurtosis"].argmax())])]


def _metrics(tables: dict[str, pd.DataFrame], weights: int) -> dict[str, float]:
    """The analysis in single numbers, to compare analyses in MLflow."""
    layers, accumulation = tables["layers"], tables["accumulation"]
    numbers = {
        "kurtosis_max": layers["kurtosis"].max(),
        "kurtosis_published_max": layers["kurtosis_published"].max(),
        "outlier_weights": weights,
        "largest_weight_sigmas": tables["weights"]["sigmas"].abs().max(),
        "error_measured_by_additive": (accumulation["measured"] / accumulation["additive"]).iloc[-1],
    }
    if "propagation" in tables:
        sources = tables["propagation"].set_index("site")
        numbers |= {
            "error_superposition": sources["superposition"][ALL],
            "error_measured_by_predicted": sources["ratio"][ALL],
            "failing_predictions": sources["fails"].drop(ALL).sum(),
        }
    return {name: float(value) for name, value in numbers.items() if np.isfinite(float(value))}


def _tags(config: OutliersConfig, memo: Memo) -> dict[str, str]:
    material = _material(config, memo)
    return {
        **material.loaded.tags,
        **material.data_tags,
        **machine_tags(material.model.device),
        **deciding_environment(material.model.device),
        "task": config.task.name,
        "rows": str(len(material.rows)),
        "calibration_rows": str(config.calibration.samples),
        "scored_rows": str(config.search.sensitivity_rows),
        "seed": str(config.search.seed),
    }


def _show(tables: dict[str, pd.DataFrame], sentences: list[str], folder: Path) -> None:
    """Prints the main columns of two tables, the findings and where everything is, in 80 columns."""
    console = plain_console()
    shown: dict[str, Any] = {"index": False, "float_format": "{:.4g}".format}
    layers = tables["layers"][SHOWN_OF_LAYERS]
    layers = layers.assign(dominant=layers["dominant"].str.split().str[:4].str.join(" "))
    console.print(layers.to_string(**shown))
    console.print(tables["attribution"][SHOWN_OF_SITES].head(10).to_string(**shown))
    for sentence in sentences:
        console.print("\n".join(wrapped(f"- {sentence}")))
    console.print(f"all tables, {SUMMARY} and attribution.png are in")
    console.print(str(folder))
