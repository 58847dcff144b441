"""
How long the watcher waits for what, where no setting says so.

Owns the numbers that are an argument of `Mesh`, as its clock and transport are: whoever tests what
happens when time is over need not wait for it. What a number is for, its user knows.
"""

from __future__ import annotations

from dataclasses import dataclass

from .consul.watch import FIRST_BACKOFF, READ_SLACK


@dataclass(frozen=True, slots=True)
class Rhythm:
    """
    Times in seconds.

    Args:
        answer_timeout: for an answer that does not block; and for the body of one that did.
        read_slack: that a held answer may be late, beyond the wait and Consul's own jitter.
        first_backoff: first wait after a failure, before jitter.
        canary: that one question of each process is held at the most, more or less, so that
            connections which died without a word are found out.
        sweep_every: between sweeps without a change: certificates of peers expire.
        keys_every: between early readings of keys, which any caller with a bad token can ask for.
        keys_retry: first wait after keys could not be read, before jitter.
        keys_retry_most: longest wait of those.
    """

    answer_timeout: float = 10.0
    read_slack: float = READ_SLACK
    first_backoff: float = FIRST_BACKOFF
    canary: float = 10.0
    sweep_every: float = 5.0
    keys_every: float = 10.0
    keys_retry: float = 1.0
    keys_retry_most: float = 60.0


USUAL = Rhythm()
"""As it is unless a test makes haste."""
