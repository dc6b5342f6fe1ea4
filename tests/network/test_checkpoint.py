"""Checkpoint files good and bad: what is read, what is refused, and what the message says."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import load, tokenizer_of
from conftest import WORDS, MakeModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from quantlab.network import checkpoint, checkpoint_files
from quantlab.network.checkpoint_sources import Pretrained
from quantlab.network.models import Checkpoint
from quantlab.network.processors import read_tokenizer


def test_the_fingerprint_names_weights_config_and_tokenizer_but_not_the_place(
    tiny_bert: Path, copy: Path
) -> None:
    seen = [checkpoint_files.fingerprint(tiny_bert)]
    assert checkpoint_files.fingerprint(copy) == seen[0]
    for change in ("config.json", "model.safetensors", "tokenizer.json"):
        with (copy / change).open("ab") as file:
            file.write(b" ")
        seen.append(checkpoint_files.fingerprint(copy))
    assert len(set(seen)) == 4


def test_missing_and_misshapen_tensors_are_named(copy: Path) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    lost = tensors.pop("bert.encoder.layer.1.output.dense.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks bert\.encoder\.layer\.1\.output\.dense\.weight"):
        load(copy)
    save_file(tensors | {"bert.encoder.layer.1.output.dense.weight": lost.T.contiguous()}, file)
    with pytest.raises(
        ValueError, match=r"dense\.weight has shape \[64, 32\], config\.json asks for \[32, 64\]"
    ):
        load(copy)


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Puts other tensors into the folder's weight file."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def prefixed(prefix: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def besides(*names: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: tensors | {name: torch.ones(3) for name in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (prefixed("module."), r"tensors' names begin with module\. \(module\.bert\."),
        (prefixed("_orig_mod.module."), r"begin with _orig_mod\.module\. "),
        (
            besides("bert.encoder.layer.0.attention.self.distance_embedding.weight"),
            r"bert with 2 layers, as config\.json describes it, has no "
            r"bert\.encoder\.layer\.0\.attention\.self\.dist",
        ),
        (
            besides("bert.encoder.layer.0.adapter.down.weight"),
            r"has no bert\.encoder\.layer\.0\.adapter\.down\.weight",
        ),
        (
            besides(*(f"bert.encoder.layer.2.output.{n}.bias" for n in range(9))),
            r"2 layers.* has no .* and 4 more",
        ),
    ],
    ids=["module", "compiled", "relative positions", "adapter", "third layer"],
)
def test_tensors_that_no_module_takes_are_refused_before_weights_are_read(
    copy: Path, monkeypatch: pytest.MonkeyPatch, change: Callable, message: str
) -> None:
    rewritten(copy, change)
    with pytest.raises(ValueError, match=message) as refused:
        checkpoint.read_model(copy)
    assert "finetune" not in str(refused.value)
    monkeypatch.setattr(checkpoint, "read_model", lambda *_: pytest.fail("read the weights"))
    with pytest.raises(ValueError, match=message):
        load(copy)


@pytest.mark.parametrize(
    ("family", "config"), [("bert", "distilbert"), ("distilbert", "bert"), ("roberta", "electra")]
)
def test_another_familys_weights_are_named_so(
    make_model: MakeModel, family: str, config: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(make_model(config), tmp_path / "model"))
    shutil.copy(make_model(family) / "model.safetensors", folder)
    with pytest.raises(
        ValueError, match=rf"weights of another family than config\.json's {config}: {family}\."
    ):
        load(folder)


def test_leftovers_that_no_answer_depends_on_change_nothing(copy: Path) -> None:
    """Old names of LayerNorm's weights, a buffer of positions, and pretraining's heads."""
    plain = load(copy).model.state_dict()

    def old(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = {name: re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name) for name in tensors}
        renamed = {
            re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", names[name]): tensors[name] for name in tensors
        }
        leftovers = ("bert.embeddings.position_ids", "cls.predictions.bias", "cls.seq_relationship.weight")
        return besides(*leftovers)(renamed)

    rewritten(copy, old)
    found = load(copy).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())


def test_a_pooler_that_the_head_does_not_use_is_harmless(make_model: MakeModel, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make_model("roberta"), tmp_path / "model"))
    rewritten(folder, besides("roberta.pooler.dense.weight", "lm_head.bias"))
    load(folder)


def test_weights_that_are_not_numbers_are_refused(copy: Path) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    tensors["classifier.weight"][0, 0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"classifier\.weight holds NaN or infinity"):
        load(copy)


@pytest.mark.parametrize(
    "content", [b"", b"garbage, and more of it", None], ids=["empty", "garbage", "truncated"]
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_broken_weight_files_are_named(copy: Path, name: str, content: bytes | None) -> None:
    as_pickle(copy)
    whole = (copy / "saved").read_bytes() if name.endswith("bin") else (copy / "kept").read_bytes()
    (copy / name).write_bytes(whole[:-1000] if content is None else content)
    with pytest.raises(ValueError, match=f"{name}"):
        load(copy)


def as_pickle(folder: Path) -> None:
    """Moves the weights out of the way: ``kept`` is the safetensors file, ``saved`` the same as torch saves
    it."""
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


def sharded(folder: Path) -> None:
    """Splits the weights into two shards with their index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("form", ["safetensors", "shards", "bin"])
