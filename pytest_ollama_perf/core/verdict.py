"""Verdicts: their statuses, the judged rows, the problems of a measurement and the reason."""

from __future__ import annotations

import enum

import msgspec


class VerdictStatus(str, enum.Enum):
    """The status of a verdict, in order of severity, each with its meaning."""

    description: str

    def __new__(cls, value: str, description: str = "") -> VerdictStatus:
        """Create a member whose value is the text ``value``."""
        member = str.__new__(cls, value)
        member._value_, member.description = value, description
        return member

    OK = ("ok", "every limit is met, and the history shows no change beyond the margin")
    FASTER = ("faster", "better than the history")
    NEW = ("new", "there is no history yet")
    UNSURE = ("unsure", "the data is not conclusive; the reason explains what would make it so")
    INCOMPARABLE = ("incomparable", "there is a history, but this run cannot be compared with it")
    REGRESSED = ("regressed", "worse than the history, beyond the margin and beyond chance")
    BROKEN = ("broken", "an absolute limit is not met")
    INVALID = ("invalid", "the measurement cannot be trusted; the reason names the problem")
    ABORTED = ("aborted", "the load was stopped before its end")


FAILING_STATUSES = frozenset(
    {VerdictStatus.REGRESSED, VerdictStatus.BROKEN, VerdictStatus.INVALID, VerdictStatus.ABORTED}
)
"""Statuses that fail a test; strict mode adds ``UNSURE`` and ``INCOMPARABLE``."""

_SEVERITY = tuple(VerdictStatus)


class ProblemCode(str, enum.Enum):
    """Every problem that a measurement or a machine can have: its stable code, its label, and what it means.

    ``is_doctor`` marks those that only the command ``doctor`` finds.
    """

    label: str
    description: str
    is_doctor: bool

    def __new__(cls, code: str, label: str, description: str, is_doctor: bool = False) -> ProblemCode:
        """Create a member whose value is the text ``code``."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.label, member.description, member.is_doctor = label, description, is_doctor
        return member

    GPU_THROTTLED = (
        "gpu_throttled",
        "GPU throttled",
        "heat or power kept a GPU below its clocks; invalidates the run from a tenth of its readings on",
    )
    TELEMETRY_INCOMPLETE = (
        "telemetry_incomplete",
        "telemetry incomplete",
        "GPU telemetry was requested and is missing; a note",
    )
    SERVER_DOWN = ("server_down", "server down", "one of several servers does not answer")
    SERVERS_DIFFER = ("servers_differ", "servers differ", "several servers differ in version, model or context")
    PARTIAL_OFFLOAD = (
        "partial_offload",
        "partly on the CPU",
        "part of the model is not in GPU memory; a model that runs entirely on the CPU is valid",
    )
    CONTEXT_CUT = (
        "context_cut",
        "context cut",
        "the server gave the model a shorter context than `num_ctx`; invalidates the run if a "
        "request reached the end of it",
    )
    MODEL_EVICTED = ("model_evicted", "model evicted", "the model was no longer loaded when the load ended")
    MODEL_REPLACED = ("model_replaced", "model replaced", "the model's digest changed during the load")
    MODEL_RELOADED = ("model_reloaded", "model reloaded", "the model was loaded again inside the measured window")
    WARMUP_MISSING = (
        "warmup_missing",
        "warm-up missing",
        "the model was still being loaded when the measured window started",
    )
    NO_WARMUP = ("no_warmup", "no warm-up", "no warm-up was configured, so the first requests are measured; a note")
    WARMUP_FAILED = (
        "warmup_failed",
        "warm-up failed",
        "warm-up requests failed; invalidates the run if all of them did",
    )
    IMPOSSIBLE_COUNTERS = (
        "impossible_counters",
        "impossible counters",
        "the server's counters contradict what the client asked for or observed",
    )
    SHORT_OUTPUTS = ("short_outputs", "short outputs", "responses ended before `num_predict`")
    PROMPTS_CUT = ("prompts_cut", "prompts cut", "the server dropped part of the prompts")
    CACHED_PROMPTS = ("cached_prompts", "cached prompts", "the server's prompt cache answered part of the prompts")
    BUFFERED_STREAM = (
        "buffered_stream",
        "buffered stream",
        "something between server and client, usually a proxy, delayed the stream",
    )
    CLIENT_BOUND = ("client_bound", "client-bound", "the machine that sends the requests was the bottleneck")
    BEHIND_SCHEDULE = (
        "behind_schedule",
        "behind schedule",
        "an open loop could not send its requests at their scheduled times",
    )
    DAMAGED_HISTORY = ("damaged_history", "damaged history", "a stored record cannot be read; the others are used")
    INSECURE_TLS = (
        "insecure_tls",
        "insecure TLS",
        "certificates were not verified (`--ollama-insecure`), so another host may have answered; a note",
    )
    REPORT_FAILED = ("report_failed", "report failed", "the report of a test could not be built; a bug of the plugin")
    NOT_SAVED = (
        "not_saved",
        "not saved",
        "the run could not be added to the history; the build fails, or a baseline would be missing later",
    )
    NOT_COLD = ("not_cold", "not cold", "the model was still loaded when a cold start began")
    NOTHING_TO_COMPARE = (
        "nothing_to_compare",
        "nothing to compare",
        "both sides of a comparison are the same; a note",
    )
    AUTOCORRELATION = (
        "autocorrelation",
        "autocorrelation",
        "a session resembles the one before it, so several sessions hold less information than their number suggests",
        True,
    )
    BUSY_MACHINE = ("busy_machine", "busy machine", "other programs use this machine's cores", True)
    CLIENT_TOO_SLOW = (
        "client_too_slow",
        "client too slow",
        "the client cannot process chunks at the required rate",
        True,
    )
    CLOCK_ERROR = ("clock_error", "clock", "the client's times are inaccurate", True)
    COARSE_CLOCK = ("coarse_clock", "coarse clock", "the resolution of the system's clock is too low", True)
    DRIFT = ("drift", "drift", "the sessions got steadily slower or faster", True)
    EVENT_LOOP_LAG = (
        "event_loop_lag",
        "event loop",
        "an idle event loop wakes up late: the machine is overloaded",
        True,
    )
    FAILED_REQUESTS = ("failed_requests", "failed requests", "requests of a session failed", True)
    NOISY = (
        "noisy",
        "noisy",
        "sessions differ more than usual; longer runs reduce the noise, and so do dedicated cores "
        "for a model on the CPU",
        True,
    )
    TOO_NOISY = ("too_noisy", "too noisy", "sessions differ so much that no gate can work", True)
    OPEN_FILES = ("open_files", "open files", "the limit on open files is below what the load needs", True)
    CAMPAIGN_STOPPED = ("campaign_stopped", "stopped", "the campaign was ended early", True)
    TWO_MODES = ("two_modes", "two modes", "sessions fall into two groups", True)
    UNREACHABLE = ("unreachable", "unreachable", "the server does not answer", True)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One problem of a measurement. ``invalidates`` says that the numbers cannot be trusted; otherwise it is a note."""

    code: ProblemCode
    text: str
    invalidates: bool

    @property
    def name(self) -> str:
        """The label of the code, for display."""
        return self.code.label


