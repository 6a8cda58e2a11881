-- How much each account has earned so far, and what it holds at the cost and at the day's last price.

select
    pnl.account,
    pnl.symbol,
    pnl.day,
    sum(pnl.realized_pnl::number(38, 18)) over (
        partition by pnl.account, pnl.symbol order by pnl.day rows between unbounded preceding and current row
    ) as realized_so_far,
    pnl.position_qty,
    pnl.position_cost,
    last_candle.close * pnl.position_qty::number(38, 8) as position_value
from {{ ref('portfolio_pnl') }} as pnl
left join (
    select symbol, {{ utc_day('open_time') }} as day, max_by(close, open_time) as close
    from {{ ref('ohlcv_agg') }}
    group by symbol, {{ utc_day('open_time') }}
) as last_candle on last_candle.symbol = pnl.symbol and last_candle.day = pnl.day
order by pnl.account, pnl.symbol, pnl.day
