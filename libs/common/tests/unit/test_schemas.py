"""The wire format may only change in ways that old data and old readers survive."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import jsonschema
import pytest
from marketflow_common import codec, events, schemas

FOLDER = Path(__file__).parents[2] / "schemas"
COMMITTED = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
SAMPLES = [line for line in (Path(__file__).parent / "samples-v1.jsonl").read_bytes().splitlines() if line]


def test_the_schemas_in_the_repository_are_those_of_the_code() -> None:
    assert schemas.generate() == COMMITTED, (
        f"run `python -m marketflow_common.schemas {FOLDER.relative_to(FOLDER.parents[2])}` and read the difference"
    )


def test_old_data_and_old_readers_survive() -> None:
    for name, new in schemas.generate().items():
        if name in COMMITTED:
            assert schemas.breaking_changes(COMMITTED[name], new) == []


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda line: json.loads(line)["type"])
def test_data_of_the_first_version_is_still_read_and_fits_its_schema(sample: bytes) -> None:
    kind = json.loads(sample)["type"]
    jsonschema.validate(json.loads(sample), COMMITTED[kind])
    topic = next(t for t, union in codec.TOPIC_EVENTS.items() if kind in _tags(union))
    event = codec.decode(topic, sample)
    assert json.loads(codec.encode(event)).items() >= json.loads(sample).items()


def _tags(union: object) -> set[str]:
    kinds = getattr(union, "__args__", (union,))
    return {codec.schema_of(kind) for kind in kinds}


def test_there_is_a_sample_of_every_event() -> None:
    assert {json.loads(line)["type"] for line in SAMPLES} == set(COMMITTED)


def test_changes_that_would_break_somebody_are_named() -> None:
    old = schemas.generate()["trade"]
    gone, retyped, required = copy.deepcopy(old), copy.deepcopy(old), copy.deepcopy(old)
    del gone["$defs"]["Trade"]["properties"]["price"]
    retyped["$defs"]["Trade"]["properties"]["price"] = {"type": "number"}
    required["$defs"]["Trade"]["properties"]["fee"] = {"type": "string"}
    required["$defs"]["Trade"]["required"].append("fee")
    assert "price is gone" in schemas.breaking_changes(old, gone)[0]
    assert "price was" in schemas.breaking_changes(old, retyped)[0]
    assert "fee is required" in schemas.breaking_changes(old, required)[0]
    assert events.Trade.__struct_fields__[0] == "source"
