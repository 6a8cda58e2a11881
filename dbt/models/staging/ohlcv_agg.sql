{{ config(materialized='incremental', unique_key=['symbol', 'interval', 'open_time']) }}

-- Candles folded from RAW.TRADES, for the minutes that the stream has stated. Nothing of the stream's numbers is
-- used but its claim to the minute, and for a minute without trades the id of the trade before it.

with touched as (

    select distinct symbol, open_time
    from {{ source('stream', 'OHLCV_STREAM') }}
    where interval = '1m'
      and {{ settled() }}
      {% if is_incremental() %}
      -- A trade that comes late makes the stream state its minute again, so the stream's rows tell all.
      and landed_at >= {{ late_arrival_start() }}
      {% endif %}

),

claimed as (

    select
        stream.symbol, stream.interval, stream.open_time, stream.close_time, stream.last_trade_id, stream.missing,
        stream.revision, stream.landed_at
    from {{ source('stream', 'OHLCV_STREAM') }} as stream
    join touched on touched.symbol = stream.symbol and touched.open_time = stream.open_time
    where stream.interval = '1m'
      and {{ settled('stream.landed_at') }}
    qualify row_number() over (
        partition by stream.symbol, stream.interval, stream.open_time
        order by stream.revision desc, stream.kafka_appended_at desc, stream.kafka_offset desc
    ) = 1

),

-- An id counts once: after a topic was made anew, what was published again is in RAW.TRADES twice.
trades as (

    select symbol, trade_id, price, qty, buyer_is_maker, date_trunc('minute', traded_at) as open_time
    from {{ source('raw', 'TRADES') }}
    where traded_at >= (select min(open_time) from claimed)
      and traded_at <= (select max(close_time) from claimed)
    qualify row_number() over (partition by symbol, trade_id order by kafka_appended_at, kafka_offset) = 1

),

folded as (

    select
        symbol,
        open_time,
        min_by(price, trade_id) as open,
        max(price) as high,
        min(price) as low,
        max_by(price, trade_id) as close,
        {{ exact_sum('qty') }} as volume,
        -- NUMBER(38,18) times itself has no room left: one factor is cast down. Exact, as a source test checks.
        {{ exact_sum('price * qty::number(38, 8)') }} as quote_volume,
        count(*) as trade_count,
        {{ exact_sum('case when buyer_is_maker then 0 else qty end') }} as taker_buy_volume,
        {{ exact_sum('case when buyer_is_maker then 0 else price * qty::number(38, 8) end') }} as taker_buy_quote_volume,
        min(trade_id) as first_trade_id,
        max(trade_id) as last_trade_id
    from trades
    group by symbol, open_time

),

-- A minute without trades stands still at the price before it.
still as (

    select claimed.symbol, claimed.open_time, trades.price
    from claimed
    join {{ source('raw', 'TRADES') }} as trades
        on trades.symbol = claimed.symbol and trades.trade_id = claimed.last_trade_id
    left join folded on folded.symbol = claimed.symbol and folded.open_time = claimed.open_time
    where folded.symbol is null
    qualify row_number() over (
        partition by claimed.symbol, claimed.open_time order by trades.kafka_appended_at, trades.kafka_offset
    ) = 1

)

select
    claimed.symbol,
    claimed.interval,
    claimed.open_time,
    claimed.close_time,
    coalesce(folded.open, still.price)::number(38, 18) as open,
    coalesce(folded.high, still.price)::number(38, 18) as high,
    coalesce(folded.low, still.price)::number(38, 18) as low,
    coalesce(folded.close, still.price)::number(38, 18) as close,
    coalesce(folded.volume, 0)::number(38, 18) as volume,
    coalesce(folded.quote_volume, 0)::number(38, 18) as quote_volume,
    coalesce(folded.trade_count, 0)::number(38, 0) as trade_count,
    coalesce(folded.taker_buy_volume, 0)::number(38, 18) as taker_buy_volume,
    coalesce(folded.taker_buy_quote_volume, 0)::number(38, 18) as taker_buy_quote_volume,
    coalesce(folded.first_trade_id, claimed.last_trade_id + 1)::number(38, 0) as first_trade_id,
    coalesce(folded.last_trade_id, claimed.last_trade_id)::number(38, 0) as last_trade_id,
    claimed.missing,
    claimed.revision,
    claimed.landed_at
from claimed
left join folded on folded.symbol = claimed.symbol and folded.open_time = claimed.open_time
left join still on still.symbol = claimed.symbol and still.open_time = claimed.open_time
