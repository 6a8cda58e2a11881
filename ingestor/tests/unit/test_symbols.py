"""Names and patterns, and what the exchange makes of them."""

from __future__ import annotations

from marketflow_ingestor.symbols import choose

LISTED = {
    "BTCUSDT": "TRADING", "ETHUSDT": "TRADING", "LUNAUSDT": "BREAK", "ETHBTC": "TRADING", "BTCEUR": "TRADING",
    "币安USDT": "TRADING",
}  # fmt: skip


def test_a_pattern_takes_what_trades_and_remembers_what_does_not() -> None:
    assert choose(["*USDT"], LISTED) == (("BTCUSDT", "ETHUSDT"), ("LUNAUSDT",), ())


def test_names_and_patterns_mix_and_each_symbol_counts_once() -> None:
    assert choose(["ETHBTC", "BTC*", "BTCUSDT", "E*T"], LISTED).trading == ("ETHBTC", "BTCEUR", "BTCUSDT", "ETHUSDT")


def test_a_name_that_does_not_trade_waits() -> None:
    assert choose(["LUNAUSDT", "ETHBTC"], LISTED) == (("ETHBTC",), ("LUNAUSDT",), ())


def test_what_the_exchange_does_not_have_is_named_with_what_may_be_meant() -> None:
    assert choose(["ETHUSD", "*XYZ", "BTCUSDT"], LISTED).wrong == (
        "ETHUSD (did you mean ETHUSDT?)",
        "*XYZ (no trading symbol fits)",
    )
