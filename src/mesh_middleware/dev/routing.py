"""
What a route is, and the table that finds it.

Owns patterns, methods and what each route waits for. Knows no route and no server.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from .acl import Rights
from .http import Answer, Request
from .state import State


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way through a route: all that a handler may know."""

    state: State
    request: Request
    args: tuple[str, ...]
    rights: Rights

    @property
    def blocking(self) -> bool:
        """Whether the caller waits for a change."""
        return bool(self.request.index()) or bool(self.request.first("hash"))


Handler = Callable[[Call], Answer]


@dataclass(frozen=True, slots=True)
class Route:
    """
    One method of one path.

    Args:
        handler: answers with the state of now.
        topics: what a blocking query waits for; None where the endpoint does not block.
        cached: served from Consul's agent cache: no jitter, ``X-Cache``.
        due: when the answer may change by itself, by the passing of time.
    """

    handler: Handler
    topics: Callable[[Call], tuple[str, ...]] | None = None
    cached: bool = False
    due: Callable[[Call], datetime | None] = field(default=lambda call: None)


class Table:
    """The routes of the agent, the first registered pattern wins."""

    def __init__(self) -> None:
        self._patterns: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        self._by_text: dict[str, dict[str, Route]] = {}

    def add(
        self,
        method: str,
        pattern: str,
        *,
        topics: Callable[[Call], tuple[str, ...]] | None = None,
        cached: bool = False,
        due: Callable[[Call], datetime | None] | None = None,
    ) -> Callable[[Handler], Handler]:
        """
        Register a handler.

        Args:
            pattern: ``{}`` stands for one segment, at the end for the rest of the path.
        """

        def register(handler: Handler) -> Handler:
            route = Route(handler, topics, cached, due or (lambda call: None))
            if pattern not in self._by_text:
                self._by_text[pattern] = {}
                self._patterns.append((_compile(pattern), self._by_text[pattern]))
            self._by_text[pattern][method] = route
            return handler

        return register

    def find(self, path: str) -> tuple[dict[str, Route], tuple[str, ...]] | None:
        """The methods of *path* and the values of its pattern; None for an unknown path."""
        for pattern, methods in self._patterns:
            found = pattern.fullmatch(path)
            if found:
                return methods, found.groups()
        return None


def _compile(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern).replace(r"\{\}", "([^/]+)")
    if text.endswith("([^/]+)"):
        text = text.removesuffix("([^/]+)") + "(.+)"
    return re.compile(text)
