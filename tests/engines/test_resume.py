"""A forward pass that begins at a later layer: the same logits to the bit, and no layer before that one
runs."""

from typing import Any

import pytest
import torch
from conftest import SPECIAL, WORDS
from searches import SearchLab, answers, candidates
from tiny import FAMILIES, LENGTHS, logits, padded, plan_of, sites_of, tied_decoder, tiny_model

from quantlab.calibration.estimators import MinMax
from quantlab.calibration.probe import observe
from quantlab.engines.insert import ENGINES, insert
from quantlab.engines.resume import first_layer, layers_of, recorded, resumed
from quantlab.methods.bits import Bits
from quantlab.methods.method import plan_weights
from quantlab.methods.uniform import Uniform
from quantlab.searching.evaluate import MB, Runner

DEPTH = 3
families = pytest.mark.parametrize("family", FAMILIES)


@families
def test_a_resumed_pass_has_the_same_logits_and_leaves_the_model_as_it_was(family: str) -> None:
    model, batch = tiny_model(family, layers=DEPTH), padded(LENGTHS)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    outputs: dict[int, Any] = {}
    with recorded(model, outputs):
        expected = logits(model, batch)
    assert sorted(outputs) == list(range(DEPTH)) == list(range(len(layers_of(model))))
    for last in range(DEPTH):
        calls = counted(model)
        with resumed(model, last, outputs[last]):
            assert torch.equal(logits(model, batch), expected), last
        assert calls() == [layer for layer in range(DEPTH) if layer > last]
    assert {name: vars(module) for name, module in model.named_modules()} == before
    assert torch.equal(logits(model, batch), expected)


@pytest.mark.parametrize("family", [*FAMILIES, "decoder"])
@pytest.mark.parametrize("engine", ENGINES)
def test_so_it_has_within_a_plan(family: str, engine: str) -> None:
    """In a pre-norm network a layer's own output is a site, each with another range."""
    model, batch = (
        tied_decoder(DEPTH, len(WORDS) + len(SPECIAL)).eval()
        if family == "decoder"
        else tiny_model(family, layers=DEPTH),
        padded(LENGTHS),
    )
    sites, depth = sites_of(model), len(layers_of(model))
    sketches, weights = observe(model, sites, [batch]), plan_weights(model, Uniform(), Bits(), MinMax())
    plan, outputs = plan_of(Uniform(), sites, sketches, weights, Bits(), MinMax()), {}  # type: ignore[var-annotated]
    with insert(model, plan, engine), torch.inference_mode():
        with recorded(model, outputs):
            expected = logits(model, batch)
        for last in (*range(depth), *range(depth)):
            with resumed(model, last, outputs[last]):
                assert torch.equal(logits(model, batch), expected), last


def test_another_layers_output_gives_other_logits() -> None:
    model, batch, outputs = tiny_model(layers=DEPTH), padded(), {}  # type: ignore[var-annotated]
    with recorded(model, outputs):
        expected = logits(model, batch)
    with resumed(model, 1, outputs[0]):
        assert not torch.equal(logits(model, batch), expected)


def test_an_interrupt_leaves_the_model_as_it_was() -> None:
    model, outputs = tiny_model(), {}  # type: ignore[var-annotated]
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(KeyboardInterrupt), recorded(model, outputs), resumed(model, 1, torch.zeros(1)):
        raise KeyboardInterrupt
    assert {name: vars(module) for name, module in model.named_modules()} == before


