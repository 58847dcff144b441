"""
Repairs of Hypercorn, one file each, and the table of them.

Owns the table `REPAIRS` and their installation in a worker, before it serves. A repair is a
subclass or a wrapper of one of Hypercorn's classes, bound where Hypercorn looks that class up. The
older repairs, `hypercorn_mend` and its neighbours, move here one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
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


def _install(name: str) -> None:
    """Import the module of a repair, which imports Hypercorn, and install it."""
    import_module(f"{__name__}.{name}").install()


def _repair(name: str, what: str, test: str, issue: str = "") -> Repair:
    return Repair(name, what, ("0.18.0",), issue, test, partial(_install, name))


REPAIRS: tuple[Repair, ...] = (
    _repair(
        "h11_lingering_close",
        "An HTTP/1.1 connection that is closed while its peer sends is reset, which destroys the "
        "last response.",
        "tests/interop/test_unread.py",
    ),
    _repair(
        "h11_unread_body",
        "An HTTP/1.1 connection whose request was answered before all of it had come is closed, "
        "often before the response is read.",
        "tests/interop/test_unread.py",
    ),
    _repair(
        "h11_framing",
        "Requests with Transfer-Encoding and Content-Length are served, and h2c within TLS.",
        "tests/interop/test_framing.py",
    ),
    _repair(
        "websocket_message_size",
        "A compressed WebSocket message is decompressed whole before its size is compared with the "
        "limit, and malformed frames end the connection without a close frame.",
        "tests/interop/test_websocket_messages.py",
    ),
    _repair(
        "h2_flow_control",
        "A stream over HTTP/2 buffers without bound what its peer does not read.",
        "tests/interop/test_h2_flow_control.py",
    ),
    _repair(
        "h2_floods",
        "One HTTP/2 connection can take the event loop from all others.",
        "tests/interop/test_h2_floods.py",
    ),
    _repair(
        "disconnect",
        "An application that streams to a caller that is gone holds the event loop for ever.",
        "tests/interop/test_disconnect.py",
    ),
)
"""Every repair, in the order in which they are installed."""

_installed: set[str] = set()


def install_repairs() -> None:
    """Install every repair that this process does not have yet."""
    for repair in REPAIRS:
        if repair.name not in _installed:
            _installed.add(repair.name)
            repair.install()
