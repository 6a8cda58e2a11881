"""The strategy service as processes on a real broker: one signal per candle, whatever dies, freezes or joins."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from decimal import Decimal
from random import Random

import pytest
from marketflow_common import codec
from marketflow_common import topics as names
from marketflow_common.events import Candle
from marketflow_common.intervals import MINUTE
from marketflow_common.kafka.client import Record
from marketflow_common.kafka.source import Publisher
from marketflow_common.settings import KafkaSettings
from marketflow_stack.testing import CreatedTopics, Program, eventually, read_all
from marketflow_strategy.band import Band, BandParameters
from marketflow_strategy.lane import SignalLane
from marketflow_strategy.levels import WeakLevels, WeakLevelsParameters

pytestmark = pytest.mark.broker

BAND = {"buy_factor": "1.01", "sell_factor": "0.99"}
LEVELS = {"lookback": 6, "swing": 1, "bias_window": 3, "momentum_window": 1, "volume_window": 4, "volume_factor": "0.5"}
SYMBOLS = ("ETHUSDT", "BTCUSDT", "BNBUSDT", "SOLUSDT")


@pytest.fixture
def strategy(service: Callable[..., Program]) -> Callable[[], Program]:
    """Starts one more process; it is ready when it is returned."""
    parameters = json.dumps({"band": BAND, "weak_levels": LEVELS})
    return lambda: service("strategy", STRATEGY_PARAMETERS=parameters).wait_ready()


@pytest.fixture
def candles() -> list[Candle]:
    """Sixty minutes of four symbols with holes, missing trades and revisions."""
    random, made = Random(3), list[Candle]()
    for minute in range(60):
        for symbol in SYMBOLS:
            if random.random() < 0.03:
                continue
            price, missing = Decimal(random.randint(9000, 11000)).scaleb(-2), random.random() < 0.03
            one = Candle(
                symbol, "1m", minute * MINUTE, (minute + 1) * MINUTE - 1, price, price + 1, price - 1, price,
                Decimal(random.randint(1, 99)), Decimal(1), 1, Decimal(0), Decimal(0), minute, minute,
                ((minute, minute),) if missing else (),
            )  # fmt: skip
            made.append(one)
    return made


@pytest.fixture
def publish(topics: CreatedTopics) -> Callable[[list[Candle]], None]:
    kafka = KafkaSettings(bootstrap_servers=topics.bootstrap, topic_prefix=topics.prefix)
    publishers: dict[int, Publisher] = {}

    def send(candles: list[Candle]) -> None:
        for candle in candles:
            partition = names.partition_of(candle.symbol, 3)
            if partition not in publishers:
                publishers[partition] = Publisher(kafka, "feed", names.OHLCV_AGG, partition)
                publishers[partition].open()
            publishers[partition].publish([candle])

    return send


@pytest.fixture
def expect(topics: CreatedTopics, candles: list[Candle]) -> Callable[[], None]:
    """The signals on the broker are those that the lane makes of the same candles in one go, byte for byte."""

    def check() -> None:
        wanted: dict[int, list[bytes]] = {}
        for partition in range(3):
            made = SignalLane(
                [WeakLevels(WeakLevelsParameters.model_validate(LEVELS)), Band(BandParameters.model_validate(BAND))],
                "1m",
            )
            mine = [c for c in candles if names.partition_of(c.symbol, 3) == partition]
            signals = made.process([Record(i, 0, c) for i, c in enumerate(mine)])
            if signals:
                wanted[partition] = [codec.encode(s) for s in signals]

        def read() -> dict[int, list[object]]:
            found: dict[int, list[object]] = {}
            for message in read_all(topics.bootstrap, topics["trading_signals"]):
                found.setdefault(message.partition() or 0, []).append(message.value())
            return found

        eventually(lambda: sum(map(len, read().values())) >= 2 * len(candles), timeout=60)
        assert read() == wanted

    return check


def test_each_candle_gives_one_signal_per_strategy(
    strategy: Callable[[], Program],
    publish: Callable[[list[Candle]], None],
    candles: list[Candle],
    expect: Callable[[], None],
) -> None:
    one = strategy()
    publish(candles)
    expect()
    assert one.metric("signals_generated_total") == 2 * len(candles)
    assert one.stop(15) == 0


def test_killed_again_and_again_it_says_the_same(
    strategy: Callable[[], Program],
    publish: Callable[[list[Candle]], None],
    candles: list[Candle],
    expect: Callable[[], None],
) -> None:
    third = len(candles) // 3
    for part in (candles[:third], candles[third : 2 * third]):
        one = strategy()
        publish(part)
        eventually(lambda one=one: one.metric("signals_generated_total") > 0)
        one.kill()
    strategy()
    publish(candles[2 * third :])
    expect()


def test_one_that_was_frozen_while_another_took_over_says_nothing_twice(
    strategy: Callable[[], Program],
    publish: Callable[[list[Candle]], None],
    candles: list[Candle],
    expect: Callable[[], None],
) -> None:
    third = len(candles) // 3
    frozen = strategy()
    publish(candles[:third])
    eventually(lambda: frozen.metric("signals_generated_total") > 0)
    other = strategy()
    publish(candles[third : third + 10])
    frozen.signal(signal.SIGSTOP)
    publish(candles[third + 10 : 2 * third])
    eventually(lambda: other.metric("owned_partitions") == 3, timeout=60)
    frozen.signal(signal.SIGCONT)
    publish(candles[2 * third :])
    expect()
