"""Checks of signals, orders, fills and books against candles and the exchange's ledger.

Pure functions from evidence to verdicts. Must never use a service's code: what is checked is not its own yardstick.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from marketflow_common.events import (
    AccountOpened,
    Candle,
    Command,
    OrderAccepted,
    OrderCanceled,
    OrderExpired,
    OrderFilled,
    OrderIntended,
    OrderRejected,
    OrderUnresolved,
    Signal,
    SignalSkipped,
)
from marketflow_common.numbers import EXACT

from .books import Position, fold_balances, fold_position
from .cuts import Cut
from .market import minute_text
from .model import Check, Evidence, Exchange, ExchangeFill, ExchangeOrder, Where, verdict

__all__ = [
    "CHECKS",
    "balances_equal_fold",
    "equity_error",
    "fills_equal_exchange",
    "order_counts",
    "orders_equal_exchange",
    "orders_sent_once",
    "positions_and_pnl",
    "signals_answered",
    "signals_one_per_candle",
    "unresolved_orders",
]

Cuts = Mapping[str, Cut]
_ENDS: Final[Mapping[str, tuple[str | None, ...]]] = {
    "filled": ("FILLED",),
    "canceled": ("CANCELED",),
    "rejected": ("REJECTED", None),
    "expired": ("EXPIRED", "EXPIRED_IN_MATCH", None),
}
"""What the exchange may say of an order that ended so here; None: it never heard of it."""
_OPEN: Final = ("NEW", "PARTIALLY_FILLED", "PENDING_NEW")
_PROTECTION: Final = "protect"
"""Begins the signal id of stops and targets: protect:<symbol>:<the account's trade that they follow>."""


@dataclass
class Order:
    """What the topic says of one order."""

    intents: list[tuple[Where, OrderIntended]] = field(default_factory=list)
    fills: list[tuple[Where, OrderFilled]] = field(default_factory=list)
    ends: list[tuple[Where, str]] = field(default_factory=list)
    accepted: bool = False
    unresolved: list[Where] = field(default_factory=list)

    @property
    def intent(self) -> OrderIntended | None:
        return self.intents[0][1] if self.intents else None

    @property
    def end(self) -> str | None:
        return self.ends[-1][1] if self.ends else None


def orders_of(evidence: Evidence) -> dict[str, Order]:
    """All orders of the topic by client order id."""
    orders: dict[str, Order] = defaultdict(Order)
    for seen in evidence.records.get("order_events", ()):
        event = seen.event
        match event:
            case OrderIntended():
                orders[event.order_id].intents.append((seen.where, event))
            case OrderAccepted():
                orders[event.order_id].accepted = True
            case OrderFilled():
                order = orders[event.order_id]
                order.fills.append((seen.where, event))
                if event.complete:
                    order.ends.append((seen.where, "filled"))
            case OrderRejected():
                orders[event.order_id].ends.append((seen.where, "rejected"))
            case OrderCanceled():
                orders[event.order_id].ends.append((seen.where, "canceled"))
            case OrderExpired():
                orders[event.order_id].ends.append((seen.where, "expired"))
            case OrderUnresolved():
                orders[event.order_id].unresolved.append(seen.where)
            case _:
                pass
    return dict(orders)


def _rests(order: Order, theirs: Sequence[ExchangeOrder]) -> bool:
    """Whether an order without an end waits at the exchange for its price, and both sides say so."""
    intent = order.intent
    waits = intent is not None and intent.price is not None and order.accepted and not order.ends
    return waits and [entry.status in _OPEN for entry in theirs] == [True]


def _by_client_id(exchange: Exchange) -> dict[str, list[ExchangeOrder]]:
    theirs: dict[str, list[ExchangeOrder]] = defaultdict(list)
    for entry in exchange.orders:
        theirs[entry.client_order_id].append(entry)
    return theirs


# --- signals -----------------------------------------------------------------------------------------


def _due_candles(evidence: Evidence, cuts: Cuts) -> dict[tuple[str, str, int], Candle]:
    """Revision 0 of every candle before the cut."""
    due = {}
    for _, candle in evidence.of(Candle):
        cut = cuts.get(candle.symbol)
        if candle.revision or cut is None:
            continue
        if candle.open_time in cut.windows or candle.open_time == cut.cut_window or candle.interval != "1m":
            due[candle.symbol, candle.interval, candle.open_time] = candle
    return due


