{{ config(materialized='incremental', unique_key=['symbol', 'interval', 'open_time']) }}

-- Candles folded from STAGING.TRADES, for the minutes that the stream has stated, and for those that it has not and
-- that backfilled trades make whole. Nothing of the stream's numbers is used but its claim to the minute, and for a
-- minute without trades the id of the trade before it; and, to know from where on to read, which minutes have trades.

with fresh as (

    -- What has come, as a range of ids with a neighbour on either side: a trade may make the minute before it whole.
    select symbol, min(trade_id) - 1 as first_id, max(trade_id) + 1 as last_id
    from {{ ref('trades') }}
    {% if is_incremental() %}
    where landed_at >= {{ late_arrival_start() }}
    {% endif %}
    group by symbol

),

touched as (

    select distinct stream.symbol, stream.open_time
    from {{ source('stream', 'OHLCV_STREAM') }} as stream
    left join fresh on fresh.symbol = stream.symbol
    where stream.interval = '1m'
      and {{ settled('stream.landed_at') }}
      {% if is_incremental() %}
      -- A trade that comes late makes the stream state its minute again, so the stream's rows tell all; one that is
      -- backfilled does not, and concerns only minutes with missing trades.
      and (
          stream.landed_at >= {{ late_arrival_start() }}
          or (
              stream.missing <> '[]'
              and stream.first_trade_id <= fresh.last_id
              and stream.last_trade_id >= fresh.first_id
          )
      )
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

-- The minute of the first of the fresh trades, by its own time, and no later than its receipt.
around as (

    select
        trades.symbol,
        min(date_trunc('minute', least(trades.traded_at, coalesce(trades.received_at, trades.traded_at)))) as minute
    from {{ ref('trades') }} as trades
    join fresh on fresh.symbol = trades.symbol
    where trades.trade_id between fresh.first_id and fresh.last_id
    group by trades.symbol

),

-- From where on trades are read, by symbol: from the last minute with trades before the first one asked for, which a
-- minute without trades needs the price of. No minute but these depends on anything before.
begun as (

    select symbol, min(since) as since
    from (
        select wanted.symbol, coalesce(max(stream.open_time), '1970-01-01 00:00:00'::timestamp_ltz) as since
        from (select symbol, min(open_time) as open_time from claimed group by symbol) as wanted
        left join {{ source('stream', 'OHLCV_STREAM') }} as stream
            on stream.symbol = wanted.symbol and stream.interval = '1m' and stream.trade_count > 0
            and stream.open_time < wanted.open_time
        group by wanted.symbol

        union all

        select
            around.symbol,
            coalesce(date_trunc('minute', max(trades.traded_at)), '1970-01-01 00:00:00'::timestamp_ltz) as since
        from around
        left join {{ ref('trades') }} as trades
            on trades.symbol = around.symbol and trades.traded_at < around.minute
        group by around.symbol
    ) as asked
    group by symbol

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
        from {{ ref('trades') }} as trades
        join begun on begun.symbol = trades.symbol and trades.traded_at >= begun.since
        where trades.traded_at <= dateadd('second', 86400, coalesce(trades.received_at, trades.traded_at))
        union all
        select symbol, last_trade_id + 1 from marks
    ) as known
    group by symbol

),

