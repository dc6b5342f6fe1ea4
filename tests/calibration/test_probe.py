"""What a calibration pass observes, through which network, and what it refuses."""

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from properties import sketched
from tiny import ALL, FAMILIES, GEMM, LENGTHS, logits, padded, plan_of, settings_of, sites_of, tiny_model
from torch import Tensor

from quantlab.calibration.estimators import (
    MinMax,
    RunningMinMax,
)
from quantlab.calibration.probe import observe
from quantlab.engines.insert import quantized_weights, quantizer
from quantlab.methods.bits import Bits
from quantlab.methods.method import plan_weights
from quantlab.methods.peg import Peg
from quantlab.network.sites import Site
from quantlab.network.taps import ModuleOutput, Scores, tapped
from quantlab.plan.plan import QuantPlan
from quantlab.quant.sketch import Sketch
from quantlab.storage.memo import Memo
from quantlab.tasks.batching import Batch
from quantlab.trial.planning import make_plan, plan_of_weights

families = pytest.mark.parametrize("family", FAMILIES)

TOKENS, PAIRS = sum(LENGTHS), sum(length**2 for length in LENGTHS)
LONGEST, ROWS = max(LENGTHS), len(LENGTHS)


def rows_alone(batch: Batch) -> list[Batch]:
    """Each row as a batch of its own, without padding."""
    lengths = batch.inputs["attention_mask"].sum(1).tolist()
    return [
        Batch(
            inputs={name: x[i : i + 1, :length] for name, x in batch.inputs.items()},
            indices=batch.indices[i : i + 1],
        )
        for i, length in enumerate(lengths)
    ]


def assert_alike(one: Mapping[str, Sketch], other: Mapping[str, Sketch]) -> None:
    """The same elements, up to the rounding of products of another shape."""
    assert one.keys() == other.keys()
    for name, sketch in one.items():
        assert sketch.count == other[name].count, name
        for kept in ("min", "max", "moment_sums"):
            torch.testing.assert_close(
                getattr(sketch, kept), getattr(other[name], kept), rtol=1e-4, atol=1e-4
            )


@families
def test_padded_batches_see_what_single_rows_see(family: str) -> None:
    model, sites = tiny_model(family), sites_of(tiny_model(family))
    alone = observe(model, sites, rows_alone(padded()))
    assert_alike(observe(model, sites, [padded()]), alone)
    assert_alike(observe(model, sites, [padded(length=14)]), alone)


@families
def test_padding_counts_only_where_asked(family: str) -> None:
    model, sites = tiny_model(family), sites_of(tiny_model(family))
    masked = observe(model, sites, [padded()])
    included = observe(model, sites, [padded()], count_padding=True)
    for site in sites:
        counts = (TOKENS, ROWS * LONGEST)
        if site.tap.axis == -3:
            counts = (PAIRS, ROWS * LONGEST**2)
        elif site.name.startswith("head."):
            counts = (ROWS, ROWS)
        assert (masked[site.name].count, included[site.name].count) == counts, site.name
    assert not torch.equal(masked["1.ffn.sum"].histogram, included["1.ffn.sum"].histogram)


def test_valid_elements_leave_out_padded_queries_and_keys() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    scores = torch.arange(2 * 4 * 3 * 3).reshape(2, 4, 3, 3).float()
    site = Site(name="s", channels=4, made_at=Scores("m"))
    expected = torch.cat([scores[0, :, :2, :2].flatten(1).T, scores[1, :, :1, :1].flatten(1).T])
    assert torch.equal(site.tap.elements(scores, mask), expected)
    hidden = torch.arange(2 * 3 * 5).reshape(2, 3, 5).float()
    site = Site(name="s", channels=5, made_at=ModuleOutput("m"))
    assert torch.equal(
        site.tap.elements(hidden, mask), torch.stack([hidden[0, 0], hidden[0, 1], hidden[1, 0]])
    )
    assert torch.equal(site.tap.elements(hidden, None), hidden.reshape(6, 5))
    assert torch.equal(site.tap.elements(hidden[:, 0], mask), hidden[:, 0])


def test_observing_changes_no_answer() -> None:
    model, batch, outputs = tiny_model(), padded(), []
    handle = model.register_forward_hook(lambda _, __, output: outputs.append(output.logits))
    observe(model, sites_of(model), [batch])
    handle.remove()
    assert torch.equal(outputs[0], logits(model, batch))


def test_operands_see_what_tensors_see() -> None:
    """One pass over the tensors serves both placements."""
    model = tiny_model()
    tensors, operands = (observe(model, sites_of(model, placement), [padded()]) for placement in (ALL, GEMM))
    shared = tensors.keys() & operands.keys()
    assert len(shared) == 2 * 7 + 1
    assert all(torch.equal(tensors[name].histogram, operands[name].histogram) for name in shared)
    assert torch.equal(tensors["0.layer.out"].histogram, operands["1.attn.in"].histogram)


METHOD, BITS, CALIBRATION = Peg(sites=("*.ffn.*",), k=3), Bits(weights=4, activations=4), MinMax()


