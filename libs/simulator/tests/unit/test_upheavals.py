"""Faults that really happen in the market: everything that tells of it agrees, and all ids after them fit."""

from typing import Any

import pytest
from marketflow_simulator.edited import EditedTape
from marketflow_simulator.faults import Fault, FaultError
from marketflow_simulator.klines import MINUTE_US, Kline, fold
from marketflow_simulator.market import FOREVER_US, Market, SymbolMarket
from marketflow_simulator.symbols import spec_of
from marketflow_simulator.synthetic import SyntheticTape
from marketflow_simulator.trades import Trade
from marketflow_simulator.upheavals import Upheavals

START = 1_704_067_200_000_000
SECOND = 1_000_000


class Heard:
    def __init__(self, market: Market) -> None:
        self.trades: list[Trade] = []
        self.closed: list[Kline] = []
        self._market = market
        market.listeners.append(self)

    def on_trade(self, market: SymbolMarket, trade: Trade) -> None:
        if market.symbol == "ETHUSDT":
            self.trades.append(trade)

    def on_mark(self, time_us: int) -> None:
        if time_us % MINUTE_US == 0:
            kline = self._market.minute(self._market.symbols["ETHUSDT"], time_us - MINUTE_US)
            if kline is not None:
                self.closed.append(kline)


def market() -> Market:
    specs = [spec_of("ETHUSDT"), spec_of("BTCUSDT")]
    return Market([(spec, SyntheticTape(spec, 7, START, 8)) for spec in specs], START, START + 8 * MINUTE_US)


def lived(
    *faults: dict[str, Any], before_us: int = START + 95 * SECOND
) -> tuple[Market, SymbolMarket, Heard, list[int]]:
    """A market that lives through the faults, asked for at `before_us`, to its end."""
    one = market()
    heard = Heard(one)
    one.advance(before_us, FOREVER_US)
    happened = [Upheavals(one, False).happen(Fault(**{"symbol": "ETHUSDT", **fault})) for fault in faults]
    while not one.ended:
        one.advance(FOREVER_US, 1_000)
    return one, one.symbols["ETHUSDT"], heard, happened


