"""Collects the evidence: waits until the pipeline has drained, reads every side, and reads the ledger around it.

Edge of the audit. Must never judge, and never wait without a bound: what is still pending then is said.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import httpx
from marketflow_common.events import Candle, Trade

from ..targets import Targets
from .exchange import ExchangeReader
from .model import Evidence, Exchange, Message, Warehouse
from .settled import closed_until, lagging, pending_channels, pending_topics, pending_warehouse
from .topics import CannotRead, TopicReader
from .warehouse import WarehouseReader

__all__ = ["gather"]

ROUND = 0.3
"""Seconds between two looks while waiting."""


def gather(
    targets: Targets,
    timeout: float = 60.0,
    quiet: float = 15.0,
    say: Callable[[str], None] = lambda _: None,
) -> Evidence:
    """The evidence once everything up to now has come through, or after ``timeout`` seconds, with what is pending.

    When nothing at all has moved for ``quiet`` seconds, waiting longer is pointless: longer than a crashed
    service's session and transaction take to expire. ``say`` is told what is being waited for.
    """
    with ExitStack() as stack:
        return _Gathering(targets, stack).run(timeout, quiet, say)


class _Gathering:
    def __init__(self, targets: Targets, stack: ExitStack) -> None:
        self.targets = targets
        self.missing: dict[str, str] = {}
        self.exchange = ExchangeReader(targets.exchange)
        stack.callback(self.exchange.close)
        self.warehouse = WarehouseReader(targets.snowflake)
        stack.callback(self.warehouse.close)
        self.http = stack.enter_context(httpx.Client(timeout=30, trust_env=False))
        self.topics: TopicReader | None = None
        with self.asked("topics"):
            self.topics = TopicReader(targets.kafka)
            stack.callback(self.topics.close)
        self.lowest: dict[str, int] = {}
        self.longer: set[str] = set()
        self.known = 0

    def asked(self, part: str) -> _Asked:
        return _Asked(self.missing, part)

    def run(self, timeout: float, quiet: float, say: Callable[[str], None]) -> Evidence:
        patience = _Patience(timeout, quiet, say)
        evidence, lacking = self.upstream(patience)
        # From here on the topics stand still for the audit: what has come since is nobody's business.
        evidence, still_lacking = self.downstream(evidence, patience)
        return replace(self.complete(evidence), pending=(*lacking, *still_lacking))

    def upstream(self, patience: _Patience) -> tuple[Evidence, list[str]]:
        """Read exchange and topics until all that follows from the minutes closed by now is there."""
        due: dict[str, int] | None = None
        while True:
            evidence = self.look()
            ledger = evidence.exchange
            if ledger is not None and (due is None or ledger.ended):
                # Minutes that the exchange has closed by now have to come through; later ones need not.
                due = closed_until(ledger.feeds)
            evidence = replace(evidence, until=due or {})
            lacking = pending_topics(evidence)
            if not lacking and ledger is not None:
                again = self.ledger()
                if again is None or _books(again) != _books(ledger):
                    lacking = ["orders are being made at this very moment"]
                else:
                    # What the topics had meanwhile has its trades and klines in the later reading.
                    evidence = replace(evidence, exchange=replace(again, ended=ledger.ended))
            if not lacking or "topics" in self.missing or not patience.goes_on((evidence.ends, lacking), lacking):
                return evidence, lacking

    def downstream(self, evidence: Evidence, patience: _Patience) -> tuple[Evidence, list[str]]:
        """Wait until warehouse and channels have passed the ends of what was read of the topics."""
        while True:
            positions: Warehouse | None = None
            recorded: list[Message] | None = None
            with self.asked("warehouse"):
                positions = Warehouse({}, self.warehouse.positions())
            with self.asked("recorder"):
                recorded = self.recorded()
            behind = lagging(evidence, positions) if positions is not None else {}
            evidence = replace(evidence, warehouse=positions, recorded=recorded, lagging=behind)
            lacking = [] if positions is None else pending_warehouse(evidence, positions)
            if recorded is not None:
                lacking += pending_channels(evidence)
            state = (positions.positions if positions else (), len(recorded or ()))
            if not lacking or "topics" in self.missing or not patience.goes_on(state, lacking):
                return evidence, lacking

    def look(self) -> Evidence:
        """The exchange's ledger, then the topics: what the ledger has has its cause in the topics."""
        exchange = self.ledger()
        if self.topics is not None:
            with self.asked("topics"):
                self.topics.advance()
                self.find_lowest()
        if exchange is not None and any(
            self.lowest.get(symbol, feed.streamed_from) < feed.trades[0].trade_id or self.longer - feed.longer.keys()
            for symbol, feed in exchange.feeds.items()
            if feed.trades
        ):
            exchange = self.ledger()  # which minute is the first, and which intervals there are, was not known before
        topics = self.topics
        return Evidence(
            records=topics.records if topics else {},
            partitions=topics.partitions if topics else 0,
            ends=dict(topics.ends) if topics else {},
            topic_ids=topics.topic_ids if topics else {},
            prefix=self.targets.kafka.topic_prefix,
            exchange=exchange,
            channels=self.targets.channels,
            notifier_restarts=self.targets.notifier_restarts,
            # Where retention has deleted the first trades, nobody can ask for them.
            from_start=self.targets.from_start and topics is not None and topics.whole,
        )

    def ledger(self) -> Exchange | None:
        """The exchange's ledger as of now."""
        with self.asked("exchange"):
            return self.exchange.read(self.lowest, self.longer)
        return None

    def complete(self, evidence: Evidence) -> Evidence:
        """With the warehouse's rows, read last: they may only be more than what the topics had."""
        rows: Warehouse | None = None
        if evidence.warehouse is not None:
            with self.asked("warehouse"):
                rows = self.warehouse.read()
        return replace(evidence, warehouse=rows, missing=dict(self.missing))

    def find_lowest(self) -> None:
        assert self.topics is not None
        candles = self.topics.records["ohlcv_agg"]
        self.longer |= {seen.event.interval for seen in candles if type(seen.event) is Candle} - {"1m"}
        records = self.topics.records["ohlcv_raw"]
        if len(records) == self.known:
            return
        self.known = len(records)
        for seen in records:
            if type(seen.event) is Trade:
                lowest = self.lowest.get(seen.event.symbol)
                if lowest is None or seen.event.trade_id < lowest:
                    self.lowest[seen.event.symbol] = seen.event.trade_id

    def recorded(self) -> list[Message]:
        url = f"{self.targets.recorder.rstrip('/')}/recorded"
        try:
            answer = self.http.get(url)
            answer.raise_for_status()
            rows: list[dict[str, Any]] = answer.json()
            return [Message(row["channel"], row["text"]) for row in rows]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise CannotRead(f"no recording at {url} ({error or type(error).__name__})") from None


class _Patience:
    """How long to go on waiting: while something moves, and not beyond the deadline."""

    def __init__(self, timeout: float, quiet: float, say: Callable[[str], None]) -> None:
        self._deadline, self._quiet, self._say = time.monotonic() + timeout, quiet, say
        self._since, self._before = time.monotonic(), object()

    def goes_on(self, state: object, lacking: list[str]) -> bool:
        """Pause for a moment and say True, or False if it is time to judge what there is."""
        now = time.monotonic()
        if state != self._before:
            self._before, self._since = state, now
        if now > self._deadline or now - self._since > self._quiet:
            return False
        self._say(lacking[0])
        time.sleep(ROUND)
        return True


def _books(exchange: Exchange) -> tuple[Any, ...]:
    return exchange.orders, exchange.fills, exchange.balances


class _Asked(suppress):
    """A part that does not answer is noted and passed over; one that answers again is forgiven."""

    def __init__(self, missing: dict[str, str], part: str) -> None:
        super().__init__(CannotRead)
        self._missing, self._part = missing, part

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if isinstance(error, CannotRead):
            self._missing[self._part] = str(error)
        elif error is None:
            self._missing.pop(self._part, None)
        return bool(super().__exit__(kind, error, trace))
