"""What one symbol's sequence does in each situation, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from marketflow_common.events import Event, Gap, Trade, Watermark
from marketflow_common.intervals import MINUTE
from marketflow_ingestor.sequence import Before, Hole, Minutes, SymbolSequence
from marketflow_ingestor.tail import Pins, Tail, unpublished
from msgspec.structs import replace

T0 = 1_700_000_040 * 1_000_000 // MINUTE * MINUTE
SECOND = 1_000_000


@pytest.fixture
def exchange(world: Callable[..., Any]) -> Any:
    """Ids 100 to 129: ten trades in each of the minutes T0, T0 + 1 min and T0 + 3 min; minute 2 is empty."""
    return world([T0 + minute * MINUTE + i * SECOND for minute in (0, 1, 3) for i in range(10)])


@pytest.fixture
def out() -> list[Event]:
    return []


@pytest.fixture
def sequence(exchange: Any, out: list[Event]) -> SymbolSequence:
    """One that has published trades 100 to 104."""
    made = SymbolSequence("binance", "ETHUSDT", out)
    made.trade(exchange.trades[0])
    made.start([])
    for trade in exchange.trades[1:5]:
        made.trade(trade)
    return made


def ids(out: list[Event]) -> list[int]:
    return [event.trade_id for event in out if isinstance(event, Trade)]


def marks(out: list[Event]) -> list[tuple[int, int]]:
    """Watermarks as (minutes since T0, last trade id)."""
    return [((e.through - T0) // MINUTE, e.last_trade_id) for e in out if isinstance(e, Watermark)]


def test_trades_in_order_go_straight_out(sequence: SymbolSequence, out: list[Event]) -> None:
    assert ids(out) == [100, 101, 102, 103, 104]
    assert sequence.need() is None
    assert not sequence.unsettled


def test_ids_that_start_anew_are_neither_taken_for_repeats_nor_proven(
    sequence: SymbolSequence, world: Callable[..., Any], out: list[Event]
) -> None:
    before = list(out)
    reset = world([T0 + MINUTE + i * SECOND for i in range(30)], first_id=1)
    sequence.connected()
    sequence.filled([], at_end=True)  # REST has nothing beyond the last one
    for trade in reset.trades:
        sequence.trade(trade)
    sequence.minute(reset.kline(T0 + MINUTE))
    assert sequence.anew >= 0
    assert out == before
    assert sequence.need() is None
    assert sequence.duplicates == 0


def test_one_old_id_with_a_new_time_stops_nobody_but_proves_nothing_either(
    sequence: SymbolSequence, exchange: Any, out: list[Event]
) -> None:
    odd = replace(exchange.trades[0], traded_at=T0 + MINUTE + SECOND)
    sequence.trade(odd)
    sequence.trade(odd)
    sequence.trade(exchange.trades[5])
    sequence.trade(odd)
    assert sequence.anew == -1
    assert ids(out) == [100, 101, 102, 103, 104, 105]
    sequence.trade(replace(exchange.trades[0], traded_at=T0 + 5 * MINUTE))
    assert sequence.anew == 100


def test_an_id_that_was_published_is_dropped_and_counted(
    sequence: SymbolSequence, exchange: Any, out: list[Event]
) -> None:
    sequence.trade(exchange.trades[2])
    sequence.trade(exchange.trades[4])
    assert ids(out) == [100, 101, 102, 103, 104]
    assert sequence.duplicates == 2


def test_nothing_later_goes_out_until_a_jump_is_filled(
    sequence: SymbolSequence, exchange: Any, out: list[Event]
) -> None:
    sequence.trade(exchange.trades[8])
    assert ids(out)[-1] == 104
    assert sequence.unsettled
    assert sequence.need() == Hole(105, 107, urgent=True)
    assert sequence.filled(exchange.page(105, 4), at_end=False)
    assert ids(out) == list(range(100, 109))
    assert sequence.need() is None
    assert sequence.filled_count == 3


def test_a_hole_may_be_closed_by_the_stream_itself(sequence: SymbolSequence, exchange: Any, out: list[Event]) -> None:
    for i in (7, 6, 5):
        sequence.trade(exchange.trades[i])
    assert ids(out) == list(range(100, 108))
    assert sequence.need() is None


def test_what_the_exchange_skips_in_its_answer_becomes_a_final_gap(
    world: Callable[..., Any], sequence: SymbolSequence, exchange: Any, out: list[Event]
) -> None:
    holey = world([t.traded_at for t in exchange.trades], lost=frozenset({105, 106}))
    sequence.trade(exchange.trades[8])
    sequence.filled(holey.page(105, 4), at_end=False)
    assert [e for e in out if isinstance(e, Gap)] == [
        Gap("binance", "ETHUSDT", 105, 106, "the exchange does not have these trades", True)
    ]
    assert ids(out) == [*range(100, 105), *range(107, 111)]


def test_an_empty_answer_is_no_evidence_that_trades_are_lost(
    sequence: SymbolSequence, exchange: Any, out: list[Event]
) -> None:
    sequence.trade(exchange.trades[8])
    assert not sequence.filled([], at_end=False)
    assert not [e for e in out if isinstance(e, Gap)]
    assert sequence.need() == Hole(105, 107, urgent=True)


def test_giving_up_declares_a_gap_that_is_not_final_and_goes_on(
    sequence: SymbolSequence, exchange: Any, out: list[Event]
) -> None:
    sequence.trade(exchange.trades[8])
    gap = sequence.give_up("HTTP 503")
    assert gap == Gap("binance", "ETHUSDT", 105, 107, "HTTP 503", False)
    assert out[-2:] == [gap, exchange.trades[8]]


def test_a_closed_minute_waits_for_its_last_trade(sequence: SymbolSequence, exchange: Any, out: list[Event]) -> None:
    sequence.minute(exchange.kline(T0))
    assert sequence.need() == Hole(105, 109, urgent=False)
    for trade in exchange.trades[5:10]:
        assert marks(out) == []
        sequence.trade(trade)
    assert marks(out) == [(1, 109)]
    assert out[-1].kline == exchange.kline(T0)  # type: ignore[attr-defined]


def test_a_closed_minute_behind_trades_of_the_next_names_its_own_last_trade(
    sequence: SymbolSequence, exchange: Any, out: list[Event]
) -> None:
    for trade in exchange.trades[5:13]:
        sequence.trade(trade)
    sequence.minute(exchange.kline(T0))
    assert marks(out) == [(1, 109)]


def test_an_empty_minute_names_the_last_trade_before_it(
    sequence: SymbolSequence, exchange: Any, out: list[Event]
) -> None:
    for trade in exchange.trades[5:20]:
        sequence.trade(trade)
    sequence.minute(exchange.kline(T0))
    sequence.minute(exchange.kline(T0 + MINUTE))
    sequence.trade(exchange.trades[20])
    sequence.minute(exchange.kline(T0 + 2 * MINUTE))
    assert marks(out) == [(1, 109), (2, 119), (3, 119)]


def test_a_minute_that_comes_again_is_not_published_again(
    sequence: SymbolSequence, exchange: Any, out: list[Event]
) -> None:
    for trade in exchange.trades[5:20]:
        sequence.trade(trade)
    for minute in (0, 0, 1, 1, 0):
        sequence.minute(exchange.kline(T0 + minute * MINUTE))
    assert marks(out) == [(1, 109), (2, 119)]


def test_an_empty_minute_after_a_reconnect_proves_nothing_until_rest_says_that_nothing_is_missing(
    sequence: SymbolSequence, exchange: Any, out: list[Event]
) -> None:
    for trade in exchange.trades[5:15]:
        sequence.trade(trade)
    sequence.minute(exchange.kline(T0))
    sequence.connected()  # and 115 to 119, and the minute they are in, were missed
    sequence.minute(exchange.kline(T0 + 2 * MINUTE))
    assert marks(out) == [(1, 109)]
    assert sequence.need() == Hole(115, None, urgent=False)
    sequence.filled(exchange.page(115, 1000, happened=119), at_end=True)
    assert sequence.need() == Minutes(T0 + MINUTE, T0 + 2 * MINUTE)
    sequence.closed(Minutes(T0 + MINUTE, T0 + 2 * MINUTE), [exchange.kline(T0 + MINUTE, ids=False)])
    assert marks(out) == [(1, 109), (2, 119), (3, 119)]
    assert [e.kline for e in out if isinstance(e, Watermark)][1] == exchange.kline(T0 + MINUTE)


def test_a_minute_closed_within_a_filled_hole_is_proven_before_the_trades_behind_its_edge(
    sequence: SymbolSequence, exchange: Any, out: list[Event]
) -> None:
    back = replace(exchange.trades[10], traded_at=T0 + MINUTE - 1)  # counts in the minute that it was published in
    sequence.trade(exchange.trades[8])  # 105 to 107 are missing
    sequence.trade(exchange.trades[9])
    sequence.minute(exchange.kline(T0))
    sequence.trade(back)
    sequence.trade(exchange.trades[11])
    sequence.filled(exchange.page(105, 3), at_end=False)
    order = [event.trade_id if isinstance(event, Trade) else "mark" for event in out[5:]]
    assert order == [105, 106, 107, 108, 109, "mark", 110, 111]


def test_a_contiguous_trade_after_a_reconnect_makes_the_question_to_rest_needless(
    sequence: SymbolSequence, exchange: Any
) -> None:
    sequence.connected()
    assert sequence.unsettled
    sequence.trade(exchange.trades[5])
    assert not sequence.unsettled


def test_a_missed_minute_whose_count_disagrees_is_left_to_a_later_watermark(
    world: Callable[..., Any], sequence: SymbolSequence, exchange: Any, out: list[Event]
) -> None:
    for trade in exchange.trades[5:20]:
        sequence.trade(trade)
    other = world([t.traded_at for t in exchange.trades[:9]])
    sequence.minute(exchange.kline(T0 + MINUTE))
    need = sequence.need()
    assert need == Minutes(T0, T0 + MINUTE)
    sequence.closed(need, [other.kline(T0, ids=False)])
    assert marks(out) == [(2, 119)]


def test_a_missed_minute_beside_a_gap_is_not_proven_by_its_count(
    world: Callable[..., Any], sequence: SymbolSequence, exchange: Any, out: list[Event]
) -> None:
    for trade in exchange.trades[5:10]:
        sequence.trade(trade)
    sequence.minute(exchange.kline(T0))
    sequence.trade(exchange.trades[11])  # 110, the first of its minute, is never had
    sequence.give_up("not in time")
    for trade in exchange.trades[12:20]:
        sequence.trade(trade)
    sequence.minute(exchange.kline(T0 + 2 * MINUTE))
    need = sequence.need()
    assert isinstance(need, Minutes)
    nine = world([t.traded_at for t in exchange.trades[:19]]).kline(T0 + MINUTE, ids=False)
    assert nine.trade_count == 9  # as many as were published, but not the same ones
    sequence.closed(need, [nine])
    assert marks(out) == [(1, 109)]
    sequence.filled([], at_end=True)
    assert marks(out) == [(1, 109), (3, 119)]


def test_a_minute_without_trades_covers_missed_ones_only_once_rest_has_nothing_more(
    sequence: SymbolSequence, exchange: Any, out: list[Event]
) -> None:
    for trade in exchange.trades[5:18]:
        sequence.trade(trade)
    sequence.minute(exchange.kline(T0))
    sequence.minute(exchange.kline(T0 + 2 * MINUTE))  # lost with the minute before it: its last two trades
    sequence.give_up("not in time")
    assert marks(out) == [(1, 109)]
    assert sequence.need() == Hole(118, None, False)
    sequence.filled(exchange.trades[18:20], at_end=True)
    assert marks(out) == [(1, 109), (3, 119)]


def test_the_first_start_asks_back_to_one_trade_before_the_minute(exchange: Any, out: list[Event]) -> None:
    sequence = SymbolSequence("binance", "ETHUSDT", out)
    sequence.connected()
    assert sequence.need() is None
    sequence.trade(exchange.trades[15])
    sequence.trade(exchange.trades[16])
    assert out == []
    assert sequence.need() == Before(115, T0 + MINUTE)
    assert sequence.start(exchange.page(100, 15))
    assert ids(out) == list(range(109, 117))


@pytest.mark.parametrize("first", [10, 11])
def test_the_open_kline_tells_whether_anything_is_before_the_first_trade(
    exchange: Any, out: list[Event], first: int
) -> None:
    sequence = SymbolSequence("binance", "ETHUSDT", out)
    sequence.opened(T0 + MINUTE, 110)
    sequence.trade(exchange.trades[first])
    assert sequence.start_by_kline() == (first == 10)
    sequence.trade(exchange.trades[first + 1])
    if first == 10:
        begin, *trades = out
        assert isinstance(begin, Gap)
        assert (begin.first_trade_id, begin.last_trade_id, begin.final) == (110, 109, True)
        assert (ids(trades), sequence.need(), sequence.unsettled) == ([110, 111], None, False)
    else:
        assert (out, sequence.need()) == ([], Before(111, T0 + MINUTE))


def test_the_first_minute_is_cut_where_there_is_nothing_before_the_first_trade(exchange: Any, out: list[Event]) -> None:
    sequence = SymbolSequence("binance", "ETHUSDT", out)
    sequence.trade(exchange.trades[3])
    assert not sequence.start([])
    assert ids(out) == [103]
    assert sequence.need() is None


def test_a_restart_goes_on_behind_the_tail(exchange: Any, sequence: SymbolSequence, out: list[Event]) -> None:
    for trade in exchange.trades[5:13]:
        sequence.trade(trade)
    sequence.minute(exchange.kline(T0))
    tail = Tail()
    taken = 0
    for event in reversed(out):
        if not tail.known:
            tail.take(event)
            taken += 1
    assert (tail.last_id, tail.through) == (112, T0 + MINUTE)
    assert taken == 4  # the watermark and the trades after its own last
    again = SymbolSequence("binance", "ETHUSDT", out, tail)
    again.trade(exchange.trades[12])
    again.trade(exchange.trades[13])
    assert again.duplicates == 1
    assert out[-1] == exchange.trades[13]


def test_a_batch_of_unknown_outcome_goes_out_from_where_the_topic_ends(
    exchange: Any, sequence: SymbolSequence, out: list[Event]
) -> None:
    def tail_of(events: list[Event]) -> dict[str, Tail]:
        tail = Tail()
        for event in reversed(events):
            tail.take(event)
        return {"ETHUSDT": tail}

    for trade in exchange.trades[5:12]:
        sequence.trade(trade)
    sequence.minute(exchange.kline(T0))
    confirmed, pending = out[:5], out[5:]
    assert unpublished(pending, {sequence.symbol: sequence.last_id}, tail_of(confirmed)) == pending
    assert unpublished(pending, {sequence.symbol: sequence.last_id}, tail_of(out)) == []
    assert unpublished(pending, {sequence.symbol: sequence.last_id}, tail_of(out[:9])) == out[9:]


def test_a_topic_that_others_wrote_to_or_that_lost_records_is_noticed(
    exchange: Any, sequence: SymbolSequence, out: list[Event]
) -> None:
    ahead, behind = Tail(), Tail()
    ahead.take(exchange.trades[9])
    behind.take(exchange.trades[1])
    assert unpublished(out[3:], {sequence.symbol: sequence.last_id}, {"ETHUSDT": ahead}) is None
    assert unpublished(out[3:], {sequence.symbol: sequence.last_id}, {"ETHUSDT": behind}) is None


def test_a_declared_gap_is_filled_late_in_order_of_id_and_lost_ids_become_final(
    world: Callable[..., Any], sequence: SymbolSequence, exchange: Any, out: list[Event]
) -> None:
    sequence.trade(exchange.trades[12])
    sequence.give_up("HTTP 503")
    assert sequence.open == [(105, 111)]
    assert not sequence.late((105, 111), [])
    begin = len(out)
    assert sequence.late((105, 111), exchange.page(105, 2))
    assert sequence.open == [(107, 111)]
    holey = world([t.traded_at for t in exchange.trades], lost=frozenset({108, 110, 111}))
    assert sequence.late((107, 111), holey.page(107, 6))
    assert ids(out[begin:]) == [105, 106, 107, 109]
    assert [(e.first_trade_id, e.last_trade_id, e.final) for e in out[begin:] if isinstance(e, Gap)] == [
        (108, 108, True),
        (110, 111, True),
    ]
    assert sequence.open == []
    assert sequence.late_count == 4
    sequence.trade(exchange.trades[13])
    assert out[-1] == exchange.trades[13]


def test_a_restart_finds_the_open_gaps_from_the_mark_on(
    sequence: SymbolSequence, exchange: Any, out: list[Event]
) -> None:
    sequence.trade(exchange.trades[8])
    sequence.give_up("HTTP 503")
    sequence.late((105, 107), exchange.page(105, 1))
    for trade in exchange.trades[9:20]:
        sequence.trade(trade)
    sequence.minute(exchange.kline(T0))
    pins = Pins({})
    pins.take(out, 1_000)
    assert pins.mark == 1_000
    tail = Tail()
    for offset in reversed(range(len(out))):
        tail.take(out[offset], 1_000 + offset)
    assert tail.open == [(106, 107)]
    assert tail.pin == 1_005
    pins = Pins({"ETHUSDT": tail})
    late: list[Event] = []
    SymbolSequence("binance", "ETHUSDT", late, tail).late((106, 107), exchange.page(106, 3))
    assert ids(late) == [106, 107]
    pins.take(late, 2_000)
    assert pins.mark == 1_005, "late trades may be the last records of the symbol"
    pins.take([exchange.trades[20]], 2_002)
    assert pins.mark is None


def test_late_trades_of_unknown_outcome_go_out_once(sequence: SymbolSequence, exchange: Any, out: list[Event]) -> None:
    sequence.trade(exchange.trades[8])
    sequence.give_up("HTTP 503")
    confirmed = len(out)
    sequence.late((105, 107), exchange.page(105, 3))
    for held in (confirmed, len(out)):
        tail = Tail()
        for offset in reversed(range(held)):
            tail.take(out[offset], offset)
        assert unpublished(out[confirmed:], {"ETHUSDT": sequence.last_id}, {"ETHUSDT": tail}) == out[held:]


def test_a_trade_that_the_stream_told_wrongly_is_asked_for_at_once(
    sequence: SymbolSequence, exchange: Any, out: list[Event]
) -> None:
    sequence.told(105)
    assert sequence.unsettled
    assert sequence.need() == Hole(105, 105, urgent=True)
    sequence.trade(exchange.trades[6])
    sequence.filled(exchange.page(105, 2), at_end=False)
    assert ids(out) == list(range(100, 107))
    assert sequence.need() is None
    sequence.told(103)
    assert not sequence.unsettled


def test_what_another_connection_has_covered_needs_no_proof(sequence: SymbolSequence, exchange: Any) -> None:
    sequence.connected()
    sequence.covered()
    assert sequence.need() is None
    assert not sequence.unsettled


def test_a_connection_covers_only_what_came_after_its_own_beginning(sequence: SymbolSequence, exchange: Any) -> None:
    sequence.connected()  # after an outage
    sequence.connected()  # the one that takes over
    sequence.covered()
    assert sequence.need() == Hole(exchange.trades[5].trade_id, None, False)
