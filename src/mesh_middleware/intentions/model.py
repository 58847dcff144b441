"""
Intentions as values: what Consul stores, flattened as its match endpoint answers.

Owns the shapes and the precedence formula. Text stays text here; what it matches is compiled in
`matchers`. Knows nothing of JSON, requests or callers.

Source: Consul, "Service intentions" and ``/v1/connect/intentions/match`` (reference 4.1, 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .reasons import Reason

HeaderTest = Literal["present", "exact", "prefix", "suffix", "contains", "regex"]
PathTest = Literal["", "exact", "prefix", "regex"]
WILDCARD = "*"


@dataclass(frozen=True, slots=True)
class Flaw:
    """
    Why an intention, or a part of it, cannot be read.

    Args:
        reason: code of the class of flaw.
        detail: which field, for people.
        everyone: whether all sources are denied for it, because it cannot be told whom the
            intention is about, or because Envoy would refuse the configuration as a whole.
    """

    reason: Reason
    detail: str
    everyone: bool = False


@dataclass(frozen=True, slots=True)
class HeaderMatch:
    """
    One header criterion of a permission.

    Args:
        name: header name, lower case; names that begin with ``:`` are Envoy's pseudo headers.
        test: how values are tested.
        value: what they are tested against; empty for ``present``.
        invert: negates the test of a header that exists.
        ignore_case: folds ASCII letters.
    """

    name: str
    test: HeaderTest
    value: str = ""
    invert: bool = False
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """A demand on a verified token: the claim at *path*, nested keys, is *value* or holds it."""

    path: tuple[str, ...]
    value: str


@dataclass(frozen=True, slots=True)
class JwtDemand:
    """One acceptable provider and what its token has to claim."""

    provider: str
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True)
class Permission:
    """
    The HTTP part of an intention: all criteria together.

    Args:
        allow: the action.
        path_test: how the path is tested; empty when it is not.
        path: text of the path criterion.
        methods: upper-case methods, any of which matches; empty when not tested.
        headers: header criteria, all of which have to match.
        jwt: token demands, any of which satisfies; empty when none is made.
        flaw: why it cannot be read; then every request of the source is denied.
    """

    allow: bool
    path_test: PathTest = ""
    path: str = ""
    methods: tuple[str, ...] = ()
    headers: tuple[HeaderMatch, ...] = ()
    jwt: tuple[JwtDemand, ...] = ()
    flaw: Flaw | None = None


@dataclass(frozen=True, slots=True)
class Intention:
    """
    A rule for one source.

    Args:
        source: service name, or ``*``.
        destination: service name, or ``*``.
        allow: the action; ``None`` when *permissions* decide.
        permissions: ordered, the first that matches decides.
        jwt: token demands on every request of the source; any of them satisfies.
        namespace, partition: of the source; the namespace may be ``*``.
        peer: name of the peered cluster the source lives in; empty for our own.
        precedence: rank, 9 is highest; see `precedence_of`.
        flaw: why it cannot be read.
    """

    source: str
    destination: str
    allow: bool | None
    permissions: tuple[Permission, ...] = ()
    jwt: tuple[JwtDemand, ...] = ()
    namespace: str = "default"
    partition: str = "default"
    peer: str = ""
    destination_namespace: str = "default"
    destination_partition: str = "default"
    precedence: int = 9
    flaw: Flaw | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Whom it is about: name, namespace, partition."""
        return (self.source, self.namespace, self.partition)

    def __str__(self) -> str:
        return (
            f"{self.namespace}/{self.source} => {self.destination_namespace}/{self.destination} "
            f"(precedence {self.precedence})"
        )


@dataclass(frozen=True, slots=True)
class Normalization:
    """
    How proxies of this mesh normalize requests: the mesh entry's request normalization.

    Args:
        paths: whether paths are normalized; Consul's default since 1.20.1.
        merge_slashes: whether repeated slashes are merged afterwards.
        escaped_slashes: what is done first about ``%2f`` and ``%5c``.
        underscores: what is done about ``_`` in header names.

    Source: Consul, mesh config entry, ``HTTP.Incoming.RequestNormalization`` (reference 5.6).
    """

    paths: bool = True
    merge_slashes: bool = False
    escaped_slashes: Literal["keep", "reject", "redirect", "unescape"] = "keep"
    underscores: Literal["allow", "reject", "drop"] = "allow"


@dataclass(frozen=True, slots=True)
class Decision:
    """
    The verdict on one request, or one connection.

    Args:
        allowed: whether it may pass.
        reason: stable code.
        status: HTTP status a door answers with: 200, 400, 403 or 503.
        intention: the one that decided, also when it only led to the default; else ``None``.
        permission: index of the permission that decided, else ``None``.
        readings: names of the readings that deny what another reading allows.
        claims: verified token claims by provider, when a token was demanded and satisfied.
        detail: a line for people; never sent to the caller.
    """

    allowed: bool
    reason: Reason
    status: int
    intention: Intention | None = None
    permission: int | None = None
    readings: tuple[str, ...] = ()
    claims: Mapping[str, Mapping[str, Any]] | None = None
    detail: str = ""


def decision(
    reason: Reason,
    intention: Intention | None = None,
    permission: int | None = None,
    *,
    readings: tuple[str, ...] = (),
    detail: str = "",
) -> Decision:
    """Make the `Decision` that *reason* stands for; its status and verdict follow from it."""
    status = reason.status
    return Decision(status == 200, reason, status, intention, permission, readings, detail=detail)


def precedence_of(intention: Intention) -> int:
    """
    Rank an intention by how exact its two sides are; the destination counts first.

    Source: Consul, "Precedence and match order" (reference 4.2).
    """
    destination = _exactness(intention.destination, intention.destination_namespace)
    return 3 + 3 * destination - (2 - _exactness(intention.source, intention.namespace))


def order(intention: Intention) -> tuple[int | str, ...]:
    """Sort key: highest precedence first, ties by the names, as Consul sorts."""
    return (
        -intention.precedence,
        intention.peer,
        intention.partition,
        intention.namespace,
        intention.source,
        intention.destination_partition,
        intention.destination_namespace,
        intention.destination,
    )


def _exactness(name: str, namespace: str) -> int:
    if namespace == WILDCARD:
        return 0
    return 1 if name == WILDCARD else 2
