"""Over HTTP/2, too: what the door lets through on Hypercorn, Envoy's rules let through."""

from __future__ import annotations

import random
import time

import pytest

from mesh_middleware.intentions import AsgiFacts

from . import cases, compare, envoy, http2, tokens, words

SEED = 20_261_122
POLICIES = 20
REQUESTS = 12


@pytest.mark.timeout(180)
def test_over_http2_nothing_is_let_through_that_envoys_rules_refuse() -> None:
    """
    For random policies and streams: a 403 of Envoy's is a denial of ours.

    Streams that Envoy ends for what is no rule's affair (a control byte, no sound authority) are
    left to the server, as over HTTP/1.1.
    """
    now, rnd = time.time(), random.Random(SEED)
    vault = tokens.Vault(now)
    drawn = [vault.fill(case) for case in cases.cases(SEED, POLICIES, REQUESTS)]
    drawn = [c for c in drawn if c["protocol"] != "tcp" and c["request"]["method"] in words.METHODS]
    named = {compare.key_of(case): case for case in drawn}
    numbers = {key: f"p{number}" for number, key in enumerate(named)}
    chains = {numbers[key]: compare.filters(case, vault) for key, case in named.items()}
    policies = {key: compare.policy_of(case, vault, now) for key, case in named.items()}
    seen = []
    with envoy.running(chains) as running:
        for case in drawn:
            pairs, key = http2.head(case, rnd), compare.key_of(case)
            scope = http2.scope(pairs)
            if scope is None:
                continue
            facts, source = AsgiFacts(scope), case["source_uri"]
            passes = facts.sound and policies[key].decide_uri(source, facts).allowed
            status = http2.ask_envoy(running, numbers[key], source, pairs)
            assert not (passes and status == 403), (compare.describe(case), pairs)
            seen.append((passes, status))
    # Both verdicts, and the stricter one, so that the question could be answered wrongly.
    assert min(seen.count(both) for both in ((True, 200), (False, 403), (False, 200))) >= 5
