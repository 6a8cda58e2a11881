"""The parameters of one REST request: query string and form body together, the query string first."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final
from urllib.parse import parse_qsl

from marketflow_simulator.errors import ApiError, illegal, missing

_INTEGER: Final = re.compile(r"[0-9]{1,20}", re.ASCII)
_DECIMAL: Final = re.compile(r"([0-9]{1,20})(\.[0-9]{1,20})?", re.ASCII)
_MICROSECONDS_FROM: Final = 100_000_000_000_000


class Params:
    """What a request was sent with, read by name and type; ApiError if it is not what it has to be."""

    def __init__(self, query: str, body: str) -> None:
        values: dict[str, str] = {}
        for source in (body, query):
            for name, value in parse_qsl(source, keep_blank_values=True):
                values[name] = value
        self._values: Mapping[str, str] = values

    @classmethod
    def of(cls, values: Mapping[str, str]) -> "Params":
        """Parameters that came by another way than a query string."""
        params = cls("", "")
        params._values = values
        return params

    def text(self, name: str) -> str | None:
        """The value, or None if it was not sent; an empty one is an error."""
        value = self._values.get(name)
        if value == "":
            raise ApiError(-1105, f"Parameter '{name}' was empty.")
        return value

    def required(self, name: str) -> str:
        value = self._values.get(name)
        if not value:
            raise missing(name)
        return value

    def integer(self, name: str) -> int | None:
        value = self.text(name)
        if value is None:
            return None
        if not _INTEGER.fullmatch(value):
            raise illegal(name, "^[0-9]{1,20}$")
        return int(value)

    def decimal(self, name: str) -> Decimal | None:
        value = self.text(name)
        if value is None:
            return None
        if not _DECIMAL.fullmatch(value):
            raise illegal(name, "^([0-9]{1,20})(\\.[0-9]{1,20})?$")
        return Decimal(value)

    def limit(self, highest: int = 1000) -> int:
        """The parameter `limit`: 500 unless told, silently at most `highest`, as Binance does."""
        value = self.integer("limit")
        if value == 0:
            raise ApiError(-1130, "Data sent for parameter 'limit' is not valid.")
        return min(500 if value is None else value, highest)

    def time_us(self, name: str) -> int | None:
        """A time in milliseconds (or microseconds, told by their size), in microseconds."""
        value = self.integer(name)
        return value if value is None or value >= _MICROSECONDS_FROM else value * 1000

    def names(self) -> frozenset[str]:
        """Names of all parameters that were sent."""
        return frozenset(self._values)

    def __contains__(self, name: str) -> bool:
        return name in self._values
