"""How an answer of the agent becomes belief: leaf and roots are never mixed, nor made worse."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import timedelta

import pytest

from mesh_middleware.certificates import KeyPair, Roots
from mesh_middleware.intentions import Intention, JwtDemand, Permission
from mesh_middleware.snapshot import Snapshot, Trust, Verdict, lost_denies, offer_leaf, offer_roots

from .support.certs import HOUR, NOW, OTHER_DOMAIN, Ca, make_key
from .support.certs import key_pem as pem_of

SECOND = timedelta(seconds=1)


@pytest.fixture(scope="module")
def other_ca() -> Ca:
    """The root of a cluster that was built anew."""
    return Ca(OTHER_DOMAIN)


@pytest.fixture
def joined(ca: Ca) -> Trust:
    """A mesh with leaf and roots."""
    trust = leaf(roots(Trust(), ca.roots()).trust, ca.leaf().pair).trust
    assert trust.roots is not None and trust.pair is not None
    return trust


def roots(trust: Trust, told: Roots) -> Verdict:
    """Offer roots now."""
    return offer_roots(trust, told, NOW)


def leaf(trust: Trust, pair: KeyPair) -> Verdict:
    """Offer a leaf now."""
    return offer_leaf(trust, pair, "tax", NOW)


def test_nothing_is_joined_before_both_halves_are_there(ca: Ca) -> None:
    """Leaf without roots, or roots without leaf, are not a snapshot that can serve."""
    assert not Snapshot().joined
    assert not Snapshot(roots=ca.roots()).joined
    assert not Snapshot(leaf=ca.leaf().pair.leaf).joined
    both = Snapshot(leaf=ca.leaf().pair.leaf, roots=ca.roots())
    assert both.joined and not both.ready


def test_snapshot_has_no_place_for_a_key(ca: Ca) -> None:
    """What doors and plugins read holds no private key."""
    snapshot = Snapshot(leaf=ca.leaf().pair.leaf, roots=ca.roots())
    assert "key" not in " ".join(field.name for field in fields(Snapshot))
    assert "PRIVATE" not in repr(snapshot)
    assert not any(isinstance(getattr(snapshot, f.name), KeyPair) for f in fields(Snapshot))


@pytest.mark.parametrize("first", ["roots", "leaf"])
def test_halves_may_arrive_in_either_order(ca: Ca, first: str) -> None:
    """Whichever watch answers first, both are in use in the end, and nothing waits."""
    pair, told = ca.leaf().pair, ca.roots()
    if first == "roots":
        verdict = leaf(roots(Trust(), told).trust, pair)
    else:
        waiting = leaf(Trust(), pair)
        assert waiting.note == "leaf_waiting" and waiting.trust.pair is None
        verdict = roots(waiting.trust, told)
    assert verdict.trust == Trust(told, pair)
    assert verdict.note == ""


def test_renewed_leaf_replaces_the_old_one(ca: Ca, joined: Trust) -> None:
    """The usual renewal: same roots, new leaf, no note."""
    renewed = ca.leaf(not_after=NOW + 2 * HOUR).pair
    verdict = leaf(joined, renewed)
    assert verdict.trust.pair == renewed
    assert verdict.trust.roots == joined.roots
    assert verdict.note == ""


def test_rotated_roots_are_trusted_beside_the_old(ca: Ca, joined: Trust) -> None:
    """At a rotation two roots are listed; the leaf of the old one goes on serving."""
    told = Ca().roots(ca)
    verdict = roots(joined, told)
    assert verdict.trust.roots == told
    assert verdict.trust.pair == joined.pair


def test_dropped_root_is_trusted_no_more(ca: Ca, joined: Trust) -> None:
    """What Consul leaves out is gone at once, even when our own leaf hangs on it."""
    told = Ca().roots()
    verdict = roots(joined, told)
    assert verdict.trust.roots == told
    assert verdict.trust.roots.certificates == told.certificates
    assert ca.pem not in told.pem


def test_leaf_ahead_of_its_roots_waits_and_then_serves(ca: Ca, joined: Trust) -> None:
    """A new leaf that arrives before the roots that sign it replaces nothing until they come."""
    newer = Ca()
    early = newer.leaf().pair
    verdict = leaf(joined, early)
    assert verdict.note == "leaf_waiting" and "no root" in verdict.detail
    assert verdict.trust.pair == joined.pair
    verdict = roots(verdict.trust, newer.roots(ca))
    assert verdict.trust.pair == early
    assert verdict.trust.waiting_pair is None


def test_cross_signed_leaf_serves_before_its_root_is_known(ca: Ca, joined: Trust) -> None:
    """Consul cross-signs: the new leaf verifies under the old roots already."""
    newer = Ca()
    pair = newer.leaf(chain=newer.cross_signed_by(ca)).pair
    assert leaf(joined, pair).trust.pair == pair


def test_waiting_leaf_is_forgotten_when_a_better_one_is_taken(ca: Ca, joined: Trust) -> None:
    """A leaf that waited does not come back over a leaf that was taken since."""
    newer = Ca()
    verdict = leaf(joined, newer.leaf().pair)
    taken = ca.leaf().pair
    verdict = leaf(verdict.trust, taken)
    verdict = roots(verdict.trust, newer.roots(ca))
    assert verdict.trust.pair == taken


def test_waiting_leaf_that_expired_meanwhile_is_not_taken(ca: Ca, joined: Trust) -> None:
    """When the roots come at last, the leaf that waited for them is judged by the clock then."""
    newer = Ca()
    waiting = leaf(joined, newer.leaf(not_after=NOW + SECOND).pair).trust
    late = offer_roots(waiting, newer.roots(ca), NOW + 2 * SECOND)
    assert late.trust.pair == joined.pair


# -- answers that replace nothing ------------------------------------------------------------------


def test_empty_roots_are_rejected(joined: Trust) -> None:
    """An agent that lists no root does not make us trust none, or anyone."""
    assert joined.roots is not None
    verdict = roots(joined, replace(joined.roots, certificates=()))
    assert verdict.note == "roots_rejected"
    assert verdict.trust == joined


def test_empty_roots_of_another_domain_are_rejected(joined: Trust) -> None:
    """Nor do they wait for a leaf."""
    verdict = roots(joined, Roots(OTHER_DOMAIN, (), ""))
    assert verdict.note == "roots_rejected"
    assert verdict.trust == joined


def test_expired_leaf_is_rejected(ca: Ca, joined: Trust) -> None:
    """An answer from a stale cache does not end a service that still has a good leaf."""
    verdict = leaf(joined, ca.leaf(not_after=NOW - SECOND).pair)
    assert verdict.note == "leaf_rejected" and "expired" in verdict.detail
    assert verdict.trust == joined


def test_expired_leaf_does_not_even_wait(ca: Ca) -> None:
    """It could serve under no roots."""
    verdict = leaf(Trust(), ca.leaf(not_after=NOW - SECOND).pair)
    assert verdict.note == "leaf_rejected"
    assert verdict.trust == Trust()


def test_leaf_with_anothers_key_is_rejected(ca: Ca, joined: Trust) -> None:
    """Certificate and key of different renewals could not shake hands."""
    mixed = KeyPair(ca.leaf().pair.leaf, pem_of(make_key()))
    verdict = leaf(joined, mixed)
    assert verdict.note == "leaf_rejected" and "not that of leaf" in verdict.detail
    assert verdict.trust == joined


@pytest.mark.parametrize("name", ["order", "Tax", "tax2"])
def test_leaf_of_another_service_is_rejected(ca: Ca, joined: Trust, name: str) -> None:
    """We do not become somebody else because the agent says so; case counts."""
    verdict = leaf(joined, ca.leaf(name).pair)
    assert verdict.note == "leaf_rejected" and repr(name) in verdict.detail
    assert verdict.trust == joined


def test_leaf_that_is_not_valid_yet_waits(ca: Ca, joined: Trust) -> None:
    """Where our clock is behind, the leaf is kept, and taken with the roots' next answer."""
    early = ca.leaf(not_before=NOW + SECOND).pair
    verdict = leaf(joined, early)
    assert verdict.note == "leaf_waiting" and verdict.trust.pair == joined.pair
    later = offer_roots(verdict.trust, ca.roots(), NOW + 2 * SECOND)
    assert later.trust.pair == early


