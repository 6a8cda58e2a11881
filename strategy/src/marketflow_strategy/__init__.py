"""Turns candles of ohlcv_agg into signals on trading_signals."""
