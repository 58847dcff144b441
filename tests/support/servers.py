"""
Real processes under test: ``hypercorn --config mesh app:app``, and whatever else has to run.

Owns start, output and stop of one process, by its own id. Waiting is for its output or its end,
always with a limit, and what it printed is in the error when the wait was in vain.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

PATIENCE = 30.0
"""Seconds for anything that takes well under one on an idle machine."""
HELD = 6
"""Questions of a mesh without upstreams that its agent holds: roots, leaf, intentions and three
config entries. A fault that is to meet them all waits until they are."""

_RUNNING = re.compile(r"Running on (https?)://(\S+):(\d+) ")


def hypercorn() -> str:
    """Path of the ``hypercorn`` command of this Python."""
    return str(Path(sys.executable).with_name("hypercorn"))


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without anything that names a Consul or sets the mesh."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CONSUL_", "MESH_"))}
    return kept | {"PYTHONUNBUFFERED": "1"} | more


def until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """
    Ask again until the answer is something; for facts that announce themselves nowhere.

    Raises:
        AssertionError: not within *timeout* seconds.
    """
    end, pause = time.monotonic() + timeout, threading.Event()
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {timeout:g} s: {what}"
        pause.wait(0.02)
    return found


def _heed_terminal() -> None:
    # A suite that runs in a shell's background, or without a terminal, has them ignored; children
    # inherit that.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Process:
    """
    One process with its output; use it in ``with``, which stops it.

    Args:
        command: program and arguments.
        folder: where it runs.
        environment: all of its environment.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.command = tuple(command)
        self.folder = folder
        self._environment = dict(environment)
        self._changed = threading.Condition()
        self._text = ""
        self._ended = False

    def start(self) -> Self:
        """Start it, as the leader of a session of its own."""
        self._child = subprocess.Popen(
            self.command,
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_heed_terminal,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def output(self) -> str:
        """What it and its children have printed so far."""
        with self._changed:
            return self._text

    @property
    def lines(self) -> list[str]:
        """What it has printed, by lines that are not empty."""
        return [line for line in self.output.splitlines() if line.strip()]

    def wait_output(
        self, pattern: str | re.Pattern[str], *, count: int = 1, timeout: float = PATIENCE
    ) -> list[re.Match[str]]:
        """
        Wait until *pattern* has been printed *count* times.

        Raises:
            AssertionError: it was not in time, or the process has ended before.
        """
        expression = re.compile(pattern)

        def found() -> list[re.Match[str]]:
            return list(expression.finditer(self._text))

        with self._changed:
            self._changed.wait_for(lambda: len(found()) >= count or self._ended, timeout)
            matches, text = found(), self._text
        assert len(matches) >= count, f"{self.command}: no {expression.pattern!r} in\n{text}"
        return matches

    def wait_end(self, timeout: float = PATIENCE) -> int:
        """
        Wait until it has ended by itself, with all that it printed read.

        Returns:
            Its exit code; negative when a signal ended it.

        Raises:
            AssertionError: it still runs.
        """
        try:
            code = self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.command} still runs:\n{self.output}") from None
        self._reader.join(timeout)
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._child.send_signal(number)

    def stop(self, timeout: float = 15.0) -> int:
        """
        Ask it to end and wait; when it does not, kill what is left of its session.

        Returns:
            Its exit code. Stopping twice is fine.
        """
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(timeout)
            except subprocess.TimeoutExpired:
                os.killpg(self._child.pid, signal.SIGKILL)
                self._child.wait()
        self._reader.join(timeout)
        return self._child.returncode

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop()
        if kind is not None:
            print(f"--- {' '.join(self.command)} (pid {self.pid}) printed:\n{self.output}")

    def _read(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as stream:
            for line in stream:
                self._add(line.decode(errors="replace"))
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _add(self, line: str) -> None:
        with self._changed:
            self._text += line
            self._changed.notify_all()


def mesh_file(mesh: Mapping[str, Any] | None = None, **top: Any) -> str:
    """
    Text of a ``mesh`` file as users write it.

    Args:
        mesh: its ``[mesh]`` table; ``None`` for no table.
        top: Hypercorn's own keys, besides ``bind``, ``certfile`` and ``keyfile``; ``None`` leaves
            one of those out.
    """
    keys = {"bind": "127.0.0.1:0", "certfile": "mesh", "keyfile": "mesh", **top}
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items() if value is not None]
    if mesh is not None:
        lines.append("[mesh]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in mesh.items()]
    return "\n".join(lines) + "\n"


class Hypercorn(Process):
    """
    ``hypercorn --config mesh app:app`` in a folder of its own, on ports that the system chooses.

    Args:
        folder: takes the files.
        app: text of ``app.py``.
        mesh: text of the file ``mesh``, as `mesh_file` makes it.
        agent: address of the agent, for ``MESH_AGENT``.
        arguments: instead of ``--config mesh app:app``.
        environment: more variables, ``MESH_AGENT`` among them.
    """

    def __init__(
        self,
        folder: Path,
        app: str,
        mesh: str,
        *,
        agent: str = "http://127.0.0.1:1",
        arguments: Sequence[str] = ("--config", "mesh", "app:app"),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "app.py").write_text(app)
        (folder / "mesh").write_text(mesh)
        variables = clean_environment(**{"MESH_AGENT": agent, **(environment or {})})
        super().__init__([hypercorn(), *arguments], folder, variables)

    def wait_ready(self, listeners: int = 1) -> Self:
        """
        Wait until it serves.

        Args:
            listeners: how many there are, over all workers.
        """
        self.wait_output(_RUNNING, count=listeners)
        return self

    def port(self, scheme: str = "https") -> int:
        """The port it serves *scheme* at."""
        for found in _RUNNING.finditer(self.output):
            if found[1] == scheme:
                return int(found[3])
        raise AssertionError(f"nothing is served over {scheme}:\n{self.output}")
