"""Site tables: every family, any depth, and each tap on the tensor that it names."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from tiny import ALL, FAMILIES, GEMM, logits, padded, sites_of, tiny_config, tiny_model
from torch import Tensor, nn
from transformers import AlbertConfig, BartConfig, BeitConfig, PretrainedConfig, ViTConfig

from quantlab.cli.conf_dir import CONF
from quantlab.network.architecture import all_sites, family_of, site_tags, skeleton_of
from quantlab.network.family import Family, Taps, one_tap
from quantlab.network.sites import Placement, Site, matching_sites
from quantlab.network.taps import ModuleInput, ModuleOutput, tapped
from quantlab.tasks.heads import IMAGES

# Tensors of one layer: q, k, v, scores, probs, context, g, u, x, mid, h, y, out. Operands: attn.in, q, k, v,
# probs, context, x, mid. Before and after the layers: the embeddings' sum and LayerNorm, P and C; the head's
# two inputs.
TENSORS, OPERANDS = 13, 8
OUTSIDE = {"bert": (4, 2), "roberta": (4, 2), "distilbert": (4, 2), "electra": (5, 3)}

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}

families = pytest.mark.parametrize("family", FAMILIES)


@families
@pytest.mark.parametrize("layers", [2, 3])
def test_counts(family: str, layers: int) -> None:
    tensors, operands = OUTSIDE.get(family, (4, 2))
    model = skeleton_of(tiny_config(family, layers))
    assert len(sites_of(model, ALL)) == TENSORS * layers + tensors
    assert len(sites_of(model, GEMM)) == OPERANDS * layers + operands
    assert len({site.tap for site in sites_of(model, ALL)}) == TENSORS * layers + tensors


def test_names_of_berts_sites() -> None:
    model = skeleton_of(tiny_config("bert", 1))
    assert " ".join(site.name for site in sites_of(model, ALL)) == (
        "embed.sum embed.out 0.attn.query 0.attn.key 0.attn.value 0.attn.scores 0.attn.probs "
        "0.attn.context 0.attn.out "
        "0.attn.sum 0.ffn.in 0.ffn.mid 0.ffn.out 0.ffn.sum 0.layer.out head.mid head.out"
    )
    assert " ".join(site.name for site in sites_of(model, GEMM)) == (
        "0.attn.in 0.attn.query 0.attn.key 0.attn.value 0.attn.probs 0.attn.context 0.ffn.in 0.ffn.mid "
        "head.in head.mid"
    )


@families
def test_skeleton_has_the_models_sites(family: str) -> None:
    assert all_sites(skeleton_of(tiny_config(family))) == all_sites(tiny_model(family))


@families
@pytest.mark.parametrize("placement", [ALL, GEMM], ids=["all", "gemm"])
def test_taps_see_their_channels(family: str, placement: Placement) -> None:
    model, batch = tiny_model(family), padded()
    rows, tokens = batch.inputs["input_ids"].shape
    seen: dict[str, list[tuple[int, ...]]] = {}

    def look(name: str, x: Tensor) -> Tensor:
        seen.setdefault(name, []).append(tuple(x.shape))
        return x

    sites = sites_of(model, placement)
    with tapped(model, {site.tap: partial(look, site.name) for site in sites}):
        logits(model, batch)
    for site in sites:
        shapes = {(rows, tokens, site.channels)}
        if site.tap.axis == -3:
            shapes = {(rows, site.channels, tokens, tokens)}
        elif site.name.startswith("head."):
            shapes = {(rows, site.channels)}
        assert set(seen[site.name]) == shapes, site.name
        assert len(seen[site.name]) == 1, site.name


@families
def test_operands_cover_everything_that_enters_a_product(family: str) -> None:
    """With every operand tap replaced by a constant of its own, each Linear and attention product sees only
    those."""
    model = tiny_model(family)
    sites = sites_of(model, GEMM)
    constants = {site.tap: float(index + 1) for index, site in enumerate(sites)}
    entered: dict[str, list[float]] = {}

    def enter(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        entered[name] = inputs[0].unique().tolist()

    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    with tapped(model, {tap: partial(torch.full_like, fill_value=value) for tap, value in constants.items()}):
        handles = [module.register_forward_pre_hook(partial(enter, name)) for name, module in linears.items()]
        logits(model, padded())
        for handle in handles:
            handle.remove()
    counts = [sum(values == [constant] for values in entered.values()) for constant in constants.values()]
    expected = {"attn.in": 3, "attn.query": 0, "attn.key": 0, "attn.value": 0, "attn.probs": 0}
    assert set(entered) == set(linears)
    assert counts == [expected.get(site.name.split(".", 1)[1], 1) for site in sites]
    assert sum(counts) == len(linears)


@families
def test_attention_products_read_their_operands(family: str) -> None:
    model, batch, seen = tiny_model(family), padded((6, 6)), {}
    taps = {site.name: site.tap for site in sites_of(model, GEMM)}
    scores = next(site.tap for site in sites_of(model, ALL) if site.name == "1.attn.scores")

    def keep(name: str, x: Tensor) -> Tensor:
        seen[name] = x.unique().tolist()
        return x

    constants = {"query": 2.0, "key": 3.0, "value": 5.0, "probs": 0.5}
    functions = {
        taps[f"1.attn.{role}"]: partial(torch.full_like, fill_value=v) for role, v in constants.items()
    }
    kept = {scores: partial(keep, "scores"), taps["1.attn.context"]: partial(keep, "context")}
    with tapped(model, functions | kept):
        logits(model, batch)
    width, tokens = 8, 6  # of a head, and of a row
    assert seen == {"scores": [pytest.approx(2 * 3 * width * width**-0.5)], "context": [0.5 * 5 * tokens]}


@families
def test_residual_paths_belong_to_tensors_alone(family: str) -> None:
    """Zeros at a tensor leave nothing to the residual sum; zeros at the operand leave the residual as it
    was."""
    model, batch, sums = tiny_model(family), padded(), {}

    def keep(name: str, x: Tensor) -> Tensor:
        sums[name] = x.clone()
        return x

    by_name = {site.name: site for site in all_sites(model)}
    ffn_in, ffn_out, ffn_sum = (by_name[f"0.ffn.{role}"] for role in ("in", "out", "sum"))
    assert ffn_in.made_at and ffn_in.read_at and ffn_out.made_at and ffn_sum.made_at
    for tap in (ffn_in.made_at, ffn_in.read_at):
        taps = {
            tap: torch.zeros_like,
            ffn_out.made_at: partial(keep, "h"),
            ffn_sum.made_at: partial(keep, tap.at),
        }
        with tapped(model, taps):
            logits(model, batch)
        sums[f"residual at {tap.at}"] = sums[tap.at] - sums["h"]
    assert (sums["residual at output"] == 0).all()
    assert (sums["residual at input"].abs() > 0.01).all(-1).any()


def test_paper_is_all_on_bert() -> None:
    def placement(name: str) -> Placement:
        fields = yaml.safe_load((Path(CONF) / "placement" / f"{name}.yaml").read_text())
        assert fields.pop("_target_") == "quantlab.network.sites.Placement"
        return Placement(**fields)

    bert, electra = (skeleton_of(tiny_config(family, 3)) for family in ("bert", "electra"))
    assert sites_of(bert, placement("paper")) == sites_of(bert, placement("all")) == sites_of(bert, ALL)
    assert sites_of(bert, placement("gemm")) == sites_of(bert, GEMM)
    extra = set(sites_of(electra, placement("all"))) - set(sites_of(electra, placement("paper")))
    assert {site.name for site in extra} == {"embed.project.out"}


@pytest.mark.parametrize(
    "sites, exclude, names",
    [
        (["*.ffn.sum"], [], ["0.ffn.sum", "1.ffn.sum", "2.ffn.sum"]),
        (["[01].ffn.sum"], [], ["0.ffn.sum", "1.ffn.sum"]),
        (["*.ffn.*"], ["*.in", "*.mid", "1.*"], ["0.ffn.out", "0.ffn.sum", "2.ffn.out", "2.ffn.sum"]),
        (["head.*", "embed.out"], [], ["embed.out", "head.mid", "head.out"]),
        (["2.ffn.in", "0.ffn.in", "*.ffn.in"], [], ["0.ffn.in", "1.ffn.in", "2.ffn.in"]),
    ],
)
def test_globs(sites: list[str], exclude: list[str], names: list[str]) -> None:
    model = skeleton_of(tiny_config(layers=3))
    placement = Placement(at="tensor", sites=sites, exclude=exclude)  # type: ignore[arg-type] # as YAML gives them
    assert [site.name for site in sites_of(model, placement)] == names


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"sites": ["*.ffn.sun"]},
            r"placement.sites: '\*.ffn.sun' matches nothing \(did you mean '\*.ffn.sum'",
        ),
        (
            {"sites": ["*.ffn.sum", "5.ffn.sum"]},
            "placement.sites: '5.ffn.sum' matches nothing.*; layers are 0 to 2",
        ),
        ({"exclude": ["attention"]}, "placement.exclude: 'attention' matches nothing"),
        ({"sites": "*.ffn.sum"}, r"placement.sites must be a list of globs, got '\*.ffn.sum'"),
        ({"sites": "*"}, r"placement.sites must be a list of globs, got '\*'"),
        (
            {"exclude": ["*.attn.in"]},
            r"placement.exclude: '\*.attn.in' matches nothing",
        ),  # no tensor, an operand only
    ],
    ids=str,
)
def test_unmatched_globs(fields: dict[str, Iterable[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sites_of(skeleton_of(tiny_config(layers=3)), Placement(at="tensor", **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "at, sites, pattern, message",
    [
        (
            "operand",
            "*",
            "*.ffn.sum",
            "nothing that the placement picks; the network has 0.ffn.sum, 1.ffn.sum",
        ),
        ("tensor", "*", "1.attn.in", "nothing .* has 1.attn.in, but the placement leaves that out"),
        ("tensor", "0.*", "[12].ffn.sum", "nothing .* has 1.ffn.sum, 2.ffn.sum, but"),
        ("operand", "*", "*.ffn.summ", r"nothing \(did you mean '\*.ffn"),
    ],
)
def test_sites_that_the_placement_leaves_out_are_named(
    at: str, sites: str, pattern: str, message: str
) -> None:
    picked = sites_of(skeleton_of(tiny_config(layers=3)), Placement(at=at, sites=(sites,)))
    with pytest.raises(ValueError, match=f"method.keep: .* matches {message}"):
        matching_sites([pattern], picked, "method.keep")
    assert matching_sites(["*"], picked, "method.keep") == {site.name for site in picked}


@pytest.mark.parametrize(
    "config, glob, why",
    [
        (ViTConfig(**TINY), "1.ffn.sum", "in a pre-norm block it is the layer's output"),
        (BeitConfig(**TINY), "*.attn.sum", "quantlab has no table of this architecture"),
    ],
    ids=["listed", "unlisted"],
)
def test_a_glob_of_an_unreachable_role_tells_the_reason(
    config: PretrainedConfig, glob: str, why: str
) -> None:
    skeleton = skeleton_of(config, IMAGES)
    placement = Placement(at="tensor", sites=(glob,))
    with pytest.raises(ValueError, match=rf"no tap reaches {glob[2:]}, {why}"):
        placement.select(all_sites(skeleton), family_of(skeleton).unreachable)


def test_a_model_without_a_table_says_what_it_has() -> None:
    assert site_tags(skeleton_of(tiny_config())) == {}
    tags = site_tags(skeleton_of(BeitConfig(**TINY), IMAGES))
    assert tags["sites"].startswith(
        "traced: attn.in, attn.query, attn.key, attn.value, attn.scores, attn.probs"
    )
    assert tags["sites"].endswith("none of attn.out, attn.sum, ffn.gate, ffn.up, ffn.out, ffn.sum")


def test_bad_placement() -> None:
    with pytest.raises(
        ValueError, match=r"placement.at must be one of tensor, operand; got 'tensors' \(did you mean"
    ):
        Placement(at="tensors")


@pytest.mark.parametrize(
    "config, message",
    [
        (
            PretrainedConfig(model_type="xxxx"),
            "architecture 'xxxx'; it has bert, .* transformers has none that answers",
        ),
        (
            BartConfig(d_model=16, encoder_layers=1, decoder_layers=1, vocab_size=9),
            r"architecture 'bart' \(did you mean 'bert'.* BartForSequenceClassification does not declare its",
        ),
        (
            AlbertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2, vocab_size=9),
            "finds no sites by itself: one pass runs its layers several times",
        ),
    ],
    ids=["xxxx", "bart", "albert"],
)
def test_unknown_architecture(config: PretrainedConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        skeleton_of(config)


def test_table_that_does_not_fit_the_model() -> None:
    missing = Taps(made_at=ModuleOutput("bert.embeddings.LayerNom"))
    family = Family(layers="bert.encoder.layer", embed={"out": missing}, layer={}, heads=[{}])
    with pytest.raises(
        ValueError, match=r"module 'bert.embeddings.LayerNom' that this model lacks.*LayerNorm'"
    ):
        family.sites(tiny_model())


def test_table_row_of_an_optional_module() -> None:
    rows = {
        "head.out": Taps(made_at=ModuleOutput("bert.adapter"), optional=True),
        "head.mid": one_tap(ModuleInput("classifier")),
    }
    family = Family(layers="bert.encoder.layer", embed={}, layer={}, heads=[rows])
    tap = ModuleInput("classifier")
    assert family.sites(tiny_model()) == [Site(name="head.mid", channels=32, made_at=tap, read_at=tap)]


@families
def test_a_placement_picks_one_tap_of_every_site(family: str) -> None:
    model = tiny_model(family)
    by_name = {site.name: site for site in all_sites(model)}
    assert {site.tap for site in by_name.values()} == {s.made_at or s.read_at for s in by_name.values()}
    for site in sites_of(model, ALL):
        assert (site.tap, site.read_at) == (by_name[site.name].made_at, None)
    for site in sites_of(model, GEMM):
        assert (site.tap, site.made_at) == (by_name[site.name].read_at, None)
