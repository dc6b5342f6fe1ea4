"""The numbers of tiny trials over families, methods, placements and engines, to compare before and after a
change.

``python tests/benchmarks/golden.py before.json``, and again after the change; equal files are equal to the
bit. They are one processor's: run both on the same machine.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import family_config, qnli_rows, tokenizer
from transformers import AutoModelForSequenceClassification

FAMILIES = ("bert", "roberta", "distilbert", "electra")
XHY = '["*.ffn.in","*.ffn.out","*.ffn.sum"]'
SWEEPS = (  # each is a product over the families
    ("method=uniform,peg", "placement=all", "engine=integer,simulated"),
    ("method=uniform", "placement=gemm", "engine=integer,simulated"),
    ("+case@_global_=mixed,permuted,clipped", "placement=all"),
    ("method=uniform", "calibration=percentile,mse,running_minmax,published_percentile", "bits=w8a8,w4a8"),
    ("method=fp32",),
)
CASES = {
    "mixed": {"defaults": [{"override /method": "mixed_precision"}], "method": {"keep": json.loads(XHY)}},
    "permuted": {"defaults": [{"override /method": "peg"}], "method": {"k": 4, "sites": json.loads(XHY)}},
    "clipped": {"defaults": [{"override /method": "clip_weight_outliers"}], "bits": {"symmetric": True}},
}
NOT_NUMBERS = ("_s", "_ms")  # of metrics: times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        found = dict(sorted(trials(folder)))
    output.write_text(json.dumps(found, indent=1))
    print(f"{len(found)} trials: {hashlib.sha256(output.read_bytes()).hexdigest()[:16]}")


def trials(folder: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Runs all sweeps. Yields each trial's overrides with its numbers."""
    paths = {family: checkpoint(folder / family, family) for family in FAMILIES}
    for split, count in (("train", 96), ("validation", 64)):
        (folder / "glue").mkdir(exist_ok=True)
        qnli_rows(count, seed=count).to_parquet(folder / "glue" / f"{split}.parquet")
    (folder / "conf" / "case").mkdir(parents=True)
    for name, settings in CASES.items():
        text = "# @package _global_\n" + json.dumps(settings)
        (folder / "conf" / "case" / f"{name}.yaml").write_text(text)
    shared = (
        "model=hf",
        "task=qnli",
        f"task.data_dir={folder / 'glue'}",
        "task.max_length=32",
        "evaluation.limit=48",
        "calibration.samples=8",
        "profile=off",
        "tracking=off",
        f"hydra.searchpath=[file://{folder / 'conf'}]",
    )
    for number, axes in enumerate(SWEEPS):
        out = folder / f"sweep{number}"
        models = f"model.path={','.join(map(str, paths.values()))}"
        command = [
            sys.executable,
            "-m",
            "quantlab.run",
            "-m",
            *shared,
            *axes,
            models,
            f"hydra.sweep.dir={out}",
        ]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for result in sorted(out.rglob("result.json")):
            yield numbers(result.parent, folder)


def checkpoint(folder: Path, family: str) -> Path:
    """A random classifier of a family."""
    torch.manual_seed(0)
    names = {0: "entailment", 1: "not_entailment"}
    config = family_config(family, 2, id2label=names, label2id={name: index for index, name in names.items()})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def numbers(trial: Path, folder: Path) -> tuple[str, dict[str, object]]:
    """A trial's overrides, and what it computed: metrics as they are, everything else as a digest."""
    result = json.loads((trial / "result.json").read_text())
    overrides = (trial / ".hydra" / "overrides.yaml").read_text().replace(str(folder), "")
    own = [
        line[2:]
        for line in overrides.splitlines()
        if not line.startswith(("- task", "- hydra", "- evaluation", "- sweep.member"))
    ]
    linears = pd.read_csv(trial / "linears.csv") if (trial / "linears.csv").is_file() else pd.DataFrame()
    return f"{trial.parent.name} {' '.join(own)}", {
        "metrics": {
            name: value for name, value in result["metrics"].items() if not name.endswith(NOT_NUMBERS)
        },
        "alarms": result["alarms"],
        "plan": result["tags"]["plan_fingerprint"],
        "logits": digest(pd.read_parquet(trial / "answers.parquet").to_csv()),
        "sites": digest((trial / "sites.csv").read_text()),
        "linears": digest(linears.drop(columns="times_fp32", errors="ignore").to_csv()),
    }


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


if __name__ == "__main__":
    main()
