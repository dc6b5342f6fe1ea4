"""Outliers by kind of token: kinds from vocabularies, shares counted one by one, transformers' attention."""

import numpy as np
import pandas as pd
import pytest
import torch
from materials import VOCABULARY, kept, made_tokenizer, material_of, seen
from test_planted_outlier import OUTLIERS, residual
from tiny import FAMILIES, tiny_model
from transformers import RobertaTokenizerFast

from quantlab.analysis.channels import sum_sites
from quantlab.analysis.tokens import (
    DRAWN_CHANNELS,
    PADDING,
    PUNCTUATION,
    SIGMAS,
    WORD,
    TokenKinds,
    is_punctuation,
    token_channels,
    token_table,
)
from quantlab.network.sites import Site
from quantlab.network.taps import tapped
from quantlab.tasks.batching import Batch

SEP, CHANNEL = VOCABULARY.index("[SEP]"), 5


@pytest.mark.parametrize(
    "text", [",", ".", "...", "##,", "—", "##—", "'", "«", "。", "$", "+", "©", " ,", "###", "¿?"]
)
def test_signs_are_punctuation(text: str) -> None:
    assert is_punctuation(text)


@pytest.mark.parametrize(
    "text", ["a", "##a", "1", "", "##", " ", "\n", "n't", "é", "猫", "a,", "\N{REPLACEMENT CHARACTER}"]
)
def test_words_digits_spaces_and_broken_bytes_are_not(text: str) -> None:
    assert not is_punctuation(text)


def kinds_of(vocabulary: dict[str, int], kinds: TokenKinds) -> dict[str, str]:
    return {token: kinds.names[kinds.of_id[number]] for token, number in vocabulary.items()}


def test_kinds_of_word_pieces() -> None:
    kinds = TokenKinds.of(made_tokenizer())
    assert kinds.names[-3:] == (PUNCTUATION, WORD, PADDING)
    found = kinds_of(made_tokenizer().get_vocab(), kinds)
    special = {name: name for name in ("[UNK]", "[CLS]", "[SEP]", "[MASK]")}
    assert {name: found[name] for name in special} == special
    assert {token for token, kind in found.items() if kind == PUNCTUATION} == {",", "—"}
    assert {token for token, kind in found.items() if kind == WORD} == {*VOCABULARY[5:-2], "[PAD]"}


def test_kinds_of_byte_level_pieces() -> None:
    pieces = {
        "âĢĶ": PUNCTUATION,
        "Ġ,": PUNCTUATION,
        "Ġcat": WORD,
        "âĢ": WORD,
        "Ċ": WORD,
        "Ġ": WORD,
        "Ã©": WORD,
    }
    names = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", *pieces)
    tokenizer = RobertaTokenizerFast(vocab={name: index for index, name in enumerate(names)}, merges=[])
    kinds = TokenKinds.of(tokenizer)
    assert len(set(kinds.names)) == len(kinds.names)  # <s> is two special tokens at once
    found = kinds_of(tokenizer.get_vocab(), kinds)
    assert {name: found[name] for name in pieces} == pieces
    assert (found["<s>"], found["</s>"]) == ("<s>", "</s>")


def test_padding_is_what_the_mask_leaves_out() -> None:
    kinds, tokenizer = TokenKinds.of(made_tokenizer()), made_tokenizer()
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(["[CLS]", "cat", ",", "[SEP]", "[PAD]", "cat"])])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    one_hot = kinds.one_hot(Batch(inputs={"input_ids": ids, "attention_mask": mask}, indices=np.arange(1)))
    assert one_hot.sum(-1).eq(1).all()
    expected = ["[CLS]", WORD, PUNCTUATION, "[SEP]", PADDING, PADDING]
    assert [kinds.names[index] for index in one_hot[0].argmax(-1)] == expected


def captured(material: object, site: Site, batches: list[Batch]) -> list[np.ndarray]:
    """A site's tensors with padding."""
    found: list[np.ndarray] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        found.append(x.double().numpy())
        return x

    with torch.inference_mode(), tapped(material.model, {site.tap: look}):  # type: ignore[attr-defined]
        for batch in batches:
            material.model(**batch.inputs)  # type: ignore[attr-defined]
    return found


def kind_of(token: int, valid: bool) -> str:
    name = VOCABULARY[token]
    if not valid:
        return PADDING
    return name if name.startswith("[") else PUNCTUATION if name in ",—" else WORD


