"""The metrics of a run, computed from its samples. Pure: a run in, numbers out; nothing of it is stored."""

from pytest_ollama_perf.summary.numbers import MetricSummary, Summary, summarise, unmeasurable
from pytest_ollama_perf.summary.values import request_values

__all__ = ["MetricSummary", "Summary", "request_values", "summarise", "unmeasurable"]
