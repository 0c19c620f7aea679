"""The tuned constants of the gate as one value: each with its meaning and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

_SIMULATED = "simulated: benchmarks/verdicts.py"


def _define(value: Any, meaning: str, origin: str) -> Any:
    return field(default=value, metadata={"meaning": meaning, "origin": origin})


class ParameterDescription(NamedTuple):
    """One constant: the field of ``GateParameters``, its value, what it means and where it comes from."""

    name: str
    value: float
    meaning: str
    origin: str


@dataclass(frozen=True)
class GateParameters:
    """The constants of the gate.

    A margin is the accepted slowdown of a metric; an expected deviation is its usual standard deviation between runs.
    Both differ per metric and belong to ``MetricPolicy``.

    Raises:
        ValueError: a probability outside 0 to 1, or a count, factor or scale that is not above 0.
    """

    window: int = _define(20, "stored runs that are compared with, the newest ones", _SIMULATED)
    max_runs: int = _define(3, "candidate runs per verdict, at most", _SIMULATED)
    alpha: float = _define(0.01, "significance level of one (test, metric) pair", "convention for a gate")
    family_alpha: float = _define(
        0.03,
        "chance that an unchanged build fails in any of its gating (test, metric) pairs",
        "below the usual 0.05, because consecutive runs are correlated and the p values assume independence",
    )
    beta: float = _define(0.045, "chance that one look accepts a slowdown of the whole margin", _SIMULATED)
    single_alpha: float = _define(0.35, "p above which a single run contradicts a change", _SIMULATED)
    gross_margins: float = _define(4.0, "margins from which two candidate runs are enough for regressed", _SIMULATED)
    power: float = _define(0.80, "power at which the detectable change is stated", "convention")
    max_named_runs: int = _define(20, "candidate runs, at most, that an unsure verdict suggests", "practical limit")
    prior_df: float = _define(3.0, "runs that the expected deviation is worth in the moderated variance", _SIMULATED)
    unshared_deviations: float = _define(
        1.2, "expected deviations beyond which variance between runs counts as shared by a build", _SIMULATED
    )
    shared_margins: float = _define(
        2.5, "margins from which shared variance does not explain a difference", "recorded runs of a real server"
    )
    shared_deviations: float = _define(
        2.0, "shared deviations that a difference needs as well for that", "recorded runs of a real server"
    )
    filter_min_runs: int = _define(5, "stored runs that the Hampel filter needs", "below it the MAD is unreliable")
    filter_deviations: float = _define(3.5, "deviations from the median that the Hampel filter allows", "Hampel 1974")
    filter_min_scale: float = _define(
        0.01, "smallest deviation that the Hampel filter assumes (relative)", "quiet machines"
    )
    filter_max_dropped: float = _define(
        0.2, "share of the stored runs that the Hampel filter may drop", "more are a second mode, not outliers"
    )

    def __post_init__(self) -> None:
        probabilities = (self.alpha, self.family_alpha, self.beta, self.single_alpha, self.power)
        if not (all(0.0 < each < 1.0 for each in probabilities) and all(each.value > 0 for each in self.describe())):
            raise ValueError(f"{self}: probabilities must be between 0 and 1, everything else above 0")

    def describe(self) -> tuple[ParameterDescription, ...]:
        """Return every constant with its meaning and its origin, in the order of the fields."""
        return tuple(
            ParameterDescription(each.name, getattr(self, each.name), each.metadata["meaning"], each.metadata["origin"])
            for each in fields(self)
        )


GATE_PARAMETERS = GateParameters()
"""The constants that every verdict uses."""
