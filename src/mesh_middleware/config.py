"""
Settings: arguments, then file, then environment, then default.

Owns the names and meanings of all options, the nearest-name hints, and Consul's own environment
variables. Reads only the mappings it is given; files named by a setting are read by who uses them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from .exceptions import ConfigError
from .misspelling import lookalike, nearest

DEFAULT_AGENT = "http://127.0.0.1:8500"
DEFAULT_DOMAIN = "consul"
MAX_ANSWER_BYTES = 8 * 1024 * 1024
INSTANCE_KEY = "mesh_instance"
"""Key in the metadata of a registration under which its owner's token stands."""
MAX_UNREAD_BODY = 1024 * 1024
UNREAD_BODY_TIMEOUT = 1.0
H2_MAX_RESETS = 200
Mode = Literal["enforce", "shadow"]
Reading = Literal["strict", "envoy"]
DefaultPolicy = Literal["allow", "deny"]

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_HEADER_TEXT = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_LEAST_WAIT = 0.1
"""Shortest rhythm in seconds: a zero would ask the agent without a pause."""
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


@dataclass(frozen=True, slots=True)
class Settings:
    """
    Every option of the mesh; `load_settings` makes one from its sources.

    Args:
        service: name of this service in Consul. The only one without a default.
        port: TCP port the service is reached at; the server door fills it in.
        address: address others reach it at; empty means the agent's own.
        service_id: Consul's ID of this instance; ``<service>-<address>-<port>`` unless set, with
            the host name where the address is empty.
        tags: registered with the instance.
        meta: registered with the instance.
        register: whether the instance is registered at all.
        agent: address of the Consul agent: ``http://``, ``https://`` or ``unix://``.
        token: ACL token. Never shown.
        token_file: file with the ACL token; wins over *token*.
        ca_file: CA certificates that verify an ``https`` agent.
        ca_path: directory of such certificates.
        client_cert: certificate this process shows to an ``https`` agent.
        client_key: its key file.
        tls_server_name: name verified in the agent's certificate.
        verify_agent: whether the agent's certificate is verified.
        auth: ``user:password`` for HTTP Basic. Never shown.
        datacenter: where services are looked up; the agent's own unless set.
        namespace: of this service; only Enterprise agents accept one.
        partition: of this service; only Enterprise agents accept one.
        default_policy: verdict where no intention matches; discovered unless set.
        mode: ``enforce``, or ``shadow``: requests pass, would-be denials are logged.
        reading: how targets are read: ``strict`` (all readings must allow) or ``envoy``.
        exempt: canonical paths that anyone may call, plaintext included; exact, comma-separated.
        shadow: canonical paths; at and below them the mode is ``shadow``.
        domain: Consul's DNS domain in upstream names.
        locality: where this process stands, ``region`` or ``region/zone``, as Consul's own
            ``Locality``; instances near it are called first.
        wait: seconds a blocking query lasts.
        poll: seconds between questions, instead of blocking queries; 0 blocks.
        check_ttl: seconds of the registration's TTL check.
        ready_timeout: seconds the start waits for the agent before serving anyway.
        max_answer_bytes: largest answer of the agent that is read.
        plaintext_beyond_loopback: whether a plaintext listener (Hypercorn's ``insecure_bind``) may
            be reached from other machines.
        deny_in_handshake: whether callers whom no request is allowed are refused in the handshake
            already; else they get a 403, which they can understand.
        max_connection_age: seconds after which a connection ends at its next bytes; 0 never.
        max_unread_body: bytes of a request body that are read and dropped after its response, so
            that an HTTP/1.1 connection can be used again; beyond it the connection is closed.
        unread_body_timeout: seconds for that; after it the connection is closed.
        h2_max_resets: streams that one HTTP/2 connection may reset within ten seconds; beyond it
            the connection answers what it has begun, and ends.
        keep_file: sealed file of the last known good, for starts without the agent; empty is off.
        keep_key: its key, 32 bytes in hexadecimal or base64. Never shown.
        keep_max_age: seconds after which it is refused.
        plugins: whether installed plugins are loaded.
    """

    service: str
    port: int = 0
    address: str = ""
    service_id: str = ""
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)
    register: bool = True
    agent: str = DEFAULT_AGENT
    token: str = field(default="", repr=False)
    token_file: str = ""
    ca_file: str = ""
    ca_path: str = ""
    client_cert: str = ""
    client_key: str = ""
    tls_server_name: str = ""
    verify_agent: bool = True
    auth: str = field(default="", repr=False)
    datacenter: str = ""
    namespace: str = ""
    partition: str = ""
    default_policy: DefaultPolicy | None = None
    mode: Mode = "enforce"
    reading: Reading = "strict"
    exempt: tuple[str, ...] = ()
    shadow: tuple[str, ...] = ()
    domain: str = DEFAULT_DOMAIN
    locality: str = ""
    wait: float = 300.0
    poll: float = 0.0
    check_ttl: float = 15.0
    ready_timeout: float = 1.0
    max_answer_bytes: int = MAX_ANSWER_BYTES
    plaintext_beyond_loopback: bool = False
    deny_in_handshake: bool = False
    max_connection_age: float = 0.0
    max_unread_body: int = MAX_UNREAD_BODY
    unread_body_timeout: float = UNREAD_BODY_TIMEOUT
    h2_max_resets: int = H2_MAX_RESETS
    keep_file: str = ""
    keep_key: str = field(default="", repr=False)
    keep_max_age: float = 72 * 3600.0
    plugins: bool = True

    @property
    def instance_id(self) -> str:
        """
        Consul's ID of this instance: ``<service>-<address, else host name>-<port>`` unless set.

        Two pods or containers on one agent may have the same port; the ID tells them apart.
        """
        if self.service_id or not self.port:
            return self.service_id or self.service
        return f"{self.service}-{self.address.strip('[]') or os.uname().nodename}-{self.port}"


