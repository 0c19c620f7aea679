"""The charts of the page as Vega-Lite specifications: what is drawn, never how.

Every function returns a ``Chart``: a specification that holds no data and no text from outside, and a table of rows for
it. Specifications that many charts share are written into the page once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

Spec = dict[str, Any]
Cell = str | float | int | bool | None

PHASE_NAMES = ("not sent yet", "on its way", "load", "queue", "prefill", "decode", "whole", "failed")
"""What a request can be doing, in the order of time; ``whole`` if the server reports no counters."""


BASELINE_SERIES = "baseline"
"""What the series of stored runs is called; it is drawn dashed."""


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """One chart: its title, what it shows in one sentence (for those who do not see it), and its rows.

    Text from servers and users is in ``rows`` only, which the charting library treats as data.
    """

    title: str
    says: str
    spec: Spec
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]


def draw_distribution(title: str, says: str, axis: str, rows: Sequence[Sequence[Cell]]) -> Chart:
    """Return empirical distributions, a step line for each series; rows are ``(series, value, share)``."""
    series = {"field": "series", "type": "nominal", "sort": None, "title": None}
    spec = _build_spec(
        {
            "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2},
            "encoding": {
                "x": {"field": "value", "type": "quantitative", "title": axis, "scale": {"zero": False, "nice": True}},
                "y": {
                    "field": "share",
                    "type": "quantitative",
                    "title": "share of requests",
                    "scale": {"domain": [0, 1]},
                    "axis": {"format": "%"},
                },
                "color": series,
                "strokeDash": {
                    "condition": {"test": f"datum.series === '{BASELINE_SERIES}'", "value": [6, 4]},
                    "value": [1, 0],
                },
                "tooltip": [
                    {"field": "series", "title": "of"},
                    {"field": "value", "title": axis, "format": ".4~g"},
                    {"field": "share", "title": "requests up to this", "format": ".0%"},
                ],
            },
        },
        height=190,
    )
    return Chart(title=title, says=says, spec=spec, columns=("series", "value", "share"), rows=rows)


def draw_timeline(says: str, lanes: int, rows: Sequence[Sequence[Cell]]) -> Chart:
    """Return requests as bars by phase; rows are ``(lane, phase, from, to, request, stage)``, times in seconds."""
    drawn = {row[1] for row in rows}
    phases = [phase for phase in PHASE_NAMES if phase in drawn]
    colors = [f"var(--phase{PHASE_NAMES.index(phase)})" for phase in phases]
    spec = _build_spec(
        {
            "mark": {"type": "bar", "height": {"band": 0.85}},
            "encoding": {
                "y": {"field": "lane", "type": "ordinal", "title": "client", "axis": {"labelOverlap": True}},
                "x": {"field": "from", "type": "quantitative", "title": "seconds since the first request"},
                "x2": {"field": "to"},
                "color": {
                    "field": "phase",
                    "type": "nominal",
                    "title": None,
                    "scale": {"domain": phases, "range": colors},
                },
                "opacity": {
                    "field": "stage",
                    "type": "ordinal",
                    "scale": {"domain": ["warmup", "measured"], "range": [0.45, 1]},
                    "legend": None,
                },
                "tooltip": [
                    {"field": "request", "title": "request"},
                    {"field": "stage", "title": "stage"},
                    {"field": "phase", "title": "phase"},
                    {"field": "from", "title": "from (s)", "format": ".3f"},
                    {"field": "to", "title": "to (s)", "format": ".3f"},
                ],
            },
        },
        height=min(420, 40 + 16 * lanes),
    )
    columns = ("lane", "phase", "from", "to", "request", "stage")
    return Chart(title="Requests over time", says=says, spec=spec, columns=columns, rows=rows)


def draw_curve(title: str, says: str, axis: str, value: str, rows: Sequence[Sequence[Cell]]) -> Chart:
    """Return a number along the levels of a sweep, with its interval and the marks of knee and saturation.

    Rows are ``(curve, level, value, low, high, mark)``.
    """
    x = {"field": "level", "type": "quantitative", "title": axis}
    y = {"field": "value", "type": "quantitative", "title": value, "scale": {"zero": True}}
    color = {"field": "curve", "type": "nominal", "sort": None, "title": None}
    tip = [
        {"field": "curve", "title": "curve"},
        {"field": "level", "title": axis},
        {"field": "value", "title": value, "format": ".4~g"},
        {"field": "mark", "title": "here"},
    ]
    marked = {"filter": "datum.mark !== null"}
    spec = _build_spec(
        {
            "encoding": {"x": x, "color": color},
            "layer": [
                {
                    "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.5},
                    "encoding": {"y": y | {"field": "low"}, "y2": {"field": "high"}},
                },
                {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"y": y}},
                {"mark": {"type": "point", "filled": True, "size": 60}, "encoding": {"y": y, "tooltip": tip}},
                {
                    "transform": [marked],
                    "mark": {"type": "point", "size": 260, "strokeWidth": 2.5, "filled": False},
                    "encoding": {"y": y, "tooltip": tip},
                },
                {
                    "transform": [marked],
                    "mark": {"type": "text", "dy": -17, "fontWeight": "bold"},
                    "encoding": {"y": y, "text": {"field": "mark"}},
                },
            ],
        },
        height=220,
    )
    columns = ("curve", "level", "value", "low", "high", "mark")
    return Chart(title=title, says=says, spec=spec, columns=columns, rows=rows)


def draw_changes(says: str, rows: Sequence[Sequence[Cell]]) -> Chart:
    """Return relative changes with their intervals and the allowed margins.

    Rows are ``(number, change, low, high, margin, verdict)``; shares, ``margin`` with the sign of worse.
    """
    y = {"field": "number", "type": "nominal", "sort": None, "title": None}
    x = {"type": "quantitative", "title": "change against the baseline", "axis": {"format": "+.0%"}}
    tip = [
        {"field": "number", "title": "number"},
        {"field": "change", "title": "change", "format": "+.1%"},
        {"field": "low", "title": "from", "format": "+.1%"},
        {"field": "high", "title": "to", "format": "+.1%"},
        {"field": "margin", "title": "margin", "format": "+.0%"},
        {"field": "verdict", "title": "verdict"},
    ]
    color = {
        "field": "verdict",
        "type": "nominal",
        "title": None,
        "scale": {
            "domain": ["ok", "faster", "unsure", "incomparable", "regressed"],
            "range": [f"var(--{name})" for name in ("good", "good", "doubtful", "doubtful", "bad")],
        },
        "legend": None,
    }
    spec = _build_spec(
        {
            "encoding": {"y": y},
            "layer": [
                {"mark": {"type": "rule", "strokeDash": [2, 2]}, "encoding": {"x": {"datum": 0}, "y": None}},
                {
                    "mark": {"type": "tick", "thickness": 2, "color": "var(--bad)", "bandSize": 22},
                    "encoding": {"x": x | {"field": "margin"}},
                },
                {
                    "mark": {"type": "rule", "strokeWidth": 4, "opacity": 0.6},
                    "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}, "color": color},
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 90},
                    "encoding": {"x": x | {"field": "change"}, "color": color, "tooltip": tip},
                },
            ],
        },
        height=30 + 30 * len(rows),
    )
    columns = ("number", "change", "low", "high", "margin", "verdict")
    return Chart(title="Change against the baseline", says=says, spec=spec, columns=columns, rows=rows)


_RUN_KINDS = ("compared", "not compared", "left out", "now")
_RUN_SHAPES = ("circle", "square", "cross", "diamond")


def draw_history(title: str, says: str, axis: str, rows: Sequence[Sequence[Cell]]) -> Chart:
    """Return one number of every run, old and new; rows are ``(run, when, value, epoch, kind, note, reference)``.

    ``run`` counts from 1, ``note`` says what started an epoch, ``reference`` is the value that drift is measured from.
    """
    x: Spec = {"field": "run", "type": "quantitative", "title": "run, oldest first"}
    x |= {"axis": {"tickMinStep": 1, "format": "d"}, "scale": {"zero": False}}
    y = {"field": "value", "type": "quantitative", "title": axis, "scale": {"zero": False}}
    tip = [
        {"field": "when", "title": "when (UTC)"},
        {"field": "value", "title": axis, "format": ".4~g"},
        {"field": "kind", "title": "run"},
        {"field": "epoch", "title": "epoch"},
        {"field": "note", "title": "since the run before"},
    ]
    drawn = {row[4] for row in rows}
    kinds = {kind: place for place, kind in enumerate(_RUN_KINDS) if kind in drawn}
    color = {
        "field": "kind",
        "type": "nominal",
        "title": None,
        "scale": {"domain": list(kinds), "range": [f"var(--kind{place})" for place in kinds.values()]},
    }
    shape = {**color, "scale": {"domain": list(kinds), "range": [_RUN_SHAPES[place] for place in kinds.values()]}}
    noted = {"filter": "datum.note !== null"}
    spec = _build_spec(
        {
            "encoding": {"x": x},
            "layer": [
                {"transform": [noted], "mark": {"type": "rule", "strokeDash": [3, 3]}, "encoding": {"tooltip": tip}},
                {
                    "mark": {"type": "line", "strokeWidth": 1.5, "opacity": 0.7},
                    "encoding": {"y": y | {"field": "reference"}, "detail": {"field": "epoch"}},
                },
                {
                    "mark": {"type": "line", "strokeWidth": 1, "opacity": 0.35},
                    "encoding": {"y": y, "detail": {"field": "epoch"}},
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                    "encoding": {"y": y, "color": color, "shape": shape, "tooltip": tip},
                },
            ],
        },
        height=200,
    )
    columns = ("run", "when", "value", "epoch", "kind", "note", "reference")
    return Chart(title=title, says=says, spec=spec, columns=columns, rows=rows)


def draw_server_balance(says: str, rows: Sequence[Sequence[Cell]]) -> Chart:
    """Return how many requests each server answered; rows are ``(server, outcome, requests, ttft)``."""
    outcome = {"field": "outcome", "type": "nominal", "title": None}
    spec = _build_spec(
        {
            "mark": {"type": "bar"},
            "encoding": {
                "y": {"field": "server", "type": "nominal", "sort": None, "title": None},
                "x": {"field": "requests", "type": "quantitative", "title": "requests", "axis": {"tickMinStep": 1}},
                "color": outcome | {"scale": {"domain": ["ok", "failed"], "range": ["var(--good)", "var(--bad)"]}},
                "tooltip": [
                    {"field": "server", "title": "server"},
                    {"field": "outcome", "title": "outcome"},
                    {"field": "requests", "title": "requests"},
                    {"field": "ttft", "title": "ttft p50 (ms)", "format": ".4~g"},
                ],
            },
        },
        height=40 + 28 * len({row[0] for row in rows}),
    )
    columns = ("server", "outcome", "requests", "ttft")
    return Chart(title="Requests by server", says=says, spec=spec, columns=columns, rows=rows)


def draw_stacked_bars(title: str, says: str, axis: str, rows: Sequence[Sequence[Cell]]) -> Chart:
    """Return times made of parts, such as a cold start's; rows are ``(start, part, value)``."""
    spec = _build_spec(
        {
            "mark": {"type": "bar"},
            "encoding": {
                "y": {"field": "start", "type": "nominal", "sort": None, "title": None},
                "x": {"field": "value", "type": "quantitative", "title": axis, "stack": "zero"},
                "color": {"field": "part", "type": "nominal", "sort": None, "title": None},
                "tooltip": [
                    {"field": "start", "title": "start"},
                    {"field": "part", "title": "part"},
                    {"field": "value", "title": axis, "format": ".4~g"},
                ],
            },
        },
        height=40 + 28 * len({row[0] for row in rows}),
    )
    return Chart(title=title, says=says, spec=spec, columns=("start", "part", "value"), rows=rows)


def _build_spec(view: Mapping[str, Any], height: int) -> Spec:
    return {
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"name": "rows"},
        **view,
    }
