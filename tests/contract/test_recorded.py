"""The dev agent against recorded answers of real agents, and the records against a live one.

The same requests in the same order; compared are status, headers, the text of errors and the shape
of bodies. Every difference that is meant stands in a table, with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mesh_middleware.dev import DevAgent

from ..support.consul import RealConsul
from .shape import differences
from .target import Target

DATA = Path(__file__).resolve().parents[1] / "data" / "consul"
VERSIONS = ("1.8.7", "1.10.1")
HEADERS = (
    "Age", "Allow", "Content-Type", "X-Cache", "X-Consul-Contenthash",
    "X-Consul-Default-Acl-Policy", "X-Consul-Effective-Consistency", "X-Consul-Index",
    "X-Consul-Knownleader", "X-Consul-Lastcontact", "X-Consul-Query-Backend",
)  # fmt: skip
SAME_VALUE = (
    "Allow", "Content-Type", "X-Cache", "X-Consul-Default-Acl-Policy",
    "X-Consul-Effective-Consistency", "X-Consul-Knownleader", "X-Consul-Lastcontact",
    "X-Consul-Query-Backend",
)  # fmt: skip

NOT_OFFERED = {
    "1.8.7": (
        "24-exact-put-l4", "25-exact-get", "26-exact-missing", "27-exact-bad-action",
        "28-exact-put-l7-on-tcp", "30-intentions-entry-l7", "31-intentions-entry-get",
        "44-entry-missing", "45-entry-unknown-key", "46-entry-bad-l7-wildcard", "48-resolver",
        "49-splitter", "50-router", "58-ns-on-ce",
    ),
    "1.10.1": (),
}  # fmt: skip
"""Requests that this version refuses because it is too old for them; not sent to the dev agent."""

NEWER_HEADERS = {
    "1.8.7": {
        "X-Consul-Default-Acl-Policy": "since 1.9",
        "X-Consul-Query-Backend": "since 1.10",
    },
    "1.10.1": {},
}
"""Headers that the dev agent may send though this version does not."""

DIFFERENT_HEADERS = {
    ("1.8.7", "21-match-empty"): "match has an index since 1.9",
    ("1.8.7", "32-match-l7"): "match has an index since 1.9",
    ("1.8.7", "33-match-source"): "match has an index since 1.9",
    ("1.8.7", "34-match-two-names"): "match has an index since 1.9",
    ("1.8.7", "68-leaf-after-rotation"): "the dev agent rotated, see 66; a new leaf is a MISS",
    ("1.10.1", "68-leaf-after-rotation"): "the dev agent rotated, see 66; a new leaf is a MISS",
}

NEWER_KEYS = {
    "SocketPath": "services: since 1.10",
    "ServiceSocketPath": "services: since 1.10",
    "ExposedPort": "checks: since 1.9",
    "Datacenter": "agent/service: since 1.9",
    "Mode": "proxies: since 1.10",
    "NotModified": "queries: since 1.10",
    "Backend": "queries: since 1.10",
    "PrimaryDatacenter": "agent/self: since 1.9",
    "ft_si": "members: since 1.10",
    "wan_join_port": "members: with a WAN port",
}
"""Keys of a later version than 1.8.7, which the dev agent has."""

OLDER_KEYS = {"RotationPeriod": "CA configuration: accepted and ignored, gone since 1.9"}
"""Keys of 1.8.7 that later versions, and the dev agent, do not have."""

DIFFERENT_SHAPES = {
    "51-discovery-chain": "the dev agent compiles the default chain only",
    "61-self": "DebugConfig, Stats and Coord hold what a client of the mesh may ask for, no more;"
    " xDS lists Envoy versions, and there is no Envoy",
    "54-query-execute": "an unset list of tags is null there, and a list everywhere else",
    "67-roots-after-rotation": "like 1.21, the dev agent rotates when the key type changes: 66",
}

LIVE_DIFFERENCES = {
    "61-self": "the private agent has no WAN port",
    "62-members": "the private agent has no WAN port",
}


def records(version: str) -> list[Path]:
    """The recorded answers of *version*, in order."""
    return sorted((DATA / version).glob("*.json"))


def replay(target: Target, version: str, skip: tuple[str, ...]) -> dict[str, httpx.Response]:
    """Send the recorded requests; the answers by name of record."""
    answers = {}
    for path in records(version):
        if path.stem in skip:
            continue
        request = json.loads(path.read_text())["request"]
        answers[path.stem] = target.request(request["method"], request["path"], request["body"])
    return answers


@pytest.fixture(scope="module")
def replayed() -> Iterator[dict[str, dict[str, httpx.Response]]]:
    """Answers of fresh dev agents to both sequences."""
    answers = {}
    for version in VERSIONS:
        with DevAgent() as agent:
            target = Target("dev", agent.url, "")
            answers[version] = replay(target, version, NOT_OFFERED[version])
            target.close()
    yield answers


@pytest.fixture(scope="module")
def replayed_live() -> Iterator[tuple[str, dict[str, httpx.Response]]]:
    """Answers of a fresh real agent to the sequence of its own version, if that is recorded."""
    with RealConsul() as consul:
        target = Target("real", consul.url, consul.version)
        version = consul.version if consul.version in VERSIONS else VERSIONS[-1]
        yield consul.version, replay(target, version, ())
        target.close()


def cases() -> list[Any]:
    """A case per record that the dev agent serves."""
    return [
        pytest.param(version, path, id=f"{version}-{path.stem}")
        for version in VERSIONS
        for path in records(version)
        if path.stem not in NOT_OFFERED[version]
    ]


def test_there_are_records_of_both_versions() -> None:
    """A suite that found no data would pass in silence."""
    assert [len(records(version)) for version in VERSIONS] == [70, 70]


def header_differences(
    record: dict[str, Any], answer: httpx.Response, newer: dict[str, str]
) -> list[str]:
    """What is missing, too much, or has another value among the headers that matter."""
    wanted = record["headers"]
    found = {name: answer.headers[name] for name in HEADERS if name in answer.headers}
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    wrong += [f"{name} is too much" for name in found if name not in wanted and name not in newer]
    wrong += [
        f"{name}: {found[name]!r}, not {wanted[name]!r}"
        for name in SAME_VALUE
        if name in found and name in wanted and found[name] != wanted[name]
    ]
    return wrong


def body_of(answer: httpx.Response) -> Any:
    """The body as the records hold it: JSON, or text."""
    if answer.headers.get("Content-Type") == "application/json":
        return answer.json()
    return answer.text


@pytest.mark.parametrize(("version", "path"), cases())
def test_dev_agent_answers_as_recorded(
    replayed: dict[str, dict[str, httpx.Response]], version: str, path: Path
) -> None:
    """Status, headers, error texts and shapes are the real agent's, or the tables say why."""
    record, answer = json.loads(path.read_text()), replayed[version][path.stem]
    assert answer.status_code == record["status"], answer.text
    wrong = header_differences(record, answer, NEWER_HEADERS[version])
    assert not wrong or (version, path.stem) in DIFFERENT_HEADERS, wrong
    body = body_of(answer)
    if isinstance(record["body"], bool | str):
        assert type(body) is type(record["body"])
    if record["status"] >= 400:
        assert body == record["body"]
    found = [
        line
        for line in differences(record["body"], body)
        if not (line.endswith(": not expected") and _last_key(line) in NEWER_KEYS)
        and not (line.endswith(": missing") and _last_key(line) in OLDER_KEYS)
    ]
    assert not found or path.stem in DIFFERENT_SHAPES, found


