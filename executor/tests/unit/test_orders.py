"""One order's life: no answer is ever taken for more than it says."""

from __future__ import annotations

from decimal import Decimal

import executor_builders
import msgspec
from executor_builders import ETH, Life, intended
from hypothesis import given
from hypothesis import strategies as st
from marketflow_common.codec import schema_of
from marketflow_common.events import OrderEvent, OrderFilled, OrderIntended
from marketflow_executor.books import Books, Fill
from marketflow_executor.orders import (
    Answer,
    Evidence,
    Learned,
    NotCancelled,
    NotThere,
    NotTried,
    Order,
    Refused,
    Report,
    Status,
    Throttled,
    TooLate,
    Unknown,
    Update,
    learn,
    order_id,
)

MARGIN_MS = 1_000
INTENT = intended(qty=Decimal(3), timestamp_ms=10_000)


def fill(number: int, qty: int = 1) -> Fill:
    return executor_builders.fill(number, "100", str(qty), "0.001", "ETH")


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
    assert told(NotThere(INTENT.timestamp_ms), order).verdict == "unknown"
    assert told(NotThere(10**9), order) == Learned(
        (), "open", "the exchange had accepted it, and does not know it any more"
    )


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


@given(parts=_truth, steps=st.lists(st.tuples(_noise, st.integers(0, 4)), max_size=20), ends=st.sampled_from("FCE"))
def test_whatever_comes_in_between_the_log_ends_up_with_every_fill_once(
    parts: list[int], steps: list[tuple[str, int]], ends: str
) -> None:
    fills = [fill(number, qty) for number, qty in enumerate(parts, start=1)]
    life, known = Life(INTENT, MARGIN_MS), 0
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
        assert life.hear(answer).verdict in ("unknown", "throttled", "open")
    last = fills if ends == "F" else fills[:known]
    status = {"F": "FILLED", "C": "CANCELED", "E": "EXPIRED"}[ends]
    executed = sum((f.qty for f in last), Decimal(0))
    assert life.hear(Report(7, status, executed, tuple(last), 6)).verdict == "ended"  # type: ignore[arg-type]
    assert [e.fill_id for e in life.log if isinstance(e, OrderFilled)] == [f.fill_id for f in last]
    assert sum(1 for e in life.log if schema_of(e) == "order_unresolved") <= 1
    assert sum(1 for e in life.log if schema_of(e) == "order_accepted") == 1


def test_a_fill_waits_for_the_one_before_it_and_is_booked_once() -> None:
    second = Update(7, "FILLED", Decimal(3), 5, fill(2, 2))
    learned = told(second)
    assert (kinds(learned), learned.verdict) == (["order_accepted"], "open")
    assert learned.reason == "3 is executed, 0.00000000 is booked"
    order = Order(INTENT).follow(learned.events[0])
    first = Update(7, "PARTIALLY_FILLED", Decimal(1), 5, fill(1))
    learned = learn(order, first, Books(), ETH, MARGIN_MS, learned.evidence)
    assert (kinds(learned), learned.verdict) == (["order_filled", "order_filled"], "ended")
    for event in learned.events:
        order = order.follow(event)
    assert (order.ended, order.filled, order.remaining) == (True, 3, 0)
    assert learn(order, second, Books(), ETH, MARGIN_MS) == Learned((), "ended")


def test_an_end_waits_for_the_fills_before_it() -> None:
    learned = told(Update(7, "CANCELED", Decimal(1), 5, reason="by somebody"))
    assert (kinds(learned), learned.verdict) == (["order_accepted"], "open")
    order = Order(INTENT).follow(learned.events[0])
    learned = learn(order, Report(7, "PARTIALLY_FILLED", Decimal(1), (fill(1),), 5), Books(), ETH, 0, learned.evidence)
    assert kinds(learned) == ["order_filled", "order_canceled"]
    assert learned.events[-1].reason == "cancelled at the exchange: by somebody"  # type: ignore[union-attr]


def test_another_order_under_the_same_client_id_is_not_taken_for_this_one() -> None:
    order = Order(INTENT).follow(told(Update(7, "NEW", Decimal(0), 5)).events[0])
    learned = told(Report(8, "FILLED", Decimal(3), (fill(9, 3),), 6), order)
    assert (learned.events, learned.verdict) == ((), "open")
    assert "another" in learned.reason


def test_what_refuses_a_second_request_does_not_end_an_order_that_the_exchange_has() -> None:
    order = Order(INTENT).follow(told(Update(7, "NEW", Decimal(0), 5)).events[0])
    for answer in (
        Refused(-2010, "Duplicate order sent."),
        NotCancelled(-2011, "Unknown order sent."),
        NotTried("was not free"),
        TooLate("late"),
    ):
        assert told(answer, order)[:2] == ((), "open")
    assert told(NotTried("was not free")).verdict == "never_arrived"
    assert told(NotCancelled(-2011, "Unknown order sent.")).verdict == "unknown"


