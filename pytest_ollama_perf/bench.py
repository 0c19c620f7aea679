"""The bench: the servers of a session and the way from a workload to a run. Knows no pytest and judges nothing."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import msgspec

from pytest_ollama_perf.client.access import Access
from pytest_ollama_perf.client.address import Address, parse_address
from pytest_ollama_perf.client.control import Control
from pytest_ollama_perf.client.patience import patiently
from pytest_ollama_perf.client.preflight import model_state, preflight
from pytest_ollama_perf.client.wire import WireBackend
from pytest_ollama_perf.errors import ConfigError, PreconditionBroken, ServerError, Unreachable
from pytest_ollama_perf.fleet import Server, behind, everywhere, examined, place, states, together, weight
from pytest_ollama_perf.load import runner
from pytest_ollama_perf.load.balance import Balanced, Balancer
from pytest_ollama_perf.load.recorder import Progress
from pytest_ollama_perf.run import Fingerprint, Run, Telemetry
from pytest_ollama_perf.settings import Settings
from pytest_ollama_perf.simulator.process import start
from pytest_ollama_perf.simulator.settings import SimulatorSettings
from pytest_ollama_perf.simulator.url import is_sim_url
from pytest_ollama_perf.telemetry.gathered import gathered
from pytest_ollama_perf.telemetry.meter import OFF, Meter, Meters
from pytest_ollama_perf.telemetry.reading import Log
from pytest_ollama_perf.text import inert
from pytest_ollama_perf.workload import ANY_MODEL, Workload


class Onlooker(Protocol):
    """Who is told how a load comes along. What it raises stops the load."""

    def begin(self, model: str, duration_s: float | None = None) -> None:
        """A load of ``model`` begins; ``duration_s`` where time ends it."""

    def message(self, text: str) -> None:
        """Something that may take long begins."""

    def update(self, progress: Progress) -> None:
        """The load has come this far."""


class Bench:
    """Servers, opened on first use, and measurements on them.

    ``partial`` is the run that something interrupted, for whoever catches what interrupted it. ``session`` names the
    session that runs belong to. ``running`` has the URL of a simulator that runs already, or nothing, for each server.

    Raises:
        ConfigError: an address, header or simulator URL is wrong; nothing has been contacted by then.
    """

    def __init__(self, settings: Settings, *, root: Path, session: str = "", running: Sequence[str] = ()) -> None:
        self.settings = settings
        self.session = session or uuid.uuid4().hex[:12]
        self._running = running or ("",) * len(settings.urls)
        self.partial: Run | None = None
        self._root = root
        self._access = Access(headers=settings.headers, verify=not settings.insecure, ca_file=settings.ca_file or "")
        self._places = tuple(place(url) for url in settings.urls)
        self._beside: dict[str, Server] = {}
        self._stack = contextlib.ExitStack()
        self._meters = Meters(settings.telemetry)
        self._stack.callback(self._meters.close)

    @functools.cached_property
    def servers(self) -> tuple[Server, ...]:
        """The servers in the order given; simulators are started here."""
        given = zip(self.settings.urls, self._places, self._running, strict=True)
        return tuple(self._open(url, place, running) for url, place, running in given)

    @property
    def simulated(self) -> tuple[str, ...]:
        """The URL of each server that is a simulator, nothing for the others; simulators are started here."""
        if not any(isinstance(place, SimulatorSettings) for place in self._places):
            return ()
        pairs = zip(self.servers, self._places, strict=True)
        return tuple(server.address.url if isinstance(place, SimulatorSettings) else "" for server, place in pairs)

    def server_at(self, url: str) -> Server:
        """The server at ``url``, beside those under test; opened once, a simulator is started here."""
        if url not in self._beside:
            self._beside[url] = self._open(url, place(url))
        return self._beside[url]

    def _open(self, url: str, place: Address | SimulatorSettings, running: str = "") -> Server:
        if isinstance(place, SimulatorSettings):
            address = parse_address(running or self._stack.enter_context(start(place)).url)
            usual = place.models[0].full_name
            return Server(url.partition("#")[0], address, self._controlled(address), usual, weight(url))
        return Server(place.display, place, self._controlled(place), weight=weight(url))

    def _controlled(self, address: Address) -> Control:
        return self._stack.enter_context(Control(address, self._access))

    def close(self) -> None:
        """Stop simulators and close connections."""
        self._stack.close()

    def introduce(self, models: Iterable[str]) -> tuple[str, list[str], list[str]]:
        """Return server version, server names and models for a header line; what cannot be reached has no version."""
        versions, named = self._versions(), sorted(filter(None, models))
        with contextlib.suppress(ServerError, ConfigError):
            named = sorted({model or self._usual(self.servers) for model in models})
        return ", ".join(versions) or "not reached", [server.name for server in self.servers], named

    def _versions(self) -> list[str]:
        """Return each version once; a server that does not answer is told of where it is to be measured."""
        versions = []
        for server in self.servers:
            with contextlib.suppress(ServerError):
                versions.append(server.control.version())
        return list(dict.fromkeys(versions))

    def _usual(self, servers: Sequence[Server]) -> str:
        """Return the model that can only be meant, asking the first server that answers."""
        for server in servers[:-1]:
            with contextlib.suppress(Unreachable):
                return _only_model(server)
        return _only_model(servers[-1])

    def measure(
        self,
        workload: Workload,
        test: str = "",
        *,
        fresh: bool = False,
        onlooker: Onlooker,
        servers: Sequence[Server] = (),
        admit: Callable[[Run], str] = lambda draft: "",
    ) -> Run:
        """Fire ``workload`` and return what happened.

        ``fresh`` reloads the model first, so that the run is a unit of evidence; ``servers`` are those under
        test unless others are named. ``admit`` looks at the run before its load begins and says why not to.

        Raises:
            PreconditionBroken: ``admit`` had something to say.
            OllamaPerfError: the server cannot be reached or lacks the model, or the workload is impossible.
        """
        self.partial = None
        servers = servers or self.servers
        whole = self.completed(workload, servers)
        servers, draft = self._prepared(whole, test, servers, fresh=fresh or whole.cold, onlooker=onlooker)
        if reason := admit(draft):
            raise PreconditionBroken(reason)
        if self.settings.telemetry not in {None, OFF}:
            onlooker.message("waiting for the first reading of the telemetry command")
        onlooker.begin(whole.model, whole.duration_s)
        balancer = Balancer(whole.balance, [server.weight for server in servers], whole.seed)
        with self._meter(servers).reading() as log:
            fired = runner.run(
                whole,
                lambda: Balanced(WireBackend([server.address for server in servers], self._access), balancer),
                targets=len(servers),
                choose=balancer.choose,
                on_progress=onlooker.update,
                on_abort=lambda part: self._interrupted(draft, part, log),
            )
        done = msgspec.structs.replace(_filled(draft, fired, log), after=states(servers, whole.model))
        return self._identified(done, servers)

    def rest_s(self, before: Run) -> float:
        """Return the seconds to wait until the next run can be evidence beside ``before``.

        What slows a machine for a moment slows runs that follow at once alike. A simulator has no such moments.
        """
        simulated = self.simulated
        if simulated and all(simulated):
            return 0.0
        spacing = self.settings.run_spacing_s
        return min(spacing, max(0.0, before.started_at + spacing - time.time()))

    def _identified(self, run: Run, servers: Sequence[Server]) -> Run:
        """Add to the fingerprint what only the load could show.

        Before a cold load the model was not loaded, and so had no context and no place; and only answers name the
        servers behind one address.
        """
        identity = run.fingerprint
        if run.workload.cold:
            with contextlib.suppress(ServerError):
                used, facts = examined(servers, lambda server: self._fingerprint(server, run.workload), leave_out=True)
                identity = together(facts, used)
        if run.telemetry is not None:
            identity = _with_gpu(identity, run.telemetry)
        return msgspec.structs.replace(run, fingerprint=behind([sample.server for sample in run.samples], identity))

    def completed(self, workload: Workload, servers: Sequence[Server] = ()) -> Workload:
        """Return ``workload`` with what only the servers know: the one model that can be meant."""
        model = self._usual(servers or self.servers) if workload.model == ANY_MODEL else workload.model
        return msgspec.structs.replace(workload, model=model, salt=workload.salt or uuid.uuid4().hex[:8])

    def _prepared(
        self, workload: Workload, test: str, servers: Sequence[Server], *, fresh: bool, onlooker: Onlooker
    ) -> tuple[Sequence[Server], Run]:
        """Bring the model into the state the load needs, and return the servers that take part and the run as far as it
        is known before the load."""
        load_times: list[float | None] = []

        def ready(server: Server) -> Fingerprint:
            load_times.append(_load(server.control, workload, fresh=fresh, onlooker=onlooker))
            return self._fingerprint(server, workload)

        used, facts = examined(servers, ready, leave_out=self.settings.allow_down)
        return used, Run(
            id=uuid.uuid4().hex,
            test=test,
            session=self.session,
            started_at=time.time(),
            git_commit=self._git_commit,
            plugin_version=PLUGIN_VERSION,
            workload=workload,
            fingerprint=together(facts, used),
            load_time_s=max((seconds for seconds in load_times if seconds is not None), default=None),
            before=states(servers, workload.model),
            servers=facts if len(facts) > 1 else {},
        )

    def _fingerprint(self, server: Server, workload: Workload) -> Fingerprint:
        return preflight(server.control, workload, server_env=self.settings.server_env)[0]

    def _interrupted(self, draft: Run, part: runner.Fired, log: Log) -> None:
        self.partial = _filled(draft, part, log)

    def _meter(self, servers: Sequence[Server]) -> Meter:
        """Return what reads the GPUs of ``servers``."""
        simulated = any(is_sim_url(server.name) for server in servers)
        return self._meters.of([server.address.host for server in servers], simulated=simulated)

    @functools.cached_property
    def _git_commit(self) -> str:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            asked = ["git", "-C", str(self._root), "rev-parse", "HEAD"]
            return subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        return ""


PLUGIN_VERSION = version("pytest-ollama-perf")


def _filled(draft: Run, fired: runner.Fired, log: Log) -> Run:
    run = msgspec.structs.replace(draft, samples=fired.samples, aborted=fired.aborted)
    window = (
        min((sample.start_ns for sample in run.measured), default=fired.started_ns),
        max((sample.done_ns for sample in run.measured), default=fired.ended_ns),
    )
    watch = msgspec.structs.replace(fired.watch, telemetry_cpu_share=round(log.cpu_share, 5))
    return msgspec.structs.replace(run, watch=watch, telemetry=gathered(log, window))


def _with_gpu(identity: Fingerprint, found: Telemetry) -> Fingerprint:
    """Add the GPUs that were read, unless the model does not run on them."""
    if not found.gpus or identity.vram_share == 0:
        return identity
    named = Counter(gpu.name for gpu in found.gpus)
    gpu = ", ".join(name if number == 1 else f"{number} x {name}" for name, number in named.items() if name)
    return msgspec.structs.replace(identity, gpu=gpu or identity.gpu, driver=found.driver or identity.driver)


def _load(control: Control, workload: Workload, *, fresh: bool, onlooker: Onlooker) -> float | None:
    """Load the model with the options of the workload; return the seconds that took, ``None`` where it stood loaded.

    For a cold load the model is unloaded and gone: its first request is to load it.
    """
    control.installed(workload.model)
    state = model_state(control, workload.model)
    if fresh and state.loaded:
        onlooker.message(f"unloading {workload.model}")
        control.unload(workload.model)
        everywhere(lambda: control.unload(workload.model), lambda: not model_state(control, workload.model).loaded)
    if workload.cold:
        return None
    stood = not fresh and state.loaded and state.context_length == workload.num_ctx
    if not stood:
        onlooker.message(f"loading {workload.model}")

    def load() -> float:
        return control.load(
            workload.model,
            keep_alive=workload.keep_alive,
            num_ctx=workload.num_ctx,
            options=workload.options,
            timeout_s=workload.timeouts.first_token_s,
        )

    seconds = patiently(load, lambda elapsed: onlooker.message(f"loading {workload.model} ... {elapsed:.0f} s"))
    if not workload.unloads_itself:
        everywhere(load, lambda: model_state(control, workload.model).loaded)
    return None if stood else seconds


def _only_model(server: Server) -> str:
    """Return the model that can only be meant where none is named: the one the server has, or the one it has loaded."""
    if server.usual != ANY_MODEL:
        return server.usual
    installed = [entry.name for entry in server.control.tags()]
    if len(installed) == 1:
        return installed[0]
    loaded = [entry.name for entry in server.control.ps()]
    if len(loaded) == 1:
        return loaded[0]
    what = f"has {len(installed)} models ({inert(', '.join(installed))})" if installed else "has no model"
    raise ConfigError(
        f"no model named, and {server.name} {what}: give --ollama-model, or write model='...' on the marker"
    )
