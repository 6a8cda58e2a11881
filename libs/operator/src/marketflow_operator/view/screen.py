"""Draws the board for a terminal of a given size.

Pure: the same board gives the same picture. Must never wrap a row: what does not fit is left out, widest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .board import Board, Line, Service, SymbolLine, plain

__all__ = ["draw", "progress_line", "spark"]

BARS: Final = "▁▂▃▄▅▆▇█"
SIDES: Final = {"BUY": "bold green", "SELL": "bold red", "HOLD": "dim"}
KINDS: Final = {
    "BUY": "green",
    "SELL": "red",
    "filled": "bold cyan",
    "skipped": "dim",
    "rejected": "bold red",
    "state": "bold yellow",
}
CHANNELS: Final = (("telegram", "T"), ("discord", "D"))
NUMBERS: Final = 62
"""Columns that a service's numbers take; the rest is for what troubles it."""
FEWEST: Final = 5
"""Symbols that are shown however low the terminal is."""
WIDE: Final = 110
"""Columns from which charts and candle fields are drawn."""


def draw(board: Board, width: int, height: int, title: str = "") -> RenderableType:
    """Header, symbols, services and as many of the latest events as fit."""
    symbols, services = list(board.symbols.values()), list(board.services.values())
    # Where not all symbols fit, those that are held come first, then those that have traded; three lines are for news.
    most = max(FEWEST, height - len(services) - 11 - 3)
    hidden = len(symbols) - most + 1 if len(symbols) > most else 0
    if hidden:
        symbols = sorted(symbols, key=lambda line: (not line.position, not line.orders))[: most - 1]
    room = height - len(symbols) - bool(hidden) - len(services) - 11
    parts: list[RenderableType] = [_header(board, width, title), Text(), _symbols(symbols, width)]
    if hidden:
        parts.append(Text(f"… and {hidden:,} more symbols", "dim"))
    parts.append(Text())
    if services:
        parts += [_services(services, width), Text()]
    parts.append(Text("latest", "bold") + Text("   T Telegram, D Discord: delivered", "dim"))
    news = list(board.news)[-max(3, min(12, room)) :]
    parts += [_news(line, board, width) for line in news] or [Text("nothing yet", "dim")]
    parts += [Text(), _footer(board, width)]
    return Group(*parts)