def signals_one_per_candle(evidence: Evidence, exchange: Exchange, cuts: Cuts) -> Check:
    """Per strategy exactly one signal of every candle, with that candle's numbers, and none of anything else."""
    candles = _due_candles(evidence, cuts)
    known = {(c.symbol, c.interval, c.open_time) for _, c in evidence.of(Candle)}
    by_strategy: dict[tuple[str, str, str], dict[tuple[str, int], list[tuple[Where, Signal]]]] = {}
    for seen, signal in evidence.of(Signal):
        spoken = by_strategy.setdefault((signal.strategy, signal.parameters, signal.interval), defaultdict(list))
        spoken[signal.symbol, signal.open_time].append((seen.where, signal))
    offenders, due, once = [], 0, 0
    if candles and not by_strategy:
        offenders.append("no strategy has said anything")
        due = len(candles)
    for (strategy, _, interval), spoken in by_strategy.items():
        for (symbol, candle_interval, at), candle in candles.items():
            if candle_interval != interval:
                continue
            due += 1
            found = spoken.get((symbol, at), [])
            name = f"{strategy} {symbol} {minute_text(at)}"
            if len(found) != 1:
                places = ", ".join(str(where) for where, _ in found)
                offenders.append(f"{name}: {len(found)} signals at {places}" if found else f"{name}: no signal")
                continue
            where, signal = found[0]
            wrong = [
                f"{field} {getattr(signal, field)} instead of {getattr(candle, field)}"
                for field in ("close", "volume", "last_trade_id")
                if getattr(signal, field) != getattr(candle, field)
            ]
            once += not wrong
            if wrong:
                offenders.append(f"{name} at {where}: {', '.join(wrong)}")
        offenders += [
            f"{strategy} {symbol} {minute_text(at)} at {found[0][0]}: there is no such candle"
            for (symbol, at), found in spoken.items()
            if (symbol, interval, at) not in known
        ]
    ids = Counter(signal.id for _, signal in evidence.of(Signal))
    offenders += [f"signal id {number} is used {times} times" for number, times in ids.items() if times > 1]
    return verdict("signals_one_per_candle", due, once, offenders)


def signals_answered(evidence: Evidence, exchange: Exchange, cuts: Cuts) -> Check:
    """Every BUY and SELL before the cut is answered: it ends in one order, or was skipped with a reason, not both."""
    orders, theirs = orders_of(evidence), _by_client_id(exchange)
    resting = {number for number, order in orders.items() if _rests(order, theirs.get(number, []))}
    attempts: dict[str, list[tuple[str, Order]]] = defaultdict(list)
    for number, order in orders.items():
        if order.intent is not None:
            attempts[order.intent.signal_id].append((number, order))
    skipped: dict[str, list[Where]] = defaultdict(list)
    for seen, skip in evidence.of(SignalSkipped):
        skipped[skip.signal_id].append(seen.where)
    candles = _due_candles(evidence, cuts)
    signals = {signal.id: (seen.where, signal) for seen, signal in evidence.of(Signal)}
    offenders, due, answered = [], 0, 0
    for number, (where, signal) in signals.items():
        tried, skips = attempts.get(number, []), skipped.get(number, [])
        name = f"{signal.signal_type} {signal.symbol} {minute_text(signal.open_time)} ({where})"
        if signal.signal_type == "HOLD":
            if tried or skips:
                offenders.append(f"{name}: a HOLD has {len(tried)} orders and {len(skips)} skips")
            continue
        if (signal.symbol, signal.interval, signal.open_time) not in candles:
            continue
        due += 1
        problem = _answer_problem(tried, skips, resting)
        answered += not problem
        if problem:
            offenders.append(f"{name}: {problem}")
    ordered = {command.id for _, command in evidence.of(Command)}
    traded = {f"{fill.symbol}:{fill.fill_id}" for _, fill in evidence.of(OrderFilled)}
    for number in (attempts.keys() | skipped.keys()) - signals.keys():
        kind, _, rest = number.partition(":")
        if kind == "command" and rest.rpartition(":")[0] in ordered:
            continue  # sold by a flatten
        if kind == _PROTECTION and rest in traded:
            continue  # protects what that trade has left
        places = [str(order.intents[0][0]) for _, order in attempts.get(number, ())] + list(map(str, skipped[number]))
        offenders.append(f"{', '.join(places)} answers signal {number}, which does not exist")
    return verdict("signals_answered", due, answered, offenders)


