"""What is sent to the servers, and what is read from the load generator and from answers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import wire
from benchmarks.load import Payload, parse_wrk, write_script

ROWS = {"ids": np.arange(4, dtype=np.int64).reshape(1, 4), "x": np.ones((1, 2), np.float32)}


def test_failed_requests_count_as_errors_and_not_as_throughput() -> None:
    sample = parse_wrk("noise\nRESULT 1000 2000000 100 1500 9000\nmore noise")
    assert (sample.rate, sample.errors, sample.p50_ms, sample.p99_ms) == (450.0, 100, 1.5, 9.0)


def test_output_without_a_result_is_an_error_that_shows_it() -> None:
    with pytest.raises(RuntimeError, match="unable to connect"):
        parse_wrk("unable to connect to 127.0.0.1")


def test_each_payload_becomes_a_file_that_the_script_reads(tmp_path: Path) -> None:
    payloads = [Payload(bytes(range(256)), {"X-Length": "3"}), Payload(b"{}", {})]
    script = write_script("one", "/infer", payloads, tmp_path)
    assert (tmp_path / "one" / "0.body").read_bytes() == bytes(range(256))
    text = script.read_text()
    assert text.count('wrk.format("POST", "/infer"') == 2
    assert '["X-Length"] = "3"' in text


def test_an_old_script_leaves_no_payload_behind(tmp_path: Path) -> None:
    write_script("one", "/infer", [Payload(b"a", {}), Payload(b"b", {})], tmp_path)
    write_script("one", "/infer", [Payload(b"c", {})], tmp_path)
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["0.body", "post.lua"]


def test_a_json_request_names_datatypes_and_shapes() -> None:
    document = json.loads(wire.as_json(ROWS).body)
    assert document["inputs"][0] == {"name": "ids", "datatype": "INT64", "shape": [1, 4], "data": [0, 1, 2, 3]}


def test_a_binary_request_holds_its_header_and_then_the_raw_tensors() -> None:
    payload = wire.as_binary(ROWS)
    at = int(payload.headers["Inference-Header-Content-Length"])
    sizes = [t["parameters"]["binary_data_size"] for t in json.loads(payload.body[:at])["inputs"]]
    assert sizes == [32, 8]
    assert payload.body[at:] == ROWS["ids"].tobytes() + ROWS["x"].tobytes()


def test_json_and_binary_answers_read_the_same() -> None:
    text = wire.as_json(ROWS).body.replace(b'"inputs"', b'"outputs"')
    binary = wire.as_binary(ROWS)
    raw = binary.body.replace(b'"inputs"', b'"outputs"')
    length = str(int(binary.headers["Inference-Header-Content-Length"]) + 1)
    for got in (wire.read_answer(text, {}), wire.read_answer(raw, {"inference-header-content-length": length})):
        assert {k: v.tolist() for k, v in got.items()} == {k: v.tolist() for k, v in ROWS.items()}


def test_an_answer_beyond_the_tolerance_is_refused_by_name() -> None:
    wrong = {**ROWS, "x": ROWS["x"] + 0.5}
    with pytest.raises(ValueError, match=r'mosec: output "x" is 0\.5 away'):
        wire.check_answer(wrong, ROWS, 0.1, "mosec")


def test_a_missing_output_and_a_nan_are_refused() -> None:
    with pytest.raises(ValueError, match='no output "x"'):
        wire.check_answer({"ids": ROWS["ids"]}, ROWS, 0.1, "mosec")
    with pytest.raises(ValueError, match="away from direct"):
        wire.check_answer({**ROWS, "x": ROWS["x"] * np.nan}, ROWS, 0.1, "mosec")


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is missing: apt-get install wrk")
def test_the_generated_script_drives_wrk_with_every_payload_in_turn(tmp_path: Path) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from benchmarks.load import wrk

    seen: set[bytes] = set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.add(body)
            self.send_response(500 if body == b"bad" else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        payloads = [Payload(body, {}) for body in (b"one", b"two", b"bad")]
        sample = wrk(write_script("turns", "/x", payloads, tmp_path), server.server_port, 1, 1)
    finally:
        server.shutdown()
        server.server_close()
    assert seen == {b"one", b"two", b"bad"}
    assert 0 < sample.errors < sample.requests


def test_a_steady_count_replaces_the_rate_when_answers_come_in_lumps() -> None:
    assert parse_wrk("RESULT 128 2000000 0 1 1\nSTEADY 64 500000").rate == 128.0
    assert parse_wrk("RESULT 64 2000000 0 1 1\nSTEADY 0 0").rate == 32.0
