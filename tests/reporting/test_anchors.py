"""Published numbers beside ours: every cell that can be filled is."""

from pathlib import Path

import pytest
from made import REFERENCE, sweep

from quantlab.alarms.published import FP32, published_anchors
from quantlab.reporting import anchors
from quantlab.reporting.comparing import compared_trials
from quantlab.reporting.sections import Table
from quantlab.reporting.sources import from_folders


def component(name: str) -> dict[str, str]:
    return {"_target_": f"quantlab.{name}"}


W8A8 = {"weights": 8, "activations": 8, "symmetric": False, "weight_granularity": "tensor"}


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Table]:
    study = from_folders(
        [
            sweep(
                tmp_path,
                [
                    {**REFERENCE, "config": {"method": component("methods.uniform.Fp32")}},
                    {"name": "ours", "wrong": 8, "config": {"bits": W8A8}},
                    {"name": "paper's", "wrong": 40, "config": {"bits": {**W8A8, "symmetric": True}}},
                ],
            )
        ]
    )
    return {table.id: table for table in anchors.published_tables(study, compared_trials(study))}


def test_differences_to_the_published_fp32_are_filled(tables: dict[str, Table]) -> None:
    table = tables["anchors"]
    column = [row[list(table.names).index("less its FP32 (points)")] for row in table.rows]
    qnli = [anchor for anchor in published_anchors() if anchor.task == "qnli"]
    shown = [anchor for anchor in qnli if anchor.bits in (FP32, "INT8")]
    assert column == [f"{100 * (anchor.value - 0.918):+z.1f}".replace("-", "\u2212") for anchor in shown]


def test_our_trials_stand_beside_what_they_are_like(tables: dict[str, Table]) -> None:
    for table, published, name, ours, difference in (
        ("anchors", "FP32", "FP32", "90.00", ""),
        ("anchors", "min max INT8", "ours", "88.00", "\u22122.00"),
        ("paper", "FP32", "FP32", "90.00", ""),
        ("paper", "W8A8 min-max", "paper's", "80.00", "\u221210.00"),
    ):
        row = next(row for row in tables[table].rows if row[0] == published)
        cells = dict(zip(tables[table].names, row, strict=True))
        assert (cells["our trials"], cells["ours (%)"], cells["less our FP32 (points)"]) == (
            name,
            ours,
            difference,
        )


def test_another_task_has_no_published_numbers(tmp_path: Path) -> None:
    study = from_folders([sweep(tmp_path, [{"name": "a", "config": {"task": {"name": "rte"}}}])])
    assert anchors.published_tables(study, compared_trials(study)) == []
