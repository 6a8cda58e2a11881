"""A stage for the executor: a real broker, the real exchange simulator, and executors as processes."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import httpx
import pytest
from confluent_kafka.admin import AdminClient
from marketflow_common import codec, topics
from marketflow_common.events import (
    AccountOpened,
    Event,
    OrderFilled,
    OrderIntended,
    Signal,
    SignalSkipped,
    SignalType,
    Trade,
    TradingStateChanged,
)
from marketflow_common.intervals import MINUTE, window_start
from marketflow_common.kafka.source import Publisher
from marketflow_common.settings import KafkaSettings
from marketflow_stack import testing
from marketflow_stack.testing import CreatedTopics, Program, Programs, ask, eventually, free_port, read_all

PARTITIONS = 3
SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
T = TypeVar("T")
ENDS = {"order_rejected", "order_canceled", "order_expired"}


class Exchange(testing.Exchange):
    """The simulator, with a market that runs."""

    def ledger(self) -> Any:
        return ask(self.url + "/sim/ledger")

    def price(self, symbol: str) -> Decimal:
        """0 for a symbol that it does not have."""
        answer = httpx.get(f"{self.url}/api/v3/ticker/price", params={"symbol": symbol}, timeout=30)
        return Decimal(answer.json()["price"]) if answer.status_code == 200 else Decimal(0)

    def order(self, symbol: str, side: str, quantity: str) -> None:
        """An order by somebody else than the executor."""
        query = urlencode(
            {
                "symbol": symbol,
                "side": side,
                "type": "MARKET",
                "quantity": quantity,
                "timestamp": time.time_ns() // 1_000_000,
            }
        )
        signature = hmac.new(b"simulator-secret", query.encode(), hashlib.sha256).hexdigest()
        headers = {"X-MBX-APIKEY": "simulator"}
        url = f"{self.url}/api/v3/order?{query}&signature={signature}"
        httpx.post(url, headers=headers, timeout=30).raise_for_status()

    def trades(self, symbol: str, from_id: int) -> Any:
        """What has been traded from an id on."""
        return ask(f"{self.url}/sim/trades?symbol={symbol}&from_id={from_id}")

    def transfer(self, asset: str, delta: str) -> None:
        """Put in or take out funds, as no order does."""
        ask(self.url + "/sim/balance", {"asset": asset, "delta": delta}, "POST")

    def cancel(self, symbol: str, client_order_id: str) -> None:
        """Cancel an order as its owner might on the exchange's own page."""
        ask(self.url + "/sim/orders/cancel", {"symbol": symbol, "client_order_id": client_order_id}, "POST")

    def posts(self) -> int:
        """POSTs of orders that have come in, however they were answered."""
        return sum(self.ledger()["requests"].get("POST /api/v3/order", {}).values())


class Executor(Program):
    """One executor process."""

    def leads(self) -> bool:
        state = self.health()
        return bool(state.get("ready")) and state.get("role") == "leader"

    def stands_by(self) -> bool:
        state = self.health()
        return bool(state.get("ready")) and state.get("role") == "standby"

    def frozen(self) -> bool:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


