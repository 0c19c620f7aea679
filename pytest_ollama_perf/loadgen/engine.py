"""Runs a workload: a fixed number of clients (closed loop) or a fixed arrival rate (open loop)."""

from __future__ import annotations

import hashlib
import heapq
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import anyio
import anyio.lowlevel
import msgspec

from pytest_ollama_perf.core.sample import Outcome, Phase, Sample
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.workload import Endpoint, StageSchedule, Workload
from pytest_ollama_perf.loadgen import Backend, Request
from pytest_ollama_perf.loadgen.failures import (
    FailureBackoff,
    FailureGuard,
    compute_retry_pause_s,
    is_retry_due,
    merge_attempts,
)
from pytest_ollama_perf.loadgen.plan import LoadPlan
from pytest_ollama_perf.loadgen.recorder import SampleRecorder


@dataclass(frozen=True)
class ChatTurn:
    """One question of a chat. Without ``body`` the plan has it, and the text of the answer is not kept."""

    number: int = 1
    body: bytes | None = None
    answer_parts: list[str] | None = None


SINGLE_TURN = ChatTurn()
"""A request that belongs to no chat."""


class Conversation:
    """The chats of one client, one after another. A failure ends a chat, and the next question starts a new one."""

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        self._turns = plan.workload.turns
        self._messages: list[dict[str, Any]] = []
        self._asked = 0

    def start_turn(self, index: int) -> ChatTurn:
        """Return the next question, with the chat so far."""
        if self._turns == 1:
            return SINGLE_TURN
        if not self._messages or self._asked == self._turns:
            self._messages, self._asked = self._plan.start_chat(index), 1
        else:
            self._messages.append(self._plan.build_question(index))
            self._asked += 1
        return ChatTurn(self._asked, self._plan.encode_chat(self._messages), [])

    def record_answer(self, turn: ChatTurn, answered: bool) -> None:
        """Add the answer to the chat."""
        if turn.answer_parts is None:
            return
        if answered and turn.answer_parts:
            self._messages.append({"role": "assistant", "content": "".join(turn.answer_parts)})
        else:
            self._messages = []


ChooseTarget = Callable[[], int]
"""Returns the index of the server that gets the next request."""

_TIMER_SLACK_NS = 1_000  # shorter than any timer can wait


async def execute_load(
    workload: Workload,
    backend: Backend,
    recorder: SampleRecorder,
    *,
    targets: int = 1,
    choose: ChooseTarget | None = None,
    on_measured: Callable[[], None] | None = None,
) -> str:
    """Send every request of ``workload`` to ``backend`` and leave one sample of each in ``recorder``.

    ``choose`` picks the server of each request (round robin by default). ``on_measured`` is called right before the
    first measured request. Cancelling ends the load: requests in flight leave a sample with the outcome ``CANCELLED``.
    A backend that raises does not end the load: the request leaves a failed sample.

    Returns:
        Why the load stopped early; empty when it ran to its end.

    Raises:
        ConfigError: the workload is impossible.
    """
    plan = LoadPlan(workload)
    load = _LoadExecution(plan, backend, recorder, choose or cycle(range(targets)).__next__, on_measured)
    await load.connect(targets)
    recorder.start(backend.now_ns())
    with load.scope:
        await (load.run_closed_loop() if workload.rate is None else load.run_open_loop())
    return load.guard.reason


