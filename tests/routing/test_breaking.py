"""Ejection, the retry budget, and which outcomes are tried again."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from mesh_middleware.routing import Breaking, Call, Outcome, Retries
from mesh_middleware.routing.breaking import MAX_EJECTION, WELL, Budget, Health, fail, succeed
from mesh_middleware.routing.retries import (
    DEFAULT_RETRIES,
    MAX_PAUSE,
    NO_RETRIES,
    may_retry,
    pause,
    read_retry_after,
)

RULE = Breaking()


def failed(times: int, *, rule: Breaking = RULE, now: float = 0.0, dice: float = 0.0) -> Health:
    health = WELL
    for _ in range(times):
        health = fail(health, rule, now, dice, True)
    return health


def test_five_failures_in_a_row_eject() -> None:
    """Four do not; after 30 s the instance is on trial."""
    assert failed(4).state(0.0) == "closed"
    assert failed(5).state(0.0) == "open"
    assert failed(5).state(29.9) == "open" and failed(5).state(30.0) == "half-open"


def test_a_success_between_starts_the_count_anew() -> None:
    """Only failures in a row count."""
    health = succeed(failed(4), 0.0)
    assert fail(health, RULE, 0.0, 0.0, True).state(0.0) == "closed"


def test_a_passed_trial_closes_and_a_failed_one_ejects_for_longer() -> None:
    """30 s, then 60, then 90, up to five minutes."""
    assert succeed(failed(5), 31.0).state(31.0) == "closed"
    health, now = failed(5), 0.0
    for times in (2, 3, 4):
        assert health.until is not None
        now = health.until
        health = fail(health, RULE, now, 0.0, False)
        assert health.until == now + 30.0 * times
    health = Health(5, 0.0, 99)
    assert fail(health, RULE, 1.0, 0.0, False).until == 1.0 + MAX_EJECTION


def test_calls_from_before_the_ejection_change_nothing() -> None:
    """Neither their success nor their failure says anything about now."""
    health = failed(5)
    assert succeed(health, 1.0) is health and fail(health, RULE, 1.0, 0.0, True) is health


def test_earlier_ejections_are_forgiven_interval_by_interval() -> None:
    """Back in use for three intervals: three ejections less are counted."""
    health = Health(0, None, 3, 100.0)
    for _ in range(5):
        health = fail(health, RULE, 131.0, 0.0, True)
    assert (health.ejections, health.until) == (1, 161.0)


def test_enforcing_is_a_percentage() -> None:
    """At 50, a die below one half ejects; at 0 nothing does, and failures go on being counted."""
    half, never = Breaking(enforcing=50), Breaking(enforcing=0)
    assert failed(5, rule=half, dice=0.49).state(0.0) == "open"
    assert failed(5, rule=half, dice=0.5).state(0.0) == "closed"
    assert failed(9, rule=never) == Health(9)


@pytest.mark.parametrize(
    ("percent", "ejected", "known", "stands_in", "may"),
    [
        (10, 0, 3, False, True), (10, 1, 3, False, False), (50, 1, 4, False, True),
        (50, 2, 4, False, False), (10, 0, 1, False, False), (10, 0, 1, True, True),
        (100, 0, 1, False, True), (99, 2, 3, False, False), (100, 2, 3, False, True),
    ],
)  # fmt: skip
def test_how_many_may_be_ejected(
    percent: int, ejected: int, known: int, stands_in: bool, may: bool
) -> None:
    """A percentage, at least one; the last only at 100 or where others stand in."""
    assert Breaking(max_percent=percent).may_eject(ejected, known, stands_in) is may


def test_the_budget_is_a_part_of_the_calls_plus_a_floor() -> None:
    """1,000 calls in ten seconds allow 200 retries and the floor of 10, not one more."""
    budget = Budget()
    for number in range(1000):
        budget.count(100.0 + number / 100)
    assert sum(budget.take(109.99) for _ in range(1000)) == 210


def test_the_budget_forgets_after_its_window() -> None:
    """Nothing is saved up; a rarely used upstream has its floor again."""
    budget = Budget(ratio=0.2, floor=2)
    for _ in range(1000):
        budget.count(0.0)
    assert sum(budget.take(60.0) for _ in range(10)) == 2
    assert sum(budget.take(65.0) for _ in range(10)) == 0
    assert sum(budget.take(71.0) for _ in range(10)) == 2
    assert not budget.take(3.0), "a clock that steps back gives nothing"


GET, POST = Call("GET", b"/"), Call("POST", b"/")
UNSENT = Outcome("connect_failure", sent=False)


def wanted(*on: str, statuses: tuple[int, ...] = (), methods: tuple[str, ...] = ()) -> Retries:
    return Retries(3, frozenset(on), frozenset(statuses), frozenset(methods))


@pytest.mark.parametrize(
    ("retries", "call", "outcome", "expected"),
    [
        (DEFAULT_RETRIES, POST, UNSENT, True),
        (DEFAULT_RETRIES, POST, Outcome("refused", sent=False), True),
        (DEFAULT_RETRIES, GET, Outcome("reset"), False),
        (DEFAULT_RETRIES, GET, Outcome("answer", 503), False),
        (NO_RETRIES, GET, UNSENT, False),
        (wanted("reset"), GET, Outcome("reset"), True),
        (wanted("reset"), GET, Outcome("timeout"), True),
        (wanted("reset"), POST, Outcome("reset"), False),
        (wanted("reset"), POST, Outcome("reset", sent=False), True),
        (wanted("refused-stream"), POST, Outcome("reset", sent=False), True),
        (wanted("refused-stream"), GET, Outcome("reset"), False),
        (wanted("reset", methods=("POST",)), POST, Outcome("reset"), True),
        (wanted("reset"), Call("GET", b"/", repeatable=False), Outcome("reset"), False),
        (wanted("5xx"), GET, Outcome("answer", 500), True),
        (wanted("5xx"), GET, Outcome("answer", 404), False),
        (wanted("5xx"), GET, Outcome("reset"), True),
        (wanted("gateway-error"), GET, Outcome("answer", 503), True),
        (wanted("gateway-error"), GET, Outcome("answer", 500), False),
        (wanted("retriable-4xx"), GET, Outcome("answer", 409), True),
        (wanted("retriable-4xx"), GET, Outcome("answer", 404), False),
        (wanted(statuses=(429,)), GET, Outcome("answer", 429), True),
        (wanted(statuses=(429,)), POST, Outcome("answer", 429), False),
        (wanted(statuses=(403,)), GET, Outcome("answer", 403, denied=True), False),
        (wanted("5xx"), GET, Outcome("given_up"), False),
        (wanted("5xx"), GET, Outcome("answer", 503, retry_after=10.0), True),
        (wanted("5xx"), GET, Outcome("answer", 503, retry_after=10.1), False),
    ],
)
def test_what_is_tried_again(
    retries: Retries, call: Call, outcome: Outcome, expected: bool
) -> None:
    """Unsent goes elsewhere; sent is repeated if it does no harm; a refusal by policy never."""
    assert may_retry(retries, call, outcome) is expected


@pytest.mark.parametrize(
    ("outcome", "failure"),
    [
        (Outcome("answer", 200), False), (Outcome("answer", 499), False),
        (Outcome("answer", 500), True), (Outcome("answer", 403, denied=True), False),
        (Outcome("given_up"), False), (Outcome("reset"), True), (UNSENT, True),
        (Outcome("refused", sent=False), True), (Outcome("timeout"), True),
    ],
)  # fmt: skip
def test_whose_failure_it_is(outcome: Outcome, failure: bool) -> None:
    """5xx, broken, refused and silent connections are the instance's; a denial is nobody's."""
    assert outcome.failed is failure


def test_pauses_grow_and_are_jittered() -> None:
    """Elsewhere at once; the same again after up to 25 ms, doubling to 250 ms."""
    reset = Outcome("reset")
    assert pause(1, UNSENT, 0.9) == 0.0
    assert pause(1, reset, 0.0) == 0.0 and pause(1, reset, 1.0) == 0.025
    assert pause(2, reset, 1.0) == 0.05 and pause(99, reset, 1.0) == MAX_PAUSE
    assert pause(1, Outcome("answer", 503, retry_after=2.0), 0.1) == 2.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3.0), (" 0 ", 0.0), ("Sat, 21 Nov 2026 12:00:07 GMT", 7.0),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0.0), ("-1", None), ("soon", None), ("1.5", None),
        ("Saturday, 21-Nov-26 12:00:07 GMT", 7.0), ("Sat Nov 21 12:00:07 2026", 7.0),
        ("99999999999", 99999999999.0), ("9" * 400, math.inf), ("", None), ("\u00b2", None),
        ("Sat, 21 Nov " + "9" * 30 + " 12:00:07 GMT", None),
        ("Sat, 21 Nov 2026 12:00:07 +" + "9" * 30, None), ("Sat, " * 9999, None),
    ],
)  # fmt: skip
def test_retry_after(value: str, seconds: float | None) -> None:
    """Seconds, however many, or a date in any of its forms; anything else is left out."""
    assert read_retry_after(value, datetime(2026, 11, 21, 12, tzinfo=UTC)) == seconds
