"""Answers of the Open Inference Protocol over HTTP: output tensors as JSON, as binary, or as best classes.

JSON has no NaN and no infinity: they become null, and the output's parameter `non_finite` counts them, so that
nothing is lost in silence. Ask for binary outputs to get them as they are.
"""

from typing import Any

import msgspec
import numpy as np

from foretell.core.errors import InvalidInput, ModelFailed
from foretell.core.request import Response as InferResponse
from foretell.core.tensor import Tensor, datatype_of, to_wire
from foretell.server.convert import Call, WantedOutput
from foretell.server.http import BINARY, JSON, Body, Response


class OutputTensor(msgspec.Struct, omit_defaults=True, gc=False):
    """One output. `data` is flat in row-major order, absent when binary."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: Any = None


class InferAnswer(msgspec.Struct, omit_defaults=True, gc=False):
    """The JSON part of an inference answer."""

    model_name: str
    model_version: str
    id: str = ""
    outputs: list[OutputTensor] = []


_encode = msgspec.json.Encoder().encode


def write_answer(call: Call, result: InferResponse) -> Response:
    """The HTTP answer for a finished inference, in the form the call asked for."""
    answer = InferAnswer(result.model, result.version, call.id)
    tail: list[Body] = []
    if call.outputs is None and not call.binary:
        answer.outputs = [_plain(name, array) for name, array in result.outputs.items()]
    else:
        wanted = call.outputs
        if wanted is None:
            wanted = [WantedOutput(name, binary=True) for name in result.outputs]
        answer.outputs = [_output(w, result.outputs, tail) for w in wanted]
    body = _encode(answer)
    if b"null" in body and _mark_non_finite(answer, result.outputs):
        body = _encode(answer)
    timing = result.timing
    headers = b"foretell-version: %b\r\nserver-timing: queue;dur=%.3f, compute;dur=%.3f%b\r\n" % (
        result.version.encode(),
        timing.queue_s * 1e3,
        timing.compute_s * 1e3,
        b", cache;desc=hit" if timing.cached else b"",
    )
    if not tail:
        return Response(body, 200, JSON, headers)
    headers += b"inference-header-content-length: %d\r\n" % len(body)
    return Response(b"".join([body, *tail]), 200, BINARY, headers)


def _plain(name: str, array: Tensor) -> OutputTensor:
    if array.dtype.kind in "OSU":
        return OutputTensor(name, "BYTES", list(array.shape), None, _texts(name, array))
    return OutputTensor(name, datatype_of(array), list(array.shape), None, array.ravel().tolist())


def _texts(name: str, array: Tensor) -> list[str]:
    try:
        return [item if isinstance(item, str) else bytes(item).decode() for item in array.ravel().tolist()]
    except UnicodeDecodeError:
        raise InvalidInput(
            f'output "{name}" holds bytes that are not UTF-8 text, which JSON cannot carry. Ask for it in binary:'
            f' "outputs": [{{"name": "{name}", "parameters": {{"binary_data": true}}}}]'
        ) from None


def _output(wanted: WantedOutput, outputs: dict[str, Tensor], tail: list[Body]) -> OutputTensor:
    name = wanted.name
    if name not in outputs:
        raise ModelFailed(f'the model returned no output "{name}", which its signature promises')
    array = outputs[name]
    if wanted.classes:
        array = best_classes(name, array, wanted.classes)
    if not wanted.binary:
        return _plain(name, array)
    if array.dtype.kind in "SU":
        array = array.astype(object)
    raw = to_wire(array)
    tail.append(raw)
    return OutputTensor(name, datatype_of(array), list(array.shape), {"binary_data_size": len(raw)})


def best_classes(name: str, array: Tensor, count: int) -> Tensor:
    """The `count` largest of each row as "score:index" texts, largest first."""
    if array.dtype.kind not in "fiub" or array.ndim < 1:
        raise InvalidInput(f'output "{name}" has no scores to classify by; ask for it without "classification"')
    rows = array.reshape(array.shape[0], -1) if array.ndim > 1 else array.reshape(1, -1)
    best = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    texts = [[f"{row[i]:f}:{i}".encode() for i in order] for row, order in zip(rows, best, strict=True)]
    result = np.empty(best.shape, dtype=object)
    result[...] = texts
    return result if array.ndim > 1 else result[0]


def _mark_non_finite(answer: InferAnswer, outputs: dict[str, Tensor]) -> bool:
    """Count NaN and infinity on each output that was written as JSON. Returns whether there are any."""
    found = False
    for output in answer.outputs:
        if output.data is None or output.datatype not in ("FP16", "FP32", "FP64"):
            continue
        count = int(np.count_nonzero(~np.isfinite(outputs[output.name])))
        if count:
            output.parameters = {"non_finite": count}
            found = True
    return found
