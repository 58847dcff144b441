"""A large answer read in pieces is the answer: nothing more is accepted, nothing less."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mesh_middleware.consul.intentions import parse_match
from mesh_middleware.consul.pieces import list_under
from mesh_middleware.exceptions import AgentAnswerError
from mesh_middleware.intentions import Intention
from mesh_middleware.pauses import TURN, paced

from .support import intention, permission

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
SPACES = st.sampled_from([None, 1, "\t"])


def whole(text: bytes) -> Any:
    """What reading it at once gives; an `AgentAnswerError` where it is no answer for ``web``."""
    try:
        found = json.loads(text.decode())
    except (ValueError, RecursionError):
        raise AgentAnswerError("not JSON") from None
    if not isinstance(found, dict) or set(found) != {"web"}:
        raise AgentAnswerError("no list")
    if found["web"] is not None and not isinstance(found["web"], list):
        raise AgentAnswerError("no list")
    return found["web"] or []


def outcome(read: Any) -> Any:
    try:
        return list(read())
    except AgentAnswerError:
        return "refused"


@given(st.one_of(VALUES, st.lists(VALUES)), SPACES)
def test_an_answer_reads_the_same_in_pieces(value: object, indent: Any) -> None:
    """Any JSON under the name, in any layout."""
    text = json.dumps({"web": value}, indent=indent).encode()
    assert outcome(lambda: list_under("web", text)) == outcome(lambda: whole(text))


@given(st.lists(VALUES, max_size=3), st.integers(0, 200), st.sampled_from(list('{}[],:"x \\0')))
@example([], 8, "[")
def test_a_broken_answer_is_refused_alike(value: object, place: int, sign: str) -> None:
    """One character put in, left out or replaced: refused exactly where JSON is."""
    text = json.dumps({"web": value})
    at = place % len(text)
    for broken in (
        text[:at] + sign + text[at:],
        text[:at] + sign + text[at + 1 :],
        text[:at] + text[at + 1 :],
        text[:at],
    ):
        data = broken.encode()
        pieces = outcome(lambda data=data: list_under("web", data))
        assert pieces == outcome(lambda data=data: whole(data)), broken


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{}", b"[]", b"null", b'{"api": []}', b'{"web": {}}', b'{"web": [], "web": []}',
        b'{"web": [] "x": 1}', b'{"web": [1 2]}', b'{"web": [1,]}', b'{"web": [],}',
        b'{"web": []}x',
        b'{"web": [\xff]}', b'{"web": ' + b"[" * 100_000, b'{web: []}', b'{1: []}',
    ],
)  # fmt: skip
def test_what_is_no_answer_is_an_error(text: bytes) -> None:
    """Another name, no list, twice the name, broken JSON: it never replaces a good answer."""
    with pytest.raises(AgentAnswerError):
        list(list_under("web", text))
    with pytest.raises(AgentAnswerError):
        parse_match(text, "web")


def test_intentions_read_in_pieces_are_equal() -> None:
    """Both ways to read an answer give equal intentions, in its order."""
    items = [
        intention(f"svc-{n}", Permissions=[permission(PathPrefix=f"/v{n % 3}")], Precedence=9)
        for n in range(96)
    ]
    answer = {"web": [*items, intention("*", Action="?"), 5]}
    read = parse_match(json.dumps(answer).encode(), "web")
    assert read == parse_match(answer, "web")
    assert all(isinstance(one, Intention) for one in read)
    # Equal permissions are one object: memory does not grow with copies.
    assert read[0].permissions is read[3].permissions
    assert parse_match(b'{"web": null}', "web") == ()


def test_paced_items_are_all_handed_on() -> None:
    """Pauses change nothing."""
    assert TURN < 0.002, "an event loop waits no longer than that"
    assert list(paced(range(100_000))) == list(range(100_000))
