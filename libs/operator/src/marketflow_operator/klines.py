"""Candles of a running system beside the exchange's own REST klines: on the simulator, a testnet or Binance itself.

Edge, and the comparison, which is pure. It asks only what anybody may ask: no key, no ledger. Must never use a
service's code, nor round: two numbers are equal or they are not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

import httpx
from confluent_kafka import KafkaException
from marketflow_common.events import Candle, Kline
from marketflow_common.intervals import INTERVALS
from marketflow_common.kafka import client
from marketflow_common.numbers import NotANumber
from marketflow_common.settings import KafkaSettings
from marketflow_common.topics import OHLCV_AGG
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .audit.exchange import kline_of
from .audit.market import KLINE_FIELDS, differences, minute_text
from .audit.model import Where
from .audit.topics import CannotRead, answers

__all__ = ["Comparison", "RestKlines", "compare", "compare_all", "read_candles", "show"]

PAGE: Final = 1_000
"""Most klines in one answer (Binance, "Kline/Candlestick data": limit)."""
LONGEST_WAIT: Final = 120.0
"""Seconds of Retry-After that one page is waited for in all; beyond it the exchange is said not to answer."""
SHOWN: Final = 10
"""Differences that are shown of one series."""

Series = tuple[str, str]
"""Symbol and interval."""
Candles = Mapping[int, tuple[Where, Candle]]
"""The last word on each window, by its open time in microseconds."""


@dataclass
class Comparison:
    """How the candles of one symbol and interval stand beside the exchange's klines.

    ``different``: a line for each candle with the fields that differ. ``stated``: candles that differ and say which
    trades they miss. ``absent``: open times of klines that the exchange has and the topic has not, between its first
    and last candle.
    """

    symbol: str
    interval: str
    compared: int = 0
    equal: int = 0
    different: list[str] = field(default_factory=list)
    stated: list[str] = field(default_factory=list)
    absent: list[int] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every candle equals its kline and none is absent."""
        return self.equal == self.compared and not self.absent


def compare(symbol: str, interval: str, candles: Candles, klines: Mapping[int, Kline]) -> Comparison:
    """Candles against klines, both by open time; every field exactly."""
    found = Comparison(symbol, interval)
    for at, (where, candle) in sorted(candles.items()):
        found.compared += 1
        kline = klines.get(at)
        wrong = ["the exchange has no such kline"] if kline is None else differences(candle, kline, KLINE_FIELDS)
        if not wrong:
            found.equal += 1
            continue
        told = f"{symbol} {interval} {minute_text(at)} at {where}: {', '.join(wrong)}"
        if candle.missing:
            ranges = ", ".join(f"{a} to {b}" for a, b in candle.missing)
            found.stated.append(f"{told} (it states that trades {ranges} are missing)")
        else:
            found.different.append(told)
    found.absent = sorted(at for at in klines if at not in candles)
    return found


def read_candles(kafka: KafkaSettings, since: int = 0) -> dict[Series, dict[int, tuple[Where, Candle]]]:
    """The last word of ohlcv_agg on every window that opens at ``since`` (microseconds) or later. Raises CannotRead."""
    answers(kafka)
    found: dict[Series, dict[int, tuple[Where, Candle]]] = {}
    try:
        for partition in range(client.partition_count(kafka, OHLCV_AGG)):
            for record in client.read_range(kafka, OHLCV_AGG, partition, 0):
                candle: Candle = record.event
                if candle.open_time < since:
                    continue
                windows = found.setdefault((candle.symbol, candle.interval), {})
                known = windows.get(candle.open_time)
                if known is None or candle.revision >= known[1].revision:
                    windows[candle.open_time] = Where(OHLCV_AGG, partition, record.offset), candle
    except (KafkaException, client.FatalKafkaError) as error:
        raise CannotRead(f"Kafka at {kafka.bootstrap_servers}: {error}") from None
    return dict(sorted(found.items()))


