"""
``make bench``: what the mesh costs, against the limit and against Envoy, in one run.

Owns the order of things and what is said meanwhile. Everything is on loopback; every process is
ended with the run, also when it is interrupted.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from . import door, figures, flips, footprint, load, machine, report, rotation
from .processes import Processes
from .rounds import Rounds, Samples
from .setting import ROOT, SettingError, Stage

CACHE = ROOT / ".cache" / "bench"
ALSO = ("decide.py", "client.py", "upstreams_scale.py", "wsgi.py")
"""Benches of their own, run at the end."""
ALSO_SECONDS = 600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and tell how it went: 0 when everything could be measured."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, _interrupted)
    began = time.monotonic()
    try:
        program = load.build(CACHE)
        with tempfile.TemporaryDirectory(prefix="mesh-bench-") as folder, Processes() as started:
            samples, found = _measure(Stage.open(Path(folder), started), program, options)
    except (load.LoadError, SettingError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; every process was ended", file=sys.stderr)
        return 130
    _print(samples, found, options.json)
    print(f"\n{time.monotonic() - began:.0f} s")
    return _run_others(options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=None, help="interleaved rounds (15)")
    parser.add_argument("--quick", action="store_true", help="see that it works: 2 small rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there, too")
    parser.add_argument("--only", choices=("rounds", "figures"), help="one half of it")
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = 2 if options.quick else 15
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    return options


def _measure(
    stage: Stage, program: Path, options: argparse.Namespace
) -> tuple[Samples, list[figures.Figure]]:
    samples: Samples = {}
    found: list[figures.Figure] = []
    if options.only != "figures":
        share = 0.1 if options.quick else 1.0
        samples = Rounds(stage, program, share=share, told=_tell).run(options.rounds)
    if options.only != "rounds":
        found = _figures(stage, program, quick=options.quick)
    return samples, found


def _figures(stage: Stage, program: Path, *, quick: bool) -> list[figures.Figure]:
    _tell("what the door adds, in process")
    found = door.measure(stage, 8 if quick else 40)
    found += footprint.memory(stage, program, 1 if quick else 5, _tell)
    found += footprint.start_up(stage, 2 if quick else 9, _tell)
    stage.lean = False
    server = stage.mesh("starlette")
    stage.check(server)
    found += flips.measure(stage, server, 5 if quick else 40, _tell)
    server.close()
    # Last: it leaves the agent with other roots than those of the callers' certificates.
    _tell("leaf and roots rotate beside an event loop")
    found += rotation.measure(stage, 5 if quick else 30)
    return found


def _print(samples: Samples, found: list[figures.Figure], file: Path | None) -> None:
    described = machine.describe()
    table = figures.rows(samples)
    print("\n" + report.text(described, table, found, figures.disturbed(samples)))
    if file is not None:
        written = figures.as_json(described, samples, table, found)
        file.write_text(json.dumps(written, indent=1) + "\n")


def _run_others(options: argparse.Namespace) -> int:
    failed = 0
    for name in ALSO:
        path = Path(__file__).with_name(name)
        if not path.exists() or options.only is not None:
            continue
        print(f"\nbench/{name}", flush=True)
        command = [sys.executable, "-m", f"bench.{path.stem}", *_passed(options)]
        failed |= subprocess.run(command, cwd=ROOT, timeout=ALSO_SECONDS, check=False).returncode
    return 1 if failed else 0


def _passed(options: argparse.Namespace) -> list[str]:
    return ["--quick"] if options.quick else []


def _tell(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
