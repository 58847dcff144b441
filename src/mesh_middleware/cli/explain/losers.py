"""
Why the other intentions lost: one sentence for each.

Owns these sentences; knows nothing of permissions and readings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...identity import ServiceId, parse_spiffe_id
from ...intentions import Decision, Intention, Policy, Reason
from ...intentions.model import WILDCARD
from ...intentions.sources import Candidates

UNASKED = (Reason.UNSOUND_METHOD, Reason.UNSOUND_TARGET, Reason.UNSOUND_HEADER)
"""Reasons of a verdict that was reached before any intention was asked."""

_STRANGERS = (Reason.FOREIGN_TRUST_DOMAIN, Reason.PEER_NOT_SERVICE, Reason.PEER_UNREADABLE)


@dataclass(frozen=True, slots=True)
class Loser:
    """An intention that did not decide, and why; *near* when it is about the source."""

    intention: Intention
    why: str
    near: bool


def losers(
    policy: Policy, uri: str, verdict: Decision, found: Candidates | None
) -> Iterable[Loser]:
    """
    List the intentions that did not decide, in order.

    Args:
        uri: SPIFFE ID of the caller.
        found: the intentions that have a say about it; ``None`` when it is no service of ours.
    """
    for intention in policy.intentions:
        if intention is verdict.intention:
            continue
        why = _other_source(intention, uri, policy, found)
        near = not why
        if near and intention.flaw is not None:
            why = f"cannot be read: {intention.flaw.detail}"
        yield Loser(intention, why or _outranked(intention, verdict, found), near)


def _other_source(intention: Intention, uri: str, policy: Policy, found: Candidates | None) -> str:
    """Tell why an intention is not about the source; empty when it is."""
    if intention.peer:
        return f"about the peered cluster {intention.peer}: such callers are not known here"
    if found is None:
        return "not asked: the caller is no service of this mesh"
    if any(intention is item for item in found.all):
        return ""
    source = parse_spiffe_id(uri)
    assert isinstance(source, ServiceId)
    if intention.partition != source.partition:
        return f"about partition {intention.partition}, the source is of {source.partition}"
    if intention.namespace not in (source.namespace, WILDCARD):
        return f"about namespace {intention.namespace}, the source is of {source.namespace}"
    if intention.source not in (source.name, WILDCARD):
        return f"about {intention.source}, not {source.name}"
    return ""


def _outranked(intention: Intention, verdict: Decision, found: Candidates | None) -> str:
    decider = verdict.intention
    rules = () if found is None else found.envoy
    if verdict.reason in _STRANGERS:
        return "not asked: the caller is no service of this mesh"
    if verdict.reason in UNASKED:
        return "not asked: such a request is refused before"
    if decider is None:
        if any(intention is item for item in rules):
            return "by its name about another; to Envoy that is a pattern, and it fits the caller"
        return "by its name about the caller; to Envoy that is a pattern, and it does not fit"
    everyone = decider.flaw is not None and decider.flaw.everyone
    if everyone or (found is not None and not any(decider is item for item in found.all)):
        return "not asked: another intention cannot be used, so everyone is denied"
    text = f"outranked: precedence {intention.precedence}, decided at {decider.precedence}"
    if decider.precedence < intention.precedence:
        text = "outranks the one that decided, but allows, and both have to"
    elif any(intention is item for item in rules):
        text += "; Envoy's rules ask it, too"
    return text
