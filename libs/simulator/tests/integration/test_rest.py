"""Public REST: only what has happened, in the documented form."""

from collections.abc import Awaitable, Callable
from decimal import Decimal
from itertools import groupby, pairwise
from typing import Any

from websockets.asyncio.client import connect

Start = Callable[..., Awaitable[Any]]
START_MS = 1_704_067_200_000


async def finished(start: Start, **settings: Any) -> Any:
    """A simulator whose three market minutes are over."""
    sim = await start(**{"symbols": "ETHUSDT,SOLUSDT", "speed": "max", "minutes": 3, **settings})
    async with connect(f"{sim.ws}/ws/ethusdt@kline_1m"):
        await sim.ended()
    return sim


async def all_trades(sim: Any, symbol: str = "ETHUSDT") -> list[Any]:
    """Every trade, paged through as a client would."""
    trades: list[Any] = []
    while True:
        from_id = trades[-1]["id"] + 1 if trades else 1
        page = await sim.get("/api/v3/historicalTrades", symbol=symbol, fromId=from_id, limit=1000)
        if not page:
            return trades
        trades += page


async def test_paging_by_id_gives_every_trade_of_history_and_stream_once(start: Start) -> None:
    sim = await finished(start)
    market = (await sim.get("/sim/market"))["symbols"]["ETHUSDT"]
    trades = await all_trades(sim)
    assert [t["id"] for t in trades] == list(range(1, market["last_trade_id"] + 1))
    before = [t for t in trades if t["id"] < market["first_trade_id"]]
    assert before[0]["time"] < START_MS - 120_000 < before[-1]["time"] < START_MS
    assert trades[market["first_trade_id"] - 1]["time"] >= START_MS
    sim_trades = await sim.get("/sim/trades", symbol="ETHUSDT", from_id=1, limit=50_000)
    assert [(t["id"], t["price"], t["qty"], t["time"], t["isBuyerMaker"]) for t in trades] == [
        (t["id"], t["price"], t["qty"], t["time_us"] // 1000, t["is_buyer_maker"]) for t in sim_trades
    ]
    streamed = await sim.get("/sim/trades", symbol="ETHUSDT")
    assert [t["id"] for t in streamed] == list(range(market["first_trade_id"], market["last_trade_id"] + 1))
    assert await sim.get("/api/v3/trades", symbol="ETHUSDT", limit=7) == trades[-7:]
    assert await sim.get("/api/v3/historicalTrades", symbol="ETHUSDT", limit=3) == trades[-3:]
    assert len(await sim.get("/api/v3/trades", symbol="ETHUSDT", limit=5000)) == 1000


async def test_what_has_not_happened_yet_cannot_be_asked_for(start: Start) -> None:
    sim = await start(symbols="ETHUSDT", autostart=False)
    first = (await sim.get("/sim/market"))["symbols"]["ETHUSDT"]["first_trade_id"]
    trades = await sim.get("/api/v3/historicalTrades", symbol="ETHUSDT", fromId=first - 5)
    assert [t["id"] for t in trades] == list(range(first - 5, first))
    far = 10**15
    for path, params in (
        ("historicalTrades", {"fromId": far}),
        ("aggTrades", {"fromId": far}),
        ("aggTrades", {"startTime": START_MS + 1}),
        ("aggTrades", {"startTime": far // 1000 * 90}),
        ("klines", {"interval": "1m", "startTime": START_MS + 60_000}),
    ):
        assert await sim.get(f"/api/v3/{path}", symbol="ETHUSDT", **params) == []
    assert await sim.get("/sim/trades", symbol="ETHUSDT", from_id=far) == []
    assert await sim.get("/sim/klines", symbol="ETHUSDT") == []


async def test_news_of_many_symbols_are_what_each_alone_is_told(start: Start) -> None:
    sim = await finished(start)
    after = {symbol: state["first_trade_id"] + 7 for symbol, state in (await sim.get("/sim/market"))["symbols"].items()}
    klines = {"ETHUSDT": {"1m": START_MS * 1000, "1h": 0}, "SOLUSDT": {"1m": (START_MS + 60_000) * 1000}}
    news = await sim.post("/sim/news", {"trades": after, "klines": klines})
    assert news == {
        "trades": {name: await sim.get("/sim/trades", symbol=name, from_id=at) for name, at in after.items()},
        "klines": {
            name: {
                interval: await sim.get("/sim/klines", symbol=name, interval=interval, from_us=since)
                for interval, since in asked.items()
            }
            for name, asked in klines.items()
        },
    }
    assert [len(rows["1m"]) for rows in news["klines"].values()] == [3, 2]


async def test_aggregates_are_the_trades_that_share_taker_price_and_time(start: Start) -> None:
    sim = await finished(start)
    trades = await all_trades(sim)
    by_id = {t["id"]: t for t in trades}
    aggs: list[Any] = []
    while True:
        page = await sim.get("/api/v3/aggTrades", symbol="ETHUSDT", fromId=len(aggs) + 1, limit=1000)
        if not page:
            break
        aggs += page
    assert [a["a"] for a in aggs] == list(range(1, len(aggs) + 1))
    assert (aggs[0]["f"], aggs[-1]["l"]) == (1, trades[-1]["id"])
    assert all(b["f"] == a["l"] + 1 for a, b in pairwise(aggs))
    for agg in aggs[::37]:
        parts = [by_id[i] for i in range(agg["f"], agg["l"] + 1)]
        assert {(p["price"], p["time"], p["isBuyerMaker"]) for p in parts} == {(agg["p"], agg["T"], agg["m"])}
        assert int(agg["q"].replace(".", "")) == sum(int(p["qty"].replace(".", "")) for p in parts)
    window = await sim.get(
        "/api/v3/aggTrades", symbol="ETHUSDT", startTime=START_MS, endTime=START_MS + 9_999, limit=1000
    )
    assert window == [a for a in aggs if START_MS <= a["T"] <= START_MS + 9_999]
    assert await sim.get("/api/v3/aggTrades", symbol="ETHUSDT", limit=4) == aggs[-4:]


async def test_klines_are_the_fold_of_the_trades_for_every_interval_and_window(start: Start) -> None:
    sim = await finished(start)
    trades = await all_trades(sim, "SOLUSDT")
    for interval, length in (("1m", 60_000), ("5m", 300_000), ("1h", 3_600_000), ("1d", 86_400_000)):
        rows = await sim.get("/api/v3/klines", symbol="SOLUSDT", interval=interval, limit=1000)
        folded = {k: list(g) for k, g in groupby(trades, key=lambda t: t["time"] // length * length)}
        for row in rows:
            some = folded.pop(row[0], [])
            assert row[8] == len(some)
            if some:
                prices = [t["price"] for t in some]
                assert (row[1], row[4]) == (prices[0], prices[-1])
                assert (row[2], row[3]) == (max(prices, key=float), min(prices, key=float))
        assert folded == {}
    rows = await sim.get("/api/v3/klines", symbol="SOLUSDT", interval="1m", limit=1000)
    assert rows[-1][0] == START_MS + 180_000, "the minute after the end is open"
    window = await sim.get(
        "/api/v3/klines", symbol="SOLUSDT", interval="1m", startTime=START_MS - 1, endTime=START_MS + 60_000
    )
    assert window == [row for row in rows if START_MS <= row[0] <= START_MS + 60_000]
    assert await sim.get("/api/v3/klines", symbol="SOLUSDT", interval="1m", limit=2) == rows[-2:]
    assert (
        await sim.get("/api/v3/klines", symbol="SOLUSDT", interval="1m", endTime=START_MS, limit=2)
        == [row for row in rows if row[0] <= START_MS][-2:]
    )


async def test_errors_and_weights_are_as_documented(start: Start) -> None:
    sim = await start()
    for path, code in (
        ("trades", -1102),
        ("trades?symbol=NOSUCH", -1121),
        ("historicalTrades?symbol=BTCUSDT&fromId=x", -1100),
        ("historicalTrades?symbol=BTCUSDT&limit=0", -1130),
        ("klines?symbol=BTCUSDT&interval=7m", -1120),
        ("klines?symbol=BTCUSDT", -1102),
        ("aggTrades?symbol=BTCUSDT&fromId=1&startTime=1", -1128),
        ("exchangeInfo?symbol=NOSUCH", -1121),
    ):
        answer = await sim.http.get(f"/api/v3/{path}")
        assert (answer.status_code, answer.json()["code"]) == (400, code), path
    used = 0
    for path, weight in (("ping", 1), ("time", 1), ("exchangeInfo", 20), ("klines?symbol=BTCUSDT&interval=1m", 2)):
        answer = await sim.http.get(f"/api/v3/{path}")
        now = int(answer.headers["X-MBX-USED-WEIGHT-1M"])
        assert now in (used + weight, weight) or used == 0
        used = now


async def test_too_much_weight_is_answered_with_429_and_when_to_come_back(start: Start) -> None:
    sim = await start(weight_limit=50)
    answers = [await sim.http.get("/api/v3/trades?symbol=BTCUSDT&limit=1") for _ in range(4)]
    refused = [a for a in answers if a.status_code == 429]
    assert refused
    assert refused[-1].json()["code"] == -1003
    assert 1 <= int(refused[-1].headers["Retry-After"]) <= 60
    assert (await sim.get("/sim/health"))["ok"]


async def test_exchange_info_tells_symbols_and_limits(start: Start) -> None:
    sim = await start()
    info = await sim.get("/api/v3/exchangeInfo")
    assert [s["symbol"] for s in info["symbols"]] == ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
    assert all(s["status"] == "TRADING" for s in info["symbols"])
    assert info["rateLimits"][0] == {
        "rateLimitType": "REQUEST_WEIGHT",
        "interval": "MINUTE",
        "intervalNum": 1,
        "limit": 6000,
    }
    two = await sim.get("/api/v3/exchangeInfo", symbols='["SOLUSDT","BTCUSDT"]')
    assert [s["symbol"] for s in two["symbols"]] == ["SOLUSDT", "BTCUSDT"]
    best = await sim.get("/api/v3/ticker/bookTicker", symbol="ETHUSDT")
    assert best.keys() == {"symbol", "bidPrice", "bidQty", "askPrice", "askQty"}
    assert 0 < Decimal(best["bidPrice"]) < Decimal(best["askPrice"])
    assert len(await sim.get("/api/v3/ticker/bookTicker", symbols='["ETHUSDT","BTCUSDT"]')) == 2
    prices = await sim.get("/api/v3/ticker/price")
    assert [p["symbol"] for p in prices] == ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
