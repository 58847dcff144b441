"""PEP 3333 as a server has to keep it, also under the standard library's validator."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from io import BufferedReader, BytesIO
from typing import Any
from wsgiref.validate import validator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_middleware.inbound.wsgi_bridge import WsgiBridge

from ..support.asgi import Exchange, piece, run

LOGGER = "mesh_middleware.inbound"
PLAIN = [("Content-Type", "text/plain")]

App = Callable[[Any, Any], Any]


def ask(app: App, method: str = "GET", messages: Any = None, **scope: Any) -> Exchange:
    """Let *app* answer one request."""

    async def work() -> Exchange:
        exchange = Exchange(messages=messages, method=method, **scope)
        return await exchange.through(WsgiBridge(app))

    return run(work)


def answering(result: Any, *headers: tuple[str, str], status: str = "200 OK") -> App:
    """An application that returns *result*, or what it gives for each call."""

    def app(environ: Any, start: Any) -> Any:
        start(status, [*PLAIN, *headers])
        return result() if callable(result) else result

    return app


def later(environ: Any, start: Any) -> Iterator[bytes]:
    """Calls ``start_response`` with its first piece."""
    start("200 OK", PLAIN)
    yield b"all"


def empty_first(environ: Any, start: Any) -> Iterator[bytes]:
    """Empty pieces ask for nothing to be sent yet."""
    yield b""
    yield b""
    start("200 OK", PLAIN)
    yield b"all"


def writes(environ: Any, start: Any) -> list[bytes]:
    """Uses ``write`` only."""
    write = start("200 OK", PLAIN)
    write(b"a")
    write(b"")
    write(b"ll")
    return []


def writes_and_returns(environ: Any, start: Any) -> list[bytes]:
    """Uses both."""
    start("200 OK", PLAIN)(b"a")
    return [b"ll"]


def writes_all(environ: Any, start: Any) -> list[bytes]:
    """Writes more than its length."""
    write = start("200 OK", [*PLAIN, ("Content-Length", "3")])
    write(b"al")
    write(b"l and more")
    write(b"and more")
    return []


def a_file(environ: Any, start: Any) -> Any:
    """Uses ``wsgi.file_wrapper``."""
    start("200 OK", PLAIN)
    return environ["wsgi.file_wrapper"](BytesIO(b"all"), 2)


def restarts(environ: Any, start: Any) -> list[bytes]:
    """Changes its mind before anything was sent."""
    start("200 OK", [*PLAIN, ("Content-Length", "99")])
    try:
        raise ValueError
    except ValueError:
        start("200 OK", PLAIN, sys.exc_info())
    return [b"all"]


WHOLE: dict[str, App] = {
    "list": answering([b"all"]),
    "list of many": answering([b"a", b"", b"l", b"l"]),
    "tuple": answering((b"all",)),
    "generator": answering(lambda: iter([b"a", b"ll"])),
    "length": answering([b"all"], ("Content-Length", "3")),
    "length and generator": answering(lambda: iter([b"a", b"ll"]), ("Content-Length", "3")),
    "too long": answering([b"all and more"], ("Content-Length", "3")),
    "many too long": answering([b"a", b"ll", b" and", b" more"], ("Content-Length", "3")),
    "generator too long": answering(
        lambda: iter([b"al", b"l and", b" more"]), ("Content-Length", "3")
    ),
    "start_response late": later,
    "empty pieces first": empty_first,
    "write": writes,
    "write and return": writes_and_returns,
    "write too much": writes_all,
    "file": a_file,
    "start_response again": restarts,
}


@pytest.mark.parametrize("name", WHOLE)
def test_every_shape_of_a_response(name: str) -> None:
    """Arrives whole, with its end."""
    exchange = ask(WHOLE[name])
    assert (exchange.status, exchange.body, exchange.whole) == (200, b"all", True)


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "empty pieces first"])
def test_the_validator_has_no_objection(name: str) -> None:
    """It has one against applications that yield empty pieces before they start."""
    exchange = ask(validator(WHOLE[name]))
    assert (exchange.status, exchange.body, exchange.whole) == (200, b"all", True)


@pytest.mark.parametrize(
    "result",
    [[], (), [b""], lambda: iter(()), lambda: iter([b""])],
    ids=["list", "tuple", "empty piece", "no piece", "iterator"],
)
@pytest.mark.parametrize(
    ("method", "status"), [("GET", "200 OK"), ("GET", "204 No Content"), ("HEAD", "200 OK")]
)
def test_a_response_without_a_body(result: Any, method: str, status: str) -> None:
    """Has its status, its headers and its end."""
    exchange = ask(answering(result, ("X-A", "1"), status=status), method)
    assert exchange.status == int(status[:3]) and exchange.headers["x-a"] == "1"
    assert (exchange.body, exchange.whole) == (b"", True)


ENDLESS = [lambda: iter(lambda: b"body", None)]


@pytest.mark.parametrize("result", [[b"body"], *ENDLESS], ids=["list", "endless"])
@pytest.mark.parametrize(
    ("method", "status", "kept"),
    [
        ("HEAD", "200 OK", True),
        ("GET", "304 Not Modified", False),
        ("GET", "204 No Content", False),
    ],
)
def test_a_body_that_may_not_be_is_dropped(
    result: Any, method: str, status: str, kept: bool
) -> None:
    """And its length stays for HEAD, where it tells of the other response; RFC 9110, 8.6."""
    exchange = ask(answering(result, ("Content-Length", "4000"), status=status), method)
    assert (exchange.status, exchange.body, exchange.whole) == (int(status[:3]), b"", True)
    assert ("content-length" in exchange.headers) is kept


def raises(environ: Any, start: Any) -> Any:
    """Fails before it starts."""
    raise LookupError("secret")


def raises_first(environ: Any, start: Any) -> Iterator[bytes]:
    """Fails before its first piece."""
    start("200 OK", PLAIN)
    raise LookupError("secret")
    yield b""


def exits(environ: Any, start: Any) -> Any:
    """Ends the process, it thinks."""
    sys.exit(3)


def starts_twice(environ: Any, start: Any) -> Any:
    """Without an error to tell of."""
    start("200 OK", PLAIN)
    start("200 OK", PLAIN)
    return [b"twice"]


def starts(status: Any = "200 OK", headers: Any = ()) -> App:
    """An application with these arguments of ``start_response``."""

    def app(environ: Any, start: Any) -> Any:
        start(status, headers)
        return [b"all"]

    return app


FAILING: dict[str, App] = {
    "raises": raises,
    "raises in its first piece": raises_first,
    "exits": exits,
    "never starts": lambda environ, start: [b"all"],
    "never starts, and has no body": lambda environ, start: [],
    "returns nothing": answering(None),
    "returns text": answering("all"),
    "pieces of text": answering(["all"]),
    "a generator of text": answering(lambda: iter(["all"])),
    "starts twice": starts_twice,
    "a short length": answering([], ("Content-Length", "3")),
    "no status": starts(""),
    "a number for a status": starts(200),
    "an informational status": starts("100 Continue"),
    "a status of four digits": starts("2000 OK"),
    "a line in the status": starts("200 OK\r\nX: y"),
    "a line in a value": starts(headers=[("X", "a\r\nY: b")]),
    "a lone newline": starts(headers=[("X", "a\nb")]),
    "NUL in a value": starts(headers=[("X", "a\0b")]),
    "a line in a name": starts(headers=[("X\r\nY", "a")]),
    "a colon in a name": starts(headers=[(":status", "200")]),
    "an empty name": starts(headers=[("", "a")]),
    "a value beyond latin-1": starts(headers=[("X", "\u20ac")]),
    "bytes in a header": starts(headers=[(b"X", b"a")]),
    "a length that is no number": starts(headers=[("Content-Length", "x")]),
    "two lengths": starts(headers=[("Content-Length", "3"), ("content-length", "3")]),
}


@pytest.mark.parametrize("name", FAILING)
def test_an_error_before_the_response_is_500(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """As plain text that tells nothing, and logged once."""
    with caplog.at_level(logging.DEBUG, LOGGER):
        exchange = ask(FAILING[name])
    assert (exchange.status, exchange.whole) == (500, True)
    assert exchange.headers["content-type"].startswith("text/plain")
    assert exchange.body == b"Internal Server Error\n"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and "GET '/'" in record.getMessage()


def fails_later(environ: Any, start: Any) -> Iterator[bytes]:
    """Fails when its status is sent."""
    start("200 OK", PLAIN)
    yield b"before"
    raise LookupError


def restarts_late(environ: Any, start: Any) -> Iterator[bytes]:
    """Changes its mind too late."""
    start("200 OK", PLAIN)
    yield b"before"
    try:
        raise LookupError
    except LookupError:
        start("500 Oops", PLAIN, sys.exc_info())
    yield b"after"


CUT: dict[str, App] = {
    "raises": fails_later,
    "starts again": restarts_late,
    "ends early": answering(lambda: iter([b"before"]), ("Content-Length", "99")),
    "a list that ends early": answering([b"before"], ("Content-Length", "99")),
}


@pytest.mark.parametrize("name", CUT)
def test_an_error_in_the_response_cuts_it(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """What was said before arrives, and no end; logged once."""
    with caplog.at_level(logging.DEBUG, LOGGER):
        exchange = ask(CUT[name])
    assert (exchange.status, exchange.body, exchange.whole) == (200, b"before", False)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and "GET '/'" in record.getMessage()


def test_an_error_after_the_response_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """It cannot be answered any more, and is not lost."""

    class Answer:
        def __iter__(self) -> Iterator[bytes]:
            yield b"all"
            raise LookupError

        def close(self) -> None:
            raise LookupError

    with caplog.at_level(logging.DEBUG, LOGGER):
        exchange = ask(answering(Answer, ("Content-Length", "3")))
        assert exchange.whole

        async def once_more() -> None:
            # Its only thread has logged both when it answers the next.
            bridge = WsgiBridge(answering(Answer, ("Content-Length", "3")), threads=1)
            for _ in range(2):
                await Exchange().through(bridge)

        run(once_more)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) >= 2 and all(record.exc_info for record in errors)


@pytest.mark.parametrize(
    "name",
    ["Connection", "Keep-Alive", "TE", "Trailers", "Transfer-Encoding", "Upgrade"],
)
def test_hop_by_hop_headers_are_dropped(name: str) -> None:
    """They are the server's; over HTTP/2 they would be an error."""
    exchange = ask(answering([b"all"], (name, "x"), ("X-Kept", "\xe4 ")))
    assert name.lower() not in exchange.headers and exchange.headers["x-kept"] == "\xe4"


