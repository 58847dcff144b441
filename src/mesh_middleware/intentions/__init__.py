"""
Intentions: who may send which request to this service.

Values (`Intention`, `Permission`, `HeaderMatch`), what is judged (`RequestFacts`), and the verdict
(`Decision`, `Reason`) of a `Policy`. Pure: no I/O, no globals.
"""

from .facts import AsgiFacts, HttpFacts, RequestFacts, WsgiFacts
from .jwt import JwtProvider
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
