"""The executor's own metrics. Must never hold anything that a decision depends on: these are floats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from marketflow_common.metrics import LATENCY_BUCKETS
from prometheus_client import Counter, Gauge, Histogram

from .account import Account

__all__ = [
    "COMMANDS",
    "EXECUTED",
    "LEADER",
    "OPEN_ORDERS",
    "ORDER_LATENCY",
    "POSITION",
    "REALIZED",
    "SKIPPED",
    "USER_STREAM",
    "show",
    "show_budget",
]

EXECUTED: Final = Counter("orders_executed_total", "Orders that have ended, by outcome", ["symbol", "side", "outcome"])
SKIPPED: Final = Counter("signals_skipped_total", "BUY and SELL signals that led to no (further) order", ["reason"])
COMMANDS: Final = Counter("commands_total", "Command records, honoured or refused", ["action", "outcome"])
OPEN_ORDERS: Final = Gauge("open_orders", "Orders that have not ended")
POSITION: Final = Gauge("position_qty", "Base held", ["symbol"])
REALIZED: Final = Gauge("realized_pnl", "Realized profit in quote since the account was opened", ["symbol"])
HALTED: Final = Gauge("trading_halted", "1 while the account's trading state is HALTED")
USER_STREAM: Final = Gauge("user_stream_connected", "1 while the exchange tells of the account's orders by itself")
BUDGET: Final = Gauge(
    "exchange_budget_used", "Share of what the exchange allows in an interval that is used up", ["kind", "seconds"]
)
LEADER: Final = Gauge("leader", "1 while this instance leads its account")
ORDER_LATENCY: Final = Histogram(
    "order_latency_seconds",
    "Broker's append of a signal to its order's first answer, or to its skip",
    buckets=LATENCY_BUCKETS,
)


def show(account: Account) -> None:
    """Set the gauges to what the account is now."""
    OPEN_ORDERS.set(len(account.open))
    HALTED.set(account.state == "HALTED")
    for symbol, position in account.books.positions.items():
        POSITION.labels(symbol).set(float(position.qty))
        REALIZED.labels(symbol).set(float(position.realized))


def show_budget(used: Mapping[tuple[str, int], tuple[int, int]]) -> None:
    """Set the gauges to the exchange's counts and limits, by kind and interval in seconds."""
    for (kind, seconds), (count, limit) in used.items():
        BUDGET.labels(kind.lower(), str(seconds)).set(count / limit)
