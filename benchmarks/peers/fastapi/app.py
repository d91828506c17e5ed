"""The server a good engineer writes in an afternoon: FastAPI, pydantic, one session per worker, no batching.

Coroutines, not thread pool functions: for models this short the hop to a thread costs more than it frees.
Typed answers, so that pydantic writes the JSON in one pass.
"""

import json

import numpy as np
from fastapi import FastAPI, Request, Response
from onnx_session import DTYPES, NAMES, OnnxSession
from pydantic import BaseModel


class Tensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list[float] | list[int]


class InferRequest(BaseModel):
    inputs: list[Tensor]


class InferResponse(BaseModel):
    model_name: str
    outputs: list[Tensor]


app = FastAPI()
model = OnnxSession()


@app.post("/v2/models/{name}/infer")
async def infer(name: str, request: InferRequest) -> InferResponse:
    outputs = model.run({t.name: np.array(t.data, DTYPES[t.datatype]).reshape(t.shape) for t in request.inputs})
    tensors = [
        Tensor.model_construct(name=key, datatype=NAMES[a.dtype], shape=a.shape, data=a.ravel().tolist())
        for key, a in outputs.items()
    ]
    return InferResponse.model_construct(model_name=name, outputs=tensors)


@app.post("/binary/{name}")
async def infer_binary(name: str, request: Request) -> Response:
    """The protocol's binary extension: a JSON header, then the raw tensors in order, both ways."""
    body = await request.body()
    at = int(request.headers["inference-header-content-length"])
    inputs = {}
    for tensor in json.loads(body[:at])["inputs"]:
        size = tensor["parameters"]["binary_data_size"]
        raw = np.frombuffer(body, np.uint8, size, at).view(DTYPES[tensor["datatype"]])
        inputs[tensor["name"]] = raw.reshape(tensor["shape"])
        at += size
    outputs = model.run(inputs)
    described = [
        {
            "name": key,
            "datatype": NAMES[a.dtype],
            "shape": a.shape,
            "parameters": {"binary_data_size": a.nbytes},
        }
        for key, a in outputs.items()
    ]
    header = json.dumps({"model_name": name, "outputs": described}).encode()
    return Response(
        header + b"".join(a.tobytes() for a in outputs.values()),
        media_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(header))},
    )