def _header(board: Board, width: int, title: str) -> Text:
    now = board.now
    clock = datetime.fromtimestamp(now // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S") if now else "not started"
    state = ("ACTIVE", "green") if board.state == "ACTIVE" else (board.state, "bold red")
    right = Text.assemble(("market time ", "dim"), (clock, "bold"), ("  trading ", "dim"), state)
    left = Text.assemble(("MarketFlow", "bold"), "  ", (title, "dim"))
    left.truncate(max(10, width - right.cell_len - 2), overflow="ellipsis")
    head = Text.assemble(left, " " * max(2, width - left.cell_len - right.cell_len), right)
    head.truncate(width)
    done = board.progress
    if done is None:
        return head
    label = f" {done:4.0%}"
    length = width - len(label)
    full = round(done * length)
    return Text.assemble(head, "\n", ("━" * full, "green"), ("─" * (length - full), "dim"), label)


def _symbols(lines: Sequence[SymbolLine], width: int) -> Table:
    wide = width >= WIDE
    table = _table()
    table.add_column("symbol", no_wrap=True)
    table.add_column("price", justify="right", no_wrap=True)
    if wide:
        table.add_column("last closes", no_wrap=True)
        for name in ("open", "high", "low"):
            table.add_column(name, justify="right", no_wrap=True)
    table.add_column("last candle", justify="right", no_wrap=True)
    table.add_column("signal", no_wrap=True)
    table.add_column("position", justify="right", no_wrap=True)
    table.add_column("PnL", justify="right", no_wrap=True)
    if wide:
        table.add_column("open PnL", justify="right", no_wrap=True)
        table.add_column("orders", justify="right", no_wrap=True)
    for line in lines:
        candle = line.candle
        row: list[RenderableType] = [line.symbol, _price(line)]
        if wide:
            row.append(Text(spark(list(line.closes)[-18:]), "cyan"))
            row += [plain(v) for v in (candle.open, candle.high, candle.low)] if candle else ["", "", ""]
        row.append(_candle(line))
        row.append(_signal(line))
        row.append(plain(line.position) if line.position else Text("-", "dim"))
        row.append(_money(line.realized))
        if wide:
            row += [_money(line.unrealized), str(line.orders)]
        table.add_row(*row)
    if not lines:
        table.add_row(Text("no trades yet", "dim"))
    return table


def _price(line: SymbolLine) -> Text:
    if line.price is None:
        return Text("-", "dim")
    if line.before is None:
        return Text(plain(line.price) + "  ")
    up = line.price > line.before
    return Text.assemble(plain(line.price), (" ▲" if up else " ▼", "green" if up else "red"))


def _candle(line: SymbolLine) -> Text:
    candle = line.candle
    if candle is None:
        return Text("-", "dim")
    at = datetime.fromtimestamp(candle.open_time // 1_000_000, UTC).strftime("%H:%M")
    change = candle.close - candle.open
    style = "green" if change > 0 else "red" if change < 0 else "dim"
    return Text.assemble((f"{at} ", "dim"), f"{plain(candle.close)} ", (f"{change:+.2f}", style))


def _signal(line: SymbolLine) -> Text:
    signal = line.signal
    if signal is None:
        return Text("-", "dim")
    at = datetime.fromtimestamp(signal.open_time // 1_000_000, UTC).strftime("%H:%M")
    return Text.assemble((signal.signal_type, SIDES[signal.signal_type]), (f" {at}", "dim"))


def _money(value: Decimal) -> Text:
    style = "green" if value > 0 else "red" if value < 0 else "dim"
    return Text(f"{value:+.2f}" if value else "0.00", style)


def _services(services: Sequence[Service], width: int) -> Table:
    table = _table()
    table.add_column("service", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name in ("per second", "in all", "lag", "p50 ms", "p99 ms"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for service in services:
        mark = Text("●", "green") if service.ready else Text("●", "yellow") if service.up else Text("○", "bold red")
        note = Text(service.note, "yellow")
        note.truncate(max(8, width - NUMBERS), overflow="ellipsis")
        lag = "-" if service.lag is None else f"{service.lag:,.0f}"
        table.add_row(
            service.name,
            mark,
            f"{service.rate:,.0f}",
            f"{service.total:,.0f}",
            Text(lag, "yellow" if (service.lag or 0) > 1000 else ""),
            _milliseconds(service.p50),
            _milliseconds(service.p99),
            note,
        )
    return table


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def _news(line: Line, board: Board, width: int) -> Text:
    told = board.told.get(line.reference, set())
    marks = Text()
    for channel, letter in CHANNELS:
        marks.append(letter if channel in told else "·", "green" if channel in told else "dim")
    if not line.due:
        marks = Text("  ")
    at = datetime.fromtimestamp(line.at_ms / 1000, UTC).strftime("%H:%M:%S")
    row = Text.assemble((at, "dim"), " ", marks, " ", (line.text, KINDS.get(line.kind, "")))
    row.truncate(width, overflow="ellipsis")
    return row


def _footer(board: Board, width: int) -> Text:
    lines = board.symbols.values()
    facts = [
        f"{sum(line.trades for line in lines):,} trades",
        f"{sum(line.candles for line in lines):,} candles",
        f"{board.sides['BUY']} BUY {board.sides['SELL']} SELL",
        f"{sum(line.orders for line in lines)} orders",
        f"{board.notified} notices",
    ]
    text = Text.assemble((" · ".join(facts), "dim"), ("  PnL ", "dim"), _money(board.realized))
    if width >= WIDE:
        text.append_text(Text.assemble((" realized ", "dim"), _money(board.unrealized), (" open", "dim")))
    if board.waiting:
        rest = Text(f"\nwaiting: {board.waiting}", "yellow")
        rest.truncate(width, overflow="ellipsis")
        text.append_text(rest)
    return text


def spark(values: Sequence[Decimal]) -> str:
    """A little chart: one bar per value, the lowest at the bottom and the highest at the top."""
    if not values:
        return ""
    low, high = min(values), max(values)
    if low == high:
        return BARS[3] * len(values)
    return "".join(BARS[int((value - low) * 7 / (high - low))] for value in values)


def progress_line(board: Board) -> str:
    """The same in one line, for an output that is no terminal."""
    now = board.now
    clock = datetime.fromtimestamp(now // 1_000_000, UTC).strftime("%H:%M:%S") if now else "--:--:--"
    done = "" if board.progress is None else f" {board.progress:.0%}"
    lines = board.symbols.values()
    behind = sum(service.lag or 0 for service in board.services.values())
    text = (
        f"market {clock}{done}: {sum(line.trades for line in lines):,} trades, {sum(line.candles for line in lines)} "
        f"candles, {board.sides['BUY']} BUY, {board.sides['SELL']} SELL, {sum(line.orders for line in lines)} orders "
        f"filled, {board.notified} notifications, PnL {board.realized:+.2f}, lag {behind:,.0f}"
    )
    return f"{text}; waiting: {board.waiting}" if board.waiting else text


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
