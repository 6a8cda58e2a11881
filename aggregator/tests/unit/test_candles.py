"""The rules of the candles' core, one small log each."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, Inexact
from typing import Any

import pytest
from marketflow_aggregator import candles as core
from marketflow_aggregator.candles import Candles, Made
from marketflow_common import codec
from marketflow_common.events import Bar, Candle, Event, Gap, Kline, Trade, Watermark
from marketflow_common.intervals import MINUTE
from msgspec import structs

T0 = 1_723_161_240_000_000
BEFORE = 10  # the trade before the first whole minute has this id


def trade(
    trade_id: int, minutes: float, price: str = "10", qty: str = "1", maker: bool = False, symbol: str = "S"
) -> Trade:
    at = T0 + round(minutes * MINUTE)
    return Trade("sim", symbol, trade_id, Decimal(price), Decimal(qty), maker, at, at)


def early(trade_id: int, minutes: float, received: float, price: str = "10") -> Trade:
    """A trade that was received long before the time it names."""
    return structs.replace(trade(trade_id, minutes, price), received_at=T0 + round(received * MINUTE))


def mark(minute: int, last_id: int, kline: Kline | None = None, symbol: str = "S") -> Watermark:
    zero = Decimal(0)
    start = T0 + (minute - 1) * MINUTE
    some = Kline(start, start + MINUTE - 1, zero, zero, zero, zero, zero, zero, 0, zero, zero, -1, -1)
    return Watermark("sim", symbol, start + MINUTE, last_id, kline or some)


def begin() -> Trade:
    """The one trade before minute 1 that proves where it begins."""
    return trade(BEFORE, 0.9)


def feed(book: Candles, *events: Event, offset: int = 0) -> list[Candle]:
    wire = codec.decode_wire([codec.encode(event) for event in events])
    assert wire is not None
    return [made.candle for made in book.process([(offset + i, 0, e) for i, e in enumerate(wire)])]


def brief(candles: Sequence[Candle]) -> list[tuple[Any, ...]]:
    """Minute, own trades, bounds, missing, revision."""
    return [
        ((c.open_time - T0) // MINUTE, c.trade_count, c.first_trade_id, c.last_trade_id, c.missing, c.revision)
        for c in candles
    ]


def test_a_candle_is_the_exchanges_kline_to_the_last_digit() -> None:
    made = feed(
        Candles(),
        begin(),
        trade(11, 1.0, "2683.80000000", "0.00200000", maker=True),
        trade(12, 1.5, "2684.10", "0.0345"),
        trade(13, 1.9, "2683.5", "1"),
        trade(14, 2.0),
    )
    assert [codec.encode(c).decode() for c in made] == [
        '{"type":"candle","symbol":"S","interval":"1m","open_time":1723161300000000,"close_time":1723161359999999,'
        '"open":"2683.80000000","high":"2684.10000000","low":"2683.50000000","close":"2683.50000000",'
        '"volume":"1.03650000","quote_volume":"2781.46905000","trade_count":3,"taker_buy_volume":"1.03450000",'
        '"taker_buy_quote_volume":"2776.10145000","first_trade_id":11,"last_trade_id":13,"missing":[],"revision":0}'
    ]


def test_a_first_window_without_proof_of_its_start_gives_no_candle() -> None:
    book = Candles()
    assert brief(feed(book, trade(5, 0.5), trade(6, 1.5), trade(7, 2.0))) == [(1, 1, 6, 6, (), 0)]
    assert book.counts["cut"] == 1


def test_a_hole_next_to_the_first_window_starts_the_symbol_anew() -> None:
    made = feed(Candles(), trade(5, 0.5), trade(8, 1.5), trade(9, 2.5), trade(10, 3.0))
    assert brief(made) == [(2, 1, 9, 9, (), 0)]


def test_windows_without_trades_are_flat_when_the_ids_are_contiguous() -> None:
    made = feed(Candles(), begin(), trade(11, 1.2, "7"), trade(12, 4.0))
    assert brief(made) == [(1, 1, 11, 11, (), 0), (2, 0, 12, 11, (), 0), (3, 0, 12, 11, (), 0)]
    assert [str(made[1].open), str(made[1].close), format(made[1].volume, "f")] == [
        "7.00000000",
        "7.00000000",
        "0.00000000",
    ]


def test_a_watermark_closes_what_no_trade_has_closed() -> None:
    made = feed(Candles(), begin(), trade(11, 1.2), mark(2, 11), mark(3, 11))
    assert brief(made) == [(1, 1, 11, 11, (), 0), (2, 0, 12, 11, (), 0)]


def test_skipped_ids_are_missing_in_the_windows_of_both_neighbours_and_in_none_between() -> None:
    made = feed(Candles(), begin(), trade(11, 1.2), trade(14, 3.5), trade(15, 4.0))
    assert brief(made) == [(1, 1, 11, 13, ((12, 13),), 0), (3, 1, 12, 14, ((12, 13),), 0)]


def test_a_late_trade_leaves_the_range_and_narrows_that_of_the_other_window() -> None:
    book = Candles()
    feed(book, begin(), trade(11, 1.2), trade(15, 2.5), trade(16, 3.0))
    made = feed(book, trade(13, 1.8, "99"), trade(17, 3.1), offset=10)
    assert brief(made) == [(1, 2, 11, 14, ((12, 12), (14, 14)), 1), (2, 1, 14, 15, ((14, 14),), 1)]
    assert str(made[0].close) == "99.00000000"
    assert brief(feed(book, trade(12, 1.3), trade(14, 2.1, "5"), offset=20)) == [
        (1, 3, 11, 13, (), 2),
        (2, 2, 14, 15, (), 2),
    ]
    assert feed(book, trade(12, 1.3), trade(13, 1.8), trade(14, 2.1), trade(18, 3.2), offset=30) == []
    assert book.counts["duplicates"] == 3


def test_a_filled_range_gives_the_candles_of_the_windows_inside_it() -> None:
    book = Candles()
    feed(book, begin(), trade(11, 1.2, "8"), trade(14, 5.5), trade(15, 6.0))
    assert brief(feed(book, trade(12, 1.5, "8"), trade(13, 3.5), offset=10)) == [
        (1, 2, 11, 12, (), 1),
        (2, 0, 13, 12, (), 1),
        (3, 1, 13, 13, (), 1),
        (4, 0, 14, 13, (), 1),
        (5, 1, 14, 14, (), 1),
    ]


def test_a_watermark_keeps_missing_ids_out_of_the_next_window() -> None:
    made = feed(
        Candles(),
        begin(),
        trade(11, 1.2),
        Gap("sim", "S", 12, 13, "lost", False),
        mark(2, 13),
        trade(14, 2.5),
        mark(3, 14),
    )
    assert brief(made) == [(1, 1, 11, 13, ((12, 13),), 0), (2, 1, 14, 14, (), 0)]


def test_while_the_last_price_is_not_known_there_is_no_flat_candle() -> None:
    book = Candles()
    assert brief(feed(book, begin(), trade(11, 1.2), mark(2, 12), mark(3, 12))) == [(1, 1, 11, 12, ((12, 12),), 0)]
    assert brief(feed(book, trade(12, 1.9, "77"), offset=10)) == [(1, 2, 11, 12, (), 1), (2, 0, 13, 12, (), 0)]


@pytest.mark.parametrize("back", [1.99, 1.0, -5.0, -3000.0])
def test_a_trade_whose_time_steps_back_over_a_closed_minute_counts_in_the_one_that_is_open(back: float) -> None:
    book = Candles()
    made = feed(
        book, begin(), trade(11, 1.2, "3"), trade(12, 2.0), trade(13, back, "4"), trade(14, 2.5), trade(15, 3.0)
    )
    assert brief(made) == [(1, 1, 11, 11, (), 0), (2, 3, 12, 14, (), 0)]
    assert (str(made[1].high), str(made[1].low)) == ("10.00000000", "4.00000000")
    assert (book.counts["late"], book.counts["revised"], book.counts["stranded"]) == (0, 0, 0)


def test_a_trade_whose_time_steps_back_behind_a_watermark_counts_in_the_minute_that_begins_there() -> None:
    book = Candles()
    made = feed(book, begin(), trade(11, 1.2), mark(3, 11), trade(12, 1.9, "4"), trade(13, 3.5), trade(14, 4.0))
    assert brief(made) == [(1, 1, 11, 11, (), 0), (2, 0, 12, 11, (), 0), (3, 2, 12, 13, (), 0)]
    assert str(made[2].open) == "4.00000000"


def test_times_that_step_back_in_the_first_window_stay_in_it() -> None:
    made = feed(Candles(), trade(9, 1.2), trade(10, 0.5), trade(11, 2.1), trade(12, 3.0))
    assert brief(made) == [(2, 1, 11, 11, (), 0)]


def test_ids_missing_before_a_trade_whose_time_steps_back_are_missing_where_it_counts() -> None:
    book = Candles()
    made = feed(book, begin(), trade(11, 1.2), mark(2, 11), trade(14, 1.9), trade(15, 3.0))
    assert brief(made) == [(1, 1, 11, 11, (), 0), (2, 1, 12, 14, ((12, 13),), 0)]
    assert brief(feed(book, trade(12, 1.8), trade(13, 1.7), offset=10)) == [(2, 3, 12, 14, (), 1)]


def test_a_restart_puts_a_trade_whose_time_stepped_back_into_the_same_window() -> None:
    log = [begin(), trade(11, 1.2), mark(2, 11), trade(12, 1.9), trade(13, 2.5), trade(14, 3.0)]
    whole, book = Candles(), Candles()
    (first, second) = feed(whole, *log)
    assert brief([second]) == [(2, 2, 12, 13, (), 0)]
    feed(book, *log[:4])
    assert book.pins(4) == (3, 0)
    again = Candles(floor=1)
    again.restore(0, first)
    again.replay([(3, 0, log[3])])
    assert feed(again, *log[4:], offset=4) == [second]


def test_reading_more_of_the_log_again_counts_no_trade_twice_that_went_where_its_neighbours_are() -> None:
    # 12 comes late, and its time lies in the next minute; but 13 is in this one, and times follow ids.
    log = [begin(), trade(11, 1.2), trade(13, 1.9), trade(12, 2.1), trade(14, 2.5), trade(15, 3.0)]
    (first, second) = feed(Candles(), *log)
    assert brief([first, second]) == [(1, 3, 11, 13, (), 0), (2, 1, 14, 14, (), 0)]
    again = Candles(floor=1)
    again.restore(0, first)
    again.replay([(i, 0, event) for i, event in enumerate(log[:5])])
    assert feed(again, *log[5:], offset=5) == [second]


def test_a_trade_far_ahead_of_its_receipt_closes_nothing_and_waits_for_its_window() -> None:
    book = Candles()
    made = feed(book, begin(), trade(11, 1.2), early(12, 61.5, 1.3, "99"), trade(13, 1.5), trade(14, 2.0))
    assert brief(made) == [(1, 2, 11, 13, (), 0)], "no hour of flat candles, and the symbol goes on"
    assert [n.facts["trade_id"] for n in book.notes if n.what == "ahead"] == [12]
    made = feed(book, mark(3, 14), mark(61, 14), trade(15, 61.9), trade(16, 62.0), offset=10)
    assert brief(made[-1:]) == [(61, 2, 12, 15, (), 0)]
    assert (str(made[-1].open), made[-1].close) == ("99.00000000", Decimal(10))
    assert (book.counts["ahead"], book.counts["duplicates"], book.counts["stranded"]) == (1, 0, 0)


def test_a_minute_that_holds_nothing_but_a_trade_that_waited_for_it_gets_its_candle_when_time_comes() -> None:
    made = feed(Candles(), begin(), trade(11, 1.2), early(12, 3.5, 1.3, "99"), trade(13, 1.5), mark(5, 13))
    assert brief(made) == [(1, 2, 11, 13, (), 0), (2, 0, 14, 13, (), 0), (3, 1, 12, 12, (), 0), (4, 0, 14, 13, (), 0)]
    assert [format(c.close, "f") for c in made[1:]] == ["10.00000000", "99.00000000", "99.00000000"]


def test_a_repeated_trade_that_is_ahead_of_its_time_counts_once() -> None:
    book, one = Candles(), early(12, 3.5, 1.3)
    made = feed(book, begin(), trade(11, 1.2), one, one, trade(13, 3.2), one, trade(14, 4.0))
    assert brief(made)[-1] == (3, 2, 12, 13, (), 0)
    assert book.counts["duplicates"] == 2


def test_a_hole_before_a_trade_that_is_ahead_of_its_time_is_named_without_it() -> None:
    made = feed(Candles(), begin(), trade(11, 1.2), early(14, 9.5, 1.3), trade(15, 1.5), trade(16, 2.0))
    assert brief(made) == [(1, 2, 11, 15, ((12, 13),), 0)]


def test_a_first_trade_that_is_ahead_of_its_time_does_not_begin_a_symbol() -> None:
    book = Candles()
    assert feed(book, early(9, 60.5, 0.9)) == []
    assert book.pins(1) == (0, None)
    assert brief(feed(book, begin(), trade(11, 1.2), trade(12, 2.0), offset=1)) == [(1, 1, 11, 11, (), 0)]


def test_a_trade_more_than_a_day_ahead_is_left_out_and_told() -> None:
    book = Candles()
    made = feed(book, begin(), trade(11, 1.2), early(12, 1500, 1.3), trade(13, 2.0))
    assert brief(made) == [(1, 1, 11, 11, (), 0)]
    assert book.counts["stranded"] == 1
    feed(book, trade(14, 3.0), trade(15, 4.0), offset=4)
    assert book.pins(6)[0] == 5, "nothing waits for it"


def test_a_clock_that_is_behind_delays_candles_to_the_watermark_and_loses_none() -> None:
    book = Candles()
    assert feed(book, early(10, 0.9, 0.1), early(11, 1.2, 0.4), early(12, 1.9, 1.1)) == []
    made = feed(book, mark(2, 12), early(13, 2.5, 1.7), early(14, 3.1, 2.3), mark(3, 13), mark(4, 14), offset=5)
    assert brief(made) == [(1, 2, 11, 12, (), 0), (2, 1, 13, 13, (), 0), (3, 1, 14, 14, (), 0)]
    assert book.counts["ahead"] == 4, "13 opens a window that its watermark has proven already"


def test_a_symbol_that_was_silent_for_more_than_a_day_starts_anew() -> None:
    book = Candles()
    feed(book, begin(), trade(11, 1.2), trade(12, 2.0))
    made = feed(book, trade(13, 1443.5), trade(14, 1444.5), trade(15, 1445.0), offset=10)
    assert brief(made) == [(1444, 1, 14, 14, (), 0)]
    assert book.counts["flat"] == 0


def test_each_candle_is_compared_with_the_exchanges_kline_in_all_fields() -> None:
    book, start = Candles(), T0 + MINUTE
    ten, one, zero = Decimal(10), Decimal(1), Decimal(0)
    right = Kline(start, start + MINUTE - 1000, ten, ten, ten, ten, one, ten, 1, one, ten, 11, 11)
    wrong = Kline(
        start + MINUTE, start + 2 * MINUTE - 1, ten, ten, ten, Decimal("10.5"), zero, zero, 0, zero, zero, -1, -1
    )
    feed(book, begin(), trade(11, 1.2), mark(2, 11, right), mark(3, 11, wrong))
    assert (book.counts["equal"], book.counts["different"]) == (1, 1)
    (note,) = [n for n in book.notes if n.what == "different"]
    assert note.facts["fields"] == {"close": {"exchange": "10.5", "candle": "10.00000000"}}


def test_bars_and_final_gaps_change_nothing() -> None:
    book, ten = Candles(), Decimal(10)
    bar = Bar("csv", "S", "1m", T0, T0 + MINUTE - 1, ten, ten, ten, ten, ten)
    assert brief(feed(book, begin(), bar, trade(11, 1.2), Gap("sim", "S", 1, 2, "old", True), trade(12, 2.0))) == [
        (1, 1, 11, 11, (), 0)
    ]
    assert (book.counts["bars"], book.counts["gaps"]) == (1, 1)


def test_sums_that_do_not_fit_raise_and_do_not_round() -> None:
    book = Candles()
    huge = trade(11, 1.1, "9" * 20 + "." + "9" * 18, "9" * 20 + "." + "9" * 18)
    with pytest.raises((Inexact, ValueError)):
        feed(book, begin(), huge, *[trade(12 + i, 1.2, "1", "1") for i in range(3)], trade(15, 2.0))


def test_a_restart_needs_the_open_window_and_the_last_candles_only() -> None:
    book = Candles(floor=100)
    book.process([(0, 0, begin())])
    assert book.pins(1) == (0, None), "until there is a candle, the very first trade"
    (one,) = book.process([(i, 0, trade(10 + i, 0.8 + i * 0.3)) for i in range(1, 5)])
    assert book.pins(5) == (4, 100), "the first trade of the open window; the candle's own offset is not known yet"
    book.located(one.candle, 103)
    assert book.pins(5) == (4, 103)
    book.process([(5, 0, mark(3, 14))])
    assert book.pins(6) == (6, 100)


def test_a_symbol_that_stays_silent_holds_nothing_back_for_ever() -> None:
    book = Candles()
    quiet = [trade(10, 0.9, symbol="Q"), trade(11, 1.1, symbol="Q")]
    book.process([(i, 0, e) for i, e in enumerate(quiet)])
    book.process([(10 + i, 0, trade(i, i, symbol="S")) for i in range(3)])
    assert book.pins(13)[0] == 0
    assert book.pins(13 + core.PIN_RECORDS)[0] == 13, "no more than so many records"
    book.process([(19, 0, mark(1000, 2)), (20, 0, mark(1500, 2))])
    assert book.pins(21)[0] == 21, "no longer than a day"


def test_many_minutes_keep_the_state_small() -> None:
    book = Candles()
    made: list[Made] = []
    for i in range(5000):
        made += book.process([(i, 0, trade(10 + i, 0.9 + i * 0.5))])
    assert len(made) == 2499
    series = book._series["S"]
    assert len(series.kept) <= 4