class _LoadExecution:
    """One running load. ``scope`` ends it when the drain is over; only then a cancelled request is late."""

    def __init__(
        self,
        plan: LoadPlan,
        backend: Backend,
        recorder: SampleRecorder,
        choose: ChooseTarget,
        on_measured: Callable[[], None] | None,
    ) -> None:
        self.scope = anyio.CancelScope()
        self.guard = FailureGuard(plan.workload.abort_error_rate)
        self._plan = plan
        self._workload = plan.workload
        self._backend = backend
        self._recorder = recorder
        self._choose = choose
        self._on_measured = on_measured
        self._run = _make_run_id(plan.workload.salt)
        self._taken_count = 0
        self._measuring = False
        self._deadline_ns = math.inf
        self._schedule = plan.schedule

    async def connect(self, targets: int) -> None:
        """Open each client's connection to each server; a failure shows again when a request is sent."""
        try:
            await self._backend.connect(self._plan.connections * targets)
        except Exception:
            return

    async def run_closed_loop(self) -> None:
        if self._schedule is not None:
            await self._run_staged_loop(self._schedule)
            return
        # the first requests are assigned here, because a loop may start its tasks in any order
        self._taken_count = self._plan.clients
        async with anyio.create_task_group() as group:
            for client in range(self._plan.clients):
                group.start_soon(self._run_client, client)

    async def _run_client(self, client: int) -> None:
        pauses, talk, backoff = (
            self._plan.iter_pauses_s(client),
            Conversation(self._plan),
            FailureBackoff(self._plan.clients),
        )
        index: int | None = client
        while index is not None:
            self._start_measuring(index, self._backend.now_ns())
            sample = await self._send_turn(index, client, talk)
            index = await self._take_next_index(max(next(pauses), backoff.compute_pause_s(sample)))

    async def _send_turn(self, index: int, client: int, talk: Conversation) -> Sample:
        turn = talk.start_turn(index)
        sample = await self._send(self._build_request(index, client, turn=turn))
        talk.record_answer(turn, sample.ok)
        return sample

    async def _run_staged_loop(self, course: StageSchedule) -> None:
        """Start and stop clients as the stages define; a client finishes the request that it has in flight."""
        await self._run_warmup()
        base_ns = self._backend.now_ns()
        self._start_measuring(self._taken_count, base_ns)
        async with anyio.create_task_group() as group:
            for client in range(self._plan.clients):
                group.start_soon(self._run_staged_client, client, course, base_ns)

    async def _run_staged_client(self, client: int, course: StageSchedule, base_ns: int) -> None:
        pauses, talk, backoff = (
            self._plan.iter_pauses_s(client),
            Conversation(self._plan),
            FailureBackoff(self._plan.clients),
        )
        pause_s = 0.0
        while (
            due_s := course.compute_join_time(client, (self._backend.now_ns() - base_ns) / 1e9 + pause_s)
        ) < math.inf:
            await self._sleep_until(base_ns + round(due_s * 1e9))
            if self.guard.reason:
                return
            self._taken_count += 1
            sample = await self._send_turn(self._taken_count - 1, client, talk)
            pause_s = max(next(pauses), backoff.compute_pause_s(sample))

    async def _run_warmup(self) -> None:
        """Send the warm-up requests with as many clients as the load has at most; the stages start after them."""
        warmup, clients = self._workload.warmup, self._plan.clients
        self._taken_count = warmup
        async with anyio.create_task_group() as group:
            for client in range(min(warmup, clients)):
                group.start_soon(self._run_warmup_client, client, range(client, warmup, clients))

    async def _run_warmup_client(self, client: int, indexes: range) -> None:
        talk = Conversation(self._plan)
        for index in indexes:
            await self._send_turn(index, client, talk)

    async def _take_next_index(self, pause_s: float) -> int | None:
        """Wait, then return the index to send; ``None`` if the load is over, or will be before the wait ends."""
        if self._is_over(self._backend.now_ns() + pause_s * 1e9):
            return None
        # also without a pause, other tasks must run and a cancellation must be noticed
        await (anyio.sleep(pause_s) if pause_s > 0 else anyio.lowlevel.checkpoint())
        if self._is_over(self._backend.now_ns()):
            return None
        self._taken_count += 1
        return self._taken_count - 1

    def _is_over(self, at_ns: float) -> bool:
        if self.guard.reason:
            return True
        return at_ns >= self._deadline_ns or (self._plan.total is not None and self._taken_count >= self._plan.total)

    async def run_open_loop(self) -> None:
        lanes = _ClientNumbers()
        if self._schedule is not None:
            await self._run_warmup()
        base_ns = self._backend.now_ns()
        async with anyio.create_task_group() as group:
            for index, offset_ns in enumerate(self._plan.iter_arrivals_ns(), self._taken_count):
                # by schedule, not by the clock: a request that is due is sent even if this client is late
                if (due_ns := base_ns + offset_ns) >= self._deadline_ns:
                    return
                await self._sleep_until(due_ns)
                if self.guard.reason:
                    return
                self._start_measuring(index, due_ns)
                group.start_soon(self._send_arrival, self._build_request(index, lanes.acquire(), due_ns), lanes)

    async def _send_arrival(self, request: Request, lanes: _ClientNumbers) -> None:
        try:
            await self._send(request)
        finally:
            lanes.release(request.client)

    async def _sleep_until(self, due_ns: int) -> None:
        await anyio.lowlevel.checkpoint()
        # repeated, because the timers of some loops are up to a millisecond early
        while (left_ns := due_ns - self._backend.now_ns()) > _TIMER_SLACK_NS:  # noqa: ASYNC110
            await anyio.sleep(left_ns / 1e9)

    def _start_measuring(self, index: int, start_ns: int) -> None:
        """Start the measured time, and the time limit, with the first measured request."""
        if self._measuring or self._plan.get_phase(index) is Phase.WARMUP:
            return
        self._measuring = True
        if self._workload.duration_s is not None:
            self._deadline_ns = start_ns + self._workload.duration_s * 1e9
            left_s = (self._deadline_ns - self._backend.now_ns()) / 1e9
            self.scope.deadline = anyio.current_time() + left_s + self._workload.drain_s
        if self._on_measured is not None:
            self._on_measured()

    def _build_request(
        self, index: int, client: int, due_ns: int | None = None, turn: ChatTurn = SINGLE_TURN
    ) -> Request:
        endpoint = self._workload.endpoint
        return Request(
            index=index,
            client=client,
            target=self._choose(),
            request_id=f"{self._run}-{index:06d}",
            stage=self._plan.get_phase(index),
            endpoint=endpoint,
            stream=self._workload.stream and endpoint != Endpoint.EMBED,
            body=self._plan.get_body(index) if turn.body is None else turn.body,
            timeouts=self._workload.timeouts,
            scheduled_ns=due_ns,
            turn=turn.number,
            reuse_connection=self._workload.reuse_connections,
            answer_parts=turn.answer_parts,
        )

    async def _send(self, request: Request) -> Sample:
        """Send one request, with the retries that the workload allows, and record exactly one sample of it."""
        tries: list[Sample] = []
        self._recorder.count_sent()
        try:
            await self._attempt(request, tries)
            while is_retry_due(self._workload, tries):
                await anyio.sleep(compute_retry_pause_s(self._workload.random_seed, request.index, len(tries)))
                await self._attempt(request, tries)
        finally:
            whole = self._mark_late(merge_attempts(tries, request.turn))
            self._recorder.add(whole)
            self._guard_load(whole)
        return whole

    def _guard_load(self, sample: Sample) -> None:
        """Stop the load if too many requests have failed; those in flight get the time of the drain."""
        stopped = bool(self.guard.reason)
        self.guard.record(sample)
        if self.guard.reason and not stopped:
            self.scope.deadline = min(self.scope.deadline, anyio.current_time() + self._workload.drain_s)

    async def _attempt(self, request: Request, tries: list[Sample]) -> None:
        receipt = _SampleReceiver(request, self._backend.now_ns())
        try:
            await self._backend.send(request, receipt.record)
        except Exception as error:
            receipt.fault = sanitize(f"the client failed: {type(error).__name__}: {error}")
        except BaseException:
            receipt.fault, receipt.outcome = "stopped, and the client recorded nothing", Outcome.CANCELLED
            raise
        finally:
            tries.append(receipt.build_sample(self._backend.now_ns()))

    def _mark_late(self, sample: Sample) -> Sample:
        if sample.outcome is not Outcome.CANCELLED or not self.scope.cancel_called:
            return sample
        error = f"unfinished {self._workload.drain_s:g} s after the end of the load"
        return msgspec.structs.replace(sample, outcome=Outcome.LATE, error=error)


