"""What the process believes: swapped whole, never worse for a bad answer, and told to who waits."""

from __future__ import annotations

import dataclasses
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest

from mesh_middleware.belief import KEPT_NOTES, SECOND_LOOK, Belief
from mesh_middleware.certificates import KeyPair, Roots
from mesh_middleware.config import Settings
from mesh_middleware.identity import ServiceId
from mesh_middleware.intentions import HttpFacts, Intention, Reason
from mesh_middleware.snapshot import Snapshot
from mesh_middleware.tls import server_context

from .support.certs import HOUR, NOW, OTHER_DOMAIN, TRUST_DOMAIN, Ca, plain_context
from .support.handshakes import Ends

PATIENCE = 10.0
GET = HttpFacts(b"GET", b"/")
ALLOW = Intention("order", "tax", True)
DENY = Intention("order", "tax", False)


class Clock:
    """A moment that the test moves."""

    def __init__(self) -> None:
        self.moment = NOW

    def __call__(self) -> datetime:
        return self.moment


class Held:
    """A belief and what it told."""

    def __init__(self, **options: object) -> None:
        self.clock, self.seconds = Clock(), 0.0
        self.swaps: list[tuple[Snapshot, Snapshot]] = []
        self.belief = Belief(
            dataclasses.replace(Settings("tax"), **options),
            self.clock,
            lambda old, new: self.swaps.append((old, new)),
            lambda: self.seconds,
        )

    @property
    def notes(self) -> list[str]:
        """Codes of the notes, oldest first."""
        return [code for _, code, _ in self.belief.notes]


@pytest.fixture
def held() -> Held:
    """A belief that knows nothing."""
    return Held()


@pytest.fixture
def ready(ca: Ca, held: Held) -> Held:
    """A belief that can judge: joined, default allow, no intentions."""
    held.belief.take_roots(ca.roots())
    held.belief.take_leaf(ca.leaf().pair)
    held.belief.take_default(True)
    held.belief.take_intentions((), regressed=False)
    assert held.belief.snapshot.ready
    return held


def reason(held: Held, name: str = "order", domain: str = TRUST_DOMAIN) -> Reason:
    """What the policy in use says about a call of *name*."""
    policy = held.belief.snapshot.policy
    assert policy is not None
    return policy.decide(ServiceId(domain, "default", "dc1", name), GET).reason


ANSWERS: dict[str, Callable[[Ca, Belief], object]] = {
    "roots": lambda ca, belief: belief.take_roots(ca.roots()),
    "leaf": lambda ca, belief: belief.take_leaf(ca.leaf().pair),
    "default": lambda ca, belief: belief.take_default(True),
    "intentions": lambda ca, belief: belief.take_intentions((), regressed=False),
}


@pytest.mark.parametrize("last", ANSWERS)
def test_nothing_is_judged_until_the_last_answer_is_there(ca: Ca, held: Held, last: str) -> None:
    """Roots, leaf, default and intentions, in any order: ready with the last, not before."""
    for name, take in ANSWERS.items():
        if name != last:
            take(ca, held.belief)
    assert not held.belief.snapshot.ready
    ANSWERS[last](ca, held.belief)
    assert held.belief.snapshot.ready


def test_unknown_default_is_a_policy_that_denies_where_it_is_needed(ca: Ca, held: Held) -> None:
    """Asked for and not learnt is not the same as not yet asked for."""
    for name in ("roots", "leaf", "intentions"):
        ANSWERS[name](ca, held.belief)
    assert held.belief.snapshot.policy is None
    held.belief.take_default(None)
    assert held.belief.snapshot.ready
    assert reason(held) is Reason.DEFAULT_UNKNOWN
    held.belief.take_intentions((ALLOW,), regressed=False)
    assert reason(held) is Reason.INTENTION_ALLOW


def test_snapshot_is_swapped_whole(ca: Ca, ready: Held) -> None:
    """Each change is a new snapshot with the next version; the old one stays as it was."""
    before = ready.belief.snapshot
    copy = dataclasses.replace(before)
    ready.belief.take_intentions((DENY,), regressed=False)
    after = ready.belief.snapshot
    assert before == copy and before.intentions == ()
    assert after.intentions == (DENY,)
    assert after.version == before.version + 1
    assert after.generation == before.generation
    assert ready.swaps[-1] == (before, after)


