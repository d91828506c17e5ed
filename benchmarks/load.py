"""The load generators: wrk with a generated script for HTTP, h2load for gRPC. Closed loop, bodies rotated."""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environments import PEERS, require_tool


@dataclass(frozen=True)
class Payload:
    """One request's body and headers; a client sends its payloads in turn so that answers cannot be remembered."""

    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Sample:
    """One measurement. Rates are requests/s, latencies milliseconds (NaN where the generator gives none)."""

    rate: float
    p50_ms: float
    p99_ms: float
    errors: int
    requests: int


_SCRIPT = """
local requests, at = {{}}, 0
local function body(path)
  local file = assert(io.open(path, "rb"))
  local data = file:read("*a")
  file:close()
  return data
end
function init(args)
  clients = tonumber(args[1] or 1)
{adds}
end
function request()
  at = at % #requests + 1
  return requests[at]
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d\\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99)))
  if steady then
    io.write(string.format("STEADY %d %d\\n", worker:get("counted"), worker:get("last_us") - worker:get("first_us")))
  end
end
"""

_STEADY = """
-- Slow models answer in lumps (a whole batch at once) and the last lump is lost when time is up: count from the
-- moment every client has had an answer to the last answer that came. Costs too much for fast models.
local ffi = require("ffi")
ffi.cdef("typedef struct { long s; long ns; } moment; int clock_gettime(int, moment *);")
local now = ffi.new("moment")
steady, answers, counted, first_us, last_us = true, 0, 0, 0, 0
function setup(thread)
  worker = thread
end
function response(status)
  ffi.C.clock_gettime(1, now)
  last_us = tonumber(now.s) * 1e6 + tonumber(now.ns) / 1e3
  answers = answers + 1
  if answers <= clients then
    first_us = last_us
  elseif status < 400 then
    counted = counted + 1
  end
end
"""


def write_script(
    name: str, path: str, payloads: Sequence[Payload], folder: Path = PEERS / "load", steady: bool = False
) -> Path:
    """Write the wrk script that posts `payloads` to `path` in turn; bodies lie in files beside it.

    `steady` counts between whole lumps of answers, for models whose batches take long.
    """
    folder = folder / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    adds = []
    for i, payload in enumerate(payloads):
        body = folder / f"{i}.body"
        body.write_bytes(payload.body)
        headers = ", ".join(f'["{key}"] = "{value}"' for key, value in payload.headers.items())
        adds.append(f'  requests[{i + 1}] = wrk.format("POST", "{path}", {{{headers}}}, body("{body}"))')
    script = folder / "post.lua"
    script.write_text(_SCRIPT.format(adds="\n".join(adds)) + (_STEADY if steady else ""))
    return script


def parse_wrk(output: str) -> Sample:
    """Read the RESULT line of our script: requests, microseconds, errors, p50 and p99 in microseconds."""
    match = re.search(r"^RESULT (\d+) (\d+) (\d+) (\d+) (\d+)$", output, re.MULTILINE)
    if not match:
        raise RuntimeError(f"wrk gave no result: {output.strip()[-500:]}")
    requests, duration, errors, p50, p99 = (int(g) for g in match.groups())
    rate = (requests - errors) / (duration / 1e6)
    steady = re.search(r"^STEADY (\d+) (\d+)$", output, re.MULTILINE)
    if steady and int(steady[1]):
        rate = int(steady[1]) / (int(steady[2]) / 1e6)
    return Sample(rate, p50 / 1000, p99 / 1000, errors, requests)


def wrk(script: Path, port: int, clients: int, seconds: float) -> Sample:
    """Run wrk with one thread: on a small machine a second one only takes cores from the server."""
    program = require_tool("wrk", "wrk")
    whole = max(1, round(seconds))
    command = [program, "-t1", f"-c{clients}", f"-d{whole}s", "--timeout", "10s", "-s", str(script)]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/", "--", str(clients)], capture_output=True, text=True, timeout=whole + 40
    )
    return parse_wrk(done.stdout + done.stderr)
