"""A whole trial on a tiny model: through the command line, and in this process."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MakeModel
from hydra.errors import InstantiationException
from labs import Lab
from processes import Python
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from quantlab.network import checkpoint_files
from quantlab.network.checkpoint_sources import Pretrained
from quantlab.network.models import FineTuned, Recipe
from quantlab.network.processors import read_tokenizer
from quantlab.plan.plan import QuantPlan
from quantlab.storage.memo import Memo
from quantlab.tasks.glue import Glue
from quantlab.trial import planning
from quantlab.trial.key import trial_key
from quantlab.trial.result import TrialResult, check_writable
from quantlab.trial.trial import run_trial

TIMINGS = {"calibrate_s", "evaluate_s", "profile_s"}
CLASSIFICATION = {
    "accuracy",
    "loss",
    "accuracy_fp32",
    "accuracy_drop",
    "accuracy_drop_ci95_low",
    "accuracy_drop_ci95_high",
    "agreement_fp32",
    "logits_sqnr_db",
    "constant_prediction",
    "size_bytes",
    "size_fp32_bytes",
    "kurtosis_max",
    "kurtosis",
    "variance",
    "top1pct_energy_channels",
    "top1pct_energy_elements",
    *TIMINGS,
}
MEMORY = {"memory_weights_mb", "memory_working_mb", "peak_memory_mb"}
PROFILED = {"latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "examples_per_s", *MEMORY}
SPEEDUP = {"speedup_vs_fp32", "speedup_ci95_low", "speedup_ci95_high"}
XHY = '["*.ffn.in","*.ffn.out","*.ffn.sum"]'


@pytest.fixture
def lab(tiny_bert: Path, tiny_glue: Path) -> Lab:
    return Lab(
        (
            "model=hf",
            f"model.path={tiny_bert}",
            "task=qnli",
            f"task.data_dir={tiny_glue}",
            "task.max_length=32",
            "evaluation.limit=48",
            "calibration.samples=8",
            "profile=off",
            "tracking=off",
        )
    )


def untimed(result: TrialResult) -> dict[str, object]:
    return {name: value for name, value in result.metrics.items() if name not in TIMINGS}


def test_the_command_line_that_others_script_against(lab: Lab, python: Python, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        *lab.overrides,
        "placement=all",
        "method=uniform",
        "bits=w8a8",
        "bits.symmetric=true",
        "bits.weight_granularity=tensor",
        "calibration=minmax",
        "calibration.samples=8",
        f"hydra.run.dir={out}",
    ]
    done = python.run("-m", "quantlab.run", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "result.json").read_text())
    assert set(result) == {"metrics", "config", "tags", "alarms"}
    assert set(result["metrics"]) == CLASSIFICATION
    assert len(result["metrics"]["kurtosis"]) == 3  # the embeddings and two layers
    assert result["tags"]["engine"] == "integer" and result["tags"]["integer_linears"] == "13 of 14"
    answers = pd.read_parquet(out / "answers.parquet")
    accuracy = (answers[["logit_0", "logit_1"]].to_numpy().argmax(1) == answers["label"]).mean()
    assert accuracy == result["metrics"]["accuracy"]
    assert (
        QuantPlan.from_json((out / "plan.json").read_text()).fingerprint == result["tags"]["plan_fingerprint"]
    )
    sites = pd.read_csv(out / "sites.csv")
    assert set(sites.columns) >= {"name", "grid", "lo", "hi", "sqnr_db"} and sites["sqnr_db"].notna().all()
    assert (out / "kurtosis.png").read_bytes().startswith(b"\x89PNG")


def test_a_multirun_is_as_many_trials(lab: Lab, python: Python, tmp_path: Path) -> None:
    arguments = [
        "-m",
        *lab.overrides,
        "method=peg",
        f"method.sites={XHY}",
        "method.permute=range",
        "method.k=2,3,4",
    ]
    done = python.run("-m", "quantlab.run", *arguments, f"hydra.sweep.dir={tmp_path}/sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in tmp_path.glob("sweep/trials/*/result.json")]
    assert sorted(result["config"]["method"]["k"] for result in results) == [2, 3, 4]
    assert len({result["tags"]["key"] for result in results}) == 3


def test_a_trial_finds_its_checkpoint_and_its_data_once(
    lab: Lab, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is asked once and the data are read once, from the key to the profile."""
    config, asked, read, load = lab.config(), [], [], Glue.load
    monkeypatch.setattr(
        checkpoint_files, "snapshot_download", lambda name, **_: asked.append(name) or str(tiny_bert)
    )
    monkeypatch.setattr(Glue, "load", lambda task: read.append(task) or load(task))
    model = FineTuned(name="tiny", base=Pretrained(path="owner/name"), recipe=Recipe())
    shutil.copytree(tiny_bert, model.target(config.task, load(config.task), tiny_bert))
    memo, config = Memo(), replace(config, model=model)
    key = trial_key(config, memo)
    assert run_trial(config, memo).tags["key"] == key
    assert (len(asked), len(read)) == (1, 1)


