"""
Who is left alone for a while, and how much is tried again at most.

Owns the ejection of instances that fail (`Health`, `Breaking`), and the retry budget. Knows neither
calls nor sockets.

Theory. An instance is *closed* (in use), *open* (ejected) or *half-open*: its time is over, and it
gets one trial call at a time; success closes it, failure ejects it for longer. A certain part of
the instances can be ejected at once, at least one; the last one stays in use, since a call that may
fail is better than one that must, unless all may be ejected or somebody stands in for them. What a
policy refuses (403 by intention) is nobody's failure.

Source: Envoy, "Outlier detection" and "Retry budgets"; Consul, ``PassiveHealthCheck``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

BreakerState = Literal["closed", "open", "half-open"]

MAX_EJECTION = 300.0
"""Longest ejection in seconds. Source: Envoy, ``max_ejection_time``."""


@dataclass(frozen=True, slots=True)
class Breaking:
    """
    When an instance is ejected; the defaults are Consul's and Envoy's.

    Args:
        max_failures: failures in a row.
        enforcing: percent of the detected that are ejected; 0 switches ejection off.
        max_percent: percent of the instances ejected at once.
        base_time: seconds of the first ejection; the second takes twice as long, and so on.
        interval: seconds in which one earlier ejection is forgiven.
    """

    max_failures: int = 5
    enforcing: int = 100
    max_percent: int = 10
    base_time: float = 30.0
    interval: float = 10.0

    def may_eject(self, ejected: int, known: int, stands_in: bool) -> bool:
        """
        Tell whether one instance more may be ejected.

        Args:
            ejected: instances ejected now.
            known: all instances.
            stands_in: whether there are others to fail over to.
        """
        if self.max_percent < 100 and not stands_in and known - ejected <= 1:
            return False
        return ejected == 0 or 100 * (ejected + 1) <= self.max_percent * known


@dataclass(frozen=True, slots=True)
class Health:
    """
    What is known of one instance.

    Args:
        failures: in a row.
        until: moment its ejection ends; ``None`` when it is in use.
        ejections: how often it was ejected of late.
        closed_at: moment it was taken back into use.
    """

    failures: int = 0
    until: float | None = None
    ejections: int = 0
    closed_at: float = 0.0

    def state(self, now: float) -> BreakerState:
        """Whether it is used, ejected, or on trial."""
        if self.until is None:
            return "closed"
        return "open" if now < self.until else "half-open"


WELL = Health()


def fail(health: Health, breaking: Breaking, now: float, dice: float, may_eject: bool) -> Health:
    """
    Count a failure.

    Args:
        health: until now.
        breaking: the rule.
        now: this moment.
        dice: decides whether a detection is enforced.
        may_eject: whether one more may be ejected; one that was on trial may, anyway.

    Returns:
        Its health from now on.
    """
    state = health.state(now)
    if state == "open":
        return health  # a call that was under way when it was ejected
    failures = health.failures + 1
    if state == "closed":
        if failures < breaking.max_failures or not may_eject or dice * 100 >= breaking.enforcing:
            return replace(health, failures=failures)
        forgiven = int((now - health.closed_at) / breaking.interval) if breaking.interval else 0
        health = replace(health, ejections=max(0, health.ejections - forgiven))
    ejections = health.ejections + 1
    time = max(breaking.base_time, min(breaking.base_time * ejections, MAX_EJECTION))
    return replace(health, failures=failures, until=now + time, ejections=ejections)


def succeed(health: Health, now: float) -> Health:
    """Count a success: failures are no longer in a row, and a trial is passed."""
    if health.until is None:
        return health if not health.failures else replace(health, failures=0)
    if health.state(now) == "open":
        return health  # a call from before: it proves nothing about now
    return Health(0, None, health.ejections, now)


class Budget:
    """
    How many retries there may be.

    In any `window`, retries are at most *ratio* of the calls, plus *floor*: a service that is down
    altogether gets hardly more load than before, and a rarely used one still gets its retry. What
    never reached an instance is not counted: asking another one is no load for those in trouble.

    Args:
        ratio: retries per call.
        floor: retries that are always allowed in a window.
        window: seconds, looked at in tenths.
    """

    PARTS = 10

    def __init__(self, ratio: float = 0.2, floor: int = 10, window: float = 10.0) -> None:
        self._ratio = ratio
        self._floor = floor
        self._tick = window / self.PARTS
        self._calls = [0] * self.PARTS
        self._retries = [0] * self.PARTS
        self._now = -1

    def count(self, now: float) -> None:
        """A call begins."""
        self._calls[self._turn(now)] += 1

    @property
    def last(self) -> float:
        """The moment of the last call, or retry, to a tenth of the window; long ago: never."""
        return self._now * self._tick if self._now >= 0 else -math.inf

    def take(self, now: float) -> bool:
        """Whether there may be a retry; it is counted then."""
        part = self._turn(now)
        if sum(self._retries) >= self._floor + self._ratio * sum(self._calls):
            return False
        self._retries[part] += 1
        return True

    def _turn(self, now: float) -> int:
        at = int(now / self._tick)
        if at != self._now:
            for gone in range(max(self._now + 1, at - self.PARTS + 1), at + 1):
                self._calls[gone % self.PARTS] = self._retries[gone % self.PARTS] = 0
            self._now = max(at, self._now)
        return self._now % self.PARTS
