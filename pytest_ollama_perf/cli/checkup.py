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

from pytest_ollama_perf.cli.screen import console, line
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.verdict.ability import RESERVE, TYPICAL_TPS, Client, inability
from pytest_ollama_perf.verdict.evidence import of_run
from pytest_ollama_perf.verdict.noise import CAMPAIGN, Noise, measure_noise, noticed, two_digits
from pytest_ollama_perf.verdict.run_value import policy, value
from pytest_ollama_perf.verdict.wording import count, number, percent, seconds, show
from pytest_ollama_perf.verdict.words import Problem
from pytest_ollama_perf.workload import Workload

_SCHEMA = 1


@dataclass(frozen=True)
class Campaign:
    """The runs of an A/A campaign.

    ``spoiled`` says by a run's id why it cannot be trusted, ``stopped`` why the campaign ended early.
    """

    servers: str
    workload: Workload
    runs: tuple[Run, ...]
    spoiled: Mapping[str, tuple[Problem, ...]] = field(default_factory=dict)
    stopped: str = ""
    interrupted: bool = False

    @cached_property
    def valid(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.id not in self.spoiled)

    @cached_property
    def noises(self) -> tuple[Noise, ...]:
        """What the valid runs say, a metric at a time; nothing where there are fewer than three."""
        evidence = [of_run(run) for run in self.valid]
        found = (measure_noise(policy(name), [one.reading(policy(name)) for one in evidence]) for name in CAMPAIGN)
        return tuple(noise for noise in found if noise)

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong with the sessions, then what was noticed of their noise."""
        if self.stopped and not self.interrupted:
            yield Problem(name="stopped", text=self.stopped, spoils=True)
        for name, (text, times) in self._spoilt_by().items():
            where = f"{times} of {count(len(self.runs), 'session')}"
            yield Problem(name=name, text=f"{where}: {text}", spoils=True)
        yield from noticed(self.noises)

    def _spoilt_by(self) -> dict[str, tuple[str, int]]:
        found: dict[str, tuple[str, int]] = {}
        for problem in (problem for problems in self.spoiled.values() for problem in problems):
            text, times = found.get(problem.name, (problem.text, 0))
            found[problem.name] = (text, times + 1)
        return found


@dataclass(frozen=True)
class Checkup:
    """Everything that was found.

    ``away`` says why the server could not be asked, ``named`` whether somebody named that server.
    """

    client: Client
    campaign: Campaign | None
    away: str = ""
    named: bool = False

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        found = [*inability(self.client, streams=self._streams, tps=self._tps)]
        if self.campaign:
            found += self.campaign.problems()
        if self.away and self.named:
            found.append(Problem(name="unreachable", text=self.away, spoils=True))
        return tuple(sorted(found, key=lambda problem: not problem.spoils))

    @property
    def healthy(self) -> bool:
        return not any(problem.spoils for problem in self.problems)

    @property
    def _streams(self) -> int:
        return self.campaign.workload.concurrency or 0 if self.campaign else 0

    @property
    def _tps(self) -> float:
        noises = self.campaign.noises if self.campaign else ()
        return next((noise.typical for noise in noises if noise.policy.name == "tps"), 0.0)


def print_client(client: Client) -> None:
    """Print what the client can do."""
    out = console()
    out.print(line(f"this machine's client, {count(client.cpus, 'core')}", "bold"))
    out.print(_facts(client))


def _facts(client: Client) -> Table:
    stamps = "with the kernel's receive stamps" if client.receive_stamps else "without receive stamps of the kernel"
    late, seldom = _short(client.ttft_error_p50_s), _short(client.ttft_error_p99_s)
    loop = "uvloop" if client.uvloop else "asyncio"
    files = "no limit" if client.open_files is None else f"{client.open_files} allowed"
    streams = f"{client.streams()} streams of {number(TYPICAL_TPS)} tokens/s"
    facts = {
        "follows": f"{streams} on one core, {percent(1 - RESERVE)} of it spare",
        "chunks": f"{_big(client.chunks_s)} /s one by one, {_big(client.flood_chunks_s)} /s when they pile up",
        "first token": f"looks {late} late (p50), {seldom} (p99), {stamps}",
        "event loop": f"{loop}, wakes {_short(client.idle_lag_p99_s)} late when idle (p99)",
        "clock": f"steps of {_short(client.timer_resolution_s)}",
        "open files": f"{files}, this load needs {client.open_files_needed}",
    }
    if client.load_average is not None:
        facts["load average"] = number(client.load_average)
    found = Table.grid(padding=(0, 2, 0, 0))
    for name, text in facts.items():
        found.add_row(f"  {name}", Text(text))
    return found


def _big(rate: float) -> str:
    return f"{number(rate / 1e6)} million" if rate >= 1e6 else f"{round(rate, -2):,.0f}".replace(",", " ")


def _short(time_s: float) -> str:
    """Milliseconds; below 0.001 of them nanoseconds."""
    return f"{number(time_s * 1e9, 2)} ns" if time_s < 1e-6 else seconds(time_s, 2)


def print_server(found: Checkup) -> None:
    """Print what the campaign showed, what is wrong, and what to do."""
    out = console()
    out.print()
    if found.campaign:
        _print_campaign(found.campaign)
    elif not found.named:
        out.print(line(f"no campaign: {found.away}"))
    for problem in found.problems:
        out.print(line(f"{'x' if problem.spoils else '!'} {problem.text}", "red" if problem.spoils else "yellow"))
    for hint in _hints(found):
        out.print(line(hint))
    out.print(line(_conclusion(found), "bold green" if found.healthy else "bold red"))


def _conclusion(found: Checkup) -> str:
    wrong = sum(problem.spoils for problem in found.problems)
    warnings = len(found.problems) - wrong
    beside = f", {count(warnings, 'warning')}" if warnings else ""
    so_far = "so far " if found.campaign and found.campaign.interrupted else ""
    return f"{so_far}{count(wrong, 'thing')} to put right{beside}" if wrong else f"{so_far}healthy{beside}"


def _print_campaign(campaign: Campaign) -> None:
    out = console()
    out.print(line(f"the noise of {_model(campaign)} on {campaign.servers}", "bold"))
    out.print(line(f"  {_sessions(campaign)}"))
    if campaign.noises:
        out.print()
        out.print(_table(campaign.noises))
        out.print(line(_legend(campaign)), style="dim")
        out.print()
    elif campaign.runs:
        out.print(line(f"  {count(len(campaign.valid), 'valid session')} cannot show noise: 3 or more can"))


def _model(campaign: Campaign) -> str:
    if not campaign.runs:
        return campaign.workload.model or "the model"
    seen = campaign.runs[0].fingerprint
    where = "" if seen.vram_share is None else ", on the CPU" if not seen.vram_share else ", on the GPU"
    return f"{seen.model} ({seen.parameter_size} {seen.quantization}{where}), ollama {seen.server_version}"


def _sessions(campaign: Campaign) -> str:
    load = campaign.workload
    size = f"{count(load.requests, 'request')}" if load.requests is not None else f"{number(load.duration_s or 0)} s"
    how = f"{load.concurrency} at once" if load.rate is None else f"{number(load.rate)} a second"
    sessions = f"{count(len(campaign.valid), 'session')} x {size}, {how}, {load.warmup} warm-up dropped"
    text = f"{sessions}; the model loaded anew for each"
    return f"{text}; {campaign.stopped}" if campaign.interrupted else text


def _table(noises: tuple[Noise, ...]) -> Table:
    found = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    found.add_column("  metric", no_wrap=True)
    names = ("typical", "differ\nby", "\nusual", "seen in\n1 run", "\n2 runs", "\n3 runs", "margin\nnow", "\nworth")
    for name in names:
        found.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    for noise in noises:
        found.add_row(*_cells(noise))
    return found


def _cells(noise: Noise) -> list[Text]:
    style = "" if noise.tells else "yellow"
    shows = [Text(percent(two_digits(share))) for share in noise.detectable]
    return [
        Text(f"  {noise.policy.name}"),
        Text(show(noise.policy.metric.name, noise.typical)),
        Text(percent(two_digits(noise.sd)), "yellow" if noise.unusual else ""),
        Text(percent(noise.policy.prior_sd)),
        *shows,
        Text(percent(noise.policy.margin)),
        Text(percent(noise.margin), style),
    ]


def _legend(campaign: Campaign) -> str:
    first = campaign.noises[0]
    sessions = count(len(first.costs), "session")
    known = f"From {sessions} a deviation is known to a factor of {number(first.known_to, 2)}."
    gates = [
        f"{noise.policy.name} from {noise.policy.least_requests} requests a run"
        for noise in campaign.noises
        if noise.policy.refusal(campaign.workload.requests or noise.policy.least_requests)
    ]
    later = f" Can gate only: {', '.join(gates)}." if gates else ""
    seen = "Seen in so many runs: the change that is found four times in five with these as history."
    return f"{seen} {known}{later}"


def _hints(found: Checkup) -> Iterator[str]:
    noises = found.campaign.noises if found.campaign else ()
    blunt = [noise for noise in noises if noise.policy.gating and not noise.tells and not noise.beyond_use]
    if blunt:
        words = " ".join(f"--ollama-margin {_as_written(noise)}" for noise in blunt)
        yield f"margins that this machine can tell: pytest {words}"
    sharp = [noise for noise in noises if noise.policy.gating and noise.margin < noise.policy.margin]
    if sharp:
        words = " and ".join(_as_written(noise) for noise in sharp)
        yield f"margins as small as {words} would hold here"
    if found.away:
        yield "to measure the noise of a server: pytest-ollama-perf doctor --url http://host:11434 --model NAME"


def _as_written(noise: Noise) -> str:
    return f"{noise.policy.name}={percent(noise.margin).replace(' ', '')}"


def plain(found: Checkup) -> dict[str, Any]:
    """Return everything as values for JSON: seconds and shares, ``None`` for what does not exist."""
    return {
        "schema": _SCHEMA,
        "healthy": found.healthy,
        "problems": msgspec.to_builtins(found.problems),
        "client": msgspec.to_builtins(found.client) | {"streams_of_50_tps": found.client.streams()},
        "campaign": _plain_campaign(found.campaign) if found.campaign else None,
        "unreachable": found.away,
    }


def _plain_campaign(campaign: Campaign) -> dict[str, Any]:
    return {
        "servers": campaign.servers,
        "fingerprint": msgspec.to_builtins(campaign.runs[0].fingerprint) if campaign.runs else None,
        "workload": msgspec.to_builtins(campaign.workload),
        "sessions": len(campaign.runs),
        "valid_sessions": len(campaign.valid),
        "stopped": campaign.stopped,
        "metrics": {noise.policy.name: _plain_noise(noise) for noise in campaign.noises},
    }


def _plain_noise(noise: Noise) -> dict[str, Any]:
    return {
        "unit": noise.policy.metric.unit.value,
        "typical": noise.typical,
        "values": [value(noise.policy, cost) for cost in noise.costs],
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
        "autocorrelation": None if math.isnan(noise.echo) else noise.echo,
    }
