"""
Processes that the bench starts: their life, CPU time, cores and private memory.

Owns every process of a run, so that all of them are ended whatever happens, by their id. Linux
only: reads ``/proc``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

STOP_SECONDS = 8.0
"""Seconds a process gets between being asked to end and being killed."""

_FOREIGN = ("CONSUL_", "MESH_", "COVERAGE_", "PYTHON")
"""Variables of the caller's shell that would change what is measured."""

BYTECODE = Path(__file__).parent.parent / ".cache" / "bench" / "pycache"
"""Where programs keep compiled modules: an installation has them, a fresh checkout may not, and
compiling costs time at the start and megabytes for good."""


class Process:
    """
    One program of the setting, with the children it starts.

    Args:
        name: for messages and the log file.
        command: program and arguments.
        folder: working directory, and where the log goes.
        variables: added to the environment.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        folder: Path,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C reaches the bench, which then ends its processes.
            self._popen = subprocess.Popen(
                command,
                cwd=folder,
                env={**kept, "PYTHONPYCACHEPREFIX": str(BYTECODE), **(variables or {})},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._known: list[int] = []

    @property
    def pid(self) -> int:
        """Id of the program itself."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._popen.stdin is not None
        os.write(self._popen.stdin.fileno(), f"{line}\n".encode())

    def log(self) -> str:
        """The end of what it has written."""
        return self._log.read_text(errors="replace")[-3000:]

    def settle(self) -> None:
        """Remember the present children: no more are expected."""
        self._known = [self.pid, *_descendants(self.pid)]

    def pids(self) -> list[int]:
        """The program and its children."""
        if not self._known:
            self.settle()
        return self._known

    def workers(self) -> list[int]:
        """Those of Hypercorn's children that serve."""
        return [pid for pid in self.pids() if b"spawn_main" in _command(pid)]

    def close(self) -> None:
        """End it: asked first, killed after a while. Closing twice is no error."""
        if self.alive:
            self.settle()
            self._popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(STOP_SECONDS)
        for pid in reversed(self._known):
            if pid != self.pid and _is_ours(pid, self.pid):
                _kill(pid)
        if self.alive:
            self._popen.kill()
            self._popen.wait()
        if self._popen.stdin is not None:
            self._popen.stdin.close()


class Processes:
    """All processes of a run; leaving the block ends them, the last one first."""

    def __init__(self) -> None:
        self._started: list[Process] = []

    def start(
        self,
        name: str,
        command: list[str],
        folder: Path,
        variables: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a program."""
        process = Process(name, command, folder, variables)
        self._started.append(process)
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A second Ctrl-C must not leave half of them behind.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for process in reversed(self._started):
                process.close()
        finally:
            signal.signal(signal.SIGINT, before)


def cpu_seconds(pids: Iterable[int]) -> float:
    """
    CPU time that processes have used, user and system, ended threads included.

    Read from the kernel's clock of each process: nanoseconds, where ``/proc/<pid>/stat`` has
    hundredths of a second of the same counter.
    """
    # Source: Linux, include/linux/posix-timers_types.h, CPUCLOCK_SCHED of a process.
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def busy_seconds() -> float:
    """CPU time that the whole machine has used, stolen time included."""
    fields = [int(f) for f in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _wait, irq, softirq, steal = fields
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def pin(pids: Iterable[int], cores: set[int]) -> None:
    """Let all threads of these processes run on *cores* only."""
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cores)


def private_bytes(pid: int) -> int:
    """Memory that only this process uses (USS): what one more worker costs."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    rows = (line.split() for line in text.splitlines())
    wanted = ("Private_Clean:", "Private_Dirty:")
    return sum(int(row[1]) * 1024 for row in rows if row[0] in wanted)


def _descendants(pid: int) -> list[int]:
    parents = {int(p): _parent(int(p)) for p in os.listdir("/proc") if p.isdigit()}
    found: list[int] = [pid]
    for each in found:  # grows while it is walked: children, then theirs
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def _parent(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The name in brackets may hold spaces and brackets itself.
    return int(text.rpartition(")")[2].split()[1])


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _is_ours(pid: int, session: int) -> bool:
    """Whether *pid* still is of the session we started: ids of processes are used again."""
    try:
        return os.getsid(pid) == session
    except ProcessLookupError:
        return False


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