@families
def test_a_site_changes_no_layer_before_its_first(family: str) -> None:
    """By trying: zeros at the site leave the outputs of all earlier layers alone, and change the first
    one's."""
    model, batch = tiny_model(family), padded()
    plain: dict[int, Any] = {}
    with recorded(model, plain):
        expected = logits(model, batch)
    for site in sites_of(model):
        changed: dict[int, Any] = {}
        with recorded(model, changed), zeroed(model, site.tap):
            found = logits(model, batch)
        first = first_layer(site.name, len(plain))
        for layer in plain:
            same = torch.equal(hidden(plain[layer]), hidden(changed[layer]))
            assert same == (layer < first), (site.name, layer)
        assert not torch.equal(found, expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("placement", ["all", "gemm"])
def test_reuse_changes_no_bit(planted: SearchLab, engine: str, placement: str) -> None:
    with planted.prepared(f"engine={engine}", f"placement={placement}") as prepared:
        reusing, plain = prepared.runner(), prepared.runner()
        plain.most_bytes = 0.0
        drawn = [
            prepared.space.wide,
            *candidates(prepared.space, 4),
            prepared.space.narrow,
            late(prepared.space, 5),
        ]
        first = prepared.material.model.bert.encoder.layer[0]
        ran: list[int] = []
        first.attention.register_forward_hook(lambda *_: ran.append(1))
        for index, chosen in enumerate(drawn):
            expected = answers(plain, chosen)
            assert not plain.latest and len(ran) == len(plain.batches)
            ran.clear()
            found = answers(reusing, chosen)
            assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True)), index
            ran.clear()
            if index % 2 == 0:
                reusing.keep(chosen)


def test_layers_that_are_shared_are_skipped(planted: SearchLab) -> None:
    with planted.prepared() as prepared:
        runner, space = prepared.runner(), prepared.space
        calls = counted(prepared.material.model)
        answers(runner, space.wide)
        runner.keep(space.wide)
        assert calls() == [0, 1] * len(runner.batches)
        for sites, ran in [(1, [1]), (3, [1]), (30, [0, 1])]:  # the head's, the last layer's too, all
            calls = counted(prepared.material.model)
            answers(runner, late(space, sites))
            assert calls() == ([] if sites == 1 else ran) * len(runner.batches), sites
        calls = counted(prepared.material.model)
        answers(runner, space.wide)
        assert calls() == []


def test_a_candidate_that_resumed_can_be_the_one_that_others_begin_from(planted: SearchLab) -> None:
    with planted.prepared() as prepared:
        runner, space = prepared.runner(), prepared.space
        fresh = prepared.runner()
        fresh.most_bytes = 0.0
        for sites in (0, 1, 8, 14, 16, 20, 30, 3):
            chosen = late(space, sites)
            found, expected = answers(runner, chosen), answers(fresh, chosen)
            assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True)), sites
            runner.keep(chosen)
            assert len(runner.states) == 2 * len(runner.batches)


def test_no_more_memory_than_allowed(planted: SearchLab) -> None:
    with planted.prepared("search.reuse_mb=0.05") as prepared:
        runner = prepared.runner()
        chosen = prepared.space.wide
        expected = answers(runner, chosen)
        runner.keep(chosen)
        largest = max(output.nbytes for output in map(hidden, runner.states.values()))
        kept = sum(output.nbytes for output in map(hidden, runner.states.values()))
        assert 0 < kept <= 0.05 * MB + 2 * largest
        assert len(runner.states) < 2 * len(runner.batches)
        assert all(torch.equal(x, y) for x, y in zip(answers(runner, chosen), expected, strict=True))


def late(space: Any, sites: int) -> Any:
    """The last so many sites narrow."""
    return (space.choices[-1],) * (len(space.variables) - sites) + (space.choices[0],) * sites


def hidden(output: Any) -> torch.Tensor:
    """What a layer returns, without its attention weights."""
    tensor = output[0] if isinstance(output, tuple) else output
    assert isinstance(tensor, torch.Tensor)
    return tensor


def zeroed(model: Any, tap: Any) -> Any:
    from quantlab.network.taps import tapped

    return tapped(model, {tap: torch.zeros_like})


def counted(model: Any) -> Any:
    """Notes which layers run their first Linear from now on, until the result is called."""
    ran: list[int] = []
    handles = [
        next(
            module for module in layer.modules() if isinstance(module, torch.nn.Linear)
        ).register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(layers_of(model))
    ]

    def done() -> list[int]:
        for handle in handles:
            handle.remove()
        return ran

    return done


def test_a_runner_without_room_keeps_nothing(planted: SearchLab) -> None:
    with planted.prepared("search.reuse_mb=0") as prepared:
        runner = prepared.runner()
        assert isinstance(runner, Runner)
        first = answers(runner, prepared.space.wide)
        runner.keep(prepared.space.wide)
        assert not runner.states
        assert all(
            torch.equal(x, y) for x, y in zip(first, answers(runner, prepared.space.wide), strict=True)
        )
