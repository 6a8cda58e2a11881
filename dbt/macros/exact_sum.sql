{# A sum of amounts that stays exact: the local warehouse sums in floating point unless the summand is cast. #}
{% macro exact_sum(amount) -%}
    sum(({{ amount }})::number(38, 18))
{%- endmacro %}
