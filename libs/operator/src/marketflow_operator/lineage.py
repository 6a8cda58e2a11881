"""The chain behind an order as plain data, and whether its links fit: pure functions from records to verdicts.

Must never fetch anything, nor use a service's code: candles are folded here by arithmetic of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal

from marketflow_common.codec import schema_of
from marketflow_common.events import (
    Candle,
    Command,
    OrderCanceled,
    OrderExpired,
    OrderFilled,
    OrderIntended,
    OrderRejected,
    Signal,
    Trade,
    TradingStateChanged,
)
from marketflow_common.numbers import EXACT

from .audit.market import differences, minute_text
from .audit.model import SHOWN, Where

__all__ = ["FLATTEN", "PROTECTION", "Chain", "Link", "Record", "cause_of", "judge"]

PROTECTION: Final = "protect:"
"""Before the symbol and the account's trade, in the signal id of an order that protects what that trade bought."""
FLATTEN: Final = "command:"
"""Before the command's id and the symbol, in the signal id of an order by which a flatten sells."""
FOLDED: Final = (
    "open", "high", "low", "close", "volume", "quote_volume", "trade_count", "taker_buy_volume",
    "taker_buy_quote_volume",
)  # fmt: skip
Cause = Literal["signal", "protection", "flatten"]
RowState = Literal["landed", "not landed yet", "missing", "not asked"]


@dataclass(frozen=True)
class Record:
    """A record of the chain: where it lies, what it says, and the warehouse row that came from it.

    ``kept`` is False where Kafka has the record no more, so that it is told by its row. ``problems``: what is wrong
    between the two, in words.
    """

    where: Where
    topic_id: str
    appended_ms: int
    event: Any
    table: str
    kept: bool
    row: RowState
    landed_at: datetime | None = None
    problems: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """``order_filled``, ``trade`` …"""
        return schema_of(self.event)


@dataclass(frozen=True)
class Link:
    """One thing that holds if the chain is whole; ``ok`` None: it could not be looked at."""

    name: str
    ok: bool | None
    detail: str = ""


@dataclass
class Chain:
    """An order with everything that led to it. ``trades`` are those of the candle, by id.

    ``before`` is the trade before a candle that has none. ``entry`` is the chain of the order whose fill a protection
    protects. ``unread`` says what could not be asked.
    """

    order_id: str
    account: str
    events: Sequence[Record]
    cause: Cause = "signal"
    signal: Sequence[Record] = ()
    candles: Sequence[Record] = ()
    trades: Sequence[Record] = ()
    before: Sequence[Record] = ()
    state: Sequence[Record] = ()
    command: Sequence[Record] = ()
    fill: Sequence[Record] = ()
    entry: Chain | None = None
    unread: Sequence[str] = ()
    links: list[Link] = field(default_factory=list)

    @property
    def intent(self) -> OrderIntended | None:
        """What was intended, if that is known."""
        return next((record.event for record in self.events if isinstance(record.event, OrderIntended)), None)

    @property
    def records(self) -> Iterator[Record]:
        """All of them, from the order's last event back to the first trade."""
        yield from reversed(self.events)
        for part in (self.state, self.command, self.signal, self.fill):
            yield from part
        yield from reversed(self.candles)
        yield from self.before
        yield from reversed(self.trades)

    @property
    def chains(self) -> Iterator[Chain]:
        """This one and those behind it."""
        yield self
        if self.entry is not None:
            yield from self.entry.chains


def cause_of(signal_id: str) -> Cause:
    """What an order follows from, by its signal id."""
    if signal_id.startswith(PROTECTION):
        return "protection"
    return "flatten" if signal_id.startswith(FLATTEN) else "signal"


def judge(chain: Chain) -> list[Link]:
    """Every link of the chain, those of the chain behind it not included."""
    links = [_events(chain), _fills(chain)]
    if chain.intent is not None:
        if chain.cause == "signal":
            links += [_signal(chain), *_candle(chain)]
        elif chain.cause == "protection":
            links.append(_protected(chain))
        else:
            links.append(_flattened(chain))
    links.append(_rows(chain))
    return links


# --- the order -----------------------------------------------------------------------------------------


def _events(chain: Chain) -> Link:
    intents = [record for record in chain.events if isinstance(record.event, OrderIntended)]
    name = "order_has_one_intent"
    if len(intents) != 1:
        return Link(name, False, f"{len(intents)} order_intended of {chain.order_id}")
    intent = intents[0]
    wrong = [
        f"{record.kind} at {record.where}: {', '.join(found)}"
        for record in chain.events
        if (found := differences(record.event, intent.event, ("account", "order_id", "signal_id", "symbol")))
    ]
    wrong += [
        f"{record.kind} at {record.where} comes before the intent at {intent.where}"
        for record in chain.events
        if record.where[:2] != intent.where[:2] or record.where < intent.where
    ]
    return _link(name, wrong, f"{len(chain.events)} events of {intent.event.signal_id}")


