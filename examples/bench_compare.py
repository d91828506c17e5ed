"""Which version is quicker, and is the difference real? Both are measured in turns, in one run."""

import tempfile
from pathlib import Path

from examples.serving import foretell
from examples.tiny import weighted_sum

with tempfile.TemporaryDirectory() as folder:
    store = str(Path(folder, "store"))
    foretell("add", "sum", str(weighted_sum(Path(folder, "first.onnx"), 1, 1)), "--store", store)
    foretell("add", "sum", str(weighted_sum(Path(folder, "second.onnx"), 2, 2)), "--store", store)
    options = ["--concurrency", "4", "--duration", "1", "--store", store]
    print(foretell("bench", "--compare", "sum@1", "sum@2", *options))
