"""What an operator's command does to the trading state, and which commands are not honoured.

Pure. Must never let anything but a command signed with the executor's secret loosen what another has tightened.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from marketflow_common.commands import genuine
from marketflow_common.events import Action, Command, OrderIntended, Signal, TradingState, TradingStateChanged
from marketflow_common.numbers import ZERO

from .risk import SEVERITY

__all__ = ["flatten_id", "flatten_signal", "is_flatten", "judge", "withheld"]

LIFETIME_US: Final = 300_000_000
"""A command other than halt without ``expires_at`` is honoured this long."""
AHEAD_US: Final = 60_000_000
"""How far an operator's clock may be ahead of the exchange's."""
_TO: Final[dict[Action, TradingState]] = {
    "halt": "HALTED",
    "reduce_only": "REDUCE_ONLY",
    "resume": "ACTIVE",
    "flatten": "REDUCE_ONLY",
}
_FLATTEN: Final = "command:"


def judge(
    command: Command, state: TradingState, state_at: int, now_us: int, secret: str, *, trusting: bool
) -> TradingStateChanged | str:
    """The change of the trading state that a command makes, or why it is not honoured.

    ``state_at`` is when the present state was set. ``trusting``: without a secret, what is unsigned is honoured.
    """
    action, to = command.action, _TO[command.action]
    if action == "flatten" and SEVERITY[state] > SEVERITY[to]:
        to = state
    tightens = action == "halt" or (action == "reduce_only" and SEVERITY[to] >= SEVERITY[state])
    if action != "halt":
        until = command.expires_at if command.expires_at is not None else command.issued_at + LIFETIME_US
        if now_us > until:
            return f"it expired {(now_us - until) // 1_000} ms ago"
        if command.issued_at > now_us + AHEAD_US:
            return f"it was issued {(command.issued_at - now_us) // 1_000} ms ahead of the exchange's clock"
    if not tightens:
        if refused := _unproven(command, secret, trusting):
            return refused
        if action != "flatten" and command.issued_at < state_at:
            return f"it is stale: the account was set to {state} after it was issued"
    return TradingStateChanged(
        command.account,
        to,
        f"{action} by command{': ' + command.reason if command.reason else ''}",
        # A prefix of its own, so that nobody can pass for the reconciliation or for a limit.
        f"operator:{command.asked_by}",
        now_us,
        command.id,
        action,
    )


def _unproven(command: Command, secret: str, trusting: bool) -> str:
    if not secret:
        return "" if trusting else "no secret is set to prove it by (COMMAND_SECRET)"
    if not command.signature:
        return "it is not signed"
    return "" if genuine(command, secret) else "its signature was not made with the executor's secret"


def withheld(intent: OrderIntended, state: TradingState) -> str:
    """Why an intended order must not be sent any more, in words; empty if it may."""
    if is_flatten(intent.signal_id) or state == "ACTIVE" or (state == "REDUCE_ONLY" and intent.side == "SELL"):
        return ""
    return f"not sent: the account was set to {state} before it could be"


# --- flatten -----------------------------------------------------------------------------------------


def flatten_id(command_id: str, symbol: str) -> str:
    """The signal id of the orders by which a flatten sells a symbol."""
    return f"{_FLATTEN}{command_id}:{symbol}"


def is_flatten(signal_id: str) -> bool:
    """Whether an order was made by a flatten, and not by a signal."""
    return signal_id.startswith(_FLATTEN)


def flatten_signal(order: TradingStateChanged, symbol: str, close: Decimal, last_trade_id: int) -> Signal:
    """What a flatten says of a symbol, as a signal at its last known price."""
    return Signal(
        id=flatten_id(order.command_id, symbol),
        strategy="flatten",
        parameters="",
        symbol=symbol,
        interval="1m",
        open_time=0,
        close=close,
        volume=ZERO,
        momentum=ZERO,
        signal_type="SELL",
        last_trade_id=last_trade_id,
        levels={},
        reasons=(order.reason,),
    )