def _answer_problem(tried: Sequence[tuple[str, Order]], skips: Sequence[Where], resting: Collection[str]) -> str:
    if not tried and not skips:
        return "no answer"
    if len(skips) > 1:
        return f"skipped {len(skips)} times ({', '.join(map(str, skips))})"
    filled = [number for number, order in tried if order.fills]
    if len(filled) > 1:
        return f"filled by {len(filled)} orders ({', '.join(filled)})"
    if filled and skips:
        return f"filled by {filled[0]} and skipped at {skips[0]}"
    for number, order in tried:
        if len(order.ends) != 1 and number not in resting:
            places = ", ".join(f"{end} at {where}" for where, end in order.ends)
            return f"order {number} has {len(order.ends)} ends {places}".rstrip()
    return ""


# --- orders ------------------------------------------------------------------------------------------


def _is_paper(order: Order) -> bool:
    return order.intent is not None and order.intent.mode == "paper"


def orders_equal_exchange(evidence: Evidence, exchange: Exchange, cuts: Cuts) -> Check:
    """The exchange has exactly the orders that were intended, each with the outcome that the topic states."""
    orders = {number: order for number, order in orders_of(evidence).items() if not _is_paper(order)}
    theirs = _by_client_id(exchange)
    offenders, equal = [], 0
    for number, order in orders.items():
        problem = _order_problem(order, theirs.get(number, []))
        equal += not problem
        if problem:
            place = order.intents[0][0] if order.intents else (order.fills[0][0] if order.fills else "order_events")
            offenders.append(f"order {number} at {place}: {problem}")
    for number in theirs.keys() - orders.keys():
        entry = theirs[number][0]
        offenders.append(
            f"the exchange has order {number} ({entry.side} {entry.symbol}, {entry.status}) that nobody intended"
        )
    return verdict("orders_equal_exchange", len(orders), equal, offenders)


def _order_problem(order: Order, theirs: Sequence[ExchangeOrder]) -> str:
    intent = order.intent
    if intent is None:
        return "it was never intended"
    if len(theirs) > 1:
        return f"the exchange has {len(theirs)} orders of that client id"
    entry = theirs[0] if theirs else None
    status = entry.status if entry else None
    if order.end is None:
        if not _rests(order, theirs):
            return f"no end is known, the exchange says {status or 'it has no such order'}"
    elif status not in _ENDS[order.end]:
        return f"{order.end} here, {status or 'unknown'} at the exchange"
    if entry is None:
        return "it has fills that the exchange does not know" if order.fills else ""
    for name, mine, his in (
        ("symbol", intent.symbol, entry.symbol),
        ("side", intent.side, entry.side),
        ("type", intent.exchange_type or intent.order_type, entry.order_type),
        ("executed qty", sum((fill.qty for _, fill in order.fills), Decimal(0)), entry.executed_qty),
    ):
        if mine != his:
            return f"{name} {mine} here, {his} at the exchange"
    return ""


def orders_sent_once(evidence: Evidence, exchange: Exchange, cuts: Cuts) -> Check:
    """No order was sent twice: per signal at most one attempt came to the market, per client id one order."""
    orders = orders_of(evidence)
    offenders = []
    for number, order in orders.items():
        if len(order.intents) > 1:
            places = ", ".join(str(where) for where, _ in order.intents)
            offenders.append(f"order {number} intended {len(order.intents)} times ({places})")
    offenders += duplicated_orders(evidence, exchange)
    return verdict("orders_sent_once", 0, len(offenders), offenders)