class _SampleReceiver:
    """The sample of a request: the first that the backend records, otherwise one that explains why there is none."""

    def __init__(self, request: Request, sent_ns: int) -> None:
        self.outcome = Outcome.CLIENT_ERROR
        self.fault = "the client recorded nothing"
        self._request = request
        self._sent_ns = sent_ns
        self._kept: Sample | None = None

    def record(self, sample: Sample) -> None:
        self._kept = self._kept or sample

    def build_sample(self, now_ns: int) -> Sample:
        request = self._request
        return self._kept or Sample(
            index=request.index,
            client=request.client,
            url="",
            request_id=request.request_id,
            stage=request.stage,
            outcome=self.outcome,
            error=self.fault,
            sent_ns=self._sent_ns,
            done_ns=now_ns,
            scheduled_ns=request.scheduled_ns,
        )


class _ClientNumbers:
    """Client numbers of an open loop: always the lowest free one."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._opened = 0

    def acquire(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        self._opened += 1
        return self._opened - 1

    def release(self, lane: int) -> None:
        heapq.heappush(self._free, lane)


def _make_run_id(salt: str) -> str:
    """Return the part of the request ids that identifies this load; equal salts give equal ids."""
    token = hashlib.blake2b(salt.encode(), digest_size=4).hexdigest() if salt else secrets.token_hex(4)
    return f"ollama-perf-{token}"
