"""The audit as a table for the terminal: every check with what was expected, what was found, and who offends.

Must never judge: it shows a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .audit.judge import Verdict
from .audit.model import Check
from .reconcile import Comparison

__all__ = ["outcome", "show_comparison", "show_summary", "show_verdict"]

_MARKS = {True: ("ok", "green"), False: ("WRONG", "bold red"), None: ("NOT RUN", "bold yellow")}
_COLUMNS = 32  # for the other three columns
_PENDING = ("PENDING", "bold yellow")


def show_verdict(console: Console, verdict: Verdict) -> None:
    """Print the table, then one line with the outcome."""
    waiting = [check for check in verdict.failed.values() if check not in verdict.failed_beyond_waiting]
    rows = [
        (check, _number(check.expected), _number(check.actual), *(_PENDING if check in waiting else _MARKS[check.ok]))
        for check in verdict.checks
    ]
    if console.width < max((len(check.name) for check in verdict.checks), default=0) + _COLUMNS:
        for check, expected, found, mark, style in rows:  # a table would have one letter in a line
            console.print(Text.assemble(f"{check.name}: ", (mark, style), f" ({found} of {expected})"))
    else:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("check", no_wrap=True)
        table.add_column("expected", justify="right", overflow="fold")
        table.add_column("found", justify="right", overflow="fold")
        table.add_column("", no_wrap=True)
        for check, expected, found, mark, style in rows:
            table.add_row(check.name, expected, found, Text(mark, style))
        console.print(table)
    for check in verdict.checks:
        if check.detail and check.ok is not None:
            console.print(_detail(check))
    reasons: dict[str, list[str]] = {}
    for check in verdict.not_run:
        reasons.setdefault(check.detail, []).append(check.name)
    for reason, names in reasons.items():
        console.print(Text.assemble((f"not run ({len(names)} checks): ", "bold"), (reason, "yellow")))
    console.print(outcome(verdict))


def _detail(check: Check) -> Text:
    name, style = ("dim", "dim") if check.ok else ("bold", "red")
    return Text.assemble((f"{check.name}: ", name), (check.detail, style))


def outcome(verdict: Verdict) -> Text:
    """One line: whether the audit holds, and if not, which checks do not."""
    count, wrong, unknown = len(verdict.checks), verdict.failed_beyond_waiting, verdict.not_run
    if verdict.ok:
        return Text(f"The audit holds: {count} of {count} checks.", "bold green")
    names = ", ".join(check.name for check in wrong)
    if wrong:
        return Text(f"The audit does not hold: {len(wrong)} of {count} checks are wrong ({names}).", "bold red")
    if not unknown:
        text = "The audit is not finished: not everything has come through yet (drained); what has is right."
        return Text(text, "bold yellow")
    return Text(f"The audit could not be done: {len(unknown)} of {count} checks were not run.", "bold yellow")


def _number(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def show_summary(out: Console, verdict: Verdict, report: Mapping[str, Any]) -> None:
    """Print the audit's table and the report's main numbers."""
    out.print()
    show_verdict(out, verdict)
    out.print()
    trades, candles, orders, pnl = report["trades"], report["candles"], report["orders"], report["pnl"]
    signals, notices = report["signals"], report["notifications"] or {}
    rows = {
        "trades": ", ".join(f"{_count(trades[k])} {k}" for k in ("sent", "published", "landed", "lost", "duplicated")),
        "candles": f"{_count(candles['equal'])} of {_count(candles['closed'])} whole minutes equal their klines",
        "signals": ", ".join(f"{signals[kind]} {kind}" for kind in ("BUY", "SELL", "HOLD")),
        "orders": f"{orders['filled']} filled ({orders['filled_buy']} BUY, {orders['filled_sell']} SELL), "
        + ", ".join(f"{orders[kind]} {kind}" for kind in ("rejected", "skipped", "unresolved", "duplicated")),
        "PnL": f"{pnl['realized']:+f} realized, {pnl['fees']:f} fees, equity error {_count(pnl['equity_error'])}",
        "notices": ", ".join(f"{_count(notices.get(k))} {k}" for k in ("due", "delivered", "lost", "repeated")),
        "latency": ", ".join(
            f"{name.replace('_', ' ')} {_ms(stage['p50'])} / {_ms(stage['p99'])}"
            for name, stage in report["latency_ms"].items()
        )
        + " (p50 / p99, by the broker's clock)",
    }
    for name, text in rows.items():
        out.print(Text.assemble((f"{name:9}", "bold"), text))


def _count(value: object) -> str:
    return "?" if value is None else f"{value:,}"


def _ms(value: int | None) -> str:
    return "-" if value is None else f"{value:,} ms"


def show_comparison(out: Console, compared: Comparison, exchange: str) -> None:
    """An account at the exchange beside the fold of its events, and each difference in words."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("asset", exchange, "order_events"):
        table.add_column(column)
    for asset, theirs, ours in compared.balances:
        table.add_row(asset, f"{theirs:f}", Text(f"{ours:f}", "" if theirs == ours else "bold red"))
    out.print(table)
    out.print(f"{compared.open_orders} open orders and {compared.fills} fills at the exchange")
    for line in compared.differences:
        out.print(Text(line, "bold red"))
    out.print("The books and the exchange agree." if compared.ok else "They differ.")
