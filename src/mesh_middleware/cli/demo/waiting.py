"""Waiting with an end: ask again until it holds, or the time is up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from ...exceptions import MeshError

T = TypeVar("T")


class TooLateError(MeshError):
    """Something did not happen in its time."""


def until(ask: Callable[[], T | None], *, timeout: float, every: float, what: str) -> T:
    """
    Call *ask* until its answer is something.

    Args:
        ask: answers ``None`` while it is too early; what it raises ends the waiting.
        timeout: seconds in all.
        every: seconds between two questions.
        what: the thing waited for, for the error.

    Raises:
        TooLateError: the time is up.
    """
    end = time.monotonic() + timeout
    pause = threading.Event()
    while True:
        answer = ask()
        if answer is not None:
            return answer
        if time.monotonic() >= end:
            raise TooLateError(f"{what}: not within {timeout:g} s")
        pause.wait(every)
