"""``pytest-ollama-perf simulate``: a simulated Ollama for as long as it is wanted."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal

import anyio

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.simulator.faults import FAULT_HELP
from pytest_ollama_perf.simulator.server import serve
from pytest_ollama_perf.simulator.settings import SimulatorSettings
from pytest_ollama_perf.simulator.url import URL_PARAMETERS, describe_settings, is_sim_url, parse_sim_url, read_settings

_DESCRIPTION = """\
Serve a simulated Ollama: its routes, slots, queue, scheduler, prompt cache and errors, without a model. Say what to
simulate as options or as one sim: URL, the form that --ollama-url takes."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the description and the arguments of ``simulate``."""
    parser.description = _DESCRIPTION
    parser.epilog = _build_epilog()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("url", nargs="?", metavar="SIM_URL", help="for example 'sim:?slots=4&tps=80'")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=11434, help="port to serve on; 0: any free one (default: 11434)")
    group = parser.add_argument_group("what to simulate")
    for name, key in URL_PARAMETERS.items():
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"sim_{name}",
            metavar=key.example,
            action="append" if name == "fault" else "store",
            help=key.help.replace("%", "%%"),
        )
    parser.set_defaults(run=main)


def _build_epilog() -> str:
    kinds = "\n".join(f"  {kind.value:<15} {description}" for kind, description in FAULT_HELP.items())
    return (
        f"faults: KIND[:ARGUMENT][@WHEN]\n{kinds}\n"
        "WHEN: 3 (the third request), 3+7, 5-9, 20- (from the 20th on), every10, p0.05; without it every request"
    )


def main(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM; a ``ConfigError`` when the settings are wrong or the address is taken."""
    settings = _read_simulator_settings(options)
    try:
        anyio.run(_run_server, settings, options.host, options.port)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot serve on {options.host}:{options.port}: {error}; try --port 0") from error
    return 0


def _read_simulator_settings(options: argparse.Namespace) -> SimulatorSettings:
    values = {name: value for name in URL_PARAMETERS if (value := getattr(options, f"sim_{name}")) is not None}
    if options.url is None:
        return read_settings(values)
    if values:
        raise ConfigError("give either a sim: URL or options, not both")
    if not is_sim_url(options.url):
        raise ConfigError(f"{options.url!r}: a simulator is written as sim: or sim:?slots=4&tps=80")
    return parse_sim_url(options.url)


async def _run_server(settings: SimulatorSettings, host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: KeyboardInterrupt ends the loop instead
            loop.add_signal_handler(number, stopped.set)
    async with serve(settings, host, port) as (url, _):
        print(f"{url}\n{describe_settings(settings)}\nCtrl-C stops it", flush=True)
        await stopped.wait()
