"""
What the caller asks of one call beside httpx's own: ``extensions={"mesh": {"timeout": 2.0}}``.

Owns the reading of it. What is misspelt or unusable is refused before anything is sent: a call that
went without the time it was given would only be noticed on the day that it matters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..exceptions import ConfigError
from ..misspelling import nearest
from ..routing.chain import Retries
from ..routing.retries import CONDITIONS

KNOWN = ("timeout", "key", "source", "retries")


@dataclass(frozen=True, slots=True)
class Wishes:
    """
    What one call asks for.

    Args:
        timeout: seconds for the whole call, its attempts together; ``None`` for no limit.
        key: keeps calls of one kind together, for splits and hash policies.
        source: address of whom the call is made for, for the hash policy ``source_ip``.
        retries: when to try again, where no route says otherwise.
    """

    timeout: float | None = None
    key: str | None = None
    source: str | None = None
    retries: Retries | None = None


def read_wishes(extensions: Mapping[str, Any], usual: Wishes) -> Wishes:
    """
    Read the wishes among a request's extensions.

    Args:
        extensions: of the request.
        usual: the client's, which hold where the request says nothing.

    Raises:
        ConfigError: an unknown name, or a value that is none.
    """
    said = extensions.get("mesh")
    if not said:
        return usual
    if not isinstance(said, Mapping):
        raise ConfigError(f"extensions['mesh'] is {said!r}, not a table of {', '.join(KNOWN)}")
    for name in said:
        if name not in KNOWN:
            meant = nearest(str(name), KNOWN)
            raise ConfigError(f"extensions['mesh'] knows no {name!r}; did you mean {meant!r}?")
    key, source = said.get("key"), said.get("source")
    return Wishes(
        _timeout(said.get("timeout")),
        None if key is None else str(key),
        None if source is None else str(source),
        check_retries(said.get("retries")) or usual.retries,
    )


def _timeout(value: Any) -> float | None:
    if value is None or value == math.inf:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ConfigError(f"timeout={value!r} is no number of seconds")
    return float(value)


def check_retries(value: Any) -> Retries | None:
    """
    Check what was given for retries.

    Raises:
        ConfigError: it is not `Retries`, or names what is no condition, status or method.
    """
    if value is None:
        return None
    if not isinstance(value, Retries):
        example = "Retries(count=2, on={'connect-failure', '5xx'})"
        way = f"such as {example}, of mesh_middleware.routing.chain"
        raise ConfigError(f"retries={value!r} is no Retries, {way}")
    for part in ("on", "statuses", "methods"):
        if not isinstance(getattr(value, part), set | frozenset):
            raise ConfigError(f"Retries({part}={getattr(value, part)!r}): a set is expected")
    for name in sorted(value.on - CONDITIONS, key=str):
        meant = nearest(str(name), CONDITIONS)
        raise ConfigError(f"Retries(on=...) knows no {name!r}; did you mean {meant!r}?")
    for status in value.statuses:
        if not isinstance(status, int):
            raise ConfigError(f"Retries(statuses=...): {status!r} is no number, such as 503")
    for method in value.methods:
        if method != method.upper():  # httpx makes all of them upper case
            raise ConfigError(f"Retries(methods=...): {method!r} is written {method.upper()!r}")
    return value
