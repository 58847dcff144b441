"""
The words of an explanation: permissions, criteria, readings, causes and ways out.

Owns how each is said. Knows nothing of how a verdict came about.
"""

from __future__ import annotations

from ...intentions import (
    ABOUT,
    Decision,
    Permission,
    Reason,
    headers,
    paths,
    program,
    wire,
)
from ...intentions import policy as policies
from ...intentions.model import HeaderMatch

_WORDS = headers.WORDS | wire.WORDS | program.WORDS | policies.WORDS
DEFAULTS = (Reason.DEFAULT_ALLOW, Reason.DEFAULT_DENY, Reason.DEFAULT_UNKNOWN)
"""Reasons of a verdict that the default policy gave."""


def meaning(name: str) -> str:
    """Say what the name of a reading means."""
    if name in _WORDS:
        return _WORDS[name]
    return ", ".join(paths.WORDS.get(word, word) for word in name.split("+"))


def permission_words(permission: Permission) -> str:
    """Say what a permission allows or denies."""
    methods = "/".join(permission.methods) or "any method"
    forms = {"exact": "{}", "prefix": "{}...", "regex": "~ {}", "": "any path"}
    path = forms[permission.path_test].format(permission.path)
    tests = "".join(f" [{header_words(match)}]" for match in permission.headers)
    names = " or ".join(demand.provider for demand in permission.jwt)
    token = f" with a token of {names}" if names else ""
    return f"{'allow' if permission.allow else 'deny'} {methods} {path}{tests}{token}"


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
    if verdict.reason not in DEFAULTS:
        return ABOUT[verdict.reason].cause.replace("`", "")
    default = {Reason.DEFAULT_ALLOW: "allow", Reason.DEFAULT_DENY: "deny"}
    known = default.get(verdict.reason, "not known")
    if verdict.intention is None:
        return f"No intention is about the caller; the default policy is {known}."
    return f"None of the intention's permissions matches; the default policy is {known}."


def way_out(verdict: Decision) -> str:
    """Say what can be done; empty when nothing has to be."""
    if verdict.readings and set(verdict.readings) <= {"precedence", "envoy_rules"}:
        return "Two intentions disagree about this source: make one of them say what is meant."
    reason = verdict.reason
    if set(verdict.readings) == {"jwt"} and verdict.detail in list(Reason):
        reason = Reason(verdict.detail)
    remedy = ABOUT[reason].remedy
    return "" if remedy == "-" else remedy
