"""A workload turned into request bodies, arrival times and think times; impossible workloads are refused."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice, takewhile
from typing import Any

import msgspec

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.sample import Phase
from pytest_ollama_perf.core.text import suggest_match
from pytest_ollama_perf.core.workload import Arrival, ChatMessage, Endpoint, Prefix, StageSchedule, Workload
from pytest_ollama_perf.loadgen.prompts import NONCE_WORDS, PromptGenerator, PromptPicker

_MAX_SEED = 2**31 - 1
_THINK_LEVELS = ("low", "medium", "high", "max")
_MAX_PRE_ENCODED_BYTES = 32 * 1024 * 1024
_MAX_OPEN_LOOP_CONNECTIONS = 256
_ENCODER = msgspec.json.Encoder()


class LoadPlan:
    """Everything of a load that is known before the clock starts.

    Raises:
        ConfigError: the workload is impossible.
    """

    def __init__(self, workload: Workload) -> None:
        validate_workload(workload)
        self.workload = workload
        self.total = count_requests(workload)
        self._prompts = PromptGenerator(workload)
        self._picker = PromptPicker(workload)
        self._head = _ENCODER.encode(_build_shared_fields(workload))[:-1] + b","
        self._pre_encoded = self._pre_encode()

    @property
    def clients(self) -> int:
        """Clients of a closed loop that have something to send."""
        concurrency = self.workload.concurrency or 1
        return concurrency if self.total is None else min(concurrency, self.total)

    @property
    def schedule(self) -> StageSchedule | None:
        """The stages of the load, ``None`` for a constant load."""
        return StageSchedule(self.workload.stages) if self.workload.stages else None

    @property
    def connections(self) -> int:
        """Connections to open to each server before the load starts.

        An open loop opens two seconds' worth of requests: more are made when needed, and their making is recorded.
        """
        if not self.workload.reuse_connections:
            return 0
        if self.workload.rate is None:
            return self.clients
        wanted = min(_MAX_OPEN_LOOP_CONNECTIONS, math.ceil(2 * self.workload.rate))
        return wanted if self.total is None else min(wanted, self.total)

    def get_phase(self, index: int) -> Phase:
        """Return the phase of a request: warm-up or measured."""
        return Phase.WARMUP if index < self.workload.warmup else Phase.MEASURED

    def get_body(self, index: int) -> bytes:
        """Return the request's JSON, which may have been encoded before the load started."""
        return self._pre_encoded[index] if index < len(self._pre_encoded) else self._encode(index)

    def iter_arrivals_ns(self) -> Iterator[int]:
        """Yield when each request of an open loop is due, in nanoseconds after the first."""
        # the arrivals of a staged rate are those of one request per second, with time stretched
        rate = 1.0 if self.workload.stages else self.workload.rate or 1.0
        times = (
            _generate_poisson_arrivals(rate, self.workload.random_seed)
            if self.workload.arrival == Arrival.POISSON
            else _generate_constant_arrivals(rate)
        )
        if (course := self.schedule) is not None:
            times = takewhile(math.isfinite, map(course.compute_arrival_time, times))
        return islice((round(1e9 * at) for at in times), self.total)

    def iter_pauses_s(self, client: int) -> Iterator[float]:
        """Yield the think time in seconds before each request of a client except the first."""
        low, high = self.workload.think_time_s
        chance = random.Random(f"think:{self.workload.random_seed}:{client}")
        while True:
            yield chance.uniform(low, high)

    def _encode(self, index: int) -> bytes:
        return (
            self._head + _ENCODER.encode(_build_request_fields(self.workload, self._prompts, self._picker, index))[1:]
        )

    def start_chat(self, index: int) -> list[dict[str, Any]]:
        """Return the messages of the first question of a chat."""
        messages: list[dict[str, Any]] = _build_request_fields(self.workload, self._prompts, self._picker, index)[
            "messages"
        ]
        return messages

    def build_question(self, index: int) -> dict[str, Any]:
        """Return the message of a further question."""
        return {"role": "user", "content": self._prompts.build_text(index)}

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> bytes:
        """Return the JSON of a request with the messages of a chat so far."""
        return self._head + _ENCODER.encode({"messages": messages})[1:]

    def _pre_encode(self) -> list[bytes]:
        bodies: list[bytes] = []
        left_bytes = _MAX_PRE_ENCODED_BYTES if self.workload.turns == 1 else 0
        for index in range(self.total or 0):
            bodies.append(self._encode(index))
            left_bytes -= len(bodies[-1])
            if left_bytes < 0:
                break
        return bodies


