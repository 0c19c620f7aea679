"""Which models a server had loaded before the first load, so that they can be restored after the last one."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone

import msgspec

from pytest_ollama_perf.client.control import ControlClient
from pytest_ollama_perf.client.models import RunningModel
from pytest_ollama_perf.core.errors import ServerError

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
