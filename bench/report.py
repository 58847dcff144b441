"""
The report of a run, as text a newcomer understands.

Owns wording and columns. Knows nothing of how anything was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from .figures import Figure, Row, Target
from .stats import Estimate

_FRAMEWORKS = {"starlette": "Starlette", "flask": "Flask"}
_EXPLAINED = """\
limit   Hypercorn with a certificate from a file and mutual TLS, no mesh: nothing native is faster
mesh    the same application with our middleware, `hypercorn --config mesh`, 20 intentions
envoy   the same application behind Envoy: mutual TLS, the same 20 intentions as RBAC

Ratios are what counts: medians over {rounds} interleaved rounds, with their 95 % interval. Absolute
figures belong to this machine at this hour. CPU is that of all processes of the server's side.
us: microseconds. A target is met when the interval reaches it."""


def text(
    machine: Mapping[str, str],
    rows: Sequence[Row],
    figures: Sequence[Figure],
    disturbed: tuple[int, int],
) -> str:
    """The whole report."""
    parts = [_machine(machine)]
    if rows:
        rounds = rows[0].ratios["limit"].rounds
        parts.append(_EXPLAINED.format(rounds=rounds))
        parts += [_table(name, rows) for name in dict.fromkeys(row.framework for row in rows)]
        parts.append(_disturbance(disturbed))
    if figures:
        parts.append("\n".join(_figures(figures)))
    parts.append("\n".join(_targets(rows, figures)))
    return "\n\n".join(parts)


def _machine(machine: Mapping[str, str]) -> str:
    place = ", ".join(machine[key] for key in ("processor", "system", "python"))
    others = {k: v for k, v in machine.items() if k not in ("processor", "system", "python")}
    return f"{place}\n{', '.join(f'{name} {value}' for name, value in others.items())}"


def _table(framework: str, rows: Iterable[Row]) -> str:
    head = f"{_FRAMEWORKS[framework]} on Hypercorn, uvloop, one worker"
    lines = [
        f"{head:42}{'limit':>9}{'mesh':>9}{'envoy':>9}    {'mesh : limit':22}{'mesh : envoy':22}"
    ]
    for row in rows:
        if row.framework == framework:
            amounts = "".join(_amount(row.absolute[kind]) for kind in ("limit", "mesh", "envoy"))
            ratios = "".join(f"{_interval(row.ratios[o]):22}" for o in ("limit", "envoy"))
            unit = "" if row.metric.unit == "/s" else f", {row.metric.unit}"
            lines.append(f"  {row.metric.name + unit:40}{amounts}    {ratios}".rstrip())
    return "\n".join(lines)


def _amount(value: float) -> str:
    return f"{value:9.0f}"


def _interval(ratio: Estimate) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _disturbance(disturbed: tuple[int, int]) -> str:
    some, all_of_them = disturbed
    if not some:
        return f"None of the {all_of_them} runs was taken while other programs were at work."
    share = some / all_of_them
    trust = ": do not trust this run, repeat it on a quiet machine" if share > 0.2 else ""
    return (
        f"{some} of the {all_of_them} runs were taken while other programs used more than a "
        f"quarter of a core{trust}."
    )


def _figures(figures: Iterable[Figure]) -> Iterator[str]:
    yield "Measured by itself"
    for figure in figures:
        found = figure.estimate
        line = f"  {figure.name:52}{found.median:8.2f} {figure.unit:4}"
        if found.low != found.high:
            line += f"({found.low:.2f} to {found.high:.2f})"
        yield f"{line:90}{figure.note}".rstrip()


def _targets(rows: Iterable[Row], figures: Iterable[Figure]) -> Iterator[str]:
    yield "Targets"
    for row in rows:
        for other, ratio in row.ratios.items():
            if target := row.target(other):
                against = "the limit" if other == "limit" else "Envoy"
                name = f"{_FRAMEWORKS[row.framework]}: {row.metric.name}, to {against}"
                yield _verdict(name, target, ratio, "")
    for figure in figures:
        if figure.target is not None:
            yield _verdict(figure.name, figure.target, figure.estimate, f" {figure.unit}")


def _verdict(name: str, target: Target, found: Estimate, unit: str) -> str:
    said = "met    " if target.met(found) else "NOT met"
    return f"  {said}  {name:60} {found.median:6.2f}{unit:4} {target}{unit}"
