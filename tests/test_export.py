"""The export command on a trial: a whole deployable folder, or one line and nothing. And trials on
runtimes."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import MakeModel
from labs import Lab
from tiny import ALL, padded, plan_of, sites_of, tiny_model
from transformers import AutoConfig, AutoTokenizer

import quantlab.export
from quantlab.calibration.estimators import MinMax
from quantlab.calibration.probe import observe
from quantlab.methods.bits import Bits
from quantlab.methods.method import plan_weights
from quantlab.methods.uniform import Uniform
from quantlab.plan.plan import QuantPlan
from quantlab.runtimes.openvino import OpenVino
from quantlab.runtimes.runtime import INTEGER
from quantlab.storage.memo import Memo
from quantlab.trial.trial import run_trial

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -e '.[onnx]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install -e '.[onnx]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install -e '.[onnx]'")

LABELS = ("entailment", "not_entailment")


@pytest.fixture(scope="module")
def lab(make_model: MakeModel, tiny_glue: Path) -> Lab:
    """A checkpoint whose labels stand in the other order than the task's, and whose answers differ."""
    folder = make_model(layers=1, labels=LABELS[::-1], initializer_range=0.5)
    return Lab(
        (
            "model=hf",
            f"model.path={folder}",
            "task=qnli",
            f"task.data_dir={tiny_glue}",
            "task.max_length=32",
            "evaluation.limit=48",
            "evaluation.order=file",
            "calibration.samples=8",
            "profile=off",
            "tracking=off",
            "placement=gemm",
        )
    )


