"""The audit: compares the exchange's ledger, the topics, the warehouse and the recorded notifications."""
