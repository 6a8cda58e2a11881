"""Orders that stay at the exchange: limits that rest, are chased and taken back; stops and targets; selling all.

All of it follows from the account's fold, so whoever leads next goes on with it. Must never let a sale and a protection
have the same coins, nor place one protection while another may still be there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Final

import msgspec
from marketflow_common import logs
from marketflow_common.events import OrderIntended

from .commands import flatten_id, flatten_signal, is_flatten, withheld
from .decision import sell_all
from .desk import Desk
from .exchange import Unavailable
from .filters import Instrument, Refusal
from .orders import Order, order_id
from .plans import chase, give_up, is_standing, protect
from .sizing import stop_below, stop_price

__all__ = ["Resting"]

_log = logs.get("executor")
CANCEL_AGAIN_S: Final = 1.0
"""A cancellation that has shown no effect is asked for again after this long."""
CHASE_EVERY_S: Final = 1.0
SAY_AGAIN_S: Final = 10.0
LEAVE_S: Final = 8.0
"""A shutdown waits this long for its cancellations; containers get ten seconds by default."""
FIRST_PAUSE_S: Final = 1.0
LAST_PAUSE_S: Final = 60.0
"""A protection that could not be placed is tried again after this long, then at twice the distance up to the last."""


@dataclass
class _Attempts:
    """How often a protection was tried in this term, and when it may be again."""

    wanted: str
    due: float = 0.0
    made: int = 0


class Resting:
    """Looks after one account's orders at the exchange, for one term."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._attempts: dict[str, _Attempts] = {}

    def cancel(self, orders: Iterable[Order]) -> None:
        """Cancel orders that the exchange is known to have; what becomes of them is learned as always."""
        desk = self._desk
        for order in orders:
            intent, now = order.intent, time.monotonic()
            pending = desk.pending.get(intent.order_id)
            if pending is None or not pending.known or now < pending.cancel_at:
                continue
            for name, other in desk.account.open.items():
                if other is order or (intent.list_id and other.intent.list_id == intent.list_id):
                    # The legs of a list go together; what became of the other one is asked.
                    leg = desk.pending[name]
                    leg.cancel_at, leg.asked, leg.due = now + CANCEL_AGAIN_S, 0, 0.0
            desk.step("cancelling")
            answer = desk.exchange.cancel(intent)
            desk.step("cancelled")
            desk.learn(intent, answer)

    # --- limits --------------------------------------------------------------------------------------

    def look(self) -> None:
        """Take back what has rested too long or must not trade any more; let the rest follow the market."""
        desk, terms = self._desk, self._desk.limits.terms
        if desk.exchange.paused_s():
            return
        for order_id_, order in list(desk.account.open.items()):
            intent, pending = order.intent, desk.pending.get(order_id_)
            if intent.price is None or is_standing(intent) or pending is None or not pending.known:
                continue
            age_ms = desk.exchange.now_ms() - order.since_ms
            if 0 < terms.limit_ms < age_ms or withheld(intent, desk.account.state):
                self.cancel([order])
            elif terms.chase_pct and time.monotonic() >= max(pending.chase_at, pending.cancel_at):
                pending.chase_at = time.monotonic() + CHASE_EVERY_S
                self._chase(order)

    def _chase(self, order: Order) -> None:
        desk, intent = self._desk, order.intent
        evidence = desk.pending[intent.order_id].evidence
        if (
            order.filled
            or (evidence is not None and evidence.executed)
            or intent.time_in_force not in (None, "GTC")
            or any(other.intent.replaces == intent.order_id for other in desk.account.open.values())
        ):
            return
        try:
            instrument = desk.exchange.instrument(intent.symbol)
            if instrument is None:
                return
            bid, ask = desk.exchange.best(intent.symbol)
            averages = desk.exchange.averages(intent.symbol) if instrument.averaged else {}
        except Unavailable as error:
            _log.warning("exchange_unavailable", detail=str(error), effect="the order stays where it is")
            return
        # Its own side's best price, so that it waits in front and does not take.
        best = bid if intent.side == "BUY" else ask
        market = desk.account.market(intent.symbol, best, averages)
        found = chase(order, best, desk.limits.terms.chase_pct, instrument, market, desk.exchange.now_ms())
        if found is not None:
            desk.launch(found)

    def leave(self) -> None:
        """At a shutdown: take back what the setting does not want to rest without anybody who looks after it."""
        desk, which = self._desk, self._desk.limits.terms.on_shutdown
        deadline = time.monotonic() + LEAVE_S
        while which != "keep":
            rest = [
                order
                for order in desk.account.open.values()
                if order.intent.price is not None and (which == "cancel_all" or not is_standing(order.intent))
            ]
            if not rest or time.monotonic() > deadline:
                left = [order.intent.order_id for order in rest]
                say = _log.error if left else _log.info
                say("left", on_shutdown=which, still_open=left, effect="the next leader goes on with them")
                return
            self.cancel(rest)
            desk.ask()
            time.sleep(0.02)

    # --- stops and targets ---------------------------------------------------------------------------

    def protect(self) -> None:
        """Place the stop, or stop and target, that a position lacks; end one that is for another quantity."""
        desk = self._desk
        if desk.limits.terms.protection == "none" or desk.exchange.paused_s():
            return
        for symbol in list(desk.account.books.positions):
            due = desk.account.protection_due(symbol)
            if due == "cancel":
                self.cancel(desk.account.standing(symbol))
            elif due == "place":
                self._place(symbol)

    def unprotect(self, symbol: str) -> None:
        """Cancel a symbol's stop and target, and come back once it is known what became of them."""
        account, said_at = self._desk.account, time.monotonic()
        while standing := account.standing(symbol):
            if account.state == "HALTED" or account.flatten is not None:
                return  # There is no sale to make way for, or the flatten cancels and sells.
            if time.monotonic() > said_at + SAY_AGAIN_S:
                said_at = time.monotonic()
                names = [order.intent.order_id for order in standing]
                _log.error("not_cancelled", symbol=symbol, orders=names, effect="signals wait until their end is known")
            self.cancel(standing)
            self._desk.tend()

    def _place(self, symbol: str) -> None:
        desk, account = self._desk, self._desk.account
        wanted, number = account.next_protection(symbol)
        tried = self._attempts.get(symbol)
        if tried is None or tried.wanted != wanted:
            tried = self._attempts[symbol] = _Attempts(wanted)
        now = time.monotonic()
        if now < tried.due:
            return
        tried.due = now + min(LAST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(tried.made, 10))
        tried.made += 1
        entry = msgspec.structs.replace(
            account.entries[symbol],
            order_id=order_id(wanted, number),
            signal_id=wanted,
            attempt=number,
            mode=desk.limits.mode,
            recv_window_ms=desk.limits.recv_window_ms,
        )
        try:
            instrument = desk.exchange.instrument(symbol)
            if instrument is None:
                return
            planned = self._plan(entry, account.entries[symbol], instrument)
        except Unavailable as error:
            _log.error("unprotected", symbol=symbol, detail=str(error), effect="tried again")
            return
        if isinstance(planned, Refusal):
            held = account.books.position(symbol).qty
            if held >= instrument.least(entry.signal_close):
                detail = f"{planned.filter}: {planned.detail}"
                _log.error("unprotected", symbol=symbol, qty=held, detail=detail, effect="tried again")
            return
        desk.launch(*planned)
        legs = [desk.pending.get(order.intent.order_id) for order in account.standing(symbol)]
        # One that was not even sent is to be tried again as slowly as one that was refused.
        if legs and not any(leg is not None and leg.lost for leg in legs):
            tried.due, tried.made = 0.0, 0

    def _plan(
        self, entry: OrderIntended, bought: OrderIntended, instrument: Instrument
    ) -> Sequence[OrderIntended] | Refusal:
        """What protects a position now: stop and target, or its sale where the market is beyond one of them."""
        desk, symbol, terms = self._desk, entry.symbol, self._desk.limits.terms
        last = desk.exchange.last_price(symbol)
        averages = desk.exchange.averages(symbol) if instrument.averaged else {}
        market, now_ms = desk.account.market(symbol, last, averages), desk.exchange.now_ms()
        held = desk.account.books.position(symbol).qty
        stop, target = self._stop(bought), terms.target(entry.signal_close)
        if last <= stop or (target is not None and last >= target):
            sale = give_up(entry, held, instrument, market, now_ms)
            return sale if isinstance(sale, Refusal) else (sale,)
        return protect(entry, held, stop, target, terms.stop_slip_pct, instrument, market, now_ms)

    def _stop(self, bought: OrderIntended) -> Decimal:
        sizing = self._desk.limits.sizing
        # A level is in the signal alone; where that says nothing usable, the distance does.
        signal = self._desk.find_signal(bought) if sizing.stop_level else None
        level = stop_price(signal, sizing) if signal is not None else None
        return stop_below(bought.signal_close, sizing) if level is None else level

    # --- selling all ---------------------------------------------------------------------------------

    def flatten(self) -> None:
        """While a flatten stands: cancel what is open, then sell what is held, symbol by symbol."""
        desk, account = self._desk, self._desk.account
        order = account.flatten
        if order is None or desk.exchange.paused_s():
            return
        self.cancel([one for one in account.open.values() if not is_flatten(one.intent.signal_id)])
        busy = {open_order.intent.symbol for open_order in account.open.values()}
        for symbol, position in account.books.positions.items():
            attempt = account.next_flatten(flatten_id(order.command_id, symbol))
            if position.qty <= 0 or symbol in busy or attempt is None:
                continue
            close, last_trade_id = desk.seen(symbol) or account.seen[symbol]
            signal = flatten_signal(order, symbol, close, last_trade_id)
            instrument = desk.until_available(partial(desk.exchange.instrument, symbol))
            now_ms = desk.until_available(desk.exchange.now_ms)
            view = account.view(symbol, instrument, now_ms=now_ms, close=close)
            desk.publish_decided(signal, sell_all(signal, attempt, view, instrument, desk.limits, now_ms), [])
