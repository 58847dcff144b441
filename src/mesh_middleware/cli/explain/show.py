"""
Prints an explanation: for people, or as JSON.

Owns the form. What is told comes from `why`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ...intentions import ABOUT, Intention
from ..options import print_json
from .losers import Loser
from .why import Explanation
from .words import FLAWS, cause, token_words, way_out

MAX_FAR = 20
"""Intentions about other sources that are listed; the others are counted."""

_DEFAULT = {True: "allow", False: "deny", None: "unknown"}


def print_words(told: Explanation) -> None:
    """Print an explanation for people."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    first, *rest = lines(told)
    console.print(first, style="bold green" if told.verdict.allowed else "bold red")
    for line in rest:
        console.print(line)


def lines(told: Explanation) -> Iterator[str]:
    """Say it, line by line."""
    verdict, given = told.verdict, told.given
    yield f"{'ALLOWED' if verdict.allowed else 'DENIED'}  {_request(told)}"
    yield from _block("because", _because(told))
    yield from _block("judged by", [_decider(told), _default(told), _terms(told)])
    yield from _block("readings that deny", _table((n, m) for n, m in told.differing))
    if told.readings:
        rows = ((r.name, _plain(r.path), r.says) for r in told.readings)
        yield from _block("how the path can be read", _table(rows))
    yield from _block("permissions, the first that matches decides", _permissions(told))
    if told.losers:
        yield from _block("other intentions", _losers(told.losers))
    elif not given.intentions:
        yield from _block("other intentions", [f"there are none about {given.service}"])
    if not verdict.allowed and (remedy := way_out(verdict)):
        yield from _block("what to do", [remedy])


def _block(title: str, content: Iterable[str]) -> Iterator[str]:
    listed = list(content)
    if listed:
        yield ""
        yield title
        yield from (f"  {line}" for line in listed)


def _request(told: Explanation) -> str:
    method, target = _plain(told.facts.method), _plain(told.facts.target or b"")
    what = "connecting" if told.given.protocol == "tcp" else f"{method} {target}"
    return f"{_source(told)} -> {told.given.service}: {what}  ({told.verdict.reason})"


def _plain(text: bytes) -> str:
    """Bytes fit for a terminal: what is not printable ASCII, escaped."""
    return "".join(chr(b) if 0x20 <= b < 0x7F else f"\\x{b:02x}" for b in text)


def _source(told: Explanation) -> str:
    own = f"spiffe://{told.given.trust_domain}/ns/default/dc/dc1/svc/"
    return told.uri.removeprefix(own)


def _because(told: Explanation) -> list[str]:
    verdict = told.verdict
    found = [cause(verdict)]
    detail = verdict.detail.removeprefix("b") if verdict.detail[:2] == "b'" else verdict.detail
    if detail and detail in {str(reason) for reason in ABOUT}:
        if told.differing and detail != verdict.reason:
            found.append(f"What denies it there: {detail}.")
    elif detail:
        found.append(f"Namely: {detail}.")
    found += told.hints
    if not verdict.allowed:
        found.append(f"The caller gets a {verdict.status}, and is not told why.")
    return found


def _decider(told: Explanation) -> str:
    intention, permission = told.decider, told.verdict.permission
    if intention is None:
        return "no intention"
    if intention.flaw is not None and intention.flaw.everyone:
        return "an intention that cannot be read"
    if intention.flaw is not None:
        return f"{_pair(intention)}, precedence {intention.precedence}: cannot be read"
    action = {True: "allow", False: "deny", None: "permissions"}[intention.allow]
    text = f"{_pair(intention)}, precedence {intention.precedence}: {action}"
    if permission is not None:
        text += f", number {permission}"
    elif told.verdict.reason in FLAWS:
        text += ", which cannot be used"
    elif intention.permissions and told.given.protocol != "tcp":
        text += ", none of which matches"
    return f"{text}, with {token_words(intention.jwt)}" if intention.jwt else text


