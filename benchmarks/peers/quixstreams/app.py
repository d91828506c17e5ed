"""quixstreams: `python app.py BROKER SOURCE SINK GROUP`. Its API takes one message at a time.

Its defaults (at least once), but that it commits each second and not every five.
"""

import sys

import numpy as np
from onnx_session import OnnxSession
from quixstreams import Application

JOIN = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}


def main() -> None:
    broker, source, sink, group = sys.argv[1:]
    application = Application(
        broker_address=broker,
        consumer_group=group,
        auto_offset_reset="earliest",
        commit_interval=1.0,
        consumer_extra_config=JOIN,
        auto_create_topics=False,
        loglevel="WARNING",
    )
    model = OnnxSession()

    def predict(event: dict) -> dict:
        outputs = model.run({"x": np.array([event["x"]], np.float32)})
        return {name: array[0].tolist() for name, array in outputs.items()}

    frame = application.dataframe(application.topic(source, key_deserializer="bytes"))
    frame.apply(predict).to_topic(application.topic(sink, key_serializer="bytes"))
    application.run()


if __name__ == "__main__":
    main()
