"""The chain behind an order: it is whole where nothing went wrong, and each thing that does not fit is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from marketflow_common import events
from marketflow_common.codec import schema_of
from marketflow_operator.audit.model import Evidence, Seen
from marketflow_operator.lineage import Chain, Link, Record, cause_of, judge
from marketflow_operator.trace import event_of
from marketflow_operator.warehouse_commands import outcome, plain, show_chain

TABLES = {
    "trade": "RAW.TRADES",
    "candle": "STAGING.OHLCV_STREAM",
    "signal": "ANALYTICS.SIGNALS_STREAM",
    "command": "ANALYTICS.COMMANDS",
}
LINKS = [
    "order_has_one_intent",
    "fills_fit_the_order",
    "order_fits_its_signal",
    "signal_fits_its_candle",
    "revisions_follow",
    "trades_are_there",
    "trades_fold_to_the_candle",
    "rows_say_the_same",
]


def record_of(seen: Seen, **more: Any) -> Record:
    table = TABLES.get(schema_of(seen.event), "ANALYTICS.ORDER_EVENTS")
    return Record(seen.where, f"id-{seen.where.topic}", seen.appended_ms, seen.event, table, True, "landed", **more)


def chain_of(evidence: Evidence, flat: bool = False) -> Chain:
    """The chain of the first order whose candle has trades, or has none."""
    signals = {seen.event.id: seen for seen in evidence.records["trading_signals"]}
    candles = {(seen.event.symbol, seen.event.open_time): seen for seen in evidence.records["ohlcv_agg"]}
    for seen in evidence.records["order_events"]:
        if not isinstance(seen.event, events.OrderIntended):
            continue
        signal = signals[seen.event.signal_id]
        candle = candles[signal.event.symbol, signal.event.open_time]
        if (candle.event.trade_count == 0) is not flat:
            continue
        order = seen.event.order_id
        about = [s for s in evidence.records["order_events"] if getattr(s.event, "order_id", None) == order]
        trades = [
            s
            for s in evidence.records["ohlcv_raw"]
            if isinstance(s.event, events.Trade) and s.event.symbol == candle.event.symbol
        ]
        first, last = candle.event.first_trade_id, candle.event.last_trade_id
        return Chain(
            order,
            "main",
            [record_of(s) for s in about],
            signal=[record_of(signal)],
            candles=[record_of(candle)],
            trades=[record_of(s) for s in trades if first <= s.event.trade_id <= last],
            before=[record_of(s) for s in trades if flat and s.event.trade_id == last],
        )
    raise AssertionError("the world has no such order")


@pytest.fixture
def chain(world: Callable[..., Evidence]) -> Chain:
    return chain_of(world())


def judged(chain: Chain) -> dict[str, Link]:
    chain.links = judge(chain)
    return {link.name: link for link in chain.links}


def changed(record: Record, **fields: Any) -> Record:
    return replace(record, event=msgspec.structs.replace(record.event, **fields))


def test_a_chain_in_which_nothing_went_wrong_is_whole(world: Callable[..., Evidence]) -> None:
    for flat in (False, True):
        chain = chain_of(world(), flat)
        links = judged(chain)
        assert list(links) == LINKS
        assert {name: link for name, link in links.items() if link.ok is not True} == {}
        assert outcome(chain) == 0


STEP = Decimal("0.00000001")
DAMAGE: dict[str, tuple[str, int, Callable[[Any], dict[str, Any]], str]] = {
    "the signal's close": ("signal", 0, lambda e: {"close": e.close + STEP}, "order_fits_its_signal"),
    "the signal's volume": ("signal", 0, lambda e: {"volume": e.volume + STEP}, "signal_fits_its_candle"),
    "the signal's side": ("signal", 0, lambda e: {"signal_type": "HOLD"}, "order_fits_its_signal"),
    "the signal's last trade": ("signal", 0, lambda e: {"last_trade_id": 1}, "signal_fits_its_candle"),
    "the candle's close": ("candles", 0, lambda e: {"close": e.close + STEP}, "signal_fits_its_candle"),
    "the candle's high": ("candles", 0, lambda e: {"high": e.high + STEP}, "trades_fold_to_the_candle"),
    "the candle's revision": ("candles", 0, lambda e: {"revision": 1}, "signal_fits_its_candle"),
    "a trade's quantity": ("trades", 0, lambda e: {"qty": e.qty + STEP}, "trades_fold_to_the_candle"),
    "a trade's side": ("trades", 0, lambda e: {"buyer_is_maker": not e.buyer_is_maker}, "trades_fold_to_the_candle"),
    "a trade's id": ("trades", 0, lambda e: {"trade_id": e.trade_id - 1}, "trades_are_there"),
    "the order's quantity": ("events", 0, lambda e: {"qty": e.qty + STEP}, "fills_fit_the_order"),
    "an event's signal": ("events", 1, lambda e: {"signal_id": "another"}, "order_has_one_intent"),
    "a fill's side": ("events", 2, lambda e: {"side": "HOLD"}, "fills_fit_the_order"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_digit_that_does_not_fit_is_named_by_its_link(chain: Chain, what: str) -> None:
    part, index, change, name = DAMAGE[what]
    records = list(getattr(chain, part))
    records[index] = changed(records[index], **change(records[index].event))
    setattr(chain, part, records)
    assert judged(chain)[name].ok is False
    assert outcome(chain) == 1


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("signal", "order_fits_its_signal"),
        ("candles", "signal_fits_its_candle"),
        ("trades", "trades_are_there"),
        ("events", "order_has_one_intent"),
    ],
)
def test_what_is_absent_is_named_and_where_not_all_could_be_read_it_is_not_judged(
    chain: Chain, part: str, name: str
) -> None:
    records = list(getattr(chain, part))
    setattr(chain, part, records[1:])
    assert judged(chain)[name].ok is False
    assert outcome(chain) == 1
    chain.unread = ["Kafka is away"]
    if part != "events":
        assert judged(chain)[name].ok is None
    setattr(chain, part, records)
    judged(chain)
    assert outcome(chain) == 3  # whole as far as it is known, and that is not far enough


def test_what_stands_twice_is_named(chain: Chain) -> None:
    chain.trades = [*chain.trades, chain.trades[0]]
    assert f"trade {chain.trades[0].event.trade_id} stands 2 times" in judged(chain)["trades_are_there"].detail
    chain.signal = [*chain.signal, *chain.signal]
    assert "stands 2 times" in judged(chain)["order_fits_its_signal"].detail


def test_a_revision_is_folded_from_the_trades_that_it_does_not_miss(chain: Chain) -> None:
    whole = chain.candles[0]
    late = chain.trades[0].event
    rest = [record.event for record in chain.trades[1:]]
    assert rest
    zero = Decimal(0)
    taker = [t for t in rest if not t.buyer_is_maker]
    first = changed(
        whole,
        missing=((late.trade_id, late.trade_id),),
        open=rest[0].price,
        high=max(t.price for t in rest),
        low=min(t.price for t in rest),
        volume=sum((t.qty for t in rest), zero),
        quote_volume=sum((t.qty * t.price for t in rest), zero),
        trade_count=len(rest),
        taker_buy_volume=sum((t.qty for t in taker), zero),
        taker_buy_quote_volume=sum((t.qty * t.price for t in taker), zero),
    )
    chain.signal = [changed(chain.signal[0], volume=first.event.volume)]
    chain.candles = [first, changed(whole, revision=1)]
    links = judged(chain)
    assert [link.name for link in links.values() if link.ok is not True] == []
    assert links["revisions_follow"].detail == "2 said of it"
    chain.candles = [first, changed(whole, revision=2)]
    assert judged(chain)["revisions_follow"].ok is False


def test_rows_that_differ_or_lack_are_named_and_those_on_their_way_are_not(chain: Chain) -> None:
    chain.signal = [replace(chain.signal[0], row="not landed yet")]
    link = judged(chain)["rows_say_the_same"]
    assert link.ok is True
    assert "1 not yet" in link.detail
    chain.signal = [replace(chain.signal[0], row="missing")]
    assert f"{chain.signal[0].where} is not in ANALYTICS.SIGNALS_STREAM" in judged(chain)["rows_say_the_same"].detail
    chain.signal = [replace(chain.signal[0], row="landed", problems=("CLOSE 1 instead of 2",))]
    assert f"{chain.signal[0].where}: CLOSE 1 instead of 2" in judged(chain)["rows_say_the_same"].detail
    chain.signal = [replace(chain.signal[0], row="not asked", problems=())]
    assert judged(chain)["rows_say_the_same"].ok is None
    chain.signal = [replace(chain.signal[0], row="landed", kept=False)]
    assert "Kafka has them no more" in judged(chain)["rows_say_the_same"].detail


# --- from a fill, from a command ---------------------------------------------------------------------


def protected(chain: Chain) -> Chain:
    """An order that sells half of what the chain's order has bought."""
    fill = next(record for record in chain.events if isinstance(record.event, events.OrderFilled))
    intent = chain.events[0]
    name = f"protect:{fill.event.symbol}:{fill.event.fill_id}"
    held = fill.event.position_qty
    own = changed(intent, order_id=f"mf-{name}-1s", signal_id=name, side="SELL", qty=held / 2, order_type="LIMIT")
    own = replace(own, where=own.where._replace(offset=fill.where.offset + 5))
    return Chain(own.event.order_id, "main", [own], cause_of(name), fill=[fill], entry=chain)


