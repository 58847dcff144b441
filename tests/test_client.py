"""The agent's HTTP API over real sockets, with agents that misbehave in every way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from mesh_middleware.config import Settings, load_settings
from mesh_middleware.consul.client import Answer, ConsulClient
from mesh_middleware.consul.wire import Question
from mesh_middleware.exceptions import (
    AgentAnswerError,
    AgentError,
    AgentRefusedError,
    AgentUnavailableError,
    ConfigError,
)
from mesh_middleware.rhythm import USUAL, Rhythm

from .support.certs import Ca, plain_context
from .support.listening import close_server

CANARY = "c4n4ry-0000-53cr3t"
PATIENCE = 10.0
QUESTION = Question("/v1/thing", 'service:write on "tax"')
Reply = bytes | Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Agent:
    """A loopback server that says what the test wants, and keeps what it was asked."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = list(replies)
        self.asked: list[bytes] = []
        self.gone = asyncio.Event()
        self.url = ""
        self._serving: set[asyncio.Task[Any] | None] = set()

    @property
    def heads(self) -> list[str]:
        """The requests' heads, decoded."""
        return [asked.decode("latin-1").partition("\r\n\r\n")[0] for asked in self.asked]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection; the last reply serves for all that follow."""
        self._serving.add(asyncio.current_task())
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                await self._converse(reader, writer)
        finally:
            self.gone.set()
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(head + await reader.readexactly(_length(head)))
            reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
            if not isinstance(reply, bytes):
                return await reply(reader, writer)
            writer.write(reply)
            await writer.drain()

    async def end(self) -> None:
        """End what is being served."""
        for task in self._serving:
            if task is not None:
                task.cancel()
        await asyncio.gather(*filter(None, self._serving), return_exceptions=True)


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def http(status: int, body: bytes | str = b"", *headers: str, kind: str = "text/plain") -> bytes:
    """One HTTP answer, as it goes over the wire."""
    body = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def told(value: Any, *headers: str) -> bytes:
    """A JSON answer."""
    return http(200, json.dumps(value), *headers, kind="application/json")


@contextlib.asynccontextmanager
async def agent(*replies: Reply, tls: ssl.SSLContext | None = None) -> AsyncIterator[Agent]:
    """A running agent."""
    made = Agent(*replies)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    made.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    try:
        yield made
    finally:
        await close_server(server)
        await made.end()


@contextlib.asynccontextmanager
async def client(url: str, rhythm: Rhythm = USUAL, **options: Any) -> AsyncIterator[ConsulClient]:
    """A client of the agent at *url*."""
    settings = load_settings({"service": "tax", "agent": url, **options}, environ={})
    made = ConsulClient(settings, rhythm=rhythm)
    try:
        yield made
    finally:
        await made.close()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run the coroutine of a test, with a limit."""
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


async def ask_once(*replies: Reply, question: Question = QUESTION, **options: Any) -> Answer:
    """One question to an agent that gives *replies*."""
    async with agent(*replies) as running, client(running.url, **options) as asking:
        return await asking.ask(question)


# -- what is sent ----------------------------------------------------------------------------------


def test_question_and_answer_cross_the_wire() -> None:
    """Path, parameters, body and headers there; status, index, headers and JSON back."""

    async def scenario() -> None:
        reply = told({"a": [1]}, "X-Consul-Index: 42", "X-Other: b")
        async with agent(reply) as running, client(running.url) as asking:
            question = Question("/v1/x%2Fy", "r", "PUT", {"dc": "dc 2"}, {"Name": "tax"})
            answer = await asking.ask(question)
            assert (answer.status, answer.index, answer.body) == (200, 42, {"a": [1]})
            assert answer.headers["x-other"] == "b"
            head, _, body = running.asked[0].partition(b"\r\n\r\n")
            assert head.startswith(b"PUT /v1/x%2Fy?dc=dc+2 HTTP/1.1\r\n")
            assert json.loads(body) == {"Name": "tax"}
            assert b"accept-encoding: identity" in head.lower()
            assert b"token" not in head.lower()

    run(scenario())


def test_blocking_question_sends_index_and_wait() -> None:
    """Both, always together; a question for the present value sends neither."""

    async def scenario() -> None:
        async with agent(told(1)) as running, client(running.url) as asking:
            await asking.ask(QUESTION, wait=300.0)
            await asking.ask(QUESTION, index=7, wait=300.0)
            await asking.ask(QUESTION, index=7, wait=0.5)
            lines = [head.splitlines()[0] for head in running.heads]
            assert lines == [
                "GET /v1/thing HTTP/1.1",
                "GET /v1/thing?index=7&wait=300s HTTP/1.1",
                "GET /v1/thing?index=7&wait=0.5s HTTP/1.1",
            ]

    run(scenario())


