"""The connections to the agent: which are used again, which never, and what an answer is."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from mesh_middleware.consul.connections import Connections, Head, Request
from mesh_middleware.consul.transport import TransportWay
from mesh_middleware.exceptions import AgentAnswerError

from .support.certs import Ca, plain_context
from .support.steps import yield_times

ASKED = Request("GET", "/v1/thing", [])
MOST = 1000
PATIENCE = 10.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Converse = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A loopback server; counts its connections."""

    def __init__(self, converse: Converse, tls: ssl.SSLContext | None = None) -> None:
        self._converse, self._tls = converse, tls
        self.connections: list[asyncio.StreamWriter] = []
        self.ended = 0
        self._moved = asyncio.Event()

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"
        self._tasks: set[asyncio.Task[Any]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until connections have come or gone so that *condition* holds."""
        while not condition():
            self._moved.clear()
            await self._moved.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections.append(writer)
        self._moved.set()
        try:
            await self._converse(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.ended += 1
            self._moved.set()
            writer.transport.abort()


def answering(*answers: bytes) -> Converse:
    """Give *answers* in turn, the last one for ever."""
    left = list(answers)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(left.pop(0) if len(left) > 1 else left[0])

    return converse


async def ask(way: Connections, request: Request = ASKED) -> tuple[Head, bytes]:
    """One exchange."""
    async with way.exchange(request, MOST) as asking:
        return await asking.head(), await asking.body()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a test, with a limit."""
    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))  # type: ignore[arg-type]


# -- used again, or not ----------------------------------------------------------------------------


def test_connection_is_used_again() -> None:
    """One after the other over one connection, also behind an answer in chunks and a 404."""
    chunked = b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n"

    async def scenario() -> None:
        async with Server(answering(OK, chunked, OK)) as server:
            way = Connections(server.url)
            assert [(await ask(way))[1] for _ in range(3)] == [b"ok", b"no", b"ok"]
            assert len(server.connections) == 1
            await way.close()
            await server.until(lambda: server.ended == 1)

    run(scenario)


def test_two_questions_at_once_have_a_connection_each() -> None:
    """None waits for the other's answer."""
    both = asyncio.Barrier(2)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await both.wait()
        writer.write(OK)
        await reader.read()

    async def scenario() -> None:
        async with Server(converse) as server:
            way = Connections(server.url)
            assert len(await asyncio.gather(ask(way), ask(way))) == 2
            assert len(server.connections) == 2
            await way.close()

    run(scenario)


NOT_AGAIN = {
    "says so": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    "old version": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "says more": OK + OK.replace(b"ok", b"no"),
    "says more, a little": OK + b"H",
}


@pytest.mark.parametrize("answer", NOT_AGAIN.values(), ids=list(NOT_AGAIN))
def test_connection_that_is_not_clean_is_not_used_again(answer: bytes) -> None:
    """Above all, what came behind an answer is never taken for the answer to the next question."""

    async def scenario() -> None:
        async with Server(answering(answer)) as server:
            way = Connections(server.url)
            assert (await ask(way))[1] == b"ok"
            await server.until(lambda: server.ended == 1)
            assert (await ask(way))[1] == b"ok"
            assert len(server.connections) == 2
            await way.close()

    run(scenario)


@pytest.mark.parametrize("said", [b"HTTP/1.1 408 Late\r\nContent-Length: 2\r\n\r\nno", b""])
def test_idle_connection_that_speaks_or_ends_is_not_used_again(said: bytes) -> None:
    """A proxy that tires of waiting says so, or only hangs up; the next question knows neither."""

    async def scenario() -> None:
        async with Server(answering(OK)) as server:
            way = Connections(server.url)
            await ask(way)
            if said:
                server.connections[0].write(said)
            else:
                server.connections[0].write_eof()
            await server.until(lambda: server.ended == 1)
            assert (await ask(way))[1] == b"ok"
            assert len(server.connections) == 2
            await way.close()

    run(scenario)


def test_connection_that_was_idle_for_long_is_not_used_again() -> None:
    """What stands between may have forgotten it, and would not say so."""

    async def scenario() -> None:
        async with Server(answering(OK)) as server:
            way = Connections(server.url, idle_seconds=-1.0)
            await ask(way)
            await ask(way)
            assert len(server.connections) == 2
            await server.until(lambda: server.ended == 1)
            await way.close()

    run(scenario)


