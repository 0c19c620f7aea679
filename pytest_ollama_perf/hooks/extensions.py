"""What other plugins add through the hooks in ``specs``: metrics, report formats and stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_perf.core.errors import ConfigError

if TYPE_CHECKING:
    from pytest_ollama_perf.metrics.definitions import Metric


def register_extensions(config: pytest.Config) -> None:
    """Ask every plugin for its extensions, also those that are registered later. They end with ``config``.

    Raises:
        pytest.UsageError: a name is wrong or already in use.
    """
    extensions = _Extensions(config)
    arguments = {"config": config}
    hook = config.hook
    hook.pytest_ollama_metrics.call_historic(result_callback=extensions.add_metrics, kwargs=arguments)
    hook.pytest_ollama_report_formats.call_historic(result_callback=extensions.add_formats, kwargs=arguments)
    hook.pytest_ollama_stores.call_historic(result_callback=extensions.add_stores, kwargs=arguments)


class _Extensions:
    """Adds extensions, and removes them when the configuration is no longer used."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def add_metrics(self, metrics: Sequence[Metric]) -> None:
        from pytest_ollama_perf.metrics.definitions import add_metric, remove_metric

        for metric in metrics:
            self._add(add_metric, remove_metric, metric.name, metric)

    def add_formats(self, formats: Mapping[str, Callable[..., bytes]]) -> None:
        from pytest_ollama_perf.config.report_targets import add_report_type, remove_report_type

        for name, writer in formats.items():
            self._add(add_report_type, remove_report_type, name, name, writer)

    def add_stores(self, stores: Mapping[str, Callable[[str], Any]]) -> None:
        from pytest_ollama_perf.store import add_store, remove_store

        for scheme, open_store in stores.items():
            self._add(add_store, remove_store, scheme, scheme, open_store)

    def _add(self, add: Callable[..., None], remove: Callable[[str], None], name: str, *arguments: Any) -> None:
        try:
            add(*arguments)
        except ConfigError as error:
            raise pytest.UsageError(str(error)) from None
        self._config.add_cleanup(lambda: remove(name))
