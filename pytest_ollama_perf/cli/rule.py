"""Options that say by what rule the gate judges, for every command that asks it."""

from __future__ import annotations

import argparse


def add_rule(parser: argparse.ArgumentParser, *, than: str) -> None:
    """Add ``--metric`` and ``--margin``; ``than`` is what a run may be worse than."""
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="judge this metric (tps, ttft, latency, ttft.p95, ...); may be repeated; default: those that gate",
    )
    parser.add_argument(
        "--margin",
        action="append",
        default=[],
        metavar="METRIC=PERCENT",
        help=f"how much worse than {than} is accepted, as in tps=5%%; may be repeated",
    )
