"""The three Kafka loops: source (outside world in), transform (topic to topic, exactly once), sink (effect first).

They know partitions, offsets and transactions, and nothing of candles, signals or orders.
"""
