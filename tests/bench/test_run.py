"""A whole bench against a real HTTP server on this machine, and its reports."""

import http.server
import io
import json
import re
import sys
import threading

import msgspec
import numpy as np
import pytest
from rich.console import Console

from foretell.bench.html import render_html
from foretell.bench.load import LoadPlan
from foretell.bench.oip import encode_binary, encode_json, make_inputs, oip_target
from foretell.bench.processes import cold_start, find_server
from foretell.bench.report import render_comparison, render_json, render_text, rows_of, write_report
from foretell.bench.run import MeasureSettings, run_bench, run_compare
from foretell.bench.targets import PlaneTarget, PredictorTarget
from foretell.core.errors import ConfigError, InvalidInput
from foretell.core.reference import Reference
from foretell.core.tensor import Signature, TensorSpec, from_wire, unpack_bytes
from tests.bench.virtual import FakeTarget, takes

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("text", "BYTES", (-1,))), (TensorSpec("y", "FP32", (-1,)),)
)
QUICK = LoadPlan(concurrency=2, requests=60, warmup_s=0.05)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    models = ("twice",)

    def do_GET(self):
        found = {"name": "twice", "inputs": SIGNATURE.inputs, "outputs": SIGNATURE.outputs}
        self.answer(200 if self.path == "/v2/models/twice" else 404, found)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v2/repository/index":
            self.answer(200, [{"name": name, "state": "READY"} for name in self.server.models])
        elif self.path == "/v2/models/twice/infer":
            self.server.bodies.append(body)
            self.answer(503 if len(self.server.bodies) % self.server.fail_every == 0 else 200, {"outputs": []})
        else:
            self.answer(404, {"error": "no such model"})

    def answer(self, status, value):
        body = msgspec.json.encode(value)
        head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n"
        head += "connection: close\r\n" if self.server.closes else ""
        self.wfile.write(head.encode() + b"\r\n" + body)
        self.close_connection = self.server.closes

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    found.daemon_threads = True
    found.models, found.bodies, found.fail_every, found.closes = ["twice"], [], 10**9, False
    found.url = f"http://127.0.0.1:{found.server_port}"
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def test_a_language_model_is_sent_to_its_own_bench(server, monkeypatch):
    text = Signature((TensorSpec("text_input", "BYTES", (1,)),), (TensorSpec("text_output", "BYTES", (1,)),))
    monkeypatch.setitem(globals(), "SIGNATURE", text)
    with pytest.raises(ConfigError, match="foretell bench llm"):
        oip_target(server.url)


def test_a_server_is_measured_from_its_url_alone(server):
    settings = MeasureSettings(target_s=10.0, server_pid=find_server(server.url))
    result = run_bench(oip_target(server.url, rows=3), QUICK, settings, progress=False)
    assert (result.answered, result.errors, result.rows) == (60, {}, 3)
    assert result.latency[0].seconds > 0
    assert result.goodput_per_s == pytest.approx(result.per_s)
    assert result.cost.shared
    assert result.processes[0].rss_bytes > 2**20
    sent = json.loads(server.bodies[0])
    assert [t["shape"] for t in sent["inputs"]] == [[3, 3], [3]]
    assert len(set(server.bodies)) > 10


def test_error_answers_are_counted_by_status(server):
    server.fail_every = 4
    result = run_bench(oip_target(server.url), msgspec.structs.replace(QUICK, warmup_s=0), progress=False)
    assert result.errors == {"HTTP 503": 15}


def test_a_server_that_closes_every_connection_is_still_measured(server):
    server.closes = True
    result = run_bench(oip_target(server.url), QUICK, progress=False)
    assert (result.answered, result.errors) == (60, {})


def test_a_server_that_is_gone_is_named_with_the_commonest_error(server):
    target = oip_target(server.url)
    server.shutdown()
    server.server_close()
    with pytest.raises(ConfigError, match=r"none of \d+ warm-up requests .* ConnectionRefusedError"):
        run_bench(target, QUICK, progress=False)


def test_a_server_with_several_models_asks_which(server):
    server.models = ["one", "two"]
    with pytest.raises(ConfigError, match="one, two; say which"):
        oip_target(server.url)


def test_an_unknown_model_and_a_silent_port_are_named(server):
    with pytest.raises(ConfigError, match="answers 404"):
        oip_target(f"{server.url}/v2/models/nobody")
    with pytest.raises(ConfigError, match="Is the server running there"):
        oip_target("http://127.0.0.1:9/v2/models/x")


def test_inputs_that_do_not_fit_the_model_are_refused(server):
    with pytest.raises(InvalidInput, match='"x"'):
        oip_target(server.url, [{"x": np.zeros((1, 4), np.float32), "text": np.array([b""], object)}])


