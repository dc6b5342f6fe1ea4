"""Clipped softmax and gated attention: plain attention at their start, whole checkpoints, every engine."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from checkpoints import edit_config, load
from conftest import MakeModel
from families import CASES, CONFIGS, answers, batch_of, model_of
from safetensors.torch import load_file, save_file
from test_families import plan_of
from tiny import ALL, GEMM, logits, padded, sites_of, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from quantlab.engines.insert import insert
from quantlab.kernels import attend as kernel
from quantlab.network import attention as registered
from quantlab.network import checkpoint
from quantlab.network.architecture import all_sites
from quantlab.network.changed_attention import GATES, KEY, ChangedAttention, Clipped, Gated
from quantlab.network.gate import Gate
from quantlab.network.taps import Probs, tapped
from quantlab.plan.plan import QuantPlan
from quantlab.tasks.heads import CLASSES, IMAGES, TOKENS, auto_class

PLAIN = {"clipped": Clipped(gamma=0.0, zeta=1.0), "gated": Gated()}
STRONG = {"clipped": Clipped(gamma=-0.3, zeta=1.05), "gated": Gated()}
FIRST = f"{GATES}.0.weight"
each_change = pytest.mark.parametrize("kind", PLAIN)
cases = pytest.mark.parametrize("name, head", CASES, ids=[" ".join(case) for case in CASES])


def refused(name: str, kind: str) -> bool:
    """DeBERTa's attention is no registered function."""
    return kind == "clipped" and name.startswith("deberta")


def test_passes_side_by_side_keep_their_own_gates() -> None:
    gate, both = Gate(heads=2, width=3, scale=1.0), Barrier(2)
    torch.nn.init.normal_(gate.weight)
    context, inputs = torch.ones(1, 4, 6), [torch.randn(1, 4, 6) for _ in range(2)]

    @torch.no_grad()
    def run(x: Tensor) -> Tensor:
        gate.read(gate, (x,), {})
        both.wait(timeout=60)
        return gate.multiply(gate, (context,))[0]  # type: ignore[no-any-return]

    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(run, inputs))
    for x, output in zip(inputs, outputs, strict=True):
        torch.testing.assert_close(output, gate(x).repeat_interleave(3, -1))
    assert not gate.opened


def disturb(model: PreTrainedModel) -> None:
    """Gates that are neither open nor alike."""
    random = torch.Generator().manual_seed(1)
    for name, value in model.named_parameters():
        if name.startswith(GATES):
            value.data = torch.randn(value.shape, generator=random)


def changed(name: str, head: str, change: ChangedAttention) -> PreTrainedModel:
    model = copy.deepcopy(model_of(name, head))
    change.install(model)
    disturb(model) if change is STRONG["gated"] else None
    return model.requires_grad_(False).eval()


@each_change
@cases
def test_the_start_is_plain_attention_to_the_bit(name: str, head: str, kind: str) -> None:
    if refused(name, kind):
        with pytest.raises(ValueError, match=r"DebertaV2\w+ computes attention by itself: clipped softmax"):
            changed(name, head, PLAIN[kind])
        return
    plain = model_of(name, head)
    own = name == "mpnet" and kind == "clipped"  # MPNet sums scores, mask and positions in another order
    with tapped(plain, {site.tap: torch.clone for site in sites_of(plain, ALL)} if own else {}):
        expected = answers(plain, head)
    assert torch.equal(answers(changed(name, head, PLAIN[kind]), head), expected)


@each_change
@cases
def test_engines_agree_under_every_tap_and_in_a_copy(name: str, head: str, kind: str) -> None:
    if refused(name, kind):
        pytest.skip("refused by name")
    model = changed(name, head, STRONG[kind])
    fp32 = answers(model, head)
    size = fp32.abs().max()
    assert (fp32 - answers(model_of(name, head), head)).abs().max() > 0.002 * size
    assert torch.equal(answers(copy.deepcopy(model), head), fp32)
    for placement in (ALL, GEMM):
        with tapped(model, {site.tap: torch.clone for site in sites_of(model, placement)}):
            under_taps = answers(model, head)
        rounding = 1e-6 if name == "mpnet" else 0.0  # it sums scores, mask and positions in another order
        torch.testing.assert_close(under_taps, fp32, rtol=0, atol=rounding)
        plan, results = plan_of(model, head, placement, 8), []
        for engine in ("simulated", "integer"):
            with insert(model, plan, engine):
                results.append(answers(model, head))
        assert (results[0] - results[1]).abs().max() < 0.05 * size
        assert 0 < (results[0] - fp32).square().mean().sqrt() < 0.1 * size
    assert torch.equal(answers(model, head), fp32)


