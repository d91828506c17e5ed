"""Triton's Python backend: all requests of a batch joined, run once, and split again."""

import os
import sys

# The backend's embedded interpreter does not read PYTHONPATH by itself.
sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)

import numpy as np  # noqa: E402
import triton_python_backend_utils as utils  # noqa: E402
from onnx_session import OnnxSession  # noqa: E402


class TritonPythonModel:
    def initialize(self, args: dict) -> None:
        self.model = OnnxSession()

    def execute(self, requests: list) -> list:
        name = self.model.inputs[0]
        parts = [utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
        outputs = self.model.run({name: np.concatenate(parts) if len(parts) > 1 else parts[0]})
        answers, at = [], 0
        for part in parts:
            end = at + len(part)
            tensors = [utils.Tensor(key, value[at:end]) for key, value in outputs.items()]
            answers.append(utils.InferenceResponse(tensors))
            at = end
        return answers
