"""
Keeps this instance registered as Connect-native, by one process among its workers.

Owns the lock that decides which process that is, the token that tells this server's registration
from another's, the TTL heartbeat and the deregistration. The lock is the operating system's
(`fcntl.lockf`): it dies with its holder, so that another worker takes over when the owner is
killed.

Theory. Consul knows a registration by its ID alone, and the later one replaces the earlier. The
default ID holds the address, so that two pods with the same port differ. Where two servers have one
ID all the same, a random token in the registration's metadata tells who made it. It lies beside the
lock file: the workers of one server share it, and so does the next owner after a restart. Before
registering and before each heartbeat the entry is read; one with another token whose check is not
critical is left alone. Registering is no compare-and-set: two that register in the same moment both
succeed, and the earlier finds the other's token with its next heartbeat and stands by. Each such
race ends within a TTL.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO
from weakref import WeakValueDictionary

from .config import Settings
from .consul import wire
from .consul.client import LOST, ConsulClient
from .exceptions import AgentError, ConfigError, InstanceTakenError

_log = logging.getLogger("mesh_middleware.registration")

_TOKEN = re.compile("[0-9a-f]{32}")

BEATS_PER_TTL = 3
"""Heartbeats per TTL: two may be lost before the check turns critical."""


class OwnerLock:
    """
    Decides which process on this machine registers an instance.

    Args:
        agent: address of the agent.
        instance: Consul's ID of the instance.
        folder: where the lock file lies; a private folder of this user unless given.
        place: address and port that are registered. Host name and network namespace count as well:
            containers may share the folder.
    """

    def __init__(
        self, agent: str, instance: str, folder: Path | None = None, place: str = ""
    ) -> None:
        parts = (agent, instance, place, os.uname().nodename, _network_namespace())
        name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
        self._folder = folder
        self._name = f"{name}.lock"
        self._file: IO[bytes] | None = None
        self._token = ""

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

    def token(self) -> str:
        """
        The token of this server, read from beside the lock file, or made there.

        Called by the owner only. Where the file cannot be read or written, the token lives as long
        as this process.
        """
        if not self._token and self._file is not None:
            path = Path(self._file.name).with_suffix(".token")
            try:
                self._token = _read_token(path) or _write_token(path)
            except OSError as error:
                _log.warning("token of the registration: %s; another is used from now on", error)
                self._token = secrets.token_hex(16)
        return self._token

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
        self._sent = self._stood_by = self._taken = False
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
            InstanceTakenError: another server has registered this ID, and lives.
            AgentError: the agent did not take it; the next beat registers anew.
        """
        if not self._lock.acquire():
            self._stood_by = True
            return
        await self._look()
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

    async def _look(self) -> None:
        """
        Find out whether this server may register, or is registered still.

        What the agent will not tell (a token that may not read, an answer that cannot be read) is
        no reason to let the check run out.
        """
        try:
            entry = await self._read()
            if entry is None:
                self.registered = False
                return
            if self._is_ours(entry):
                self._taken = False
                return
            alive = await self._is_alive()
        except AgentError as error:
            if error.code in LOST:
                # When it is back it may know less, or something older.
                self.registered = False
                raise
            _log.debug("the registration of %s: %s", self._settings.instance_id, error)
            return
        if self.registered:
            self.registered = False
            self._told(False)
        self._taken = alive
        if alive:
            where = f"{entry.address or 'the address of the agent'}, port {entry.port}"
            raise InstanceTakenError(
                f"{self._settings.instance_id} is registered by another server ({where}), whose "
                "check is not critical: standing by; give each a service_id, or an address, of "
                "its own"
            )
        _log.warning("%s: taken over, its check is critical", self._settings.instance_id)

    async def _read(self) -> wire.Entry | None:
        answer = await self._client.ask(wire.instance_question(self._settings))
        return None if answer.status == 404 else wire.parse_instance(answer.body)

    def _is_ours(self, entry: wire.Entry) -> bool:
        if entry.owner:
            return entry.owner == self._lock.token()
        # A file of the agent's, or an older version of this package: the same place is the same.
        return (entry.address, entry.port) == (self._settings.address, self._settings.port)

    async def _is_alive(self) -> bool:
        answer = await self._client.ask(wire.checks_question(self._settings))
        return wire.parse_alive(answer.body, self._settings)

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
        if self._taken:
            return
        if sent or (self._stood_by and self._lock.acquire()):
            try:
                if await self._is_anothers():
                    return
                with contextlib.suppress(AgentError):
                    await self._report("critical", "the service is stopping")
                answer = await self._client.ask(wire.deregister_question(self._settings))
                _expect_200(answer.status, answer.body)
                if sent:
                    self._told(False)
            except AgentError as error:
                _log.warning("deregistration of %s: %s", self._settings.instance_id, error)

    async def _is_anothers(self) -> bool:
        """Whether the entry was replaced since the last heartbeat: it is not ours to end."""
        try:
            entry = await self._read()
        except AgentError as error:
            if error.code in LOST:
                raise
            return False
        return entry is not None and not self._is_ours(entry)

    async def _register(self) -> None:
        self._sent = True
        question = wire.register_question(self._settings, self._lock.token())
        answer = await self._client.ask(question)
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


def _read_token(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return ""
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            text = file.read(64).decode("ascii", "replace")
    except FileNotFoundError:
        return ""
    return text if _TOKEN.fullmatch(text) else ""


def _write_token(path: Path) -> str:
    # Replaced whole: whatever stands under the name is neither followed nor opened.
    token = secrets.token_hex(16)
    made = path.with_suffix(f".{secrets.token_hex(4)}")
    with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)
    os.replace(made, path)
    return token


def _network_namespace() -> str:
    """Name of this process's network namespace; empty where the platform has none."""
    try:
        return os.readlink("/proc/self/ns/net")
    except OSError:
        return ""


def _private_folder() -> Path:
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    base = Path(named if os.path.isdir(named) else tempfile.gettempdir())
    folder = base / f"mesh_middleware-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    seen = folder.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid() or seen.st_mode & 0o022:
        raise ConfigError(f"{folder}: has to be a folder that only this user can write to")
    return folder
