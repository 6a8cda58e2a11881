"""One term of leadership: fold the log, recover, then signal by signal decide, record, send, record.

Must never send an order whose intent has not committed, nor send one twice, nor go on after the term is over.
Whatever goes wrong with Kafka ends the term; the next one starts from the log, by the same code as at start.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from marketflow_common import clock, logs, metrics, topics
from marketflow_common.events import (
    AccountOpened,
    Command,
    OrderEvent,
    OrderIntended,
    Signal,
    SignalSkipped,
    TradingState,
    TradingStateChanged,
)
from marketflow_common.health import Health
from marketflow_common.kafka import client
from marketflow_common.kafka.client import FatalKafkaError, Fenced
from marketflow_common.kafka.source import read_back
from marketflow_common.settings import KafkaSettings
from pydantic import SecretStr

from . import meters
from .account import Account
from .commands import is_flatten, withheld
from .compare import difference, rests
from .decision import Limits, decide, supervised
from .desk import Broken, Pending, TermOver
from .exchange import Exchange, Unavailable
from .fees import priced
from .orders import Answer, Learned, Throttled, Verdict, expired, learn
from .plans import is_protection
from .resting import Resting
from .risk import RECONCILER
from .stream import UserStream
from .watch import CommandReader, heed

__all__ = ["Broken", "Engine", "TermOver"]

T = TypeVar("T")
_log = logs.get("executor")
IDLE_COMMIT_S: Final = 5.0
"""Signals that ask for nothing move the position; it is committed this often, so that a restart reads little again."""
ASK_FIRST_S: Final = 0.1
ASK_LAST_S: Final = 1.0
ASK_RESTING_S: Final = 3.0
"""An order that is open or unknown is asked for after this long, then at twice the distance up to the last; the last of
one that waits at the exchange for its price is longer, because it may do so for days."""
RETRY_S: Final = 0.5
_NO_SECRET: Final = SecretStr("")


class Engine:
    """Trades one account from ``open`` until the term is over."""

    def __init__(
        self,
        kafka: KafkaSettings,
        limits: Limits,
        exchange: Exchange,
        health: Health,
        leads: Callable[[], bool],
        partitions: int,
        *,
        not_found_margin_ms: int,
        reconcile_s: float,
        step: Callable[[str], None],
        command_secret: SecretStr = _NO_SECRET,
        stream: UserStream | None = None,
    ) -> None:
        """``stream``: one that has not begun; it listens for this term only."""
        self._kafka, self.limits, self.exchange, self._health = kafka, limits, exchange, health
        self._leads, self.margin_ms, self._reconcile_s, self.step = leads, not_found_margin_ms, reconcile_s, step
        self._secret, self._stream = command_secret, stream
        self.account = Account(limits.account, {}, limits.convention)
        self._name = f"executor-{limits.account}"
        self._partitions = partitions
        self._producer: Producer | None = None
        self._consumer: Consumer | None = None
        self._commands: CommandReader | None = None
        self._seen: dict[str, tuple[Decimal, int]] = {}
        self._check_at = 0.0
        self._positions: dict[int, int] = {}
        self._uncommitted: set[int] = set()
        self._committed_at = time.monotonic()
        self._started = False
        self.pending: dict[str, Pending] = {}
        self._stop = threading.Event()
        self._resting = Resting(self)

    def run(self, stop: threading.Event) -> None:
        """Trade until ``stop``. Raises TermOver, Broken, Fenced or FatalKafkaError."""
        self._stop = stop
        try:
            self._open()
            self._commands = CommandReader(self._kafka, self._name, self.limits.account, self._partitions)
            self._heed(self._commands.to_end(self._alive))
            self._recover()
            self._subscribe()
            if self._stream is not None:
                self._stream.start()
            self._started = True
            self._health.ready(True)
            _log.info("leading", account=self.limits.account, mode=self.limits.mode, state=self.account.state)
            try:
                self._work()
            except TermOver:
                if not stop.is_set():
                    raise
            if self._leads():
                self._resting.leave()
        except KafkaException as error:
            raise self._judge(error) from error
        finally:
            self._health.ready(False, "not leading")
            # Without its producer and consumer this term can publish nothing more.
            self._producer = None
            if self._stream is not None:
                self._stream.close()
            if self._commands is not None:
                self._commands.close()
                self._commands = None
            if self._consumer is not None:
                self._consumer.close()
                self._consumer = None

    # --- start ---------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Fence the former leader and fold the log."""
        self._producer = client.producer(self._kafka, self._name)
        # Returns only after the former leader's transaction is decided, in events and offsets alike.
        self._producer.init_transactions(self._kafka.transaction_timeout_ms / 1000 + client.TIMEOUT)
        events: list[OrderEvent] = []
        for partition in range(self._partitions):
            for record in client.read_range(self._kafka, topics.ORDER_EVENTS, partition, 0, self._alive):
                if record.event.account == self.limits.account:
                    events.append(record.event)
        traded = {event.symbol for event in events if isinstance(event, OrderIntended)}
        # The prices of skipped signals count for equity as well.
        for symbol in sorted(traded | {event.symbol for event in events if isinstance(event, SignalSkipped)}):
            self._know(symbol, traded=symbol in traded)
        for event in events:
            self.account.apply(event)
        opened = self.account.opened
        if opened is not None and opened.mode != self.limits.mode:
            raise FatalKafkaError(
                f"account {opened.account!r} was opened in mode {opened.mode} and cannot go on in mode "
                f"{self.limits.mode}, whose exchange knows other balances; set MARKETFLOW_EXECUTOR_ACCOUNT to another"
            )
        if opened is not None and opened.convention != self.limits.convention:
            raise FatalKafkaError(
                f"the books of account {opened.account!r} are kept by convention {opened.convention} and cannot go on "
                f"by {self.limits.convention}; set MARKETFLOW_EXECUTOR_LOTS back, or MARKETFLOW_EXECUTOR_ACCOUNT to "
                "another"
            )
        if opened is None:
            balances = self.until_available(self.exchange.opening_balances)
            now = self.until_available(self.exchange.now_ms)
            convention = self.limits.convention
            self.commit([AccountOpened(self.limits.account, self.limits.mode, balances, now * 1_000, convention)])
        self._show()
        _log.info("folded", events=len(events), open_orders=sorted(self.account.open), state=self.account.state)

    def _recover(self) -> None:
        """Find out what became of every open intent, then compare with the exchange, then decide again on the lost."""
        self.pending = {order_id: Pending() for order_id in self.account.open}
        while any(not (p.known or p.lost) for p in self.pending.values()):
            self._alive()
            self._tend(settle=False)
            self._pause(0.02)
        # Orders that provably never arrived have no effect on balances, so the books can be compared before they are
        # closed; a new attempt is made only if trading is not halted then.
        self.until_available(self._reconcile)
        while any(p.lost for p in self.pending.values()):
            self._alive()
            self._tend(settle=True)
            self._pause(0.02)

    def _subscribe(self) -> None:
        """Take all signals from the committed positions on."""
        self._consumer = consumer = client.consumer(self._kafka, self._name)
        topic = self._kafka.topic(topics.TRADING_SIGNALS)
        for partition in range(self._partitions):
            start = client.committed(consumer, topic, partition).offset
            if start < 0:
                start, _ = client.watermarks(consumer, topic, partition)
            self._positions[partition] = start
        consumer.assign([TopicPartition(topic, p, at) for p, at in self._positions.items()])

    # --- the loop ------------------------------------------------------------------------------------

    def _work(self) -> None:
        assert self._consumer is not None
        assert self._commands is not None
        self._check_at = self._check_at or time.monotonic() + self._reconcile_s  # sooner if the first was inconclusive
        while not self._stop.is_set():
            self._alive()
            self._heed(self._commands.arrived())
            pause = self.exchange.paused_s()
            if pause:
                self._stop.wait(min(pause, 0.1))
            else:
                for message in self._poll(self._consumer):
                    self._take(message)
            self._listen()
            self._tend(settle=True)
            self._resting.flatten()
            self._resting.look()
            self._resting.protect()
            now = time.monotonic()
            if self._uncommitted and now - self._committed_at > IDLE_COMMIT_S:
                self.commit([])
            if now >= self._check_at and not pause and all(rests(self, name) for name in self.pending):
                self._check_at = now + self._reconcile_s
                try:
                    self.exchange.refresh()
                    self._reconcile()
                except Unavailable as error:
                    _log.warning("exchange_unavailable", detail=str(error), effect="checked again later")

    def _poll(self, consumer: Consumer) -> list[Message]:
        due = min((p.due for p in self.pending.values()), default=float("inf")) - time.monotonic()
        first = consumer.poll(max(0.0, min(0.1, due)))
        if first is None:
            return []
        return list(filter(client.is_record, [first, *consumer.consume(500, 0)]))

    def _take(self, message: Message) -> None:
        """One record of trading_signals."""
        if self._stop.is_set():
            raise TermOver("stopping")
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        metrics.MESSAGES_IN.labels(topics.TRADING_SIGNALS).inc()
        record = next(client.records_of([message], topics.TRADING_SIGNALS), None)
        event = record.event if record is not None else None
        signal = event if isinstance(event, Signal) and event.signal_type != "HOLD" else None
        if isinstance(event, Command) and event.account == self.limits.account:
            # Before the position moves beyond it: the next term reads commands from there on.
            self._heed_all()
        if isinstance(event, Signal):
            self._seen[event.symbol] = (event.close, event.last_trade_id)
        if signal is not None and self.account.answered(signal.id):
            _log.warning("signal_repeated", signal_id=signal.id, partition=partition, offset=offset)
            signal = None
        if signal is not None:
            # Before the position moves: if the rules cannot be had, the signal is still to be decided.
            self._know(signal.symbol)
            self._make_way(signal)
        self._positions[partition] = offset + 1
        self._uncommitted.add(partition)
        if signal is not None and record is not None:
            self._decide(signal, 1, [], "")
            meters.ORDER_LATENCY.observe(max(0.0, (clock.now_ms() - record.appended_ms) / 1_000))

    def _make_way(self, signal: Signal) -> None:
        """Before a sale: end the stop and target that hold what is to be sold. What is left then is decided on."""
        if signal.signal_type != "SELL" or not self.account.standing(signal.symbol):
            return
        self._heed_all()
        if isinstance(self._judged(signal, 1, "")[0], OrderIntended):
            self._resting.unprotect(signal.symbol)

    def _decide(self, signal: Signal, attempt: int, before: list[OrderEvent], instead_of: str) -> None:
        """Decide and commit that together with ``before``; then send what was decided."""
        decided, changes = self._judged(signal, attempt, instead_of)
        self.publish_decided(signal, decided, [*before, *changes])
        for change in changes:
            _log.error("trading_state", state=change.state, detail=change.reason, changed_by=change.changed_by)

    def _judged(
        self, signal: Signal, attempt: int, instead_of: str
    ) -> tuple[OrderIntended | SignalSkipped, Sequence[TradingStateChanged]]:
        symbol = signal.symbol
        instrument = self.until_available(lambda: self.exchange.instrument(symbol))
        now_ms = self.until_available(self.exchange.now_ms)
        averages: dict[int, Decimal] = {}
        if instrument is not None and instrument.averaged and self.limits.terms.kind != "market":
            averages = self.until_available(lambda: self.exchange.averages(symbol))
        view = self.account.view(
            symbol, instrument, but=instead_of, now_ms=now_ms, close=signal.close, averages=averages
        )
        changes, view = supervised(signal, view, self.limits, now_ms)
        return decide(signal, attempt, view, instrument, self.limits, now_ms), changes

    def publish_decided(
        self, signal: Signal, decided: OrderIntended | SignalSkipped, before: Sequence[OrderEvent]
    ) -> None:
        """Commit a decision together with ``before``; then send what was decided."""
        self.step("decided")
        self.commit([*before, decided])
        self.step("intended")
        if isinstance(decided, SignalSkipped):
            meters.SKIPPED.labels(decided.reason).inc()
            _log.info("signal_skipped", signal_id=signal.id, symbol=signal.symbol, reason=decided.reason)
            return
        self.pending[decided.order_id] = Pending(signal)
        self._send(decided)

    # --- orders --------------------------------------------------------------------------------------

    def launch(self, *intents: OrderIntended) -> None:
        """Commit an order, or the legs of a list, that follow from no signal; then send."""
        self.step("decided")
        self.commit(intents)
        self.step("intended")
        for intent in intents:
            self.pending[intent.order_id] = Pending()
        self._send(*intents)

    def _send(self, *intents: OrderIntended) -> None:
        """The one place that sends an order, or a list of two; never for an intent of an earlier term."""
        self._alive()
        self._heed_all()
        first, lost = intents[0], ""
        if reason := withheld(first, self.account.state):
            lost = reason
        elif self.exchange.now_ms() > self.account.open[first.order_id].deadline_ms:
            lost = "not sent: its recvWindow had passed before it could be"
        if lost:
            for intent in intents:
                self.pending[intent.order_id].lost = lost
            return
        self.step("posting")
        if len(intents) > 1:
            answers = self.exchange.place_list(intents)
        elif first.replaces:
            answers = self.exchange.replace(first)
        else:
            answers = {first.order_id: self.exchange.place(first)}
        self.step("posted")
        for order_id, answer in answers.items():
            order, pending = self.account.open.get(order_id), self.pending.get(order_id)
            if order is None or pending is None:
                continue
            if isinstance(answer, Throttled) and (first.replaces or is_protection(first.signal_id)):
                # What it follows from still holds: another one is made once the exchange allows.
                pending.lost = "not processed: the exchange wanted no requests"
            else:
                self.learn(order.intent, answer)
        self.step("recorded")

    def _listen(self) -> None:
        """Learn what the exchange tells by itself."""
        for news in self._stream.heard() if self._stream is not None else ():
            if news == "balances":
                self._check_at = 0.0  # Somebody else may have changed them: the next comparison says so.
                continue
            order = self.account.open.get(news.order_id)
            if order is not None and news.order_id in self.pending:
                self.learn(order.intent, news.message)

    def _tend(self, *, settle: bool) -> None:
        """Ask for orders that are due; with ``settle``, close those that never arrived and decide again."""
        for order_id, pending in list(self.pending.items()):
            if time.monotonic() < pending.due:
                continue
            intent = self.account.open[order_id].intent
            if pending.lost:
                if settle and not self.exchange.paused_s():
                    self._settle(intent, pending)
            elif pending.resend and not self._stop.is_set():
                pending.resend = False
                self._send(intent)
            else:
                answer = self.exchange.ask(intent)
                self.step("asked")
                self.learn(intent, answer)

    def learn(self, intent: OrderIntended, answer: Answer) -> Verdict:
        """Take in an answer: record what it tells, and plan what is next. Returns what it comes to."""
        pending = self.pending[intent.order_id]
        assets = self.account.assets[intent.symbol]
        order, books = self.account.open[intent.order_id], self.account.books
        answer = priced(answer, assets, self.exchange)
        learned = learn(order, answer, books, assets, self.margin_ms, pending.evidence)
        pending.evidence = learned.evidence
        if learned.events:
            self.commit(learned.events)
        if learned.verdict == "ended":
            del self.pending[intent.order_id]
            for other, order in self.account.open.items():
                if intent.list_id and order.intent.list_id == intent.list_id and other in self.pending:
                    self.pending[other].due = 0.0  # One leg of a list has ended, so the other has.
            self._done(intent, learned)
            return "ended"
        pending.known |= learned.verdict == "open"
        if learned.verdict == "never_arrived":
            pending.lost = learned.reason
        elif isinstance(answer, Throttled):
            # Only a request that was answered by "not now" may be sent again, and only by whoever sent it.
            pending.resend = pending.signal is not None and not pending.asked and not pending.known
            pending.due = time.monotonic() + answer.seconds
        else:
            last = ASK_RESTING_S if learned.verdict == "open" and intent.price is not None else ASK_LAST_S
            pending.due = time.monotonic() + min(last, ASK_FIRST_S * 2 ** min(pending.asked, 9))
            pending.asked += 1
            if learned.events and learned.verdict == "unknown":
                _log.warning("order_unresolved", order_id=intent.order_id, detail=learned.reason, effect="being asked")
                self.step("unresolved")
        return learned.verdict

    def _done(self, intent: OrderIntended, learned: Learned) -> None:
        outcome = str(learned.events[-1].__struct_config__.tag).removeprefix("order_") if learned.events else "filled"
        meters.EXECUTED.labels(intent.symbol, intent.side, outcome).inc()
        _log.info(
            "order_ended",
            order_id=intent.order_id,
            symbol=intent.symbol,
            side=intent.side,
            qty=intent.qty,
            outcome=outcome,
            detail=learned.reason or None,
        )

    def _settle(self, intent: OrderIntended, pending: Pending) -> None:
        """Close an order that never arrived, and decide again on its signal, in one transaction."""
        ended = expired(intent, pending.lost)
        if is_flatten(intent.signal_id) or is_protection(intent.signal_id) or intent.replaces:
            # A flatten, a position or an order that rests leads to the next one, as long as there is one.
            _log.warning("order_never_arrived", order_id=intent.order_id, detail=pending.lost)
            del self.pending[intent.order_id]
            self.commit([ended])
            meters.EXECUTED.labels(intent.symbol, intent.side, "expired").inc()
            return
        signal = pending.signal or self.find_signal(intent)
        self._know(intent.symbol)
        del self.pending[intent.order_id]
        meters.EXECUTED.labels(intent.symbol, intent.side, "expired").inc()
        _log.warning("order_never_arrived", order_id=intent.order_id, detail=pending.lost)
        if signal is not None:
            self._decide(signal, intent.attempt + 1, [ended], intent.order_id)
            return
        account, reason, now_ms = self.limits.account, "too_old", self.until_available(self.exchange.now_ms)
        detail = "the signal is no longer in trading_signals"
        skipped = SignalSkipped(
            account, intent.signal_id, intent.symbol, intent.side, reason, detail, intent.signal_close, now_ms * 1_000
        )
        self.commit([ended, skipped])
        meters.SKIPPED.labels(reason).inc()

    def find_signal(self, intent: OrderIntended) -> Signal | None:
        """The signal of an intent of an earlier term, from the log."""
        partition = topics.partition_of(intent.symbol, self._partitions)
        for chunk in read_back(self._kafka, topics.TRADING_SIGNALS, partition):
            self._alive()
            for record in chunk:
                if isinstance(record.event, Signal) and record.event.id == intent.signal_id:
                    return record.event
        return None

    def tend(self) -> None:
        """See Desk."""
        self._alive()
        assert self._commands is not None
        self._heed(self._commands.arrived())
        self._listen()
        self._tend(settle=True)
        self._pause(0.02)

    def ask(self) -> None:
        """See Desk."""
        self._tend(settle=False)

    def seen(self, symbol: str) -> tuple[Decimal, int] | None:
        """See Desk."""
        return self._seen.get(symbol)

    # --- commands ------------------------------------------------------------------------------------

    def _heed_all(self) -> None:
        """Honour every command that the broker has by now."""
        assert self._commands is not None
        self._heed(self._commands.to_end(self._alive))

    def _heed(self, commands: Sequence[Command]) -> None:
        if heed(self, commands, self._secret.get_secret_value()):
            self._check_at = 0.0  # Nobody may resume what does not add up for longer than it takes to look.

    # --- books against the exchange ------------------------------------------------------------------

    def _reconcile(self) -> None:
        """Halt on any difference; go on only if it was this check that halted, and all agrees again."""
        if not all(p.lost or rests(self, order_id) for order_id, p in self.pending.items()):
            return
        found, state = difference(self), self.account.state
        if found is None:
            self._check_at = time.monotonic() + RETRY_S
        elif found and state != "HALTED":
            self._change("HALTED", f"the books differ from the exchange: {found}")
        elif not found and state == "HALTED" and self.account.state_by == RECONCILER:
            before = self.account.before_halt
            self._change(before.state if before else "ACTIVE", "the books agree with the exchange again")

    def _change(self, state: TradingState, reason: str) -> None:
        now_us = self.exchange.now_ms() * 1_000
        self.commit([TradingStateChanged(self.limits.account, state, reason, RECONCILER, now_us)])
        _log.error("trading_state", state=state, detail=reason)

    # --- Kafka ---------------------------------------------------------------------------------------

    def commit(self, events: Sequence[OrderEvent]) -> None:
        """Publish events and the position, all or nothing; the fold follows once that is certain."""
        producer = self._producer
        assert producer is not None
        begun = time.monotonic()
        topic, signals = self._kafka.topic(topics.ORDER_EVENTS), self._kafka.topic(topics.TRADING_SIGNALS)
        failed: list[KafkaError] = []

        def on_delivery(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failed.append(error)

        try:
            producer.begin_transaction()
            for event in events:
                client.send(producer, topic, self._partition(event), event, on_delivery)
            if self._uncommitted and self._consumer is not None:
                moved = [client.position(signals, p, self._positions[p], {}) for p in sorted(self._uncommitted)]
                producer.send_offsets_to_transaction(moved, self._consumer.consumer_group_metadata(), client.TIMEOUT)
            producer.commit_transaction(self._kafka.transaction_timeout_ms / 1000)
        except KafkaException as error:
            raise self._judge(error) from error
        if failed:
            raise Broken(failed[0].str())
        self._uncommitted.clear()
        self._committed_at = time.monotonic()
        for event in events:
            self.account.apply(event)
        self._show()
        metrics.MESSAGES_OUT.labels(topics.ORDER_EVENTS).inc(len(events))
        metrics.TRANSACTION_SECONDS.labels(topics.ORDER_EVENTS).observe(self._committed_at - begun)

    def _show(self) -> None:
        meters.show(self.account)
        self._health.detail(account=self.account.name, mode=self.limits.mode, trading=self.account.state)

    def _partition(self, event: OrderEvent) -> int:
        return topics.partition_of(getattr(event, "symbol", None) or event.account, self._partitions)

    def _judge(self, error: KafkaException) -> Exception:
        reason = error.args[0].str()
        return Fenced(f"{self._name}: {reason}") if client.is_fenced(error) else Broken(reason)

    # --- staying honest ------------------------------------------------------------------------------

    def _alive(self) -> None:
        """A beat; and an end to everything once this instance does not lead any more."""
        self._health.beat()
        if not self._leads():
            raise TermOver("another instance leads")

    def _know(self, symbol: str, *, traded: bool = False) -> None:
        """Have the symbol's rules at hand, and its assets for the books."""
        instrument = self.until_available(lambda: self.exchange.instrument(symbol))
        if instrument is not None:
            self.account.assets[symbol] = instrument.assets
        elif traded:
            raise FatalKafkaError(
                f"order_events has orders of {symbol}, which the exchange does not list: is REST_URL the right one?"
            )

    def until_available(self, question: Callable[[], T]) -> T:
        """The answer of the exchange, however long that takes; nothing is decided meanwhile."""
        said = False
        while True:
            self._alive()
            try:
                answer = question()
            except Unavailable as error:
                if not said:
                    said = True
                    self._health.ready(False, f"waiting for the exchange: {error}")
                    _log.warning("exchange_unavailable", detail=str(error), effect="waiting")
                self._pause(RETRY_S)
                continue
            if said and self._started:
                self._health.ready(True)
            return answer

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise TermOver("stopping")
