"""Outlying weights: planted ones are listed with their place, and their share of energy is exact."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from materials import kept, material_of, seen
from tiny import FAMILIES, tiny_model
from transformers import PreTrainedModel

from quantlab.analysis import weights
from quantlab.analysis.weights import outlier_weights, weight_table

FFN, QUERY = "bert.encoder.layer.0.output.dense.weight", "bert.encoder.layer.1.attention.self.query.weight"


def planted() -> PreTrainedModel:
    """Two huge weights, one of them negative."""
    model = tiny_model()
    for name, row, column, sigmas in ((FFN, 3, 5, 200), (QUERY, 7, 2, -60)):
        weight = model.get_parameter(name).data
        weight[row, column] = sigmas * weight.std()
    return model


def table_of(model: PreTrainedModel, sigmas: float = 5.5) -> pd.DataFrame:
    material = material_of(model)
    return weight_table(model, material.sites, seen(material)[1], sigmas)


def test_planted_weights_come_first() -> None:
    model = planted()
    table = table_of(model)
    assert len(table) == 2
    first, second = table.to_dict("records")
    expected = {"parameter": FFN, "layer": "0", "row": 3, "column": 5, "site": "0.ffn.out", "channel": 3}
    assert {name: first[name] for name in expected} == expected
    assert first["dominant"] and first["energy"] > 0.5
    expected = {"parameter": QUERY, "layer": "1", "row": 7, "column": 2, "site": "1.attn.query", "channel": 7}
    assert {name: second[name] for name in expected} == expected
    assert second["value"] < 0 and second["sigmas"] < 0
    for found in (first, second):
        weight = model.get_parameter(found["parameter"])
        assert found["value"] == weight[found["row"], found["column"]]
        assert found["sigmas"] == pytest.approx(float(found["value"] / weight.std()))


def test_energy_is_one_where_one_weight_makes_the_channel() -> None:
    model = planted()
    dense = model.bert.encoder.layer[0].output.dense
    dense.weight[3], dense.bias[3] = 0, 0
    dense.weight[3, 5] = 40
    row = table_of(model).iloc[0]
    assert (row["parameter"], row["row"], row["column"]) == (FFN, 3, 5)
    assert row["energy"] == pytest.approx(1, rel=1e-5)


def test_energy_is_of_the_products_input_and_output() -> None:
    """w² E[in²] / E[out²] from the Linear's input and output."""
    model, ends = planted(), []
    dense = model.bert.encoder.layer[0].output.dense
    material = material_of(model)
    batches, sketches = seen(material)
    dense.register_forward_hook(lambda _, x, y: ends.append((x[0][..., 5].double(), y[..., 3].double())))
    with torch.inference_mode():
        for batch in batches:
            model(**batch.inputs)
    sent, made = (
        np.concatenate([end[side].numpy()[kept(batch)] for end, batch in zip(ends, batches, strict=True)])
        for side in (0, 1)
    )
    expected = float(dense.weight[3, 5]) ** 2 * (sent**2).mean() / (made**2).mean()
    assert weight_table(model, material.sites, sketches, 20)["energy"][0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_has_its_sites_and_no_other_module_is_listed(family: str) -> None:
    """At half a standard deviation every matrix has some, so every matrix's site is seen."""
    model = tiny_model(family)
    linears = {
        f"{path}.weight" for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "LISTED", 10**6)
        table = table_of(model, sigmas=0.5)
    assert set(table["parameter"]) == linears
    assert set(table["site"][table["layer"] == "1"]) >= {"1.attn.query", "1.attn.out", "1.ffn.out"}
    inside = {f"1.{role}" for role in ("attn.query", "attn.key", "attn.value", "attn.out", "ffn.out")}
    known = table[table["site"].isin(inside)]
    assert known["energy"].notna().all() and (known["energy"] > 0).all()
    assert not known["dominant"].any()
    assert not (table["site"][table["layer"] == "1"] == "").any()
    middle = table[table["site"] == "1.ffn.mid"]  # seen after its activation function only
    assert middle["parameter"].nunique() == 1 and middle["energy"].isna().all()


def test_the_list_is_the_largest_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    whole = table_of(model, sigmas=2)
    assert whole["sigmas"].abs().is_monotonic_decreasing and whole["sigmas"].abs().min() > 2
    monkeypatch.setattr(weights, "LISTED", 5)
    pd.testing.assert_frame_equal(table_of(model, sigmas=2), whole.head(5))
    linears = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    beyond = sum(int((np.abs(w.numpy()) > 2 * w.numpy().std(ddof=1)).sum()) for w in linears)
    assert outlier_weights(model, 2) == beyond > len(whole) == 200


def test_no_weight_is_an_empty_table_with_its_columns() -> None:
    table = table_of(tiny_model(), sigmas=1000)
    assert not len(table) and {"parameter", "sigmas", "energy", "dominant"} <= set(table)
    assert math.isnan(table["sigmas"].abs().max())
