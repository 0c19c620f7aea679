"""Runs a load in a thread and an event loop of its own, so that any caller can wait for it and stop it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import importlib.util
import threading
from collections.abc import Callable, Iterator
from functools import partial

import anyio
import anyio.to_thread
import msgspec

from pytest_ollama_perf.load.backend import Backend, Streaming
from pytest_ollama_perf.load.engine import Choose, fire
from pytest_ollama_perf.load.plan import check, total_requests
from pytest_ollama_perf.load.recorder import Progress, Recorder
from pytest_ollama_perf.load.watch import Watcher
from pytest_ollama_perf.run import Watch
from pytest_ollama_perf.sample import Sample
from pytest_ollama_perf.workload import Workload

MakeBackend = Callable[[], Backend]
OnProgress = Callable[[Progress], None]

_STOP_WITHIN_S = 1.0
_CLOSE_WITHIN_S = 0.5
_SWEEP_EVERY_S = 1.0


class Fired(msgspec.Struct, frozen=True, kw_only=True):
    """What firing a workload left, whole or up to where it was stopped.

    ``samples`` are in the order of the requests; ``aborted`` says why the load was stopped, empty when it was not;
    ``started_ns`` and ``ended_ns`` are on the samples' clock, from standing connections to the last answer.
    """

    samples: tuple[Sample, ...]
    watch: Watch
    aborted: str
    started_ns: int
    ended_ns: int


OnAbort = Callable[[Fired], None]


def run(
    workload: Workload,
    make_backend: MakeBackend,
    *,
    targets: int = 1,
    choose: Choose | None = None,
    on_progress: OnProgress | None = None,
    progress_every_s: float = 0.2,
    on_abort: OnAbort | None = None,
) -> Fired:
    """Fire ``workload`` and wait for it; works inside a running event loop too, which it blocks.

    ``make_backend`` is called in the load's thread, ``on_progress`` and ``on_abort`` in the caller's. Whatever is
    raised in the caller meanwhile (Ctrl-C, a signal handler, a test's timeout, ``on_progress`` itself) cancels the
    load, closes its streams within a second, hands what was measured to ``on_abort``, and goes on. Raises
    ``ConfigError`` for a workload that cannot be fired, and what ``make_backend`` raises.
    """
    check(workload)
    job = _Job(workload, make_backend, targets, choose)
    try:
        with _rare_gc():
            job.start()
            return job.wait(on_progress, progress_every_s)
    except BaseException as reason:
        _abort(job, reason, on_abort)
        raise


async def arun(
    workload: Workload,
    make_backend: MakeBackend,
    *,
    targets: int = 1,
    choose: Choose | None = None,
    on_progress: OnProgress | None = None,
    progress_every_s: float = 0.2,
    on_abort: OnAbort | None = None,
) -> Fired:
    """Fire ``workload`` as ``run`` does, without blocking the caller's event loop.

    Cancelling the caller stops the load. ``on_progress`` is called in a worker thread, ``on_abort`` in the caller's.
    """
    check(workload)
    job = _Job(workload, make_backend, targets, choose)
    waiting = partial(job.wait, on_progress, progress_every_s)
    try:
        with _rare_gc():
            job.start()
            return await anyio.to_thread.run_sync(waiting, abandon_on_cancel=True)
    except BaseException as reason:
        # blocks this loop, for a second at most: a cancelled task cannot be relied on to wait
        _abort(job, reason, on_abort)
        raise


def _abort(job: _Job, reason: BaseException, on_abort: OnAbort | None) -> None:
    try:
        job.stop()
    finally:  # a second Ctrl-C must not lose what was measured
        if on_abort is not None:
            on_abort(job.fired(_named(reason)))


def _named(reason: BaseException) -> str:
    return f"{type(reason).__name__}: {reason}".removesuffix(": ")


class _Job:
    """One load in a thread of its own."""

    def __init__(self, workload: Workload, make_backend: MakeBackend, targets: int, choose: Choose | None) -> None:
        self._recorder = Recorder(total_requests(workload))
        self._watcher = Watcher()
        self._fire = partial(fire, workload, targets=targets, choose=choose, on_measured=self._watcher.begin)
        self._make_backend = make_backend
        self._cancel: Callable[[], object] | None = None
        self._stopping = False
        self._ended_ns: int | None = None
        self._error: BaseException | None = None
        self._ended = threading.Event()

    def start(self) -> None:
        # an empty context: where threads inherit one, it would say that an event loop is running here
        target = partial(contextvars.Context().run, self._in_thread)
        # a daemon: a loop that hangs must not keep the interpreter from leaving
        threading.Thread(target=target, name="ollama-perf-load", daemon=True).start()

    def wait(self, on_progress: OnProgress | None, every_s: float) -> Fired:
        """Return what was fired once it has ended, interruptible all the while."""
        while not self._ended.wait(every_s):
            if on_progress is not None and not self._stopping:
                on_progress(self._recorder.progress())
        if self._error is not None:
            raise self._error
        if on_progress is not None and not self._stopping:
            on_progress(self._recorder.progress())
        return self.fired()

    def stop(self) -> None:
        """Cancel the load and wait for its end, but not for ever."""
        self._stopping = True
        if self._cancel is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended by itself
                self._cancel()
            self._ended.wait(_STOP_WITHIN_S)

    def fired(self, aborted: str = "") -> Fired:
        """Return what was measured up to now."""
        samples = self._recorder.samples()
        started_ns = self._recorder.started_ns or 0
        last_ns = max((sample.done_ns for sample in samples), default=started_ns)
        return Fired(
            samples=samples,
            watch=self._watcher.result(samples),
            aborted=aborted,
            started_ns=started_ns,
            ended_ns=self._ended_ns or last_ns,
        )

    def _in_thread(self) -> None:
        try:
            anyio.run(self._main, backend="asyncio", backend_options={"use_uvloop": _has_uvloop()})
        except BaseException as error:
            self._error = _sole(error)
        finally:
            self._ended.set()

    async def _main(self) -> None:
        with anyio.CancelScope() as scope:
            # not a blocking portal: that waits for the loop to answer, and this one may hang
            self._cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, scope.cancel)
            if not self._stopping:
                await self._load()

    async def _load(self) -> None:
        backend = self._make_backend()
        if isinstance(backend, Streaming):
            self._recorder.under_way = backend.under_way
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watcher.lag)
                group.start_soon(_sweep)
                await self._fire(backend, self._recorder)
                group.cancel_scope.cancel()
        finally:
            self._watcher.end()
            self._ended_ns = backend.now_ns()
            with anyio.move_on_after(_CLOSE_WITHIN_S, shield=True), contextlib.suppress(Exception):
                await backend.aclose()


def _sole(error: BaseException) -> BaseException:
    """Return the one error that task groups wrapped, else ``error``."""
    within: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return _sole(within[0]) if len(within) == 1 else error


def _has_uvloop() -> bool:
    return importlib.util.find_spec("uvloop") is not None


async def _sweep() -> None:
    """Collect young garbage in small portions, which a long load would otherwise pile up."""
    while True:
        await anyio.sleep(_SWEEP_EVERY_S)
        gc.collect(1)


class _RareGc:
    """Keeps the garbage collector from pausing a load; the last of several loads puts everything back."""

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


_rare_gc = _RareGc()
