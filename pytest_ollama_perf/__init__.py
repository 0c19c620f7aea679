"""Performance regression tests for models served by Ollama.

Everything that a test needs can be imported from here. Nothing is imported before it is used, so that runs of other
tests stay fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_ollama_perf.config.option_types import (
        ABOptions,
        ABSideOptions,
        ColdStartOptions,
        LimitOptions,
        LoadOptions,
        MaxConcurrencyOptions,
        SweepOptions,
    )
    from pytest_ollama_perf.core import ConfigError, OllamaPerfError
    from pytest_ollama_perf.core.verdict import Verdict, VerdictStatus
    from pytest_ollama_perf.experiments.experiment_results import (
        ABChange,
        ABResult,
        ColdStartResult,
        MaxConcurrencyResult,
    )
    from pytest_ollama_perf.experiments.results import LoadResult
    from pytest_ollama_perf.experiments.sweep_points import CurveResult, SweepPointResult, SweepResult
    from pytest_ollama_perf.fixtures import Ollama, Simulators, WarmUp, ab, cold_start, load, max_concurrency, sweep
    from pytest_ollama_perf.metrics.summary import MetricSummary


__all__ = [
    "ABChange",
    "ABOptions",
    "ABResult",
    "ABSideOptions",
    "ColdStartOptions",
    "ColdStartResult",
    "ConfigError",
    "CurveResult",
    "LimitOptions",
    "LoadOptions",
    "LoadResult",
    "MaxConcurrencyOptions",
    "MaxConcurrencyResult",
    "MetricSummary",
    "Ollama",
    "OllamaPerfError",
    "Simulators",
    "SweepOptions",
    "SweepPointResult",
    "SweepResult",
    "Verdict",
    "VerdictStatus",
    "WarmUp",
    "ab",
    "cold_start",
    "load",
    "max_concurrency",
    "sweep",
]

_MODULES = {
    "config.option_types": (
        *("ABOptions", "ABSideOptions", "ColdStartOptions", "LimitOptions", "LoadOptions"),
        *("MaxConcurrencyOptions", "SweepOptions"),
    ),
    "core": ("ConfigError", "OllamaPerfError"),
    "core.verdict": ("Verdict", "VerdictStatus"),
    "experiments.experiment_results": ("ABChange", "ABResult", "ColdStartResult", "MaxConcurrencyResult"),
    "experiments.results": ("LoadResult",),
    "experiments.sweep_points": ("CurveResult", "SweepPointResult", "SweepResult"),
    "fixtures": (
        *("Ollama", "Simulators", "WarmUp"),
        *("ab", "cold_start", "load", "max_concurrency", "sweep"),
    ),
    "metrics.summary": ("MetricSummary",),
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a public name when it is used first."""
        from importlib import import_module

        module = next((module for module, names in _MODULES.items() if name in names), "")
        if not module:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{module}"), name)
