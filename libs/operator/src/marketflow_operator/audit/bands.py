"""The band rule, computed again from candles: the audit's own reading of it, written from its text alone.

Pure. BUY when close < previous low times buy_factor; else SELL when close > previous high times sell_factor; else
HOLD. HOLD too where the candles it looks at do not follow one another without a hole. Must never use the strategy's
code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal

from marketflow_common.events import Candle, Signal
from marketflow_common.intervals import INTERVALS
from marketflow_common.numbers import divide

from .cuts import Cut
from .market import minute_text
from .model import Check, Evidence, Exchange, verdict

__all__ = ["signals_recomputed"]

BAND = "band"


def signals_recomputed(evidence: Evidence, exchange: Exchange, cuts: Mapping[str, Cut]) -> Check:
    """Every signal of the band strategy says what the rule says of the candles in the topic, momentum included."""
    candles = {(c.symbol, c.interval, c.open_time): c for _, c in evidence.of(Candle) if c.revision == 0}
    offenders, total, equal = [], 0, 0
    for seen, signal in evidence.of(Signal):
        if signal.strategy != BAND:
            continue
        total += 1
        due, momentum = _rule(signal, candles)
        wrong = []
        if signal.signal_type != due:
            wrong.append(f"{signal.signal_type} instead of {due}")
        if signal.momentum != momentum:
            wrong.append(f"momentum {signal.momentum:f} instead of {momentum:f}")
        equal += not wrong
        if wrong:
            name = f"{signal.symbol} {minute_text(signal.open_time)} at {seen.where}"
            offenders.append(f"{name}: {', '.join(wrong)}")
    return verdict("signals_recomputed", total, equal, offenders)


def _rule(signal: Signal, candles: Mapping[tuple[str, str, int], Candle]) -> tuple[str, Decimal]:
    parameters = json.loads(signal.parameters)
    window = int(parameters.get("momentum_window", 1))
    length = INTERVALS[signal.interval]
    seen = [
        candles.get((signal.symbol, signal.interval, signal.open_time - back * length)) for back in range(window + 1)
    ]
    whole = [candle for candle in seen if candle is not None and not candle.missing]
    if len(whole) < window + 1:
        return "HOLD", Decimal(0)
    now, previous, before = whole[0], whole[1], whole[-1]
    momentum = divide(now.close - before.close, before.close) if before.close else Decimal(0)
    if now.close < previous.low * Decimal(parameters["buy_factor"]):
        return "BUY", momentum
    if now.close > previous.high * Decimal(parameters["sell_factor"]):
        return "SELL", momentum
    return "HOLD", momentum
