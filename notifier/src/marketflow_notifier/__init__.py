"""Tells people on Telegram and Discord what happened."""
