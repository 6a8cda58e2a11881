"""Faults on demand. Each one is asked for over HTTP, begins at once, at a market time or at a trade, and ends.

Those of streams and requests touch what clients see, never the market or the books: REST and the ledger keep telling
the truth. Those of the market (upheavals.py) are the truth: streams, REST, klines and ledger agree about them.
"""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final, Literal, get_args

import msgspec

from marketflow_simulator.trades import Trade

TradeKind = Literal["skip", "repeat", "reorder", "time_shift"]
RequestKind = Literal["rest_error", "late_answer", "rest_away"]
OrderKind = Literal[
    "order_lost_answer",
    "order_lost_request",
    "order_late",
    "order_429",
    "reject",
    "not_found",
    "partial_fill",
    "cancel_lost_answer",
]
StateKind = Literal["clock_skew"]
SuddenKind = Literal[
    "disconnect", "stall", "server_shutdown", "rate_limit", "ban", "user_stream_cut", "user_stream_silent"
]
MarketKind = Literal["step_back", "burst", "silence", "lost", "delist", "list"]
Kind = Literal[TradeKind, RequestKind, OrderKind, StateKind, SuddenKind, MarketKind]


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One fault as asked for. `count` falls with each use; at 0 the fault is over."""

    kind: Kind
    symbol: str | None = None
    """Only this symbol, or all."""
    count: int = 1
    at_us: int | None = None
    """Begin at this market time; by default at once."""
    from_id: int | None = None
    """Begin with the trade of this id, or of the first higher one."""
    seconds: float = 0.0
    """How long. Of market time for `silence` and `rest_away`, otherwise of the wall clock."""
    status: int = 503
    """`rest_error`, `rest_away`, `order_lost_answer`, `cancel_lost_answer`, `order_late`: HTTP status of the answer; 0
    breaks the connection instead."""
    code: int | None = None
    """`rest_error`: Binance's error code, by default the one that goes with the status. `reject`: -2010 unless told."""
    message: str | None = None
    """`reject`: the error's text, by default a documented one that goes with the code."""
    retry_after: int | None = None
    """`rest_error`, `order_429`: seconds in Retry-After, by default 1 for 429 and 2 for 418."""
    parts: int = 2
    """`partial_fill`: in how many parts an order fills."""
    expire: bool = False
    """`partial_fill`: what the first part leaves expires."""
    path: str | None = None
    """`rest_error`, `rest_away`, `late_answer`: only requests whose path ends with this."""
    ms: int = 0
    """`clock_skew`: how far the exchange's clock runs ahead (behind, if negative). `time_shift`: how far the trade's
    time is ahead. `step_back`: how far it lies before that of the trade before."""
    percent: float = 0.0
    """`burst`: how far its trades are above the price before (below, if negative); the trades after it are not."""
    pings: bool = False
    """`stall`: only market data stops; pings, pongs and answers go on."""
    id: int = 0
    used: int = 0
    happened_us: int | None = None
    """Market time at which it began."""


class FaultError(ValueError):
    """The request for a fault makes no sense; the message says why."""


_TRADE_KINDS: Final = get_args(TradeKind)
_SUDDEN_KINDS: Final = get_args(SuddenKind)
_MARKET_KINDS: Final = get_args(MarketKind)
_NEED_SECONDS: Final = (
    "stall",
    "late_answer",
    "silence",
    "rest_away",
    "rate_limit",
    "ban",
    "order_late",
    "not_found",
    "user_stream_silent",
)
_MAX_SECONDS: Final = {"silence": 86_400, "rest_away": 86_400}
_MAX_COUNT: Final = {"burst": 100_000, "lost": 100_000}


