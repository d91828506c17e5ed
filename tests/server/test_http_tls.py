"""The same server speaks TLS when it is given a context."""

import json
import shutil
import ssl
import subprocess
import urllib.request

import numpy as np
import pytest
from websockets.asyncio.client import connect

from foretell.server.app import serve_http
from tests.server.conftest import Live

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the test's certificate")


@pytest.fixture
def certificate(tmp_path):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
         "1", "-keyout", key, "-out", cert, *subject],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def test_requests_large_and_small_are_answered_over_tls(live: Live, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = live.call(lambda: serve_http(live.app, port=0, tls=context))
    trust = ssl.create_default_context(cafile=str(certificate[0]))
    url = f"https://127.0.0.1:{server.port}/v2/models/echo-FP32/infer"
    for rows in (1, 100_000):
        raw = np.arange(rows * 2, dtype=np.float32).tobytes()
        head = (
            b'{"inputs":[{"name":"x","datatype":"FP32","shape":[%d,2],"parameters":{"binary_data_size":%d}}],'
            b'"parameters":{"binary_data_output":true}}' % (rows, len(raw))
        )
        request = urllib.request.Request(
            url, data=head + raw, headers={"Inference-Header-Content-Length": str(len(head))}
        )
        with urllib.request.urlopen(request, context=trust, timeout=20) as answer:
            assert answer.read().endswith(raw)
    live.call(lambda: server.drain(2.0))


async def test_rows_stream_over_tls(live: Live, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = live.call(lambda: serve_http(live.app, port=0, tls=context))
    trust = ssl.create_default_context(cafile=str(certificate[0]))
    # In one thread: websockets' threaded client once waited in vain for its handshake here, in hundreds of runs.
    async with connect(f"wss://127.0.0.1:{server.port}/v2/models/double/stream", ssl=trust) as socket:
        for total in range(300):
            await socket.send(json.dumps({"x": [total, 0, 0, 0]}))
        assert [json.loads(await socket.recv())["outputs"]["total"] for _ in range(300)] == list(range(300))
    live.call(lambda: server.drain(2.0))
