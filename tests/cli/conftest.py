"""What the command's tests share: the command in this process, and a real Consul."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from mesh_middleware.cli import main
from tests.support.consul import RealConsul

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_mesh_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the shell says of Consul is not for these tests; wide enough for every table."""
    for name in list(os.environ):
        if name.startswith(("CONSUL_", "MESH_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``mesh`` in this process: exit code, standard output, standard error."""

    def call(*words: str) -> tuple[int, str, str]:
        code = main(words)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def old_consul() -> Iterator[RealConsul]:
    """The real Consul that tests run on: 1.8.7 where it is Debian's."""
    with RealConsul() as consul:
        yield consul
