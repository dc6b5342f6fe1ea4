"""The registered attention: eager's numbers to the bit, the mask in place, the taps where they belong."""

import pytest
import torch
from tiny import FAMILIES, LENGTHS, logits, padded, tiny_model
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from quantlab.network.architecture import all_sites
from quantlab.network.attention import NAME, TAPS, attention
from quantlab.network.taps import Probs, Scores, tapped

families = pytest.mark.parametrize("family", FAMILIES)


def same(x: Tensor) -> Tensor:
    return x


def attention_modules(model: PreTrainedModel) -> list[str]:
    return [
        site.made_at.module
        for site in all_sites(model)
        if isinstance(site.made_at, Scores) and site.name.endswith("scores")
    ]


@families
@pytest.mark.parametrize("lengths", [LENGTHS, (7,), (5, 5)], ids=str)
def test_equals_eager_to_the_bit(family: str, lengths: tuple[int, ...]) -> None:
    model, batch = tiny_model(family), padded(lengths)
    eager = logits(model, batch)
    with tapped(model, {Scores(path): same for path in attention_modules(model)}):
        assert model.config._attn_implementation == NAME
        assert torch.equal(logits(model, batch), eager)
    assert torch.equal(logits(model, batch), eager)


@families
def test_the_mask_is_needed_here(family: str) -> None:
    """The test above would pass without a mask if these rows did not depend on it."""
    model, batch = tiny_model(family), padded()
    masked = logits(model, batch)
    batch.inputs["attention_mask"] = torch.ones_like(batch.inputs["attention_mask"])
    assert (logits(model, batch) - masked).abs().max() > 0.01


@families
def test_scores_come_before_the_mask_and_probs_after_the_softmax(family: str) -> None:
    model, batch, seen = tiny_model(family), padded(), {}
    path = attention_modules(model)[1]

    def keep(name: str) -> object:
        def run(x: Tensor) -> Tensor:
            seen[name] = x.clone()
            return x

        return run

    with tapped(model, {Scores(path): keep("scores"), Probs(path): keep("probs")}):
        logits(model, batch)
    mask = batch.inputs["attention_mask"].bool()[:, None, None, :]
    assert seen["scores"].abs().max() < 100  # the mask's own numbers are near FP32's largest
    expected = seen["scores"].masked_fill(~mask, torch.finfo(torch.float32).min).softmax(-1)
    assert torch.equal(seen["probs"], expected)
    assert (seen["probs"].masked_select(~mask) == 0).all()


@families
def test_taps_change_what_the_network_goes_on_with(family: str) -> None:
    model, batch = tiny_model(family), padded()
    eager = logits(model, batch)
    first, second = attention_modules(model)
    for tap in (Scores(second), Probs(second)):
        with tapped(model, {Scores(first): same, tap: torch.zeros_like}):
            assert not torch.equal(logits(model, batch), eager)


def test_uniform_scores_average_the_values() -> None:
    model, batch, seen = tiny_model(), padded((5, 3)), []
    path = attention_modules(model)[0]
    with tapped(model, {Scores(path): torch.zeros_like, Probs(path): lambda x: seen.append(x) or x}):
        logits(model, batch)
    assert torch.equal(seen[0][1, :, :, :3], torch.full((4, 5, 3), 1 / 3))
    assert torch.equal(seen[0][1, :, :, 3:], torch.zeros(4, 5, 2))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_exit_restores_the_implementation(implementation: str) -> None:
    model = tiny_model()
    model.set_attn_implementation(implementation)
    paths = attention_modules(model)
    with pytest.raises(RuntimeError, match="inside"), tapped(model, {Scores(path): same for path in paths}):
        raise RuntimeError("inside")
    assert model.config._attn_implementation == implementation
    assert not any(hasattr(module, TAPS) for module in model.modules())


def test_without_taps_nothing_is_switched() -> None:
    model = tiny_model()
    with tapped(model, {}):
        assert model.config._attn_implementation == "eager"


def test_unknown_module() -> None:
    model = tiny_model()
    with pytest.raises(AttributeError, match="nowhere"), tapped(model, {Scores("bert.nowhere"): same}):
        pass
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("other", ["sliding_window", "s_aux", "position_bias", "is_causal", "head_mask"])
def test_what_changes_attention_and_is_not_known_is_an_error(other: str) -> None:
    x, module = torch.ones(1, 2, 3, 16), torch.nn.Module()
    for off in (None, False):
        attention(module, x, x, x, None, **{other: off}, output_attentions=True, position_ids=x)
    for on in (True, 0.0, torch.ones(2)):
        with pytest.raises(
            ValueError,
            match=rf"Module passes {other}( without a mask)? to its attention, which quantlab's",
        ):
            attention(module, x, x, x, None, **{other: on})


def test_dropout_is_eagers_while_training() -> None:
    model = BertForSequenceClassification(
        BertConfig(
            hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=20
        )
    ).train()
    batch, answers = padded(), []
    for paths in ([], attention_modules(model)):
        torch.manual_seed(0)
        with tapped(model, {Scores(path): same for path in paths}):
            answers.append(logits(model, batch))
    torch.testing.assert_close(
        *answers
    )  # another mask would be far away; the last bit depends on how memory lies
