"""A Binance spot exchange that runs on a laptop: streams, signed orders, a ledger and faults on demand.

It knows nothing of MarketFlow's other parts: its klines and its books are an independent witness.
"""
