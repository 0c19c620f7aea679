"""Faults of the connection and of HTTP, written to a socket in place of a response."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from pytest_ollama_perf.simulator import replies
from pytest_ollama_perf.simulator.faults import Fault, FaultKind
from pytest_ollama_perf.simulator.http import JSON_TYPE, IncomingRequest, OutgoingResponse

HTML_PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in.</body></html>\n"
_TRICKLED_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Padding: "
_Respond = Callable[[Fault, IncomingRequest, OutgoingResponse], Awaitable[None]]


async def respond_with_fault(fault: Fault, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
    """Write what ``fault`` sends in place of a response. ``REFUSE`` is left to the server, which owns the socket."""
    await _RESPONDERS[fault.kind](fault, request, outgoing)


async def _send_html(fault: Fault, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
    outgoing.send_whole(200, "text/html; charset=utf-8", HTML_PAGE)


async def _reset(fault: Fault, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
    outgoing.reset()


async def _trickle(fault: Fault, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
    for byte in _TRICKLED_HEAD:
        outgoing.send_raw(bytes([byte]))
        await asyncio.sleep(fault.seconds)
    while True:  # a header that never ends; the client hanging up cancels this task
        outgoing.send_raw(b"x")
        await asyncio.sleep(fault.seconds)


async def _echo_key(fault: Fault, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
    given = request.headers.get("authorization", "no key")
    outgoing.send_whole(500, JSON_TYPE, replies.encode_error(f"upstream rejected Authorization: {given}"))


_RESPONDERS: Mapping[FaultKind, _Respond] = MappingProxyType(
    {
        FaultKind.HTML: _send_html,
        FaultKind.CONTROL_HTML: _send_html,
        FaultKind.RESET: _reset,
        FaultKind.TRICKLE: _trickle,
        FaultKind.CONTROL_TRICKLE: _trickle,
        FaultKind.ECHO_KEY: _echo_key,
    }
)
