"""Faults of the dev agent: each is on the wire what it says, and ends without a trace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from cryptography import x509

from mesh_middleware.dev import DevAgent
from mesh_middleware.dev.faults import KINDS
from mesh_middleware.exceptions import ConfigError

from ..support.servers import until

ROOTS = "/v1/agent/connect/ca/roots"
LEAF = "/v1/agent/connect/ca/leaf/tax"
MATCH = "/v1/connect/intentions/match?by=destination&name=tax"
PATIENCE = 10.0


@pytest.fixture(scope="module")
def running() -> Iterator[DevAgent]:
    """One agent for all: a fault that left a trace would spoil the next test."""
    with DevAgent() as agent:
        agent.deny("web", "tax")
        yield agent


@pytest.fixture
def agent(running: DevAgent) -> Iterator[DevAgent]:
    """The agent, without faults before and after."""
    yield running
    running.faults.end()


@pytest.fixture
def http(agent: DevAgent) -> Iterator[httpx.Client]:
    """Asks the agent."""
    with httpx.Client(base_url=agent.url, timeout=PATIENCE, trust_env=False) as client:
        yield client


@pytest.mark.parametrize(
    ("kind", "status", "text"),
    [
        ("forbid", 403, "Permission denied"),
        ("busy", 429, "rate limit exceeded"),
        ("fail", 500, "No cluster leader"),
    ],
)
def test_refusals_are_those_of_consul(
    agent: DevAgent, http: httpx.Client, kind: str, status: int, text: str
) -> None:
    """Status and text as Consul has them, for as long as the fault holds."""
    with agent.faults.begin(kind, "leaf") as fault:
        answer = http.get(LEAF)
        assert (answer.status_code, fault.hits) == (status, 1)
        assert answer.text.startswith(text)
        assert http.get(ROOTS).status_code == 200, "only where it was wanted"
    assert http.get(LEAF).status_code == 200


@pytest.mark.parametrize("kind", ["cut", "huge"])
def test_wire_that_breaks_is_no_answer(agent: DevAgent, http: httpx.Client, kind: str) -> None:
    """The head has come, and the body does not: half of it, or more than anyone wants."""
    agent.faults.begin(kind)
    with http.stream("GET", ROOTS) as answer:
        assert answer.status_code == 200
        if kind == "cut":
            with pytest.raises(httpx.RemoteProtocolError):
                answer.read()
        else:
            taken = 0
            for part in answer.iter_raw():
                taken += len(part)
                if taken > 10_000_000:
                    break
            assert taken > 10_000_000
    agent.faults.end()
    assert http.get(ROOTS).json()["Roots"]


def test_truncated_answer_claims_to_be_whole(agent: DevAgent, http: httpx.Client) -> None:
    """HTTP says all is well, and the JSON ends in its middle."""
    agent.faults.begin("truncated", "roots")
    answer = http.get(ROOTS)
    assert answer.status_code == 200
    with pytest.raises(ValueError, match="Unterminated|Expecting"):
        answer.json()


def test_slow_answer_drips_and_is_whole_in_the_end(agent: DevAgent, http: httpx.Client) -> None:
    """A byte at a time."""
    agent.faults.begin("slow", "intentions", seconds=0.0001)
    with http.stream("GET", MATCH) as answer:
        parts = list(answer.iter_raw())
    assert len(parts) > 10
    assert json.loads(b"".join(parts))["tax"][0]["SourceName"] == "web"


def test_gzip_bomb_is_small_on_the_wire(agent: DevAgent, http: httpx.Client) -> None:
    """A megabyte sent, a gigabyte meant; whoever unpacks it is to blame."""
    agent.faults.begin("gzip", "roots")
    with http.stream("GET", ROOTS, headers={"Accept-Encoding": "identity"}) as answer:
        assert answer.headers["content-encoding"] == "gzip"
        assert int(answer.headers["content-length"]) < 4_000_000


def test_content_is_bent_as_the_kind_says(agent: DevAgent, http: httpx.Client) -> None:
    """Another shape, nothing, another trust domain, an expired leaf, another leaf's key."""
    with agent.faults.begin("wrong"):
        assert "Roots" not in http.get(ROOTS).json()
    with agent.faults.begin("empty"):
        assert http.get(ROOTS).json()["Roots"] == []
        assert http.get(MATCH).json() == {"tax": None}
    with agent.faults.begin("foreign"):
        assert http.get(ROOTS).json()["TrustDomain"] != agent.trust_domain
    with agent.faults.begin("expired"):
        assert leaf(http).not_valid_after_utc < datetime.now(UTC)
    with agent.faults.begin("mismatch"):
        bent = http.get(LEAF).json()
    sound = http.get(LEAF).json()
    assert bent["PrivateKeyPEM"] == sound["PrivateKeyPEM"] and bent["CertPEM"] != sound["CertPEM"]


