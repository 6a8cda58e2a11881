"""Orders, fills and lists as the JSON that Binance documents. Only shows, never changes."""

from typing import Any

from marketflow_simulator.amounts import text8
from marketflow_simulator.records import ALGO_TYPES, Fill, Order, OrderList


def order_json(order: Order) -> dict[str, Any]:
    """The documented answer of `GET /api/v3/order`."""
    return {
        "symbol": order.symbol,
        "orderId": order.order_id,
        "orderListId": order.list_id,
        "clientOrderId": order.client_order_id,
        **_standing(order),
        "stopPrice": text8(order.stop_price),
        "icebergQty": text8(0),
        "time": order.time_ms,
        "updateTime": order.update_ms,
        "isWorking": order.working,
        "workingTime": order.working_ms if order.working else -1,
        "selfTradePreventionMode": order.stp,
        **conditional(order),
    }


def _standing(order: Order) -> dict[str, Any]:
    """What every answer about an order says: what was asked for, and what has become of it."""
    return {
        "price": text8(order.price),
        "origQty": text8(order.qty),
        "executedQty": text8(order.executed),
        "origQuoteOrderQty": text8(order.quote_qty),
        "cummulativeQuoteQty": text8(order.quote_executed),
        "status": order.status,
        "timeInForce": order.time_in_force,
        "type": order.type,
        "side": order.side,
    }


def conditional(
    order: Order, strategy_id: str = "strategyId", strategy_type: str = "strategyType", expiry: str = "expiryReason"
) -> dict[str, Any]:
    """Fields by these names, only where they mean something ("Conditional fields in Order Responses")."""
    found = {strategy_id: order.strategy_id, strategy_type: order.strategy_type, expiry: order.expiry_reason}
    return {name: value for name, value in found.items() if value is not None}


def _stop(order: Order) -> dict[str, Any]:
    return {"stopPrice": text8(order.stop_price)} if order.type in ALGO_TYPES else {}


def placed_json(order: Order, fills: list[Fill], response: str) -> dict[str, Any]:
    """The answer to a new order: `response` is ACK, RESULT or FULL."""
    answer: dict[str, Any] = {
        "symbol": order.symbol,
        "orderId": order.order_id,
        "orderListId": order.list_id,
        "clientOrderId": order.client_order_id,
        "transactTime": order.time_ms,
    }
    if response == "ACK":
        return answer
    answer |= {
        **_standing(order),
        **_stop(order),
        "workingTime": order.working_ms if order.working else -1,
        "selfTradePreventionMode": order.stp,
        **conditional(order),
    }
    if response == "FULL":
        answer["fills"] = [
            {
                "price": text8(fill.price),
                "qty": text8(fill.qty),
                "commission": text8(fill.commission),
                "commissionAsset": fill.commission_asset,
                "tradeId": fill.id,
            }
            for fill in fills
        ]
    return answer


def canceled_json(order: Order, client_id: str) -> dict[str, Any]:
    """The answer to a cancel; `client_id` is the cancel's own."""
    return {
        "symbol": order.symbol,
        "origClientOrderId": order.client_order_id,
        "orderId": order.order_id,
        "orderListId": order.list_id,
        "clientOrderId": client_id,
        "transactTime": order.update_ms,
        **_standing(order),
        **_stop(order),
        "selfTradePreventionMode": order.stp,
        **conditional(order),
    }


def list_json(found: OrderList, orders: list[Order]) -> dict[str, Any]:
    """The documented answer of `GET /api/v3/orderList`."""
    return {
        "orderListId": found.list_id,
        "contingencyType": "OCO",
        "listStatusType": "ALL_DONE" if found.done else "EXEC_STARTED",
        "listOrderStatus": "ALL_DONE" if found.done else "EXECUTING",
        "listClientOrderId": found.client_order_id,
        "transactionTime": found.time_ms,
        "symbol": found.symbol,
        "orders": [
            {"symbol": order.symbol, "orderId": order.order_id, "clientOrderId": order.client_order_id}
            for order in orders
        ],
    }


def trade_json(fill: Fill) -> dict[str, Any]:
    """The documented entry of `GET /api/v3/myTrades`."""
    return {
        "symbol": fill.symbol,
        "id": fill.id,
        "orderId": fill.order_id,
        "orderListId": fill.list_id,
        "price": text8(fill.price),
        "qty": text8(fill.qty),
        "quoteQty": text8(fill.quote_qty),
        "commission": text8(fill.commission),
        "commissionAsset": fill.commission_asset,
        "time": fill.time_ms,
        "isBuyer": fill.side == "BUY",
        "isMaker": fill.is_maker,
        "isBestMatch": True,
    }


def fill_json(fill: Fill) -> dict[str, Any]:
    """A fill with all that the simulator knows of it."""
    return {
        **trade_json(fill),
        "clientOrderId": fill.client_order_id,
        "side": fill.side,
        "marketTradeId": fill.market_trade_id,
        "marketTimeUs": fill.market_time_us,
    }


def signed8(units: int) -> str:
    """As text8, for amounts that may be below 0."""
    return f"-{text8(-units)}" if units < 0 else text8(units)