def agree(one: Market, symbol: SymbolMarket, heard: Heard) -> None:
    """Stream, tape by id and by time, klines, and what a market tells that looks back, are the same."""
    ids = [trade.id for trade in heard.trades]
    assert ids == sorted(set(ids))
    assert symbol.published == len(ids)
    assert symbol.first == heard.trades[0]
    assert symbol.happened(heard.trades[0].id, 10**6) == heard.trades
    assert symbol.tape.between(START, START + 8 * MINUTE_US) == heard.trades
    assert symbol.tape.latest(ids[-1], 500) == heard.trades[-500:]
    assert symbol.tape.count(START, START + 8 * MINUTE_US) == len(ids)
    assert [t.at_us for t in heard.trades] == sorted(t.at_us for t in heard.trades)
    for trade in heard.trades[:: len(heard.trades) // 50]:
        assert symbol.tape.by_id(trade.id, 1) == [trade]
        assert symbol.tape.agg_start(trade.agg_id) == next(t.id for t in heard.trades if t.agg_id == trade.agg_id)
        before = [t for t in heard.trades if t.at_us < trade.at_us]
        if before:
            assert symbol.tape.before(trade.at_us) == before[-1]
    aggs = [trade.agg_id for trade in heard.trades]
    assert aggs == sorted(aggs)
    for kline in heard.closed:
        mine = [t for t in heard.trades if kline.open_us <= t.at_us < kline.end_us]
        assert (fold(mine, kline.open_us, kline.end_us) or kline) == kline
        assert kline.count == len(mine)
        symbol.klines.clear()
        assert one.minute(symbol, kline.open_us) == kline


def plain() -> list[Trade]:
    one, _, heard, _ = lived()
    agree(one, one.symbols["ETHUSDT"], heard)
    return heard.trades


def test_a_burst_is_many_trades_in_one_millisecond_between_the_others() -> None:
    at_us = START + 150 * SECOND
    one, symbol, heard, happened = lived({"kind": "burst", "at_us": at_us, "count": 1000})
    agree(one, symbol, heard)
    assert happened == [at_us]
    assert len([t for t in heard.trades if t.at_us == at_us and t.time_us == at_us]) >= 1000
    usual = plain()
    assert len(heard.trades) == len(usual) + 1000
    assert [t.id for t in heard.trades] == list(range(usual[0].id, usual[-1].id + 1001))
    assert [(t.price, t.qty, t.at_us) for t in heard.trades if t.at_us > at_us] == [
        (t.price, t.qty, t.at_us) for t in usual if t.at_us > at_us
    ]


@pytest.mark.parametrize("percent", [-2.5, 4.0])
def test_a_burst_may_be_away_from_the_price_before_and_the_price_comes_back(percent: float) -> None:
    at_us = START + 150 * SECOND
    one, symbol, heard, _ = lived({"kind": "burst", "at_us": at_us, "percent": percent})
    agree(one, symbol, heard)
    usual = plain()
    [spike] = [t for t in heard.trades if t.at_us == at_us and t.time_us == at_us and t not in usual]
    before = next(t for t in reversed(usual) if t.at_us < at_us)
    assert spike.price / before.price == pytest.approx(1 + percent / 100, abs=0.001)
    assert [t.price for t in heard.trades if t.at_us > at_us] == [t.price for t in usual if t.at_us > at_us]


def test_silence_is_a_time_without_trades_and_flat_klines() -> None:
    at_us = START + 130 * SECOND
    one, symbol, heard, _ = lived({"kind": "silence", "at_us": at_us, "seconds": 180})
    agree(one, symbol, heard)
    assert not [t for t in heard.trades if at_us <= t.at_us < at_us + 180 * SECOND]
    assert [k.count == 0 for k in heard.closed] == [False] * 3 + [True] * 2 + [False] * 3
    ids = [t.id for t in heard.trades]
    assert ids == list(range(ids[0], ids[-1] + 1))
    assert one.symbols["BTCUSDT"].published == market_of_btc()


def market_of_btc() -> int:
    one = market()
    while not one.ended:
        one.advance(FOREVER_US, 1_000)
    return one.symbols["BTCUSDT"].published


def test_lost_ids_never_were_and_are_given_to_no_other_trade() -> None:
    usual = plain()
    lost = usual[1200].id
    one, symbol, heard, happened = lived({"kind": "lost", "from_id": lost, "count": 7})
    agree(one, symbol, heard)
    assert happened == [usual[1200].at_us]
    assert {t.id for t in usual} - {t.id for t in heard.trades} == set(range(lost, lost + 7))
    assert [t for t in heard.trades if t.id >= lost + 7] == [t for t in usual if t.id >= lost + 7]
    assert sum(k.count for k in heard.closed) == len(usual) - 7


def test_a_step_back_lies_in_the_minute_before_and_counts_in_that_in_which_it_is_published() -> None:
    one, symbol, heard, happened = lived({"kind": "step_back"})
    agree(one, symbol, heard)
    back = [(a, b) for a, b in zip(heard.trades, heard.trades[1:], strict=False) if b.time_us < a.time_us]
    assert len(back) == 1
    before, trade = back[0]
    assert trade.at_us == happened[0]
    assert trade.time_us == START + 2 * MINUTE_US - 1000 < START + 2 * MINUTE_US <= before.time_us
    assert heard.closed[2].first_id == before.id
    assert heard.closed[1].last_id == before.id - 1
    assert len(heard.trades) == len(plain())


def test_a_step_back_can_be_told_by_id_and_milliseconds() -> None:
    usual = plain()
    one, symbol, heard, _ = lived({"kind": "step_back", "from_id": usual[1500].id, "ms": 250})
    agree(one, symbol, heard)
    at = next(i for i, t in enumerate(heard.trades) if t.id == usual[1500].id)
    assert heard.trades[at].time_us == heard.trades[at - 1].time_us - 250_000


def test_a_delisted_symbol_falls_silent_in_mid_minute_until_it_is_listed_again() -> None:
    off, on = START + 130 * SECOND, START + 320 * SECOND
    one, symbol, heard, happened = lived({"kind": "delist", "at_us": off}, {"kind": "list", "at_us": on})
    agree(one, symbol, heard)
    assert happened == [off, on]
    assert not [t for t in heard.trades if off <= t.at_us < on]
    assert [(k.open_us - START) // MINUTE_US for k in heard.closed] == [0, 1, 2, 5, 6, 7]
    assert [symbol.trades_at(at) for at in (off - 1, off, on - 1, on)] == [True, False, False, True]
    assert one.minute(symbol, START + 3 * MINUTE_US) is None
    ids = [t.id for t in heard.trades]
    assert ids == list(range(ids[0], ids[-1] + 1))


def test_faults_of_the_market_can_follow_one_another() -> None:
    one, symbol, heard, _ = lived(
        {"kind": "burst", "at_us": START + 200 * SECOND, "count": 50},
        {"kind": "silence", "at_us": START + 150 * SECOND, "seconds": 10},
        {"kind": "lost", "at_us": START + 180 * SECOND, "count": 3},
        {"kind": "step_back", "at_us": START + 181 * SECOND},
        {"kind": "burst", "at_us": START + 200 * SECOND, "count": 50},
        {"kind": "silence", "at_us": START + 199 * SECOND, "seconds": 5},
    )
    agree(one, symbol, heard)
    ids = [t.id for t in heard.trades]
    assert set(range(ids[0], ids[-1] + 1)) - set(ids) == set(range(ids[0], ids[-1] + 1)).difference(ids)
    assert ids[-1] - ids[0] + 1 - len(ids) == 3


def test_all_symbols_can_be_meant() -> None:
    one = market()
    Upheavals(one, False).happen(Fault(kind="silence", seconds=300))
    one.advance(START + 299 * SECOND, FOREVER_US)
    assert [symbol.published for symbol in one.symbols.values()] == [0, 0]
    one.advance(START + 400 * SECOND, FOREVER_US)
    assert all(symbol.published > 100 for symbol in one.symbols.values())
    assert all(s.first is not None and s.first.at_us > START + 300 * SECOND for s in one.symbols.values())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"kind": "lost", "symbol": "ETHUSDT", "from_id": 3}, "trade 3 of ETHUSDT has happened"),
        ({"kind": "list", "symbol": "ETHUSDT"}, "is traded already"),
        ({"kind": "burst", "from_id": 10**9}, "ids are each symbol's own"),
        ({"kind": "burst", "symbol": "ETHUSDT", "at_us": START + 900 * SECOND}, "no trade any more"),
    ],
)
def test_what_cannot_happen_is_refused(fault: dict[str, Any], message: str) -> None:
    one = market()
    one.advance(START + 95 * SECOND, FOREVER_US)
    with pytest.raises(FaultError, match=message):
        Upheavals(one, False).happen(Fault(**fault))
    with pytest.raises(FaultError, match="unset STATE"):
        Upheavals(one, True).happen(Fault(**fault))


def test_an_edited_tape_without_edits_is_the_tape() -> None:
    spec = spec_of("ETHUSDT")
    base, edited = SyntheticTape(spec, 7, START, 3), EditedTape(SyntheticTape(spec, 7, START, 3))
    assert (edited.symbol, edited.first_at_us, edited.last_at_us) == (base.symbol, base.first_at_us, base.last_at_us)
    assert list(edited.live(START)) == list(base.live(START))
    assert edited.between(START, START + MINUTE_US) == base.between(START, START + MINUTE_US)
