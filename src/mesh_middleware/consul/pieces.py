"""
A large JSON answer read piece by piece, so that nothing waits long for the interpreter.

Owns the walk over one object of lists, as the match endpoint answers, and the pauses in it. Decoded
at once, ten thousand intentions hold the interpreter's lock for tens of milliseconds, and leave so
many values alive that the garbage collector holds it for longer. Knows nothing of intentions.

Source: RFC 8259; reference 4.3.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

from ..exceptions import AgentAnswerError

T = TypeVar("T")

PACE = 32
"""Pieces between two pauses: about half a millisecond of work."""

PAUSE = 0.00005
"""Seconds of a pause: long enough that a thread that waits for the lock gets it."""

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def paced(items: Iterable[T]) -> Iterator[T]:
    """Hand on *items*, and let other threads run every few of them."""
    for number, item in enumerate(items, 1):
        yield item
        if number % PACE == 0:
            time.sleep(PAUSE)


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
    try:
        yield from _read(name, text.decode("utf-8"))
    except (ValueError, RecursionError, IndexError) as error:
        raise AgentAnswerError(f"intentions match: not JSON: {error}") from None


def _read(name: str, text: str) -> Iterator[object]:
    place = _after(text, 0, "{")
    found = False
    while text[place] != "}":
        key, place = _DECODER.raw_decode(text, place)
        place = _after(text, _skip(text, place), ":")
        if key != name or found:
            raise AgentAnswerError(f"intentions match: {key!r} in the answer, not {name!r} alone")
        found = True
        if text[place] == "[":
            place = yield from _items(text, place)
        else:
            value, place = _DECODER.raw_decode(text, place)
            if value is not None:
                raise AgentAnswerError("intentions match: a list of intentions was expected")
        place = _skip(text, place)
        if text[place] == ",":
            place = _after(text, place, ",")
            if text[place] == "}":
                raise ValueError("a comma before the end")
        elif text[place] != "}":
            raise ValueError("no comma between lists")
    if _skip(text, place + 1) != len(text):
        raise ValueError("something behind the end")
    if not found:
        raise AgentAnswerError(f"intentions match: no list for {name!r} in the answer")


def _items(text: str, place: int) -> Generator[object, None, int]:
    """Yield the items of the list at *place*; return the place behind it."""
    place = _after(text, place, "[")
    while text[place] != "]":
        value, place = _DECODER.raw_decode(text, place)
        yield value
        place = _skip(text, place)
        if text[place] == ",":
            place = _after(text, place, ",")
            if text[place] == "]":
                raise ValueError("a comma before the end")
        elif text[place] != "]":
            raise ValueError("no comma between items")
    return place + 1


def _after(text: str, place: int, sign: str) -> int:
    place = _skip(text, place)
    if text[place] != sign:
        raise ValueError(f"{sign} expected at {place}")
    return _skip(text, place + 1)


def _skip(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    assert found is not None
    return found.end()
