"""Options, ini keys and environment; the load options of markers; datasets."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from pytest_ollama_perf.config.report_targets import REPORT_TYPES, ReportTarget
from pytest_ollama_perf.config.report_targets import parse_report_target as parse_report
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.text import parse_seconds, suggest_match
from pytest_ollama_perf.metrics import METRICS, PERCENTILES, TELEMETRY_METRICS, Shape

DEFAULT_URL = "http://127.0.0.1:11434"
DEFAULT_STORE = ".ollama-perf"
MAX_RUNS = 3
RUN_SPACING_S = 10.0
DEFAULT_WAIT_S = 1800.0
_MAX_SPACING_S = 3600.0


class Option(NamedTuple):
    """One setting: ``--ollama-<name>`` on the command line, ``ollama_<name>`` in the ini file.

    ``kind`` is ``"value"``, ``"list"`` (repeatable; one a line in the ini file) or ``"flag"``. Flags default to
    ``None`` on the command line so that an unset flag never hides the ini value.
    """

    name: str
    kind: str
    help: str
    metavar: str | None = None
    command_line: bool = True

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return f"--ollama-{self.name}"

    @property
    def key(self) -> str:
        """The key in the ini file."""
        return f"ollama_{self.name.replace('-', '_')}"

    @property
    def ini_type(self) -> str:
        """The type of the key in the ini file, as pytest names it."""
        return {"value": "string", "list": "linelist", "flag": "bool"}[self.kind]


OPTIONS = (
    Option(
        "url",
        "list",
        "the Ollama server to test: host, host:port or URL, as OLLAMA_HOST accepts them; `sim:` or "
        "`sim:?slots=4&tps=80` is the built-in simulator; repeat it for several servers, "
        "`http://gpu-box:11434#weight=2` receives twice the share of requests "
        "(default: OLLAMA_HOST, else 127.0.0.1:11434)",
        "URL",
    ),
    Option(
        "baseline-url",
        "value",
        "the baseline server of comparisons; --ollama-url is the candidate",
        "URL",
    ),
    Option(
        "allow-down",
        "flag",
        "with several servers: ignore those that do not answer; otherwise their requests count as failed",
    ),
    Option("model", "value", "default model for tests that do not set one", "NAME"),
    Option(
        "report",
        "list",
        f"write a report after the run, for example `html:perf.html`; repeatable; types: {', '.join(REPORT_TYPES)}",
        "TYPE:PATH",
    ),
    Option("strict", "flag", "also fail tests whose verdict is unsure or incomparable"),
    Option(
        "store",
        "value",
        f"where the history is stored: a folder (default: {DEFAULT_STORE}) or a database URL",
        "PLACE",
    ),
    Option("save", "flag", "add the valid runs of this session to the history"),
    Option(
        "baseline",
        "value",
        "accept the current performance of every test: a new text starts new baselines; the argument baseline of a "
        "marker does so for one test",
        "TEXT",
    ),
    Option("require-baseline", "flag", "fail tests that have no history to compare with"),
    Option(
        "max-runs",
        "value",
        "maximum number of runs, each on a freshly loaded model, for a verdict against the history: "
        f"1 to {MAX_RUNS} (default: {MAX_RUNS})",
        "N",
    ),
    Option(
        "run-spacing",
        "value",
        "minimum time between the starts of these runs if the first looks slower: back-to-back short runs see the same "
        f"machine state; ignored for the simulator (default: {RUN_SPACING_S:g})",
        "SECONDS",
    ),
    Option(
        "margin",
        "list",
        "allowed slowdown against the history, for example `tps=5%%` or `ttft.p95=25%%`; repeatable",
        "METRIC=PERCENT",
    ),
    Option("benchmark", "flag", "pass latencies of load tests to pytest-benchmark: to its table, JSON and comparisons"),
    Option(
        "no-properties",
        "flag",
        "add no properties to tests, for readers of JUnit XML that only accept them on suites (Jenkins' xUnit plugin)",
    ),
    Option(
        "no-github",
        "flag",
        "in GitHub Actions: no job summary, no annotations for failures",
    ),
    Option(
        "header",
        "list",
        "HTTP header for every request, for example `X-Team: ml`; repeatable; values are never shown",
        "'NAME: VALUE'",
    ),
    Option(
        "wait",
        "value",
        "how long a test waits while another session of this user runs loads on the same server, for example `90s`, "
        "`10m` or seconds (default: 30m)",
        "DURATION",
    ),
    Option(
        "invalid",
        "value",
        "what happens to a test whose measurement is invalid, for example because this machine was busy: `fail` or "
        "`skip` (default: fail)",
        "ACTION",
    ),
    Option(
        "unreachable",
        "value",
        "what happens to load tests when no server under test answers: `fail` or `skip` (default: fail)",
        "ACTION",
    ),
    Option("skip", "flag", "skip all tests with the marker `ollama`: those that may use a server under test"),
    Option("only", "flag", "run only the tests with the marker `ollama`: those that may use a server under test"),
    Option("ca-file", "value", "file with certificate authorities (PEM) to trust for https servers", "FILE"),
    Option("insecure", "flag", "do not verify the certificates of https servers"),
    Option(
        "telemetry",
        "value",
        "command that prints GPU telemetry of the server while a load runs, as JSON lines or CSV of nvidia-smi, "
        "for example `ssh gpu-box nvidia-smi --query-gpu=index,name,driver_version,utilization.gpu,memory.used,"
        "memory.total,power.draw,temperature.gpu,clocks.sm,clocks_event_reasons.active --format=csv -l 1`; `off` reads "
        "nothing (default: the GPUs of this machine if the server runs on it; needs the extra gpu)",
        "COMMAND",
    ),
    Option(
        "server-env",
        "list",
        "environment variable of the server, which its API does not show, for example `OLLAMA_NUM_PARALLEL=4`; "
        "part of the fingerprint; repeatable",
        "NAME=VALUE",
    ),
)


class GitHubJob(NamedTuple):
    """The job of GitHub Actions that this session is a part of: the file of its summary and the folder of the
    repository, each empty where the job names none."""

    summary: str = ""
    workspace: str = ""


@dataclass(frozen=True)
class Settings:
    """The decided settings. ``urls`` are as given (addresses are parsed by ``client.address`` when a load needs them);
    what may hold credentials is kept out of the representation."""

    urls: tuple[str, ...] = field(default=(DEFAULT_URL,), repr=False)
    baseline_url: str | None = field(default=None, repr=False)
    allow_down: bool = False
    model: str | None = None
    reports: tuple[ReportTarget, ...] = ()
    strict: bool = False
    store: str = field(default=DEFAULT_STORE, repr=False)
    save: bool = False
    baseline: str = ""
    require_baseline: bool = False
    max_runs: int = MAX_RUNS
    run_spacing_s: float = RUN_SPACING_S
    margins: Mapping[str, float] = field(default_factory=dict)
    wait_s: float = DEFAULT_WAIT_S
    skips_invalid: bool = False
    skips_unreachable: bool = False
    skip: bool = False
    only: bool = False
    benchmark: bool = False
    no_properties: bool = False
    github: GitHubJob | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    ca_file: str | None = None
    insecure: bool = False
    telemetry: str | None = field(default=None, repr=False)
    server_env: Mapping[str, str] = field(default_factory=dict)


class OptionSource(Protocol):
    """Where raw values come from: pytest's config, seen through two functions."""

    def read_command_line(self, option: Option) -> object:
        """Return the value from the command line, None without one."""

    def read_ini(self, option: Option) -> object:
        """Return the value from the ini file, None without one."""


