"""Prepare servers, measure a run, evaluate it, compare it with stored runs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import msgspec

from pytest_ollama_perf.client.address import Access, Address, parse_address
from pytest_ollama_perf.client.backend import HttpBackend
from pytest_ollama_perf.client.control import ControlClient
from pytest_ollama_perf.client.preflight import read_model_state, run_preflight
from pytest_ollama_perf.client.waiting import call_with_ticks
from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.core import ConfigError, PreconditionError, ServerError, ServerUnreachableError
from pytest_ollama_perf.core.run import Fingerprint, ModelState, Run, Telemetry
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.workload import ANY_MODEL, Workload
from pytest_ollama_perf.harness.servers import (
    ResidencyKeeper,
    TargetServer,
    count_replicas,
    merge_fingerprints,
    parse_target,
    parse_weight,
    probe_servers,
    read_model_states,
    repeat_until_stable,
)
from pytest_ollama_perf.loadgen import BalancedBackend, Balancer, runner
from pytest_ollama_perf.loadgen.recorder import LoadProgress
from pytest_ollama_perf.simulator.process import start_simulator
from pytest_ollama_perf.simulator.settings import SimulatorSettings
from pytest_ollama_perf.simulator.url import is_sim_url
from pytest_ollama_perf.telemetry import TELEMETRY_OFF, Meter, TelemetryProvider
from pytest_ollama_perf.telemetry.readings import TelemetryLog, summarize_log


class ProgressListener(Protocol):
    """Receives the progress of a load. An exception that it raises stops the load."""

    def begin(self, model: str, duration_s: float | None = None, *, captions: Sequence[str] = ()) -> None:
        """A load of ``model`` starts; ``duration_s`` is its length if time ends it.

        ``captions`` say which of several loads it is, outermost first: ``level 3 of 5``, ``run 2 of at most 3``.
        """

    def show_message(self, text: str, *, time: str = "") -> None:
        """A step starts that may take long.

        ``time``, such as ``34 s``, is shown behind ``text``. Calls that differ only in it belong to the same step.
        """

    def update(self, progress: LoadProgress) -> None:
        """The load made progress."""


class Harness:
    """Servers, opened on first use, and measurements on them.

    ``partial_run`` is the interrupted run, for a report after an interruption. ``session`` names the
    session that runs belong to. ``running`` has the URL of a simulator that runs already, or nothing, for each server.

    Raises:
        ConfigError: an address, header or simulator URL is wrong; nothing has been contacted by then.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        root: Path,
        session: str = "",
        running: Sequence[str] = (),
        restores: bool = True,
        collect_facts: Callable[[str, str], Mapping[str, str]] = lambda url, model: {},
    ) -> None:
        self.settings = settings
        self._collect_facts = collect_facts
        self.session = session or uuid.uuid4().hex[:12]
        self._running_urls = running or ("",) * len(settings.urls)
        self.partial_run: Run | None = None
        self._last_start_s: float | None = None
        self._root = root
        self._access = Access(headers=settings.headers, verify=not settings.insecure, ca_file=settings.ca_file or "")
        self._places = tuple(parse_target(url) for url in settings.urls)
        self._other_servers: dict[str, TargetServer] = {}
        self._unnamed_urls: set[str] = set()
        self._stack = contextlib.ExitStack()
        self._meters = TelemetryProvider(settings.telemetry)
        self._stack.callback(self._meters.close)
        self._residency = ResidencyKeeper() if restores else None

    @functools.cached_property
    def servers(self) -> tuple[TargetServer, ...]:
        """The servers in the order given; simulators are started here."""
        given = zip(self.settings.urls, self._places, self._running_urls, strict=True)
        return tuple(self._open_server(url, place, running) for url, place, running in given)

    @property
    def simulator_urls(self) -> tuple[str, ...]:
        """The URL of each server that is a simulator, nothing for the others; simulators are started here."""
        if not any(isinstance(place, SimulatorSettings) for place in self._places):
            return ()
        pairs = zip(self.servers, self._places, strict=True)
        return tuple(server.address.url if isinstance(place, SimulatorSettings) else "" for server, place in pairs)

    def open_server(self, url: str) -> TargetServer:
        """Return the server at ``url``, which is opened once; a simulator is started."""
        if url not in self._other_servers:
            place = parse_target(url)
            if isinstance(place, Address) and not self._is_named(place):
                self._unnamed_urls.add(place.url)
            self._other_servers[url] = self._open_server(url, place)
        return self._other_servers[url]

    def _is_named(self, place: Address) -> bool:
        """Whether ``--ollama-url`` or ``--ollama-baseline-url`` names this server."""
        baseline = self.settings.baseline_url
        named = (*self._places, *([parse_target(baseline)] if baseline else []))
        return any(isinstance(one, Address) and one.url == place.url for one in named)

    def _open_server(self, url: str, place: Address | SimulatorSettings, running: str = "") -> TargetServer:
        if isinstance(place, SimulatorSettings):
            address = parse_address(running or self._stack.enter_context(start_simulator(place)).url)
            usual = place.models[0].full_name
            return TargetServer(url.partition("#")[0], address, self._open_control(address), usual, parse_weight(url))
        return TargetServer(place.url, place, self._open_control(place), weight=parse_weight(url))

    def _open_control(self, address: Address) -> ControlClient:
        return self._stack.enter_context(ControlClient(address, self._select_access([address])))

    def _select_access(self, addresses: Sequence[Address]) -> Access:
        """Return how to reach these servers: headers, and so API keys, go only to servers that an option names."""
        if self._unnamed_urls.isdisjoint(address.url for address in addresses):
            return self._access
        return dataclasses.replace(self._access, headers=())

    def remember_models(self, servers: Sequence[TargetServer] = ()) -> None:
        """Note which models are loaded, to restore them on ``close``; simulators that this object starts end there."""
        if self._residency is not None:
            chosen = servers or self.servers
            self._residency.remember([server.control for server in chosen if not is_sim_url(server.name)])

    def close(self) -> None:
        """Restore the models that were loaded before, stop simulators and close connections."""
        try:
            if self._residency is not None:
                self._residency.restore()
        finally:
            self._stack.close()

    def describe_servers(self, models: Iterable[str]) -> tuple[str, list[str], list[str]]:
        """Return server version, server names and models for a header line; what cannot be reached has no version."""
        versions, named = self._fetch_versions(), sorted(filter(None, models))
        with contextlib.suppress(ServerError, ConfigError):
            named = sorted({model or self._find_default_model(self.servers) for model in models})
        return ", ".join(versions) or "not reached", [server.name for server in self.servers], named

    def explain_unreachable(self) -> str:
        """Return why no server under test can be reached; an empty text if one of them answers."""
        reason = ""
        for server in self.servers:
            try:
                server.control.get_version()
            except ServerUnreachableError as error:
                reason = reason or str(error)
            except ServerError:
                return ""
            else:
                return ""
        return reason

    def _fetch_versions(self) -> list[str]:
        """Return each version once; a server that does not answer is reported when it is measured."""
        versions = []
        for server in self.servers:
            with contextlib.suppress(ServerError):
                versions.append(server.control.get_version())
        return list(dict.fromkeys(versions))

    def _find_default_model(self, servers: Sequence[TargetServer]) -> str:
        """Return the model that can only be meant, asking the first server that answers."""
        for server in servers[:-1]:
            with contextlib.suppress(ServerUnreachableError):
                return _find_only_model(server)
        return _find_only_model(servers[-1])

    def measure(
        self,
        workload: Workload,
        test: str = "",
        *,
        fresh: bool = False,
        listener: ProgressListener,
        servers: Sequence[TargetServer] = (),
        precondition: Callable[[Run], str] = lambda draft: "",
    ) -> Run:
        """Run ``workload`` and return what happened.

        ``fresh`` reloads the model first, so that the run is a unit of evidence; ``servers`` are those under
        test by default. ``precondition`` gets the run before its load starts and returns why not to start it.

        Raises:
            PreconditionError: ``precondition`` returned a reason.
            OllamaPerfError: the server cannot be reached or lacks the model, or the workload is impossible.
        """
        self.partial_run = None
        servers = servers or self.servers
        whole = self.resolve_workload(workload, servers)
        self.remember_models(servers)
        servers, draft = self._prepare_run(whole, test, servers, fresh=fresh or whole.cold, listener=listener)
        if reason := precondition(draft):
            raise PreconditionError(reason)
        if self.settings.telemetry not in {None, TELEMETRY_OFF}:
            listener.show_message("waiting for the first reading of the telemetry command")
        listener.begin(whole.model, whole.duration_s)
        balancer = Balancer(whole.balance, [server.weight for server in servers], whole.random_seed)
        addresses = [server.address for server in servers]
        with self._open_meter(servers).record() as log:
            fired = runner.run_load(
                whole,
                lambda: BalancedBackend(HttpBackend(addresses, self._select_access(addresses)), balancer),
                targets=len(servers),
                choose=balancer.choose,
                on_progress=listener.update,
                on_abort=lambda part: self._on_abort(draft, part, log),
            )
        done = msgspec.structs.replace(_complete_run(draft, fired, log), after=read_model_states(servers, whole.model))
        return self._complete_fingerprint(done, servers)

    def compute_wait_s(self) -> float:
        """Return the seconds to wait until the next run may count as evidence next to the last one.

        A short disturbance of the machine slows consecutive runs alike. A simulator has no such disturbances.
        """
        simulated = self.simulator_urls
        if self._last_start_s is None or (simulated and all(simulated)):
            return 0.0
        return max(0.0, self._last_start_s + self.settings.run_spacing_s - time.monotonic())

    def _complete_fingerprint(self, run: Run, servers: Sequence[TargetServer]) -> Run:
        """Add to the fingerprint what only the load could show.

        Before a cold load the model was not loaded, and so had no context and no place; and only answers name the
        servers behind one address.
        """
        identity = run.fingerprint
        if run.workload.cold:
            with contextlib.suppress(ServerError):
                used, facts = probe_servers(
                    servers, lambda server: self._read_fingerprint(server, run.workload), leave_out=True
                )
                identity = merge_fingerprints(facts, used)
        if run.telemetry is not None:
            identity = _add_gpu(identity, run.telemetry)
        return msgspec.structs.replace(
            run, fingerprint=count_replicas([sample.server for sample in run.samples], identity)
        )

    def resolve_workload(self, workload: Workload, servers: Sequence[TargetServer] = ()) -> Workload:
        """Return ``workload`` with what only the servers know: the one model that can be meant."""
        model = self._find_default_model(servers or self.servers) if workload.model == ANY_MODEL else workload.model
        return msgspec.structs.replace(workload, model=model, salt=workload.salt or uuid.uuid4().hex[:8])

    def _prepare_run(
        self, workload: Workload, test: str, servers: Sequence[TargetServer], *, fresh: bool, listener: ProgressListener
    ) -> tuple[Sequence[TargetServer], Run]:
        """Bring the model into the state the load needs, and return the servers that take part and the run as far as it
        is known before the load."""
        load_times: list[float | None] = []

        def ready(server: TargetServer) -> Fingerprint:
            load_times.append(_load_model(server.control, workload, fresh=fresh, listener=listener))
            return self._read_fingerprint(server, workload)

        used, facts = probe_servers(servers, ready, leave_out=self.settings.allow_down)
        self._last_start_s = time.monotonic()
        return used, Run(
            id=uuid.uuid4().hex,
            test=test,
            session=self.session,
            started_at=time.time(),
            git_commit=self._git_commit,
            plugin_version=PLUGIN_VERSION,
            workload=workload,
            fingerprint=merge_fingerprints(facts, used),
            load_time_s=max((seconds for seconds in load_times if seconds is not None), default=None),
            before=read_model_states(servers, workload.model),
            servers=facts if len(facts) > 1 else {},
        )

    def _read_fingerprint(self, server: TargetServer, workload: Workload) -> Fingerprint:
        facts = {**self._collect_facts(server.name, workload.model), **self.settings.server_env}
        return run_preflight(server.control, workload, server_env=facts)[0]

    def _on_abort(self, draft: Run, part: runner.LoadMeasurement, log: TelemetryLog) -> None:
        self.partial_run = _complete_run(draft, part, log)

    def _open_meter(self, servers: Sequence[TargetServer]) -> Meter:
        """Return what reads the GPUs of ``servers``."""
        simulated = any(is_sim_url(server.name) for server in servers)
        return self._meters.select_meter([server.address.host for server in servers], simulated=simulated)

    @functools.cached_property
    def _git_commit(self) -> str:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            asked = ["git", "-C", str(self._root), "rev-parse", "HEAD"]
            return subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        return ""