def test_equal_answers_change_nothing(ca: Ca, ready: Held) -> None:
    """Blocking queries end without a change all the time: no swap, no new context, no callback."""
    pair = ca.leaf().pair
    ready.belief.take_leaf(pair)
    ready.belief.take_intentions((DENY,), regressed=False)
    before, count = ready.belief.snapshot, len(ready.swaps)
    generation = ready.belief.generation
    for _ in range(3):
        ready.belief.take_roots(ca.roots())
        ready.belief.take_leaf(pair)
        ready.belief.take_default(True)
        assert ready.belief.take_intentions((DENY,), regressed=False)
    assert ready.belief.snapshot is before
    assert ready.belief.generation is generation
    assert len(ready.swaps) == count


def test_generation_counts_changes_of_leaf_and_roots_only(ca: Ca, ready: Held) -> None:
    """Pools are keyed by it: a change of policy must not empty them."""
    start = ready.belief.snapshot.generation
    ready.belief.take_intentions((DENY,), regressed=False)
    ready.belief.take_default(False)
    assert ready.belief.snapshot.generation == start
    ready.belief.take_leaf(ca.leaf().pair)
    assert ready.belief.snapshot.generation == start + 1
    ready.belief.take_roots(Ca().roots(ca))
    assert ready.belief.snapshot.generation == start + 2
    assert ready.belief.generation.number == start + 2


def test_contexts_are_there_before_the_snapshot_says_so(ca: Ca, held: Held) -> None:
    """Who reads the snapshot and then connects finds the generation it speaks of."""
    seen: list[tuple[int, int]] = []

    def swapped(old: Snapshot, new: Snapshot) -> None:
        seen.append((new.generation, belief.generation.number))

    belief = Belief(Settings("tax"), held.clock, swapped)
    belief.take_roots(ca.roots())
    belief.take_leaf(ca.leaf().pair)
    assert seen and all(told == built for told, built in seen)


def test_rejected_answers_leave_everything_as_it_was(ca: Ca, ready: Held) -> None:
    """Expired leaf, foreign key, empty roots: noted, and nothing swapped."""
    before = ready.belief.snapshot
    ready.belief.take_leaf(ca.leaf(not_after=NOW - timedelta(seconds=1)).pair)
    ready.belief.take_leaf(KeyPair(ca.leaf().pair.leaf, ca.leaf().key_pem))
    ready.belief.take_leaf(ca.leaf("order").pair)
    ready.belief.take_roots(Roots(TRUST_DOMAIN, (), ""))
    assert ready.belief.snapshot is before
    assert ready.notes == ["leaf_rejected"] * 3 + ["roots_rejected"]


def test_answer_that_no_context_can_be_made_of_leaves_everything_as_it_was(
    ca: Ca, ready: Held
) -> None:
    """What OpenSSL does not take is not believed, and what comes after it is."""
    before, generation = ready.belief.snapshot, ready.belief.generation
    for broken in ("no PEM", ca.pem.replace("M", "!", 1), ""):
        ready.belief.take_roots(Roots(TRUST_DOMAIN, (broken,), "00"))
        assert ready.belief.snapshot is before
        assert ready.belief.generation is generation
    assert set(ready.notes) == {"leaf_rejected"}
    ready.belief.take_leaf(ca.leaf().pair)
    assert ready.belief.snapshot.generation == before.generation + 1
    assert ready.belief.snapshot.roots == before.roots