NAMES = tuple(f.name for f in fields(Settings))
"""Every option, as written in a ``[mesh]`` table; ``MESH_<NAME>`` in Flask and the environment."""

_CONSUL_VARIABLES = {
    "CONSUL_HTTP_TOKEN": "token",
    "CONSUL_HTTP_TOKEN_FILE": "token_file",
    "CONSUL_HTTP_AUTH": "auth",
    "CONSUL_CACERT": "ca_file",
    "CONSUL_CAPATH": "ca_path",
    "CONSUL_CLIENT_CERT": "client_cert",
    "CONSUL_CLIENT_KEY": "client_key",
    "CONSUL_TLS_SERVER_NAME": "tls_server_name",
    "CONSUL_NAMESPACE": "namespace",
    "CONSUL_PARTITION": "partition",
}


def load_settings(
    arguments: Mapping[str, Any] | None = None,
    *,
    file: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    where: str = "the [mesh] table",
    prefix: str = "",
) -> Settings:
    """
    Make settings from their sources; the first that names an option wins.

    Args:
        arguments: given in code; ``None`` values count as not given.
        file: the ``[mesh]`` table, or Flask's ``MESH_*`` without the prefix.
        environ: environment variables; the process's own unless given.
        where: what *file* is called in messages.
        prefix: what names begin with there, which are upper case then: Flask's ``MESH_``.

    Raises:
        ConfigError: an option is unknown (the nearest known one is named), a value is unusable,
            or there is no service name.
    """
    environ = os.environ if environ is None else environ
    file = file or {}
    given = {k: v for k, v in (arguments or {}).items() if v is not None}
    _check_names(given, "the arguments", "")
    _check_names(file, where, prefix)
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for source, spelt in (
        (_from_consul(environ), _consul_names(environ)),
        (_from_mesh(environ), {n: f" ({_upper(n)} in the environment)" for n in NAMES}),
        (file, {n: f" ({_upper(n)} in {where})" for n in file} if prefix else {}),
        (given, {}),
    ):
        if "token" in source:
            # A file wins over a token of the same source, never over one of a stronger source.
            merged.pop("token_file", None)
        merged |= source
        origin |= {name: spelt.get(name, "") for name in source}
    values = {name: _convert(name, value, origin[name]) for name, value in merged.items()}
    if not values.get("service"):
        raise ConfigError(
            f'no service name: set service = "..." in {where}, or MESH_SERVICE in the environment'
            + "".join(f"; {miss}" for miss in near_misses(environ) if "MESH_SERVICE" in miss)
        )
    return _checked(Settings(**values), origin)


def near_misses(environ: Mapping[str, str]) -> list[str]:
    """
    Find variables that look like a misspelt setting.

    Others that merely begin with ``MESH_`` are not ours to judge: Kubernetes makes some for a
    service of that name.

    Returns:
        A sentence for each.
    """
    known = [_upper(name) for name in NAMES]
    others = [v for v in environ if v.startswith("MESH_") and v not in (*known, "MESH_BIND")]
    return [
        f"{variable} in the environment is no setting: is {near} meant?"
        for variable in others
        if (near := lookalike(variable, known))
    ]


def flask_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """
    Take the ``MESH_*`` keys of a Flask configuration, without the prefix, in lower case.

    Those that are ``None`` count as not given.
    """
    return {k[5:].lower(): v for k, v in config.items() if k.startswith("MESH_") and v is not None}