class Stage:
    """Everything that a test of the executor needs to set and to see."""

    def __init__(self, created: CreatedTopics, programs: Programs, **exchange: object) -> None:
        """``exchange``: settings of the simulator."""
        self._programs, self._topics = programs, created
        settings = {"autostart": "true", "symbols": ",".join(SYMBOLS), "weight_limit": 0, **exchange}
        self.exchange = programs.exchange(Exchange, **settings)
        for symbol in SYMBOLS:
            self.exchange.wait_for(f"/api/v3/ticker/price?symbol={symbol}")
        self.kafka = KafkaSettings(bootstrap_servers=created.bootstrap, topic_prefix=created.prefix)
        self.executors: list[Executor] = []
        self._publishers: dict[tuple[str, int], Publisher] = {}
        self._count = 0
        self.settings: dict[str, object] = {
            "KAFKA_BOOTSTRAP_SERVERS": created.bootstrap,
            "KAFKA_TOPIC_PREFIX": created.prefix,
            "EXECUTOR_MODE": "testnet",
            "EXECUTOR_REST_URL": self.exchange.url,
            "EXECUTOR_API_KEY": "simulator",
            "EXECUTOR_API_SECRET": "simulator-secret",
            "EXECUTOR_MAX_SIGNAL_AGE_S": "0",
            # Shorter than the defaults, so that what is lost is known to be lost sooner.
            "EXECUTOR_RECV_WINDOW_MS": "3000",
            "EXECUTOR_NOT_FOUND_MARGIN_MS": "500",
            # As long as that allows: a busy machine must not make an answer an unknown one.
            "EXECUTOR_REST_TIMEOUT_S": "2.9",
        }

    def start(self, *step: str, leads: bool = True, **settings: object) -> Executor:
        """An executor; with a step, one that kills or freezes itself there."""
        port = free_port()
        command = [str(Path(__file__).with_name("runner.py")), *step] if step else ["-m", "marketflow_executor"]
        more = {f"EXECUTOR_{name.upper()}": value for name, value in settings.items()}
        all_settings = {**self.settings, **more, "EXECUTOR_HTTP_PORT": port}
        executor = self._programs.start(Executor, "executor", command, all_settings, port)
        self.executors.append(executor)
        if leads:
            self.wait(executor.leads)
        return executor

    def members(self, group: str) -> int:
        """Members of a consumer group as the broker sees them now."""
        admin = AdminClient({"bootstrap.servers": self.kafka.bootstrap_servers, "log_level": 0})
        name = self.kafka.topic(group)
        return len(admin.describe_consumer_groups([name])[name].result().members)

    def publish(self, topic: str, symbol: str, *events: Event) -> None:
        partition = topics.partition_of(symbol, PARTITIONS)
        publisher = self._publishers.get((topic, partition))
        if publisher is None:
            publisher = self._publishers[topic, partition] = Publisher(self.kafka, f"test-{topic}", topic, partition)
            publisher.open()
        publisher.publish(events)

    def signal(self, symbol: str, signal_type: SignalType, **fields: Any) -> Signal:
        """Publish a signal at the exchange's price of now."""
        self._count += 1
        now = time.time_ns() // 1_000
        values: dict[str, Any] = {
            "id": f"test-{symbol.lower()}-{self._count:04d}",
            "strategy": "test",
            "parameters": "",
            "symbol": symbol,
            "interval": "1m",
            "open_time": window_start(now) - MINUTE,
            "close": fields.get("close") or self.exchange.price(symbol),
            "volume": Decimal(1),
            "momentum": Decimal(0),
            "signal_type": signal_type,
            "last_trade_id": 0,
            "levels": {},
            "reasons": (),
        }
        signal = Signal(**(values | fields))
        self.publish(topics.TRADING_SIGNALS, symbol, signal)
        return signal

    def trade(self, symbol: str, trade_id: int, price: str) -> Trade:
        now = time.time_ns() // 1_000
        trade = Trade("test", symbol, trade_id, Decimal(price), Decimal(1), False, now, now)
        self.publish(topics.OHLCV_RAW, symbol, trade)
        return trade

    def events(self) -> list[Any]:
        """All committed order events, in order within each symbol."""
        records = read_all(self._topics.bootstrap, self._topics["order_events"])
        return [codec.decode(topics.ORDER_EVENTS, record.value()) for record in records]

    def of(self, signal: Signal) -> list[str]:
        """The kinds of event that a signal has led to, in order."""
        return [codec.schema_of(e) for e in self.events() if getattr(e, "signal_id", None) == signal.id]

    def wait(self, check: Callable[[], T]) -> T:
        """Until it is true."""
        return eventually(check)

    def answered(self, *signals: Signal) -> None:
        """Wait until each signal has been skipped or its last order has ended."""

        def done() -> bool:
            open_orders: dict[str, set[str]] = defaultdict(set)
            seen = set()
            for event in self.events():
                if isinstance(event, SignalSkipped):
                    seen.add(event.signal_id)
                elif isinstance(event, OrderIntended):
                    seen.add(event.signal_id)
                    open_orders[event.signal_id].add(event.order_id)
                elif codec.schema_of(event) in ENDS or (isinstance(event, OrderFilled) and event.complete):
                    open_orders[event.signal_id].discard(event.order_id)
            missing = [s.id for s in signals if s.id not in seen or open_orders[s.id]]
            assert not missing, f"no end yet of {missing}"
            return True

        self.wait(done)

    def check_books(self) -> None:
        """Orders, fills and balances of the log equal the exchange's ledger to the last digit."""
        ledger, events = self.exchange.ledger(), self.events()
        filled = [e for e in events if isinstance(e, OrderFilled)]
        theirs = Counter(
            (
                f["clientOrderId"],
                f["id"],
                f["side"],
                *(Decimal(f[n]) for n in ("price", "qty", "quoteQty", "commission")),
            )
            for f in ledger["fills"]
        )
        ours = Counter((e.order_id, e.fill_id, e.side, e.price, e.qty, e.quote_qty, e.commission) for e in filled)
        assert ours == theirs
        assert all(count == 1 for count in Counter(o["clientOrderId"] for o in ledger["orders"]).values())
        opened = [e for e in events if isinstance(e, AccountOpened)]
        assert len(opened) == 1
        there = {asset: Decimal(b["free"]) + Decimal(b["locked"]) for asset, b in ledger["balances"].items()}
        start = defaultdict(Decimal, opened[0].balances)
        last: dict[str, OrderFilled] = {}
        realized: dict[str, Decimal] = defaultdict(Decimal)
        for event in filled:
            last[event.symbol] = event
            realized[event.symbol] += event.realized_pnl
        for symbol, event in last.items():
            base = symbol.removesuffix("USDT")
            assert event.position_qty == there[base] - start[base]
        quote = sum(realized.values(), Decimal(0)) - sum((e.position_cost for e in last.values()), Decimal(0))
        assert quote == there["USDT"] - start["USDT"]

    def check_one_each(self, *signals: Signal) -> None:
        """Each signal got one fill-bearing order at most, and the exchange has no order that the log does not know."""
        events, ledger = self.events(), self.exchange.ledger()
        intents = Counter(e.order_id for e in events if isinstance(e, OrderIntended))
        assert all(count == 1 for count in intents.values()), intents
        assert {o["clientOrderId"] for o in ledger["orders"]} <= set(intents)
        signal_of = {e.order_id: e.signal_id for e in events if isinstance(e, OrderIntended)}
        per_signal = Counter(signal_of[o["clientOrderId"]] for o in ledger["orders"])
        assert all(count == 1 for count in per_signal.values()), per_signal
        assert set(per_signal) == {s.id for s in signals}

    def orders(self, *statuses: str) -> list[Any]:
        """What the exchange's ledger says of each order, of those with such a status."""
        return [o for o in self.exchange.ledger()["orders"] if not statuses or o["status"] in statuses]

    @staticmethod
    def protects(order_id: str) -> bool:
        """Whether it is a stop or a target of the executor's own, which no signal asked for."""
        return order_id.startswith("mf-protect:")

    def standing(self) -> list[Any]:
        """Stops and targets that are open at the exchange."""
        return [o for o in self.orders("NEW", "PARTIALLY_FILLED") if self.protects(o["clientOrderId"])]

    def last_words(self) -> dict[str, str]:
        """The kind of the last event of each order; that of its end, where it has ended."""
        last: dict[str, str] = {}
        for event in self.events():
            kind = codec.schema_of(event)
            if isinstance(event, OrderFilled) and not event.complete:
                continue
            if hasattr(event, "order_id") and last.get(event.order_id) not in {*ENDS, "order_filled"}:
                last[event.order_id] = kind
        return last

    def check_standing(self) -> None:
        """The books equal the ledger; one fill-bearing order a signal; one protection a symbol; nothing has halted."""

        def agrees() -> bool:
            self.check_books()
            open_there = {o["clientOrderId"] for o in self.orders("NEW", "PARTIALLY_FILLED")}
            said = self.last_words()
            assert open_there == {name for name, last in said.items() if last not in {*ENDS, "order_filled"}}
            return True

        self.wait(agrees)
        events = self.events()
        intents = {e.order_id: e for e in events if isinstance(e, OrderIntended)}
        assert len(intents) == sum(isinstance(e, OrderIntended) for e in events), "an order was intended twice"
        filled, lists, held = Counter[str](), defaultdict[str, set[str]](set), defaultdict[str, Decimal](Decimal)
        for order in self.orders():
            intent = intents[order["clientOrderId"]]
            if Decimal(order["executedQty"]) and not self.protects(intent.order_id):
                filled[intent.signal_id] += 1
            if order["status"] in ("NEW", "PARTIALLY_FILLED") and self.protects(intent.order_id):
                lists[intent.symbol].add(intent.list_id or intent.order_id)
                if order["type"] == "STOP_LOSS_LIMIT":
                    held[intent.symbol] += Decimal(order["origQty"])
        assert all(times == 1 for times in filled.values()), filled
        assert all(len(one) == 1 for one in lists.values()), lists
        assert all(qty <= self.position(symbol) for symbol, qty in held.items()), held
        assert not [e for e in events if isinstance(e, TradingStateChanged) and e.changed_by == "reconciliation"]

    def position(self, symbol: str) -> Decimal:
        """What the log says is held."""
        last = [e for e in self.events() if isinstance(e, OrderFilled) and e.symbol == symbol]
        return last[-1].position_qty if last else Decimal(0)

    def settled(self, *signals: Signal) -> None:
        """Ends a test: each of the signals has one order at the exchange, and the books equal its ledger."""
        self.answered(*signals)
        self.check_one_each(*signals)
        self.check_books()


@pytest.fixture
def make_stage() -> type[Stage]:
    return Stage


@pytest.fixture
def stage(topics: CreatedTopics, programs: Programs) -> Stage:
    return Stage(topics, programs)
