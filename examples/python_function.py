"""Any Python as a model: a file with a `predict` function. Its code is the package, so it needs --trust-code."""

import tempfile
from pathlib import Path

import foretell
from examples.serving import foretell as command

FUNCTION = '''
import numpy as np

def predict(text: np.ndarray) -> dict[str, np.ndarray]:
    """text [n] BYTES → words [n] INT64."""
    return {"words": np.array([len(row.split()) for row in text], np.int64)}
'''

MODEL_TOML = """
[signature]
inputs = [{name = "text", datatype = "BYTES", shape = [-1]}]
outputs = [{name = "words", datatype = "INT64", shape = [-1]}]
"""

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "count.py")
    path.write_text(FUNCTION)
    config = Path(folder, "count.toml")
    config.write_text(MODEL_TOML)
    store = str(Path(folder, "store"))
    command("add", "count", str(path), "--config", str(config), "--trust-code", "--store", store)
    with foretell.load("count", store=store, trust_code=True) as model:
        print(model.predict(text=["one two three", "four"])["words"])