def test_the_legs_of_an_attempt_have_ids_of_their_own() -> None:
    assert [order_id("abc", 1, leg) for leg in ("", "s", "t")] == ["mf-abc-1", "mf-abc-1s", "mf-abc-1t"]
    assert len(order_id("x" * 60, 9, "s")) <= 36


_parts = st.lists(st.integers(min_value=1, max_value=4), max_size=5)


def story(parts: list[int], rest: int, end: Status | None) -> tuple[OrderIntended, list[Answer], Report]:
    """An order's life at the exchange: every message there can be about it, and the answer to a question at its end."""
    intent = msgspec.structs.replace(
        INTENT, order_type="LIMIT", price=Decimal(100), time_in_force="GTC", qty=Decimal(sum(parts) + rest)
    )
    fills = [fill(number, qty) for number, qty in enumerate(parts, start=1)]
    why = "OCO_TRIGGER" if end == "EXPIRED" else ""

    def status(count: int) -> Status:
        if rest == 0 and count == len(fills):
            return "FILLED"
        return "PARTIALLY_FILLED" if count else "NEW"

    messages: list[Answer] = [Update(7, "NEW", Decimal(0), 5)]
    executed = Decimal(0)
    for count in range(len(fills) + 1):
        if count:
            executed += fills[count - 1].qty
            messages.append(Update(7, status(count), executed, 5, fills[count - 1]))
        messages.append(Update(7, status(count), executed, 5))
        messages.append(Report(7, status(count), executed, tuple(fills[:count]), 5))
        messages.append(Report(7, status(count), executed, tuple(fills[: max(count - 1, 0)]), 5))
    last = Report(7, status(len(fills)), executed, tuple(fills), 5)
    if end is not None and status(len(fills)) != "FILLED":
        last = Report(7, end, executed, tuple(fills), 5, why)
        messages += [last, Update(7, end, executed, 5, None, why), Update(7, end, executed, None, None, why)]
    return intent, messages, last


@given(
    parts=_parts,
    rest=st.integers(0, 3),
    end=st.sampled_from([None, "CANCELED", "EXPIRED"]),
    data=st.data(),
)
def test_in_whatever_order_and_however_often_messages_come_the_events_are_the_same(
    parts: list[int], rest: int, end: Status | None, data: st.DataObject
) -> None:
    if not parts and not rest:
        rest = 1
    intent, messages, last = story(parts, rest, end)
    noise: list[Answer] = [Unknown("lost"), Throttled(1), NotThere(INTENT.timestamp_ms)]

    def lived(answers: list[Answer], crashes: bool) -> tuple[list[OrderEvent], Order, Books]:
        life, evidence = Life(intent, MARGIN_MS), Evidence()
        for answer in answers:
            evidence = life.hear(answer, evidence).evidence
            if crashes and data.draw(st.integers(0, 4)) == 0:
                # Only the log is left: the order is folded from it, and what waited is forgotten.
                evidence, life.order = Evidence(), Order(intent)
                for event in life.log:
                    life.order = life.order.follow(event)
        return [e for e in life.log if schema_of(e) != "order_unresolved"], life.order, life.books

    expected, ended, books = lived([last], False)
    heard = data.draw(st.lists(st.sampled_from(messages + noise), max_size=25))
    log, order, found = lived([*heard, last], True)
    assert log == expected
    assert found == books
    assert (order.ended, order.filled, order.fills) == (ended.ended, ended.filled, ended.fills)
    assert [e.fill_id for e in log if isinstance(e, OrderFilled)] == list(range(1, len(parts) + 1))
    assert sum(e.complete for e in log if isinstance(e, OrderFilled)) == (rest == 0)


@given(parts=_parts, rest=st.integers(1, 3), end=st.sampled_from(["CANCELED", "EXPIRED"]), data=st.data())
def test_the_stream_alone_tells_all_in_any_order(parts: list[int], rest: int, end: Status, data: st.DataObject) -> None:
    intent, messages, last = story(parts, rest, end)
    reports = [
        m for m in messages if isinstance(m, Update) and m.at is not None and (m.fill or m.status in (end, "NEW"))
    ]
    life, evidence = Life(intent, MARGIN_MS), Evidence()
    for answer in data.draw(st.permutations(reports)):
        evidence = life.hear(answer, evidence).evidence
    assert life.order.ended
    assert life.log == list(learn(Order(intent), last, Books(), ETH, MARGIN_MS).events)