def test_probabilities_are_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their tap sees them clipped, in every layer, and no kernel that does not clip runs."""
    model, seen = tiny_model(), []
    plain, keep = [], lambda kept: lambda x: kept.append(x.clone()) or x
    taps = [site.tap for site in all_sites(model) if isinstance(site.tap, Probs) and "probs" in site.name]
    with tapped(model, {taps[0]: keep(plain)}):
        logits(model, padded())
    Clipped(gamma=-0.1, zeta=1.05).install(model)
    monkeypatch.setattr(registered, "attend", lambda *_: pytest.fail("a kernel without clipping"))
    assert registered.attend is not kernel.attend
    with tapped(model, {tap: keep(seen) for tap in taps}):
        logits(model, padded())
    assert len(seen) == len(taps) == 2
    torch.testing.assert_close(seen[0], (1.15 * plain[0] - 0.1).clamp(0, 1))
    assert all((x == 0).float().mean() > 0.1 for x in seen)
    with insert(model, plan_of_bert(model)):
        logits(model, padded())
    model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="has clipped softmax, which attention 'sdpa' does not compute"):
        logits(model, padded())


def plan_of_bert(model: PreTrainedModel) -> QuantPlan:
    return plan_of(model, CLASSES, ALL, 8)


def test_a_gate_multiplies_its_heads_context() -> None:
    """Against the formula, in the second layer."""
    model, seen = tiny_model(), {}
    Gated(scale=1.5).install(model)
    disturb(model)
    model.requires_grad_(False)
    layer, gate = model.bert.encoder.layer[1].attention, model.get_submodule(f"{GATES}.1")
    layer.self.register_forward_hook(lambda _, inputs, output: seen.update(x=inputs[0], context=output[0]))
    layer.output.dense.register_forward_pre_hook(lambda _, inputs: seen.update(gated=inputs[0]))
    logits(model, padded())
    heads, width = gate.weight.shape
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        opened = 1.5 * torch.sigmoid(seen["x"][..., part] @ gate.weight[head] + gate.bias[head])
        torch.testing.assert_close(
            seen["gated"][..., part], seen["context"][..., part] * opened.unsqueeze(-1)
        )


@pytest.mark.parametrize("name, head", [("bert", CLASSES), ("gpt2", TOKENS), ("vit", IMAGES)])
def test_a_gates_gradient_is_not_zero_at_its_start(name: str, head: str) -> None:
    model = copy.deepcopy(model_of(name, head))
    Gated().install(model)
    inputs, _ = batch_of(head)
    model(**inputs).logits.square().mean().backward()
    gates = dict(model.get_submodule(GATES).named_parameters())
    assert len(gates) == 4 and all((value.grad != 0).all() for value in gates.values())


SAVED = ["bert", "mpnet", "deberta-v2", "gpt2", "opt", "gpt_neox", "llama", "vit", "dinov2", "gemma2"]


@each_change
@pytest.mark.parametrize("name", SAVED)
def test_saved_and_read_back_it_answers_alike(name: str, kind: str, tmp_path: Path) -> None:
    """transformers saves ViT's tensors by other names, and GPT-2's Linears as Conv1D."""
    if refused(name, kind):
        pytest.skip("refused by name")
    build, settings, heads = CONFIGS[name]
    torch.manual_seed(0)
    model = auto_class(heads[0]).from_config(build(**settings), attn_implementation="eager").eval()
    STRONG[kind].install(model)
    disturb(model)
    model.config.use_cache = False
    fp32 = answers(model, heads[0])
    with checkpoint.quiet():
        model.save_pretrained(tmp_path)
    found, missing = checkpoint.read_model(tmp_path, heads[0])
    found.config.use_cache = False
    torch.testing.assert_close(answers(found.eval(), heads[0]), fp32, rtol=1e-5, atol=1e-6)
    names = {each for each, _ in found.named_parameters() if each.startswith(GATES)}
    assert not missing and len(names) == (4 if kind == "gated" else 0)
    assert getattr(found.config, KEY)["kind"] == STRONG[kind].kind


@pytest.fixture
def folder(make_model: MakeModel, tmp_path: Path) -> Path:
    """A checkpoint with gates; the tokenizer is the plain one's."""
    start = make_model()
    model, _ = checkpoint.read_network(start)
    Gated().install(model)
    disturb(model)
    for file in start.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with checkpoint.quiet():
        model.save_pretrained(tmp_path)
    return tmp_path


