"""Answer equal requests once: a response cache, set for one model in foretell.toml."""

import tempfile
import urllib.request
from pathlib import Path

from examples.serving import ask, foretell, serving
from examples.tiny import weighted_sum

CONFIG = """
serve = ["sum"]

[models.sum.cache]
max_bytes = 1_000_000
ttl_s = 60.0
"""

with tempfile.TemporaryDirectory() as folder:
    store = str(Path(folder, "store"))
    foretell("add", "sum", str(weighted_sum(Path(folder, "sum.onnx"), 1, 1)), "--store", store)
    config = Path(folder, "foretell.toml")
    config.write_text(CONFIG)

    with serving("--config", str(config), "--store", store) as url:
        for _ in range(10):
            assert ask(url, "sum", [[1, 2]])["y"] == [3.0]
        metrics = urllib.request.urlopen(f"{url}/metrics").read().decode()

hits = next(line for line in metrics.splitlines() if line.startswith("foretell_cache_hits_total{"))
print(hits)
assert hits.endswith(" 9.0")
