"""
The words of an explanation: permissions, criteria, readings, causes and ways out.

Owns how each is said. Knows nothing of how a verdict came about.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...intentions import (
    ABOUT,
    Decision,
    JwtProvider,
    Permission,
    Reason,
    headers,
    paths,
    program,
    wire,
)
from ...intentions import policy as policies
from ...intentions.model import HeaderMatch, JwtDemand

_WORDS = headers.WORDS | wire.WORDS | program.WORDS | policies.WORDS
FLAWS = (
    Reason.UNREADABLE_PERMISSION,
    Reason.UNKNOWN_FIELD,
    Reason.UNKNOWN_ACTION,
    Reason.EMPTY_CRITERIA,
    Reason.CONFLICTING_CRITERIA,
    Reason.BAD_PATTERN,
    Reason.PATTERN_TOO_LARGE,
    Reason.NO_REGEX_ENGINE,
)
"""Reasons of a verdict that an intention gave because it cannot be used."""

_RULES = {"precedence", "envoy_rules"}
_RULES_DENY = {
    "precedence": "the intention of highest precedence, or without one the default, denies",
    "envoy_rules": "another rule that Envoy would ask denies",
}
DEFAULTS = (Reason.DEFAULT_ALLOW, Reason.DEFAULT_DENY, Reason.DEFAULT_UNKNOWN)
"""Reasons of a verdict that the default policy gave."""


def meaning(name: str) -> str:
    """Say what the name of a reading means."""
    if name in _WORDS:
        return _WORDS[name]
    return ", ".join(paths.WORDS.get(word, word) for word in name.split("+"))


def permission_words(permission: Permission) -> str:
    """Say what a permission allows or denies."""
    if permission.flaw is not None:
        return "(unreadable)"
    methods = "/".join(permission.methods) or "any method"
    forms = {"exact": "{}", "prefix": "{}...", "regex": "~ {}", "": "any path"}
    path = forms[permission.path_test].format(permission.path)
    tests = "".join(f" [{header_words(match)}]" for match in permission.headers)
    token = f" with {token_words(permission.jwt)}" if permission.jwt else ""
    return f"{'allow' if permission.allow else 'deny'} {methods} {path}{tests}{token}"


def token_words(demands: Iterable[JwtDemand]) -> str:
    """Say which token is demanded."""

    def words(demand: JwtDemand) -> str:
        claims = [f"{'.'.join(claim.path)} is {claim.value!r}" for claim in demand.claims]
        return demand.provider + (f" in which {' and '.join(claims)}" if claims else "")

    return "a token of " + " or ".join(map(words, demands))


def place_words(provider: JwtProvider) -> str:
    """Say where the token of a provider is looked for."""
    kinds = {"header": "header", "query": "parameter", "cookie": "cookie"}
    return " or ".join(
        f"{kinds[place.kind]} {place.name}" + (f" after {place.prefix!r}" if place.prefix else "")
        for place in provider.locations
    )


def header_words(match: HeaderMatch) -> str:
    """Say what a header criterion wants."""
    if match.test == "present":
        return f"{match.name} is {'absent' if match.invert else 'present'}"
    words = {
        "exact": ("is", "is not"),
        "prefix": ("begins with", "does not begin with"),
        "suffix": ("ends with", "does not end with"),
        "contains": ("contains", "does not contain"),
        "regex": ("matches", "does not match"),
    }[match.test][match.invert]
    case = ", in any case" if match.ignore_case else ""
    return f"{match.name} {words} {match.value!r}{case}"


def cause(verdict: Decision) -> str:
    """Say why, more exactly than the list of reasons can."""
    if verdict.readings and set(verdict.readings) <= _RULES:
        alone = " and ".join(_RULES_DENY[name] for name in verdict.readings)
        return f"Precedence and the rules that Envoy is given differ for this caller: {alone}."
    if verdict.reason not in DEFAULTS:
        return ABOUT[verdict.reason].cause.replace("`", "")
    default = {Reason.DEFAULT_ALLOW: "allow", Reason.DEFAULT_DENY: "deny"}
    known = default.get(verdict.reason, "not known")
    if verdict.intention is None:
        return f"No intention is about the caller; the default policy is {known}."
    return f"None of the intention's permissions matches; the default policy is {known}."


def way_out(verdict: Decision) -> str:
    """Say what can be done; empty when nothing has to be."""
    if verdict.readings and set(verdict.readings) <= _RULES:
        return "Make the intentions about this caller say the same, or rename what is a pattern."
    reason = verdict.reason
    if reason is Reason.DEFAULT_DENY and verdict.intention is None:
        return "Add an intention that allows this caller, if it should be allowed."
    if set(verdict.readings) == {"jwt"} and verdict.detail in list(Reason):
        reason = Reason(verdict.detail)
    remedy = ABOUT[reason].remedy
    return "" if remedy == "-" else remedy
