"""The four topics, and in which partition a key lives.

Must never declare partitions or retention: that is infra/kafka-topics.tf alone.
"""

from __future__ import annotations

from typing import Final, Literal

__all__ = ["ALL", "OHLCV_AGG", "OHLCV_RAW", "ORDER_EVENTS", "TRADING_SIGNALS", "Topic", "partition_of"]

Topic = Literal["ohlcv_raw", "ohlcv_agg", "trading_signals", "order_events"]

OHLCV_RAW: Final = "ohlcv_raw"
OHLCV_AGG: Final = "ohlcv_agg"
TRADING_SIGNALS: Final = "trading_signals"
ORDER_EVENTS: Final = "order_events"
ALL: Final[tuple[Topic, ...]] = (OHLCV_RAW, OHLCV_AGG, TRADING_SIGNALS, ORDER_EVENTS)


def partition_of(key: str, partitions: int) -> int:
    """The partition of a key: murmur2 as Java clients do (librdkafka's default, CRC32, differs).

    One explicit function, so that a symbol lives in the same partition number in all four topics.
    """
    return (_murmur2(key.encode()) & 0x7FFFFFFF) % partitions


def _murmur2(data: bytes) -> int:
    """``org.apache.kafka.common.utils.Utils.murmur2``, unsigned."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = (0x9747B28C ^ len(data)) & mask
    for i in range(0, len(data) & ~3, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k = (k ^ (k >> 24)) * m & mask
        h = (h * m & mask) ^ k
    rest = data[len(data) & ~3 :]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return h ^ (h >> 15)