class Faults:
    """All faults that are still to happen, and those that have. A `Listener` of the market, before all that show it."""

    def __init__(self) -> None:
        self.scheduled: list[Fault] = []
        """Wait for their time or trade."""
        self.waiting: list[Fault] = []
        """Have begun and are not over."""
        self.done: list[Fault] = []
        self._numbers = count(1)
        self._held: dict[int, list[Trade]] = {}
        self.clock: Callable[[], int] = lambda: 0
        """Market time."""
        self.disconnect: Callable[[], None] = lambda: None
        self.stall: Callable[[float, bool], None] = lambda seconds, pings: None
        self.shutdown: Callable[[float], None] = lambda seconds: None
        self.cut_user_streams: Callable[[], None] = lambda: None
        self.silence_user_streams: Callable[[float], None] = lambda seconds: None
        self.throttle: Callable[[int, float], None] = lambda status, seconds: None
        self.change_market: Callable[[Fault], int] = lambda fault: 0

    def add(self, fault: Fault, symbols: Sequence[str]) -> Fault:
        """Take up a fault; FaultError if it could never happen."""
        self._check(fault, symbols)
        fault.id, fault.used, fault.happened_us = next(self._numbers), 0, None
        if fault.kind in _MARKET_KINDS:  # whenever it is to be, the tape is changed now
            fault.happened_us = self.change_market(fault)
            fault.used, fault.count = fault.count, 0
            self.done.append(fault)
        elif fault.kind not in _TRADE_KINDS and (fault.at_us is not None or fault.from_id is not None):
            self.scheduled.append(fault)
        else:
            self._begin(fault)
        return fault

    def _check(self, fault: Fault, symbols: Sequence[str]) -> None:
        if fault.symbol is not None and fault.symbol not in symbols:
            raise FaultError(f"symbol {fault.symbol!r} is not in this market: {', '.join(symbols)}")
        if fault.symbol is None and len(symbols) == 1 and fault.from_id is not None:
            fault.symbol = symbols[0]
        most = _MAX_COUNT.get(fault.kind, 1 << 31)
        if not 1 <= fault.count <= most:
            raise FaultError(f"count is {fault.count}, it has to be at least 1 and at most {most}")
        longest = _MAX_SECONDS.get(fault.kind, 3_600)
        if fault.kind in _NEED_SECONDS and not 0 < fault.seconds <= longest:
            raise FaultError(f"seconds is {fault.seconds:g}, {fault.kind} needs more than 0 and at most {longest}")
        if fault.kind == "server_shutdown" and not 0 <= fault.seconds <= longest:
            raise FaultError(f"seconds is {fault.seconds:g}, {fault.kind} needs 0 to {longest}")
        if fault.kind == "reorder" and fault.count < 2:
            raise FaultError(f"count is {fault.count}, it takes 2 trades or more to be out of order")
        if fault.kind in ("rest_error", "rest_away") and not 400 <= fault.status <= 599 and fault.status != 0:
            raise FaultError(f"status is {fault.status}, an error is 400 to 599, or 0 for no answer at all")
        if fault.kind == "partial_fill" and not 2 <= fault.parts <= 1000:
            raise FaultError(f"parts is {fault.parts}, partial_fill needs 2 to 1000")
        if not -100 < fault.percent <= 1_000:
            raise FaultError(f"percent is {fault.percent:g}, it has to be above -100 and at most 1000")
        if fault.kind == "time_shift" and fault.ms == 0:
            raise FaultError("ms is 0, time_shift needs to know how far")
        if fault.kind == "step_back" and fault.ms < 0:
            raise FaultError(f"ms is {fault.ms}, step_back goes back by that many, so it has to be above 0")
        if fault.at_us is not None and fault.from_id is not None:
            raise FaultError("at_us and from_id both say when: tell one of them")
        if fault.from_id is not None and fault.symbol is None and fault.kind not in _TRADE_KINDS:
            raise FaultError("from_id needs a symbol: ids are each symbol's own")

    def _begin(self, fault: Fault) -> None:
        fault.happened_us = self.clock()
        if fault.kind not in _SUDDEN_KINDS:
            self.waiting.append(fault)
            return
        fault.used, fault.count = 1, 0
        self.done.append(fault)
        if fault.kind == "disconnect":
            self.disconnect()
        elif fault.kind == "stall":
            self.stall(fault.seconds, fault.pings)
        elif fault.kind == "server_shutdown":
            self.shutdown(fault.seconds)
        elif fault.kind == "user_stream_cut":
            self.cut_user_streams()
        elif fault.kind == "user_stream_silent":
            self.silence_user_streams(fault.seconds)
        else:
            self.throttle(418 if fault.kind == "ban" else 429, fault.seconds)

    def on_trade(self, market: Any, trade: Trade) -> None:
        """A trade is about to be shown."""
        if self.scheduled:
            self._due(trade.at_us, market.symbol, trade.id)

    def on_mark(self, time_us: int) -> None:
        """Market time goes on."""
        if self.scheduled:
            self._due(time_us, "", -1)

    def _due(self, time_us: int, symbol: str, trade_id: int) -> None:
        for fault in list(self.scheduled):
            if fault.from_id is not None:
                due = symbol == fault.symbol and trade_id >= fault.from_id
            else:
                due = fault.at_us is None or time_us >= fault.at_us
            if due:
                self.scheduled.remove(fault)
                self._begin(fault)

    def clear(self) -> None:
        """End all faults; trades that one of them held back do not come any more."""
        self.done.extend(self.scheduled + self.waiting)
        self.scheduled.clear()
        self.waiting.clear()
        self._held.clear()

    def take(self, kind: Kind, symbol: str | None = None, path: str = "") -> Fault | None:
        """Use up one of the first fault of that kind that fits, or None."""
        for fault in self.waiting:
            if fault.kind != kind or (fault.symbol is not None and fault.symbol != symbol):
                continue
            if fault.path is not None and not path.endswith(fault.path):
                continue
            self._use(fault)
            return fault
        return None

    def away(self, path: str) -> Fault | None:
        """The fault because of which REST is not there at all now, or None."""
        self._end_away()
        for fault in self.waiting:
            if fault.kind == "rest_away" and (fault.path is None or path.endswith(fault.path)):
                fault.used += 1
                return fault
        return None

    def _end_away(self) -> None:
        for fault in [fault for fault in self.waiting if fault.kind == "rest_away"]:
            if self.clock() >= (fault.happened_us or 0) + fault.seconds * 1_000_000:
                self.waiting.remove(fault)
                self.done.append(fault)

    def _use(self, fault: Fault) -> None:
        fault.used += 1
        fault.count -= 1
        if fault.count <= 0:
            self.waiting.remove(fault)
            self.done.append(fault)

    @property
    def skew_ms(self) -> int:
        """How far the exchange's clock is ahead of the machine's; the latest clock_skew counts."""
        return next((f.ms for f in reversed(self.waiting) if f.kind == "clock_skew"), 0)

    def shape(self, symbol: str, trade: Trade) -> Sequence[Trade]:
        """What the stream shows in place of `trade`."""
        for fault in self.waiting:
            if fault.kind not in _TRADE_KINDS or (fault.symbol is not None and fault.symbol != symbol):
                continue
            if fault.from_id is not None and trade.id < fault.from_id:
                continue
            if fault.at_us is not None and trade.at_us < fault.at_us:
                continue
            if not fault.used:
                fault.happened_us = trade.at_us
            if fault.kind == "reorder":
                fault.symbol = symbol  # trades are only out of order among those of one symbol
                held = self._held.setdefault(fault.id, [])
                held.append(trade)
                self._use(fault)
                return () if fault.count > 0 else self._held.pop(fault.id)[::-1]
            self._use(fault)
            if fault.kind == "time_shift":
                return (msgspec.structs.replace(trade, time_us=trade.time_us + fault.ms * 1000),)
            return () if fault.kind == "skip" else (trade, trade)
        return (trade,)

    def listing(self) -> dict[str, Any]:
        """All faults as JSON."""
        self._end_away()
        return {"waiting": self.scheduled + self.waiting, "done": self.done[-100:]}
