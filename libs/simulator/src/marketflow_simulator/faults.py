"""Faults on demand. Each one is asked for over HTTP, does what it says a counted number of times, and is gone.

It never touches the market or the books themselves: REST and the ledger keep telling the truth.
"""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final, Literal

import msgspec

from marketflow_simulator.trades import Trade

TradeKind = Literal["skip", "repeat", "reorder"]
RequestKind = Literal["rest_error", "late_answer"]
OrderKind = Literal["order_lost_answer", "order_lost_request"]
StateKind = Literal["stall", "clock_skew"]
Kind = Literal[TradeKind, RequestKind, OrderKind, StateKind, "disconnect"]


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One fault as asked for. `count` falls with each use; at 0 the fault is over."""

    kind: Kind
    symbol: str | None = None
    """Only this symbol, or all."""
    count: int = 1
    from_id: int | None = None
    """`skip`, `repeat`, `reorder`: begin with the trade of this id."""
    seconds: float = 0.0
    """`stall`: how long the sockets are silent. `late_answer`: how late the answer is. Wall time."""
    status: int = 503
    """`rest_error`, `order_lost_answer`: HTTP status of the answer; 0 breaks the connection instead."""
    code: int | None = None
    """`rest_error`: Binance's error code, by default the one that belongs to the status."""
    retry_after: int | None = None
    """`rest_error`: seconds in Retry-After, by default 1 for 429 and 2 for 418."""
    path: str | None = None
    """`rest_error`, `late_answer`: only requests whose path ends with this."""
    ms: int = 0
    """`clock_skew`: milliseconds that the exchange's clock runs ahead (behind, if negative)."""
    id: int = 0
    used: int = 0


class FaultError(ValueError):
    """The request for a fault makes no sense; the message says why."""


_TRADE_KINDS: Final = ("skip", "repeat", "reorder")


class Faults:
    """All faults that are still to happen, and those that have."""

    def __init__(self) -> None:
        self.waiting: list[Fault] = []
        self.done: list[Fault] = []
        self._numbers = count(1)
        self._held: list[Trade] = []
        self.disconnect: Callable[[], None] = lambda: None
        self.stall: Callable[[float], None] = lambda seconds: None

    def add(self, fault: Fault, symbols: Sequence[str]) -> Fault:
        """Take up a fault; FaultError if it could never happen."""
        if fault.symbol is not None and fault.symbol not in symbols:
            raise FaultError(f"symbol {fault.symbol!r} is not in this market: {', '.join(symbols)}")
        if fault.count < 1:
            raise FaultError(f"count is {fault.count}, it has to be at least 1")
        if fault.kind in ("stall", "late_answer") and not 0 < fault.seconds <= 3600:
            raise FaultError(f"seconds is {fault.seconds:g}, {fault.kind} needs more than 0 and at most 3600")
        if fault.kind == "reorder" and fault.count < 2:
            raise FaultError(f"count is {fault.count}, it takes 2 trades or more to be out of order")
        if fault.kind == "rest_error" and not 400 <= fault.status <= 599 and fault.status != 0:
            raise FaultError(f"status is {fault.status}, an error is 400 to 599, or 0 for no answer at all")
        fault.id = next(self._numbers)
        fault.used = 0
        if fault.kind == "disconnect":
            fault.used, fault.count = 1, 0
            self.done.append(fault)
            self.disconnect()
        elif fault.kind == "stall":
            fault.used, fault.count = 1, 0
            self.done.append(fault)
            self.stall(fault.seconds)
        else:
            self.waiting.append(fault)
        return fault

    def clear(self) -> None:
        """End all faults; trades that one of them held back do not come any more."""
        self.done.extend(self.waiting)
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
            if fault.kind == "reorder":
                fault.symbol = symbol  # trades are only out of order among those of one symbol
                self._held.append(trade)
                self._use(fault)
                if fault.count > 0:
                    return ()
                held, self._held = self._held[::-1], []
                return held
            self._use(fault)
            return () if fault.kind == "skip" else (trade, trade)
        return (trade,)

    def listing(self) -> dict[str, Any]:
        """All faults as JSON."""
        return {"waiting": self.waiting, "done": self.done[-100:]}
