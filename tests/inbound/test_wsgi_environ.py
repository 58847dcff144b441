"""The environ: what the connection and the request line say, and no header but as ``HTTP_``."""

from __future__ import annotations

import sys
from typing import Any
from wsgiref.validate import validator

import pytest

from mesh_middleware.inbound.wsgi_bridge import WsgiBridge
from mesh_middleware.inbound.wsgi_environ import RequestRefusedError, build_environ, content_length

from ..support.asgi import Exchange, run


def scope(target: str = "/", *headers: tuple[bytes, bytes], **more: Any) -> dict[str, Any]:
    """A scope as a server makes it."""
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "https",
        "path": path,
        "raw_path": path.encode("latin-1"),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"tax"), *headers],
        "client": ("10.0.0.7", 50000),
        "server": ("10.0.0.1", 8443),
        **more,
    }


def test_a_whole_environ() -> None:
    """Every key that PEP 3333 names, of the type that it names."""
    found = build_environ(scope("/a%20b?q=%41&r", (b"x-role", b"admin")))
    always = {key: found.pop(key) for key in list(found) if key.startswith("wsgi.")}
    assert found == {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a b",
        "QUERY_STRING": "q=%41&r",
        "SERVER_NAME": "10.0.0.1",
        "SERVER_PORT": "8443",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "mesh_middleware",
        "REMOTE_ADDR": "10.0.0.7",
        "REMOTE_PORT": "50000",
        "RAW_URI": "/a%20b?q=%41&r",
        "REQUEST_URI": "/a%20b?q=%41&r",
        "HTTP_HOST": "tax",
        "HTTP_X_ROLE": "admin",
    }
    assert always["wsgi.url_scheme"] == "https" and always["wsgi.version"] == (1, 0)
    assert always["wsgi.errors"] is sys.stderr and always["wsgi.input_terminated"] is True
    assert (always["wsgi.multithread"], always["wsgi.run_once"]) == (True, False)


def test_the_environ_is_valid() -> None:
    """By the standard library's validator."""

    def app(environ: Any, start: Any) -> list[bytes]:
        start("200 OK", [("Content-Type", "text/plain")])
        return [b"valid"]

    async def work() -> None:
        for target in ("/", "/a%2Fb?x=1", "/%C3%A4"):
            exchange = await Exchange(target).through(WsgiBridge(validator(app)))
            assert exchange.body == b"valid"

    run(work)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("/a/b", "/a/b"),
        ("/a%2Fb", "/a/b"),
        ("/a%252Fb", "/a%2Fb"),
        ("//a//b", "//a//b"),
        ("/a/../b;x", "/a/../b;x"),
        ("/%C3%A4", "/\xc3\xa4"),
        ("/%E4", "/\xe4"),
        ("/%ff%00", "/\xff\x00"),
        ("/a%", "/a%"),
        ("/a%zz", "/a%zz"),
        ("/+", "/+"),
        ("*", "*"),
    ],
)
def test_the_path_is_decoded_once(raw: str, path: str) -> None:
    """From the raw bytes; what is not UTF-8 passes as it came."""
    assert build_environ(scope(raw))["PATH_INFO"] == path


def test_without_a_raw_path_the_decoded_one_counts() -> None:
    """As ASGI allows; then there is no raw target to tell."""
    found = build_environ(scope() | {"path": "/ä", "raw_path": None})
    assert found["PATH_INFO"] == "/\xc3\xa4" and not {"RAW_URI", "REQUEST_URI"} & found.keys()


@pytest.mark.parametrize(
    ("root", "raw", "script", "path"),
    [
        ("/api", "/api/x", "/api", "/x"),
        ("/api", "/api", "/api", ""),
        ("/api", "/api/", "/api", "/"),
        ("/api/", "/api/x", "/api", "/x"),
        ("/api", "/%61pi/x", "/api", "/x"),
        ("/ä", "/%C3%A4/x", "/\xc3\xa4", "/x"),
        ("/", "/x", "", "/x"),
        ("/api", "/api//x", "/api", "//x"),
    ],
)
def test_the_root_path_is_the_script_name(root: str, raw: str, script: str, path: str) -> None:
    """In whole segments."""
    found = build_environ(scope(raw, root_path=root))
    assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == (script, path)


@pytest.mark.parametrize(
    ("raw", "root", "status"),
    [
        ("/apiadmin", "/api", 404),
        ("/api%61dmin", "/api", 404),
        ("/admin", "/api", 404),
        ("/ap", "/api", 404),
        ("admin", "", 400),
        ("", "", 400),
        ("http://tax/admin", "", 400),
    ],
)
def test_what_is_no_path_of_the_application_is_refused(raw: str, root: str, status: int) -> None:
    """Before it runs."""
    with pytest.raises(RequestRefusedError) as caught:
        build_environ(scope(raw, root_path=root))
    assert caught.value.status == status


