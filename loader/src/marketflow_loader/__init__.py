"""Lands every record of the four topics in Snowflake exactly once."""
