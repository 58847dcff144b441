"""Settings: where they come from, what they may be, and what is said when they are not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_middleware.config import (
    NAMES,
    Settings,
    defaults,
    flask_options,
    load_settings,
    near_misses,
    offer_options,
    offered_options,
    parse_seconds,
)
from mesh_middleware.exceptions import ConfigError

NOTHING: Mapping[str, str] = {}
CANARY = "c4n4ry-53cr3t"


def load(environ: Mapping[str, str] | None = None, **arguments: Any) -> Settings:
    """Settings of a service named tax, from *arguments* and *environ* alone."""
    return load_settings({"service": "tax", **arguments}, environ=environ or NOTHING)


# -- sources ---------------------------------------------------------------------------------------


def test_first_source_that_names_an_option_wins() -> None:
    """Arguments, then the file, then MESH_*, then Consul's variables, then the default."""
    sources: dict[str, Any] = {
        "CONSUL": "http://consul:8500",
        "MESH": "http://mesh:8500",
        "file": "http://file:8500",
        "argument": "http://argument:8500",
    }
    seen = []
    for known in range(len(sources) + 1):
        given = dict(list(sources.items())[:known])
        environ = {}
        if "CONSUL" in given:
            environ["CONSUL_HTTP_ADDR"] = given["CONSUL"]
        if "MESH" in given:
            environ["MESH_AGENT"] = given["MESH"]
        file = {"agent": given["file"]} if "file" in given else {}
        settings = load_settings(
            {"service": "tax", "agent": given.get("argument")}, file=file, environ=environ
        )
        seen.append(settings.agent)
    assert seen == ["http://127.0.0.1:8500", *sources.values()]


@pytest.mark.parametrize("source", ["arguments", "file", "environment"])
def test_service_name_may_come_from_anywhere(source: str) -> None:
    """The one setting without a default is found in each source."""
    settings = load_settings(
        {"service": "tax"} if source == "arguments" else None,
        file={"service": "tax"} if source == "file" else None,
        environ={"MESH_SERVICE": "tax"} if source == "environment" else NOTHING,
    )
    assert settings.service == "tax"


def test_environment_of_the_process_counts_when_none_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a mapping the process's own environment is read."""
    monkeypatch.setenv("MESH_SERVICE", "from-the-environment")
    assert load_settings().service == "from-the-environment"


def test_every_option_can_be_set_from_the_environment() -> None:
    """MESH_ and the upper-case name, for each option there is, text or not."""
    texts = {
        "service": "tax", "port": "5003", "address": "10.0.0.5", "service_id": "tax-a",
        "tags": "a, b", "meta": "version=1,zone=b", "register": "false",
        "agent": "http://10.0.0.1:8500", "token": "t", "token_file": "/t", "ca_file": "/ca",
        "ca_path": "/cas", "client_cert": "/c", "client_key": "/k", "tls_server_name": "consul",
        "verify_agent": "0", "auth": "u:p", "datacenter": "dc2", "namespace": "team",
        "partition": "biz", "default_policy": "deny", "mode": "shadow", "reading": "envoy",
        "exempt": "/healthz,/ready", "shadow": "/new", "domain": "mesh", "locality": "eu/a",
        "wait": "1m", "check_ttl": "30s",
        "ready_timeout": "500ms", "poll": "2s", "max_answer_bytes": "1000", "plugins": "false",
        "plaintext_beyond_loopback": "true", "deny_in_handshake": "true",
        "max_connection_age": "1h", "max_unread_body": "0", "unread_body_timeout": "2s",
        "h2_max_resets": "50",
        "keep_file": "/keep", "keep_key": "00", "keep_max_age": "24h",
    }  # fmt: skip
    assert set(texts) == set(NAMES)
    settings = load_settings(environ={f"MESH_{k.upper()}": v for k, v in texts.items()})
    assert settings == Settings(
        service="tax", port=5003, address="10.0.0.5", service_id="tax-a", tags=("a", "b"),
        meta={"version": "1", "zone": "b"}, register=False, agent="http://10.0.0.1:8500",
        token="t", token_file="/t", ca_file="/ca", ca_path="/cas", client_cert="/c",
        client_key="/k", tls_server_name="consul", verify_agent=False, auth="u:p",
        datacenter="dc2", namespace="team", partition="biz", default_policy="deny",
        mode="shadow", reading="envoy", exempt=("/healthz", "/ready"), shadow=("/new",),
        domain="mesh", wait=60.0, locality="eu/a",
        check_ttl=30.0, ready_timeout=0.5, poll=2.0, max_answer_bytes=1000, plugins=False,
        plaintext_beyond_loopback=True, deny_in_handshake=True, max_connection_age=3600.0,
        max_unread_body=0, unread_body_timeout=2.0, h2_max_resets=50,
        keep_file="/keep", keep_key="00", keep_max_age=86400.0,
    )  # fmt: skip


