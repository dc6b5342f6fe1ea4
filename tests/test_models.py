"""Checkpoints good and bad: what is read, what is refused, and what the message says."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MakeModel
from safetensors.torch import load_file, save_file
from transformers import BertModel

from quantlab import checkpoint
from quantlab.labels import label_columns
from quantlab.models import Checkpoint, FineTuned, Loaded, Packaged, Pretrained, Recipe
from quantlab.tasks.base import Task
from quantlab.tasks.glue import Glue

QNLI = ("entailment", "not_entailment")


def task_of(labels: tuple[str, ...] = QNLI, max_length: int = 32) -> Task:
    metric = "accuracy" if labels else "pearson"
    return Glue(
        name="t", config="qnli", text=("question", "sentence"), labels=labels, metrics=(metric,), max_length=max_length
    )


@pytest.fixture
def copy(tiny_bert: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may break."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


def load(path: Path | str, task: Task | None = None, **settings: str) -> Loaded:
    model, task = Checkpoint(path=str(path), **settings), task or task_of()
    return model.load(model.resolve(task, task.load))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_loaded_model_is_fp32_eager_and_at_rest(tiny_bert: Path) -> None:
    loaded = load(tiny_bert, device="cpu")
    assert loaded.model.dtype == torch.float32
    assert loaded.model.config._attn_implementation == "eager"
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tags == {"label_order": "matched", "checkpoint": str(tiny_bert), "device": "cpu"}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
@pytest.mark.parametrize("layers", [1, 3])
def test_every_family_loads_at_any_depth(make_model: MakeModel, family: str, layers: int) -> None:
    loaded = load(make_model(family, layers), device="cpu")
    assert loaded.model.config.num_hidden_layers == layers
    tokens = loaded.tokenizer("what is the cat", "a red bird", return_tensors="pt")
    assert torch.isfinite(loaded.model(**tokens).logits).all()


def test_half_precision_files_run_in_fp32(copy: Path) -> None:
    file = copy / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    edit_config(copy, dtype="float16")
    assert load(copy).model.dtype == torch.float32


def test_the_fingerprint_names_weights_config_and_tokenizer_but_not_the_place(tiny_bert: Path, copy: Path) -> None:
    seen = [checkpoint.fingerprint(tiny_bert)]
    assert checkpoint.fingerprint(copy) == seen[0]
    for change in ("config.json", "model.safetensors", "tokenizer.json"):
        with (copy / change).open("ab") as file:
            file.write(b" ")
        seen.append(checkpoint.fingerprint(copy))
    assert len(set(seen)) == 4


@pytest.mark.parametrize(
    ("model", "task", "columns", "order"),
    [
        (("entailment", "not_entailment"), QNLI, (0, 1), "matched"),
        (("NOT-Entailment", "Entailment"), QNLI, (1, 0), "matched"),
        (("Contradiction", "Neutral", "Entailment"), ("entailment", "neutral", "contradiction"), (2, 1, 0), "matched"),
        (("LABEL_0", "LABEL_1"), QNLI, (0, 1), "assumed"),
        (("0", "1"), QNLI, (0, 1), "assumed"),
        (("LABEL_0",), (), (0,), "regression"),
    ],
)
def test_label_order(make_model: MakeModel, model: tuple, task: tuple, columns: tuple, order: str) -> None:
    config = checkpoint.read_config(make_model(labels=model))
    assert label_columns(config, task_of(task)) == (columns, order)


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        (("positive", "negative"), QNLI, r"contradict.*\['positive', 'negative'\].*\['entailment', 'not_entailment'\]"),
        (("LABEL_1", "LABEL_0"), QNLI, "contradict"),
        (("entailment", "Entailment"), QNLI, "contradict"),
        (("a", "b", "c"), QNLI, r"3 labels, 2 wanted.*\['a', 'b', 'c'\]"),
        (("LABEL_0", "LABEL_1"), (), "2 labels, 1 wanted.*one score"),
    ],
)
def test_contradicting_labels_are_refused(make_model: MakeModel, model: tuple, task: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(make_model(labels=model), task_of(task))


def test_a_checkpoint_without_a_head_is_refused(copy: Path) -> None:
    with checkpoint.quiet():
        BertModel.from_pretrained(copy).save_pretrained(copy)
    with pytest.raises(ValueError, match=r"lacks classifier\.bias, classifier\.weight.*quantlab\.finetune"):
        load(copy)


def test_missing_and_misshapen_tensors_are_named(copy: Path) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    lost = tensors.pop("bert.encoder.layer.1.output.dense.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks bert\.encoder\.layer\.1\.output\.dense\.weight"):
        load(copy)
    save_file(tensors | {"bert.encoder.layer.1.output.dense.weight": lost.T.contiguous()}, file)
    with pytest.raises(ValueError, match=r"dense\.weight has shape \[64, 32\], config\.json asks for \[32, 64\]"):
        load(copy)


def test_weights_that_are_not_numbers_are_refused(copy: Path) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    tensors["classifier.weight"][0, 0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"classifier\.weight holds NaN or infinity"):
        load(copy)


@pytest.mark.parametrize("content", [b"", b"garbage, and more of it", None], ids=["empty", "garbage", "truncated"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_broken_weight_files_are_named(copy: Path, name: str, content: bytes | None) -> None:
    as_pickle(copy)
    whole = (copy / "saved").read_bytes() if name.endswith("bin") else (copy / "kept").read_bytes()
    (copy / name).write_bytes(whole[:-1000] if content is None else content)
    with pytest.raises(ValueError, match=f"{name}"):
        load(copy)


def as_pickle(folder: Path) -> None:
    """Moves the weights out of the way: ``kept`` is the safetensors file, ``saved`` the same as torch saves it."""
    (folder / "model.safetensors").rename(folder / "kept")
    torch.save(load_file(folder / "kept"), folder / "saved")


def test_bin_weights_are_read_only_without_safetensors(copy: Path) -> None:
    expected = load(copy).model.state_dict()
    as_pickle(copy)
    (copy / "saved").rename(copy / "pytorch_model.bin")
    read = load(copy).model.state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in expected.items())
    (copy / "pytorch_model.bin").write_bytes(b"broken")
    (copy / "kept").rename(copy / "model.safetensors")
    load(copy)


class Payload:
    """Unpickling it would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_pickled_code_is_refused_and_never_run(copy: Path, tmp_path: Path, save: object) -> None:
    as_pickle(copy)
    save({"weight": Payload(tmp_path / "ran")}, copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is corrupt, or holds code, which is never run"):
        load(copy)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"config\.json"),
        ("[]", r"config\.json.*JSON object, got list"),
        ("{}", r"config\.json.*model_type"),
        ('{"model_type": "bertx"}', r"config\.json.*bertx"),
        ('{"model_type": "bert", "hidden_size": "wide"}', r"config\.json.*hidden_size"),
        ('{"model_type": "new", "auto_map": {"AutoConfig": "code.Config"}}', r"config\.json.*custom code"),
        ('{"model_type": "bert", "quantization_config": {"quant_method": "gptq"}}', r"quantized already"),
    ],
)
def test_broken_configs_are_named(copy: Path, text: str, message: str) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        checkpoint.read_config(copy)


