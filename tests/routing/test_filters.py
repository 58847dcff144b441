"""Subsets by filter expressions."""

from __future__ import annotations

from typing import Any

import pytest

from mesh_middleware.routing.filters import FilterError, compact, compile_filter

ENTRY: dict[str, Any] = {
    "Service": {
        "ID": "tax-1", "Service": "tax", "Port": 8000, "Tags": ["blue", "eu"],
        "Meta": {"version": "v2", "my-key": "a b", "empty": ""}, "Connect": {"Native": True},
        "Weights": {"Passing": 3},
    },
    "Node": {"Node": "c10", "Meta": {"rack": "7"}, "Datacenter": "dc1"},
    "Checks": [
        {"CheckID": "serfHealth", "Status": "passing", "Output": "x" * 999},
        {"CheckID": "ttl", "Status": "warning"},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("Service.Meta.version == v2", True),
        ('Service.Meta.version == "v2"', True),
        ("Service.Meta.version == `v1`", False),
        ("Service.Meta.version != v1", True),
        ("Service.Meta.nothing == v1", False),
        ("Service.Meta.nothing != v1", True),
        ('Service.Meta["my-key"] == "a b"', True),
        ('Service.Meta["my-key"]=="a b"', True),
        ("Service.Port == 8000", True),
        ("Service.Port == 80", False),
        ("Service.Connect.Native == true", True),
        ("Service.Weights.Passing == 3", True),
        ("Service.EnableTagOverride == false", True),
        ("Node.Meta.rack == 7", True),
        ("Node.Datacenter == dc1 and Node.Node == c10", True),
        ("blue in Service.Tags", True),
        ('"red" in Service.Tags', False),
        ("red not in Service.Tags", True),
        ("Service.Tags contains eu", True),
        ("Service.Tags not contains eu", False),
        ("version in Service.Meta", True),
        ("Service.Meta is empty", False),
        ("Service.Meta is not empty", True),
        ("Service.Meta.empty is empty", True),
        ("Service.Meta.nothing is empty", True),
        ("Service.Meta.version matches `^v[0-9]$`", True),
        ("Service.Meta.version matches `2`", True),
        ("Service.Meta.version not matches `3`", True),
        ("Checks.Status == warning", True),
        ("Checks.Status == critical", False),
        ("not Service.Meta.version == v1", True),
        ("not (Service.Port == 1 or Service.Port == 8000)", False),
        ("Service.Port == 1 or Service.Port == 8000 and Service.ID == x", False),
        ("(Service.Port == 1 or Service.Port == 8000) and Service.ID != x", True),
        ("Service.ID == x or Node.Node == c10", True),
    ],
)
def test_expressions(expression: str, expected: bool) -> None:
    """go-bexpr's operators, precedences and treatment of absent keys."""
    assert compile_filter(expression)(compact(ENTRY)) is expected


@pytest.mark.parametrize(
    "expression",
    [
        "", "  ", "Service", "Service.Meta", "Service.Meta.version", "Service.Meta.version ==",
        "Service.Color == red", "Weather == fine", "Service.Meta == v1", "Service.Tags == blue",
        "Service.Meta.a.b == c", "Service.Port == eighty", "Service.Port matches 8",
        "(Service.Port == 1", "Service.Port == 1)", "Service.Port === 1", "Service.Port == 1 1",
        "Service.Meta.version == v1 &&", "Service.Meta.version matches `(`", "not", "Checks == 1",
        "Service.Meta.version == 'v1'", "((" * 40 + "Service.Port == 1" + "))" * 40,
        "Service.ID == " + "x" * 5000, "Service.Connect.Native == yes", "any Checks as c { c }",
    ],
)  # fmt: skip
def test_everything_else_is_refused(expression: str) -> None:
    """Never guessed: a subset whose filter cannot be read is empty."""
    with pytest.raises(FilterError):
        compile_filter(expression)


def test_what_is_kept_of_an_entry_is_what_can_be_asked() -> None:
    """Long outputs of checks are not held for every instance."""
    assert "x" * 999 not in str(compact(ENTRY))
    assert compact({"Service": {}, "Node": {}, "Checks": None})["Checks"] == []