def leaf(http: httpx.Client) -> x509.Certificate:
    """The leaf that is answered."""
    return x509.load_pem_x509_certificate(http.get(LEAF).json()["CertPEM"].encode())


def test_indexes_go_backwards_and_still_block(agent: DevAgent, http: httpx.Client) -> None:
    """As after a restore: lower numbers, which grow with each change as ever."""
    before = int(http.get(MATCH).headers["x-consul-index"])
    agent.faults.begin("regress")
    low = int(http.get(MATCH).headers["x-consul-index"])
    assert 1 <= low < before
    held = http.get(
        MATCH, params={"by": "destination", "name": "tax", "index": low, "wait": "10ms"}
    )
    assert int(held.headers["x-consul-index"]) == low
    agent.deny("other", "tax")
    assert int(http.get(MATCH).headers["x-consul-index"]) > low
    agent.faults.end()
    assert int(http.get(MATCH).headers["x-consul-index"]) > before


def test_count_ends_a_fault_by_itself(agent: DevAgent, http: httpx.Client) -> None:
    """The first two answers, and no more."""
    fault = agent.faults.begin("fail", "roots", count=2)
    assert [http.get(ROOTS).status_code for _ in range(3)] == [500, 500, 200]
    assert not fault.holds and fault.hits == 2


@asynccontextmanager
async def held_question(agent: DevAgent) -> AsyncIterator[Callable[[], Awaitable[httpx.Response]]]:
    """A question about roots that the agent holds."""
    async with httpx.AsyncClient(base_url=agent.url, timeout=PATIENCE, trust_env=False) as client:
        index = (await client.get(ROOTS)).headers["x-consul-index"]
        asked = asyncio.ensure_future(client.get(ROOTS, params={"index": index, "wait": "60s"}))
        await asyncio.to_thread(until, lambda: agent.watching, "the held question")
        yield lambda: asked
        asked.cancel()


async def hit_held(agent: DevAgent, kind: str) -> httpx.Response:
    async with held_question(agent) as answer:
        agent.faults.begin(kind)
        return await answer()


def test_fault_hits_questions_that_are_held(agent: DevAgent) -> None:
    """A server that fails does not wait until it is asked again."""
    assert asyncio.run(hit_held(agent, "fail")).status_code == 500
    agent.faults.end()
    with pytest.raises(httpx.RemoteProtocolError):
        asyncio.run(hit_held(agent, "cut"))


HITS: dict[str, Callable[[httpx.Response, int], bool]] = {
    "regress": lambda answer, now: int(answer.headers["x-consul-index"]) < now,
    "wrong": lambda answer, now: "Unexpected" in answer.json(),
    "empty": lambda answer, now: answer.json()["Roots"] == [],
    "foreign": lambda answer, now: answer.json()["ActiveRootID"] == "ff:ff",
    "expired": lambda answer, now: True,
    "mismatch": lambda answer, now: True,
    "forbid": lambda answer, now: answer.status_code == 403,
    "busy": lambda answer, now: answer.status_code == 429,
    "fail": lambda answer, now: answer.status_code == 500,
    "truncated": lambda answer, now: not answer.text.rstrip().endswith("}"),
}


@pytest.mark.parametrize("kind", HITS)
def test_every_kind_hits_a_question_that_is_held(agent: DevAgent, kind: str) -> None:
    """Whoever waits for a change when the fault begins is its first victim, at once."""
    answer = asyncio.run(asyncio.wait_for(hit_held(agent, kind), PATIENCE))
    assert HITS[kind](answer, agent.state.index.counter)