def counted(batches: list[Batch], values: list[np.ndarray], channels: int) -> pd.DataFrame:
    """Tokens, elements beyond 6 sigma and energy by kind, counted token by token."""
    valid = np.concatenate([x[kept(batch)] for batch, x in zip(batches, values, strict=True)])
    mean, deviation = valid.mean(), valid.std()
    rows = [
        (
            kind_of(int(token), ok),
            1,
            int((np.abs(vector - mean) > SIGMAS * deviation).sum()),
            (vector**2).sum(),
        )
        for batch, x in zip(batches, values, strict=True)
        for token, ok, vector in zip(
            batch.inputs["input_ids"].ravel(), kept(batch).ravel(), x.reshape(-1, channels), strict=True
        )
    ]
    return pd.DataFrame(rows, columns=["kind", "tokens", "outliers", "energy"]).groupby("kind").sum()


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_are_what_counting_token_by_token_gives(family: str) -> None:
    model = tiny_model(family)
    embeddings = model.base_model.embeddings.word_embeddings.weight
    embeddings[SEP, CHANNEL], embeddings[VOCABULARY.index(","), 3] = 80, -60
    material = material_of(model)
    batches, sketches = seen(material)
    table = token_table(material, batches, sketches)[0]
    for depth, site in enumerate(sum_sites(material)):
        part = table[table["depth"] == depth].set_index("kind")
        expected = counted(batches, captured(material, site, batches), site.channels)
        assert set(part.index) == set(expected.index) and set(part["site"]) == {site.name}
        rate = expected["outliers"] / expected["tokens"] / site.channels
        np.testing.assert_allclose(part["rate"], rate[part.index], rtol=1e-6)
        part, expected = part.drop(index=PADDING), expected.drop(index=PADDING)
        for column in ("tokens", "outliers", "energy"):
            shares = (expected[column] / expected[column].sum())[part.index]
            np.testing.assert_allclose(part[column], shares, rtol=1e-5, err_msg=f"{site.name} {column}")
            assert part[column].sum() == pytest.approx(1 if expected[column].any() else 0)


def test_outliers_planted_at_the_separator_are_found_there() -> None:
    model = tiny_model()
    model.bert.embeddings.word_embeddings.weight[SEP, CHANNEL] = 100
    material = material_of(model)
    batches, sketches = seen(material)
    table, stability = token_table(material, batches, sketches)
    first = table[table["depth"] == 0].set_index("kind")
    assert first["outliers"]["[SEP]"] == 1 and first["rate"]["[SEP]"] == pytest.approx(1 / 32)
    assert (first["rate"].drop("[SEP]") == 0).all()
    separators = sum((batch.inputs["input_ids"].numpy() == SEP).sum() for batch in batches)
    tokens = sum(kept(batch).sum() for batch in batches)
    assert first["tokens"]["[SEP]"] == pytest.approx(separators / tokens)
    assert (
        separators / tokens < stability[0] < 1
    )  # the channel is each separator's strongest, and some others'


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_what_transformers_eager_attention_pays(family: str) -> None:
    model = tiny_model(family)
    material = material_of(model)
    batches, sketches = seen(material)
    table = token_table(material, batches, sketches)[0]
    paid: list[dict[str, float]] = [{}, {}]
    for batch in batches:
        with torch.inference_mode():
            attentions = model(**batch.inputs, output_attentions=True).attentions
        for layer, probs in enumerate(attentions):
            for row, queries in enumerate(kept(batch)):
                received = probs[row].double().numpy()[:, queries].sum((0, 1))  # of every key
                for token, ok, mass in zip(
                    batch.inputs["input_ids"][row].tolist(), queries, received, strict=True
                ):
                    kind = kind_of(token, ok)
                    paid[layer][kind] = paid[layer].get(kind, 0) + mass
    for layer in range(2):
        part = table[table["depth"] == layer].set_index("kind")["attention"]
        total = sum(mass for kind, mass in paid[layer].items() if kind != PADDING)
        assert paid[layer][PADDING] == pytest.approx(0, abs=1e-6 * total)
        for kind in part.index.drop(PADDING):
            assert part[kind] == pytest.approx(paid[layer][kind] / total, rel=1e-4)
        assert part.sum() == pytest.approx(1) and np.isnan(part[PADDING])
    assert table[table["depth"] == 2]["attention"].isna().all()


def test_dominant_channels_of_some_tokens_only() -> None:
    """The mean over tokens of 1 if the strongest channel is the planted one, else 0."""
    model = tiny_model()
    model.bert.embeddings.word_embeddings.weight[SEP, CHANNEL] = 100
    material = material_of(model)
    batches, sketches = seen(material)
    values = captured(material, sum_sites(material)[0], batches)
    strongest = np.concatenate([np.abs(x[kept(b)]).argmax(-1) for x, b in zip(values, batches, strict=True)])
    assert token_table(material, batches, sketches)[1][0] == pytest.approx((strongest == CHANNEL).mean())


def test_the_heat_map_of_tokens_shows_the_first_row() -> None:
    material = material_of(residual())
    batches, sketches = seen(material)
    site = sum_sites(material)[1]
    table = token_channels(material, batches[0], site, sketches[site.name])
    valid = kept(batches[0])[0]
    values = captured(material, site, batches[:1])[0][0][valid]
    tokens = [VOCABULARY[token] for token in batches[0].inputs["input_ids"][0][valid]]
    assert table.groupby("position")["token"].first().tolist() == tokens
    assert table["channel"].nunique() == DRAWN_CHANNELS and set(OUTLIERS) <= set(table["channel"])
    for row in table.itertuples():
        assert row.value == pytest.approx(values[row.position, row.channel], rel=1e-6)
    strongest = table.groupby("channel")["value"].apply(lambda column: column.abs().max())
    assert set(strongest.nlargest(len(OUTLIERS)).index) == set(OUTLIERS)
