{{ config(materialized='incremental', unique_key=['symbol', 'trade_id']) }}

-- Every trade once, by symbol and id: as the stream has landed it, and from the exchange's dumps where it has not.

with landed as (

    select
        source,
        symbol,
        trade_id,
        price,
        qty,
        buyer_is_maker,
        traded_at,
        received_at,
        'stream' as origin,
        kafka_topic,
        kafka_topic_id,
        kafka_partition,
        kafka_offset,
        kafka_appended_at,
        null::varchar as file,
        null::number(38, 0) as file_row,
        landed_at
    from {{ source('raw', 'TRADES') }}
    where {{ settled() }}

    union all

    select
        source,
        symbol,
        trade_id,
        price,
        qty,
        buyer_is_maker,
        traded_at,
        null::timestamp_ltz as received_at,
        'backfill' as origin,
        null::varchar as kafka_topic,
        null::varchar as kafka_topic_id,
        null::number(38, 0) as kafka_partition,
        null::number(38, 0) as kafka_offset,
        null::timestamp_ltz as kafka_appended_at,
        file,
        file_row,
        landed_at
    from {{ source('raw', 'TRADES_BACKFILL') }}
    where {{ settled() }}

),

chosen as (

    {%- if is_incremental() %}

    -- Of an id of which something has landed, everything: what came before may be what is preferred.
    select landed.*
    from landed
    join (
        select distinct symbol, trade_id from landed where landed_at >= {{ late_arrival_start() }}
    ) as touched on touched.symbol = landed.symbol and touched.trade_id = landed.trade_id

    {%- else %}

    select * from landed

    {%- endif %}

)

select
    source,
    symbol,
    trade_id,
    price,
    qty,
    buyer_is_maker,
    traded_at,
    received_at,
    origin,
    kafka_topic,
    kafka_topic_id,
    kafka_partition,
    kafka_offset,
    kafka_appended_at,
    file,
    file_row,
    max(landed_at) over (partition by symbol, trade_id) as landed_at
from chosen
-- The stream's row first; of several (a topic that was made anew, a dump that was loaded twice) the one that came first.
qualify row_number() over (
    partition by symbol, trade_id
    order by case when origin = 'stream' then 0 else 1 end, kafka_appended_at, kafka_offset, chosen.landed_at, file, file_row
) = 1
