"""
The ``mesh`` command.

Owns the way from a command line to an exit code: 0 it worked, 1 it did not, 2 the command line or
a setting is wrong. Each subcommand is a file beside this one and is imported when it is called, so
that ``mesh --help`` stays quick. Knows nothing of what the subcommands do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import cast

from ..exceptions import ConfigError, MeshError

__all__ = ["main"]

_NEEDS_EXTRA = "mesh: this command needs its extra: pip install 'mesh-middleware[cli]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the ``mesh`` command.

    Args:
        arguments: words after ``mesh``; ``None`` takes those of this process.

    Returns:
        The exit code. What went wrong is one line on standard error, never a traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        import rich  # noqa: F401  (the subcommands want it later; say so now)
        import typer
    except ModuleNotFoundError:
        return _fail(_NEEDS_EXTRA, 2)
    from . import commands

    # Typer keeps click's tree in public view only through BadParameter, whichever click it uses.
    command_line_error = cast(type[Exception], typer.BadParameter.__mro__[2])
    try:
        answer = commands.app(words or ["--help"], prog_name="mesh", standalone_mode=False)
        sys.stdout.flush()
    except ConfigError as error:
        return _fail(f"mesh: {_line(error)}", 2)
    except MeshError as error:
        return _fail(f"mesh: {_line(error)}", 1)
    except typer.Abort:
        return 130
    except BrokenPipeError:
        # The reader of our output is gone: nothing to say, and no complaint from the final flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except command_line_error as error:
        where = getattr(getattr(error, "ctx", None), "command_path", "mesh")
        return _fail(f"mesh: {_line(error)} ({where} --help)", 2)
    return answer if isinstance(answer, int) else 0


def _line(error: BaseException) -> str:
    message = getattr(error, "format_message", error.__str__)()
    return " ".join(str(message).split()) or type(error).__name__


def _fail(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code
