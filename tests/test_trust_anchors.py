"""Every root that the agent lists is an anchor, self-signed or not; and ready means a handshake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from mesh_middleware.belief import Belief
from mesh_middleware.certificates import Roots
from mesh_middleware.config import load_settings
from mesh_middleware.consul.wire import parse_roots
from mesh_middleware.exceptions import AgentAnswerError
from mesh_middleware.tls import Generation, client_context, server_context

from .support import certs
from .support.certs import TRUST_DOMAIN, Ca, Made
from .support.handshakes import Ends


def now() -> datetime:
    """This moment."""
    return datetime.now(UTC)


def shake(roots: Roots, server: Made, client: Made) -> Ends:
    """A handshake between two services that trust the same roots."""
    ours, theirs = Generation(server.pair, roots, 1), Generation(client.pair, roots, 1)
    assert (ours.check_itself(now()), theirs.check_itself(now())) == ("", "")
    calling = client_context(lambda: theirs, now, server.pair.leaf.id)
    return Ends(calling, server_context(lambda: ours, now)).shake()


def same(generation: Generation) -> Generation:
    """The newest of them, which stays the same."""
    return generation


def company() -> tuple[Ca, Ca]:
    """An offline root that nobody lists, and Consul's CA below it."""
    root = Ca(name="Company")
    return root, Ca(issuer=root, name="Consul")


def direct() -> tuple[Roots, Made, Made]:
    """Consul's CA signs leaves itself."""
    _, anchor = company()
    leaves = (anchor.leaf(name, chain="") for name in ("tax", "invoice"))
    return (anchor.roots(), *leaves)  # type: ignore[return-value]


def with_intermediate() -> tuple[Roots, Made, Made]:
    """An intermediate of Consul's CA signs them, and is sent along."""
    _, anchor = company()
    middle = Ca(issuer=anchor, name="Datacenter")
    return anchor.roots(), middle.leaf("tax"), middle.leaf("invoice")


def anchor_sent_along() -> tuple[Roots, Made, Made]:
    """The chain that is sent ends with the anchor itself."""
    _, anchor = company()
    middle = Ca(issuer=anchor, name="Datacenter")
    chain = middle.pem + anchor.pem
    return anchor.roots(), middle.leaf("tax", chain=chain), middle.leaf("invoice", chain=chain)


def whole_chain_sent() -> tuple[Roots, Made, Made]:
    """What is above the anchor is sent, too, and listed by nobody."""
    root, anchor = company()
    chain = anchor.pem + root.pem
    return anchor.roots(), anchor.leaf("tax", chain=chain), anchor.leaf("invoice", chain=chain)


def both_listed() -> tuple[Roots, Made, Made]:
    """The company's root is listed beside Consul's CA."""
    root, anchor = company()
    return anchor.roots(root), anchor.leaf("tax"), anchor.leaf("invoice")


def both_in_one_text() -> tuple[Roots, Made, Made]:
    """One RootCert holds both."""
    root, anchor = company()
    one = Roots(TRUST_DOMAIN, (anchor.pem + root.pem,), "00:11")
    return one, anchor.leaf("tax"), anchor.leaf("invoice")


def self_signed() -> tuple[Roots, Made, Made]:
    """As ever."""
    root = Ca()
    return root.roots(), root.leaf("tax"), root.leaf("invoice")


def rotation() -> tuple[Roots, Made, Made]:
    """From a self-signed root to one that is not: the caller has a leaf of the old one still."""
    old = Ca(name="Old")
    _, anchor = company()
    return old.roots(anchor), anchor.leaf("tax", chain=""), old.leaf("invoice")


def rotation_back() -> tuple[Roots, Made, Made]:
    """And the other way."""
    old = Ca(name="New")
    _, anchor = company()
    return anchor.roots(old), old.leaf("tax"), anchor.leaf("invoice", chain="")