HEADERS: list[tuple[list[tuple[bytes, bytes]], dict[str, str | None]]] = [
    ([(b"X-Role", b"a")], {"HTTP_X_ROLE": "a"}),
    ([(b"x_role", b"a")], {"HTTP_X_ROLE": None}),
    ([(b"x-role", b"a"), (b"x_role", b"b")], {"HTTP_X_ROLE": "a"}),
    ([(b"x_role", b"b"), (b"x-role", b"a")], {"HTTP_X_ROLE": "a"}),
    ([(b"content_length", b"5")], {"CONTENT_LENGTH": None, "HTTP_CONTENT_LENGTH": None}),
    ([(b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"A", b"")], {"HTTP_A": "1,3,"}),
    ([(b"cookie", b"a=1"), (b"cookie", b"b=2")], {"HTTP_COOKIE": "a=1; b=2"}),
    ([(b"x", b"\xe4")], {"HTTP_X": "\xe4"}),
    ([(b"content-type", b"text/x")], {"CONTENT_TYPE": "text/x", "HTTP_CONTENT_TYPE": None}),
    ([(b"content-length", b"5")], {"CONTENT_LENGTH": "5", "HTTP_CONTENT_LENGTH": None}),
    ([(b"content-length", b"5"), (b"content-length", b"5")], {"CONTENT_LENGTH": "5"}),
    ([(b"content-length", b"5"), (b"transfer-encoding", b"chunked")], {"CONTENT_LENGTH": None}),
    ([(b"script-name", b"/x")], {"SCRIPT_NAME": "", "HTTP_SCRIPT_NAME": "/x"}),
    ([(b"raw-uri", b"/x")], {"RAW_URI": "/", "HTTP_RAW_URI": "/x"}),
    ([(b"request-uri", b"/x")], {"REQUEST_URI": "/"}),
    ([(b"remote-addr", b"1.2.3.4")], {"REMOTE_ADDR": "10.0.0.7"}),
    ([(b"x-forwarded-proto", b"http")], {"wsgi.url_scheme": "https"}),
    ([(b"mesh-middleware.judgement", b"x")], {"mesh_middleware.judgement": None}),
    ([(b"mesh_middleware.judgement", b"x")], {"mesh_middleware.judgement": None}),
    ([(b"wsgi.url-scheme", b"http")], {"wsgi.url_scheme": "https"}),
]


@pytest.mark.parametrize(("headers", "expected"), HEADERS)
def test_headers(headers: list[tuple[bytes, bytes]], expected: dict[str, str | None]) -> None:
    """Each has its own key, and can set no other; repeats are joined."""
    found = build_environ(scope("/", *headers))
    assert {key: found.get(key) for key in expected} == expected


def test_many_repeats_are_joined_once() -> None:
    """Not one by one, which would copy the value each time."""
    found = build_environ(scope("/", *[(b"a", b"x")] * 20_000))
    assert found["HTTP_A"] == ",".join("x" * 20_000)


@pytest.mark.parametrize(
    "values",
    [[b""], [b"-1"], [b"+5"], [b"5 "], [b"5,5"], [b"0x5"], [b"\xb2"], [b"9" * 5000], [b"5", b"6"]],
    ids=str,
)
def test_a_malformed_length_is_400(values: list[bytes]) -> None:
    """Also one that is said twice, differently."""
    with pytest.raises(RequestRefusedError) as caught:
        build_environ(scope("/", *((b"content-length", value) for value in values)))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("version", "headers", "length"),
    [
        ("1.1", [], 0),
        ("1.0", [], 0),
        ("1.1", [(b"content-length", b"7")], 7),
        ("1.1", [(b"transfer-encoding", b"chunked")], None),
        ("2", [], None),
        ("2", [(b"content-length", b"7")], 7),
        ("3", [], None),
    ],
)
def test_the_length_of_the_body(
    version: str, headers: list[tuple[bytes, bytes]], length: int | None
) -> None:
    """Only over HTTP/1 its absence means that there is none."""
    assert content_length(build_environ(scope("/", *headers, http_version=version))) == length


def test_a_unix_socket_has_no_addresses() -> None:
    """The server has a name and a port all the same: PEP 3333 asks for them."""
    found = build_environ(scope(client=None, server=None))
    assert (found["SERVER_NAME"], found["SERVER_PORT"]) == ("localhost", "443")
    assert not {"REMOTE_ADDR", "REMOTE_PORT"} & found.keys()


def test_the_judgement_comes_from_the_scope() -> None:
    """The very object."""
    judgement = object()
    found = build_environ(scope() | {"mesh_middleware.judgement": judgement})
    assert found["mesh_middleware.judgement"] is judgement
    assert "mesh_middleware.judgement" not in build_environ(scope())
