"""Structured logs on standard error: an event name and fields, as JSON or as text.

Must never be handed a secret: redaction here is the last net, not the rule.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

__all__ = ["Log", "configure", "get"]


class Log:
    """``log.info("candle_closed", symbol="ETHUSDT")``: the first word is for machines, fields for people."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: Any) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, *, exc_info: bool = False, **fields: Any) -> None:
        self._write(logging.ERROR, event, fields, exc_info)

    def _write(self, level: int, event: str, fields: dict[str, Any], exc_info: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={"fields": fields}, exc_info=exc_info)


def get(name: str) -> Log:
    """The log of a part, for example ``get("aggregator")``."""
    return Log(f"marketflow.{name}")


class _Format(logging.Formatter):
    def __init__(self, service: str, as_json: bool) -> None:
        super().__init__()
        self._service, self._json = service, as_json

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields: dict[str, Any] = dict(getattr(record, "fields", {}))
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        if self._json:
            head = {
                "at": at,
                "level": record.levelname,
                "service": self._service,
                "event": record.getMessage(),
            }
            if not record.name.startswith("marketflow."):
                head["logger"] = record.name
            return json.dumps(head | fields, default=str)
        rest = " ".join(f"{key}={value}" for key, value in fields.items())
        return f"{at} {record.levelname:<7} {self._service} {record.getMessage()} {rest}".rstrip()


def configure(service: str, level: str = "INFO", form: str = "json") -> None:
    """Send all logs of this process to standard error. Libraries speak from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Format(service, form == "json"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("marketflow").setLevel(level)
