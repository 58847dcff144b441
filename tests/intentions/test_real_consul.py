"""Random sets of L4 intentions on a real Consul: its order and its verdicts against ours."""

from __future__ import annotations

import itertools
import json
import random
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from mesh_middleware.consul.intentions import parse_match
from mesh_middleware.intentions import compile_policy
from mesh_middleware.intentions.model import order
from tests.support.consul import RealConsul

from .support import TD, Json, source

TOKEN = "5d2a9c5e-0f3c-4a39-9c86-3c1f6a3f1c55"
# The agent's own token stands in for requests without one.
DENYING = f"""
acl {{ enabled = true, default_policy = "deny",
      tokens {{ master = "{TOKEN}", default = "{TOKEN}", agent = "{TOKEN}" }} }}
"""
NAMES = ("api", "web", "db")
SETS = 40


class Store:
    """Intentions of a Consul, by source and destination."""

    def __init__(self, consul: RealConsul, default_allow: bool) -> None:
        self.default_allow = default_allow
        self._url = consul.url
        self._ids: dict[tuple[str, str], str] = {}

    def ask(self, method: str, path: str, body: Json | None = None) -> Any:
        """Send one request; the decoded answer."""
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{self._url}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def put(self, name: str, destination: str, action: str) -> None:
        """Create or change one intention."""
        body = {
            "SourceName": name, "DestinationName": destination, "SourceType": "consul",
            "Action": action,
        }  # fmt: skip
        known = self._ids.get((name, destination))
        if known is None:
            answer = self.ask("POST", "/v1/connect/intentions", body)
            self._ids[name, destination] = answer["ID"]
        else:
            self.ask("PUT", f"/v1/connect/intentions/{known}", body)

    def delete(self, name: str, destination: str) -> None:
        """Delete one intention, if it is there."""
        known = self._ids.pop((name, destination), None)
        if known is not None:
            self.ask("DELETE", f"/v1/connect/intentions/{known}")

    def check(self, name: str, destination: str) -> bool:
        """Consul's own verdict."""
        query = f"source={name}&destination={destination}"
        return bool(self.ask("GET", f"/v1/connect/intentions/check?{query}")["Allowed"])

    def match(self, destination: str) -> Any:
        """The intentions about a destination, in Consul's order."""
        return self.ask("GET", f"/v1/connect/intentions/match?by=destination&name={destination}")


@pytest.fixture(scope="module", params=[True, False], ids=["default allow", "default deny"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with RealConsul(hcl="" if request.param else DENYING) as consul:
        yield Store(consul, request.param)


def change(store: Store, rnd: random.Random) -> None:
    """Change a few intentions at random."""
    for _ in range(3):
        sides = rnd.choice((*NAMES, "*")), rnd.choice(("web", "db", "*"))
        if rnd.random() < 0.35:
            store.delete(*sides)
        else:
            store.put(*sides, rnd.choice(("allow", "deny")))


@pytest.mark.process
def test_order_and_verdicts_are_consuls(store: Store) -> None:
    """
    For each of many random sets: our order is that of `match`, our verdict that of `check`.

    Only where a broad intention of high precedence allows and an exact one of low precedence
    denies, under a default of allow, are we stricter: Envoy denies there, and we say so.
    """
    rnd = random.Random(7)
    seen = set()
    for _ in range(SETS):
        change(store, rnd)
        for destination in ("web", "db"):
            found = parse_match(store.match(destination), destination)
            assert list(found) == sorted(found, key=order)
            judged = compile_policy(
                found, service=destination, trust_domain=TD, default_allow=store.default_allow
            )
            for name in (*NAMES, "else"):
                ours = judged.decide_connection(source(name))
                theirs = store.check(name, destination)
                seen.add((ours.allowed, theirs))
                if ours.allowed is not theirs:
                    assert (ours.allowed, ours.readings) == (False, ("envoy_rules",))
                    assert store.default_allow
    assert {(True, True), (False, False)} <= seen


@pytest.mark.process
def test_precedence_is_what_consul_computes(store: Store) -> None:
    """Every shape of source and destination has the precedence that Consul gives it."""
    for name, destination in itertools.product(("api", "*"), ("web", "*")):
        store.put(name, destination, "deny")
    items = store.match("web")["web"]
    assert len(items) >= 4
    for item in items:
        bare = {key: value for key, value in item.items() if key != "Precedence"}
        [computed] = parse_match({"web": [bare]}, "web")
        assert computed.precedence == item["Precedence"]