def count_requests(workload: Workload) -> int | None:
    """Return how many requests the load sends, warm-up included; ``None`` where time ends it."""
    return None if workload.requests is None else workload.warmup + workload.requests


def _generate_constant_arrivals(rate: float) -> Iterator[float]:
    # a product, not a sum: rounding must not accumulate over a long load
    return (index / rate for index in count())


def _generate_poisson_arrivals(rate: float, seed: int) -> Iterator[float]:
    chance = random.Random(f"arrivals:{seed}")
    at = 0.0
    while True:
        yield at
        at += chance.expovariate(rate)


def _build_shared_fields(workload: Workload) -> dict[str, Any]:
    """Return the fields that every request of the load shares."""
    fields: dict[str, Any] = {
        "model": workload.model,
        "keep_alive": workload.keep_alive,
        "options": {**_collect_named_options(workload), **workload.options},
    }
    if workload.endpoint == Endpoint.EMBED:
        return fields
    fields |= {"stream": workload.stream} | ({} if workload.think is None else {"think": workload.think})
    return fields | {"raw": workload.sends_raw_prompt} if workload.endpoint == Endpoint.GENERATE else fields


def _collect_named_options(workload: Workload) -> dict[str, Any]:
    """Return ``num_predict`` and those of the other options that the workload sets; the server chooses the rest."""
    named = {"num_ctx": workload.num_ctx, "temperature": workload.temperature, "seed": workload.seed}
    return {"num_predict": workload.num_predict} | {name: value for name, value in named.items() if value is not None}


def _build_request_fields(
    workload: Workload, prompts: PromptGenerator, picker: PromptPicker, index: int
) -> dict[str, Any]:
    """Return the fields that differ between requests.

    Under a template the nonce is also in the system message: the model's default system message would otherwise come
    first, the same in every request. It is in the prompt as well, because some templates omit the system message.
    """
    text, nonce = prompts.build_prompt(index), prompts.build_nonce(index)
    if workload.endpoint == Endpoint.EMBED:
        return {"input": text}
    if workload.messages:
        return {"messages": _build_chat(workload.messages[picker.pick(index)], nonce, workload.images, index)}
    if workload.endpoint == Endpoint.CHAT:
        return {"messages": _build_chat((ChatMessage(role="user", content=text),), nonce, workload.images, index)}
    seen = {"images": _select_image(workload.images, index)} if workload.images else {}
    return (
        {"prompt": text, **seen}
        if workload.sends_raw_prompt or not nonce
        else {"system": nonce, "prompt": text, **seen}
    )


def _build_chat(messages: Sequence[ChatMessage], nonce: str, images: Sequence[str], index: int) -> list[dict[str, Any]]:
    """Return a chat that begins with the nonce, in the existing system message or in a new one."""
    chat: list[dict[str, Any]] = [{"role": each.role, "content": each.content} for each in messages]
    if images:
        asked = next(each for each in reversed(chat) if each["role"] == "user")
        asked["images"] = _select_image(images, index)
    if nonce and chat[0]["role"] == "system":
        chat[0]["content"] = f"{nonce}\n{chat[0]['content']}"
    elif nonce:
        chat.insert(0, {"role": "system", "content": nonce})
    return chat


def _select_image(images: Sequence[str], index: int) -> list[str]:
    return [images[index % len(images)]]


