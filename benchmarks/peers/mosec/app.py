"""mosec: batches cut by its Rust front, one worker process. BENCH_ORJSON=1 swaps its default JSON codec."""

import os

import numpy as np
import orjson
from mosec import Server, Worker
from onnx_session import NAMES, OnnxSession

ORJSON = os.environ.get("BENCH_ORJSON") == "1"


class Infer(Worker):
    def __init__(self) -> None:
        self.model = OnnxSession()

    def deserialize(self, data: bytes) -> dict:
        return orjson.loads(data) if ORJSON else super().deserialize(data)

    def serialize(self, data: dict) -> bytes:
        return orjson.dumps(data) if ORJSON else super().serialize(data)

    def forward(self, data: list[dict]) -> list[dict]:
        tensors = [request["inputs"][0] for request in data]
        rows = np.array([t["data"] for t in tensors], np.float32).reshape(len(tensors), *tensors[0]["shape"][1:])
        outputs = self.model.run({tensors[0]["name"]: rows})
        return [
            {
                "outputs": [
                    {"name": key, "datatype": NAMES[a.dtype], "shape": (1, *a.shape[1:]), "data": a[i].ravel().tolist()}
                    for key, a in outputs.items()
                ]
            }
            for i in range(len(data))
        ]


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Infer,
        num=int(os.environ.get("BENCH_WORKERS", "1")),
        max_batch_size=int(os.environ.get("BENCH_BATCH", "64")),
        max_wait_time=int(os.environ.get("BENCH_WAIT_MS", "1")),
    )
    server.run()
