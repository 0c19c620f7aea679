"""The simulated server without sockets: takes parsed requests, returns text, counters and the ground truth."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup

from pytest_ollama_perf.core.sample import Counters
from pytest_ollama_perf.simulator.faults import CONTROL_FAULTS, TRANSPORT_FAULTS, FaultKind, FaultScript
from pytest_ollama_perf.simulator.http import DelayingSink, wrap_sink
from pytest_ollama_perf.simulator.job import (
    BUSY_MESSAGE,
    RUNNER_DIED_MESSAGE,
    DroppedConnectionError,
    GroundTruth,
    InferenceJob,
    InferenceRequest,
    ResponseError,
    ResponseSink,
    SimulatorClock,
    Tokenizer,
    TransportFaultError,
    TruncatedResponseError,
    truncate_prompt,
)
from pytest_ollama_perf.simulator.scheduler import RELOAD_OPTIONS, ResidentModel, Scheduler
from pytest_ollama_perf.simulator.settings import SimulatedModel, SimulatorSettings

_MAX_TRUTHS = 100_000
"""The number of requests in the ground truth; older ones are dropped."""


class InferenceResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a request ended: the reason, the counters of the final object, and all tokens of prompt and output."""

    reason: str
    counters: Counters
    tokens: tuple[int, ...]


