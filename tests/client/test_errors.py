"""The errors of outbound calls, apart from calls: what they hold, also elsewhere."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import httpx
import pytest

from mesh_middleware.exceptions import MeshError, PeerMismatchError
from mesh_middleware.httpx.denial import MeshInfo, MeshResponse
from mesh_middleware.httpx.errors import (
    MeshConnectError,
    MeshConnectTimeout,
    MeshDeadlineError,
    NoHealthyInstanceError,
    UpstreamBusyError,
    UpstreamDeniedError,
    UpstreamMismatchError,
    UpstreamNameError,
    UpstreamUnverifiedError,
    explain_failure,
)
from mesh_middleware.resolve import Endpoint

from .support import service_id

REQUEST = httpx.Request("GET", "https://tax/rates")
WHERE = {"upstream": "tax", "address": "10.0.0.1:1", "expected": "spiffe://a/b"}
ERRORS: list[MeshError] = [
    MeshConnectError("no", **WHERE, seen="spiffe://a/c"),
    UpstreamNameError("no", upstream="x.y"),
    NoHealthyInstanceError("no", upstream="tax"),
    UpstreamBusyError("no", upstream="tax"),
    UpstreamUnverifiedError("no", **WHERE),
    UpstreamMismatchError("no", **WHERE, seen="spiffe://a/c"),
    MeshConnectTimeout("no", **WHERE),
    MeshDeadlineError("no", upstream="tax"),
    UpstreamDeniedError("tax", request=REQUEST, response=httpx.Response(403, request=REQUEST)),
    PeerMismatchError("spiffe://a/b", "spiffe://a/c"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("again", [copy.copy, lambda one: pickle.loads(pickle.dumps(one))])
def test_errors_are_copied_and_pickled_whole(error: MeshError, again: Any) -> None:
    """What a worker process raises reaches its pool: type, text and every fact about it."""
    other = again(error)
    assert type(other) is type(error)
    assert str(other) == str(error)
    for name, value in vars(error).items():
        kept = getattr(other, name)
        assert type(kept) is type(value)
        assert kept == value or isinstance(value, (httpx.Request, httpx.Response))


def test_a_connection_that_takes_too_long_says_who_had_to_answer() -> None:
    """A timeout has the same facts as any other error of connecting."""
    endpoint = Endpoint("10.0.0.1", 1, service_id("tax"))
    error = explain_failure(TimeoutError(), "tax", endpoint)
    assert isinstance(error, MeshConnectTimeout)
    known = (error.upstream, error.address, error.expected, error.seen)
    assert known == ("tax", "10.0.0.1:1", service_id("tax").uri, "")


@pytest.mark.parametrize("again", [copy.copy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_refusal_by_policy_is_told_apart_also_elsewhere(again: Any) -> None:
    """An answer that was kept in a cache, or came from another process, says what it said."""
    info = MeshInfo("tax", Endpoint("10.0.0.1", 1, service_id("tax")), denied=True)
    response = MeshResponse(403, content=b"no", request=REQUEST, extensions={"mesh": info})
    other = again(response)
    assert other.extensions["mesh"] == info
    with pytest.raises(UpstreamDeniedError):
        other.raise_for_status()
    del response.extensions["mesh"]
    with pytest.raises(httpx.HTTPStatusError) as caught:
        again(response).raise_for_status()
    assert not isinstance(caught.value, MeshError)
