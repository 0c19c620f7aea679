"""The pytest plugin: options, markers, fixtures. Nothing heavy is imported until a load test runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_ollama_perf.config import OPTIONS, Option, Settings, resolve_settings
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.experiments import EXPERIMENT_MODULES
from pytest_ollama_perf.hooks import specs
from pytest_ollama_perf.hooks.specs import register_extensions

if TYPE_CHECKING:
    from pytest_ollama_perf.experiments.experiment_results import ABResult, ColdStartResult, MaxConcurrencyResult
    from pytest_ollama_perf.experiments.results import LoadResult
    from pytest_ollama_perf.experiments.sweep_points import SweepResult
    from pytest_ollama_perf.fixtures import Ollama, Simulators, WarmUp
    from pytest_ollama_perf.hooks import Hooks


UMBRELLA_HELP = """\
ollama: added to every test that may use a server under test. Select with
    -m "not ollama"; see also --ollama-skip and --ollama-only."""
HOOKS_KEY = pytest.StashKey["Hooks"]()


class _PytestConfigSource:
    """pytest's config as a source of raw settings."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def read_command_line(self, option: Option) -> object:
        return self._config.getoption(option.key, default=None)

    def read_ini(self, option: Option) -> object:
        return self._config.getini(option.key) or None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and ini keys."""
    group = parser.getgroup("ollama", "performance of models served by Ollama")
    actions: dict[str, dict[str, Any]] = {"value": {}, "list": {"action": "append"}, "flag": {"action": "store_true"}}
    for option in OPTIONS:
        shape = actions[option.kind] | ({"metavar": option.metavar} if option.metavar else {})
        group.addoption(option.flag, dest=option.key, default=None, help=option.help, **shape)
        parser.addini(option.key, option.help.replace("%%", "%"), type=option.ini_type, default=None)  # type: ignore[arg-type]


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the hooks that other plugins can implement."""
    pluginmanager.add_hookspecs(specs)


def pytest_configure(config: pytest.Config) -> None:
    """Describe the markers and register the hooks."""
    config.addinivalue_line("markers", UMBRELLA_HELP)
    for line in _list_marker_lines(config):
        config.addinivalue_line("markers", line)
    register_extensions(config)
    try:
        config.stash[HOOKS_KEY] = _register_hooks(config, resolve_settings(_PytestConfigSource(config)))
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from None


def _list_marker_lines(config: pytest.Config) -> Iterator[str]:
    """Yield the registration of every marker; its help is built only if ``--markers`` asks for it."""
    if not config.getoption("markers", default=False):
        yield from (f"{marker}(...): see pytest --markers" for marker in EXPERIMENT_MODULES)
        return
    from pytest_ollama_perf.config.markers import MARKERS

    yield from (marker.format_help() for marker in MARKERS.values())


def _register_hooks(config: pytest.Config, settings: Settings) -> Hooks:
    from pytest_ollama_perf.hooks import Hooks

    hooks = Hooks(config, settings)
    config.pluginmanager.register(hooks, "ollama-perf-hooks")
    for integration in hooks.build_integrations():
        config.pluginmanager.register(integration)
    return hooks


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect contract files."""
    if not (file_path.name.endswith(".ollama.toml") or file_path.name == "pyproject.toml"):
        return None
    from pytest_ollama_perf.contracts.items import collect_file

    return collect_file(file_path, parent, parent.config.stash[HOOKS_KEY].session)


@pytest.fixture
def ollama_load(request: pytest.FixtureRequest) -> LoadResult:
    """The result of the load that this test's marker describes:
    metrics, samples, ``check(...)``."""
    return cast("LoadResult", _build_marked_result(request))


@pytest.fixture
def ollama_sweep(request: pytest.FixtureRequest) -> SweepResult:
    """The result of the sweep that this test's marker describes:
    levels, knee, saturation, slots."""
    return cast("SweepResult", _build_marked_result(request))


@pytest.fixture
def ollama_ab(request: pytest.FixtureRequest) -> ABResult:
    """The result of the comparison that this test's marker describes:
    the change of each metric, ``ollama_ab.tps.change``."""
    return cast("ABResult", _build_marked_result(request))


@pytest.fixture
def ollama_max_concurrency(request: pytest.FixtureRequest) -> MaxConcurrencyResult:
    """The result of the search that this test's marker describes:
    the highest sustained concurrency and the first violation."""
    return cast("MaxConcurrencyResult", _build_marked_result(request))


@pytest.fixture
def ollama_cold_start(request: pytest.FixtureRequest) -> ColdStartResult:
    """The result of the cold starts that this test's marker describes:
    load time, cold and warm TTFT, their ratio."""
    return cast("ColdStartResult", _build_marked_result(request))


def _build_marked_result(request: pytest.FixtureRequest) -> object:
    return request.config.stash[HOOKS_KEY].get_marked_experiment(request.node).build_result()


@pytest.fixture
def ollama_perf(request: pytest.FixtureRequest) -> Ollama:
    """Run loads from code: ``ollama_perf.load(concurrency=4)``, or
    ``await ollama_perf.aload(...)``, with the arguments of the markers."""
    return request.config.stash[HOOKS_KEY].build_ollama(request.node)


@pytest.fixture
def ollama(ollama_perf: Ollama) -> Ollama:
    """Another name of the fixture ``ollama_perf``."""
    return ollama_perf


@pytest.fixture(scope="session")
def ollama_warm_up(request: pytest.FixtureRequest) -> WarmUp:
    """Load models before the first test measures:
    ``ollama_warm_up("llama3.2:3b", "qwen3:4b")`` in a session fixture."""
    from pytest_ollama_perf.fixtures import WarmUp

    request.config.stash[HOOKS_KEY].skip_if_asked()
    return WarmUp(request.config.stash[HOOKS_KEY].session)


@pytest.fixture(scope="session")
def ollama_url(request: pytest.FixtureRequest) -> str:
    """The URL of the first server under test; starts the simulator if
    ``--ollama-url`` names one."""
    request.config.stash[HOOKS_KEY].skip_if_asked()
    return request.config.stash[HOOKS_KEY].session.url


@pytest.fixture
def ollama_simulator(request: pytest.FixtureRequest) -> Iterator[Simulators]:
    """Start simulated Ollama servers: ``ollama_simulator(slots=4).url``;
    each stops when the test ends."""
    from pytest_ollama_perf.fixtures import Simulators

    with Simulators() as simulators:
        yield simulators
