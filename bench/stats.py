"""
Medians and their intervals.

Owns the arithmetic of the bench. Knows nothing of what the numbers are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

RESAMPLES = 10_000
SEED = 20261120
"""The same rounds give the same interval, whoever computes it."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """
    A median with its 95 % interval.

    Args:
        median: of the values of the rounds.
        low: 2.5 % quantile of the bootstrapped median.
        high: 97.5 % quantile of it.
        rounds: how many values there were.
    """

    median: float
    low: float
    high: float
    rounds: int


def estimate(values: Sequence[float]) -> Estimate:
    """
    Estimate the median of *values* with a 95 % interval, by the percentile bootstrap.

    Raises:
        statistics.StatisticsError: there are no values.
    """
    dice = random.Random(SEED)
    size = len(values)
    medians = sorted(median(dice.choices(values, k=size)) for _ in range(RESAMPLES))
    return Estimate(
        median(values), medians[RESAMPLES * 25 // 1000], medians[RESAMPLES * 975 // 1000], size
    )


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which *part* (0 to 1) of *values* lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
