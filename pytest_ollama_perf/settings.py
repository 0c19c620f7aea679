"""Everything a person can set, in one frozen object, built and checked once.

Precedence: marker > command line > environment > ini > default. A marker belongs to one test, so ``marks`` reads it;
the rest is decided here. ``OPTIONS`` is the one list from which the command line, the ini keys and the reference are made.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.report.spec import ReportSpec
from pytest_ollama_perf.report.spec import parse as parse_report
from pytest_ollama_perf.words import did_you_mean

DEFAULT_URL = "http://127.0.0.1:11434"
DEFAULT_STORE = ".ollama-perf"
MAX_RUNS = 3


@dataclass(frozen=True)
class Option:
    """One setting: ``--ollama-<name>`` on the command line, ``ollama_<name>`` in the ini file.

    ``kind`` is ``"value"``, ``"list"`` (repeatable; one a line in the ini file) or ``"flag"``. Flags default to ``None``
    on the command line so that an unset flag never hides the ini value.
    """

    name: str
    kind: str
    help: str
    metavar: str | None = None
    command_line: bool = True

    @property
    def flag(self) -> str:
        return f"--ollama-{self.name}"

    @property
    def key(self) -> str:
        return f"ollama_{self.name.replace('-', '_')}"

    @property
    def ini_type(self) -> str:
        return {"value": "string", "list": "linelist", "flag": "bool"}[self.kind]


OPTIONS = (
    Option(
        "url",
        "list",
        "the Ollama server to test: host, host:port or URL, as OLLAMA_HOST accepts them; `sim:` or `sim:?slots=4&tps=80` "
        "is the built-in simulator; repeat it for several servers (default: OLLAMA_HOST, else 127.0.0.1:11434)",
        "URL",
    ),
    Option("model", "value", "the model of tests whose marker names none", "NAME"),
    Option("report", "list", "write a report after the run, for example `json:perf.json`; repeatable", "TYPE:PATH"),
    Option("strict", "flag", "fail tests whose verdict is unsure or incomparable, too"),
    Option("store", "value", f"where the history is kept: a folder (default: {DEFAULT_STORE}) or a database URL", "PLACE"),
    Option("save", "flag", "add the valid runs of this session to the history"),
    Option("require-baseline", "flag", "fail tests that have no history to be judged against"),
    Option(
        "max-runs",
        "value",
        f"how many runs, each on a freshly loaded model, a verdict against history may take: 1 to {MAX_RUNS} (default: {MAX_RUNS})",
        "N",
    ),
    Option(
        "margin",
        "list",
        "how much worse than history is accepted, for example `tps=5%%` or `ttft.p95=25%%`; repeatable",
        "METRIC=PERCENT",
    ),
    Option("header", "list", "a header for every request, for example `X-Team: ml`; repeatable; values are never shown", "'NAME: VALUE'"),
    Option("ca-file", "value", "certificate authorities (PEM) to trust for https servers", "FILE"),
    Option("insecure", "flag", "do not verify the certificates of https servers"),
    Option(
        "server-env",
        "list",
        "a setting of the server that its API does not show, for example `OLLAMA_NUM_PARALLEL=4`; part of the fingerprint; repeatable",
        "NAME=VALUE",
    ),
)


@dataclass(frozen=True)
class Settings:
    """The decided settings. ``urls`` are as given (addresses are parsed by ``client.address`` when a load needs them);
    ``headers`` may hold credentials and are kept out of the representation."""

    urls: tuple[str, ...] = (DEFAULT_URL,)
    model: str | None = None
    reports: tuple[ReportSpec, ...] = ()
    strict: bool = False
    store: str = DEFAULT_STORE
    save: bool = False
    require_baseline: bool = False
    max_runs: int = MAX_RUNS
    margins: Mapping[str, float] = field(default_factory=dict)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    ca_file: str | None = None
    insecure: bool = False
    server_env: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """Where raw values come from: pytest's config, seen through two functions."""

    def command_line(self, option: Option) -> Any: ...  # None when not given

    def ini(self, option: Option) -> Any: ...  # None when not given


