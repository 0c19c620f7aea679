"""The hooks that this plugin offers to ``conftest.py`` files and to other plugins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_perf.core import ConfigError

if TYPE_CHECKING:
    from pytest_ollama_perf.harness.evaluation import TestResult
    from pytest_ollama_perf.metrics import Metric
    from pytest_ollama_perf.report.document import Document
    from pytest_ollama_perf.store.base import Store


@pytest.hookspec(historic=True)
def pytest_ollama_metrics(config: pytest.Config) -> Sequence[Metric] | None:
    """Return metrics to add. They appear in results and reports and can be limited; history does not judge them.

    ``compute`` takes one sample for a metric of shape ``PER_REQUEST`` and the whole run for ``PER_RUN``. It returns a
    number in the metric's unit, or ``None`` if there is no value::

        from pytest_ollama_perf.metrics import Better, Metric, Shape, Unit


        def compute_words(run):
            return sum(sample.counters.eval_count or 0 for sample in run.measured) / 10


        def pytest_ollama_metrics():
            unit, better = Unit.TOKENS_PER_SECOND, Better.HIGHER
            return [Metric("words", unit, better, Shape.PER_RUN, "tokens over ten", compute=compute_words)]

    A test can then set ``min_words=1`` on its marker.
    """


@pytest.hookspec(historic=True)
def pytest_ollama_report_formats(config: pytest.Config) -> Mapping[str, Callable[[Document], bytes]] | None:
    """Return report formats to add, each a function from the report document to the bytes of a file::

        def write_names(document):
            return "\\n".join(f"{test.test} {test.verdict.value}" for test in document.tests).encode()


        def pytest_ollama_report_formats():
            return {"names": write_names}

    ``--ollama-report=names:names.txt`` then writes it. The hook has to be in a plugin or in the ``conftest.py`` of the
    root directory, which pytest reads before its options.
    """


@pytest.hookspec(historic=True)
def pytest_ollama_stores(config: pytest.Config) -> Mapping[str, Callable[[str], Store]] | None:
    """Return stores to add: the scheme of their URLs, and a function from the URL to the opened store::

        from pathlib import Path
        from pytest_ollama_perf.store.directory import DirectoryStore


        def open_shared(url):
            return DirectoryStore(Path(url.partition("://")[2]))


        def pytest_ollama_stores():
            return {"shared": open_shared}

    ``--ollama-store=shared://history`` then uses it. The command ``pytest-ollama-perf`` does not know such stores.
    """


@pytest.hookspec
def pytest_ollama_fingerprint(config: pytest.Config, url: str, model: str) -> Mapping[str, str] | None:
    """Return facts about the server at ``url`` that its API does not report, before each load of ``model``.

    They become part of the run's fingerprint, like ``--ollama-server-env``, and a change is named when a test got
    slower::

        def pytest_ollama_fingerprint(url, model):
            return {"kernel": "6.1.0"}
    """


@pytest.hookspec
def pytest_ollama_verdict(config: pytest.Config, result: TestResult) -> None:
    """Receive the verdict and the loads of one test.

    It is called once per test at the end of the session, after the reports are written; with pytest-xdist only in the
    controller::

        def pytest_ollama_verdict(result):
            with open("verdicts.txt", "a") as file:
                file.write(f"{result.test} {result.verdict.status.value}\\n")
    """


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
        from pytest_ollama_perf.metrics import add_metric, remove_metric

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
