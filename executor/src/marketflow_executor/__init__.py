"""Turns signals into orders whose outcome is never guessed, on order_events."""
