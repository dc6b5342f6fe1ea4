"""The report as one HTML file that needs no network."""

import base64
import hashlib
import json
import math
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from quantlab.reporting.content import Content
from quantlab.reporting.shapes import Plot


def render(content: Content) -> str:
    """The page; all text of the content is escaped."""
    scripts = {"plotly": plotly_script(), "script": text("page.js")}
    allowed = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts.values())
    figures = [{"id": "trials", "table": _table(content.table)}, *map(_json, content.plots)]
    return environment().from_string(text("page.html.j2")).render(
        content.values, style=Markup(text("page.css")), allowed=Markup(allowed), figures=embedded(figures),
        **{name: Markup(script) for name, script in scripts.items()},
    )  # fmt: skip


def embedded(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    content = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return Markup(content.replace("<", "\\u003c"))


@cache
def plotly_script() -> str:
    """Plotly's own bundle, safe inside a script element."""
    return str(get_plotlyjs()).replace("</script", "<\\/script").replace("<!--", "<\\!--")


def text(name: str) -> str:
    """A file of this package."""
    return (files("quantlab.reporting") / name).read_text(encoding="utf-8")


def environment() -> Environment:
    """Templates that escape everything and miss nothing."""
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _json(plot: Plot) -> dict[str, Any]:
    return {
        "id": plot.id, "data": plot.traces, "layout": plot.layout, "height": plot.height, "table": _table(plot.data),
    }  # fmt: skip


def _table(table: pd.DataFrame) -> dict[str, Any]:
    cells = table.astype(object).replace([math.inf, -math.inf], None)
    return {"columns": list(map(str, table.columns)), "rows": cells.where(table.notna(), None).to_numpy().tolist()}


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
