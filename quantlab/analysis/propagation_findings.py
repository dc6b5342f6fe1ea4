"""What the table ``propagation`` says in sentences."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

ALL = "all"  # the row of all sources together
NAMED = 3  # sources without a linear prediction that are named, those of the largest error
COMES_TO_1 = 0.25  # a ratio within this of 1 confirms the derivative
INDEPENDENT = 1.5  # a superposition within this factor of 1


def propagation_sentences(table: pd.DataFrame, primary: str) -> Iterator[str]:
    """How many predictions hold, which fail and why, and whether errors are independent."""
    sources, together = table[table["site"] != ALL], table[table["site"] == ALL].iloc[0]
    failing = sources[sources["fails"].astype(bool)]
    yield (
        f"First-order propagation predicts the error of the logits within a factor of 2 for "
        f"{len(sources) - len(failing)} of {len(sources)} sources."
    )
    for _, row in failing.head(NAMED).iterrows():
        yield f"It fails for {row['site']}: {_why(row)}."
    if len(failing) > NAMED:
        yield f"It fails as well for {', '.join(failing['site'][NAMED:])}."
    if np.isfinite(together["superposition"]) and np.isfinite(together["ratio"]):
        yield _together(together)


def _why(row: pd.Series) -> str:
    half, eighth = row["ratio_half"], row["ratio_eighth"]
    text = f"the measured error is {row['ratio']:.2g} times the predicted"
    if not np.isfinite(half) or not np.isfinite(eighth):
        return f"{text}, and the derivative sees nothing of it" if np.isinf(row["ratio"]) else text
    text += f", at half the quantization error {half:.2g} times, at an eighth {eighth:.2g} times"
    if min(abs(half - 1), abs(eighth - 1)) <= COMES_TO_1:
        return f"{text}: the error ({row['local']:.1%} of the tensor) is too large for a linear prediction"
    if abs(eighth - 1) < abs(row["ratio"] - 1):
        return f"{text}: far too large for a linear prediction"
    return f"{text}: the derivative does not describe the network there at all"


def _together(row: pd.Series) -> str:
    power = row["superposition"]
    kind = "coherent" if power > INDEPENDENT else "cancelling" if power < 1 / INDEPENDENT else "independent"
    verdict = "as predicted" if not row["fails"] else "which no sum of single predictions foresees"
    return (
        f"All sources together make {power:.2g} times the sum of the predicted powers (1: independent), "
        f"as {kind} errors do; their error is {row['ratio']:.2g} times what the predictions add up to, "
        f"{verdict}."
    )
