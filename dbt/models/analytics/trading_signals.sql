{{ config(materialized='incremental', unique_key='id') }}

-- What the strategies said, once per signal.

select
    id,
    strategy,
    parameters,
    symbol,
    interval,
    open_time,
    close,
    volume,
    momentum,
    signal_type,
    last_trade_id,
    levels,
    reasons,
    kafka_topic,
    kafka_topic_id,
    kafka_partition,
    kafka_offset,
    kafka_appended_at,
    landed_at
from {{ source('events', 'SIGNALS_STREAM') }}
where {{ settled() }}
  {% if is_incremental() %}
  and landed_at >= {{ late_arrival_start() }}
  {% endif %}
-- The same id again (after a topic was made anew) says the same; the latest is kept.
qualify row_number() over (partition by id order by kafka_appended_at desc, kafka_offset desc) = 1
