-- Complete minutes hold every id between their first and their last. A trade that has waited for its time is in none of
-- the minutes around it, and its own holds no others of theirs: where there is one, ids tell nothing.

select candle.symbol, candle.open_time, candle.trade_count, candle.first_trade_id, candle.last_trade_id
from {{ ref('ohlcv_agg') }} as candle
left join {{ ref('trades') }} as early
    on early.symbol = candle.symbol
    and early.trade_id between candle.first_trade_id and candle.last_trade_id
    and early.traded_at > dateadd('second', 10, early.received_at)
where candle.missing = '[]'
  and candle.trade_count <> candle.last_trade_id - candle.first_trade_id + 1
  and early.symbol is null
