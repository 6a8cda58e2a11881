-- The band rule in SQL says of every pair of candles what the strategy said: BUY when close < previous low times a
-- factor, else SELL when close > previous high times a factor, else HOLD. Both candles as first stated (revision 0).
-- A signal without levels was not decided (its lookback was not full) and has to be HOLD. What a signal says of its
-- candles (close, volume, last trade, levels) is what they say.

with candles as (

    select symbol, open_time, low, high, close, volume, last_trade_id
    from {{ source('stream', 'OHLCV_STREAM') }}
    where interval = '1m' and revision = 0
    qualify row_number() over (partition by symbol, open_time order by kafka_appended_at, kafka_offset) = 1

),

signals as (

    select
        *,
        parse_json(parameters):buy_factor::varchar::number(20, 8) as buy_factor,
        parse_json(parameters):sell_factor::varchar::number(20, 8) as sell_factor,
        parse_json(levels):previous_low::varchar::number(38, 18) as level_low,
        parse_json(levels):previous_high::varchar::number(38, 18) as level_high
    from {{ ref('trading_signals') }}
    where strategy = 'band' and interval = '1m'

),

judged as (

    select
        signals.id, signals.symbol, signals.open_time, signals.signal_type,
        signals.kafka_topic, signals.kafka_partition, signals.kafka_offset,
        case
            when signals.levels = '{}' then 'HOLD'
            when this_one.close < previous.low * signals.buy_factor then 'BUY'
            when this_one.close > previous.high * signals.sell_factor then 'SELL'
            when this_one.close is not null and previous.low is not null then 'HOLD'
        end as expected,
        signals.close = this_one.close
            and signals.volume = this_one.volume
            and signals.last_trade_id = this_one.last_trade_id
            and (
                signals.levels = '{}'
                or (signals.level_low = previous.low and signals.level_high = previous.high)
            ) as says_the_same
    from signals
    left join candles as this_one
        on this_one.symbol = signals.symbol and this_one.open_time = signals.open_time
    left join candles as previous
        on previous.symbol = signals.symbol and previous.open_time = dateadd('minute', -1, signals.open_time)

)

select *
from judged
where expected is null or expected <> signal_type or not coalesce(says_the_same, false)