def test_new_trust_domain_takes_policy_along(ca: Ca, ready: Held) -> None:
    """Leaf, roots and the domain that intentions speak of change in one swap."""
    other = Ca(OTHER_DOMAIN)
    ready.belief.take_intentions((ALLOW,), regressed=False)
    assert reason(ready) is Reason.INTENTION_ALLOW
    ready.belief.take_roots(other.roots())
    assert ready.belief.snapshot.roots == ca.roots()
    assert ready.belief.trust_domain == TRUST_DOMAIN
    ready.belief.take_leaf(other.leaf().pair)
    assert ready.notes == ["roots_waiting", "trust_domain_changed"]
    assert ready.belief.trust_domain == OTHER_DOMAIN
    assert reason(ready) is Reason.FOREIGN_TRUST_DOMAIN
    assert reason(ready, domain=OTHER_DOMAIN) is Reason.INTENTION_ALLOW
    old, new = ready.swaps[-1]
    assert (old.roots, new.roots) == (ca.roots(), other.roots())
    assert new.leaf is not None and new.leaf.id.trust_domain == OTHER_DOMAIN


def test_dropped_root_is_gone_for_the_next_connection(ca: Ca, ready: Held) -> None:
    """From the swap on, through the generation that handshakes use."""
    newer = Ca()
    server = server_context(lambda: ready.belief.generation, ready.clock)
    caller = plain_context("client", [ca, newer], ca.leaf("order"))
    assert Ends(caller, server).shake().well
    ready.belief.take_roots(newer.roots(ca))
    ready.belief.take_leaf(newer.leaf().pair)
    assert Ends(caller, server).shake().well
    ready.belief.take_roots(newer.roots())
    assert isinstance(Ends(caller, server).shake().server_error, ssl.SSLError)


def test_leaf_goes_on_serving_when_it_has_expired_in_the_snapshot(ca: Ca, ready: Held) -> None:
    """Nobody takes the leaf away while the agent is gone: judging it is the request's part."""
    ready.clock.moment = NOW + 2 * HOUR
    assert ready.belief.snapshot.joined
    ready.belief.take_roots(ca.roots())
    assert ready.belief.snapshot.joined


# -- denies that vanish ----------------------------------------------------------------------------


@pytest.fixture
def denying(ready: Held) -> Held:
    """A belief that denies order."""
    ready.belief.take_intentions((DENY,), regressed=False)
    assert reason(ready) is Reason.INTENTION_DENY
    return ready


def test_denies_that_vanish_in_the_usual_way_are_believed(denying: Held) -> None:
    """Somebody deleted the intention: the index went forward."""
    assert denying.belief.take_intentions((), regressed=False)
    assert reason(denying) is Reason.DEFAULT_ALLOW


def test_denies_that_vanish_behind_a_regress_are_doubted(denying: Held) -> None:
    """A server restored from an empty backup does not open every door at once."""
    assert not denying.belief.take_intentions((), regressed=True)
    assert reason(denying) is Reason.INTENTION_DENY
    assert denying.notes == ["denies_vanished"]


def test_doubt_is_not_dispelled_by_asking_again_at_once(denying: Held) -> None:
    """The second equal answer counts only when it comes later, also when no index regressed."""
    assert not denying.belief.take_intentions((), regressed=True)
    for regressed in (True, False, False):
        assert not denying.belief.take_intentions((), regressed=regressed)
    assert reason(denying) is Reason.INTENTION_DENY
    assert denying.notes == ["denies_vanished"]


def test_second_equal_answer_is_believed(denying: Held) -> None:
    """Told twice, far enough apart, it is the new truth; a moment earlier it is not."""
    assert not denying.belief.take_intentions((), regressed=True)
    denying.seconds += SECOND_LOOK - 0.001
    assert not denying.belief.take_intentions((), regressed=False)
    denying.seconds += 0.001
    assert denying.belief.take_intentions((), regressed=False)
    assert reason(denying) is Reason.DEFAULT_ALLOW


def test_second_answer_that_differs_is_doubted_anew(denying: Held) -> None:
    """While a cluster is being restored each answer may lack something else."""
    web = Intention("web", "tax", True)
    assert not denying.belief.take_intentions((), regressed=True)
    denying.seconds += SECOND_LOOK
    assert not denying.belief.take_intentions((web,), regressed=False)
    assert reason(denying) is Reason.INTENTION_DENY
    denying.seconds += SECOND_LOOK
    assert denying.belief.take_intentions((web,), regressed=False)
    assert reason(denying) is Reason.DEFAULT_ALLOW


