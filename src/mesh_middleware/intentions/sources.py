"""
Which intentions are about a source: precedence, and what Envoy makes of it.

Owns the order of intentions, the index by source, and the difference between Consul's first match
and the rules Envoy is given. Knows nothing of requests.

Theory: a source is found under three keys: its own name, any name in its namespace, any namespace.
By *first match* the one of highest precedence decides alone. Envoy gets a list of alternatives
instead: each intention minus the more specific ones above it. The two differ for a source that a
broad intention of high precedence and an exact one of low precedence are both about.

Source: reference 4.2, 5.1, 5.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .model import WILDCARD, Intention, order

Key = tuple[str, str, str]
"""Name, namespace and partition of a source."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """
    The intentions that may decide for one source.

    Args:
        first: the one of highest precedence, or ``None``.
        envoy: all that Envoy's rules leave standing for the source, in order.
    """

    first: Intention | None
    envoy: tuple[Intention, ...]

    @property
    def all(self) -> tuple[Intention, ...]:
        """Every intention that has a say in any reading."""
        if self.first is None or self.first in self.envoy:
            return self.envoy
        return (self.first, *self.envoy)


Groups = Mapping[Key, tuple[Intention, ...]]


def group(intentions: Iterable[Intention]) -> dict[Key, tuple[Intention, ...]]:
    """
    Index intentions by source.

    Args:
        intentions: in any order; those about peered clusters are left out, because their callers
            are of other trust domains and a name alone proves nothing.

    Returns:
        For each source its intentions, highest precedence first.
    """
    found: dict[Key, list[Intention]] = {}
    for intention in intentions:
        if not intention.peer:
            found.setdefault(intention.key, []).append(intention)
    for items in found.values():
        if len(items) > 1:
            items.sort(key=order)
    return {key: tuple(items) for key, items in found.items()}


def keys_of(name: str, namespace: str, partition: str) -> tuple[Key, Key, Key]:
    """List the keys a source is found under, most specific first."""
    return (
        (name, namespace, partition),
        (WILDCARD, namespace, partition),
        (WILDCARD, WILDCARD, partition),
    )


def candidates(groups: Groups, keys: Iterable[Key]) -> Candidates:
    """
    Choose the intentions that may decide for a source.

    Args:
        groups: result of `group`.
        keys: result of `keys_of` for the source.
    """
    found = [groups[key][0] for key in dict.fromkeys(keys) if key in groups]
    found.sort(key=order)
    kept = tuple(
        lower
        for place, lower in enumerate(found)
        if not any(_wild(higher) < _wild(lower) for higher in found[:place])
    )
    return Candidates(found[0] if found else None, kept)


def _wild(intention: Intention) -> int:
    return (intention.source == WILDCARD) + (intention.namespace == WILDCARD)
