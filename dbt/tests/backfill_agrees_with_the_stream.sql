-- Where both the stream and a dump have an id, they say the same of the trade. To the millisecond: dumps since 2025 have
-- microseconds, and the stream has them only where it is told to.

select
    stream.symbol, stream.trade_id, stream.kafka_topic, stream.kafka_partition, stream.kafka_offset,
    dump.file, dump.file_row,
    stream.price as stream_price, dump.price as dump_price,
    stream.qty as stream_qty, dump.qty as dump_qty,
    stream.traded_at as stream_traded_at, dump.traded_at as dump_traded_at
from {{ source('raw', 'TRADES_BACKFILL') }} as dump
join {{ source('raw', 'TRADES') }} as stream
    on stream.symbol = dump.symbol and stream.trade_id = dump.trade_id
where stream.price <> dump.price
   or stream.qty <> dump.qty
   or stream.buyer_is_maker <> dump.buyer_is_maker
   or date_trunc('millisecond', stream.traded_at) <> date_trunc('millisecond', dump.traded_at)
