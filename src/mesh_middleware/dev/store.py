"""
The state file: what an agent still knows after a restart.

Owns the file's form: CA with its keys, config entries, services and checks, and an index that is
above every index given before. 0600, replaced whole; never half written.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..exceptions import ConfigError
from .ca import CertificateAuthority
from .index import Index
from .services import Change
from .state import CaConfig, State

VERSION = 1
HEADROOM = 1000
"""How far above the last index a restarted agent begins: leaves raise it without being saved."""


def save(state: State, path: Path) -> None:
    """Write the state, if it has changed since it was last written."""
    with state.lock:
        if not state.dirty:
            return
        state.dirty = False
        text = json.dumps(_dump(state))
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600 from birth
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def load(state: State, path: Path) -> bool:
    """
    Take over what the file holds.

    Returns:
        Whether there was a file.

    Raises:
        ConfigError: it is no state file of this agent.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise ConfigError(f"state file {path}: {error}") from None
    try:
        _load(state, saved)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"state file {path}: not written by this version ({error!r})") from None
    return True


def _dump(state: State) -> dict[str, Any]:
    return {
        "version": VERSION,
        "index": state.index.counter + HEADROOM,
        "node_id": state.node.id,
        "ca": state.ca.dump(),
        "ca_config": state.ca_config.config,
        "entries": state.entries.all(),
        "queries": state.queries,
        **state.services.dump(),
    }


def _load(state: State, saved: dict[str, Any]) -> None:
    if saved["version"] != VERSION:
        raise KeyError("version")
    index = int(saved["index"])
    state.index = Index(index)
    state.node = replace(state.node, id=saved["node_id"], index=index)
    state.ca = CertificateAuthority.load(saved["ca"])
    state.ca_config = CaConfig(saved["ca_config"], index, index)
    state.entries.load(saved["entries"])
    state.queries = saved["queries"]
    state.services.load(saved, state.now(), index)
    state.change_services(lambda _now, _index: Change())
    state.dirty = True
