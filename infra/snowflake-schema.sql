-- The warehouse of MarketFlow: database, schemas, stage and the tables that the loader lands rows in.
--
-- Idempotent: every statement may run again at any time and changes nothing that is there. Runs as it is on
-- Snowflake (`snow sql -f infra/snowflake-schema.sql`) and on fakesnow; `python -m marketflow_loader.schema`
-- applies it to whatever MARKETFLOW_SNOWFLAKE_* names, under the database named there. dbt builds the rest
-- (STAGING.TRADES, STAGING.OHLCV_AGG, ANALYTICS.TRADING_SIGNALS, ...) and owns it.
--
-- What lands where. One writer per table: the loader, append-only; what has landed is exactly what a
-- read_committed reader of the topic sees, each record once.
--
--   topic            record                      table
--   ohlcv_raw        trade                       RAW.TRADES
--   ohlcv_raw        watermark, gap, bar         RAW.FEED_EVENTS           EVENT_TYPE tells which
--   ohlcv_agg        candle                      STAGING.OHLCV_STREAM
--   trading_signals  signal                      ANALYTICS.SIGNALS_STREAM
--   trading_signals  command                     ANALYTICS.COMMANDS
--   order_events     all                         ANALYTICS.ORDER_EVENTS    EVENT_TYPE tells which
--   any              what cannot be read         RAW.REJECTS               bytes and reason
--   (positions)                                  RAW.LOAD_OFFSETS          NEXT_OFFSET per topic, id, partition
--   (none)           trades of public dumps      RAW.TRADES_BACKFILL       by `marketflow backfill`
--
-- Every row that comes from a topic starts with the same six columns:
--
--   KAFKA_TOPIC        full name of the topic, prefix included
--   KAFKA_TOPIC_ID     the id that Kafka gave the topic when it was made: a topic made anew has another
--   KAFKA_PARTITION, KAFKA_OFFSET
--   KAFKA_APPENDED_AT  when the broker appended it (LogAppendTime, milliseconds): measures the stages
--   LANDED_AT          when the loader began the flush, by its clock
--
-- KAFKA_TOPIC_ID, KAFKA_PARTITION, KAFKA_OFFSET is the key: unique over the tables of a topic together with
-- RAW.REJECTS. Offsets have holes where Kafka keeps transaction markers and aborted records; every landed
-- offset is below its partition's NEXT_OFFSET. Then come the event's own fields, in upper case, under the
-- names of libs/common/src/marketflow_common/events.py:
--
--   a price, quantity or amount (Decimal)        NUMBER(38,18), never FLOAT
--   *_AT, OPEN_TIME, CLOSE_TIME, THROUGH         TIMESTAMP_LTZ, microseconds kept
--   other integers (ids, counts, TIMESTAMP_MS)   NUMBER(38,0)
--   lists and maps (MISSING, LEVELS, REASONS,    VARCHAR holding JSON, numbers in it as the topic has them
--   BALANCES)                                    (ids as numbers, amounts as strings)
--   a watermark's kline                          KLINE_OPEN_TIME, KLINE_OPEN, ...
--
-- In tables of several kinds of record a column that the kind does not have is NULL. (On fakesnow a NULL
-- timestamp arrives at the client as 1970-01-01; `IS NULL` in SQL tells the truth.)
--
-- On a Snowflake account. Who may do what is in infra/snowflake-roles.sql, the same tables for Terraform in
-- infra/snowflake-schema.tf (a test holds the two equal). None of the statements below was run on an account.
--
--   Retention   Rows are kept for ever. Time Travel is Snowflake's one day; what was deleted by mistake within it
--               comes back by INSERT INTO ... SELECT ... AT (OFFSET => -3600). Longer costs storage for every row
--               that dbt replaces: ALTER DATABASE MARKETFLOW SET DATA_RETENTION_TIME_IN_DAYS = 7. The topics are a
--               second copy: seven days of ohlcv_raw, thirty of candles and signals, all of order_events
--               (infra/kafka-topics.tf). dbt's tables are transient: they have no Fail-safe, and are made anew by
--               --full-refresh.
--   Clustering  None. Rows land in the order of time, so a micro-partition holds a short stretch of LANDED_AT,
--               TRADED_AT and TRADE_ID, which is what dbt asks by. A backfill lands in the order of ids too. Where
--               SELECT SYSTEM$CLUSTERING_INFORMATION('RAW.TRADES', '(SYMBOL, TRADED_AT::DATE)') shows a depth that
--               grows: ALTER TABLE RAW.TRADES CLUSTER BY (SYMBOL, TRADED_AT::DATE), which costs credits from then on.
--   Cost        What is paid for is the time that the virtual warehouse is awake. A flush a second keeps it awake all
--               day; one in five minutes, with AUTO_SUSPEND = 60, for about a minute each (loader/README.md). Each flush
--               makes a micro-partition per table, so rare flushes make the tables faster to read as well.

