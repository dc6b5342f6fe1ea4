"""Grouping of sites into variables; a candidate's plan equals that of a trial with its method."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import SearchLab, candidates, search_of, site_costs
from tiny import ALL, FAMILIES, GEMM, sites_of, tiny_model

from quantlab.methods.bits import Bits
from quantlab.methods.method import Method
from quantlab.methods.mixed_precision import MixedPrecision
from quantlab.methods.peg import Peg
from quantlab.methods.uniform import Fp32, Uniform
from quantlab.searching.costs import cost_of
from quantlab.searching.search_config import GROUPINGS, bits_of
from quantlab.searching.setup import checked_space, prepared_model
from quantlab.searching.space import Space, space_of
from quantlab.storage.memo import Memo
from quantlab.trial.config import check_trial
from quantlab.trial.material import fp32_sketches
from quantlab.trial.planning import make_plan

SITES = sites_of(tiny_model())
NAMES = [site.name for site in SITES]
THREE = ("fp16", "int4", "int8")


def spaced(method: Method | None = None, bits: Bits | None = None, **settings: object) -> Space:
    return space_of(search_of(**settings), SITES, method or Uniform(), bits or Bits())


@pytest.mark.parametrize("group_by", GROUPINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_groups_share_every_site_out_once(family: str, group_by: str) -> None:
    for placement in (ALL, GEMM):
        sites = sites_of(tiny_model(family, layers=3), placement)
        space = space_of(search_of(group_by=group_by), sites, Uniform(), Bits())
        assert sorted(site.name for site in space.sites) == sorted(site.name for site in sites)
        names = [v.name for v in space.variables]
        assert len(set(names)) == len(names) and all(v.sites for v in space.variables)
        assert (len(names) == len(sites)) == (group_by == "site")


@pytest.mark.parametrize(
    "group_by, variable, members",
    [
        ("site", "1.ffn.in", ["1.ffn.in"]),
        ("role", "*.ffn.in", ["0.ffn.in", "1.ffn.in"]),
        ("role", "head.out", ["head.out"]),
        ("layer", "1.*", [name for name in NAMES if name.startswith("1.")]),
        ("layer", "embed.*", ["embed.sum", "embed.out"]),
        ("layer_role", "0.ffn.*", ["0.ffn.in", "0.ffn.mid", "0.ffn.out", "0.ffn.sum"]),
        ("layer_role", "0.layer.*", ["0.layer.out"]),
    ],
)
def test_who_is_decided_together(group_by: str, variable: str, members: Sequence[str]) -> None:
    by_name = {v.name: v for v in spaced(group_by=group_by).variables}
    assert [site.name for site in by_name[variable].sites] == list(members)


def test_choices_are_sorted_by_their_bits_and_other_sites_are_fixed() -> None:
    space = spaced(choices=THREE, sites=("*.ffn.*", "embed.*"))
    assert space.choices == ("int4", "int8", "fp16")
    assert (set(space.narrow), set(space.wide)) == ({"int4"}, {"fp16"})
    assert {site.name for site in space.fixed} == {n for n in NAMES if ".ffn." not in n and "embed" not in n}
    assert {site.name for site in space.sites} | {site.name for site in space.fixed} == set(NAMES)


@settings(deadline=None, max_examples=15)
@given(
    data=st.data(), group_by=st.sampled_from(GROUPINGS), sites=st.sampled_from([("*",), ("*.ffn.*", "1.*")])
)
def test_a_candidate_its_sites_and_its_method_say_the_same(
    data: st.DataObject, group_by: str, sites: tuple[str, ...]
) -> None:
    space = spaced(group_by=group_by, choices=THREE, sites=sites)
    chosen = tuple(data.draw(st.sampled_from(space.choices)) for _ in space.variables)
    by_site = space.by_site(chosen)
    assert by_site.keys() == {site.name for site in space.sites}
    assert space.chosen(by_site) == chosen
    method, base, bits = space.method(Uniform(), chosen), Uniform(), Bits(activations=6)
    method.check(SITES)
    for site in SITES:
        expected = base.site_spec(site, Bits(activations=by_site.get(site.name, 6)))
        assert method.site_spec(site, bits) == expected


def test_given_sites_become_the_narrowest_candidate_that_has_them() -> None:
    space = spaced(group_by="role")
    of_sites = {name: "fp16" if name in ("0.ffn.sum", "head.out") else "int8" for name in NAMES}
    widened = {v.name for v, c in zip(space.variables, space.chosen(of_sites), strict=True) if c == "fp16"}
    assert widened == {"*.ffn.sum", "head.out"}


@pytest.mark.parametrize(
    "name, least, most", [("sites16", 0, 30), ("average_bits", 4, 16), ("bytes", 441, 1764)]
)
@settings(deadline=None, max_examples=8)
@given(data=st.data(), group_by=st.sampled_from(GROUPINGS))
def test_costs_are_sums_over_sites(
    name: str, least: float, most: float, data: st.DataObject, group_by: str
) -> None:
    space = spaced(group_by=group_by, choices=THREE)
    cost, chosen = (
        cost_of(name, space),
        tuple(data.draw(st.sampled_from(space.choices)) for _ in space.variables),
    )
    by_site = space.by_site(chosen)
    bits = {site.name: bits_of(by_site[site.name]) for site in SITES}
    by_hand = {
        "sites16": sum(value == 16 for value in bits.values()),
        "average_bits": sum(bits.values()) / len(SITES),
        "bytes": sum(site.channels * bits[site.name] / 8 for site in SITES),
    }
    assert cost.of(space, chosen) == pytest.approx(by_hand[name])
    assert (cost.of(space, space.narrow), cost.of(space, space.wide)) == pytest.approx((least, most))


PLANS: dict[str, list[str]] = {
    "uniform": [],
    "symmetric, gemm": ["bits.symmetric=true", "placement=gemm"],
    "three choices": [
        "search.choices=[int4,int8,int16]",
        "search.group_by=layer_role",
        "search.cost=average_bits",
    ],
    "peg": ["method=peg", "method.sites=['*.ffn.in']", "method.k=4", "calibration=percentile"],
    "some sites": ["search.sites=['*.ffn.*']", "bits=w4a8", "bits.rules=[{match:'*.attn.sum',bits:fp16}]"],
    "some sites, kept": ["search.sites=['*.ffn.*']", "method=mixed_precision", "method.keep=['*.attn.*']"],
    "through quantized weights": ["calibration.through=quantized_weights", "calibration=mse", "bits.norms=8"],
}


FAST_PLANS = ("peg", "some sites")


@pytest.mark.parametrize(
    "setting", [name if name in FAST_PLANS else pytest.param(name, marks=pytest.mark.slow) for name in PLANS]
)
def test_a_candidates_plan_is_its_methods_plan(planted: SearchLab, setting: str) -> None:
    config = planted.config(*PLANS[setting])
    with prepared_model(config, Memo()) as prepared:
        drawn = [*candidates(prepared.space, 2), prepared.space.narrow, prepared.space.wide]
        plans = {chosen: prepared.plan(chosen) for chosen in drawn}
        material, space = prepared.material, prepared.space
    assert len({plan.fingerprint for plan in plans.values()}) == len(set(drawn)) > 2
    sketches = fp32_sketches(material, config.calibration)
    for chosen, plan in plans.items():
        trial = replace(config, method=space.method(config.method, chosen))
        assert (
            make_plan(trial, material, check_trial(trial, Memo()), sketches)[0].fingerprint
            == plan.fingerprint
        )


@pytest.mark.parametrize(
    "method, bits, settings, message",
    [
        (
            None,
            None,
            {"sites": ("*.fnn.in",)},
            r"search.sites: '\*.fnn.in' matches nothing \(did you mean '\*.ffn.in'",
        ),
        (None, {"rules": ({"match": "*.ffn.sum", "bits": 16},)}, {}, "bits.rules has 0.ffn.sum in 16 bits"),
        (MixedPrecision(keep=("1.ffn.in",)), None, {}, "MixedPrecision decides 1.ffn.in itself"),
        (
            MixedPrecision(keep=("1.ffn.in",), format="fp32"),
            None,
            {},
            "MixedPrecision decides 1.ffn.in itself",
        ),
        (Fp32(), None, {}, "Fp32 decides embed.sum itself"),
    ],
    ids=str,
)
def test_what_is_not_for_the_search_to_decide(
    method: Method | None, bits: dict[str, object] | None, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        spaced(method, Bits(**bits or {}), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "method, bits",
    [(MixedPrecision(keep=("1.ffn.in",)), {}), (None, {"rules": ({"match": "1.ffn.in", "bits": 16},)})],
    ids=["kept", "ruled"],
)
def test_it_may_be_decided_elsewhere_where_the_search_leaves_it(
    method: Method | None, bits: dict[str, object]
) -> None:
    space = spaced(method, Bits(**bits), sites=("0.*",))  # type: ignore[arg-type]
    assert {site.name.split(".")[0] for site in space.sites} == {"0"}


def test_a_peg_site_is_decided_as_any_other() -> None:
    assert len(spaced(Peg(sites=("*.ffn.in",), k=4)).variables) == len(SITES)


def test_no_site() -> None:
    with pytest.raises(ValueError, match="the placement has no site"):
        space_of(search_of(), [], Uniform(), Bits())


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["calibration.through=quantized"],
            "ranges that do not depend on each other.*fp32 or quantized_weights",
        ),
        (["search.sites=['*.nowhere']"], "search.sites: '\\*.nowhere' matches nothing"),
        (["method=mixed_precision"], "MixedPrecision decides 0.attn.out itself"),
        (
            ["search.mode=accuracy", "search.max_cost=10", "search.cost=bytes"],
            "search.max_cost=10 is less than the cheapest candidate costs, ",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_searched_is_found_before_anything_is_loaded(
    planted: SearchLab, overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantlab.searching.setup.load_material", lambda *_: pytest.fail("loaded"))
    config = planted.config(*overrides)
    with pytest.raises(ValueError, match=message):
        checked_space(config, Memo())
    with pytest.raises(ValueError, match=message), prepared_model(config, Memo()):
        pass


def test_sixteen_bit_sites_are_whole_numbers() -> None:
    space = spaced(group_by="role")
    assert all(float(value).is_integer() for value in site_costs(space).table.values())
