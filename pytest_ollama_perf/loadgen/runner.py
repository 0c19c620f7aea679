"""Runs a load in a separate thread with its own event loop, so that any caller can wait for it and stop it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import importlib.util
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import anyio
import anyio.to_thread
import msgspec

from pytest_ollama_perf.core.run import ClientStats
from pytest_ollama_perf.core.sample import Phase, Sample
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.loadgen import Backend, StreamingBackend
from pytest_ollama_perf.loadgen.engine import ChooseTarget, execute_load
from pytest_ollama_perf.loadgen.plan import count_requests, validate_workload
from pytest_ollama_perf.loadgen.recorder import LoadProgress, SampleRecorder

_LAG_INTERVAL_S = 0.02
_MIN_LAG_READINGS = 20
"""With fewer readings, a single one would decide the percentile."""


class ClientMonitor:
    """Measures event-loop lag and CPU share from ``begin`` to ``end``, both called in the loop's thread.

    Lag is how much later than asked a sleeping task wakes; a loop that polls in milliseconds shows up to one of them
    even when idle. CPU time is that of the loop's thread alone, so that what the caller does meanwhile does not count;
    time in which other threads hold the interpreter shows as lag.
    """

    def __init__(
        self, *, cpu_ns: Callable[[], int] = time.thread_time_ns, wall_ns: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self._cpu_ns = cpu_ns
        self._wall_ns = wall_ns
        self._lags: list[float] = []
        self._began: tuple[int, int] | None = None
        self._cpu_share = 0.0

    def begin(self) -> None:
        """Start the measured window; what came before does not count."""
        self._began = (self._cpu_ns(), self._wall_ns())
        self._lags.clear()

    def end(self) -> None:
        """Close the window; does nothing without ``begin``."""
        if self._began is None:
            return
        cpu, wall = self._cpu_ns() - self._began[0], self._wall_ns() - self._began[1]
        self._cpu_share = cpu / wall if wall > 0 else 0.0
        self._began = None

    async def sample_lag(self) -> None:
        """Sample the event loop's lag until cancelled."""
        while True:
            due_ns = self._wall_ns() + round(_LAG_INTERVAL_S * 1e9)
            await anyio.sleep(_LAG_INTERVAL_S)
            self._lags.append(max(0, self._wall_ns() - due_ns) / 1e9)

    def compute_stats(self, samples: Iterable[Sample]) -> ClientStats:
        """Return the statistics; read lag is that of the measured ``samples``."""
        read_lags = [sample.read_lag_ns / 1e9 for sample in samples if sample.stage is Phase.MEASURED]
        return ClientStats(
            loop_lag_p90_s=_compute_percentile(self._lags, 90) if len(self._lags) >= _MIN_LAG_READINGS else 0.0,
            loop_lag_p99_s=_compute_percentile(self._lags, 99),
            loop_lag_max_s=max(self._lags, default=0.0),
            cpu_share=self._cpu_share,
            read_lag_p99_s=_compute_percentile(read_lags, 99),
        )


