"""
Parts of JSON that Go wrote: texts, flags, durations, and nulls for what is empty.

Source: Consul HTTP API, conventions (reference 1.2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..exceptions import AgentAnswerError

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")


def duration(value: object) -> float:
    """
    Read a Go duration.

    Args:
        value: a text such as ``1m30s``, or a number of nanoseconds; ``None`` and "" are 0.

    Returns:
        Seconds.

    Raises:
        AgentAnswerError: it is no duration.
    """
    if value is None or value == "":
        return 0.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value / 1e9
    if isinstance(value, str):
        sign, rest = (-1.0, value[1:]) if value.startswith("-") else (1.0, value.removeprefix("+"))
        if rest == "0":
            return 0.0
        parts = list(_DURATION.finditer(rest))
        if parts and "".join(part.group() for part in parts) == rest:
            return sign * sum(float(part[1]) * _UNITS[part[2]] for part in parts)
    raise AgentAnswerError(f"{value!r} is no duration")


def text(owner: Mapping[str, Any], key: str) -> str:
    """Read a text, empty when it is not set."""
    value = owner.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise AgentAnswerError(f"{key} is {value!r}, not a text")
    return value


def flag(owner: Mapping[str, Any], key: str) -> bool:
    """Read a yes or no, no when it is not set."""
    value = owner.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise AgentAnswerError(f"{key} is {value!r}, not true or false")
    return value


def table(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise AgentAnswerError(f"{what} is {type(value).__name__}, not an object")
    return value


def part(owner: Mapping[str, Any], key: str, empty: Any) -> Any:
    # Go writes null for an empty map or list, and may leave the key out.
    value = owner.get(key)
    if value is None:
        return empty
    if not isinstance(value, type(empty) if isinstance(empty, list) else Mapping):
        raise AgentAnswerError(f"{key} is {type(value).__name__}, not {type(empty).__name__}")
    return value
