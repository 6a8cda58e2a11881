"""The market releases trades in order and closes each minute after its last trade."""

from pathlib import Path

from marketflow_simulator.capture import load
from marketflow_simulator.klines import INTERVALS, MINUTE_US, Kline, flat, fold
from marketflow_simulator.market import FOREVER_US, Market, SymbolMarket
from marketflow_simulator.symbols import spec_of
from marketflow_simulator.synthetic import SyntheticTape
from marketflow_simulator.trades import Trade

START = 1_704_067_200_000_000
SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")


class Heard:
    """Writes down what the market tells."""

    def __init__(self, market: Market) -> None:
        self.trades: list[tuple[str, Trade]] = []
        self.events: list[tuple[str, int]] = []
        self.closed: dict[tuple[str, int], Kline | None] = {}
        self._market = market
        market.listeners.append(self)

    def on_trade(self, market: SymbolMarket, trade: Trade) -> None:
        self.trades.append((market.symbol, trade))
        self.events.append(("trade", trade.at_us))

    def on_mark(self, time_us: int) -> None:
        self.events.append(("mark", time_us))
        if time_us % MINUTE_US == 0:
            for symbol in self._market.symbols.values():
                open_us = time_us - MINUTE_US
                self.closed[symbol.symbol, open_us] = self._market.minute(symbol, open_us)


def synthetic(minutes: int = 0, symbols: tuple[str, ...] = SYMBOLS) -> Market:
    tapes = [(spec_of(s), SyntheticTape(spec_of(s), 7, START, minutes)) for s in symbols]
    return Market(tapes, START, START + minutes * MINUTE_US if minutes else None)


def recorded(path: Path) -> Market:
    recording = load(path)
    start_us = min(tape.first_at_us for tape in recording.tapes)
    return Market(list(zip(recording.specs, recording.tapes, strict=True)), start_us)


def test_trades_come_once_each_in_order_and_each_minute_closes_between_them() -> None:
    market = synthetic(minutes=3)
    heard = Heard(market)
    while not market.ended:
        market.advance(FOREVER_US, 100)
    for name in SYMBOLS:
        expected = SyntheticTape(spec_of(name), 7, START).between(START, START + 3 * MINUTE_US)
        assert [t for s, t in heard.trades if s == name] == expected
    times = [at for _, at in heard.events]
    assert times == sorted(times)
    assert heard.events[-1] == ("mark", START + 3 * MINUTE_US)
    assert [at for what, at in heard.events if what == "mark"] == list(
        range(START + 2_000_000, START + 3 * MINUTE_US + 1, 2_000_000)
    )


def test_it_does_not_matter_in_which_steps_the_market_goes_on() -> None:
    whole, stepwise = synthetic(), synthetic()
    one, other = Heard(whole), Heard(stepwise)
    whole.advance(START + 130_000_000, FOREVER_US)
    for ms in range(0, 130_001, 37):
        stepwise.advance(START + ms * 1000, 5)
    while stepwise.time_us < START + 130_000_000:
        stepwise.advance(START + 130_000_000, 3)
    assert one.events == other.events
    assert one.closed == other.closed
    assert whole.time_us == stepwise.time_us == START + 130_000_000


def test_closed_minutes_are_the_fold_of_their_trades_or_repeat_the_close() -> None:
    market = synthetic(minutes=12)
    heard = Heard(market)
    market.advance(FOREVER_US, FOREVER_US)
    assert market.ended
    flats = 0
    for name in SYMBOLS:
        tape = SyntheticTape(spec_of(name), 7, START)
        for i in range(12):
            open_us = START + i * MINUTE_US
            kline = fold(tape.between(open_us, open_us + MINUTE_US), open_us, open_us + MINUTE_US)
            if kline is None:
                before = tape.before(open_us)
                assert before is not None
                kline = flat(open_us, open_us + MINUTE_US, before.price)
                flats += 1
            assert heard.closed[name, open_us] == kline
    assert flats > 0


