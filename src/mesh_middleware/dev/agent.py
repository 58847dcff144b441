"""
`DevAgent`: a Consul-compatible agent for development and tests, in this process.

Owns the life of state, app, state file and server, and the short-cuts that tests use instead of
HTTP. The rules are in `state` and below it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ..exceptions import ConfigError
from . import forge, store
from .acl import Acl, Token
from .app import AgentApp, Interpose
from .decode import decode_body
from .entries import read_entry
from .faults import Faults
from .routes_intentions import remove_intention, set_intention
from .schemas import INTENTION, SERVICE
from .server import AgentServer, check_loopback
from .state import Clock, Options, State

_DATACENTER = re.compile(r"[A-Za-z0-9_-]+")
"""Source: Consul agent, ``datacenter``."""


def _wall_clock() -> datetime:
    return datetime.now(UTC)


class DevAgent:
    """
    A Consul-compatible agent on loopback. Start it, or use it in ``with``; or take its `app` for an
    in-process transport and start nothing.

    Args:
        port: to listen on; 0 lets the system choose, and keeps that for later starts.
        host: a loopback address.
        datacenter: its name.
        default_policy: what holds when no intention matches, ``"allow"`` or ``"deny"``.
        acl_default_policy: what header and ``agent/self`` claim instead, for tests of doubt.
        acl: secrets to tokens; None turns ACLs off.
        state: file in which CA, intentions, config entries and services outlive a restart (0600).
        leaf_ttl: lifetime of leaves.
        rotation_jitter: seconds within which leaf watchers learn of a new root; Consul: 30.
        now: the clock, aware UTC.

    Raises:
        ConfigError: the host is not loopback, the datacenter has no name, or the state file is
            unusable.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        datacenter: str = "dc1",
        default_policy: str = "allow",
        acl_default_policy: str = "",
        acl: Mapping[str, Token] | None = None,
        state: Path | None = None,
        leaf_ttl: timedelta = timedelta(hours=72),
        rotation_jitter: float = 0.0,
        now: Clock = _wall_clock,
    ) -> None:
        for policy in (default_policy, acl_default_policy or "allow"):
            if policy not in ("allow", "deny"):
                raise ConfigError(f"default policy {policy!r}: must be 'allow' or 'deny'")
        if not _DATACENTER.fullmatch(datacenter):
            raise ConfigError(f"datacenter {datacenter!r}: letters, digits, _ and - are expected")
        self._host = check_loopback(host)
        options = Options(
            datacenter=datacenter.lower(),
            default_policy=default_policy,
            acl_default_policy=acl_default_policy,
            acl=Acl(acl) if acl is not None else None,
            leaf_ttl=leaf_ttl,
            rotation_jitter=rotation_jitter,
        )
        self._path = Path(state) if state is not None else None
        self.state = State(options, now)
        if self._path is not None:
            store.load(self.state, self._path)
            try:
                store.save(self.state, self._path)
            except OSError as error:
                raise ConfigError(f"state file {self._path}: {error.strerror}") from None
        self.app = AgentApp(self.state, self._save)
        self._server = AgentServer(self.app, self._host, port)

    # Life

    def start(self) -> DevAgent:
        """
        Listen and serve in a thread of its own; once more after `close`, on the same port.

        Raises:
            ConfigError: the port is taken.
        """
        if not self._server.running:
            wanted = self._server.port
            self._server = AgentServer(self.app, self._host, wanted)
            self._server.start()
        return self

    def close(self) -> None:
        """Stop serving; blocked requests end at once. Closing twice is no error."""
        self._server.close()
        self._save()

    def __enter__(self) -> DevAgent:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<DevAgent {self.url} {self.trust_domain}>"

    def _save(self) -> None:
        if self._path is not None:
            store.save(self.state, self._path)

    # What it is

    @property
    def host(self) -> str:
        """The address it listens on."""
        return self._host

    @property
    def port(self) -> int:
        """The port it listens on; before the first start, the wanted one."""
        return self._server.port

    @property
    def url(self) -> str:
        """Its address for clients: ``http://127.0.0.1:<port>``."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    @property
    def trust_domain(self) -> str:
        """``<cluster uuid>.consul``."""
        return self.state.ca.trust_domain

    @property
    def roots_pem(self) -> str:
        """Every trusted root, PEM."""
        return "".join(root.pem for root in self.state.ca.roots)

    @property
    def interpose(self) -> Interpose | None:
        """Called before each request is answered: see `AgentApp`."""
        return self.app.interpose

    @interpose.setter
    def interpose(self, hook: Interpose | None) -> None:
        self.app.interpose = hook

    @property
    def faults(self) -> Faults:
        """What goes wrong on purpose: ``with agent.faults.begin("stall", "leaf"): ...``."""
        return self.app.faults

    # Short-cuts for tests and demos

    def allow(self, source: str, destination: str) -> None:
        """Allow *source* to call *destination*; ``*`` stands for any."""
        self._intend(source, destination, {"Action": "allow"})

    def deny(self, source: str, destination: str) -> None:
        """Deny *source* to call *destination*."""
        self._intend(source, destination, {"Action": "deny"})

    def permissions(
        self, source: str, destination: str, permissions: Sequence[Mapping[str, Any]]
    ) -> None:
        """
        Set an L7 intention, its permissions in Consul's JSON form.

        Raises:
            AgentError: a rule is broken, for instance *destination* is not HTTP: `set_protocol`.
        """
        body = decode_body({"Permissions": list(permissions)}, INTENTION)
        self._intend(source, destination, body)

    def _intend(self, source: str, destination: str, body: dict[str, Any]) -> None:
        set_intention(self.state, source, destination, body)
        self._save()

    def delete(self, source: str, destination: str) -> None:
        """Remove an intention; one that is not there is no error."""
        remove_intention(self.state, source, destination)
        self._save()

    def set_protocol(self, service: str, protocol: str) -> None:
        """Set the protocol in the service-defaults of *service*."""
        held = self.state.entries.get("service-defaults", service) or {}
        entry = {"Kind": "service-defaults", "Name": service, **held, "Protocol": protocol}
        self.state.put_entry(entry)
        self._save()

    def put_entry(self, entry: Mapping[str, Any]) -> None:
        """
        Write a config entry in Consul's JSON form.

        Raises:
            AgentError: a rule is broken.
        """
        self.state.put_entry(read_entry(dict(entry)))
        self._save()

    def register(self, definition: Mapping[str, Any]) -> None:
        """
        Register a service in Consul's JSON form.

        Raises:
            AgentError: a rule is broken.
        """
        wanted = decode_body(dict(definition), SERVICE)
        services = self.state.services
        self.state.change_services(lambda now, index: services.register(wanted, now, index))
        self._save()

    def deregister(self, service_id: str) -> None:
        """Deregister a service; one that is not there is no error."""
        services = self.state.services
        self.state.change_services(lambda now, index: services.deregister(service_id))
        self._save()

    def rotate_ca(self, *, cross: bool = True) -> None:
        """Make a new root active, cross-signed by the old one unless *cross* is False."""
        self.state.rotate(cross=cross)
        self._save()

    def prune_roots(self) -> None:
        """Drop every root but the active one."""
        self.state.prune_roots()
        self._save()

    def renew(self, service: str) -> None:
        """Issue a new leaf for *service* now; its watchers wake."""
        self.state.renew(service)

    def tick(self) -> None:
        """Do what the clock has made due, and let blocked requests look again."""
        self.state.tick()
        self.state.index.poke_all()

    @property
    def watching(self) -> int:
        """How many requests are blocked now."""
        return self.state.index.watching

    def issue(
        self,
        name: str,
        *,
        uris: Sequence[str] | None = None,
        trust_domain: str = "",
        lifetime: timedelta = timedelta(hours=1),
        not_before: datetime | None = None,
        ca: bool = False,
        cert_sign: bool = False,
        usages: Sequence[str] = ("client", "server"),
        key: str = "ec",
        dns: Sequence[str] = (),
        foreign: bool = False,
    ) -> tuple[str, str]:
        """
        Make a certificate for tests: sound by default, wrong in whatever way is asked for.

        Args:
            name: service in its URI name, unless *uris* are given; empty *uris* for none.
            trust_domain: another one in the URI, though our root signs.
            lifetime: from *not_before* (one minute ago) on; in the past for an expired one.
            ca: CA:TRUE.
            cert_sign: with the keyCertSign usage.
            usages: extended usages among ``client`` and ``server``; empty for no extension.
            key: ``"ec"`` or ``"rsa"``.
            foreign: signed by a CA that nobody trusts.

        Returns:
            Chain and key, PEM.
        """
        now = self.state.now()
        identity = self.state.identity(name)
        uri = identity.uri.replace(self.trust_domain, trust_domain or self.trust_domain, 1)
        start, end = forge.validity(now, lifetime, not_before)
        shape = forge.Shape(
            uris=[uri] if uris is None else uris, not_before=start, not_after=end, ca=ca,
            cert_sign=cert_sign, usages=usages, key=key, dns=dns, foreign=foreign,
        )  # fmt: skip
        with self.state.lock:
            authority = self.state.ca
            return forge.forge(
                authority.active, authority.cluster, authority.next_serial(), now, shape
            )
