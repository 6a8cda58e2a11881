"""Signed commands: only who has the secret can make one, and nothing in it can be changed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from marketflow_common import codec, topics
from marketflow_common.commands import genuine, signed
from marketflow_common.events import Command

SECRET = "correct horse battery staple"
COMMAND = Command("c-1", "main", "resume", "alice", 1_000, 2_000, "", "all is well again")


def test_a_signed_command_is_genuine_after_its_way_through_the_topic() -> None:
    sent = codec.encode(signed(COMMAND, SECRET))
    assert SECRET.encode() not in sent
    received = codec.decode(topics.TRADING_SIGNALS, sent)
    assert genuine(received, SECRET)
    assert not genuine(received, "another secret")


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "c-2"},
        {"account": "other"},
        {"action": "flatten"},
        {"asked_by": "mallory"},
        {"issued_at": 1_001},
        {"expires_at": None},
        {"reason": ""},
        {"signature": ""},
        {"signature": "é"},
    ],
    ids=str,
)
def test_whatever_is_changed_in_it_it_is_no_longer_genuine(changes: dict[str, Any]) -> None:
    assert not genuine(msgspec.structs.replace(signed(COMMAND, SECRET), **changes), SECRET)


def test_without_a_secret_nothing_is_signed_and_nothing_genuine() -> None:
    assert signed(COMMAND, "") == COMMAND
    assert not genuine(COMMAND, "")
