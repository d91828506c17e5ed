"""Requests and answers of the Open Inference Protocol as bytes, written independently of foretell's own codec.

JSON, the binary tensor extension, and a gRPC message framed for h2load.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.load import Payload
from benchmarks.models import Rows

NAMES = {np.dtype(np.float32): "FP32", np.dtype(np.int64): "INT64"}
KINDS = {name: kind for kind, name in NAMES.items()}


def as_json(rows: Rows) -> Payload:
    tensors = [
        {"name": key, "datatype": NAMES[a.dtype], "shape": list(a.shape), "data": a.ravel().tolist()}
        for key, a in rows.items()
    ]
    body = json.dumps({"inputs": tensors}, separators=(",", ":")).encode()
    return Payload(body, {"Content-Type": "application/json"})


def as_binary(rows: Rows) -> Payload:
    """A JSON header, then the raw tensors in order; asks for binary outputs."""
    tensors = [
        {
            "name": key,
            "datatype": NAMES[a.dtype],
            "shape": list(a.shape),
            "parameters": {"binary_data_size": a.nbytes},
        }
        for key, a in rows.items()
    ]
    document = {"inputs": tensors, "parameters": {"binary_data_output": True}}
    header = json.dumps(document, separators=(",", ":")).encode()
    return Payload(
        header + b"".join(a.tobytes() for a in rows.values()),
        {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))},
    )


def read_answer(body: bytes, headers: Mapping[str, str]) -> Rows:
    """The outputs of a JSON or binary answer, by name."""
    length = next((v for k, v in headers.items() if k.lower() == "inference-header-content-length"), None)
    at = int(length) if length else len(body)
    outputs: Rows = {}
    for tensor in json.loads(body[:at])["outputs"]:
        shape, kind = tensor["shape"], KINDS[tensor["datatype"]]
        if "data" in tensor:
            outputs[tensor["name"]] = np.array(tensor["data"], kind).reshape(shape)
            continue
        size = tensor["parameters"]["binary_data_size"]
        outputs[tensor["name"]] = np.frombuffer(body[at : at + size], kind).reshape(shape)
        at += size
    return outputs


def check_answer(got: Rows, want: Rows, tolerance: float, who: str) -> None:
    """Raise `ValueError` naming the first output that is absent or further than `tolerance` from direct ORT."""
    for key, value in want.items():
        if key not in got:
            raise ValueError(f'{who} gave no output "{key}", only {sorted(got)}')
        answer = got[key].reshape(value.shape)
        worst = float(np.max(np.abs(answer.astype(np.float64) - value)))
        if not worst <= tolerance:
            raise ValueError(f'{who}: output "{key}" is {worst:.2g} away from direct onnxruntime')


def read_grpc(answer: Any) -> Rows:
    """The outputs of a ModelInferResponse, by name, from raw or typed contents."""
    outputs: Rows = {}
    for i, tensor in enumerate(answer.outputs):
        kind = KINDS[tensor.datatype]
        if answer.raw_output_contents:
            array = np.frombuffer(answer.raw_output_contents[i], kind)
        else:
            typed = tensor.contents.fp32_contents if tensor.datatype == "FP32" else tensor.contents.int64_contents
            array = np.array(typed, kind)
        outputs[tensor.name] = array.reshape(tuple(tensor.shape))
    return outputs
