"""A program that knows nothing of mas-transport, with kafka-python. KafkaClient.java is the same one.

    kafka_client.py publish <brokers> <topic>   one record for each line of stdin; prints its partition
    kafka_client.py read <brokers> <topic>      prints every record that is there now

A record is a line of JSON: `partition` (when it was read), `key`, `headers` (a list of `name` and `value`)
and `value`, in base64, or null.
"""

import base64
import json
import sys
import time

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

LIMIT = 30


def bytes_of(text):
    return None if text is None else base64.b64decode(text, validate=True)


def text_of(data):
    return None if data is None else base64.b64encode(data).decode()


def publish(brokers, topic):
    # The partitioner is the default.
    producer = KafkaProducer(bootstrap_servers=brokers, allow_auto_create_topics=False)
    sent = []
    for line in sys.stdin:
        record = json.loads(line)
        headers = [(h["name"], bytes_of(h["value"])) for h in record["headers"]]
        key, value = bytes_of(record["key"]), bytes_of(record["value"])
        sent.append(producer.send(topic, key=key, value=value, headers=headers))
    for future in sent:
        print(future.get(timeout=LIMIT).partition)
    producer.close(timeout=LIMIT)


def read(brokers, topic):
    consumer = KafkaConsumer(
        bootstrap_servers=brokers, auto_offset_reset="earliest", enable_auto_commit=False
    )
    partitions = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(partitions)
    ends = consumer.end_offsets(partitions)
    until = time.monotonic() + LIMIT
    while any(consumer.position(p) < ends[p] for p in partitions):
        if time.monotonic() > until:
            sys.exit(f"not read to {ends} in time")
        for records in consumer.poll(timeout_ms=200).values():
            for record in records:
                headers = [{"name": n, "value": text_of(v)} for n, v in record.headers]
                whole = {
                    "partition": record.partition,
                    "key": text_of(record.key),
                    "headers": headers,
                    "value": text_of(record.value),
                }
                print(json.dumps(whole))
    consumer.close()


command, *arguments = sys.argv[1:]
{"publish": publish, "read": read}[command](*arguments)
