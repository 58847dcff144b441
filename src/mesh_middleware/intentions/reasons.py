"""
Why a request was allowed or refused: one closed list of stable codes.

Owns the codes, the status each one is answered with, and one line of cause and remedy that
``docs/reference/reasons.md`` is made of. Knows nothing of requests or intentions.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """
    The reason of a decision: stable in logs, metrics and ``mesh explain``; never in a body.

    `ABOUT` tells cause and remedy of each.
    """

    # allowed
    INTENTION_ALLOW = "intention_allow"
    PERMISSION_ALLOW = "permission_allow"
    DEFAULT_ALLOW = "default_allow"
    EXEMPT = "exempt"
    # denied by policy
    INTENTION_DENY = "intention_deny"
    PERMISSION_DENY = "permission_deny"
    DEFAULT_DENY = "default_deny"
    PERMISSIONS_ON_CONNECTION = "permissions_on_connection"
    READINGS_DIFFER = "readings_differ"
    # who calls
    NO_PEER = "no_peer"
    PEER_UNREADABLE = "peer_unreadable"
    PEER_NOT_SERVICE = "peer_not_service"
    PEER_EXPIRED = "peer_expired"
    FOREIGN_TRUST_DOMAIN = "foreign_trust_domain"
    # tokens
    JWT_MISSING = "jwt_missing"
    JWT_INVALID = "jwt_invalid"
    JWT_CLAIMS = "jwt_claims"
    JWT_NO_KEYS = "jwt_no_keys"
    JWT_NO_ENGINE = "jwt_no_engine"
    JWT_UNKNOWN_PROVIDER = "jwt_unknown_provider"
    # intentions that cannot be read
    UNREADABLE_SOURCE = "unreadable_source"
    UNREADABLE_PERMISSION = "unreadable_permission"
    UNKNOWN_FIELD = "unknown_field"
    UNKNOWN_ACTION = "unknown_action"
    EMPTY_CRITERIA = "empty_criteria"
    CONFLICTING_CRITERIA = "conflicting_criteria"
    BAD_PATTERN = "bad_pattern"
    PATTERN_TOO_LARGE = "pattern_too_large"
    NO_REGEX_ENGINE = "no_regex_engine"
    # requests that no sound client sends
    UNSOUND_METHOD = "unsound_method"
    UNSOUND_TARGET = "unsound_target"
    UNSOUND_HEADER = "unsound_header"
    # the mesh itself
    NO_POLICY = "no_policy"
    DEFAULT_UNKNOWN = "default_unknown"
    LEAF_EXPIRED = "leaf_expired"
    PLUGIN_RESTRICTED = "plugin_restricted"
    PLUGIN_ERROR = "plugin_error"
    UNREADABLE_CASE = "unreadable_case"
    ERROR = "error"

    @property
    def status(self) -> int:
        """HTTP status a door answers with: 200 allowed, 400, 403 or 503."""
        return ABOUT[self].status

    @property
    def allows(self) -> bool:
        """Whether a decision with this reason lets the request pass."""
        return ABOUT[self].status == 200


@dataclass(frozen=True, slots=True)
class About:
    """Status, cause and remedy of one reason, as the reference prints them."""

    status: int
    cause: str
    remedy: str


_MEND = "Correct the intention in Consul."

ABOUT: dict[Reason, About] = {
    Reason.INTENTION_ALLOW: About(200, "An intention without permissions allows the source.", "-"),
    Reason.PERMISSION_ALLOW: About(
        200, "The first matching permission of the intention allows the request.", "-"
    ),
    Reason.DEFAULT_ALLOW: About(
        200, "No intention, or none of its permissions, matched; the default policy is allow.", "-"
    ),
    Reason.EXEMPT: About(200, "The path is exempt by configuration of this service.", "-"),
    Reason.INTENTION_DENY: About(
        403,
        "An intention without permissions denies the source.",
        "Allow the source in Consul, if it should be.",
    ),
    Reason.PERMISSION_DENY: About(
        403,
        "The first matching permission of the intention denies the request.",
        "Order matters: the first permission that matches decides.",
    ),
    Reason.DEFAULT_DENY: About(
        403,
        "No intention, or none of its permissions, matched; the default policy is deny.",
        "Add an intention or a permission. A permission that does not match never falls through "
        "to the next intention.",
    ),
    Reason.PERMISSIONS_ON_CONNECTION: About(
        403,
        "The service is tcp, or only a connection is judged: permissions need a request.",
        "Set the service's protocol to http in Consul (service-defaults).",
    ),
    Reason.READINGS_DIFFER: About(
        403,
        "The request can be read in several ways, and at least one of them is denied; "
        "the readings that deny are named.",
        "Send the target in its plain form, each header once; or widen the intention.",
    ),
    Reason.NO_PEER: About(
        403,
        "The request came without a verified certificate: plaintext, or a listener without "
        "mutual TLS.",
        "Call through the mesh.",
    ),
    Reason.PEER_UNREADABLE: About(
        403, "The peer's URI name is no SPIFFE ID that Consul issues.", "Issue the leaf by Consul."
    ),
    Reason.PEER_NOT_SERVICE: About(
        403,
        "The peer is a gateway, an agent or a server: intentions speak of services.",
        "Call with a service's own leaf.",
    ),
    Reason.PEER_EXPIRED: About(
        403,
        "The peer's certificate expired while its connection was open.",
        "Reconnect with a fresh leaf.",
    ),
    Reason.FOREIGN_TRUST_DOMAIN: About(
        403,
        "The peer belongs to another trust domain.",
        "Call from inside this mesh; peered clusters are not supported.",
    ),
    Reason.JWT_MISSING: About(
        403, "The intention demands a token, and the request has none.", "Send the token."
    ),
    Reason.JWT_INVALID: About(
        403,
        "The token is malformed, expired, signed by an unknown key, or of another issuer "
        "or audience.",
        "Get a fresh token of the provider that the intention names.",
    ),
    Reason.JWT_CLAIMS: About(
        403,
        "The token is good, but its claims are not the ones that the intention demands.",
        "Use a token with those claims.",
    ),
    Reason.JWT_NO_KEYS: About(
        403,
        "The provider's keys have not been read yet, or cannot be.",
        "Look at the provider's JSONWebKeySet, and at the log.",
    ),
    Reason.JWT_NO_ENGINE: About(
        403,
        "The intention demands a token, and the extra `jwt` is not installed.",
        "pip install 'mesh-middleware[jwt]'",
    ),
    Reason.JWT_UNKNOWN_PROVIDER: About(
        403,
        "The intention names a jwt-provider that does not exist or cannot be read.",
        "Write the jwt-provider entry, or correct the name.",
    ),
    Reason.UNREADABLE_SOURCE: About(
        403, "It cannot be told whom an intention is about: everyone is denied.", _MEND
    ),
    Reason.UNREADABLE_PERMISSION: About(
        403,
        "A part of the source's intention has a type or value outside Consul's model: every "
        "request of the source is denied.",
        _MEND,
    ),
    Reason.UNKNOWN_FIELD: About(
        403,
        "An intention has a field this version does not know: ignoring it could allow too much.",
        "Update mesh_middleware, or remove the field.",
    ),
    Reason.UNKNOWN_ACTION: About(
        403, "An action is neither allow nor deny, or both action and permissions stand.", _MEND
    ),
    Reason.EMPTY_CRITERIA: About(
        403, "A permission, or one of its header criteria, says nothing to match.", _MEND
    ),
    Reason.CONFLICTING_CRITERIA: About(
        403, "A permission has two paths, or a header criterion two tests.", _MEND
    ),
    Reason.BAD_PATTERN: About(
        403,
        "A regular expression is not valid RE2, or a header's name holds a NUL or a line's end. "
        "Envoy would refuse the whole configuration, so everyone is denied.",
        "Correct the pattern: RE2 has no lookaround and no backreferences.",
    ),
    Reason.PATTERN_TOO_LARGE: About(
        403, "A regular expression exceeds the program-size budget.", "Simplify the pattern."
    ),
    Reason.NO_REGEX_ENGINE: About(
        403,
        "A permission has a regular expression, and the extra `re2` is not installed.",
        "pip install 'mesh-middleware[re2]'",
    ),
    Reason.UNSOUND_METHOD: About(
        400,
        "The method is not one of the upper-case methods that proxies pass.",
        "Send a method of HTTP, in upper case.",
    ),
    Reason.UNSOUND_TARGET: About(
        400,
        "The request target has a form that layers read differently or refuse: `#`, NUL, control "
        "or non-ASCII bytes, no leading slash.",
        "Begin the target with a slash, and percent-encode it.",
    ),
    Reason.UNSOUND_HEADER: About(
        400,
        "The head has a form that layers read differently or refuse: no Host, a repeated length, "
        "control bytes, too many or too large headers.",
        "Send a well-formed head.",
    ),
    Reason.NO_POLICY: About(
        503,
        "The intentions have not been read yet.",
        "Wait until the mesh is ready; look at the agent.",
    ),
    Reason.DEFAULT_UNKNOWN: About(
        503,
        "Nothing matched, and the default policy of this Consul is not known yet.",
        "Set `default_policy`, or give the token `agent:read`.",
    ),
    Reason.LEAF_EXPIRED: About(
        503,
        "Our own leaf has expired: the agent has been away for longer than it lasts.",
        "Bring the agent back; the mesh is joined again by itself.",
    ),
    Reason.PLUGIN_RESTRICTED: About(403, "A plugin refused what the intentions allow.", "-"),
    Reason.PLUGIN_ERROR: About(
        403, "A plugin that may refuse requests raised an error.", "Look at the log."
    ),
    Reason.UNREADABLE_CASE: About(
        400,
        "`mesh explain --batch` only: the line is no case.",
        "See the format in `mesh explain --help`.",
    ),
    Reason.ERROR: About(403, "Judging failed: a defect of this program.", "Report it."),
}
"""Everything the reference says about each reason; complete, a test sees to it."""
