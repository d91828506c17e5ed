"""The model as every peer runs it: one onnxruntime session, one intra-op thread unless BENCH_THREADS says more."""

import os

import numpy as np
import onnxruntime as ort

DTYPES = {"FP32": np.float32, "INT64": np.int64}
NAMES = {np.dtype(kind): name for name, kind in DTYPES.items()}


class OnnxSession:
    """Inputs by name in, outputs by name out. `path` defaults to the environment variable BENCH_MODEL."""

    def __init__(self, path: str = "") -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("BENCH_THREADS", "1"))
        options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(
            path or os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self.session.run(self.outputs, inputs), strict=True))
