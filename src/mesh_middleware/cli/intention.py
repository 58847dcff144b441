"""``mesh intention``: create, delete, list and check intentions through the agent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Agent, AsJson

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(help="Write and read who may call whom.", rich_markup_mode=None)

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="Who calls; '*' is anyone.")]
Destination = Annotated[str, typer.Argument(metavar="DESTINATION", help="Who is called.")]


@app.command("create")
def create(
    source: Annotated[
        str | None, typer.Argument(metavar="SOURCE", help="Who calls; '*' is anyone.")
    ] = None,
    destination: Annotated[
        str | None, typer.Argument(metavar="DESTINATION", help="Who is called.")
    ] = None,
    allow: Annotated[
        bool | None, typer.Option("--allow/--deny", help="The whole connection.")
    ] = None,
    permission: Annotated[
        list[str] | None,
        typer.Option(metavar="JSON", help="One L7 permission; repeat it, the order counts."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="With a pair: the pair's L7 permissions. Alone: config entries to write.",
        ),
    ] = None,
    description: Annotated[str, typer.Option(help="Kept with the intention.")] = "",
    agent: Agent = None,
) -> int:
    """Create the intention of a pair, or replace it."""
    from . import api, rule_files, rules

    if source is None or destination is None:
        return _write_entries(source, allow, permission, file, agent)
    rule = rule_files.rule(allow=allow, permissions=permission or (), file=file)
    if description:
        rule["Description"] = description
    with api.connect(agent) as connection:
        rules.Rules(connection).write(source, destination, rule)
    print(f"{source} -> {destination}: {_words(rule)}")
    return 0


def _write_entries(
    source: str | None,
    allow: bool | None,
    permission: Sequence[str] | None,
    file: Path | None,
    agent: str | None,
) -> int:
    from . import api, rule_files, rules

    if source is not None or allow is not None or permission or file is None:
        raise typer.BadParameter("name a SOURCE and a DESTINATION, or give --file alone")
    entries = rule_files.entries(file)
    with api.connect(agent) as connection:
        writer = rules.Rules(connection)
        for entry in entries:
            writer.write_entry(entry)
            print(f"{entry['Kind']} {entry['Name']}: written")
    return 0


@app.command("delete")
def delete(source: Source, destination: Destination, agent: Agent = None) -> int:
    """Delete the intention of a pair."""
    from . import api, rules

    with api.connect(agent) as connection:
        was_there = rules.Rules(connection).delete(source, destination)
    print(f"{source} -> {destination}: {'deleted' if was_there else 'there was none'}")
    return 0


@app.command("list")
def list_(agent: Agent = None, as_json: AsJson = False) -> int:
    """List the intentions, highest precedence first."""
    from . import api, options, rules

    with api.connect(agent) as connection:
        found = rules.Rules(connection).all()
    if as_json:
        options.print_json(found)
        return 0
    if not found:
        print("no intentions")
        return 0
    _table(found)
    return 0


@app.command("check")
def check(
    source: Source, destination: Destination, agent: Agent = None, as_json: AsJson = False
) -> int:
    """Ask whether SOURCE may connect to DESTINATION: exit code 0 allowed, 1 denied."""
    from . import api, options, rules

    with api.connect(agent) as connection:
        reader = rules.Rules(connection)
        allowed = reader.check(source, destination)
        found = None if allowed else reader.find(source, destination)
    has_permissions = bool(found and found.get("Permissions"))
    if as_json:
        options.print_json({"Allowed": allowed, "Permissions": has_permissions})
    else:
        print("allowed" if allowed else "denied")
        if has_permissions:
            print("(by L7 permissions: each request is judged; the agent says no to the whole)")
    return 0 if allowed else 1


def _table(found: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("SOURCE", "DESTINATION", "RULE", "PRECEDENCE"):
        table.add_column(title, justify="right" if title == "PRECEDENCE" else "left")
    for item in found:
        table.add_row(
            str(item.get("SourceName")),
            str(item.get("DestinationName")),
            _words(item),
            str(item.get("Precedence", "")),
        )
    Console(highlight=False, markup=False, emoji=False).print(table)


def _words(rule: dict[str, Any]) -> str:
    permissions = rule.get("Permissions")
    if not isinstance(permissions, list):
        return str(rule.get("Action"))
    return "; ".join(_permission_words(_table_of(item)) for item in permissions)


def _table_of(item: object) -> dict[str, Any]:
    return item if isinstance(item, dict) else {}


def _permission_words(permission: dict[str, Any]) -> str:
    http = _table_of(permission.get("HTTP"))
    methods = ",".join(map(str, http.get("Methods") or ())) or "any method"
    path = next(
        (f"{http[key]}{mark}" for key, mark in _PATHS.items() if key in http),
        "any path",
    )
    headers = "".join(f" [{_table_of(item).get('Name')}]" for item in http.get("Header") or ())
    return f"{permission.get('Action')} {methods} {path}{headers}"


_PATHS = {"PathExact": "", "PathPrefix": "...", "PathRegex": " (regex)"}
