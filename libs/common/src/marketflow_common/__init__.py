"""What at least two MarketFlow services need: events, codec, settings, the Kafka loops."""
