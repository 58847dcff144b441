"""
A request's head as Envoy reads it: what it refuses outright, and what its rules then see.

Owns the HTTP/1.1 codec's and connection manager's part of a verdict: methods, targets, header
syntax, limits, joined and dropped headers, upgrades. Requests it refuses are refused whatever the
policy says. Knows nothing of rules.

Source: every line observed on Envoy 1.40, configured as Consul 1.21 does; the differential tests
hold it to that (reference 12).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from . import paths
from .model import Normalization
from .reasons import Reason

Header = tuple[bytes, bytes]

METHODS = frozenset(
    b"ACL BIND CHECKOUT COPY DELETE GET HEAD LINK LOCK MERGE MKACTIVITY MKCALENDAR MKCOL MOVE"
    b" MSEARCH NOTIFY OPTIONS PATCH POST PROPFIND PROPPATCH PURGE PUT QUERY REBIND REPORT SEARCH"
    b" SOURCE SUBSCRIBE TRACE UNBIND UNLINK UNLOCK UNSUBSCRIBE".split()
)
"""
Methods that reach the rules; QUERY only with a content-type. CONNECT is known too, but has no route
on a public listener.
"""

MAX_HEAD = 61_440
"""Bytes of request line and headers together, the blank line included: 60 KiB."""

MAX_HEADERS = 100
"""Header lines, joined ones counted once, Host included."""

MAX_NOMINATED = 9
"""Tokens of a ``Connection`` header."""

MAX_NOMINATED_TE = 255
"""Bytes of a TE header that ``Connection`` names."""

JOINED = frozenset(
    b"accept accept-encoding access-control-request-headers access-control-request-method"
    b" authorization cache-control cdn-loop connection content-encoding content-length"
    b" content-type expect grpc-accept-encoding grpc-timeout host if-match if-modified-since"
    b" if-none-match if-range if-unmodified-since keep-alive origin pragma proxy-connection"
    b" proxy-status referer te transfer-encoding upgrade user-agent via x-client-trace-id"
    b" x-envoy-attempt-count x-envoy-decorator-operation x-envoy-downstream-service-cluster"
    b" x-envoy-downstream-service-node x-envoy-expected-rq-timeout-ms x-envoy-external-address"
    b" x-envoy-force-trace x-envoy-hedge-on-per-try-timeout x-envoy-internal"
    b" x-envoy-ip-tags x-envoy-is-timeout-retry x-envoy-max-retries x-envoy-original-host"
    b" x-envoy-original-path x-envoy-original-url x-envoy-retriable-header-names"
    b" x-envoy-retriable-status-codes x-envoy-retry-grpc-on x-envoy-retry-on"
    b" x-envoy-upstream-alt-stat-name x-envoy-upstream-rq-per-try-timeout-ms"
    b" x-envoy-upstream-rq-timeout-alt-response x-envoy-upstream-rq-timeout-ms"
    b" x-envoy-upstream-stream-duration-ms x-forwarded-client-cert x-forwarded-for"
    b" x-forwarded-host x-forwarded-port x-forwarded-proto x-request-id".split()
)
"""Headers whose repeats the codec joins by a comma, empty values dropped."""

UNSEEN = frozenset(
    b"keep-alive proxy-connection transfer-encoding x-envoy-expected-rq-timeout-ms"
    b" x-envoy-force-trace x-envoy-hedge-on-per-try-timeout x-envoy-internal x-envoy-ip-tags"
    b" x-envoy-max-retries x-envoy-original-url x-envoy-retriable-header-names"
    b" x-envoy-retriable-status-codes x-envoy-retry-grpc-on x-envoy-retry-on"
    b" x-envoy-upstream-alt-stat-name x-envoy-upstream-rq-per-try-timeout-ms"
    b" x-envoy-upstream-rq-timeout-alt-response x-envoy-upstream-rq-timeout-ms"
    b" x-envoy-upstream-stream-duration-ms".split()
)
"""Headers that no rule ever sees: hop-by-hop ones, and Envoy's own from outside."""

CLIENT_CERT = b"x-forwarded-client-cert"
"""To what a caller sends in it, the proxy appends an element of its own."""

ADDED = {
    b"x-request-id": b"00000000-0000-4000-8000-000000000000",
    b"x-forwarded-proto": b"https",
    CLIENT_CERT: b"By=spiffe://x;Hash=" + b"0" * 64 + b";URI=spiffe://x",
}
"""Headers that the proxy adds when they are absent, with a value of the same kind."""

MADE_UP = frozenset((b"x-request-id", CLIENT_CERT))
"""Those of them whose value nobody can foresee."""

SPECIAL = JOINED | UNSEEN | frozenset(ADDED) | {b"http2-settings"}
"""Header names whose values are not simply those on the wire."""

