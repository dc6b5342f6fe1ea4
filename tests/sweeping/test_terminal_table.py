"""A sweep's table on a terminal: whole words, two lines a row, within the width."""

import pytest
from faked import answers, changed, faked

from quantlab.sweeping.terminal_table import table_lines

NAMES = ("FP32", "W8A8 symmetric, 10 weights clipped", 'keep=["*.ffn.in","*.ffn.out","*.ffn.sum"] more')


@pytest.mark.parametrize("width", [80, 160])
def test_rows_fit_and_words_stay_whole(width: int) -> None:
    results = changed(
        faked([{"method.k": str(k)} for k in range(3)], answers([0.9, 0.5, 0.7])),
        name=list(NAMES),
        alarms=["", "wasted_levels, saturation", "saturation"],
    )
    lines = list(table_lines(results, width))
    table = [line for line in lines if not line.startswith("alarm ")]
    assert max(map(len, table)) <= width and len(table) <= 1 + 2 * len(NAMES)
    words = " ".join(table).split()
    assert {"W8A8", "symmetric,", "FP32"} <= set(words)
    assert lines[-2:] == ["alarm wasted_levels: trial 2", "alarm saturation: trials 2, 3"]
