"""
The readings of a request path: what each layer on the way could take it for.

Owns Envoy's normalization and the transformations that routers, frameworks and file systems
apply. A *reading* is a name and the path read that way; names are made of the words in `WORDS`.
Knows nothing of rules.

Theory: Envoy matches the path still percent-encoded, after RFC 3986 normalization. The
application routes by the decoded path, and what it does with empty segments, dots, parameters or
backslashes is its own affair. A plain path (no escapes, no ``;``, ``\\``, ``//``, dot segments)
has one reading only, and nearly all paths are plain.

Source: reference 5.6 and 12.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from .model import Normalization

WORDS = {
    "raw": "the path as it was sent",
    "normalized": "as Envoy and Consul's default normalization leave it",
    "decoded": "percent-decoded once, as frameworks route",
    "app": "the path the server handed to the application",
    "slashes_decoded": "`%2f` and `%5c` decoded, all other escapes kept",
    "backslashes": "`\\` taken for `/`",
    "params_cut": "`;parameters` cut from each segment",
    "dots_resolved": "dot segments resolved",
    "slashes_merged": "repeated slashes merged",
}
"""Every word a reading's name is made of, and what it means."""

PLAIN = re.compile(rb"(?:/(?!\.\.?(?:/|\Z))[A-Za-z0-9._~!$&'()*+,=:@-]+)*/?")
"""Paths that every layer reads the same way."""

_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ESCAPED_SLASH = re.compile(rb"%(2[fF]|5[cC])")
_ENCODED = re.compile(rb"[ \"<>^`{|}]")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_DOT_PARAMS = re.compile(rb"(?<=/)(\.\.?);[^/]*")
_PARAMS = re.compile(rb";[^/]*")
_SLASHES = re.compile(rb"//+")


class Reading(NamedTuple):
    """A path read in one way, and the name of that way."""

    name: str
    path: bytes


def envoy_path(path: bytes, options: Normalization) -> bytes | None:
    """
    Find the path that Envoy's rules see.

    Args:
        path: raw path, without query.
        options: what Envoy is told to normalize.

    Returns:
        The path; ``None`` when the request is refused, or answered with a redirect.

    Source: reference 5.6; escaped slashes first, merged slashes last.
    """
    if PLAIN.fullmatch(path):
        return path
    if options.escaped_slashes != "keep" and _ESCAPED_SLASH.search(path):
        if options.escaped_slashes != "unescape":
            return None
        path = decode_slashes(path)
    if options.paths:
        if has_nul(path) and has_nul(_DOT_PARAMS.sub(rb"\1", path)):
            return None
        path = normalize(path)
    return merge_slashes(path) if options.merge_slashes else path


def has_nul(path: bytes) -> bool:
    """Tell whether a raw path has an escaped NUL."""
    return b"%00" in path


def normalize(path: bytes) -> bytes:
    """
    Normalize a path as Envoy does by default.

    Args:
        path: raw path, without query, beginning with a slash.

    Returns:
        Dot segments resolved, escapes of unreserved characters decoded, ``\\`` as ``/``, some raw
        characters encoded; other escapes, their case and repeated slashes stay.

    Source: observed on Envoy 1.40 (reference 12).
    """
    if PLAIN.fullmatch(path):
        return path
    path = _DOT_PARAMS.sub(rb"\1", path)
    if _BROKEN_ESCAPE.search(path):
        path = _decode_around_broken(path)
    else:
        path = _ESCAPE.sub(_decode_unreserved, path)
    path = path.replace(b"\\", b"/")
    path = _ENCODED.sub(lambda found: b"%%%02X" % found[0][0], path)
    return resolve_dots(path)


def _decode_unreserved(found: re.Match[bytes]) -> bytes:
    value = int(found[1], 16)
    return bytes((value,)) if value in _UNRESERVED else found[0]


def _decode_around_broken(path: bytes) -> bytes:
    """
    Decode escapes of unreserved characters where some escapes are broken.

    A broken ``%`` whose next characters become hex digits only by decoding, as in ``%2%61``, would
    turn into a new escape: it is encoded to ``%25`` then.
    """
    out = bytearray()
    broken, place = -4, 0
    while place < len(path):
        found = _ESCAPE.match(path, place)
        if found is None:
            if path[place] == 0x25:
                broken = len(out)
            out.append(path[place])
            place += 1
            continue
        place = found.end()
        read = _decode_unreserved(found)
        out += read
        if len(read) == 1 and broken >= len(out) - 3:
            _mend_nested(out, broken, path[place : place + 1])
    return bytes(out)


