-- The days add up to the fills: nothing is lost or counted twice on the way into ANALYTICS.PORTFOLIO_PNL.

with by_day as (

    select
        account,
        symbol,
        {{ exact_sum('fills') }} as fills,
        {{ exact_sum('realized_pnl') }} as realized,
        {{ exact_sum('bought_quote - sold_quote') }} as net
    from {{ ref('portfolio_pnl') }}
    group by account, symbol

),

by_fill as (

    select
        account,
        symbol,
        count(distinct fill_id) as fills,
        {{ exact_sum('realized_pnl') }} as realized,
        {{ exact_sum("case when side = 'BUY' then quote_qty else -quote_qty end") }} as net
    from {{ source('events', 'ORDER_EVENTS') }}
    where event_type = 'order_filled' and {{ settled() }}
    group by account, symbol

)

select
    coalesce(by_day.account, by_fill.account) as account,
    coalesce(by_day.symbol, by_fill.symbol) as symbol,
    by_day.fills as day_fills, by_fill.fills as fill_fills,
    by_day.realized as day_realized, by_fill.realized as fill_realized
from by_day
full outer join by_fill on by_fill.account = by_day.account and by_fill.symbol = by_day.symbol
where by_day.account is null
   or by_fill.account is null
   or by_day.fills <> by_fill.fills
   or by_day.realized <> by_fill.realized
   or by_day.net <> by_fill.net
