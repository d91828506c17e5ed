"""The consumer that a good engineer writes in an afternoon: poll a message, ask onnxruntime, produce the answer.

`python kafka_loop.py predict|copy BROKER SOURCE SINK GROUP`. `copy` moves messages in batches without a model, and
commits each batch in a transaction: the most that broker and client can do here.
"""

import json
import sys

import numpy as np
from confluent_kafka import Consumer, Producer

JOIN = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}
BATCH = 4096


def predict(consumer: Consumer, settings: dict, sink: str) -> None:
    """Offsets are committed every five seconds in the background: at least once."""
    from onnx_session import OnnxSession

    model, producer = OnnxSession(), Producer({**settings, "linger.ms": 5})
    while True:
        message = consumer.poll(1.0)
        if message is None or message.error():
            continue
        row = np.array([json.loads(message.value())["x"]], np.float32)
        outputs = {name: array[0].tolist() for name, array in model.run({"x": row}).items()}
        while True:
            try:
                producer.produce(sink, json.dumps(outputs), message.key())
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)


def copy(consumer: Consumer, settings: dict, sink: str, group: str) -> None:
    producer = Producer({**settings, "transactional.id": group, "linger.ms": 0, "compression.type": "lz4"})
    producer.init_transactions(30)
    while True:
        messages = [message for message in consumer.consume(BATCH, 0.1) if message.error() is None]
        if not messages:
            continue
        producer.begin_transaction()
        producer.produce_batch(sink, [{"value": m.value(), "key": m.key()} for m in messages])
        producer.flush(30)
        places = consumer.position(consumer.assignment())
        producer.send_offsets_to_transaction(places, consumer.consumer_group_metadata(), 30)
        producer.commit_transaction(30)


def main() -> None:
    kind, broker, source, sink, group = sys.argv[1:]
    settings = {"bootstrap.servers": broker}
    automatic = kind == "predict"
    consumer = Consumer(
        {**settings, **JOIN, "group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": automatic}
    )
    consumer.subscribe([source])
    if automatic:
        predict(consumer, settings, sink)
    else:
        copy(consumer, settings, sink, group)


if __name__ == "__main__":
    main()
