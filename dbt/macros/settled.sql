{# Whether a landed row is old enough to be worked on: see settle_seconds in dbt_project.yml. #}
{% macro settled(landed_at='landed_at') -%}
    {%- set seconds = var('settle_seconds') | int -%}
    {%- if seconds > 0 -%}
        {{ landed_at }} <= dateadd('second', -{{ seconds }}, current_timestamp())
    {%- else -%}
        true
    {%- endif -%}
{%- endmacro %}

{#
  From when on landed rows make an incremental run compute their key again. By the time of landing, not of the market:
  a replay of an old day lands today. A table without rows has no such time and takes everything.
#}
{% macro late_arrival_start() -%}
    (
        select coalesce(
            dateadd('minute', -{{ var('late_arrival_minutes') | int }}, max(landed_at)),
            '1970-01-01 00:00:00'::timestamp_ltz
        )
        from {{ this }}
    )
{%- endmacro %}
