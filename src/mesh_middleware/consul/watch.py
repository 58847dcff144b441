"""
A blocking query as steps: an answer in, the next question out.

Owns the index rules, the waits and the backoff; does no I/O and asks neither clock nor dice
(randomness is an argument).

Source: Consul HTTP API, "Blocking Queries"; reference 1.4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

FIRST_BACKOFF = 1.0
"""Seconds of the first wait after a failure, before jitter."""
MAX_BACKOFF = 4.0
"""Longest wait in seconds: recovery within 5 s once the agent is back (reliability, R3)."""
REFUSED_BACKOFF = 15.0
"""Longest wait in seconds after a 403: tokens are created late, and a refusal is no outage."""
MIN_BACKOFF = 0.1
"""Shortest wait in seconds: one request per 100 ms at most to a failing agent."""
READ_SLACK = 10.0
"""Seconds that an answer may be late beyond the wait and Consul's own jitter."""
BURST = 10
"""Answers in a row that may come at once before the watch slows down."""
PACE = 0.05
"""Seconds between answers of a resource that churns."""
CUT_AFTER = 1.0
"""Seconds from which on a failed question counts as cut by something between, not as refused."""
POLL_EVERY = 1.0
"""Seconds between questions where the agent gives no index, or cannot hold a question."""
BROKEN = 5
"""Questions in a row that the agent could not hold, after which it is polled."""
POLLS = 30
"""Plain questions, one every `POLL_EVERY`, before holding one is tried again."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """
    Where a watch stands.

    Args:
        index: to block on; 0 asks for the current value.
        failures: questions in a row without an answer.
        rapid: answers in a row that came without waiting.
        wait: seconds the agent may hold a question; shorter once something cuts long ones.
        cut: seconds after which the last question was cut, 0 when it was not.
        block: whether the agent may hold questions at all; otherwise it is polled.
        broken: questions in a row that were to be held, and failed or came back at once.
        polls: plain questions still to be asked before holding one is tried again.
    """

    index: int = 0
    failures: int = 0
    rapid: int = 0
    wait: float = 300.0
    cut: float = 0.0
    block: bool = True
    broken: int = 0
    polls: int = 0

    @property
    def asked(self) -> int:
        """
        The index to send: none after a failure, though the last one is kept to compare with.

        An agent that was rebuilt meanwhile has lower indexes, and would hold a question with the
        old one for the whole wait before it told so.
        """
        plain = self.failures or self.polls or not self.block
        return 0 if plain else self.index

    @property
    def polling(self) -> bool:
        """Whether `POLL_EVERY` has to pass before the next question."""
        return self.polls > 0 or not self.block


def next_index(sent: int, received: int) -> int:
    """
    Choose the index for the next blocking query.

    Args:
        sent: index of the query just answered; 0 asked for the current value.
        received: ``X-Consul-Index`` of the answer.

    Returns:
        *received*, at least 1; or 0, to start over, when it went backwards.

    Source: Consul HTTP API, "Blocking Queries", "Implementation Details".
    """
    received = max(received, 1)
    return 0 if received < sent else received


def answered(cursor: Cursor, received: int, took: float) -> Cursor:
    """
    Move on after an answer.

    Args:
        received: ``X-Consul-Index`` of the answer; 0 when it had none.
        took: seconds the agent held the question.
    """
    rapid = cursor.rapid + 1 if took < PACE else 0
    broken = cursor.broken
    if cursor.asked:
        # The same index at once: something answers that knows nothing of blocking.
        broken = broken + 1 if received == cursor.index and took < PACE else 0
    moved = replace(
        cursor,
        index=next_index(cursor.index, received),
        failures=0,
        rapid=rapid,
        cut=0.0 if took >= cursor.cut else cursor.cut,
        broken=broken,
        polls=max(0, cursor.polls - 1),
    )
    return _fall_back(moved)


def failed(cursor: Cursor, took: float = 0.0) -> Cursor:
    """
    Move on after a failure: the index stays, since nothing was learnt.

    A proxy or load balancer may cut requests that last. When two in a row were cut after some
    `CUT_AFTER` seconds or more, shorter waits are asked for from then on; where even those of
    `CUT_AFTER` are cut, again and again, the agent is polled.

    Args:
        took: seconds until the failure.
    """
    cut = took if cursor.asked and CUT_AFTER <= took < cursor.wait else 0.0
    wait = cursor.wait
    if cut and cursor.cut:
        wait = max(CUT_AFTER, min(cut, cursor.cut) * 0.8)
    short = bool(cursor.asked) and took < CUT_AFTER
    failures, broken = cursor.failures + 1, cursor.broken + short
    return _fall_back(
        replace(cursor, failures=failures, rapid=0, wait=wait, cut=cut, broken=broken)
    )


def _fall_back(cursor: Cursor) -> Cursor:
    if cursor.broken < BROKEN:
        return cursor
    return replace(cursor, broken=BROKEN - 1, polls=POLLS)


def regressed(sent: int, received: int) -> bool:
    """Whether the index went backwards: the servers were restored, or rebuilt from nothing."""
    return 0 < received < sent


def backoff(
    failures: int, dice: float, *, refused: bool = False, first: float = FIRST_BACKOFF
) -> float:
    """
    Seconds to wait after *failures* in a row.

    Args:
        dice: uniform in 0 to 1: full jitter, so that a thousand apps do not return together.
        refused: the last failure was a 403.
        first: seconds of the first wait, before jitter.
    """
    longest = REFUSED_BACKOFF if refused else MAX_BACKOFF
    ceiling = min(longest, first * 2.0 ** min(failures - 1, 10))
    return max(MIN_BACKOFF, ceiling * dice)


def pace(cursor: Cursor) -> float:
    """Seconds to wait before the next question, though the agent is well: 0 unless it churns."""
    return PACE if cursor.rapid > BURST else 0.0


def longest_held(wait: float) -> float:
    """Seconds that the agent holds a question at the most: the wait, and Consul's jitter."""
    return wait * 17 / 16


def read_timeout(wait: float, slack: float = READ_SLACK) -> float:
    """Seconds after which a blocking answer is given up: as long as it is held, and slack."""
    return longest_held(wait) + slack


def anew(cursor: Cursor) -> Cursor:
    """
    Start over with an agent that was away, or is another: its present value is asked for.

    What failed when it went is no sign that something cuts questions that are held.
    """
    return replace(cursor, failures=cursor.failures or 1, broken=0)
