"""The second way into the warehouse: Snowpipe Streaming, a channel per table and partition, tokens that are offsets.

Must never append a row that its channel has committed, nor move a position before all rows before it are committed.

A channel's token is the offset of its last committed row, kept by Snowflake together with the rows. A topic lands in
several tables, so no single token says how far a partition is: RAW.LOAD_OFFSETS does, moved by compare-and-set once all
channels of a flush have committed. What was appended and not yet noted there is found out by the tokens, and not
appended again. Who opens a channel ends that of whoever had it open before, with what was not committed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import pyarrow as pa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from marketflow_common import logs
from marketflow_common.kafka.client import FatalKafkaError
from marketflow_common.settings import SnowflakeSettings

from .warehouse import Away, Position, Step, Warehouse, nothing

__all__ = ["Batch", "Channel", "Client", "RowsRefused", "Streaming", "connect", "properties_of"]

COMMIT_SECONDS: Final = 60
"""How long rows may take from the channel to the table; it is seconds as a rule."""
APPEND_ROWS: Final = 5_000
"""Rows of one call: with the longest of ours that is far below the 16 MB that a request may have."""
_log = logs.get("streaming")


class RowsRefused(FatalKafkaError):
    """The pipe did not take rows that were appended to a channel: they are in no table."""


class Status(Protocol):
    """As much of the SDK's ChannelStatus as is looked at."""

    @property
    def latest_committed_offset_token(self) -> str | None: ...

    @property
    def rows_error_count(self) -> int: ...

    @property
    def last_error_message(self) -> str | None: ...


class Channel(Protocol):
    """As much of the SDK's StreamingIngestChannel as is used."""

    def append_rows(
        self, rows: list[dict[str, Any]], start_offset_token: str | None = None, end_offset_token: str | None = None
    ) -> None: ...

    def wait_for_commit(self, token_checker: Callable[[str | None], bool], timeout_seconds: int | None = None) -> None:
        """Raises TimeoutError, or the SDK's error if the channel is no longer ours."""

    def get_channel_status(self) -> Status: ...


class Client(Protocol):
    """As much of the SDK's StreamingIngestClient as is used: one for each table's pipe."""

    def open_channel(self, channel_name: str, offset_token: str | None = None) -> tuple[Channel, Status]: ...

    def close(self, wait_for_flush: bool = True, timeout_seconds: int | None = None) -> None: ...


class Batch(NamedTuple):
    """Rows for one channel, in order of their offsets."""

    table: str
    topic: str
    topic_id: str
    partition: int
    rows: list[dict[str, Any]]

    @property
    def channel(self) -> str:
        """Deterministic, and another one for a topic made anew."""
        return f"{self.topic}-{self.topic_id}-{self.partition}"


class _Open:
    """A channel and the offset of its last committed row, -1 before the first."""

    def __init__(self, channel: Channel, committed: int) -> None:
        self.channel, self.committed = channel, committed


