"""Read what was served: observations are Parquet files by hour, with inputs and outputs of sampled requests."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.dataset

from examples.serving import ask, foretell, serving
from examples.tiny import weighted_sum

CONFIG = """
serve = ["sum"]

[observations]
folder = "{folder}"
sample_rate = 1.0
"""

with tempfile.TemporaryDirectory() as folder:
    store, observations = str(Path(folder, "store")), Path(folder, "observations")
    foretell("add", "sum", str(weighted_sum(Path(folder, "sum.onnx"), 1, 1)), "--store", store)
    config = Path(folder, "foretell.toml")
    config.write_text(CONFIG.format(folder=observations.as_posix()))

    with serving("--config", str(config), "--store", store) as url:
        for number in range(20):
            ask(url, "sum", [[number, 1]])

    table = pyarrow.dataset.dataset(observations, partitioning="hive").to_table()

times = np.array(table["total_s"]) * 1e3
print(f"{len(table)} requests, median {np.median(times):.2f} ms, outcomes {set(table['outcome'].to_pylist())}")
sampled = table["outputs"][0].as_py()[0]
print("the first answer:", sampled["name"], np.frombuffer(sampled["data"], "<f4"))
assert len(table) == 20