def _fills(chain: Chain) -> Link:
    name, intent = "fills_fit_the_order", chain.intent
    if intent is None:
        return Link(name, None, "the intent is not known")
    fills = [record.event for record in chain.events if isinstance(record.event, OrderFilled)]
    times = Counter(fill.fill_id for fill in fills)
    wrong = [f"fill {number} stands {count} times" for number, count in times.items() if count > 1]
    wrong += [f"fill {fill.fill_id} is a {fill.side} of a {intent.side}" for fill in fills if fill.side != intent.side]
    total = sum((fill.qty for fill in fills), Decimal(0))
    complete = any(fill.complete for fill in fills)
    if intent.qty is not None and (total > intent.qty or (complete and total != intent.qty)):
        wrong.append(f"{total:f} of {intent.qty:f} is filled")
    ends = [r for r in chain.events if isinstance(r.event, OrderRejected | OrderCanceled | OrderExpired)]
    if complete and ends:
        wrong.append(f"{ends[0].kind} at {ends[0].where} beside a fill that is the last")
    state = "filled" if complete else ends[-1].kind.removeprefix("order_") if ends else "open"
    return _link(name, wrong, f"{total:f} in {len(fills)} fills, {state}")


# --- from a signal ---------------------------------------------------------------------------------------


def _signal(chain: Chain) -> Link:
    name, intent = "order_fits_its_signal", chain.intent
    assert intent is not None
    if len(chain.signal) != 1:
        return _none_or_many(name, chain, chain.signal, f"signal {intent.signal_id}")
    signal: Signal = chain.signal[0].event
    wrong = [
        f"{what} {ours} instead of {theirs}"
        for what, ours, theirs in (
            ("symbol", intent.symbol, signal.symbol),
            ("side", intent.side, signal.signal_type),
            ("signal_close", f"{intent.signal_close:f}", f"{signal.close:f}"),
            ("signal_last_trade_id", intent.signal_last_trade_id, signal.last_trade_id),
        )
        if ours != theirs
    ]
    return _link(name, wrong, f"{signal.signal_type} at {signal.close:f}, trade {signal.last_trade_id}")


def _candle(chain: Chain) -> Iterator[Link]:
    if len(chain.signal) != 1:
        return
    signal: Signal = chain.signal[0].event
    title = f"{signal.symbol} {signal.interval} {minute_text(signal.open_time)}"
    if not chain.candles:
        yield _none_or_many("signal_fits_its_candle", chain, (), f"candle {title}")
        return
    candles: list[Candle] = [record.event for record in chain.candles]
    wrong = differences(signal, candles[0], ("symbol", "interval", "open_time", "close", "volume", "last_trade_id"))
    if candles[0].revision:
        wrong.append(f"revision 0 is not there, only {[candle.revision for candle in candles]}")
    yield _link("signal_fits_its_candle", wrong, title)
    numbers = [candle.revision for candle in candles]
    first = numbers[0]
    wrong = [] if numbers == list(range(first, first + len(numbers))) else [f"revisions {numbers}"]
    yield _link("revisions_follow", wrong, f"{len(numbers)} said of it" if len(numbers) > 1 else "never revised")
    yield _trades_there(chain, candles[-1])
    yield _folded(chain, candles)


def _trades_there(chain: Chain, last: Candle) -> Link:
    """Every trade between the candle's first and last id is there once, but for those that it says are missing."""
    times = Counter(record.event.trade_id for record in chain.trades)
    due = last.last_trade_id - last.first_trade_id + 1
    stated = sum(b - a + 1 for a, b in last.missing)
    lost = [n for n in range(last.first_trade_id, last.last_trade_id + 1) if not times[n] and not _in(n, last.missing)]
    wrong = [f"trade {_span(a, b)} is nowhere" for a, b in _ranges(lost)]
    wrong += [f"trade {number} stands {count} times" for number, count in sorted(times.items()) if count > 1]
    if wrong and chain.unread:
        return Link("trades_are_there", None, f"{'; '.join(wrong[:SHOWN])}; not everything could be read")
    more = f", {stated} are stated to be missing" if stated else ""
    return _link("trades_are_there", wrong, f"{due - stated} from {last.first_trade_id} to {last.last_trade_id}{more}")


def _folded(chain: Chain, candles: Sequence[Candle]) -> Link:
    """Each revision is what its trades fold to, to the last digit."""
    trades = sorted({record.event.trade_id: record.event for record in chain.trades}.items())
    wrong = []
    for candle in candles:
        inside = [t for n, t in trades if candle.first_trade_id <= n <= candle.last_trade_id]
        there = [trade for trade in inside if not _in(trade.trade_id, candle.missing)]
        due = fold(there) if there else _flat(chain, candle)
        found = [
            f"{name} {_plain(getattr(candle, name))} instead of {_plain(value)}"
            for name, value in due.items()
            if getattr(candle, name) != value
        ]
        if found:
            wrong.append(f"revision {candle.revision}: {', '.join(found)}")
    if wrong and chain.unread:
        return Link("trades_fold_to_the_candle", None, f"{'; '.join(wrong)}; not everything could be read")
    last = candles[-1]
    return _link("trades_fold_to_the_candle", wrong, f"close {last.close:f}, volume {last.volume:f}")


