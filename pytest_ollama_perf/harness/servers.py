"""The servers of one load: where each is and how much of the load it gets, what they are together, what answers."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import msgspec

from pytest_ollama_perf.client.address import Address, parse_address
from pytest_ollama_perf.client.control import ControlClient
from pytest_ollama_perf.client.models import RunningModel
from pytest_ollama_perf.client.preflight import read_model_state
from pytest_ollama_perf.core import ConfigError, ModelNotFoundError, ServerError
from pytest_ollama_perf.core.run import Fingerprint, ModelState, ServerInfo
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.workload import ANY_MODEL
from pytest_ollama_perf.simulator.settings import SimulatorSettings
from pytest_ollama_perf.simulator.url import is_sim_url, parse_sim_url

_WEIGHT = re.compile(r"weight=([0-9]*\.?[0-9]+)")

STABLE_CHECKS = 3
"""How often an address must give the same answer: there may be several servers behind it."""

_MAX_ROUNDS = 8


@dataclass(frozen=True)
class TargetServer:
    """One server under test. ``name`` is how the user named it, without credentials; ``usual`` the model meant where
    none is named, as far as that is known without asking; ``weight`` its part of a load."""

    name: str
    address: Address
    control: ControlClient
    default_model: str = ANY_MODEL
    weight: float = 1.0


def parse_target(url: str) -> Address | SimulatorSettings:
    """Read where a server is; ``ConfigError`` says what is wrong with the URL."""
    bare, _, _ = url.partition("#")
    parse_weight(url)
    return parse_sim_url(bare) if is_sim_url(bare) else parse_address(bare)


def parse_weight(url: str) -> float:
    """Read the ``#weight=2`` at the end of a URL, 1 where there is none."""
    _, given, text = url.partition("#")
    if not given:
        return 1.0
    found = _WEIGHT.fullmatch(text)
    if found is None or not float(found[1]) > 0:
        raise ConfigError(
            f"'#{sanitize(text, 60)}' after a server's URL: expected a weight above 0, for example http://gpu-box:11434#weight=2"
        )
    return float(found[1])


def probe_servers(
    servers: Sequence[TargetServer], look: Callable[[TargetServer], Fingerprint], *, leave_out: bool
) -> tuple[tuple[TargetServer, ...], dict[str, ServerInfo]]:
    """Return the servers to load and what is known of each, by URL.

    A server that does not answer is one of the load, and its requests will fail, unless ``leave_out`` says otherwise.

    Raises:
        ModelMissing: one of them lacks the model.
        ServerError: none of them answers; of a single server, whatever it is.
    """
    facts: dict[str, ServerInfo] = {}
    failures: list[ServerError] = []
    for server in servers:
        try:
            known = ServerInfo(fingerprint=look(server), weight=server.weight)
        except ModelNotFoundError:
            raise
        except ServerError as error:
            failures.append(error)
            known = ServerInfo(weight=server.weight, down=str(error))
        facts[server.address.url] = known
    if len(failures) == len(servers):
        raise failures[0]
    used = tuple(server for server in servers if not (leave_out and facts[server.address.url].down))
    return used, facts


def merge_fingerprints(facts: Mapping[str, ServerInfo], used: Sequence[TargetServer]) -> Fingerprint:
    """Return the fingerprint of all servers that answered: what they share, each different text, the least context."""
    known = [each.fingerprint for each in facts.values() if not each.down]
    if len(facts) < 2:
        return known[0]
    texts = ("server_version", "model_digest", "quantization", "family", "parameter_size")
    joined = {name: ", ".join(sorted({getattr(each, name) for each in known} - {""})) for name in texts}
    contexts = [each.context_length for each in known if each.context_length is not None]
    shares = [each.vram_share for each in known if each.vram_share is not None]
    return msgspec.structs.replace(
        known[0],
        **joined,
        context_length=min(contexts, default=None),
        vram_share=min(shares, default=None),
        servers=_format_weights(used),
    )


def _format_weights(servers: Sequence[TargetServer]) -> str:
    """Return how many servers there are, or where they differ their weights: ``2:1:1``; nothing for one."""
    weights = [server.weight for server in servers]
    if len(weights) == 1:
        return ""
    return str(len(weights)) if len(set(weights)) == 1 else ":".join(f"{weight:g}" for weight in weights)


def repeat_until_stable(act: Callable[[], object], done: Callable[[], bool]) -> None:
    """Act until ``done`` has held several times in a row, or for a few rounds.

    There may be several servers behind one address, which answer in turn. Every round acts once more than the round
    before, so that the rounds do not synchronise with the servers.
    """
    for number in range(1, _MAX_ROUNDS + 1):
        if all(done() for _ in range(STABLE_CHECKS)):
            return
        for _ in range(number):
            act()