_offered: dict[str, list[Any]] = {}


def offer_options(options: Mapping[str, Any]) -> None:
    """Let an application's own options count for the mesh that its server starts."""
    for name, value in options.items():
        values = _offered.setdefault(name, [])
        if value not in values:
            values.append(value)


def offered_options() -> dict[str, Any]:
    """
    The options that applications of this process have offered.

    Raises:
        ConfigError: two of them disagree: one process is one service, judged by one policy.
    """
    for name, values in _offered.items():
        if len(values) > 1:
            shown = " and ".join(_shown(name, value) for value in values)
            raise ConfigError(
                f"applications of one process disagree: MESH_{name.upper()} is {shown}"
            )
    return {name: values[0] for name, values in _offered.items()}


def parse_seconds(text: str) -> float:
    """
    Read a duration: ``15``, ``15s``, ``500ms``, ``5m``, ``1h``.

    Raises:
        ValueError: it is none.
    """
    found = _DURATION.fullmatch(text.strip())
    if not found:
        raise ValueError("a duration is a number with ms, s, m or h")
    return float(found[1]) * _SECONDS[found[2]]


def is_header_text(text: str) -> bool:
    """Whether *text* can stand in an HTTP header: libraries quote what cannot in their errors."""
    return _HEADER_TEXT.fullmatch(text) is not None


def _check_names(given: Mapping[str, Any], where: str, prefix: str) -> None:
    for name in given:
        if name not in NAMES:
            wrong, near = name, nearest(name, NAMES)
            if prefix:
                wrong, near = _upper(name), _upper(near)
            raise ConfigError(
                f"{where}: unknown option {wrong!r}; the nearest known one is {near!r}"
            )


def _upper(name: str) -> str:
    return f"MESH_{name.upper()}"


def _from_mesh(environ: Mapping[str, str]) -> dict[str, Any]:
    names = ((name, _upper(name)) for name in NAMES)
    return {name: environ[variable] for name, variable in names if environ.get(variable)}


def _consul_names(environ: Mapping[str, str]) -> dict[str, str]:
    given = {"CONSUL_HTTP_ADDR": "agent", **_CONSUL_VARIABLES}
    return {name: f" ({variable})" for variable, name in given.items() if environ.get(variable)}


def _from_consul(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: environ[variable]
        for variable, name in _CONSUL_VARIABLES.items()
        if environ.get(variable)
    }
    secure = environ.get("CONSUL_HTTP_SSL") in _TRUE
    address = environ.get("CONSUL_HTTP_ADDR")
    if address:
        found["agent"] = address if "://" in address else f"http://{address}"
    if secure:
        # As Consul's clients do: the variable turns TLS on, also over a written http://.
        found["agent"] = re.sub(r"^http://", "https://", found.get("agent", DEFAULT_AGENT))
    if environ.get("CONSUL_HTTP_SSL_VERIFY") in _FALSE:
        found["verify_agent"] = False
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is expected")
    return value


def _token(value: Any) -> str:
    if not is_header_text(text := _text(value)) and text:
        raise ValueError("printable ASCII, without space around it, is expected")
    return text


def _auth(value: Any) -> str:
    if not _text(value).isprintable():
        raise ValueError("printable text is expected")
    return str(value)


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and (value in _TRUE or value in _FALSE):
        return value in _TRUE
    raise ValueError("true or false is expected")


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a whole number is expected")
    try:
        return int(value)
    except ValueError:
        raise ValueError("a whole number is expected") from None