@pytest.mark.parametrize("leaf_too", [True, False], ids=["taken", "roots wait"])
def test_denies_that_vanish_with_a_new_trust_domain_are_doubted(
    denying: Held, leaf_too: bool
) -> None:
    """An agent that was rebuilt may count higher than before: its CA tells, too."""
    other = Ca(OTHER_DOMAIN)
    denying.belief.take_roots(other.roots())
    if leaf_too:
        denying.belief.take_leaf(other.leaf().pair)
    assert not denying.belief.take_intentions((), regressed=False)
    snapshot = denying.belief.snapshot
    assert snapshot.intentions == (DENY,) and "denies_vanished" in denying.notes


def test_doubt_of_a_new_trust_domain_ends(ready: Held) -> None:
    """Once the new agent has told intentions, its deletions count like any other's."""
    other = Ca(OTHER_DOMAIN)
    ready.belief.take_roots(other.roots())
    ready.belief.take_leaf(other.leaf().pair)
    assert ready.belief.take_intentions((DENY,), regressed=False)
    assert ready.belief.take_intentions((), regressed=False)


def test_doubt_ends_when_the_denies_are_back(denying: Held) -> None:
    """The restore went on: what we believed is told again, and later deletions count at once."""
    assert not denying.belief.take_intentions((), regressed=True)
    assert denying.belief.take_intentions((DENY,), regressed=False)
    assert denying.belief.take_intentions((), regressed=False)
    assert reason(denying) is Reason.DEFAULT_ALLOW


def test_new_denies_are_never_doubted(ready: Held) -> None:
    """Whatever the index did: what refuses more is taken at once."""
    assert ready.belief.take_intentions((DENY,), regressed=True)
    assert reason(ready) is Reason.INTENTION_DENY


# -- notes and waiting -----------------------------------------------------------------------------


def test_what_differs_in_its_moment_only_is_told_once(held: Held) -> None:
    """A broken CA hands out leaf after leaf, each expired at another second; all are counted."""
    for second in range(3):
        held.belief.note("leaf_rejected", f"the leaf expired 2026-11-21T19:32:0{second}Z; it stays")
    held.belief.note("leaf_rejected", "another service's")
    assert held.notes == ["leaf_rejected", "leaf_rejected"]
    assert held.belief.events["leaf_rejected"] == 4


def test_notes_are_kept_with_their_moment_and_bounded(held: Held) -> None:
    """The same thing twice in a row is one note; old ones make room."""
    held.belief.note("code", "detail")
    held.belief.note("code", "detail")
    assert list(held.belief.notes) == [(NOW, "code", "detail")]
    for number in range(2 * KEPT_NOTES):
        held.belief.note("code", str(number))
    assert len(held.belief.notes) == KEPT_NOTES


def test_waiter_wakes_with_the_change_it_waits_for(held: Held) -> None:
    """From another thread, and for its own condition only."""
    begun = threading.Event()

    def condition(snapshot: Snapshot) -> bool:
        begun.set()
        return snapshot.intentions == (DENY,)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(held.belief.wait_for, condition, PATIENCE)
        assert begun.wait(PATIENCE)
        held.belief.take_intentions((ALLOW,), regressed=False)
        assert not waiting.done()
        held.belief.take_intentions((DENY,), regressed=False)
        assert waiting.result(PATIENCE) is True


def test_waiting_has_an_end(held: Held) -> None:
    """``False`` when it did not come in time; at once when it holds already."""
    assert held.belief.wait_for(lambda snapshot: snapshot.ready, 0.01) is False
    assert held.belief.wait_for(lambda snapshot: not snapshot.ready, 0.0) is True


def test_no_wake_up_is_lost(held: Held) -> None:
    """Many swaps against many waiters: each sees the last."""
    rounds = 200
    with ThreadPoolExecutor(4) as pool:
        waiters = [
            pool.submit(
                held.belief.wait_for,
                lambda s, at=at: s.version >= at,
                PATIENCE,  # type: ignore[misc]
            )
            for at in (1, rounds // 2, rounds - 1, rounds)
        ]
        for number in range(rounds):
            held.belief.take_intentions((Intention(f"s{number}", "tax", True),), regressed=False)
        assert all(waiter.result(PATIENCE) for waiter in waiters)
