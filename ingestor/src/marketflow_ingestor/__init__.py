"""Reads Binance trade streams and publishes every trade once, in order of its id, to ohlcv_raw."""