PLUGIN_VERSION = version("pytest-ollama-perf")


def _complete_run(draft: Run, fired: runner.LoadMeasurement, log: TelemetryLog) -> Run:
    run = msgspec.structs.replace(draft, samples=fired.samples, aborted=fired.aborted)
    window = (
        min((sample.start_ns for sample in run.measured), default=fired.started_ns),
        max((sample.done_ns for sample in run.measured), default=fired.ended_ns),
    )
    watch = msgspec.structs.replace(fired.watch, telemetry_cpu_share=round(log.cpu_share, 5))
    return msgspec.structs.replace(run, watch=watch, telemetry=summarize_log(log, window))


def _add_gpu(identity: Fingerprint, found: Telemetry) -> Fingerprint:
    """Add the GPUs that were read, unless the model does not run on them."""
    if not found.gpus or identity.vram_share == 0:
        return identity
    named = Counter(gpu.name for gpu in found.gpus)
    gpu = ", ".join(name if number == 1 else f"{number} x {name}" for name, number in named.items() if name)
    return msgspec.structs.replace(identity, gpu=gpu or identity.gpu, driver=found.driver or identity.driver)


def _load_model(control: ControlClient, workload: Workload, *, fresh: bool, listener: ProgressListener) -> float | None:
    """Load the model with the options of the workload; return the seconds that took, ``None`` if it was loaded before.

    For a cold load the model is unloaded and gone: its first request is to load it.
    """
    control.get_installed(workload.model)
    state = read_model_state(control, workload.model)
    if fresh and state.loaded:
        listener.show_message(f"unloading {workload.model}")
        control.unload(workload.model)
        repeat_until_stable(
            lambda: control.unload(workload.model), lambda: not read_model_state(control, workload.model).loaded
        )
    if workload.cold:
        return None
    was_loaded = not fresh and state.loaded and workload.num_ctx in {None, state.context_length}
    if not was_loaded:
        listener.show_message(f"loading {workload.model}")

    def load() -> float:
        return control.load(
            workload.model,
            keep_alive=workload.keep_alive,
            num_ctx=workload.num_ctx,
            options=workload.options,
            timeout_s=workload.timeouts.first_token_s,
        )

    seconds = call_with_ticks(
        load, lambda elapsed: listener.show_message(f"loading {workload.model} ...", time=f"{elapsed:.0f} s")
    )
    if not workload.unloads_itself:
        repeat_until_stable(load, lambda: read_model_state(control, workload.model).loaded)
    return None if was_loaded and _has_same_context(control, workload.model, state) else seconds


def _has_same_context(control: ControlClient, model: str, before: ModelState) -> bool:
    """Whether the model still has the context it had; a load with other options makes the server reload it."""
    return read_model_state(control, model).context_length in {None, before.context_length}


def _find_only_model(server: TargetServer) -> str:
    """Return the model that can only be meant where none is named: the one the server has, or the one it has loaded."""
    if server.default_model != ANY_MODEL:
        return server.default_model
    installed = [entry.name for entry in server.control.list_models()]
    if len(installed) == 1:
        return installed[0]
    loaded = [entry.name for entry in server.control.list_running()]
    if len(loaded) == 1:
        return loaded[0]
    what = f"has {len(installed)} models ({sanitize(', '.join(installed))})" if installed else "has no model"
    raise ConfigError(
        f"no model named, and {server.name} {what}: give --ollama-model, or write model='...' on the marker"
    )
