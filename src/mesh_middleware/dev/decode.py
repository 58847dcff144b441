"""
Strict reading of JSON bodies, by a schema that is plain data.

Owns key matching the way Consul does it (any case, or snake_case), the refusal of unknown keys and
the canonical form (PascalCase, empty values left out). The schemas are in `schemas`.

Source: Consul HTTP API (reference 1.2, 4.5).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from .http import Refusal, parse_duration

Schema = Mapping[str, Any]
"""Key to: a type; "duration"; [schema of the items]; {"*": schema of the values}; a schema; or
None for any JSON. A function gives a schema that refers to itself."""

_GO_TYPES = {str: "string", int: "int", bool: "bool", float: "float64"}


class UnknownKeys(Exception):
    """Keys that no schema names, each with its path."""

    def __init__(self, paths: list[str]) -> None:
        super().__init__(", ".join(paths))
        self.paths = paths


def decode(value: Any, schema: Schema) -> dict[str, Any]:
    """
    Bring *value* into canonical form.

    Returns:
        Known keys in the schema's order and spelling, without nulls.

    Raises:
        UnknownKeys: some keys are in no schema.
        ValueError: a value has the wrong type.
    """
    unknown: list[str] = []
    result = _object(value, schema, "", unknown)
    if unknown:
        raise UnknownKeys(unknown)
    return result


def decode_body(value: Any, schema: Schema) -> dict[str, Any]:
    """
    `decode`, with the refusals of the agent endpoints.

    Raises:
        Refusal: 400, naming the first thing that is wrong.
    """
    try:
        return decode(value, schema)
    except UnknownKeys as error:
        name = error.paths[0].rpartition(".")[2]
        raise Refusal(
            400, f"Request decode failed: json: unknown field {json.dumps(name)}"
        ) from None
    except ValueError as error:
        raise Refusal(400, f"Request decode failed: {error}") from None


def decode_entry(value: Any, schema: Schema) -> dict[str, Any]:
    """
    `decode`, with the refusals of the config endpoint, which lists every unknown key.

    Raises:
        Refusal: 400.
    """
    try:
        return decode(value, schema)
    except UnknownKeys as error:
        count = len(error.paths)
        said = "1 error occurred" if count == 1 else f"{count} errors occurred"
        lines = "".join(f"\t* invalid config key {json.dumps(path)}\n" for path in error.paths)
        raise Refusal(400, f"Bad request: Request decoding failed: {said}:\n{lines}\n") from None
    except ValueError as error:
        raise Refusal(400, f"Bad request: Request decoding failed: {error}") from None


def without_empty(value: dict[str, Any]) -> dict[str, Any]:
    """*value* without empty members at the top, as Go's ``omitempty`` writes it."""
    return {key: item for key, item in value.items() if item not in ("", 0, False, [], {}, None)}


def _fold(key: str) -> str:
    return key.replace("_", "").lower()


def _object(value: Any, schema: Schema, path: str, unknown: list[str]) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"json: cannot unmarshal {_name(value)} into an object ({path or 'body'})")
    names = {_fold(name): name for name in schema}
    found: dict[str, Any] = {}
    for key, item in value.items():
        name = names.get(_fold(key))
        here = f"{path}.{name or key}" if path else name or key
        if name is None:
            unknown.append(here)
        elif item is not None:
            found[name] = _value(item, schema[name], here, unknown)
    return {name: found[name] for name in schema if name in found}


def _value(value: Any, wanted: Any, path: str, unknown: list[str]) -> Any:
    if isinstance(wanted, Callable) and not isinstance(wanted, type):  # type: ignore[arg-type]
        wanted = wanted()
    if wanted is None:
        return value
    if wanted == "duration":
        return _duration(value, path)
    if isinstance(wanted, list):
        return _list(value, wanted[0], path, unknown)
    if isinstance(wanted, Mapping):
        if "*" in wanted:
            return _map(value, wanted["*"], path, unknown)
        return _object(value, wanted, path, unknown)
    return _scalar(value, wanted, path)


def _scalar(value: Any, wanted: type, path: str) -> Any:
    fits = isinstance(value, wanted) and not (wanted is not bool and isinstance(value, bool))
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        fits = True
    if not fits:
        raise ValueError(
            f"json: cannot unmarshal {_name(value)} into Go struct field .{path}"
            f" of type {_GO_TYPES[wanted]}"
        )
    return value


def _duration(value: Any, path: str) -> Any:
    if isinstance(value, str):
        parse_duration(value or "0")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"json: cannot unmarshal {_name(value)} into a duration ({path})")
    return value


def _list(value: Any, item: Any, path: str, unknown: list[str]) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"json: cannot unmarshal {_name(value)} into a list ({path})")
    return [_value(one, item, f"{path}[{at}]", unknown) for at, one in enumerate(value)]


def _map(value: Any, item: Any, path: str, unknown: list[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"json: cannot unmarshal {_name(value)} into a map ({path})")
    return {key: _value(one, item, f"{path}.{key}", unknown) for key, one in value.items()}


def _name(value: Any) -> str:
    return {str: "string", bool: "bool", list: "array", dict: "object"}.get(type(value), "number")