class RestKlines:
    """``GET /api/v3/klines`` of an exchange, without a key. Close it at the end."""

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        # The environment's proxy is used for what lies outside of this machine only.
        local = httpx.URL(self.url).host in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.Client(timeout=20, trust_env=not local, transport=transport)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def ping(self) -> None:
        """Whether an exchange answers at all. Raises CannotRead."""
        try:
            self._http.get(f"{self.url}/api/v3/ping").raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CannotRead(
                f"no exchange answers at {self.url} ({error or type(error).__name__}); check the network, or name "
                "another with MARKETFLOW_INGESTOR_REST_URL and MARKETFLOW_INGESTOR_WS_URL"
            ) from None

    def between(self, symbol: str, interval: str, first: int, last: int) -> dict[int, Kline]:
        """Klines that open from ``first`` to ``last`` (microseconds, inclusive), by open time. Raises CannotRead."""
        length, found = INTERVALS[interval], dict[int, Kline]()
        while first <= last:
            until = min(last, first + (PAGE - 1) * length)
            rows = self._get(symbol, interval, first // 1_000, until // 1_000)
            try:
                klines = [kline_of(row) for row in rows]
            except (NotANumber, TypeError, ValueError, IndexError) as error:
                raise CannotRead(f"{self.url}: klines of {symbol} {interval}: {error!r}") from None
            for kline in klines:
                if kline.close_time != kline.open_time + length - 1:
                    raise CannotRead(
                        f"{self.url}: a kline of {symbol} at {kline.open_time} is not one whole {interval}"
                    )
            found |= {kline.open_time: kline for kline in klines if first <= kline.open_time <= until}
            first = until + length
        return found

    def _get(self, symbol: str, interval: str, start_ms: int, end_ms: int) -> Any:
        query: dict[str, str | int] = {
            "symbol": symbol, "interval": interval, "startTime": start_ms, "endTime": end_ms, "limit": PAGE
        }  # fmt: skip
        left = LONGEST_WAIT
        while True:
            try:
                answer = self._http.get(f"{self.url}/api/v3/klines", params=query)
                wait = (
                    max(1.0, float(answer.headers.get("Retry-After", 1))) if answer.status_code in (418, 429) else None
                )
                if wait is not None and wait <= left:
                    left -= wait
                    time.sleep(wait)  # asking on in spite of it is answered by a ban (Binance, "Limits")
                    continue
                answer.raise_for_status()
                return answer.json()
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                raise CannotRead(
                    f"no klines of {symbol} {interval} from {self.url} ({error or type(error).__name__}); "
                    "name the exchange with --exchange"
                ) from None


def compare_all(
    candles: Mapping[Series, Candles], rest: RestKlines, say: Callable[[str], None] = lambda _: None
) -> list[Comparison]:
    """Every series of the topic against the exchange. Raises CannotRead. ``say`` is told which one is being asked."""
    found = []
    for number_, ((symbol, interval), windows) in enumerate(candles.items(), start=1):
        say(f"{symbol} {interval}: {len(windows):,} candles (series {number_} of {len(candles)})")
        klines = rest.between(symbol, interval, min(windows), max(windows))
        found.append(compare(symbol, interval, windows, klines))
    return found


def show(out: Console, found: Iterable[Comparison], url: str) -> None:
    """A line for each series, then what differs, then the outcome."""
    rows = list(found)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("symbol", "interval", "compared", "equal", "different", "states gaps", "absent"):
        table.add_column(name, justify="left" if name in ("symbol", "interval") else "right")
    for row in rows:
        counts = (row.compared, row.equal, len(row.different), len(row.stated), len(row.absent))
        table.add_row(row.symbol, row.interval, *(f"{n:,}" for n in counts), style="" if row.ok else "bold red")
    out.print(table)
    for row in rows:
        lines = [*row.different, *row.stated]
        lines += [f"{row.symbol} {row.interval}: no candle of {span}" for span in _spans(row)]
        for line in lines[:SHOWN]:
            out.print(Text(line, "red"))
        if len(lines) > SHOWN:
            out.print(Text(f"and {len(lines) - SHOWN} more of {row.symbol} {row.interval}", "red"))
    out.print(_outcome(rows, url))


def _outcome(rows: list[Comparison], url: str) -> Text:
    compared, equal, absent = (
        sum(r.compared for r in rows),
        sum(r.equal for r in rows),
        sum(len(r.absent) for r in rows),
    )
    if not compared:
        return Text(
            "There is no candle to compare yet: the first one comes with the first whole minute.", "bold yellow"
        )
    if all(row.ok for row in rows):
        return Text(f"All {compared:,} candles equal the klines of {url} in every field.", "bold green")
    more = f", {absent:,} are absent" if absent else ""
    return Text(f"{compared - equal:,} of {compared:,} candles do not equal the klines of {url}{more}.", "bold red")


def _spans(row: Comparison) -> Iterator[str]:
    length = INTERVALS[row.interval]
    for _, run in groupby(enumerate(row.absent), key=lambda pair: pair[1] - pair[0] * length):
        times = [at for _, at in run]
        yield minute_text(times[0]) + (f" to {minute_text(times[-1])} ({len(times)})" if len(times) > 1 else "")