CREATE DATABASE IF NOT EXISTS MARKETFLOW;
USE DATABASE MARKETFLOW;

CREATE SCHEMA IF NOT EXISTS RAW;
CREATE SCHEMA IF NOT EXISTS STAGING;
CREATE SCHEMA IF NOT EXISTS ANALYTICS;
CREATE SCHEMA IF NOT EXISTS MONITORING;

-- The loader's Parquet files pass through here and are purged by the COPY that loads them.
CREATE STAGE IF NOT EXISTS RAW.LANDING;

CREATE TABLE IF NOT EXISTS RAW.LOAD_OFFSETS (
    KAFKA_TOPIC VARCHAR NOT NULL,
    KAFKA_TOPIC_ID VARCHAR NOT NULL,
    KAFKA_PARTITION NUMBER(38,0) NOT NULL,
    NEXT_OFFSET NUMBER(38,0) NOT NULL,
    UPDATED_AT TIMESTAMP_LTZ NOT NULL,
    PRIMARY KEY (KAFKA_TOPIC, KAFKA_TOPIC_ID, KAFKA_PARTITION)
);

CREATE TABLE IF NOT EXISTS RAW.TRADES (
    KAFKA_TOPIC VARCHAR NOT NULL,
    KAFKA_TOPIC_ID VARCHAR NOT NULL,
    KAFKA_PARTITION NUMBER(38,0) NOT NULL,
    KAFKA_OFFSET NUMBER(38,0) NOT NULL,
    KAFKA_APPENDED_AT TIMESTAMP_LTZ NOT NULL,
    LANDED_AT TIMESTAMP_LTZ NOT NULL,
    SOURCE VARCHAR NOT NULL,
    SYMBOL VARCHAR NOT NULL,
    TRADE_ID NUMBER(38,0) NOT NULL,
    PRICE NUMBER(38,18) NOT NULL,
    QTY NUMBER(38,18) NOT NULL,
    BUYER_IS_MAKER BOOLEAN NOT NULL,
    TRADED_AT TIMESTAMP_LTZ NOT NULL,
    RECEIVED_AT TIMESTAMP_LTZ NOT NULL
);

-- Trades of the exchange's public dumps. FILE names the dump and its member, FILE_ROW is the line within it, from 1;
-- LANDED_AT is when the load of the file began. A file that is loaded twice is here twice: dbt takes each
-- (SYMBOL, TRADE_ID) once, and prefers the stream's (STAGING.TRADES).
CREATE TABLE IF NOT EXISTS RAW.TRADES_BACKFILL (
    SOURCE VARCHAR NOT NULL,
    FILE VARCHAR NOT NULL,
    FILE_ROW NUMBER(38,0) NOT NULL,
    LANDED_AT TIMESTAMP_LTZ NOT NULL,
    SYMBOL VARCHAR NOT NULL,
    TRADE_ID NUMBER(38,0) NOT NULL,
    PRICE NUMBER(38,18) NOT NULL,
    QTY NUMBER(38,18) NOT NULL,
    BUYER_IS_MAKER BOOLEAN NOT NULL,
    TRADED_AT TIMESTAMP_LTZ NOT NULL
);

