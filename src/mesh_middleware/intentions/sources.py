"""
Which intentions are about a source: precedence, and what Envoy makes of it.

Owns the order of intentions, the index by source, and the difference between Consul's first match
and the rules Envoy is given. Knows nothing of requests.

Theory: a source is found under three keys: its own name, any name in its namespace, any namespace.
By *first match* the one of highest precedence decides alone. Envoy gets a list of alternatives
instead: each intention minus the more specific ones above it, as regular expressions on the SPIFFE
ID in which names stand unescaped. The two differ for a source that a broad intention of high
precedence and an exact one of low precedence are both about, and for *odd* names, whose characters
mean something in a regular expression.

Source: reference 4.2, 5.1, 5.2, 12.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..identity import ServiceId
from .model import WILDCARD, Intention, order

Key = tuple[str, str, str]
"""Name, namespace and partition of a source."""

Groups = Mapping[Key, Intention]
"""Of each source the intention of highest precedence: the only one that counts."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+|\*")


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
    def simple(self) -> bool:
        """Whether precedence and Envoy's rules ask the same intention, or none."""
        return self.envoy == (() if self.first is None else (self.first,))

    @property
    def all(self) -> tuple[Intention, ...]:
        """Every intention that has a say in any reading."""
        if self.first is None or self.first in self.envoy:
            return self.envoy
        return (self.first, *self.envoy)

    def strict(self, cautious: bool) -> tuple[Intention | None, ...]:
        """
        List those all of which have to allow a request; ``None`` stands for the default.

        Args:
            cautious: whether the default is, or could be, allow: then whatever Envoy's rules
                deny is denied too. Under a default of deny, what the first allows they allow.
        """
        if self.simple or (not cautious and self.first in self.envoy):
            return (self.first,)
        others = tuple(item for item in self.envoy if item is not self.first)
        return (self.first, *(others or (None,)))


def group(intentions: Iterable[Intention]) -> dict[Key, Intention]:
    """
    Index intentions by source.

    Args:
        intentions: in any order; those about peered clusters are left out, because their callers
            are of other trust domains and a name alone proves nothing.

    Returns:
        For each source the intention of highest precedence.
    """
    found: dict[Key, Intention] = {}
    for intention in intentions:
        if intention.peer:
            continue
        key = (intention.source, intention.namespace, intention.partition)
        known = found.setdefault(key, intention)
        if known is not intention and order(intention) < order(known):
            found[key] = intention
    return found


def keys_of(source: ServiceId) -> tuple[Key, Key, Key]:
    """List the keys a source is found under, most specific first."""
    return (
        (source.name, source.namespace, source.partition),
        (WILDCARD, source.namespace, source.partition),
        (WILDCARD, WILDCARD, source.partition),
    )


def odd(groups: Groups) -> tuple[Intention, ...]:
    """Find the intentions whose source means more to Envoy than its characters."""
    return tuple(intention for intention in groups.values() if not is_plain(intention))


def is_plain(intention: Intention) -> bool:
    """Tell whether Envoy takes an intention's source for just its characters."""
    return all(map(_PLAIN_NAME.fullmatch, intention.key))


def pattern(intention: Intention, trust_domain: str) -> str:
    """
    Write the regular expression Envoy matches SPIFFE IDs with.

    Source: reference 5.2, "Source patterns"; full match, names unescaped.
    """
    partition = "" if intention.partition == "default" else f"/ap/{intention.partition}"
    namespace = "[^/]+" if intention.namespace == WILDCARD else intention.namespace
    name = "[^/]+" if intention.source == WILDCARD else intention.source
    return f"^spiffe://{trust_domain}{partition}/ns/{namespace}/dc/[^/]+/svc/{name}$"


def candidates(groups: Groups, source: ServiceId) -> Candidates:
    """
    Choose the intentions that may decide for a source, where no name is odd.

    Args:
        groups: result of `group`.
        source: who calls.
    """
    found = [groups[key] for key in dict.fromkeys(keys_of(source)) if key in groups]
    found.sort(key=order)
    return Candidates(found[0] if found else None, standing(found))


def odd_candidates(groups: Groups, source: ServiceId, matched: Iterable[Intention]) -> Candidates:
    """
    Choose the intentions that may decide for a source, where some names are odd.

    Args:
        matched: the odd ones that Envoy takes the source for.
    """
    found = [groups[key] for key in dict.fromkeys(keys_of(source)) if key in groups]
    first = min(found, key=order, default=None)
    plain = [intention for intention in found if is_plain(intention)]
    return Candidates(first, standing(sorted((*plain, *matched), key=order)))


def configured(
    groups: Groups, wanted: Iterable[Intention], default_allow: bool, *, tcp: bool
) -> Iterator[Intention]:
    """
    Tell which of *wanted* appear in Envoy's rules: as rules, or subtracted from broader ones.

    Args:
        default_allow: the default policy; intentions equal to it are no rules.
        tcp: whether permissions count as deny.

    Source: reference 5.2, "Intentions equal to the default disappear".
    """

    def kept(intention: Intention) -> bool:
        if intention.flaw is not None:
            return True
        if intention.allow is None and not tcp:
            actions = [None if p.flaw else p.allow for p in intention.permissions]
            return any(action is not default_allow for action in actions)
        return bool(intention.allow) is not default_allow

    broad = [intention for intention in groups.values() if _wild(intention)]
    for intention in wanted:
        below = (other for other in broad if order(other) > order(intention))
        if kept(intention) or any(_covers(other, intention) and kept(other) for other in below):
            yield intention


def standing(found: list[Intention]) -> tuple[Intention, ...]:
    """Leave out of *found*, in order, those that a more specific one above is subtracted from."""
    return tuple(
        lower
        for place, lower in enumerate(found)
        if not any(_covers(lower, higher) for higher in found[:place])
    )


def _covers(broad: Intention, narrow: Intention) -> bool:
    return (
        _wild(narrow) < _wild(broad)
        and broad.partition == narrow.partition
        and broad.namespace in (narrow.namespace, WILDCARD)
        and broad.source in (narrow.source, WILDCARD)
    )


def _wild(intention: Intention) -> int:
    return (intention.source == WILDCARD) + (intention.namespace == WILDCARD)