def as_run(through: str, batches: list[Batch]) -> dict[str, Sketch]:
    """What a trial with this ``through`` calibrates with, of a tiny BERT."""
    model, settings = tiny_model(), MinMax(through=through)
    config = settings_of(method=METHOD, bits=BITS, calibration=settings)
    material = SimpleNamespace(model=model, calibration_batches=lambda _: batches, observed=Memo())
    return plan_of_weights(config, material, sites_of(model), {})[1]  # type: ignore[arg-type, return-value]


def test_through_quantized_weights() -> None:
    model, batches = tiny_model(), [padded(), padded(seed=1)]
    with quantized_weights(model, QuantPlan(weights=plan_weights(model, METHOD, BITS, CALIBRATION))):
        expected = observe(model, sites_of(model), batches)
    sketches = as_run("quantized_weights", batches)
    fp32 = observe(model, sites_of(model), batches)
    for name, sketch in sketches.items():
        assert torch.equal(sketch.histogram, expected[name].histogram), name
        assert not torch.equal(sketch.histogram, fp32[name].histogram), name


def test_through_quantized_is_site_by_site() -> None:
    """By hand: each site's range is found with the weights and all sites before it quantized."""
    model, batch, by_hand = tiny_model(), padded(), {}
    mask, quantizers = batch.inputs["attention_mask"].bool(), {}

    def keep(site: Site, x: Tensor) -> Tensor:
        by_hand[site.name] = sketched(site.tap.elements(x, mask))
        return x

    with quantized_weights(model, QuantPlan(weights=plan_weights(model, METHOD, BITS, CALIBRATION))):
        for site in sites_of(model):
            with tapped(model, quantizers | {site.tap: partial(keep, site)}):
                logits(model, batch)
            (item,) = plan_of(METHOD, [site], by_hand, (), BITS, CALIBRATION).activations
            quantizers[site.tap] = quantizer(item, model.device)
    sketches = as_run("quantized", [batch])
    assert sketches.keys() == by_hand.keys()
    for name, sketch in sketches.items():
        assert torch.equal(sketch.histogram, by_hand[name].histogram), name
        assert torch.equal(sketch.min, by_hand[name].min), name


def test_quantizing_follows_what_was_seen_so_far() -> None:
    model, counts = tiny_model(), []
    first, last = sites_of(model)[0], sites_of(model)[-1]

    def zero_the_first(site: Site, sketch: Sketch) -> Callable[[Tensor], Tensor] | None:
        counts.append((site.name, sketch.count))
        return torch.zeros_like if site == first else None

    sketches = observe(model, [first, last], [padded(), padded(seed=1)], requantize=zero_the_first)
    assert counts == [
        (first.name, TOKENS),
        (last.name, ROWS),
        (first.name, 2 * TOKENS),
        (last.name, 2 * ROWS),
    ]
    assert sketches[first.name].max.max() > 0  # a site is seen as it was before its own quantizer
    torch.testing.assert_close(
        sketches[last.name].min, sketches[last.name].max
    )  # all rows give the same answer


@pytest.mark.parametrize("through", ["fp32", "quantized_weights", "quantized"])
def test_the_number_of_threads_changes_no_bit(through: str) -> None:
    """A row of nine tokens alone: MKL sums its products with 32 x 32 weights in an order that follows the
    threads."""
    model, batches = tiny_model(), [padded((length,), seed=length) for length in (9, 9, 5, 9, 9)]
    config = settings_of(method=METHOD, bits=BITS, calibration=RunningMinMax(through=through))
    material = SimpleNamespace(model=model, calibration_batches=lambda _: batches, observed=Memo())
    sites, before, found = sites_of(model), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            seen = observe(model, sites, batches)
            found.append(make_plan(config, material, sites, seen))  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(before)
    (plan, sketches), *others = found
    for other_plan, other in others:
        assert other_plan == plan and other.keys() == sketches.keys()
        for name, sketch in sketches.items():
            assert torch.equal(other[name].moment_sums, sketch.moment_sums), name
            assert torch.equal(other[name].histogram, sketch.histogram), name
            assert other[name].batch_extremes == sketch.batch_extremes, name


@pytest.mark.parametrize(
    "parameter, site",
    [
        ("bert.encoder.layer.1.intermediate.dense.bias", "1.ffn.mid"),
        ("bert.encoder.layer.0.attention.self.key.bias", "0.attn.key"),
        ("bert.embeddings.LayerNorm.weight", "embed.out"),
        ("classifier.bias", "head.out"),
    ],
)
def test_bad_activations_are_named_by_site(parameter: str, site: str) -> None:
    model = tiny_model()
    model.get_parameter(parameter)[0] = float("nan")
    with pytest.raises(
        ValueError, match=rf"calibration, site {site}: \d+ of \d+ activations are NaN or infinite"
    ):
        observe(model, sites_of(model), [padded()])


def test_infinite_activations_are_named_by_site() -> None:
    model = tiny_model()
    model.bert.encoder.layer[0].output.dense.weight.mul_(3e38)
    with pytest.raises(ValueError, match=r"calibration, site 0.ffn.out"):
        observe(model, sites_of(model), [padded()])
