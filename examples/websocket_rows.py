"""Rows over a WebSocket: sent without waiting, answered in order; a wrong row is answered with what is wrong."""

import json
import tempfile
from pathlib import Path

from websockets.sync.client import connect

from examples.serving import foretell, serving

MODEL = """
def predict(X):
    return {"y": X.sum(axis=1)}
"""

MODEL_TOML = """
[signature]
inputs = [{name = "X", datatype = "FP32", shape = [-1, 2]}]
outputs = [{name = "y", datatype = "FP32", shape = [-1]}]
"""

with tempfile.TemporaryDirectory() as folder:
    path, config, store = Path(folder, "total.py"), Path(folder, "total.toml"), str(Path(folder, "store"))
    path.write_text(MODEL)
    config.write_text(MODEL_TOML)
    foretell("add", "total", str(path), "--config", str(config), "--trust-code", "--store", store)

    with serving("total", "--trust-code", "--store", store) as url:
        with connect(url.replace("http://", "ws://") + "/v2/models/total/stream") as socket:
            rows = [{"X": [1, 2]}, {"X": "no numbers"}, {"X": [3, 4]}]
            for row in rows:
                socket.send(json.dumps(row))
            answers = [json.loads(socket.recv(10)) for _ in rows]

for row, answer in zip(rows, answers, strict=True):
    print(row, "→", answer)
assert answers[0]["outputs"] == {"y": 3.0}
assert answers[2]["outputs"] == {"y": 7.0}
assert answers[1]["status"] == 400
