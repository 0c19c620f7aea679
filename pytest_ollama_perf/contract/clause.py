"""One clause of a contract: a limit on a number, or how much worse than its history the number may be."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.metric import METRICS
from pytest_ollama_perf.settings import margin
from pytest_ollama_perf.verdict.limits import EXAMPLES, Limit, parse_limit
from pytest_ollama_perf.words import shown

NO_ERRORS = "error_rate <= 0%"
"""What every contract promises that says nothing else of errors."""

_REGRESSION = re.compile(r"\s*(?:(?P<stat>\w+)\s+)?regress\w*\s*(?P<op><=|>=|==|=|<|>)?\s*(?P<share>.*?)\s*")


@dataclass(frozen=True)
class Clause:
    """``name`` is how it reads, ``ttft p95 <= 300ms``; ``line`` where it stands, 0 for the one that nobody wrote.

    Exactly one of ``limit``, ``margin`` and ``held`` is set. A margin is a number's name, ``ttft.p95``, and a share;
    ``held`` is what an experiment calls the number it found.
    """

    name: str
    line: int
    limit: Limit | None = None
    margin: tuple[str, float] | None = None
    held: str = ""


def read_clause(metric: str, stat: str, text: object, line: int = 0) -> Clause:
    """Read ``p95 <= 300ms`` or ``regression <= 20%`` of ``metric``; ``stat`` is what the key named, or nothing.

    Raises:
        ConfigError: it is no clause; the message says what would be one.
    """
    key = f"{metric}.{stat}" if stat else metric
    if not isinstance(text, str):
        raise ConfigError(
            f"{key} = {shown(text)}: expected a text such as '{example(metric)}', or a list of such texts"
        )
    if match := _REGRESSION.fullmatch(text):
        return _regression(metric, stat, match, text, line)
    limit = parse_limit(key, text)
    return Clause(" ".join(f"{metric} {stat} {text}".split()), line, limit=limit)


def _regression(metric: str, stat: str, match: re.Match[str], text: str, line: int) -> Clause:
    written = f"{metric} = {shown(text)}"
    if stat and match["stat"]:
        raise ConfigError(f"{written}: the statistic stands twice, '{stat}' and '{match['stat']}'; write it once")
    if match["op"] != "<=" or not re.search(r"\bregression\b", text):
        raise ConfigError(f"{written}: write it as 'regression <= 20%'")
    stat = stat or match["stat"] or ""
    name, share = margin(f"{metric}.{stat}" if stat else metric, match["share"], written)
    return Clause(" ".join(f"{metric} {stat} regression <= {match['share']}".split()), line, margin=(name, share))


def example(metric: str) -> str:
    """Return a clause as it may be written for ``metric``."""
    found = METRICS[metric]
    stat = "p95 " if found.shape.value == "per request" else ""
    return f"{stat}{'>=' if found.is_rate else '<='} {EXAMPLES[found.unit]}"


def marker_word_hint(word: str) -> str:
    """Return how a limit word of the marker, ``min_tps`` or ``max_p95_ttft``, is written in a contract."""
    side, _, rest = word.partition("_")
    metric = next((name for name in METRICS if rest == name or rest.endswith(f"_{name}")), "")
    if side not in {"min", "max"} or not metric:
        return ""
    stat = rest.removesuffix(metric).rstrip("_")
    clause = example(metric)
    return f"; write {metric} = '{clause.replace('p95', stat) if stat else clause}'"