def test_pairs_that_the_checkpoint_cannot_take_are_refused_before_anything_is_loaded(
    lab: Lab, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantlab.trial.trial.load_material", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=r"token type 1, but the model has type_vocab_size=1"):
        lab.trial(f"model.path={make_model(type_vocab_size=1)}")


def test_a_row_without_a_token_is_refused_before_anything_is_loaded(
    lab: Lab, tiny_bert: Path, tiny_glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the tokenizer adds no [CLS] and no [SEP]; in calibration and in evaluation."""
    model, bare = Path(shutil.copytree(tiny_bert, tmp_path / "model")), read_tokenizer(tiny_bert)
    bare.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B")
    PreTrainedTokenizerFast(tokenizer_object=bare.backend_tokenizer, pad_token="[PAD]").save_pretrained(model)
    monkeypatch.setattr("quantlab.trial.trial.load_material", lambda *_: pytest.fail("loaded"))
    for split in ("train", "validation"):
        data = Path(shutil.copytree(tiny_glue, tmp_path / split))
        frame = pd.read_parquet(data / f"{split}.parquet")
        frame.loc[3, ["question", "sentence"]] = ""
        frame.to_parquet(data / f"{split}.parquet")
        with pytest.raises(ValueError, match=r"the tokenizer makes no token of '' / '' \(example 3\)"):
            lab.trial(f"model.path={model}", f"task.data_dir={data}", "evaluation.limit=null")


def test_a_failed_trial_exits_non_zero_with_one_clear_line(lab: Lab, python: Python, tmp_path: Path) -> None:
    arguments = [*lab.overrides, "method=peg", "method.k=33", f"hydra.run.dir={tmp_path}"]
    done = python.run("-m", "quantlab.run", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "method.k must be at most the 32 channels of 0.ffn.in, got 33" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "result.json").exists()


REUSED = (
    ["method=fp32"],
    ["method=uniform", "bits.symmetric=true"],
    ["method=mixed_precision", "placement=paper"],
    ["placement=gemm", "bits.weight_granularity=channel", "bits.weight_estimator=mse", "calibration=mse"],
    ["calibration.through=quantized_weights", "bits=w4a8", "bits.norms=8", "bits.embeddings=2"],
)


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=peg", "method.k=4", "calibration=percentile"],
        ["calibration.through=quantized", "calibration=running_minmax", "calibration.padding=included"],
        *(pytest.param(overrides, marks=pytest.mark.slow) for overrides in REUSED),
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_reuse_changes_no_bit_of_any_metric(
    lab: Lab, overrides: list[str], own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Memo()
    lab.trial("bits=w6a6", memo=shared)  # leaves model, data, sketches and FP32 answers behind
    reused = lab.trial(*overrides, memo=shared)
    monkeypatch.setenv("QUANTLAB_CACHE", str(tmp_path / "empty"))
    fresh = lab.trial(*overrides)
    assert untimed(reused) == untimed(fresh)
    np.testing.assert_array_equal(reused.logits, fresh.logits)
    assert reused.tags["key"] == fresh.tags["key"]
    monkeypatch.setenv("QUANTLAB_CACHE", str(own_cache))
    stored = lab.trial(*overrides)  # a new process finds the FP32 answers on disk
    assert untimed(stored) == untimed(fresh)


def test_a_transform_is_calibrated_once_for_all_bits(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[object] = []
    original = planning.observe
    monkeypatch.setattr(planning, "observe", lambda *args: passes.append(args) or original(*args))
    memo = Memo()
    for bits in ("w8a8", "w6a6"):
        lab.trial("transform=hadamard", f"bits={bits}", memo=memo)
    assert len(passes) == 1
    lab.trial("transform=hadamard", "transform.seed=1", memo=memo)
    assert len(passes) == 2


def test_fp32_changes_nothing(lab: Lab) -> None:
    result = lab.trial("method=fp32")
    assert result.metrics["accuracy_drop"] == 0 and result.metrics["agreement_fp32"] == 1
    assert result.metrics["logits_sqnr_db"] is None  # no noise: infinite
    assert result.metrics["size_bytes"] == result.metrics["size_fp32_bytes"]


def test_more_bits_are_closer_to_fp32(lab: Lab) -> None:
    memo = Memo()
    sqnr = [
        lab.trial(f"bits.weights={bits}", f"bits.activations={bits}", memo=memo).metrics["logits_sqnr_db"]
        for bits in (4, 8, 12, 16)
    ]
    assert sqnr == sorted(sqnr) and sqnr[-1] > 50


@pytest.mark.parametrize("engine", ["integer", pytest.param("simulated", marks=pytest.mark.slow)])
def test_a_profile_is_labelled_with_its_engine(lab: Lab, engine: str) -> None:
    quick = [
        "profile=quick",
        "profile.iterations=2",
        "profile.warmup=1",
        "profile.seconds=0",
        "profile.length=16",
    ]
    result = lab.trial(f"engine={engine}", *quick)
    assert set(result.metrics) == CLASSIFICATION | PROFILED | (SPEEDUP if engine == "integer" else set())
    assert result.tags["engine"] == engine


def test_engines_differ_by_rounding_only(lab: Lab) -> None:
    integer, simulated = (
        lab.trial(f"engine={engine}", "placement=gemm") for engine in ("integer", "simulated")
    )
    assert integer.plan == simulated.plan and integer.tags["key"] != simulated.tags["key"]
    assert integer.linears.keys() and not simulated.linears
    np.testing.assert_allclose(integer.logits, simulated.logits, atol=1e-2 * np.ptp(simulated.logits))


OTHERS = [pytest.param(family, marks=pytest.mark.slow) for family in ("distilbert", "electra")]


@pytest.mark.parametrize("family", ["roberta", *OTHERS])
def test_every_family_of_any_depth(lab: Lab, make_model, family: str) -> None:
    folder = make_model(family=family, layers=3)
    for placement in ("all", "gemm", "paper"):
        result = lab.trial(f"model.path={folder}", f"placement={placement}", "bits=w8a8")
        assert len(result.metrics["kurtosis"]) == 4
        assert result.metrics["logits_sqnr_db"] > 0


def test_a_regression_has_its_own_metrics(lab: Lab, make_model, tmp_path: Path) -> None:
    data = tmp_path / "stsb"
    data.mkdir()
    for split in ("train", "validation"):
        frame = pd.DataFrame(
            {"sentence1": ["the cat", "a dog is old"] * 20, "sentence2": ["a cat", "red house"] * 20}
        )
        frame["label"] = np.linspace(0, 5, 40).astype(np.float32)
        frame.to_parquet(data / f"{split}.parquet")
    folder = make_model(labels=("LABEL_0",))
    result = lab.trial("task=stsb", f"task.data_dir={data}", f"model.path={folder}", "evaluation.limit=40")
    assert {"pearson", "spearmanr", "pearson_fp32", "pearson_drop", "pearson_drop_ci95_low"} <= set(
        result.metrics
    )
    assert "accuracy" not in result.metrics and "agreement_fp32" not in result.metrics


BAD = [
    (["method=peg", "method.k=0"], "k must be a whole number of at least 1, got 0"),
    (["method=peg", "method.k=33"], "at most the 32 channels of 0.ffn.in, got 33"),
    (["profile=quick"], "profile.length=128, but the model takes at most 66 tokens here"),
    (
        ["method=peg", "method.permute=rang"],
        "permute must be one of none, range; got 'rang' .did you mean 'range'",
    ),
    (
        ["calibration=percentile", "calibration.percentile=0.1"],
        r"percentile must be in \(50, 100\], got 0.1 .*99.9",
    ),
    (["calibration=percentile", "calibration.percentile=50"], r"in \(50, 100\], got 50"),
    (["bits.weights=1"], "bits.weights: bits must be a whole number in 2..16, got 1"),
    (["bits.activations=17"], "bits.activations: bits must be a whole number in 2..16, got 17"),
    (["bits.rules=[{match:'*.ffn.smu',bits:16}]"], "bits.rules: .*ffn.smu' matches nothing .*ffn.sum"),
    (
        ["method=mixed_precision", "method.keep=['*.fnn.in']"],
        "method.keep: .*fnn.in' matches nothing .*ffn.in",
    ),
    (["method=mixed_precision", "method.format=fp61"], "fp61.*did you mean 'fp16'"),
    (["placement.sites=['2.ffn.*']"], "placement.sites: '2.ffn.*' matches nothing.*layers are 0 to 1"),
    (["task.data_dir=/nowhere"], "/nowhere is no folder"),
    (["model.path=/nowhere"], "/nowhere"),
    (["model.device=cuda"], "no GPU"),
    (["evaluation.limit=0"], "evaluation.limit must be a whole number of at least 1, got 0"),
    (["calibration.samples=97"], "calibration.samples is 97, but the training split has 96 rows"),
    (["calibration.through=quantised"], "did you mean 'quantized'"),
    (
        ["calibration=published_percentile", "bits.weight_granularity=channel"],
        "weight_granularity must be tensor .*'channel'",
    ),
    (
        ["calibration=published_percentile", "bits.weight_estimator=mse"],
        "weight_estimator must be minmax .*got 'mse'",
    ),
]


@pytest.mark.parametrize(
    ("overrides", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_named(lab: Lab, overrides: list[str], message: str) -> None:
    if torch.cuda.is_available() and "device" in overrides[0]:
        pytest.skip("there is a GPU here")
    with pytest.raises((ValueError, OSError, InstantiationException), match=message):
        lab.trial(*overrides)


def test_bad_names_are_found_before_weights_are_read(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantlab.trial.trial.load_material", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ValueError, match="placement.sites"):
        lab.trial("placement.sites=['nothing']")


def test_an_infinite_activation_names_its_site(lab: Lab, tiny_bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in tiny_bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tiny_bert / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.bias"] += 1e38
    weights["bert.encoder.layer.1.attention.output.dense.weight"] *= 1e38
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"NaN or infinite"):
        lab.trial(f"model.path={tmp_path}")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="the trial's folder .* cannot be written"):
        check_writable(tmp_path / "file" / "out")


@pytest.fixture
def real(shared: Path) -> Lab:
    return Lab(
        (
            "model=hf",
            f"model.path={shared}/models/minilm-qnli",
            "task=qnli",
            f"task.data_dir={shared}/data/glue/qnli",
            "evaluation.limit=160",
            "calibration.samples=16",
            "profile=off",
            "tracking=off",
            "bits.symmetric=true",
        )
    )


@pytest.mark.slow
def test_a_real_model_collapses_and_recovers_as_published(real: Lab) -> None:
    memo = Memo()
    rows = {
        "w8a8": [],
        "mixed": ["method=mixed_precision", f"method.keep={XHY}"],
        "gemm": ["placement=gemm"],
        "published": ["calibration=published_percentile", "calibration.percentile=99.9"],
    }
    results = {name: real.trial(*overrides, memo=memo) for name, overrides in rows.items()}
    assert results["w8a8"].metrics["agreement_fp32"] < 0.65
    assert results["mixed"].metrics["agreement_fp32"] > 0.85
    assert results["gemm"].metrics["agreement_fp32"] > 0.85
    assert results["published"].metrics["constant_prediction"] == 1
    assert {"constant_prediction", "one_sided_range"} <= {alarm.name for alarm in results["published"].alarms}
