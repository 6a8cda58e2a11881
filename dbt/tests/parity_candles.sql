-- Every candle of the stream equals, in all its fields, what SQL folds from STAGING.TRADES, and none is without a partner.
-- In a minute with known missing trades first and last id are bounds and may be ids that nobody has, and where it has
-- no trade at all its price is that of a trade that another way may know better.
--
-- Two kinds of row may differ, for a reason that is checked instead. One that the stream has not stated (no revision) has
-- no partner. One with missing trades that a dump has made whole has the stream's trades and the dump's.

with stream as (

    select *
    from {{ source('stream', 'OHLCV_STREAM') }}
    where interval = '1m' and {{ settled() }}
    qualify row_number() over (
        partition by symbol, interval, open_time order by revision desc, kafka_appended_at desc, kafka_offset desc
    ) = 1

),

paired as (

    select
        coalesce(stream.symbol, batch.symbol) as symbol,
        coalesce(stream.open_time, batch.open_time) as open_time,
        stream.kafka_topic, stream.kafka_partition, stream.kafka_offset,
        stream.open as stream_open, batch.open as batch_open,
        stream.high as stream_high, batch.high as batch_high,
        stream.low as stream_low, batch.low as batch_low,
        stream.close as stream_close, batch.close as batch_close,
        stream.volume as stream_volume, batch.volume as batch_volume,
        stream.quote_volume as stream_quote_volume, batch.quote_volume as batch_quote_volume,
        stream.trade_count as stream_trade_count, batch.trade_count as batch_trade_count,
        batch.backfilled,
        case
            when stream.symbol is null then batch.revision is null
            when batch.symbol is null then false
            when stream.missing <> '[]' and batch.missing = '[]'
                then stream.trade_count + batch.backfilled = batch.trade_count
                and stream.volume <= batch.volume
                and (stream.trade_count = 0 or (stream.high <= batch.high and stream.low >= batch.low))
                and stream.revision = batch.revision
            else stream.close_time = batch.close_time
                and (
                    (stream.missing <> '[]' and stream.trade_count = 0)
                    or (
                        stream.open = batch.open and stream.high = batch.high
                        and stream.low = batch.low and stream.close = batch.close
                    )
                )
                and stream.volume = batch.volume
                and stream.quote_volume = batch.quote_volume
                and stream.trade_count = batch.trade_count
                and stream.taker_buy_volume = batch.taker_buy_volume
                and stream.taker_buy_quote_volume = batch.taker_buy_quote_volume
                and (stream.missing <> '[]' or stream.first_trade_id = batch.first_trade_id)
                and (stream.missing <> '[]' or stream.last_trade_id = batch.last_trade_id)
                and stream.missing = batch.missing
                and stream.revision = batch.revision
        end as agrees
    from stream
    full outer join {{ ref('ohlcv_agg') }} as batch
        on batch.symbol = stream.symbol and batch.interval = stream.interval and batch.open_time = stream.open_time

)

select *
from paired
where not coalesce(agrees, false)
