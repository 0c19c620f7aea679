"""What ``doctor`` found, as text for people and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec
from rich.table import Table
from rich.text import Text

from pytest_ollama_perf.analysis.client_checks import (
    MAX_CORE_SHARE,
    TYPICAL_TPS,
    ClientMeasurement,
    find_client_problems,
)
from pytest_ollama_perf.analysis.noise import (
    CAMPAIGN_METRICS,
    Noise,
    find_noise_problems,
    measure_noise,
    round_two_digits,
)
from pytest_ollama_perf.analysis.run_value import build_evidence, get_policy, to_value
from pytest_ollama_perf.cli.common import build_text, open_console
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.verdict import Problem, ProblemCode
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.metrics import format_count, format_number, format_percent, format_seconds, format_value

_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Campaign:
    """The runs of an A/A campaign.

    ``spoiled`` says by a run's id why it cannot be trusted, ``stopped`` why the campaign ended early.
    """

    servers: str
    workload: Workload
    runs: tuple[Run, ...]
    invalid_runs: Mapping[str, tuple[Problem, ...]] = field(default_factory=dict)
    stopped: str = ""
    interrupted: bool = False

    @cached_property
    def valid_runs(self) -> tuple[Run, ...]:
        """The runs that are valid measurements."""
        return tuple(run for run in self.runs if run.id not in self.invalid_runs)

    @cached_property
    def noises(self) -> tuple[Noise, ...]:
        """What the valid runs say, a metric at a time; nothing where there are fewer than three."""
        evidence = [build_evidence(run) for run in self.valid_runs]
        found = (
            measure_noise(get_policy(name), [one.compute_cost(get_policy(name)) for one in evidence])
            for name in CAMPAIGN_METRICS
        )
        return tuple(noise for noise in found if noise)

    def list_problems(self) -> Iterator[Problem]:
        """Yield what is wrong with the sessions, then what was noticed of their noise."""
        if self.stopped and not self.interrupted:
            yield Problem(code=ProblemCode.CAMPAIGN_STOPPED, text=self.stopped, invalidates=True)
        for code, (text, times) in self._group_problems().items():
            where = f"{times} of {format_count(len(self.runs), 'session')}"
            yield Problem(code=code, text=f"{where}: {text}", invalidates=True)
        yield from find_noise_problems(self.noises)

    def _group_problems(self) -> dict[ProblemCode, tuple[str, int]]:
        found: dict[ProblemCode, tuple[str, int]] = {}
        for problem in (problem for problems in self.invalid_runs.values() for problem in problems):
            text, times = found.get(problem.code, (problem.text, 0))
            found[problem.code] = (text, times + 1)
        return found


@dataclass(frozen=True)
class DoctorReport:
    """Everything that was found.

    ``away`` says why the server could not be asked, ``named`` whether an option named that server.
    """

    client: ClientMeasurement
    campaign: Campaign | None
    unreachable_reason: str = ""
    is_server_named: bool = False

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """All problems that were found, of the client first."""
        found = [*find_client_problems(self.client, streams=self._streams, tps=self._tps)]
        if self.campaign:
            found += self.campaign.list_problems()
        if self.unreachable_reason and self.is_server_named:
            found.append(Problem(code=ProblemCode.UNREACHABLE, text=self.unreachable_reason, invalidates=True))
        return tuple(sorted(found, key=lambda problem: not problem.invalidates))

    @property
    def is_healthy(self) -> bool:
        """Whether no problem invalidates measurements."""
        return not any(problem.invalidates for problem in self.problems)

    @property
    def _streams(self) -> int:
        return self.campaign.workload.concurrency or 0 if self.campaign else 0

    @property
    def _tps(self) -> float:
        noises = self.campaign.noises if self.campaign else ()
        return next((noise.typical for noise in noises if noise.policy.name == "tps"), 0.0)


def print_client(client: ClientMeasurement) -> None:
    """Print what the client can do."""
    out = open_console()
    out.print(build_text(f"this machine's client, {format_count(client.cpus, 'core')}", "bold"))
    out.print(_build_client_table(client))


def _build_client_table(client: ClientMeasurement) -> Table:
    stamps = "with the kernel's receive stamps" if client.receive_stamps else "without receive stamps of the kernel"
    late, seldom = _format_time(client.ttft_error_p50_s), _format_time(client.ttft_error_p99_s)
    loop = "uvloop" if client.uvloop else "asyncio"
    files = "no limit" if client.open_files is None else f"{client.open_files} allowed"
    streams = f"{client.count_streams()} streams of {format_number(TYPICAL_TPS)} tokens/s"
    facts = {
        "follows": f"{streams} on one core, {format_percent(1 - MAX_CORE_SHARE)} of it spare",
        "chunks": f"{_format_rate(client.chunks_s)} /s one by one, {_format_rate(client.flood_chunks_s)} /s when "
        "they pile up",
        "first token": f"looks {late} late (p50), {seldom} (p99), {stamps}",
        "event loop": f"{loop}, wakes {_format_time(client.idle_lag_p99_s)} late when idle (p99)",
        "clock": f"steps of {_format_time(client.timer_resolution_s)}",
        "open files": f"{files}, this load needs {client.open_files_needed}",
    }
    if client.load_average is not None:
        facts["load average"] = format_number(client.load_average)
    found = Table.grid(padding=(0, 2, 0, 0))
    for name, text in facts.items():
        found.add_row(f"  {name}", Text(text))
    return found


def _format_rate(rate: float) -> str:
    return f"{format_number(rate / 1e6)} million" if rate >= 1e6 else f"{round(rate, -2):,.0f}".replace(",", " ")


def _format_time(time_s: float) -> str:
    """Milliseconds; below 0.001 of them nanoseconds."""
    return f"{format_number(time_s * 1e9, 2)} ns" if time_s < 1e-6 else format_seconds(time_s, 2)


def print_server_report(found: DoctorReport) -> None:
    """Print what the campaign showed, what is wrong, and what to do."""
    out = open_console()
    out.print()
    if found.campaign:
        _print_campaign(found.campaign)
    elif not found.is_server_named:
        out.print(build_text(f"no campaign: {found.unreachable_reason}"))
    for problem in found.problems:
        out.print(
            build_text(
                f"{'x' if problem.invalidates else '!'} {problem.text}", "red" if problem.invalidates else "yellow"
            )
        )
    for hint in _list_hints(found):
        out.print(build_text(hint))
    out.print(build_text(_build_conclusion(found), "bold green" if found.is_healthy else "bold red"))


def _build_conclusion(found: DoctorReport) -> str:
    wrong = sum(problem.invalidates for problem in found.problems)
    warnings = len(found.problems) - wrong
    beside = f", {format_count(warnings, 'warning')}" if warnings else ""
    so_far = "so far " if found.campaign and found.campaign.interrupted else ""
    return f"{so_far}{format_count(wrong, 'problem')} found{beside}" if wrong else f"{so_far}healthy{beside}"


def _print_campaign(campaign: Campaign) -> None:
    out = open_console()
    out.print(build_text(f"the noise of {_describe_model(campaign)} on {campaign.servers}", "bold"))
    out.print(build_text(f"  {_describe_sessions(campaign)}"))
    if campaign.noises:
        out.print()
        out.print(_build_noise_table(campaign.noises))
        out.print(build_text(_build_legend(campaign)), style="dim")
        out.print()
    elif campaign.runs:
        out.print(
            build_text(f"  {format_count(len(campaign.valid_runs), 'valid session')} cannot show noise: 3 or more can")
        )


def _describe_model(campaign: Campaign) -> str:
    if not campaign.runs:
        return campaign.workload.model or "the model"
    seen = campaign.runs[0].fingerprint
    where = "" if seen.vram_share is None else ", on the CPU" if not seen.vram_share else ", on the GPU"
    return f"{seen.model} ({seen.parameter_size} {seen.quantization}{where}), ollama {seen.server_version}"


def _describe_sessions(campaign: Campaign) -> str:
    load = campaign.workload
    size = (
        f"{format_count(load.requests, 'request')}"
        if load.requests is not None
        else f"{format_number(load.duration_s or 0)} s"
    )
    how = f"concurrency {load.concurrency}" if load.rate is None else f"{format_number(load.rate)} requests/s"
    sessions = f"{format_count(len(campaign.valid_runs), 'session')} x {size}, {how}, {load.warmup} warm-up dropped"
    text = f"{sessions}; the model reloaded for each"
    return f"{text}; {campaign.stopped}" if campaign.interrupted else text


def _build_noise_table(noises: tuple[Noise, ...]) -> Table:
    found = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    found.add_column("  metric", no_wrap=True)
    names = ("typical", "differ\nby", "\nusual", "seen in\n1 run", "\n2 runs", "\n3 runs", "margin\nnow", "\nworth")
    for name in names:
        found.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    for noise in noises:
        found.add_row(*_format_cells(noise))
    return found


def _format_cells(noise: Noise) -> list[Text]:
    style = "" if noise.is_margin_detectable else "yellow"
    shows = [Text(format_percent(round_two_digits(share))) for share in noise.detectable]
    return [
        Text(f"  {noise.policy.name}"),
        Text(format_value(noise.policy.metric.name, noise.typical)),
        Text(format_percent(round_two_digits(noise.sd)), "yellow" if noise.is_unusual else ""),
        Text(format_percent(noise.policy.prior_sd)),
        *shows,
        Text(format_percent(noise.policy.margin)),
        Text(format_percent(noise.margin), style),
    ]


def _build_legend(campaign: Campaign) -> str:
    first = campaign.noises[0]
    sessions = format_count(len(first.costs), "session")
    known = f"From {sessions} a deviation is known to a factor of {format_number(first.sd_factor, 2)}."
    gates = [
        f"{noise.policy.name} from {noise.policy.least_requests} requests a run"
        for noise in campaign.noises
        if noise.policy.explain_refusal(campaign.workload.requests or noise.policy.least_requests)
    ]
    later = f" Can gate only: {', '.join(gates)}." if gates else ""
    seen = "Detectable in N runs: the change found with 80 % power with these runs as the history."
    return f"{seen} {known}{later}"


def _list_hints(found: DoctorReport) -> Iterator[str]:
    noises = found.campaign.noises if found.campaign else ()
    blunt = [
        noise for noise in noises if noise.policy.gating and not noise.is_margin_detectable and not noise.is_unusable
    ]
    if blunt:
        margins = " ".join(f"--ollama-margin {_format_margin(noise)}" for noise in blunt)
        yield f"recommended margins for this machine: pytest {margins}"
    sharp = [noise for noise in noises if noise.policy.gating and noise.margin < noise.policy.margin]
    if sharp:
        margins = " and ".join(_format_margin(noise) for noise in sharp)
        yield f"margins as small as {margins} would hold here"
    if found.unreachable_reason:
        yield "to measure the noise of a server: pytest-ollama-perf doctor --url http://host:11434 --model NAME"


def _format_margin(noise: Noise) -> str:
    return f"{noise.policy.name}={format_percent(noise.margin).replace(' ', '')}"


def to_json(found: DoctorReport) -> dict[str, Any]:
    """Return everything as values for JSON: seconds and shares, ``None`` for what does not exist."""
    return {
        "schema": _SCHEMA_VERSION,
        "healthy": found.is_healthy,
        "problems": msgspec.to_builtins(found.problems),
        "client": msgspec.to_builtins(found.client) | {"streams_of_50_tps": found.client.count_streams()},
        "campaign": _build_campaign_json(found.campaign) if found.campaign else None,
        "unreachable": found.unreachable_reason,
    }


def _build_campaign_json(campaign: Campaign) -> dict[str, Any]:
    return {
        "servers": campaign.servers,
        "fingerprint": msgspec.to_builtins(campaign.runs[0].fingerprint) if campaign.runs else None,
        "workload": msgspec.to_builtins(campaign.workload),
        "sessions": len(campaign.runs),
        "valid_sessions": len(campaign.valid_runs),
        "stopped": campaign.stopped,
        "metrics": {noise.policy.name: _build_noise_json(noise) for noise in campaign.noises},
    }


def _build_noise_json(noise: Noise) -> dict[str, Any]:
    return {
        "unit": noise.policy.metric.unit.value,
        "typical": noise.typical,
        "values": [to_value(noise.policy, cost) for cost in noise.costs],
        "sd": noise.sd,
        "sd_low": noise.low,
        "sd_high": noise.high,
        "usual_sd": noise.policy.prior_sd,
        "detectable": list(noise.detectable),
        "margin": noise.policy.margin,
        "margin_worth": noise.margin,
        "gating": noise.policy.gating,
        "drift": noise.drift,
        "two_modes": noise.gap,
        "autocorrelation": None if math.isnan(noise.autocorrelation) else noise.autocorrelation,
    }