def test_made_up_inputs_agree_with_the_signature():
    every = [TensorSpec(name, name, (-1, -1, 2)) for name in ("FP16", "INT64", "UINT8", "BOOL", "BYTES", "FP64")]
    signature = Signature(tuple(every), ())
    inputs = make_inputs(signature, 5, np.random.default_rng(0))
    assert signature.check(inputs) == 5
    assert inputs["INT64"].shape == (5, 32, 2)


def test_binary_requests_hold_a_json_head_and_the_raw_tensors():
    inputs = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "t": np.array([b"a", b"\xff"], object)}
    body, headers = encode_binary(inputs)
    size = int(headers["inference-header-content-length"])
    head = json.loads(body[:size])
    assert [t["parameters"]["binary_data_size"] for t in head["inputs"]] == [24, 10]
    np.testing.assert_array_equal(from_wire(body[size : size + 24], "FP32", (2, 3)), inputs["x"])
    assert unpack_bytes(body[size + 24 :]).tolist() == [b"a", b"\xff"]
    with pytest.raises(InvalidInput, match="binary=True"):
        encode_json(inputs)


def test_predictors_and_planes_are_targets():
    class Doubles:
        signature = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))

        def predict(self, inputs):
            return {"y": inputs["x"] * 2}

    class Plane:
        async def infer(self, reference, request):
            assert (str(reference), request.rows, request.protocol) == ("twice@3", 2, "bench")

    inputs = [{"x": np.zeros(2, np.float32)}]
    predictor = PredictorTarget("floor", Doubles(), inputs)
    assert predictor.rows == 2
    for target in (predictor, PlaneTarget(Plane(), Reference("twice", "3"), inputs, 2)):
        assert run_bench(target, QUICK, progress=False).answered == 60


def test_a_target_is_closed_even_if_the_plan_fails():
    target = FakeTarget(takes(0.0))

    async def broken(index):
        raise OSError

    target._answer = broken
    with pytest.raises(ConfigError):
        run_bench(target, QUICK, progress=False)
    assert (target.opened, target.closed) == (1, 1)


def test_reports_tell_the_same_in_text_json_and_html(tmp_path):
    result = run_bench(FakeTarget(takes(0.001), "a <model>"), LoadPlan(requests=50, warmup_s=0), progress=False)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_text([result]))
    text = console.export_text()
    assert "a <model>" in text
    assert "unknown (needs 381 answers)" in text
    assert json.loads(render_json(result))["answered"] == 50
    write_report(result, tmp_path / "r.html")
    write_report(result, tmp_path / "r.json")
    page = (tmp_path / "r.html").read_text()
    assert "a &lt;model&gt;" in page
    assert "<polyline" in page
    assert "nan" not in page.lower()
    assert not re.search(r"(src|href)=", page)
    assert len(page) < 60_000


def test_a_comparison_is_reported_with_its_verdict(tmp_path):
    plan = LoadPlan(concurrency=1, requests=160, warmup_s=0)
    found = run_compare(FakeTarget(takes(0.0), "quick"), FakeTarget(takes(0.01), "slow"), plan, 4, progress=False)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_comparison(found))
    assert "A is better" in console.export_text()
    write_report(found, tmp_path / "c.html")
    assert "A is better" in (tmp_path / "c.html").read_text()


def test_a_run_without_answers_is_reported_too(tmp_path):
    async def fails(index):
        raise OSError

    result = run_bench(FakeTarget(fails), LoadPlan(requests=5, warmup_s=0), progress=False)
    write_report(result, tmp_path / "r.html")
    assert "OSError × 5" in (tmp_path / "r.html").read_text()


def test_a_report_of_unknown_kind_or_in_no_folder_is_refused(tmp_path):
    result = run_bench(FakeTarget(takes(0)), LoadPlan(requests=5, warmup_s=0), progress=False)
    with pytest.raises(ConfigError, match=r"name it \.html or \.json"):
        write_report(result, tmp_path / "r.pdf")
    with pytest.raises(ConfigError, match="can't be written"):
        write_report(result, tmp_path / "missing" / "r.json")


async def test_a_cold_start_is_timed_to_the_first_answer(server):
    command = [sys.executable, "-c", "input()"]
    took, process = await cold_start(command, f"{server.url}/v2/models/twice/infer", b"{}")
    process.kill()
    process.wait()
    assert took > 0


async def test_a_start_that_fails_says_so():
    with pytest.raises(ConfigError, match="ended with status 3"):
        await cold_start([sys.executable, "-c", "raise SystemExit(3)"], "http://127.0.0.1:9/", b"{}")


def test_a_page_holds_any_number_of_results_even_one_without_answers():
    async def fails(index):
        raise OSError

    plan = LoadPlan(requests=20, warmup_s=0)
    answers = [fails, *[takes(0.001)] * 4]
    results = [run_bench(FakeTarget(answer), plan, progress=False) for answer in answers]
    page = render_html(results, [rows_of(result) for result in results], [])
    assert page.count('class="key') == 5
    assert 'class="key k3"' in page
    assert "A: " not in page
