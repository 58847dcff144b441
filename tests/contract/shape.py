"""Shapes of JSON: keys and types, with the differences listed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def differences(expected: Any, actual: Any, path: str = "") -> Iterator[str]:
    """
    Where *actual* has another shape than *expected*: ``path: what``.

    An empty list or object fits any other; elements of lists are compared with the first one that
    is expected of their kind.
    """
    if _kind(expected) != _kind(actual):
        yield f"{path}: {_kind(expected)} expected, {_kind(actual)} found"
    elif isinstance(expected, dict):
        yield from _object_differences(expected, actual, path)
    elif isinstance(expected, list) and expected:
        for at, item in enumerate(actual):
            model = expected[at] if at < len(expected) else expected[0]
            yield from differences(model, item, f"{path}[{at}]")


def _object_differences(
    expected: dict[str, Any], actual: dict[str, Any], path: str
) -> Iterator[str]:
    for key in expected.keys() - actual.keys():
        yield f"{path}.{key}: missing"
    for key in actual.keys() - expected.keys():
        yield f"{path}.{key}: not expected"
    for key in expected.keys() & actual.keys():
        yield from differences(expected[key], actual[key], f"{path}.{key}")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return {str: "string", list: "list", dict: "object"}[type(value)]
