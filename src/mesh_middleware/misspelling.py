"""
Which known name a misspelt one means.

Knows no names of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

WORD_COUNTS = 0.9
"""How much likeness with one word of a name counts, against likeness with the whole of it."""
MISSPELT = 0.85
"""How like a known name another one is that is taken for it, misspelt."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Choose the one of *known* that is most like *name*, as a whole or in one of its words."""
    return max(known, key=lambda each: _likeness(name, each))


def lookalike(name: str, known: Iterable[str]) -> str | None:
    """The one of *known* that *name* surely means; ``None`` when it means something of its own."""
    import difflib  # for names that nobody knows, which are rare

    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=MISSPELT)), None)


def _likeness(name: str, known: str) -> float:
    # "ttl" is near to "check_ttl", for one of its words is meant.
    words = max(_ratio(name, word) for word in known.split("_"))
    return max(_ratio(name, known), WORD_COUNTS * words)


def _ratio(one: str, other: str) -> float:
    import difflib

    return difflib.SequenceMatcher(None, one, other).ratio()
