"""
Keys to instances, so that few keys move when an instance comes or goes.

Owns the hash, the ring (``ring_hash``) and the table (``maglev``). The hash is the same in every
process and on every machine; it is not Envoy's, so the two agree on nothing but the rule.

Source: Karger et al., consistent hashing; Eisenbud et al., "Maglev" (NSDI 2016), 3.4; Envoy,
"Supported load balancers".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b

POINTS = 128
"""Points on the ring for each instance of average weight, if the least size asks for no more."""
MAX_POINTS = 1 << 18
"""Points on the ring at most, whatever is asked for: a ring is built while calls are waiting."""
TABLES = (16381, 65537)
"""Sizes of a Maglev table, primes; Envoy's is the second."""

Weighted = Sequence[tuple[str, float]]
"""Name and weight of each instance; names are unique."""


def hash_text(text: str | bytes) -> int:
    """A 64-bit number, the same everywhere."""
    data = text.encode() if isinstance(text, str) else text
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


class Ring:
    """
    Instances on a ring, each at many points; a key belongs to the next point.

    Args:
        instances: at least one.
        least: points at least, all together.
        most: points at most, all together.
    """

    def __init__(self, instances: Weighted, least: int = 1024, most: int = MAX_POINTS) -> None:
        total = sum(weight for _, weight in instances)
        size = min(max(POINTS * len(instances), least), most, MAX_POINTS)
        points = sorted(
            (hash_text(f"{name}#{at}"), index)
            for index, (name, weight) in enumerate(instances)
            for at in range(max(1, round(size * weight / total)))
        )
        self._hashes = [point for point, _ in points]
        self._owners = [index for _, index in points]

    def find(self, key: int) -> int:
        """Index of the instance that *key* belongs to."""
        return self._owners[bisect_right(self._hashes, key) % len(self._owners)]

    def following(self, key: int) -> list[int]:
        """Indexes of all instances in the order in which they stand in for each other."""
        start = bisect_right(self._hashes, key)
        return list(dict.fromkeys([*self._owners[start:], *self._owners[:start]]))


class Maglev:
    """
    Instances in a table that each fills in its own order of preference, by weight.

    Args:
        instances: at least one.
    """

    def __init__(self, instances: Weighted) -> None:
        self._size = TABLES[0] if len(instances) <= 128 else TABLES[1]
        self._names = [name for name, _ in instances]
        self._table = self._fill(instances)

    def _fill(self, instances: Weighted) -> list[int]:
        size = self._size
        table = [-1] * size
        offsets = [hash_text(f"{name}~") % size for name, _ in instances]
        skips = [hash_text(f"~{name}") % (size - 1) + 1 for name, _ in instances]
        top = max(weight for _, weight in instances)
        shares = [weight / top for _, weight in instances]
        turns = [0.0] * len(instances)
        left = size
        while left:
            for index, share in enumerate(shares):
                turns[index] += share
                if turns[index] < 1.0:
                    continue  # a lighter instance passes
                turns[index] -= 1.0
                at = offsets[index]
                while table[at] >= 0:
                    at = (at + skips[index]) % size
                table[at] = index
                offsets[index] = (at + skips[index]) % size
                left -= 1
                if not left:
                    break
        return table

    def find(self, key: int) -> int:
        """Index of the instance that *key* belongs to."""
        return self._table[key % self._size]

    def following(self, key: int) -> list[int]:
        """Indexes of all instances in the order in which they stand in for each other."""
        first = self.find(key)
        others = [index for index in range(len(self._names)) if index != first]
        # Each key has an order of its own, so that the load of one that fails spreads.
        others.sort(key=lambda index: hash_text(f"{key}/{self._names[index]}"))
        return [first, *others]
