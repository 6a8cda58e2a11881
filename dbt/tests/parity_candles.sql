-- Every candle of the stream equals, in all its fields, what SQL folds from RAW.TRADES, and none is without a partner.
-- In a minute with known missing trades first and last id are bounds and may be ids that nobody has.

with stream as (

    select *
    from {{ source('stream', 'OHLCV_STREAM') }}
    where interval = '1m' and {{ settled() }}
    qualify row_number() over (
        partition by symbol, interval, open_time order by revision desc, kafka_appended_at desc, kafka_offset desc
    ) = 1

)

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
    stream.trade_count as stream_trade_count, batch.trade_count as batch_trade_count
from stream
full outer join {{ ref('ohlcv_agg') }} as batch
    on batch.symbol = stream.symbol and batch.interval = stream.interval and batch.open_time = stream.open_time
where stream.symbol is null
   or batch.symbol is null
   or stream.close_time <> batch.close_time
   or stream.open <> batch.open
   or stream.high <> batch.high
   or stream.low <> batch.low
   or stream.close <> batch.close
   or stream.volume <> batch.volume
   or stream.quote_volume <> batch.quote_volume
   or stream.trade_count <> batch.trade_count
   or stream.taker_buy_volume <> batch.taker_buy_volume
   or stream.taker_buy_quote_volume <> batch.taker_buy_quote_volume
   or (stream.missing = '[]' and stream.first_trade_id <> batch.first_trade_id)
   or (stream.missing = '[]' and stream.last_trade_id <> batch.last_trade_id)
   or stream.missing <> batch.missing
   or stream.revision <> batch.revision
