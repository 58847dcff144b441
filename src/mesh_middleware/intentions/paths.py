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
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

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
_ESCAPED_SLASH = re.compile(rb"%(2[fF]|5[cC])")
_ENCODED = re.compile(rb"[ \"<>^`{|}]")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PARAMS = re.compile(rb";[^/]*")
_SLASHES = re.compile(rb"//+")


class Reading(NamedTuple):
    """A path read in one way, and the name of that way."""

    name: str
    path: bytes


def normalize(path: bytes) -> bytes:
    """
    Normalize a path as Envoy does by default.

    Args:
        path: raw path, without query.

    Returns:
        Dot segments resolved, escapes of unreserved characters decoded, ``\\`` as ``/``, some raw
        characters encoded; other escapes, their case and repeated slashes stay.

    Source: observed on Envoy 1.40 (reference 12).
    """
    if PLAIN.fullmatch(path):
        return path
    path = _ESCAPE.sub(_decode_unreserved, path).replace(b"\\", b"/")
    path = _ENCODED.sub(lambda found: b"%%%02X" % found[0][0], path)
    return resolve_dots(path)


def _decode_unreserved(found: re.Match[bytes]) -> bytes:
    value = int(found[1], 16)
    return bytes((value,)) if value in _UNRESERVED else found[0]


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


def readings(path: bytes, app: bytes | None = None) -> tuple[Reading, ...]:
    """
    List the distinct readings of a path, simplest first.

    Args:
        path: raw path, without query.
        app: path the server handed to the application, when it is not simply the decoded one.

    Returns:
        At least one reading; only ``raw`` when the path is plain.
    """
    if PLAIN.fullmatch(path) and (app is None or app == path):
        return (Reading("raw", path),)
    found: dict[bytes, str] = {}
    for name, base in _bases(path, app):
        for words, read in _transformed(base):
            label = "+".join((name, *words))
            if read not in found or label.count("+") < found[read].count("+"):
                found[read] = label
    return tuple(Reading(name, read) for read, name in found.items())


def _bases(path: bytes, app: bytes | None) -> Iterator[tuple[str, bytes]]:
    yield "normalized", normalize(path)
    yield "raw", path
    yield "decoded", decode(path)
    if app is not None:
        yield "app", app
    yield "slashes_decoded", decode_slashes(path)


def _transformed(base: bytes) -> Iterator[tuple[tuple[str, ...], bytes]]:
    for words, path in _straightened(base):
        yield words, path
        dots = resolve_dots(path)
        merged = merge_slashes(path)
        yield (*words, "dots_resolved"), dots
        yield (*words, "slashes_merged"), merged
        both = (*words, "dots_resolved", "slashes_merged")
        yield both, merge_slashes(dots)
        yield both, resolve_dots(merged)


def _straightened(base: bytes) -> Iterator[tuple[tuple[str, ...], bytes]]:
    yield (), base
    if b";" in base:
        yield ("params_cut",), cut_params(base)
    if b"\\" in base:
        slashed = base.replace(b"\\", b"/")
        yield ("backslashes",), slashed
        if b";" in base:
            yield ("backslashes", "params_cut"), cut_params(slashed)
