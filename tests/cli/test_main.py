"""The command as such: exit codes, one line for what is wrong, a quick start."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.servers import clean_environment

from .conftest import Run

WITHOUT_TYPER = """
import sys
sys.modules["typer"] = None
from mesh_middleware.cli import main
sys.exit(main(["status"]))
"""
WHAT_HELP_IMPORTS = """
import sys
from mesh_middleware.cli import main
main(["--help"])
print(sorted({"httpx", "cryptography", "hypercorn", "mesh_middleware.mesh"} & set(sys.modules)))
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.process
def test_without_its_extra_the_command_names_it() -> None:
    """One line, exit code 2, no traceback."""
    done = python(WITHOUT_TYPER)
    assert done.returncode == 2
    assert done.stderr == (
        "mesh: this command needs its extra: pip install 'mesh-middleware[cli]'\n"
    )


@pytest.mark.process
def test_help_imports_nothing_heavy() -> None:
    """``mesh --help`` starts no HTTP client, no cryptography and no mesh."""
    assert python(WHAT_HELP_IMPORTS).stdout.splitlines()[-1] == "[]"


@pytest.mark.process
def test_the_module_is_the_command_too() -> None:
    """``python -m mesh_middleware.cli`` hands its exit code on."""
    done = subprocess.run(
        [sys.executable, "-m", "mesh_middleware.cli", "nonsense"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.process
def test_a_reader_that_leaves_is_no_error_to_talk_about() -> None:
    """``mesh --help | true`` prints no traceback."""
    command = f"{sys.executable} -m mesh_middleware.cli --help | true"
    done = subprocess.run(
        command, shell=True, env=clean_environment(), capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""


def test_no_words_print_the_help(run: Run) -> None:
    """``mesh`` alone is asking what there is."""
    code, out, err = run()
    assert code == 0
    assert all(name in out for name in ("agent", "demo", "intention", "status"))
    assert err == ""


@pytest.mark.process
@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["intention"],
        ["intention", "create"],
        ["intention", "create", "only-one", "--allow"],
        ["intention", "create", "a", "b"],
        ["intention", "create", "a", "b", "--allow", "--permission", "{}"],
        ["intention", "create", "a", "b", "--permission", "not json"],
        ["intention", "create", "a", "b", "--permission", "[]"],
        ["intention", "create", "a", "b", "--file", "/nowhere/rules.json"],
        ["intention", "list", "--agent", "ftp://127.0.0.1"],
        ["status", "--bogus"],
        ["agent", "--default-policy", "maybe"],
        ["demo", "--consul", "/nowhere/consul"],
        ["demo", "--consul", sys.executable],
        ["demo", "--consul", "x", "--use-existing"],
    ],
    ids=" ".join,
)
def test_what_the_user_got_wrong_is_one_line_and_exit_code_2(run: Run, words: list[str]) -> None:
    """No traceback, nothing on standard output, a sentence that begins with the command."""
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("mesh: ") and err.count("\n") == 1


@pytest.mark.parametrize("words", [["status"], ["intention", "list"]], ids=" ".join)
def test_an_agent_that_is_away_is_one_line_and_exit_code_1(run: Run, words: list[str]) -> None:
    """The line names the address that was tried."""
    code, out, err = run(*words, "--agent", "127.0.0.1:1")
    assert (code, out) == (1, "")
    assert "http://127.0.0.1:1" in err and err.count("\n") == 1
