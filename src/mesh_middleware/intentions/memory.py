"""
What the judges of one policy remember, in bounds.

Owns the bounds: so many answers of one source, and so many of all sources together. Knows nothing
of what is remembered.
"""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")

MEMORY = 1024
"""Answers remembered per source; a memory that is full starts again."""

ALL_MEMORY = 8192
"""Answers remembered by all sources of a policy together; then all start again."""


class Memory:
    """Bounds what the programs of one policy remember together."""

    __slots__ = ("_held", "_left")

    def __init__(self) -> None:
        self._held: list[dict[object, Any]] = []
        self._left = ALL_MEMORY

    def keep(self, answers: dict[object, T], key: object, answer: T) -> None:
        """Put an answer to those of one program, after forgetting some where it is too much."""
        self._left -= 1
        if self._left < 0:
            held, self._held, self._left = self._held, [], ALL_MEMORY
            for other in held:
                other.clear()
        elif len(answers) >= MEMORY:
            answers.clear()
        if not answers:
            self._held.append(answers)
        answers[key] = answer