def resolve(source: Source, environment: Mapping[str, str] = os.environ) -> Settings:
    """Decide every setting once.

    Raises:
        ConfigError: a value is wrong; the line names the option, what was given and what is valid.
    """
    raw = {option.name: _first(source.command_line(option), _from_environment(option, environment), source.ini(option)) for option in OPTIONS}
    headers = _parse_list(raw["header"], "--ollama-header", _header)
    if key := environment.get("OLLAMA_API_KEY", "").strip():
        headers = _with_bearer(headers, key)
    return Settings(
        urls=_urls(raw["url"]),
        model=raw["model"] or None,
        reports=tuple(map(parse_report, raw["report"] or ())),
        strict=bool(raw["strict"]),
        store=raw["store"] or DEFAULT_STORE,
        save=bool(raw["save"]),
        require_baseline=bool(raw["require-baseline"]),
        max_runs=_max_runs(raw["max-runs"]),
        margins=dict(_parse_list(raw["margin"], "--ollama-margin", parse_margin)),
        headers=headers,
        ca_file=_ca_file(raw["ca-file"]),
        insecure=bool(raw["insecure"]),
        server_env=dict(_parse_list(raw["server-env"], "--ollama-server-env", _assignment)),
    )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _from_environment(option: Option, environment: Mapping[str, str]) -> Any:
    if option.name == "url" and (host := environment.get("OLLAMA_HOST", "").strip()):
        return [host]
    return None


def _urls(given: Sequence[str] | None) -> tuple[str, ...]:
    if given is None:
        return (DEFAULT_URL,)
    urls = tuple(url.strip() for url in given)
    if not urls or not all(urls):
        raise ConfigError("--ollama-url is empty; give the server, for example --ollama-url=http://127.0.0.1:11434 or --ollama-url=sim:")
    return urls


def _parse_list(given: Sequence[str] | None, flag: str, parse: Callable[[str, str], tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    return tuple(parse(text, flag) for text in given or ())


_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _header(text: str, flag: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not _TOKEN.fullmatch(name.strip()) or any(ord(char) < 32 and char != "\t" for char in value):
        # The text itself may hold a credential, so it is not repeated here.
        raise ConfigError(f"{flag} expects 'Name: value' on one line, for example 'Authorization: Bearer ...'")
    return name.strip(), value.strip()


def _with_bearer(headers: tuple[tuple[str, str], ...], key: str) -> tuple[tuple[str, str], ...]:
    if any(name.lower() == "authorization" for name, _ in headers):
        return headers
    return (*headers, ("Authorization", f"Bearer {key}"))


def _assignment(text: str, flag: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"{flag} {text!r}: expected NAME=VALUE, for example OLLAMA_NUM_PARALLEL=4")
    return name.strip(), value.strip()


def parse_margin(text: str, flag: str) -> tuple[str, float]:
    """Read ``tps=5%`` into ``("tps", 0.05)``; the metric may carry a statistic, as in ``ttft.p95=25%``."""
    from pytest_ollama_perf.metric import METRICS, STATS

    name, equals, value = (part.strip() for part in text.partition("="))
    metric, _, stat = name.partition(".")
    if not equals:
        raise ConfigError(f"{flag} {text!r}: expected METRIC=PERCENT, for example tps=5%")
    if metric not in METRICS:
        raise ConfigError(f"{flag} {text!r}: no metric '{metric}'{did_you_mean(metric, METRICS)} (valid: {', '.join(METRICS)})")
    if stat and stat not in STATS:
        raise ConfigError(f"{flag} {text!r}: no statistic '{stat}'{did_you_mean(stat, STATS)} (valid: {', '.join(STATS)})")
    return name, parse_percent(value, f"{flag} {text!r}")


def parse_percent(value: object, what: str) -> float:
    """Read ``"5%"`` or the share ``0.05`` into 0.05; above 0 and at most 1000 %."""
    try:
        text = str(value).strip()
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = float("nan")
    if isinstance(value, bool) or not 0 < share <= 10:
        raise ConfigError(f"{what}: expected a percentage such as 5%, or a share such as 0.05, above 0 and at most 1000%")
    return share


def _max_runs(given: str | None) -> int:
    if given is None:
        return MAX_RUNS
    if str(given).strip() not in {str(number) for number in range(1, MAX_RUNS + 1)}:
        raise ConfigError(f"--ollama-max-runs {str(given)!r}: expected a whole number from 1 to {MAX_RUNS}")
    return int(given)


def _ca_file(given: str | None) -> str | None:
    if given and not os.path.isfile(given):
        raise ConfigError(f"--ollama-ca-file {given!r}: no such file")
    return given or None