def test_headers_keep_their_order_and_repeats() -> None:
    """As the application gave them."""
    cookies = [("Set-Cookie", "a=1"), ("X", "y"), ("Set-Cookie", "b=2")]
    exchange = ask(answering([b"all"], *cookies))
    assert exchange.sent[0]["headers"][1:] == [
        (name.lower().encode(), value.encode()) for name, value in cookies
    ]


CLOSED: dict[str, Any] = {
    "to its end": ([b"a", b"b"], "200 OK", "GET"),
    "error": (LookupError(), "200 OK", "GET"),
    "no body": ([b"a", b"b"], "204 No Content", "GET"),
    "text": (["a"], "200 OK", "GET"),
    "empty": ([], "200 OK", "GET"),
}


@pytest.mark.parametrize("name", CLOSED)
def test_close_is_called_once(name: str) -> None:
    """However the iteration ends."""
    result, status, method = CLOSED[name]
    calls: list[str] = []

    class Answer:
        def __iter__(self) -> Iterator[Any]:
            if isinstance(result, Exception):
                raise result
            yield from result

        def close(self) -> None:
            calls.append(name)

    async def work() -> None:
        bridge = WsgiBridge(answering(Answer, status=status), threads=1)
        await Exchange(method=method).through(bridge)
        await Exchange(method=method).through(bridge)  # the one thread has closed the first

    run(work)
    assert calls[:1] == [name] and len(calls) <= 2


