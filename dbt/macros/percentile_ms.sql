{# A percentile of the milliseconds between two times, as NUMBER; NULL where one of them is not there. #}
{% macro percentile_ms(since, until, fraction) -%}
    (percentile_cont({{ fraction }}) within group (order by datediff('millisecond', {{ since }}, {{ until }})))::number(18, 3)
{%- endmacro %}
