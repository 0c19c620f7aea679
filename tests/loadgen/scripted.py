"""A backend that answers after scripted times on the event loop's clock, and helpers to run loads in virtual time."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import trio
import trio.testing

from pytest_ollama_perf.core.sample import Counters, Outcome, Sample
from pytest_ollama_perf.core.workload import Arrival, Workload
from pytest_ollama_perf.loadgen import Request
from pytest_ollama_perf.loadgen.engine import execute_load
from pytest_ollama_perf.loadgen.recorder import SampleRecorder

SECOND = 1_000_000_000


def closed(**words) -> Workload:
    return Workload(**{"model": "m", "concurrency": 1, "requests": 4, "warmup": 0, **words})


def opened(**words) -> Workload:
    return Workload(
        **{
            "model": "m",
            "concurrency": None,
            "rate": 10.0,
            "requests": 4,
            "warmup": 0,
            "arrival": Arrival.CONSTANT,
            **words,
        }
    )


def timed(**words) -> dict:
    return {"requests": None, **words}


class Scripted:
    """Takes ``service_s`` for each request; ``epoch_ns`` sets its clock apart from the loop's."""

    def __init__(self, service_s: float | Callable[[Request], float] = 1.0, *, epoch_ns: int = 0) -> None:
        self.service_s = service_s
        self.epoch_ns = epoch_ns
        self.requests: list[Request] = []
        self.events: list[str] = []
        self.in_flight = 0
        self.peak = 0

    def now_ns(self) -> int:
        return self.epoch_ns + round(anyio.current_time() * SECOND)

    async def connect(self, connections: int) -> None:
        await anyio.sleep(0.5)
        self.events.append(f"connect {connections}")

    async def aclose(self) -> None:
        self.events.append("close")

    async def send(self, request: Request, record: Callable[[Sample], None]) -> None:
        self.requests.append(request)
        self.events.append("send")
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        sent_ns, outcome = self.now_ns(), Outcome.CANCELLED
        try:
            await self.serve(request)
            outcome = Outcome.OK
        finally:
            self.in_flight -= 1
            record(self.sample(request, sent_ns, outcome))

    async def serve(self, request: Request) -> None:
        service_s = self.service_s
        await anyio.sleep(service_s if isinstance(service_s, int | float) else service_s(request))

    def sample(self, request: Request, sent_ns: int, outcome: Outcome) -> Sample:
        return Sample(
            index=request.index,
            client=request.client,
            url=f"http://server-{request.target}",
            request_id=request.request_id,
            stage=request.stage,
            outcome=outcome,
            sent_ns=sent_ns,
            done_ns=self.now_ns(),
            scheduled_ns=request.scheduled_ns,
            counters=Counters(eval_count=10 if outcome is Outcome.OK else None),
        )


def in_virtual_time(main: Callable) -> float:
    """Run ``main`` with time jumping ahead whenever nothing can run; return the second at which it ended."""

    async def timed() -> float:
        await main()
        return trio.current_time()

    return trio.run(timed, clock=trio.testing.MockClock(autojump_threshold=0))


def fired(workload: Workload, backend: Scripted, **words) -> tuple[Sample, ...]:
    recorder = SampleRecorder()
    in_virtual_time(lambda: execute_load(workload, backend, recorder, **words))
    return recorder.get_samples()


def since_start(samples: tuple[Sample, ...], at: str = "sent_ns") -> list[float]:
    """Return one time of each sample in seconds after the connections were open, half a second after the start."""
    return [round(getattr(sample, at) / SECOND - 0.5, 6) for sample in samples]


def outcomes(samples: tuple[Sample, ...]) -> list[str]:
    return [sample.outcome.value for sample in samples]
