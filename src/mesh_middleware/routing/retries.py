"""
When a call is tried again, and after how long.

Owns the meaning of Envoy's retry conditions, ``Retry-After`` and the backoff. How many retries
there may be altogether is `breaking.Budget`'s business, which instance is next `trip`'s.

Theory. A call whose request did not leave can go elsewhere, whatever its method. One that may have
arrived is repeated only if repeating does no harm: an idempotent method, or one that the caller or
the route named, with a body that can be sent again. A refusal by policy is never repeated.

Source: Envoy, "x-envoy-retry-on"; RFC 9110, 9.2.2 and 10.2.3.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from .calls import IDEMPOTENT, Call, Outcome
from .chain import Retries

DEFAULT_RETRIES = Retries(2, frozenset({"connect-failure"}), same=False)
"""Where neither route nor caller says otherwise: two other instances, when nothing was sent."""
NO_RETRIES = Retries()
FIRST_PAUSE = 0.025
"""Seconds before the first repetition at most. Source: Envoy's base interval."""
MAX_PAUSE = 0.25
"""Seconds before any repetition at most. Source: Envoy, ten times the base interval."""
MAX_RETRY_AFTER = 10.0
"""Longest ``Retry-After``, in seconds, that is waited for; the answer is given back otherwise."""
MAX_DATE_LENGTH = 64
"""Characters of a date that is read: twice what one has."""

CONDITIONS = frozenset(
    {"5xx", "gateway-error", "reset", "connect-failure", "retriable-4xx", "refused-stream"}
)
"""What `Retries.on` can name. Source: Envoy, without those of gRPC and ``envoy-ratelimited``."""

_NOTHING_CAME = frozenset({"5xx", "gateway-error", "reset"})


def may_retry(retries: Retries, call: Call, outcome: Outcome) -> bool:
    """
    Tell whether the rules allow to try again after *outcome*; count and budget not considered.

    Args:
        retries: what is asked for.
        call: what was sent.
        outcome: what became of it.
    """
    if outcome.denied or outcome.kind == "given_up" or not retries.count:
        return False
    if not outcome.sent and outcome.kind != "answer":
        unsent = {"connect-failure", "refused-stream"} if outcome.kind == "reset" else {
            "connect-failure"
        }  # fmt: skip
        return bool(retries.on & (unsent | _NOTHING_CAME))
    if not call.repeatable or not (call.method in IDEMPOTENT or call.method in retries.methods):
        return False
    if outcome.retry_after is not None and outcome.retry_after > MAX_RETRY_AFTER:
        return False
    if outcome.kind == "answer":
        return _status_counts(retries, outcome.status)
    return bool(retries.on & _NOTHING_CAME)


def _status_counts(retries: Retries, status: int) -> bool:
    on = retries.on
    return (
        status in retries.statuses
        or (status >= 500 and "5xx" in on)
        or (status in (502, 503, 504) and "gateway-error" in on)
        or (status == 409 and "retriable-4xx" in on)
    )


def pause(number: int, outcome: Outcome, dice: float) -> float:
    """
    Seconds to wait before the next attempt.

    Args:
        number: of the attempt that failed, from 1.
        outcome: what became of it.
        dice: full jitter, so that not all come back at once.
    """
    if outcome.retry_after is not None:
        return outcome.retry_after
    if not outcome.sent and outcome.kind != "answer":
        return 0.0  # another instance is not the one that is in trouble
    return dice * min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** min(number - 1, 10))


def read_retry_after(value: str, now: datetime) -> float | None:
    """
    Read ``Retry-After``: seconds, or a date.

    Args:
        value: of the header.
        now: aware UTC.

    Returns:
        Seconds from *now*, 0 at least; ``None`` when it cannot be read.

    Source: RFC 9110, 10.2.3, and 5.6.7 for the three forms of a date.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    if len(value) > MAX_DATE_LENGTH:
        return None
    try:
        when = parsedate_to_datetime(value)
        # C's form names no zone, and means GMT as the others do.
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return max(0.0, (when - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
