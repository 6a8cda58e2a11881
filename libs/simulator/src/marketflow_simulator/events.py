"""Steps of the books as events of the user-data stream, worded as Binance documents them. Pure."""

from collections.abc import Sequence
from typing import Any

from marketflow_simulator.amounts import text8
from marketflow_simulator.records import Change, Execution, Order, OrderList
from marketflow_simulator.views import conditional, signed8


def events_of(changes: Sequence[Change], orders: dict[int, Order], now_ms: int) -> list[dict[str, Any]]:
    """The events of one step in the order in which they are sent; the balances come once, at its end."""
    events: list[dict[str, Any]] = []
    moved: dict[str, tuple[int, int]] = {}
    for change in changes:
        if change.order is not None and change.execution is not None:
            events.append(execution_report(change, change.order, change.execution, now_ms))
        if change.order_list is not None:
            events.append(list_status(change.order_list, orders, now_ms))
        if change.transfer is not None:
            events.append(
                {
                    "e": "balanceUpdate",
                    "E": now_ms,
                    "a": change.transfer.asset,
                    "d": signed8(change.transfer.delta),
                    "T": change.transfer.time_ms,
                }
            )
        if change.moved:
            moved |= {asset: (free, change.locked[asset]) for asset, free in change.free.items()}
    if moved:
        balances = [{"a": asset, "f": text8(free), "l": text8(locked)} for asset, (free, locked) in moved.items()]
        events.append({"e": "outboundAccountPosition", "E": now_ms, "u": now_ms, "B": balances})
    return events


def execution_report(change: Change, order: Order, how: Execution, now_ms: int) -> dict[str, Any]:
    """The documented `executionReport`, with its conditional fields only where they mean something."""
    fill = change.fill
    canceled = how == "CANCELED"
    event: dict[str, Any] = {
        "e": "executionReport",
        "E": now_ms,
        "s": order.symbol,
        "c": change.cancel_id if canceled else order.client_order_id,
        "S": order.side,
        "o": order.type,
        "f": order.time_in_force,
        "q": text8(order.qty),
        "p": text8(order.price),
        "P": text8(order.stop_price),
        "F": text8(0),
        "g": order.list_id,
        "C": order.client_order_id if canceled else "",
        "x": how,
        "X": order.status,
        "r": "NONE",
        "i": order.order_id,
        "l": text8(fill.qty if fill else 0),
        "z": text8(order.executed),
        "L": text8(fill.price if fill else 0),
        "n": text8(fill.commission) if fill else "0",
        "N": fill.commission_asset if fill else None,
        "T": order.update_ms,
        "t": fill.id if fill else -1,
        "I": change.number,
        "w": order.working and order.is_open,
        "m": fill.is_maker if fill else False,
        "M": False,
        "O": order.time_ms,
        "Z": text8(order.quote_executed),
        "Y": text8(fill.quote_qty if fill else 0),
        "Q": text8(order.quote_qty),
        "V": order.stp,
    }
    if order.working:
        event["W"] = order.working_ms
    return event | conditional(order, "j", "J", "eR")


def list_status(found: OrderList, orders: dict[int, Order], now_ms: int) -> dict[str, Any]:
    """The documented `listStatus`."""
    return {
        "e": "listStatus",
        "E": now_ms,
        "s": found.symbol,
        "g": found.list_id,
        "c": "OCO",
        "l": "ALL_DONE" if found.done else "EXEC_STARTED",
        "L": "ALL_DONE" if found.done else "EXECUTING",
        "r": "NONE",
        "C": found.client_order_id,
        "T": found.time_ms,
        "O": [{"s": found.symbol, "i": number, "c": orders[number].client_order_id} for number in found.order_ids],
    }
