"""Folds trades of ohlcv_raw into candles equal to the exchange's own, on ohlcv_agg."""
