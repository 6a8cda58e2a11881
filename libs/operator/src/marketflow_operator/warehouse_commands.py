"""The commands `trace`, `backfill` and `rebuild`: what is asked of the warehouse, and done to it.

Wiring and words only, on the command line of cli.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from . import rebuild as rebuilding
from .backfill import TABLE, Backfill, Outcome, neighbours
from .cli import CANNOT, CODES, HOLDS, USAGE, WRONG, AsJson, State, app, err, fail, guarded, look_at, mention, out
from .dumps import dumps_between
from .fetching import BASE, Folder, Site, Source
from .lineage import Chain, Link, Record
from .report import encode
from .session import Session
from .trace import Unknown
from .trace import trace as follow
from .usage import WrongUsage, check_environment, check_url, state_folder

__all__ = ["backfill", "rebuild", "show_chain", "trace"]

WIDE = 150
"""Columns from which on records are shown as a table."""
FEW = 6
"""Trades that are listed one by one; of more, the first and the last."""


@contextmanager
def progress(quietly: bool) -> Iterator[Callable[[str], None]]:
    """What tells on a terminal how far something is."""
    if quietly or not err.is_terminal:
        yield lambda _: None
        return
    with err.status("…") as line:
        yield line.update


# --- trace -------------------------------------------------------------------------------------------


@app.command(epilog=CODES)
@guarded
def trace(
    order: Annotated[str, typer.Argument(help="Client order id (mf-…), or the exchange's number of the order.")],
    account: Annotated[
        str | None, typer.Option(help="Account of the executor, where several have such an order.")
    ] = None,
    kafka: Annotated[str | None, typer.Option(help="Broker, host:port.")] = None,
    as_json: AsJson = False,
    state: State = None,
) -> int:
    """Follow an order back: fills, intent, signal, candle and the candle's trades.

    Each with its topic, partition, offset and warehouse row; and whether the links fit: the trades fold to the candle
    to the last digit, the signal's close is the candle's, the order is the signal's, each row says what its record
    says. 0: the chain is whole; 1: something does not fit; 3: something could not be read.
    """
    mention(check_environment())
    order = order.strip()
    if not order:
        raise WrongUsage("ORDER is empty: it is a client order id (mf-…), or the exchange's number of the order")
    _, places = look_at(state, kafka)
    try:
        with progress(as_json) as say:
            chain = follow(places, order, account, say)
    except Unknown as error:
        return fail(str(error), USAGE)
    if as_json:
        sys.stdout.buffer.write(encode(plain(chain) | {"ok": outcome(chain) == HOLDS}))
        sys.stdout.buffer.flush()
    else:
        show_chain(chain)
    return outcome(chain)


def outcome(chain: Chain) -> int:
    """0: whole; 1: a link does not hold; 3: not everything could be looked at."""
    links = [link for one in chain.chains for link in one.links]
    if any(link.ok is False for link in links):
        return WRONG
    return CANNOT if any(link.ok is None for link in links) or any(one.unread for one in chain.chains) else HOLDS


def plain(chain: Chain) -> dict[str, Any]:
    """As JSON holds it."""
    return {
        "order_id": chain.order_id,
        "account": chain.account,
        "cause": chain.cause,
        "records": [_plain(record) for record in chain.records],
        "links": [{"name": link.name, "ok": link.ok, "detail": link.detail} for link in chain.links],
        "unread": list(chain.unread),
        "entry": plain(chain.entry) if chain.entry is not None else None,
    }


def _plain(record: Record) -> dict[str, Any]:
    return {
        "topic": record.where.topic,
        "topic_id": record.topic_id,
        "partition": record.where.partition,
        "offset": record.where.offset,
        "appended_ms": record.appended_ms,
        "in_kafka": record.kept,
        "table": record.table,
        "row": record.row,
        "landed_at": record.landed_at.isoformat() if record.landed_at else None,
        "problems": list(record.problems),
        "event": record.event,
    }


def show_chain(chain: Chain) -> None:
    """The records as a table, the links below it, and the outcome; of each order of the chain."""
    ids: dict[str, str] = {}
    for one in chain.chains:
        if one is not chain:
            out.print(Text(f"\nwhich follows from order {one.order_id}", "bold"))
        out.print(Text.assemble(("order ", "bold"), (one.order_id, "bold"), f"  {_title(one)}"))
        groups = list(_grouped(one))
        for records in groups:
            ids |= {record.where.topic: record.topic_id for record in records if record.topic_id}
        _list(groups)
        for link in one.links:
            out.print(_link(link))
    out.print(Text("KAFKA_TOPIC_ID: " + ", ".join(f"{topic} {id_}" for topic, id_ in sorted(ids.items())), "dim"))
    for word in chain.unread:
        out.print(Text(f"not read: {word}", "yellow"))
    links = [link for one in chain.chains for link in one.links]
    good = sum(link.ok is True for link in links)
    code = outcome(chain)
    words = {HOLDS: "The chain is whole", WRONG: "The chain is not whole", CANNOT: "Not all of the chain could be read"}
    styles = {HOLDS: "bold green", WRONG: "bold red", CANNOT: "bold yellow"}
    out.print(Text(f"{words[code]}: {good} of {len(links)} links hold.", styles[code]))


def _list(groups: list[list[Record]]) -> None:
    """A table; on a narrow terminal, where each cell of it would be folded, two lines for each record."""
    rows = [(*_cells(records), "" if _well(records) else "bold red") for records in groups]
    if out.width < WIDE:
        for what, where, appended, row, landed, style in rows:
            out.print(Text(what, style))
            out.print(
                Text(f"    {where}, appended {appended}; {row}{', landed ' if landed else ''}{landed}", style or "dim")
            )
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("record", "topic/partition@offset", "appended (UTC)", "row", "landed (UTC)"):
        table.add_column(name, overflow="fold", no_wrap=name != "record")
    for what, where, appended, row, landed, style in rows:
        table.add_row(what, where, appended, row, landed, style=style)
    out.print(table)


def _title(chain: Chain) -> str:
    intent = chain.intent
    if intent is None:
        return f"of account {chain.account}; its intent is not there"
    amount = f"{intent.qty:f}" if intent.qty is not None else f"for {intent.quote_qty:f}"
    price = f" at {intent.price:f}" if intent.price is not None else ""
    more = f", in place of {intent.replaces}" if intent.replaces else ""
    kind = intent.exchange_type or intent.order_type
    return f"{intent.side} {amount} {intent.symbol} {kind}{price}, account {chain.account} ({intent.mode}){more}"


def _grouped(chain: Chain) -> Iterator[list[Record]]:
    """One by one, but many trades as one group."""
    trades = list(chain.trades)
    for record in chain.records:
        if len(trades) <= FEW or record.kind != "trade":
            yield [record]
    if len(trades) > FEW:
        yield trades


def _cells(records: list[Record]) -> tuple[str, str, str, str, str]:
    first, last = records[0], records[-1]
    landed = [record.landed_at for record in records if record.landed_at is not None]
    moment = max(landed).strftime("%Y-%m-%d %H:%M:%S") if landed else ""
    if len(records) == 1:
        row = first.table if first.row == "landed" else first.row
        where = str(first.where) if first.kept else f"{first.where} (its row alone)"
        return _what(first), where, _time(first.appended_ms), row, moment
    lowest, highest = (f(record.where for record in records) for f in (min, max))
    there = sum(record.row == "landed" for record in records)
    what = f"{len(records):,} trades {first.event.trade_id} to {last.event.trade_id}"
    appended = max(record.appended_ms for record in records)
    return what, f"{lowest} to {highest.offset}", _time(appended), f"{first.table}: {there:,}", moment


def _what(record: Record) -> str:
    event = record.event
    match record.kind:
        case "order_filled":
            return f"order_filled {event.side} {event.qty:f} at {event.price:f}, fill {event.fill_id}"
        case "order_accepted":
            return f"order_accepted as {event.exchange_order_id}"
        case "order_intended":
            return f"order_intended, attempt {event.attempt}"
        case "signal":
            return f"signal {event.signal_type} {event.id} ({event.strategy})"
        case "candle":
            return f"candle {event.symbol} {event.interval} {_minute(event.open_time)}, revision {event.revision}"
        case "trade":
            return f"trade {event.trade_id}: {event.qty:f} at {event.price:f}"
        case "command":
            return f"command {event.action} {event.id} by {event.asked_by}"
        case _:
            return record.kind


def _well(records: list[Record]) -> bool:
    return not any(record.problems or record.row == "missing" for record in records)


def _time(ms: int) -> str:
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(ms // 1_000))
    return f"{moment}.{ms % 1_000:03}"


def _minute(us: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(us // 1_000_000))


def _link(link: Link) -> Text:
    mark, style = {True: ("ok", "green"), False: ("WRONG", "bold red"), None: ("NOT RUN", "bold yellow")}[link.ok]
    return Text.assemble((f"{mark:8}", style), f"{link.name}: {link.detail}")


# --- backfill ----------------------------------------------------------------------------------------


@app.command(epilog=CODES)
@guarded
def backfill(
    symbol: Annotated[str, typer.Option(help="Symbol, such as BTCUSDT.")],
    first: Annotated[str, typer.Option("--from", help="First day, such as 2024-08-08; or month, such as 2024-08.")],
    last: Annotated[str | None, typer.Option("--to", help="Last day or month, inclusive (default: the first).")] = None,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Folder that has the dumps; nothing is fetched then.")
    ] = None,
    url: Annotated[str | None, typer.Option(help=f"Where dumps are fetched from (default: {BASE}).")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Take out what has landed of these files, and land it anew.")
    ] = False,
    as_json: AsJson = False,
    state: State = None,
) -> int:
    """Load Binance's public trade dumps into RAW.TRADES_BACKFILL, each file once and whole.

    Bytes are proved by the .CHECKSUM, every row is looked at, and nothing of a file lands if one of them is wrong. Run
    it again after an interruption: what has landed is passed over, what was being fetched goes on. dbt unites these
    trades with the stream's by their ids.
    """
    mention(check_environment())
    if folder is not None and url is not None:
        raise WrongUsage("--dir and --url: name one of them")
    if folder is not None and not folder.is_dir():
        raise WrongUsage(f"--dir is {folder}, which is no folder")
    check_url("--url", url or BASE)
    try:
        dumps = dumps_between(symbol.strip().upper(), first.strip(), (last or first).strip())
    except ValueError as error:
        raise WrongUsage(str(error)) from None
    _, places = look_at(state, None)
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        session = Session(places.snowflake, "backfill")
        stack.callback(session.close)
        source: Source
        if folder is not None:
            source = Folder(folder)
        else:
            site = Site(url or BASE, state_folder(state) / "backfill")
            stack.callback(site.close)
            source = site
        work = Backfill(session, source, dumps[0].symbol, again=again)
        for dump in dumps:
            with progress(as_json) as say:
                outcomes.append(work.load(dump, say))
            if not as_json:
                _tell(outcomes[-1])
    gaps = neighbours(outcomes)
    code = code_of(outcomes)
    if as_json:
        found = {"ok": code == HOLDS, "table": TABLE, "files": [vars(one) for one in outcomes], "gaps": gaps}
        sys.stdout.buffer.write(encode(found))
        sys.stdout.buffer.flush()
        return code
    for line in gaps:
        out.print(Text(line, "yellow"))
    landed = [one for one in outcomes if one.state == "landed"]
    rows, seconds = sum(one.rows for one in landed), sum(one.seconds for one in landed)
    pace = f", {rows / seconds:,.0f} a second" if seconds and rows else ""
    there = sum(one.state == "there" for one in outcomes)
    words = f"{rows:,} trades of {len(landed)} files have landed in {TABLE}{pace}; {there} files had landed before"
    failed = len(outcomes) - len(landed) - there
    more = f"; {failed} could not be landed" if failed else ""
    out.print(Text(f"{words}{more}.", "bold red" if failed else "bold green"))
    return code


def code_of(outcomes: list[Outcome]) -> int:
    """0: all have landed, now or before; 1: one is wrong in itself; 3: one is not there."""
    states = {one.state for one in outcomes}
    return WRONG if "wrong" in states else CANNOT if "absent" in states else HOLDS


def _tell(one: Outcome) -> None:
    mark, style = {
        "landed": ("landed", "green"), "there": ("was there", "dim"), "absent": ("ABSENT", "bold yellow"),
        "wrong": ("WRONG", "bold red"),
    }[one.state]  # fmt: skip
    counts = f"{one.rows:,} trades, {one.first_id} to {one.last_id}" if one.rows else ""
    words = "; ".join(filter(None, (counts, one.detail)))
    out.print(Text.assemble((f"{mark:10}", style), f"{one.file}  {words}"))


# --- rebuild -----------------------------------------------------------------------------------------


@app.command(epilog=CODES)
@guarded
def rebuild(
    table: Annotated[str, typer.Argument(help="A landed table, such as RAW.TRADES or STAGING.OHLCV_STREAM.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    partly: Annotated[
        bool, typer.Option("--partly", help="Keep rows whose records Kafka has no more, and land the others again.")
    ] = False,
    kafka: Annotated[str | None, typer.Option(help="Broker, host:port.")] = None,
    state: State = None,
) -> int:
    """Empty one landed table and land it again from Kafka, in one transaction; the loader may go on running.

    Readers see the old rows or the new, never none. It is refused, and nothing is changed, where Kafka no longer has
    what has landed: a truncated topic, or one that was made anew.
    """
    mention(check_environment())
    _, places = look_at(state, kafka)
    return rebuilding.rebuild(places, table, yes=yes, partly=partly)
