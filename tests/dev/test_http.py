"""Durations, parameters, tokens and the form of answers."""

from __future__ import annotations

import pytest

from mesh_middleware.dev.acl import Acl, Rights, Token, management_token, service_token
from mesh_middleware.dev.http import MAX_WAIT, Answer, Refusal, Request, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("1m30s", 90), ("500ms", 0.5), ("1.5h", 5400), ("0", 0), ("-2s", -2),
     (".5s", 0.5), ("1us", 1e-6), (1_000_000_000, 1)],
)  # fmt: skip
def test_go_durations(text: str | int, seconds: float) -> None:
    """Numbers with units; integers are nanoseconds."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "s", "1x", "1 s", "abc", "1s2"])
def test_what_is_no_duration(text: str) -> None:
    """A unit is needed, and nothing else may stand there."""
    with pytest.raises(ValueError, match="invalid duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("wait", "seconds"), [("10s", 10.0), ("1h", MAX_WAIT), ("0s", 300.0), ("-1s", 300.0)]
)
def test_wait_is_clamped(wait: str, seconds: float) -> None:
    """At most ten minutes; nothing or less is the default."""
    assert Request("GET", "/", {"wait": [wait]}).wait() == seconds


def test_token_precedence() -> None:
    """Query before header before bearer; the scheme in any case."""
    headers = {"x-consul-token": "h", "authorization": "bearer b"}
    assert Request("GET", "/", {"token": ["q"]}, headers).token() == "q"
    assert Request("GET", "/", {}, headers).token() == "h"
    assert Request("GET", "/", {}, {"authorization": "BEARER b"}).token() == "b"
    assert Request("GET", "/", {}, {"authorization": "Basic b"}).token() == ""


def test_huge_index_is_refused() -> None:
    """An index has at most twenty digits, in ASCII."""
    for text in ("1" * 21, "٣"):
        with pytest.raises(Refusal, match="Invalid index"):
            Request("GET", "/", {"index": [text]}).index()


def test_errors_are_text_and_values_json() -> None:
    """Errors carry the bare message; nothing carries no type."""
    assert Answer("no", 404).encode() == (b"no", "text/plain; charset=utf-8")
    assert Answer({"a": "<"}).encode() == (b'{"a":"\\u003c"}', "application/json")
    assert Answer().encode() == (b"", "")


# Tokens


def rights(token: Token | None, *, default_allow: bool = False, secret: bool = True) -> Rights:
    """Rights of *token*."""
    return Rights(token, secret, default_allow)


def test_without_acls_everything_is_permitted() -> None:
    """No token system, no refusals."""
    rights(None).require("operator:write")


def test_management_may_everything() -> None:
    """A management token has no limits."""
    rights(management_token()).require("service:write", "web")


def test_service_identity_expands_as_documented() -> None:
    """Its own name to write, all names to read, no agent, no intentions to write."""
    mine = rights(service_token("web"))
    granted = [
        mine.may("service:write", "web"),
        mine.may("service:write", "web-sidecar-proxy"),
        mine.may("service:read", "other"),
        mine.may("intentions:read", "other"),
        mine.may("node:read", "dev"),
    ]
    refused = [
        mine.may("service:write", "other"),
        mine.may("intentions:write", "web"),
        mine.may("agent:read", "dev"),
        mine.may("operator:write"),
    ]
    assert all(granted) and not any(refused)


def test_exact_rule_before_prefix_and_longest_prefix_first() -> None:
    """The most specific rule decides, also when it denies."""
    token = Token(
        "t",
        service={"a-secret": "deny"},
        service_prefix={"": "read", "a-": "write"},
        intentions={"a-web": "deny"},
    )
    mine = rights(token, default_allow=True)
    assert [mine.may("service:write", name) for name in ("a-web", "b", "a-secret")] == [
        True, False, False,
    ]  # fmt: skip
    assert not mine.may("intentions:read", "a-web")
    assert mine.may("intentions:read", "b")


def test_refusals_name_the_permission() -> None:
    """The texts of 1.21, for a token and for none."""
    with pytest.raises(Refusal) as caught:
        rights(Token("t")).require("service:write", "web")
    assert caught.value.status == 403
    assert caught.value.text == (
        "Permission denied: token with AccessorID 't' lacks permission 'service:write' on \"web\""
    )
    with pytest.raises(Refusal, match="anonymous token lacks permission 'operator:write'. The"):
        rights(Token("anonymous"), secret=False).require("operator:write")


def test_unknown_token_is_not_the_anonymous_one() -> None:
    """A secret nobody knows is refused outright; no secret is anonymous."""
    acl = Acl({"s": management_token()})
    assert acl.token("s").management and not acl.token("").management
    with pytest.raises(Refusal, match="ACL not found"):
        acl.token("x")


def test_tokens_stay_out_of_reprs() -> None:
    """Secrets are keys of the map, and the map is not shown."""
    assert "s3cret" not in repr(Acl({"s3cret": management_token()}))
