"""Site tables from a dozen module names: where a layer's norms, attention and feed-forward are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantlab.network.family import Family, FeedForward, Taps, one_tap
from quantlab.network.taps import (
    Key,
    ModuleInput,
    ModuleOutput,
    Pixels,
    Probs,
    Query,
    ResidualSum,
    Scores,
    Tap,
    Value,
)

FFN_SUM = "in a pre-norm block it is the layer's output: ask for *.layer.out"
PARALLEL = "attention and feed-forward add to the stream at once: ask for *.layer.out"


def pre_norm(
    *,
    layers: str,
    attention: str,
    norms: tuple[str, str],
    out: str,
    up: str,
    down: str,
    final: str | None,
    heads: Sequence[str],
    gate: str | None = None,
    activation: str | None = None,
    added: tuple[str, str] | None = None,
    embed: Mapping[str, Taps] | None = None,
    causal: bool = True,
    parallel: bool = False,
    pooled: bool = False,
) -> Family:
    """The table of a network whose norms stand before attention and feed-forward.

    Names are relative to a layer, but ``layers``, ``final`` (the last norm) and ``heads``, of which a model
    has one. ``gate`` is that of a gated feed-forward, whose activation times ``up`` is what ``down`` reads.
    ``added``: modules between a sublayer and the residual sum, such as LayerScale or a second norm.
    ``parallel``: both sublayers read the layer's input. ``pooled``: the head reads less than all tokens.
    """
    first, second = norms
    layer = {
        "attn.in": one_tap(ModuleOutput(first)),
        "attn.query": one_tap(Query(attention)),
        "attn.key": one_tap(Key(attention)),
        "attn.value": one_tap(Value(attention)),
        "attn.scores": Taps(made_at=Scores(attention, causal)),
        "attn.probs": one_tap(Probs(attention, causal)),
        "attn.context": one_tap(ModuleInput(out)),
        "attn.out": Taps(made_at=ModuleOutput(out)),
    }
    if added:
        layer["attn.added"] = Taps(made_at=ModuleOutput(added[0]))
    if not parallel:
        layer["attn.sum"] = Taps(made_at=ResidualSum(second))
    layer["ffn.in"] = one_tap(ModuleOutput(second))
    if gate:
        layer |= {"ffn.gate": Taps(made_at=ModuleOutput(gate)), "ffn.up": Taps(made_at=ModuleOutput(up))}
    layer |= {"ffn.mid": one_tap(ModuleInput(down)), "ffn.out": Taps(made_at=ModuleOutput(down))}
    if added:
        layer["ffn.added"] = Taps(made_at=ModuleOutput(added[1]))
    layer["layer.out"] = Taps(made_at=ModuleOutput(""))
    last = ModuleOutput(final) if final else None
    return Family(
        layers=layers,
        embed={**(embed or {}), "out": Taps(made_at=ResidualSum(f"{layers}.0.{first}"))},
        layer=layer,
        heads=tuple(_head(name, last, pooled) for name in heads),
        feed_forward=FeedForward(up, activation, down) if activation and not gate else None,
        unreachable={"ffn.sum": FFN_SUM, **({"attn.sum": PARALLEL} if parallel else {})},
    )


def post_norm(
    *,
    layers: str,
    attention: str,
    norms: tuple[str, str],
    out: str,
    up: str,
    down: str,
    embed: Mapping[str, Taps],
    qkv: tuple[str, str, str] | None = None,
    activation: str | None = None,
    dense: str | None = None,
    heads: Sequence[str],
    causal: bool = False,
    scores: bool = True,
    unreachable: Mapping[str, str] | None = None,
) -> Family:
    """The table of a network whose norms stand after the residual sums, as :func:`pre_norm`.

    ``qkv`` names the Linears whose outputs are what attention gets: the taps are there, so the analysis knows
    which Linear made a query. ``dense``: a Linear and its activation between the layers and the head.
    ``scores``: whether the attention function is reached; if not, ``unreachable`` says why.
    """
    first, second = norms
    layer = {"attn.in": Taps(read_at=ModuleInput(attention))}
    if qkv:
        roles = zip(("query", "key", "value"), qkv, strict=True)
        layer |= {f"attn.{role}": one_tap(ModuleOutput(name)) for role, name in roles}
    elif scores:
        taps = (Query(attention), Key(attention), Value(attention))
        layer |= {f"attn.{tap.at}": one_tap(tap) for tap in taps}
    if scores:
        layer["attn.scores"] = Taps(made_at=Scores(attention, causal))
        layer["attn.probs"] = one_tap(Probs(attention, causal))
    layer |= {
        "attn.context": one_tap(ModuleInput(out)),
        "attn.out": Taps(made_at=ModuleOutput(out)),
        "attn.sum": Taps(made_at=ModuleInput(first)),
        "ffn.in": Taps(made_at=ModuleOutput(first), read_at=ModuleInput(up)),
        "ffn.mid": one_tap(ModuleInput(down)),
        "ffn.out": Taps(made_at=ModuleOutput(down)),
        "ffn.sum": Taps(made_at=ModuleInput(second)),
        "layer.out": Taps(made_at=ModuleOutput(second)),
    }
    return Family(
        layers=layers,
        embed=embed,
        layer=layer,
        heads=tuple(_dense_head(dense, name) if dense else _head(name, None, pooled=True) for name in heads),
        feed_forward=FeedForward(up, activation, down) if activation else None,
        unreachable=unreachable or {},
    )


def _dense_head(dense: str, name: str) -> dict[str, Taps]:
    return {
        "head.in": Taps(read_at=ModuleInput(dense)),
        "head.mid": one_tap(ModuleInput(name)),
        "head.out": Taps(made_at=ModuleOutput(name)),
    }


def embeddings(norm: str) -> Mapping[str, Taps]:
    """The sum of the embeddings, and its LayerNorm's output."""
    return {"sum": Taps(made_at=ModuleInput(norm)), "out": Taps(made_at=ModuleOutput(norm))}


def patches(module: str) -> Mapping[str, Taps]:
    """The pixels that a convolution reads, and its output, (batch, patches, channels)."""
    return {
        "in": one_tap(Pixels(f"{module}.projection")),
        "patches": Taps(made_at=ModuleOutput(module)),
    }


def vision(
    base: str, layers: str, norms: tuple[str, str], scaled: bool = False, gated: bool = False
) -> Family:
    """ViT and its kin, whose modules have one another's names."""
    return pre_norm(
        layers=f"{base}.{layers}",
        attention="attention",
        norms=norms,
        out="attention.o_proj",
        gate="mlp.gate_proj" if gated else None,
        up="mlp.up_proj" if gated else "mlp.fc1",
        activation=None if gated else "mlp.activation_fn",
        down="mlp.down_proj" if gated else "mlp.fc2",
        added=("layer_scale1", "layer_scale2") if scaled else None,
        embed=patches(f"{base}.embeddings.patch_embeddings"),
        final=f"{base}.layernorm",
        heads=("classifier",),
        causal=False,
        pooled=True,
    )


def _head(name: str, last: Tap | None, pooled: bool) -> Mapping[str, Taps]:
    """A head of one Linear. It reads the last norm's output, or if ``pooled`` something made of it."""
    reads, out = ModuleInput(name), {"head.out": Taps(made_at=ModuleOutput(name))}
    if pooled:
        before = {} if last is None else {"final.out": Taps(made_at=last)}
        return {**before, "head.in": Taps(read_at=reads), **out}
    return {"final.out": Taps(made_at=last, read_at=reads), **out}
