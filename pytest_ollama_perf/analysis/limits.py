"""Absolute limits such as ``{"ttft.p95": "<= 300ms"}`` or ``min_tps=150``, parsed and checked."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from statistics import mean
from types import MappingProxyType

import msgspec

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.sample import Outcome, Sample
from pytest_ollama_perf.core.text import safe_repr, sanitize, suggest_match
from pytest_ollama_perf.core.verdict import Hint, HintCode
from pytest_ollama_perf.metrics import METRICS, PERCENTILES, STATS, Metric, Shape, Unit, format_count, format_seconds
from pytest_ollama_perf.metrics.summary import Summary, has_short_steady_window


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """One limit: ``stat`` of ``metric`` (``""`` for the pooled or per-run value) ``op`` ``bound``.

    ``op`` is ``<=`` for metrics where lower is better and ``>=`` for rates; ``bound`` is in the metric's own unit;
    ``text`` is what was written.
    """

    metric: str
    stat: str
    op: str
    bound: float
    text: str


def parse_limit(key: str, text: object) -> Limit:
    """Return the limit that ``key`` (``ttft.p95``, ``tps``) and ``text`` (``<= 300ms``) state.

    The statistic may be in the text instead: ``parse_limit("ttft", "p95 <= 300ms")``.

    Raises:
        ConfigError: metric, statistic, direction, number or unit is wrong; one line says what would be right.
    """
    written = f"{key!r}: {safe_repr(text)}"
    name, _, stat = key.strip().partition(".")
    metric = _get_metric(name, written)
    match = _LIMIT_PATTERN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ConfigError(f"limit {written}: expected a text such as '{_format_example(metric)}'")
    stat = _check_statistic(metric, _choose_statistic(stat, match["stat"] or "", written), written)
    _check_direction(metric, match["op"], written)
    bound = _parse_bound(metric, match["number"], match["unit"], written)
    return Limit(
        metric=name, stat=stat, op=_get_op(metric), bound=bound, text=text.strip() if isinstance(text, str) else ""
    )


def parse_limit_option(word: str, value: object) -> Limit:
    """Return the limit of a marker argument: ``min_tps=150``, ``max_p95_latency=2.5`` (seconds) or ``="300ms"``.

    Raises:
        ConfigError: there is no such argument, or the value is not what its metric takes.
    """
    written = f"{word}={safe_repr(value)}"
    if word not in _collect_limit_options():
        raise ConfigError(f"{written}: {_explain_unknown_option(word)}")
    metric, stat = _collect_limit_options()[word]
    bound = _parse_option_value(metric, value, written)
    return Limit(metric=metric.name, stat=stat, op=_get_op(metric), bound=bound, text=written)


def list_limit_options() -> tuple[str, ...]:
    """Return every argument that ``parse_limit_option`` accepts."""
    return tuple(_collect_limit_options())


def get_limit_metric(name: str) -> Metric:
    """Return the metric of a limit argument such as ``max_p95_ttft``."""
    return _collect_limit_options()[name][0]


def collect_latency_limits(limits: Iterable[Limit]) -> dict[str, float]:
    """Return what a single request has to meet for goodput: metric -> seconds, the tightest of its limits.

    Limits on percentiles and on the maximum say something about a single request; one on the mean does not.
    """
    found: dict[str, float] = {}
    for limit in limits:
        if METRICS[limit.metric].unit is Unit.SECONDS and (limit.stat in PERCENTILES or limit.stat == "max"):
            found[limit.metric] = min(limit.bound, found.get(limit.metric, math.inf))
    return found


_LIMIT_PATTERN = re.compile(
    r"\s*(?:(?P<stat>[A-Za-z]\w*)\s*)?(?P<op><=|>=|==|=|<|>)\s*(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf)\w*)"
    r"\s*(?P<unit>[^\s\d]\S*)?\s*"
)
_QUANTITY_PATTERN = re.compile(r"\s*(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?P<unit>[^\s\d]\S*)?\s*")

_MILLI, _MICRO = Decimal("1e-3"), Decimal("1e-6")
_UNIT_SCALES: Mapping[Unit, Mapping[str, Decimal]] = MappingProxyType(
    {
        Unit.SECONDS: {"s": Decimal(1), "ms": _MILLI, "us": _MICRO, "µs": _MICRO, "min": Decimal(60)},
        Unit.TOKENS_PER_SECOND: {"": Decimal(1), "tokens/s": Decimal(1), "/s": Decimal(1)},
        Unit.REQUESTS_PER_SECOND: {"": Decimal(1), "requests/s": Decimal(1), "/s": Decimal(1)},
        Unit.SHARE: {"": Decimal(1), "%": Decimal("0.01")},
        Unit.BYTES: {
            **{"KiB": Decimal(2**10), "MiB": Decimal(2**20), "GiB": Decimal(2**30), "TiB": Decimal(2**40)},
            **{"kB": Decimal(10**3), "MB": Decimal(10**6), "GB": Decimal(10**9), "TB": Decimal(10**12)},
            "B": Decimal(1),
        },
        Unit.CELSIUS: {"": Decimal(1), "°C": Decimal(1), "C": Decimal(1)},
        Unit.JOULES_PER_TOKEN: {"": Decimal(1), "J/token": Decimal(1), "J": Decimal(1), "mJ": _MILLI},
    }
)


EXAMPLE_BOUNDS: Mapping[Unit, str] = MappingProxyType(
    {
        Unit.SECONDS: "300ms",
        Unit.TOKENS_PER_SECOND: "150",
        Unit.REQUESTS_PER_SECOND: "2.5",
        Unit.SHARE: "1%",
        Unit.BYTES: "20GiB",
        Unit.CELSIUS: "85",
        Unit.JOULES_PER_TOKEN: "1.5",
    }
)
"""An example bound for each unit."""


MAX_BARE_SECONDS: Mapping[str, float] = MappingProxyType({"load_time": 600.0})
"""The largest time limit that may be written without a unit; 60 for other metrics. A larger number usually was meant as
milliseconds."""


def _get_metric(name: str, written: str) -> Metric:
    if name not in METRICS:
        near = suggest_match(name, METRICS)
        raise ConfigError(f"limit {written}: unknown metric '{name}'{near or '; valid: ' + ', '.join(METRICS)}")
    return METRICS[name]


def _choose_statistic(in_key: str, in_text: str, written: str) -> str:
    if in_key and in_text:
        raise ConfigError(f"limit {written}: duplicate statistic: '{in_key}' and '{in_text}'")
    return in_key or in_text


def _check_statistic(metric: Metric, stat: str, written: str) -> str:
    if not stat and metric.shape is Shape.PER_REQUEST:
        raise ConfigError(
            f"limit {written}: {metric.name} has one value per request, say which statistic: "
            f"'{metric.name}.p95' (on the marker max_p95_{metric.name}); valid: {', '.join(STATS)}"
        )
    if stat and metric.shape is Shape.PER_RUN:
        raise ConfigError(
            f"limit {written}: {metric.name} is one number per run; write '{metric.name}' without '{stat}'"
        )
    if stat and stat not in STATS:
        near = suggest_match(stat, STATS)
        raise ConfigError(f"limit {written}: unknown statistic '{stat}'{near}; valid: {', '.join(STATS)}")
    return stat


def _check_direction(metric: Metric, op: str, written: str) -> None:
    if op != _get_op(metric):
        raise ConfigError(
            f"limit {written}: {_describe_direction(metric)}, so its limit is written '{_get_op(metric)}'"
        )


def _parse_bound(metric: Metric, number: str, unit: str | None, written: str) -> float:
    scales = _UNIT_SCALES[metric.unit]
    if (unit or "") not in scales:
        units = ", ".join(repr(name) for name in scales if name)
        wrong = f"'{unit}' is no unit of {metric.name}" if unit else f"{metric.name} needs a unit"
        raise ConfigError(f"limit {written}: {wrong}; valid: {units}, as in '{_format_example(metric)}'")
    return _check_range(metric, float(Decimal(number) * scales[unit or ""]), written)


def _parse_option_value(metric: Metric, value: object, written: str) -> float:
    if isinstance(value, str) and (match := _QUANTITY_PATTERN.fullmatch(value)):
        return _parse_bound(metric, match["number"], match["unit"], written)
    unit_needed = metric.unit is Unit.BYTES  # a plain 20 never means twenty bytes
    if isinstance(value, bool) or not isinstance(value, (int, float)) or unit_needed:
        raise ConfigError(f"limit {written}: expected {_describe_expected(metric)}")
    if metric.unit is Unit.SECONDS and MAX_BARE_SECONDS.get(metric.name, 60.0) < value < math.inf:
        shown = safe_repr(value)
        raise ConfigError(f"limit {written}: a number without a unit is in seconds; write '{shown}ms' or '{shown}s'")
    return _check_range(metric, float(Decimal(value)), written)


def _check_range(metric: Metric, bound: float, written: str) -> float:
    if not math.isfinite(bound) or bound < 0:
        raise ConfigError(
            f"limit {written}: a limit is a number from 0 up, not {bound:g}; expected {_describe_expected(metric)}"
        )
    if metric.unit is Unit.SHARE and bound > 1:
        raise ConfigError(
            f"limit {written}: {bound:g} is more than every request; expected {_describe_expected(metric)}"
        )
    return bound


def _describe_expected(metric: Metric) -> str:
    return {
        Unit.SECONDS: "seconds such as 2.5, or a text with a unit such as '300ms'",
        Unit.TOKENS_PER_SECOND: "tokens per second, such as 150",
        Unit.REQUESTS_PER_SECOND: "requests per second, such as 2.5",
        Unit.SHARE: "a share from 0 to 1 such as 0.01, or a text such as '1%'",
        Unit.BYTES: "a text with a unit such as '20GiB'",
        Unit.CELSIUS: "degrees Celsius, such as 85",
        Unit.JOULES_PER_TOKEN: "joules per token, such as 1.5",
    }[metric.unit]


def _format_example(metric: Metric) -> str:
    return f"{_get_op(metric)} {EXAMPLE_BOUNDS[metric.unit]}"


def _get_op(metric: Metric) -> str:
    return ">=" if metric.is_higher_better else "<="


def _describe_direction(metric: Metric) -> str:
    return f"{metric.better.value} is better for {metric.name}"


def _list_options(metric: Metric) -> dict[str, tuple[Metric, str]]:
    side = "min" if metric.is_higher_better else "max"
    words = {} if metric.shape is Shape.PER_REQUEST else {f"{side}_{metric.name}": (metric, "")}
    stats = () if metric.shape is Shape.PER_RUN else STATS
    return words | {f"{side}_{stat}_{metric.name}": (metric, stat) for stat in stats}


def _collect_limit_options() -> dict[str, tuple[Metric, str]]:
    """Return metric and statistic of every limit argument; other plugins may add metrics at any time."""
    return {word: what for metric in METRICS.values() for word, what in _list_options(metric).items()}


def _explain_unknown_option(word: str) -> str:
    """Explain why there is no such argument: wrong direction, missing statistic or spelling."""
    side, _, rest = word.partition("_")
    named = next(
        (name for name in sorted(METRICS, key=len, reverse=True) if rest == name or rest.endswith(f"_{name}")), ""
    )
    stat = rest[: -len(named) - 1] if named else ""
    if not named or side not in {"min", "max"}:
        return f"unknown limit '{word}'{suggest_match(word, _collect_limit_options())}"
    metric = METRICS[named]
    right = "min" if metric.is_higher_better else "max"
    if side != right:
        instead = f"{right}_{rest}"
        return (
            f"{_describe_direction(metric)}; write "
            f"{instead if instead in _collect_limit_options() else ' or '.join(_suggest_options(metric))}"
        )
    if not stat:
        return f"{named} has one value per request, say which statistic: {', '.join(_suggest_options(metric))}"
    if metric.shape is Shape.PER_RUN:
        return f"{named} is one number per run; write {right}_{named}"
    return f"unknown statistic '{stat}'{suggest_match(stat, STATS)}; valid: {', '.join(STATS)}"


def _suggest_options(metric: Metric) -> tuple[str, ...]:
    words = _list_options(metric)
    return tuple(word for word, (_, stat) in words.items() if stat in {"", "p50", "p95"})


def find_hints(run: Run, summary: Summary) -> tuple[Hint, ...]:
    """Return the hints of ``run``."""
    return (*_suggest_slots(run), *_explain_refusals(summary), *_explain_whole_run(run, summary))


_REQUESTS_PER_CLIENT = 3
"""Requests per client from which the time in which all clients are busy usually is long enough."""


def _explain_whole_run(run: Run, summary: Summary) -> Iterator[Hint]:
    if summary.ok and run.workload.rate is None and has_short_steady_window(run):
        text = (
            "throughput covers the whole run, because the time in which all clients were busy is too short; "
            f"use {_REQUESTS_PER_CLIENT * run.workload.clients} requests or more"
        )
        yield Hint(code=HintCode.SHORT_STEADY_WINDOW, text=text)


def _suggest_slots(run: Run) -> Iterator[Hint]:
    """Name the number of slots if requests clearly waited for one."""
    urls = sorted({sample.url for sample in run.measured})
    for url in urls:
        samples = [sample for sample in run.measured if sample.url == url and sample.ok]
        slots = count_slots(samples)
        if slots is None:
            continue
        where = f"{sanitize(url)}: " if len(urls) > 1 else ""
        waited = format_seconds(mean(sample.counters.queue_ns or 0 for sample in samples) / 1e9)
        ran = "requests ran one at a time" if slots == 1 else f"at most {slots} requests ran concurrently"
        text = f"{where}{ran} and waited {waited} for a slot; OLLAMA_NUM_PARALLEL is probably {slots}"
        yield Hint(code=HintCode.SLOTS, text=text)


_MIN_WAITING_SHARE = 0.2
_EDGE_SHARE = 0.05


def count_slots(samples: Sequence[Sample]) -> int | None:
    """Return how many of one server's requests ran at the same time, or ``None`` where none had to wait for a slot.

    A request ran for the last ``prompt_eval + eval`` of its time; 5 % at both ends are left out, since clocks and
    counters do not meet exactly. Waiting means a fifth of the time spent running, on average, while more requests were
    in flight than ran.
    """
    served = [sample for sample in samples if _compute_running_ns(sample) and sample.counters.queue_ns is not None]
    if len(served) < 2:
        return None
    if sum(sample.counters.queue_ns or 0 for sample in served) < _MIN_WAITING_SHARE * sum(
        map(_compute_running_ns, served)
    ):
        return None
    slots = _count_overlap(
        _trim_span(sample.done_ns - _compute_running_ns(sample), sample.done_ns) for sample in served
    )
    return slots if slots < _count_overlap((sample.sent_ns, sample.done_ns) for sample in served) else None


def _compute_running_ns(sample: Sample) -> int:
    return (sample.counters.prompt_eval_duration_ns or 0) + (sample.counters.eval_duration_ns or 0)


def _trim_span(start: int, end: int) -> tuple[int, int]:
    edge = int(_EDGE_SHARE * (end - start))
    return start + edge, end - edge


def _count_overlap(spans: Iterable[tuple[int, int]]) -> int:
    """Return the largest number of spans that overlap; an end at a start comes first."""
    steps = sorted(step for start, end in spans for step in ((start, 1), (end, -1)))
    at_once = most = 0
    for _, change in steps:
        at_once += change
        most = max(most, at_once)
    return most


def _explain_refusals(summary: Summary) -> Iterator[Hint]:
    busy = summary.outcomes.get(Outcome.BUSY.value, 0)
    if busy:
        text = f"the server turned {format_count(busy, 'request')} away: its OLLAMA_MAX_QUEUE was full during a load"
        yield Hint(code=HintCode.SERVER_BUSY, text=text)
    slow = summary.outcomes.get(Outcome.FIRST_TOKEN_TIMEOUT.value, 0)
    if slow:
        text = f"{format_count(slow, 'request')} got no first token in time; raise the timeout or lower the load"
        yield Hint(code=HintCode.FIRST_TOKEN_TIMEOUT, text=text)
