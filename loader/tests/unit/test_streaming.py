"""The second backend's own logic: what is appended, when a position moves, and what happens when an answer is lost.

The far side is a stand-in for the SDK's client: it keeps rows and tokens as its documentation says Snowflake does. No
test here shows what Snowflake itself does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from marketflow_common import codec, topics
from marketflow_common.events import Gap, Trade
from marketflow_common.kafka.client import FatalKafkaError
from marketflow_common.settings import InvalidSettings, SnowflakeSettings, load
from marketflow_loader.settings import LoaderSettings
from marketflow_loader.streaming import RowsRefused, Streaming, connect, properties_of
from marketflow_loader.tables import Landing, Row
from marketflow_loader.warehouse import Away, Moved, Place, Position

PLACE = Place("x-ohlcv_raw", "id-1", 0)


class SdkError(Exception):
    """As the SDK's StreamingIngestError."""


@dataclass
class Status:
    latest_committed_offset_token: str | None
    rows_error_count: int = 0
    last_error_message: str | None = None


@dataclass
class Kept:
    """A channel at the far side."""

    rows: list[int] = field(default_factory=list)
    token: str | None = None
    owner: Any = None
    waiting: list[tuple[list[int], str]] = field(default_factory=list)
    errors: int = 0


class Snowflake:
    """Channels by table and name. What is appended is committed when it is next looked at, unless it gets lost."""

    def __init__(self) -> None:
        self.channels: dict[tuple[str, str], Kept] = {}
        self.lose = ""

    def client(self, table: str) -> Client:
        return Client(self, table)

    def rows(self, table: str) -> list[int]:
        return sorted(row for (name, _), kept in self.channels.items() if name == table for row in kept.rows)

    def commit(self, kept: Kept) -> None:
        for rows, token in kept.waiting:
            kept.rows += rows
            kept.token = token
        kept.waiting = []


class Client:
    def __init__(self, far: Snowflake, table: str) -> None:
        self._far, self._table = far, table

    def open_channel(self, channel_name: str, offset_token: str | None = None) -> tuple[Channel, Status]:
        if self._far.lose == "open":
            self._far.lose = ""
            raise SdkError("cannot open")
        kept = self._far.channels.setdefault((self._table, channel_name), Kept())
        kept.waiting = []
        channel = Channel(self._far, kept)
        kept.owner = channel
        return channel, Status(kept.token, kept.errors)

    def close(self, wait_for_flush: bool = True, timeout_seconds: int | None = None) -> None:
        assert not wait_for_flush


class Channel:
    def __init__(self, far: Snowflake, kept: Kept) -> None:
        self._far, self._kept = far, kept

    def _mine(self) -> None:
        if self._kept.owner is not self:
            raise SdkError("the channel was opened by another client")

    def append_rows(
        self, rows: list[dict[str, Any]], start_offset_token: str | None = None, end_offset_token: str | None = None
    ) -> None:
        self._mine()
        offsets = [row["KAFKA_OFFSET"] for row in rows]
        assert (str(offsets[0]), str(offsets[-1])) == (start_offset_token, end_offset_token)
        if self._far.lose == "append":
            self._far.lose = ""
            raise SdkError("the connection broke")
        self._kept.waiting.append((offsets, str(end_offset_token)))

    def wait_for_commit(self, token_checker: Callable[[str | None], bool], timeout_seconds: int | None = None) -> None:
        self._mine()
        if self._far.lose == "before the commit":
            self._far.lose = ""
            raise TimeoutError("Wait for commit timed out")
        self._far.commit(self._kept)
        if self._far.lose == "after the commit":
            self._far.lose = ""
            raise SdkError("no answer")
        if not token_checker(self._kept.token):
            raise TimeoutError("Wait for commit timed out")

    def get_channel_status(self) -> Status:
        self._mine()
        return Status(self._kept.token, self._kept.errors, "Numeric value is not recognized")


class Sql:
    """The positions, as Warehouse keeps them."""

    def __init__(self) -> None:
        self.held, self.connected, self.lose = {PLACE: 0}, True, ""

    def land(self, files: Sequence[Any], moves: Sequence[tuple[Position, int]]) -> None:
        assert not files
        if self.lose == "before the move":
            self.lose = ""
            raise Away("no answer")
        if any(self.held[held.place] != held.next_offset for held, _ in moves):
            raise Moved("somebody else")
        self.held.update((held.place, following) for held, following in moves)
        if self.lose == "after the move":
            self.lose = ""
            raise Away("no answer")

    def close(self) -> None:
        self.connected = False


@pytest.fixture
def far() -> Snowflake:
    return Snowflake()