CREATE TABLE IF NOT EXISTS RAW.FEED_EVENTS (
    KAFKA_TOPIC VARCHAR NOT NULL,
    KAFKA_TOPIC_ID VARCHAR NOT NULL,
    KAFKA_PARTITION NUMBER(38,0) NOT NULL,
    KAFKA_OFFSET NUMBER(38,0) NOT NULL,
    KAFKA_APPENDED_AT TIMESTAMP_LTZ NOT NULL,
    LANDED_AT TIMESTAMP_LTZ NOT NULL,
    EVENT_TYPE VARCHAR NOT NULL,
    SOURCE VARCHAR NOT NULL,
    SYMBOL VARCHAR NOT NULL,
    -- watermark
    THROUGH TIMESTAMP_LTZ,
    LAST_TRADE_ID NUMBER(38,0),
    KLINE_OPEN_TIME TIMESTAMP_LTZ,
    KLINE_CLOSE_TIME TIMESTAMP_LTZ,
    KLINE_OPEN NUMBER(38,18),
    KLINE_HIGH NUMBER(38,18),
    KLINE_LOW NUMBER(38,18),
    KLINE_CLOSE NUMBER(38,18),
    KLINE_VOLUME NUMBER(38,18),
    KLINE_QUOTE_VOLUME NUMBER(38,18),
    KLINE_TRADE_COUNT NUMBER(38,0),
    KLINE_TAKER_BUY_VOLUME NUMBER(38,18),
    KLINE_TAKER_BUY_QUOTE_VOLUME NUMBER(38,18),
    KLINE_FIRST_TRADE_ID NUMBER(38,0),
    KLINE_LAST_TRADE_ID NUMBER(38,0),
    -- gap (LAST_TRADE_ID too)
    FIRST_TRADE_ID NUMBER(38,0),
    REASON VARCHAR,
    FINAL BOOLEAN,
    -- bar
    INTERVAL VARCHAR,
    OPEN_TIME TIMESTAMP_LTZ,
    CLOSE_TIME TIMESTAMP_LTZ,
    OPEN NUMBER(38,18),
    HIGH NUMBER(38,18),
    LOW NUMBER(38,18),
    CLOSE NUMBER(38,18),
    VOLUME NUMBER(38,18)
);

CREATE TABLE IF NOT EXISTS RAW.REJECTS (
    KAFKA_TOPIC VARCHAR NOT NULL,
    KAFKA_TOPIC_ID VARCHAR NOT NULL,
    KAFKA_PARTITION NUMBER(38,0) NOT NULL,
    KAFKA_OFFSET NUMBER(38,0) NOT NULL,
    KAFKA_APPENDED_AT TIMESTAMP_LTZ NOT NULL,
    LANDED_AT TIMESTAMP_LTZ NOT NULL,
    REASON VARCHAR NOT NULL,
    KEY_BASE64 VARCHAR,
    VALUE_BASE64 VARCHAR
);

CREATE TABLE IF NOT EXISTS STAGING.OHLCV_STREAM (
    KAFKA_TOPIC VARCHAR NOT NULL,
    KAFKA_TOPIC_ID VARCHAR NOT NULL,
    KAFKA_PARTITION NUMBER(38,0) NOT NULL,
    KAFKA_OFFSET NUMBER(38,0) NOT NULL,
    KAFKA_APPENDED_AT TIMESTAMP_LTZ NOT NULL,
    LANDED_AT TIMESTAMP_LTZ NOT NULL,
    SYMBOL VARCHAR NOT NULL,
    INTERVAL VARCHAR NOT NULL,
    OPEN_TIME TIMESTAMP_LTZ NOT NULL,
    CLOSE_TIME TIMESTAMP_LTZ NOT NULL,
    OPEN NUMBER(38,18) NOT NULL,
    HIGH NUMBER(38,18) NOT NULL,
    LOW NUMBER(38,18) NOT NULL,
    CLOSE NUMBER(38,18) NOT NULL,
    VOLUME NUMBER(38,18) NOT NULL,
    QUOTE_VOLUME NUMBER(38,18) NOT NULL,
    TRADE_COUNT NUMBER(38,0) NOT NULL,
    TAKER_BUY_VOLUME NUMBER(38,18) NOT NULL,
    TAKER_BUY_QUOTE_VOLUME NUMBER(38,18) NOT NULL,
    FIRST_TRADE_ID NUMBER(38,0) NOT NULL,
    LAST_TRADE_ID NUMBER(38,0) NOT NULL,
    MISSING VARCHAR NOT NULL,
    REVISION NUMBER(38,0) NOT NULL
);

CREATE TABLE IF NOT EXISTS ANALYTICS.SIGNALS_STREAM (
    KAFKA_TOPIC VARCHAR NOT NULL,
    KAFKA_TOPIC_ID VARCHAR NOT NULL,
    KAFKA_PARTITION NUMBER(38,0) NOT NULL,
    KAFKA_OFFSET NUMBER(38,0) NOT NULL,
    KAFKA_APPENDED_AT TIMESTAMP_LTZ NOT NULL,
    LANDED_AT TIMESTAMP_LTZ NOT NULL,
    ID VARCHAR NOT NULL,
    STRATEGY VARCHAR NOT NULL,
    PARAMETERS VARCHAR NOT NULL,
    SYMBOL VARCHAR NOT NULL,
    INTERVAL VARCHAR NOT NULL,
    OPEN_TIME TIMESTAMP_LTZ NOT NULL,
    CLOSE NUMBER(38,18) NOT NULL,
    VOLUME NUMBER(38,18) NOT NULL,
    MOMENTUM NUMBER(38,18) NOT NULL,
    SIGNAL_TYPE VARCHAR NOT NULL,
    LAST_TRADE_ID NUMBER(38,0) NOT NULL,
    LEVELS VARCHAR NOT NULL,
    REASONS VARCHAR NOT NULL
);

