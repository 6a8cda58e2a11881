{# A model lives in the schema that dbt_project.yml names, in every target: the tables' names are an interface. #}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {{ (custom_schema_name or target.schema) | trim | upper }}
{%- endmacro %}