class Streaming:
    """A Backend: rows by channels, positions by ``sql``. Every method but pack raises Away; call it again later."""

    def __init__(self, sql: Warehouse, connect: Callable[[str], Client], step: Step = nothing) -> None:
        self._sql, self._connect, self._step = sql, connect, step
        self._clients: dict[str, Client] = {}
        self._channels: dict[tuple[str, str], _Open] = {}

    @property
    def connected(self) -> bool:
        """Whether the session of the positions is open, as far as is known."""
        return self._sql.connected

    def close(self, wait_seconds: float = 0.0) -> None:
        """Give all channels up, and the session; rows that are not committed are dropped."""
        self._forget()
        self._sql.close(wait_seconds)

    def positions(self, topics: Collection[str]) -> list[Position]:
        """As Warehouse.positions."""
        return self._sql.positions(topics)

    def start(self, position: Position) -> None:
        """As Warehouse.start."""
        self._sql.start(position)

    def pack(self, name: str, tables: Mapping[str, pa.Table]) -> list[Batch]:
        """The tables' rows by channel, decimals as Decimal and times as datetime."""
        found: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
        for table, rows in tables.items():
            for row in rows.to_pylist():
                key = (table, row["KAFKA_TOPIC"], row["KAFKA_TOPIC_ID"], row["KAFKA_PARTITION"])
                found.setdefault(key, []).append(row)
        return [Batch(*key, sorted(rows, key=_offset)) for key, rows in found.items()]

    def land(self, packed: Sequence[Batch], moves: Sequence[tuple[Position, int]]) -> None:
        """Append what the channels do not have, wait until all is committed, then move the positions.

        Raises Moved or Away as Warehouse.land does, and RowsRefused.
        """
        try:
            opened = [self._opened(batch) for batch in packed]
            for batch, one in zip(packed, opened, strict=True):
                self._append(batch, one)
            self._step("appended")
            for batch, one in zip(packed, opened, strict=True):
                self._await(batch, one)
            self._step("streamed")
        except (FatalKafkaError, Away):
            self._forget()
            raise
        except Exception as error:  # the SDK's own error derives from Exception, and so do those of its Rust part
            # Whatever is on its way is settled by the token that the channel shows when it is opened again.
            self._forget()
            raise Away(f"Snowpipe Streaming: {type(error).__name__}: {error}") from error
        self._sql.land([], moves)

    def _opened(self, batch: Batch) -> _Open:
        key = (batch.table, batch.channel)
        if key not in self._channels:
            if batch.table not in self._clients:
                self._clients[batch.table] = self._connect(batch.table)
            channel, status = self._clients[batch.table].open_channel(batch.channel)
            _refused(batch, status)
            token = status.latest_committed_offset_token
            self._channels[key] = _Open(channel, -1 if token is None else int(token))
            _log.info("channel_opened", table=batch.table, channel=batch.channel, committed=token)
        return self._channels[key]

    def _append(self, batch: Batch, one: _Open) -> None:
        fresh = [row for row in batch.rows if _offset(row) > one.committed]
        for start in range(0, len(fresh), APPEND_ROWS):
            rows = fresh[start : start + APPEND_ROWS]
            one.channel.append_rows(rows, str(_offset(rows[0])), str(_offset(rows[-1])))

    def _await(self, batch: Batch, one: _Open) -> None:
        last = _offset(batch.rows[-1])
        if last <= one.committed:
            return
        one.channel.wait_for_commit(lambda token: token is not None and int(token) >= last, COMMIT_SECONDS)
        _refused(batch, one.channel.get_channel_status())
        one.committed = last

    def _forget(self) -> None:
        clients, self._clients, self._channels = self._clients, {}, {}
        for client in clients.values():
            with suppress(Exception):
                client.close(wait_for_flush=False, timeout_seconds=1)


def _offset(row: Mapping[str, Any]) -> int:
    return int(row["KAFKA_OFFSET"])


def _refused(batch: Batch, status: Status) -> None:
    """A token passes over rows that the pipe could not take: they must not be forgotten silently."""
    if status.rows_error_count:
        raise RowsRefused(
            f"Snowflake has refused {status.rows_error_count} rows of channel {batch.channel} into {batch.table}: "
            f"{status.last_error_message}. They are in Kafka, and not in the table; the position was not moved. "
            "Compare the table's columns with infra/snowflake-schema.sql, land the missing rows with "
            "MARKETFLOW_LOADER_BACKEND=copy, then drop the channel (loader/README.md)"
        )


def connect(settings: SnowflakeSettings) -> Callable[[str], Client]:
    """Makes a client of a table's default pipe, by the SDK. Raises FatalKafkaError if that is not installed."""
    try:
        from snowflake.ingest.streaming import StreamingIngestClient
    except ImportError as error:
        raise FatalKafkaError(
            "MARKETFLOW_LOADER_BACKEND=streaming needs the package snowpipe-streaming "
            f"(pip install 'marketflow-loader[streaming]'): {error}"
        ) from None
    properties = properties_of(settings)

    def client(table: str) -> Client:
        schema, _, name = table.partition(".")
        # Its own name each time: a name is for Snowflake's logs only.
        who = f"marketflow-loader-{secrets.token_hex(4)}"
        found: Client = StreamingIngestClient(
            who, settings.database, schema, f"{name}-STREAMING", properties=properties
        )
        return found

    return client


def properties_of(settings: SnowflakeSettings) -> dict[str, str]:
    """How the SDK is told to sign in. Raises FatalKafkaError if the private key cannot be read."""
    path = settings.private_key_file
    secret = settings.private_key_password.get_secret_value()
    try:
        key = load_pem_private_key(Path(path).read_bytes(), secret.encode() or None)
    except (OSError, ValueError, TypeError) as error:
        raise FatalKafkaError(
            f"MARKETFLOW_SNOWFLAKE_PRIVATE_KEY_FILE={path}: {error}; it has to be a PEM file, and "
            "MARKETFLOW_SNOWFLAKE_PRIVATE_KEY_PASSWORD its password if it has one"
        ) from None
    host = settings.host or f"{settings.account}.snowflakecomputing.com"
    found = {
        "account": settings.account,
        "user": settings.user,
        "url": f"{settings.protocol}://{host}:{settings.port}",
        "private_key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    }
    return found | ({"role": settings.role} if settings.role else {})