@pytest.fixture
def sql() -> Sql:
    return Sql()


def backend(far: Snowflake, sql: Sql) -> Streaming:
    return Streaming(sql, far.client)  # type: ignore[arg-type]


def packed(streaming: Streaming, *offsets: int) -> Any:
    """Each tenth record a gap, all others trades: two tables, so two channels."""
    landing = Landing(1)
    for offset in offsets:
        gap = Gap("test", "S", offset, offset, "lost", True)
        trade = Trade("test", "S", offset, Decimal("1.5"), Decimal(1), True, 1, 1)
        value = codec.encode(gap if offset % 10 == 0 else trade)
        landing.add([Row(topics.OHLCV_RAW, *PLACE, offset, 1_000, b"S", value)])
    return streaming.pack("name", landing.tables())


def land(streaming: Streaming, sql: Sql, *offsets: int) -> None:
    """As the effect does it: whatever has landed by the position is left out."""
    held = sql.held[PLACE]
    fresh = [offset for offset in offsets if offset >= held]
    streaming.land(packed(streaming, *fresh), [(Position(PLACE, held), offsets[-1] + 1)])


def test_rows_go_to_the_channel_of_their_table_and_partition_and_the_position_follows(far: Snowflake, sql: Sql) -> None:
    streaming = backend(far, sql)
    land(streaming, sql, *range(15))
    land(streaming, sql, *range(15, 25))
    assert far.rows("RAW.FEED_EVENTS") == [0, 10, 20]
    assert far.rows("RAW.TRADES") == [n for n in range(25) if n % 10]
    assert {key: kept.token for key, kept in far.channels.items()} == {
        ("RAW.TRADES", "x-ohlcv_raw-id-1-0"): "24", ("RAW.FEED_EVENTS", "x-ohlcv_raw-id-1-0"): "20",
    }  # fmt: skip
    assert sql.held == {PLACE: 25}


def test_a_row_has_the_tables_columns_with_exact_values(far: Snowflake, sql: Sql) -> None:
    [batch] = packed(backend(far, sql), 3)
    assert (batch.table, batch.channel) == ("RAW.TRADES", "x-ohlcv_raw-id-1-0")
    [row] = batch.rows
    assert (row["PRICE"], row["TRADE_ID"], row["BUYER_IS_MAKER"]) == (Decimal("1.5"), 3, True)
    assert row["KAFKA_APPENDED_AT"].isoformat() == "1970-01-01T00:00:01+00:00"


@pytest.mark.parametrize("lose", ["open", "append", "before the commit", "after the commit"])
@pytest.mark.parametrize("where", [0, 1])
def test_an_outcome_that_is_not_known_is_settled_by_the_tokens(far: Snowflake, sql: Sql, lose: str, where: int) -> None:
    streaming = backend(far, sql)
    if where:
        land(streaming, sql, *range(5))
    far.lose = lose
    if not (where and lose == "open"):  # open already
        with pytest.raises(Away, match="Snowpipe Streaming"):
            land(streaming, sql, *range(5 * where, 15))
        assert sql.held == {PLACE: 5 * where}
    far.lose = ""
    land(streaming, sql, *range(5 * where, 20))
    assert far.rows("RAW.TRADES") == [n for n in range(20) if n % 10]
    assert far.rows("RAW.FEED_EVENTS") == [0, 10]
    assert sql.held == {PLACE: 20}


@pytest.mark.parametrize("lose", ["before the move", "after the move"])
def test_rows_that_are_committed_before_the_position_is_moved_are_not_appended_again(
    far: Snowflake, sql: Sql, lose: str
) -> None:
    streaming = backend(far, sql)
    sql.lose = lose
    with pytest.raises(Away):
        land(streaming, sql, *range(15))
    # The process has died there: the next one knows the position and the tokens only.
    land(backend(far, sql), sql, *range(20))
    assert far.rows("RAW.TRADES") == [n for n in range(20) if n % 10]
    assert far.rows("RAW.FEED_EVENTS") == [0, 10]
    assert sql.held == {PLACE: 20}


