"""
The error tree: whose fault it is, first.

Owns every exception this package raises. Doors dress them for their world: a status in ASGI and
WSGI, an ``httpx`` error in the client, one line and an exit code in the command.
"""

from __future__ import annotations


class MeshError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(MeshError):
    """A setting is missing, unknown or unusable: ours to mend, before anything runs."""


class IdentityError(MeshError, ValueError):
    """A text is no SPIFFE ID, or breaks one of its rules."""


class CertificateError(MeshError, ValueError):
    """A certificate, key or bundle breaks a rule, or the parts do not belong together."""


class NotReadyError(MeshError):
    """There is no leaf, or no roots, yet: the mesh has not been joined."""


class AgentError(MeshError):
    """
    The agent did not give what was asked.

    Args:
        message: what was asked, and what came instead.
        code: stable code of the kind of trouble; that of the class unless given.
    """

    code = "agent_error"

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        if code:
            self.code = code


class AgentUnavailableError(AgentError):
    """The agent cannot be reached, stalls, or answers with a server error."""

    code = "agent_unreachable"


class AgentRefusedError(AgentError):
    """The agent refused the token (403): the message says which permission is needed where."""

    code = "agent_refused"


class AgentAnswerError(AgentError):
    """The agent's answer has a shape that breaks its own API."""

    code = "agent_answer"


class InstanceTakenError(AgentError):
    """Another process has registered an instance under the same ID, and lives."""

    code = "instance_taken"


class PeerError(MeshError):
    """The other end of a TLS connection is not who it has to be."""


class PeerUnverifiedError(PeerError):
    """The peer shows no usable identity."""


class PeerMismatchError(PeerError):
    """
    The peer is somebody, but not the one expected.

    Args:
        expected: SPIFFE ID the connection was opened for.
        actual: SPIFFE ID in the peer's certificate.
    """

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(f"expected {expected}, the certificate names {actual}")
        self.expected = expected
        self.actual = actual

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.expected, self.actual)


class IntentionDeniedError(MeshError):
    """An intention, or the default policy, said no."""


class ResolveError(MeshError):
    """An upstream has no healthy instance, or there is no such upstream."""


class NoHealthyInstanceError(ResolveError):
    """An upstream has no instance that is healthy and in the mesh."""


class BreakerOpenError(ResolveError):
    """An upstream's instances are all ejected, or its limits are reached: nothing was sent."""


class DeadlineError(MeshError):
    """The time a call may take was over before it could be sent, or sent again."""
