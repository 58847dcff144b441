"""
Rules as people write them on a command line or in a file, made into what the agent takes.

Owns the reading of ``--permission``, ``--file`` and ``intentions.json``. Knows the frame of a rule;
whether its parts are right, the agent tells.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..exceptions import ConfigError


def rule(*, allow: bool | None, permissions: Sequence[str], file: Path | None) -> dict[str, Any]:
    """
    Make one intention's rule.

    Args:
        allow: L4 verdict.
        permissions: L7 permissions, each a JSON object.
        file: a JSON file with L7 permissions, a list or ``{"Permissions": [...]}``.

    Returns:
        ``{"Action": ...}`` or ``{"Permissions": [...]}``.

    Raises:
        ConfigError: not exactly one of the three, or the JSON is none.
    """
    if (allow is not None) + bool(permissions) + (file is not None) != 1:
        raise ConfigError("say one of --allow, --deny, --permission and --file")
    if allow is not None:
        return {"Action": "allow" if allow else "deny"}
    if file is None:
        return {"Permissions": [_object(_parse(text, "--permission")) for text in permissions]}
    data = read(file)
    if isinstance(data, dict):
        data = data.get("Permissions")
    if not isinstance(data, list) or not data:
        raise ConfigError(f"{file}: a list of permissions is wanted")
    return {"Permissions": [_object(item) for item in data]}


def entries(file: Path) -> list[dict[str, Any]]:
    """
    Read the config entries of a file such as ``intentions.json``.

    Args:
        file: JSON, one entry or a list of entries, each with ``Kind`` and ``Name``.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    data = read(file)
    found = [_object(item) for item in (data if isinstance(data, list) else [data])]
    for item in found:
        if not isinstance(item.get("Kind"), str) or not isinstance(item.get("Name"), str):
            raise ConfigError(f"{file}: a config entry has a Kind and a Name")
    return found


def read(file: Path) -> Any:
    """
    Read a file of JSON.

    Raises:
        ConfigError: it cannot be read, or is no JSON.
    """
    try:
        return _parse(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None


def _object(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ConfigError(f"{json.dumps(item)[:80]}: a JSON object is wanted")
    return item
