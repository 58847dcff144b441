"""
Makes a disagreement small: takes away whatever it does not need.

Each round tries every single reduction of the case at once, one Envoy for all of them, and goes on
from the first that still disagrees.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Json = dict[str, Any]

MAX_ROUNDS = 60


def minimize(case: Json, disagreeing: Callable[[Sequence[Json]], list[Json]]) -> Json:
    """
    Reduce a case.

    Args:
        case: a disagreement.
        disagreeing: finds those of some cases that are disagreements.

    Returns:
        The smallest disagreement found.
    """
    for _ in range(MAX_ROUNDS):
        found = disagreeing(list(reductions(case)))
        if not found:
            break
        case = min(found, key=lambda item: len(str(item)))
    return case


def reductions(case: Json) -> Iterator[Json]:
    """List the cases that are *case* without one thing."""
    for path in _removable(case):
        smaller = copy.deepcopy(case)
        parent: Any = smaller
        for step in path[:-1]:
            parent = parent[step]
        del parent[path[-1]]
        if _sound(smaller):
            yield smaller
    target = case["request"]["target"]
    for text in {target[1:], target[:-1], "/", target.partition("?")[0]} - {target}:
        yield {**case, "request": {**case["request"], "target": text}}
    if case["request"]["method"] != "GET":
        yield {**case, "request": {**case["request"], "method": "GET"}}


def _removable(case: Json) -> Iterator[tuple[Any, ...]]:
    for key in case.get("normalization") or {}:
        yield ("normalization", key)
    for place in range(len(case["request"]["headers"])):
        yield ("request", "headers", place)
    for place, item in enumerate(case["intentions"]):
        at = ("intentions", place)
        yield at
        if "JWT" in item:
            yield (*at, "JWT")
            yield from _claims((*at, "JWT"), item["JWT"])
        for number, permission in enumerate(item.get("Permissions") or ()):
            yield (*at, "Permissions", number)
            yield from _parts((*at, "Permissions", number), permission)


def _parts(at: tuple[Any, ...], permission: Json) -> Iterator[tuple[Any, ...]]:
    if "JWT" in permission:
        yield (*at, "JWT")
        yield from _claims((*at, "JWT"), permission["JWT"])
    for key in permission["HTTP"]:
        yield (*at, "HTTP", key)
    for place, header in enumerate(permission["HTTP"].get("Header") or ()):
        yield (*at, "HTTP", "Header", place)
        yield from (
            (*at, "HTTP", "Header", place, k) for k in ("Invert", "IgnoreCase") if header.get(k)
        )


def _claims(at: tuple[Any, ...], jwt: Json) -> Iterator[tuple[Any, ...]]:
    for place, provider in enumerate(jwt["Providers"]):
        if len(jwt["Providers"]) > 1:
            yield (*at, "Providers", place)
        if "VerifyClaims" in provider:
            yield (*at, "Providers", place, "VerifyClaims")


def _sound(case: Json) -> bool:
    """Tell whether Consul would take such intentions."""
    for item in case["intentions"]:
        if "Permissions" in item:
            https = [permission["HTTP"] for permission in item["Permissions"]]
            if not https or not all(https) or any(h.get("Header") == [] for h in https):
                return False
    return True
