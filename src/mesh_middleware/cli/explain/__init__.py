"""
``mesh explain``: why a request is allowed or denied, and why every other intention lost.

Owns the options and the exit code. Where the policy comes from is in `given`, what is told in
`why`, its sentences in `words`, how it is printed in `show`; many cases at once are `cli.batch`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...exceptions import ConfigError
from ..options import PROTOCOLS, Agent, AsJson

_READINGS = ("strict", "envoy")
TOLD_LINES = 10
"""Lines that are no cases, of which it is told why."""


def explain(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE", help="Who calls: [[PARTITION/]NAMESPACE/]SERVICE, or a SPIFFE ID."
        ),
    ] = None,
    method: Annotated[str | None, typer.Argument(metavar="METHOD", help="Such as GET.")] = None,
    target: Annotated[
        str | None, typer.Argument(metavar="TARGET", help="Path and query, as sent: /tax?year=2026")
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option("-H", "--header", metavar="'NAME: VALUE'", help="A header; repeat it."),
    ] = None,
    service: Annotated[
        str | None, typer.Option(metavar="S", help="Who is called; else MESH_SERVICE.")
    ] = None,
    intentions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Instead of the agent: the match endpoint's JSON, or config entries.",
        ),
    ] = None,
    default: Annotated[
        str | None, typer.Option(metavar="allow|deny", help="The default policy.")
    ] = None,
    reading: Annotated[
        str,
        typer.Option(
            metavar="strict|envoy", help="All readings have to allow, or Envoy's verdict."
        ),
    ] = "strict",
    protocol: Annotated[
        str | None, typer.Option(metavar="http|http2|grpc|tcp", help="The service's protocol.")
    ] = None,
    trust_domain: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the mesh, with --intentions.")
    ] = None,
    jwt_providers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="jwt-provider entries, as JSON.")
    ] = None,
    mesh: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The mesh config entry, as JSON.")
    ] = None,
    batch: Annotated[
        bool,
        typer.Option(
            "--batch",
            help='JSON Lines in, JSON Lines out: {"id", "intentions": [...match JSON...],'
            ' "default_allow": bool, "protocol": "http" or "tcp", "trust_domain", "source_uri",'
            ' "request": {"method", "target", "headers": [[name, value], ...]}} becomes {"id",'
            ' "allowed", "reason", "intention", "permission", "readings"}; the request\'s strings'
            " are bytes, one Latin-1 character each.",
        ),
    ] = False,
    agent: Agent = None,
    as_json: AsJson = False,
) -> int:
    """
    Tell why a request is allowed or denied.

    Exit code 0: allowed. 1: denied, or the agent does not answer. 2: the command line or a file is
    wrong. With --batch 0, whatever the verdicts: every line gets its answer.
    """
    from . import given, show, why

    _check("--default", default, ("allow", "deny", None))
    _check("--reading", reading, _READINGS)
    _check("--protocol", protocol and protocol.lower(), (*PROTOCOLS, None))
    _check_domain(trust_domain)
    providers = given.read_providers(jwt_providers)
    normalization = given.read_normalization(mesh)
    if batch:
        if source is not None or intentions is not None:
            raise typer.BadParameter("--batch takes its cases from standard input, and no others")
        return _answer_lines(reading, providers or (), normalization)
    if source is None or method is None or target is None:
        raise typer.BadParameter("name a SOURCE, a METHOD and a TARGET, or say --batch")
    if intentions is not None:
        policy = given.from_file(intentions, service, trust_domain, source)
    else:
        policy = given.from_agent(agent, service, ask_default=default is None)
    policy = given.override(
        policy,
        default=default,
        protocol=protocol,
        providers=providers,
        normalization=normalization,
    )
    told = why.explain(policy, reading, source, why.facts(policy, method, target, header or ()))
    if as_json:
        show.print_data(told)
    else:
        show.print_words(told)
    return 0 if told.verdict.allowed else 1


def _check(option: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        words = " or ".join(str(item) for item in known if item is not None)
        raise typer.BadParameter(f"{option} {value}: {words} is expected")


def _check_domain(name: str | None) -> None:
    from ...exceptions import IdentityError
    from ...identity import TrustDomain

    try:
        TrustDomain(name or "some.consul")
    except IdentityError as error:
        raise typer.BadParameter(f"--trust-domain {name}: {error}") from None


def _answer_lines(reading: Any, providers: Any, normalization: Any) -> int:
    import sys
    import time

    from ...intentions import Normalization
    from ..batch import Batch

    if sys.stdin is None:
        raise ConfigError("--batch reads its cases from standard input, which is closed")
    unread = _Unread()
    judge = Batch(
        reading, providers, normalization or Normalization(), clock=time.time, tell=unread.tell
    )
    lines = (line.decode("utf-8", "surrogateescape") for line in sys.stdin.buffer)
    for answer in judge.answers(lines):
        sys.stdout.write(answer + "\n")
        # Whoever waits for this answer before sending the next case shall not wait for ever.
        if _nothing_comes(sys.stdin):
            sys.stdout.flush()
    unread.sum_up()
    return 0


class _Unread:
    """Tells the first lines that are no cases on standard error, and how many more there were."""

    def __init__(self) -> None:
        self._count = 0

    def tell(self, number: int, why: str) -> None:
        import sys

        self._count += 1
        if self._count <= TOLD_LINES:
            print(f"mesh: line {number} is no case: {why}", file=sys.stderr)

    def sum_up(self) -> None:
        import sys

        if self._count > TOLD_LINES:
            print(f"mesh: {self._count} lines in all are no cases", file=sys.stderr)


def _nothing_comes(stream: Any) -> bool:
    """Tell whether nothing stands ready to be read; when in doubt, it does not."""
    import select

    try:
        return not select.select([stream], [], [], 0)[0]
    except (OSError, ValueError):  # no such thing as a file that is no socket on some platforms
        return True