def validate_workload(workload: Workload) -> None:
    """Check that the workload can be run.

    Raises:
        ConfigError: one line that names the marker argument that is wrong.
    """
    _check_types(workload)
    for rule in _CHECKS:
        if fault := rule(workload):
            raise ConfigError(fault)


def _check_types(workload: Workload) -> None:
    try:
        msgspec.convert(msgspec.to_builtins(workload), Workload)
    except (msgspec.ValidationError, TypeError) as error:
        what, _, where = str(error).partition(" - at `$.")
        option = re.sub(r"_s\b", "", where.rstrip("`")) or "options"
        raise ConfigError(f"{option}: {what[:1].lower()}{what[1:]}") from None


def _check_encodable(workload: Workload) -> str:
    given = (("prompts", workload.prompts), ("dataset", workload.messages))
    for word, value in (*given, ("options", workload.options), ("model", workload.model)):
        try:
            _ENCODER.encode(value)
        except UnicodeEncodeError as error:
            return (
                f"{word}: a text holds half a character (U+{ord(error.object[error.start]):04X}), which is no Unicode"
            )
    return ""


def _check_load_mode(workload: Workload) -> str:
    concurrency, rate = workload.concurrency, workload.rate
    if concurrency is None and rate is None:
        how = "concurrency keeps that many requests running, rate starts that many a second"
        return f"neither concurrency nor rate is given: {how}"
    if concurrency is not None and rate is not None:
        return f"concurrency={concurrency} and rate={rate:g} exclude each other: give one of them"
    if concurrency is not None and concurrency < 1:
        return f"concurrency={concurrency}: must be at least 1"
    return "" if rate is None or _is_positive(rate) else f"rate={rate:g}: must be more than 0 requests a second"


def _check_stop(workload: Workload) -> str:
    requests, duration = workload.requests, workload.duration_s
    if requests is None and duration is None:
        return "neither requests nor duration is given: the load would never stop"
    if requests is not None and duration is not None:
        return f"requests={requests} and duration={duration:g}s exclude each other: give one of them"
    if requests is not None and requests < 1:
        return f"requests={requests}: must be at least 1"
    return "" if duration is None or _is_positive(duration) else f"duration={duration:g}s: must be more than 0"


def _check_warmup(workload: Workload) -> str:
    return "" if workload.warmup >= 0 else f"warmup={workload.warmup}: must be 0 or more requests"


def _check_stages(workload: Workload) -> str:
    stages, word = workload.stages, "concurrency" if workload.rate is None else "rate"
    if not stages:
        return ""
    if not all(_is_positive(stage.seconds) for stage in stages):
        return "stages: each must last more than 0 seconds"
    if not all(0 <= stage.level < math.inf for stage in stages) or not any(stage.level for stage in stages):
        return f"stages: {word} must be 0 or more, and more than 0 in one of them"
    if workload.rate is None and not all(float(stage.level).is_integer() for stage in stages):
        return "stages: concurrency must be a whole number"
    return ""


def _check_abort_rate(workload: Workload) -> str:
    limit = workload.abort_error_rate
    return "" if limit is None or 0 <= limit <= 1 else f"abort_error_rate={limit:g}: must be 0 to 1, or 0% to 100%"


def _check_chats(workload: Workload) -> str:
    chat, given = workload.endpoint == Endpoint.CHAT, bool(workload.messages)
    if workload.turns < 1 or workload.retries < 0:
        return f"turns={workload.turns} and retries={workload.retries}: must be at least 1 and 0"
    if (given or workload.turns > 1) and not chat:
        what = "a dataset with messages" if given else f"turns={workload.turns}"
        return f"{what} and endpoint={workload.endpoint.value!r} exclude each other: chats need endpoint='chat'"
    if workload.turns > 1 and (given or workload.rate is not None):
        other = "a dataset with messages" if given else "a rate"
        return f"turns={workload.turns} and {other} exclude each other: each client has a separate chat"
    return ""


