"""One plain HTTP question at a time: proves a server's answers before it is timed."""

import http.client

from benchmarks import wire
from benchmarks.load import Payload
from benchmarks.models import Model, Rows


def ask(port: int, path: str, payload: Payload) -> Rows:
    """POST one payload and read the outputs. Raises `ValueError` with the body if the status is not 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, payload.body, dict(payload.headers))
        reply = connection.getresponse()
        body = reply.read()
        if reply.status != 200:
            raise ValueError(f"HTTP {reply.status}: {body[:300]!r}")
        return wire.read_answer(body, dict(reply.getheaders()))
    finally:
        connection.close()


def direct(model: Model) -> list[Rows]:
    """What onnxruntime itself answers to each row of the model's pool."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return [dict(zip(names, session.run(names, rows), strict=True)) for rows in model.rows]


def verify(who: str, port: int, path: str, payloads: list[Payload], want: list[Rows], tolerance: float) -> None:
    """Ask every payload once and compare with direct onnxruntime. Raises `ValueError` at the first difference."""
    for payload, expected in zip(payloads, want, strict=True):
        wire.check_answer(ask(port, path, payload), expected, tolerance, who)
