{{ config(materialized='incremental', unique_key=['symbol', 'interval', 'open_time']) }}

-- Candles folded from RAW.TRADES, for the minutes that the stream has stated. Nothing of the stream's numbers is
-- used but its claim to the minute, and for a minute without trades the id of the trade before it; and, to know from
-- where on to read, which minutes have trades.

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

-- From where on trades are read, by symbol: from the last minute with trades before the first one asked for, which a
-- minute without trades needs the price of. No minute but these depends on anything before.
begun as (

    select wanted.symbol, coalesce(max(stream.open_time), '1970-01-01 00:00:00'::timestamp_ltz) as since
    from (select symbol, min(open_time) as open_time from claimed group by symbol) as wanted
    left join {{ source('stream', 'OHLCV_STREAM') }} as stream
        on stream.symbol = wanted.symbol and stream.interval = '1m' and stream.trade_count > 0
        and stream.open_time < wanted.open_time
    group by wanted.symbol

),

marks as (

    select events.symbol, events.last_trade_id, events.through
    from {{ source('raw', 'FEED_EVENTS') }} as events
    join begun on begun.symbol = events.symbol and events.through >= begun.since
    where events.event_type = 'watermark'

),

-- By id, because times may step back: behind the first of these ids nothing is in an earlier minute.
lowest as (

    select symbol, min(trade_id) as trade_id
    from (
        select trades.symbol, trades.trade_id
        from {{ source('raw', 'TRADES') }} as trades
        join begun on begun.symbol = trades.symbol and trades.traded_at >= begun.since
        where trades.traded_at <= dateadd('second', 86400, trades.received_at)
        union all
        select symbol, last_trade_id + 1 from marks
    ) as known
    group by symbol

),

-- An id counts once: after a topic was made anew, what was published again is in RAW.TRADES twice.
-- EARLY: a time this far ahead of the receipt closes no minute. The trade waits for its own; a day is too long.
read as (

    select
        trades.symbol, trades.trade_id, trades.price, trades.qty, trades.buyer_is_maker,
        date_trunc('minute', trades.traded_at) as minute,
        trades.traded_at > dateadd('second', 10, trades.received_at) as early,
        trades.traded_at > dateadd('second', 86400, trades.received_at) as too_early
    from {{ source('raw', 'TRADES') }} as trades
    join lowest on lowest.symbol = trades.symbol and trades.trade_id >= lowest.trade_id
    qualify row_number() over (
        partition by trades.symbol, trades.trade_id order by trades.kafka_appended_at, trades.kafka_offset
    ) = 1

),

-- The exchange's minutes tile the ids. One is over with the first trade of a later one, or with the last trade that a
-- watermark names, and what follows counts later, whatever its time.
ordered as (

    select symbol, trade_id, 0 as place, case when early then null else minute end as begins
    from read
    union all
    select symbol, last_trade_id, 1, through
    from marks

),

reached as (

    select
        symbol, trade_id, place,
        max(begins) over (
            partition by symbol order by trade_id, place rows between unbounded preceding and current row
        ) as reached
    from ordered

),

trades as (

    select
        read.symbol, read.trade_id, read.price, read.qty, read.buyer_is_maker,
        greatest(read.minute, coalesce(reached.reached, read.minute)) as open_time
    from read
    join reached on reached.symbol = read.symbol and reached.trade_id = read.trade_id and reached.place = 0
    where not read.too_early
       or read.minute <= reached.reached

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
priced as (

    select
        coalesce(claimed.symbol, folded.symbol) as symbol,
        coalesce(claimed.open_time, folded.open_time) as open_time,
        last_value(folded.close) ignore nulls over (
            partition by coalesce(claimed.symbol, folded.symbol)
            order by coalesce(claimed.open_time, folded.open_time)
            rows between unbounded preceding and current row
        ) as price
    from claimed
    full outer join folded on folded.symbol = claimed.symbol and folded.open_time = claimed.open_time

)

select
    claimed.symbol,
    claimed.interval,
    claimed.open_time,
    claimed.close_time,
    coalesce(folded.open, priced.price)::number(38, 18) as open,
    coalesce(folded.high, priced.price)::number(38, 18) as high,
    coalesce(folded.low, priced.price)::number(38, 18) as low,
    coalesce(folded.close, priced.price)::number(38, 18) as close,
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
left join priced on priced.symbol = claimed.symbol and priced.open_time = claimed.open_time