def _check_weights(workload: Workload) -> str:
    weights, count = workload.weights, len(workload.messages) or len(workload.prompts)
    if weights and (len(weights) != count or not all(map(_is_positive, weights))):
        return f"prompts: {len(weights)} weights for {count} prompts; each needs one above 0"
    if workload.images and _is_embedding(workload):
        return "images and endpoint='embed' exclude each other"
    return ""


def _check_think_time(workload: Workload) -> str:
    low, high = workload.think_time_s
    if not 0 <= low <= high < math.inf:
        return f"think_time={low:g}s..{high:g}s: must be 0 or more seconds, the lower bound first"
    if high and workload.rate is not None:
        return (
            f"think_time={low:g}s..{high:g}s and rate={workload.rate:g} exclude each other: a rate has its own schedule"
        )
    return ""


def _check_prompts(workload: Workload) -> str:
    if empty := [str(at) for at, text in enumerate(workload.prompts, 1) if not text.strip()]:
        return f"prompts: number {empty[0]} is empty, and an empty prompt only loads the model"
    least = NONCE_WORDS if workload.prefix == Prefix.UNIQUE else 1
    if workload.messages:
        return ""
    if not workload.prompts and workload.prompt_words < least:
        return f"prompt_words={workload.prompt_words}: must be at least {least}" + _format_nonce_hint(workload)
    if not workload.prompts and workload.num_ctx is not None and workload.prompt_words >= workload.num_ctx:
        return f"prompt_words={workload.prompt_words} do not fit into num_ctx={workload.num_ctx}: raise num_ctx"
    return ""


def _format_nonce_hint(workload: Workload) -> str:
    unique = workload.prefix == Prefix.UNIQUE
    return f", or prefix='warm': the first {NONCE_WORDS} words keep prompts out of the server's cache" if unique else ""


def _check_generation(workload: Workload) -> str:
    if workload.num_predict < 1:
        return f"num_predict={workload.num_predict}: must be at least 1 (Ollama takes 0 and less as unlimited)"
    if workload.num_ctx is not None and workload.num_ctx < 1:
        return f"num_ctx={workload.num_ctx}: must be at least 1"
    if not 0 <= workload.random_seed <= _MAX_SEED:
        return f"seed={workload.seed}: must be 0 to {_MAX_SEED} (Ollama takes a negative one as random)"
    if workload.temperature is not None and not 0 <= workload.temperature < math.inf:
        return f"temperature={workload.temperature:g}: must be 0 or more"
    return ""


def _check_think(workload: Workload) -> str:
    think = workload.think
    if isinstance(think, str) and think not in _THINK_LEVELS:
        hint = suggest_match(think, _THINK_LEVELS) or f"; valid are True, False, {', '.join(map(repr, _THINK_LEVELS))}"
        return f"think={think!r} is no level{hint}"
    return f"think={think!r} and endpoint='embed' exclude each other" if think and _is_embedding(workload) else ""


def _is_embedding(workload: Workload) -> bool:
    return workload.endpoint == Endpoint.EMBED


def _check_options(workload: Workload) -> str:
    for word, named in _collect_named_options(workload).items():
        given = workload.options.get(word, named)
        if given != named:
            return f"options {{{word!r}: {given!r}}} contradicts {word}={named!r}: give {word}={given!r} alone"
    return ""


def _check_timeouts(workload: Workload) -> str:
    waits: Mapping[str, float] = msgspec.structs.asdict(workload.timeouts)
    for word, seconds in waits.items():
        if not seconds > 0:
            return f"timeout {word.removesuffix('_s')}={seconds:g}s: must be more than 0"
    return "" if workload.drain_s >= 0 else f"drain={workload.drain_s:g}s: must be 0 or more"


def _is_positive(number: float) -> bool:
    return 0 < number < math.inf


_CHECKS: tuple[Callable[[Workload], str], ...] = (
    _check_encodable,
    _check_load_mode,
    _check_stop,
    _check_stages,
    _check_chats,
    _check_abort_rate,
    _check_weights,
    _check_warmup,
    _check_think_time,
    _check_generation,
    _check_prompts,
    _check_think,
    _check_options,
    _check_timeouts,
)
