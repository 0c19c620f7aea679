"""The markers as functions with typed arguments: ``@pytest_ollama_perf.load(concurrency=4)``.

Each is the same as the marker of its name, ``@pytest.mark.ollama_load(concurrency=4)``, but editors and type checkers
know its arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pytest_ollama_perf.config.option_types import (
        ABOptions,
        ColdStartOptions,
        LoadOptions,
        MaxConcurrencyOptions,
        SweepOptions,
    )


def load(**options: Unpack[LoadOptions]) -> pytest.MarkDecorator:
    """Return the marker ``ollama_load``: run a load before the test and check its limits."""
    return pytest.mark.ollama_load.with_args(**options)


def sweep(**options: Unpack[SweepOptions]) -> pytest.MarkDecorator:
    """Return the marker ``ollama_sweep``: run a load at every level."""
    return pytest.mark.ollama_sweep.with_args(**options)


def ab(**options: Unpack[ABOptions]) -> pytest.MarkDecorator:
    """Return the marker ``ollama_ab``: compare two sides."""
    return pytest.mark.ollama_ab.with_args(**options)


def max_concurrency(**options: Unpack[MaxConcurrencyOptions]) -> pytest.MarkDecorator:
    """Return the marker ``ollama_max_concurrency``: find the highest concurrency that meets the limits."""
    return pytest.mark.ollama_max_concurrency.with_args(**options)


def cold_start(**options: Unpack[ColdStartOptions]) -> pytest.MarkDecorator:
    """Return the marker ``ollama_cold_start``: measure the first response after the model was unloaded."""
    return pytest.mark.ollama_cold_start.with_args(**options)