class HintCode(str, enum.Enum):
    """Every hint that a verdict can give: its stable code and when it is given."""

    description: str

    def __new__(cls, code: str, description: str) -> HintCode:
        """Create a member whose value is the text ``code``."""
        member = str.__new__(cls, code)
        member._value_, member.description = code, description
        return member

    SLOTS = ("slots", "requests waited for a slot of the server; names the probable `OLLAMA_NUM_PARALLEL`")
    SERVER_BUSY = ("server_busy", "the server refused requests because its queue was full (`OLLAMA_MAX_QUEUE`)")
    FIRST_TOKEN_TIMEOUT = ("first_token_timeout", "requests received no first token before the timeout")
    SHORT_STEADY_WINDOW = (
        "short_steady_window",
        "the time in which all clients were busy is too short, so throughput covers the whole run",
    )
    UNUSED_MARGIN = ("unused_margin", "a margin of `--ollama-margin` cannot be used for this test")
    LONGER_RUNS = ("longer_runs", "a metric varies so much within a run that longer runs are needed")
    METRIC_DRIFT = ("metric_drift", "a metric got steadily slower since the first runs of the epoch")
    RUNS_NOT_SAVED = ("runs_not_saved", "the runs of a regression are not saved, so `accept` cannot accept them")


class Hint(msgspec.Struct, frozen=True, kw_only=True):
    """One suggestion of a verdict: its code, and one line for display."""

    code: HintCode
    text: str


class VerdictRow(msgspec.Struct, frozen=True, kw_only=True):
    """One judged number: against a limit (``bound`` set) or against history (``baseline`` set).

    ``value``, ``bound``, ``baseline``, ``low`` and ``high`` are in the metric's own unit; an infinite value represents
    failed requests. ``low``..``high`` is the 95 % interval of ``value`` (limit) or of the relative change (history).
    """

    metric: str
    stat: str  # "" for a pooled or per-run value
    status: VerdictStatus
    value: float
    reason: str
    op: str = ""
    bound: float | None = None
    baseline: float | None = None
    change: float | None = None  # relative: +0.10 is 10 % more
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    gating: bool = True
    where: str = ""  # which of several loads of a test, such as "concurrency 4"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """``reason`` is one complete line; rows, problems, hints and changes explain it."""

    status: VerdictStatus
    reason: str
    rows: tuple[VerdictRow, ...] = ()
    problems: tuple[Problem, ...] = ()
    hints: tuple[Hint, ...] = ()
    changed: tuple[str, ...] = ()
    accept: str = ""  # the command that accepts a regression
    stored: int | None = None  # how many stored runs the history held; None if the history was not read

    @property
    def is_usable(self) -> bool:
        """Whether the numbers can be trusted: neither stopped early nor invalidated by a problem."""
        unusable = self.status in {VerdictStatus.INVALID, VerdictStatus.ABORTED}
        return not unusable and not any(problem.invalidates for problem in self.problems)


def get_worst_status(statuses: tuple[VerdictStatus, ...]) -> VerdictStatus:
    """Return the most severe of ``statuses``; ``OK`` if there are none."""
    return max(statuses, key=_SEVERITY.index, default=VerdictStatus.OK)