CREATE TABLE IF NOT EXISTS ANALYTICS.COMMANDS (
    KAFKA_TOPIC VARCHAR NOT NULL,
    KAFKA_TOPIC_ID VARCHAR NOT NULL,
    KAFKA_PARTITION NUMBER(38,0) NOT NULL,
    KAFKA_OFFSET NUMBER(38,0) NOT NULL,
    KAFKA_APPENDED_AT TIMESTAMP_LTZ NOT NULL,
    LANDED_AT TIMESTAMP_LTZ NOT NULL,
    ID VARCHAR NOT NULL,
    ACCOUNT VARCHAR NOT NULL,
    ACTION VARCHAR NOT NULL,
    ASKED_BY VARCHAR NOT NULL,
    ISSUED_AT TIMESTAMP_LTZ NOT NULL,
    EXPIRES_AT TIMESTAMP_LTZ,
    SIGNATURE VARCHAR NOT NULL,
    REASON VARCHAR NOT NULL
);

-- EVENT_TYPE: account_opened, order_intended, order_accepted, order_filled, order_rejected, order_canceled,
-- order_expired, order_unresolved, signal_skipped, trading_state_changed.
CREATE TABLE IF NOT EXISTS ANALYTICS.ORDER_EVENTS (
    KAFKA_TOPIC VARCHAR NOT NULL,
    KAFKA_TOPIC_ID VARCHAR NOT NULL,
    KAFKA_PARTITION NUMBER(38,0) NOT NULL,
    KAFKA_OFFSET NUMBER(38,0) NOT NULL,
    KAFKA_APPENDED_AT TIMESTAMP_LTZ NOT NULL,
    LANDED_AT TIMESTAMP_LTZ NOT NULL,
    EVENT_TYPE VARCHAR NOT NULL,
    ACCOUNT VARCHAR NOT NULL,
    MODE VARCHAR,
    BALANCES VARCHAR,
    OPENED_AT TIMESTAMP_LTZ,
    ORDER_ID VARCHAR,
    SIGNAL_ID VARCHAR,
    ATTEMPT NUMBER(38,0),
    SYMBOL VARCHAR,
    SIDE VARCHAR,
    ORDER_TYPE VARCHAR,
    QTY NUMBER(38,18),
    QUOTE_QTY NUMBER(38,18),
    PRICE NUMBER(38,18),
    TIMESTAMP_MS NUMBER(38,0),
    RECV_WINDOW_MS NUMBER(38,0),
    SIGNAL_CLOSE NUMBER(38,18),
    SIGNAL_LAST_TRADE_ID NUMBER(38,0),
    EXCHANGE_ORDER_ID NUMBER(38,0),
    ACCEPTED_AT TIMESTAMP_LTZ,
    FILL_ID NUMBER(38,0),
    COMMISSION NUMBER(38,18),
    COMMISSION_ASSET VARCHAR,
    REALIZED_PNL NUMBER(38,18),
    PROFIT_PCT NUMBER(38,18),
    POSITION_QTY NUMBER(38,18),
    POSITION_COST NUMBER(38,18),
    FILLED_AT TIMESTAMP_LTZ,
    COMPLETE BOOLEAN,
    CODE NUMBER(38,0),
    REASON VARCHAR,
    SIGNAL_TYPE VARCHAR,
    DETAIL VARCHAR,
    STATE VARCHAR,
    CHANGED_BY VARCHAR,
    CHANGED_AT TIMESTAMP_LTZ,
    CONVENTION VARCHAR,
    EXCHANGE_TYPE VARCHAR,
    TIME_IN_FORCE VARCHAR,
    STOP_PRICE NUMBER(38,18),
    LIST_ID VARCHAR,
    REPLACES VARCHAR,
    COMMISSION_PRICE NUMBER(38,18),
    DECIDED_AT TIMESTAMP_LTZ,
    COMMAND_ID VARCHAR,
    ACTION VARCHAR
);