def test_what_is_fingerprinted_is_what_is_read(copy: Path, form: str) -> None:
    """Variants, other formats and stray shards do not matter; every byte that is read does."""
    if form == "shards":
        sharded(copy)
    if form == "bin":
        as_pickle(copy)
        (copy / "saved").rename(copy / "pytorch_model.bin")
    files, alone = checkpoint_files.weight_files(copy), checkpoint_files.fingerprint(copy)
    plain = load(copy).model.state_dict()
    for name in (
        "model.fp16.safetensors",
        "model-00001-of-00005.safetensors",
        "pytorch_model-00001-of-00002.bin",
    ):
        (copy / name).write_bytes(b"not read")
    assert checkpoint_files.weight_files(copy) == files
    assert checkpoint_files.fingerprint(copy) == alone
    read = load(copy).model.state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in plain.items())
    for path in files:
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        assert checkpoint_files.fingerprint(copy) != alone
        path.write_bytes(before)


def test_variants_alone_missing_shards_and_shards_elsewhere_are_named(copy: Path) -> None:
    sharded(copy)
    (copy / "model-00002-of-00002.safetensors").rename(copy / "kept")
    with pytest.raises(
        FileNotFoundError, match=r"lists shards that are not there: model-00002-of-00002\.safetensors"
    ):
        load(copy)
    index = copy / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002", "../model-00002"))
    with pytest.raises(
        ValueError, match=r"index\.json cannot be used: '\.\./model-00002.* is no file beside it"
    ):
        load(copy)
    index.unlink()
    (copy / "model-00001-of-00002.safetensors").rename(copy / "model.fp16.safetensors")
    with pytest.raises(
        FileNotFoundError, match=r"no weights: expected model\.safetensors.*not read: model\.fp16\.saf"
    ):
        load(copy)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_git_lfs_pointers_are_named(copy: Path, name: str) -> None:
    (copy / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n")
    with pytest.raises(ValueError, match=rf"{name} is a Git LFS pointer.*git lfs pull"):
        load(copy)


def test_an_adapter_beside_a_checkpoint_or_alone_is_refused(copy: Path) -> None:
    (copy / "adapter_config.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"holds an adapter \(adapter_config\.json\).*merge_and_unload"):
            load(copy)
        (copy / "config.json").unlink(missing_ok=True)


def test_a_folder_of_checkpoints_names_them(copy: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json.*these folders in it have one: model"):
        load(copy.parent)


class Payload:
    """Unpickling it would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))]
)
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
        (
            '{"model_type": "bert", "position_embedding_type": "relative_key"}',
            "relative_key.*absolute positions only",
        ),
        (
            '{"model_type": "bert", "pruned_heads": {"0": [1], "3": [2]}}',
            "pruned_heads lists heads of layers 0, 3",
        ),
        (
            '{"model_type": "bert", "transformers_weights": "x.safetensors"}',
            "transformers_weights.*x.safetensors",
        ),
        ('{"model_type": "bert", "quantization_config": {"quant_method": "gptq"}}', r"quantized already"),
    ],
)
def test_broken_configs_are_named(copy: Path, text: str, message: str) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        checkpoint.read_config(copy)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_missing_files_are_named(copy: Path, lost: str, message: str) -> None:
    (copy / lost).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load(copy)


def test_a_broken_tokenizer_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load(copy)


def test_a_tokenizer_without_a_pad_token_is_refused(copy: Path) -> None:
    tokenizer_of(copy, WORDS)
    backend = read_tokenizer(copy).backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(copy)
    with pytest.raises(ValueError, match=r"no pad token: name it as pad_token in tokenizer_config\.json"):
        load(copy)


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/model", "~/nowhere", "a/b/c", "{parent}/nowhere"])
def test_a_missing_folder_is_never_looked_up_on_the_hub(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_files, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
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


@pytest.mark.parametrize(
    "weights", ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
)
def test_of_the_hub_only_what_is_read_is_downloaded(
    copy: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    asked: list[list[str]] = []

    def download(name: str, *, revision: str, allow_patterns: list[str]) -> str:
        assert (name, revision) == ("owner/name", "v1")
        asked.append(allow_patterns)
        return str(copy)

    if weights.endswith("json"):
        sharded(copy)
    if weights.endswith("bin"):
        as_pickle(copy)
        (copy / "saved").rename(copy / weights)
    monkeypatch.setattr(checkpoint_files, "snapshot_download", download)
    loaded = load("owner/name", revision="v1")
    assert loaded.tags["checkpoint"] == "owner/name@v1"
    pickles = [pattern for patterns in asked for pattern in patterns if ".bin" in pattern]
    assert bool(pickles) == weights.endswith("bin")
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert asked[1:] == (
        [shards] if weights.endswith("json") else [list(checkpoint_files.PICKLES)] if pickles else []
    )
