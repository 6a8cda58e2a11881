"""Paper trading: an order fills at the first trade of ohlcv_raw after the last one that its signal has seen.

The fill is a function of the log alone, so a restart finds the same one. Must never fill at a price that the
signal knew, nor send anything anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import ROUND_DOWN, Context, Decimal, localcontext
from hashlib import blake2b

from marketflow_common import clock, topics
from marketflow_common.events import OrderIntended, Trade
from marketflow_common.kafka import client
from marketflow_common.kafka.client import Record
from marketflow_common.kafka.source import read_back
from marketflow_common.numbers import EXACT, ZERO
from marketflow_common.settings import KafkaSettings

from .books import Fill
from .filters import Instrument, default_instrument
from .orders import Answer, Refused, Report
from .rest import Unavailable

__all__ = ["Paper"]

_EIGHT = Decimal("0.00000001")
_CUTS = Context(prec=96)
_NO_SUCH_TYPE = Refused(-1116, "Invalid orderType: paper trading has market orders only.")


class Paper:
    """An exchange made of ohlcv_raw. Trading rules come from ``rules``; the balances are the books' own."""

    def __init__(
        self,
        kafka: KafkaSettings,
        partitions: int,
        opening: dict[str, Decimal],
        fee_rate: Decimal,
        rules: Callable[[str], Instrument | None] = default_instrument,
    ) -> None:
        self._kafka, self._partitions, self._rules = kafka, partitions, rules
        self._opening, self._fee_rate = opening, fee_rate
        self._searched: dict[str, int] = {}
        self.free: Callable[[str], Decimal] = lambda asset: ZERO
        """Balance of an asset by the books; set by who keeps them."""

    def now_ms(self) -> int:
        """See Exchange."""
        return clock.now_ms()

    def place(self, intent: OrderIntended) -> Answer:
        """See Exchange: the intent in the log is the order."""
        return self.ask(intent)

    def ask(self, intent: OrderIntended) -> Answer:
        """See Exchange: filled if there has been a trade since, resting otherwise."""
        trade = self._next_trade(intent)
        number = int.from_bytes(blake2b(intent.order_id.encode(), digest_size=6).digest())
        at = intent.timestamp_ms * 1_000
        if trade is None:
            return Report(number, "NEW", ZERO, (), at)
        self._searched.pop(intent.order_id, None)
        instrument = self._rules(intent.symbol)
        assert instrument is not None, "an intent is made with the symbol's rules"
        assert intent.qty is not None
        base, quote = instrument.assets
        with localcontext(EXACT):
            paid = intent.qty * trade.price
            received, asset = (intent.qty, base) if intent.side == "BUY" else (paid, quote)
            # Cut after the eighth decimal, as no finer unit exists at the exchange.
            fee = (received * self._fee_rate).quantize(_EIGHT, ROUND_DOWN, _CUTS)
        short = self.free(quote) < paid if intent.side == "BUY" else self.free(base) < intent.qty
        if short:
            return Refused(-2010, "Account has insufficient balance for requested action.")
        fill = Fill(trade.trade_id, trade.price, intent.qty, paid, fee, asset, trade.traded_at)
        return Report(number, "FILLED", intent.qty, (fill,), at)

    def place_list(self, legs: Sequence[OrderIntended]) -> dict[str, Answer]:
        """See Exchange: refused, as are all types of order but one."""
        return {leg.order_id: _NO_SUCH_TYPE for leg in legs}

    def replace(self, intent: OrderIntended) -> dict[str, Answer]:
        """See Exchange: refused, no order rests here."""
        return {intent.order_id: _NO_SUCH_TYPE}

    def last_price(self, symbol: str) -> Decimal:
        """See Exchange."""
        raise Unavailable("paper trading has no price but that of its next fill")

    def best(self, symbol: str) -> tuple[Decimal, Decimal]:
        """See Exchange."""
        raise Unavailable("paper trading has no bids and asks")

    def averages(self, symbol: str) -> dict[int, Decimal]:
        """See Exchange: none, so that the signal's close stands in."""
        return {}

    def cancel(self, intent: OrderIntended) -> Answer:
        """See Exchange: a market order cannot be taken back, it fills at the next trade."""
        return self.ask(intent)

    def open_orders(self) -> dict[str, str]:
        """See Exchange: the log's own."""
        return {}

    def fills_from(self, symbol: str, trade_id: int | None) -> list[Fill]:
        """See Exchange: the log's own."""
        return []

    def balances(self) -> None:
        """See Exchange: nobody else keeps any."""
        return

    def opening_balances(self) -> dict[str, Decimal]:
        """See Exchange."""
        return self._opening

    def instrument(self, symbol: str) -> Instrument | None:
        """See Exchange."""
        return self._rules(symbol)

    def paused_s(self) -> float:
        """See Exchange."""
        return 0.0

    def refresh(self) -> None:
        """See Exchange."""

    def _next_trade(self, intent: OrderIntended) -> Trade | None:
        """The first trade in the log with an id above the signal's last one."""
        partition = topics.partition_of(intent.symbol, self._partitions)
        start = self._searched.get(intent.order_id)
        if start is not None:
            chunks: Iterable[list[Record]] = iter(
                [list(client.read_range(self._kafka, topics.OHLCV_RAW, partition, start))]
            )
        else:
            chunks = read_back(self._kafka, topics.OHLCV_RAW, partition)
        found: Trade | None = None
        for number, chunk in enumerate(chunks):
            if number == 0 and chunk:
                self._searched[intent.order_id] = chunk[-1].offset + 1
            ids = [r.event for r in chunk if isinstance(r.event, Trade) and r.event.symbol == intent.symbol]
            found = next((t for t in ids if t.trade_id > intent.signal_last_trade_id), found)
            if any(t.trade_id <= intent.signal_last_trade_id for t in ids):
                break
        return found
