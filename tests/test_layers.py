"""
The picture of the layers and the imports are the same: imports point down, doors stand apart.

The picture is here; a new module does not pass until it has its place in it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import mesh_middleware

ROOT = Path(mesh_middleware.__file__).parent

LAYERS = [
    # values and rules
    "exceptions identity intentions certificates snapshot pauses misspelling urls",
    # shapes
    "config rhythm consul.wire consul.watch consul.intentions consul.pieces consul.entries"
    " consul.chains consul.rereading consul.providers consul.conditions",
    # edges
    "consul.connections consul.transport consul.client consul.defaults consul.lookout"
    " consul.shifts regular_file hosting tls gate standing trace resolve resolve_dns routing"
    " keepsake jwks",
    # the heart
    "mesh plugins hookspecs belief chains entries following registration upstreams watcher metrics"
    " raw calling outbound keeper probe refusals watched judging supervision",
    # doors, and what they share
    "asgi wsgi flask httpx httpx2 servers inbound doors answers live frameworks",
    # commands
    "cli dev pytest_plugin",
]
LAYER = {name: number for number, line in enumerate(LAYERS) for name in line.split()}
PURE = {name for name, number in LAYER.items() if number <= 1} - {"config"}

DOORS = {"asgi", "wsgi", "flask", "httpx", "httpx2", "servers"}
# A framework's door stands on its gateway's; both end at import what their server cannot run.
STANDS_ON = {("flask", "wsgi"), ("flask", "servers"), ("wsgi", "servers"), ("httpx2", "httpx")}

EFFECTS = "asyncio httpx logging os pathlib random socket ssl subprocess tempfile threading".split()


def modules() -> Iterator[tuple[str, list[str]]]:
    """Each module as its parts, and everything it imports, wherever in it the import stands."""
    for path in sorted(ROOT.rglob("*.py")):
        package = ".".join((ROOT.name, *path.relative_to(ROOT).parent.parts))
        name = package if path.stem == "__init__" else f"{package}.{path.stem}"
        found: list[str] = []
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above * bool(node.level), *filter(None, [node.module])])
                inside = not node.module or base == f"{ROOT.name}.consul"
                found += [f"{base}.{alias.name}" for alias in node.names] if inside else [base]
        yield name, found


def place(module: str) -> str:
    """The name of *module* in the picture; empty for the package itself and other packages."""
    parts = module.split(".")[1:] if module.split(".")[0] == ROOT.name else []
    parts = [mesh_middleware._HOMES.get(part, part) for part in parts]
    return ".".join(parts[: 2 if parts[:1] == ["consul"] else 1])


IMPORTS = [(place(name), place(it)) for name, found in modules() for it in found]
EDGES = sorted({(here, there) for here, there in IMPORTS if here and there and here != there})


def test_every_module_has_its_place() -> None:
    """What is in the package is in the picture, and the other way round."""
    there = {place(name) for name, _ in modules()} - {"", "consul"}
    assert there == set(LAYER)


def test_imports_point_down() -> None:
    """No module imports one of a higher layer."""
    assert [(here, there) for here, there in EDGES if LAYER[there] > LAYER[here]] == []


def test_doors_do_not_know_each_other() -> None:
    """But for a framework's door, which stands on its gateway's."""
    met = {edge for edge in EDGES if set(edge) <= DOORS}
    assert met <= STANDS_ON


def test_the_dev_agent_reads_the_api_by_itself() -> None:
    """It shares no code with the client side: a mistake in one is not repeated in the other."""
    assert {there for here, there in EDGES if here == "dev"} == {"exceptions", "identity"}


def test_values_and_rules_have_no_effects() -> None:
    """Neither they nor the shapes of Consul's answers reach network, disk, threads or dice."""
    found = {(n, it) for n, found in modules() if place(n) in PURE for it in found}
    assert {(name, it) for name, it in found if it.split(".")[0] in EFFECTS} == set()


def test_nothing_goes_round_in_circles() -> None:
    """Modules of one layer may know each other, in one direction."""
    left = {here: {b for a, b in EDGES if a == here} for here in LAYER}
    while free := [name for name, below in left.items() if not below & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}
