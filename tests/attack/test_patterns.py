"""Names in intentions that are regular expressions to Envoy: no caller's name makes them costly."""

from __future__ import annotations

import time

import pytest

from mesh_middleware.consul.intentions import parse_intentions
from mesh_middleware.identity import ServiceId
from mesh_middleware.intentions import HttpFacts, Reason, compile_policy

DOMAIN = "11111111-2222-3333-4444-555555555555.consul"


@pytest.mark.parametrize(
    "source",
    [
        "[^/]+a" * 12 + "b",
        "[^/]+" * 12 + "b",
        "a" + "[^/]+" * 12,
        "(a+)+b",
        "(a|a)+b",
        "(.+)" * 9 + "b",
    ],
)
def test_no_source_of_an_intention_makes_a_caller_costly(source: str) -> None:
    """Who may write an intention may not stop the service it is about."""
    policy = compile_policy(
        parse_intentions([{"SourceName": source, "DestinationName": "tax", "Action": "deny"}]),
        service="tax",
        trust_domain=DOMAIN,
        default_allow=False,
    )
    caller = ServiceId(DOMAIN, "default", "dc1", "a" * 100)
    began = time.thread_time()
    verdict = policy.decide(caller, HttpFacts(b"GET", b"/"))
    assert not verdict.allowed
    assert verdict.reason in (Reason.DEFAULT_DENY, Reason.INTENTION_DENY, Reason.READINGS_DIFFER)
    assert time.thread_time() - began < 0.5
