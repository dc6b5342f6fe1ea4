"""Renders a page as one HTML file that needs no network."""

import base64
import hashlib
import json
import math
import re
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from quantlab.reporting.content import Content
from quantlab.reporting.shapes import Plot

# Controls and characters that are none, which HTML forbids; the bundle has some in strings and regular
# expressions.
NOT_IN_HTML = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")


def render(content: Content) -> str:
    """The page as HTML. All text is escaped; the page's security policy admits only its own two scripts."""
    scripts = {"plotly": plotly_script(), "script": text("page.js")}
    allowed = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts.values())
    figures = [{"id": "trials", "table": _table(content.table)}, *map(_json, content.plots)]
    return (
        html_templates()
        .from_string(text("page.html.j2"))
        .render(
            content.values,
            style=Markup(text("page.css")),
            allowed=Markup(allowed),
            figures=embedded(figures),
            **{name: Markup(script) for name, script in scripts.items()},
        )
    )


def embedded(value: Any) -> Markup:
    """The value as JSON that cannot end the script element around it."""
    content = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return Markup(content.replace("<", "\\u003c"))


@cache
def plotly_script() -> str:
    """Plotly's JavaScript bundle, made safe for a script element of a valid page."""
    from plotly.offline import get_plotlyjs

    safe = str(get_plotlyjs()).replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return NOT_IN_HTML.sub(lambda sign: f"\\u{ord(sign[0]):04x}", safe)


def text(name: str) -> str:
    """The text of a file of this package."""
    return (files("quantlab.reporting") / name).read_text(encoding="utf-8")


def html_templates() -> Environment:
    """The environment of the template: escapes all values, raises for a missing one."""
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _json(plot: Plot) -> dict[str, Any]:
    return {
        "id": plot.id,
        "data": plot.traces,
        "layout": plot.layout,
        "height": plot.height,
        "labelled": plot.labelled,
        "table": _table(plot.data),
    }


def _table(table: pd.DataFrame) -> dict[str, Any]:
    cells = table.astype(object).replace([math.inf, -math.inf], None)
    return {
        "columns": list(map(str, table.columns)),
        "rows": cells.where(table.notna(), None).to_numpy().tolist(),
    }


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