def test_a_loader_whose_channel_was_opened_by_another_lands_nothing_more_by_it(far: Snowflake, sql: Sql) -> None:
    old, new = backend(far, sql), backend(far, sql)
    land(old, sql, *range(5))
    stale = [(Position(PLACE, sql.held[PLACE]), 10)]
    land(new, sql, *range(5, 8))
    with pytest.raises(Away, match="another client"):
        old.land(packed(old, *range(5, 10)), stale)
    # It opens them again, which ends the other's; the tokens keep it from repeating, the position from going ahead.
    with pytest.raises(Moved):
        old.land(packed(old, *range(5, 10)), stale)
    with pytest.raises(Away):
        land(new, sql, *range(8, 12))
    land(new, sql, *range(8, 12))
    assert far.rows("RAW.TRADES") == [n for n in range(12) if n % 10]
    assert sql.held == {PLACE: 12}


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_lost_each_row_is_there_once(far: Snowflake, sql: Sql, seed: int) -> None:
    random, loaders, end = Random(seed), [backend(far, sql), backend(far, sql)], 0
    for _ in range(200):
        end = max(end, sql.held[PLACE] + random.randint(0, 12))
        if sql.held[PLACE] == end:
            continue
        far.lose = random.choice(["open", "append", "before the commit", "after the commit", *[""] * 6])
        sql.lose = random.choice(["before the move", "after the move", *[""] * 4])
        at = random.randrange(2)
        if random.random() < 0.1:
            loaders[at] = backend(far, sql)
        try:
            land(loaders[at], sql, *range(sql.held[PLACE], end))
        except (Away, Moved):
            continue
    far.lose = sql.lose = ""
    end += 1
    for loader in loaders:
        try:
            land(loader, sql, *range(min(sql.held[PLACE], end - 1), end))
        except (Away, Moved):
            land(loader, sql, *range(min(sql.held[PLACE], end - 1), end))
    assert far.rows("RAW.TRADES") == [n for n in range(end) if n % 10]
    assert far.rows("RAW.FEED_EVENTS") == [n for n in range(end) if n % 10 == 0]


def test_rows_that_the_pipe_refuses_stop_the_loader_now_and_after_a_restart(far: Snowflake, sql: Sql) -> None:
    streaming = backend(far, sql)
    land(streaming, sql, *range(1, 5))
    far.channels["RAW.TRADES", "x-ohlcv_raw-id-1-0"].errors = 2
    with pytest.raises(RowsRefused, match=r"refused 2 rows .* Numeric value is not recognized"):
        land(streaming, sql, *range(5, 9))
    assert sql.held == {PLACE: 5}
    with pytest.raises(RowsRefused):
        land(backend(far, sql), sql, *range(5, 9))
    assert sql.held == {PLACE: 5}


# --- signing in --------------------------------------------------------------------------------------


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    file = tmp_path / "loader.p8"
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"sesame")))
    return file


def settings(**more: Any) -> SnowflakeSettings:
    return SnowflakeSettings(account="org-name", user="loader", role="R", **more)


def test_the_sdk_gets_the_key_unlocked_and_the_accounts_address(key_file: Path) -> None:
    found = properties_of(settings(private_key_file=str(key_file), private_key_password="sesame"))
    assert found.pop("private_key").startswith("-----BEGIN PRIVATE KEY-----")
    assert found == {
        "account": "org-name", "user": "loader", "role": "R", "url": "https://org-name.snowflakecomputing.com:443",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "password"), [("nowhere.p8", "sesame"), ("loader.p8", "wrong"), ("loader.p8", "")])
def test_a_key_that_cannot_be_read_is_named_and_its_password_is_not(key_file: Path, name: str, password: str) -> None:
    path = key_file.with_name(name)
    with pytest.raises(FatalKafkaError, match=r"MARKETFLOW_SNOWFLAKE_PRIVATE_KEY_FILE=.*PEM file") as raised:
        properties_of(settings(private_key_file=str(path), private_key_password=password))
    assert "sesame" not in str(raised.value)


def test_the_backend_needs_a_key_pair_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKETFLOW_SNOWFLAKE_ACCOUNT", "org-name")
    monkeypatch.setenv("MARKETFLOW_SNOWFLAKE_USER", "loader")
    monkeypatch.setenv("MARKETFLOW_LOADER_BACKEND", "streaming")
    with pytest.raises(InvalidSettings, match="needs MARKETFLOW_SNOWFLAKE_PRIVATE_KEY_FILE"):
        load(LoaderSettings)
    monkeypatch.setenv("MARKETFLOW_SNOWFLAKE_PRIVATE_KEY_FILE", "loader.p8")
    assert load(LoaderSettings).backend == "streaming"
    monkeypatch.setenv("MARKETFLOW_LOADER_BACKEND", "carrier pigeon")
    with pytest.raises(InvalidSettings, match="MARKETFLOW_LOADER_BACKEND"):
        load(LoaderSettings)


def test_without_the_sdk_the_error_names_the_package(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "snowflake.ingest.streaming", None)
    with pytest.raises(FatalKafkaError, match=r"pip install 'marketflow-loader\[streaming\]'"):
        connect(settings(private_key_file=str(key_file), private_key_password="sesame"))