def test_a_model_spec_reads_it(folder: Path, make_model: MakeModel) -> None:
    loaded = load(folder)
    model, batch = loaded.model, padded()
    assert loaded.tags["attention"] == "gated, scale 2.0"
    gates = [value for name, value in model.named_parameters() if name.startswith(GATES)]
    assert len(gates) == 4 and all(value.any() for value in gates)
    assert not torch.equal(logits(model, batch), logits(load(make_model()).model, batch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "gatde", "scale": 2.0}, r"knows the kinds clipped_softmax, gated; got 'gatde' \(did you"),
        ("gated", r"quantlab_attention must be an object with a kind and its settings, got 'gated'"),
        ({"kind": "gated", "scale": 2.0, "mlp": 4}, r"gated has scale; got scale, mlp"),
        ({"kind": "clipped_softmax", "gamma": -0.1}, r"clipped_softmax has gamma, zeta; got gamma"),
        ({"kind": "clipped_softmax", "gamma": 0.1, "zeta": 1}, r"gamma must be at most 0, got 0\.1"),
        ({"kind": "clipped_softmax", "gamma": "a", "zeta": 1}, r"gamma must be a finite number, got 'a'"),
        ({"kind": "clipped_softmax", "gamma": 0, "zeta": 0.9}, r"zeta must be at least 1, got 0\.9"),
        ({"kind": "gated", "scale": 0}, r"scale must be above 0, got 0"),
    ],
    ids=str,
)
def test_what_this_version_does_not_know_is_refused_before_weights_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: object, message: str
) -> None:
    edit_config(folder, **{KEY: change})
    monkeypatch.setattr(checkpoint, "read_model", lambda *_: pytest.fail("read the weights"))
    with pytest.raises(ValueError, match=message) as error:
        load(folder)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


def test_gates_that_are_not_whole_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = load_file(file)
    for change, message in (
        ({FIRST: None}, rf"no tensor {FIRST} is stored, which {KEY} asks for"),
        ({FIRST: torch.zeros(4, 3)}, rf"{FIRST} has shape \[4, 3\], {KEY} asks for \[4, 8\]"),
        ({FIRST: torch.full((4, 8), torch.nan)}, rf"{FIRST} holds NaN or infinity"),
    ):
        tensors = {name: value for name, value in {**whole, **change}.items() if value is not None}
        save_file(tensors, file, metadata={"format": "pt"})
        for read in (load, checkpoint.read_model):
            with pytest.raises(ValueError, match=message):
                read(folder)
    save_file(whole, file, metadata={"format": "pt"})
    content = json.loads((folder / "config.json").read_text())
    del content[KEY]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"has no {GATES}"):
        load(folder)


def test_heads_that_do_not_divide_the_input_and_a_forgotten_change_are_refused() -> None:
    model = tiny_model()
    model.config.num_attention_heads = 5
    with pytest.raises(
        ValueError, match="32 channels of a layer's input into equal parts: BertFor.* 5 heads"
    ):
        Gated().install(model)
    model = tiny_model()
    plan = plan_of_bert(model)
    setattr(model.config, KEY, {"kind": "gated", "scale": 2.0})
    forgotten = pytest.raises(ValueError, match="checkpoint's attention is gated, and this BertFor.* plain")
    with forgotten, insert(model, plan):
        pass
    setattr(model.config, KEY, None)
    Gated().install(model)
    with pytest.raises(ValueError, match="is gated already: training=plain trains it further"):
        STRONG["clipped"].check_start(model)