def fold(trades: Sequence[Trade]) -> dict[str, Any]:
    """What a candle of these trades (one or more, by id) says, exactly."""
    volume = quote = taker = taker_quote = Decimal(0)
    for trade in trades:
        amount = EXACT.multiply(trade.price, trade.qty)
        volume, quote = EXACT.add(volume, trade.qty), EXACT.add(quote, amount)
        if not trade.buyer_is_maker:
            taker, taker_quote = EXACT.add(taker, trade.qty), EXACT.add(taker_quote, amount)
    prices = [trade.price for trade in trades]
    values = (prices[0], max(prices), min(prices), prices[-1], volume, quote, len(trades), taker, taker_quote)
    return dict(zip(FOLDED, values, strict=True))


def _flat(chain: Chain, candle: Candle) -> dict[str, Any]:
    """A candle without trades stands at the price of the trade before it, where that is known."""
    price = chain.before[-1].event.price if chain.before else candle.close
    nothing = Decimal(0)
    return dict(zip(FOLDED, (price, price, price, price, nothing, nothing, 0, nothing, nothing), strict=True))


# --- from a fill, from a command -------------------------------------------------------------------------


def _protected(chain: Chain) -> Link:
    name, intent = "order_fits_what_it_protects", chain.intent
    assert intent is not None
    if len(chain.fill) != 1:
        return _none_or_many(name, chain, chain.fill, f"fill {intent.signal_id.removeprefix(PROTECTION)}")
    fill: OrderFilled = chain.fill[0].event
    wrong = differences(intent, fill, ("account", "symbol"))
    if intent.side != "SELL":
        wrong.append(f"it is a {intent.side}")
    if intent.qty is not None and intent.qty > fill.position_qty:
        wrong.append(f"it sells {intent.qty:f}, and {fill.position_qty:f} is held after fill {fill.fill_id}")
    return _link(name, wrong, f"fill {fill.fill_id} of {fill.order_id}, {fill.position_qty:f} held after it")


def _flattened(chain: Chain) -> Link:
    name, intent = "order_fits_its_command", chain.intent
    assert intent is not None
    if len(chain.state) != 1:
        return _none_or_many(name, chain, chain.state, f"trading_state_changed of {intent.signal_id}")
    if len(chain.command) != 1:
        return _none_or_many(name, chain, chain.command, f"command of {intent.signal_id}")
    state: TradingStateChanged = chain.state[0].event
    command: Command = chain.command[0].event
    wrong = [f"the {what} is a {action}" for what, action in _actions(state, command) if action != "flatten"]
    wrong += differences(state, intent, ("account",)) + differences(command, intent, ("account",))
    if intent.side != "SELL":
        wrong.append(f"it is a {intent.side}")
    return _link(name, wrong, f"flatten by {command.asked_by}, {state.reason}")


def _actions(state: TradingStateChanged, command: Command) -> Iterable[tuple[str, str]]:
    return (("change of state", state.action), ("command", command.action))


# --- the rows --------------------------------------------------------------------------------------------


def _rows(chain: Chain) -> Link:
    """Each record has its one row, which says the same; what is still on its way is no fault."""
    name = "rows_say_the_same"
    records = list(chain.records)
    wrong = [f"{record.where}: {problem}" for record in records for problem in record.problems]
    states: Mapping[str, int] = Counter(record.row for record in records)
    wrong += [f"{record.where} is not in {record.table}" for record in records if record.row == "missing"]
    gone = sum(not record.kept for record in records)
    words = [f"{states['landed']} of {len(records)} have landed"]
    if states["not landed yet"]:
        words.append(f"{states['not landed yet']} not yet")
    if gone:
        words.append(f"{gone} are known from their rows alone" + ("" if chain.unread else ": Kafka has them no more"))
    if not wrong and states["not asked"]:
        return Link(name, None, f"{states['not asked']} rows could not be asked for")
    return _link(name, wrong, ", ".join(words))


# --- words -----------------------------------------------------------------------------------------------


def _none_or_many(name: str, chain: Chain, found: Sequence[Record], what: str) -> Link:
    if found:
        return Link(name, False, f"{what} stands {len(found)} times: {', '.join(str(r.where) for r in found[:SHOWN])}")
    if chain.unread:
        return Link(name, None, f"{what} was not found, and not everything could be read")
    return Link(name, False, f"{what} is nowhere")


def _link(name: str, wrong: Sequence[str], right: str) -> Link:
    if not wrong:
        return Link(name, True, right)
    more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return Link(name, False, "; ".join(wrong[:SHOWN]) + more)


def _plain(value: object) -> str:
    return format(value, "f") if isinstance(value, Decimal) else str(value)


def _in(number: int, ranges: Iterable[tuple[int, int]]) -> bool:
    return any(first <= number <= last for first, last in ranges)


def _ranges(ids: Iterable[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for number in ids:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def _span(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first} to {last} ({last - first + 1})"