_UNNOMINABLE = frozenset((b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"))
_UNNOMINATED = frozenset((b"close", b"http2-settings", b"keep-alive", b"upgrade", b"connection"))
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_HOST = re.compile(rb"[!$-.0-;=@-\[\]_a-z~]*", re.IGNORECASE)
_ORIGIN = re.compile(rb"/[!\"$-~]*")
_ABSOLUTE = re.compile(
    rb"(https?)://(?:[!$-.0-;=A-Z_a-z~]*@)?([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+(?:%[0-9]+)?\])(?::([0-9]+))?"
    rb"(/[!\"$-~]*)?",
    re.IGNORECASE,
)
_USER_OR_ZONE = re.compile(rb"[^:]+://[^/?]*[@%]")


WORDS = {
    "head": "a carriage return inside a header, a colon in its name, or a user or zone in an "
    "absolute target: proxies cut these, others do not",
}
"""Names of readings that concern the head as a whole, and what they mean."""


class Refusal(NamedTuple):
    """Why a head is refused whatever the policy says, with a line for people."""

    reason: Reason
    detail: str
    readings: tuple[str, ...] = ()


class Target(NamedTuple):
    """A request target taken apart; *authority* and *scheme* only of an absolute form."""

    path: bytes
    query: bytes
    authority: bytes = b""
    scheme: bytes = b""


def split_target(target: bytes) -> Target | None:
    """
    Take a request target apart.

    Args:
        target: as sent.

    Returns:
        Its parts, *query* with its ``?``; ``None`` when no sound client sends it: not beginning
        with a slash, or with ``#``, spaces, control or non-ASCII bytes.
    """
    authority = scheme = b""
    if not _ORIGIN.fullmatch(target):
        found = _ABSOLUTE.fullmatch(target)
        if found is None or not _sound_authority(found[2], found[3]):
            return None
        scheme, target = found[1].lower(), found[4] or b"/"
        authority = found[2] if found[3] is None else found[2] + b":" + found[3]
    path, mark, query = target.partition(b"?")
    return Target(path, mark + query, authority, scheme)


def _sound_authority(host: bytes, port: bytes | None) -> bool:
    if port is not None and (len(port) > 20 or int(port) > 65535):
        return False
    if not host.startswith(b"["):
        return True
    address, _, zone = host[1:-1].partition(b"%")
    if len(zone) > 10 or int(zone or b"0") >= 1 << 32:
        return False
    try:
        ipaddress.IPv6Address(address.decode("ascii"))
    except ValueError:
        return False
    return True


def refusal(
    method: bytes, target: bytes, headers: Sequence[Header], options: Normalization
) -> Refusal | None:
    """
    Tell whether a head is refused before any rule is asked.

    Args:
        method, target, headers: as they stand on the wire.
        options: the mesh entry's request normalization.

    Returns:
        Why it is refused; ``None`` when it reaches the rules.
    """
    size = len(method) + len(target) + 14 + sum(len(n) + len(v) + 4 for n, v in headers)
    if size > MAX_HEAD:
        return Refusal(Reason.UNSOUND_HEADER, f"a head of {size} bytes")
    if method not in METHODS:
        return Refusal(Reason.UNSOUND_METHOD, repr(method))
    parts = split_target(target)
    if parts is None or paths.envoy_path(parts.path, options) is None:
        return Refusal(Reason.UNSOUND_TARGET, repr(target[:200]))
    lines = read_lines(headers)
    merged = merge(lines, options)
    why = _refuse_lines(lines, options) or _refuse_merged(merged, parts)
    if not why and method == b"QUERY" and not visible(merged).get(b"content-type", [b""])[0]:
        why = "QUERY without a content-type"
    return Refusal(Reason.UNSOUND_HEADER, why) if why else None


def unsound(
    method: bytes,
    target: bytes,
    headers: Sequence[Header],
    options: Normalization,
    *,
    strict: bool = True,
) -> Refusal | None:
    """
    Tell whether a request is refused whatever the policy says.

    Args:
        method, target, headers: as they stand on the wire.
        options: the mesh entry's request normalization.
        strict: whether also those are refused that Envoy mends and others may not.

    Returns:
        Why it is refused; ``None`` when the policy is to be asked.
    """
    found = refusal(method, target, headers, options)
    if found is not None or not strict:
        return found
    if any(b"\r" in value or b"\r" in name or b":" in name for name, value in headers):
        return Refusal(Reason.UNSOUND_HEADER, "a carriage return or colon", ("head",))
    if not target.startswith(b"/") and _USER_OR_ZONE.match(target):
        return Refusal(Reason.UNSOUND_TARGET, "a user or zone in the target", ("head",))
    return None


def read_lines(headers: Sequence[Header]) -> list[Header]:
    """
    Read header lines as the codec does: names in lower case, values trimmed.

    The codec ends a name at its first colon, and leaves carriage returns out of values.
    """
    lines = []
    for name, value in headers:
        if b":" in name:
            name, _, rest = name.partition(b":")
            value = rest + b": " + value
        lines.append((name.lower(), value.replace(b"\r", b"").strip(b" \t")))
    return lines


def _refuse_lines(lines: Sequence[Header], options: Normalization) -> str:
    for name, value in lines:
        if not _NAME.fullmatch(name):
            return f"header name {name[:100].decode('latin-1')!r}"
        if _BAD_VALUE.search(value):
            return f"a control byte in {name.decode()}"
        if b"_" in name and options.underscores == "reject":
            return f"an underscore in {name.decode()}"
    return ""


def merge(
    lines: Sequence[Header], options: Normalization | None = None
) -> dict[bytes, list[bytes]]:
    """
    Collect header lines by name, as the codec does.

    Args:
        lines: result of `read_lines`.
        options: of which ``underscores`` may drop names that have one.
    """
    merged: dict[bytes, list[bytes]] = {}
    drop = options is not None and options.underscores == "drop"
    for name, value in lines:
        if drop and b"_" in name:
            continue
        known = merged.get(name)
        if known is None:
            merged[name] = [value]
        elif name not in JOINED:
            known.append(value)
        elif value:
            known[0] = known[0] + b"," + value if known[0] else value
    return merged


def _refuse_merged(merged: Mapping[bytes, list[bytes]], target: Target) -> str:
    host = merged.get(b"host", [b""])[0]
    count = sum(map(len, merged.values()))
    if count > MAX_HEADERS:
        return f"{count} headers"
    if not target.authority and b"host" not in merged:
        return "no host"
    if not target.authority and not _HOST.fullmatch(host):
        return f"host {host[:100].decode('latin-1')!r}"
    if merged.get(b"x-forwarded-proto") == [b""]:
        return "an empty x-forwarded-proto"
    if not _sound_length(merged):
        return "content-length or transfer-encoding"
    if upgrades(merged):
        if _upgrade(merged) == b"websocket":
            return ""
        if _upgrade(merged) != b"h2c":
            return "an upgrade to something else than websocket"
    return "" if _sound_connection(merged, target) else "what connection names"


def _sound_length(merged: Mapping[bytes, list[bytes]]) -> bool:
    length = merged.get(b"content-length")
    coding = merged.get(b"transfer-encoding")
    if coding is not None and (length is not None or coding[0].lower() != b"chunked"):
        return False
    if length is None:
        return True
    digits = length[0]
    return digits.isdigit() and len(digits) < 100 and int(digits) < 1 << 64


def _tokens(merged: Mapping[bytes, list[bytes]]) -> list[bytes]:
    lines = merged.get(b"connection", ())
    return [token for line in lines for item in line.split(b",") if (token := item.strip(b" \t"))]


def _sound_connection(merged: Mapping[bytes, list[bytes]], target: Target) -> bool:
    tokens = [token.lower() for token in _tokens(merged)]
    if upgrades(merged):  # to h2c: ignored, and what asks for it taken away
        tokens = [token for token in tokens if token not in (b"upgrade", b"http2-settings")]
    if len(tokens) > MAX_NOMINATED:
        return False
    if any(token in _UNNOMINABLE or token.startswith(b":") for token in tokens):
        return False
    if b"host" in tokens and not target.authority:
        return False
    return b"te" not in tokens or len(merged.get(b"te", [b""])[0]) <= MAX_NOMINATED_TE


def _upgrade(merged: Mapping[bytes, list[bytes]]) -> bytes:
    return merged[b"upgrade"][0].lower()


def upgrades(merged: Mapping[bytes, list[bytes]]) -> bool:
    """Tell whether the request asks for an upgrade of its connection."""
    return b"upgrade" in merged and any(t.lower() == b"upgrade" for t in _tokens(merged))


def visible(merged: dict[bytes, list[bytes]]) -> dict[bytes, list[bytes]]:
    """
    Find what Envoy's rules see of the headers.

    Args:
        merged: result of `merge`, Host included.

    Returns:
        Values by name: what ``Connection`` names and hop-by-hop headers left out, what the proxy
        adds put in.
    """
    seen = dict(merged)
    asked = upgrades(merged)
    if asked and _upgrade(merged) == b"h2c":
        seen.pop(b"http2-settings", None)
        asked = False
    if not asked:
        _sanitize(seen, merged)
    for name in UNSEEN:
        seen.pop(name, None)
    if seen.get(b"expect", [b""])[0].lower() == b"100-continue":
        del seen[b"expect"]
    for name, value in ADDED.items():
        known = seen.get(name, [b""])[0]
        if not known:
            seen[name] = [value]
        elif name == CLIENT_CERT:
            seen[name] = [known + b"," + value]
    return seen


def _sanitize(seen: dict[bytes, list[bytes]], merged: Mapping[bytes, list[bytes]]) -> None:
    for token in _tokens(merged):
        token = token.lower()
        if token not in _UNNOMINATED and token not in (b"te", b"host"):
            seen.pop(token, None)
    coding = seen.get(b"te")
    if coding is not None and coding[0]:
        if b"trailers" in (item.strip(b" \t") for item in coding[0].split(b",")):
            seen[b"te"] = [b"trailers"]
        else:
            del seen[b"te"]
    seen.pop(b"connection", None)
    seen.pop(b"upgrade", None)


def scheme(target: Target | None, merged: Mapping[bytes, list[bytes]]) -> bytes:
    """Find what rules on ``:scheme`` see."""
    if target is not None and target.scheme:
        return target.scheme
    forwarded = merged.get(b"x-forwarded-proto", [b"https"])[0].lower()
    return forwarded if forwarded in (b"http", b"https") else b"https"
