"""
What this process believes: the snapshot in use, and how answers change it.

Owns the one mutable place of the package. Only the watcher changes it; everyone else reads one
attribute, without a lock. Contexts of a new generation are built here, before the swap, so that no
handshake waits for them.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from .certificates import KeyPair, Leaf, Roots
from .config import Settings
from .consul.intentions import parse_match
from .exceptions import CertificateError
from .intentions import Intention, compile_policy
from .pauses import give_way
from .snapshot import Conditions, Snapshot, Trust, Verdict, lost_denies, offer_leaf, offer_roots
from .tls import Generation

if TYPE_CHECKING:
    from .keepsake import Kept

_log = logging.getLogger("mesh_middleware.mesh")

SECOND_LOOK = 5.0
"""Seconds after which vanished denies, told twice behind an index regress, are believed."""
KEPT_NOTES = 32
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


class Belief:
    """
    The snapshot in use and what it was made of.

    Args:
        settings: service name and reading of this mesh.
        now: this moment, aware UTC.
        swapped: called after each swap with the old and the new snapshot.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        now: Callable[[], datetime],
        swapped: Callable[[Snapshot, Snapshot], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.snapshot = Snapshot()
        self.generation = Generation()
        self.notes: deque[tuple[datetime, str, str]] = deque(maxlen=KEPT_NOTES)
        self.events: Counter[str] = Counter()
        self._settings = settings
        self._now, self._clock = now, clock
        self._swapped = swapped
        self._trust = Trust()
        self._probed = False
        self._match: object = None
        self._entries: object = None
        self._told_under: str | None = None
        self._told_expired: Leaf | None = None
        self._doubted: tuple[tuple[Intention, ...], float] | None = None
        self._changed = threading.Condition()

    @property
    def trust_domain(self) -> str | None:
        """Trust domain of the roots in use."""
        return self._trust.roots.trust_domain if self._trust.roots else None

    def wait_for(self, condition: Callable[[Snapshot], bool], timeout: float | None) -> bool:
        """Wait until *condition* holds for the snapshot; ``False`` after *timeout* seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self.snapshot), timeout)

    def announce(self) -> None:
        """Let those who `wait_for` something look again."""
        with self._changed:
            self._changed.notify_all()

    def take_roots(self, roots: Roots) -> str:
        """Judge roots that the agent told; the reason, when they are not in use now."""
        give_way()  # reading them was work, too
        return self._take(offer_roots(self._trust, roots, self._now()))

    def take_leaf(self, pair: KeyPair) -> str:
        """Judge a leaf that the agent told; the reason, when it is not in use now."""
        give_way()  # reading it was work, too
        return self._take(offer_leaf(self._trust, pair, self._settings.service, self._now()))

    def take_default(self, default_allow: bool | None) -> None:
        """Take the default policy; ``None`` when it could not be learnt."""
        if self._probed and default_allow == self.snapshot.default_allow:
            return
        self._probed = True
        self._swap(replace(self.snapshot, default_allow=default_allow))

    def take_conditions(self, conditions: Conditions, entries: object = None) -> None:
        """
        Take what the service is judged by beside its intentions.

        Args:
            entries: what they were read from, to be kept.
        """
        self._entries = entries
        if conditions != self.snapshot.conditions:
            self._swap(replace(self.snapshot, conditions=conditions))

    def take_stricter(self, told: tuple[Intention, ...], body: object = None) -> None:
        """
        Take intentions whose index is not known yet, unless they refuse less than those in use.

        Whether the index went backwards tells whether vanished denies are believed.
        """
        if self._doubted is None and not lost_denies(self.snapshot.intentions, told):
            self.take_intentions(told, regressed=False, body=body)

    def take_intentions(
        self, told: tuple[Intention, ...], *, regressed: bool, body: object = None
    ) -> bool:
        """
        Judge intentions that the agent told.

        Args:
            regressed: the index went backwards with this answer. An agent with another trust
                domain counts as much: it was rebuilt.
            body: the agent's answer they were read from, to be kept.

        Returns:
            ``False`` when they are doubted and have to be asked for again after `SECOND_LOOK`.
        """
        moment = self._clock()
        known = self.snapshot.intentions
        if known == told:
            self._doubted, self._told_under = None, self.trust_domain
            return True
        regressed = regressed or self._rebuilt()
        if (regressed or self._doubted) and lost_denies(known, told):
            if not self._confirmed(told, moment):
                return False
        # Megabytes, where there are thousands: only for who keeps them.
        self._doubted, self._match = None, body if self._settings.keep_file else None
        self._told_under = self.trust_domain
        self._swap(replace(self.snapshot, intentions=told))
        return True

    def keep(self) -> Kept | None:
        """What can be kept for a start without the agent; ``None`` before all of it is there."""
        from .keepsake import Kept

        roots, pair = self._trust.roots, self._trust.pair
        if roots is None or pair is None or self.snapshot.policy is None:
            return None
        return Kept(roots, pair, self._match, self.snapshot.default_allow, self._entries)

    def restore(self, kept: Kept) -> None:
        """
        Believe what was kept, judged like any answer of the agent.

        Raises:
            AgentAnswerError: the intentions in it cannot be read.
            CertificateError: the leaf in it cannot serve, or no longer. Nothing is believed then.
        """
        told = parse_match(kept.match, self._settings.service)
        trust = offer_roots(Trust(), kept.roots, self._now()).trust
        verdict = offer_leaf(trust, kept.pair, self._settings.service, self._now())
        if verdict.trust.pair is None:
            raise CertificateError(verdict.detail)
        self._take(verdict)
        self.take_default(kept.default_allow)
        self.take_intentions(told, regressed=False, body=kept.match)

    def reconsider(self) -> None:
        """Look at the clock again: a leaf that waits may be valid now, ours be so no more."""
        if self._trust.waiting_pair is not None:
            self.take_leaf(self._trust.waiting_pair)
        leaf = self.snapshot.leaf
        if leaf is not None and leaf is not self._told_expired and self._now() > leaf.not_after:
            self._told_expired = leaf
            until = "no handshake succeeds until the agent gives another"
            self.note("leaf_expired", f"our leaf expired {leaf.not_after:%FT%TZ}; {until}")

    def count(self, code: str) -> None:
        """Count an event: a note, or the beginning of a trouble with the agent."""
        self.events[code] += 1

    def note(self, code: str, detail: str) -> None:
        """Keep and log, once in a row, what people should know, under a stable code."""
        self.count(code)
        if self.notes and _timeless(*self.notes[-1][1:]) == _timeless(code, detail):
            return
        self.notes.append((self._now(), code, detail))
        _log.warning("%s: %s", code, detail)

    def _rebuilt(self) -> bool:
        """Whether the agent has another CA than when it told the intentions in use."""
        others = {self._told_under, self.trust_domain} - {None}
        return len(others) > 1 or self._trust.waiting_roots is not None

    def _confirmed(self, told: tuple[Intention, ...], moment: float) -> bool:
        if self._doubted and self._doubted[0] == told:
            return moment - self._doubted[1] >= SECOND_LOOK
        self._doubted = (told, moment)
        self.note(
            "denies_vanished", "the agent lost its memory, and denies are gone; asking once more"
        )
        return False

    def _take(self, verdict: Verdict) -> str:
        # A leaf that comes before the roots is how every start goes.
        usual = verdict.note == "leaf_waiting" and self._trust.roots is None
        if verdict.note and not usual:
            self.note(verdict.note, verdict.detail)
        why = "" if usual or verdict.note in ("", "trust_domain_changed") else verdict.detail
        before, after = self._trust, verdict.trust
        if (before.roots, before.pair) == (after.roots, after.pair):
            self._trust = after
            return why
        number = self.snapshot.generation + 1
        give_way()
        try:
            generation = Generation(after.pair, after.roots, number, like=self.generation)
        except CertificateError as error:
            self.note("leaf_rejected", f"{error}; what was used before stays")
            return str(error)
        give_way()
        refused = generation.check_itself(self._now())
        if refused:
            refused = f"OpenSSL refuses our own leaf under the roots of the mesh: {refused}"
            if before.roots == after.roots and before.pair is not None:
                self.note("leaf_rejected", f"{refused}; the old leaf stays")
                return refused
            # Roots are taken all the same: what Consul has dropped is trusted no more.
            self.note("leaf_refused", f"{refused}; not ready until the agent gives another")
        self._trust = after
        self.generation = generation
        leaf = after.pair.leaf if after.pair else None
        self._swap(
            replace(self.snapshot, leaf=leaf, roots=after.roots, generation=number, refused=refused)
        )
        return why or refused

    def _swap(self, draft: Snapshot) -> None:
        old = self.snapshot
        new = replace(self._compiled(old, draft), version=old.version + 1)
        self.snapshot = new
        self.announce()
        self._swapped(old, new)

    def _compiled(self, old: Snapshot, draft: Snapshot) -> Snapshot:
        if draft.intentions is None or draft.roots is None or not self._probed:
            return draft
        same_domain = old.roots and old.roots.trust_domain == draft.roots.trust_domain
        same_rules = (
            old.intentions is draft.intentions
            and old.default_allow == draft.default_allow
            and old.conditions is draft.conditions
        )
        if old.policy is not None and same_domain and same_rules:
            return draft
        policy = compile_policy(
            draft.intentions,
            service=self._settings.service,
            trust_domain=draft.roots.trust_domain,
            default_allow=draft.default_allow,
            protocol=draft.conditions.protocol,
            normalization=draft.conditions.normalization,
            jwt_providers=draft.conditions.providers,
            reading=self._settings.reading,
            previous=old.policy,
        )
        return replace(draft, policy=policy)


def _timeless(code: str, detail: str) -> tuple[str, str]:
    # Each new leaf of a broken CA expired at another second: that is one thing to tell.
    return code, _MOMENT.sub("", detail)
