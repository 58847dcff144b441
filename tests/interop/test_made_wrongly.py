"""Applications and variables written wrongly, and an agent that is none: what the commands say."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ..support.servers import Hypercorn, clean_environment
from .apps import FLASK, STARLETTE
from .conftest import Serve
from .test_bad_input import PYTHON_CONFIG, only_line

MISSPELT = FLASK.replace("MeshNative(app)", 'app.config["MESH_SERVCE"] = "x"\nMeshNative(app)')
UNUSABLE = FLASK.replace("MeshNative(app)", 'app.config["MESH_CHECK_TTL"] = "x"\nMeshNative(app)')
WRONG_PATH = FLASK.replace("MeshNative(app)", 'MeshNative(app, exempt=["open"])')
TWICE = FLASK.replace("MeshNative(app)", "MeshNative(app)\nMeshNative(app)")
WRONG_MIDDLEWARE = STARLETTE.replace("MeshAuthz)\n", 'MeshAuthz, shadow=["open"])\n')

MISTAKES = [
    (MISSPELT, "app.config: unknown option 'MESH_SERVCE'; the nearest known one is 'MESH_SERVICE'"),
    (UNUSABLE, "check_ttl = 'x': a duration is a number .* \\(MESH_CHECK_TTL in app.config\\)"),
    (WRONG_PATH, "exempt = 'open': a canonical path such as /healthz is expected"),
    (TWICE, "is in the mesh already"),
]
WAYS = ["misspelt", "unusable", "no path", "twice"]


@pytest.mark.parametrize(("app", "said"), MISTAKES, ids=WAYS)
def test_a_mistake_in_a_flask_application_is_one_line(app: str, said: str, serve: Serve) -> None:
    """As written in ``app.config``; and ``hypercorn`` fails, instead of ending with 0."""
    assert re.search(said, only_line(serve(app, listeners=0)))


@pytest.mark.parametrize(("app", "said"), MISTAKES, ids=WAYS)
def test_the_flask_command_tells_it_in_one_line_too(app: str, said: str, tmp_path: Path) -> None:
    """As it tells its own errors; other programs get the `ConfigError`."""
    (tmp_path / "app.py").write_text(app)
    done = subprocess.run(
        [sys.executable, "-m", "flask", "routes"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"Error: mesh_middleware: .*{said}\n", done.stderr)


@pytest.mark.parametrize("worker", ["asyncio", "trio"])
def test_a_mistake_in_middleware_ends_the_start(worker: str, serve: Serve) -> None:
    """Starlette makes it in the lifespan, whose errors Hypercorn passes over, to serve 500s."""
    server = serve(WRONG_MIDDLEWARE, worker_class=worker, listeners=0)
    assert server.wait_end() != 0
    assert "Traceback" not in server.output and "Running on" not in server.output
    assert server.lines[-1].startswith("mesh_middleware: shadow = 'open': a canonical path")


def test_an_address_that_is_taken_is_one_line(serve: Serve) -> None:
    """With ``python:...``; a plain file is read, and its address opened, before we are there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        variables = {"MESH_BIND": bind, "MESH_SERVICE": "tax"}
        server = serve(arguments=PYTHON_CONFIG, environment=variables, listeners=0)
        line = only_line(server)
    assert f"cannot listen at {bind}: Address already in use" in line and "MESH_BIND" in line


def test_other_configurations_keep_their_own_errors(tmp_path: Path) -> None:
    """One that does not ask for the mesh is none of our business."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = ("--config", "file:own.py", "--bind", bind, "app:app")
        server = Hypercorn(tmp_path, STARLETTE, "", arguments=arguments)
        (tmp_path / "own.py").write_text("import mesh_middleware\n")
        with server:
            assert server.wait_end() != 0
    assert "OSError" in server.output and "cannot listen" not in server.output


def test_a_misspelt_variable_is_told(serve: Serve) -> None:
    """Without a service in the end of the line that misses it, else as a warning of the log."""
    variables = {"MESH_SERVCE": "tax", "MESH_BIND": "127.0.0.1:0"}
    server = serve(arguments=PYTHON_CONFIG, environment=variables, listeners=0)
    assert "MESH_SERVCE in the environment is no setting: is MESH_SERVICE meant?" in only_line(
        server
    )
    variables = {"MESH_DEFAULT_POLCY": "deny", "MESH_OF_SOMEBODY": "else"}
    server = serve(environment=variables, folder="served")
    server.wait_output("^MESH_DEFAULT_POLCY in the environment is no setting: is .*POLICY meant")
    assert "MESH_OF_SOMEBODY" not in server.output


def test_a_token_file_that_is_missing_is_told_once(serve: Serve) -> None:
    """Seven questions need it; the reader needs to know once."""
    server = serve(mesh={"service": "tax", "token_file": "/nowhere/token"})
    assert len(re.findall("token_file /nowhere/token: No such file", server.output)) == 1


@pytest.fixture
def web_server() -> Iterator[str]:
    """Answers everything with a page."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<html>It works!</html>"
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_web_server_is_no_agent(web_server: str, serve: Serve) -> None:
    """One line names the address that was taken for a Consul's; no handshake succeeds."""
    server = serve(agent=web_server)
    (line,) = [line for line in server.lines if "agent_answer" in line]
    assert f"{web_server}: no Consul: it answers text/html" in line
    assert "until then no handshake succeeds" in line