def test_a_protection_follows_from_the_fill_that_it_protects(chain: Chain) -> None:
    judged(chain)
    above = protected(chain)
    links = judged(above)
    assert list(links) == [
        "order_has_one_intent", "fills_fit_the_order", "order_fits_what_it_protects", "rows_say_the_same"
    ]  # fmt: skip
    assert outcome(above) == 0
    above.events = [changed(above.events[0], qty=above.fill[0].event.position_qty * 2)]
    assert "is held after fill" in judged(above)["order_fits_what_it_protects"].detail
    above = protected(chain)
    above.fill = []
    assert judged(above)["order_fits_what_it_protects"].detail.endswith("is nowhere")


def test_what_is_wrong_behind_a_protection_makes_its_chain_wrong(chain: Chain) -> None:
    chain.trades = chain.trades[1:]
    judged(chain)
    above = protected(chain)
    assert all(link.ok for link in judged(above).values())
    assert outcome(above) == 1


def test_a_flatten_follows_from_its_command(chain: Chain) -> None:
    intent = chain.events[0]
    name = f"command:c-1:{intent.event.symbol}"
    own = changed(intent, order_id="mf-x-1", signal_id=name, side="SELL")
    state = events.TradingStateChanged("main", "REDUCE_ONLY", "flatten by command", "operator:a", 1, "c-1", "flatten")
    command = events.Command("c-1", "main", "flatten", "cli:a", 1, None, "sig")
    above = Chain(
        "mf-x-1", "main", [own], cause_of(name),
        state=[replace(own, event=state)], command=[replace(own, event=command)],
    )  # fmt: skip
    assert judged(above)["order_fits_its_command"].ok is True
    above.command = [replace(own, event=msgspec.structs.replace(command, action="halt"))]
    assert "the command is a halt" in judged(above)["order_fits_its_command"].detail
    above.command = []
    assert "command of command:c-1:" in judged(above)["order_fits_its_command"].detail


# --- rows and words ----------------------------------------------------------------------------------


def test_an_event_is_what_its_row_says(world: Callable[..., Evidence]) -> None:
    evidence = world()
    assert evidence.warehouse is not None
    seen = {s.where: s.event for topic in evidence.records.values() for s in topic}
    compared = set()
    for table, rows in evidence.warehouse.tables.items():
        for row in rows:
            event = seen[row["KAFKA_TOPIC"], row["KAFKA_PARTITION"], row["KAFKA_OFFSET"]]  # type: ignore[index]
            if table != "RAW.FEED_EVENTS":
                assert event_of(row, table) == event
                compared.add(type(event))
    assert len(compared) >= 7


def test_the_chain_is_shown_and_told_as_json(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    judged(chain)
    show_chain(chain)
    said = capsys.readouterr().out
    assert f"order {chain.order_id}" in said
    assert "The chain is whole: 8 of 8 links hold." in said
    for record in (*chain.events, *chain.signal, *chain.candles):
        assert str(record.where) in said
    told = plain(chain)
    assert len(told["records"]) == len(list(chain.records))
    assert told["records"][0]["topic"] == "order_events"
