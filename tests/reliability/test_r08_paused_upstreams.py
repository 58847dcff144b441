"""R8: an agent that was paused for longer than the TTL tells every instance as critical at once."""

from __future__ import annotations

from typing import Any

import pytest

from mesh_middleware.exceptions import NoHealthyInstanceError
from mesh_middleware.resolve import Upstream
from mesh_middleware.upstreams import UpstreamWatch

DOMAIN = "11111111-2222-3333-4444-555555555555.consul"


def told(status: str) -> list[dict[str, Any]]:
    """The agent's answer about one native instance of tax."""
    service = {
        "ID": "tax-1", "Service": "tax", "Address": "127.0.0.1", "Port": 5003,
        "Connect": {"Native": True}, "Weights": {"Passing": 1, "Warning": 1},
    }  # fmt: skip
    node = {"Node": "n", "Address": "127.0.0.1", "Datacenter": "dc1"}
    return [{"Node": node, "Service": service, "Checks": [{"Status": status}]}]


def test_r08_all_critical_at_once_is_not_believed_before_it_lasts() -> None:
    """Listed, but all failing: the old ones are called until it has lasted; none listed: nobody."""
    upstream = UpstreamWatch(Upstream("tax"))
    assert upstream.take(told("passing"), DOMAIN)
    assert not upstream.take(told("critical"), DOMAIN)
    assert len(upstream.wait(0.0)) == 1
    upstream.concede(upstream.doubt)
    with pytest.raises(NoHealthyInstanceError):
        upstream.wait(0.0)
    assert upstream.take(told("passing"), DOMAIN)
    assert upstream.take([], DOMAIN), "deregistered: believed at once"
    with pytest.raises(NoHealthyInstanceError):
        upstream.wait(0.0)
