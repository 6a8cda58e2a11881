# The four topics of MarketFlow, and the only place that declares them: Terraform applies this file in the
# cloud, the local stack and the tests read it and create the same topics. Keep every `config` value a
# literal string: the local reader evaluates no expressions.
#
#   terraform -chdir=infra/terraform/kafka init
#   terraform -chdir=infra/terraform/kafka apply -var 'bootstrap_servers=["kafka:9092"]' -var replication_factor=1

terraform {
  required_version = ">= 1.5"
  required_providers {
    kafka = {
      source  = "Mongey/kafka"
      version = "~> 0.13"
    }
  }
}

variable "bootstrap_servers" {
  description = "Brokers to ask first, as host:port."
  type        = list(string)
  default     = ["localhost:9092"]
}

variable "replication_factor" {
  description = "Copies of every partition. Three in the cloud; the local stack has one broker and says one."
  type        = number
  default     = 3
}

variable "tls_enabled" {
  description = "Whether the brokers are spoken to by TLS."
  type        = bool
  default     = false
}

provider "kafka" {
  bootstrap_servers = var.bootstrap_servers
  tls_enabled       = var.tls_enabled
}

# A symbol lives in the same partition number in all four topics, so all four have the same count, and the
# count never changes: three lanes of work.
#
# LogAppendTime everywhere: with event time in the record's timestamp, a replay of an old day would be
# deleted by retention at once, and a market that runs ahead of the clock would be refused.
#
# compression.type=producer: the broker stores a batch as it came and never packs it anew, which would cost
# every one-record transaction its time; the producers say how they compress.

# Trades, watermarks, gaps and bars. Seven days: long enough to fold any candle again after a long weekend.
resource "kafka_topic" "ohlcv_raw" {
  name               = "ohlcv_raw"
  partitions         = 3
  replication_factor = var.replication_factor
  config = {
    "cleanup.policy"         = "delete"
    "compression.type"       = "producer"
    "message.timestamp.type" = "LogAppendTime"
    "retention.ms"           = "604800000"
  }
}

# Candles. Thirty days: at least the longest lookback of a strategy.
resource "kafka_topic" "ohlcv_agg" {
  name               = "ohlcv_agg"
  partitions         = 3
  replication_factor = var.replication_factor
  config = {
    "cleanup.policy"         = "delete"
    "compression.type"       = "producer"
    "message.timestamp.type" = "LogAppendTime"
    "retention.ms"           = "2592000000"
  }
}

# Signals and operator's commands. Thirty days.
resource "kafka_topic" "trading_signals" {
  name               = "trading_signals"
  partitions         = 3
  replication_factor = var.replication_factor
  config = {
    "cleanup.policy"         = "delete"
    "compression.type"       = "producer"
    "message.timestamp.type" = "LogAppendTime"
    "retention.ms"           = "2592000000"
  }
}

# Orders and fills. For ever: positions and PnL are a fold over this topic from its first record.
resource "kafka_topic" "order_events" {
  name               = "order_events"
  partitions         = 3
  replication_factor = var.replication_factor
  config = {
    "cleanup.policy"         = "delete"
    "compression.type"       = "producer"
    "message.timestamp.type" = "LogAppendTime"
    "retention.ms"           = "-1"
  }
}

output "topics" {
  description = "Names of the topics."
  value = [
    kafka_topic.ohlcv_raw.name,
    kafka_topic.ohlcv_agg.name,
    kafka_topic.trading_signals.name,
    kafka_topic.order_events.name,
  ]
}
