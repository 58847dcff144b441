"""Answers read one after the other: each is what it would be if it were read alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_middleware.consul import rereading
from mesh_middleware.consul.intentions import parse_intention, parse_match
from mesh_middleware.consul.rereading import MatchReader
from mesh_middleware.exceptions import AgentAnswerError

ITEMS = st.fixed_dictionaries(
    {"SourceName": st.sampled_from(["web", "order", "*", "vat"])},
    optional={
        "Action": st.sampled_from(["allow", "deny"]),
        "Permissions": st.lists(
            st.fixed_dictionaries({"Action": st.just("allow"),
                                   "HTTP": st.fixed_dictionaries({"PathPrefix": st.just("/a")})}),
            max_size=2,
        ),
        "ModifyIndex": st.integers(-3, 3) | st.text(max_size=2),
        "CreateIndex": st.integers(0, 3),
        "Description": st.sampled_from(['"ModifyIndex":7,', '\\"ModifyIndex":7,', "é", "\u2028"]),
        'x"ModifyIndex': st.integers(1, 2),
        "Precedence": st.integers(8, 10),
    },
)  # fmt: skip
ODD = st.integers(0, 300) | st.none() | st.text(max_size=2)
ANSWERS = st.lists(st.lists(ITEMS | ODD, max_size=6) | st.none(), min_size=1, max_size=5)


def item(name: str, index: int = 1, **fields: Any) -> dict[str, Any]:
    """An intention as the agent tells it."""
    rest = {"DestinationName": "tax", "CreateIndex": index, "ModifyIndex": index}
    return {"SourceName": name, "Action": "allow", **fields, **rest}


def body(*items: object) -> bytes:
    """An answer."""
    return json.dumps({"tax": list(items)}, separators=(",", ":")).encode()


@given(ANSWERS, st.sampled_from([None, 4]), st.booleans())
def test_each_answer_is_read_as_if_alone(answers: list[Any], indent: Any, ascii_only: bool) -> None:
    """Whatever came before, in any layout: what is read is what `parse_match` reads."""
    reader = MatchReader("tax")
    for answer in answers:
        text = json.dumps({"tax": answer}, indent=indent, ensure_ascii=ascii_only).encode()
        assert reader.read(text) == parse_match(text, "tax")


@given(st.lists(ITEMS, min_size=1, max_size=4), st.integers(0, 400), st.sampled_from('{}[],:"x\\0'))
def test_broken_answer_is_refused_alike(items: list[Any], place: int, sign: str) -> None:
    """One character put in or replaced: refused exactly where it would be alone."""
    reader, text = MatchReader("tax"), json.dumps({"tax": items})
    reader.read(text.encode())
    at = place % len(text)
    for broken in (text[:at] + sign + text[at:], text[:at] + sign + text[at + 1 :], text[:at]):
        found: list[Any] = []
        for read in (reader.read, lambda data: parse_match(data, "tax")):
            try:
                found.append(read(broken.encode()))
            except AgentAnswerError:
                found.append("refused")
        assert found[0] == found[1], broken


def test_number_that_goes_on_is_another_number() -> None:
    """Equal beginnings are equal values only where a value has ended."""
    reader = MatchReader("tax")
    for answer in (b'{"tax":[5]}', b'{"tax":[57]}', b'{"tax":[5,6]}', b'{"tax":[5,60]}'):
        assert reader.read(answer) == parse_match(answer, "tax")


CROWD = [item(f"svc-{n}") for n in range(50)]
CHANGES: dict[str, list[dict[str, Any]]] = {
    "nothing": CROWD,
    "one": [*CROWD[:20], item("svc-20", Action="deny"), *CROWD[21:]],
    "two": [*CROWD[:20], item("svc-20", Action="deny"), item("svc-21", Action="deny"), *CROWD[22:]],
    "one more": [*CROWD[:20], item("new"), *CROWD[20:]],
    "one less": CROWD[:20] + CROWD[21:],
    "some less": CROWD[:20] + CROWD[30:],
    "another order": [*CROWD[25:], *CROWD[:25]],
    "the first": [item("svc-0", Action="deny"), *CROWD[1:]],
    "the last": [*CROWD[:-1], item("svc-49", Action="deny")],
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_has_changed_is_read(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are the same objects, though the agent tells all of them a new index."""
    reader, parsed = MatchReader("tax"), 0
    before = {intention.source: intention for intention in reader.read(body(*CROWD))}
    real = parse_intention

    def count(*args: Any) -> Any:
        nonlocal parsed
        parsed += 1
        return real(*args)

    monkeypatch.setattr(rereading, "parse_intention", count)
    now = [{**each, "ModifyIndex": 77} for each in CHANGES[change]]
    found = reader.read(body(*now))
    assert found == parse_match(body(*now), "tax")
    changed = [each for each in found if before.get(each.source) is not each]
    assert parsed == len(changed) <= 2


def test_broken_answer_between_two_is_forgotten() -> None:
    """The next is compared with the last good one."""
    reader = MatchReader("tax")
    (first,) = reader.read(body(item("web")))
    with pytest.raises(AgentAnswerError):
        reader.read(body(item("web", Action="deny"))[:-2])
    (second,) = reader.read(body(item("web", 9)))
    assert second is first