def duplicated_orders(evidence: Evidence, exchange: Exchange) -> list[str]:
    """Orders at the exchange beyond the one that a signal may have."""
    intents = {event.order_id: event for _, event in evidence.of(OrderIntended)}
    working: dict[str, set[str]] = defaultdict(set)
    times = Counter(entry.client_order_id for entry in exchange.orders)
    for entry in exchange.orders:
        intent = intents.get(entry.client_order_id)
        if intent is None:
            continue
        if intent.signal_id.startswith(f"{_PROTECTION}:"):
            # One protection may follow another, and be of two orders; at any time a symbol has one.
            if entry.status in _OPEN:
                working[f"protection of {intent.symbol}"].add(intent.list_id or intent.order_id)
        elif entry.executed_qty > 0 or entry.status in _OPEN:
            working[f"signal {intent.signal_id}"].add(intent.order_id)
    found = [f"client id {number} has {count} orders at the exchange" for number, count in times.items() if count > 1]
    return found + [
        f"{what} was traded by {len(ids)} orders ({', '.join(sorted(ids))})"
        for what, ids in working.items()
        if len(ids) > 1
    ]


def unresolved_orders(evidence: Evidence, exchange: Exchange, cuts: Cuts) -> Check:
    """Every intended order has an end, or rests at the exchange; nothing is left unknown."""
    theirs = _by_client_id(exchange)
    open_orders = [
        (number, order)
        for number, order in orders_of(evidence).items()
        if order.end is None and not _rests(order, theirs.get(number, []))
    ]
    return verdict(
        "unresolved_orders",
        0,
        len(open_orders),
        (
            f"order {number} at {order.intents[0][0] if order.intents else 'order_events'} "
            + (f"is unresolved since {order.unresolved[-1]}" if order.unresolved else "has no end")
            for number, order in open_orders
        ),
    )


def fills_equal_exchange(evidence: Evidence, exchange: Exchange, cuts: Cuts) -> Check:
    """Every fill of the exchange's ledger stands once in order_events, with price, quantity and commission."""
    paper = {number for number, order in orders_of(evidence).items() if _is_paper(order)}
    theirs = {(fill.symbol, fill.fill_id): fill for fill in exchange.fills}
    ours: dict[tuple[str, int], list[tuple[Where, OrderFilled]]] = defaultdict(list)
    for seen, fill in evidence.of(OrderFilled):
        if fill.order_id not in paper:
            ours[fill.symbol, fill.fill_id].append((seen.where, fill))
    offenders, equal = [], 0
    for key, entry in theirs.items():
        found = ours.get(key, [])
        name = f"{entry.symbol} fill {entry.fill_id}"
        if len(found) != 1:
            places = ", ".join(str(where) for where, _ in found)
            offenders.append(f"{name} stands {len(found)} times ({places})" if found else f"{name} is not recorded")
            continue
        where, fill = found[0]
        wrong = _fill_problems(fill, entry)
        equal += not wrong
        if wrong:
            offenders.append(f"{name} at {where}: {', '.join(wrong)}")
    for key in ours.keys() - theirs.keys():
        where, fill = ours[key][0]
        offenders.append(f"{fill.symbol} fill {fill.fill_id} at {where} is none of the exchange's")
    return verdict("fills_equal_exchange", len(theirs), equal, offenders)


def _fill_problems(fill: OrderFilled, entry: ExchangeFill) -> list[str]:
    pairs: tuple[tuple[str, Any, Any], ...] = (
        ("side", fill.side, entry.side),
        ("exchange order", fill.exchange_order_id, entry.order_id),
        ("price", fill.price, entry.price),
        ("qty", fill.qty, entry.qty),
        ("quote qty", fill.quote_qty, entry.quote_qty),
        ("commission", fill.commission, entry.commission),
        ("commission asset", fill.commission_asset, entry.commission_asset),
    )
    return [f"{name} {mine} instead of {his}" for name, mine, his in pairs if mine != his]


# --- books -------------------------------------------------------------------------------------------


def _balance_differences(evidence: Evidence, exchange: Exchange) -> tuple[int, dict[str, tuple[Decimal, Decimal]]]:
    """Number of accounts on the exchange, and by asset (folded, exchange's) where the two differ."""
    opened = [event for _, event in evidence.of(AccountOpened) if event.mode != "paper"]
    accounts = {event.account for event in opened}
    if not opened:
        return 0, {}
    fills = [fill for _, fill in evidence.of(OrderFilled) if fill.account in accounts]
    folded = fold_balances(opened[0].balances, fills, exchange.assets)
    zero = Decimal(0)
    return len(accounts), {
        asset: (folded.get(asset, zero), exchange.balances.get(asset, zero))
        for asset in sorted(folded.keys() | exchange.balances.keys())
        if folded.get(asset, zero) != exchange.balances.get(asset, zero)
    }


