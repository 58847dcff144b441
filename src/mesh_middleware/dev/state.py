"""
Everything the dev agent knows, behind one lock.

Owns the cluster's identity, the CA with the leaves handed out, config entries, services, prepared
queries, and which topics each write touches. Knows no HTTP. Time is `now()`, an argument of the
agent; nothing here runs by itself: what is overdue is done when somebody looks (`tick`).
"""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509

from ..identity import ServiceId
from . import intentions as rules
from .acl import Acl, Rights
from .ca import CertificateAuthority, IssuedLeaf, PrivateKey, RootCa, load_root, make_key
from .entries import ConfigEntries
from .http import Refusal, parse_duration
from .index import Index
from .services import Change, Services
from .views import Node

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Options:
    """
    How an agent behaves.

    Args:
        default_policy: what holds when no intention matches, ``"allow"`` or ``"deny"``.
        acl_default_policy: what the ACL header claims; the same unless a test wants a trap.
        acl: tokens; None turns ACLs off.
        leaf_ttl: lifetime of leaves; the CA configuration can change it.
        rotation_jitter: seconds within which leaf watchers learn of a new root.
    """

    datacenter: str = "dc1"
    node: str = "dev"
    default_policy: str = "allow"
    acl_default_policy: str = ""
    acl: Acl | None = None
    leaf_ttl: timedelta = timedelta(hours=72)
    rotation_jitter: float = 0.0

    @property
    def header_policy(self) -> str:
        """Value of ``X-Consul-Default-Acl-Policy``."""
        return self.acl_default_policy or self.default_policy


@dataclass(frozen=True, slots=True)
class Issued:
    """A leaf in the agent's cache: every caller gets this one until it is renewed."""

    leaf: IssuedLeaf
    index: int
    at: datetime
    renew_at: datetime


@dataclass(frozen=True, slots=True)
class CaConfig:
    """The CA configuration as it was last written."""

    config: dict[str, Any] = field(default_factory=dict)
    created: int = 0
    modified: int = 0


