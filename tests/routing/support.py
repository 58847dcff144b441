"""Values that several tests of routing need."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mesh_middleware.identity import ServiceId
from mesh_middleware.resolve import Endpoint
from mesh_middleware.routing import Call, Course, Instance, Manners, Place

DOMAIN = "11111111-2222-3333-4444-555555555555.consul"


def endpoint(number: int, *, service: str = "tax", weight: int = 1) -> Endpoint:
    """The instance of that number; its address follows from it."""
    return Endpoint(
        f"10.0.{number >> 8}.{number & 255}", 8000, ServiceId(DOMAIN, "default", "dc1", service),
        weight,
    )  # fmt: skip


def instances(count: int, **meta: str) -> tuple[Instance, ...]:
    """That many instances, with this metadata."""
    entry = {"Service": {"Meta": meta}, "Node": {}, "Checks": []}
    return tuple(Instance(endpoint(number), entry) for number in range(count))


def course(count: int, manners: Manners | None = None) -> Course:
    """The course of ``tax`` with that many instances and the default chain."""
    found = Course("tax", manners=manners)
    found.learn_instances(Place("tax"), instances(count), 0.0)
    return found


def get(target: str = "/", **headers: str) -> Call:
    """A GET."""
    pairs = tuple((k.replace("_", "-").encode(), v.encode()) for k, v in headers.items())
    return Call("GET", target.encode(), pairs)


def address(number: int) -> str:
    """Address of the instance of that number."""
    return endpoint(number).address


def dice(seed: int, count: int) -> Sequence[float]:
    """Numbers from 0 up to 1, the same for the same seed."""
    source = random.Random(seed)
    return [source.random() for _ in range(count)]