def test_longer_intervals_are_the_fold_of_all_their_trades() -> None:
    market = synthetic()
    symbol = market.symbols["SOLUSDT"]
    tape = SyntheticTape(spec_of("SOLUSDT"), 7, START)
    for seconds in (1, 59, 61, 200, 899, 901, 1850):
        market.advance(START + seconds * 1_000_000, FOREVER_US)
        now = market.time_us
        for interval in ("3m", "5m", "15m", "1h", "1d"):
            length = INTERVALS[interval]
            for open_us in (now // length * length, now // length * length - length):
                trades = tape.between(max(open_us, symbol.first_at_us), min(open_us + length, now + 1))
                kline = market.kline(symbol, interval, open_us)
                if trades:
                    assert kline == fold(trades, open_us, open_us + length), (seconds, interval)
                else:
                    assert kline is None or kline.count == 0


def test_the_last_minute_of_a_recording_never_closes(capture: Path) -> None:
    market = recorded(capture)
    heard = Heard(market)
    market.advance(FOREVER_US, FOREVER_US)
    symbol = market.symbols["ETHUSDT"]
    assert market.ended
    assert symbol.published == 1200
    assert symbol.last is not None
    assert market.time_us == symbol.last.at_us
    assert sorted(open_us for _, open_us in heard.closed) == [1_723_161_240_000_000 + i * MINUTE_US for i in range(3)]
    still = heard.closed["ETHUSDT", 1_723_161_360_000_000]
    assert still is not None
    assert still.count == 0
    before = len(heard.events)
    market.advance(FOREVER_US, FOREVER_US)
    assert len(heard.events) == before


def test_a_trade_whose_time_steps_back_belongs_to_the_minute_in_which_it_is_published(
    tmp_path: Path,
) -> None:
    lines = []
    for trade_id, ms in ((1, 59_000), (2, 60_010), (3, 59_990), (4, 121_000)):
        data = f'{{"s":"ETHUSDT","t":{trade_id},"p":"2000","q":"1","T":{ms},"m":true}}'
        lines.append(f'1 {{"stream":"ethusdt@trade","data":{data}}}\n')
    path = tmp_path / "back.jsonl"
    path.write_text("".join(lines))
    market = recorded(path)
    heard = Heard(market)
    market.advance(FOREVER_US, FOREVER_US)
    first, second = heard.closed["ETHUSDT", 0], heard.closed["ETHUSDT", MINUTE_US]
    assert first is not None
    assert second is not None
    assert (first.first_id, first.last_id, first.count) == (1, 1, 1)
    assert (second.first_id, second.last_id, second.count) == (2, 3, 2)


def test_going_to_a_time_is_the_same_as_having_lived_through_it() -> None:
    lived, jumped = synthetic(), synthetic()
    lived.advance(START + 400_123_456, FOREVER_US)
    jumped.seek(START + 400_123_457)
    for name in SYMBOLS:
        one, other = lived.symbols[name], jumped.symbols[name]
        assert (one.last, one.published, one.open) == (other.last, other.published, other.open)
        for open_us in range(START, START + 7 * MINUTE_US, MINUTE_US):
            assert lived.minute(one, open_us) == jumped.minute(other, open_us)
    one_heard, other_heard = Heard(lived), Heard(jumped)
    lived.advance(START + 500_000_000, FOREVER_US)
    jumped.advance(START + 500_000_000, FOREVER_US)
    assert one_heard.events == other_heard.events


def test_a_market_resumed_long_after_its_end_closes_no_further_minute() -> None:
    lived = synthetic(minutes=3)
    while not lived.ended:
        lived.advance(FOREVER_US, 100)
    resumed = synthetic(minutes=3)
    resumed.seek(START + 90 * MINUTE_US)
    assert (resumed.ended, resumed.time_us, resumed.closed_us) == (True, lived.time_us, lived.closed_us)
    assert resumed.symbols["BTCUSDT"].last == lived.symbols["BTCUSDT"].last


def test_history_ends_where_the_stream_begins() -> None:
    market = synthetic()
    symbol = market.symbols["ETHUSDT"]
    assert symbol.first is not None
    assert symbol.last is not None
    assert symbol.last.id + 1 == symbol.first.id
    assert symbol.first.at_us >= START > symbol.last.at_us
    assert len(symbol.happened(1, 10**6)) == symbol.last.id
    assert symbol.happened(symbol.first.id, 10) == []
    assert market.minute(symbol, START - MINUTE_US) is not None
    assert market.minute(symbol, START + MINUTE_US) is None


def test_the_average_price_is_weighted_over_the_last_five_minutes() -> None:
    market = synthetic()
    market.advance(START + 330_000_000, FOREVER_US)
    symbol = market.symbols["ETHUSDT"]
    tape = SyntheticTape(spec_of("ETHUSDT"), 7, START)
    trades = tape.between(START + 60_000_000, START + 330_000_001)
    expected = sum(t.price * t.qty for t in trades) // sum(t.qty for t in trades)
    assert market.average_price(symbol) == expected


def test_a_market_can_be_told_to_end_at_the_next_minute() -> None:
    market = synthetic()
    heard = Heard(market)
    market.advance(START + 100_000_000, FOREVER_US)
    assert market.end() == START + 2 * MINUTE_US
    while not market.ended:
        market.advance(FOREVER_US, 100)
    assert market.end() == market.time_us == START + 2 * MINUTE_US
    assert heard.events[-1] == ("mark", START + 2 * MINUTE_US)
    expected = synthetic(minutes=2)
    while not expected.ended:
        expected.advance(FOREVER_US, 100)
    assert [s.last for s in market.symbols.values()] == [s.last for s in expected.symbols.values()]
