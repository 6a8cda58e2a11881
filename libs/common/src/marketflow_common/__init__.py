"""What at least two MarketFlow services need: events, codec, topics, settings, metrics, the Kafka loops.

Holds no knowledge of any one service, and does no I/O at import.
"""