def test_only_so_many_idle_connections_are_kept() -> None:
    """A burst of questions leaves no crowd of connections."""
    all_there = asyncio.Barrier(5)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await all_there.wait()
        writer.write(OK)
        await reader.read()

    async def scenario() -> None:
        async with Server(converse) as server:
            way = Connections(server.url, most_idle=2)
            await asyncio.gather(*(ask(way) for _ in range(5)))
            await server.until(lambda: server.ended == 3)
            await way.close()
            await server.until(lambda: server.ended == 5)

    run(scenario)


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
def test_question_that_is_given_up_takes_its_connection_along(tls: bool, ca: Ca) -> None:
    """At whatever moment: while dialling, in the handshake, before the answer, within it."""
    leaf = ca.leaf("agent", dns=["agent"])
    context = plain_context("server", [ca], leaf, verify_mode=ssl.CERT_NONE) if tls else None

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK[:-1])
        await reader.read()

    async def scenario() -> None:
        async with Server(converse, context) as server:
            trusting = ssl.create_default_context(cadata=ca.pem) if tls else None
            way = Connections(server.url, trusting, "agent")
            for rounds in range(40):
                asking = asyncio.create_task(ask(way))
                await yield_times(rounds)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                assert asking.cancelled()
            await server.until(lambda: server.ended == len(server.connections))
            await way.close()
            assert way._open == set()

    run(scenario)


def test_close_ends_what_is_under_way() -> None:
    """Who waits for an answer then hears that there is none."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def scenario() -> None:
        async with Server(converse) as server:
            way = Connections(server.url)
            asking = asyncio.create_task(ask(way))
            await server.until(lambda: len(server.connections) == 1)
            await way.close()
            with pytest.raises(ConnectionError):
                await asking

    run(scenario)


# -- dialling --------------------------------------------------------------------------------------


def test_silent_address_does_not_use_up_the_time_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent with several addresses is reached by the one that answers."""

    async def scenario() -> None:
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(0)
            filling = [_begun(deaf.getsockname()) for _ in range(8)]
            async with Server(answering(OK)) as server:
                way = Connections("http://agent.example:1", connect_timeout=0.4)
                kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
                found = [
                    (*kind, where) for where in (deaf.getsockname(), ("127.0.0.1", server.port))
                ]
                loop = asyncio.get_running_loop()

                async def resolve(*_: object, **__: object) -> list[Any]:
                    return found

                monkeypatch.setattr(loop, "getaddrinfo", resolve)
                assert (await ask(way))[1] == b"ok"
                await way.close()
            for each in filling:
                each.close()

    run(scenario)


def test_name_is_looked_up_also_when_the_process_ends() -> None:
    """Threads are begun no more by then, and the instance has yet to be deregistered."""

    async def scenario() -> None:
        async with Server(answering(OK)) as server:
            way = Connections(f"http://localhost:{server.port}")
            await asyncio.get_running_loop().shutdown_default_executor()
            assert (await ask(way))[1] == b"ok"
            await way.close()

    run(scenario)