async def outlive(agent: DevAgent, kind: str) -> tuple[httpx.Response, httpx.Response]:
    """Ask, and ask again for what is newer than the answer; the fault ends meanwhile."""
    async with httpx.AsyncClient(base_url=agent.url, timeout=PATIENCE, trust_env=False) as client:
        fault = agent.faults.begin(kind, "roots")
        bent = await client.get(ROOTS)
        query = {"index": bent.headers["x-consul-index"], "wait": "60s"}
        asked = asyncio.ensure_future(client.get(ROOTS, params=query))
        await asyncio.to_thread(until, lambda: agent.watching, "the held question")
        fault.end()
        return bent, await asked


@pytest.mark.parametrize("kind", ["empty", "foreign", "wrong", "regress"])
def test_the_truth_is_told_as_soon_as_a_fault_ends(agent: DevAgent, kind: str) -> None:
    """Also to who believed the lie, and waits for what is newer than it."""
    truth = agent.state.ca.active.id
    bent, told = asyncio.run(asyncio.wait_for(outlive(agent, kind), PATIENCE))
    assert HITS[kind](bent, agent.state.index.counter)
    assert told.json()["ActiveRootID"] == truth and told.json()["Roots"]


async def stall_and_go_on(agent: DevAgent) -> int:
    async with held_question(agent) as answer:
        fault = agent.faults.begin("stall", "roots")
        agent.rotate_ca()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(answer()), 0.1)
        fault.end()
        return len((await answer()).json()["Roots"])


def test_stalled_question_is_answered_when_the_stall_ends(agent: DevAgent) -> None:
    """Not one byte meanwhile, whatever changes."""
    before = len(agent.state.ca.roots)
    assert asyncio.run(stall_and_go_on(agent)) >= before


def test_long_questions_are_cut_and_short_ones_are_not(agent: DevAgent) -> None:
    """As by a proxy with a time limit."""
    agent.faults.begin("cut", seconds=0.05)
    with httpx.Client(base_url=agent.url, timeout=PATIENCE, trust_env=False) as client:
        index = client.get(ROOTS).headers["x-consul-index"]
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(ROOTS, params={"index": index, "wait": "60s"})


def test_question_that_is_held_when_a_limit_begins_is_cut_by_it(agent: DevAgent) -> None:
    """It lasts as long as any other, and is not answered instead."""

    async def hit() -> httpx.Response:
        async with held_question(agent) as answer:
            agent.faults.begin("cut", seconds=0.05)
            return await answer()

    with pytest.raises(httpx.RemoteProtocolError):
        asyncio.run(asyncio.wait_for(hit(), PATIENCE))


def test_faults_begin_and_end_over_http(agent: DevAgent, http: httpx.Client) -> None:
    """For an agent that runs as a process of its own; they never hit their own endpoint."""
    told = http.put("/v1/dev/faults", json={"kind": "fail", "on": "roots", "count": 5})
    assert told.json() == [{"kind": "fail", "on": "roots", "hits": 0}]
    http.put("/v1/dev/faults", json={"kind": "cut"})
    assert len(http.get("/v1/dev/faults").json()) == 2
    assert http.delete("/v1/dev/faults").json() == []
    assert http.get(ROOTS).status_code == 200


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"kind": "x"}', b'{"kind": "cut", "on": "nowhere"}',
             b'{"kind": "cut", "seconds": "1"}', b'{"kind": "cut", "sconds": 1}'],
)  # fmt: skip
def test_unknown_faults_are_refused(agent: DevAgent, http: httpx.Client, body: bytes) -> None:
    """A typo is told, and no fault begins."""
    assert http.put("/v1/dev/faults", content=body).status_code == 400
    assert agent.faults.held == ()


def test_unknown_kinds_are_a_config_error(agent: DevAgent) -> None:
    """The message names the known ones."""
    with pytest.raises(ConfigError, match="stall"):
        agent.faults.begin("stal")
    with pytest.raises(ConfigError, match="leaf"):
        agent.faults.begin("stall", "lief")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_ends_without_a_trace(agent: DevAgent, http: httpx.Client, kind: str) -> None:
    """Afterwards the agent answers as if nothing had been."""
    before: Any = http.get(ROOTS).json()
    agent.faults.begin(kind, "leaf", seconds=0.01)
    agent.faults.end()
    assert http.get(ROOTS).json() == before
    assert http.get(LEAF).json()["Service"] == "tax"
