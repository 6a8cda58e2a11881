"""JSON Schemas of the events: written to libs/common/schemas/, and what a change may do to them.

``python -m marketflow_common.schemas DIRECTORY`` writes them. Must never be needed by a running service.
"""

from __future__ import annotations

import inspect
import json
import sys
import typing
from pathlib import Path
from typing import Any

import msgspec

from . import codec, events

__all__ = ["breaking_changes", "generate", "write"]


def generate() -> dict[str, dict[str, Any]]:
    """Schema name (``trade``) to JSON Schema."""
    kinds = {
        kind
        for union in codec.TOPIC_EVENTS.values()
        for kind in (typing.get_args(union) or (union,))
        if issubclass(kind, events.Event)
    }
    found = {codec.schema_of(kind): msgspec.json.schema(kind) for kind in sorted(kinds, key=codec.schema_of)}
    plain: dict[str, dict[str, Any]] = json.loads(msgspec.json.encode(found), object_hook=_undented)
    return plain


def _undented(schema: dict[str, Any]) -> dict[str, Any]:
    """Descriptions come from docstrings, which keep their indentation up to Python 3.12 and lose it from 3.13 on."""
    if isinstance(text := schema.get("description"), str):
        schema["description"] = inspect.cleandoc(text)
    return schema


def breaking_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Why data written by one of two versions could not be read by the other; empty if both survive.

    Fields may be added with a default. None may go, change its type or become required.
    """
    problems: list[str] = []
    for name, before in _objects(old).items():
        after = _objects(new).get(name)
        if after is None:
            problems.append(f"{name} is gone")
            continue
        for field, kind in before["properties"].items():
            if field not in after["properties"]:
                problems.append(f"{name}.{field} is gone: old readers need it")
            elif after["properties"][field] != kind:
                problems.append(f"{name}.{field} was {kind} and is {after['properties'][field]}")
        for field in sorted(set(after.get("required", ())) - set(before.get("required", ()))):
            problems.append(f"{name}.{field} is required, but old data does not have it")
    return problems


def _objects(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: body for name, body in schema.get("$defs", {}).items() if "properties" in body}


def write(directory: Path) -> None:
    """Write one file per schema."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, schema in generate().items():
        (directory / f"{name}.json").write_text(json.dumps(schema, indent=2) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
