{{ config(materialized='incremental', unique_key=['account', 'symbol', 'day']) }}

-- What each account earned, per symbol and day, from its fills.

with filled as (

    select
        account,
        symbol,
        {{ utc_day('filled_at') }} as day,
        side,
        qty,
        quote_qty,
        commission,
        commission_asset,
        realized_pnl,
        position_qty,
        position_cost,
        order_id,
        kafka_appended_at,
        kafka_offset,
        landed_at,
        -- An exchange's fill is booked once, whatever was published twice.
        row_number() over (partition by account, symbol, fill_id order by kafka_appended_at, kafka_offset) as copy
    from {{ source('events', 'ORDER_EVENTS') }}
    where event_type = 'order_filled'
      and {{ settled() }}

),

fills as (

    select *
    from filled
    where copy = 1
    {% if is_incremental() %}
      -- A day with a new fill is computed again as a whole.
      and (account, symbol, day) in (
          select account, symbol, day from filled where landed_at >= {{ late_arrival_start() }}
      )
    {% endif %}

),

booked as (

    -- One symbol lives in one partition: append time and offset are the order of booking.
    select
        *,
        row_number() over (
            partition by account, symbol, day order by kafka_appended_at desc, kafka_offset desc
        ) as from_last
    from fills

),

fees as (

    select
        account,
        symbol,
        day,
        '{' || listagg('"' || commission_asset || '":"' || amount::varchar || '"', ',')
            within group (order by commission_asset) || '}' as fees
    from (
        select account, symbol, day, commission_asset, {{ exact_sum('commission') }}::number(38, 18) as amount
        from booked
        group by account, symbol, day, commission_asset
    ) as by_asset
    group by account, symbol, day

),

days as (

    select
        account,
        symbol,
        day,
        count(*)::number(38, 0) as fills,
        count(distinct order_id)::number(38, 0) as orders,
        {{ exact_sum("case when side = 'BUY' then qty else 0 end") }}::number(38, 18) as bought_qty,
        {{ exact_sum("case when side = 'BUY' then quote_qty else 0 end") }}::number(38, 18) as bought_quote,
        {{ exact_sum("case when side = 'SELL' then qty else 0 end") }}::number(38, 18) as sold_qty,
        {{ exact_sum("case when side = 'SELL' then quote_qty else 0 end") }}::number(38, 18) as sold_quote,
        {{ exact_sum('case when startswith(symbol, commission_asset) then commission else 0 end') }}::number(38, 18) as fee_base,
        {{ exact_sum('case when endswith(symbol, commission_asset) then commission else 0 end') }}::number(38, 18) as fee_quote,
        {{ exact_sum('realized_pnl') }}::number(38, 18) as realized_pnl,
        {{ exact_sum('case when from_last = 1 then position_qty else 0 end') }}::number(38, 18) as position_qty,
        {{ exact_sum('case when from_last = 1 then position_cost else 0 end') }}::number(38, 18) as position_cost,
        max(landed_at) as landed_at
    from booked
    group by account, symbol, day

)

select days.*, fees.fees
from days
join fees on fees.account = days.account and fees.symbol = days.symbol and fees.day = days.day