def read_model_states(servers: Sequence[TargetServer], model: str) -> dict[str, ModelState]:
    """Return the model's state on each server; one that does not answer is left out, for nothing is known of it."""
    found = {}
    for server in servers:
        with contextlib.suppress(ServerError):
            found[server.address.url] = _read_model_state(server.control, model)
    return found


def _read_model_state(control: ControlClient, model: str) -> ModelState:
    """Where one of several servers behind an address has the model loaded, that is the state of the address."""
    for _ in range(STABLE_CHECKS):
        state = read_model_state(control, model)
        if state.loaded:
            break
    return state


def count_replicas(samples_from: Sequence[str], fingerprint: Fingerprint) -> Fingerprint:
    """Return the fingerprint with the number of servers found behind one address."""
    named = {name for name in samples_from if name}
    if len(named) < 2:
        return fingerprint
    return msgspec.structs.replace(fingerprint, servers=f"{len(named)} behind one address")


KEEP_FOREVER = -1.0
DEFAULT_KEEP_ALIVE_S = 300.0
"""How long Ollama keeps a model loaded that no request keeps for longer."""

_FOREVER_S = 10 * 365 * 86400.0
_TOLERANCE_S = 5.0
_RESTORE_TIMEOUT_S = 60.0
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)")


class ResidentModelState(msgspec.Struct, frozen=True):
    """One loaded model: its context length in tokens, and the Unix time in seconds when it expires."""

    context_length: int | None
    expires_at: float


def parse_expiry(text: str) -> float | None:
    """Return the Unix time of an RFC 3339 time in seconds; infinity if it is decades away, ``None`` if unreadable."""
    found = _RFC3339.fullmatch(text)
    if found is None:
        return None
    whole, fraction, zone = found.groups()
    try:
        moment = datetime.fromisoformat(whole + ("+00:00" if zone == "Z" else zone))
    except ValueError:
        return None
    seconds = (moment - datetime(1970, 1, 1, tzinfo=timezone.utc)).total_seconds() + float(fraction or 0)
    return float("inf") if seconds - time.time() > _FOREVER_S else seconds


def read_residents(control: ControlClient) -> dict[str, ResidentModelState]:
    """Return the loaded models by name; those whose expiry the server does not report are left out."""
    states = ((model.name, _to_state(model)) for model in control.list_running())
    return {name: state for name, state in states if state is not None}


def _to_state(model: RunningModel) -> ResidentModelState | None:
    expires_at = parse_expiry(model.expires_at)
    return None if expires_at is None else ResidentModelState(model.context_length, expires_at)


class ResidencyKeeper:
    """Remembers the loaded models of each server and restores them. Servers that do not answer are skipped."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._before: dict[str, tuple[ControlClient, dict[str, ResidentModelState]]] = {}

    def remember(self, controls: Sequence[ControlClient]) -> None:
        """Read what is loaded on each server that is not known yet. Call this before anything is loaded."""
        for control in controls:
            if control.address.url not in self._before:
                with contextlib.suppress(ServerError):
                    self._before[control.address.url] = (control, read_residents(control))

    def restore(self) -> None:
        """Load the models that were loaded before, with their context length and for the time that they had left.

        A model that was not loaded before is unloaded if it would stay for longer than the server's default. Any other
        expires by itself, as after any request.
        """
        for control, before in self._before.values():
            with contextlib.suppress(ServerError):
                self._restore_server(control, before)
        self._before.clear()

    def _restore_server(self, control: ControlClient, before: Mapping[str, ResidentModelState]) -> None:
        now = read_residents(control)
        for name, state in now.items():
            if name not in before and state.expires_at - self._clock() > DEFAULT_KEEP_ALIVE_S + _TOLERANCE_S:
                control.unload(name)
        for name, state in before.items():
            left = state.expires_at - self._clock()
            if left > 0 and not _is_as_before(now.get(name), state):
                keep_alive = KEEP_FOREVER if left == float("inf") else round(left, 3)
                control.load(name, keep_alive=keep_alive, num_ctx=state.context_length, timeout_s=_RESTORE_TIMEOUT_S)


def _is_as_before(now: ResidentModelState | None, before: ResidentModelState) -> bool:
    if now is None or now.context_length != before.context_length:
        return False
    return now.expires_at == before.expires_at or abs(now.expires_at - before.expires_at) <= _TOLERANCE_S
