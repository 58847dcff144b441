"""
An embedded, Consul-compatible agent for development and tests.

Owns its own reading of the Consul API; it shares no code with the client that reads the same JSON,
so that neither hides the other's mistakes. Loopback only: it hands out keys to anyone who asks.
"""

from .acl import Token, management_token, service_token
from .agent import DevAgent
from .faults import Fault, Faults
from .http import Answer, Refusal, Request

__all__ = [
    "Answer",
    "DevAgent",
    "Fault",
    "Faults",
    "Refusal",
    "Request",
    "Token",
    "management_token",
    "service_token",
]
