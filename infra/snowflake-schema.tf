# The warehouse of infra/snowflake-schema.sql for those who keep an account in Terraform: the same database, schemas,
# stage, tables, columns, types and nullability, as a test checks. Never applied: no test has an account. Use one of
# the two, and for roles and grants infra/snowflake-roles.sql with either.
#
#   export SNOWFLAKE_ORGANIZATION_NAME=... SNOWFLAKE_ACCOUNT_NAME=... SNOWFLAKE_USER=...
#   export SNOWFLAKE_PRIVATE_KEY="$(cat admin.p8)"
#   terraform -chdir=infra/terraform/snowflake init
#   terraform -chdir=infra/terraform/snowflake apply
#
# What exists already is taken over first: terraform import 'snowflake_table.landed["RAW.TRADES"]' 'MARKETFLOW|RAW|TRADES'.
# The primary key of RAW.LOAD_OFFSETS is left out: Snowflake does not enforce it, and nothing reads it.

terraform {
  required_version = ">= 1.5"
  required_providers {
    snowflake = {
      source  = "snowflakedb/snowflake"
      version = "~> 2.13"
    }
  }
}

provider "snowflake" {
  authenticator            = "SNOWFLAKE_JWT"
  role                     = "SYSADMIN"
  preview_features_enabled = ["snowflake_stage_internal_resource", "snowflake_table_resource"]
}

variable "database" {
  description = "Name of the database; MARKETFLOW_SNOWFLAKE_DATABASE of the services."
  type        = string
  default     = "MARKETFLOW"
}

variable "data_retention_days" {
  description = "Days that Time Travel goes back."
  type        = number
  default     = 1
}

resource "snowflake_database" "marketflow" {
  name                        = var.database
  data_retention_time_in_days = var.data_retention_days

  lifecycle {
    prevent_destroy = true
  }
}

resource "snowflake_schema" "schemas" {
  for_each = toset(local.schemas)
  database = snowflake_database.marketflow.name
  name     = each.value
}

resource "snowflake_stage_internal" "stages" {
  for_each = toset(local.stages)
  database = snowflake_database.marketflow.name
  schema   = snowflake_schema.schemas[split(".", each.value)[0]].name
  name     = split(".", each.value)[1]
}

resource "snowflake_table" "landed" {
  for_each = local.tables
  database = snowflake_database.marketflow.name
  schema   = snowflake_schema.schemas[split(".", each.key)[0]].name
  name     = split(".", each.key)[1]

  dynamic "column" {
    for_each = each.value
    content {
      name     = column.value.name
      type     = column.value.type
      nullable = column.value.nullable
    }
  }

  # A changed column must not take the rows with it.
  lifecycle {
    prevent_destroy = true
  }
}