Step = tuple[str, int | None]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["read", "readline", "readlines", "next"]),
        st.none() | st.integers(-1, 40),
    ),
    max_size=12,
)


@given(
    pieces=st.lists(st.text("ab\n", max_size=12).map(str.encode), max_size=8),
    steps=STEPS,
    buffer=st.integers(1, 30),
)
def test_wsgi_input_reads_like_a_file(pieces: list[bytes], steps: list[Step], buffer: int) -> None:
    """The same bytes as a file would give, for every order of calls and every cut of the body."""

    def read(file: Any) -> list[Any]:
        found: list[Any] = []
        for name, size in steps:
            if name == "next":
                found.append(next(file, None))
            elif size is None:
                found.append(getattr(file, name)())
            else:
                found.append(getattr(file, name)(size))
        found.append(file.read())
        return found

    seen: list[Any] = []

    def app(environ: Any, start: Any) -> list[bytes]:
        seen.append(read(environ["wsgi.input"]))
        start("200 OK", PLAIN)
        return []

    async def work() -> None:
        messages = [*map(piece, pieces), piece(b"", more=False)]
        exchange = Exchange(messages=messages, http_version="2", method="POST")
        await exchange.through(WsgiBridge(app, body_buffer=buffer))

    run(work)
    assert seen == [read(BufferedReader(BytesIO(b"".join(pieces))))]
