"""Fires a workload: so many at once (closed loop) or so many a second (open loop), until a count or a time."""

from __future__ import annotations

import hashlib
import heapq
import math
import secrets
from collections.abc import Callable

import anyio
import anyio.lowlevel
import msgspec

from pytest_ollama_perf.load import retry
from pytest_ollama_perf.load.backend import Backend, Request
from pytest_ollama_perf.load.course import Course
from pytest_ollama_perf.load.plan import Plan
from pytest_ollama_perf.load.recorder import Recorder
from pytest_ollama_perf.load.talk import ALONE, Talk, Turn
from pytest_ollama_perf.sample import Outcome, Sample, Stage
from pytest_ollama_perf.workload import Endpoint, Workload

Choose = Callable[[int], int]
"""Takes a request's index and returns the index of the server to send it to."""

_EARLY_NS = 1_000  # a rest too short for any timer


async def fire(
    workload: Workload,
    backend: Backend,
    recorder: Recorder,
    *,
    targets: int = 1,
    choose: Choose | None = None,
    on_measured: Callable[[], None] | None = None,
) -> None:
    """Send every request of ``workload`` to ``backend`` and leave one sample of each in ``recorder``.

    ``choose`` picks the server of each request (round robin by default); ``on_measured`` is called right before the
    first request that counts. Cancelling ends the load: requests in flight leave a sample ``CANCELLED``. Raises
    ``ConfigError`` for a workload that cannot be fired, and nothing else: a backend that fails leaves samples too.
    """
    plan = Plan(workload)
    load = _Load(plan, backend, recorder, choose or (lambda index: index % targets), on_measured)
    await load.connect(targets)
    recorder.begin(backend.now_ns())
    with load.scope:
        await (load.closed_loop() if workload.rate is None else load.open_loop())


