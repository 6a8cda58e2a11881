"""From a signal to an order or to the reason for none."""

from __future__ import annotations

from decimal import Decimal, localcontext

import executor_builders
import msgspec
import pytest
from executor_builders import OPEN, instrument, limits, view
from hypothesis import given
from hypothesis import strategies as st
from marketflow_common.events import OrderIntended, Signal, SignalSkipped
from marketflow_common.intervals import MINUTE
from marketflow_common.numbers import EXACT
from marketflow_executor.books import Position
from marketflow_executor.decision import View, decide
from marketflow_executor.filters import Draft, Instrument, Market, Range

CLOSE_MS = (OPEN + MINUTE) // 1_000
LIMITS = limits(max_signal_age_ms=120_000)
ETH = instrument()
EMPTY = view()


def signal(signal_type: str = "BUY", close: str = "2300") -> Signal:
    return executor_builders.signal(id="weak-1", signal_type=signal_type, close=Decimal(close), last_trade_id=77)


def held(qty: str, cost: str) -> View:
    return view(position=Position(Decimal(qty), Decimal(cost)), exposure=Decimal(cost))


def decided(
    what: Signal, seen: View = EMPTY, instrument: Instrument | None = ETH, attempt: int = 1, now_ms: int = CLOSE_MS + 50
) -> OrderIntended:
    result = decide(what, attempt, seen, instrument, LIMITS, now_ms)
    assert isinstance(result, OrderIntended), result
    return result


def skipped(
    what: Signal, seen: View = EMPTY, instrument: Instrument | None = ETH, attempt: int = 1, now_ms: int = CLOSE_MS + 50
) -> str:
    result = decide(what, attempt, seen, instrument, LIMITS, now_ms)
    assert isinstance(result, SignalSkipped), result
    assert result.detail
    return result.reason


def test_a_buy_is_the_order_size_rounded_down_to_the_step_and_fixed_to_the_last_field() -> None:
    intent = decided(signal())
    assert intent.qty == Decimal("0.0869")
    assert (intent.order_id, intent.timestamp_ms, intent.recv_window_ms) == ("mf-weak-1-1", CLOSE_MS + 50, 5_000)
    assert (intent.side, intent.order_type, intent.quote_qty) == ("BUY", "MARKET", None)
    assert (intent.signal_close, intent.signal_last_trade_id) == (Decimal(2300), 77)
    assert decided(signal(), attempt=2).order_id == "mf-weak-1-2"


def test_limits_shrink_a_buy_to_what_they_leave_and_name_themselves_when_that_is_too_little() -> None:
    assert decided(signal(), held("0.4", "900")).qty == Decimal("0.0434")
    assert skipped(signal(), held("0.4", "996")) == "position_limit"
    assert skipped(signal(), held("0.4", "1200")) == "position_limit"
    assert decided(signal(), view(exposure=Decimal(1_900))).qty == Decimal("0.0434")
    assert skipped(signal(), view(exposure=Decimal(1_999))) == "exposure_limit"


def test_a_buy_needs_its_quote() -> None:
    assert skipped(signal(), view(free=Decimal(199))) == "insufficient_balance"


def test_a_sale_is_the_order_size_and_takes_a_rest_along_that_could_not_be_sold_alone() -> None:
    assert decided(signal("SELL"), held("0.4", "900")).qty == Decimal("0.0869")
    assert decided(signal("SELL"), held("0.0890", "200")).qty == Decimal("0.0890")
    assert decided(signal("SELL"), held("0.08685", "200")).qty == Decimal("0.0868")
    assert skipped(signal("SELL")) == "no_position"
    assert skipped(signal("SELL"), held("0.00005", "1")) == "below_min_notional"
    assert skipped(signal("SELL"), held("0.002", "4")) == "below_min_notional"


def test_an_old_signal_is_not_traded_by_the_exchanges_clock_and_an_age_of_zero_is_no_limit() -> None:
    assert skipped(signal(), now_ms=CLOSE_MS + 120_001) == "too_old"
    decided(signal(), now_ms=CLOSE_MS + 120_000)
    assert isinstance(decide(signal(), 1, EMPTY, ETH, limits(max_signal_age_ms=0), CLOSE_MS * 2), OrderIntended)


@pytest.mark.parametrize(
    ("seen", "instrument", "attempt", "side", "reason"),
    [
        (EMPTY, None, 1, "BUY", "unknown_symbol"),
        (EMPTY, instrument(trading=False), 1, "BUY", "symbol_not_trading"),
        (view(state="HALTED"), ETH, 1, "BUY", "halted"),
        (view(state="HALTED"), ETH, 1, "SELL", "halted"),
        (view(state="REDUCE_ONLY"), ETH, 1, "BUY", "reduce_only"),
        (view(order_open=True), ETH, 1, "BUY", "order_open"),
        (EMPTY, ETH, 4, "BUY", "attempts_exhausted"),
    ],
)
def test_what_stands_against_an_order_is_named(
    seen: View, instrument: Instrument | None, attempt: int, side: str, reason: str
) -> None:
    assert skipped(signal(side), seen, instrument, attempt) == reason


def test_positions_may_still_be_reduced_when_only_that_is_allowed() -> None:
    seen = msgspec.structs.replace(held("0.4", "900"), state="REDUCE_ONLY")
    assert decided(signal("SELL"), seen).side == "SELL"


_money = st.decimals(min_value=0, max_value=5_000, places=2)


@given(
    side=st.sampled_from(["BUY", "SELL"]),
    close=st.decimals(min_value="0.0001", max_value="90000", places=4),
    position=st.tuples(st.decimals(min_value=0, max_value=10_000, places=8), _money),
    exposure=_money,
    free=_money,
    step=st.sampled_from(["1", "0.1", "0.0001", "0.00000001", "0.003"]),
)
def test_whatever_is_ordered_obeys_filters_limits_and_what_is_there(
    side: str,
    close: Decimal,
    position: tuple[Decimal, Decimal],
    exposure: Decimal,
    free: Decimal,
    step: str,
) -> None:
    rules = instrument(lot=Range(Decimal(step), Decimal(0), Decimal(step)))
    seen = view(position=Position(*position), exposure=exposure + position[1], free=free)
    result = decide(signal(side, f"{close:f}"), 1, seen, rules, LIMITS, CLOSE_MS)
    if isinstance(result, SignalSkipped):
        return
    assert result.qty is not None
    assert rules.refusal(Draft(result.side, "MARKET", result.qty), Market(close)) is None
    with localcontext(EXACT):
        if side == "SELL":
            assert result.qty <= position[0]
            return
        assert result.qty * close <= min(free, LIMITS.order_quote)
        assert position[1] + result.qty * close <= LIMITS.max_position_quote
        assert seen.exposure + result.qty * close <= LIMITS.max_exposure_quote
