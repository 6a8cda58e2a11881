{{ config(materialized='view') }}

-- What a day brought, per symbol: counts, PnL, and how long each stage took by the broker's clock.

with trades as (

    select
        symbol,
        {{ utc_day('traded_at') }} as day,
        count_if(origin = 'stream') as trades,
        count_if(origin = 'backfill') as trades_backfilled
    from {{ ref('trades') }}
    group by symbol, {{ utc_day('traded_at') }}

),

-- What closed a candle: the first trade of a later minute, or the watermark at its end, whichever came first.
triggers as (

    select candle.symbol, candle.open_time, trade.kafka_appended_at
    from {{ source('stream', 'OHLCV_STREAM') }} as candle
    join {{ ref('trades') }} as trade
        on trade.symbol = candle.symbol and trade.trade_id = candle.last_trade_id + 1
    where candle.revision = 0 and trade.traded_at > candle.close_time

    union all

    select candle.symbol, candle.open_time, mark.kafka_appended_at
    from {{ source('stream', 'OHLCV_STREAM') }} as candle
    join {{ source('raw', 'FEED_EVENTS') }} as mark
        on mark.symbol = candle.symbol and mark.kline_open_time = candle.open_time
    where candle.revision = 0 and mark.event_type = 'watermark'

),

candles as (

    select
        stream.symbol,
        {{ utc_day('stream.open_time') }} as day,
        count(*) as candles,
        {{ percentile_ms('triggered.kafka_appended_at', 'stream.kafka_appended_at', 0.5) }} as trade_to_candle_p50_ms,
        {{ percentile_ms('triggered.kafka_appended_at', 'stream.kafka_appended_at', 0.99) }} as trade_to_candle_p99_ms,
        {{ percentile_ms('stream.kafka_appended_at', 'stream.landed_at', 0.99) }} as candle_to_warehouse_p99_ms
    from {{ source('stream', 'OHLCV_STREAM') }} as stream
    left join (
        select symbol, open_time, min(kafka_appended_at) as kafka_appended_at
        from triggers
        group by symbol, open_time
    ) as triggered on triggered.symbol = stream.symbol and triggered.open_time = stream.open_time
    where stream.revision = 0
    group by stream.symbol, {{ utc_day('stream.open_time') }}

),

signals as (

    select
        signal.symbol,
        {{ utc_day('signal.open_time') }} as day,
        count_if(signal.signal_type = 'BUY') as buy_signals,
        count_if(signal.signal_type = 'SELL') as sell_signals,
        count_if(signal.signal_type = 'HOLD') as hold_signals,
        {{ percentile_ms('candle.kafka_appended_at', 'signal.kafka_appended_at', 0.5) }} as candle_to_signal_p50_ms,
        {{ percentile_ms('candle.kafka_appended_at', 'signal.kafka_appended_at', 0.99) }} as candle_to_signal_p99_ms
    from {{ ref('trading_signals') }} as signal
    left join {{ source('stream', 'OHLCV_STREAM') }} as candle
        on candle.symbol = signal.symbol
        and candle.interval = signal.interval
        and candle.open_time = signal.open_time
        and candle.revision = 0
    group by signal.symbol, {{ utc_day('signal.open_time') }}

),

-- An order belongs to the day of the candle that its signal speaks of.
orders as (

    select
        signal.symbol,
        {{ utc_day('signal.open_time') }} as day,
        count_if(event.event_type = 'order_intended') as orders_intended,
        count_if(event.event_type = 'order_filled') as fills,
        count_if(event.event_type = 'order_rejected') as orders_rejected,
        count_if(event.event_type = 'order_expired') as orders_expired,
        count_if(event.event_type = 'order_unresolved') as orders_unresolved,
        count_if(event.event_type = 'signal_skipped') as signals_skipped,
        {{ percentile_ms(
            'signal.kafka_appended_at',
            "case when event.event_type = 'order_intended' and event.attempt = 1 then event.kafka_appended_at end",
            0.99
        ) }} as signal_to_order_p99_ms,
        {{ percentile_ms(
            'signal.kafka_appended_at',
            "case when event.event_type = 'order_filled' then event.kafka_appended_at end",
            0.99
        ) }} as signal_to_fill_p99_ms
    from {{ source('events', 'ORDER_EVENTS') }} as event
    join {{ ref('trading_signals') }} as signal on signal.id = event.signal_id
    group by signal.symbol, {{ utc_day('signal.open_time') }}

),

pnl as (

    select
        symbol,
        day,
        {{ exact_sum('realized_pnl') }} as realized_pnl,
        {{ exact_sum('fee_quote') }} as fee_quote,
        {{ exact_sum('bought_quote + sold_quote') }} as turnover_quote
    from {{ ref('portfolio_pnl') }}
    group by symbol, day

),

days as (

    select symbol, day from trades
    union
    select symbol, day from candles
    union
    select symbol, day from signals
    union
    select symbol, day from orders
    union
    select symbol, day from pnl

)

select
    days.day,
    days.symbol,
    coalesce(trades.trades, 0) as trades,
    coalesce(trades.trades_backfilled, 0) as trades_backfilled,
    coalesce(candles.candles, 0) as candles,
    coalesce(signals.buy_signals, 0) as buy_signals,
    coalesce(signals.sell_signals, 0) as sell_signals,
    coalesce(signals.hold_signals, 0) as hold_signals,
    coalesce(orders.orders_intended, 0) as orders_intended,
    coalesce(orders.fills, 0) as fills,
    coalesce(orders.orders_rejected, 0) as orders_rejected,
    coalesce(orders.orders_expired, 0) as orders_expired,
    coalesce(orders.orders_unresolved, 0) as orders_unresolved,
    coalesce(orders.signals_skipped, 0) as signals_skipped,
    coalesce(pnl.realized_pnl, 0)::number(38, 18) as realized_pnl,
    coalesce(pnl.fee_quote, 0)::number(38, 18) as fee_quote,
    coalesce(pnl.turnover_quote, 0)::number(38, 18) as turnover_quote,
    candles.trade_to_candle_p50_ms,
    candles.trade_to_candle_p99_ms,
    signals.candle_to_signal_p50_ms,
    signals.candle_to_signal_p99_ms,
    orders.signal_to_order_p99_ms,
    orders.signal_to_fill_p99_ms,
    candles.candle_to_warehouse_p99_ms
from days
left join trades on trades.symbol = days.symbol and trades.day = days.day
left join candles on candles.symbol = days.symbol and candles.day = days.day
left join signals on signals.symbol = days.symbol and signals.day = days.day
left join orders on orders.symbol = days.symbol and orders.day = days.day
left join pnl on pnl.symbol = days.symbol and pnl.day = days.day
