"""The executor's books and the audit's own, which share no code, say the same of the same fills."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from marketflow_common.events import Convention, OrderFilled, Side
from marketflow_executor.books import Assets, Books, Fill
from marketflow_operator.audit.books import Position, fold_balances, fold_position

_numbers = st.decimals(min_value="0.00000001", max_value="100000", places=8)
_ONE, _BIT, _NONE = Decimal(1), Decimal("0.00000001"), Decimal(0)
# The fee of the second buy is more than it bought, so it leaves a lot without quantity behind one that is sold in part.
_EATEN: list[tuple[Side, Decimal, Decimal, Decimal, str]] = [
    ("BUY", _ONE, Decimal(3), _NONE, "ETH"),
    ("BUY", _ONE, _BIT, _ONE, "ETH"),
    ("BUY", _ONE, _ONE, _NONE, "ETH"),
    ("SELL", _ONE, _ONE, _NONE, "ETH"),
    ("SELL", _ONE, _ONE + _BIT, _NONE, "ETH"),
]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["BUY", "SELL"]),
            _numbers,
            _numbers,
            st.decimals(min_value=0, max_value=10, places=8),
            st.sampled_from(["ETH", "USDT", "BNB"]),
        ),
        max_size=20,
    ),
    st.sampled_from(["average", "fifo"]),
)
@example(_EATEN, "fifo")
def test_positions_profits_and_balances_are_equal(
    fills: list[tuple[Side, Decimal, Decimal, Decimal, str]], convention: Convention
) -> None:
    books, theirs, events = Books(convention=convention), Position(), list[OrderFilled]()
    for number, (side, price, qty, fee, asset) in enumerate(fills):
        fill = Fill(number, price, qty, price * qty, fee, asset, number)
        booked = books.fill("ETHUSDT", side, Assets("ETH", "USDT"), fill)
        books = booked.books
        event = OrderFilled(
            account="main",
            order_id=f"mf-{number}-1",
            signal_id=str(number),
            symbol="ETHUSDT",
            side=side,
            exchange_order_id=number,
            fill_id=number,
            price=price,
            qty=qty,
            quote_qty=fill.quote_qty,
            commission=fee,
            commission_asset=asset,
            realized_pnl=booked.realized_pnl,
            profit_pct=booked.profit_pct,
            position_qty=booked.position.qty,
            position_cost=booked.position.cost,
            filled_at=number,
            complete=True,
        )
        events.append(event)
        fold = fold_position(theirs, event, "ETH", "USDT", convention)
        theirs = fold.position
        assert (theirs.qty, theirs.cost) == (booked.position.qty, booked.position.cost)
        assert (fold.realized, fold.profit_pct) == (booked.realized_pnl, booked.profit_pct)
    balances = fold_balances({}, events, {"ETHUSDT": ("ETH", "USDT")})
    assert {a: v for a, v in balances.items() if v} == {a: v for a, v in books.balances.items() if v}
