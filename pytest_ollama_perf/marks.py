"""The words of a load - on the marker, in ``ollama.load(...)`` - read into a workload and its limits."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from pytest_ollama_perf import shapes
from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.load.plan import check
from pytest_ollama_perf.metric import METRICS
from pytest_ollama_perf.quantity import seconds
from pytest_ollama_perf.settings import margin, parse_percent
from pytest_ollama_perf.summary import unmeasurable
from pytest_ollama_perf.verdict.limits import Limit, latency_limits, limit_from_word, limit_words, parse_limit
from pytest_ollama_perf.verdict.run_value import GATING
from pytest_ollama_perf.verdict.wording import label
from pytest_ollama_perf.words import did_you_mean, shown
from pytest_ollama_perf.workload import ANY_MODEL, Arrival, Balance, Endpoint, Prefix, Timeouts, Workload

DEFAULT_REQUESTS = 20
REQUESTS_PER_CLIENT = 5
TIMEOUT_PARTS = ("connect", "first_token", "idle", "total")
_USUAL_LIMITS = ("min_tps", "min_throughput", "min_qps", "max_error_rate")
_THINK_LEVELS = ("low", "medium", "high", "max")
_MOST = 2**31 - 1
_GO_DURATION = re.compile(r"[-+]?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+)")


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What one load is asked for: the workload, its absolute limits, and the margins that differ from the settings'.

    ``gating`` names the numbers that history may fail; ``None`` stands for the usual ones and those with a margin.
    """

    workload: Workload
    limits: tuple[Limit, ...]
    margins: dict[str, float] = {}
    gating: tuple[str, ...] | None = None


def load_spec(words: Mapping[str, Any], *, default_model: str | None = None) -> LoadSpec:
    """Read the words of one load.

    Without a model the workload names ``ANY_MODEL``: the server's only one, which is known once the server is asked.

    Raises:
        ConfigError: a word or its value is wrong, or words contradict each other.
    """
    _refuse_unknown(words, known_words())
    _refuse_both(words, _ASKED)
    for word in ("concurrency", "rate", "requests", "duration") if "stages" in words else ():
        _refuse_both(words, ("stages", word))
    fields: dict[str, Any] = {}
    for word, value in words.items():
        if word in WORDS:
            read = WORDS[word](word, value)
            # what a dataset implies gives way to what is said
            fields = {**read, **fields} if word == "dataset" else {**fields, **read}
    _refuse_idle(words)
    fields.setdefault("model", default_model or ANY_MODEL)
    workload = Workload(**_with_defaults(fields))
    check(msgspec.structs.replace(workload, model=workload.model or "not known yet"))
    limits = read_limits({word: value for word, value in words.items() if word not in (*WORDS, "max_regression")})
    margins = _margins(words.get("max_regression", {}), workload)
    refuse_unmeasurable(workload, limits, margins)
    return LoadSpec(workload=workload, limits=_with_error_limit(limits), margins=margins)


def _refuse_both(words: Mapping[str, Any], rivals: tuple[str, ...]) -> None:
    given = [word for word in rivals if word in words]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} contradict each other: give one of them")


_PACES = ("concurrency", "rate", "stages")
_ENDS = ("requests", "duration", "stages")
_ASKED = ("prompt", "prompts", "dataset", "prompt_words")
_RIVALS: Mapping[str, frozenset[str]] = {
    word: frozenset(other for rivals in (_PACES, _ENDS, _ASKED) if word in rivals for other in rivals if other != word)
    for word in (*_PACES, *_ENDS, *_ASKED)
}


