"""
The match endpoint's answers, one after the other: what stands in one as it did in the last is not
read again.

Owns the text of the last answer and the intentions read from it. Knows nothing of what they say.

Theory. The agent tells all intentions whenever one of them has changed, and reading ten thousand
takes longer than a deny may take to act. Nearly all stand there as before, but for the indexes of
the entry they share, which mean nothing to us. With these made equal, both answers begin alike and
end alike, and what stands in these parts is taken over in one step. That is sound: whoever reads
JSON from the left is, after equal beginnings, in the same state; and from the same state goes on in
the same way when all that is left is equal. In between, intentions are compared one by one: a JSON
object's text is never the beginning of another's.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from dataclasses import dataclass, field

from ..intentions.model import Intention
from ..pauses import paced
from . import pieces
from .intentions import Known, parse_intention

# A literal at the beginning of a pattern is searched for ten times as fast.
_INDEXES = [
    (re.compile(f'"{name}":[ ]?(?:0|[1-9][0-9]*)(?=[,}}\\s])'), f'"{name}":0')
    for name in ("CreateIndex", "ModifyIndex")
]

Run = tuple[Intention, ...]


def _offsets() -> array[int]:
    return array("Q")


@dataclass(slots=True)
class _Answer:
    """An answer that was read: its text, and where in it each intention begins and ends."""

    text: str = ""
    begins: array[int] = field(default_factory=_offsets)
    ends: array[int] = field(default_factory=_offsets)
    intentions: Run = ()

    def piece(self, number: int) -> str:
        return self.text[self.begins[number] : self.ends[number]]


class MatchReader:
    """
    Reads the answers about one service.

    Args:
        name: the destination that is asked for.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._last = _Answer()
        self._known: Known = {}

    def read(self, body: bytes) -> tuple[Intention, ...]:
        """
        Read an answer, as `parse_match` does; what has not changed is the same object as before.

        Raises:
            AgentAnswerError: as `parse_match`. The next answer is compared with the last good one.
        """
        text = pieces.decoded(body)
        for pattern, same in _INDEXES:
            text = pattern.sub(same, text)
        if len(self._known) > len(self._last.intentions):
            self._known = {}  # most of it is of intentions that are gone
        reading = _Reading(self._last, text, self._known)
        found: list[Intention] = []
        for run in paced(pieces.list_in(self._name, text, reading.take)):
            found += run
        reading.answer.intentions = tuple(found)
        self._last = reading.answer
        return reading.answer.intentions


class _Reading:
    """
    One answer being read.

    Args:
        last: the one before.
        text: of this one.
        known: permissions read before.
    """

    def __init__(self, last: _Answer, text: str, known: Known) -> None:
        self.answer = _Answer(text)
        self._last, self._known = last, known
        self._head = _alike(last.text, text)
        self._tail = _alike(last.text, text, room=self._head, backwards=True)
        self._moved = len(text) - len(last.text)
        self._next = 0
        self._places: dict[str, int] | None = None

    def take(self, text: str, place: int) -> tuple[Run, int]:
        """One or more intentions from *place* on, and the place behind them."""
        last = self._last
        if place < self._head:
            # What ends with the alike part may go on in the new text, as 5 does in 57.
            stop = bisect_left(last.ends, self._head)
            if stop and last.begins[0] == place:
                return self._take_over(0, stop, 0)
        if place >= len(text) - self._tail:
            first = bisect_left(last.begins, place - self._moved)
            if first < len(last.begins) and last.begins[first] == place - self._moved:
                return self._take_over(first, len(last.begins), self._moved)
        # The next one; or, where one was taken away or has changed, the one behind it.
        for number in range(self._next, min(self._next + 2, len(last.intentions))):
            if text[place] == "{" and text.startswith(last.piece(number), place):
                return self._take_over(number, number + 1, place - last.begins[number])
        return self._read(text, place)

    def _take_over(self, first: int, stop: int, moved: int) -> tuple[Run, int]:
        last, answer = self._last, self.answer
        answer.begins.extend([place + moved for place in last.begins[first:stop]])
        answer.ends.extend([place + moved for place in last.ends[first:stop]])
        self._next = stop
        return last.intentions[first:stop], answer.ends[-1]

    def _read(self, text: str, place: int) -> tuple[Run, int]:
        value, end = pieces.decode_at(text, place)
        found = self._find(text[place:end]) or parse_intention(value, self._known)
        self.answer.begins.append(place)
        self.answer.ends.append(end)
        return (found,), end

    def _find(self, piece: str) -> Intention | None:
        """Where the order has changed: the one that stood somewhere else, if it did."""
        last = self._last
        if self._places is None:
            self._places = {last.piece(number): number for number in range(len(last.intentions))}
        number = self._places.get(piece)
        if number is None:
            return None
        self._next = number + 1
        return last.intentions[number]


def _alike(old: str, new: str, *, room: int = 0, backwards: bool = False) -> int:
    """
    How many characters of two texts are alike from their beginning, or from their end.

    Args:
        room: characters at the beginning that are not looked at.
    """
    low, high = 0, min(len(old), len(new)) - room
    while low < high:
        middle = (low + high + 1) // 2
        if backwards:
            # Only what is not known yet is compared: `low` characters are alike.
            same = (
                old[len(old) - middle : len(old) - low] == new[len(new) - middle : len(new) - low]
            )
        else:
            same = old[low:middle] == new[low:middle]
        low, high = (middle, high) if same else (low, middle - 1)
    return low
