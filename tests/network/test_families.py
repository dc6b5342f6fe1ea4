"""Contracts of every family and head, on tiny random networks."""

from collections import defaultdict
from functools import cache, partial
from inspect import signature

import pytest
import torch
import transformers as hf
from tiny import ALL, GEMM, sites_of, state
from torch import Tensor, nn
from transformers import PreTrainedModel

from quantlab.engines.insert import insert
from quantlab.network.architecture import all_sites, family_of
from quantlab.network.attention import attention
from quantlab.network.conversion import conv1d_to_linear
from quantlab.network.readers import readers
from quantlab.network.sites import Placement
from quantlab.network.taps import Key, Probs, Query, RelativePositions, Tap, Value, tapped
from quantlab.network.unlisted import ROLES
from quantlab.plan.plan import ActivationQuant, QuantPlan, WeightQuant
from quantlab.quant.grid import AffineGrid
from quantlab.tasks.heads import CLASSES, IMAGES, TOKENS, auto_class

IDS = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**IDS, **SIZES, "intermediate_size": 48, "max_position_embeddings": 66}
GROUPED = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
OPT = {**IDS, **SIZES, "ffn_dim": 48, "max_position_embeddings": 66, "word_embed_proj_dim": 32}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 8}
GPT2 = {**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 66}
NARROW = {"word_embed_proj_dim": 16, "do_layer_norm_before": False}
LOCAL = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
SPECIAL = {"cls_token_id": 1, "sep_token_id": 2}
DEIT = {"architectures": ["DeiTForImageClassification"]}
RELATIVE = {"relative_attention": True, "position_buckets": 4, "pos_att_type": ["c2p", "p2c"]}
DEBERTA = {**TEXT, **RELATIVE, "norm_rel_ebd": "layer_norm", "embedding_size": 16}
LABELS, WORDS, PICTURES = (CLASSES,), (TOKENS, CLASSES), (IMAGES,)
CONFIGS = {
    "bert": (hf.BertConfig, TEXT, LABELS),
    "roberta": (hf.RobertaConfig, TEXT, LABELS),
    "xlm-roberta": (hf.XLMRobertaConfig, TEXT, LABELS),
    "camembert": (hf.CamembertConfig, TEXT, LABELS),
    "deberta-v2": (hf.DebertaV2Config, DEBERTA, LABELS),
    "deberta-v2 shared": (hf.DebertaV2Config, {**DEBERTA, "share_att_key": True}, LABELS),
    "mpnet": (hf.MPNetConfig, TEXT, LABELS),
    "gpt2": (hf.GPT2Config, GPT2, WORDS),
    "opt": (hf.OPTConfig, OPT, WORDS),
    "opt-350m": (hf.OPTConfig, {**OPT, **NARROW}, WORDS),
    "gpt_neox": (hf.GPTNeoXConfig, TEXT, WORDS),
    "gpt_neox in turns": (hf.GPTNeoXConfig, {**TEXT, "use_parallel_residual": False}, WORDS),
    "llama": (hf.LlamaConfig, {**GROUPED, "tie_word_embeddings": True}, WORDS),
    "mistral": (hf.MistralConfig, {**GROUPED, "sliding_window": 3}, WORDS),
    "qwen2": (hf.Qwen2Config, GROUPED, WORDS),
    "qwen3": (hf.Qwen3Config, GROUPED, WORDS),
    "smollm3": (hf.SmolLM3Config, GROUPED, WORDS),
    "gemma3": (hf.Gemma3TextConfig, {**GROUPED, **LOCAL}, WORDS),
    "vit": (hf.ViTConfig, {**IMAGE, "intermediate_size": 48}, PICTURES),
    "deit": (hf.DeiTConfig, {**IMAGE, **DEIT, "intermediate_size": 48}, PICTURES),
    "dinov2": (hf.Dinov2Config, {**IMAGE, "mlp_ratio": 2}, PICTURES),
    "dinov2 gated": (hf.Dinov2Config, {**IMAGE, "mlp_ratio": 2, "use_swiglu_ffn": True}, PICTURES),
}
UNLISTED = {  # these have no table: a traced pass finds their sites
    "phi": (hf.PhiConfig, TEXT, WORDS),
    "stablelm": (hf.StableLmConfig, GROUPED, WORDS),
    "gemma2": (hf.Gemma2Config, {**GROUPED, **LOCAL}, WORDS),
    "olmo2": (hf.Olmo2Config, GROUPED, (TOKENS,)),
    "granite": (hf.GraniteConfig, GROUPED, (TOKENS,)),
    "starcoder2": (hf.Starcoder2Config, GROUPED, WORDS),
    "modernbert": (hf.ModernBertConfig, {**TEXT, **SPECIAL, "local_attention": 4}, LABELS),
}
CONFIGS |= UNLISTED
CASES = [(name, head) for name, (_, _, heads) in CONFIGS.items() for head in heads]
cases = pytest.mark.parametrize("name, head", CASES, ids=[" ".join(case) for case in CASES])


