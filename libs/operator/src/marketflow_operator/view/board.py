"""What the view shows, as data: fed with records, metrics and the market's state, asked for nothing else.

Pure but for the moment it is told. Must never read a topic, a socket or a clock.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from marketflow_common.events import (
    Candle,
    OrderFilled,
    OrderRejected,
    Signal,
    SignalSkipped,
    Trade,
    TradingStateChanged,
)
from marketflow_common.numbers import EXACT

from ..audit.model import Seen

__all__ = ["SPARK", "Board", "Line", "Service", "SymbolLine"]

SPARK: Final = 40
"""Closes that are remembered for the little chart of a symbol."""
_ZEROS: Final = re.compile(r"(?<=\.\d\d)0+\b|(?<=\.)(\d\d\d*?[1-9])0+\b")
REFERENCE: Final = re.compile(r"[a-z_]+/\d+@\d+")
NEWS: Final = 50
"""Messages that are remembered."""


@dataclass
class SymbolLine:
    """One symbol's row."""

    symbol: str
    price: Decimal | None = None
    before: Decimal | None = None
    """Price before the last change, for the arrow."""
    trades: int = 0
    traded_at: int = 0
    candle: Candle | None = None
    candles: int = 0
    closes: deque[Decimal] = field(default_factory=lambda: deque(maxlen=SPARK))
    signal: Signal | None = None
    position: Decimal = Decimal(0)
    cost: Decimal = Decimal(0)
    realized: Decimal = Decimal(0)
    orders: int = 0
    skipped: int = 0

    @property
    def unrealized(self) -> Decimal:
        """What the position would bring now, less what it cost; 0 without a position."""
        if self.price is None or not self.position:
            return Decimal(0)
        return EXACT.subtract(EXACT.multiply(self.position, self.price), self.cost)