def _default(told: Explanation) -> str:
    given = told.given
    text = f"default policy {_DEFAULT[given.default_allow]} ({given.default_from})"
    return f"{text}: it decides" if told.default_used else f"{text}: not asked"


def _terms(told: Explanation) -> str:
    text = f"protocol {told.given.protocol}, reading {told.reading}"
    own = told.uri.startswith(f"spiffe://{told.given.trust_domain}/ns/default/dc/dc1/svc/")
    return text if own else f"{text}, trust domain {told.given.trust_domain}"


def _permissions(told: Explanation) -> Iterator[str]:
    several = bool(told.readings)
    rows = []
    for asked in told.permissions:
        why = asked.why or "decides"
        if several and asked.matches and asked.why:
            why = "matches as " + ", ".join(asked.matches)
        rows.append((str(asked.index), asked.text, why))
    return _table(rows)


def _losers(losers: Sequence[Loser]) -> Iterator[str]:
    near = [loser for loser in losers if loser.near]
    far = [loser for loser in losers if not loser.near]
    shown = [*near, *far[:MAX_FAR]]
    rows = [(_pair(i.intention), str(i.intention.precedence), _action(i), i.why) for i in shown]
    yield from _table(rows)
    if len(far) > MAX_FAR:
        yield f"and {len(far) - MAX_FAR} more about others; --json lists them all"


def _action(loser: Loser) -> str:
    return {True: "allow", False: "deny", None: "permissions"}[loser.intention.allow]


def _pair(intention: Intention) -> str:
    source, destination = intention.source, intention.destination
    if intention.namespace != "default" or intention.destination_namespace != "default":
        source = f"{intention.namespace}/{source}"
        destination = f"{intention.destination_namespace}/{destination}"
    if intention.partition != "default":
        source = f"{intention.partition}/{source}"
    if intention.peer:
        source = f"peer {intention.peer}/{source}"
    return f"{source} -> {destination}"


def _table(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    listed = list(rows)
    if not listed:
        return
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    for row in listed:
        cells = (cell.ljust(min(width, 60)) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def print_data(told: Explanation) -> None:
    """Print an explanation as JSON."""
    print_json(data(told))


def data(told: Explanation) -> dict[str, Any]:
    """
    Make an explanation fit for JSON.

    Indexes count in Consul's order, highest precedence first; strings of the request are bytes, one
    Latin-1 character each.
    """
    verdict, given = told.verdict, told.given
    place = {id(intention): n for n, intention in enumerate(given.intentions)}
    decider = told.decider
    return {
        "allowed": verdict.allowed,
        "reason": str(verdict.reason),
        "status": verdict.status,
        "cause": cause(verdict),
        "remedy": way_out(verdict),
        "detail": verdict.detail,
        "hints": list(told.hints),
        "source": told.uri,
        "service": given.service,
        "method": told.facts.method.decode("latin-1"),
        "target": (told.facts.target or b"").decode("latin-1"),
        "protocol": given.protocol,
        "reading": told.reading,
        "default": _DEFAULT[given.default_allow],
        "default_decided": told.default_used,
        "intention": None if decider is None else place.get(id(decider)),
        "intention_words": None if decider is None else _pair(decider),
        "precedence": None if decider is None else decider.precedence,
        "permission": verdict.permission,
        "readings": [{"name": name, "meaning": meaning} for name, meaning in told.differing],
        "paths": [
            {"reading": r.name, "path": _plain(r.path), "says": r.says} for r in told.readings
        ],
        "permissions": [
            {"index": a.index, "words": a.text, "matches": list(a.matches), "why": a.why}
            for a in told.permissions
        ],
        "losers": [
            {
                "intention": place[id(loser.intention)],
                "words": _pair(loser.intention),
                "precedence": loser.intention.precedence,
                "why": loser.why,
            }
            for loser in told.losers
        ],
    }