def _seconds(least: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError("seconds are expected")
        seconds = parse_seconds(value) if isinstance(value, str) else float(value)
        if not least <= seconds <= 86400 * 366:
            raise ValueError(f"seconds from {least:g} to a year are expected")
        return seconds

    return read


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if not isinstance(value, list | tuple) or not all(isinstance(part, str) for part in value):
        raise ValueError("a list of texts, or a text with commas, is expected")
    return tuple(value)


def _pairs(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        parts = [part.partition("=") for part in value.split(",") if part]
        value = {key: item for key, equals, item in parts} if all(p[1] for p in parts) else None
    if not isinstance(value, Mapping):
        raise ValueError("a table of texts, or key=value with commas, is expected")
    return {_text(key): _text(item) for key, item in value.items()}


def _locality(value: Any) -> str:
    region, slash, zone = _text(value).partition("/")
    if value and (not region or "/" in zone or bool(slash) is not bool(zone)):
        raise ValueError("region or region/zone is expected")
    return str(value)


def _choice(*known: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in known:
            raise ValueError(f"one of {', '.join(known)} is expected")
        return str(value)

    return read


_READERS: dict[str, Callable[[Any], Any]] = {
    "port": _whole,
    "max_answer_bytes": _whole,
    "register": _flag,
    "verify_agent": _flag,
    "plugins": _flag,
    "plaintext_beyond_loopback": _flag,
    "deny_in_handshake": _flag,
    "max_connection_age": _seconds(0),
    "max_unread_body": _whole,
    "unread_body_timeout": _seconds(0),
    "h2_max_resets": _whole,
    "keep_max_age": _seconds(0),
    "tags": _texts,
    "exempt": _texts,
    "shadow": _texts,
    "meta": _pairs,
    "wait": _seconds(_LEAST_WAIT),
    "poll": _seconds(0),
    "check_ttl": _seconds(_LEAST_WAIT),
    "ready_timeout": _seconds(0),
    "token": _token,
    "auth": _auth,
    "locality": _locality,
    "mode": _choice(*get_args(Mode)),
    "reading": _choice(*get_args(Reading)),
    "default_policy": _choice(*get_args(DefaultPolicy)),
}


def _convert(name: str, value: Any, origin: str) -> Any:
    read: Callable[[Any], Any] = _READERS.get(name, _text)
    try:
        return read(value)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name} = {_shown(name, value)}: {error}{origin}") from None


def _shown(name: str, value: object) -> str:
    return "(hidden)" if name in ("token", "auth", "keep_key") else repr(value)


def _checked(settings: Settings, origin: Mapping[str, str]) -> Settings:
    try:
        _check(settings)
    except ConfigError as error:
        name = str(error).partition(" = ")[0]
        raise ConfigError(f"{error}{origin.get(name, '')}") from None
    return settings


def _check(settings: Settings) -> None:
    _check_agent(settings.agent)
    if bool(settings.client_cert) != bool(settings.client_key):
        raise ConfigError("client_cert and client_key: both or neither must be given")
    if not 0 <= settings.port <= 65535:
        raise ConfigError(f"port = {settings.port}: 0 to 65535 is expected")
    if 0 < settings.poll < _LEAST_WAIT:
        raise ConfigError(f"poll = {settings.poll:g}: seconds from {_LEAST_WAIT:g} on, or 0")
    if settings.max_answer_bytes < 1:
        raise ConfigError(f"max_answer_bytes = {settings.max_answer_bytes}: at least 1 is expected")
    if INSTANCE_KEY in settings.meta:
        raise ConfigError(f"meta: the key {INSTANCE_KEY!r} is the mesh's own; use another")
    for name, least in (("max_unread_body", 0), ("h2_max_resets", 1)):
        if getattr(settings, name) < least:
            value = getattr(settings, name)
            raise ConfigError(f"{name} = {value}: at least {least} is expected")
    if "/" in settings.service or settings.service == "*":
        raise ConfigError(f"service = {settings.service!r}: a name without / and not * is expected")
    for option in ("exempt", "shadow"):
        for path in getattr(settings, option):
            if not path.startswith("/") or "?" in path or "%" in path or "//" in path:
                raise ConfigError(
                    f"{option} = {path!r}: a canonical path such as /healthz is expected"
                )


def _check_agent(agent: str) -> None:
    # The address is shown in logs and status: a password in it would be, too.
    shown = "(hidden)" if set(agent) & set("@?#") else repr(agent)
    if not agent.isprintable() or " " in agent:
        raise ConfigError(f"agent = {shown}: an address has no spaces or control characters")
    try:
        parts = urlsplit(agent)
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError as error:
        raise ConfigError(f"agent = {shown}: no address: {error}") from None
    if parts.scheme not in ("http", "https", "unix"):
        raise ConfigError(f"agent = {shown}: an address starts with http://, https:// or unix://")
    if "@" in parts.netloc:
        raise ConfigError(f"agent = {shown}: user and password belong into the option auth")
    if "?" in agent or "#" in agent:
        raise ConfigError(f"agent = {shown}: an address has neither query nor fragment")
    if parts.scheme == "unix" and (host or not parts.path.startswith("/")):
        raise ConfigError(f"agent = {shown}: unix:// and an absolute path is expected")
    if parts.scheme != "unix" and not host:
        raise ConfigError(f"agent = {shown}: a host is expected")


def defaults() -> dict[str, Any]:
    """Every option with its default, as text for the reference page."""
    shown: dict[str, Any] = {}
    for each in fields(Settings):
        if each.default is not MISSING:
            shown[each.name] = each.default
        elif each.default_factory is not MISSING:
            shown[each.name] = each.default_factory()
        else:
            shown[each.name] = MISSING
    return shown
