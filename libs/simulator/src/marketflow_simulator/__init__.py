"""A Binance that runs on a laptop, with a ledger and faults on demand."""