class State:
    """
    The agent's data.

    Args:
        options: how it behaves.
        now: the clock.
    """

    def __init__(self, options: Options, now: Clock) -> None:
        self.lock: AbstractContextManager[bool] = threading.RLock()
        self.options = options
        self.now = now
        self.index = Index()
        started = now()
        self.ca = CertificateAuthority(str(uuid.uuid4()), started)
        self.ca.roots[0] = replace(self.ca.roots[0], created_index=self.index.counter)
        self.entries = ConfigEntries()
        self.services = Services(started)
        self.queries: dict[str, dict[str, Any]] = {}
        start = self.index.counter
        self.ca_config = CaConfig(
            {"IntermediateCertTTL": "8760h", "LeafCertTTL": _hours(options.leaf_ttl)}, start, start
        )
        self.node = Node(
            options.node, str(uuid.uuid4()), "127.0.0.1", options.datacenter, self.index.counter
        )
        self.leaves: dict[str, Issued] = {}
        self.cached: set[str] = set()
        self.dirty = True
        self._due: datetime | None = None

    # Writes

    def publish(self, index: int, *topics: str) -> None:
        """Tell the watchers of *topics* that *index* is there, and mark the state unsaved."""
        self.dirty = True
        self.index.touch(index, *topics)

    def change_services(self, write: Callable[[datetime, int], Change]) -> None:
        """
        Run a write of `Services` and publish what it touched.

        Args:
            write: gets the moment and the index of the change.
        """
        with self.lock:
            index = self.index.reserve()
            change = write(self.now(), index)
            self._due = self.services.next_due()
            if change.topics:
                self.publish(index, *change.topics)

    def tick(self) -> None:
        """Do what is overdue: TTLs, the reaper, old roots."""
        with self.lock:
            now = self.now()
            if self._due is not None and self._due <= now:
                self.change_services(self.services.expire)
            if len(self.ca.roots) > 1 and self.ca.prune(now - 2 * self.leaf_ttl):
                self.publish(self.index.reserve(), "roots")

    def service_due(self) -> datetime | None:
        """When a check may change by itself."""
        return self._due

    # Config entries and intentions

    def put_entry(self, entry: dict[str, Any], *, cas: int | None = None) -> bool:
        """
        Write a config entry.

        Args:
            cas: only if its ModifyIndex is this; 0 only if there is none.

        Returns:
            Whether it was written; False only with *cas*.

        Raises:
            Refusal: a rule is broken.
        """
        with self.lock:
            old = self.entries.get(entry["Kind"], entry["Name"])
            if cas is not None and cas != (old["ModifyIndex"] if old else 0):
                return False
            ready = self.entries.prepare(entry)
            if ready is not None:
                index = self.index.reserve()
                self.entries.store(ready, index)
                self.publish(index, *_entry_topics(ready["Kind"], ready["Name"]))
            return True

    def delete_entry(self, kind: str, name: str, *, cas: int | None = None) -> bool:
        """
        Remove a config entry; one that is not there is no error.

        Raises:
            Refusal: another entry needs it.
        """
        with self.lock:
            old = self.entries.get(kind, name)
            if cas is not None and cas != (old["ModifyIndex"] if old else 0):
                return False
            self.entries.check_removal(kind, name)
            if self.entries.remove(kind, name):
                self.publish(self.index.reserve(), *_entry_topics(kind, name))
            return True

    def intentions(self) -> list[dict[str, Any]]:
        """Every intention, ranked."""
        found = self.entries.of_kind("service-intentions")
        return rules.ranked(
            item for entry in found for item in self.entries.intentions(entry["Name"])
        )

    def match(self, by: str, name: str) -> list[dict[str, Any]]:
        """Intentions that match a destination, or a source, ranked."""
        if by == "source":
            return [item for item in self.intentions() if item["SourceName"] in (name, "*")]
        names = {name.lower(), "*"}
        return rules.ranked(item for one in names for item in self.entries.intentions(one))

    def default(self) -> rules.Verdict:
        """What holds when no intention matches, with the reason `authorize` gives for it."""
        allowed = self.options.default_policy == "allow"
        if self.options.acl is not None:
            reason = "Default behavior configured by ACLs"
        elif allowed:
            reason = "ACLs disabled, access is allowed by default"
        else:
            reason = "Default intention policy"
        return rules.Verdict(allowed, reason)

    def judge(self, source: str, destination: str) -> rules.Verdict:
        """The L4 answer for a connection."""
        return rules.decide(self.match("destination", destination), source, self.default())

    # Certificates

    @property
    def leaf_ttl(self) -> timedelta:
        """Lifetime of leaves from now on."""
        text = self.ca_config.config.get("LeafCertTTL")
        return timedelta(seconds=parse_duration(text)) if text else self.options.leaf_ttl

    def identity(self, service: str) -> ServiceId:
        """The service ID that a leaf for *service* carries."""
        return ServiceId(self.ca.trust_domain, "default", self.options.datacenter, service)

    def leaf(self, service: str, *, blocking: bool) -> Issued:
        """
        The leaf of *service*, issued or renewed when its moment has come.

        Args:
            blocking: a waiting caller gets renewals at their (jittered) moment; one that polls
                gets a new leaf only when the old one is of no use. Source: reference 2.2.
        """
        with self.lock:
            now, held = self.now(), self.leaves.get(service)
            if held is None:
                return self.renew(service)
            useless = held.leaf.not_after <= now or held.leaf.root_id != self.ca.active.id
            if (blocking and held.renew_at <= now) or (useless and not blocking):
                return self.renew(service)
            return held

    def leaf_due(self, service: str) -> datetime | None:
        """When the leaf of *service* is to be renewed."""
        held = self.leaves.get(service)
        return held.renew_at if held else None

    def renew(self, service: str) -> Issued:
        """Issue a new leaf for *service* now."""
        with self.lock:
            now = self.now()
            leaf = self.ca.issue(self.identity(service), now, self.leaf_ttl)
            index = self.index.reserve()
            life = leaf.not_after - leaf.not_before
            renew_at = leaf.not_before + random.uniform(0.6, 0.9) * life
            issued = Issued(leaf, index, now, renew_at)
            self.leaves[service] = issued
            self.publish(index, f"leaf/{service}")
            return issued

    def rotate(
        self,
        *,
        pair: tuple[x509.Certificate, PrivateKey] | None = None,
        key: PrivateKey | None = None,
        cross: bool = True,
    ) -> RootCa:
        """Make a new root active: root watchers wake at once, leaf watchers within the jitter."""
        with self.lock:
            now, index = self.now(), self.index.reserve()
            root = self.ca.rotate(now, index=index, pair=pair, key=key, cross=cross)
            self.publish(index, "roots")
            for service, held in self.leaves.items():
                delay = timedelta(seconds=random.uniform(0, self.options.rotation_jitter))
                self.leaves[service] = replace(held, renew_at=min(held.renew_at, now + delay))
            # No index of theirs has changed yet: they look again and find their new moment.
            self.index.poke(*(f"leaf/{service}" for service in self.leaves))
            return root

    def prune_roots(self) -> None:
        """Drop every root but the active one, as the leader does in time."""
        with self.lock:
            if self.ca.prune(self.now() + timedelta(days=365_000)):
                self.publish(self.index.reserve(), "roots")

    def configure_ca(self, config: dict[str, Any], *, cross: bool = True) -> None:
        """
        Write the CA configuration; rotates when it names another key.

        Raises:
            Refusal: unusable configuration; nothing was changed.
        """
        with self.lock:
            old = self.ca_config
            _check_ttls(config)
            self._rotate_for(config, cross)
            if config == old.config:
                return
            index = self.index.reserve()
            self.ca_config = CaConfig(config, old.created, index)
            # Consul's roots get a new index with every change of the configuration (2.3).
            self.publish(index, "roots")

    def _rotate_for(self, config: dict[str, Any], cross: bool) -> None:
        wanted, old = _signer(config), _signer(self.ca_config.config)
        if wanted == old:
            return
        key_pem, root_pem, kind, bits = wanted
        if key_pem and root_pem:
            self.rotate(pair=load_root(root_pem, key_pem), cross=cross)
        else:
            self.rotate(key=make_key(kind, bits), cross=cross)

    def rights(self, secret: str) -> Rights:
        """
        What a request with the token *secret* may do.

        Raises:
            Refusal: 403, unknown token.
        """
        acl = self.options.acl
        token = acl.token(secret) if acl is not None else None
        return Rights(token, bool(secret), self.options.header_policy == "allow")


