"""
A large JSON answer read piece by piece, so that nothing waits long for the interpreter.

Owns the walk over one object of lists, as the match endpoint answers. Decoded
at once, ten thousand intentions hold the interpreter's lock for tens of milliseconds, and leave so
many values alive that the garbage collector holds it for longer. Knows nothing of intentions.

Source: RFC 8259; reference 4.3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from ..exceptions import AgentAnswerError

T = TypeVar("T")

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()

Take = Callable[[str, int], tuple[T, int]]
"""Reads what stands at a place of a text; returns it, and the place behind it."""


def decode_at(text: str, place: int) -> tuple[Any, int]:
    """
    Decode the JSON value at *place*; a `Take`.

    Raises:
        ValueError: there is none.
    """
    return _DECODER.raw_decode(text, place)


def list_under(name: str, text: bytes) -> Iterator[object]:
    """
    Read one list of an object of lists.

    Args:
        name: key of the list.
        text: JSON of the object.

    Returns:
        The items, decoded one at a time; none when ``null`` stands there.

    Raises:
        AgentAnswerError: *text* is no such JSON, or has no list under *name*. Items read until
            then are worth nothing.
    """
    yield from list_in(name, decoded(text), decode_at)


def decoded(text: bytes) -> str:
    """
    The characters of *text*.

    Raises:
        AgentAnswerError: it is no UTF-8.
    """
    try:
        return text.decode("utf-8")
    except ValueError as error:
        raise AgentAnswerError(f"intentions match: {error}") from None


def list_in(name: str, text: str, take: Take[T]) -> Iterator[T]:
    """
    Read one list of an object of lists, as `list_under`, each item by *take*.

    Raises:
        AgentAnswerError: as there.
    """
    try:
        yield from _read(name, text, take)
    except (ValueError, RecursionError, IndexError) as error:
        raise AgentAnswerError(f"intentions match: not JSON: {error}") from None


def _read(name: str, text: str, take: Take[T]) -> Iterator[T]:
    place = _after(text, 0, "{")
    found = False
    while text[place] != "}":
        key, place = _DECODER.raw_decode(text, place)
        place = _after(text, _skip(text, place), ":")
        if key != name or found:
            raise AgentAnswerError(f"intentions match: {key!r} in the answer, not {name!r} alone")
        found = True
        if text[place] == "[":
            place = yield from _items(text, place, take)
        else:
            value, place = _DECODER.raw_decode(text, place)
            if value is not None:
                raise AgentAnswerError("intentions match: a list of intentions was expected")
        place = _next(text, place, "}")
    if _skip(text, place + 1) != len(text):
        raise ValueError("something behind the end")
    if not found:
        raise AgentAnswerError(f"intentions match: no list for {name!r} in the answer")


def _items(text: str, place: int, take: Take[T]) -> Generator[T, None, int]:
    """Yield the items of the list at *place*; return the place behind it."""
    place = _after(text, place, "[")
    while text[place] != "]":
        value, place = take(text, place)
        yield value
        place = _next(text, place, "]")
    return place + 1


def _next(text: str, place: int, end: str) -> int:
    """Go on behind an item: to the next one, or to the *end* of all."""
    place = _skip(text, place)
    if text[place] == end:
        return place
    place = _after(text, place, ",")
    if text[place] == end:
        raise ValueError("a comma before the end")
    return place


def _after(text: str, place: int, sign: str) -> int:
    place = _skip(text, place)
    if text[place] != sign:
        raise ValueError(f"{sign} expected at {place}")
    return _skip(text, place + 1)


def _skip(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    assert found is not None
    return found.end()