def _compute_percentile(values: Sequence[float], percent: int) -> float:
    """Return the percentile by nearest rank, which is always one of the values; 0 without values."""
    ordered = sorted(values)
    return ordered[-(-percent * len(ordered) // 100) - 1] if ordered else 0.0


BackendFactory = Callable[[], Backend]
OnProgress = Callable[[LoadProgress], None]

_STOP_TIMEOUT_S = 1.0
_CLOSE_TIMEOUT_S = 0.5
_GC_INTERVAL_S = 1.0


class LoadMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a load, complete or up to the point where it was stopped.

    ``samples`` are in the order of the requests; ``aborted`` says why the load was stopped, empty when it was not;
    ``started_ns`` and ``ended_ns`` are on the samples' clock, from standing connections to the last answer.
    """

    samples: tuple[Sample, ...]
    watch: ClientStats
    aborted: str
    started_ns: int
    ended_ns: int


OnAbort = Callable[[LoadMeasurement], None]


def run_load(
    workload: Workload,
    make_backend: BackendFactory,
    *,
    targets: int = 1,
    choose: ChooseTarget | None = None,
    on_progress: OnProgress | None = None,
    progress_every_s: float = 0.2,
    on_abort: OnAbort | None = None,
) -> LoadMeasurement:
    """Run ``workload`` and wait for it. Works inside a running event loop as well, which it blocks.

    ``make_backend`` is called in the load's thread, ``on_progress`` and ``on_abort`` in the caller's. Whatever is
    raised in the caller meanwhile (Ctrl-C, a signal handler, a test's timeout, ``on_progress`` itself) cancels the
    load, closes its streams within a second, hands what was measured to ``on_abort``, and goes on. Raises
    ``ConfigError`` for an impossible workload, and whatever ``make_backend`` raises.
    """
    validate_workload(workload)
    job = _LoadThread(workload, make_backend, targets, choose)
    try:
        with _pause_gc():
            job.start()
            return job.wait_for_result(on_progress, progress_every_s)
    except BaseException as reason:
        _abort_load(job, reason, on_abort)
        raise


async def run_load_async(
    workload: Workload,
    make_backend: BackendFactory,
    *,
    targets: int = 1,
    choose: ChooseTarget | None = None,
    on_progress: OnProgress | None = None,
    progress_every_s: float = 0.2,
    on_abort: OnAbort | None = None,
) -> LoadMeasurement:
    """Run ``workload`` as :func:`run_load` does, without blocking the caller's event loop.

    Cancelling the caller stops the load. ``on_progress`` is called in a worker thread, ``on_abort`` in the caller's.
    """
    validate_workload(workload)
    job = _LoadThread(workload, make_backend, targets, choose)
    waiting = partial(job.wait_for_result, on_progress, progress_every_s)
    try:
        with _pause_gc():
            job.start()
            return await anyio.to_thread.run_sync(waiting, abandon_on_cancel=True)
    except BaseException as reason:
        # blocks this loop, for a second at most: a cancelled task cannot be relied on to wait
        _abort_load(job, reason, on_abort)
        raise


def _abort_load(job: _LoadThread, reason: BaseException, on_abort: OnAbort | None) -> None:
    try:
        job.stop()
    finally:  # a second Ctrl-C must not lose what was measured
        if on_abort is not None:
            on_abort(job.build_measurement(_format_reason(reason)))


def _format_reason(reason: BaseException) -> str:
    return f"{type(reason).__name__}: {reason}".removesuffix(": ")


class _LoadThread:
    """One load in a separate thread."""

    def __init__(
        self, workload: Workload, make_backend: BackendFactory, targets: int, choose: ChooseTarget | None
    ) -> None:
        self._recorder = SampleRecorder(count_requests(workload))
        self._watcher = ClientMonitor()
        self._execute = partial(execute_load, workload, targets=targets, choose=choose, on_measured=self._watcher.begin)
        self._make_backend = make_backend
        self._cancel: Callable[[], object] | None = None
        self._stopping = False
        self._stop_reason = ""
        self._ended_ns: int | None = None
        self._error: BaseException | None = None
        self._ended = threading.Event()

    def start(self) -> None:
        # an empty context: an inherited one would claim that an event loop is running in this thread
        target = partial(contextvars.Context().run, self._run_thread)
        # a daemon thread: a loop that hangs must not keep the interpreter from exiting
        threading.Thread(target=target, name="ollama-perf-load", daemon=True).start()

    def wait_for_result(self, on_progress: OnProgress | None, every_s: float) -> LoadMeasurement:
        """Return the result when the load has ended; the wait can be interrupted."""
        while not self._ended.wait(every_s):
            if on_progress is not None and not self._stopping:
                on_progress(self._recorder.compute_progress())
        if self._error is not None:
            raise self._error
        if on_progress is not None and not self._stopping:
            on_progress(self._recorder.compute_progress())
        return self.build_measurement()

    def stop(self) -> None:
        """Cancel the load and wait for its end, up to a limit."""
        self._stopping = True
        if self._cancel is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended by itself
                self._cancel()
            self._ended.wait(_STOP_TIMEOUT_S)

    def build_measurement(self, aborted: str = "") -> LoadMeasurement:
        """Return what was measured up to now."""
        samples = self._recorder.get_samples()
        started_ns = self._recorder.started_ns or 0
        last_ns = max((sample.done_ns for sample in samples), default=started_ns)
        return LoadMeasurement(
            samples=samples,
            watch=self._watcher.compute_stats(samples),
            aborted=aborted or self._stop_reason,
            started_ns=started_ns,
            ended_ns=self._ended_ns or last_ns,
        )

    def _run_thread(self) -> None:
        try:
            anyio.run(self._run_cancellable, backend="asyncio", backend_options={"use_uvloop": _has_uvloop()})
        except BaseException as error:
            self._error = _unwrap_error(error)
        finally:
            self._ended.set()

    async def _run_cancellable(self) -> None:
        with anyio.CancelScope() as scope:
            # not a blocking portal: that waits for the loop to answer, and this one may hang
            self._cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, scope.cancel)
            if not self._stopping:
                await self._run_backend()

    async def _run_backend(self) -> None:
        backend = self._make_backend()
        if isinstance(backend, StreamingBackend):
            self._recorder.get_stream_progress = backend.get_stream_progress
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watcher.sample_lag)
                group.start_soon(_collect_garbage)
                self._stop_reason = await self._execute(backend, self._recorder)
                group.cancel_scope.cancel()
        finally:
            self._watcher.end()
            self._ended_ns = backend.now_ns()
            with anyio.move_on_after(_CLOSE_TIMEOUT_S, shield=True), contextlib.suppress(Exception):
                await backend.aclose()


def _unwrap_error(error: BaseException) -> BaseException:
    """Return the one error that task groups wrapped, else ``error``."""
    within: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return _unwrap_error(within[0]) if len(within) == 1 else error


def _has_uvloop() -> bool:
    return importlib.util.find_spec("uvloop") is not None


async def _collect_garbage() -> None:
    """Collect young garbage regularly, because the collector is paused during a load."""
    while True:
        await anyio.sleep(_GC_INTERVAL_S)
        gc.collect(1)


class _GcPause:
    """Keeps the garbage collector from pausing a load; the last of several loads restores its state."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loads = 0
        self._was_enabled = False
        self._froze = False

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def _enter(self) -> None:
        with self._lock:
            self._loads += 1
            if self._loads > 1:
                return
            self._was_enabled, self._froze = gc.isenabled(), gc.get_freeze_count() == 0
            gc.disable()
            if self._froze:
                gc.freeze()

    def _leave(self) -> None:
        with self._lock:
            self._loads -= 1
            if self._loads:
                return
            if self._froze:
                gc.unfreeze()
            if self._was_enabled:
                gc.enable()


_pause_gc = _GcPause()
