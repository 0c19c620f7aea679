"""The pytest plugin: hooks hand over to one registered object. Nothing heavy is imported until a load test runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_perf.config.settings import OPTIONS, Option, Settings, resolve_settings
from pytest_ollama_perf.core.errors import ConfigError

if TYPE_CHECKING:
    from pytest_ollama_perf.fixtures import MarkedExperiment, Ollama, Simulators
    from pytest_ollama_perf.hooks.hooks import Hooks


MARKER = "ollama_load"
LOAD_HELP = """\
ollama_load(concurrency=4, min_tps=150): fire a load and judge it.
    It goes to the Ollama server (--ollama-url) before the test's body runs; a
    broken limit fails the test. All words have defaults.
    Load: model, endpoint, stream, concurrency or rate or stages, arrival,
    requests or duration, drain, warmup, think_time, prompt or prompts (with
    weights: a mapping) or dataset, prompt_words, turns, images, prefix, raw,
    num_predict, num_ctx, temperature, seed, think, keep_alive, options, cold,
    timeout, balance, retries, reuse_connections.
    Stages: [{'rate': 8, 'ramp': '30s'}, {'rate': 8, 'for': '5m'}].
    Limits: min_tps, min_throughput, min_qps, max_<stat>_<metric> such as
    max_p95_latency=2.5, max_error_rate (default: 0), max_regression,
    limits={'ttft.p95': '<= 300ms'}.
    Nearer markers win word by word; parameters of the same name count, too."""
SWEEP_HELP = """\
ollama_sweep(concurrency=[1, 2, 4, 8], min_knee=4): fire a load at every level.
    Words are those of ollama_load; concurrency (or rate), num_ctx, prompt_words,
    num_predict and model may be lists, several make a product. A limit holds at
    every level, one on throughput or qps at the best. It stops where more than
    1 - stop_success_rate (0.9) of the requests fail or p50 latency is over
    stop_latency (300 s). Also: min_knee, min_speedup, single=False."""
AB_HELP = """\
ollama_ab(baseline={'model': 'a'}, candidate={'model': 'b'}): compare two sides.
    Two models, two option sets or two servers ('url', or --ollama-baseline-url),
    measured in turn (blocks A B B A, loaded anew for each) until the
    difference is known: after 4, 6, 8 or 12 blocks. Words beside baseline and
    candidate are those of ollama_load and hold for both sides; requests: so many
    a side and block (8). A candidate slower by more than max_regression fails
    (3% of tps and 12% of ttft; or {'latency': '5%'})."""
MAX_CONCURRENCY_HELP = """\
ollama_max_concurrency(max_latency=5, min_concurrency=8): find the largest
    concurrency that is borne. Doubling from start (1) to maximum (64), then
    bisection; a probe too short to tell is fired again, at most repeats (3) runs.
    Criteria: max_latency and max_ttft (of P95, seconds), min_tps, any limit on
    single requests, success_rate (0.95). Other words are those of ollama_load."""
COLD_START_HELP = """\
ollama_cold_start(repeats=3, max_load_time=60): the first answer after an unload.
    Each repeat unloads the model, sends one request, then warm ones (requests,
    10). Limits in seconds: max_load_time, max_cold_ttft, max_cold_latency,
    max_warm_ttft, max_warm_latency; max_ratio (cold TTFT over warm); those of
    ollama_load hold for the warm requests. load_timeout: 30 minutes."""
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
    group = parser.getgroup("ollama", "performance of models served by Ollama")
    actions: dict[str, dict[str, Any]] = {"value": {}, "list": {"action": "append"}, "flag": {"action": "store_true"}}
    for option in OPTIONS:
        shape = actions[option.kind] | ({"metavar": option.metavar} if option.metavar else {})
        group.addoption(option.flag, dest=option.key, default=None, help=option.help, **shape)
        parser.addini(option.key, option.help.replace("%%", "%"), type=option.ini_type, default=None)  # type: ignore[arg-type]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", LOAD_HELP)
    config.addinivalue_line("markers", SWEEP_HELP)
    config.addinivalue_line("markers", MAX_CONCURRENCY_HELP)
    config.addinivalue_line("markers", COLD_START_HELP)
    config.addinivalue_line("markers", AB_HELP)
    try:
        config.stash[HOOKS_KEY] = _register_hooks(config, resolve_settings(_PytestConfigSource(config)))
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from None


def _register_hooks(config: pytest.Config, settings: Settings) -> Hooks:
    from pytest_ollama_perf.hooks.hooks import Hooks

    hooks = Hooks(config, settings)
    config.pluginmanager.register(hooks, "ollama-perf-hooks")
    for integration in hooks.build_integrations():
        config.pluginmanager.register(integration)
    return hooks


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if not (file_path.name.endswith(".ollama.toml") or file_path.name == "pyproject.toml"):
        return None
    from pytest_ollama_perf.contracts.items import collect_file

    return collect_file(file_path, parent, parent.config.stash[HOOKS_KEY].session)


@pytest.fixture
def ollama_load(request: pytest.FixtureRequest) -> MarkedExperiment:
    """The load that this test's marker describes, measured:
    metrics, all samples, ``check(...)``."""
    return request.config.stash[HOOKS_KEY].get_marked_experiment(request.node)


@pytest.fixture
def ollama_sweep(request: pytest.FixtureRequest) -> MarkedExperiment:
    """The sweep that this test's marker describes:
    levels, knee, saturation, slots."""
    return request.config.stash[HOOKS_KEY].get_marked_experiment(request.node)


@pytest.fixture
def ollama_ab(request: pytest.FixtureRequest) -> MarkedExperiment:
    """The comparison that this test's marker describes:
    per metric the change and its interval, ``ollama_ab.tps.change``."""
    return request.config.stash[HOOKS_KEY].get_marked_experiment(request.node)


@pytest.fixture
def ollama_max_concurrency(request: pytest.FixtureRequest) -> MarkedExperiment:
    """The search that this test's marker describes:
    the largest bearable concurrency and the first breach."""
    return request.config.stash[HOOKS_KEY].get_marked_experiment(request.node)


@pytest.fixture
def ollama_cold_start(request: pytest.FixtureRequest) -> MarkedExperiment:
    """The cold starts that this test's marker describes:
    load time, cold and warm TTFT, their ratio."""
    return request.config.stash[HOOKS_KEY].get_marked_experiment(request.node)


@pytest.fixture
def ollama(request: pytest.FixtureRequest) -> Ollama:
    """Fire loads from code: ``ollama.load(concurrency=4)``,
    or ``await ollama.aload(...)``; words as on the marker."""
    return request.config.stash[HOOKS_KEY].build_ollama(request.node)


@pytest.fixture(scope="session")
def ollama_warm_up(request: pytest.FixtureRequest) -> Callable[..., dict[str, float]]:
    """Load models before the first test measures:
    ``ollama_warm_up("llama3.2:3b", "qwen3:4b")`` in a session fixture."""
    return lambda *models, **words: request.config.stash[HOOKS_KEY].session.warm_up(models, **words)


@pytest.fixture(scope="session")
def ollama_url(request: pytest.FixtureRequest) -> str:
    """The URL of the (first) server under test; starts the simulator where
    ``--ollama-url`` names that."""
    return request.config.stash[HOOKS_KEY].session.url


@pytest.fixture
def ollama_simulator(request: pytest.FixtureRequest) -> Iterator[Simulators]:
    """Start simulated Ollama servers: ``ollama_simulator(slots=4).url``;
    each stops when the test ends."""
    from pytest_ollama_perf.fixtures import Simulators

    with Simulators() as simulators:
        yield simulators
