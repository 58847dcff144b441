"""
Reads files that settings name: regular files only, and no more of them than is allowed.

A FIFO would block whoever opens it, and a device may have no end.
"""

from __future__ import annotations

import os
import stat


class NotRegularError(OSError):
    """The path names something else than a regular file."""


def read_regular_file(path: str | os.PathLike[str], limit: int) -> bytes:
    """
    Read a file whole.

    Args:
        path: of a regular file, or of a link to one.
        limit: bytes that are read at most; one more tells that there are more.

    Returns:
        Its content, up to *limit* + 1 bytes.

    Raises:
        OSError: it cannot be read, or is no regular file (`NotRegularError`).
    """
    # A FIFO is opened at once then, also where nobody writes to it.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        demand_regular(file.fileno(), path)
        return file.read(limit + 1)


def demand_regular(file: int | str | os.PathLike[str], path: object = None) -> None:
    """
    Make sure that a file is a regular one.

    Args:
        file: descriptor or path.
        path: for the message; *file* unless given.

    Raises:
        OSError: it cannot be found, or is no regular file (`NotRegularError`).
    """
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise NotRegularError(0, "not a regular file; name one", str(path or file))
