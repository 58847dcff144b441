"""R6: a thousand applications and one agent that comes back."""

from __future__ import annotations

import random
from collections import Counter

from mesh_middleware.consul.lookout import SCOUT_BACKOFF, SPACING, knock_backoff

APPS = 1000
TENTH = 0.1


def knocks(dice: random.Random, seconds: float) -> list[float]:
    """When one application knocks while the agent refuses connections."""
    now, count, found = 0.0, 0, []
    while now < seconds:
        count += 1
        now += knock_backoff(count, dice.random())
        found.append(now)
    return found


def test_r06_a_thousand_apps_come_back_spread_out() -> None:
    """
    Each has one scout, under full jitter: no tenth of a second gets twice the mean.

    The first second is the exception that jitter cannot mend: all lost the agent at one moment.
    """
    dice = random.Random(6)
    times = [at for _ in range(APPS) for at in knocks(dice, 60.0)]
    tenths = Counter(int(at / TENTH) for at in times if 5.0 <= at < 60.0)
    mean = sum(tenths.values()) / len(tenths)
    assert len(tenths) == 550
    assert max(tenths.values()) <= 2 * mean
    first = Counter(int(at / TENTH) for at in times if at < 1.0)
    assert max(first.values()) <= APPS / 4, "not all in one tenth, even at first"


def test_r06_every_app_is_back_within_five_seconds() -> None:
    """Whenever it returns: no application's next knock is farther away than the scout's backoff."""
    dice = random.Random(7)
    for _ in range(APPS):
        times = knocks(dice, 30.0)
        gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
        assert SPACING - 1e-9 <= min(gaps) and max(gaps) <= SCOUT_BACKOFF + 1e-9
