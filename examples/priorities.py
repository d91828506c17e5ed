"""Priorities and deadlines: urgent requests overtake, and those that are too late are not run at all."""

import tempfile
import threading
import time
import urllib.error
from pathlib import Path

from examples.serving import ask, foretell, serving

SLOW = """
import time

def predict(X):
    time.sleep(0.1)
    return {"y": X[:, 0]}
"""

MODEL_TOML = """
batching.max_batch_size = 1

[signature]
inputs = [{name = "X", datatype = "FP32", shape = [-1, 2]}]
outputs = [{name = "y", datatype = "FP32", shape = [-1]}]
"""

done: list[str] = []


def call(url: str, who: str, **parameters: int) -> None:
    try:
        ask(url, "slow", [[1, 2]], parameters)
        done.append(who)
    except urllib.error.HTTPError as error:
        done.append(f"{who} ({error.code})")


with tempfile.TemporaryDirectory() as folder:
    path, config, store = Path(folder, "slow.py"), Path(folder, "slow.toml"), str(Path(folder, "store"))
    path.write_text(SLOW)
    config.write_text(MODEL_TOML)
    foretell("add", "slow", str(path), "--config", str(config), "--trust-code", "--store", store)

    with serving("slow", "--trust-code", "--store", store) as url:
        calls = [threading.Thread(target=call, args=(url, "usual"), kwargs={"priority": 5}) for _ in range(8)]
        calls.append(threading.Thread(target=call, args=(url, "urgent"), kwargs={"priority": -1}))
        calls.append(threading.Thread(target=call, args=(url, "late"), kwargs={"priority": 9, "timeout": 150_000}))
        for thread in calls:
            thread.start()
            time.sleep(0.005)
        for thread in calls:
            thread.join()

print(", ".join(done))
assert done.index("urgent") < 6
assert "late (504)" in done or "late (429)" in done