@dataclass
class Service:
    """One service's row. Rates are per second over the last scrapes, latencies in milliseconds."""

    name: str
    up: bool = False
    ready: bool = False
    rate: float = 0.0
    total: float = 0.0
    lag: float | None = None
    p50: float | None = None
    p99: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One thing that happened: what kind it is, the words, and the record it comes from (``topic/partition@offset``).

    ``due`` says whether people are to be told of it.
    """

    at_ms: int
    kind: str
    text: str
    reference: str
    due: bool = True


@dataclass
class Board:
    """Everything on the screen."""

    symbols: dict[str, SymbolLine] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    news: deque[Line] = field(default_factory=lambda: deque(maxlen=NEWS))
    state: str = "ACTIVE"
    market: Mapping[str, Any] = field(default_factory=dict)
    started_at: int = 0
    """Market time in microseconds at which the market began."""
    ends_at: int | None = None
    """Market time at which it will end, where that is known."""
    due_trades: int | None = None
    """Trades that a recording holds."""
    waiting: str = ""
    told: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Channels that were told of a record, by its reference."""
    notified: int = 0
    sides: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """BUY, SELL and HOLD signals so far."""
    records: int = 0

    def line(self, symbol: str) -> SymbolLine:
        """The row of a symbol, made when it is first heard of."""
        if symbol not in self.symbols:
            self.symbols[symbol] = SymbolLine(symbol)
            self.symbols = dict(sorted(self.symbols.items()))
        return self.symbols[symbol]

    def take(self, seen: Seen) -> None:
        """One more record of a topic."""
        self.records += 1
        match seen.event:
            case Trade() as trade:
                line = self.line(trade.symbol)
                if trade.price != line.price:
                    line.before, line.price = line.price, trade.price
                line.trades += 1
                line.traded_at = max(line.traded_at, trade.traded_at)
            case Candle(interval="1m") as candle:
                line = self.line(candle.symbol)
                line.candles += candle.revision == 0
                if line.candle is None or candle.open_time >= line.candle.open_time:
                    line.candle = candle
                    line.closes.append(candle.close)
            case Signal() as signal:
                self._signal(seen, signal)
            case OrderFilled() as fill:
                self._fill(seen, fill)
            case SignalSkipped() as skip:
                self.line(skip.symbol).skipped += 1
                text = f"{skip.symbol} {skip.signal_type} skipped: {skip.reason} ({skip.detail})"
                self.news.append(Line(seen.appended_ms, "skipped", text, str(seen.where), due=False))
            case OrderRejected() as refused:
                text = f"{refused.symbol} order rejected: {refused.reason} ({refused.code})"
                self.news.append(Line(seen.appended_ms, "rejected", text, str(seen.where)))
            case TradingStateChanged() as change:
                self.state = change.state
                text = f"account {change.account} is {change.state}: {change.reason}"
                self.news.append(Line(seen.appended_ms, "state", text, str(seen.where)))
            case _:
                pass

    def _signal(self, seen: Seen, signal: Signal) -> None:
        line = self.line(signal.symbol)
        self.sides[signal.signal_type] += 1
        # HOLDs of one strategy must not hide the BUY that another has just said of the same candle.
        newer = line.signal is None or signal.open_time > line.signal.open_time
        if newer or (line.signal is not None and line.signal.signal_type == "HOLD"):
            line.signal = signal
        if signal.signal_type != "HOLD":
            why = _ZEROS.sub(r"\1", "; ".join(signal.reasons))
            text = f"{signal.symbol} {signal.signal_type} at {plain(signal.close)}  {signal.strategy}: {why}"
            self.news.append(Line(seen.appended_ms, signal.signal_type, text, str(seen.where)))

    def _fill(self, seen: Seen, fill: OrderFilled) -> None:
        line = self.line(fill.symbol)
        line.position, line.cost = fill.position_qty, fill.position_cost
        line.realized = EXACT.add(line.realized, fill.realized_pnl)
        line.orders += fill.complete
        verb = "bought" if fill.side == "BUY" else "sold"
        gain = "" if fill.profit_pct is None else f", PnL {fill.realized_pnl:+.2f} ({fill.profit_pct:+.2f} %)"
        text = f"{fill.symbol} {verb} {plain(fill.qty)} at {plain(fill.price)}{gain}"
        self.news.append(Line(seen.appended_ms, "filled", text, str(seen.where)))

    def take_messages(self, messages: Sequence[tuple[str, str]]) -> None:
        """Messages (channel, text) that the channels have taken so far and that are new."""
        for channel, text in messages:
            for reference in REFERENCE.findall(text):
                self.told[reference].add(channel)
                self.notified += 1

    def take_market(self, market: Mapping[str, Any]) -> None:
        """The exchange's own state."""
        self.market = market
        self.started_at = int(market.get("start_time_us") or 0)

    @property
    def now(self) -> int:
        """Market time in microseconds: the exchange's word, or that of the newest trade; 0 before there is any."""
        told = int(self.market.get("market_time_us") or 0)
        return told or max((line.traded_at for line in self.symbols.values()), default=0)

    @property
    def progress(self) -> float | None:
        """Share of the market that has happened, 0 to 1; None where its end is not known."""
        if self.market.get("ended"):
            return 1.0
        published = sum(int(s.get("published") or 0) for s in self.market.get("symbols", {}).values())
        if self.due_trades:
            return min(1.0, published / self.due_trades)
        if self.ends_at and self.ends_at > self.started_at:
            now = int(self.market.get("market_time_us") or self.started_at)
            return min(1.0, max(0.0, (now - self.started_at) / (self.ends_at - self.started_at)))
        return None

    @property
    def realized(self) -> Decimal:
        """Realized profit of all symbols, in quote."""
        return _sum([line.realized for line in self.symbols.values()])

    @property
    def unrealized(self) -> Decimal:
        """Unrealized profit of all symbols, in quote."""
        return _sum([line.unrealized for line in self.symbols.values()])


def plain(value: Decimal) -> str:
    """Fixed point without the zeros that say nothing."""
    text = format(value, "f")
    return (text.rstrip("0").rstrip(".") or "0") if "." in text else text


def _sum(values: Sequence[Decimal]) -> Decimal:
    total = Decimal(0)
    for value in values:
        total = EXACT.add(total, value)
    return total
