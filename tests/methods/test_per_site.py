"""Precisions site by site: the last rule wins, over everything, and the rest is the base method's."""

import pytest
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from tiny import padded, plan_of, sites_of, tiny_model

from quantlab.calibration.estimators import MinMax
from quantlab.calibration.probe import observe
from quantlab.methods.bits import Bits
from quantlab.methods.method import plan_weights
from quantlab.methods.mixed_precision import MixedPrecision
from quantlab.methods.peg import Peg
from quantlab.methods.per_site import PerSite
from quantlab.methods.uniform import Uniform
from quantlab.plan.plan import QuantPlan
from quantlab.quant.grid import grid_of
from quantlab.trial.result import plain_data

MODEL = tiny_model()
SITES = sites_of(MODEL)
NAMES = [site.name for site in SITES]
RULES = (
    {"match": "*", "bits": "int4"},
    {"match": "*.ffn.*", "bits": 6},
    {"match": "1.ffn.sum", "bits": "fp16"},
)

patterns = st.sampled_from(["*", "0.*", "*.ffn.*", "1.ffn.sum", "*.attn.probs", "head.out"])
rules = st.lists(
    st.tuples(patterns, st.sampled_from(["int4", 5, "int8", "bf16", "fp32"])), min_size=1, max_size=6
)


def per_site(rules: object = RULES, base: object = None) -> PerSite:
    return PerSite(base=base or Uniform(), rules=rules)  # type: ignore[arg-type]


def planned(method: object, **bits: object) -> QuantPlan:
    chosen, calibration = Bits(**bits), MinMax()  # type: ignore[arg-type]
    sketches = observe(MODEL, SITES, [padded()])
    weights = plan_weights(MODEL, method, chosen, calibration)  # type: ignore[arg-type]
    return plan_of(method, SITES, sketches, weights, chosen, calibration)  # type: ignore[attr-defined]


@given(rules=rules, symmetric=st.booleans())
def test_the_last_rule_that_matches_decides(rules: list[tuple[str, int | str]], symmetric: bool) -> None:
    method = per_site([{"match": match, "bits": bits} for match, bits in rules])
    bits = Bits(activations=7, symmetric=symmetric, rules=({"match": "*", "bits": 3},))
    for site in SITES:
        matched = [bits for match, bits in rules if site.matches([match])]
        spec = method.site_spec(site, bits)
        assert (spec.grid if spec else None) == grid_of(matched[-1] if matched else 3, symmetric)


def test_rules_are_bits_rules_that_win_over_those() -> None:
    of_method = planned(per_site(), rules=({"match": "1.*", "bits": 2},))
    of_bits = planned(Uniform(), rules=({"match": "1.*", "bits": 2}, *RULES))
    weights = planned(Uniform()).weights
    assert of_method.activations == of_bits.activations
    assert of_method.weights == weights  # which glob rules of activations do not touch


def test_the_rest_is_the_base_methods() -> None:
    narrow = ({"match": "0.attn.*", "bits": 4},)
    for base in (Uniform(), Peg(sites=("*.ffn.in",), k=4), MixedPrecision(keep=("*.ffn.sum",))):
        plain, found = planned(base), planned(per_site(narrow, base))
        assert found.weights == plain.weights
        for one, other in zip(plain.activations, found.activations, strict=True):
            assert (one == other) == (not one.site.startswith("0.attn.")), one.site


def test_a_pegs_groups_stay_at_other_bits() -> None:
    found = planned(per_site(({"match": "*", "bits": 4},), Peg(sites=("*.ffn.in",), k=4)))
    by_site = {item.site: item for item in found.activations}
    assert len(by_site["0.ffn.in"].lo) == 4 and by_site["0.ffn.in"].grid == grid_of(4, symmetric=False)


@pytest.mark.parametrize(
    "rules, base, message",
    [
        (
            ({"match": "*.fnn.in", "bits": 8},),
            None,
            r"method.rules: '\*.fnn.in' matches nothing \(did you mean",
        ),
        (RULES, MixedPrecision(keep=("*.fnn.in",)), r"method.keep: '\*.fnn.in' matches nothing"),
    ],
)
def test_what_matches_nothing_is_named(rules: object, base: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        per_site(rules, base).check(SITES)


@pytest.mark.parametrize(
    "rules, message",
    [
        (({"match": "*", "bits": "fp61"},), "'fp61' .did you mean 'fp16'"),
        (({"match": "*", "bits": 1},), "2..16"),
        (({"match": "*", "bit": 8},), "a rule is {match: <glob>, bits: <precision>}"),
        (("*",), "a rule is {match: <glob>, bits: <precision>}"),
    ],
    ids=str,
)
def test_bad_rules(rules: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        per_site(rules)


def test_its_description_builds_it_again() -> None:
    method = per_site(base=Peg(sites=("*.ffn.in",), k=4))
    plain = plain_data(method)
    plain["rules"] = [{"match": rule["match"], "bits": rule["bits"]} for rule in plain["rules"]]
    for description in (plain, plain_data(method)):
        again = instantiate(description, _convert_="all")
        assert again == method and hash(again) == hash(method)
