"""What can be known of the Hypercorn that imports an application."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypercorn.config import Config, Sockets

from mesh_middleware import hosting


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Each test begins under no Hypercorn, and leaves none behind."""
    before, hosting._seen = hosting._seen, None
    yield
    hosting._seen = before


def test_under_no_hypercorn_there_is_nothing() -> None:
    """The hint names the command that serves the mesh."""
    assert hosting.find_config() is hosting.find_sockets() is hosting.find_shutdown_event() is None
    assert "hypercorn --config mesh MODULE:app" in hosting.why_plain()


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("/venv/bin/flask", "Flask's development server"),
        ("/lib/uvicorn/__main__.py", "Uvicorn"),
        ("gunicorn", "Gunicorn"),
        ("/srv/run.py", "this process"),
        ("", "this process"),
    ],
)
def test_a_server_without_a_door_is_named(
    command: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who started the wrong one reads which, and which is the right one."""
    monkeypatch.setattr("sys.argv", [command])
    assert hosting.why_plain().startswith(f"{named} serves no mutual TLS")


def test_a_configuration_on_the_stack_is_found_and_kept() -> None:
    """At import; later, in a request, it is on no stack any more."""
    made = Config()

    def run() -> None:
        config = made
        assert hosting.find_config() is config

    run()
    assert hosting.find_config() is made


def test_another_value_of_that_name_is_not_taken() -> None:
    """An application may well have a ``config`` of its own."""
    config = {"certfile": "mesh"}
    assert config and hosting.find_config() is None


def test_open_sockets_are_found() -> None:
    """What is bound is known before the application is imported."""
    sockets = Sockets([], [], [])
    assert hosting.find_sockets() is sockets


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"certfile": "mesh", "keyfile": "mesh"}, "insecure_bind"),
        ({"certfle": "mesh", "keyfile": "mesh"}, "'certfle' for 'certfile'"),
        ({"certfile": "mesh", "key_file": "mesh"}, "'key_file' for 'keyfile'"),
        ({"certfile": "mesh"}, "keyfile is None"),
        ({"certfile": "a.pem", "keyfile": "a.key"}, "certfile is 'a.pem'"),
        ({}, "was it started with --config mesh?"),
    ],
)
def test_why_it_is_plain_is_told(keys: dict[str, str], said: str) -> None:
    """The key that is misspelt, or missing, or another's."""
    config = Config()
    for key, value in keys.items():
        setattr(config, key, value)
    assert said in hosting.why_plain()
    assert hosting.is_marked(config) is (said == "insecure_bind")


def test_the_table_is_a_table_or_empty() -> None:
    """``mesh = 7`` in the file is none."""
    config = Config()
    assert hosting.table(config) == {}
    config.mesh = {"service": "tax"}  # type: ignore[attr-defined]
    assert hosting.table(config) == {"service": "tax"}
    config.mesh = 7  # type: ignore[attr-defined]
    assert hosting.table(config) == {}