-- EARLY: a time this far ahead of the receipt closes no minute. The trade waits for its own; a day is too long. What
-- comes from a dump has no receipt and is never early.
read as (

    select
        trades.symbol, trades.trade_id, trades.price, trades.qty, trades.buyer_is_maker, trades.origin,
        trades.landed_at,
        date_trunc('minute', trades.traded_at) as minute,
        coalesce(trades.traded_at > dateadd('second', 10, trades.received_at), false) as early,
        coalesce(trades.traded_at > dateadd('second', 86400, trades.received_at), false) as too_early,
        lag(trades.trade_id) over (partition by trades.symbol order by trades.trade_id) as id_before,
        lead(trades.trade_id) over (partition by trades.symbol order by trades.trade_id) as id_behind,
        lag(trades.origin) over (partition by trades.symbol order by trades.trade_id) as origin_before,
        lead(trades.origin) over (partition by trades.symbol order by trades.trade_id) as origin_behind
    from {{ ref('trades') }} as trades
    join lowest on lowest.symbol = trades.symbol and trades.trade_id >= lowest.trade_id

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

placed as (

    select read.*, greatest(read.minute, coalesce(reached.reached, read.minute)) as open_time
    from read
    join reached on reached.symbol = read.symbol and reached.trade_id = read.trade_id and reached.place = 0
    where not read.too_early
       or read.minute <= reached.reached

),

-- A minute is whole when its ids have no hole and the ids on either side of them are there too: then its first and its
-- last trade are known to be the first and the last. BY_BACKFILL: a dump has a part in that.
judged as (

    select
        symbol,
        open_time,
        coalesce(
            max(trade_id) - min(trade_id) + 1 = count(*)
            and min(id_before) = min(trade_id) - 1
            and max(id_behind) = max(trade_id) + 1,
            false
        ) as whole,
        max(
            case when 'backfill' in (origin, coalesce(origin_before, ''), coalesce(origin_behind, '')) then 1 else 0 end
        ) = 1 as by_backfill
    from placed
    group by symbol, open_time

),

-- Where the stream says that trades are missing, backfilled ones count if they make the minute whole, and only then: a
-- part of them would make a candle that nobody has stated.
trades as (

    select placed.*, judged.whole, judged.by_backfill
    from placed
    join judged on judged.symbol = placed.symbol and judged.open_time = placed.open_time
    left join claimed on claimed.symbol = placed.symbol and claimed.open_time = placed.open_time
    where placed.origin = 'stream'
       or judged.whole
       or claimed.missing = '[]'

),

folded as (

    select
        symbol,
        open_time,
        whole,
        by_backfill,
        min_by(price, trade_id) as open,
        max(price) as high,
        min(price) as low,
        max_by(price, trade_id) as close,
        {{ exact_sum('qty') }} as volume,
        -- NUMBER(38,18) times itself has no room left: one factor is cast down. Exact, as a test of the trades checks.
        {{ exact_sum('price * qty::number(38, 8)') }} as quote_volume,
        count(*) as trade_count,
        {{ exact_sum('case when buyer_is_maker then 0 else qty end') }} as taker_buy_volume,
        {{ exact_sum('case when buyer_is_maker then 0 else price * qty::number(38, 8) end') }} as taker_buy_quote_volume,
        min(trade_id) as first_trade_id,
        max(trade_id) as last_trade_id,
        count_if(origin = 'backfill') as backfilled,
        max(landed_at) as landed_at
    from trades
    group by symbol, open_time, whole, by_backfill

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

),

-- Minutes of which the stream says nothing: it had not begun, or was away for too long.
unstated as (

    select folded.*
    from folded
    join fresh on fresh.symbol = folded.symbol
        and folded.last_trade_id >= fresh.first_id and folded.first_trade_id <= fresh.last_id
    left join {{ source('stream', 'OHLCV_STREAM') }} as stream
        on stream.symbol = folded.symbol and stream.open_time = folded.open_time and stream.interval = '1m'
        and {{ settled('stream.landed_at') }}
    where folded.whole and folded.by_backfill and stream.symbol is null

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
    case when folded.whole and folded.by_backfill then '[]' else claimed.missing end as missing,
    claimed.revision,
    coalesce(folded.backfilled, 0)::number(38, 0) as backfilled,
    claimed.landed_at
from claimed
left join folded on folded.symbol = claimed.symbol and folded.open_time = claimed.open_time
left join priced on priced.symbol = claimed.symbol and priced.open_time = claimed.open_time

union all

select
    symbol,
    '1m' as interval,
    open_time,
    dateadd('microsecond', 59999999, open_time) as close_time,
    open::number(38, 18) as open,
    high::number(38, 18) as high,
    low::number(38, 18) as low,
    close::number(38, 18) as close,
    volume::number(38, 18) as volume,
    quote_volume::number(38, 18) as quote_volume,
    trade_count::number(38, 0) as trade_count,
    taker_buy_volume::number(38, 18) as taker_buy_volume,
    taker_buy_quote_volume::number(38, 18) as taker_buy_quote_volume,
    first_trade_id::number(38, 0) as first_trade_id,
    last_trade_id::number(38, 0) as last_trade_id,
    '[]' as missing,
    null::number(38, 0) as revision,
    backfilled::number(38, 0) as backfilled,
    landed_at
from unstated