SHAPES = [
    direct,
    with_intermediate,
    anchor_sent_along,
    whole_chain_sent,
    both_listed,
    both_in_one_text,
    self_signed,
    rotation,
    rotation_back,
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_leaf_below_a_listed_root_shakes_hands(
    shape: Callable[[], tuple[Roots, Made, Made]],
) -> None:
    """Whatever is above that root, and whatever is sent along."""
    ends = shake(*shape())
    assert ends.well, (ends.client_error, ends.server_error)


KEYS = {
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "RSA-4096": lambda: rsa.generate_private_key(public_exponent=65537, key_size=4096),
}


@pytest.mark.parametrize("kind", KEYS)
def test_the_kind_of_the_anchors_key_does_not_matter(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Consul can be told to make it, or as a company has it."""
    monkeypatch.setattr(certs, "make_key", lambda wanted="ec": KEYS[kind]())
    roots, tax, invoice = direct()
    ends = shake(roots, tax, invoice)
    assert ends.well, (ends.client_error, ends.server_error)


def test_a_leaf_below_an_unlisted_root_does_not(foreign_ca: Ca) -> None:
    """An anchor that is no root makes nothing else one."""
    root, anchor = company()
    ours = Generation(anchor.leaf("tax").pair, anchor.roots(), 1)
    serving = server_context(lambda: ours, now)
    for stranger in (root.leaf("invoice"), foreign_ca.leaf("invoice")):
        theirs = Generation(stranger.pair, root.roots(foreign_ca, anchor), 1)
        calling = client_context(partial(same, theirs), now, anchor.leaf("tax").pair.leaf.id)
        assert not Ends(calling, serving).shake().well


# -- what the agent lists --------------------------------------------------------------------------


def answer(*pems: str) -> dict[str, object]:
    """The agent's answer that lists *pems*."""
    roots = [{"ID": str(n), "RootCert": pem, "Active": n == 0} for n, pem in enumerate(pems)]
    return {"ActiveRootID": "0", "TrustDomain": TRUST_DOMAIN, "Roots": roots}


ENDINGS = {
    "no line end": lambda pem: pem.rstrip("\n"),
    "CRLF": lambda pem: pem.replace("\n", "\r\n"),
    "CRLF, no line end": lambda pem: pem.replace("\n", "\r\n").rstrip(),
    "blank lines": lambda pem: f"\n{pem}\n\n",
    "text around": lambda pem: f"the root\n{pem}of this year",
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_listed_text_is_read_by_itself(count: int, ending: str) -> None:
    """How it ends says nothing about the next."""
    listed = [Ca(name=f"Root {number}") for number in range(count)]
    roots = parse_roots(answer(*(ENDINGS[ending](each.pem) for each in listed)))
    for each in listed:
        ends = shake(roots, each.leaf("tax"), each.leaf("invoice"))
        assert ends.well, (ends.client_error, ends.server_error)


def test_a_listed_certificate_that_is_no_ca_is_refused() -> None:
    """As an anchor it would let its own holder in, and whom it signs."""
    root = Ca()
    leaf = root.leaf("tax").pem
    no_ca = Ca(ca=False, name="Not a CA").pem
    for pems in ((leaf,), (root.pem, leaf), (root.pem + leaf,), (no_ca,)):
        with pytest.raises(AgentAnswerError, match="a root that is no CA"):
            parse_roots(answer(*pems))


# -- ready -----------------------------------------------------------------------------------------


@pytest.fixture
def belief() -> Iterator[Belief]:
    """What a process believes that has a policy already."""
    belief = Belief(load_settings({"service": "tax"}), now, lambda old, new: None)
    belief.take_default(True)
    belief.take_intentions((), regressed=False)
    yield belief


def impossible() -> tuple[Roots, Made]:
    """A leaf that our own code takes for sound, and OpenSSL does not: names it may not have."""
    permitted = x509.NameConstraints([x509.DNSName("elsewhere.example")], None)
    root = Ca(extensions=[permitted])
    return root.roots(), root.leaf("tax", dns=["tax.service.consul"])


def test_ready_means_that_a_handshake_would_succeed(belief: Belief) -> None:
    """Not ready, with the words of OpenSSL, where it would not."""
    roots, leaf = impossible()
    belief.take_roots(roots)
    assert "permitted subtree violation" in belief.take_leaf(leaf.pair)
    assert belief.snapshot.joined and not belief.snapshot.ready
    assert "permitted subtree violation" in belief.snapshot.refused
    assert [code for _, code, _ in belief.notes] == ["leaf_refused"]
    good = Ca()
    belief.take_roots(good.roots())
    belief.take_leaf(good.leaf("tax").pair)
    assert belief.snapshot.ready and belief.snapshot.refused == ""


def test_a_leaf_that_openssl_refuses_replaces_no_good_one(belief: Belief) -> None:
    """The old one serves on."""
    roots, bad = impossible()
    good = Ca()
    both = replace(good.roots(), certificates=(*good.roots().certificates, *roots.certificates))
    belief.take_roots(both)
    old = good.leaf("tax")
    belief.take_leaf(old.pair)
    assert belief.snapshot.ready
    assert "permitted subtree violation" in belief.take_leaf(bad.pair)
    assert "the old leaf stays" in belief.notes[-1][2]
    assert belief.snapshot.ready
    assert belief.snapshot.leaf == old.pair.leaf


def test_roots_are_dropped_though_our_leaf_falls_with_them(belief: Belief) -> None:
    """Trust that Consul took back is not kept for our own sake."""
    old, new = Ca(name="Old"), Ca(name="New")
    belief.take_roots(old.roots(new))
    belief.take_leaf(old.leaf("tax").pair)
    assert belief.snapshot.ready
    belief.take_roots(new.roots())
    assert belief.snapshot.roots == new.roots()
    assert not belief.snapshot.ready
    belief.take_leaf(new.leaf("tax").pair)
    assert belief.snapshot.ready
