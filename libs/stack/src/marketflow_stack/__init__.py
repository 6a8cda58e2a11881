"""The local stack: Kafka, a warehouse, a recorder of messages, and a supervisor."""