def _begun(where: Any) -> socket.socket:
    """A connection that fills the queue of a server that accepts none."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(where)
    return sock


def test_tls_is_agreed_on_for_this_version_of_http(ca: Ca) -> None:
    """An agent behind a proxy that prefers HTTP/2 is told that we speak another."""
    context = plain_context("server", [ca], ca.leaf("agent"), verify_mode=ssl.CERT_NONE)
    context.set_alpn_protocols(["h2", "http/1.1"])
    agreed: list[str] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        agreed.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await answering(OK)(reader, writer)

    async def scenario() -> None:
        async with Server(converse, context) as server:
            trusting = ssl.create_default_context(cadata=ca.pem)
            trusting.check_hostname = False
            way = Connections(server.url, trusting)
            assert (await ask(way))[1] == b"ok"
            assert agreed == ["http/1.1"]
            await way.close()

    run(scenario)


def test_connections_are_kept_alive_by_the_kernel() -> None:
    """A host that died without a word is noticed before the end of a wait of minutes."""

    async def scenario() -> None:
        async with Server(answering(OK)) as server:
            way = Connections(server.url)
            await ask(way)
            (connection,) = way._open
            sock = connection._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 5
            await way.close()

    run(scenario)


def test_host_of_the_address_is_told() -> None:
    """With its port, and IPv6 in brackets; the usual port goes without saying."""
    hosts = {
        "http://Agent.Example": "agent.example",
        "http://agent.example:80": "agent.example",
        "http://agent.example:8500": "agent.example:8500",
        "https://agent.example:443/x": "agent.example",
        "http://[::1]:8500": "[::1]:8500",
        "http://bücher.example:1": "xn--bcher-kva.example:1",
        "unix:///run/consul.sock": "localhost",
    }
    assert {agent: Connections(agent)._host for agent in hosts} == hosts


# -- answers ---------------------------------------------------------------------------------------


def test_first_words_before_the_answer_are_passed_over() -> None:
    """An informational answer is none."""
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"

    async def scenario() -> None:
        async with Server(answering(early + OK)) as server:
            way = Connections(server.url)
            head, body = await ask(way)
            assert (head.status, body) == (200, b"ok")
            await way.close()

    run(scenario)


def test_repeated_headers_are_joined() -> None:
    """And names are in lower case."""
    answer = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 0\r\nx-a: 2\r\n\r\n"

    async def scenario() -> None:
        async with Server(answering(answer)) as server:
            way = Connections(server.url)
            assert (await ask(way))[0].headers == {"x-a": "1, 2", "content-length": "0"}
            await way.close()

    run(scenario)


BROKEN: dict[str, bytes] = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "endless head": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,
    "another protocol": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "odd chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=list(BROKEN))
def test_what_is_no_answer_ends_the_connection(answer: bytes) -> None:
    """As an error of the network, with the next question on another connection."""

    async def scenario() -> None:
        async with Server(answering(answer, OK)) as server:
            way = Connections(server.url)
            with pytest.raises(ConnectionError):
                await ask(way)
            assert (await ask(way))[1] == b"ok"
            assert len(server.connections) == 2
            await way.close()

    run(scenario)


@pytest.mark.parametrize("framing", ["length", "chunks", "end"])
def test_answer_over_the_limit_is_given_up(framing: str) -> None:
    """Whether or not it says beforehand how long it is."""
    heads = {
        "length": b"Content-Length: 1001\r\n\r\n",
        "chunks": b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n",
        "end": b"Connection: close\r\n\r\n",
    }
    answer = b"HTTP/1.1 200 OK\r\n" + heads[framing] + b"x" * (MOST + 1)

    async def scenario() -> None:
        async with Server(answering(answer)) as server:
            way = Connections(server.url)
            with pytest.raises(AgentAnswerError, match="over 1000 bytes"):
                await ask(way)
            await server.until(lambda: server.ended == 1)
            await way.close()

    run(scenario)


# -- a transport of one's own ----------------------------------------------------------------------


class Parts(httpx.AsyncByteStream):
    """A body in two parts; the second one may be an error."""

    def __init__(self, last: bytes | httpx.HTTPError) -> None:
        self._last = last
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"o"
        if isinstance(self._last, httpx.HTTPError):
            raise self._last
        yield self._last

    async def aclose(self) -> None:
        self.closed = True


def by_transport(parts: Parts) -> tuple[Head, bytes]:
    """One exchange by a transport that answers with *parts*."""

    def answer(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.raw_path) == ("GET", b"/v1/thing")
        return httpx.Response(200, headers={"X-Consul-Index": "7"}, stream=parts)

    async def scenario() -> tuple[Head, bytes]:
        way = TransportWay(httpx.MockTransport(answer))
        async with way.exchange(ASKED, MOST) as asking:
            found = await asking.head(), await asking.body()
        await way.close()
        return found

    return asyncio.run(scenario())


def test_transport_of_ones_own_carries_questions() -> None:
    """What it says is taken as what comes over the network."""
    parts = Parts(b"k")
    head, body = by_transport(parts)
    assert (head.status, head.headers["x-consul-index"], body) == (200, "7", b"ok")
    assert parts.closed


def test_transport_of_ones_own_is_held_to_the_limit() -> None:
    """As is the network; and its answer is given up."""
    parts = Parts(b"x" * MOST)
    with pytest.raises(AgentAnswerError, match="over 1000 bytes"):
        by_transport(parts)
    assert parts.closed


def test_transport_of_ones_own_that_fails_is_a_broken_connection() -> None:
    """Within the answer as before it."""
    parts = Parts(httpx.ReadError("gone"))
    with pytest.raises(ConnectionError, match="gone"):
        by_transport(parts)
    assert parts.closed
