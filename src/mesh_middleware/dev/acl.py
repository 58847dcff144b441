"""
Tokens for tests: who may do what, and the text of a refusal.

Owns a small part of Consul's ACLs: service rules by exact name and prefix, the implied intention
rights, node, agent, operator and mesh rights. Without an `Acl` everything is permitted.

Source: Consul ACL rules (reference 9, 1.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .http import Refusal

_LEVELS = {"deny": 0, "read": 1, "write": 2}


@dataclass(frozen=True, slots=True)
class Token:
    """
    The rights of one token; each is ``"read"``, ``"write"`` or ``"deny"``.

    Args:
        accessor: public ID, quoted in refusals.
        service: by exact service name.
        service_prefix: by prefix of the name; the longest decides, an exact rule before it.
        intentions: by exact destination; without one, a service right implies ``"read"``.
        management: may do everything.
    """

    accessor: str
    service: Mapping[str, str] = field(default_factory=dict)
    service_prefix: Mapping[str, str] = field(default_factory=dict)
    intentions: Mapping[str, str] = field(default_factory=dict)
    node: str = ""
    agent: str = ""
    operator: str = ""
    mesh: str = ""
    management: bool = False

    def _service_rule(self, name: str) -> str:
        if name in self.service:
            return self.service[name]
        prefixes = [prefix for prefix in self.service_prefix if name.startswith(prefix)]
        return self.service_prefix[max(prefixes, key=len)] if prefixes else ""

    def rule(self, area: str, name: str) -> str:
        """The rule for *area* (``service``, ``intentions``, ...) on *name*; ``""``: none."""
        if area == "service":
            return self._service_rule(name)
        if area == "intentions":
            implied = "read" if self._service_rule(name) in ("read", "write") else ""
            return self.intentions.get(name, implied)
        return str(getattr(self, area))


def management_token(accessor: str = "management") -> Token:
    """A token that may do everything."""
    return Token(accessor, management=True)


def service_token(name: str) -> Token:
    """
    What a service identity for *name* expands to.

    Source: reference 9.
    """
    return Token(
        f"service-identity-{name}",
        service={name: "write", f"{name}-sidecar-proxy": "write"},
        service_prefix={"": "read"},
        node="read",
    )


@dataclass(frozen=True, slots=True)
class Acl:
    """
    The tokens an agent knows.

    Args:
        tokens: secret to rights; the anonymous token, ``""``, has none unless given.
    """

    tokens: Mapping[str, Token] = field(repr=False)

    def token(self, secret: str) -> Token:
        """
        The rights of *secret*.

        Raises:
            Refusal: 403, an unknown secret.
        """
        token = self.tokens.get(secret)
        if token is None and secret:
            raise Refusal(403, "ACL not found")
        return token or Token("anonymous")


@dataclass(frozen=True, slots=True)
class Rights:
    """
    What one request may do.

    Args:
        token: its rights; None when ACLs are off.
        secret: whether it presented a token at all.
        default_allow: the ACL default, for what no rule names.
    """

    token: Token | None
    secret: bool
    default_allow: bool

    def may(self, permission: str, name: str = "") -> bool:
        """Whether ``area:level`` is granted on *name*."""
        if self.token is None or self.token.management:
            return True
        area, _, level = permission.partition(":")
        rule = self.token.rule(area, name)
        return _LEVELS[rule] >= _LEVELS[level] if rule else self.default_allow

    def require(self, permission: str, name: str = "") -> None:
        """
        Refuse unless `may`.

        Raises:
            Refusal: 403, naming the permission.
        """
        if self.may(permission, name):
            return
        on = f' on "{name}"' if name else ""
        if self.secret and self.token is not None:
            who = f"token with AccessorID '{self.token.accessor}' lacks permission"
            raise Refusal(403, f"Permission denied: {who} '{permission}'{on}")
        raise Refusal(
            403,
            f"Permission denied: anonymous token lacks permission '{permission}'{on}. The anonymous"
            " token is used implicitly when a request does not specify a token.",
        )