@cache
def model_of(name: str, head: str) -> PreTrainedModel:
    kind, settings, _ = CONFIGS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto_class(head).from_config(kind(**settings), attn_implementation="eager")
        for value in model.parameters():
            value.data = torch.randn_like(value) * (value.shape[-1] ** -0.5 if value.ndim > 1 else 0.3)
    model.config.use_cache = False
    return conv1d_to_linear(model).requires_grad_(False).eval()


def batch_of(head: str, left: bool = False) -> tuple[dict[str, Tensor], Tensor | None]:
    """Two rows, of 6 and of 4 tokens or two images; and the mask. Padding on the left needs positions."""
    random = torch.Generator().manual_seed(0)
    if head == IMAGES:
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=random)}, None
    ids = torch.randint(3, 20, (2, 6), generator=random)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    ids = ids * mask
    if left:
        ids[1], mask[1] = ids[1].roll(2), mask[1].roll(2)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}, mask.bool()
    return {"input_ids": ids, "attention_mask": mask}, mask.bool()


@torch.inference_mode()
def answers(model: PreTrainedModel, head: str) -> Tensor:
    """Logits, of tokens without padding."""
    inputs, mask = batch_of(head)
    if head == TOKENS and mask is not None:
        return model(**inputs).logits[mask].clone()
    return model(**inputs).logits.clone()


@cache
def ranges(model: PreTrainedModel, head: str, placement: Placement) -> dict[str, tuple[float, float]]:
    """The extremes of every site in one pass, zero among them. A site that does not run once fails."""
    ends, sites = {}, sites_of(model, placement)
    inputs, mask = batch_of(head)

    def look(name: str, tap: Tap, x: Tensor) -> Tensor:
        assert name not in ends
        lo, hi = tap.elements(x, mask).aminmax()
        ends[name] = (min(0.0, lo.item()), max(0.0, hi.item()))
        return x

    with torch.inference_mode(), tapped(model, {s.tap: partial(look, s.name, s.tap) for s in sites}):
        model(**inputs)
    assert ends.keys() == {site.name for site in sites}
    return ends


def plan_of(model: PreTrainedModel, head: str, placement: Placement, bits: int) -> QuantPlan:
    grid, ends = AffineGrid(bits=bits, symmetric=False), ranges(model, head, placement)
    weights = {n: p for n, p in model.named_parameters() if p.ndim == 2}
    return QuantPlan(
        activations=tuple(
            ActivationQuant(site=s.name, tap=s.tap, grid=grid, lo=ends[s.name][:1], hi=ends[s.name][1:])
            for s in sites_of(model, placement)
        ),
        weights=tuple(
            WeightQuant(
                parameter=name,
                grid=AffineGrid(bits=bits, symmetric=True),
                axis=None,
                lo=(-p.abs().max().item(),),
                hi=(p.abs().max().item(),),
            )
            for name, p in weights.items()
        ),
    )


@cases
def test_every_linear_has_one_operand_site(name: str, head: str) -> None:
    model = model_of(name, head)
    linears = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(readers(model)) == linears


@cases
def test_many_bits_only_round_and_the_exit_restores(name: str, head: str) -> None:
    """Six bits more divide the error by about 64."""
    model = model_of(name, head)
    before, fp32, errors = state(model), answers(model, head), []
    for bits in (10, 16):
        plan = plan_of(model, head, ALL, bits)
        with insert(model, plan):
            errors.append((answers(model, head) - fp32).square().mean().sqrt())
    assert 0 < errors[1] < min(errors[0] / 8, 0.02 * fp32.abs().max())
    assert state(model) == before
    assert QuantPlan.from_json(plan.to_json()) == plan


@cases
def test_engines_agree(name: str, head: str) -> None:
    model = model_of(name, head)
    plan, results = plan_of(model, head, GEMM, 8), []
    for engine in ("simulated", "integer"):
        with insert(model, plan, engine):
            results.append(answers(model, head))
    difference, size = (results[0] - results[1]).abs().max(), results[0].abs().max()
    assert difference < 0.05 * size  # a value between two levels may round to either


