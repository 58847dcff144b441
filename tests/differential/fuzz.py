"""
``make fuzz``: compares with Envoy for as long as one likes.

Owns the rounds: each draws new policies and requests from a seed, asks Envoy and us, and reduces
what they judge differently to a small case, printed on one line that ``mesh explain --batch``
reads. Equal seeds repeat a round, but for keys and times of tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from . import cases, compare, minimal, tokens
from .words import Json

POLICIES = 150
REQUESTS = 30
SHOWN = 5
"""Disagreements of one round that are reduced."""


class Round:
    """One drawing of cases, with keys of its own."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.vault = tokens.Vault(time.time())
        self.drawn = list(cases.cases(seed, POLICIES, REQUESTS))

    def disagreements(self, drawn: Sequence[Json]) -> list[Json]:
        """Find the cases, tokens not filled in, that Envoy and we judge differently."""
        filled = [self.vault.fill(case) for case in drawn]
        envoy = compare.ask_envoy(filled, self.vault)
        found = []
        exact = compare.ask_us(filled, "envoy", self.vault, time.time())
        strict = compare.ask_us(filled, "strict", self.vault, time.time())
        asgi = compare.ask_asgi(filled, self.vault, time.time())
        for case, one, verdict, ours, stricter, passed in zip(
            drawn, filled, envoy, exact, strict, asgi, strict=True
        ):
            same = not compare.differences([one], [verdict], [ours])
            loose = passed and not verdict
            if loose or not same or compare.looser([one], [verdict], [stricter]):
                found.append(case)
        return found

    def show(self, case: Json) -> None:
        """Print a small case, and who says what about it."""
        case = minimal.minimize(case, self.disagreements)
        filled = self.vault.fill(case)
        [verdict] = compare.ask_envoy([filled], self.vault)
        print(f"\nenvoy {'allows' if verdict else 'denies'}")
        for reading in ("envoy", "strict"):
            [answer] = compare.ask_us([filled], reading, self.vault, time.time())
            print(f"{reading:6} {json.dumps(answer)}")
        print(compare.describe(filled), flush=True)
        if filled != case or "JWT" in str(case["intentions"]):
            with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
                json.dump(self.vault.entries(), file)
            print(f"tokens: {compare.describe(case)}; --jwt-providers {Path(file.name)}")
        if case["normalization"]:
            print(f"mesh entry: {json.dumps(case['normalization'])}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz; 1 when there was a disagreement."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Compare with Envoy.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--seed", type=int, default=None, help="of the first round (random)")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**9) if options.seed is None else options.seed
    until = time.monotonic() + options.seconds
    total = wrong = 0
    while True:
        one = Round(seed)
        found = one.disagreements(one.drawn)
        total, wrong = total + len(one.drawn), wrong + len(found)
        print(f"seed {seed}: {total} cases, {wrong} disagreements", flush=True)
        for case in found[:SHOWN]:
            one.show(case)
        seed += 1
        if time.monotonic() > until:
            return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
