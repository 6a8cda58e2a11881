"""Faults that really happen in the market: streams, REST, klines and ledger all agree about them.

Each one changes the tape of a symbol from a moment on that has not come yet; what has happened never changes.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from marketflow_simulator.edited import EditedTape
from marketflow_simulator.faults import Fault, FaultError
from marketflow_simulator.klines import MINUTE_US
from marketflow_simulator.market import Market, SymbolMarket
from marketflow_simulator.trades import Trade

_MS: Final = 1000


class Upheavals:
    """Carries them out. `lasting`: the market outlives this process, and a changed tape would not."""

    def __init__(self, market: Market, lasting: bool) -> None:
        self._market = market
        self._lasting = lasting

    def happen(self, fault: Fault) -> int:
        """Change the market, and say from which market time on; FaultError if that cannot be."""
        market = self._market
        if self._lasting:
            raise FaultError(f"{fault.kind} would be forgotten when this market goes on after a restart; unset STATE")
        if market.ended:
            raise FaultError(f"the market has ended, {fault.kind} cannot happen any more")
        symbols = [market.symbols[fault.symbol]] if fault.symbol else list(market.symbols.values())
        if fault.from_id is not None and len(symbols) > 1:
            raise FaultError("from_id needs a symbol: ids are each symbol's own")
        times = []
        for symbol in symbols:
            if not isinstance(symbol.tape, EditedTape):
                symbol.tape = EditedTape(symbol.tape)
            times.append(self._one(fault, symbol, symbol.tape))
            market.rewind(symbol)
        return min(times)

    def _one(self, fault: Fault, symbol: SymbolMarket, tape: EditedTape) -> int:
        if fault.kind == "list":
            return self._list(fault, symbol, tape)
        at_us, first = self._begin(fault, symbol, tape)
        if fault.kind == "burst":
            before = next(iter(tape.latest(first.id - 1, 1)), first)
            tape.splice(first.id, first.id, _burst(symbol, before, at_us, fault))
        elif fault.kind == "silence":
            after = next(tape.live(at_us + int(fault.seconds * 1_000_000)), None)
            tape.splice(first.id, after.id if after is not None else 1 << 62)
        elif fault.kind == "lost":
            tape.splice(first.id, first.id + fault.count, renumber=False)
        elif fault.kind == "step_back":
            at_us = _step_back(fault, first, tape)
        else:  # delist
            if symbol.breaks and symbol.breaks[-1][1] is None:
                raise FaultError(f"{symbol.symbol} is not traded already")
            tape.close(first.id)
            symbol.breaks.append((at_us, None))
        return at_us

    def _begin(self, fault: Fault, symbol: SymbolMarket, tape: EditedTape) -> tuple[int, Trade]:
        """From when on, and the first trade from then on."""
        if fault.from_id is not None:
            if symbol.last is not None and fault.from_id <= symbol.last.id:
                raise FaultError(f"trade {fault.from_id} of {symbol.symbol} has happened, the last is {symbol.last.id}")
            found = next(iter(tape.by_id(fault.from_id, 1)), None)
            at_us = found.at_us if found is not None else 0
        else:
            at_us = -(-max(fault.at_us or 0, symbol.next_us(self._market.time_us)) // _MS) * _MS
            found = next(tape.live(at_us), None)
        if found is None:
            raise FaultError(f"{symbol.symbol} has no trade any more from there on")
        return at_us, found

    def _list(self, fault: Fault, symbol: SymbolMarket, tape: EditedTape) -> int:
        if not symbol.breaks or symbol.breaks[-1][1] is not None:
            raise FaultError(f"{symbol.symbol} is traded already")
        begin = symbol.breaks[-1][0]
        at_us = max(fault.at_us or 0, self._market.time_us + 1, begin + 1)
        tape.reopen(at_us)
        symbol.breaks[-1] = (begin, at_us)
        return at_us


def _burst(symbol: SymbolMarket, before: Trade, at_us: int, fault: Fault) -> Sequence[Trade]:
    """`count` trades within the millisecond `at_us`, around the price before or `percent` away from it."""
    tick, step, count = symbol.spec.tick, symbol.spec.step, fault.count
    middle = before.price + int(before.price * fault.percent / 100) // tick * tick
    return [
        Trade(0, max(middle + (i * 7 % 11 - 5) * tick, tick), (1 + i % 97) * step, at_us, at_us, i % 3 == 0, 0)
        for i in range(count)
    ]


def _step_back(fault: Fault, first: Trade, tape: EditedTape) -> int:
    """Give one trade a time before that of the trade before it, by default one in the minute before.

    That of `from_id`, or else the second one of the next minute.
    """
    chosen = first
    if fault.from_id is None:
        minute = first.at_us // MINUTE_US * MINUTE_US + MINUTE_US
        following = tape.live(minute)
        next(following, None)
        second = next(following, None)
        if second is None:
            raise FaultError(f"no minute from {minute} on has two trades")
        chosen = second
    before = tape.latest(chosen.id - 1, 1)
    if not before:
        raise FaultError(f"there is no trade before {chosen.id}")
    edge = chosen.at_us // MINUTE_US * MINUTE_US
    time_us = before[0].time_us - fault.ms * _MS if fault.ms else edge - _MS
    if time_us >= before[0].time_us:
        raise FaultError(f"trade {before[0].id} is the last of its own minute: name a later one, or tell ms")
    tape.splice(chosen.id, chosen.id + 1, [msgspec.structs.replace(chosen, time_us=time_us)], renumber=False)
    return chosen.at_us