@pytest.mark.parametrize(
    ("lost", "message"),
    [("config.json", "no config.json"), ("model.safetensors", "no weights"), ("tokenizer.json", "no tokenizer")],
)
def test_missing_files_are_named(copy: Path, lost: str, message: str) -> None:
    (copy / lost).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load(copy)


def test_a_broken_tokenizer_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load(copy)


def test_a_tokenizer_or_task_too_large_for_the_model_is_refused(make_model: MakeModel, tiny_bert: Path) -> None:
    with pytest.raises(ValueError, match="the tokenizer has 20 tokens, the model only 10"):
        load(make_model(vocab_size=10))
    with pytest.raises(ValueError, match=r"max_length=128.*at most 64 tokens"):
        load(tiny_bert, task_of(max_length=128))


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/model", "~/nowhere", "a/b/c", "{parent}/nowhere"])
def test_a_missing_folder_is_never_looked_up_on_the_hub(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load(path.format(parent=tmp_path.name))


@pytest.mark.parametrize("path", ["", None, 3])
def test_a_path_is_a_text(path: object) -> None:
    with pytest.raises(ValueError, match=f"model path must be a folder or a name on the hub, got {path!r}"):
        Checkpoint(path=path)
    with pytest.raises(ValueError, match="model path"):
        Pretrained(path=path)


def test_offline_the_hub_is_a_clear_error() -> None:
    with pytest.raises(OSError, match=r"owner/name-of-no-model.*no folder here.*Hub did not give it"):
        load("owner/name-of-no-model")


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_of_the_hub_only_what_is_read_is_downloaded(copy: Path, monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    asked: list[list[str]] = []

    def download(name: str, *, revision: str, allow_patterns: list[str]) -> str:
        assert (name, revision) == ("owner/name", "v1")
        asked.append(allow_patterns)
        return str(copy)

    if weights.endswith("bin"):
        as_pickle(copy)
        (copy / "saved").rename(copy / weights)
    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    loaded = load("owner/name", revision="v1")
    assert loaded.tags["checkpoint"] == "owner/name@v1"
    pickles = [pattern for patterns in asked for pattern in patterns if ".bin" in pattern]
    assert bool(pickles) == weights.endswith("bin")


def test_devices() -> None:
    with pytest.raises(ValueError, match=r"device must be one of auto, cpu, cuda; got 'gpu'"):
        Checkpoint(path="x", device="gpu")
    assert Checkpoint(path="x", device="cpu").torch_device() == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_an_error_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match="torch sees no GPU"):
        load("./nowhere", device="cuda")


def test_a_package_that_is_not_installed_names_its_extra() -> None:
    with pytest.raises(FileNotFoundError, match=r"pip install 'quantlab\[demo\]'"):
        Packaged(package="no_such_package", inside="model", extra="demo").folder()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size.*got 2.5"),
        ({"learning_rate": -1.0}, "learning_rate.*got -1.0"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"warmup_fraction": 1.5}, "warmup_fraction must be at most 1, got 1.5"),
        ({"bf16": "yes"}, "bf16 must be one of True, False; got 'yes'"),
    ],
)
def test_recipes_check_themselves(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


def test_a_model_that_is_not_trained_yet_names_the_command(tiny_bert: Path, tiny_glue: Path) -> None:
    recipe = Recipe(epochs=3, learning_rate=5e-5, batch_size=8, warmup_fraction=0, weight_decay=0, seed=1, bf16=False)
    spec = FineTuned(name="bert_base", base=Pretrained(path=str(tiny_bert)), recipe=recipe)
    task = replace(task_of(), name="qnli", data_dir=str(tiny_glue), max_length=128)
    with pytest.raises(FileNotFoundError, match="run python -m quantlab.finetune model=bert_base task=qnli, with"):
        spec.resolve(task, task.load)


def test_the_real_checkpoint_loads(shared: Path) -> None:
    loaded = load(shared / "models" / "minilm-qnli", task_of(max_length=128), device="cpu")
    assert loaded.model.num_parameters() == 22_713_986
    assert loaded.tags["label_order"] == "matched"