def _mend_nested(out: bytearray, broken: int, following: bytes) -> None:
    near = broken == len(out) - 2
    tail = bytes(out[broken:]) + (following if near else b"")
    if _ESCAPE.match(tail):
        out[broken + 1 : broken + 1] = b"25"


def resolve_dots(path: bytes) -> bytes:
    """Resolve ``.`` and ``..`` segments; empty segments count as segments, and stay."""
    if b"/." not in path:
        return path
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    for segment in segments:
        if segment == b"..":
            if kept:
                kept.pop()
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)


def merge_slashes(path: bytes) -> bytes:
    """Make one slash of each run of slashes."""
    return _SLASHES.sub(b"/", path) if b"//" in path else path


def cut_params(path: bytes) -> bytes:
    """Cut ``;`` and what follows it from each segment."""
    return _PARAMS.sub(b"", path) if b";" in path else path


def decode(path: bytes) -> bytes:
    """Percent-decode once; broken escapes stay."""
    return unquote_to_bytes(path) if b"%" in path else path


def decode_slashes(path: bytes) -> bytes:
    """Decode escaped slashes and backslashes, and nothing else."""
    return _ESCAPED_SLASH.sub(lambda found: bytes((int(found[1], 16),)), path)


def readings(path: bytes, app: bytes, normal: bytes) -> tuple[Reading, ...]:
    """
    List the distinct readings of a path, Envoy's first.

    Args:
        path: raw path, without query.
        app: path the server handed to the application.
        normal: path that Envoy's rules see.

    Returns:
        At least one reading; each has the shortest of its names.
    """
    bases = {normal: "normalized"}
    for name, base in (
        ("raw", path), ("decoded", decode(path)), ("slashes_decoded", decode_slashes(path)),
        ("app", app),
    ):  # fmt: skip
        bases.setdefault(base, name)
    found: dict[bytes, str] = {normal: "normalized"}
    for base, name in bases.items():
        for words, read in _transformed(base):
            label = "+".join((name, *words))
            if label.count("+") < found.setdefault(read, label).count("+"):
                found[read] = label
    return tuple(Reading(name, read) for read, name in found.items())


def read_as(name: str, path: bytes) -> bytes:
    """
    Read another path, a rule's, in the way that *name* says.

    Args:
        name: of a `Reading`.
        path: path of a rule, as it stands in the intention.
    """
    for word in name.split("+"):
        path = _TRANSFORMATIONS[word](path)
    return path


def _same(path: bytes) -> bytes:
    return path


def _unslash(path: bytes) -> bytes:
    return path.replace(b"\\", b"/")


_TRANSFORMATIONS: dict[str, Callable[[bytes], bytes]] = {
    "raw": _same,
    "normalized": _same,
    "decoded": decode,
    "app": decode,
    "slashes_decoded": decode_slashes,
    "backslashes": _unslash,
    "params_cut": cut_params,
    "dots_resolved": resolve_dots,
    "slashes_merged": merge_slashes,
}


def _transformed(base: bytes) -> Iterator[tuple[tuple[str, ...], bytes]]:
    for words, path in _straightened(base):
        yield words, path
        dots, merged = resolve_dots(path), merge_slashes(path)
        if dots is not path:
            yield (*words, "dots_resolved"), dots
            yield (*words, "dots_resolved", "slashes_merged"), merge_slashes(dots)
        if merged is not path:
            yield (*words, "slashes_merged"), merged
            yield (*words, "slashes_merged", "dots_resolved"), resolve_dots(merged)


def _straightened(base: bytes) -> Iterator[tuple[tuple[str, ...], bytes]]:
    yield (), base
    if b";" in base:
        yield ("params_cut",), cut_params(base)
    if b"\\" in base:
        yield ("backslashes",), _unslash(base)
        if b";" in base:
            yield ("backslashes", "params_cut"), cut_params(_unslash(base))
