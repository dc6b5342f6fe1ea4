"""Sweeps on disk without trials: folders as quantlab.sweeping leaves them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from quantlab.evaluation.significance import accuracy_drop_ci95

LABELS = np.arange(400) % 2
FP32 = np.where(np.arange(400) % 10 == 0, 1 - LABELS, LABELS)  # 90 % right
QNLI = {"_target_": "quantlab.tasks.glue.Glue", "name": "qnli"}
TAGS = {
    "reference": "models/a",
    "reference_fingerprint": "c1",
    "data_fingerprint": "d1",
    "engine": "integer",
}


def logits(answers: np.ndarray) -> np.ndarray:
    return np.eye(2)[answers]


def losing(wrong: int, offset: int = 1) -> np.ndarray:
    """FP32's answers but for so many that become wrong."""
    right = np.flatnonzero(FP32 == LABELS)[offset : offset + wrong]
    answers = FP32.copy()
    answers[right] = 1 - answers[right]
    return answers


def trial(
    folder: Path,
    wrong: int = 0,
    alarms: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
    given: np.ndarray | None = None,
    config: Mapping[str, Any] | None = None,
    **metrics: float,
) -> Path:
    """A finished trial's folder."""
    given = logits(losing(wrong)) if given is None else given
    right, fp32 = given.argmax(axis=1) == LABELS, FP32 == LABELS
    low, high = accuracy_drop_ci95(fp32, right)
    numbers = {
        "accuracy": right.mean(),
        "accuracy_fp32": fp32.mean(),
        "accuracy_drop": fp32.mean() - right.mean(),
        "accuracy_drop_ci95_low": low,
        "accuracy_drop_ci95_high": high,
        "agreement_fp32": float((given.argmax(axis=1) == FP32).mean()),
        "size_bytes": 1e6,
        "size_fp32_bytes": 4e6,
        "kurtosis": [3.0, 9.0, None],
        "top1pct_energy_channels": [0.1, 0.2, 0.3],
        **metrics,
    }
    summary = {
        "metrics": {
            name: value if isinstance(value, list) else float(value) for name, value in numbers.items()
        },
        "config": {
            "task": QNLI,
            "method": {"_target_": "quantlab.methods.uniform.Uniform"},
            "calibration": {"_target_": "quantlab.calibration.estimators.MinMax", "seed": None},
            "bits": {"weights": 8, "activations": 8, "symmetric": True, "weight_granularity": "tensor"},
            **(config or {}),
        },
        "tags": {**TAGS, "key": folder.name, **(tags or {})},
        "alarms": [{"name": name, "message": f"{name} <b>says</b> so"} for name in alarms],
    }
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(summary))
    columns = {"label": LABELS, **{f"logit_{i}": given[:, i] for i in (0, 1)}}
    columns |= {f"fp32_logit_{i}": logits(FP32)[:, i] for i in (0, 1)}
    pd.DataFrame(columns).to_parquet(folder / "answers.parquet", index=False)
    sites = {
        "name": ["0.attn.out", "0.ffn.out", "classifier.weight"],
        "kind": ["activation", "activation", "weight"],
        "sqnr_db": [20.0, 3.0, 30.0],
        "levels": [255, 255, None],
        "levels_used": [200, 5, None],
        "zeroed": [0.0, 0.987, None],
    }
    pd.DataFrame(sites).to_csv(folder / "sites.csv", index=False)
    (folder / ".hydra").mkdir()
    overrides = ["+sweeps=mine", "method=peg", "sweep.member={number:1}", "hydra.sweep.dir=x", "tracking=off"]
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    return folder


def sweep(
    root: Path,
    rows: Sequence[Mapping[str, Any]],
    alarms: str = "",
    question: str = "Which?",
    evaluation: Mapping[str, Any] | None = None,
) -> Path:
    """A sweep's folder; a row has a ``name``, its ``settings``, and what :func:`trial` takes, or
    ``failed``."""
    folder = root / "sweeps" / "mine-12345678"
    folder.mkdir(parents=True)
    swept = dict.fromkeys(key for row in rows for key in row.get("settings", {}))
    table = []
    for number, row in enumerate(rows, start=1):
        more = {name: value for name, value in row.items() if name not in ("name", "settings", "failed")}
        error = row.get("failed", "")
        if not error:
            trial(root / "trials" / f"{number:064x}", **more)
        settings = {name: row.get("settings", {}).get(name, "") for name in swept}
        table.append(
            {
                "number": number,
                "block": "",
                "name": row["name"],
                "key": f"{number:064x}",
                "status": "failed" if error else "done",
                **settings,
                "accuracy": 0.5,
                "alarms": "",
                "error": error,
            }
        )
    pd.DataFrame(table).to_csv(folder / "results.csv", index=False)
    (folder / "alarms.csv").write_text(alarms or "name,message\n")
    settings = {
        "sweep": {"name": "mine", "question": question},
        "evaluation": evaluation or {},
        "hydra": {"overrides": {"task": ["+sweeps=mine", "a=b c"]}},
    }
    (folder / "multirun.yaml").write_text(yaml.safe_dump(settings))
    return folder


REFERENCE = {"name": "FP32", "wrong": 0, "size_bytes": 4e6, "tags": {"engine": "fp32"}}
ROWS = (
    REFERENCE,
    {"name": "good k=4", "settings": {"method.k": "4"}, "wrong": 1},
    {"name": "poor k=3", "settings": {"method.k": "3"}, "wrong": 40},
    {"name": "bad k=2", "settings": {"method.k": "2"}, "wrong": 160, "alarms": ["constant_prediction"]},
)
EVIL = "<script>alert(1)</script>"