def resolve_settings(source: OptionSource, environment: Mapping[str, str] = os.environ) -> Settings:
    """Decide every setting once.

    Raises:
        ConfigError: a value is wrong; the line names the option, what was given and what is valid.
    """
    raw: dict[str, Any] = {option.name: _read_raw(option, source, environment) for option in OPTIONS}
    headers = _parse_list(raw["header"], "--ollama-header", _parse_header)
    if key := environment.get("OLLAMA_API_KEY", "").strip():
        headers = _add_bearer(headers, key)
    return Settings(
        urls=_parse_urls(raw["url"]),
        baseline_url=(raw["baseline-url"] or "").strip() or None,
        allow_down=bool(raw["allow-down"]),
        model=raw["model"] or None,
        reports=tuple(map(parse_report, raw["report"] or ())),
        strict=bool(raw["strict"]),
        store=_parse_store(raw["store"]),
        save=bool(raw["save"]),
        baseline=(raw["baseline"] or "").strip(),
        require_baseline=bool(raw["require-baseline"]),
        max_runs=_parse_max_runs(raw["max-runs"]),
        run_spacing_s=_parse_run_spacing(raw["run-spacing"]),
        margins=dict(_parse_list(raw["margin"], "--ollama-margin", parse_margin)),
        wait_s=_parse_wait(raw["wait"]),
        skips_invalid=_parse_action(raw["invalid"], "--ollama-invalid"),
        skips_unreachable=_parse_action(raw["unreachable"], "--ollama-unreachable"),
        skip=bool(raw["skip"]),
        only=_check_only(bool(raw["only"]), bool(raw["skip"])),
        benchmark=bool(raw["benchmark"]),
        no_properties=bool(raw["no-properties"]),
        github=None if raw["no-github"] else _detect_github_job(environment),
        headers=headers,
        ca_file=_check_ca_file(raw["ca-file"]),
        insecure=bool(raw["insecure"]),
        telemetry=(raw["telemetry"] or "").strip() or None,
        server_env=dict(_parse_list(raw["server-env"], "--ollama-server-env", _parse_assignment)),
    )