def _last_key(line: str) -> str:
    return line.rpartition(": ")[0].rpartition(".")[2]


def test_no_listed_difference_is_stale(
    replayed: dict[str, dict[str, httpx.Response]],
) -> None:
    """A difference that has gone must leave its table."""
    stale = []
    for stem in DIFFERENT_SHAPES:
        recorded = [json.loads((DATA / v / f"{stem}.json").read_text())["body"] for v in VERSIONS]
        bodies = [body_of(replayed[version][stem]) for version in VERSIONS]
        pairs = zip(recorded, bodies, strict=True)
        if not any(list(differences(*pair)) for pair in pairs):
            stale.append(stem)
    for version, stem in DIFFERENT_HEADERS:
        record = json.loads((DATA / version / f"{stem}.json").read_text())
        if not header_differences(record, replayed[version][stem], NEWER_HEADERS[version]):
            stale.append(f"{version} {stem}")
    assert not stale


def test_records_are_what_the_live_agent_still_answers(
    replayed_live: tuple[str, dict[str, httpx.Response]],
) -> None:
    """A live Consul of a recorded version answers as recorded, so the tables mean it."""
    version, answers = replayed_live
    if version not in VERSIONS:
        assert answers  # another version: it has at least answered everything
        return
    wrong = {}
    for path in records(version):
        record, answer = json.loads(path.read_text()), answers[path.stem]
        found = header_differences(record, answer, {})
        if answer.status_code != record["status"]:
            found.append(f"status {answer.status_code}")
        found += differences(record["body"], body_of(answer))
        if found and path.stem not in LIVE_DIFFERENCES:
            wrong[path.stem] = found
    assert not wrong
