"""A transform of your own: transform.py beside the model runs in the replica, over the whole batch."""

import tempfile
from pathlib import Path

import foretell
from examples.serving import foretell as command
from examples.tiny import weighted_sum

TRANSFORM = '''
import numpy as np

def before(inputs):
    """What clients send, [n, 2] in Celsius, becomes what the model takes: the same in Fahrenheit."""
    return {"X": (inputs["X"] * 1.8 + 32).astype(np.float32)}

def after(outputs, inputs):
    """What the model makes becomes what clients get."""
    return {"mean": outputs["y"]}
'''

MODEL_TOML = """
transform.before = [{kind = "custom"}]
transform.after = [{kind = "custom"}]

[signature]
inputs = [{name = "X", datatype = "FP32", shape = [-1, 2]}]
outputs = [{name = "mean", datatype = "FP32", shape = [-1]}]
"""

with tempfile.TemporaryDirectory() as folder:
    source = Path(folder, "weather")
    source.mkdir()
    weighted_sum(source / "model.onnx", 0.5, 0.5)
    (source / "transform.py").write_text(TRANSFORM)
    (source / "model.toml").write_text(MODEL_TOML)

    store = str(Path(folder, "store"))
    command("add", "weather", str(source), "--trust-code", "--store", store)
    with foretell.load("weather", store=store, trust_code=True) as model:
        print(model.predict(X=[[0.0, 100.0], [10.0, 20.0]]))