@pytest.fixture(scope="module")
def finished(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial's folder. Shared: never write into it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:  # made before a test has its own cache
        patch.setenv("QUANTLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        run_trial(lab.config(), Memo()).save(folder)
    return folder


@pytest.fixture(scope="module")
def written(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of it."""
    folder = tmp_path_factory.mktemp("written") / "deep" / "onnx"
    assert quantlab.export.main([str(finished), "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def trial(finished: Path, tmp_path: Path) -> Path:
    """A copy of the trial's folder."""
    return Path(shutil.copytree(finished, tmp_path / "trial"))


@pytest.fixture
def quickly(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that is written is the one that was written before: exporting takes seconds."""

    def copied(_: object, __: object, ___: object, ____: object, folder: Path, _____: object) -> Path:
        return Path(shutil.copy(written / "model.onnx", folder))

    monkeypatch.setattr(quantlab.export, "write_model", copied)


def test_the_folder_is_whole(finished: Path, written: Path) -> None:
    assert {"model.onnx", "tokenizer.json", "tokenizer_config.json", "config.json", "export.json"} <= names(
        written
    )
    assert names(written.parent) == {"onnx"}
    assert written.stat().st_mode & 0o777 == 0o755
    assert AutoConfig.from_pretrained(written).id2label == dict(enumerate(LABELS[::-1]))
    result, summary = (
        json.loads(path.read_text()) for path in (finished / "result.json", written / "export.json")
    )
    notes = {entry.key: entry.value for entry in onnx.load(str(written / "model.onnx")).metadata_props}
    tags = result["tags"]
    expected = {
        "quantlab_key": tags["key"],
        "quantlab_plan": tags["plan_fingerprint"],
        "quantlab_checkpoint": tags["checkpoint_fingerprint"],
    }
    assert expected.items() <= notes.items() and expected.items() <= summary.items()
    assert summary["accuracy"] == result["metrics"]["accuracy"]
    assert summary["agreement_deployed"] >= 0.95
    assert summary["size_onnx_bytes"] == (written / "model.onnx").stat().st_size
    assert summary["arithmetic"] == INTEGER and summary["float_sites"] == "none"


def test_the_line_for_openvino_loads_the_file(written: Path) -> None:
    pytest.importorskip("openvino", reason="needs openvino: pip install -e '.[onnx,openvino]'")
    variables: dict[str, Any] = {}
    exec(OpenVino().python_line(written / "model.onnx"), variables)
    assert variables["session"].outputs[0].any_name == "logits"


def test_what_is_in_the_folder_is_enough_to_answer(finished: Path, written: Path, tiny_glue: Path) -> None:
    """With ONNX Runtime and a tokenizer alone; the columns are the checkpoint's, as its config.json names
    them."""
    import onnxruntime

    rows = pd.read_parquet(tiny_glue / "validation.parquet").head(48)
    texts = (list(rows["question"]), list(rows["sentence"]))
    inputs = AutoTokenizer.from_pretrained(written)(*texts, padding=True, truncation=True, max_length=32)
    session = onnxruntime.InferenceSession(str(written / "model.onnx"), providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == {"input_ids", "attention_mask", "token_type_ids"}
    (logits,) = session.run(None, {name: np.array(values) for name, values in inputs.items()})
    answers = pd.read_parquet(finished / "answers.parquet")
    own = answers[["logit_0", "logit_1"]].to_numpy().argmax(1)
    assert 0 < own.mean() < 1
    assert np.mean(1 - logits.argmax(1) == own) >= 0.95


@pytest.mark.usefixtures("quickly")
def test_it_says_what_it_found_and_where(trial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantlab.export.main([str(trial / "plan.json")]) == 0
    *summary, target, line = capsys.readouterr().out.splitlines()
    assert target == str(trial / "onnx")
    variables: dict[str, Any] = {}
    exec(line.removeprefix("in Python: "), variables)  # what it prints loads the file
    assert [node.name for node in variables["session"].get_outputs()] == ["logits"]
    said = dict(line.split(": ", 1) for line in summary)
    assert {
        "accuracy",
        "accuracy_deployed",
        "agreement_deployed",
        "size_onnx_bytes",
        "runtime",
        "products",
    } <= said.keys()
    assert (
        said.items()
        <= {n: str(v) for n, v in json.loads((trial / "onnx" / "export.json").read_text()).items()}.items()
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refused(capsys: pytest.CaptureFixture[str], trial: Path, *more: str) -> str:
    """The one line that the command fails with; it leaves nothing behind."""
    before = names(trial)
    assert quantlab.export.main([str(trial), *more]) == 1
    assert names(trial) == before
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1, said
    return said[0]


def uniform(layers: int, **bits: object) -> QuantPlan:
    """A plan for a tiny BERT of so many layers."""
    model, calibration, chosen = tiny_model(layers=layers), MinMax(), Bits(**bits)  # type: ignore[arg-type]
    sites, weights = sites_of(model, ALL), plan_weights(model, Uniform(), chosen, calibration)
    return plan_of(Uniform(), sites, observe(model, sites, [padded()]), weights, chosen, calibration)


@pytest.mark.parametrize("missing", ["config.yaml", "plan.json", "answers.parquet", "result.json"])
def test_half_a_trial_is_none(missing: str, trial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trial / missing).unlink()
    assert f"{trial} is no finished trial: it has no {missing}" in refused(capsys, trial)


HOSTILE = (
    {"model": {"_target_": "os.mkdir", "path": "made"}},
    {"_target_": "os.mkdir", "path": "made"},
    {"model": {"_target_": "quantlab.export.shutil.copy", "src": "a", "dst": "made"}},
    {"bits": {"a": [{"_target_": "quantlab.export.main", "arguments": []}]}},
    {"model": {"_target_": "quantlab.nothing.Here"}},
    {"model": {"_target_": "quantlab_evil.Here"}},
    {"model": {"_target_": "quantlab.methods.uniform.Uniform", "_args_": [], "_partial_": True}},
)


@pytest.mark.parametrize("part", HOSTILE, ids=str)
def test_a_trials_folder_builds_nothing_but_quantlabs_own(
    trial: Path,
    part: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((trial / "config.yaml").read_text())
    (trial / "config.yaml").write_text(yaml.safe_dump({**config, **part}))
    assert "config.yaml" in refused(capsys, trial)
    assert not (trial / "made").exists()


def test_a_folder_without_a_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no finished trial: it has no config.yaml" in refused(capsys, tmp_path)


def test_a_target_that_is_there_is_left_alone(trial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trial / "onnx").mkdir()
    (trial / "onnx" / "mine").touch()
    assert f"{trial}/onnx is there already: name another --output, or remove it" in refused(capsys, trial)
    assert names(trial / "onnx") == {"mine"}


def test_a_checkpoint_that_has_changed(
    trial: Path, lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (trial / "config.yaml").read_text()
    checkpoint = next(item.split("=")[1] for item in lab.overrides if item.startswith("model.path="))
    changed = shutil.copytree(checkpoint, tmp_path / "changed")
    (trial / "config.yaml").write_text(config.replace(checkpoint, str(changed)))
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    assert f"{changed} is not the checkpoint that the trial ran on: its fingerprint is" in refused(
        capsys, trial
    )
    shutil.rmtree(changed)
    assert f"model path '{changed}' is no folder" in refused(capsys, trial)


@pytest.mark.parametrize(
    "layers, bits, message",
    [
        (1, {"activations": 6}, "sites have no integer equivalent in ONNX: embed.sum (int6 asymmetric), "),
        (
            2,
            {},
            "the plan is of another model: this one has no "
            "bert.encoder.layer.1.attention.self.query.weight, ",
        ),
    ],
)
def test_a_plan_that_cannot_be_exported(
    layers: int,
    bits: dict[str, object],
    message: str,
    trial: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "plan.json").write_text(uniform(layers, **bits).to_json())
    assert message in refused(capsys, trial, "--plan", str(tmp_path / "plan.json"))


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"version": 1}'])
def test_a_file_that_is_no_plan_is_named(
    text: str, trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.json").write_text(text)
    assert refused(capsys, trial, "--plan", str(tmp_path / "mine.json")).startswith(f"{tmp_path}/mine.json: ")
    assert f"{tmp_path}/none.json" in refused(capsys, trial, "--plan", str(tmp_path / "none.json"))


@pytest.mark.usefixtures("quickly")
def test_answers_that_disagree(trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another plan may give others."""
    answers = pd.read_parquet(trial / "answers.parquet")
    answers.loc[:8, ["logit_0", "logit_1"]] *= -1
    answers.to_parquet(trial / "answers.parquet")
    said = refused(capsys, trial)
    assert re.search(
        r"onnxruntime \S+ gives the trial's answer on (7|8)\d\.\d% of the rows only: nothing", said
    )
    shutil.copy(trial / "plan.json", tmp_path / "plan.json")
    other = ["--plan", str(tmp_path / "plan.json"), "--output", str(tmp_path / "other")]
    assert quantlab.export.main([str(trial), *other]) == 0


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_a_trial_on_a_runtime(runtime: str, lab: Lab) -> None:
    pytest.importorskip(runtime, reason=f"needs {runtime}: pip install -e '.[onnx,openvino]'")
    one_row_in_the_last_batch = ("placement=all", "evaluation.limit=33")
    result = run_trial(lab.config(f"runtime={runtime}", *one_row_in_the_last_batch), Memo())
    size = result.metrics["size_onnx_bytes"]
    assert isinstance(size, float) and result.metrics["size_bytes"] < size < 1_000_000  # type: ignore[operator]
    assert result.metrics["agreement_deployed"] >= 0.95  # type: ignore[operator]
    assert abs(result.metrics["accuracy_deployed"] - result.metrics["accuracy"]) < 0.05  # type: ignore[operator]
    assert result.tags["runtime"].startswith(f"{runtime} ")
    assert result.tags["deployed_products"].endswith(" planned in integers")
    fell_back = (
        result.tags["deployed_arithmetic"] != INTEGER
    )  # ONNX Runtime: the pooler, which reads a cut tensor
    assert fell_back == (runtime == "onnxruntime" and result.config["placement"]["at"] == "tensor")
    assert ("runtime_fell_back" in result.tags["alarms"]) == fell_back


def test_a_trial_in_torch_exports_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantlab.trial.deployed.export_onnx", lambda *_: pytest.fail("torch needs no file"))
    result = run_trial(lab.config(), Memo())
    assert not [name for name in (*result.metrics, *result.tags) if "deployed" in name or "onnx" in name]
    assert "runtime" not in result.tags
