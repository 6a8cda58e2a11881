"""How much a signal is worth, exact and rounded down."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import executor_builders
from executor_builders import OPEN, instrument, limits, view
from hypothesis import given
from hypothesis import strategies as st
from marketflow_common.events import OrderIntended, Side, Signal, SignalSkipped
from marketflow_common.intervals import MINUTE
from marketflow_common.numbers import EXACT
from marketflow_executor.books import Position
from marketflow_executor.decision import decide
from marketflow_executor.filters import Range
from marketflow_executor.risk import Standing
from marketflow_executor.sizing import Sizing, stop_price, worth

D = Decimal
ETH = instrument(lot=Range(D("0.0001"), D(9_000), D("0.0001")))
STANDING = Standing(quote="USDT", equity=D(10_000), peak=D(10_000))


def signal(side: Side = "BUY", close: str = "100", **levels: str) -> Signal:
    return executor_builders.signal(
        signal_type=side, close=D(close), levels={name: D(level) for name, level in levels.items()}
    )


def decided(
    what: Signal, sizing: Sizing, standing: Standing = STANDING, position: Position | None = None
) -> OrderIntended | SignalSkipped:
    plenty = D(10**12)
    allowed = limits(max_position_quote=plenty, max_exposure_quote=plenty, sizing=sizing)
    seen = view(position=position or Position(), free=plenty, standing=standing)
    return decide(what, 1, seen, ETH, allowed, (OPEN + MINUTE) // 1_000)


def qty(what: Signal, sizing: Sizing, **more: Any) -> Decimal | None:
    found = decided(what, sizing, **more)
    assert isinstance(found, OrderIntended), found
    return found.qty


def test_a_fixed_amount_is_the_default() -> None:
    assert qty(signal(), Sizing()) == D(2)


def test_a_share_of_equity_sizes_buys_and_sales() -> None:
    sizing = Sizing("equity_share", equity_share_pct=D("2.5"))
    assert qty(signal(), sizing) == D("2.5")
    assert qty(signal("SELL"), sizing, position=Position(D(9), D(900))) == D("2.5")


def test_a_trade_by_risk_loses_its_share_of_equity_at_the_stop() -> None:
    sizing = Sizing("risk", risk_pct=D("0.5"), stop_distance_pct=D(4))
    assert stop_price(signal(), sizing) == D(96)
    assert qty(signal(), sizing) == D("12.5")
    by_level = Sizing("risk", risk_pct=D("0.5"), stop_level="previous_low")
    assert qty(signal(previous_low="97"), by_level) == D("16.6666")


def test_what_was_bought_by_its_risk_is_sold_as_a_whole() -> None:
    sizing = Sizing("risk")
    assert worth(signal("SELL"), Standing(), sizing, D(200)) is None
    assert qty(signal("SELL"), sizing, position=Position(D("16.66669"), D(900))) == D("16.6666")


def test_without_equity_or_a_stop_nothing_is_sized() -> None:
    broke = Standing(quote="USDT", equity=D(0))
    by_level = Sizing("risk", stop_level="previous_low")
    for what, sizing, standing, reason in (
        (signal(), Sizing("equity_share"), broke, "no_equity"),
        (signal(), Sizing("risk"), broke, "no_equity"),
        (signal(), by_level, STANDING, "no_stop"),
        (signal(previous_low="100"), by_level, STANDING, "no_stop"),
        (signal(previous_low="0"), by_level, STANDING, "no_stop"),
    ):
        found = decided(what, sizing, standing)
        assert isinstance(found, SignalSkipped)
        assert (found.reason, bool(found.detail)) == (reason, True)


_pct = st.decimals(min_value="0.01", max_value="99.99", places=2)


@given(
    close=st.decimals(min_value="0.01", max_value="90000", places=4),
    equity=st.decimals(min_value="0.01", max_value=10**7, places=8),
    share=_pct,
    distance=_pct,
    by_risk=st.booleans(),
)
def test_the_size_is_the_largest_that_stays_within_its_share(
    close: Decimal, equity: Decimal, share: Decimal, distance: Decimal, by_risk: bool
) -> None:
    standing = Standing(quote="USDT", equity=equity, peak=equity)
    sizing = Sizing("risk" if by_risk else "equity_share", share, share, distance)
    what = signal(close=f"{close:f}")
    found = decided(what, sizing, standing)
    if isinstance(found, SignalSkipped):
        assert found.reason == "below_min_notional"
        return
    assert found.qty is not None
    with localcontext(EXACT):
        allowed = equity * share / 100
        per_coin = close * distance / 100 if by_risk else close
        assert found.qty * per_coin <= allowed
        # A quantity is cut at the largest lot; else one step more would be too much.
        assert found.qty == ETH.lot.maximum or (found.qty + ETH.lot.step) * per_coin > allowed