class Engine:
    """A server's models, slots and queues on ``clock``. Use ``run_engine(...)`` to run one."""

    def __init__(self, settings: SimulatorSettings, clock: SimulatorClock, tasks: TaskGroup) -> None:
        self.settings = settings
        self.clock = clock
        self.tokenizer = Tokenizer()
        self._scheduler = Scheduler(settings, clock, tasks)
        self.reset()

    def reset(self) -> None:
        """Clear the ground truth and restart the script of faults; loaded models stay loaded."""
        self.ground_truths: deque[GroundTruth] = deque(maxlen=_MAX_TRUTHS)
        requests = [fault for fault in self.settings.faults if fault.kind not in CONTROL_FAULTS]
        self._script = FaultScript(requests, self.settings.seed)
        self._count = 0

    async def run(self) -> None:
        """Load models until cancelled."""
        await self._scheduler.run()

    def list_loaded(self) -> list[ResidentModel]:
        """Return the models in memory, the newest first."""
        return self._scheduler.list_loaded()

    async def load(self, model: SimulatedModel, options: Mapping[str, Any], keep_alive_s: float | None) -> None:
        """Load a model without a prompt."""
        async with self._scheduler.use(model, self._select_reload_options(model, options), keep_alive_s):
            pass

    def unload(self, model: SimulatedModel) -> None:
        """Unload a model as soon as no request uses it."""
        self._scheduler.unload(model.full_name)

    async def answer(
        self, ask: InferenceRequest, sink: ResponseSink, arrived_ns: int | None = None
    ) -> tuple[InferenceResult, GroundTruth]:
        """Answer one request, writing its text to ``sink``; return the result and the ground truth.

        Raises ``ResponseError`` for what the server refuses or fails, and ``DroppedConnectionError``,
        ``TruncatedResponseError`` or ``TransportFaultError`` for a scripted fault.
        """
        job = self._create_job(ask, sink, arrived_ns)
        try:
            answer = await self._answer(job)
            await self._wait_for_held_response(job)
        except (ResponseError, DroppedConnectionError, TruncatedResponseError, TransportFaultError) as error:
            job.truth.outcome = error.outcome
            raise
        except BaseException:
            job.truth.outcome = "cancelled"
            raise
        finally:
            job.truth.done_ns = job.truth.done_ns or self.clock.now_ns()
            if isinstance(job.sink, DelayingSink):
                job.sink.flush(self.clock.now_ns())
        job.truth.outcome = "ok"
        return answer, job.truth

    def _create_job(self, ask: InferenceRequest, sink: ResponseSink, arrived_ns: int | None) -> InferenceJob:
        self._count += 1
        truth = GroundTruth(
            number=self._count,
            request_id=ask.request_id,
            model=ask.model,
            endpoint=ask.endpoint,
            arrived_ns=self.clock.now_ns() if arrived_ns is None else arrived_ns,
        )
        self.ground_truths.append(truth)
        faults = self._script.draw_faults(self._count)
        return InferenceJob(ask, truth, wrap_sink(sink, faults, truth.arrived_ns), faults)

    async def _answer(self, job: InferenceJob) -> InferenceResult:
        if FaultKind.BUSY in job.faults:
            raise ResponseError(503, BUSY_MESSAGE)
        if FaultKind.HTTP_500 in job.faults:
            raise ResponseError(500, RUNNER_DIED_MESSAGE, engine=True)
        await self._apply_transport_fault(job)
        ask, truth = job.request, job.truth
        model = self.get_model(ask.model)
        chosen = self._select_reload_options(model, ask.options)
        async with self._scheduler.use(model, chosen, ask.keep_alive_s) as held:
            await self._pause(self.settings.warm_load_s)
            truth.loaded_ns = self.clock.now_ns()
            self._prepare(job, held)
            await self._pause(self.settings.overhead_s)
            await held.runner.answer(job)
        if FaultKind.EVICT in job.faults:
            self.unload(model)
        return InferenceResult(
            reason=job.reason, counters=self._compute_counters(job), tokens=(*job.prompt, *job.output)
        )

    def get_model(self, name: str) -> SimulatedModel:
        """Return the model called ``name``; ``ResponseError`` 404 if there is none."""
        model = self.settings.find_model(name)
        if model is None:
            raise ResponseError(404, f"model '{name}' not found")
        return model

    async def _apply_transport_fault(self, job: InferenceJob) -> None:
        for kind in TRANSPORT_FAULTS & job.faults.keys():
            if kind is FaultKind.RESET:
                await self._pause(job.faults[kind].seconds)
            raise TransportFaultError(job.faults[kind])

    async def _wait_for_held_response(self, job: InferenceJob) -> None:
        if isinstance(job.sink, DelayingSink) and job.sink.held_until_ns:
            await self.clock.sleep_until(job.sink.held_until_ns)

    async def _pause(self, seconds: float) -> None:
        if seconds:
            await self.clock.sleep_until(self.clock.now_ns() + round(seconds * 1e9))

    def _select_reload_options(self, model: SimulatedModel, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the options that decide about a reload; ``num_gpu`` below 0 leaves the choice to the server."""
        kept = {name: options[name] for name in RELOAD_OPTIONS if options.get(name) is not None}
        if kept.get("num_gpu", 0) < 0:
            del kept["num_gpu"]
        return MappingProxyType({"num_ctx": model.num_ctx or self.settings.num_ctx, **kept})

    def _prepare(self, job: InferenceJob, held: ResidentModel) -> None:
        ask, num_ctx = job.request, held.runner.num_ctx
        if len(job.prompt) > num_ctx and not ask.truncate:
            raise ResponseError(400, _format_context_error(len(job.prompt), num_ctx), engine=True)
        if ask.images and not held.model.has_capability("vision"):
            raise ResponseError(400, _NO_VISION_ERROR, engine=True)
        job.prompt = truncate_prompt(job.prompt, num_ctx)
        job.limit = ask.limit if ask.limit is not None else 10 * num_ctx
        ends = [self.settings.eos_after, job.faults[FaultKind.EOS].tokens if FaultKind.EOS in job.faults else 0]
        job.ends_at = min((end for end in ends if end), default=None)
        job.think_until = self.settings.thinking_tokens if ask.think and held.model.has_capability("thinking") else 0

    def _compute_counters(self, job: InferenceJob) -> Counters:
        truth, profile = job.truth, self.settings.profile
        assert truth.loaded_ns is not None
        assert truth.slot_ns is not None
        assert truth.first_token_ns is not None
        assert truth.done_ns is not None
        evaluated = truth.done_ns - truth.first_token_ns
        if profile.eval_excludes_sampling:
            evaluated = round(evaluated * (1 - self.settings.sampling_share))
        cached = truth.cached_tokens
        if job.request.endpoint == "embed":
            return Counters(
                total_duration_ns=truth.done_ns - truth.arrived_ns,
                load_duration_ns=_omit_zero(truth.loaded_ns - truth.arrived_ns),
                prompt_eval_count=_omit_zero(truth.prompt_tokens),
            )
        return Counters(
            total_duration_ns=truth.done_ns - truth.arrived_ns,
            load_duration_ns=_omit_zero(truth.loaded_ns - truth.arrived_ns),
            prompt_eval_count=_omit_zero(truth.prompt_tokens - (0 if profile.counts_cached_tokens else cached)),
            prompt_eval_cached_count=_omit_zero(cached) if profile.sends_cached_count else None,
            prompt_eval_duration_ns=_omit_zero(truth.first_token_ns - truth.slot_ns),
            eval_count=_omit_zero(round(len(job.output) * job.counter_factor)),
            eval_duration_ns=_omit_zero(
                round((evaluated if len(job.output) > 1 else profile.single_token_eval_ns) / job.counter_factor)
            ),
        )


def _omit_zero(value: int) -> int | None:
    """Return ``None`` for 0, because Ollama omits zeros."""
    return value or None


_NO_VISION_ERROR = (
    '{"error":{"code":400,"message":"Multimodal data provided, but model does not support multimodal requests.",'
    '"type":"invalid_request_error"}}'
)


def _format_context_error(tokens: int, num_ctx: int) -> str:
    return (
        f'{{"error":{{"code":400,"message":"request ({tokens} tokens) exceeds the available context size '
        f'({num_ctx} tokens), try increasing it","type":"exceed_context_size_error","n_prompt_tokens":{tokens},'
        f'"n_ctx":{num_ctx}}}}}'
    )


@asynccontextmanager
async def run_engine(settings: SimulatorSettings, clock: SimulatorClock) -> AsyncIterator[Engine]:
    """Run an engine while the block runs; requests in flight at its end are cancelled."""
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        running = Engine(settings, clock, tasks)
        tasks.start_soon(running.run)
        try:
            yield running
        except Exception as error:  # raised below, because a task group would wrap it
            failure = error
        finally:
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
