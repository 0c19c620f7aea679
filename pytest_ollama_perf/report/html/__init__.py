"""The report as one HTML file that needs nothing else: no network, no other file, no permission to run foreign script.

The content security policy names the hashes of the page's own script and style and refuses everything else, so that a
text from a server, were it ever not escaped, still could not run, load or send anything. Charts are Vega-Lite
specifications, drawn by Vega with its interpreter of expressions (no ``eval``), each when it comes into view.
"""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from importlib import resources
from typing import Any

import msgspec

from pytest_ollama_perf.core.errors import MissingExtraError
from pytest_ollama_perf.report.document import Document
from pytest_ollama_perf.report.html.charts import Chart
from pytest_ollama_perf.report.html.page import PageView, build_page

try:
    import vl_convert
    from jinja2 import Environment, StrictUndefined, Template
    from markupsafe import Markup
except ImportError as error:
    raise MissingExtraError("the HTML report", "html") from error


def render_html(document: Document) -> bytes:
    """Return the page of ``document`` as UTF-8."""
    return _render_template(build_page(document))


def _render_template(page: PageView) -> bytes:
    book = _ChartCollector()
    script, style = _load_vega_script() + "\n" + _read_resource("page.js"), _read_resource("page.css")
    text: str = _load_template().render(
        page=page,
        chart=book.add,
        data=book.to_json,
        script=Markup(script),
        style=Markup(style),
        policy=_build_security_policy(script, style),
    )
    return text.encode("utf-8", "replace")


class _ChartCollector:
    """Gathers the charts of a page as its template comes to them.

    Equal specifications are kept once, and so are equal texts within a chart: its rows hold their numbers.
    """

    def __init__(self) -> None:
        self._specs: dict[bytes, int] = {}
        self._charts: list[dict[str, Any]] = []

    def add(self, chart: Chart) -> int:
        """Return the number under which the page's script finds the chart."""
        spec = self._specs.setdefault(msgspec.json.encode(chart.spec), len(self._specs))
        words: dict[str, int] = {}
        rows = [
            [words.setdefault(cell, len(words)) if isinstance(cell, str) else cell for cell in row]
            for row in chart.rows
        ]
        texts = [any(isinstance(row[at], str) for row in chart.rows) for at in range(len(chart.columns))]
        self._charts.append(
            {"spec": spec, "columns": chart.columns, "texts": texts, "words": list(words), "rows": rows}
        )
        return len(self._charts) - 1

    def to_json(self) -> Markup:
        """Return all charts as JSON that cannot end its HTML element."""
        whole = {"specs": [msgspec.Raw(spec) for spec in self._specs], "charts": self._charts}
        text = msgspec.json.encode(whole).decode("utf-8", "replace")
        return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@lru_cache(maxsize=1)
def _load_vega_script() -> str:
    """Return the script of Vega, Vega-Lite and Vega-Embed, escaped for a script element."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;")
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _read_resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _load_template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_read_resource("page.html.j2"))


def _build_security_policy(script: str, style: str) -> str:
    return (
        f"default-src 'none'; script-src {_hash_source(script)}; style-src {_hash_source(style)}; base-uri 'none'; "
        "form-action 'none'"
    )


def _hash_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