def _entry_topics(kind: str, name: str) -> tuple[str, ...]:
    topics: tuple[str, ...] = (f"config/{kind}", f"config/{kind}/{name.lower()}", "config")
    if kind == "service-intentions":
        topics += ("intentions", f"intentions/{name.lower()}")
    return topics


def _hours(span: timedelta) -> str:
    seconds = span.total_seconds()
    return f"{seconds / 3600:g}h" if seconds % 3600 == 0 else f"{seconds:g}s"


def _signer(config: dict[str, Any]) -> tuple[str, str, str, int]:
    try:
        bits = int(config.get("PrivateKeyBits") or 256)
    except (TypeError, ValueError):
        raise Refusal(500, "invalid CA config: PrivateKeyBits is no number") from None
    kind = str(config.get("PrivateKeyType") or "ec")
    return str(config.get("PrivateKey", "")), str(config.get("RootCert", "")), kind, bits


def _check_ttls(config: dict[str, Any]) -> None:
    for name in ("LeafCertTTL", "IntermediateCertTTL", "RootCertTTL"):
        if name not in config:
            continue
        try:
            seconds = parse_duration(config[name])
        except (ValueError, TypeError) as error:
            raise Refusal(500, f"invalid CA config: {name}: {error}") from None
        if seconds <= 0:
            raise Refusal(500, f"invalid CA config: {name} must be greater than 0")
