"""
The verdict of a mesh on a request, and the books kept of it.

Owns the order in which one request is judged, and when a verdict may be given once more. A request
never waits here: it reads one attribute.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING

from .belief import Belief
from .certificates import Peer
from .intentions import Decision, Reason, RequestFacts, decision
from .plugins import Plugins, is_interrupt
from .refusals import Told
from .snapshot import Snapshot

if TYPE_CHECKING:
    from .watcher import Watcher

_log = logging.getLogger("mesh_middleware.mesh")
_decisions = logging.getLogger("mesh_middleware.decision")

_NO_PEER = decision(Reason.NO_PEER)
_NOT_READY = decision(Reason.NO_POLICY)
_PEER_EXPIRED = decision(Reason.PEER_EXPIRED)
_LEAF_EXPIRED = decision(Reason.LEAF_EXPIRED)
_UNSOUND = decision(Reason.UNSOUND_TARGET)
_PLUGIN_DENIED = decision(Reason.PLUGIN_RESTRICTED)
_PLUGIN_FAILED = decision(Reason.PLUGIN_ERROR)


class Judging:
    """
    What a mesh says of requests; `mesh_middleware.Mesh`.

    Attributes:
        counts: requests judged, per reason.
        shadowed: those of them that were denied, and let through in shadow mode.
    """

    _belief: Belief
    _plugins: Plugins
    _clock: Callable[[], float]
    _watcher: Watcher | None

    def __init__(self) -> None:
        self.counts: defaultdict[Reason, int] = defaultdict(int)
        self.shadowed: defaultdict[Reason, int] = defaultdict(int)
        self._told = Told()

    def decide(
        self,
        peer: Peer | None,
        facts: RequestFacts,
        shadow: Callable[[Decision], bool] | None = None,
        *,
        booked: bool = True,
    ) -> Decision:
        """
        Judge one request. Waits for nothing.

        Args:
            peer: who sent it, from the connection that carried it; ``None`` without an identity.
            facts: the request.
            shadow: tells of a denial whether the request passes all the same, for the books.
            booked: whether the verdict is counted, logged and told to plugins.

        Returns:
            The verdict with its reason.
        """
        # One function, since each request pays for every call: the rules in order, then the books.
        snapshot = self._belief.snapshot
        policy, leaf = snapshot.policy, snapshot.leaf
        if peer is None:
            verdict = _NO_PEER
        elif policy is None or leaf is None:
            verdict = _NOT_READY
        else:
            now = self._clock()
            if now > peer.expires:
                verdict = _PEER_EXPIRED
            elif now > leaf.expires:
                verdict = _LEAF_EXPIRED
            elif not facts.sound:
                verdict = _UNSOUND
            else:
                verdict = policy.decide(peer.id, facts)
                if verdict.allowed and self._plugins.restricts:
                    verdict = self._restricted(peer, facts) or verdict
        if not booked:
            return verdict
        self.counts[verdict.reason] += 1
        if not verdict.allowed:
            self._denied(verdict, peer, shadow is not None and shadow(verdict))
        if self._plugins.watches_decisions:
            self._plugins.decision(verdict, peer.id if peer else None, facts)
        return verdict

    def holds_until(self, peer: Peer, facts: RequestFacts, snapshot: Snapshot) -> float | None:
        """
        Tell how long requests like one that was just let in get the same verdict: see `repeats`.

        Args:
            snapshot: in use before it was judged.

        Returns:
            Seconds since the epoch; ``None`` where each request has to be judged by itself: for a
            header or a token, by a plugin, or since the snapshot is another by now.
        """
        policy, leaf = snapshot.policy, snapshot.leaf
        if snapshot is not self._belief.snapshot or policy is None or leaf is None:
            return None
        if self._plugins.restricts or self._plugins.watches_decisions:
            return None
        # Whether a target without a leading slash is sound depends on its query: http://tax?x is
        # not, http://tax is; and the key does not hold it.
        if facts.odd_query or not (facts.target or b"/").startswith(b"/"):
            return None
        if not policy.is_settled(peer.id, facts):
            return None
        return min(peer.expires, leaf.expires)

    def repeats(self, verdict: Decision, snapshot: Snapshot, until: float) -> bool:
        """
        Give an allowing verdict once more, if it still stands; it is counted then.

        Args:
            snapshot: that it was made by.
            until: from `holds_until`.
        """
        if self._belief.snapshot is not snapshot or self._clock() > until:
            return False
        self.counts[verdict.reason] += 1
        return True

    def holds(self, snapshot: Snapshot, until: float) -> bool:
        """
        Tell whether a verdict still holds; it is not counted.

        Args:
            snapshot: that it was made by.
            until: from `holds_until`.
        """
        return self._belief.snapshot is snapshot and self._clock() <= until

    def _restricted(self, peer: Peer, facts: RequestFacts) -> Decision | None:
        try:
            return None if self._plugins.permits(peer.id, facts) else _PLUGIN_DENIED
        except BaseException as error:
            if is_interrupt(error):
                raise
            _log.exception("a plugin failed in mesh_restrict; the request is denied")
            return _PLUGIN_FAILED

    def _denied(self, verdict: Decision, peer: Peer | None, shadowed: bool) -> None:
        if shadowed:
            self.shadowed[verdict.reason] += 1
        self._log_denial(verdict, peer, "would deny" if shadowed else "denied")
        if self._watcher is not None and Reason.JWT_INVALID in (verdict.reason, verdict.detail):
            self._watcher.refresh_keys()

    def _log_denial(self, verdict: Decision, peer: Peer | None, what: str) -> None:
        source = peer.id.uri if peer else "nobody"
        first = self._told.is_first(what, source, verdict.reason)
        level = logging.WARNING if first else logging.DEBUG
        _decisions.log(level, "%s %s: %s %s", what, source, verdict.reason, verdict.detail)
