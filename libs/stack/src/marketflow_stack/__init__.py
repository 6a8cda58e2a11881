"""The local stack: what a laptop or a test needs around MarketFlow's services.

Kafka without a container, a warehouse, a recorder of messages, a supervisor. No service imports it, and it imports
no service: it knows them by the names of their modules. Nothing is exported here; import the modules.
"""
