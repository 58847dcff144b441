"""
Repairs of Hypercorn, one file each, and the table of them.

Owns the table `REPAIRS` and their installation in a worker, before it serves. A repair is a
subclass or a wrapper of one of Hypercorn's classes, bound where Hypercorn looks that class up. The
older repairs, `hypercorn_mend` and its neighbours, move here one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Repair(NamedTuple):
    """
    One row of the table.

    Args:
        name: of its module in this package.
        what: which fault it repairs, in one sentence.
        versions: of Hypercorn it was proven on.
        issue: address of the public issue or pull request; empty where none is known.
        test: path of its test, from the root of the repository.
        install: binds it; called once in a process.
    """

    name: str
    what: str
    versions: tuple[str, ...]
    issue: str
    test: str
    install: Callable[[], None]


REPAIRS: tuple[Repair, ...] = ()
"""Every repair, in the order in which they are installed."""

_installed: set[str] = set()


def install_repairs() -> None:
    """Install every repair that this process does not have yet."""
    for repair in REPAIRS:
        if repair.name not in _installed:
            _installed.add(repair.name)
            repair.install()
