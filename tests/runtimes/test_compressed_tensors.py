"""Folders in the format of compressed-tensors hold the plan's weights to the bit, as its own reader says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import decoder_folder, text
from labs import Lab
from safetensors.torch import load_file
from small import batch_for, made
from torch import Tensor
from transformers import PreTrainedModel

import quantlab.export
from quantlab.calibration.estimators import MinMax
from quantlab.calibration.probe import observe
from quantlab.engines.insert import quantized_weights
from quantlab.methods.bits import Bits
from quantlab.methods.dynamic import Dynamic
from quantlab.methods.method import Method, plan_weights
from quantlab.methods.peg import Peg
from quantlab.methods.uniform import Uniform
from quantlab.network.architecture import all_sites
from quantlab.network.readers import readers
from quantlab.network.sites import Placement
from quantlab.plan.plan import QuantPlan, SiteTransform
from quantlab.quant.basis import Permutation
from quantlab.quant.frozen_tensor import FrozenTensor
from quantlab.results.saved import load_plan
from quantlab.runtimes.compressed import INT, MIXED, PACKED, packed, schemes_of, write_compressed

GROUP = 16
NEEDED = "needs compressed-tensors: pip install -e '.[compressed-tensors]'"


def planned(model: PreTrainedModel, sites: tuple[str, ...], method: Method, **bits: Any) -> QuantPlan:
    """A plan with the min-max ranges of a batch, at the operands that match."""
    chosen = [site for site in Placement(at="operand").select(all_sites(model)) if site.matches(sites)]
    settings, calibration = Bits(**bits), MinMax()
    sketches = observe(model, chosen, [batch_for(model)])
    return QuantPlan(
        activations=method.activations(chosen, sketches, settings, calibration),
        weights=plan_weights(model, method, settings, calibration),
    )


def read_sites(model: PreTrainedModel) -> tuple[str, ...]:
    """The sites that Linears with weights of their own read."""
    return tuple({site for path, site in readers(model).items() if path != "lm_head"})


CASES: dict[str, tuple[Method, dict[str, Any], str]] = {
    "W8A8": (Uniform(), {"symmetric": True}, INT),
    "W8A8, asymmetric, channel": (
        Uniform(),
        {"weight_symmetric": False, "weight_granularity": "channel"},
        INT,
    ),
    "W4A8 per token": (Dynamic(), {"weights": 4, "symmetric": True, "weight_granularity": "channel"}, INT),
    "W8A8 per token, asymmetric, per group": (Dynamic(), {"weight_group": GROUP}, INT),
    "W4A32": (Uniform(), {"weights": 4, "activations": 32}, PACKED),
    "W4A32 per group, asymmetric": (
        Uniform(),
        {"weights": 4, "activations": 32, "weight_group": GROUP, "weight_symmetric": False},
        PACKED,
    ),
    "W3A32 per channel, asymmetric": (
        Uniform(),
        {"weights": 3, "activations": 32, "weight_granularity": "channel", "weight_symmetric": False},
        PACKED,
    ),
    "W4A32, asymmetric": (
        Uniform(),
        {"weights": 4, "activations": 32, "weight_symmetric": False},
        PACKED,
    ),
    "two schemes": (
        Uniform(),
        {"rules": [{"match": "*.ffn.*", "bits": "fp32"}], "symmetric": True},
        MIXED,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_its_own_reader_finds_the_plan_s_weights(name: str, tmp_path: Path) -> None:
    """To the bit; and what has no scheme is stored as the plan has it."""
    pytest.importorskip("compressed_tensors", reason=NEEDED)
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    method, bits, kind = CASES[name]
    model = made("llama")
    plan = planned(model, read_sites(model), method, **bits)
    schemes = write_compressed(model, plan, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["format"] == kind and config["quant_method"] == "compressed-tensors"
    stored = load_file(tmp_path / "model.safetensors")
    found: dict[str, Tensor] = {}
    for group in QuantizationConfig(**config).config_groups.values():
        paths = list(schemes) if group.targets == ["Linear"] else group.targets
        for path in paths:
            names = [name for name in stored if name.startswith(f"{path}.")]
            local = {name.removeprefix(f"{path}."): stored.pop(name) for name in names}
            reader = BaseCompressor.get_value_from_registry(group.format)
            assert set(reader.compression_param_names(group)) <= local.keys()
            found[f"{path}.weight"] = reader.decompress(local, group)["weight"]
            inputs = group.input_activations
            static = inputs is not None and not inputs.dynamic
            assert ("input_scale" in local) == static
            assert ("input_zero_point" in local) == (static and not inputs.symmetric)
    with quantized_weights(model, plan):
        expected = dict(model.named_parameters())
        assert {**stored, **found}.keys() == expected.keys()
        for parameter, value in {**stored, **found}.items():
            torch.testing.assert_close(value, expected[parameter].data, rtol=0, atol=0, msg=parameter)
    assert config["ignore"] == ["lm_head"]


def test_transformers_loads_the_folder(tmp_path: Path) -> None:
    """And answers as the simulation of the weights does."""
    pytest.importorskip("compressed_tensors", reason=NEEDED)
    from transformers import AutoModelForCausalLM

    model = made("llama")
    plan = planned(model, (), Uniform(), weights=4, weight_group=GROUP)
    write_compressed(model, plan, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    inputs = batch_for(model).inputs
    with torch.inference_mode(), quantized_weights(model, plan):
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=1e-5, atol=1e-5)


def test_the_command_writes_a_decoder_s_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole folder, with the integers that the trial's rounding chose; and no folder where it cannot."""
    monkeypatch.setenv("QUANTLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "test.txt").write_text(text(400))
    lab = Lab(
        (
            "model=hf",
            f"model.path={decoder_folder(tmp_path / 'decoder', layers=1)}",
            "task=perplexity",
            f"task.data={tmp_path / 'test.txt'}",
            "task.window=16",
            "evaluation.limit=4",
            "calibration.samples=4",
            "bits=w4a8",
            f"bits.weight_group={GROUP}",
            "placement=gemm",
            "profile=off",
            "tracking=off",
            "model.device=cpu",
        )
    )
    operands = ",".join(f"*.{role}" for role in ("attn.in", "attn.context", "ffn.in", "ffn.mid"))
    lab.trial("rounding=gptq", f"placement.sites=[{operands}]").save(tmp_path / "trial")
    command = ["--format", "compressed-tensors"]
    assert quantlab.export.main([str(tmp_path / "trial"), *command]) == 0
    folder = tmp_path / "trial" / "compressed-tensors"
    said = capsys.readouterr().out
    assert "linears: 7 of 8 in integers" in said and f"LLM('{folder}')" in said
    assert {"config.json", "export.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in folder.iterdir()
    }
    plan = load_plan(tmp_path / "trial")
    stored = load_file(folder / "model.safetensors")
    chosen = {item.parameter: item.integers.tensor for item in plan.weights if item.integers is not None}
    assert len(chosen) == 7
    for parameter, integers in chosen.items():
        assert torch.equal(stored[parameter].float(), integers.float())
    assert quantlab.export.main([str(tmp_path / "trial"), *command]) == 1
    lab.trial().save(tmp_path / "every operand")
    assert quantlab.export.main([str(tmp_path / "every operand"), *command]) == 1
    assert "compressed-tensors quantizes" in capsys.readouterr().err
    assert not (tmp_path / "every operand" / "compressed-tensors").exists()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_packing(bits: int) -> None:
    """Word for word what the package packs."""
    pytest.importorskip("compressed_tensors", reason=NEEDED)
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    half = 1 << bits - 1
    values = torch.randint(-half, half, (3, 37), generator=torch.Generator().manual_seed(0))
    assert torch.equal(packed(values, bits), pack_to_int32(values.to(torch.int8), bits))


@pytest.mark.parametrize(
    "sites, method, bits, message",
    [
        (
            ("*",),
            Uniform(),
            {},
            r"inputs of Linears only: not 0\.attn\.query, .* bits\.rules=\[{match: '\*\.attn",
        ),
        (("final.out",), Uniform(), {}, r"only with its weight, .* not final\.out"),
        (("*.ffn.in",), Peg(sites=("*.ffn.in",), k=3), {}, "no groups of channels, as 0.ffn.in has"),
        (
            ("*.ffn.in",),
            Uniform(),
            {"activations": "fp16"},
            "integers of up to 8 bits for activations: 0.ffn.in is fp16",
        ),
        (("*.ffn.in",), Uniform(), {"weights": 32}, "only with its weight"),
        ((), Uniform(), {"weights": 16}, "nothing to store"),
    ],
)
def test_what_the_format_cannot_say(
    sites: tuple[str, ...], method: Method, bits: dict[str, Any], message: str
) -> None:
    model = made("llama")
    with pytest.raises(ValueError, match=message) as refused:
        schemes_of(model, planned(model, sites, method, **bits))
    assert "\n" not in str(refused.value)


def test_a_change_of_basis_and_transposed_weights_are_refused() -> None:
    model = made("llama")
    basis = Permutation(FrozenTensor(torch.arange(32).flip(0)))
    plan = planned(model, (), Uniform())
    based = replace(plan, transforms=(SiteTransform(site="0.attn.in", basis=basis, weights=()),))
    with pytest.raises(ValueError, match="no change of basis, as at 0.attn.in: transform=none"):
        schemes_of(model, based)
    other = made("gpt2 with classes")
    with pytest.raises(ValueError, match="has Conv1D"):
        schemes_of(other, planned(other, (), Uniform()))
