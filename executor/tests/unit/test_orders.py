"""One order's life: no answer is ever taken for more than it says."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marketflow_common.codec import schema_of
from marketflow_common.events import OrderFilled, OrderIntended
from marketflow_executor.books import Assets, Books, Fill
from marketflow_executor.orders import (
    Answer,
    Learned,
    NotThere,
    Order,
    Refused,
    Report,
    Throttled,
    TooLate,
    Unknown,
    learn,
    order_id,
)

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine makes no test fail."""

ETH = Assets("ETH", "USDT")
MARGIN_MS = 1_000
INTENT = OrderIntended(
    account="main",
    order_id="mf-s-1",
    signal_id="s",
    attempt=1,
    symbol="ETHUSDT",
    side="BUY",
    order_type="MARKET",
    qty=Decimal(3),
    quote_qty=None,
    price=None,
    timestamp_ms=10_000,
    recv_window_ms=5_000,
    mode="testnet",
    signal_close=Decimal(100),
    signal_last_trade_id=1,
)


def fill(number: int, qty: int = 1) -> Fill:
    return Fill(number, Decimal(100), Decimal(qty), Decimal(100 * qty), Decimal("0.001"), "ETH", number)


def told(answer: Answer, order: Order | None = None) -> Learned:
    return learn(order or Order(INTENT), answer, Books(), ETH, MARGIN_MS)


def kinds(learned: Learned) -> list[str]:
    return [schema_of(event) for event in learned.events]


def test_a_full_report_ends_the_order_with_all_its_fills() -> None:
    learned = told(Report(7, "FILLED", Decimal(3), (fill(2, 2), fill(1)), 5))
    assert kinds(learned) == ["order_accepted", "order_filled", "order_filled"]
    assert learned.verdict == "ended"
    first, last = learned.events[1:]
    assert isinstance(first, OrderFilled)
    assert isinstance(last, OrderFilled)
    assert [first.fill_id, last.fill_id] == [1, 2]
    assert [first.complete, last.complete] == [False, True]
    assert last.position_qty == Decimal("2.998")


def test_fills_that_are_known_are_not_told_again() -> None:
    order = Order(INTENT)
    for event in told(Report(7, "PARTIALLY_FILLED", Decimal(1), (fill(1),), 5)).events:
        order = order.follow(event)
    learned = told(Report(7, "FILLED", Decimal(3), (fill(1), fill(2, 2)), 6), order)
    assert kinds(learned) == ["order_filled"]
    assert learned.verdict == "ended"


def test_a_report_whose_fills_are_not_all_listed_is_not_recorded_by_half() -> None:
    learned = told(Report(7, "FILLED", Decimal(3), (fill(1),), 5))
    assert (kinds(learned), learned.verdict) == (["order_unresolved"], "unknown")


def test_what_was_filled_before_a_cancellation_stays_filled() -> None:
    learned = told(Report(7, "CANCELED", Decimal(1), (fill(1),), 5))
    assert kinds(learned) == ["order_accepted", "order_filled", "order_canceled"]
    assert learned.verdict == "ended"


def test_no_answer_is_unknown_and_said_once() -> None:
    learned = told(Unknown("timeout"))
    assert (kinds(learned), learned.verdict) == (["order_unresolved"], "unknown")
    order = Order(INTENT).follow(learned.events[0])
    assert told(Unknown("timeout"), order) == Learned((), "unknown", "timeout")


def test_not_there_counts_only_when_the_order_can_no_longer_arrive() -> None:
    early = told(NotThere(INTENT.timestamp_ms + 5_000 + MARGIN_MS))
    assert (kinds(early), early.verdict) == (["order_unresolved"], "unknown")
    late = told(NotThere(INTENT.timestamp_ms + 5_000 + MARGIN_MS + 1))
    assert (kinds(late), late.verdict) == ([], "never_arrived")


def test_an_order_that_the_exchange_had_is_never_thought_not_to_have_arrived() -> None:
    order = Order(INTENT)
    for event in told(Report(7, "NEW", Decimal(0), (), 5)).events:
        order = order.follow(event)
    assert told(NotThere(10**9), order).verdict == "unknown"


def test_a_refusal_ends_the_order_and_a_late_request_never_arrived() -> None:
    assert kinds(told(Refused(-1013, "Filter failure: LOT_SIZE"))) == ["order_rejected"]
    assert told(TooLate("outside of the recvWindow")).verdict == "never_arrived"
    assert told(Throttled(1.0)) == Learned((), "throttled")


def test_order_ids_fit_the_exchange_and_follow_from_signal_and_attempt() -> None:
    assert order_id("abc", 2) == "mf-abc-2"
    long = order_id("weak_levels:ETHUSDT:1m:28000000:" + "x" * 40, 1)
    assert len(long) <= 36
    assert long == order_id("weak_levels:ETHUSDT:1m:28000000:" + "x" * 40, 1)
    assert order_id("with space", 1) != order_id("with_space", 1)


_truth = st.lists(st.integers(min_value=1, max_value=3), min_size=1, max_size=4).filter(lambda parts: sum(parts) == 3)
_noise = st.sampled_from(["unknown", "throttled", "early", "report", "half"])


@UNHURRIED
@given(parts=_truth, steps=st.lists(st.tuples(_noise, st.integers(0, 4)), max_size=20), ends=st.sampled_from("FCE"))
def test_whatever_comes_in_between_the_log_ends_up_with_every_fill_once(
    parts: list[int], steps: list[tuple[str, int]], ends: str
) -> None:
    fills = [fill(number, qty) for number, qty in enumerate(parts, start=1)]
    order, books, log = Order(INTENT), Books(), list[object]()
    known = 0

    def hear(answer: Answer) -> Learned:
        nonlocal order, books
        learned = learn(order, answer, books, ETH, MARGIN_MS)
        for event in learned.events:
            log.append(event)
            order = order.follow(event)
            if isinstance(event, OrderFilled):
                books, difference = books.fold(event, ETH)
                assert difference is None
        assert order.ended == (learned.verdict == "ended")
        return learned

    for what, count in steps:
        known = max(known, min(count, len(fills) - 1))
        executed = sum((f.qty for f in fills[:known]), Decimal(0))
        if what == "unknown":
            answer: Answer = Unknown("lost")
        elif what == "throttled":
            answer = Throttled(1)
        elif what == "early":
            answer = NotThere(INTENT.timestamp_ms)
        elif what == "half":
            answer = Report(7, "PARTIALLY_FILLED", executed + 1, tuple(fills[:known]), 5)
        else:
            answer = Report(7, "PARTIALLY_FILLED" if known else "NEW", executed, tuple(fills[:known]), 5)
        assert hear(answer).verdict in ("unknown", "throttled", "open")
    last = fills if ends == "F" else fills[:known]
    status = {"F": "FILLED", "C": "CANCELED", "E": "EXPIRED"}[ends]
    executed = sum((f.qty for f in last), Decimal(0))
    assert hear(Report(7, status, executed, tuple(last), 6)).verdict == "ended"  # type: ignore[arg-type]
    assert [e.fill_id for e in log if isinstance(e, OrderFilled)] == [f.fill_id for f in last]
    assert sum(1 for e in log if schema_of(e) == "order_unresolved") <= 1  # type: ignore[arg-type]
    assert sum(1 for e in log if schema_of(e) == "order_accepted") == 1  # type: ignore[arg-type]
