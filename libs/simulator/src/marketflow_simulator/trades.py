"""A public trade, and what a source of trades (a capture, a dump, a synthetic market) has to offer.

A tape only says what happens when; it knows no clock and publishes nothing.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

import msgspec


class Trade(msgspec.Struct, frozen=True, gc=False):
    """One public trade. Price and quantity in units of 1e-8, times in microseconds since the epoch."""

    id: int
    price: int
    qty: int
    time_us: int
    """What the exchange says: field T of the stream, `time` of REST."""
    at_us: int
    """When it is published: the latest `time_us` of its symbol so far. Only this decides its kline."""
    buyer_is_maker: bool
    agg_id: int
    """Number of the aggregate trade that it belongs to."""


class Tape(Protocol):
    """All trades of one symbol, past and future, in ascending order of id. Ids may have holes."""

    @property
    def symbol(self) -> str: ...

    @property
    def first_at_us(self) -> int:
        """Time of the first trade of all, history included."""
        ...

    @property
    def last_at_us(self) -> int | None:
        """Time of the last trade, or None if the tape never ends."""
        ...

    def live(self, from_us: int) -> Iterator[Trade]:
        """Trades published at or after `from_us`, one after the other, for as long as there are any."""
        ...

    def by_id(self, from_id: int, limit: int) -> list[Trade]:
        """At most `limit` trades whose id is `from_id` or higher."""
        ...

    def latest(self, until_id: int, limit: int) -> list[Trade]:
        """The last `limit` trades whose id is `until_id` or lower, oldest first."""
        ...

    def between(self, from_us: int, until_us: int) -> Iterable[Trade]:
        """Trades published at or after `from_us` and before `until_us`."""
        ...

    def before(self, us: int) -> Trade | None:
        """The last trade published before `us`."""
        ...

    def count(self, from_us: int, until_us: int) -> int:
        """How many trades are published at or after `from_us` and before `until_us`."""
        ...

    def agg_start(self, agg_id: int) -> int | None:
        """Id of the first trade of the first aggregate numbered `agg_id` or higher."""
        ...

    def prepare(self, us: int) -> bool:
        """Get the trades after `us` ready ahead of time; True if there was work to do."""
        ...