def test_leaf_under_a_foreign_root_never_serves(ca: Ca, foreign_ca: Ca, joined: Trust) -> None:
    """The same trust domain in the name is not enough: a root we trust has to sign it."""
    verdict = leaf(joined, foreign_ca.leaf().pair)
    assert verdict.note == "leaf_waiting"
    assert roots(verdict.trust, ca.roots()).trust.pair == joined.pair


def test_leaf_naming_another_domain_than_its_root_never_serves(ca: Ca, joined: Trust) -> None:
    """Signed by our root, but of another trust domain: never mixed."""
    uri = f"spiffe://{OTHER_DOMAIN}/ns/default/dc/dc1/svc/tax"
    verdict = leaf(joined, ca.leaf(uris=[uri]).pair)
    assert verdict.note == "leaf_waiting" and OTHER_DOMAIN in verdict.detail
    assert roots(verdict.trust, ca.roots()).trust.pair == joined.pair


# -- another trust domain --------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["roots", "leaf"])
def test_new_trust_domain_is_taken_in_one_step(other_ca: Ca, joined: Trust, first: str) -> None:
    """A cluster built anew: the first half waits, the second brings both into use, loudly."""
    pair, told = other_ca.leaf().pair, other_ca.roots()
    half = roots(joined, told) if first == "roots" else leaf(joined, pair)
    assert half.note == ("roots_waiting" if first == "roots" else "leaf_waiting")
    assert (half.trust.roots, half.trust.pair) == (joined.roots, joined.pair)
    whole = leaf(half.trust, pair) if first == "roots" else roots(half.trust, told)
    assert whole.note == "trust_domain_changed" and OTHER_DOMAIN in whole.detail
    assert whole.trust == Trust(told, pair)


