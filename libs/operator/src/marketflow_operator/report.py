"""The report of a run as JSON: counts, PnL, latencies and the audit's checks.

Pure. Money is written as exact JSON numbers; must never round one nor turn it into a float.
"""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

import msgspec
from marketflow_common.events import Candle, OrderFilled, Signal
from marketflow_common.numbers import EXACT

from .audit.cuts import cuts_of
from .audit.delivery import notification_counts, rows_landed
from .audit.judge import Verdict
from .audit.market import candles_equal_klines, minute_text, trade_counts
from .audit.model import Evidence
from .audit.trading import equity_error, order_counts
from .latency import latencies

__all__ = ["build", "encode", "fees_in_quote", "verdict_json"]

_encoder = msgspec.json.Encoder(decimal_format="number")


def encode(report: dict[str, Any]) -> bytes:
    """The report's bytes, indented; decimals as numbers with all their digits."""
    return msgspec.json.format(_encoder.encode(report), indent=2) + b"\n"


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """The audit's part: whether it holds, and every check."""
    return {
        "ok": verdict.ok,
        "checks": [
            {"name": c.name, "expected": c.expected, "actual": c.actual, "ok": c.ok, "detail": c.detail}
            for c in verdict.checks
        ],
    }


def build(evidence: Evidence, verdict: Verdict, **more: Any) -> dict[str, Any]:
    """Everything the report says. What could not be read is null; ``more`` is added as it is."""
    exchange = evidence.exchange
    trades: dict[str, Any] = dict.fromkeys(("sent", "published", "landed", "lost", "declared", "duplicated"))
    candles: dict[str, Any] = dict.fromkeys(("closed", "equal", "different"))
    if exchange is not None and evidence.records:
        cuts = cuts_of(evidence)
        trades |= trade_counts(evidence, exchange, cuts)
        check = candles_equal_klines(evidence, exchange, cuts)
        due, equal = int(check.expected), int(check.actual)
        candles = {
            "closed": due,
            "equal": equal,
            "different": due - equal,
            "revised": sum(c.revision > 0 for _, c in evidence.of(Candle)),
            "cut": _minutes({s: cut.cut_window for s, cut in cuts.items()}),
            "open": _minutes({s: cut.open_window for s, cut in cuts.items()}),
        }
    if evidence.warehouse is not None and evidence.records:
        trades["landed"] = rows_landed(evidence, evidence.warehouse)
    said: dict[str, int] = dict.fromkeys(("BUY", "SELL", "HOLD"), 0)
    said |= Counter(signal.signal_type for _, signal in evidence.of(Signal))
    by_strategy = Counter(f"{s.strategy} {s.signal_type}" for _, s in evidence.of(Signal))
    fills = [fill for _, fill in evidence.of(OrderFilled)]
    sides = Counter(fill.side for fill in fills if fill.complete)
    return {
        "trades": trades,
        "candles": candles,
        "signals": {kind: said[kind] for kind in ("BUY", "SELL", "HOLD")}
        | {"by_strategy": dict(sorted(by_strategy.items()))},
        "orders": order_counts(evidence, exchange) | {"filled_buy": sides["BUY"], "filled_sell": sides["SELL"]},
        "pnl": {
            "realized": _plain(_sum(fill.realized_pnl for fill in fills)),
            "fees": _plain(fees_in_quote(evidence)),
            "equity_error": _plain(equity_error(evidence, exchange)) if exchange is not None else None,
        },
        "notifications": notification_counts(evidence) if evidence.recorded is not None else None,
        "latency_ms": latencies(evidence).summary(),
        "audit": verdict_json(verdict),
        **more,
    }


def fees_in_quote(evidence: Evidence) -> Decimal:
    """All commissions, those in base at the price of their fill. A third asset's (BNB) is not in it."""
    total = Decimal(0)
    assets = evidence.exchange.assets if evidence.exchange is not None else {}
    for _, fill in evidence.of(OrderFilled):
        base, quote = assets.get(fill.symbol, ("", ""))
        if fill.commission_asset == quote:
            total = EXACT.add(total, fill.commission)
        elif fill.commission_asset == base:
            total = EXACT.add(total, EXACT.multiply(fill.commission, fill.price))
    return total


def _sum(values: Any) -> Decimal:
    total = Decimal(0)
    for value in values:
        total = EXACT.add(total, value)
    return total


def _plain(value: Decimal) -> Decimal:
    """The same number without an exponent and without the zeros that say nothing."""
    text = format(value, "f")
    return Decimal((text.rstrip("0").rstrip(".") or "0") if "." in text else text)


def _minutes(windows: dict[str, int | None]) -> dict[str, str]:
    return {symbol: minute_text(at) for symbol, at in windows.items() if at is not None}