def _read_raw(option: Option, source: OptionSource, environment: Mapping[str, str]) -> object:
    """Return the raw value of the first place that has one."""
    if (value := source.read_command_line(option)) is not None:
        return value
    if option.name == "url" and (host := environment.get("OLLAMA_HOST", "").strip()):
        return [host]
    return source.read_ini(option)


def _detect_github_job(environment: Mapping[str, str]) -> GitHubJob | None:
    if environment.get("GITHUB_ACTIONS") != "true":
        return None
    return GitHubJob(environment.get("GITHUB_STEP_SUMMARY", ""), environment.get("GITHUB_WORKSPACE", ""))


def _parse_urls(given: Sequence[str] | None) -> tuple[str, ...]:
    if given is None:
        return (DEFAULT_URL,)
    urls = tuple(url.strip() for url in given)
    if not urls or not all(urls):
        raise ConfigError(f"--ollama-url is empty; give the server, for example --ollama-url={DEFAULT_URL}")
    return urls


def _parse_store(given: str | None) -> str:
    if given is not None and not given.strip():
        raise ConfigError(
            "--ollama-store is empty, for example because of an unset variable; give a folder or a database URL"
        )
    return DEFAULT_STORE if given is None else given


def _parse_list(
    given: Sequence[str] | None, flag: str, parse: Callable[[str, str], tuple[str, Any]]
) -> tuple[tuple[str, Any], ...]:
    return tuple(parse(text, flag) for text in given or ())


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _parse_header(text: str, flag: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not _HEADER_NAME.fullmatch(name.strip()) or not _is_sendable(value.strip()):
        # The text itself may hold a credential, so it is not repeated here.
        raise ConfigError(f"{flag} expects 'Name: value' on one line, for example 'Authorization: Bearer ...'")
    return name.strip(), value.strip()


def _is_sendable(value: str) -> bool:
    return value.isascii() and all(char.isprintable() or char == "\t" for char in value)


def _add_bearer(headers: tuple[tuple[str, str], ...], key: str) -> tuple[tuple[str, str], ...]:
    if any(name.lower() == "authorization" for name, _ in headers):
        return headers
    if not _is_sendable(key):
        raise ConfigError("OLLAMA_API_KEY holds a line break, control or non-ASCII character; give the key alone")
    return (*headers, ("Authorization", f"Bearer {key}"))


def _parse_assignment(text: str, flag: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"{flag} {text!r}: expected NAME=VALUE, for example OLLAMA_NUM_PARALLEL=4")
    return name.strip(), value.strip()


def parse_margin(text: str, flag: str) -> tuple[str, float]:
    """Read ``tps=5%`` into ``("tps", 0.05)``; the metric may carry a percentile, as in ``ttft.p95=25%``."""
    name, equals, value = (part.strip() for part in text.partition("="))
    given = f"{flag} {text!r}"
    if not equals:
        raise ConfigError(f"{given}: expected METRIC=PERCENT, for example tps=5%")
    return read_margin(name, value, given)


def read_margin(name: str, value: object, given: str) -> tuple[str, float]:
    """Read the margin ``value`` of the number ``name``, ``tps`` or ``ttft.p95``; ``given`` is what was written."""
    metric, dot, stat = name.partition(".")
    # error_rate is usually 0, so it has no relative change; telemetry has no history
    unjudged = {"error_rate", *TELEMETRY_METRICS}
    valid = [known for known, metric in METRICS.items() if known not in unjudged and metric.compute is None]
    if metric not in valid:
        near = suggest_match(metric, valid)
        raise ConfigError(f"{given}: no history is kept of '{metric}'{near} (valid: {', '.join(valid)})")
    if dot and METRICS[metric].shape is Shape.PER_RUN:
        raise ConfigError(f"{given}: {metric} is one number per run; write {metric} without '{stat}'")
    if dot and stat not in PERCENTILES:
        near = suggest_match(stat, PERCENTILES)
        raise ConfigError(f"{given}: no percentile '{stat}'{near} (valid: {', '.join(PERCENTILES)})")
    return name, parse_percent(value, given)


def parse_percent(value: object, what: str) -> float:
    """Read ``"5%"`` or the share ``0.05`` into 0.05: above 0, a percentage up to 1000 %, a share up to 1."""
    share = _parse_share(value)
    if not 0 < share <= 10:
        raise ConfigError(f"{what}: expected a percentage above 0%, such as 5%, or a share up to 1, such as 0.05")
    return share


def _parse_share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return math.nan
    if isinstance(value, str) and value.strip().endswith("%"):
        return _parse_float(value.strip()[:-1]) / 100
    share = _parse_float(value)
    # A bare 5 would be 500 %, which is never meant.
    return share if share <= 1 else math.nan


def _parse_float(value: str | float) -> float:
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _parse_max_runs(given: str | None) -> int:
    if given is None:
        return MAX_RUNS
    if str(given).strip() not in {str(number) for number in range(1, MAX_RUNS + 1)}:
        raise ConfigError(f"--ollama-max-runs {str(given)!r}: expected a whole number from 1 to {MAX_RUNS}")
    return int(given)


def _parse_run_spacing(given: str | None) -> float:
    seconds = RUN_SPACING_S if given is None else _parse_float(given)
    if not 0.0 <= seconds <= _MAX_SPACING_S:
        raise ConfigError(f"--ollama-run-spacing {given!r}: expected seconds from 0 to {_MAX_SPACING_S:g}")
    return seconds


def _parse_wait(given: str | None) -> float:
    return DEFAULT_WAIT_S if given is None else parse_seconds(given, "--ollama-wait")


def _parse_action(given: str | None, flag: str) -> bool:
    """Return whether tests are skipped: ``fail`` or ``skip``."""
    if given is not None and given.strip() not in {"fail", "skip"}:
        raise ConfigError(f"{flag} {given!r}: expected fail or skip")
    return given is not None and given.strip() == "skip"


def _check_only(only: bool, skip: bool) -> bool:
    if only and skip:
        raise ConfigError("--ollama-only and --ollama-skip contradict each other: give one of them")
    return only


def _check_ca_file(given: str | None) -> str | None:
    if not given:
        return None
    if not os.path.isfile(given):
        raise ConfigError(f"--ollama-ca-file {given!r}: no such file")
    import ssl

    try:
        ssl.create_default_context().load_verify_locations(given)
    except OSError as error:  # ssl.SSLError is one
        why = "it holds no certificate in PEM format" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(f"--ollama-ca-file {given!r}: {why}") from None
    return given