class _Load:
    """One load under way. ``scope`` ends it where a drain is over; only then was a cancelled request late."""

    def __init__(
        self, plan: Plan, backend: Backend, recorder: Recorder, choose: Choose, on_measured: Callable[[], None] | None
    ) -> None:
        self.scope = anyio.CancelScope()
        self._plan = plan
        self._workload = plan.workload
        self._backend = backend
        self._recorder = recorder
        self._choose = choose
        self._on_measured = on_measured
        self._run = _run_name(plan.workload.salt)
        self._taken = 0
        self._measuring = False
        self._deadline_ns = math.inf
        self._course = plan.course

    async def connect(self, targets: int) -> None:
        """Open each client's connection to each server; what fails here shows up again when a request is sent."""
        try:
            await self._backend.connect(self._plan.connections * targets)
        except Exception:
            return

    async def closed_loop(self) -> None:
        if self._course is not None:
            await self._moving_loop(self._course)
            return
        # the first requests are dealt out here, since a loop may start its tasks in any order
        self._taken = self._plan.clients
        async with anyio.create_task_group() as group:
            for client in range(self._plan.clients):
                group.start_soon(self._client, client)

    async def _client(self, client: int) -> None:
        pauses, talk = self._plan.pauses_s(client), Talk(self._plan)
        index: int | None = client
        while index is not None:
            self._begin(index, self._backend.now_ns())
            await self._ask(index, client, talk)
            index = await self._next(next(pauses))

    async def _ask(self, index: int, client: int, talk: Talk) -> None:
        turn = talk.ask(index)
        sample = await self._send(self._request(index, client, turn=turn))
        talk.hear(turn, sample.ok)

    async def _moving_loop(self, course: Course) -> None:
        """Let clients come and go as the stages say; a request under way when its client's time is over is finished."""
        await self._warm_up()
        base_ns = self._backend.now_ns()
        self._begin(self._taken, base_ns)
        async with anyio.create_task_group() as group:
            for client in range(self._plan.clients):
                group.start_soon(self._guest, client, course, base_ns)

    async def _guest(self, client: int, course: Course, base_ns: int) -> None:
        pauses, talk = self._plan.pauses_s(client), Talk(self._plan)
        pause_s = 0.0
        while (due_s := course.joins(client, (self._backend.now_ns() - base_ns) / 1e9 + pause_s)) < math.inf:
            await self._until(base_ns + round(due_s * 1e9))
            self._taken += 1
            await self._ask(self._taken - 1, client, talk)
            pause_s = next(pauses)

    async def _warm_up(self) -> None:
        """Send the requests that do not count, by as many clients as will come; a moving load starts after them."""
        warmup, clients = self._workload.warmup, self._plan.clients
        self._taken = warmup
        async with anyio.create_task_group() as group:
            for client in range(min(warmup, clients)):
                group.start_soon(self._warm, client, range(client, warmup, clients))

    async def _warm(self, client: int, indexes: range) -> None:
        talk = Talk(self._plan)
        for index in indexes:
            await self._ask(index, client, talk)

    async def _next(self, pause_s: float) -> int | None:
        """Think, then return the index to send, or ``None`` when the load is over, or will be before the thought is."""
        if self._over(self._backend.now_ns() + pause_s * 1e9):
            return None
        # even without a pause the other tasks get their turn, and a cancellation is seen
        await (anyio.sleep(pause_s) if pause_s > 0 else anyio.lowlevel.checkpoint())
        if self._over(self._backend.now_ns()):
            return None
        self._taken += 1
        return self._taken - 1

    def _over(self, at_ns: float) -> bool:
        return at_ns >= self._deadline_ns or (self._plan.total is not None and self._taken >= self._plan.total)

    async def open_loop(self) -> None:
        lanes = _Lanes()
        if self._course is not None:
            await self._warm_up()
        base_ns = self._backend.now_ns()
        async with anyio.create_task_group() as group:
            for index, offset_ns in enumerate(self._plan.arrivals_ns(), self._taken):
                # by schedule, not by the clock: a request that this client is late with is still sent
                if (due_ns := base_ns + offset_ns) >= self._deadline_ns:
                    return
                await self._until(due_ns)
                self._begin(index, due_ns)
                group.start_soon(self._arrival, self._request(index, lanes.take(), due_ns), lanes)

    async def _arrival(self, request: Request, lanes: _Lanes) -> None:
        try:
            await self._send(request)
        finally:
            lanes.give_back(request.client)

    async def _until(self, due_ns: int) -> None:
        await anyio.lowlevel.checkpoint()
        # again and again, since some loops' timers are up to a millisecond early
        while (left_ns := due_ns - self._backend.now_ns()) > _EARLY_NS:  # noqa: ASYNC110
            await anyio.sleep(left_ns / 1e9)

    def _begin(self, index: int, start_ns: int) -> None:
        """Start the measured time with the first request that counts, and with it the time to stop."""
        if self._measuring or self._plan.stage(index) is Stage.WARMUP:
            return
        self._measuring = True
        if self._workload.duration_s is not None:
            self._deadline_ns = start_ns + self._workload.duration_s * 1e9
            left_s = (self._deadline_ns - self._backend.now_ns()) / 1e9
            self.scope.deadline = anyio.current_time() + left_s + self._workload.drain_s
        if self._on_measured is not None:
            self._on_measured()

    def _request(self, index: int, client: int, due_ns: int | None = None, turn: Turn = ALONE) -> Request:
        endpoint = self._workload.endpoint
        return Request(
            index=index,
            client=client,
            target=self._choose(index),
            request_id=f"{self._run}-{index:06d}",
            stage=self._plan.stage(index),
            endpoint=endpoint,
            stream=self._workload.stream and endpoint != Endpoint.EMBED,
            body=self._plan.body(index) if turn.body is None else turn.body,
            timeouts=self._workload.timeouts,
            scheduled_ns=due_ns,
            turn=turn.number,
            reuse_connection=self._workload.reuse_connections,
            heard=turn.heard,
        )

    async def _send(self, request: Request) -> Sample:
        """Send one request, again where that is asked for, and leave exactly one sample, whatever the backend does."""
        tries: list[Sample] = []
        self._recorder.sent()
        try:
            await self._try(request, tries)
            while retry.wanted(self._workload, tries):
                await anyio.sleep(retry.pause_s(self._workload.seed, request.index, len(tries)))
                await self._try(request, tries)
        finally:
            whole = self._timely(retry.joined(tries, request.turn))
            self._recorder.add(whole)
        return whole

    async def _try(self, request: Request, tries: list[Sample]) -> None:
        receipt = _Receipt(request, self._backend.now_ns())
        try:
            await self._backend.send(request, receipt.keep)
        except Exception as error:
            receipt.fault = f"the client failed: {type(error).__name__}: {error}"
        except BaseException:
            receipt.fault, receipt.outcome = "stopped, and the client recorded nothing", Outcome.CANCELLED
            raise
        finally:
            tries.append(receipt.sample(self._backend.now_ns()))

    def _timely(self, sample: Sample) -> Sample:
        if sample.outcome is not Outcome.CANCELLED or not self.scope.cancel_called:
            return sample
        error = f"unfinished {self._workload.drain_s:g} s after the end of the load"
        return msgspec.structs.replace(sample, outcome=Outcome.LATE, error=error)


class _Receipt:
    """The one sample of a request: the first that the backend records, else one that says why there is none."""

    def __init__(self, request: Request, sent_ns: int) -> None:
        self.outcome = Outcome.CUT_OFF
        self.fault = "the client recorded nothing"
        self._request = request
        self._sent_ns = sent_ns
        self._kept: Sample | None = None

    def keep(self, sample: Sample) -> None:
        self._kept = self._kept or sample

    def sample(self, now_ns: int) -> Sample:
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


class _Lanes:
    """Client numbers of an open loop: the lowest free one, so that its connection is taken up again."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._opened = 0

    def take(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        self._opened += 1
        return self._opened - 1

    def give_back(self, lane: int) -> None:
        heapq.heappush(self._free, lane)


def _run_name(salt: str) -> str:
    """Return the part of the request ids that tells this load from all others; equal salts give equal ids."""
    token = hashlib.blake2b(salt.encode(), digest_size=4).hexdigest() if salt else secrets.token_hex(4)
    return f"ollama-perf-{token}"
