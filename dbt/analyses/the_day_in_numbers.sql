-- What each day brought: PnL after fees in quote, orders, and how fast the stages were.

select
    day,
    symbol,
    trades,
    candles,
    buy_signals + sell_signals as signals,
    fills,
    realized_pnl,
    fee_quote,
    trade_to_candle_p99_ms,
    signal_to_order_p99_ms
from {{ ref('metrics') }}
order by day desc, symbol
