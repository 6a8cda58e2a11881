{#
  Unit tests learn a model's column types from an empty temporary table. In the local warehouse such a table is in a
  namespace of its own, where nothing finds it by its schema: a transient one does as well in both, and is dropped after.
#}
{% macro snowflake__create_table_temporary_sql(relation, compiled_code) -%}
    {{ snowflake__create_table_transient_sql(relation, compiled_code) }}
{%- endmacro %}
