"""
Keeps this instance registered as Connect-native, by one process among its workers.

Owns the lock that decides which process that is, the TTL heartbeat and the deregistration.
The lock is the operating system's (`fcntl.lockf`): it dies with its holder, so that another
worker takes over when the owner is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO
from weakref import WeakValueDictionary

from .config import Settings
from .consul import wire
from .consul.client import LOST, ConsulClient
from .exceptions import AgentError, ConfigError

_log = logging.getLogger("mesh_middleware.registration")

BEATS_PER_TTL = 3
"""Heartbeats per TTL: two may be lost before the check turns critical."""


class OwnerLock:
    """
    Decides which process on this machine registers an instance.

    Args:
        agent: address of the agent.
        instance: Consul's ID of the instance.
        folder: where the lock file lies; a private folder of this user unless given.
    """

    def __init__(self, agent: str, instance: str, folder: Path | None = None) -> None:
        name = hashlib.sha256(f"{agent}\n{instance}".encode()).hexdigest()[:32]
        self._folder = folder
        self._name = f"{name}.lock"
        self._file: IO[bytes] | None = None

    @property
    def held(self) -> bool:
        """Whether this process owns the registration."""
        return self._file is not None

    def acquire(self) -> bool:
        """
        Try to become the owner, without waiting.

        Raises:
            ConfigError: the folder for lock files cannot be used.
        """
        if self._file is not None:
            return True
        try:
            path = (self._folder or _private_folder()) / self._name
            # Such locks belong to processes: a second one here would be given, and the end of
            # either would end both.
            if path in _held:
                return False
            file = open(path, "ab")
        except OSError as error:
            raise ConfigError(f"lock file of the registration: {error}") from None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        self._file = file
        _held[path] = self
        return True

    def release(self) -> None:
        """Let another process become the owner."""
        if self._file is not None:
            _held.pop(Path(self._file.name), None)
            self._file.close()
            self._file = None


_held: WeakValueDictionary[Path, OwnerLock] = WeakValueDictionary()
"""What this process owns, by lock file; a child of it owns nothing."""
os.register_at_fork(after_in_child=_held.clear)


class Registration:
    """
    The registration of this instance, stepped by the watcher.

    Args:
        settings: what is registered.
        client: the agent.
        lock: decides whether this process is the one.
        told: called with ``True`` after registering, with ``False`` after deregistering.
    """

    def __init__(
        self,
        settings: Settings,
        client: ConsulClient,
        lock: OwnerLock,
        told: Callable[[bool], None],
    ) -> None:
        self._settings = settings
        self._client = client
        self._lock = lock
        self._told = told
        self._sent = self._stood_by = False
        self.registered = False

    @property
    def owner(self) -> bool:
        """Whether this process is the one that registers."""
        return self._lock.held

    async def beat(self, status: str, output: str) -> None:
        """
        Register when needed, and report the state of the check.

        Args:
            status: ``passing`` or ``critical``.
            output: what people read beside it.

        Raises:
            AgentError: the agent did not take it; the next beat registers anew.
        """
        if not self._lock.acquire():
            self._stood_by = True
            return
        known = self.registered
        if not known:
            await self._register()
        try:
            await self._report(status, output)
        except AgentError as error:
            # An agent that lost its state knows the check no more, and says so with 404 or 500. One
            # that says nothing is not asked twice: that would take as long again to be noticed.
            self.registered = False
            if not known or error.code in LOST:
                raise
            await self._register()
            await self._report(status, output)

    async def end(self, *, hand_over: bool = False) -> None:
        """
        Turn the check critical, deregister, and let go of the ownership.

        Args:
            hand_over: another process goes on in this one's place: only let go.
        """
        try:
            if not hand_over:
                await self._deregister()
        finally:
            # Also when it is given up: a file that is collected later would take the lock with it
            # that another mesh of this process holds by then.
            self._lock.release()

    async def _deregister(self) -> None:
        # Also after a registration that was cut short, which the agent may have taken; and where
        # the owner went without a word, or handed over to nobody.
        sent, self._sent, self.registered = self._sent, False, False
        if sent or (self._stood_by and self._lock.acquire()):
            try:
                with contextlib.suppress(AgentError):
                    await self._report("critical", "the service is stopping")
                answer = await self._client.ask(wire.deregister_question(self._settings))
                _expect_200(answer.status, answer.body)
                if sent:
                    self._told(False)
            except AgentError as error:
                _log.warning("deregistration of %s: %s", self._settings.instance_id, error)

    async def _register(self) -> None:
        self._sent = True
        answer = await self._client.ask(wire.register_question(self._settings))
        _expect_200(answer.status, answer.body)
        self.registered = True
        _log.info("registered %s as Connect-native", self._settings.instance_id)
        self._told(True)

    async def _report(self, status: str, output: str) -> None:
        answer = await self._client.ask(wire.ttl_question(self._settings, status, output))
        _expect_200(answer.status, answer.body)


def _expect_200(status: int, body: object) -> None:
    if status != 200:
        raise AgentError(f"{status}: {body}")


def _private_folder() -> Path:
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    base = Path(named if os.path.isdir(named) else tempfile.gettempdir())
    folder = base / f"mesh_middleware-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    seen = folder.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid() or seen.st_mode & 0o022:
        raise ConfigError(f"{folder}: has to be a folder that only this user can write to")
    return folder
