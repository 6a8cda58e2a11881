{# The day of a time in UTC, whatever time zone the session has. #}
{% macro utc_day(at) -%}
    convert_timezone('UTC', {{ at }})::date
{%- endmacro %}