def nearest(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the words of several markers, the nearest first: the nearer wins word by word, also over its alternative.

    A ``rate`` on a test replaces the ``concurrency`` of its class. Alternatives in one marker stay, and contradict.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        open_ = {
            word: value
            for word, value in layer.items()
            if word not in merged and _RIVALS.get(word, frozenset()).isdisjoint(merged)
            # what belongs to a replaced rate goes with it
            if not (word == "arrival" and "rate" in layer and "concurrency" in merged)
        }
        merged.update(open_)
    return merged


def _refuse_idle(words: Mapping[str, Any]) -> None:
    """Refuse what would have no effect beside the other words."""
    if "arrival" in words and not {"rate", "stages"} & set(words):
        raise ConfigError(f"arrival={shown(words['arrival'])} has no effect without rate: give one, or leave it out")


def refuse_unmeasurable(workload: Workload, limits: Iterable[Limit], margins: Iterable[str] = ()) -> None:
    """Refuse limits and margins on numbers that no load of ``workload`` can have, before one is fired.

    Raises:
        ConfigError: there is one; the line names it and says why.
    """
    limits = tuple(limits)
    for metric, written in (
        *((limit.metric, label(limit.metric, limit.stat)) for limit in limits),
        *((name.partition(".")[0], f"max_regression: {name}") for name in margins),
    ):
        if reason := unmeasurable(metric, workload):
            raise ConfigError(f"{written}: {reason}, so no such load has it; leave it out")
    if any(limit.metric == "goodput" for limit in limits) and not latency_limits(limits):
        raise ConfigError(
            "goodput counts the requests that meet every limit on a time: add one, such as max_p95_latency"
        )


def known_words() -> tuple[str, ...]:
    """Every word the marker takes, limits included."""
    return (*WORDS, *JUDGING, *limit_words())


def _refuse_unknown(words: Mapping[str, Any], valid: tuple[str, ...]) -> None:
    for word, value in words.items():
        if word not in valid:
            if word.startswith(("min_", "max_")) and word.endswith(tuple(METRICS)):
                limit_from_word(word, value)  # knows what is wrong with a limit: its direction or its statistic
            listed = ", ".join(each for each in (*WORDS, *JUDGING, *_USUAL_LIMITS) if each in valid)
            more = "and max_<stat>_<metric> such as max_p95_latency"
            raise ConfigError(f"unknown word '{word}'{did_you_mean(word, valid)} (valid: {listed}, {more})")


def _with_defaults(fields: dict[str, Any]) -> dict[str, Any]:
    """Fill what depends on other words: ``rate`` means an open loop, ``duration`` no count of requests."""
    rate, concurrency = fields.get("rate"), fields.get("concurrency")
    if rate is None:
        concurrency = fields.setdefault("concurrency", 1)
    else:
        fields.setdefault("concurrency", None)
    clients = concurrency or 1
    if fields.get("duration_s") is None:
        fields.setdefault("requests", max(DEFAULT_REQUESTS, REQUESTS_PER_CLIENT * clients))
    else:
        fields.setdefault("requests", None)
    # A warm-up would take the load that a cold start is about.
    fields.setdefault("warmup", 0 if fields.get("cold") else clients)
    endpoint = fields.setdefault("endpoint", Endpoint.CHAT if fields.get("turns", 1) > 1 else Endpoint.GENERATE)
    # A person's own prompt goes through the model's template as their users' prompts do.
    fields.setdefault("raw", endpoint is Endpoint.GENERATE and not fields.get("prompts"))
    if endpoint is Endpoint.EMBED:
        fields.setdefault("stream", False)
    return fields


def read_limits(words: Mapping[str, Any]) -> tuple[Limit, ...]:
    """Read limit words alone, as ``Result.check`` takes them; no limit is added."""
    known = limit_words()
    _refuse_unknown(words, ("limits", *known))
    limits = [limit_from_word(word, value) for word, value in words.items() if word in known]
    given = words.get("limits", {})
    if not isinstance(given, Mapping):
        raise ConfigError(f"limits={shown(given)}: expected a mapping such as {{'ttft.p95': '<= 300ms'}}")
    for key, texts in given.items():
        clauses = texts if isinstance(texts, (list, tuple)) else [texts]
        limits += [parse_limit(key if isinstance(key, str) else shown(key), clause) for clause in clauses]
    return tuple(limits)


def _with_error_limit(limits: tuple[Limit, ...]) -> tuple[Limit, ...]:
    """Add the default contract: no request may fail."""
    named = any(limit.metric == "error_rate" for limit in limits)
    return limits if named else (*limits, limit_from_word("max_error_rate", 0))


def _margins(given: object, workload: Workload) -> dict[str, float]:
    """Read ``max_regression="10%"`` (tps and ttft, where the load has them) or ``{"tps": "5%", "ttft.p95": "25%"}``."""
    written = f"max_regression={shown(given)}"
    if isinstance(given, Mapping):
        return dict(margin(key if isinstance(key, str) else shown(key), value, written) for key, value in given.items())
    share = parse_percent(given, written)
    usual = {name: share for name in GATING if not unmeasurable(name, workload)}
    if not usual:
        reason = unmeasurable(GATING[0], workload)
        raise ConfigError(f"{written} is about {' and '.join(GATING)}: {reason}; write {{'latency': {shown(given)}}}")
    return usual


def _text(word: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{word}={shown(value)}: expected a text")
    return value


def _whole(least: int) -> Callable[[str, object], int]:
    def parse(word: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
            raise ConfigError(f"{word}={shown(value)}: expected a whole number from {least} to {_MOST}")
        return value

    return parse


def _number(word: str, value: object, *, positive: bool = False) -> float:
    wrong = isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MOST
    if wrong or (positive and value == 0):
        raise ConfigError(f"{word}={shown(value)}: expected a number {'above' if positive else 'of at least'} 0")
    return float(value)  # type: ignore[arg-type]


def _duration(word: str, value: object) -> float:
    return seconds(value, word)


def _flag(word: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{word}={shown(value)}: expected True or False")
    return value


_E = TypeVar("_E", bound=enum.Enum)


def _choice(kind: type[_E]) -> Callable[[str, object], _E]:
    valid = tuple(str(member.value) for member in kind)

    def parse(word: str, value: object) -> _E:
        if isinstance(value, str) and value in valid:
            return kind(value)
        raise ConfigError(f"{word}={shown(value)}: expected one of {', '.join(valid)}{_near(value, valid)}")

    return parse


def _near(value: object, valid: tuple[str, ...]) -> str:
    return did_you_mean(value, valid) if isinstance(value, str) else ""


def _prompts(word: str, value: object) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) and text for text in texts):
        expected = "a text" if word == "prompt" else "a list of texts"
        raise ConfigError(f"{word}={shown(value)}: expected {expected}, not empty")
    return tuple(texts)


def _think_time(word: str, value: object) -> tuple[float, float]:
    """Read seconds, or a pair of bounds between which each pause is drawn."""
    if isinstance(value, (list, tuple)) and len(value) == 2:
        low, high = seconds(value[0], word), seconds(value[1], word)
        if low > high:
            raise ConfigError(f"{word}={shown(value)}: the lower bound comes first")
        return low, high
    pause = seconds(value, word)
    return pause, pause


def _think(word: str, value: object) -> bool | str:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in _THINK_LEVELS:
        return value
    raise ConfigError(f"{word}={shown(value)}: expected True, False, {', '.join(map(repr, _THINK_LEVELS))}")


def _keep_alive(word: str, value: object) -> str | float:
    """Read seconds, or a duration as Go writes it, which the server parses: ``"1h30m"``, ``"-1s"``."""
    if isinstance(value, str) and _GO_DURATION.fullmatch(value):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _MOST:
        return float(value)
    raise ConfigError(f"{word}={shown(value)}: expected seconds or a duration such as '10m'; -1 keeps the model loaded")


def _options(word: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{word}={shown(value)}: expected a mapping of Ollama options such as {{'num_thread': 4}}")
    try:
        json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ConfigError(f"{word}={shown(value)}: a value is nothing that JSON can say") from None
    return dict(value)


def _timeouts(word: str, value: object) -> Timeouts:
    """Read the total in seconds, or a mapping with any of ``TIMEOUT_PARTS``."""
    given = value if isinstance(value, Mapping) else {"total": value}
    for part in given:
        if not isinstance(part, str) or part not in TIMEOUT_PARTS:
            valid = ", ".join(TIMEOUT_PARTS)
            raise ConfigError(f"{word}: no timeout {shown(part)}{_near(part, TIMEOUT_PARTS)} (valid: {valid})")
    named = isinstance(value, Mapping)
    limits = {f"{part}_s": seconds(limit, f"{word}[{part!r}]" if named else word) for part, limit in given.items()}
    if any(limit == 0 for limit in limits.values()):
        raise ConfigError(f"{word}={shown(value)}: a timeout must be above 0")
    return Timeouts(**limits)


def _to(field: str, parse: Callable[[str, Any], Any]) -> Callable[[str, Any], dict[str, Any]]:
    return lambda word, value: {field: parse(word, value)}


WORDS: dict[str, Callable[[str, Any], dict[str, Any]]] = {
    "model": _to("model", _text),
    "endpoint": _to("endpoint", _choice(Endpoint)),
    "stream": _to("stream", _flag),
    "concurrency": _to("concurrency", _whole(1)),
    "rate": _to("rate", lambda word, value: _number(word, value, positive=True)),
    "arrival": _to("arrival", _choice(Arrival)),
    "stages": shapes.stages,
    "requests": _to("requests", _whole(1)),
    "duration": _to("duration_s", _duration),
    "drain": _to("drain_s", _duration),
    "warmup": _to("warmup", _whole(0)),
    "think_time": _to("think_time_s", _think_time),
    "prompt": _to("prompts", _prompts),
    "prompts": lambda word, value: (
        shapes.mix(word, value) if isinstance(value, Mapping) else {"prompts": _prompts(word, value)}
    ),
    "dataset": shapes.dataset,
    "turns": _to("turns", _whole(1)),
    "images": shapes.images,
    "prompt_words": _to("prompt_words", _whole(1)),
    "prefix": _to("prefix", _choice(Prefix)),
    "raw": _to("raw", _flag),
    "num_predict": _to("num_predict", _whole(1)),
    "num_ctx": _to("num_ctx", _whole(1)),
    "temperature": _to("temperature", _number),
    "seed": _to("seed", _whole(0)),
    "think": _to("think", _think),
    "keep_alive": _to("keep_alive", _keep_alive),
    "options": _to("options", _options),
    "cold": _to("cold", _flag),
    "balance": _to("balance", _choice(Balance)),
    "timeout": _to("timeouts", _timeouts),
    "retries": _to("retries", _whole(0)),
    "reuse_connections": _to("reuse_connections", _flag),
}
"""Words that shape the load; each maps to a field of ``Workload``."""

JUDGING = ("limits", "max_regression")
"""Words that judge it, beside the ``min_``/``max_`` words of ``verdict.limits``."""
