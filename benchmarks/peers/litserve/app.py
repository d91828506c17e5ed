"""LitServe: its own batching and worker process, the queue over ZeroMQ (`fast_queue`)."""

import os

import litserve
import numpy as np
from onnx_session import NAMES, OnnxSession

BATCH = int(os.environ.get("BENCH_BATCH", "64"))


class Infer(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = OnnxSession()

    def decode_request(self, request: dict) -> np.ndarray:
        tensor = request["inputs"][0]
        return np.array(tensor["data"], np.float32).reshape(tensor["shape"])

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(inputs)

    def predict(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return self.model.run({self.model.inputs[0]: rows})

    def unbatch(self, outputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        count = len(next(iter(outputs.values())))
        return [{key: a[i : i + 1] for key, a in outputs.items()} for i in range(count)]

    def encode_response(self, outputs: dict[str, np.ndarray]) -> dict:
        return {
            "outputs": [
                {"name": key, "datatype": NAMES[a.dtype], "shape": a.shape, "data": a.ravel().tolist()}
                for key, a in outputs.items()
            ]
        }


if __name__ == "__main__":
    api = Infer(max_batch_size=BATCH, batch_timeout=float(os.environ.get("BENCH_WAIT_MS", "1")) / 1000)
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=int(os.environ.get("BENCH_WORKERS", "1")),
        fast_queue=os.environ.get("BENCH_FAST_QUEUE", "1") == "1",
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        num_api_servers=int(os.environ.get("BENCH_FRONTS", "1")),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
