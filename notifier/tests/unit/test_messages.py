"""What people read, event by event. MARKETFLOW_UPDATE_GOLDEN=1 writes the golden file anew."""

from __future__ import annotations

import os
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketflow_common import events
from marketflow_notifier.messages import KINDS, MAX_LINE, Notice, first_message, is_due, notice, units

GOLDEN = Path(__file__).parent / "golden" / "messages.txt"
MINUTE = 1_723_161_420_000_000  # 2024-08-08 23:57 UTC


def signal(kind: str = "BUY", **changes: object) -> events.Signal:
    fields: dict[str, object] = {
        "id": "s1",
        "strategy": "weak_levels",
        "parameters": "p",
        "symbol": "ETHUSDT",
        "interval": "1m",
        "open_time": MINUTE,
        "close": Decimal("2683.80000000"),
        "volume": Decimal("12.50000000"),
        "momentum": Decimal("0.00123400"),
        "signal_type": kind,
        "last_trade_id": 7,
        "levels": {"weak_high": Decimal("2680.1")},
        "reasons": ("close 2683.8 broke the weak high 2680.1", "volume 2.1 times its mean"),
    }
    return events.Signal(**(fields | changes))  # type: ignore[arg-type]


def fill(**changes: object) -> events.OrderFilled:
    fields: dict[str, object] = {
        "account": "main",
        "order_id": "mf-1",
        "signal_id": "s1",
        "symbol": "ETHUSDT",
        "side": "BUY",
        "exchange_order_id": 5,
        "fill_id": 6,
        "price": Decimal("2684.01000000"),
        "qty": Decimal("0.25000000"),
        "quote_qty": Decimal("671.00250000"),
        "commission": Decimal("0.00025000"),
        "commission_asset": "ETH",
        "realized_pnl": Decimal("0E-8"),
        "profit_pct": None,
        "position_qty": Decimal("0.24975000"),
        "position_cost": Decimal("671.00250000"),
        "filled_at": MINUTE,
        "complete": True,
    }
    return events.OrderFilled(**(fields | changes))  # type: ignore[arg-type]


ORDER = {"account": "main", "order_id": "mf-1", "signal_id": "s1", "symbol": "ETHUSDT"}
SAMPLES: list[events.Event] = [
    signal("BUY"),
    signal("SELL", momentum=Decimal("-0.01000000"), reasons=()),
    fill(),
    fill(side="BUY", complete=False, qty=Decimal("10")),
    fill(side="SELL", realized_pnl=Decimal("1.55250000"), profit_pct=Decimal("0.2314"), position_qty=Decimal("0E-8")),
    fill(side="SELL", realized_pnl=Decimal("-3.1"), profit_pct=Decimal("-0.4620"), commission_asset="USDT"),
    events.OrderRejected(**ORDER, code=-2010, reason="Account has insufficient balance for requested action."),
    events.OrderExpired(**ORDER, reason="it never arrived: not found after timestamp + recvWindow"),
    events.OrderCanceled(**ORDER, reason="by the operator"),
    events.OrderUnresolved(**ORDER, reason="the answer to the order was lost"),
    events.TradingStateChanged("main", "HALTED", "daily loss of 120.5 is over the limit of 100", "risk", MINUTE),
    events.TradingStateChanged("main", "REDUCE_ONLY", "drawdown", "risk", MINUTE),
    events.TradingStateChanged("main", "ACTIVE", "resumed", "operator", MINUTE),
]
NOT_DUE: list[events.Event] = [
    signal("HOLD"),
    events.SignalSkipped("main", "s1", "ETHUSDT", "BUY", "age", "too old"),
    events.OrderAccepted(**ORDER, exchange_order_id=5, accepted_at=MINUTE),
    events.AccountOpened("main", "paper", {"USDT": Decimal(1000)}, MINUTE),
]


def test_every_kind_of_event_reads_as_the_golden_file_says() -> None:
    blocks = []
    for offset, event in enumerate(SAMPLES):
        topic = "trading_signals" if isinstance(event, events.Signal) else "order_events"
        line, short = notice(event, f"{topic}/2@{offset}")
        blocks.append(f"{line}\n    in short: {short}\n")
    text = "".join(blocks)
    if os.environ.get("MARKETFLOW_UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_the_samples_cover_every_kind_that_people_are_told_of() -> None:
    assert {type(event).__struct_config__.tag for event in SAMPLES} == set(KINDS)
    assert all(is_due(event) for event in SAMPLES)


def test_a_hold_and_the_steps_on_an_orders_way_are_not_told() -> None:
    assert not any(is_due(event) for event in NOT_DUE)


def test_the_kinds_can_be_narrowed() -> None:
    assert [is_due(event, {"order_filled"}) for event in (signal("BUY"), fill())] == [False, True]


def test_what_is_not_due_has_no_words() -> None:
    with pytest.raises(TypeError, match="OrderAccepted is not an event that people are told of"):
        notice(NOT_DUE[2], "order_events/0@0")


def test_no_digit_of_a_number_is_lost_and_no_exponent_shown() -> None:
    line = notice(fill(qty=Decimal("0.000000000000000001"), quote_qty=Decimal("12345678901234567890.5")), "r").line
    assert "0.000000000000000001 ETHUSDT" in line
    assert "12345678901234567890.5" in line


REFERENCE = "order_events/2@57"


@given(st.text(max_size=3_000), st.text(max_size=200))
def test_a_line_stays_one_bounded_line_that_ends_with_its_reference(reason: str, order_id: str) -> None:
    event = events.OrderRejected("main", order_id, "s1", reason[:50], -1, reason)
    line, short = notice(event, REFERENCE)
    assert line.endswith(f" · {REFERENCE}")
    assert short.endswith(f" {REFERENCE}")
    assert len(line.splitlines()) == 1
    assert units(line) <= MAX_LINE
    assert short.isascii()
    assert line.encode("utf-8")


@given(st.text(max_size=50))
def test_lengths_are_counted_in_utf_16(text: str) -> None:
    assert units(text) == len(text.encode("utf-16-le", "surrogatepass")) // 2


@given(st.lists(st.integers(1, MAX_LINE), min_size=1, max_size=60), st.sampled_from([2_000, 4_096]))
def test_messages_hold_all_lines_in_order_and_stay_below_the_limit(lengths: list[int], limit: int) -> None:
    notices = [Notice(f"{number:03}".ljust(length, "x")[:length], f"{number}") for number, length in enumerate(lengths)]
    rest, lines = notices, []
    while rest:
        message = first_message(rest, limit)
        assert 0 < units(message.text) <= limit
        assert len(message.short.splitlines()) == message.taken
        lines += message.text.split("\n")
        rest = rest[message.taken :]
    assert lines == [n.line for n in notices]


def test_a_burst_becomes_as_few_messages_as_fit() -> None:
    notices = [notice(signal(), f"trading_signals/0@{offset}") for offset in range(10, 50)]
    assert first_message(notices, 4_096).taken == 4_097 // (units(notices[10].line) + 1)
    assert first_message(notices[:3], 4_096).taken == 3


def test_a_reference_is_found_by_a_simple_pattern() -> None:
    text = first_message([notice(event, f"order_events/1@{n}") for n, event in enumerate(SAMPLES)], 4_096).text
    found = re.findall(r"(\w+)/(\d+)@(\d+)$", text, re.MULTILINE)
    assert found == [("order_events", "1", str(n)) for n in range(len(SAMPLES))]