# Written from infra/snowflake-schema.sql by
# MARKETFLOW_UPDATE_GOLDEN=1 .venv/bin/pytest loader/tests/unit/test_schema_in_terraform.py
locals {
  schemas = ["RAW", "STAGING", "ANALYTICS", "MONITORING"]
  stages  = ["RAW.LANDING"]
  tables = {
    "RAW.LOAD_OFFSETS" = [
      { name = "KAFKA_TOPIC", type = "VARCHAR", nullable = false },
      { name = "KAFKA_TOPIC_ID", type = "VARCHAR", nullable = false },
      { name = "KAFKA_PARTITION", type = "NUMBER(38,0)", nullable = false },
      { name = "NEXT_OFFSET", type = "NUMBER(38,0)", nullable = false },
      { name = "UPDATED_AT", type = "TIMESTAMP_LTZ", nullable = false },
    ]
    "RAW.TRADES" = [
      { name = "KAFKA_TOPIC", type = "VARCHAR", nullable = false },
      { name = "KAFKA_TOPIC_ID", type = "VARCHAR", nullable = false },
      { name = "KAFKA_PARTITION", type = "NUMBER(38,0)", nullable = false },
      { name = "KAFKA_OFFSET", type = "NUMBER(38,0)", nullable = false },
      { name = "KAFKA_APPENDED_AT", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "LANDED_AT", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "SOURCE", type = "VARCHAR", nullable = false },
      { name = "SYMBOL", type = "VARCHAR", nullable = false },
      { name = "TRADE_ID", type = "NUMBER(38,0)", nullable = false },
      { name = "PRICE", type = "NUMBER(38,18)", nullable = false },
      { name = "QTY", type = "NUMBER(38,18)", nullable = false },
      { name = "BUYER_IS_MAKER", type = "BOOLEAN", nullable = false },
      { name = "TRADED_AT", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "RECEIVED_AT", type = "TIMESTAMP_LTZ", nullable = false },
    ]
    "RAW.TRADES_BACKFILL" = [
      { name = "SOURCE", type = "VARCHAR", nullable = false },
      { name = "FILE", type = "VARCHAR", nullable = false },
      { name = "FILE_ROW", type = "NUMBER(38,0)", nullable = false },
      { name = "LANDED_AT", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "SYMBOL", type = "VARCHAR", nullable = false },
      { name = "TRADE_ID", type = "NUMBER(38,0)", nullable = false },
      { name = "PRICE", type = "NUMBER(38,18)", nullable = false },
      { name = "QTY", type = "NUMBER(38,18)", nullable = false },
      { name = "BUYER_IS_MAKER", type = "BOOLEAN", nullable = false },
      { name = "TRADED_AT", type = "TIMESTAMP_LTZ", nullable = false },
    ]
    "RAW.FEED_EVENTS" = [
      { name = "KAFKA_TOPIC", type = "VARCHAR", nullable = false },
      { name = "KAFKA_TOPIC_ID", type = "VARCHAR", nullable = false },
      { name = "KAFKA_PARTITION", type = "NUMBER(38,0)", nullable = false },
      { name = "KAFKA_OFFSET", type = "NUMBER(38,0)", nullable = false },
      { name = "KAFKA_APPENDED_AT", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "LANDED_AT", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "EVENT_TYPE", type = "VARCHAR", nullable = false },
      { name = "SOURCE", type = "VARCHAR", nullable = false },
      { name = "SYMBOL", type = "VARCHAR", nullable = false },
      { name = "THROUGH", type = "TIMESTAMP_LTZ", nullable = true },
      { name = "LAST_TRADE_ID", type = "NUMBER(38,0)", nullable = true },
      { name = "KLINE_OPEN_TIME", type = "TIMESTAMP_LTZ", nullable = true },
      { name = "KLINE_CLOSE_TIME", type = "TIMESTAMP_LTZ", nullable = true },
      { name = "KLINE_OPEN", type = "NUMBER(38,18)", nullable = true },
      { name = "KLINE_HIGH", type = "NUMBER(38,18)", nullable = true },
      { name = "KLINE_LOW", type = "NUMBER(38,18)", nullable = true },
      { name = "KLINE_CLOSE", type = "NUMBER(38,18)", nullable = true },
      { name = "KLINE_VOLUME", type = "NUMBER(38,18)", nullable = true },
      { name = "KLINE_QUOTE_VOLUME", type = "NUMBER(38,18)", nullable = true },
      { name = "KLINE_TRADE_COUNT", type = "NUMBER(38,0)", nullable = true },
      { name = "KLINE_TAKER_BUY_VOLUME", type = "NUMBER(38,18)", nullable = true },
      { name = "KLINE_TAKER_BUY_QUOTE_VOLUME", type = "NUMBER(38,18)", nullable = true },
      { name = "KLINE_FIRST_TRADE_ID", type = "NUMBER(38,0)", nullable = true },
      { name = "KLINE_LAST_TRADE_ID", type = "NUMBER(38,0)", nullable = true },
      { name = "FIRST_TRADE_ID", type = "NUMBER(38,0)", nullable = true },
      { name = "REASON", type = "VARCHAR", nullable = true },
      { name = "FINAL", type = "BOOLEAN", nullable = true },
      { name = "INTERVAL", type = "VARCHAR", nullable = true },
      { name = "OPEN_TIME", type = "TIMESTAMP_LTZ", nullable = true },
      { name = "CLOSE_TIME", type = "TIMESTAMP_LTZ", nullable = true },
      { name = "OPEN", type = "NUMBER(38,18)", nullable = true },
      { name = "HIGH", type = "NUMBER(38,18)", nullable = true },
      { name = "LOW", type = "NUMBER(38,18)", nullable = true },
      { name = "CLOSE", type = "NUMBER(38,18)", nullable = true },
      { name = "VOLUME", type = "NUMBER(38,18)", nullable = true },
    ]
    "RAW.REJECTS" = [
      { name = "KAFKA_TOPIC", type = "VARCHAR", nullable = false },
      { name = "KAFKA_TOPIC_ID", type = "VARCHAR", nullable = false },
      { name = "KAFKA_PARTITION", type = "NUMBER(38,0)", nullable = false },
      { name = "KAFKA_OFFSET", type = "NUMBER(38,0)", nullable = false },
      { name = "KAFKA_APPENDED_AT", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "LANDED_AT", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "REASON", type = "VARCHAR", nullable = false },
      { name = "KEY_BASE64", type = "VARCHAR", nullable = true },
      { name = "VALUE_BASE64", type = "VARCHAR", nullable = true },
    ]
    "STAGING.OHLCV_STREAM" = [
      { name = "KAFKA_TOPIC", type = "VARCHAR", nullable = false },
      { name = "KAFKA_TOPIC_ID", type = "VARCHAR", nullable = false },
      { name = "KAFKA_PARTITION", type = "NUMBER(38,0)", nullable = false },
      { name = "KAFKA_OFFSET", type = "NUMBER(38,0)", nullable = false },
      { name = "KAFKA_APPENDED_AT", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "LANDED_AT", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "SYMBOL", type = "VARCHAR", nullable = false },
      { name = "INTERVAL", type = "VARCHAR", nullable = false },
      { name = "OPEN_TIME", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "CLOSE_TIME", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "OPEN", type = "NUMBER(38,18)", nullable = false },
      { name = "HIGH", type = "NUMBER(38,18)", nullable = false },
      { name = "LOW", type = "NUMBER(38,18)", nullable = false },
      { name = "CLOSE", type = "NUMBER(38,18)", nullable = false },
      { name = "VOLUME", type = "NUMBER(38,18)", nullable = false },
      { name = "QUOTE_VOLUME", type = "NUMBER(38,18)", nullable = false },
      { name = "TRADE_COUNT", type = "NUMBER(38,0)", nullable = false },
      { name = "TAKER_BUY_VOLUME", type = "NUMBER(38,18)", nullable = false },
      { name = "TAKER_BUY_QUOTE_VOLUME", type = "NUMBER(38,18)", nullable = false },
      { name = "FIRST_TRADE_ID", type = "NUMBER(38,0)", nullable = false },
      { name = "LAST_TRADE_ID", type = "NUMBER(38,0)", nullable = false },
      { name = "MISSING", type = "VARCHAR", nullable = false },
      { name = "REVISION", type = "NUMBER(38,0)", nullable = false },
    ]
    "ANALYTICS.SIGNALS_STREAM" = [
      { name = "KAFKA_TOPIC", type = "VARCHAR", nullable = false },
      { name = "KAFKA_TOPIC_ID", type = "VARCHAR", nullable = false },
      { name = "KAFKA_PARTITION", type = "NUMBER(38,0)", nullable = false },
      { name = "KAFKA_OFFSET", type = "NUMBER(38,0)", nullable = false },
      { name = "KAFKA_APPENDED_AT", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "LANDED_AT", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "ID", type = "VARCHAR", nullable = false },
      { name = "STRATEGY", type = "VARCHAR", nullable = false },
      { name = "PARAMETERS", type = "VARCHAR", nullable = false },
      { name = "SYMBOL", type = "VARCHAR", nullable = false },
      { name = "INTERVAL", type = "VARCHAR", nullable = false },
      { name = "OPEN_TIME", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "CLOSE", type = "NUMBER(38,18)", nullable = false },
      { name = "VOLUME", type = "NUMBER(38,18)", nullable = false },
      { name = "MOMENTUM", type = "NUMBER(38,18)", nullable = false },
      { name = "SIGNAL_TYPE", type = "VARCHAR", nullable = false },
      { name = "LAST_TRADE_ID", type = "NUMBER(38,0)", nullable = false },
      { name = "LEVELS", type = "VARCHAR", nullable = false },
      { name = "REASONS", type = "VARCHAR", nullable = false },
    ]
    "ANALYTICS.COMMANDS" = [
      { name = "KAFKA_TOPIC", type = "VARCHAR", nullable = false },
      { name = "KAFKA_TOPIC_ID", type = "VARCHAR", nullable = false },
      { name = "KAFKA_PARTITION", type = "NUMBER(38,0)", nullable = false },
      { name = "KAFKA_OFFSET", type = "NUMBER(38,0)", nullable = false },
      { name = "KAFKA_APPENDED_AT", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "LANDED_AT", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "ID", type = "VARCHAR", nullable = false },
      { name = "ACCOUNT", type = "VARCHAR", nullable = false },
      { name = "ACTION", type = "VARCHAR", nullable = false },
      { name = "ASKED_BY", type = "VARCHAR", nullable = false },
      { name = "ISSUED_AT", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "EXPIRES_AT", type = "TIMESTAMP_LTZ", nullable = true },
      { name = "SIGNATURE", type = "VARCHAR", nullable = false },
      { name = "REASON", type = "VARCHAR", nullable = false },
    ]
    "ANALYTICS.ORDER_EVENTS" = [
      { name = "KAFKA_TOPIC", type = "VARCHAR", nullable = false },
      { name = "KAFKA_TOPIC_ID", type = "VARCHAR", nullable = false },
      { name = "KAFKA_PARTITION", type = "NUMBER(38,0)", nullable = false },
      { name = "KAFKA_OFFSET", type = "NUMBER(38,0)", nullable = false },
      { name = "KAFKA_APPENDED_AT", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "LANDED_AT", type = "TIMESTAMP_LTZ", nullable = false },
      { name = "EVENT_TYPE", type = "VARCHAR", nullable = false },
      { name = "ACCOUNT", type = "VARCHAR", nullable = false },
      { name = "MODE", type = "VARCHAR", nullable = true },
      { name = "BALANCES", type = "VARCHAR", nullable = true },
      { name = "OPENED_AT", type = "TIMESTAMP_LTZ", nullable = true },
      { name = "ORDER_ID", type = "VARCHAR", nullable = true },
      { name = "SIGNAL_ID", type = "VARCHAR", nullable = true },
      { name = "ATTEMPT", type = "NUMBER(38,0)", nullable = true },
      { name = "SYMBOL", type = "VARCHAR", nullable = true },
      { name = "SIDE", type = "VARCHAR", nullable = true },
      { name = "ORDER_TYPE", type = "VARCHAR", nullable = true },
      { name = "QTY", type = "NUMBER(38,18)", nullable = true },
      { name = "QUOTE_QTY", type = "NUMBER(38,18)", nullable = true },
      { name = "PRICE", type = "NUMBER(38,18)", nullable = true },
      { name = "TIMESTAMP_MS", type = "NUMBER(38,0)", nullable = true },
      { name = "RECV_WINDOW_MS", type = "NUMBER(38,0)", nullable = true },
      { name = "SIGNAL_CLOSE", type = "NUMBER(38,18)", nullable = true },
      { name = "SIGNAL_LAST_TRADE_ID", type = "NUMBER(38,0)", nullable = true },
      { name = "EXCHANGE_ORDER_ID", type = "NUMBER(38,0)", nullable = true },
      { name = "ACCEPTED_AT", type = "TIMESTAMP_LTZ", nullable = true },
      { name = "FILL_ID", type = "NUMBER(38,0)", nullable = true },
      { name = "COMMISSION", type = "NUMBER(38,18)", nullable = true },
      { name = "COMMISSION_ASSET", type = "VARCHAR", nullable = true },
      { name = "REALIZED_PNL", type = "NUMBER(38,18)", nullable = true },
      { name = "PROFIT_PCT", type = "NUMBER(38,18)", nullable = true },
      { name = "POSITION_QTY", type = "NUMBER(38,18)", nullable = true },
      { name = "POSITION_COST", type = "NUMBER(38,18)", nullable = true },
      { name = "FILLED_AT", type = "TIMESTAMP_LTZ", nullable = true },
      { name = "COMPLETE", type = "BOOLEAN", nullable = true },
      { name = "CODE", type = "NUMBER(38,0)", nullable = true },
      { name = "REASON", type = "VARCHAR", nullable = true },
      { name = "SIGNAL_TYPE", type = "VARCHAR", nullable = true },
      { name = "DETAIL", type = "VARCHAR", nullable = true },
      { name = "STATE", type = "VARCHAR", nullable = true },
      { name = "CHANGED_BY", type = "VARCHAR", nullable = true },
      { name = "CHANGED_AT", type = "TIMESTAMP_LTZ", nullable = true },
      { name = "CONVENTION", type = "VARCHAR", nullable = true },
      { name = "EXCHANGE_TYPE", type = "VARCHAR", nullable = true },
      { name = "TIME_IN_FORCE", type = "VARCHAR", nullable = true },
      { name = "STOP_PRICE", type = "NUMBER(38,18)", nullable = true },
      { name = "LIST_ID", type = "VARCHAR", nullable = true },
      { name = "REPLACES", type = "VARCHAR", nullable = true },
      { name = "COMMISSION_PRICE", type = "NUMBER(38,18)", nullable = true },
      { name = "DECIDED_AT", type = "TIMESTAMP_LTZ", nullable = true },
      { name = "COMMAND_ID", type = "VARCHAR", nullable = true },
      { name = "ACTION", type = "VARCHAR", nullable = true },
    ]
  }
}