def test_roots_of_another_domain_wait_for_a_leaf_under_them(
    foreign_ca: Ca, other_ca: Ca, joined: Trust
) -> None:
    """A leaf that names the new domain but is signed by somebody else changes nothing."""
    half = roots(joined, other_ca.roots())
    uri = f"spiffe://{OTHER_DOMAIN}/ns/default/dc/dc1/svc/tax"
    verdict = leaf(half.trust, foreign_ca.leaf(uris=[uri]).pair)
    assert (verdict.trust.roots, verdict.trust.pair) == (joined.roots, joined.pair)


def test_expired_leaf_of_the_new_domain_changes_nothing(other_ca: Ca, joined: Trust) -> None:
    """The change of domain needs a leaf that serves."""
    half = roots(joined, other_ca.roots())
    verdict = leaf(half.trust, other_ca.leaf(not_after=NOW - SECOND).pair)
    assert verdict.note == "leaf_rejected"
    assert (verdict.trust.roots, verdict.trust.pair) == (joined.roots, joined.pair)


def test_roots_that_wait_are_forgotten_when_ours_are_told_again(
    ca: Ca, other_ca: Ca, joined: Trust
) -> None:
    """One answer of a strange agent behind a load balancer is not kept for later."""
    half = roots(joined, other_ca.roots())
    back = roots(half.trust, ca.roots())
    assert back.trust == joined
    assert leaf(back.trust, other_ca.leaf().pair).note == "leaf_waiting"


def test_roots_change_freely_while_there_is_no_leaf(ca: Ca, other_ca: Ca) -> None:
    """Before the first leaf there is nothing to mix."""
    first = roots(Trust(), ca.roots()).trust
    second = roots(first, other_ca.roots())
    assert second.trust.roots == other_ca.roots()
    assert second.note == ""


def test_our_leaf_goes_on_under_our_roots_while_others_wait(
    ca: Ca, other_ca: Ca, joined: Trust
) -> None:
    """A renewal of the domain in use is taken though strange roots wait."""
    half = roots(joined, other_ca.roots()).trust
    renewed = ca.leaf().pair
    assert leaf(half, renewed).trust.pair == renewed


# -- denies that vanish ----------------------------------------------------------------------------

ALLOW = Intention("order", "tax", True)
DENY = Intention("order", "tax", False)
L7 = Intention("order", "tax", None, (Permission(True, "exact", "/rates"),))
WITH_TOKEN = Intention("order", "tax", True, jwt=(JwtDemand("okta"),))

LOST = {
    "deny is gone": ([DENY], [], True),
    "deny became allow": ([DENY], [ALLOW], True),
    "deny of another source stays": ([DENY], [replace(DENY, source="web")], True),
    "permissions are gone": ([L7], [], True),
    "permissions became allow": ([L7], [ALLOW], True),
    "permissions changed": ([L7], [replace(L7, permissions=(Permission(False),))], True),
    "token demand is gone": ([WITH_TOKEN], [ALLOW], True),
    "one of two denies is gone": ([DENY, replace(DENY, source="web")], [DENY], True),
    "everything unchanged": ([DENY, L7], [L7, DENY], False),
    "deny stays beside a new allow": ([DENY], [DENY, replace(ALLOW, source="web")], False),
    "allow is gone": ([ALLOW], [], False),
    "allow became deny": ([ALLOW], [DENY], False),
    "nothing was known": (None, [], False),
    "nothing was there": ([], [ALLOW], False),
}


@pytest.mark.parametrize(("old", "new", "lost"), LOST.values(), ids=list(LOST))
def test_vanished_denies_are_noticed(
    old: list[Intention] | None, new: list[Intention], lost: bool
) -> None:
    """A rule that can refuse, and is not there as it was, is a deny that vanished."""
    assert lost_denies(old, new) is lost
