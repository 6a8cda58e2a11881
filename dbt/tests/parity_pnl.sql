-- After every fill the executor's statement agrees with the cash that moved, without any division:
--     realized so far - cost of what is held = quote received - quote paid - fees in quote
--     base held                              = base bought - base sold - fees in base
-- (executor: books.py states the same identity).

with fills as (

    select
        *,
        case when side = 'SELL' then quote_qty else -quote_qty end
            - case when endswith(symbol, commission_asset) then commission else 0 end as cash,
        case when side = 'BUY' then qty else -qty end
            - case when startswith(symbol, commission_asset) then commission else 0 end as base
    from {{ source('events', 'ORDER_EVENTS') }}
    where event_type = 'order_filled'
    qualify row_number() over (partition by account, symbol, fill_id order by kafka_appended_at, kafka_offset) = 1

),

folded as (

    select
        account, symbol, order_id, fill_id, kafka_topic, kafka_partition, kafka_offset, position_qty, position_cost,
        {{ exact_sum('realized_pnl') }} over (
            partition by account, symbol order by kafka_offset rows between unbounded preceding and current row
        ) as realized,
        {{ exact_sum('cash') }} over (
            partition by account, symbol order by kafka_offset rows between unbounded preceding and current row
        ) as cash,
        {{ exact_sum('base') }} over (
            partition by account, symbol order by kafka_offset rows between unbounded preceding and current row
        ) as base
    from fills

)

select *
from folded
where realized - position_cost <> cash or position_qty <> base
