"""The walk through a network's Linears: each step sees what a whole pass through the same network sees."""

import copy
from functools import cache, partial

import numpy as np
import pytest
import torch
import transformers as hf
from tiny import FAMILIES, padded, planned, state, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from quantlab.calibration.moments import Moments, PairedMoments, moments, paired_moments
from quantlab.calibration.prefix import Network, Step, steps_of, walk
from quantlab.engines.insert import quantizer
from quantlab.methods.uniform import Uniform
from quantlab.network.conversion import conv1d_to_linear
from quantlab.network.sites import Placement
from quantlab.network.taps import ModuleInput, tapped
from quantlab.tasks.batching import Batch
from quantlab.tasks.heads import IMAGES, TOKENS, auto_class

SIZES = {"vocab_size": 20, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT = {**SIZES, "intermediate_size": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LOCAL = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention", "full_attention"]}
OTHERS = {
    "gpt2": hf.GPT2Config(vocab_size=20, n_embd=32, n_layer=3, n_head=4, n_positions=66),
    "opt-350m": hf.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False),
    "gpt_neox": hf.GPTNeoXConfig(**TEXT),
    "llama": hf.LlamaConfig(**TEXT, num_key_value_heads=2, tie_word_embeddings=True),
    "gemma3": hf.Gemma3TextConfig(**TEXT, **LOCAL, num_key_value_heads=2, head_dim=8),
    "vit": hf.ViTConfig(**TEXT, image_size=16, patch_size=8),
}
LENGTHS = ((9, 4, 1), (6, 2), (5, 5))  # of the rows of three batches
families = pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])


@cache
def model_of(family: str) -> PreTrainedModel:
    if family not in OTHERS:
        return tiny_model(family, layers=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto_class(IMAGES if family == "vit" else TOKENS).from_config(OTHERS[family])
        for value in model.parameters():
            value.data = torch.randn_like(value) * (value.shape[-1] ** -0.5 if value.ndim > 1 else 0.3)
    model.config.use_cache = False
    return conv1d_to_linear(model).requires_grad_(False).eval()


def batches_of(family: str) -> list[Batch]:
    if family == "vit":
        random = torch.Generator().manual_seed(0)
        pictures = [torch.randn(2, 3, 16, 16, generator=random) for _ in range(3)]
        return [Batch(inputs={"pixel_values": x}, indices=np.arange(2)) for x in pictures]
    return [padded(lengths, seed) for seed, lengths in enumerate(LENGTHS)]


def seen(_: Step, __: int, x: Tensor) -> Moments:
    return moments(x)


def whole_pass(model: PreTrainedModel, batches: list[Batch], linear: str) -> Moments:
    """The moments of what a Linear reads in passes through the whole model."""
    found: list[Moments] = []

    def look(mask: Tensor | None, x: Tensor) -> Tensor:
        found.append(moments(ModuleInput(linear).elements(x, mask)))
        return x

    for batch in batches:
        mask = batch.inputs.get("attention_mask")
        functions = {ModuleInput(linear): partial(look, None if mask is None else mask.bool())}
        with tapped(model, functions), torch.no_grad():
            model(**batch.inputs)
    return found[0] + found[1] + found[2]


def coarse(model: PreTrainedModel, linears: tuple[str, ...]) -> None:
    """Rounds the Linears' weights to multiples of 1/8."""
    for path in linears:
        weight = model.get_submodule(path).weight
        weight.data = (8 * weight.data).round() / 8


@families
def test_steps_are_the_linears_in_the_networks_order(family: str) -> None:
    model = model_of(family)
    steps = steps_of(model, batches_of(family)[0])
    paths = [path for step in steps for path in step.linears]
    assert sorted(paths) == sorted(p for p, m in model.named_modules() if isinstance(m, nn.Linear))
    assert [step.layer for step in steps] == sorted(step.layer for step in steps)
    assert {step.layer for step in steps} >= {0, 1, 2, 3}


def test_query_key_and_value_are_one_step() -> None:
    sizes = [len(step.linears) for step in steps_of(model_of("llama"), batches_of("llama")[0])]
    assert sizes == [*3 * [3, 1, 2, 1], 1]
    assert [len(step.linears) for step in steps_of(model_of("gpt2"), padded())] == [1] * 13


@families
def test_a_step_sees_what_a_whole_pass_through_the_same_network_sees(family: str) -> None:
    """Of the network whose earlier Linears are quantized, and of the original beside it."""
    original, batches = model_of(family), batches_of(family)
    before = state(original)
    model = copy.deepcopy(original)
    networks = [Network(original), Network(model)]

    def both(_: Step, __: int, x: Tensor, y: Tensor) -> PairedMoments:
        return paired_moments(x, y)

    for step, pair in walk(networks, batches, steps_of(model, batches[0]), both):
        for linear in step.linears:
            expected = whole_pass(model, batches, linear)
            assert expected.count == pair.seen.count
            assert torch.equal(expected.gram, pair.seen.gram)
            assert torch.equal(whole_pass(original, batches, linear).total, pair.original)
        coarse(model, step.linears)
    assert state(original) == before


@pytest.mark.parametrize("at", ["tensor", "operand"])
def test_sites_before_the_step_are_quantized(at: str) -> None:
    model, batches = tiny_model("bert", layers=3), batches_of("bert")
    plan = planned(model, Placement(at=at), Uniform(), activations=4)
    functions = {item.tap: quantizer(item, model.device, item.tap.overwrites) for item in plan.activations}
    steps = steps_of(model, batches[0])
    found = {step.linears[0]: pair for step, pair in walk([Network(model, functions)], batches, steps, seen)}
    plain = {step.linears[0]: pair for step, pair in walk([Network(model)], batches, steps, seen)}
    with tapped(model, functions):
        for linear, pair in found.items():
            assert torch.equal(pair.gram, whole_pass(model, batches, linear).gram)
            assert not torch.equal(pair.gram, plain[linear].gram)


def test_the_same_to_the_bit_for_any_number_of_threads(request: pytest.FixtureRequest) -> None:
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    model, batches = model_of("llama"), batches_of("llama")
    steps = steps_of(model, batches[0])
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        results.append([pair.gram for _, pair in walk([Network(model)], batches, steps, seen)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_padding_counts_if_asked_for() -> None:
    model, batches = model_of("bert"), batches_of("bert")
    step = steps_of(model, batches[0])[0]
    counts = [
        next(iter(walk([Network(model)], batches, [step], seen, count_padding)))[1].count
        for count_padding in (False, True)
    ]
    assert counts == [sum(map(sum, LENGTHS)), sum(max(lengths) * len(lengths) for lengths in LENGTHS)]


def test_layers_before_the_step_do_not_run_again() -> None:
    model, batches = tiny_model("bert", layers=3), batches_of("bert")
    runs, steps = [0, 0, 0], steps_of(model, batches[0])

    def count(layer: int, *_: object) -> None:
        runs[layer] += 1

    for index, layer in enumerate(model.bert.encoder.layer):
        layer.attention.register_forward_pre_hook(partial(count, index))
    for _ in walk([Network(model)], batches, steps, seen):
        pass
    # Four steps of a layer, and one pass that goes on to the next layer or to the head.
    assert runs == [5 * len(batches)] * 3