@pytest.mark.parametrize(
    ("options", "query"),
    [
        ({}, ""),
        ({"namespace": "team"}, "?ns=team"),
        ({"partition": "biz"}, "?partition=biz"),
        ({"namespace": "a&b", "partition": "c"}, "?ns=a%26b&partition=c"),
    ],
)
def test_enterprise_parameters_are_sent_only_when_set(options: dict[str, str], query: str) -> None:
    """A community agent answers 400 to either, whatever its value."""

    async def scenario() -> None:
        async with agent(told(1)) as running, client(running.url, **options) as asking:
            await asking.ask(QUESTION)
            assert running.heads[0].splitlines()[0] == f"GET /v1/thing{query} HTTP/1.1"

    run(scenario())


def test_address_may_have_a_prefix() -> None:
    """An agent behind a path."""

    async def scenario() -> None:
        async with agent(told(1)) as running, client(running.url + "/consul") as asking:
            await asking.ask(QUESTION)
            assert running.heads[0].startswith("GET /consul/v1/thing HTTP/1.1")

    run(scenario())


def test_basic_auth_and_token_are_sent_together() -> None:
    """The one is for what stands before the agent, the other for the agent."""

    async def scenario() -> None:
        async with (
            agent(told(1)) as running,
            client(running.url, auth="user:pa:ss", token=CANARY) as asking,
        ):
            await asking.ask(QUESTION)
            head = running.heads[0].lower()
            assert "authorization: basic dxnlcjpwytpzcw==" in head
            assert f"x-consul-token: {CANARY}" in head

    run(scenario())


def test_unix_socket_is_spoken_to_as_localhost(tmp_path: Path) -> None:
    """As Consul's own clients do."""

    async def scenario() -> None:
        made = Agent(told(1))
        path = tmp_path / "a b.sock"
        server = await asyncio.start_unix_server(made.serve, path)
        async with client(f"unix://{tmp_path}/a%20b.sock") as asking:
            assert (await asking.ask(QUESTION)).body == 1
        assert "Host: localhost" in made.heads[0]
        await close_server(server)
        await made.end()

    run(scenario())


def test_proxy_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment reroutes the questions, and with them the token."""

    async def scenario() -> None:
        async with agent(http(200)) as proxy, agent(told("direct")) as running:
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
                monkeypatch.setenv(name, proxy.url)
                monkeypatch.setenv(name.lower(), proxy.url)
            monkeypatch.setenv("NO_PROXY", "")
            async with client(running.url, token=CANARY) as asking:
                assert (await asking.ask(QUESTION)).body == "direct"
            assert proxy.asked == []

    run(scenario())


def test_netrc_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A password meant for another program on this host is not sent to the agent."""
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login user password {CANARY}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))

    async def scenario() -> None:
        async with agent(told(1)) as running, client(running.url) as asking:
            await asking.ask(QUESTION)
            assert "authorization" not in running.heads[0].lower()

    run(scenario())


# -- answers ---------------------------------------------------------------------------------------


def test_not_found_with_an_index_is_an_answer() -> None:
    """A resource that is not there can be waited for."""
    answer = run(ask_once(http(404, "Config entry not found", "X-Consul-Index: 27")))
    assert (answer.status, answer.index, answer.body) == (404, 27, "Config entry not found")


@pytest.mark.parametrize(
    ("header", "index"),
    [
        ("X-Consul-Index: 5", 5),
        ("x-consul-index:    5", 5),
        ("X-Consul-Index: 18446744073709551615", 0),
        ("X-Consul-Index: 9223372036854775807", 9223372036854775807),
        ("X-Consul-Index: 0", 0),
        ("X-Consul-Index: -5", 0),
        ("X-Consul-Index: 5.0", 0),
        ("X-Consul-Index: 0x10", 0),
        ("X-Consul-Index: 1_000", 0),
        ("X-Consul-Index: ", 0),
        ("X-Consul-Index: " + "9" * 5000, 0),
        ("X-Index: 5", 0),
    ],
)
def test_index_is_a_number_or_none(header: str, index: int) -> None:
    """What is no sound number counts as missing; the watch then polls."""
    assert run(ask_once(told(1, header))).index == index


def test_empty_answer_of_a_write_is_read() -> None:
    """Some writes answer 200 with no body and no content type."""
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    assert run(ask_once(reply)).body == ""


