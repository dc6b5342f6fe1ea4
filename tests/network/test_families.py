"""Contracts of every family and head, on tiny random networks."""

from collections import defaultdict
from functools import cache, partial
from inspect import signature

import pytest
import torch
import transformers as hf
from families import CASES, CONFIGS, answers, batch_of, model_of
from tiny import ALL, GEMM, sites_of, state
from torch import Tensor, nn
from transformers import PreTrainedModel

from quantlab.engines.insert import insert
from quantlab.network.architecture import all_sites, family_of
from quantlab.network.attention import attention
from quantlab.network.readers import readers
from quantlab.network.sites import Placement
from quantlab.network.taps import Key, Probs, Query, RelativePositions, Tap, Value, tapped
from quantlab.network.unlisted import ROLES
from quantlab.plan.plan import QuantPlan
from quantlab.plan.quantizers import ActivationQuant, WeightQuant
from quantlab.quant.grid import AffineGrid
from quantlab.tasks.heads import TOKENS

cases = pytest.mark.parametrize("name, head", CASES, ids=[" ".join(case) for case in CASES])


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
