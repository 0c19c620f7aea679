"""Loads models before anything is measured: ``ollama.warm_up(...)`` and the session fixture ``ollama_warm_up``."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_ollama_perf.bench import Bench, Onlooker
from pytest_ollama_perf.client.patience import patiently
from pytest_ollama_perf.errors import ServerError
from pytest_ollama_perf.fleet import Server
from pytest_ollama_perf.text import inert
from pytest_ollama_perf.workload import Timeouts, Workload


def warm_up(
    bench: Bench,
    models: Sequence[str],
    onlooker: Onlooker,
    *,
    num_ctx: int | None = None,
    keep_alive: str | float = "1h",
    timeout_s: float | None = None,
) -> dict[str, float]:
    """Load ``models`` on every server and return how many seconds each took there, the slowest server's.

    A loaded model takes milliseconds and only gets the new ``keep_alive``. ``num_ctx`` is that of loads unless given:
    another one would make the server load the model again at the first request.

    Raises:
        ServerError: a model cannot be loaded, or one is gone again when the last was loaded.
    """
    usual = Workload(model="")
    names = [bench.completed(Workload(model=model)).model for model in models or ("",)]
    took: dict[str, float] = {}
    for model in names:
        for server in bench.servers:
            seconds = _load(server, model, onlooker, num_ctx or usual.num_ctx, keep_alive, timeout_s)
            took[model] = max(seconds, took.get(model, 0.0))
    for server in bench.servers:
        _check_all_there(server, names)
    return took


def _load(
    server: Server, model: str, onlooker: Onlooker, num_ctx: int, keep_alive: str | float, timeout_s: float | None
) -> float:
    server.control.installed(model)
    onlooker.message(f"warming up {model}")
    return patiently(
        lambda: server.control.load(
            model, keep_alive=keep_alive, num_ctx=num_ctx, timeout_s=timeout_s or Timeouts().total_s
        ),
        lambda seconds: onlooker.message(f"warming up {model} ... {seconds:.0f} s"),
    )


def _check_all_there(server: Server, models: Sequence[str]) -> None:
    for model in models:
        if server.control.loaded(model) is None:
            others = ", ".join(inert(other, 60) for other in models if other != model)
            raise ServerError(
                f"warm_up: {inert(model, 60)} is no longer loaded on {server.name} once {others or 'it'} is; the "
                "server holds fewer at once (OLLAMA_MAX_LOADED_MODELS, memory): warm up fewer, or one before each test"
            )
