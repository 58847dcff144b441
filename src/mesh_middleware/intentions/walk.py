"""
The walk through the permissions of one intention, in one reading of the path.

Owns what headers and tokens make of the permissions that a path and a method lead to. Knows nothing
of how these were found.

Theory: a header criterion is judged in every reading of the header: it *must* match when it does in
all of them, it *may* when it does in any. An allowing permission decides when it must match, a
denying one when it may: so whatever any combination of readings denies is denied, in one walk.

Source: reference 5.1 to 5.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .headers import HeaderView
from .matchers import HeaderTest, Step
from .model import Intention, JwtDemand
from .reasons import Reason
from .terms import Request

_ACTIONS = {
    True: Reason.INTENTION_ALLOW,
    False: Reason.INTENTION_DENY,
    None: Reason.PERMISSIONS_ON_CONNECTION,
}
_OUR_FAULT = (Reason.JWT_UNKNOWN_PROVIDER, Reason.JWT_NO_KEYS, Reason.JWT_NO_ENGINE)
"""Why tokens cannot be judged at all: denied whatever the default is."""


class Branch(NamedTuple):
    """One intention, or the default, and the permissions that some readings of a path lead to."""

    readings: tuple[str, ...]
    intention: Intention | None
    steps: tuple[Step, ...]

    @property
    def final(self) -> bool:
        """Whether neither headers nor tokens matter any more."""
        if self.intention is not None and self.intention.jwt:
            return False
        # Behind a step that asks nothing more there is none.
        return not self.steps or not (self.steps[0].headers or self.steps[0].jwt)


class Verdict(NamedTuple):
    """What a branch says; *doubts* name the readings that made it stricter."""

    allowed: bool
    reason: Reason
    permission: int | None = None
    doubts: frozenset[str] = frozenset()


def walk(
    branch: Branch, default: Reason, request: Request | None, *, doubt: bool, connection: bool
) -> Verdict:
    """
    Find what decides in one branch.

    Args:
        default: what holds where nothing matches.
        request: ``None`` where no request matters.
        doubt: whether what any reading of headers denies is denied, and tokens are always
            enforced; else Envoy's reading alone counts.
        connection: whether a connection is judged, where permissions count as a denial.
    """
    intention = branch.intention
    if intention is None:
        return Verdict(default.allows, default)
    if connection or intention.allow is not None:
        reason = _ACTIONS[intention.allow]
        verdict = Verdict(reason.allows, reason)
        if connection and not doubt:
            return verdict  # as Consul has it: tokens do not count on tcp
        return _with_tokens(verdict, intention.jwt, default, request, doubt)
    doubts: set[str] = set()
    for step in branch.steps:
        must = may = True
        if step.headers:
            must, may = _judge_headers(step.headers, request, doubts, doubt)
        if must if step.allow else may:
            verdict = Verdict(step.allow, step.reason, step.index, frozenset(doubts))
            for demands in (intention.jwt, step.jwt):
                verdict = _with_tokens(verdict, demands, default, request, doubt)
            return verdict
    verdict = Verdict(default.allows, default, None, frozenset(doubts))
    return _with_tokens(verdict, intention.jwt, default, request, doubt) if doubt else verdict


def walk_plainly(
    steps: Sequence[Step], default: Reason, view: HeaderView
) -> tuple[Reason, int | None] | None:
    """
    Find what decides, where no header can be read in two ways and no token is demanded.

    Nearly every request is like that, and this is all it pays for.

    Args:
        steps: permissions of the only intention that decides; it demands no token itself.
        view: the headers of the request.

    Returns:
        Reason and permission that `walk` would give; ``None`` where it has to be asked.
    """
    for step in steps:
        for test in step.headers:
            sure, values = view.plainly(test.name)
            if not sure:
                return None
            if test.pattern and values:
                view.spend(values)
            if not test.matches(values):
                break
        else:
            return None if step.jwt else (step.reason, step.index)
    return default, None


def _with_tokens(
    verdict: Verdict,
    demands: Sequence[JwtDemand],
    default: Reason,
    request: Request | None,
    doubt: bool,
) -> Verdict:
    """Put the demand for a token to a verdict; see reference 5.3, "JWT in RBAC"."""
    if not demands or request is None:
        return verdict
    if doubt:
        if not verdict.allowed:
            return verdict._replace(doubts=verdict.doubts | {"jwt"})
        unmet = request.unmet(demands)
        if unmet is None:
            return verdict
        return Verdict(False, unmet, verdict.permission, verdict.doubts | {"jwt"})
    if verdict.allowed is default.allows:
        return verdict
    unmet = request.unmet(demands, lenient=True)
    if unmet is None:
        return verdict
    if unmet in _OUR_FAULT:
        return Verdict(False, unmet, verdict.permission)
    return Verdict(default.allows, default if default.allows else unmet, verdict.permission)


def _judge_headers(
    tests: Sequence[HeaderTest], request: Request | None, doubts: set[str], doubt: bool
) -> tuple[bool, bool]:
    """Tell whether all tests pass in every reading, and whether they do in any."""
    assert request is not None
    must = may = True
    for test in tests:
        read = request.alternatives(test.name)
        if test.pattern:
            for alternative in read:
                request.spend(alternative.values or ())
        every = some = first = test.matches(read[0].values)
        if doubt and read[0].made_up and test.test is not None:
            doubts.add("proxy")
            every, some = False, True
        elif doubt and len(read) > 1:
            for alternative in read:
                result = test.matches(alternative.values)
                if result is not first:
                    doubts.add(alternative.name)
                every, some = every and result, some or result
        must, may = must and every, may and some
        if not may:
            return False, False
    return must, may