def balances_equal_fold(evidence: Evidence, exchange: Exchange, cuts: Cuts) -> Check:
    """Opening balances plus the audit's own fold of all fills are the exchange's balances, to the last digit."""
    accounts, differences = _balance_differences(evidence, exchange)
    offenders = [f"{asset}: {mine:f} folded, {his:f} at the exchange" for asset, (mine, his) in differences.items()]
    openings = Counter(event.account for _, event in evidence.of(AccountOpened))
    offenders += [f"account {name} was opened {times} times" for name, times in openings.items() if times > 1]
    if not openings and any(True for _ in evidence.of(OrderIntended)):
        offenders.append("orders were intended, but no account_opened says what the books start from")
    note = "" if accounts else "no account at the exchange was opened (paper, or no executor)"
    return verdict("balances_equal_fold", 0, len(differences), offenders, note)


def equity_error(evidence: Evidence, exchange: Exchange) -> Decimal:
    """Sum of all differences between folded and real balances, in quote at the last price (1 for a quote asset)."""
    _, differences = _balance_differences(evidence, exchange)
    prices = {
        base: exchange.feeds[symbol].trades[-1].price
        for symbol, (base, _) in exchange.assets.items()
        if symbol in exchange.feeds and exchange.feeds[symbol].trades
    }
    total = Decimal(0)
    for asset, (mine, his) in differences.items():
        total = EXACT.add(total, EXACT.multiply(EXACT.abs(mine - his), prices.get(asset, Decimal(1))))
    return total


def positions_and_pnl(evidence: Evidence, exchange: Exchange, cuts: Cuts) -> Check:
    """Position, cost, realized PnL and profit stated with every fill are the audit's own fold, to the last digit."""
    positions: dict[tuple[str, str], Position] = {}
    conventions = {event.account: event.convention for _, event in evidence.of(AccountOpened)}
    offenders, total, equal = [], 0, 0
    for seen, fill in evidence.of(OrderFilled):
        total += 1
        if fill.symbol not in exchange.assets:
            offenders.append(f"{seen.where}: {fill.symbol} is no symbol of the exchange")
            continue
        key = (fill.account, fill.symbol)
        base, quote = exchange.assets[fill.symbol]
        convention = conventions.get(fill.account, "average")
        fold = fold_position(positions.get(key, Position()), fill, base, quote, convention)
        positions[key] = fold.position
        wrong = [
            f"{name} {mine} instead of {own}"
            for name, mine, own in (
                ("position_qty", fill.position_qty, fold.position.qty),
                ("position_cost", fill.position_cost, fold.position.cost),
                ("realized_pnl", fill.realized_pnl, fold.realized),
                ("profit_pct", fill.profit_pct, fold.profit_pct),
            )
            if mine != own
        ]
        equal += not wrong
        if wrong:
            offenders.append(f"{fill.symbol} fill {fill.fill_id} at {seen.where}: {', '.join(wrong)}")
    return verdict("positions_and_pnl", total, equal, offenders)


def order_counts(evidence: Evidence, exchange: Exchange | None) -> dict[str, int]:
    """How the orders ended, for the report."""
    orders = orders_of(evidence)
    ends = Counter(order.end for order in orders.values())
    return {
        "intended": sum(len(order.intents) for order in orders.values()),
        "filled": ends["filled"],
        "rejected": ends["rejected"],
        "canceled": ends["canceled"],
        "expired": ends["expired"],
        "skipped": sum(1 for _ in evidence.of(SignalSkipped)),
        "unresolved": ends[None],
        "duplicated": len(duplicated_orders(evidence, exchange)) if exchange else 0,
    }


CHECKS: Final = (
    signals_one_per_candle,
    signals_answered,
    orders_equal_exchange,
    orders_sent_once,
    unresolved_orders,
    fills_equal_exchange,
    balances_equal_fold,
    positions_and_pnl,
)
