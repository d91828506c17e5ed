"""Load for a gRPC inference endpoint: `h2load` (Debian's nghttp2-client) posting one serialised request.

`run` is what the benchmarks call; `python benchmarks/grpc_load.py --port 8081 --model digits --input pixels
--shape 1,64` does the same by hand. Closed loop: each client sends its next call when the answer is there.
"""

import argparse
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import msgspec
import numpy as np

from foretell.core.tensor import Tensors, datatype_of, to_wire
from foretell.server import oip_pb2
from foretell.server.grpc_service import SERVICE

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class GrpcLoad(msgspec.Struct, frozen=True):
    """What one run measured. Latencies are seconds; `failed` counts calls without a 2xx answer. Note that gRPC
    reports a refused call with HTTP status 200, so try the request once before.
    """

    requests_per_s: float
    succeeded: int
    failed: int
    mean_s: float
    max_s: float


def frame(model: str, inputs: Tensors, version: str = "") -> bytes:
    """One ModelInferRequest as a gRPC message: no compression, its length, its bytes; raw contents."""
    request = oip_pb2.ModelInferRequest(model_name=model, model_version=version)
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        request.raw_input_contents.append(bytes(to_wire(array)))
    body = request.SerializeToString()
    return b"\0" + struct.pack(">I", len(body)) + body


def run(
    port: int,
    body: bytes,
    clients: int,
    duration_s: float,
    host: str = "127.0.0.1",
    method: str = f"{SERVICE}/ModelInfer",
) -> GrpcLoad:
    """Drive `method` from `clients` connections with one call each at a time, for `duration_s` seconds.

    Raises `FileNotFoundError` if h2load is missing, `RuntimeError` with its output if it cannot run.
    """
    program = shutil.which("h2load")
    if program is None:
        raise FileNotFoundError("h2load is missing; install Debian's package nghttp2-client")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "frame")
        data.write_bytes(body)
        command = [
            program, "-c", str(clients), "-m", "1", "-t", "1", "-D", f"{round(duration_s * 1000)}ms", "-d", str(data),
            "-H", "content-type: application/grpc", "-H", "te: trailers", f"http://{host}:{port}/{method}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=duration_s + 30, check=False)
    return parse(done.stdout + done.stderr)


def parse(report: str) -> GrpcLoad:
    """Read h2load's report. Raises `RuntimeError` with the report if it holds no result."""
    rate = re.search(r"finished in [\d.]+m?s, ([\d.]+) req/s", report)
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", report)
    times = re.search(r"time for request:\s+(\S+)\s+(\S+)\s+(\S+)", report)
    if not (rate and counts and times):
        raise RuntimeError(f"h2load gave no result:\n{report}")
    succeeded, *failed = map(int, counts.groups())
    return GrpcLoad(float(rate[1]), succeeded, sum(failed), _seconds(times[3]), _seconds(times[2]))


def _seconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * _UNITS[unit]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--model", required=True)
    parser.add_argument("--input", required=True, help="name of the only input, FP32, filled with zeros")
    parser.add_argument("--shape", required=True, help="1,64")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    array = np.zeros([int(d) for d in options.shape.split(",")], np.float32)
    body = frame(options.model, {options.input: array})
    for clients in options.clients:
        print(f"{clients} clients: {run(options.port, body, clients, options.seconds)}")


if __name__ == "__main__":
    main()
