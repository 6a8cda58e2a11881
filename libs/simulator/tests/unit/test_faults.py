"""Faults happen as often as asked for, to whom they are meant for, and then are over."""

from typing import Any

import pytest
from marketflow_simulator.faults import Fault, FaultError, Faults
from marketflow_simulator.market import SymbolMarket
from marketflow_simulator.symbols import spec_of
from marketflow_simulator.synthetic import SyntheticTape
from marketflow_simulator.trades import Trade

SYMBOLS = ["BTCUSDT", "ETHUSDT"]


def shown(faults: Faults, ids: range, symbol: str = "ETHUSDT") -> list[int]:
    trades = (Trade(i, 1, 1, i, i, True, i) for i in ids)
    return [seen.id for trade in trades for seen in faults.shape(symbol, trade)]


def asked(**fault: Any) -> Faults:
    faults = Faults()
    faults.add(Fault(**fault), SYMBOLS)
    return faults


def test_skip_hides_the_next_trades_of_its_symbol() -> None:
    faults = asked(kind="skip", symbol="ETHUSDT", count=3)
    assert shown(faults, range(1, 4), "BTCUSDT") == [1, 2, 3]
    assert shown(faults, range(1, 7)) == [4, 5, 6]
    assert faults.waiting == []


def test_skip_can_begin_at_an_id() -> None:
    assert shown(asked(kind="skip", count=2, from_id=5), range(1, 9)) == [1, 2, 3, 4, 7, 8]


def test_repeat_shows_trades_twice() -> None:
    assert shown(asked(kind="repeat", count=2), range(1, 5)) == [1, 1, 2, 2, 3, 4]


def test_reorder_turns_trades_of_one_symbol_around_and_loses_none() -> None:
    faults = asked(kind="reorder", count=3)
    assert shown(faults, range(1, 2)) == []
    assert shown(faults, range(1, 3), "BTCUSDT") == [1, 2]
    assert shown(faults, range(2, 7)) == [3, 2, 1, 4, 5, 6]


def test_faults_of_requests_are_used_up_by_path() -> None:
    faults = asked(kind="rest_error", status=429, count=2, path="/klines")
    assert faults.take("rest_error", path="/api/v3/time") is None
    assert faults.take("rest_error", path="/api/v3/klines") is not None
    assert faults.take("late_answer", path="/api/v3/klines") is None
    assert faults.take("rest_error", path="/api/v3/klines") is not None
    assert faults.take("rest_error", path="/api/v3/klines") is None


def test_the_latest_clock_skew_counts_until_the_faults_are_cleared() -> None:
    faults = asked(kind="clock_skew", ms=5000)
    faults.add(Fault(kind="clock_skew", ms=-70), SYMBOLS)
    assert faults.skew_ms == -70
    faults.clear()
    assert faults.skew_ms == 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"kind": "skip", "symbol": "DOGEUSDT"}, "not in this market: BTCUSDT, ETHUSDT"),
        ({"kind": "skip", "count": 0}, "count is 0"),
        ({"kind": "stall"}, "stall needs more than 0"),
        ({"kind": "late_answer", "seconds": -1}, "late_answer needs more than 0"),
        ({"kind": "reorder"}, "it takes 2 trades or more"),
        ({"kind": "rest_error", "status": 200}, "status is 200"),
        ({"kind": "rest_away"}, "rest_away needs more than 0"),
        ({"kind": "time_shift"}, "time_shift needs to know how far"),
        ({"kind": "step_back", "ms": -5}, "ms is -5"),
        ({"kind": "burst", "count": 10**6}, "at most 100000"),
        ({"kind": "skip", "at_us": 5, "from_id": 5}, "tell one of them"),
        ({"kind": "stall", "seconds": 1, "from_id": 5}, "from_id needs a symbol"),
    ],
)
def test_a_fault_that_could_never_happen_is_refused(fault: dict[str, Any], message: str) -> None:
    with pytest.raises(FaultError, match=message):
        asked(**fault)


def test_immediate_faults_happen_when_they_are_asked_for() -> None:
    faults, seen = Faults(), []
    faults.disconnect = lambda: seen.append("cut")
    faults.stall = lambda seconds, pings: seen.append(f"stall {seconds:g}")
    faults.add(Fault(kind="disconnect"), SYMBOLS)
    faults.add(Fault(kind="stall", seconds=1.5), SYMBOLS)
    assert seen == ["cut", "stall 1.5"]
    assert [fault.kind for fault in faults.done] == ["disconnect", "stall"]


def test_a_time_shift_moves_what_the_stream_says_and_nothing_else() -> None:
    faults = asked(kind="time_shift", ms=3_600_000, from_id=2)
    seen = [faults.shape("ETHUSDT", Trade(i, 1, 1, i, i, True, i))[0] for i in (1, 2, 3)]
    assert [trade.time_us for trade in seen] == [1, 2 + 3_600_000_000, 3]
    assert [trade.at_us for trade in seen] == [1, 2, 3]


def test_a_fault_of_the_stream_can_begin_at_a_market_time() -> None:
    faults = asked(kind="skip", count=2, at_us=5)
    assert shown(faults, range(1, 9)) == [1, 2, 3, 4, 7, 8]
    assert faults.done[0].happened_us == 5


def test_two_symbols_can_be_out_of_order_at_once() -> None:
    faults = asked(kind="reorder", count=2)
    faults.add(Fault(kind="reorder", count=2), SYMBOLS)
    assert shown(faults, range(1, 2), "BTCUSDT") == []
    assert shown(faults, range(1, 2)) == []
    assert shown(faults, range(2, 3), "BTCUSDT") == [2, 1]
    assert shown(faults, range(2, 4)) == [2, 1, 3]


def test_sudden_faults_wait_for_their_time_or_their_trade() -> None:
    symbol = SymbolMarket(spec_of("ETHUSDT"), SyntheticTape(spec_of("ETHUSDT"), 7, 1_704_067_200_000_000), 0)
    faults, seen, now = Faults(), [], [0]
    faults.clock = lambda: now[0]
    faults.disconnect = lambda: seen.append(now[0])
    faults.add(Fault(kind="disconnect", at_us=50), SYMBOLS)
    faults.add(Fault(kind="disconnect", from_id=7, symbol="ETHUSDT"), SYMBOLS)
    faults.add(Fault(kind="disconnect", from_id=3, symbol="BTCUSDT"), SYMBOLS)
    for now[0] in range(40, 60, 4):
        faults.on_trade(symbol, Trade(now[0] // 8, 1, 1, now[0], now[0], True, 1))
        faults.on_mark(now[0])
    assert seen == [52, 56]
    assert [f.happened_us for f in faults.done] == [52, 56]
    assert [f.symbol for f in faults.listing()["waiting"]] == ["BTCUSDT"]


def test_rest_is_away_for_some_market_time() -> None:
    faults, now = Faults(), [100]
    faults.clock = lambda: now[0]
    fault = faults.add(Fault(kind="rest_away", seconds=2, at_us=5_000_000), SYMBOLS)
    assert faults.away("/api/v3/time") is None
    now[0] = 5_000_000
    faults.on_mark(now[0])
    assert faults.away("/api/v3/time") is fault
    now[0] = 6_999_999
    assert faults.away("/api/v3/klines") is fault
    now[0] = 7_000_000
    assert faults.away("/api/v3/klines") is None
    assert (faults.done, fault.used) == ([fault], 2)
