"""A blocking query as steps: Consul's index rules, and backoff that neither hammers nor dawdles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_middleware.consul.watch import (
    BROKEN,
    BURST,
    CUT_AFTER,
    FIRST_BACKOFF,
    MAX_BACKOFF,
    MIN_BACKOFF,
    PACE,
    POLLS,
    READ_SLACK,
    REFUSED_BACKOFF,
    Cursor,
    anew,
    answered,
    backoff,
    failed,
    next_index,
    pace,
    read_timeout,
    regressed,
)

INDEX = st.integers(0, 2**64 - 1)
FAILURES = st.integers(1, 10_000)
DICE = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("sent", "received", "following"),
    [
        (0, 5, 5),
        (5, 5, 5),
        (5, 9, 9),
        (9, 5, 0),
        (2, 1, 0),
        (1, 1, 1),
        (0, 0, 1),
        (1, 0, 1),
        (9, 0, 0),
        (0, 1, 1),
    ],
)
def test_index_follows_consuls_rules(sent: int, received: int, following: int) -> None:
    """Forward, or start over when it went backwards; 0 and missing count as 1."""
    assert next_index(sent, received) == following


@given(INDEX, INDEX)
def test_next_question_never_goes_backwards_without_starting_over(sent: int, received: int) -> None:
    """The next index is at least the last one, or 0."""
    following = next_index(sent, received)
    assert following == 0 or following >= max(sent, 1)


@given(INDEX, INDEX)
def test_regress_is_exactly_what_starts_over_with_an_index(sent: int, received: int) -> None:
    """An answer without index is no regress: that agent has none for this resource."""
    assert regressed(sent, received) == (received > 0 and next_index(sent, received) == 0)


@given(st.lists(INDEX, max_size=20))
def test_any_series_of_answers_keeps_the_cursor_sound(indexes: list[int]) -> None:
    """Whatever the agent says, the cursor holds an index that may be sent, and no failures."""
    cursor = Cursor()
    for index in indexes:
        cursor = answered(failed(cursor), index, 1.0)
        assert cursor.index == 0 or cursor.index >= 1
        assert cursor.failures == 0


def test_failure_keeps_the_index() -> None:
    """Nothing was learnt: the change that was missed is told by the next answer."""
    cursor = failed(failed(Cursor(index=7, rapid=3)))
    assert (cursor.index, cursor.failures, cursor.rapid) == (7, 2, 0)


def test_answer_ends_a_run_of_failures() -> None:
    """The next failure waits shortly again."""
    assert answered(Cursor(index=7, failures=5), 8, 1.0) == Cursor(index=8)


@given(FAILURES, DICE, st.booleans())
def test_backoff_stays_within_its_bounds(failures: int, dice: float, refused: bool) -> None:
    """Never below 100 ms, never above 4 s, or 15 s for a refusal."""
    seconds = backoff(failures, dice, refused=refused)
    assert MIN_BACKOFF <= seconds <= (REFUSED_BACKOFF if refused else MAX_BACKOFF)


@given(FAILURES, DICE)
def test_backoff_never_shrinks_with_failures(failures: int, dice: float) -> None:
    """The same dice, one failure more: at least as long a wait."""
    assert backoff(failures + 1, dice) >= backoff(failures, dice)
    assert backoff(failures, dice, refused=True) >= backoff(failures, dice)


@given(FAILURES)
def test_backoff_is_fully_jittered(failures: int) -> None:
    """A thousand apps do not come back together: from the shortest wait up to the ceiling."""
    assert backoff(failures, 0.0) == MIN_BACKOFF
    ceiling = min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** min(failures - 1, 10))
    assert backoff(failures, 0.999999) == pytest.approx(ceiling, rel=1e-4)


def test_recovery_is_noticed_within_five_seconds() -> None:
    """Reliability R3: the longest wait leaves room for the answer."""
    assert MAX_BACKOFF < 5.0
    assert MIN_BACKOFF >= 0.1


def test_resource_that_churns_is_paced() -> None:
    """Answers that come at once are taken eagerly for a while, then every 50 ms."""
    cursor = Cursor()
    waits = []
    for index in range(1, BURST + 3):
        cursor = answered(cursor, index, 0.001)
        waits.append(pace(cursor))
    assert waits == [0.0] * BURST + [PACE] * 2
    assert pace(answered(cursor, 99, PACE)) == 0.0


def test_answer_that_waited_is_not_churn() -> None:
    """A held question ends the run of rapid ones."""
    assert answered(Cursor(index=1, rapid=9), 2, 30.0).rapid == 0


@given(st.floats(0.1, 600))
def test_answer_is_awaited_longer_than_the_agent_may_hold_it(wait: float) -> None:
    """Wait, a sixteenth of jitter, and slack: a punctual answer is never cut off."""
    assert read_timeout(wait) >= wait * (1 + 1 / 16) + READ_SLACK - 1e-9


# -- something between cuts requests that last -----------------------------------------------------


def test_two_cuts_in_a_row_shorten_the_wait() -> None:
    """A load balancer that cuts after 30 s: from the second cut on less than that is asked for."""
    start = Cursor(index=7, wait=300.0)
    once = failed(start, 30.0)
    assert once.wait == 300.0
    again = answered(once, 7, 0.01)
    twice = failed(again, 30.0)
    assert CUT_AFTER <= twice.wait < 30.0
    assert twice.index == 7


def test_after_a_failure_the_current_value_is_asked_for() -> None:
    """An agent rebuilt meanwhile would hold the old, higher index for the whole wait."""
    after = failed(Cursor(index=7))
    assert (after.asked, after.index) == (0, 7)
    assert answered(after, 9, 0.01).asked == 9


def test_cut_then_an_answer_that_lasted_longer_is_no_pattern() -> None:
    """A single cut, and long answers afterwards: the wait stays."""
    once = failed(Cursor(index=7), 30.0)
    held = answered(once, 8, 200.0)
    assert failed(held, 30.0).wait == 300.0


def test_cut_then_a_quick_answer_is_still_remembered() -> None:
    """An answer that came early says nothing about what happens to late ones."""
    once = failed(Cursor(index=7), 30.0)
    quick = answered(once, 8, 1.0)
    assert failed(quick, 30.0).wait < 30.0


@pytest.mark.parametrize("took", [0.0, 0.1, CUT_AFTER - 0.1, 300.0, 400.0])
def test_failures_that_are_no_cuts_leave_the_wait_alone(took: float) -> None:
    """A refused connection is quick; one that outlasts the wait was the agent's own silence."""
    cursor = Cursor(index=7)
    for _ in range(5):
        cursor = failed(cursor, took)
    assert cursor.wait == 300.0


