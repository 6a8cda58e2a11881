"""The synthetic market: the same seed always gives the same trades, and any of them can be asked for again."""

import hashlib
from itertools import islice, pairwise

import pytest
from marketflow_simulator.klines import MINUTE_US, fold
from marketflow_simulator.symbols import spec_of
from marketflow_simulator.synthetic import HISTORY_MINUTES, SyntheticTape

START = 1_704_067_200_000_000


def tape(symbol: str = "ETHUSDT", seed: int = 7, minutes: int = 0) -> SyntheticTape:
    return SyntheticTape(spec_of(symbol), seed, START, minutes)


def test_a_seed_always_gives_the_same_bytes() -> None:
    trades = list(islice(tape().live(START), 2000))
    text = "\n".join(f"{t.id} {t.price} {t.qty} {t.time_us} {t.buyer_is_maker} {t.agg_id}" for t in trades)
    # Change this only with a new market in mind: recorded demos and golden files of others rest on it.
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "8cab952351bfbbda"
    assert list(islice(tape(seed=8).live(START), 2000)) != trades


def test_any_past_minute_can_be_made_again_out_of_order() -> None:
    first = tape()
    minutes = [first.between(START + i * MINUTE_US, START + (i + 1) * MINUTE_US) for i in range(12)]
    for i in (11, 3, 0, 7):
        assert tape().between(START + i * MINUTE_US, START + (i + 1) * MINUTE_US) == minutes[i]
        assert first.between(START + i * MINUTE_US, START + (i + 1) * MINUTE_US) == minutes[i]


@pytest.mark.parametrize("symbol", ["BTCUSDT", "SOLUSDT", "NOVAUSDT"])
def test_ids_and_aggregates_count_up_without_a_hole_from_the_first_minute_of_history(symbol: str) -> None:
    one = tape(symbol)
    trades = one.between(START - HISTORY_MINUTES * MINUTE_US, START + 5 * MINUTE_US)
    assert [t.id for t in trades] == list(range(1, len(trades) + 1))
    assert trades[0].at_us < START - (HISTORY_MINUTES - 1) * MINUTE_US
    assert all(b.agg_id - a.agg_id in (0, 1) for a, b in pairwise(trades))
    assert all((a.at_us, a.price) == (b.at_us, b.price) for a, b in pairwise(trades) if a.agg_id == b.agg_id)
    assert all(a.at_us <= b.at_us for a, b in pairwise(trades))


def test_trades_are_found_by_id_by_time_and_by_aggregate() -> None:
    one = tape()
    all_trades = one.between(START - HISTORY_MINUTES * MINUTE_US, START + 3 * MINUTE_US)
    assert tape().by_id(500, 1000) == all_trades[499:1499]
    assert tape().latest(700, 50) == all_trades[650:700]
    assert tape().before(START) == [t for t in all_trades if t.at_us < START][-1]
    assert tape().count(START, START + 90_000_000) == sum(START <= t.at_us < START + 90_000_000 for t in all_trades)
    middle = all_trades[9000]
    assert tape().agg_start(middle.agg_id) == next(t.id for t in all_trades if t.agg_id == middle.agg_id)


def test_the_market_ends_after_its_minutes() -> None:
    trades = list(tape(minutes=2).live(START))
    assert trades[-1].at_us < START + 2 * MINUTE_US
    assert tape(minutes=2).by_id(trades[-1].id, 10) == trades[-1:]
    assert tape(minutes=2).agg_start(trades[-1].agg_id + 1) is None
    assert trades == tape().between(START, START + 2 * MINUTE_US)


def test_prices_and_quantities_keep_to_tick_and_step() -> None:
    for symbol in ("BTCUSDT", "DOGEUSDT", "NOVAUSDT", "ABCUSDT"):
        spec = spec_of(symbol)
        for trade in islice(tape(symbol).live(START), 500):
            assert trade.price > 0
            assert trade.price % spec.tick == 0
            assert trade.qty > 0
            assert trade.qty % spec.step == 0


@pytest.mark.parametrize("seed", [1, 7, 42])
def test_ten_minutes_have_swings_that_a_simple_strategy_can_trade(seed: int) -> None:
    for symbol in ("BTCUSDT", "ETHUSDT", "SOLUSDT"):
        one = tape(symbol, seed)
        klines = [fold(one.between(START + i * MINUTE_US, START + (i + 1) * MINUTE_US), 0, 1) for i in range(10)]
        some = [k for k in klines if k is not None]
        assert max(k.high for k in some) > min(k.low for k in some) * 1.003
        per_second = sum(k.count for k in some) / 600
        assert 1 <= per_second <= 15


def test_a_quiet_symbol_now_and_then_has_a_minute_without_trades() -> None:
    one = tape("SOLUSDT")
    empty = sum(one.count(START + i * MINUTE_US, START + (i + 1) * MINUTE_US) == 0 for i in range(300))
    assert 5 <= empty <= 60
    busy = tape("BTCUSDT")
    assert all(busy.count(START + i * MINUTE_US, START + (i + 1) * MINUTE_US) for i in range(300))
