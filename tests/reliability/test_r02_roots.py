"""R2: roots rotate with cross-signing, and the old one is removed in the end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from mesh_middleware import Mesh
from mesh_middleware.certificates import check_chain
from mesh_middleware.dev import DevAgent
from mesh_middleware.exceptions import CertificateError

from ..support.certs import OTHER_DOMAIN, TRUST_DOMAIN, Ca
from ..support.servers import HELD, PATIENCE, until

Join = Callable[..., Mesh]


@pytest.mark.parametrize("cross", [True, False], ids=["cross-signed", "abrupt"])
@pytest.mark.parametrize("jitter", [0.0, 0.3], ids=["at once", "leaf later"])
def test_r02_leaf_and_roots_fit_at_every_moment(join: Join, cross: bool, jitter: float) -> None:
    """Through three rotations and the removal of every old root, no snapshot is of two minds."""
    seen: list[tuple[str, bool]] = []
    with DevAgent(rotation_jitter=jitter) as agent:
        mesh = join(agent.url, plugins=[Observer(seen)])
        assert mesh.ready(PATIENCE)
        for count in range(2, 5):
            agent.rotate_ca(cross=cross)
            active = agent.state.ca.active.id
            assert mesh.wait_for(
                lambda s, c=count, a=active: (
                    s.roots is not None and len(s.roots.certificates) == c and s.roots.active == a
                ),
                PATIENCE,
            )
            until(lambda: signed_by_active(agent, mesh), "the new leaf")
        agent.prune_roots()
        assert mesh.wait_for(lambda s: s.roots is not None and len(s.roots.certificates) == 1, 10)
        mesh.close()
    assert len(seen) >= 5 and all(well for _, well in seen)


class Observer:
    """Judges each snapshot in which leaf or roots have changed."""

    def __init__(self, seen: list[tuple[str, bool]]) -> None:
        self._seen = seen

    from mesh_middleware.plugins import hookimpl

    @hookimpl
    def mesh_snapshot(self, old: object, new: object) -> None:
        """Whether the leaf leads to the roots."""
        leaf, roots = new.leaf, new.roots  # type: ignore[attr-defined]
        if leaf is not None and roots is not None and old.generation != new.generation:  # type: ignore[attr-defined]
            # What a plugin raises is told, and goes no further.
            try:
                check_chain(leaf.chain_pem, roots, datetime.now(UTC))
            except CertificateError:
                self._seen.append((leaf.serial_number, False))
            else:
                self._seen.append((leaf.serial_number, True))


def signed_by_active(agent: DevAgent, mesh: Mesh) -> bool:
    """Whether the leaf in use is the agent's newest."""
    leaf = mesh.snapshot.leaf
    return (
        leaf is not None
        and leaf.chain_pem == agent.state.leaves["tax"].leaf.chain_pem
        and (agent.state.leaves["tax"].leaf.root_id == agent.state.ca.active.id)
    )


@pytest.mark.parametrize("key", ["ec", "rsa"])
def test_r02_intermediates_and_either_order(key: str) -> None:
    """Vault's way: an intermediate signs the leaf; leaf before roots, or roots before leaf."""
    from mesh_middleware.certificates import utc_now
    from mesh_middleware.snapshot import Trust, offer_leaf, offer_roots

    root, newer = Ca(), Ca()
    middle = Ca(issuer=root)
    first = middle.leaf(key=key).pair
    trust = offer_roots(Trust(), root.roots(), utc_now()).trust
    trust = offer_leaf(trust, first, "tax", utc_now()).trust
    assert trust.pair == first
    second = Ca(issuer=newer).leaf(key=key).pair
    early = offer_leaf(trust, second, "tax", utc_now())
    assert early.note == "leaf_waiting" and early.trust.pair == first, "the old one serves"
    both = offer_roots(early.trust, newer.roots(root), utc_now()).trust
    assert both.pair == second
    late = offer_roots(trust, newer.roots(root), utc_now()).trust
    assert late.pair == first, "the old leaf under the new roots"
    assert offer_leaf(late, second, "tax", utc_now()).trust.pair == second


def test_r02_rebuilt_agent_is_followed_in_one_step(agent: DevAgent, join: Join) -> None:
    """A new trust domain: roots and leaf together, upstreams too, and it is told loudly."""
    agent.register({"ID": "o", "Name": "order", "Port": 1, "Connect": {"Native": True},
                    "Check": {"TTL": "10m", "Status": "passing"}})  # fmt: skip
    mesh = join()
    order = mesh.watch_upstream("order")
    assert order.wait(PATIENCE)[0].expected.trust_domain == agent.trust_domain
    port = agent.port
    agent.close()
    with DevAgent(port=port) as rebuilt:
        rebuilt.register({"ID": "o", "Name": "order", "Port": 1, "Connect": {"Native": True},
                          "Check": {"TTL": "10m", "Status": "passing"}})  # fmt: skip
        domain = rebuilt.trust_domain
        assert mesh.wait_for(lambda s: bool(s.roots and s.roots.trust_domain == domain), PATIENCE)
        leaf = mesh.snapshot.leaf
        assert leaf is not None and leaf.id.trust_domain == domain
        assert mesh.status()["events"]["trust_domain_changed"] == 1
        until(lambda: order.wait(PATIENCE)[0].expected.trust_domain == domain, "the upstream")
        mesh.close()
    assert TRUST_DOMAIN != OTHER_DOMAIN


def test_r02_agent_that_is_another_behind_the_same_connections(agent: DevAgent, join: Join) -> None:
    """
    A balancer leads to a rebuilt cluster, and no connection breaks: held questions stay held.

    The first answer that tells is enough: everything is asked anew, not after the whole wait.
    """
    mesh = join()
    assert mesh.ready(PATIENCE)
    until(lambda: agent.watching == HELD, "all questions held")
    rebuilt = DevAgent()
    agent.app.state = rebuilt.state
    agent.faults.begin("fail", "leaf", count=1)
    domain = rebuilt.trust_domain
    assert mesh.wait_for(lambda s: bool(s.roots and s.roots.trust_domain == domain), 10.0)
    rebuilt.deny("web", "tax")
    assert mesh.wait_for(lambda s: bool(s.intentions), 10.0)