def test_empty_variables_count_as_unset() -> None:
    """``MESH_PORT=`` in a compose file means nothing, not an error."""
    environ = {f"MESH_{name.upper()}": "" for name in NAMES} | {
        "MESH_SERVICE": "tax", "CONSUL_HTTP_ADDR": "", "CONSUL_HTTP_TOKEN": "",
        "CONSUL_HTTP_SSL": "", "CONSUL_HTTP_SSL_VERIFY": "",
    }  # fmt: skip
    assert load_settings(environ=environ) == Settings(service="tax")


def test_arguments_that_are_none_count_as_not_given() -> None:
    """Doors pass on what they were given, ``None`` included."""
    settings = load_settings({"service": None, "port": None}, file={"service": "tax", "port": 1})
    assert (settings.service, settings.port) == ("tax", 1)


def test_no_service_name_is_an_error_that_says_where_to_put_it() -> None:
    """One line: what is missing, and both ways out."""
    for none in ({}, {"service": ""}):
        with pytest.raises(ConfigError, match=r"no service name: .*service = .*MESH_SERVICE"):
            load_settings(none, environ=NOTHING, where="the [mesh] table")


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("servce", "service"),
        ("default-policy", "default_policy"),
        ("tokenfile", "token_file"),
        ("adress", "address"),
        ("datacentre", "datacenter"),
        ("Service", "service"),
        ("exempts", "exempt"),
        ("ttl", "check_ttl"),
    ],
)
def test_unknown_option_names_the_nearest_known_one(written: str, nearest: str) -> None:
    """A typing mistake ends the start, and the message says what was meant."""
    message = f"the \\[mesh\\] table: unknown option {written!r}; .* is {nearest!r}"
    with pytest.raises(ConfigError, match=message):
        load_settings({"service": "tax"}, file={written: "x"}, environ=NOTHING)
    with pytest.raises(ConfigError, match=f"the arguments: unknown option {written!r}"):
        load(**{written: "x"})


@pytest.mark.parametrize(
    ("environ", "options", "said"),
    [
        ({"MESH_WAIT": "x"}, {}, " (MESH_WAIT in the environment)"),
        ({"CONSUL_HTTP_ADDR": "ftp://x"}, {}, "unix:// (CONSUL_HTTP_ADDR)"),
        ({"CONSUL_HTTP_TOKEN": "a b\n"}, {}, "(CONSUL_HTTP_TOKEN)"),
        ({"MESH_PORT": "tcp://10.0.0.1:80"}, {}, "(MESH_PORT in the environment)"),
        ({"MESH_PORT": "70000"}, {}, "(MESH_PORT in the environment)"),
        ({"MESH_WAIT": "x"}, {"wait": "y"}, "m or h"),
    ],
)
def test_an_unusable_value_names_the_variable(
    environ: dict[str, str], options: dict[str, Any], said: str
) -> None:
    """Kubernetes sets MESH_PORT for a service named mesh: who reads the line looks there."""
    with pytest.raises(ConfigError) as caught:
        load(environ, **options)
    assert str(caught.value).endswith(said)


