"""One request: its times, the server's counters and how it ended; every ``*_ns`` time is on one clock."""

from __future__ import annotations

import enum

import msgspec


class Outcome(str, enum.Enum):
    """How a request ended, each outcome with its meaning. Only ``OK`` is a success."""

    description: str

    def __new__(cls, value: str, description: str = "") -> Outcome:
        """Create a member whose value is the text ``value``."""
        member = str.__new__(cls, value)
        member._value_, member.description = value, description
        return member

    OK = ("ok", "a final object with `done: true` and no error object; nothing else is a success")
    REFUSED = ("refused", "the connection could not be made")
    CONNECT_TIMEOUT = ("connect_timeout", "the connection was not made in time")
    FIRST_TOKEN_TIMEOUT = ("first_token_timeout", "no first token in time, including queueing and a cold load")
    IDLE_TIMEOUT = ("idle_timeout", "no data for too long in the middle of a response")
    TOTAL_TIMEOUT = ("total_timeout", "the whole request took too long")
    CUT_OFF = ("cut_off", "the connection broke before the response ended")
    TRUNCATED = ("truncated", "the response ended properly, but without `done: true`")
    MALFORMED = ("malformed", "not HTTP, not NDJSON, a line over 8 MiB, or invalid counters")
    HTTP_ERROR = ("http_error", "a status of 400 or more, except 503")
    BUSY = ("busy", "status 503: the server's queue is full")
    SERVER_ERROR = ("server_error", "an error object after a status of 200")
    LATE = ("late", "still unfinished when the drain after the deadline ended")
    CLIENT_ERROR = ("client_error", "an exception of this client; it counts as a failed request")
    CANCELLED = ("cancelled", "the load was stopped by Ctrl-C or SIGTERM")


class Phase(str, enum.Enum):
    """Whether a sample counts; warm-up samples are reported but not counted."""

    WARMUP = "warmup"
    MEASURED = "measured"


class Counters(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The counters of Ollama's final object, durations in integer nanoseconds; ``None`` if the server sent none.

    Ollama omits zeros, so ``None`` and 0 cannot be distinguished: see ``docs/decisions.md``.
    """

    total_duration_ns: int | None = None
    load_duration_ns: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_cached_count: int | None = None
    prompt_eval_duration_ns: int | None = None
    eval_count: int | None = None
    eval_duration_ns: int | None = None

    @property
    def queue_ns(self) -> int | None:
        """``total - load - prompt_eval - eval``, the wait for a slot; never below 0; ``None`` without a total."""
        if self.total_duration_ns is None:
            return None
        parts = (self.load_duration_ns, self.prompt_eval_duration_ns, self.eval_duration_ns)
        return max(0, self.total_duration_ns - sum(part or 0 for part in parts))


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The measurement of one request.

    ``scheduled_ns`` is when an open loop was due to send it; ``sent_ns`` is taken immediately before the request is
    written to an open connection. ``chunk_ns`` are the arrivals of all streamed objects with text; ``line_count``
    counts all objects. ``read_lag_ns`` is the largest delay between a packet's arrival in the kernel and the client
    reading it (0 on platforms without receive timestamps).
    """

    index: int
    client: int
    url: str
    request_id: str
    stage: Phase
    outcome: Outcome
    sent_ns: int
    done_ns: int
    error: str = ""
    status: int | None = None
    scheduled_ns: int | None = None
    connect_ns: int | None = None  # time to connect; None for a reused connection
    header_ns: int | None = None
    first_token_ns: int | None = None
    first_answer_ns: int | None = None  # differs from first_token_ns only if the model thinks first
    chunk_ns: tuple[int, ...] = ()
    line_count: int = 0
    read_count: int = 0  # socket reads that carried body bytes: few reads for many chunks mean a buffering proxy
    bytes_received: int = 0
    read_lag_ns: int = 0
    done_reason: str = ""
    counters: Counters = Counters()
    attempt: int = 1
    first_sent_ns: int | None = None  # when the first attempt was sent, if there were several
    first_error: str = ""  # how that attempt ended
    turn: int = 1  # position in a chat; the server may have cached the earlier turns
    server: str = ""  # the upstream that answered, if a header names it

    @property
    def ok(self) -> bool:
        """Whether the request succeeded."""
        return self.outcome is Outcome.OK

    @property
    def start_ns(self) -> int:
        """Start of the latency: the scheduled time in an open loop, else the first send."""
        if self.scheduled_ns is not None:
            return self.scheduled_ns
        return self.sent_ns if self.first_sent_ns is None else self.first_sent_ns