def test_text_is_not_taken_for_json() -> None:
    """JSON of another content type stays text, which no parser of ours takes."""
    write, said = Question("/v1/thing", "nothing", "POST"), '{"Authorized": true}'
    assert run(ask_once(http(200, said), question=write)).body == said


FAILURES: dict[str, tuple[bytes, type[AgentError], str]] = {
    "400": (http(400, "Invalid wait time"), AgentAnswerError, "400 Invalid wait time"),
    "403": (http(403, "Permission denied"), AgentRefusedError, "Permission denied; needs service"),
    "403 without a word": (http(403), AgentRefusedError, 'refused; needs service:write on "tax"'),
    "405": (http(405, "method GET not allowed"), AgentAnswerError, "405 method GET not allowed"),
    "429": (http(429, "Rate limit reached"), AgentUnavailableError, "429 Rate limit"),
    "500": (http(500, "No cluster leader"), AgentUnavailableError, "500 No cluster leader"),
    "503": (http(503, "rate limit exceeded"), AgentUnavailableError, "503 rate limit"),
    "204": (http(204), AgentAnswerError, "204"),
    "301": (http(301, "", "Location: /v1/other"), AgentAnswerError, "301"),
    "307": (http(307, "", "Location: http://127.0.0.1:9/"), AgentAnswerError, "307"),
    "a web server's page": (http(200, "<html>"), AgentAnswerError, "no Consul: .*text/plain"),
    "truncated JSON": (http(200, '{"a": [1', kind="application/json"), AgentAnswerError, "JSON"),
    "no JSON": (http(200, "<html>", kind="application/json"), AgentAnswerError, "not JSON"),
    "JSON that is not UTF-8": (
        http(200, b'"\xff"', kind="application/json"),
        AgentAnswerError,
        "not JSON",
    ),
    "bottomless JSON": (
        http(200, "[" * 200_000, kind="application/json"),
        AgentAnswerError,
        "not JSON",
    ),
    "a number beyond measure": (
        http(200, "9" * 10_000, kind="application/json"),
        AgentAnswerError,
        "not JSON",
    ),
    "compressed": (http(200, "x", "Content-Encoding: gzip"), AgentAnswerError, "compressed"),
    "compressed twice": (
        http(200, "x", "Content-Encoding: gzip, br"),
        AgentAnswerError,
        "compressed",
    ),
    "too large, and says so": (http(200, "x" * 5000), AgentAnswerError, "max_answer_bytes"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", AgentUnavailableError, "127.0.0.1"),
    "no status": (b"HTTP/1.1\r\n\r\n", AgentUnavailableError, "127.0.0.1"),
}


@pytest.mark.parametrize(
    ("reply", "kind", "message"), FAILURES.values(), ids=[name for name in FAILURES]
)
def test_misbehaving_agent_is_one_of_our_errors(
    reply: bytes, kind: type[AgentError], message: str
) -> None:
    """Whose fault it is, in the agent's own words, and never another exception."""
    with pytest.raises(kind, match=message) as caught:
        run(ask_once(reply, max_answer_bytes=1000 if b"xxx" in reply else 1_000_000))
    assert type(caught.value) is kind


def test_redirect_is_not_followed() -> None:
    """The target of the redirect is never asked, and gets no token."""

    async def scenario() -> None:
        async with agent(told("stolen")) as thief:
            for status in (301, 302, 303, 307, 308):
                with pytest.raises(AgentAnswerError, match=str(status)):
                    await ask_once(http(status, "", f"Location: {thief.url}/"), token=CANARY)
            assert thief.asked == []

    run(scenario())


def test_long_error_text_is_cut() -> None:
    """An error page of a proxy does not fill the log."""
    with pytest.raises(AgentUnavailableError) as caught:
        run(ask_once(http(500, "x" * 100_000)))
    assert len(str(caught.value)) < 1000


async def _cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n[1"
    )
    await writer.drain()


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def _endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(100_000):
        writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        await writer.drain()
    raise AssertionError("400 MB were taken")


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def _dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    never = asyncio.Event()
    for _ in range(200):
        writer.write(b"x")
        await writer.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(never.wait(), 0.05)


@pytest.mark.parametrize("reply", [_cut_off, _hang_up], ids=lambda reply: reply.__name__)
def test_connection_that_breaks_is_an_unavailable_agent(reply: Reply) -> None:
    """Half an answer is no answer."""
    with pytest.raises(AgentUnavailableError):
        run(ask_once(reply))


def test_nobody_listening_is_an_unavailable_agent() -> None:
    """The message names the address that was tried."""

    async def scenario() -> None:
        async with agent(told(1)) as running:
            url = running.url
        async with client(url) as asking:
            with pytest.raises(AgentUnavailableError, match=url):
                await asking.ask(QUESTION)

    run(scenario())


def test_endless_answer_is_given_up_at_the_limit() -> None:
    """Not a byte more than allowed is kept, and the connection ends."""

    async def scenario() -> None:
        async with agent(_endless) as running:
            async with client(running.url, max_answer_bytes=50_000) as asking:
                with pytest.raises(AgentAnswerError, match="over 50000 bytes"):
                    await asking.ask(QUESTION)
                await asyncio.wait_for(running.gone.wait(), PATIENCE)

    run(scenario())


@pytest.mark.parametrize("reply", [_silent, _dripping], ids=lambda reply: reply.__name__)
@pytest.mark.parametrize("index", [0, 7])
def test_answer_that_does_not_come_in_time_is_given_up(reply: Reply, index: int) -> None:
    """A half-open connection, and one that drips a byte now and then, end in bounded time."""
    hasty = Rhythm(answer_timeout=0.3, read_slack=0.2)

    async def scenario() -> None:
        async with agent(reply) as running, client(running.url, hasty) as asking:
            with pytest.raises(AgentUnavailableError):
                await asyncio.wait_for(asking.ask(QUESTION, index=index, wait=0.1), 3.0)

    run(scenario())


def test_held_answer_that_drips_is_given_up_like_any_other() -> None:
    """Five minutes are for the agent's silence, not for a body that has begun to come."""
    hasty = Rhythm(answer_timeout=0.3)

    async def scenario() -> None:
        async with agent(_dripping) as running, client(running.url, hasty) as asking:
            with pytest.raises(AgentUnavailableError) as caught:
                await asyncio.wait_for(asking.ask(QUESTION, index=7, wait=300.0), 3.0)
            assert caught.value.code == "agent_stalled"

    run(scenario())


def test_client_goes_on_after_every_failure() -> None:
    """One client for the life of the process: no failure spoils the next question."""

    async def scenario() -> None:
        replies = [http(500, "x"), http(403), _hang_up, _cut_off, _endless, told("well")]
        async with agent(*replies) as running:
            async with client(running.url, max_answer_bytes=50_000) as asking:
                for _ in replies[:-1]:
                    with pytest.raises(AgentError):
                        await asking.ask(QUESTION)
                assert (await asking.ask(QUESTION)).body == "well"

    run(scenario())


def test_many_questions_block_at_once() -> None:
    """A thousand watches need a thousand held questions, not a queue of ten."""

    async def scenario() -> None:
        held: list[asyncio.StreamWriter] = []
        all_there = asyncio.Event()

        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            held.append(writer)
            if len(held) == 150:
                all_there.set()
            await all_there.wait()
            writer.write(told(1))
            await writer.drain()

        async with agent(hold) as running, client(running.url) as asking:
            answers = await asyncio.gather(
                *(asking.ask(QUESTION, index=1, wait=60.0) for _ in range(150))
            )
            assert [answer.body for answer in answers] == [1] * 150

    run(scenario())


# -- token -----------------------------------------------------------------------------------------


def test_token_file_is_read_for_every_question(tmp_path: Path) -> None:
    """A token that is renewed on disk is used at once, without its white space."""
    path = tmp_path / "token"

    async def scenario() -> None:
        async with (
            agent(told(1)) as running,
            client(running.url, token="weaker", token_file=str(path)) as asking,
        ):
            for token in ("first", "  second\n"):
                path.write_text(token)
                await asking.ask(QUESTION)
            sent = [line for head in running.heads for line in head.splitlines() if "Token" in line]
            assert sent == ["X-Consul-Token: first", "X-Consul-Token: second"]

    run(scenario())


def test_empty_token_file_sends_no_token(tmp_path: Path) -> None:
    """The anonymous token, as with Consul's own tools."""
    path = tmp_path / "token"
    path.write_text("\n")

    async def scenario() -> None:
        async with agent(told(1)) as running, client(running.url, token_file=str(path)) as asking:
            await asking.ask(QUESTION)
            assert "token" not in running.heads[0].lower()

    run(scenario())


@pytest.mark.parametrize(
    "content",
    [None, b"\xff\xfe", f"{CANARY}\r\nX-Evil: 1".encode(), f"{CANARY}\x00".encode(), "é".encode()],
    ids=["missing", "not UTF-8", "two lines", "NUL", "not ASCII"],
)
def test_unusable_token_file_is_an_agent_error(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """It names the file, shows nothing of what is in it, and can be mended while we run."""
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)

    async def scenario() -> None:
        async with agent(told(1)) as running, client(running.url, token_file=str(path)) as asking:
            with pytest.raises(AgentError, match="token_file") as caught:
                await asking.ask(QUESTION)
            assert CANARY not in "".join(traceback.format_exception(caught.value))
            assert running.asked == []
            path.write_text("mended")
            assert (await asking.ask(QUESTION)).body == 1

    with caplog.at_level(logging.DEBUG):
        run(scenario())
    assert CANARY not in caplog.text


def test_secrets_are_in_no_error_no_repr_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever goes wrong, token and password stay out of everything people read."""
    seen: list[str] = []

    async def scenario() -> None:
        for reply in [reply for reply, _, _ in FAILURES.values()] + [_hang_up, _cut_off, told(1)]:
            options = {"token": CANARY, "auth": f"user:{CANARY}", "max_answer_bytes": 1_000_000}
            async with agent(reply) as running, client(running.url, **options) as asking:
                seen.append(repr(asking) + repr(vars(asking)["_settings"]))
                try:
                    seen.append(repr(await asking.ask(QUESTION)))
                except AgentError as error:
                    seen.append("".join(traceback.format_exception(error)))
                assert CANARY in running.heads[0]

    with caplog.at_level(logging.DEBUG):
        run(scenario())
    assert len(seen) > 40
    assert CANARY not in "".join(seen)
    assert CANARY not in caplog.text
    assert "dXNlcj" not in caplog.text


# -- TLS to the agent ------------------------------------------------------------------------------


@pytest.fixture
def tls_agent(ca: Ca, tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """The context of an agent that serves HTTPS as ``consul.example``, and its CA file."""
    made = ca.leaf("agent", dns=["consul.example"])
    context = plain_context("server", [ca], made, verify_mode=ssl.CERT_NONE)
    path = tmp_path / "agent-ca.pem"
    path.write_text(ca.pem)
    return context, path


def test_agent_behind_tls_is_verified(tls_agent: tuple[ssl.SSLContext, Path]) -> None:
    """By the CA and the name that the settings give; without either there is no token sent."""
    tls, path = tls_agent

    async def scenario() -> None:
        named = {"tls_server_name": "consul.example", "token": CANARY}
        async with agent(told("secure"), tls=tls) as running:
            async with client(running.url, ca_file=str(path), **named) as asking:
                assert (await asking.ask(QUESTION)).body == "secure"
            asked = len(running.asked)
            for wrong in (
                named,
                {"ca_file": str(path), "token": CANARY},
                {"ca_file": str(path), "tls_server_name": "other.example", "token": CANARY},
            ):
                async with client(running.url, **wrong) as asking:
                    with pytest.raises(AgentUnavailableError, match="(?i)verif|mismatch"):
                        await asking.ask(QUESTION)
            assert len(running.asked) == asked
            async with client(running.url, verify_agent=False) as asking:
                assert (await asking.ask(QUESTION)).body == "secure"

    run(scenario())


def test_client_certificate_is_shown_to_the_agent(ca: Ca, tmp_path: Path) -> None:
    """Agents with verify_incoming want one."""
    server = plain_context("server", [ca], ca.leaf("agent", dns=["localhost"]))
    made = ca.leaf("client")
    for name, text in (("ca", ca.pem), ("cert", made.chain_pem), ("key", made.key_pem)):
        (tmp_path / name).write_text(text)
    files = {
        "ca_file": str(tmp_path / "ca"),
        "client_cert": str(tmp_path / "cert"),
        "client_key": str(tmp_path / "key"),
        "tls_server_name": "localhost",
    }

    async def scenario() -> None:
        async with agent(told("known"), tls=server) as running:
            async with client(running.url, **files) as asking:
                assert (await asking.ask(QUESTION)).body == "known"
            del files["client_cert"], files["client_key"]
            async with client(running.url, **files) as asking:
                with pytest.raises(AgentUnavailableError):
                    await asking.ask(QUESTION)

    run(scenario())


@pytest.mark.parametrize("option", ["ca_file", "client_cert"])
def test_tls_file_that_cannot_be_used_is_a_config_error(option: str, tmp_path: Path) -> None:
    """It is the setting's fault, and shows when the client is made."""
    broken = tmp_path / "broken.pem"
    broken.write_text("no PEM")
    more = {"client_key": str(broken)} if option == "client_cert" else {}
    for path in (str(broken), str(tmp_path / "missing.pem")):
        with pytest.raises(ConfigError, match="TLS files for agent"):
            ConsulClient(Settings("tax", agent="https://127.0.0.1:1", **{option: path}, **more))