def test_question_without_index_is_never_cut_for_its_length() -> None:
    """It does not block: what it was slow for is another matter."""
    assert failed(failed(Cursor(index=0), 30.0), 30.0).wait == 300.0


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 700), INDEX), max_size=30), st.floats(0.1, 600)
)
def test_wait_never_grows_nor_falls_below_its_floor(
    steps: list[tuple[bool, float, int]], wait: float
) -> None:
    """Whatever happens, the agent may hold a question for some seconds, and no longer than set."""
    cursor = Cursor(wait=wait)
    for well, took, index in steps:
        before = cursor.wait
        cursor = answered(cursor, index, took) if well else failed(cursor, took)
        assert min(wait, CUT_AFTER) <= cursor.wait <= before


# -- an agent that cannot hold questions -----------------------------------------------------------


@pytest.mark.parametrize("way", ["cut at once", "answered at once"])
def test_agent_that_cannot_hold_questions_is_polled_for_a_while(way: str) -> None:
    """Held questions that fail early, or come back at once unchanged: plain ones, then a try."""
    cursor, blocked = Cursor(index=7), 0
    while not cursor.polls:
        assert (blocked := blocked + bool(cursor.asked)) <= BROKEN
        short = way == "cut at once" and cursor.asked
        cursor = failed(cursor, 0.01) if short else answered(cursor, 7, 0.01)
    polls = 0
    while cursor.polls:
        assert cursor.polling and cursor.asked == 0
        cursor, polls = answered(cursor, 7, 0.01), polls + 1
    assert polls == POLLS and cursor.asked == 7
    again = failed(cursor, 0.01) if way == "cut at once" else answered(cursor, 7, 0.01)
    assert again.polls == POLLS, "the next failure of a held question is enough"
    held = answered(cursor, 7, 30.0)
    assert held.broken == 0, "one that was held ends the suspicion"


def test_agent_that_comes_and_goes_is_not_polled() -> None:
    """What broke with the agent says nothing about what is held."""
    cursor = Cursor(index=7)
    for _ in range(3 * BROKEN):
        cursor = anew(failed(cursor, 0.01))
        assert (cursor.asked, cursor.index) == (0, 7)
        cursor = answered(cursor, 7, 0.01)
        assert (cursor.polls, cursor.asked) == (0, 7)


def test_polling_compares_indexes_and_never_sends_one() -> None:
    """``poll``: a regress is noticed there, too."""
    cursor = answered(Cursor(block=False), 9, 0.01)
    assert (cursor.index, cursor.asked, cursor.polling) == (9, 0, True)
    assert regressed(cursor.index, 5)
