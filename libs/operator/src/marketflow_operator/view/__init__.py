"""The live terminal view: what the market, the six services and the books are doing right now."""