def rows_of(head: str) -> list[dict[str, Tensor]]:
    """The rows of :func:`batch_of`, each a batch of its own without padding."""
    inputs, mask = batch_of(head)
    if mask is None:
        return [{name: x[row : row + 1] for name, x in inputs.items()} for row in range(2)]
    return [{name: x[row : row + 1, : mask[row].sum()] for name, x in inputs.items()} for row in range(2)]


@torch.inference_mode()
def observed(
    model: PreTrainedModel, head: str, batches: list[dict[str, Tensor]]
) -> tuple[dict[Tap, Tensor], Tensor]:
    """The valid elements that every tap sees in these batches, each channel's sorted; and the answers."""
    seen, answered, masks = defaultdict(list), [], []

    def look(tap: Tap, x: Tensor) -> Tensor:
        seen[tap].append(tap.elements(x, masks[-1]).clone())
        return x

    taps = {tap for site in all_sites(model) for tap in (site.made_at, site.read_at) if tap}
    functions = {tap: partial(look, tap) for tap in taps if not isinstance(tap, RelativePositions)}
    with tapped(model, functions):
        for inputs in batches:
            mask = inputs.get("attention_mask")
            masks.append(None if mask is None else mask.bool())
            logits = model(**inputs).logits
            answered.append(logits[masks[-1]] if head == TOKENS else logits)
    return {tap: torch.cat(xs).sort(dim=0).values for tap, xs in seen.items()}, torch.cat(answered).clone()


@cases
def test_padding_and_batches_change_no_statistic_and_no_answer(name: str, head: str) -> None:
    """Padding on the left is for decoders: the heads of encoders read the first token."""
    model, decoder = model_of(name, head), TOKENS in CONFIGS[name][2]
    elements, logits = observed(model, head, rows_of(head))
    for batch in [batch_of(head, left)[0] for left in (False, True)[: 1 + decoder]]:
        others, answered = observed(model, head, [batch])
        torch.testing.assert_close(answered, logits, rtol=1e-4, atol=1e-5)
        assert others.keys() == elements.keys()
        for tap, x in elements.items():
            torch.testing.assert_close(others[tap], x, rtol=1e-3, atol=1e-4, msg=lambda m, t=tap: f"{t}: {m}")


@pytest.mark.parametrize("name", [name for name, head in CASES if head == TOKENS])
def test_one_token_more_from_the_cache_answers_as_the_whole_text(name: str) -> None:
    """Sliding windows too: their caches hold fewer keys than the text has tokens."""
    model = model_of(name, TOKENS)
    ids, same = batch_of(TOKENS)[0]["input_ids"][:1], lambda x: x
    taps = {site.tap: same for site in all_sites(model) if isinstance(site.tap, Query | Key | Value | Probs)}
    cache = hf.DynamicCache(config=model.config)
    held = {next(n for n in ("cache", "past_key_values") if n in signature(model.forward).parameters): cache}
    with torch.inference_mode(), tapped(model, taps):
        whole = model(input_ids=ids).logits[:, -1]
        model(input_ids=ids[:, :-1], use_cache=True, **held)
        step = model(input_ids=ids[:, -1:], use_cache=True, **held).logits[:, -1]
    torch.testing.assert_close(step, whole, rtol=1e-4, atol=1e-5)


@cases
def test_every_role_is_a_site_or_has_a_reason(name: str, head: str) -> None:
    model = model_of(name, head)
    unreachable, names = family_of(model).unreachable, {site.name for site in all_sites(model)}
    assert all(unreachable.values())
    for role in ROLES:
        sites = [f"{layer}.{role}" in names for layer in (0, 1)]
        assert all(sites) or (role in unreachable and not any(sites)) or role in ("ffn.gate", "ffn.up"), role


def test_grouped_heads_equal_the_repeated_form_in_float64() -> None:
    random = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, 5, 8, generator=random, dtype=torch.float64) for heads in (6, 2, 2)
    )
    mask = torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    context, _ = attention(nn.Module().eval(), query, key, value, mask, softcap=2.0)
    for head in range(6):
        scores = query[:, head] @ key[:, head // 3].mT / 8**0.5
        probs = (2 * torch.tanh(scores / 2) + mask[0]).softmax(-1)
        torch.testing.assert_close(context[:, :, head], probs @ value[:, head // 3])
