"""
Leaf, roots and intentions as of one moment, and how a new answer becomes belief.

Owns `Snapshot`, which is swapped whole, and the pure rules that keep a bad answer from replacing
a good one (`offer_roots`, `offer_leaf`). Knows no agent, no TLS and no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from .certificates import KeyPair, Leaf, Roots, check_chain, check_key
from .exceptions import CertificateError
from .intentions import Intention, Normalization, Policy

if TYPE_CHECKING:
    from .intentions import JwtProvider


@dataclass(frozen=True, slots=True)
class Conditions:
    """
    What a service is judged by beside its intentions.

    Args:
        protocol: of this service in Consul; ``tcp`` judges identities only.
        normalization: what proxies of this mesh do to requests.
        providers: jwt-providers that intentions name, with the keys at hand.
        withheld: headers of providers that cannot be read: what callers send there is taken out.
    """

    protocol: str = "http"
    normalization: Normalization = Normalization()
    providers: tuple[JwtProvider, ...] = ()
    withheld: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    What this process believes at one moment. Immutable; a reader takes one for a whole request.

    Args:
        leaf: our certificate, without its key; ``None`` before the mesh was joined.
        roots: the CA certificates trusted now.
        intentions: rules about this service; ``None`` before the agent told them.
        default_allow: verdict where no intention matches; ``None`` when it is unknown.
        conditions: what they are judged under.
        policy: the intentions, compiled; ``None`` while anything it needs is missing.
        generation: grows with every change of leaf or roots.
        version: grows with every swap.
        refused: what OpenSSL says against our own leaf under our own roots; empty where a handshake
            would succeed.
    """

    leaf: Leaf | None = None
    roots: Roots | None = None
    intentions: tuple[Intention, ...] | None = None
    default_allow: bool | None = None
    conditions: Conditions = Conditions()
    policy: Policy | None = field(default=None, repr=False)
    generation: int = 0
    version: int = 0
    refused: str = ""

    @property
    def joined(self) -> bool:
        """Whether there are leaf and roots: handshakes can succeed."""
        return self.leaf is not None and self.roots is not None

    @property
    def ready(self) -> bool:
        """Whether handshakes would succeed and requests can be judged."""
        return self.joined and self.policy is not None and not self.refused


@dataclass(frozen=True, slots=True)
class Trust:
    """
    Leaf and roots in use, and answers that wait for their other half.

    Args:
        roots: in use.
        pair: leaf and key in use.
        waiting_roots: of another trust domain, until a leaf under them arrives.
        waiting_pair: a leaf that the roots in use do not sign, until roots that do arrive.
    """

    roots: Roots | None = None
    pair: KeyPair | None = None
    waiting_roots: Roots | None = None
    waiting_pair: KeyPair | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    What became of an answer.

    Args:
        trust: what holds from now on.
        note: a stable code when the answer was not simply taken: ``trust_domain_changed``,
            ``roots_waiting``, ``leaf_waiting``, ``leaf_rejected``, ``roots_rejected``.
        detail: the sentence for the log.
    """

    trust: Trust
    note: str = ""
    detail: str = ""


def offer_roots(trust: Trust, roots: Roots, now: datetime) -> Verdict:
    """
    Judge roots that the agent just told.

    Roots of the trust domain in use replace the old ones at once, also when that leaves out a
    root: what Consul dropped is trusted no more. Those of another trust domain wait for a leaf
    that verifies under them, so that the two are never mixed.
    """
    if not roots.certificates:
        return Verdict(trust, "roots_rejected", "the agent told no roots; the old ones stay")
    if trust.roots is None or trust.roots.trust_domain == roots.trust_domain:
        taken = replace(trust, roots=roots, waiting_roots=None)
        return _retry_leaf(taken, now)
    if trust.waiting_pair is not None and not _why_not(trust.waiting_pair, roots, now):
        return _change_domain(roots, trust.waiting_pair)
    if trust.pair is None:
        return _retry_leaf(replace(trust, roots=roots, waiting_roots=None), now)
    return Verdict(
        replace(trust, waiting_roots=roots),
        "roots_waiting",
        f"roots of another trust domain ({roots.trust_domain}, ours is "
        f"{trust.roots.trust_domain}) wait for a leaf under them",
    )


def offer_leaf(trust: Trust, pair: KeyPair, service: str, now: datetime) -> Verdict:
    """
    Judge a leaf that the agent just told.

    Args:
        service: name the leaf has to carry.

    Returns:
        The leaf taken; or waiting, when only the roots for it are missing; or rejected, when it
        could serve under no roots (expired, another service's, not its key).
    """
    try:
        _check_pair(pair, service, now)
    except CertificateError as error:
        stays = "there is none yet" if trust.pair is None else "the old leaf stays"
        return Verdict(trust, "leaf_rejected", f"{error}; {stays}")
    if trust.roots is not None and not _why_not(pair, trust.roots, now):
        return Verdict(replace(trust, pair=pair, waiting_pair=None))
    if trust.waiting_roots is not None and not _why_not(pair, trust.waiting_roots, now):
        return _change_domain(trust.waiting_roots, pair)
    why = "no roots yet" if trust.roots is None else _why_not(pair, trust.roots, now)
    return Verdict(replace(trust, waiting_pair=pair), "leaf_waiting", f"leaf waits: {why}")


def lost_denies(old: Sequence[Intention] | None, new: Sequence[Intention]) -> bool:
    """
    Tell whether rules that refuse something are gone.

    Args:
        old: intentions believed until now.
        new: intentions just told.

    Returns:
        ``True`` when an intention that can deny is in *old* and not, as it was, in *new*. After an
        index that went backwards this is believed only when told twice.
    """
    kept = set(new)
    return any(_can_deny(intention) and intention not in kept for intention in old or ())


def _can_deny(intention: Intention) -> bool:
    return intention.allow is not True or bool(intention.jwt)


def _retry_leaf(trust: Trust, now: datetime) -> Verdict:
    pair = trust.waiting_pair
    if pair is None or trust.roots is None or _why_not(pair, trust.roots, now):
        return Verdict(trust)
    return Verdict(replace(trust, pair=pair, waiting_pair=None))


def _change_domain(roots: Roots, pair: KeyPair) -> Verdict:
    return Verdict(
        Trust(roots, pair),
        "trust_domain_changed",
        f"new trust domain {roots.trust_domain}: roots and leaf {pair.leaf.serial_number} taken "
        "together; the Consul servers were rebuilt or another cluster answers",
    )


def _check_pair(pair: KeyPair, service: str, now: datetime) -> None:
    if pair.leaf.id.name != service:
        raise CertificateError(f"the leaf is {pair.leaf.id.name!r}'s, this service is {service!r}")
    if now > pair.leaf.not_after:
        raise CertificateError(f"the leaf expired {pair.leaf.not_after:%FT%TZ}")
    check_key(pair)


def _why_not(pair: KeyPair, roots: Roots, now: datetime) -> str:
    if pair.leaf.id.trust_domain != roots.trust_domain:
        return f"it is of {pair.leaf.id.trust_domain}, the roots are of {roots.trust_domain}"
    try:
        check_chain(pair.leaf.chain_pem, roots, now)
    except CertificateError as error:
        return str(error)
    return ""
