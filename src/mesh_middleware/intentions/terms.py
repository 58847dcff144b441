"""
What a judge goes by: the terms that all sources of a policy share, and one request, read lazily.

Owns how headers and tokens of a request are asked for, each at most once. Knows nothing of rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .facts import RequestFacts
from .headers import Alternative, HeaderView
from .memory import Memory
from .model import JwtDemand, Normalization
from .reasons import Reason

if TYPE_CHECKING:
    from .jwt import Tokens

ReadingName = Literal["strict", "envoy"]


@dataclass(frozen=True, slots=True)
class Terms:
    """
    What all sources of a policy share.

    Args:
        default: what holds where nothing matched.
        reading: how requests are read.
        options: the mesh entry's request normalization.
        tokens: makes the tokens of a request.
        token_headers: headers that proxies may take out of a request for the token in them.
        memory: what is remembered together.
    """

    default: Reason
    reading: ReadingName
    options: Normalization
    tokens: Callable[[RequestFacts, HeaderView], Tokens]
    token_headers: frozenset[bytes] = frozenset()
    memory: Memory = field(default_factory=Memory, compare=False)


class Request:
    """What walking needs of one request: its headers and tokens, each read at most once."""

    __slots__ = ("_facts", "_terms", "_tokens", "_view", "claims")

    def __init__(self, facts: RequestFacts, terms: Terms, view: HeaderView) -> None:
        self._facts = facts
        self._terms = terms
        self._view = view
        self._tokens: Tokens | None = None
        self.claims: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def tokens(self) -> Tokens:
        """The tokens."""
        if self._tokens is None:
            self._tokens = self._terms.tokens(self._facts, self._view)
        return self._tokens

    def alternatives(self, name: bytes) -> tuple[Alternative, ...]:
        """Read one header, Envoy's reading first; see `HeaderView.alternatives`."""
        found = self._view.alternatives(name)
        if name in self._terms.token_headers and name in self.tokens.removed:
            return (Alternative("proxy", None), *found)
        return found

    def spend(self, values: Sequence[bytes]) -> None:
        """Account for one pattern; see `HeaderView.spend`."""
        self._view.spend(values)

    def unmet(self, demands: Sequence[JwtDemand], *, lenient: bool = False) -> Reason | None:
        """
        Tell why no token satisfies any of *demands*; ``None`` when one does, or none is made.

        Args:
            lenient: whether tokens are judged as Envoy does, not as we do.
        """
        if not demands:
            return None
        found = self.tokens.satisfy(demands, lenient=lenient)
        if isinstance(found, Reason):
            return found
        self.claims = {**(self.claims or {}), **found}
        return None
