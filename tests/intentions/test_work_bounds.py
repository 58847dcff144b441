"""What one verdict may cost: patterns are counted, whatever a caller repeats."""

from __future__ import annotations

from typing import Any

import pytest

from mesh_middleware.intentions import Policy, Reason
from mesh_middleware.intentions.headers import MAX_EVALUATED, MAX_EVALUATIONS
from mesh_middleware.intentions.jwt import Location

from .support import ask, header, intention, permission, policy
from .test_jwt import VAULT, judge, provider

RULES = 100


def rules(**options: Any) -> Policy:
    """A policy of many patterns on one header, none of which matches."""
    each = [
        permission("deny", **header("x-a", Regex=f"b{number}+c.*", **options))
        for number in range(RULES)
    ]
    return policy(intention(Permissions=[*each, permission(PathPrefix="/")]))


def test_patterns_on_many_values_are_bounded() -> None:
    """A hundred patterns and sixty repeats would take long: 400."""
    headers = [(b"x-a", b"a%d" % number) for number in range(60)]
    judged = ask(rules(), headers=headers)
    assert (judged.allowed, judged.status) == (False, 400)
    assert judged.reason is Reason.UNSOUND_HEADER
    assert "patterns" in judged.detail


@pytest.mark.parametrize("length", [1, 1000])
def test_patterns_on_a_few_values_are_judged(length: int) -> None:
    """What honest clients send is far below the bound."""
    assert RULES * 4 < MAX_EVALUATIONS and RULES * 4 * 1000 < MAX_EVALUATED
    assert ask(rules(), headers=[(b"x-a", b"a" * length)]).allowed
    assert ask(rules(), headers=[(b"x-a", b"a"), (b"x-a", b"b")]).allowed


def test_patterns_on_long_values_are_bounded() -> None:
    """One header that is as long as a head may be, and a hundred patterns."""
    judged = ask(rules(), headers=[(b"x-a", b"a" * 50_000)])
    assert (judged.status, judged.reason) == (400, Reason.UNSOUND_HEADER)


# -- what stands in the place of a token -----------------------------------------------------------

FORGED = "eyJhbGciOiJub25lIn0.e30.x"
ODD = {
    "lower case": "bearer {}",
    "upper case": "BEARER {}",
    "mixed case": "bEaReR {}",
    "a tab": "Bearer\t{}",
    "lower case and a tab": "bearer\t{}",
    "spaces around": " bearer  {} ",
    "no scheme": "{}",
    "another scheme": "Basic {}",
    "no space": "Bearer{}",
    "the scheme alone": "Bearer",
}


@pytest.mark.parametrize("form", ODD)
def test_a_forged_token_beside_a_good_one_denies(form: str) -> None:
    """An application may take either; what a location holds counts as a token that failed."""
    good = VAULT.token("role-user")
    given = [(b"authorization", ODD[form].format(FORGED).encode())]
    judged = ask(judge(), target=f"/?access_token={good}", headers=given)
    assert not judged.allowed and judged.reason is Reason.JWT_INVALID, judged


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER\t{}"])
def test_the_good_token_itself_may_stand_twice(form: str) -> None:
    """In whatever case: it is verified like any other."""
    good = VAULT.token("role-user")
    given = [(b"authorization", form.format(good).encode())]
    assert ask(judge(), target=f"/?access_token={good}", headers=given).allowed


def test_an_empty_line_is_no_token() -> None:
    """Nothing stands there."""
    good = VAULT.token("role-user")
    given = [(b"authorization", b" ")]
    assert ask(judge(), target=f"/?access_token={good}", headers=given).allowed


def test_a_location_without_a_prefix_takes_the_line_as_it_is() -> None:
    """A header of its own."""
    places = (Location("header", "x-token"), Location("query", "access_token"))
    judges = judge(providers=(provider(locations=places),))
    good = VAULT.token("role-user")
    target = f"/?access_token={good}"
    assert ask(judges, target=target, headers=[(b"x-token", good.encode())]).allowed
    assert not ask(judges, target=target, headers=[(b"x-token", FORGED.encode())]).allowed
