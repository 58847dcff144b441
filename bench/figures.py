"""
The figures that come out of a run, and the targets they are held against.

Owns which ratios are formed, and when a target is met: when the 95 % interval reaches it. What is
compared with the limit holds for every framework.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from .rounds import BUSY_CORES, Measure, Sample, Samples
from .setting import Kind
from .stats import Estimate, estimate


@dataclass(frozen=True, slots=True)
class Target:
    """
    A bound that a figure should keep.

    Args:
        bound: the number.
        at_least: whether the figure should be above it; else below.
    """

    bound: float
    at_least: bool = False

    def met(self, figure: Estimate) -> bool:
        """Whether the interval of *figure* reaches the bound."""
        return figure.high >= self.bound if self.at_least else figure.low <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Metric:
    """
    One thing that a run of a measure tells.

    Args:
        name: as a newcomer reads it.
        measure: the load it is taken under.
        field: of `Sample`.
        unit: of the absolute figure.
    """

    name: str
    measure: Measure
    field: str
    unit: str


METRICS = (
    Metric("requests per second, 32 at once", "many", "rate", "/s"),
    Metric("median latency, 1 at a time", "one", "p50", "us"),
    Metric("99th percentile, 1 at a time", "one", "p99", "us"),
    Metric("CPU per request, 1 at a time", "one", "cpu", "us"),
    Metric("CPU per request, 32 at once", "many", "cpu", "us"),
    Metric("requests per second on one core", "core", "rate", "/s"),
    Metric("the same, Envoy with one thread", "core_one", "rate", "/s"),
    Metric("new connections per second", "new", "rate", "/s"),
    Metric("CPU per new connection", "new", "cpu", "us"),
)

_TO_LIMIT: tuple[tuple[Measure, str, Target], ...] = (
    ("many", "rate", Target(0.97, at_least=True)),
    ("one", "p50", Target(1.03)),
    ("new", "cpu", Target(1.02)),
)
_TO_ENVOY: tuple[tuple[str, Measure, str, Target], ...] = (
    ("starlette", "one", "p50", Target(0.53)),
    ("flask", "one", "p50", Target(0.77)),
    ("starlette", "one", "cpu", Target(0.50)),
    ("starlette", "core", "rate", Target(1.9, at_least=True)),
)


@dataclass(frozen=True, slots=True)
class Row:
    """
    One metric of one application in all settings.

    Args:
        framework: of the application.
        metric: which.
        absolute: median over the rounds, per setting.
        ratios: of the mesh to the other settings.
    """

    framework: str
    metric: Metric
    absolute: Mapping[Kind, float]
    ratios: Mapping[Kind, Estimate]

    def target(self, other: Kind) -> Target | None:
        """The target of the ratio to *other*, where there is one."""
        wanted = (self.metric.measure, self.metric.field)
        if other == "limit":
            known = {(measure, field): target for measure, field, target in _TO_LIMIT}
        else:
            known = {(m, field): t for where, m, field, t in _TO_ENVOY if where == self.framework}
        return known.get(wanted)


@dataclass(frozen=True, slots=True)
class Figure:
    """
    One figure that is not a ratio of rounds.

    Args:
        name: as a newcomer reads it.
        unit: of the estimate.
        estimate: median and interval.
        target: where there is one.
        note: what else a reader should know.
    """

    name: str
    unit: str
    estimate: Estimate
    target: Target | None = None
    note: str = ""


def rows(samples: Samples) -> list[Row]:
    """Form the ratios, round by round, and the medians."""
    found = []
    for framework in dict.fromkeys(key[0] for key in samples):
        for metric in METRICS:
            values = {
                kind: [getattr(sample, metric.field) for sample in taken]
                for (where, measure, kind), taken in samples.items()
                if where == framework and measure == metric.measure
            }
            if values:
                found.append(_row(framework, metric, values))
    return found


def _row(framework: str, metric: Metric, values: Mapping[Kind, list[float]]) -> Row:
    others: tuple[Kind, ...] = ("limit", "envoy")
    ratios = {
        other: estimate([m / o for m, o in zip(values["mesh"], values[other], strict=True)])
        for other in others
    }
    return Row(framework, metric, {kind: median(v) for kind, v in values.items()}, ratios)


def disturbed(samples: Samples) -> tuple[int, int]:
    """How many runs were taken while other programs were at work, and how many there are."""
    taken: list[Sample] = [sample for each in samples.values() for sample in each]
    return sum(sample.foreign > BUSY_CORES for sample in taken), len(taken)


def as_json(
    machine: Mapping[str, str],
    samples: Samples,
    table: Iterable[Row],
    figures: Iterable[Figure],
) -> dict[str, Any]:
    """Everything that was measured, as values fit for JSON."""
    return {
        "machine": dict(machine),
        "ratios": [_row_json(row) for row in table],
        "figures": [_figure_json(figure) for figure in figures],
        "rounds": [
            {"framework": key[0], "measure": key[1], "setting": key[2], **asdict(sample)}
            for key, taken in samples.items()
            for sample in taken
        ],
    }


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "framework": row.framework,
        "metric": row.metric.name,
        "unit": row.metric.unit,
        "absolute": dict(row.absolute),
        "mesh_to": {
            other: {**asdict(ratio), **_target_json(row.target(other), ratio)}
            for other, ratio in row.ratios.items()
        },
    }


def _figure_json(figure: Figure) -> dict[str, Any]:
    held = _target_json(figure.target, figure.estimate)
    said = {"name": figure.name, "unit": figure.unit, "note": figure.note}
    return {**said, **asdict(figure.estimate), **held}


def _target_json(target: Target | None, found: Estimate) -> dict[str, Any]:
    return {} if target is None else {"target": str(target), "met": target.met(found)}