def test_flask_names_are_told_as_flask_spells_them() -> None:
    """Names and values of ``app.config``."""
    for file, said in (
        ({"servce": "x"}, "app.config: unknown option 'MESH_SERVCE'; .* is 'MESH_SERVICE'"),
        ({"service": "x", "wait": "y"}, "wait = 'y': .* \\(MESH_WAIT in app.config\\)"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_settings(file=file, environ=NOTHING, where="app.config", prefix="MESH_")


def test_a_misspelt_variable_is_found_and_others_are_left_alone() -> None:
    """The namespace is shared: only what is surely meant for us is told."""
    environ = {"MESH_REGSTER": "0", "MESH_BIND": "x", "MESH_WAIT": "5", "MESH_SIZE": "3", "A": "b"}
    assert near_misses(environ) == [
        "MESH_REGSTER in the environment is no setting: is MESH_REGISTER meant?"
    ]


def test_even_a_far_name_gets_a_suggestion() -> None:
    """There is always a nearest known one."""
    with pytest.raises(ConfigError, match="the nearest known one is"):
        load(zzzzzzzz=1)


def test_flask_options_are_the_mesh_keys_without_prefix() -> None:
    """``app.config["MESH_SERVICE"]`` is the option ``service``; others are not ours."""
    config = {"MESH_SERVICE": "tax", "MESH_EXEMPT": ["/a"], "SECRET_KEY": CANARY, "DEBUG": True}
    assert flask_options(config) == {"service": "tax", "exempt": ["/a"]}
    assert flask_options({"MESH_TOKEN": None}) == {}


def test_offered_options_reach_the_server() -> None:
    """What an application offers is there for the mesh that its server starts; copies only."""
    before = offered_options()
    try:
        offer_options({"datacenter": "dc7"})
        offered_options()["datacenter"] = "dc8"
        assert offered_options() == before | {"datacenter": "dc7"}
    finally:
        from mesh_middleware import config

        config._offered.clear()
        config._offered.update(before)


# -- Consul's own variables ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "option"),
    [
        ("CONSUL_HTTP_TOKEN", "token"),
        ("CONSUL_HTTP_TOKEN_FILE", "token_file"),
        ("CONSUL_HTTP_AUTH", "auth"),
        ("CONSUL_CACERT", "ca_file"),
        ("CONSUL_CAPATH", "ca_path"),
        ("CONSUL_TLS_SERVER_NAME", "tls_server_name"),
        ("CONSUL_NAMESPACE", "namespace"),
        ("CONSUL_PARTITION", "partition"),
    ],
)
def test_consul_variable_sets_its_option(variable: str, option: str) -> None:
    """What the shell holds for Consul's own tools works here."""
    assert getattr(load({variable: "value"}), option) == "value"


def test_client_certificate_variables_come_in_pairs() -> None:
    """Consul: both client certificate and client key must be provided."""
    both = {"CONSUL_CLIENT_CERT": "/c", "CONSUL_CLIENT_KEY": "/k"}
    settings = load(both)
    assert (settings.client_cert, settings.client_key) == ("/c", "/k")
    for variable in both:
        with pytest.raises(ConfigError, match="both or neither"):
            load({variable: both[variable]})


@pytest.mark.parametrize(
    ("environ", "agent"),
    [
        ({}, "http://127.0.0.1:8500"),
        ({"CONSUL_HTTP_ADDR": "10.0.0.1:8500"}, "http://10.0.0.1:8500"),
        ({"CONSUL_HTTP_ADDR": "http://10.0.0.1:8500"}, "http://10.0.0.1:8500"),
        ({"CONSUL_HTTP_ADDR": "http://10.0.0.1/prefix"}, "http://10.0.0.1/prefix"),
        ({"CONSUL_HTTP_ADDR": "https://10.0.0.1:8501"}, "https://10.0.0.1:8501"),
        ({"CONSUL_HTTP_ADDR": "[::1]:8500"}, "http://[::1]:8500"),
        ({"CONSUL_HTTP_ADDR": "unix:///run/consul.sock"}, "unix:///run/consul.sock"),
        ({"CONSUL_HTTP_SSL": "true"}, "https://127.0.0.1:8500"),
        ({"CONSUL_HTTP_SSL": "1", "CONSUL_HTTP_ADDR": "10.0.0.1:8501"}, "https://10.0.0.1:8501"),
        ({"CONSUL_HTTP_SSL": "t", "CONSUL_HTTP_ADDR": "http://10.0.0.1"}, "https://10.0.0.1"),
        ({"CONSUL_HTTP_SSL": "false", "CONSUL_HTTP_ADDR": "https://10.0.0.1"}, "https://10.0.0.1"),
        ({"CONSUL_HTTP_SSL": "yes", "CONSUL_HTTP_ADDR": "10.0.0.1:8500"}, "http://10.0.0.1:8500"),
        (
            {"CONSUL_HTTP_SSL": "true", "CONSUL_HTTP_ADDR": "unix:///run/consul.sock"},
            "unix:///run/consul.sock",
        ),
    ],
)
def test_address_is_read_as_consuls_clients_do(environ: dict[str, str], agent: str) -> None:
    """A bare address is HTTP; SSL turns TLS on and never off; a bad boolean is ignored."""
    assert load(environ).agent == agent


@pytest.mark.parametrize(
    ("text", "verified"),
    [("false", False), ("0", False), ("F", False), ("true", True), ("no", True), ("", True)],
)
def test_only_a_clear_false_turns_verification_off(text: str, verified: bool) -> None:
    """Go's booleans; anything else leaves the agent's certificate verified."""
    assert load({"CONSUL_HTTP_SSL_VERIFY": text}).verify_agent is verified


@pytest.mark.parametrize(
    ("agent", "rule"),
    [
        ("ftp://127.0.0.1", "starts with http://"),
        ("127.0.0.1:8500", "starts with http://"),
        ("consul", "starts with http://"),
        ("http://", "host"),
        ("https:///v1", "host"),
        ("http://127.0.0.1:99999", "Port"),
        ("http://127.0.0.1:port", "port"),
        ("http://[::1", "address"),
        ("unix://", "path"),
        ("http://127.0.0.1:8500?token=x", "query"),
        ("http://127.0.0.1:8500#x", "query"),
        ("http://bad..name:8500", "label empty"),
        ("http://127.0.0.1:8500 ", "spaces"),
        ("http://127.0.0.1:8500\n", "spaces"),
    ],
)
def test_address_that_leads_nowhere_is_refused_at_once(agent: str, rule: str) -> None:
    """Before a thread is started and fails where nobody sees it."""
    with pytest.raises(ConfigError, match=rule):
        load(agent=agent)


def test_address_with_a_password_is_refused_without_showing_it() -> None:
    """The address is shown in logs and status: a secret has its own option."""
    with pytest.raises(ConfigError, match="auth") as caught:
        load(agent=f"http://user:{CANARY}@127.0.0.1:8500")
    assert CANARY not in str(caught.value)


def test_token_of_a_stronger_source_is_not_beaten_by_a_weaker_file() -> None:
    """-token beats CONSUL_HTTP_TOKEN_FILE, which beats CONSUL_HTTP_TOKEN: source comes first."""
    environ = {"CONSUL_HTTP_TOKEN_FILE": "/weak", "CONSUL_HTTP_TOKEN": "weakest"}
    assert load(environ).token_file == "/weak"
    assert load(environ, token="strong").token_file == ""
    assert load(environ, token="strong").token == "strong"
    both = load(environ, token="strong", token_file="/strong")
    assert (both.token, both.token_file) == ("strong", "/strong")
    named = load({**environ, "MESH_TOKEN": "mine"})
    assert (named.token, named.token_file) == ("mine", "")


# -- values ----------------------------------------------------------------------------------------

READ: list[tuple[str, Any, Any]] = [
    ("port", 5003, 5003),
    ("port", "5003", 5003),
    ("port", 65535, 65535),
    ("register", True, True),
    ("register", "T", True),
    ("register", "FALSE", False),
    ("tags", ["a", "b"], ("a", "b")),
    ("tags", ("a",), ("a",)),
    ("tags", "a,, b ,", ("a", "b")),
    ("tags", "", ()),
    ("meta", {"a": "1"}, {"a": "1"}),
    ("meta", "a=1,b=x=y", {"a": "1", "b": "x=y"}),
    ("meta", "", {}),
    ("wait", 12, 12.0),
    ("wait", 0.5, 0.5),
    ("wait", "250ms", 0.25),
    ("wait", "90s", 90.0),
    ("wait", "5m", 300.0),
    ("ready_timeout", 0, 0.0),
    ("ready_timeout", "0", 0.0),
    ("check_ttl", "1h", 3600.0),
    ("poll", 0, 0.0),
    ("poll", "250ms", 0.25),
    ("mode", "shadow", "shadow"),
    ("reading", "envoy", "envoy"),
    ("default_policy", "deny", "deny"),
    ("exempt", "/healthz, /a/b", ("/healthz", "/a/b")),
    ("exempt", ["/"], ("/",)),
    ("service", "tax", "tax"),
]

UNUSABLE: list[tuple[str, Any, str]] = [
    ("port", "http", "whole number"),
    ("port", 5.0, "whole number"),
    ("port", True, "whole number"),
    ("port", -1, "0 to 65535"),
    ("port", 65536, "0 to 65535"),
    ("port", [5003], "whole number"),
    ("register", "yes", "true or false"),
    ("register", 1, "true or false"),
    ("register", [], "true or false"),
    ("verify_agent", "off", "true or false"),
    ("tags", 5, "list of texts"),
    ("tags", [1], "list of texts"),
    ("tags", {"a": "b"}, "list of texts"),
    ("meta", ["a"], "table of texts"),
    ("meta", "a", "key=value"),
    ("meta", {"a": 1}, "a text"),
    ("wait", "soon", "a duration"),
    ("wait", "5 minutes", "a duration"),
    ("wait", True, "seconds"),
    ("wait", [1], "seconds"),
    ("wait", -1, "seconds"),
    ("wait", 0, "seconds"),
    ("wait", float("nan"), "seconds"),
    ("wait", float("inf"), "seconds"),
    ("check_ttl", 0, "seconds"),
    ("check_ttl", "0s", "seconds"),
    ("ready_timeout", "-1s", "a duration"),
    ("poll", 0.01, "seconds from 0.1 on, or 0"),
    ("poll", "often", "a duration"),
    ("max_answer_bytes", 0, "at least"),
    ("max_answer_bytes", -5, "at least"),
    ("max_unread_body", -1, "at least"),
    ("h2_max_resets", 0, "at least 1"),
    ("max_unread_body", "much", "whole number"),
    ("unread_body_timeout", -1, "seconds"),
    ("mode", "off", "enforce, shadow"),
    ("mode", "Shadow", "enforce, shadow"),
    ("mode", ["shadow"], "enforce, shadow"),
    ("reading", "lenient", "strict, envoy"),
    ("default_policy", "maybe", "allow, deny"),
    ("default_policy", True, "allow, deny"),
    ("service", 5, "a text"),
    ("service", "a/b", "without /"),
    ("service", "*", r"not \*"),
    ("token", 5, "a text"),
    ("exempt", "healthz", "canonical path"),
    ("exempt", "/a?b", "canonical path"),
    ("exempt", "/a%20b", "canonical path"),
    ("exempt", "//a", "canonical path"),
]


@pytest.mark.parametrize(("name", "given", "value"), READ)
def test_value_is_read(name: str, given: Any, value: Any) -> None:
    """Each option takes its own type, and the text that an environment can hold."""
    found = getattr(load(**{name: given}), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("name", "given", "rule"), UNUSABLE)
def test_unusable_value_is_refused_with_name_value_and_rule(
    name: str, given: Any, rule: str
) -> None:
    """The message names the option, quotes the value, and says what is expected."""
    with pytest.raises(ConfigError, match=rule) as caught:
        load(**{name: given})
    message = str(caught.value)
    assert name in message
    if name != "token":
        shown = given[0] if isinstance(given, list) and given else given
        assert str(shown) in message


@pytest.mark.parametrize("name", ["token", "auth"])
def test_secret_is_never_shown(name: str) -> None:
    """Not in repr, not in str, not in the error about it."""
    settings = load(**{name: CANARY})
    assert CANARY not in repr(settings)
    assert CANARY not in str(settings)
    for wrong in ([CANARY], {CANARY: 1}, f"{CANARY}\r\nX-Consul-Token: other", f"{CANARY}é\x00"):
        with pytest.raises(ConfigError, match=name) as caught:
            load(**{name: wrong})
        assert CANARY not in str(caught.value)


def test_instance_is_named_after_service_and_port() -> None:
    """``<service>-<port>`` unless set; two instances on one host differ."""
    assert load().instance_id == "tax"
    assert load(port=5003, address="10.0.0.5").instance_id == "tax-10.0.0.5-5003"
    assert load(port=5003, service_id="mine").instance_id == "mine"


def test_settings_are_immutable() -> None:
    """What a mesh was started with does not change under it."""
    with pytest.raises(AttributeError):
        load().service = "other"  # type: ignore[misc]


def test_defaults_are_told_for_every_option() -> None:
    """The reference page can be made from the code."""
    told = defaults()
    assert list(told) == list(NAMES) == [f.name for f in fields(Settings)]
    assert told["agent"] == "http://127.0.0.1:8500"
    assert told["mode"] == "enforce"
    assert told["meta"] == {}


def test_every_option_is_documented() -> None:
    """An option that is not in the docstring is in no reference page either."""
    documented = re.findall(r"^\s+(\w+): ", Settings.__doc__ or "", re.MULTILINE)
    assert set(documented) >= set(NAMES)


# -- durations -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("15", 15.0), ("15s", 15.0), ("500ms", 0.5), ("5m", 300.0), ("1h", 3600.0), ("1.5h", 5400.0),
     (" 3s ", 3.0)],
)  # fmt: skip
def test_duration_is_read(text: str, seconds: float) -> None:
    """A number with ms, s, m or h; seconds when it is bare."""
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1m30s", "1d", "1 s", "1e3", ".5s", "1,5s"])
def test_text_that_is_no_duration_is_refused(text: str) -> None:
    """What is not understood whole is not guessed at."""
    with pytest.raises(ValueError, match="a duration is"):
        parse_seconds(text)


@given(
    st.dictionaries(
        st.sampled_from(NAMES), st.text() | st.integers() | st.none() | st.lists(st.text())
    )
)
def test_any_values_are_settings_or_a_config_error(options: dict[str, Any]) -> None:
    """No value makes the reading fail in another way."""
    try:
        assert load_settings(options, environ=NOTHING).service
    except ConfigError:
        pass
