"""Yardstick: a bare consume loop that touches each record's value and does nothing else.

python bare_consumer.py BOOTSTRAP TOPIC RECORDS. Same client settings as marketflow_common.kafka.client.consumer.
Prints one line of JSON: records, processor seconds of this process (user and system), wall seconds.
"""

from __future__ import annotations

import json
import sys
import time

from confluent_kafka import Consumer, Message, TopicPartition


def main(bootstrap: str, topic: str, records: int) -> None:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "bare",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
            "allow.auto.create.topics": False,
            "fetch.queue.backoff.ms": 2,
            "fetch.wait.max.ms": 20,
        }
    )
    partitions = consumer.list_topics(topic, 10).topics[topic].partitions
    cpu, wall, left, size = time.process_time(), time.monotonic(), records, 0
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    while left > 0:
        batch = consumer.consume(10_000, 0.5)
        size += sum(len(value or b"") for value in map(Message.value, batch))
        left -= len(batch)
        if time.monotonic() - wall > 120:
            sys.exit(f"{left} records did not come")
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    consumer.close()
    sys.stdout.write(json.dumps({"records": records - left, "cpu": cpu, "wall": wall, "bytes": size}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
