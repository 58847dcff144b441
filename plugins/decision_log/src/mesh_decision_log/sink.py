"""
Where lines go, without a request waiting for it.

Owns the thread that writes, how many lines may wait, and what happens when it cannot write: the
line is lost, one warning is logged, and the service goes on.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from pathlib import Path

MAX_WAITING = 10_000
"""Lines that may wait to be written; some 3 MB."""

_log = logging.getLogger("mesh_decision_log")


class Sink(ABC):
    """Takes lines; never blocks, never raises."""

    @abstractmethod
    def write(self, line: str) -> None:
        """Take one line, without its line end."""

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until all lines taken so far are written; tell whether they are."""
        return True


class LoggerSink(Sink):
    """Lines go to the logger ``mesh_decision_log``, whose handlers do what the service wants."""

    def write(self, line: str) -> None:
        _log.info("%s", line)


class ThreadSink(Sink):
    """Lines wait for a thread of this process, which writes them in batches."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self._changed = threading.Condition()
        self._dropped = 0
        self._busy = False
        self._complained = False
        self._writer_of = 0
        # A thread does not survive a fork, and a lock may be held in one for ever.
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._waiting, self._changed = deque(), threading.Condition()
        self._dropped, self._busy, self._writer_of = 0, False, 0

    def write(self, line: str) -> None:
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                self._dropped += 1
                return
            if self._dropped:
                line = f'{line[:-1]}, "dropped": {self._dropped}}}'
                self._dropped = 0
            self._waiting.append(line)
            self._changed.notify_all()
            if not self._writer_of:
                self._start()

    def flush(self, timeout: float = 5.0) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout)

    def _start(self) -> None:
        self._writer_of = os.getpid()
        threading.Thread(target=self._run, name="mesh-decision-log", daemon=True).start()
        atexit.register(self.flush)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                batch = "".join(f"{line}\n" for line in self._waiting)
                self._waiting.clear()
                self._busy = True
            self._try(batch)
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _try(self, batch: str) -> None:
        try:
            self._put(batch)
        except (OSError, ValueError) as error:
            if not self._complained:
                self._complained = True
                _log.warning("decisions are not logged: %s", error)

    @abstractmethod
    def _put(self, batch: str) -> None: ...


class StderrSink(ThreadSink):
    """Lines go to standard error."""

    def _put(self, batch: str) -> None:
        sys.stderr.write(batch)
        sys.stderr.flush()


class FileSink(ThreadSink):
    """
    Lines are appended to a file, opened anew for each batch, so that it may be rotated.

    Args:
        path: name of the file; its directory has to exist.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = Path(path)

    def _put(self, batch: str) -> None:
        # One write to a file opened for appending: lines of several workers do not mix.
        data = batch.encode()
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)
