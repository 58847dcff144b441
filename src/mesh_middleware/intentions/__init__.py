"""
Intentions: who may send which request to this service.

Values (`Intention`, `Permission`, `HeaderMatch`), what is judged (`RequestFacts`), and the verdict
(`Decision`, `Reason`) of a `Policy`. Pure: no I/O, no globals.
"""

from typing import TYPE_CHECKING, Any

from .facts import AsgiFacts, HttpFacts, RequestFacts, WsgiFacts
from .model import (
    Claim,
    Decision,
    Flaw,
    HeaderMatch,
    Intention,
    JwtDemand,
    Normalization,
    Permission,
    decision,
    precedence_of,
)
from .policy import Policy, compile_policy
from .reasons import ABOUT, About, Reason

if TYPE_CHECKING:
    from .jwt import JwtProvider

__all__ = [
    "ABOUT",
    "About",
    "AsgiFacts",
    "Claim",
    "Decision",
    "Flaw",
    "HeaderMatch",
    "HttpFacts",
    "Intention",
    "JwtDemand",
    "JwtProvider",
    "Normalization",
    "Permission",
    "Policy",
    "Reason",
    "RequestFacts",
    "WsgiFacts",
    "compile_policy",
    "decision",
    "precedence_of",
]


def __getattr__(name: str) -> Any:
    # What tokens take is loaded with the first provider: most services have none.
    if name == "JwtProvider":
        from .jwt import JwtProvider

        return JwtProvider
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
